"""Comparison of pre-training with training from scratch: accuracies at several label budgets and their verdicts."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ARMS = ("pre-trained", "from scratch")
# Smaller gains in accuracy do not count.
SMALLEST_GAIN = 0.01

Scores = Mapping[str, Mapping[int, float]]  # arm to seed to accuracy


@dataclass(frozen=True)
class Verdict:
    """Result of the comparison at one label budget.

    Args:
        num_labels: Number of labeled images.
        answer: `"yes"`, `"no"` or `"cannot tell"`.
        difference: Mean accuracy of the pre-trained arm minus that of the other.
        low: Lower end of its 95 % confidence interval; None with a single seed.
        high: Upper end.
        num_better: Number of seeds with which the pre-trained arm is better.
        num_seeds: Number of seeds with both arms.
    """

    num_labels: int
    answer: str
    difference: float
    low: float | None
    high: float | None
    num_better: int
    num_seeds: int

    def __str__(self) -> str:
        points = f"{100 * self.difference:+.1f} percentage points of accuracy"
        seeds = f"better in {self.num_better} of {self.num_seeds} seeds"
        if self.low is None or self.high is None:
            return f"{self.num_labels:,} labels: cannot tell from one seed ({points}). Use more --seeds."
        text = f"{points} (95 % CI {100 * self.low:+.1f} to {100 * self.high:+.1f}; {seeds})"
        meaning = {
            "yes": "yes, pre-training helps",
            "no": "no, pre-training harms" if self.high < 0 else "no, pre-training does not help",
            "cannot tell": "cannot tell from these seeds whether it helps",
        }[self.answer]
        return f"{self.num_labels:,} labels: {meaning}, {text}."


def judge(num_labels: int, scores: Scores, num_images: int | None = None) -> Verdict:
    """Compare the arms seed by seed; both arms of a seed have the same labeled images.

    The interval is Student's t interval of the mean difference. The answer is yes if all of it is above 0, and no if
    all of it is below `SMALLEST_GAIN`. It accounts for other seeds, but not for other test images or other pre-training
    runs.

    Args:
        num_labels: Number of labeled images.
        scores: Accuracy in [0, 1] by arm and seed.
        num_images: Size of the test set. Accuracies on small test sets are coarse and agree by chance, so the spread of
            the differences is taken to be at least that of rounding to whole images.

    Returns:
        The verdict.

    Raises:
        ValueError: If no seed has both arms.
    """
    first, second = (scores[arm] for arm in ARMS)
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if not differences:
        raise ValueError(
            f"No seed has both models: {sorted(first)} are {ARMS[0]}, {sorted(second)} {ARMS[1]}. Run them again."
        )
    mean, count = statistics.fmean(differences), len(differences)
    num_better = sum(difference > 0 for difference in differences)
    if count == 1:
        return Verdict(num_labels, "cannot tell", mean, None, None, num_better, count)
    from scipy.stats import t

    # Two accuracies, each rounded to a multiple of 1 / num_images.
    rounding = 0.0 if num_images is None else (2 / 12) ** 0.5 / num_images
    half_width = float(t.ppf(0.975, count - 1)) * max(statistics.stdev(differences), rounding) / count**0.5
    low, high = mean - half_width, mean + half_width
    answer = "yes" if low > 0 else "no" if high < SMALLEST_GAIN else "cannot tell"
    return Verdict(num_labels, answer, mean, low, high, num_better, count)


def conclusion(verdicts: Sequence[Verdict]) -> str:
    """Summarize all label budgets in one sentence."""
    answers = {verdict.answer for verdict in verdicts}
    if answers == {"yes"}:
        return "Yes: pre-training helps on these images at every label budget."
    if answers == {"no"}:
        return "No: pre-training does not help on these images at any label budget."
    if answers == {"cannot tell"}:
        return "These runs cannot tell whether pre-training helps on these images. Use more seeds."
    parts = []
    for answer, meaning in (("yes", "helps"), ("no", "does not help"), ("cannot tell", "shows no clear difference")):
        counts = [f"{verdict.num_labels:,}" for verdict in verdicts if verdict.answer == answer]
        if counts:
            parts.append(f"{meaning} with {' and '.join(counts)} labels")
    return f"It depends: pre-training {', '.join(parts)}."


def table(scores: Mapping[int, Scores]) -> str:
    """Markdown table of the mean and standard deviation of each arm at each label budget, in percent."""
    lines = ["| labels | pre-trained | from scratch | difference |", "| ---: | ---: | ---: | ---: |"]
    for budget in sorted(scores):
        columns = [[100 * value for value in scores[budget][arm].values()] for arm in ARMS]
        figures = [
            f"{statistics.fmean(column):.1f}" + (f" ± {statistics.stdev(column):.1f}" if len(column) > 1 else "")
            for column in columns
        ]
        difference = statistics.fmean(columns[0]) - statistics.fmean(columns[1])
        lines.append(f"| {budget:,} | {figures[0]} | {figures[1]} | {difference:+.1f} |")
    return "\n".join(lines)
