"""Training on a folder of photographs as users have them: mixed sizes, modes, formats and orientations."""

import json
from pathlib import Path

import pytest
from photos import write_photos
from pretraining import read_log, run_mim  # noqa: F401 (a fixture)


@pytest.mark.slow
def test_swin_tiny_learns_from_mixed_photos(run_mim, tmp_path):  # noqa: F811
    """Fifty steps of the real geometry: Swin-T, 192 px, mask patches of 32 px."""
    write_photos(tmp_path / "photos", 300)
    arguments = {
        "train_dir": tmp_path / "photos",
        "output_dir": tmp_path / "run",
        "encoder": "swin-tiny",
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "max_steps": 50,
        "max_eval_samples": 8,
        "learning_rate": 5e-4,
        "logging_steps": 5,
        "use_cpu": True,
    }
    run_mim.COMMAND.main([part for key, value in arguments.items() for part in (f"--{key}", str(value))])
    losses = [entry["loss"] for entry in read_log(tmp_path / "run") if "loss" in entry]
    assert len(losses) == 10
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert not Path(tmp_path / "run" / "unreadable_images.txt").exists()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["encoder_config"]["embed_dim"] == 96
