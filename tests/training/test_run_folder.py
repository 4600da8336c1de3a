"""What a run finds in its folder, writes down, and deletes; which other runs it refuses."""

import json
import subprocess
import sys

import pytest

from hf_simmim.training.arguments import SimMIMTrainingArguments
from hf_simmim.training.run_folder import (
    begin_run,
    check_same_run,
    prepare_output_dir,
    settings_before,
    settle_settings,
)
from hf_simmim.training.run_lock import LOCK_FILE, lock_run, unlock_runs

SETTINGS = {"encoder": {"depth": 2, "width": 8}, "seed": 0}


def arguments(folder, **kwargs) -> SimMIMTrainingArguments:
    return SimMIMTrainingArguments(output_dir=str(folder), use_cpu=True, **kwargs)


def write(folder, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def names(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {LOCK_FILE}


def test_a_restart_deletes_the_run_and_nothing_else(tmp_path):
    mine = {"notes.md", "checkpoint-best/model.safetensors", "photos/1.png"}
    write(tmp_path, *mine, "checkpoint-5/model.safetensors", "reconstructions/step-5.png", "README.md", "results.json")
    begin_run(arguments(tmp_path), SETTINGS, ("reconstructions",))
    assert len(names(tmp_path)) == 8
    restarted = arguments(tmp_path, restart=True)
    assert prepare_output_dir(restarted) is None
    assert len(names(tmp_path)) == 8
    begin_run(restarted, {"seed": 1}, ("reconstructions",))
    assert names(tmp_path) == mine | {"run.json"}
    assert settings_before(tmp_path) == {"seed": 1}


def test_a_restart_where_no_run_was_leaves_files_of_its_names(tmp_path):
    write(tmp_path, "README.md", "results.json", "reconstructions/mine.png")
    before = names(tmp_path)
    begin_run(arguments(tmp_path, restart=True), SETTINGS, ("reconstructions",))
    assert names(tmp_path) == before | {"run.json"}


def test_another_run_is_refused(tmp_path):
    begin_run(arguments(tmp_path), SETTINGS)
    check_same_run(SETTINGS, tmp_path, resuming=True)
    # An older version wrote fewer keys.
    check_same_run(SETTINGS | {"new": 1}, tmp_path, resuming=True)
    other = SETTINGS | {"encoder": {"depth": 3, "width": 8}}
    with pytest.raises(ValueError, match=r"another encoder: \{'depth': 2\} before, \{'depth': 3\} now.*--restart"):
        check_same_run(other, tmp_path, resuming=True)
    check_same_run(other, tmp_path, resuming=False)
    assert json.loads((tmp_path / "run.json").read_text()) == SETTINGS


@pytest.fixture
def checkpoint(tmp_path):
    """A run that has a checkpoint, which was started with the default options of training."""
    begin_run(arguments(tmp_path), settle_settings(arguments(tmp_path), SETTINGS, None))
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"optim": "sgd"},
        {"weight_decay": 0.5},
        {"adam_beta2": 0.95},
        {"data_seed": 3},
        {"lr_scheduler_type": "constant"},
        {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        {"warmup_steps": 7},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_whose_effects_are_in_the_checkpoint_must_stay(checkpoint, options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"another {name}: .* before, .* now"):
        settle_settings(arguments(checkpoint.parent, **options), SETTINGS, checkpoint)
    settle_settings(arguments(checkpoint.parent / "other", **options), SETTINGS, None)


def test_a_resumed_run_keeps_its_learning_rate_and_says_what_else_changed(checkpoint, caplog):
    again = arguments(checkpoint.parent, learning_rate=1.0, per_device_train_batch_size=16, max_grad_norm=1.0)
    settings = settle_settings(again, SETTINGS, checkpoint)
    before = arguments(checkpoint.parent).learning_rate
    assert again.learning_rate == settings["learning_rate"] == before
    assert settings["images_per_step"] == 16
    for text in ("keeps its learning rate", "another images_per_step: 8 before, 16 now", "another max_grad_norm"):
        assert text in caplog.text


def test_a_checkpoint_of_another_folder_is_compared_with_the_run_there(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="another seed: 0 before, 1 now"):
        settle_settings(arguments(tmp_path / "new"), SETTINGS | {"seed": 1}, checkpoint)


def test_a_second_run_in_a_folder_is_refused_until_the_first_ends(tmp_path):
    code = f"from pathlib import Path; from hf_simmim.training.run_lock import *; lock_run(Path({str(tmp_path)!r}))"
    try:
        lock_run(tmp_path)
        # The same process, such as a notebook that runs a cell again.
        lock_run(tmp_path)
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "Another run writes to" in second.stderr
    finally:
        unlock_runs()
    # A process that ends without unlocking leaves only a file.
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    assert (tmp_path / LOCK_FILE).exists()
    lock_run(tmp_path)
    unlock_runs()
    assert not (tmp_path / LOCK_FILE).exists()
