"""The picture of docs/evidence.md: all arms on each set, with the most labels and over the number of labels."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from hf_simmim.evaluation.comparing.verdicts import ALL_ARMS as ARMS
from hf_simmim.visualization.plots import ARM_COLORS, ARM_MARKERS

WIDTH, HEIGHT = 3.3, 3.6  # of a panel, in inches
METRICS = {"accuracy": "test accuracy (%)", "balanced_accuracy": "balanced test accuracy (%)"}


def subset_means(found: Mapping[str, Any]) -> dict[int, dict[str, dict[int, float]]]:
    """Values in percent by number of labels, arm and subset of labels: means over pre-trainings.

    Args:
        found: A result of `benchmarks.evidence`.

    Returns:
        The values, by number of labels from the fewest.
    """
    values: dict[int, dict[str, dict[int, list[float]]]] = {}
    for run in sorted(found["runs"], key=lambda run: run["num_labels"]):
        arms = values.setdefault(run["num_labels"], {})
        arms.setdefault(run["arm"], {}).setdefault(run["seed"], []).append(100 * run["value"])
    return {
        budget: {arm: {seed: statistics.fmean(runs) for seed, runs in subsets.items()} for arm, subsets in arms.items()}
        for budget, arms in values.items()
    }


def _draw_subsets(axes: Axes, arms: Mapping[str, Mapping[int, float]]) -> None:
    """A line for each subset of labels over the arms, and the means."""
    for seed in arms[ARMS[0]]:
        axes.plot(range(len(ARMS)), [arms[arm][seed] for arm in ARMS], color="0.75", linewidth=1, zorder=1)
    for place, arm in enumerate(ARMS):
        column = list(arms[arm].values())
        style: dict[str, Any] = {"color": ARM_COLORS[arm], "marker": ARM_MARKERS[arm], "zorder": 2}
        axes.scatter([place] * len(column), column, s=22, alpha=0.45, linewidths=0, **style)
        mean = statistics.fmean(column)
        axes.scatter([place], [mean], s=80, edgecolors="white", **style)
        axes.annotate(
            f"{mean:.1f}",
            (place, mean),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            fontweight="bold",
            color=ARM_COLORS[arm],
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )
    axes.set_xticks(range(len(ARMS)), [arm.replace(" ", "\n") for arm in ARMS], fontsize=8)
    axes.set_xlim(-0.4, len(ARMS) - 0.3)


def _draw_curves(axes: Axes, means: Mapping[int, Mapping[str, Mapping[int, float]]]) -> None:
    """Mean and standard deviation over the subsets of each arm, over the number of labels."""
    for number, arm in enumerate(ARMS):
        places = [place + 0.03 * (number - 1.5) for place in range(len(means))]
        columns = [list(arms[arm].values()) for arms in means.values()]
        axes.errorbar(
            places,
            [statistics.fmean(column) for column in columns],
            yerr=[statistics.stdev(column) for column in columns],
            capsize=3,
            label=arm,
            color=ARM_COLORS[arm],
            marker=ARM_MARKERS[arm],
        )
    axes.set_xticks(range(len(means)), [str(budget) for budget in means])
    axes.set_xlim(-0.3, len(means) - 0.7)
    axes.set_xlabel("labeled images")


def draw_arms(studies: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the arms of each study, one above the other: each subset with the most labels, and learning curves.

    Args:
        studies: Results of `benchmarks.evidence` with all arms and at least two subsets, by title.
        path: Image file to write.
    """
    figure = Figure(figsize=(WIDTH * len(studies), 2 * HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(studies), squeeze=False)
    for column, (title, found) in enumerate(studies.items()):
        means = subset_means(found)
        most = max(means)
        _draw_subsets(panels[0, column], means[most])
        _draw_curves(panels[1, column], means)
        panels[0, column].set_title(f"{title}: subsets of {most} labels", fontsize=10, loc="left")
        for axes in panels[:, column]:
            axes.set_ylabel(METRICS[found["metric"]])
            axes.grid(axis="y", alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    title = "mean ± standard\ndeviation of subsets"
    panels[1, -1].legend(frameon=False, fontsize=8, loc="lower right", title=title, title_fontsize=8)
    figure.savefig(path, dpi=110)
