"""What the accuracies of two arms say, in numbers, words and a picture."""

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ttest_rel

from hf_simmim.evaluation.comparison import ARMS, conclusion, judge, table
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


def test_table_and_picture(tmp_path):
    arms = {100: CLEAR, 500: NO_GAIN}
    assert "| 100 | 70.4 ± 1.1 | 62.0 ± 1.6 | +8.4 |" in table(arms)
    for name, some in (("two", arms), ("one", {100: scores([0.7], [0.6])})):
        plot_comparison(some, tmp_path / f"{name}.png", "title")
        assert Image.open(tmp_path / f"{name}.png").size[0] > 500
