"""The metric that decides a comparison: which one, and how it varies with the test images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..metrics import MAX_RANKED_CLASSES, log_softmax

# A test set is imbalanced if its largest class has more than so many times the images of its smallest.
IMBALANCE = 3.0
NUM_RESAMPLES = 2000
# Numbers that are held at once, and those that are sorted in all for average precision.
MAX_HELD, MAX_RANKED = 2 * 10**7, 2 * 10**9


@dataclass(frozen=True)
class DecidingMetric:
    """A metric by which models are compared.

    Args:
        name: Name on the command line.
        key: Name in the results of a run, see `classification_metrics`.
        title: Name in sentences.
        is_share: Whether it is from 0 to 1, and shown in percent.
        sign: 1 if more is better, -1 if less is.
        of_pixels: Whether each image counts by its pixels, so that its share is no whole number of images.
    """

    name: str
    key: str
    title: str
    is_share: bool = True
    sign: int = 1
    of_pixels: bool = False

    def shown(self, value: float) -> str:
        """A value as text: percent with one digit, or three significant digits.

        Args:
            value: The value.

        Returns:
            The text, without a unit.
        """
        return f"{100 * value:.1f}" if self.is_share else f"{value:.3g}"

    def change(self, value: float) -> str:
        """A difference as text, with its sign: percentage points, or the metric's own unit.

        Args:
            value: The difference of two values, negative where an error is smaller.

        Returns:
            The text, without a unit.
        """
        return f"{100 * value:+.1f}" if self.is_share else f"{value:+.3g}"


ACCURACY = DecidingMetric("accuracy", "accuracy", "accuracy")
MACRO_F1 = DecidingMetric("macro_f1", "macro_f1", "macro F1")
# By problem type and name; the first one of a type decides unless another is asked for.
METRICS: dict[str, dict[str, DecidingMetric]] = {
    "single_label_classification": {
        "accuracy": ACCURACY,
        "balanced_accuracy": DecidingMetric("balanced_accuracy", "balanced_accuracy", "balanced accuracy"),
        "macro_f1": MACRO_F1,
        "average_precision": DecidingMetric("average_precision", "macro_average_precision", "average precision"),
    },
    "multi_label_classification": {
        "average_precision": DecidingMetric("average_precision", "mean_average_precision", "average precision"),
        "macro_f1": MACRO_F1,
        "micro_f1": DecidingMetric("micro_f1", "micro_f1", "micro F1"),
    },
    "segmentation": {"mean_iou": DecidingMetric("mean_iou", "mean_iou", "mean IoU", of_pixels=True)},
    "regression": {
        "r2": DecidingMetric("r2", "r2", "R²", is_share=False),
        "mae": DecidingMetric("mae", "mae", "mean absolute error", is_share=False, sign=-1),
        "rmse": DecidingMetric("rmse", "rmse", "root mean squared error", is_share=False, sign=-1),
    },
}
METRIC_NAMES = tuple(dict.fromkeys(name for metrics in METRICS.values() for name in metrics))


def choose_metric(
    problem_type: str, name: str | None, labels: Sequence[Any], num_classes: int = 0
) -> tuple[DecidingMetric, str]:
    """Choose the metric that decides.

    Args:
        problem_type: As in configs of transformers.
        name: Name of the metric; None for accuracy, or balanced accuracy if the test set is imbalanced, for images of
            one class each; average precision for those of several; R² for numbers.
        labels: Labels of the test images.
        num_classes: Number of classes.

    Returns:
        The metric, and a sentence that says why it is not accuracy; empty if it was asked for.

    Raises:
        ValueError: If the labels have no such metric.
    """
    metrics = METRICS[problem_type]
    if name is not None:
        if name not in metrics:
            kind = problem_type.removesuffix("_classification").replace("_", "-")
            raise ValueError(f"metric={name!r} is not one of {kind} images. Use one of: {', '.join(metrics)}.")
        if metrics[name].key == "macro_average_precision" and num_classes > MAX_RANKED_CLASSES:
            raise ValueError(
                f"metric={name!r} is computed for up to {MAX_RANKED_CLASSES} classes, and there are {num_classes}. Use"
                " macro_f1."
            )
        return metrics[name], ""
    if problem_type != "single_label_classification":
        metric = next(iter(metrics.values()))
        return metric, f"The {'labels are numbers' if problem_type == 'regression' else 'images have several labels'}:"
    counts = np.bincount(np.asarray(labels))
    counts = counts[counts > 0]
    if len(counts) > 1 and counts.max() > IMBALANCE * counts.min():
        why = f"The test set is imbalanced (classes of {counts.min():,} to {counts.max():,} images):"
        return metrics["balanced_accuracy"], why
    return metrics["accuracy"], ""


# Of one model: predictions, labels and weights (B, N) of the images, to values (B,).
Weighted = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _classes(predictions: np.ndarray) -> np.ndarray:
    return predictions if predictions.ndim == 1 else predictions.argmax(axis=1)


def _one_hot(classes: np.ndarray, number: int) -> np.ndarray:
    return (classes[:, None] == np.arange(number)).astype(np.float64)


def _accuracy(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ (_classes(predictions) == labels) / weights.sum(axis=1)


def _divided(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def _balanced_accuracy(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    own = _one_hot(labels, int(labels.max()) + 1)
    correct = own * (_classes(predictions) == labels)[:, None]
    return np.nanmean(_divided(weights @ correct, weights @ own), axis=1)


def _macro_f1(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Over the classes with examples; of several labels, over those that are true or predicted somewhere."""
    if labels.ndim == 2:
        own, given = labels > 0, predictions > 0
    else:
        number = 1 + int(max(labels.max(), _classes(predictions).max()))
        own, given = (_one_hot(classes, number) > 0 for classes in (labels, _classes(predictions)))
    correct, true, predicted = (weights @ part.astype(np.float64) for part in (own & given, own, given))
    f1 = _divided(2 * correct, true + predicted)
    return np.nanmean(f1 if labels.ndim == 2 else np.where(true > 0, f1, np.nan), axis=1)


def _micro_f1(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    own, given = labels > 0, predictions > 0
    correct, true, predicted = (weights @ part.sum(axis=1) for part in (own & given, own, given))
    return _divided(2 * correct, true + predicted)


def _average_precision(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes with examples; images with the same score come at once, as in scikit-learn."""
    if labels.ndim == 1:
        labels, predictions = _one_hot(labels, predictions.shape[1]), log_softmax(predictions)
    columns = []
    for own, scores in zip(labels.T, predictions.T, strict=True):
        if not own.any():
            continue
        order = np.argsort(-scores, kind="stable")
        is_last = np.append(np.diff(scores[order]) != 0, True)
        drawn = weights[:, order]
        found = np.cumsum(drawn * own[order], axis=1)[:, is_last]
        precision = _divided(found, np.cumsum(drawn, axis=1)[:, is_last])
        steps = np.diff(found, axis=1, prepend=0)
        # Where no image was drawn yet, nothing was found either.
        columns.append(_divided((steps * np.nan_to_num(precision)).sum(axis=1), found[:, -1]))
    return np.nanmean(np.stack(columns, axis=1), axis=1)


def _numbers(predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return tuple(part.reshape(len(part), -1).astype(np.float64) for part in (predictions, labels))  # type: ignore[return-value]


def _r2(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    predictions, labels = _numbers(predictions, labels)
    # Centered first, for precision.
    centered = labels - labels.mean(axis=0)
    total = weights.sum(axis=1, keepdims=True)
    spread = weights @ centered**2 - (weights @ centered) ** 2 / total
    return np.nanmean(1 - _divided(weights @ (predictions - labels) ** 2, spread), axis=1)


def _mae(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    predictions, labels = _numbers(predictions, labels)
    return (weights @ np.abs(predictions - labels) / weights.sum(axis=1, keepdims=True)).mean(axis=1)


def _rmse(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    predictions, labels = _numbers(predictions, labels)
    return np.sqrt(weights @ (predictions - labels) ** 2 / weights.sum(axis=1, keepdims=True)).mean(axis=1)


def _mean_iou(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of numbers of pixels: correct and predicted ones (N, 2, K), and true ones (N, K)."""
    correct, predicted, true = (weights @ part for part in (predictions[:, 0], predictions[:, 1], labels))
    return np.nanmean(_divided(correct, true + predicted - correct), axis=1)


_WEIGHTED: dict[str, Weighted] = {
    "mean_iou": _mean_iou,
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "average_precision": _average_precision,
    "micro_f1": _micro_f1,
    "r2": _r2,
    "mae": _mae,
    "rmse": _rmse,
}


def weighted_metric(metric: DecidingMetric, predictions: Any, labels: Any, weights: Any = None) -> np.ndarray:
    """Compute a metric with weighted images.

    Args:
        metric: The metric.
        predictions: Logits (N, K) or classes (N,), or numbers (N,) or (N, D); of segmentations the numbers of pixels
            that are correct and predicted, (N, 2, K).
        labels: Classes (N,), zeros and ones (N, K), or numbers; of segmentations the pixels of each class, (N, K).
        weights: How often each image counts, (B, N); once if None.

    Returns:
        Values (B,); those of `classification_metrics` where every image counts once.

    Raises:
        ValueError: If classes are given where logits are needed.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if metric.name == "average_precision" and predictions.ndim == 1:
        raise ValueError("average precision needs the logits of each class, but only classes are stored. Use accuracy.")
    if metric.name in ("accuracy", "balanced_accuracy", "macro_f1", "average_precision") and labels.ndim == 1:
        labels = labels.astype(np.int64)
    weights = np.ones((1, len(labels))) if weights is None else np.asarray(weights, dtype=np.float64)
    return _WEIGHTED[metric.name](predictions, labels, weights)


def resample_images(
    metric: DecidingMetric, predictions: Mapping[str, Sequence[np.ndarray]], labels: np.ndarray, seed: int = 0
) -> dict[str, np.ndarray]:
    """Draw the test images again with replacement, up to 2,000 times, and evaluate all models on each draw.

    All models answer the same drawn images, so differences of the results are paired.

    Args:
        metric: The metric.
        predictions: Of each arm those of its runs, as in `weighted_metric`.
        labels: Labels of the test images.
        seed: Seed of the draws.

    Returns:
        Of each arm the mean over its runs at each draw, (B,).

    Source: Efron, "Bootstrap methods: another look at the jackknife" (1979).
    """
    number, generator = len(labels), np.random.default_rng(seed)
    count = NUM_RESAMPLES
    if metric.name == "average_precision":
        size = sum(np.asarray(run).size for runs in predictions.values() for run in runs)
        count = int(np.clip(MAX_RANKED / max(1, size), NUM_RESAMPLES / 4, NUM_RESAMPLES))
    parts: dict[str, list[np.ndarray]] = {arm: [] for arm in predictions}
    held = max(1, MAX_HELD // number)
    for start in range(0, count, held):
        rows = min(held, count - start)
        drawn = generator.integers(number, size=(rows, number)) + np.arange(rows)[:, None] * number
        weights = np.bincount(drawn.ravel(), minlength=rows * number).reshape(rows, number)
        for arm, runs in predictions.items():
            values = [weighted_metric(metric, run, labels, weights) for run in runs]
            parts[arm].append(np.mean(values, axis=0))
    return {arm: np.concatenate(values) for arm, values in parts.items()}
