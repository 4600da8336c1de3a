"""Bands of images: those that are named, in their order, from samples and pages."""

import numpy as np
import pytest
import tifffile
from fields import DEEP, RGB, noise, numbers, stored
from PIL import Image

from hf_simmim.data.reading import open_row
from hf_simmim.formats.parts import expand
from hf_simmim.formats.slicing import Slicing

BANDS = noise(13, 24, 32)


def chosen(path, *bands):
    (address,) = expand([str(path)], Slicing(bands=bands))
    return address


@pytest.mark.parametrize("kind", ["samples", "planes", "pages"])
def test_bands_of_satellites(tmp_path, kind):
    path = tmp_path / "a.tif"
    if kind == "pages":
        with tifffile.TiffWriter(path) as file:
            for band in BANDS:
                file.write(band, metadata=None, contiguous=False)
    else:
        array = BANDS if kind == "planes" else np.moveaxis(BANDS, 0, -1)
        config = "separate" if kind == "planes" else "contig"
        tifffile.imwrite(path, array, photometric="minisblack", planarconfig=config)
    np.testing.assert_array_equal(numbers(chosen(path, 4, 3, 2)), BANDS[[3, 2, 1]])
    row = {"image": {"bytes": None, "path": chosen(path, 13)}}
    np.testing.assert_array_equal(open_row(row, 1, 1 / 10_000)[0], BANDS[12])
    with pytest.raises(ValueError, match="the image has 13 bands, numbered from 1 on"):
        stored(chosen(path, 14))


def test_bands_of_pictures(tmp_path):
    four = np.dstack([RGB, RGB[..., 0] // 2])
    tifffile.imwrite(tmp_path / "a.tif", four, photometric="rgb", extrasamples=["unspecified"])
    found = stored(chosen(tmp_path / "a.tif", 4, 1, 2))
    assert found.image.mode == "RGB"
    np.testing.assert_array_equal(found.image, four[..., [3, 0, 1]])
    Image.fromarray(RGB).save(tmp_path / "a.png")
    assert stored(chosen(tmp_path / "a.png", 2)).image.mode == "L"
    tifffile.imwrite(tmp_path / "b.tif", DEEP, photometric="rgb")
    found = stored(chosen(tmp_path / "b.tif", 3, 2, 1))
    assert (found.kind, found.largest) == ("RGB", 65535)
    np.testing.assert_array_equal(found.image, DEEP[..., ::-1])
    Image.fromarray(RGB).quantize(8).save(tmp_path / "p.png")
    with pytest.raises(ValueError, match="has no bands"):
        stored(chosen(tmp_path / "p.png", 1))
    with pytest.raises(ValueError, match="are numbered from 1 on"):
        Slicing(bands=(0, 1))
