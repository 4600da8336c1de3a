"""Our models and those of others for masked image modeling, with the same weights, images and masks."""

import contextlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    PreTrainedConfig,
    SwinConfig,
    SwinForMaskedImageModeling,
    Swinv2Config,
    Swinv2ForMaskedImageModeling,
    ViTConfig,
    ViTForMaskedImageModeling,
)

from hf_simmim import ENCODER_PRESETS, SimMIMConfig, SimMIMForMaskedImageModeling
from hf_simmim.model.masking import random_mask
from hf_simmim.training.acceleration import OF_A_STEP, faster_kernels

VIT = {"image_size": 224, "patch_size": 16, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
# Encoder: class of its config, its settings, transformers' model, the name of its encoder, and its stride in pixels.
ENCODERS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any], Any, str, int]] = {
    "swin-tiny": (SwinConfig, ENCODER_PRESETS["swin-tiny"], SwinForMaskedImageModeling, "swin", 32),
    "swin-base": (SwinConfig, ENCODER_PRESETS["swin-base"], SwinForMaskedImageModeling, "swin", 32),
    "swinv2-tiny": (Swinv2Config, ENCODER_PRESETS["swin-tiny"], Swinv2ForMaskedImageModeling, "swinv2", 32),
    "swinv2-base": (Swinv2Config, ENCODER_PRESETS["swin-base"], Swinv2ForMaskedImageModeling, "swinv2", 32),
    "vit-base": (ViTConfig, VIT, ViTForMaskedImageModeling, "vit", 16),
}
Inputs = dict[str, torch.Tensor]


def make_config(encoder: str) -> Any:
    """transformers' config of an encoder, without stochastic depth, which not all peers apply to the same branches."""
    config_class, settings, _, model_type, stride = ENCODERS[encoder]
    return config_class.from_dict(
        settings | {"model_type": model_type, "encoder_stride": stride, "drop_path_rate": 0.0}
    )


def build_ours(encoder: str) -> SimMIMForMaskedImageModeling:
    """Our model, away from the initial zeros and ones."""
    torch.manual_seed(0)
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=make_config(encoder)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def build_transformers(encoder: str, attention: str) -> nn.Module:
    """transformers' model with the weights of ours.

    Args:
        encoder: A key of `ENCODERS`.
        attention: `"sdpa"` or `"eager"`.

    Returns:
        The model.
    """
    _, _, peer_class, name, _ = ENCODERS[encoder]
    # Loading converts names of checkpoints, which are ours, to those of transformers' modules.
    weights = {key: tensor.clone() for key, tensor in build_ours(encoder).state_dict().items()}
    for old, new in (("simmim.encoder.", f"{name}."), ("head.projection.", "decoder.0.")):
        weights = {key.replace(old, new): tensor for key, tensor in weights.items()}
    config = make_config(encoder)
    return peer_class.from_pretrained(None, config=config, state_dict=weights, attn_implementation=attention)


def build_official(encoder: str, folder: Path) -> nn.Module:
    """The authors' Swin from a clone of microsoft/SimMIM, with weights of its own.

    It imports three functions of timm, which cannot be installed everywhere: they stand here in its place.

    Args:
        encoder: `"swin-tiny"` or `"swin-base"`.
        folder: The clone.

    Returns:
        The model, which returns the loss.
    """
    layers = types.ModuleType("timm.models.layers")
    layers.DropPath = nn.Identity  # type: ignore[attr-defined]
    layers.to_2tuple = lambda value: value if isinstance(value, tuple) else (value, value)  # type: ignore[attr-defined]
    layers.trunc_normal_ = nn.init.trunc_normal_  # type: ignore[attr-defined]
    sys.modules |= {
        "timm": types.ModuleType("timm"),
        "timm.models": types.ModuleType("timm.models"),
        "timm.models.layers": layers,
    }
    # Only its models are needed, and the package imports the rest of the repository.
    package = types.ModuleType("official_models")
    package.__path__ = [str(folder / "models")]
    sys.modules["official_models"] = package
    from official_models.simmim import SimMIM, SwinTransformerForSimMIM  # type: ignore[import-not-found]

    config = make_config(encoder)
    swin = SwinTransformerForSimMIM(
        img_size=config.image_size,
        patch_size=config.patch_size,
        num_classes=0,
        embed_dim=config.embed_dim,
        depths=config.depths,
        num_heads=config.num_heads,
        window_size=config.window_size,
        mlp_ratio=config.mlp_ratio,
        drop_path_rate=0.0,
    )
    return SimMIM(swin, 32)


def build_inputs(encoder: str, batch_size: int) -> Inputs:
    """Images (B, 3, H, W) of noise and the paper's masks (B, N): mask patches of 32 px, mask ratio 0.6."""
    config = make_config(encoder)
    size, patch_size = config.image_size, config.patch_size
    generator = torch.Generator().manual_seed(1)
    side = size // patch_size
    mask = random_mask((side, side), 0.6, batch_size, unit_size=32 // patch_size, generator=generator)
    images = torch.randn(batch_size, 3, size, size, generator=generator)
    return {"pixel_values": images, "bool_masked_pos": mask.flatten(1)}


def build_loss(mode: str, encoder: str, inputs: Inputs, official: Path | None) -> tuple[nn.Module, Callable[[], Any]]:
    """Build a model and the function that computes its loss as a training does.

    Args:
        mode: `"ours"`, `"transformers sdpa"`, `"transformers eager"` or `"official"`, maybe with `" compiled"`.
        encoder: A key of `ENCODERS`.
        inputs: The batch; its device is that of the model.
        official: Clone of microsoft/SimMIM.

    Returns:
        The model and the function.
    """
    family = mode.removesuffix(" compiled")
    device = inputs["pixel_values"].device
    if family == "ours":
        model: nn.Module = build_ours(encoder).to(device)
        arguments: dict[str, Any] = {**inputs, **OF_A_STEP}
    elif family == "official":
        if official is None:
            raise SystemExit("Name a clone of https://github.com/microsoft/SimMIM by --official.")
        model = build_official(encoder, official).to(device)
        side = int(inputs["bool_masked_pos"].shape[1] ** 0.5)
        mask = inputs["bool_masked_pos"].view(-1, side, side).float()
        arguments = {"x": inputs["pixel_values"], "mask": mask}
    else:
        model = build_transformers(encoder, family.split()[1]).to(device)
        arguments = dict(inputs)
    model.train()
    if mode.endswith(" compiled"):
        model.compile()

    def run() -> Any:
        with faster_kernels() if family == "ours" else contextlib.nullcontext():
            return model(**arguments)

    return model, run
