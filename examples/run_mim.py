"""Pre-train a vision encoder with SimMIM on your own images.

    accelerate launch examples/run_mim.py                                   the demo, on the embedded data
    accelerate launch examples/run_mim.py --train_dir photos --output_dir runs/photos
    accelerate launch examples/run_mim.py --recipe my_recipe.json --num_train_epochs 200

The same command runs on one CPU, one GPU or many GPUs (run `accelerate config` once, or give `accelerate launch` its
--num_processes). It goes on by itself from the newest whole checkpoint in --output_dir. A recipe is a JSON file with
any of the options below as keys; what is given on the command line wins over it.
"""

import argparse
import json
import math
import os
import shutil
import sys
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, AutoConfig, IntervalStrategy, TrainingArguments, set_seed
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

from hf_simmim import ENCODER_PRESETS, SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMImageProcessor
from hf_simmim.callbacks import PictureCallback, ProbeCallback
from hf_simmim.channel_statistics import channel_statistics
from hf_simmim.checkpoint import newest_whole_checkpoint
from hf_simmim.clusters import fit_color_clusters
from hf_simmim.components import HEADS, LOSS_REGIONS, LOSSES, TARGETS
from hf_simmim.data import MaskedImageDataset, collate
from hf_simmim.image_channels import keeps_deep_pictures
from hf_simmim.image_sources import load_images
from hf_simmim.labelled_images import LabelledImageDataset, LabelledImages, holdout, load_labelled_images
from hf_simmim.masking import MASK_STRATEGIES, span
from hf_simmim.probing import POOLINGS
from hf_simmim.recipes import json_object, nearest, parse_with_recipe
from hf_simmim.run_settings import check_same_run, digest, settings_before
from hf_simmim.trainer import SimMIMTrainer, images_per_step
from hf_simmim.unreadable_images import UnreadableImages, check_images

logger = logging.get_logger(__name__)

EXAMPLES = Path(__file__).parent
EMBEDDED_DATA = EXAMPLES / "data" / "fashion_mnist_7k"
# Seed of the evaluation masks, the same in every run, so that evaluation losses compare.
EVALUATION_SEED = 0
# Fields of a config that say what is predicted, and how.
COMPONENTS = (
    *("head", "head_options", "head_inputs"),
    *("target", "target_options", "prediction_stride"),
    *("loss", "loss_options", "loss_region"),
)
# Share of the images of --probe_dir, or of a training set without a validation split, that the probe is tested on.
PROBE_TEST_SHARE = 0.25
# Stands for colours, which are 0 or more, until they are fitted to the images.
UNFITTED = [[-1.0], [-1.0]]
# Of a config: what saving and loading change.
VOLATILE_KEYS = ("architectures", "dtype", "transformers_version", "_name_or_path")


@dataclass
class ProbeArguments:
    """Labels that tell while training what the features are worth."""

    probe_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of labelled images, a sub-folder for each class. The loss of pre-training alone misleads:"
            " it compares only runs of the same masks and target, and may fall while the features get no better. With"
            " labels, nearest neighbours and a linear classifier on the frozen features are measured before training"
            " and at every evaluation. The labels train nothing; the weights are the same as without."
        },
    )
    probe_label_column: str | None = field(
        default=None,
        metadata={"help": "Instead of --probe_dir, the column of the training data set that holds the classes."},
    )
    probe_layer: int | None = field(
        default=None,
        metadata={
            "help": "Hidden state of the encoder that is measured, 0 for the patch embedding; its output if unset. The"
            " best features may lie in the middle: the paper probes the 8th of ViT-B's 12 layers."
        },
    )
    probe_images: int = field(
        default=2000, metadata={"help": "Labelled images to fit to and to test on, so many each at most."}
    )
    probe_pooling: str = field(
        default="mean", metadata={"help": "How an image's features become one vector.", "choices": list(POOLINGS)}
    )


@dataclass
class DataArguments(ProbeArguments):
    """Where the images come from."""

    _argument_group_name = "images"

    train_dir: str | None = field(
        default=None, metadata={"help": "Folder of images, nested or not; labels are not needed."}
    )
    validation_dir: str | None = field(
        default=None, metadata={"help": "Folder of images to evaluate on. Without it a part of the images is held out."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Data set on the Hub, or a local one."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    data_files: list[str] | None = field(
        default=None, metadata={"help": "Parquet or webdataset (.tar) shards: paths, patterns or URLs."}
    )
    train_split: str = field(default="train", metadata={"help": "Split of the data set to train on."})
    validation_split: str | None = field(
        default=None, metadata={"help": "Split of --dataset_name to evaluate on. Without it a part is held out."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the images; found by its type."})
    holdout: float = field(
        default=0.05,
        metadata={"help": "Share of the images held out for evaluation if no other are named; 0 for none."},
    )
    holdout_seed: int = field(default=0, metadata={"help": "Seed of the choice of those images."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only this many images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on only this many images."})
    max_unreadable: float = field(
        default=0.05, metadata={"help": "Largest share of images that may be unreadable before the run stops."}
    )
    crop_scale: list[float] = field(
        default_factory=lambda: [0.67, 1.0],
        metadata={"help": "Smallest and largest share of an image's area that a random crop covers."},
    )
    rescale_factor: str | None = field(
        default=None,
        metadata={
            "help": "What pixels are multiplied with before anything else, a number or a fraction; that of --checkpoint"
            " or 1/255 if unset. At 1/255 pictures of 16 bits are scaled to 8. Any other factor keeps their numbers:"
            " 1/65535 if they use the whole range, 1/4095 for 12 bits in 16. Arrays (.npy, TIFF of many bands or other"
            " numbers) always keep theirs."
        },
    )
    image_mean: list[float] | None = field(
        default=None,
        metadata={
            "help": "Mean of each channel, of rescaled pixels. That of --checkpoint, or ImageNet's for three channels"
            " at 1/255, or else computed from the training images."
        },
    )
    image_std: list[float] | None = field(
        default=None, metadata={"help": "Standard deviation of each channel, of rescaled pixels; likewise."}
    )
    compute_statistics: bool = field(
        default=False,
        metadata={"help": "Compute mean and standard deviation from the training images in any case."},
    )
    nodata: float | None = field(
        default=None,
        metadata={
            "help": "Pixels of which all channels are this number in the file are none: no target, no statistics. TIFF"
            " files may tell it themselves (GDAL); numbers that are not finite always count as such. That of"
            " --checkpoint if unset and the rescale_factor is the same; nan for none."
        },
    )

    def __post_init__(self):
        self.rescale = 1 / 255
        if self.rescale_factor is not None:
            try:
                self.rescale = float(Fraction(self.rescale_factor))
            except (ValueError, ZeroDivisionError):
                self.rescale = 0.0
        if self.rescale <= 0:
            raise ValueError(f"rescale_factor={self.rescale_factor} is no positive number. Use one such as 1/65535.")


@dataclass
class ModelArguments:
    """What is trained, and how images are hidden."""

    _argument_group_name = "model and masks"

    encoder: str = field(
        default="swin-base",
        metadata={
            "help": f"Architecture, freshly initialised: {', '.join(ENCODER_PRESETS)}, a model on the Hub, a folder, or"
            " the path or text of a config in JSON."
        },
    )
    checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Weights to start from: a SimMIM checkpoint or that of a vision model of transformers, folder or"
            " Hub. What depends on --image_size and --window_size is remapped."
        },
    )
    image_size: list[int] | None = field(
        default=None,
        metadata={"help": "Side of the images in pixels, or height and width. The encoder's own if unset."},
    )
    window_size: int | None = field(default=None, metadata={"help": "Window in patches. The encoder's own if unset."})
    num_channels: int | None = field(default=None, metadata={"help": "Channels. The encoder's own if unset."})
    drop_path_rate: float | None = field(
        default=None, metadata={"help": "Stochastic depth. The encoder's own if unset."}
    )
    mask_strategy: str = field(
        default="random", metadata={"help": "How patches are chosen.", "choices": list(MASK_STRATEGIES)}
    )
    mask_patch_size: int = field(
        default=32, metadata={"help": "Side in pixels of the squares that are hidden or shown as a whole."}
    )
    mask_ratio: list[float] = field(
        default_factory=lambda: [0.6],
        metadata={
            "help": "Share of an image to hide, between 0 and 1. Of two, such as 0.4 0.7, every image gets one between."
        },
    )
    head: str | None = field(
        default=None, metadata={"help": "Prediction head; linear if unset.", "choices": list(HEADS)}
    )
    head_options: dict | str | None = field(
        default=None, metadata={"help": 'Options of the head, as JSON, such as {"size": "base"} for inverse_swin.'}
    )
    head_inputs: list[int] | None = field(
        default=None,
        metadata={
            "help": "Hidden states of the encoder that are fused to the head's input; its output alone if unset."
        },
    )
    target: str | None = field(
        default=None, metadata={"help": "What is predicted; rgb if unset.", "choices": list(TARGETS)}
    )
    target_options: dict | str | None = field(
        default=None, metadata={"help": 'Options of the target, as JSON, such as {"num_bins": 256} for color_bins.'}
    )
    num_clusters: int = field(
        default=512, metadata={"help": "Colours that are fitted to the images for --target color_clusters."}
    )
    prediction_stride: int | None = field(
        default=None, metadata={"help": "Pixels for each step of the prediction; the target's own if unset."}
    )
    loss: str | None = field(
        default=None,
        metadata={"help": "Distance to the target; its usual one if unset.", "choices": list(LOSSES)},
    )
    loss_options: dict | str | None = field(
        default=None, metadata={"help": 'Options of the loss, as JSON, such as {"beta": 0.5} for smooth_l1.'}
    )
    loss_region: str | None = field(
        default=None, metadata={"help": "Where the loss is taken; masked if unset.", "choices": list(LOSS_REGIONS)}
    )

    def __post_init__(self):
        if len(self.mask_ratio) == 1:
            self.mask_ratio = self.mask_ratio[0]  # type: ignore[assignment]
        for name in ("head_options", "target_options", "loss_options"):
            setattr(self, name, json_object(name, getattr(self, name)))

    def components(self) -> dict[str, Any]:
        """Fields of `SimMIMConfig` that say what is predicted, those that are asked for."""
        values = {name: getattr(self, name) for name in COMPONENTS if getattr(self, name) is not None}
        if self.target == "color_clusters":
            values["target_options"] = {"centers": UNFITTED, **values.get("target_options", {})}
        return values


@dataclass
class PretrainingArguments(TrainingArguments):
    """Everything of TrainingArguments, with defaults for pre-training."""

    _argument_group_name = "training (all of transformers.TrainingArguments)"

    output_dir: str = field(default="runs/mim", metadata={"help": "Folder of checkpoints, pictures and logs."})
    restart: bool = field(
        default=False, metadata={"help": "Begin anew instead of going on from a checkpoint in --output_dir."}
    )
    base_learning_rate: float = field(
        default=2e-4,
        metadata={
            "help": "Learning rate for 512 images a step; scaled by the real number if --learning_rate is unset."
        },
    )
    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Peak learning rate as it is used, instead of --base_learning_rate."}
    )
    num_train_epochs: float = field(default=100.0, metadata={"help": "Passes over the images."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Images a step on each device."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Images a step on each device, evaluating."})
    weight_decay: float = field(default=0.05, metadata={"help": "AdamW's weight decay."})
    max_grad_norm: float = field(default=5.0, metadata={"help": "Gradients are clipped to this norm."})
    lr_scheduler_type: str = field(default="cosine_with_min_lr", metadata={"help": "Schedule of the learning rate."})
    lr_scheduler_kwargs: dict | str | None = field(
        default=None,
        metadata={"help": 'Options of the schedule, as JSON; {"min_lr_rate": 0.05} for cosine_with_min_lr.'},
    )
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of warm-up, or a share of all below 1."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch or best."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two reports."})
    dataloader_num_workers: int = field(
        default=min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1),
        metadata={"help": "Processes that load images, for each device."},
    )
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Drop an epoch's last, incomplete batch, so that all steps are alike."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights, order, crops and masks."})

    def __post_init__(self):
        # Fixed by what this script trains, whatever a recipe says.
        self.label_names = ["bool_masked_pos"]
        self.remove_unused_columns = False
        self.prediction_loss_only = True
        self.logging_nan_inf_filter = False
        self.dataloader_persistent_workers = self.dataloader_num_workers > 0
        if self.lr_scheduler_kwargs is None and self.lr_scheduler_type == "cosine_with_min_lr":
            self.lr_scheduler_kwargs = {"min_lr_rate": 0.05}
        super().__post_init__()
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type != "cpu"
        if self.learning_rate is None:
            self.learning_rate = self.base_learning_rate * images_per_step(self) / 512


def parse_arguments(argv: list[str]) -> tuple[DataArguments, ModelArguments, PretrainingArguments]:
    """Command line over recipe over defaults; without any images it is the demo.

    Raises:
        SystemExit: If an option or a key of the recipe is unknown; the message names the nearest valid one.
    """

    def usual_recipe(given: argparse.Namespace) -> str | None:
        return None if given.train_dir or given.dataset_name or given.data_files else "demo"

    return parse_with_recipe(  # type: ignore[return-value]
        (DataArguments, ModelArguments, PretrainingArguments),
        argv,
        EXAMPLES / "recipes",
        usual_recipe,
        usage="%(prog)s [--train_dir FOLDER] [--output_dir FOLDER] [--recipe FILE] [options]",
        description=__doc__,
    )


def build_config(arguments: ModelArguments) -> SimMIMConfig:
    """The model's config from a preset, a file, JSON text or the Hub, with the geometry asked for."""
    if arguments.checkpoint is not None:
        return checkpoint_config(arguments)
    name = arguments.encoder
    if name in ENCODER_PRESETS:
        encoder = dict(ENCODER_PRESETS[name])
    elif name.lstrip().startswith("{") or name.endswith(".json"):
        try:
            encoder = json.loads(Path(name).read_text() if name.endswith(".json") else name)
        except (OSError, ValueError) as error:
            raise ValueError(f"encoder={name!r} cannot be read as JSON: {error}.") from error
        if "transformers_version" not in encoder:
            check_encoder_keys(encoder)
    else:
        try:
            encoder = AutoConfig.from_pretrained(name).to_dict()
        except OSError as error:
            raise ValueError(
                f"encoder={name!r} is no preset ({', '.join(ENCODER_PRESETS)}) and no config was found under that"
                f" name.{nearest(name, set(ENCODER_PRESETS))} {error}"
            ) from error
    if encoder.get("model_type") == SimMIMConfig.model_type:
        encoder = encoder["encoder_config"]
    for key in ("num_channels", "drop_path_rate"):
        value = getattr(arguments, key)
        if value is not None:
            if key not in CONFIG_MAPPING[str(encoder.get("model_type"))]().to_dict():
                raise ValueError(f"{key}={value}: the encoder {encoder.get('model_type')!r} has no such setting.")
            encoder[key] = value
    return SimMIMConfig(encoder_config=encoder, **arguments.components(), **geometry(arguments))


def geometry(arguments: ModelArguments) -> dict[str, Any]:
    """Image size and window, where they are asked for."""
    values: dict[str, Any] = {}
    if arguments.image_size is not None:
        size = arguments.image_size
        if len(size) > 2:
            raise ValueError(f"image_size={size} has {len(size)} values. Give one side, or height and width.")
        values["image_size"] = size[0] if len(size) == 1 else size
    if arguments.window_size is not None:
        values["window_size"] = arguments.window_size
    return values


def checkpoint_config(arguments: ModelArguments) -> SimMIMConfig:
    """The config of --checkpoint at the geometry asked for; the other options must not contradict it."""
    try:
        stored = AutoConfig.from_pretrained(str(arguments.checkpoint))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"checkpoint={arguments.checkpoint!r} is neither a folder with a model nor one on the Hub. {error}"
        ) from error
    if arguments.encoder != ModelArguments.encoder:
        raise ValueError(
            f"encoder={arguments.encoder!r} and checkpoint={arguments.checkpoint!r} both name an encoder. Leave one"
            " out."
        )
    if stored.model_type == SimMIMConfig.model_type:
        config = stored
        for name in COMPONENTS:
            value, kept = getattr(arguments, name), getattr(config, name)
            if name.endswith("_options") and value is not None:
                # A config need not hold those that are the default.
                known = config.options(name.removesuffix("_options"))
                kept = {key: known.get(key) for key in value}
            if value not in (None, kept):
                raise ValueError(f"{name}={value!r} is not that of the checkpoint, {kept!r}. Leave it out.")
    else:
        encoder = getattr(stored, "vision_config", stored)
        config = SimMIMConfig(encoder_config=encoder.to_dict(), **arguments.components())
    if arguments.num_channels not in (None, config.num_channels):
        raise ValueError(
            f"num_channels={arguments.num_channels} is not that of the checkpoint, {config.num_channels}, which cannot"
            " be changed. Leave it out, or train the architecture afresh with --encoder."
        )
    for key, value in geometry(arguments).items():
        setattr(config, key, value)
    if arguments.drop_path_rate is not None:
        config.encoder_config.drop_path_rate = arguments.drop_path_rate
    return config


def load_checkpoint(arguments: ModelArguments, config: SimMIMConfig) -> SimMIMForMaskedImageModeling:
    """The model of --checkpoint: one of SimMIM, or one of transformers whose encoder is taken."""
    name = str(arguments.checkpoint)
    # Trained in full precision, or in the mixed one that is asked for, whatever it was saved in.
    if AutoConfig.from_pretrained(name).model_type == SimMIMConfig.model_type:
        return SimMIMForMaskedImageModeling.from_pretrained(name, config=config, dtype=torch.float32)
    changes = {} if arguments.drop_path_rate is None else {"drop_path_rate": arguments.drop_path_rate}
    components = {key: getattr(config, key) for key in (*COMPONENTS, "image_mean", "image_std")}
    return SimMIMForMaskedImageModeling.from_encoder(
        name, encoder_config=changes, dtype=torch.float32, **geometry(arguments), **components
    )


def check_encoder_keys(encoder: dict[str, Any]) -> None:
    """Refuse what a person mistyped in an encoder config: transformers' configs take any key without a word."""
    model_type = str(encoder.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"The encoder's model_type {model_type!r} is unknown.{nearest(model_type, set(CONFIG_MAPPING))}"
        )
    # The size of images is kept in every config, also in those that have no place for it.
    known = CONFIG_MAPPING[model_type]().to_dict().keys() | {"model_type", "image_size", "out_features", "out_indices"}
    for key in encoder:
        if key not in known:
            raise ValueError(f"The encoder config of {model_type!r} has the unknown key {key!r}.{nearest(key, known)}")


def image_statistics(
    data: DataArguments, num_channels: int, images: Dataset, before: dict[str, Any], inherited: dict[str, Any]
) -> dict[str, list[float]]:
    """Mean and standard deviation of the channels.

    Args:
        data: The options, which win where they are given.
        num_channels: Channels of the model.
        images: Training images.
        before: `run.json` of the run that is gone on with, or nothing.
        inherited: Settings of the image processor of `--checkpoint`, or nothing.

    Returns:
        `image_mean` and `image_std`: those given, or else the checkpoint's, ImageNet's, or those of the images.

    Raises:
        ValueError: If other than one value for each channel is given.
    """
    given = {key: getattr(data, key) for key in ("image_mean", "image_std") if getattr(data, key) is not None}
    for key, values in given.items():
        if len(values) != num_channels:
            raise ValueError(
                f"{key} has {len(values)} values and the model takes {num_channels} channels. Give one for each"
                " channel."
            )
    if len(given) == 2:
        return given
    is_rgb = num_channels == 3 and not keeps_deep_pictures(data.rescale)
    fits = len(inherited.get("image_mean") or ()) == len(inherited.get("image_std") or ()) == num_channels
    if fits and inherited.get("rescale_factor") == data.rescale and not data.compute_statistics:
        mean, std = inherited["image_mean"], inherited["image_std"]
    elif is_rgb and not data.compute_statistics:
        mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    elif before.get("image_mean") and before.get("image_std"):
        mean, std = before["image_mean"], before["image_std"]
    else:
        mean, std = channel_statistics(images, num_channels, data.rescale, nodata=data.nodata)
        brightest = max(m + 2 * s for m, s in zip(mean, std, strict=True))
        if not 0.02 < brightest < 5:
            logger.warning(
                f"Rescaled pixels reach about {brightest:.3g}, where 0 to 1 is usual. Is --rescale_factor"
                f" {data.rescale_factor or '1/255'} right? 1/65535 is for 16 bits, 1/10000 for reflectances, 1 for"
                " floats in [0, 1]. masked_l1 is meant for such a scale."
            )
    return {"image_mean": mean, "image_std": std} | given


def fit_clusters(
    config: SimMIMConfig, arguments: ModelArguments, data: DataArguments, images: Dataset, before: dict[str, Any]
) -> None:
    """Fit the colours of `color_clusters` to the training images, unless they are given or the run has them already."""
    if config.target != "color_clusters" or config.options("target")["centers"] != UNFITTED:
        return
    centers = before.get("target_options", {}).get("centers")
    if centers is None:
        centers = fit_color_clusters(
            images, arguments.num_clusters, config.num_channels, data.rescale, nodata=data.nodata
        )
    config.target_options = {"centers": centers}


def inherited_pixels(checkpoint: str | None) -> dict[str, Any]:
    """Scale, normalisation and nodata that --checkpoint was trained with, if its image processor tells."""
    if checkpoint is None:
        return {}
    try:
        settings, _ = SimMIMImageProcessor.get_image_processor_dict(checkpoint)
    except OSError:
        return {}
    return {"rescale_factor": 1 / 255} | {
        key: settings[key]
        for key in ("rescale_factor", "image_mean", "image_std", "nodata")
        if settings.get(key) is not None
    }


def build_processor(
    config: SimMIMConfig, data: DataArguments, model: ModelArguments, statistics: dict[str, list[float]]
) -> SimMIMImageProcessor:
    """The processor that goes with the checkpoint: geometry, normalisation and masks."""
    height, width = config.image_size
    return SimMIMImageProcessor(
        size={"height": height, "width": width},
        mask_strategy=model.mask_strategy,
        mask_patch_size=model.mask_patch_size,
        mask_ratio=model.mask_ratio,
        model_patch_size=config.patch_size,
        rescale_factor=data.rescale,
        nodata=data.nodata,
        **statistics,
    )


def load_splits(arguments: DataArguments, output_dir: str):
    """Images to train on, and images to evaluate on or None."""
    source: dict[str, Any] = {
        "folder": arguments.train_dir,
        "dataset_name": arguments.dataset_name,
        "dataset_config": arguments.dataset_config,
        "data_files": arguments.data_files,
        "image_column": arguments.image_column,
    }
    validation_split = arguments.validation_split
    if not (arguments.train_dir or arguments.dataset_name or arguments.data_files):
        source["dataset_name"] = str(EMBEDDED_DATA)
        validation_split = validation_split or "test"
    if validation_split is not None and source["dataset_name"] is None:
        raise ValueError(
            f"validation_split={validation_split!r} needs --dataset_name: folders and files have no splits. Use"
            " --validation_dir, or --holdout to keep a part of the images apart."
        )
    for name in ("max_train_samples", "max_eval_samples"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} leaves no images. Use 1 or more.")
    # What a run writes into its own training folder, and the images to evaluate on, are not trained on.
    exclude = [path for path in (arguments.validation_dir, output_dir) if path is not None]
    train = load_images(**source, split=arguments.train_split, exclude=exclude)
    validation = None
    if arguments.validation_dir is not None:
        validation = load_images(arguments.validation_dir)
    elif validation_split is not None:
        validation = load_images(**source, split=validation_split)
    elif arguments.holdout:
        if not 0 < arguments.holdout < 1 or round(len(train) * arguments.holdout) < 1:
            raise ValueError(
                f"holdout={arguments.holdout} of {len(train)} images leaves none. Use a share in (0, 1) of at least"
                f" {1 / len(train):.2g}, or 0 to hold out none."
            )
        parts = train.train_test_split(test_size=arguments.holdout, seed=arguments.holdout_seed)
        train, validation = parts["train"], parts["test"]
    if arguments.max_train_samples is not None:
        train = train.select(range(min(arguments.max_train_samples, len(train))))
    if validation is not None and arguments.max_eval_samples is not None:
        validation = validation.select(range(min(arguments.max_eval_samples, len(validation))))
    return train, validation


def load_probe(arguments: DataArguments) -> list[LabelledImages] | None:
    """Labelled images to fit the probe to and to test it on; None if no labels are named."""
    if arguments.probe_dir is None and arguments.probe_label_column is None:
        return None
    if arguments.probe_dir is not None and arguments.probe_label_column is not None:
        raise ValueError("probe_dir and probe_label_column both name labels. Leave one out.")
    test = None
    if arguments.probe_dir is not None:
        images = load_labelled_images(arguments.probe_dir)
    elif arguments.train_dir is not None:
        raise ValueError(
            f"probe_label_column={arguments.probe_label_column!r} needs a data set: a folder has no columns. Use"
            " --probe_dir, with a sub-folder for each class."
        )
    else:
        is_demo = not (arguments.dataset_name or arguments.data_files)
        source: dict[str, Any] = {
            "dataset_name": str(EMBEDDED_DATA) if is_demo else arguments.dataset_name,
            "dataset_config": arguments.dataset_config,
            "data_files": arguments.data_files,
            "image_column": arguments.image_column,
            "label_column": arguments.probe_label_column,
        }
        images = load_labelled_images(**source, split=arguments.train_split)
        validation_split = arguments.validation_split or ("test" if is_demo else None)
        if validation_split is not None:
            test = load_labelled_images(**source, split=validation_split).with_classes(images.class_names)
    if images.problem_type != "single_label_classification":
        raise ValueError("The probe's labels must be one class for each image. Name another column.")
    if test is not None:
        return [images, test]
    return [images.select(part) for part in holdout(images.labels, PROBE_TEST_SHARE, seed=0)]


def add_probe(trainer: SimMIMTrainer, images: list[LabelledImages], arguments: DataArguments) -> None:
    """Measure the features at every evaluation."""
    if trainer.eval_dataset is None:
        raise ValueError("The probe is measured at evaluations, and there are none. Use --holdout or --validation_dir.")
    config, processor = trainer.model.config, trainer.processing_class
    train, test = (
        LabelledImageDataset(
            *(part.rows, config.image_size, config.num_channels, processor.image_mean, processor.image_std),
            rescale_factor=processor.rescale_factor,
            nodata=processor.nodata,
            crop_ratio=1,
        )
        for part in images
    )
    num_classes = len(images[0].class_names or ())
    trainer.add_callback(
        ProbeCallback(
            *(trainer, train, test, num_classes, arguments.probe_images),
            layer=arguments.probe_layer,
            pooling=arguments.probe_pooling,
        )
    )


def check_output_dir(arguments: PretrainingArguments) -> Path | None:
    """Make sure that results can be written, and find the checkpoint to go on from."""
    output_dir = Path(arguments.output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        probe = output_dir / f".write-test-{arguments.process_index}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"output_dir={output_dir} cannot be written ({error}). Name another folder.") from error
    if arguments.restart:
        with arguments.main_process_first(desc="deleting the earlier run"):
            if arguments.should_save:
                for path in (*output_dir.glob("checkpoint-*"), output_dir / "reconstructions"):
                    shutil.rmtree(path, ignore_errors=True)
        return None
    if arguments.resume_from_checkpoint:
        return Path(arguments.resume_from_checkpoint)
    return newest_whole_checkpoint(output_dir)


def build_trainer(
    data_arguments: DataArguments, model_arguments: ModelArguments, arguments: PretrainingArguments
) -> tuple[SimMIMTrainer, Path | None]:
    """Everything that can go wrong before training starts.

    Returns:
        The trainer, and the checkpoint to go on from or None.

    Raises:
        ValueError, OSError: If the arguments or the images are unusable; the message says why and what to do.
    """
    set_seed(arguments.seed)
    config = build_config(model_arguments)
    checkpoint = check_output_dir(arguments)
    # One process reads first; the others find what it cached.
    with arguments.main_process_first(desc="loading images"):
        train_images, validation_images = load_splits(data_arguments, arguments.output_dir)
        probe = load_probe(data_arguments)
    # Every process computes the same, so none has to wait for another.
    before = settings_before(Path(arguments.output_dir)) if checkpoint is not None else {}
    inherited = inherited_pixels(model_arguments.checkpoint)
    if data_arguments.rescale_factor is None:
        data_arguments.rescale = inherited.get("rescale_factor", data_arguments.rescale)
    if data_arguments.nodata is None and inherited.get("rescale_factor") == data_arguments.rescale:
        data_arguments.nodata = inherited.get("nodata")
    if data_arguments.nodata is not None and not math.isfinite(data_arguments.nodata):
        # Such pixels are none in any case, and NaN would be another number whenever it is compared.
        data_arguments.nodata = None
    statistics = image_statistics(data_arguments, config.num_channels, train_images, before, inherited)
    config.image_mean, config.image_std = statistics["image_mean"], statistics["image_std"]
    fit_clusters(config, model_arguments, data_arguments, train_images, before)
    processor = build_processor(config, data_arguments, model_arguments, statistics)
    settings = {
        "encoder": {key: value for key, value in config.encoder_config.to_dict().items() if key not in VOLATILE_KEYS},
        **{key: getattr(config, key) for key in COMPONENTS},
        **{key: getattr(model_arguments, key) for key in ("mask_strategy", "mask_patch_size", "mask_ratio")},
        "num_clusters": model_arguments.num_clusters if config.target == "color_clusters" else None,
        "crop_scale": data_arguments.crop_scale,
        "rescale_factor": data_arguments.rescale,
        "nodata": data_arguments.nodata,
        **statistics,
        "seed": arguments.seed,
        "training images": digest(train_images),
        "evaluation images": digest(validation_images) if validation_images is not None else None,
    }
    check_same_run(settings, Path(arguments.output_dir), checkpoint is not None, arguments.should_save)
    common: dict[str, Any] = {
        "image_size": config.image_size,
        "num_channels": config.num_channels,
        "patch_size": config.patch_size,
        "mask_strategy": model_arguments.mask_strategy,
        "mask_patch_size": model_arguments.mask_patch_size,
        "mask_ratio": model_arguments.mask_ratio,
        "rescale_factor": data_arguments.rescale,
        "nodata": data_arguments.nodata,
    }
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    train_dataset = MaskedImageDataset(train_images, seed=seed, crop_scale=data_arguments.crop_scale, **common)
    if len(train_dataset) < images_per_step(arguments):
        raise ValueError(
            f"{len(train_dataset)} images are fewer than the {images_per_step(arguments)} of one step. Use a smaller"
            " --per_device_train_batch_size."
        )
    eval_dataset = None
    if validation_images is not None:
        eval_dataset = MaskedImageDataset(validation_images, seed=EVALUATION_SEED, crop_scale=None, **common)
    else:
        arguments.eval_strategy = IntervalStrategy.NO
    datasets = [dataset for dataset in (train_dataset, eval_dataset) if dataset is not None]
    share = data_arguments.max_unreadable
    already_unreadable = check_images(datasets, share)

    if model_arguments.checkpoint is not None:
        model = load_checkpoint(model_arguments, config)
    else:
        model = SimMIMForMaskedImageModeling(config)
    # One process downloads what the target needs; the others find it.
    with arguments.main_process_first(desc="loading the target's network"):
        model.target.load()
    path = Path(arguments.output_dir) / "unreadable_images.txt"
    unreadable_images = UnreadableImages(path, sum(len(dataset) for dataset in datasets), share)
    unreadable_images.record(already_unreadable)
    trainer = SimMIMTrainer(
        model=model,
        args=arguments,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collate,
        processing_class=processor,
        unreadable_images=unreadable_images,
    )
    if eval_dataset is not None:
        trainer.add_callback(PictureCallback(eval_dataset, processor))
    if probe is not None:
        add_probe(trainer, probe, data_arguments)
    return trainer, checkpoint


def final_metrics(trainer: SimMIMTrainer) -> dict[str, float]:
    """Evaluation of the weights that were saved; not repeated if the last step was evaluated already."""
    if trainer.eval_dataset is None:
        return {}
    last = next((entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry), {})
    if last.get("step") == trainer.state.global_step and not trainer.args.load_best_model_at_end:
        return last
    return trainer.evaluate()


def print_plan(trainer: SimMIMTrainer, checkpoint: Path | None, weights: str | None) -> None:
    """Say in a few lines what is about to happen."""
    arguments, dataset, config = trainer.args, trainer.train_dataset, trainer.model.config
    processor = trainer.processing_class
    mean, std = (
        ", ".join(f"{value:.4g}" for value in values) for values in (processor.image_mean, processor.image_std)
    )
    millions = trainer.model.num_parameters() / 1e6
    nodata = "" if processor.nodata is None else f"; those of {processor.nodata:g} are none"
    height, width = config.image_size
    evaluated = f", {len(trainer.eval_dataset):,} to evaluate on" if trainer.eval_dataset is not None else ""
    lines = {
        "Encoder": f"{config.encoder_config.model_type}, {millions:.1f} M parameters with the head,"
        f" {config.num_channels} x {height} x {width} px",
        "Weights": f"from {weights}" if weights else "freshly initialised",
        "Predicts": describe_prediction(config, trainer.model.target.stride),
        "Masks": f"{span(dataset.num_masked_units)} of {dataset.num_units} squares of"
        f" {dataset.unit_size * config.patch_size} px are hidden",
        "Images": f"{len(dataset):,} to train on{evaluated}",
        "Pixels": f"times {processor.rescale_factor:.4g}, then mean {mean} and standard deviation {std}{nodata}",
        "Steps": f"of {images_per_step(arguments)} images, learning rate up to {arguments.learning_rate:g},"
        f" on {arguments.world_size} x {arguments.device}",
        "Output": f"{arguments.output_dir}" + (f", going on from {checkpoint.name}" if checkpoint else ""),
    }
    print("\n".join(f"{title:<9} {text}" for title, text in lines.items()))


def describe_prediction(config: SimMIMConfig, stride: int) -> str:
    """Head, target and loss in a line."""
    parts = []
    for component in ("target", "head", "loss"):
        options = {key: value for key, value in getattr(config, f"{component}_options").items() if key != "centers"}
        detail = ", ".join(f"{key} {value}" for key, value in options.items() if not isinstance(value, dict))
        parts.append(getattr(config, component) + (f" ({detail})" if detail else ""))
    target, head, loss = parts
    steps = "every pixel" if stride == 1 else f"every {stride} px"
    return f"{target} for {steps}, by {head}, {loss} on {config.loss_region} pixels"


def print_results(trainer: SimMIMTrainer, metrics: dict[str, float]) -> None:
    """Say where everything is."""
    output_dir = Path(str(trainer.args.output_dir))
    if metrics:
        error = metrics.get("eval_masked_l1")
        pixels = "" if error is None else f", masked l1 {error:.2f} of 255"
        print(f"On held-out images: loss {metrics['eval_loss']:.4f}{pixels}")
    for name, meaning in (
        ("model.safetensors", "weights, with config.json and preprocessor_config.json for from_pretrained"),
        ("reconstruction.png", "original | masked | reconstruction"),
        ("loss_curve.png", "loss and learning rate"),
        ("probe.png", "what the frozen features are worth for classes"),
    ):
        if (output_dir / name).exists():
            print(f"{output_dir / name}  {meaning}")
    unreadable = trainer.unreadable_images
    if unreadable.reasons:
        count = len(unreadable.reasons)
        print(f"{unreadable.path}  {count} image{'s' if count > 1 else ''} that could not be read, and were skipped")


def main(argv: list[str] | None = None) -> None:
    """Run the pre-training."""
    data_arguments, model_arguments, arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    if not arguments.should_log:
        disable_progress_bars()
    try:
        trainer, checkpoint = build_trainer(data_arguments, model_arguments, arguments)
    except StrictDataclassError as error:
        raise SystemExit(f"error: {error.__cause__ or error}") from error
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except SafetensorError as error:
        raise SystemExit(f"error: the weights of {model_arguments.checkpoint} are damaged ({error}).") from error
    if arguments.should_log:
        print_plan(trainer, checkpoint, model_arguments.checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.is_fsdp_enabled:
        # Whatever the checkpoints are: what people load is whole.
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()
    metrics = final_metrics(trainer)
    trainer.save_state()
    if metrics:
        trainer.save_metrics("eval", metrics)
    trainer.create_model_card()
    if arguments.should_log:
        print_results(trainer, metrics)
    if arguments.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
