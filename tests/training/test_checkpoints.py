"""A checkpoint counts only if every file of it is there and unchanged; otherwise an older one, or a new start."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hf_simmim.training.arguments import SimMIMTrainingArguments
from hf_simmim.training.run_folder import prepare_output_dir
from hf_simmim.training.saving.checkpoints import (
    MANIFEST,
    STAGING,
    TrainingStoppedError,
    check_deepspeed,
    finish_checkpoint,
    newest_whole_checkpoint,
)


def arguments(folder, **kwargs) -> SimMIMTrainingArguments:
    return SimMIMTrainingArguments(output_dir=str(folder), use_cpu=True, **kwargs)


def write_checkpoint(folder, step: int) -> None:
    """Files as Trainer writes them, without a manifest."""
    folder.mkdir(parents=True)
    for name in ("trainer_state.json", "config.json"):
        (folder / name).write_text(json.dumps({"step": step}))
    save_file({"weight": torch.ones(100)}, folder / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"):
        torch.save({"step": step}, folder / name)


@pytest.fixture
def run(tmp_path):
    """Three complete checkpoints."""
    for step in (5, 20, 100):
        write_checkpoint(tmp_path / STAGING / f"checkpoint-{step}", step)
        finish_checkpoint(tmp_path / STAGING / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    return tmp_path


def damage(path, kind: str) -> None:
    content = path.read_bytes()
    path.unlink()
    half = len(content) // 2
    damaged = {"cut off": content[:half], "half zeros": content[:half] + bytes(len(content) - half), "empty": b""}
    if kind != "missing":
        path.write_bytes(damaged[kind])


def test_newest_is_by_number(run):
    assert newest_whole_checkpoint(run).name == "checkpoint-100"


@pytest.mark.parametrize("kind", ["missing", "cut off", "half zeros", "empty"])
@pytest.mark.parametrize(
    "name", ["trainer_state.json", "config.json", "model.safetensors", "optimizer.pt", "rng_state_1.pth", MANIFEST]
)
def test_a_damaged_file_is_named_and_the_older_checkpoint_taken(run, name, kind, caplog):
    damage(run / "checkpoint-100" / name, kind)
    assert newest_whole_checkpoint(run).name == "checkpoint-20"
    assert "checkpoint-100 is skipped" in caplog.text
    assert name in caplog.text


def test_only_broken_checkpoints_mean_a_new_start_in_a_clean_folder(run, caplog):
    for folder in run.glob("checkpoint-*"):
        damage(folder / "optimizer.pt", "cut off")
    write_checkpoint(run / "checkpoint-7", 7)
    damage(run / "checkpoint-7" / "optimizer.pt", "missing")
    (run / STAGING / "checkpoint-9").mkdir(parents=True)
    assert prepare_output_dir(arguments(run)) is None
    assert "starts from the beginning" in caplog.text
    assert not list(run.glob("checkpoint-*"))
    assert not (run / STAGING).exists()


def test_a_checkpoint_of_an_earlier_version_is_neither_taken_nor_deleted_unasked(tmp_path):
    folder = tmp_path / "checkpoint-7"
    write_checkpoint(folder, 7)
    with pytest.raises(ValueError, match=f"checkpoint-7 has no {MANIFEST}.*--resume_from_checkpoint.*--restart"):
        prepare_output_dir(arguments(tmp_path))
    assert folder.is_dir()
    assert prepare_output_dir(arguments(tmp_path / "new", resume_from_checkpoint=str(folder))) == folder


@pytest.mark.parametrize(
    "files",
    [
        ["pytorch_model_fsdp.bin", "optimizer.bin", "scheduler.pt"],
        ["pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata", "scheduler.pt"],
        ["global_step7/zero_pp_rank_0.pt", "latest"],
    ],
    ids=["FSDP with full state", "FSDP with sharded state", "DeepSpeed"],
)
def test_layouts_of_other_frameworks(tmp_path, files):
    staged = tmp_path / STAGING / "checkpoint-7"
    for name in files:
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({}, tmp_path / "any.pt")
        (tmp_path / "any.pt").rename(staged / name)
    finish_checkpoint(staged, tmp_path / "checkpoint-7")
    assert newest_whole_checkpoint(tmp_path) == tmp_path / "checkpoint-7"
    (tmp_path / "checkpoint-7" / files[0]).unlink()
    assert newest_whole_checkpoint(tmp_path) is None


def test_deepspeed_and_other_engines_refuse_each_others_checkpoints(tmp_path):
    """The optimizer would begin anew without a word."""
    own, other = tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"
    write_checkpoint(other, 2)
    (own / "global_step1").mkdir(parents=True)
    (own / "latest").write_text("global_step1")
    for rank in range(2):
        (own / "global_step1" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    check_deepspeed(own, True, 2)
    check_deepspeed(other, False, 4)
    with pytest.raises(TrainingStoppedError, match="was saved with DeepSpeed.*--checkpoint"):
        check_deepspeed(own, False, 2)
    with pytest.raises(TrainingStoppedError, match="was saved without DeepSpeed"):
        check_deepspeed(other, True, 2)
    with pytest.raises(TrainingStoppedError, match="by 2 processes, and this run has 4"):
        check_deepspeed(own, True, 4)


def test_no_checkpoint(tmp_path):
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_whole_checkpoint(tmp_path) is None
    assert newest_whole_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("name", ["checkpoint-20", ".", "True"])
def test_a_named_checkpoint_is_checked_like_the_automatic_one(run, name):
    damage(run / "checkpoint-100" / "optimizer.pt", "half zeros")
    path = name if name == "True" else str(run / name)
    output_dir = run if name == "True" else run / "other"
    assert prepare_output_dir(arguments(output_dir, resume_from_checkpoint=path)) == run / "checkpoint-20"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("checkpoint-100", "optimizer.pt is damaged"),
        ("checkpoint-9", "is not a folder"),
        ("photos", "there is no checkpoint in"),
    ],
)
def test_a_named_checkpoint_that_is_none_is_refused(run, name, message):
    damage(run / "checkpoint-100" / "optimizer.pt", "half zeros")
    (run / "photos").mkdir()
    with pytest.raises(ValueError, match=message):
        prepare_output_dir(arguments(run / "other", resume_from_checkpoint=str(run / name)))
