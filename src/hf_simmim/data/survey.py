"""What a set of images is like, seen before any training: sizes, channels, depth, copies, and what is not read."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from ..formats.address import parse_address
from ..formats.readers import unread_because
from ..model.image_readers import UNREAD, Wanted
from ..model.images import is_deep, read_stored
from .sampling import sample_indices
from .streaming import StreamedImages
from .transforms import upright_size

# Folders whose names say that their images are for something else than training.
SPLIT_NAMES = {"test", "tests", "testing", "val", "valid", "validation", "holdout", "eval", "evaluation"}
# Bytes of files of equal size that are read in search of copies.
MAX_COMPARED = 2**30
# Side that pictures are shrunk to before their colors are looked at.
GLANCE = 64


@dataclass(frozen=True)
class Survey:
    """What a set of images is like.

    Args:
        num_images: Number of images.
        sizes: (height, width) of the images of a sample, in pixels.
        channels: How many images of the sample have a number of channels, without transparency; gray pictures that are
            stored as RGB count as one.
        depths: How many images of the sample have a bit depth, such as "8 bits" or "float32".
        closed: Number of files by what would make them readable.
        num_copies: Number of images that are exact copies of another one.
        copies: Names of two images that are equal, if there are any.
        split_folders: Sub-folders that look like a test or validation set, with their numbers of images.
    """

    num_images: int
    sizes: Sequence[tuple[int, int]]
    channels: dict[int, int]
    depths: dict[str, int]
    closed: dict[str, int]
    num_copies: int
    copies: tuple[str, str] | None
    split_folders: dict[str, int]

    @property
    def side(self) -> int:
        """Median of the shorter sides of the sample, in pixels; 0 if no image could be read."""
        return int(np.median([min(size) for size in self.sizes])) if self.sizes else 0

    @property
    def num_channels(self) -> int | None:
        """The number of channels that all images of the sample have; None if they differ, or none could be read."""
        return next(iter(self.channels)) if len(self.channels) == 1 else None

    def lines(self, image_size: tuple[int, int] | None = None) -> dict[str, str]:
        """Describe the images in lines by title.

        Args:
            image_size: (height, width) that the images are resized to; None if it is not known.

        Returns:
            The lines of a plan.
        """
        seen = [_sizes(self.sizes)] if self.sizes else []
        seen += [_counts({f"{number} channel{'s' * (number > 1)}": n for number, n in self.channels.items()})]
        seen += [_counts(self.depths)]
        lines = {"Images seen": "; ".join(part for part in seen if part) or "none can be read"}
        if image_size is not None and self.sizes:
            small = sum(height < image_size[0] or width < image_size[1] for height, width in self.sizes)
            if small:
                share = f"{small / len(self.sizes):.0%} of the images"
                lines["Upscaled"] = f"{share} are smaller than {image_size[1]} x {image_size[0]} px"
        if self.closed:
            lines["Not read"] = "; ".join(f"{count:,} to {opener}" for opener, count in self.closed.items())
        if self.num_copies and self.copies:
            lines["Copies"] = f"{self.num_copies:,} exact copies of other images, such as {' and '.join(self.copies)}"
        for folder, count in self.split_folders.items():
            lines["Folder"] = (
                f"{folder} ({count:,} images) looks like a test set, but is trained on: name it as --validation_dir, or"
                " move it away"
            )
        return lines


def survey(images: Dataset | StreamedImages, num_sampled: int = 128) -> Survey:
    """Look at a sample of the images, and at the names and sizes of all files.

    Args:
        images: Rows of `name` and undecoded `image`, from `load_images`.
        num_sampled: Number of images to open.

    Returns:
        What they are like. Unreadable images are left out of the sample.
    """
    sizes: list[tuple[int, int]] = []
    channels, depths = Counter[int](), Counter[str]()
    for index in sample_indices(images, num_sampled):
        try:
            size, number, depth = glance(images[index]["image"])
        except Exception:  # readers raise anything on a broken file, which is reported elsewhere
            continue
        sizes.append(size)
        channels[number] += 1
        depths[depth] += 1
    # Names of streamed images are numbers.
    # Of windows, their files.
    names = [] if isinstance(images, StreamedImages) else getattr(images, "files", images)["name"][:]
    closed = Counter(filter(None, map(_opener, names)))
    num_copies, copies = find_copies(names)
    return Survey(
        len(images), sizes, dict(channels), dict(depths), dict(closed), num_copies, copies, split_folders(names)
    )


def _opener(name: str) -> str:
    """What would open a file that is not read; empty for others."""
    ends = (f"open with {reader}: convert it" for suffix, reader in UNREAD.items() if name.lower().endswith(suffix))
    missing = unread_because(name)
    return next(ends, f"read after {missing}" if missing else "")


def glance(source: Any) -> tuple[tuple[int, int], int, str]:
    """Size, channels and depth of an image, with as little decoding as possible.

    Args:
        source: A file of `load_images`, its content, or an array.

    Returns:
        (height, width) in pixels, the number of channels without transparency (1 for gray pictures stored as RGB), and
        the depth.

    Raises:
        ValueError, OSError: If the image cannot be read; the readers may raise other errors, too.
    """
    kind = ""
    if isinstance(source, dict):
        content = source["bytes"] if source["bytes"] is not None else source["path"]
        stored = read_stored(content, Wanted(num_channels=3, keeps_depth=True))
        image, kind = stored.image, stored.kind
    else:
        image = source
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        depth = f"{array.dtype.itemsize * 8} bits" if array.dtype.kind in "bui" else str(array.dtype)
        if array.ndim == 2:
            return array.shape, 1, depth
        first = array.shape[0] < array.shape[-1] and not kind
        height, width, number = (*array.shape[1:], array.shape[0]) if first else array.shape
        return (height, width), number - (kind[-1:] in ("A", "a")), depth
    height, width = upright_size(image)
    if is_deep(image):
        return (height, width), 1, "float32" if image.mode == "F" else "16 bits"
    return (height, width), 1 if _is_gray(image) else len(image.convert("RGB").getbands()), "8 bits"


def _is_gray(image: Image.Image) -> bool:
    if image.mode in ("1", "L", "LA", "La"):
        return True
    image.draft("RGB", (GLANCE, GLANCE))
    image.thumbnail((GLANCE, GLANCE), Image.Resampling.NEAREST)
    colors = np.asarray(image.convert("RGB")).astype(np.int16)
    return bool((colors.max(axis=-1) == colors.min(axis=-1)).all())


def find_copies(names: Sequence[str]) -> tuple[int, tuple[str, str] | None]:
    """Find exact copies among files: those of equal size are compared by content, up to MAX_COMPARED bytes.

    Args:
        names: Their paths.

    Returns:
        How many images are copies of another one, and the names of the first two that are equal.
    """
    by_size: dict[int, list[str]] = defaultdict(list)
    # A file of many images counts once.
    for name in dict.fromkeys(parse_address(name).path for name in names):
        try:
            by_size[os.path.getsize(name)].append(name)
        except OSError:  # a row of a table
            return 0, None
    num_bytes, count, first = 0, 0, None
    for size, equal in by_size.items():
        if len(equal) == 1 or num_bytes + size * len(equal) > MAX_COMPARED:
            continue
        num_bytes += size * len(equal)
        seen: dict[bytes, str] = {}
        for name in equal:
            try:
                digest = hashlib.blake2b(Path(name).read_bytes(), digest_size=16).digest()
            except OSError:
                continue
            if digest in seen:
                count += 1
                first = first or (Path(seen[digest]).name, Path(name).name)
            seen.setdefault(digest, name)
    return count, first


def split_folders(names: Sequence[str]) -> dict[str, int]:
    """Sub-folders of the images that look like a test or validation set.

    Args:
        names: Paths of the images.

    Returns:
        Number of images by folder, below the folder that all images have in common.
    """
    folders = Counter(os.path.dirname(name) for name in names)
    if len(folders) < 2:
        return {}
    root = os.path.commonpath([folder or "." for folder in folders]) if all(folders) else ""
    found = Counter[str]()
    for folder, count in folders.items():
        parts = Path(os.path.relpath(folder, root) if root else folder).parts
        for index, part in enumerate(parts):
            if part.lower() in SPLIT_NAMES:
                found[str(Path(*parts[: index + 1]))] += count
                break
    return dict(found)


def _counts(numbers: dict[str, int]) -> str:
    """Values with their shares, or one value that all have."""
    total = sum(numbers.values())
    if len(numbers) <= 1:
        return "".join(numbers)
    ordered = sorted(numbers.items(), key=lambda item: -item[1])
    return ", ".join(f"{value} ({count / total:.0%})" for value, count in ordered[:3])


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    """Sizes as width x height, and how they spread."""
    if len(set(sizes)) == 1:
        return f"{sizes[0][1]} x {sizes[0][0]} px"
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    (low_height, low_width), (height, width), (high_height, high_width) = (
        ordered[0],
        ordered[len(ordered) // 2],
        ordered[-1],
    )
    return f"{low_width} x {low_height} to {high_width} x {high_height} px, median {width} x {height}"
