"""A training ends in time, at the end of its schedule; one that is fast enough is not changed."""

# Fixtures of a pre-training are arguments here.
# ruff: noqa: F401, F811
import json
import os
import signal

import pytest
import torch
from pretraining import options, photos, read_log
from safetensors.torch import load_file

from hf_simmim.cli import pretrain
from hf_simmim.training import stopping
from hf_simmim.training.trainers import SimMIMTrainer

# 40 steps, of which the clock of `seconds` allows 16.
PLANNED = {"num_train_epochs": 8, "logging_steps": 1, "max_hours": 16 / 3600}


@pytest.fixture
def clock(monkeypatch):
    """A clock on which each look takes a second."""
    now = iter(range(10_000))
    monkeypatch.setattr(stopping.time, "monotonic", lambda: float(next(now)))


def test_the_schedule_ends_with_the_time(photos, tmp_path, clock, capsys):
    pretrain.COMMAND.main(options(photos, tmp_path, **PLANNED))
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["global_step"] == 16
    assert state["max_steps"] == 40
    rates = [entry["learning_rate"] for entry in read_log(tmp_path) if "learning_rate" in entry]
    assert rates[-1] < 0.1 * max(rates)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert "It was stopped at step 16 of 40" in (tmp_path / "README.md").read_text()
    capsys.readouterr()
    pretrain.COMMAND.main(options(photos, tmp_path, **PLANNED))
    assert "This run was complete, 16 of 40 steps, stopped before the last" in capsys.readouterr().out


def test_the_time_before_a_stop_counts(photos, tmp_path, clock, monkeypatch):
    step = SimMIMTrainer.training_step

    def asked_to_end(self, *args, **kwargs):
        if self.state.global_step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SimMIMTrainer, "training_step", asked_to_end)
        with pytest.raises(SystemExit):
            pretrain.COMMAND.main(options(photos, tmp_path, **PLANNED))
    pretrain.COMMAND.main(options(photos, tmp_path, **PLANNED))
    # Others look at the clock while the run is stopped and resumed.
    assert 13 <= json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] <= 16


def test_time_enough_changes_nothing(photos, tmp_path):
    for name, settings in {"plain": {}, "timed": {"max_hours": 100}}.items():
        pretrain.COMMAND.main(options(photos, tmp_path / name, max_steps=3, **settings))
    plain, timed = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "timed"))
    assert all(torch.equal(tensor, timed[name]) for name, tensor in plain.items())


def test_what_cannot_be_is_refused(photos, tmp_path):
    with pytest.raises(SystemExit, match="max_hours=0.0 must be above 0"):
        pretrain.COMMAND.main(options(photos, tmp_path, max_hours=0.0))
    with pytest.raises(SystemExit, match="needs a schedule of steps"):
        pretrain.COMMAND.main(options(photos, tmp_path, max_hours=1, lr_scheduler_type="reduce_lr_on_plateau"))
