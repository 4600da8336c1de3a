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
from typing import Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError
from transformers.utils import logging

from .image_channels import keeps_deep_pictures, mark_nodata, picture_or_array, upright, warn_of_lost_bits

logger = logging.get_logger(__name__)

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
    """Colours of 16 bits, for which Pillow has no mode: it keeps the byte that is the upper one in the order named."""
    halves = []
    for order in ("16B", "16L"):
        with Image.open(_readable(source)) as image:
            if not str(image.tile[0].args).startswith("RGB"):
                raise ValueError(
                    "The PNG file holds grey with transparency of 16 bits, which cannot be read. Convert it to grey."
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
    # Pillow reads what tifffile needs another package for, but it knows neither colours of 16 bits nor uint32.
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
