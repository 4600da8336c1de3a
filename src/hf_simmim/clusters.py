"""Clusters of the colours of a data set, for `target="color_clusters"`."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets.utils import tqdm
from transformers.utils import logging

from .data import NoReadableImageError, describe, evenly_spaced, sample_generator
from .image_channels import channels_first, convert_channels, upright
from .image_files import open_image

logger = logging.get_logger(__name__)

# Of the centres: enough for 16 bits, and config.json stays small.
DIGITS = 6


def fit_color_clusters(
    images: Dataset,
    num_clusters: int = 512,
    num_channels: int = 3,
    rescale_factor: float = 1 / 255,
    max_images: int = 1000,
    pixels_per_image: int = 1000,
    seed: int = 0,
) -> list[list[float]]:
    """Centres of clusters of the colours of random pixels of evenly spaced images, by mini-batch k-means.

    Images that cannot be read are left out, and so are pixels of which a channel is missing (NaN). Where there are no
    more distinct colours than clusters, they are the centres.

    Args:
        images: Rows as `load_images` makes them.
        num_clusters: Number of centres, 2 or more.
        num_channels: Channels C.
        rescale_factor: What pixels are multiplied with; what is outside [0, 1] then is clipped, as the target does.
        max_images: Largest number of images to read.
        pixels_per_image: Number of pixels to draw of each image.
        seed: Seed of the pixels and of k-means; the same one gives the same centres.

    Returns:
        Sorted, distinct centres, each a list of C numbers in [0, 1]: `target_options={"centers": ...}` of a config.

    Raises:
        NoReadableImageError: If none of the images can be read.
        ValueError: If the number of clusters is less than 2, or if all pixels have the same colour.

    Source: section 4.1.4 of the paper, after iGPT (Chen et al., Generative Pretraining from Pixels), which has 512.
    """
    if num_clusters < 2:
        raise ValueError(f"num_clusters={num_clusters} must be 2 or more, such as 512.")
    colors = _sample(images, num_channels, rescale_factor, max_images, pixels_per_image, seed)
    distinct = np.unique(colors.round(DIGITS), axis=0)
    if len(distinct) < 2:
        raise ValueError(
            f"All {len(colors)} pixels that were drawn have the colour {_as_lists(distinct)[0]} after rescaling, which"
            f" makes no clusters. Check the images and rescale_factor={rescale_factor}, or use target='rgb'."
        )
    if len(distinct) <= num_clusters:
        if len(distinct) < num_clusters:
            logger.warning(f"The images have {len(distinct)} colours, so there are no {num_clusters} clusters of them.")
        return _as_lists(distinct)
    centers = _k_means(colors, num_clusters, seed)
    if len(centers) < num_clusters:
        logger.warning(f"{num_clusters - len(centers)} of {num_clusters} clusters of colours are the same as others.")
    return _as_lists(centers)


def _k_means(colors: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    # Imported here, as it takes long.
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    # More threads add up in another order.
    with threadpool_limits(1):
        k_means = MiniBatchKMeans(num_clusters, batch_size=8192, random_state=seed).fit(colors)
    return np.unique(k_means.cluster_centers_.clip(0, 1).round(DIGITS), axis=0)


def _as_lists(colors: np.ndarray) -> list[list[float]]:
    return colors.astype(np.float64).round(DIGITS).tolist()


def _sample(
    images: Dataset, num_channels: int, rescale_factor: float, max_images: int, pixels_per_image: int, seed: int
) -> np.ndarray:
    """Colours (N, C) in [0, 1] of random pixels."""
    samples, first_error = [], ""
    indices = evenly_spaced(len(images), max_images)
    for index in tqdm(indices, desc="colours of the images", unit="image"):
        row = images[index]
        try:
            colors = _colors(row, num_channels, rescale_factor)
        except Exception as error:  # readers raise anything on a broken file
            first_error = first_error or f"{row['name']} ({describe(error)})"
            continue
        if len(colors) > pixels_per_image:
            drawn = torch.randint(len(colors), (pixels_per_image,), generator=sample_generator(seed, index))
            colors = colors[drawn.numpy()]
        samples.append((colors * np.float32(rescale_factor)).clip(0, 1))
    if not samples:
        raise NoReadableImageError(
            f"None of {len(indices)} images can be read for the clusters of their colours; the first is {first_error}."
            " Mend them or name another source."
        )
    return np.concatenate(samples)


def _colors(row: dict[str, Any], num_channels: int, rescale_factor: float) -> np.ndarray:
    """Pixels (N, C) of an image that have a number in each channel, as they are stored."""
    source = row["image"]
    if source is None:
        raise ValueError("The row holds no image.")
    if isinstance(source, dict):
        content = source["bytes"] if source["bytes"] is not None else source["path"]
        source = open_image(content, num_channels, rescale_factor)
    if not isinstance(source, np.ndarray):
        picture = np.asarray(convert_channels(upright(source), num_channels))
        return picture.reshape(-1, num_channels)
    colors = channels_first(source, num_channels).reshape(num_channels, -1).T
    if source.dtype.kind != "f":
        return colors
    # What is filled in is no colour of the image.
    with np.errstate(over="ignore"):
        is_known = np.isfinite(source.astype(np.float32))
    return colors[channels_first(is_known.astype(np.uint8), num_channels).reshape(num_channels, -1).all(axis=0)]
