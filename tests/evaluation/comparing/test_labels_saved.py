"""Labels that the better model saves, read from learning curves."""

import math

import pytest

from hf_simmim.evaluation.comparing.labels_saved import labels_needed, labels_saved
from hf_simmim.evaluation.comparing.metric import ACCURACY
from hf_simmim.evaluation.comparing.verdicts import ARMS, judge


@pytest.mark.parametrize(
    ("values", "needed"),
    [
        ([0.5, 0.7, 0.9], (math.exp((math.log(10) + math.log(100)) / 2), "")),
        ([0.6, 0.7, 0.9], (10, "at most")),
        ([0.4, 0.5, 0.6], (1000, "")),
        ([0.4, 0.5, 0.55], (1000, "more than")),
        ([0.5, 0.7, 0.55], (math.nan, "several")),
    ],
)
def test_labels_are_interpolated_over_their_logarithm(values, needed):
    number, bound = labels_needed([10, 100, 1000], values, 0.6)
    assert number == pytest.approx(needed[0], nan_ok=True)
    assert bound == needed[1]


def saved(first: dict[int, float], second: dict[int, float]):
    """Of means by number of labels, with seeds that hardly differ."""
    scores = {
        budget: {
            arm: {seed: values[budget] + 0.001 * (seed - 1) for seed in range(3)}
            for arm, values in zip(ARMS, (first, second), strict=True)
        }
        for budget in first
    }
    return labels_saved(scores, [judge(budget, scores[budget]) for budget in scores], ACCURACY)


def test_labels_that_are_saved():
    between = saved({10: 0.5, 100: 0.7, 1000: 0.8}, {10: 0.3, 100: 0.4, 1000: 0.6})
    assert between.saved == pytest.approx(1000 - 1000**0.5)
    assert between.low <= between.saved <= between.high
    assert str(between).startswith("Labels saved: pre-training on these images saves about 970 of 1,000 labels")
    above = saved({10: 0.65, 100: 0.7}, {10: 0.3, 100: 0.6})
    assert "at least 90 of 100 labels" in str(above)
    # The other one may be the better one.
    other = saved({10: 0.3, 100: 0.6}, {10: 0.5, 100: 0.7})
    assert other.better == "from scratch"
    assert "training from scratch saves about 68 of 100 labels" in str(other)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({10: 0.5}, {10: 0.3}, "add a smaller budget"),
        ({10: 0.5, 100: 0.6}, {10: 0.5, 100: 0.6}, "neither is clearly better"),
        ({10: 0.3, 100: 0.8}, {10: 0.5, 100: 0.6}, "depends on the number of labels"),
        ({10: 0.7, 50: 0.5, 100: 0.8}, {10: 0.3, 50: 0.3, 100: 0.6}, "goes up and down"),
    ],
)
def test_where_one_cannot_tell(first, second, reason):
    result = saved(first, second)
    assert result.saved is None
    assert reason in str(result)
