"""The base of all metrics: batches of arrays are checked and kept in memory, and nothing is written to disk.

`evaluate.Metric` itself would store all logits as Arrow tables and create a cache folder. These metrics check each
batch when it is added and keep what the figures need (classes, not logits; counts, not pixels), so that many processes
can measure at once. In distributed evaluations give them what Trainer has gathered.
"""

from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value


class RunningMetric(evaluate.Metric):
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
        # Copies, for the caller may use its arrays again.
        self._kept.append(tuple(map(np.array, self._needed(predictions, references))))

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one example.

        Args:
            prediction: Its prediction.
            reference: What it should be.
            **kwargs: Refused.

        Raises:
            ValueError: If they do not fit.
        """
        self.add_batch(predictions=as_array(prediction)[None], references=as_array(reference)[None], **kwargs)


def as_array(values: Any) -> np.ndarray:
    """A tensor, list or array as an array, floats of a tensor as float32; raises ValueError if it is None."""
    if values is None:
        raise ValueError("predictions and references are both needed. Give both.")
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.dtype.is_floating_point else values
    return np.asarray(values)


def refuse_nan(values: np.ndarray) -> np.ndarray:
    """The numbers themselves; raises ValueError if there are NaN."""
    if np.isnan(values).any():
        raise ValueError("Predictions or references have NaN. If the model has diverged, lower the learning rate.")
    return values


def check_logits(values: Any) -> np.ndarray:
    """Logits as an array (N, K); raises ValueError if they have another shape, or NaN."""
    logits = as_array(values)
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ValueError(f"Logits have shape {logits.shape}. Give a row for each example and a column for each class.")
    return refuse_nan(logits)


def check_classes(values: Any, num_classes: int) -> np.ndarray:
    """Classes as an int64 array; raises ValueError if they are not integers, or out of range."""
    classes = as_array(values)
    if not np.issubdtype(classes.dtype, np.integer) and classes.dtype != bool:
        raise ValueError(f"Classes are {classes.dtype}. Give integers; take the argmax of logits over classes.")
    classes = classes.astype(np.int64, copy=False)
    is_outside = (classes < 0) | (classes >= num_classes)
    if is_outside.any():
        raise ValueError(
            f"There is a class {classes[is_outside][0]}. They must be from 0 to {num_classes - 1}; check them."
        )
    return classes


def check_labels(values: Any, num_classes: int, length: int) -> np.ndarray:
    """True classes as an int64 array (length,); raises ValueError if they are anything else."""
    labels = as_array(values)
    if labels.shape != (length,):
        raise ValueError(f"References have shape {labels.shape} for {length} predictions. Give one class for each.")
    return check_classes(labels, num_classes)
