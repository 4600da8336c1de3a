"""Checkpoints of the authors' code and of mmpretrain, brought to one naming: that of the authors, without prefixes.

Source: utils.py and models/ of microsoft/SimMIM and microsoft/Swin-Transformer; models/backbones/swin_transformer*.py,
models/utils/embed.py and models/selfsup/simmim.py of open-mmlab/mmpretrain.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

SIMMIM, SWIN_TRANSFORMER, MMPRETRAIN = "microsoft/SimMIM", "microsoft/Swin-Transformer", "open-mmlab/mmpretrain"

# What a file holds beside weights and settings, and no model needs.
STATE_OF_THE_RUN = (
    *("optimizer", "lr_scheduler", "max_accuracy", "epoch", "amp", "scaler", "loss_scaler"),
    *("param_schedulers", "message_hub", "ema_state_dict", "optim_wrapper", "iter"),
)

Settings = dict[str, Any]
# The settings that can be lists.
LISTS = ("image_size", "depths", "num_heads", "pretrained_window_sizes", "image_mean", "image_std")


@dataclass
class OriginalCheckpoint:
    """What a file holds.

    Args:
        framework: Repository whose code wrote it.
        architecture: transformers' model type of the encoder: swin, swinv2 or beit.
        weights: Parameters and buffers under the authors' names, `layers.0.blocks.0.attn.qkv.weight`.
        file_names: Of each of these names, the one in the file.
        settings: What the stored config says, under the names of our configs; empty if none is stored.
        dropped: Other entries of the file.
        epoch: Number of the last epoch, if the file says.
    """

    framework: str
    architecture: str
    weights: dict[str, torch.Tensor]
    file_names: dict[str, str]
    settings: Settings = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    epoch: int | None = None


def open_checkpoint(content: Any) -> OriginalCheckpoint:
    """Make sense of what a file holds.

    Args:
        content: What `read_pth` returned.

    Returns:
        Its weights, settings and the rest.

    Raises:
        ValueError: If there are no weights in it, or entries that nobody can explain, or weights of a model that is
            none of Swin, SwinV2 and the authors' ViT.
    """
    if not isinstance(content, dict):
        raise ValueError(f"The file holds a {type(content).__name__} and no dict of weights, so it is no checkpoint.")
    entry = next((key for key in ("model", "state_dict") if isinstance(content.get(key), dict)), None)
    if entry is None and content and all(isinstance(value, torch.Tensor) for value in content.values()):
        content, entry = {"model": content}, "model"
    if entry is None:
        raise ValueError(f"The file has no weights under 'model' or 'state_dict'; it holds {_listed(content)}.")
    weights = _checked_weights(content[entry])
    unknown = [key for key in content if key not in (entry, "config", "meta", *STATE_OF_THE_RUN)]
    if unknown:
        raise ValueError(f"The file has entries that nothing is known of: {_listed(unknown)}. Remove them from it.")
    dropped = [key for key in content if key in STATE_OF_THE_RUN]

    names = {name: name.removeprefix("module.") for name in weights}
    if any(".attn.w_msa." in name for name in weights):
        weights, file_names = _from_mmpretrain(weights, names)
        architecture = _architecture(weights)
        meta = content.get("meta")
        meta = meta if isinstance(meta, dict) else {}
        settings = mmpretrain_settings(meta.get("cfg") or meta.get("config"), architecture)
        framework, epoch = MMPRETRAIN, meta.get("epoch")
    else:
        file_names = {_authors_name(name): original for original, name in names.items()}
        _check_distinct(file_names, names)
        weights = {name: weights[original] for name, original in file_names.items()}
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
    """Tensors as they should be: dense, real, and as large as the memory that they say they have."""
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"The weights hold {name!r}, a {type(tensor).__name__} and no tensor.")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_complex():
            raise ValueError(f"{name} is not a plain tensor but {tensor.layout}, {tensor.dtype} on {tensor.device}.")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{name} of shape {tuple(tensor.shape)} is larger than what the file holds of it.")
    return {name: tensor.detach() for name, tensor in weights.items()}


def _architecture(weights: dict[str, torch.Tensor]) -> str:
    if "blocks.0.attn.qkv.weight" in weights:
        return "beit"
    if "layers.0.blocks.0.attn.qkv.weight" in weights:
        return "swinv2" if "layers.0.blocks.0.attn.logit_scale" in weights else "swin"
    raise ValueError(
        f"The weights are those of no Swin, SwinV2 or ViT of {SIMMIM}, {SWIN_TRANSFORMER} or {MMPRETRAIN}: they are"
        f" {_listed(weights)}."
    )


def _authors_name(name: str) -> str:
    return name.removeprefix("encoder.")


def _check_distinct(file_names: dict[str, str], names: dict[str, str]) -> None:
    if len(file_names) < len(names):
        doubles = [original for original in names if original not in file_names.values()]
        raise ValueError(f"The file names some weights twice, with a prefix and without: {_listed(doubles)}.")


def _from_mmpretrain(
    weights: dict[str, torch.Tensor], names: dict[str, str]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """mmpretrain's weights as the authors' code would have them, and the names they had."""
    is_v2 = any(name.endswith(".logit_scale") for name in names)
    stages = [int(found[1]) for name in names.values() if (found := re.match(r"(?:backbone\.)?stages\.(\d+)\.", name))]
    renames: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
        (r"^backbone\.", ""),
        (r"^neck\.decoder\.", "decoder."),
        (r"^head\.fc\.", "head."),
        # SwinV2 there begins a stage with the step down to it, where the authors end the stage before with it.
        (r"^stages\.(\d+)\.downsample\.", lambda found: f"layers.{int(found[1]) - is_v2}.downsample."),
        (r"^stages\.", "layers."),
        (r"\.attn\.w_msa\.", ".attn."),
        (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
        (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (rf"^norm{max(stages)}\.", "norm."),
    ]
    file_names = {}
    for original, name in names.items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        file_names[name] = original
    _check_distinct(file_names, names)
    renamed = {name: weights[original] for name, original in file_names.items()}
    for name, tensor in renamed.items():
        # SwinV2 normalises after the reduction, so its norm knows nothing of the four tokens.
        if name.endswith(".downsample.reduction.weight") or (".downsample.norm." in name and not is_v2):
            renamed[name] = authors_merging_order(tensor)
    return renamed, file_names


def authors_merging_order(tensor: torch.Tensor) -> torch.Tensor:
    """Bring the channels that a patch merging takes from mmpretrain's order to the authors'.

    Both see the four tokens of a 2x2 square. mmpretrain unfolds: channel by channel, and in each the square row by row.
    The authors concatenate: token by token down a column and then the next column, and of each all channels.

    Args:
        tensor: Weights whose last dimension is those 4 * C channels.

    Returns:
        The same weights in the authors' order.
    """
    if tensor.shape[-1] % 4:
        raise ValueError(f"A patch merging takes {tensor.shape[-1]} channels, which are not those of four tokens.")
    squares = tensor.unflatten(-1, (-1, 2, 2))  # ..., C, row, column
    return squares.movedim(-3, -1).transpose(-3, -2).flatten(-3)  # ..., column, row, C


def authors_settings(config: Any, architecture: str) -> Settings:
    """What the authors' stored config says, under the names of our configs.

    Args:
        config: The config, as nested dicts; anything else counts as none.
        architecture: swin, swinv2 or beit.

    Returns:
        The settings that it has, and `is_simmim` if it is one of microsoft/SimMIM.
    """
    section = {"swin": "SWIN", "swinv2": "SWINV2", "beit": "VIT"}[architecture]
    width, depth, heads = (
        ("hidden_size", "num_hidden_layers", "num_attention_heads")
        if architecture == "beit"
        else ("embed_dim", "depths", "num_heads")
    )
    paths = {
        "image_size": "DATA.IMG_SIZE",
        "mask_patch_size": "DATA.MASK_PATCH_SIZE",
        "mask_ratio": "DATA.MASK_RATIO",
        "model_type": "MODEL.TYPE",
        "drop_path_rate": "MODEL.DROP_PATH_RATE",
        "hidden_dropout_prob": "MODEL.DROP_RATE",
        "normalise_target": "MODEL.SIMMIM.NORM_TARGET.ENABLE",
        "normalise_window": "MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE",
        "patch_size": f"MODEL.{section}.PATCH_SIZE",
        "num_channels": f"MODEL.{section}.IN_CHANS",
        width: f"MODEL.{section}.EMBED_DIM",
        depth: f"MODEL.{section}.DEPTH" if architecture == "beit" else f"MODEL.{section}.DEPTHS",
        heads: f"MODEL.{section}.NUM_HEADS",
        "window_size": f"MODEL.{section}.WINDOW_SIZE",
        "pretrained_window_sizes": f"MODEL.{section}.PRETRAINED_WINDOW_SIZES",
        "mlp_ratio": f"MODEL.{section}.MLP_RATIO",
        "qkv_bias": f"MODEL.{section}.QKV_BIAS",
        "qk_scale": f"MODEL.{section}.QK_SCALE",
        "layer_scale_init_value": f"MODEL.{section}.INIT_VALUES",
    }
    settings = {name: value for name, path in paths.items() if (value := _at(config, path)) is not None}
    if settings.get("model_type") == "vit":
        settings["model_type"] = "beit"
    if settings:
        settings["is_simmim"] = _at(config, "MODEL.SWINV2") is None  # which the other repository always has
    return _checked_settings(settings)


def mmpretrain_settings(text: Any, architecture: str) -> Settings:
    """What the config of mmpretrain says, under the names of our configs.

    Args:
        text: The config as Python text. It is parsed for literals, never run; anything else counts as none.
        architecture: swin or swinv2.

    Returns:
        The settings that it has, with mmpretrain's defaults where it leaves them open.
    """
    config = literals(text) if isinstance(text, str) else {}
    backbone = _at(config, "model.backbone")
    if not isinstance(backbone, dict):
        return {}
    is_v2 = architecture == "swinv2"
    window = _at(backbone, "stage_cfgs.block_cfgs.window_size") or backbone.get("window_size", 8 if is_v2 else 7)
    settings = {
        "image_size": backbone.get("img_size", 256 if is_v2 else 224),
        "patch_size": backbone.get("patch_size", 4),
        "num_channels": backbone.get("in_channels", 3),
        "window_size": window[0] if isinstance(window, list) and window else window,
        "drop_path_rate": backbone.get("drop_path_rate", 0.1),
        "hidden_dropout_prob": backbone.get("drop_rate", 0.0),
        "qk_scale": next(_named("qk_scale", backbone), None),
    }
    if is_v2:
        settings["pretrained_window_sizes"] = backbone.get("pretrained_window_sizes")
    for name, key in (("embed_dim", "embed_dims"), ("depths", "depths"), ("num_heads", "num_heads")):
        settings[name] = _at(backbone, f"arch.{key}")
    settings["layer_norm_eps"] = next(_named("eps", backbone), None)
    for name in ("mask_patch_size", "mask_ratio"):
        settings[name] = next(_named(name, config), None)
    # On the scale of 0 to 255 there.
    for name, key in (("image_mean", "mean"), ("image_std", "std")):
        values = next(_named(key, config.get("data_preprocessor")), None)
        if isinstance(values, list) and all(isinstance(value, (int, float)) for value in values):
            settings[name] = [round(value / 255, 6) for value in values]
    return _checked_settings({name: value for name, value in settings.items() if value is not None})


def literals(text: str) -> dict[str, Any]:
    """The assignments of literals in a Python text, without running it.

    Args:
        text: Python source; `dict(a=1)` counts as a literal.

    Returns:
        Value of each name. What is not a literal is None; a text that is no Python gives nothing.
    """
    try:
        statements = ast.parse(text).body
        return {
            target.id: _literal(statement.value)
            for statement in statements
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.List() | ast.Tuple():
            return [_literal(item) for item in node.elts]
        case ast.Dict():
            items = zip(node.keys, node.values, strict=True)
            return {key.value: _literal(value) for key, value in items if isinstance(key, ast.Constant)}
        case ast.Call(func=ast.Name(id="dict"), args=[]):
            return {keyword.arg: _literal(keyword.value) for keyword in node.keywords if keyword.arg}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
    return None


def _at(config: Any, path: str) -> Any:
    """What is in nested dicts under a dotted path, or None."""
    for key in path.split("."):
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _named(name: str, config: Any) -> Iterator[Any]:
    """Every value under a key, at any depth."""
    if isinstance(config, dict):
        if config.get(name) is not None:
            yield config[name]
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from _named(name, item)


def _checked_settings(settings: Settings) -> Settings:
    for name, value in settings.items():
        values = list(value) if isinstance(value, (list, tuple)) and name in LISTS else [value]
        if not values or not all(isinstance(item, str if name == "model_type" else (int, float)) for item in values):
            raise ValueError(f"The stored config has {name}={value!r}, of which nothing can be made.")
        if isinstance(value, tuple):
            settings[name] = values
    return settings


def _listed(names: Any, limit: int = 12) -> str:
    names = [str(name)[:120] for name in names]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "") or "nothing"
