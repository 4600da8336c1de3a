"""The images that decide a comparison, and by which metric."""

from collections.abc import Mapping, Sequence
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
        label: What a label budget counts, and of what each, in words; of one.
    """

    # Not a test of pytest.
    __test__ = False

    names: list[str]
    labels: list[Any]
    images: str
    metric: DecidingMetric
    why: str
    refusals: list[tuple[str, str]]
    label: tuple[str, str] = ("label", " per class")

    def budget(self, number: int) -> str:
        """A label budget in words, such as "5 labels per class"; 0 is all of them."""
        one, each = self.label
        return f"{number:,} {one}{'s' * (number != 1)}{each}" if number else f"all {one}s"


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


def refuse_equal_budgets(num_images: Mapping[int, int]) -> None:
    """Refuse label budgets that are the same number of images: results are kept by it.

    Args:
        num_images: Number of training images of each budget.

    Raises:
        ValueError: If two budgets have as many.
    """
    budgets: dict[int, int] = {}
    for budget, number in num_images.items():
        if number in budgets:
            raise ValueError(
                f"labels_per_class={budgets[number]} and {budget} are the same budget, of {number:,} images. Leave one"
                " of them out (0 is all labels)."
            )
        budgets[number] = budget
