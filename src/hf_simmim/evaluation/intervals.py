"""Confidence intervals of accuracies: what a test set of this size can tell."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Of a normal distribution, for intervals of 95 %.
Z = 1.959964
NUM_RESAMPLES = 10_000


def wilson_interval(num_correct: float, num_images: int) -> tuple[float, float]:
    """95 % interval of an accuracy, by Wilson's score: valid also near 0 and 1, and for small test sets.

    Args:
        num_correct: Number of correctly predicted images; a mean over several seeds need not be whole.
        num_images: Number of test images.

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        ValueError: If there are no images, or more correct ones than images.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    """
    if num_images < 1 or not 0 <= num_correct <= num_images:
        raise ValueError(f"{num_correct} of {num_images} test images cannot be correct. Count again.")
    share, squared = num_correct / num_images, Z**2 / num_images
    center = (share + squared / 2) / (1 + squared)
    reach = Z / (1 + squared) * math.sqrt(share * (1 - share) / num_images + squared / (4 * num_images))
    return max(0.0, center - reach), min(1.0, center + reach)


def paired_bootstrap(first: Any, second: Any, seed: int = 0) -> tuple[float, float, float]:
    """Difference of the accuracies of two models on the same test images, and its 95 % interval.

    Test images are drawn with replacement 10,000 times, each with the answers of both models; the ends are the 2.5 and
    97.5 % quantiles of the differences. It accounts for other test images, but not for other training runs.

    Args:
        first: Whether each image is correct by one model, (N,), or its share over several seeds, 0 to 1.
        second: The same of the other model.
        seed: Seed of the draws.

    Returns:
        Accuracy of the first model minus that of the second, and the ends of the interval.

    Raises:
        ValueError: If the shapes differ, or there are no images.

    Source: Efron, "Bootstrap methods: another look at the jackknife" (1979), the percentile interval.
    """
    first, second = (np.asarray(part, dtype=np.float64) for part in (first, second))
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"Answers have shapes {first.shape} and {second.shape}. Give one of each for every image.")
    differences = first - second
    # Images with the same difference are alike: to count them is to draw them.
    values, counts = np.unique(differences, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(differences), counts / len(differences), NUM_RESAMPLES)
    low, high = np.quantile(drawn @ values / len(differences), (0.025, 0.975))
    return float(differences.mean()), float(low), float(high)


def majority_share(labels: Sequence[int] | Any) -> tuple[int, float]:
    """The most frequent class, and its share: the accuracy of a predictor that always answers it.

    Args:
        labels: Classes of the test images, (N,).

    Returns:
        The class and its share, 0 to 1; the first of several.

    Raises:
        ValueError: If there are no labels.
    """
    labels = np.asarray(labels)
    if not len(labels):
        raise ValueError("There are no labels. Give at least one.")
    counts = np.bincount(labels)
    return int(counts.argmax()), float(counts.max() / len(labels))


@dataclass(frozen=True)
class Gain:
    """Gain of trained features over those of the same encoder untrained, on the same test images.

    Args:
        answer: `"yes"`, `"no"` or `"cannot tell"`.
        difference: Accuracy with the trained encoder minus that with the untrained one.
        low: Lower end of its 95 % interval, see `paired_bootstrap`.
        high: Upper end.
    """

    answer: str
    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        points, interval = 100 * self.difference, f"95 % interval {100 * self.low:.1f} to {100 * self.high:.1f}"
        if self.answer == "yes":
            return f"Yes: these features beat an untrained encoder by {points:.1f} points ({interval})"
        if self.answer == "no":
            return f"No: these features are {-points:.1f} points worse than those of an untrained encoder ({interval})"
        return (
            f"Cannot tell whether these features beat an untrained encoder: {points:+.1f} points ({interval}). Use more"
            " test images"
        )


def judge_gain(trained: Any, untrained: Any) -> Gain:
    """Tell whether features beat those of the same encoder untrained.

    Args:
        trained: Whether each test image is correct with the trained encoder, (N,), or its share over seeds.
        untrained: The same with the untrained encoder.

    Returns:
        Yes if the whole interval of `paired_bootstrap` is above 0, no if it is below; otherwise one cannot tell.
    """
    difference, low, high = paired_bootstrap(trained, untrained)
    answer = "yes" if low > 0 else "no" if high < 0 else "cannot tell"
    return Gain(answer, difference, low, high)
