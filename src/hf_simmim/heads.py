"""Prediction heads: a feature map (B, D, h, w) to a prediction (B, K, H, W)."""

import torch
from torch import nn


class LinearHead(nn.Module):
    """One linear layer that predicts all steps under each step of the feature map.

    Args:
        hidden_size: Channels D of the feature map.
        num_outputs: Channels K of the prediction.
        encoder_stride: Pixels of the image for each step of the feature map.
        prediction_stride: Pixels of the image for each step of the prediction.

    Source: section 3.3 of the paper, "prediction head"; `SimMIM.decoder` in models/simmim.py of microsoft/SimMIM.
    """

    def __init__(self, hidden_size: int, num_outputs: int, encoder_stride: int, prediction_stride: int = 1):
        super().__init__()
        scale = upscaling(encoder_stride, prediction_stride)
        self.projection = nn.Conv2d(hidden_size, scale**2 * num_outputs, kernel_size=1)
        self.pixel_shuffle = nn.PixelShuffle(scale)

    def fits(self, weights: dict[str, torch.Tensor]) -> bool:
        """Whether the weights of a linear layer are of this head's shape."""
        return {name: tensor.shape for name, tensor in weights.items()} == {
            name: tensor.shape for name, tensor in self.projection.state_dict().items()
        }

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return self.pixel_shuffle(self.projection(feature_map))  # B, K, h * scale, w * scale


def upscaling(encoder_stride: int, prediction_stride: int) -> int:
    """Steps of the prediction along each side of a step of the feature map.

    Raises:
        ValueError: If that is no whole number.
    """
    if encoder_stride % prediction_stride:
        divisors = [str(step) for step in range(1, encoder_stride + 1) if encoder_stride % step == 0]
        raise ValueError(
            f"The encoder has one step for {encoder_stride} px, which the prediction's stride of {prediction_stride} px"
            f" does not divide. Set prediction_stride to one of: {', '.join(divisors)}."
        )
    return encoder_stride // prediction_stride


HEAD_CLASSES: dict[str, type[nn.Module]] = {
    "linear": LinearHead,
}
