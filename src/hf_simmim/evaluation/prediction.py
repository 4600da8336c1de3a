"""Predictions of classifiers and segmentation models for whole images, and the columns of their tables."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.whole_images import CollateReadable, ImageGroup
from ..visualization.grids import class_colors
from .segmentation import largest_logit

# Pillow has palettes of at most as many colors.
PALETTE_SIZE = 256


@dataclass(frozen=True)
class Prediction:
    """What a model predicts for an image.

    Args:
        index: Index of the image.
        output: Logits (K,), or classes int64 (H, W) of the stored image; None if the image cannot be read.
        reason: Why it cannot be read.
    """

    index: int
    output: torch.Tensor | None
    reason: str = ""


def predict_images(
    model: nn.Module,
    dataset: Any,
    stride: int = 1,
    batch_size: int = 1,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Iterator[Prediction]:
    """Predict one image after the other, with a progress bar.

    Args:
        model: A classifier or segmentation model of transformers; it is moved to the device and set to evaluation.
        dataset: `WholeImageDataset`, or `PreparedImages` for segmentation.
        stride: Images are padded with zeros to multiples of it, in pixels.
        batch_size: Number of images that are loaded, and run if they have one size, at once.
        num_workers: Number of processes that load images.
        device: Device to compute on.
        dtype: Dtype of autocast; None disables it.

    Yields:
        The prediction of each image, in the order of the data set.
    """
    device = torch.device(device)
    model.to(device).eval()
    loader = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=CollateReadable(stride))
    with tqdm(total=len(dataset), desc="predicting", unit="image") as progress:
        for batch in loader:
            found = [Prediction(index, None, reason) for index, reason in batch.unreadable]
            for group in batch.groups:
                # Not around the loop: a generator would leave gradients off for its caller.
                with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype is not None):
                    logits = model(pixel_values=group.pixel_values.to(device)).logits
                outputs = _outputs(logits, group)
                found += [Prediction(index, output) for index, output in zip(group.indices, outputs, strict=True)]
            yield from sorted(found, key=lambda prediction: prediction.index)
            progress.update(batch.num_images)


def _outputs(logits: torch.Tensor, group: ImageGroup) -> list[torch.Tensor]:
    """Logits (K,) of each image, or classes (H, W) at the size of the stored image, on the CPU."""
    if logits.ndim == 2:
        return list(logits.float().cpu())
    sizes = zip(group.prepared_sizes, group.stored_sizes, strict=True)
    return [
        largest_logit(scores[:, :height, :width], stored).cpu()
        for scores, ((height, width), stored) in zip(logits, sizes, strict=True)
    ]


def class_names(config: Any) -> list[str]:
    """Names of a model's classes, in the order of its logits; names that occur twice have their number behind them."""
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    counts = Counter(names)
    return [f"{name} ({index})" if counts[name] > 1 else name for index, name in enumerate(names)]


def problem_type(config: Any) -> str:
    """The kind of a classifier, as transformers' losses understand a config that does not tell."""
    return config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")


def classification_table(
    images: Sequence[str], logits: torch.Tensor, names: Sequence[str], kind: str, threshold: float = 0.5
) -> tuple[pyarrow.Table, list[list[int]]]:
    """The table of a classifier's predictions.

    Args:
        images: Names of the images.
        logits: float32 tensor (N, K).
        names: Names of the K classes.
        kind: `problem_type` of the config.
        threshold: Probability from which on a class is predicted, if an image may have several.

    Returns:
        A row for each image: `name`; `predicted` and `probability`, the class and its probability, for one class;
        `predicted`, names with "; " between them, for several; `probability_CLASS` for each class. For numbers `value`,
        or `value_NAME` for each of several. And the indices of the classes that are predicted for each image, none for
        numbers.

    Raises:
        ValueError: If a logit is not finite.
    """
    if not torch.isfinite(logits).all():
        image = images[int((~torch.isfinite(logits)).any(dim=1).nonzero()[0])]
        raise ValueError(
            f"The model's output for {image} is not finite. Has its training diverged? With --precision fp16, use fp32."
        )
    columns: dict[str, Any] = {"name": list(images)}
    chosen: list[list[int]] = [[] for _ in images]
    if kind == "regression":
        titles = ["value"] if len(names) == 1 else [f"value_{name}" for name in names]
        return pyarrow.table(columns | dict(zip(titles, logits.numpy().T, strict=True))), chosen
    if kind == "multi_label_classification":
        shares = logits.sigmoid()
        chosen = [row.nonzero()[:, 0].tolist() for row in shares >= threshold]
        columns["predicted"] = pyarrow.array(["; ".join(names[index] for index in row) for row in chosen])
    else:
        shares = logits.softmax(dim=1)
        # Of the logits, like the accuracy: probabilities of different logits may be rounded to one number.
        best = logits.argmax(dim=1)
        chosen = [[int(index)] for index in best]
        columns["predicted"] = [names[index] for index in best.tolist()]
        columns["probability"] = shares.gather(1, best[:, None])[:, 0].numpy()
    columns |= {f"probability_{name}": share for name, share in zip(names, shares.numpy().T, strict=True)}
    return pyarrow.table(columns), chosen


def segmentation_table(
    images: Sequence[str], masks: Sequence[str], shares: np.ndarray, names: Sequence[str]
) -> pyarrow.Table:
    """The table of segmented images.

    Args:
        images: Names of the images.
        masks: Paths of their masks.
        shares: Share of an image's pixels that each class has, float64 (N, K).
        names: Names of the K classes.

    Returns:
        A row for each image: `name`, `mask` and `share_CLASS` for each class.
    """
    columns = {f"share_{name}": share for name, share in zip(names, shares.T, strict=True)}
    return pyarrow.table({"name": list(images), "mask": list(masks), **columns})


def draw_mask(classes: np.ndarray, num_classes: int) -> Image.Image:
    """A map of classes as a picture that `hf-simmim segment` reads as a mask.

    Args:
        classes: Class ids (H, W).
        num_classes: Number of classes K.

    Returns:
        Indices of 8 bits with a palette of the classes' colors, or gray of 16 bits if K exceeds 256.
    """
    if num_classes > PALETTE_SIZE:
        return Image.fromarray(classes.astype(np.uint16))
    picture = Image.fromarray(classes.astype(np.uint8))
    # Makes indices of the gray values.
    picture.putpalette(class_colors(num_classes).tobytes())
    return picture
