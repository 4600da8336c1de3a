"""Division of a grid of tokens into windows, plain and shifted, and the orders of tokens that make it cheap.

Source: models/swin_transformer.py of microsoft/SimMIM.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

# The official implementation masks tokens of other regions by adding this to the attention logits, not -infinity.
OTHER_REGION_LOGIT = -100.0
# Windows are computed together if that leaves out at least this share of them.
MIN_SHARED = 0.1
# How many numbers of windows may be left: libraries prepare a product once for each shape.
NUM_SHAPES = 16


class WindowLayout(NamedTuple):
    """Division of a grid into windows: L tokens after padding, N tokens per window, W windows per image."""

    grid_size: tuple[int, int]  # the real tokens
    padded_size: tuple[int, int]  # a whole number of windows
    window_size: int
    relative_index: torch.Tensor  # N, N: row of the bias table for each pair of tokens
    to_shifted: torch.Tensor | None  # L: plain window order -> shifted window order; None if windows never shift
    to_plain: torch.Tensor | None  # L: the inverse
    region_mask: torch.Tensor | None  # W, 1, N, N: logits that keep the regions of a shifted window apart
    is_real: torch.Tensor | None  # L, 1 in plain window order: 1 for tokens, 0 for padding; None without padding
    coordinates: torch.Tensor | None = None  # rows of the bias table, 2: distances, if the bias is computed from them


def window_layout(
    grid_size: tuple[int, int], table_window: int, device: torch.device, dtype: torch.dtype
) -> WindowLayout:
    """Divide a grid into windows.

    Args:
        grid_size: (h, w) in tokens.
        table_window: Window size of the relative position table, in tokens. On a smaller grid the window shrinks to
            the grid and uses the middle of the table.
        device: Device of the index tensors.
        dtype: Dtype of the float tensors.

    Returns:
        The layout. Windows shift by half their size unless one spans the shorter side, as in the official code.
    """
    height, width = grid_size
    window = min(table_window, height, width)
    shift = 0 if min(height, width) <= table_window else window // 2
    padded_height, padded_width = math.ceil(height / window) * window, math.ceil(width / window) * window

    offsets = torch.arange(window, device=device)
    rows, columns = (axis.flatten() for axis in torch.meshgrid(offsets, offsets, indexing="ij"))
    row_distance = rows[:, None] - rows[None, :] + table_window - 1  # N, N
    column_distance = columns[:, None] - columns[None, :] + table_window - 1
    relative_index = row_distance * (2 * table_window - 1) + column_distance

    to_shifted = to_plain = region_mask = is_real = None
    if shift:
        order = torch.arange(padded_height * padded_width, device=device).view(1, -1, 1)
        order = from_windows(order, window, (padded_height, padded_width))  # each position's place in window order
        to_shifted = to_windows(order.roll((-shift, -shift), dims=(1, 2)), window).flatten()
        to_plain = to_windows(order.roll((shift, shift), dims=(1, 2)), window).flatten()
        region_rows = _regions(padded_height, window, shift, device)
        region_columns = _regions(padded_width, window, shift, device)
        regions = (region_rows[:, None] * 3 + region_columns[None, :]).view(1, padded_height, padded_width, 1)
        regions = to_windows(regions, window).view(-1, window * window)  # W, N
        differ = regions[:, None, :] != regions[:, :, None]  # W, N, N
        region_mask = torch.zeros(differ.shape, device=device, dtype=dtype).masked_fill(differ, OTHER_REGION_LOGIT)
        region_mask = region_mask[:, None]  # W, 1, N, N
    if (padded_height, padded_width) != (height, width):
        real = torch.ones(1, height, width, 1, device=device, dtype=dtype)
        is_real = to_windows(F.pad(real, (0, 0, 0, padded_width - width, 0, padded_height - height)), window)[0]
    return WindowLayout(
        grid_size, (padded_height, padded_width), window, relative_index, to_shifted, to_plain, region_mask, is_real
    )


def _regions(length: int, window: int, shift: int, device: torch.device) -> torch.Tensor:
    """Region 0, 1 or 2 of each position along one axis of the rolled grid."""
    positions = torch.arange(length, device=device)
    return (positions >= length - window).long() + (positions >= length - shift).long()


def to_windows(tokens: torch.Tensor, window: int) -> torch.Tensor:
    """(B, H, W, C) in reading order to (B, H * W, C) window by window."""
    batch_size, height, width, channels = tokens.shape
    tokens = tokens.view(batch_size, height // window, window, width // window, window, channels)
    return tokens.transpose(2, 3).reshape(batch_size, height * width, channels)


def from_windows(tokens: torch.Tensor, window: int, size: tuple[int, int]) -> torch.Tensor:
    """(B, H * W, C) window by window to (B, H, W, C) in reading order."""
    batch_size, _, channels = tokens.shape
    height, width = size
    tokens = tokens.view(batch_size, height // window, width // window, window, window, channels)
    return tokens.transpose(2, 3).reshape(batch_size, height, width, channels)


class Permute(torch.autograd.Function):
    """Reorder tokens; the gradient is a gather with the inverse order, where autograd would scatter."""

    @staticmethod
    def forward(tokens: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
        return tokens.index_select(1, order)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx, grad_output):
        (inverse,) = ctx.saved_tensors
        return grad_output.index_select(1, inverse), None, None


def needed_rows(needed: torch.Tensor, layout: WindowLayout, shift: bool) -> torch.Tensor:
    """Indices into B * L tokens in window order of those where a bool tensor (B, h, w) is True."""
    (height, width), (padded_height, padded_width) = layout.grid_size, layout.padded_size
    needed = F.pad(needed, (0, padded_width - width, 0, padded_height - height))
    needed = to_windows(needed[..., None], layout.window_size)[..., 0]  # B, L
    if shift:
        needed = needed[:, layout.to_shifted]
    return needed.flatten().nonzero()[:, 0]


def reorder(tokens: torch.Tensor, layout: WindowLayout, shift: bool) -> torch.Tensor:
    """Tokens (B, L, C) from the order of plain windows to that of shifted ones, or back."""
    orders = (layout.to_shifted, layout.to_plain) if shift else (layout.to_plain, layout.to_shifted)
    return Permute.apply(tokens, *orders)


class SharedWindows(NamedTuple):
    """Windows of which one stands for all that are masked as a whole: R tokens instead of B * L."""

    rows: torch.Tensor  # R: indices into B * h * w tokens in reading order, window by window; the shared window is last
    places: torch.Tensor  # B * L in the order of the next block: the row of each token
    first: torch.Tensor  # R: a place of each row
    shared: torch.Tensor  # places of all tokens of the shared window
    area: int  # tokens per window


def share_windows(is_masked: torch.Tensor, layout: WindowLayout, next_is_shifted: bool) -> SharedWindows | None:
    """Find the windows in which every token is the mask token: a block returns the same for all of them.

    Args:
        is_masked: Bool tensor of shape (B, h, w).
        layout: The windows.
        next_is_shifted: Whether the block after the one that shares has shifted windows.

    Returns:
        The tokens to compute, and where they belong; None if too few windows are equal.
    """
    area = layout.window_size**2
    windows = to_windows(is_masked[..., None], layout.window_size).view(-1, area)  # B * W, N
    is_equal = windows.all(dim=1)
    total, num_equal = len(windows), int(is_equal.sum())
    step = max(1, total // NUM_SHAPES)
    count = ((total - num_equal) // step + 1) * step
    if num_equal == 0 or count > (1 - MIN_SHARED) * total:
        return None
    order = is_equal.long().argsort(stable=True)[:count]  # the last one is equal to all that are left out
    index = to_windows(
        torch.arange(is_masked.numel(), device=is_masked.device).view(*is_masked.shape, 1), layout.window_size
    )
    rows = index.view(-1, area)[order].flatten()
    row_of_window = order.new_full((total,), count - 1)
    row_of_window[order] = torch.arange(count, device=order.device)
    places = row_of_window[:, None] * area + torch.arange(area, device=order.device)  # B * W, N
    places = places.view(len(is_masked), -1)
    places = (places[:, layout.to_shifted] if next_is_shifted else places).flatten()
    first = torch.empty_like(rows)
    first[places] = torch.arange(len(places), device=places.device)
    return SharedWindows(rows, places, first, (places >= (count - 1) * area).nonzero()[:, 0], area)


class TakeRows(torch.autograd.Function):
    """Rows of a matrix, each at most once; the gradient is a copy, where autograd would add."""

    @staticmethod
    def forward(matrix: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return matrix.index_select(0, rows)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])
        ctx.num_rows = len(inputs[0])

    @staticmethod
    def backward(ctx, grad_output):
        (rows,) = ctx.saved_tensors
        return grad_output.new_zeros(ctx.num_rows, grad_output.shape[1]).index_copy(0, rows, grad_output), None


class SpreadRows(torch.autograd.Function):
    """Rows of `SharedWindows` to all places.

    All tokens of the shared window are equal, and so is what each of them adds to the gradient of a weight. Which of
    them gets the gradient of a place makes no difference, so each gets the same part of the sum.
    """

    @staticmethod
    def forward(
        tokens: torch.Tensor, places: torch.Tensor, first: torch.Tensor, shared: torch.Tensor, area: int
    ) -> torch.Tensor:
        return tokens.index_select(0, places)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[2:4])
        ctx.area = inputs[4]

    @staticmethod
    def backward(ctx, grad_output):
        first, shared = ctx.saved_tensors
        gradient = grad_output.index_select(0, first)
        wide = torch.promote_types(grad_output.dtype, torch.float32)
        total = grad_output.index_select(0, shared).sum(dim=0, dtype=wide)
        gradient[-ctx.area :] = total / ctx.area
        return gradient, None, None, None, None


def take_rows(tokens: torch.Tensor, shared: SharedWindows) -> torch.Tensor:
    """The tokens (1, R, C) to compute, window by window, of tokens (B, h, w, C)."""
    return TakeRows.apply(tokens.flatten(0, 2), shared.rows)[None]


def spread_rows(rows: torch.Tensor, shared: SharedWindows, batch_size: int) -> torch.Tensor:
    """Computed tokens (1, R, C) to all tokens (B, L, C) in the order of the next block."""
    tokens = SpreadRows.apply(rows[0], shared.places, shared.first, shared.shared, shared.area)
    return tokens.view(batch_size, -1, rows.shape[2])
