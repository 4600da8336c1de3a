"""The readers that the package adds to those that travel with a checkpoint, in one table."""

# ADD A FILE FORMAT: a module with its reader, and a line in `FORMATS` at the end of this one.

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ..model import images
from ..model.image_readers import SUFFIXES, UNREAD, Source, Stored, Wanted, opened
from .address import SEPARATOR, Address, parse_address
from .arrays import cut_array, is_hdf5, is_zarr, read_array
from .bands import read_bands
from .dicom import cut_dicom, is_dicom, read_dicom
from .large import LARGE_SUFFIXES, is_large, is_window, read_large
from .neighbors import read_neighbors, read_series
from .nifti import cut_nifti, is_nifti, read_nifti
from .photos import (
    is_exr,
    is_heif,
    is_jpeg_ls,
    is_jpeg_xl,
    is_jpeg_xr,
    is_raw,
    read_exr,
    read_heif,
    read_jpeg_ls,
    read_jpeg_xl,
    read_jpeg_xr,
    read_raw,
)
from .slicing import Cut, Slicing
from .stacks import cut_stack, read_plane

# Bytes of a file that tell its format.
HEAD = 352


class Format(NamedTuple):
    """A file format that a library of its field reads.

    Attributes:
        name: Name of the format.
        suffixes: Ends of the names of its files, in lower case.
        library: Module that reads it.
        extra: Extra of this package that installs the library.
        matches: Whether a file begins as such files do; None if the name decides.
        read: Reads an image, of a part as in `Address`.
        cut: Lists the images of a file of many; None if each file is an image.
        only_parts: Whether files without a part are read by another reader.
    """

    name: str
    suffixes: tuple[str, ...]
    library: str
    extra: str
    matches: Callable[[bytes], bool] | None
    read: Callable[[Source, Mapping[str, str], Wanted], Stored]
    cut: Callable[[str, Slicing], Cut] | None = None
    only_parts: bool = False


def format_of(path: str) -> Format | None:
    """The format of a file by its name.

    Args:
        path: Its path, without a part.

    Returns:
        The format; None if the package's own readers read it, or its name says nothing.
    """
    name = path.lower()
    suffix = os.path.splitext(name)[1]
    if suffix in DOUBLE:
        suffix = os.path.splitext(name[: -len(suffix)])[1] + suffix
    return BY_SUFFIX.get(suffix)


def format_inside(path: str) -> Format | None:
    """The format of a file by its name, or else by its first bytes; None if it is none of the table."""
    found = format_of(path)
    if found is not None or os.path.isdir(path):
        return found
    with opened(path) as file:
        head = file.read(HEAD)
    return next((one for one in FORMATS if one.matches is not None and one.matches(head)), None)


def holds_numbers(names: Sequence[str]) -> bool:
    """Whether images come from files of numbers, such as volumes, that may have any range.

    Args:
        names: Their paths and addresses.

    Returns:
        Whether the first one does.
    """
    if not names:
        return False
    address = parse_address(names[0])
    try:
        found = format_inside(address.path)
    except OSError:
        return False
    return found is not None and found.cut is not None and (bool(address.part) or not found.only_parts)


def unread_because(name: str) -> str:
    """What a file needs that is of a format whose library is not installed.

    Args:
        name: Its path or address.

    Returns:
        The command that installs it; empty if nothing is missing.
    """
    found = format_of(parse_address(name).path if SEPARATOR in name else name)
    if found is None or found.only_parts or _is_installed(found.library):
        return ""
    return f'pip install "hf-simmim[{found.extra}]"'


@functools.cache
def _is_installed(library: str) -> bool:
    try:
        __import__(library)
    except ImportError:
        return False
    return True


def read_other(source: Source, wanted: Wanted) -> Stored | None:
    """Read a file of a field's own format, or an image inside a file.

    Args:
        source: Path, address (see `Address`), or content of the file.
        wanted: What it is read for.

    Returns:
        The image as it is stored; None if the file is of another format, which its content tells.

    Raises:
        ValueError, OSError: If the file cannot be read, and whatever else the readers raise.
    """
    if isinstance(source, bytes):
        return None
    path = os.fspath(source)
    if SEPARATOR in path:
        address = parse_address(path)
        if is_window(address):
            return read_large(address, wanted)
        if address.part:
            return _read_part(address, wanted)
    if is_large(path):
        return read_large(Address(path, {}), wanted)
    found = format_of(path)
    if found is None or found.only_parts:
        return None
    if found.matches is not None:
        with opened(path) as file:
            head = file.read(HEAD)
        # What a file holds counts more than its name.
        if any(matches(head) for matches, _ in images.FORMATS.values()):
            return None
    return found.read(path, {}, wanted)


def _read_part(address: Address, wanted: Wanted) -> Stored:
    """Read an image inside a file, with its neighbors or some of its bands if the part names them."""
    if "bands" in address.part:
        return read_bands(images.read_stored, address, wanted)
    found = format_inside(address.path)
    if found is None:
        raise ValueError(f"{address} names a part of a file that has none.")
    if "series" in address.part:
        return read_series(found.read, address.path, address.part, wanted)
    if "neighbors" in address.part:
        return read_neighbors(found.read, address.path, address.part, wanted)
    return found.read(address.path, address.part, wanted)


def register_readers() -> None:
    """Make all commands and image processors read by these readers, too."""
    if read_other in images.OTHER_READERS:
        return
    images.OTHER_READERS.append(read_other)
    SUFFIXES.update(LARGE_SUFFIXES)
    for suffix in LARGE_SUFFIXES & UNREAD.keys():
        del UNREAD[suffix]
    # First, because JPEG-LS begins as JPEG does.
    own = {one.name: (one.matches, _whole(one)) for one in FORMATS if one.matches is not None}
    others = dict(images.FORMATS)
    images.FORMATS.clear()
    images.FORMATS.update({**own, **others})


def _whole(one: Format) -> Callable[[Source, Wanted], Stored]:
    return lambda source, wanted: one.read(source, {}, wanted)


RAW = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef"),
    *(".raf", ".rw2", ".rwl", ".sr2", ".srw"),
)
FORMATS: tuple[Format, ...] = (
    Format("DICOM", (".dcm", ".dicom"), "pydicom", "medical", is_dicom, read_dicom, cut_dicom),
    Format("NIfTI", (".nii",), "nibabel", "medical", is_nifti, read_nifti, cut_nifti),
    Format("NIfTI, compressed", (".nii.gz",), "nibabel", "medical", None, read_nifti, cut_nifti),
    Format("TIFF stack", (".tif", ".tiff"), "tifffile", "tiff", None, read_plane, cut_stack, only_parts=True),
    Format("HDF5", (".h5", ".hdf5", ".he5", ".nc", ".nc4"), "h5py", "arrays", is_hdf5, read_array, cut_array),
    Format("Zarr", (".zarr", ".zarr.zip"), "zarr", "arrays", None, read_array, cut_array),
    Format("HEIF", (".heic", ".heif", ".hif"), "pillow_heif", "photos", is_heif, read_heif),
    Format("JPEG XL", (".jxl",), "imagecodecs", "photos", is_jpeg_xl, read_jpeg_xl),
    Format("JPEG-LS", (".jls",), "imagecodecs", "photos", is_jpeg_ls, read_jpeg_ls),
    Format("JPEG XR", (".jxr", ".wdp", ".hdp"), "imagecodecs", "photos", is_jpeg_xr, read_jpeg_xr),
    Format("OpenEXR", (".exr",), "OpenEXR", "photos", is_exr, read_exr),
    Format("Raw camera", RAW, "rawpy", "photos", None, read_raw),
    Format("Raw camera, by content", (), "rawpy", "photos", is_raw, read_raw),
)
BY_SUFFIX = {suffix: one for one in FORMATS for suffix in one.suffixes}
# Last suffixes that say something only with the one before.
DOUBLE = {"." + suffix.rpartition(".")[2] for suffix in BY_SUFFIX if suffix.count(".") > 1}
# Ends of the names of files that are images, and of folders that take the place of one.
FILE_ENDS = tuple(suffix for one in FORMATS for suffix in one.suffixes)
FOLDER_ENDS = (".zarr",)

__all__ = ["FILE_ENDS", "FOLDER_ENDS", "FORMATS", "Format", "format_inside", "format_of", "is_zarr", "register_readers"]
