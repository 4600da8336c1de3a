"""What all metrics share: batches of arrays that are checked and taken in, and nothing written to disk."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value


class RunningMetric(evaluate.Metric):
    """A metric that takes batches as arrays and remembers only what it needs of them.

    `compute(predictions=, references=)`, `add_batch`, `add` and `evaluate.combine` work as with every other metric.
    """

    description = ""

    def __init__(self):
        self._reset()
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Value("float32"), "references": Value("float32")})
        return evaluate.MetricInfo(
            description=self.description,
            citation="",
            inputs_description="predictions and references are arrays, or lists of them.",
            features=features,
        )

    def _build_data_dir(self) -> str:
        return ""  # Nothing is written.

    def _reset(self) -> None:
        """Forget everything."""
        raise NotImplementedError

    def _update(self, predictions: Any, references: Any) -> None:
        """Take in a batch."""
        raise NotImplementedError

    def _result(self) -> dict[str, Any]:
        """What all batches give."""
        raise NotImplementedError

    def _compute(self, *, predictions: Any = None, references: Any = None) -> dict[str, Any]:
        if predictions is not None or references is not None:
            self._update(predictions, references)
        try:
            return self._result()
        finally:
            self._reset()

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any]:
        """The metric of all batches that were added, and of these; then it starts anew.

        Args:
            predictions: Of a last batch, or None.
            references: What they should be.
            **kwargs: Refused.

        Returns:
            Figures by name.

        Raises:
            ValueError: If there is nothing to measure, or the arrays do not fit.
        """
        if kwargs:
            raise ValueError(f"Unknown arguments: {', '.join(kwargs)}. Give options where the metric is made.")
        return self._compute(predictions=predictions, references=references)

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
            raise ValueError(f"Unknown arguments: {', '.join(kwargs)}. Give predictions and references.")
        self._update(predictions, references)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one example.

        Args:
            prediction: Its prediction.
            reference: What it should be.
            **kwargs: Refused.

        Raises:
            ValueError: If they do not fit.
        """
        self.add_batch(predictions=to_array(prediction)[None], references=to_array(reference)[None], **kwargs)


def check_class_names(class_names: Sequence[str]) -> list[str]:
    """Class names as a list.

    Args:
        class_names: Name of each class.

    Returns:
        The names.

    Raises:
        ValueError: If there are none, or two are the same.
    """
    names = [str(name) for name in class_names]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        raise ValueError(f"There are {len(names)} class names, of which {twice[:5]} twice. Give each class its own.")
    return names


def to_array(values: Any) -> np.ndarray:
    """A tensor, list or array as an array; numbers of a tensor that NumPy does not know become float32.

    Args:
        values: What a metric was given.

    Returns:
        The array.

    Raises:
        ValueError: If it was given nothing.
    """
    if values is None:
        raise ValueError("predictions and references are both needed. Give both.")
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.dtype.is_floating_point else values
    return np.asarray(values)


def refuse_nan(values: np.ndarray) -> np.ndarray:
    """The array itself.

    Args:
        values: Numbers of any shape.

    Returns:
        The same.

    Raises:
        ValueError: If there are NaN.
    """
    if np.isnan(values).any():
        raise ValueError("Predictions or references have NaN. If the model has diverged, lower the learning rate.")
    return values


def check_logits(values: Any) -> np.ndarray:
    """Logits as an array.

    Args:
        values: What a metric was given.

    Returns:
        Array of shape (N, K).

    Raises:
        ValueError: If it has another shape, or NaN.
    """
    logits = to_array(values)
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ValueError(f"Logits have shape {logits.shape}. Give a row for each example and a column for each class.")
    return refuse_nan(logits)


def check_classes(values: Any, num_classes: int) -> np.ndarray:
    """Classes as integers.

    Args:
        values: What a metric was given, of any shape.
        num_classes: Number of classes.

    Returns:
        int64 array of the same shape.

    Raises:
        ValueError: If they are no integers, or out of range.
    """
    classes = to_array(values)
    if not np.issubdtype(classes.dtype, np.integer) and classes.dtype != bool:
        raise ValueError(f"Classes are {classes.dtype}. Give integers; take the argmax of logits over classes.")
    classes = classes.astype(np.int64, copy=False)
    is_none = (classes < 0) | (classes >= num_classes)
    if is_none.any():
        raise ValueError(
            f"There is a class {classes[is_none][0]}. They must be from 0 to {num_classes - 1}; check them."
        )
    return classes


def check_labels(values: Any, num_classes: int, length: int) -> np.ndarray:
    """True classes, one for each prediction.

    Args:
        values: What a metric was given.
        num_classes: Number of classes.
        length: Number of predictions.

    Returns:
        int64 array of shape (N,).

    Raises:
        ValueError: If they are other than one class for each prediction.
    """
    labels = to_array(values)
    if labels.shape != (length,):
        raise ValueError(f"References have shape {labels.shape} for {length} predictions. Give one class for each.")
    return check_classes(labels, num_classes)


def class_pairs(predictions: Any, references: Any, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true classes.

    Args:
        predictions: Logits (N, K) or classes (N,).
        references: Classes (N,).
        num_classes: Number of classes.

    Returns:
        int64 arrays of shape (N,).

    Raises:
        ValueError: If they do not fit.
    """
    predicted = to_array(predictions)
    if predicted.ndim == 2:
        predicted = check_logits(predicted)
        if predicted.shape[1] != num_classes:
            raise ValueError(f"Logits have {predicted.shape[1]} columns for {num_classes} classes. Give one for each.")
        predicted = predicted.argmax(axis=1)
    elif predicted.ndim != 1:
        raise ValueError(f"Predictions have shape {predicted.shape}. Give logits (N, K) or classes (N,).")
    predicted = check_classes(predicted, num_classes)
    return predicted, check_labels(references, num_classes, len(predicted))


def refuse_nothing(count: int) -> None:
    """Make sure that there is something to measure.

    Args:
        count: Number of what was added.

    Raises:
        ValueError: If it is 0.
    """
    if not count:
        raise ValueError("There is nothing to measure. Add predictions and references first.")
