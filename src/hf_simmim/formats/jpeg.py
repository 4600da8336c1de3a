"""Decoding of JPEG files at the scale of a crop, and resizing of what is decoded, by the fastest libraries there are.

`pillow` is the path of all other images and of the image processor: Pillow decodes and resizes. The others in
`DECODERS` crop before they resize, as torchvision does, and resize by torch where the CPU has AVX2. They give way to
Pillow for every file that they refuse or that is not plain gray or color, so a broken file raises the same error.
"""

# ADD A DECODER: a function, and a line in `DECODERS`, the fastest first. It must refuse every file that Pillow refuses:
# OpenCV does not, and is slower than simplejpeg.

import importlib
import importlib.util
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image

from ..model.image_readers import TURNS
from ..model.images import convert_channels

# What libjpeg reduces by at no cost; other fractions are slower than the whole image.
SCALES = (8, 4, 2, 1)
TORCH_MODES = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
# Without these torch's resizing of bytes is slower than Pillow's.
QUICK_CPUS = ("AVX2", "AVX512")


class Decoder(NamedTuple):
    """How JPEG files are decoded.

    Attributes:
        decode: Function of an image that Pillow has opened and not decoded, what its sides are divided by, and the mode
            L or RGB, to an array of shape (h, w) or (h, w, 3), not turned upright.
        library: Module that it needs.
        package: What installs the module.
    """

    decode: Callable[[Any, int, str], np.ndarray]
    library: str = "PIL"
    package: str = "pillow"


def _by_pillow(image: Any, scale: int, mode: str) -> np.ndarray:
    image.draft(image.mode, (image.width // scale, image.height // scale))
    return np.asarray(convert_channels(image, len(mode)))


def _by_simplejpeg(image: Any, scale: int, mode: str) -> np.ndarray:
    size = {"min_width": math.ceil(image.width / scale), "min_height": math.ceil(image.height / scale)}
    if scale == 1:
        size = {}
    # Strict by default: it refuses what libjpeg only warns about, and Pillow decides.
    decode = importlib.import_module("simplejpeg").decode_jpeg
    array = decode(_content(image), "GRAY" if mode == "L" else mode, **size)
    return array[..., 0] if mode == "L" else array


def _content(image: Any) -> bytes:
    image.fp.seek(0)
    return image.fp.read()


def decode_jpeg(image: Any, smallest: tuple[int, int], num_channels: int, decoder: str) -> np.ndarray | None:
    """Decode a JPEG file at the smallest of libjpeg's scales that has at least the wanted number of pixels.

    Args:
        image: Image that Pillow has opened and not decoded.
        smallest: (width, height) that it must have at least, as it is stored.
        num_channels: Channels C of the result.
        decoder: A name of `DECODERS`.

    Returns:
        Upright uint8 array of shape (h, w) or (h, w, 3); None if the file is not gray or color of that many channels,
        or was decoded before.

    Raises:
        OSError: As Pillow, if the file is broken.
    """
    is_plain = image.format in ("JPEG", "MPO") and (image.mode, num_channels) in (("RGB", 3), ("L", 3), ("L", 1))
    if not is_plain or not getattr(image, "tile", None) or image.fp is None:
        return None
    ratio = min(image.width // smallest[0], image.height // smallest[1])
    scale = next(scale for scale in SCALES if scale <= max(ratio, 1))
    mode, orientation = "L" if num_channels == 1 else "RGB", image.getexif().get(ExifTags.Base.Orientation, 1)
    decode = DECODERS[decoder].decode
    try:
        array = decode(image, scale, mode)
    except Exception:  # readers raise anything on a broken file
        if decode is _by_pillow:
            raise
        array = _by_pillow(image, scale, mode)
    turn = TURNS.get(orientation)
    return array if turn is None else np.asarray(Image.fromarray(array).transpose(turn))


def crop_array(
    array: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int], resample: int
) -> np.ndarray:
    """Crop an image at whole pixels, and resize it.

    Args:
        array: uint8 of shape (h, w) or (h, w, 3).
        box: (left, top, right, bottom) in pixels of the array.
        size: (height, width) of the result.
        resample: Pillow's resampling filter.

    Returns:
        uint8 of shape (height, width) or (height, width, 3), within one level of 255 the same by torch and by Pillow.
    """
    height, width = array.shape[:2]
    left, top = min(max(round(box[0]), 0), width - 1), min(max(round(box[1]), 0), height - 1)
    crop = array[top : max(round(box[3]), top + 1), left : max(round(box[2]), left + 1)]
    mode = TORCH_MODES.get(Image.Resampling(resample))
    if mode is None or crop.ndim == 2 or torch.backends.cpu.get_cpu_capability() not in QUICK_CPUS:
        resized = Image.fromarray(crop).resize((size[1], size[0]), Image.Resampling(resample), reducing_gap=3.0)
        return np.asarray(resized)
    # Copied: Pillow's memory is read-only, and torch warns about that.
    pixels = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(pixels, size, mode=mode, antialias=True)[0].permute(1, 2, 0).numpy()


def choose_decoder(name: str, before: str | None = None) -> str:
    """Choose the decoder of a run.

    Args:
        name: A name of `DECODERS`, or auto: the fastest one that is installed.
        before: That of the run that is resumed, which auto keeps.

    Returns:
        A name of `DECODERS`.

    Raises:
        ValueError: If it is unknown, not installed, or not that of the resumed run.
    """
    if name == "auto" and before is None:
        is_quick = torch.backends.cpu.get_cpu_capability() in QUICK_CPUS
        return next(found for found in DECODERS if is_installed(found) and (is_quick or found != "pillow-torch"))
    chosen = before if name == "auto" and before is not None else name
    if chosen not in DECODERS:
        raise ValueError(f"image_decoder={chosen!r} is unknown. Use one of: auto, {', '.join(DECODERS)}.")
    if before not in (None, chosen):
        raise ValueError(
            f"The run was started with image_decoder={before!r}, which gives other pixels than {chosen!r}. Set that or"
            " auto, or another --output_dir, or add --restart to delete that run and start again."
        )
    if not is_installed(chosen):
        started = " and is that of the run to resume" if before is not None else ""
        raise ValueError(f"image_decoder={chosen!r} is not installed{started}: pip install {DECODERS[chosen].package}.")
    return chosen


def is_installed(name: str) -> bool:
    """Whether a decoder of `DECODERS` can be used."""
    return importlib.util.find_spec(DECODERS[name].library) is not None


DECODERS: dict[str, Decoder] = {
    "simplejpeg": Decoder(_by_simplejpeg, "simplejpeg", "simplejpeg"),
    "pillow-torch": Decoder(_by_pillow),
    "pillow": Decoder(_by_pillow),
}
