"""How deep each part of an encoder lies: read from its modules and the order in which they run.

No names of any model are known here. Lists of modules are taken for layers by what they hold, and a forward without
memory tells what comes before, between and behind them.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from .encoder_geometry import EncoderGeometry, encoder_geometry, measured_once
from .encoders import build_encoder, encode


class EncoderLayers(NamedTuple):
    """The layers of an encoder, one after the other."""

    names: tuple[str, ...]  # of the layers, in the order in which they run
    # Of each parameter by name: 0 before the first layer, k in the k-th layer and behind it up to the next one,
    # len(names) + 1 behind the last.
    depths: dict[str, int]
    ends_in_norm: bool  # whether the last thing that is done to the feature map is a norm of its own


_measured: dict[str, EncoderLayers] = {}


def encoder_layers(config: Any) -> EncoderLayers:
    """Find the layers of a config's encoder; the same config is measured once.

    Args:
        config: The SimMIM config.

    Returns:
        The layers. Where none are found, such as in an encoder without lists of modules, there are no names, and every
        parameter has depth 0.
    """
    return measured_once(_measured, config, _measure)


def _measure(config: Any) -> EncoderLayers:
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
            # One table for all layers is a part of the last one, too, as in the released code.
            if layers and (depth == len(layers) or name.endswith("relative_position_bias_table")):
                depth = len(layers) + 1
        depths[name] = depth
    return EncoderLayers(tuple(layers), depths, _ends_in_norm(encoder, calls, layers, geometry.unused))


def _calls(encoder: nn.Module, geometry: EncoderGeometry, pixel_values: torch.Tensor) -> list[str]:
    """Names of all modules in the order in which a forward calls them."""
    calls: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs, name=name: calls.append(name))
        for name, module in encoder.named_modules()
    ]
    # On the CPU: models keep index tensors that they make on the way, and would keep them without memory, too.
    with torch.device("cpu"):
        encode(encoder, geometry, pixel_values)
    for hook in hooks:
        hook.remove()
    return calls


def _layers(encoder: nn.Module) -> list[str]:
    """Names of the residual layers.

    They are the modules of the outermost lists; where those are stages, the modules of the lists inside. Stages differ
    in their shapes, layers of a plain transformer do not.
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
    """Lists of layers in a module that are not part of another one, with their names."""
    if includes_itself and _is_list_of_layers(module):
        yield name, list(module.children())
        return
    for child_name, child in module.named_children():
        yield from _outermost_lists(child, f"{name}.{child_name}".lstrip("."), True)


def _is_list_of_layers(module: nn.Module) -> bool:
    """Whether a module is a list, each of whose modules has several matrices: embeddings have one, norms have none."""
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
    """Number of the layer, from 1, that a parameter is a part of."""
    return next((index for index, layer in enumerate(layers, start=1) if name.startswith(f"{layer}.")), None)


def _ends_in_norm(encoder: nn.Module, calls: list[str], layers: list[str], unused: tuple[str, ...]) -> bool:
    for name in reversed(calls):
        module = encoder.get_submodule(name)
        parameters = [f"{name}.{part}" for part, _ in module.named_parameters(recurse=False)]
        # A pooler's norm runs last, and the feature map knows nothing of it.
        if parameters and not set(parameters) <= set(unused):
            return "norm" in type(module).__name__.lower() and _layer_of(parameters[0], layers) is None
    return False
