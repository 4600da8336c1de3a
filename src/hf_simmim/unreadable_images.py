"""Images that cannot be read: found early, counted, listed, and too many of them an error."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from .crops import crop_and_resize, upright_size
from .data import ImageDataset, NoReadableImageError, describe, evenly_spaced


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
