"""The table of formats: what recognizes a file, and what is said where a library is missing."""

import re
import tomllib

import numpy as np
import pytest
from fields import RGB, without_library
from paths import ROOT
from PIL import Image

from hf_simmim.data.sources import image_suffixes
from hf_simmim.formats import readers
from hf_simmim.formats.readers import FORMATS, format_inside, format_of, read_other, unread_because
from hf_simmim.model import images
from hf_simmim.model.image_readers import EXTRAS, Wanted

WANTED = Wanted(3, True)
BEGINNINGS = {
    "DICOM": b"\0" * 128 + b"DICM",
    "NIfTI": b"\x5c\1\0\0" + b"\0" * 340 + b"n+1\0",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "HEIF": b"\0\0\0\x18ftypheic",
    "JPEG XL": b"\xff\x0a",
    "JPEG-LS": b"\xff\xd8\xff\xf7\0\x0b\x08\0\1\0\1\1",
    "JPEG XR": b"II\xbc\1",
    "OpenEXR": b"v/1\1",
    "Raw camera, by content": b"FUJIFILMCCD-RAW",
}


def test_every_format_has_an_extra_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].keys()
    assert {one.extra for one in FORMATS} <= extras
    suffixes = {suffix: one.extra for one in FORMATS for suffix in one.suffixes}
    # What files that travel with a checkpoint say does not contradict the table.
    assert all(suffixes[suffix] == extra for extra in EXTRAS for suffix in EXTRAS[extra].split())


@pytest.mark.parametrize("name", BEGINNINGS)
def test_files_are_known_by_their_content(name, tmp_path):
    (one,) = (one for one in FORMATS if one.name == name)
    content = BEGINNINGS[name].ljust(400, b"\0")
    assert [other.name for other in FORMATS if other.matches is not None and other.matches(content[:352])] == [name]
    path = tmp_path / "no_suffix"
    path.write_bytes(content)
    assert format_inside(str(path)) is one


@pytest.mark.parametrize("one", [one for one in FORMATS if one.library != "tifffile"], ids=lambda one: one.name)
def test_a_missing_library_is_named_with_its_extra(one, tmp_path, monkeypatch):
    without_library(monkeypatch, one.library)
    if one.library == "pydicom":
        without_library(monkeypatch, "pydicom.pixels")
    readers._is_installed.cache_clear()
    path = tmp_path / f"a{one.suffixes[0] if one.suffixes else '.x'}"
    path.write_bytes(BEGINNINGS.get(one.name, b"").ljust(400, b"\0"))
    if one.name == "Zarr":
        path.unlink()
        path.mkdir()
    with pytest.raises(ValueError, match=re.escape(f'pip install "hf-simmim[{one.extra}]"')):
        images.read_stored(str(path), WANTED)
    if one.suffixes:
        assert unread_because(str(path)) == f'pip install "hf-simmim[{one.extra}]"'
    readers._is_installed.cache_clear()


def test_content_counts_more_than_a_name(tmp_path):
    picture = Image.fromarray(RGB)
    for name in ("a.dcm", "a.heic", "a.h5", "a.nii"):
        picture.save(tmp_path / name, "PNG")
        np.testing.assert_array_equal(images.read_stored(str(tmp_path / name), WANTED).image, RGB)


def test_plain_formats_are_not_opened_twice(tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / "a.jpg")
    monkeypatch.setattr(readers, "opened", lambda source: pytest.fail("opened"))
    for name in ("a.jpg", "a.png", "a.npy", "a.tif", "no_suffix"):
        assert read_other(str(tmp_path / name), WANTED) is None
    assert read_other(b"\xff\xd8\xff", WANTED) is None


def test_names_and_addresses(tmp_path):
    assert format_of("/a/scan.NII.GZ").name == "NIfTI, compressed"
    assert format_of("/a/notes.gz") is None
    assert format_of("/a/x.zarr.zip").name == "Zarr"
    assert format_of("/a/x.zip") is None
    assert {".dcm", ".nii", ".h5", ".heic", ".jxl", ".exr", ".nef", ".svs"} <= image_suffixes()
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="names a part of a file that has none"):
        images.read_stored(f"{tmp_path / 'a.png'}::slice=1", WANTED)
