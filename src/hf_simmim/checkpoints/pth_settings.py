"""Settings that are stored in .pth checkpoints, under the names of our configs.

Source: config.py of microsoft/SimMIM and microsoft/Swin-Transformer; models/backbones/swin_transformer*.py of
open-mmlab/mmpretrain for its defaults.
"""

import ast
from collections.abc import Iterator
from typing import Any

Settings = dict[str, Any]
# The settings that can be lists.
LISTS = ("image_size", "depths", "num_heads", "pretrained_window_sizes", "image_mean", "image_std")


def authors_settings(config: Any, architecture: str) -> Settings:
    """Read the authors' stored config, under the names of our configs.

    Args:
        config: The config, as nested dicts; anything else is ignored.
        architecture: swin, swinv2 or beit.

    Returns:
        Its settings, and `is_simmim`: whether it is a config of microsoft/SimMIM.
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
        "normalize_target": "MODEL.SIMMIM.NORM_TARGET.ENABLE",
        "normalize_window": "MODEL.SIMMIM.NORM_TARGET.PATCH_SIZE",
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
        settings["is_simmim"] = _at(config, "MODEL.SWINV2") is None  # Swin-Transformer always has it
    return _checked_settings(settings)


def mmpretrain_settings(text: Any, architecture: str) -> Settings:
    """Read the config of mmpretrain, under the names of our configs.

    Args:
        text: The config as Python code. It is parsed for literals, never run; anything else is ignored.
        architecture: swin or swinv2.

    Returns:
        Its settings, with mmpretrain's defaults where it has none.
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
    # mmpretrain uses a scale of 0 to 255.
    for name, key in (("image_mean", "mean"), ("image_std", "std")):
        values = next(_named(key, config.get("data_preprocessor")), None)
        if isinstance(values, list) and all(isinstance(value, (int, float)) for value in values):
            settings[name] = [round(value / 255, 6) for value in values]
    return _checked_settings({name: value for name, value in settings.items() if value is not None})


def literals(text: str) -> dict[str, Any]:
    """Read the assignments of literals in Python code, without running it.

    Args:
        text: Python code; `dict(a=1)` counts as a literal.

    Returns:
        Value of each name, None if it is not a literal; empty if the text is not Python.
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
    """Value in nested dicts at a dotted path, or None."""
    for key in path.split("."):
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _named(name: str, config: Any) -> Iterator[Any]:
    """All values of a key, at any depth."""
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
        is_known = str.isidentifier(str(value)) if name == "model_type" else bool(values)
        if not is_known or not all(isinstance(item, str if name == "model_type" else (int, float)) for item in values):
            raise ValueError(f"The stored config has the invalid setting {name}={value!r}.")
        if isinstance(value, tuple):
            settings[name] = values
    return settings
