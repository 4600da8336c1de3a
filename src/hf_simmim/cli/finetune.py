"""Fine-tune a pre-trained encoder to classify your labeled images, and evaluate the benefit of pre-training.

    hf-simmim finetune --checkpoint runs/photos --train_dir labeled_photos
    hf-simmim finetune --checkpoint runs/photos --train_dir labeled_photos \\
        --from_scratch --output_dir runs/control                        the same without the pre-training
    accelerate launch -m hf_simmim finetune --recipe swin_base__img224_window7__100ep ...

A folder has one sub-folder for each class. The recipe is the paper's unless you say otherwise: layer-wise decay of the
learning rate, mixup and cutmix, RandAugment, random erasing, label smoothing, stochastic depth. With several --seeds or
--num_folds there is a run for each, and their mean and spread. transformers' own Trainer does the training.
"""

import copy
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import disable_progress_bars
from transformers import IntervalStrategy, set_seed

from ..data.augmentation import BACKENDS, Augmentation
from ..data.label_splits import few_labels, folds, holdout
from ..data.labeled_images import LabeledImageDataset, LabeledImages
from ..data.mixing import MixingCollator
from ..data.reading import check_images
from ..data.sampling import evenly_spaced
from ..evaluation.metrics import ConfusionMatrix, classification_metrics
from ..hub.card import check_license
from ..hub.provenance import RunOrigin, evaluation_source, held_out
from ..hub.pushes import open_hub
from ..model.configuration_simmim import SimMIMConfig
from ..model.image_processing_simmim import SimMIMImageProcessor
from ..model.modeling_simmim import SimMIMForImageClassification
from ..training.arguments import SimMIMTrainingArguments
from ..training.callbacks import EpochCallback
from ..training.optimization import SIMMIM_SCHEDULES, create_optimizers, images_per_step, planned_steps
from ..training.run_folder import (
    begin_run,
    check_same_run,
    digest,
    prepare_output_dir,
    settings_before,
    stable_settings,
)
from ..training.trainers import ClassifierTrainer
from ..training.weight_average import WeightAverageCallback
from ..visualization.plots import plot_confusion
from .command import Command, existing, in_words, print_files, print_titled
from .image_options import LabeledSourceArguments, PixelArguments, load_labeled_splits
from .model_options import EncoderArguments

# Share of the images that is held out where no others are named and there are no folds.
DEFAULT_HOLDOUT = 0.2
# What a run writes into its folder for people to look at.
FINETUNING_FILES = {
    "results.json": "all figures of all runs",
    "confusion.png": "confusion matrix",
    "model.safetensors": "weights, with config.json and preprocessor_config.json for from_pretrained",
}
# What the table at the end shows, the first of them that a task has.
HEADLINES = ("accuracy", "mean_average_precision", "mae")


@dataclass
class FineTuningDataArguments(LabeledSourceArguments, PixelArguments):
    """Where the images and labels come from."""

    _argument_group_name = "images and labels"

    holdout: float | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Share of the images held out for evaluation if no other are named; 0 for none, 0.2 if unset. With"
            " --num_folds they are put aside, and none if unset."
        },
    )
    labels_per_class: int | None = field(
        default=None, metadata={"help": "Train on only this many images of each class, drawn by the seed."}
    )
    num_folds: int | None = field(
        default=None, metadata={"help": "Cross-validate: as many runs for each seed, each held out once."}
    )


@dataclass
class AugmentationArguments:
    """What is changed at random in the images; the defaults are the paper's."""

    _argument_group_name = "augmentation"

    crop_scale: list[float] = field(
        default_factory=lambda: [0.08, 1.0], metadata={"help": "Shares of an image's area that a random crop covers."}
    )
    flip: float = field(default=0.5, metadata={"help": "Probability of a flip from left to right."})
    vertical_flip: float = field(default=0.0, metadata={"help": "Probability of a flip from top to bottom."})
    rand_augment: str = field(
        default="rand-m9-mstd0.5-inc1", metadata={"help": "RandAugment as timm writes it, or none."}
    )
    color_jitter: float = field(default=0.4, metadata={"help": "Color jitter, where --rand_augment is none."})
    random_erasing: float = field(default=0.25, metadata={"help": "Probability that a rectangle is erased."})
    mixup: float = field(default=0.8, metadata={"help": "Alpha of mixup, 0 for none."})
    cutmix: float = field(default=1.0, metadata={"help": "Alpha of cutmix, 0 for none."})
    label_smoothing: float = field(default=0.1, metadata={"help": "Share of a label that goes to all classes."})
    augmentation_backend: str = field(
        default="auto",
        metadata={
            "help": "Who does RandAugment and color jitter: timm or torchvision, where they are installed, or this"
            " package.",
            "choices": list(BACKENDS),
        },
    )
    eval_crop_ratio: float = field(
        default=0.875, metadata={"help": "Share of an image's shorter side that is evaluated, 1 for all."}
    )

    def augmentation(self) -> Augmentation:
        """The settings of the training images."""
        return Augmentation(
            crop_scale=(self.crop_scale[0], self.crop_scale[-1]),
            flip=self.flip,
            vertical_flip=self.vertical_flip,
            color_jitter=self.color_jitter,
            rand_augment=None if self.rand_augment.lower() == "none" else self.rand_augment,
            random_erasing=self.random_erasing,
            backend=self.augmentation_backend,
        )


@dataclass
class FineTuningModelArguments(EncoderArguments):
    """What is trained."""

    _argument_group_name = "model"

    encoder: str = field(
        default="",
        metadata={"help": "Architecture to train from scratch, instead of --checkpoint: as run_mim.py takes it."},
    )
    from_scratch: bool = field(
        default=False,
        metadata={"help": "Take the architecture of --checkpoint and fresh weights: what the same run gives then."},
    )
    class_weights: list[str] | None = field(
        default=None,
        metadata={"help": "Factor of the loss of each class, or balanced: the rarer a class, the more it counts."},
    )


@dataclass
class FineTuningArguments(SimMIMTrainingArguments):
    """Everything of TrainingArguments, with the paper's fine-tuning as defaults."""

    _argument_group_name = "training (all of transformers.TrainingArguments)"

    output_dir: str = field(default="runs/classifier", metadata={"help": "Folder of results, models and pictures."})
    base_learning_rate: float = field(
        default=1.25e-3,
        metadata={"help": "Rate of the head for 512 images a step; scaled by the real number without --learning_rate."},
    )
    layer_decay: float = field(
        default=0.9, metadata={"help": "Factor of the learning rate from each layer to the one below it."}
    )
    lr_scheduler_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Options of the schedule, as JSON. Of simmim_cosine {"warmup_lr_rate": 0.0002, "min_lr_rate":'
            " 0.0002} if unset, shares of the learning rate."
        },
    )
    warmup_steps: float = field(default=0.2, metadata={"help": "Steps of warm-up, or a share of all below 1."})
    num_train_epochs: float = field(default=100.0, metadata={"help": "Passes over the images."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Images a step on each device."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Images a step on each device, evaluating."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch or best."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two reports."})
    weight_average: float | None = field(
        default=None,
        metadata={"help": "Decay of a moving average of the weights, such as 0.9999, which is kept in the end."},
    )
    seeds: list[int] | None = field(
        default=None, metadata={"help": "Several seeds: a run for each, with mean and spread of the results."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor} is Trainer's, which cannot smooth the labels of"
                " mixed images. Use --label_smoothing, which can."
            )
        if self.lr_scheduler_kwargs is None and self.lr_scheduler_type in SIMMIM_SCHEDULES:
            names = ["warmup_lr_rate"] + ["min_lr_rate"] * (self.lr_scheduler_type == "simmim_cosine")
            self.lr_scheduler_kwargs = dict.fromkeys(names, 2e-4)


@dataclass
class FineTuningRun:
    """One training: its images, where it goes, and what is drawn."""

    train: LabeledImages
    evaluation: LabeledImages | None
    output_dir: Path
    seed: int
    fold: int | None


@dataclass
class FineTuningOptions:
    """All that a run is told."""

    data: FineTuningDataArguments
    augmentation: AugmentationArguments
    model: FineTuningModelArguments
    training: FineTuningArguments


def load_splits(arguments: FineTuningDataArguments) -> tuple[LabeledImages, LabeledImages | None]:
    """Images to train on, and images to evaluate on if they are named."""
    folded = arguments.num_folds is not None
    if folded and (arguments.validation_dir is not None or arguments.validation_split is not None):
        raise ValueError(
            f"num_folds={arguments.num_folds} divides the training images, and there are others to evaluate on."
            " Leave one out."
        )
    return load_labeled_splits(arguments, arguments.label_column, needs_validation=not folded)


def plan_runs(options: FineTuningOptions) -> list[FineTuningRun]:
    """The images of each run.

    Raises:
        ValueError, OSError: If there are no such images; the message says why and what to do.
    """
    data, training = options.data, options.training
    everything, validation = load_splits(data)
    seeds = [training.seed] if training.seeds is None else training.seeds
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={seeds} has one twice. Give each once.")
    if everything.class_names is not None and len(everything.class_names) < 2:
        raise ValueError(
            f"There is one class only, {everything.class_names[0]!r}, and nothing to tell apart. Name a folder with a"
            " sub-folder for each class, or another --label_column."
        )
    num_folds = data.num_folds
    if training.resume_from_checkpoint and len(seeds) * (num_folds or 1) > 1:
        raise ValueError(
            f"resume_from_checkpoint={training.resume_from_checkpoint!r} is one checkpoint, and there are several runs."
            " Leave it out: each goes on by itself from its own newest checkpoint."
        )
    runs = []
    for seed in seeds:
        for fold in range(num_folds or 1):
            train, evaluation = everything, validation
            share = data.holdout
            if share is None:
                share = DEFAULT_HOLDOUT if num_folds is None and validation is None else 0.0
            if share and validation is None:
                # Before labels are drawn, so that all budgets and seeds are held against the same images.
                parts = holdout(everything.labels, share, data.holdout_seed, everything.class_names)
                train, evaluation = (everything.select(part) for part in parts)
            if data.labels_per_class is not None:
                train = train.select(few_labels(train.labels, data.labels_per_class, seed, train.class_names))
            if num_folds is not None:
                parts = folds(train.labels, num_folds, fold, data.holdout_seed, train.class_names)
                train, evaluation = (train.select(part) for part in parts)
            if data.max_train_samples is not None:
                # Not the first ones, which in a folder are of one class.
                train = train.select(evenly_spaced(len(train), data.max_train_samples))
            if evaluation is not None and data.max_eval_samples is not None:
                evaluation = evaluation.select(evenly_spaced(len(evaluation), data.max_eval_samples))
            names = [f"seed-{seed}"] * (training.seeds is not None) + [f"fold-{fold}"] * (num_folds is not None)
            output_dir = Path(str(training.output_dir), "-".join(names))
            runs.append(FineTuningRun(train, evaluation, output_dir, seed, fold if num_folds is not None else None))
    return runs


def build_config(arguments: FineTuningModelArguments, images: LabeledImages) -> SimMIMConfig:
    """Config of the classifier: the encoder as the paper fine-tunes it, and the classes."""
    config: Any
    if arguments.checkpoint is None:
        if not arguments.encoder:
            raise ValueError(
                "There is nothing to train: name the pre-trained model with --checkpoint, or an architecture to train"
                " from scratch with --encoder."
            )
        config = SimMIMConfig(encoder_config=arguments.encoder_settings(), **arguments.geometry()).for_fine_tuning()
    else:
        config = arguments.stored_config()
        if config.model_type != SimMIMConfig.model_type:
            config = SimMIMConfig(encoder_config=getattr(config, "vision_config", config).to_dict())
        if SimMIMForImageClassification.__name__ not in (config.architectures or ()):
            config = config.for_fine_tuning()
        arguments.apply(config)
    names = images.class_names or ["value"]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = images.problem_type
    config.class_weights = class_weights(arguments.class_weights, images)
    # What is set afterwards is not checked before it is saved.
    config.validate_class_weights()
    return config


def class_weights(given: list[str] | None, images: LabeledImages) -> list[float] | None:
    """Factors of the loss of each class.

    Raises:
        ValueError: If they are no numbers, or there are no classes.
    """
    if given is None:
        return None
    if images.class_names is None:
        raise ValueError(f"class_weights={given} and the labels are numbers. Leave it out.")
    num_classes = len(images.class_names)
    if given == ["balanced"]:
        if images.problem_type != "single_label_classification":
            raise ValueError("class_weights=balanced is for images of one class each. Give a number for each class.")
        counts = np.bincount(images.labels, minlength=num_classes)
        return (len(images) / (num_classes * np.maximum(counts, 1))).tolist()
    try:
        weights = [float(weight) for weight in given]
    except ValueError:
        weights = []
    if len(weights) != num_classes:
        raise ValueError(f"class_weights={given} must be balanced, or {num_classes} numbers, one for each class.")
    return weights


def build_model(arguments: FineTuningModelArguments, config: SimMIMConfig) -> SimMIMForImageClassification:
    """The classifier, from the checkpoint or with fresh weights."""
    if arguments.from_scratch or arguments.checkpoint is None:
        return SimMIMForImageClassification(config)
    name = arguments.checkpoint
    # Trained in full precision, or in the mixed one that is asked for, whatever it was saved in.
    loading: dict[str, Any] = {"dtype": torch.float32}
    if arguments.stored_config().model_type == SimMIMConfig.model_type:
        loading["ignore_mismatched_sizes"] = True
        model = SimMIMForImageClassification.from_pretrained(name, config=config, **loading)
        stored = arguments.stored_config()
        if type(model).__name__ in (stored.architectures or ()) and stored.id2label != config.id2label:
            # As many classes as before, and others.
            model.reset_classifier()
        return model
    changes = {} if arguments.drop_path_rate is None else {"drop_path_rate": arguments.drop_path_rate}
    model = SimMIMForImageClassification.from_encoder(
        name, encoder_config=changes, num_labels=config.num_labels, **arguments.geometry(), **loading
    )
    for key in ("id2label", "label2id", "problem_type", "class_weights"):
        setattr(model.config, key, getattr(config, key))
    return model


def describe_origin(options: FineTuningOptions, run: FineTuningRun) -> RunOrigin:
    """What the trainer does not know, for the model card."""
    data = options.data
    checkpoint = None if options.model.from_scratch else options.model.checkpoint
    if data.num_folds is not None:
        where = f"fold {(run.fold or 0) + 1} of {data.num_folds}"
    else:
        share = DEFAULT_HOLDOUT if data.holdout is None else data.holdout
        where = held_out(data, share, default_split="test") or ""
    source = evaluation_source(data, default_split=None if data.num_folds else "test")
    return RunOrigin.from_options(data, checkpoint, options.training.command, where or None, source)


def build_trainer(options: FineTuningOptions, run: FineTuningRun) -> tuple[ClassifierTrainer, Path | None]:
    """Everything that can go wrong before a run starts.

    Returns:
        transformers' Trainer, with a card of ours, and the checkpoint to go on from or None.

    Raises:
        ValueError, OSError: If the arguments or the images are unusable; the message says why and what to do.
    """
    arguments = copy.copy(options.training)
    arguments.output_dir, arguments.seed = str(run.output_dir), run.seed
    if arguments.push_to_hub and run.output_dir != Path(str(options.training.output_dir)):
        # Each of several runs has a repository of its own.
        name = options.training.hub_model_id or Path(str(options.training.output_dir)).absolute().name
        arguments.hub_model_id = f"{name}-{run.output_dir.name}"
    hub_pushes = open_hub(arguments)
    set_seed(run.seed)
    check_license(arguments)
    data, augmentation = options.data, options.augmentation.augmentation()
    config = build_config(options.model, run.train)
    checkpoint = prepare_output_dir(arguments)
    before = settings_before(run.output_dir) if checkpoint is not None else {}
    pixels = copy.copy(data)
    statistics = pixels.settle(options.model.checkpoint, config.num_channels, run.train.rows, before)
    settings = {
        "encoder": stable_settings(config.encoder_config),
        "classes": run.train.class_names,
        "from_scratch": options.model.from_scratch,
        "checkpoint": options.model.checkpoint,
        "augmentation": vars(options.augmentation),
        **{key: getattr(arguments, key) for key in ("layer_decay", "weight_average")},
        "class_weights": config.class_weights,
        "rescale_factor": pixels.rescale,
        "nodata": pixels.nodata,
        **statistics,
        "seed": run.seed,
        "training images": digest(run.train.rows),
        "labels": hashlib.blake2b(json.dumps(run.train.labels).encode(), digest_size=6).hexdigest(),
    }
    check_same_run(settings, run.output_dir, checkpoint is not None)
    common: dict[str, Any] = {
        "image_size": config.image_size,
        "num_channels": config.num_channels,
        "rescale_factor": pixels.rescale,
        "nodata": pixels.nodata,
        **statistics,
    }
    train_dataset = LabeledImageDataset(run.train.rows, augmentation=augmentation, seed=run.seed, **common)
    if arguments.dataloader_drop_last and len(train_dataset) < images_per_step(arguments):
        raise ValueError(
            f"{len(train_dataset)} images are fewer than the {images_per_step(arguments)} of one step. Use a smaller"
            " --per_device_train_batch_size, or --dataloader_drop_last false."
        )
    check_images([train_dataset], data.max_unreadable)
    eval_dataset = None
    if run.evaluation is not None:
        eval_dataset = LabeledImageDataset(
            run.evaluation.rows, crop_ratio=options.augmentation.eval_crop_ratio, **common
        )
        # All of them: one that cannot be read would end the run when it is evaluated.
        check_images([eval_dataset], 0.0, len(eval_dataset))
    else:
        arguments.eval_strategy = IntervalStrategy.NO
    model = build_model(options.model, config)
    begin_run(arguments, settings)
    soft = config.problem_type != "regression"
    collator = MixingCollator(
        num_classes=int(config.num_labels or 0),
        mixup_alpha=options.augmentation.mixup if soft else 0.0,
        cutmix_alpha=options.augmentation.cutmix if soft else 0.0,
        label_smoothing=options.augmentation.label_smoothing if soft else 0.0,
        seed=run.seed,
    )
    callbacks: list[Any] = [EpochCallback()]
    if arguments.weight_average is not None:
        callbacks.append(WeightAverageCallback(arguments.weight_average))
    height, width = config.image_size
    trainer = ClassifierTrainer(
        model=model,
        args=arguments,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collator,
        processing_class=SimMIMImageProcessor(
            size={"height": height, "width": width},
            model_patch_size=config.patch_size,
            rescale_factor=pixels.rescale,
            nodata=pixels.nodata,
            **statistics,
        ),
        compute_metrics=classification_metrics(run.train.class_names or ["value"], str(config.problem_type)),
        optimizers=create_optimizers(  # type: ignore[arg-type]
            model,
            arguments,
            planned_steps(arguments, len(train_dataset)),
            arguments.layer_decay,
            arguments.official,
        ),
        callbacks=callbacks,
        hub_pushes=hub_pushes,
    )
    trainer.origin = describe_origin(options, run)
    return trainer, checkpoint


def print_plan(
    trainer: ClassifierTrainer, options: FineTuningOptions, run: FineTuningRun, checkpoint: Path | None
) -> None:
    """Say in a few lines what is about to happen."""
    arguments: Any = trainer.args
    model: Any = trainer.model
    weights = options.model.checkpoint
    if options.model.from_scratch or weights is None:
        weights = None
    height, width = model.config.image_size
    evaluated = f", {len(run.evaluation):,} to evaluate on" if run.evaluation is not None else ""
    kind = str(model.config.problem_type).removesuffix("_classification").replace("_", " ")
    rates = [group["lr_scale"] * arguments.learning_rate for group in trainer.optimizer.param_groups]
    lines = {
        "Encoder": f"{model.config.encoder_config.model_type}, {model.num_parameters() / 1e6:.1f} M parameters,"
        f" {model.config.num_channels} x {height} x {width} px",
        "Weights": f"from {weights}" if weights else "freshly initialized",
        "Classes": f"{model.config.num_labels}, {kind}",
        "Images": f"{len(run.train):,} to train on{evaluated}",
        "Steps": f"{planned_steps(arguments, len(run.train)):,} of {images_per_step(arguments)} images,"
        f" on {arguments.world_size} x {arguments.device}",
        "Rates": f"up to {max(rates):.3g} for the head and {min(rates):.3g} for the patch embedding",
        "Output": f"{run.output_dir}" + (f", going on from {checkpoint.name}" if checkpoint else ""),
    }
    print_titled(lines)


def execute(
    options: FineTuningOptions, run: FineTuningRun
) -> tuple[ClassifierTrainer, dict[str, Any], np.ndarray | None]:
    """Train and evaluate.

    Returns:
        The trainer, what `results.json` of the run holds, and the confusion matrix if there is one.
    """
    trainer, checkpoint = build_trainer(options, run)
    if trainer.args.should_log:
        print_plan(trainer, options, run, checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_final_model()
    trainer.save_state()
    results: dict[str, Any] = {
        "seed": run.seed,
        "fold": run.fold,
        "num_train_images": len(run.train),
        "num_steps": trainer.state.global_step,
        "metrics": {},
    }
    matrix = None
    if trainer.eval_dataset is not None:
        output = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")  # type: ignore[arg-type]
        timing = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time")
        figures = {key: value for key, value in (output.metrics or {}).items() if key not in timing}
        results["metrics"] = {key.removeprefix("eval_"): float(value) for key, value in figures.items()}
        results["num_eval_images"] = len(trainer.eval_dataset)  # type: ignore[arg-type]
        names = run.train.class_names
        if run.train.problem_type == "single_label_classification" and names:
            counted = ConfusionMatrix(names).compute(predictions=output.predictions, references=output.label_ids)
            matrix = counted["confusion_matrix"]
        trainer.final_metrics = results["metrics"]
    if trainer.args.should_save:
        write_results(results, run.output_dir)
        if matrix is not None:
            plot_confusion(matrix, run.train.class_names or [], run.output_dir / "confusion.png")
    trainer.write_card()
    if trainer.args.push_to_hub:
        trainer.finish_pushes()
    return trainer, results, matrix


def write_results(results: dict[str, Any], folder: Path) -> None:
    """Write `results.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")


def summarize(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over runs of each figure that all of them have."""
    keys = [key for key in results[0]["metrics"] if all(key in result["metrics"] for result in results)]
    columns = {key: [result["metrics"][key] for result in results] for key in keys}
    return {
        key: {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}
        for key, values in columns.items()
    }


def print_summary(summary: dict[str, dict[str, float]], num_runs: int, output_dir: Path) -> None:
    """Say what came out, and where everything is."""
    spread = f" (mean ± standard deviation of {num_runs} runs)" if num_runs > 1 else ""
    print(f"\nOn images that were not trained on{spread}:")
    for key, figures in summary.items():
        deviation = f" ± {figures['std']:.4f}" if num_runs > 1 else ""
        print(f"  {key:<28} {figures['mean']:.4f}{deviation}")
    print_files(output_dir, FINETUNING_FILES)


@dataclass(frozen=True)
class FineTuningResult:
    """What a fine-tuning computed.

    Args:
        model: The trained model; that of the last run where there are several seeds or folds.
        processor: The image processor that goes with it.
        summary: Each metric, by name: mean and standard deviation over the runs.
        runs: What `results.json` holds of each run: seed, fold, numbers of images, metrics.
        output_dir: Folder of the results; with several runs each has a folder in it.
        pictures: Path of `confusion`, if it was drawn.
    """

    model: SimMIMForImageClassification
    processor: SimMIMImageProcessor
    summary: dict[str, dict[str, float]]
    runs: list[dict[str, Any]]
    output_dir: Path
    pictures: dict[str, Path]


def run(
    data: FineTuningDataArguments,
    augmentation: AugmentationArguments,
    model_arguments: FineTuningModelArguments,
    arguments: FineTuningArguments,
) -> FineTuningResult:
    """Fine-tune and evaluate, once for each seed and fold."""
    options = FineTuningOptions(data, augmentation, model_arguments, arguments)
    if not arguments.should_log:
        disable_progress_bars()
    results, matrices = [], []
    trainer: Any = None
    with in_words(model_arguments.checkpoint):
        # One process reads first; the others find what it cached.
        with arguments.main_process_first(desc="loading images"):
            runs = plan_runs(options)
        for planned in runs:
            trainer, result, matrix = execute(options, planned)
            results.append(result)
            if matrix is not None:
                matrices.append(matrix)
    output_dir = Path(str(arguments.output_dir))
    summary = summarize(results)
    if arguments.should_save:
        write_results({"summary": summary, "runs": results}, output_dir)
        if len(matrices) > 1:
            plot_confusion(np.sum(matrices, axis=0), runs[0].train.class_names or [], output_dir / "confusion.png")
    if arguments.should_log:
        print_summary(summary, len(results), output_dir)
    pictures = existing(output_dir, "confusion.png")
    return FineTuningResult(trainer.model, trainer.processing_class, summary, results, output_dir, pictures)


COMMAND = Command(
    name="finetune",
    usage="--checkpoint FOLDER --train_dir FOLDER [--output_dir FOLDER] [--recipe NAME] [options]",
    description=__doc__,
    kinds=(FineTuningDataArguments, AugmentationArguments, FineTuningModelArguments, FineTuningArguments),
    run=run,
    common=(
        *("checkpoint", "train_dir", "validation_dir", "output_dir", "recipe", "from_scratch", "labels_per_class"),
        *("num_folds", "seeds", "image_size", "num_train_epochs", "per_device_train_batch_size"),
        *("base_learning_rate", "class_weights"),
    ),
    demo=True,
)
