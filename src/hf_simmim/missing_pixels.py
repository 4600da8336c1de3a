"""Pixels that are none: what is not finite, and a data set's own `nodata`.

They are NaN in images of float32 from the file on. Cropping and resizing spread NaN to every pixel that it is a part
of, and at the end `fill_missing` takes it out. Images are arrays or tensors, channels first.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

Pixels = TypeVar("Pixels", np.ndarray, torch.Tensor)


def missing_as_nan(image: Pixels, nodata: float | None = None) -> Pixels:
    """Put NaN where an image has no number.

    Args:
        image: uint8 or float32 of shape (C, H, W).
        nodata: Pixels of which all channels are this number are none.

    Returns:
        The image as it is if nothing is missing, else one of float32.

    Raises:
        ValueError: If not one pixel has numbers in all channels.
    """
    missing = None
    if _is_floating(image):
        finite = torch.isfinite(image) if isinstance(image, torch.Tensor) else np.isfinite(image)
        missing = None if finite.all() else ~finite
    if nodata is not None:
        empty = (image == as_stored(nodata)).all(0)
        if empty.any():
            missing = empty | (image != image) if missing is None else empty | missing
    if missing is None:
        return image
    if missing.any(0).all():
        without = [index for index, channel in enumerate(missing) if channel.all()]
        raise ValueError(no_pixels_error(without, nodata))
    if isinstance(image, torch.Tensor):
        return image.float().masked_fill(missing, torch.nan)
    return np.where(missing, np.float32(np.nan), image)


def as_stored(nodata: float) -> float:
    """`nodata` rounded to float32 as images are: files tell it with fewer digits than it has, or as a float64."""
    with np.errstate(over="ignore"):
        return float(np.float32(nodata))


def no_pixels_error(empty_channels: Sequence[int], nodata: float | None) -> str:
    """What to tell about an image of which no pixel is real, as there are `empty_channels` or for no single reason."""
    message = "No pixel of the image has finite numbers in all channels"
    if empty_channels:
        message = f"Channel {empty_channels[0]} of the image holds no finite number"
    return f"{message}{'' if nodata is None else f' other than nodata={nodata:g}'}. Remove the image."


def has_missing(image: np.ndarray | torch.Tensor) -> bool:
    """Whether there is NaN in an image."""
    return _is_floating(image) and bool((image != image).any())


def real_pixels(image: Pixels) -> Pixels:
    """Which pixels have a number in all channels: bool of shape (H, W)."""
    return (image == image).all(0)


def fill_missing(image: Pixels, pixel_mask: torch.Tensor, otherwise: Sequence[float] | None = None) -> Pixels:
    """Put the mean of a channel's real pixels where it is NaN, for one NaN would make a whole loss undefined.

    Args:
        image: float32 of shape (C, H, W).
        pixel_mask: Bool tensor of shape (H, W), True = a real pixel.
        otherwise: What to put into each channel where no pixel is real; 0 if None.

    Returns:
        The image without NaN.
    """
    pixels = torch.as_tensor(image)
    if pixel_mask.any():
        values = pixels[:, pixel_mask].mean(dim=1)
    else:
        values = torch.tensor(otherwise or [0.0] * len(pixels), device=pixels.device)
    filled = torch.where(pixels.isnan(), values.view(-1, 1, 1), pixels)
    return filled if isinstance(image, torch.Tensor) else filled.numpy()


def _is_floating(image: np.ndarray | torch.Tensor) -> bool:
    return image.is_floating_point() if isinstance(image, torch.Tensor) else image.dtype.kind == "f"
