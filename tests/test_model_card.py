"""Model cards of all kinds of runs: whole, valid, and true."""

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cards import check_card, table
from datasets import Dataset
from golden import FIXTURES
from PIL import Image
from tiny import beit_config, swin_config, swinv2_config, vit_config
from transformers import TrainerCallback, ViTModel

from hf_simmim import SimMIMConfig, SimMIMForImageClassification, SimMIMForMaskedImageModeling, SimMIMImageProcessor
from hf_simmim.augmentation import Augmentation
from hf_simmim.callbacks import PictureCallback, ProbeCallback
from hf_simmim.classifier_card import ClassifierTrainer, classifier_card
from hf_simmim.conversion import convert_checkpoint, save_conversion
from hf_simmim.conversion_card import conversion_card
from hf_simmim.data import MaskedImageDataset, collate
from hf_simmim.image_sources import load_images
from hf_simmim.labelled_images import LabelledImageDataset
from hf_simmim.masking import average_distance, random_mask
from hf_simmim.metrics import classification_metrics
from hf_simmim.mixing import MixingCollator
from hf_simmim.model_card import training_card
from hf_simmim.provenance import ImageSource, Origin
from hf_simmim.trainer import SimMIMTrainer
from hf_simmim.training_options import ReleasedTrainingArguments
from hf_simmim.unreadable_images import UnreadableImages
from hf_simmim.visualization import COLUMNS

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
        args=ReleasedTrainingArguments(**(settings | others)),
        train_dataset=MaskedImageDataset(images, **crops, **common),
        eval_dataset=evaluation,
        data_collator=collate,
        processing_class=processor,
        unreadable_images=UnreadableImages(folder / "unreadable.txt", len(images), 1.0),
    )
    trainer.origin = Origin(images=SOURCE, held_out="split test", command="python examples/run_mim.py --bf16")
    return trainer


def as_trained(trainer: SimMIMTrainer, step: int = 4, log: Any = None) -> SimMIMTrainer:
    """As if it had trained."""
    trainer.state.global_step, trainer.state.max_steps, trainer.state.epoch = step, 4, step / 2
    trainer.state.log_history = list(LOG if log is None else log)
    return trainer


def before_training(folder):
    return make_trainer(folder), ["**This training is not finished.** So far it has reached step 0 of 4.", "Nothing was"]


def in_mid_training(folder):
    trainer = as_trained(make_trainer(folder, evaluate=False), 2, LOG[:2])
    return trainer, ["not finished.** So far it has reached step 2 of 4 (epoch 1).", "| held out | none |", "| 2 of 4, 1 "]


def stopped_early(folder):
    trainer = as_trained(make_trainer(folder), 2, LOG[:2])
    trainer.control.should_training_stop = True
    return trainer, ["It was stopped at step 2 of 4 (epoch 1)."]


def evaluated(folder):
    trainer = as_trained(make_trainer(folder, hub_license="cc-by-4.0", hub_model_id="org/my-clothes"))
    test = ImageSource("org/clothes", hub_id="org/clothes", split="test")
    trainer.origin = Origin(images=SOURCE, evaluation=test, base_model="microsoft/swin-x", checkpoint="swin-x")
    labelled = LabelledImageDataset(rows(), (32, 32), 3, [0.5] * 3, [0.25] * 3, crop_ratio=1)
    trainer.add_callback(ProbeCallback(trainer, labelled, labelled, 4, num_images=12, k=3))
    trainer.add_callback(PictureCallback(trainer.eval_dataset, trainer.processing_class, num_images=2))
    for callback in trainer.callback_handler.callbacks[-2:]:
        callback.on_evaluate(trainer.args, trainer.state, trainer.control, model=trainer.model)
    trainer.state.log_history = list(LOG)
    return trainer, [
        "# my-clothes",
        "license: cc-by-4.0",
        "The weights: `cc-by-4.0`.",
        "base_model: microsoft/swin-x",
        "datasets:\n- org/clothes",
        'AutoModel.from_pretrained("org/my-clothes", trust_remote_code=True)',
        "| held-out loss | 0.7123, masked l1 **41.26** of 255, after step 4 |",
        "| training loss | 0.8, up to step 4 |",
        "| linear probe, accuracy | **75.0%** after step 4, before training 30.0% |",
        "fitted to 12 labelled images, measured on 12 others ([org/clothes](https://huggingface.co/datasets/org/clothes),",
        "Of balanced classes chance is 25.0%; the k-NN asks 3 neighbours.",
        f"![{' | '.join(COLUMNS)}](reconstruction.png)",
        f"from left to right: {COLUMNS[0]} (the image), {COLUMNS[1]} (",
        "](loss_curve.png)",
        "](probe.png)",
    ]


def features_without_pictures(folder):
    ViTModel(vit_config()).save_pretrained(folder / "teacher")
    target = {"target": "features", "target_options": {"model": str(folder / "teacher")}, "prediction_stride": 8}
    log = [{key: value for key, value in entry.items() if "l1" not in key} for entry in LOG]
    trainer = as_trained(make_trainer(folder, beit_config(), target, mask_ratio=(0.3, 0.6)), log=log)
    return trainer, ["| target | `features` for every 8 px |", "what they hold", "ratio of 0.3 to 0.6: 5 to 10 of 16 squares"]


def grey_images(folder):
    trainer = make_trainer(folder, vit_config(num_channels=1), images=rows(channels=1), flip=0.0, crop_scale=None)
    return as_trained(trainer), [
        "| images | 1 channel, 32 x 32 px (height x width) |",
        "mean 0.5, standard deviation 0.25",
        "the largest one at the centre",
    ]


def many_channels(folder):
    images = rows(channels=13, folder=folder / "bands")
    trainer = make_trainer(folder, swinv2_config(num_channels=13), images=images, nodata=0.0, vertical_flip=0.5)
    return as_trained(trainer), [
        'image = numpy.load("image.npy")  # (13, height, width)',
        "each channel by its own mean (0.5 to 0.5)",
        "| pixels that are none | those of 0 in all channels |",
        "| flips | 50% left to right, 50% top to bottom |",
        "Swin Transformer V2",
    ]


def odd_names(folder):
    trainer = as_trained(make_trainer(folder, output_dir=str(folder / 'my | "best" <run>')))
    trainer.origin = Origin(images=ImageSource("a | b\n<c>", "imagefolder"), checkpoint="old | run")
    return trainer, [
        '# my | "best" &lt;run>',
        r'from_pretrained("my | \"best\" <run>")',
        r"| images | a \| b &lt;c> |",
        r"| started from | old \| run |",
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
    return trainer, ["| steps | 4, 2 epochs; the weights are those of step 3, the best by `eval_loss` |"]


def tracked_energy(folder):
    trainer = as_trained(make_trainer(folder))
    data = SimpleNamespace(energy_consumed=0.0123, emissions=0.00456, country_name="France")
    callback = TrainerCallback()
    callback.tracker = SimpleNamespace(final_emissions_data=data)
    trainer.add_callback(callback)
    return trainer, ["| energy | 0.0123 kWh, 0.00456 kg CO2-equivalent, as", "co2_eq_emissions:\n  emissions: 4.56\n"]


def unknown_origin(folder):
    trainer = as_trained(make_trainer(folder))
    trainer.origin = Origin()
    trainer.model.config.name_or_path = "microsoft/swin-y"
    return trainer, ["pre-trained with\n[SimMIM](https://arxiv.org/abs/2111.09886) on 16 images,", "base_model: microsoft/swin-y"]


RUNS = (
    *(before_training, in_mid_training, stopped_early, evaluated, features_without_pictures, grey_images, many_channels),
    *(odd_names, best_model, tracked_energy, unknown_origin),
)


@pytest.mark.parametrize("make", RUNS, ids=lambda make: make.__name__)
def test_cards_of_runs_are_whole(make, tmp_path):
    trainer, expected = make(tmp_path)
    trainer.create_model_card()
    folder = Path(trainer.args.output_dir)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert check_card(training_card(trainer), folder) == text
    for part in expected:
        assert part in text, f"{part!r} is not in\n{text}"
    assert ("not finished" in text) == (trainer.state.global_step < 4)
    assert "energy" in table(text) or make is not tracked_energy
