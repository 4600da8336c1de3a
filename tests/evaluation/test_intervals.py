"""Intervals against tables and other computations."""

import numpy as np
import pytest
from scipy.stats import binomtest

from hf_simmim.evaluation.intervals import judge_gain, majority_share, paired_bootstrap, wilson_interval


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (7, 10), (71, 100), (300, 300), (1, 1)])
def test_wilsons_interval_equals_scipys(correct, total):
    expected = binomtest(correct, total).proportion_ci(method="wilson")
    assert wilson_interval(correct, total) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_paired_bootstrap_equals_drawing_images_one_by_one():
    rng = np.random.default_rng(0)
    first, second = rng.random(200) < 0.8, rng.random(200) < 0.6
    difference, low, high = paired_bootstrap(first, second)
    assert difference == pytest.approx(first.mean() - second.mean())
    drawn = rng.integers(0, 200, (10_000, 200))
    expected = np.quantile(first[drawn].mean(axis=1) - second[drawn].mean(axis=1), (0.025, 0.975))
    assert (low, high) == pytest.approx(tuple(expected), abs=0.011)
    assert paired_bootstrap(first, second) == (difference, low, high)


def test_pairs_make_the_interval_narrow():
    """Two models that differ in one image only differ in that one, whatever the others are."""
    first = np.arange(100) % 2 == 0
    second = first.copy()
    second[0] = False
    _, low, high = paired_bootstrap(first, second)
    assert (low, high) == pytest.approx((0, 0.03), abs=0.011)


def test_majority():
    assert majority_share([2, 0, 2, 1]) == (2, 0.5)
    with pytest.raises(ValueError, match="no labels"):
        majority_share([])


def test_verdicts():
    good, bad = np.arange(300) % 10 > 0, np.arange(300) % 10 > 4
    yes, no, unclear = judge_gain(good, bad), judge_gain(bad, good), judge_gain(good, good)
    assert str(yes).startswith("Yes: these features beat an untrained encoder by 40.0 points (95 % interval 3")
    assert str(no).startswith("No: these features are 40.0 points worse than those of an untrained encoder (95 %")
    assert str(unclear).startswith("Cannot tell whether these features beat an untrained encoder: +0.0 points")


@pytest.mark.parametrize(("first", "second"), [([1, 0], [1]), ([], []), ([[1]], [[1]])])
def test_answers_must_match(first, second):
    with pytest.raises(ValueError, match="Answers have shapes"):
        paired_bootstrap(first, second)


def test_more_correct_images_than_images_are_refused():
    with pytest.raises(ValueError, match="5 of 4"):
        wilson_interval(5, 4)
