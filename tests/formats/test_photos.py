"""Photos and rendered images against the numbers written, and against the libraries of their fields."""

import io

import numpy as np
import pytest
import tifffile
from fields import COLUMNS, DEEP, GRAY, RGB, ROWS, numbers, stored

from hf_simmim.data.reading import open_row


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_heif_keeps_its_bits(tmp_path, bits, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    monkeypatch.setattr(heif.options, "SAVE_HDR_TO_12_BIT", bits == 12)
    array = RGB if bits == 8 else DEEP >> (16 - bits)
    mode, content = ("RGB", array) if bits == 8 else ("RGB;16", (array << (16 - bits)).astype(np.uint16))
    image = heif.from_bytes(mode, (32, 24), content.tobytes())
    # A photo of a phone, whatever its name.
    image.save(tmp_path / "photo.heic", quality=-1, chroma=444, matrix_coefficients=0)
    (tmp_path / "photo.jpg").write_bytes((tmp_path / "photo.heic").read_bytes())
    for name in ("photo.heic", "photo.jpg"):
        found = stored(tmp_path / name)
        assert (found.kind, found.largest) == (("", 0) if bits == 8 else ("RGB", 2**bits - 1))
        np.testing.assert_array_equal(found.image, array)
    opened = open_row({"image": {"bytes": None, "path": str(tmp_path / "photo.heic")}}, 3, 1 / 255)
    np.testing.assert_array_equal(opened, array if bits == 8 else array >> (bits - 8))
    (tmp_path / "photo.heic").write_bytes((tmp_path / "photo.heic").read_bytes()[:300])
    with pytest.raises(ValueError, match="The HEIF file cannot be read"):
        stored(tmp_path / "photo.heic")


@pytest.mark.parametrize(("bits", "boxed"), [(8, False), (10, False), (10, True), (12, False), (16, True)])
def test_jpeg_xl_keeps_its_bits(bits, boxed):
    codecs = pytest.importorskip("imagecodecs")
    array = RGB if bits == 8 else DEEP >> (16 - bits)
    content = codecs.jpegxl_encode(array, lossless=True, usecontainer=boxed, bitspersample=bits if bits > 8 else None)
    found = stored(content)
    assert (found.kind, found.largest) == (("", 0) if bits == 8 else ("RGB", 2**bits - 1))
    np.testing.assert_array_equal(found.image, array)


def test_jpeg_xl_of_floats():
    codecs = pytest.importorskip("imagecodecs")
    array = (DEEP / 65535).astype(np.float32)
    np.testing.assert_array_equal(numbers(codecs.jpegxl_encode(array, lossless=True)), array)
    with pytest.raises(ValueError, match="JPEG XL file is animated"):
        stored(codecs.jpegxl_encode(np.stack([RGB, RGB, RGB]), lossless=True))


def test_jpeg_ls_and_jpeg_xr(tmp_path):
    codecs = pytest.importorskip("imagecodecs")
    for array in (RGB, GRAY):
        for content in (codecs.jpegls_encode(array), codecs.jpegxr_encode(array, level=1.0)):
            (tmp_path / "a.jls").write_bytes(content)
            for source in (content, tmp_path / "a.jls"):
                found = stored(source)
                assert found.largest == (65535 if array is GRAY else 0)
                np.testing.assert_array_equal(found.image, array)


def write_exr(path, **channels):
    exr = pytest.importorskip("OpenEXR")
    exr.File({"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}, channels).write(str(path))


def test_exr_is_linear_floats(tmp_path):
    array = (DEEP / 1000).astype(np.float32)
    path = tmp_path / "a.exr"
    write_exr(path, RGB=array)
    np.testing.assert_array_equal(numbers(path), array)
    np.testing.assert_array_equal(numbers(path.read_bytes()), array)
    write_exr(path, RGB=array.astype(np.float16))
    np.testing.assert_array_equal(numbers(path), array.astype(np.float16))
    write_exr(path, Y=array[..., 0].copy())
    np.testing.assert_array_equal(numbers(path), array[..., 0])
    bands = {f"B{index:02d}": np.full((24, 32), index, np.float32) for index in (4, 1, 12, 8)}
    write_exr(path, **bands)
    assert numbers(path, 4)[:, 0, 0].tolist() == [1, 4, 8, 12]


def test_exr_does_not_lose_transparency(tmp_path):
    array = (DEEP / 1000).astype(np.float32)
    opaque = np.dstack([array, np.ones((24, 32), np.float32)])
    write_exr(tmp_path / "a.exr", RGBA=opaque)
    np.testing.assert_array_equal(numbers(tmp_path / "a.exr"), array)
    opaque[0, 0, 3] = 0.5
    write_exr(tmp_path / "a.exr", RGBA=opaque)
    with pytest.raises(ValueError, match="transparent in places"):
        stored(tmp_path / "a.exr")
    np.testing.assert_array_equal(numbers(tmp_path / "a.exr", 4), opaque)


def test_raw_files_are_developed_by_rawpy(tmp_path):
    rawpy = pytest.importorskip("rawpy")
    sensor = np.tile(((COLUMNS * 500 + ROWS * 300) % 60_000).astype(np.uint16), (4, 4))
    matrix = (1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1)
    tags = [
        (33421, "H", 2, (2, 2), True),
        (33422, "B", 4, (0, 1, 1, 2), True),
        (50706, "B", 4, (1, 4, 0, 0), True),
        (50717, "I", 1, 65535, True),
        (50721, "2i", 9, matrix, True),
        (50728, "2I", 3, (1, 1, 1, 1, 1, 1), True),
    ]
    path = tmp_path / "a.dng"
    tifffile.imwrite(path, sensor, photometric=32803, extratags=tags, metadata=None, subfiletype=0)
    for keeps_depth, bits in ((True, 16), (False, 8)):
        with rawpy.imread(io.BytesIO(path.read_bytes())) as raw:
            expected = raw.postprocess(output_bps=bits)
        assert expected.std() > 0
        np.testing.assert_array_equal(numbers(path, keeps_depth=keeps_depth), expected)
    path.write_bytes(b"FUJIFILMCCD-RAW" + b"\0" * 500)
    with pytest.raises(ValueError, match="The raw camera file cannot be read"):
        stored(path)
