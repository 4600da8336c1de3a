"""Opening of images as PIL images or arrays, conversion of their channels, and missing pixels.

- Formats that Pillow supports (JPEG, PNG, 8-bit TIFF, ...) become PIL images, converted to the wanted channels.
- Everything else becomes an array: `.npy` files, TIFF files of other data types or bands, data set columns of numbers,
  arrays passed to the image processor. An array must have the wanted channels and keeps its values: uint8 as uint8,
  all other types as float32.

For 16-bit images `rescale_factor` decides. At 1/255, which means values from 0 to 255, they are scaled to 8 bits. At
any other factor (1/65535 for the whole range, 1/10000 for reflectances of Sentinel-2) they are arrays.

In both cases a model sees (values * rescale_factor - image_mean) / image_std.

Pixels of which all channels are `nodata` are missing, in PIL images and arrays; TIFF files may store this value, as
GDAL does. An image with missing pixels is a float32 array in which they are NaN.
"""

import importlib
import io
import logging as standard_logging
import math
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageChops, ImageFile, ImageOps, UnidentifiedImageError
from transformers.image_utils import ChannelDimension
from transformers.utils import logging

PixelArray = TypeVar("PixelArray", np.ndarray, torch.Tensor)


def missing_as_nan(image: PixelArray, nodata: float | None = None) -> PixelArray:
    """Replace values that are missing by NaN.

    Args:
        image: uint8 or float32 of shape (C, H, W).
        nodata: Value of missing pixels, in all of their channels.

    Returns:
        The image itself if nothing is missing, else a float32 copy.

    Raises:
        ValueError: If no pixel has finite values in all channels.
    """
    missing = None
    if _is_floating(image):
        finite = torch.isfinite(image) if isinstance(image, torch.Tensor) else np.isfinite(image)
        missing = None if finite.all() else ~finite
    if nodata is not None:
        empty = (image == as_stored(nodata)).all(0)
        if empty.any():
            missing = empty | (image != image) if missing is None else empty | missing
    if missing is None:
        return image
    if missing.any(0).all():
        without = [index for index, channel in enumerate(missing) if channel.all()]
        raise ValueError(no_pixels_error(without, nodata))
    if isinstance(image, torch.Tensor):
        return image.float().masked_fill(missing, torch.nan)
    return np.where(missing, np.float32(np.nan), image)


def as_stored(nodata: float) -> float:
    """Round `nodata` to float32 like images: files store it with fewer digits, or as a float64."""
    with np.errstate(over="ignore"):
        return float(np.float32(nodata))


def no_pixels_error(empty_channels: Sequence[int], nodata: float | None) -> str:
    """Error message for an image without real pixels, which names an empty channel if there is one."""
    message = "No pixel of the image has finite numbers in all channels"
    if empty_channels:
        message = f"Channel {empty_channels[0]} of the image holds no finite number"
    return f"{message}{'' if nodata is None else f' other than nodata={nodata:g}'}. Remove the image."


def has_missing(image: np.ndarray | torch.Tensor) -> bool:
    """Whether an image contains NaN."""
    return _is_floating(image) and bool((image != image).any())


def real_pixels(image: PixelArray) -> PixelArray:
    """Which pixels are missing in no channel: bool of shape (H, W)."""
    return (image == image).all(0)


def fill_missing(image: PixelArray, pixel_mask: torch.Tensor, otherwise: Sequence[float] | None = None) -> PixelArray:
    """Replace NaN by the mean of the channel's real pixels, because one NaN would make the whole loss NaN.

    Args:
        image: float32 of shape (C, H, W).
        pixel_mask: Bool tensor of shape (H, W), True = a real pixel.
        otherwise: Value of each channel if no pixel is real; 0 if None.

    Returns:
        The image without NaN.
    """
    pixels = torch.as_tensor(image)
    if pixel_mask.any():
        values = pixels[:, pixel_mask].mean(dim=1)
    else:
        values = torch.tensor(otherwise or [0.0] * len(pixels), device=pixels.device)
    filled = torch.where(pixels.isnan(), values.view(-1, 1, 1), pixels)
    return filled if isinstance(image, torch.Tensor) else filled.numpy()


def _is_floating(image: np.ndarray | torch.Tensor) -> bool:
    return image.is_floating_point() if isinstance(image, torch.Tensor) else image.dtype.kind == "f"


logger = logging.get_logger(__name__)


def keeps_deep_pictures(rescale_factor: float) -> bool:
    """Whether images of more than 8 bits keep their values: at every factor but 1/255, see the top of this module."""
    return not math.isclose(rescale_factor, 1 / 255, rel_tol=1e-3)


def picture_or_array(image: Image.Image, rescale_factor: float) -> Image.Image | np.ndarray:
    """A PIL image itself, or its values (H, W) if it has more than 8 bits and `rescale_factor` fits them."""
    if not _is_deep(image) or not keeps_deep_pictures(rescale_factor):
        return image
    return np.asarray(upright(image))


def channels_first(
    array: np.ndarray,
    num_channels: int,
    data_format: str | ChannelDimension | None = None,
    nodata: float | None = None,
) -> np.ndarray:
    """Bring an array to channels first, with NaN for missing values.

    Gray arrays are repeated for three channels.

    Args:
        array: Array of shape (H, W), (H, W, C) or (C, H, W).
        num_channels: Wanted channels C.
        data_format: Where the channels are; if None, found by their number, first if both ends fit.
        nodata: Value of missing pixels, in all of their channels.

    Returns:
        Array of shape (C, H, W): uint8 if it was and no pixel is missing, else float32.

    Raises:
        ValueError: If there are no such channels, or all pixels are missing.
    """
    if array.dtype.kind not in "buif":
        raise ValueError(f"The array holds {array.dtype}, but integers or floats are needed. Convert it.")
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(
            f"The array has shape {array.shape}, but (height, width), (height, width, {num_channels}) or"
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
        # float64 files may mark missing values with numbers that float32 cannot hold.
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    return missing_as_nan(array, nodata)


def mark_nodata(image: Image.Image | np.ndarray, num_channels: int, nodata: float) -> Image.Image | np.ndarray:
    """Replace pixels of which all channels are `nodata` by NaN, in an image as it is stored.

    Args:
        image: A PIL image, or an array of shape (H, W), (H, W, C) or (C, H, W).
        num_channels: Wanted channels C; transparency is ignored for one and three.
        nodata: Value of missing pixels.

    Returns:
        For an array, an array with the same axes, and NaN for missing pixels. For a PIL image, the image itself if no
        pixel is missing, else such an array, of shape (C, H, W).

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
    """Which end of a 3-D shape holds the channels; the first one if both fit."""
    for channels in (num_channels, 1) if num_channels == 3 else (num_channels,):
        if shape[0] == channels:
            return ChannelDimension.FIRST
        if shape[-1] == channels:
            return ChannelDimension.LAST
    raise ValueError(
        f"An image of shape {tuple(shape)} has no axis of {num_channels} channels at either end, the number"
        " of values of image_mean. Set image_mean and image_std to one value for each channel, or convert the images."
    )


def channel_error(found: int, expected: int) -> str:
    """Error message for an image with other channels."""
    return (
        f"The image has {found} channel{'s' if found > 1 else ''} and {expected} {'are' if expected > 1 else 'is'}"
        f" expected. Convert the images, or set {found} channels: num_channels of the encoder, and as many values in"
        " image_mean and image_std of the processor."
    )


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation. An image without one is returned as it is, where Pillow would copy it."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def convert_channels(image: Image.Image, num_channels: int) -> Image.Image:
    """Convert a PIL image of any mode to 8 bits and the wanted channels.

    Transparent images are composited on white. For three channels, gray, CMYK and palette images become RGB; for one,
    images in color modes that contain only gray become gray. 16-bit images are scaled to 8 bits.

    Args:
        image: The PIL image.
        num_channels: Wanted channels.

    Returns:
        A PIL image of that many bands.

    Raises:
        ValueError: If the image has other channels, which cannot be converted without loss.
    """
    if image.mode == "F":
        raise ValueError(
            "The image holds floats (mode F), whose range is unknown. Convert it to 8 bits, or set the rescale_factor"
            " that fits it, such as 1 for floats in [0, 1]."
        )
    if _is_deep(image):
        warn_of_lost_bits()
        # Pillow clips at 255 when it converts 16-bit modes; the upper byte is the 8-bit image.
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if num_channels == 3:
        return _opaque(image)
    if num_channels == 1:
        if image.mode in ("1", "L") and not image.has_transparency_data:
            return image if image.mode == "L" else image.convert("L")
        # Gray images also come as RGB and palettes, such as from pipelines, which convert every image to RGB.
        red, green, blue = _opaque(image).split()
        if not (ImageChops.difference(red, green).getbbox() or ImageChops.difference(red, blue).getbbox()):
            return red
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if len(image.getbands()) != num_channels:
        raise ValueError(channel_error(len(image.getbands()), num_channels))
    return image


def _opaque(image: Image.Image) -> Image.Image:
    """Convert to RGB, on white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def warn_of_lost_bits() -> None:
    """Warn once that 16-bit images are scaled to 8 bits."""
    logger.warning_once(
        "16-bit images are scaled to 8 bits, because rescale_factor is 1/255. To keep their values, set the factor that"
        " fits them, such as 1/65535."
    )


# Pillow logs this for every file that it has no mode for; tifffile reads those.
standard_logging.getLogger("PIL.TiffImagePlugin").addFilter(
    lambda record: not str(record.msg).startswith("More samples per pixel than can be decoded")
)

NPY_MAGIC = b"\x93NUMPY"
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
GDAL_NODATA = 42113


def open_image(
    source: str | os.PathLike | bytes, num_channels: int, rescale_factor: float, nodata: float | None = None
) -> Image.Image | np.ndarray:
    """Open an image file; a PIL image is decoded later, unless missing pixels must be found.

    Args:
        source: Path, or content of the file.
        num_channels: Wanted channels C, which decide whether the pages of a TIFF file are channels.
        rescale_factor: Factor that the values will be multiplied by.
        nodata: Value of missing pixels, in all of their channels; the value that a TIFF file stores if None.

    Returns:
        A PIL image, or an array of shape (H, W), (H, W, C) or (C, H, W) of any data type. With missing pixels it is a
        float32 array, NaN there.

    Raises:
        ValueError, OSError: If the file cannot be read, and whatever else the readers raise.
    """
    image, stored_nodata = _open(source, num_channels, rescale_factor)
    nodata = stored_nodata if nodata is None else nodata
    return image if nodata is None else mark_nodata(image, num_channels, nodata)


def gdal_nodata(text: Any) -> float | None:
    """The value of GDAL's nodata tag in a TIFF file, if there is one."""
    try:
        nodata = float(str(text).strip("\0 "))
    except ValueError:
        return None
    # NaN is missing in any case.
    return None if math.isnan(nodata) else nodata


def _open(
    source: str | os.PathLike | bytes, num_channels: int, rescale_factor: float
) -> tuple[Image.Image | np.ndarray, float | None]:
    """The image, and the nodata value if the file stores one."""
    if isinstance(source, bytes):
        head = source[:6]
    else:
        with open(source, "rb") as file:
            head = file.read(6)
    if head == NPY_MAGIC:
        # Pickles can run code.
        return np.load(_readable(source), allow_pickle=False), None
    if head.startswith(TIFF_MAGICS):
        return _open_tiff(source, num_channels, rescale_factor)
    image = Image.open(_readable(source))
    if image.format == "PNG" and image.mode != "I;16" and _png_is_deep(image):
        if keeps_deep_pictures(rescale_factor):
            image.close()
            return _read_deep_png(source), None
        warn_of_lost_bits()
    return picture_or_array(image, rescale_factor), None


def _readable(source: str | os.PathLike | bytes) -> Any:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _png_is_deep(image: ImageFile.ImageFile) -> bool:
    return bool(image.tile) and str(image.tile[0].args).endswith(";16B")


def _read_deep_png(source: str | os.PathLike | bytes) -> np.ndarray:
    """Read 16-bit colors, for which Pillow has no mode: it keeps the upper byte of the byte order that it is given."""
    halves = []
    for order in ("16B", "16L"):
        with Image.open(_readable(source)) as image:
            if not str(image.tile[0].args).startswith("RGB"):
                raise ValueError(
                    "The PNG file holds gray with transparency of 16 bits, which cannot be read. Convert it to gray."
                )
            image.tile = [tile._replace(args=str(tile.args).replace("16B", order)) for tile in image.tile]
            halves.append(np.asarray(upright(image)).astype(np.uint16))
    return halves[0] << 8 | halves[1]


def _open_tiff(
    source: str | os.PathLike | bytes, num_channels: int, rescale_factor: float
) -> tuple[Image.Image | np.ndarray, float | None]:
    try:
        image: Image.Image = Image.open(_readable(source))
    except UnidentifiedImageError:
        return _read_tiff(source, num_channels)
    tags = image.tag_v2  # type: ignore[attr-defined]
    if tags.get(274, 1) > 4 and not isinstance(source, bytes):
        # Pillow memory-maps files of some modes, with the wrong width if they are rotated.
        image.close()
        with open(source, "rb") as file:
            image = Image.open(io.BytesIO(file.read()))
    bits, num_bands = max(tags.get(258, (1,))), tags.get(277, 1)
    is_unsigned = set(tags.get(339, (1,))) == {1}
    num_pages = getattr(image, "n_frames", 1)
    if num_pages > 1 and (num_channels == 1 or num_bands == num_channels):
        logger.warning_once(
            f"Only the first page of TIFF files is read, such as of one with {num_pages} pages of"
            f" {image.height}x{image.width}. If pages are channels, set as many channels; if images, save them one by"
            " one."
        )
    # Pillow opens files with more bands than it has a mode for, and drops the last ones.
    if num_bands == 1 < min(num_pages, num_channels) or num_bands != len(image.getbands()):
        image.close()
        return _read_tiff(source, num_channels)
    if is_unsigned and bits <= (8 if keeps_deep_pictures(rescale_factor) else 16):
        if bits > 8:
            warn_of_lost_bits()
        return image, gdal_nodata(tags.get(GDAL_NODATA))
    # Pillow reads files that tifffile needs another package for, but it supports neither 16-bit colors nor uint32.
    if image.mode.startswith("I;16") or image.mode == "F" or (image.mode == "I" and bits == 16):
        return np.asarray(upright(image)), gdal_nodata(tags.get(GDAL_NODATA))
    image.close()
    return _read_tiff(source, num_channels)


def _read_tiff(source: str | os.PathLike | bytes, num_channels: int) -> tuple[np.ndarray, float | None]:
    """Read a TIFF file of any data type and bands: all pages if they are the channels, else the first one, upright."""
    # Imported by name: transformers would require it from everybody who loads a checkpoint's code.
    try:
        tifffile = importlib.import_module("tifffile")
    except ImportError as error:
        raise ImportError("TIFF files with these bands or data types need tifffile: pip install tifffile.") from error
    try:
        with tifffile.TiffFile(_readable(source)) as tiff:
            series, page = tiff.series[0], tiff.pages.first
            tag = page.tags.get(GDAL_NODATA)
            nodata = gdal_nodata(tag.value) if tag else None
            if len(series.shape) == 3 > len(page.shape) and num_channels in (series.shape[0], series.shape[-1]):
                return series.asarray(), nodata
            if len(tiff.pages) > 1 and len(page.shape) == 2 and num_channels > 1:
                raise ValueError(
                    f"The TIFF file has {len(tiff.pages)} pages of {page.shape[0]}x{page.shape[1]} and"
                    f" {num_channels} channels are expected: neither the pages nor an axis of them are the channels."
                    " Set num_channels to the number in the file, or write bands with planarconfig='contig'."
                )
            orientation = page.tags.get(274)
            return _turned(page.asarray(), page.axes, int(orientation.value) if orientation else 1), nodata
    except (ImportError, KeyError, ValueError) as error:
        # Without imagecodecs, tifffile looks for codecs in Python itself, which older versions lack.
        if isinstance(error, ImportError) or "imagecodecs" in str(error):
            reason = str(error).strip("\"'")
            raise ValueError(
                f"The TIFF file is compressed in a way that needs another package ({reason}): pip install imagecodecs."
            ) from error
        raise


def _turned(array: np.ndarray, axes: str, orientation: int) -> np.ndarray:
    """Apply the TIFF orientation (1 to 8) to an array whose axes are named Y and X."""
    rows, columns = axes.index("Y"), axes.index("X")
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(rows, columns)
    mirrored = tuple(axis for axis, of in ((columns, (2, 3, 6, 7)), (rows, (3, 4, 7, 8))) if orientation in of)
    return np.flip(array, mirrored)
