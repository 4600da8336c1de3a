"""Reading of images; unreadable ones are found early, replaced, counted and listed."""

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
from .sampling import sample_indices
from .transforms import crop_and_resize, upright_size

Decoded = TypeVar("Decoded")
# Attempts before a sample fails. If half of the images are unreadable, this happens once in 2**64 samples.
NUM_TRIES = 64


class NoReadableImageError(ValueError):
    """Raised if none of the images can be decoded, or too few of them."""


class ImageDataset(torch.utils.data.Dataset):
    """Images of any source. An unreadable image is replaced by another at random.

    Args:
        images: Rows of `name` and undecoded `image`, from `load_images`.
        image_size: (height, width) that images are resized to, in pixels.
        num_channels: Channels C that the model takes.
        seed: Seed of all random draws.
        rescale_factor: Factor that pixels will be multiplied by; it decides how 16-bit images are read, see
            `model/images.py`.
        nodata: Value of missing pixels in the file: a pixel is missing if all its channels have this value, or one is
            not finite.
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
        """Open the image of a row: `open_row` with the settings of this dataset."""
        return open_row(row, self.num_channels, self.rescale_factor, self.nodata)

    def open_sample(
        self, row: dict[str, Any], index: int, generator: torch.Generator
    ) -> tuple[dict[str, Any], Image.Image | np.ndarray]:
        """Open the image of a sample.

        Args:
            row: Its row.
            index: Index of the sample.
            generator: Random generator, for a dataset that draws what it opens.

        Returns:
            The row of what is opened, and the image.
        """
        return row, self.open(row)

    def read(
        self, index: int, generator: torch.Generator, decode: Callable[[Image.Image | np.ndarray], Decoded]
    ) -> tuple[Decoded, dict[str, Any], list[tuple[str, str]]]:
        """Open and decode an image, or another at random if it cannot be read.

        Args:
            index: Index of the image.
            generator: Random generator.
            decode: Function of the opened image.

        Returns:
            The result of `decode`, the row that it comes from, and (name, reason) of the unreadable images.

        Raises:
            NoReadableImageError: If `NUM_TRIES` images in a row cannot be read.
        """
        unreadable: list[tuple[str, str]] = []
        for _ in range(NUM_TRIES):
            row = self.images[index]
            try:
                row, image = self.open_sample(row, index, generator)
                return decode(image), row, unreadable
            except Exception as error:  # readers raise anything on a broken file
                # Of windows, the large image is named: its windows are other ones each time.
                unreadable.append((row.get("file", row["name"]), describe(error)))
            # At random, because broken files come in runs.
            near = getattr(self.images, "near", None)
            index = near(index, generator) if near else int(torch.randint(len(self), (), generator=generator))
        raise NoReadableImageError(
            f"{len(unreadable)} randomly drawn images in a row cannot be read; the first is {unreadable[0][0]}"
            f" ({unreadable[0][1]}). Remove them or name another source."
        )


def open_row(
    row: dict[str, Any], num_channels: int, rescale_factor: float, nodata: float | None = None
) -> Image.Image | np.ndarray:
    """Open the image of a row of `load_images`.

    Args:
        row: Row whose `image` is a file, its content, or an array.
        num_channels: Channels C of the result.
        rescale_factor: Factor that pixels will be multiplied by.
        nodata: Value of missing pixels: a pixel is missing if all its channels have this value.

    Returns:
        A PIL image that is not yet decoded, or an array of shape (C, H, W), uint8 or float32, NaN at missing pixels.

    Raises:
        ValueError, OSError: If the row has no image or it cannot be read; the readers may raise other errors, too.
    """
    source = row["image"]
    if source is None:
        raise ValueError(row.get("reason", "The row holds no image."))
    if isinstance(source, dict):
        content = source["bytes"] if source["bytes"] is not None else source["path"]
        image = open_image(content, num_channels, rescale_factor, nodata)
        return channels_first(image, num_channels) if isinstance(image, np.ndarray) else image
    return channels_first(source, num_channels, nodata=nodata) if isinstance(source, np.ndarray) else source


def describe(error: Exception) -> str:
    """Format an error in one line, without addresses of objects in memory."""
    return re.sub(r"<_io\.BytesIO object at \w+>", "its bytes", " ".join(f"{type(error).__name__}: {error}".split()))


def _in_one_line(name: str) -> str:
    """A name with escapes for newlines, tabs and other control characters."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda match: ascii(match[0])[1:-1], name)


def check_images(
    datasets: Sequence[ImageDataset], max_unreadable: float, num_checked: int = 128
) -> list[tuple[str, str]]:
    """Decode evenly spaced images before any work depends on them.

    Args:
        datasets: The datasets.
        max_unreadable: Largest share of images that may be unreadable.
        num_checked: Number of images to decode of each dataset.

    Returns:
        (name, reason) of the unreadable images.

    Raises:
        NoReadableImageError: If more than that share cannot be read, or have another number of channels than the model
            takes. If only a sample is checked, an excess of up to three standard deviations is accepted.
    """
    unreadable, count = [], 0
    for dataset in datasets:
        for index in sample_indices(dataset.images, num_checked):
            count += 1
            unreadable += _flaw(dataset, index)
    # Sampling error: three standard deviations, or 0 if all images are checked.
    is_sample = count < sum(len(dataset) for dataset in datasets)
    slack = 3 * math.sqrt(count * max_unreadable * (1 - max_unreadable)) if is_sample else 0.0
    if len(unreadable) > max_unreadable * count + slack or len(unreadable) == count:
        first = "; ".join(f"{name} ({reason})" for name, reason in unreadable[:3])
        raise NoReadableImageError(
            f"{len(unreadable)} of {count} images that were checked cannot be used, more than the allowed share of"
            f" {max_unreadable}: {first}. Fix or remove them, name another source, or allow a larger share."
        )
    return unreadable


def check_listed(datasets: Sequence[ImageDataset], path: Path) -> list[tuple[str, str]]:
    """Decode the images again that an earlier start of a run listed as unreadable; it may not come to all of them.

    Args:
        datasets: The datasets.
        path: File of `UnreadableImages`, which may not exist.

    Returns:
        (name, reason) of those that are still unreadable.
    """
    if not path.exists():
        return []
    names = {line.partition("\t")[0] for line in path.read_text(encoding="utf-8", errors="replace").split("\n")}
    return [entry for dataset in datasets for index in _named(dataset.images, names) for entry in _flaw(dataset, index)]


def _named(images: Any, names: set[str]) -> list[int]:
    """Indices of the images of some names, which are in one line each."""
    if hasattr(images, "index_of"):
        return sorted(index for index in map(images.index_of, names) if index is not None)
    return [index for index, name in enumerate(images["name"][:]) if _in_one_line(name) in names]


def _flaw(dataset: ImageDataset, index: int) -> list[tuple[str, str]]:
    """Name and reason of an image, if it is unreadable."""
    row = dataset.images[index]
    try:
        image = dataset.open(row)
        crop_and_resize(image, (0, 0, *upright_size(image)[::-1]), (8, 8), dataset.num_channels)
    except Exception as error:  # readers raise anything on a broken file
        return [(row.get("file", row["name"]), describe(error))]
    return []


class UnreadableImages:
    """Counts unreadable images, lists them in a file, and stops a run that has too many.

    Args:
        path: File to write, one line for each image: name, tab, reason.
        num_images: Number of all images.
        max_share: Largest share of them that may be unreadable.
    """

    def __init__(self, path: Path, num_images: int, max_share: float):
        self.path = path
        self.num_images = num_images
        self.max_share = max_share
        self.reasons: dict[str, str] = {}

    def record(self, entries: list[tuple[str, str]]) -> None:
        """Record (name, reason) pairs that this process has found."""
        for name, reason in entries:
            self.reasons.setdefault(name, reason)

    def share(self, is_main_process: bool = True) -> None:
        """Merge the lists of all processes and write the file. All processes must call it at the same time.

        Args:
            is_main_process: Whether this process writes the file.

        Raises:
            NoReadableImageError: If more than the allowed share is unreadable; it is raised in all processes.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts: list[dict[str, str]] = [{}] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, self.reasons)
            self.reasons = {name: reason for part in parts for name, reason in part.items()}
        if is_main_process and (self.reasons or self.path.exists()):
            lines = [f"{_in_one_line(name)}\t{reason}\n" for name, reason in sorted(self.reasons.items())]
            self.path.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
        if len(self.reasons) > self.max_share * self.num_images:
            raise NoReadableImageError(
                f"{len(self.reasons)} of {self.num_images} images cannot be read, more than the allowed share of"
                f" {self.max_share}. They are listed in {self.path}. Fix or remove them and restart, or allow a"
                " larger share."
            )
