"""Whether pixel values fit their normalization: checked on a sample of the images, before any work depends on it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from .image_statistics import known_pixels
from .reading import open_row
from .sampling import sample_indices

# Rescaled values outside of these are not on a scale of 0 to 1, however bright or dark the images are.
LOWEST, HIGHEST, DARKEST = -1.0, 2.0, 0.02
# Normalized values have a mean of about 0 and a standard deviation of about 1; beyond these something is wrong.
LARGEST_MEAN, SMALLEST_STD, LARGEST_STD = 30.0, 0.01, 30.0
# Largest values of common bit depths.
DEPTHS = (255, 1023, 4095, 16383, 65535)


@dataclass(frozen=True)
class ValueRange:
    """Stored pixel values of a sample of images.

    Args:
        low: Smallest value.
        high: Largest value.
        mean: Mean of each channel, of shape (C,).
        std: Standard deviation of each channel, of shape (C,).
        is_bytes: Whether all images of the sample have 8 bits.
    """

    low: float
    high: float
    mean: np.ndarray
    std: np.ndarray
    is_bytes: bool

    @property
    def fitting_factor(self) -> str:
        """The rescale factor that brings the values to about 0 to 1."""
        largest = max(abs(self.low), abs(self.high))
        if largest <= 1.5:
            return "1"
        return f"1/{next((depth for depth in DEPTHS if largest <= depth), math.ceil(largest))}"


def sample_range(
    images: Dataset, num_channels: int, rescale_factor: float, nodata: float | None = None, num_checked: int = 32
) -> ValueRange | None:
    """Read the values of evenly spaced images; unreadable images and missing pixels are left out.

    Args:
        images: Rows from `load_images`.
        num_channels: Channels C.
        rescale_factor: Factor that pixels are multiplied by; it decides how 16-bit pictures are read.
        nodata: Value of missing pixels.
        num_checked: Largest number of images to read.

    Returns:
        The range; None if no image can be read.
    """
    lows, highs, means, squares, are_bytes = [], [], [], [], True
    for index in sample_indices(images, num_checked):
        try:
            image = open_row(images[index], num_channels, rescale_factor, nodata)
            pixels = known_pixels(image, num_channels)
        except Exception:  # readers raise anything on a broken file, which is reported elsewhere
            continue
        if not pixels.size:
            continue
        are_bytes &= isinstance(image, Image.Image) or image.dtype == np.uint8
        lows.append(float(pixels.min()))
        highs.append(float(pixels.max()))
        means.append(pixels.mean(axis=1, dtype=np.float64))
        squares.append(np.square(pixels, dtype=np.float64).mean(axis=1))
    if not lows:
        return None
    mean = np.mean(means, axis=0)
    variance = np.mean(squares, axis=0) - np.square(mean)
    return ValueRange(min(lows), max(highs), mean, np.sqrt(np.maximum(variance, 0)), are_bytes)


def check_value_range(
    images: Dataset,
    num_channels: int,
    rescale_factor: float,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    nodata: float | None = None,
    is_default: bool = False,
) -> None:
    """Refuse a normalization under which the model would see a constant, or values of another scale.

    Args:
        images: Rows from `load_images`.
        num_channels: Channels C.
        rescale_factor: Factor that pixels are multiplied by.
        image_mean: Mean of each channel of rescaled pixels.
        image_std: Standard deviation of each channel of rescaled pixels.
        nodata: Value of missing pixels.
        is_default: Whether nobody chose the factor, so that rescaled values must be on a scale of 0 to 1.

    Raises:
        ValueError: If the values do not fit; the message names the factor that does.
    """
    found = sample_range(images, num_channels, rescale_factor, nodata)
    if found is None or found.high == found.low:
        return
    low, high = found.low * rescale_factor, found.high * rescale_factor
    values = f"Pixel values of the images range from {found.low:g} to {found.high:g}"
    if is_default and not found.is_bytes and (low < LOWEST or high > HIGHEST or high < DARKEST):
        raise ValueError(
            f"{values}, which the default rescale_factor=1/255 maps to {low:.3g} to {high:.3g}; about 0 to 1 is"
            f" expected. Use --rescale_factor {found.fitting_factor}."
        )
    mean = (found.mean * rescale_factor - np.asarray(image_mean)) / np.asarray(image_std)
    std = found.std * rescale_factor / np.asarray(image_std)
    is_flat = not found.is_bytes and float(std.max()) < SMALLEST_STD
    if float(np.abs(mean).max()) > LARGEST_MEAN or float(std.max()) > LARGEST_STD or is_flat:
        factor = _shown(rescale_factor)
        raise ValueError(
            f"{values}. With rescale_factor={factor}, image_mean={_rounded(image_mean)} and"
            f" image_std={_rounded(image_std)} they have a mean of {float(mean[np.abs(mean).argmax()]):.3g} and a"
            f" standard deviation of {float(std.max()):.3g} after normalization; about 0 and 1 are expected. Use"
            f" images like those that these statistics belong to, or rescale_factor={found.fitting_factor} with"
            " statistics to match."
        )


def check_dataset_range(dataset: Any) -> None:
    """Check the values of an `ImageDataset` that normalizes, as `check_value_range` does.

    Args:
        dataset: The dataset, with `image_mean` and `image_std`.

    Raises:
        ValueError: If the values do not fit.
    """
    statistics = (dataset.image_mean, dataset.image_std)
    check_value_range(
        *(dataset.images, dataset.num_channels, dataset.rescale_factor, *statistics), nodata=dataset.nodata
    )


def _shown(factor: float) -> str:
    inverse = 1 / factor
    return (
        f"1/{round(inverse)}" if factor < 1 and math.isclose(inverse, round(inverse), rel_tol=1e-6) else f"{factor:g}"
    )


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values][:6]
