"""Metrics with the interface of `evaluate` that need no download: for classification, segmentation, and regression.

scikit-learn computes the figures. Two metrics are counted here instead, for reasons measured with scikit-learn 1.9:

- Top-k: `top_k_accuracy_score` prefers the last of equal scores, rejects the two columns of two classes, and takes 20
  times as long.
- Mean IoU: `jaccard_score` needs all pixels at once, and `multilabel_confusion_matrix` for each image takes 20 times as
  long as counting (38 instead of 2 ms for 512 x 512 pixels).

`evaluate.Metric` would store all logits as Arrow tables and create a cache folder. These metrics check each batch when
it is added, keep in memory what the figures need (classes, not logits; counts, not pixels), and write nothing, so that
many processes can measure at once. In distributed evaluations give them what Trainer has gathered.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from transformers import EvalPrediction

TOP_K = 5
# More classes than these get no accuracy of their own among a Trainer's metrics.
MAX_LOGGED_CLASSES = 20


class InMemoryMetric(evaluate.Metric):
    """A metric that keeps in memory what its figures need of each batch.

    `compute(predictions=, references=)`, `add_batch`, `add` and `evaluate.combine` work as with every other metric.
    """

    def __init__(self):
        self._kept: list[tuple[np.ndarray, ...]] = []
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="predictions and references are arrays, or lists of them.",
            features=Features({"predictions": Value("float32"), "references": Value("float32")}),
        )

    def _build_data_dir(self) -> str:
        return ""  # Nothing is written.

    def _needed(self, predictions: Any, references: Any) -> tuple[np.ndarray, ...]:
        """Check a batch, and return what the figures need of it: arrays that are joined along their first axis."""
        raise NotImplementedError

    def _figures(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Figures of what was needed of all batches."""
        raise NotImplementedError

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Return the figures of all batches that were added, and of these; then forget them.

        Args:
            predictions: Those of a last batch, or None.
            references: What they should be.
            **kwargs: Refused.

        Returns:
            Figures by name.

        Raises:
            ValueError: If there is nothing to measure, or the arrays do not fit.
        """
        if kwargs or predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references, **kwargs)
        kept, self._kept = self._kept, []
        if not any(len(batch[0]) for batch in kept):
            raise ValueError("There is nothing to measure. Add predictions and references first.")
        return self._figures(*(np.concatenate(parts) for parts in zip(*kept, strict=True)))

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add a batch.

        Args:
            predictions: Array, or list of arrays, one for each example.
            references: What they should be.
            **kwargs: Refused.

        Raises:
            ValueError: If the arrays do not fit.
        """
        if kwargs:
            raise ValueError(f"Unknown arguments: {', '.join(kwargs)}. Give options where the metric is made.")
        self._kept.append(self._needed(predictions, references))

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one example.

        Args:
            prediction: Its prediction.
            reference: What it should be.
            **kwargs: Refused.

        Raises:
            ValueError: If they do not fit.
        """
        self.add_batch(predictions=_as_array(prediction)[None], references=_as_array(reference)[None], **kwargs)


class TopKAccuracy(InMemoryMetric):
    """Share of examples whose class is the first, and is among the first k, from logits (N, K) and classes (N,).

    Gives `accuracy` and `top{k}_accuracy`; among equal logits the first class comes first, as in argmax.

    Args:
        k: Number of guesses; of fewer classes than that, all are guesses.
    """

    def __init__(self, k: int = TOP_K):
        if k < 1:
            raise ValueError(f"k={k} must be 1 or more.")
        self.k = k
        super().__init__()

    def _needed(self, predictions: Any, references: Any) -> tuple[np.ndarray, ...]:
        logits = _check_logits(predictions)
        labels = _check_labels(references, logits.shape[1], len(logits))
        own = np.take_along_axis(logits, labels[:, None], axis=1)
        is_earlier = np.arange(logits.shape[1]) < labels[:, None]
        # How many classes come before the true one.
        return (((logits > own) | ((logits == own) & is_earlier)).sum(axis=1),)

    def _figures(self, ranks: np.ndarray) -> dict[str, float]:
        return {"accuracy": float(np.mean(ranks == 0)), f"top{self.k}_accuracy": float(np.mean(ranks < self.k))}


class _ClassMetric(InMemoryMetric):
    """A metric of known classes, from logits (N, K) or classes (N,), and true classes (N,)."""

    def __init__(self, class_names: Sequence[str]):
        self.class_names = _check_class_names(class_names)
        super().__init__()

    def _needed(self, predictions: Any, references: Any) -> tuple[np.ndarray, ...]:
        num_classes = len(self.class_names)
        predicted = _as_array(predictions)
        if predicted.ndim == 2:
            predicted = _check_logits(predicted)
            if predicted.shape[1] != num_classes:
                raise ValueError(
                    f"Logits have {predicted.shape[1]} columns for {num_classes} classes. Give one for each."
                )
            predicted = predicted.argmax(axis=1)
        elif predicted.ndim != 1:
            raise ValueError(f"Predictions have shape {predicted.shape}. Give logits (N, K) or classes (N,).")
        return _check_classes(predicted, num_classes), _check_labels(references, num_classes, len(predicted))

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

    def _figures(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, Any]:
        from sklearn.metrics import accuracy_score, precision_recall_fscore_support

        precision, recall, _, support = precision_recall_fscore_support(
            true, predicted, labels=range(len(self.class_names)), zero_division=np.nan
        )
        return {
            "accuracy": accuracy_score(true, predicted),
            # `balanced_accuracy_score` makes a table of K x K, 7 GB for the 21,841 classes of ImageNet-22k.
            "balanced_accuracy": float(np.nanmean(recall)),
            "recall": self._by_name(recall),
            "precision": self._by_name(precision),
            # Floats where no prediction is correct.
            "support": self._by_name(support.astype(np.int64)),
        }


class ConfusionMatrix(_ClassMetric):
    """Counts which class is predicted for which, from logits (N, K) or classes (N,), and true classes (N,).

    Gives `confusion_matrix`, an int64 array (K, K) whose rows are the true classes; `plot_confusion` draws it.

    Args:
        class_names: Name of each class.
    """

    def _figures(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, Any]:
        from sklearn.metrics import confusion_matrix

        return {"confusion_matrix": confusion_matrix(true, predicted, labels=range(len(self.class_names)))}


class MeanIoU(_ClassMetric):
    """Intersection over union of label maps, from integer maps (B, H, W), or a list of maps (H, W) of any sizes.

    Gives `mean_iou` over the classes that are true or predicted somewhere, `pixel_accuracy`, and `iou` by name of the
    class, NaN for one that is nowhere. Pixels are counted map by map over the whole set, not averaged over images.

    Args:
        class_names: Name of each class.
        ignore_index: Pixels of this number in the references do not count, whatever is predicted there.
    """

    def __init__(self, class_names: Sequence[str], ignore_index: int | None = 255):
        self.ignore_index = ignore_index
        super().__init__(class_names)

    def _needed(self, predictions: Any, references: Any) -> tuple[np.ndarray, ...]:
        if predictions is None or references is None or len(predictions) != len(references):
            raise ValueError("MeanIoU needs as many predictions as references. Give one label map for each image.")
        num_classes = len(self.class_names)
        counts = np.zeros((3, num_classes), dtype=np.int64)  # correct, true, predicted
        for index, (predicted, true) in enumerate(zip(predictions, references, strict=True)):
            predicted, true = _as_array(predicted), _as_array(true)
            if predicted.shape != true.shape:
                raise ValueError(
                    f"Label map {index} has shape {predicted.shape} and its reference {true.shape}. Resize the logits"
                    " to the reference, and take their argmax over classes."
                )
            if self.ignore_index is not None:
                is_counted = true != self.ignore_index
                predicted, true = predicted[is_counted], true[is_counted]
            predicted, true = (_check_classes(part, num_classes).ravel() for part in (predicted, true))
            columns = (true[predicted == true], true, predicted)
            counts += np.stack([np.bincount(column, minlength=num_classes) for column in columns])
        # Nothing where all pixels are ignored.
        return (counts[None][: int(counts.any())],)

    def _figures(self, counts: np.ndarray) -> dict[str, Any]:
        correct, true, predicted = counts.sum(axis=0)
        union = true + predicted - correct
        iou = np.divide(correct, union, out=np.full(len(union), np.nan), where=union > 0)
        return {
            "mean_iou": float(np.nanmean(iou)),
            "pixel_accuracy": float(correct.sum() / true.sum()),
            "iou": self._by_name(iou),
        }


class Regression(InMemoryMetric):
    """Errors of predicted numbers (N,), (N, 1) or (N, D): `mae`, `rmse` and `r2`, means over the D numbers."""

    def _needed(self, predictions: Any, references: Any) -> tuple[np.ndarray, ...]:
        predictions, references = (_as_array(part).astype(np.float64) for part in (predictions, references))
        if references.ndim < predictions.ndim and predictions.shape[-1] == 1:
            predictions = predictions[..., 0]
        if predictions.shape != references.shape:
            raise ValueError(
                f"predictions have shape {predictions.shape} and references {references.shape}. Give one for each."
            )
        return _refuse_nan(predictions), _refuse_nan(references)

    def _figures(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

        return {
            "mae": float(mean_absolute_error(references, predictions)),
            "rmse": float(root_mean_squared_error(references, predictions)),
            # One example has none.
            "r2": float(r2_score(references, predictions)) if len(references) > 1 else float("nan"),
        }


class MultiLabel(Regression):
    """Several labels at once: mean average precision and F1, from scores (N, K) and labels (N, K) of 0 and 1.

    Gives `mean_average_precision` over the classes that there are, `micro_f1`, and `macro_f1` over the classes that are
    true or predicted somewhere.

    Args:
        threshold: A label is predicted where its score is greater: 0 for logits, 0.5 for probabilities.
    """

    def __init__(self, threshold: float = 0.0):
        self.threshold = threshold
        super().__init__()

    def _needed(self, predictions: Any, references: Any) -> tuple[np.ndarray, ...]:
        references = _as_array(references)
        if references.ndim != 2 or not np.isin(references, (0, 1)).all():
            raise ValueError(f"References of several labels are a table (N, K) of 0 and 1, not {references.shape}.")
        return super()._needed(predictions, references)

    def _figures(self, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        from sklearn.metrics import average_precision_score, f1_score

        is_there = labels.any(axis=0)
        precision = average_precision_score(labels[:, is_there], scores[:, is_there]) if is_there.any() else np.nan
        # A single column would be taken for two classes: of these the second, 1, is the label.
        counted = [1] if labels.shape[1] == 1 else None
        figures = {"mean_average_precision": float(precision)}
        for average in ("micro", "macro"):
            f1 = f1_score(labels, scores > self.threshold, labels=counted, average=average, zero_division=np.nan)
            figures[f"{average}_f1"] = float(f1)
        return figures


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
    per_class = PerClassAccuracy(class_names)
    names = per_class.class_names
    kinds = {
        "single_label_classification": per_class,
        "multi_label_classification": MultiLabel(),
        "regression": Regression(),
    }
    if problem_type not in kinds:
        raise ValueError(f"problem_type={problem_type!r} is unknown. Use one of: {', '.join(kinds)}.")

    def compute_metrics(evaluation: EvalPrediction) -> dict[str, float]:
        logits, labels = (
            part[0] if isinstance(part, tuple) else part for part in (evaluation.predictions, evaluation.label_ids)
        )
        figures = kinds[problem_type].compute(predictions=logits, references=labels)
        if problem_type != "single_label_classification":
            return figures
        flat = {key: figures[key] for key in ("accuracy", "balanced_accuracy")}
        if len(names) > TOP_K:
            flat |= TopKAccuracy().compute(predictions=logits, references=labels)
        if len(names) <= MAX_LOGGED_CLASSES:
            flat |= {f"accuracy_{name}": value for name, value in figures["recall"].items() if not np.isnan(value)}
        return flat

    return compute_metrics


def _check_class_names(class_names: Sequence[str]) -> list[str]:
    names = [str(name) for name in class_names]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        raise ValueError(f"There are {len(names)} class names, of which {twice[:5]} twice. Give each class its own.")
    return names


def _as_array(values: Any) -> np.ndarray:
    """A tensor, list or array as an array; numbers of a tensor that NumPy does not know become float32."""
    if values is None:
        raise ValueError("predictions and references are both needed. Give both.")
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.dtype.is_floating_point else values
    return np.asarray(values)


def _refuse_nan(values: np.ndarray) -> np.ndarray:
    if np.isnan(values).any():
        raise ValueError("Predictions or references have NaN. If the model has diverged, lower the learning rate.")
    return values


def _check_logits(values: Any) -> np.ndarray:
    """Logits as an array of shape (N, K)."""
    logits = _as_array(values)
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ValueError(f"Logits have shape {logits.shape}. Give a row for each example and a column for each class.")
    return _refuse_nan(logits)


def _check_classes(values: Any, num_classes: int) -> np.ndarray:
    """Classes as an int64 array of the same shape."""
    classes = _as_array(values)
    if not np.issubdtype(classes.dtype, np.integer) and classes.dtype != bool:
        raise ValueError(f"Classes are {classes.dtype}. Give integers; take the argmax of logits over classes.")
    classes = classes.astype(np.int64, copy=False)
    is_outside = (classes < 0) | (classes >= num_classes)
    if is_outside.any():
        raise ValueError(
            f"There is a class {classes[is_outside][0]}. They must be from 0 to {num_classes - 1}; check them."
        )
    return classes


def _check_labels(values: Any, num_classes: int, length: int) -> np.ndarray:
    """True classes, one for each prediction, as an int64 array of shape (N,)."""
    labels = _as_array(values)
    if labels.shape != (length,):
        raise ValueError(f"References have shape {labels.shape} for {length} predictions. Give one class for each.")
    return _check_classes(labels, num_classes)
