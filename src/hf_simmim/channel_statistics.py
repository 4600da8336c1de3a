"""Mean and standard deviation of the channels of a data set, for its normalisation."""

import numpy as np
from datasets import Dataset
from datasets.utils import tqdm
from PIL import Image
from transformers.utils import logging

from .data import NoReadableImageError, describe, evenly_spaced, open_row
from .image_channels import convert_channels, upright
from .missing_pixels import has_missing, real_pixels

logger = logging.get_logger(__name__)


def channel_statistics(
    images: Dataset,
    num_channels: int,
    rescale_factor: float = 1 / 255,
    max_images: int = 1000,
    nodata: float | None = None,
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over all pixels of evenly spaced images.

    Depends on nothing but the images. Those that cannot be read are left out, and pixels that are none. A channel
    without any variation gets a standard deviation of 1, with a warning: it tells nothing, and the others may still be
    worth training on.

    Args:
        images: Rows as `load_images` makes them.
        num_channels: Channels C.
        rescale_factor: What pixels are multiplied with.
        max_images: Largest number of images to read.
        nodata: Pixels of which all channels are this number are none.

    Returns:
        Mean and standard deviation of rescaled pixels, C numbers each: `image_mean` and `image_std` of the processor.

    Raises:
        NoReadableImageError: If none of the images can be read.
    """
    count, mean, squares = 0, np.zeros(num_channels), np.zeros(num_channels)
    first_error = ""
    indices = evenly_spaced(len(images), max_images)
    for index in tqdm(indices, desc="statistics of the channels", unit="image"):
        row = images[index]
        try:
            pixels = known_pixels(open_row(row, num_channels, rescale_factor, nodata), num_channels)
        except Exception as error:  # readers raise anything on a broken file
            first_error = first_error or f"{row['name']} ({describe(error)})"
            continue
        # Chan's update: sums of squares would lose the digits of channels that vary little around a large mean.
        part = pixels[0].size
        part_mean = np.array([channel.mean(dtype=np.float64) for channel in pixels])
        part_squares = np.array([np.square(c - m).sum() for c, m in zip(pixels, part_mean, strict=True)])
        offset = part_mean - mean
        squares += part_squares + np.square(offset) * count * part / (count + part)
        mean += offset * part / (count + part)
        count += part
    if not count:
        raise NoReadableImageError(
            f"None of {len(indices)} images can be read for the statistics of their channels; the first is"
            f" {first_error}. Mend them or name another source."
        )
    std = np.sqrt(squares / count)
    # What rounding leaves of a constant.
    constant = std <= 1e-7 * np.abs(mean)
    if constant.any():
        logger.warning(
            f"Channels without variation: {', '.join(map(str, np.flatnonzero(constant)))} (counted from 0). Their"
            " standard deviation is taken as 1 after rescaling. Leave them out, or set image_std, if that is not meant."
        )
    scaled_std = np.where(constant, 1.0, std * rescale_factor)
    return (mean * rescale_factor).tolist(), scaled_std.tolist()


def known_pixels(image: Image.Image | np.ndarray, num_channels: int) -> np.ndarray:
    """Numbers of the real pixels of a whole image, as they are stored.

    Args:
        image: What `open_row` returned.
        num_channels: Channels C.

    Returns:
        Array of shape (C, number of real pixels).
    """
    if isinstance(image, np.ndarray):
        return image[:, real_pixels(image)] if has_missing(image) else image.reshape(num_channels, -1)
    return np.asarray(convert_channels(upright(image), num_channels)).reshape(-1, num_channels).T
