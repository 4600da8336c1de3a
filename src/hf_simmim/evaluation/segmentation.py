"""Evaluation of segmentation models: predictions at the size of annotations, and metrics for Trainer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import EvalPrediction

from .metrics import MeanIoU, count_pixels

# Value that Trainer pads rows of different lengths with.
TRAINER_PADDING = -100
# Classes whose logits are resized at a time: all classes at the size of a large photo would fill a GPU.
CLASSES_AT_ONCE = 16
# Keys of a batch that the model does not take.
EVALUATION_KEYS = ("annotations", "sizes")


def largest_logit(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Classes at another size: argmax of bilinearly resized logits (K, h, w), as int64 (height, width)."""
    best = classes = None
    for start in range(0, logits.shape[0], CLASSES_AT_ONCE):
        part = logits[None, start : start + CLASSES_AT_ONCE].float()
        value, index = F.interpolate(part, size=size, mode="bilinear", align_corners=False)[0].max(dim=0)
        if best is None or classes is None:
            best, classes = value, index
        else:
            classes = torch.where(value > best, index + start, classes)
            best = torch.maximum(value, best)
    return classes  # type: ignore[return-value]


def classes_of_annotations(logits: Any, labels: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Trainer's `preprocess_logits_for_metrics`: a class for each pixel of the annotations, instead of logits.

    Args:
        logits: Tensor (B, K, h, w), possibly in a tuple with other outputs.
        labels: `annotations` (B, N) and `sizes` (B, 4) of `CollatePairs`.

    Returns:
        int32 tensor (B, N), padded with -100 after the end of an annotation.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    annotations, sizes = labels
    predictions = torch.full_like(annotations, TRAINER_PADDING)
    for prediction, scores, (height, width, *size) in zip(predictions, logits, sizes.tolist(), strict=True):
        classes = largest_logit(scores[:, :height, :width], (size[0], size[1])).flatten()
        prediction[: len(classes)] = classes
    return predictions


class SegmentationMetrics:
    """Trainer's `compute_metrics`, batch by batch (`batch_eval_metrics`): mean IoU and pixel accuracy.

    Args:
        class_names: Name of each class.
        ignore_index: Class id of pixels that are ignored.
    """

    metric_names = ("mean_iou", "pixel_accuracy")

    def __init__(self, class_names: Sequence[str], ignore_index: int):
        self.ignore_index = ignore_index
        self.metric = MeanIoU(class_names, ignore_index)
        self.iou: dict[str, float] = {}  # by class name, at the last evaluation
        # Of each image, at the last evaluation: pixels that are correct, of the class, and predicted as it, (N, 3, K).
        self.image_counts: np.ndarray | None = None
        self._counts: list[np.ndarray] = []

    def __call__(self, evaluation: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Add a batch; return the metrics after the last one."""
        predictions, references = (
            part.cpu() if isinstance(part, torch.Tensor) else torch.as_tensor(part)
            for part in (evaluation.predictions, evaluation.label_ids[0])
        )
        references = references.masked_fill(references == TRAINER_PADDING, self.ignore_index)
        self.metric.add_batch(predictions=predictions.numpy(), references=references.numpy())
        for predicted, true in zip(predictions.numpy(), references.numpy(), strict=True):
            self._counts.append(count_pixels(predicted, true, len(self.metric.class_names), self.ignore_index))
        if not compute_result:
            return {}
        self.image_counts, self._counts = np.stack(self._counts), []
        figures = self.metric.compute()
        self.iou = figures["iou"]
        return {key: figures[key] for key in self.metric_names}


def forget_evaluation_keys(model: nn.Module) -> None:
    """Drop keys that only the evaluation uses from a model's inputs: Trainer passes the whole batch."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]):
        return args, {key: value for key, value in kwargs.items() if key not in EVALUATION_KEYS}

    model.register_forward_pre_hook(hook, with_kwargs=True)
