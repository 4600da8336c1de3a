"""Masking strategies. Every strategy returns a bool mask on the patch grid, True = masked."""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

# Units of all images that are processed together. Of larger grids, one image after another is faster and needs less
# memory, and its masked units are selected without sorting them.
LARGEST_PART = 2**18
NUM_BUCKETS = 2**16


def mask_units(image_size: tuple[int, int], patch_size: int, mask_patch_size: int) -> tuple[tuple[int, int], int]:
    """Convert the size of mask units from pixels to patches of the model.

    Neither size need divide the image: patches and units at the right and lower border may be cut.

    Args:
        image_size: (height, width) in pixels.
        patch_size: Side of the model's patches, in pixels.
        mask_patch_size: Side of a mask unit, the square that is masked as a whole, in pixels.

    Returns:
        The patch grid (h, w), cut patches included, and the side of a mask unit in patches.

    Raises:
        ValueError: If a size is no positive whole number, or the model's patch does not divide the mask patch.
    """
    sides(image_size, "image_size")
    if not is_whole(patch_size) or patch_size < 1:
        raise ValueError(f"The model's patch size is {patch_size} px. Use that of the encoder, such as 4 or 16.")
    if not is_whole(mask_patch_size):
        raise ValueError(f"mask_patch_size={mask_patch_size!r} must be a whole number of pixels, such as 32.")
    if mask_patch_size < 1 or mask_patch_size % patch_size:
        raise ValueError(
            f"mask_patch_size={mask_patch_size} px is not a multiple of the model's patch size of {patch_size} px."
            f" Use {max(1, round(mask_patch_size / patch_size)) * patch_size}."
        )
    return patch_grid(image_size, patch_size), mask_patch_size // patch_size


def patch_mask(
    bool_masked_pos: torch.Tensor | None, pixel_values: torch.Tensor, patch_size: int
) -> torch.Tensor | None:
    """Convert a mask to bool and shape (B, h, w).

    Args:
        bool_masked_pos: Mask of shape (B, N) or (B, h, w), True or 1 = masked, False or 0 = visible; or None.
        pixel_values: Images of shape (B, C, H, W) that it belongs to.
        patch_size: Side of a patch in pixels.

    Returns:
        The mask, or None if there was none. It includes patches that are cut by the border of an image.

    Raises:
        ValueError: If the mask has another shape or other values.
    """
    if bool_masked_pos is None:
        return None
    if not isinstance(bool_masked_pos, torch.Tensor):
        raise ValueError(
            f"bool_masked_pos is of type {type(bool_masked_pos).__name__}. Use a tensor, or None to mask nothing."
        )
    batch_size, _, height, width = pixel_values.shape
    grid_size = patch_grid((height, width), patch_size)
    expected = (batch_size, grid_size[0] * grid_size[1])
    shape = bool_masked_pos.shape
    # Compared number by number: under torch.compile, tuples of dynamic sizes are not compared by value.
    if not any(
        len(shape) == len(fitting) and all(ours == theirs for ours, theirs in zip(shape, fitting, strict=True))
        for fitting in (expected, (batch_size, *grid_size))
    ):
        raise ValueError(
            f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)}. Images of {height}x{width} with patches of"
            f" {patch_size} px need {expected} or {(batch_size, *grid_size)}."
        )
    # A value cannot be looked at while a program is traced.
    if bool_masked_pos.dtype != torch.bool and not (torch.compiler.is_compiling() or bool_masked_pos.is_meta):
        others = bool_masked_pos[(bool_masked_pos != 0) & (bool_masked_pos != 1)]
        if len(others):
            raise ValueError(
                f"bool_masked_pos has the value {others[0].item():g}. Use a bool mask, True = masked, or 1 and 0: a"
                " patch is masked as a whole or not at all."
            )
    return bool_masked_pos.bool().reshape(batch_size, *grid_size)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of Python or NumPy."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def sides(size: Any, name: str) -> tuple[int, int]:
    """Check a size (height, width).

    Args:
        size: The size.
        name: What it is called, for messages.

    Returns:
        The two numbers.

    Raises:
        ValueError: If they are not two positive whole numbers.
    """
    pair = tuple(size) if isinstance(size, (Sequence, torch.Size)) and not isinstance(size, str) else ()
    if len(pair) != 2 or not all(is_whole(side) and side > 0 for side in pair):
        raise ValueError(f"{name}={size!r} must be (height, width), two whole numbers of at least 1.")
    return pair


def patch_grid(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches that cover an image (height, width) in pixels; the last ones may be cut."""
    height, width = image_size
    return math.ceil(height / patch_size), math.ceil(width / patch_size)


def to_pixels(mask: torch.Tensor, patch_size: int, image_size: tuple[int, int]) -> torch.Tensor:
    """Expand a mask from patches to pixels.

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
    if patch_size == 1:
        return mask
    pixels = mask.repeat_interleave(patch_size, dim=1).repeat_interleave(patch_size, dim=2)
    return pixels[:, :height, :width]


def patches_with_pixels(pixel_mask: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Find the patches that contain at least one real pixel.

    Args:
        pixel_mask: Bool tensor of shape (B, H, W), True = a real pixel, False = missing or padding.
        patch_size: Side of a patch in pixels.

    Returns:
        Bool tensor of shape (B, h, w) on the patch grid that covers the image.
    """
    if patch_size == 1:
        return pixel_mask > 0
    return F.max_pool2d(pixel_mask[:, None].float(), patch_size, ceil_mode=True)[:, 0] > 0


def ratio_range(mask_ratio: float | Sequence[float]) -> tuple[float, float]:
    """Smallest and largest mask ratio.

    Args:
        mask_ratio: One ratio in (0, 1), or two in ascending order.

    Returns:
        Two ratios, which are equal if only one was given.

    Raises:
        ValueError: If a ratio is no number in (0, 1), or if there are not one or two in ascending order.
    """
    bounds = tuple(mask_ratio) if isinstance(mask_ratio, Sequence) else (mask_ratio, mask_ratio)
    if len(bounds) != 2:
        raise ValueError(f"mask_ratio={mask_ratio} has {len(bounds)} values. Give one ratio, or two.")
    for ratio in bounds:
        if ratio is None or isinstance(ratio, (str, bytes, complex, dict, set)) or not 0 < ratio < 1:
            raise ValueError(f"mask_ratio={ratio} is outside (0, 1). The paper's default is 0.6.")
    low, high = bounds
    if low > high:
        raise ValueError(f"mask_ratio={mask_ratio} must be in ascending order. Use {high} {low}.")
    return low, high


def span(values: float | Sequence[float]) -> str:
    """Format a number or the two ends of a range: "0.6" or "0.4 to 0.7"."""
    return " to ".join(map(str, values)) if isinstance(values, Sequence) else str(values)


def num_masked_units(num_units: int, mask_ratio: float) -> int:
    """Number of masked units for a mask ratio, rounded up.

    Args:
        num_units: Number of mask units in an image.
        mask_ratio: Share of the image to mask, in (0, 1).

    Returns:
        A number from 1 to `num_units - 1`, so that something is masked and something stays visible.

    Raises:
        ValueError: If the ratio is outside (0, 1), or would mask the whole image, or there is no number of units.

    Source: `MaskGenerator` in data/data_simmim.py of microsoft/SimMIM (22 of 36 at 192 px, 30 of 49 at 224 px).
    """
    ratio_range(mask_ratio)
    if not is_whole(num_units) or num_units < 1:
        raise ValueError(f"num_units={num_units!r} must be a whole number of at least 1.")
    count = _rounded_up(num_units, mask_ratio)
    if count >= num_units:
        raise ValueError(
            f"mask_ratio={mask_ratio} masks all units of the image ({num_units}) and leaves nothing to predict"
            " from. Use a smaller mask_patch_size or a smaller mask_ratio."
        )
    return count


def _rounded_up(num_units: int, mask_ratio: float) -> int:
    # Rounded first: 100 * 0.55 is 55.00000000000001, which should give 55.
    return max(1, math.ceil(round(num_units * mask_ratio, 9)))


@dataclass(frozen=True)
class MaskStrategy:
    """A masking strategy, which is called to draw masks.

    Args:
        choose: Function of the units that may be masked (B, rows, columns), the number to mask in each image (B,), and
            the generator; returns the masked units, a bool tensor (B, rows, columns).
    """

    choose: Callable[[torch.Tensor, torch.Tensor, torch.Generator | None], torch.Tensor]

    def __call__(
        self,
        grid_size: tuple[int, int],
        mask_ratio: float | Sequence[float],
        batch_size: int = 1,
        *,
        unit_size: int = 1,
        valid_patches: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> torch.Tensor:
        """Draw masks.

        Args:
            grid_size: (h, w) of the patch grid.
            mask_ratio: Share of the image to mask, in (0, 1), or the two ends of a range, from which a ratio is drawn
                for every image.
            batch_size: Number of masks B.
            unit_size: Side in patches of the square that is masked as a whole; squares at the right and lower border
                are cut if it does not divide the grid, and count like complete ones.
            valid_patches: Bool tensor of shape (B, h, w), True where a patch contains a real pixel. Other patches are
                never masked, and units without real pixels do not count. Images of fewer than two units stay unmasked.
            generator: Source of randomness; torch's default one on `device` if None.
            device: Device of the mask; that of the generator or of `valid_patches` if None.

        Returns:
            Bool tensor of shape (B, h, w), True = masked.

        Raises:
            ValueError: If a size or number is not a whole one of at least 1, the ratio cannot be met, or
                `valid_patches` has another shape.

        Examples:
            >>> block_mask((12, 12), 0.4, batch_size=8)
        """
        if not is_whole(unit_size) or unit_size < 1:
            raise ValueError(f"unit_size={unit_size!r} must be 1 patch or more, a whole number.")
        if not is_whole(batch_size) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be 1 mask or more, a whole number.")
        rows, columns = patch_grid(sides(grid_size, "grid_size"), unit_size)
        num_masked_units(rows * columns, ratio_range(mask_ratio)[1])
        if valid_patches is not None and not isinstance(valid_patches, torch.Tensor):
            raise ValueError(f"valid_patches is of type {type(valid_patches).__name__}. Use a bool tensor, or None.")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ValueError(f"generator={generator!r} is no torch.Generator. Use torch.Generator().manual_seed(0).")
        for source in (generator, valid_patches):
            device = source.device if device is None and source is not None else device
        if valid_patches is None:
            valid = torch.ones(batch_size, rows, columns, dtype=torch.bool, device=device)
            numbers = [rows * columns] * batch_size
        else:
            if tuple(valid_patches.shape) != (batch_size, *grid_size):
                raise ValueError(
                    f"valid_patches has shape {tuple(valid_patches.shape)}. Use {(batch_size, *grid_size)}, a value for"
                    " each patch of each mask."
                )
            valid_patches = valid_patches.to(device).bool()
            valid = patches_with_pixels(valid_patches, unit_size)
            numbers = valid.flatten(1).sum(1).tolist()
        low, high = ratio_range(mask_ratio)
        shares = draw(batch_size, like=valid, generator=generator).tolist() if low < high else [0.0] * batch_size
        counts = [_count(number, low + share * (high - low)) for number, share in zip(numbers, shares, strict=True)]
        units = self.choose(valid, torch.tensor(counts, device=valid.device), generator)
        # Expands units to patches, as it expands patches to pixels elsewhere.
        mask = to_pixels(units, unit_size, grid_size)
        return mask if valid_patches is None else mask & valid_patches


def _count(num_units: int, mask_ratio: float) -> int:
    """As `num_masked_units`, but images of few real units are no error: at least one unit stays visible."""
    return min(_rounded_up(num_units, mask_ratio), num_units - 1) if num_units > 1 else 0


def average_distance(
    mask: torch.Tensor, patch_size: int = 1, image_size: tuple[int, int] | None = None
) -> torch.Tensor:
    """AvgDist: mean Euclidean distance from masked pixels to the nearest visible one, in pixels.

    Exact, by a distance transform along columns and then along rows.

    Args:
        mask: Bool tensor of shape (B, h, w) on the patch grid, True = masked.
        patch_size: Side of a patch in pixels.
        image_size: (H, W) in pixels; whole patches if None.

    Returns:
        float32 tensor of shape (B,); 0 for images without masked pixels.

    Raises:
        ValueError: If a mask covers a whole image, or does not fit the image.

    Source: section 4.1.2 and figure 3 of the paper.
    """
    size = image_size or (mask.shape[1] * patch_size, mask.shape[2] * patch_size)
    masked = to_pixels(mask.bool(), patch_size, size)
    height, width = size
    if masked.flatten(1).all(1).any():
        raise ValueError("A mask covers a whole image and leaves no visible pixel. Use a smaller mask_ratio.")
    far = height + width  # further than any pixel
    y, x = torch.arange(height, device=mask.device)[:, None], torch.arange(width, device=mask.device)
    above = torch.where(masked, -far, y).cummax(dim=1).values
    below = torch.where(masked, 2 * far, y).flip(1).cummin(dim=1).values.flip(1)
    in_column = torch.minimum(y - above, below - y).square().float().view(-1, width)  # B * H, W
    in_row = (x[:, None] - x).square().float()
    # In chunks, because each row takes W * W numbers, and into one result, so that their memory is used again.
    nearest = torch.empty_like(in_column)
    for chunk, found in zip(*(part.split(max(1, 2**21 // width**2)) for part in (in_column, nearest)), strict=True):
        torch.amin(chunk[:, None] + in_row, dim=2, out=found)
    return nearest.sqrt().view(masked.shape).flatten(1).sum(1) / masked.flatten(1).sum(1).clamp(min=1)


# Smallest block of BEiT, 16 of 196 patches, and the largest aspect ratio of a block.
SMALLEST_BLOCK = 16 / 196
LONGEST_BLOCK = 1 / 0.3


def draw(*shape: int, like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Uniform random numbers in [0, 1) on the device of another tensor.

    They are always float32: half precision has so few values that ties would favor the first units.
    """
    return torch.rand(*shape, generator=generator, device=like.device, dtype=torch.float32)


def _lowest(scores: torch.Tensor, among: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The `counts` (B,) units with the lowest scores (B, rows, columns) of the units `among`, as a bool tensor."""
    last = torch.inf if scores.is_floating_point() else torch.iinfo(scores.dtype).max
    if among[0].numel() > LARGEST_PART:
        chosen = []
        for row, units, count in zip(scores.flatten(1), among.flatten(1), counts.tolist(), strict=True):
            low, high = row.min(), row.max()
            buckets = ((row - low) * (NUM_BUCKETS / (high - low).clamp(min=1e-6))).int()
            chosen.append(_lowest_of_many(buckets, units, count, row.__getitem__))
        return torch.stack(chosen).view(among.shape)
    order = scores.masked_fill(~among, last).flatten(1).argsort(dim=1)
    chosen_in_order = torch.arange(order.shape[1], device=order.device) < counts[:, None]
    return torch.zeros_like(chosen_in_order).scatter_(1, order, chosen_in_order).view(among.shape)


def _lowest_of_many(
    buckets: torch.Tensor, among: torch.Tensor, count: int, scores: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """The `count` units with the lowest scores, without sorting all of them.

    Args:
        buckets: Whole numbers from 0 on that never fall where scores rise, (N,).
        among: Units to choose from, (N,).
        count: Number of units to choose.
        scores: Takes indices of units, and returns their scores. Of equal ones the first are chosen.

    Returns:
        Bool tensor (N,).
    """
    totals = buckets.masked_fill(~among, int(buckets.max()) + 1).bincount().cumsum(0)
    border = int((totals < count).sum())
    chosen = (buckets < border) & among
    last = ((buckets == border) & among).nonzero()[:, 0]
    missing = count - (int(totals[border - 1]) if border else 0)
    chosen[last[scores(last).argsort(stable=True)[:missing]]] = True
    return chosen


def _parts(valid: torch.Tensor) -> list[slice]:
    """Images (B, rows, columns) to process together."""
    step = max(1, LARGEST_PART // valid[0].numel()) if len(valid) else 1
    return [slice(first, first + step) for first in range(0, len(valid), step)]


def random_units(valid: torch.Tensor, counts: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Units chosen uniformly at random.

    Use it by default. The example has the paper's units of 32 px, for images of 192 px and patches of 4 px.

    Args:
        valid: Units that may be masked, bool tensor of shape (B, rows, columns).
        counts: Number of units to mask in each image, of shape (B,).
        generator: Source of randomness; torch's default one on the device of `valid` if None.

    Returns:
        Masked units, bool tensor of shape (B, rows, columns).

    Source: section 3.2 of the paper, "patch-aligned random masking".

    Examples:
        >>> random_mask((48, 48), 0.6, batch_size=8, unit_size=8)
    """
    scores = draw(len(valid), valid[0].numel(), like=valid, generator=generator)
    return _lowest(scores.view(valid.shape), valid, counts)


def square_units(valid: torch.Tensor, counts: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """One region as square as the grid allows, at a random position.

    Use it to train or test how well large gaps are filled, as in inpainting.

    Args:
        valid: Units that may be masked, bool tensor of shape (B, rows, columns).
        counts: Number of units to mask in each image, of shape (B,).
        generator: Source of randomness; torch's default one on the device of `valid` if None.

    Returns:
        Masked units, bool tensor of shape (B, rows, columns).

    Source: section 3.2 of the paper, "other masking strategies": a square that is moved at random.

    Examples:
        >>> square_mask((12, 12), 0.25, batch_size=8)
    """
    rows, columns = valid.shape[1:]
    shorter = min(rows, columns)
    side = counts.float().sqrt().ceil().long()
    longer_side = torch.where(side > shorter, (counts + shorter - 1) // shorter, side)
    sides = (side.clamp(max=shorter), longer_side)
    height, width = sides if rows <= columns else sides[::-1]
    y, x, corner = draw(3, len(valid), like=valid, generator=generator)
    top, left = _below(y, rows - height + 1), _below(x, columns - width + 1)
    return _around(valid, counts, 2 * top + height - 1, 2 * left + width - 1, _below(corner, 4))


def central_square_units(valid: torch.Tensor, counts: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """One region as square as the grid allows, around the center, without randomness.

    Use it to compare reconstructions of the same region, such as a centered object.

    Args:
        valid: Units that may be masked, bool tensor of shape (B, rows, columns).
        counts: Number of units to mask in each image, of shape (B,).
        generator: Source of randomness; not used.

    Returns:
        Masked units, bool tensor of shape (B, rows, columns).

    Source: section 3.2 of the paper, "other masking strategies", without the move.

    Examples:
        >>> central_square_mask((12, 12), 0.25, batch_size=8)
    """
    corner = torch.zeros_like(counts)
    return _around(valid, counts, corner + valid.shape[1] - 1, corner + valid.shape[2] - 1, corner)


def _below(share: torch.Tensor, end: torch.Tensor | int) -> torch.Tensor:
    """Scale numbers in [0, 1) to integers from 0 to `end - 1`, also where rounding would yield `end`."""
    return (share * end).long().clamp(max=end - 1)


def _around(
    valid: torch.Tensor, counts: torch.Tensor, y: torch.Tensor, x: torch.Tensor, corner: torch.Tensor
) -> torch.Tensor:
    """The units nearest to centers in Chebyshev distance; equal ones are taken along their ring, from a corner on.

    Args:
        valid: Units that may be masked, (B, rows, columns).
        counts: Number of units to mask, (B,).
        y: Centers in halves of a unit, because those of even squares lie between units, (B,).
        x: Likewise.
        corner: Corner where rings begin, 0 to 3 clockwise from the upper left, (B,).
    """
    if valid[0].numel() > LARGEST_PART:
        return torch.stack([_around_in_large(*image) for image in zip(valid, counts, y, x, corner, strict=True)])
    y, x, corner = (values.view(-1, 1, 1) for values in (y, x, corner))
    y = 2 * torch.arange(valid.shape[1], device=valid.device)[:, None] - y  # B, rows, 1
    x = 2 * torch.arange(valid.shape[2], device=valid.device) - x  # B, 1, columns
    ring = torch.maximum(y.abs(), x.abs())
    return _lowest(ring * 8 * (ring.max() + 1) + _along_ring(y, x, corner), valid, counts)


def _around_in_large(
    valid: torch.Tensor, count: torch.Tensor, y: torch.Tensor, x: torch.Tensor, corner: torch.Tensor
) -> torch.Tensor:
    """As `_around`, for one large image; the order along a ring matters for the last one only."""
    rows = 2 * torch.arange(valid.shape[0], device=valid.device, dtype=torch.int32) - y.int()
    columns = 2 * torch.arange(valid.shape[1], device=valid.device, dtype=torch.int32) - x.int()
    ring = torch.maximum(rows[:, None].abs(), columns.abs()).flatten()

    def order(units: torch.Tensor) -> torch.Tensor:
        return _along_ring(rows[units // len(columns)], columns[units % len(columns)], corner)

    return _lowest_of_many(ring, valid.flatten(), int(count), order).view(valid.shape)


def _along_ring(y: torch.Tensor, x: torch.Tensor, corner: torch.Tensor) -> torch.Tensor:
    """Place of units at (y, x) from the center on their ring: clockwise, from a corner on."""
    ring = torch.maximum(y.abs(), x.abs())
    # A ring has four sides of twice its distance.
    left_or_bottom = torch.where(y == ring, 5 * ring - x, 7 * ring - y)
    along = torch.where(y == -ring, x + ring, torch.where(x == ring, y + 3 * ring, left_or_bottom))
    return (along - 2 * ring * corner) % (8 * ring).clamp(min=1)


def block_units(valid: torch.Tensor, counts: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Overlapping blocks of random size and aspect ratio, the last of which is cut to the exact count.

    Use it to reproduce BEiT, which masks 0.4 of a grid of 14 x 14 patches.

    Args:
        valid: Units that may be masked, bool tensor of shape (B, rows, columns).
        counts: Number of units to mask in each image, of shape (B,).
        generator: Source of randomness; torch's default one on the device of `valid` if None.

    Returns:
        Masked units, bool tensor of shape (B, rows, columns).

    Source: algorithm 1 of BEiT (arXiv 2106.08254).

    Examples:
        >>> block_mask((14, 14), 0.4, batch_size=8)
    """
    batch_size, rows, columns = valid.shape
    smallest = max(1, round(rows * columns * SMALLEST_BLOCK))
    y = torch.arange(rows, device=valid.device)[:, None]
    x = torch.arange(columns, device=valid.device)
    masked, missing, parts = torch.zeros_like(valid), counts.clone(), _parts(valid)
    is_large = rows * columns > LARGEST_PART
    while missing.any():
        area, aspect, top, left, end = draw(5, batch_size, like=valid, generator=generator)
        area = smallest + area * (missing - smallest).clamp(min=0)
        shorter = (area / LONGEST_BLOCK ** (2 * aspect - 1).abs()).sqrt().round().clamp(min=1)
        longer = (area / shorter).ceil()
        # At least as long as needed where a narrow grid limits the other side.
        height = torch.where(aspect < 0.5, shorter, longer).maximum((area / columns).ceil()).clamp(max=rows).long()
        width = torch.where(aspect < 0.5, longer, shorter).maximum((area / rows).ceil()).clamp(max=columns).long()
        top, left = _below(top, rows - height + 1), _below(left, columns - width + 1)
        blocks = torch.stack((top, left, height, width))
        is_stuck = ~torch.cat([_free_in_blocks(valid, masked, blocks, part)[0].flatten(1).any(1) for part in parts])
        if is_large:
            is_stuck &= missing > 0
        if is_stuck.any():
            # Moved to a position where it masks something, so that the loop ends.
            if is_large:
                pick = _free_unit(valid, masked, is_stuck, generator)
            else:
                scores = 1 + draw(*valid.shape, like=valid, generator=generator)
                pick = ((valid & ~masked) * scores).flatten(1).argmax(1)
            pick_y, pick_x = pick // columns, pick % columns
            blocks[0] = torch.where(is_stuck, top.clamp(pick_y - height + 1, pick_y), top)
            blocks[1] = torch.where(is_stuck, left.clamp(pick_x - width + 1, pick_x), left)
        for part in parts:
            if is_large and not missing[part].any():
                continue
            free, window = _free_in_blocks(valid, masked, blocks, part)
            numbers = free.flatten(1).sum(1)
            added = free
            if len(parts) == 1 or (numbers > missing[part]).any():
                along, across = y[window[1]] * columns + x[window[2]], x[window[2]] * rows + y[window[1]]
                lengthwise = torch.where((width > height)[part].view(-1, 1, 1), across, along)
                lengthwise = torch.where((end < 0.5)[part].view(-1, 1, 1), lengthwise, -lengthwise)
                added = _lowest(lengthwise, free, torch.minimum(missing[part], numbers))
            masked[window] |= added
            missing[part] -= added.flatten(1).sum(1)
    return masked


def _free_unit(
    valid: torch.Tensor, masked: torch.Tensor, is_stuck: torch.Tensor, generator: torch.Generator | None
) -> torch.Tensor:
    """A random unit that is not masked yet, for each image that is stuck; 0 for the others, (B,)."""
    shares = draw(len(valid), like=valid, generator=generator)
    pick = torch.zeros_like(is_stuck, dtype=torch.long)
    for index in is_stuck.nonzero()[:, 0].tolist():
        free = (valid[index] & ~masked[index]).flatten().nonzero()[:, 0]
        pick[index] = free[_below(shares[index], len(free))]
    return pick


def _free_in_blocks(
    valid: torch.Tensor, masked: torch.Tensor, blocks: torch.Tensor, part: slice
) -> tuple[torch.Tensor, tuple[slice, slice, slice]]:
    """Units of some images' blocks that may be masked and are not yet, and where they lie.

    Args:
        valid: Units that may be masked, (B, rows, columns).
        masked: Masked units, (B, rows, columns).
        blocks: Top, left, height and width of the block of each image, (4, B).
        part: Images to look at; where they are not all, units outside of their blocks are left out.
    """
    top, left, height, width = blocks[:, part]
    rows, columns = slice(None), slice(None)
    if len(top) < len(valid):
        rows, columns = (
            slice(int(first.min()), int((first + length).max())) for first, length in ((top, height), (left, width))
        )
    y = torch.arange(valid.shape[1], device=valid.device)[rows, None]
    x = torch.arange(valid.shape[2], device=valid.device)[columns]
    window = (part, rows, columns)
    return valid[window] & ~masked[window] & _blocks(y, x, top, left, height, width), window


def _blocks(
    y: torch.Tensor,
    x: torch.Tensor,
    top: torch.Tensor,
    left: torch.Tensor,
    height: torch.Tensor,
    width: torch.Tensor,
) -> torch.Tensor:
    """Rectangles, given by tensors (B,), on units at y (rows, 1) and x (columns,): a bool tensor (B, rows, columns)."""
    top, left, height, width = (values.view(-1, 1, 1) for values in (top, left, height, width))
    return (y >= top) & (y < top + height) & (x >= left) & (x < left + width)


random_mask = MaskStrategy(random_units)


square_mask = MaskStrategy(square_units)


central_square_mask = MaskStrategy(central_square_units)


block_mask = MaskStrategy(block_units)


# ADD A MASK here: a MaskStrategy around a function that chooses units.
MASK_STRATEGIES: dict[str, MaskStrategy] = {
    "random": random_mask,
    "square": square_mask,
    "central_square": central_square_mask,
    "block": block_mask,
}
