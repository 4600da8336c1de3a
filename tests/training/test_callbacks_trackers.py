"""Pictures of a run reach the trackers, and no tracker stops it."""

import io
import json
import os
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_lines import command_line
from paths import ROOT
from PIL import Image
from tiny import VIT_SIZES
from transformers.integrations import TensorBoardCallback

from hf_simmim.cli import pretrain

RUN = """
import sys
from hf_simmim.cli import pretrain
trainer, _ = pretrain.build_trainer(*pretrain.COMMAND.parse(sys.argv[1:]))
trainer.train()
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twenty-four pictures of noise."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for index in range(24):
        Image.fromarray(generator.integers(0, 255, (36, 40, 3), np.uint8)).save(folder / f"{index:02d}.png")
    return folder


def options(photos, output_dir, **kwargs) -> list[str]:
    """A command line for two epochs of two steps, each with an evaluation."""
    settings = {
        "train_dir": photos,
        "output_dir": output_dir,
        "encoder": json.dumps(VIT_SIZES | {"model_type": "vit"}),
        "mask_patch_size": 8,
        "per_device_train_batch_size": 8,
        "holdout": 8 / 24,
        "num_train_epochs": 2,
        "dataloader_num_workers": 0,
        "save_strategy": "no",
        "use_cpu": True,
    } | kwargs
    return command_line(settings)


def wandb_history(path: Path) -> list[dict]:
    """What was logged, of a file of an offline run: records in blocks, as LevelDB writes them."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, message, history = path.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        if place % 2**15 > 2**15 - 7:
            place += 2**15 - place % 2**15
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        message += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(message)
            items = record.history.item
            history.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
            message = b""
    return [entry for entry in history if entry]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_logs_its_pictures_once_to_each_tracker(photos, tmp_path, processes):
    for name in ("tensorboard", "trackio", "wandb"):
        pytest.importorskip(name)
    (tmp_path / "run.py").write_text(RUN)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "TENSORBOARD_LOGGING_DIR": str(tmp_path / "tensorboard"),
    }
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    batch_size = 8 // processes
    command += [str(tmp_path / "run.py"), *options(photos, tmp_path / "run", per_device_train_batch_size=batch_size)]
    command += ["--report_to", "tensorboard", "trackio", "wandb"]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    drawn = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "run" / "reconstructions").glob("step-*.png"))]
    assert len(drawn) == 2

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    images = EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0}).Reload().Images("reconstruction")
    assert [image.step for image in images] == [2, 4]
    found = {"TensorBoard": [Image.open(io.BytesIO(image.encoded_image_string)) for image in images]}

    with sqlite3.connect(next((tmp_path / "trackio").glob("*.db"))) as database:
        entries = [json.loads(row[0]) for row in database.execute("select metrics from metrics order by id")]
    entries = [entry for entry in entries if "reconstruction" in entry]
    assert [entry["train/global_step"] for entry in entries] == [2, 4]
    media = tmp_path / "trackio" / "media"
    found["trackio"] = [Image.open(media / entry["reconstruction"]["file_path"]) for entry in entries]

    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    entries = [entry for entry in wandb_history(path) if "reconstruction/path" in entry]
    assert [entry["train/global_step"] for entry in entries] == [2, 4]
    found["wandb"] = [Image.open(path.parent / "files" / entry["reconstruction/path"]) for entry in entries]
    for tracker, pictures in found.items():
        for picture, expected in zip(pictures, drawn, strict=True):
            assert np.array_equal(np.asarray(picture.convert("RGB")), expected), tracker


def test_a_tracker_that_fails_is_warned_of_once_and_stops_nothing(photos, tmp_path, caplog):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")

    class Full(tensorboard.SummaryWriter):
        """A disk that takes numbers and no pictures."""

        def add_image(self, *args, **kwargs):
            raise OSError("No space left on device")

    class AnotherCallback(TensorBoardCallback):
        """One that works, behind the one that does not."""

    arguments = pretrain.COMMAND.parse(options(photos, tmp_path / "run", report_to="none"))
    trainer, _ = pretrain.build_trainer(*arguments)
    trainer.add_callback(TensorBoardCallback(Full(tmp_path / "full")))
    trainer.add_callback(AnotherCallback(tensorboard.SummaryWriter(tmp_path / "works")))
    trainer.train()
    assert trainer.state.global_step == 4
    warnings = [record.getMessage() for record in caplog.records if "TensorBoard" in record.getMessage()]
    assert len(warnings) == 1
    assert "of step 2 (OSError: No space left on device)" in warnings[0]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    works = EventAccumulator(str(tmp_path / "works"), {"images": 0}).Reload()
    assert [image.step for image in works.Images("reconstruction")] == [2, 4]
