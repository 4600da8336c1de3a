"""Files of any numbers and channels: what is stored is what is read."""

import importlib.util
import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from hf_simmim.model import images
from hf_simmim.model.images import channels_first, convert_channels, open_image, pixels_of

EIGHT_BITS, SIXTEEN_BITS = 1 / 255, 1 / 65535
LARGEST = {"uint8": 255, "uint16": 65535, "int16": 32767, "float32": 1.0}


def random_array(dtype: str, channels: int, height: int = 20, width: int = 30) -> np.ndarray:
    """Channels first, over the whole range of its type."""
    numbers = np.random.default_rng(channels).uniform(-1 if dtype == "int16" else 0, 1, (channels, height, width))
    return (numbers * LARGEST[dtype]).astype(dtype)


def write(path, array: np.ndarray, kind: str) -> None:
    """An array (C, H, W) as a file of one of several layouts."""
    last = np.moveaxis(array, 0, -1)
    if len(array) == 1 and kind in ("tif", "tif planar"):
        kind, array = "tif pages", array[0]
    match kind:
        case "npy":
            np.save(path, array[0] if len(array) == 1 else array)
        case "npy last":
            np.save(path, last)
        case "tif pages":
            tifffile.imwrite(path, array, photometric="minisblack")
        case "tif planar":
            tifffile.imwrite(path, array, photometric="minisblack", planarconfig="separate")
        case "tif rgb":
            tifffile.imwrite(path, last, photometric="rgb", compression="zlib")
        case "tif":
            tifffile.imwrite(path, last, photometric="minisblack", planarconfig="contig")


def read(source, channels: int, rescale_factor: float) -> np.ndarray:
    """As data sets and the processor read: channels first, or a picture as an array."""
    image = open_image(source, channels, rescale_factor)
    if isinstance(image, Image.Image):
        array = np.asarray(convert_channels(image, channels))
        return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    return channels_first(image, channels)


KINDS_OF_FILES = ["npy", "npy last", "tif", "tif planar", "tif pages", "tif rgb"]


@pytest.mark.parametrize("kind", KINDS_OF_FILES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
@pytest.mark.parametrize("dtype", LARGEST)
def test_numbers_are_those_stored(tmp_path, dtype, channels, kind):
    if kind == "tif rgb" and (channels < 3 or dtype in ("int16", "float32")):
        pytest.skip("not RGB")
    array = random_array(dtype, channels)
    suffix = ".npy" if kind.startswith("npy") else ".tif"
    path = tmp_path / f"image{suffix}"
    write(path, array, kind)
    for source in (path, str(path), path.read_bytes()):
        actual = read(source, channels, SIXTEEN_BITS)
        assert actual.dtype == (np.uint8 if dtype == "uint8" else np.float32)
        np.testing.assert_array_equal(actual, array.astype(np.float32))


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_pictures_are_scaled_only_at_1_255(tmp_path, channels, kind):
    array = random_array("uint16", channels)
    path = tmp_path / f"image.{kind}"
    if kind == "png":
        path.write_bytes(png(np.moveaxis(array, 0, -1)))
    else:
        write(path, array, "tif rgb" if channels == 3 else "tif pages")
    np.testing.assert_array_equal(read(path, channels, EIGHT_BITS), array >> 8)
    np.testing.assert_array_equal(read(path, channels, SIXTEEN_BITS), array)
    np.testing.assert_array_equal(read(path, channels, 1 / 10000), array)


def png(array: np.ndarray, orientation: int | None = None) -> bytes:
    """A PNG file (H, W, C) of 16 bits, which Pillow cannot write for colors."""
    height, width, channels = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        chunks.insert(1, (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def test_16_bit_colors_with_a_fourth_channel():
    array = random_array("uint16", 4)
    np.testing.assert_array_equal(read(png(np.moveaxis(array, 0, -1)), 4, SIXTEEN_BITS), array)
    with pytest.raises(ValueError, match="gray with transparency of 16 bits"):
        read(png(np.moveaxis(array[:2], 0, -1)), 2, SIXTEEN_BITS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tif gray", "tif", "tif planar"])
def test_deep_files_are_turned_upright_as_pictures_are(tmp_path, kind, orientation):
    array = random_array("uint16", 1 if kind == "tif gray" else 3)
    small = Image.fromarray(np.moveaxis((array >> 8).astype(np.uint8), 0, -1).squeeze())
    exif = Image.Exif()
    exif[0x0112] = orientation
    small.save(tmp_path / "small.png", exif=exif)
    expected = np.asarray(read_upright(tmp_path / "small.png"))
    path = tmp_path / "deep"
    if kind == "png":
        path.write_bytes(png(np.moveaxis(array, 0, -1), orientation))
    else:
        planar = kind == "tif planar"
        tifffile.imwrite(
            path,
            array if planar else np.moveaxis(array, 0, -1).squeeze(),
            photometric="minisblack" if kind == "tif gray" else "rgb",
            planarconfig="separate" if planar else None,
            extratags=[(274, "H", 1, orientation, True)],
        )
    actual = read(path, len(array), SIXTEEN_BITS).astype(np.uint16) >> 8
    np.testing.assert_array_equal(np.moveaxis(actual, 0, -1).squeeze(), expected)


def read_upright(path) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(Image.open(path))


def test_pages_that_are_no_channels_are_frames(tmp_path):
    """Of five gray pages the first is the picture, unless five channels are wanted; of colors likewise."""
    array = random_array("uint8", 5)
    write(tmp_path / "pages.tif", array, "tif pages")
    np.testing.assert_array_equal(read(tmp_path / "pages.tif", 1, EIGHT_BITS), array[:1])
    np.testing.assert_array_equal(read(tmp_path / "pages.tif", 5, EIGHT_BITS), array)
    with pytest.raises(ValueError, match="has 5 pages of 20x30 and 4 channels are expected"):
        read(tmp_path / "pages.tif", 4, EIGHT_BITS)
    # As tifffile writes an array (H, W, C) that it is told nothing about: H pages of W x C.
    tifffile.imwrite(tmp_path / "untold.tif", np.moveaxis(random_array("uint16", 5), 0, -1))
    untold = read(tmp_path / "untold.tif", 5, SIXTEEN_BITS)
    np.testing.assert_array_equal(untold, random_array("uint16", 5))
    frames = np.random.default_rng(0).integers(0, 65536, (2, 20, 30, 5), np.uint16)
    tifffile.imwrite(tmp_path / "frames.tif", frames, photometric="minisblack", planarconfig="contig")
    np.testing.assert_array_equal(read(tmp_path / "frames.tif", 5, SIXTEEN_BITS), np.moveaxis(frames[0], -1, 0))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_gray_becomes_three_channels(tmp_path, dtype):
    array = random_array(dtype, 1)
    for kind in ("npy", "npy last", "tif"):
        write(tmp_path / "gray", array, kind)
        path = tmp_path / ("gray.npy" if kind.startswith("npy") else "gray")
        np.testing.assert_array_equal(read(path, 3, SIXTEEN_BITS), np.repeat(array, 3, axis=0))


def test_missing_numbers_are_nan():
    array = random_array("float32", 2)
    array[0, :5] = np.nan
    array[1, 3, 4] = -np.inf
    expected = np.where(np.isfinite(array), array, np.nan)
    np.testing.assert_array_equal(channels_first(array, 2), expected)
    assert np.isinf(array).any()
    # The number for "missing" of many float64 files is beyond float32.
    large = expected.astype(np.float64)
    large[0, :5] = -1.7976931348623157e308
    np.testing.assert_array_equal(channels_first(large, 2), expected)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((20, 30, 4)), r"shape \(20, 30, 4\) has no axis of 5 channels"),
        (np.zeros((20, 30)), r"The image has 1 channel and 5 are expected"),
        (np.zeros((2, 5, 20, 30)), r"shape \(2, 5, 20, 30\), but .* Save each image by itself"),
        (np.zeros((5, 0, 30)), r"shape \(5, 0, 30\)"),
        (np.zeros(7), r"shape \(7,\)"),
        (np.zeros((5, 20, 30), complex), "holds complex128, but integers or floats are needed"),
        (np.full((5, 20, 30), None), "holds object"),
        (np.full((5, 20, 30), "a"), "holds <U1"),
        (np.where(np.arange(5)[:, None, None] == 3, np.nan, np.zeros((5, 20, 30))), "Channel 3 .* no finite number"),
    ],
)
def test_arrays_that_are_no_image(array, message):
    with pytest.raises(ValueError, match=message):
        channels_first(array, 5)


def test_first_wins_if_both_ends_could_be_channels():
    array = random_array("uint8", 5, 20, 5)
    np.testing.assert_array_equal(channels_first(array, 5), array)


def test_pickles_are_not_run(tmp_path):
    np.save(tmp_path / "image.npy", np.full((5, 5), None), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        open_image(tmp_path / "image.npy", 1, EIGHT_BITS)


@pytest.mark.skipif(importlib.util.find_spec("imagecodecs") is not None, reason="imagecodecs is installed")
def test_compression_that_needs_another_package_says_so(tmp_path):
    pictures = [Image.fromarray(random_array("uint8", 1)[0]) for _ in range(5)]
    pictures[0].save(tmp_path / "lzw.tif", save_all=True, append_images=pictures[1:], compression="tiff_lzw")
    with pytest.raises(ValueError, match=r"compressed .*LZW.*: pip install imagecodecs"):
        read(tmp_path / "lzw.tif", 5, EIGHT_BITS)
    # What Pillow can read needs nothing.
    assert read(tmp_path / "lzw.tif", 1, EIGHT_BITS).shape == (1, 20, 30)
    deep = Image.fromarray(random_array("uint16", 1)[0])
    file = io.BytesIO()
    deep.save(file, "TIFF", compression="tiff_lzw")
    np.testing.assert_array_equal(read(file.getvalue(), 1, SIXTEEN_BITS), random_array("uint16", 1))


def pnm(kind, largest, numbers):
    head = f"{kind} {numbers.shape[1]} {numbers.shape[0]} {largest}\n".encode()
    return head + numbers.astype(">u2").tobytes()


@pytest.mark.parametrize(
    ("kind", "largest", "hint"),
    [("P5", 4095, "12 bits"), ("P5", 1000, "10 bits"), ("P6", 1023, "10 bits"), ("P5", 65535, "16 bits")],
)
def test_the_hint_names_the_depth_of_the_file(kind, largest, hint, monkeypatch):
    seen = []
    monkeypatch.setattr(images.logger, "warning_once", seen.append)
    numbers = np.linspace(0, largest, 32 * 24).astype(np.uint16).reshape(24, 32)
    channels = 3 if kind == "P6" else 1
    content = pnm(kind, largest, np.repeat(numbers[..., None], channels, axis=-1))
    found = pixels_of(open_image(content, channels, 1 / 255), channels)
    assert np.abs(found[0] - numbers * (255.0 / largest)).max() < 1
    assert len(seen) == 1
    assert f"Images of {hint} are scaled to 8 bits" in seen[0]
    assert seen[0].endswith(f"such as 1/{largest}.")
    # The factor of the hint keeps all numbers.
    np.testing.assert_array_equal(pixels_of(open_image(content, channels, 1 / largest), channels)[0], numbers)


def test_no_hint_where_no_bits_are_lost(monkeypatch):
    seen = []
    monkeypatch.setattr(images.logger, "warning_once", seen.append)
    content = b"P5 4 2 100\n" + bytes([0, 25, 50, 100, 1, 2, 3, 4])
    np.testing.assert_array_equal(pixels_of(open_image(content, 1, 1 / 255), 1)[0, 0], [0, 64, 127, 255])
    # Dark 16 bits have a hint of their own, which no other contradicts.
    numbers = np.linspace(0, 4095, 32 * 24).astype(np.uint16).reshape(24, 32)
    open_image(pnm("P5", 65535, numbers), 1, 1 / 255)
    assert len(seen) == 1
    assert "use only 12 bits" in seen[0]
