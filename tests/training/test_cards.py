"""Model cards of all kinds of runs: whole, valid, and true."""

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cards import check_card, table
from datasets import Dataset
from paths import FIXTURES
from PIL import Image
from tiny import beit_config, swin_config, swinv2_config, vit_config
from transformers import TrainerCallback, ViTModel

from hf_simmim import SimMIMConfig, SimMIMForImageClassification, SimMIMForMaskedImageModeling, SimMIMImageProcessor
from hf_simmim.checkpoints.convert import conversion_card, convert_checkpoint, save_conversion
from hf_simmim.data.labeled.augmentation import Augmentation
from hf_simmim.data.labeled.images import LabeledImageDataset
from hf_simmim.data.labeled.mixing import MixingCollator
from hf_simmim.data.masked_images import MaskedImageDataset, collate
from hf_simmim.data.reading import UnreadableImages
from hf_simmim.data.sources import load_images
from hf_simmim.evaluation.metrics import classification_metrics
from hf_simmim.evaluation.reconstruction import Reconstruction
from hf_simmim.hub.card import check_license
from hf_simmim.hub.provenance import ImageSource, RunOrigin
from hf_simmim.model.masking import average_distance, random_mask
from hf_simmim.training.arguments import SimMIMTrainingArguments
from hf_simmim.training.callbacks import ProbeCallback
from hf_simmim.training.cards.classification import classification_card
from hf_simmim.training.cards.pretraining import describe_evaluation, learned_little, pretraining_card, read_metrics
from hf_simmim.training.labeled_trainers import ClassifierTrainer
from hf_simmim.training.trainers import SimMIMTrainer

LOG = [
    {"step": 0, "probe_knn_accuracy": 0.25, "probe_linear_accuracy": 0.3},
    {"step": 2, "loss": 0.9, "masked_l1": 60.0, "images_per_second": 16.0, "learning_rate": 1e-4},
    {"step": 4, "loss": 0.8, "masked_l1": float("nan"), "images_per_second": 8.0, "learning_rate": 1e-4},
    {"step": 4, "eval_loss": 0.71234, "eval_masked_l1": 41.257, "epoch": 1.0},
    {"step": 4, "probe_knn_accuracy": 0.5, "probe_linear_accuracy": 0.75},
]
SOURCE = ImageSource("org/clothes", hub_id="org/clothes", config="small", split="train")


def rows(num_images: int = 16, channels: int = 3, folder: Path | None = None) -> Dataset:
    """Rows of pictures, or of arrays in a folder, with labels."""
    generator = np.random.default_rng(0)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(num_images):
            np.save(folder / f"{index:02d}.npy", generator.integers(0, 255, (channels, 40, 40), np.uint8))
        return load_images(folder).add_column("label", [index % 4 for index in range(num_images)])
    images = []
    for _ in range(num_images):
        pixels = generator.integers(0, 255, (40, 40, 3) if channels == 3 else (40, 40), np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "PNG")
        images.append({"bytes": content.getvalue(), "path": None})
    labels = [index % 4 for index in range(num_images)]
    return Dataset.from_dict({"image": images, "name": [str(i) for i in range(num_images)], "label": labels})


def make_trainer(folder: Path, encoder: Any = None, components: Any = None, images: Any = None, **others: Any):
    """A trainer of a tiny model; of `others`, those that the data set and the arguments know."""
    torch.manual_seed(0)
    config = SimMIMConfig(encoder_config=encoder or swin_config(), **(components or {}))
    statistics = {"image_mean": [0.5] * config.num_channels, "image_std": [0.25] * config.num_channels}
    config.image_mean, config.image_std = statistics["image_mean"], statistics["image_std"]
    height, width = config.image_size
    images = rows() if images is None else images
    masks = {"mask_patch_size": 8, "mask_ratio": others.pop("mask_ratio", 0.6)}
    common: dict[str, Any] = {
        **{"image_size": config.image_size, "num_channels": config.num_channels, "patch_size": config.patch_size},
        **masks,
        "nodata": others.pop("nodata", None),
    }
    crops = {key: others.pop(key) for key in ("crop_scale", "flip", "vertical_flip") if key in others}
    processor = SimMIMImageProcessor(
        size={"height": height, "width": width},
        model_patch_size=config.patch_size,
        nodata=common["nodata"],
        **masks,
        **statistics,
    )
    evaluation = MaskedImageDataset(images, crop_scale=None, **common) if others.pop("evaluate", True) else None
    settings: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 8,
        "max_steps": 4,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "dataloader_num_workers": 0,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "label_names": ["bool_masked_pos"],
        "prediction_loss_only": True,
    }
    trainer = SimMIMTrainer(
        model=SimMIMForMaskedImageModeling(config),
        args=SimMIMTrainingArguments(**(settings | others)),
        train_dataset=MaskedImageDataset(images, **crops, **common),
        eval_dataset=evaluation,
        data_collator=collate,
        processing_class=processor,
        unreadable_images=UnreadableImages(folder / "unreadable.txt", len(images), 1.0),
    )
    trainer.origin = RunOrigin(images=SOURCE, held_out="split test", command="python examples/run_mim.py --bf16")
    return trainer


def as_trained(trainer: SimMIMTrainer, step: int = 4, log: Any = None) -> SimMIMTrainer:
    """As if it had trained."""
    trainer.state.global_step, trainer.state.max_steps, trainer.state.epoch = step, 4, step / 2
    trainer.state.log_history = list(LOG if log is None else log)
    return trainer


def before_training(folder):
    return make_trainer(folder), [
        "**This training is not finished.** So far it has reached step 0 of 4.",
        "The model was not evaluated on held-out images yet",
    ]


def in_mid_training(folder):
    trainer = as_trained(make_trainer(folder, evaluate=False), 2, LOG[:2])
    return trainer, [
        "not finished.** So far it has reached step 2 of 4 (epoch 1).",
        "| validation images | none |",
        "| 2 of 4, 1 ",
    ]


def stopped_early(folder):
    trainer = as_trained(make_trainer(folder), 2, LOG[:2])
    trainer.control.should_training_stop = True
    return trainer, ["It was stopped at step 2 of 4 (epoch 1)."]


def evaluated(folder):
    trainer = as_trained(make_trainer(folder, hub_license="cc-by-4.0", hub_model_id="org/my-clothes"))
    test = ImageSource("org/clothes", hub_id="org/clothes", split="test")
    trainer.origin = RunOrigin(images=SOURCE, evaluation=test, base_model="microsoft/swin-x", checkpoint="swin-x")
    (folder / "run").mkdir(parents=True, exist_ok=True)
    labeled = LabeledImageDataset(rows(), (32, 32), 3, [0.5] * 3, [0.25] * 3, crop_ratio=1)
    trainer.add_callback(ProbeCallback(trainer, labeled, labeled, 4, num_images=12, k=3))
    for name in ("reconstruction.png", "loss_curve.png", "probe.png"):
        Image.new("RGB", (4, 4)).save(folder / "run" / name)
    return trainer, [
        "# my-clothes",
        "license: cc-by-4.0",
        "License of the weights: `cc-by-4.0`.",
        "base_model: microsoft/swin-x",
        "datasets:\n- org/clothes",
        'AutoModel.from_pretrained("org/my-clothes", trust_remote_code=True)',
        "| validation loss | 0.7123, masked l1 **41.26** of 255, after step 4 |",
        "| training loss | 0.8, up to step 4 |",
        "| linear probe, accuracy | **75.0%** after step 4, before training 30.0% |",
        "trained on 12 labeled images, tested on 12 others ([org/clothes](https://huggingface.co/datasets/org/clothes),",
        "Chance level is 25.0% for balanced classes; k-NN uses 3 neighbors.",
        f"![{' | '.join(Reconstruction.usual_columns)}](reconstruction.png)",
        "from left to right: original (the image), masked (",
        "](loss_curve.png)",
        "](probe.png)",
    ]


def features_without_pictures(folder):
    ViTModel(vit_config()).save_pretrained(folder / "teacher")
    target = {"target": "features", "target_options": {"model": str(folder / "teacher")}, "prediction_stride": 8}
    log = [{key: value for key, value in entry.items() if "l1" not in key} for entry in LOG]
    trainer = as_trained(make_trainer(folder, beit_config(), target, mask_ratio=(0.3, 0.6)), log=log)
    return trainer, [
        "| target | `features` (model teacher) of every 8 x 8 px |",
        "their content",
        "mask ratio 0.3 to 0.6: 5 to 10 of 16 mask patches",
    ]


def normalized_pixels(folder):
    trainer = as_trained(make_trainer(folder, components={"target": "normalized_rgb"}))
    (folder / "run").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(folder / "run" / "reconstruction.png")
    return trainer, [
        "Predictions are decoded with the local mean and contrast of the original.",
        "Predictions are decoded with the local mean and contrast of the original and look better",
    ]


def color_clusters(folder):
    target = {"target": "color_clusters", "target_options": {"centers": [[0.1 * i] * 3 for i in range(5)]}}
    trainer = as_trained(make_trainer(folder, components={**target, "loss": "cross_entropy"}))
    return trainer, ["| target | `color_clusters` (clusters 5) of every pixel |", "their content"]


def gray_images(folder):
    trainer = make_trainer(folder, vit_config(num_channels=1), images=rows(channels=1), flip=0.0, crop_scale=None)
    return as_trained(trainer), [
        "| images | 1 channel, 32 x 32 px (height x width) |",
        "rescale 1/255, mean 0.5, std 0.25",
        "largest center crop",
    ]


def many_channels(folder):
    images = rows(channels=13, folder=folder / "bands")
    trainer = make_trainer(folder, swinv2_config(num_channels=13), images=images, nodata=0.0, vertical_flip=0.5)
    return as_trained(trainer), [
        'image = numpy.load("image.npy")  # (13, height, width)',
        "a mean (0.5 to 0.5) and std (0.25 to 0.25) for each of 13 channels",
        "| missing pixels | those with the value 0 in all channels |",
        "| flips | 50% horizontal, 50% vertical |",
        "Swin Transformer V2",
    ]


def odd_names(folder):
    trainer = as_trained(make_trainer(folder, output_dir=str(folder / 'my | "best" <run>')))
    trainer.origin = RunOrigin(images=ImageSource("a | b\n<c>", "imagefolder"), checkpoint="old | run")
    return trainer, [
        '# my | "best" &lt;run>',
        r'from_pretrained("my | \"best\" <run>")',
        r"| data set | folder `a \| b &lt;c>` |",
        r"| initial weights | old \| run |",
    ]


def best_model(folder):
    trainer = as_trained(
        make_trainer(
            folder,
            load_best_model_at_end=True,
            eval_strategy="steps",
            save_strategy="steps",
            eval_steps=1,
            save_steps=1,
            metric_for_best_model="eval_loss",
        )
    )
    trainer.state.best_global_step = 3
    # The best weights are measured again at the end.
    trainer.state.log_history.append({"eval_loss": 0.625, "step": trainer.state.log_history[-1]["step"]})
    return trainer, [
        "| steps | 4, 2 epochs; weights of step 3, the best by `eval_loss` |",
        "0.625, with the weights of step 3 |",
    ]


def tracked_energy(folder):
    trainer = as_trained(make_trainer(folder))
    data = SimpleNamespace(energy_consumed=0.0123, emissions=0.00456, country_name="France")
    callback = TrainerCallback()
    callback.tracker = SimpleNamespace(final_emissions_data=data)
    trainer.add_callback(callback)
    return trainer, ["| energy | 0.0123 kWh, 0.00456 kg CO2-equivalent, ", "co2_eq_emissions:\n  emissions: 4.56\n"]


def too_short_to_log_a_loss(folder):
    log = [{"step": 4, "eval_loss": 0.71234, "eval_masked_l1": 41.257}, {"step": 4, "train_runtime": 90.0}]
    return as_trained(make_trainer(folder), log=log), ["| training time | 0.025 h (90 s), with evaluations |"]


def unknown_origin(folder):
    trainer = as_trained(make_trainer(folder))
    trainer.origin = RunOrigin()
    trainer.model.config.name_or_path = "microsoft/swin-y"
    return trainer, [
        "pre-trained with\n[SimMIM](https://arxiv.org/abs/2111.09886) on 16 images,",
        "base_model: microsoft/swin-y",
    ]


RUNS = (
    *(
        before_training,
        in_mid_training,
        stopped_early,
        evaluated,
        features_without_pictures,
        normalized_pixels,
        color_clusters,
        gray_images,
        many_channels,
    ),
    *(odd_names, best_model, tracked_energy, too_short_to_log_a_loss, unknown_origin),
)


@pytest.mark.parametrize("make", RUNS, ids=lambda make: make.__name__)
def test_cards_of_runs_are_whole(make, tmp_path):
    trainer, expected = make(tmp_path)
    trainer.create_model_card()
    folder = Path(trainer.args.output_dir)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert check_card(pretraining_card(trainer), folder) == text
    for part in expected:
        assert part in text, f"{part!r} is not in\n{text}"
    assert ("not finished" in text) == (trainer.state.global_step < 4)
    assert "energy" in table(text) or make is not tracked_energy


class Watcher(TrainerCallback):
    """Renders the card in the middle of a training."""

    trainer: SimMIMTrainer
    text = ""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.text = check_card(pretraining_card(self.trainer))


def test_figures_are_those_of_the_run(tmp_path):
    """Of a run that is watched: effective rates, masks, losses and steps, before its end and after."""
    watcher = Watcher()
    trainer = make_trainer(tmp_path, gradient_accumulation_steps=2, warmup_steps=2, weight_decay=0.01)
    watcher.trainer = trainer
    trainer.add_callback(watcher)
    trainer.train()
    assert "So far it has reached step 2 of 4 (epoch 2)." in watcher.text
    assert "| training loss | " in watcher.text
    assert "| validation loss | " not in watcher.text
    trainer.evaluate()
    rows = table(check_card(pretraining_card(trainer), tmp_path / "run"))
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    # 2e-4 for 512 images a step, of which there are 16.
    assert rows["learning rate"] == "6.25e-06 = 0.0002 x 16 / 512 (base learning rate x batch size / 512)"
    assert trainer.lr_scheduler.base_lrs[0] == pytest.approx(6.25e-6)
    assert rows["schedule"] == "`simmim_cosine`, warm-up of 2 steps from 3.125e-08, decay to 3.125e-07"
    assert rates[:2] == pytest.approx([3.125e-8, (3.125e-8 + 6.25e-6) / 2])
    assert rows["batch size"] == "16 = 8 x 1 device x 2 accumulated batches"
    assert rows["weight decay"] == "0.01"
    assert rows["steps"] == "4, 4 epochs"
    assert rows["training images"] == "16"
    assert rows["validation images"] == "16 (split test)"
    assert rows["attention heads"] == "2-2-4"
    assert rows["window"] == "4 tokens"
    millions = trainer.model.simmim.num_parameters() / 1e6
    assert rows["parameters"].startswith(f"{millions:.3g} M in the encoder, ")
    assert rows["masks"] == "`random`, mask ratio 0.6: 10 of 16 mask patches of 8 px"
    masks = random_mask((16, 16), 0.6, 500, unit_size=4, generator=torch.Generator().manual_seed(1))
    distance = float(re.match(r"([\d.]+) px", rows["AvgDist of the masks"])[1])
    assert distance == pytest.approx(average_distance(masks, 2).mean().item(), rel=0.05)
    log = trainer.state.log_history
    loss, evaluation = ([entry for entry in log if key in entry][-1] for key in ("loss", "eval_loss"))
    assert rows["training loss"] == f"{loss['loss']:.4g}, masked l1 {loss['masked_l1']:.2f} of 255, up to step 4"
    assert rows["validation loss"].startswith(
        f"{evaluation['eval_loss']:.4g}, masked l1 **{evaluation['eval_masked_l1']:.2f}** "
    )
    speeds = sorted(entry["images_per_second"] for entry in log if "images_per_second" in entry)
    assert rows["speed"].startswith(f"{speeds[len(speeds) // 2]:,g} images/s")
    seconds = sum(16 / speed for speed in speeds)
    assert rows["training time"].startswith(f"{seconds / 3600:.3g} h ({seconds:.3g} s)")


@pytest.mark.parametrize(
    ("schedule", "settings", "expected"),
    [
        ("simmim_multistep", {}, "`simmim_multistep`, multiplied by 0.1 at step 88"),
        ("constant", {}, "`constant`, constant to the end"),
        ("linear", {"warmup_steps": 0.1}, "`linear`, warm-up of 10 steps from 0, decay to 0"),
        ("cosine_with_min_lr", {"lr_scheduler_kwargs": '{"min_lr": 0.001}'}, "`cosine_with_min_lr`, decay to 0.001"),
    ],
)
def test_schedules_are_described_as_they_run(tmp_path, schedule, settings, expected):
    more = {"warmup_steps": 0, "learning_rate": 0.01, "lr_scheduler_type": schedule, "max_steps": 100} | settings
    rows = table(str(pretraining_card(make_trainer(tmp_path, **more))))
    assert (rows["schedule"], rows["learning rate"]) == (expected, "0.01, set directly, not scaled by the batch size")


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)\n```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("make", [evaluated, many_channels], ids=["colors", "bands"])
def test_the_code_in_a_card_runs(make, tmp_path, monkeypatch):
    trainer, _ = make(tmp_path)
    trainer.args.hub_model_id, trainer.args.output_dir = None, "run"
    monkeypatch.chdir(tmp_path)
    trainer.save_model()
    Image.new("RGB", (50, 40)).save("photo.jpg")
    np.save("image.npy", np.ones((13, 40, 50), np.uint8))
    with_package, without, fine_tuning = python_blocks(str(pretraining_card(trainer)))
    found: dict[str, Any] = {}
    exec(with_package, found)
    assert found["features"].shape == (1, trainer.model.config.hidden_size)
    assert without.count("trust_remote_code=True") == 2
    # Where the folder holds no code, the card does not say that it does.
    monkeypatch.setattr(trainer.args, "output_dir", "elsewhere")
    assert "trust_remote_code" not in str(pretraining_card(trainer))
    exec(fine_tuning, found)
    assert isinstance(found["classifier"], SimMIMForImageClassification)
    if make is evaluated:
        assert np.shape(found["extract"]("photo.jpg")) == (1, trainer.model.config.hidden_size)


@pytest.mark.parametrize("fixture", ["swin_pretrain", "swinv2_pretrain", "vit_pretrain"])
def test_card_of_a_conversion(tmp_path, monkeypatch, fixture):
    conversion = convert_checkpoint(FIXTURES / f"{fixture}.pth")
    monkeypatch.chdir(tmp_path)
    save_conversion(conversion, "out")
    text = check_card(conversion_card(conversion, Path("out")), tmp_path / "out")
    assert text == Path("out/README.md").read_text(encoding="utf-8")
    rows = table(text)
    assert f"{fixture}.pth, sha256 {conversion.sha256}" in rows["File"]
    assert f"github.com/{conversion.framework}" in text
    assert rows.get("Target") == ("pixels normalized in windows of 47 px" if "swinv2" in fixture else None)
    assert ("liu2021swinv2" in text) == ("swinv2" in fixture)
    assert "xie2021simmim" in text
    Image.new("RGB", (50, 40)).save("photo.jpg")
    found: dict[str, Any] = {}
    exec(python_blocks(text)[0], found)
    assert found["features"].shape == (1, conversion.model.config.hidden_size)


def make_classifier(folder: Path, names: list[str], kind: str = "single_label_classification", **others: Any):
    """A trainer of a tiny classifier."""
    torch.manual_seed(0)
    config = SimMIMConfig(encoder_config=swin_config(), id2label=dict(enumerate(names)), problem_type=kind)
    images = rows().map(lambda row: {"label": row["label"] % len(names)})
    if kind != "single_label_classification":
        images = images.remove_columns("label").add_column(
            "label", [[1.0, 0.0, 1.0][: len(names)] if kind.startswith("multi") else 0.5 for _ in range(16)]
        )
    common: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    arguments = SimMIMTrainingArguments(
        **{"output_dir": str(folder / "classifier"), "per_device_train_batch_size": 8, "max_steps": 2},
        **{"eval_strategy": "no", "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True},
        **{"dataloader_num_workers": 0} | others,
    )
    trainer = ClassifierTrainer(
        model=SimMIMForImageClassification(config),
        args=arguments,
        train_dataset=LabeledImageDataset(images, (32, 32), 3, augmentation=Augmentation(), **common),
        eval_dataset=LabeledImageDataset(images, (32, 32), 3, **common),
        data_collator=MixingCollator(len(names), label_smoothing=0.1),
        processing_class=SimMIMImageProcessor(size={"height": 32, "width": 32}, model_patch_size=2, **common),
        compute_metrics=classification_metrics(names, kind),
    )
    trainer.origin = RunOrigin(images=SOURCE, evaluation=SOURCE, held_out="split test", base_model="org/backbone")
    return trainer


CLASSES = ["coat", "shoe | boot", "nan hat", "<bag>"]


@pytest.mark.parametrize(
    ("names", "kind", "expected"),
    [
        (CLASSES, "single_label_classification", ["into 4 classes", "| accuracy | **50.0%** |", "- type: accuracy"]),
        (CLASSES[:3], "multi_label_classification", ["any of 3 labels", "scores for them", "| macro F1 | 0.5 |"]),
        (["value"], "regression", ["predicts a number", "every image gets a number", "| mean absolute error | 0.5 |"]),
        ([f"class {i}" for i in range(60)], "single_label_classification", ["class 49, and 10 more in `config.json`"]),
    ],
)  # fmt: skip
def test_cards_of_classifiers_are_whole(tmp_path, names, kind, expected):
    trainer = make_classifier(tmp_path, [name.replace("nan ", "") for name in names], kind)
    text = check_card(classification_card(trainer), tmp_path / "classifier")
    assert "was not evaluated on held-out images yet" in text
    assert "not finished" in text
    trainer.state.global_step = 2
    trainer.final_metrics = {
        "single_label_classification": {"accuracy": 0.5, "top5_accuracy": 0.75, "accuracy_coat": 0.25},
        "multi_label_classification": {"macro_f1": 0.5, "mean_average_precision": float("nan")},
        "regression": {"mae": 0.5, "r2": float("nan")},
    }[kind]
    (tmp_path / "classifier").mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "classifier" / "confusion.png")
    trainer.create_model_card()
    text = check_card(classification_card(trainer), tmp_path / "classifier")
    assert text == (tmp_path / "classifier" / "README.md").read_text(encoding="utf-8")
    for part in [*expected, "](confusion.png)", "base_model: org/backbone", "pipeline_tag: image-classification"]:
        assert part in text, f"{part!r} is not in\n{text}"
    assert ("model-index" in text) == (kind != "regression")


def test_card_of_a_classifier_shows_each_class_and_what_the_accuracy_hides(tmp_path):
    trainer = make_classifier(tmp_path, ["coat", "shoe | boot", "bag"])
    trainer.state.global_step, trainer.final_metrics = 2, {"accuracy": 0.75, "macro_auroc": 0.875, "accuracy_coat": 0.9}
    rows = {"recall": 0.9, "precision": 0.8, "f1": 0.85, "average_precision": 0.7, "auroc": 0.95, "support": 1200}
    missed = rows | {"recall": 0.25, "precision": float("nan"), "support": 8}
    trainer.final_per_class = {"coat": rows, "shoe | boot": missed, "bag": rows}
    text = check_card(classification_card(trainer), tmp_path / "classifier")
    assert "| class | images | recall | precision | F1 | average precision | AUROC |\n| --- |" in text
    assert "| coat | 1,200 | 90.0% | 80.0% | 85.0% | 70.0% | 95.0% |\n| shoe" in text
    assert "| 8 | 25.0% | not defined | 85.0% |" in text
    assert "Recall per class" not in text
    assert "> **Warning:** shoe | boot: only 25 % of 8 test images are found (recall), while accuracy is 75 %" in text
    assert "| macro AUROC | 0.875 |" in text
    many = {f"class {index}": rows | {"f1": index / 100} for index in range(60)}
    trainer = make_classifier(tmp_path, list(many))
    trainer.final_metrics, trainer.final_per_class = {"accuracy": 0.9}, many
    text = check_card(classification_card(trainer), tmp_path / "classifier")
    assert "40 classes with a higher F1 are left out" in text
    assert "| class 19 | " in text
    assert "| class 20 | " not in text


def test_card_of_a_classifier_in_mid_training(tmp_path):
    trainer = make_classifier(tmp_path, ["coat", "shoe"])
    trainer.args.weight_average = 0.9
    trainer.state.global_step, trainer.is_in_train = 2, True
    trainer.state.log_history = [{"step": 1, "eval_loss": 0.5, "eval_accuracy": 0.25}]
    (tmp_path / "classifier").mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "classifier" / "confusion.png")
    text = check_card(classification_card(trainer))
    # The weights and figures of a push are those of steps.
    assert "moving average" not in text
    assert "held-out images ([org/clothes]" in text
    assert "split train), after step 1:" in text
    # It is of an earlier end.
    assert "confusion.png" not in text
    trainer.is_in_train = False
    text = check_card(classification_card(trainer), tmp_path / "classifier")
    assert "](confusion.png)" in text
    assert table(text)["weights"].startswith("exponential moving average over the steps")


def test_the_hub_takes_the_cards_and_a_push_keeps_them(hub, tmp_path):
    conversion = convert_checkpoint(FIXTURES / "swin_pretrain.pth")
    for card in (
        pretraining_card(evaluated(tmp_path / "a")[0]),
        pretraining_card(tracked_energy(tmp_path / "b")[0]),
        conversion_card(conversion, tmp_path / "c"),
    ):
        card.validate()
    trainer = make_classifier(tmp_path, ["coat", "shoe"], push_to_hub=True, hub_model_id="org/clothes-classifier")
    trainer.final_metrics = {"accuracy": 0.5}
    trainer.push_to_hub()
    text = hub.files("org/clothes-classifier")["README.md"].decode()
    assert 'pipeline("image-classification", model="org/clothes-classifier")' in text
    assert "| accuracy | **50.0%** |" in text
    classification_card(trainer).validate()
    arguments = SimpleNamespace(push_to_hub=True, hub_license="apache2")
    with pytest.raises(ValueError, match=r"The Hub rejects hub_license='apache2'.*apache-2\.0"):
        check_license(arguments)
    check_license(SimpleNamespace(push_to_hub=True, hub_license="mit"))
    with pytest.raises(ValueError, match="hub_license='My own!' is not a license name.*such as apache-2.0"):
        make_classifier(tmp_path, ["coat", "shoe"], hub_license="My own!")
    hub.fail(status=503)
    check_license(arguments)


@pytest.mark.parametrize(
    ("gain", "words"),
    [(0.02, "only 2 % better than by the mean color"), (-0.1, "no better than by"), (0.3, ""), (float("nan"), "")],
)
def test_a_pre_training_that_learned_little_is_said(gain, words, tmp_path):
    metrics = {"eval_loss": 0.5, "eval_masked_l1": 15.5, "eval_mean_color_l1": 15.8, "eval_gain_over_mean_color": gain}
    (tmp_path / "results.json").write_text(json.dumps(metrics))
    found = learned_little(read_metrics(tmp_path))
    assert words in found
    assert bool(found) == bool(words)
    assert ("Warning: " in describe_evaluation(metrics, "", 96)) == bool(words)
    # Part of the gain would be the original's.
    assert "Warning" not in describe_evaluation(metrics, "local mean and contrast", 96)
    assert learned_little(read_metrics(tmp_path / "elsewhere")) == ""
