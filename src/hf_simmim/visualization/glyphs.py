"""Histograms of oriented gradients as pictures: in each cell a line along the edges of every direction."""

import math
from functools import cache

import numpy as np
import torch

# Smallest side in pixels of a drawn cell, at which the lines of nine directions can be told apart.
SMALLEST_GLYPH = 16


@cache
def edge_lines(num_bins: int, side: int) -> np.ndarray:
    """Draw the line of each bin: through the middle of the cell, along the edge, at right angles to the gradient.

    Args:
        num_bins: Number of bins, which divide the directions of gradients from 0 (to the right) to 180 degrees (through
            down at 90); each line is that of the middle of its bin.
        side: Side of a cell in pixels.

    Returns:
        float32 array of shape (num_bins, side, side) from 0 to 1, with smooth borders.

    Source: `skimage.feature.hog` with `visualize=True`, whose lines have no smooth borders.
    """
    offsets = np.arange(side) - (side - 1) / 2
    down, right = offsets[:, None], offsets[None, :]
    gradient = (np.arange(num_bins).reshape(-1, 1, 1) + 0.5) * math.pi / num_bins
    across = np.abs(right * np.cos(gradient) + down * np.sin(gradient))
    along = np.abs(down * np.cos(gradient) - right * np.sin(gradient))
    width = np.clip(side / 24 + 0.5 - across, 0, 1)
    length = np.clip(side / 2 - along, 0, 1)
    return (width * length).astype(np.float32)


def glyph_pictures(histograms: torch.Tensor, side: int) -> np.ndarray:
    """Draw histograms as lines, white on black, whose light is the weight of their bin.

    Where lines cross, the brighter one is seen: a sum, as in scikit-image, would be brightest in the middle of cells
    without a direction.

    Args:
        histograms: Tensor of shape (B, C, bins, h, w), of length 1 in each cell and channel: one direction alone is a
            line of full brightness. The mean of the channels is drawn; bins below 0 are dark, as empty ones are.
        side: Side of a drawn cell in pixels.

    Returns:
        uint8 array of shape (B, h * side, w * side, 3).
    """
    weights = histograms.float().mean(dim=1).clamp(0, 1).cpu().numpy()
    batch_size, num_bins, rows, columns = weights.shape
    pixels = np.zeros((batch_size, rows, side, columns, side), np.float32)
    for line, weight in zip(edge_lines(num_bins, side), np.moveaxis(weights, 1, 0), strict=True):
        np.maximum(pixels, weight[:, :, None, :, None] * line[:, None], out=pixels)
    # The light of a pixel grows about with the square of its value.
    shown = (np.sqrt(pixels) * 255).round().astype(np.uint8).reshape(batch_size, rows * side, columns * side, 1)
    return shown.repeat(3, axis=3)
