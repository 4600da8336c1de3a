"""Histograms of oriented gradients, against scikit-image."""

import math

import numpy as np
import pytest
import torch
from photos import random_photo
from skimage.feature import hog as skimage_hog

from hf_simmim.model.targets import hog

GEOMETRIES = [(8, 9), (8, 8), (4, 12), (5, 9), (3, 4), (16, 18), (2, 2)]


def reference(pixel_values: torch.Tensor, cell_size: int, num_bins: int) -> torch.Tensor:
    """(B, C * num_bins, h, w) of scikit-image, channel by channel."""
    histograms = [
        skimage_hog(
            channel.numpy(),
            orientations=num_bins,
            pixels_per_cell=(cell_size, cell_size),
            cells_per_block=(1, 1),
            block_norm="L2",
            feature_vector=False,
        )[:, :, 0, 0]
        for channel in pixel_values.flatten(0, 1)
    ]
    maps = torch.from_numpy(np.stack(histograms)).movedim(-1, 1)
    return maps.reshape(pixel_values.shape[0], -1, *maps.shape[2:]).float()


def photos(height: int, width: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    arrays = np.stack([np.asarray(random_photo(rng, (width, height))) for _ in range(2)])
    return torch.from_numpy(arrays).movedim(-1, 1).float() / 255


def noise(height: int, width: int) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def few_levels(height: int, width: int) -> torch.Tensor:
    """Half of the gradients point along rows, columns or diagonals, and some are 0."""
    return torch.randint(3, (2, 3, height, width), generator=torch.Generator().manual_seed(0)) / 2


def edges(height: int, width: int) -> torch.Tensor:
    """Ramps, soft edges and hard ones at many angles."""
    angles = torch.arange(24).view(-1, 1, 1) * math.pi / 12
    rows, columns = torch.arange(height).view(-1, 1) - height / 2, torch.arange(width) - width / 2
    distance = torch.cos(angles) * columns + torch.sin(angles) * rows
    return torch.stack([distance / 100, torch.sigmoid(distance / 4), (distance > 0).float()], dim=1)


@pytest.mark.parametrize(("cell_size", "num_bins"), GEOMETRIES)
@pytest.mark.parametrize("images", [photos, noise, few_levels, edges])
def test_equals_scikit_image(images, cell_size, num_bins):
    pixel_values = images(cell_size * (40 // cell_size), cell_size * (64 // cell_size))
    ours, theirs = hog(pixel_values, cell_size, num_bins), reference(pixel_values, cell_size, num_bins)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_bins", [4, 8, 26, 52])
@pytest.mark.parametrize(("down", "right"), [(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)])
def test_directions_on_the_edge_of_two_bins(down, right, num_bins):
    """They are in the upper one, and turning a gradient around changes nothing."""
    rows, columns = torch.arange(24.0).view(-1, 1), torch.arange(24.0)
    histogram = hog((down * rows + right * columns)[None, None], cell_size=8, num_bins=num_bins)
    expected = round(math.degrees(math.atan2(down, right))) % 180 * num_bins // 180
    assert histogram[0, expected, 1, 1] == pytest.approx(1)


def test_cells_that_the_border_cuts():
    """What is outside of the image has no gradient: as if its last rows and columns went on, but for that border."""
    pixel_values = photos(45, 59)
    histograms = hog(pixel_values, 8)
    assert histograms.shape == (2, 27, 6, 8)
    torch.testing.assert_close(histograms[:, :, :5, :7], hog(pixel_values[:, :, :41, :57], 8)[:, :, :5, :7])
    # A cut cell in the corner, by itself with the neighbors that it has.
    corner = pixel_values[:, :, 39:, 55:]
    down, right = torch.zeros(2, 3, 5, 3), torch.zeros(2, 3, 5, 3)
    down[:, :, :-1] = (corner[:, :, 2:] - corner[:, :, :-2])[:, :, :, 1:]
    right[:, :, :, :-1] = (corner[:, :, :, 2:] - corner[:, :, :, :-2])[:, :, 1:]
    bins = (torch.rad2deg(torch.atan2(down.double(), right.double())) % 180 // 20).long().flatten(2)
    sums = torch.zeros(2, 3, 9).scatter_add_(2, bins, torch.hypot(down, right).flatten(2)) / 64
    expected = sums / (sums.square().sum(dim=2, keepdim=True) + 1e-10).sqrt()
    torch.testing.assert_close(histograms[:, :, 5, 7], expected.flatten(1))


def test_contrast_changes_nothing_but_in_empty_cells():
    pixel_values = photos(40, 64)
    torch.testing.assert_close(hog(0.2 * pixel_values + 0.3), hog(pixel_values), atol=1e-3, rtol=0)
    assert hog(torch.full((1, 3, 16, 16), 0.7)).abs().max() == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 9), (9, 2)])
def test_images_of_hardly_any_pixels(height, width):
    histograms = hog(torch.rand(1, 2, height, width))
    assert histograms.shape == (1, 18, math.ceil(height / 8), math.ceil(width / 8))
    assert histograms.isfinite().all()
