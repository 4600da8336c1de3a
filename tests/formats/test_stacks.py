"""Stacks in TIFF files against the arrays written: axes are read, named by a user, or asked for."""

import numpy as np
import pytest
import tifffile
from fields import noise, numbers, stored

from hf_simmim.formats.parts import expand
from hf_simmim.formats.slicing import Slicing
from hf_simmim.model.images import open_image

STACK = noise(3, 5, 2, 24, 32)
SLICES = Slicing(stacks="slices")


def parts(address):
    return dict(value.split("=") for value in address.rpartition("::")[2].split(","))


@pytest.mark.parametrize("kind", ["OME", "ImageJ", "tifffile", "compressed", "OME big-endian"])
def test_axes_that_the_file_names(tmp_path, kind):
    path = tmp_path / ("a.ome.tif" if kind.startswith("OME") else "a.tif")
    options = {"imagej": True} if kind == "ImageJ" else {"ome": True} if kind.startswith("OME") else {}
    if kind == "compressed":
        options["compression"] = "zlib"
    if kind == "OME big-endian":
        options["byteorder"] = ">"
    tifffile.imwrite(path, STACK, metadata={"axes": "TZCYX"}, **options)
    addresses = expand([str(path)], SLICES)
    assert len(addresses) == 15
    for address in addresses:
        place = parts(address)
        np.testing.assert_array_equal(numbers(address, 2), STACK[int(place["t"]), int(place["z"])])


def test_planes_of_one_channel_are_pictures(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK[0, :, 0], metadata={"axes": "ZYX"}, imagej=True)
    found = stored(expand([str(tmp_path / "a.tif")], SLICES)[2])
    assert (found.kind, found.largest) == ("L", 65535)
    np.testing.assert_array_equal(found.image, STACK[0, 2, 0])
    colors = noise(4, 24, 32, 3, high=256, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "b.tif", colors, photometric="rgb", metadata={"axes": "ZYXS"})
    addresses = expand([str(tmp_path / "b.tif")], SLICES)
    assert stored(addresses[3]).image.mode == "RGB"
    np.testing.assert_array_equal(numbers(addresses[3]), colors[3])
    tifffile.imwrite(tmp_path / "c.tif", STACK[0, :, 0], photometric="miniswhite", metadata={"axes": "ZYX"})
    np.testing.assert_array_equal(numbers(expand([str(tmp_path / "c.tif")], SLICES)[1]), 65535 - STACK[0, 1, 0])


@pytest.mark.parametrize("meaning", ["minisblack", "miniswhite"])
def test_missing_pixels_and_orientation_of_planes(tmp_path, meaning):
    tags = [(42113, "s", 0, "7", True), (274, "H", 1, 6, True)]
    array = STACK[0, :, 0] % 20
    tifffile.imwrite(tmp_path / "a.tif", array, photometric=meaning, metadata={"axes": "ZYX"}, extratags=tags)
    for address, plane in zip(expand([str(tmp_path / "a.tif")], SLICES), array, strict=True):
        shown = np.rot90(plane if meaning == "minisblack" else 65535 - plane, -1)
        expected = np.where(np.rot90(plane, -1) == 7, np.nan, shown)
        np.testing.assert_array_equal(open_image(address, 1, 1 / 65535), expected)
    tifffile.imwrite(tmp_path / "b.tif", STACK[0], metadata={"axes": "ZCYX"}, extratags=tags[1:])
    found = numbers(expand([str(tmp_path / "b.tif")], SLICES)[2], 2)
    np.testing.assert_array_equal(found, np.rot90(STACK[0, 2], -1, (1, 2)))


def test_axes_that_the_file_does_not_name(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for plane in STACK[0, :, 0]:
            file.write(plane, metadata=None, contiguous=False)
    (address,) = expand([str(path)], SLICES)
    with pytest.raises(ValueError, match=r"stack of 5 pages that does not name its axes .*--stacks Z for slices"):
        stored(address)
    addresses = expand([str(path)], Slicing(stacks="Z"))
    assert len(addresses) == 5
    np.testing.assert_array_equal(numbers(addresses[4]), STACK[0, 4, 0])
    (address,) = expand([str(path)], Slicing(stacks="C"))
    assert address == str(path)
    tifffile.imwrite(path, STACK[0])
    addresses = expand([str(path)], Slicing(stacks="ZC"))
    assert len(addresses) == 5
    np.testing.assert_array_equal(numbers(addresses[1], 2), STACK[0, 1])
    with pytest.raises(ValueError, match="pages along 2 axes"):
        stored(expand([str(path)], Slicing(stacks="Z"))[0])


def test_a_user_does_not_overrule_the_file(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK[:, :, 0], metadata={"axes": "TZYX"}, imagej=True)
    with pytest.raises(ValueError, match=r"names its axes T=3, Z=5, and stacks='ZC' are others"):
        stored(expand([str(tmp_path / "a.tif")], Slicing(stacks="ZC"))[0])
    with pytest.raises(ValueError, match=r"t=7, z=0 is not in the TIFF file, whose stack has T=3, Z=5"):
        stored(f"{tmp_path / 'a.tif'}::t=7,z=0")


def test_neighbors_stay_in_their_time(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK[:, :, 0], metadata={"axes": "TZYX"}, imagej=True)
    addresses = expand([str(tmp_path / "a.tif")], Slicing(stacks="slices", slice_neighbors=1))
    place = parts(addresses[5])
    assert (place["t"], place["z"]) == ("1", "0")
    np.testing.assert_array_equal(numbers(addresses[5]), np.moveaxis(STACK[1, [0, 0, 1], 0], 0, -1))


def test_other_files_stay_what_they_are(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK[0, 0, 0])
    assert expand([str(tmp_path / "a.tif")], SLICES) == [str(tmp_path / "a.tif")]
    tifffile.imwrite(tmp_path / "b.tif", STACK[0, 0], metadata={"axes": "CYX"}, imagej=True)
    assert expand([str(tmp_path / "b.tif")], SLICES) == [str(tmp_path / "b.tif")]
    tifffile.imwrite(tmp_path / "c.tif", STACK[0, :, 0], metadata={"axes": "ZYX"}, imagej=True)
    assert expand([str(tmp_path / "c.tif")]) == [str(tmp_path / "c.tif")]
