"""The small Swin and SwinV2 of the authors' code whose numbers are in `fixtures/`."""

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import SwinConfig, Swinv2Config

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling

FIXTURES = Path(__file__).parent / "fixtures"

# Authors' name -> ours, applied in order. `attn.qkv` is split in three as well.
RENAMES = (
    ("decoder.0.", "head.projection."),
    ("encoder.patch_embed.proj.", "simmim.encoder.embeddings.patch_embeddings.projection."),
    ("encoder.patch_embed.norm.", "simmim.encoder.embeddings.norm."),
    ("encoder.mask_token", "simmim.encoder.embeddings.mask_token"),
    ("encoder.norm.", "simmim.encoder.layernorm."),
    ("encoder.layers.", "simmim.encoder.encoder.layers."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".attn.proj.", ".attention.output.dense."),
    (".attn.relative_position_bias_table", ".attention.self.relative_position_bias_table"),
    (".attn.q_bias", ".attention.self.query.bias"),
    (".attn.v_bias", ".attention.self.value.bias"),
    (".attn.logit_scale", ".attention.self.logit_scale"),
    (".attn.cpb_mlp.", ".attention.self.continuous_position_bias_mlp."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)


def our_names(name: str) -> list[str]:
    """Our parameters that hold what one of the authors' holds, in order."""
    for old, new in RENAMES:
        name = name.replace(old, new) if not old.startswith("encoder.") or name.startswith(old) else name
    if ".attn.qkv." in name:
        return [name.replace(".attn.qkv.", f".attention.self.{part}.") for part in ("query", "key", "value")]
    return [name]


GOLDEN_CONFIGS = {
    "swin": SwinConfig(
        image_size=96,
        patch_size=4,
        window_size=3,
        embed_dim=24,
        depths=[2, 2, 2, 2],
        num_heads=[1, 2, 4, 8],
        drop_path_rate=0.0,
    ),
    "swinv2": Swinv2Config(
        image_size=128,
        patch_size=4,
        window_size=4,
        embed_dim=24,
        depths=[2, 2, 2, 1],
        num_heads=[1, 2, 4, 8],
        drop_path_rate=0.0,
    ),
}


def golden_model(encoder: str = "swin") -> SimMIMForMaskedImageModeling:
    """Our model with the authors' weights; every one of them is used and none is missing."""
    state_dict = {}
    for name, tensor in load_file(FIXTURES / f"{encoder}_pretrain_weights.safetensors").items():
        names = our_names(name)
        state_dict.update(zip(names, tensor.chunk(len(names)), strict=True))
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=copy.deepcopy(GOLDEN_CONFIGS[encoder])))
    model.load_state_dict(state_dict, strict=True)
    return model


def golden_values(encoder: str = "swin") -> dict[str, torch.Tensor]:
    """What the authors' code computed."""
    return load_file(FIXTURES / f"{encoder}_pretrain.safetensors")
