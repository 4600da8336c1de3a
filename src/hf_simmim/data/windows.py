"""Windows of large images as samples: drawn anew in each epoch for training, on a regular grid for evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets.utils import tqdm
from PIL import Image
from transformers.utils import logging

from ..formats.address import parse_address
from ..formats.large import is_window, open_large, window_address, window_place
from ..model.images import real_pixels
from .sources import folder_rows
from .window_places import Ground, WindowSettings, check_places, plan_of, read_overview

logger = logging.get_logger(__name__)

# Windows that are drawn for a sample until one has enough valid pixels.
NUM_DRAWS = 8
PLACE_COLUMNS = ("path", "level", "top", "left", "height", "width")

# Windows of each file in an epoch, unless another number is set.
WINDOWS_PER_IMAGE = 64


class WindowRows:
    """Rows of windows of large images: some of each file.

    `rows[index]` is a window of a regular grid, the same each time, by which images are surveyed, checked and measured;
    `draw` gives the windows that are trained on.

    Args:
        files: Rows of `name` and undecoded `image`, from `load_images` of a folder.
        settings: Which windows are wanted.
        per_image: Number of windows of each file in an epoch.

    Raises:
        ValueError: If the images are not files, or no window is wanted.
    """

    def __init__(self, files: Dataset, settings: WindowSettings, per_image: int):
        if per_image < 1:
            raise ValueError(f"windows_per_image={per_image} must be 1 or more, such as 64.")
        check_files(files)
        self.files = files
        self.settings = settings
        self.per_image = per_image

    def __len__(self) -> int:
        return len(self.files) * self.per_image

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A window of the grid.

        Args:
            index: Index of the sample.

        Returns:
            Row of `name` and `image`, the address of the window, and `file`; without an image, and with a `reason`, if
            the file has no windows.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        number, window = divmod(index, self.per_image)
        path = self.files[number]["image"]["path"]
        try:
            plan = plan_of(path, self.settings, self.per_image)
        except Exception as error:  # readers raise anything on a broken file
            return {"name": path, "file": path, "image": None, "reason": " ".join(str(error).split())}
        # Spread over the grid, also if it has fewer places than there are windows.
        place = plan.fixed[window * len(plan.fixed) // self.per_image]
        return _row(path, plan.level, int(place[0]), int(place[1]), *plan.size)

    def draw(
        self, index: int, generator: torch.Generator, opens: Callable[[dict[str, Any]], Image.Image | np.ndarray]
    ) -> tuple[dict[str, Any], Image.Image | np.ndarray]:
        """Draw a window of the file of a sample, again if too little of it is valid or it cannot be read.

        Args:
            index: Index of the sample.
            generator: Random generator; the window depends on it and the file alone.
            opens: Function that opens the image of a row.

        Returns:
            The row, and its image.

        Raises:
            ValueError, OSError: If no window of the file can be read.
        """
        path = self.files[index // self.per_image]["image"]["path"]
        plan = plan_of(path, self.settings, self.per_image)
        best: tuple[float, dict[str, Any], Image.Image | np.ndarray] | None = None
        failure: Exception | None = None
        for _ in range(NUM_DRAWS):
            row = _row(path, plan.level, *plan.draw(generator), *plan.size)
            try:
                image = opens(row)
                share = valid_share(image)
            except Exception as error:  # readers raise anything on a broken file
                failure = error
                continue
            if best is None or share > best[0]:
                best = share, row, image
            if share >= self.settings.min_valid:
                break
        if best is None:
            raise failure if failure is not None else ValueError(f"No window of {path} can be read.")
        return best[1], best[2]

    def facts(self) -> dict[str, Any]:
        """What decides which windows are drawn, JSON-serializable."""
        values = asdict(self.settings) | {"windows_per_image": self.per_image}
        # The folder may be moved.
        return values | {"masks": self.settings.masks is not None, "size": list(self.settings.size)}

    @property
    def in_words(self) -> str:
        """Number and kind of the windows of an epoch, in words."""
        settings, files = self.settings, len(self.files)
        resolution = f", level {settings.level}" if settings.level else ""
        if settings.micrometers_per_pixel is not None:
            resolution = f" at {settings.micrometers_per_pixel:g} µm/px"
        height, width = settings.size
        return (
            f"{len(self):,} windows of {width} x {height} px{resolution}, {self.per_image:,} of each of {files:,} large"
            f" image{'s' * (files > 1)}"
        )

    @property
    def held_out(self) -> str | None:
        """Which parts of the images are held out for validation, in words; None if whole images are."""
        if self.settings.part != "upper":
            return None
        return f"lower rows of the same images, {self.settings.lower_share:.3g} of their windows"

    def index_of(self, name: str) -> int | None:
        """Index of the first window of a file; None if the file is not among them."""
        if not hasattr(self, "_indices"):
            self._indices = {path: number for number, path in enumerate(self.files["name"][:])}
        number = self._indices.get(name)
        return None if number is None else number * self.per_image


def images_in_words(images: Any) -> str:
    """Number of images, or number and kind of windows of large images."""
    return images.in_words if isinstance(images, WindowRows) else f"{len(images):,}"


def check_files(files: Dataset) -> None:
    """Refuse images that are no files.

    Args:
        files: Rows of `name` and `image`.

    Raises:
        ValueError: If they are rows of a table.
    """
    first = files[0]["image"] if len(files) else {"path": "", "bytes": None}
    if not isinstance(first, dict) or first["bytes"] is not None:
        raise ValueError(
            "image_window needs image files, and these images are in a table. Name a folder of files, or leave"
            " image_window out."
        )


def _row(path: str, level: int, top: int, left: int, height: int, width: int) -> dict[str, Any]:
    address = window_address(path, level, top, left, height, width)
    return {"name": address, "file": path, "image": {"bytes": None, "path": address}}


def valid_share(image: Image.Image | np.ndarray) -> float:
    """Share of the pixels of an opened window that are neither missing nor transparent."""
    if isinstance(image, np.ndarray):
        return float(real_pixels(image).mean()) if image.dtype.kind == "f" else 1.0
    if image.mode not in ("RGBA", "LA"):
        return 1.0
    return float((np.asarray(image.getchannel("A")) > 0).mean())


def grid_rows(
    files: Dataset, settings: WindowSettings, per_image: int | None = None
) -> tuple[Dataset, list[int], list[tuple[str, str]]]:
    """List the windows of a regular grid over each file, the same each time.

    Args:
        files: Rows of `name` and undecoded `image`, from `load_images` of a folder.
        settings: Which windows are wanted.
        per_image: Largest number of windows of each file, spread over its grid; all if None.

    Returns:
        Rows of `name` and `image`, both the address of a window; the index of the file of each row; and (name, reason)
        of the files without windows.

    Raises:
        ValueError: If no file has windows, or the images are not files.
    """
    check_files(files)
    addresses: list[str] = []
    owners: list[int] = []
    left_out: list[tuple[str, str]] = []
    for number in tqdm(range(len(files)), desc="looking for windows", unit="image", disable=len(files) < 20):
        path = files[number]["image"]["path"]
        try:
            found = _grid(path, settings, per_image)
        except Exception as error:  # readers raise anything on a broken file
            left_out.append((path, " ".join(str(error).split())))
            continue
        addresses += found
        owners += [number] * len(found)
    if not addresses:
        raise ValueError(
            f"None of {len(files)} images has windows. The first is {left_out[0][0]} ({left_out[0][1]})"
            if left_out
            else "There are no images. Name a folder of images."
        )
    return folder_rows(addresses), owners, left_out


def window_splits(
    train: Dataset, validation: Dataset | None, settings: WindowSettings, per_image: int, lower_share: float = 0.0
) -> tuple[WindowRows, Dataset | None]:
    """Cut training and validation images into windows.

    Args:
        train: Training images, files.
        validation: Validation images, files, or None.
        settings: Which windows are wanted.
        per_image: Number of windows of each training image in an epoch, and of each validation image at most.
        lower_share: Share of the windows of each training image that are held out for validation, at its lower end, if
            there are no validation images: for sets of too few images to hold out whole ones.

    Returns:
        Windows for training, drawn anew in each epoch, and for validation, always the same; None without.

    Raises:
        ValueError: If no image has windows.
    """
    if lower_share and validation is None:
        validation = train
        settings = replace(settings, part="upper", lower_share=lower_share)
    rows = WindowRows(train, settings, per_image)
    if validation is None:
        return rows, None
    held_out = replace(settings, part="lower") if lower_share else settings
    windows, _, left_out = grid_rows(validation, held_out, per_image)
    if left_out:
        name, reason = left_out[0]
        logger.warning(f"{len(left_out)} validation images have no windows. The first is {name} ({reason})")
    return rows, windows


def _grid(path: str, settings: WindowSettings, per_image: int | None) -> list[str]:
    if per_image is not None:
        plan = plan_of(path, settings, per_image)
        level, size, places = plan.level, plan.size, plan.fixed
    else:
        ground = Ground(path, settings)
        level, size, places = ground.level, (ground.height, ground.width), check_places(ground.grid(), settings)
    return [window_address(path, level, top, left, *size) for top, left in places.tolist()]


def place_columns(names: Sequence[str]) -> dict[str, list[Any]]:
    """Where windows lie, as columns of a table.

    Args:
        names: Their addresses.

    Returns:
        `path`, `level`, `top`, `left`, `height` and `width`, in pixels of the level.
    """
    columns = zip(*map(window_place, names), strict=True)
    return dict(zip(PLACE_COLUMNS, map(list, columns), strict=True))


def overview_picture(path: str, side: int = 1600, nodata: float | None = None) -> np.ndarray:
    """A large image in low resolution, for display: from black to white between the percentiles 1 and 99.

    Args:
        path: The file.
        side: Longer side, in pixels; up to twice as many.
        nodata: Value of missing pixels; that of the file if None.

    Returns:
        uint8 array of shape (H, W, 3), white where pixels are missing.
    """
    image = open_large(path)
    height, width = image.levels[0]
    scale = min(1.0, side / max(height, width))
    cells = max(1, round(height * scale)), max(1, round(width * scale))
    valid, colors = read_overview(image, cells, image.nodata if nodata is None else nodata)
    colors = colors[..., :3] if colors.shape[-1] >= 3 else np.repeat(colors[..., :1], 3, axis=-1)
    known = valid > 0
    if image.dtype != np.uint8 and known.any():
        low, high = np.percentile(colors[known], (1, 99))
        colors = (colors - low) * (255 / max(high - low, 1e-12))
    return np.where(known[..., None], colors.clip(0, 255), 255).round().astype(np.uint8)


def short_name(name: str) -> str:
    """The address of a window as a caption, such as `4096, 512 of a.svs`: top, left and file; of others, the name."""
    if not is_window(parse_address(name)):
        return name
    path, _, top, left, _, _ = window_place(name)
    return f"{top}, {left} of {PurePath(path).name}"


def level_size(path: str, level: int) -> tuple[int, int]:
    """(height, width) of a level of a large image, in its pixels."""
    return open_large(path).levels[level]
