"""Distances between prediction and target, and their mean over the hidden pixels."""

from collections.abc import Callable

import torch
import torch.nn.functional as F


def l1(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Absolute difference, element by element.

    Args:
        prediction: Tensor of shape (B, K, H, W).
        target: Tensor of the same shape.

    Returns:
        Tensor of the same shape.

    Source: equation 1 of the paper.
    """
    return F.l1_loss(prediction, target, reduction="none")


def masked_mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over the pixels of masked patches, in float32.

    Args:
        values: Tensor of shape (B, K, H, W).
        mask: Bool tensor of shape (B, h, w) on a patch grid that divides H and W, True = masked; None for the mean over
            everything.

    Returns:
        Scalar float32 tensor; 0 if nothing is masked.
    """
    values = values.float()
    if mask is None:
        return values.mean()
    batch_size, channels, height, width = values.shape
    _, rows, columns = mask.shape
    patches = values.reshape(batch_size, channels, rows, height // rows, columns, width // columns)
    weights = mask.view(batch_size, 1, rows, 1, columns, 1).to(values.dtype)
    num_elements = mask.sum() * (height // rows) * (width // columns) * channels
    return (patches * weights).sum() / num_elements.clamp(min=1)


LOSS_FUNCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "l1": l1,
}
