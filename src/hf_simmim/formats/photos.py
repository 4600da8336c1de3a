"""Photos and rendered images: HEIF, JPEG XL, JPEG-LS, JPEG XR, OpenEXR, and raw files of cameras."""

import io
import os
import tempfile
from collections.abc import Mapping

import numpy as np
from PIL import Image

from ..model.image_readers import Source, Stored, Wanted, check_size, content_of
from .library import library

HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
KINDS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def is_heif(head: bytes) -> bool:
    """Whether a file is HEIF; AVIF is not."""
    return head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS


def is_jpeg_xl(head: bytes) -> bool:
    """Whether a file is JPEG XL, bare or in a container."""
    return head[:2] == b"\xff\x0a" or head[:12] == b"\0\0\0\x0cJXL \r\n\x87\n"


def _jpeg_ls_frame(content: bytes) -> int:
    """Where the frame header of JPEG-LS begins; -1 if there is another one, or none."""
    place = 2
    while content[:2] == b"\xff\xd8" and len(content) > place + 4 and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xF7:
            return place
        # Segments of applications, comments and parameters may come before it.
        if not (0xE0 <= marker <= 0xEF or marker in (0xF8, 0xFE)):
            return -1
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return -1


def is_jpeg_ls(head: bytes) -> bool:
    """Whether a file is JPEG-LS."""
    return _jpeg_ls_frame(head) > 0


def is_jpeg_xr(head: bytes) -> bool:
    """Whether a file is JPEG XR."""
    return head[:4] in (b"II\xbc\x01", b"II\xbc\x00")


def is_exr(head: bytes) -> bool:
    """Whether a file is OpenEXR."""
    return head[:4] == b"v/1\x01"


def is_raw(head: bytes) -> bool:
    """Whether a file is raw and says so at its beginning; others are known by their names alone."""
    return (
        head[:4] in (b"IIU\0", b"IIRO", b"IIRS", b"MMOR")
        or head[8:10] == b"CR"
        or head[4:12] == b"ftypcrx "
        or head[:15] == b"FUJIFILMCCD-RAW"
    )


def _stored(array: np.ndarray, bits: int) -> Stored:
    """Numbers (H, W) or (H, W, C) of 8 to 16 bits as a picture; all else as numbers."""
    array = array[..., 0] if array.shape[2:] == (1,) else array
    kind = KINDS.get(array.shape[2] if array.ndim == 3 else 1, "")
    if array.dtype == np.uint8 and kind:
        return Stored(Image.fromarray(np.ascontiguousarray(array)))
    if array.dtype == np.uint16 and kind:
        return Stored(array, None, 2**bits - 1, kind)
    return Stored(array.astype(np.float32) if array.dtype == np.float16 else array)


def read_heif(source: Source, part: Mapping[str, str], wanted: Wanted) -> Stored:
    """Read the main image, upright, with all of its 8, 10 or 12 bits.

    Args:
        source: Path, or content of the file.
        part: Empty.
        wanted: What it is read for.

    Returns:
        The picture.

    Raises:
        ValueError: If it cannot be read.
    """
    heif = library("pillow_heif", "photos", "HEIF")
    try:
        file = heif.open_heif(source if isinstance(source, bytes) else os.fspath(source), convert_hdr_to_8bit=False)
        image = file[file.primary_index]
        bits = int(image.info.get("bit_depth", 8))
    except (RuntimeError, ValueError, SyntaxError, EOFError) as error:
        raise ValueError(f"The HEIF file cannot be read ({' '.join(str(error).split())}). Replace it.") from error
    check_size(image.size[1], image.size[0], 4)
    try:
        array = np.asarray(image)
    except (RuntimeError, ValueError, SyntaxError, EOFError) as error:
        raise ValueError(f"The HEIF file cannot be read ({' '.join(str(error).split())}). Replace it.") from error
    if array.dtype == np.uint16 and 8 < bits < 16:
        # They are handed out as 16 bits.
        array = array >> (16 - bits)
    return _stored(array, bits)


def _decoded(name: str, codec: str, source: Source) -> np.ndarray:
    codecs = library("imagecodecs", "photos", name)
    try:
        return getattr(codecs, f"{codec}_decode")(content_of(source))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"The {name} file cannot be read ({' '.join(str(error).split())}). Replace it.") from error


class _Bits:
    """Numbers of the header of a JPEG XL code stream, lowest bits first (ISO/IEC 18181-1, 9 and D)."""

    def __init__(self, content: bytes):
        self.number = int.from_bytes(content, "little")

    def take(self, count: int) -> int:
        value = self.number & ((1 << count) - 1)
        self.number >>= count
        return value

    def choose(self, *choices: tuple[int, int]) -> int:
        start, count = choices[self.take(2)]
        return start + self.take(count)

    def side(self, is_small: int) -> int:
        return self.take(5) if is_small else self.choose((1, 9), (1, 13), (1, 18), (1, 30))

    def size(self) -> None:
        is_small = self.take(1)
        self.side(is_small)
        if self.take(3) == 0:
            self.side(is_small)


def _jpeg_xl_bits(content: bytes) -> int:
    """Bits of each number that the header names."""
    start = 0
    if content[:2] != b"\xff\x0a":
        places = {name: content.find(name) for name in (b"jxlc", b"jxlp")}
        start = places[b"jxlc"] + 4 if places[b"jxlc"] > 0 else places[b"jxlp"] + 8
    bits = _Bits(content[start + 2 : start + 66])
    bits.size()
    if bits.take(1):
        return 8
    if bits.take(1):
        bits.take(3)
        if bits.take(1):
            bits.size()
        if bits.take(1) or bits.take(1):
            raise ValueError("The JPEG XL file is animated or holds a preview. Save each image by itself.")
    is_float = bits.take(1)
    return 32 if is_float else bits.choose((8, 0), (10, 0), (12, 0), (1, 6))


def read_jpeg_xl(source: Source, part: Mapping[str, str], wanted: Wanted) -> Stored:
    """Read an image, upright.

    Args:
        source: Path, or content of the file.
        part: Empty.
        wanted: What it is read for.

    Returns:
        The picture, or floats as numbers.

    Raises:
        ValueError: If it cannot be read, or is animated.
    """
    content = content_of(source)
    bits = _jpeg_xl_bits(content)
    array = _decoded("JPEG XL", "jpegxl", content)
    if array.ndim > 3 or (array.ndim == 3 and array.shape[-1] > max(KINDS)):
        raise ValueError(f"The JPEG XL file holds frames or channels of shape {array.shape}. Save each as an image.")
    return _stored(array, bits)


def read_jpeg_ls(source: Source, part: Mapping[str, str], wanted: Wanted) -> Stored:
    """Read an image of up to 16 bits.

    Args:
        source: Path, or content of the file.
        part: Empty.
        wanted: What it is read for.

    Returns:
        The picture.

    Raises:
        ValueError: If it cannot be read.
    """
    content = content_of(source)
    bits = content[_jpeg_ls_frame(content) + 4]
    return _stored(_decoded("JPEG-LS", "jpegls", content), bits)


def read_jpeg_xr(source: Source, part: Mapping[str, str], wanted: Wanted) -> Stored:
    """Read an image of 8 or 16 bits, or of floats.

    Args:
        source: Path, or content of the file.
        part: Empty.
        wanted: What it is read for.

    Returns:
        The picture, or floats as numbers.

    Raises:
        ValueError: If it cannot be read.
    """
    return _stored(_decoded("JPEG XR", "jpegxr", source), 16)


def read_exr(source: Source, part: Mapping[str, str], wanted: Wanted) -> Stored:
    """Read the first part of an image: gray, RGB, RGBA, or its channels in alphabetical order.

    Args:
        source: Path, or content of the file.
        part: Empty.
        wanted: What it is read for.

    Returns:
        Its numbers, linear as they are stored, (H, W), (H, W, C) of colors or (C, H, W) of other channels.

    Raises:
        ValueError: If it cannot be read, or transparency would be lost.
    """
    exr = library("OpenEXR", "photos", "OpenEXR")
    if isinstance(source, bytes):
        # The library reads files alone.
        with tempfile.NamedTemporaryFile(suffix=".exr") as file:
            file.write(source)
            file.flush()
            return read_exr(file.name, part, wanted)
    try:
        with exr.File(os.fspath(source), separate_channels=True) as file:
            window = file.header()["dataWindow"]
            width, height = (int(high) - int(low) + 1 for low, high in zip(*window, strict=True))
            found = {name: np.array(channel.pixels) for name, channel in file.channels().items()}
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"The OpenEXR file cannot be read ({' '.join(str(error).split())}). Replace it.") from error
    check_size(height, width, len(found))
    shapes = {name: channel.shape for name, channel in found.items()}
    if set(shapes.values()) != {(height, width)}:
        raise ValueError(f"The OpenEXR file holds channels of several sizes ({shapes}). Save it as RGB.")
    alpha = found.get("A")
    if alpha is not None and wanted.num_channels in (1, 3) and len(found) > wanted.num_channels:
        if not (alpha == 1).all():
            raise ValueError(
                "The OpenEXR file is transparent in places, and what lies behind is unknown. Lay it on a background,"
                f" or set {len(found)} channels."
            )
        del found["A"]
    colors = [name for name in "RGBA" if name in found]
    names = colors if len(colors) == len(found) else sorted(found)
    array = np.stack([found[name].astype(np.float32) for name in names], axis=-1 if names == colors else 0)
    return Stored(np.squeeze(array, -1 if names == colors else 0) if len(names) == 1 else array)


def read_raw(source: Source, part: Mapping[str, str], wanted: Wanted) -> Stored:
    """Develop a raw file of a camera with the defaults of rawpy: sRGB, white balance of daylight, automatic brightness.

    Args:
        source: Path, or content of the file.
        part: Empty.
        wanted: What it is read for.

    Returns:
        RGB of 16 bits if depth is kept, else of 8.

    Raises:
        ValueError: If it cannot be read.
    """
    rawpy = library("rawpy", "photos", "Raw camera")
    try:
        with rawpy.imread(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)) as raw:
            check_size(raw.sizes.height, raw.sizes.width, 3)
            return _stored(raw.postprocess(output_bps=16 if wanted.keeps_depth else 8), 16)
    except rawpy.LibRawError as error:
        reason = error.args[0] if error.args else error
        reason = reason.decode(errors="replace") if isinstance(reason, bytes) else reason
        raise ValueError(f"The raw camera file cannot be read ({reason}). Replace it, or convert it to DNG.") from error
