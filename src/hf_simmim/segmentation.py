"""Predictions of a segmentation model: brought to the size of annotations, measured by Trainer, and drawn."""

import colorsys
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import nn
from transformers import EvalPrediction

from .metrics import MeanIoU
from .visualization import font_for

# What Trainer pads rows of different lengths with.
TRAINER_PADDING = -100
# Classes whose logits are enlarged at a time: those of all at the size of a large photo would fill a GPU.
CLASSES_AT_ONCE = 16
# Keys of a batch that the model has no use for.
EVALUATION_KEYS = ("annotations", "sizes")

COLUMNS = ("image", "annotation", "prediction")
NO_CLASS_GREY = 160


def largest_logit(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Classes at another size: logits (K, h, w), enlarged bilinearly, to int64 (height, width)."""
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
        logits: Tensor (B, K, h, w), maybe in a tuple with other outputs.
        labels: `annotations` (B, N) and `sizes` (B, 4) of `CollatePairs`.

    Returns:
        int32 tensor (B, N), -100 behind the end of an annotation.
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
        ignore_index: Class id of pixels that do not count.
    """

    def __init__(self, class_names: Sequence[str], ignore_index: int):
        self.ignore_index = ignore_index
        self.metric = MeanIoU(class_names, ignore_index)
        self.iou: dict[str, float] = {}  # of each class, at the last evaluation

    def __call__(self, evaluation: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Count a batch; the figures after the last one."""
        predictions, references = (
            part.cpu() if isinstance(part, torch.Tensor) else torch.as_tensor(part)
            for part in (evaluation.predictions, evaluation.label_ids[0])
        )
        references = references.masked_fill(references == TRAINER_PADDING, self.ignore_index)
        self.metric.add_batch(predictions=predictions.numpy(), references=references.numpy())
        if not compute_result:
            return {}
        figures = self.metric.compute()
        self.iou = figures["iou"]
        return {key: figures[key] for key in ("mean_iou", "pixel_accuracy")}


def forget_evaluation_keys(model: nn.Module) -> None:
    """Let a model's forward be called with what only the evaluation uses: Trainer passes the whole batch."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]):
        return args, {key: value for key, value in kwargs.items() if key not in EVALUATION_KEYS}

    model.register_forward_pre_hook(hook, with_kwargs=True)


def class_colours(count: int) -> np.ndarray:
    """A colour for each class, uint8 (count, 3): hues a golden angle apart, in turns bright and dark."""
    colours = [
        colorsys.hsv_to_rgb(0.618034 * index % 1, (0.85, 0.55)[index // 2 % 2], (1.0, 0.65)[index % 2])
        for index in range(count)
    ]
    return (np.array(colours) * 255).round().astype(np.uint8)


def draw_segmentations(
    pictures: Sequence[np.ndarray],
    annotations: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    class_names: Sequence[str],
    side: int = 224,
) -> Image.Image:
    """Draw image | annotation | prediction, one image a row, above the colours of the classes that are seen.

    Args:
        pictures: uint8 arrays (h, w, 3).
        annotations: Class ids (H, W); what is no class is grey, in the prediction too.
        predictions: Class ids (H, W).
        class_names: Name of each class.
        side: Longer side of a drawn image in pixels.

    Returns:
        The picture.
    """
    colours = np.vstack([class_colours(len(class_names)), np.full((1, 3), NO_CLASS_GREY, np.uint8)])
    gap, header = 6, 22
    font = font_for(class_names, 13)
    rows, seen = [], set()
    for picture, annotation, prediction in zip(pictures, annotations, predictions, strict=True):
        is_class = (annotation >= 0) & (annotation < len(class_names))
        height, width = annotation.shape
        zoom = side / max(height, width)
        size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
        cells = [Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)]
        for ids in (annotation, prediction):
            shown = np.where(is_class, ids, len(class_names))
            seen |= set(np.unique(shown).tolist())
            cells.append(Image.fromarray(colours[shown]).resize(size, Image.Resampling.NEAREST))
        rows.append(cells)
    names = [*class_names, "no class"]
    legend = [(names[index], tuple(colours[index].tolist())) for index in sorted(seen)]
    total_width = len(COLUMNS) * (side + gap) + gap
    entry = max(math.ceil(font.getlength(name)) for name, _ in legend) + 30
    columns = max(1, total_width // entry)
    height = header + sum(cells[0].height + gap for cells in rows) + math.ceil(len(legend) / columns) * header
    canvas = Image.new("RGB", (max(total_width, entry), height), "white")
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(COLUMNS):
        draw.text((gap + column * (side + gap) + side / 2, header / 2), title, fill="black", font=font, anchor="mm")
    top = header
    for cells in rows:
        for column, cell in enumerate(cells):
            canvas.paste(cell, (gap + column * (side + gap), top))
        top += cells[0].height + gap
    for number, (name, colour) in enumerate(legend):
        left, middle = gap + number % columns * entry, top + number // columns * header + header / 2
        draw.rectangle((left, middle - 6, left + 12, middle + 6), fill=colour)
        draw.text((left + 18, middle), name, fill="black", font=font, anchor="lm")
    return canvas
