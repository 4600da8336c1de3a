"""Probes during pre-training: what is logged and drawn, and that the training is the same as without."""

# Fixtures of a pre-training are arguments here.
# ruff: noqa: F401, F811
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image
from pretraining import PROGRAM, options, photos, read_log
from safetensors.torch import load_file
from transformers import AutoModel

from hf_simmim.cli import pretrain
from hf_simmim.cli.options.probes import load_probe
from hf_simmim.data.labeled.images import LabeledImageDataset, load_labeled_images
from hf_simmim.data.labeled.splits import holdout
from hf_simmim.data.sampling import evenly_spaced
from hf_simmim.evaluation.intervals import wilson_interval
from hf_simmim.evaluation.probing import extract_features, knn, linear_probe
from hf_simmim.training.callbacks import ProbeCallback

NORMALIZATION = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """Forty pictures of two classes, dark and bright, of which some are alike."""
    folder = tmp_path_factory.mktemp("labeled")
    generator = np.random.default_rng(0)
    for index in range(40):
        name = ("dark", "bright")[index % 2]
        pixels = generator.integers(0, 180, (32, 32, 3), dtype=np.uint8) + np.uint8(50 * (index % 2))
        (folder / name).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def runs(photos, labeled, tmp_path_factory):
    """Folders of a run without and of one with the probe."""
    folder = tmp_path_factory.mktemp("runs")
    encoder = json.dumps(json.loads(options(photos, folder)[5]) | {"drop_path_rate": 0.3})
    for name, probe in (("without", None), ("with", labeled)):
        pretrain.COMMAND.main(
            options(
                *(photos, folder / name),
                **{"encoder": encoder, "probe_dir": probe, "dataloader_num_workers": 1, "probe_layer": "last"},
                **{"probe_pooling": "mean"},
            )
        )
    return folder


def test_weights_are_the_same_as_without(runs):
    without, with_probe = (load_file(runs / name / "model.safetensors") for name in ("without", "with"))
    assert without.keys() == with_probe.keys()
    for key, value in without.items():
        assert torch.equal(value, with_probe[key]), key
    losses = [[entry["loss"] for entry in read_log(runs / name) if "loss" in entry] for name in ("without", "with")]
    assert losses[0] == losses[1]


def test_accuracies_are_logged_and_drawn(runs):
    log = [entry for entry in read_log(runs / "with") if "probe_knn_accuracy" in entry]
    assert [entry["step"] for entry in log] == [0, 5, 10]
    assert all(0 <= entry["probe_linear_accuracy"] <= 1 for entry in log)
    for entry in log:
        for name in ("knn", "linear"):
            low, high = wilson_interval(10 * entry[f"probe_{name}_accuracy"], 10)
            assert (entry[f"probe_{name}_low"], entry[f"probe_{name}_high"]) == (low, high)
    assert Image.open(runs / "with" / "probe.png").size == (960, 540)
    assert not (runs / "without" / "probe.png").exists()


def test_the_last_accuracies_are_those_of_the_saved_model(runs, labeled):
    images = load_labeled_images(labeled)
    model = AutoModel.from_pretrained(runs / "with")
    features, labels = [], []
    for part in holdout(images.labels, 0.25, seed=0):
        dataset = LabeledImageDataset(images.select(part).rows, (32, 32), 3, **NORMALIZATION, crop_ratio=1)
        samples = [dataset[index] for index in range(len(dataset))]
        features.append(extract_features(model, [torch.stack([sample["pixel_values"] for sample in samples])]))
        labels.append([sample["labels"] for sample in samples])
    data = (features[0], labels[0], features[1], labels[1], 2)
    last = [entry for entry in read_log(runs / "with") if "probe_knn_accuracy" in entry][-1]
    assert last["probe_knn_accuracy"] == knn(*data).accuracy
    assert last["probe_linear_accuracy"] == linear_probe(*data, penalties=[1e-3]).accuracy


def test_the_best_model_can_be_that_of_the_probe(photos, labeled, tmp_path, capsys):
    """Whose layer is chosen at every evaluation, if none is named."""
    settings = {
        "probe_dir": labeled,
        "metric_for_best_model": "probe_knn_accuracy",
        "greater_is_better": True,
        "load_best_model_at_end": True,
    }
    pretrain.COMMAND.main(options(photos, tmp_path, **settings))
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    accuracies = [entry["probe_knn_accuracy"] for entry in state["log_history"] if "probe_knn_accuracy" in entry]
    assert state["best_metric"] == max(accuracies[1:3])
    layers = [entry["probe_layer"] for entry in state["log_history"] if "probe_layer" in entry]
    assert len(layers) == len(accuracies)
    assert set(layers) <= {-1, 1, 2}
    chosen = "the output" if layers[-1] == -1 else f"hidden state {layers[-1]}"
    assert f"The probe takes {chosen}, pooling mean" in capsys.readouterr().out
    assert f"({chosen}, pooling mean" in (tmp_path / "README.md").read_text()


def test_what_evaluations_do_not_measure_selects_no_model(photos, labeled, tmp_path):
    settings = options(photos, tmp_path, probe_dir=labeled, metric_for_best_model="probe_accuracy")
    with pytest.raises(SystemExit, match="'probe_accuracy' is not measured .*: gain_over_mean_color, loss, "):
        pretrain.COMMAND.main(settings)
    assert not list(tmp_path.rglob("checkpoint-*"))


def test_not_every_evaluation_has_to_be_measured(photos, labeled, tmp_path):
    """Those before an interruption count."""
    settings = options(photos, tmp_path, probe_dir=labeled, num_train_epochs=4, save_total_limit=4)
    for checkpoint in (None, str(tmp_path / "checkpoint-15")):
        trainer, _ = pretrain.build_trainer(*pretrain.COMMAND.parse(settings))
        callback = next(c for c in trainer.callback_handler.callbacks if isinstance(c, ProbeCallback))
        callback.every = 2
        trainer.train(resume_from_checkpoint=checkpoint)
        steps = [entry["step"] for entry in trainer.state.log_history if "probe_knn_accuracy" in entry]
        assert steps == [0, 10, 20]


def test_images_are_read_once_if_they_are_few(photos, labeled, tmp_path, monkeypatch):
    reads = []
    read = LabeledImageDataset.__getitem__

    def counting(self, index):
        reads.append(Path(self.images[index]["name"]).name)
        return read(self, index)

    monkeypatch.setattr(LabeledImageDataset, "__getitem__", counting)
    for limit, expected in ((2**26, 18), (0, 3 * 18)):
        reads.clear()
        monkeypatch.setattr("hf_simmim.training.image_samples.MAX_KEPT_NUMBERS", limit)
        pretrain.COMMAND.main(options(photos, tmp_path / str(limit), probe_dir=labeled, probe_images=9))
        assert len(reads) == expected
    images = load_labeled_images(labeled)
    parts = [[images.rows["name"][index] for index in part] for part in holdout(images.labels, 0.25, seed=0)]
    assert set(reads) == {Path(part[index]).name for part in parts for index in evenly_spaced(len(part), 9)}


@pytest.mark.parametrize(("count", "parts"), [(1, None), (2, (1, 1)), (3, (2, 1)), (4, (3, 1))])
def test_the_probe_takes_few_labels(labeled, tmp_path, count, parts):
    """Two images of each class are enough to fit it to one and to test it on the other."""
    for place in labeled.iterdir():
        (tmp_path / place.name).mkdir()
        for path in sorted(place.iterdir())[:count]:
            shutil.copy(path, tmp_path / place.name)
    arguments = pretrain.PretrainingDataArguments(probe_dir=str(tmp_path))
    if parts is None:
        with pytest.raises(ValueError, match="has 1 image, too few for both parts of the split"):
            load_probe(arguments)
        return
    found = load_probe(arguments)
    assert [np.bincount(part.labels).tolist() for part in found] == [[number] * 2 for number in parts]


def test_unreadable_images_are_left_out(photos, labeled, tmp_path, caplog):
    """Found before training, which they would end: as in pre-training, unless they are many."""
    folder = tmp_path / "labeled"
    shutil.copytree(labeled, folder)
    path = folder / "dark" / "04.png"
    path.write_bytes(path.read_bytes()[:60])
    pretrain.COMMAND.main(options(photos, tmp_path / "run", probe_dir=folder, dataloader_num_workers=1))
    assert [entry["step"] for entry in read_log(tmp_path / "run") if "probe_knn_accuracy" in entry] == [0, 5, 10]
    assert "are left out; the first is" in caplog.text
    assert "04.png" in caplog.text
    with pytest.raises(SystemExit, match=r"04\.png"):
        pretrain.COMMAND.main(options(photos, tmp_path / "other", probe_dir=folder, max_unreadable=0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probe_layer": 9}, "layer=9: the encoder has 3 hidden states"),
        ({"probe_pooling": "cls"}, "no class token"),
        ({"probe_layer": "first"}, "Use the number of a hidden state, last or auto"),
        ({"probe_label_column": "label"}, "both name labels"),
        ({"probe_dir": None, "probe_label_column": "label"}, "a folder has no columns. Use --probe_dir"),
        ({"probe_dir": "nowhere"}, "does not exist"),
        ({"holdout": 0}, "needs validation images"),
        ({"probe_images": 0}, "probe_images=0"),
    ],
)
def test_mistakes_are_refused_at_once(photos, labeled, tmp_path, settings, message):
    with pytest.raises(SystemExit, match=message):
        pretrain.COMMAND.main(options(photos, tmp_path, **({"probe_dir": labeled} | settings)))


def test_the_demo_measures_its_own_labels():
    data, _, _ = pretrain.COMMAND.parse([])
    train, test = pretrain.load_probe(data)
    assert (len(train), len(test)) == (6000, 1000)
    assert train.class_names == test.class_names
    assert "Ankle boot" in train.class_names


def test_two_processes_measure_what_one_does_and_stop_together(runs, photos, labeled, tmp_path):
    encoder = json.loads(options(photos, tmp_path)[5]) | {"drop_path_rate": 0.3}
    settings = {"per_device_train_batch_size": 4, "encoder": json.dumps(encoder), "probe_dir": labeled}
    settings |= {"probe_layer": "last", "probe_pooling": "mean"}
    # After the second evaluation, which cannot be better.
    settings |= {"stop_by": "probe", "min_gain": 1, "patience": 1, "num_train_epochs": 8}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--multi_gpu"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    result = subprocess.run(
        [*command, *PROGRAM, *options(photos, tmp_path, **settings)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    # Of the untrained model, whose weights are those of the run of one process.
    two, one = (
        next(entry for entry in read_log(folder) if "probe_knn_accuracy" in entry)
        for folder in (tmp_path, runs / "with")
    )
    assert two == one
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 10
    assert result.stderr.count("the training ends, because probe_linear_accuracy was") == 1
