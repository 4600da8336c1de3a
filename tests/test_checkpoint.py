"""Which checkpoint a run goes on from."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hf_simmim.checkpoint import newest_whole_checkpoint


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
