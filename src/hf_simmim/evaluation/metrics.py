"""Metrics of classification, segmentation and regression with the interface of `evaluate`, without downloads.

scikit-learn computes most of them. Two are implemented here, for reasons measured with scikit-learn 1.9:

- Top-k: `top_k_accuracy_score` prefers the last of equal scores, rejects the two columns of two classes, and takes 20
  times as long.
- Mean IoU: `jaccard_score` needs all pixels at once, and `multilabel_confusion_matrix` for each image takes 20 times as
  long as counting (38 instead of 2 ms for 512 x 512 pixels).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import EvalPrediction

from .running_metric import RunningMetric, as_array, check_classes, check_labels, check_logits, refuse_nan

TOP_K = 5
# Largest number of classes whose recalls Trainer logs.
MAX_LOGGED_CLASSES = 20
# Largest number of classes whose scores are ranked for average precision and AUROC: each takes a sort of all images.
MAX_RANKED_CLASSES = 200
# A class is missed if its recall is below this share of the accuracy, or below this and so far below the accuracy.
MISSED_SHARE, MISSED_RECALL, MISSED_GAP = 0.5, 0.5, 0.2


class TopKAccuracy(RunningMetric):
    """Top-1 and top-k accuracy, from logits (N, K) and classes (N,).

    Gives `accuracy` and `top{k}_accuracy`; among equal logits the first class comes first, as in argmax.

    Args:
        k: Number of guesses; with fewer classes, all are guesses.
    """

    def __init__(self, k: int = TOP_K):
        if k < 1:
            raise ValueError(f"k={k} must be 1 or more.")
        self.k = k
        super().__init__()

    def _prepare_batch(self, predictions: Any, references: Any) -> tuple[np.ndarray, ...]:
        logits = check_logits(predictions)
        labels = check_labels(references, logits.shape[1], len(logits))
        own = np.take_along_axis(logits, labels[:, None], axis=1)
        is_earlier = np.arange(logits.shape[1]) < labels[:, None]
        # Number of classes ranked before the true one.
        return (((logits > own) | ((logits == own) & is_earlier)).sum(axis=1),)

    def _compute_values(self, ranks: np.ndarray) -> dict[str, float]:
        return {"accuracy": float(np.mean(ranks == 0)), f"top{self.k}_accuracy": float(np.mean(ranks < self.k))}


class _ClassMetric(RunningMetric):
    """A metric of named classes, from logits (N, K) or classes (N,), and true classes (N,)."""

    def __init__(self, class_names: Sequence[str]):
        self.class_names = [str(name) for name in class_names]
        twice = [name for name, count in Counter(self.class_names).items() if count > 1]
        if not self.class_names or twice:
            raise ValueError(
                f"There are {len(self.class_names)} class names, {twice[:5]} repeated. Give each class its own."
            )
        super().__init__()

    def _prepare_batch(self, predictions: Any, references: Any) -> tuple[np.ndarray, ...]:
        num_classes = len(self.class_names)
        predicted = as_array(predictions)
        if predicted.ndim == 2:
            predicted = check_logits(predicted)
            if predicted.shape[1] != num_classes:
                raise ValueError(
                    f"Logits have {predicted.shape[1]} columns for {num_classes} classes. Give one per class."
                )
            predicted = predicted.argmax(axis=1)
        elif predicted.ndim != 1:
            raise ValueError(f"Predictions have shape {predicted.shape}. Give logits (N, K) or classes (N,).")
        return check_classes(predicted, num_classes), check_labels(references, num_classes, len(predicted))

    def _by_name(self, figures: np.ndarray) -> dict[str, Any]:
        return dict(zip(self.class_names, figures.tolist(), strict=True))


class PerClassAccuracy(_ClassMetric):
    """Recall, precision and support of each class, from logits (N, K) or classes (N,), and true classes (N,).

    Gives `accuracy`, `balanced_accuracy` (the mean recall of the classes with examples), and `recall`, `precision` and
    `support` by class name. Undefined values are NaN: the recall of a class without examples, and the precision of one
    that is never predicted.

    Args:
        class_names: Name of each class.
    """

    def _compute_values(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, Any]:
        from sklearn.metrics import accuracy_score, precision_recall_fscore_support

        precision, recall, _, support = precision_recall_fscore_support(
            true, predicted, labels=range(len(self.class_names)), zero_division=np.nan
        )
        return {
            "accuracy": accuracy_score(true, predicted),
            # `balanced_accuracy_score` builds a K x K matrix, 7 GB for the 21,841 classes of ImageNet-22k.
            "balanced_accuracy": float(np.nanmean(recall)),
            "recall": self._by_name(recall),
            "precision": self._by_name(precision),
            # scikit-learn returns floats if no prediction is correct.
            "support": self._by_name(support.astype(np.int64)),
        }


class PerClassScores(_ClassMetric):
    """Precision, recall, F1, average precision and AUROC of each class against all others, from logits (N, K).

    Gives `per_class`, by class name `precision`, `recall`, `f1`, `average_precision`, `auroc` and `support`, and their
    means over the classes, `macro_precision`, `macro_recall` (the balanced accuracy), `macro_f1`,
    `macro_average_precision` and `macro_auroc`. Images are ranked by the class's probability, the softmax of the
    logits. The average precision of random scores is the class's share of the images, their AUROC 0.5.

    Undefined values are NaN and left out of the means: all but the precision of a class without examples, the precision
    of one that is never predicted, and AUROC if all images are of one class. The means are over classes with examples.
    With more than 200 classes, average precision and AUROC are not computed, and missing from the result.

    Args:
        class_names: Name of each class.

    Source: `precision_recall_fscore_support`, `average_precision_score` and `roc_auc_score` of scikit-learn.
    """

    @staticmethod
    def without_nan(per_class: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
        """`per_class` with None instead of NaN, which JSON does not have."""
        return {
            name: {key: None if value != value else value for key, value in row.items()}
            for name, row in per_class.items()
        }

    def _prepare_batch(self, predictions: Any, references: Any) -> tuple[np.ndarray, ...]:
        logits = check_logits(predictions)
        predicted, labels = super()._prepare_batch(logits, references)
        is_ranked = len(self.class_names) <= MAX_RANKED_CLASSES
        return predicted, labels, log_softmax(logits) if is_ranked else logits[:, :0]

    def _compute_values(self, predicted: np.ndarray, true: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
        from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

        precision, recall, f1, support = precision_recall_fscore_support(
            true, predicted, labels=range(len(self.class_names)), zero_division=np.nan
        )
        has_examples = support > 0
        columns = {"precision": precision, "recall": recall, "f1": np.where(has_examples, f1, np.nan)}
        if scores.shape[1]:
            ranked = np.full((2, len(self.class_names)), np.nan)
            for index in has_examples.nonzero()[0]:
                is_own = true == index
                ranked[0, index] = average_precision_score(is_own, scores[:, index])
                if not is_own.all():
                    ranked[1, index] = roc_auc_score(is_own, scores[:, index])
            columns |= {"average_precision": ranked[0], "auroc": ranked[1]}
        means = {}
        for name, values in columns.items():
            counted = values[has_examples & ~np.isnan(values)]
            means[f"macro_{name}"] = float(counted.mean()) if len(counted) else float("nan")
        table = np.stack([*columns.values()], axis=1).tolist()
        names = [*columns, "support"]
        per_class = {
            name: dict(zip(names, [*row, int(count)], strict=True))
            for name, row, count in zip(self.class_names, table, support, strict=True)
        }
        return means | {"per_class": per_class}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithm of the softmax, as float64: it orders images as probabilities do.

    Args:
        logits: Logits (N, K).

    Returns:
        The logarithms (N, K).
    """
    logits = logits.astype(np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def missed_classes(per_class: Mapping[str, Mapping[str, float]], accuracy: float, limit: int = 5) -> list[str]:
    """Find classes that the accuracy hides: they are mostly not found, while it looks good.

    A class is missed if its recall is below half of the accuracy, or below 50 % while the accuracy is at least 20
    percentage points higher.

    Args:
        per_class: `recall` and `support` (number of test images) by class name, such as `per_class` of
            `PerClassScores`; classes without examples are left out.
        accuracy: Share of correct predictions, 0 to 1.
        limit: Largest number of classes to name; those with the lowest recall are named.

    Returns:
        A sentence for each missed class, and one that counts the others.
    """
    recalls = {name: row["recall"] for name, row in per_class.items() if row["support"]}
    missed = [
        name
        for name, recall in sorted(recalls.items(), key=lambda entry: entry[1])
        # With a margin for rounding, so that 20 points are 20 points.
        if recall < MISSED_SHARE * accuracy or (recall < MISSED_RECALL and accuracy - recall >= MISSED_GAP - 1e-9)
    ]
    balanced = f"see balanced accuracy {np.mean(list(recalls.values())):.0%}" if recalls else ""
    sentences = [
        f"{name}: only {recalls[name]:.0%} of {int(per_class[name]['support']):,} test images are found (recall), while"
        f" accuracy is {accuracy:.0%}; {balanced}"
        for name in missed[:limit]
    ]
    others = len(missed) - limit
    if others > 0:
        sentences.append(f"{others:,} more class{'es are' if others > 1 else ' is'} missed like these")
    return [sentence.replace("%", " %") if "%" in sentence else sentence for sentence in sentences]


def missed_in_matrix(matrix: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """`missed_classes` of a confusion matrix, which may be the sum of those of several runs.

    Args:
        matrix: Confusion matrix (K, K), rows are true classes.
        class_names: Name of each class.

    Returns:
        As `missed_classes` does.
    """
    matrix = np.asarray(matrix)
    support, correct = matrix.sum(axis=1).tolist(), np.diag(matrix).tolist()
    per_class = {
        name: {"recall": right / count if count else float("nan"), "support": count}
        for name, right, count in zip(class_names, correct, support, strict=True)
    }
    return missed_classes(per_class, sum(correct) / max(1, sum(support)))


class ConfusionMatrix(_ClassMetric):
    """Confusion matrix, from logits (N, K) or classes (N,), and true classes (N,).

    Gives `confusion_matrix`, an int64 array (K, K) whose rows are the true classes; `plot_confusion` draws it.

    Args:
        class_names: Name of each class.
    """

    def _compute_values(self, predicted: np.ndarray, true: np.ndarray) -> dict[str, Any]:
        from sklearn.metrics import confusion_matrix

        return {"confusion_matrix": confusion_matrix(true, predicted, labels=range(len(self.class_names)))}


def count_pixels(
    predicted: np.ndarray, true: np.ndarray, num_classes: int, ignore_index: int | None = None
) -> np.ndarray:
    """Count the pixels of each class in an image.

    Args:
        predicted: Label map of the predictions.
        true: The true one, of the same shape.
        num_classes: Number of classes K.
        ignore_index: Value in `true` of pixels that are ignored.

    Returns:
        int64 array of shape (3, K): pixels that are correct, of the class, and predicted as it.

    Raises:
        ValueError: If a pixel is of no class.
    """
    if ignore_index is not None:
        is_counted = true != ignore_index
        predicted, true = predicted[is_counted], true[is_counted]
    predicted, true = (check_classes(part, num_classes).ravel() for part in (predicted, true))
    columns = (true[predicted == true], true, predicted)
    return np.stack([np.bincount(column, minlength=num_classes) for column in columns])


class MeanIoU(_ClassMetric):
    """Intersection over union of label maps, from integer maps (B, H, W), or a list of maps (H, W) of any sizes.

    Gives `mean_iou` over the classes that are true or predicted somewhere, `pixel_accuracy`, and `iou` by class name,
    NaN for a class that does not occur. Pixels are counted over the whole dataset, not averaged over images.

    Args:
        class_names: Name of each class.
        ignore_index: Pixels with this value in the references are ignored, whatever is predicted there.
    """

    def __init__(self, class_names: Sequence[str], ignore_index: int | None = 255):
        self.ignore_index = ignore_index
        super().__init__(class_names)

    def _prepare_batch(self, predictions: Any, references: Any) -> tuple[np.ndarray, ...]:
        if predictions is None or references is None or len(predictions) != len(references):
            raise ValueError("MeanIoU needs as many predictions as references. Give one label map for each image.")
        num_classes = len(self.class_names)
        counts = np.zeros((3, num_classes), dtype=np.int64)  # correct, true, predicted
        for index, (predicted, true) in enumerate(zip(predictions, references, strict=True)):
            predicted, true = as_array(predicted), as_array(true)
            if predicted.shape != true.shape:
                raise ValueError(
                    f"Label map {index} has shape {predicted.shape} and its reference {true.shape}. Resize the logits"
                    " to the reference, and take their argmax over classes."
                )
            counts += count_pixels(predicted, true, num_classes, self.ignore_index)
        # Empty if all pixels are ignored.
        return (counts[None][: int(counts.any())],)

    def _compute_values(self, counts: np.ndarray) -> dict[str, Any]:
        correct, true, predicted = counts.sum(axis=0)
        union = true + predicted - correct
        iou = np.divide(correct, union, out=np.full(len(union), np.nan), where=union > 0)
        return {
            "mean_iou": float(np.nanmean(iou)),
            "pixel_accuracy": float(correct.sum() / true.sum()),
            "iou": self._by_name(iou),
        }


class Regression(RunningMetric):
    """Errors of predicted numbers (N,), (N, 1) or (N, D): `mae`, `rmse` and `r2`, averaged over the D numbers."""

    def _prepare_batch(self, predictions: Any, references: Any) -> tuple[np.ndarray, ...]:
        predictions, references = (as_array(part).astype(np.float64) for part in (predictions, references))
        if references.ndim < predictions.ndim and predictions.shape[-1] == 1:
            predictions = predictions[..., 0]
        if predictions.shape != references.shape:
            raise ValueError(
                f"predictions have shape {predictions.shape} and references {references.shape}. Give equal shapes."
            )
        return refuse_nan(predictions), refuse_nan(references)

    def _compute_values(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

        return {
            "mae": float(mean_absolute_error(references, predictions)),
            "rmse": float(root_mean_squared_error(references, predictions)),
            # r2 is undefined for one example.
            "r2": float(r2_score(references, predictions)) if len(references) > 1 else float("nan"),
        }


class MultiLabel(Regression):
    """Mean average precision and F1 of several labels at once, from scores (N, K) and labels (N, K) of 0 and 1.

    Gives `mean_average_precision` over the classes with examples, `micro_f1`, and `macro_f1` over the classes that are
    true or predicted somewhere.

    Args:
        threshold: Scores above it predict a label: 0 for logits, 0.5 for probabilities.
    """

    def __init__(self, threshold: float = 0.0):
        self.threshold = threshold
        super().__init__()

    def _prepare_batch(self, predictions: Any, references: Any) -> tuple[np.ndarray, ...]:
        references = as_array(references)
        if references.ndim != 2 or not np.isin(references, (0, 1)).all():
            raise ValueError(f"References of several labels are an array (N, K) of 0 and 1, not {references.shape}.")
        return super()._prepare_batch(predictions, references)

    def _compute_values(self, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        from sklearn.metrics import average_precision_score, f1_score

        is_there = labels.any(axis=0)
        precision = average_precision_score(labels[:, is_there], scores[:, is_there]) if is_there.any() else np.nan
        # scikit-learn treats a single column as two classes, of which the second, 1, is the label.
        counted = [1] if labels.shape[1] == 1 else None
        figures = {"mean_average_precision": float(precision)}
        for average in ("micro", "macro"):
            f1 = f1_score(labels, scores > self.threshold, labels=counted, average=average, zero_division=np.nan)
            figures[f"{average}_f1"] = float(f1)
        return figures


def classification_metrics(
    class_names: Sequence[str], problem_type: str = "single_label_classification"
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Create Trainer's `compute_metrics` for a classifier.

    Args:
        class_names: Name of each class.
        problem_type: As in configs of transformers: "single_label_classification", "multi_label_classification" or
            "regression".

    Returns:
        A function of logits (N, K), possibly in a tuple with other outputs, and labels, that returns metrics by name.
        For single labels these are `accuracy`, `top5_accuracy` with six or more classes, `balanced_accuracy`,
        `macro_precision`, `macro_f1`, with up to 200 classes `macro_average_precision` and `macro_auroc`, and with up
        to 20 classes `accuracy_<name>`, the recall of each class with examples. Undefined values are left out. Its
        attribute `metric_names` lists all names that can occur.

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
    scores = PerClassScores(class_names)
    macro = ["macro_precision", "macro_f1"]
    macro += ["macro_average_precision", "macro_auroc"] if len(names) <= MAX_RANKED_CLASSES else []
    metric_names = {
        "single_label_classification": ["accuracy", "balanced_accuracy", f"top{TOP_K}_accuracy"][
            : 2 + (len(names) > TOP_K)
        ]
        + macro
        + [f"accuracy_{name}" for name in names if len(names) <= MAX_LOGGED_CLASSES],
        "multi_label_classification": ["mean_average_precision", "micro_f1", "macro_f1"],
        "regression": ["mae", "rmse", "r2"],
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
        of_classes = scores.compute(predictions=logits, references=labels)
        flat |= {key: of_classes[key] for key in macro if not np.isnan(of_classes[key])}
        if len(names) <= MAX_LOGGED_CLASSES:
            flat |= {f"accuracy_{name}": value for name, value in figures["recall"].items() if not np.isnan(value)}
        return flat

    compute_metrics.metric_names = metric_names[problem_type]  # type: ignore[attr-defined]
    return compute_metrics
