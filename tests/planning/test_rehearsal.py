"""Measured steps: what they leave behind, and what is computed from them."""

import copy
import gc
import json
import subprocess
import sys
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
from hf_simmim.planning.rehearsal import (
    EVALUATION_MEMORY,
    EVALUATION_PAGES,
    Rehearsal,
    forecast,
    rehearse,
    rough_time,
)


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
    assert found.workers == 0


def test_blocks_are_those_of_the_training(trainer, monkeypatch):
    changed = []
    monkeypatch.setattr(
        rehearsal_module, "change_blocks", lambda model, arguments: changed.append((model, arguments.compile_blocks))
    )
    arguments = copy.copy(trainer.args)
    arguments.compile_blocks = True
    run = (trainer.model, trainer.train_dataset, arguments, collate, trainer.processing_class)
    found = rehearse(*run, num_steps=2)
    ((model, compiles),) = changed
    assert model is not trainer.model
    assert compiles
    assert found.first_seconds > 0
    # A minute of compiling is worth it from 600 steps on that are a tenth of a second faster.
    plain, faster = Rehearsal(0.5, 1, 1, 1), Rehearsal(0.4, 1, 1, 1, 0, 60.0)
    assert plain.compiling_pays(faster, 601)
    assert not plain.compiling_pays(faster, 599)


def test_workers_are_measured(trainer, monkeypatch):
    monkeypatch.setattr(trainer.args, "dataloader_num_workers", 1)
    found = rehearse(trainer.model, trainer.train_dataset, trainer.args, collate, trainer.processing_class, num_steps=3)
    assert 1e6 < found.workers < found.memory
    assert not gc.get_freeze_count()


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
        "dataloader_drop_last": True, "dataloader_num_workers": 0,
    }  # fmt: skip
    return types.SimpleNamespace(**(defaults | kwargs))


def test_a_forecast_by_hand():
    model = torch.nn.Linear(1000, 250, bias=False)  # 1 MB
    found = Rehearsal(
        step_seconds=2.0, images_per_second=5.0, evaluation_images_per_second=20.0, memory=7, picture_seconds=0.25
    )
    expected = forecast(found, model, arguments(), num_images=100, num_evaluated=40, num_cores=2)
    # 8 s to start, 30 steps, 4 evaluations of 40 images, as many training images and the features of 40, and of two
    # pictures of 0.25 s, and 0.5 s for each of 3 saves.
    assert expected.hours * 3600 == pytest.approx(8 + 60 + 4 * 6.5 + 1.5)
    assert expected.images_per_second == pytest.approx(300 / (60 + 4 * 6.5 + 1.5))
    assert expected.memory == 7 + EVALUATION_MEMORY
    # Two checkpoints and a third before the oldest is deleted, of three times the weights, and the weights.
    assert expected.disk == 10_000_000
    assert expected.kilowatt_hours == pytest.approx(20 * expected.hours / 1000)
    few = forecast(
        found, model, arguments(eval_strategy="steps", eval_steps=15, save_strategy="no"), 100, 40, num_cores=2
    )
    assert few.hours * 3600 == pytest.approx(8 + 60 + 3 * 6.5)
    assert few.disk == 1_000_000
    assert str(expected) == "2 min at 3 images/s, 80 MB of memory, 10 MB of disk, about 0.00053 kWh"


def test_memory_of_evaluations_and_their_workers():
    model = torch.nn.Linear(1000, 250, bias=False)  # 1 MB
    found = Rehearsal(2.0, 5.0, 20.0, memory=7_000_000, workers=3_000_000)

    def memory(num_evaluated=40, **kwargs):
        return forecast(found, model, arguments(**kwargs), 100, num_evaluated, num_cores=2).memory

    # Those of the evaluation are as many, and hold weights and two moments, of which theirs has the weights.
    grown = EVALUATION_MEMORY + EVALUATION_PAGES + 3_000_000 + 2_000_000
    assert memory(dataloader_num_workers=2) == 7_000_000 + grown
    assert memory(num_evaluated=0, dataloader_num_workers=2) == 7_000_000
    assert memory(device=torch.device("cuda"), dataloader_num_workers=2) == 7_000_000


SHARED = """
import mmap, os, psutil, time
from hf_simmim.planning.rehearsal import process_memory
size = 64 * 2**20
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.write(b"a" * size)
children = []
for _ in range(2):
    child = os.fork()
    if not child:
        time.sleep(60)
    children.append(child)
shared = process_memory() - psutil.Process().memory_info().rss
memory.seek(0)
memory.write(b"b" * size)
old = process_memory() - psutil.Process().memory_info().rss
for child in children:
    os.kill(child, 9)
    os.waitpid(child, 0)
print(shared // 2**20, old // 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counted as Linux does")
def test_memory_that_workers_share_counts_once():
    result = subprocess.run([sys.executable, "-c", SHARED], check=True, capture_output=True, text=True)
    shared, old = map(int, result.stdout.split())
    # What this process has, and then the old contents, which only the workers share.
    assert shared < 40
    assert 56 <= old - shared <= 72


def test_times_are_in_their_own_units():
    assert [rough_time(hours) for hours in (0.01, 0.5, 3, 100)] == ["36 s", "30 min", "3.0 h", "4.2 days"]
