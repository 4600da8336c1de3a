"""Attention in windows of which only some tokens are there.

Every window of an image holds as many tokens as the mask leaves visible in it. Windows of similar numbers are attended
to together, filled up to the largest of them, so that attention costs about what the visible tokens cost. The regions
of shifted windows, which may not see each other, count as windows of their own.

GreenMIM (arXiv 2205.13515) packs several windows into one group of a fixed size instead and masks the pairs of
different windows; here no such pair is computed.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .windows import WindowLayout, to_windows

# Windows are attended to in so many groups by their number of tokens.
NUM_GROUPS = 4


class WindowGroup(NamedTuple):
    """G windows of up to n tokens each."""

    num_windows: int  # G
    length: int  # n
    relative_index: torch.Tensor  # G, n, n: row of the bias table for each pair of tokens
    is_filling: torch.Tensor | None  # G, 1, 1, n: True where a window has no further token; None if all are full


class VisibleWindows(NamedTuple):
    """Where B * V tokens lie in the windows of a stage. The places of all groups count as one sequence of S."""

    groups: tuple[WindowGroup, ...]
    tokens: torch.Tensor  # S: token at each place; B * V for filling and for padding of the grid
    places: torch.Tensor  # B * V: place of each token
    padding: torch.Tensor  # places of padding of the grid, which is attended to like tokens
    coordinates: torch.Tensor | None = None  # as in `WindowLayout`


def visible_windows(
    rows: torch.Tensor, columns: torch.Tensor, is_visible: torch.Tensor, layout: WindowLayout, shift: bool
) -> VisibleWindows:
    """Sort visible tokens into the windows of a grid.

    Args:
        rows: Row of each token in the grid, (B, V).
        columns: Its column, (B, V).
        is_visible: Bool tensor (B, V), False at tokens that no other one may see.
        layout: The windows of the whole grid.
        shift: Whether to use the shifted windows.

    Returns:
        The windows.
    """
    device, num_tokens = rows.device, rows.numel()
    (height, width), (padded_height, padded_width) = layout.grid_size, layout.padded_size
    window_area, num_places = layout.window_size**2, padded_height * padded_width
    # Position in the grid of each place in window order.
    order = torch.arange(num_places, device=device).view(1, padded_height, padded_width, 1)
    order = to_windows(order, layout.window_size)[0, :, 0]
    if shift:
        order = order[layout.to_shifted]
    # Which token is there: -1 for none. Those that nobody may see lie in images of their own.
    absent = torch.full((padded_height, padded_width), -1, device=device)
    absent[height:], absent[:, width:] = num_tokens, num_tokens
    images = torch.arange(len(rows), device=device)[:, None] + len(rows) * (~is_visible).long()
    there = absent.flatten().repeat(2 * len(rows), 1)
    there[images, rows * padded_width + columns] = torch.arange(num_tokens, device=device).view_as(rows)
    there = there[:, order]  # 2 B, L
    # Each region of each window is a window: the number of its first token says which one.
    position = torch.arange(num_places, device=device) % window_area
    if layout.region_mask is not None and shift:
        first = (layout.region_mask[:, 0] == 0).to(torch.uint8).argmax(dim=-1).flatten()  # L
    else:
        first = torch.zeros_like(position)
    window = torch.arange(num_places, device=device) // window_area * window_area + first
    window = window + num_places * torch.arange(len(there), device=device)[:, None]  # 2 B, L
    is_there = there >= 0
    there, window = there[is_there], window[is_there]
    position = position.expand(len(is_there), -1)[is_there]
    numbers, sizes = window.unique(return_counts=True)
    # Windows of padding alone are left out.
    wanted = torch.zeros(len(numbers), dtype=torch.bool, device=device)
    wanted[torch.searchsorted(numbers, window[there < num_tokens])] = True
    by_window = window.argsort(stable=True)
    there, position = there[by_window], position[by_window]
    starts = sizes.cumsum(0) - sizes

    groups, tokens = [], []
    for group in range(NUM_GROUPS):
        low, high = group * window_area // NUM_GROUPS, (group + 1) * window_area // NUM_GROUPS
        chosen = wanted & (sizes > low) & (sizes <= high)
        lengths, start = sizes[chosen], starts[chosen]
        if not len(lengths):
            continue
        steps = torch.arange(int(lengths.max()), device=device)
        is_filled = steps < lengths[:, None]  # G, n
        index = start[:, None] + steps.where(is_filled, 0)
        tokens.append(there[index].where(is_filled, num_tokens).flatten())
        at = position[index]
        relative_index = layout.relative_index[at[:, :, None], at[:, None]]
        is_filling = None if bool(is_filled.all()) else ~is_filled[:, None, None]
        groups.append(WindowGroup(len(lengths), len(steps), relative_index, is_filling))
    places_to_tokens = torch.cat(tokens)
    is_token = places_to_tokens < num_tokens
    places = torch.empty(num_tokens, dtype=torch.long, device=device)
    places[places_to_tokens[is_token]] = is_token.nonzero()[:, 0]
    padding = (~is_token).nonzero()[:, 0] if layout.is_real is not None else places[:0]
    return VisibleWindows(tuple(groups), places_to_tokens, places, padding, layout.coordinates)


class ToPlaces(torch.autograd.Function):
    """Rows of tokens, and of one that stands for all that is none, to places; the gradient is a gather, too."""

    @staticmethod
    def forward(rows: torch.Tensor, windows: VisibleWindows) -> torch.Tensor:
        return rows.index_select(0, windows.tokens)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1].places, inputs[1].padding)

    @staticmethod
    def backward(ctx, grad_output):
        places, padding = ctx.saved_tensors
        # Filling is seen by nobody: only padding of the grid has a gradient.
        rest = grad_output.index_select(0, padding).sum(0, keepdim=True)
        return torch.cat([grad_output.index_select(0, places), rest]), None


class FromPlaces(torch.autograd.Function):
    """Places to rows of tokens; the gradient is a gather, too."""

    @staticmethod
    def forward(places: torch.Tensor, windows: VisibleWindows) -> torch.Tensor:
        return places.index_select(0, windows.places)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1].tokens)

    @staticmethod
    def backward(ctx, grad_output):
        return F.pad(grad_output, (0, 0, 0, 1)).index_select(0, ctx.saved_tensors[0]), None


def to_places(rows: torch.Tensor, windows: VisibleWindows) -> torch.Tensor:
    """Rows (B * V + 1, C), the last one of which is padding, to places (S, C)."""
    return ToPlaces.apply(rows, windows)


def from_places(places: torch.Tensor, windows: VisibleWindows) -> torch.Tensor:
    """Places (S, C) to rows (B * V, C)."""
    return FromPlaces.apply(places, windows)
