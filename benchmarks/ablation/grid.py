"""Grid of the study: rows of components, grouped as in the paper's tables."""

from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .settings import Settings

Options = dict[str, Any]

TABLES = {
    "masking": "Masking: strategy, mask patch and ratio",
    "heads": "Prediction heads",
    "resolution": "Resolution of the prediction",
    "targets": "Targets and losses",
    "region": "Loss on masked or on all pixels",
}
COLOR_CLUSTERS = 64


@dataclass(frozen=True)
class Row:
    """A choice of every component.

    Args:
        mask_patch_size: Side of a mask patch in pixels.
        strategy: Name in `MASK_STRATEGIES`.
        mask_ratio: Mask ratio, 0 to 1.
        head: Name of the head.
        head_options: Its options.
        prediction_stride: Stride of the prediction in pixels; the target's if None.
        target: Name of the target.
        target_options: Its options; `num_clusters` is replaced by centers that are fitted to the images.
        loss: Name of the loss; the target's default if None.
        loss_region: `"masked"` or `"all"`.
        is_pretrained: False for the row from scratch, whose components are not used.
    """

    mask_patch_size: int
    strategy: str = "random"
    mask_ratio: float = 0.6
    head: str = "linear"
    head_options: Options = field(default_factory=dict)
    prediction_stride: int | None = None
    target: str = "rgb"
    target_options: Options = field(default_factory=dict)
    loss: str | None = "l1"
    loss_region: str = "masked"
    is_pretrained: bool = True

    def difference(self, other: "Row") -> dict[str, Any]:
        """The components in which this row differs from another."""
        pairs = {item.name: (getattr(self, item.name), getattr(other, item.name)) for item in fields(self)}
        return {name: mine for name, (mine, theirs) in pairs.items() if mine != theirs}


def study_tables(
    settings: Settings, teacher: str | None = None, codebook: str | None = None
) -> dict[str, dict[str, Row]]:
    """Build the grid. A row in several tables has one name, and is run once.

    Args:
        settings: Settings of all rows.
        teacher: Model whose features are a target; no such row if None.
        codebook: Tokenizer whose tokens are a target; no such row if None.

    Returns:
        Rows by name, by table; each table contains the baseline.
    """
    small, middle, large = settings.mask_patch_sizes
    baseline = baseline_row(settings)
    masks = [("random", small, ratio) for ratio in settings.random_ratios[0]]
    masks += [("random", middle, ratio) for ratio in settings.random_ratios[1]]
    masks += [("random", large, ratio) for ratio in settings.random_ratios[2]]
    masks += [(strategy, size, ratio) for strategy, size, ratio in settings.other_masks]
    light, heavy = (settings.inverse_swin[size] for size in ("light", "heavy"))
    regression: list[tuple[str, Options, str]] = [
        ("rgb", {}, "l1"),
        ("rgb", {}, "l2"),
        ("rgb", {}, "smooth_l1"),
        ("normalized_rgb", {"window_size": settings.normalization_window}, "l1"),
        ("normalized_rgb", {"patch_size": middle}, "l1"),
    ]
    classes: list[tuple[str, Options]] = [
        ("color_bins", {"num_bins": 8}),
        ("color_bins", {"num_bins": 256}),
        ("color_clusters", {"num_clusters": COLOR_CLUSTERS}),
        ("hog", {"cell_size": settings.hog_cell_size}),
    ]
    classes += [("features", {"model": teacher})] * (teacher is not None)
    classes += [("codebook", {"model": codebook})] * (codebook is not None)
    tables = {
        "masking": [
            replace(baseline, strategy=name, mask_patch_size=size, mask_ratio=ratio) for name, size, ratio in masks
        ],
        "heads": [
            replace(baseline, head="mlp"),
            replace(baseline, head="inverse_swin", head_options=light),
            replace(baseline, head="inverse_swin", head_options=heavy),
        ],
        "resolution": [replace(baseline, prediction_stride=stride) for stride in settings.coarse_strides],
        "targets": [
            *(replace(baseline, target=name, target_options=options, loss=loss) for name, options, loss in regression),
            *(replace(baseline, target=name, target_options=options, loss=None) for name, options in classes),
        ],
        "region": [replace(baseline, loss_region="all")],
    }
    return {
        name: {row_name(row, baseline): row for row in ([] if baseline in rows else [baseline]) + rows}
        for name, rows in tables.items()
    }


def baseline_row(settings: Settings) -> Row:
    """The row from which the others differ."""
    row = Row(settings.mask_patch_sizes[1])
    if settings.target == "hog":
        return replace(row, target="hog", target_options={"cell_size": settings.hog_cell_size}, loss=None)
    return row


def rgb_row(row: Row) -> Row:
    """The row that predicts RGB with l1, and has all other components of this one."""
    return replace(row, target="rgb", target_options={}, loss="l1")


def target_name(row: Row) -> str:
    """Describe the target of a row: its differences from RGB with l1."""
    return row_name(row, rgb_row(row))


def scratch_row(settings: Settings) -> Row:
    """The row without pre-training."""
    return Row(settings.mask_patch_sizes[1], is_pretrained=False)


def row_name(row: Row, baseline: Row) -> str:
    """A unique short name of a row: its differences from the baseline."""
    if not row.is_pretrained:
        return "scratch"
    changed = row.difference(baseline)
    if not changed:
        return "baseline"
    if changed.keys() <= {"strategy", "mask_patch_size", "mask_ratio"}:
        return mask_name(row)
    parts = []
    for name, value in changed.items():
        if name == "prediction_stride":
            parts.append(f"stride {value}")
        elif name == "head_options" and row.head == "inverse_swin":
            parts.append(f"{value['embed_dim']} wide, {'-'.join(map(str, value['depths']))} blocks")
        elif isinstance(value, dict):
            parts += [f"{key} {option}" for key, option in value.items()]
        elif value is not None:
            parts.append("loss on all" if name == "loss_region" else str(value))
    return " ".join(parts)


def mask_name(row: Row) -> str:
    """Describe the mask of a row."""
    return f"{row.strategy} {row.mask_patch_size} px {row.mask_ratio:g}"


def select_rows(tables: dict[str, dict[str, Row]], wanted: Collection[str] | None, scratch: Row) -> dict[str, Row]:
    """Select the rows to run, each once, always with the baseline and the row from scratch.

    Args:
        tables: The grid.
        wanted: Names of the rows; all if None.
        scratch: The row without pre-training.

    Returns:
        Rows by name, in the order of the tables.

    Raises:
        ValueError: If a name is unknown.
    """
    rows = {"scratch": scratch} | {name: row for table in tables.values() for name, row in table.items()}
    if wanted is None:
        return rows
    if unknown := set(wanted) - set(rows):
        raise ValueError(f"There is no row {', '.join(sorted(unknown))}. Use some of: {', '.join(rows)}.")
    return {name: row for name, row in rows.items() if name in {"scratch", "baseline", *wanted}}
