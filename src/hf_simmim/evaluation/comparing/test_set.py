"""The images that decide a comparison, and by which metric."""

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
