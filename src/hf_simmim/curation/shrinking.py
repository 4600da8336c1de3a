"""Images made as small as a training needs: opened at their own depth, shrunk, and encoded again.

Pictures of 8 bits are resized by Pillow, antialiased. All other images are averaged over areas, each value by the share
of its pixel in the area, and keep their data type; missing pixels count nowhere, and stay missing where an area holds
nothing else.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from ..data.labeled.annotations import read_ids
from ..data.transforms import upright_size
from ..model.image_readers import Stored, Wanted, content_of, opened, upright
from ..model.images import as_stored, find_channels, is_deep, mark_nodata, no_pixels_error, read_stored

# Formats of pictures of 8 bits.
FORMATS = ("jpeg", "png")
# Least share of an area that counts as a pixel; smaller ones are rounding.
LEAST_SHARE = 1e-12


@dataclass(frozen=True)
class ShrinkSettings:
    """How images are shrunk and encoded.

    Args:
        size: Shorter side, in pixels; smaller images keep their size.
        format: Format of pictures of 8 bits: `jpeg` or `png`.
        quality: Quality of JPEG, 1 to 100.
        num_channels: Channels that a model will take. For 2 or 4, transparency is a band like the others; the pages of
            a TIFF file are channels if there are as many.
        nodata: Value of missing pixels in the file, in all of their channels; what a file says itself if None.
    """

    size: int = 256
    format: str = "jpeg"
    quality: int = 92
    num_channels: int = 3
    nodata: float | None = None

    def __post_init__(self):
        if self.size < 8:
            raise ValueError(f"size={self.size} is a side in pixels and must be at least 8, such as 256.")
        if self.format not in FORMATS:
            raise ValueError(f"format={self.format!r} is unknown. Use one of: {', '.join(FORMATS)}.")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality={self.quality} must be 1 to 100, such as 92.")
        if self.num_channels < 1:
            raise ValueError(f"num_channels={self.num_channels} must be 1 or more, such as 3.")


@dataclass(frozen=True)
class SmallImage:
    """An image, shrunk and encoded.

    Args:
        content: Content of the file.
        suffix: Suffix of such a file, such as `jpg`.
        pixels: The stored values (C, H, W), before a compression that loses some.
        white: Value that is 1 after rescaling: 255, 65535, or 1 for numbers without a range.
        before: (height, width) of the upright original, in pixels.
    """

    content: bytes
    suffix: str
    pixels: np.ndarray
    white: int
    before: tuple[int, int]


def shrunk_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """(height, width) at which the shorter side has `shorter` pixels; the size itself if it is not larger."""
    least = min(size)
    if least <= shorter:
        return size
    height, width = ((2 * side * shorter + least) // (2 * least) for side in size)
    return height, width


def shrink(source: Any, settings: ShrinkSettings) -> SmallImage:
    """Open, shrink and encode an image.

    Args:
        source: `image` of a row of `load_images`: a file, its content, or an array.
        settings: Size and format.

    Returns:
        The small image.

    Raises:
        ValueError, OSError: If the image cannot be read; the readers may raise other errors, too.
    """
    if source is None:
        raise ValueError("The row holds no image.")
    if isinstance(source, np.ndarray):
        return _shrink_numbers(Stored(source), settings)
    content = source["bytes"] if source["bytes"] is not None else source["path"]
    stored = _read(content, settings)
    image = stored.image
    if isinstance(image, np.ndarray):
        return _shrink_numbers(stored, settings)
    if is_deep(image):
        numbers = np.asarray(upright(image))
        if numbers.dtype.kind == "i" and numbers.min() >= 0 and numbers.max() < 65536:
            numbers = numbers.astype(np.uint16)
        if numbers.dtype == np.uint16:
            stored = stored._replace(largest=stored.largest or 65535, kind="L")
        return _shrink_numbers(stored._replace(image=numbers), settings)
    nodata = stored.nodata if settings.nodata is None else settings.nodata
    if nodata is not None:
        bands = 1 if image.mode in ("1", "L", "LA") else 4 if (settings.num_channels, image.mode) == (4, "RGBA") else 3
        marked = mark_nodata(image, bands, as_stored(nodata) * stored.scale + stored.offset)
        if isinstance(marked, np.ndarray):
            return _shrink_numbers(Stored(marked, largest=255), settings, is_first=True)
    return _shrink_picture(image, content, settings)


def _read(content: Any, settings: ShrinkSettings) -> Stored:
    wanted = Wanted(settings.num_channels, keeps_depth=True, has_nodata=settings.nodata is not None)
    stored = read_stored(content, wanted)
    if not isinstance(stored.image, np.ndarray):
        return stored
    is_few_bits = stored.image.dtype == np.uint8 and stored.image.ndim == 2 and not stored.kind
    if is_few_bits:
        with opened(content) as file:
            is_few_bits = file.read(6) != b"\x93NUMPY"
    # Gray of two or four bits, and palettes, are pictures of 8 bits for most trainings.
    is_picture = is_few_bits or stored.compared is not None
    return read_stored(content, wanted._replace(keeps_depth=False)) if is_picture else stored


def _shrink_picture(image: Image.Image, source: Any, settings: ShrinkSettings) -> SmallImage:
    before = upright_size(image)
    after = shrunk_size(before, settings.size)
    is_jpeg = image.format == "JPEG" and image.mode in ("L", "RGB") and settings.format == "jpeg"
    if is_jpeg and after == before and image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        # Encoded again it would only be worse.
        return SmallImage(content_of(source), "jpg", _channels_of(image), 255, before)
    if image.format in ("JPEG", "MPO") and after != before:
        # At twice the size, so that libjpeg's own averaging is not seen.
        scale = 2 * min(after) / min(before)
        image.draft(image.mode, (round(image.width * scale), round(image.height * scale)))
    picture = _plain(upright(image), settings.num_channels)
    if picture.size != after[::-1]:
        picture = _resized(picture, after, settings.num_channels)
    picture.info = {}
    buffer = io.BytesIO()
    if picture.mode == "CMYK":
        picture.save(buffer, "TIFF", compression="tiff_adobe_deflate")
        suffix = "tif"
    elif settings.format == "jpeg" and picture.mode in ("L", "RGB"):
        picture.save(buffer, "JPEG", quality=settings.quality)
        suffix = "jpg"
    else:
        picture.save(buffer, "PNG")
        suffix = "png"
    return SmallImage(buffer.getvalue(), suffix, _channels_of(picture), 255, before)


def _plain(image: Image.Image, num_channels: int) -> Image.Image:
    """Convert to gray or RGB, with transparency where it means something; CMYK stays."""
    if image.mode == "CMYK":
        return image
    if not image.has_transparency_data:
        mode = "L" if image.mode in ("1", "L") else "RGB"
    else:
        mode = "LA" if image.mode in ("LA", "La") else "RGBA"
        image = image if image.mode == mode else image.convert(mode)
        if num_channels not in (2, 4) and image.getchannel("A").getextrema() in ((0, 0), (255, 255)):
            mode = mode[:-1]
    return image.copy() if image.mode == mode else image.convert(mode)


def _resized(image: Image.Image, size: tuple[int, int], num_channels: int) -> Image.Image:
    resample = Image.Resampling.BICUBIC
    if image.mode in ("LA", "RGBA") and num_channels in (2, 4):
        # Pillow weights colors by their alpha.
        return Image.merge(image.mode, [band.resize(size[::-1], resample) for band in image.split()])
    return image.resize(size[::-1], resample)


def _channels_of(image: Image.Image) -> np.ndarray:
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _shrink_numbers(stored: Stored, settings: ShrinkSettings, is_first: bool = False) -> SmallImage:
    """Shrink an array, or a picture of more than 8 bits."""
    array: np.ndarray = np.asarray(stored.image)
    if array.dtype.kind not in "buif":
        raise ValueError(f"The array holds {array.dtype}, but integers or floats are needed. Convert it.")
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(f"The array has shape {array.shape}, but two or three axes are needed. Save each image alone.")
    is_last = array.ndim == 3 and not is_first and (bool(stored.kind) or _channels_are_last(array, settings))
    channels = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0) if is_last else array
    nodata = stored.nodata if settings.nodata is None else settings.nodata
    empty = None
    if nodata is not None:
        compared = channels
        if stored.compared is not None:
            compared = stored.compared[None]
        elif stored.kind and stored.kind[-1] in "Aa":
            compared = channels[:-1]
        empty = (compared == as_stored(nodata) * stored.scale + stored.offset).all(axis=0)
    before = (channels.shape[1], channels.shape[2])
    small = shrink_channels(channels, shrunk_size(before, settings.size), empty)
    shaped = small[0] if array.ndim == 2 else np.moveaxis(small, 0, -1) if is_last else small
    # Pixels that are missing make it floats.
    is_picture = small.dtype == np.uint16 and stored.kind in ("L", "RGB")
    content, suffix = _encoded(shaped, stored.largest if is_picture else 0)
    return SmallImage(content, suffix, small, stored.largest or 1, before)


def _channels_are_last(array: np.ndarray, settings: ShrinkSettings) -> bool:
    """Whether the last axis of three holds the channels: the wanted number of them, or the fewest."""
    if settings.num_channels in (array.shape[0], array.shape[-1]):
        return find_channels(array.shape, settings.num_channels).value == "channels_last"
    return array.shape[-1] < array.shape[0]


def _encoded(array: np.ndarray, white: int) -> tuple[bytes, str]:
    """Encode numbers without loss: pictures (`white` is not 0) so that they are read as pictures again."""
    buffer = io.BytesIO()
    if white == 65535 and array.ndim == 2:
        Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG")
        return buffer.getvalue(), "png"
    if white:
        # PNG has no other white, and Pillow writes no colors of 16 bits.
        kind = "P5" if array.ndim == 2 else "P6"
        header = f"{kind}\n{array.shape[1]} {array.shape[0]}\n{white}\n".encode()
        dtype = ">u2" if white > 255 else "u1"
        return header + array.astype(dtype).tobytes(), "pgm" if array.ndim == 2 else "ppm"
    np.save(buffer, np.ascontiguousarray(array))
    return buffer.getvalue(), "npy"


def shrink_channels(channels: np.ndarray, size: tuple[int, int], empty: np.ndarray | None = None) -> np.ndarray:
    """Average channels over areas; missing pixels and numbers that are not finite are left out.

    Args:
        channels: Array of shape (C, H, W), of integers, floats or bools.
        size: (height, width) of the result, in pixels, at most that of the image.
        empty: Missing pixels (H, W), True = missing in all channels.

    Returns:
        Array (C, height, width) of the same data type, or floats with NaN where all pixels of an area are missing.

    Raises:
        ValueError: If no pixel has finite numbers in all channels.
    """
    is_float = channels.dtype.kind == "f"
    valid = np.ones(channels.shape, bool) if empty is None else np.broadcast_to(~empty, channels.shape)
    if is_float:
        valid = valid & np.isfinite(channels)
    is_whole = bool(valid.all())
    if not is_whole and not valid.all(axis=0).any():
        raise ValueError(no_pixels_error([index for index, channel in enumerate(valid) if not channel.any()], None))
    if size == channels.shape[1:]:
        if is_whole:
            return channels
        return np.where(valid, channels, np.nan).astype(channels.dtype if is_float else np.float32)
    small = np.empty((len(channels), *size))
    for index, channel in enumerate(channels):
        if valid[index].all():
            small[index] = _average(channel, size)
            continue
        share = _average(valid[index], size)
        total = _average(np.where(valid[index], channel, 0), size)
        small[index] = np.where(share > LEAST_SHARE, total / np.maximum(share, LEAST_SHARE), np.nan)
    if is_float:
        return small.astype(channels.dtype)
    if not is_whole or channels.dtype.kind == "b":
        return small.astype(np.float32)
    return np.rint(small).astype(channels.dtype)


def _average(channel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Means (height, width) of areas of an array (H, W), as float64."""
    return _average_rows(_average_rows(channel, size[0]).T, size[1]).T


def _average_rows(array: np.ndarray, length: int) -> np.ndarray:
    if len(array) == length:
        return array.astype(np.float64)
    places = np.arange(length + 1) * len(array)
    firsts, shares = places // length, (places % length / length)[:, None]
    # Whole rows from the first of an area to the first of the next; the rows that lie in both are divided.
    sums = np.add.reduceat(array, firsts[:-1], axis=0, dtype=np.float64)
    divided = array[firsts[:-1]] * shares[:-1]
    sums -= divided
    sums[:-1] += divided[1:]
    return sums * (length / len(array))


def shrink_annotation(path: str, before: tuple[int, int], settings: ShrinkSettings) -> tuple[bytes, str]:
    """Shrink a map of class ids by the nearest pixel, and encode it without loss.

    Args:
        path: Path of the map.
        before: (height, width) of the upright image, in pixels.
        settings: Size.

    Returns:
        Content and suffix of the file.

    Raises:
        ValueError: If it is no map of integers, or has another size than the image.
    """
    ids = read_ids({"name": path, "image": {"bytes": None, "path": path}}, 255)
    if ids.shape != before:
        raise ValueError(
            f"The annotation {path} has {ids.shape[0]}x{ids.shape[1]} pixels and its image {before[0]}x{before[1]}."
        )
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for old, new in zip(before, shrunk_size(before, settings.size), strict=True)
    )
    ids = ids[rows[:, None], columns]
    buffer = io.BytesIO()
    if ids.min() >= 0 and ids.max() < 65536:
        Image.fromarray(ids.astype(np.uint8 if ids.max() < 256 else np.uint16)).save(buffer, "PNG")
        return buffer.getvalue(), "png"
    np.save(buffer, ids)
    return buffer.getvalue(), "npy"
