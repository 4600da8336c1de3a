"""Builds the encoder that a config names, and runs it to a feature map with the hidden patches hidden."""

import copy
import inspect
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedModel
from transformers import initialization as init

from .configuration_simmim import SimMIMConfig
from .swin import Swin
from .swinv2 import Swinv2


class EncoderOutput(NamedTuple):
    """What every encoder returns: tokens without prefix tokens as a map (B, D, h, w), and hidden states (B, N, D)."""

    feature_map: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None
    attentions: tuple[torch.Tensor, ...] | None


def build_encoder(config: SimMIMConfig, use_mask_token: bool) -> nn.Module:
    """Build the encoder of a config.

    Args:
        config: The SimMIM config.
        use_mask_token: Whether the encoder holds a mask token. Models that never mask are built without one.

    Returns:
        Our own encoder where there is one for the model type, else transformers' model without its pooling layer.

    Raises:
        ValueError: If the encoder cannot hide patches.
    """
    encoder_config = config.encoder_config
    if encoder_config.model_type in ENCODER_CLASSES:
        return ENCODER_CLASSES[encoder_config.model_type](encoder_config, use_mask_token=use_mask_token)
    return _build_transformers_encoder(encoder_config, use_mask_token)


def _build_transformers_encoder(encoder_config: Any, use_mask_token: bool) -> nn.Module:
    """Build a transformers model that takes `bool_masked_pos` itself."""
    name = encoder_config.model_type
    # Looked up by class: going through the mapping imports every model, and some of its entries cannot be imported.
    model_class: Any = MODEL_MAPPING.get(type(encoder_config), None)
    if isinstance(model_class, tuple):
        model_class = model_class[0]
    if model_class is None or "bool_masked_pos" not in inspect.signature(model_class.forward).parameters:
        raise ValueError(
            f"The encoder {name!r} has no mask token of its own, so the pixels under the mask would reach it. Use an"
            " encoder that takes bool_masked_pos: swin, swinv2, vit, deit, beit, dinov2, focalnet."
        )
    options = inspect.signature(model_class.__init__).parameters
    arguments = {}
    if "add_pooling_layer" in options:
        arguments["add_pooling_layer"] = False
    if "use_mask_token" in options:
        arguments["use_mask_token"] = use_mask_token
    elif getattr(encoder_config, "use_mask_token", use_mask_token) != use_mask_token:
        # Otherwise encoder and model share one config, so that what is set in it later reaches both.
        encoder_config = copy.deepcopy(encoder_config)
        encoder_config.use_mask_token = use_mask_token
    encoder = model_class._from_config(encoder_config, **arguments)
    has_mask_token = any(key.endswith("mask_token") for key, _ in encoder.named_parameters())
    if use_mask_token and not has_mask_token:
        raise ValueError(f"The encoder {name!r} was built without a mask token and cannot hide patches.")
    return encoder


def init_tokens(encoder: nn.Module, std: float) -> None:
    """Draw the mask and class token of a transformers encoder from a truncated normal.

    transformers starts them at zero. Behind a LayerNorm a zero token multiplies the gradient by 1 / sqrt(eps), and
    clipping then scales the gradient of everything else down.

    Args:
        encoder: What `build_encoder` returned.
        std: Standard deviation.

    Source: `VisionTransformer.__init__` and `VisionTransformerForSimMIM.__init__` of microsoft/SimMIM.
    """
    if isinstance(encoder, PreTrainedModel):
        for name, parameter in encoder.named_parameters():
            if name.split(".")[-1] in ("mask_token", "cls_token"):
                init.trunc_normal_(parameter, std=std)


def encode(
    encoder: nn.Module,
    config: SimMIMConfig,
    pixel_values: torch.Tensor,
    bool_masked_pos: torch.Tensor | None = None,
    **kwargs,
) -> EncoderOutput:
    """Run an encoder to its feature map.

    The pixels under the mask are set to zero first, so that nothing of them can reach an encoder by any way, and a NaN
    there harms neither outputs nor gradients.

    Args:
        encoder: What `build_encoder` returned for `config`.
        config: The SimMIM config.
        pixel_values: Images of shape (B, C, H, W).
        bool_masked_pos: Bool mask of shape (B, h, w) on the patch grid, True = masked.
        **kwargs: Passed to transformers' encoders, for example `output_attentions`.

    Returns:
        Feature map of shape (B, D, H / stride, W / stride), hidden states and attentions.
    """
    if bool_masked_pos is not None:
        pixel_values = hide_pixels(pixel_values, bool_masked_pos)
    if isinstance(encoder, Swin):
        feature_map, hidden_states = encoder(pixel_values, bool_masked_pos)
        return EncoderOutput(feature_map, hidden_states, None)
    if bool_masked_pos is not None:
        kwargs["bool_masked_pos"] = bool_masked_pos.flatten(1)
    outputs = encoder(pixel_values, **kwargs)
    tokens = outputs.last_hidden_state  # B, prefix + N, D
    height, width = (side // config.encoder_stride for side in pixel_values.shape[2:])
    num_prefix_tokens = tokens.shape[1] - height * width
    if num_prefix_tokens < 0:
        raise ValueError(
            f"The encoder {config.encoder_config.model_type!r} returned {tokens.shape[1]} tokens where its stride of"
            f" {config.encoder_stride} px gives a feature map of {height}x{width}. It is not supported."
        )
    feature_map = tokens[:, num_prefix_tokens:].transpose(1, 2).unflatten(2, (height, width))
    return EncoderOutput(feature_map, outputs.get("hidden_states"), outputs.get("attentions"))


def hide_pixels(pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) with zeros in the patches that a mask (B, h, w) hides."""
    batch_size, channels, height, width = pixel_values.shape
    _, rows, columns = bool_masked_pos.shape
    patches = pixel_values.reshape(batch_size, channels, rows, height // rows, columns, width // columns)
    return patches.masked_fill(bool_masked_pos.view(batch_size, 1, rows, 1, columns, 1), 0).view(pixel_values.shape)


ENCODER_CLASSES: dict[str, type[nn.Module]] = {
    "swin": Swin,
    "swinv2": Swinv2,
}
