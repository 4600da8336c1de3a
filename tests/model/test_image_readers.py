"""What files of many formats store, against what is read: numbers, meaning of the channels, pages, missing pixels."""

import base64
import importlib.util
import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from hf_simmim import SimMIMImageProcessorPil
from hf_simmim.data.labeled.annotations import read_ids
from hf_simmim.data.reading import open_row
from hf_simmim.data.transforms import crop_and_resize, upright_size
from hf_simmim.model import image_readers, images
from hf_simmim.model.tiff import MASK_PAGE, MAX_OTHER_PAGES, tiff_directories

EIGHT_BITS, SIXTEEN_BITS = 1 / 255, 1 / 65535
ROWS, COLUMNS = np.mgrid[0:48, 0:64]
GRAY = (COLUMNS * 1000 + ROWS).astype(np.uint16)
RGB = np.dstack([COLUMNS * 4, ROWS * 5, COLUMNS + ROWS]).astype(np.uint8)
DEEP_RGB = RGB.astype(np.uint16) * 257


def trained(path, channels: int = 3, factor: float = EIGHT_BITS, nodata: float | None = None) -> np.ndarray:
    """The numbers of a whole image (H, W, C) that a training sees, before they are rescaled."""
    image = open_row({"image": {"bytes": None, "path": str(path)}}, channels, factor, nodata)
    height, width = upright_size(image)
    return crop_and_resize(image, (0, 0, width, height), (height, width), channels).squeeze()


def processed(source, channels: int = 3, factor: float = EIGHT_BITS, **settings) -> np.ndarray:
    """The numbers (H, W, C) that the processor sees, rescaled back."""
    statistics = {"image_mean": [0.0] * channels, "image_std": [1.0] * channels, "rescale_factor": factor}
    processor = SimMIMImageProcessorPil(**statistics, do_resize=False)
    pixels = processor(source, return_tensors="np", **settings)["pixel_values"][0] / np.float32(factor)
    return np.moveaxis(np.rint(pixels), 0, -1).squeeze()


def nodata_tag(text: str) -> list:
    return [(42113, "s", 0, text, True)]


def png(array: np.ndarray, bits: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of gray (H, W) or colors (H, W, 3) of 4 or 16 bits."""
    height, width = array.shape[:2]
    if bits == 4:
        packed = (array[:, ::2] << 4 | array[:, 1::2]).astype(np.uint8)
    else:
        packed = array.astype(">u2").reshape(height, -1).view(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", width, height, bits, 0 if array.ndim == 2 else 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def write_pnm(path, array: np.ndarray, largest: int) -> None:
    kind = "P5" if array.ndim == 2 else "P6"
    numbers = array.astype(">u2" if largest > 255 else "u1")
    path.write_bytes(f"{kind}\n# comment\n64 48\n{largest}\n".encode() + numbers.tobytes())


def write_fits(path, array: np.ndarray, *cards: str) -> None:
    bits = {"u1": 8, "i2": 16, "i4": 32, "f4": -32, "f8": -64}[array.dtype.str[1:]]
    sizes = [f"NAXIS{index + 1}  = {size:20d}" for index, size in enumerate(array.shape[::-1])]
    lines = ["SIMPLE  =                    T", f"BITPIX  = {bits:20d}", f"NAXIS   = {array.ndim:20d}", *sizes, *cards]
    header = "".join(line.ljust(80) for line in (*lines, "END")).ljust(2880).encode()
    data = array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(header + data.ljust(-(-len(data) // 2880) * 2880, b"\0"))


# Numbers


@pytest.mark.parametrize("kind", ["png", "tif", "tif planar", "tif big-endian", "tif zlib", "ppm", "sgi"])
def test_colors_of_16_bits_by_path_and_opened(tmp_path, kind):
    path = tmp_path / f"a.{kind[:3]}"
    if kind == "png":
        path.write_bytes(png(DEEP_RGB, 16))
    elif kind == "ppm":
        write_pnm(path, DEEP_RGB, 65535)
    elif kind == "sgi":
        header = struct.pack(">HBBHHHH", 474, 0, 2, 3, 64, 48, 3).ljust(512, b"\0")
        path.write_bytes(header + np.moveaxis(DEEP_RGB, -1, 0)[:, ::-1].astype(">u2").tobytes())
    else:
        planar = kind == "tif planar"
        tifffile.imwrite(
            path,
            np.moveaxis(DEEP_RGB, -1, 0) if planar else DEEP_RGB,
            photometric="rgb",
            planarconfig="separate" if planar else None,
            byteorder=">" if kind == "tif big-endian" else "<",
            compression="zlib" if kind == "tif zlib" else None,
        )
    for factor, expected in ((SIXTEEN_BITS, DEEP_RGB), (EIGHT_BITS, RGB)):
        np.testing.assert_array_equal(trained(path, 3, factor), expected)
        for source in (str(path), Image.open(path)):
            np.testing.assert_array_equal(processed(source, 3, factor), expected)


def test_colors_of_16_bits_that_are_decoded_already(tmp_path):
    (tmp_path / "a.png").write_bytes(png(DEEP_RGB, 16))
    tifffile.imwrite(tmp_path / "a.tif", DEEP_RGB, photometric="rgb")
    for name in ("a.png", "a.tif"):
        with Image.open(tmp_path / name) as image:
            image.load()
            with pytest.raises(ValueError, match="holds 16 bits, .* Pass the path"):
                processed(image, 3, SIXTEEN_BITS)
            np.testing.assert_array_equal(processed(image), RGB)


@pytest.mark.parametrize("bits", range(9, 15))
def test_few_bits_in_16_are_not_black(tmp_path, bits, monkeypatch):
    messages: list[str] = []
    monkeypatch.setattr(images.logger, "warning_once", messages.append)
    array = ((COLUMNS * 73 + ROWS * 3) * (2**bits - 1) // (63 * 73 + 47 * 3)).astype(np.uint16)
    Image.fromarray(array).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", array)
    tifffile.imwrite(tmp_path / "rgb.tif", np.dstack([array] * 3), photometric="rgb")
    write_pnm(tmp_path / "a.pgm", array, 2**bits - 1)
    for name in ("a.png", "a.tif", "rgb.tif", "a.pgm"):
        for pixels in (trained(tmp_path / name), processed(Image.open(tmp_path / name))):
            np.testing.assert_array_equal(pixels[..., 0], array >> (bits - 8))
        np.testing.assert_array_equal(trained(tmp_path / name, 3, SIXTEEN_BITS)[..., 0], array)
    assert any(f"--rescale_factor 1/{2**bits - 1}" in message for message in messages)


def test_numbers_of_pgm_and_jpeg_2000_are_not_stretched(tmp_path):
    write_pnm(tmp_path / "a.pgm", COLUMNS * 16, 1023)
    np.testing.assert_array_equal(trained(tmp_path / "a.pgm", 1, 1 / 1023), COLUMNS * 16)
    (tmp_path / "text.pgm").write_bytes(b"P2\n3 2\n15\n0 1 2\n13 14 # comment\n15\n")
    assert trained(tmp_path / "text.pgm", 1, 1.0).tolist() == [[0, 1, 2], [13, 14, 15]]
    assert trained(tmp_path / "text.pgm", 1).tolist() == [[0, 17, 34], [221, 238, 255]]
    Image.fromarray(GRAY).save(tmp_path / "a.jp2")
    np.testing.assert_array_equal(trained(tmp_path / "a.jp2", 1, SIXTEEN_BITS), GRAY)
    # Twelve bits, as the header of the code stream says.
    content = (tmp_path / "a.jp2").read_bytes()
    place = content.index(b"\xff\x4f\xff\x51")
    stored = images.read_stored(content[: place + 42] + b"\x0b" + content[place + 43 :], images.Wanted(1, True))
    assert stored.largest == 4095
    (tmp_path / "cut.ppm").write_bytes(b"P6 64 48 65535\n" + b"\0" * 100)
    with pytest.raises(ValueError, match="cut off"):
        trained(tmp_path / "cut.ppm")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
def test_fits(tmp_path, dtype):
    array = (COLUMNS * 3 + ROWS).astype(dtype)
    write_fits(tmp_path / "a.fits", array)
    np.testing.assert_array_equal(trained(tmp_path / "a.fits", 1, 1.0), array[::-1])
    if dtype != "uint8":
        with Image.open(tmp_path / "a.fits") as image:
            np.testing.assert_array_equal(processed(image, 1, 1.0), array[::-1])


def test_fits_of_unsigned_and_scaled_numbers_and_blanks(tmp_path):
    stored = (GRAY.astype(int) - 32768).astype(np.int16)
    write_fits(tmp_path / "unsigned.fits", stored, "BSCALE  =  1", "BZERO   =  32768")
    np.testing.assert_array_equal(trained(tmp_path / "unsigned.fits", 1, SIXTEEN_BITS), GRAY[::-1])
    np.testing.assert_array_equal(trained(tmp_path / "unsigned.fits", 1), GRAY[::-1] >> 8)
    write_fits(tmp_path / "scaled.fits", COLUMNS.astype(np.int16), "BSCALE  = 0.5", "BZERO   = 10", "BLANK   = 3")
    pixels = trained(tmp_path / "scaled.fits", 1, 1.0)
    assert np.isnan(pixels[:, 3]).all()
    np.testing.assert_array_equal(np.delete(pixels, 3, 1), np.delete(COLUMNS * 0.5 + 10, 3, 1))
    write_fits(tmp_path / "cube.fits", np.stack([COLUMNS, ROWS]).astype(np.float32))
    np.testing.assert_array_equal(trained(tmp_path / "cube.fits", 2, 1.0)[..., 1], ROWS[::-1])


# What numbers mean


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_white_is_zero(tmp_path, dtype):
    largest, factor = (255, EIGHT_BITS) if dtype == "uint8" else (65535, SIXTEEN_BITS)
    array = np.maximum(GRAY >> (8 if dtype == "uint8" else 0), 1).astype(dtype)
    array[:, :4] = 0
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite")
    np.testing.assert_array_equal(trained(tmp_path / "a.tif", 1, factor), largest - array)
    tifffile.imwrite(tmp_path / "pages.tif", np.stack([array] * 5), photometric="miniswhite")
    np.testing.assert_array_equal(trained(tmp_path / "pages.tif", 5, factor)[..., 2], largest - array)
    # The number of missing pixels is that in the file.
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite", extratags=nodata_tag("0"))
    pixels = trained(tmp_path / "a.tif", 1, factor)
    assert np.isnan(pixels[:, :4]).all()
    np.testing.assert_array_equal(pixels[:, 4:], largest - array[:, 4:])
    tifffile.imwrite(tmp_path / "a.tif", array.astype(np.float32), photometric="miniswhite")
    with pytest.raises(ValueError, match="white is zero"):
        trained(tmp_path / "a.tif", 1, 1.0)


def test_palettes(tmp_path):
    colors = np.zeros((3, 65536), np.uint16)
    colors[0, 5] = 65535
    tifffile.imwrite(tmp_path / "deep.tif", np.full((8, 8), 5, np.uint16), photometric="palette", colormap=colors)
    assert trained(tmp_path / "deep.tif", 3, SIXTEEN_BITS)[0, 0].tolist() == [65535, 0, 0]
    # Some programs write colors of 0 to 255.
    colors = np.tile(np.arange(256, dtype=np.uint16), (3, 1))
    tifffile.imwrite(tmp_path / "small.tif", RGB[..., 0], photometric="palette", colormap=colors)
    np.testing.assert_array_equal(trained(tmp_path / "small.tif")[..., 1], RGB[..., 0])


@pytest.mark.parametrize("factor", [EIGHT_BITS, SIXTEEN_BITS])
def test_missing_pixels_of_palettes_are_indices(tmp_path, factor):
    indices = (COLUMNS // 8).astype(np.uint8)
    colors = np.zeros((3, 256), np.uint16)
    colors[0, :8] = 30000 + np.arange(8) * 300
    for index, tag in ((0, "0"), (3, "3")):
        tifffile.imwrite(tmp_path / "a.tif", indices, photometric="palette", colormap=colors, extratags=nodata_tag(tag))
        np.testing.assert_array_equal(np.isnan(trained(tmp_path / "a.tif", 3, factor)[..., 0]), indices == index)
        row = {"image": {"bytes": None, "path": str(tmp_path / "a.tif")}, "name": "a"}
        np.testing.assert_array_equal(read_ids(row, 255), np.where(indices == index, 255, indices))


@pytest.mark.parametrize("kind", ["tif", "png"])
def test_missing_pixels_of_16_bit_colors_are_those_of_all_bits(tmp_path, kind):
    array = np.dstack([COLUMNS * 3, ROWS * 4, COLUMNS + ROWS]).astype(np.uint16) + 1
    array[:, 40:] += 30000
    for nodata in (0, 65535):
        array[:, :4] = nodata
        path = tmp_path / f"a.{kind}"
        if kind == "tif":
            tifffile.imwrite(path, array, photometric="rgb", extratags=nodata_tag(str(nodata)))
        else:
            path.write_bytes(png(array, 16))
        given = None if kind == "tif" else nodata
        for factor, expected in ((EIGHT_BITS, array[:, 4:] >> 8), (SIXTEEN_BITS, array[:, 4:])):
            pixels = trained(path, 3, factor, given)
            assert np.isnan(pixels).any(-1).sum() == 4 * 48
            np.testing.assert_array_equal(pixels[:, 4:], expected)


def test_gray_of_four_bits(tmp_path):
    array = (COLUMNS // 4) % 16
    (tmp_path / "a.png").write_bytes(png(array, 4))
    np.testing.assert_array_equal(trained(tmp_path / "a.png", 1), array * 17)
    np.testing.assert_array_equal(trained(tmp_path / "a.png", 1, 1.0), array)
    np.testing.assert_array_equal(np.isnan(trained(tmp_path / "a.png", 1, nodata=3)), array == 3)
    row = {"image": {"bytes": None, "path": str(tmp_path / "a.png")}, "name": "a"}
    np.testing.assert_array_equal(read_ids(row, 255), array)


def test_other_color_spaces(tmp_path):
    cmyk = np.asarray(Image.fromarray(RGB).convert("CMYK")).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "cmyk.tif", cmyk, photometric="separated")
    np.testing.assert_array_equal(trained(tmp_path / "cmyk.tif", 3, SIXTEEN_BITS), DEEP_RGB)
    np.testing.assert_array_equal(trained(tmp_path / "cmyk.tif", 4, SIXTEEN_BITS), cmyk)
    ycbcr = np.asarray(Image.fromarray(RGB).convert("YCbCr"))
    tifffile.imwrite(tmp_path / "ycbcr.tif", ycbcr, photometric="ycbcr", subsampling=(1, 1))
    assert np.abs(trained(tmp_path / "ycbcr.tif").astype(int) - RGB).max() <= 3
    for array in (RGB, DEEP_RGB):
        tifffile.imwrite(tmp_path / "lab.tif", array, photometric="cielab")
        with pytest.raises(ValueError, match="CIELab, which is not read. Convert"):
            trained(tmp_path / "lab.tif", 3, SIXTEEN_BITS)


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize(("array", "factor"), [(RGB, EIGHT_BITS), (DEEP_RGB, SIXTEEN_BITS)])
def test_transparency(tmp_path, kind, array, factor):
    largest = np.iinfo(array.dtype).max
    for alpha in (0, largest):
        # An alpha of 0 everywhere means nothing.
        stored = np.dstack([array, np.full((48, 64), alpha, array.dtype)])
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=[kind])
        np.testing.assert_array_equal(trained(tmp_path / "a.tif", 3, factor), array)
    stored[:24, :, :3] = stored[:24, :, 3][..., None] * 0
    stored[:24, :, 3] = 0
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=[kind])
    pixels = trained(tmp_path / "a.tif", 3, factor)
    assert (pixels[:24] == largest).all()
    np.testing.assert_array_equal(pixels[24:], array[24:])
    np.testing.assert_array_equal(trained(tmp_path / "a.tif", 4, factor)[24:, :, :3], array[24:])


def test_unused_alpha_of_windows_programs(tmp_path):
    bgra = np.dstack([RGB[..., ::-1], np.zeros((48, 64), np.uint8)])
    header = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 64, 48, 32, 0x20)
    (tmp_path / "a.tga").write_bytes(header + bgra.tobytes())
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 124, 64, 48, 1, 32, 3, bgra.nbytes, 2835, 2835, 0, 0)
    info += (masks + b"BGRs").ljust(84, b"\0")
    start = b"BM" + struct.pack("<IHHI", 138 + bgra.nbytes, 0, 0, 138)
    (tmp_path / "a.bmp").write_bytes(start + info + bgra[::-1].tobytes())
    Image.fromarray(np.dstack([RGB, np.zeros((48, 64), np.uint8)])).save(tmp_path / "a.png")
    for name in ("a.tga", "a.bmp", "a.png"):
        np.testing.assert_array_equal(trained(tmp_path / name), RGB)
        np.testing.assert_array_equal(processed(Image.open(tmp_path / name)), RGB)


# Pages of TIFF files


def test_masks_overviews_thumbnails_and_later_pages_are_not_the_image(tmp_path):
    gray = np.kron(RGB[..., 0], np.ones((4, 4), np.uint8))
    with tifffile.TiffWriter(tmp_path / "mask.tif") as tiff:
        tiff.write(RGB, photometric="rgb")
        tiff.write(COLUMNS > 10, photometric="mask", subfiletype=4)
    with tifffile.TiffWriter(tmp_path / "later.tif") as tiff:
        tiff.write(RGB, photometric="rgb")
        tiff.write(np.zeros((48, 64, 3)), photometric="rgb")
    with tifffile.TiffWriter(tmp_path / "first.tif") as tiff:
        tiff.write(RGB[::4, ::4], photometric="rgb", subfiletype=1)
        tiff.write(RGB, photometric="rgb", subfiletype=0)
    with tifffile.TiffWriter(tmp_path / "below.tif") as tiff:
        tiff.write(RGB[::4, ::4], photometric="rgb", subfiletype=1, subifds=1)
        tiff.write(RGB, photometric="rgb", subfiletype=0)
    for name in ("mask", "later", "first", "below"):
        np.testing.assert_array_equal(trained(tmp_path / f"{name}.tif"), RGB)
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as tiff:
        tiff.write(gray, tile=(64, 64), photometric="minisblack")
        for step in (2, 4):
            tiff.write(gray[::step, ::step], tile=(64, 64), subfiletype=1, photometric="minisblack")
    np.testing.assert_array_equal(trained(tmp_path / "pyramid.tif"), np.repeat(gray[..., None], 3, -1))


def test_a_mask_that_is_not_applied_is_said(tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr("hf_simmim.model.tiff.logger.warning_once", messages.append)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(RGB, photometric="rgb")
    trained(tmp_path / "a.tif")
    assert not messages
    with tifffile.TiffWriter(tmp_path / "a.tif", append=True) as tiff:
        tiff.write(COLUMNS > 10, photometric="mask", subfiletype=4)
    trained(tmp_path / "a.tif")
    assert messages == [MASK_PAGE]


@pytest.mark.parametrize(("kind", "is_told"), [("GIF", True), ("PNG", True), ("WEBP", True), ("MPO", False)])
def test_the_first_frame_of_an_animation_is_read_and_said(kind, is_told, monkeypatch):
    messages = []
    monkeypatch.setattr(image_readers.logger, "warning_once", messages.append)
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "blue", "blue")]
    for count in (1, 3):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:count])
        picture = images.open_image(file.getvalue(), 3, 1 / 255).convert("RGB")
        red, _, blue = picture.getpixel((4, 3))
        assert red > 230 > 30 > blue
        told = f"Only the first frame of animated {kind} files is read. Save others as files of their own."
        assert messages == [told] * (count > 1 and is_told)


@pytest.mark.parametrize("axes", ["ZYX", "TYX", "CYX", "ZCYX"])
@pytest.mark.parametrize("program", [{"imagej": True}, {"ome": True}, {}])
def test_depth_and_time_are_no_channels(tmp_path, axes, program):
    planes = np.stack([GRAY // (index + 1) for index in range(3)])
    stack = np.stack([planes, planes]) if len(axes) == 4 else planes
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", metadata={"axes": axes}, **program)
    if axes == "CYX":
        np.testing.assert_array_equal(trained(tmp_path / "a.tif", 3, SIXTEEN_BITS), np.moveaxis(planes, 0, -1))
    else:
        for channels in (3, 6):
            with pytest.raises(ValueError, match=f"with the axes .*{axes[0]}=[23].*: {axes[0]} is no channels"):
                trained(tmp_path / "a.tif", channels, SIXTEEN_BITS)
    np.testing.assert_array_equal(trained(tmp_path / "a.tif", 1, SIXTEEN_BITS), GRAY)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pages_that_are_channels_are_turned(tmp_path, orientation):
    bands = np.stack([GRAY // (index + 1) for index in range(5)])
    extra = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "pages.tif", bands, photometric="minisblack", extratags=extra)
    last = np.moveaxis(bands, 0, -1)
    tifffile.imwrite(tmp_path / "one.tif", last, photometric="minisblack", planarconfig="contig", extratags=extra)
    turned = [trained(tmp_path / name, 5, SIXTEEN_BITS) for name in ("pages.tif", "one.tif")]
    np.testing.assert_array_equal(*turned)
    assert turned[0].shape[:2] == ((64, 48) if orientation > 4 else (48, 64))


def test_many_pages_are_not_walked(tmp_path, monkeypatch):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for _ in range(300):
            tiff.write(RGB, photometric="rgb", contiguous=False, metadata=None)
    found: list[int] = []
    original = tiff_directories

    def count(file, limit):
        pages = original(file, limit)
        found.append(len(pages))
        return pages

    monkeypatch.setattr("hf_simmim.model.tiff.tiff_directories", count)
    np.testing.assert_array_equal(trained(tmp_path / "a.tif"), RGB)
    assert found == [3 + MAX_OTHER_PAGES]


@pytest.mark.skipif(importlib.util.find_spec("imagecodecs") is not None, reason="imagecodecs is installed")
def test_a_codec_that_is_missing_is_named(tmp_path, capfd):
    data = io.BytesIO()
    Image.fromarray(RGB).save(data, "WEBP", lossless=True)
    strip = data.getvalue()
    values = {256: 64, 257: 48, 258: 180, 259: 50001, 262: 2, 273: 200, 277: 3, 278: 48, 279: len(strip)}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items()]
    entries[2] = struct.pack("<HHII", 258, 3, 3, 180)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + b"\0" * 4
    path = tmp_path / "a.tif"
    path.write_bytes((head.ljust(180, b"\0") + struct.pack("<HHH", 8, 8, 8)).ljust(200, b"\0") + strip)
    for is_first in (True, False):
        with pytest.raises(ValueError, match=r"WEBP.*: pip install imagecodecs\.$"):
            trained(path)
        # Pillow's library complains once at most, not at each read.
        complaints = capfd.readouterr().err
        assert is_first or complaints == ""


# Safety


def test_what_is_no_image_is_not_opened(tmp_path, monkeypatch):
    files = {
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n",
        "GRIB": b"GRIB" + b"\0" * 512,
    }
    for name, content in files.items():
        (tmp_path / "a.jpg").write_bytes(content)
        for source in (str(tmp_path / "a.jpg"), "data:image/png;base64," + base64.b64encode(content).decode()):
            with pytest.raises(ValueError, match=f"{name} files are not read. Convert them, for example with"):
                processed(source)
    with pytest.raises(ValueError, match="is no file, no address .* Check the path"):
        processed("no such file.jpg")


def test_files_of_fields_are_read_by_the_package(tmp_path, monkeypatch):
    """Where the code of a checkpoint is used without the package, it says what reads them."""
    files = {
        ("HDF5", "arrays"): b"\x89HDF\r\n\x1a\n" + b"\0" * 512,
        ("DICOM", "medical"): b"\0" * 128 + b"DICM",
        ("HEIF", "photos"): b"\0\0\0\x18ftypheic" + b"\0" * 64,
    }
    monkeypatch.setattr(images, "OTHER_READERS", [])
    monkeypatch.setattr(images, "FORMATS", {"PNG": images.FORMATS["PNG"]})
    for (name, extra), content in files.items():
        (tmp_path / "a.jpg").write_bytes(content)
        for source in (str(tmp_path / "a.jpg"), content):
            with pytest.raises(ValueError, match=rf'{name} files are read by .*pip install "hf-simmim\[{extra}\]"'):
                images.read_stored(source, images.Wanted(3, True))
    (tmp_path / "a.nii.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(ValueError, match=r'nii.gz files are read by .*pip install "hf-simmim\[medical\]"'):
        images.read_stored(str(tmp_path / "a.nii.gz"), images.Wanted(3, True))


def test_large_images_are_refused_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.fromarray(RGB).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((48, 64, 13), np.uint16), photometric="minisblack")
    write_pnm(tmp_path / "a.ppm", DEEP_RGB, 65535)
    for name, channels in (("a.png", 3), ("a.tif", 13), ("a.ppm", 3)):
        with pytest.raises(ValueError, match=r"GiB of memory .*into tiles, .* HF_SIMMIM_MAX_MEGAPIXELS=\d+\."):
            trained(tmp_path / name, channels, SIXTEEN_BITS)
    code = "import hf_simmim.model.image_readers, PIL.Image; print(PIL.Image.MAX_IMAGE_PIXELS)"
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "HF_SIMMIM_MAX_MEGAPIXELS": "400"}
    )
    assert result.stdout.split() == ["200000000"]


def test_missing_pixels_of_large_files_take_no_copies(tmp_path):
    """Half of a compressed file is missing: decoded into floats, which are held once."""
    code = """
import resource, sys
import numpy as np, tifffile
from hf_simmim.data.reading import open_row
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = open_row({"image": {"bytes": None, "path": sys.argv[1]}}, 5, 1 / 255)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / image.size, np.isnan(image).mean())
"""
    tiles = (np.full((256, 256, 5), index % 2, np.uint8) for index in range(64))
    tifffile.imwrite(
        tmp_path / "a.tif",
        tiles,
        shape=(2048, 2048, 5),
        dtype=np.uint8,
        tile=(256, 256),
        planarconfig="contig",
        photometric="minisblack",
        compression="zlib",
        extratags=nodata_tag("0"),
    )
    output = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a.tif"], capture_output=True, text=True, check=True
    ).stdout
    times, share = map(float, output.split())
    assert share == 0.5
    assert times < 5.5


def test_stacks_of_images_are_refused_by_the_processor(tmp_path):
    np.save(tmp_path / "stack.npy", np.zeros((5, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="Save each image by itself"):
        processed(str(tmp_path / "stack.npy"))
