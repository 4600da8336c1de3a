"""Large images, such as whole slides, satellite scenes and mosaics, of which windows are read without the rest.

A window is an address: `slide.svs::level=1,top=4096,left=512,height=512,width=512`.
"""

# ADD A FORMAT OF LARGE IMAGES: a class with `read` and `stored` of `LargeImage`, and a line in `OPENERS`.

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from ..model.image_readers import Stored, Wanted, check_size
from ..model.tiff import TIFF_MAGICS, MissingCodecError
from .address import Address, parse_address
from .bands import BandsImage
from .large_images import LargeImage
from .large_others import RasterImage, SlideImage, WholeImage, is_zarr, open_npy, open_zarr
from .large_tiff import SlideOnlyError, TiffImage, TurnedError

# Whole slides that OpenSlide reads, and rasters that GDAL reads and Pillow does not.
SLIDE_SUFFIXES = {".bif", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".vms", ".vmu"}
RASTER_SUFFIXES = {".img", ".ntf", ".nitf", ".vrt"}
# TIFF files by other names.
LARGE_SUFFIXES = SLIDE_SUFFIXES | RASTER_SUFFIXES | {".btf", ".ptif", ".ptiff", ".qptiff", ".tf8"}
# Files that stay open in each process.
MAX_OPEN = 16
PLACE = ("level", "top", "left", "height", "width")


def _open_tiff(path: str) -> LargeImage:
    try:
        return TiffImage(path)
    except TurnedError:
        return WholeImage(path)
    except SlideOnlyError as reason:
        return _by_openslide(path, reason)
    except MissingCodecError:
        try:
            return RasterImage(path)
        except Exception:  # not installed, or it does not read the file either
            pass
        raise


def _by_openslide(path: str, reason: SlideOnlyError) -> LargeImage:
    try:
        return SlideImage(path, reason.is_simple)
    except Exception as error:  # not installed, or it does not read the file either
        raise ValueError(
            f'{reason}, which OpenSlide reads: pip install "hf-simmim[slides]". ({" ".join(str(error).split())})'
        ) from error


def _open_slide(path: str) -> LargeImage:
    if _head(path).startswith(TIFF_MAGICS):
        # By its tiles, if they are all of it: OpenSlide places windows by pixels of level 0, between those of a level
        # that is no whole fraction of it.
        try:
            return TiffImage(path)
        except SlideOnlyError as reason:
            return _by_openslide(path, reason)
        except Exception:  # it may still be one that OpenSlide reads
            pass
    return SlideImage(path)


def _open_jpeg2000(path: str) -> LargeImage:
    try:
        return RasterImage(path)
    except Exception:
        return WholeImage(path)


def _head(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(16)


def _has_suffix(suffixes: set[str]) -> Callable[[str], bool]:
    return lambda path: Path(path).suffix.lower() in suffixes


# What opens a file: the first one whose test is met.
OPENERS: dict[str, tuple[Callable[[str], bool], Callable[[str], LargeImage]]] = {
    "zarr": (is_zarr, open_zarr),
    "whole slide": (_has_suffix(SLIDE_SUFFIXES), _open_slide),
    "raster": (_has_suffix(RASTER_SUFFIXES), RasterImage),
    "TIFF": (lambda path: _head(path).startswith(TIFF_MAGICS), _open_tiff),
    "NumPy": (lambda path: _head(path).startswith(b"\x93NUMPY"), open_npy),
    "JPEG 2000": (lambda path: _head(path)[4:8] == b"jP  ", _open_jpeg2000),
    "picture": (lambda path: True, WholeImage),
}

_Key = tuple[int, str, int, int]
_opened: OrderedDict[_Key, LargeImage] = OrderedDict()
_lock = threading.Lock()


def open_large(path: str | os.PathLike) -> LargeImage:
    """Open a large image; the last ones that a process opened stay open.

    Args:
        path: The file, the folder of a zarr array, or the address of a part of a file, such as a slice of a volume.

    Returns:
        The image. It is closed at some time later, so open it again for each use.

    Raises:
        ValueError, OSError: If it cannot be opened; the message says what to install or to do.
    """
    address = parse_address(path)
    status = os.stat(address.path)
    # A forked process opens files again, because it would share their positions with its parent.
    key = (os.getpid(), str(address), status.st_mtime_ns, status.st_size)
    with _lock:
        if key in _opened:
            _opened.move_to_end(key)
            return _opened[key]
    image = _open_part(address)
    with _lock:
        _opened[key] = image
        while len(_opened) > MAX_OPEN:
            # It is closed when nobody reads from it any more.
            _opened.popitem(last=False)
    return image


def _open_part(address: Address) -> LargeImage:
    if address.part.keys() - {"bands"}:
        return WholeImage(str(address))
    image = next(opens for matches, opens in OPENERS.values() if matches(address.path))(address.path)
    if not address.part:
        return image
    return WholeImage(str(address)) if isinstance(image, WholeImage) else BandsImage(image, address)


def is_window(address: Address) -> bool:
    """Whether an address is that of a window."""
    return {"height", "width"} <= address.part.keys()


def window_address(path: str | os.PathLike, level: int, top: int, left: int, height: int, width: int) -> str:
    """The address of a window.

    Args:
        path: Path or address of the image.
        level: Index of its levels.
        top: First row, in pixels of the level.
        left: First column.
        height: Number of rows.
        width: Number of columns.

    Returns:
        The address as text.
    """
    place = {"level": level, "top": top, "left": left, "height": height, "width": width}
    return str(parse_address(path).with_part(**place))


def window_place(text: str | os.PathLike) -> tuple[str, int, int, int, int, int]:
    """Take the address of a window apart.

    Args:
        text: The address.

    Returns:
        Path or address of the image, level, top, left, height and width, in pixels of the level.

    Raises:
        ValueError: If a number is missing or is none.
    """
    address = parse_address(text)
    rest = {name: value for name, value in address.part.items() if name not in PLACE}
    try:
        place = [int(address.part.get(name, 0)) for name in PLACE]
    except ValueError as error:
        raise ValueError(
            f"{address} is no window: level, top, left, height and width must be whole numbers ({error})."
        ) from error
    level, top, left, height, width = place
    return str(Address(address.path, rest)), level, top, left, height, width


def is_large(path: str) -> bool:
    """Whether a file is read by this module even if it is read whole: a whole slide or a raster of GDAL."""
    return Path(path).suffix.lower() in SLIDE_SUFFIXES | RASTER_SUFFIXES


def read_large(address: Address, wanted: Wanted) -> Stored:
    """Read a window, or the whole of an image that is not too large.

    Args:
        address: Address of the window, or of the image.
        wanted: What it is read for.

    Returns:
        The image.

    Raises:
        ValueError, OSError: As `read_window`.
    """
    if is_window(address):
        return read_window(address, wanted)
    height, width = open_large(str(address)).levels[0]
    return read_window(parse_address(window_address(str(address), 0, 0, 0, height, width)), wanted)


def read_window(address: Address, wanted: Wanted) -> Stored:
    """Read a window.

    Args:
        address: Its address.
        wanted: What it is read for.

    Returns:
        The window as an image, treated like a whole file.

    Raises:
        ValueError, OSError: If it is not inside the image, or the file cannot be read.
    """
    path, level, top, left, height, width = window_place(str(address))
    image = open_large(path)
    if not 0 <= level < len(image.levels):
        raise ValueError(
            f"{address}: level={level} does not exist. The image has the levels 0 to {len(image.levels) - 1}."
        )
    rows, columns = image.levels[level]
    if min(top, left) < 0 or min(height, width) < 1 or top + height > rows or left + width > columns:
        raise ValueError(f"{address} is not inside of level {level}, which has {rows} rows and {columns} columns.")
    check_size(height, width, image.num_channels)
    return image.window(level, top, left, height, width, wanted)
