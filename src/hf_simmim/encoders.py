"""Builds the encoder that a config names, and runs it to a feature map with the hidden patches hidden."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.beit.modeling_beit import BeitRelativePositionBias
from transformers.models.data2vec.modeling_data2vec_vision import Data2VecVisionRelativePositionBias

from .configuration_simmim import SimMIMConfig
from .encoder_geometry import (
    SHUFFLING_ENCODERS,
    EncoderGeometry,
    encoder_geometry,
    make_transformers_encoder,
    whole,
)
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
        use_mask_token: Whether the encoder holds a mask token, if it has one of its own. Models that never mask are
            built without one.

    Returns:
        Our own encoder where there is one for the model type, else transformers' model without its pooling layer.

    Raises:
        ValueError: If the encoder cannot be used, with the reason.
    """
    encoder_config: Any = config.encoder_config
    if encoder_config.model_type in ENCODER_CLASSES:
        return ENCODER_CLASSES[encoder_config.model_type](encoder_config, use_mask_token=use_mask_token)
    geometry = encoder_geometry(encoder_config)
    encoder = make_transformers_encoder(encoder_config, geometry.built_size, use_mask_token)
    has_mask_token = any(name.endswith("mask_token") for name, _ in encoder.named_parameters())
    if geometry.route == "native" and use_mask_token and not has_mask_token:
        raise ValueError(f"The encoder {encoder_config.model_type!r} was built without a mask token.")
    if geometry.route == "tokens":
        encoder.get_submodule(str(geometry.patch_embedding)).register_forward_hook(_replace_hidden)
    for module in encoder.modules():
        if isinstance(module, PreTrainedModel):
            module.is_custom_code = _has_names_of_its_own  # type: ignore[method-assign]
        if type(module) in _BIAS_CLASSES:
            module.__class__ = _BIAS_CLASSES[type(module)]
    return encoder


def freeze_unused(encoder: nn.Module, geometry: EncoderGeometry, use_mask_token: bool) -> None:
    """Freeze the parameters that get no gradient: DDP waits for every one that asks for one.

    Loading a checkpoint makes every parameter trainable again, so this comes after it, too.

    Args:
        encoder: What `build_encoder` returned.
        geometry: Its geometry.
        use_mask_token: Whether the model masks. Some encoders hold a mask token in any case.
    """
    for name, parameter in encoder.named_parameters():
        if name in geometry.unused or (not use_mask_token and name.endswith("mask_token")):
            parameter.requires_grad_(False)


def _has_names_of_its_own() -> bool:
    """Tells transformers not to rename weights for an encoder on loading, as it does for stock checkpoints.

    Ours have the names that the model has in memory, which some of its patterns match by accident.
    """
    return True


def layers_to_wrap(encoder: nn.Module) -> list[str]:
    """Names of the classes of an encoder's layers, which FSDP wraps and which stay on one device."""
    present = {type(module).__name__ for module in encoder.modules()}
    named = [name for name in getattr(encoder, "_no_split_modules", None) or [] if name in present]
    if named:
        return named
    layers = {type(module).__name__ for module in encoder.modules() if isinstance(module, GradientCheckpointingLayer)}
    return sorted(layers) or sorted(
        {type(layer).__name__ for module in encoder.modules() if isinstance(module, nn.ModuleList) for layer in module}
    )


class _RelativePositionBias(nn.Module):
    """The bias of BEiT and its like on grids that are no squares, where transformers takes rows for columns."""

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


def init_as_released(encoder: nn.Module, mask_token: nn.Parameter | None, std: float) -> None:
    """Draw what transformers leaves at zero, or starts in another way than the paper's ViT.

    transformers starts mask and class tokens at zero. Behind a LayerNorm a zero token multiplies the gradient by
    1 / sqrt(eps), and clipping then scales the gradient of everything else down.

    Args:
        encoder: What `build_encoder` returned.
        mask_token: The mask token or patch that the model holds for it, if any.
        std: Standard deviation.

    Source: `VisionTransformer.fix_init_weight` and `VisionTransformerForSimMIM.__init__` of microsoft/SimMIM.
    """
    if mask_token is not None:
        init.trunc_normal_(mask_token, std=std)
    if not isinstance(encoder, PreTrainedModel):
        return
    for name, parameter in encoder.named_parameters():
        if name.split(".")[-1] in ("mask_token", "cls_token"):
            init.trunc_normal_(parameter, std=std)
    if encoder.config.model_type == "beit":
        for index, layer in enumerate(encoder.layers):  # type: ignore[arg-type]
            for projection in (layer.attention.o_proj, layer.mlp.fc2):
                # The released code divides what it drew; this is the same distribution, however often it is drawn.
                init.trunc_normal_(projection.weight, std=std / (2 * (index + 1)) ** 0.5)


def encode(
    encoder: nn.Module,
    geometry: EncoderGeometry,
    pixel_values: torch.Tensor,
    bool_masked_pos: torch.Tensor | None = None,
    mask_token: torch.Tensor | None = None,
    **kwargs,
) -> EncoderOutput:
    """Run an encoder to its feature map.

    The pixels under the mask are replaced first, so that nothing of them can reach an encoder by any way, and a NaN
    there harms neither outputs nor gradients.

    Args:
        encoder: What `build_encoder` returned.
        geometry: Its geometry.
        pixel_values: Images of shape (B, C, H, W), padded here with zeros to whole strides.
        bool_masked_pos: Bool mask of shape (B, ceil(H / patch_size), ceil(W / patch_size)), True = masked.
        mask_token: The mask token or patch that is held for encoders which have none.
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
        pixel_values = hide_pixels(pixel_values, bool_masked_pos, mask_token if geometry.route == "pixels" else None)
    if geometry.route == "own":
        feature_map, hidden_states = encoder(pixel_values, bool_masked_pos)
        return EncoderOutput(feature_map, hidden_states, None)
    if bool_masked_pos is not None and geometry.route == "native":
        kwargs["bool_masked_pos"] = bool_masked_pos.flatten(1)
    # Sizes are compared last: where a program is traced for any size, a comparison would fix it to one.
    if not geometry.takes_other_sizes and (height, width) != geometry.image_size:
        raise ValueError(
            f"Images of {height}x{width} px do not fit an encoder that was built for a rectangle of"
            f" {geometry.image_size[0]}x{geometry.image_size[1]} px: it would take its positions for those of a square."
            " Load it with from_pretrained(..., image_size=...) for them."
        )
    if geometry.can_interpolate:
        kwargs["interpolate_pos_encoding"] = geometry.interpolate or (height, width) != geometry.image_size
    if geometry.route == "tokens":
        patch_embedding: Any = encoder.get_submodule(str(geometry.patch_embedding))
        patch_embedding.hidden = None if bool_masked_pos is None else (bool_masked_pos, mask_token)
        try:
            outputs = encoder(pixel_values, **kwargs)
        finally:
            patch_embedding.hidden = None
    else:
        outputs = encoder(pixel_values, **kwargs)
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


def _replace_hidden(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """Forward hook of a patch embedding: the mask token (1, D, 1, 1) where patches are hidden."""
    hidden = getattr(module, "hidden", None)
    if hidden is None:
        return output
    bool_masked_pos, mask_token = hidden
    return torch.where(bool_masked_pos[:, None], mask_token.to(output.dtype), output)


def hide_pixels(
    pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor, mask_patch: torch.Tensor | None = None
) -> torch.Tensor:
    """Images (B, C, H, W) with zeros, or a mask patch (1, C, p, p), where a mask (B, H / p, W / p) hides patches."""
    batch_size, channels, height, width = pixel_values.shape
    _, rows, columns = bool_masked_pos.shape
    patches = pixel_values.reshape(batch_size, channels, rows, height // rows, columns, width // columns)
    mask = bool_masked_pos.view(batch_size, 1, rows, 1, columns, 1)
    if mask_patch is None:
        patches = patches.masked_fill(mask, 0)
    else:
        patches = torch.where(mask, mask_patch[:, :, None, :, None].to(patches.dtype), patches)
    return patches.reshape(pixel_values.shape)


ENCODER_CLASSES: dict[str, type[nn.Module]] = {
    "swin": Swin,
    "swinv2": Swinv2,
}
