"""The model card of a segmentation model."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from ...evaluation.segmentation import SegmentationMetrics
from ...hub.card import (
    UPERNET,
    Table,
    citations,
    encoder_table,
    listed,
    listed_classes,
    millions,
    pixels_table,
    result_entry,
)
from ...hub.provenance import RunOrigin
from .facts import CardFacts, held_out_images, measured_after, render_training, session_time

# Title in the card and metric type of the Hub, by name of the metric.
SEGMENTATION_FIGURES = {
    "eval_mean_iou": ("mean IoU", "mean_iou"),
    "eval_pixel_accuracy": ("pixel accuracy", "accuracy"),
}
PICTURE = "segmentation.png"


def segmentation_card(trainer: Any) -> ModelCard:
    """Render the model card of UperNet on a backbone of this package, during or after its training.

    Args:
        trainer: Trainer of the model, whose data sets are `SegmentationDataset`.

    Returns:
        The card; `save` writes it.
    """
    model: Any = trainer.model
    dataset: Any = trainer.train_dataset
    config: Any = model.config.backbone_config
    origin, names = trainer.origin, dataset.labels.class_names
    evaluations = [entry for entry in trainer.state.log_history if "eval_mean_iou" in entry]
    metrics = evaluations[-1] if evaluations else {}
    return render_training(
        trainer,
        config,
        CardFacts(
            kind="segmentation",
            auto_class="AutoModelForSemanticSegmentation",
            num_parameters=model.num_parameters(),
            tags=("semantic-segmentation", "upernet"),
            pipeline_tag="image-segmentation",
            training_type="fine-tuning",
            base_model=origin.base_model,
            eval_results=_entries(metrics, origin),
            model_rows={"decoder": "UperNet", **encoder_table(config, model), "parameters": _parameters(model)},
            data_rows=_data_table(trainer),
            training_rows={},
            time=session_time(trainer),
            citations=[*citations(config), UPERNET],
            values={
                "num_labels": len(names),
                "class_names": names,
                "short_side": dataset.short_side,
                "results_intro": _results_intro(trainer) if metrics else "",
                "results": {
                    title: f"**{metrics[key]:.1%}**"
                    for key, (title, _) in SEGMENTATION_FIGURES.items()
                    if key in metrics
                },
                "class_results": _class_table(trainer) if metrics else {},
                "pictures": [
                    {
                        "file": PICTURE,
                        "alt": "image | annotation | prediction",
                        "caption": "Validation images with their annotations and predictions.",
                    }
                ]
                * (not trainer.is_in_train and (Path(str(trainer.args.output_dir)) / PICTURE).exists()),
                "class_list": listed_classes(names),
            },
        ),
    )


def _entries(metrics: dict[str, float], origin: RunOrigin) -> list[EvalResult]:
    if origin.evaluation is None:
        return []
    return [
        result_entry(origin.evaluation, title, metrics[key], kind, task="image-segmentation")
        for key, (title, kind) in SEGMENTATION_FIGURES.items()
        if key in metrics
    ]


def _results_intro(trainer: Any) -> str:
    evaluation: Any = trainer.eval_dataset
    number, source = len(evaluation), trainer.origin.evaluation
    where = f" ({source})" if source is not None else ""
    counted = f"{number:,} held-out images" if number > 1 else "1 held-out image"
    return (
        f"On {counted}{where}, evaluated as a whole at the size of the annotations,"
        f" {measured_after(trainer, 'eval_mean_iou')}:"
    )


def _class_table(trainer: Any) -> Table:
    """IoU of each class at the last evaluation; a class in neither annotations nor predictions has none."""
    metrics = trainer.compute_metrics
    found = metrics.iou if isinstance(metrics, SegmentationMetrics) else {}
    return {name: f"{value:.1%}" if value == value else "absent" for name, value in found.items()}


def _parameters(model: Any) -> str:
    return f"{millions(model.backbone.num_parameters())} in the backbone, {millions(model.num_parameters())} in total"


def _data_table(trainer: Any) -> Table:
    dataset: Any = trainer.train_dataset
    height, width = dataset.crop_size
    share = dataset.max_class_share
    return {
        "validation images": held_out_images(trainer),
        "image size": f"shorter side of {dataset.short_side} px" if dataset.short_side else "original",
        "crops": f"{height} x {width} px (height x width), of images scaled by {listed(list(dataset.scales))}"
        + (f", at most {share:.0%} of a single class where possible" if share < 1 else ""),
        "flips": "50% horizontal",
        "colors": "photometric distortion of 8-bit RGB images" if dataset.pixels.num_channels == 3 else None,
        "ignored class ids": f"{dataset.labels.ignore_index}" + (" and 0" if dataset.labels.reduce_labels else ""),
        **pixels_table(trainer.processing_class),
    }
