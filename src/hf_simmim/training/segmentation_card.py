"""The model card of a segmentation model, and a Trainer that writes it."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from ..evaluation.segmentation import SegmentationMetrics
from ..hub.card import (
    UPERNET,
    Table,
    card_metadata,
    citations,
    encoder_table,
    listed,
    listed_classes,
    millions,
    pixels_table,
    render_card,
    result_entry,
)
from ..hub.provenance import RunOrigin
from .run_facts import (
    emissions_entry,
    hardware_table,
    layer_decay,
    measured_after,
    optimization_table,
    session_time,
    start,
    steps,
    total_steps,
    training_values,
)

# Figures by the names that metrics have here: title in the card, and type for the metadata.
FIGURES = {"eval_mean_iou": ("mean IoU", "mean_iou"), "eval_pixel_accuracy": ("pixel accuracy", "accuracy")}
PICTURE = "segmentation.png"


def segmentation_card(trainer: Any) -> ModelCard:
    """Render the card of UperNet on one of our backbones, of what its training has done so far.

    Args:
        trainer: Its trainer, whose data sets are `SegmentationDataset`.

    Returns:
        The card; `save` writes it.
    """
    arguments, model = trainer.args, trainer.model
    dataset: Any = trainer.train_dataset
    config: Any = model.config.backbone_config  # type: ignore[union-attr]
    origin, names = trainer.origin, dataset.labels.class_names
    values = training_values(trainer, config)
    num_steps = total_steps(trainer)
    metrics: dict[str, float] = next(
        (entry for entry in reversed(trainer.state.log_history) if "eval_mean_iou" in entry), {}
    )
    return render_card(
        "segmentation",
        card_metadata(
            values["title"],
            ["simmim", "semantic-segmentation", "upernet", config.encoder_config.model_type],
            pipeline_tag="image-segmentation",
            images=origin.images,
            base_model=origin.base_model,
            weights_license=getattr(arguments, "hub_license", None),
            eval_results=_entries(metrics, origin),
            co2_eq_emissions=emissions_entry(trainer, "fine-tuning"),
        ),
        **values,
        auto_class="AutoModelForSemanticSegmentation",
        num_parameters=millions(model.num_parameters()),  # type: ignore[operator, union-attr]
        start=start(origin),
        num_labels=len(names),
        class_names=names,
        short_side=dataset.short_side,
        results_intro=_results_intro(trainer) if metrics else "",
        results={title: f"**{metrics[key]:.1%}**" for key, (title, _) in FIGURES.items() if key in metrics},
        class_results=_class_table(trainer) if metrics else {},
        pictures=[
            {
                "file": PICTURE,
                "alt": "image | annotation | prediction",
                "caption": "Images that were not trained on, with their annotations and the answers.",
            }
        ]
        * (not trainer.is_in_train and (Path(str(arguments.output_dir)) / PICTURE).exists()),
        class_list=listed_classes(names),
        model_rows={"decoder": "UperNet", **encoder_table(config, model), "parameters": _parameters(model)},
        data_rows=_data_table(trainer),
        training_rows={
            "steps": steps(trainer, num_steps),
            "started from": origin.base_model or origin.checkpoint or "fresh weights",
            **optimization_table(arguments, num_steps),
            "layer decay": layer_decay(arguments),
            **hardware_table(trainer, session_time(trainer)),
        },
        base_model=origin.base_model,
        citations=[*citations(config), UPERNET],
    )


def _entries(metrics: dict[str, float], origin: RunOrigin) -> list[EvalResult]:
    if origin.evaluation is None:
        return []
    return [
        result_entry(origin.evaluation, title, metrics[key], kind, task="image-segmentation")
        for key, (title, kind) in FIGURES.items()
        if key in metrics
    ]


def _results_intro(trainer: Any) -> str:
    evaluation: Any = trainer.eval_dataset
    number, source = len(evaluation), trainer.origin.evaluation
    where = f" ({source})" if source is not None else ""
    counted = f"{number:,} images that were" if number > 1 else "1 image that was"
    return (
        f"On {counted} not trained on{where}, whole and at the size of the annotations,"
        f" {measured_after(trainer, 'eval_mean_iou')}:"
    )


def _class_table(trainer: Any) -> Table:
    """IoU of each class at the last evaluation; of one that neither annotations nor answers have there is none."""
    metrics = trainer.compute_metrics
    found = metrics.iou if isinstance(metrics, SegmentationMetrics) else {}
    return {name: f"{value:.1%}" if value == value else "in none of the images" for name, value in found.items()}


def _parameters(model: Any) -> str:
    return f"{millions(model.backbone.num_parameters())} in the backbone, {millions(model.num_parameters())} in all"


def _data_table(trainer: Any) -> Table:
    dataset: Any = trainer.train_dataset
    evaluation: Any = trainer.eval_dataset
    origin, processor = trainer.origin, trainer.processing_class
    height, width = dataset.crop_size
    share = dataset.max_class_share
    return {
        "images": str(origin.images) if origin.images else None,
        "trained on": f"{len(dataset):,}",
        "evaluated on": f"{len(evaluation):,}" + (f" ({origin.held_out})" if origin.held_out else ""),
        "size": f"shorter side of {dataset.short_side} px" if dataset.short_side else "that of each image",
        "crops": f"{height} x {width} px (height x width), at {listed(list(dataset.scales))} times that size"
        + (f", no class more than {share:.0%} of one where such a crop is found" if share < 1 else ""),
        "flips": "50% left to right",
        "colours": "distorted at random, of RGB images of 8 bits" if dataset.pixels.num_channels == 3 else None,
        "pixels without a class": f"those of {dataset.labels.ignore_index}"
        + (" and of 0" if dataset.labels.reduce_labels else ""),
        **pixels_table(processor, dataset.pixels.num_channels),
    }
