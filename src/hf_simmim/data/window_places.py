"""Where windows lie in a large image: its level and size, and the places with enough valid pixels and tissue.

A look at the image in low resolution tells which pixels are missing and which are tissue, so that places are chosen
without reading the image.
"""

import itertools
import math
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..formats.address import parse_address
from ..formats.large import open_large
from ..formats.large_images import LargeImage
from ..model.images import as_stored

# Cells of the look in low resolution: a side of a window, and of the image at most.
CELLS_PER_WINDOW, MAX_CELLS = 8, 1024
# Numbers that are read at once for the look.
BLOCK_NUMBERS = 2**24
# Rows and columns of a cell that are looked at, up to twice as many.
MAX_SAMPLES = 8
# Colors of less saturation, and gray of less darkness, are background, wherever the threshold falls.
LEAST_TISSUE = 0.05
# Files whose places are remembered in a process.
MAX_PLANS = 2048
PARTS = ("all", "upper", "lower")


@dataclass(frozen=True)
class WindowSettings:
    """Which windows are cut out of large images.

    Args:
        size: (height, width) in pixels of the level, or at the wanted resolution.
        level: Level of resolution, 0 for the finest; 0 if None, or chosen by the resolution.
        micrometers_per_pixel: Wanted resolution; the level that is at least as fine is read, and windows cover as many
            of its pixels as give this resolution when they are resized to `size`.
        min_valid: Least share of valid pixels: not nodata, not NaN, not transparent, and wanted by the mask.
        min_tissue: Least share of tissue: pixels above a threshold of saturation (of gray images, of darkness) that
            Otsu's method finds in each image; 0 to use everything.
        masks: Folder of masks, images with the names of the large images in which wanted pixels are not zero.
        nodata: Value of missing pixels; that of the file if None.
        part: all; or upper or lower rows, which do not overlap.
        lower_share: Share of the windows of the grid that the lower part has, at least one row of them.

    Raises:
        ValueError: If a setting is out of range; the message says what to use.
    """

    size: tuple[int, int]
    level: int | None = None
    micrometers_per_pixel: float | None = None
    min_valid: float = 0.5
    min_tissue: float = 0.0
    masks: str | None = None
    nodata: float | None = None
    part: str = "all"
    lower_share: float = 0.0

    def __post_init__(self):
        if min(self.size) < 1:
            raise ValueError(f"image_window={self.size} must be 1 or more pixels, such as 512.")
        if self.level is not None and self.micrometers_per_pixel is not None:
            raise ValueError("window_level and micrometers_per_pixel both choose the resolution. Set one of them.")
        if self.level is not None and self.level < 0:
            raise ValueError(f"window_level={self.level} must be 0, the finest level, or more.")
        if self.micrometers_per_pixel is not None and not 0 < self.micrometers_per_pixel < math.inf:
            raise ValueError(f"micrometers_per_pixel={self.micrometers_per_pixel} must be more than 0, such as 0.5.")
        for name in ("min_valid", "min_tissue"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is a share and must be in [0, 1].")
        if self.part not in PARTS:
            raise ValueError(f"part={self.part!r} must be one of: {', '.join(PARTS)}.")


class Ground:
    """Size and content of a large image, as far as windows need to know.

    Args:
        path: The file.
        settings: Which windows are wanted.

    Raises:
        ValueError, OSError: If the file cannot be opened, or has no such level or resolution.
    """

    def __init__(self, path: str, settings: WindowSettings):
        image = open_large(path)
        self.settings = settings
        self.level, zoom = _choose_level(image, settings)
        rows, self.columns = image.levels[self.level]
        self.height = min(max(round(settings.size[0] * zoom), 1), rows)
        self.width = min(max(round(settings.size[1] * zoom), 1), self.columns)
        self.first, self.last = 0, rows
        cells = [
            min(math.ceil(CELLS_PER_WINDOW * side / window), MAX_CELLS, side)
            for side, window in ((rows, self.height), (self.columns, self.width))
        ]
        good = _look(image, (cells[0], cells[1]), path, settings)
        self.step = (1, 1) if good is None else (rows / good[0].shape[0], self.columns / good[0].shape[1])
        self._sums = None if good is None else [np.pad(part, ((1, 0), (1, 0))).cumsum(0).cumsum(1) for part in good]
        if settings.part != "all":
            border = self._border()
            self.first, self.last = (border, rows) if settings.part == "lower" else (0, border)

    def _border(self) -> int:
        """First row of the lower part: as few rows of the grid as have the wanted share of its places."""
        tops = check_places(self.grid(), self.settings)[:, 0]
        wanted = max(1, round(self.settings.lower_share * len(tops)))
        border = int(np.sort(tops)[-wanted])
        if border < self.height or not (tops + self.height <= border).any():
            raise ValueError(
                f"The image is too low for windows of {self.height} rows for training and for validation below them."
                " Name --validation_dir, set --holdout 0, or use a smaller --image_window."
            )
        return border

    @property
    def is_everywhere(self) -> bool:
        """Whether all places have enough valid pixels and tissue."""
        return self._sums is None

    def fits(self, tops: np.ndarray, lefts: np.ndarray) -> np.ndarray:
        """Which windows have enough valid pixels and tissue, as far as the look tells.

        Args:
            tops: First rows.
            lefts: First columns, broadcast with `tops`.

        Returns:
            Array of bool.
        """
        tops, lefts = np.broadcast_arrays(tops, lefts)
        if self._sums is None:
            return np.ones(tops.shape, bool)
        rows, columns = (side - 1 for side in self._sums[0].shape)
        top = np.minimum((tops / self.step[0]).astype(int), rows - 1)
        left = np.minimum((lefts / self.step[1]).astype(int), columns - 1)
        bottom = np.minimum(np.maximum(np.ceil((tops + self.height) / self.step[0]).astype(int), top + 1), rows)
        right = np.minimum(np.maximum(np.ceil((lefts + self.width) / self.step[1]).astype(int), left + 1), columns)
        area = (bottom - top) * (right - left)
        least = (self.settings.min_valid, self.settings.min_tissue)
        enough = np.ones(tops.shape, bool)
        for sums, share in zip(self._sums, least, strict=True):
            inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
            # Nothing valid at all is never enough.
            enough &= (inside / area >= share - 1e-6) & (inside > 1e-9 if share or sums is self._sums[0] else True)
        return enough

    def grid(self) -> np.ndarray:
        """Places of a regular grid that covers the image, the last ones shifted inward, with enough in them.

        Returns:
            Array (N, 2) of first row and first column, row by row.
        """
        tops = _steps(self.first, self.last, self.height)
        lefts = _steps(0, self.columns, self.width)
        places = np.stack(np.meshgrid(tops, lefts, indexing="ij"), axis=-1).reshape(-1, 2)
        return places[self.fits(places[:, 0], places[:, 1])]

    def candidates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places from which random ones are drawn: first rows, first columns, and which of them have enough."""
        tops = np.arange(self.first, self.last - self.height + 1, max(1, int(self.step[0])))
        lefts = np.arange(0, self.columns - self.width + 1, max(1, int(self.step[1])))
        return tops, lefts, self.fits(tops[:, None], lefts[None])


@dataclass(frozen=True)
class Plan:
    """What is remembered of a file to draw its windows.

    Args:
        level: Level that is read.
        size: (height, width) of a window, in pixels of the level.
        first: (row, column) from which windows may begin.
        last: Last (row, column) at which they may begin.
        step: Distances of the candidates, in pixels.
        shape: Numbers of candidates, down and across.
        bits: Which of them have enough, packed; None if all places have.
        fixed: Array (N, 2) of places that are spread over the grid, the same whenever they are computed.
    """

    level: int
    size: tuple[int, int]
    first: tuple[int, int]
    last: tuple[int, int]
    step: tuple[int, int]
    shape: tuple[int, int]
    bits: np.ndarray | None
    fixed: np.ndarray

    def draw(self, generator: torch.Generator) -> tuple[int, int]:
        """Draw a place.

        Args:
            generator: Random generator.

        Returns:
            First row and first column.
        """
        if self.bits is None:
            place = [
                low + int(torch.randint(high - low + 1, (), generator=generator))
                for low, high in zip(self.first, self.last, strict=True)
            ]
            return place[0], place[1]
        good = np.flatnonzero(np.unpackbits(self.bits, count=math.prod(self.shape)))
        chosen = divmod(int(good[int(torch.randint(len(good), (), generator=generator))]), self.shape[1])
        place = [
            min(low + number * step + int(torch.randint(step, (), generator=generator)), high)
            for low, high, number, step in zip(self.first, self.last, chosen, self.step, strict=True)
        ]
        return place[0], place[1]


_plans: OrderedDict[Any, Plan | str] = OrderedDict()


def plan_of(path: str, settings: WindowSettings, count: int) -> Plan:
    """Look at a file, and remember what is needed to draw its windows.

    Args:
        path: The file, or the address of a part of it.
        settings: Which windows are wanted.
        count: Number of fixed places, or fewer if the grid has fewer.

    Returns:
        The plan.

    Raises:
        ValueError, OSError: If the file cannot be opened, or no place has enough valid pixels and tissue.
    """
    status = os.stat(parse_address(path).path)
    key = (path, status.st_mtime_ns, status.st_size, settings, count)
    found = _plans.get(key)
    if found is None:
        try:
            found = _make_plan(path, settings, count)
        except ValueError as error:
            found = str(error)
        _plans[key] = found
        while len(_plans) > MAX_PLANS:
            _plans.popitem(last=False)
    _plans.move_to_end(key)
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _make_plan(path: str, settings: WindowSettings, count: int) -> Plan:
    ground = Ground(path, settings)
    fixed = check_places(ground.grid(), settings)
    if len(fixed) > count:
        fixed = fixed[np.linspace(0, len(fixed) - 1, count).round().astype(int)]
    tops, lefts, good = ground.candidates()
    if not good.any():
        # Windows that begin between those of the grid have too little in them.
        good = np.zeros_like(good)
        good[np.searchsorted(tops, fixed[:, 0], "right") - 1, np.searchsorted(lefts, fixed[:, 1], "right") - 1] = True
    return Plan(
        ground.level,
        (ground.height, ground.width),
        (ground.first, 0),
        (ground.last - ground.height, ground.columns - ground.width),
        (max(1, int(ground.step[0])), max(1, int(ground.step[1]))),
        (len(tops), len(lefts)),
        None if ground.is_everywhere else np.packbits(good),
        fixed,
    )


def check_places(places: np.ndarray, settings: WindowSettings) -> np.ndarray:
    """Refuse an image without places.

    Args:
        places: Places of the grid with enough in them.
        settings: What is wanted of them.

    Returns:
        The places.

    Raises:
        ValueError: If there are none.
    """
    if not len(places):
        tissue = f" and min_tissue={settings.min_tissue:g} of tissue" if settings.min_tissue else ""
        raise ValueError(
            f"No window of {settings.size[0]} x {settings.size[1]} pixels has min_valid={settings.min_valid:g} of valid"
            f" pixels{tissue}. Lower these shares, use smaller windows, or remove the image."
        )
    return places


def _choose_level(image: LargeImage, settings: WindowSettings) -> tuple[int, float]:
    """The level to read, and how many of its pixels become one of a window, on a side."""
    wanted = settings.micrometers_per_pixel
    if wanted is None:
        level = settings.level or 0
        if level >= len(image.levels):
            raise ValueError(
                f"window_level={level} does not exist: the image has the levels 0 to {len(image.levels) - 1}. Use one"
                " of them."
            )
        return level, 1.0
    sizes = [image.level_pixel_size(level) for level in range(len(image.levels))]
    known = [size for size in sizes if size is not None]
    if not known:
        raise ValueError(
            f"micrometers_per_pixel={wanted:g} is set, and the file does not say how large its pixels are. Use"
            " --window_level, or write the size into the file."
        )
    level = max((level for level, size in enumerate(known) if size <= wanted * 1.01), default=0)
    return level, wanted / known[level]


def _steps(first: int, last: int, side: int) -> np.ndarray:
    starts = np.arange(first, last - side + 1, side)
    return starts if starts[-1] == last - side else np.append(starts, last - side)


def _look(
    image: LargeImage, cells: tuple[int, int], path: str, settings: WindowSettings
) -> tuple[np.ndarray, np.ndarray] | None:
    """Shares of valid pixels and of tissue in cells of the image; None if everything is wanted.

    Images of bytes without nodata and transparency, of which no tissue is wanted, are not read.
    """
    nodata = settings.nodata if settings.nodata is not None else image.nodata
    all_valid = image.dtype.kind != "f" and nodata is None and not image.has_alpha
    # A raster's mask is not in its numbers.
    all_valid &= not image.is_masked
    if all_valid and not settings.min_tissue and settings.masks is None:
        return None
    if all_valid and not settings.min_tissue:
        mask = _read_mask(path, str(settings.masks), cells)
        return mask, np.ones_like(mask)
    valid, colors = read_overview(image, cells, nodata)
    if settings.masks is not None:
        valid = valid * _read_mask(path, settings.masks, (valid.shape[0], valid.shape[1]))
    tissue = find_tissue(colors, valid) if settings.min_tissue else valid > 0
    return valid, tissue * valid


def read_overview(
    image: LargeImage, cells: tuple[int, int], nodata: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Read an image in low resolution, in parts: from the coarsest level that is not coarser.

    Args:
        image: The image.
        cells: Wanted (height, width); the result may have up to twice as many cells.
        nodata: Value of missing pixels.

    Returns:
        Shares of valid pixels (h, w), and the mean of the valid ones in each cell (h, w, C), without transparency, 0
        where there are none.
    """
    fine = [level for level, size in enumerate(image.levels) if size[0] >= cells[0] and size[1] >= cells[1]]
    level = max(fine, default=0)
    height, width = image.levels[level]
    down, across = max(1, height // cells[0]), max(1, width // cells[1])
    # Some rows and columns of a cell are enough, and adding up all of them takes longer than to decode them.
    stride = max(1, min(down, across) // MAX_SAMPLES)
    down, across = down // stride * stride, across // stride * stride
    channels = image.num_channels - image.has_alpha
    shape = -(-height // down), -(-width // across)
    valid, colors = np.zeros(shape, np.float32), np.zeros((*shape, channels), np.float32)
    # Blocks of tiles, or strips of rows, so that few are decoded twice.
    side = math.isqrt(BLOCK_NUMBERS // image.num_channels)
    wide = max(1, side // across) if image.is_tiled else shape[1]
    tall = max(1, BLOCK_NUMBERS // (image.num_channels * min(wide * across, width) * down))
    for row, column in itertools.product(range(0, shape[0], tall), range(0, shape[1], wide)):
        top, left = row * down, column * across
        block = image.read(level, top, left, min(tall * down, height - top), min(wide * across, width - left))
        block = block[::stride, ::stride]
        known = is_valid(block, nodata, image.has_alpha)
        starts = np.arange(0, block.shape[0], down // stride), np.arange(0, block.shape[1], across // stride)
        sides = [np.diff(np.append(start, size)) for start, size in zip(starts, block.shape, strict=False)]
        counts = _sums(known, *starts)
        place = slice(row, row + tall), slice(column, column + wide)
        valid[place] = counts / np.outer(*sides)
        for channel in range(channels):
            sums = _sums(np.where(known, block[..., channel], 0).astype(np.float32), *starts)
            colors[(*place, channel)] = sums / np.maximum(counts, 1)
    return valid, colors


def is_valid(array: np.ndarray, nodata: float | None, has_alpha: bool = False) -> np.ndarray:
    """Which pixels are valid: finite, not transparent, and not nodata in all channels.

    Args:
        array: Numbers of shape (H, W, C).
        nodata: Value of missing pixels.
        has_alpha: Whether the last channel is transparency.

    Returns:
        Array of bool (H, W).
    """
    known = array[..., -1] > 0 if has_alpha else np.ones(array.shape[:2], bool)
    colors = array[..., :-1] if has_alpha else array
    if nodata is not None:
        known = known & (colors != as_stored(nodata)).any(axis=-1)
    if array.dtype.kind == "f":
        known = known & np.isfinite(colors).all(axis=-1)
    return known


def _sums(array: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.add.reduceat(np.add.reduceat(array, rows, axis=0, dtype=np.float64), columns, axis=1)


def find_tissue(colors: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Find tissue by its saturation, or by its darkness in gray images, above the threshold of Otsu's method.

    Args:
        colors: Image in low resolution (h, w, C) on any scale.
        valid: Shares of valid pixels (h, w).

    Returns:
        Array of bool (h, w).
    """
    known = valid > 0
    if not known.any():
        return known
    if colors.shape[-1] >= 3:
        brightest = colors[..., :3].max(axis=-1)
        strength = (brightest - colors[..., :3].min(axis=-1)) / np.maximum(brightest, 1e-6)
    else:
        low, high = colors[known][:, 0].min(), colors[known][:, 0].max()
        strength = (high - colors[..., 0]) / max(float(high - low), 1e-6)
    return known & (strength > max(_otsu(strength[known]), LEAST_TISSUE))


def _otsu(values: np.ndarray) -> float:
    """The threshold in [0, 1] between two classes of values that has the largest variance between them."""
    counts, edges = np.histogram(values.clip(0, 1), bins=256, range=(0, 1))
    centers = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum()
    above = below[-1] - below
    sums = (counts * centers).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = below * above * np.square(sums / below - (sums[-1] - sums) / above)
    return float(edges[1:][np.nan_to_num(variance).argmax()])


def _read_mask(path: str, folder: str, cells: tuple[int, int]) -> np.ndarray:
    """Shares of wanted pixels in cells, from the mask of the same name."""
    stem = Path(parse_address(path).path).stem
    found = sorted(one for one in Path(folder).glob("*") if one.stem == stem and one.is_file())
    if not found:
        raise ValueError(
            f"There is no mask of the name {stem} in window_masks={folder!r}. Add it, or remove the image."
        )
    mask = open_large(found[0])
    level = max((number for number, size in enumerate(mask.levels) if min(size) >= max(cells)), default=0)
    wanted = (mask.read(level, 0, 0, *mask.levels[level]) > 0).any(axis=-1)
    picture = Image.fromarray(np.asarray(wanted, np.float32))
    return np.asarray(picture.resize((cells[1], cells[0]), Image.Resampling.BOX))
