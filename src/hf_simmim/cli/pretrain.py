"""Pre-train a vision encoder with SimMIM on your own images.

    hf-simmim pretrain --train_dir photos --output_dir runs/photos
    hf-simmim pretrain --train_dir photos --recipe swin_base__img192_window6__100ep
    accelerate launch -m hf_simmim pretrain --train_dir photos              on many GPUs
    hf-simmim pretrain                                                      the demo, in a checkout

The same options run on one CPU, one GPU or many GPUs (run `accelerate config` once, or give `accelerate launch` its
--num_processes). A run resumes automatically from the newest complete checkpoint in --output_dir. A recipe is a JSON
file with any of the options as keys; what is given on the command line wins over it.

With --push_to_hub every save goes to the Hub in the background, a complete model each time. A Hub that fails never
stops the training: at the end the pushes that failed are listed, with the command to repeat them, and the exit status
is 0.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoConfig, IntervalStrategy, set_seed
from transformers.utils import logging

from ..data.image_statistics import fit_color_clusters
from ..data.masked_images import MaskedImageDataset, collate
from ..data.reading import UnreadableImages, check_images
from ..data.sampling import evenly_spaced
from ..data.sources import load_images
from ..hub.card import check_license
from ..hub.provenance import RunOrigin, held_out
from ..hub.pushes import open_hub
from ..model.configuration_simmim import TARGETS, SimMIMConfig
from ..model.heads import HEADS
from ..model.image_processing_simmim import SimMIMImageProcessor
from ..model.losses import LOSS_REGIONS, LOSSES
from ..model.masking import MASK_STRATEGIES, span
from ..model.modeling_simmim import SimMIMForMaskedImageModeling
from ..training.arguments import SimMIMTrainingArguments, json_object
from ..training.callbacks import EpochCallback, PictureCallback
from ..training.optimization import images_per_step
from ..training.run_folder import (
    begin_run,
    check_same_run,
    digest,
    prepare_output_dir,
    settings_before,
    stable_settings,
)
from ..training.trainers import SimMIMTrainer
from .command import Command, existing, in_words, print_files, print_titled
from .image_options import PixelArguments
from .model_options import EncoderArguments
from .probe_options import ProbeArguments, add_probe, load_probe, probe_source

logger = logging.get_logger(__name__)

# Seed of the evaluation masks, the same in every run, so that evaluation losses compare.
EVALUATION_SEED = 0
# Fields of a config that say what is predicted, and how.
COMPONENT_OPTIONS = (
    *("head", "head_options", "head_inputs"),
    *("target", "target_options", "prediction_stride"),
    *("loss", "loss_options", "loss_region"),
)
# Stands for colors, which are 0 or more, until they are fitted to the images.
UNFITTED = [[-1.0], [-1.0]]
# What a run writes into its folder for people to look at.
PRETRAINING_FILES = {
    "model.safetensors": "weights, with config.json and preprocessor_config.json for from_pretrained",
    "reconstruction.png": "original | masked | prediction | composite",
    "loss_curve.png": "loss and learning rate",
    "probe.png": "accuracy of frozen features over steps",
}


@dataclass
class PretrainingDataArguments(ProbeArguments, PixelArguments):
    """Where the images come from; labels are not needed."""

    _argument_group_name = "images"

    crop_scale: list[float] = field(
        default_factory=lambda: [0.67, 1.0],
        metadata={"help": "Smallest and largest share of an image's area that a random crop covers."},
    )
    flip: float = field(default=0.5, metadata={"help": "Probability of a flip from left to right."})
    vertical_flip: float = field(default=0.0, metadata={"help": "Probability of a flip from top to bottom."})
    leave_out: str | None = field(
        default=None,
        metadata={
            "help": "JSON file with a list of images that are not trained on, such as those of a later test: paths, or"
            " names as `name` of the loaded rows gives them."
        },
    )


@dataclass
class PretrainingModelArguments(EncoderArguments):
    """What is trained, and how images are hidden."""

    _argument_group_name = "model and masks"

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
        default=512, metadata={"help": "Colors that are fitted to the images for --target color_clusters."}
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
        values = {name: getattr(self, name) for name in COMPONENT_OPTIONS if getattr(self, name) is not None}
        if self.target == "color_clusters":
            values["target_options"] = {"centers": UNFITTED, **values.get("target_options", {})}
        return values


@dataclass
class PretrainingArguments(SimMIMTrainingArguments):
    """Everything of TrainingArguments, with defaults for pre-training."""

    _argument_group_name = "training (all of transformers.TrainingArguments)"

    output_dir: str = field(default="runs/mim", metadata={"help": "Folder of checkpoints, pictures and logs."})
    num_train_epochs: float = field(default=100.0, metadata={"help": "Passes over the images."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Images a step on each device."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Images a step on each device, evaluating."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch or best."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two reports."})
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Drop an epoch's last, incomplete batch, so that all steps are alike."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of weights, order, crops and masks."})

    def __post_init__(self):
        # Fixed by what this script trains, whatever a recipe says.
        self.label_names = ["bool_masked_pos"]
        self.prediction_loss_only = True
        super().__post_init__()


def build_config(arguments: PretrainingModelArguments) -> SimMIMConfig:
    """The model's config from a preset, a file, JSON text or the Hub, with the geometry asked for."""
    if arguments.checkpoint is not None:
        return checkpoint_config(arguments)
    return SimMIMConfig(encoder_config=arguments.encoder_settings(), **arguments.components(), **arguments.geometry())


def checkpoint_config(arguments: PretrainingModelArguments) -> SimMIMConfig:
    """The config of --checkpoint at the geometry asked for; the other options must not contradict it."""
    stored: Any = arguments.stored_config()
    if stored.model_type == SimMIMConfig.model_type:
        config = stored
        for name in COMPONENT_OPTIONS:
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
    arguments.apply(config)
    return config


def load_checkpoint(arguments: PretrainingModelArguments, config: SimMIMConfig) -> SimMIMForMaskedImageModeling:
    """The model of --checkpoint: one of SimMIM, or one of transformers whose encoder is taken."""
    name = str(arguments.checkpoint)
    # Trained in full precision, or in the mixed one that is asked for, whatever it was saved in.
    if AutoConfig.from_pretrained(name).model_type == SimMIMConfig.model_type:
        return SimMIMForMaskedImageModeling.from_pretrained(name, config=config, dtype=torch.float32)
    changes = {} if arguments.drop_path_rate is None else {"drop_path_rate": arguments.drop_path_rate}
    components = {key: getattr(config, key) for key in (*COMPONENT_OPTIONS, "image_mean", "image_std")}
    return SimMIMForMaskedImageModeling.from_encoder(
        name, encoder_config=changes, dtype=torch.float32, **arguments.geometry(), **components
    )


def fit_clusters(
    config: SimMIMConfig,
    arguments: PretrainingModelArguments,
    data: PretrainingDataArguments,
    images: Dataset,
    before: dict[str, Any],
) -> None:
    """Fit the colors of `color_clusters` to the training images, unless they are given or the run has them already."""
    if config.target != "color_clusters" or config.options("target")["centers"] != UNFITTED:
        return
    centers = before.get("target_options", {}).get("centers")
    if centers is None:
        centers = fit_color_clusters(
            images, arguments.num_clusters, config.num_channels, data.rescale, nodata=data.nodata
        )
    config.target_options = {"centers": centers}


def build_processor(
    config: SimMIMConfig,
    data: PretrainingDataArguments,
    model: PretrainingModelArguments,
    statistics: dict[str, list[float]],
) -> SimMIMImageProcessor:
    """The processor that goes with the checkpoint: geometry, normalization and masks."""
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


def load_splits(arguments: PretrainingDataArguments, output_dir: str):
    """Images to train on, and images to evaluate on or None."""
    arguments.check_source()
    source, validation_split = arguments.source(), arguments.validation_split
    if not arguments.names_images:
        validation_split = validation_split or "test"
    # What a run writes into its own training folder, and the images to evaluate on, are not trained on.
    exclude = [path for path in (arguments.validation_dir, output_dir) if path is not None]
    train = load_images(**source, split=arguments.train_split, exclude=exclude)
    if arguments.leave_out is not None:
        train = without(train, Path(arguments.leave_out))
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
        train = train.select(evenly_spaced(len(train), arguments.max_train_samples))
    if validation is not None and arguments.max_eval_samples is not None:
        validation = validation.select(evenly_spaced(len(validation), arguments.max_eval_samples))
    return train, validation


def without(images: Dataset, path: Path) -> Dataset:
    """The images that a JSON file does not list.

    Raises:
        ValueError: If the file holds no list of names, or none are left.
    """
    listed = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise ValueError(f"leave_out={str(path)!r} must hold a JSON list of names of images.")
    # The same file may be named in several ways.
    left_out = {os.path.realpath(name) for name in listed}
    kept = [index for index, name in enumerate(images["name"]) if os.path.realpath(name) not in left_out]
    if not kept:
        raise ValueError(f"leave_out={str(path)!r} lists all {len(images)} images. Name more images to train on.")
    return images if len(kept) == len(images) else images.select(kept)


def build_trainer(
    data_arguments: PretrainingDataArguments,
    model_arguments: PretrainingModelArguments,
    arguments: PretrainingArguments,
) -> tuple[SimMIMTrainer, Path | None]:
    """Everything that can go wrong before training starts.

    Returns:
        The trainer, and the checkpoint to go on from or None.

    Raises:
        ValueError, OSError: If the arguments or the images are unusable; the message says why and what to do.
    """
    set_seed(arguments.seed)
    check_license(arguments)
    config = build_config(model_arguments)
    hub_pushes = open_hub(arguments)
    checkpoint = prepare_output_dir(arguments)
    # One process reads first; the others find what it cached.
    with arguments.main_process_first(desc="loading images"):
        train_images, validation_images = load_splits(data_arguments, arguments.output_dir)
        probe = load_probe(data_arguments)
    # Every process computes the same, so none has to wait for another.
    before = settings_before(Path(arguments.output_dir)) if checkpoint is not None else {}
    statistics = data_arguments.settle(model_arguments.checkpoint, config.num_channels, train_images, before)
    config.image_mean, config.image_std = statistics["image_mean"], statistics["image_std"]
    fit_clusters(config, model_arguments, data_arguments, train_images, before)
    processor = build_processor(config, data_arguments, model_arguments, statistics)
    changes = {key: getattr(data_arguments, key) for key in ("crop_scale", "flip", "vertical_flip")}
    settings = {
        "encoder": stable_settings(config.encoder_config),
        **{key: getattr(config, key) for key in COMPONENT_OPTIONS},
        **{key: getattr(model_arguments, key) for key in ("mask_strategy", "mask_patch_size", "mask_ratio")},
        "num_clusters": model_arguments.num_clusters if config.target == "color_clusters" else None,
        **changes,
        "rescale_factor": data_arguments.rescale,
        "nodata": data_arguments.nodata,
        **statistics,
        "seed": arguments.seed,
        "training images": digest(train_images),
        "evaluation images": digest(validation_images) if validation_images is not None else None,
    }
    check_same_run(settings, Path(arguments.output_dir), checkpoint is not None)
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
    train_dataset = MaskedImageDataset(train_images, seed=seed, **changes, **common)
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
    begin_run(arguments, settings, ("reconstructions",))
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
        hub_pushes=hub_pushes,
        callbacks=[EpochCallback()],
    )
    if eval_dataset is not None:
        trainer.add_callback(PictureCallback(trainer))
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
        "Weights": f"from {weights}" if weights else "freshly initialized",
        "Predicts": describe_prediction(config, trainer.model.target.stride),
        "Masks": f"{span(dataset.num_masked_units)} of {dataset.num_units} squares of"
        f" {dataset.unit_size * config.patch_size} px are hidden",
        "Images": f"{len(dataset):,} to train on{evaluated}",
        "Pixels": f"times {processor.rescale_factor:.4g}, then mean {mean} and standard deviation {std}{nodata}",
        "Steps": f"of {images_per_step(arguments)} images, learning rate up to {arguments.learning_rate:g},"
        f" on {arguments.world_size} x {arguments.device}",
        "Output": f"{arguments.output_dir}" + (f", going on from {checkpoint.name}" if checkpoint else ""),
    }
    print_titled(lines)


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
    """Say what came out, and where everything is."""
    if metrics:
        error = metrics.get("eval_masked_l1")
        pixels = "" if error is None else f", masked l1 {error:.2f} of 255"
        print(f"On held-out images: loss {metrics['eval_loss']:.4f}{pixels}")
    print_files(Path(str(trainer.args.output_dir)), PRETRAINING_FILES)
    unreadable = trainer.unreadable_images
    if unreadable.reasons:
        count = len(unreadable.reasons)
        print(f"{unreadable.path}  {count} image{'s' if count > 1 else ''} that could not be read, and were skipped")


@dataclass(frozen=True)
class PretrainingResult:
    """What a pre-training computed.

    Args:
        model: The trained model.
        processor: The image processor that goes with it.
        metrics: Those of the last evaluation, such as `eval_loss`, `eval_masked_l1` (0 to 255) and the probe's.
        log: All that was logged, in order: `TrainerState.log_history`.
        output_dir: Folder of the run, which `from_pretrained` reads.
        pictures: Paths of `reconstruction`, `loss_curve` and `probe`, those that were drawn.
    """

    model: SimMIMForMaskedImageModeling
    processor: SimMIMImageProcessor
    metrics: dict[str, float]
    log: list[dict[str, float]]
    output_dir: Path
    pictures: dict[str, Path]


def run(
    data_arguments: PretrainingDataArguments,
    model_arguments: PretrainingModelArguments,
    arguments: PretrainingArguments,
) -> PretrainingResult:
    """Pre-train, evaluate, draw, and write the model and its card."""
    if not arguments.should_log:
        disable_progress_bars()
    checkpoint_name = model_arguments.checkpoint
    with in_words(checkpoint_name):
        trainer, checkpoint = build_trainer(data_arguments, model_arguments, arguments)
    trainer.origin = RunOrigin.from_options(
        data_arguments,
        checkpoint_name,
        arguments.command,
        held_out(data_arguments, data_arguments.holdout, default_split="test"),
        probe_source(data_arguments),
    )
    if arguments.should_log:
        print_plan(trainer, checkpoint, checkpoint_name)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_final_model()
    metrics = final_metrics(trainer)
    trainer.save_state()
    if metrics:
        trainer.save_metrics("eval", metrics)
    trainer.write_card()
    if arguments.should_log:
        print_results(trainer, metrics)
    if arguments.push_to_hub:
        trainer.finish_pushes()
    output_dir = Path(str(arguments.output_dir))
    pictures = existing(output_dir, *(name for name in PRETRAINING_FILES if name.endswith(".png")))
    processor: Any = trainer.processing_class
    return PretrainingResult(trainer.model, processor, metrics, trainer.state.log_history, output_dir, pictures)


COMMAND = Command(
    name="pretrain",
    usage="[--train_dir FOLDER] [--output_dir FOLDER] [--recipe NAME] [options]",
    description=__doc__,
    kinds=(PretrainingDataArguments, PretrainingModelArguments, PretrainingArguments),
    run=run,
    common=(
        *("train_dir", "output_dir", "recipe", "encoder", "checkpoint", "image_size", "num_channels"),
        *("num_train_epochs", "per_device_train_batch_size", "mask_ratio", "validation_dir", "probe_dir"),
        *("rescale_factor", "push_to_hub"),
    ),
    demo=True,
)
