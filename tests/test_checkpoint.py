"""Which checkpoint a run goes on from."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hf_simmim.training.run_folder import newest_whole_checkpoint


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
