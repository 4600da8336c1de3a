"""Reads TIFF files: pictures, bands, and pages that are channels.

By Pillow where its numbers are those of the file, else by tifffile, or refused with what is needed.
"""

import contextlib
import importlib
import io
import json
import math
import re
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from transformers.utils import logging

from .image_readers import (
    Source,
    Stored,
    Wanted,
    both_bytes,
    check_size,
    content_of,
    few_bits,
    open_with_pillow,
    opened,
    turned,
    upright,
)

logger = logging.get_logger(__name__)

# Pages of a TIFF file that are looked at beyond the number of channels.
MAX_OTHER_PAGES = 64
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
GDAL_NODATA = 42113
# Compressions that Pillow's libtiff always has.
PILLOW_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32946}
TIFF_KINDS = {0: "L", 1: "L", 2: "RGB", 3: "P", 4: "L", 5: "CMYK", 6: "YCbCr"}
TIFF_REFUSED = {8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "raw sensor values", 32844: "LogL", 32845: "LogLuv"}
# YCbCr in JPEG 2000 of old Aperio scanners, which the file may call RGB; decoders of JPEG 2000 leave it as it is.
APERIO = 33003
APERIO_PIXELS = "YCbCr of Aperio slides (compression 33003, which OpenSlide reads if the file is named .svs)"
TAG_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 6: "b", 7: "s", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q"}
TAGS = {254, 255, 256, 257, 258, 259, 262, 270, 274, 277, 284, 320, 330, 338, 339, GDAL_NODATA}
MASK_PAGE = "Masks in pages of TIFF files are ignored. Give masked pixels a value: gdalwarp -dstnodata 0 a.tif b.tif"

Directory = dict[int, Any]


def gdal_nodata(text: Any) -> float | None:
    """The value of GDAL's nodata tag in a TIFF file, if there is one."""
    try:
        nodata = float(str(text).strip("\0 "))
    except ValueError:
        return None
    # NaN is missing in any case.
    return None if math.isnan(nodata) else nodata


def tiff_directories(file: BinaryIO, limit: int) -> list[Directory]:
    """Tags of the first pages of a TIFF file that decide how it is read; later pages are not looked at."""
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    is_big = head[2:4] in (b"+\0", b"\0+")
    wide, count_code, length = ("Q", "Q", 20) if is_big else ("I", "H", 12)
    found: dict[int, Directory] = {}
    try:
        (offset,) = struct.unpack_from(order + wide, head, 8 if is_big else 4)
        while offset and offset not in found and len(found) < limit:
            file.seek(offset)
            (count,) = struct.unpack(order + count_code, file.read(struct.calcsize(count_code)))
            entries = file.read(min(count, 65536) * length)
            following = file.read(struct.calcsize(wide))
            found[offset] = _tags(file, entries, order, wide, length)
            (offset,) = struct.unpack(order + wide, following)
    except struct.error:
        pass  # cut off: the pages before count
    return list(found.values())


def _tags(file: BinaryIO, entries: bytes, order: str, wide: str, length: int) -> Directory:
    tags: Directory = {}
    for start in range(0, len(entries) - length + 1, length):
        tag, kind, count = struct.unpack_from(f"{order}HH{wide}", entries, start)
        if tag not in TAGS or kind not in TAG_TYPES:
            continue
        # A description may be long.
        count = min(count, 1 << 20)
        form = f"{order}{count}{TAG_TYPES[kind]}"
        size, inline = struct.calcsize(form), 8 if length == 20 else 4
        content = entries[start + length - inline :][:size]
        if size > inline:
            file.seek(*struct.unpack(order + wide, content[:inline]))
            content = file.read(size)
        values = struct.unpack(form, content)
        tags[tag] = values[0].rstrip(b"\0").decode("utf-8", "replace") if TAG_TYPES[kind] == "s" else values
    return tags


def first_value(page: Directory, tag: int, default: int) -> int:
    values = page.get(tag) or (default,)
    return default if isinstance(values, str) else values[0]


def is_part(page: Directory) -> bool:
    """Whether a page is a smaller copy of another, such as an overview, or a mask."""
    return bool(first_value(page, 254, 0) & 0b101) or first_value(page, 255, 1) == 2 or first_value(page, 262, 1) == 4


def _described_axes(text: str) -> dict[str, int] | None:
    """Axes of the pages that ImageJ, OME or tifffile describe; None if nothing is said."""
    if text.startswith("ImageJ="):
        named = dict(re.findall(r"^(channels|slices|frames)=(\d+)", text, re.MULTILINE))
        return {name: int(named.get(key, 1)) for key, name in (("frames", "T"), ("slices", "Z"), ("channels", "C"))}
    if "<OME" in text:
        sizes = dict(re.findall(r'Size([TZC])="(\d+)"', text.partition("<Pixels")[2].partition(">")[0]))
        return {name: int(sizes.get(name, 1)) for name in "TZC"}
    if text.startswith('{"shape"'):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            described = json.loads(text)
            return dict(zip(described["axes"], described["shape"], strict=True))
    return None


def read_tiff(source: Source, wanted: Wanted) -> Stored:
    """Read the first image of a TIFF file, or all of its gray pages if they are the channels."""
    with opened(source) as file:
        pages = tiff_directories(file, wanted.num_channels + MAX_OTHER_PAGES)
    whole = [index for index, page in enumerate(pages) if not is_part(page)] or [0]
    if not pages or not {256, 257} <= pages[whole[0]].keys():
        return Stored(open_with_pillow(source))
    if any(first_value(page, 262, 1) == 4 for page in pages):
        logger.warning_once(MASK_PAGE)
    page = pages[whole[0]]
    form = [page.get(tag) for tag in (256, 257, 258, 339, 277)]
    planes = [index for index in whole if [pages[index].get(tag) for tag in (256, 257, 258, 339, 277)] == form]
    samples, meaning = first_value(page, 277, 1), first_value(page, 262, 1)
    check_size(page[257][0], page[256][0], samples)
    refused = None if meaning in TIFF_KINDS else TIFF_REFUSED.get(meaning, f"photometric interpretation {meaning}")
    if first_value(page, 259, 1) == APERIO:
        refused = APERIO_PIXELS
    if refused is not None:
        raise ValueError(f"The TIFF file holds {refused}, which is not read. Convert it to gray or RGB.")
    if samples == 1 and meaning in (0, 1):
        bands = _read_bands(source, wanted, page, planes)
        if bands is not None:
            return with_meaning(page, bands, wanted)
    elif len(whole) > 1:
        _warn_of_pages(page)
    return _read_page(source, wanted, page, whole[0])


def _warn_of_pages(page: Directory) -> None:
    logger.warning_once(
        "Only the first page of TIFF files is read, such as of one with several pages of"
        f" {page[257][0]}x{page[256][0]}. If pages are channels, set as many channels; if images, save them one by one."
    )


def _read_bands(source: Source, wanted: Wanted, page: Directory, planes: list[int]) -> np.ndarray | None:
    """Read gray pages that are the channels; None if there is one page, or only the first one is wanted."""
    text, channels = str(page.get(270, "")), wanted.num_channels
    axes, match = _described_axes(text), re.match(r'\{"shape": \[([\d, ]+)\]', text)
    shape = [int(size) for size in match[1].split(",")] if match else []
    described = math.prod((axes or {}).get(name, 1) for name in "TZC") if axes and "Y" not in axes else 0
    if shape and len(planes) == 1 and shape[-2:] == [page[257][0], page[256][0]]:
        described = math.prod(shape[:-2])
    count = max(len(planes), described)
    size = f"{page[257][0]}x{page[256][0]}"
    if count == 1:
        return None
    if channels == 1:
        _warn_of_pages(page)
        return None
    longer = {name: number for name, number in (axes or {}).items() if number > 1 and name not in "YX"}
    others = [name for name in longer if name not in "CSIQ"]
    if others:
        sizes = ", ".join(f"{name}={number}" for name, number in longer.items())
        raise ValueError(
            f"The TIFF file is a stack of planes of {size} with the axes {sizes}, and {channels} channels are expected:"
            f" {' and '.join(others)} {'is' if len(others) == 1 else 'are'} no channels. Save each plane, or the"
            " channels of each plane, as a file."
        )
    is_last = axes is None and len(shape) == 3 and shape[-1] == channels != count
    if count != channels and not is_last:
        more = "at least " if count >= channels + MAX_OTHER_PAGES else ""
        raise ValueError(
            f"The TIFF file has {more}{count} pages of {size} and {channels} channels are expected: neither the pages"
            " nor an axis of them are the channels. Set num_channels to the number in the file, or write bands with"
            " planarconfig='contig'."
        )
    check_size(page[257][0], page[256][0], count)

    def read(tiff: Any) -> np.ndarray:
        if len(planes) < count:
            return tiff.series[0].asarray()
        return np.stack([tiff.pages[index].asarray() for index in planes])

    bands = _by_tifffile(source, read)
    return bands if is_last else turned(bands, first_value(page, 274, 1), rows=bands.ndim - 2)


class MissingCodecError(ValueError):
    """Raised if the compression of a TIFF file needs a package that is not installed."""


def _by_tifffile(source: Source, read: Callable[[Any], np.ndarray]) -> np.ndarray:
    """Read with tifffile; an ImportError says which package a compression needs."""
    try:
        tifffile = importlib.import_module("tifffile")
    except ImportError as error:
        raise ImportError("TIFF files with these bands or data types need tifffile: pip install tifffile.") from error
    try:
        with tifffile.TiffFile(io.BytesIO(source) if isinstance(source, bytes) else source) as tiff:
            return read(tiff)
    except (ImportError, KeyError, ValueError, RuntimeError) as error:
        # Without imagecodecs, tifffile looks for codecs in Python itself, which older versions lack.
        if isinstance(error, ImportError) or "imagecodecs" in str(error):
            reason = error.args[0] if error.args else error
            raise MissingCodecError(
                f"The TIFF file is compressed in a way that needs another package ({reason}): pip install imagecodecs."
            ) from error
        raise


def _read_page(source: Source, wanted: Wanted, page: Directory, index: int) -> Stored:
    """Read one page of a TIFF file: by Pillow if its numbers are those of the file, else by tifffile."""
    bits, formats, meaning = page.get(258, (1,)), set(page.get(339, (1,))), first_value(page, 262, 1)
    is_unsigned, samples = formats <= {1, 4}, first_value(page, 277, 1)
    compression = first_value(page, 259, 1)
    image = None
    # Pillow reads YCbCr as if it were RGB, and divides by an alpha of 0.
    is_wrong = compression in (1, 8, 32773, 32946) and (meaning == 6 or picture_kind(page) == "RGBa")
    has_parts = is_part(page) and 330 in page
    if index == 0 and compression in PILLOW_COMPRESSIONS and not is_wrong and not has_parts:
        image = _tiff_by_pillow(source, page)
    # Pillow opens files with more bands than it has a mode for, and drops the last ones.
    if image is not None and len(image.getbands()) == samples:
        if is_unsigned and max(bits) <= 8:
            return tiff_picture(page, image, wanted)
        is_exact = image.mode.startswith("I;16") or image.mode == "F" or (image.mode == "I" and max(bits) == 16)
        # Pillow reads compressed files that tifffile needs another package for.
        if is_exact and meaning == 1:
            return with_meaning(page, np.asarray(upright(image)), wanted)

    def read(tiff: Any) -> np.ndarray:
        found = tiff.pages[index]
        if has_parts and found.pages:
            # Cameras put the image below its thumbnail.
            found = next((part for part in found.pages if not int(part.subfiletype) & 0b101), found)
            if int(found.photometric) in TIFF_REFUSED:
                raise ValueError(f"The TIFF file holds {TIFF_REFUSED[int(found.photometric)]}, not colors. Convert it.")
        is_few = found.dtype in (np.uint8, np.uint16) and not picture_kind(page)
        marks = is_few and (wanted.has_nodata or GDAL_NODATA in page)
        check_size(found.imagelength, found.imagewidth, found.samplesperpixel)
        if marks and not found.is_contiguous:
            # Missing pixels become NaN: decoded into floats at once, and held once.
            *size, last = found.shape
            is_last = found.axes[-1] == "S"
            array = np.empty((last, *size) if is_last else found.shape, np.float32)
            array = np.moveaxis(array, 0, -1) if is_last else array
            array = found.asarray(out=array).reshape(found.shape)
        else:
            array = found.asarray()
        is_planar = found.axes.startswith("S")
        if is_planar and picture_kind(page):
            array, is_planar = np.moveaxis(array, 0, -1), False
        return turned(array, first_value(page, 274, 1), rows=1 if is_planar else 0)

    try:
        return with_meaning(page, _by_tifffile(source, read), wanted)
    except (MissingCodecError, ImportError) as error:
        image = _tiff_by_pillow(source, page) if index == 0 else None
        if image is None or len(image.getbands()) != samples or not is_unsigned:
            raise
        if max(bits) > 8 and re.fullmatch("(RGB|RGBA|CMYK);16[BLN]", _raw_mode(image)):
            is_little = _raw_mode(image)[-1] in ("L", "N" if sys.byteorder == "little" else "L")
            numbers = both_bytes(source, image, *(("16L", "16B") if is_little else ("16B", "16L")))
            return with_meaning(page, numbers, wanted)
        if max(bits) > 8 or compression in UNKNOWN_COMPRESSIONS:
            raise
        try:
            image.load()
        except Exception:
            UNKNOWN_COMPRESSIONS.add(compression)
            raise error from None
        return tiff_picture(page, image, wanted)


# Compressions that Pillow failed at: its libtiff prints several lines for each try.
UNKNOWN_COMPRESSIONS: set[int] = set()


def _tiff_by_pillow(source: Source, page: Directory) -> Any:
    """Open a TIFF file with Pillow; None if it has no mode for it."""
    # Pillow memory-maps files of some modes, with the wrong width if they are rotated.
    source = content_of(source) if first_value(page, 274, 1) > 4 else source
    try:
        return open_with_pillow(source)
    except UnidentifiedImageError:
        return None


def _raw_mode(image: Any) -> str:
    return str(image.tile[0].args[0]) if image.tile and isinstance(image.tile[0].args, tuple) else ""


def picture_kind(page: Directory) -> str:
    """What the samples of a page of unsigned integers are, as in `Stored.kind`, or P; empty if they are just bands."""
    bits, samples = page.get(258, (1,)), first_value(page, 277, 1)
    kind = TIFF_KINDS[first_value(page, 262, 1)]
    if not set(page.get(339, (1,))) <= {1, 4} or len(set(bits)) > 1 or max(bits) > 16:
        return ""
    colors = {"L": 1, "P": 1, "CMYK": 4}.get(kind, 3)
    if samples == colors:
        return kind
    extra = first_value(page, 338, 2 if kind == "RGB" else 0)
    return kind + {1: "a", 2: "A"}[extra] if samples == colors + 1 and extra in (1, 2) and kind in ("L", "RGB") else ""


def with_meaning(page: Directory, array: np.ndarray, wanted: Wanted) -> Stored:
    """Turn the numbers of a page into what its photometric interpretation says that they are."""
    meaning, bits, nodata = first_value(page, 262, 1), max(page.get(258, (1,))), gdal_nodata(page.get(GDAL_NODATA))
    # Pages that are channels are bands.
    kind = picture_kind(page) if array.ndim == 2 or first_value(page, 277, 1) > 1 else ""
    largest, scale, offset = 2**bits - 1, 1, 0
    if meaning == 0:
        if not set(page.get(339, (1,))) <= {1, 4}:
            raise ValueError("The TIFF file holds signed numbers or floats in which white is zero. Convert it.")
        array, scale, offset = (largest - array.astype(np.int64)).astype(array.dtype), -1, largest
    if kind == "P" and wanted.indices:
        kind = ""
    elif kind == "P":
        return Stored(_palette(page)[array], nodata, 65535, "RGB", compared=array)
    if meaning == 6:
        if kind != "YCbCr" or bits != 8:
            raise ValueError("The TIFF file holds YCbCr of more than 8 bits, which is not read. Convert it to RGB.")
        return Stored(Image.fromarray(np.ascontiguousarray(array), mode="YCbCr").convert("RGB"), nodata)
    if kind and bits <= 8:
        if bits < 8:
            array, scale, offset = array * np.uint8(255 // largest), scale * (255 // largest), 255 if offset else 0
        if kind[-1] == "a" and not array[..., -1].any():
            array, kind = array[..., :-1], kind[:-1]
        mode = kind.replace("La", "LA")
        picture = Image.frombytes(mode, array.shape[1::-1], np.ascontiguousarray(array, np.uint8).tobytes())
        return Stored(picture.convert("RGBA") if mode == "RGBa" else picture, nodata, scale=scale, offset=offset)
    return Stored(array, nodata, largest if kind else 0, kind, scale, offset)


def _palette(page: Directory) -> np.ndarray:
    """Colors of 16 bits of a palette, of shape (number of colors, 3)."""
    colors = np.array(page.get(320, (0, 65535) * 3), np.uint16).reshape(3, -1).T
    # Some programs write colors of 8 bits.
    return colors * np.uint16(257) if colors.max() < 256 else colors


def tiff_picture(page: Directory, image: Any, wanted: Wanted) -> Stored:
    """A picture of up to 8 bits that Pillow has opened."""
    meaning, bits, nodata = first_value(page, 262, 1), max(page.get(258, (1,))), gdal_nodata(page.get(GDAL_NODATA))
    if image.mode == "L" and bits in (2, 4):
        return few_bits(image, bits, wanted, meaning == 0)._replace(nodata=nodata)
    if image.mode == "1" or (image.mode == "L" and meaning == 0):
        white = 255 if image.mode == "1" else 1
        return Stored(image, nodata, scale=-white if meaning == 0 else white, offset=255 if meaning == 0 else 0)
    if image.mode == "P" and wanted.indices:
        return Stored(np.asarray(upright(image)), nodata)
    if image.mode == "P" and 320 in page:
        palette = _palette(page)
        if wanted.keeps_depth and wanted.num_channels == 3:
            indices = np.asarray(upright(image))
            return Stored(palette[indices], nodata, 65535, "RGB", compared=indices)
        if max(page[320]) < 256:
            image = upright(image)
            image.putpalette((palette >> 8).astype(np.uint8).tobytes())
    return Stored(image, nodata)
