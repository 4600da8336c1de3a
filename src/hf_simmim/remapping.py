"""Weights that depend on image size or window, taken from one geometry to another."""

import copy
from typing import Any

import torch
import torch.nn.functional as F

from .configuration_simmim import SimMIMConfig
from .encoder_geometry import POSITIONS, encoder_geometry
from .swin import stage_windows

# Of an encoder's config: what decides how many positions there are, and which tables hold them.
GEOMETRY_KEYS = (
    "image_size",
    "window_size",
    "pretrained_window_sizes",
    "use_shared_relative_position_bias",
    "use_relative_position_bias",
    "use_mean_pooling",
)

_TABLE = "relative_position_bias_table"


def same_geometry(source: SimMIMConfig, target: SimMIMConfig) -> bool:
    """Whether weights for one config fit another as they are."""
    return _geometry(source) == _geometry(target)


def with_geometry_of(source: SimMIMConfig, target: SimMIMConfig) -> SimMIMConfig:
    """A copy of `target` with the geometry of `source`."""
    config = copy.deepcopy(target)
    for key in GEOMETRY_KEYS:
        if hasattr(source.encoder_config, key):
            setattr(config.encoder_config, key, copy.deepcopy(getattr(source.encoder_config, key)))
    return config


def _geometry(config: SimMIMConfig) -> dict[str, Any]:
    values = {key: getattr(config.encoder_config, key, None) for key in GEOMETRY_KEYS}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()} | {
        "image_size": config.image_size
    }


def keep_pretrained_windows(source: SimMIMConfig, target: SimMIMConfig) -> None:
    """Tell a SwinV2 config the windows that its position bias was trained with, where they change.

    The bias is a function of coordinates that are divided by the window's size; after a change of window it has to be
    the size of pre-training.
    """
    if source.encoder_config.model_type != "swinv2":
        return
    trained = list(source.encoder_config.pretrained_window_sizes)
    if any(trained):
        if not any(target.encoder_config.pretrained_window_sizes):
            target.encoder_config.pretrained_window_sizes = trained
    elif stage_windows(source.encoder_config) != stage_windows(target.encoder_config):
        target.encoder_config.pretrained_window_sizes = stage_windows(source.encoder_config)


def remap(
    state_dict: dict[str, torch.Tensor], source: SimMIMConfig, target: SimMIMConfig, expected: dict[str, torch.Size]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Bring weights to another image size, window, or kind of position bias.

    Args:
        state_dict: Weights for `source`.
        source: Config that they were trained with.
        target: Config of the model that they are for.
        expected: Name and shape of each parameter of that model.

    Returns:
        The weights, and a line for each kind of thing that was remapped.

    Raises:
        ValueError: If something depends on the geometry in a way that is not known here.

    Source: `remap_pretrained_keys_swin` and `remap_pretrained_keys_vit` in utils.py of microsoft/SimMIM; absolute
    positions as in `interpolate_pos_embed` of facebookresearch/deit.
    """
    remapped = {}
    lines: dict[str, int] = {}
    old_grid, new_grid = _built_grid(source), _built_grid(target)

    def note(line: str) -> None:
        lines[line] = lines.get(line, 0) + 1

    for name, tensor in _share_out(state_dict, expected, note).items():
        if name not in expected:
            note(f"{name} is left out: the model for this geometry has none")
            continue
        if name.endswith(_TABLE):
            if tensor.shape != expected[name] or (len(old_grid) and _is_rectangle_table(tensor, old_grid, new_grid)):
                old, new = _table_grids(tensor, expected[name], old_grid, new_grid)
                tensor = resize_table(tensor, old, new)
                note(f"relative position tables from {old[0]}x{old[1]} to {new[0]}x{new[1]} tokens, geometric bicubic")
        elif POSITIONS.search(name) and old_grid != new_grid and tensor.ndim in (2, 3):
            tensor = resize_positions(tensor, old_grid, new_grid)
            note(
                f"absolute position embeddings from {old_grid[0]}x{old_grid[1]} to {new_grid[0]}x{new_grid[1]} tokens,"
                " bicubic"
            )
        if tensor.shape != expected[name]:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and the model at {target.image_size} px needs"
                f" {tuple(expected[name])}. How to take it there is not known: keep the image size of"
                f" {source.image_size} px."
            )
        remapped[name] = tensor
    windows = getattr(target.encoder_config, "pretrained_window_sizes", None)
    if windows is not None and windows != getattr(source.encoder_config, "pretrained_window_sizes", None):
        note(f"continuous position bias, trained with windows of {list(windows)} tokens")
    return remapped, [f"{line} ({count}x)" if count > 1 else line for line, count in lines.items()]


def _share_out(state_dict: dict[str, torch.Tensor], expected: dict[str, torch.Size], note) -> dict[str, torch.Tensor]:
    """Copy BEiT's one shared table to every block, where the blocks have tables of their own."""
    shared = next((name for name in state_dict if name.endswith(f"shared_position_bias.{_TABLE}")), None)
    own = [name for name in expected if name.endswith(_TABLE)]
    if shared is None or shared in expected or not own:
        return state_dict
    note(f"the shared relative position table copied to {len(own)} blocks")
    state_dict = dict(state_dict)
    table = state_dict.pop(shared)
    return state_dict | {name: table.clone() for name in own}


def _built_grid(config: SimMIMConfig) -> tuple[int, int]:
    """(h, w) of the patch grid that an encoder holds positions for."""
    geometry = encoder_geometry(config.encoder_config)
    size = geometry.built_size if geometry.built_size is not None else geometry.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return height // geometry.patch_size, width // geometry.patch_size


def _is_rectangle_table(tensor: torch.Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> bool:
    """Whether a table is that of a whole grid that changes its sides and not its number of positions."""
    return old_grid != new_grid and tensor.shape[0] - 3 == (2 * old_grid[0] - 1) * (2 * old_grid[1] - 1)


def _table_grids(
    tensor: torch.Tensor, expected: torch.Size, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The grids of a table before and after: the whole grid if it fits (ViT), else a square window (Swin)."""
    found = []
    for length, grid in ((tensor.shape[0], old_grid), (expected[0], new_grid)):
        if length == (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3:
            found.append(grid)
        else:
            window = (round(length**0.5) + 1) // 2
            found.append((window, window))
    return found[0], found[1]


def resize_table(table: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """Take a relative position table to another window.

    The rows of the old table are thought to lie at distances that grow geometrically, so that the outermost of both
    windows meet: near neighbours keep their values, and far ones are stretched.

    Args:
        table: Tensor of shape ((2h - 1)(2w - 1) + extra, heads); the extra rows are those of the class token.
        old: (h, w) of the window that it is for, in tokens.
        new: (h, w) of the window that it is wanted for.

    Returns:
        Tensor of shape ((2h' - 1)(2w' - 1) + extra, heads).

    Source: `remap_pretrained_keys_swin` in utils.py of microsoft/SimMIM, with SciPy's `interp2d(kind="cubic")`.
    """
    rows, columns = 2 * old[0] - 1, 2 * old[1] - 1
    positions, extra = table[: rows * columns], table[rows * columns :]
    grid = positions.double().reshape(rows, columns, -1)
    by_row = _axis_matrix(rows, 2 * new[0] - 1).to(table.device)
    by_column = _axis_matrix(columns, 2 * new[1] - 1).to(table.device)
    resized = torch.einsum("ir,rch,jc->ijh", by_row, grid, by_column)
    return torch.cat([resized.flatten(0, 1).to(table.dtype), extra])


def _axis_matrix(length: int, new_length: int) -> torch.Tensor:
    """The linear map of one axis of a table."""
    if length == new_length:
        return torch.eye(length, dtype=torch.float64)
    return _spline_matrix(_geometric_distances(length, new_length), new_length)


def _geometric_distances(length: int, new_length: int) -> torch.Tensor:
    """Where the entries of one axis of a table lie: 0 in the middle, then ever larger steps to both sides."""
    half, new_half = length // 2, new_length // 2
    left, right = 1.01, 1.5
    while right - left > 1e-6:
        ratio = (left + right) / 2
        if (1 - ratio**half) / (1 - ratio) > new_half:
            right = ratio
        else:
            left = ratio
    steps = ratio ** torch.arange(half, dtype=torch.float64)
    distances = steps.cumsum(0)
    return torch.cat([-distances.flip(0), torch.zeros(1, dtype=torch.float64), distances])


def _spline_matrix(knots: torch.Tensor, new_length: int) -> torch.Tensor:
    """The linear map from values at `knots` to values at whole distances, by a cubic not-a-knot spline.

    Beyond the outermost knots the value there holds on, as in FITPACK. With fewer than four knots the spline is the
    polynomial through all of them.
    """
    count = len(knots)
    half = new_length // 2
    points = torch.arange(-half, half + 1, dtype=torch.float64).clamp(knots[0], knots[-1])
    values = torch.eye(count, dtype=torch.float64)
    if count < 4:
        matrix = torch.ones(new_length, count, dtype=torch.float64)
        for i in range(count):
            for j in range(count):
                if i != j:
                    matrix[:, i] *= (points - knots[j]) / (knots[i] - knots[j])
        return matrix
    gaps = knots.diff()
    slopes = values.diff(dim=0) / gaps[:, None]
    # Second derivatives at the knots: continuous first derivatives inside, third ones at the knots next to the ends.
    system = torch.zeros(count, count, dtype=torch.float64)
    right_side = torch.zeros(count, count, dtype=torch.float64)
    for i in range(1, count - 1):
        system[i, i - 1], system[i, i], system[i, i + 1] = gaps[i - 1], 2 * (gaps[i - 1] + gaps[i]), gaps[i]
        right_side[i] = 6 * (slopes[i] - slopes[i - 1])
    system[0, :3] = torch.stack([gaps[1], -(gaps[0] + gaps[1]), gaps[0]])
    system[-1, -3:] = torch.stack([gaps[-1], -(gaps[-2] + gaps[-1]), gaps[-2]])
    bends = torch.linalg.solve(system, right_side)
    segment = (torch.searchsorted(knots, points, right=True) - 1).clamp(0, count - 2)
    gap = gaps[segment][:, None]
    after = (points - knots[segment])[:, None] / gap
    before = 1 - after
    curved = (before**3 - before) * bends[segment] + (after**3 - after) * bends[segment + 1]
    return before * values[segment] + after * values[segment + 1] + curved * gap**2 / 6


def resize_positions(positions: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    """Interpolate absolute position embeddings.

    Args:
        positions: Tensor of shape (1, P + h * w, D) or (P + h * w, D), those of P prefix tokens first.
        old: (h, w) of the grid that they are for, in tokens.
        new: (h, w) of the grid that they are wanted for.

    Returns:
        Tensor of shape (1, P + h' * w', D) or (P + h' * w', D).
    """
    num_prefix = positions.shape[-2] - old[0] * old[1]
    if num_prefix < 0:
        raise ValueError(f"There are {positions.shape[-2]} position embeddings, and the grid of {old} needs more.")
    prefix, grid = positions[..., :num_prefix, :], positions[..., num_prefix:, :]
    grid = grid.reshape(1, *old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid.float(), size=new, mode="bicubic", align_corners=False).to(positions.dtype)
    grid = grid.permute(0, 2, 3, 1).reshape(*prefix.shape[:-2], new[0] * new[1], -1)
    return torch.cat([prefix, grid], dim=-2)
