"""Division of a grid of tokens into windows, plain and shifted, and the orders of tokens that make it cheap.

Source: models/swin_transformer.py of microsoft/SimMIM.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

# The official implementation masks tokens of other regions by adding this to the attention logits, not -infinity.
OTHER_REGION_LOGIT = -100.0


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
