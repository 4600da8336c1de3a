"""Curves and matrices, drawn."""

import numpy as np
from PIL import Image

from hf_simmim.visualization.plots import plot_losses


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
