"""Arrays in HDF5 files and zarr stores: the images along their first axis."""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from PIL import Image

from ..model.image_readers import Source, Stored, Wanted, check_size
from .library import library
from .packed import unpacked
from .slicing import Cut, Slicing

# Names that zarr gives to the file of a group or an array.
ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")
# An axis of at most so many values may be channels.
MAX_CHANNELS = 4


def is_hdf5(head: bytes) -> bool:
    """Whether a file begins as HDF5 files do."""
    return head[:8] == b"\x89HDF\r\n\x1a\n"


def is_zarr(path: str | os.PathLike) -> bool:
    """Whether a folder is a zarr store."""
    return any(os.path.isfile(os.path.join(path, name)) for name in ZARR_FILES)


@contextmanager
def _opened(source: Source) -> Iterator[Any]:
    """An HDF5 file or a zarr store: a group or an array."""
    if not isinstance(source, bytes) and (os.path.isdir(source) or str(source).lower().endswith(".zip")):
        zarr = library("zarr", "arrays", "Zarr")
        if os.path.isdir(source):
            yield zarr.open(os.fspath(source), mode="r")
            return
        store = zarr.storage.ZipStore(os.fspath(source), mode="r")
        try:
            yield zarr.open(store, mode="r")
        finally:
            store.close()
        return
    h5py = library("h5py", "arrays", "HDF5")
    try:
        file = h5py.File(io.BytesIO(source) if isinstance(source, bytes) else source, "r")
    except OSError as error:
        if not isinstance(source, bytes) and _is_classic_netcdf(source):
            raise ValueError(
                f"{source} is a NetCDF file of the classic format, which is not read. Convert it: nccopy -k nc4"
                f" {os.path.basename(source)} converted.nc."
            ) from error
        raise ValueError(f"The HDF5 file cannot be opened ({' '.join(str(error).split())}). Replace it.") from error
    with file:
        yield file


def _is_classic_netcdf(path: str | os.PathLike) -> bool:
    with open(path, "rb") as file:
        return file.read(3) == b"CDF"


def _arrays(place: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Arrays below a group, by name."""
    if hasattr(place, "dtype"):
        yield name, place
        return
    for key in sorted(place.keys()):
        # A link of HDF5 may lead nowhere, or to another file.
        item = place.get(key) if hasattr(place, "get") else place[key]
        if item is not None and (hasattr(item, "dtype") or hasattr(item, "keys")):
            yield from _arrays(item, f"{name}/{key}" if name else key)


def _axes(array: Any, named: str | None, what: str) -> str:
    """Axes of an array, slowest first, of N, H, W and C; `?` for one that is the channels on one of its ends."""
    shape = tuple(array.shape)
    if named is not None:
        if len(named) != len(shape):
            raise ValueError(f"array_axes={named!r} names {len(named)} axes, and {what} has the shape {shape}.")
        return named
    if len(shape) == 2:
        return "HW"
    if len(shape) == 3 and min(shape[0], shape[-1]) > MAX_CHANNELS:
        return "NHW"
    if len(shape) == 4:
        ends = [size <= MAX_CHANNELS for size in (shape[1], shape[3])]
        if ends[0] != ends[1]:
            return "NCHW" if ends[0] else "NHWC"
    raise ValueError(
        f"{what} has the shape {shape}, whose axes may be images or channels. Name them with --array_axes, such as"
        f" {'NHW, HWC or CHW' if len(shape) == 3 else 'NHWC or NCHW'}."
    )


def _is_images(array: Any) -> bool:
    """Whether an array has an image's shape: two to four axes, two of which are longer than one."""
    shape = tuple(array.shape)
    return array.dtype.kind in "buif" and 2 <= len(shape) <= 4 and sum(size > 1 for size in shape[-3:]) >= 2


def _find(place: Any, name: str | None) -> tuple[str, Any]:
    """The array of a name, or the only one of an image's shape."""
    if name is not None:
        found = dict(_arrays(place)).get(name.strip("/"))
        if found is None:
            names = ", ".join(each or "the store itself" for each, _ in _arrays(place)) or "none"
            raise ValueError(f"array_name={name!r} is not in the file. Its arrays are: {names}.")
        return name.strip("/"), found
    found = [(each, array) for each, array in _arrays(place) if _is_images(array)]
    if len(found) != 1:
        shapes = ", ".join(f"{each} {tuple(array.shape)}" for each, array in found) or "none"
        raise ValueError(
            f"The file has {len(found)} arrays of an image's shape ({shapes}), and one is read. Name it with"
            " --array_name."
        )
    return found[0]


def read_array(source: Source, part: Mapping[str, str], wanted: Wanted) -> Stored:
    """Read an image of an array.

    Args:
        source: Path of a file or folder, or content of a file.
        part: `array`, its name; `axes`, their names; `row`, which image, if there are several.
        wanted: What it is read for.

    Returns:
        Gray or RGB of 8 bits as a picture, all else as numbers.

    Raises:
        ValueError: If there is no such array or image.
    """
    with _opened(source) as place:
        name, array = _find(place, unquote(part["array"]) if "array" in part else None)
        what = f"The array {name or 'of the store'}"
        axes = _axes(array, part.get("axes"), what)
        sizes = dict(zip(axes, map(int, array.shape), strict=True))
        row = part.get("row")
        if "N" in axes and row is None:
            raise ValueError(
                f"{what} holds {sizes['N']} images. Name the folder of the file, whose images are rows, or one image as"
                " FILE::row=0."
            )
        if row is not None and not ("N" in axes and 0 <= int(row) < sizes["N"]):
            raise ValueError(f"row={row} is not in the array of shape {tuple(array.shape)}.")
        check_size(sizes["H"], sizes["W"], sizes.get("C", 1))
        index = tuple(int(row or 0) if axis == "N" else slice(None) for axis in axes)
        numbers = np.asarray(unpacked(array, what)[index])
        is_inverted = bool(np.any(array.attrs.get("IMAGE_WHITE_IS_ZERO", 0)))
    numbers = numbers.astype(numbers.dtype.newbyteorder("="), copy=False)
    scale, offset = 1, 0
    if is_inverted:
        if wanted.indices:
            raise ValueError(f"{what} is a map of ids in which white is zero. Convert it, so that ids are as stored.")
        if numbers.dtype.kind != "u":
            raise ValueError(f"{what} holds signed numbers or floats in which white is zero. Convert it.")
        scale, offset = -1, int(np.iinfo(numbers.dtype).max)
        numbers = offset - numbers
    order = [axis for axis in axes if axis != "N"]
    is_picture = numbers.dtype == np.uint8 and sizes.get("C", 1) in (1, 3)
    wanted_order = [axis for axis in ("HWC" if is_picture else "CHW") if axis in order]
    numbers = np.ascontiguousarray(np.transpose(numbers, [order.index(axis) for axis in wanted_order]))
    if is_picture:
        picture = Image.fromarray(numbers[..., 0] if numbers.shape[2:] == (1,) else numbers)
        return Stored(picture, scale=scale, offset=offset)
    return Stored(numbers[0] if numbers.shape[0] == 1 and numbers.ndim == 3 else numbers, scale=scale, offset=offset)


def cut_array(path: str, slicing: Slicing) -> Cut:
    """Images of an array.

    Args:
        path: Path of the file or folder.
        slicing: Name and axes of the array.

    Returns:
        Its images.

    Raises:
        OSError: If the file cannot be opened.
    """
    part: dict[str, str] = {}
    if slicing.array_name is not None:
        part["array"] = quote(slicing.array_name.strip("/"), safe="")
    if slicing.array_axes is not None:
        part["axes"] = slicing.array_axes
    try:
        with _opened(path) as place:
            name, array = _find(place, slicing.array_name)
            axes = _axes(array, slicing.array_axes, f"The array {name or 'of the store'}")
            shape = tuple(map(int, array.shape))
    except ValueError:
        # What is wrong is said when the file is read, which must not take another array then.
        return Cut([part])
    if "N" not in axes:
        return Cut([part])
    count = shape[axes.index("N")]
    return Cut([{**part, "row": str(row)} for row in range(count)], "row", count)
