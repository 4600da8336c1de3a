"""What the loss of a training takes from its labels: the weights of classes, and the scale of numbers."""

from pathlib import Path
from typing import Any

import numpy as np

from ...data.labeled.images import LabeledImages
from ...model.configuration_simmim import SimMIMConfig


def class_weights(given: list[str] | None, images: LabeledImages) -> list[float] | None:
    """Parse the loss weights of the classes.

    Args:
        given: Numbers as text, or "balanced", or None.
        images: Labeled training images.

    Returns:
        The weight of each class, or None.

    Raises:
        ValueError: If they are not numbers, or there are no classes.
    """
    if given is None:
        return None
    if images.class_names is None:
        raise ValueError(f"class_weights={given} needs classes, but the labels are numbers. Leave it out.")
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
        raise ValueError(f"class_weights={given} must be balanced or {num_classes} numbers, one for each class.")
    return weights


def label_scale(images: LabeledImages, checkpoint: Path | None) -> tuple[float | None, float | None]:
    """Mean and standard deviation of labels that are numbers, so that a model begins at their mean.

    Args:
        images: Labeled training images.
        checkpoint: Checkpoint that a run resumes from, whose numbers it keeps.

    Returns:
        Mean and standard deviation, 1 if all are the same; None for classes.
    """
    if images.problem_type != "regression":
        return None, None
    if checkpoint is not None:
        config: Any = SimMIMConfig.from_pretrained(checkpoint)
        return config.label_mean, config.label_std
    is_constant = min(images.labels) == max(images.labels)
    return float(np.mean(images.labels)), 1.0 if is_constant else float(np.std(images.labels))
