"""Files as the code of the authors writes them, without that code."""

import contextlib
import copyreg
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch


class CfgNode(dict):
    """Pickles as yacs' config does: a dict that has attributes of its own."""

    __module__ = "yacs.config"

    def __init__(self, values: dict[str, Any]):
        super().__init__({key: CfgNode(value) if type(value) is dict else value for key, value in values.items()})
        self.__dict__.update(__immutable__=True, __deprecated_keys__=set(), __renamed_keys__={}, __new_allowed__=False)

    def __reduce_ex__(self, protocol):
        # What a dict of its own class does anyway, whatever its attributes are.
        return copyreg.__newobj__, (CfgNode,), self.__dict__, None, iter(dict.items(self))  # type: ignore[attr-defined]


@contextlib.contextmanager
def yacs() -> Iterator[None]:
    """Makes `yacs.config.CfgNode` importable, which writing needs and reading must not."""
    package, module = types.ModuleType("yacs"), types.ModuleType("yacs.config")
    module.CfgNode = CfgNode  # type: ignore[attr-defined]
    sys.modules |= {"yacs": package, "yacs.config": module}
    try:
        yield
    finally:
        del sys.modules["yacs"], sys.modules["yacs.config"]


def save(content: Any, path: Path, legacy: bool = False) -> Path:
    """Write a file; plain dicts under `config` become yacs' nodes."""
    if isinstance(content, dict) and type(content.get("config")) is dict:
        content = content | {"config": CfgNode(content["config"])}
    with yacs():
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def attn_mask(side: int, window: int) -> torch.Tensor:
    """The mask of a shifted block, (windows, N, N), as `SwinTransformerBlock.__init__` of the authors makes it."""
    shift = window // 2
    regions = torch.zeros(side, side)
    slices = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for row, rows in enumerate(slices):
        for column, columns in enumerate(slices):
            regions[rows, columns] = 3 * row + column
    windows = regions.unfold(0, window, window).unfold(1, window, window).reshape(-1, window * window)
    return torch.where(windows[:, None] == windows[:, :, None], 0.0, -100.0)


def relative_position_index(window: int) -> torch.Tensor:
    """Row of the table for each pair of tokens, (N, N)."""
    tokens = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    distances = tokens[:, None] - tokens[None] + window - 1
    return distances[..., 0] * (2 * window - 1) + distances[..., 1]


def swin_weights(
    image_size: int, window_size: int, embed_dim: int, depths: list[int], num_heads: list[int], patch_size: int = 4
) -> dict[str, torch.Tensor]:
    """Random weights of a Swin and its buffers, under the authors' names: those of a backbone."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}

    def layer(name: str, *shape: int, bias: int | None = None) -> None:
        weights[f"{name}.weight"] = torch.randn(*shape, generator=generator) * 0.1
        if bias != 0:
            weights[f"{name}.bias"] = torch.randn(bias or shape[0], generator=generator) * 0.1

    layer("patch_embed.proj", embed_dim, 3, patch_size, patch_size)
    layer("patch_embed.norm", embed_dim)
    for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
        dim, side = embed_dim * 2**stage, image_size // patch_size // 2**stage
        window = min(window_size, side)
        for block in range(depth):
            prefix = f"layers.{stage}.blocks.{block}"
            if block % 2 and side > window_size:
                weights[f"{prefix}.attn_mask"] = attn_mask(side, window)
            layer(f"{prefix}.norm1", dim)
            table = torch.randn((2 * window - 1) ** 2, heads, generator=generator)
            weights[f"{prefix}.attn.relative_position_bias_table"] = table
            weights[f"{prefix}.attn.relative_position_index"] = relative_position_index(window)
            layer(f"{prefix}.attn.qkv", 3 * dim, dim)
            layer(f"{prefix}.attn.proj", dim, dim)
            layer(f"{prefix}.norm2", dim)
            layer(f"{prefix}.mlp.fc1", 4 * dim, dim)
            layer(f"{prefix}.mlp.fc2", dim, 4 * dim)
        if stage < len(depths) - 1:
            layer(f"layers.{stage}.downsample.reduction", 2 * dim, 4 * dim, bias=0)
            layer(f"layers.{stage}.downsample.norm", 4 * dim)
    layer("norm", embed_dim * 2 ** (len(depths) - 1))
    return weights
