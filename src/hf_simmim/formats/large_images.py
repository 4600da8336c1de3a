"""What a large image is: one of which windows are read without the rest of it."""

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..model.image_readers import Stored, Wanted
from ..model.images import as_stored

# Pixels that are looked at to find how many bits of 16 are used.
DEPTH_SIDE, DEPTH_PLACES = 512, 4


class LargeImage(ABC):
    """An opened image of which windows are read.

    Attributes:
        levels: (height, width) of the image at each resolution, in pixels, the finest one first.
        pixel_size: Micrometers that a pixel of level 0 is wide; None if the file does not say.
        num_channels: Channels C of what `read` returns, with transparency.
        dtype: Data type of the numbers.
        nodata: Value of missing pixels that the file names.
        has_alpha: Whether the last channel is transparency.
        is_tiled: Whether narrow windows are read without the rest of their rows.
        is_masked: Whether the file has a mask of valid pixels.
    """

    levels: list[tuple[int, int]]
    pixel_size: float | None = None
    num_channels: int
    dtype: np.dtype
    nodata: float | None = None
    has_alpha: bool = False
    is_tiled: bool = True
    is_masked: bool = False
    _bits: int | None = None

    @abstractmethod
    def read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read the numbers of a window.

        Args:
            level: Index of `levels`.
            top: First row, in pixels of the level.
            left: First column.
            height: Number of rows.
            width: Number of columns.

        Returns:
            Array of shape (height, width, C).
        """

    @abstractmethod
    def stored(self, array: np.ndarray, wanted: Wanted) -> Stored:
        """Say what the numbers of a window are, so that they are treated as those of a whole file.

        Args:
            array: Numbers of `read`.
            wanted: What they are read for.

        Returns:
            The window as an image.
        """

    def window(self, level: int, top: int, left: int, height: int, width: int, wanted: Wanted) -> Stored:
        """Read a window as an image.

        Args:
            level: Index of `levels`.
            top: First row, in pixels of the level.
            left: First column.
            height: Number of rows.
            width: Number of columns.
            wanted: What it is read for.

        Returns:
            The image.
        """
        return self.scaled(self.stored(self.read(level, top, left, height, width), wanted), wanted)

    def scaled(self, stored: Stored, wanted: Wanted) -> Stored:
        """Say by what the numbers of a window are scaled to 8 bits, if they are."""
        if stored.largest == 65535 and stored.kind in ("L", "RGB") and stored.compared is None:
            # Scaled to 8 bits by the brightest pixel of the file, not by that of each window.
            return stored if wanted.keeps_depth else stored._replace(largest=2 ** self._used_bits() - 1)
        return stored

    def _used_bits(self) -> int:
        """Bits that the numbers use, by the coarsest level and some places of the finest one: 8 to 14, or 16."""
        if self._bits is None:
            height, width = self.levels[0]
            rows = np.linspace(0, max(height - DEPTH_SIDE, 0), DEPTH_PLACES).astype(int)
            columns = np.linspace(0, max(width - DEPTH_SIDE, 0), DEPTH_PLACES).astype(int)
            places = [(0, int(row), int(column)) for row in set(rows.tolist()) for column in set(columns.tolist())]
            if len(self.levels) > 1 and math.prod(self.levels[-1]) <= 2**24:
                places.append((len(self.levels) - 1, 0, 0))
            brightest = 0
            for level, top, left in places:
                size = self.levels[level]
                side = DEPTH_SIDE if level == 0 else 2**24
                part = self.read(level, top, left, min(side, size[0] - top), min(side, size[1] - left))
                if self.nodata is not None:
                    part = part[(part != as_stored(self.nodata)).any(axis=-1)]
                brightest = max(brightest, int(part.max(initial=0)))
            bits = max(brightest.bit_length(), 8)
            self._bits = bits if bits < 15 and brightest else 16
        return self._bits

    def level_pixel_size(self, level: int) -> float | None:
        """Micrometers that a pixel of a level is wide; None if it is not known."""
        return None if self.pixel_size is None else self.pixel_size * self.levels[0][1] / self.levels[level][1]

    def close(self) -> None:  # noqa: B027
        """Close the file."""


class PlainNumbers:
    """Numbers in a file that are neither compressed nor in tiles, of which the rows of a window are read.

    A memory map would hold all pages that were touched, which is most of the file after some hundred windows.

    Args:
        path: The file.
        offset: Where the numbers begin, in bytes.
        dtype: Data type in the file.
        shape: Planes, rows, columns, and samples of a pixel.
    """

    def __init__(self, path: str, offset: int, dtype: np.dtype, shape: tuple[int, int, int, int]):
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        self._offset, self._dtype, self._shape = offset, dtype, shape
        self._lock = threading.Lock()

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a window.

        Args:
            top: First row.
            left: First column.
            height: Number of rows.
            width: Number of columns.

        Returns:
            Array of shape (planes, height, width, samples), in the byte order of this machine.

        Raises:
            ValueError: If the file is cut off.
        """
        planes, rows, columns, samples = self._shape
        array = np.empty((planes, height, width, samples), self._dtype)
        pixel = samples * self._dtype.itemsize
        # Whole rows are one piece.
        pieces, length = (1, height * width) if width == columns else (height, width)
        with self._lock:
            for plane in range(planes):
                content = memoryview(array[plane].reshape(-1).view(np.uint8))
                for piece in range(pieces):
                    self._file.seek(self._offset + ((plane * rows + top + piece) * columns + left) * pixel)
                    part = content[piece * length * pixel : (piece + 1) * length * pixel]
                    while part:
                        count = self._file.readinto(part)
                        if not count:
                            raise ValueError("The file is cut off: it is smaller than its header says. Replace it.")
                        part = part[count:]
        return array.astype(self._dtype.newbyteorder("="), copy=False)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def channels_at(shape: Sequence[int]) -> int | None:
    """Which axis of an array holds the channels: the shorter end of three axes, None of two.

    Args:
        shape: Shape of the array.

    Returns:
        0, -1 or None.

    Raises:
        ValueError: If there are not two or three axes.
    """
    if len(shape) not in (2, 3) or not math.prod(shape):
        raise ValueError(
            f"The array has shape {tuple(shape)}, but (height, width), (height, width, channels) or (channels, height,"
            " width) is needed. Save each image by itself."
        )
    return None if len(shape) == 2 else 0 if shape[0] < shape[-1] else -1


def as_bands(array: np.ndarray, is_plane: bool) -> np.ndarray:
    """Numbers of `LargeImage.read` as (H, W) if the file has no axis of channels, else as (C, H, W)."""
    return array[..., 0] if is_plane else np.moveaxis(array, -1, 0)


def as_picture(array: np.ndarray) -> Image.Image:
    """uint8 numbers of shape (H, W, C) as a picture: gray, gray with transparency, RGB or RGBA."""
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[array.shape[-1]]
    height, width = array.shape[:2]
    return Image.frombytes(mode, (width, height), np.ascontiguousarray(array, np.uint8).tobytes())
