"""From opened pictures to batches: decoding, cropping and masking, all reproducible.

What happens to a training image is a function of (seed, epoch, index) alone, so the number of workers, the number of
processes and a resumed run change nothing. Evaluation images are a function of their index alone.
"""

import hashlib
import io
import math
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import ExifTags, Image
from torch.utils.data import Sampler

from .image_processing_simmim import convert_channels, upright
from .masking import MASK_STRATEGIES, mask_units, num_masked_units

# Tries before a sample is given up. At a share of unreadable images of a half this happens once in 2**64.
NUM_TRIES = 64


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
        images: Rows of `name` and undecoded `image`, as `load_images` makes them.
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
        self.num_units = self.grid_size[0] * self.grid_size[1] // self.unit_size**2
        self.num_masked_units = num_masked_units(self.num_units, mask_ratio)
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
            images that could not be decoded and in whose place another one stands.
        """
        epoch, index = divmod(key, len(self))
        generator = sample_generator(self.seed, epoch if self.crop_scale else 0, index)
        pixels, unreadable = self._read(index, generator)
        mask = self.mask_strategy(self.grid_size, self.mask_ratio, 1, unit_size=self.unit_size, generator=generator)
        return {"pixel_values": pixels, "bool_masked_pos": mask.flatten(), "unreadable": unreadable}

    def _read(self, index: int, generator: torch.Generator) -> tuple[torch.Tensor, list[tuple[str, str]]]:
        unreadable: list[tuple[str, str]] = []
        for _ in range(NUM_TRIES):
            row = self.images[index]
            try:
                return self._decode(open_image(row), generator), unreadable
            except Exception as error:  # Pillow's plugins raise anything on a broken file
                unreadable.append((row["name"], describe(error)))
            # At random, for broken files come in runs.
            index = int(torch.randint(len(self), (), generator=generator))
        raise NoReadableImageError(
            f"{len(unreadable)} images drawn one after the other cannot be read; the first is {unreadable[0][0]}"
            f" ({unreadable[0][1]}). Remove them or name another source."
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
    """Open the image of a row of `load_images`; the pixels are decoded later."""
    source = row["image"]
    if source is None:
        raise ValueError("The row holds no image.")
    return Image.open(io.BytesIO(source["bytes"]) if source["bytes"] is not None else source["path"])


def describe(error: Exception) -> str:
    """An error in one line, without the addresses of objects in memory."""
    return re.sub(r"<_io\.BytesIO object at \w+>", "its bytes", " ".join(f"{type(error).__name__}: {error}".split()))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) after the EXIF orientation is applied, without decoding."""
    lies = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
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
    # Pillow takes the last of two or four bands for transparency and weights the others with it.
    bands = image.split() if num_channels in (2, 4) else (image,)
    resized = [band.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0) for band in bands]
    array = np.stack([np.asarray(band) for band in resized], axis=-1) if len(resized) > 1 else np.asarray(resized[0])
    return array[..., None] if array.ndim == 2 else array


def evenly_spaced(length: int, count: int) -> list[int]:
    """At most `count` indices spread over `length`, the first and the last among them."""
    return torch.linspace(0, length - 1, min(count, length)).round().long().tolist()
