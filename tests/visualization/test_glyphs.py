"""Histograms of gradients as lines: along the edges, as bright as their bins."""

import math

import numpy as np
import pytest
import torch

from hf_simmim.model.targets import hog
from hf_simmim.visualization.glyphs import edge_lines, glyph_pictures


def direction(picture: np.ndarray) -> float:
    """Angle of the line that pixels lie on, in degrees from the row, downwards, 0 to 180."""
    rows, columns = np.nonzero(picture > 64)
    rows, columns = rows - (len(picture) - 1) / 2, columns - (len(picture) - 1) / 2
    # The main axis of a cloud around the middle.
    angle = 0.5 * math.atan2(2 * (rows * columns).sum(), (columns**2).sum() - (rows**2).sum())
    return math.degrees(angle) % 180


def apart(first: float, second: float) -> float:
    """Degrees between two lines."""
    return min(abs(first - second), 180 - abs(first - second))


@pytest.mark.parametrize("degrees", [0, 10, 25, 50, 80, 90, 115, 135, 160])
@pytest.mark.parametrize("num_bins", [9, 8])
def test_lines_run_along_stripes(degrees, num_bins):
    """Of cells inside an image of stripes, to half a bin: 90 degrees are vertical stripes, 45 go down to the right."""
    down, right = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    angle = math.radians(degrees)
    stripes = 0.5 + 0.4 * torch.sin((right * math.sin(angle) - down * math.cos(angle)) * 2 * math.pi / 12)
    histograms = hog(stripes[None, None], 8, num_bins).unflatten(1, (1, num_bins))
    picture = glyph_pictures(histograms, 16)[0, ..., 0]
    assert picture.shape == (96, 128)
    cell = picture[32:48, 48:64]
    assert apart(direction(cell), degrees) <= 90 / num_bins + 3


def test_each_cell_is_drawn_at_its_place_in_the_light_of_its_weight():
    histograms = torch.zeros(2, 1, 9, 2, 3)
    histograms[1, 0, 4, 1, 2] = 1
    histograms[0, 0, 4, 0, 1] = 0.25
    histograms[0, 0, 7, 0, 0] = -1
    pictures = glyph_pictures(histograms, 16)
    assert (pictures.dtype, pictures.shape) == (np.uint8, (2, 32, 48, 3))
    lines = edge_lines(9, 16)
    assert np.array_equal(pictures[1, 16:, 32:, 0], (np.sqrt(lines[4]) * 255).round())
    assert np.array_equal(pictures[0, :16, 16:32, 1], (np.sqrt(lines[4] / 4) * 255).round())
    assert [int((picture > 0).sum()) for picture in pictures] == [3 * int((lines[4] > 0).sum())] * 2


def test_the_mean_of_the_channels_is_drawn_and_the_brighter_line_where_two_cross():
    histograms = torch.zeros(1, 2, 9, 1, 1)
    histograms[0, 0, 2] = histograms[0, 1, 6] = 0.8
    picture = glyph_pictures(histograms.half(), 32)[0, ..., 0]
    assert abs(int(picture.max()) - round(math.sqrt(0.4) * 255)) <= 1
    assert (picture[16, 16], picture[0, 0]) == (picture.max(), 0)
    both = np.maximum(*edge_lines(9, 32)[[2, 6]])
    assert np.abs(picture - np.sqrt(0.4 * both) * 255).max() <= 1
