"""DICOM against pydicom: numbers of the modality, colors, frames, and what is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from fields import GRAY, RGB, noise, numbers, stored, write_dicom

from hf_simmim.data.reading import open_row
from hf_simmim.formats.dicom import is_lossy, series_of
from hf_simmim.formats.parts import expand
from hf_simmim.formats.slicing import Slicing
from hf_simmim.model.image_readers import Wanted
from hf_simmim.model.images import read_stored

pydicom = pytest.importorskip("pydicom")
pixels = pytest.importorskip("pydicom.pixels")
DEEP = GRAY >> 4


def samples() -> list[Path]:
    """The files inside pydicom's own package that begin as DICOM does, or are called so."""
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    return sorted(path for path in folder.glob("*.dcm") if path.stat().st_size < 600_000)


# Those that hold no image, or a broken one, and why each is refused.
REFUSED = {
    "ExplVR_BigEndNoMeta.dcm": "not the header",
    "ExplVR_LitEndNoMeta.dcm": "not the header",
    "JPEG-lossy.dcm": "cannot be decoded|decoder is missing|pylibjpeg-libjpeg",
    "JPEG2000-embedded-sequence-delimiter.dcm": "cannot be decoded|decoder is missing",
    "MR_truncated.dcm": "cannot be decoded",
    "UN_sequence.dcm": "no pixels",
    "badVR.dcm": "how many frames",
    "empty_charset_LEI.dcm": "no pixels",
    "meta_missing_tsyntax.dcm": "no pixels",
    "nested_priv_SQ.dcm": "no pixels",
    "no_meta.dcm": "not the header",
    "no_meta_group_length.dcm": "no pixels",
    "priv_SQ.dcm": "no pixels",
    "reportsi.dcm": "it is Basic Text SR Storage",
    "reportsi_with_empty_number_tags.dcm": "no pixels",
    "rtplan.dcm": "it is RT Plan Storage",
    "rtplan_truncated.dcm": "no pixels",
    "rtstruct.dcm": "not the header",
    "test-SR.dcm": "no pixels",
    "waveform_ecg.dcm": "no pixels",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", samples(), ids=lambda path: path.name)
def test_files_of_pydicom(path):
    if path.name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[path.name]):
            stored(path)
        return
    dataset = pydicom.dcmread(path)
    (address, *others) = expand([str(path)])
    assert len(others) == int(dataset.get("NumberOfFrames") or 1) - 1
    try:
        expected = pixels.pixel_array(dataset, index=0)
    except RuntimeError:
        with pytest.raises(ValueError, match="decoder is missing|pip install pylibjpeg pylibjpeg-libjpeg"):
            stored(address)
        return
    found = stored(address)
    array = np.asarray(found.image, np.float64)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        np.testing.assert_array_equal(array, pixels.apply_color_lut(expected, dataset))
        return
    expected = pixels.apply_modality_lut(expected, dataset).astype(np.float64)
    if "DoseGridScaling" in dataset:
        expected = (expected * dataset.DoseGridScaling).astype(np.float32)
    missing = np.isnan(array)
    assert missing.any() == ("PixelPaddingValue" in dataset and path.name != "CT_small.dcm")
    np.testing.assert_array_equal(array[~missing], (expected * found.scale + found.offset)[~missing])


def test_hounsfield_units_and_padding(tmp_path):
    array = noise(24, 32, low=-1000, high=3000, dtype=np.int16)
    array[:4] = -2000
    write_dicom(tmp_path / "a.dcm", array, RescaleSlope=1, RescaleIntercept=-24)
    np.testing.assert_array_equal(numbers(tmp_path / "a.dcm"), array.astype(int) - 24)
    write_dicom(tmp_path / "b.dcm", array, RescaleSlope=0.5, RescaleIntercept=-24, PixelPaddingValue=-2000)
    found = numbers(tmp_path / "b.dcm")
    assert np.isnan(found[:4]).all()
    np.testing.assert_array_equal(found[4:], array[4:] * 0.5 - 24)
    np.testing.assert_array_equal(numbers((tmp_path / "b.dcm").read_bytes()), found)
    write_dicom(tmp_path / "c.dcm", array, PixelPaddingValue=-2000, PixelPaddingRangeLimit=0)
    assert (np.isnan(numbers(tmp_path / "c.dcm")) == ((array >= -2000) & (array <= 0))).all()


def test_padding_of_pictures_is_missing(tmp_path):
    array = DEEP.copy()
    array[:4] = 0
    array[4:] += 1
    write_dicom(tmp_path / "a.dcm", array, 12, PixelPaddingValue=0)
    for channels, factor in ((1, 1 / 4095), (3, 1 / 255)):
        opened = open_row({"image": {"bytes": None, "path": str(tmp_path / "a.dcm")}}, channels, factor)
        assert np.isnan(opened[:, :4]).all()
        expected = array[4:] if channels == 1 else array[4:] >> 4
        np.testing.assert_array_equal(opened[0, 4:], expected)


def test_white_is_bright(tmp_path):
    write_dicom(tmp_path / "a.dcm", DEEP, 12, "MONOCHROME1")
    found = stored(tmp_path / "a.dcm")
    assert (found.kind, found.largest, found.scale, found.offset) == ("L", 4095, -1, 4095)
    np.testing.assert_array_equal(found.image, 4095 - DEEP)
    write_dicom(tmp_path / "b.dcm", DEEP, 12, "MONOCHROME1", RescaleSlope=2, RescaleIntercept=100)
    np.testing.assert_array_equal(numbers(tmp_path / "b.dcm"), (4095 - DEEP.astype(int)) * 2 + 100)
    signed = DEEP.astype(np.int16) - 2000
    write_dicom(tmp_path / "c.dcm", signed, 12, "MONOCHROME1")
    np.testing.assert_array_equal(numbers(tmp_path / "c.dcm"), -1 - signed.astype(int))
    write_dicom(tmp_path / "d.dcm", (DEEP >> 4).astype(np.uint8), 8, "MONOCHROME1")
    np.testing.assert_array_equal(numbers(tmp_path / "d.dcm"), 255 - (DEEP >> 4))


def test_the_window_is_that_of_the_standard(tmp_path):
    array = noise(24, 32, low=-1000, high=1000, dtype=np.int16)
    window = {"WindowCenter": 40, "WindowWidth": 400, "RescaleSlope": 1, "RescaleIntercept": 10}
    for meaning in ("MONOCHROME2", "MONOCHROME1"):
        write_dicom(tmp_path / "a.dcm", array, 16, meaning, **window)
        (address,) = expand([str(tmp_path / "a.dcm")], Slicing(gray_window=(40, 400)))
        dataset = pydicom.dcmread(tmp_path / "a.dcm")
        expected = pixels.apply_windowing(array.astype(np.float64) + 10, dataset)
        low, high = -32768 + 10, 32767 + 10
        expected = np.rint((expected - low) / (high - low) * 255)
        expected = 255 - expected if meaning == "MONOCHROME1" else expected
        assert np.abs(numbers(address) - expected).max() <= 1
        assert stored(address).image.mode == "L"


def opened_by_file(path):
    (address,) = expand([str(path)], Slicing(gray_window="file"))
    assert address.endswith("::window=file")
    assert stored(address).image.mode == "L"
    return numbers(address)


def by_pydicom(path, array, is_inverted=False):
    """What pydicom shows, in the range that it gives windows and tables, as 0 to 255."""
    dataset = pydicom.dcmread(path)
    shown = pixels.apply_voi_lut(pixels.apply_modality_lut(array, dataset), dataset).astype(np.float64)
    if "VOILUTSequence" in dataset:
        low, high = 0, 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    else:
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
        signed = dataset.PixelRepresentation * 2 ** (dataset.BitsStored - 1)
        low, high = ((end - signed) * slope + intercept for end in (0, 2**dataset.BitsStored - 1))
    shown = np.rint((shown - low) / (high - low) * 255)
    return 255 - shown if is_inverted else shown


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_window_of_the_file_is_the_first_one(function, tmp_path):
    array = noise(24, 32, low=-1000, high=1000, dtype=np.int16)
    named = {} if function is None else {"VOILUTFunction": function}
    window = {"WindowCenter": [40, 900], "WindowWidth": [400, 10], "RescaleSlope": 2, "RescaleIntercept": 10}
    for meaning in ("MONOCHROME2", "MONOCHROME1"):
        write_dicom(tmp_path / "a.dcm", array, 16, meaning, **window, **named)
        expected = by_pydicom(tmp_path / "a.dcm", array, meaning == "MONOCHROME1")
        # Halves may be rounded the other way.
        difference = np.abs(opened_by_file(tmp_path / "a.dcm") - expected)
        assert difference.max() <= 1
        assert difference.mean() < 0.005
        assert len(np.unique(expected)) > 50
    if function in (None, "LINEAR"):
        (address,) = expand([str(tmp_path / "a.dcm")], Slicing(gray_window=(40, 400)))
        np.testing.assert_array_equal(numbers(address), opened_by_file(tmp_path / "a.dcm"))


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_table_of_the_file_comes_before_its_window(bits, tmp_path):
    array = noise(24, 32, low=0, high=4096)
    table, entries = pydicom.Dataset(), np.sort(noise(200, low=0, high=2**bits, dtype=np.int64))
    table.add_new("LUTDescriptor", "US", [200, 100, bits])
    table.add_new("LUTData", "US", entries.tolist())
    both = {"WindowCenter": 40, "WindowWidth": 400, "VOILUTSequence": [table]}
    write_dicom(tmp_path / "a.dcm", array, 12, **both)
    low = np.clip(array, 0, 299)
    # pydicom wraps larger numbers around if entries have 8 bits.
    expected = by_pydicom(tmp_path / "a.dcm", low)
    np.testing.assert_array_equal(opened_by_file(tmp_path / "a.dcm"), expected)
    del table.LUTData
    table.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    write_dicom(tmp_path / "b.dcm", array, 12, **both)
    np.testing.assert_array_equal(opened_by_file(tmp_path / "b.dcm"), expected)
    # Padding stays missing.
    write_dicom(tmp_path / "c.dcm", array, 12, **both, PixelPaddingValue=int(array[0, 0]))
    (address,) = expand([str(tmp_path / "c.dcm")], Slicing(gray_window="file"))
    assert np.isnan(numbers(address)[0, 0])
    table.LUTDescriptor = [300, 100, bits]
    write_dicom(tmp_path / "d.dcm", array, 12, **both)
    with pytest.raises(ValueError, match=r"a table of 300 entries.*holds 200 up to.*Set --gray_window"):
        opened_by_file(tmp_path / "d.dcm")


def test_frames_have_windows_of_their_own(tmp_path):
    array = noise(2, 24, 32, low=0, high=4096)
    groups = []
    for center in (1000, 3000):
        window, group = pydicom.Dataset(), pydicom.Dataset()
        window.WindowCenter, window.WindowWidth = center, 500
        group.FrameVOILUTSequence = [window]
        groups.append(group)
    write_dicom(tmp_path / "a.dcm", array, 12, PerFrameFunctionalGroupsSequence=groups)
    for address, frame, center in zip(
        expand([str(tmp_path / "a.dcm")], Slicing(gray_window="file")), array, (1000, 3000), strict=True
    ):
        assert ",window=file" in address
        expected = np.rint(((frame - (center - 0.5)) / 499 + 0.5).clip(0, 1) * 255)
        np.testing.assert_array_equal(numbers(address), expected)


def test_a_file_without_a_window_is_refused(tmp_path):
    for name, elements in (("none", {}), ("empty", {"WindowCenter": None, "WindowWidth": None})):
        write_dicom(tmp_path / f"{name}.dcm", DEEP, 12, **elements)
        with pytest.raises(ValueError, match="names no window and no table.*--gray_window 40 400"):
            opened_by_file(tmp_path / f"{name}.dcm")
    write_dicom(tmp_path / "c.dcm", DEEP, 12, WindowCenter=40, WindowWidth=400, VOILUTFunction="CUBIC")
    with pytest.raises(ValueError, match="the function CUBIC and the width 400"):
        opened_by_file(tmp_path / "c.dcm")
    with pytest.raises(ValueError, match=r"gray_window='files' is a center and a width.*or file"):
        Slicing(gray_window="files")


def test_colors(tmp_path):
    write_dicom(tmp_path / "a.dcm", RGB, 8, "RGB")
    np.testing.assert_array_equal(numbers(tmp_path / "a.dcm"), RGB)
    write_dicom(tmp_path / "b.dcm", RGB, 8, "RGB", PlanarConfiguration=1)
    planes = np.frombuffer(RGB.tobytes(), np.uint8).reshape(3, 24, 32)
    np.testing.assert_array_equal(numbers(tmp_path / "b.dcm"), np.moveaxis(planes, 0, -1))
    write_dicom(tmp_path / "c.dcm", RGB, 8, "HSV")
    with pytest.raises(ValueError, match="holds 3 samples of HSV, which are not read. Convert it to gray or RGB"):
        stored(tmp_path / "c.dcm")


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes(tmp_path, bits):
    entries = np.arange(256, dtype=np.uint8 if bits == 8 else np.uint16)
    palette = {}
    for name, colors in (("Red", entries), ("Green", entries[::-1]), ("Blue", entries // 2)):
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        palette[f"{name}PaletteColorLookupTableData"] = (colors * (1 if bits == 8 else 257)).tobytes()
    indices = RGB[..., 0]
    write_dicom(tmp_path / "a.dcm", indices, 8, "PALETTE COLOR", **palette)
    found = stored(tmp_path / "a.dcm")
    expected = np.dstack([indices, 255 - indices, indices // 2]).astype(np.uint16)
    np.testing.assert_array_equal(found.image, expected if bits == 8 else expected * 257)
    np.testing.assert_array_equal(found.compared, indices)
    ids = read_stored(str(tmp_path / "a.dcm"), Wanted(1, True, indices=True)).image
    np.testing.assert_array_equal(ids, indices)


def test_frames_have_their_own_scale(tmp_path):
    array = noise(4, 24, 32, high=4000)
    groups = [pydicom.Dataset() for _ in range(4)]
    for index, group in enumerate(groups):
        scale = pydicom.Dataset()
        scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = index + 1, -index, "US"
        group.PixelValueTransformationSequence = [scale]
    write_dicom(tmp_path / "a.dcm", array, PerFrameFunctionalGroupsSequence=groups)
    addresses = expand([str(tmp_path / "a.dcm")])
    assert [address.rpartition("::")[2] for address in addresses] == [f"frame={index}" for index in range(4)]
    for index, address in enumerate(addresses):
        np.testing.assert_array_equal(numbers(address), array[index].astype(int) * (index + 1) - index)
    with pytest.raises(ValueError, match="holds 4 frames. Name its folder"):
        stored(tmp_path / "a.dcm")
    with pytest.raises(ValueError, match="frame=9 is not in the DICOM file, which has 4 frames"):
        stored(f"{tmp_path / 'a.dcm'}::frame=9")


def test_what_pixels_mean_is_not_guessed(tmp_path):
    write_dicom(tmp_path / "a.dcm", DEEP, 12, HighBit=15)
    with pytest.raises(ValueError, match="stores 12 bits below bit 15, where 11 is expected"):
        stored(tmp_path / "a.dcm")
    write_dicom(tmp_path / "b.dcm", DEEP, 12, "SOMETHING")
    with pytest.raises(ValueError, match="1 samples of SOMETHING"):
        stored(tmp_path / "b.dcm")
    dataset = pydicom.dcmread(io.BytesIO((tmp_path / "a.dcm").read_bytes()))
    del dataset.PixelData
    dataset.save_as(tmp_path / "c.dcm")
    with pytest.raises(ValueError, match="holds no pixels; it is Secondary Capture Image Storage. Remove it"):
        stored(tmp_path / "c.dcm")


def write_series(folder, places, **elements):
    for number, place in enumerate(places):
        direction = {"ImagePositionPatient": [5, 7, place], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        number = {"SeriesInstanceUID": "1.2.3", "InstanceNumber": len(places) - number}
        array = np.full((24, 32), place + 100, np.uint16)
        write_dicom(folder / f"{place + 100}.dcm", array, 12, **{**direction, **number, **elements})


def test_a_series_is_sorted_by_place(tmp_path):
    write_series(tmp_path, [10, -20, 3])
    paths = [str(tmp_path / f"{place + 100}.dcm") for place in (-20, 3, 10)]
    assert series_of(sorted(paths))[paths[0]] == paths
    # Without a place, by number.
    write_series(tmp_path, [10, -20, 3], ImagePositionPatient=None)
    assert series_of(sorted(paths))[paths[0]] == [paths[1], paths[0], paths[2]]
    write_series(tmp_path, [10, -20, 3], ImagePositionPatient=[0, 0, 1])
    with pytest.raises(ValueError, match="slices of one series at the same place"):
        series_of(paths)
    # Of other echoes they are series of their own.
    for time, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        dataset.EchoTime = time
        dataset.save_as(path)
    assert series_of(paths) == {path: [path] for path in paths}


def test_neighbors_in_a_series(tmp_path):
    write_series(tmp_path, [10, -20, 3])
    addresses = expand(sorted(map(str, tmp_path.iterdir())), Slicing(slice_neighbors=1))
    found = {address.split("::")[0]: address for address in addresses}
    middle = stored(found[str(tmp_path / "103.dcm")])
    assert (middle.kind, middle.largest) == ("RGB", 4095)
    assert np.asarray(middle.image)[0, 0].tolist() == [80, 103, 110]
    assert numbers(found[str(tmp_path / "80.dcm")])[0, 0].tolist() == [80, 80, 103]


def test_lossy_compressions_are_known():
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    assert is_lossy(str(folder / "JPEG-lossy.dcm"))
    assert not is_lossy(str(folder / "CT_small.dcm"))
