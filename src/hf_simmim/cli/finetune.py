"""Fine-tune a pre-trained encoder to classify labeled images, and evaluate the benefit of pre-training.

    hf-simmim finetune --checkpoint runs/photos --train_dir labeled_photos
    hf-simmim finetune --checkpoint runs/photos --train_dir labeled_photos \\
        --from_scratch --output_dir runs/control                        the control without pre-training
    accelerate launch -m hf_simmim finetune --recipe swin_base__img224_window7__100ep ...

--train_dir has a subfolder for each class. The defaults are the paper's: layer-wise learning rate decay, mixup, cutmix,
RandAugment, random erasing, label smoothing, stochastic depth. With several --seeds or with --num_folds
(cross-validation) there is a run for each, and their mean and standard deviation. Training uses transformers' Trainer.
"""

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import disable_progress_bars
from transformers import IntervalStrategy, set_seed

from ..data.labeled.augmentation import BACKENDS, Augmentation
from ..data.labeled.images import LabeledImageDataset, LabeledImages
from ..data.labeled.mixing import MixingCollator
from ..data.labeled.splits import few_labels, folds, holdout
from ..data.reading import check_images
from ..data.sampling import evenly_spaced
from ..evaluation.comparing.answers import write_answers
from ..evaluation.metrics import ConfusionMatrix, PerClassScores, classification_metrics, missed_in_matrix
from ..hub.card import check_license, normalization
from ..hub.provenance import RunOrigin, evaluation_source, held_out
from ..hub.pushes import open_hub
from ..model.configuration_simmim import SimMIMConfig
from ..model.image_processing_simmim import SimMIMImageProcessor
from ..model.modeling_simmim import SimMIMForImageClassification
from ..training.arguments import SimMIMTrainingArguments
from ..training.callbacks import EpochCallback
from ..training.cards.facts import training_line
from ..training.fingerprints import digest, initial_weights
from ..training.labeled_trainers import ClassifierTrainer
from ..training.optimization import SIMMIM_SCHEDULES, images_per_step, parameter_groups, planned_steps
from ..training.run_folder import (
    begin_run,
    describe_resuming,
    prepare_output_dir,
    settings_before,
    settle_settings,
    stable_settings,
)
from ..training.weight_average import WeightAverageCallback
from ..visualization.plots import plot_confusion
from .command import Command, existing, in_words, one_run, print_files, print_titled
from .options.images import DecoderArguments, LabeledSourceArguments, PixelArguments, load_labeled_splits
from .options.labels import class_weights, label_scale
from .options.models import EncoderArguments

# Share of the images held out for validation, without validation images and cross-validation.
DEFAULT_HOLDOUT = 0.2
FEW_STEPS = 500  # with the paper's augmentation, which fewer hardly learn anything from (docs/measured.md)
# Files of a run that are printed at its end.
FINETUNING_FILES = {
    "results.json": "metrics of all runs",
    "confusion.png": "confusion matrix",
    "model.safetensors": "weights, with config.json and preprocessor_config.json for from_pretrained",
}


@dataclass
class FineTuningDataArguments(LabeledSourceArguments, PixelArguments, DecoderArguments):
    """Source of the labeled images."""

    _argument_group_name = "images and labels"

    holdout: float | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Share of the images (0 to 1) held out if no validation images are named (0.2 if unset). With"
            " --num_folds it is set aside from all folds (0 if unset)."
        },
    )
    labels_per_class: int | None = field(default=None, metadata={"help": "Training images per class (all if unset)."})
    num_folds: int | None = field(default=None, metadata={"help": "Cross-validation folds (none if unset)."})


@dataclass
class AugmentationArguments:
    """Augmentation of the training images; the defaults are the paper's."""

    _argument_group_name = "augmentation"

    crop_scale: list[float] = field(
        default_factory=lambda: [0.08, 1.0], metadata={"help": "Smallest and largest area of random crops, as shares."}
    )
    flip: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    vertical_flip: float = field(default=0.0, metadata={"help": "Probability of a vertical flip."})
    rand_augment: str = field(default="rand-m9-mstd0.5-inc1", metadata={"help": "RandAugment in timm's form, or none."})
    color_jitter: float = field(default=0.4, metadata={"help": "Strength of color jitter if --rand_augment is none."})
    random_erasing: float = field(default=0.25, metadata={"help": "Probability of random erasing."})
    mixup: float = field(default=0.8, metadata={"help": "Alpha of mixup, 0 for no mixup."})
    cutmix: float = field(default=1.0, metadata={"help": "Alpha of cutmix, 0 for no cutmix."})
    label_smoothing: float = field(default=0.1, metadata={"help": "Label smoothing, 0 to 1."})
    augmentation_backend: str = field(
        default="auto",
        metadata={
            "help": "Implementation of RandAugment: auto (timm's where timm is installed), builtin or timm.",
            "choices": list(BACKENDS),
        },
    )
    eval_crop_ratio: float = field(
        default=0.875, metadata={"help": "Share of the shorter side that the center crop of validation images keeps."}
    )

    def augmentation(self) -> Augmentation:
        """Settings of the augmentation."""
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
    """The model."""

    _argument_group_name = "model"

    encoder: str = field(default="", metadata={"help": "Architecture to train from scratch, instead of --checkpoint."})
    from_scratch: bool = field(
        default=False, metadata={"help": "Train --checkpoint's architecture from random weights."}
    )
    class_weights: list[str] | None = field(
        default=None,
        metadata={"help": "Loss weight of each class, or balanced: inverse to its frequency (1 if unset)."},
    )


@dataclass
class FineTuningArguments(SimMIMTrainingArguments):
    """TrainingArguments with the paper's fine-tuning as defaults."""

    _argument_group_name = "training (all of transformers.TrainingArguments)"

    output_dir: str = field(default="runs/classifier", metadata={"help": "Folder of results, models and pictures."})
    base_learning_rate: float = field(
        default=1.25e-3,
        metadata={"help": "Learning rate of the head for a batch size of 512; scaled by the batch size."},
    )
    layer_decay: float = field(default=0.9, metadata={"help": "Layer-wise decay of the learning rate, 1 for none."})
    lr_scheduler_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Options of the schedule, as JSON. Defaults of simmim_cosine: {"warmup_lr_rate": 0.0002,'
            ' "min_lr_rate": 0.0002}, shares of the peak learning rate.'
        },
    )
    warmup_steps: float = field(default=0.2, metadata={"help": "Warm-up steps, or a share of all steps if below 1."})
    num_train_epochs: float = field(default=100.0, metadata={"help": "Number of epochs."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Training batch size per device."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Evaluation batch size per device."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch or best."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two log entries."})
    weight_average: float | None = field(default=None, metadata={"help": "EMA decay of the weights (none if unset)."})
    seeds: list[int] | None = field(default=None, metadata={"help": "Random seeds, one run each (--seed if unset)."})

    def __post_init__(self):
        super().__post_init__()
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor}: Trainer cannot smooth the labels of mixed"
                " images. Use --label_smoothing, which can."
            )
        if self.lr_scheduler_kwargs is None and self.lr_scheduler_type in SIMMIM_SCHEDULES:
            names = ["warmup_lr_rate"] + ["min_lr_rate"] * (self.lr_scheduler_type == "simmim_cosine")
            self.lr_scheduler_kwargs = dict.fromkeys(names, 2e-4)


@dataclass
class FineTuningRun:
    """One run: its images, output folder, seed and fold."""

    train: LabeledImages
    evaluation: LabeledImages | None
    output_dir: Path
    seed: int
    fold: int | None


@dataclass
class FineTuningOptions:
    """All options of the command."""

    data: FineTuningDataArguments
    augmentation: AugmentationArguments
    model: FineTuningModelArguments
    training: FineTuningArguments


def load_splits(arguments: FineTuningDataArguments) -> tuple[LabeledImages, LabeledImages | None]:
    """Load training images, and validation images if they are named."""
    folded = arguments.num_folds is not None
    if folded and (arguments.validation_dir is not None or arguments.validation_split is not None):
        raise ValueError(
            f"num_folds={arguments.num_folds} needs no validation images, but some are named. Leave one out."
        )
    return load_labeled_splits(arguments, arguments.label_column, needs_validation=not folded)


def plan_runs(options: FineTuningOptions) -> list[FineTuningRun]:
    """Plan a run for each seed and fold.

    Args:
        options: All options.

    Returns:
        The runs.

    Raises:
        ValueError, OSError: If the images cannot be used; the message says why and what to do.
    """
    data, training = options.data, options.training
    everything, validation = load_splits(data)
    seeds = [training.seed] if training.seeds is None else training.seeds
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={seeds} contains duplicates. Give each seed once.")
    if everything.class_names is not None and len(everything.class_names) < 2:
        raise ValueError(
            f"There is only one class, {everything.class_names[0]!r}. Name a folder with a subfolder for each class, or"
            " another --label_column."
        )
    num_folds = data.num_folds
    if training.resume_from_checkpoint and len(seeds) * (num_folds or 1) > 1:
        raise ValueError(
            f"resume_from_checkpoint={training.resume_from_checkpoint!r} is one checkpoint, but there are several runs."
            " Leave it out: each run resumes automatically from its own newest checkpoint."
        )
    runs = []
    for seed in seeds:
        for fold in range(num_folds or 1):
            train, evaluation = everything, validation
            share = data.holdout
            if share is None:
                share = DEFAULT_HOLDOUT if num_folds is None and validation is None else 0.0
            if share and validation is None:
                # Before labels are drawn, so that all label budgets and seeds have the same validation images.
                parts = holdout(everything.labels, share, data.holdout_seed, everything.class_names, everything.groups)
                train, evaluation = (everything.select(part) for part in parts)
            if data.labels_per_class is not None:
                train = train.select(few_labels(train.labels, data.labels_per_class, seed, train.class_names))
            if num_folds is not None:
                parts = folds(train.labels, num_folds, fold, data.holdout_seed, train.class_names, train.groups)
                train, evaluation = (train.select(part) for part in parts)
            if data.max_train_samples is not None:
                # The first images of a folder would all be of one class.
                train = train.select(evenly_spaced(len(train), data.max_train_samples))
            if evaluation is not None and data.max_eval_samples is not None:
                evaluation = evaluation.select(evenly_spaced(len(evaluation), data.max_eval_samples))
            names = [f"seed-{seed}"] * (training.seeds is not None) + [f"fold-{fold}"] * (num_folds is not None)
            output_dir = Path(str(training.output_dir), "-".join(names))
            runs.append(FineTuningRun(train, evaluation, output_dir, seed, fold if num_folds is not None else None))
    return runs


def build_config(arguments: FineTuningModelArguments, images: LabeledImages) -> SimMIMConfig:
    """Build the config of the classifier: the encoder as the paper fine-tunes it, and the classes."""
    config: Any
    if arguments.checkpoint is None:
        if not arguments.encoder:
            raise ValueError(
                "There is no model to train. Set --checkpoint to a pre-trained model, or --encoder to an architecture"
                " to train from scratch."
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
    # Otherwise a config checks changed settings only when it is saved.
    config.validate_class_weights()
    return config


def build_model(arguments: FineTuningModelArguments, config: SimMIMConfig) -> SimMIMForImageClassification:
    """Build the classifier, from the checkpoint or with random weights."""
    if arguments.from_scratch or arguments.checkpoint is None:
        return SimMIMForImageClassification(config)
    name = arguments.checkpoint
    # In full precision, or in mixed precision if it is set, regardless of the saved dtype.
    loading: dict[str, Any] = {"dtype": torch.float32}
    if arguments.stored_config().model_type == SimMIMConfig.model_type:
        loading["ignore_mismatched_sizes"] = True
        model = SimMIMForImageClassification.from_pretrained(name, config=config, **loading)
        stored = arguments.stored_config()
        # The same number of classes, but other ones; or numbers as they are, not in units of their deviation.
        is_other = stored.id2label != config.id2label or (stored.label_std is None) != (config.label_std is None)
        if type(model).__name__ in (stored.architectures or ()) and is_other:
            model.reset_classifier()
        return model
    changes = {} if arguments.drop_path_rate is None else {"drop_path_rate": arguments.drop_path_rate}
    model = SimMIMForImageClassification.from_encoder(
        name, encoder_config=changes, num_labels=config.num_labels, **arguments.geometry(), **loading
    )
    for key in ("id2label", "label2id", "problem_type", "class_weights", "label_mean", "label_std"):
        setattr(model.config, key, getattr(config, key))
    return model


def describe_origin(options: FineTuningOptions, run: FineTuningRun) -> RunOrigin:
    """Provenance of a run, for its model card."""
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
    """Build the trainer of a run, with all checks that must precede the training.

    Args:
        options: All options.
        run: The run.

    Returns:
        The trainer, and the checkpoint to resume from or None.

    Raises:
        ValueError, OSError: If the options or the images are unusable; the message says why and what to do.
    """
    arguments = copy.copy(options.training)
    arguments.output_dir, arguments.seed = str(run.output_dir), run.seed
    if arguments.push_to_hub and run.output_dir != Path(str(options.training.output_dir)):
        # Each of several runs has its own repository.
        name = options.training.hub_model_id or Path(str(options.training.output_dir)).absolute().name
        arguments.hub_model_id = f"{name}-{run.output_dir.name}"
    hub_pushes = open_hub(arguments)
    set_seed(run.seed)
    check_license(arguments)
    data, augmentation = options.data, options.augmentation.augmentation()
    config = build_config(options.model, run.train)
    checkpoint = prepare_output_dir(arguments)
    config.label_mean, config.label_std = label_scale(run.train, checkpoint)
    before = settings_before(checkpoint.parent) if checkpoint is not None else {}
    pixels, image_decoder = copy.copy(data), data.decoder(before)
    statistics = pixels.settle(options.model.checkpoint, config.num_channels, run.train.rows, before)
    settings = {
        "encoder": stable_settings(config.encoder_config),
        "classes": run.train.class_names,
        "from_scratch": options.model.from_scratch,
        "initial weights": initial_weights(options.model.checkpoint),
        "augmentation": vars(options.augmentation),
        **{key: getattr(arguments, key) for key in ("layer_decay", "weight_average")},
        "class_weights": config.class_weights,
        "rescale_factor": pixels.rescale,
        "nodata": pixels.nodata,
        "image_decoder": image_decoder,
        **statistics,
        "seed": run.seed,
        "training images": digest(run.train.rows),
        "evaluation images": None if run.evaluation is None else digest(run.evaluation.rows),
        "labels": hashlib.blake2b(json.dumps(run.train.labels).encode(), digest_size=6).hexdigest(),
    }
    settings = settle_settings(arguments, settings, checkpoint)
    common: dict[str, Any] = {
        "image_size": config.image_size,
        "num_channels": config.num_channels,
        "rescale_factor": pixels.rescale,
        "nodata": pixels.nodata,
        **statistics,
    }
    train_dataset = LabeledImageDataset(
        run.train.rows, augmentation=augmentation, seed=run.seed, image_decoder=image_decoder, **common
    )
    if arguments.dataloader_drop_last and len(train_dataset) < images_per_step(arguments):
        raise ValueError(
            f"{len(train_dataset)} images are fewer than the batch size of {images_per_step(arguments)}. Use a smaller"
            " --per_device_train_batch_size, or --dataloader_drop_last false."
        )
    check_images([train_dataset], data.max_unreadable)
    eval_dataset = None
    if run.evaluation is not None:
        eval_dataset = LabeledImageDataset(
            run.evaluation.rows, crop_ratio=options.augmentation.eval_crop_ratio, **common
        )
        # All of them: an unreadable one would end the run when it is evaluated.
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
            # The processor itself does not crop; `hf-simmim predict` crops as the evaluation does.
            crop_ratio=options.augmentation.eval_crop_ratio,
            **statistics,
        ),
        compute_metrics=classification_metrics(run.train.class_names or ["value"], str(config.problem_type)),
        callbacks=callbacks,
        hub_pushes=hub_pushes,
    )
    trainer.origin = describe_origin(options, run)
    return trainer, checkpoint


def print_plan(
    trainer: ClassifierTrainer, options: FineTuningOptions, run: FineTuningRun, checkpoint: Path | None
) -> None:
    """Print what the run will do."""
    arguments: Any = trainer.args
    model: Any = trainer.model
    weights = None if options.model.from_scratch else options.model.checkpoint
    height, width = model.config.image_size
    evaluated = f", {len(run.evaluation):,} for validation" if run.evaluation is not None else ""
    kind = str(model.config.problem_type).removesuffix("_classification").replace("_", " ")
    groups = parameter_groups(model, arguments.learning_rate, 0.0, arguments.layer_decay, arguments.official)
    lowest = min(group["lr"] for group in groups)
    lines = {
        "Encoder": f"{model.config.encoder_config.model_type}, {model.num_parameters() / 1e6:.1f} M parameters,"
        f" {model.config.num_channels} x {height} x {width} px",
        "Weights": f"from {weights}" if weights else "random",
        "Classes": f"{model.config.num_labels}, {kind}",
        "Images": f"{len(run.train):,} for training{evaluated}",
        "Normalization": normalization(trainer.processing_class),
        "Training": training_line(arguments, planned_steps(arguments, len(run.train))),
        "Layer decay": f"{arguments.layer_decay:g}, peak learning rate {lowest:.3g} for the patch embedding",
        "Output": f"{run.output_dir}" + (f", {describe_resuming(checkpoint, arguments)}" if checkpoint else ""),
    }
    if (steps := planned_steps(arguments, len(run.train))) < FEW_STEPS and options.augmentation.cutmix > 0:
        lines["Note"] = f"{steps} steps are few for the paper's strong augmentation: try --recipe few_labels"
    print_titled(lines)


@one_run()
def execute(
    options: FineTuningOptions, run: FineTuningRun
) -> tuple[ClassifierTrainer, dict[str, Any], np.ndarray | None]:
    """Train and evaluate.

    Args:
        options: All options.
        run: The run.

    Returns:
        The trainer, the contents of the run's `results.json`, and the confusion matrix if there is one.
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
            given: dict[str, Any] = {"predictions": output.predictions, "references": output.label_ids}
            matrix = ConfusionMatrix(names).compute(**given)["confusion_matrix"]
            trainer.final_per_class = PerClassScores(names).compute(**given)["per_class"]
            results["per_class"] = PerClassScores.without_nan(trainer.final_per_class)
            results["warnings"] = missed_in_matrix(matrix, names)
        trainer.final_metrics = results["metrics"]
    if trainer.args.should_save:
        if trainer.eval_dataset is not None:
            write_answers(run.output_dir, output.predictions, output.label_ids)
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
    """Mean and standard deviation over runs of each metric that all runs have."""
    keys = [key for key in results[0]["metrics"] if all(key in result["metrics"] for result in results)]
    columns = {key: [result["metrics"][key] for result in results] for key in keys}
    return {
        key: {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}
        for key, values in columns.items()
    }


def print_summary(summary: dict[str, dict[str, float]], num_runs: int, output_dir: Path, warnings: list[str]) -> None:
    """Print the metrics, classes that the accuracy hides, and the files of results."""
    spread = f" (mean ± standard deviation of {num_runs} runs)" if num_runs > 1 else ""
    print(f"\nOn held-out images{spread}:")
    for key, figures in summary.items():
        title = f"recall ({key.removeprefix('accuracy_')})" if key.startswith("accuracy_") else key
        deviation = f" ± {figures['std']:.4f}" if num_runs > 1 else ""
        print(f"  {title:<28} {figures['mean']:.4f}{deviation}")
    for warning in warnings:
        print(f"Warning: {warning}")
    print_files(output_dir, FINETUNING_FILES)


@dataclass(frozen=True)
class FineTuningResult:
    """Result of a fine-tuning.

    Args:
        model: The trained model; that of the last run if there are several seeds or folds.
        processor: Image processor of the model.
        summary: Mean and standard deviation over the runs of each metric.
        runs: Entry of each run in `results.json`: seed, fold, numbers of images, metrics, and those of each class.
        output_dir: Folder of the results, with a subfolder for each of several runs.
        pictures: Path of `confusion`, if it was drawn.
        warnings: Sentences on classes that the accuracy hides, see `missed_classes`, over all runs.
    """

    model: SimMIMForImageClassification
    processor: SimMIMImageProcessor
    summary: dict[str, dict[str, float]]
    runs: list[dict[str, Any]]
    output_dir: Path
    pictures: dict[str, Path]
    warnings: list[str]


def run(
    data: FineTuningDataArguments,
    augmentation: AugmentationArguments,
    model_arguments: FineTuningModelArguments,
    arguments: FineTuningArguments,
    on_run: Callable[[], None] | None = None,
) -> FineTuningResult:
    """Fine-tune and evaluate, once for each seed and fold; `on_run` is called after each run."""
    options = FineTuningOptions(data, augmentation, model_arguments, arguments)
    if not arguments.should_log:
        disable_progress_bars()
    results, matrices = [], []
    trainer: Any = None
    with in_words(model_arguments.checkpoint):
        # One process reads first; the others use its cache.
        with arguments.main_process_first(desc="loading images"):
            runs = plan_runs(options)
        for planned in runs:
            trainer, result, matrix = execute(options, planned)
            results.append(result)
            if matrix is not None:
                matrices.append(matrix)
            if on_run is not None:
                on_run()
    output_dir = Path(str(arguments.output_dir))
    summary, names = summarize(results), runs[0].train.class_names or []
    total = np.sum(matrices, axis=0)
    warnings = missed_in_matrix(total, names) if matrices else []
    if arguments.should_save:
        write_results({"summary": summary, "warnings": warnings, "runs": results}, output_dir)
        if len(matrices) > 1:
            plot_confusion(total, names, output_dir / "confusion.png")
    if arguments.should_log:
        print_summary(summary, len(results), output_dir, warnings)
    pictures = existing(output_dir, "confusion.png")
    trained = (trainer.model, trainer.processing_class)
    return FineTuningResult(*trained, summary, results, output_dir, pictures, warnings)


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
