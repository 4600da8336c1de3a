"""How many labels the better of two models saves: read from their learning curves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .metric import DecidingMetric
from .verdicts import SUBJECTS, Key, Scores, Verdict, by_run, counted

NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class LabelsSaved:
    """Labels that one arm saves at equal results.

    Args:
        better: The arm that needs fewer labels.
        other: The other arm.
        num_labels: Number of labels of the other arm.
        value: Its mean result with them, which the better arm reaches with fewer.
        saved: Labels that the better arm saves; None if one cannot tell.
        low: Lower end of the 95 % interval of other seeds.
        high: Upper end.
        is_at_least: Whether more may be saved: the better arm's curve starts above the value.
        reason: Why one cannot tell; empty if one can.
    """

    better: str
    other: str
    num_labels: int = 0
    value: float = math.nan
    saved: float | None = None
    low: float = math.nan
    high: float = math.nan
    is_at_least: bool = False
    reason: str = ""

    def __str__(self) -> str:
        subject, other = SUBJECTS[self.better], SUBJECTS[self.other].rstrip(",")
        if self.saved is None:
            return f"Labels saved: cannot tell, {self.reason}."
        amount = f"{'at least' if self.is_at_least else 'about'} {_rounded(self.saved):,} of {counted(self.num_labels)}"
        interval = f"95 % interval of other seeds {_rounded(self.low):,} to {_rounded(self.high):,}"
        return f"Labels saved: {subject} saves {amount} ({interval}), compared with {other}."


def _rounded(labels: float) -> int:
    """Two significant digits: more are not known."""
    if labels < 100:
        return round(labels)
    unit = 10 ** (int(math.log10(labels)) - 1)
    return round(labels / unit) * unit


def labels_needed(budgets: Sequence[int], values: Sequence[float], target: float) -> tuple[float, str]:
    """Number of labels with which a learning curve reaches a value, interpolated over the logarithm of labels.

    Args:
        budgets: Numbers of labels, increasing.
        values: Means at them, more is better.
        target: The value to reach.

    Returns:
        The number and ""; the first number and "at most" if the curve starts at or above the value; the last number and
        "more than" if it never reaches it; NaN and "several" if it crosses it more than once.
    """
    is_above = [value >= target for value in values]
    first = is_above.index(True) if True in is_above else len(values)
    if first == len(values):
        return float(budgets[-1]), "more than"
    if not all(is_above[first:]):
        return math.nan, "several"
    if first == 0:
        return float(budgets[0]), "at most"
    share = (target - values[first - 1]) / (values[first] - values[first - 1])
    start, end = math.log(budgets[first - 1]), math.log(budgets[first])
    return math.exp(start + share * (end - start)), ""


def labels_saved(scores: Mapping[int, Scores], verdicts: Sequence[Verdict], metric: DecidingMetric) -> LabelsSaved:
    """Tell how many labels the better arm of a pair saves.

    The other arm's result with the largest number of labels at which the better arm is clearly better is looked up on
    the better arm's learning curve, and nothing is said beyond the measured numbers of labels. The interval repeats
    this with seeds (and pre-trainings) that are drawn again, 1,000 times; it is about them, and about this test set.

    Args:
        scores: Values by number of labels, arm and run.
        verdicts: Verdicts of the pair at every number of labels.
        metric: The metric.

    Returns:
        What is saved, or why one cannot tell.
    """
    ordered = sorted(verdicts, key=lambda verdict: verdict.num_labels)
    first, second = ordered[0].pair
    sure = [
        verdict for verdict in ordered if verdict.answer == "yes" or (verdict.answer == "no" and _is_worse(verdict))
    ]
    if not sure:
        return LabelsSaved(first, second, reason="neither is clearly better at any number of labels")
    last = sure[-1]
    better, other = (second, first) if last.answer == "no" else (first, second)
    if any((verdict.answer == "no") != (last.answer == "no") for verdict in sure):
        return LabelsSaved(better, other, reason="which is better depends on the number of labels")
    budgets = [verdict.num_labels for verdict in ordered if verdict.num_labels <= last.num_labels]
    if len(budgets) == 1:
        return LabelsSaved(better, other, reason="their results with fewer labels are not known: add a smaller budget")
    curves = {
        arm: metric.sign
        * _curve([scores[budget][arm] for budget in budgets], [scores[budget][other] for budget in budgets])
        for arm in (better, other)
    }
    target = float(curves[other][-1].mean())
    needed, bound = labels_needed(budgets, curves[better].mean(axis=(1, 2)).tolist(), target)
    if bound == "several":
        return LabelsSaved(better, other, reason="the learning curve goes up and down")
    generator, drawn = np.random.default_rng(0), []
    shapes = {arm: curve.shape for arm, curve in curves.items()}
    for _ in range(NUM_RESAMPLES):
        seeds = generator.integers(shapes[better][2], size=shapes[better][2])
        means = {}
        for arm, curve in curves.items():
            numbers = generator.integers(shapes[arm][1], size=shapes[arm][1])
            means[arm] = curve[:, numbers][:, :, seeds].mean(axis=(1, 2))
        again, kind = labels_needed(budgets, means[better].tolist(), float(means[other][-1]))
        drawn.append(0.0 if kind in ("several", "more than") else budgets[-1] - again)
    low, high = np.quantile(drawn, (0.025, 0.975))
    facts = {"num_labels": budgets[-1], "value": metric.sign * target, "saved": budgets[-1] - needed}
    return LabelsSaved(better, other, low=float(low), high=float(high), is_at_least=bound == "at most", **facts)  # type: ignore[arg-type]


def _is_worse(verdict: Verdict) -> bool:
    return verdict.high is not None and verdict.high < 0


def _curve(values: Sequence[Mapping[Key, float]], others: Sequence[Mapping[Key, float]]) -> np.ndarray:
    """Values (budgets, pre-trainings, seeds) of an arm, with the seeds that both arms have at every budget."""
    runs = [by_run(part) for part in values]
    seeds = set.intersection(*({seed for _, seed in part} for part in (*runs, *map(by_run, others))))
    numbers = sorted({number for part in runs for number, _ in part}, key=lambda number: (number is not None, number))
    return np.array([[[part[number, seed] for seed in sorted(seeds)] for number in numbers] for part in runs])
