"""Images that cannot be read: found early, counted, listed, and too many of them an error."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from datasets import Dataset
from PIL import Image

from ..model.images import channels_first, open_image
from .sampling import evenly_spaced
from .transforms import crop_and_resize, upright_size

Decoded = TypeVar("Decoded")
# Tries before a sample is given up. At a share of unreadable images of a half this happens once in 2**64.
NUM_TRIES = 64


class NoReadableImageError(ValueError):
    """None of the images could be decoded, or too few of them."""


class ImageDataset(torch.utils.data.Dataset):
    """Images of any source, in whose place others stand where they cannot be read.

    Args:
        images: Rows of `name` and undecoded `image`, as `load_images` makes them.
        image_size: (height, width) that images are brought to, in pixels.
        num_channels: Channels C that the model takes.
        seed: Seed of all that is random.
        rescale_factor: What the pixels are going to be multiplied with; it decides what becomes of pictures of 16 bits,
            as `image_files.py` tells.
        nodata: Pixels of which all channels are this number in the file are none, like those that are not finite.
    """

    def __init__(
        self,
        images: Dataset,
        image_size: tuple[int, int],
        num_channels: int,
        seed: int = 0,
        rescale_factor: float = 1 / 255,
        nodata: float | None = None,
    ):
        self.images = images
        self.image_size = image_size
        self.num_channels = num_channels
        self.seed = seed
        self.rescale_factor = rescale_factor
        self.nodata = nodata

    def __len__(self) -> int:
        return len(self.images)

    def open(self, row: dict[str, Any]) -> Image.Image | np.ndarray:
        """Open the image of a row: `open_row` with the settings of this data set."""
        return open_row(row, self.num_channels, self.rescale_factor, self.nodata)

    def read(
        self, index: int, generator: torch.Generator, decode: Callable[[Image.Image | np.ndarray], Decoded]
    ) -> tuple[Decoded, dict[str, Any], list[tuple[str, str]]]:
        """Open and decode an image, or another one in its place if it cannot be read.

        Args:
            index: Which.
            generator: Source of randomness.
            decode: What to do with the opened image.

        Returns:
            What `decode` returned, the row that it comes from, and (name, reason) of the images that cannot be read.

        Raises:
            NoReadableImageError: If many images drawn one after the other cannot be read.
        """
        unreadable: list[tuple[str, str]] = []
        for _ in range(NUM_TRIES):
            row = self.images[index]
            try:
                return decode(self.open(row)), row, unreadable
            except Exception as error:  # readers raise anything on a broken file
                unreadable.append((row["name"], describe(error)))
            # At random, for broken files come in runs.
            index = int(torch.randint(len(self), (), generator=generator))
        raise NoReadableImageError(
            f"{len(unreadable)} images drawn one after the other cannot be read; the first is {unreadable[0][0]}"
            f" ({unreadable[0][1]}). Remove them or name another source."
        )


def open_row(
    row: dict[str, Any], num_channels: int, rescale_factor: float, nodata: float | None = None
) -> Image.Image | np.ndarray:
    """Open the image of a row of `load_images`.

    Args:
        row: The row: a file or its content, or an array.
        num_channels: Wanted channels C.
        rescale_factor: What the pixels are going to be multiplied with.
        nodata: Pixels of which all channels are this number are none.

    Returns:
        A picture that is decoded later, or an array of shape (C, H, W), uint8 or float32, NaN where it has no number.

    Raises:
        ValueError, OSError: If there is none or it cannot be read, and whatever else the readers raise.
    """
    source = row["image"]
    if source is None:
        raise ValueError("The row holds no image.")
    if isinstance(source, dict):
        content = source["bytes"] if source["bytes"] is not None else source["path"]
        source = open_image(content, num_channels, rescale_factor, nodata)
    return channels_first(source, num_channels, nodata=nodata) if isinstance(source, np.ndarray) else source


def describe(error: Exception) -> str:
    """An error in one line, without the addresses of objects in memory."""
    return re.sub(r"<_io\.BytesIO object at \w+>", "its bytes", " ".join(f"{type(error).__name__}: {error}".split()))


def check_images(
    datasets: Sequence[ImageDataset], max_unreadable: float, num_checked: int = 128
) -> list[tuple[str, str]]:
    """Decode a spread of images before any work depends on them.

    Args:
        datasets: The data sets.
        max_unreadable: Largest share of images that may be unreadable.
        num_checked: How many to decode of each data set, evenly spaced.

    Returns:
        (name, reason) of those that cannot be read.

    Raises:
        NoReadableImageError: If more than the share cannot be read, or have other channels than the model takes; where
            not all images are tried, if they are so many more that it is not by chance.
    """
    unreadable, count = [], 0
    for dataset in datasets:
        for index in evenly_spaced(len(dataset), num_checked):
            row = dataset.images[index]
            count += 1
            try:
                image = dataset.open(row)
                crop_and_resize(image, (0, 0, *upright_size(image)[::-1]), (8, 8), dataset.num_channels)
            except Exception as error:  # readers raise anything on a broken file
                unreadable.append((row["name"], describe(error)))
    # Three standard deviations of what chance gives a sample; none if the sample is everything.
    is_sample = count < sum(len(dataset) for dataset in datasets)
    slack = 3 * math.sqrt(count * max_unreadable * (1 - max_unreadable)) if is_sample else 0.0
    if len(unreadable) > max_unreadable * count + slack or len(unreadable) == count:
        first = "; ".join(f"{name} ({reason})" for name, reason in unreadable[:3])
        raise NoReadableImageError(
            f"{len(unreadable)} of {count} images that were tried cannot be used, more than the allowed share of"
            f" {max_unreadable}: {first}. Mend or remove them, name another source, or allow a larger share."
        )
    return unreadable


class UnreadableImages:
    """Keeps count of images that could not be read, lists them in a file, and stops a run that has too many.

    Args:
        path: File that lists them, one line each: name, tab, reason.
        num_images: Images in all.
        max_share: Largest share of them that may be unreadable.
    """

    def __init__(self, path: Path, num_images: int, max_share: float):
        self.path = path
        self.num_images = num_images
        self.max_share = max_share
        self.reasons: dict[str, str] = {}

    def record(self, entries: list[tuple[str, str]]) -> None:
        """Note (name, reason) pairs that this process has met."""
        for name, reason in entries:
            self.reasons.setdefault(name, reason)

    def share(self, is_main_process: bool = True) -> None:
        """Bring the lists of all processes together and write the file. All processes must call it at the same time.

        Args:
            is_main_process: Whether this process writes.

        Raises:
            NoReadableImageError: If there are more than the allowed share; in all processes alike.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts: list[dict[str, str]] = [{}] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, self.reasons)
            self.reasons = {name: reason for part in parts for name, reason in part.items()}
        if is_main_process and (self.reasons or self.path.exists()):
            lines = [f"{name}\t{reason}\n" for name, reason in sorted(self.reasons.items())]
            self.path.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
        if len(self.reasons) > self.max_share * self.num_images:
            raise NoReadableImageError(
                f"{len(self.reasons)} of {self.num_images} images cannot be read, more than the allowed share of"
                f" {self.max_share}. They are listed in {self.path}. Mend or remove them and start again, or allow a"
                " larger share."
            )
