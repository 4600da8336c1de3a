"""Some of the bands of an image, in another order, such as those of a satellite that are red, green and blue."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from ..model.image_readers import Source, Stored, Wanted, opened, upright
from ..model.tiff import TIFF_MAGICS, first_value, is_part, tiff_directories
from .address import Address
from .large_images import LargeImage

# Pages of a TIFF file that may be bands.
MAX_PAGES = 1024


def bands_part(bands: Sequence[int]) -> str:
    """The value `bands` of a part."""
    return "|".join(map(str, bands))


def _num_bands(path: str) -> int:
    """Bands of a TIFF file, as samples or pages; 3 of other files, which says nothing."""
    with opened(path) as file:
        if not file.read(4).startswith(TIFF_MAGICS):
            return 3
        file.seek(0)
        pages = [page for page in tiff_directories(file, MAX_PAGES) if not is_part(page)]
    return max(first_value(pages[0], 277, 1), len(pages)) if pages else 3


def read_bands(read: Callable[[Source, Wanted], Stored], address: Address, wanted: Wanted) -> Stored:
    """Read an image, and choose bands of it.

    Args:
        read: Reader of all bands.
        address: Address of the image, with `bands`, their numbers from 1 on.
        wanted: What it is read for.

    Returns:
        One or three bands of 8 bits, or three of a deeper picture, as a picture, all else as numbers (C, H, W).

    Raises:
        ValueError: If there is no such band, or which axis holds them is unknown.
    """
    inner = Address(address.path, {name: value for name, value in address.part.items() if name != "bands"})
    stored = read(str(inner), wanted._replace(num_channels=_num_bands(address.path), keeps_depth=True))
    return _choose(stored, address)


def _choose(stored: Stored, address: Address) -> Stored:
    """An image or window of all bands, which keeps its depth, with those that an address names."""
    image = stored.image
    if isinstance(image, Image.Image):
        image = upright(image)
        if image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK", "F") and image.mode[0] != "I":
            raise ValueError(f"{address}: a picture with a palette, or in black and white, has no bands. Leave it out.")
    array = np.atleast_3d(np.asarray(image))
    if not stored.kind and not isinstance(image, Image.Image) and array.shape[0] < array.shape[-1]:
        array = np.moveaxis(array, 0, -1)
    chosen = _indices(address, array.shape[-1])
    array = array[..., chosen]
    if array.dtype == np.uint8 and len(chosen) in (1, 3):
        return stored._replace(
            image=Image.fromarray(np.ascontiguousarray(np.squeeze(array, -1) if len(chosen) == 1 else array)),
            kind="",
            largest=0,
        )
    if stored.kind in ("L", "RGB", "RGBA") and len(chosen) in (1, 3):
        return stored._replace(
            image=array if len(chosen) == 3 else array[..., 0], kind="RGB" if len(chosen) == 3 else "L"
        )
    return stored._replace(image=np.ascontiguousarray(np.moveaxis(array, -1, 0)), kind="", largest=0)


def _indices(address: Address, count: int) -> list[int]:
    """Indices of the bands that an address names, of so many."""
    chosen = [int(band) - 1 for band in address.part["bands"].split("|")]
    if min(chosen) < 0 or max(chosen) >= count:
        raise ValueError(
            f"{address}: the image has {count} bands, numbered from 1 on. Choose some of them with --bands."
        )
    return chosen


class BandsImage(LargeImage):
    """Some of the bands of a large image; windows are read without the rest of it.

    Args:
        image: The image of all bands.
        address: Its address, with `bands`.
    """

    def __init__(self, image: LargeImage, address: Address):
        self._image, self._address = image, address
        self._chosen = _indices(address, image.num_channels)
        self.levels, self.pixel_size, self.dtype = image.levels, image.pixel_size, image.dtype
        self.nodata, self.is_tiled, self.is_masked = image.nodata, image.is_tiled, image.is_masked
        self.num_channels = len(self._chosen)

    def read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read the numbers of a window, see `LargeImage.read`."""
        return self._image.read(level, top, left, height, width)[..., self._chosen]

    def stored(self, array: np.ndarray, wanted: Wanted) -> Stored:
        """Say what the numbers of all bands are, see `LargeImage.stored`, and choose some of them."""
        everything = wanted._replace(num_channels=self._image.num_channels, keeps_depth=True)
        return _choose(self._image.stored(array, everything), self._address)

    def window(self, level: int, top: int, left: int, height: int, width: int, wanted: Wanted) -> Stored:
        """Read a window as an image, see `LargeImage.window`."""
        return self.scaled(self.stored(self._image.read(level, top, left, height, width), wanted), wanted)

    def close(self) -> None:
        """Close the file."""
        self._image.close()
