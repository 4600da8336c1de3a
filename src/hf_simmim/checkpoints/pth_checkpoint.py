"""Checkpoints of the official implementation and of mmpretrain, with the authors' names without prefixes.

Source: `save_checkpoint` in utils.py of microsoft/SimMIM and microsoft/Swin-Transformer; the runner of mmengine.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from .pth_files import printable
from .pth_names import from_authors, from_mmpretrain
from .pth_settings import Settings, authors_settings, mmpretrain_settings

MAX_SHARING = 4  # times that stored numbers may occur in the weights

SIMMIM, SWIN_TRANSFORMER, MMPRETRAIN = "microsoft/SimMIM", "microsoft/Swin-Transformer", "open-mmlab/mmpretrain"

# Entries of a file besides weights and settings, which no model needs.
STATE_OF_THE_RUN = (
    *("optimizer", "lr_scheduler", "max_accuracy", "epoch", "amp", "scaler", "loss_scaler"),
    *("param_schedulers", "message_hub", "ema_state_dict", "optim_wrapper", "iter"),
)


@dataclass
class OriginalCheckpoint:
    """Contents of a .pth file.

    Args:
        framework: Repository whose code wrote the file.
        architecture: transformers' model type of the encoder: swin, swinv2 or beit.
        weights: Parameters and buffers under the authors' names, `layers.0.blocks.0.attn.qkv.weight`.
        file_names: Name in the file of each of these names.
        settings: Settings of the stored config, under the names of our configs; empty if none is stored.
        dropped: Other entries of the file.
        epoch: Number of the last epoch, if the file states it.
    """

    framework: str
    architecture: str
    weights: dict[str, torch.Tensor]
    file_names: dict[str, str]
    settings: Settings = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    epoch: int | None = None


def open_checkpoint(content: Any) -> OriginalCheckpoint:
    """Interpret the contents of a .pth file.

    Args:
        content: Result of `read_pth`.

    Returns:
        Weights, settings and other entries.

    Raises:
        ValueError: If the file has no weights, unknown entries, or weights of another model than Swin, SwinV2 and the
            authors' ViT.
    """
    if not isinstance(content, dict):
        raise ValueError(f"The file holds a {type(content).__name__}, not a dict of weights: it is not a checkpoint.")
    entry = next((key for key in ("model", "state_dict") if isinstance(content.get(key), dict)), None)
    if entry is None and content and all(isinstance(value, torch.Tensor) for value in content.values()):
        content, entry = {"model": content}, "model"
    if entry is None:
        raise ValueError(f"The file has no weights under 'model' or 'state_dict'; it holds {listed(content)}.")
    weights = _checked_weights(content[entry])
    unknown = [key for key in content if key not in (entry, "config", "meta", *STATE_OF_THE_RUN)]
    if unknown:
        raise ValueError(f"The file has unknown entries: {listed(unknown)}. Remove them from it.")
    dropped = [key for key in content if key in STATE_OF_THE_RUN]

    if any(".attn.w_msa." in name for name in weights):
        weights, file_names = from_mmpretrain(weights)
        architecture = _architecture(weights)
        meta = content.get("meta")
        meta = meta if isinstance(meta, dict) else {}
        settings = mmpretrain_settings(meta.get("cfg") or meta.get("config"), architecture)
        framework, epoch = MMPRETRAIN, meta.get("epoch")
    else:
        weights, file_names = from_authors(weights)
        architecture = _architecture(weights)
        settings = authors_settings(content.get("config"), architecture)
        is_simmim = settings.pop("is_simmim", architecture == "beit")
        framework = SIMMIM if is_simmim else SWIN_TRANSFORMER
        epoch = content.get("epoch")
    for name in ("config", "meta"):
        if name in content and not settings:
            dropped.append(name)
    return OriginalCheckpoint(
        framework, architecture, weights, file_names, settings, dropped, epoch if isinstance(epoch, int) else None
    )


def _checked_weights(weights: dict[Any, Any]) -> dict[str, torch.Tensor]:
    """Check that tensors are dense, real, and not larger than their memory, each and (but for some tied ones) all."""
    stored: dict[int, int] = {}
    claimed = 0
    for key, tensor in weights.items():
        name = printable(str(key))
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"The weights contain {name!r} of type {type(tensor).__name__}, which is not a tensor.")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_complex():
            raise ValueError(f"{name} is not a plain tensor but {tensor.layout}, {tensor.dtype} on {tensor.device}.")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name} of shape {tuple(tensor.shape)} is larger than its data in the file.")
        claimed += tensor.numel() * tensor.element_size()
        stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    if claimed > MAX_SHARING * sum(stored.values()):
        raise ValueError(
            f"The weights have {claimed} bytes, but their file holds {sum(stored.values())}: it is damaged."
        )
    return {name: tensor.detach() for name, tensor in weights.items()}


def _architecture(weights: dict[str, torch.Tensor]) -> str:
    if "blocks.0.attn.qkv.weight" in weights:
        return "beit"
    if "layers.0.blocks.0.attn.qkv.weight" in weights:
        return "swinv2" if "layers.0.blocks.0.attn.logit_scale" in weights else "swin"
    raise ValueError(
        f"The weights are not those of a Swin, SwinV2 or ViT of {SIMMIM}, {SWIN_TRANSFORMER} or {MMPRETRAIN}:"
        f" {listed(weights)}."
    )


def listed(names: Any, limit: int = 12) -> str:
    """Names from a file, in one line that is safe to print."""
    names = [printable(str(name)[:120]) for name in names]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "") or "nothing"
