"""From pictures on disk to batches: loading, decoding, cropping and masking, all reproducible.

What happens to a training image is a function of (seed, epoch, index) alone, so the number of workers, the number of
processes and a resumed run change nothing. Evaluation images are a function of their index alone.
"""

import hashlib
import io
import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, load_dataset
from datasets import Image as ImageFeature
from PIL import ExifTags, Image
from torch.utils.data import Sampler

from .image_processing_simmim import convert_channels, upright
from .masking import MASK_STRATEGIES, mask_units, num_masked_units

NUM_SUBSTITUTES = 16


class NoReadableImageError(ValueError):
    """None of the images could be decoded, or too few of them."""


def sample_generator(*key: int) -> torch.Generator:
    """A generator for one sample, seeded by any integers that name it (seed, epoch, index)."""
    digest = hashlib.blake2b(struct.pack(f"<{len(key)}q", *key), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class EpochSampler(Sampler[int]):
    """Shuffles anew every epoch, and tells the dataset the epoch.

    Yields `epoch * num_samples + index`: a worker process learns the epoch from the key itself, however long it lives.

    Args:
        num_samples: Length of the dataset.
        seed: Seed of the order.
    """

    def __init__(self, num_samples: int, seed: int):
        self.num_samples = num_samples
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.num_samples, generator=sample_generator(self.seed, self.epoch))
        yield from (order + self.epoch * self.num_samples).tolist()


class MaskedImageDataset(torch.utils.data.Dataset):
    """Images as uint8 tensors with a mask each.

    Args:
        images: Rows with one column `image` that holds undecoded images (`load_images` makes them).
        image_size: (height, width) to crop and resize to, in pixels.
        num_channels: Channels C that the model takes.
        patch_size: Side of the model's patches, in pixels.
        mask_strategy: Name of the masking strategy.
        mask_patch_size: Side of the squares that are hidden or shown as a whole, in pixels.
        mask_ratio: Share of the image to hide, in (0, 1).
        seed: Seed of crops, flips and masks.
        crop_scale: Smallest and largest share of the image's area that a crop covers; None for the largest crop at the
            centre, without flips, the same in every epoch.

    Raises:
        ValueError: If image, mask patch, model patch and ratio do not fit each other.

    Source: `SimMIMTransform` in data/data_simmim.py of microsoft/SimMIM.
    """

    def __init__(
        self,
        images: Dataset,
        image_size: tuple[int, int],
        num_channels: int,
        patch_size: int,
        mask_strategy: str = "random",
        mask_patch_size: int = 32,
        mask_ratio: float = 0.6,
        seed: int = 0,
        crop_scale: Sequence[float] | None = (0.67, 1.0),
    ):
        if mask_strategy not in MASK_STRATEGIES:
            raise ValueError(f"mask_strategy={mask_strategy!r} is unknown. Use one of: {', '.join(MASK_STRATEGIES)}.")
        if crop_scale is not None and (len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1):
            raise ValueError(f"crop_scale={tuple(crop_scale)} must be two rising shares in (0, 1], such as 0.67 1.0.")
        self.images = images
        self.image_size = image_size
        self.num_channels = num_channels
        self.grid_size, self.unit_size = mask_units(image_size, patch_size, mask_patch_size)
        num_masked_units(self.grid_size[0] * self.grid_size[1] // self.unit_size**2, mask_ratio)
        self.mask_strategy = MASK_STRATEGIES[mask_strategy]
        self.mask_ratio = mask_ratio
        self.seed = seed
        self.crop_scale = crop_scale

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int) -> dict[str, Any]:
        """One sample.

        Args:
            key: `epoch * len(self) + index`; in epoch 0 that is the index.

        Returns:
            `pixel_values` uint8 (C, H, W), `bool_masked_pos` bool (N,), and `unreadable`, a list of (name, reason) of
            images that could not be decoded and in whose place the next readable one stands.
        """
        epoch, index = divmod(key, len(self))
        generator = sample_generator(self.seed, epoch if self.crop_scale else 0, index)
        pixels, unreadable = self._read(index, generator)
        mask = self.mask_strategy(self.grid_size, self.mask_ratio, 1, unit_size=self.unit_size, generator=generator)
        return {"pixel_values": pixels, "bool_masked_pos": mask.flatten(), "unreadable": unreadable}

    def _read(self, index: int, generator: torch.Generator) -> tuple[torch.Tensor, list[tuple[str, str]]]:
        unreadable: list[tuple[str, str]] = []
        for offset in range(min(NUM_SUBSTITUTES, len(self))):
            row = self.images[(index + offset) % len(self)]["image"]
            try:
                return self._decode(open_image(row), generator), unreadable
            except Exception as error:  # Pillow's plugins raise anything on a broken file
                unreadable.append((image_name(row, (index + offset) % len(self)), f"{type(error).__name__}: {error}"))
        raise NoReadableImageError(
            f"{len(unreadable)} images in a row cannot be read; the first is {unreadable[0][0]} ({unreadable[0][1]})."
            " Remove them or name another folder."
        )

    def _decode(self, image: Image.Image, generator: torch.Generator) -> torch.Tensor:
        flip = False
        size = upright_size(image)
        if self.crop_scale is None:
            box = center_box(size, self.image_size)
        else:
            box = random_box(size, self.crop_scale, generator)
            flip = bool(torch.rand((), generator=generator) < 0.5)
        array = crop_and_resize(image, box, self.image_size, self.num_channels)
        # Copied: Pillow's buffer is read-only, and a flipped view has negative strides.
        return torch.from_numpy(np.array(array[:, ::-1] if flip else array)).permute(2, 0, 1).contiguous()


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples of `MaskedImageDataset` to a batch: tensors stacked, the lists of unreadable images joined."""
    batch: dict[str, Any] = {
        key: torch.stack([sample[key] for sample in samples]) for key in ("pixel_values", "bool_masked_pos")
    }
    batch["unreadable"] = [entry for sample in samples for entry in sample["unreadable"]]
    return batch


def open_image(row: dict[str, Any]) -> Image.Image:
    """Open an undecoded row of a `datasets.Image` column; the pixels are decoded later."""
    return Image.open(io.BytesIO(row["bytes"]) if row["bytes"] is not None else row["path"])


def image_name(row: dict[str, Any], index: int) -> str:
    """Path of a row, or its number where it has none."""
    return row["path"] or f"image {index}"


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) after the EXIF orientation is applied, without decoding."""
    lies = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (image.width, image.height) if lies else (image.height, image.width)


def random_box(
    size: tuple[int, int],
    scale: Sequence[float],
    generator: torch.Generator,
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[float, float, float, float]:
    """A random crop as torchvision's `RandomResizedCrop` draws it.

    Args:
        size: (height, width) of the image.
        scale: Smallest and largest share of its area.
        generator: Source of randomness.
        aspect: Smallest and largest width / height, drawn evenly on a logarithmic scale.

    Returns:
        (left, top, right, bottom) in pixels.
    """
    height, width = size
    low, high = (math.log(bound) for bound in aspect)
    for _ in range(10):
        share, ratio, x, y = torch.rand(4, generator=generator).tolist()
        area = height * width * (scale[0] + share * (scale[1] - scale[0]))
        ratio = math.exp(low + ratio * (high - low))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = math.floor(x * (width - crop_width + 1))
            top = math.floor(y * (height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    ratio = min(max(width / height, aspect[0]), aspect[1])
    return center_box(size, (1.0, ratio))


def center_box(size: tuple[int, int], aspect_of: tuple[float, float]) -> tuple[float, float, float, float]:
    """The largest crop at the centre of an image (height, width) that has the proportions of `aspect_of`."""
    height, width = size
    zoom = min(height / aspect_of[0], width / aspect_of[1])
    crop_height, crop_width = aspect_of[0] * zoom, aspect_of[1] * zoom
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return left, top, left + crop_width, top + crop_height


def crop_and_resize(
    image: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int], num_channels: int
) -> np.ndarray:
    """Decode, turn upright, crop and resize in as few passes as Pillow allows.

    JPEG files are decoded at the smallest of libjpeg's scales that still has as many pixels as are wanted.

    Args:
        image: Opened picture, not yet decoded.
        box: (left, top, right, bottom) in the upright picture.
        size: (height, width) of the result.
        num_channels: Channels C of the result.

    Returns:
        uint8 array of shape (height, width, C).
    """
    height, width = upright_size(image)
    scale = max(size[0] / (box[3] - box[1]), size[1] / (box[2] - box[0]))
    if image.format in ("JPEG", "MPO") and scale < 0.5:
        image.draft(image.mode, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
    image = convert_channels(upright(image), num_channels)
    zoom_x, zoom_y = image.width / width, image.height / height
    box = (box[0] * zoom_x, box[1] * zoom_y, box[2] * zoom_x, box[3] * zoom_y)
    box = (max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height))
    image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def load_images(
    folder: str | Path | None = None,
    dataset_name: str | None = None,
    dataset_config: str | None = None,
    data_files: Sequence[str] | None = None,
    split: str = "train",
    image_column: str | None = None,
) -> Dataset:
    """Load images from a folder, the Hub, or parquet and webdataset shards, undecoded.

    Args:
        folder: Folder of image files, nested or not; names and sub-folders mean nothing.
        dataset_name: Data set on the Hub, or a local one that `datasets.load_dataset` reads.
        dataset_config: Configuration of that data set.
        data_files: Paths, patterns or URLs of `.parquet` or webdataset `.tar` shards.
        split: Split to take of a data set.
        image_column: Column that holds the images; found by its type if None.

    Returns:
        Rows with one column `image`, undecoded.

    Raises:
        ValueError: If not exactly one source is named, or it holds no images.
        FileNotFoundError: If the folder does not exist.
    """
    if sum(source is not None for source in (folder, dataset_name, data_files)) != 1:
        raise ValueError("Name one source of images: a folder, a data set or data files.")
    if folder is not None:
        return _load_folder(Path(folder))
    if data_files is not None:
        dataset = load_dataset(_shard_format(data_files), data_files={split: list(data_files)}, split=split)
    else:
        dataset = load_dataset(dataset_name, dataset_config)
        if isinstance(dataset, DatasetDict):
            if split not in dataset:
                raise ValueError(f"{dataset_name} has no split {split!r}. It has: {', '.join(dataset)}.")
            dataset = dataset[split]
    column = _image_column(dataset, image_column)
    dataset = dataset.select_columns([column]).cast_column(column, ImageFeature(decode=False))
    return dataset if column == "image" else dataset.rename_column(column, "image")


def _load_folder(folder: Path) -> Dataset:
    if not folder.is_dir():
        raise FileNotFoundError(f"The image folder {folder} does not exist. Check the path.")
    # Formats that Pillow can write but not read (PDF, for one) are no image files to us.
    Image.init()
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    paths = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if not paths:
        known = ", ".join(sorted(suffix for suffix in suffixes if suffix in (".jpg", ".png", ".tif", ".webp", ".bmp")))
        raise ValueError(f"The folder {folder} holds no image files ({known}, ...). Check the path.")
    rows = [{"bytes": None, "path": path} for path in paths]
    return Dataset.from_dict({"image": rows}, features=Features({"image": ImageFeature(decode=False)}))


def _shard_format(data_files: Sequence[str]) -> str:
    formats = {".parquet": "parquet", ".tar": "webdataset"}
    found = {formats.get(Path(file).suffix) for file in data_files}
    if len(found) != 1 or None in found:
        raise ValueError(f"data_files={list(data_files)} must be all .parquet or all .tar (webdataset) files.")
    return str(found.pop())


def _image_column(dataset: Dataset, image_column: str | None) -> str:
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, ImageFeature)]
    if image_column is None:
        if len(columns) != 1:
            raise ValueError(
                f"The data set has {len(columns)} columns of images among {', '.join(dataset.column_names)}."
                " Name the one to use with image_column."
            )
        return columns[0]
    if image_column not in dataset.column_names:
        raise ValueError(f"There is no column {image_column!r}. The columns are: {', '.join(dataset.column_names)}.")
    return image_column


def check_images(
    datasets: Sequence[MaskedImageDataset], max_unreadable: float, num_checked: int = 128
) -> list[tuple[str, str]]:
    """Decode a spread of images before any work depends on them.

    Args:
        datasets: The data sets.
        max_unreadable: Largest share of images that may be unreadable.
        num_checked: How many to decode of each data set, evenly spaced.

    Returns:
        (name, reason) of those that cannot be read.

    Raises:
        NoReadableImageError: If more than the share cannot be read, or have other channels than the model takes.
    """
    unreadable, count = [], 0
    for dataset in datasets:
        for index in evenly_spaced(len(dataset), num_checked):
            row = dataset.images[index]["image"]
            count += 1
            try:
                image = open_image(row)
                crop_and_resize(image, (0, 0, *upright_size(image)[::-1]), (8, 8), dataset.num_channels)
            except Exception as error:  # Pillow's plugins raise anything on a broken file
                unreadable.append((image_name(row, index), f"{type(error).__name__}: {error}"))
    if len(unreadable) > max_unreadable * count:
        first = "; ".join(f"{name} ({reason})" for name, reason in unreadable[:3])
        raise NoReadableImageError(
            f"{len(unreadable)} of {count} images that were tried cannot be used, more than the allowed share of"
            f" {max_unreadable}: {first}. Mend or remove them, name another source, or allow a larger share."
        )
    return unreadable


def evenly_spaced(length: int, count: int) -> list[int]:
    """At most `count` indices spread over `length`, the first and the last among them."""
    return torch.linspace(0, length - 1, min(count, length)).round().long().tolist()


class UnreadableImages:
    """Keeps count of images that could not be read, lists them in a file, and stops a run that has too many.

    Args:
        path: File that lists them, one line each: name, tab, reason. Names from an earlier part of the run are kept.
        num_images: Images in all.
        max_share: Largest share of them that may be unreadable.
    """

    def __init__(self, path: Path, num_images: int, max_share: float):
        self.path = path
        self.num_images = num_images
        self.max_share = max_share
        self.names: set[str] = set()
        if path.exists():
            self.names = {line.split("\t")[0] for line in path.read_text().splitlines()}

    def record(self, entries: list[tuple[str, str]]) -> None:
        """Note (name, reason) pairs that are new.

        Raises:
            NoReadableImageError: If there are now more than the allowed share.
        """
        for name, reason in entries:
            if name in self.names:
                continue
            self.names.add(name)
            with self.path.open("a") as file:
                file.write(f"{name}\t{' '.join(reason.split())}\n")
        if len(self.names) > self.max_share * self.num_images:
            raise NoReadableImageError(
                f"{len(self.names)} of {self.num_images} images cannot be read, more than the allowed share of"
                f" {self.max_share}. They are listed in {self.path}."
            )
