"""Tiny models that the tests share."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import (
    BeitConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    Data2VecVisionConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    FocalNetConfig,
    HieraConfig,
    IJepaConfig,
    PvtV2Config,
    ResNetConfig,
    SegformerConfig,
    SiglipVisionConfig,
    SwinConfig,
    Swinv2Config,
    ViTConfig,
    ViTMSNConfig,
)

from hf_simmim import SimMIMConfig
from hf_simmim.model.masking import random_mask

# Three stages on a grid of 16 x 16: two with shifted windows, then a single window.
SWIN_SIZES: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2, 1],
    "num_heads": [2, 2, 4],
    "window_size": 4,
    "drop_path_rate": 0.0,
}


def swin_config(**kwargs: Any) -> SwinConfig:
    """The paper's Swin, small."""
    return SwinConfig(**(SWIN_SIZES | kwargs))


def swinv2_config(**kwargs: Any) -> Swinv2Config:
    """SwinV2 of the geometry of `swin_config`."""
    return Swinv2Config(**(SWIN_SIZES | kwargs))


def beit_config(**kwargs: Any) -> BeitConfig:
    """The paper's ViT, small."""
    defaults: dict[str, Any] = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "use_mask_token": True,
        "use_shared_relative_position_bias": True,
        "use_mean_pooling": False,
        "drop_path_rate": 0.0,
    }
    return BeitConfig(**(defaults | kwargs))


VIT_SIZES: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def vit_config(**kwargs: Any) -> ViTConfig:
    """A plain ViT with absolute positions and a class token."""
    return ViTConfig(**(VIT_SIZES | kwargs))


def plain_config(config_class: type) -> Callable[..., Any]:
    """Another ViT of the geometry of `vit_config`."""
    return partial(config_class, **VIT_SIZES)


PYRAMID: dict[str, Any] = {"image_size": 64, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}

# At least one for each way of hiding patches, and for each shape that an output comes in.
ENCODER_CONFIGS = {
    "swin": swin_config,
    "swinv2": swinv2_config,
    "beit": beit_config,
    "vit": vit_config,
    "deit": plain_config(DeiTConfig),
    "dinov2": plain_config(Dinov2Config),
    "focalnet": partial(FocalNetConfig, image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], use_mask_token=True),
    "data2vec-vision": partial(plain_config(Data2VecVisionConfig), use_relative_position_bias=True),
    "dinov2_with_registers": plain_config(Dinov2WithRegistersConfig),
    "dinov3_vit": plain_config(DINOv3ViTConfig),
    "ijepa": plain_config(IJepaConfig),
    "vit_msn": plain_config(ViTMSNConfig),
    "siglip_vision_model": plain_config(SiglipVisionConfig),
    "clip_vision_model": plain_config(CLIPVisionConfig),
    "convnext": partial(ConvNextConfig, **PYRAMID),
    "resnet": partial(ResNetConfig, embedding_size=8, **PYRAMID),
    "hiera": partial(
        HieraConfig, image_size=[64, 64], embed_dim=8, num_heads=[1, 1, 2, 2], depths=[1, 1, 1, 1], num_layers=4
    ),
    "segformer": partial(SegformerConfig, **PYRAMID),
    "pvt_v2": partial(PvtV2Config, num_attention_heads=[1, 2, 3, 4], **PYRAMID),
}


def batch(config: SimMIMConfig, batch_size: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images and masks of a config's geometry, in units of one step of the feature map."""
    generator = torch.Generator().manual_seed(seed)
    pixel_values = torch.randn(batch_size, config.num_channels, *config.image_size, generator=generator)
    unit_size = config.encoder_stride // config.patch_size
    mask = random_mask(config.grid_size, 0.6, batch_size, unit_size=unit_size, generator=generator)
    return pixel_values, mask
