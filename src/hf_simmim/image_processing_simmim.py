"""Image processor of SimMIM: resize, rescale, normalise and, when asked, draw which patches to hide."""

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, ChannelDimension, PILImageResampling
from transformers.processing_utils import ImagesKwargs

from .masking import MASK_STRATEGIES, mask_units, num_masked_units


class SimMIMImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    do_mask (`bool`, *optional*, defaults to `False`):
        Whether to return `bool_masked_pos` too. Off by default: pipelines and fine-tuning see whole images.
    seed (`int`, *optional*):
        Seed of the masks; the same seed gives the same masks. Torch's default generator if unset.
    mask_strategy (`str`, *optional*, defaults to `"random"`):
        Name of the masking strategy.
    mask_patch_size (`int`, *optional*, defaults to 32):
        Side in pixels of the squares that are hidden or shown as a whole.
    mask_ratio (`float`, *optional*, defaults to 0.6):
        Share of the image to hide, in (0, 1).
    model_patch_size (`int`, *optional*, defaults to 4):
        Side in pixels of the encoder's patches, which sets the grid of `bool_masked_pos`.
    """

    do_mask: bool | None
    seed: int | None
    mask_strategy: str | None
    mask_patch_size: int | None
    mask_ratio: float | None
    model_patch_size: int | None


class _SimMIMProcessing:
    """What both backends share: defaults, channels and masks."""

    valid_kwargs = SimMIMImageProcessorKwargs
    model_input_names = ["pixel_values", "bool_masked_pos"]  # noqa: RUF012
    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 192, "width": 192}  # noqa: RUF012
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_mask = False
    mask_strategy = "random"
    mask_patch_size = 32
    mask_ratio = 0.6
    model_patch_size = 4

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._validate_mask(self.mask_strategy, self.mask_patch_size, self.mask_ratio, self.model_patch_size, self.size)

    @property
    def num_channels(self) -> int:
        """Channels of the images, read from `image_mean`."""
        return len(self.image_mean)

    def process_image(
        self, image, do_convert_rgb=None, input_data_format: str | ChannelDimension | None = None, **kwargs
    ):
        """One image of any kind to an array or tensor (C, H, W) of the processor's channels."""
        num_channels = len(kwargs.get("image_mean") or self.image_mean)
        if isinstance(image, Image.Image):
            image = image_to_array(image, num_channels)
            input_data_format = ChannelDimension.LAST
        elif image.ndim == 3 and input_data_format is None:
            input_data_format = _data_format(image.shape, num_channels)
        processed = super().process_image(image, do_convert_rgb=False, input_data_format=input_data_format, **kwargs)
        if processed.shape[0] == 1 and num_channels == 3:
            processed = processed.repeat(3, 1, 1) if isinstance(processed, torch.Tensor) else processed.repeat(3, 0)
        if processed.shape[0] != num_channels:
            raise ValueError(_channel_error(processed.shape[0], num_channels))
        return processed

    def _preprocess(
        self, images, do_mask, seed, mask_strategy, mask_patch_size, mask_ratio, model_patch_size, size, **kwargs
    ):
        if do_mask:
            # Checked before any work: the values may have come with this call.
            self._validate_mask(mask_strategy, mask_patch_size, mask_ratio, model_patch_size, size)
        batch = super()._preprocess(images, size=size, **kwargs)
        if do_mask:
            first = batch["pixel_values"][0]
            grid_size, unit_size = mask_units(tuple(first.shape[-2:]), model_patch_size, mask_patch_size)
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            masks = MASK_STRATEGIES[mask_strategy](
                grid_size, mask_ratio, len(images), unit_size=unit_size, generator=generator
            ).flatten(1)
            as_tensor = isinstance(batch["pixel_values"], torch.Tensor)
            batch["bool_masked_pos"] = masks if as_tensor else masks.numpy()
        return batch

    @staticmethod
    def _validate_mask(mask_strategy, mask_patch_size, mask_ratio, model_patch_size, size) -> None:
        if mask_strategy not in MASK_STRATEGIES:
            raise ValueError(f"mask_strategy={mask_strategy!r} is unknown. Use one of: {', '.join(MASK_STRATEGIES)}.")
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio={mask_ratio} is outside (0, 1). The paper's default is 0.6.")
        if size and size["height"] and size["width"]:
            grid_size, unit_size = mask_units((size["height"], size["width"]), model_patch_size, mask_patch_size)
            num_masked_units(grid_size[0] * grid_size[1] // unit_size**2, mask_ratio)

    def to_dict(self) -> dict[str, Any]:
        """Settings to save; a seed belongs to a call, not to a processor."""
        settings = super().to_dict()
        settings.pop("seed", None)
        return settings


class SimMIMImageProcessorPil(_SimMIMProcessing, PilBackend):
    """The processor on Pillow and NumPy. See `SimMIMImageProcessorKwargs` for what it takes."""


class SimMIMImageProcessor(_SimMIMProcessing, TorchvisionBackend):
    """The processor on torchvision, batched and on any device. See `SimMIMImageProcessorKwargs` for what it takes."""


def image_to_array(image: Image.Image, num_channels: int) -> np.ndarray:
    """Turn a picture of any mode upright and into an array of the wanted channels.

    Grey pictures become RGB where three channels are wanted, CMYK and palettes become RGB, transparency is laid on
    white, and the EXIF orientation is applied.

    Args:
        image: The picture.
        num_channels: Wanted channels.

    Returns:
        uint8 array of shape (H, W, num_channels).

    Raises:
        ValueError: If the picture has other channels, which no conversion without loss brings to `num_channels`.
    """
    image = ImageOps.exif_transpose(image)
    if num_channels == 3:
        array = np.asarray(_to_rgb(image))
    elif num_channels == 1 and _is_grey(image):
        array = np.asarray(_to_grey(image))[..., None]
    else:
        if image.mode == "P":
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        array = np.asarray(image)
        array = array[..., None] if array.ndim == 2 else array
        if array.shape[2] != num_channels:
            raise ValueError(_channel_error(array.shape[2], num_channels))
    return array


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    if _is_deep_grey(image):
        image = _to_grey(image)
    return image.convert("RGB")


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La") or _is_deep_grey(image)


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or image.mode == "I"


def _to_grey(image: Image.Image) -> Image.Image:
    if _is_deep_grey(image):
        # Pillow clips at 255 when it converts 16-bit modes; their upper byte is the picture.
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("L")


def _data_format(shape: tuple[int, ...], num_channels: int) -> ChannelDimension:
    """Which end of an array's shape holds the channels; first if both could."""
    for channels in (num_channels, 1) if num_channels == 3 else (num_channels,):
        if shape[0] == channels:
            return ChannelDimension.FIRST
        if shape[-1] == channels:
            return ChannelDimension.LAST
    raise ValueError(
        f"An image of shape {tuple(shape)} has no axis of {num_channels} channels, which is what the processor's"
        " image_mean has. Set image_mean and image_std to one value for each channel, or convert the images."
    )


def _channel_error(found: int, expected: int) -> str:
    return (
        f"The image has {found} channel{'s' if found > 1 else ''} and {expected} {'are' if expected > 1 else 'is'}"
        f" expected. Convert the images, or set the number of channels to {found}."
    )
