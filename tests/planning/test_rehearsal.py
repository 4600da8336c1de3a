"""Measured steps: what they leave behind, and what is computed from them."""

import copy
import json
import types

import numpy as np
import pytest
import torch
from command_lines import command_line
from photos import random_photo
from tiny import swin_config

from hf_simmim.cli import pretrain
from hf_simmim.data.masked_images import collate
from hf_simmim.planning import rehearsal as rehearsal_module
from hf_simmim.planning.rehearsal import Rehearsal, forecast, rehearse, rough_time


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):

    folder = tmp_path_factory.mktemp("run")
    (folder / "photos").mkdir()
    for index in range(20):
        random_photo(np.random.default_rng(index), (40, 40)).save(folder / "photos" / f"{index}.png")
    options = {
        "train_dir": folder / "photos",
        "output_dir": folder / "run",
        "encoder": json.dumps(swin_config(drop_path_rate=0.2).to_diff_dict() | {"model_type": "swin"}),
        "mask_patch_size": 8,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "dataloader_num_workers": 0,
        "holdout": 0,
        "use_cpu": True,
    }
    return pretrain.build_trainer(*pretrain.COMMAND.parse(command_line(options)))[0]


def test_a_rehearsal_leaves_no_trace(trainer):
    weights = copy.deepcopy(trainer.model.state_dict())
    state, training = torch.get_rng_state(), trainer.model.training
    found = rehearse(trainer.model, trainer.train_dataset, trainer.args, collate, trainer.processing_class, num_steps=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert trainer.model.training is training
    assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert found.images_per_second == pytest.approx(8 / found.step_seconds)
    assert found.evaluation_images_per_second > found.images_per_second
    assert found.memory > 50e6


def test_long_steps_end_the_rehearsal(trainer, monkeypatch):
    monkeypatch.setattr(rehearsal_module, "MAX_SECONDS", 0.0)
    counted = []
    monkeypatch.setattr(rehearsal_module, "_wait", lambda device: counted.append(device))
    rehearse(trainer.model, trainer.train_dataset, trainer.args, collate, trainer.processing_class)
    # Two that are not timed, two that are, and two forward passes.
    assert len(counted) == 6


def arguments(**kwargs):
    defaults = {
        "eval_strategy": "epoch", "eval_steps": None, "save_strategy": "epoch", "save_steps": None, "world_size": 1,
        "save_total_limit": 2, "device": torch.device("cpu"), "max_steps": -1, "num_train_epochs": 3.0,
        "per_device_train_batch_size": 10, "train_batch_size": 10, "gradient_accumulation_steps": 1,
        "dataloader_drop_last": True,
    }  # fmt: skip
    return types.SimpleNamespace(**(defaults | kwargs))


def test_a_forecast_by_hand():
    model = torch.nn.Linear(1000, 250, bias=False)  # 1 MB
    found = Rehearsal(step_seconds=2.0, images_per_second=5.0, evaluation_images_per_second=20.0, memory=7)
    expected = forecast(found, model, arguments(), num_images=100, num_evaluated=40, num_cores=2)
    # 8 s to start, 30 steps, 4 evaluations of 2 s, and 0.5 s for each of 4 evaluations and 3 saves.
    assert expected.hours * 3600 == pytest.approx(8 + 60 + 8 + 3.5)
    assert (expected.images_per_second, expected.memory) == (5.0, 7)
    # Two checkpoints and a third before the oldest is deleted, of three times the weights, and the weights.
    assert expected.disk == 10_000_000
    assert expected.kilowatt_hours == pytest.approx(20 * expected.hours / 1000)
    few = forecast(
        found, model, arguments(eval_strategy="steps", eval_steps=15, save_strategy="no"), 100, 40, num_cores=2
    )
    assert few.hours * 3600 == pytest.approx(8 + 60 + 3 * 2 + 1.5)
    assert few.disk == 1_000_000
    assert str(expected) == "1 min at 5 images/s, 0 MB of memory, 10 MB of disk, about 0.00044 kWh"


def test_times_are_in_their_own_units():
    assert [rough_time(hours) for hours in (0.01, 0.5, 3, 100)] == ["36 s", "30 min", "3.0 h", "4.2 days"]
