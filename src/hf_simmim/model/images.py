"""Opened images: pictures or arrays, and what their numbers mean.

- A picture is what Pillow opens: JPEG, PNG, TIFF of 8 bits, and so on. It is converted to the wanted channels.
- An array is everything else: `.npy` files, TIFF files of other numbers or bands, data set columns of numbers, arrays
  passed to the image processor. It must have the wanted channels, and its numbers are taken as they are stored: uint8
  as uint8, all others as float32.

Pictures of 16 bits stand between the two, and `rescale_factor` decides. At 1/255, which says that pixels are numbers
from 0 to 255, they are scaled to 8 bits. At any other factor (1/65535 for the whole range, 1/10000 for reflectances of
Sentinel-2) they are arrays.

Either way a model sees (numbers * rescale_factor - image_mean) / image_std.

Pixels of which all channels are `nodata` are none, in pictures and arrays; TIFF files may tell that number themselves,
as GDAL writes it. An image with such pixels is an array of float32 in which they are NaN.
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
    """Put NaN where an image has no number.

    Args:
        image: uint8 or float32 of shape (C, H, W).
        nodata: Pixels of which all channels are this number are none.

    Returns:
        The image as it is if nothing is missing, else one of float32.

    Raises:
        ValueError: If not one pixel has numbers in all channels.
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
    """`nodata` rounded to float32 as images are: files tell it with fewer digits than it has, or as a float64."""
    with np.errstate(over="ignore"):
        return float(np.float32(nodata))


def no_pixels_error(empty_channels: Sequence[int], nodata: float | None) -> str:
    """What to tell about an image of which no pixel is real, as there are `empty_channels` or for no single reason."""
    message = "No pixel of the image has finite numbers in all channels"
    if empty_channels:
        message = f"Channel {empty_channels[0]} of the image holds no finite number"
    return f"{message}{'' if nodata is None else f' other than nodata={nodata:g}'}. Remove the image."


def has_missing(image: np.ndarray | torch.Tensor) -> bool:
    """Whether there is NaN in an image."""
    return _is_floating(image) and bool((image != image).any())


def real_pixels(image: PixelArray) -> PixelArray:
    """Which pixels have a number in all channels: bool of shape (H, W)."""
    return (image == image).all(0)


def fill_missing(image: PixelArray, pixel_mask: torch.Tensor, otherwise: Sequence[float] | None = None) -> PixelArray:
    """Put the mean of a channel's real pixels where it is NaN, for one NaN would make a whole loss undefined.

    Args:
        image: float32 of shape (C, H, W).
        pixel_mask: Bool tensor of shape (H, W), True = a real pixel.
        otherwise: What to put into each channel where no pixel is real; 0 if None.

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

    Gray arrays are repeated for three channels.

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

    Transparency is laid on white. For three channels, gray pictures, CMYK and palettes become RGB; for one, pictures
    in color modes that hold nothing but gray become gray; pictures of 16 bits are scaled to 8.

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
        # Gray pictures come as RGB and palettes too, not least from the pipelines, which make every image RGB.
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


# Said by Pillow of every file that it has no mode for, and those are read by tifffile.
standard_logging.getLogger("PIL.TiffImagePlugin").addFilter(
    lambda record: not str(record.msg).startswith("More samples per pixel than can be decoded")
)

NPY_MAGIC = b"\x93NUMPY"
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
GDAL_NODATA = 42113


def open_image(
    source: str | os.PathLike | bytes, num_channels: int, rescale_factor: float, nodata: float | None = None
) -> Image.Image | np.ndarray:
    """Open a file; the pixels of a picture are decoded later, unless it is asked for those that are none.

    Args:
        source: Path, or content of the file.
        num_channels: Wanted channels C, which tell whether the pages of a TIFF file are channels.
        rescale_factor: What the numbers are going to be multiplied with.
        nodata: Pixels of which all channels are this number are none; the number that a TIFF file tells if None.

    Returns:
        A picture, or an array of shape (H, W), (H, W, C) or (C, H, W) of any numbers. With pixels that are none it is
        an array of float32, NaN there.

    Raises:
        ValueError, OSError: If the file cannot be read, and whatever else the readers raise.
    """
    image, stored_nodata = _open(source, num_channels, rescale_factor)
    nodata = stored_nodata if nodata is None else nodata
    return image if nodata is None else mark_nodata(image, num_channels, nodata)


def gdal_nodata(text: Any) -> float | None:
    """The number in GDAL's nodata tag of a TIFF file, if there is one."""
    try:
        nodata = float(str(text).strip("\0 "))
    except ValueError:
        return None
    # NaN is none by itself.
    return None if math.isnan(nodata) else nodata


def _open(
    source: str | os.PathLike | bytes, num_channels: int, rescale_factor: float
) -> tuple[Image.Image | np.ndarray, float | None]:
    """The image, and the number of pixels that are none if the file tells."""
    if isinstance(source, bytes):
        head = source[:6]
    else:
        with open(source, "rb") as file:
            head = file.read(6)
    if head == NPY_MAGIC:
        # Pickles run code.
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
    """Colors of 16 bits, for which Pillow has no mode: it keeps the byte that is the upper one in the order named."""
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
        # Pillow maps files of some modes to memory, and those that lie on their side with the wrong width.
        image.close()
        with open(source, "rb") as file:
            image = Image.open(io.BytesIO(file.read()))
    bits, num_bands = max(tags.get(258, (1,))), tags.get(277, 1)
    is_unsigned = set(tags.get(339, (1,))) == {1}
    num_pages = getattr(image, "n_frames", 1)
    if num_pages > 1 and (num_channels == 1 or num_bands == num_channels):
        logger.warning_once(
            f"TIFF files of several pages, such as one of {num_pages} pages of {image.height}x{image.width}, are read"
            " as their first page. If pages are channels, set as many channels; if images, save them one by one."
        )
    # Pillow opens files of more bands than it has a mode for, and leaves the last ones out.
    if num_bands == 1 < min(num_pages, num_channels) or num_bands != len(image.getbands()):
        image.close()
        return _read_tiff(source, num_channels)
    if is_unsigned and bits <= (8 if keeps_deep_pictures(rescale_factor) else 16):
        if bits > 8:
            warn_of_lost_bits()
        return image, gdal_nodata(tags.get(GDAL_NODATA))
    # Pillow reads what tifffile needs another package for, but it knows neither colors of 16 bits nor uint32.
    if image.mode.startswith("I;16") or image.mode == "F" or (image.mode == "I" and bits == 16):
        return np.asarray(upright(image)), gdal_nodata(tags.get(GDAL_NODATA))
    image.close()
    return _read_tiff(source, num_channels)


def _read_tiff(source: str | os.PathLike | bytes, num_channels: int) -> tuple[np.ndarray, float | None]:
    """A TIFF file of any numbers and bands: all its pages if they fit the channels, else the first one, upright."""
    # Imported by name: transformers would demand it of everybody who loads a checkpoint's code.
    try:
        tifffile = importlib.import_module("tifffile")
    except ImportError as error:
        raise ImportError("TIFF files of these bands or numbers need tifffile: pip install tifffile.") from error
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
                    " Set num_channels to what they are, or write bands with planarconfig='contig'."
                )
            orientation = page.tags.get(274)
            return _turned(page.asarray(), page.axes, int(orientation.value) if orientation else 1), nodata
    except (ImportError, KeyError, ValueError) as error:
        # Without imagecodecs tifffile looks for codecs in Python itself, which older ones lack.
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
