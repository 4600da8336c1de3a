"""Fine-tune a pre-trained encoder for semantic segmentation, with UperNet.

    hf-simmim segment --checkpoint runs/mim --train_dir fields
    accelerate launch -m hf_simmim segment --checkpoint runs/mim --dataset_name owner/name

--train_dir contains `images` and `masks`, with files of the same names except for their suffixes. Masks are maps of
class ids: PNG (gray or palette), TIFF or .npy. Class names are read from classes.txt in the folder, one per line, if it
exists. A run resumes automatically from the newest complete checkpoint in --output_dir. A recipe is a JSON file with
any of the options as keys.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import disable_progress_bars
from transformers import (
    AutoConfig,
    Trainer,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    set_seed,
)
from transformers.utils import logging

from ..checkpoints.loading import load_config
from ..data.copies import warn_of_copies
from ..data.groups import image_groups, split_groups
from ..data.labeled.segmentation import (
    CollatePairs,
    PixelSettings,
    SegmentationDataset,
    SegmentationLabels,
    SegmentationPairs,
    check_pairs,
    load_columns,
    load_folder,
)
from ..data.sampling import evenly_spaced, sample_generator
from ..evaluation.comparing.answers import write_answers
from ..evaluation.segmentation import SegmentationMetrics, classes_of_annotations, forget_evaluation_keys
from ..hub.card import check_license, normalization
from ..hub.provenance import RunOrigin, evaluation_source, held_out, hub_id, last_part
from ..hub.pushes import open_hub
from ..model.configuration_simmim import SimMIMConfig
from ..model.encoder_stages import is_single_scale
from ..model.image_processing_simmim import SimMIMImageProcessor
from ..model.modeling_base import SimMIMModel
from ..model.modeling_simmim import SimMIMBackbone
from ..training.arguments import SCHEDULES, SimMIMTrainingArguments
from ..training.callbacks import EpochCallback
from ..training.cards.facts import training_line
from ..training.fingerprints import digest, initial_weights
from ..training.labeled_trainers import SegmentationTrainer
from ..training.optimization import check_batches, planned_steps, warmup_updates
from ..training.run_folder import (
    begin_run,
    describe_resuming,
    prepare_output_dir,
    settings_before,
    settle_settings,
    stable_settings,
)
from ..visualization.grids import draw_segmentations
from ..visualization.pictures import to_pictures
from .command import Command, existing, in_words, one_run, print_files, print_titled
from .options.images import PixelArguments, SourceArguments

logger = logging.get_logger(__name__)

RECIPE_WARMUP = 1500
# Files of a run that are printed at its end.
SEGMENTATION_FILES = {
    "model.safetensors": "weights, with config.json and preprocessor_config.json for from_pretrained",
    "results.json": "IoU of every class",
    "segmentation.png": "image | annotation | prediction",
}
# Index of the feature map of UperNet's auxiliary head, the deepest but one.
AUXILIARY_MAP = 2


@dataclass
class SegmentationDataArguments(SourceArguments):
    """Source of images and annotations, and their classes."""

    _argument_group_name = "images and annotations"

    train_dir: str | None = field(default=None, metadata={"help": "Training folder, with subfolders images and masks."})
    annotation_column: str = field(default="annotation", metadata={"help": "Column of the maps of class ids."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the images ('image' if unset)."})
    holdout: float = field(default=0.1, metadata={"help": "Share (0 to 1) held out if no validation images are named."})
    class_names: list[str] | None = field(
        default=None,
        metadata={
            "help": "Class names, from the lowest id up, or a file of them: .txt with one per line, or .json with"
            " id2label. If unset, classes.txt in --train_dir is used if it exists, otherwise numbers up to the largest"
            " id."
        },
    )
    ignore_index: int = field(default=255, metadata={"help": "Class id of pixels to ignore in loss and metrics."})
    reduce_labels: bool = field(
        default=False, metadata={"help": "Ignore class id 0 too, so that the first class is 1, as in ADE20K."}
    )
    crop_size: list[int] = field(
        default_factory=lambda: [512], metadata={"help": "Size of training crops in pixels: side, or height and width."}
    )
    short_side: int | None = field(
        default=None,
        metadata={
            "help": "Shorter side in pixels to resize images to, before random scaling and for evaluation (that of the"
            " crop if unset, 0 to keep the image size)."
        },
    )
    scales: list[float] = field(
        default_factory=lambda: [0.5, 2.0], metadata={"help": "Smallest and largest random scale of training images."}
    )
    num_train_images: int | None = field(
        default=None, metadata={"help": "Number of training images, drawn at random by --seed (all if unset)."}
    )
    max_class_share: float = field(
        default=0.75, metadata={"help": "Largest share of a crop (0 to 1) for a single class, where possible."}
    )

    def __post_init__(self):
        if len(self.crop_size) > 2 or min(self.crop_size) < 1:
            raise ValueError(f"crop_size={self.crop_size} must be a side, or height and width, in pixels.")
        self.crop: tuple[int, int] = (self.crop_size[0], self.crop_size[-1])
        self.side = min(self.crop) if self.short_side is None else self.short_side or None
        self.check_source()


@dataclass
class SegmentationPixelArguments(PixelArguments):
    """Normalization of the images, and their missing pixels."""

    _argument_group_name = "pixels"


@dataclass
class SegmentationModelArguments:
    """The model."""

    _argument_group_name = "model"

    checkpoint: str | None = field(
        default=None,
        metadata={"help": "SimMIM checkpoint or vision model of transformers: folder or name on the Hub."},
    )
    from_scratch: bool = field(
        default=False, metadata={"help": "Train --checkpoint's architecture from random weights, as a control."}
    )
    window_size: int | None = field(default=None, metadata={"help": "Window in patches (the checkpoint's if unset)."})
    out_features: list[str] | None = field(
        default=None, metadata={"help": "Encoder stages that UperNet uses (all, or four layers, if unset)."}
    )
    drop_path_rate: float | None = field(
        default=0.3, metadata={"help": "Stochastic depth rate, 0 to 1; 0.2 is common for small encoders."}
    )
    decoder_channels: int = field(default=512, metadata={"help": "Number of channels of UperNet's head."})
    auxiliary_weight: float = field(
        default=0.4, metadata={"help": "Loss weight of the auxiliary head, 0 for no auxiliary head."}
    )


@dataclass
class SegmentationArguments(SimMIMTrainingArguments):
    """TrainingArguments with the defaults of Swin with UperNet."""

    _argument_group_name = "training (all of transformers.TrainingArguments)"
    base_batch_size = 16

    output_dir: str = field(default="runs/segmentation", metadata={"help": "Folder of checkpoints and results."})
    base_learning_rate: float = field(
        default=6e-5,
        metadata={"help": "Learning rate for a batch size of 16; scaled to the batch size without --learning_rate."},
    )
    layer_decay: float = field(
        default=1.0,
        metadata={"help": "Layer-wise decay of the encoder's learning rate, 1 for none."},
    )
    num_train_epochs: float = field(default=50.0, metadata={"help": "Number of epochs."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Training batch size per device, in crops."})
    per_device_eval_batch_size: int = field(
        default=1, metadata={"help": "Evaluation batch size per device, in whole images padded to the largest."}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    lr_scheduler_type: str = field(
        default="polynomial", metadata={"help": "Learning rate schedule.", "choices": list(SCHEDULES)}
    )
    warmup_steps: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Warm-up steps, or a share below 1 (if unset, 1500 or a tenth of all if less)."}
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Gradient clipping norm, 0 for no clipping."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch or best."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two log entries."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Drop the last, incomplete batch of an epoch."})

    def __post_init__(self):
        # Required by the trainer, whatever a recipe sets.
        self.label_names = ["annotations", "sizes"]
        self.batch_eval_metrics = True
        self.metric_for_best_model = self.metric_for_best_model or "mean_iou"
        self.greater_is_better = "loss" not in self.metric_for_best_model
        if self.lr_scheduler_kwargs is None and self.lr_scheduler_type == "polynomial":
            self.lr_scheduler_kwargs = {"power": 1.0, "lr_end": 0.0}
        self.warmup_is_default = self.warmup_steps is None
        self.warmup_steps = 0 if self.warmup_steps is None else self.warmup_steps
        super().__post_init__()


def load_splits(arguments: SegmentationDataArguments) -> tuple[SegmentationPairs, SegmentationPairs]:
    """Load training and validation pairs."""
    if not arguments.names_images:
        raise ValueError("There are no images. Name --train_dir, --dataset_name or --data_files.")

    def columns(split: str) -> SegmentationPairs:
        return load_columns(
            arguments.image_column or "image",
            arguments.annotation_column,
            dataset_name=arguments.dataset_name,
            dataset_config=arguments.dataset_config,
            data_files=arguments.data_files,
            split=split,
        )

    slicing = arguments.slicing
    train = load_folder(arguments.train_dir, slicing) if arguments.train_dir else columns(arguments.train_split)
    if arguments.validation_dir is not None:
        validation = load_folder(arguments.validation_dir, slicing)
    elif arguments.validation_split is not None:
        validation = columns(arguments.validation_split)
    else:
        count = len(train.images)
        held_out = round(count * arguments.holdout)
        if not 0 < held_out < count:
            raise ValueError(
                f"holdout={arguments.holdout} of {count} images leaves none for validation, or none for training. Use"
                " a share such as 0.1, or name validation images."
            )
        groups = image_groups(train.images["name"][:])
        if groups is not None:
            parts = split_groups(np.ones((count, 1)), groups, arguments.holdout, arguments.holdout_seed)
        else:
            order = torch.randperm(count, generator=sample_generator(arguments.holdout_seed)).tolist()
            parts = sorted(order[held_out:]), sorted(order[:held_out])
        train, validation = (train.select(part) for part in parts)
    if arguments.max_train_samples is not None:
        train = train.select(evenly_spaced(len(train.images), arguments.max_train_samples))
    if arguments.max_eval_samples is not None:
        validation = validation.select(evenly_spaced(len(validation.images), arguments.max_eval_samples))
    warn_of_copies(train.images, validation.images)
    return train, validation


def draw_images(train: SegmentationPairs, number: int, seed: int) -> SegmentationPairs:
    """Draw training images.

    Args:
        train: All of them.
        number: How many.
        seed: Seed of the draw.

    Returns:
        The drawn ones, in their order.

    Raises:
        ValueError: If there are not as many.
    """
    if not 0 < number <= len(train.images):
        raise ValueError(f"num_train_images={number}: there are {len(train.images)} training images. Use fewer.")
    order = torch.randperm(len(train.images), generator=sample_generator(seed)).tolist()
    return train.select(sorted(order[:number]))


def read_class_names(arguments: SegmentationDataArguments) -> list[str] | None:
    """Class names from the options or a file, or None."""
    names = arguments.class_names
    if names is None:
        path = Path(arguments.train_dir or ".") / "classes.txt"
        names = [str(path)] if arguments.train_dir is not None and path.is_file() else None
    if names is not None and len(names) == 1 and Path(names[0]).suffix in (".txt", ".json"):
        path = Path(names[0])
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".txt":
            names = [line.strip() for line in text.splitlines() if line.strip()]
        else:
            stored = json.loads(text)
            id2label = {int(key): str(value) for key, value in stored.get("id2label", stored).items()}
            if sorted(id2label) != list(range(len(id2label))):
                raise ValueError(f"The ids in {path} are not 0 to {len(id2label) - 1}. Give every id a name.")
            names = [id2label[index] for index in range(len(id2label))]
    if names is not None and (len(names) < 2 or len(set(names)) < len(names)):
        raise ValueError(f"class_names={names} must be two or more different names, or a file of them.")
    return names


def build_labels(
    arguments: SegmentationDataArguments, train: SegmentationPairs, validation: SegmentationPairs, pixels: PixelSettings
) -> tuple[SegmentationLabels, list[int]]:
    """Check all pairs and determine the classes; a warning names classes that no training image has.

    Args:
        arguments: The options.
        train: Training images and annotations.
        validation: Validation images and annotations.
        pixels: How images are read.

    Returns:
        The classes, and the validation pixels of each.
    """
    names = read_class_names(arguments)
    common: dict[str, Any] = {
        "num_channels": pixels.num_channels,
        "rescale_factor": pixels.rescale_factor,
        "nodata": pixels.nodata,
        "ignore_index": arguments.ignore_index,
    }
    if names is None:
        largest = max(check_pairs(pairs, None, **common).largest for pairs in (train, validation))
        names = [f"class {index}" for index in range(int(arguments.reduce_labels), largest + 1)]
        if len(names) < 2:
            raise ValueError(
                f"The annotations have at most one class besides ignore_index={arguments.ignore_index}. If that id is"
                " a class, such as in masks of 0 and 255, convert it to 1."
            )
    labels = SegmentationLabels(names, arguments.ignore_index, arguments.reduce_labels)
    if labels.ignore_index in range(len(names)):
        remedy = "If 0 means no class, use reduce_labels." if labels.ignore_index == 0 else "Use another id."
        raise ValueError(f"ignore_index={labels.ignore_index} is one of the {len(names)} classes. {remedy}")
    seen = check_pairs(train, labels, **common).pixels
    tested = check_pairs(validation, labels, decode_images=True, **common).pixels
    absent = [name for name, count in zip(names, seen, strict=True) if not count]
    if absent:
        logger.warning(f"No training image has {', '.join(absent[:5])}{' and others' if len(absent) > 5 else ''}.")
    return labels, list(tested)


def build_config(model: SegmentationModelArguments, data: SegmentationDataArguments) -> SimMIMConfig:
    """Build the config of the backbone: the checkpoint's encoder at the crop size."""
    if model.checkpoint is None:
        raise ValueError("checkpoint is not set. Name a pre-trained model; --from_scratch only uses its architecture.")
    stored: Any = load_config(model.checkpoint)
    config = stored
    if stored.model_type != SimMIMConfig.model_type:
        config = SimMIMConfig(encoder_config=getattr(stored, "vision_config", stored).to_dict())
    config.image_size = data.crop
    if model.window_size is not None:
        config.window_size = model.window_size
    config.backbone_pyramid = is_single_scale(config)
    if model.out_features is not None:
        config.out_features = model.out_features
    if model.drop_path_rate is not None and hasattr(config.encoder_config, "drop_path_rate"):
        config.encoder_config.drop_path_rate = model.drop_path_rate
    return config


def build_model(
    config: SimMIMConfig, model: SegmentationModelArguments, labels: SegmentationLabels
) -> UperNetForSemanticSegmentation:
    """Build UperNet on a backbone with the checkpoint's weights, or random ones with --from_scratch."""
    names = labels.class_names
    upernet_config = UperNetConfig(
        backbone_config=config,
        hidden_size=model.decoder_channels,
        auxiliary_channels=max(1, model.decoder_channels // 2),
        use_auxiliary_head=False,
        auxiliary_loss_weight=model.auxiliary_weight,
        loss_ignore_index=labels.ignore_index,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    backbone = SimMIMBackbone(config) if model.from_scratch else pretrained_backbone(config, str(model.checkpoint))
    upernet_config.use_auxiliary_head = model.auxiliary_weight > 0 and len(backbone.channels) > AUXILIARY_MAP
    # The config may be published, so it must not contain the path of a folder.
    config.name_or_path = hub_id(model.checkpoint) or ""
    upernet = UperNetForSemanticSegmentation(upernet_config)
    upernet.backbone.load_state_dict(backbone.state_dict())
    forget_evaluation_keys(upernet)
    return upernet


def pretrained_backbone(config: SimMIMConfig, checkpoint: str) -> SimMIMBackbone:
    """Build a backbone with the weights of a checkpoint of SimMIM or of transformers, in float32."""
    if AutoConfig.from_pretrained(checkpoint).model_type == SimMIMConfig.model_type:
        return SimMIMBackbone.from_pretrained(checkpoint, config=config, dtype=torch.float32)
    rate = getattr(config.encoder_config, "drop_path_rate", None)
    stock = SimMIMModel.from_encoder(
        checkpoint,
        image_size=config.image_size,
        encoder_config={} if rate is None else {"drop_path_rate": rate},
        dtype=torch.float32,
        **({} if config.window_size is None else {"window_size": config.window_size}),
    )
    backbone = SimMIMBackbone(config)
    lacking = backbone.simmim.load_state_dict(stock.state_dict(), strict=False).missing_keys
    if lacking:
        raise ValueError(f"{checkpoint} lacks weights of the encoder: {', '.join(lacking[:3])}.")
    return backbone


def build_trainer(
    data: SegmentationDataArguments,
    numbers: SegmentationPixelArguments,
    model_arguments: SegmentationModelArguments,
    arguments: SegmentationArguments,
) -> tuple[SegmentationTrainer, Path | None]:
    """Build the trainer, with all checks that must precede the training.

    Args:
        data: Options of images and annotations.
        numbers: Options of pixel values.
        model_arguments: Options of the model.
        arguments: Options of the training.

    Returns:
        The trainer, and the checkpoint to resume from or None.

    Raises:
        ValueError, OSError: If the options or the images are unusable; the message says why and what to do.
    """
    set_seed(arguments.seed)
    check_license(arguments)
    config = build_config(model_arguments, data)
    hub_pushes = open_hub(arguments)
    checkpoint = prepare_output_dir(arguments)
    with arguments.main_process_first(desc="loading images"):
        train, validation = load_splits(data)
    before = settings_before(checkpoint.parent) if checkpoint is not None else {}
    statistics = numbers.settle(model_arguments.checkpoint, config.num_channels, train.images, before)
    pixels = PixelSettings(config.num_channels, numbers.rescale, nodata=numbers.nodata, **statistics)
    if data.num_train_images is not None:
        train = draw_images(train, data.num_train_images, arguments.seed)
    labels, _ = build_labels(data, train, validation, pixels)
    settings = {
        "encoder": stable_settings(config.encoder_config),
        "initial weights": initial_weights(model_arguments.checkpoint),
        **{key: getattr(model_arguments, key) for key in ("from_scratch", "decoder_channels", "auxiliary_weight")},
        **{key: getattr(data, key) for key in ("crop", "side", "scales", "max_class_share")},
        "class_names": labels.class_names,
        "ignore_index": labels.ignore_index,
        "reduce_labels": labels.reduce_labels,
        "rescale_factor": pixels.rescale_factor,
        "nodata": pixels.nodata,
        **statistics,
        "seed": arguments.seed,
        "training images": digest(train.images),
        "training annotations": digest(train.annotations),
        "evaluation images": digest(validation.images),
    }
    settings = settle_settings(arguments, settings, checkpoint)
    check_batches(arguments, len(train.images))
    steps = planned_steps(arguments, len(train.images))
    if arguments.warmup_is_default:
        arguments.warmup_steps = min(RECIPE_WARMUP, steps // 10)
    if warmup_updates(arguments, steps) >= steps:
        raise ValueError(
            f"warmup_steps={arguments.warmup_steps:g} covers all {steps} steps. Use fewer, or leave it out."
        )
    model = build_model(config, model_arguments, labels)
    begin_run(arguments, settings)
    if arguments.gradient_checkpointing:
        # UperNet itself does not support it, which Trainer asks by the newer name where there is one.
        model.backbone.gradient_checkpointing_enable(arguments.gradient_checkpointing_kwargs)
        arguments.gradient_checkpointing = arguments.activation_checkpointing = False
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    train_dataset = SegmentationDataset(
        *(train, labels, pixels, data.side, data.crop, seed, data.scales, data.max_class_share)
    )
    shortest = {"shortest_edge": data.side} if data.side else {"height": data.crop[0], "width": data.crop[1]}
    processor = SimMIMImageProcessor(
        size=shortest,
        do_resize=data.side is not None,
        rescale_factor=pixels.rescale_factor,
        **statistics,
        nodata=pixels.nodata,
    )
    trainer = SegmentationTrainer(
        model=model,
        args=arguments,
        train_dataset=train_dataset,
        eval_dataset=SegmentationDataset(validation, labels, pixels, data.side),
        data_collator=CollatePairs(config.encoder_stride, labels.ignore_index),
        processing_class=processor,
        compute_metrics=SegmentationMetrics(labels.class_names, labels.ignore_index),
        preprocess_logits_for_metrics=classes_of_annotations,  # type: ignore[arg-type]
        callbacks=[EpochCallback()],
        hub_pushes=hub_pushes,
    )
    return trainer, checkpoint


@torch.no_grad()
def draw_examples(trainer: Trainer, count: int = 6) -> None:
    """Write `segmentation.png`: some validation images with annotation and prediction."""
    dataset: Any = trainer.eval_dataset
    model = trainer.model_wrapped
    was_training = model.training
    model.eval()
    pictures, annotations, predictions = [], [], []
    for index in evenly_spaced(len(dataset), count):
        sample = dataset[index]
        batch = trainer.data_collator([sample])
        sizes = batch.pop("sizes")
        batch = {key: value.to(trainer.args.device) for key, value in batch.items()}
        # Every process runs the model, which sharded models need.
        with trainer.compute_loss_context_manager():
            logits = model(pixel_values=batch["pixel_values"]).logits
        classes = classes_of_annotations(logits, (batch["annotations"], sizes))
        pixels = dataset.pixels
        pictures.append(to_pictures(sample["pixel_values"][None], pixels.image_mean, pixels.image_std)[0])
        annotations.append(sample["annotation"].numpy())
        predictions.append(classes.view(sample["annotation"].shape).cpu().numpy())
    model.train(was_training)
    if trainer.args.should_save:
        names = dataset.labels.class_names
        path = Path(str(trainer.args.output_dir)) / "segmentation.png"
        draw_segmentations(pictures, annotations, predictions, names).save(path)


def print_plan(trainer: Trainer, checkpoint: Path | None, weights: str) -> None:
    """Print what the run will do."""
    arguments: Any = trainer.args
    dataset: Any = trainer.train_dataset
    model: Any = trainer.model
    backbone, pixels, names = model.backbone, dataset.pixels, dataset.labels.class_names
    maps = ", ".join(
        f"{name} ({channels})" for name, channels in zip(backbone.out_features, backbone.channels, strict=True)
    )
    side = f"shorter side {dataset.short_side} px" if dataset.short_side else "original size"
    lines = {
        "Encoder": f"{backbone.config.encoder_config.model_type}, feature maps {maps}",
        "Weights": weights,
        "Model": f"UperNet, {model.num_parameters() / 1e6:.1f} M parameters, {pixels.num_channels} channels",
        "Classes": f"{len(names)}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
        "Images": f"{len(dataset):,} for training, {len(trainer.eval_dataset):,} for validation, {side}, crops of"  # type: ignore[arg-type]
        f" {dataset.crop_size[0]} x {dataset.crop_size[1]} px",
        "Normalization": normalization(pixels),
        "Training": f"{training_line(arguments, planned_steps(arguments, len(dataset)))}, warm-up"
        f" {arguments.warmup_steps:g}",
        "Output": f"{arguments.output_dir}" + (f", {describe_resuming(checkpoint, arguments)}" if checkpoint else ""),
    }
    print_titled(lines)


def report(trainer: Trainer, metrics: dict[str, float], weights: str) -> None:
    """Print the IoU of each class, and write `results.json`."""
    iou: dict[str, float] = trainer.compute_metrics.iou  # type: ignore[union-attr, attr-defined]
    width = max(len(name) for name in [*iou, "mean"])
    print("\n".join(f"{name:<{width}} {value:7.2%}" for name, value in iou.items()))
    print(f"{'mean':<{width}} {metrics['eval_mean_iou']:7.2%}   pixel accuracy {metrics['eval_pixel_accuracy']:.2%}")
    results = {
        "weights": weights,
        "mean_iou": metrics["eval_mean_iou"],
        "pixel_accuracy": metrics["eval_pixel_accuracy"],
        "loss": metrics["eval_loss"],
        "iou": {name: None if np.isnan(value) else value for name, value in iou.items()},
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "images": len(trainer.eval_dataset),  # type: ignore[arg-type]
    }
    output_dir = Path(str(trainer.args.output_dir))
    (output_dir / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False), encoding="utf-8")
    print_files(output_dir, SEGMENTATION_FILES)


@dataclass(frozen=True)
class SegmentationResult:
    """Result of training a segmentation model.

    Args:
        model: The trained model.
        processor: Image processor of the model.
        metrics: Metrics of the last evaluation, such as `eval_mean_iou` and `eval_pixel_accuracy`.
        iou: IoU of each class, NaN for classes in neither annotations nor predictions.
        output_dir: Folder of the run, for `from_pretrained`.
        pictures: Path of `segmentation`, if it was drawn.
        num_train_images: Number of training images.
        num_eval_images: Number of validation images.
    """

    model: UperNetForSemanticSegmentation
    processor: SimMIMImageProcessor
    metrics: dict[str, float]
    iou: dict[str, float]
    output_dir: Path
    pictures: dict[str, Path]
    num_train_images: int = 0
    num_eval_images: int = 0


@one_run()
def run(
    data: SegmentationDataArguments,
    numbers: SegmentationPixelArguments,
    model_arguments: SegmentationModelArguments,
    arguments: SegmentationArguments,
) -> SegmentationResult:
    """Fine-tune, evaluate, draw, and write the model and its card."""
    if not arguments.should_log:
        disable_progress_bars()
    with in_words(model_arguments.checkpoint):
        trainer, checkpoint = build_trainer(data, numbers, model_arguments, arguments)
    name, begins = str(model_arguments.checkpoint), "from scratch, like" if model_arguments.from_scratch else "from"
    trainer.origin = RunOrigin.from_options(
        data,
        None if model_arguments.from_scratch else name,
        arguments.command,
        held_out(data, data.holdout),
        evaluation_source(data),
    )
    if arguments.should_log:
        print_plan(trainer, checkpoint, f"{begins} {name}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_final_model()
    metrics = trainer.evaluate()
    draw_examples(trainer)
    trainer.save_state()
    trainer.write_card()
    if arguments.should_save:
        # Without paths, since the results may be published.
        report(trainer, metrics, f"{begins} {hub_id(name) or last_part(name)}")
        correct, true, predicted = trainer.compute_metrics.image_counts.transpose(1, 0, 2)  # type: ignore[union-attr]
        write_answers(Path(str(arguments.output_dir)), np.stack([correct, predicted], axis=1), true)
    if arguments.push_to_hub:
        trainer.finish_pushes()
    output_dir = Path(str(arguments.output_dir))
    model, processor, counted = trainer.model, trainer.processing_class, trainer.compute_metrics
    return SegmentationResult(
        model,  # type: ignore[arg-type]
        processor,  # type: ignore[arg-type]
        metrics,
        dict(counted.iou),  # type: ignore[union-attr]
        output_dir,
        existing(output_dir, "segmentation.png"),
        len(trainer.train_dataset),  # type: ignore[arg-type]
        len(trainer.eval_dataset),  # type: ignore[arg-type]
    )


COMMAND = Command(
    name="segment",
    usage="--checkpoint MODEL --train_dir FOLDER [--output_dir FOLDER] [--recipe NAME] [options]",
    description=__doc__,
    kinds=(SegmentationDataArguments, SegmentationPixelArguments, SegmentationModelArguments, SegmentationArguments),
    run=run,
    common=(
        *("checkpoint", "train_dir", "validation_dir", "output_dir", "recipe", "class_names", "ignore_index"),
        *("crop_size", "short_side", "from_scratch", "num_train_epochs", "per_device_train_batch_size"),
        *("base_learning_rate", "rescale_factor"),
    ),
)
