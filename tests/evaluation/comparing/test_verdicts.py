"""What the accuracies of two arms say, in numbers, words and a picture."""

import math
from itertools import product

import numpy as np
import pytest
from PIL import Image
from scipy.stats import t, ttest_rel

from hf_simmim.evaluation.comparing import metric as deciding_metric
from hf_simmim.evaluation.comparing.metric import ACCURACY, METRICS, resample_images
from hf_simmim.evaluation.comparing.verdicts import (
    ALL_ARMS,
    ARMS,
    Verdict,
    all_pairs,
    conclusion,
    judge,
    paired_differences,
    recommend,
    survivors,
    table,
)
from hf_simmim.visualization.plots import plot_comparison


def scores(first: list[float], second: list[float]) -> dict[str, dict[int, float]]:
    return {"pre-trained": dict(enumerate(first)), "from scratch": dict(enumerate(second))}


CLEAR = scores([0.70, 0.72, 0.69, 0.71, 0.70], [0.62, 0.63, 0.60, 0.61, 0.64])
WORSE = scores([0.60, 0.61, 0.62], [0.70, 0.72, 0.71])
NO_GAIN = scores([0.700, 0.711, 0.722, 0.733], [0.701, 0.710, 0.723, 0.732])
UNCLEAR = scores([0.70, 0.60, 0.75], [0.65, 0.66, 0.64])


@pytest.mark.parametrize(
    ("arms", "answer", "words"),
    [
        (CLEAR, "yes", "yes, pre-training helps"),
        (WORSE, "no", "no, pre-training harms"),
        (NO_GAIN, "no", "no, pre-training does not help"),
        (UNCLEAR, "cannot tell", "cannot tell from these seeds"),
        (scores([0.9], [0.5]), "cannot tell", "from one seed"),
    ],
)
def test_verdicts(arms, answer, words):
    verdict = judge(100, arms)
    assert verdict.answer == answer
    assert words in str(verdict)
    assert str(verdict).startswith("100 labels")


def test_interval_is_that_of_a_paired_test():
    verdict = judge(100, CLEAR)
    paired = ttest_rel(*(list(arm.values()) for arm in CLEAR.values())).confidence_interval()
    assert (verdict.low, verdict.high) == pytest.approx((paired.low, paired.high))
    assert (verdict.num_better, verdict.num_seeds) == (5, 5)


def test_coarse_accuracies_agree_by_chance():
    same = scores([0.55, 0.65], [0.5, 0.6])
    assert judge(10, same, num_images=20).answer == "cannot tell"
    assert judge(10, same, num_images=100_000).answer == "yes"
    # The same images are right, which only their answers can tell.
    agreed, kept = scores([0.5, 0.6, 0.7], [0.5, 0.6, 0.7]), {arm: np.full(100, 0.6) for arm in ARMS}
    assert judge(10, agreed, 1000, resampled=kept).answer == "no"
    assert judge(10, agreed, 1000).answer == "cannot tell"


def test_only_seeds_with_both_arms_count():
    arms = {"pre-trained": {0: 0.7, 1: 0.8, 2: 0.1}, "from scratch": {0: 0.6, 1: 0.7, 3: 0.9}}
    verdict = judge(100, arms)
    assert verdict.num_seeds == 2
    assert verdict.difference == pytest.approx(0.1)
    with pytest.raises(ValueError, match="No seed has both models"):
        judge(100, {"pre-trained": {0: 0.7}, "from scratch": {1: 0.6}})


def test_conclusions():
    yes, no, unclear = judge(100, CLEAR), judge(500, WORSE), judge(20, UNCLEAR)
    assert conclusion([yes]).startswith("Yes:")
    assert conclusion([no, no]).startswith("No:")
    assert "cannot tell" in conclusion([unclear])
    mixed = conclusion([unclear, yes, no])
    assert mixed.startswith("It depends")
    assert "helps with 100 labels" in mixed
    assert "does not help with 500 labels" in mixed
    one = judge(1, CLEAR)
    assert str(one).startswith("1 label: yes")
    assert "helps with 1 label," in conclusion([one, no])
    assert "helps with 1 and 100 labels," in conclusion([one, yes, no])


def test_parts_of_the_interval_are_combined():
    """Half widths by hand: t over seeds, t over pre-trainings, quantiles over test images."""
    first = {
        (number, seed): 0.7 + 0.02 * number + 0.01 * seed * (-1) ** seed for number in range(3) for seed in range(4)
    }
    second = {seed: 0.6 + 0.01 * seed for seed in range(4)}
    drawn = np.linspace(0.0, 0.2, 2001)
    resampled = {ARMS[0]: 0.6 + drawn, ARMS[1]: np.full(2001, 0.6)}
    verdict = judge(100, {ARMS[0]: first, ARMS[1]: second}, 10_000, resampled=resampled)
    differences = np.array([[first[number, seed] - second[seed] for seed in range(4)] for number in range(3)])
    mean = differences.mean()
    by_hand = {
        "seeds": t.ppf(0.975, 3) * differences.mean(axis=0).std(ddof=1) / 4**0.5,
        "pre-trainings": t.ppf(0.975, 2) * differences.mean(axis=1).std(ddof=1) / 3**0.5,
        "test images": max(mean - 0.005, 0.195 - mean),
    }
    assert verdict.widths == pytest.approx(by_hand)
    squared = by_hand["seeds"] ** 2 + by_hand["pre-trainings"] ** 2
    assert verdict.low == pytest.approx(mean - math.sqrt(squared + (mean - 0.005) ** 2))
    assert verdict.high == pytest.approx(mean + math.sqrt(squared + (0.195 - mean) ** 2))
    assert (verdict.num_seeds, verdict.num_pretrainings) == (4, 3)
    assert "3 pre-trainings" in str(verdict)
    assert verdict.remedy == "more test images"


def test_pre_trainings_are_paired_with_each_other():
    first = {(number, seed): 0.1 * number + 0.01 * seed for number, seed in product((5, 6), (0, 1))}
    assert paired_differences(first, {key: value - 0.2 for key, value in first.items()}) == pytest.approx(
        dict.fromkeys(first, 0.2)
    )
    assert paired_differences({0: 0.5, 1: 0.6}, first) == pytest.approx(
        {(number, seed): 0.5 + 0.1 * seed - first[number, seed] for number, seed in first}
    )
    # A seed that one of the pre-trainings lacks.
    del first[6, 1]
    assert set(paired_differences({0: 0.5, 1: 0.6}, first)) == {(5, 0), (6, 0)}


@pytest.mark.parametrize("num_pretrainings", [1, 4])
def test_interval_covers_the_truth(monkeypatch, num_pretrainings):
    """Seeds, pre-trainings and images that each favor one arm; what seeds alone say is wrong far too often."""
    monkeypatch.setattr(deciding_metric, "NUM_RESAMPLES", 300)
    generator = np.random.default_rng(0)
    num_images, num_seeds, truth, number = 150, 4, 0.05, 200
    labels, is_covered, by_seeds = np.ones(num_images, dtype=int), 0, 0
    for _ in range(number):
        image, favor = generator.uniform(-0.2, 0.2, num_images), generator.choice([-0.25, 0.25], num_images)
        of_seed, of_pretraining = generator.normal(0, 0.03, num_seeds), generator.normal(0, 0.03, num_pretrainings)
        answers, values = {arm: [] for arm in ARMS}, {arm: {} for arm in ARMS}
        for arm in ARMS:
            # Runs of an arm mostly err in the same images.
            drawn = generator.uniform(size=num_images)
            for one, seed in product(range(num_pretrainings if arm == ARMS[0] else 1), range(num_seeds)):
                chance = 0.5 + image
                if arm == ARMS[0]:
                    known = of_pretraining[one] if num_pretrainings > 1 else 0.0
                    chance = chance + truth + favor + of_seed[seed] + known
                right = (drawn < chance).astype(int)
                answers[arm].append(right)
                values[arm][one, seed] = right.mean()
        if num_pretrainings == 1:
            values = {arm: {seed: value for (_, seed), value in runs.items()} for arm, runs in values.items()}
        else:
            values[ARMS[1]] = {seed: value for (_, seed), value in values[ARMS[1]].items()}
        verdict = judge(10, values, num_images, resampled=resample_images(ACCURACY, answers, labels))
        is_covered += verdict.low < truth < verdict.high
        by_seeds += abs(verdict.difference - truth) < verdict.widths["seeds"]
    assert 0.94 < is_covered / number <= 1
    assert by_seeds / number < 0.8


def test_too_little_gives_no_verdict():
    kept = {arm: np.full(100, mean) for arm, mean in zip(ARMS, (0.7, 0.6), strict=True)}
    assert judge(10, CLEAR, 1000, resampled=kept).answer == "yes"
    small = judge(10, CLEAR, 20, resampled=kept)
    assert small.answer == "cannot tell"
    assert "cannot tell from 20 test images" in str(small)
    missing = judge(10, CLEAR, 1000, resampled=kept, refusals=[("since there is no cat", "a test set with cats")])
    assert missing.answer == "cannot tell"
    assert "since there is no cat" in str(missing)
    assert str(missing).endswith("Use a test set with cats.")
    assert "a test set with cats" in conclusion([missing])
    f1 = METRICS["single_label_classification"]["macro_f1"]
    assert "another --output_dir" in str(judge(10, CLEAR, 1000, metric=f1))


def test_errors_are_better_if_they_are_smaller():
    errors = METRICS["regression"]["mae"]
    kept = {ARMS[0]: np.full(100, 2.0), ARMS[1]: np.full(100, 3.0)}
    verdict = judge(10, scores([2.0, 2.1, 1.9], [3.0, 3.1, 2.8]), 100, metric=errors, resampled=kept)
    assert verdict.answer == "yes"
    assert verdict.difference == pytest.approx(2.9 / 3)
    assert "yes, pre-training helps, -0.967 of mean absolute error (95 % CI -" in str(verdict)
    assert "-0.967" in table({10: scores([2.0, 2.1, 1.9], [3.0, 3.1, 2.8])}, errors)
    # A gain of less than a hundredth of the error does not count.
    kept = {arm: np.full(100, 3.0) for arm in ARMS}
    same = scores([3.001, 3.0, 2.999], [3.0, 3.001, 2.999])
    assert judge(10, same, 100, metric=errors, resampled=kept).answer == "no"


def verdicts_of(answers: dict[tuple[str, str], str], num_labels: int = 100) -> list[Verdict]:
    return [Verdict(num_labels, answers[pair], 0.0, -0.1, 0.1, 1, 2, *pair) for pair in all_pairs(ALL_ARMS)]


def test_recommendations():
    """A dearer arm must beat the cheaper ones; where that is open, there is no recommendation."""
    scratch, public, ours, more = ALL_ARMS
    pairs = all_pairs(ALL_ARMS)
    assert len(pairs) == 6
    assert (more, scratch) in pairs
    assert (public, ours) not in pairs
    no = verdicts_of(dict.fromkeys(pairs, "no"))
    assert survivors(ALL_ARMS, no) == [scratch]
    assert recommend(ALL_ARMS, no) == "Recommendation: train from scratch."
    free = dict.fromkeys(pairs, "no") | {(public, scratch): "yes", (more, scratch): "yes", (ours, scratch): "yes"}
    assert recommend(ALL_ARMS, verdicts_of(free)) == "Recommendation: use the public model as it is."
    best = free | {(more, public): "yes"}
    assert recommend(ALL_ARMS, verdicts_of(best)).endswith("pre-train the public model further on these images.")
    unclear = free | {(more, public): "cannot tell"}
    text = recommend(ALL_ARMS, verdicts_of(unclear))
    assert text.startswith(
        "No recommendation: one cannot tell whether to use the public model as it is or to pre-train"
    )
    assert "until then use the public model as it is" in text
    mixed = recommend(ALL_ARMS, [*verdicts_of(free, 10), *verdicts_of(best, 500)])
    assert mixed == (
        "Recommendation: with 10 labels use the public model as it is; with 500 labels pre-train the public model"
        " further on these images."
    )


def test_table_and_picture(tmp_path):
    arms = {100: CLEAR, 500: NO_GAIN}
    assert "| 100 | 70.4 ± 1.1 | 62.0 ± 1.6 | +8.4 |" in table(arms)
    all_arms = {budget: {arm: {(0, 0): 0.7, (1, 0): 0.8} for arm in ALL_ARMS} for budget in (10, 100, 101)}
    assert "| labels | from scratch | public | pre-trained | continued |" in table(all_arms)
    for name, some in (("two", arms), ("one", {100: scores([0.7], [0.6])}), ("four", all_arms)):
        plot_comparison(some, tmp_path / f"{name}.png", "title")
        assert Image.open(tmp_path / f"{name}.png").size[0] > 500
