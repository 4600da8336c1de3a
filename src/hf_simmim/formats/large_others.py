"""Windows of whole slides, rasters, arrays, and of pictures that can only be read whole."""

import importlib
import math
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..model.image_readers import Stored, Wanted, upright
from ..model.images import read_stored
from .large_images import LargeImage, PlainNumbers, as_bands, as_picture, channels_at
from .library import library
from .packed import unpacked

# Numbers of a picture that is kept decoded, for its next windows.
KEPT_NUMBERS = 2**24
# What a file is read for that is looked at, not given to a model.
GLANCE = Wanted(num_channels=3, keeps_depth=True)
MICROMETERS = {"micrometer": 1.0, "micron": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "meter": 1e6}


class SlideImage(LargeImage):
    """A whole slide, read by OpenSlide or tiffslide.

    OpenSlide places windows by whole pixels of level 0. In a level that is no whole fraction of it, they lie up to half
    such a pixel off, and are interpolated.

    Args:
        path: The file.
        is_simple: Whether tiffslide may read it where OpenSlide does not.

    Raises:
        ValueError: If neither library is installed.
    """

    def __init__(self, path: str, is_simple: bool = True):
        try:
            openslide: Any = importlib.import_module("openslide")
            opens, prefix = openslide.OpenSlide, "openslide"
            if opens.detect_format(path) is None:
                raise ImportError(f"OpenSlide does not know the format of {path}")
        except (ImportError, OSError):
            if not is_simple:
                raise
            opens, prefix = library("tiffslide", "slides", "Whole slide").TiffSlide, "tiffslide"
        self._slide = opens(path)
        # tiffslide cuts off the fraction of a place, and OpenSlide keeps it.
        self._whole = math.ceil if prefix == "tiffslide" else round
        self.levels = [(height, width) for width, height in self._slide.level_dimensions]
        size = self._slide.properties.get(f"{prefix}.mpp-x")
        self.pixel_size = float(size) if size else None
        self.num_channels, self.dtype, self.has_alpha = 4, np.dtype(np.uint8), True
        self._lock = threading.Lock()

    def read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a window, see `LargeImage.read`; with transparency where nothing was scanned."""
        # Places are given in pixels of level 0.
        factor = self._slide.level_downsamples[level]
        place = (self._whole(left * factor), self._whole(top * factor))
        with self._lock:
            picture = self._slide.read_region(place, level, (width, height))
        if picture.mode not in ("L", "RGB", "RGBA"):
            raise ValueError(
                f"The slide holds numbers of the mode {picture.mode}, which are not read. Convert it to RGB."
            )
        array = np.array(picture.convert("RGBA"))
        # At the edges of interpolated windows pixels are transparent in part.
        array[..., 3] = np.where(array[..., 3] < 128, 0, 255)
        return array

    def stored(self, array: np.ndarray, wanted: Wanted) -> Stored:
        """Say what the numbers are, see `LargeImage.stored`."""
        if not array[..., 3].any():
            # As what lies beside a scan is laid on white.
            array = np.full_like(array, 255)
        return Stored(as_picture(array[..., :3] if array[..., 3].all() else array))

    def close(self) -> None:
        """Close the file."""
        self._slide.close()


class RasterImage(LargeImage):
    """A raster of GDAL, read by rasterio: overviews are levels, and pixels outside of its mask are missing.

    Args:
        path: The file.

    Raises:
        ValueError: If rasterio is not installed, or the bands have different data types.
    """

    def __init__(self, path: str):
        # In every worker; GDAL itself takes a twentieth of the memory.
        os.environ.setdefault("GDAL_CACHEMAX", "64")
        self._rasterio = library("rasterio", "geo", "Raster")
        self._path = path
        self._lock = threading.Lock()
        with self._open(None) as raster:
            factors = raster.overviews(1)
            if len(set(raster.dtypes)) > 1:
                raise ValueError(
                    f"The bands of the raster have the data types {', '.join(raster.dtypes)}. Write bands of one type."
                )
            self.num_channels, self.dtype = raster.count, np.dtype(raster.dtypes[0])
            nodata = raster.nodata
            self.nodata = None if nodata is None or not math.isfinite(nodata) else nodata
            names = [color.name for color in raster.colorinterp]
            self.has_alpha = names[-1:] == ["alpha"]
            flags = {flag.name for band in raster.mask_flag_enums for flag in band}
            self.is_masked = "per_dataset" in flags and "alpha" not in flags
            self._colors = raster.colormap(1) if names == ["palette"] else None
            kinds = {("red", "green", "blue"): "RGB", ("gray",): "L", ("gray", "alpha"): "LA"}
            kinds[("red", "green", "blue", "alpha")] = "RGBA"
            self._kind = kinds.get(tuple(names), "") if self.dtype in (np.uint8, np.uint16) else ""
            if raster.crs is not None and raster.crs.is_projected:
                self.pixel_size = abs(raster.transform.a) * raster.crs.linear_units_factor[1] * 1e6
            self.levels = [(raster.height, raster.width)]
        self._rasters = [self._open(None)]
        for index in range(len(factors)):
            self._rasters.append(self._open(index))
            self.levels.append((self._rasters[-1].height, self._rasters[-1].width))

    def _open(self, overview: int | None) -> Any:
        options = {} if overview is None else {"overview_level": overview}
        return self._rasterio.open(self._path, **options)

    def _window(self, top: int, left: int, height: int, width: int) -> Any:
        return importlib.import_module("rasterio.windows").Window(left, top, width, height)

    def read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a window, see `LargeImage.read`; floats with NaN if pixels are outside of the mask."""
        place = self._window(top, left, height, width)
        with self._lock:
            array = np.moveaxis(self._rasters[level].read(window=place), 0, -1)
            if not self.is_masked:
                return array
            outside = self._rasters[level].dataset_mask(window=place) == 0
        if not outside.any():
            return array
        return np.where(outside[..., None], np.float32(np.nan), array)

    def stored(self, array: np.ndarray, wanted: Wanted) -> Stored:
        """Say what the numbers are, see `LargeImage.stored`."""
        if array.dtype.kind == "f" or not (self._kind or self._colors):
            return Stored(as_bands(array, self.num_channels == 1), self.nodata)
        if self._colors is not None:
            if wanted.indices:
                return Stored(array[..., 0], self.nodata)
            picture = Image.fromarray(np.ascontiguousarray(array[..., 0]))
            picture.putpalette(bytes(part for index in range(256) for part in self._colors.get(index, (0, 0, 0))[:3]))
            return Stored(picture, self.nodata)
        if self.dtype == np.uint8:
            return Stored(as_picture(array), self.nodata)
        return Stored(array[..., 0] if self._kind == "L" else array, self.nodata, 65535, self._kind)

    def close(self) -> None:
        """Close the file."""
        for raster in self._rasters:
            raster.close()


class ArrayImage(LargeImage):
    """An array of two or three axes, of which parts are read by slicing.

    Args:
        levels: The array at each resolution, such as a memory map or arrays of zarr.
        pixel_size: Micrometers that a pixel is wide, if it is known.
        channels: Axis of the channels, 0 or -1; None for two axes.
    """

    def __init__(self, levels: list[Any], pixel_size: float | None = None, channels: int | None = None):
        self._levels, self._channels, self.pixel_size = levels, channels, pixel_size
        shapes = [level.shape[1:] if channels == 0 else level.shape[:2] for level in levels]
        self.levels = [(int(height), int(width)) for height, width in shapes]
        self.num_channels = 1 if channels is None else int(levels[0].shape[channels])
        self.dtype = np.dtype(levels[0].dtype)

    def read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a window, see `LargeImage.read`."""
        rows, columns = slice(top, top + height), slice(left, left + width)
        array = self._levels[level]
        if self._channels == 0:
            return np.moveaxis(np.array(array[:, rows, columns]), 0, -1)
        part = np.array(array[rows, columns])
        return part[..., None] if self._channels is None else part

    def stored(self, array: np.ndarray, wanted: Wanted) -> Stored:
        """Say what the numbers are, see `LargeImage.stored`."""
        return Stored(as_bands(array, self._channels is None))


def open_npy(path: str) -> LargeImage:
    """Open a `.npy` file, of which rows are read; as a memory map if it is stored by columns.

    Args:
        path: The file.

    Returns:
        The image.

    Raises:
        ValueError: If it holds no array of two or three axes.
    """
    with open(path, "rb") as file:
        major = np.lib.format.read_magic(file)[0]
        header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = header(file)
        offset = file.tell()
    channels = channels_at(shape)
    if is_fortran or dtype.hasobject:
        return ArrayImage([np.load(path, mmap_mode="r", allow_pickle=False)], channels=channels)
    planes, samples = shape[0] if channels == 0 else 1, shape[-1] if channels == -1 else 1
    height, width = shape[1:] if channels == 0 else shape[:2]
    numbers = PlainNumbers(path, offset, dtype, (planes, height, width, samples))
    return ArrayImage([_Rows(numbers, shape, dtype)], channels=channels)


class _Rows:
    """A `.npy` file of which slices of rows and columns are read."""

    def __init__(self, numbers: PlainNumbers, shape: tuple[int, ...], dtype: np.dtype):
        self._numbers, self.shape, self.dtype = numbers, shape, dtype.newbyteorder("=")

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        rows, columns = key[-2:]
        part = self._numbers.read(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        if len(key) == 3:
            return part[..., 0]
        return part[0] if len(self.shape) == 3 else part[0, ..., 0]


def open_zarr(path: str) -> LargeImage:
    """Open an array of zarr, or the levels of an OME-Zarr image.

    Args:
        path: The folder.

    Returns:
        The image.

    Raises:
        ValueError: If zarr is not installed, or the folder holds no array of two or three axes.
    """
    node = library("zarr", "arrays", "Zarr").open(path, mode="r")
    if hasattr(node, "shape"):
        return ArrayImage([unpacked(node, path)], channels=channels_at(node.shape))
    facts = dict(node.attrs)
    scales = facts.get("ome", facts).get("multiscales")
    if not scales:
        names = ", ".join(sorted(node.array_keys())) or "no arrays"
        raise ValueError(f"{path} is a group of zarr that holds {names}. Name the folder of one array.")
    axes = [axis["name"] if isinstance(axis, dict) else axis for axis in scales[0].get("axes", "tczyx")]
    levels = [_Squeezed(node[one["path"]], axes) for one in scales[0]["datasets"]]
    unit = next((axis.get("unit", "") for axis in scales[0].get("axes", ()) if _is_named(axis, "x")), "")
    size = None
    for change in scales[0]["datasets"][0].get("coordinateTransformations", ()):
        if change.get("type") == "scale" and unit in MICROMETERS:
            size = float(change["scale"][axes.index("x")]) * MICROMETERS[unit]
    return ArrayImage(levels, size, 0 if len(levels[0].shape) == 3 else None)


def _is_named(axis: Any, name: str) -> bool:
    return isinstance(axis, dict) and axis.get("name") == name


class _Squeezed:
    """An array of zarr as (C, H, W) or (H, W); its other axes must have the length 1."""

    def __init__(self, array: Any, axes: list[str]):
        long = {name: size for name, size in zip(axes, array.shape, strict=True) if size > 1 and name not in "cyx"}
        if long or axes[-2:] != ["y", "x"]:
            raise ValueError(
                f"The zarr array has the axes {dict(zip(axes, array.shape, strict=True))}, and c, y and x are read."
                " Write each plane as an array of its own."
            )
        self._first = [0] * (len(axes) - 2)
        self._channels = axes.index("c") if "c" in axes else None
        self.shape = array.shape[-2:] if self._channels is None else (array.shape[self._channels], *array.shape[-2:])
        self._array = unpacked(array, "The zarr array")
        self.dtype = self._array.dtype

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        index: list[Any] = [*self._first, *key[-2:]]
        if self._channels is not None:
            index[self._channels] = key[0]
        return self._array[tuple(index)]


class WholeImage(LargeImage):
    """A file that is read whole for each window, such as JPEG and PNG; it must be within the limit of pixels.

    Args:
        path: The file, or the address of a part of it.
    """

    def __init__(self, path: str):
        self._path = path
        self._kept: dict[Wanted, Stored] = {}
        image = self._read(GLANCE).image
        array = self._pixels(image)
        self.levels, self.num_channels = [array.shape[:2]], array.shape[2]
        self.dtype, self.has_alpha = array.dtype, isinstance(image, Image.Image) and array.shape[2] in (2, 4)

    def _read(self, wanted: Wanted) -> Stored:
        if wanted in self._kept:
            return self._kept[wanted]
        stored = read_stored(self._path, wanted)
        if isinstance(stored.image, Image.Image):
            stored = stored._replace(image=upright(stored.image))
            stored.image.load()
        self.nodata = stored.nodata
        if _num_numbers(stored.image) <= KEPT_NUMBERS:
            self._kept = {wanted: stored}
        return stored

    @staticmethod
    def _pixels(image: Image.Image | np.ndarray) -> np.ndarray:
        if isinstance(image, Image.Image):
            if image.mode in ("P", "PA", "CMYK", "YCbCr"):
                image = image.convert("RGBA" if image.has_transparency_data else "RGB")
            return np.atleast_3d(np.asarray(image))
        return np.moveaxis(image, 0, -1) if channels_at(image.shape) == 0 else np.atleast_3d(image)

    def read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a window, see `LargeImage.read`."""
        image = next(iter(self._kept.values()), None) or self._read(GLANCE)
        return self._pixels(image.image)[top : top + height, left : left + width]

    def stored(self, array: np.ndarray, wanted: Wanted) -> Stored:
        """Say what the numbers are, see `LargeImage.stored`."""
        return Stored(as_bands(array, self.num_channels == 1), self.nodata)

    def window(self, level: int, top: int, left: int, height: int, width: int, wanted: Wanted) -> Stored:
        """Read a window as an image, see `LargeImage.window`."""
        stored = self._read(wanted)
        if isinstance(stored.image, Image.Image):
            return stored._replace(image=stored.image.crop((left, top, left + width, top + height)))

        def cut(array: np.ndarray) -> np.ndarray:
            return _cut(array, top, left, height, width, bool(stored.kind))

        compared = None if stored.compared is None else cut(stored.compared)
        return stored._replace(image=cut(stored.image), compared=compared)


def _num_numbers(image: Image.Image | np.ndarray) -> int:
    return image.size if isinstance(image, np.ndarray) else image.width * image.height * len(image.getbands())


def _cut(array: np.ndarray, top: int, left: int, height: int, width: int, is_picture: bool) -> np.ndarray:
    rows, columns = slice(top, top + height), slice(left, left + width)
    if array.ndim == 3 and not is_picture and channels_at(array.shape) == 0:
        return array[:, rows, columns]
    # Copied, so that the rest need not be kept.
    return np.ascontiguousarray(array[rows, columns])


def is_zarr(path: str | os.PathLike) -> bool:
    """Whether a path is the folder of an array or a group of zarr."""
    return any(Path(path, name).is_file() for name in (".zarray", ".zgroup", "zarr.json"))
