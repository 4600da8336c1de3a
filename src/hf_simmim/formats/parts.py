"""Images inside files as images: a folder of volumes, series, stacks or arrays becomes the addresses of all of them."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from datasets.utils import tqdm
from transformers.utils import logging

from .address import Address, parse_address
from .bands import bands_part
from .dicom import series_of
from .neighbors import series_part
from .readers import Format, format_inside, format_of
from .slicing import ONE_IMAGE, Cut, Slicing

logger = logging.get_logger(__name__)

# Files whose headers are read before a progress bar is shown.
FEW_FILES = 200


def expand(paths: Sequence[str], slicing: Slicing | None = None, plain: frozenset[str] = frozenset()) -> list[str]:
    """Replace files of many images by the addresses of their images.

    Args:
        paths: Paths of files.
        slicing: Which images they hold; found in their headers if None.
        plain: Suffixes of files that are images, and are not looked into.

    Returns:
        Paths of files of one image, and addresses, in the order of the paths. A file whose header cannot be read stays,
        so that it is reported when it is read.

    Raises:
        ValueError: If neighbors are wanted, and the order of slices is unknown.
    """
    slicing = slicing or Slicing()
    formats = {path: found for path in paths for found in [_many(path, slicing, plain)] if found is not None}
    bands = {} if slicing.bands is None else {"bands": bands_part(slicing.bands)}
    if not formats and not bands:
        return list(paths)
    cuts: dict[str, Cut] = {}
    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=len(formats), desc="looking into files", unit="file", disable=len(formats) <= FEW_FILES) as bar,
    ):
        for path, cut in zip(formats, pool.map(lambda path: _cut(path, formats[path], slicing), formats), strict=True):
            cuts[path] = cut
            bar.update()
    mixed = mixed_orientations(Counter(cut.orientation for cut in cuts.values() if cut.orientation))
    if mixed and slicing.orientation is None:
        logger.warning_once(mixed)
    series: dict[str, list[str]] = {}
    if slicing.slice_neighbors:
        single = [path for path, one in formats.items() if one.name == "DICOM" and not cuts[path].counted]
        series = series_of([path for path in single if cuts[path] is not ONE_IMAGE])
    addresses = []
    for path in paths:
        cut = cuts.get(path, ONE_IMAGE)
        for part in cut.parts:
            if slicing.slice_neighbors and cut.counted:
                part = {**part, "neighbors": str(slicing.slice_neighbors), "of": str(cut.number)}
            elif path in series:
                part = {**part, "series": series_part(path, series[path], slicing.slice_neighbors)}
            if bands and _is_plain(path):
                part = {**part, **bands}
            addresses.append(str(Address(path, part)))
    return addresses


def mixed_orientations(counts: Mapping[str, int]) -> str:
    """What to do about volumes that lie in several orientations.

    Args:
        counts: Number of volumes in each orientation as stored, such as LPS, by its name.

    Returns:
        A sentence or two; empty if they all lie alike.
    """
    if len(counts) < 2:
        return ""
    shown = ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])))
    return (
        f"Volumes lie in {len(counts)} orientations as they are stored: {shown}. Their slices show other planes and"
        " other sides up. Turn them alike, for example with --orientation RAS."
    )


def orientations(names: Sequence[str]) -> dict[str, str]:
    """Orientations of volumes as they are stored.

    Args:
        names: Paths and addresses; several addresses of a file are one volume.

    Returns:
        Where the axes of each volume lead, such as LPS, or unknown, by its path; without those that are turned.
    """
    addresses = [parse_address(name) for name in names]
    paths = {address.path for address in addresses if "slice" in address.part and "orientation" not in address.part}
    volumes = [(path, found) for path in sorted(paths) for found in [format_of(path)] if found is not None]
    with ThreadPoolExecutor() as pool:
        stored = list(pool.map(lambda one: _cut(one[0], one[1], Slicing()).orientation, volumes))
    return {path: orientation for (path, _), orientation in zip(volumes, stored, strict=True) if orientation}


def _is_plain(path: str) -> bool:
    """Whether a file may have bands: those of other fields have slices and channels."""
    found = format_of(path)
    return found is None or found.only_parts


def _many(path: str, slicing: Slicing, plain: frozenset[str]) -> Format | None:
    """The format of a file that may hold many images."""
    found = format_of(path)
    if found is None and os.path.splitext(path)[1].lower() not in plain:
        try:
            found = format_inside(path)
        except OSError:
            return None
    if found is None or found.cut is None or (found.only_parts and slicing.stacks == "channels"):
        return None
    return found


def _cut(path: str, one: Format, slicing: Slicing) -> Cut:
    try:
        return one.cut(path, slicing) if one.cut is not None else ONE_IMAGE
    except Exception:  # readers raise anything on a broken file
        return ONE_IMAGE
