"""Stacks in TIFF files: planes by the axes that OME, ImageJ or tifffile name, or that a user does."""

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ..model.image_readers import Source, Stored, Wanted, check_size, opened, turned
from ..model.tiff import GDAL_NODATA, gdal_nodata, tiff_directories
from .library import library
from .slicing import ONE_IMAGE, STACK_AXES, Cut, Slicing


def _series(tiff: Any, axes: str | None) -> tuple[Any, dict[str, int]]:
    """The only series of a file, and the sizes of its axes in order."""
    if len(tiff.series) != 1:
        names = ", ".join("x".join(map(str, series.shape)) for series in tiff.series[:4])
        raise ValueError(
            f"The TIFF file holds {len(tiff.series)} series of images ({names}), and one is read. Save each as a file."
        )
    series = tiff.series[0]
    found: dict[str, int] = {}
    for axis, size in zip(series.axes, series.shape, strict=True):
        if size > 1 or axis in "YX":
            # Axes without a name share one.
            found[axis if axis not in found else f"{axis}{len(found)}"] = int(size)
    others = {axis: size for axis, size in found.items() if axis not in ("Y", "X", "S")}
    unknown = [axis for axis in others if axis not in STACK_AXES]
    if axes is not None and (unknown or not others):
        # Of one axis, the number of pages is its size.
        if len(axes) != len(others):
            raise ValueError(
                f"The TIFF file has pages along {len(others)} axes ({_sizes(others)}), and stacks={axes!r} names"
                f" {len(axes)}. Name as many."
            )
        renamed = dict(zip(others, axes, strict=True))
        found = {renamed.get(axis, axis): size for axis, size in found.items()}
    elif unknown:
        raise ValueError(
            f"The TIFF file is a stack of {math.prod(others.values())} pages that does not name its axes"
            f" ({_sizes(others)}). Say what they are, slowest first: --stacks Z for slices, T for times, C for"
            " channels, or ZC for slices of several channels each."
        )
    elif axes is not None and set(axes) != set(others):
        raise ValueError(
            f"The TIFF file names its axes {_sizes(others)}, and stacks={axes!r} are others. Use --stacks slices."
        )
    return series, found


def _sizes(axes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in axes.items()) or "none"


def read_plane(source: Source, part: Mapping[str, str], wanted: Wanted) -> Stored:
    """Read a plane of a stack with all of its channels.

    Args:
        source: Path, or content of the file.
        part: `t` and `z` of the plane, and `axes` that a user named.
        wanted: What it is read for.

    Returns:
        Gray or colors of unsigned integers as a picture; all else, and several channels, as numbers.

    Raises:
        ValueError: If the plane is not in the file, or its numbers mean something else.
    """
    tifffile = library("tifffile", "tiff", "TIFF")
    with tifffile.TiffFile(io.BytesIO(source) if isinstance(source, bytes) else source) as tiff:
        series, sizes = _series(tiff, part.get("axes"))
        planes = {axis: size for axis, size in sizes.items() if axis not in "YXS"}
        places = {axis: int(part[axis.lower()]) for axis in "TZ" if axis.lower() in part}
        missing = [axis for axis in planes if axis != "C" and axis not in places]
        if missing or any(not 0 <= place < planes.get(axis, 1) for axis, place in places.items()):
            named = ", ".join(f"{axis.lower()}={place}" for axis, place in places.items())
            raise ValueError(f"{named or 'No plane'} is not in the TIFF file, whose stack has {_sizes(planes)}.")
        page = series.keyframe
        meaning, is_color = page.photometric.name, "S" in sizes
        if meaning not in ("MINISBLACK", "MINISWHITE", "RGB") or is_color != (meaning == "RGB"):
            raise ValueError(f"The TIFF file is a stack of {meaning} planes. Convert it to gray or RGB.")
        channels = sizes.get("C", 1) * (sizes["S"] if is_color else 1)
        check_size(sizes["Y"], sizes["X"], channels)
        array = _plane(tiff, series, sizes, places)
    nodata = gdal_nodata(_tag(page, GDAL_NODATA, ""))
    array = turned(array, int(_tag(page, 274, 1)), rows=1 if array.ndim == 3 and not is_color else 0)
    scale, offset = 1, 0
    if meaning == "MINISWHITE":
        if array.dtype.kind != "u":
            raise ValueError("The TIFF file holds signed numbers or floats in which white is zero. Convert it.")
        scale, offset = -1, int(np.iinfo(array.dtype).max)
        array = offset - array
    bits = 8 * array.dtype.itemsize
    kind = {2: "L", 3: {3: "RGB", 4: "RGBA"}.get(array.shape[-1], "") if is_color else ""}.get(array.ndim, "")
    if array.dtype.kind != "u" or bits > 16 or not kind:
        return Stored(array, nodata, scale=scale, offset=offset)
    if bits == 8:
        return Stored(Image.fromarray(np.ascontiguousarray(array)), nodata, scale=scale, offset=offset)
    return Stored(array, nodata, 65535, kind, scale, offset)


def _tag(page: Any, number: int, default: Any) -> Any:
    tag = page.tags.get(number)
    return default if tag is None else tag.value


def _plane(tiff: Any, series: Any, sizes: Mapping[str, int], places: Mapping[str, int]) -> np.ndarray:
    """Numbers (H, W), (H, W, S) or (C, H, W) of a plane."""
    order = list(sizes)
    shape = tuple(sizes.values())
    index = tuple(places.get(axis, slice(None)) for axis in order)
    rest = "".join(axis for axis in order if axis not in places)
    if series.dataoffset is not None and tiff.filehandle.is_file:
        # Large files of ImageJ have one page for all planes.
        dtype = np.dtype(tiff.byteorder + series.dtype.char)
        array = tiff.filehandle.memmap_array(dtype, shape, series.dataoffset)[index]
    else:
        inner = [axis for axis in order if axis in "YXS"]
        first = next(place for place, axis in enumerate(order) if axis in "YXS")
        if order[first:] != inner or math.prod(shape[:first]) != len(series.pages):
            # Samples apart, or planes in one page.
            array = series.asarray().reshape(shape)[index]
        else:
            pages = np.arange(len(series.pages)).reshape(shape[:first])[index[:first]]
            read = [_page(series, int(page)) for page in np.ravel(pages)]
            array = np.stack(read).reshape((*pages.shape, *read[0].shape)) if pages.shape else read[0]
    rest_order = [rest.index(axis) for axis in "CYXS" if axis in rest]
    array = np.array(np.transpose(array, rest_order))
    array = array.astype(array.dtype.newbyteorder("="))
    return np.concatenate([*np.moveaxis(array, -1, 1)], axis=0) if array.ndim == 4 else array


def _page(series: Any, index: int) -> np.ndarray:
    page = series.pages[index]
    if page is None:
        raise ValueError(f"Page {index} of the stack is missing in the TIFF file. Replace it.")
    return page.asarray()


def cut_stack(path: str, slicing: Slicing) -> Cut:
    """Planes of a TIFF file.

    Args:
        path: Path of the file.
        slicing: How it is cut.

    Returns:
        Its planes; one part for a file of one image, and if pages are channels.

    Raises:
        OSError: If it cannot be opened.
    """
    if slicing.stacks == "channels":
        return ONE_IMAGE
    with opened(path) as file:
        pages = tiff_directories(file, 2)
    text = str(pages[0].get(270, "")) if pages else ""
    if len(pages) < 2 and not text.startswith(("ImageJ=", '{"shape"')) and "<OME" not in text:
        return ONE_IMAGE
    axes = None if slicing.stacks == "slices" else slicing.stacks
    named = {} if axes is None else {"axes": axes}
    try:
        with library("tifffile", "tiff", "TIFF").TiffFile(path) as tiff:
            _, sizes = _series(tiff, axes)
    except ValueError:
        # What is wrong is said when the plane is read; the file alone would be read in another way.
        return Cut([{"z": "0", **named}])
    planes = {axis: size for axis, size in sizes.items() if axis in "TZ"}
    if not planes:
        return ONE_IMAGE
    parts: list[dict[str, str]] = [{}]
    for axis, size in planes.items():
        parts = [{**part, axis.lower(): str(index)} for part in parts for index in range(size)]
    counted = "z" if "Z" in planes else "t"
    return Cut([{**part, **named} for part in parts], counted, planes[counted.upper()])
