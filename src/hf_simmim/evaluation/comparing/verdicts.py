"""Comparison of ways to start a training: their results at several label budgets, verdicts, and a recommendation."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..intervals import Z
from .metric import ACCURACY, DecidingMetric

ARMS = ("pre-trained", "from scratch")
# All arms from the cheapest to the dearest: a dearer one must be better to be recommended.
ALL_ARMS = ("from scratch", "public", "pre-trained", "continued")
# Smaller gains do not count: of a share this, of other metrics this share of the other arm's value.
SMALLEST_GAIN = 0.01
# Fewer test images give no verdict.
MIN_TEST_IMAGES = 30

# Of a run: its seed, or the seeds of the pre-training and of the run. Of an arm: values by run. Of a budget: by arm.
Run = tuple[int | None, int]
Key = int | Run
Scores = Mapping[str, Mapping[Key, float]]
Pair = tuple[str, str]

SUBJECTS = {
    "pre-trained": "pre-training on these images",
    "from scratch": "training from scratch",
    "public": "the public model",
    "continued": "the public model, pre-trained further on these images,",
}
# Where the width of an interval comes from, and what makes it smaller.
REMEDIES = {
    "seeds": "more --seeds",
    "pre-trainings": "more --pretrain_seeds",
    "test images": "more test images",
}


@dataclass(frozen=True)
class Verdict:
    """Result of the comparison of two arms at one label budget.

    Args:
        num_labels: Number of labeled images.
        answer: `"yes"`, `"no"` or `"cannot tell"`.
        difference: Mean of the first arm minus that of the second, positive if the first is better.
        low: Lower end of its 95 % confidence interval; None with a single seed.
        high: Upper end.
        num_better: Number of seeds with which the first arm is better.
        num_seeds: Number of seeds with both arms.
        first: The first arm.
        second: The second arm.
        metric: The metric.
        num_pretrainings: Number of pre-trainings of the arms that are pre-trained here.
        widths: Half widths of the intervals about seeds, pre-trainings and test images alone, which `low` and `high`
            combine.
        refusal: Why there is no verdict, after "cannot tell", and what to do; empty if there is one.
    """

    num_labels: int
    answer: str
    difference: float
    low: float | None
    high: float | None
    num_better: int
    num_seeds: int
    first: str = ARMS[0]
    second: str = ARMS[1]
    metric: DecidingMetric = ACCURACY
    num_pretrainings: int = 1
    widths: dict[str, float] = field(default_factory=dict)
    refusal: tuple[str, ...] = ()

    @property
    def pair(self) -> Pair:
        """The two arms."""
        return self.first, self.second

    @property
    def remedy(self) -> str:
        """What would make a verdict possible, or the interval smaller."""
        if self.refusal:
            return self.refusal[1]
        return REMEDIES[max(self.widths, key=lambda name: self.widths[name])] if self.widths else REMEDIES["seeds"]

    def __str__(self) -> str:
        unit = " percentage points of" if self.metric.is_share else " of"
        # As in the table: an error that is smaller has a negative difference.
        sign = self.metric.sign
        points = f"{self.metric.change(sign * self.difference)}{unit} {self.metric.title}"
        start = counted(self.num_labels)
        if self.refusal:
            return f"{start}: cannot tell {self.refusal[0]} ({points}). Use {self.remedy}."
        if self.low is None or self.high is None:
            return f"{start}: {self.answer} ({points})."
        low, high = sorted((sign * self.low, sign * self.high))
        interval = f"95 % CI {self.metric.change(low)} to {self.metric.change(high)}"
        seeds = f"better in {self.num_better} of {self.num_seeds} seeds"
        if self.num_pretrainings > 1:
            seeds += f", {self.num_pretrainings} pre-trainings"
        is_default = self.pair == ARMS
        harms, does_not = ("harms", "does not help") if is_default else ("is worse than", "does not beat")
        meaning = {
            "yes": f"yes, {_words(self.pair, 'helps', 'beats')}",
            "no": f"no, {_words(self.pair, *(2 * (harms if self.high < 0 else does_not,)))}",
            "cannot tell": f"cannot tell from these {'seeds' if self.remedy == REMEDIES['seeds'] else 'runs'} whether"
            f" {'it helps' if is_default else 'it is better'}",
        }[self.answer]
        return f"{start}: {meaning}, {points} ({interval}; {seeds})."


def counted(num_labels: int) -> str:
    """A number of labels in words, such as "1 label"."""
    return f"{num_labels:,} label{'s' * (num_labels != 1)}"


def _words(pair: Pair, alone: str, against: str) -> str:
    """A sentence about two arms: of the default pair it is about pre-training alone."""
    return f"pre-training {alone}" if pair == ARMS else f"{SUBJECTS[pair[0]]} {against} {SUBJECTS[pair[1]].rstrip(',')}"


def by_run(values: Mapping[Any, float]) -> dict[Run, float]:
    """Values of an arm by seed of the pre-training, None if there is one only, and seed of the run."""
    return {key if isinstance(key, tuple) else (None, key): value for key, value in values.items()}


def by_seed(values: Mapping[Any, float]) -> dict[int, float]:
    """Values of an arm by seed, means over its pre-trainings."""
    columns: dict[int, list[float]] = {}
    for (_, seed), value in by_run(values).items():
        columns.setdefault(seed, []).append(value)
    return {seed: statistics.fmean(column) for seed, column in columns.items()}


def paired_differences(first: Mapping[Key, float], second: Mapping[Key, float]) -> dict[Run, float]:
    """Differences of two arms, run by run: of the same seed, and of the same pre-training if both have several.

    Args:
        first: Values of the first arm.
        second: Values of the second arm.

    Returns:
        First minus second, by seed of the pre-training and seed of the run; seeds that a pre-training lacks are left
        out.
    """
    runs = by_run(first), by_run(second)
    groups = [{number for number, _ in part} for part in runs]
    shared = groups[0] & groups[1]
    # An arm with a single pre-training, or none, is compared with every one of the other.
    numbers: Iterable[int | None] = shared if shared else (groups[0] if len(groups[1]) == 1 else groups[1])
    single = [next(iter(group)) if len(group) == 1 else None for group in groups]

    def value(side: int, number: int | None, seed: int) -> float | None:
        return runs[side].get((number if number in groups[side] else single[side], seed))

    found: dict[Run, float] = {}
    for seed in sorted({seed for _, seed in runs[0]} & {seed for _, seed in runs[1]}):
        row = {(number, seed): (value(0, number, seed), value(1, number, seed)) for number in numbers}
        if all(one is not None and other is not None for one, other in row.values()):
            found |= {key: one - other for key, (one, other) in row.items()}  # type: ignore[operator]
    return found


def judge(
    num_labels: int,
    scores: Scores,
    num_images: int | None = None,
    pair: Pair = ARMS,
    metric: DecidingMetric = ACCURACY,
    resampled: Mapping[str, np.ndarray] | None = None,
    refusals: Sequence[tuple[str, str]] = (),
) -> Verdict:
    """Compare two arms seed by seed; all arms of a seed have the same labeled images.

    Three intervals of the mean difference are computed: Student's t interval over the seeds (each a mean over
    pre-trainings), that over the pre-trainings (each a mean over seeds) if there are several, and the bootstrap
    interval over the test images. Their half widths are combined as the root of the sum of their squares, each end by
    itself, so the interval is wider than each of them. What seeds and test images share is counted in both: the
    interval is conservative. The answer is yes if all of it is above 0, no if all of it is below the smallest gain that
    counts (`SMALLEST_GAIN`), and otherwise one cannot tell.

    Args:
        num_labels: Number of labeled images.
        scores: Value of the metric by arm and run: a seed, or the seeds of the pre-training and the run.
        num_images: Size of the test set. Accuracies on small test sets are coarse and agree by chance, so the spread of
            the differences is taken to be at least that of rounding to whole images, and the interval over the test
            images at least that of one image which either arm alone has right. The test set is not accounted for if
            None.
        pair: The two arms.
        metric: The metric.
        resampled: Means of each arm over its runs, on test images drawn again, see `resample_images`. If None,
            accuracies are taken to be of different test images, which is wider; other metrics get no verdict.
        refusals: Further reasons to refuse a verdict, and what to use instead.

    Returns:
        The verdict.

    Raises:
        ValueError: If no seed has both arms.

    Source: Zou and Donner, "Construction of confidence limits about effect measures" (2008), for the combination.
    """
    first, second = (scores[arm] for arm in pair)
    runs = {key: metric.sign * value for key, value in paired_differences(first, second).items()}
    if not runs:
        raise ValueError(
            f"No seed has both models: {sorted(by_seed(first))} are {pair[0]}, {sorted(by_seed(second))} {pair[1]}."
            " Run them again."
        )
    seeds = list(by_seed(runs).values())
    swapped = {(seed, number or 0): value for (number, seed), value in runs.items()}
    pretrainings = list(by_seed(swapped).values())
    mean, count = statistics.fmean(seeds), len(seeds)
    means = [statistics.fmean(by_seed(values).values()) for values in (first, second)]
    reasons = list(refusals)
    if count == 1:
        reasons.append(("from one seed", REMEDIES["seeds"]))
    if num_images is not None and num_images < MIN_TEST_IMAGES:
        reasons.append((f"from {num_images} test images", f"a test set of {MIN_TEST_IMAGES} images or more"))
    if num_images is not None and resampled is None and metric.name != "accuracy":
        why = f"how {metric.title} varies with the test images: runs of an older version did not keep their answers"
        reasons.append((why, "another --output_dir"))
    facts: dict[str, object] = {
        "num_better": sum(difference > 0 for difference in seeds),
        "num_seeds": count,
        **{"first": pair[0], "second": pair[1], "metric": metric, "num_pretrainings": len(pretrainings)},
    }
    if count == 1:
        return Verdict(num_labels, "cannot tell", mean, None, None, refusal=reasons[0], **facts)  # type: ignore[arg-type]

    # Two values, each rounded to a multiple of 1 / num_images.
    counts_images = metric.is_share and not metric.of_pixels
    rounding = 0.0 if num_images is None or not counts_images else (2 / 12) ** 0.5 / num_images
    widths = {"seeds": _half_width(seeds, rounding)}
    if len(pretrainings) > 1:
        widths["pre-trainings"] = _half_width(pretrainings, 0.0)
    ends = (0.0, 0.0)
    if num_images is not None:
        if resampled is not None:
            drawn = metric.sign * (resampled[pair[0]] - resampled[pair[1]])
            quantiles = np.quantile(drawn, (0.025, 0.975))
            ends = max(0.0, mean - float(quantiles[0])), max(0.0, float(quantiles[1]) - mean)
        elif metric.is_share:
            ends = (Z * math.sqrt(sum(value * (1 - value) for value in means) / num_images),) * 2
        # Of Bonett and Price (2012): the interval if the arms agree in all images.
        least = Z * 2**0.5 / (num_images + 2) if counts_images else 0.0
        ends = max(ends[0], least), max(ends[1], least)
        widths["test images"] = max(ends)
    squared = sum(width**2 for name, width in widths.items() if name != "test images")
    low, high = mean - math.sqrt(squared + ends[0] ** 2), mean + math.sqrt(squared + ends[1] ** 2)
    if metric.is_share:
        low, high = max(low, -1.0), min(high, 1.0)
    smallest = SMALLEST_GAIN if metric.is_share or metric.name == "r2" else SMALLEST_GAIN * abs(means[1])
    answer = "yes" if low > 0 else "no" if high < smallest else "cannot tell"
    if reasons:
        answer = "cannot tell"
    refusal = reasons[0] if reasons else ()
    return Verdict(num_labels, answer, mean, low, high, widths=widths, refusal=refusal, **facts)  # type: ignore[arg-type]


def _half_width(values: Sequence[float], least: float) -> float:
    """Half width of Student's t interval of a mean, 95 %; the spread is at least a given one."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * max(statistics.stdev(values), least) / len(values) ** 0.5


def all_pairs(arms: Sequence[str]) -> list[Pair]:
    """All pairs of arms, the dearer one first.

    Args:
        arms: The arms.

    Returns:
        The pairs.
    """
    ordered = [arm for arm in ALL_ARMS if arm in arms]
    return [(dearer, cheaper) for index, dearer in enumerate(ordered) for cheaper in ordered[:index]]


def conclusion(verdicts: Sequence[Verdict]) -> str:
    """Summarize all label budgets of a pair in one sentence.

    Args:
        verdicts: The verdicts of one pair.

    Returns:
        The sentence, and what to do if one cannot tell.
    """
    pair = verdicts[0].pair
    helps, does_not = _words(pair, "helps", "beats"), _words(pair, "does not help", "does not beat")
    where = " on these images" if pair == ARMS else ""
    answers = {verdict.answer for verdict in verdicts}
    if answers == {"yes"}:
        return f"Yes: {helps}{where} at every label budget."
    if answers == {"no"}:
        return f"No: {does_not}{where} at any label budget."
    if answers == {"cannot tell"}:
        return f"These runs cannot tell whether {helps}{where}. Use {_remedy(verdicts)}."
    parts = []
    for answer, alone, against in (
        ("yes", "helps", "beats"),
        ("no", "does not help", "does not beat"),
        ("cannot tell", "shows no clear difference", "shows no clear difference from"),
    ):
        budgets = [verdict.num_labels for verdict in verdicts if verdict.answer == answer]
        if budgets:
            other = "" if pair == ARMS else f" {SUBJECTS[pair[1]].rstrip(',')}"
            parts.append(f"{alone if pair == ARMS else against}{other} with {_listed(budgets)}")
    subject = "pre-training" if pair == ARMS else SUBJECTS[pair[0]]
    return f"It depends: {subject} {', '.join(parts)}."


def _listed(budgets: Sequence[int]) -> str:
    return " and ".join([*(f"{budget:,}" for budget in budgets[:-1]), counted(budgets[-1])])


def _remedy(verdicts: Sequence[Verdict]) -> str:
    return next((verdict for verdict in verdicts if verdict.refusal), verdicts[-1]).remedy


def survivors(arms: Sequence[str], verdicts: Sequence[Verdict]) -> list[str]:
    """Arms of which none is clearly the better choice, at one label budget.

    A dearer arm replaces the cheaper ones that it clearly beats, and is left out if it clearly does not beat one of
    those that are left.

    Args:
        arms: The arms.
        verdicts: Verdicts of `all_pairs`.

    Returns:
        The arms that are left, from the cheapest.
    """
    answers = {verdict.pair: verdict.answer for verdict in verdicts}
    left: list[str] = []
    for arm in (arm for arm in ALL_ARMS if arm in arms):
        if any(answers[arm, other] == "no" for other in left):
            continue
        left = [other for other in left if answers[arm, other] != "yes"] + [arm]
    return left


ADVICE = {
    "from scratch": "train from scratch",
    "public": "use the public model as it is",
    "pre-trained": "pre-train on these images",
    "continued": "pre-train the public model further on these images",
}


def recommend(arms: Sequence[str], verdicts: Sequence[Verdict]) -> str:
    """Recommend one arm, or say that one cannot tell.

    Args:
        arms: The arms.
        verdicts: Verdicts of `all_pairs` at every label budget.

    Returns:
        A sentence.
    """
    budgets = sorted({verdict.num_labels for verdict in verdicts})
    left = {
        budget: survivors(arms, [verdict for verdict in verdicts if verdict.num_labels == budget]) for budget in budgets
    }
    groups: dict[str, list[int]] = {}
    for budget, kept in left.items():
        if len(kept) == 1:
            text = ADVICE[kept[0]]
        else:
            choices = [ADVICE[arm] for arm in kept]
            text = f"one cannot tell whether to {', to '.join(choices[:-1])} or to {choices[-1]}"
        groups.setdefault(text, []).append(budget)
    if len(groups) == 1:
        text, kept = next(iter(groups)), left[budgets[-1]]
        if len(kept) == 1:
            return f"Recommendation: {text}."
        open_pairs = [verdict for verdict in verdicts if set(verdict.pair) <= set(kept)]
        return (
            f"No recommendation: {text}. Use {_remedy(open_pairs)} to know; until then {ADVICE[kept[0]]}, which costs"
            " least."
        )
    parts = [f"with {_listed(counts)} {text}" for text, counts in groups.items()]
    is_open = all(len(kept) > 1 for kept in left.values())
    return f"{'No recommendation' if is_open else 'Recommendation'}: {'; '.join(parts)}."


def table(scores: Mapping[int, Scores], metric: DecidingMetric = ACCURACY) -> str:
    """Markdown table of the mean and standard deviation over seeds of each arm at each label budget.

    Args:
        scores: Values by number of labeled images, arm and run.
        metric: The metric; shares are shown in percent.

    Returns:
        The table; with two arms it has their difference.
    """
    arms = list(scores[min(scores)])
    has_difference = set(arms) == set(ARMS)
    columns = [*(ARMS if has_difference else arms), *(["difference"] if has_difference else [])]
    lines = [f"| labels | {' | '.join(columns)} |", f"|{' ---: |' * (len(columns) + 1)}"]
    for budget in sorted(scores):
        values = [list(by_seed(scores[budget][arm]).values()) for arm in columns[: len(arms)]]
        figures = [
            metric.shown(statistics.fmean(column))
            + (f" ± {metric.shown(statistics.stdev(column))}" if len(column) > 1 else "")
            for column in values
        ]
        if has_difference:
            figures.append(metric.change(statistics.fmean(values[0]) - statistics.fmean(values[1])))
        lines.append(f"| {budget:,} | {' | '.join(figures)} |")
    return "\n".join(lines)
