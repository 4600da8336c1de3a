"""Means over hidden pixels."""

import pytest
import torch

from hf_simmim.losses import masked_mean, masked_mean_per_image
from hf_simmim.masking import patch_grid, random_mask, to_pixels


@pytest.mark.parametrize(("size", "patch_size"), [((48, 64), 4), ((50, 70), 4), ((225, 225), 16), ((12, 12), 5)])
def test_means_over_the_pixels_that_are_there(size, patch_size):
    """225 px hold 14 patches of 16 px and a cut one, though 15 divides 225."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(3, 5, *size, generator=generator)
    mask = random_mask(patch_grid(size, patch_size), 0.6, 3, generator=generator)
    pixels = to_pixels(mask, patch_size, size)[:, None].expand_as(values)
    expected = torch.stack([image[hidden].mean() for image, hidden in zip(values, pixels, strict=True)])
    torch.testing.assert_close(masked_mean_per_image(values, mask, patch_size), expected)
    torch.testing.assert_close(masked_mean(values, mask, patch_size), values[pixels].mean())


def test_whole_patches_need_no_size():
    values, mask = torch.rand(2, 3, 48, 64), random_mask((12, 16), 0.6, 2)
    torch.testing.assert_close(masked_mean(values, mask), masked_mean(values, mask, 4))
    with pytest.raises(ValueError, match="13x18 patches does not divide 50x70 pixels. Pass patch_size"):
        masked_mean(torch.rand(2, 3, 50, 70), random_mask((13, 18), 0.6, 2))
    with pytest.raises(ValueError, match="does not cover an image of 50x70 with patches of 8 px"):
        masked_mean(torch.rand(2, 3, 50, 70), random_mask((13, 18), 0.6, 2), 8)


def test_nothing_masked_is_no_loss():
    mask = torch.zeros(2, 13, 18, dtype=torch.bool)
    assert masked_mean(torch.rand(2, 3, 50, 70), mask, 4) == 0
    assert masked_mean_per_image(torch.rand(2, 3, 50, 70), mask, 4).tolist() == [0, 0]
