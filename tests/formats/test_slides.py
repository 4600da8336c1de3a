"""Files as slide scanners write them: windows are the numbers of OpenSlide and tiffslide, at every level and border."""

import sys

import numpy as np
import pytest
import tifffile

from hf_simmim.formats.large import open_large, window_address
from hf_simmim.formats.large_others import SlideImage
from hf_simmim.formats.large_tiff import TiffImage
from hf_simmim.model.images import open_image, pixels_of

openslide = pytest.importorskip("openslide")
tiffslide = pytest.importorskip("tiffslide")
pytest.importorskip("imagecodecs")

# No level is a whole fraction of the finest one.
HEIGHT, WIDTH, TILE = 723, 965, 240
PLAIN = {"photometric": "rgb", "metadata": None}
TILED = PLAIN | {"compression": "jpeg", "tile": (TILE, TILE)}


def scene(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([127 + 120 * np.sin(x / (9 + index) + y / 17) for index in range(3)], axis=-1).astype(np.uint8)


def smaller(array, factor):
    height, width = (side // factor for side in array.shape[:2])
    cells = array[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return cells.mean((1, 3)).astype(np.uint8)


def write_aperio(path, **options):
    """A thumbnail, smaller levels, a label and a macro follow the image."""
    base = scene(HEIGHT, WIDTH)
    text = f"Aperio Image Library v11.2.1\r\n{WIDTH}x{HEIGHT} (240x240) JPEG/RGB Q=70|AppMag = 20|MPP = 0.4990"
    other = PLAIN | {"rowsperstrip": 90}
    with tifffile.TiffWriter(path) as file:
        file.write(base, description=text, **TILED | options)
        file.write(smaller(base, 8), description=text, **other)
        file.write(smaller(base, 4), description=text, **TILED | options)
        file.write(smaller(base, 16), description=text, **TILED | options)
        file.write(scene(90, 120), description="Aperio Image Library\r\nlabel 120x90", subfiletype=1, **other)
        file.write(scene(90, 220), description="Aperio Image Library\r\nmacro 220x90", subfiletype=9, **other)


def write_generic(path):
    base = scene(HEIGHT, WIDTH)
    with tifffile.TiffWriter(path) as file:
        file.write(base, resolution=(20_000, 20_000), resolutionunit="CENTIMETER", **TILED)
        for factor in (2, 4, 8):
            file.write(smaller(base, factor), subfiletype=1, **TILED)


def tiles(array, side, missing=()):
    for row in range(0, array.shape[0], side):
        for column in range(0, array.shape[1], side):
            part = array[row : row + side, column : column + side]
            padded = np.pad(part, ((0, side - part.shape[0]), (0, side - part.shape[1]), (0, 0)), constant_values=255)
            yield None if (row // side, column // side) in missing else padded


def write_philips(path, missing=()):
    """Pages are padded to whole tiles, and empty tiles may be left out."""
    side = 256
    base = np.full((1024, 1024, 3), 255, np.uint8)
    base[:HEIGHT, :WIDTH] = scene(HEIGHT, WIDTH)
    name = '<Attribute Name="{}" Group="0x0028" Element="0x0030" PMSVR="{}">'
    spacing = name.format("DICOM_PIXEL_SPACING", "IDoubleArray") + "&quot;{0}&quot; &quot;{0}&quot;</Attribute>"
    levels = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{spacing.format(0.00025 * factor)}</DataObject>'
        for factor in (1, 2, 4)
    )
    text = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        f"{name.format('DICOM_MANUFACTURER', 'IString')}any</Attribute>"
        f'{name.format("PIM_DP_SCANNED_IMAGES", "IDataObjectArray")}<Array><DataObject ObjectType="DPScannedImage">'
        f"{name.format('PIM_DP_IMAGE_TYPE', 'IString')}WSI</Attribute>{spacing.format(0.00025)}"
        f"{name.format('PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE', 'IDataObjectArray')}<Array>{levels}</Array>"
        "</Attribute></DataObject></Array></Attribute></DataObject>"
    )
    software = {"software": "Philips DP v1.0"}
    with tifffile.TiffWriter(path) as file:
        for level, factor in enumerate((1, 2, 4)):
            array = smaller(base, factor)
            options = TILED | {"tile": (side, side), "shape": array.shape, "dtype": array.dtype} | software
            description, kind = (text, 0) if level == 0 else (f"level={level}", 1)
            parts = tiles(array, side, missing if level == 0 else ())
            file.write(parts, description=description, subfiletype=kind, **options)
        for name in ("Macro", "Label"):
            file.write(scene(90, 120), description=name, **PLAIN, **software)


def write_leica(path):
    """The first page is a macro of the whole slide, on which the scan has a place."""
    base, size = scene(HEIGHT, WIDTH), 'sizeX="{}" sizeY="{}"'
    whole, rest = size.format(600_000, 500_000), '<device model="Leica SCN400" version="1"/>'
    light = "<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>"
    settings = (
        "<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>"
        f"<illuminationSettings>{light}</illuminationSettings></scanSettings>"
    )
    date = "<creationDate>2020-01-01T00:00:00Z</creationDate>"
    levels = "".join(
        f'<dimension {size.format(WIDTH // factor, HEIGHT // factor)} r="{level}" ifd="{level + 1}"/>'
        for level, factor in enumerate((1, 2))
    )
    text = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:1">'
        f'<collection name="c" uuid="urn:uuid:2" {whole}><barcode>QQ==</barcode>'
        f'<image name="macro" uuid="urn:uuid:3">{date}{rest}<pixels {size.format(300, 250)}>'
        f'<dimension {size.format(300, 250)} r="0" ifd="0"/></pixels><view {whole} offsetX="0" offsetY="0"/>'
        f'{settings}</image><image name="main" uuid="urn:uuid:4">{date}{rest}<pixels {size.format(WIDTH, HEIGHT)}>'
        f'{levels}</pixels><view {size.format(WIDTH * 500, HEIGHT * 500)} offsetX="50000" offsetY="100000"/>'
        f"{settings}</image></collection></scn>"
    )
    scale = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(scene(250, 300), description=text, **TILED)
        file.write(base, **TILED, **scale)
        file.write(smaller(base, 2), **TILED, **scale)


def write_ventana(path):
    tag = lambda text: [(700, 1, None, text, True)]  # noqa: E731
    software = {"software": "ScanOutputManager 1.1"}
    with tifffile.TiffWriter(path) as file:
        file.write(scene(90, 120), description="Label Image", extratags=tag(b"<iScan/>"), **PLAIN, **software)
        file.write(scene(HEIGHT, WIDTH), description="level=0 mag=40", extratags=tag(b"<i/>"), **TILED, **software)


def color_ycbcr(path):
    write_aperio(path, subsampling=(2, 2))


def jpeg2000(path):
    write_aperio(path, compression="aperio_jp2000_rgb")


# How it is written, its name, by what it is read, its pixel size, and the number of levels.
FILES = {
    "Aperio": (write_aperio, "a.svs", TiffImage, 0.499, 3),
    "Aperio, another name": (write_aperio, "a.tif", TiffImage, 0.499, 3),
    "Aperio, YCbCr": (color_ycbcr, "a.svs", TiffImage, 0.499, 3),
    "Aperio, JPEG 2000": (jpeg2000, "a.svs", TiffImage, 0.499, 3),
    "pyramid": (write_generic, "a.tif", TiffImage, 0.5, 4),
    "pyramid, another name": (write_generic, "a.svs", TiffImage, 0.5, 4),
    "Philips": (write_philips, "a.tiff", TiffImage, 0.25, 3),
    "Leica": (write_leica, "a.scn", SlideImage, 0.5, 2),
    "Leica, another name": (write_leica, "a.tif", SlideImage, 0.5, 2),
}


def places(height, width):
    """Windows at corners and borders, and between them."""
    rows, columns = 21, 33
    for top in (0, height // 3 | 1, height - rows):
        for left in (0, width // 3 | 1, width - columns):
            yield top, left, rows, columns


def opened(path):
    return pixels_of(open_image(path, 3, 1 / 255, None), 3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_windows_are_those_of_openslide_and_tiffslide(name, tmp_path):
    write, file, kind, pixel_size, num_levels = FILES[name]
    path = tmp_path / file
    write(path)
    image = open_large(path)
    assert (type(image), image.pixel_size) == (kind, pytest.approx(pixel_size))
    for library in (openslide.OpenSlide, tiffslide.TiffSlide):
        slide = library(str(path))
        # No thumbnail, label or macro is a level.
        assert [(height, width) for width, height in slide.level_dimensions] == image.levels
        assert len(image.levels) == num_levels
        for level, (height, width) in enumerate(image.levels):
            # Read whole: places of windows in it are not rounded.
            picture = np.asarray(slide.read_region((0, 0), level, (width, height)))
            colors = picture[..., :3].copy()
            if picture.shape[-1] == 4:
                colors[picture[..., 3] == 0] = 255
            elif kind is SlideImage:
                colors[(image.read(level, 0, 0, height, width) == 0).all(axis=-1)] = 255
            for top, left, rows, columns in places(height, width):
                window = opened(window_address(path, level, top, left, rows, columns))
                expected = np.moveaxis(colors[top : top + rows, left : left + columns], -1, 0)
                np.testing.assert_array_equal(window, expected)


def test_the_numbers_written_are_read(tmp_path):
    write_aperio(tmp_path / "a.svs", compression="aperio_jp2000_rgb")
    base = scene(HEIGHT, WIDTH)
    for level, factor in enumerate((1, 4, 16)):
        expected = smaller(base, factor)
        for top, left, rows, columns in places(*expected.shape[:2]):
            window = opened(window_address(tmp_path / "a.svs", level, top, left, rows, columns))
            np.testing.assert_array_equal(
                window, np.moveaxis(expected, -1, 0)[:, top : top + rows, left : left + columns]
            )


def test_ycbcr_in_jpeg2000_is_read_by_openslide_alone(tmp_path, monkeypatch):
    # tifffile writes RGB where such files hold YCbCr, and calls it RGB, as they do.
    gray = np.repeat(scene(480, 480)[..., :1], 3, axis=-1)
    codes = np.concatenate([gray[..., :1], np.full_like(gray[..., 1:], 128)], axis=-1)
    text = "Aperio Image Library v11.2.1\r\n480x480 (240x240) J2K/YUV16|MPP = 0.25"
    for name in ("a.svs", "a.tif"):
        with tifffile.TiffWriter(tmp_path / name) as file:
            file.write(codes, description=text, **TILED | {"compression": "aperio_jp2000_ycbc"})
        window = opened(window_address(tmp_path / name, 0, 100, 200, 50, 60))
        np.testing.assert_array_equal(window, np.moveaxis(gray[100:150, 200:260], -1, 0))
    with pytest.raises(ValueError, match="compression 33003, which OpenSlide reads if the file is named .svs"):
        opened(tmp_path / "a.tif")
    monkeypatch.setitem(sys.modules, "openslide", None)
    for name in ("a.svs", "a.tif"):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=r"compression 33003.*hf-simmim\[slides\]"):
            open_large(tmp_path / name)


def write_holes(path):
    text = f"Aperio Image Library v11.2.1\r\n{WIDTH}x{HEIGHT} (240x240)|MPP = 0.25"
    array = scene(HEIGHT, WIDTH)
    with tifffile.TiffWriter(path) as file:
        parts = tiles(array, TILE, {(0, 1)})
        file.write(parts, shape=array.shape, dtype=array.dtype, description=text, **TILED)


@pytest.mark.parametrize("write", [write_holes, lambda path: write_philips(path, {(0, 1)})])
def test_missing_tiles_of_slides_are_no_black_tissue(write, tmp_path, monkeypatch):
    path = tmp_path / "a.tiff"
    write(path)
    image = open_large(path)
    # The tile is at columns 240 or 256 to 480 or 512.
    assert not image.read(0, 0, 256, 240, 224)[..., 3].any()
    assert image.read(0, 0, 0, 240, 240)[..., 3].all()
    window = opened(window_address(path, 0, 0, 300, 100, 100))
    assert (window == 255).all()
    monkeypatch.setitem(sys.modules, "openslide", None)
    path.touch()
    with pytest.raises(ValueError, match=r"1 of \d+ tiles are missing, which OpenSlide reads: pip install"):
        open_large(path)


@pytest.mark.filterwarnings("ignore")
def test_what_only_openslide_joins_is_not_read_otherwise(tmp_path, monkeypatch):
    for name in ("a.bif", "a.tif"):
        # It lacks what OpenSlide joins the tiles by; tifffile and tiffslide would read them side by side.
        write_ventana(tmp_path / name)
        with pytest.raises(ValueError, match="a slide of Ventana, which OpenSlide reads"):
            open_large(tmp_path / name)
    write_leica(tmp_path / "a.scn")
    monkeypatch.setitem(sys.modules, "openslide", None)
    assert type(open_large(tmp_path / "a.scn")) is SlideImage
    monkeypatch.setitem(sys.modules, "tiffslide", None)
    (tmp_path / "a.scn").touch()
    # The first page, which TIFF readers take, is the macro.
    with pytest.raises(ValueError, match=r"a slide of Leica, which OpenSlide reads: pip install .hf-simmim\[slides\]"):
        open_large(tmp_path / "a.scn")


@pytest.mark.parametrize("library", ["openslide", "tiffslide"])
def test_coarse_levels_by_the_libraries_themselves(library, tmp_path, monkeypatch):
    path = tmp_path / "a.svs"
    write_aperio(path)
    if library == "tiffslide":
        monkeypatch.setitem(sys.modules, "openslide", None)
    slide, tiff = SlideImage(str(path)), TiffImage(str(path))
    for level, (height, width) in enumerate(tiff.levels):
        for top, left, rows, columns in places(height, width):
            window = slide.read(level, top, left, rows, columns)
            assert (window[..., 3] == 255).all()
            difference = np.abs(window[..., :3].astype(int) - tiff.read(level, top, left, rows, columns))
            # OpenSlide interpolates, up to half of a pixel of level 0.
            assert difference.mean() <= (0 if library == "tiffslide" or level == 0 else 5)
