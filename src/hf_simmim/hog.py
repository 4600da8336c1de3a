"""Histograms of oriented gradients of whole batches."""

import math

import torch
import torch.nn.functional as F

NORMALISATION_EPS = 1e-5


def hog(pixel_values: torch.Tensor, cell_size: int = 8, num_bins: int = 9) -> torch.Tensor:
    """Histogram of the directions of a channel's edges in each cell, weighted by their strength, of length 1.

    The directions of 180 degrees lie in equal bins, the first of which starts at a gradient along the row. The
    brightness of the image changes nothing. Its contrast does so only in cells of hardly any, through a small constant
    that keeps empty cells at 0; it is meant for colours in [0, 1].

    Args:
        pixel_values: float32 images of shape (B, C, H, W).
        cell_size: Side of a cell in pixels. In those that the border cuts, what is outside has no edges.
        num_bins: Directions that are told apart.

    Returns:
        Tensor of shape (B, C * num_bins, ceil(H / cell_size), ceil(W / cell_size)), those of the first channel first.

    Source: section 4 of MaskFeat (arXiv 2112.09133); equal to `skimage.feature.hog` of each channel with blocks of one
    cell and `block_norm="L2"`, where cells divide the image.
    """
    down, right = _gradients(pixel_values)
    strength = torch.hypot(down, right)
    bins = _directions(down, right, num_bins)
    histograms = torch.stack(
        [
            F.avg_pool2d(strength * (bins == index), cell_size, ceil_mode=True, divisor_override=cell_size**2)
            for index in range(num_bins)
        ],
        dim=2,
    )  # B, C, num_bins, h, w
    length = (histograms.square().sum(dim=2, keepdim=True) + NORMALISATION_EPS**2).sqrt()
    return (histograms / length).flatten(1, 2)


def _gradients(pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences of the two neighbours of each pixel, down and to the right; 0 where one of them is missing."""
    down, right = torch.zeros_like(pixel_values), torch.zeros_like(pixel_values)
    down[:, :, 1:-1] = pixel_values[:, :, 2:] - pixel_values[:, :, :-2]
    right[:, :, :, 1:-1] = pixel_values[:, :, :, 2:] - pixel_values[:, :, :, :-2]
    return down, right


def _directions(down: torch.Tensor, right: torch.Tensor, num_bins: int) -> torch.Tensor:
    """Bin of each gradient: how many edges between bins it has reached on its way from 0 to 180 degrees.

    An angle as a number would be rounded at the edges of bins, where many gradients are: along rows, columns and
    diagonals. Two products are compared instead, which are equal there.
    """
    is_turned = (down < 0) | ((down == 0) & (right < 0))
    precise = torch.float32 if down.device.type == "mps" else torch.float64  # which MPS has not
    right = torch.where(is_turned, -right, right).to(precise)
    down = down.abs().to(precise)
    bins = torch.zeros_like(down, dtype=torch.int16)
    for index in range(1, num_bins):
        # Rounded so that those of 45 degrees are the same number, and 90 degrees have a cosine of 0.
        angle = math.pi * index / num_bins
        cosine, sine = round(math.cos(angle), 14), round(math.sin(angle), 14)
        bins += down * cosine >= right * sine
    return bins
