"""Drift of features against naive loops."""

import pytest
import torch
import torch.nn.functional as F

from hf_simmim.evaluation.drift import nearest_neighbors, neighbor_agreement


def features(seed=0, num_images=40):
    return 5 + torch.randn(num_images, 8, generator=torch.Generator().manual_seed(seed))


def test_neighbors_equal_a_naive_loop():
    centered = features() - features().mean(0)
    for image, found in enumerate(nearest_neighbors(features(), 3).tolist()):
        similarity = F.cosine_similarity(centered[image : image + 1], centered)
        order = [other for other in similarity.argsort(descending=True).tolist() if other != image]
        assert found == order[:3]
    assert nearest_neighbors(features(), 100).shape == (40, 39)


def test_turned_and_scaled_features_have_not_drifted():
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1))).Q
    first = nearest_neighbors(features(), 5)
    assert neighbor_agreement(first, nearest_neighbors(3 * features() @ turn + 7, 5)) == 1
    # Of other features, as many are common as by chance.
    others = [neighbor_agreement(first, nearest_neighbors(features(seed), 5)) for seed in range(1, 21)]
    assert sum(others) / len(others) == pytest.approx(5 / 39, abs=0.03)


def test_agreement_counts_common_neighbors_in_any_order():
    first, second = torch.tensor([[1, 2], [0, 2], [0, 1]]), torch.tensor([[2, 1], [0, 3], [3, 4]])
    assert neighbor_agreement(first, second) == pytest.approx((1 + 0.5 + 0) / 3)


def test_what_has_no_neighbors_is_refused():
    with pytest.raises(ValueError, match="N > 1"):
        nearest_neighbors(torch.ones(1, 3), 2)
    with pytest.raises(ValueError, match="Give the same images"):
        neighbor_agreement(torch.zeros(2, 1), torch.zeros(3, 1))
