"""Decoders of JPEG files against Pillow: the same pixels within a tolerance, the same errors, the same orientation."""

import importlib.util
import io

import numpy as np
import pytest
import torch
from photos import ROTATIONS, random_photo
from PIL import Image, ImageOps

from hf_simmim.data.reading import describe
from hf_simmim.data.transforms import crop_and_resize, upright_size
from hf_simmim.formats.jpeg import DECODERS, SCALES, choose_decoder, crop_array, is_installed

# Levels of 255 by which pixels may differ from those of Pillow's decoder: versions of libjpeg-turbo may differ by a
# level, and each resizing rounds.
LARGEST, MEAN = 3, 0.2
OTHERS = [name for name in DECODERS if name != "pillow"]
WRITTEN = {
    "4:2:0": {"subsampling": "4:2:0"},
    "4:4:4": {"subsampling": "4:4:4"},
    "4:2:2": {"subsampling": "4:2:2"},
    "progressive": {"progressive": True},
    "rgb": {"keep_rgb": True},
    "restarts": {"restart_marker_rows": 2},
}


@pytest.fixture(params=OTHERS)
def decoder(request) -> str:
    if not is_installed(request.param):
        pytest.skip(f"{DECODERS[request.param].library} is not installed")
    return request.param


def photo(size: tuple[int, int] = (403, 301), seed: int = 0, **settings: object) -> bytes:
    buffer = io.BytesIO()
    random_photo(np.random.default_rng(seed), size).save(buffer, format="JPEG", quality=90, **settings)
    return buffer.getvalue()


def reference(content: bytes, box: tuple[int, ...], size: tuple[int, int], scale: int, mode: str) -> np.ndarray:
    """Decoded by Pillow at a scale, cropped at whole pixels and resized, step by step."""
    image = Image.open(io.BytesIO(content))
    image.draft(image.mode, (image.width // scale, image.height // scale))
    whole = Image.open(io.BytesIO(content)).size
    image = image.convert(mode)
    across, down = image.width / whole[0], image.height / whole[1]
    crop = image.crop((round(box[0] * across), round(box[1] * down), round(box[2] * across), round(box[3] * down)))
    return np.asarray(crop.resize(size[::-1], Image.Resampling.BILINEAR)).reshape(*size, -1)


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= LARGEST
    assert difference.mean() <= MEAN


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("written", WRITTEN)
def test_pixels_are_those_of_pillow(decoder, written, scale):
    content, box = photo((1003, 757), **WRITTEN[written]), (36, 21, 907, 700)
    size = (int(679 / scale * 0.9), int(871 / scale * 0.8))
    found = crop_and_resize(Image.open(io.BytesIO(content)), box, size, 3, decoder=decoder)
    assert (found.shape, found.dtype) == ((*size, 3), np.uint8)
    assert_near(found, reference(content, box, size, scale, "RGB"))


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("size", [(200, 300), (60, 80)])
def test_gray(decoder, num_channels, size):
    buffer, box = io.BytesIO(), (11, 8, 380, 290)
    random_photo(np.random.default_rng(3), (403, 301)).convert("L").save(buffer, format="JPEG")
    found = crop_and_resize(Image.open(buffer), box, size, num_channels, decoder=decoder)
    scale = 1 if size == (200, 300) else 2 if 403 // (80 / 369 * 403) < 4 else 4
    assert_near(found, reference(buffer.getvalue(), box, size, scale, {1: "L", 3: "RGB"}[num_channels]))


@pytest.mark.parametrize("orientation", ROTATIONS)
def test_orientation(decoder, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    content = photo(exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    height, width = upright.height, upright.width
    box = (7, 31, width - 40, height - 12)
    image = Image.open(io.BytesIO(content))
    assert upright_size(image) == (height, width)
    found = crop_and_resize(image, box, (200, 220), 3, decoder=decoder)
    expected = np.asarray(upright.crop(box).resize((220, 200), Image.Resampling.BILINEAR))
    assert_near(found, expected)


def outcome(content: bytes, decoder: str) -> np.ndarray | str:
    try:
        image = Image.open(io.BytesIO(content))
        return crop_and_resize(image, (0, 0, *image.size), (40, 50), 3, decoder=decoder)
    except Exception as error:  # readers raise anything on a broken file
        return describe(error)


def test_broken_files_have_the_same_outcome(decoder):
    whole, generator = photo((160, 120)), np.random.default_rng(0)
    broken = [whole[: int(len(whole) * share)] for share in (0.3, 0.5, 0.9, 0.99)]
    # Without its end, and with something after it, as some cameras write.
    broken += [whole[:-2], whole[:-1], whole + b"\0" * 8, whole + b"more", whole[: len(whole) // 2] + b"\xff\xd9"]
    for _ in range(60):
        content = bytearray(whole)
        for place in generator.integers(2, len(whole), 3):
            content[place] = generator.integers(256)
        broken.append(bytes(content))
    outcomes = [[outcome(content, name) for name in ("pillow-torch", decoder)] for content in broken]
    errors = 0
    for expected, found in outcomes:
        if isinstance(expected, str):
            assert found == expected
            errors += 1
        else:
            assert_near(found, expected)
    assert 4 <= errors < len(broken)
    assert outcomes[0][0] == outcome(broken[0], "pillow")


def test_other_files_are_left_to_pillow(decoder, monkeypatch):
    def refused(*_):
        raise AssertionError("decoded")

    monkeypatch.setitem(DECODERS, decoder, DECODERS[decoder]._replace(decode=refused))
    picture, box, size = random_photo(np.random.default_rng(1), (301, 203)), (3.5, 2, 240, 200), (64, 60)
    for name, mode in (("JPEG", "CMYK"), ("PNG", "RGB"), ("WEBP", "RGB")):
        buffer = io.BytesIO()
        picture.convert(mode).save(buffer, format=name)
        results = [crop_and_resize(Image.open(buffer), box, size, 3, decoder=used) for used in ("pillow", decoder)]
        np.testing.assert_array_equal(*results)
    with pytest.raises(ValueError, match="The image has 3 channels and 1 is expected"):
        crop_and_resize(Image.open(io.BytesIO(photo())), box, size, 1, decoder=decoder)
    loaded = Image.open(io.BytesIO(photo()))
    loaded.load()
    results = [crop_and_resize(loaded, box, size, 3, decoder=used) for used in ("pillow", decoder)]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
@pytest.mark.parametrize("capability", ["AVX2", "DEFAULT"])
def test_resizing_is_that_of_pillow_after_a_crop(resample, capability, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    image, box = random_photo(np.random.default_rng(2), (250, 180)), (20, 11, 231, 170)
    for size in ((64, 96), (192, 300)):
        found = crop_array(np.asarray(image), box, size, resample)
        expected = np.asarray(image.crop(box).resize(size[::-1], resample))
        assert np.abs(found.astype(int) - expected).max() <= 1
    # At least one pixel, and none outside.
    assert crop_array(np.asarray(image), (249.8, 179.9, 250.2, 180.3), (2, 2), resample).shape == (2, 2, 3)


def test_auto_is_the_fastest_that_is_installed(monkeypatch):
    installed = {"PIL"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert choose_decoder("auto") == "pillow-torch"
    # A run goes on with the pixels that it was started with.
    assert choose_decoder("auto", "pillow") == "pillow"
    with pytest.raises(ValueError, match=r"started with image_decoder='pillow'.*than 'pillow-torch'.*--restart"):
        choose_decoder("pillow-torch", "pillow")
    for before in (None, "simplejpeg"):
        with pytest.raises(ValueError, match="'simplejpeg' is not installed.*: pip install simplejpeg"):
            choose_decoder("simplejpeg" if before is None else "auto", before)
    installed.add("simplejpeg")
    assert choose_decoder("auto") == "simplejpeg"
    installed.clear()
    installed.add("PIL")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert choose_decoder("auto") == "pillow"
    with pytest.raises(ValueError, match="image_decoder='turbo' is unknown. Use one of: auto, simplejpeg"):
        choose_decoder("turbo")
