"""Columns of labels in a data set: which it is, and what it says."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, List, Value
from datasets import Image as ImageFeature

from .image_sources import array_dtype


def find_label_column(dataset: Dataset, image_column: str, label_column: str | None) -> str:
    """Name of the column of labels: the given one if the data set has it, else the only one of such a type."""
    # Names in double underscores are webdataset's own, such as __key__.
    columns = {name: feature for name, feature in dataset.features.items() if not name.startswith("__")}
    columns.pop(image_column)
    if label_column is not None:
        if label_column not in columns:
            raise ValueError(f"There is no column {label_column!r} of labels. The columns are: {', '.join(columns)}.")
        return label_column
    declared = [name for name, feature in columns.items() if isinstance(_element(feature), ClassLabel)]
    possible = [name for name, feature in columns.items() if _kind(feature) in ("class", "text")]
    found = declared or possible
    if len(found) != 1:
        raise ValueError(
            f"The data set has {len(found)} columns that may be labels among {', '.join(columns) or 'none'}. Name the"
            " one to use with label_column."
        )
    return found[0]


def _element(feature: Any) -> Any:
    return feature.feature if isinstance(feature, List) else feature


def _kind(feature: Any) -> str | None:
    """Kind of a label or of the elements of a list of labels; None for what is none."""
    if isinstance(feature, ImageFeature) or array_dtype(feature) is not None:
        return None
    element = _element(feature)
    if isinstance(element, ClassLabel):
        return "class"
    dtype = element.dtype if isinstance(element, Value) else ""
    if dtype == "bool" or dtype.startswith(("int", "uint")):
        return "class"
    if dtype in ("string", "large_string"):
        return "text"
    return "number" if dtype.startswith("float") else None


def read_labels(dataset: Dataset, column: str) -> tuple[list[Any], list[str] | None]:
    """Read a column of labels.

    Args:
        dataset: The data set.
        column: Name of the column.

    Returns:
        Labels as `LabelledImages` has them, None where there is none, and the names of the classes, None for floats.

    Raises:
        ValueError: If the column holds no labels.
    """
    feature = dataset.features[column]
    kind, element = _kind(feature), _element(feature)
    values = dataset.select_columns(column).with_format(None)[column][:]
    if kind is None:
        raise ValueError(
            f"Column {column!r} holds {feature}. Labels are ClassLabel, integers, strings, floats, or lists of them."
        )
    if isinstance(feature, List):
        if kind == "number":
            return _read_indicators(values, column)
        present = sorted({item for value in values if value for item in value if item is not None})
    elif kind == "number":
        finite = [value is not None and np.isfinite(value) for value in values]
        return [float(value) if known else None for value, known in zip(values, finite, strict=True)], None
    else:
        present = sorted({value for value in values if value is not None})
    if isinstance(element, ClassLabel):
        class_names = list(element.names)
        mapping = {index: index for index in range(len(class_names))}
    else:
        class_names = [str(item) for item in present]
        mapping = {item: index for index, item in enumerate(present)}
    if not isinstance(feature, List):
        return [mapping.get(value) for value in values], class_names
    chosen = [value if value is None else [mapping[item] for item in value if item in mapping] for value in values]
    return indicators(chosen, len(class_names)), class_names


def _read_indicators(values: list[Any], column: str) -> tuple[list[Any], list[str]]:
    lengths = {len(value) for value in values if value is not None}
    if len(lengths) > 1 or {item for value in values if value is not None for item in value} - {0.0, 1.0}:
        raise ValueError(
            f"Lists of floats as in column {column!r} must be a zero or one for each class, equally many for each"
            " image. For several classes of an image write their numbers or names as integers or strings."
        )
    return values, [str(index) for index in range(lengths.pop() if lengths else 0)]


def indicators(chosen: Sequence[Sequence[int] | None], num_classes: int) -> list[list[float] | None]:
    """Zeros and ones for `num_classes` classes, of the chosen indices of each image; None where that is None."""
    return [
        None if indices is None else [float(index in set(indices)) for index in range(num_classes)]
        for indices in chosen
    ]
