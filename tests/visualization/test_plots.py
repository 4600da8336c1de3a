"""Curves and matrices, drawn."""

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sklearn_metrics

from hf_simmim.visualization.plots import most_confused, plot_confusion, plot_layers, plot_losses, plot_probe


def test_loss_curve(tmp_path):
    history = [{"step": step, "loss": 1 / step, "learning_rate": 1e-3} for step in range(1, 20)]
    history += [{"step": 10, "eval_loss": 0.2}, {"step": 19, "eval_loss": 0.1}, {"step": 19, "train_runtime": 3.0}]
    plot_losses(history, tmp_path / "with.png")
    plot_losses(history[:19], tmp_path / "without.png")
    with_evaluation, without = (np.asarray(Image.open(tmp_path / name)) for name in ("with.png", "without.png"))
    assert with_evaluation.shape == without.shape
    assert (with_evaluation != without).any()
    # The weights of step 10 are measured again, after the last step.
    plot_losses([*history, {"step": 19, "eval_loss": 0.2}], tmp_path / "again.png")
    assert (np.asarray(Image.open(tmp_path / "again.png")) == with_evaluation).all()


def test_a_loss_curve_of_one_entry_shows_it(tmp_path):
    plot_losses([{"step": 3, "loss": 0.5, "learning_rate": 1e-3}], tmp_path / "one.png")
    picture = np.asarray(Image.open(tmp_path / "one.png").convert("RGB"))
    in_blue = (picture == [31, 119, 180]).all(axis=2)
    height = picture.shape[0]
    # In the middle of the axes, not only in the legend.
    assert in_blue[height // 3 : 2 * height // 3].any()


def test_a_probe_shows_what_the_most_frequent_class_is_worth(tmp_path):
    history = [{"step": step, "probe_linear_accuracy": 0.9, "probe_knn_accuracy": 0.9} for step in (0, 10)]
    plot_probe(history, tmp_path / "without.png")
    plot_probe(history, tmp_path / "with.png", majority=0.5)
    without, baseline = (np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("without.png", "with.png"))
    middle = slice(without.shape[0] // 3, without.shape[0] * 2 // 3)
    dark, darker = ((picture[middle] < 100).all(axis=2).sum(axis=1).max() for picture in (without, baseline))
    assert darker > dark + 300


def test_accuracies_of_layers_start_at_zero_and_show_the_baseline(tmp_path):
    series = {"linear probe": [[0.9], [0.95]]}
    plot_layers(["0", "last"], series, tmp_path / "without.png")
    plot_layers(["0", "last"], series, tmp_path / "with.png", baseline=("most frequent class", 0.5))
    without, baseline = (np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("without.png", "with.png"))
    # From zero, the points are in the upper fourth.
    rows = (without == [31, 119, 180]).all(axis=2).nonzero()[0]
    assert rows[rows < 400].max() < without.shape[0] / 4
    # A dashed line in the middle.
    middle = slice(without.shape[0] // 3, without.shape[0] * 2 // 3)
    dark, darker = ((picture[middle] < 100).all(axis=2).sum(axis=1).max() for picture in (without, baseline))
    assert darker > dark + 300


def test_most_confused_pairs_go_by_share_of_the_true_class():
    matrix = np.array([[90, 10, 0], [1, 1, 0], [0, 0, 0]])
    assert most_confused(matrix) == [(1, 0, 0.5), (0, 1, 0.1)]
    assert most_confused(matrix, limit=1) == [(1, 0, 0.5)]


@pytest.mark.parametrize("num_classes", [3, 100])
def test_the_picture_is_dark_on_the_diagonal_and_not_beside(num_classes, tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, 5000)
    matrix = sklearn_metrics.confusion_matrix(labels, labels, labels=range(num_classes))
    plot_confusion(matrix, [f"a class of number {index}" for index in range(num_classes)], tmp_path / "matrix.png")
    picture = np.asarray(Image.open(tmp_path / "matrix.png").convert("RGB"))
    dark = (picture == [8, 48, 107]).all(axis=2)
    rows, columns = dark[:, : dark.shape[1] // 2].nonzero() if num_classes > 20 else dark.nonzero()
    assert np.corrcoef(rows, columns)[0, 1] > 0.7


@pytest.mark.parametrize("num_classes", [2, 3, 10, 30])
def test_all_of_the_picture_is_in_the_picture(num_classes, tmp_path):
    """Names and titles have white around them."""
    names = [f"{'a long name of a' * (num_classes > 3)} class number {index}" for index in range(num_classes)]
    plot_confusion(np.eye(num_classes, dtype=int) + 1, names, tmp_path / "matrix.png")
    picture = np.asarray(Image.open(tmp_path / "matrix.png").convert("L"))
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert border.min() == 255


def test_the_picture_needs_a_name_for_each_class(tmp_path):
    with pytest.raises(ValueError, match="3 class names"):
        plot_confusion(np.eye(2), ["a", "b", "c"], tmp_path / "x.png")
