"""A pre-training of seconds, for tests of the command and of what happens while it runs."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from command_lines import command_line
from PIL import Image

from hf_simmim.cli import pretrain

# For python, torchrun and accelerate launch.
PROGRAM = ["-m", "hf_simmim", "pretrain"]

ENCODER = {
    "model_type": "swin",
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [1, 2],
    "num_heads": [1, 2],
    "window_size": 4,
    "drop_path_rate": 0.1,
}


@pytest.fixture(scope="module")
def run_mim() -> ModuleType:
    """The command as a module."""
    return pretrain


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty-eight pictures of colored stripes in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for index in range(48):
        color, height, width = generator.integers(0, 255, 3), 40 + index % 7, 40 + index % 5
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:, :: 1 + index % 4] = color
        path = folder / f"day{index % 2}" / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def options(photos: Path, output_dir: Path, **kwargs: object) -> list[str]:
    """A command line for a run of seconds."""
    settings = {
        "train_dir": photos,
        "output_dir": output_dir,
        "encoder": json.dumps(ENCODER),
        "mask_patch_size": 8,
        # A checkpoint has its own.
        "target": None if "checkpoint" in kwargs else "rgb",
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "holdout": 8 / 48,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "dataloader_num_workers": 0,
        "use_cpu": True,
    } | kwargs
    return command_line(settings)


def read_log(output_dir: Path) -> list[dict]:
    """What a run logged."""
    return json.loads((Path(output_dir) / "trainer_state.json").read_text())["log_history"]
