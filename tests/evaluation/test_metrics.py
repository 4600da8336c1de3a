"""Metrics against scikit-learn's and naive counts, in batches and in several processes."""

import multiprocessing
import time

import evaluate
import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from transformers import EvalPrediction

from hf_simmim.evaluation.metrics import (
    MAX_RANKED_CLASSES,
    ConfusionMatrix,
    MeanIoU,
    MultiLabel,
    PerClassAccuracy,
    PerClassScores,
    Regression,
    TopKAccuracy,
    classification_metrics,
    missed_classes,
    missed_in_matrix,
)

NAMES = [f"class {index}" for index in range(8)]


@pytest.fixture
def logits_and_labels():
    """Logits that are often right, of eight classes of which the last is never true."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 300)
    logits = rng.normal(size=(300, 8)).astype(np.float32)
    logits[np.arange(300), labels] += 1.5
    return logits, labels


def test_top_k_equals_scikit_learns(logits_and_labels):
    logits, labels = logits_and_labels
    figures = TopKAccuracy(k=3).compute(predictions=logits, references=labels)
    assert figures["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, logits.argmax(1)))
    expected = sklearn_metrics.top_k_accuracy_score(labels, logits, k=3, labels=range(8))
    assert figures["top3_accuracy"] == pytest.approx(expected)
    assert figures["accuracy"] < figures["top3_accuracy"] < 1


def test_top_k_of_fewer_classes_and_of_equal_logits():
    figures = TopKAccuracy(k=5).compute(predictions=np.zeros((4, 3)), references=[0, 1, 2, 0])
    # As argmax says, the first of equal ones is the guess: a constant model is not always right.
    assert figures == {"accuracy": 0.5, "top5_accuracy": 1.0}


def test_per_class_accuracy_equals_scikit_learns(logits_and_labels):
    logits, labels = logits_and_labels
    figures = PerClassAccuracy(NAMES).compute(predictions=logits, references=labels)
    predicted = logits.argmax(1)
    precision, recall, _, support = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(8), zero_division=np.nan
    )
    assert list(figures["recall"]) == NAMES
    np.testing.assert_allclose(list(figures["recall"].values()), recall)
    np.testing.assert_allclose(list(figures["precision"].values()), precision)
    assert list(figures["support"].values()) == support.tolist()
    assert figures["accuracy"] == pytest.approx((predicted == labels).mean())
    assert figures["balanced_accuracy"] == pytest.approx(np.nanmean(recall))


def test_scores_of_classes_equal_scikit_learns(logits_and_labels):
    """The last class has no examples: what is undefined is NaN, and no part of the means."""
    logits, labels = logits_and_labels
    figures = PerClassScores(NAMES).compute(predictions=logits, references=labels)
    predicted, one_hot = logits.argmax(1), np.eye(8)[labels][:, :7]
    odds = np.exp(logits.astype(float))
    probabilities = (odds / odds.sum(axis=1, keepdims=True))[:, :7]
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(7), zero_division=np.nan
    )
    expected = {
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "average_precision": sklearn_metrics.average_precision_score(one_hot, probabilities, average=None),
        "auroc": sklearn_metrics.roc_auc_score(one_hot, probabilities, average=None),
    }
    rows = list(figures["per_class"].values())
    for name, values in expected.items():
        np.testing.assert_allclose([row[name] for row in rows[:7]], values)
        assert figures[f"macro_{name}"] == pytest.approx(np.mean(values))
    assert [row["support"] for row in rows] == [*support, 0]
    assert all(np.isnan(rows[7][name]) for name in ("recall", "f1", "average_precision", "auroc"))
    metric = PerClassScores(NAMES)
    metric.add_batch(predictions=logits[:100], references=labels[:100])
    np.testing.assert_equal(metric.compute(predictions=logits[100:], references=labels[100:]), figures)


def test_scores_where_little_is_defined():
    """Only one of two classes occurs, or is ever predicted."""
    one = PerClassScores(["a", "b"]).compute(predictions=[[2.0, 1.0], [1.0, 2.0]], references=[0, 0])
    assert one["per_class"]["a"] == pytest.approx(
        {"precision": 1, "recall": 0.5, "f1": 2 / 3, "average_precision": 1, "auroc": np.nan, "support": 2}, nan_ok=True
    )
    assert np.isnan(one["macro_auroc"])
    assert one["macro_f1"] == pytest.approx(2 / 3)
    never = PerClassScores(["a", "b"]).compute(predictions=[[2.0, 1.0], [2.0, 1.5]], references=[0, 1])
    assert np.isnan(never["per_class"]["b"]["precision"])
    assert never["per_class"]["b"]["f1"] == 0
    assert never["macro_f1"] == pytest.approx(1 / 3)
    assert never["macro_auroc"] == 1
    evaluation = EvalPrediction(predictions=np.array([[2.0, 1.0], [1.0, 2.0]]), label_ids=np.array([0, 0]))
    assert "macro_auroc" not in classification_metrics(["a", "b"])(evaluation)


def test_images_are_ranked_by_probability_not_by_logit():
    """The first image has the higher logit, but the second is more probable to be of the first class."""
    logits = np.array([[5.0, 6.0], [1.0, -3.0]])
    figures = PerClassScores(["a", "b"]).compute(predictions=logits, references=[1, 0])
    assert figures["per_class"]["a"]["auroc"] == 1


def test_many_classes_are_not_ranked_and_fast():
    names = [str(index) for index in range(21_841)]
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(names), 300)
    logits = rng.normal(size=(300, len(names))).astype(np.float32)
    start = time.perf_counter()
    figures = PerClassScores(names).compute(predictions=logits, references=labels)
    assert time.perf_counter() - start < 5
    assert set(figures) == {"macro_precision", "macro_recall", "macro_f1", "per_class"}
    assert set(figures["per_class"]["0"]) == {"precision", "recall", "f1", "support"}
    few = PerClassScores(names[:MAX_RANKED_CLASSES])
    few = few.compute(predictions=logits[:, :MAX_RANKED_CLASSES], references=labels % MAX_RANKED_CLASSES)
    assert "macro_auroc" in few


def test_a_class_that_the_accuracy_hides_is_told():
    rows = {"defective": {"recall": 0.2353, "support": 51}, "good": {"recall": 0.98, "support": 90}}
    assert missed_classes(rows | {"never": {"recall": np.nan, "support": 0}}, 0.71) == [
        "defective: only 24 % of 51 test images are found (recall), while accuracy is 71 %; see balanced accuracy 61 %"
    ]


def test_missed_classes_of_a_confusion_matrix():
    sentences = missed_in_matrix([[12, 39, 0], [2, 88, 0], [0, 0, 0]], ["defective", "good", "never"])
    assert sentences == [
        "defective: only 24 % of 51 test images are found (recall), while accuracy is 71 %; see balanced accuracy 61 %"
    ]


@pytest.mark.parametrize(
    ("recall", "accuracy", "is_missed"),
    [(0.49, 0.69, True), (0.49, 0.68, False), (0.5, 0.99, False), (0.14, 0.3, True), (0.16, 0.3, False), (0, 0, False)],
)
def test_missed_classes_are_those_far_below_the_accuracy(recall, accuracy, is_missed):
    assert bool(missed_classes({"x": {"recall": recall, "support": 9}}, accuracy)) is is_missed


def test_only_the_worst_of_many_missed_classes_are_named():
    rows = {f"class {index}": {"recall": index / 100, "support": 10} for index in reversed(range(8))}
    sentences = missed_classes(rows, 0.9)
    assert [sentence.split(":")[0] for sentence in sentences[:5]] == [f"class {index}" for index in range(5)]
    assert sentences[5] == "3 more classes are missed like these"


def test_batches_classes_and_tensors_give_the_same(logits_and_labels):
    logits, labels = logits_and_labels
    metric = PerClassAccuracy(NAMES)
    expected = metric.compute(predictions=logits, references=labels)
    for start in range(0, 300, 70):
        part = slice(start, start + 70)
        metric.add_batch(predictions=torch.tensor(logits[part]), references=labels[part].tolist())
    np.testing.assert_equal(metric.compute(), expected)
    for guess, label in zip(logits.argmax(1), labels, strict=True):
        metric.add(prediction=guess, reference=label)
    np.testing.assert_equal(metric.compute(), expected)


def test_arrays_that_were_added_may_be_overwritten(logits_and_labels):
    logits, labels = logits_and_labels
    metric, buffers = ConfusionMatrix(NAMES), np.zeros((2, 100), dtype=np.int64)
    for start in range(0, 300, 100):
        buffers[:] = logits[start : start + 100].argmax(1), labels[start : start + 100]
        metric.add_batch(predictions=buffers[0], references=buffers[1])
    expected = ConfusionMatrix(NAMES).compute(predictions=logits, references=labels)
    np.testing.assert_equal(metric.compute(), expected)


def test_a_metric_starts_anew_after_it_was_computed(logits_and_labels):
    logits, labels = logits_and_labels
    metric = TopKAccuracy()
    metric.compute(predictions=logits, references=labels)
    assert metric.compute(predictions=logits[:1], references=logits[:1].argmax(1))["accuracy"] == 1
    with pytest.raises(ValueError, match="nothing to evaluate"):
        metric.compute()


def test_confusion_matrix_equals_scikit_learns(logits_and_labels):
    logits, labels = logits_and_labels
    matrix = ConfusionMatrix(NAMES).compute(predictions=logits, references=labels)["confusion_matrix"]
    np.testing.assert_array_equal(matrix, sklearn_metrics.confusion_matrix(labels, logits.argmax(1), labels=range(8)))


def test_mean_iou_equals_a_naive_count():
    rng = np.random.default_rng(0)
    sizes = [(5, 7), (4, 9), (6, 6)]
    true = [rng.integers(0, 4, size) for size in sizes]
    for part in true:
        part[rng.random(part.shape) < 0.2] = 255
    predicted = [np.where(rng.random(part.shape) < 0.6, part % 255, rng.integers(0, 4, part.shape)) for part in true]
    names = ["sky", "tree", "road", "car", "never"]
    metric = MeanIoU(names)
    metric.add_batch(predictions=predicted[:2], references=true[:2])
    figures = metric.compute(predictions=predicted[2:], references=true[2:])
    intersections, unions, right, total = np.zeros(5), np.zeros(5), 0, 0
    for ours, theirs in zip(predicted, true, strict=True):
        for guess, label in zip(ours.ravel(), theirs.ravel(), strict=True):
            if label == 255:
                continue
            total += 1
            right += guess == label
            for index in range(5):
                intersections[index] += guess == index == label
                unions[index] += index in (guess, label)
    expected = intersections[:4] / unions[:4]
    assert [figures["iou"][name] for name in names[:4]] == pytest.approx(expected.tolist())
    assert np.isnan(figures["iou"]["never"])
    assert figures["mean_iou"] == pytest.approx(expected.mean())
    assert figures["pixel_accuracy"] == pytest.approx(right / total)


def test_mean_iou_counts_ignored_numbers_that_are_not_to_be_ignored():
    with pytest.raises(ValueError, match="class 255"):
        MeanIoU(["a", "b"], ignore_index=None).compute(
            predictions=np.zeros((1, 2, 2), int), references=np.full((1, 2, 2), 255)
        )


def test_mean_iou_refuses_maps_of_different_sizes():
    with pytest.raises(ValueError, match="Resize the logits"):
        MeanIoU(["a", "b"]).compute(predictions=np.zeros((1, 2, 2), int), references=np.zeros((1, 4, 4), int))


def test_multi_label_equals_scikit_learns():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (60, 5))
    labels[:, 4] = 0  # a class that is nowhere has no average precision
    scores = rng.normal(size=(60, 5)) + labels
    metric = MultiLabel()
    metric.add_batch(predictions=scores[:40], references=labels[:40])
    figures = metric.compute(predictions=scores[40:], references=labels[40:])
    expected = sklearn_metrics.average_precision_score(labels[:, :4], scores[:, :4])
    assert figures["mean_average_precision"] == pytest.approx(expected)
    for average in ("micro", "macro"):
        expected = sklearn_metrics.f1_score(labels, scores > 0, average=average, zero_division=0)
        assert figures[f"{average}_f1"] == pytest.approx(expected)


def test_a_single_label_has_the_f1_of_that_label():
    figures = MultiLabel().compute(predictions=np.array([[1.0], [1.0], [-1.0]]), references=np.array([[1], [0], [0]]))
    assert figures["micro_f1"] == figures["macro_f1"] == pytest.approx(2 / 3)


def test_regression_equals_scikit_learns():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(50, 2))
    predicted = true + rng.normal(size=(50, 2)) / 2
    figures = Regression().compute(predictions=predicted, references=true)
    assert figures["mae"] == pytest.approx(np.abs(true - predicted).mean())
    assert figures["rmse"] == pytest.approx(sklearn_metrics.root_mean_squared_error(true, predicted))
    assert figures["r2"] == pytest.approx(sklearn_metrics.r2_score(true, predicted))
    column = Regression().compute(predictions=predicted[:, :1], references=true[:, 0])
    assert column["mae"] == pytest.approx(np.abs(true - predicted)[:, 0].mean())


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (np.zeros((2, 3)), [0, 3], "class 3"),
        (np.zeros((2, 3)), [0, -1], "class -1"),
        (np.zeros((2, 3)), [0], "one class for each"),
        (np.zeros((2, 3)), [0.0, 1.0], "integers"),
        (np.full((2, 3), np.nan), [0, 1], "diverged"),
        (np.zeros(2), [0, 1], "Logits have shape"),
        (None, [0, 1], "Give both"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_no_trace(predictions, references, message):
    metric = TopKAccuracy()
    with pytest.raises(ValueError, match=message):
        metric.add_batch(predictions=predictions, references=references)
    assert metric.compute(predictions=np.eye(3), references=[0, 1, 2])["accuracy"] == 1


def test_options_that_are_wrong_are_refused():
    with pytest.raises(ValueError, match="'a'"):
        PerClassAccuracy(["a", "b", "a"])
    with pytest.raises(ValueError, match="k=0"):
        TopKAccuracy(k=0)
    with pytest.raises(ValueError, match="problem_type='regresion'"):
        classification_metrics(NAMES, "regresion")
    with pytest.raises(ValueError, match="Unknown arguments: average"):
        PerClassAccuracy(["a", "b"]).compute(predictions=[0], references=[0], average="macro")
    with pytest.raises(ValueError, match="0 and 1"):
        MultiLabel().compute(predictions=np.zeros((2, 3)), references=[0, 2])


def test_metrics_can_be_combined(logits_and_labels):
    logits, labels = logits_and_labels
    combined = evaluate.combine([TopKAccuracy(), PerClassAccuracy(NAMES)])
    combined.add_batch(predictions=logits[:100], references=labels[:100])
    combined.add_batch(predictions=logits[100:], references=labels[100:])
    figures = combined.compute()
    # Names that both have carry the metric's.
    assert figures["top_k_accuracy_accuracy"] == figures["per_class_accuracy_accuracy"]
    assert figures["per_class_accuracy_accuracy"] == (logits.argmax(1) == labels).mean()
    assert "balanced_accuracy" in figures


def _measure(index, barrier):
    metric = TopKAccuracy()
    labels = np.arange(10) % 3
    for _ in range(5):
        barrier.wait(30)
        metric.add_batch(predictions=np.eye(3)[(labels + index) % 3], references=labels)
    barrier.wait(30)
    return metric.compute()["accuracy"]


def test_processes_measure_at_once_without_sharing_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    with multiprocessing.get_context("fork").Manager() as manager:
        barrier = manager.Barrier(3)
        with multiprocessing.get_context("fork").Pool(3) as pool:
            assert pool.starmap(_measure, [(index, barrier) for index in range(3)]) == [1.0, 0.0, 0.0]
    assert not (tmp_path / "cache").exists()


def test_many_logits_are_fast():
    rng = np.random.default_rng(0)
    logits, labels = rng.random((10_000, 1000), dtype=np.float32), rng.integers(0, 1000, 10_000)
    start = time.perf_counter()
    evaluation = EvalPrediction(predictions=logits, label_ids=labels)
    figures = classification_metrics([str(index) for index in range(1000)])(evaluation)
    assert time.perf_counter() - start < 5
    # Without the ranks of so many classes.
    assert set(figures) == {"accuracy", "balanced_accuracy", "top5_accuracy", "macro_precision", "macro_f1"}


def test_trainer_gets_flat_figures(logits_and_labels):
    logits, labels = logits_and_labels
    hidden_states = np.zeros((300, 2))
    figures = classification_metrics(NAMES)(EvalPrediction(predictions=(logits, hidden_states), label_ids=labels))
    assert all(type(value) is float for value in figures.values())
    # The last class has no examples, so no accuracy.
    macro = {"macro_precision", "macro_f1", "macro_average_precision", "macro_auroc"}
    assert set(figures) == {"accuracy", "top5_accuracy", "balanced_accuracy"} | macro | {
        f"accuracy_{name}" for name in NAMES[:7]
    }
    assert set(figures) < set(classification_metrics(NAMES).metric_names)
    is_third = labels == 2
    assert figures["accuracy_class 2"] == pytest.approx((logits[is_third].argmax(1) == 2).mean())


def test_trainer_gets_no_top_five_of_five_classes():
    evaluation = EvalPrediction(predictions=np.eye(5), label_ids=np.arange(5))
    assert "top5_accuracy" not in classification_metrics(NAMES[:5])(evaluation)


def test_trainer_gets_the_figures_of_its_problem():
    labels = np.eye(3)
    evaluation = EvalPrediction(predictions=labels * 4 - 2, label_ids=labels)
    figures = classification_metrics(NAMES[:3], "multi_label_classification")(evaluation)
    assert figures == {"mean_average_precision": 1, "micro_f1": 1, "macro_f1": 1}
    evaluation = EvalPrediction(predictions=np.array([[1.0], [2.0]]), label_ids=np.array([1.0, 3.0]))
    figures = classification_metrics(["height"], "regression")(evaluation)
    assert figures == pytest.approx({"mae": 0.5, "rmse": 0.5**0.5, "r2": 0.5})
