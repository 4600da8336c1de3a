"""Crops: the right pixels, and no more of them decoded than are wanted."""

import numpy as np
import pytest
from image_folders import gradient_image
from PIL import Image

from hf_simmim.data.sampling import sample_generator
from hf_simmim.data.transforms import center_box, crop_and_resize, random_box, upright_size


def test_random_box_follows_its_bounds():
    generator = sample_generator(0)
    boxes = [random_box((60, 90), (0.67, 1.0), generator) for _ in range(500)]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 90
        assert 0 <= top < bottom <= 60
        assert (right - left) * (bottom - top) > 0.64 * 60 * 90 or (right - left, bottom - top) == (80, 60)
        assert 0.72 < (right - left) / (bottom - top) < 1.37
    assert len(set(boxes)) > 100


def test_center_box_is_the_largest_of_its_proportions():
    assert center_box((60, 90), (32, 32)) == (15, 0, 75, 60)
    assert center_box((60, 90), (32, 96)) == (0, 15, 90, 45)


@pytest.mark.parametrize("kind", ["jpg", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_crop_is_taken_from_the_upright_picture(orientation, kind, tmp_path):
    """A rotated file with its EXIF tag gives the pixels of the picture that was never rotated."""
    upright = gradient_image(600, 900)
    operations = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright if orientation == 1 else upright.transpose(operations[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"rotated.{kind}", exif=exif, quality=95)
    image = Image.open(tmp_path / f"rotated.{kind}")
    assert upright_size(image) == (600, 900)
    box = (100, 50, 700, 450)
    array = crop_and_resize(image, box, (64, 96), 3)
    expected = upright.resize((96, 64), Image.Resampling.BILINEAR, box=box)
    assert np.abs(array.astype(int) - np.asarray(expected)).mean() < 2
    # 900 px are read for 96: libjpeg decoded a smaller picture.
    assert (max(image.size) < 900) == (kind == "jpg")


def test_draft_keeps_as_many_pixels_as_are_wanted(tmp_path):
    """A high-frequency picture survives: the decoder's scale is never coarser than the result."""
    stripes = Image.fromarray(np.tile(np.array([[0, 255]], np.uint8).repeat(8, 1), (512, 32)))
    stripes.save(tmp_path / "stripes.jpg", quality=95)
    array = crop_and_resize(Image.open(tmp_path / "stripes.jpg"), (0, 0, 512, 512), (128, 128), 1)
    assert array.std() > 90
