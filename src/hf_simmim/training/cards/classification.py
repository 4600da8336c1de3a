"""The model card of a fine-tuned classifier."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from ...evaluation.metrics import MAX_LOGGED_CLASSES, missed_classes
from ...hub.card import (
    Table,
    augmentation_table,
    citations,
    encoder_table,
    listed_classes,
    pixels_table,
    result_entry,
)
from ...hub.provenance import RunOrigin
from .facts import CardFacts, held_out_images, measured_after, render_training, session_time

# Title in the card and metric type of the Hub, if there is one, by name of the metric.
CLASSIFICATION_FIGURES = {
    "accuracy": ("accuracy", "accuracy"),
    "top5_accuracy": ("top-5 accuracy", "accuracy"),
    "balanced_accuracy": ("balanced accuracy", "accuracy"),
    "mean_average_precision": ("mean average precision", None),
    "micro_f1": ("micro F1", "f1"),
    "macro_precision": ("macro precision", None),
    "macro_f1": ("macro F1", "f1"),
    "macro_average_precision": ("macro average precision", None),
    "macro_auroc": ("macro AUROC", None),
    "mae": ("mean absolute error", None),
    "rmse": ("root mean squared error", None),
    "r2": ("R²", None),
    "loss": ("loss", None),
}
SHARES = ("accuracy", "top5_accuracy", "balanced_accuracy")
OF_A_CLASS = "accuracy_"
# Columns of the table of the classes.
CLASS_COLUMNS = {
    "recall": "recall",
    "precision": "precision",
    "f1": "F1",
    "average_precision": "average precision",
    "auroc": "AUROC",
}


def classification_card(trainer: Any) -> ModelCard:
    """Render the model card of a classifier, during or after its training.

    Args:
        trainer: Trainer of the classifier, whose data sets are `LabeledImageDataset`.

    Returns:
        The card; `save` writes it.
    """
    model: Any = trainer.model
    config, origin = model.config, trainer.origin
    kind = config.problem_type or "single_label_classification"
    metrics = _metrics(trainer)
    names = [] if kind == "regression" else [str(name) for name in config.id2label.values()]
    picture = Path(str(trainer.args.output_dir)) / "confusion.png"
    return render_training(
        trainer,
        config,
        CardFacts(
            kind="classifier",
            auto_class="AutoModelForImageClassification",
            num_parameters=model.num_parameters(),
            tags=(kind.replace("_", "-"),),
            pipeline_tag="image-classification",
            training_type="fine-tuning",
            base_model=origin.base_model,
            eval_results=[] if kind == "regression" else _entries(metrics, origin),
            model_rows=encoder_table(config, model),
            data_rows=_data_table(trainer),
            training_rows=_changes(trainer),
            time=session_time(trainer),
            citations=citations(config),
            values={
                "task": _task(kind, len(names)),
                "num_labels": config.num_labels,
                "class_names": names,
                "is_multi_label": kind == "multi_label_classification",
                "results_intro": _results_intro(trainer),
                "results": _results(metrics),
                "class_results": {
                    key.removeprefix(OF_A_CLASS): f"{value:.1%}"
                    for key, value in metrics.items()
                    if key.startswith(OF_A_CLASS)
                },
                **_class_values(trainer.final_per_class, metrics.get("accuracy")),
                "pictures": [
                    {
                        "file": picture.name,
                        "alt": "confusion matrix",
                        "caption": "Confusion matrix: rows are the true classes, columns the predicted ones.",
                    }
                ]
                * (not trainer.is_in_train and picture.exists()),
                "class_list": listed_classes(names),
            },
        ),
    )


def _metrics(trainer: Any) -> dict[str, float]:
    """Latest metrics by name without prefix; values that are NaN or not numbers are left out."""
    metrics = trainer.final_metrics
    if metrics is None:
        evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
        metrics = {key.removeprefix("eval_"): value for key, value in evaluations[-1].items()} if evaluations else {}
    return {key: float(value) for key, value in metrics.items() if isinstance(value, (int, float)) and value == value}


def _entries(metrics: dict[str, float], origin: RunOrigin) -> list[EvalResult]:
    if origin.evaluation is None:
        return []
    found = [
        (title, kind, metrics[key]) for key, (title, kind) in CLASSIFICATION_FIGURES.items() if kind and key in metrics
    ]
    return [result_entry(origin.evaluation, title, value, kind) for title, kind, value in found]


def _class_values(per_class: dict[str, dict[str, float]] | None, accuracy: float | None) -> dict[str, Any]:
    """Values of the template: the table of the classes, those with the lowest F1 if they are many, and warnings."""
    if not per_class or accuracy is None:
        return {}
    names = list(per_class)
    if len(names) > MAX_LOGGED_CLASSES:
        # Those without examples, which have no F1, last.
        names = sorted(names, key=lambda name: (per_class[name]["f1"] != per_class[name]["f1"], per_class[name]["f1"]))
        names = names[:MAX_LOGGED_CLASSES]
    columns = [name for name in CLASS_COLUMNS if name in per_class[names[0]]]
    rows = [
        [name, f"{per_class[name]['support']:,}", *(_share(per_class[name][column]) for column in columns)]
        for name in names
    ]
    return {
        "class_columns": ["class", "images", *(CLASS_COLUMNS[column] for column in columns)],
        "class_rows": rows,
        "num_classes_left_out": len(per_class) - len(rows),
        "warnings": missed_classes(per_class, accuracy),
    }


def _share(value: float) -> str:
    return "not defined" if value != value else f"{value:.1%}"


def _task(kind: str, num_classes: int) -> str:
    if kind == "regression":
        return "predicts a number from an image"
    if kind == "multi_label_classification":
        return f"assigns any of {num_classes:,} labels to an image"
    return f"classifies images into {num_classes:,} classes"


def _results(metrics: dict[str, float]) -> Table:
    return {
        title: f"**{metrics[key]:.1%}**" if key in SHARES else f"{metrics[key]:.4g}"
        for key, (title, _) in CLASSIFICATION_FIGURES.items()
        if key in metrics
    }


def _results_intro(trainer: Any) -> str:
    evaluation: Any = trainer.eval_dataset
    source = trainer.origin.evaluation
    where = f" ({source})" if source is not None else ""
    number = f"{len(evaluation):,} held-out images" if evaluation is not None else "held-out images"
    measured = any("eval_loss" in entry for entry in trainer.state.log_history)
    # Final metrics are always those of the saved weights.
    when = f", {measured_after(trainer, 'eval_loss')}" if measured and trainer.final_metrics is None else ""
    return f"On {number}{where}{when}:"


def _data_table(trainer: Any) -> Table:
    dataset: Any = trainer.train_dataset
    augmentation = dataset.augmentation
    crops = augmentation_table(None, 0, 0)
    if augmentation is not None:
        crops = augmentation_table(augmentation.crop_scale, augmentation.flip, augmentation.vertical_flip)
    return {
        "validation images": held_out_images(trainer),
        **crops,
        **pixels_table(trainer.processing_class),
    }


def _changes(trainer: Any) -> Table:
    """Describe augmentation, mixing and smoothing of labels, and weight averaging."""
    augmentation: Any = trainer.train_dataset.augmentation  # type: ignore[union-attr]
    mixing: Any = trainer.data_collator
    table: Table = {}
    if augmentation is not None:
        jitter = f"color jitter of {augmentation.color_jitter:g}" if augmentation.color_jitter else None
        table["colors"] = f"RandAugment `{augmentation.rand_augment}`" if augmentation.rand_augment else jitter
        table["random erasing"] = f"{augmentation.random_erasing:.0%}" if augmentation.random_erasing else None
    for title, name in (("mixup", "mixup_alpha"), ("CutMix", "cutmix_alpha"), ("label smoothing", "label_smoothing")):
        value = getattr(mixing, name, None)
        table[title] = f"{value:g}" if value else None
    # Weights that are pushed during training are those of a step.
    average = None if trainer.is_in_train else getattr(trainer.args, "weight_average", None)
    table["weights"] = f"exponential moving average over the steps, decay {average:g}" if average else None
    return table
