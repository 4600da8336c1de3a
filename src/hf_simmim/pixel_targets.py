"""Targets that are pixels: as they are, or normalised around each or in each patch."""

from typing import Any

import torch
import torch.nn.functional as F

from .components import DEFAULT_WINDOW
from .masking import patch_grid
from .target import Target, down_sample, up_sample

NORMALISATION_EPS = 1e-6


class RGB(Target):
    """The pixels themselves, averaged over the steps of a coarser prediction.

    Source: section 3.4 of the paper, "raw pixel value regression".
    """

    def __init__(self, config: Any):
        super().__init__(config)
        self.is_pixels = self.stride == 1

    def make(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return down_sample(pixel_values, self.stride)

    def decode(self, prediction: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        return up_sample(prediction, self.stride, pixel_values.shape[2:])


class NormalizedRGB(Target):
    """Pixels less their mean and over their standard deviation, in a sliding window or in each patch.

    Source: `norm_targets` in models/simmim.py of microsoft/Swin-Transformer for the window; equation 1 and table 1d of
    MAE (arXiv 2111.06377), where mean and deviation are those of all channels of a patch.
    """

    borrowed = "local mean and contrast"

    def make(self, pixel_values: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics(pixel_values)
        return down_sample((pixel_values - mean) / std, self.stride)

    @torch.no_grad()
    def decode(self, prediction: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics(pixel_values.float())
        return up_sample(prediction.float(), self.stride, pixel_values.shape[2:]) * std + mean

    def _statistics(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation around each pixel, of shape (B, C or 1, H, W)."""
        if self.options["patch_size"] is not None:
            return _patch_statistics(pixel_values, self.options["patch_size"])
        return _window_statistics(pixel_values, self.options["window_size"] or DEFAULT_WINDOW)


def _window_statistics(pixel_values: torch.Tensor, window_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Statistics of each channel in the window around each pixel; at the border only what is inside counts."""

    def local_mean(values: torch.Tensor) -> torch.Tensor:
        # Row by row, then column by column: the same sums with 2 k instead of k^2 terms.
        half = window_size // 2
        values = F.avg_pool2d(values, (window_size, 1), stride=1, padding=(half, 0), count_include_pad=False)
        return F.avg_pool2d(values, (1, window_size), stride=1, padding=(0, half), count_include_pad=False)

    height, width = pixel_values.shape[2:]
    rows, columns = (_window_lengths(length, window_size, pixel_values.device) for length in (height, width))
    count = rows[:, None] * columns
    mean = local_mean(pixel_values)
    variance = (local_mean(pixel_values.square()) - mean.square()) * (count / (count - 1).clamp(min=1))
    return mean, (variance.clamp(min=0) + NORMALISATION_EPS).sqrt()


def _window_lengths(length: int, window_size: int, device: torch.device) -> torch.Tensor:
    """How many pixels of a line of `length` are in the window around each."""
    positions = torch.arange(length, device=device)
    half = window_size // 2
    return ((positions + half).clamp(max=length - 1) - (positions - half).clamp(min=0) + 1).float()


def _patch_statistics(pixel_values: torch.Tensor, patch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Statistics of all channels of each patch; patches that the border cuts count what is inside."""
    height, width = pixel_values.shape[2:]
    grey = pixel_values.mean(dim=1, keepdim=True)
    rows, columns = patch_grid((height, width), patch_size)
    heights, widths = (
        torch.tensor([min(patch_size, length - start) for start in range(0, length, patch_size)])
        for length in (height, width)
    )
    count = (heights[:, None] * widths).to(pixel_values.device) * pixel_values.shape[1]  # rows, columns
    mean = up_sample(down_sample(grey, patch_size), patch_size, (height, width))
    squares = (pixel_values - mean).square().mean(dim=1, keepdim=True)
    variance = down_sample(squares, patch_size) * (count / (count - 1).clamp(min=1)).view(1, 1, rows, columns)
    return mean, up_sample((variance + NORMALISATION_EPS).sqrt(), patch_size, (height, width))
