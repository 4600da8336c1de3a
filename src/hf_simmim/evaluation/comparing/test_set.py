"""The images that decide a comparison, and by which metric."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .metric import DecidingMetric


@dataclass(frozen=True)
class TestSet:
    """The images that decide, and the metric.

    Args:
        names: Their names.
        labels: Their labels.
        images: Fingerprint of all labeled images.
        metric: The metric that decides.
        why: Why it is another one than accuracy; empty if it is accuracy or was asked for.
        refusals: Why no verdict is possible with this test set, and what to use instead.
    """

    # Not a test of pytest.
    __test__ = False

    names: list[str]
    labels: list[Any]
    images: str
    metric: DecidingMetric
    why: str
    refusals: list[tuple[str, str]]


def missing_classes(class_names: Sequence[str], counts: Sequence[int]) -> list[tuple[str, str]]:
    """Refuse a verdict where the test set lacks a class.

    Args:
        class_names: All classes.
        counts: Of each, the number of test images, or of their pixels; classes at the end may be left out.

    Returns:
        Refusals of a `TestSet`.
    """
    missing = [name for index, name in enumerate(class_names) if index >= len(counts) or not counts[index]]
    if not missing:
        return []
    named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    return [(f"since the test set has no image of {named}", "a test set with all classes")]
