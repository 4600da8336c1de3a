"""Shapes of masks: which units are hidden, on their own grid.

Each function takes `valid`, a bool tensor (B, rows, columns) of the units that may be hidden, `counts`, a tensor (B,)
of how many to hide, fewer than there are, and a generator or None. It returns a bool tensor of the shape of `valid`.
"""

import torch

# Smallest block of BEiT: 16 of 196 patches; and how much longer than wide a block may be.
SMALLEST_BLOCK = 16 / 196
LONGEST_BLOCK = 1 / 0.3


def draw(*shape: int, like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Numbers of [0, 1) on the device of another tensor.

    float32 whatever torch's default is: half types have so few values that ties would favour the first units.
    """
    return torch.rand(*shape, generator=generator, device=like.device, dtype=torch.float32)


def _lowest(scores: torch.Tensor, among: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The `counts` (B,) units of the lowest scores (B, rows, columns) among some of them, as a bool tensor."""
    last = torch.inf if scores.is_floating_point() else torch.iinfo(scores.dtype).max
    order = scores.masked_fill(~among, last).flatten(1).argsort(dim=1)
    chosen = torch.arange(order.shape[1], device=order.device) < counts[:, None]
    return torch.zeros_like(chosen).scatter_(1, order, chosen).view(among.shape)


def random_units(valid: torch.Tensor, counts: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Units chosen uniformly at random.

    Source: section 3.2 of the paper, "patch-aligned random masking".
    """
    scores = draw(len(valid), valid[0].numel(), like=valid, generator=generator)
    return _lowest(scores.view(valid.shape), valid, counts)


def square_units(valid: torch.Tensor, counts: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """One region as square as the grid allows, at a random place.

    Source: section 3.2 of the paper, "other masking strategies": a square that is moved at random.
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
    """One region as square as the grid allows, around the centre; nothing about it is random.

    Source: section 3.2 of the paper, "other masking strategies", without the move.
    """
    corner = torch.zeros_like(counts)
    return _around(valid, counts, corner + valid.shape[1] - 1, corner + valid.shape[2] - 1, corner)


def _below(share: torch.Tensor, end: torch.Tensor | int) -> torch.Tensor:
    """Shares of [0, 1) to whole numbers from 0 to `end - 1`. Rounding may have made the largest share one."""
    return (share * end).long().clamp(max=end - 1)


def _around(
    valid: torch.Tensor, counts: torch.Tensor, y: torch.Tensor, x: torch.Tensor, corner: torch.Tensor
) -> torch.Tensor:
    """The units nearest to centres in Chebyshev distance, along a ring of equal ones from a corner on.

    Args:
        valid: Units that may be hidden, (B, rows, columns).
        counts: How many, (B,).
        y: Centres in halves of a unit, as those of even squares lie between units, (B,).
        x: Likewise.
        corner: Where rings begin, 0 to 3 clockwise from the upper left, (B,).
    """
    y, x, corner = (values.view(-1, 1, 1) for values in (y, x, corner))
    y = 2 * torch.arange(valid.shape[1], device=valid.device)[:, None] - y  # B, rows, 1
    x = 2 * torch.arange(valid.shape[2], device=valid.device) - x  # B, 1, columns
    ring = torch.maximum(y.abs(), x.abs())
    # Clockwise: a ring has four sides of twice its distance.
    left_or_bottom = torch.where(y == ring, 5 * ring - x, 7 * ring - y)
    along = torch.where(y == -ring, x + ring, torch.where(x == ring, y + 3 * ring, left_or_bottom))
    along = (along - 2 * ring * corner) % (8 * ring).clamp(min=1)
    return _lowest(ring * 8 * (ring.max() + 1) + along, valid, counts)


def block_units(valid: torch.Tensor, counts: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Blocks of random size and proportions on top of each other, the last one cut to the count.

    Source: algorithm 1 of BEiT (arXiv 2106.08254).
    """
    batch_size, rows, columns = valid.shape
    smallest = max(1, round(rows * columns * SMALLEST_BLOCK))
    y = torch.arange(rows, device=valid.device)[:, None]
    x = torch.arange(columns, device=valid.device)
    masked, missing = torch.zeros_like(valid), counts
    while missing.any():
        area, aspect, top, left, end = draw(5, batch_size, like=valid, generator=generator)
        area = smallest + area * (missing - smallest).clamp(min=0)
        shorter = (area / LONGEST_BLOCK ** (2 * aspect - 1).abs()).sqrt().round().clamp(min=1)
        longer = (area / shorter).ceil()
        # At least as long as it takes where the other side is that of a narrow grid.
        height = torch.where(aspect < 0.5, shorter, longer).maximum((area / columns).ceil()).clamp(max=rows).long()
        width = torch.where(aspect < 0.5, longer, shorter).maximum((area / rows).ceil()).clamp(max=columns).long()
        top, left = _below(top, rows - height + 1), _below(left, columns - width + 1)
        free = valid & ~masked
        is_stuck = ~(_blocks(y, x, top, left, height, width) & free).flatten(1).any(1)
        if is_stuck.any():
            # Moved to the next place where it hides something, so that this ends.
            pick = (free * (1 + draw(*valid.shape, like=valid, generator=generator))).flatten(1).argmax(1)
            pick_y, pick_x = pick // columns, pick % columns
            top = torch.where(is_stuck, top.clamp(pick_y - height + 1, pick_y), top)
            left = torch.where(is_stuck, left.clamp(pick_x - width + 1, pick_x), left)
        free = free & _blocks(y, x, top, left, height, width)
        lengthwise = torch.where((width > height).view(-1, 1, 1), x * rows + y, y * columns + x)
        lengthwise = torch.where((end < 0.5).view(-1, 1, 1), lengthwise, -lengthwise)
        added = _lowest(lengthwise, free, torch.minimum(missing, free.flatten(1).sum(1)))
        masked = masked | added
        missing = missing - added.flatten(1).sum(1)
    return masked


def _blocks(
    y: torch.Tensor,
    x: torch.Tensor,
    top: torch.Tensor,
    left: torch.Tensor,
    height: torch.Tensor,
    width: torch.Tensor,
) -> torch.Tensor:
    """Rectangles of numbers (B,) on the units at y (rows, 1) and x (columns,), as a bool tensor (B, rows, columns)."""
    top, left, height, width = (values.view(-1, 1, 1) for values in (top, left, height, width))
    return (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
