"""Compares what is read of files of each format with the library of its field, and prints the table of docs/formats.md.

    python benchmarks/formats.py

Each file is made here, read at its own rescale factor, and compared number by number; of a file of many images, all of
them. Optional libraries are used where they are installed.
"""

import importlib.util
import io
import platform
import re
import struct
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import Image, features

from hf_simmim.data.reading import open_row
from hf_simmim.data.transforms import crop_and_resize, upright_size
from hf_simmim.formats.parts import expand
from hf_simmim.formats.slicing import Slicing
from hf_simmim.model.image_readers import Wanted
from hf_simmim.model.images import read_stored

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
LIBRARIES = (
    *("pillow", "tifffile", "numpy", "imagecodecs", "astropy", "pydicom", "python-gdcm", "nibabel", "h5py", "zarr"),
    *("pillow-heif", "OpenEXR", "rawpy"),
)
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


# Formats of fields: files of one image, or of many, that a library of the field writes.

SCAN = np.random.default_rng(0).integers(-900, 2000, (48, 64, 5)).astype(np.int16)
PLANES = np.random.default_rng(0).integers(0, 60_000, (3, 4, 2, 48, 64)).astype(np.uint16)
PHOTOS = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3)).astype(np.uint8)
FLOATS = (DEEP / 1000).astype(np.float32)


def library(name: str):
    return importlib.import_module(name)


def write_dicom(path: Path, array: np.ndarray, bits: int, meaning: str = "MONOCHROME2", **elements) -> None:
    pydicom, uid = library("pydicom"), library("pydicom.uid")
    dataset, meta = pydicom.Dataset(), pydicom.dataset.FileMetaDataset()
    dataset.file_meta, meta.TransferSyntaxUID = meta, uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    dataset.SamplesPerPixel = 3 if array.shape[-1] == 3 else 1
    if dataset.SamplesPerPixel == 3:
        dataset.PlanarConfiguration = 0
    elif array.ndim == 3:
        dataset.NumberOfFrames = len(array)
    dataset.Rows, dataset.Columns = array.shape[:2] if dataset.SamplesPerPixel == 3 else array.shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * array.dtype.itemsize, bits, bits - 1
    dataset.PixelRepresentation = int(array.dtype.kind == "i")
    dataset.PhotometricInterpretation = meaning
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.PixelData = array.tobytes()
    dataset.save_as(path, enforce_file_format=True)


def by_pydicom(path: Path) -> np.ndarray:
    dataset, pixels = library("pydicom").dcmread(path), library("pydicom.pixels")
    return pixels.apply_modality_lut(pixels.pixel_array(dataset), dataset)


def by_pydicom_shown(path: Path) -> np.ndarray:
    """12 bits as the window or table of the file shows them, as 0 to 255."""
    shown = library("pydicom.pixels").apply_voi_lut(by_pydicom(path), library("pydicom").dcmread(path))
    return np.rint(shown / 4095 * 255)


def write_nifti(path: Path, array: np.ndarray, side: float = 1.0) -> None:
    nibabel = library("nibabel")
    image = nibabel.Nifti1Image(array, np.diag([side, side, 3.0, 1.0]))
    image.header.set_slope_inter(0.5, -3)
    nibabel.save(image, path)


def by_nibabel(path: Path) -> np.ndarray:
    numbers = library("nibabel").load(path).get_fdata()
    return np.moveaxis(numbers.reshape(*numbers.shape[:2], -1, order="F"), -1, 0)


def by_nibabel_canonical(path: Path) -> np.ndarray:
    nibabel = library("nibabel")
    return np.moveaxis(nibabel.as_closest_canonical(nibabel.load(path)).get_fdata(), -1, 0)


def write_hdf5(path: Path, array: np.ndarray) -> None:
    with library("h5py").File(path, "w") as file:
        file["images"] = array


def write_zarr(path: Path, array: np.ndarray) -> None:
    library("zarr").save_array(path, array)


def write_heif(path: Path, array: np.ndarray, bits: int) -> None:
    heif = library("pillow_heif")
    heif.options.SAVE_HDR_TO_12_BIT = bits == 12
    mode = "RGB" if bits == 8 else "RGB;16"
    shifted = array if bits == 8 else array << (16 - bits)
    image = heif.from_bytes(mode, array.shape[1::-1], np.ascontiguousarray(shifted).tobytes())
    image.save(path, quality=-1, chroma=444, matrix_coefficients=0)


def write_exr(path: Path, **channels: np.ndarray) -> None:
    exr = library("OpenEXR")
    exr.File({"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}, channels).write(str(path))


def write_dng(path: Path) -> None:
    sensor = np.tile(((COLUMNS * 500 + ROWS * 300) % 60_000).astype(np.uint16), (4, 4))
    tags = [
        *((33421, "H", 2, (2, 2), True), (33422, "B", 4, (0, 1, 1, 2), True), (50706, "B", 4, (1, 4, 0, 0), True)),
        *((50717, "I", 1, 65535, True), (50728, "2I", 3, (1, 1, 1, 1, 1, 1), True)),
        (50721, "2i", 9, (1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1), True),
    ]
    tifffile.imwrite(path, sensor, photometric=32803, extratags=tags, metadata=None, subfiletype=0)


def by_rawpy(path: Path) -> np.ndarray:
    with library("rawpy").imread(str(path)) as raw:
        return raw.postprocess(output_bps=16)


class Field(NamedTuple):
    """A file of a field's format.

    Attributes:
        name: Name of the row.
        file: Name of the file.
        write: Writes it; an ImportError says that the library is missing.
        reader: Library that reads it.
        other: What its numbers are compared with.
        read_other: Reads them, as an array of one image or more.
        channels: Channels.
        slicing: How it is cut.
    """

    name: str
    file: str
    write: Callable[[Path], object]
    reader: str
    other: str
    read_other: Callable[[Path], np.ndarray]
    channels: int = 1
    slicing: Slicing = Slicing()


AXES = {"axes": "TZCYX"}
STACK = PLANES.reshape(12, 2, 48, 64)
SLICES, NEIGHBORS = Slicing(stacks="slices"), Slicing(slice_neighbors=1)
TWELVE = GRAY >> 4
WRITTEN = "the numbers written"
FIELDS = [
    Field(
        "DICOM, CT, 16 bits signed",
        "a.dcm",
        lambda path: write_dicom(path, SCAN[..., 0], 16, RescaleSlope=1, RescaleIntercept=-24),
        "pydicom",
        "pydicom",
        by_pydicom,
    ),
    Field("DICOM, 12 bits", "a.dcm", lambda path: write_dicom(path, TWELVE, 12), "pydicom", "pydicom", by_pydicom),
    Field(
        "DICOM, white is zero, 12 bits",
        "a.dcm",
        lambda path: write_dicom(path, TWELVE, 12, "MONOCHROME1"),
        "pydicom",
        "4095 - pydicom",
        lambda path: 4095 - by_pydicom(path),
    ),
    Field(
        "DICOM, by its own window",
        "a.dcm",
        lambda path: write_dicom(path, TWELVE, 12, WindowCenter=2000, WindowWidth=1500),
        "pydicom",
        "pydicom",
        by_pydicom_shown,
        1,
        Slicing(gray_window="file"),
    ),
    Field("DICOM, RGB", "a.dcm", lambda path: write_dicom(path, RGB, 8, "RGB"), "pydicom", "pydicom", by_pydicom, 3),
    Field(
        "DICOM, 4 frames",
        "a.dcm",
        lambda path: write_dicom(path, PLANES[0, :, 0], 16),
        "pydicom",
        "pydicom",
        by_pydicom,
    ),
    Field("DICOM, no pixels", "a.dcm", lambda path: path.write_bytes(b"\0" * 128 + b"DICM"), "pydicom", "", by_pydicom),
    Field("NIfTI, scaled", "a.nii", lambda path: write_nifti(path, SCAN), "nibabel", "nibabel", by_nibabel),
    Field("NIfTI, compressed", "a.nii.gz", lambda path: write_nifti(path, SCAN), "nibabel", "nibabel", by_nibabel),
    Field(
        "NIfTI, turned from LPS to RAS",
        "a.nii",
        lambda path: write_nifti(path, SCAN, -1.0),
        "nibabel",
        "nibabel",
        by_nibabel_canonical,
        1,
        Slicing(orientation="RAS"),
    ),
    Field(
        "NIfTI, 3 times",
        "a.nii",
        lambda path: write_nifti(path, np.stack([SCAN, SCAN + 7, SCAN + 9], -1)),
        "nibabel",
        "nibabel",
        by_nibabel,
    ),
    Field(
        "NIfTI, slices with neighbors",
        "a.nii",
        lambda path: write_nifti(path, SCAN),
        "nibabel",
        "nibabel",
        lambda path: by_nibabel(path)[np.clip(np.arange(5)[:, None] + [-1, 0, 1], 0, 4)],
        3,
        NEIGHBORS,
    ),
    Field(
        "NIfTI, vectors",
        "a.nii",
        lambda path: write_nifti(path, np.zeros((8, 8, 4, 1, 3), np.int16)),
        "nibabel",
        "",
        by_nibabel,
    ),
    Field(
        "OME-TIFF, T, Z and C",
        "a.ome.tif",
        lambda path: tifffile.imwrite(path, PLANES, metadata=AXES),
        "tifffile",
        WRITTEN,
        lambda path: STACK,
        2,
        SLICES,
    ),
    Field(
        "ImageJ, T, Z and C",
        "a.tif",
        lambda path: tifffile.imwrite(path, PLANES, imagej=True, metadata=AXES),
        "tifffile",
        WRITTEN,
        lambda path: STACK,
        2,
        SLICES,
    ),
    Field(
        "TIFF, pages without axes",
        "a.tif",
        lambda path: tifffile.imwrite(path, PLANES[0, :, 0], photometric="minisblack"),
        "tifffile",
        "",
        tifffile.imread,
        1,
        SLICES,
    ),
    Field(
        "TIFF, pages named Z",
        "a.tif",
        lambda path: tifffile.imwrite(path, PLANES[0, :, 0], photometric="minisblack"),
        "tifffile",
        WRITTEN,
        lambda path: PLANES[0, :, 0],
        1,
        Slicing(stacks="Z"),
    ),
    Field(
        "HDF5, images in rows", "a.h5", lambda path: write_hdf5(path, PHOTOS), "h5py", WRITTEN, lambda path: PHOTOS, 3
    ),
    Field("HDF5, axes unclear", "a.h5", lambda path: write_hdf5(path, PHOTOS[0]), "h5py", "", lambda path: PHOTOS, 3),
    Field(
        "zarr, images in rows", "a.zarr", lambda path: write_zarr(path, PHOTOS), "zarr", WRITTEN, lambda path: PHOTOS, 3
    ),
    Field("HEIC, 8 bits", "a.heic", lambda path: write_heif(path, RGB, 8), "pillow-heif", WRITTEN, lambda path: RGB, 3),
    Field(
        "HEIC, 10 bits",
        "a.heic",
        lambda path: write_heif(path, DEEP >> 6, 10),
        "pillow-heif",
        WRITTEN,
        lambda path: DEEP >> 6,
        3,
    ),
    Field(
        "JPEG XL, 12 bits",
        "a.jxl",
        lambda path: path.write_bytes(library("imagecodecs").jpegxl_encode(DEEP >> 4, lossless=True, bitspersample=12)),
        "imagecodecs",
        WRITTEN,
        lambda path: DEEP >> 4,
        3,
    ),
    Field(
        "JPEG-LS, 16 bits",
        "a.jls",
        lambda path: path.write_bytes(library("imagecodecs").jpegls_encode(GRAY)),
        "imagecodecs",
        WRITTEN,
        lambda path: GRAY,
    ),
    Field(
        "JPEG XR, 16 bits",
        "a.jxr",
        lambda path: path.write_bytes(library("imagecodecs").jpegxr_encode(DEEP, level=1.0)),
        "imagecodecs",
        WRITTEN,
        lambda path: DEEP,
        3,
    ),
    Field(
        "OpenEXR, float32",
        "a.exr",
        lambda path: write_exr(path, RGB=FLOATS),
        "OpenEXR",
        WRITTEN,
        lambda path: FLOATS,
        3,
    ),
    Field(
        "OpenEXR, transparent",
        "a.exr",
        lambda path: write_exr(path, RGBA=np.dstack([FLOATS, FLOATS[..., 0]])),
        "OpenEXR",
        "",
        lambda path: FLOATS,
        3,
    ),
    Field("camera raw (DNG)", "a.dng", write_dng, "rawpy", "rawpy, its defaults, 16 bits", by_rawpy, 3),
]


def field_row(folder: Path, field: Field) -> str:
    """One line of the table, of all images of a file."""
    start = f"| {field.name} | {field.reader} | {field.other or '-'} |"
    path = folder / field.name / field.file
    path.parent.mkdir()
    try:
        field.write(path)
    except ImportError as error:
        return f"{start} not compared: {error} |"
    try:
        ours = [read(Path(address), field.channels, 1.0) for address in expand([str(path)], field.slicing)]
    except ValueError as error:
        return f"{start} refused: {error} |"
    theirs = np.asarray(field.read_other(path), np.float64)
    if len(ours) == 1:
        theirs = theirs[None]
    if theirs.ndim == 4 and theirs.shape[1] == field.channels:
        theirs = np.moveaxis(theirs, 1, -1)
    return f"{start} {np.abs(np.stack(ours).astype(np.float64).reshape(theirs.shape) - theirs).max():g} |"


def files_of_pydicom() -> str:
    """What becomes of the files that pydicom carries for its own tests."""
    if not has("pydicom"):
        return "pydicom is not installed."
    warnings.simplefilter("ignore")
    pixels = library("pydicom.pixels")
    same, reasons = 0, Counter[str]()
    for path in sorted((Path(library("pydicom").__file__).parent / "data" / "test_files").glob("*.dcm")):
        try:
            stored = read_stored(expand([str(path)])[0], Wanted(3, True))
        except ValueError as error:
            reasons[re.sub(r"[(;:.].*", "", str(error)).strip()] += 1
            continue
        dataset = library("pydicom").dcmread(path)
        numbers = pixels.pixel_array(dataset, index=0)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            numbers = pixels.apply_color_lut(numbers, dataset)
        else:
            numbers = pixels.apply_modality_lut(numbers, dataset) * float(dataset.get("DoseGridScaling", 1))
        ours = np.asarray(stored.image, np.float64)
        difference = np.abs(ours - (numbers * stored.scale + stored.offset))
        same += bool(np.nanmax(difference) <= 1e-6 * max(1.0, float(np.abs(numbers).max())))
    total = same + sum(reasons.values())
    refused = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    return f"Of pydicom's own {total} files {same} are read with its numbers. Refused: {refused}."


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
        for field in FIELDS:
            print(field_row(Path(folder), field))
    libraries = ", ".join(installed(name) for name in LIBRARIES)
    print(f"\n{files_of_pydicom()}")
    print(f"\nPython {sys.version.split()[0]}, {platform.machine()}, {libraries}.")


if __name__ == "__main__":
    main()
