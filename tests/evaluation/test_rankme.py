"""RankMe against computations by hand."""

import math

import pytest
import torch

from hf_simmim.evaluation.rankme import rankme


def test_rank_of_known_singular_values():
    """Singular values 3 and 1: shares 3/4 and 1/4, entropy 2 log 2 - 3/4 log 3."""
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    features = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]]) @ turn
    assert rankme(features) == pytest.approx(math.exp(2 * math.log(2) - 0.75 * math.log(3)), rel=1e-4)


def test_rank_is_one_of_equal_and_full_of_orthogonal_features():
    assert rankme(torch.arange(1.0, 6)[:, None] * torch.tensor([1.0, 2, -3, 4])) == pytest.approx(1, abs=1e-4)
    assert rankme(torch.eye(8)) == pytest.approx(8, rel=1e-4)


def test_rank_does_not_depend_on_scale_or_order():
    features = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    assert rankme(100 * features.flip(0)) == pytest.approx(rankme(features))
    assert 1 < rankme(features) < 7


def test_features_that_are_not_finite_or_zero_have_no_rank():
    assert math.isnan(rankme(torch.tensor([[1.0, float("inf")]])))
    assert math.isnan(rankme(torch.zeros(3, 2)))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        rankme(torch.zeros(3))
