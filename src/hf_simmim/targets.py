"""What the head predicts: a target (B, K, H, W) made from the whole, unmasked images."""

from collections.abc import Callable

import torch


def rgb(pixel_values: torch.Tensor) -> torch.Tensor:
    """The pixels themselves, as the model gets them.

    Args:
        pixel_values: Normalised images of shape (B, C, H, W).

    Returns:
        The same tensor.

    Source: section 3.4 of the paper, "raw pixel value regression".
    """
    return pixel_values


TARGET_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "rgb": rgb,
}
