"""Channels of pictures and arrays: the wanted ones, or a refusal that names the remedy."""

import math

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageOps
from transformers.image_utils import ChannelDimension
from transformers.utils import logging

from .missing_pixels import as_stored, missing_as_nan, no_pixels_error

logger = logging.get_logger(__name__)


def keeps_deep_pictures(rescale_factor: float) -> bool:
    """Whether pictures of more than 8 bits keep their numbers: at every factor but 1/255, see `image_files.py`."""
    return not math.isclose(rescale_factor, 1 / 255, rel_tol=1e-3)


def picture_or_array(image: Image.Image, rescale_factor: float) -> Image.Image | np.ndarray:
    """An opened picture as it is, or its numbers (H, W) if it holds more than bytes and `rescale_factor` fits those."""
    if not _is_deep(image) or not keeps_deep_pictures(rescale_factor):
        return image
    return np.asarray(upright(image))


def channels_first(
    array: np.ndarray,
    num_channels: int,
    data_format: str | ChannelDimension | None = None,
    nodata: float | None = None,
) -> np.ndarray:
    """Bring an array to channels first, and to numbers of which NaN are those that are none.

    Grey arrays are repeated for three channels.

    Args:
        array: Array of shape (H, W), (H, W, C) or (C, H, W).
        num_channels: Wanted channels C.
        data_format: Where the channels are; found by their number if None, first if both ends have it.
        nodata: Pixels of which all channels are this number are none.

    Returns:
        Array of shape (C, H, W): uint8 as it is unless pixels are none, else float32.

    Raises:
        ValueError: If there are no such channels, or no pixel is one.
    """
    if array.dtype.kind not in "buif":
        raise ValueError(f"The array holds {array.dtype}, and integers or floats are needed. Convert it.")
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(
            f"The array has shape {array.shape}, and (height, width), (height, width, {num_channels}) or"
            f" ({num_channels}, height, width) is needed. Save each image by itself."
        )
    if array.ndim == 2:
        array, data_format = array[None], ChannelDimension.FIRST
        if num_channels not in (1, 3):
            raise ValueError(channel_error(1, num_channels))
    elif data_format is None:
        data_format = find_channels(array.shape, num_channels)
    if ChannelDimension(data_format) == ChannelDimension.LAST:
        array = np.moveaxis(array, -1, 0)
    if array.shape[0] == 1 and num_channels == 3:
        array = np.repeat(array, 3, axis=0)
    if array.shape[0] != num_channels:
        raise ValueError(channel_error(array.shape[0], num_channels))
    if array.dtype != np.uint8:
        # float64 files mark missing values with numbers that float32 cannot hold.
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    return missing_as_nan(array, nodata)


def mark_nodata(image: Image.Image | np.ndarray, num_channels: int, nodata: float) -> Image.Image | np.ndarray:
    """Find the pixels of which all channels are `nodata`, in an image as it is stored.

    Args:
        image: A picture, or an array of shape (H, W), (H, W, C) or (C, H, W).
        num_channels: Wanted channels C; one or three leave transparency out.
        nodata: The number.

    Returns:
        An array with its axes where they were, float32 with NaN there. A picture as it is if it has no such pixels,
        else such an array of shape (C, H, W).

    Raises:
        ValueError: If there are no such channels, or all pixels are nodata.
    """
    if isinstance(image, np.ndarray):
        marked = channels_first(image, num_channels, nodata=nodata)
        if image.ndim == 2:
            return marked[0]
        is_last = find_channels(image.shape, num_channels) == ChannelDimension.LAST
        return np.moveaxis(marked, 0, -1) if is_last else marked
    picture = upright(image)
    if picture.mode in ("1", "P", "PA"):
        picture = picture.convert({"1": "L", "P": "RGB", "PA": "RGBA"}[picture.mode])
    numbers = np.asarray(picture)
    numbers = numbers[..., None] if numbers.ndim == 2 else numbers
    if picture.mode in ("LA", "RGBA") and num_channels in (1, 3):
        numbers = numbers[..., :-1]
    missing = (numbers == as_stored(nodata)).all(axis=-1)
    if not missing.any():
        return image
    if missing.all():
        raise ValueError(no_pixels_error((), nodata))
    array = np.asarray(convert_channels(upright(image), num_channels))
    array = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    return np.where(missing, np.float32(np.nan), array)


def find_channels(shape: tuple[int, ...], num_channels: int) -> ChannelDimension:
    """Which end of an array's shape (three numbers) holds the channels; first if both could."""
    for channels in (num_channels, 1) if num_channels == 3 else (num_channels,):
        if shape[0] == channels:
            return ChannelDimension.FIRST
        if shape[-1] == channels:
            return ChannelDimension.LAST
    raise ValueError(
        f"An image of shape {tuple(shape)} has no axis of {num_channels} channels at either end, which is what"
        " image_mean has values for. Set image_mean and image_std to one value for each channel, or convert the images."
    )


def channel_error(found: int, expected: int) -> str:
    """What to tell about an image with other channels."""
    return (
        f"The image has {found} channel{'s' if found > 1 else ''} and {expected} {'are' if expected > 1 else 'is'}"
        f" expected. Convert the images, or set {found} channels: num_channels of the encoder, and as many values in"
        " image_mean and image_std of the processor."
    )


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation. A picture that has none is returned as it is, where Pillow would copy it."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def convert_channels(image: Image.Image, num_channels: int) -> Image.Image:
    """Bring a picture of any mode to the wanted channels of 8 bits.

    Transparency is laid on white. For three channels, grey pictures, CMYK and palettes become RGB; for one, pictures
    in colour modes that hold nothing but grey become grey; pictures of 16 bits are scaled to 8.

    Args:
        image: The picture.
        num_channels: Wanted channels.

    Returns:
        A picture of that many bands.

    Raises:
        ValueError: If the picture has other channels, which no conversion without loss brings to `num_channels`.
    """
    if image.mode == "F":
        raise ValueError(
            "The image holds floats (mode F), whose range is unknown. Convert it to 8 bits, or set the rescale_factor"
            " that fits it, such as 1 for floats in [0, 1]."
        )
    if _is_deep(image):
        warn_of_lost_bits()
        # Pillow clips at 255 when it converts 16-bit modes; their upper byte is the picture.
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if num_channels == 3:
        return _opaque(image)
    if num_channels == 1:
        if image.mode in ("1", "L") and not image.has_transparency_data:
            return image if image.mode == "L" else image.convert("L")
        # Grey pictures come as RGB and palettes too, not least from the pipelines, which make every image RGB.
        red, green, blue = _opaque(image).split()
        if not (ImageChops.difference(red, green).getbbox() or ImageChops.difference(red, blue).getbbox()):
            return red
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if len(image.getbands()) != num_channels:
        raise ValueError(channel_error(len(image.getbands()), num_channels))
    return image


def _opaque(image: Image.Image) -> Image.Image:
    """RGB, on white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def warn_of_lost_bits() -> None:
    """Say once that a picture of 16 bits was scaled to 8."""
    logger.warning_once(
        "Pictures of 16 bits are scaled to 8, as rescale_factor is 1/255. To keep their numbers set the factor that"
        " fits them, such as 1/65535."
    )
