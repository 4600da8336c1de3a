"""Prediction heads, from a feature map (B, D, h, w) to a prediction (B, K, H / stride, W / stride)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import SwinConfig

from .encoder_stages import HiddenState, as_map, hidden_states
from .options import COUNT, Option, each, is_count, optional
from .plain_layers import project_patches
from .swin import SwinStage

# Widths and depths of the Swins that the paper inverts, from fine to coarse.
SWIN_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}
HEAD_WINDOW = 7
# Swin's patch size; the last layer makes finer grids.
FINEST_STRIDE = 4


class LinearHead(nn.Module):
    """One linear layer, which predicts all pixels of each position of the feature map.

    Use it by default: in the paper heavier heads cost more and do not transfer better.

    Args:
        hidden_size: Channels D of the feature map.
        num_outputs: Channels K of the prediction.
        encoder_stride: Stride of the feature map in pixels.
        prediction_stride: Stride of the prediction in pixels.

    Source: section 3.3 of the paper, "prediction head"; `SimMIM.decoder` in models/simmim.py of microsoft/SimMIM.

    Examples:
        >>> SimMIMConfig(head="linear")
    """

    def __init__(self, hidden_size: int, num_outputs: int, encoder_stride: int, prediction_stride: int = 1):
        super().__init__()
        scale = upscaling(encoder_stride, prediction_stride)
        self.projection = nn.Conv2d(hidden_size, scale**2 * num_outputs, kernel_size=1)
        self.pixel_shuffle = nn.PixelShuffle(scale)

    def fits(self, weights: dict[str, torch.Tensor]) -> bool:
        """Whether the weights of a linear layer have the shapes of this head."""
        return {name: tensor.shape for name, tensor in weights.items()} == {
            name: tensor.shape for name, tensor in self.projection.state_dict().items()
        }

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        prediction = project_patches(feature_map, self.projection).permute(0, 3, 1, 2)
        return self.pixel_shuffle(prediction)  # B, K, h * scale, w * scale


class MLPHead(nn.Module):
    """Two linear layers with GELU between them, applied to each position of the feature map.

    Use it if the linear head is too weak for the target, such as one of many classes.

    Args:
        feature_size: Channels D of the feature map.
        num_outputs: Channels K of the prediction.
        encoder_stride: Stride of the feature map in pixels.
        prediction_stride: Stride of the prediction in pixels.
        hidden_size: Channels between the layers; D if None.

    Source: table 2 of the paper, "2-layer MLP".

    Examples:
        >>> SimMIMConfig(head="mlp", head_options={"hidden_size": 256})
    """

    def __init__(
        self,
        feature_size: int,
        num_outputs: int,
        encoder_stride: int,
        prediction_stride: int = 1,
        hidden_size: int | None = None,
    ):
        super().__init__()
        hidden_size = hidden_size or feature_size
        scale = upscaling(encoder_stride, prediction_stride)
        self.hidden = nn.Conv2d(feature_size, hidden_size, kernel_size=1)
        self.activation = nn.GELU()
        self.projection = nn.Conv2d(hidden_size, scale**2 * num_outputs, kernel_size=1)
        self.pixel_shuffle = nn.PixelShuffle(scale)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        hidden = self.activation(project_patches(feature_map, self.hidden)).permute(0, 3, 1, 2)
        return self.pixel_shuffle(project_patches(hidden, self.projection).permute(0, 3, 1, 2))


class InverseSwinHead(nn.Module):
    """An inverse Swin: its stages run from the last one on, and the grid is doubled between them.

    Use it to reproduce the paper's comparison of heads, or if the prediction needs context; it is the slowest head.

    The grid is doubled until no stage is left, or until its stride is 4 px or that of the prediction; a linear layer
    then makes the prediction. An encoder of stride 32 gets four stages at 32, 16, 8 and 4 px, one of stride 16 the last
    three stages of Swin, and a prediction at the encoder's own stride only the last one.

    Args:
        hidden_size: Channels D of the feature map.
        num_outputs: Channels K of the prediction.
        encoder_stride: Stride of the feature map in pixels.
        prediction_stride: Stride of the prediction in pixels.
        size: `"tiny"` or `"base"`: the Swin that sets the defaults of the next three options.
        embed_dim: Channels of the finest stage; those of the size if None.
        depths: Blocks of each stage, from fine to coarse as in Swin; those of the size if None.
        num_heads: Attention heads of each stage, likewise.
        window_size: Side of a window in tokens; 7 if None. On a smaller grid the window is the grid's shorter side.

    Raises:
        ValueError: If depths and num_heads do not fit each other or the channels.

    Source: section 3.3 and table 2 of the paper, "inverse Swin-T" and "inverse Swin-B".

    Examples:
        >>> SimMIMConfig(head="inverse_swin", head_options={"size": "base"})
    """

    def __init__(
        self,
        hidden_size: int,
        num_outputs: int,
        encoder_stride: int,
        prediction_stride: int = 1,
        size: str = "tiny",
        embed_dim: int | None = None,
        depths: Sequence[int] | None = None,
        num_heads: Sequence[int] | None = None,
        window_size: int | None = None,
    ):
        super().__init__()
        embed_dim = embed_dim or SWIN_SIZES[size]["embed_dim"]
        depths = depths or SWIN_SIZES[size]["depths"]
        num_heads = num_heads or SWIN_SIZES[size]["num_heads"]
        window_size = window_size or HEAD_WINDOW
        if len(depths) != len(num_heads):
            raise ValueError(
                f"The head's depths={list(depths)} and num_heads={list(num_heads)} are of different lengths. Give one"
                " of each for every stage, from fine to coarse, in head_options."
            )
        upscaling(encoder_stride, prediction_stride)
        doublings, stride = _doublings(encoder_stride, prediction_stride, len(depths) - 1)
        first = len(depths) - 1
        dims = [embed_dim * 2**stage for stage in range(first, first - doublings - 1, -1)]
        self.embedding = nn.Linear(hidden_size, dims[0])
        self.stages = nn.ModuleList()
        for steps, dim in enumerate(dims):
            depth, heads = depths[first - steps], num_heads[first - steps]
            if dim % heads:
                raise ValueError(
                    f"The head's stage of {dim} channels cannot be split over {heads} attention heads. Set num_heads in"
                    f" head_options to {len(depths)} divisors of the channels, from fine to coarse."
                )
            # The only stage of a config does not halve the grid.
            config = SwinConfig(embed_dim=dim, depths=[depth], num_heads=[heads], window_size=window_size)
            self.stages.append(SwinStage(config, 0, window_size, [0.0] * depth))
        self.expansions = nn.ModuleList(PatchExpanding(dim) for dim in dims[:-1])
        scale = stride // prediction_stride
        self.norm = nn.LayerNorm(dims[-1])
        self.projection = nn.Linear(dims[-1], scale**2 * num_outputs)
        self.pixel_shuffle = nn.PixelShuffle(scale)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        tokens = self.embedding(feature_map.permute(0, 2, 3, 1))  # B, h, w, C
        for stage, expansion in zip(self.stages, [*self.expansions, nn.Identity()], strict=True):
            tokens = expansion(stage(tokens))
        return self.pixel_shuffle(self.projection(self.norm(tokens)).permute(0, 3, 1, 2))


class PatchExpanding(nn.Module):
    """Double the grid: each token becomes a 2x2 square of tokens with half the channels.

    Args:
        dim: Channels of the tokens.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.expansion = nn.Linear(dim, 2 * dim, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return split_squares(self.expansion(self.norm(tokens)))


def split_squares(tokens: torch.Tensor) -> torch.Tensor:
    """(B, h, w, 4 C) to (B, 2 h, 2 w, C): the inverse of `join_squares`."""
    batch_size, height, width, dim = tokens.shape
    squares = tokens.view(batch_size, height, width, 2, 2, dim // 4)  # B, h, w, column, row, C
    return squares.permute(0, 1, 4, 2, 3, 5).reshape(batch_size, 2 * height, 2 * width, dim // 4)


def upscaling(encoder_stride: int, prediction_stride: int) -> int:
    """Factor between the grid of the feature map and that of the prediction, along each side.

    Args:
        encoder_stride: Stride of the feature map in pixels.
        prediction_stride: Stride of the prediction in pixels.

    Returns:
        The factor.

    Raises:
        ValueError: If the prediction's stride does not divide the encoder's.
    """
    if encoder_stride % prediction_stride:
        divisors = [str(step) for step in range(1, encoder_stride + 1) if encoder_stride % step == 0]
        raise ValueError(
            f"The encoder has a stride of {encoder_stride} px, which the prediction's stride of {prediction_stride} px"
            f" does not divide. Set prediction_stride to one of: {', '.join(divisors)}."
        )
    return encoder_stride // prediction_stride


def _doublings(encoder_stride: int, prediction_stride: int, most: int) -> tuple[int, int]:
    """How often the grid is doubled, `most` times at most, and the stride after that."""
    doublings, stride = 0, encoder_stride
    while doublings < most and stride > FINEST_STRIDE and stride % (2 * prediction_stride) == 0:
        doublings, stride = doublings + 1, stride // 2
    return doublings, stride


class HiddenStateFusion(nn.Module):
    """Adds hidden states of the encoder to its feature map, each normalized and projected to its grid and channels.

    Use it, by `head_inputs`, to give the head details that the last layer of the encoder need not carry then.

    The feature map is always part of the sum, so every layer of the encoder is trained. Hidden states are numbered as
    in the output of the model. In our Swin they are the patch embedding (0), the outputs of the first stages after
    patch merging (1, 2, 3), and the output of the last stage before the final norm (4 or -1, of the same grid as 3).
    Models of transformers usually return the embedding first and then each layer or stage; SegFormer and PVTv2 return
    no embedding.

    Args:
        config: The SimMIM config, with `head_inputs`.

    Raises:
        ValueError: If the encoder has no such hidden state, or it cannot be brought to the feature map's grid.

    Source: section 3.2 of MCMAE (arXiv 2205.03892), "multi-scale decoder"; for one scale, MFF (arXiv 2308.00261).

    Examples:
        >>> SimMIMConfig(head_inputs=[1, 2, 3])
    """

    def __init__(self, config: Any):
        super().__init__()
        states = hidden_states(config)
        self.indices: list[int] = []
        self.states: list[HiddenState] = []
        self.ratios: list[int] = []  # adapters replace the projections, so their strides are kept here
        self.norms = nn.ModuleList()
        self.projections = nn.ModuleList()
        for index in config.head_inputs:
            if not -len(states) <= index < len(states):
                raise ValueError(
                    f"head_inputs={list(config.head_inputs)} has {index}, and the encoder returns {len(states)} hidden"
                    f" states. Use indices from {-len(states)} to {len(states) - 1}."
                )
            state = states[index]
            if state is None:
                usable = [str(number) for number, other in enumerate(states) if other is not None]
                raise ValueError(
                    f"head_inputs={list(config.head_inputs)} has {index}, but that hidden state is not a map that fits"
                    f" the feature map's grid. Use some of: {', '.join(usable) or 'none, leave it out'}."
                )
            if index % len(states) in self.indices:
                raise ValueError(f"head_inputs={list(config.head_inputs)} names a hidden state twice. Leave one out.")
            ratio = config.encoder_stride // state.stride
            self.indices.append(index % len(states))
            self.states.append(state)
            self.ratios.append(ratio)
            self.norms.append(nn.LayerNorm(state.channels))
            self.projections.append(nn.Conv2d(state.channels, config.hidden_size, kernel_size=ratio, stride=ratio))

    def forward(self, feature_map: torch.Tensor, hidden_states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Add the hidden states to the feature map.

        Args:
            feature_map: Tensor of shape (B, D, h, w).
            hidden_states: All hidden states of the encoder, of shape (B, N_i, D_i), (B, D_i, h_i, w_i) or
                (B, h_i, w_i, D_i).

        Returns:
            Tensor of shape (B, D, h, w).
        """
        fused = feature_map
        parts = zip(self.indices, self.states, self.ratios, self.norms, self.projections, strict=True)
        for index, state, ratio, norm, projection in parts:
            grid_size = (feature_map.shape[2] * ratio, feature_map.shape[3] * ratio)
            tokens = as_map(state, hidden_states[index], grid_size)
            fused = fused + projection(norm(tokens).permute(0, 3, 1, 2))
        return fused


def predict_cells(head: nn.Module, feature_map: torch.Tensor, needed: torch.Tensor) -> torch.Tensor:
    """Prediction of some cells of a feature map, if the head predicts each from its own features; else of all.

    Args:
        head: The head.
        feature_map: Tensor of shape (B, D, h, w).
        needed: Bool tensor of shape (B, h, w).

    Returns:
        The prediction of shape (B, K, h * scale, w * scale), 0 in cells that are not needed.
    """
    if type(head) not in POINTWISE_HEADS:
        return head(feature_map)
    batch_size, _, height, width = feature_map.shape
    cells = head(feature_map.permute(0, 2, 3, 1)[needed][:, :, None, None])  # M, K, scale, scale
    _, channels, scale, _ = cells.shape
    index = needed.flatten().nonzero()[:, 0]
    prediction = cells.new_zeros(needed.numel(), channels, scale, scale).index_copy(0, index, cells)
    prediction = prediction.view(batch_size, height, width, channels, scale, scale).permute(0, 3, 1, 4, 2, 5)
    return prediction.reshape(batch_size, channels, height * scale, width * scale)


def build_head(config: Any, num_outputs: int, prediction_stride: int, hidden_size: int) -> nn.Module:
    """Build the head of a config.

    Args:
        config: The SimMIM config.
        num_outputs: Channels K of the prediction.
        prediction_stride: Stride of the prediction in pixels.
        hidden_size: Channels of the features that it reads: those of the encoder, or of a decoder after it.

    Returns:
        The head.

    Raises:
        ValueError: If the prediction's stride does not divide the encoder's, or options do not fit each other.
    """
    options = config.options("head")
    # Some encoders have one window size for each stage, or 0 for no windows.
    if "window_size" in options and options["window_size"] is None and isinstance(config.window_size, int):
        options["window_size"] = config.window_size or None
    build: Any = HEADS[config.head].build
    return build(hidden_size, num_outputs, config.encoder_stride, prediction_stride, **options)


# Heads whose prediction of a cell depends on its own features only.
POINTWISE_HEADS = (LinearHead, MLPHead)


class HeadSpec(NamedTuple):
    """A prediction head and its options."""

    build: type[nn.Module]  # takes (hidden_size, num_outputs, encoder_stride, prediction_stride, **options)
    options: dict[str, Option]


# ADD A HEAD here: its module and its options.
HEADS: dict[str, HeadSpec] = {
    "linear": HeadSpec(LinearHead, {}),
    "mlp": HeadSpec(MLPHead, {"hidden_size": Option(None, optional(is_count), f"{COUNT}, or None for the encoder's")}),
    "inverse_swin": HeadSpec(
        InverseSwinHead,
        {
            "size": Option("tiny", lambda value: value in ("tiny", "base"), "'tiny' or 'base'"),
            "embed_dim": Option(None, optional(is_count), f"{COUNT}, or None for that of the size"),
            "depths": Option(None, optional(each(is_count)), "a list with the depth of each stage, or None"),
            "num_heads": Option(None, optional(each(is_count)), "a list with the heads of each stage, or None"),
            "window_size": Option(None, optional(is_count), f"{COUNT}, or None for the encoder's or else 7"),
        },
    ),
}
