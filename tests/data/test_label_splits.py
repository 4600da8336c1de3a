"""Labeled images divided: few labels, folds, and a part held out."""

import numpy as np
import pytest

from hf_simmim.data.labeled.splits import few_labels, folds, holdout


def test_few_labels_are_stratified_and_nested():
    labels = [index % 3 for index in range(90)]
    fewer, more = few_labels(labels, 5, seed=1), few_labels(labels, 10, seed=1)
    assert np.bincount([labels[index] for index in fewer]).tolist() == [5, 5, 5]
    assert set(fewer) < set(more)
    assert fewer == sorted(fewer) == few_labels(labels, 5, seed=1) != few_labels(labels, 5, seed=2)
    with pytest.raises(ValueError, match="Class eel has 30 images, fewer than labels_per_class=31. Use at most 30"):
        few_labels([*labels, 0, 1], 31, 0, class_names=["cat", "dog", "eel"])
    with pytest.raises(ValueError, match="Class none has 0 images"):
        few_labels(labels, 5, 0, class_names=["cat", "dog", "eel", "none"])
    assert len(few_labels([[0.0, 1.0]] * 20, 3, 0)) == 6
    assert len(few_labels([0.5] * 20, 3, 0)) == 3
    with pytest.raises(ValueError, match="22 images are needed and there are 20"):
        few_labels([[0.0, 1.0]] * 20, 11, 0)


def test_folds_hold_every_image_out_once():
    labels = [0] * 40 + [1] * 20
    held_out = []
    for fold in range(4):
        train, held = folds(labels, 4, fold, seed=0)
        assert sorted(train + held) == list(range(60))
        assert np.bincount([labels[index] for index in held]).tolist() == [10, 5]
        held_out += held
    assert sorted(held_out) == list(range(60))
    assert folds(labels, 4, 1, seed=0) == folds(labels, 4, 1, seed=0) != folds(labels, 4, 1, seed=3)
    assert len(folds([0.5] * 9, 3, 0, 0)[1]) == 3
    with pytest.raises(ValueError, match=r"Class 1 \(counted from 0\) has 3 images, too few for 4 folds"):
        folds([0] * 9 + [1] * 3, 4, 0, 0)
    with pytest.raises(ValueError, match="Class dog has 1 image, too few for both parts of the split"):
        holdout([0] * 9 + [1], 0.2, 0, ["cat", "dog"])
    with pytest.raises(ValueError, match="fold=4 must be from 0 to 3"):
        folds(labels, 4, 4, 0)
    with pytest.raises(ValueError, match="num_folds=1 must be at least 2"):
        folds(labels, 1, 0, 0)


def test_holdout_keeps_the_share_of_every_class():
    labels = [0] * 40 + [1] * 20
    train, held_out = holdout(labels, 0.2, seed=0)
    assert sorted(train + held_out) == list(range(60))
    assert np.bincount([labels[index] for index in held_out]).tolist() == [8, 4]
    assert held_out == holdout(labels, 0.2, seed=0)[1] != holdout(labels, 0.2, seed=1)[1]
    assert len(holdout([[1.0, 0.0]] * 10, 0.3, 0)[1]) == 3
    with pytest.raises(ValueError, match="A share of 0.01 of 60 images is 1, and each part needs at least 2"):
        holdout(labels, 0.01, 0)
    with pytest.raises(ValueError, match="Class eel has 1 image, too few for both parts of the split"):
        holdout([0, 0, 0, 1], 0.5, 0, ["dog", "eel"])
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        holdout(labels, 1.0, 0)
