"""Low-rank adapters (LoRA) by peft: trained instead of the encoder, and merged into the weights that are saved.

Every checkpoint holds weights that load without peft, and the adapters in `adapters.safetensors` to resume with.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import SAFE_WEIGHTS_NAME

from ...model.modeling_simmim import SimMIMForMaskedImageModeling
from ..trainers import SimMIMTrainer

ADAPTERS_FILE = "adapters.safetensors"
# Parts of the names that peft gives to parameters.
_ADAPTER, _BASE = ".lora_", ".base_layer."


def add_adapters(model: SimMIMForMaskedImageModeling, rank: int) -> None:
    """Freeze the encoder, and add adapters to all of its linear layers; they change nothing until they are trained.

    Args:
        model: The model, which is changed in place; its head and mask token are trained, too.
        rank: Rank of the adapters, which are scaled by 1.

    Raises:
        ValueError: If peft is not installed, or the encoder has no linear layers.

    Source: LoRA (Hu et al., arXiv 2106.09685).
    """
    if importlib.util.find_spec("peft") is None:
        raise ValueError(f"lora={rank} needs peft. Run: pip install 'hf-simmim[peft]', or use --train_layers.")
    peft: Any = importlib.import_module("peft")
    prefix = "simmim.encoder"
    names = [name for name, part in model.get_submodule(prefix).named_modules() if type(part) is nn.Linear]
    if not names:
        kind = model.config.encoder_config.model_type
        raise ValueError(f"lora={rank}: the encoder {kind!r} has no linear layers. Use --train_layers.")
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=[f"{prefix}.{name}" for name in names])
    # Some encoders hold a mask token that is not used.
    tokens = {name for name, part in model.named_parameters() if part.requires_grad and name.endswith("mask_token")}
    peft.inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = _ADAPTER in name or not name.startswith(prefix) or name in tokens


def _adapted(model: nn.Module) -> dict[str, Any]:
    """Modules with adapters by name."""
    return {name: part for name, part in model.named_modules() if hasattr(part, "get_base_layer")}


@torch.no_grad()
def merged_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """State of a model with its adapters merged into the weights, by the names of a model without them."""
    state = {name.replace(_BASE, "."): tensor for name, tensor in model.state_dict().items() if _ADAPTER not in name}
    for name, part in _adapted(model).items():
        state[f"{name}.weight"] = part.get_base_layer().weight + part.get_delta_weight("default")
    return state


def merge_adapters(model: nn.Module) -> None:
    """Merge the adapters of a model into its weights, and remove them.

    Args:
        model: The model, which is changed in place.
    """
    state = merged_weights(model)
    for name, part in _adapted(model).items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, part.get_base_layer())
    model.load_state_dict(state)
    model.requires_grad_(True)


class AdapterTrainer(SimMIMTrainer):
    """`SimMIMTrainer` of a model with adapters, whose checkpoints hold merged weights and the adapters.

    A resumed run takes the frozen weights from where it began, and the others from its checkpoint.

    Args:
        *args: Passed to `SimMIMTrainer`.
        **kwargs: Passed to `SimMIMTrainer`.

    Raises:
        ValueError: If FSDP or DeepSpeed would shard the weights.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("lora merges whole weights, but FSDP or DeepSpeed shards them. Train without these.")

    def plain_weights(self) -> dict[str, torch.Tensor]:
        """Weights that load without adapters, for whatever is saved of the model."""
        return merged_weights(self.model)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        adapters = {name: tensor for name, tensor in self.model.state_dict().items() if _ADAPTER in name}
        if adapters:
            state_dict = self.plain_weights()
        super()._save(output_dir, state_dict=state_dict)
        if adapters:
            save_file(adapters, Path(output_dir or str(self.args.output_dir)) / ADAPTERS_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        trained: Any = self.model if model is None else model
        others = {name for name in trained.state_dict() if _BASE not in name and _ADAPTER not in name}
        saved = {name: tensor for name, tensor in load_file(folder / SAFE_WEIGHTS_NAME).items() if name in others}
        trained.load_state_dict(saved | load_file(folder / ADAPTERS_FILE), strict=False)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def save_final_model(self) -> None:
        """Merge the adapters, and save the complete model as the base class does; all processes must call it."""
        merge_adapters(self.model)
        super().save_final_model()
