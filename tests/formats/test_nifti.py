"""NIfTI against nibabel: scaled slices along the right axis, volumes of several, and what is refused."""

import gzip

import numpy as np
import pytest
from fields import noise, numbers, stored, write_nifti

from hf_simmim.data.labeled.segmentation import load_folder
from hf_simmim.formats import nifti, parts
from hf_simmim.formats.nifti import slice_axis
from hf_simmim.formats.parts import expand, orientations
from hf_simmim.formats.slicing import Slicing

nibabel = pytest.importorskip("nibabel")
ARRAY = noise(12, 10, 5, low=-900, high=2000, dtype=np.int16)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_slices_are_those_of_nibabel(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    write_nifti(path, ARRAY, slope=0.5, intercept=-3)
    expected = nibabel.load(path).get_fdata()
    addresses = expand([str(path)])
    assert [address.rpartition("::")[2] for address in addresses] == [f"axis=2,slice={index}" for index in range(5)]
    for index, address in enumerate(addresses):
        np.testing.assert_array_equal(numbers(address), expected[:, :, index])
    for axis in range(3):
        addresses = expand([str(path)], Slicing(slice_axis=axis))
        assert len(addresses) == ARRAY.shape[axis]
        np.testing.assert_array_equal(numbers(addresses[3]), np.take(expected, 3, axis))


def test_the_axis_of_the_largest_spacing():
    assert slice_axis((12, 10, 5), (1, 1, 3)) == 2
    assert slice_axis((12, 10, 5), (4, 1, 1)) == 0
    assert slice_axis((12, 10, 5), (1, 1, 1)) == 2
    assert slice_axis((12, 1, 5), (1, 1, 9)) == 1


def test_four_axes(tmp_path):
    array = noise(12, 10, 5, 3, high=900)
    write_nifti(tmp_path / "a.nii", array)
    addresses = expand([str(tmp_path / "a.nii")])
    assert len(addresses) == 15
    assert addresses[7].endswith("::axis=2,slice=2,volume=1")
    np.testing.assert_array_equal(numbers(addresses[7]), array[:, :, 2, 1])
    addresses = expand([str(tmp_path / "a.nii")], Slicing(volume_series="channels"))
    assert len(addresses) == 5
    np.testing.assert_array_equal(numbers(addresses[2]), np.moveaxis(array[:, :, 2], -1, 0))
    write_nifti(tmp_path / "b.nii", noise(12, 10, 5, 1, 3))
    with pytest.raises(ValueError, match=r"shape \(12, 10, 5, 1, 3\), whose fifth axis holds vectors"):
        stored(expand([str(tmp_path / "b.nii")])[0])


def test_a_volume_is_no_image(tmp_path):
    write_nifti(tmp_path / "a.nii", ARRAY)
    with pytest.raises(ValueError, match=r"a volume of shape \(12, 10, 5\). Name its folder.*FILE::axis=2,slice=2"):
        stored(tmp_path / "a.nii")
    with pytest.raises(ValueError, match="axis=2, slice=5, volume=0 is not in the NIfTI file"):
        stored(f"{tmp_path / 'a.nii'}::axis=2,slice=5")
    write_nifti(tmp_path / "flat.nii", ARRAY[..., :1])
    np.testing.assert_array_equal(numbers((tmp_path / "flat.nii").read_bytes()), ARRAY[..., 0])
    write_nifti(tmp_path / "c.nii", ARRAY.astype(np.complex64))
    with pytest.raises(ValueError, match="complex numbers. Save their magnitude"):
        stored(f"{tmp_path / 'c.nii'}::axis=2,slice=0")
    (tmp_path / "d.nii.gz").write_bytes(gzip.compress(b"nothing"))
    with pytest.raises(ValueError, match="The NIfTI file cannot be read"):
        stored(expand([str(tmp_path / "d.nii.gz")])[0])


def test_the_byte_order_is_that_of_the_machine(tmp_path):
    header = nibabel.Nifti1Header(endianness=">")
    for name in ("a.nii", "a.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(ARRAY.astype(">i2"), np.eye(4), header), tmp_path / name)
        found = numbers(f"{tmp_path / name}::axis=2,slice=3")
        assert found.dtype.isnative
        np.testing.assert_array_equal(found, ARRAY[..., 3])


def test_colors(tmp_path):
    colors = noise(12, 10, 5, 3, high=256, dtype=np.uint8)
    packed = colors.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nibabel.save(nibabel.Nifti1Image(packed, np.eye(4)), tmp_path / "a.nii")
    image = stored(f"{tmp_path / 'a.nii'}::axis=2,slice=3").image
    assert image.mode == "RGB"
    np.testing.assert_array_equal(image, colors[:, :, 3])


def test_neighbors_are_channels_and_repeated_at_the_ends(tmp_path):
    write_nifti(tmp_path / "a.nii", ARRAY)
    addresses = expand([str(tmp_path / "a.nii")], Slicing(slice_neighbors=2))
    for index, address in enumerate(addresses):
        places = np.clip(np.arange(index - 2, index + 3), 0, 4)
        np.testing.assert_array_equal(numbers(address, 5), np.moveaxis(ARRAY[:, :, places], -1, 0))


def test_a_compressed_volume_is_decompressed_once(tmp_path, monkeypatch):
    for name in "ab":
        write_nifti(tmp_path / f"{name}.nii.gz", ARRAY)
    opened = []
    monkeypatch.setattr(nifti.gzip, "open", lambda *given: opened.append(given) or gzip.GzipFile(*given))
    addresses = expand([str(tmp_path / "a.nii.gz")])
    opened.clear()
    for address in addresses:
        numbers(address)
    assert len(opened) == 1
    # The kept bytes are bounded, down to one volume.
    monkeypatch.setattr(nifti, "MAX_KEPT", 1)
    for name in "abab":
        numbers(f"{tmp_path / name}.nii.gz::axis=2,slice=0")
    assert len(nifti._kept) == 1
    # A file that is written anew is read anew.
    write_nifti(tmp_path / "b.nii.gz", ARRAY + 1000)
    np.testing.assert_array_equal(numbers(f"{tmp_path / 'b.nii.gz'}::axis=2,slice=0"), ARRAY[..., 0] + 1000)


def matrix(codes):
    """The matrix of a volume whose axes lead there, with voxels of 1, 2 and 3 mm, a little oblique."""
    places = pytest.importorskip("nibabel.orientations")
    turn = places.inv_ornt_aff(places.ornt_transform(places.axcodes2ornt("RAS"), places.axcodes2ornt(codes)), (9, 9, 9))
    tilt = np.eye(4)
    tilt[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    return tilt @ turn @ np.diag([1, 2, 3, 1])


def write_turned(path, codes, array=ARRAY):
    nibabel.save(nibabel.Nifti1Image(array, matrix(codes)), path)
    assert "".join(nibabel.aff2axcodes(nibabel.load(path).affine)) == codes


def by_nibabel(path, wanted):
    places = pytest.importorskip("nibabel.orientations")
    image = nibabel.load(path)
    turn = places.ornt_transform(places.io_orientation(image.affine), places.axcodes2ornt(wanted))
    return np.asarray(image.as_reoriented(turn).dataobj)


CODES = ["RAS", "LPS", "PIR", "SRA", "ILA", "ASL"]


@pytest.mark.parametrize("wanted", ["RAS", "PLS", "IRP"])
@pytest.mark.parametrize("stored_codes", CODES)
def test_turned_slices_are_those_of_nibabel(tmp_path, stored_codes, wanted):
    path = tmp_path / "a.nii.gz"
    write_turned(path, stored_codes)
    expected = by_nibabel(path, wanted)
    if wanted == "RAS":
        np.testing.assert_array_equal(expected, nibabel.as_closest_canonical(nibabel.load(path)).dataobj)
    for axis in range(3):
        addresses = expand([str(path)], Slicing(slice_axis=axis, orientation=wanted))
        assert len(addresses) == expected.shape[axis]
        assert addresses[2].endswith(f"::axis={axis},slice=2,orientation={wanted}")
        for index, address in enumerate(addresses):
            found = numbers(address)
            assert min(found.strides) > 0
            np.testing.assert_array_equal(found, np.take(expected, index, axis))
    with pytest.raises(ValueError, match=r"is not in the NIfTI file of shape"):
        stored(f"{path}::axis=0,slice={expected.shape[0]},orientation={wanted}")


def test_the_axis_is_that_of_the_turned_volume(tmp_path):
    # The largest spacing is that of the last axis as stored.
    write_turned(tmp_path / "a.nii", "ASL")
    addresses = expand([str(tmp_path / "a.nii")], Slicing(orientation="RAS"))
    assert [address.rpartition("::")[2] for address in addresses[:1]] == ["axis=0,slice=0,orientation=RAS"]
    assert len(addresses) == 5


def test_neighbors_channels_and_colors_are_turned_as_well(tmp_path):
    path = tmp_path / "a.nii"
    write_turned(path, "LIP")
    expected = by_nibabel(path, "RAS")
    for index, address in enumerate(expand([str(path)], Slicing(slice_axis=2, slice_neighbors=1, orientation="RAS"))):
        places = np.clip([index - 1, index, index + 1], 0, expected.shape[2] - 1)
        np.testing.assert_array_equal(numbers(address), np.moveaxis(expected[:, :, places], -1, 0))
    write_turned(path, "LIP", noise(12, 10, 5, 3, high=900))
    expected = by_nibabel(path, "RAS")
    addresses = expand([str(path)], Slicing(slice_axis=1, volume_series="channels", orientation="RAS"))
    np.testing.assert_array_equal(numbers(addresses[2]), np.moveaxis(expected[:, 2], -1, 0))
    colors = noise(12, 10, 5, 3, high=256, dtype=np.uint8)
    write_turned(path, "LIP", colors.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0])
    expected = by_nibabel(path, "RAS")
    image = stored(f"{path}::axis=0,slice=3,orientation=RAS").image
    np.testing.assert_array_equal(np.asarray(image)[..., 1], expected["G"][3])


def test_a_volume_that_does_not_say_how_it_lies_is_not_turned(tmp_path):
    image = nibabel.Nifti1Image(ARRAY, np.eye(4))
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nibabel.save(image, tmp_path / "a.nii")
    (address,) = expand([str(tmp_path / "a.nii")], Slicing(orientation="RAS"))
    with pytest.raises(ValueError, match="does not say how its axes lie.*orientation=RAS.*leave --orientation unset"):
        stored(address)
    assert len(expand([str(tmp_path / "a.nii")])) == 5
    for wrong in ("RAL", "ras", "RA", "RASS", "XYZ"):
        with pytest.raises(ValueError, match=f"orientation='{wrong}' must name .* such as RAS"):
            Slicing(orientation=wrong)


def test_mixed_orientations_are_named(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(parts.logger, "warning_once", warnings.append)
    for index, codes in enumerate(["LPS", "RAS", "LPS"]):
        write_turned(tmp_path / f"{index}.nii", codes)
    files = [str(path) for path in sorted(tmp_path.glob("*.nii"))]
    expand([files[0], files[2]])
    expand(files, Slicing(orientation="RAS"))
    assert not warnings
    addresses = expand(files)
    assert len(warnings) == 1
    assert "2 orientations as they are stored: 2 LPS, 1 RAS" in warnings[0]
    assert "--orientation RAS" in warnings[0]
    assert orientations(addresses) == dict(zip(files, ["LPS", "RAS", "LPS"], strict=True))
    assert not orientations(expand(files, Slicing(orientation="RAS")))


def test_a_mask_that_lies_differently_is_refused(tmp_path):
    for name, codes in (("images", "LPS"), ("masks", "RAS")):
        (tmp_path / name).mkdir()
        write_turned(tmp_path / name / "a.nii", codes, ARRAY.astype(np.uint8) % 3)
    with pytest.raises(
        ValueError, match="a.nii is stored in the orientation LPS, and its mask in RAS.*--orientation RAS"
    ):
        load_folder(tmp_path)
    images, masks = load_folder(tmp_path, Slicing(orientation="RAS"))
    assert len(images) == len(masks) == 5
    assert masks["name"][0].endswith(",orientation=RAS")
    expected = [by_nibabel(tmp_path / name / "a.nii", "RAS")[:, :, 2] for name in ("images", "masks")]
    for rows, array in zip((images, masks), expected, strict=True):
        np.testing.assert_array_equal(numbers(rows["name"][2]), array)
    # One that does not say how it lies is taken as it is.
    image = nibabel.Nifti1Image(ARRAY.astype(np.uint8) % 3, np.eye(4))
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nibabel.save(image, tmp_path / "masks" / "a.nii")
    assert len(load_folder(tmp_path).images) == 5
