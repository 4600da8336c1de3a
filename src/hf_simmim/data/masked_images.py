"""Images with masks for pre-training: decoding, cropping, masking and batching, all reproducible.

A training sample depends only on (seed, epoch, index), so the number of workers or processes and resuming change
nothing. An evaluation sample depends only on its index.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image

from ..model.images import fill_missing, has_missing, real_pixels
from ..model.masking import MASK_STRATEGIES, mask_units, num_masked_units, patch_grid, patches_with_pixels, ratio_range
from .reading import ImageDataset
from .sampling import sample_generator
from .transforms import as_tensor, center_box, crop_and_resize, random_box, upright_size
from .windows import WindowRows


class MaskedImageDataset(ImageDataset):
    """Images with one mask each, not normalized: that is done on the device.

    Args:
        images: Rows of `name` and undecoded `image`, from `load_images`, or `WindowRows` of large images.
        image_size: (height, width) to crop and resize to, in pixels.
        num_channels: Channels C that the model takes.
        patch_size: Side of the model's patches, in pixels.
        mask_strategy: Name of the masking strategy.
        mask_patch_size: Side of the squares that are masked or visible as a whole, in pixels.
        mask_ratio: Fraction of the image to mask, in (0, 1), or the two ends of a range.
        seed: Seed of crops, flips and masks.
        crop_scale: Smallest and largest fraction of the image area that a crop covers; None for the largest center
            crop, without flips, the same in every epoch.
        flip: Probability of a horizontal flip.
        vertical_flip: Probability of a vertical flip.
        rescale_factor: Factor that pixels will be multiplied by; it decides how 16-bit images are read, see
            `model/images.py`.
        nodata: Value of missing pixels in the file: a pixel is missing if all its channels have this value, or one is
            not finite.
        image_decoder: What decodes JPEG files for random crops, a name of `DECODERS`; evaluation is by Pillow.

    Raises:
        ValueError: If a setting is out of range, or mask patch size, patch size and mask ratio do not fit each other.

    Source: `SimMIMTransform` in data/data_simmim.py of microsoft/SimMIM.
    """

    def __init__(
        self,
        images: Dataset | WindowRows,
        image_size: tuple[int, int],
        num_channels: int,
        patch_size: int,
        mask_strategy: str = "random",
        mask_patch_size: int = 32,
        mask_ratio: float | Sequence[float] = 0.6,
        seed: int = 0,
        crop_scale: Sequence[float] | None = (0.67, 1.0),
        flip: float = 0.5,
        vertical_flip: float = 0.0,
        rescale_factor: float = 1 / 255,
        nodata: float | None = None,
        image_decoder: str = "pillow",
    ):
        if mask_strategy not in MASK_STRATEGIES:
            raise ValueError(f"mask_strategy={mask_strategy!r} is unknown. Use one of: {', '.join(MASK_STRATEGIES)}.")
        if crop_scale is not None and (len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1):
            raise ValueError(f"crop_scale={tuple(crop_scale)} must be (min, max) in (0, 1], such as 0.67 1.0.")
        for name, share in (("flip", flip), ("vertical_flip", vertical_flip)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share} is a probability and must be in [0, 1].")
        super().__init__(images, image_size, num_channels, seed, rescale_factor, nodata)
        self.grid_size, self.unit_size = mask_units(image_size, patch_size, mask_patch_size)
        self.num_units = math.prod(patch_grid(self.grid_size, self.unit_size))
        low, high = (num_masked_units(self.num_units, ratio) for ratio in ratio_range(mask_ratio))
        self.num_masked_units = low if low == high else (low, high)
        self.patch_size = patch_size
        self.mask_strategy = MASK_STRATEGIES[mask_strategy]
        self.mask_ratio = mask_ratio
        self.crop_scale = crop_scale
        self.flip = flip
        self.vertical_flip = vertical_flip
        self.image_decoder = image_decoder

    def __getitem__(self, key: int) -> dict[str, Any]:
        """Load one sample.

        Args:
            key: `epoch * len(self) + index`; in epoch 0 that is the index.

        Returns:
            `pixel_values` (C, H, W), uint8 or float32 like the image, `bool_masked_pos` bool (N,), the `name` of the
            image, and `unreadable`, a list of (name, reason) of images that could not be decoded and were replaced.
            If some pixels are missing, also `pixel_mask` bool (H, W), True = valid: patches without a valid pixel are
            not masked, and missing pixels get the channel's mean.
        """
        epoch, index = divmod(key, len(self))
        generator = sample_generator(self.seed, epoch if self.crop_scale else 0, index)
        pixels, row, unreadable = self.read(index, generator, lambda image: self._decode(image, generator))
        sample: dict[str, Any] = {"pixel_values": pixels, "name": str(row["name"]), "unreadable": unreadable}
        valid = None
        if has_missing(pixels):
            pixel_mask = real_pixels(pixels)
            sample |= {"pixel_values": fill_missing(pixels, pixel_mask), "pixel_mask": pixel_mask}
            valid = patches_with_pixels(pixel_mask[None], self.patch_size)
        mask = self.mask_strategy(
            self.grid_size, self.mask_ratio, unit_size=self.unit_size, valid_patches=valid, generator=generator
        )
        return sample | {"bool_masked_pos": mask.flatten()}

    def whole(self, seed: int) -> "MaskedImageDataset":
        """The same images as for an evaluation: the largest center crop, without flips, the same in every epoch.

        Args:
            seed: Seed of the masks.

        Returns:
            A data set of these images.
        """
        other = copy.copy(self)
        other.crop_scale, other.seed = None, seed
        return other

    def open_sample(
        self, row: dict[str, Any], index: int, generator: torch.Generator
    ) -> tuple[dict[str, Any], Image.Image | np.ndarray]:
        """Open the image of a sample; of large images, for training, a window that is drawn."""
        if self.crop_scale is None or not isinstance(self.images, WindowRows):
            return super().open_sample(row, index, generator)
        return self.images.draw(index, generator, self.open)

    def _decode(self, image: Image.Image | np.ndarray, generator: torch.Generator) -> torch.Tensor:
        size = upright_size(image)
        decoder = self.image_decoder
        if self.crop_scale is None:
            box, across, down, decoder = center_box(size, self.image_size), False, False, "pillow"
        else:
            box = random_box(size, self.crop_scale, generator)
            across, down = (bool(torch.rand((), generator=generator) < p) for p in (self.flip, self.vertical_flip))
        array = crop_and_resize(image, box, self.image_size, self.num_channels, decoder=decoder)
        array = array[:, ::-1] if across else array
        return as_tensor(array[::-1] if down else array)


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate samples of `MaskedImageDataset`: tensors are stacked, `names` and `unreadable` images are lists.

    One float32 image makes the whole batch float32. If an image has a `pixel_mask`, the others get one that is all
    True.
    """
    batch: dict[str, Any] = {
        key: torch.stack([sample[key] for sample in samples]) for key in ("pixel_values", "bool_masked_pos")
    }
    if any("pixel_mask" in sample for sample in samples):
        everything = torch.ones(batch["pixel_values"].shape[-2:], dtype=torch.bool)
        batch["pixel_mask"] = torch.stack([sample.get("pixel_mask", everything) for sample in samples])
    batch["names"] = [sample["name"] for sample in samples if "name" in sample]
    batch["unreadable"] = [entry for sample in samples for entry in sample["unreadable"]]
    return batch
