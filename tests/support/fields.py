"""Small files of the formats of fields, for tests."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from hf_simmim.model.image_readers import Stored, Wanted
from hf_simmim.model.images import read_stored

ROWS, COLUMNS = np.mgrid[0:24, 0:32]
GRAY = (COLUMNS * 1900 + ROWS * 7).astype(np.uint16)
RGB = np.dstack([COLUMNS * 8, ROWS * 10, COLUMNS + ROWS]).astype(np.uint8)
DEEP = np.dstack([COLUMNS * 1800, ROWS * 2400, (COLUMNS + ROWS) * 1000]).astype(np.uint16)


def numbers(source, channels: int = 3, keeps_depth: bool = True) -> np.ndarray:
    """What is stored in a file, as an array."""
    return np.asarray(stored(source, channels, keeps_depth).image)


def stored(source, channels: int = 3, keeps_depth: bool = True) -> Stored:
    return read_stored(source if isinstance(source, bytes) else str(source), Wanted(channels, keeps_depth))


def noise(*shape: int, low: int = 0, high: int = 60_000, dtype=np.uint16) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


def write_nifti(path: Path, array: np.ndarray, spacing=(1.0, 1.0, 3.0), slope: float = 1, intercept: float = 0) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(array, np.diag([*spacing, 1.0]))
    image.header.set_zooms((*spacing, *[1.0] * (array.ndim - 3)))
    image.header.set_slope_inter(slope, intercept)
    nibabel.save(image, path)


def write_dicom(path: Path, array: np.ndarray, bits: int = 16, meaning: str = "MONOCHROME2", **elements) -> None:
    """A DICOM file of gray (H, W) or (frames, H, W), or of colors (H, W, 3)."""
    pydicom = pytest.importorskip("pydicom")
    uid = importlib.import_module("pydicom.uid")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = elements.pop("syntax", uid.ExplicitVRLittleEndian)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    dataset.SamplesPerPixel = 3 if array.shape[-1] == 3 else 1
    shape = array.shape[:-1] if dataset.SamplesPerPixel == 3 else array.shape
    if dataset.SamplesPerPixel == 3:
        dataset.PlanarConfiguration = 0
    if len(shape) == 3:
        dataset.NumberOfFrames = shape[0]
    dataset.Rows, dataset.Columns = shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = array.dtype.itemsize * 8, bits, bits - 1
    dataset.PixelRepresentation = int(array.dtype.kind == "i")
    dataset.PhotometricInterpretation = meaning
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.PixelData = np.ascontiguousarray(array).tobytes()
    dataset.save_as(path, enforce_file_format=True)


def without_library(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make an import of a library fail, as where it is not installed."""
    monkeypatch.setitem(importlib.import_module("sys").modules, name, None)
