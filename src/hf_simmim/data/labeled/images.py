"""Labeled images for classification and regression: loading them, and preparing them for a model."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, List, Value
from PIL import Image
from transformers.utils import logging

from ...formats.slicing import Slicing
from ...model.images import fill_missing, has_missing, real_pixels
from ..groups import image_groups
from ..reading import ImageDataset, NoReadableImageError, describe
from ..sampling import sample_generator
from ..sources import (
    check_one_source,
    find_image_column,
    find_label_column,
    folder_rows,
    image_addresses,
    image_rows,
    indicators,
    load_table,
    packed_files,
    packed_rows,
    read_labels,
    shown_url,
    warn_of_like_classes,
)
from ..transforms import Box, as_tensor, center_box, crop_and_resize, normalize, upright_size
from .augmentation import Augmentation, Augmenter

logger = logging.get_logger(__name__)

# The official evaluation resizes images to 256/224 of the size and cuts out the center.
CROP_RATIO = 224 / 256
# Files beside images that are not images themselves.
TEXT_SUFFIXES = {
    ".txt",
    ".csv",
    ".tsv",
    ".json",
    ".jsonl",
    ".md",
    ".xml",
    ".yaml",
    ".yml",
    ".html",
    ".log",
    ".py",
    ".pdf",
}
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "eval"}
# Folders of segmentation data.
PAIR_NAMES = {"images", "masks"}


@dataclasses.dataclass(frozen=True)
class LabeledImages:
    """Images and their labels.

    Args:
        rows: `name`, undecoded `image` and `label`: a class index, a list of K zeros and ones where an image may have
            several of K classes, or a float.
        class_names: Names of the classes; None for float labels.
    """

    rows: Dataset
    class_names: list[str] | None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> list[Any]:
        """The labels of all rows."""
        return self.rows.select_columns("label").with_format(None)["label"][:]

    @property
    def problem_type(self) -> str:
        """`problem_type` of a transformers config."""
        if self.class_names is None:
            return "regression"
        is_single = isinstance(self.rows.features["label"], Value)
        return "single_label_classification" if is_single else "multi_label_classification"

    @property
    def groups(self) -> list[str] | None:
        """Group of each image, from `image_groups`; None if no two images are of one file or series."""
        return image_groups(self.rows["name"][:])

    def select(self, indices: Sequence[int]) -> "LabeledImages":
        """Select rows; the classes stay the same."""
        return LabeledImages(self.rows.select(indices), self.class_names)

    def with_classes(self, class_names: Sequence[str] | None) -> "LabeledImages":
        """Map the labels to other classes: those of the training images.

        Args:
            class_names: Names of the classes, None for floats.

        Returns:
            The same images, with labels that are indices of `class_names`.

        Raises:
            ValueError: If an image has a class that is not in `class_names`, or only one of the two is floats.
        """
        if class_names == self.class_names:
            return self
        if class_names is None or self.class_names is None:
            kind, other = ("numbers", "classes") if self.class_names is None else ("classes", "numbers")
            raise ValueError(f"These labels are {kind} and the training labels {other}. Name columns of one kind.")
        is_single = self.problem_type == "single_label_classification"
        labels = self.labels
        used = set(labels) if is_single else {int(index) for label in labels for index in np.flatnonzero(label)}
        unknown = [self.class_names[index] for index in sorted(used) if self.class_names[index] not in class_names]
        if unknown:
            raise ValueError(
                f"{len(unknown)} classes are not among the {len(class_names)} training classes: {_listed(unknown)}."
                " Remove their images, rename classes that have another name there, or add training images of them."
            )
        position = {name: index for index, name in enumerate(class_names)}
        mapping = {old: position[name] for old, name in enumerate(self.class_names) if name in position}
        if is_single:
            return LabeledImages(_with_labels(self.rows, [mapping[label] for label in labels]), list(class_names))
        chosen = [[mapping[int(index)] for index in np.flatnonzero(label)] for label in labels]
        return LabeledImages(_with_labels(self.rows, indicators(chosen, len(class_names))), list(class_names))


def load_labeled_images(
    folder: str | Path | None = None,
    dataset_name: str | None = None,
    dataset_config: str | None = None,
    data_files: Sequence[str] | None = None,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    slicing: Slicing | None = None,
) -> LabeledImages:
    """Load images and their labels from a folder, the Hub, or parquet and webdataset shards, images undecoded.

    A folder has one sub-folder for each class, with any folders inside. In a dataset the type of the label column
    decides: `ClassLabel`, integers, strings or booleans are one class for each image (strings and integers in
    increasing order); lists of these are several classes; floats are regression targets; lists of floats are a zero or
    one for each class. Images without a label are left out.

    Args:
        folder: Folder of such sub-folders, or one that `hf-simmim pack` wrote with labels.
        dataset_name: Dataset on the Hub, or a local one.
        dataset_config: Configuration of that dataset.
        data_files: Paths, patterns or URLs of `.parquet` or webdataset `.tar` shards.
        split: Split of the dataset.
        image_column: Column of the images; found by its type if None.
        label_column: Column of the labels; if None, the only one of `ClassLabel`, or the only one of integers, strings,
            or lists of those.
        slicing: How volumes, series, stacks and arrays in a folder become images, see `load_images`.

    Returns:
        The labeled images.

    Raises:
        ValueError: If not exactly one source is named, it has no labels, or several columns may be the labels.
        FileNotFoundError: If the folder does not exist.
    """
    check_one_source(folder, dataset_name, data_files)
    if folder is not None:
        if label_column is not None:
            raise ValueError(f"label_column={label_column!r} does nothing in a folder, whose sub-folders are classes.")
        data_files = packed_files(folder)
        if not data_files:
            return _load_folder(Path(folder), slicing)
        split = "train"
    dataset = load_table(dataset_name, dataset_config, data_files, split)
    if folder is not None:
        label_column = _packed_labels(dataset, folder)
    image_column = find_image_column(dataset, image_column)
    label_column = find_label_column(dataset, image_column, label_column)
    labels, class_names = read_labels(dataset, label_column)
    source = dataset_name or ", ".join(map(shown_url, data_files or ()))
    if folder is not None:
        rows = packed_rows(dataset, folder)
    else:
        rows = image_rows(dataset, image_column, f"{source}, {split}")
    kept = [index for index, label in enumerate(labels) if label is not None]
    if len(kept) < len(labels):
        logger.warning(f"{len(labels) - len(kept)} of {len(labels)} images have no label and are left out.")
    if not kept:
        raise ValueError(f"None of {len(labels)} images has a label in column {label_column!r}. Name another column.")
    rows = _with_labels(rows, labels)
    return LabeledImages(rows if len(kept) == len(labels) else rows.select(kept), class_names)


def _packed_labels(dataset: Dataset, folder: str | Path) -> str:
    """Label column of a folder that `hf-simmim pack` wrote."""
    found = [name for name in ("label", "cls") if name in dataset.column_names]
    if not found:
        raise ValueError(
            f"The packed images in {folder} have no labels. Pack them again with --labels folder, or --label_column."
        )
    return found[0]


def _load_folder(folder: Path, slicing: Slicing | None) -> LabeledImages:
    paths = image_addresses(folder, slicing=slicing)
    places = [Path(path).relative_to(folder).parts for path in paths]
    loose = ["/".join(parts) for parts in places if len(parts) == 1]
    if loose:
        raise ValueError(
            f"{len(loose)} images lie directly in {folder}, where their class is unknown: {_listed(loose)}. Move each"
            " into a sub-folder named after its class."
        )
    class_names = sorted({parts[0] for parts in places})
    _refuse_lost_classes(folder, class_names)
    warn_of_like_classes(class_names, str(folder))
    names = {name.lower() for name in class_names}
    if names == PAIR_NAMES:
        raise ValueError(
            f"The sub-folders of {folder} are {' and '.join(class_names)}, which are no classes. For segmentation use"
            " `hf-simmim segment`."
        )
    if names <= SPLIT_NAMES:
        raise ValueError(
            f"The sub-folders of {folder} are {', '.join(class_names)}, which are splits and not classes. Name one of"
            f" them, such as {folder / class_names[0]}."
        )
    position = {name: index for index, name in enumerate(class_names)}
    return LabeledImages(_with_labels(folder_rows(paths), [position[parts[0]] for parts in places]), class_names)


def _refuse_lost_classes(folder: Path, class_names: Sequence[str]) -> None:
    """Refuse sub-folders that hold files and no image: the class would vanish without a word."""
    for place in sorted(folder.iterdir()):
        if place.name in class_names or place.name.startswith(".") or not place.is_dir():
            continue
        suffixes = Counter(path.suffix.lower() or "no suffix" for path in place.rglob("*") if path.is_file())
        unknown = {suffix: count for suffix, count in suffixes.items() if suffix not in TEXT_SUFFIXES}
        if unknown:
            counts = ", ".join(f"{count} x {suffix}" for suffix, count in sorted(unknown.items()))
            raise ValueError(
                f"The class {place.name!r} would be lost: no file in {place} is an image that can be read ({counts})."
                " Convert its images, for example to PNG, or move the sub-folder elsewhere."
            )


def _with_labels(rows: Dataset, labels: list[Any]) -> Dataset:
    first = next(label for label in labels if label is not None)
    kind = Value("int64") if isinstance(first, int) else Value("float32") if isinstance(first, float) else None
    rows = rows.remove_columns("label") if "label" in rows.column_names else rows
    return rows.add_column("label", labels, feature=kind or List(Value("float32")))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


class LabeledImageDataset(ImageDataset):
    """Labeled images, prepared for a classifier.

    With `augmentation` a sample depends only on (seed, epoch, index), not on the workers; `set_epoch`, which
    `EpochCallback` calls, sets the epoch. An unreadable image is replaced by another at random, with its label. Without
    `augmentation`, for evaluation, the sample is a center crop, and an unreadable image is an error: find those early
    with `check_images`.

    Args:
        rows: Rows of `LabeledImages`.
        image_size: (height, width) of the result, in pixels.
        num_channels: Channels C that the model takes.
        image_mean: Mean of each channel of rescaled pixels.
        image_std: Standard deviation of each channel of rescaled pixels.
        rescale_factor: Factor that pixels are multiplied by.
        augmentation: Settings of the augmentation; None for evaluation.
        seed: Seed of the augmentation.
        nodata: Value of missing pixels in the file: a pixel is missing if all its channels have this value.
        crop_ratio: Side of the center crop, as a fraction of the largest crop of the same aspect ratio: 1 for all of
            it, None for 0.875, as in the official evaluation.
        resample: Pillow's resampling filter.
        image_decoder: What decodes JPEG files for random crops, a name of `DECODERS`; evaluation is by Pillow.

    Source: `build_transform` in data/data_finetune.py of microsoft/SimMIM.
    """

    def __init__(
        self,
        rows: Dataset,
        image_size: tuple[int, int],
        num_channels: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        rescale_factor: float = 1 / 255,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        nodata: float | None = None,
        crop_ratio: float | None = None,
        resample: int = Image.Resampling.BICUBIC,
        image_decoder: str = "pillow",
    ):
        super().__init__(rows, image_size, num_channels, seed, rescale_factor, nodata)
        if len(image_mean) != num_channels or len(image_std) != num_channels:
            raise ValueError(
                f"image_mean has {len(image_mean)} and image_std {len(image_std)} values for {num_channels} channels."
                " Give one for each channel."
            )
        self.crop_ratio = CROP_RATIO if crop_ratio is None else crop_ratio
        if not 0 < self.crop_ratio <= 1:
            raise ValueError(f"crop_ratio={crop_ratio} must be in (0, 1], such as 0.875.")
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.resample = resample
        self.augmentation = augmentation
        self._augmenter = None
        if augmentation is not None:
            self._augmenter = Augmenter(augmentation, image_size, num_channels, image_mean, resample, image_decoder)
        # In shared memory, because workers live through several epochs.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the augmentation depends on; running workers see it too."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Load one sample.

        Args:
            index: Index of the image.

        Returns:
            `pixel_values` float32 (C, H, W), normalized, with the channel's mean at missing pixels; `labels`, as in the
            row; and `key`, which seeds the draws of `MixingCollator` and is empty in evaluation.

        Raises:
            NoReadableImageError: If the image cannot be read, or in training too many replacements in a row cannot.
        """
        if self._augmenter is None:
            row = self.images[index]
            return {"pixel_values": self.whole(row), "labels": row["label"], "key": ""}
        epoch = int(self._epoch)
        generator, augmenter = sample_generator(self.seed, epoch, index), self._augmenter
        array, row, unreadable = self.read(index, generator, lambda image: augmenter.crop(image, generator))
        for name, reason in unreadable:
            logger.warning_once(f"{name} cannot be read and is replaced by another ({reason}).")
        values = self._normalized(as_tensor(augmenter.recolor(array, generator)))
        augmenter.erase(values, generator)
        return {"pixel_values": values, "labels": row["label"], "key": f"{epoch}:{index}"}

    def whole(self, row: dict[str, Any]) -> torch.Tensor:
        """Prepare an image for evaluation, without randomness: its center crop.

        Args:
            row: `name` and undecoded `image`; a label is not needed.

        Returns:
            Normalized pixel values (C, H, W), float32.

        Raises:
            NoReadableImageError: If the image cannot be read.
        """
        try:
            image = self.open(row)
            left, top, right, bottom = center_box(upright_size(image), self.image_size)
            x, y = ((1 - self.crop_ratio) / 2 * side for side in (right - left, bottom - top))
            box: Box = (left + x, top + y, right - x, bottom - y)
            pixels = as_tensor(crop_and_resize(image, box, self.image_size, self.num_channels, self.resample))
        except Exception as error:  # readers raise anything on a broken file
            raise NoReadableImageError(
                f"The image {row['name']} cannot be read ({describe(error)}). Fix or remove it."
            ) from error
        return self._normalized(pixels)

    def _normalized(self, pixels: torch.Tensor) -> torch.Tensor:
        if has_missing(pixels):
            pixels = fill_missing(pixels, real_pixels(pixels))
        return normalize(pixels[None], self.image_mean, self.image_std, self.rescale_factor)[0]


class WholeImageDataset(LabeledImageDataset):
    """Images without labels, prepared for evaluation; arguments as in `LabeledImageDataset`."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Load one sample.

        Args:
            index: Index of the image.

        Returns:
            `index` and `pixel_values` float32 (C, H, W), normalized; for an unreadable image `index` and `reason`.
        """
        try:
            return {"index": index, "pixel_values": self.whole(self.images[index])}
        except NoReadableImageError as error:
            return {"index": index, "reason": describe(error.__cause__ if error.__cause__ is not None else error)}  # type: ignore[arg-type]
