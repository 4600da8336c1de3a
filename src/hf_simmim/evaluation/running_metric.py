"""Base class of all metrics: batches of arrays are checked and kept in memory, and nothing is written to disk.

`evaluate.Metric` itself would store all logits as Arrow tables and create a cache folder. These metrics check each
batch when it is added and keep only what they need (classes, not logits; counts, not pixels), so that many processes
can evaluate at once. In distributed evaluation, pass what Trainer has gathered.
"""

from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value


class RunningMetric(evaluate.Metric):
    """A metric that keeps in memory only what it needs of each batch.

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
        return ""  # nothing is written

    def _prepare_batch(self, predictions: Any, references: Any) -> tuple[np.ndarray, ...]:
        """Check a batch, and return what the metric needs of it: arrays that are joined along their first axis."""
        raise NotImplementedError

    def _compute_values(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Compute the metric from the joined arrays of all batches."""
        raise NotImplementedError

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Compute the metric over all batches that were added and this one; then forget them.

        Args:
            predictions: Predictions of a last batch, or None.
            references: References of that batch.
            **kwargs: Rejected.

        Returns:
            Values by name.

        Raises:
            ValueError: If there is nothing to evaluate, or the shapes do not match.
        """
        if kwargs or predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references, **kwargs)
        kept, self._kept = self._kept, []
        if not any(len(batch[0]) for batch in kept):
            raise ValueError("There is nothing to evaluate. Add predictions and references first.")
        return self._compute_values(*(np.concatenate(parts) for parts in zip(*kept, strict=True)))

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add a batch.

        Args:
            predictions: Array, or list of arrays, one for each example.
            references: True values of the same examples.
            **kwargs: Rejected.

        Raises:
            ValueError: If the shapes do not match.
        """
        if kwargs:
            raise ValueError(f"Unknown arguments: {', '.join(kwargs)}. Pass options to the constructor of the metric.")
        # Copied, because the caller may reuse its arrays.
        self._kept.append(tuple(map(np.array, self._prepare_batch(predictions, references))))

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one example.

        Args:
            prediction: Its prediction.
            reference: Its true value.
            **kwargs: Rejected.

        Raises:
            ValueError: If the shapes do not match.
        """
        self.add_batch(predictions=as_array(prediction)[None], references=as_array(reference)[None], **kwargs)


def as_array(values: Any) -> np.ndarray:
    """Convert a tensor, list or array to an array, floats of a tensor to float32; raises ValueError for None."""
    if values is None:
        raise ValueError("predictions and references are both needed. Give both.")
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.dtype.is_floating_point else values
    return np.asarray(values)


def refuse_nan(values: np.ndarray) -> np.ndarray:
    """Return the numbers unchanged; raises ValueError if any is NaN."""
    if np.isnan(values).any():
        raise ValueError("Predictions or references contain NaN. If the model has diverged, lower the learning rate.")
    return values


def check_logits(values: Any) -> np.ndarray:
    """Convert logits to an array (N, K); raises ValueError if they have another shape, or NaN."""
    logits = as_array(values)
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ValueError(f"Logits have shape {logits.shape}. Give a row for each example and a column for each class.")
    return refuse_nan(logits)


def check_classes(values: Any, num_classes: int) -> np.ndarray:
    """Convert classes to an int64 array; raises ValueError if they are not integers, or out of range."""
    classes = as_array(values)
    if not np.issubdtype(classes.dtype, np.integer) and classes.dtype != bool:
        raise ValueError(f"Classes have dtype {classes.dtype}. Give integers; take the argmax of logits over classes.")
    classes = classes.astype(np.int64, copy=False)
    is_outside = (classes < 0) | (classes >= num_classes)
    if is_outside.any():
        raise ValueError(
            f"There is a class {classes[is_outside][0]}, outside 0 to {num_classes - 1}. Check labels and class names."
        )
    return classes


def check_labels(values: Any, num_classes: int, length: int) -> np.ndarray:
    """Convert true classes to an int64 array (length,); raises ValueError if that is not possible."""
    labels = as_array(values)
    if labels.shape != (length,):
        raise ValueError(f"References have shape {labels.shape} for {length} predictions. Give one class for each.")
    return check_classes(labels, num_classes)
