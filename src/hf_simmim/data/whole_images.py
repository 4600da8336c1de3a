"""Whole images without labels, for predictions: their preparation, and batches of those that can be read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from PIL import Image

from ..model.images import convert_channels, upright
from .reading import ImageDataset, describe
from .transforms import upright_size


class PreparedImages(ImageDataset):
    """Images that a function prepares, each of a size of its own.

    Args:
        rows: Rows of `name` and undecoded `image`, from `load_images`.
        num_channels: Channels C that the model takes.
        prepare: Function from an opened image, as `open_row` returns it, to `pixel_values` (C, h, w).
        rescale_factor: Factor that pixels will be multiplied by; it decides how 16-bit images are read.
        nodata: Value of missing pixels in the file.
    """

    def __init__(
        self,
        rows: Dataset,
        num_channels: int,
        prepare: Callable[[Image.Image | np.ndarray], torch.Tensor],
        rescale_factor: float = 1 / 255,
        nodata: float | None = None,
    ):
        # The function decides about the size.
        super().__init__(rows, (0, 0), num_channels, rescale_factor=rescale_factor, nodata=nodata)
        self.prepare = prepare

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Load one sample.

        Args:
            index: Index of the image.

        Returns:
            `index`, `pixel_values` float32 (C, h, w) and `size`, height and width of the stored image in pixels; for an
            unreadable image `index` and `reason`.
        """
        try:
            image = self.open(self.images[index])
            size = upright_size(image)
            return {"index": index, "pixel_values": self.prepare(image), "size": size}
        except Exception as error:  # readers raise anything on a broken file
            return {"index": index, "reason": describe(error)}


def processed(image: Image.Image | np.ndarray, processor: Any, num_channels: int) -> torch.Tensor:
    """Prepare an opened image by an image processor of transformers, as `pixel_values` float32 (C, h, w)."""
    if isinstance(image, np.ndarray):
        batch = processor(images=image, input_data_format="channels_first", return_tensors="pt")
    else:
        batch = processor(images=convert_channels(upright(image), num_channels), return_tensors="pt")
    return batch["pixel_values"][0]


@dataclass(frozen=True)
class ImageGroup:
    """Images of one size, padded.

    Args:
        indices: Index of each image.
        pixel_values: float32 tensor (B, C, H, W).
        prepared_sizes: (height, width) of each image before padding.
        stored_sizes: (height, width) of each image as it is stored, if the data set tells.
    """

    indices: list[int]
    pixel_values: torch.Tensor
    prepared_sizes: list[tuple[int, int]]
    stored_sizes: list[tuple[int, int]]


@dataclass(frozen=True)
class ReadableBatch:
    """The images of a batch that can be read, in groups of one size, and the others.

    Args:
        groups: The groups; none if no image can be read.
        unreadable: Index of each other image, and the reason.
    """

    groups: list[ImageGroup]
    unreadable: list[tuple[int, str]]

    @property
    def num_images(self) -> int:
        """Number of all images of the batch."""
        return sum(len(group.indices) for group in self.groups) + len(self.unreadable)


@dataclass(frozen=True)
class CollateReadable:
    """Collates samples with `pixel_values` or a `reason`; images are padded with zeros to multiples of the stride.

    Images whose padded sizes differ are in different groups: padded to a common size, predictions of an image would
    depend on the others of its batch.

    Args:
        stride: Divisor of the padded height and width, in pixels.
    """

    stride: int = 1

    def __call__(self, samples: Sequence[dict[str, Any]]) -> ReadableBatch:
        """Collate a batch.

        Args:
            samples: Samples of `PreparedImages` or `WholeImageDataset`.

        Returns:
            The batch.
        """
        by_size: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for sample in samples:
            if "pixel_values" in sample:
                height, width = (-(-side // self.stride) * self.stride for side in sample["pixel_values"].shape[1:])
                by_size.setdefault((height, width), []).append(sample)
        return ReadableBatch(
            [self._group(size, group) for size, group in by_size.items()],
            [(sample["index"], sample["reason"]) for sample in samples if "reason" in sample],
        )

    def _group(self, size: tuple[int, int], samples: list[dict[str, Any]]) -> ImageGroup:
        images = [sample["pixel_values"] for sample in samples]
        padded = [F.pad(image, (0, size[1] - image.shape[2], 0, size[0] - image.shape[1])) for image in images]
        return ImageGroup(
            [sample["index"] for sample in samples],
            torch.stack(padded),
            [(image.shape[1], image.shape[2]) for image in images],
            [sample["size"] for sample in samples if "size" in sample],
        )


def none_readable(num_images: int, unreadable: Sequence[tuple[str, str]]) -> str:
    """Message of the error that no image can be read, from their number and (name, reason) of each."""
    first = "; ".join(f"{name} ({reason})" for name, reason in unreadable[:3])
    return f"None of the {num_images} images can be read: {first}. Name other images."
