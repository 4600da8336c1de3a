"""Pixels as pictures."""

import numpy as np
import pytest
import torch

from hf_simmim.visualization.pictures import to_pictures

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels / 255 - mean) / std


def test_normalization_is_undone():
    pixels = torch.randint(0, 256, (2, 3, 8, 12)).float()
    pictures = to_pictures(normalized(pixels), MEAN, STD)
    assert np.array_equal(pictures, pixels.permute(0, 2, 3, 1).byte().numpy())
    assert to_pictures(torch.full((1, 3, 2, 2), 1e4), MEAN, STD).max() == 255


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_number_of_channels_is_shown(channels):
    pictures = to_pictures(torch.zeros(1, channels, 4, 4), [0.5] * channels, [0.2] * channels)
    assert pictures.shape == (1, 4, 4, 3)
    assert (pictures == 128).all()


@pytest.mark.parametrize(("mean", "std"), [(0.04, 0.01), (120.0, 30.0), (0.0, 3.0)])
def test_other_ranges_are_stretched(mean, std):
    """Reflectances and raw numbers are neither black nor white."""
    values = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).view(1, 1, 1, 5).expand(1, 6, 1, 5)
    pictures = to_pictures(values, [mean] * 6, [std] * 6)
    assert pictures[0, 0, :, 0].tolist() == [0, 64, 128, 191, 255]
