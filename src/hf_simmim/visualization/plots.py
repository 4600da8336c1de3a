"""Plots: losses, probes, layers, comparisons and confusion matrices."""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Colors and markers that are distinct for color-blind readers.
ARM_COLORS = {"pre-trained": "#0072b2", "from scratch": "#d55e00", "public": "#009e73", "continued": "#8b4a86"}
ARM_MARKERS = {"pre-trained": "o", "from scratch": "s", "public": "^", "continued": "D"}
# Neighboring budgets that are closer than this share of the axis are spaced evenly instead.
CLOSEST = 0.06


def plot_comparison(
    scores: Mapping[int, Mapping[str, Mapping[Any, float]]],
    path: Path,
    title: str = "",
    metric: str = "accuracy",
    is_share: bool = True,
) -> None:
    """Plot learning curves over the number of labels: each run, and mean and standard deviation of each arm.

    Args:
        scores: Value of the metric by number of labeled images, arm and run.
        path: Image file to write.
        title: Title of the plot.
        metric: Name of the metric.
        is_share: Whether it is shown in percent.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    budgets, factor = sorted(scores), 100 if is_share else 1
    arms = tuple(scores[budgets[0]])
    columns = {arm: [[factor * value for value in scores[budget][arm].values()] for budget in budgets] for arm in arms}
    means = {arm: [statistics.fmean(column) for column in columns[arm]] for arm in arms}
    places = _budget_places(budgets)
    for number, arm in enumerate(arms):
        spreads = [statistics.stdev(column) if len(column) > 1 else 0.0 for column in columns[arm]]
        # The arms are shifted so that they do not cover each other.
        shifted = places + 0.016 * (number - (len(arms) - 1) / 2)
        style: dict[str, Any] = {"color": ARM_COLORS[arm], "marker": ARM_MARKERS[arm]}
        axes.errorbar(shifted, means[arm], yerr=spreads, capsize=4, linewidth=2, markersize=6, label=arm, **style)
        for place, column in zip(shifted, columns[arm], strict=True):
            axes.scatter([place] * len(column), column, s=22, alpha=0.35, linewidths=0, **style)
    axes.margins(y=0.15)
    if is_share:
        # Bars of few runs may leave what is possible.
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -5), min(high, 112))
    _write_means(axes, places, means, is_share)
    axes.set_xticks(places, [f"{budget:,}" for budget in budgets])
    axes.set_xlim(-0.08, 1.16 if len(budgets) > 1 else 1.08)
    is_logarithmic = np.allclose(places, _logarithmic(budgets))
    axes.set_xlabel("labeled images" + (" (logarithmic scale)" if is_logarithmic and len(budgets) > 2 else ""))
    axes.set_ylabel(f"test {metric}" + (" (%)" if is_share else ""))
    axes.grid(alpha=0.3)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        frameon=False,
        title="mean ± standard\ndeviation of runs",
        title_fontsize=8,
        alignment="left",
    )
    axes.set_title(textwrap.fill(title, 95), fontsize=10, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=120)


def _logarithmic(budgets: Sequence[int]) -> np.ndarray:
    """Places from 0 to 1 over the logarithm of the budgets; a single one is in the middle."""
    logarithms = np.log(np.maximum(budgets, 1))
    reach = logarithms[-1] - logarithms[0]
    return (logarithms - logarithms[0]) / reach if reach else np.full(len(budgets), 0.5)


def _budget_places(budgets: Sequence[int]) -> np.ndarray:
    places = _logarithmic(budgets)
    if len(budgets) > 1 and np.diff(places).min() < CLOSEST:
        return np.linspace(0, 1, len(budgets))
    return places


def _write_means(axes: Any, places: np.ndarray, means: Mapping[str, Sequence[float]], is_share: bool) -> None:
    """Write the means of the arms beside the runs of each budget, from top to bottom, without overlaps."""
    low, high = axes.get_ylim()
    distance = 0.05 * (high - low)
    for index, place in enumerate(places):
        ordered = sorted(means, key=lambda arm: means[arm][index])
        heights = [means[arm][index] for arm in ordered]
        # Pushed apart around their common center where they are too close.
        spaced = np.array(heights)
        for lower in range(1, len(spaced)):
            spaced[lower] = max(spaced[lower], spaced[lower - 1] + distance)
        spaced -= (spaced - heights).mean()
        for arm, height in zip(ordered, spaced, strict=True):
            value = means[arm][index]
            axes.annotate(
                f"{value:.1f}" if is_share else f"{value:.3g}",
                (place + 0.008 * len(means) + 0.02, height),
                ha="left",
                va="center",
                color=ARM_COLORS[arm],
                fontsize=9,
                fontweight="bold",
                bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            )


def plot_losses(log_history: Sequence[dict[str, float]], path: Path) -> None:
    """Plot training and validation loss, and the learning rate, over steps.

    If masked l1 was evaluated, a second panel shows it from zero, for validation and training images, and the error of
    the mean color as a horizontal line.

    Args:
        log_history: `TrainerState.log_history`.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    errors = _over_steps(log_history, "eval_masked_l1")
    figure = Figure(figsize=(8, 8 if errors[0] else 4.5), layout="constrained")
    panels = figure.subplots(2 if errors[0] else 1, 1, squeeze=False)[:, 0]
    axes = panels[0]
    losses = _over_steps(log_history, "loss")
    # A line of one point is invisible.
    axes.plot(*losses, label="training", color="tab:blue", marker="." if len(losses[0]) == 1 else None)
    evaluation = _over_steps(log_history, "eval_loss")
    if evaluation[0]:
        axes.plot(*evaluation, label="validation (fixed masks)", color="tab:orange", marker="o", markersize=3)
    alike = _over_steps(log_history, "eval_train_loss")
    if alike[0]:
        axes.plot(*alike, label="training images (fixed masks)", color="tab:blue", marker="o", markersize=3)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    rates = axes.twinx()
    rates.plot(*_over_steps(log_history, "learning_rate"), color="tab:gray", linestyle=":", label="learning rate")
    rates.set_ylabel("learning rate")
    rates.set_ylim(bottom=0)
    lines = [*axes.get_lines(), *rates.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines])
    if errors[0]:
        _draw_errors(panels[1], log_history)
    figure.savefig(path, dpi=120)


def _draw_errors(axes: Any, log_history: Sequence[dict[str, float]]) -> None:
    """Draw masked l1 of validation and training images, and that of the mean color as a horizontal line."""
    for key, name, color in (
        ("eval_masked_l1", "validation images", "tab:orange"),
        ("eval_train_masked_l1", "training images (whole, fixed masks)", "tab:blue"),
    ):
        points = _over_steps(log_history, key)
        if points[0]:
            axes.plot(*points, label=name, color=color, marker="o", markersize=3)
    baseline = _over_steps(log_history, "eval_mean_color_l1")[1]
    if baseline and baseline[-1] == baseline[-1]:
        axes.axhline(baseline[-1], color="black", linestyle="--", linewidth=1, label=f"mean color ({baseline[-1]:.1f})")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("masked l1 (0 to 255)")
    axes.grid(alpha=0.3)
    axes.legend()


def plot_probe(log_history: Sequence[dict[str, float]], path: Path, majority: float | None = None) -> None:
    """Plot the accuracies of the probes over steps, from zero, with their 95 % intervals; baselines are lines.

    Args:
        log_history: `TrainerState.log_history`.
        path: PNG file to write.
        majority: Share (0 to 1) of the most frequent class, the accuracy of always answering it.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for key, name, color in (
        ("probe_linear_accuracy", "linear probe", "tab:blue"),
        ("probe_knn_accuracy", "nearest neighbors", "tab:orange"),
    ):
        steps, values = _over_steps(log_history, key)
        axes.plot(steps, values, label=name, color=color, marker="o", markersize=3)
        low, high = (_over_steps(log_history, key.replace("accuracy", end))[1] for end in ("low", "high"))
        if len(low) == len(high) == len(steps):
            axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        if 0 in steps:
            before = values[steps.index(0)]
            axes.axhline(before, color=color, linestyle=":", linewidth=1, label=f"{name}, before training")
    if majority is not None:
        label = f"always the most frequent class ({majority:.1%})"
        axes.axhline(majority, color="black", linestyle="--", linewidth=1, label=label)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("accuracy of frozen features (95 % intervals)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def plot_spectrum(log_history: Sequence[dict[str, float]], values: Sequence[float], step: int, path: Path) -> None:
    """Plot RankMe over steps, the singular values of the last features, and the drift of the features if it is known.

    Args:
        log_history: `TrainerState.log_history`.
        values: Singular values in decreasing order.
        step: Step of the weights that they are of.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    agreement = _over_steps(log_history, "drift_knn_agreement")
    figure = Figure(figsize=(12 if agreement[0] else 8, 4), layout="constrained")
    panels = figure.subplots(1, 3 if agreement[0] else 2)
    panels[0].plot(*_over_steps(log_history, "eval_rankme"), color="tab:blue", marker="o", markersize=3)
    panels[0].set_ylabel("RankMe (dimensions)")
    if np.isfinite(values).all() and max(values) > 0:
        shares = np.asarray(values) / max(values)
        # Of features that are alike, some are 0.
        panels[1].semilogy(range(1, len(shares) + 1), np.maximum(shares, 1e-12), color="tab:blue")
    panels[1].set_ylabel("singular value / largest")
    panels[1].set_xlabel(f"dimension, step {step:,}")
    if agreement[0]:
        panels[2].plot(*agreement, color="tab:orange", marker="o", markersize=3)
        panels[2].set_ylim(0, 1)
        panels[2].set_ylabel("neighbors as with the first weights")
    for index, axes in enumerate(panels):
        axes.grid(alpha=0.3)
        if index != 1:
            axes.set_xlabel("step")
            axes.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)


def _over_steps(log_history: Sequence[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Steps and the first value at each: a second one may be of the best weights, which are restored at the end."""
    points: dict[float, float] = {}
    for entry in log_history:
        if key in entry:
            points.setdefault(entry["step"], entry[key])
    return list(points), list(points.values())


def plot_layers(
    layers: Sequence[str],
    series: dict[str, list[list[float]]],
    path: Path,
    title: str = "",
    baseline: tuple[str, float] | None = None,
) -> None:
    """Plot probe accuracies of the layers of an encoder, from zero.

    Args:
        layers: Names of the layers.
        series: By name, accuracies of each layer, one for each seed; their mean and standard deviation are drawn.
        path: PNG file to write.
        title: Title of the plot.
        baseline: Name and accuracy (0 to 1) of a predictor without a model, drawn as a line.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    positions = [float(index) for index in range(len(layers))]
    for index, (name, accuracies) in enumerate(series.items()):
        means = [float(np.mean(values)) for values in accuracies]
        spreads = [float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for values in accuracies]
        # The two probes keep their colors; series after the first two are controls.
        line, marker = ("-", "o") if index < 2 else (":", "s")
        axes.errorbar(
            positions,
            means,
            spreads,
            label=name,
            capsize=3,
            color=f"C{index % 2}",
            linestyle=line,
            marker=marker,
        )
    if baseline is not None:
        name, accuracy = baseline
        axes.axhline(accuracy, color="black", linestyle="--", linewidth=1, label=f"{name} ({accuracy:.1%})")
    axes.set_ylim(bottom=0)
    axes.set_xticks(positions, layers)
    axes.set_xlabel("layer")
    axes.set_ylabel("accuracy of frozen features")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    # Outside the axes, because error bars leave no room inside.
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=120)


# Largest numbers of classes with counts in the cells, and with names at the axes.
MAX_NUMBERED_CLASSES = 20
MAX_NAMED_CLASSES = 60
NAMED_PAIRS = 20


def most_confused(matrix: np.ndarray, limit: int = NAMED_PAIRS) -> list[tuple[int, int, float]]:
    """Pairs of different classes that are confused most often, by share of the true class.

    Args:
        matrix: Confusion matrix (K, K), rows are true classes.
        limit: Largest number of pairs.

    Returns:
        True class, predicted class, and the share of the true class with that prediction.
    """
    shares = row_shares(matrix)
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:limit]
    rows, columns = np.unravel_index(order, shares.shape)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(row, column, float(shares[row, column])) for row, column in pairs if shares[row, column] > 0]


def row_shares(matrix: np.ndarray) -> np.ndarray:
    """Each row of a matrix (K, K) divided by its sum; rows without counts stay 0."""
    matrix = np.asarray(matrix, dtype=np.float64)
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def plot_confusion(matrix: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """Plot a confusion matrix: colors are shares of the true class.

    With up to 20 classes the cells show the counts; with more, the most confused pairs are listed beside the matrix.

    Args:
        matrix: Confusion matrix (K, K), rows are true classes.
        class_names: Name of each class.
        path: PNG file to write.

    Raises:
        ValueError: If the number of names does not match the matrix.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    matrix = np.asarray(matrix)
    num_classes = len(class_names)
    if matrix.shape != (num_classes, num_classes):
        raise ValueError(f"The matrix has shape {matrix.shape} for {num_classes} class names. Give one for each row.")
    shares = row_shares(matrix)
    names = [_shortened(str(name)) for name in class_names]
    is_numbered = num_classes <= MAX_NUMBERED_CLASSES
    side = min(8.0, max(4.0, 0.5 * num_classes)) + 0.075 * max(map(len, names))
    figure = Figure(figsize=(side + (1.2 if is_numbered else 4.5), side), layout="constrained")
    panels = figure.subplots(
        1, 1 if is_numbered else 2, squeeze=False, width_ratios=[1] if is_numbered else [side, 4.0]
    )
    axes = panels[0, 0]
    # Errors are few; the square root makes them visible beside the diagonal.
    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.02, label="share of the true class")
    if is_numbered:
        for row in range(num_classes):
            for column in range(num_classes):
                if matrix[row, column]:
                    axes.text(
                        *(column, row, f"{matrix[row, column]:,}"),
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="white" if shares[row, column] > 0.4 else "black",
                    )
    if num_classes <= MAX_NAMED_CLASSES:
        size = 9 if is_numbered else 6
        axes.set_xticks(range(num_classes), names, rotation=90 if num_classes > 5 else 0, fontsize=size)
        axes.set_yticks(range(num_classes), names, fontsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    total = int(matrix.sum())
    accuracy = np.trace(matrix) / max(total, 1)
    axes.set_title(f"accuracy {accuracy:.1%} (n = {total:,})", fontsize=11)
    if not is_numbered:
        pairs = most_confused(matrix)
        lines = [f"{share:.0%}  {names[row]} → {names[column]}" for row, column, share in pairs]
        panels[0, 1].axis("off")
        panels[0, 1].set_title("most confused: true → predicted", fontsize=11, loc="left")
        panels[0, 1].text(0, 1, "\n".join(lines), va="top", fontsize=9, linespacing=1.9)
    # Long names exceed the space of the layout.
    figure.savefig(path, dpi=120, bbox_inches="tight", pad_inches=0.1)


def _shortened(name: str, limit: int = 26) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"
