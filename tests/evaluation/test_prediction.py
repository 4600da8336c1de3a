"""Tables and masks of predictions."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_simmim.data.labeled.annotations import read_ids
from hf_simmim.evaluation.prediction import classification_table, draw_mask
from hf_simmim.visualization.grids import class_colors


@pytest.mark.parametrize(("count", "mode"), [(2, "P"), (256, "P"), (257, "I;16"), (3000, "I;16")])
def test_masks_hold_the_classes(count, mode, tmp_path):
    classes = np.random.default_rng(0).integers(0, count, (40, 50))
    draw_mask(classes, count).save(tmp_path / "mask.png")
    picture = Image.open(tmp_path / "mask.png")
    assert picture.mode == mode
    row = {"name": "mask", "image": {"bytes": None, "path": str(tmp_path / "mask.png")}}
    assert np.array_equal(read_ids(row, ignore_index=65535), classes)
    if mode == "P":
        assert np.array_equal(np.asarray(picture.convert("RGB")), class_colors(count)[classes])


def test_equal_probabilities_keep_the_order_of_logits():
    logits = torch.tensor([[100.0, 200.0, 199.9999], [1.0, 1.0 + 2**-23, 1.0]])
    table, chosen = classification_table(["a", "b"], logits, ["x", "y", "z"], "single_label_classification")
    assert table["predicted"].to_pylist() == ["y", "y"]
    assert chosen == [[1], [1]]


def test_outputs_that_are_not_finite_are_refused():
    logits = torch.tensor([[0.0, 1.0], [0.0, torch.nan]])
    with pytest.raises(ValueError, match="output for b is not finite"):
        classification_table(["a", "b"], logits, ["x", "y"], "single_label_classification")


def test_one_number_is_a_value():
    table, chosen = classification_table(["a", "b"], torch.tensor([[0.5], [2.0]]), ["LABEL_0"], "regression")
    assert table.to_pylist() == [{"name": "a", "value": 0.5}, {"name": "b", "value": 2.0}]
    assert chosen == [[], []]
