"""Metrics of `evaluate` that need no download: for classification, segmentation, several labels, and numbers.

They keep counts instead of files, so that many processes can measure at once and long evaluations cost no memory.
In distributed evaluations give them what Trainer has gathered.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from transformers import EvalPrediction

from .running_metric import (
    RunningMetric,
    check_class_names,
    check_classes,
    check_labels,
    check_logits,
    class_pairs,
    refuse_nan,
    refuse_nothing,
    to_array,
)

TOP_K = 5
# More classes than these get no accuracy of their own among a Trainer's metrics.
MAX_LOGGED_CLASSES = 20
CHUNK = 4096  # images


class TopKAccuracy(RunningMetric):
    """Share of examples whose class is the first, and is among the first k, from logits (N, K) and classes (N,).

    Gives `accuracy` and `top{k}_accuracy`; among equal logits the first class comes first, as in argmax.

    Args:
        k: Number of guesses; of fewer classes than that, all are guesses.
    """

    description = "Top-1 and top-k accuracy."

    def __init__(self, k: int = TOP_K):
        if k < 1:
            raise ValueError(f"k={k} must be 1 or more.")
        self.k = k
        super().__init__()

    def _reset(self) -> None:
        self.counts = np.zeros(3, dtype=np.int64)  # right at once, right among k, all

    def _update(self, predictions: Any, references: Any) -> None:
        logits = check_logits(predictions)
        labels = check_labels(references, logits.shape[1], len(logits))
        starts = range(0, max(len(logits), 1), CHUNK)
        ranks = np.concatenate([_ranks(logits[i : i + CHUNK], labels[i : i + CHUNK]) for i in starts])
        self.counts += np.array([(ranks == 0).sum(), (ranks < self.k).sum(), len(ranks)])

    def _result(self) -> dict[str, float]:
        refuse_nothing(self.counts[2])
        top1, topk = (self.counts[:2] / self.counts[2]).tolist()
        return {"accuracy": top1, f"top{self.k}_accuracy": topk}


class _ClassMetric(RunningMetric):
    """A metric of known classes."""

    def __init__(self, class_names: Sequence[str]):
        self.class_names = check_class_names(class_names)
        super().__init__()

    def _by_name(self, figures: np.ndarray) -> dict[str, Any]:
        return dict(zip(self.class_names, figures.tolist(), strict=True))


class PerClassAccuracy(_ClassMetric):
    """Recall, precision and support of each class, from logits (N, K) or classes (N,), and true classes (N,).

    Gives `accuracy`, `balanced_accuracy` (the mean recall of the classes that there are), and `recall`, `precision` and
    `support` by name of the class. What cannot be known is NaN: the recall of a class without examples, and the
    precision of one that is never predicted.

    Args:
        class_names: Name of each class.
    """

    description = "Accuracy of each class."

    def _reset(self) -> None:
        self.counts = np.zeros((3, len(self.class_names)), dtype=np.int64)  # right, true, predicted

    def _update(self, predictions: Any, references: Any) -> None:
        self.counts += _class_counts(
            *class_pairs(predictions, references, len(self.class_names)), len(self.class_names)
        )

    def _result(self) -> dict[str, Any]:
        right, support, predicted = self.counts
        refuse_nothing(support.sum())
        recall = _ratio(right, support)
        return {
            "accuracy": float(right.sum() / support.sum()),
            "balanced_accuracy": float(np.nanmean(recall)),
            "recall": self._by_name(recall),
            "precision": self._by_name(_ratio(right, predicted)),
            "support": self._by_name(support),
        }


class ConfusionMatrix(_ClassMetric):
    """Which class is taken for which, from logits (N, K) or classes (N,), and true classes (N,).

    Gives `confusion_matrix`, an int64 array (K, K) whose rows are the true classes; `plot_confusion` draws it.

    Args:
        class_names: Name of each class.
    """

    description = "Confusion matrix; rows are true classes."

    def _reset(self) -> None:
        self.matrix = np.zeros((len(self.class_names),) * 2, dtype=np.int64)

    def _update(self, predictions: Any, references: Any) -> None:
        pairs = class_pairs(predictions, references, len(self.class_names))
        self.matrix += count_confusions(*pairs, len(self.class_names))

    def _result(self) -> dict[str, np.ndarray]:
        refuse_nothing(self.matrix.sum())
        return {"confusion_matrix": self.matrix}


class MeanIoU(_ClassMetric):
    """Intersection over union of label maps, from integer maps (B, H, W), or a list of maps (H, W) of any sizes.

    Gives `mean_iou` over the classes that are true or predicted somewhere, `pixel_accuracy`, and `iou` by name of the
    class, NaN for one that is nowhere. Pixels are counted map by map over the whole set, not averaged over images.

    Args:
        class_names: Name of each class.
        ignore_index: Pixels of this number in the references do not count, whatever is predicted there.
    """

    description = "Mean intersection over union."

    def __init__(self, class_names: Sequence[str], ignore_index: int | None = 255):
        self.ignore_index = ignore_index
        super().__init__(class_names)

    def _reset(self) -> None:
        self.counts = np.zeros((3, len(self.class_names)), dtype=np.int64)  # right, true, predicted

    def _update(self, predictions: Any, references: Any) -> None:
        if predictions is None or references is None or len(predictions) != len(references):
            raise ValueError("MeanIoU needs as many predictions as references. Give one label map for each image.")
        counts = np.zeros_like(self.counts)
        for index, (predicted, true) in enumerate(zip(predictions, references, strict=True)):
            predicted, true = to_array(predicted), to_array(true)
            if predicted.shape != true.shape:
                raise ValueError(
                    f"Label map {index} has shape {predicted.shape} and its reference {true.shape}. Resize the logits"
                    " to the reference, and take their argmax over classes."
                )
            if self.ignore_index is not None:
                is_counted = true != self.ignore_index
                predicted, true = predicted[is_counted], true[is_counted]
            predicted, true = (check_classes(part, len(self.class_names)) for part in (predicted, true))
            counts += _class_counts(predicted.ravel(), true.ravel(), len(self.class_names))
        self.counts += counts

    def _result(self) -> dict[str, Any]:
        right, true, predicted = self.counts
        refuse_nothing(true.sum())
        iou = _ratio(right, true + predicted - right)
        return {
            "mean_iou": float(np.nanmean(iou)),
            "pixel_accuracy": float(right.sum() / true.sum()),
            "iou": self._by_name(iou),
        }


class _CollectingMetric(RunningMetric):
    """A metric that needs all predictions at once."""

    def _reset(self) -> None:
        self.batches: list[tuple[np.ndarray, np.ndarray]] = []

    def _update(self, predictions: Any, references: Any) -> None:
        predictions, references = (to_array(part).astype(np.float64) for part in (predictions, references))
        if references.ndim < predictions.ndim and predictions.shape[-1] == 1:
            predictions = predictions[..., 0]
        if predictions.shape != references.shape:
            raise ValueError(
                f"predictions have shape {predictions.shape} and references {references.shape}. Give one for each."
            )
        self.batches.append((refuse_nan(predictions), refuse_nan(references)))

    def _collected(self) -> tuple[np.ndarray, np.ndarray]:
        refuse_nothing(sum(len(batch[0]) for batch in self.batches))
        predictions, references = zip(*self.batches, strict=True)
        return np.concatenate(predictions), np.concatenate(references)


class MultiLabel(_CollectingMetric):
    """Several labels at once: mean average precision and F1, from scores (N, K) and labels (N, K) of 0 and 1.

    Gives `mean_average_precision` over the classes that there are, `micro_f1`, and `macro_f1` over the classes that are
    true or predicted somewhere.

    Args:
        threshold: A label is predicted where its score is greater: 0 for logits, 0.5 for probabilities.
    """

    description = "Mean average precision and F1 of several labels."

    def __init__(self, threshold: float = 0.0):
        self.threshold = threshold
        super().__init__()

    def _update(self, predictions: Any, references: Any) -> None:
        references = to_array(references)
        if references.ndim != 2 or not np.isin(references, (0, 1)).all():
            raise ValueError(f"References of several labels are a table (N, K) of 0 and 1, not {references.shape}.")
        super()._update(predictions, references)

    def _result(self) -> dict[str, float]:
        from sklearn.metrics import average_precision_score

        scores, labels = self._collected()
        is_there = labels.any(axis=0)
        precision = average_precision_score(labels[:, is_there], scores[:, is_there]) if is_there.any() else np.nan
        predicted, true = scores > self.threshold, labels > 0
        # Not scikit-learn's F1, which takes a single label for two classes.
        both, counted = (predicted & true).sum(axis=0), predicted.sum(axis=0) + true.sum(axis=0)
        both, counted = both[counted > 0], counted[counted > 0]
        return {
            "mean_average_precision": float(precision),
            "micro_f1": float(2 * both.sum() / counted.sum()) if len(counted) else float("nan"),
            "macro_f1": float(np.mean(2 * both / counted)) if len(counted) else float("nan"),
        }


class Regression(_CollectingMetric):
    """Errors of predicted numbers (N,), (N, 1) or (N, D): `mae`, `rmse` and `r2`, means over the D numbers."""

    description = "Mean absolute error, root of the mean squared error, and coefficient of determination."

    def _result(self) -> dict[str, float]:
        from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

        predictions, references = self._collected()
        return {
            "mae": float(mean_absolute_error(references, predictions)),
            "rmse": float(root_mean_squared_error(references, predictions)),
            # Of one example there is none.
            "r2": float(r2_score(references, predictions)) if len(references) > 1 else float("nan"),
        }


def classification_metrics(
    class_names: Sequence[str], problem_type: str = "single_label_classification"
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Make Trainer's `compute_metrics` for a model that classifies.

    Args:
        class_names: Name of each class.
        problem_type: As in configs of transformers: "single_label_classification", "multi_label_classification" or
            "regression".

    Returns:
        Takes logits (N, K), maybe in a tuple with other outputs, and labels, and returns flat figures. Those of single
        labels are `accuracy`, `top5_accuracy` from six classes on, `balanced_accuracy`, and up to 20 classes
        `accuracy_<name>` of each class that there is.

    Raises:
        ValueError: If the problem type is unknown.
    """
    names = check_class_names(class_names)
    kinds: dict[str, Callable[[], RunningMetric]] = {
        "single_label_classification": lambda: PerClassAccuracy(names),
        "multi_label_classification": MultiLabel,
        "regression": Regression,
    }
    if problem_type not in kinds:
        raise ValueError(f"problem_type={problem_type!r} is unknown. Use one of: {', '.join(kinds)}.")

    def compute_metrics(evaluation: EvalPrediction) -> dict[str, float]:
        logits, labels = (
            part[0] if isinstance(part, tuple) else part for part in (evaluation.predictions, evaluation.label_ids)
        )
        figures = kinds[problem_type]().compute(predictions=logits, references=labels)
        if problem_type != "single_label_classification":
            return figures
        flat = {key: figures[key] for key in ("accuracy", "balanced_accuracy")}
        if len(names) > TOP_K:
            flat |= TopKAccuracy().compute(predictions=logits, references=labels)
        if len(names) <= MAX_LOGGED_CLASSES:
            flat |= {f"accuracy_{name}": value for name, value in figures["recall"].items() if not np.isnan(value)}
        return flat

    return compute_metrics


def _class_counts(predicted: np.ndarray, true: np.ndarray, num_classes: int) -> np.ndarray:
    """How often each class is right, true and predicted: int64 array (3, K)."""
    columns = (true[predicted == true], true, predicted)
    return np.stack([np.bincount(column, minlength=num_classes) for column in columns])


def _ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Number of classes (N,) that come before the true one."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    is_earlier = np.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & is_earlier)).sum(axis=1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


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
