"""What fine-tuning changes in its images at random: crops, flips, colours and erased pixels."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from .crops import crop_and_resize, random_box, upright_size
from .data import as_tensor

BACKENDS = ("auto", "builtin", "timm", "torchvision")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation; the defaults are the released fine-tuning's.

    Args:
        crop_scale: Smallest and largest share of the image's area that a crop covers.
        crop_ratio: Smallest and largest width / height of a crop.
        flip: Probability of a flip from left to right.
        vertical_flip: Probability of a flip from top to bottom.
        color_jitter: Largest change of brightness, contrast and saturation, as a share; not used with `rand_augment`.
        rand_augment: RandAugment in timm's notation, None for none.
        random_erasing: Probability that a rectangle is overwritten with noise.
        backend: Who draws and applies colour jitter and RandAugment.
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
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale={self.crop_scale} must be two rising shares in (0, 1], such as 0.08 1.0.")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"crop_ratio={self.crop_ratio} must be two rising numbers above 0, such as 0.75 1.33.")
        for name in ("flip", "vertical_flip", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is a probability and must be in [0, 1].")
        if not 0 <= self.color_jitter <= 1:
            raise ValueError(f"color_jitter={self.color_jitter} must be in [0, 1]; 0 is none.")
        if self.backend not in BACKENDS:
            raise ValueError(f"backend={self.backend!r} is unknown. Use one of: {', '.join(BACKENDS)}.")


class Augmenter:
    """Applies an `Augmentation`.

    Args:
        augmentation: The settings.
        image_size: (height, width) of the result, in pixels.
        num_channels: Channels C of the result.
        image_mean: Mean of each channel in [0, 1], for what RandAugment uncovers.
        resample: Pillow's interpolation.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        image_size: tuple[int, int],
        num_channels: int,
        image_mean: Sequence[float],
        resample: int = Image.Resampling.BICUBIC,
    ):
        self.augmentation = augmentation
        self.image_size = image_size
        self.num_channels = num_channels
        self.resample = resample

    def pixels(self, image: Image.Image | np.ndarray, generator: torch.Generator) -> torch.Tensor:
        """Crop, flip and colour an image.

        Args:
            image: Opened image, as `open_row` returns it.
            generator: Source of randomness.

        Returns:
            Tensor of shape (C, H, W), uint8 or float32 as the image is, NaN where it has no number.
        """
        settings = self.augmentation
        box = random_box(upright_size(image), settings.crop_scale, generator, settings.crop_ratio)
        array = crop_and_resize(image, box, self.image_size, self.num_channels, self.resample)
        across, down = torch.rand(2, generator=generator).tolist()
        array = array[:, ::-1] if across < settings.flip else array
        array = array[::-1] if down < settings.vertical_flip else array
        return as_tensor(array)

    def erase(self, pixel_values: torch.Tensor, generator: torch.Generator) -> None:
        """Overwrite a rectangle of a normalised image with normal noise, now and then, in place.

        Args:
            pixel_values: Image of shape (C, H, W).
            generator: Source of randomness.

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
