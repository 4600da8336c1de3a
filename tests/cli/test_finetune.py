"""The fine-tuning script, run as a user runs it, on small folders of pictures."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_lines import command_line
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from original_files import save, swin_weights
from paths import FIXTURES, PACKAGE
from PIL import Image
from tiny import beit_config, swin_config
from transformers import AutoModelForImageClassification, EvalPrediction, SwinModel, TrainerCallback

from hf_simmim import ENCODER_PRESETS, SimMIMConfig, SimMIMForImageClassification, SimMIMForMaskedImageModeling
from hf_simmim.checkpoints.convert import convert_checkpoint
from hf_simmim.cli import convert, finetune
from hf_simmim.cli import pretrain as run_mim
from hf_simmim.cli.recipes import recipe_names
from hf_simmim.evaluation.comparing.answers import read_answers
from hf_simmim.evaluation.metrics import classification_metrics
from hf_simmim.model.encoder_stages import encoder_layers

RECIPES = PACKAGE / "cli" / "recipe_files"
CLASSES = ("across", "down", "plain")


@pytest.fixture(scope="module")
def script():
    return finetune


def parse(argv: list[str]) -> finetune.FineTuningOptions:
    """What a command line says."""
    return finetune.FineTuningOptions(*finetune.COMMAND.parse(argv))


def train(argv: list[str]) -> dict:
    """Run a command line; what `results.json` holds."""
    result = finetune.COMMAND.main(argv)
    return {"summary": result.summary, "warnings": result.warnings, "runs": result.runs}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Sixteen pictures each of three classes that a small model can learn: stripes across, stripes down, and none."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for index in range(48):
        pixels = np.full((36, 40, 3), generator.integers(60, 200, 3), np.uint8)
        stripes = generator.integers(0, 4)
        if index % 3 == 0:
            pixels[stripes::8] = 255
            pixels[stripes + 1 :: 8] = 255
        elif index % 3 == 1:
            pixels[:, stripes::8] = 255
            pixels[:, stripes + 1 :: 8] = 255
        path = folder / CLASSES[index % 3] / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A pre-training checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=swin_config())).save_pretrained(folder)
    return folder


def options(pictures, output_dir, **kwargs) -> list[str]:
    """A command line for a run of seconds."""
    return command_line(
        {
            "train_dir": pictures,
            "output_dir": output_dir,
            "holdout": 0.25,
            "per_device_train_batch_size": 12,
            "per_device_eval_batch_size": 12,
            "num_train_epochs": 2,
            "learning_rate": 2e-3,
            "eval_crop_ratio": 1.0,
            "eval_strategy": "no",
            "save_strategy": "no",
            "logging_steps": 1,
            "dataloader_num_workers": 0,
            "use_cpu": True,
            "report_to": "none",
        }
        | kwargs
    )


PLAIN = {"mixup": 0, "cutmix": 0, "rand_augment": "none", "color_jitter": 0, "random_erasing": 0, "crop_scale": 0.8}


def test_the_image_decoder_is_of_training_and_recorded(script, pictures, checkpoint, tmp_path):
    run = options(pictures, tmp_path, checkpoint=checkpoint, image_decoder="pillow-torch", **PLAIN)
    parsed = parse(run)
    trainer, _ = script.build_trainer(parsed, script.plan_runs(parsed)[0])
    augmenters = [dataset._augmenter for dataset in (trainer.train_dataset, trainer.eval_dataset)]
    assert (augmenters[0].image_decoder, augmenters[1]) == ("pillow-torch", None)
    assert json.loads((tmp_path / "run.json").read_text())["image_decoder"] == "pillow-torch"


def test_it_learns_and_leaves_what_a_user_needs(script, pictures, checkpoint, tmp_path, capsys):
    run = options(pictures, tmp_path, checkpoint=checkpoint, num_train_epochs=24, warmup_steps=0.1, **PLAIN)
    results = train(run)
    assert results["summary"]["accuracy"]["mean"] >= 0.9
    assert results["runs"][0]["num_train_images"] == 36
    assert json.loads((tmp_path / "results.json").read_text()) == results
    macro = {"macro_precision", "macro_f1", "macro_average_precision", "macro_auroc"}
    assert macro | {f"accuracy_{name}" for name in CLASSES} < set(results["summary"])
    of_classes = results["runs"][0]["per_class"]
    assert set(of_classes) == set(CLASSES)
    for name, row in of_classes.items():
        assert row["recall"] == results["summary"][f"accuracy_{name}"]["mean"]
        assert {"precision", "f1", "average_precision", "auroc", "support"} < row.keys()
    assert results["warnings"] == []
    assert "| class | images | recall | precision | F1 | average precision | AUROC |" in (
        tmp_path / "README.md"
    ).read_text(encoding="utf-8")
    assert Image.open(tmp_path / "confusion.png").size[0] > 300
    model = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert model.config.id2label == dict(enumerate(CLASSES))
    printed = capsys.readouterr().out
    assert f"from {checkpoint}" in printed
    assert "accuracy" in printed
    assert "few_labels" not in printed


def test_a_missed_class_is_told(script, pictures, checkpoint, tmp_path, capsys, monkeypatch):
    """Of a model that finds one class only, on images most of which are of that class."""
    few = tmp_path / "few"
    shutil.copytree(pictures, few)
    for name in CLASSES[1:]:
        for path in sorted((few / name).iterdir())[4:]:
            path.unlink()
    head = finetune.build_model

    def constant(*args):
        model = head(*args)
        model.classifier.weight.data.zero_()
        model.classifier.bias.data = torch.tensor([1.0, 0.0, 0.0])
        return model

    monkeypatch.setattr(finetune, "build_model", constant)
    run = options(few, tmp_path / "run", checkpoint=checkpoint, holdout=0.5, max_steps=1, learning_rate=0.0)
    results = train(run)
    accuracy, balanced = (results["summary"][name]["mean"] for name in ("accuracy", "balanced_accuracy"))
    assert (accuracy, balanced) == pytest.approx((8 / 12, 1 / 3))
    found = "only 0 % of 2 test images are found (recall)"
    sentence = f"{CLASSES[1]}: {found}, while accuracy is 67 %; see balanced accuracy 33 %"
    assert results["warnings"][0] == results["runs"][0]["warnings"][0] == sentence
    assert f"Warning: {sentence}" in capsys.readouterr().out
    assert f"> **Warning:** {sentence}." in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    # Classes that are never predicted have no precision; JSON has no NaN.
    assert results["runs"][0]["per_class"][CLASSES[1]]["precision"] is None
    assert "NaN" not in (tmp_path / "run" / "results.json").read_text()


def test_the_papers_recipe_runs_with_all_its_parts(script, pictures, checkpoint, tmp_path, capsys):
    """Mixed soft labels, RandAugment, erasing, stochastic depth and an average of the weights, evaluated on classes."""
    run = options(pictures, tmp_path, checkpoint=checkpoint, drop_path_rate=0.2, weight_average=0.9, max_steps=3)
    results = train(run)
    assert 0 <= results["summary"]["accuracy"]["mean"] <= 1
    # Cross entropy of integers, not of the soft labels that were trained on.
    assert results["summary"]["loss"]["mean"] == pytest.approx(np.log(3), abs=0.5)
    assert "3 steps are few for the paper's strong augmentation: try --recipe few_labels" in capsys.readouterr().out


def test_few_labels_folds_and_seeds(script, pictures, checkpoint, tmp_path, capsys):
    run = options(pictures, tmp_path, checkpoint=checkpoint, labels_per_class=4, num_folds=2, holdout=None, max_steps=1)
    results = train([*run, "--seeds", "0", "1"])
    assert [(run["seed"], run["fold"]) for run in results["runs"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert {(run["num_train_images"], run["num_eval_images"]) for run in results["runs"]} == {(6, 6)}
    assert (tmp_path / "seed-1-fold-0" / "model.safetensors").exists()
    accuracies = [run["metrics"]["accuracy"] for run in results["runs"]]
    assert results["summary"]["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    assert results["summary"]["accuracy"]["std"] == pytest.approx(np.std(accuracies, ddof=1))
    assert f"predict --checkpoint {tmp_path / 'seed-0-fold-0'} --image_dir" in capsys.readouterr().out


def test_the_budgets_of_a_seed_are_held_against_the_same_images(script, pictures, checkpoint):
    def plan(**kwargs):
        return script.plan_runs(parse(options(pictures, "x", checkpoint=checkpoint, **kwargs)))[0]

    few, more, other = plan(labels_per_class=2), plan(labels_per_class=5), plan(labels_per_class=5, seed=1)
    assert few.evaluation.rows["name"] == more.evaluation.rows["name"] == other.evaluation.rows["name"]
    assert set(few.train.rows["name"]) < set(more.train.rows["name"]) != set(other.train.rows["name"])
    # Images that are put aside are in no fold.
    folded = plan(labels_per_class=5, num_folds=5)
    assert set(folded.train.rows["name"]) | set(folded.evaluation.rows["name"]) == set(more.train.rows["name"])


def test_the_control_arm_has_the_same_architecture_and_fresh_weights(script, pictures, checkpoint, tmp_path):
    def model(*more):
        arguments = parse([*options(pictures, tmp_path / "x", checkpoint=checkpoint), *more])
        trainer, _ = script.build_trainer(arguments, script.plan_runs(arguments)[0])
        return trainer.model.state_dict()

    tuned, control = model(), model("--from_scratch")
    assert {name: tensor.shape for name, tensor in tuned.items()} == {name: t.shape for name, t in control.items()}
    name = "simmim.encoder.encoder.layers.0.blocks.0.intermediate.dense.weight"
    assert not torch.equal(tuned[name], control[name])
    assert torch.equal(model("--from_scratch")[name], control[name])


@pytest.mark.parametrize("source", ["stock", "classifier", "vit"])
def test_other_checkpoints(script, pictures, tmp_path, source):
    """Of transformers; a classifier of other classes; and the paper's ViT, which changes its structure."""
    if source == "stock":
        SwinModel(swin_config()).save_pretrained(tmp_path / "from")
    elif source == "classifier":
        SimMIMForImageClassification(SimMIMConfig(encoder_config=swin_config(), num_labels=7)).save_pretrained(
            tmp_path / "from"
        )
    else:
        SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=beit_config())).save_pretrained(tmp_path / "from")
    size = 32 if source == "vit" else 48
    run = options(pictures, tmp_path / "to", checkpoint=tmp_path / "from", image_size=size, max_steps=1)
    script.COMMAND.main(run)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "to")
    assert model.config.image_size == (size, size)
    assert model.config.num_labels == 3
    assert isinstance(model.norm, torch.nn.LayerNorm) is (source == "vit")


@pytest.mark.parametrize("save_steps", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_as_if_it_had_not_been(script, pictures, checkpoint, tmp_path, save_steps, capsys):
    """Within an epoch or between two; augmentation, mixing, stochastic depth and the average of weights included.

    Evaluations before and after draw nothing of what training does, though their workers are started anew.
    """

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise KeyboardInterrupt

    def settings(folder):
        return options(
            *(pictures, tmp_path / folder),
            **{"checkpoint": checkpoint, "save_strategy": "steps", "save_steps": save_steps, "weight_average": 0.9},
            **{"drop_path_rate": 0.3, "dataloader_num_workers": 1, "eval_strategy": "steps", "eval_steps": 1},
        )

    whole = parse(settings("whole"))
    _, expected, _ = script.execute(whole, script.plan_runs(whole)[0])
    killed = parse(settings("killed"))
    trainer, _ = script.build_trainer(killed, script.plan_runs(killed)[0])
    trainer.add_callback(Kill())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert (tmp_path / "killed" / f"checkpoint-{save_steps}").exists()
    _, found, _ = script.execute(killed, script.plan_runs(killed)[0])
    assert found == expected
    _, again, _ = script.execute(killed, script.plan_runs(killed)[0])
    assert again == expected
    assert "This run was complete" in capsys.readouterr().out
    changed = parse([*settings("killed"), "--layer_decay", "0.5"])
    with pytest.raises(ValueError, match="another layer_decay"):
        script.build_trainer(changed, script.plan_runs(changed)[0])


def test_several_labels_and_numbers(script, checkpoint, tmp_path):
    images = [Image.fromarray(np.full((32, 32, 3), value, np.uint8)) for value in range(0, 240, 10)]
    several = [[index % 2, 2] if index % 3 else [index % 2] for index in range(len(images))]
    numbers = [index / len(images) for index in range(len(images))]
    Dataset.from_dict({"image": images, "several": several, "numbers": numbers}).to_parquet(tmp_path / "data.parquet")
    for column, metric in (("several", "mean_average_precision"), ("numbers", "mae")):
        run = options(None, tmp_path / column, checkpoint=checkpoint, data_files=tmp_path / "data.parquet", max_steps=2)
        results = train([*run, "--label_column", column])
        assert np.isfinite(results["summary"][metric]["mean"])
        # What is kept of every image gives the same metrics.
        predictions, labels = read_answers(tmp_path / column)
        kind = "multi_label_classification" if column == "several" else "regression"
        given = EvalPrediction(predictions=predictions, label_ids=labels)
        again = classification_metrics(list("abc"), kind)(given)
        assert again[metric] == pytest.approx(results["summary"][metric]["mean"], abs=1e-5)
    config = AutoModelForImageClassification.from_pretrained(tmp_path / "several").config
    assert (config.problem_type, config.num_labels) == ("multi_label_classification", 3)
    config = AutoModelForImageClassification.from_pretrained(tmp_path / "numbers").config
    assert (config.problem_type, config.num_labels) == ("regression", 1)


def test_numbers_are_learned_in_their_units_and_earlier_runs_keep_theirs(script, checkpoint, tmp_path, monkeypatch):
    images = [Image.fromarray(np.full((32, 32, 3), value, np.uint8)) for value in range(0, 240, 10)]
    numbers = [100 + index / 2 for index in range(len(images))]
    Dataset.from_dict({"image": images, "size": numbers}).to_parquet(tmp_path / "data.parquet")
    given = {"data_files": tmp_path / "data.parquet", "label_column": "size", "save_strategy": "epoch"}
    run = options(None, tmp_path / "run", checkpoint=checkpoint, **given)
    assert train(run)["summary"]["mae"]["mean"] < 5
    predictions, labels = read_answers(tmp_path / "run")
    np.testing.assert_allclose(predictions[:, 0], labels, atol=8)
    earlier = options(None, tmp_path / "earlier", checkpoint=checkpoint, **given)
    with monkeypatch.context() as patches:
        patches.setattr(finetune, "label_scale", lambda *_: (None, None))
        train(earlier)
    arguments = parse(earlier)
    trainer, resumed = script.build_trainer(arguments, script.plan_runs(arguments)[0])
    assert resumed is not None
    assert (trainer.model.config.label_mean, trainer.model.config.label_std) == (None, None)
    # A head in units of the deviation is kept, one in those of the labels is not.
    for name, is_kept in (("run", True), ("earlier", False)):
        arguments = parse(options(None, tmp_path / "next", checkpoint=tmp_path / name, **given))
        trainer, _ = script.build_trainer(arguments, script.plan_runs(arguments)[0])
        model = AutoModelForImageClassification.from_pretrained(tmp_path / name)
        assert torch.equal(trainer.model.classifier.weight, model.classifier.weight) == is_kept
        assert trainer.model.config.label_mean == pytest.approx(105.75, abs=1.5)


def test_balanced_class_weights(script, checkpoint, tmp_path):
    labels = [0] * 12 + [1] * 4
    images = [Image.fromarray(np.full((32, 32, 3), 100 * label, np.uint8)) for label in labels]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["common", "rare"])})
    Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(tmp_path / "data.parquet")
    run = options(None, tmp_path / "run", checkpoint=checkpoint, data_files=tmp_path / "data.parquet", holdout=0)
    arguments = parse([*run, "--class_weights", "balanced"])
    trainer, _ = script.build_trainer(arguments, script.plan_runs(arguments)[0])
    assert trainer.model.config.class_weights == pytest.approx([16 / 24, 16 / 8])
    # Before the training, not when its end is to be saved.
    arguments = parse([*run, "--class_weights", "1", "-2"])
    with pytest.raises(ValueError, match="must be numbers of 0 or more"):
        script.build_trainer(arguments, script.plan_runs(arguments)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels_per_class": 20}, "fewer than labels_per_class=20"),
        ({"checkpoint": None}, "Set --checkpoint to a pre-trained model"),
        ({"checkpoint": "nowhere/to/be/found"}, "neither the folder"),
        ({"validation_split": "test"}, "needs --dataset_name"),
        ({"class_weights": "balansed"}, "must be balanced or 3 numbers"),
        ({"label_smoothing_factor": 0.1}, "Use --label_smoothing"),
        ({"holdout": 0, "num_folds": 17}, "Class across has 16 images"),
        ({"layer_decay": 2}, "layer_decay=2.0"),
        ({"mixup": -1}, "mixup_alpha=-1"),
        ({"rand_augment": "rand-q9"}, "rand-q9"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": '{"min_lr_rate": 0.1}'}, "or {} for none"),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 64}, "--dataloader_drop_last false"),
        ({"train_dri": "x"}, "Did you mean --train_dir"),
        ({"recipe": "swin_base__img224"}, "no recipe"),
    ],
)
def test_mistakes_are_refused_with_the_remedy(script, pictures, checkpoint, tmp_path, change, message):
    settings = {"checkpoint": checkpoint} | change
    with pytest.raises(SystemExit, match=message):
        script.COMMAND.main(options(pictures, tmp_path, **settings))
    assert not list(tmp_path.glob("**/model.safetensors"))


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_recipes_are_those_of_the_released_configs(kind):
    """Against the numbers of the authors' yaml files, written out here."""
    recipes = {name: json.loads((RECIPES / kind / f"{name}.json").read_text()) for name in recipe_names(RECIPES / kind)}
    released = {name: recipe for name, recipe in recipes.items() if name.endswith(("100ep", "800ep"))}
    for recipe in released.values():
        assert (recipe["weight_decay"], recipe["max_grad_norm"]) == (0.05, 5.0)
        assert recipe["per_device_train_batch_size"] == 128
    if kind == "pretrain":
        expected = {
            "swin_base__img192_window6__100ep": ("swin-base", 192, 6, 0.0, 100, "rgb", None),
            "swin_base__img192_window6__800ep": ("swin-base", 192, 6, 0.0, 800, "rgb", None),
            "swin_large__img192_window12__800ep": ("swin-large", 192, 12, 0.0, 800, "rgb", None),
            "vit_base__img224__800ep": ("vit-base", 224, None, 0.1, 800, "rgb", None),
            "swinv2_base__img192_window12__800ep": ("swinv2-base", 192, 12, 0.1, 800, "normalized_rgb", 47),
        }
        keys = ("encoder", "image_size", "window_size", "drop_path_rate", "num_train_epochs", "target")
        found = {
            name: (*(recipe.get(key) for key in keys), recipe.get("target_options", {}).get("window_size"))
            for name, recipe in released.items()
        }
        assert found == expected
        for name, recipe in released.items():
            assert (recipe["crop_scale"], recipe["loss"], recipe["head"]) == ([0.67, 1.0], "l1", "linear")
            is_long = name.endswith("800ep")
            rates = (1e-4, 5e-7) if is_long else (2e-4, 1e-6)
            assert recipe["base_learning_rate"] == rates[0]
            options = recipe["lr_scheduler_kwargs"]
            assert options["warmup_lr_rate"] * rates[0] == pytest.approx(rates[1])
            assert recipe["warmup_steps"] * recipe["num_train_epochs"] == 10
            if is_long:
                assert options["milestones"][0] * 800 == 700
            else:
                assert options["min_lr_rate"] * rates[0] == pytest.approx(1e-5)
            assert (recipe["mask_patch_size"], recipe["mask_ratio"]) == (32, 0.6)
        return
    expected = {
        "swin_base__img192_window6__100ep": (192, 6, 0.1, 0.9),
        "swin_base__img224_window7__100ep": (224, 7, 0.1, 0.9),
        "swin_base__img224_window7__800ep": (224, 7, 0.1, 0.8),
        "swin_large__img224_window14__800ep": (224, 14, 0.2, 0.7),
        "vit_base__img224__800ep": (224, None, 0.1, 0.65),
        "swinv2_base__img224_window14__800ep": (224, 14, 0.1, 0.75),
    }
    keys = ("image_size", "window_size", "drop_path_rate", "layer_decay")
    assert {name: tuple(recipe.get(key) for key in keys) for name, recipe in released.items()} == expected
    for recipe in released.values():
        assert recipe["base_learning_rate"] == 1.25e-3
        shares = recipe["lr_scheduler_kwargs"]
        assert shares["warmup_lr_rate"] * 1.25e-3 == shares["min_lr_rate"] * 1.25e-3 == pytest.approx(2.5e-7)
        assert recipe["warmup_steps"] * recipe["num_train_epochs"] == 20
        assert (recipe["num_train_epochs"], recipe["dataloader_drop_last"]) == (100, True)
        assert (recipe["mixup"], recipe["cutmix"], recipe["label_smoothing"]) == (0.8, 1.0, 0.1)
        assert (recipe["rand_augment"], recipe["random_erasing"]) == ("rand-m9-mstd0.5-inc1", 0.25)
        assert (recipe["crop_scale"], recipe["flip"], recipe["eval_crop_ratio"]) == ([0.08, 1.0], 0.5, 224 / 256)


def test_every_recipe_is_accepted(script):
    for name in recipe_names(RECIPES / "finetune"):
        arguments = parse(["--recipe", name, "--train_dir", "x", "--bf16", "false"])
        assert arguments.training.lr_scheduler_type == "simmim_cosine"
    for name in recipe_names(RECIPES / "pretrain"):
        _, model, _ = run_mim.COMMAND.parse(["--recipe", name, "--train_dir", "x", "--bf16", "false"])
        config = run_mim.build_config(model)
        if "__img" in name:
            assert f"__img{config.image_size[0]}" in name
            assert config.window_size is None or f"_window{config.window_size}_" in name


def test_a_part_of_the_images_is_of_every_class(script, pictures, checkpoint):
    arguments = options(pictures, "x", checkpoint=checkpoint, max_train_samples=6, max_eval_samples=3)
    run = script.plan_runs(parse(arguments))[0]
    assert sorted(set(run.train.labels)) == sorted(set(run.evaluation.labels)) == [0, 1, 2]
    assert (len(run.train), len(run.evaluation)) == (6, 3)


@pytest.mark.parametrize("schedule", ["cosine", "constant_with_warmup", "simmim_multistep"])
def test_other_schedules_need_no_other_options(script, pictures, checkpoint, tmp_path, schedule):
    arguments = parse(options(pictures, tmp_path, checkpoint=checkpoint, lr_scheduler_type=schedule))
    trainer, _ = script.build_trainer(arguments, script.plan_runs(arguments)[0])
    assert trainer.lr_scheduler.get_last_lr()[0] == (2e-3 * 2e-4 if schedule == "simmim_multistep" else 0.0)


class StopAfter(TrainerCallback):
    def __init__(self, num_steps: int):
        self.num_steps = num_steps

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.num_steps


def golden_rates(script, pictures, tmp_path, num_steps: int, **kwargs) -> tuple[list[float], object]:
    """Rates that Trainer logs in the released run of 100 epochs of 3 updates, stopped early; and the trainer."""
    run = options(
        *(pictures, tmp_path / "run"),
        **{"learning_rate": 0.005, "num_train_epochs": 100, "warmup_steps": None, "holdout": 0} | kwargs,
    )
    arguments = parse(run)
    trainer, _ = script.build_trainer(arguments, script.plan_runs(arguments)[0])
    trainer.add_callback(StopAfter(num_steps))
    trainer.train()
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry], trainer


GOLDEN = json.loads((FIXTURES / "lr_schedules.json").read_text())["cosine_finetune_100ep"]["lr_before_step_t"]


def test_logged_rates_are_the_released_ones(script, pictures, checkpoint, tmp_path):
    run = {"checkpoint": checkpoint, "per_device_train_batch_size": 16, **PLAIN}
    rates, _ = golden_rates(script, pictures, tmp_path, 70, **run)
    assert rates == pytest.approx(GOLDEN[:70], rel=1e-9)


@pytest.mark.slow
def test_the_recipe_of_swin_b_from_a_converted_checkpoint(script, pictures, tmp_path):
    """Real geometry: 192 px and window 6 to 224 px and window 7, from a file as the authors write it."""
    preset = ENCODER_PRESETS["swin-base"]
    backbone = swin_weights(192, 6, preset["embed_dim"], preset["depths"], preset["num_heads"])
    weights = {f"encoder.{name}": tensor for name, tensor in backbone.items()}
    weights["encoder.mask_token"] = torch.randn(1, 1, 128) * 0.02
    weights["decoder.0.weight"], weights["decoder.0.bias"] = torch.randn(3072, 1024, 1, 1) * 0.02, torch.zeros(3072)
    save({"model": weights, "epoch": 99}, tmp_path / "pretrained.pth")
    convert.COMMAND.main([str(tmp_path / "pretrained.pth"), str(tmp_path / "converted")])
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert convert_checkpoint(tmp_path / "pretrained.pth").model.config.window_size == 6
    assert weights[f"encoder.{table}"].shape == (121, 4)

    few = tmp_path / "few"
    for path in sorted(Path(pictures).glob("*/0[0-5].png")):
        (few / path.parent.name).mkdir(parents=True, exist_ok=True)
        (few / path.parent.name / path.name).write_bytes(path.read_bytes())
    recipe = {"recipe": "swin_base__img224_window7__100ep", "checkpoint": tmp_path / "converted"}
    run = recipe | {"per_device_train_batch_size": 2}
    rates, trainer = golden_rates(script, few, tmp_path, 6, **run)
    assert rates == pytest.approx(GOLDEN[:6], rel=1e-9)
    config = trainer.model.config
    assert (config.image_size, config.window_size, config.encoder_config.drop_path_rate) == ((224, 224), 7, 0.1)
    tables = [p for name, p in trainer.model.named_parameters() if name.endswith("relative_position_bias_table")]
    assert [tuple(t.shape) for t in tables] == [(169, heads) for heads in (4, 4, 8, 8, *[16] * 18, 32, 32)]
    # 24 blocks: the patch embedding is 25 layers below the head.
    groups = trainer.optimizer.param_groups
    assert len(encoder_layers(config).names) == 24
    assert groups[-1]["lr_scale"] == pytest.approx(0.9**25, rel=1e-9)
    warmup, peak = GOLDEN[0], 0.005 * 0.9**25
    assert groups[-1]["lr"] == pytest.approx(warmup + 6 * (peak - warmup) / 60, rel=1e-9)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.isfinite(losses).all()


def test_other_classes_begin_with_another_head(script, pictures, tmp_path):
    """Also where they are as many as before; the same classes go on with the one they had."""
    for names in (CLASSES, ("red", "green", "blue")):
        torch.manual_seed(0)
        config = SimMIMConfig(encoder_config=swin_config(), id2label=dict(enumerate(names)))
        trained = SimMIMForImageClassification(config)
        trained.save_pretrained(tmp_path / names[0])
        arguments = parse(options(pictures, tmp_path / "run", checkpoint=tmp_path / names[0]))
        trainer, _ = script.build_trainer(arguments, script.plan_runs(arguments)[0])
        kept = torch.equal(trainer.model.classifier.weight, trained.classifier.weight)
        assert kept is (names == CLASSES)
        assert 0.01 < trainer.model.classifier.weight.std() < 0.03


def test_one_checkpoint_is_not_that_of_several_runs(script, pictures, checkpoint, tmp_path):
    run = options(pictures, tmp_path, checkpoint=checkpoint, resume_from_checkpoint=checkpoint, num_folds=2)
    with pytest.raises(SystemExit, match="there are several runs"):
        script.COMMAND.main(run)


def test_a_run_with_other_labels_is_another_one(script, pictures, checkpoint, tmp_path):
    arguments = parse(
        options(pictures, tmp_path, checkpoint=checkpoint, max_steps=1, save_strategy="steps", save_steps=1)
    )
    run = script.plan_runs(arguments)[0]
    script.execute(arguments, run)
    labels = [(label + 1) % 3 for label in run.train.labels]
    run.train = dataclasses.replace(run.train, rows=run.train.rows.remove_columns("label").add_column("label", labels))
    with pytest.raises(ValueError, match="another labels"):
        script.build_trainer(arguments, run)
