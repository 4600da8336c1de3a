"""The encoder's hidden states: where they lie, the stages among them, and how they join the head's input."""

import math
from typing import Any, NamedTuple

import torch
from torch import nn

from .encoder_geometry import EncoderGeometry, encoder_geometry, measured_once
from .encoders import build_encoder, encode


class HiddenState(NamedTuple):
    """Where the steps of a hidden state lie."""

    channels: int
    stride: int  # pixels of the image for each step
    layout: str  # "channels_first", "channels_last" or "tokens"
    num_prefix_tokens: int


_measured: dict[str, list[HiddenState | None]] = {}


def hidden_states(config: Any) -> list[HiddenState | None]:
    """Measure the hidden states of an encoder by a forward without memory; the same config is measured once.

    Args:
        config: The SimMIM config.

    Returns:
        One for each, in the order in which the encoder returns them; None for what is no map of square steps that the
        feature map's stride is a multiple of.

    Raises:
        ValueError: If the encoder returns none, or cannot be used.
    """
    return measured_once(_measured, config, _measure)


def _measure(config: Any) -> list[HiddenState | None]:
    geometry = encoder_geometry(config.encoder_config)
    with torch.device("meta"):
        encoder = build_encoder(config, use_mask_token=True).eval()
        dtype = next(encoder.parameters()).dtype
        pixel_values = torch.zeros(1, config.num_channels, *geometry.image_size, dtype=dtype)
    # On the CPU: models keep index tensors that they make on the way, and would keep them without memory, too.
    with torch.device("cpu"):
        try:
            states = encode(encoder, geometry, pixel_values, output_hidden_states=True).hidden_states
        except ValueError as error:  # timm's convolutional networks
            raise ValueError(f"{_without(config)} It says: {error}") from error
    if not states:
        raise ValueError(_without(config))
    shapes = [tuple(state.shape) for state in states]
    # A map whose channels are as many as its rows could be of either layout; others of the encoder are not.
    readings = [[_read(shape, layout, geometry) for shape in shapes] for layout in ("channels_first", "channels_last")]
    return max(readings, key=lambda reading: sum(state is not None for state in reading))


def _without(config: Any) -> str:
    return (
        f"The encoder {config.encoder_config.model_type!r} returns no hidden states. Leave head_inputs out; for a"
        " backbone use another encoder, such as swin, vit or convnext."
    )


def _read(shape: tuple[int, ...], layout: str, geometry: EncoderGeometry) -> HiddenState | None:
    height, width = geometry.image_size
    for stride in (step for step in range(1, geometry.stride + 1) if geometry.stride % step == 0):
        grid = (height // stride, width // stride)
        if len(shape) == 3:
            prefix = shape[1] - grid[0] * grid[1]
            if prefix in (0, geometry.num_prefix_tokens):
                return HiddenState(shape[2], stride, "tokens", prefix)
        elif len(shape) == 4 and grid == (shape[2:] if layout == "channels_first" else shape[1:3]):
            return HiddenState(shape[1] if layout == "channels_first" else shape[3], stride, layout, 0)
    return None


class Stage(NamedTuple):
    """A map that a backbone can return."""

    name: str
    hidden_state: int | None  # its index among them; None for the encoder's feature map
    state: HiddenState


def stages(config: Any) -> list[Stage]:
    """Name the maps that a backbone can return.

    Encoders of several strides: `stem` is the patch embedding, `stage1`, .. the last hidden state of each stride. Those
    of one stride have a stage for each layer. The last stage is the feature map in any case, final norm included. Our
    Swin gives the outputs of its stages before patch merging.

    Args:
        config: The SimMIM config.

    Returns:
        The stages, from the first to the last.

    Raises:
        ValueError: If the encoder returns no hidden states, or cannot be used.
    """
    encoder_config = config.encoder_config
    geometry = encoder_geometry(encoder_config)
    found: list[HiddenState | None]
    if geometry.route == "own":
        steps = [0, *range(len(encoder_config.depths))]
        found = [HiddenState(encoder_config.embed_dim * 2**s, geometry.patch_size * 2**s, "tokens", 0) for s in steps]
    else:
        found = hidden_states(config)
    states = [(index, state) for index, state in enumerate(found) if state is not None]
    feature_map = HiddenState(geometry.hidden_size, geometry.stride, "channels_first", 0)
    if all(state.stride == geometry.stride for _, state in states):
        num_layers = getattr(encoder_config, "num_hidden_layers", len(states) - 1)
        chosen, has_stem = states[:-1], len(states) > num_layers
    else:
        # Of a stride's states the last one stays.
        last = {state.stride: (index, state) for index, state in states if state.stride < geometry.stride}
        has_stem = all(index != 0 for index, _ in last.values())
        chosen = [*(states[:1] if has_stem else []), *last.values()]
    names = [*(["stem"] if has_stem else []), *(f"stage{number + 1}" for number in range(len(chosen) + 1 - has_stem))]
    indices_and_states = [*chosen, (None, feature_map)]
    return [Stage(name, *where) for name, where in zip(names, indices_and_states, strict=True)]


def usual_features(config: Any) -> list[str]:
    """Names of the stages that a backbone returns unless others are named: those of a feature pyramid.

    Args:
        config: The SimMIM config.

    Returns:
        All stages but the stem where strides differ. Of encoders of one stride the layers at a third, a half, two
        thirds and the end of the depth: 4, 6, 8 and 12 of 12.

    Source: configs of BEiT for ADE20K (arXiv 2106.08254).
    """
    names = [stage.name for stage in stages(config) if stage.name != "stem"]
    depth = len(names)
    if not is_single_scale(config) or depth <= 4:
        return names
    layers = sorted({round(depth / 3), depth // 2, round(2 * depth / 3), depth})
    if len(layers) < 4:
        layers = [math.ceil(depth * part / 4) for part in range(1, 5)]
    return [names[layer - 1] for layer in layers]


def is_single_scale(config: Any) -> bool:
    """Whether all stages of an encoder have one stride."""
    return len({stage.state.stride for stage in stages(config)}) == 1


def as_map(state: HiddenState, hidden_state: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """A hidden state, as the encoder returned it, as a map (B, h, w, D) without prefix tokens."""
    if state.layout == "channels_first":
        return hidden_state.permute(0, 2, 3, 1)
    if state.layout == "tokens":
        return hidden_state[:, state.num_prefix_tokens :].unflatten(1, grid_size)
    return hidden_state


class HiddenStateFusion(nn.Module):
    """Adds hidden states of the encoder to its feature map, each normalised and brought to its grid and channels.

    The feature map stays part of the sum, so every layer of the encoder is trained. Hidden states are numbered as in
    the output of the model. Those of our Swin are the patch embedding (0), what enters each further stage, that is the
    output of the one before after its patch merging (1, 2, 3), and the output of the last stage before the final norm
    (4 or -1, of the same grid as 3). transformers' models return the embedding first and then each layer or stage, as
    a rule; SegFormer and PVTv2 have no embedding.

    Args:
        config: The SimMIM config, with `head_inputs`.

    Raises:
        ValueError: If the encoder has no such hidden state, or one that cannot be brought to the feature map's grid.

    Source: section 3.2 of MCMAE (arXiv 2205.03892), "multi-scale decoder"; for one scale, MFF (arXiv 2308.00261).
    """

    def __init__(self, config: Any):
        super().__init__()
        states = hidden_states(config)
        self.indices: list[int] = []
        self.states: list[HiddenState] = []
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
                    f"head_inputs={list(config.head_inputs)} has {index}, and that hidden state is no map which fits"
                    f" the feature map's grid. Use some of: {', '.join(usable) or 'none, leave it out'}."
                )
            if index % len(states) in self.indices:
                raise ValueError(f"head_inputs={list(config.head_inputs)} names a hidden state twice. Leave one out.")
            ratio = config.encoder_stride // state.stride
            self.indices.append(index % len(states))
            self.states.append(state)
            self.norms.append(nn.LayerNorm(state.channels))
            self.projections.append(nn.Conv2d(state.channels, config.hidden_size, kernel_size=ratio, stride=ratio))

    def forward(self, feature_map: torch.Tensor, hidden_states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Fuse.

        Args:
            feature_map: Tensor of shape (B, D, h, w).
            hidden_states: All that the encoder returned, of shape (B, N_i, D_i), (B, D_i, h_i, w_i) or
                (B, h_i, w_i, D_i).

        Returns:
            Tensor of shape (B, D, h, w).
        """
        fused = feature_map
        for index, state, norm, projection in zip(self.indices, self.states, self.norms, self.projections, strict=True):
            ratio: Any = projection.stride[0]  # type: ignore[index]
            grid_size = (feature_map.shape[2] * ratio, feature_map.shape[3] * ratio)
            tokens = as_map(state, hidden_states[index], grid_size)
            fused = fused + projection(norm(tokens).permute(0, 3, 1, 2))
        return fused
