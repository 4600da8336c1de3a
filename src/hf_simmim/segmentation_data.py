"""What a segmentation model is trained and evaluated on: crops of images with a class for each pixel.

What happens to a training image is a function of (seed, epoch, index) alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers.utils import logging

from .crops import Box, crop_and_resize
from .data import NUM_TRIES, NoReadableImageError, describe, open_row, sample_generator
from .missing_pixels import fill_missing, has_missing, real_pixels
from .segmentation_pairs import Labels, Pairs

logger = logging.get_logger(__name__)

# Tries for a crop in which one class does not take too much, as in mmsegmentation.
CROP_TRIES = 10
# Of the shorter side that is asked for, what the longer one may be at most.
MAX_ASPECT = 4


@dataclass
class Pixels:
    """How images become `pixel_values`, as the image processor does it."""

    num_channels: int
    rescale_factor: float
    image_mean: Sequence[float]
    image_std: Sequence[float]
    nodata: float | None = None

    def normalize(self, pixels: np.ndarray) -> torch.Tensor:
        """uint8 or float32 (H, W, C) to normalised float32 (C, H, W)."""
        tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 0))).float()
        mean, std = (torch.tensor(list(values)).view(-1, 1, 1) for values in (self.image_mean, self.image_std))
        return (tensor * self.rescale_factor - mean) / std


class SegmentationDataset(torch.utils.data.Dataset):
    """Pairs as a model takes them: random crops to train on, or whole images to evaluate on.

    To train, an image's shorter side becomes `short_side` times a random scale, a crop is cut out in which no class
    takes more than `max_class_share`, flipped at random, and distorted in colour if it is RGB of 8 bits.

    Args:
        pairs: Images and annotations.
        labels: What the numbers of annotations mean.
        pixels: How images are read and normalised.
        short_side: Shorter side in pixels that images are resized to; None to keep their size.
        crop_size: (height, width) of crops in pixels; None for whole images without any randomness.
        seed: Seed of the randomness.
        scales: Smallest and largest random scale.
        max_class_share: Largest share of a crop's annotated pixels for one class; after ten tries any crop is taken.

    Source: configs/_base_/datasets/ade20k.py of Swin-Transformer-Semantic-Segmentation, whose base size is 2048x512.
    """

    def __init__(
        self,
        pairs: Pairs,
        labels: Labels,
        pixels: Pixels,
        short_side: int | None = None,
        crop_size: tuple[int, int] | None = None,
        seed: int = 0,
        scales: Sequence[float] = (0.5, 2.0),
        max_class_share: float = 0.75,
    ):
        if len(scales) != 2 or not 0 < scales[0] <= scales[1]:
            raise ValueError(f"scales={tuple(scales)} must be two rising numbers above 0, such as 0.5 2.0.")
        self.pairs = pairs
        self.labels = labels
        self.pixels = pixels
        self.short_side = short_side
        self.crop_size = crop_size
        self.seed = seed
        self.scales = scales
        self.max_class_share = max_class_share
        # In memory that worker processes share, for they live longer than an epoch.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.pairs.images)

    def set_epoch(self, epoch: int) -> None:
        """Draw other crops: those of an epoch."""
        self.epoch.fill_(epoch)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One sample.

        Returns:
            `pixel_values` float32 (C, h, w) and `labels` int64 (h, w). Of whole images also `annotation` int32 (H, W)
            of the size that it is stored in.
        """
        if self.crop_size is None:
            return self._whole(index)
        generator = sample_generator(self.seed, int(self.epoch), index)
        for _ in range(NUM_TRIES):
            try:
                return self._crop(index, generator)
            except Exception as error:  # readers raise anything on a broken file
                logger.warning(f"{self.pairs.images[index]['name']} is left out ({describe(error)}).")
            index = int(torch.randint(len(self), (), generator=generator))
        raise NoReadableImageError(f"{NUM_TRIES} images drawn one after the other cannot be read. Mend the images.")

    def _open(self, index: int) -> tuple[Image.Image | np.ndarray, np.ndarray, float]:
        """The image, its class ids, and the scale that brings it to `short_side`."""
        image = open_row(
            self.pairs.images[index], self.pixels.num_channels, self.pixels.rescale_factor, self.pixels.nodata
        )
        ids = self.labels.read(self.pairs.annotations[index])
        if self.short_side is None:
            return image, ids, 1.0
        return image, ids, min(self.short_side / min(ids.shape), MAX_ASPECT * self.short_side / max(ids.shape))

    def _whole(self, index: int) -> dict[str, torch.Tensor]:
        image, ids, scale = self._open(index)
        size = (max(1, round(ids.shape[0] * scale)), max(1, round(ids.shape[1] * scale)))
        box = (0.0, 0.0, float(ids.shape[1]), float(ids.shape[0]))
        array = crop_and_resize(image, box, size, self.pixels.num_channels)
        pixel_values, labels = self._tensors(array, _resize_ids(ids, box, size))
        return {"pixel_values": pixel_values, "labels": labels, "annotation": torch.from_numpy(ids.copy())}

    def _crop(self, index: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        image, ids, scale = self._open(index)
        low, high = self.scales
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
            array = distort_colours(array, generator)
        pixel_values, labels = self._tensors(array, crop_ids)
        pad = (0, self.crop_size[1] - size[1], 0, self.crop_size[0] - size[0])  # type: ignore[index]
        return {
            "pixel_values": F.pad(pixel_values, pad),
            "labels": F.pad(labels, pad, value=self.labels.ignore_index),
        }

    def _tensors(self, array: np.ndarray, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        pixel_values = self.pixels.normalize(array)
        labels = torch.from_numpy(ids.astype(np.int64))
        if has_missing(pixel_values):
            # Of pixels that are none nothing can be learned.
            pixel_mask = real_pixels(pixel_values)
            pixel_values = fill_missing(pixel_values, pixel_mask)
            labels = labels.masked_fill(~pixel_mask, self.labels.ignore_index)
        return pixel_values, labels


def _resize_ids(ids: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """A box (left, top, right, bottom) of class ids at another size (height, width)."""
    height, width = ids.shape
    inside = (box[0], box[1], min(box[2], width), min(box[3], height))
    return np.asarray(Image.fromarray(ids).resize(size[::-1], Image.Resampling.NEAREST, box=inside))


def distort_colours(pixels: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, each at random and in every second image.

    Args:
        pixels: uint8 array (H, W, 3).
        generator: Source of randomness.

    Returns:
        uint8 array of the same shape.

    Source: `PhotoMetricDistortion` of mmsegmentation, with its amounts.
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
    """Samples to a batch; whole images are padded to the largest of them and to whole steps.

    Args:
        stride: Pixels that height and width become multiples of.
        ignore_index: Class id of padding.
    """

    stride: int
    ignore_index: int

    def __call__(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Samples of `SegmentationDataset` to a batch.

        Returns:
            `pixel_values` (B, C, h, w) and `labels` (B, h, w). Of whole images also `annotations` (B, N), each read
            line by line and padded, for many processes can bring such rows together; and `sizes` (B, 4), height and
            width of each image before padding and of its annotation.
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
