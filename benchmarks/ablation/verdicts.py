"""Verdicts on the paper's claims, computed from the accuracies of the study and their spread.

The noise of a single run is estimated from all rows together: the residual of the accuracies after subtracting the mean
of each row and of each seed, since all rows share the labeled images of a seed. A difference of means has a 95 %
confidence interval by Student's t. The verdict on a claim that one choice is better is "agrees" if the interval is
above 0, "disagrees" if it is below, and "cannot tell" otherwise. On a claim that a choice is no worse it is "agrees" if
the interval is above -MARGIN, and that two are equal if it is within MARGIN of 0; it is "disagrees" if the interval
shows that the choice is worse, or different, and "cannot tell" otherwise.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from .grid import Row, rgb_row, target_name
from .results import Result

MARGIN = 0.01
# AvgDist that the paper finds best, as a share of the image's side: 10 to 20 px of 192.
MODERATE_DISTANCE = (10 / 192, 20 / 192)
Scores = Mapping[str, Mapping[int, float]]  # accuracy by row and seed


@dataclass(frozen=True)
class Noise:
    """Spread of single runs.

    Args:
        deviation: Standard deviation of a run around the mean of its row, without the common effect of its seed.
        freedom: Degrees of freedom of that estimate; 0 if there are too few runs for one.
    """

    deviation: float
    freedom: int


@dataclass(frozen=True)
class Verdict:
    """Verdict on a claim.

    Args:
        claim: The claim, in words.
        verdict: `"agrees"`, `"disagrees"`, `"cannot tell"`, or `"not run"` if rows are missing.
        difference: Accuracy of the first choice minus that of the second; None if rows are missing.
        half_width: Half the width of its 95 % confidence interval; None if there is no estimate of the noise.
        between: The compared rows, in words.
    """

    claim: str
    verdict: str
    difference: float | None
    half_width: float | None
    between: str


def scores_of(results: Iterable[Result], metric: str = "fine_tune") -> dict[str, dict[int, float]]:
    """Accuracies by row and seed."""
    scores: dict[str, dict[int, float]] = {}
    for result in results:
        scores.setdefault(result.row, {})[result.seed] = getattr(result, metric)
    return scores


def pooled_noise(scores: Scores) -> Noise:
    """Estimate the noise from the seeds that most rows have, and the rows that have all of those."""
    rows_of = Counter(seed for row in scores.values() for seed in row)
    # In an unfinished study few rows have the last seed: it counts where it adds to what is known.
    candidates = []
    for count in range(2, len(rows_of) + 1):
        seeds = [seed for seed, _ in rows_of.most_common(count)]
        whole = [[row[seed] for seed in seeds] for row in scores.values() if row.keys() >= set(seeds)]
        candidates.append(((len(whole) - 1) * (len(seeds) - 1), seeds, whole))
    freedom, seeds, whole = max(candidates, key=lambda candidate: candidate[0], default=(0, [], []))
    if freedom < 1:
        return Noise(0.0, 0)
    columns = [sum(values) / len(whole) for values in zip(*whole, strict=True)]
    mean = sum(columns) / len(seeds)
    squares = sum(
        (value - sum(row) / len(seeds) - column + mean) ** 2
        for row in whole
        for value, column in zip(row, columns, strict=True)
    )
    return Noise(math.sqrt(squares / freedom), freedom)


def student_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by Hill's expansion; exact for 1 and 2 degrees of freedom."""
    if freedom == 1:
        return 12.706
    if freedom == 2:
        return 4.303
    z = 1.959964
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def judge(claim: str, kind: str, first: Iterable[str], second: Iterable[str], scores: Scores, noise: Noise) -> Verdict:
    """Compare the means of two groups of rows.

    Args:
        claim: The claim of the paper, in words.
        kind: `"better"`, `"no worse"` or `"equal"`: the claim about the first group.
        first: Names of the rows of the first group.
        second: Names of the rows of the second group.
        scores: Accuracies by row and seed.
        noise: Noise of a single run.

    Returns:
        The verdict.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind not in ("better", "no worse", "equal"):
        raise ValueError(f"kind={kind!r} is unknown. Use 'better', 'no worse' or 'equal'.")
    groups = [[name for name in names if name in scores] for names in (first, second)]
    between = " against ".join(", ".join(group) if len(group) < 4 else f"{len(group)} rows" for group in groups)
    if not all(groups):
        return Verdict(claim, "not run", None, None, "")
    # Only seeds that all rows have, since seeds differ.
    seeds = set.intersection(*(set(scores[name]) for group in groups for name in group))
    if not seeds or noise.freedom == 0:
        return Verdict(claim, "cannot tell", None, None, f"{between}: too few runs to estimate the noise")
    means = [sum(scores[name][seed] for name in group for seed in seeds) / len(group) / len(seeds) for group in groups]
    difference = means[0] - means[1]
    variance = sum(noise.deviation**2 / (len(group) * len(seeds)) for group in groups)
    half_width = student_quantile(noise.freedom) * math.sqrt(variance)
    low, high = difference - half_width, difference + half_width
    if kind == "better":
        verdict = "agrees" if low > 0 else "disagrees" if high < 0 else "cannot tell"
    elif kind == "no worse":
        verdict = "agrees" if low > -MARGIN else "disagrees" if high < 0 else "cannot tell"
    elif low > -MARGIN and high < MARGIN:
        verdict = "agrees"
    else:
        verdict = "disagrees" if low > 0 or high < 0 else "cannot tell"
    return Verdict(claim, verdict, difference, half_width, between)


def verdicts(rows: Mapping[str, Row], results: list[Result], image_size: int) -> list[Verdict]:
    """Judge each claim of the paper.

    Args:
        rows: Selected rows by name.
        results: The results.
        image_size: Side of the images in pixels.

    Returns:
        One verdict or more for each claim.
    """
    scores = scores_of(results)
    noise = pooled_noise(scores)
    distance = {result.row: result.avg_dist for result in results if result.avg_dist is not None}

    def like(names: list[str]) -> list[str]:
        """Random masks with the baseline's mask patch, at the ratios of other masks."""
        ratios = {rows[name].mask_ratio for name in names}
        return [name for name in random if rows[name].mask_patch_size == size and rows[name].mask_ratio in ratios]

    def pick(**wanted: object) -> list[str]:
        """Pre-trained rows with these components."""
        return [
            name
            for name, row in rows.items()
            if row.is_pretrained and all(getattr(row, key) == value for key, value in wanted.items())
        ]

    base, baseline = ["baseline"], rows["baseline"]
    masks = [
        name
        for name in pick()
        if replace(
            rows[name],
            mask_patch_size=baseline.mask_patch_size,
            mask_ratio=baseline.mask_ratio,
            strategy=baseline.strategy,
        )
        == baseline
    ]
    size = baseline.mask_patch_size
    random = [name for name in masks if rows[name].strategy == "random"]
    small = [name for name in random if rows[name].mask_patch_size < size]
    large = [name for name in random if rows[name].mask_patch_size > size]
    ratios = [name for name in random if rows[name].mask_patch_size == size and name != "baseline"]
    shaped = [name for name in masks if rows[name].strategy != "random"]
    low, high = (share * image_size for share in MODERATE_DISTANCE)
    moderate = [name for name in masks if name in distance and low <= distance[name] <= high]
    extreme = [name for name in masks if name in distance and not low <= distance[name] <= high]
    # RGB with l1, which is the baseline or differs from it in the target alone, and rows with other targets or losses.
    pixels = rgb_row(baseline)
    rgb = [name for name in pick() if rows[name] == pixels]
    targets = [name for name in pick() if rgb_row(rows[name]) == pixels and name not in rgb]
    regression = [name for name in targets if rows[name].target == "rgb"]
    others = [name for name in targets if rows[name].target != "rgb"]
    strides = [row.prediction_stride for row in rows.values() if row.prediction_stride]
    coarse = [name for name in rows if rows[name].prediction_stride == max(strides, default=None)] if strides else []
    middling = [name for name in rows if strides and rows[name].prediction_stride in set(strides) - {max(strides)}]

    comparisons: list[tuple[str, str, list[str], list[str]]] = [
        ("Pre-training is better than training from scratch", "better", base, ["scratch"]),
        (f"Random masks of {size} px are better than smaller ones at the same ratios", "better", like(small), small),
        (f"Random masks of {size} px are no worse than larger ones at the same ratios", "no worse", like(large), large),
        *(
            (f"A mask ratio of 0.6 is no worse than {rows[name].mask_ratio:g}", "no worse", base, [name])
            for name in ratios
        ),
        (f"Random masks of {size} px are better than square and block ones", "better", like(shaped), shaped),
        (
            f"Masks of a moderate AvgDist ({low:.1f} to {high:.1f} px) are better than others",
            "better",
            moderate,
            extreme,
        ),
        *(
            (f"The linear head is no worse than {name}", "no worse", base, [name])
            for name in rows
            if rows[name].head != "linear"
        ),
        ("Coarser predictions, except the coarsest, are as good as predicting every pixel", "equal", middling, base),
        ("The coarsest prediction is worse", "better", base, coarse),
        *((f"l1 and {rows[name].loss} are equal", "equal", rgb, [name]) for name in regression),
        *(
            (f"Regression of RGB is no worse than {target_name(rows[name])}", "no worse", rgb, [name])
            for name in others
        ),
        ("The loss on masked pixels is better than that on all pixels", "better", base, pick(loss_region="all")),
    ]
    return [judge(claim, kind, first, second, scores, noise) for claim, kind, first, second in comparisons]
