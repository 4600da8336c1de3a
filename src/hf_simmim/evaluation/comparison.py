"""Does pre-training help? Accuracies of both arms at several label budgets, what they say, and their picture."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ARMS = ("pre-trained", "from scratch")


# A gain in accuracy below this is none worth the trouble.
SMALLEST_GAIN = 0.01

Scores = Mapping[str, Mapping[int, float]]  # arm to seed to accuracy


@dataclass(frozen=True)
class Verdict:
    """What the runs at one label budget say.

    Args:
        num_labels: Labeled images in all.
        answer: `"yes"`, `"no"` or `"cannot tell"`.
        difference: Mean accuracy of the pre-trained arm less that of the other.
        low: Lower end of its 95 % interval; None with a single seed.
        high: Upper end.
        num_better: Seeds of which the pre-trained arm is better.
        num_seeds: Seeds of which there are both arms.
    """

    num_labels: int
    answer: str
    difference: float
    low: float | None
    high: float | None
    num_better: int
    num_seeds: int

    def __str__(self) -> str:
        points = f"{100 * self.difference:+.1f} points of accuracy"
        seeds = f"better in {self.num_better} of {self.num_seeds} seeds"
        if self.low is None or self.high is None:
            return f"{self.num_labels:,} labels: cannot tell from one seed ({points}). Give more --seeds."
        text = f"{points} (95 % interval {100 * self.low:+.1f} to {100 * self.high:+.1f}; {seeds})"
        meaning = {
            "yes": "yes, pre-training helps",
            "no": "no, pre-training harms" if self.high < 0 else "no, pre-training does not help",
            "cannot tell": "cannot tell from these seeds whether it helps",
        }[self.answer]
        return f"{self.num_labels:,} labels: {meaning}, {text}."


def judge(num_labels: int, scores: Scores, num_images: int | None = None) -> Verdict:
    """Compare the arms, seed by seed: those of a seed have the same labeled images.

    The interval is Student's, of the mean of the differences. The answer is yes if all of it is above 0, and no if all
    of it is below `SMALLEST_GAIN`. It is about other seeds, not about other images than those that decide, nor about
    other pre-trainings.

    Args:
        num_labels: Labeled images in all.
        scores: Of each of `ARMS`, seed to accuracy in [0, 1].
        num_images: Images that decide. Few of them give coarse accuracies, which agree by chance: the spread of the
            differences is taken to be at least that of rounding to whole images.

    Returns:
        The verdict.

    Raises:
        ValueError: If no seed has both arms.
    """
    first, second = (scores[arm] for arm in ARMS)
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if not differences:
        raise ValueError(f"There is no seed with both arms among {sorted(first)} and {sorted(second)}. Run them again.")
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
    """All label budgets in a sentence."""
    answers = {verdict.answer for verdict in verdicts}
    if answers == {"yes"}:
        return "Yes: pre-training helps on these images, at every number of labels that was tried."
    if answers == {"no"}:
        return "No: pre-training does not help on these images, at any number of labels that was tried."
    if answers == {"cannot tell"}:
        return "These runs cannot tell whether pre-training helps on these images. More seeds would."
    parts = []
    for answer, meaning in (("yes", "helps"), ("no", "does not"), ("cannot tell", "shows no clear difference")):
        counts = [f"{verdict.num_labels:,}" for verdict in verdicts if verdict.answer == answer]
        if counts:
            parts.append(f"{meaning} with {' and '.join(counts)} labels")
    return f"It depends: pre-training {', '.join(parts)}."


def table(scores: Mapping[int, Scores]) -> str:
    """Mean and standard deviation of each arm at each budget, in Markdown, in percent."""
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
