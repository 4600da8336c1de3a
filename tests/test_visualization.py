"""Pictures: the right pixels in the right places."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_simmim.visualization import MASK_GREY, plot_losses, reconstruction_grid, to_pictures

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels / 255 - mean) / std


def test_normalisation_is_undone():
    pixels = torch.randint(0, 256, (2, 3, 8, 12)).float()
    pictures = to_pictures(normalized(pixels), MEAN, STD)
    assert np.array_equal(pictures, pixels.permute(0, 2, 3, 1).byte().numpy())
    assert to_pictures(torch.full((1, 3, 2, 2), 1e4), MEAN, STD).max() == 255


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_number_of_channels_is_shown(channels):
    pictures = to_pictures(torch.zeros(1, channels, 4, 4), [0.5] * channels, [0.2] * channels)
    assert pictures.shape == (1, 4, 4, 3)
    assert (pictures == 128).all()


def test_grid_shows_original_masked_and_reconstruction():
    """One rectangular image whose right half is hidden: red, predicted blue."""
    red = torch.zeros(1, 3, 96, 192)
    red[:, 0] = 255
    blue = torch.zeros(1, 3, 96, 192)
    blue[:, 2] = 255
    mask = torch.zeros(1, 12, 24, dtype=torch.bool)
    mask[:, :, 12:] = True
    grid = reconstruction_grid(normalized(red), mask.flatten(1), normalized(blue), MEAN, STD, patch_size=8)
    pixels = np.asarray(grid)
    row = pixels[22 + 48]
    starts = [6, 6 + 198, 6 + 2 * 198]
    left = [tuple(row[start + 40].tolist()) for start in starts]
    right = [tuple(row[start + 150].tolist()) for start in starts]
    assert left == [(255, 0, 0)] * 3
    assert right == [(255, 0, 0), (MASK_GREY,) * 3, (0, 0, 255)]
    assert (pixels[:22] < 100).any()


def test_grid_of_a_size_that_no_patch_divides():
    white, black = (torch.full((1, 3, 50, 70), value) for value in (255.0, 0.0))
    mask = torch.zeros(1, 13, 18, dtype=torch.bool)
    mask[0, 12, 17] = True
    grid = reconstruction_grid(normalized(white), mask.flatten(1), normalized(black), MEAN, STD, patch_size=4)
    # Twice enlarged: of the patch at the corner 2 x 2 pixels are left.
    filled = np.asarray(grid)[22:122, 6 + 2 * 146 : 6 + 2 * 146 + 140]
    assert (filled[96:, 136:] == 0).all()
    assert (filled == 0).all(axis=2).sum() == 16


def test_pixels_that_are_none_are_white():
    """Whatever stands there, visible or hidden."""
    black, blue = torch.zeros(1, 3, 96, 96), torch.zeros(1, 3, 96, 96)
    blue[:, 2] = 255
    mask, pixel_mask = torch.zeros(1, 12, 12), torch.ones(1, 96, 96)
    mask[:, :, 6:] = 1
    pixel_mask[:, :30] = 0
    grid = reconstruction_grid(normalized(black), mask, normalized(blue), MEAN, STD, 8, pixel_mask=pixel_mask)
    pixels = np.asarray(grid)[22:118]
    for column, right in enumerate(((0, 0, 0), (MASK_GREY,) * 3, (0, 0, 255))):
        cell = pixels[:, 6 + column * 102 :][:, :96]
        assert (cell[:30] == 255).all()
        assert (cell[30:, :48] == 0).all()
        assert (cell[30:, 48:] == right).all()


@pytest.mark.parametrize(("mean", "std"), [(0.04, 0.01), (120.0, 30.0), (0.0, 3.0)])
def test_other_ranges_are_stretched(mean, std):
    """Reflectances and raw numbers are neither black nor white."""
    values = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).view(1, 1, 1, 5).expand(1, 6, 1, 5)
    pictures = to_pictures(values, [mean] * 6, [std] * 6)
    assert pictures[0, 0, :, 0].tolist() == [0, 64, 128, 191, 255]


def test_small_images_are_enlarged_and_all_are_drawn():
    pictures = torch.arange(5).view(5, 1, 1, 1).expand(5, 3, 16, 16) * 50.0
    mask = torch.zeros(5, 4, 4, dtype=torch.bool)
    grid = reconstruction_grid(normalized(pictures), mask, normalized(pictures), MEAN, STD, patch_size=4)
    colors = {tuple(color) for color in np.asarray(grid).reshape(-1, 3)}
    assert {(value,) * 3 for value in (0, 50, 100, 150, 200)} <= colors
    assert grid.height > 3 * 96


def test_loss_curve(tmp_path):
    history = [{"step": step, "loss": 1 / step, "learning_rate": 1e-3} for step in range(1, 20)]
    history += [{"step": 10, "eval_loss": 0.2}, {"step": 19, "eval_loss": 0.1}, {"step": 19, "train_runtime": 3.0}]
    plot_losses(history, tmp_path / "with.png")
    plot_losses(history[:19], tmp_path / "without.png")
    with_evaluation, without = (np.asarray(Image.open(tmp_path / name)) for name in ("with.png", "without.png"))
    assert with_evaluation.shape == without.shape
    assert (with_evaluation != without).any()
