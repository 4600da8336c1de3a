"""Names of parameters: from mmpretrain's to the authors', and from the authors' to ours.

Source: models/ of microsoft/SimMIM and microsoft/Swin-Transformer; models/backbones/swin_transformer*.py and
models/utils/embed.py of open-mmlab/mmpretrain.
"""

import re
from collections.abc import Callable

import torch

SWIN_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."
_OURS = r"encoder.layers.\1.blocks.\2."
# Authors' name -> our name in the encoder, in one or in three equal parts. The first pattern that matches is used.
SWIN_NAMES: dict[str, tuple[str, ...]] = {
    r"mask_token": ("embeddings.mask_token",),
    r"absolute_pos_embed": ("embeddings.position_embeddings",),
    r"patch_embed\.proj\.(\w+)": (r"embeddings.patch_embeddings.projection.\1",),
    r"patch_embed\.norm\.(\w+)": (r"embeddings.norm.\1",),
    r"norm\.(\w+)": (r"layernorm.\1",),
    r"layers\.(\d+)\.downsample\.(\w+\.\w+)": (r"encoder.layers.\1.downsample.\2",),
    SWIN_BLOCK + r"attn\.qkv\.(\w+)": tuple(rf"{_OURS}attention.self.{part}.\3" for part in ("query", "key", "value")),
    SWIN_BLOCK + r"attn\.q_bias": (f"{_OURS}attention.self.query.bias",),
    SWIN_BLOCK + r"attn\.v_bias": (f"{_OURS}attention.self.value.bias",),
    SWIN_BLOCK + r"attn\.(relative_position_bias_table|logit_scale)": (rf"{_OURS}attention.self.\3",),
    SWIN_BLOCK + r"attn\.cpb_mlp\.(\d\.\w+)": (rf"{_OURS}attention.self.continuous_position_bias_mlp.\3",),
    SWIN_BLOCK + r"attn\.proj\.(\w+)": (rf"{_OURS}attention.output.dense.\3",),
    SWIN_BLOCK + r"norm1\.(\w+)": (rf"{_OURS}layernorm_before.\3",),
    SWIN_BLOCK + r"norm2\.(\w+)": (rf"{_OURS}layernorm_after.\3",),
    SWIN_BLOCK + r"mlp\.fc1\.(\w+)": (rf"{_OURS}intermediate.dense.\3",),
    SWIN_BLOCK + r"mlp\.fc2\.(\w+)": (rf"{_OURS}output.dense.\3",),
}
VIT_NAMES: dict[str, tuple[str, ...]] = {
    r"(mask_token|cls_token)": (r"embeddings.\1",),
    r"pos_embed": ("embeddings.position_embeddings",),
    r"patch_embed\.proj\.(\w+)": (r"embeddings.patch_embeddings.projection.\1",),
    r"rel_pos_bias\.(relative_position_bias_table)": (r"shared_position_bias.\1",),
    r"norm\.(\w+)": (r"layernorm.\1",),
    r"blocks\.(\d+)\.attn\.qkv\.(\w+)": tuple(rf"layers.\1.attention.{part}_proj.\2" for part in "qkv"),
    r"blocks\.(\d+)\.attn\.([qv])_bias": (r"layers.\1.attention.\2_proj.bias",),
    r"blocks\.(\d+)\.attn\.(relative_position_bias_table)": (r"layers.\1.relative_position_bias.\2",),
    r"blocks\.(\d+)\.attn\.proj\.(\w+)": (r"layers.\1.attention.o_proj.\2",),
    r"blocks\.(\d+)\.gamma_([12])": (r"layers.\1.lambda_\2",),
    r"blocks\.(\d+)\.norm1\.(\w+)": (r"layers.\1.layernorm_before.\2",),
    r"blocks\.(\d+)\.norm2\.(\w+)": (r"layers.\1.layernorm_after.\2",),
    r"blocks\.(\d+)\.(mlp\.fc[12]\.\w+)": (r"layers.\1.\2",),
}
ENCODER_NAMES = {"swin": SWIN_NAMES, "swinv2": SWIN_NAMES, "beit": VIT_NAMES}


def our_names(name: str, architecture: str, prefix: str = "simmim.encoder.") -> list[str]:
    """Find our parameters that correspond to one of the authors', in order.

    Args:
        name: The authors' name, without `encoder.`.
        architecture: swin, swinv2 or beit.
        prefix: Prefix of the names of our encoder's parameters.

    Returns:
        One name, three for query, key and value, or none if we have no such parameter.
    """
    if name in ("decoder.0.weight", "decoder.0.bias"):
        return [name.replace("decoder.0.", "head.projection.")]
    for pattern, replacements in ENCODER_NAMES[architecture].items():
        if found := re.fullmatch(pattern, name):
            return [prefix + found.expand(replacement) for replacement in replacements]
    return []


def from_authors(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Remove the prefixes of data parallelism and pre-training from names of the authors' code.

    Args:
        weights: Tensors by their names in the file.

    Returns:
        Tensors by the authors' names, `layers.0.blocks.0.attn.qkv.weight`, and the name of each in the file.

    Raises:
        ValueError: If two names become the same.
    """
    return _renamed(weights, [(r"^module\.", ""), (r"^encoder\.", "")])


def from_mmpretrain(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Convert mmpretrain's weights to those of the authors' code.

    Args:
        weights: Tensors by their names in the file.

    Returns:
        Tensors by the authors' names, and the name of each in the file.

    Raises:
        ValueError: If two names become the same.
    """
    is_v2 = any(name.endswith(".logit_scale") for name in weights)
    last_stage = max((int(stage) for name in weights for stage in re.findall(r"\bstages\.(\d+)\.", name)), default=0)
    renamed, file_names = _renamed(
        weights,
        [
            (r"^module\.", ""),
            (r"^backbone\.", ""),
            (r"^neck\.decoder\.", "decoder."),
            (r"^head\.fc\.", "head."),
            # mmpretrain's SwinV2 downsamples at the start of a stage, the authors' at the end of the previous stage.
            (r"^stages\.(\d+)\.downsample\.", lambda found: f"layers.{int(found[1]) - is_v2}.downsample."),
            (r"^stages\.", "layers."),
            (r"\.attn\.w_msa\.", ".attn."),
            (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
            (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
            (r"^patch_embed\.projection\.", "patch_embed.proj."),
            (rf"^norm{last_stage}\.", "norm."),
        ],
    )
    for name, tensor in renamed.items():
        # SwinV2 normalizes after the reduction, so its norm does not depend on the order of the four tokens.
        if name.endswith(".downsample.reduction.weight") or (".downsample.norm." in name and not is_v2):
            renamed[name] = authors_merging_order(tensor)
    return renamed, file_names


def _renamed(
    weights: dict[str, torch.Tensor], renames: list[tuple[str, str | Callable[[re.Match[str]], str]]]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    file_names: dict[str, str] = {}
    for original in weights:
        name = original
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        if name in file_names:
            raise ValueError(f"The file has the same weights twice: {file_names[name]!r} and {original!r}.")
        file_names[name] = original
    return {name: weights[original] for name, original in file_names.items()}, file_names


def authors_merging_order(tensor: torch.Tensor) -> torch.Tensor:
    """Reorder the input channels of patch merging from mmpretrain's order to the authors'.

    Both merge the four tokens of a 2x2 square. mmpretrain unfolds: channel by channel, each with the square row by row.
    The authors concatenate: token by token, column by column, each with all its channels.

    Args:
        tensor: Weights whose last dimension is these 4 * C channels.

    Returns:
        The same weights in the authors' order.
    """
    if tensor.shape[-1] % 4:
        raise ValueError(f"Patch merging has {tensor.shape[-1]} input channels, which is not a multiple of four.")
    squares = tensor.unflatten(-1, (-1, 2, 2))  # ..., C, row, column
    return squares.movedim(-3, -1).transpose(-3, -2).flatten(-3)  # ..., column, row, C
