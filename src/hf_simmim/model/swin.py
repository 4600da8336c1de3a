"""Swin Transformer for masked image modeling.

Computes the same as the official implementation, for any height and width, without state that a forward pass changes.
Tokens stay in window order throughout a stage: switching between plain and shifted windows is a single permutation.
Parameter names are those of transformers' Swin checkpoints, so weights need no conversion between the two.

Source: models/swin_transformer.py of microsoft/SimMIM.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import maybe_autocast

from .plain_layers import MULTIPLIES_BFLOAT16, project_jointly, project_patches
from .visible_windows import VisibleWindows, from_places, to_places
from .windows import (
    SharedWindows,
    WindowLayout,
    from_windows,
    needed_rows,
    reorder,
    share_windows,
    spread_rows,
    take_rows,
    to_windows,
    window_layout,
)

# Output of a layer, and with `output_attentions` the attention weights (B * W, heads, N, N).
MaybeWithWeights = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class SwinDropPath(nn.Module):
    """Stochastic depth: drop a residual branch for whole images, and scale up the rest.

    Args:
        drop_prob: Share of images whose branch is dropped in training.
    """

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return branch
        keep = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.drop_prob
        return branch * (keep.to(branch.dtype) / (1.0 - self.drop_prob))

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob}"


class WindowSelfAttention(nn.Module):
    """Attention inside each window; subclasses define its logits and the bias of relative positions.

    Args:
        config: Config of the encoder.
        dim: Channels of the stage.
        num_heads: Heads of the stage.
        window_size: Window of the stage, in tokens.
    """

    has_key_bias = True  # where queries and values have one

    def __init__(self, config: PreTrainedConfig, dim: int, num_heads: int, window_size: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"The stage of {dim} channels cannot be split over num_heads={num_heads}.")
        self.num_heads = num_heads
        self.dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(dim, dim, bias=config.qkv_bias)
        self.key = nn.Linear(dim, dim, bias=config.qkv_bias and self.has_key_bias)
        self.value = nn.Linear(dim, dim, bias=config.qkv_bias)

    def bias_table(self, layout: WindowLayout | VisibleWindows) -> torch.Tensor:
        """Bias of each head (columns) for each relative position (rows)."""
        raise NotImplementedError

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        """Projections (B, W, N, 3, heads, d) to query, key and value of `biased_attention`, and its scale."""
        raise NotImplementedError

    def attend(self, qkv: torch.Tensor, bias: torch.Tensor, dropout: float) -> torch.Tensor:
        """Attend with projections (B, W, N, 3, heads, d) and the bias of `biased_attention`, to (B, W, heads, N, d)."""
        query, key, value, scale = self.split(qkv)
        return biased_attention(query, key, value, bias, dropout, scale)

    # How many tokens a window holds is data: compiled code leaves here.
    @torch.compiler.disable
    def attend_visible(self, tokens: torch.Tensor, windows: VisibleWindows) -> torch.Tensor:
        """Attend in windows of which only the tokens (B, V, C) are there."""
        dim = tokens.shape[2]
        # The row that stands for filling and padding is zero, as padding is in whole windows.
        rows = F.pad(tokens.flatten(0, 1), (0, 0, 0, 1))
        qkv = to_places(project_jointly(rows, (self.query, self.key, self.value)), windows)  # S, 3 C
        table = self.bias_table(windows)
        sizes = [group.num_windows * group.length for group in windows.groups]
        contexts = []
        for group, part in zip(windows.groups, qkv.split(sizes), strict=True):
            bias = F.embedding(group.relative_index, table).permute(0, 3, 1, 2).contiguous()  # G, heads, n, n
            if group.is_filling is not None:
                bias = bias.masked_fill(group.is_filling, -torch.inf)
            part = part.view(1, group.num_windows, group.length, 3, self.num_heads, dim // self.num_heads)
            context = self.attend(part, bias, self.dropout if self.training else 0.0)
            contexts.append(context.transpose(2, 3).reshape(-1, dim))
        return from_places(torch.cat(contexts), windows).view(tokens.shape)

    def forward(
        self,
        tokens: torch.Tensor,
        layout: WindowLayout | VisibleWindows,
        region_mask: torch.Tensor | None,
        output_attentions: bool = False,
    ) -> MaybeWithWeights:
        if isinstance(layout, VisibleWindows):
            return self.attend_visible(tokens, layout)
        batch_size, length, dim = tokens.shape
        window_area = layout.window_size**2
        qkv = project_jointly(tokens, (self.query, self.key, self.value))
        qkv = qkv.view(batch_size, length // window_area, window_area, 3, self.num_heads, dim // self.num_heads)
        # Fused kernels reject a bias that is not contiguous in its last dimension.
        bias = F.embedding(layout.relative_index, self.bias_table(layout)).permute(2, 0, 1).contiguous()
        if region_mask is not None:
            bias = bias + region_mask  # heads, N, N -> W, heads, N, N
        dropout = self.dropout if self.training else 0.0
        if not output_attentions:
            return self.attend(qkv, bias, dropout).transpose(2, 3).reshape(batch_size, length, dim)
        query, key, value, scale = self.split(qkv)
        context, weights = plain_attention(query, key, value, bias, dropout, scale)
        return context.transpose(2, 3).reshape(batch_size, length, dim), weights


class SwinSelfAttention(WindowSelfAttention):
    """Attention inside each window, with a learned bias for each relative position."""

    def __init__(self, config: PreTrainedConfig, dim: int, num_heads: int, window_size: int):
        super().__init__(config, dim, num_heads, window_size)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))

    def bias_table(self, layout: WindowLayout | VisibleWindows) -> torch.Tensor:
        return self.relative_position_bias_table

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        query, key, value = (part.transpose(2, 3) for part in qkv.unbind(3))  # B, W, heads, N, d
        return query, key, value, query.shape[-1] ** -0.5


def biased_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, dropout: float, scale: float
) -> torch.Tensor:
    """Attention inside windows, with a bias that all images share and that is never copied for each of them.

    Args:
        query: Tensor of shape (B, W, heads, N, d), of the type of `value` or a wider one.
        key: Tensor of the same shape and type.
        value: Tensor of the same shape.
        bias: Added to the logits, of shape (heads, N, N) if all windows share it, else (W, heads, N, N).
        dropout: Share of the attention weights that are dropped.
        scale: Factor of the products of queries and keys.

    Returns:
        Tensor of the shape of `query`.
    """
    if bias.requires_grad and bias.device.type == "cpu":
        # The fused function has no CPU kernel with a gradient for the bias. Its fallback is slower than this, also in
        # the dtype of the parameters.
        return plain_attention(query, key, value, bias, dropout, scale)[0]
    shape = query.shape
    # Windows are merged with images if they share the bias, else with heads: one bias then serves the whole batch.
    first = 0 if bias.dim() == 3 else 1
    query, key, value = (part.to(value.dtype).flatten(first, first + 1) for part in (query, key, value))
    bias = (bias if first == 0 else bias.flatten(0, 1))[None].to(value.dtype)
    context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, scale=scale)
    return context.view(shape)


def plain_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor, dropout: float, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `biased_attention`, step by step; returns also the weights (B * W, heads, N, N), after dropout.

    Products are computed in the type of the parameters, and in bfloat16 where autocast and the processor do.
    """
    # Logits that come in float32, such as those of SwinV2, are too large for bfloat16.
    narrow = query.dtype == torch.bfloat16 and query.device.type == "cpu" and MULTIPLIES_BFLOAT16
    with maybe_autocast(bias.device.type, enabled=False):
        if not narrow:
            query, key, value = (part.to(bias.dtype) for part in (query, key, value))
        logits = torch.add(bias, (query @ key.transpose(3, 4)).to(bias.dtype), alpha=scale)
        # The tensor that is returned is also the one that is used, so that its gradient can be requested.
        normalized = FlushedSoftmax.apply(logits) if logits.device.type == "cpu" else logits.softmax(dim=-1)
        weights = F.dropout(normalized, dropout).flatten(0, 1)
        return weights.view(logits.shape).to(value.dtype) @ value, weights


class FlushedSoftmax(torch.autograd.Function):
    """Softmax over the last dimension that returns zero where it would return a denormal number.

    The weights between regions of a shifted window are about exp(-100), which is denormal in float32. Processors of
    Intel multiply such numbers many times more slowly, which took a tenth of a training step of Swin-T
    (`benchmarks/step.py`). Zero differs from them by less than 1.2e-38.
    """

    @staticmethod
    def forward(logits: torch.Tensor) -> torch.Tensor:
        return torch.threshold_(logits.softmax(dim=-1), torch.finfo(logits.dtype).tiny, 0.0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad_output):
        (weights,) = ctx.saved_tensors
        return torch._softmax_backward_data(grad_output, weights, -1, weights.dtype)


class SwinDense(nn.Module):
    """A linear layer and dropout, under its name in checkpoints."""

    def __init__(self, dim_in: int, dim_out: int, dropout: float = 0.0):
        super().__init__()
        self.dense = nn.Linear(dim_in, dim_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.dense(tokens))


class SwinAttention(nn.Module):
    """Windowed attention and its output projection."""

    def __init__(self, config: PreTrainedConfig, dim: int, self_attention: WindowSelfAttention):
        super().__init__()
        self.self = self_attention
        self.output = SwinDense(dim, dim, config.hidden_dropout_prob)

    def forward(
        self,
        tokens: torch.Tensor,
        layout: WindowLayout | VisibleWindows,
        region_mask: torch.Tensor | None,
        output_attentions: bool = False,
    ) -> MaybeWithWeights:
        if not output_attentions:
            return self.output(self.self(tokens, layout, region_mask))
        context, weights = self.self(tokens, layout, region_mask, True)
        return self.output(context), weights


class SwinBlock(GradientCheckpointingLayer):
    """Attention and MLP, each normalized before and with stochastic depth on its residual branch."""

    attention_class: type[WindowSelfAttention] = SwinSelfAttention
    norm_class: type[nn.LayerNorm] = nn.LayerNorm

    def __init__(self, config: PreTrainedConfig, dim: int, num_heads: int, window_size: int, drop_path: float):
        super().__init__()
        hidden_dim = int(config.mlp_ratio * dim)
        self.layernorm_before = self.norm_class(dim, eps=config.layer_norm_eps)
        self.attention = SwinAttention(config, dim, self.attention_class(config, dim, num_heads, window_size))
        self.drop_path = SwinDropPath(drop_path)
        self.layernorm_after = self.norm_class(dim, eps=config.layer_norm_eps)
        self.intermediate = SwinDense(dim, hidden_dim)
        self.activation = ACT2FN[config.hidden_act]
        self.output = SwinDense(hidden_dim, dim, config.hidden_dropout_prob)

    def attend(
        self,
        tokens: torch.Tensor,
        layout: WindowLayout | VisibleWindows,
        region_mask: torch.Tensor | None,
        output_attentions: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Output of the attention for tokens (B, L, C), and its weights if requested."""
        if output_attentions:
            return self.attention(tokens, layout, region_mask, True)
        return self.attention(tokens, layout, region_mask), None

    def mlp(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (..., C) through the two dense layers, with the norm of this residual branch."""
        return self.dense(self.layernorm_after(tokens))

    def dense(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (..., C) through the two dense layers."""
        return self.output(self.activation(self.intermediate(tokens)))

    def add_mlp(self, tokens: torch.Tensor, needed: torch.Tensor | None) -> torch.Tensor:
        """Add the MLP to tokens (B, L, C): to all, or to those whose indices into B * L are needed."""
        if needed is None:
            return tokens + self.drop_path(self.mlp(tokens))
        rows = tokens.flatten(0, 1)
        branch = self.mlp(rows[needed])
        branch = branch.new_zeros(rows.shape).index_copy(0, needed, branch)
        return tokens + self.drop_path(branch.view(tokens.shape))

    def forward(
        self,
        tokens: torch.Tensor,
        layout: WindowLayout | VisibleWindows,
        region_mask: torch.Tensor | None,
        is_real: torch.Tensor | None,
        output_attentions: bool = False,
        needed: torch.Tensor | None = None,
    ) -> MaybeWithWeights:
        normalized = self.layernorm_before(tokens)
        if is_real is not None:
            normalized = normalized * is_real
        attended, weights = self.attend(normalized, layout, region_mask, output_attentions)
        tokens = self.add_mlp(tokens + self.drop_path(attended), needed)
        return (tokens, weights) if weights is not None else tokens


class SwinPatchMerging(nn.Module):
    """Halve the grid: the joined channels of the four tokens of each 2x2 square become twice those of one token."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, squares: torch.Tensor) -> torch.Tensor:
        return self.reduction(self.norm(squares))


def join_squares(tokens: torch.Tensor) -> torch.Tensor:
    """(B, h, w, C) to (B, ceil(h / 2), ceil(w / 2), 4 C): concatenate the channels of each 2x2 square."""
    batch_size, height, width, dim = tokens.shape
    if height % 2 or width % 2:
        tokens = F.pad(tokens, (0, 0, 0, width % 2, 0, height % 2))
        height, width = height + height % 2, width + width % 2
    squares = tokens.view(batch_size, height // 2, 2, width // 2, 2, dim)
    # Order of the four in the official implementation: down a column, then the next column.
    return squares.permute(0, 1, 3, 4, 2, 5).reshape(batch_size, height // 2, width // 2, 4 * dim)


class SwinStage(nn.Module):
    """Blocks at one resolution, then downsampling to the next.

    Args:
        config: Config of the encoder.
        stage: Index of the stage, from 0.
        window_size: Window of the stage, in tokens.
        drop_paths: Rate of stochastic depth of each block.
    """

    block_class: type[SwinBlock] = SwinBlock
    merging_class: type[nn.Module] = SwinPatchMerging

    def __init__(self, config: PreTrainedConfig, stage: int, window_size: int, drop_paths: list[float]):
        super().__init__()
        dim = config.embed_dim * 2**stage
        num_heads = config.num_heads[stage]
        self.window_size = window_size
        self.blocks = nn.ModuleList(self.block_class(config, dim, num_heads, window_size, rate) for rate in drop_paths)
        self.downsample = self.merging_class(dim) if stage < len(config.depths) - 1 else None

    def layout(self, grid_size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> WindowLayout:
        """The windows of this stage on a grid of (h, w) tokens."""
        return window_layout(grid_size, self.window_size, device, dtype)

    def shared_windows(self, is_masked: torch.Tensor, layout: WindowLayout) -> SharedWindows | None:
        """Windows that the first block has to compute if all masked tokens (B, h, w) are equal; None if it is all.

        Padding and dropout make tokens differ, and compiled code is made for one number of windows.
        """
        block: Any = self.blocks[0]
        dropout = block.attention.self.dropout, *(m.p for m in block.modules() if isinstance(m, nn.Dropout))
        is_random = self.training and (any(dropout) or block.drop_path.drop_prob > 0)
        if is_random or len(self.blocks) == 1 or layout.is_real is not None or block._compiled_call_impl is not None:
            return None
        return share_windows(is_masked, layout, layout.to_shifted is not None)

    def forward(
        self,
        tokens: torch.Tensor,
        output_attentions: bool = False,
        needed: torch.Tensor | None = None,
        is_masked: torch.Tensor | None = None,
    ) -> MaybeWithWeights:
        """Run the blocks.

        Args:
            tokens: Tensor of shape (B, h, w, C).
            output_attentions: Whether to return attention weights.
            needed: Bool tensor of shape (B, h, w); the last block completes only tokens where it is True.
            is_masked: Bool tensor of shape (B, h, w): where tokens are equal. The first block computes windows of such
                tokens once.

        Returns:
            The output of the same shape, before `downsample`, and the weights of the last block if requested.
        """
        weights: Any = None
        height, width = tokens.shape[1:3]
        layout = self.layout((height, width), tokens.device, tokens.dtype)
        padded_height, padded_width = layout.padded_size
        if layout.is_real is not None:
            tokens = F.pad(tokens, (0, 0, 0, padded_width - width, 0, padded_height - height))
        blocks, is_shifted = list(enumerate(self.blocks)), False
        shared = None if is_masked is None else self.shared_windows(is_masked, layout)
        if shared is None:
            tokens = to_windows(tokens, layout.window_size)  # B, L, C
        else:
            rows = self.blocks[0](take_rows(tokens, shared), layout, None, None)
            tokens, is_shifted = spread_rows(rows, shared, len(tokens)), layout.to_shifted is not None
            blocks = blocks[1:]
        for index, block in blocks:
            shift = index % 2 == 1 and layout.to_shifted is not None
            if shift != is_shifted:
                tokens = reorder(tokens, layout, shift)
                is_shifted = shift
            is_real = layout.is_real
            if is_real is not None and shift:
                is_real = is_real[layout.to_shifted]
            region_mask = layout.region_mask if shift else None
            if output_attentions and index == len(self.blocks) - 1:
                tokens, weights = block(tokens, layout, region_mask, is_real, True)
            elif needed is not None and index == len(self.blocks) - 1:
                rows = needed_rows(needed, layout, shift)
                tokens = block(tokens, layout, region_mask, is_real, False, rows)
            else:
                tokens = block(tokens, layout, region_mask, is_real)
        if is_shifted:
            tokens = reorder(tokens, layout, False)
        tokens = from_windows(tokens, layout.window_size, layout.padded_size)[:, :height, :width]
        return (tokens, weights) if output_attentions else tokens


class SwinPatchEmbeddings(nn.Module):
    """Non-overlapping patches to tokens, by a linear map."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        patch_size = config.patch_size
        self.patch_size = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
        self.projection = nn.Conv2d(
            config.num_channels, config.embed_dim, kernel_size=self.patch_size, stride=self.patch_size
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        height, width = pixel_values.shape[2:]
        pad_height, pad_width = -height % self.patch_size[0], -width % self.patch_size[1]
        if pad_height or pad_width:
            pixel_values = F.pad(pixel_values, (0, pad_width, 0, pad_height))
        return project_patches(pixel_values, self.projection)


class SwinEmbeddings(nn.Module):
    """Patch embedding, then the mask token at masked patches, then absolute positions if there are any."""

    def __init__(self, config: PreTrainedConfig, grid_size: tuple[int, int], use_mask_token: bool):
        super().__init__()
        self.grid_size = grid_size
        self.patch_embeddings = SwinPatchEmbeddings(config)
        self.norm = nn.LayerNorm(config.embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim)) if use_mask_token else None
        self.position_embeddings = None
        if config.use_absolute_embeddings:
            self.position_embeddings = nn.Parameter(torch.zeros(1, grid_size[0] * grid_size[1], config.embed_dim))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None, kept: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Embed images (B, C, H, W) to (B, h, w, D), or to (B, V, D) at the indices (B, V) of patches that are kept."""
        tokens = self.patch_embeddings(pixel_values)  # B, h, w, D
        positions = None if self.position_embeddings is None else self._positions(tokens.shape[1:3])
        if kept is not None:
            tokens = tokens.flatten(1, 2).gather(1, kept[..., None].expand(-1, -1, tokens.shape[3]))
            positions = None if positions is None else positions.flatten(0, 2)[kept]
        tokens = self.norm(tokens)
        if bool_masked_pos is not None:
            if self.mask_token is None:
                raise ValueError("This model was built without a mask token. Use SimMIMForMaskedImageModeling.")
            tokens = torch.where(bool_masked_pos[..., None], self.mask_token[:, :, None].to(tokens.dtype), tokens)
        return self.dropout(tokens if positions is None else tokens + positions)

    def _positions(self, grid_size: tuple[int, int]) -> torch.Tensor:
        positions = self.position_embeddings.view(1, *self.grid_size, -1)
        if tuple(grid_size) == self.grid_size:
            return positions
        positions = positions.permute(0, 3, 1, 2)
        positions = F.interpolate(positions, size=tuple(grid_size), mode="bicubic", align_corners=False)
        return positions.permute(0, 2, 3, 1)


def stage_grids(config: Any) -> list[tuple[int, int]]:
    """(h, w) of each stage in tokens, for images of a config's size, padded to whole strides of the last stage."""
    image_size = (config.image_size,) * 2 if isinstance(config.image_size, int) else tuple(config.image_size)
    patch_size = (config.patch_size,) * 2 if isinstance(config.patch_size, int) else tuple(config.patch_size)
    num_stages = len(config.depths)
    rows, columns = (math.ceil(image_size[i] / (patch_size[i] * 2 ** (num_stages - 1))) for i in range(2))
    return [(rows * 2**steps, columns * 2**steps) for steps in reversed(range(num_stages))]


def stage_windows(config: Any) -> list[int]:
    """Window size of each stage in tokens: that of the config, shrunk to smaller grids."""
    return [min(config.window_size, *grid) for grid in stage_grids(config)]


class SwinStages(nn.Module):
    """The stages, under their name in checkpoints."""

    def __init__(self, config: PreTrainedConfig, stage_class: type[SwinStage]):
        super().__init__()
        depth = sum(config.depths)
        rates = [config.drop_path_rate * index / max(depth - 1, 1) for index in range(depth)]
        self.layers = nn.ModuleList()
        for stage, (stage_depth, window_size) in enumerate(zip(config.depths, stage_windows(config), strict=True)):
            first = sum(config.depths[:stage])
            self.layers.append(stage_class(config, stage, window_size, rates[first : first + stage_depth]))

    def forward(
        self,
        tokens: torch.Tensor,
        before_merging: bool = False,
        output_attentions: bool = False,
        needed: torch.Tensor | None = None,
        is_masked: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """Run the stages.

        Args:
            tokens: Patch embedding of shape (B, h, w, C).
            before_merging: Whether the hidden states are the outputs of stages before their patch merging.
            output_attentions: Whether to return attention weights.
            needed: Bool tensor (B, h', w') of the last stage's tokens that have to be complete; all if None.
            is_masked: Bool tensor (B, h, w) of the tokens that are equal, to compute them once; all differ if None.

        Returns:
            The last stage's output, hidden states (B, N, C): the embedding and the output of each stage, and the
            attention weights (B * W, heads, N, N) of the last block of each stage if requested.
        """
        hidden_states: list[torch.Tensor] = []
        attentions: list[torch.Tensor] = []

        def keep(tokens: torch.Tensor) -> torch.Tensor:
            # The next stage uses the tensor that is returned, so that its gradient can be requested.
            hidden_states.append(tokens.flatten(1, 2))
            return hidden_states[-1].view(tokens.shape)

        tokens = keep(tokens)
        for stage in self.layers:
            if output_attentions:
                tokens, weights = stage(tokens, True)
                attentions.append(weights)
            elif needed is not None and stage.downsample is None:
                tokens = stage(tokens, False, needed)
            elif is_masked is not None and stage is self.layers[0]:
                tokens = stage(tokens, is_masked=is_masked)
            else:
                tokens = stage(tokens)
            if stage.downsample is None:
                tokens = keep(tokens)
            elif before_merging:
                tokens = stage.downsample(join_squares(keep(tokens)))  # type: ignore[operator]
            else:
                tokens = keep(stage.downsample(join_squares(tokens)))  # type: ignore[operator]
        return tokens, tuple(hidden_states), tuple(attentions)


class Swin(nn.Module):
    """Swin encoder.

    Args:
        config: A `SwinConfig`. Windows larger than a stage's grid are clamped to it here, once.
        use_mask_token: Whether to hold a mask token. A model that never masks must not have one: DDP rejects parameters
            that a forward pass does not use.
    """

    stage_class: type[SwinStage] = SwinStage
    # Set by a backbone: hidden states are the outputs of stages before patch merging.
    before_merging = False

    def __init__(self, config: PreTrainedConfig, use_mask_token: bool = False):
        super().__init__()
        self.config = config
        self.embeddings = SwinEmbeddings(config, stage_grids(config)[0], use_mask_token)
        self.encoder = SwinStages(config, self.stage_class)
        self.layernorm = nn.LayerNorm(config.embed_dim * 2 ** (len(config.depths) - 1), eps=config.layer_norm_eps)

    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        output_attentions: bool = False,
        needed: torch.Tensor | None = None,
    ) -> tuple[Any, ...]:
        """Encode images; the mask token replaces masked patches.

        Args:
            pixel_values: Images of shape (B, C, H, W).
            bool_masked_pos: Bool mask of shape (B, h, w) on the patch grid, True = masked.
            output_attentions: Whether to return attention weights, for which the last block of each stage runs without
                a fused kernel.
            needed: Bool tensor of shape (B, h', w'): the feature map is complete only where it is True, which leaves
                out part of the last block, and windows of masked tokens are computed once. All of it if None.

        Returns:
            The normalized feature map of shape (B, D, h', w'), and the hidden states of shape (B, N, C) each: the patch
            embedding, then the output of each stage, after its patch merging unless `before_merging` is set. If
            requested, the attention weights of the last block of each stage follow, (B * W, heads, N, N) for W windows
            of N tokens, as in transformers.
        """
        embedding = self.embeddings(pixel_values, bool_masked_pos)
        # Without positions all masked tokens are equal.
        is_masked = None if needed is None or self.embeddings.position_embeddings is not None else bool_masked_pos
        tokens, hidden_states, attentions = self.encoder(
            embedding, self.before_merging, output_attentions, needed, is_masked
        )
        feature_map = self.layernorm(tokens).permute(0, 3, 1, 2)
        return (feature_map, hidden_states, attentions) if output_attentions else (feature_map, hidden_states)


def init_swin_weights(module: nn.Module, std: float) -> None:
    """Initialize one module of Swin as the official implementation does.

    Linear layers, relative position tables, absolute positions and the mask token are truncated normal, biases zero;
    the patch embedding keeps the default of a convolution.

    Args:
        module: The module whose own parameters to set.
        std: Standard deviation of the truncated normal.

    Source: `SwinTransformer._init_weights` and `SwinTransformerForSimMIM` of microsoft/SimMIM.
    """
    if isinstance(module, nn.Linear):
        init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        init_convolution(module)
    elif isinstance(module, SwinSelfAttention):
        init.trunc_normal_(module.relative_position_bias_table, std=std)
    elif isinstance(module, SwinEmbeddings):
        for parameter in (module.mask_token, module.position_embeddings):
            if parameter is not None:
                init.trunc_normal_(parameter, std=std)


def init_convolution(module: nn.Conv2d) -> None:
    """The default initialization of a convolution in torch, which the official implementation keeps."""
    init.kaiming_uniform_(module.weight, a=math.sqrt(5))
    if module.bias is not None:
        bound = 1 / math.sqrt(module.weight[0].numel())
        init.uniform_(module.bias, -bound, bound)
