"""Comparison of the buffers in a .pth file with those that our code computes.

Buffers are derived from the geometry. If they agree, the weights have the same meaning in our model.
"""

import re
from typing import Any

import torch
from transformers.models.beit.modeling_beit import BeitRelativePositionBias

from ..model.configuration_simmim import SimMIMConfig
from ..model.swin import Swin, stage_grids
from ..model.windows import WindowLayout
from .pth_checkpoint import OriginalCheckpoint
from .pth_geometry import Size
from .pth_names import SWIN_BLOCK

VIT_INDEX = re.compile(r"(rel_pos_bias|blocks\.\d+\.attn)\.relative_position_index")
BUFFER = re.compile(r"(.*\.)?(relative_position_index|attn_mask|relative_coords_table)")


def verify_buffers(original: OriginalCheckpoint, config: SimMIMConfig, encoder: Any) -> list[str]:
    """Compare the buffers of a checkpoint with those that our code computes.

    Args:
        original: The checkpoint.
        config: Its config.
        encoder: Our encoder of that config.

    Returns:
        Kind of each buffer: relative_position_index, attn_mask or relative_coords_table.

    Raises:
        ValueError: If a buffer differs from ours.
    """
    verified = []
    layouts: dict[int, WindowLayout] = {}
    for name, theirs in original.weights.items():
        found = BUFFER.fullmatch(name)
        if not found:
            continue
        if original.architecture == "beit":
            ours = _vit_index(config) if VIT_INDEX.fullmatch(name) else None
        else:
            ours = _swin_buffer(name, encoder, stage_grids(config.encoder_config), layouts)
        # The table was computed in floating point on another machine.
        tolerance = 8 * torch.finfo(theirs.dtype).eps if theirs.is_floating_point() else 0.0
        if (
            ours is None
            or ours.shape != theirs.shape
            or not torch.allclose(theirs.double(), ours.double(), rtol=0.0, atol=tolerance)
        ):
            raise ValueError(
                f"{original.file_names[name]} in the file differs from what our {original.architecture} computes at"
                f" {config.image_size[0]} x {config.image_size[1]} px, so the model would not be the same. If the file"
                " is for another image size, set --image_size."
            )
        verified.append(found[2])
    return verified


def _vit_index(config: SimMIMConfig) -> torch.Tensor:
    """Row of the relative position table of transformers' BEiT for each pair of tokens, the class token first."""
    return BeitRelativePositionBias.generate_relative_position_index(config.grid_size)


def _swin_buffer(name: str, encoder: Swin, grids: list[Size], layouts: dict[int, WindowLayout]) -> torch.Tensor | None:
    """The buffer as our Swin or SwinV2 computes it, or None if it has no such buffer."""
    found = re.fullmatch(SWIN_BLOCK + r"(?:attn\.(relative_position_index|relative_coords_table)|(attn_mask))", name)
    if not found or int(found[1]) >= len(grids):
        return None
    stage, is_shifted = int(found[1]), int(found[2]) % 2 == 1
    if stage not in layouts:
        module: Any = encoder.encoder.layers[stage]
        layouts[stage] = module.layout(grids[stage], torch.device("cpu"), torch.float32)
    layout = layouts[stage]
    if found[3] == "relative_position_index":
        return layout.relative_index
    if found[3] == "relative_coords_table":
        if layout.coordinates is None:
            return None
        side = 2 * layout.window_size - 1
        return layout.coordinates.view(1, side, side, 2)
    return layout.region_mask[:, 0] if is_shifted and layout.region_mask is not None else None
