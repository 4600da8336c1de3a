"""Maps of class ids: the numbers that were saved, or a refusal."""

import numpy as np
import pytest
import tifffile
from fields import write_dicom
from PIL import Image

from hf_simmim.data.labeled.annotations import read_ids

IDS = np.zeros((16, 24), np.uint8)
IDS[4:, 6:], IDS[8:, 12:] = 1, 2


def read(path) -> np.ndarray:
    return read_ids({"image": {"bytes": None, "path": str(path)}, "name": str(path)}, 255)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "a.gif", "a.jp2"])
def test_lossless_files_hold_the_ids(tmp_path, name):
    Image.fromarray(IDS).save(tmp_path / name)
    np.testing.assert_array_equal(read(tmp_path / name), IDS)
    content = {"bytes": (tmp_path / name).read_bytes(), "path": None}
    np.testing.assert_array_equal(read_ids({"image": content, "name": name}, 255), IDS)


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.jpg", {"quality": 95}), ("a.tif", {"compression": "jpeg"}), ("a.jp2", {"irreversible": True})],
)
def test_lossy_files_are_refused(tmp_path, name, options):
    Image.fromarray(IDS * 100).save(tmp_path / name, **options)
    with pytest.raises(ValueError, match=r"changes class ids at every edge: save it as PNG from the original"):
        read(tmp_path / name)


def test_white_is_zero_is_refused(tmp_path):
    # As tifffile writes bools if nothing is said.
    tifffile.imwrite(tmp_path / "a.tif", IDS > 0)
    with pytest.raises(ValueError, match="white is zero in it, by which some programs exchange class ids"):
        read(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "a.tif", IDS > 0, photometric="minisblack")
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), IDS > 0)


def test_white_is_zero_is_refused_in_files_of_fields(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["ids"] = IDS
        file["ids"].attrs["IMAGE_WHITE_IS_ZERO"] = np.uint8(1)
    write_dicom(tmp_path / "a.dcm", IDS, 8, "MONOCHROME1")
    for name in ("a.h5", "a.dcm"):
        with pytest.raises(ValueError, match="a map of ids in which white is zero. Convert it"):
            read(tmp_path / name)
    write_dicom(tmp_path / "a.dcm", IDS, 8)
    np.testing.assert_array_equal(read(tmp_path / "a.dcm"), IDS)


@pytest.mark.parametrize("array", [IDS.astype(np.int64) + 2**32, IDS.astype(np.uint32) - 5, IDS * 1e20])
def test_numbers_beyond_32_bits_are_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match="which is no class id: replace it by one of up to 65535"):
        read(tmp_path / "a.npy")
