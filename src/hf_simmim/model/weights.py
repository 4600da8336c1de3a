"""Loading and export of transformers' own checkpoints, and conversion of weights to another geometry."""

import contextlib
import copy
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING, AutoConfig, PreTrainedModel
from transformers.utils import logging

from .encoders import OWN_ENCODERS, POSITIONS, EncoderGeometry, encode, encoder_geometry, transformers_class
from .swin import stage_grids, stage_windows

# Keys of an encoder's config that decide how many positions there are, and which tables hold them.
GEOMETRY_KEYS = (
    "image_size",
    "window_size",
    "pretrained_window_sizes",
    "use_shared_relative_position_bias",
    "use_relative_position_bias",
    "use_mean_pooling",
)

_TABLE = "relative_position_bias_table"


def same_geometry(source: Any, target: Any) -> bool:
    """Whether weights for one config fit another as they are."""
    return _geometry(source) == _geometry(target)


def with_geometry_of(source: Any, target: Any) -> Any:
    """A copy of `target` with the geometry of `source`."""
    config = copy.deepcopy(target)
    for key in GEOMETRY_KEYS:
        if hasattr(source.encoder_config, key):
            setattr(config.encoder_config, key, copy.deepcopy(getattr(source.encoder_config, key)))
    return config


def _geometry(config: Any) -> dict[str, Any]:
    values = {key: getattr(config.encoder_config, key, None) for key in GEOMETRY_KEYS}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()} | {
        "image_size": config.image_size
    }


def keep_pretrained_windows(source: Any, target: Any) -> None:
    """Set the window sizes of pre-training in a SwinV2 config whose windows change.

    The position bias is a function of coordinates that are divided by a window size: after a change of windows, that
    of pre-training.
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
    state_dict: dict[str, torch.Tensor], source: Any, target: Any, expected: dict[str, torch.Size]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Convert weights to another image size, window size, or kind of position bias.

    Args:
        state_dict: Weights for `source`.
        source: Config of `state_dict`.
        target: Config of the model to convert to.
        expected: Name and shape of each parameter of that model.

    Returns:
        The weights, and a line for the log about each kind of conversion.

    Raises:
        ValueError: If a weight depends on the geometry in an unknown way.

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
            note(f"{name} is left out: the model of this geometry does not have it")
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
                f"{name} has shape {tuple(tensor.shape)}, but the model at {target.image_size} px needs"
                f" {tuple(expected[name])}, and no conversion is known. Keep the image size of"
                f" {source.image_size} px."
            )
        remapped[name] = tensor
    windows = getattr(target.encoder_config, "pretrained_window_sizes", None)
    if windows is not None and windows != getattr(source.encoder_config, "pretrained_window_sizes", None):
        note(f"continuous position bias, trained with windows of {list(windows)} tokens")
    return remapped, [f"{line} ({count}x)" if count > 1 else line for line, count in lines.items()]


def _share_out(state_dict: dict[str, torch.Tensor], expected: dict[str, torch.Size], note) -> dict[str, torch.Tensor]:
    """Copy BEiT's shared table to every block, if the blocks have tables of their own."""
    shared = next((name for name in state_dict if name.endswith(f"shared_position_bias.{_TABLE}")), None)
    own = [name for name in expected if name.endswith(_TABLE)]
    if shared is None or shared in expected or not own:
        return state_dict
    note(f"the shared relative position table copied to {len(own)} blocks")
    state_dict = dict(state_dict)
    table = state_dict.pop(shared)
    return state_dict | {name: table.clone() for name in own}


def _built_grid(config: Any) -> tuple[int, int]:
    """(h, w) of the patch grid that an encoder has positions for."""
    geometry = encoder_geometry(config.encoder_config)
    size = geometry.built_size if geometry.built_size is not None else geometry.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return height // geometry.patch_size, width // geometry.patch_size


def _is_rectangle_table(tensor: torch.Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> bool:
    """Whether a table covers a whole grid whose sides change, even if its number of positions does not."""
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
    """Interpolate a relative position table for another window.

    The rows of the old table are placed at distances that grow geometrically, so that the outermost distances of both
    windows are equal: near neighbors keep their values, and far ones are stretched.

    Args:
        table: Tensor of shape ((2h - 1)(2w - 1) + extra, heads); the extra rows are those of the class token.
        old: (h, w) of its window, in tokens.
        new: (h, w) of the new window, in tokens.

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
    """Linear map that resizes one axis of a table."""
    if length == new_length:
        return torch.eye(length, dtype=torch.float64)
    return _spline_matrix(_geometric_distances(length, new_length), new_length)


def _geometric_distances(length: int, new_length: int) -> torch.Tensor:
    """Coordinates of the entries of one axis: 0 in the middle, then geometrically growing steps to both sides."""
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
    """The linear map from values at `knots` to values at integer distances, by a cubic not-a-knot spline.

    Beyond the outermost knots the values are constant, as in FITPACK. With fewer than four knots the spline is the
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
        old: (h, w) of their grid, in tokens.
        new: (h, w) of the new grid, in tokens.

    Returns:
        Tensor of shape (1, P + h' * w', D) or (P + h' * w', D).
    """
    num_prefix = positions.shape[-2] - old[0] * old[1]
    if num_prefix < 0:
        raise ValueError(f"There are {positions.shape[-2]} position embeddings, but the grid of {old} needs more.")
    prefix, grid = positions[..., :num_prefix, :], positions[..., num_prefix:, :]
    grid = grid.reshape(1, *old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid.float(), size=new, mode="bicubic", align_corners=False).to(positions.dtype)
    grid = grid.permute(0, 2, 3, 1).reshape(*prefix.shape[:-2], new[0] * new[1], -1)
    return torch.cat([prefix, grid], dim=-2)


# Parts that an encoder's features do not depend on, and that stock checkpoints may lack or have.
_OPTIONAL = {"pooler", "mask_token", "head"}


def is_optional(name: str) -> bool:
    """Whether an encoder's features are independent of a parameter of this name."""
    return not _OPTIONAL.isdisjoint(name.split("."))


def load_stock(
    pretrained_model_name_or_path: str | Path, **kwargs: Any
) -> tuple[Any, dict[str, torch.Tensor], dict[str, torch.Tensor], list[str]]:
    """Load a checkpoint of a vision model of transformers.

    Args:
        pretrained_model_name_or_path: Folder or name on the Hub.
        **kwargs: Passed to `from_pretrained`: `revision`, `token`, `cache_dir` and the like.

    Returns:
        The encoder's config, its weights under the names of our encoders, the weights of a prediction head of one
        linear layer (empty if there is none), and the names of all other weights of the checkpoint.

    Raises:
        ValueError: If the checkpoint holds no vision model, or lacks some of its weights.
    """
    name = str(pretrained_model_name_or_path)
    config: Any = AutoConfig.from_pretrained(name, **kwargs)
    if config.model_type == "simmim":
        raise ValueError(f"{name} is a SimMIM checkpoint already. Load it with from_pretrained.")
    architecture = (config.architectures or [""])[0]
    if getattr(config, "vision_config", None) is not None and transformers_class(config.vision_config) is not None:
        config = config.vision_config
    model_class: Any = transformers_class(config)
    if architecture.endswith("ForMaskedImageModeling"):
        model_class = MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING.get(type(config), model_class)  # type: ignore[arg-type]
    if model_class is None:
        raise ValueError(f"{name} holds a {config.model_type!r} model, which transformers cannot load as an encoder.")
    with _quiet():
        model, info = model_class.from_pretrained(name, config=config, output_loading_info=True, **kwargs)
    missing = sorted(key for key in info["missing_keys"] if not is_optional(key) and not key.startswith("decoder"))
    if missing:
        raise ValueError(
            f"{name} lacks {len(missing)} weights of the {config.model_type!r} encoder that its config describes, such"
            f" as {', '.join(missing[:3])}. They would be random: use the checkpoint of a complete model."
        )
    # Not for a bare model, because one of them holds an inner model under its own prefix.
    base = model if isinstance(model, transformers_class(config) or ()) else model.base_model
    decoder = getattr(model, "decoder", None)
    is_linear = isinstance(decoder, nn.Sequential) and getattr(decoder[0], "kernel_size", None) == (1, 1)
    is_whole = not any(key.startswith("decoder") for key in info["missing_keys"])
    head = dict(decoder[0].state_dict()) if is_linear and is_whole else {}  # type: ignore[index]
    beside = [key for key, _ in model.named_parameters() if base is not model and not _is_within(key, model, decoder)]
    # Weights that the file lacks, such as a pooler, are random here.
    absent = {key.removeprefix(f"{model.base_model_prefix}.") for key in info["missing_keys"]}
    weights = {key: tensor for key, tensor in names_on_disk(base).items() if key not in absent}
    return model.config, weights, head, sorted({*info["unexpected_keys"], *beside} - info["missing_keys"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' loading report, because we log our own for the resulting model."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _is_within(key: str, model: PreTrainedModel, decoder: nn.Module | None) -> bool:
    prefixes = [f"{model.base_model_prefix}."] + (["decoder."] if decoder is not None else [])
    return key.startswith(tuple(prefixes))


def names_on_disk(encoder: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Weights of a stock model under the names of our encoders.

    Our own Swins have the names of transformers' checkpoints, which differ from those in memory for some models.
    """
    if encoder.config.model_type not in OWN_ENCODERS:
        return dict(encoder.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        encoder.save_pretrained(folder, max_shard_size="1000GB")
        return load_file(Path(folder, "model.safetensors"))


def export_encoder(encoder: nn.Module, config: Any, geometry: EncoderGeometry, save_directory: str | Path) -> list[str]:
    """Save an encoder as a checkpoint of transformers' own model, and verify that it computes the same features.

    Args:
        encoder: The encoder from `build_encoder`.
        config: The SimMIM config.
        geometry: Its geometry.
        save_directory: Folder to write to.

    Returns:
        Names of the encoder's parameters that stock models do not have.

    Raises:
        ValueError: If stock transformers cannot represent the encoder; nothing is written then.
    """
    encoder_config: Any = copy.deepcopy(encoder.config)
    model_class: Any = transformers_class(encoder_config)
    if config.image_size != geometry.image_size:
        height, width = geometry.image_size
        raise ValueError(
            _cannot(
                encoder_config,
                f"images of {config.image_size[0]}x{config.image_size[1]} px are not a multiple of its stride of"
                f" {geometry.stride} px, and only ours pads them (from_pretrained(..., image_size=({height}, {width}))"
                " loads it for the next multiple)",
            )
        )
    _refuse_clamped_windows(encoder_config, geometry)
    state_dict = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(encoder, PreTrainedModel):
            with torch.random.fork_rng(devices=[]):
                stock = model_class._from_config(encoder_config, dtype=encoder.dtype)
            result = stock.load_state_dict(state_dict, strict=False)
            missing, left_out = list(result.missing_keys), list(result.unexpected_keys)
            stock.save_pretrained(folder)
        else:
            left_out = [name for name in state_dict if name.endswith("mask_token")]
            for name in left_out:
                del state_dict[name]
            save_file(state_dict, Path(folder, "model.safetensors"), metadata={"format": "pt"})
            encoder_config.architectures = [model_class.__name__]
            encoder_config.dtype = next(encoder.parameters()).dtype
            encoder_config.save_pretrained(folder)
            missing = []
        missing = [name for name in missing if not is_optional(name)]
        if missing or any(not is_optional(name) for name in left_out):
            raise ValueError(_cannot(encoder_config, f"its weights differ: {(missing or left_out)[:3]}"))
        _check_same_features(encoder, model_class, folder, geometry, encoder_config)
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        for path in Path(folder).iterdir():
            shutil.copy(path, save_directory)
    return left_out


def _cannot(encoder_config: Any, reason: str) -> str:
    return (
        f"Stock transformers cannot represent this {encoder_config.model_type!r} encoder: {reason}. Nothing was"
        " written. Use save_pretrained and load it with hf_simmim."
    )


def _refuse_clamped_windows(encoder_config: Any, geometry: EncoderGeometry) -> None:
    """Reject windows larger than a stage: stock Swin has tables for the config's window in all, and fails there."""
    if encoder_config.model_type != "swin":
        return
    window = encoder_config.window_size
    for stage, (rows, columns) in enumerate(stage_grids(encoder_config)):
        if min(rows, columns) < window:
            needed = window * geometry.stride
            raise ValueError(
                _cannot(
                    encoder_config,
                    f"its window_size={window} is larger than the grid of {rows}x{columns} tokens of stage {stage + 1}"
                    f" at {geometry.image_size[0]}x{geometry.image_size[1]} px, and only ours shrinks the window there"
                    f" (image_size={needed} needs no shrinking)",
                )
            )


@torch.no_grad()
def _check_same_features(
    encoder: nn.Module, model_class: Any, folder: str, geometry: EncoderGeometry, encoder_config: Any
) -> None:
    parameter = next(encoder.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, getattr(encoder_config, "num_channels", 3), *geometry.image_size, generator=generator)
    images = images.to(parameter.device, parameter.dtype)
    modes = {module: module.training for module in encoder.modules()}
    try:
        stock = model_class.from_pretrained(folder, dtype=parameter.dtype).to(parameter.device).eval()
        expected = encode(encoder.eval(), geometry, images).feature_map.float()
        # A stock Swin returns tokens, and is run like other models of transformers.
        stock_geometry = geometry._replace(layout="tokens", route="pixels") if geometry.route == "own" else geometry
        features = encode(stock, stock_geometry._replace(route="pixels"), images).feature_map.float()
    except (RuntimeError, ValueError) as error:
        raise ValueError(_cannot(encoder_config, f"there it fails with: {' '.join(str(error).split())}")) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    difference = ((features - expected).norm() / expected.norm()).item()
    if not difference < (1e-4 if parameter.dtype == torch.float32 else 5e-2):
        raise ValueError(_cannot(encoder_config, f"there its features differ by {difference:.1e} of their norm"))


def describe_loading(name: str, num_loaded: int, fresh: list[str], left_out: list[str]) -> str:
    """Describe which weights were loaded, newly initialized and left out, in one paragraph."""
    parts = [f"{name}: {num_loaded} tensors loaded."]
    if fresh:
        parts.append(f"Freshly initialized: {_shorten(fresh)}.")
    if left_out:
        parts.append(f"In the checkpoint and left out: {_shorten(left_out)}.")
    return " ".join(parts)


def _shorten(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
