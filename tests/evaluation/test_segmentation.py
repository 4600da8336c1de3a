"""What becomes of a segmentation model's logits."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import EvalPrediction

from hf_simmim.evaluation.segmentation import (
    SegmentationMetrics,
    classes_of_annotations,
    forget_evaluation_keys,
    largest_logit,
)


@pytest.mark.parametrize("num_classes", [2, 16, 37])
def test_largest_logit_is_that_of_all_classes_at_once(num_classes):
    logits = torch.randn(num_classes, 7, 5, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(logits[None], size=(20, 31), mode="bilinear")[0].argmax(dim=0)
    assert torch.equal(largest_logit(logits, (20, 31)), expected)


def test_classes_leave_padding_out():
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[8, 4, 6, 3], [5, 8, 10, 16]])
    annotations = torch.zeros(2, 160, dtype=torch.int32)
    classes = classes_of_annotations((logits, None), (annotations, sizes))
    assert torch.equal(classes[0, :18].view(6, 3).long(), largest_logit(logits[0, :, :8, :4], (6, 3)))
    assert (classes[0, 18:] == -100).all()
    assert torch.equal(classes[1].view(10, 16).long(), largest_logit(logits[1, :, :5], (10, 16)))


def test_metrics_batch_by_batch():
    """Trainer's padding does not count, and a new evaluation starts afresh."""
    metrics = SegmentationMetrics(["a", "b", "c"], 255)
    for _ in range(2):
        first = EvalPrediction((torch.tensor([[0, 1, 1, -100]])), (torch.tensor([[0, 1, 255, -100]]), None))
        second = EvalPrediction((torch.tensor([[0, 0]])), (torch.tensor([[0, 1]]), None))
        assert metrics(first, compute_result=False) == {}
        assert metrics(second) == pytest.approx({"mean_iou": (2 / 3 + 1 / 2) / 2, "pixel_accuracy": 3 / 4})
        assert metrics.iou["b"] == pytest.approx(1 / 2)
        assert np.isnan(metrics.iou["c"])


def test_models_do_not_see_what_only_the_evaluation_uses():
    class Model(torch.nn.Module):
        def forward(self, pixel_values, labels=None):
            return labels

    model = Model()
    forget_evaluation_keys(model)
    assert model(pixel_values=0, labels=1, annotations=2, sizes=3) == 1
