"""Features on a map."""

import numpy as np
import pytest
import torch

from hf_simmim.evaluation.features import project


@pytest.mark.parametrize("method", ["tsne", "pca"])
def test_the_map_keeps_groups_apart(method):
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(3, 8, generator=generator) * 20
    features = centers.repeat_interleave(10, dim=0) + torch.randn(30, 8, generator=generator)
    points = project(features, method)
    assert points.min() == 0
    assert points.max() == 1
    assert np.array_equal(points, project(features, method))
    distances = np.linalg.norm(points[:, None] - points, axis=2) + np.eye(30) * 9
    assert (distances.argmin(axis=1) // 10 == np.arange(30) // 10).all()


def test_features_without_spread_make_no_map():
    with pytest.raises(ValueError, match="equal"):
        project(torch.ones(6, 8))
