"""Windows of large images: the same numbers as the crop of the whole file, and only the tiles that they touch."""

import os

import numpy as np
import pytest
import tifffile
from PIL import Image

from hf_simmim.formats import large, large_others, large_tiff
from hf_simmim.formats.address import Address
from hf_simmim.formats.bands import bands_part
from hf_simmim.formats.large import MAX_OPEN, open_large, window_address, window_place
from hf_simmim.model.images import channels_first, open_image, pixels_of

HEIGHT, WIDTH = 150, 210
TOP, LEFT, ROWS, COLUMNS = 37, 101, 61, 83


def noise(*shape, dtype=np.uint8, high=None):
    generator = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(0, high or np.iinfo(dtype).max + 1, shape, dtype=dtype)


def scene(channels=3):
    """A smooth picture, which JPEG keeps."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    planes = [127 + 120 * np.sin(x / (9 + index) + y / 17) for index in range(channels)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def missing_corner(array, value):
    array = array.copy()
    array[: TOP + 20, : LEFT + 30] = value
    return array


def tiff(array, **options):
    return lambda path: tifffile.imwrite(path, array, metadata=None, **options)


def pillow(image, **options):
    return lambda path: Image.fromarray(image).save(path, **options)


TILES = {"tile": (32, 48)}
# Suffix, writer, number of channels, and rescale factor.
CASES = {
    "uint8 RGB tiles": (".tif", tiff(noise(HEIGHT, WIDTH, 3), photometric="rgb", **TILES), 3, 1 / 255),
    "uint8 RGB as gray": (
        ".tif",
        tiff(np.repeat(noise(HEIGHT, WIDTH, 1), 3, 2), photometric="rgb", **TILES),
        1,
        1 / 255,
    ),
    "uint8 RGB planes": (
        ".tif",
        tiff(noise(3, HEIGHT, WIDTH), photometric="rgb", planarconfig="separate", compression="zlib", **TILES),
        3,
        1 / 255,
    ),
    "uint8 RGBA": (
        ".tif",
        tiff(noise(HEIGHT, WIDTH, 4), photometric="rgb", extrasamples=["unassalpha"], compression="zlib", **TILES),
        3,
        1 / 255,
    ),
    "uint16 RGB": (".tif", tiff(noise(HEIGHT, WIDTH, 3, dtype=np.uint16), photometric="rgb", **TILES), 3, 1 / 65535),
    "uint16 RGB at 8 bits": (
        ".tif",
        tiff(noise(HEIGHT, WIDTH, 3, dtype=np.uint16), photometric="rgb", compression="zlib", **TILES),
        3,
        1 / 255,
    ),
    "12 bits of 16 at 8 bits": (".tif", tiff(noise(HEIGHT, WIDTH, dtype=np.uint16, high=4096), **TILES), 1, 1 / 255),
    "dark window of 12 bits": (
        ".tif",
        tiff(missing_corner(noise(HEIGHT, WIDTH, dtype=np.uint16, high=4096), 3), **TILES),
        1,
        1 / 255,
    ),
    "dark window of 12 bits in color": (
        ".tif",
        tiff(missing_corner(noise(HEIGHT, WIDTH, 3, dtype=np.uint16, high=4096), 3), photometric="rgb", **TILES),
        3,
        1 / 255,
    ),
    "uint16 gray, deflate strips": (
        ".tif",
        tiff(noise(HEIGHT, WIDTH, dtype=np.uint16), compression="zlib", predictor=True, rowsperstrip=7),
        1,
        1 / 65535,
    ),
    "big-endian strips": (".tif", tiff(noise(HEIGHT, WIDTH, dtype=np.uint16), byteorder=">"), 1, 1 / 65535),
    "float32 with NaN": (".tif", tiff(missing_corner(noise(HEIGHT, WIDTH, dtype=np.float32), np.nan), **TILES), 1, 1.0),
    "GDAL's nodata": (
        ".tif",
        tiff(
            missing_corner(noise(HEIGHT, WIDTH, dtype=np.int16), -999),
            extratags=[(42113, "s", 0, "-999", True)],
            compression="zlib",
            **TILES,
        ),
        1,
        1e-4,
    ),
    "five bands": (
        ".tif",
        tiff(noise(HEIGHT, WIDTH, 5, dtype=np.uint16), photometric="minisblack", planarconfig="contig", **TILES),
        5,
        1e-4,
    ),
    "five planes": (
        ".tif",
        tiff(noise(5, HEIGHT, WIDTH, dtype=np.uint16), photometric="minisblack", planarconfig="separate", **TILES),
        5,
        1e-4,
    ),
    "four pages": (".tif", tiff(noise(4, HEIGHT, WIDTH, dtype=np.uint16), photometric="minisblack", **TILES), 4, 1e-4),
    "first of four pages": (
        ".tif",
        tiff(noise(4, HEIGHT, WIDTH, dtype=np.uint16), photometric="minisblack", **TILES),
        1,
        1e-4,
    ),
    "OME channels": (
        ".ome.tif",
        lambda path: tifffile.imwrite(
            path, noise(4, HEIGHT, WIDTH, dtype=np.uint16), photometric="minisblack", metadata={"axes": "CYX"}
        ),
        4,
        1e-4,
    ),
    "tifffile's planes": (
        ".tif",
        lambda path: tifffile.imwrite(path, noise(4, HEIGHT, WIDTH, dtype=np.float32), photometric="minisblack"),
        4,
        1.0,
    ),
    "white is zero": (".tif", tiff(noise(HEIGHT, WIDTH), photometric="miniswhite", compression="zlib"), 1, 1 / 255),
    "palette": (".tif", lambda path: Image.fromarray(scene()).quantize(50).save(path), 3, 1 / 255),
    "bits": (".tif", lambda path: Image.fromarray(noise(HEIGHT, WIDTH) > 127).save(path), 1, 1 / 255),
    "JPEG strips": (".tif", pillow(scene(), compression="jpeg"), 3, 1 / 255),
    "LZW": (".tif", pillow(scene(), compression="tiff_lzw"), 3, 1 / 255),
    "gray LZW": (".tif", pillow(noise(HEIGHT, WIDTH), compression="tiff_lzw"), 1, 1 / 255),
    "turned": (
        ".tif",
        tiff(noise(HEIGHT, WIDTH, 3), photometric="rgb", extratags=[(274, "H", 1, 6, True)]),
        3,
        1 / 255,
    ),
    "array": (".npy", lambda path: np.save(path, noise(HEIGHT, WIDTH, dtype=np.float32)), 1, 1.0),
    "array of bands": (".npy", lambda path: np.save(path, noise(HEIGHT, WIDTH, 5, dtype=np.uint16)), 5, 1e-4),
    "bands first": (".npy", lambda path: np.save(path, noise(5, HEIGHT, WIDTH)), 5, 1 / 255),
    "JPEG": (".jpg", pillow(scene()), 3, 1 / 255),
    "PNG": (".png", pillow(noise(HEIGHT, WIDTH, 4)), 3, 1 / 255),
    "16-bit PNG": (".png", pillow(noise(HEIGHT, WIDTH, dtype=np.uint16)), 1, 1 / 65535),
}


def numbers(path, channels, factor, nodata=None):
    """What a model gets: (C, H, W)."""
    return pixels_of(open_image(path, channels, factor, nodata), channels)


def assert_windows_are_crops(path, channels, factor, nodata=None, whole=None):
    whole = numbers(path, channels, factor, nodata) if whole is None else whole
    height, width = whole.shape[1:]
    for top, left, rows, columns in (
        (min(TOP, height - ROWS), min(LEFT, width - COLUMNS), ROWS, COLUMNS),
        (0, 0, 20, 20) if not np.isnan(np.sum(whole[:, :20, :20])) else (height - 20, width - 20, 20, 20),
        (height - 9, width - 11, 9, 11),
        (0, 0, height, width),
    ):
        window = numbers(window_address(path, 0, top, left, rows, columns), channels, factor, nodata)
        expected = whole[:, top : top + rows, left : left + columns]
        if np.isnan(expected.astype(np.float64)).any():
            assert window.dtype == np.float32
        np.testing.assert_array_equal(window, expected)


@pytest.mark.parametrize("case", CASES)
def test_windows_are_crops_of_the_whole_image(case, tmp_path):
    suffix, write, channels, factor = CASES[case]
    path = tmp_path / f"image{suffix}"
    write(path)
    assert_windows_are_crops(path, channels, factor)


BANDS = {
    "five bands": [[4, 3, 2], [5]],
    "five planes": [[4, 3, 2], [1, 5]],
    "four pages": [[4, 3, 2], [2]],
    "OME channels": [[1, 4]],
    "tifffile's planes": [[3, 1, 2]],
    "array of bands": [[3, 1, 2], [4, 5]],
    "uint8 RGBA": [[3, 1, 2], [2]],
    "uint16 RGB": [[3, 2, 1], [2]],
    "uint16 RGB at 8 bits": [[3, 2, 1], [2]],
    "dark window of 12 bits in color": [[3, 2, 1], [2]],
    "PNG": [[4, 1, 1]],
}


@pytest.mark.parametrize("case", BANDS)
def test_windows_of_bands_are_crops_of_the_whole_image(case, tmp_path):
    suffix, write, _, factor = CASES[case]
    path = tmp_path / f"image{suffix}"
    write(path)
    for bands in BANDS[case]:
        address = str(Address(str(path), {"bands": bands_part(bands)}))
        assert_windows_are_crops(address, len(bands), factor)
    with pytest.raises(ValueError, match="numbered from 1 on"):
        open_image(str(Address(str(path), {"bands": "99", "height": "9", "width": "9"})), 1, factor, None)


def test_given_nodata_is_compared_with_the_numbers_of_the_file(tmp_path):
    path = tmp_path / "image.tif"
    tiff(missing_corner(noise(HEIGHT, WIDTH, 3), 7), photometric="rgb", **TILES)(path)
    assert_windows_are_crops(path, 3, 1 / 255, nodata=7)


@pytest.mark.parametrize("compression", ["lzw", "jpeg", "zstd", "jpeg2000"])
def test_compressions_of_imagecodecs(compression, tmp_path):
    pytest.importorskip("imagecodecs")
    path = tmp_path / "image.tif"
    tiff(scene(), photometric="rgb", compression=compression, tile=(48, 64))(path)
    # Pillow reads whole JPEG files, and tifffile the others.
    assert_windows_are_crops(path, 3, 1 / 255)


def test_only_the_touched_tiles_are_decoded(tmp_path, monkeypatch):
    path = tmp_path / "image.tif"
    tiff(noise(512, 512, 3), photometric="rgb", compression="zlib", tile=(64, 64))(path)
    images, seen = [open_large(path), open_large(str(Address(str(path), {"bands": "3|1"})))], []
    decode = large_tiff.TiffImage._segment
    monkeypatch.setattr(
        large_tiff.TiffImage,
        "_segment",
        lambda self, page, index, *rest: seen.append(index) or decode(self, page, index, *rest),
    )
    for image in images:
        seen.clear()
        image.read(0, 70, 130, 60, 70)
        # Two rows and two columns of tiles.
        assert sorted(seen) == [10, 11, 18, 19] or sorted(seen) == [10, 11, 12, 18, 19, 20]


def test_levels_pixel_size_and_empty_tiles(tmp_path):
    path = tmp_path / "image.ome.tif"
    base = noise(256, 384, 3)
    with tifffile.TiffWriter(path, ome=True) as file:
        facts = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm"}
        file.write(base, subifds=2, photometric="rgb", tile=(64, 64), metadata=facts)
        for factor in (2, 4):
            file.write(base[::factor, ::factor], subfiletype=1, photometric="rgb", tile=(64, 64))
    image = open_large(path)
    assert image.levels == [(256, 384), (128, 192), (64, 96)]
    assert (image.pixel_size, image.level_pixel_size(2), image.num_channels) == (0.25, 1.0, 3)
    window = numbers(window_address(path, 1, 10, 20, 30, 40), 3, 1 / 255)
    np.testing.assert_array_equal(window, np.moveaxis(base[::2, ::2][10:40, 20:60], -1, 0))


def test_reduced_pages_are_levels(tmp_path):
    path = tmp_path / "cog.tif"
    base = noise(250, 390)
    with tifffile.TiffWriter(path) as file:
        file.write(base, tile=(64, 64), metadata=None)
        for factor in (2, 4):
            file.write(base[::factor, ::factor], subfiletype=1, tile=(64, 64), metadata=None)
    assert open_large(path).levels == [(250, 390), (125, 195), (63, 98)]


def test_addresses_of_windows():
    text = window_address("a/b.tif", 1, 2, 3, 4, 5)
    assert text == "a/b.tif::level=1,top=2,left=3,height=4,width=5"
    assert window_place(text) == ("a/b.tif", 1, 2, 3, 4, 5)
    assert window_place("v.nii::slice=7,top=2,left=3,height=4,width=5") == ("v.nii::slice=7", 0, 2, 3, 4, 5)
    with pytest.raises(ValueError, match="whole numbers"):
        window_place("a.tif::top=x,height=4,width=5")


def test_windows_outside_of_the_image_are_refused(tmp_path):
    path = tmp_path / "image.tif"
    tiff(noise(HEIGHT, WIDTH), **TILES)(path)
    with pytest.raises(ValueError, match="150 rows and 210 columns"):
        numbers(window_address(path, 0, 100, 0, 64, 64), 1, 1 / 255)
    with pytest.raises(ValueError, match="levels 0 to 0"):
        numbers(window_address(path, 1, 0, 0, 64, 64), 1, 1 / 255)


def test_stacks_are_refused(tmp_path):
    path = tmp_path / "stack.ome.tif"
    tifffile.imwrite(path, noise(4, HEIGHT, WIDTH), photometric="minisblack", metadata={"axes": "ZYX"})
    with pytest.raises(ValueError, match="Z=4"):
        open_large(path)


def test_files_stay_open_until_they_change(tmp_path, monkeypatch):
    path = tmp_path / "image.npy"
    np.save(path, noise(20, 30))
    first = open_large(path)
    assert open_large(path) is first
    np.save(path, noise(40, 30))
    os.utime(path, ns=(1, 1))
    assert open_large(path).levels == [(40, 30)]
    # Another process has its own.
    second = open_large(path)
    monkeypatch.setattr(large.os, "getpid", lambda: -1)
    assert open_large(path) is not second
    for index in range(MAX_OPEN + 2):
        np.save(tmp_path / f"{index}.npy", noise(20, 30))
        open_large(tmp_path / f"{index}.npy")
    assert len(large._opened) == MAX_OPEN


def test_missing_libraries_are_named(tmp_path, monkeypatch):
    (tmp_path / "scan.mrxs").write_bytes(b"no slide")
    (tmp_path / "mosaic.vrt").write_text("<VRTDataset/>")
    zarr = tmp_path / "array.zarr"
    zarr.mkdir()
    (zarr / "zarr.json").write_text("{}")
    real = __import__("importlib").import_module

    def without(name, *rest):
        if name in ("openslide", "tiffslide", "rasterio", "zarr"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr("importlib.import_module", without)
    for name, extra in (("scan.mrxs", "slides"), ("mosaic.vrt", "geo"), ("array.zarr", "arrays")):
        with pytest.raises(ValueError, match=rf"hf-simmim\[{extra}\]"):
            open_large(tmp_path / name)


def test_zarr(tmp_path):
    zarr = pytest.importorskip("zarr")
    for index, (shape, channels) in enumerate((((HEIGHT, WIDTH), 1), ((HEIGHT, WIDTH, 3), 3), ((5, HEIGHT, WIDTH), 5))):
        path, array = tmp_path / f"{index}.zarr", noise(*shape, dtype=np.uint16)
        zarr.create_array(store=str(path), data=array, chunks=tuple(min(side, 40) for side in shape))
        whole = channels_first(array, channels)
        assert_windows_are_crops(path, channels, 1e-4, whole=whole)


def test_ome_zarr(tmp_path):
    zarr = pytest.importorskip("zarr")
    path, base = tmp_path / "image.zarr", noise(1, 3, 1, 64, 96)
    group = zarr.create_group(store=str(path))
    for level in (0, 1):
        group.create_array(str(level), data=base[..., :: 2**level, :: 2**level])
    units = [{"name": name, **({"unit": "micrometer"} if name in "yx" else {})} for name in "tczyx"]
    scale = [{"type": "scale", "scale": [1, 1, 1, 0.5, 0.5]}]
    datasets = [{"path": str(level), "coordinateTransformations": scale} for level in (0, 1)]
    group.attrs["multiscales"] = [{"axes": units, "datasets": datasets}]
    image = open_large(path)
    assert (image.levels, image.pixel_size, image.num_channels) == ([(64, 96), (32, 48)], 0.5, 3)
    window = numbers(window_address(path, 1, 3, 5, 20, 30), 3, 1 / 255)
    np.testing.assert_array_equal(window, base[0, :, 0, ::2, ::2][:, 3:23, 5:35])


def write_raster(rasterio, path, bands, **options):
    count, height, width = bands.shape
    profile = {"count": count, "height": height, "width": width, "dtype": bands.dtype, "driver": "GTiff"}
    with rasterio.open(path, "w", **profile | options) as raster:
        raster.write(bands)
        if raster.driver == "GTiff":
            raster.build_overviews([2, 4])


def test_rasters(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    transforms = pytest.importorskip("rasterio.transform")
    bands = noise(5, HEIGHT, WIDTH, dtype=np.int16)
    bands[:, :80, :120] = -999
    place = {"crs": "EPSG:32632", "transform": transforms.from_origin(0, 0, 10, 10)}
    tiles = {"tiled": True, "blockxsize": 32, "blockysize": 32, "nodata": -999}
    path = tmp_path / "scene.tif"
    write_raster(rasterio, path, bands, **place, **tiles)
    # Overviews are levels for tifffile, too.
    assert open_large(path).levels == [(150, 210), (75, 105), (38, 53)]
    assert_windows_are_crops(path, 5, 1e-4)
    # A mosaic of this file, which only GDAL reads, has the same numbers.
    shutil = pytest.importorskip("rasterio.shutil")
    mosaic = tmp_path / "mosaic.vrt"
    shutil.copy(str(path), str(mosaic), driver="VRT")
    whole = numbers(path, 5, 1e-4)
    assert np.isnan(whole).any()
    assert_windows_are_crops(mosaic, 5, 1e-4, whole=whole)
    image = open_large(mosaic)
    assert (image.pixel_size, image.nodata) == (1e7, -999)
    raster = large_others.RasterImage(str(path))
    assert raster.levels == open_large(path).levels
    np.testing.assert_array_equal(raster.read(1, 20, 30, 40, 50), open_large(path).read(1, 20, 30, 40, 50))


def test_pixels_outside_of_a_rasters_mask_are_missing(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    shutil = pytest.importorskip("rasterio.shutil")
    path, mosaic = tmp_path / "scene.tif", tmp_path / "mosaic.vrt"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        with rasterio.open(
            path, "w", driver="GTiff", count=3, height=64, width=64, dtype="uint8", photometric="RGB"
        ) as raster:
            raster.write(noise(3, 64, 64))
            mask = np.full((64, 64), 255, np.uint8)
            mask[:, :20] = 0
            raster.write_mask(mask)
        shutil.copy(str(path), str(mosaic), driver="VRT")
    window = numbers(window_address(mosaic, 0, 0, 10, 64, 30), 3, 1 / 255)
    assert np.isnan(window[:, :, :10]).all()
    assert not np.isnan(window[:, :, 10:]).any()
    np.testing.assert_array_equal(window[:, :, 10:], noise(3, 64, 64)[:, :, 20:40])
