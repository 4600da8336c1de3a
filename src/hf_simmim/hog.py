"""Histograms of oriented gradients of whole batches, and the target that they are."""

import math
from typing import Any

import torch
import torch.nn.functional as F

from .target import Target, to_colors

NORMALISATION_EPS = 1e-5


class HOG(Target):
    """Histograms of oriented gradients of each channel, without a way back to pixels.

    They are made of colours in [0, 1], but of `pixel_values` as they are where a config without `image_mean` and
    `image_std` does not tell how to get there. The difference is in cells of hardly any contrast.

    Raises:
        ValueError: If the stride of the prediction or the encoder does not fit the cells.

    Source: section 4 of MaskFeat (arXiv 2112.09133).
    """

    is_decodable = False

    def __init__(self, config: Any):
        super().__init__(config)
        self.stride = self.options["cell_size"]
        if config.prediction_stride not in (None, self.stride):
            raise ValueError(
                f"target='hog' predicts one step for each cell of cell_size={self.stride} px, and prediction_stride is"
                f" {config.prediction_stride}. Leave prediction_stride out and set cell_size in target_options."
            )
        if config.encoder_stride % self.stride:
            raise ValueError(
                f"target='hog' with cell_size={self.stride} px does not fit the encoder, which has one step for"
                f" {config.encoder_stride} px. Set cell_size in target_options to a divisor of that."
            )
        self.num_outputs = config.num_channels * self.options["num_bins"]
        is_unknown = config.image_mean is None and config.image_std is None and config.num_channels != 3
        self.statistics = None if is_unknown else config.pixel_statistics()

    def make(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.statistics is not None:
            # Pixels of 8 and 16 bits are whole numbers of these steps, so differences that were equal are so again:
            # else rounding would choose one of the two bins that meet at a diagonal.
            colors = to_colors(pixel_values, self.statistics)
            pixel_values = colors.mul_(16 * 65535).round_().mul_(2**-20)
        return hog(pixel_values, self.options["cell_size"], self.options["num_bins"])


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
