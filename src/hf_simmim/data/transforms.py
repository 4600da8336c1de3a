"""Image transforms: crop boxes, cropping and resizing of images and arrays, and normalization."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import ExifTags, Image

from ..formats.jpeg import crop_array, decode_jpeg
from ..model.images import convert_channels, upright

Box = tuple[float, float, float, float]


def upright_size(image: Image.Image | np.ndarray) -> tuple[int, int]:
    """(height, width) of an array (C, H, W), or of an undecoded PIL image after its EXIF orientation is applied."""
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[2]
    # For TIFF files Pillow reports the size after the rotation, before it has rotated them.
    lies = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (image.width, image.height) if lies else (image.height, image.width)


def random_box(
    size: tuple[int, int],
    scale: Sequence[float],
    generator: torch.Generator,
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draw a random crop like torchvision's `RandomResizedCrop`.

    Args:
        size: (height, width) of the image.
        scale: Smallest and largest fraction of its area.
        generator: Random generator.
        aspect: Smallest and largest aspect ratio (width / height), drawn uniformly on a logarithmic scale.

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


def center_box(size: tuple[int, int], aspect_of: tuple[float, float]) -> Box:
    """The largest center crop of an image of `size` (height, width) with the aspect ratio of `aspect_of`."""
    height, width = size
    zoom = min(height / aspect_of[0], width / aspect_of[1])
    crop_height, crop_width = aspect_of[0] * zoom, aspect_of[1] * zoom
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return left, top, left + crop_width, top + crop_height


def crop_and_resize(
    image: Image.Image | np.ndarray,
    box: Box,
    size: tuple[int, int],
    num_channels: int,
    resample: int = Image.Resampling.BILINEAR,
    decoder: str = "pillow",
) -> np.ndarray:
    """Decode, turn upright, crop and resize in as few passes as Pillow allows.

    JPEG files are decoded at the smallest of libjpeg's scales that has at least the wanted number of pixels.

    Args:
        image: Opened PIL image, not yet decoded, or array of shape (C, H, W), uint8 or float32. Every pixel of the
            result that a NaN contributes to is NaN.
        box: (left, top, right, bottom) in pixels of the upright image.
        size: (height, width) of the result.
        num_channels: Channels C of the result.
        resample: Pillow's resampling filter.
        decoder: What decodes JPEG files, a name of `DECODERS`. All but pillow crop at whole pixels of what they decode.

    Returns:
        Array of shape (height, width, C), uint8 or float32.
    """
    if isinstance(image, np.ndarray):
        resized = [_resize(Image.fromarray(channel), box, size, resample) for channel in image]
        return np.moveaxis(np.stack(resized), 0, -1)
    height, width = upright_size(image)
    scale = max(size[0] / (box[3] - box[1]), size[1] / (box[2] - box[0]))
    smallest = math.ceil(image.width * scale), math.ceil(image.height * scale)
    if decoder != "pillow":
        decoded = decode_jpeg(image, smallest, num_channels, decoder)
        if decoded is not None:
            array = crop_array(
                decoded, _zoomed(box, decoded.shape[1] / width, decoded.shape[0] / height), size, resample
            )
            return array[..., None] if array.ndim == 2 else array
    if image.format in ("JPEG", "MPO") and scale < 0.5:
        image.draft(image.mode, smallest)
    image = convert_channels(upright(image), num_channels)
    box = _zoomed(box, image.width / width, image.height / height)
    # Pillow treats the last of two or four bands as alpha and weights the others by it.
    bands = image.split() if num_channels in (2, 4) else (image,)
    resized = [_resize(band, box, size, resample) for band in bands]
    array = np.stack(resized, axis=-1) if len(resized) > 1 else resized[0]
    return array[..., None] if array.ndim == 2 else array


def _zoomed(box: Box, across: float, down: float) -> Box:
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def _resize(image: Image.Image, box: Box, size: tuple[int, int], resample: int) -> np.ndarray:
    # Rounding may have moved the box slightly outside.
    inside = (max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling(resample), box=inside, reducing_gap=3.0))


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """Convert an image (H, W, C) from `crop_and_resize`, flipped or not, to a tensor (C, H, W)."""
    # Copied: Pillow's buffer is read-only, and a flipped view has negative strides.
    return torch.from_numpy(np.array(np.moveaxis(array, -1, 0), order="C"))


def normalize(
    pixels: torch.Tensor, image_mean: Sequence[float], image_std: Sequence[float], rescale_factor: float = 1 / 255
) -> torch.Tensor:
    """Normalize stored pixels for a model, on the device where they are.

    Args:
        pixels: Images of shape (B, C, H, W), uint8 or float32.
        image_mean: Mean of each channel of rescaled pixels.
        image_std: Standard deviation of each channel of rescaled pixels.
        rescale_factor: Factor that pixels are multiplied by.

    Returns:
        float32 tensor (pixels * rescale_factor - image_mean) / image_std.
    """
    mean = torch.tensor(image_mean, device=pixels.device).view(1, -1, 1, 1)
    std = torch.tensor(image_std, device=pixels.device).view(1, -1, 1, 1)
    return (pixels.float() * rescale_factor - mean) / std
