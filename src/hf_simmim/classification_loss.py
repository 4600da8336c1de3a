"""Losses of a classifier: integer labels, soft labels, several labels, and numbers."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    problem_type: str | None = None,
    class_weights: Sequence[float] | None = None,
    num_items_in_batch: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Mean loss over the images of a batch.

    Args:
        logits: Tensor of shape (B, K).
        labels: Classes, integers of shape (B,), -100 where an image has none; probabilities of the classes, as mixup
            and label smoothing make them, floats of shape (B, K); for several labels 0 or 1, of shape (B, K); for
            regression numbers of shape (B, K), or (B,) where K is 1.
        problem_type: One of `PROBLEM_TYPES`. None for regression where K is 1, else for one class an image.
        class_weights: Factor of the loss of each class. The mean is over images, not over weights, so that parts of a
            batch add up: weights that are 1 on average leave the scale as it is.
        num_items_in_batch: Number of labels of the whole batch that are not -100, where this is a part of it, as
            Trainer counts them: elements, so that an image of soft labels has K of them.

    Returns:
        float32 scalar. The losses of the parts of a batch add up to that of the batch if `num_items_in_batch` is given.

    Raises:
        ValueError: If labels and problem type do not fit each other.
    """
    if problem_type is None:
        problem_type = "regression" if logits.shape[1] == 1 else "single_label_classification"
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"problem_type={problem_type!r} is unknown. Use one of: {', '.join(PROBLEM_TYPES)}.")
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float()
        weights = (
            None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32, device=logits.device)
        )
        if problem_type == "single_label_classification" and not labels.is_floating_point():
            return _integer_loss(logits, labels, weights, num_items_in_batch)
        if problem_type == "regression" and labels.ndim == 1 and logits.shape[1] == 1:
            labels = labels[:, None]
        if labels.shape != logits.shape:
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} and type {labels.dtype} do not fit logits of shape"
                f" {tuple(logits.shape)}: {_expected(problem_type)}."
            )
        labels = labels.float()
        if problem_type == "single_label_classification":
            losses: Any = -labels * F.log_softmax(logits, dim=1)
        elif problem_type == "multi_label_classification":
            losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        else:
            losses = (logits - labels).square()
        if weights is not None:
            losses = losses * weights
        count = losses.numel() if num_items_in_batch is None else num_items_in_batch
        # One loss an image for soft labels, one an element for the others.
        return losses.sum() / count * (logits.shape[1] if problem_type == "single_label_classification" else 1)


def _integer_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None,
    num_items_in_batch: torch.Tensor | float | None,
) -> torch.Tensor:
    if labels.shape != logits.shape[:1]:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype} do not fit logits of shape"
            f" {tuple(logits.shape)}: {_expected('single_label_classification')}."
        )
    total = F.cross_entropy(logits, labels.long(), weight=weights, reduction="sum")
    count: Any = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
    # A batch without any label has no loss, rather than one that is no number.
    return total / max(count, 1) if not isinstance(count, torch.Tensor) else total / count.clamp(min=1)


def _expected(problem_type: str) -> str:
    return {
        "single_label_classification": "one class an image needs integers (B,), or probabilities (B, K)",
        "multi_label_classification": "several labels need 0 or 1 for each class (B, K)",
        "regression": "regression needs a number for each output (B, K)",
    }[problem_type]
