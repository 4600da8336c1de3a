"""Stopping by features: the rules, what they keep, and that a killed run goes on counting where it was."""

# Fixtures of a pre-training are arguments here.
# ruff: noqa: F401, F811
import json
import math
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from pretraining import options, photos, read_log
from safetensors.torch import load_file

from hf_simmim.cli import pretrain
from hf_simmim.evaluation.intervals import wilson_interval
from hf_simmim.evaluation.rankme import effective_rank
from hf_simmim.training.stopping import LossAlarm, StopCallback, StopRule, losses_between_evaluations
from hf_simmim.training.trainers import SimMIMTrainer

# Better is what never happens: the training ends after one evaluation more than the patience.
NEVER = {"stop_by": "rank", "min_gain": 1e6, "num_train_epochs": 8}


@pytest.fixture(scope="module")
def first(photos, tmp_path_factory):
    """Weights to start from."""
    folder = tmp_path_factory.mktemp("first")
    pretrain.COMMAND.main(options(photos, folder, max_steps=1))
    return folder


def probed(*accuracies: float, start: int = 1, num_images: int = 400) -> list[dict[str, float]]:
    """A log with these accuracies, one evaluation every step."""
    log = []
    for step, accuracy in enumerate(accuracies, start=start):
        low, high = wilson_interval(accuracy * num_images, num_images)
        log.append(
            {"step": step, "probe_linear_accuracy": accuracy, "probe_linear_low": low, "probe_linear_high": high}
        )
    return log


def ranked(*values: float) -> list[dict[str, float]]:
    return [{"step": step, "eval_rankme": value} for step, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("rule", "log", "best", "waited"),
    [
        # The standard error of 400 images is 2.5 points at 50 %.
        (StopRule("probe"), probed(0.5, 0.52, 0.524), 1, 2),
        (StopRule("probe"), probed(0.5, 0.53, 0.54), 2, 1),
        # Small gains add up.
        (StopRule("probe"), probed(0.5, 0.51, 0.52, 0.53), 4, 0),
        (StopRule("probe", min_gain=0), probed(0.5, 0.501, 0.4), 2, 1),
        # What was before training counts only for trained weights.
        (StopRule("probe"), probed(0.9, 0.5, 0.6, start=0), 2, 0),
        (StopRule("probe", counts_start=True), probed(0.9, 0.5, 0.6, start=0), 0, 2),
        (StopRule("rank"), ranked(10, 10.05, 10.09), 1, 2),
        (StopRule("rank"), ranked(10, 10.2, math.nan), 2, 1),
    ],
)
def test_better_is_more_than_noise(rule, log, best, waited):
    standing = rule.judge(log)
    assert (standing.best["step"], standing.waited) == (best, waited)
    assert standing.is_over == (waited >= 5)
    assert StopRule(rule.kind, 1, rule.min_gain, counts_start=rule.counts_start).judge(log).is_over == (waited >= 1)
    # The best weights are measured once more at the end.
    assert rule.judge([*log, {**log[0], "step": log[-1]["step"], rule.figure: 1e3}]) == standing


def test_a_probe_at_its_ceiling_is_doubted_once(caplog):
    """Of 250 images 246 right: perfect within its interval, so that nothing could be better than it."""
    log = probed(0.9, 0.984, 0.99, num_images=250)
    assert StopRule("probe").doubt(log[:1]) is StopRule("rank").doubt(log) is None
    callback = StopCallback(SimpleNamespace(is_in_train=True), StopRule("probe"))
    for step in range(3):
        state = SimpleNamespace(log_history=log[: step + 1], is_world_process_zero=True, global_step=step + 1)
        callback.on_evaluate(None, state, None)
    (told,) = caplog.messages
    assert told.startswith("Step 2: the linear probe is right about 98.4% of its test images, so it can hardly rise")


def test_drift_ends_at_the_limit():
    log = [{"step": step, "drift_knn_agreement": value} for step, value in enumerate((0.9, 0.7, 0.5), start=1)]
    assert not StopRule("drift", max_drift=0.5).judge(log).is_over
    standing = StopRule("drift", max_drift=0.4).judge(log)
    assert (standing.best["step"], standing.is_over) == (2, True)


def test_a_loss_that_rises_is_an_alarm(caplog):
    log = []
    for step, loss in enumerate((5, 3, 4, 5), start=1):
        log += [{"step": step, "loss": loss - 1}, {"step": step, "loss": loss + 1}, {"step": step, "eval_loss": 1}]
    assert losses_between_evaluations(log) == [5, 3, 4, 5]

    class State:
        log_history, is_world_process_zero, global_step = log, True, 4

    LossAlarm(3).on_evaluate(None, State, None)
    assert not caplog.records
    LossAlarm(2).on_evaluate(None, State, None)
    assert "the training loss has risen over 2 evaluations: 3, 4, 5" in caplog.text


def test_a_run_ends_keeps_the_best_and_is_complete(photos, tmp_path, capsys, caplog):
    """Also with the spectrum; and a repeated command trains no further, but one with more patience does."""
    result = pretrain.COMMAND.main(options(photos, tmp_path, **NEVER, patience=2))
    log = read_log(tmp_path)
    ranks = {entry["step"]: entry["eval_rankme"] for entry in log[:-1] if "eval_rankme" in entry}
    assert list(ranks)[:3] == [5, 10, 15]
    assert "the training ends, because rankme was" in caplog.text
    assert "compare these weights with checkpoint-15 (hf-simmim embed" in caplog.text
    assert (tmp_path / "checkpoint-15").is_dir()
    best = max((5, 10, 15), key=ranks.get)
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert (state["global_step"], state["best_global_step"]) == (15, best)
    assert f"The weights are those of step {best} of 15, the best by rankme" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["weights_of_step"] == best
    weights = load_file(tmp_path / "model.safetensors")
    for name, tensor in load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors").items():
        assert torch.equal(tensor, weights[name]), name
    spectrum = json.loads((tmp_path / "spectrum.json").read_text())
    assert spectrum["step"] == best
    assert effective_rank(torch.tensor(spectrum["singular_values"]).double()) == pytest.approx(ranks[best], rel=1e-6)
    assert Image.open(result.pictures["spectrum"]).size == (960, 480)

    pretrain.COMMAND.main(options(photos, tmp_path, **NEVER, patience=2))
    assert "This run was complete, 15 of 40 steps, stopped before the last" in capsys.readouterr().out
    assert "It was stopped at step 15 of 40" in (tmp_path / "README.md").read_text()
    pretrain.COMMAND.main(options(photos, tmp_path, **NEVER, patience=3))
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 20
    with pytest.raises(SystemExit, match="another stop_by: rank before, probe now"):
        pretrain.COMMAND.main(options(photos, tmp_path, **{**NEVER, "stop_by": "probe", "probe_dir": photos}))


def test_a_killed_run_goes_on_counting(photos, first, tmp_path, monkeypatch):
    settings = {"checkpoint": first, "encoder": None, "probe_dir": photos, "stop_by": "probe"}
    settings |= {"min_gain": 1, "patience": 3, "num_train_epochs": 8, "probe_layer": "last", "probe_pooling": "mean"}
    pretrain.COMMAND.main(options(photos, tmp_path / "whole", **settings))
    judge, step = StopCallback.on_evaluate, SimMIMTrainer.training_step

    def asked_to_end(self, *args, **kwargs):
        if self.state.global_step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    def dying(self, args, state, control, **kwargs):
        if state.global_step == 10:
            raise KeyboardInterrupt
        return judge(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StopCallback, "on_evaluate", dying)
        with pytest.raises(KeyboardInterrupt):
            pretrain.COMMAND.main(options(photos, tmp_path / "killed", **settings))
    # Then by a signal in a step that is to be evaluated, which a resumed run does.
    with monkeypatch.context() as patch:
        patch.setattr(SimMIMTrainer, "training_step", asked_to_end)
        with pytest.raises(SystemExit):
            pretrain.COMMAND.main(options(photos, tmp_path / "killed", **settings))
    assert (tmp_path / "killed" / "checkpoint-10").exists()
    # The best weights would be those of two probes.
    others = shutil.copytree(photos, tmp_path / "others")
    next(others.rglob("*.jpg"), next(others.rglob("*.png"), None)).unlink()
    with pytest.raises(SystemExit, match="another probe (training|test) images"):
        pretrain.COMMAND.main(options(photos, tmp_path / "killed", **settings | {"probe_dir": others}))
    pretrain.COMMAND.main(options(photos, tmp_path / "killed", **settings))
    states = [json.loads((tmp_path / run / "trainer_state.json").read_text()) for run in ("whole", "killed")]
    # Three evaluations after the features that it began with.
    assert [state["global_step"] for state in states] == [15, 15]
    for key in ("best_metric", "best_global_step", "stateful_callbacks"):
        assert states[0][key] == states[1][key], key
    for key in ("probe_linear_accuracy", "drift_knn_agreement"):
        whole, killed = ([e[key] for e in state["log_history"] if key in e] for state in states)
        assert whole == killed
    assert all(
        0 < entry["drift_knn_agreement"] <= 1
        for entry in read_log(tmp_path / "killed")
        if "drift_knn_agreement" in entry
    )
    first, second = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_drift_is_that_of_the_neighbors_and_stops(photos, first, tmp_path, caplog, capsys):
    settings = {"checkpoint": first, "encoder": None, "stop_by": "drift", "max_drift": 0.01}
    pretrain.COMMAND.main(options(photos, tmp_path / "still", **settings, learning_rate=1e-9, num_train_epochs=2))
    agreements = [e["drift_knn_agreement"] for e in read_log(tmp_path / "still") if "drift_knn_agreement" in e]
    assert agreements == [1, 1, 1]
    # Not the best by a figure that can only fall.
    assert "step 10 of 10, the last that were evaluated within --max_drift" in capsys.readouterr().out
    assert json.loads((tmp_path / "still" / "trainer_state.json").read_text())["best_global_step"] == 10
    pretrain.COMMAND.main(options(photos, tmp_path / "far", **settings, learning_rate=0.1, num_train_epochs=3))
    state = json.loads((tmp_path / "far" / "trainer_state.json").read_text())
    assert (state["global_step"], state["best_global_step"]) == (5, None)
    assert "Step 5: more than 1% of the nearest neighbors have changed; no evaluation before it" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stop_by": "probe"}, "needs labels. Add --probe_dir, or use --stop_by rank"),
        ({"stop_by": "rank", "compared_images": 0}, "Set --compared_images"),
        ({"stop_by": "drift"}, "Add --checkpoint"),
        ({"stop_by": "rank", "holdout": 0}, "needs evaluations, and there are none. Use --holdout"),
        ({"stop_by": "rank", "eval_strategy": "no"}, "needs evaluations"),
        ({"stop_by": "rank", "max_eval_samples": 1}, "has 1 of the four or more validation images that it needs"),
        ({"stop_by": "rank", "save_strategy": "steps"}, "eval_strategy=epoch and save_strategy=steps every 500"),
        ({"stop_by": "rank", "metric_for_best_model": "loss"}, "Leave one out"),
        ({"stop_by": "rank", "patience": 0}, "patience=0 must be 1 or more"),
        ({"stop_by": "rank", "min_gain": -1}, "min_gain=-1.0 must be 0 or more"),
        ({"stop_by": "drift", "max_drift": 2}, "max_drift=2.0"),
    ],
)
def test_what_cannot_stop_is_refused(photos, tmp_path, settings, message):
    with pytest.raises(SystemExit, match=message):
        pretrain.COMMAND.main(options(photos, tmp_path, **settings))
    assert not list(tmp_path.rglob("checkpoint-*"))
