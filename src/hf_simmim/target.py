"""What all targets have in common, and the ways between images and coarser predictions."""

from typing import Any

import torch
import torch.nn.functional as F


class Target:
    """Base of all targets.

    Args:
        config: The SimMIM config.
    """

    num_outputs: int  # channels K of the prediction
    stride: int  # pixels of the image for each step of the prediction
    is_pixels = False  # whether the prediction is the picture itself
    is_decodable = True  # whether there is a way back to pixels
    borrowed = ""  # what the way back takes from the hidden pixels themselves

    def __init__(self, config: Any):
        self.config = config
        self.options = config.options("target")
        self.stride = config.prediction_stride or 1
        self.num_outputs = config.num_channels

    def load(self) -> None:
        """Load the network that the target is made with, where there is one, before it is needed."""

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Make the target of a batch.

        Args:
            pixel_values: Whole, normalised images of shape (B, C, H, W).

        Returns:
            float32 tensor (B, K, h, w), or classes as integers (B, G, h, w); h = ceil(H / stride), w alike.
        """
        with torch.autocast(pixel_values.device.type, enabled=False):
            return self.make(pixel_values.float())

    def make(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The target of float32 images, in float32 whatever the autocast."""
        raise NotImplementedError

    def decode(self, prediction: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor | None:
        """Bring a prediction (B, K, h, w) back to pictures (B, C, H, W) in the space of `pixel_values`.

        Args:
            prediction: The head's output.
            pixel_values: The images, for targets that are relative to them, and for their size.

        Returns:
            The pictures, or None if the target has lost the colours.
        """
        return None


def to_colors(pixel_values: torch.Tensor, statistics: tuple[list[float], list[float]]) -> torch.Tensor:
    """Take back the normalisation of (B, C, H, W) with the mean and standard deviation of each channel."""
    mean, std = (pixel_values.new_tensor(values).view(-1, 1, 1) for values in statistics)
    return torch.addcmul(mean, pixel_values, std)


def to_pixel_values(colors: torch.Tensor, statistics: tuple[list[float], list[float]]) -> torch.Tensor:
    """Normalise (B, C, H, W) with the mean and standard deviation of each channel."""
    mean, std = (colors.new_tensor(values).view(-1, 1, 1) for values in statistics)
    return (colors - mean) / std


def down_sample(pixel_values: torch.Tensor, stride: int) -> torch.Tensor:
    """Mean of each cell: (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride)); cut cells count what is inside."""
    return pixel_values if stride == 1 else F.avg_pool2d(pixel_values, stride, ceil_mode=True)


def up_sample(values: torch.Tensor, stride: int, size: tuple[int, int] | torch.Size) -> torch.Tensor:
    """Repeat each cell: (B, C, h, w) to (B, C, H, W) of a size, for the cells that `down_sample` makes."""
    if stride == 1:
        return values
    return values.repeat_interleave(stride, dim=2).repeat_interleave(stride, dim=3)[:, :, : size[0], : size[1]]
