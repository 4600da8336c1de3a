"""Slices with their neighbors as channels."""

import os
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import quote, unquote

import numpy as np
from PIL import Image

from ..model.image_readers import Source, Stored, Wanted

# Values of a part that neighbors are counted by, the first one that it has.
COUNTED = ("z", "t", "slice", "frame", "row")
Reader = Callable[[Source, Mapping[str, str], Wanted], Stored]


def read_neighbors(read: Reader, path: str, part: Mapping[str, str], wanted: Wanted) -> Stored:
    """Read a slice, those before and those after it, as channels in order; at an end the last one is repeated.

    Args:
        read: Reader of the format.
        path: Path of the file.
        part: Part of the slice, with `neighbors`, their number on each side, and `of`, the number of slices.
        wanted: What it is read for.

    Returns:
        The slices as one image.

    Raises:
        ValueError: If the slices are not gray, or of other sizes.
    """
    inner = {name: value for name, value in part.items() if name not in ("neighbors", "of")}
    counted = next(name for name in COUNTED if name in inner)
    reach, last, index = int(part["neighbors"]), int(part["of"]) - 1, int(inner[counted])
    places = [min(max(place, 0), last) for place in range(index - reach, index + reach + 1)]
    found = {
        place: read(path, {**inner, counted: str(place)}, wanted._replace(num_channels=1)) for place in set(places)
    }
    return joined([found[place] for place in places])


def series_part(path: str, ordered: Sequence[str], reach: int) -> str:
    """The value `series` of a part: names of the files of a slice and its neighbors, in the folder of the file."""
    place = ordered.index(path)
    places = [min(max(index, 0), len(ordered) - 1) for index in range(place - reach, place + reach + 1)]
    return "|".join(quote(os.path.basename(ordered[index]), safe="") for index in places)


def read_series(read: Reader, path: str, part: Mapping[str, str], wanted: Wanted) -> Stored:
    """Read a slice and its neighbors that are files of their own, as channels in order.

    Args:
        read: Reader of the format.
        path: Path of the file in the middle.
        part: Part of each file, and `series`, the names of all of them.
        wanted: What it is read for.

    Returns:
        The slices as one image.

    Raises:
        ValueError: If the slices are not gray, or of other sizes.
    """
    inner = {name: value for name, value in part.items() if name != "series"}
    names = [unquote(name) for name in part["series"].split("|")]
    found = {
        name: read(os.path.join(os.path.dirname(path), name), inner, wanted._replace(num_channels=1))
        for name in dict.fromkeys(names)
    }
    return joined([found[name] for name in names])


def joined(slices: Sequence[Stored]) -> Stored:
    """Join gray images as channels.

    Args:
        slices: The images.

    Returns:
        A picture if there are three pictures, else numbers of shape (C, H, W).

    Raises:
        ValueError: If they are not gray, or of other sizes.
    """
    arrays = [np.asarray(one.image) for one in slices]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1 or arrays[0].ndim != 2:
        found = ", ".join("x".join(map(str, shape)) for shape in sorted(shapes))
        raise ValueError(
            f"Slices with neighbors must be gray and of one size, and these are of {found}. Set slice_neighbors=0."
        )
    first = slices[0]
    if len(slices) == 3 and all(isinstance(one.image, Image.Image) for one in slices):
        merged = Image.merge("RGB", [Image.fromarray(array.astype(np.uint8)) for array in arrays])
        return first._replace(image=merged)
    if len(slices) == 3 and all(one.kind == "L" for one in slices):
        return first._replace(image=np.dstack(arrays), kind="RGB", largest=max(one.largest for one in slices))
    if len({array.dtype for array in arrays}) > 1:
        arrays = [array.astype(np.float32) for array in arrays]
    return first._replace(image=np.stack(arrays), kind="", largest=0)
