"""What a run finds in its folder, writes down, and deletes; which checkpoint it goes on from."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hf_simmim.training.arguments import SimMIMTrainingArguments
from hf_simmim.training.run_folder import (
    begin_run,
    check_same_run,
    newest_whole_checkpoint,
    prepare_output_dir,
    settings_before,
)

SETTINGS = {"encoder": {"depth": 2, "width": 8}, "seed": 0}


def arguments(folder, **kwargs) -> SimMIMTrainingArguments:
    return SimMIMTrainingArguments(output_dir=str(folder), use_cpu=True, **kwargs)


def write(folder, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def names(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


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
    with pytest.raises(ValueError, match=r"another encoder: \{'depth': 2\} then, \{'depth': 3\} now.*--restart"):
        check_same_run(other, tmp_path, resuming=True)
    check_same_run(other, tmp_path, resuming=False)
    assert json.loads((tmp_path / "run.json").read_text()) == SETTINGS


@pytest.fixture
def run(tmp_path):
    """Three whole checkpoints as Trainer writes them."""
    for step in (5, 20, 100):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in ("trainer_state.json", "config.json"):
            (folder / name).write_text(json.dumps({"step": step}))
        save_file({"weight": torch.ones(100)}, folder / "model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt"):
            torch.save({"step": step}, folder / name)
    return tmp_path


def test_newest_is_by_number(run):
    assert newest_whole_checkpoint(run).name == "checkpoint-100"


@pytest.mark.parametrize(
    "name", ["trainer_state.json", "config.json", "model.safetensors", "optimizer.pt", "scheduler.pt"]
)
@pytest.mark.parametrize("flaw", ["missing", "cut off"])
def test_checkpoints_that_are_not_whole_are_passed_over(run, name, flaw):
    path = run / "checkpoint-100" / name
    content = path.read_bytes()
    path.unlink()
    if flaw == "cut off":
        path.write_bytes(content[: len(content) // 2])
    assert newest_whole_checkpoint(run).name == "checkpoint-20"


def test_no_checkpoint(tmp_path):
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_whole_checkpoint(tmp_path) is None
    assert newest_whole_checkpoint(tmp_path / "nowhere") is None


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
    folder = tmp_path / "checkpoint-7"
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({}, tmp_path / "any.pt")
        (tmp_path / "any.pt").rename(folder / name)
    with pytest.raises(ValueError, match=r"None of the checkpoints .*checkpoint-7.*--restart"):
        newest_whole_checkpoint(tmp_path)
    (folder / "trainer_state.json").write_text("{}")
    assert newest_whole_checkpoint(tmp_path) == folder
    (folder / files[1]).unlink()
    with pytest.raises(ValueError, match="it lacks"):
        newest_whole_checkpoint(tmp_path)
