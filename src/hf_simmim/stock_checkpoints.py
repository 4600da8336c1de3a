"""Checkpoints of transformers' own models: read into ours, and written from ours."""

import contextlib
import copy
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING, AutoConfig, PreTrainedModel
from transformers.utils import logging

from .configuration_simmim import SimMIMConfig
from .encoder_geometry import EncoderGeometry, transformers_class
from .encoders import encode
from .swin import stage_grids

# What stock checkpoints have or lack beside the encoder's features: poolers, heads, tokens for masking.
_OPTIONAL = {"pooler", "mask_token", "head"}


def is_optional(name: str) -> bool:
    """Whether an encoder's features do not depend on a parameter of this name."""
    return not _OPTIONAL.isdisjoint(name.split("."))


def load_stock(
    pretrained_model_name_or_path: str | Path, **kwargs: Any
) -> tuple[Any, dict[str, torch.Tensor], dict[str, torch.Tensor], list[str]]:
    """Load a checkpoint of a vision model of transformers.

    Args:
        pretrained_model_name_or_path: Folder or name on the Hub.
        **kwargs: Passed to `from_pretrained`: `revision`, `token`, `cache_dir` and the like.

    Returns:
        The encoder's config, its weights under the names of our encoders, the weights of a prediction head of one
        linear layer, if there is one, and the names of what the checkpoint holds beside them.

    Raises:
        ValueError: If the checkpoint holds no vision model, or not all of its weights.
    """
    name = str(pretrained_model_name_or_path)
    config: Any = AutoConfig.from_pretrained(name, **kwargs)
    if config.model_type == "simmim":
        raise ValueError(f"{name} is a SimMIM checkpoint already. Load it with from_pretrained.")
    architecture = (config.architectures or [""])[0]
    if getattr(config, "vision_config", None) is not None and transformers_class(config.vision_config) is not None:
        config = config.vision_config
    model_class: Any = transformers_class(config)
    if architecture.endswith("ForMaskedImageModeling"):
        model_class = MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING.get(type(config), model_class)  # type: ignore[arg-type]
    if model_class is None:
        raise ValueError(f"{name} holds a {config.model_type!r} model, which transformers cannot load as an encoder.")
    with _quiet():
        model, info = model_class.from_pretrained(name, config=config, output_loading_info=True, **kwargs)
    missing = sorted(key for key in info["missing_keys"] if not is_optional(key) and not key.startswith("decoder"))
    if missing:
        raise ValueError(
            f"{name} lacks {len(missing)} weights of the {config.model_type!r} encoder that its config describes, such"
            f" as {', '.join(missing[:3])}. It would start at random there: use the checkpoint of a whole model."
        )
    # Not of a bare model: one of them holds an inner model under its own prefix.
    base = model if isinstance(model, transformers_class(config) or ()) else model.base_model
    decoder = getattr(model, "decoder", None)
    is_linear = isinstance(decoder, nn.Sequential) and getattr(decoder[0], "kernel_size", None) == (1, 1)
    is_whole = not any(key.startswith("decoder") for key in info["missing_keys"])
    head = dict(decoder[0].state_dict()) if is_linear and is_whole else {}  # type: ignore[index]
    beside = [key for key, _ in model.named_parameters() if base is not model and not _is_within(key, model, decoder)]
    # What the file does not hold, such as a pooler, is random here.
    absent = {key.removeprefix(f"{model.base_model_prefix}.") for key in info["missing_keys"]}
    weights = {key: tensor for key, tensor in names_on_disk(base).items() if key not in absent}
    return model.config, weights, head, sorted({*info["unexpected_keys"], *beside} - info["missing_keys"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from reporting what is reported by us, in the terms of the model that is wanted."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _is_within(key: str, model: PreTrainedModel, decoder: nn.Module | None) -> bool:
    prefixes = [f"{model.base_model_prefix}."] + (["decoder."] if decoder is not None else [])
    return key.startswith(tuple(prefixes))


def names_on_disk(encoder: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Weights of a stock model under the names of our encoders.

    Our own Swins have the names of transformers' checkpoints, which for some models are not those in memory.
    """
    from .encoders import ENCODER_CLASSES

    if encoder.config.model_type not in ENCODER_CLASSES:
        return dict(encoder.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        encoder.save_pretrained(folder, max_shard_size="1000GB")
        return load_file(Path(folder, "model.safetensors"))


def export_encoder(
    encoder: nn.Module, config: SimMIMConfig, geometry: EncoderGeometry, save_directory: str | Path
) -> list[str]:
    """Write an encoder as a checkpoint of transformers' own model, and prove that it computes the same there.

    Args:
        encoder: What `build_encoder` returned.
        config: The SimMIM config.
        geometry: Its geometry.
        save_directory: Folder to write to.

    Returns:
        Names of the encoder's parameters that stock models do not have.

    Raises:
        ValueError: If stock transformers cannot represent the encoder; nothing is written then.
    """
    encoder_config: Any = copy.deepcopy(encoder.config)
    model_class: Any = transformers_class(encoder_config)
    if config.image_size != geometry.image_size:
        height, width = geometry.image_size
        raise ValueError(
            _cannot(
                encoder_config,
                f"images of {config.image_size[0]}x{config.image_size[1]} px are no multiple of its stride of"
                f" {geometry.stride} px, and only ours pads them (from_pretrained(..., image_size=({height}, {width}))"
                " goes to the next that is)",
            )
        )
    _refuse_clamped_windows(encoder_config, geometry)
    state_dict = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(encoder, PreTrainedModel):
            with torch.random.fork_rng(devices=[]):
                stock = model_class._from_config(encoder_config, dtype=encoder.dtype)
            result = stock.load_state_dict(state_dict, strict=False)
            missing, left_out = list(result.missing_keys), list(result.unexpected_keys)
            stock.save_pretrained(folder)
        else:
            left_out = [name for name in state_dict if name.endswith("mask_token")]
            for name in left_out:
                del state_dict[name]
            save_file(state_dict, Path(folder, "model.safetensors"), metadata={"format": "pt"})
            encoder_config.architectures = [model_class.__name__]
            encoder_config.dtype = next(encoder.parameters()).dtype
            encoder_config.save_pretrained(folder)
            missing = []
        missing = [name for name in missing if not is_optional(name)]
        if missing or any(not is_optional(name) for name in left_out):
            raise ValueError(_cannot(encoder_config, f"its weights differ: {(missing or left_out)[:3]}"))
        _check_same_features(encoder, model_class, folder, geometry, encoder_config)
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        for path in Path(folder).iterdir():
            shutil.copy(path, save_directory)
    return left_out


def _cannot(encoder_config: Any, reason: str) -> str:
    return (
        f"Stock transformers cannot represent this {encoder_config.model_type!r} encoder: {reason}. Nothing was"
        " written. Use save_pretrained and load it with hf_simmim."
    )


def _refuse_clamped_windows(encoder_config: Any, geometry: EncoderGeometry) -> None:
    """Stock Swin has tables for the window of the config in every stage, and fails where a stage is smaller."""
    if encoder_config.model_type != "swin":
        return
    window = encoder_config.window_size
    for stage, (rows, columns) in enumerate(stage_grids(encoder_config)):
        if min(rows, columns) < window:
            needed = window * geometry.stride
            raise ValueError(
                _cannot(
                    encoder_config,
                    f"its window_size={window} is larger than the grid of {rows}x{columns} tokens of stage {stage + 1}"
                    f" at {geometry.image_size[0]}x{geometry.image_size[1]} px, and only ours shrinks the window there"
                    f" (image_size={needed} needs no shrinking)",
                )
            )


@torch.no_grad()
def _check_same_features(
    encoder: nn.Module, model_class: Any, folder: str, geometry: EncoderGeometry, encoder_config: Any
) -> None:
    parameter = next(encoder.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, getattr(encoder_config, "num_channels", 3), *geometry.image_size, generator=generator)
    images = images.to(parameter.device, parameter.dtype)
    modes = {module: module.training for module in encoder.modules()}
    try:
        stock = model_class.from_pretrained(folder, dtype=parameter.dtype).to(parameter.device).eval()
        expected = encode(encoder.eval(), geometry, images).feature_map.float()
        # A stock Swin returns tokens, and hides nothing on its own.
        stock_geometry = geometry._replace(layout="tokens", route="pixels") if geometry.route == "own" else geometry
        features = encode(stock, stock_geometry._replace(route="pixels"), images).feature_map.float()
    except (RuntimeError, ValueError) as error:
        raise ValueError(_cannot(encoder_config, f"there it fails with: {' '.join(str(error).split())}")) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    difference = ((features - expected).norm() / expected.norm()).item()
    if not difference < (1e-4 if parameter.dtype == torch.float32 else 5e-2):
        raise ValueError(_cannot(encoder_config, f"there its features differ by {difference:.1e} of their norm"))


def describe_loading(name: str, num_loaded: int, fresh: list[str], left_out: list[str]) -> str:
    """What was and was not loaded, in one paragraph."""
    parts = [f"{name}: {num_loaded} tensors loaded."]
    if fresh:
        parts.append(f"Freshly initialised: {_shorten(fresh)}.")
    if left_out:
        parts.append(f"In the checkpoint and left out: {_shorten(left_out)}.")
    return " ".join(parts)


def _shorten(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
