"""The metric that decides a comparison: equal to what a run reports, and to scikit-learn with weighted images."""

import numpy as np
import pytest
from sklearn import metrics as reference
from transformers import EvalPrediction

from hf_simmim.evaluation.comparing.answers import ANSWERS_FILE, read_answers, write_answers
from hf_simmim.evaluation.comparing.metric import METRICS, choose_metric, resample_images, weighted_metric
from hf_simmim.evaluation.metrics import classification_metrics

GENERATOR = np.random.default_rng(0)
LABELS = {
    "single_label_classification": GENERATOR.integers(4, size=60),
    "multi_label_classification": (GENERATOR.uniform(size=(60, 4)) < 0.3).astype(np.float32),
    "regression": GENERATOR.normal(size=(60, 2)),
}
# Rounded, so that some images have the same score.
PREDICTIONS = {
    "single_label_classification": GENERATOR.normal(size=(60, 4)).round(1),
    "multi_label_classification": GENERATOR.normal(size=(60, 4)).round(1),
    "regression": LABELS["regression"] + GENERATOR.normal(size=(60, 2)),
}
# Pixels of four classes: the true ones, and those that are correct and predicted.
LABELS["segmentation"] = GENERATOR.integers(0, 9, (60, 4))
_CORRECT = GENERATOR.binomial(LABELS["segmentation"], 0.6)
PREDICTIONS["segmentation"] = np.stack([_CORRECT, _CORRECT + GENERATOR.integers(0, 5, (60, 4))], axis=1)
CASES = [(kind, name) for kind, metrics in METRICS.items() for name in metrics]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_metrics_are_those_of_a_run(kind, name):
    metric = METRICS[kind][name]
    if kind == "segmentation":
        (correct, predicted), true = PREDICTIONS[kind].sum(axis=0), LABELS[kind].sum(axis=0)
        expected = (correct / (true + predicted - correct)).mean()
        assert weighted_metric(metric, PREDICTIONS[kind], LABELS[kind]) == pytest.approx([expected])
        return
    given = EvalPrediction(predictions=PREDICTIONS[kind], label_ids=LABELS[kind])
    reported = classification_metrics(["a", "b", "c", "d"], kind)(given)
    assert weighted_metric(metric, PREDICTIONS[kind], LABELS[kind]) == pytest.approx([reported[metric.key]])


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_an_image_that_is_drawn_twice_is_there_twice(kind, name):
    metric, weights = METRICS[kind][name], np.random.default_rng(1).integers(3, size=(3, 60))
    found = weighted_metric(metric, PREDICTIONS[kind], LABELS[kind], weights)
    for row, value in zip(weights, found, strict=True):
        drawn = np.repeat(np.arange(60), row)
        expected = weighted_metric(metric, PREDICTIONS[kind][drawn], LABELS[kind][drawn])
        assert value == pytest.approx(expected[0])


def test_average_precision_is_that_of_scikit_learn():
    kind = "multi_label_classification"
    weights = np.random.default_rng(2).integers(3, size=60)
    found = weighted_metric(METRICS[kind]["average_precision"], PREDICTIONS[kind], LABELS[kind], weights[None])
    expected = reference.average_precision_score(LABELS[kind], PREDICTIONS[kind], sample_weight=weights)
    assert found == pytest.approx([expected])


def test_the_spread_over_images_is_that_of_a_proportion():
    labels = np.ones(400, dtype=int)
    right = (np.arange(400) < 300).astype(int)
    other = 1 - right
    drawn = resample_images(METRICS["single_label_classification"]["accuracy"], {"a": [right], "b": [other]}, labels)
    assert drawn["a"].mean() == pytest.approx(0.75, abs=0.002)
    assert drawn["a"].std() == pytest.approx((0.75 * 0.25 / 400) ** 0.5, rel=0.06)
    # Of the same drawn images.
    assert drawn["a"] + drawn["b"] == pytest.approx(np.ones(2000))


@pytest.mark.parametrize(
    ("kind", "labels", "name"),
    [
        ("single_label_classification", [0] * 30 + [1] * 10, "accuracy"),
        ("single_label_classification", [0] * 31 + [1] * 10, "balanced_accuracy"),
        ("multi_label_classification", [[0, 1]], "average_precision"),
        ("regression", [0.5, 0.7], "r2"),
    ],
)
def test_the_metric_fits_the_labels(kind, labels, name):
    metric, why = choose_metric(kind, None, labels)
    assert metric.name == name
    assert bool(why) == (name != "accuracy")
    assert choose_metric(kind, name, labels) == (metric, "")


def test_metrics_of_other_labels_are_refused():
    with pytest.raises(ValueError, match="metric='r2' is not one of single-label images. Use one of: accuracy"):
        choose_metric("single_label_classification", "r2", [0, 1])
    with pytest.raises(ValueError, match="up to 200 classes, and there are 300"):
        choose_metric("single_label_classification", "average_precision", [0, 1], 300)


def test_answers_are_kept(tmp_path):
    assert read_answers(tmp_path) is None
    write_answers(tmp_path, (np.ones((3, 2)), "another output"), np.array([0, 1, 1]))
    predictions, labels = read_answers(tmp_path)
    assert predictions.tolist() == [[1.0, 1.0]] * 3
    assert labels.tolist() == [0, 1, 1]
    # Of many classes only the most likely one.
    write_answers(tmp_path, np.eye(201)[[5, 7]], np.array([5, 6]))
    assert read_answers(tmp_path)[0].tolist() == [5, 7]
    (tmp_path / ANSWERS_FILE).write_bytes(b"PK damaged")
    assert read_answers(tmp_path) is None
