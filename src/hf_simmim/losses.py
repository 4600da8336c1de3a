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
    """Mean over the pixels of masked patches of a batch, in float32.

    Args:
        values: Tensor of shape (B, K, H, W).
        mask: Bool tensor of shape (B, h, w) on a patch grid that divides H and W, True = masked; None for the mean over
            everything.

    Returns:
        Scalar float32 tensor; 0 if nothing is masked.
    """
    if mask is None:
        return values.float().mean()
    total, count = _masked_sums(values, mask)
    return total.sum() / count.sum().clamp(min=1)


def masked_mean_per_image(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """As `masked_mean`, for each image by itself: float32 tensor of shape (B,)."""
    if mask is None:
        return values.float().mean(dim=(1, 2, 3))
    total, count = _masked_sums(values, mask)
    return total / count.clamp(min=1)


def _masked_sums(values: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum and number of masked elements of each image, both (B,)."""
    batch_size, channels, height, width = values.shape
    _, rows, columns = mask.shape
    patches = values.float().reshape(batch_size, channels, rows, height // rows, columns, width // columns)
    weights = mask.view(batch_size, 1, rows, 1, columns, 1).to(patches.dtype)
    elements_per_patch = channels * (height // rows) * (width // columns)
    return (patches * weights).flatten(1).sum(1), mask.flatten(1).sum(1) * elements_per_patch


LOSS_FUNCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "l1": l1,
}
