"""Which patches to hide. Every strategy returns a bool mask on the patch grid, True = masked."""

import math
from collections.abc import Callable

import torch


def mask_units(image_size: tuple[int, int], patch_size: int, mask_patch_size: int) -> tuple[tuple[int, int], int]:
    """Turn a mask patch in pixels into units of the model's patch grid.

    Neither patch need divide the image: patches and units at the right and lower border may be cut.

    Args:
        image_size: (height, width) in pixels.
        patch_size: Side of the model's patches, in pixels.
        mask_patch_size: Side of the square that is hidden or shown as a whole, in pixels.

    Returns:
        The patch grid (h, w), cut patches included, and the side of a mask unit in patches.

    Raises:
        ValueError: If the model's patch does not divide the mask patch.
    """
    if patch_size < 1:
        raise ValueError(f"The model's patch size is {patch_size} px. Use that of the encoder, such as 4 or 16.")
    if mask_patch_size < 1 or mask_patch_size % patch_size:
        raise ValueError(
            f"mask_patch_size={mask_patch_size} px is not a multiple of the model's patch size of {patch_size} px."
            f" Use {max(1, round(mask_patch_size / patch_size)) * patch_size}."
        )
    return patch_grid(image_size, patch_size), mask_patch_size // patch_size


def patch_grid(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches that cover an image (height, width) in pixels; the last ones may be cut."""
    height, width = image_size
    return math.ceil(height / patch_size), math.ceil(width / patch_size)


def to_pixels(mask: torch.Tensor, patch_size: int, image_size: tuple[int, int]) -> torch.Tensor:
    """Bring a mask from patches to pixels.

    Args:
        mask: Tensor of shape (B, h, w) on the patch grid that covers the image.
        patch_size: Side of a patch in pixels.
        image_size: (H, W) in pixels.

    Returns:
        Tensor of shape (B, H, W) of the same type.

    Raises:
        ValueError: If the mask is not on that grid.
    """
    height, width = image_size
    grid_size = patch_grid(image_size, patch_size)
    if tuple(mask.shape[1:]) != grid_size:
        raise ValueError(
            f"A mask of shape {tuple(mask.shape)} does not cover an image of {height}x{width} with patches of"
            f" {patch_size} px. Use (B, {grid_size[0]}, {grid_size[1]})."
        )
    pixels = mask.repeat_interleave(patch_size, dim=1).repeat_interleave(patch_size, dim=2)
    return pixels[:, :height, :width]


def num_masked_units(num_units: int, mask_ratio: float) -> int:
    """How many of `num_units` are hidden: the ratio, rounded up.

    Args:
        num_units: Number of mask units in an image.
        mask_ratio: Share of the image to hide, in (0, 1).

    Returns:
        A number from 1 to `num_units - 1`, so that something is hidden and something stays visible.

    Raises:
        ValueError: If the ratio is outside (0, 1), or would hide the whole image.

    Source: `MaskGenerator` in data/data_simmim.py of microsoft/SimMIM (22 of 36 at 192 px, 30 of 49 at 224 px).
    """
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio={mask_ratio} is outside (0, 1). The paper's default is 0.6.")
    # Rounded first: 100 * 0.55 is 55.00000000000001, which is meant to be 55.
    count = max(1, math.ceil(round(num_units * mask_ratio, 9)))
    if count >= num_units:
        raise ValueError(
            f"mask_ratio={mask_ratio} hides all mask units of the image ({num_units}) and leaves nothing to predict"
            " from. Use a smaller mask_patch_size or a smaller mask_ratio."
        )
    return count


def random_mask(
    grid_size: tuple[int, int],
    mask_ratio: float,
    batch_size: int = 1,
    *,
    unit_size: int = 1,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Hide mask units chosen uniformly at random, the same number in every image.

    Args:
        grid_size: (h, w) of the patch grid.
        mask_ratio: Share of the image to hide, in (0, 1).
        batch_size: Number of masks B.
        unit_size: Side in patches of the square that is hidden or shown as a whole; those at the right and lower border
            are cut if it does not divide the grid, and count like whole ones.
        generator: Source of randomness; torch's default one on `device` if None.
        device: Where the mask is made; on the generator's device if None.

    Returns:
        Bool tensor of shape (B, h, w), True = masked.

    Raises:
        ValueError: If the unit is no size, or the ratio cannot be met.

    Source: section 3.2 of the paper, "patch-aligned random masking".
    """
    height, width = grid_size
    if unit_size < 1:
        raise ValueError(f"unit_size={unit_size} is no number of patches. Use 1 or more.")
    rows, columns = math.ceil(height / unit_size), math.ceil(width / unit_size)
    count = num_masked_units(rows * columns, mask_ratio)
    if device is None and generator is not None:
        device = generator.device
    # float32 whatever torch's default is: half types have so few values that ties would favour the first units.
    scores = torch.rand(batch_size, rows * columns, generator=generator, device=device, dtype=torch.float32)
    masked = torch.zeros_like(scores, dtype=torch.bool)
    masked.scatter_(1, scores.argsort(dim=1)[:, :count], True)
    # A unit is to the grid what a patch is to the image.
    return to_pixels(masked.view(batch_size, rows, columns), unit_size, grid_size)


MASK_STRATEGIES: dict[str, Callable[..., torch.Tensor]] = {
    "random": random_mask,
}
