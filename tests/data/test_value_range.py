"""Values that do not fit their normalization are refused before any work, with the factor that fits."""

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hf_simmim.data.sources import load_images
from hf_simmim.data.value_range import check_value_range, sample_range

IMAGENET = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def write(folder, scale, dtype, offset=0.0):
    """Twelve smooth arrays of three channels, from `offset` to `offset + scale`."""
    y, x = np.mgrid[0:24, 0:32]
    for index in range(12):
        smooth = (np.sin(x / 7 + index) + np.cos(y / 5 + index) + 2) / 4
        np.save(folder / f"{index}.npy", np.repeat((smooth * scale + offset).astype(dtype)[..., None], 3, -1))
    return load_images(folder)


@pytest.mark.parametrize(
    ("scale", "dtype", "offset", "factor"),
    [
        (1, np.float32, 0, "1"),
        (255, np.float32, 0, None),
        (4000, np.uint16, 0, "1/4095"),
        (60000, np.uint16, 0, "1/65535"),
        (3000, np.int16, -1000, "1/4095"),
        (255, np.uint8, 0, None),
        (4, np.uint8, 0, None),
        (100_000, np.float32, 0, "1/"),
    ],
)
def test_the_default_factor_is_for_values_up_to_255(tmp_path, scale, dtype, offset, factor):
    images = write(tmp_path, scale, dtype, offset)
    if factor is None:
        check_value_range(images, 3, 1 / 255, *IMAGENET, is_default=True)
        return
    with pytest.raises(ValueError, match=rf"Pixel values .* Use --rescale_factor {factor}"):
        check_value_range(images, 3, 1 / 255, *IMAGENET, is_default=True)


def test_statistics_by_hand_or_of_a_checkpoint_must_fit(tmp_path):
    """An encoder that sees a constant gives one vector for all images."""
    images = write(tmp_path, 1, np.float32)
    with pytest.raises(ValueError, match=r"standard deviation of 0\.00.* rescale_factor=1 with"):
        check_value_range(images, 3, 1 / 255, *IMAGENET)
    check_value_range(images, 3, 1.0, *IMAGENET)
    with pytest.raises(ValueError, match=r"mean of .*after normalization"):
        check_value_range(images, 3, 1.0, [100.0] * 3, [0.2] * 3)


def test_images_without_values_are_left_to_other_checks(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"none")
    images = load_images(tmp_path)
    assert sample_range(images, 3, 1 / 255) is None
    check_value_range(images, 3, 1 / 255, *IMAGENET, is_default=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    check_value_range(load_images(tmp_path), 3, 1 / 255, *IMAGENET, is_default=True)


def test_missing_pixels_do_not_count(tmp_path):
    array = np.full((8, 8, 3), 100.0, np.float32)
    array[0, 0], array[1, 1] = -9999, 50
    np.save(tmp_path / "a.npy", array)
    found = sample_range(load_images(tmp_path), 3, 1 / 255, nodata=-9999)
    assert (found.low, found.high, found.is_bytes) == (50, 100, False)
