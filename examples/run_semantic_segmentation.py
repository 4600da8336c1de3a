"""Fine-tune a pre-trained encoder to give every pixel a class, with UperNet.

    accelerate launch examples/run_semantic_segmentation.py --checkpoint runs/mim --train_dir fields
    accelerate launch examples/run_semantic_segmentation.py --checkpoint runs/mim --dataset_name owner/name

fields holds `images` and `masks`, files of the same names but for suffixes. Masks are maps of class ids: PNG (grey or
palette), TIFF or .npy. The names of the classes are read from fields/classes.txt, one a line, if it is there. It goes
on by itself from the newest whole checkpoint in --output_dir. A recipe is a JSON file with any of the options as keys.
"""

import json
import math
import os
import shutil
import sys
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import disable_progress_bars
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    Trainer,
    TrainingArguments,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    set_seed,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

from hf_simmim import SimMIMBackbone, SimMIMConfig, SimMIMImageProcessor, SimMIMModel
from hf_simmim.channel_statistics import channel_statistics
from hf_simmim.checkpoint import newest_whole_checkpoint
from hf_simmim.data import evenly_spaced, sample_generator
from hf_simmim.hidden_states import is_single_scale
from hf_simmim.image_channels import keeps_deep_pictures
from hf_simmim.recipes import parse_with_recipe
from hf_simmim.run_settings import check_same_run, digest
from hf_simmim.segmentation import (
    SegmentationMetrics,
    classes_of_annotations,
    draw_segmentations,
    forget_evaluation_keys,
)
from hf_simmim.segmentation_data import CollatePairs, EpochCallback, Pixels, SegmentationDataset
from hf_simmim.segmentation_pairs import Labels, Pairs, check_pairs, load_columns, load_folder
from hf_simmim.visualization import to_pictures

logger = logging.get_logger(__name__)

EXAMPLES = Path(__file__).parent
# The base learning rate is for so many images a step.
RECIPE_BATCH = 16
RECIPE_WARMUP = 1500
# The deepest features but one feed UperNet's auxiliary head.
AUXILIARY_MAP = 2


@dataclass
class DataArguments:
    """Where images and annotations come from, and what their numbers mean."""

    _argument_group_name = "images and annotations"

    train_dir: str | None = field(default=None, metadata={"help": "Folder that holds images and masks."})
    validation_dir: str | None = field(
        default=None, metadata={"help": "Such a folder to evaluate on. Without it a part of the images is held out."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Data set on the Hub, or a local one."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    train_split: str = field(default="train", metadata={"help": "Split of the data set to train on."})
    validation_split: str | None = field(
        default=None, metadata={"help": "Split of --dataset_name to evaluate on. Without it a part is held out."}
    )
    image_column: str = field(default="image", metadata={"help": "Column of the images."})
    annotation_column: str = field(default="annotation", metadata={"help": "Column of the maps of class ids."})
    holdout: float = field(default=0.1, metadata={"help": "Share of the images held out if no others are named."})
    holdout_seed: int = field(default=0, metadata={"help": "Seed of the choice of those images."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only this many images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on only this many images."})
    class_names: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the classes, from the lowest id on; or a file of them, .txt with one a line or .json with"
            " id2label. classes.txt in --train_dir if it is there, or else numbers up to the largest id."
        },
    )
    ignore_index: int = field(default=255, metadata={"help": "Class id of pixels that have no class."})
    reduce_labels: bool = field(
        default=False, metadata={"help": "0 is no class either, and the first class is 1, as in ADE20K."}
    )
    crop_size: list[int] = field(
        default_factory=lambda: [512], metadata={"help": "Side of training crops in pixels, or height and width."}
    )
    short_side: int | None = field(
        default=None,
        metadata={
            "help": "Shorter side in pixels that images are resized to, before random scales and to evaluate; that of"
            " the crop if unset, 0 to keep the size of each image."
        },
    )
    scales: list[float] = field(
        default_factory=lambda: [0.5, 2.0], metadata={"help": "Smallest and largest random scale of training images."}
    )
    max_class_share: float = field(
        default=0.75, metadata={"help": "Largest share of a crop for one class, where a crop can be found."}
    )
    rescale_factor: str | None = field(
        default=None,
        metadata={"help": "What pixels are multiplied with, as in run_mim.py; that of --checkpoint or 1/255 if unset."},
    )
    image_mean: list[float] | None = field(default=None, metadata={"help": "Mean of each channel of rescaled pixels."})
    image_std: list[float] | None = field(default=None, metadata={"help": "Standard deviation of each channel."})
    nodata: float | None = field(
        default=None, metadata={"help": "Pixels of which all channels are this number are none, and have no class."}
    )

    def __post_init__(self):
        if len(self.crop_size) > 2 or min(self.crop_size) < 1:
            raise ValueError(f"crop_size={self.crop_size} must be a side, or height and width, in pixels.")
        self.crop: tuple[int, int] = (self.crop_size[0], self.crop_size[-1])
        self.side = min(self.crop) if self.short_side is None else self.short_side or None
        for name in ("max_train_samples", "max_eval_samples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} leaves no images. Use 1 or more.")


@dataclass
class ModelArguments:
    """What is trained."""

    _argument_group_name = "model"

    checkpoint: str | None = field(
        default=None,
        metadata={"help": "Pre-trained weights: of SimMIM, or of a vision model of transformers; folder or Hub."},
    )
    from_scratch: bool = field(
        default=False, metadata={"help": "Take the architecture of --checkpoint and none of its weights: the control."}
    )
    window_size: int | None = field(default=None, metadata={"help": "Window in patches. The checkpoint's if unset."})
    out_features: list[str] | None = field(
        default=None, metadata={"help": "Stages of the encoder that UperNet sees; all, or four layers, if unset."}
    )
    drop_path_rate: float | None = field(
        default=0.3, metadata={"help": "Stochastic depth, for encoders that have it; 0.2 is usual for small ones."}
    )
    decoder_channels: int = field(default=512, metadata={"help": "Channels of UperNet's head."})
    auxiliary_weight: float = field(
        default=0.4, metadata={"help": "Weight of the auxiliary head's loss; 0 for no such head."}
    )


@dataclass
class SegmentationArguments(TrainingArguments):
    """Everything of TrainingArguments, with the defaults of Swin with UperNet."""

    _argument_group_name = "training (all of transformers.TrainingArguments)"

    output_dir: str = field(default="runs/segmentation", metadata={"help": "Folder of checkpoints and results."})
    restart: bool = field(
        default=False, metadata={"help": "Begin anew instead of going on from a checkpoint in --output_dir."}
    )
    base_learning_rate: float = field(
        default=6e-5,
        metadata={"help": "Learning rate for 16 images a step; scaled by the real number if --learning_rate is unset."},
    )
    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Peak learning rate as it is used, instead of --base_learning_rate."}
    )
    num_train_epochs: float = field(default=50.0, metadata={"help": "Passes over the images."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Crops a step on each device."})
    per_device_eval_batch_size: int = field(
        default=1, metadata={"help": "Whole images at once on each device, padded to the largest of them."}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's weight decay."})
    lr_scheduler_type: str = field(default="polynomial", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Steps of warm-up, or a share below 1; 1500 but at most a tenth if unset."}
    )
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch or best."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two reports."})
    dataloader_num_workers: int = field(
        default=min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1),
        metadata={"help": "Processes that load images, for each device."},
    )
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Drop an epoch's last, incomplete batch."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, order and crops."})

    def __post_init__(self):
        # Fixed by what this script trains, whatever a recipe says.
        self.label_names = ["annotations", "sizes"]
        self.remove_unused_columns = False
        self.batch_eval_metrics = True
        self.greater_is_better = True if self.greater_is_better is None else self.greater_is_better
        self.metric_for_best_model = self.metric_for_best_model or "mean_iou"
        if self.lr_scheduler_kwargs is None and self.lr_scheduler_type == "polynomial":
            self.lr_scheduler_kwargs = {"power": 1.0, "lr_end": 0.0}
        self.warmup_is_usual = self.warmup_steps is None
        self.warmup_steps = 0 if self.warmup_steps is None else self.warmup_steps
        super().__post_init__()
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type != "cpu"
        if self.learning_rate is None:
            self.learning_rate = self.base_learning_rate * self.images_per_step / RECIPE_BATCH

    @property
    def images_per_step(self) -> int:
        """Images of one optimizer step on all devices together."""
        return self.train_batch_size * self.world_size * self.gradient_accumulation_steps


def load_splits(arguments: DataArguments) -> tuple[Pairs, Pairs]:
    """Pairs to train on, and pairs to evaluate on."""
    if (arguments.train_dir is None) == (arguments.dataset_name is None):
        raise ValueError("Name one source of images: --train_dir or --dataset_name.")
    if arguments.validation_split is not None and arguments.dataset_name is None:
        raise ValueError(f"validation_split={arguments.validation_split!r} needs --dataset_name. Use --validation_dir.")

    def columns(split: str) -> Pairs:
        return load_columns(
            arguments.image_column,
            arguments.annotation_column,
            dataset_name=arguments.dataset_name,
            dataset_config=arguments.dataset_config,
            split=split,
        )

    train = load_folder(arguments.train_dir) if arguments.train_dir else columns(arguments.train_split)
    if arguments.validation_dir is not None:
        validation = load_folder(arguments.validation_dir)
    elif arguments.validation_split is not None:
        validation = columns(arguments.validation_split)
    else:
        count = len(train.images)
        held_out = round(count * arguments.holdout)
        if not 0 < held_out < count:
            raise ValueError(
                f"holdout={arguments.holdout} of {count} images leaves none to evaluate on, or none to train on. Use a"
                " share such as 0.1, or name images to evaluate on."
            )
        order = torch.randperm(count, generator=sample_generator(arguments.holdout_seed)).tolist()
        train, validation = train.select(sorted(order[held_out:])), train.select(sorted(order[:held_out]))
    if arguments.max_train_samples is not None:
        train = train.select(range(min(arguments.max_train_samples, len(train.images))))
    if arguments.max_eval_samples is not None:
        validation = validation.select(range(min(arguments.max_eval_samples, len(validation.images))))
    return train, validation


def read_class_names(arguments: DataArguments) -> list[str] | None:
    """The names that are given, or those of a file, or None."""
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


def build_labels(arguments: DataArguments, train: Pairs, validation: Pairs, pixels: Pixels) -> Labels:
    """Check all pairs, and say what the numbers of annotations mean; a warning names classes that never appear."""
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
                f"The annotations hold one class at most, beside ignore_index={arguments.ignore_index}. If that number"
                " is a class, such as in masks of 0 and 255, convert it to 1."
            )
    labels = Labels(names, arguments.ignore_index, arguments.reduce_labels)
    if labels.ignore_index in range(len(names)):
        raise ValueError(f"ignore_index={labels.ignore_index} is one of the {len(names)} classes. Use another number.")
    seen = check_pairs(train, labels, **common).pixels
    check_pairs(validation, labels, decode_images=True, **common)
    absent = [name for name, count in zip(names, seen, strict=True) if not count]
    if absent:
        logger.warning(f"No training image has {', '.join(absent[:5])}{' and others' if len(absent) > 5 else ''}.")
    return labels


def build_config(model: ModelArguments, data: DataArguments) -> SimMIMConfig:
    """The backbone's config: the checkpoint's encoder at the size of the crops."""
    if model.checkpoint is None:
        raise ValueError("checkpoint is not set. Name a pre-trained model; --from_scratch takes its architecture only.")
    try:
        stored = AutoConfig.from_pretrained(model.checkpoint)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"checkpoint={model.checkpoint!r} is neither a folder with a model nor one on the Hub. {error}"
        ) from error
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


def build_model(config: SimMIMConfig, model: ModelArguments, labels: Labels) -> UperNetForSemanticSegmentation:
    """UperNet on a backbone of the config, with the checkpoint's weights unless it is the control."""
    names = labels.class_names
    upernet_config = UperNetConfig(
        backbone_config=config,
        hidden_size=model.decoder_channels,
        use_auxiliary_head=False,
        auxiliary_loss_weight=model.auxiliary_weight,
        loss_ignore_index=labels.ignore_index,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
    )
    backbone = SimMIMBackbone(config) if model.from_scratch else pretrained_backbone(config, str(model.checkpoint))
    upernet_config.use_auxiliary_head = model.auxiliary_weight > 0 and len(backbone.channels) > AUXILIARY_MAP
    upernet = UperNetForSemanticSegmentation(upernet_config)
    upernet.backbone.load_state_dict(backbone.state_dict())
    forget_evaluation_keys(upernet)
    return upernet


def pretrained_backbone(config: SimMIMConfig, checkpoint: str) -> SimMIMBackbone:
    """A backbone of the config with the weights of a checkpoint, of ours or of transformers, in float32."""
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


def build_pixels(data: DataArguments, config: SimMIMConfig, checkpoint: str, train: Pairs) -> Pixels:
    """How pixels are scaled and normalised: as given, as the checkpoint was trained, or by the training images."""
    inherited: dict[str, Any] = {}
    try:
        inherited, _ = SimMIMImageProcessor.get_image_processor_dict(checkpoint)
    except OSError:
        logger.warning(f"{checkpoint} has no image processor. Pixels are normalised as if there were no checkpoint.")
    rescale = inherited.get("rescale_factor") or 1 / 255
    nodata = data.nodata
    if data.rescale_factor is not None:
        try:
            rescale = float(Fraction(data.rescale_factor))
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"rescale_factor={data.rescale_factor} is no number. Use one such as 1/65535.") from error
    fits = inherited.get("rescale_factor", 1 / 255) == rescale
    if nodata is None and fits:
        nodata = inherited.get("nodata")
    num_channels = config.num_channels
    mean, std = data.image_mean, data.image_std
    if mean is None and std is None and fits and len(inherited.get("image_mean") or ()) == num_channels:
        mean, std = inherited["image_mean"], inherited["image_std"]
    if mean is None and std is None and num_channels == 3 and not keeps_deep_pictures(rescale):
        mean, std = list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
    if mean is None and std is None:
        mean, std = channel_statistics(train.images, num_channels, rescale, nodata=nodata)
    if mean is None or std is None or not len(mean) == len(std) == num_channels or min(std) <= 0:
        raise ValueError(
            f"image_mean={mean} and image_std={std} must have one value for each of the {num_channels} channels, the"
            " latter above 0. Give both, or neither."
        )
    return Pixels(num_channels, rescale, mean, std, nodata)


def find_checkpoint(arguments: SegmentationArguments) -> Path | None:
    """Make sure that results can be written, and find the checkpoint to go on from."""
    output_dir = Path(str(arguments.output_dir))
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
                for path in output_dir.glob("checkpoint-*"):
                    shutil.rmtree(path, ignore_errors=True)
        return None
    if arguments.resume_from_checkpoint:
        return Path(arguments.resume_from_checkpoint)
    return newest_whole_checkpoint(output_dir)


def set_warmup(arguments: SegmentationArguments, num_images: int) -> None:
    """The recipe's warm-up, cut down for short runs."""
    batches = num_images // (arguments.train_batch_size * arguments.world_size)
    steps_in_epoch = max(1, batches // arguments.gradient_accumulation_steps)
    steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * steps_in_epoch)
    if arguments.warmup_is_usual:
        arguments.warmup_steps = min(RECIPE_WARMUP, steps // 10)


def build_trainer(
    data: DataArguments, model_arguments: ModelArguments, arguments: SegmentationArguments
) -> tuple[Trainer, Path | None]:
    """Everything that can go wrong before training starts.

    Returns:
        The trainer, and the checkpoint to go on from or None.

    Raises:
        ValueError, OSError: If the arguments or the images are unusable; the message says why and what to do.
    """
    set_seed(arguments.seed)
    config = build_config(model_arguments, data)
    checkpoint = find_checkpoint(arguments)
    with arguments.main_process_first(desc="loading images"):
        train, validation = load_splits(data)
    pixels = build_pixels(data, config, str(model_arguments.checkpoint), train)
    labels = build_labels(data, train, validation, pixels)
    settings = {
        "encoder": {key: value for key, value in config.encoder_config.to_dict().items() if key != "dtype"},
        "checkpoint": model_arguments.checkpoint,
        **{key: getattr(model_arguments, key) for key in ("from_scratch", "decoder_channels", "auxiliary_weight")},
        **{key: getattr(data, key) for key in ("crop", "side", "scales", "max_class_share")},
        "class_names": labels.class_names,
        "ignore_index": labels.ignore_index,
        "reduce_labels": labels.reduce_labels,
        "rescale_factor": pixels.rescale_factor,
        "nodata": pixels.nodata,
        "image_mean": list(pixels.image_mean),
        "image_std": list(pixels.image_std),
        "seed": arguments.seed,
        "training images": digest(train.images),
        "evaluation images": digest(validation.images),
    }
    check_same_run(settings, Path(str(arguments.output_dir)), checkpoint is not None, arguments.should_save)
    if len(train.images) < arguments.images_per_step:
        raise ValueError(
            f"{len(train.images)} images are fewer than the {arguments.images_per_step} of one step. Use a smaller"
            " --per_device_train_batch_size."
        )
    set_warmup(arguments, len(train.images))
    model = build_model(config, model_arguments, labels)
    if arguments.gradient_checkpointing:
        # UperNet itself does not know of it.
        model.backbone.gradient_checkpointing_enable(arguments.gradient_checkpointing_kwargs)
        arguments.gradient_checkpointing = False
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    train_dataset = SegmentationDataset(
        *(train, labels, pixels, data.side, data.crop, seed, data.scales, data.max_class_share)
    )
    shortest = {"shortest_edge": data.side} if data.side else {"height": data.crop[0], "width": data.crop[1]}
    processor = SimMIMImageProcessor(
        size=shortest,
        do_resize=data.side is not None,
        rescale_factor=pixels.rescale_factor,
        image_mean=list(pixels.image_mean),
        image_std=list(pixels.image_std),
        nodata=pixels.nodata,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train_dataset,
        eval_dataset=SegmentationDataset(validation, labels, pixels, data.side),
        data_collator=CollatePairs(config.encoder_stride, labels.ignore_index),
        processing_class=processor,
        compute_metrics=SegmentationMetrics(labels.class_names, labels.ignore_index),
        preprocess_logits_for_metrics=classes_of_annotations,  # type: ignore[arg-type]
        callbacks=[EpochCallback(train_dataset)],
    )
    return trainer, checkpoint


@torch.no_grad()
def draw_examples(trainer: Trainer, count: int = 6) -> None:
    """Write `segmentation.png`: some held-out images with annotation and prediction."""
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
        # Every process runs the model, for sharded ones need all.
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
    """Say in a few lines what is about to happen."""
    arguments: Any = trainer.args
    dataset: Any = trainer.train_dataset
    model: Any = trainer.model
    backbone, pixels, names = model.backbone, dataset.pixels, dataset.labels.class_names
    maps = ", ".join(
        f"{name} ({channels})" for name, channels in zip(backbone.out_features, backbone.channels, strict=True)
    )
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (pixels.image_mean, pixels.image_std))
    side = f"shorter side {dataset.short_side} px" if dataset.short_side else "their own size"
    lines = {
        "Encoder": f"{backbone.config.encoder_config.model_type}, maps {maps}",
        "Weights": weights,
        "Model": f"UperNet of {model.num_parameters() / 1e6:.1f} M parameters, {pixels.num_channels} channels",
        "Classes": f"{len(names)}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}",
        "Images": f"{len(dataset):,} to train on, {len(trainer.eval_dataset):,} to evaluate on, {side}, crops of"  # type: ignore[arg-type]
        f" {dataset.crop_size[0]} x {dataset.crop_size[1]} px",
        "Pixels": f"times {pixels.rescale_factor:.4g}, then mean {mean} and standard deviation {std}",
        "Steps": f"of {arguments.images_per_step} images, learning rate up to {arguments.learning_rate:g},"
        f" {arguments.warmup_steps:g} of warm-up, on {arguments.world_size} x {arguments.device}",
        "Output": f"{arguments.output_dir}" + (f", going on from {checkpoint.name}" if checkpoint else ""),
    }
    print("\n".join(f"{title:<9} {text}" for title, text in lines.items()))


def report(trainer: Trainer, metrics: dict[str, float], weights: str) -> None:
    """Print the table of classes, and write `results.json`."""
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
    for name, meaning in (
        ("model.safetensors", "weights, with config.json and preprocessor_config.json for from_pretrained"),
        ("results.json", "IoU of every class"),
        ("segmentation.png", "image | annotation | prediction"),
    ):
        if (output_dir / name).exists():
            print(f"{output_dir / name}  {meaning}")


def main(argv: list[str] | None = None) -> None:
    """Run the fine-tuning."""
    data, model_arguments, arguments = parse_with_recipe(
        (DataArguments, ModelArguments, SegmentationArguments),
        sys.argv[1:] if argv is None else argv,
        EXAMPLES / "recipes",
        lambda given: None,
        usage="%(prog)s --checkpoint MODEL --train_dir FOLDER [--output_dir FOLDER] [options]",
        description=__doc__,
    )
    if not arguments.should_log:
        disable_progress_bars()
    try:
        trainer, checkpoint = build_trainer(data, model_arguments, arguments)
    except StrictDataclassError as error:
        raise SystemExit(f"error: {error.__cause__ or error}") from error
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    name = model_arguments.checkpoint
    weights = f"fresh, architecture of {name}" if model_arguments.from_scratch else f"from {name}"
    if arguments.should_log:
        print_plan(trainer, checkpoint, weights)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.is_fsdp_enabled:
        # Whatever the checkpoints are: what people load is whole.
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()
    metrics = trainer.evaluate()
    draw_examples(trainer)
    trainer.save_state()
    if arguments.should_save:
        report(trainer, metrics, weights)
    trainer.create_model_card()
    if arguments.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
