"""The small models of the authors' code whose numbers are in `fixtures/`, as the converter brings them to us."""

from typing import Any

import torch
from paths import FIXTURES
from safetensors.torch import load_file

from hf_simmim import SimMIMForMaskedImageModeling
from hf_simmim.checkpoints import pth_names
from hf_simmim.checkpoints.convert import convert_checkpoint

GOLDEN = ("swin", "swinv2", "vit")


def golden_model(encoder: str = "swin") -> SimMIMForMaskedImageModeling:
    """Our model with the authors' weights; every one of them is used and none is missing."""
    model: Any = convert_checkpoint(FIXTURES / f"{encoder}_pretrain.pth").model
    return model


def golden_values(encoder: str = "swin") -> dict[str, torch.Tensor]:
    """What the authors' code computed."""
    return load_file(FIXTURES / f"{encoder}_pretrain.safetensors")


def our_names(name: str, encoder: str = "swin") -> list[str]:
    """Our parameters that correspond to one of the authors', in order."""
    return pth_names.our_names(name.removeprefix("encoder."), {"vit": "beit"}.get(encoder, encoder))
