"""What is taken for what: counts for each class, the confusion matrix, and its picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

# More classes than these have no room for numbers in the picture.
MAX_NUMBERED_CLASSES = 20
MAX_NAMED_CLASSES = 60
NAMED_PAIRS = 20


def count_confusions(predictions: np.ndarray, references: np.ndarray, num_classes: int) -> np.ndarray:
    """Count which class is taken for which.

    Args:
        predictions: Predicted classes, integers of any shape.
        references: True classes, of the same shape.
        num_classes: Number K of classes.

    Returns:
        int64 array (K, K): row i, column j is how often the true class i was predicted to be j.
    """
    pairs = references.astype(np.int64).ravel() * num_classes + predictions.astype(np.int64).ravel()
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def most_confused(matrix: np.ndarray, limit: int = NAMED_PAIRS) -> list[tuple[int, int, float]]:
    """Pairs of different classes, those first of which the largest share is mistaken.

    Args:
        matrix: Confusion matrix (K, K), rows are true classes.
        limit: Number of pairs at most.

    Returns:
        True class, predicted class, and the share of the true class that is predicted so.
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
    """Draw a confusion matrix: colours are shares of the true class.

    Up to 20 classes the counts stand in the cells; of more classes the most confused pairs are listed beside.

    Args:
        matrix: Confusion matrix (K, K), rows are true classes.
        class_names: Name of each class.
        path: PNG file to write.

    Raises:
        ValueError: If the names do not fit the matrix.
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
    # Mistakes are few; the root makes them visible beside the diagonal.
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
    axes.set_title(f"{accuracy:.1%} of {total:,} are right", fontsize=11)
    if not is_numbered:
        pairs = most_confused(matrix)
        lines = [f"{share:.0%}  {names[row]} → {names[column]}" for row, column, share in pairs]
        panels[0, 1].axis("off")
        panels[0, 1].set_title("most confused: true → predicted", fontsize=11, loc="left")
        panels[0, 1].text(0, 1, "\n".join(lines), va="top", fontsize=9, linespacing=1.9)
    # Long names reach out of what the layout leaves for them.
    figure.savefig(path, dpi=120, bbox_inches="tight", pad_inches=0.1)


def _shortened(name: str, limit: int = 26) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"
