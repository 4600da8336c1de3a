"""Readers of image files: each format is read by a library whose numbers are those that the file stores.

Pillow reads most formats. It keeps 8 bits of deeper colors, stretches gray of 9 to 15 bits, and takes some files for
what they are not; there the format has a reader of its own, another library reads it, or it is refused with the name of
the library that would.
"""

import contextlib
import importlib
import io
import logging as standard_logging
import math
import os
import re
import warnings
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
