"""Compares what is read of files of each format with the library of its field, and prints the table of docs/formats.md.

    python benchmarks/formats.py

Each file is made here, read at its own rescale factor, and compared number by number. Optional libraries (imagecodecs,
astropy) are used where they are installed.
"""

import importlib.util
import io
import platform
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, features

from hf_simmim.data.reading import open_row
from hf_simmim.data.transforms import crop_and_resize, upright_size

ROWS, COLUMNS = np.mgrid[0:48, 0:64]
GRAY = (COLUMNS * 1000 + ROWS * 7).astype(np.uint16)
RGB = np.dstack([COLUMNS * 4, ROWS * 5, COLUMNS + ROWS]).astype(np.uint8)
DEEP = np.dstack([COLUMNS * 900, ROWS * 1200, (COLUMNS + ROWS) * 500]).astype(np.uint16)


def has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def read(path: Path, channels: int, factor: float) -> np.ndarray:
    """The numbers (H, W, C) that a training sees, before they are rescaled."""
    image = open_row({"image": {"bytes": None, "path": str(path)}}, channels, factor)
    height, width = upright_size(image)
    return crop_and_resize(image, (0, 0, width, height), (height, width), channels)


def by_pillow(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def by_tifffile(path: Path) -> np.ndarray:
    return tifffile.imread(path)


def by_imagecodecs(path: Path) -> np.ndarray:
    return importlib.import_module("imagecodecs").imread(path)


def by_astropy(path: Path) -> np.ndarray:
    return importlib.import_module("astropy.io.fits").getdata(path)[::-1]


def png(array: np.ndarray) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, 2 if array.ndim == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def fits(array: np.ndarray, *cards: str) -> bytes:
    bits = {"u1": 8, "i2": 16, "f4": -32}[array.dtype.str[1:]]
    sizes = [f"NAXIS{index + 1}  = {size:20d}" for index, size in enumerate(array.shape[::-1])]
    lines = [
        "SIMPLE  =                    T",
        f"BITPIX  = {bits:20d}",
        f"NAXIS   = {array.ndim:20d}",
        *sizes,
        *cards,
        "END",
    ]
    data = array.astype(array.dtype.newbyteorder(">")).tobytes()
    return "".join(line.ljust(80) for line in lines).ljust(2880).encode() + data.ljust(
        -(-len(data) // 2880) * 2880, b"\0"
    )


def saved(array: np.ndarray, suffix: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, suffix, **options)
    return file.getvalue()


def tiff(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def encoded(name: str, array: np.ndarray, **options) -> bytes | None:
    if not has("imagecodecs"):
        return None
    return getattr(importlib.import_module("imagecodecs"), f"{name}_encode")(array, **options)


def inverted(path: Path) -> np.ndarray:
    return 65535 - tifffile.imread(path)


BY = {"Pillow": by_pillow, "tifffile": by_tifffile, "imagecodecs": by_imagecodecs, "astropy": by_astropy}
# Format, suffix, content (None where nothing here writes it), channels, factor, who reads it, and what with.
FILES: list[tuple[str, str, bytes | None, int, float, str, str, Callable | None]] = [
    ("JPEG, 8 bits", "jpg", saved(RGB, "JPEG"), 3, 1 / 255, "Pillow", "Pillow", None),
    ("PNG, 8 bits", "png", saved(RGB, "PNG"), 3, 1 / 255, "Pillow", "Pillow", None),
    ("PNG, gray, 16 bits", "png", png(GRAY), 1, 1 / 65535, "Pillow", "imagecodecs", None),
    ("PNG, RGB, 16 bits", "png", png(DEEP), 3, 1 / 65535, "Pillow, both bytes", "imagecodecs", None),
    ("WebP, 8 bits", "webp", saved(RGB, "WEBP", lossless=True), 3, 1 / 255, "Pillow", "imagecodecs", None),
    ("BMP, 8 bits", "bmp", saved(RGB, "BMP"), 3, 1 / 255, "Pillow", "imagecodecs", None),
    (
        "PGM, 12 bits",
        "pgm",
        b"P5 64 48 4095\n" + (GRAY >> 4).astype(">u2").tobytes(),
        1,
        1 / 4095,
        "own",
        "the numbers written",
        lambda path: GRAY >> 4,
    ),
    (
        "PPM, 16 bits",
        "ppm",
        b"P6 64 48 65535\n" + DEEP.astype(">u2").tobytes(),
        3,
        1 / 65535,
        "own",
        "the numbers written",
        lambda path: DEEP,
    ),
    ("TIFF, RGB, 8 bits", "tif", tiff(RGB, photometric="rgb"), 3, 1 / 255, "Pillow", "tifffile", None),
    ("TIFF, RGB, 16 bits", "tif", tiff(DEEP, photometric="rgb"), 3, 1 / 65535, "tifffile", "tifffile", None),
    ("TIFF, gray, 16 bits", "tif", tiff(GRAY), 1, 1 / 65535, "Pillow", "tifffile", None),
    (
        "TIFF, white is zero",
        "tif",
        tiff(GRAY, photometric="miniswhite"),
        1,
        1 / 65535,
        "tifffile",
        "65535 - tifffile",
        inverted,
    ),
    ("TIFF, signed, 16 bits", "tif", tiff(GRAY.view(np.int16)), 1, 1.0, "Pillow", "tifffile", None),
    ("TIFF, float32", "tif", tiff(GRAY.astype(np.float32) / 7), 1, 1.0, "Pillow", "tifffile", None),
    (
        "TIFF, 13 bands",
        "tif",
        tiff(np.dstack([GRAY] * 13), photometric="minisblack", planarconfig="contig"),
        13,
        1.0,
        "tifffile",
        "tifffile",
        None,
    ),
    ("FITS, 8 bits", "fits", fits(RGB[..., 0]), 1, 1 / 255, "own", "astropy", None),
    ("FITS, signed, 16 bits", "fits", fits(GRAY.view(np.int16)), 1, 1.0, "own", "astropy", None),
    (
        "FITS, unsigned, 16 bits",
        "fits",
        fits((GRAY.astype(int) - 32768).astype(np.int16), "BZERO   = 32768"),
        1,
        1 / 65535,
        "own",
        "astropy",
        None,
    ),
    ("FITS, float32", "fits", fits(GRAY.astype(np.float32) / 7), 1, 1.0, "own", "astropy", None),
    ("JPEG 2000, gray, 16 bits", "jp2", saved(GRAY, "JPEG2000"), 1, 1 / 65535, "Pillow", "imagecodecs", None),
    (
        "JPEG 2000, RGB, 16 bits",
        "jp2",
        encoded("jpeg2k", DEEP, level=0),
        3,
        1 / 65535,
        "imagecodecs",
        "imagecodecs",
        None,
    ),
    ("JPEG 2000, RGB, 8 bits", "jp2", saved(RGB, "JPEG2000"), 3, 1 / 255, "Pillow", "imagecodecs", None),
    (
        "AVIF, 8 bits",
        "avif",
        saved(RGB, "AVIF") if features.check("avif") else None,
        3,
        1 / 255,
        "Pillow",
        "Pillow",
        None,
    ),
    (
        "AVIF, 12 bits",
        "avif",
        encoded("avif", DEEP >> 4, bitspersample=12),
        3,
        1 / 4095,
        "imagecodecs",
        "imagecodecs",
        None,
    ),
    (
        "JPEG, gray, 12 bits",
        "jpg",
        encoded("jpeg8", GRAY >> 4, bitspersample=12, level=95),
        1,
        1 / 4095,
        "imagecodecs",
        "imagecodecs",
        None,
    ),
]


def row(
    folder: Path,
    name: str,
    suffix: str,
    content: bytes | None,
    channels: int,
    factor: float,
    reader: str,
    other: str,
    read_other: Callable | None,
) -> str:
    """One line of the table."""
    library = other.rpartition(" ")[2]
    if content is None:
        return f"| {name} | {reader} | {other} | not compared: nothing here writes it |"
    path = folder / f"file.{suffix}"
    path.write_bytes(content)
    try:
        ours = read(path, channels, factor).squeeze().astype(np.float64)
    except ValueError as error:
        return f"| {name} | {reader} | {other} | refused: {error} |"
    if library in ("astropy", "imagecodecs") and not has(library):
        return f"| {name} | {reader} | {other} | not compared: {library} is not installed |"
    theirs = np.asarray((read_other or BY[library])(path)).squeeze().astype(np.float64)
    return f"| {name} | {reader} | {other} | {np.abs(ours - theirs).max():g} |"


def installed(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"


def main() -> None:
    print("| format | read by | compared with | largest difference |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for file in FILES:
            print(row(Path(folder), *file))
    libraries = ", ".join(installed(name) for name in ("pillow", "tifffile", "numpy", "imagecodecs", "astropy"))
    print(f"\nPython {sys.version.split()[0]}, {platform.machine()}, {libraries}.")


if __name__ == "__main__":
    main()
