"""Pre-training on windows of large images and embedding them, run as a user runs it."""

# Fixtures of a pre-training are arguments here.
# ruff: noqa: F401, F811
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet
import pytest
import tifffile
import torch
from cards import table
from command_lines import command_line
from paths import ROOT
from PIL import Image
from pretraining import options, read_log, run_mim
from safetensors.torch import load_file

from hf_simmim.cli import embed
from hf_simmim.cli.recipes import CommandError
from hf_simmim.data.masked_images import MaskedImageDataset
from hf_simmim.evaluation.features import principal_components
from hf_simmim.training.trainers import SimMIMTrainer


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """A large image: colored tissue, on the left of one texture and on the right of another, on white."""
    folder = tmp_path_factory.mktemp("slides")
    array = np.full((512, 640, 3), 245, np.uint8)
    y, x = np.mgrid[64:448, 64:576]
    texture = np.where(x < 320, (x // 4 + y // 4) % 2 * 90, (y // 16) % 2 * 120)
    array[64:448, 64:576] = np.stack([210 - texture, 90 + texture // 3, 170 - texture // 2], axis=-1)
    tifffile.imwrite(folder / "slide.tif", array, photometric="rgb", tile=(64, 64), compression="zlib", metadata=None)
    return folder


WINDOWS = {"image_window": 48, "windows_per_image": 16, "min_tissue": 0.9, "holdout": 0.1}


def test_windows_train_and_resume_alike(run_mim, slides, tmp_path, monkeypatch, capsys):
    settings = WINDOWS | {"save_steps": 1, "save_strategy": "steps"}
    run_mim.COMMAND.main(options(slides, tmp_path / "whole", **settings))
    printed = capsys.readouterr().out
    windows = "16 windows of 48 x 48 px, 16 of each of 1 large image"
    assert f"{windows} for training" in printed
    rows = table((tmp_path / "whole" / "README.md").read_text(encoding="utf-8"))
    assert rows["training images"] == windows
    assert rows["validation images"].endswith("(lower rows of the same images, 0.1 of their windows)")
    assert "48 x 48 px; 3 channels; 8 bits" in printed
    training_step, calls = SimMIMTrainer.training_step, []

    def dying_step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SimMIMTrainer, "training_step", dying_step)
        with pytest.raises(KeyboardInterrupt):
            run_mim.COMMAND.main(options(slides, tmp_path / "killed", **settings))
    with pytest.raises(SystemExit, match="another windows"):
        run_mim.COMMAND.main(options(slides, tmp_path / "killed", **settings | {"min_tissue": 0.5}))
    run_mim.COMMAND.main(options(slides, tmp_path / "killed", **settings, dataloader_num_workers=1))
    assert "resuming from checkpoint-3" in capsys.readouterr().out
    expected, resumed = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "killed"))
    for name in expected:
        assert torch.equal(expected[name], resumed[name]), name
    losses = [[entry["loss"] for entry in read_log(tmp_path / run) if "loss" in entry] for run in ("whole", "killed")]
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]


RECORDER = """
import json, os, sys
from hf_simmim.cli import pretrain
from hf_simmim.data import masked_images
read = masked_images.MaskedImageDataset.__getitem__
def recording(self, key):
    sample = read(self, key)
    with open(os.environ["SEEN"] + os.environ.get("RANK", "0"), "a") as file:
        file.write(json.dumps([self.crop_scale is not None, key, sample["name"]]) + "\\n")
    return sample
masked_images.MaskedImageDataset.__getitem__ = recording
pretrain.COMMAND.main()
"""


def test_two_processes_see_every_window_once(run_mim, slides, tmp_path, monkeypatch):
    settings = WINDOWS | {"windows_per_image": 40, "compared_images": 0, "holdout": 0.2, "report_to": "none"}
    read, of_one = MaskedImageDataset.__getitem__, []

    def recording(self, key):
        sample = read(self, key)
        of_one.append([self.crop_scale is not None, key, sample["name"]])
        return sample

    with monkeypatch.context() as patch:
        patch.setattr(MaskedImageDataset, "__getitem__", recording)
        run_mim.COMMAND.main(options(slides, tmp_path / "one", **settings))

    (tmp_path / "recorder.py").write_text(RECORDER)
    sizes = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 3}
    # With --use_cpu two processes talk through gloo.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*launch, str(tmp_path / "recorder.py"), *options(slides, tmp_path / "two", **settings, **sizes)],
        env=os.environ | {"SEEN": str(tmp_path / "seen"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    parts = [[json.loads(line) for line in (tmp_path / f"seen{rank}").read_text().splitlines()] for rank in range(2)]
    assert [sum(is_training for is_training, *_ in part) for part in parts] == [40, 40]
    trained, evaluated = [], []
    for found in (of_one, parts[0] + parts[1]):
        trained.append(sorted((key, name) for is_training, key, name in found if is_training))
        evaluated.append({name for is_training, _, name in found if not is_training})
    # 40 windows, two epochs, each once an epoch, at places that do not depend on who reads them.
    assert [key for key, _ in trained[1]] == list(range(80))
    assert trained[1] == trained[0]
    assert len({name for _, name in trained[1]}) > 40
    assert evaluated[1] == evaluated[0]
    assert len(evaluated[1]) > 1
    assert not evaluated[1] & {name for _, name in trained[1]}


def test_windows_are_embedded_and_drawn(run_mim, slides, tmp_path, capsys):
    run_mim.COMMAND.main(options(slides, tmp_path / "run", **WINDOWS | {"max_steps": 1}))
    settings = {"checkpoint": tmp_path / "run", "image_dir": slides, "output_dir": tmp_path / "out", "device": "cpu"}
    settings |= {"num_workers": 0, "map": "none", "num_queries": 0, "image_window": 64}
    embed.COMMAND.main(command_line(settings))
    features = pyarrow.parquet.read_table(tmp_path / "out" / "features.parquet")
    assert features.column_names == ["name", "path", "level", "top", "left", "height", "width", "features"]
    assert features.num_rows == 80
    assert set(features["path"].to_pylist()) == {str(slides / "slide.tif")}
    assert "features of 80 windows" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "heatmaps" / "slide.png") as drawn:
        assert drawn.width > 800
        assert len(set(drawn.convert("RGB").resize((200, 80)).getdata())) > 50
    # Windows of the same texture are alike on the first component.
    values = principal_components(tmp_path / "out" / "features.parquet", 1)[:, 0]
    assert values.std() == pytest.approx(1)
    lefts = np.array(features["left"].to_pylist())
    tops = np.array(features["top"].to_pylist())
    inner = (tops > 0) & (tops < 448) & (lefts > 0) & (lefts < 512)
    groups = values[inner & (lefts < 256)], values[inner & (lefts >= 320)]
    assert abs(groups[0].mean() - groups[1].mean()) > 2 * (groups[0].std() + groups[1].std())
    # Background is left out, and so is a heat map that is not wanted.
    result = embed.COMMAND(**settings | {"min_tissue": 0.9, "heatmap": "none", "output_dir": str(tmp_path / "tissue")})
    assert len(result.names) == 48
    assert not (tmp_path / "tissue" / "heatmaps").exists()
    result = embed.COMMAND(**settings | {"heatmap": "rgb", "output_dir": str(tmp_path / "rgb")})
    assert [picture.name for picture in result.heat_maps] == ["slide.png"]


def test_missing_pixels_are_those_of_the_checkpoint(run_mim, tmp_path, slides):
    """Windows are chosen by them before any image is read."""
    settings = {"max_steps": 1, "nodata": 245, **WINDOWS, "min_tissue": 0}
    run_mim.COMMAND.main(options(slides, tmp_path / "first", **settings))
    arguments = run_mim.COMMAND.parse(options(slides, tmp_path, **WINDOWS | {"min_tissue": 0}))[0]
    assert arguments.known_nodata(None) is None
    assert arguments.known_nodata(str(tmp_path / "first")) == 245
    train, validation = run_mim.load_splits(arguments, str(tmp_path / "second"), str(tmp_path / "first"))
    assert train.settings.nodata == 245
    # Those of a row that are tissue for more than a half.
    assert len(validation) == 11


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_level": 1}, "no effect without --image_window"),
        ({"min_tissue": 0.5}, "no effect without --image_window"),
        ({"image_window": "1 2 3"}, "a side, or height and width"),
        ({"image_window": 48, "min_valid": 3}, "min_valid"),
        ({"image_window": 48, "streaming": True}, "streaming"),
    ],
)
def test_options_without_effect_are_refused(run_mim, slides, tmp_path, settings, message):
    arguments = options(slides, tmp_path, **{name: value for name, value in settings.items() if name != "image_window"})
    if "image_window" in settings:
        arguments += ["--image_window", *str(settings["image_window"]).split()]
    with pytest.raises(SystemExit, match=message):
        run_mim.COMMAND.main(arguments)


def test_the_other_option_of_that_name_is_told_apart(run_mim, tmp_path):
    """Swin's attention has windows, too."""
    with pytest.raises(SystemExit, match="windows_per_image=8 has no effect without --image_window.*Swin's attention"):
        run_mim.COMMAND.main(["--train_dir", str(tmp_path), "--window_size", "512", "--windows_per_image", "8"])
