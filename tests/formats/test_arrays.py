"""HDF5 files and zarr stores: images along the axis that is named or certain."""

import numpy as np
import pytest
from fields import RGB, noise, numbers, stored

from hf_simmim.formats.parts import expand
from hf_simmim.formats.slicing import Slicing
from hf_simmim.model.images import open_image

COLORS = noise(6, 24, 32, 3, high=256, dtype=np.uint8)
VOLUME = noise(24, 32, 7)


def write_hdf5(path, **arrays):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name.replace("__", "/")] = array


def write_zarr(path, array, name=None):
    zarr = pytest.importorskip("zarr")
    if path.suffix == ".zip":
        with zarr.storage.ZipStore(path, mode="w") as store:
            zarr.save_array(store, array)
    elif name is None:
        zarr.save_array(path, array)
    else:
        zarr.open_group(path, mode="w").create_array(name, data=array)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["a.h5", "a.zarr", "group.zarr", "a.zarr.zip"])
def test_images_are_rows(tmp_path, name):
    path = tmp_path / name
    if name == "a.h5":
        write_hdf5(path, x=COLORS, y=np.zeros((6, 1, 1, 1)))
    else:
        write_zarr(path, COLORS, "images" if name == "group.zarr" else None)
    addresses = expand([str(path)])
    assert [address.rpartition("::")[2] for address in addresses] == [f"row={row}" for row in range(6)]
    for row, address in enumerate(addresses):
        assert stored(address).image.mode == "RGB"
        np.testing.assert_array_equal(numbers(address), COLORS[row])
    with pytest.raises(ValueError, match="holds 6 images. Name the folder"):
        stored(path)
    with pytest.raises(ValueError, match=r"row=6 is not in the array of shape \(6, 24, 32, 3\)"):
        stored(f"{path}::row=6")


def test_one_of_several_arrays(tmp_path):
    path = str(tmp_path / "a.h5")
    write_hdf5(path, g__volume=VOLUME, g__other=VOLUME)
    with pytest.raises(ValueError, match=r"2 arrays of an image's shape \(g/other .*--array_name"):
        stored(expand([path])[0])
    addresses = expand([path], Slicing(array_name="g/volume", array_axes="HWN"))
    assert len(addresses) == 7
    assert "/" not in addresses[0].rpartition("::")[2]
    np.testing.assert_array_equal(numbers(addresses[3]), VOLUME[..., 3])
    # An array that a file lacks is not another one.
    write_hdf5(path, only=VOLUME)
    with pytest.raises(ValueError, match="array_name='g/volume' is not in the file. Its arrays are: only"):
        stored(expand([path], Slicing(array_name="g/volume"))[0])


def test_axes_are_not_guessed(tmp_path):
    path = str(tmp_path / "a.h5")
    write_hdf5(path, x=RGB)
    with pytest.raises(ValueError, match=r"shape \(24, 32, 3\), whose axes may be images or channels.*HWC"):
        stored(expand([path])[0])
    (address,) = expand([path], Slicing(array_axes="HWC"))
    np.testing.assert_array_equal(numbers(address), RGB)
    with pytest.raises(
        ValueError, match=r"array_axes='NHWC' names 4 axes, and The array x has the shape \(24, 32, 3\)"
    ):
        stored(expand([path], Slicing(array_axes="NHWC"))[0])
    write_hdf5(path, x=noise(6, 13, 24, 32))
    with pytest.raises(ValueError, match="NHWC or NCHW"):
        stored(expand([path])[0])
    assert numbers(expand([path], Slicing(array_axes="NCHW"))[0], 13).shape == (13, 24, 32)
    write_hdf5(path, x=VOLUME[..., 0])
    assert expand([path]) == [path]
    np.testing.assert_array_equal(numbers(path), VOLUME[..., 0])


def test_no_array_of_images(tmp_path):
    write_hdf5(tmp_path / "a.h5", weights=np.zeros(9), names=np.array([b"a", b"b"]))
    with pytest.raises(ValueError, match=r"has 0 arrays of an image's shape \(none\)"):
        stored(tmp_path / "a.h5")
    pytest.importorskip("h5py")
    (tmp_path / "b.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 100)
    with pytest.raises(ValueError, match="The HDF5 file cannot be opened"):
        stored(tmp_path / "b.h5")


PACKED = np.array([[-999, -5000, 0, 100], [7, 20_000, -32_768, 3]], np.int16)
# What xarray and netCDF4 read: -999 and -32768 are missing, 20,000 is out of range.
UNPACKED = np.array([[np.nan, 223.15, 273.15, 274.15], [273.22, np.nan, np.nan, 273.18]])
ATTRIBUTES = {
    "scale_factor": 0.01,
    "add_offset": 273.15,
    "_FillValue": np.int16(-999),
    "missing_value": np.array([-32_768], np.int16),
    "valid_range": np.array([-30_000, 10_000], np.int16),
}


@pytest.mark.parametrize("name", ["a.h5", "a.nc", "a.zarr"])
def test_packed_numbers_mean_what_their_attributes_say(tmp_path, name):
    path = tmp_path / name
    if name == "a.zarr":
        zarr = pytest.importorskip("zarr")
        array = zarr.create_array(path, data=PACKED)
        array.attrs.update({key: np.asarray(value).tolist() for key, value in ATTRIBUTES.items()})
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file["t2m"] = PACKED
            file["t2m"].attrs.update(ATTRIBUTES)
    (address,) = expand([str(path)])
    for found in (
        numbers(address),
        numbers(f"{address}::top=0,left=0,height=2,width=4" if name == "a.zarr" else address),
    ):
        np.testing.assert_allclose(found, UNPACKED, atol=1e-4)


def test_missing_numbers_without_a_scale_and_unsigned_bytes(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.array([[1, 2, -1], [3, 4, 5]], np.int8)
        file["x"].attrs["_Unsigned"] = "true"
    np.testing.assert_array_equal(numbers(str(tmp_path / "a.h5")), [[1, 2, 255], [3, 4, 5]])
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = np.array([[1, 2, 1e20], [3, 4, 5]], np.float32)
        file["x"].attrs["missing_value"] = 1e20
    np.testing.assert_array_equal(numbers(str(tmp_path / "b.h5")), [[1, 2, np.nan], [3, 4, 5]])
    # Without missing numbers a picture stays one.
    write_hdf5(tmp_path / "c.h5", x=COLORS[0])
    with h5py.File(tmp_path / "c.h5", "a") as file:
        file["x"].attrs["valid_max"] = 255
    assert stored(expand([str(tmp_path / "c.h5")], Slicing(array_axes="HWC"))[0]).image.mode == "RGB"
    with h5py.File(tmp_path / "b.h5", "a") as file:
        file["x"].attrs["scale_factor"] = "unknown"
    with pytest.raises(ValueError, match="array x has the attribute scale_factor='unknown', which is no number"):
        stored(str(tmp_path / "b.h5"))


def test_white_is_zero(tmp_path):
    h5py = pytest.importorskip("h5py")
    write_hdf5(tmp_path / "a.h5", x=COLORS[..., 0], y=COLORS[..., 1].astype(np.uint16), z=np.ones((6, 24, 32)))
    with h5py.File(tmp_path / "a.h5", "a") as file:
        for name in "xyz":
            file[name].attrs["IMAGE_WHITE_IS_ZERO"] = np.uint8(1)
    for name, channel, largest in (("x", 0, 255), ("y", 1, 65535)):
        address = expand([str(tmp_path / "a.h5")], Slicing(array_name=name))[2]
        np.testing.assert_array_equal(numbers(address), largest - COLORS[2, ..., channel].astype(int))
        missing = np.isnan(open_image(address, 1, 1 / 65535, nodata=7.0))
        np.testing.assert_array_equal(np.squeeze(missing), COLORS[2, ..., channel] == 7)
    with pytest.raises(ValueError, match="array z holds signed numbers or floats in which white is zero"):
        stored(expand([str(tmp_path / "a.h5")], Slicing(array_name="z"))[0])


def test_classic_netcdf_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "a.nc").write_bytes(b"CDF\x01" + bytes(100))
    with pytest.raises(ValueError, match="classic format.*nccopy -k nc4 a.nc converted.nc"):
        stored(str(tmp_path / "a.nc"))
