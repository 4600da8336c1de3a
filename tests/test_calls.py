"""The commands as Python calls: what they return, twice in one process, and what they leave of it."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import PartialState
from paths import SUPPORT
from PIL import Image
from safetensors.torch import load_file
from tiny import VIT_SIZES
from transformers.utils import logging

import hf_simmim
from hf_simmim.cli import COMMANDS

HERE = Path(__file__).parent
ENCODER = {"model_type": "vit", "image_size": 32, "patch_size": 8, **VIT_SIZES}
QUICK = {"use_cpu": True, "dataloader_num_workers": 0, "disable_tqdm": True, "save_strategy": "no"}
SHORT = {"max_steps": 3, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, **QUICK}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Forty pictures of two classes."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for index in range(40):
        path = folder / ("dark", "bright")[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = generator.integers(0, 120, (32, 32, 3)) + 120 * (index % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def pretrain(pictures, output_dir, **options):
    settings = {"encoder": ENCODER, "mask_patch_size": 8, "holdout": 0.2, **SHORT}
    return hf_simmim.pretrain(train_dir=pictures, output_dir=output_dir, **settings | options)


@pytest.fixture(scope="module")
def checkpoint(pictures, tmp_path_factory):
    return pretrain(pictures, tmp_path_factory.mktemp("pretrained")).output_dir


def states():
    """What a caller has, and calls must not change."""
    return {
        "python": random.getstate(),
        "numpy": [str(part) for part in np.random.get_state()],  # noqa: NPY002
        "torch": torch.get_rng_state().tolist(),
        "environment": dict(os.environ),
        "verbosity": logging.get_verbosity(),
        "bars": (logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()),
        "accelerate": bool(PartialState._shared_state),
    }


def test_a_call_is_repeatable_and_leaves_nothing_behind(pictures, tmp_path):
    before = states()
    first = pretrain(pictures, tmp_path / "first", max_steps=3)
    random.random()
    # Another seed, another target and bfloat16 in between.
    pretrain(pictures, tmp_path / "other", seed=5, target="rgb", loss="l2", bf16=True)
    second = pretrain(pictures, tmp_path / "second", max_steps=3)
    random.setstate(before["python"])
    assert states() == before
    assert first.metrics["eval_gradient_error"] == second.metrics["eval_gradient_error"]
    weights = [load_file(result.output_dir / "model.safetensors") for result in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert [entry["step"] for entry in first.log if "eval_loss" in entry] == [3]
    assert Image.open(first.pictures["reconstruction"]).size[0] > 100
    batch = first.processor(Image.open(next(pictures.rglob("*.png"))), do_mask=True, seed=0, return_tensors="pt")
    assert first.model(**batch).loss.isfinite()


def test_what_the_calls_return(pictures, checkpoint, tmp_path):
    few = {"labels_per_class": 4, "max_steps": 2, "per_device_train_batch_size": 4, **QUICK}
    tuned = hf_simmim.finetune(checkpoint=checkpoint, train_dir=pictures, output_dir=tmp_path / "tuned", **few)
    assert tuned.model.config.id2label == {0: "bright", 1: "dark"}
    assert json.loads((tmp_path / "tuned" / "results.json").read_text()) == {
        "summary": tuned.summary,
        "warnings": tuned.warnings,
        "runs": tuned.runs,
    }
    assert tuned.pictures["confusion"].exists()

    probed = hf_simmim.probe(
        checkpoint=checkpoint, train_dir=pictures, output_dir=tmp_path / "probe", k=3, dataloader_num_workers=0
    )
    assert json.loads((tmp_path / "probe" / "results.json").read_text()) == probed.results
    assert 0 <= probed.results["results"][0]["linear"]["accuracy"] <= 1

    embedded = hf_simmim.embed(
        checkpoint=checkpoint, image_dir=pictures, output_dir=tmp_path / "features", num_workers=0, map="pca"
    )
    assert embedded.features().shape == (len(embedded.names), ENCODER["hidden_size"])
    assert set(embedded.pictures) == {"neighbours", "map"}

    drawn = hf_simmim.reconstruct(
        checkpoint=[checkpoint], images=[pictures], num_images=4, mask_ratio=[0.3, 0.7], output=tmp_path / "drawn.png"
    )
    (reconstruction,) = drawn.reconstructions.values()
    assert len(reconstruction.prediction) == len(drawn.names) == 8
    assert drawn.gradient_error[str(checkpoint)] > 0
    assert drawn.path.exists()

    compared = hf_simmim.compare(
        checkpoint=checkpoint,
        train_dir=pictures,
        labels_per_class=[4],
        seeds=[0, 1],
        finetune_options={"max_steps": 2, "per_device_train_batch_size": 4, **QUICK},
        output_dir=tmp_path / "comparison",
    )
    assert set(compared.scores[8]) == {"pre-trained", "from scratch"}
    assert compared.conclusion in (tmp_path / "comparison" / "comparison.md").read_text()
    assert compared.pictures["comparison"].exists()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"trian_dir": "x"}, TypeError, r"pretrain\(\) has no option 'trian_dir'. Did you mean train_dir\?"),
        ({"train_dir": "nowhere"}, ValueError, "nowhere"),
        ({"mask_ratio": 1.5}, ValueError, "1.5"),
        ({"recipe": "dem"}, ValueError, "there is no recipe 'dem'"),
        ({"encoder": "swin-tinny"}, ValueError, "Did you mean swin-tiny"),
    ],
)
def test_mistakes_are_errors_of_python(pictures, tmp_path, options, kind, message):
    """And none of them ends the process, as in a shell."""
    with pytest.raises(kind, match=message):
        hf_simmim.pretrain(**{"train_dir": pictures, "output_dir": tmp_path, **SHORT} | options)


LAUNCHING = """
import json, sys
import test_calls
from accelerate import debug_launcher

def main(pictures, output_dir):
    test_calls.pretrain(pictures, output_dir, per_device_train_batch_size=4)

one = test_calls.pretrain(sys.argv[1], sys.argv[2] + "/one")
debug_launcher(main, (sys.argv[1], sys.argv[2] + "/two"), num_processes=2)
print("LOSS", one.metrics["eval_loss"])
"""


def test_calls_work_under_a_launcher_of_accelerate(pictures, tmp_path):
    """Two processes, after a call in this one: as `notebook_launcher` starts them.

    With one thread: forks of a process hang where it has computed with several.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (SUPPORT, HERE)))}
    command = [sys.executable, "-c", LAUNCHING, str(pictures), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("LOSS"))
    log = json.loads((tmp_path / "two" / "trainer_state.json").read_text())["log_history"]
    (two,) = (entry["eval_loss"] for entry in log if "eval_loss" in entry)
    assert two == pytest.approx(float(line.split()[1]), rel=1e-4)


def test_every_call_is_a_command():
    calls = {name for name in hf_simmim.__all__ if name in COMMANDS}
    assert calls == COMMANDS.keys() - {"app", "export", "convert"}
