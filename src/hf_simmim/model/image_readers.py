"""Readers of image files: each format is read by a library whose numbers are those that the file stores.

Pillow reads most formats. It keeps 8 bits of deeper colors, stretches gray of 9 to 15 bits, and takes some files for
what they are not; there the format has a reader of its own, another library reads it, or it is refused with the name of
the library that would.
"""

import contextlib
import importlib
import io
import json
import logging as standard_logging
import math
import os
import re
import struct
import sys
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from transformers.utils import logging

logger = logging.get_logger(__name__)

Source = str | os.PathLike | bytes

# Pillow's openers that run other programs, that can never load an image, or whose numbers are not the file's.
NOT_BY_PILLOW = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
# Suffixes of images that Pillow has no opener of its own for.
SUFFIXES = {".fit", ".fits", ".fts", ".mpo", ".npy", ".svs"}
# Images that are not read, and what opens them.
UNREAD = {".mrc": "mrcfile", **dict.fromkeys((".mrxs", ".vsi"), "openslide-python")}
UNREAD |= dict.fromkeys((".nrrd", ".nhdr", ".mha", ".mhd"), "SimpleITK, to .nii.gz")
UNREAD |= dict.fromkeys((".czi", ".lif", ".nd2"), "the reader of the microscope, such as czifile, nd2 or readlif")
# Images that are read where the package is installed with one of its extras.
EXTRAS = {
    "arrays": ".h5 .hdf5 .nc .nc4",
    "medical": ".dcm .nii .nii.gz",
    "photos": ".arw .cr2 .cr3 .dng .exr .heic .heif .jxl .nef .orf .raf .rw2",
}

# Numbers of one image, over all channels: six times the pixels that Pillow opens, 4 GiB as float32.
NUMBERS_PER_PIXEL = 6
# Pages of a TIFF file that are looked at beyond the number of channels.
MAX_OTHER_PAGES = 64

if os.environ.get("HF_SIMMIM_MAX_MEGAPIXELS"):
    # Pillow warns at its limit, and refuses twice as many pixels.
    Image.MAX_IMAGE_PIXELS = int(float(os.environ["HF_SIMMIM_MAX_MEGAPIXELS"]) * 5e5)

# Pillow logs this for every file that it has no mode for; tifffile reads those.
standard_logging.getLogger("PIL.TiffImagePlugin").addFilter(
    lambda record: not str(record.msg).startswith("More samples per pixel than can be decoded")
)


class Stored(NamedTuple):
    """An image as its file stores it.

    Attributes:
        image: A PIL image, or an array of shape (H, W), (H, W, C) or (C, H, W).
        nodata: Value of missing pixels that the file names.
        largest: White of an array that is a picture of more than 8 bits; 0 for numbers without such a range.
        kind: What the channels of such a picture are: L, LA, RGB, RGBA (or La, RGBa for colors multiplied by alpha) or
            CMYK.
        scale: What Pillow multiplied the numbers by, and `offset` added to them then.
        offset: See `scale`.
        compared: Palette indices, with which `nodata` is compared where the image holds colors.
    """

    image: Image.Image | np.ndarray
    nodata: float | None = None
    largest: int = 0
    kind: str = ""
    scale: float = 1
    offset: float = 0
    compared: np.ndarray | None = None


class Wanted(NamedTuple):
    """What an image is read for.

    Attributes:
        num_channels: Channels C of the result.
        keeps_depth: Whether pictures of more than 8 bits keep their numbers.
        has_nodata: Whether the value of missing pixels is given.
        indices: Whether palette indices are wanted, not colors.
    """

    num_channels: int
    keeps_depth: bool
    has_nodata: bool = False
    indices: bool = False


def opened(source: Source) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def content_of(source: Source) -> bytes:
    with opened(source) as file:
        return file.read()


def open_with_pillow(source: Source) -> Image.Image:
    """Open a file as a PIL image, undecoded, by openers that read images and nothing else.

    Args:
        source: Path, or content of the file.

    Returns:
        The PIL image.

    Raises:
        ValueError: If it is no image that Pillow reads, or has too many pixels.
    """
    Image.init()
    formats = [name for name in Image.ID if name not in NOT_BY_PILLOW]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise ValueError(_too_large(int(pixels[0]) if pixels else 0, 3)) from error
    except UnidentifiedImageError as error:
        if reason := _unread_reason(source):
            raise ValueError(reason) from error
        raise
    # A flaw of a later frame does not matter.
    with contextlib.suppress(Exception):
        # The other images of a photo (MPO) are previews and maps of it.
        if image.format in ("AVIF", "GIF", "PNG", "WEBP") and getattr(image, "is_animated", False):
            logger.warning_once(
                f"Only the first frame of animated {image.format} files is read. Save others as files of their own."
            )
    return image


def _unread_reason(source: Source) -> str:
    """Why an image is not read; empty if its format is unknown."""
    with opened(source) as file:
        head = file.read(132)
    name = "" if isinstance(source, bytes) else str(source).lower()
    found = [(name.endswith(suffix), suffix, extra) for extra in EXTRAS for suffix in EXTRAS[extra].split()]
    found += [
        (head[128:] == b"DICM", "DICOM", "medical"),
        (head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"hevc", b"msf1"), "HEIF", "photos"),
        (head[:2] == b"\xff\x0a" or head[:12] == b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", "photos"),
        (head[:4] == b"v/1\x01", "OpenEXR", "photos"),
        (head[:4] == b"\x89HDF", "HDF5", "arrays"),
    ]
    for matches, kind, extra in reversed(found):
        if matches:
            return f'{kind} files are read by the installed package alone: pip install "hf-simmim[{extra}]".'
    others = [(name.endswith(suffix), suffix, reader) for suffix, reader in UNREAD.items()]
    others += [(head[:4] == kind, kind.decode(), "eccodes") for kind in (b"GRIB", b"BUFR")]
    others += [(head[:4] in (b"%!PS", b"\xc5\xd0\xd3\xc6"), "PostScript", "Ghostscript")]
    for matches, kind, reader in others:
        if matches:
            return f"{kind} files are not read. Convert them, for example with {reader}."
    return ""


def _too_large(pixels: int, channels: int) -> str:
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    return (
        f"The image has {pixels / 1e6:.0f} million pixels in {channels} channels, more than the limit of"
        f" {limit / 1e6:.0f} million pixels ({limit * NUMBERS_PER_PIXEL / 1e6:.0f} million numbers), and takes"
        f" {pixels * channels / 2**30:.1f} to {pixels * channels / 2**28:.1f} GiB of memory in every worker. Read"
        " windows (pretrain, embed: --image_window), cut it into tiles, or raise the limit by the environment variable"
        f" HF_SIMMIM_MAX_MEGAPIXELS={math.ceil(pixels * max(channels / NUMBERS_PER_PIXEL, 1) / 1e6)}."
    )


def check_size(height: int, width: int, channels: int = 1) -> None:
    """Raise a ValueError if an image is larger than the limit, before it is decoded."""
    if height * width * max(channels / NUMBERS_PER_PIXEL, 1) > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
        raise ValueError(_too_large(height * width, channels))


# What makes an image with an EXIF orientation upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation. An image without one is returned as it is, where Pillow would copy it."""
    turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if turn is not None and image.format == "TIFF":
        # Pillow turns these when it decodes them.
        image.load()
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if turn is None:
        return image
    # By the tag alone: Pillow's exif_transpose writes all other tags anew, and fails on those that it cannot write.
    turned = image.transpose(turn)
    for key in ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"):
        turned.info.pop(key, None)
    return turned


def turned(array: np.ndarray, orientation: int, rows: int = 0) -> np.ndarray:
    """Apply an orientation (1 to 8) to an array whose axes `rows` and `rows + 1` are Y and X."""
    columns = rows + 1
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(rows, columns)
    mirrored = tuple(axis for axis, of in ((columns, (2, 3, 6, 7)), (rows, (3, 4, 7, 8))) if orientation in of)
    return np.flip(array, mirrored)


def optional_library(name: str, reason: str) -> Any:
    """An optional library; it is imported by name, because transformers requires what a checkpoint's code imports."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{reason}: pip install {name}.") from error


def few_bits(image: Image.Image, bits: int, wanted: Wanted, is_inverted: bool = False) -> Stored:
    """Gray of two or four bits, which Pillow stretches to 255."""
    scale, sign = 255 // (2**bits - 1), -1 if is_inverted else 1
    if wanted.keeps_depth:
        return Stored(np.asarray(upright(image)) // scale, scale=sign, offset=2**bits - 1 if is_inverted else 0)
    return Stored(image, scale=sign * scale, offset=255 if is_inverted else 0)


def both_bytes(source: Source, image: Image.Image, high: str, low: str) -> np.ndarray:
    """Read 16-bit colors, for which Pillow has no mode: it keeps the upper byte of the byte order that it is given."""
    halves = []
    for order in (high, low):
        with open_with_pillow(source) as opened:
            opened.tile = [_with_order(tile, order) for tile in opened.tile]  # type: ignore[attr-defined]
            halves.append(np.asarray(upright(opened)).astype(np.uint16))
    return halves[0] << 8 | halves[1]


def _with_order(tile: Any, order: str) -> Any:
    coding, *others = [tile.args] if isinstance(tile.args, str) else tile.args
    coding = re.sub("16[BLN]$", order, coding)
    return tile._replace(args=(coding, *others) if others else coding)


def numbers_at(content: bytes, dtype: np.dtype, count: int, position: int) -> np.ndarray:
    if len(content) < position + count * dtype.itemsize:
        raise ValueError("The file is cut off: it is smaller than its header says. Replace it.")
    return np.frombuffer(content, dtype, count, position)


# TIFF

TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
GDAL_NODATA = 42113
# Compressions that Pillow's libtiff always has.
PILLOW_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32946}
TIFF_KINDS = {0: "L", 1: "L", 2: "RGB", 3: "P", 4: "L", 5: "CMYK", 6: "YCbCr"}
TIFF_REFUSED = {8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "raw sensor values", 32844: "LogL", 32845: "LogLuv"}
TIFF_REFUSED[33003] = "YCbCr of Aperio slides (compression 33003, which OpenSlide reads if the file is named .svs)"
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
    meaning_tag = 259 if first_value(page, 259, 1) == 33003 else 262
    samples, meaning = first_value(page, 277, 1), first_value(page, meaning_tag, 1)
    check_size(page[257][0], page[256][0], samples)
    if meaning in TIFF_REFUSED or meaning not in TIFF_KINDS:
        raise ValueError(
            f"The TIFF file holds {TIFF_REFUSED.get(meaning, f'photometric interpretation {meaning}')}, which is not"
            " read. Convert it to gray or RGB."
        )
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


# FITS


def read_fits(source: Source, wanted: Wanted) -> Stored:
    """Read the first image of a FITS file, upright as viewers show it: the first row is the lowest."""
    content = content_of(source)
    position = 0
    while position < len(content):
        cards: dict[str, str] = {}
        while position < len(content):
            card = content[position : position + 80].decode("ascii", "replace")
            position += 80
            if card[:3] == "END" and not card[3:8].strip():
                break
            if card[8:10] == "= ":
                cards.setdefault(card[:8].strip(), card[10:].split(" /")[0].strip().strip("'").strip())
        position = -(-position // 2880) * 2880
        axes = [int(cards.get(f"NAXIS{index + 1}", 0)) for index in range(int(cards.get("NAXIS", 0)))]
        bits = int(cards.get("BITPIX", 8))
        size = math.prod(axes) * abs(bits) // 8 + int(cards.get("PCOUNT", 0)) if axes else 0
        if cards.get("ZIMAGE") == "T":
            return _fits_by_astropy(source)
        if len(axes) >= 2 and size and cards.get("XTENSION", "IMAGE") == "IMAGE":
            shape = tuple(axis for axis in axes[::-1] if axis > 1)
            if len(shape) not in (2, 3):
                raise ValueError(f"The FITS image has axes {axes}, but two or three are read. Save each plane alone.")
            check_size(shape[-2], shape[-1], math.prod(shape[:-2]))
            dtype = np.dtype({8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}[bits])
            numbers = numbers_at(content, dtype, math.prod(shape), position).reshape(shape)[..., ::-1, :]
            scale, zero = (float(cards.get(*card).replace("D", "E")) for card in (("BSCALE", "1"), ("BZERO", "0")))
            return _fits_values(numbers, scale, zero, cards.get("BLANK"))
        position += -(-size // 2880) * 2880
    raise ValueError("The FITS file holds no image of two or three axes. Remove it.")


def _fits_values(numbers: np.ndarray, scale: float, zero: float, blank: str | None) -> Stored:
    nodata = None if blank is None or numbers.dtype.kind == "f" else float(blank) * scale + zero
    half = 2 ** (8 * numbers.dtype.itemsize - 1)
    if numbers.dtype.kind == "i" and scale == 1 and zero == half:
        # How FITS stores unsigned integers.
        numbers = (numbers.astype(np.int64) + half).astype(f"u{numbers.dtype.itemsize}")
    elif (scale, zero) != (1, 0):
        return Stored(numbers * scale + zero, nodata)
    else:
        numbers = numbers.astype(numbers.dtype.newbyteorder("="))
    if numbers.ndim == 2 and numbers.dtype == np.uint8:
        return Stored(Image.fromarray(np.ascontiguousarray(numbers)), nodata)
    is_picture = numbers.ndim == 2 and numbers.dtype == np.uint16
    return Stored(numbers, nodata, 65535 if is_picture else 0, "L" if is_picture else "")


def _fits_by_astropy(source: Source) -> Stored:
    fits = optional_library("astropy", "The FITS file is compressed. To read it")
    fits = importlib.import_module(f"{fits.__name__}.io.fits")
    with fits.open(opened(source)) as units:
        data = next(unit.data for unit in units if unit.data is not None and getattr(unit, "is_image", True))
        return Stored(np.ascontiguousarray(data[..., ::-1, :]).astype(data.dtype.newbyteorder("=")))
