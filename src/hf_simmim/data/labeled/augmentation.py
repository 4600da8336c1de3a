"""Random augmentation for fine-tuning: crops, flips, color changes and random erasing.

RandAugment comes from timm where timm is installed, and otherwise from `rand_augment.py`. Everything else is
implemented here: it has to work without torchvision, each version of which requires one version of torch. Color jitter
never comes from torchvision, so that the draws of a seed do not depend on what is installed.
"""

import dataclasses
import importlib.util
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from transformers.utils import logging

from ..transforms import crop_and_resize, random_box, upright_size
from .rand_augment import RandAugment, parse_policy, posterize

logger = logging.get_logger(__name__)

BACKENDS = ("auto", "builtin", "timm")
TIMM_NEEDS = ("timm", "torchvision")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation; the defaults are those of the official fine-tuning.

    Colors change only in 8-bit grayscale or RGB images without missing pixels; other images are only cropped, flipped
    and erased.

    `backend` selects the implementation of RandAugment: `timm` is timm's, `builtin` needs neither timm nor torchvision,
    and `auto` uses timm's where both are installed and `builtin` otherwise. Both draw the same operations from the same
    distributions, but a seed gives different draws: name one of them if runs on several machines must agree.

    Args:
        crop_scale: Smallest and largest fraction of the image area that a crop covers.
        crop_ratio: Smallest and largest aspect ratio (width / height) of a crop.
        flip: Probability of a horizontal flip.
        vertical_flip: Probability of a vertical flip.
        color_jitter: Largest relative change of brightness, contrast and saturation; ignored with `rand_augment`.
        rand_augment: RandAugment policy in timm's notation; None disables it.
        random_erasing: Probability that a rectangle is replaced with noise.
        backend: auto, builtin or timm.

    Raises:
        ValueError: If a setting is out of range, or the backend is timm and timm is not installed.

    Source: `create_transform` of timm, as `build_transform` in data/data_finetune.py of microsoft/SimMIM calls it.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    vertical_flip: float = 0.0
    color_jitter: float = 0.4
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    random_erasing: float = 0.25
    backend: str = "auto"

    def __post_init__(self):
        # JSON turns tuples into lists.
        object.__setattr__(self, "crop_scale", tuple(self.crop_scale))
        object.__setattr__(self, "crop_ratio", tuple(self.crop_ratio))
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale={self.crop_scale} must be (min, max) in (0, 1], such as 0.08 1.0.")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"crop_ratio={self.crop_ratio} must be (min, max) above 0, such as 0.75 1.33.")
        for name in ("flip", "vertical_flip", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is a probability and must be in [0, 1].")
        if not 0 <= self.color_jitter <= 1:
            raise ValueError(f"color_jitter={self.color_jitter} must be in [0, 1]; 0 disables it.")
        if self.backend not in BACKENDS:
            raise ValueError(f"backend={self.backend!r} is unknown. Use one of: {', '.join(BACKENDS)}.")
        if self.rand_augment is not None:
            parse_policy(self.rand_augment)
        missing = [name for name in TIMM_NEEDS if importlib.util.find_spec(name) is None]
        if self.backend == "timm" and missing:
            raise ValueError(
                f"backend='timm' needs {missing[0]}, which is not installed: pip install {missing[0]}, or set"
                " the backend to auto or builtin."
            )


class ColorJitter:
    """Changes brightness, contrast and saturation of an image in random order, as torchvision's `ColorJitter` does.

    Args:
        strength: Largest relative change of each.
    """

    def __init__(self, strength: float):
        self.strength = strength

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        """Apply the jitter to an image of mode L or RGB."""
        kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        factors = (1 + self.strength * (2 * torch.rand(3, generator=generator) - 1)).tolist()
        for index in torch.randperm(3, generator=generator).tolist():
            image = kinds[index](image).enhance(factors[index])
        return image


class SeededTransform:
    """Makes a transform that draws from global generators draw from an explicit one.

    Args:
        transform: Function from an image to an image.
    """

    def __init__(self, transform: Callable[[Any], Any]):
        self.transform = transform

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        """Transform an image, and restore the state of the global generators."""
        seed = int(torch.randint(2**32, (), generator=generator))
        states = random.getstate(), np.random.get_state()  # noqa: NPY002
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            # `torch.manual_seed` would seed the GPUs as well, whose state is not restored.
            torch.default_generator.manual_seed(seed)
            try:
                return self.transform(image)
            finally:
                random.setstate(states[0])
                np.random.set_state(states[1])  # noqa: NPY002


def color_changes(
    augmentation: Augmentation, fill: tuple[int, ...], resample: int
) -> Callable[[Image.Image, torch.Generator], Image.Image] | None:
    """Create the color augmentation.

    Args:
        augmentation: The settings.
        fill: Color of areas that RandAugment uncovers, an integer from 0 to 255 for each channel.
        resample: Pillow's resampling filter.

    Returns:
        A function of an image and a generator; None if colors do not change.
    """
    policy = augmentation.rand_augment
    if policy is None:
        return ColorJitter(augmentation.color_jitter) if augmentation.color_jitter else None
    if augmentation.backend == "builtin" or not all(map(importlib.util.find_spec, TIMM_NEEDS)):
        return RandAugment(policy, fill, resample)
    timm = importlib.import_module("timm.data.auto_augment")
    transform = timm.rand_augment_transform(policy, {"img_mean": fill, "interpolation": Image.Resampling(resample)})
    for operation in transform.ops:
        if operation.name.startswith("Posterize"):
            # timm's version fails if no bits are kept, which Pillow rejects: once in several hundred images.
            operation.aug_fn = posterize
    return SeededTransform(transform)


class Augmenter:
    """Applies an `Augmentation`.

    Args:
        augmentation: The settings.
        image_size: (height, width) of the result, in pixels.
        num_channels: Channels C of the result.
        image_mean: Mean of each channel in [0, 1], the color of areas that RandAugment uncovers.
        resample: Pillow's resampling filter.
        image_decoder: What decodes JPEG files, a name of `DECODERS`.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        image_size: tuple[int, int],
        num_channels: int,
        image_mean: Sequence[float],
        resample: int = Image.Resampling.BICUBIC,
        image_decoder: str = "pillow",
    ):
        self.augmentation = augmentation
        self.image_size = image_size
        self.num_channels = num_channels
        self.resample = resample
        self.image_decoder = image_decoder
        fill = tuple(min(255, max(0, round(255 * mean))) for mean in image_mean)
        self._colors = color_changes(augmentation, fill, resample) if num_channels in (1, 3) else None
        if num_channels not in (1, 3) and (augmentation.rand_augment is not None or augmentation.color_jitter):
            self._warn()

    def _warn(self) -> None:
        logger.warning_once(
            "Color augmentation applies only to 8-bit grayscale or RGB images: images with other channels or dtypes, or"
            " with missing pixels, are only cropped, flipped and erased."
        )

    def crop(self, image: Image.Image | np.ndarray, generator: torch.Generator) -> np.ndarray:
        """Crop, resize and flip an image.

        Args:
            image: Opened image, as `open_row` returns it.
            generator: Random generator.

        Returns:
            Array of shape (H, W, C), uint8 or float32 like the image, NaN at missing pixels.
        """
        settings = self.augmentation
        box = random_box(upright_size(image), settings.crop_scale, generator, settings.crop_ratio)
        array = crop_and_resize(
            image, box, self.image_size, self.num_channels, self.resample, decoder=self.image_decoder
        )
        across, down = torch.rand(2, generator=generator).tolist()
        array = array[:, ::-1] if across < settings.flip else array
        return array[::-1] if down < settings.vertical_flip else array

    def recolor(self, array: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """Apply RandAugment or color jitter to an array from `crop` if it is 8-bit grayscale or RGB."""
        if self._colors is None:
            return array
        if array.dtype != np.uint8:
            self._warn()
            return array
        picture = Image.fromarray(array[..., 0] if self.num_channels == 1 else np.ascontiguousarray(array))
        return np.asarray(self._colors(picture, generator)).reshape(array.shape)

    def erase(self, pixel_values: torch.Tensor, generator: torch.Generator) -> None:
        """Replace a rectangle of a normalized image with normal noise, in place, with probability `random_erasing`.

        Args:
            pixel_values: Image of shape (C, H, W).
            generator: Random generator.

        Source: Zhong et al., Random Erasing Data Augmentation (arXiv 1708.04896).
        """
        if torch.rand((), generator=generator) >= self.augmentation.random_erasing:
            return
        height, width = pixel_values.shape[-2:]
        low, high = math.log(0.3), math.log(1 / 0.3)
        for _ in range(10):
            share, ratio, x, y = torch.rand(4, generator=generator).tolist()
            area = height * width * (0.02 + share * (1 / 3 - 0.02))
            ratio = math.exp(low + ratio * (high - low))
            rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if rows < height and columns < width:
                top, left = math.floor(y * (height - rows + 1)), math.floor(x * (width - columns + 1))
                region = pixel_values[:, top : top + rows, left : left + columns]
                region.copy_(torch.randn(region.shape, generator=generator))
                return
