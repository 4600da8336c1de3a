"""Images and their maps of class ids: loaded in pairs, and checked before work is lost.

Images are read as for pre-training, of any channels and numbers; annotations are PNG (grey, palette, 1 or 16 bits),
TIFF or `.npy`.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from datasets.utils import tqdm
from PIL import Image
from transformers.utils import logging

from .crops import crop_and_resize, upright_size
from .data import describe, open_row
from .image_channels import upright
from .image_files import open_image
from .image_sources import load_images

logger = logging.get_logger(__name__)


class Pairs(NamedTuple):
    """Images and their annotations, in the same order; rows as `load_images` makes them."""

    images: Dataset
    annotations: Dataset

    def select(self, indices: Sequence[int]) -> "Pairs":
        """Some of the pairs."""
        return Pairs(self.images.select(indices), self.annotations.select(indices))


def load_folder(folder: str | Path) -> Pairs:
    """Load pairs from a folder with `images` and `masks`, nested or not, that have the same names but for suffixes.

    Args:
        folder: The folder.

    Returns:
        The pairs, sorted by name.

    Raises:
        ValueError: If an image has no mask, or a name is there twice.
        FileNotFoundError: If a folder does not exist.
    """
    folders = [Path(folder) / name for name in ("images", "masks")]
    images, masks = (load_images(path) for path in folders)
    rows = [_by_stem(dataset, path) for dataset, path in zip((images, masks), folders, strict=True)]
    lacking = sorted(rows[0].keys() - rows[1].keys())
    if lacking:
        raise ValueError(
            f"{len(lacking)} of {len(rows[0])} images in {folders[0]} have no mask in {folders[1]}, the first is"
            f" {lacking[0]!r}. Give each a mask of the same name, such as {lacking[0]}.png, or move the images away."
        )
    extra = len(rows[1].keys() - rows[0].keys())
    if extra:
        logger.warning(f"{extra} masks in {folders[1]} belong to no image and are left out.")
    names = sorted(rows[0])
    return Pairs(images.select([rows[0][name] for name in names]), masks.select([rows[1][name] for name in names]))


def _by_stem(dataset: Dataset, folder: Path) -> dict[str, int]:
    rows: dict[str, int] = {}
    for index, name in enumerate(dataset["name"]):
        stem = Path(name).relative_to(folder).with_suffix("").as_posix()
        if stem in rows:
            raise ValueError(f"{folder} holds {stem!r} twice, with other suffixes. Remove one of them.")
        rows[stem] = index
    return rows


def load_columns(image_column: str, annotation_column: str, **source: Any) -> Pairs:
    """Load pairs from two columns of a data set.

    Args:
        image_column: Column of the images.
        annotation_column: Column of the maps of class ids.
        **source: The data set, as in `load_images`.

    Returns:
        The pairs.
    """
    return Pairs(*(load_images(image_column=column, **source) for column in (image_column, annotation_column)))


@dataclass
class Labels:
    """What the numbers of annotations mean.

    Args:
        class_names: Name of each class.
        ignore_index: Number of pixels that have no class.
        reduce_labels: Whether 0 is no class either, and the others start at 1, as in ADE20K.
    """

    class_names: list[str]
    ignore_index: int = 255
    reduce_labels: bool = False

    def read(self, row: dict[str, Any]) -> np.ndarray:
        """The annotation of a row as class ids.

        Args:
            row: Of `Pairs.annotations`.

        Returns:
            int32 array (H, W) of classes from 0 and of `ignore_index`.

        Raises:
            ValueError: If it is no map of these classes.
        """
        ids = read_ids(row, self.ignore_index)
        if self.reduce_labels:
            ids = np.where((ids == 0) | (ids == self.ignore_index), self.ignore_index, ids - 1)
        wrong = ids[((ids < 0) | (ids >= len(self.class_names))) & (ids != self.ignore_index)]
        if wrong.size:
            found = int(wrong[0]) + self.reduce_labels
            raise ValueError(
                f"The annotation {row['name']} holds the number {found}, and the {len(self.class_names)} classes are"
                f" {int(self.reduce_labels)} to {len(self.class_names) - 1 + self.reduce_labels}, and"
                f" {self.ignore_index} for none. Name all classes, set ignore_index to that number, or mend the file."
            )
        return ids


def read_ids(row: dict[str, Any], ignore_index: int) -> np.ndarray:
    """The numbers of an annotation, as they are stored.

    Args:
        row: Of `Pairs.annotations`.
        ignore_index: What pixels without a number get, such as those of GDAL's nodata.

    Returns:
        int32 array (H, W).

    Raises:
        ValueError: If it cannot be read, or is no map of whole numbers.
    """
    source = row["image"]
    try:
        if isinstance(source, dict):
            source = open_image(source["bytes"] if source["bytes"] is not None else source["path"], 1, 1.0)
        if isinstance(source, Image.Image):
            source = upright(source)
            if source.mode not in ("1", "L", "P"):
                raise ValueError(f"it is a picture of mode {source.mode}: colours are no class ids, convert them")
        array = np.asarray(source)
        array = array.reshape(array.shape[1:]) if array.ndim == 3 and array.shape[0] == 1 else array
        if array.ndim != 2:
            raise ValueError(f"it has shape {array.shape}, and a map (height, width) of class ids is needed")
        if array.dtype.kind == "f":
            array = np.where(np.isfinite(array), array, ignore_index)
            if (array != np.floor(array)).any():
                raise ValueError("it holds fractions, and class ids are whole numbers")
    except Exception as error:  # readers raise anything on a broken file
        raise ValueError(f"The annotation {row['name']} cannot be used: {describe(error)}.") from error
    return array.astype(np.int32)


class CheckedPairs(NamedTuple):
    """What a look at all pairs showed."""

    pixels: np.ndarray  # int64 (K,): annotated pixels of each class
    largest: int  # largest class id


def check_pairs(
    pairs: Pairs,
    labels: Labels | None,
    num_channels: int,
    rescale_factor: float,
    nodata: float | None = None,
    ignore_index: int = 255,
    decode_images: bool = False,
) -> CheckedPairs:
    """Read every annotation, and the size of every image, before any work depends on them.

    Args:
        pairs: The pairs.
        labels: What the numbers mean; None to find out how many classes there are.
        num_channels: Channels C of the images.
        rescale_factor: What pixels are multiplied with.
        nodata: As in `open_row`.
        ignore_index: Number of pixels without a class.
        decode_images: Whether to decode the images, too.

    Returns:
        What there is of each class.

    Raises:
        ValueError: If an annotation cannot be used, or has not the size of its image; the first one is named, and how
            many there are.
    """

    def check(index: int) -> np.ndarray | str:
        row, annotation = pairs.images[index], pairs.annotations[index]
        try:
            ids = read_ids(annotation, ignore_index) if labels is None else labels.read(annotation)
        except ValueError as error:
            return str(error)
        try:
            image = open_row(row, num_channels, rescale_factor, nodata)
            size = upright_size(image)
            if decode_images:
                crop_and_resize(image, (0, 0, *size[::-1]), (8, 8), num_channels)
        except Exception as error:  # readers raise anything on a broken file
            return f"The image {row['name']} cannot be read ({describe(error)}). Mend it or remove it and its mask."
        if ids.shape != size:
            return (
                f"The annotation {annotation['name']} has {ids.shape[0]}x{ids.shape[1]} pixels and its image"
                f" {size[0]}x{size[1]} (height x width). They must lie on each other pixel by pixel."
            )
        counted = ids[ids != ignore_index]
        if counted.size and counted.min() < 0:
            return f"The annotation {annotation['name']} holds the number {counted.min()}. Class ids start at 0."
        return np.bincount(counted, minlength=1)

    with ThreadPoolExecutor(min(8, cpu_count() or 1)) as pool:
        count = len(pairs.images)
        results = list(tqdm(pool.map(check, range(count)), total=count, desc="checking annotations", unit="image"))
    faults = [result for result in results if isinstance(result, str)]
    if faults:
        others = f" ({len(faults)} of {count} pairs have a fault.)" if len(faults) > 1 else ""
        raise ValueError(faults[0] + others)
    counts: list[np.ndarray] = [result for result in results if not isinstance(result, str)]
    largest = max((len(part) for part in counts), default=1) - 1
    pixels = np.zeros(largest + 1 if labels is None else len(labels.class_names), dtype=np.int64)
    for part in counts:
        pixels[: len(part)] += part
    return CheckedPairs(pixels, largest)
