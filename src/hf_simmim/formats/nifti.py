"""NIfTI volumes: slices of the numbers that nibabel gives, along an axis that the header or an option names."""

import gzip
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ..model.image_readers import Source, Stored, Wanted, check_size
from .library import library
from .slicing import Cut, Slicing

# Bytes of decompressed volumes that a process keeps: slices of one are read one after the other.
MAX_KEPT = 2**28
_kept: OrderedDict[tuple, bytes] = OrderedDict()
_lock = threading.Lock()


def is_nifti(head: bytes) -> bool:
    """Whether an uncompressed file begins as NIfTI files do."""
    first = head[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c") and head[344:348] == b"n+1\0"
    return first or (head[:4] in (b"\x1c\2\0\0", b"\0\0\2\x1c") and head[4:8] == b"n+2\0")


def _content(path: str) -> bytes:
    """A compressed file, decompressed; the last ones are kept."""
    status = os.stat(path)
    key = (os.path.abspath(path), status.st_size, status.st_mtime_ns)
    with _lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    with gzip.open(path, "rb") as file:
        content = file.read()
    with _lock:
        _kept[key] = content
        while len(_kept) > 1 and sum(map(len, _kept.values())) > MAX_KEPT:
            _kept.popitem(last=False)
    return content


def _volume(source: Source) -> Any:
    nibabel = library("nibabel", "medical", "NIfTI")
    try:
        if not isinstance(source, bytes) and not str(source).lower().endswith(".gz"):
            return nibabel.load(source)
        content = source if isinstance(source, bytes) else _content(os.fspath(source))
        kind = nibabel.Nifti2Image if content[:4] in (b"\x1c\2\0\0", b"\0\0\2\x1c") else nibabel.Nifti1Image
        holder = nibabel.FileHolder(fileobj=io.BytesIO(content))
        return kind.from_file_map({"header": holder, "image": holder})
    except Exception as error:  # nibabel has a kind for each part of a file
        raise ValueError(f"The NIfTI file cannot be read ({' '.join(str(error).split())}). Replace it.") from error


def _shape(volume: Any) -> tuple[int, ...]:
    """The shape, with three axes at least, and four at most."""
    shape = tuple(int(size) for size in volume.shape)
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 4:
        raise ValueError(
            f"The NIfTI file has the shape {volume.shape}, whose fifth axis holds vectors or matrices. Save each of"
            " them as a volume of three axes."
        )
    return shape + (1,) * (3 - len(shape))


def _zooms(volume: Any) -> tuple[float, ...]:
    """Spacing of the voxels along three axes."""
    return (*(float(zoom) for zoom in volume.header.get_zooms()), 1.0, 1.0, 1.0)[:3]


def slice_axis(shape: tuple[int, ...], zooms: tuple[float, ...]) -> int:
    """Axis that slices are counted along: the one of the largest voxel spacing, the last one if none is larger.

    Args:
        shape: Shape of the volume.
        zooms: Spacing of the voxels along its axes.

    Returns:
        0, 1 or 2.
    """
    thin = [axis for axis in range(3) if shape[axis] == 1]
    if thin:
        return thin[-1]
    spacing = [float(zoom) for zoom in zooms[:3]]
    largest = max(spacing)
    return max(axis for axis in range(3) if spacing[axis] >= largest * 0.999)


def stored_orientation(volume: Any) -> str:
    """Where the axes of a volume of nibabel lead, such as LPS: left, posterior, superior; empty if it is not said."""
    header = volume.header
    if not (int(header["qform_code"]) or int(header["sform_code"])):
        return ""
    codes = library("nibabel", "medical", "NIfTI").aff2axcodes(volume.affine)
    return "" if None in codes else "".join(codes)


class _Turn:
    """Where the axes of a volume are in its file, which is turned to an orientation by permuting and mirroring them.

    Args:
        volume: Volume of nibabel.
        orientation: Codes of the wanted axes, such as RAS; as stored if None.

    Raises:
        ValueError: If the file does not say how it lies.
    """

    def __init__(self, volume: Any, orientation: str | None):
        self.order, self.is_mirrored = [0, 1, 2], [False] * 3
        if orientation is None:
            return
        if not stored_orientation(volume):
            raise ValueError(
                "The NIfTI file does not say how its axes lie (qform_code and sform_code are 0, or its matrix has no"
                f" inverse), so that it cannot be turned to orientation={orientation}. Write its position into it, for"
                " example with set_sform of nibabel, or leave --orientation unset."
            )
        places = library("nibabel.orientations", "medical", "NIfTI")
        turn = places.ornt_transform(places.io_orientation(volume.affine), places.axcodes2ornt(orientation))
        self.order = [int(place) for place in np.argsort(turn[:, 0])]
        self.is_mirrored = [bool(turn[place, 1] < 0) for place in self.order]

    def of_axes(self, stored: tuple[Any, ...]) -> tuple[Any, ...]:
        """What there is of each axis of the turned volume, such as its shape."""
        return (*(stored[place] for place in self.order), *stored[3:])

    def slice(self, axis: int, index: int, size: int) -> tuple[int, int]:
        """The axis and index in the file of a slice of the turned volume."""
        return self.order[axis], size - 1 - index if self.is_mirrored[axis] else index

    def turned(self, numbers: np.ndarray, axis: int) -> np.ndarray:
        """A slice of the file, whose first two axes are the others of its volume, as it lies in the turned volume."""
        rows, columns = (place for place in range(3) if place != axis)
        if self.order[rows] > self.order[columns]:
            numbers = numbers.swapaxes(0, 1)
        mirrored = tuple(place for place, at in enumerate((rows, columns)) if self.is_mirrored[at])
        # Tensors have no negative strides.
        return np.ascontiguousarray(np.flip(numbers, mirrored)) if mirrored else numbers


def read_nifti(source: Source, part: Mapping[str, str], wanted: Wanted) -> Stored:
    """Read a slice; its rows are the first of the other two axes, as the file stores them, or turned to an orientation.

    Args:
        source: Path, or content of the file.
        part: `axis` and `slice`, of the volume that is turned to `orientation`, if there is one; `volume` of a file of
            several, or `volume=all` if they are channels.
        wanted: What it is read for.

    Returns:
        The numbers of the slice (H, W), or (H, W, C); a picture if they are bytes of red, green and blue.

    Raises:
        ValueError: If the part is not in the file, the numbers are complex, or it cannot be turned.
    """
    volume = _volume(source)
    turn = _Turn(volume, part.get("orientation"))
    shape = turn.of_axes(_shape(volume))
    axis = int(part["axis"]) if "axis" in part else slice_axis(shape, turn.of_axes(_zooms(volume)))
    index, of = part.get("slice"), part.get("volume", "0" if len(shape) < 4 or shape[3] == 1 else None)
    if index is None and shape[axis] == 1:
        index = "0"
    if index is None or of is None:
        raise ValueError(
            f"The NIfTI file holds a volume of shape {shape}. Name its folder, whose slices are images, or one slice as"
            f" FILE::axis={axis},slice={shape[axis] // 2}{',volume=0' if of is None else ''}."
        )
    sizes = shape + (1,) * (4 - len(shape))
    if not (0 <= axis < 3 and 0 <= int(index) < shape[axis] and (of == "all" or 0 <= int(of) < sizes[3])):
        raise ValueError(f"axis={axis}, slice={index}, volume={of} is not in the NIfTI file of shape {shape}.")
    rows, columns = (size for place, size in enumerate(shape[:3]) if place != axis)
    check_size(rows, columns, sizes[3] if of == "all" else 1)
    dtype = volume.get_data_dtype()
    if dtype.kind == "c":
        raise ValueError("The NIfTI file holds complex numbers. Save their magnitude.")
    places: list[Any] = [slice(None)] * 3
    stored_axis, stored_index = turn.slice(axis, int(index), shape[axis])
    places[stored_axis] = stored_index
    if len(volume.shape) > 3:
        places += [slice(None) if of == "all" else int(of)]
    places += [0] * (len(volume.shape) - len(places))
    numbers = np.asanyarray(volume.dataobj[tuple(places[: len(volume.shape)])])
    stored_sides = [size for place, size in enumerate(_shape(volume)[:3]) if place != stored_axis]
    if dtype.names:
        colors = np.stack([numbers[name] for name in dtype.names[:3]], axis=-1)
        return Stored(Image.fromarray(np.ascontiguousarray(turn.turned(colors.reshape(*stored_sides, 3), axis))))
    numbers = numbers.astype(numbers.dtype.newbyteorder("="), copy=False)
    numbers = turn.turned(numbers.reshape([*stored_sides, sizes[3]] if of == "all" else stored_sides), axis)
    return Stored(np.moveaxis(numbers, -1, 0) if numbers.ndim == 3 else numbers)


def cut_nifti(path: str, slicing: Slicing) -> Cut:
    """Slices of a volume, of all volumes if there are several.

    Args:
        path: Path of the file.
        slicing: How it is cut.

    Returns:
        Its slices.

    Raises:
        ValueError, OSError: If its header cannot be read.
    """
    nibabel = library("nibabel", "medical", "NIfTI")
    try:
        # The header alone: a compressed volume is not decompressed.
        volume = nibabel.load(path)
    except Exception as error:  # nibabel has a kind for each part of a file
        raise ValueError(f"The NIfTI file cannot be read ({' '.join(str(error).split())}). Replace it.") from error
    try:
        turn = _Turn(volume, slicing.orientation)
    except ValueError:
        # What is wrong is said when it is read; the file alone would be read in another way.
        return Cut([{"axis": "2", "slice": "0", "orientation": str(slicing.orientation)}])
    shape = turn.of_axes(_shape(volume))
    axis = slicing.slice_axis if slicing.slice_axis is not None else slice_axis(shape, turn.of_axes(_zooms(volume)))
    named = {} if slicing.orientation is None else {"orientation": slicing.orientation}
    volumes = [{}] if len(shape) < 4 or shape[3] == 1 else [{"volume": str(index)} for index in range(shape[3])]
    if len(volumes) > 1 and slicing.volume_series == "channels":
        volumes = [{"volume": "all"}]
    parts = [
        {"axis": str(axis), "slice": str(index), **volume, **named}
        for volume in volumes
        for index in range(shape[axis])
    ]
    return Cut(parts, "slice", shape[axis], stored_orientation(volume) or "unknown")
