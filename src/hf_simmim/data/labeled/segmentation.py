"""Semantic segmentation data: image and annotation pairs, their checks, random crops and batches.

Images are read as for pre-training, with any number of channels and any dtype; annotations are PNG (gray, palette, 1 or
16 bits), TIFF or `.npy` files of class ids, see `annotations.py`.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os import cpu_count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from datasets.utils import tqdm
from PIL import Image
from transformers.utils import logging

from ...formats.address import Address, parse_address
from ...formats.parts import orientations
from ...formats.slicing import Slicing
from ...model.images import fill_missing, has_missing, real_pixels
from ..reading import NUM_TRIES, NoReadableImageError, describe, open_row
from ..sampling import sample_generator
from ..sources import load_images
from ..transforms import Box, crop_and_resize, upright_size
from .annotations import read_ids

logger = logging.get_logger(__name__)


class SegmentationPairs(NamedTuple):
    """Images and their annotations, in the same order; rows from `load_images`."""

    images: Dataset
    annotations: Dataset

    def select(self, indices: Sequence[int]) -> "SegmentationPairs":
        """Select pairs."""
        return SegmentationPairs(self.images.select(indices), self.annotations.select(indices))


def load_folder(folder: str | Path, slicing: Slicing | None = None) -> SegmentationPairs:
    """Load pairs from a folder with `images` and `masks`, nested or not, whose file names differ only in the suffix.

    A slice of a volume and the same slice of the mask's volume are a pair.

    Args:
        folder: The folder.
        slicing: How volumes, series, stacks and arrays become images, see `load_images`. Masks have no neighbors.

    Returns:
        The pairs, sorted by name.

    Raises:
        ValueError: If an image has no mask, a name occurs twice, or a volume and its mask lie differently.
        FileNotFoundError: If a folder does not exist.
    """
    folders = [Path(folder) / name for name in ("images", "masks")]
    single = None if slicing is None else replace(slicing, slice_neighbors=0, gray_window=None)
    images, masks = (load_images(path, slicing=each) for path, each in zip(folders, (slicing, single), strict=True))
    rows = [_by_stem(dataset, path) for dataset, path in zip((images, masks), folders, strict=True)]
    lacking = sorted(rows[0].keys() - rows[1].keys())
    if lacking:
        raise ValueError(
            f"{len(lacking)} of {len(rows[0])} images in {folders[0]} have no mask in {folders[1]}; the first is"
            f" {lacking[0]!r}. Add masks of the same names, such as {lacking[0]}.png, or remove the images."
        )
    extra = len(rows[1].keys() - rows[0].keys())
    if extra:
        logger.warning(f"{extra} masks in {folders[1]} have no image and are left out.")
    names = sorted(rows[0])
    pairs = SegmentationPairs(
        images.select([rows[0][name] for name in names]), masks.select([rows[1][name] for name in names])
    )
    check_orientations(pairs.images["name"], pairs.annotations["name"])
    return pairs


def check_orientations(images: Sequence[str], masks: Sequence[str]) -> None:
    """Refuse volumes whose masks are stored in another orientation, so that their slices show other places.

    Args:
        images: Paths and addresses of images.
        masks: Those of their masks, in the same order.

    Raises:
        ValueError: If one lies differently, and is not turned.
    """
    stored = [orientations(list(names)) for names in (images, masks)]
    if not all(stored):
        return
    for image, mask in zip(images, masks, strict=True):
        paths = [parse_address(name).path for name in (image, mask)]
        found = [volumes.get(path, "unknown") for volumes, path in zip(stored, paths, strict=True)]
        if "unknown" not in found and found[0] != found[1]:
            raise ValueError(
                f"{paths[0]} is stored in the orientation {found[0]}, and its mask in {found[1]}, so that their slices"
                " do not show the same places. Turn both, for example with --orientation RAS."
            )


def _by_stem(dataset: Dataset, folder: Path) -> dict[str, int]:
    rows: dict[str, int] = {}
    for index, name in enumerate(dataset["name"]):
        stem = stem_of(name, folder)
        if stem in rows:
            raise ValueError(f"{folder} holds {stem!r} twice, with different suffixes. Remove one of them.")
        rows[stem] = index
    return rows


def stem_of(name: str, folder: Path) -> str:
    """What an image and its mask have in common.

    Args:
        name: Path, or address of an image inside a file.
        folder: Folder of the images, or of the masks.

    Returns:
        The path below the folder without its suffix, and which image of the file it is.
    """
    address = parse_address(name)
    path = Path(address.path).relative_to(folder)
    if path.name.lower().endswith(".nii.gz"):
        path = path.with_suffix("")
    part = {key: value for key, value in address.part.items() if key not in ("neighbors", "of", "series", "window")}
    return str(Address(path.with_suffix("").as_posix(), part))


def load_columns(image_column: str, annotation_column: str, **source: Any) -> SegmentationPairs:
    """Load pairs from two columns of a dataset.

    Args:
        image_column: Column of the images.
        annotation_column: Column of the maps of class ids.
        **source: The dataset, as in `load_images`.

    Returns:
        The pairs.
    """
    return SegmentationPairs(
        *(load_images(image_column=column, **source) for column in (image_column, annotation_column))
    )


@dataclass
class SegmentationLabels:
    """Meaning of the values in annotations.

    Args:
        class_names: Name of each class.
        ignore_index: Value of pixels without a class.
        reduce_labels: Whether 0 means no class as well, and classes start at 1, as in ADE20K.
    """

    class_names: list[str]
    ignore_index: int = 255
    reduce_labels: bool = False

    def read(self, row: dict[str, Any]) -> np.ndarray:
        """Read the annotation of a row as class ids.

        Args:
            row: Row of `SegmentationPairs.annotations`.

        Returns:
            int32 array (H, W) of class ids from 0, and `ignore_index`.

        Raises:
            ValueError: If the annotation is not a map of these classes.
        """
        ids = read_ids(row, self.ignore_index)
        if self.reduce_labels:
            ids = np.where((ids == 0) | (ids == self.ignore_index), self.ignore_index, ids - 1)
        wrong = ids[((ids < 0) | (ids >= len(self.class_names))) & (ids != self.ignore_index)]
        if wrong.size:
            found = int(wrong[0]) + self.reduce_labels
            raise ValueError(
                f"The annotation {row['name']} has the value {found}; the {len(self.class_names)} classes are"
                f" {int(self.reduce_labels)} to {len(self.class_names) - 1 + self.reduce_labels}, and"
                f" {self.ignore_index} is ignored. Name all classes, set ignore_index to that value, or fix the file."
            )
        return ids


class CheckedPairs(NamedTuple):
    """Result of `check_pairs`."""

    pixels: np.ndarray  # int64 (K,): annotated pixels of each class
    largest: int  # largest class id


def check_pairs(
    pairs: SegmentationPairs,
    labels: SegmentationLabels | None,
    num_channels: int,
    rescale_factor: float,
    nodata: float | None = None,
    ignore_index: int = 255,
    decode_images: bool = False,
) -> CheckedPairs:
    """Read every annotation, and the size of every image, before any work depends on them.

    Args:
        pairs: The pairs.
        labels: Meaning of the values; None to find out the number of classes.
        num_channels: Channels C of the images.
        rescale_factor: Factor that pixels are multiplied by.
        nodata: As in `open_row`.
        ignore_index: Value of pixels without a class.
        decode_images: Whether to decode the images, too.

    Returns:
        Number of pixels of each class, and the largest class id.

    Raises:
        ValueError: If an annotation cannot be used, or its size differs from that of its image; the message names the
            first one and their number.
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
            return f"The image {row['name']} cannot be read ({describe(error)}). Fix it, or remove it and its mask."
        if ids.shape != size:
            return (
                f"The annotation {annotation['name']} has {ids.shape[0]}x{ids.shape[1]} pixels and its image"
                f" {size[0]}x{size[1]} (height x width). Their sizes must be equal."
            )
        counted = ids[ids != ignore_index]
        if counted.size and counted.min() < 0:
            return f"The annotation {annotation['name']} has the value {counted.min()}. Class ids start at 0."
        return np.bincount(counted, minlength=1)

    with ThreadPoolExecutor(min(8, cpu_count() or 1)) as pool:
        count = len(pairs.images)
        results = list(tqdm(pool.map(check, range(count)), total=count, desc="checking annotations", unit="image"))
    faults = [result for result in results if isinstance(result, str)]
    if faults:
        others = f" ({len(faults)} of {count} pairs are invalid.)" if len(faults) > 1 else ""
        raise ValueError(faults[0] + others)
    counts: list[np.ndarray] = [result for result in results if not isinstance(result, str)]
    largest = max((len(part) for part in counts), default=1) - 1
    pixels = np.zeros(largest + 1 if labels is None else len(labels.class_names), dtype=np.int64)
    for part in counts:
        pixels[: len(part)] += part
    return CheckedPairs(pixels, largest)


# Attempts to draw a crop without a dominating class, as in mmsegmentation.
CROP_TRIES = 10
# Largest longer side after resizing, as a multiple of `short_side`.
MAX_ASPECT = 4


@dataclass
class PixelSettings:
    """Settings that turn images into `pixel_values`, as in the image processor."""

    num_channels: int
    rescale_factor: float
    image_mean: Sequence[float]
    image_std: Sequence[float]
    nodata: float | None = None

    def normalize(self, pixels: np.ndarray) -> torch.Tensor:
        """Normalize uint8 or float32 (H, W, C) to float32 (C, H, W)."""
        tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 0))).float()
        mean, std = (torch.tensor(list(values)).view(-1, 1, 1) for values in (self.image_mean, self.image_std))
        return (tensor * self.rescale_factor - mean) / std

    def prepare(self, pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Normalize pixels, and fill missing ones.

        Args:
            pixels: uint8 or float32 array (H, W, C), NaN at missing pixels.

        Returns:
            `pixel_values` float32 (C, H, W); and a map (H, W), False at missing pixels, or None if there are none.
        """
        pixel_values = self.normalize(pixels)
        if not has_missing(pixel_values):
            return pixel_values, None
        pixel_mask = real_pixels(pixel_values)
        return fill_missing(pixel_values, pixel_mask), pixel_mask


def scale_to(size: tuple[int, int], short_side: int | None) -> float:
    """Factor that brings an image of `size` (height, width) to a shorter side in pixels; 1 if that is None."""
    if short_side is None:
        return 1.0
    return min(short_side / min(size), MAX_ASPECT * short_side / max(size))


def resize_whole(image: Image.Image | np.ndarray, num_channels: int, short_side: int | None) -> np.ndarray:
    """Decode a whole image and resize it as for evaluation.

    Args:
        image: Opened image, as in `crop_and_resize`.
        num_channels: Channels C of the result.
        short_side: Shorter side of the result in pixels; None to keep the size.

    Returns:
        Array of shape (h, w, C), uint8 or float32.
    """
    height, width = upright_size(image)
    scale = scale_to((height, width), short_side)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return crop_and_resize(image, (0.0, 0.0, float(width), float(height)), size, num_channels)


def prepare_whole(image: Image.Image | np.ndarray, pixels: PixelSettings, short_side: int | None) -> torch.Tensor:
    """Prepare a whole image without an annotation, as `SegmentationDataset` prepares it for evaluation.

    Args:
        image: Opened image, as in `crop_and_resize`.
        pixels: Settings of normalization.
        short_side: As in `resize_whole`.

    Returns:
        `pixel_values` float32 (C, h, w).
    """
    return pixels.prepare(resize_whole(image, pixels.num_channels, short_side))[0]


class SegmentationDataset(torch.utils.data.Dataset):
    """Image and annotation pairs, prepared for a model: random crops for training, or whole images for evaluation.

    For training, an image's shorter side is resized to `short_side` times a random scale. A crop in which no class
    takes more than `max_class_share` is cut out, flipped at random, and color-distorted if it is 8-bit RGB.

    Args:
        pairs: Images and annotations.
        labels: Meaning of the values in annotations.
        pixels: Settings of reading and normalization.
        short_side: Shorter side in pixels that images are resized to; None to keep their size.
        crop_size: (height, width) of crops in pixels; None for whole images without randomness.
        seed: Seed of the random draws.
        scales: Smallest and largest random scale.
        max_class_share: Largest share of one class in a crop's annotated pixels; after ten attempts any crop is
            accepted.

    Source: configs/_base_/datasets/ade20k.py of Swin-Transformer-Semantic-Segmentation, whose base size is 2048x512.
    """

    def __init__(
        self,
        pairs: SegmentationPairs,
        labels: SegmentationLabels,
        pixels: PixelSettings,
        short_side: int | None = None,
        crop_size: tuple[int, int] | None = None,
        seed: int = 0,
        scales: Sequence[float] = (0.5, 2.0),
        max_class_share: float = 0.75,
    ):
        if len(scales) != 2 or not 0 < scales[0] <= scales[1]:
            raise ValueError(f"scales={tuple(scales)} must be (min, max) above 0, such as 0.5 2.0.")
        self.pairs = pairs
        self.labels = labels
        self.pixels = pixels
        self.short_side = short_side
        self.crop_size = crop_size
        self.seed = seed
        self.scales = scales
        self.max_class_share = max_class_share
        # In shared memory, because workers live through several epochs.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.pairs.images)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the random crops depend on."""
        self.epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Load one sample.

        Args:
            index: Index of the pair.

        Returns:
            `pixel_values` float32 (C, h, w) and `labels` int64 (h, w); for whole images also `annotation` int32 (H, W)
            of the stored size.

        Raises:
            NoReadableImageError: If `NUM_TRIES` pairs in a row cannot be read.
        """
        if self.crop_size is None:
            return self._whole(index)
        generator = sample_generator(self.seed, int(self.epoch), index)
        for _ in range(NUM_TRIES):
            try:
                return self._crop(index, generator)
            except Exception as error:  # readers raise anything on a broken file
                logger.warning(f"{self.pairs.images[index]['name']} is replaced by another ({describe(error)}).")
            index = int(torch.randint(len(self), (), generator=generator))
        raise NoReadableImageError(f"{NUM_TRIES} randomly drawn images in a row cannot be read. Fix or remove them.")

    def _open(self, index: int) -> tuple[Image.Image | np.ndarray, np.ndarray]:
        """The image and its class ids."""
        image = open_row(
            self.pairs.images[index], self.pixels.num_channels, self.pixels.rescale_factor, self.pixels.nodata
        )
        return image, self.labels.read(self.pairs.annotations[index])

    def _whole(self, index: int) -> dict[str, torch.Tensor]:
        image, ids = self._open(index)
        array = resize_whole(image, self.pixels.num_channels, self.short_side)
        box = (0.0, 0.0, float(ids.shape[1]), float(ids.shape[0]))
        pixel_values, labels = self._tensors(array, _resize_ids(ids, box, (array.shape[0], array.shape[1])))
        return {"pixel_values": pixel_values, "labels": labels, "annotation": torch.from_numpy(ids.copy())}

    def _crop(self, index: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        image, ids = self._open(index)
        low, high = self.scales
        scale = scale_to((ids.shape[0], ids.shape[1]), self.short_side)
        scale *= low + (high - low) * float(torch.rand((), generator=generator))
        height, width = ids.shape
        scaled = (max(1, round(height * scale)), max(1, round(width * scale)))
        size = (min(scaled[0], self.crop_size[0]), min(scaled[1], self.crop_size[1]))  # type: ignore[index]
        for _ in range(CROP_TRIES):
            top, left = (
                int(torch.randint(whole - part + 1, (), generator=generator))
                for whole, part in zip(scaled, size, strict=True)
            )
            zoom_y, zoom_x = height / scaled[0], width / scaled[1]
            box = (left * zoom_x, top * zoom_y, (left + size[1]) * zoom_x, (top + size[0]) * zoom_y)
            crop_ids = _resize_ids(ids, box, size)
            counts = np.unique(crop_ids[crop_ids != self.labels.ignore_index], return_counts=True)[1]
            if self.max_class_share >= 1 or (len(counts) > 1 and counts.max() < self.max_class_share * counts.sum()):
                break
        array = crop_and_resize(image, box, size, self.pixels.num_channels)
        if torch.rand((), generator=generator) < 0.5:
            array, crop_ids = array[:, ::-1], crop_ids[:, ::-1]
        if array.dtype == np.uint8 and array.shape[-1] == 3:
            array = distort_colors(array, generator)
        pixel_values, labels = self._tensors(array, crop_ids)
        pad = (0, self.crop_size[1] - size[1], 0, self.crop_size[0] - size[0])  # type: ignore[index]
        return {
            "pixel_values": F.pad(pixel_values, pad),
            "labels": F.pad(labels, pad, value=self.labels.ignore_index),
        }

    def _tensors(self, array: np.ndarray, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        pixel_values, pixel_mask = self.pixels.prepare(array)
        labels = torch.from_numpy(ids.astype(np.int64))
        if pixel_mask is not None:
            # The loss ignores missing pixels.
            labels = labels.masked_fill(~pixel_mask, self.labels.ignore_index)
        return pixel_values, labels


def _resize_ids(ids: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """Resize a box (left, top, right, bottom) of class ids to a size (height, width)."""
    height, width = ids.shape
    inside = (box[0], box[1], min(box[2], width), min(box[3], height))
    return np.asarray(Image.fromarray(ids).resize(size[::-1], Image.Resampling.NEAREST, box=inside))


def distort_colors(pixels: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, each with probability 0.5.

    Args:
        pixels: uint8 array (H, W, 3).
        generator: Random generator.

    Returns:
        uint8 array of the same shape.

    Source: `PhotoMetricDistortion` of mmsegmentation, with its ranges.
    """
    applies = (torch.rand(5, generator=generator) < 0.5).tolist()
    amounts = torch.rand(4, generator=generator).tolist()
    brightness, hue = 64 * amounts[0] - 32, round((36 * amounts[3] - 18) / 180 * 256)
    contrast, saturation = 0.5 + amounts[1], 0.5 + amounts[2]
    contrast_first = applies[4]
    if applies[0]:
        pixels = _to_bytes(pixels + np.float32(brightness))
    if applies[1] and contrast_first:
        pixels = _to_bytes(pixels * np.float32(contrast))
    if applies[2] or applies[3]:
        hsv = np.array(Image.fromarray(np.ascontiguousarray(pixels)).convert("HSV"))
        if applies[2]:
            hsv[..., 1] = _to_bytes(hsv[..., 1] * np.float32(saturation))
        if applies[3]:
            hsv[..., 0] = (hsv[..., 0].astype(np.int16) + hue) % 256
        pixels = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    if applies[1] and not contrast_first:
        pixels = _to_bytes(pixels * np.float32(contrast))
    return pixels


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


@dataclass
class CollatePairs:
    """Collates pairs; whole images are padded to the largest of them, rounded up to multiples of the stride.

    Args:
        stride: Divisor of the padded height and width, in pixels.
        ignore_index: Class id of padding.
    """

    stride: int
    ignore_index: int

    def __call__(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Collate a batch.

        Args:
            samples: Samples of `SegmentationDataset`.

        Returns:
            `pixel_values` (B, C, h, w) and `labels` (B, h, w); for whole images also `annotations` (B, N), flattened
            and padded so that they can be gathered from many processes, and `sizes` (B, 4): height and width of each
            image before padding and of its annotation.
        """
        if "annotation" not in samples[0]:
            return {key: torch.stack([sample[key] for sample in samples]) for key in ("pixel_values", "labels")}
        images, labels, annotations = (
            [sample[key] for sample in samples] for key in ("pixel_values", "labels", "annotation")
        )
        height, width = (-(-max(image.shape[axis] for image in images) // self.stride) * self.stride for axis in (1, 2))
        longest = max(annotation.numel() for annotation in annotations)
        pads = [(0, width - image.shape[2], 0, height - image.shape[1]) for image in images]
        return {
            "pixel_values": torch.stack([F.pad(image, by) for image, by in zip(images, pads, strict=True)]),
            "labels": torch.stack(
                [F.pad(ids, by, value=self.ignore_index) for ids, by in zip(labels, pads, strict=True)]
            ),
            "annotations": torch.stack(
                [F.pad(ids.flatten(), (0, longest - ids.numel()), value=self.ignore_index) for ids in annotations]
            ),
            "sizes": torch.tensor(
                [[*image.shape[1:], *annotation.shape] for image, annotation in zip(images, annotations, strict=True)]
            ),
        }
