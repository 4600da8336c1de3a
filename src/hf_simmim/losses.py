"""Distances between prediction and target, and their mean over the hidden pixels."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .masking import to_pixels


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


def masked_mean(values: torch.Tensor, mask: torch.Tensor | None, patch_size: int | None = None) -> torch.Tensor:
    """Mean over the pixels of masked patches of a batch, in float32.

    Args:
        values: Tensor of shape (B, K, H, W).
        mask: Bool tensor of shape (B, h, w) on the patch grid that covers H and W, True = masked; None for the mean
            over everything.
        patch_size: Side of a patch in pixels. Without it the patches must divide H and W: how large one is whose
            neighbours are cut cannot be told from the grid.

    Returns:
        Scalar float32 tensor; 0 if nothing is masked.

    Raises:
        ValueError: If the mask does not cover the values.
    """
    if mask is None:
        return values.float().mean()
    total, count = _masked_sums(values, mask, patch_size)
    return total.sum() / count.sum().clamp(min=1)


def masked_mean_per_image(
    values: torch.Tensor, mask: torch.Tensor | None, patch_size: int | None = None
) -> torch.Tensor:
    """As `masked_mean`, for each image by itself: float32 tensor of shape (B,)."""
    if mask is None:
        return values.float().mean(dim=(1, 2, 3))
    total, count = _masked_sums(values, mask, patch_size)
    return total / count.clamp(min=1)


def _masked_sums(values: torch.Tensor, mask: torch.Tensor, patch_size: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum and number of masked elements of each image, both (B,)."""
    batch_size, channels, height, width = values.shape
    _, rows, columns = mask.shape
    if patch_size is None and (height % rows or width % columns):
        raise ValueError(
            f"A mask on {rows}x{columns} patches does not divide {height}x{width} pixels. Pass patch_size."
        )
    if patch_size is not None and (rows * patch_size, columns * patch_size) != (height, width):
        weights = to_pixels(mask, patch_size, (height, width))[:, None].to(torch.float32)  # B, 1, H, W
        return (values.float() * weights).flatten(1).sum(1), weights.flatten(1).sum(1) * channels
    # The same for whole patches, without a mask of every pixel.
    patches = values.float().reshape(batch_size, channels, rows, height // rows, columns, width // columns)
    weights = mask.view(batch_size, 1, rows, 1, columns, 1).to(patches.dtype)
    elements_per_patch = channels * (height // rows) * (width // columns)
    return (patches * weights).flatten(1).sum(1), mask.flatten(1).sum(1) * elements_per_patch


LOSS_FUNCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "l1": l1,
}
