"""Builds the encoder of a config, and runs it on masked images to a feature map."""

import contextlib
import copy
import inspect
import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.integrations import deepspeed
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.beit.modeling_beit import BeitRelativePositionBias
from transformers.models.data2vec.modeling_data2vec_vision import Data2VecVisionRelativePositionBias

from .options import COUNT, is_count, is_finite, is_positive
from .swin import Swin
from .swinv2 import Swinv2

# Prefix tokens are class, distillation and register tokens. An output with more of them is not a map of patches.
MAX_PREFIX_TOKENS = 16
# Every multi-scale encoder can halve multiples of this size without a remainder.
ROUND_SIZE = 64

# More than one, to detect models that merge the images of a batch.
BATCH_SIZE = 2

# ADD AN ENCODER: a module that takes (encoder_config, use_mask_token) and has the parameter names of transformers'
# checkpoints. Models of transformers need no entry: they are measured.
OWN_ENCODERS: dict[str, type[nn.Module]] = {"swin": Swin, "swinv2": Swinv2}

# Encoders whose hidden states are not in reading order, but which also return them as maps (B, h, w, D).
SHUFFLING_ENCODERS = ("hiera",)

# Encoders that run, but whose tokens do not correspond to image positions.
UNUSABLE_ENCODERS = {
    "vit_mae": "it drops and shuffles patches itself. Its weights are those of a ViT: load them as a ViT",
    "levit": "each of its tokens depends on the whole image, so that tokens cannot be assigned to image positions",
    "yolos": "its detection tokens follow the patch tokens",
}


# Names of the parameters that hold absolute positions.
POSITIONS = re.compile(r"(position_embeddings?|pos_embed|position_embeddings?\.weight)$")


class EncoderGeometry(NamedTuple):
    """How an encoder maps images (B, C, H, W) to a feature map (B, D, H / stride, W / stride)."""

    patch_size: int  # side of the patches of the mask grid, in pixels
    stride: int  # of the feature map, in pixels
    hidden_size: int  # channels D of the feature map
    image_size: tuple[int, int]  # (height, width) that it is built for: the config's, rounded up to whole strides
    # "own": our module masks patches itself. "native": transformers' model does, given bool_masked_pos. "tokens": our
    # mask token replaces outputs of its patch embedding. "pixels": our mask patch replaces pixels.
    route: str
    layout: str = "channels_first"  # of its output: "channels_first", "channels_last" or "tokens"
    num_prefix_tokens: int = 0
    patch_embedding: str | None = None  # name of the convolution whose output is replaced
    mask_token_shape: tuple[int, ...] | None = None  # of the token or patch that SimMIMModel holds for the encoder
    built_size: int | tuple[int, int] | None = None  # image_size for its config: some models accept only squares
    interpolate: bool = False  # whether position embeddings are interpolated at its own image size too
    can_interpolate: bool = False  # whether its forward takes interpolate_pos_encoding
    takes_other_sizes: bool = True  # whether images of other sizes are encoded correctly
    unused: tuple[str, ...] = ()  # parameters that the feature map does not depend on, such as those of a pooler


_measured: dict[str, EncoderGeometry] = {}
# One thread at a time: building on the meta device changes torch's default device.
MEASURING = threading.RLock()


def encoder_geometry(encoder_config: Any) -> EncoderGeometry:
    """Measure the geometry of an encoder; results are cached.

    Args:
        encoder_config: Config of a vision model, with an `image_size`.

    Returns:
        The geometry.

    Raises:
        ValueError: If the encoder cannot be used; the message says why.
    """
    if encoder_config.model_type in OWN_ENCODERS:
        return _swin_geometry(encoder_config)
    return measured_once(_measured, encoder_config, _measure)


def cache_key(encoder_config: Any) -> str:
    """Key under which measurements of an encoder are cached: its settings without the class names."""
    settings = {key: value for key, value in encoder_config.to_dict().items() if key not in ("id2label", "label2id")}
    return f"{type(encoder_config).__name__} {json.dumps(settings, sort_keys=True, default=str)}"


def measured_once(measured: dict[str, Any], config: Any, measure: Callable[[Any], Any]) -> Any:
    """Run a measurement of an encoder on the meta device, or return its cached result.

    Args:
        measured: Cached results; a new one is added.
        config: The SimMIM config, or that of an encoder.
        measure: Takes a copy of the config whose attention runs on the meta device.

    Returns:
        The result of `measure`.
    """
    key = cache_key(getattr(config, "encoder_config", config))
    with MEASURING:
        if key not in measured:
            # Attention kernels for GPUs do not run on the meta device; the shapes are the same with eager attention.
            plain = copy.deepcopy(config)
            getattr(plain, "encoder_config", plain)._attn_implementation = "eager"
            with torch.inference_mode(False), torch.no_grad():
                measured[key] = measure(plain)
        return measured[key]


@contextlib.contextmanager
def whole_weights() -> Iterator[None]:
    """Keep transformers from sharding a network that every process needs, as it does for DeepSpeed ZeRO-3."""
    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def transformers_class(encoder_config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The class of transformers' bare model for a config, or None."""
    # Looked up by class: iterating over the mapping imports every model, and some of them cannot be imported.
    model_class: Any = MODEL_MAPPING.get(type(encoder_config), None)  # type: ignore[arg-type]
    return model_class[0] if isinstance(model_class, tuple) else model_class


def make_transformers_encoder(
    encoder_config: PreTrainedConfig, built_size: int | tuple[int, int] | None, use_mask_token: bool
) -> PreTrainedModel:
    """Build transformers' model without its pooling layer.

    Args:
        encoder_config: Config of the model, which shares it, so that later changes reach both, unless a setting has to
            differ.
        built_size: Image size to build the model for; that of the config if None.
        use_mask_token: Whether the model holds a mask token, if it can.

    Returns:
        The model, initialized by transformers.
    """
    model_class: Any = transformers_class(encoder_config)
    options = inspect.signature(model_class.__init__).parameters
    arguments: dict[str, Any] = {"add_pooling_layer": False} if "add_pooling_layer" in options else {}
    changes: dict[str, Any] = {}
    if "use_mask_token" in options:
        arguments["use_mask_token"] = use_mask_token
    elif getattr(encoder_config, "use_mask_token", use_mask_token) != use_mask_token:
        changes["use_mask_token"] = use_mask_token
    if encoder_config.model_type == "timm_wrapper":
        changes["model_args"] = _timm_arguments(encoder_config, built_size)
    elif built_size is not None and _pair(encoder_config.image_size) != _pair(built_size):
        changes["image_size"] = built_size if isinstance(built_size, int) else list(built_size)
    if changes:
        encoder_config = copy.deepcopy(encoder_config)
        for name, value in changes.items():
            setattr(encoder_config, name, value)
    with whole_weights():
        return model_class._from_config(encoder_config, **arguments)


def _timm_arguments(encoder_config: Any, built_size: int | tuple[int, int] | None) -> dict[str, Any]:
    """Geometry arguments of timm's `create_model`, which a timm config does not store."""
    size = {} if built_size is None else {"img_size": _pair(built_size)}
    channels = {"in_chans": encoder_config.num_channels} if hasattr(encoder_config, "num_channels") else {}
    return {**(encoder_config.model_args or {}), **size, **channels}


def takes(encoder: nn.Module | type[nn.Module], argument: str) -> bool:
    """Whether an encoder's forward has an argument of this name; `**kwargs` would silently swallow others."""
    return argument in inspect.signature(encoder.forward).parameters


def whole(size: tuple[int, int], step: int) -> tuple[int, int]:
    """(height, width) rounded up to multiples of a step."""
    return -(-size[0] // step) * step, -(-size[1] // step) * step


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))


_SWIN_SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("image_size", "patch_size", "num_channels", "embed_dim", "window_size"), (is_count, COUNT)),
    **dict.fromkeys(("depths", "num_heads"), (is_count, f"{COUNT} for each stage")),
    **dict.fromkeys(("mlp_ratio", "layer_norm_eps"), (is_positive, "a number above 0")),
    "drop_path_rate": (lambda value: is_finite(value) and 0 <= value < 1, "a number from 0 to below 1"),
    "hidden_act": (lambda value: value in ACT2FN, "the name of an activation in transformers, such as 'gelu'"),
}


def _swin_geometry(config: Any) -> EncoderGeometry:
    for name, (is_valid, kind) in _SWIN_SETTINGS.items():
        value = getattr(config, name)
        values = value if isinstance(value, (list, tuple)) else [value]
        if not values or not all(map(is_valid, values)):
            raise ValueError(f"{name}={value!r} of the encoder {config.model_type!r} must be {kind}.")
    if len(config.depths) != len(config.num_heads):
        raise ValueError(
            f"depths={list(config.depths)} and num_heads={list(config.num_heads)} are of different lengths. Give one of"
            " each for every stage."
        )
    patch_size = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
    if _pair(config.patch_size) != (patch_size, patch_size):
        raise ValueError(f"patch_size={config.patch_size} is not square. Use square patches.")
    steps = 2 ** (len(config.depths) - 1)
    stride = patch_size * steps
    return EncoderGeometry(patch_size, stride, config.embed_dim * steps, whole(_pair(config.image_size), stride), "own")


class _NoMapError(ValueError):
    """The model runs, but its output is not a feature map of each image."""


class _MeasuredRun(NamedTuple):
    """Results of one forward pass on the meta device."""

    shape: tuple[int, ...]  # of last_hidden_state
    patch_embedding: tuple[str, int, int] | None  # name, patch size and channels of a convolution over whole patches
    built_size: int | tuple[int, int] | None
    interpolate: bool
    unused: tuple[str, ...]
    has_positions: bool


def _measure(encoder_config: Any) -> EncoderGeometry:
    name = encoder_config.model_type
    model_class = transformers_class(encoder_config)
    if model_class is None:
        raise ValueError(f"The encoder {name!r} cannot be used: transformers has no bare model for its config.")
    if name in UNUSABLE_ENCODERS:
        raise ValueError(f"The encoder {name!r} cannot be used: {UNUSABLE_ENCODERS[name]}.")
    wanted = _pair(encoder_config.image_size)
    size = wanted
    try:
        run = _run(encoder_config, size)
    except ValueError as error:
        size = whole(wanted, ROUND_SIZE)
        try:
            run = _run(encoder_config, size)
        except ValueError:
            raise error from None
    if run.patch_embedding is not None and whole(size, run.patch_embedding[1]) != size:
        size = whole(size, run.patch_embedding[1])
        run = _run(encoder_config, size)
    found = _read_shape(run, size)
    if found is None:
        size = whole(wanted, ROUND_SIZE)
        run = _run(encoder_config, size)
        found = _read_shape(run, size)
    if found is not None and whole(wanted, found[0]) != size:
        size = whole(wanted, found[0])
        run = _run(encoder_config, size)
        found = _read_shape(run, size)
    if found is None:
        raise ValueError(
            f"The encoder {name!r} cannot be used: its output of shape {run.shape} for images of {size[0]}x{size[1]} is"
            f" not a feature map with equal strides and at most {MAX_PREFIX_TOKENS} prefix tokens."
        )
    stride, layout, num_prefix_tokens = found
    can_interpolate = takes(model_class, "interpolate_pos_encoding")
    hidden_size = run.shape[1] if layout == "channels_first" else run.shape[-1]
    mask_token_shape: tuple[int, ...] | None = None
    patch_embedding = None
    if takes(model_class, "bool_masked_pos"):
        route = "native"
        patch_size = run.patch_embedding[1] if run.patch_embedding else encoder_config.patch_size
    elif run.patch_embedding is not None:
        route = "tokens"
        patch_embedding, patch_size, channels = run.patch_embedding
        mask_token_shape = (1, channels, 1, 1)
    else:
        route = "pixels"
        patch_size = 4 if stride % 4 == 0 else stride
        mask_token_shape = (1, getattr(encoder_config, "num_channels", 3), patch_size, patch_size)
    return EncoderGeometry(
        patch_size,
        stride,
        hidden_size,
        size,
        route,
        layout,
        num_prefix_tokens,
        patch_embedding,
        mask_token_shape,
        run.built_size,
        run.interpolate,
        can_interpolate,
        # When they interpolate, models assume that their positions form a square.
        not (
            can_interpolate and run.has_positions and isinstance(run.built_size, tuple) and len(set(run.built_size)) > 1
        ),
        run.unused,
    )


def _ways_to_build(encoder_config: Any, size: tuple[int, int]) -> list[tuple[int | tuple[int, int] | None, bool]]:
    """Image sizes to build an encoder for, and whether it then interpolates, for images of a size; the best first.

    Many models assume that their position embeddings form a square. If height and width differ, models that take
    `interpolate_pos_encoding` are built for the rectangle, else for the square around it. Models that always
    interpolate do so from a square, and would mistake a rectangle with as many positions for one.
    """
    if encoder_config.model_type == "timm_wrapper":
        # timm's transformers take an image size, its convolutional networks reject one.
        return [(size, False), (None, False)]
    # Some models take only one number, and some only a pair.
    squares = (max(size), (max(size), max(size)))
    if size[0] == size[1]:
        return [(square, False) for square in squares]
    if takes(transformers_class(encoder_config), "interpolate_pos_encoding"):  # type: ignore[arg-type]
        return [(size, False), *((square, True) for square in squares)]
    return [*((square, False) for square in squares), (size, False)]


def _run(encoder_config: Any, size: tuple[int, int]) -> _MeasuredRun:
    """Run an encoder that is built for images of a size."""
    errors = []
    for built_size, interpolate in _ways_to_build(encoder_config, size):
        try:
            return _run_once(encoder_config, size, built_size, interpolate)
        except ImportError:
            raise
        except Exception as error:  # models of other inputs raise anything
            errors.append(error)
    first = errors[0]
    reason = " ".join(str(first).split()).rstrip(".")
    if not isinstance(first, _NoMapError):
        reason = f"raises {type(first).__name__}: {reason}"
    raise ValueError(
        f"The encoder {encoder_config.model_type!r} cannot be used: given only images of {size[0]}x{size[1]} it"
        f" {reason}."
    ) from first


def _run_once(
    encoder_config: Any, size: tuple[int, int], built_size: int | tuple[int, int] | None, interpolate: bool
) -> _MeasuredRun:
    with torch.device("meta"):
        encoder = make_transformers_encoder(encoder_config, built_size, use_mask_token=True).eval()
        pixel_values = torch.zeros(BATCH_SIZE, getattr(encoder_config, "num_channels", 3), *size, dtype=encoder.dtype)
    seen: list[tuple[str, nn.Module]] = []
    for module_name, module in encoder.named_modules():
        if not any(module.children()):
            module.register_forward_pre_hook(_note(seen, module_name, tuple(pixel_values.shape)))
    arguments = {"interpolate_pos_encoding": True} if interpolate else {}
    # On the CPU: models cache index tensors that they create in a forward pass, and would cache them on meta, too.
    with torch.device("cpu"), torch.enable_grad():
        outputs = encoder(pixel_values, **arguments)
        if getattr(outputs, "last_hidden_state", None) is None:
            raise _NoMapError("returns no last_hidden_state")
        if "encoder_last_hidden_state" in outputs:
            raise _NoMapError("returns the output of a decoder, which is not a feature map of the image")
        if outputs.last_hidden_state.shape[0] != BATCH_SIZE:
            raise _NoMapError("merges the images of a batch into one sequence")
        outputs.last_hidden_state.sum().backward()
    unused = tuple(
        name
        for name, parameter in encoder.named_parameters()
        if parameter.requires_grad and parameter.grad is None and not name.endswith("mask_token")
    )
    has_positions = any(POSITIONS.search(name) for name, _ in encoder.named_parameters())
    return _MeasuredRun(
        tuple(outputs.last_hidden_state.shape), _patch_embedding(seen), built_size, interpolate, unused, has_positions
    )


def _note(seen: list[tuple[str, nn.Module]], name: str, shape: tuple[int, ...]):
    """A hook that records which layers receive the pixels."""

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], torch.Tensor) and tuple(inputs[0].shape) == shape:
            seen.append((name, module))

    return hook


def _patch_embedding(seen: list[tuple[str, nn.Module]]) -> tuple[str, int, int] | None:
    """The layer that receives the pixels, if it is the only one and a convolution over non-overlapping patches."""
    layers = [(name, module) for name, module in seen if any(True for _ in module.parameters())]
    if len(layers) != 1 or not isinstance(layers[0][1], nn.Conv2d):
        return None
    name = layers[0][0]
    convolution: Any = layers[0][1]
    patch_size = convolution.kernel_size[0]
    is_plain = convolution.padding in ("valid", (0, 0)) and convolution.dilation == (1, 1) and convolution.groups == 1
    if not is_plain or convolution.kernel_size != (patch_size,) * 2 or convolution.stride != (patch_size,) * 2:
        return None
    return name, patch_size, convolution.out_channels


def _read_shape(run: _MeasuredRun, size: tuple[int, int]) -> tuple[int, str, int] | None:
    """Stride, layout and number of prefix tokens, or None."""
    smallest = run.patch_embedding[1] if run.patch_embedding else 1
    strides = [smallest * 2**power for power in range(12)]
    for stride in strides:
        if size[0] % stride or size[1] % stride:
            continue
        grid = (size[0] // stride, size[1] // stride)
        if len(run.shape) == 4:
            for layout, sides in (("channels_first", run.shape[2:]), ("channels_last", run.shape[1:3])):
                if tuple(sides) == grid:
                    return stride, layout, 0
        elif len(run.shape) == 3 and 0 <= run.shape[1] - grid[0] * grid[1] <= MAX_PREFIX_TOKENS:
            return stride, "tokens", run.shape[1] - grid[0] * grid[1]
    return None


class EncoderOutput(NamedTuple):
    """Output of every encoder: a feature map (B, D, h, w) without prefix tokens, and hidden states (B, N, D)."""

    feature_map: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None
    attentions: tuple[torch.Tensor, ...] | None


def build_encoder(config: Any, use_mask_token: bool) -> nn.Module:
    """Build the encoder of a config.

    Args:
        config: The SimMIM config.
        use_mask_token: Whether the encoder holds a mask token, if it has one of its own. Models that never mask are
            built without one.

    Returns:
        Our own encoder if there is one for the model type, else transformers' model without its pooling layer.

    Raises:
        ValueError: If the encoder cannot be used; the message says why.
    """
    encoder_config: Any = config.encoder_config
    if encoder_config.model_type in OWN_ENCODERS:
        return OWN_ENCODERS[encoder_config.model_type](encoder_config, use_mask_token=use_mask_token)
    geometry = encoder_geometry(encoder_config)
    encoder = make_transformers_encoder(encoder_config, geometry.built_size, use_mask_token)
    has_mask_token = any(name.endswith("mask_token") for name, _ in encoder.named_parameters())
    if geometry.route == "native" and use_mask_token and not has_mask_token:
        raise ValueError(f"The encoder {encoder_config.model_type!r} was built without a mask token.")
    if geometry.route == "tokens":
        encoder.get_submodule(str(geometry.patch_embedding)).register_forward_hook(_replace_masked)
    for module in encoder.modules():
        if isinstance(module, PreTrainedModel):
            module.is_custom_code = _has_names_of_its_own  # type: ignore[method-assign]
        if type(module) in _BIAS_CLASSES:
            module.__class__ = _BIAS_CLASSES[type(module)]
    return encoder


def freeze_unused(encoder: nn.Module, geometry: EncoderGeometry, use_mask_token: bool) -> None:
    """Freeze the parameters that receive no gradient, because DDP waits for every trainable parameter.

    Loading a checkpoint makes every parameter trainable again, so this is also called after loading.

    Args:
        encoder: The encoder from `build_encoder`.
        geometry: Its geometry.
        use_mask_token: Whether the model masks. Some encoders hold a mask token in any case.
    """
    for name, parameter in encoder.named_parameters():
        if name in geometry.unused or (not use_mask_token and name.endswith("mask_token")):
            parameter.requires_grad_(False)


def _has_names_of_its_own() -> bool:
    """Tells transformers not to rename an encoder's weights on loading, as it does for stock checkpoints.

    Our checkpoints have the names of the model in memory, which some of its patterns match by accident.
    """
    return True


def layers_to_wrap(encoder: nn.Module) -> list[str]:
    """Class names of an encoder's layers, each of which FSDP wraps and keeps on one device."""
    present = {type(module).__name__ for module in encoder.modules()}
    named = [name for name in getattr(encoder, "_no_split_modules", None) or [] if name in present]
    if named:
        return named
    layers = {type(module).__name__ for module in encoder.modules() if isinstance(module, GradientCheckpointingLayer)}
    return sorted(layers) or sorted(
        {type(layer).__name__ for module in encoder.modules() if isinstance(module, nn.ModuleList) for layer in module}
    )


class _RelativePositionBias(nn.Module):
    """The position bias of BEiT and Data2Vec on non-square grids, where transformers swaps rows and columns."""

    def forward(
        self, window_size: tuple[int, int], interpolate_pos_encoding: bool = False, dim_size: int | None = None
    ) -> torch.Tensor:
        """The bias (1, heads, N, N) for a grid of tokens (h, w)."""
        table: Any = self.relative_position_bias_table
        rows, columns = (2 * side - 1 for side in self.window_size)  # type: ignore[union-attr]
        if tuple(window_size) != tuple(self.window_size):  # type: ignore[arg-type]
            positions, others = table[: rows * columns], table[rows * columns :]
            positions = positions.view(1, rows, columns, -1).permute(0, 3, 1, 2)
            size = (2 * window_size[0] - 1, 2 * window_size[1] - 1)
            positions = F.interpolate(positions, size=size, mode="bilinear").flatten(2)[0].T
            table = torch.cat([positions, others])
        index = self.generate_relative_position_index(window_size).to(table.device)  # type: ignore[operator]
        return F.embedding(index, table).permute(2, 0, 1)[None].contiguous()


class BeitBias(_RelativePositionBias, BeitRelativePositionBias):
    """See `_RelativePositionBias`."""


class Data2VecVisionBias(_RelativePositionBias, Data2VecVisionRelativePositionBias):
    """See `_RelativePositionBias`."""


_BIAS_CLASSES: dict[type, type] = {
    BeitRelativePositionBias: BeitBias,
    Data2VecVisionRelativePositionBias: Data2VecVisionBias,
}


def encode(
    encoder: nn.Module,
    geometry: EncoderGeometry,
    pixel_values: torch.Tensor,
    bool_masked_pos: torch.Tensor | None = None,
    mask_token: torch.Tensor | None = None,
    needed: torch.Tensor | None = None,
    **kwargs,
) -> EncoderOutput:
    """Run an encoder to its feature map.

    Masked pixels are replaced first, so that they cannot reach any encoder, and a NaN among them affects neither
    outputs nor gradients.

    Args:
        encoder: The encoder from `build_encoder`.
        geometry: Its geometry.
        pixel_values: Images of shape (B, C, H, W), padded here with zeros to whole strides.
        bool_masked_pos: Bool mask of shape (B, ceil(H / patch_size), ceil(W / patch_size)), True = masked.
        mask_token: The mask token or patch for encoders that have none of their own.
        needed: Bool tensor of the shape of the feature map without channels: where it has to be complete, for encoders
            that can leave out the rest. Everywhere if None.
        **kwargs: Passed to transformers' encoders, for example `output_attentions`.

    Returns:
        Feature map of shape (B, D, ceil(H / stride), ceil(W / stride)), hidden states and attentions.
    """
    size = (pixel_values.shape[2], pixel_values.shape[3])
    height, width = whole(size, geometry.stride)
    if (height, width) != size:
        pixel_values = F.pad(pixel_values, (0, width - size[1], 0, height - size[0]))
    if bool_masked_pos is not None:
        rows, columns = height // geometry.patch_size, width // geometry.patch_size
        bool_masked_pos = F.pad(
            bool_masked_pos, (0, columns - bool_masked_pos.shape[2], 0, rows - bool_masked_pos.shape[1])
        )
        pixel_values = mask_pixels(pixel_values, bool_masked_pos, mask_token if geometry.route == "pixels" else None)
    if geometry.route == "own":
        with_attentions = bool(kwargs.get("output_attentions"))
        feature_map, hidden_states, *attentions = encoder(pixel_values, bool_masked_pos, with_attentions, needed)
        return EncoderOutput(feature_map, hidden_states, attentions[0] if attentions else None)
    if bool_masked_pos is not None and geometry.route == "native":
        kwargs["bool_masked_pos"] = bool_masked_pos.flatten(1)
    if geometry.route == "tokens":
        patch_embedding: Any = encoder.get_submodule(str(geometry.patch_embedding))
        if _replace_masked not in patch_embedding._forward_hooks.values():  # an adapter has wrapped or replaced it
            patch_embedding.register_forward_hook(_replace_masked)
        patch_embedding.masking = None if bool_masked_pos is None else (bool_masked_pos, mask_token)
        try:
            outputs = run_encoder(encoder, geometry, pixel_values, **kwargs)
        finally:
            patch_embedding.masking = None
    else:
        outputs = run_encoder(encoder, geometry, pixel_values, **kwargs)
    tokens = outputs.last_hidden_state
    grid_size = (height // geometry.stride, width // geometry.stride)
    if geometry.layout == "tokens":
        tokens = tokens[:, geometry.num_prefix_tokens :].transpose(1, 2)
        if tokens.shape[2] != grid_size[0] * grid_size[1]:
            raise ValueError(
                f"The encoder returned {tokens.shape[2]} tokens for images of {height}x{width} px where"
                f" {grid_size[0]}x{grid_size[1]} were expected. Use images of {geometry.image_size}."
            )
        feature_map = tokens.unflatten(2, grid_size)
    else:
        feature_map = tokens if geometry.layout == "channels_first" else tokens.permute(0, 3, 1, 2)
    hidden_states = outputs.get("hidden_states")
    if hidden_states is not None and str(encoder.config.model_type) in SHUFFLING_ENCODERS:
        hidden_states = tuple(state.flatten(1, 2) for state in outputs.reshaped_hidden_states)
    return EncoderOutput(feature_map, hidden_states, outputs.get("attentions"))


def run_encoder(encoder: nn.Module, geometry: EncoderGeometry, pixel_values: torch.Tensor, **kwargs) -> Any:
    """Run a model of transformers with positions for the size of the images.

    Args:
        encoder: The encoder from `build_encoder`.
        geometry: Its geometry.
        pixel_values: Images of shape (B, C, H, W), whose sides are multiples of its stride.
        **kwargs: Passed to the model.

    Returns:
        Its output.

    Raises:
        ValueError: If it cannot encode images of this size.
    """
    height, width = pixel_values.shape[2:]
    # Sizes are compared last: a comparison would fix the size of a program that is traced for any size.
    if not geometry.takes_other_sizes and (height, width) != geometry.image_size:
        raise ValueError(
            f"Images of {height}x{width} px do not fit an encoder that was built for a rectangle of"
            f" {geometry.image_size[0]}x{geometry.image_size[1]} px: it would assume that its positions form a square."
            " Load it for this size with from_pretrained(..., image_size=...)."
        )
    if geometry.can_interpolate:
        kwargs["interpolate_pos_encoding"] = geometry.interpolate or (height, width) != geometry.image_size
    return encoder(pixel_values, **kwargs)


def _replace_masked(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """Forward hook of a patch embedding: the mask token (1, D, 1, 1) replaces the outputs of masked patches."""
    masking = getattr(module, "masking", None)
    if masking is None:
        return output
    bool_masked_pos, mask_token = masking
    return torch.where(bool_masked_pos[:, None], mask_token.to(output.dtype), output)


def mask_pixels(
    pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor, mask_patch: torch.Tensor | None = None
) -> torch.Tensor:
    """Replace masked patches of images (B, C, H, W) by zeros or a patch (1, C, p, p); the mask is (B, H / p, W / p)."""
    batch_size, channels, height, width = pixel_values.shape
    _, rows, columns = bool_masked_pos.shape
    patches = pixel_values.reshape(batch_size, channels, rows, height // rows, columns, width // columns)
    mask = bool_masked_pos.view(batch_size, 1, rows, 1, columns, 1)
    if mask_patch is None:
        patches = patches.masked_fill(mask, 0)
    else:
        patches = torch.where(mask, mask_patch[:, :, None, :, None].to(patches.dtype), patches)
    return patches.reshape(pixel_values.shape)
