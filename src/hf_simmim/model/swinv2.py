"""Swin Transformer V2 for masked image modeling: Swin with cosine attention and post-norm, built from its parts.

Like our Swin it takes any height and width, keeps no state, and has the parameter names of transformers' checkpoints.
The bias of relative positions is computed from their distances, so weights fit every window size;
`pretrained_window_sizes` of the config holds the window sizes of training, which scale these distances.

Source: models/swin_transformer_v2.py of microsoft/Swin-Transformer.
"""

import math

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.utils.generic import maybe_autocast

from .swin import (
    MaybeWithWeights,
    Swin,
    SwinBlock,
    SwinStage,
    WindowSelfAttention,
    init_swin_weights,
)
from .visible_windows import VisibleWindows
from .windows import WindowLayout

MAX_LOGIT_SCALE = 100.0
MAX_POSITION_BIAS = 16.0
POSITION_MLP_DIM = 512


def log_spaced_coordinates(window_size: int, learned_window: int, device: torch.device) -> torch.Tensor:
    """Distances between tokens of a window, on a logarithmic scale.

    Args:
        window_size: Side of the window in tokens.
        learned_window: Window size of training, whose largest distance is scaled to log2(9) / 3, in tokens. Weights
            need it at every other window size.
        device: Device of the tensor.

    Returns:
        float32 tensor of shape ((2 * window_size - 1) ** 2, 2), row and column distance of each relative position.

    Source: section 3.3 of the SwinV2 paper (arXiv 2111.09883).
    """
    distances = torch.arange(1 - window_size, window_size, device=device, dtype=torch.float32)
    # In a window of one token all distances are zero.
    distances = distances * (8 / max(learned_window - 1, 1))
    distances = distances.sign() * distances.abs().add(1).log2() / math.log2(8)
    return torch.stack(torch.meshgrid(distances, distances, indexing="ij"), dim=-1).flatten(0, 1)


class Swinv2SelfAttention(WindowSelfAttention):
    """Cosine attention inside each window, with a bias that an MLP computes from the distance of two tokens."""

    has_key_bias = False

    def __init__(self, config: PreTrainedConfig, dim: int, num_heads: int, window_size: int):
        super().__init__(config, dim, num_heads, window_size)
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10)))
        self.continuous_position_bias_mlp = nn.Sequential(
            nn.Linear(2, POSITION_MLP_DIM), nn.ReLU(), nn.Linear(POSITION_MLP_DIM, num_heads, bias=False)
        )

    def bias_table(self, layout: WindowLayout | VisibleWindows) -> torch.Tensor:
        # The MLP is too small to be faster in lower precision.
        with maybe_autocast(layout.coordinates.device.type, enabled=False):
            bias = self.continuous_position_bias_mlp(layout.coordinates.to(self.logit_scale.dtype))
            return MAX_POSITION_BIAS * bias.sigmoid()

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        query_key, value = qkv.split((2, 1), dim=3)
        # One factor brings both to unit length, in float32 at least, and multiplies queries by the scale of their head.
        wide = torch.promote_types(query_key.dtype, torch.float32)
        norm = torch.linalg.vector_norm(query_key, dim=-1, keepdim=True, dtype=wide)
        # Keys of padding are zero. Dividing them by a tiny number instead would let their gradient explode.
        norm = norm.masked_fill(norm == 0, 1.0)  # B, W, N, 2, heads, 1
        logit_scale = self.logit_scale.to(wide).clamp(max=math.log(MAX_LOGIT_SCALE)).exp()[:, 0]  # heads, 1
        query_key = query_key * (torch.stack((logit_scale, torch.ones_like(logit_scale))) / norm)
        query, key = (part.transpose(2, 3) for part in query_key.unbind(3))  # B, W, heads, N, d
        return query, key, value.squeeze(3).transpose(2, 3), 1.0


class Swinv2PostNorm(nn.LayerNorm):
    """Norm at the end of a residual branch, initialized to zero, so that each block starts as the identity."""


class Swinv2Block(SwinBlock):
    """Attention and MLP, each normalized after and with stochastic depth on its residual branch."""

    attention_class = Swinv2SelfAttention
    norm_class = Swinv2PostNorm

    def mlp(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.layernorm_after(self.dense(tokens))

    def forward(
        self,
        tokens: torch.Tensor,
        layout: WindowLayout | VisibleWindows,
        region_mask: torch.Tensor | None,
        is_real: torch.Tensor | None,
        output_attentions: bool = False,
        needed: torch.Tensor | None = None,
    ) -> MaybeWithWeights:
        real_tokens = tokens if is_real is None else tokens * is_real
        attended, weights = self.attend(real_tokens, layout, region_mask, output_attentions)
        tokens = self.add_mlp(tokens + self.drop_path(self.layernorm_before(attended)), needed)
        return (tokens, weights) if weights is not None else tokens


class Swinv2PatchMerging(nn.Module):
    """Halve the grid: the joined channels of four tokens become twice those of one, normalized last."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, squares: torch.Tensor) -> torch.Tensor:
        return self.norm(self.reduction(squares))


class Swinv2Stage(SwinStage):
    """Blocks at one resolution, then downsampling to the next.

    Args:
        config: Config of the encoder.
        stage: Index of the stage, from 0.
        window_size: Window of the stage, in tokens.
        drop_paths: Rate of stochastic depth of each block.

    Raises:
        ValueError: If `pretrained_window_sizes` has no entry for the stage.
    """

    block_class = Swinv2Block
    merging_class = Swinv2PatchMerging

    def __init__(self, config: PreTrainedConfig, stage: int, window_size: int, drop_paths: list[float]):
        super().__init__(config, stage, window_size, drop_paths)
        learned_windows = config.pretrained_window_sizes or [0] * len(config.depths)
        if len(learned_windows) < len(config.depths):
            raise ValueError(
                f"pretrained_window_sizes={list(learned_windows)} has {len(learned_windows)} entries for"
                f" {len(config.depths)} stages. Give one for each stage, 0 where the window size is that of training."
            )
        self.learned_window = learned_windows[stage] or window_size

    def layout(self, grid_size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> WindowLayout:
        layout = super().layout(grid_size, device, dtype)
        return layout._replace(coordinates=log_spaced_coordinates(self.window_size, self.learned_window, device))


class Swinv2(Swin):
    """SwinV2 encoder: arguments and forward are those of `Swin`.

    Args:
        config: A `Swinv2Config`. Windows larger than a stage's grid are clamped to it here, once.
        use_mask_token: Whether to hold a mask token.
    """

    stage_class = Swinv2Stage


def init_swinv2_weights(module: nn.Module, std: float) -> None:
    """Initialize one module of Swin or SwinV2 as the official implementation does.

    As in `init_swin_weights`; in SwinV2 the norms of residual branches are zero, and the scale of the logits is 10.

    Args:
        module: The module whose own parameters to set.
        std: Standard deviation of the truncated normal.

    Source: `SwinTransformerV2.__init__` and `BasicLayer._init_respostnorm` of microsoft/Swin-Transformer.
    """
    if isinstance(module, Swinv2PostNorm):
        init.zeros_(module.weight)
        init.zeros_(module.bias)
    elif isinstance(module, Swinv2SelfAttention):
        init.constant_(module.logit_scale, math.log(10))
    else:
        init_swin_weights(module, std)
