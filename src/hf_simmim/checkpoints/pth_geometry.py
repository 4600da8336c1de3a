"""Geometry of a .pth checkpoint, read from its tensors and from the config that is stored with them."""

import math
import re
from typing import Any

from .pth_checkpoint import MMPRETRAIN, OriginalCheckpoint

# Settings that the tensors determine; if the stored config contradicts them, the tensors win and the report says so.
TOLD_BY_TENSORS = (
    *("patch_size", "num_channels", "embed_dim", "depths", "num_heads", "window_size", "qkv_bias"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads"),
)
LAYER_NORM_EPS = {"swin": 1e-5, "swinv2": 1e-5, "beit": 1e-6}

Size = tuple[int, int]
MAX_MODULES = 1000  # blocks of a stage, or stages


def encoder_settings(
    original: OriginalCheckpoint, image_size: Size | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the encoder's config from a checkpoint.

    Args:
        original: The checkpoint.
        image_size: (height, width) in pixels, for files that do not state it.

    Returns:
        The config as a dict with its `model_type`, and remarks for the report by title.

    Raises:
        ValueError: If the tensors do not form a model, the image size is unknown or contradicts them, or the stored
            config has a setting that our encoders do not support.
    """
    stored = original.settings
    _check_supported(original)
    read = _read_vit if original.architecture == "beit" else _read_swin
    encoder = {"model_type": original.architecture} | read(original)
    size, where = _image_size(original, encoder, image_size)
    remarks = {"Image size": f"{size[0]} x {size[1]} px, {where}"}
    encoder["image_size"] = size[0] if size[0] == size[1] else list(size)
    encoder["drop_path_rate"] = float(stored.get("drop_path_rate", 0.0))
    encoder["hidden_dropout_prob"] = float(stored.get("hidden_dropout_prob", 0.0))
    encoder["layer_norm_eps"] = LAYER_NORM_EPS[original.architecture]

    differ = []
    for name in ("model_type", *TOLD_BY_TENSORS):
        value, ours = stored.get(name), encoder.get(name)
        if name == "window_size" and isinstance(value, int):
            value = min(value, *(side // encoder["patch_size"] for side in size))  # as the first stage clamps it
        if None not in (value, ours) and value != ours:
            differ.append(f"{name}={value} (the tensors: {ours})")
    if differ:
        remarks["Stored config"] = f"contradicts the tensors, which take precedence: {', '.join(differ)}"
    return encoder, remarks


def _check_supported(original: OriginalCheckpoint) -> None:
    """Refuse settings that the tensors do not show and that our encoders do not support."""
    stored, eps = original.settings, LAYER_NORM_EPS[original.architecture]
    if stored.get("qk_scale") and original.architecture == "swin":
        raise ValueError(
            f"The stored config sets qk_scale={stored['qk_scale']}, but our Swin always scales by the square root of"
            " the head's width. Multiply the query weights instead."
        )
    if stored.get("layer_norm_eps", eps) != eps:
        raise ValueError(f"The stored config sets eps={stored['layer_norm_eps']}, but our encoder uses {eps}.")


def _shape(original: OriginalCheckpoint, name: str, dimensions: int) -> tuple[int, ...]:
    tensor = original.weights.get(name)
    if tensor is None:
        raise ValueError(f"The file lacks {name}, which every model needs. It was written by other code.")
    if tensor.dim() != dimensions or 0 in tensor.shape:
        raise ValueError(f"{original.file_names[name]} has shape {tuple(tensor.shape)}, not {dimensions} dimensions.")
    return tuple(tensor.shape)


def _patches(original: OriginalCheckpoint) -> tuple[int, int, int]:
    """Hidden size, channels and side of a patch in pixels."""
    hidden_size, num_channels, height, width = _shape(original, "patch_embed.proj.weight", 4)
    if height != width:
        raise ValueError(f"The patches are {height}x{width} px; only square patches are supported.")
    return hidden_size, num_channels, height


def _count(original: OriginalCheckpoint, pattern: str) -> int:
    """Number of numbered modules."""
    numbers = {int(found[1]) for name in original.weights if (found := re.match(pattern, name))}
    if numbers != set(range(len(numbers))) or len(numbers) > MAX_MODULES:
        listed = [str(number) for number in sorted(numbers)]
        raise ValueError(
            f"Modules {pattern.replace(chr(92), '')} must be numbered from 0 to at most {MAX_MODULES - 1}; the file has"
            f" {', '.join(listed if len(listed) < 20 else [*listed[:5], '...', listed[-1]])}."
        )
    return len(numbers)


def _mlp_ratio(original: OriginalCheckpoint, block: str, width: int) -> float:
    hidden = _shape(original, f"{block}.mlp.fc1.weight", 2)[0]
    ratio = original.settings.get("mlp_ratio")
    # Prefer the stored ratio if it fits: widths are rounded down and do not determine it exactly.
    return float(ratio) if isinstance(ratio, (int, float)) and int(ratio * width) == hidden else hidden / width


def _read_swin(original: OriginalCheckpoint) -> dict[str, Any]:
    embed_dim, num_channels, patch_size = _patches(original)
    num_stages = _count(original, r"layers\.(\d+)\.")
    heads = "logit_scale" if original.architecture == "swinv2" else "relative_position_bias_table"
    encoder: dict[str, Any] = {
        "patch_size": patch_size,
        "num_channels": num_channels,
        "embed_dim": embed_dim,
        "depths": [_count(original, rf"layers\.{stage}\.blocks\.(\d+)\.") for stage in range(num_stages)],
        "num_heads": [
            _shape(original, f"layers.{stage}.blocks.0.attn.{heads}", 3 if heads == "logit_scale" else 2)[
                0 if heads == "logit_scale" else 1
            ]
            for stage in range(num_stages)
        ],
        "window_size": table_window(original, 0),
        "mlp_ratio": _mlp_ratio(original, "layers.0.blocks.0", embed_dim),
        "qkv_bias": any(f"layers.0.blocks.0.attn.{name}" in original.weights for name in ("qkv.bias", "q_bias")),
        "use_absolute_embeddings": "absolute_pos_embed" in original.weights,
    }
    if original.architecture == "swinv2":
        sizes = original.settings.get("pretrained_window_sizes")
        if not (isinstance(sizes, list) and len(sizes) == num_stages):
            sizes = [_pretrained_window(original, stage) for stage in range(num_stages)]
        encoder["pretrained_window_sizes"] = [int(size) for size in sizes]
    return encoder


def table_window(original: OriginalCheckpoint, stage: int) -> int:
    """Read the window of a stage, in tokens, from its tensors.

    Args:
        original: A checkpoint of Swin or SwinV2.
        stage: Number of the stage, from 0.

    Returns:
        The window, which is smaller than the config's in a stage with a smaller grid.

    Raises:
        ValueError: If the window is unknown.
    """
    attention = f"layers.{stage}.blocks.0.attn"
    if original.architecture == "swin":
        rows = _shape(original, f"{attention}.relative_position_bias_table", 2)[0]
        side = math.isqrt(rows)
    elif _has_table(original, stage):
        rows = side = _shape(original, f"{attention}.relative_coords_table", 4)[1]
        rows *= side
    elif type(window := original.settings.get("window_size")) is int and window > 0:
        return window
    else:
        raise ValueError(
            "No weight of SwinV2 determines the window, and the file has neither relative_coords_table nor a stored"
            " config. Convert the original file."
        )
    if side * side != rows or side % 2 == 0:
        raise ValueError(f"Stage {stage} has {rows} relative positions, which fit no square window.")
    return (side + 1) // 2


def _has_table(original: OriginalCheckpoint, stage: int) -> bool:
    return f"layers.{stage}.blocks.0.attn.relative_coords_table" in original.weights


def _pretrained_window(original: OriginalCheckpoint, stage: int) -> int:
    """Window p in whose units SwinV2 measures distances, from the largest one: log2(8 (w - 1) / (p - 1) + 1) / 3."""
    table = original.weights.get(f"layers.{stage}.blocks.0.attn.relative_coords_table")
    window = table_window(original, stage)
    if table is None or window == 1:
        return 0
    window_then = 8 * (window - 1) / (2 ** (3 * float(table.max())) - 1) + 1
    return 0 if round(window_then) == window else round(window_then)


def _read_vit(original: OriginalCheckpoint) -> dict[str, Any]:
    hidden_size, num_channels, patch_size = _patches(original)
    shared, in_blocks = (
        f"{module}.relative_position_bias_table" in original.weights for module in ("rel_pos_bias", "blocks.0.attn")
    )
    if shared or in_blocks:
        table = "rel_pos_bias" if shared else "blocks.0.attn"
        num_heads = _shape(original, f"{table}.relative_position_bias_table", 2)[1]
    else:
        num_heads = original.settings.get("num_attention_heads", 0)
        if type(num_heads) is not int or num_heads < 1:
            raise ValueError("The file has no relative position table and no stored config, so its heads are unknown.")
    # The initial value of the layer scale only matters for whether there is one.
    layer_scale = 0.0
    if "blocks.0.gamma_1" in original.weights:
        layer_scale = float(original.settings.get("layer_scale_init_value", 0.1)) or 0.1
    return {
        "patch_size": patch_size,
        "num_channels": num_channels,
        "hidden_size": hidden_size,
        "num_hidden_layers": _count(original, r"blocks\.(\d+)\."),
        "num_attention_heads": num_heads,
        "intermediate_size": _shape(original, "blocks.0.mlp.fc1.weight", 2)[0],
        "layer_scale_init_value": layer_scale,
        "use_mask_token": True,
        "use_absolute_position_embeddings": "pos_embed" in original.weights,
        "use_relative_position_bias": in_blocks,
        "use_shared_relative_position_bias": shared,
        "use_mean_pooling": "fc_norm.weight" in original.weights,
    }


def _image_size(original: OriginalCheckpoint, encoder: dict[str, Any], asked: Size | None) -> tuple[Size, str]:
    """Image size in pixels, and where it comes from."""
    told, witness = _size_of_tensors(original, encoder)
    stored = original.settings.get("image_size")
    if isinstance(stored, (int, list)):
        stored = (stored, stored) if isinstance(stored, int) else tuple(stored)
        if len(stored) != 2 or not all(type(side) is int and side > 0 for side in stored):
            raise ValueError(f"The stored config has the invalid image size {stored}. Set --image_size.")
    if asked is not None:
        if told is not None and told != asked:
            raise ValueError(
                f"--image_size {asked[0]} {asked[1]} contradicts {witness}, which is for {told[0]} x {told[1]} px."
                " Leave it out: the converted model can be loaded for images of other sizes."
            )
        return asked, "from --image_size" + (
            f"; the stored config has {stored[0]} x {stored[1]}" if stored not in (None, asked) else ""
        )
    if stored is not None:
        if told is not None and told != stored:
            raise ValueError(
                f"The stored config has images of {stored[0]} x {stored[1]} px, but {witness} is for {told[0]} x"
                f" {told[1]}. If the weights are right, set --image_size {told[0]} {told[1]}."
            )
        return stored, "from the stored config"
    if told is not None:
        return told, f"from {witness}"
    raise ValueError("The file does not state the size of its images. Set --image_size, in pixels.")


def _size_of_tensors(original: OriginalCheckpoint, encoder: dict[str, Any]) -> tuple[Size | None, str]:
    """Size of square images that tensors of a fixed grid are for, and the name of these tensors."""
    if original.architecture == "beit":
        candidates = {
            "pos_embed": lambda shape: shape[1] - 1,
            "rel_pos_bias.relative_position_bias_table": _tokens_of_table,
            "blocks.0.attn.relative_position_bias_table": _tokens_of_table,
        }
    else:
        candidates = {
            "layers.0.blocks.1.attn_mask": lambda shape: shape[0] * encoder["window_size"] ** 2,
            "absolute_pos_embed": lambda shape: shape[1],
        }
    for name, tokens in candidates.items():
        if name in original.weights and original.weights[name].dim() > 1:
            number = tokens(original.weights[name].shape)
            side = math.isqrt(number)
            if side and side * side == number:
                return (side * encoder["patch_size"],) * 2, original.file_names[name]
    return None, ""


def _tokens_of_table(shape: Any) -> int:
    """Number of patches of a square grid, from the rows of its table: (2h - 1)(2w - 1), and 3 for the class token."""
    side = math.isqrt(max(shape[0] - 3, 0))
    return ((side + 1) // 2) ** 2 if side * side == shape[0] - 3 else 0


def check_windows(original: OriginalCheckpoint, encoder: dict[str, Any], grids: list[Size]) -> None:
    """Refuse a Swin whose stages have other windows than our model would have.

    Args:
        original: A checkpoint of Swin or SwinV2.
        encoder: Result of `encoder_settings`.
        grids: (h, w) of each stage in tokens.

    Raises:
        ValueError: If a window does not fit, or a stage pads its grid to the window, which only mmpretrain supports.
    """
    for stage, grid in enumerate(grids):
        if original.architecture == "swinv2" and not _has_table(original, stage):
            continue  # any window fits the weights
        ours, theirs = min(encoder["window_size"], *grid), table_window(original, stage)
        if theirs == ours:
            continue
        height, width = grid
        text = (
            f"Stage {stage} has a window of {theirs} and a grid of {height}x{width} tokens, where ours would have a"
            f" window of {ours}."
        )
        if theirs > ours and original.framework == MMPRETRAIN:
            size = encoder["patch_size"] * 2 ** (len(grids) - 1) * theirs
            text += (
                " The file was made with pad_small_map=True, which pads a small grid to the window; our model shrinks"
                f" the window. Images of {size} px or more need no padding, and both compute the same: set --image_size"
                f" {size}."
            )
        else:
            text += " The image size may be wrong: set --image_size."
        raise ValueError(text)
