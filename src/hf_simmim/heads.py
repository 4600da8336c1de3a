"""Prediction heads: a feature map (B, D, h, w) to a prediction (B, K, H, W)."""

import torch
from torch import nn


class LinearHead(nn.Module):
    """One linear layer that predicts all pixels under each step of the feature map.

    Args:
        hidden_size: Channels D of the feature map.
        num_outputs: Channels K predicted for each pixel.
        stride: Pixels of the image for each step of the feature map.

    Source: section 3.3 of the paper, "prediction head"; `SimMIM.decoder` in models/simmim.py of microsoft/SimMIM.
    """

    def __init__(self, hidden_size: int, num_outputs: int, stride: int):
        super().__init__()
        self.projection = nn.Conv2d(hidden_size, stride**2 * num_outputs, kernel_size=1)
        self.pixel_shuffle = nn.PixelShuffle(stride)

    def fits(self, weights: dict[str, torch.Tensor]) -> bool:
        """Whether the weights of a linear layer are of this head's shape."""
        return {name: tensor.shape for name, tensor in weights.items()} == {
            name: tensor.shape for name, tensor in self.projection.state_dict().items()
        }

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.pixel_shuffle(self.projection(feature_map))  # B, K, h * stride, w * stride


HEAD_CLASSES: dict[str, type[nn.Module]] = {
    "linear": LinearHead,
}
