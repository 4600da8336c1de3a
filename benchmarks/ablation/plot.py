"""The paper's figure: accuracy against AvgDist."""

import statistics
from pathlib import Path

import matplotlib

from .grid import Row
from .results import Result
from .verdicts import MODERATE_DISTANCE

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Distinguishable with color blindness.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vPX"


def draw_distances(
    path: Path, rows: dict[str, Row], results: list[Result], image_size: int, metric: str = "accuracy"
) -> None:
    """Draw accuracy after fine-tuning over AvgDist, a curve for each strategy and mask patch.

    Args:
        path: Path of the picture.
        rows: Rows of the table of masks, by name.
        results: The results.
        image_size: Side of the images in pixels.
        metric: Name of what was measured.
    """
    runs = {name: [result for result in results if result.row == name] for name in [*rows, "scratch"]}
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    low, high = (share * image_size for share in MODERATE_DISTANCE)
    axes.axvspan(low, high, color="#009e73", alpha=0.08, linewidth=0)
    if scratch := runs["scratch"]:
        mean, spread = _statistics(scratch)
        axes.axhspan(mean - spread, mean + spread, color="0.5", alpha=0.25, linewidth=0)
        axes.axhline(mean, color="0.4", linestyle="--", linewidth=1, label="from scratch")
    curves: dict[tuple[str, int], list[str]] = {}
    for name, row in rows.items():
        curves.setdefault((row.strategy, row.mask_patch_size), []).append(name)
    in_order = sorted(curves.items(), key=lambda item: (item[0][0] != "random", item[0]))
    for index, ((strategy, size), names) in enumerate(in_order):
        names.sort(key=lambda name: rows[name].mask_ratio)
        x = [runs[name][0].avg_dist for name in names]
        means, spreads = zip(*(_statistics(runs[name]) for name in names), strict=True)
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        label = f"{strategy} {size} px"
        axes.errorbar(x, means, yerr=spreads, color=color, marker=marker, capsize=3, label=label)
        for name, left, top in zip(names, x, means, strict=True):
            ratio = f"{rows[name].mask_ratio:g}"
            axes.annotate(ratio, (left, top), xytext=(6, 6), textcoords="offset points", color=color, fontsize=9)
    axes.set_xlabel(f"AvgDist in pixels of a {image_size} px image")
    axes.set_ylabel(f"{metric} after fine-tuning, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9, loc="best")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _statistics(runs: list[Result]) -> tuple[float, float]:
    values = [100 * run.fine_tune for run in runs]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
