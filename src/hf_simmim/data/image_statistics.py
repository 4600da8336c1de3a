"""Statistics of the channels of a dataset, for normalization, and clusters of its colors."""

import numpy as np
import torch
from datasets import Dataset
from datasets.utils import tqdm
from PIL import Image
from transformers.utils import logging

from ..model.images import convert_channels, has_missing, real_pixels, upright
from .reading import NoReadableImageError, describe, open_row
from .sampling import sample_generator, sample_indices

logger = logging.get_logger(__name__)


def channel_statistics(
    images: Dataset,
    num_channels: int,
    rescale_factor: float = 1 / 255,
    max_images: int = 1000,
    nodata: float | None = None,
) -> tuple[list[float], list[float]]:
    """Compute mean and standard deviation of each channel over all pixels of evenly spaced images.

    The result depends only on the images. Unreadable images and missing pixels are left out. A channel without
    variation gets a standard deviation of 1, with a warning: it carries no information, but the others may be worth
    training on.

    Args:
        images: Rows from `load_images`.
        num_channels: Channels C.
        rescale_factor: Factor that pixels are multiplied by.
        max_images: Largest number of images to read.
        nodata: Value of missing pixels: a pixel is missing if all its channels have this value.

    Returns:
        Mean and standard deviation of rescaled pixels, C numbers each: `image_mean` and `image_std` of the processor.

    Raises:
        NoReadableImageError: If none of the images can be read.
    """
    count, mean, squares = 0, np.zeros(num_channels), np.zeros(num_channels)
    first_error = ""
    indices = sample_indices(images, max_images)
    for index in tqdm(indices, desc="channel statistics", unit="image"):
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
            f"None of {len(indices)} images can be read to compute channel statistics; the first is {first_error}. Fix"
            " them or name another source."
        )
    std = np.sqrt(squares / count)
    # A constant channel may have a deviation from rounding.
    constant = std <= 1e-7 * np.abs(mean)
    if constant.any():
        logger.warning(
            f"Channels without variation: {', '.join(map(str, np.flatnonzero(constant)))} (counted from 0). Their"
            " standard deviation is set to 1 after rescaling. Remove them or set image_std if that is not intended."
        )
    scaled_std = np.where(constant, 1.0, std * rescale_factor)
    return (mean * rescale_factor).tolist(), scaled_std.tolist()


def known_pixels(image: Image.Image | np.ndarray, num_channels: int) -> np.ndarray:
    """Stored values of the valid pixels of a whole image.

    Args:
        image: Opened image, as `open_row` returns it.
        num_channels: Channels C.

    Returns:
        Array of shape (C, number of valid pixels).
    """
    if isinstance(image, np.ndarray):
        return image[:, real_pixels(image)] if has_missing(image) else image.reshape(num_channels, -1)
    return np.asarray(convert_channels(upright(image), num_channels)).reshape(-1, num_channels).T


# Decimal places of the centers: enough for 16 bits, and config.json stays small.
DIGITS = 6


def fit_color_clusters(
    images: Dataset,
    num_clusters: int = 512,
    num_channels: int = 3,
    rescale_factor: float = 1 / 255,
    max_images: int = 1000,
    pixels_per_image: int = 1000,
    seed: int = 0,
    nodata: float | None = None,
) -> list[list[float]]:
    """Cluster the colors of random pixels of evenly spaced images by mini-batch k-means.

    Unreadable images and missing pixels are left out. If there are at most `num_clusters` distinct colors, these are
    the centers.

    Args:
        images: Rows from `load_images`.
        num_clusters: Number of centers, 2 or more.
        num_channels: Channels C.
        rescale_factor: Factor that pixels are multiplied by; the result is clipped to [0, 1], as in the target.
        max_images: Largest number of images to read.
        pixels_per_image: Number of pixels to draw from each image.
        seed: Seed of the pixels and of k-means; the same seed gives the same centers.
        nodata: Value of missing pixels: a pixel is missing if all its channels have this value, or one is not finite.

    Returns:
        Sorted, distinct centers, each a list of C numbers in [0, 1]: `target_options={"centers": ...}` of a config.

    Raises:
        NoReadableImageError: If none of the images can be read.
        ValueError: If the number of clusters is less than 2, or if all pixels have the same color.

    Source: section 4.1.4 of the paper, after iGPT (Chen et al., Generative Pretraining from Pixels), which uses 512.
    """
    if num_clusters < 2:
        raise ValueError(f"num_clusters={num_clusters} must be 2 or more, such as 512.")
    colors = _sample(images, num_channels, rescale_factor, max_images, pixels_per_image, seed, nodata)
    distinct = np.unique(colors.round(DIGITS), axis=0)
    if len(distinct) < 2:
        raise ValueError(
            f"All {len(colors)} sampled pixels have the color {_as_lists(distinct)[0]} after rescaling, which cannot be"
            f" clustered. Check the images and rescale_factor={rescale_factor}, or use target='rgb'."
        )
    if len(distinct) <= num_clusters:
        if len(distinct) < num_clusters:
            logger.warning(f"The images have only {len(distinct)} colors, fewer than {num_clusters} clusters.")
        return _as_lists(distinct)
    centers = _k_means(colors, num_clusters, seed)
    if len(centers) < num_clusters:
        logger.warning(f"{num_clusters - len(centers)} of {num_clusters} color clusters are duplicates and removed.")
    return _as_lists(centers)


def _k_means(colors: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    # scikit-learn is imported here because its import is slow.
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    # More threads sum in another order and round differently.
    with threadpool_limits(1):
        k_means = MiniBatchKMeans(num_clusters, batch_size=8192, random_state=seed).fit(colors)
    return np.unique(k_means.cluster_centers_.clip(0, 1).round(DIGITS), axis=0)


def _as_lists(colors: np.ndarray) -> list[list[float]]:
    return colors.astype(np.float64).round(DIGITS).tolist()


def _sample(
    images: Dataset,
    num_channels: int,
    rescale_factor: float,
    max_images: int,
    pixels_per_image: int,
    seed: int,
    nodata: float | None,
) -> np.ndarray:
    """Sample the colors (N, C) in [0, 1] of random pixels."""
    samples, first_error = [], ""
    indices = sample_indices(images, max_images)
    for index in tqdm(indices, desc="sampling colors", unit="image"):
        row = images[index]
        try:
            colors = known_pixels(open_row(row, num_channels, rescale_factor, nodata), num_channels).T
        except Exception as error:  # readers raise anything on a broken file
            first_error = first_error or f"{row['name']} ({describe(error)})"
            continue
        if len(colors) > pixels_per_image:
            drawn = torch.randint(len(colors), (pixels_per_image,), generator=sample_generator(seed, index))
            colors = colors[drawn.numpy()]
        samples.append((colors * np.float32(rescale_factor)).clip(0, 1))
    if not samples:
        raise NoReadableImageError(
            f"None of {len(indices)} images can be read to fit color clusters; the first is {first_error}. Fix them or"
            " name another source."
        )
    return np.concatenate(samples)
