"""The structure of an encoder: shapes of its hidden states, stages of a backbone, and order of its layers."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from .encoders import EncoderGeometry, build_encoder, encode, encoder_geometry, measured_once


class HiddenState(NamedTuple):
    """Shape and layout of a hidden state."""

    channels: int
    stride: int  # in pixels
    layout: str  # "channels_first", "channels_last" or "tokens"
    num_prefix_tokens: int


_measured_states: dict[str, list[HiddenState | None]] = {}


def hidden_states(config: Any) -> list[HiddenState | None]:
    """Measure the hidden states of an encoder by a forward pass on the meta device; results are cached.

    Args:
        config: The SimMIM config.

    Returns:
        One entry for each hidden state, in the order in which the encoder returns them; None where it is not a map
        with the same stride in both directions that divides the feature map's stride.

    Raises:
        ValueError: If the encoder returns no hidden states, or cannot be used.
    """
    return measured_once(_measured_states, config, _measure_states)


def _measure_states(config: Any) -> list[HiddenState | None]:
    geometry = encoder_geometry(config.encoder_config)
    with torch.device("meta"):
        encoder = build_encoder(config, use_mask_token=True).eval()
        dtype = next(encoder.parameters()).dtype
        pixel_values = torch.zeros(1, config.num_channels, *geometry.image_size, dtype=dtype)
    # On the CPU: models cache index tensors that they create in a forward pass, and would cache them on meta, too.
    with torch.device("cpu"):
        try:
            states = encode(encoder, geometry, pixel_values, output_hidden_states=True).hidden_states
        except ValueError as error:  # timm's convolutional networks
            raise ValueError(f"{_without(config)} Its error: {error}") from error
    if not states:
        raise ValueError(_without(config))
    shapes = [tuple(state.shape) for state in states]
    # A map with as many channels as rows fits both layouts; the other maps of the encoder decide.
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
    hidden_state: int | None  # its index; None for the encoder's feature map
    state: HiddenState


def stages(config: Any) -> list[Stage]:
    """Name the maps that a backbone can return.

    In multi-scale encoders, `stem` is the patch embedding, and `stage1`, .. are the last hidden states of each stride.
    In single-scale encoders, each layer is a stage. The last stage is always the feature map, final norm included. The
    stages of our Swin are the outputs before patch merging.

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
        # The last hidden state of each stride is kept.
        last = {state.stride: (index, state) for index, state in states if state.stride < geometry.stride}
        has_stem = all(index != 0 for index, _ in last.values())
        chosen = [*(states[:1] if has_stem else []), *last.values()]
    names = [*(["stem"] if has_stem else []), *(f"stage{number + 1}" for number in range(len(chosen) + 1 - has_stem))]
    indices_and_states = [*chosen, (None, feature_map)]
    return [Stage(name, *where) for name, where in zip(names, indices_and_states, strict=True)]


def default_out_features(config: Any) -> list[str]:
    """Names of the stages that a backbone returns by default: those of a feature pyramid.

    Args:
        config: The SimMIM config.

    Returns:
        All stages but the stem for multi-scale encoders. For single-scale encoders, the layers at a third, a half, two
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
    """Whether all stages of an encoder have the same stride."""
    return len({stage.state.stride for stage in stages(config)}) == 1


def as_map(state: HiddenState, hidden_state: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """Convert a hidden state, as the encoder returned it, to a map (B, h, w, D) without prefix tokens."""
    if state.layout == "channels_first":
        return hidden_state.permute(0, 2, 3, 1)
    if state.layout == "tokens":
        return hidden_state[:, state.num_prefix_tokens :].unflatten(1, grid_size)
    return hidden_state


class EncoderLayers(NamedTuple):
    """The layers of an encoder, in the order in which they run."""

    names: tuple[str, ...]  # of the layers
    # Depth of each parameter by name: 0 before the first layer, k in the k-th layer and after it up to the next one,
    # len(names) + 1 after the last.
    depths: dict[str, int]
    ends_in_norm: bool  # whether the last module is a norm that is not part of a layer


_measured_layers: dict[str, EncoderLayers] = {}


def encoder_layers(config: Any) -> EncoderLayers:
    """Find the layers of a config's encoder; results are cached.

    Args:
        config: The SimMIM config.

    Returns:
        The layers. If none are found, such as in an encoder without lists of modules, there are no names, and every
        parameter has depth 0.
    """
    return measured_once(_measured_layers, config, _measure_layers)


def _measure_layers(config: Any) -> EncoderLayers:
    geometry = encoder_geometry(config.encoder_config)
    with torch.device("meta"):
        encoder = build_encoder(config, use_mask_token=True).eval()
        dtype = next(encoder.parameters()).dtype
        pixel_values = torch.zeros(1, config.num_channels, *geometry.image_size, dtype=dtype)
    calls = _calls(encoder, geometry, pixel_values)
    first_call = {name: index for index, name in reversed(list(enumerate(calls)))}
    layers = sorted((name for name in _layers(encoder) if name in first_call), key=lambda name: first_call[name])
    starts = [first_call[name] for name in layers]
    depths = {}
    for name, _ in encoder.named_parameters():
        depth = _layer_of(name, layers)
        if depth is None:
            owner = name.rpartition(".")[0]
            while owner not in first_call:
                owner = owner.rpartition(".")[0]
            depth = sum(start < first_call[owner] for start in starts)
            # A table shared by all layers counts as after the last one, as in the official implementation.
            if layers and (depth == len(layers) or name.endswith("relative_position_bias_table")):
                depth = len(layers) + 1
        depths[name] = depth
    return EncoderLayers(tuple(layers), depths, _ends_in_norm(encoder, calls, layers, geometry.unused))


def _calls(encoder: nn.Module, geometry: EncoderGeometry, pixel_values: torch.Tensor) -> list[str]:
    """Names of all modules in the order in which a forward pass calls them."""
    calls: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs, name=name: calls.append(name))
        for name, module in encoder.named_modules()
    ]
    # On the CPU: models cache index tensors that they create in a forward pass, and would cache them on meta, too.
    with torch.device("cpu"):
        encode(encoder, geometry, pixel_values)
    for hook in hooks:
        hook.remove()
    return calls


def _layers(encoder: nn.Module) -> list[str]:
    """Names of the residual layers.

    They are the modules of the outermost lists; if those are stages, the modules of the lists inside them. Stages
    differ in their shapes, layers of a plain transformer do not.
    """
    layers = []
    for list_name, modules in _outermost_lists(encoder, ""):
        shapes = [[parameter.shape for parameter in module.parameters()] for module in modules]
        inside = [list(_outermost_lists(module, f"{list_name}.{i}", True)) for i, module in enumerate(modules)]
        if any(inside) and (len(modules) == 1 or any(shape != shapes[0] for shape in shapes)):
            layers += [f"{name}.{i}" for lists in inside for name, parts in lists for i in range(len(parts))]
        else:
            layers += [f"{list_name}.{i}" for i in range(len(modules))]
    return layers


def _outermost_lists(
    module: nn.Module, name: str, includes_itself: bool = False
) -> Iterator[tuple[str, list[nn.Module]]]:
    """Lists of layers in a module that are not part of another list, with their names."""
    if includes_itself and _is_list_of_layers(module):
        yield name, list(module.children())
        return
    for child_name, child in module.named_children():
        yield from _outermost_lists(child, f"{name}.{child_name}".lstrip("."), True)


def _is_list_of_layers(module: nn.Module) -> bool:
    """Whether a module is a list whose modules have several matrices each: embeddings have one, norms have none."""
    modules = list(module.children())
    if not modules or not isinstance(module, (nn.ModuleList, nn.Sequential)):
        return False
    if isinstance(module, nn.Sequential) and len({type(part) for part in modules}) > 1:
        return False
    return all(
        sum(name.endswith("weight") and parameter.ndim > 1 for name, parameter in part.named_parameters()) > 1
        for part in modules
    )


def _layer_of(name: str, layers: list[str]) -> int | None:
    """Number of the layer, from 1, that contains a parameter."""
    return next((index for index, layer in enumerate(layers, start=1) if name.startswith(f"{layer}.")), None)


def _ends_in_norm(encoder: nn.Module, calls: list[str], layers: list[str], unused: tuple[str, ...]) -> bool:
    for name in reversed(calls):
        module = encoder.get_submodule(name)
        parameters = [f"{name}.{part}" for part, _ in module.named_parameters(recurse=False)]
        # A pooler's norm runs last, but the feature map does not depend on it.
        if parameters and not set(parameters) <= set(unused):
            return "norm" in type(module).__name__.lower() and _layer_of(parameters[0], layers) is None
    return False
