"""Opening of images as PIL images or arrays, conversion of their channels, and missing pixels.

- Pictures of 8 bits (JPEG, PNG, 8-bit TIFF, ...) become PIL images, converted to the wanted channels.
- Everything else becomes an array: `.npy` files, TIFF files of other data types or bands, data set columns of numbers,
  arrays passed to the image processor. An array must have the wanted channels and keeps its values: uint8 as uint8,
  all other types as float32.

For pictures of 9 to 16 bits `rescale_factor` decides. At 1/255, which means values from 0 to 255, they are scaled to 8
bits. At any other factor (1/65535 for the whole range, 1/10000 for reflectances of Sentinel-2) they are arrays.

In both cases a model sees (values * rescale_factor - image_mean) / image_std.

Pixels of which all channels are `nodata` in the file are missing; TIFF files may store this value, as GDAL does. An
image with missing pixels is a float32 array in which they are NaN.
"""

# ADD A FILE FORMAT: one that another library reads goes to `formats/readers.py`. Here it is a reader that returns
# `Stored`, and its line in `FORMATS` at the end; a suffix that Pillow does not know goes to `SUFFIXES` in
# `image_readers.py`, that of a format which is not read to `UNREAD`.

import io
import math
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFile, UnidentifiedImageError
from transformers.image_utils import ChannelDimension
from transformers.utils import logging

from .image_readers import (
    Source,
    Stored,
    Wanted,
    both_bytes,
    check_size,
    content_of,
    few_bits,
    numbers_at,
    open_with_pillow,
    opened,
    optional_library,
    read_fits,
    upright,
)
from .tiff import TIFF_MAGICS, read_tiff

PixelArray = TypeVar("PixelArray", np.ndarray, torch.Tensor)


def missing_as_nan(image: PixelArray, nodata: float | None = None) -> PixelArray:
    """Replace values that are missing by NaN.

    Args:
        image: uint8 or float32 of shape (C, H, W).
        nodata: Value of missing pixels, in all of their channels.

    Returns:
        The image itself if nothing is missing, else a float32 copy.

    Raises:
        ValueError: If no pixel has finite values in all channels.
    """
    if not isinstance(image, torch.Tensor):
        return _missing_as_nan(image, nodata)
    missing = ~torch.isfinite(image) if image.is_floating_point() else torch.zeros_like(image, dtype=torch.bool)
    if nodata is not None:
        missing = missing | (image == as_stored(nodata)).all(0)
    if not missing.any():
        return image
    if missing.any(0).all():
        without = [index for index, channel in enumerate(missing) if channel.all()]
        raise ValueError(no_pixels_error(without, nodata))
    return image.float().masked_fill(missing, torch.nan)


def _missing_as_nan(image: np.ndarray, nodata: float | None, in_place: bool = False) -> np.ndarray:
    """As `missing_as_nan`; `in_place` changes an array of float32. Masks of one channel at a time save memory."""
    empty = np.zeros(image.shape[1:], bool)
    if nodata is not None:
        empty = image[0] == as_stored(nodata)
        for channel in image[1:]:
            empty &= channel == as_stored(nodata)
    anywhere, without, is_changed = empty.copy(), [], bool(empty.any())
    for index, channel in enumerate(image):
        missing = empty
        if image.dtype.kind == "f":
            missing = ~np.isfinite(channel)
            is_changed |= bool(np.isinf(channel).any())
            anywhere |= missing
            missing |= empty
        if missing.all():
            without.append(index)
    if anywhere.all():
        raise ValueError(no_pixels_error(without, nodata))
    if not is_changed:
        return image
    if not (in_place and image.dtype == np.float32 and image.flags.writeable):
        image = image.astype(np.float32)
    for channel in image:
        channel[empty] = np.nan
        if image.dtype.kind == "f":
            channel[np.isinf(channel)] = np.nan
    return image


def as_stored(nodata: float) -> float:
    """Round `nodata` to float32 like images: files store it with fewer digits, or as a float64."""
    with np.errstate(over="ignore"):
        return float(np.float32(nodata))


def no_pixels_error(empty_channels: Sequence[int], nodata: float | None) -> str:
    """Error message for an image without real pixels, which names an empty channel if there is one."""
    message = "No pixel of the image has finite numbers in all channels"
    if empty_channels:
        message = f"Channel {empty_channels[0]} of the image holds no finite number"
    return f"{message}{'' if nodata is None else f' other than nodata={nodata:g}'}. Remove the image."


def has_missing(image: np.ndarray | torch.Tensor) -> bool:
    """Whether an image contains NaN."""
    return _is_floating(image) and bool((image != image).any())


def real_pixels(image: PixelArray) -> PixelArray:
    """Which pixels are missing in no channel: bool of shape (H, W)."""
    return (image == image).all(0)


def fill_missing(image: PixelArray, pixel_mask: torch.Tensor, otherwise: Sequence[float] | None = None) -> PixelArray:
    """Replace NaN by the mean of the channel's real pixels, because one NaN would make the whole loss NaN.

    Args:
        image: float32 of shape (C, H, W).
        pixel_mask: Bool tensor of shape (H, W), True = a real pixel.
        otherwise: Value of each channel if no pixel is real; 0 if None.

    Returns:
        The image without NaN.
    """
    pixels = torch.as_tensor(image)
    if pixel_mask.any():
        values = pixels[:, pixel_mask].mean(dim=1)
    else:
        values = torch.tensor(otherwise or [0.0] * len(pixels), device=pixels.device)
    filled = torch.where(pixels.isnan(), values.view(-1, 1, 1), pixels)
    return filled if isinstance(image, torch.Tensor) else filled.numpy()


def _is_floating(image: np.ndarray | torch.Tensor) -> bool:
    return image.is_floating_point() if isinstance(image, torch.Tensor) else image.dtype.kind == "f"


logger = logging.get_logger(__name__)


def keeps_deep_pictures(rescale_factor: float) -> bool:
    """Whether images of more than 8 bits keep their values: at every factor but 1/255, see the top of this module."""
    return not math.isclose(rescale_factor, 1 / 255, rel_tol=1e-3)


def picture_or_array(image: Image.Image, rescale_factor: float) -> Image.Image | np.ndarray:
    """A PIL image itself, or its values (H, W) if it has more than 8 bits and `rescale_factor` fits them."""
    if not is_deep(image) or not keeps_deep_pictures(rescale_factor):
        return image
    return np.asarray(upright(image))


def channels_first(
    array: np.ndarray,
    num_channels: int,
    data_format: str | ChannelDimension | None = None,
    nodata: float | None = None,
    in_place: bool = False,
) -> np.ndarray:
    """Bring an array to channels first, with NaN for missing values.

    Gray arrays are repeated for three channels.

    Args:
        array: Array of shape (H, W), (H, W, C) or (C, H, W).
        num_channels: Wanted channels C.
        data_format: Where the channels are; if None, found by their number, first if both ends fit.
        nodata: Value of missing pixels, in all of their channels.
        in_place: Whether an array of float32 may be changed, which saves the memory of a copy.

    Returns:
        Array of shape (C, H, W): uint8 if it was and no pixel is missing, else float32.

    Raises:
        ValueError: If there are no such channels, or all pixels are missing.
    """
    if array.dtype.kind not in "buif":
        raise ValueError(f"The array holds {array.dtype}, but integers or floats are needed. Convert it.")
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(
            f"The array has shape {array.shape}, but (height, width), (height, width, {num_channels}) or"
            f" ({num_channels}, height, width) is needed. Save each image by itself."
        )
    if array.ndim == 2:
        array, data_format = array[None], ChannelDimension.FIRST
        if num_channels not in (1, 3):
            raise ValueError(channel_error(1, num_channels))
    elif data_format is None:
        data_format = find_channels(array.shape, num_channels)
    if ChannelDimension(data_format) == ChannelDimension.LAST:
        array = np.moveaxis(array, -1, 0)
    if array.shape[0] == 1 and num_channels == 3:
        array = np.repeat(array, 3, axis=0)
    if array.shape[0] != num_channels:
        raise ValueError(channel_error(array.shape[0], num_channels))
    if array.dtype in (np.uint8, np.float32):
        return _missing_as_nan(array, nodata, in_place)
    # float64 files may mark missing values with numbers that float32 cannot hold.
    with np.errstate(over="ignore"):
        return _missing_as_nan(array.astype(np.float32), nodata, in_place=True)


def mark_nodata(
    image: Image.Image | np.ndarray, num_channels: int, nodata: float, in_place: bool = False
) -> Image.Image | np.ndarray:
    """Replace pixels of which all channels are `nodata` by NaN, in an image as it is stored.

    Args:
        image: A PIL image, or an array of shape (H, W), (H, W, C) or (C, H, W).
        num_channels: Wanted channels C; transparency is ignored for one and three.
        nodata: Value of missing pixels; of a palette, the index.
        in_place: Whether an array of float32 may be changed.

    Returns:
        For an array, an array with the same axes, and NaN for missing pixels. For a PIL image, the image itself if no
        pixel is missing, else such an array, of shape (C, H, W).

    Raises:
        ValueError: If there are no such channels, or all pixels are nodata.
    """
    if isinstance(image, np.ndarray):
        marked = channels_first(image, num_channels, nodata=nodata, in_place=in_place)
        if image.ndim == 2:
            return marked[0]
        is_last = find_channels(image.shape, num_channels) == ChannelDimension.LAST
        return np.moveaxis(marked, 0, -1) if is_last else marked
    picture = upright(image)
    numbers = np.atleast_3d(np.asarray(picture))
    if picture.mode == "PA" or (picture.mode in ("LA", "RGBA") and num_channels in (1, 3)):
        numbers = numbers[..., :-1]
    missing = (numbers == as_stored(nodata)).all(axis=-1)
    if not missing.any():
        return image
    if missing.all():
        raise ValueError(no_pixels_error((), nodata))
    if is_deep(picture) and picture.mode != "F":
        picture = Image.fromarray(_to_8_bits(numbers[..., 0].clip(0, 65535), missing=missing))
    return np.where(missing, np.float32(np.nan), pixels_of(picture, num_channels))


def find_channels(shape: tuple[int, ...], num_channels: int) -> ChannelDimension:
    """Which end of a 3-D shape holds the channels; the first one if both fit."""
    for channels in (num_channels, 1) if num_channels == 3 else (num_channels,):
        if shape[0] == channels:
            return ChannelDimension.FIRST
        if shape[-1] == channels:
            return ChannelDimension.LAST
    raise ValueError(
        f"An image of shape {tuple(shape)} has no axis of {num_channels} channels at either end, the number"
        " of values of image_mean. Set image_mean and image_std to one value for each channel, or convert the images."
    )


def channel_error(found: int, expected: int) -> str:
    """Error message for an image with other channels."""
    return (
        f"The image has {found} channel{'s' if found > 1 else ''} and {expected} {'are' if expected > 1 else 'is'}"
        f" expected. Convert the images, or set {found} channels: num_channels of the encoder, and as many values in"
        " image_mean and image_std of the processor."
    )


def convert_channels(image: Image.Image, num_channels: int) -> Image.Image:
    """Convert a PIL image of any mode to 8 bits and the wanted channels.

    Transparent images are composited on white, unless nothing of them is opaque. For three channels, gray, CMYK and
    palette images become RGB; for one, images in color modes that contain only gray become gray. 16-bit images are
    scaled to 8 bits.

    Args:
        image: The PIL image.
        num_channels: Wanted channels.

    Returns:
        A PIL image of that many bands.

    Raises:
        ValueError: If the image has other channels, which cannot be converted without loss.
    """
    if image.mode == "F":
        raise ValueError(
            "The image holds floats (mode F), whose range is unknown. Convert it to 8 bits, or set the rescale_factor"
            " that fits it, such as 1 for floats in [0, 1]."
        )
    if is_deep(image):
        # Pillow clips at 255 when it converts 16-bit modes.
        image = Image.fromarray(_to_8_bits(np.asarray(image).clip(0, 65535)))
    if num_channels == 3:
        return _opaque(image)
    if num_channels == 1:
        if image.mode in ("1", "L") and not image.has_transparency_data:
            return image if image.mode == "L" else image.convert("L")
        # Gray images also come as RGB and palettes, such as from pipelines, which convert every image to RGB.
        red, green, blue = _opaque(image).split()
        if not (ImageChops.difference(red, green).getbbox() or ImageChops.difference(red, blue).getbbox()):
            return red
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if len(image.getbands()) != num_channels:
        raise ValueError(channel_error(len(image.getbands()), num_channels))
    return image


def _opaque(image: Image.Image) -> Image.Image:
    """Convert to RGB, on white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        # Some programs leave alpha at 0 everywhere: it means nothing then.
        if image.getchannel("A").getextrema() != (0, 0):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def is_deep(image: Image.Image) -> bool:
    """Whether a PIL image has a mode of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def warn_of_lost_bits(largest: int) -> None:
    """Warn once that images of a depth are scaled to 8 bits."""
    logger.warning_once(
        f"Images of {largest.bit_length()} bits are scaled to 8 bits, because rescale_factor is 1/255. To keep their"
        f" values, set the factor that fits them, such as 1/{largest}."
    )


def open_image(
    source: Source, num_channels: int, rescale_factor: float, nodata: float | None = None, indices: bool = False
) -> Image.Image | np.ndarray:
    """Open an image file; a PIL image may be decoded later, unless missing pixels must be found.

    Args:
        source: Path, or content of the file.
        num_channels: Wanted channels C, which decide whether the pages of a TIFF file are channels.
        rescale_factor: Factor that the values will be multiplied by.
        nodata: Value of missing pixels, in all of their channels; the value that a TIFF or FITS file stores if None. It
            is compared with the numbers in the file, such as palette indices.
        indices: Whether palettes are read as indices, not as colors, as in maps of classes.

    Returns:
        A PIL image, or an array of shape (H, W), (H, W, C) or (C, H, W) of any data type. With missing pixels it is a
        float32 array, NaN there.

    Raises:
        ValueError, OSError: If the file cannot be read, and whatever else the readers raise.
    """
    keeps_depth = keeps_deep_pictures(rescale_factor)
    stored = read_stored(source, Wanted(num_channels, keeps_depth, nodata is not None, indices))
    image, nodata = stored.image, stored.nodata if nodata is None else nodata
    if isinstance(image, Image.Image) and is_deep(image) and stored.kind and (keeps_depth or nodata is not None):
        image = np.asarray(upright(image))
        stored = stored._replace(image=image)
    if isinstance(image, np.ndarray) and stored.kind:
        return _open_deep(stored, num_channels, keeps_depth, nodata)
    if nodata is not None:
        return mark_nodata(image, num_channels, as_stored(nodata) * stored.scale + stored.offset, in_place=True)
    return picture_or_array(image, rescale_factor) if isinstance(image, Image.Image) else image


def _open_deep(stored: Stored, num_channels: int, keeps_depth: bool, nodata: float | None) -> Image.Image | np.ndarray:
    """A picture of more than 8 bits with its numbers, or scaled to 8 bits."""
    colors: np.ndarray = np.atleast_3d(np.asarray(stored.image))
    missing = None
    has_alpha = stored.kind[-1] in "Aa"
    if nodata is not None:
        compared = np.atleast_3d(stored.compared) if stored.compared is not None else colors
        compared = compared[..., : compared.shape[-1] - has_alpha]
        missing = (compared == as_stored(nodata) * stored.scale + stored.offset).all(axis=-1)
        if missing.all():
            raise ValueError(no_pixels_error((), nodata))
        missing = missing if missing.any() else None
    if has_alpha and num_channels in (1, 3):
        colors = _on_white(colors, stored.largest, stored.kind[-1] == "a")
    if stored.kind == "CMYK" and num_channels == 3:
        inverse = stored.largest - colors.astype(np.float64)
        colors = np.rint(inverse[..., :3] * inverse[..., 3:] / stored.largest).astype(np.uint16)
    if keeps_depth:
        numbers = colors[..., 0] if colors.shape[-1] == 1 else colors
        if missing is None:
            return numbers
        return np.where(missing if numbers.ndim == 2 else missing[..., None], np.float32(np.nan), numbers)
    colors = _to_8_bits(colors, stored.largest, missing)
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "CMYK" if stored.kind == "CMYK" else "RGBA"}[colors.shape[-1]]
    picture = Image.frombytes(mode, colors.shape[1::-1], np.ascontiguousarray(colors).tobytes())
    if missing is None:
        return picture
    return np.where(missing, np.float32(np.nan), pixels_of(picture, num_channels))


def _on_white(colors: np.ndarray, largest: int, is_multiplied: bool) -> np.ndarray:
    """Lay colors with transparency, which comes last, on white; if it is 0 everywhere, it means nothing."""
    colors, alpha = colors[..., :-1], colors[..., -1:].astype(np.float64) / largest
    if not alpha.any():
        return colors
    opaque = colors if is_multiplied else colors * alpha
    return np.rint(opaque + largest * (1 - alpha)).clip(0, largest).astype(np.uint16)


def _to_8_bits(numbers: np.ndarray, largest: int = 65535, missing: np.ndarray | None = None) -> np.ndarray:
    """Scale a picture of 9 to 16 bits; one of 16 whose brightest pixel needs 14 or fewer has no more.

    Args:
        numbers: Unsigned integers of shape (H, W) or (H, W, C).
        largest: White.
        missing: Missing pixels (H, W), which are not looked at.

    Returns:
        uint8 of the same shape.
    """
    stated = largest
    if largest == 65535:
        brightest = int(numbers.max() if missing is None else numbers[~missing].max())
        bits = max(brightest.bit_length(), 8)
        if bits < 15 and brightest:
            largest = 2**bits - 1
            logger.warning_once(
                f"Some 16-bit images use only {bits} bits: their brightest pixel is at most {largest}. Each of them is"
                f" scaled by 1/{largest}, dark images of 16 bits too. If they are all of {bits} bits, set"
                f" rescale_factor=1/{largest} (--rescale_factor 1/{largest}); 1/65535 if they are dark."
            )
    if stated == largest > 255:
        warn_of_lost_bits(largest)
    if largest & (largest + 1) == 0 and largest > 255:
        # The upper bits are the 8-bit image.
        return (numbers >> (largest.bit_length() - 8)).clip(0, 255).astype(np.uint8)
    return np.rint(numbers * (255 / largest)).clip(0, 255).astype(np.uint8)


def pixels_of(image: Image.Image | np.ndarray, num_channels: int) -> np.ndarray:
    """An opened image, upright, as an array of shape (C, H, W), uint8 or float32."""
    if isinstance(image, np.ndarray):
        return channels_first(image, num_channels)
    # Copied, because Pillow's memory is read-only, and torch warns about that.
    array = np.array(convert_channels(upright(image), num_channels))
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def read_stored(source: Source, wanted: Wanted) -> Stored:
    """Read an image file by the reader of its format.

    Args:
        source: Path, or content of the file.
        wanted: What it is read for.

    Returns:
        The image as it is stored; a PIL image may not be decoded yet.

    Raises:
        ValueError, OSError: If the file cannot be read, and whatever else the readers raise.
    """
    for other in OTHER_READERS:
        stored = other(source, wanted)
        if stored is not None:
            return stored
    with opened(source) as file:
        head = file.read(352)
    for matches, reader in FORMATS.values():
        if matches(head):
            return reader(source, wanted)
    return Stored(open_with_pillow(source))


def _read_npy(source: Source, wanted: Wanted) -> Stored:
    # Pickles can run code.
    return Stored(np.load(io.BytesIO(source) if isinstance(source, bytes) else source, allow_pickle=False))


# PNG


def _read_png(source: Source, wanted: Wanted) -> Stored:
    image = open_with_pillow(source)
    coding = str(image.tile[0].args) if isinstance(image, ImageFile.ImageFile) and image.tile else ""
    if coding in ("L;2", "L;4"):
        return few_bits(image, int(coding[-1]), wanted)
    if coding == "1":
        return Stored(image, scale=255)
    if not coding.endswith(";16B"):
        return Stored(image)
    if image.mode == "I;16" and "transparency" not in image.info:
        return Stored(image, largest=65535, kind="L")
    if coding.startswith("LA"):
        if wanted.keeps_depth or wanted.has_nodata:
            raise ValueError(
                "The PNG file holds gray with transparency of 16 bits, which cannot be read. Convert it to gray."
            )
        return Stored(image)
    transparent = image.info.get("transparency")
    numbers = np.asarray(upright(image)) if image.mode == "I;16" else both_bytes(source, image, "16B", "16L")
    kind = image.mode.replace("I;16", "L")
    if transparent is not None:
        # One color is transparent.
        colors = numbers if numbers.ndim == 3 else numbers[..., None]
        alpha = np.where((colors == np.asarray(transparent)).all(-1, keepdims=True), 0, 65535)
        numbers, kind = np.concatenate([colors, alpha.astype(np.uint16)], axis=-1), f"{kind}A"
    return Stored(numbers, largest=65535, kind=kind)


# PGM, PPM and PFM


def _read_pnm(source: Source, wanted: Wanted) -> Stored:
    """Read gray or colors of up to 16 bits, and floats; Pillow stretches all but 8 bits, and has no float colors."""
    content = content_of(source)
    match = re.match(rb"(P[2356Ff])((?:\s+|#[^\n\r]*)+)", content)
    tokens: list[bytes] = []
    position = match.end() if match else 0
    while match and len(tokens) < 3:
        token = re.compile(rb"([^\s#]+)").match(content, position)
        if token is None:
            break
        tokens.append(token[0])
        position = token.end()
        space = re.compile(rb"(?:\s+|#[^\n\r]*)+" if len(tokens) < 3 else rb"\s?").match(content, position)
        position = space.end() if space else position
    try:
        width, height, largest = int(tokens[0]), int(tokens[1]), float(tokens[2])
    except (ValueError, IndexError):
        return Stored(open_with_pillow(source))
    kind = match[1].decode() if match else ""
    channels = 3 if kind in ("P3", "P6", "PF") else 1
    check_size(height, width, channels)
    shape = (height, width, channels)[: 2 if channels == 1 else 3]
    if kind in ("PF", "Pf"):
        dtype = np.dtype("<f4" if largest < 0 else ">f4")
        numbers = numbers_at(content, dtype, math.prod(shape), position).reshape(shape)
        return Stored(numbers[::-1].astype(np.float32))
    if not 0 < largest < 65536:
        raise ValueError(f"The largest number of the PNM file is {largest:g} and must be 1 to 65535. Fix the file.")
    if kind in ("P2", "P3"):
        values = re.sub(rb"#[^\n\r]*", b"", content[position:]).split()
        if len(values) < math.prod(shape):
            raise ValueError("The PNM file is cut off. Replace it.")
        numbers = np.array(values[: math.prod(shape)], dtype=np.uint16).reshape(shape)
    else:
        numbers = numbers_at(content, np.dtype(">u2" if largest > 255 else "u1"), math.prod(shape), position)
        numbers = numbers.reshape(shape)
    if largest == 255:
        return Stored(Image.fromarray(numbers.astype(np.uint8)))
    return Stored(numbers.astype(np.uint16), largest=int(largest), kind="L" if channels == 1 else "RGB")


# SGI


def _read_sgi(source: Source, wanted: Wanted) -> Stored:
    content = content_of(source)
    is_packed, size, _, width, height, channels = struct.unpack_from(">BBHHHH", content, 2)
    if size != 2:
        return Stored(open_with_pillow(source))
    if is_packed or channels not in (1, 3, 4):
        raise ValueError("The SGI file holds compressed 16-bit numbers, which are not read. Convert it to PNG or TIFF.")
    check_size(height, width, channels)
    numbers = numbers_at(content, np.dtype(">u2"), width * height * channels, 512).astype(np.uint16)
    numbers = np.moveaxis(numbers.reshape(channels, height, width), 0, -1)[::-1]
    return Stored(numbers, largest=65535, kind={1: "L", 3: "RGB", 4: "RGBA"}[channels])


# JPEG 2000, AVIF and JPEG


def _boxes(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Type and start of each box of a JPEG 2000 file."""
    start = 0
    while start + 16 <= len(content):
        size, kind, long_size = struct.unpack_from(">I4sQ", content, start)
        yield kind, start + (16 if size == 1 else 8)
        start += long_size if size == 1 else size
        if size == 0 or (size == 1 and long_size < 16) or 1 < size < 8:
            return


def _read_jpeg2000(source: Source, wanted: Wanted) -> Stored:
    content = content_of(source)
    start = 0
    if content[:2] != b"\xff\x4f":
        start = next((first for kind, first in _boxes(content) if kind == b"jp2c"), 0)
    channels = struct.unpack(">H", content[start + 40 : start + 42])[0] if len(content) > start + 42 else 0
    depths = [content[start + 42 + 3 * index] for index in range(min(channels, 16))]
    bits, is_signed = max((depth & 127) + 1 for depth in depths or [7]), any(depth & 128 for depth in depths)
    image = open_with_pillow(source)
    if bits <= 8 and not is_signed:
        return Stored(image)
    if image.mode.startswith("I;16") and bits <= 16:
        # Shifted up to 16 bits, after half of the range was added to signed numbers.
        numbers = np.asarray(image) >> (16 - bits)
        if is_signed:
            return Stored(numbers.astype(np.int32) - 2 ** (bits - 1))
        return Stored(numbers, largest=2**bits - 1, kind="L")
    if not (wanted.keeps_depth or wanted.has_nodata or is_signed):
        return Stored(image)
    check_size(image.height, image.width, channels)
    is_picture = not is_signed and image.mode in ("RGB", "RGBA", "LA")
    return _by_imagecodecs("JPEG 2000", content, bits, image.mode if is_picture else "")


def _by_imagecodecs(name: str, content: bytes, bits: int, kind: str) -> Stored:
    codecs = optional_library("imagecodecs", f"The {name} file holds {bits} bits, more than Pillow reads. To read them")
    decode = {"JPEG 2000": "jpeg2k_decode", "AVIF": "avif_decode", "JPEG": "jpeg_decode"}[name]
    return Stored(getattr(codecs, decode)(content), largest=2**bits - 1 if kind else 0, kind=kind)


def _read_avif(source: Source, wanted: Wanted) -> Stored:
    content = content_of(source)
    position = content[: 1 << 20].find(b"av1C")
    flags = content[position + 6] if position > 0 else 0
    bits = 8 if not flags & 0x40 else 12 if flags & 0x20 else 10
    image = open_with_pillow(content)
    if bits == 8 or not (wanted.keeps_depth or wanted.has_nodata):
        return Stored(image)
    check_size(image.height, image.width, 4)
    return _by_imagecodecs("AVIF", content, bits, image.mode)


def _read_jpeg(source: Source, wanted: Wanted) -> Stored:
    try:
        return Stored(open_with_pillow(source))
    except UnidentifiedImageError:
        content = content_of(source)
        frame = re.search(rb"\xff[\xc0-\xc3\xc9\xca\xcb]..([\x09-\x10])", content[: 1 << 16], re.DOTALL)
        if not frame:
            raise
        channels = {1: "L", 3: "RGB", 4: "CMYK"}.get(content[frame.end() + 4], "")
        return _by_imagecodecs("JPEG", content, frame[1][0], channels)


# What the installed package adds (see formats/); each returns None for a file that is not its own.
OTHER_READERS: list[Callable[[Source, Wanted], Stored | None]] = []
FORMATS: dict[str, tuple[Callable[[bytes], bool], Callable[[Source, Wanted], Stored]]] = {
    "NumPy": (lambda head: head.startswith(b"\x93NUMPY"), _read_npy),
    "TIFF": (lambda head: head.startswith(TIFF_MAGICS), read_tiff),
    "PNG": (lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), _read_png),
    "JPEG": (lambda head: head.startswith(b"\xff\xd8\xff"), _read_jpeg),
    "JPEG 2000": (lambda head: head.startswith(b"\xff\x4f\xff\x51") or head[4:8] == b"jP  ", _read_jpeg2000),
    "AVIF": (lambda head: head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"), _read_avif),
    "PGM, PPM, PFM": (lambda head: re.match(rb"P[2356Ff][\s#]", head) is not None, _read_pnm),
    "FITS": (lambda head: head.startswith(b"SIMPLE  ="), read_fits),
    "SGI": (lambda head: head.startswith(b"\x01\xda"), _read_sgi),
}
