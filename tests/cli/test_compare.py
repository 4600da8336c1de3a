"""The script that tells whether pre-training helps, on small folders of pictures."""

import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_lines import command_line
from datasets import Dataset
from matplotlib.figure import Figure
from PIL import Image
from segmentation_scenes import write_scenes
from tiny import VIT_SIZES, swin_config
from transformers import EvalPrediction, ViTConfig, ViTModel

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling
from hf_simmim.cli import compare
from hf_simmim.evaluation.comparing.answers import ANSWERS_FILE, read_answers, write_answers
from hf_simmim.evaluation.metrics import classification_metrics
from hf_simmim.evaluation.run_progress import Kind, RunProgress
from hf_simmim.training.fingerprints import model_digest

ENCODER = swin_config().to_dict() | {"image_size": 32}


@pytest.fixture(scope="module")
def script():
    return compare


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures of two colors, which is what they are labeled with."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for index in range(40):
        color = np.array([(200, 40, 40), (40, 40, 200)][index % 2])
        pixels = np.clip(color + generator.integers(-40, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
        path = folder / ("red", "blue")[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


FINE_TUNING = {
    **{"num_train_epochs": 1, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "use_cpu": True},
    **{"eval_strategy": "no", "save_strategy": "no", "dataloader_num_workers": 0, "report_to": "none"},
}
PRETRAINING = FINE_TUNING | {"encoder": json.dumps(ENCODER), "mask_patch_size": 8, "image_size": 32, "target": "rgb"}


def options(pictures, output_dir, **kwargs) -> list[str]:
    settings = {
        "train_dir": pictures,
        "output_dir": output_dir,
        "pretrain_options": json.dumps(PRETRAINING),
        "finetune_options": json.dumps(FINE_TUNING),
        "tuning_folds": 2,
    } | kwargs
    return [*command_line(settings), "--seeds", "0", "1", "--labels_per_class", "4", "0"]


class SecondsEach(RunProgress[Kind]):
    """Progress by a clock on which each run takes a second, whatever the machine."""

    def __init__(self, planned):
        super().__init__(planned, itertools.count().__next__)


def test_from_pictures_to_a_verdict(script, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "RunProgress", SecondsEach)
    run = options(pictures, tmp_path)
    script.COMMAND.main(run)
    results = json.loads((tmp_path / "comparison.json").read_text())
    # Eight images are held out.
    assert set(results["accuracies"]) == {"8", "32"}
    for arms in results["accuracies"].values():
        assert {name: set(seeds) for name, seeds in arms.items()} == {
            "pre-trained": {"0", "1"},
            "from scratch": {"0", "1"},
        }
    assert [verdict["num_labels"] for verdict in results["verdicts"]] == [8, 32]
    assert Image.open(tmp_path / "comparison.png").size[0] > 500
    printed = capsys.readouterr().out
    assert results["conclusion"] in printed
    # Two budgets, two arms and two seeds, and the time of the others from the first on.
    progress = re.findall(r"^  (run \d of 8 finished.*)$", printed, re.M)
    left = [f", about {8 - number} s left" for number in range(1, 8)]
    assert progress == [f"run {number} of 8 finished{text}" for number, text in enumerate([*left, ""], start=1)]
    assert results["conclusion"] in (tmp_path / "comparison.md").read_text()
    # Noise on two colors: nothing but the colors can be learned, and the verdict says so.
    doubt = f"{tmp_path / 'pretrained'}: masked pixels are predicted"
    assert printed.count(doubt) == 2
    assert doubt in (tmp_path / "comparison.md").read_text()
    # Without a recipe the arms are fine-tuned as few labels need it.
    given = json.loads((tmp_path / "4-labels" / "pre-trained" / "seed-1" / "run.json").read_text())
    assert (given["augmentation"]["rand_augment"], given["augmentation"]["mixup"]) == ("none", 0.0)

    # Both arms: the same images and settings, seed by seed.
    for budget in ("4-labels", "all-labels"):
        runs = [json.loads((tmp_path / budget / arm / "seed-1" / "run.json").read_text()) for arm in ARM_FOLDERS]
        different = {key for key in runs[0] if runs[0][key] != runs[1][key]}
        assert different <= {"from_scratch"}

    # Started again it does nothing but report, and other options are other runs.
    monkeypatch.setattr(script, "_pretrain", None)
    monkeypatch.setattr(script, "_finetune", None)
    script.COMMAND.main(run)
    assert "finished" not in capsys.readouterr().out
    assert json.loads((tmp_path / "comparison.json").read_text()) == results
    with pytest.raises(TypeError):
        script.COMMAND.main([*run, "--finetune_options", json.dumps(FINE_TUNING | {"num_train_epochs": 2})])
    # The finished pre-training would be taken for one of two epochs.
    message = r"pretrained holds a finished run with other options: num_train_epochs 1 before, 2 now\. Set another"
    with pytest.raises(SystemExit, match=message):
        script.COMMAND.main([*run, "--pretrain_options", json.dumps(PRETRAINING | {"num_train_epochs": 2})])


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """Weights of another architecture than ours."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("public")
    ViTModel(ViTConfig(**VIT_SIZES)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=swin_config())).save_pretrained(folder)
    return folder


def test_four_arms_and_two_pre_trainings(script, pictures, public, tmp_path, capsys, monkeypatch):
    # Pictures are tested elsewhere, and take most of the time of so short runs.
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **kwargs: Path(path).touch())
    run = options(pictures, tmp_path, public=public, arms=list(script.ARM_NAMES), pretrain_seeds=[0, 1], holdout=0.8)
    run += ["--labels_per_class", "4", "--pretrain_options", json.dumps(PRETRAINING | {"holdout": 0})]
    result = script.COMMAND.main(run)
    results = json.loads((tmp_path / "comparison.json").read_text())
    ours, names = ("pre-trained", "continued"), set(script.ARM_NAMES.values())
    assert set(results["accuracies"]["8"]) == names == set(results["costs"])
    found = {(entry["arm"], entry["pretraining"], entry["seed"]) for entry in results["runs"]}
    assert found == {
        (arm, number, seed) for arm in names for number in ((0, 1) if arm in ours else (None,)) for seed in (0, 1)
    }
    # Of both pre-trainings, each with weights and a seed of its own.
    assert {path.name for path in (tmp_path / "4-labels").iterdir()} == {
        *("pre-trained-seed-0", "pre-trained-seed-1", "from-scratch", "public"),
        *("continued-seed-0", "continued-seed-1"),
    }
    for seed in (0, 1):
        settings = json.loads((tmp_path / f"continued-seed-{seed}" / "run.json").read_text())
        assert settings["initial weights"] == model_digest(str(public), with_weights=True)
        assert (settings["seed"], settings["encoder"]["model_type"]) == (seed, "vit")
    # Every pair, and what each step cost.
    assert len(results["verdicts"]) == len(result.verdicts) == 6
    assert all(verdict["widths"].keys() >= {"seeds", "test images"} for verdict in results["verdicts"])
    spreads = {(entry["first"], entry["second"]): set(entry["widths"]) for entry in results["verdicts"]}
    assert "pre-trainings" in spreads["continued", "public"]
    assert "pre-trainings" not in spreads["public", "from scratch"]
    for arm, steps in results["costs"].items():
        assert set(steps) == {"pre-training", "fine-tuning"} if arm in ours else {"fine-tuning"}
        assert all(cost["seconds"] > 0 for cost in steps.values())
    printed = capsys.readouterr().out
    assert result.recommendation == results["recommendation"] == results["conclusion"]
    assert printed.count(result.recommendation) == 1
    assert "The architectures differ (pre-trained and from scratch: swin" in printed
    assert "public and continued: vit" in printed
    assert "Energy not measured" in printed or "kWh" in printed
    assert len(re.findall(r"^  Cost: \d+\.\d min against \d+\.\d min", printed, re.M)) == 6
    # What is kept of a run is what it reports.
    folder = tmp_path / "4-labels" / "public" / "seed-1"
    predictions, labels = read_answers(folder)
    accuracy = (predictions.argmax(axis=1) == labels).mean()
    assert results["accuracies"]["8"]["public"]["1"] == pytest.approx(accuracy)
    assert len(labels) == 32

    # Started again it does nothing but report, also where older runs kept no answers.
    monkeypatch.setattr(script, "_pretrain", None)
    monkeypatch.setattr(script, "_finetune", None)
    script.COMMAND.main(run)
    assert json.loads((tmp_path / "comparison.json").read_text()) == results
    (folder / ANSWERS_FILE).unlink()
    script.COMMAND.main(run)
    again = json.loads((tmp_path / "comparison.json").read_text())
    assert again["runs"] == results["runs"]
    wider = zip(again["verdicts"], results["verdicts"], strict=True)
    assert all(new["widths"]["test images"] >= old["widths"]["test images"] for new, old in wider)
    script.COMMAND.main([*run, "--metric", "macro_f1"])
    again = json.loads((tmp_path / "comparison.json").read_text())
    assert {verdict["answer"] for verdict in again["verdicts"]} == {"cannot tell"}
    assert "did not keep their answers" in again["verdicts"][0]["text"]


@pytest.mark.parametrize(("column", "name"), [("several", "average_precision"), ("numbers", "r2")])
def test_several_labels_and_numbers(script, checkpoint, tmp_path, monkeypatch, capsys, column, name):
    """Answers as `test_finetune.py` finds them: those of the pre-trained arm have less noise."""

    def answer(argv, on_run):
        parsed = script.finetune.FineTuningOptions(*script.finetune.COMMAND.parse(argv))
        runs = []
        for run in script.finetune.plan_runs(parsed):
            labels = np.array(run.evaluation.labels, dtype=np.float64).reshape(len(run.evaluation), -1)
            generator = np.random.default_rng([run.seed, parsed.model.from_scratch])
            noise = generator.normal(size=labels.shape) * (1.0 if parsed.model.from_scratch else 0.1)
            names = run.evaluation.class_names or ["value"]
            given = EvalPrediction(predictions=labels + noise, label_ids=labels)
            metrics = classification_metrics(names, run.evaluation.problem_type)(given)
            write_answers(run.output_dir, labels + noise, labels)
            counts = {"num_train_images": len(run.train), "num_eval_images": len(run.evaluation)}
            runs.append({"seed": run.seed, "metrics": metrics} | counts)
        return {"runs": runs}

    monkeypatch.setattr(script, "_finetune", answer)
    images = [Image.fromarray(np.full((32, 32, 3), value, np.uint8)) for value in range(0, 240, 3)]
    several = [[index % 2, 2] if index % 3 else [index % 2] for index in range(len(images))]
    numbers = [index / len(images) for index in range(len(images))]
    Dataset.from_dict({"image": images, "several": several, "numbers": numbers}).to_parquet(tmp_path / "data.parquet")
    source = {"train_dir": None, "data_files": tmp_path / "data.parquet", "label_column": column, "holdout": 0.75}
    run = options(None, tmp_path / "run", checkpoint=checkpoint, pretrain_options=None, **source)
    result = script.COMMAND.main([*run, "--labels_per_class", "0", "--seeds", "0", "1", "2", "3"])
    results = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert result.metric == results["metric"] == name
    assert {arm: len(runs) for arm, runs in results["values"]["20"].items()} == {"pre-trained": 4, "from scratch": 4}
    (verdict,) = result.verdicts
    assert f"{verdict.metric.title} decides" in results["notes"][0]
    assert verdict.widths["test images"] > 0
    assert verdict.answer == "yes"
    assert result.recommendation == "Recommendation: pre-train on these images."
    printed = capsys.readouterr().out
    assert "all labels, pre-trained: 4 runs" in printed
    assert f"Next: train the model to use: hf-simmim finetune --checkpoint {checkpoint} --" in printed
    # Numbers have no classes.
    test_set = script.check_runs(*script.COMMAND.parse([*run, "--labels_per_class", "1", "0"]))
    assert test_set.budget(1) == ("1 label" if column == "numbers" else "1 label per class")


def test_segmentation(script, tmp_path, capsys, monkeypatch):
    """Masks: the same verdict from mean IoU, whose intervals draw test images again; never on those that decide."""
    scenes = write_scenes(tmp_path / "scenes", 44)
    segmenting = FINE_TUNING | {"crop_size": 32, "decoder_channels": 16, "drop_path_rate": 0.0}
    run = options(scenes, tmp_path / "run", task="segmentation", holdout=0.75, finetune_options=json.dumps(segmenting))
    script.COMMAND.main(run)
    printed = capsys.readouterr().out
    assert "4 annotated images, pre-trained: 2 runs" in printed
    # One cannot tell, and training from scratch costs least.
    words = next_words(printed, "segment")
    assert words[:4] == ["--checkpoint", f"{tmp_path}/run/pretrained", "--from_scratch", "True"]
    assert words[-2:] == ["--train_dir", str(scenes)]
    assert words[words.index("--decoder_channels") + 1] == "16"
    assert re.search(r"test mean IoU \d+\.\d ± \d+\.\d % \(n = 33\)", printed)
    results = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert results["metric"] == "mean_iou"
    assert [verdict["num_labels"] for verdict in results["verdicts"]] == [4, 11]
    widths = [verdict["widths"]["test images"] for verdict in results["verdicts"]]
    assert 0 < min(widths) < max(widths) < 0.2
    deciding = json.loads((tmp_path / "run" / "deciding_images.json").read_text())
    log = json.loads((tmp_path / "run" / "pretrained" / "trainer_state.json").read_text())
    assert (len(deciding), log["max_steps"]) == (33, 2)  # of 11 images, one held out, in batches of 4
    for seed in (0, 1):
        folder = tmp_path / "run" / "4-labels" / "from-scratch" / f"seed-{seed}"
        counts, true = read_answers(folder)
        assert (counts.shape, true.shape) == ((33, 2, 3), (33, 3))
        union = true.sum(0) + counts[:, 1].sum(0) - counts[:, 0].sum(0)
        mean = np.mean(counts[:, 0].sum(0) / union)
        assert results["values"]["4"]["from scratch"][str(seed)] == pytest.approx(mean)
    monkeypatch.setattr(script, "_segment", None)
    script.COMMAND.main(run)
    with pytest.raises(SystemExit, match="labels_per_class=11 and 0 are the same budget, of 11 images"):
        script.COMMAND.main([*run, "--labels_per_class", "11", "0"])
    with pytest.raises(SystemExit, match="one annotated image is too few. Use 2 or more"):
        script.COMMAND.main([*run, "--labels_per_class", "1", "0"])
    # A class that no test mask has allows no verdict.
    assert script.check_runs(*script.COMMAND.parse(run)).refusals == []
    (scenes / "classes.txt").write_text("ground\ndisc\nsquare\nstar\n")
    ((why, _),) = script.check_runs(*script.COMMAND.parse(run)).refusals
    assert why == "since the test set has no image of star"
    # A mask that cannot be used is refused before anything is trained.
    monkeypatch.setattr(script, "_pretrain", None)
    Image.new("RGB", (64, 64)).save(sorted((scenes / "masks").iterdir())[3])
    with pytest.raises(SystemExit, match="convert its colors to class ids"):
        script.COMMAND.main([*run, "--output_dir", str(tmp_path / "other")])


def test_imbalanced_classes_and_missing_ones(script, pictures, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(pictures, images)
    for path in sorted((images / "red").iterdir())[6:]:
        path.unlink()
    run = [*options(images, tmp_path / "run", holdout=0.5), "--labels_per_class", "0"]
    test_set = script.check_runs(*script.COMMAND.parse(run))
    assert test_set.metric.name == "balanced_accuracy"
    assert "imbalanced (classes of 3 to 10 images)" in test_set.why
    assert script.check_runs(*script.COMMAND.parse([*run, "--metric", "accuracy"])).metric.name == "accuracy"
    assert test_set.refusals == []
    shutil.copytree(pictures / "blue", tmp_path / "test" / "blue")
    run = [*options(images, tmp_path / "run", validation_dir=tmp_path / "test"), "--labels_per_class", "0"]
    ((why, _),) = script.check_runs(*script.COMMAND.parse(run)).refusals
    assert why == "since the test set has no image of red"


def test_which_arms_run(script, pictures, public, checkpoint, tmp_path):
    def arms(**kwargs):
        given = {"pretrain_options": None} if "checkpoint" in kwargs else {}
        (arguments,) = script.COMMAND.parse(options(pictures, tmp_path, **given | kwargs))
        return arguments

    assert arms().arm_keys == ["pretrained", "scratch"]
    assert arms(public=public).arm_keys == ["pretrained", "scratch", "public"]
    assert arms(continued=public).arm_keys == ["pretrained", "scratch", "continued"]
    assert arms(public=public, arms=["continued", "public"]).scratch_model == "public"
    assert arms(public=public, scratch_like="public").scratch_model == "public"
    assert arms(public=public, checkpoint=checkpoint).seeds_of("pretrained") == [None]
    both = arms(public=public, checkpoint=checkpoint, arms=["pretrained", "continued"], pretrain_seeds=[3, 4])
    assert (both.seeds_of("pretrained"), both.seeds_of("continued")) == ([None], [3, 4])
    assert script.planned_runs(both) == {(4, False): 6, (0, False): 6}
    asked = script.pretraining_options(both, "continued", 4)
    assert asked["checkpoint"] == str(public)
    assert asked["seed"] == 4
    # The nearest multiple of its patches of 8 px.
    assert script.fitting_mask_patch({"checkpoint": public, "mask_patch_size": 13}) == 16
    assert asked["output_dir"] == str(tmp_path / "continued-seed-4")


def test_runs_of_the_cross_validation_count(script, pictures, tmp_path):
    (arguments,) = script.COMMAND.parse([*options(pictures, tmp_path), "--learning_rates", "0.001", "0.002"])
    # Two arms, two rates and two folds; two arms and two seeds.
    assert script.planned_runs(arguments) == {(4, True): 8, (4, False): 4, (0, True): 8, (0, False): 4}


def test_fewer_images_are_of_all_classes(script, pictures):
    """Those of a folder are sorted by class."""
    classification = script.finetune
    settings = {"train_dir": pictures, "max_train_samples": 10, "max_eval_samples": 4}
    run = classification.plan_runs(
        classification.FineTuningOptions(*classification.COMMAND.parse(command_line(settings)))
    )[0]
    assert sorted(run.train.labels) == [0] * 5 + [1] * 5
    assert sorted(run.evaluation.labels) == [0, 0, 1, 1]


ARM_FOLDERS = ("pre-trained", "from-scratch")


def next_words(printed: str, command: str) -> list[str]:
    """The command line that is printed at the end, after the name of the command."""
    (line,) = re.findall(rf"^Next: .*: hf-simmim {command} (.*)$", printed, re.M)
    return shlex.split(line)


def test_tuning_never_sees_the_images_that_decide(script, pictures, tmp_path, monkeypatch, capsys):
    """What the runs and their cross-validation are asked for, and which images that gives."""
    seen = plan_only(script, monkeypatch)
    torch.manual_seed(0)
    SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=swin_config())).save_pretrained(tmp_path / "checkpoint")
    run = options(pictures, tmp_path / "run", checkpoint=tmp_path / "checkpoint", pretrain_options=None)
    script.COMMAND.main([*run, "--learning_rates", "0.001", "0.002", "--layer_decays", "0.5", "1.0"])
    deciding = set.union(*(evaluation for _, evaluation in seen["deciding"]))
    assert len(deciding) == 8
    for train, evaluation in seen["tuning"]:
        assert not (train | evaluation) & deciding
    few = [train | evaluation for train, evaluation in seen["tuning"] if len(train) == 4]
    assert len(seen["tuning"]) == 2 * 2 * 4 * 2  # budgets, arms, choices, folds
    # The labeled images of the first seed.
    assert {frozenset(images) for images in few} == {frozenset(seen["deciding"][0][0])}
    # What comes next trains the cheapest model, as no other is better, by the recipe of the comparison and its choice.
    parts = script.finetune.COMMAND.parse(next_words(capsys.readouterr().out, "finetune"))
    given = {name: value for part in parts for name, value in vars(part).items()}
    expected = {"train_dir": str(pictures), "labels_per_class": None, "from_scratch": True, "rand_augment": "none"}
    expected |= {"learning_rate": 0.001, "layer_decay": 0.5, "num_train_epochs": 1}
    assert {name: given[name] for name in expected} == expected


def plan_only(script, monkeypatch) -> dict[str, list]:
    """What the runs would train on and evaluate on."""
    seen: dict[str, list] = {"tuning": [], "deciding": []}
    classification = script.finetune

    def plan(argv, on_run):
        runs = classification.plan_runs(classification.FineTuningOptions(*classification.COMMAND.parse(argv)))
        for run in runs:
            kind = "tuning" if run.fold is not None else "deciding"
            seen[kind].append((set(run.train.rows["name"]), set(run.evaluation.rows["name"])))
        metrics = {"accuracy": 0.5}
        results = [
            {"seed": run.seed, "metrics": metrics, "num_train_images": len(run.train), "num_eval_images": 8}
            for run in runs
        ]
        return {"summary": {"accuracy": {"mean": 0.5}}, "runs": results}

    monkeypatch.setattr(script, "_finetune", plan)
    return seen


def test_embedded_data_are_tuned_on_the_labels_of_the_first_seed(script, tmp_path, monkeypatch):
    seen = plan_only(script, monkeypatch)
    config = SimMIMConfig(encoder_config=swin_config(num_channels=1))
    SimMIMForMaskedImageModeling(config).save_pretrained(tmp_path / "checkpoint")
    where = ["--checkpoint", str(tmp_path / "checkpoint"), "--output_dir", str(tmp_path / "run")]
    script.COMMAND.main([*where, "--labels_per_class", "5", "--seeds", "3", "4", "--learning_rates", "0.001", "0.002"])
    assert {frozenset(train | evaluation) for train, evaluation in seen["tuning"]} == {
        frozenset(seen["deciding"][0][0])
    }


@pytest.mark.parametrize("is_named", [False, True])
def test_images_that_decide_are_not_pre_trained_on(script, pictures, tmp_path, monkeypatch, is_named):
    """Whether the images to pre-train on are the labeled ones, or a folder that has those, too."""
    trained: list[set] = []

    def load_only(argv):
        data, _, _ = script.pretrain.COMMAND.parse(argv)
        trained.append({Path(name).name for part in script.pretrain.load_splits(data, "") for name in part["name"]})

    seen = plan_only(script, monkeypatch)
    monkeypatch.setattr(script, "_pretrain", load_only)
    link = tmp_path / "link"
    link.symlink_to(pictures)
    (tmp_path / "run" / "pretrained").mkdir(parents=True)
    script.COMMAND.main(options(pictures, tmp_path / "run", unlabeled_dir=link if is_named else None))
    deciding = {Path(name).name for name in seen["deciding"][0][1]}
    assert len(deciding) == 8
    assert not deciding & trained[0]
    assert len(trained[0]) == 32


def test_finished_runs_leave_no_checkpoints(script, pictures, tmp_path, monkeypatch):
    def train(argv, on_run):
        folder = Path(argv[argv.index("--output_dir") + 1])
        (folder / "seed-0" / "checkpoint-9").mkdir(parents=True)
        (folder / "seed-0" / "model.safetensors").touch()
        return {}

    monkeypatch.setattr(script, "_finetune", train)
    (arguments,) = script.COMMAND.parse(options(pictures, tmp_path))
    for keeps in (True, False):
        folder = tmp_path / str(keeps)
        script.fine_tune(arguments, {}, folder, {}, keeps)
        assert not list(folder.rglob("checkpoint-*"))
        assert (folder / "seed-0" / "model.safetensors").exists() == keeps


def test_new_runs_decode_images_as_the_first_one_did(script, pictures, tmp_path, monkeypatch):
    """A comparison that goes on where other decoders are installed does not mix them."""
    found = {}

    def decoder_of(argv):
        place = argv.index("--image_decoder") + 1 if "--image_decoder" in argv else None
        folder = Path(argv[argv.index("--output_dir") + 1])
        found[folder.name] = None if place is None else argv[place]
        (folder / "seed-0").mkdir(parents=True, exist_ok=True)
        return folder

    def train(argv, on_run):
        # What is chosen where nothing was before.
        (decoder_of(argv) / "seed-0" / "run.json").write_text(json.dumps({"image_decoder": "pillow-torch"}))
        return {}

    monkeypatch.setattr(script, "_finetune", train)
    (arguments,) = script.COMMAND.parse(options(pictures, tmp_path))
    for arm in ("from-scratch", "pre-trained"):
        script.fine_tune(arguments, {}, tmp_path / "4-labels" / arm, {})
    script.fine_tune(arguments, {"image_decoder": "pillow"}, tmp_path / "4-labels" / "public", {})
    # A run that has begun keeps its own; the record of a run does not know what others had.
    script.fine_tune(arguments, {"seeds": [3]}, tmp_path / "4-labels" / "from-scratch", {})
    assert found == {"from-scratch": None, "pre-trained": "pillow-torch", "public": "pillow"}
    assert "image_decoder" not in (tmp_path / "4-labels" / "pre-trained" / "done.json").read_text()
    # Pre-trainings have their own.
    assert arguments.kept_decoder(tmp_path / "continued") == {}
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained" / "run.json").write_text(json.dumps({"image_decoder": "simplejpeg"}))
    assert arguments.kept_decoder(tmp_path / "continued") == {"image_decoder": "simplejpeg"}
    assert arguments.kept_decoder(tmp_path / "pretrained") == {}
    arguments.task = "segmentation"
    assert arguments.kept_decoder(tmp_path / "4-labels" / "continued") == {}


def test_other_options_images_or_weights_are_other_runs(script, pictures, tmp_path, monkeypatch):
    """Neither results nor checkpoints of an interrupted run are those of what is asked for now."""
    found: list[list[str]] = []

    def train(argv, on_run):
        folder = Path(argv[argv.index("--output_dir") + 1], "seed-0")
        found.append(sorted(path.name for path in folder.glob("checkpoint-*")))
        (folder / f"checkpoint-{len(found)}").mkdir(parents=True)
        if len(found) < 4:
            raise KeyboardInterrupt
        return {"number": len(found)}

    monkeypatch.setattr(script, "_finetune", train)
    (arguments,) = script.COMMAND.parse(options(pictures, tmp_path))
    for given, inputs in (({"weight_decay": 0.1}, {"images": "a"}), ({}, {"images": "a"}), ({}, {"images": "b"})):
        with pytest.raises(KeyboardInterrupt):
            script.fine_tune(arguments, given, tmp_path, inputs)
    assert script.fine_tune(arguments, {}, tmp_path, {"images": "b"}) == {"number": 4}
    assert found == [[], [], [], ["checkpoint-3"]]
    assert script.fine_tune(arguments, {}, tmp_path, {"images": "b"}) == {"number": 4}
    assert script.fine_tune(arguments, {}, tmp_path, {"images": "c"}) == {"number": 5}


def test_runs_know_the_images_and_the_weights(script, pictures, tmp_path):
    """A checkpoint that is trained on, or pictures that are added, in folders of the same names."""
    images = tmp_path / "images"
    shutil.copytree(pictures, images)
    (arguments,) = script.COMMAND.parse(options(images, tmp_path / "run"))
    before = script.check_runs(arguments)
    assert len(before.names) == 8
    shutil.copy(images / "red" / "00.png", images / "red" / "again.png")
    assert script.check_runs(arguments).images != before.images
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=swin_config()))
    digests = []
    for change in (0, 1):
        torch.nn.init.constant_(model.head.projection.bias, change)
        model.save_pretrained(tmp_path / "model")
        digests.append([model_digest(str(tmp_path / "model"), with_weights) for with_weights in (True, False)])
    assert digests[0][0] != digests[1][0]
    # From scratch it is the same.
    assert digests[0][1] == digests[1][1]
    assert model_digest("org/name", True) is None


def test_images_that_decide_can_all_be_read(script, pictures, tmp_path, monkeypatch):
    """Found before the pre-training; mended afterwards, others would decide."""
    images = tmp_path / "images"
    shutil.copytree(pictures, images)
    run = options(images, tmp_path / "run")
    names = script.check_runs(*script.COMMAND.parse(run)).names
    Path(names[5]).write_bytes(b"none")
    monkeypatch.setattr(script, "_pretrain", None)
    with pytest.raises(SystemExit, match=f"1 of 8 images.*{Path(names[5]).name}"):
        script.COMMAND.main(run)


def test_images_that_decide_do_not_choose_among_pre_trainings(script, pictures):
    """The pre-training is not evaluated on them, and so no weights are chosen by them."""
    (arguments,) = script.COMMAND.parse(options(pictures, "run", validation_dir=pictures, max_eval_samples=4))
    cut = {"slice_neighbors", "stacks", "volume_series"}
    assert set(arguments.unlabeled_source()) == {"train_dir", "train_split", "max_unreadable", *cut}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint": "somewhere"}, "pre-trained already"),
        ({"finetune_options": '{"eval_strategy": "epoch"}'}, "is used only once, at the end"),
        ({"finetune_options": '{"seeds": 1}'}, "has 'seeds', which compare sets itself"),
        ({"finetune_options": '{"holdout": 0.1}'}, "has 'holdout', which compare sets itself"),
        ({"finetune_options": "{"}, "not valid JSON"),
        ({"finetune_options": '{"layer_deca": 1}'}, "Did you mean --layer_decay"),
        ({"trian_dir": "x"}, "Did you mean --train_dir"),
        ({"layer_decays": 1.5}, r"layer_decays=\[1\.5\] must be in \(0, 1\]"),
        ({"learning_rates": 0}, "must be more than 0"),
        ({"output_dir": Path(__file__, "x")}, "cannot be written .* Name another folder"),
        ({"holdout": 0}, "leaves no images for the test set"),
        ({"train_dir": "nowhere"}, "does not exist"),
        ({"arms": "scratch"}, r"arms=\['scratch'\] must be two or more"),
        ({"arms": ["scratch", "public"]}, "has public, but no weights are named"),
        ({"arms": ["scratch", "continued"]}, "Set --public to the weights to start from"),
        ({"arms": ["scratch", "pretrained"], "public": "somewhere"}, "public='somewhere' is of no arm"),
        ({"arms": ["scratch", "public"], "public": "somewhere"}, "pretrain_options=.* has no effect"),
        ({"public": "nowhere/to/be/found"}, "neither the folder of a model nor a model on the Hub"),
        ({"pretrain_seeds": [1, 1]}, "contains duplicates"),
        ({"scratch_like": "public"}, "scratch_like='public' is not one of the arms"),
        ({"continued_options": "{}", "metric": "r2"}, "metric='r2' is not one of single-label images"),
        # Of the 40 pictures, eight are left.
        ({"holdout": 0.8}, "labels_per_class=4 and 0 are the same budget, of 8 images. Leave one of them out"),
    ],
)
def test_mistakes_are_refused(script, pictures, tmp_path, change, message, monkeypatch):
    # Before any pre-training.
    monkeypatch.setattr(script, "_pretrain", None)
    with pytest.raises(SystemExit, match=message):
        script.COMMAND.main(options(pictures, change.pop("output_dir", tmp_path), **change))
