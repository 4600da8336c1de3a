"""Windows of TIFF files: only the tiles or strips that a window touches are read and decoded."""

import contextlib
import itertools
import math
import os
import re
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from transformers.utils import logging

from ..model.image_readers import Stored, Wanted, check_size, open_with_pillow
from ..model.tiff import (
    APERIO,
    GDAL_NODATA,
    MASK_PAGE,
    PILLOW_COMPRESSIONS,
    Directory,
    MissingCodecError,
    first_value,
    gdal_nodata,
    is_part,
    picture_kind,
    tiff_directories,
    tiff_picture,
    with_meaning,
)
from .large_images import LargeImage, PlainNumbers, as_bands

logger = logging.get_logger(__name__)

JPEG = 7
# Slides in TIFF files whose image is not the tiles of the first page side by side, by tifffile's names of them.
OTHER_SLIDES = {"bif": "Ventana", "ndpi": "Hamamatsu", "scn": "Leica"}
# Lengths of OME's units in micrometers.
UNITS = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


class TiffImage(LargeImage):
    """A TIFF file: tiled or in strips, with pyramids of any kind that tifffile knows, OME-TIFF among them.

    Args:
        path: The file.

    Raises:
        ValueError: If the file holds what is not read as an image, such as a stack, or needs a codec.
        SlideOnlyError: If it is a slide whose tiles are not all of its image.
    """

    def __init__(self, path: str):
        with open(path, "rb") as file:
            directories = tiff_directories(file, 2)
        whole = next((index for index, page in enumerate(directories) if not is_part(page)), 0)
        if any(first_value(page, 262, 1) == 4 for page in directories):
            logger.warning_once(MASK_PAGE)
        self._page: Directory = dict(directories[whole])
        if first_value(self._page, 274, 1) != 1:
            raise TurnedError
        self._path = path
        self._plain_pages: dict[tuple[int, int], PlainNumbers] = {}
        self._lock = threading.Lock()
        self._tiff = tifffile.TiffFile(path)
        vendor = next((name for kind, name in OTHER_SLIDES.items() if getattr(self._tiff, f"is_{kind}")), None)
        if vendor is not None:
            self._tiff.close()
            raise SlideOnlyError(f"The TIFF file is a slide of {vendor}", is_simple=vendor != "Ventana")
        series = next(
            (one for one in self._tiff.series if one.keyframe is not None and one.keyframe.index == whole),
            self._tiff.series[0],
        )
        axes = dict(zip(series.axes, series.shape, strict=True))
        others = {name: size for name, size in axes.items() if name not in "CSIQYX" and size > 1}
        if others:
            self._tiff.close()
            sizes = ", ".join(f"{name}={size}" for name, size in others.items())
            raise ValueError(
                f"The TIFF file is a stack with the axes {sizes}, of which no windows are read. Save each plane, or"
                " the channels of each plane, as a file."
            )
        frame = series.keyframe
        self._samples = frame.samplesperpixel
        self._pages: list[list[Any]] = [list(level.pages) for level in series.levels]
        if int(frame.compression) == APERIO:
            self._tiff.close()
            raise SlideOnlyError("The TIFF file is a slide in YCbCr and JPEG 2000 (compression 33003)")
        if self._tiff.is_svs or self._tiff.is_philips:
            counts = [count for level in self._pages for count in level[0].databytecounts]
            if not all(counts):
                # Elsewhere, missing tiles are nodata or 0, as GDAL reads them.
                self._tiff.close()
                raise SlideOnlyError(
                    f"The TIFF file is a slide of which {counts.count(0)} of {len(counts)} tiles are missing"
                )
        if frame.photometric == 6 and frame.compression == JPEG:
            # Colors of JPEG tiles are decoded as RGB.
            self._page[262] = (2,)
        if not self._is_bands() and len(self._pages[0]) > 1:
            # Of several pages of pictures, the first one is the image.
            self._pages = [level[:1] for level in self._pages]
        self.levels = [(level[0].keyframe.imagelength, level[0].keyframe.imagewidth) for level in self._pages]
        self._series: PlainNumbers | None = None
        if series.dataoffset is not None and len(self._pages[0]) == 1 and math.prod(series.shape) > frame.size:
            # tifffile describes several planes by one page.
            samples = self._samples if frame.axes.endswith("S") else 1
            count = math.prod(series.shape) // (math.prod(self.levels[0]) * samples)
            self._series = self._plain(series.dataoffset, frame, (count, *self.levels[0], samples))
        planes = math.prod(series.shape) // frame.size if self._series is not None else len(self._pages[0])
        self.num_channels = planes * self._samples
        self.dtype = np.dtype(frame.dtype)
        self.is_tiled = bool(frame.is_tiled)
        self.nodata = gdal_nodata(self._page.get(GDAL_NODATA))
        self.pixel_size = _pixel_size(self._tiff, frame)
        self.has_alpha = picture_kind(self._page)[-1:] in ("A", "a") and planes == 1
        # A missing codec is found now, not in the middle of a training.
        self.read(len(self.levels) - 1, 0, 0, 1, 1)
        self.read(0, 0, 0, 1, 1)

    def _plain(self, offset: int, frame: Any, shape: tuple[int, ...]) -> PlainNumbers:
        kind = np.dtype(self._tiff.byteorder + frame.dtype.char)
        return PlainNumbers(self._path, offset, kind, (shape[0], shape[1], shape[2], shape[3]))

    def _is_bands(self) -> bool:
        return self._samples == 1 and first_value(self._page, 262, 1) in (0, 1)

    def read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a window, see `LargeImage.read`."""
        if self._series is not None:
            return np.moveaxis(self._series.read(top, left, height, width), 0, 2).reshape(height, width, -1)
        parts = [self._read_page(level, index, top, left, height, width) for index in range(len(self._pages[level]))]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def _read_page(self, level: int, number: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        page = self._pages[level][number]
        frame = page.keyframe
        planes, _, rows, columns, samples = frame.shaped
        if frame.is_memmappable and page.dataoffsets[0]:
            key = (level, number)
            if key not in self._plain_pages:
                self._plain_pages[key] = self._plain(page.dataoffsets[0], frame, (planes, rows, columns, samples))
            return np.moveaxis(self._plain_pages[key].read(top, left, height, width), 0, 2).reshape(height, width, -1)
        tall, wide = (frame.tilelength, frame.tilewidth) if frame.is_tiled else (min(frame.rowsperstrip, rows), columns)
        if not frame.is_tiled:
            check_size(tall, wide, samples)
        down, across = -(-rows // tall), -(-columns // wide)
        array = np.full((height, width, planes, samples), self.nodata if self.nodata is not None else 0, self.dtype)
        touched = itertools.product(
            range(planes),
            range(top // tall, -(-(top + height) // tall)),
            range(left // wide, -(-(left + width) // wide)),
        )
        for plane, row, column in touched:
            index = (plane * down + row) * across + column
            size = (min(tall, rows - row * tall) if not frame.is_tiled else tall, wide)
            segment = self._segment(page, index, size, samples)
            if segment is None:
                continue
            y, x = row * tall, column * wide
            inside = (max(y, top), max(x, left), min(y + size[0], top + height), min(x + wide, left + width))
            array[inside[0] - top : inside[2] - top, inside[1] - left : inside[3] - left, plane] = segment[
                inside[0] - y : inside[2] - y, inside[1] - x : inside[3] - x
            ]
        return array.reshape(height, width, -1)

    def _segment(self, page: Any, index: int, size: tuple[int, int], samples: int) -> np.ndarray | None:
        """Decode a tile or strip, of shape (h, w, S); None if the file does not hold it, as for empty tiles."""
        frame = page.keyframe
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if not offset or not count:
            return None
        with self._lock:
            handle = self._tiff.filehandle
            handle.seek(offset)
            data = handle.read(count)
        tables = page.jpegtables
        if int(frame.compression) == JPEG:
            return _by_pillow(frame, data, size, samples, tables)
        try:
            segment, _, shape = frame.decode(data, index, jpegtables=tables)
        except (ImportError, KeyError, ValueError, RuntimeError) as error:
            if not (isinstance(error, ImportError) or "imagecodecs" in str(error)):
                raise
            exact = frame.dtype == np.uint8 or (frame.dtype == np.uint16 and samples == 1)
            if int(frame.compression) in PILLOW_COMPRESSIONS and exact and frame.bitspersample >= 8:
                return _by_pillow(frame, data, size, samples, tables)
            raise MissingCodecError(
                "The TIFF file is compressed in a way that needs another package"
                f' ({error.args[0] if error.args else error}): pip install "hf-simmim[tiff]".'
            ) from error
        return None if segment is None else segment.reshape(*shape)[0]

    def stored(self, array: np.ndarray, wanted: Wanted) -> Stored:
        """Say what the numbers are, see `LargeImage.stored`."""
        meaning, bits = first_value(self._page, 262, 1), max(self._page.get(258, (1,)))
        is_unsigned = set(self._page.get(339, (1,))) <= {1, 4}
        if self._samples == 1 and self.num_channels > 1:
            # Pages that are channels; for one channel the first page is the image, as for whole files.
            array = array[..., 0] if wanted.num_channels == 1 else np.moveaxis(array, -1, 0)
            return with_meaning(self._page, array, wanted)
        if self._samples == 1 and is_unsigned and bits <= 8 and meaning in (0, 1, 3):
            return tiff_picture(self._page, _as_pillow_opens(self._page, array[..., 0]), wanted)
        if not picture_kind(self._page):
            array = as_bands(array, self._samples == 1)
        elif self._samples == 1:
            array = array[..., 0]
        return with_meaning(self._page, array, wanted)

    def close(self) -> None:
        """Close the file."""
        self._tiff.close()


class SlideOnlyError(ValueError):
    """Raised for a TIFF file that OpenSlide reads, and whose tiles alone would be another image.

    Args:
        reason: Why, without a period.
        is_simple: Whether tiffslide reads such files as well.
    """

    def __init__(self, reason: str, is_simple: bool = False):
        super().__init__(reason)
        self.is_simple = is_simple


class TurnedError(ValueError):
    """Raised for a TIFF file that is not stored upright, of which no windows are read."""


def _as_pillow_opens(page: Directory, numbers: np.ndarray) -> Image.Image:
    """A gray or palette picture of up to 8 bits as Pillow opens it: stretched to 255, and white is not zero."""
    meaning, bits = first_value(page, 262, 1), max(page.get(258, (1,)))
    if meaning == 3:
        picture = Image.fromarray(np.ascontiguousarray(numbers, np.uint8))
        colors = np.array(page.get(320, (0, 65535) * 3)).reshape(3, -1).T // 256
        picture.putpalette(colors.astype(np.uint8).tobytes())
        return picture
    if bits == 1:
        return Image.fromarray(numbers.astype(bool) ^ (meaning == 0))
    stretched = numbers.astype(np.uint8) * np.uint8(255 // (2**bits - 1))
    return Image.fromarray(255 - stretched if meaning == 0 else stretched)


def _by_pillow(frame: Any, data: bytes, size: tuple[int, int], samples: int, tables: bytes | None) -> np.ndarray:
    """Decode a tile by Pillow, as a TIFF file of this tile alone: by the library that decodes whole files."""
    # Gray, so that numbers are neither inverted nor looked up in a palette.
    meaning = int(frame.photometric) if samples > 1 else 1
    tags: dict[int, tuple[str, tuple[int, ...] | bytes]] = {
        256: ("I", (size[1],)),
        257: ("I", (size[0],)),
        258: ("H", (frame.bitspersample,) * samples),
        259: ("H", (int(frame.compression),)),
        262: ("H", (meaning,)),
        273: ("I", (0,)),
        277: ("H", (samples,)),
        278: ("I", (size[0],)),
        279: ("I", (len(data),)),
        284: ("H", (1,)),
        317: ("H", (int(frame.predictor),)),
    }
    if frame.extrasamples and samples > 1:
        tags[338] = ("H", tuple(int(extra) for extra in frame.extrasamples))
    if tables:
        tags[347] = ("B", tables)
    if 530 in frame.tags:
        tags[530] = ("H", tuple(frame.tags[530].value))
    order = frame.parent.byteorder
    start = 8 + 2 + 12 * len(tags) + 4
    extra = b""
    entries = b""
    total = sum(
        size if size > 4 else 0 for code, values in tags.values() for size in [len(values) * struct.calcsize(code)]
    )
    for tag, (code, values) in tags.items():
        values = (start + total,) if tag == 273 else values
        content = values if isinstance(values, bytes) else struct.pack(f"{order}{len(values)}{code}", *values)
        kind = {"B": 7, "H": 3, "I": 4}[code]
        if len(content) > 4:
            place = struct.pack(f"{order}I", start + len(extra))
            extra += content
        else:
            place = content.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + place
    magic = b"II*\0" if order == "<" else b"MM\0*"
    head = magic + struct.pack(f"{order}IH", 8, len(tags)) + entries + bytes(4)
    picture = open_with_pillow(head + extra + data)
    array = np.asarray(picture.convert("RGB") if picture.mode == "YCbCr" else picture)
    return array.reshape(*size, -1)


def _pixel_size(tiff: tifffile.TiffFile, frame: Any) -> float | None:
    """Micrometers of a pixel, as OME, Aperio, Philips, ImageJ, or a resolution in centimeters say."""
    text = str(frame.description or "")
    with contextlib.suppress(ValueError, ZeroDivisionError, KeyError, AttributeError, TypeError):
        if "<OME" in text or tiff.is_ome:
            text = tiff.ome_metadata or text
            size = re.search(r'PhysicalSizeX="([\d.eE+-]+)"', text)
            unit = re.search(r'PhysicalSizeXUnit="([^"]+)"', text)
            return float(size[1]) * UNITS[unit[1] if unit else "µm"] if size else None
        if tiff.is_philips:
            # Millimeters of rows and columns.
            size = re.search(
                r'"DICOM_PIXEL_SPACING"[^>]*>\s*(?:"|&quot;)[\d.eE+-]+(?:"|&quot;)\s+(?:"|&quot;)([\d.eE+-]+)', text
            )
            return float(size[1]) * 1e3 if size else None
        match = re.search(r"\bMPP\s*=\s*([\d.]+)", text)
        if match:
            return float(match[1]) or None
        pixels, units = frame.tags[282].value
        per_pixel = units / pixels
        if text.startswith("ImageJ="):
            return per_pixel if re.search(r"^unit=(micron|um|µm|\\u00B5m)", text, re.MULTILINE) else None
        # Inches are what programs write that know no resolution.
        return 1e4 * per_pixel if int(frame.tags[296].value) == 3 and pixels > 1 else None
    return None


def open_tiff(path: str | os.PathLike) -> LargeImage:
    """Open a TIFF file.

    Args:
        path: The file.

    Returns:
        The image.

    Raises:
        ValueError: If no windows of it are read; the message says why.
    """
    return TiffImage(str(Path(path)))
