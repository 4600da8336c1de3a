"""The studies of stopping and continuing: that rules are replayed exactly, what is compared, and that they go on."""

import json
import sys

import numpy as np
import pytest
import torch
from paths import ROOT

sys.path.insert(0, str(ROOT))  # as for `python -m` that is run from there

import hf_simmim
from benchmarks import continuing, stopping, study_runs
from benchmarks.ablation.data import ImageData
from benchmarks.ablation.settings import vit
from benchmarks.study_runs import FinishedRuns, in_points, mean_interval, write_folders
from hf_simmim.training.stopping import StopRule

TINY = vit(8, 16, 2, 2) | {"image_size": 16}


@pytest.fixture
def tiny(monkeypatch):
    """Sets of a few images, and networks that take no time."""

    def load_images(name, size, *counts):
        channels = 3 if name == "clipart" else 1
        labels = torch.arange(40) % 2
        pixels = torch.randint(0, 90, (40, channels, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
        # One class is brighter.
        pixels[labels == 1] += 90
        return ImageData(name, pixels, labels, pixels[:10], labels[:10])

    monkeypatch.setattr(study_runs, "load_images", load_images)
    encoders = {"fashion": TINY | {"num_channels": 1}, "clipart": TINY | {"num_channels": 3}}
    monkeypatch.setattr(stopping, "ENCODERS", encoders)
    monkeypatch.setattr(stopping, "FINE_TUNING", {"recipe": "few_labels", "num_train_epochs": 1})
    monkeypatch.setattr(continuing, "ENCODER", TINY | {"num_channels": 3})


def log_of(**figures) -> list[dict]:
    """A log of evaluations, the first before training; probes of 100 images."""
    entries = [dict(zip(figures, values, strict=True)) for values in zip(*figures.values(), strict=True)]
    return [{"step": 10 * step, "epoch": step, **entry} for step, entry in enumerate(entries)]


def test_folders_hold_each_image_once_and_some_for_the_probe(tiny, tmp_path):
    folders = write_folders("clipart", tmp_path, 5)
    names = {part: {path.relative_to(getattr(folders, part)) for path in getattr(folders, part).rglob("*.png")}
             for part in ("train", "labeled", "test")}  # fmt: skip
    assert [len(names[part]) for part in names] == [40, 10, 10]
    assert names["labeled"] < names["train"]
    assert sorted(path.parent.name for path in names["labeled"]) == ["0"] * 5 + ["1"] * 5
    assert write_folders("clipart", tmp_path, 5) == folders


def test_rules_choose_by_their_figures():
    log = log_of(
        probe_linear_accuracy=[0.9, 0.5, 0.7, 0.7, 0.6],
        probe_knn_accuracy=[0.9, 0.8, 0.3, 0.2, 0.1],
        eval_rankme=[9, 2, 3, float("nan"), 4],
        eval_loss=[0, 3, 2, 1, 1.5],
    )
    found = stopping.choices(log, patience=2)
    kept = {name: choice.kept for name, choice in found.items()}
    # What was measured before training has no checkpoint; the first of equals.
    assert kept == {
        **{"linear probe": 20, "k-NN": 10, "RankMe": 40, "validation loss": 30, "last": 40},
        **{"--stop_by probe --patience 2": 20, "--stop_by rank --patience 2": 40},
    }
    assert {choice.trained for choice in found.values()} == {40}
    assert stopping.replay(StopRule("probe", 1), log) == (20, 30)
    joined = stopping.evaluations(
        [{"step": 5, "loss": 1}, {"step": 5, "eval_loss": 2}, {"step": 5, "probe_linear_accuracy": 0.5},
         {"step": 5, "probe_linear_accuracy": 0.6}, {"step": 7, "loss": 1}]
    )  # fmt: skip
    assert joined == [{"step": 5, "eval_loss": 2, "probe_linear_accuracy": 0.5}]


def test_a_replayed_rule_is_what_the_command_does(tiny, tmp_path):
    folders = write_folders("fashion", tmp_path, 10)
    options = {
        **{"train_dir": str(folders.train), "probe_dir": str(folders.labeled), "save_total_limit": 9},
        **{"encoder": json.dumps(TINY | {"num_channels": 1}), "max_steps": 4, "learning_rate": 1e-2, "holdout": 0.2},
        **{"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1},
        **stopping.COMMON,
    }
    whole = hf_simmim.pretrain(output_dir=str(tmp_path / "whole"), **options)
    # So much that patience ends before the training does.
    rule = StopRule("probe", 2, min_gain=0.9)
    expected = stopping.replay(rule, stopping.evaluations(whole.log))
    stopped = hf_simmim.pretrain(
        output_dir=str(tmp_path / "stopped"), stop_by="probe", patience=2, min_gain=0.9, **options
    )
    results = json.loads((tmp_path / "stopped" / "results.json").read_text())
    assert expected.trained == 3
    assert (results["weights_of_step"], max(entry["step"] for entry in stopped.log)) == expected


def test_a_killed_study_of_stopping_goes_on(tiny, tmp_path, monkeypatch, capsys):
    results = tmp_path / "stopping.jsonl"
    words = ["--sets", "fashion", "--seeds", "0", "--subsets", "0", "1", "--epochs", "2", "--evaluations", "2"]
    words += ["--labels", "3", "--probe_labels", "8", "--folder", str(tmp_path), "--results", str(results)]
    stopping.main(words)
    printed = capsys.readouterr().out
    lines = results.read_text().splitlines()
    first = [json.loads(line) for line in lines]
    assert [line["run"] for line in first] == ["pretraining"] + ["fine-tuning"] * (len(lines) - 1)
    assert [line["subset"] for line in first if line["run"] == "fine-tuning" and line["seed"] is None] == [0, 1]
    assert "| random weights | | 0 | 0 |" in printed
    assert "| last | 2 |" in printed
    assert first[0]["about"]["device"] in printed
    # Killed while it wrote its last line.
    results.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    stopping.main(words)
    again = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line | {"seconds": 0} for line in again] == [line | {"seconds": 0} for line in first]
    monkeypatch.setattr(stopping, "fine_tune", None)
    stopping.main([*words, "--report_only"])


@pytest.mark.slow
def test_continuing_compares_ways_on_both_sets(tiny, tmp_path, monkeypatch, capsys):
    pytest.importorskip("peft")
    monkeypatch.setattr(continuing, "LAST_BLOCKS", 1)
    for way in [way for way in continuing.WAYS if "--train_layers" in way]:
        monkeypatch.setitem(continuing.WAYS, way, continuing.WAYS[way] | {"train_layers": 1})
    monkeypatch.setattr(continuing, "write_folders", lambda name, folder: write_folders(name, folder, 5))
    results = tmp_path / "continuing.jsonl"
    words = ["--sources", "clipart", "--epochs", "1", "--steps", "2", "--evaluations", "1", "--folder", str(tmp_path)]
    options, pretrain = {}, hf_simmim.pretrain

    def noted(**given):
        options[given["output_dir"].rpartition("/")[2]] = given
        return pretrain(**given | {"per_device_train_batch_size": None, "holdout": 0.2})

    monkeypatch.setattr(hf_simmim, "pretrain", noted)
    monkeypatch.setattr(continuing, "LABELED", continuing.LABELED | {"per_device_train_batch_size": 20})
    continuing.main([*words, "--results", str(results)])
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    ways = {line["way"]: line for line in lines if line["run"] == "way"}
    assert list(ways) == ["before", *continuing.WAYS]
    assert {name: len(right) for name, right in ways["default"]["answers"].items()} == {"clipart": 10, "fashion": 10}
    rates = {way: ways[way]["trained"]["settings"]["learning_rate"] for way in continuing.WAYS}
    assert rates["full rate"] == pytest.approx(10 * rates["default"]) == pytest.approx(rates["--lora 8"])
    assert rates["a hundredth"] == pytest.approx(rates["default"] / 10)
    decays, factors = ([ways[way]["trained"]["settings"][key] for way in rates] for key in ("layer_decay", "new_rate"))
    assert decays == [0.8, 0.8, 1, 1, 0.8, 0.8, 0.8]
    assert factors == [10, 1, 1, 1, 10, 1, 1]
    # The default is what nobody set.
    assert not {"learning_rate", "layer_decay", "new_rate", "lora", "train_layers"} & options["default"].keys()
    monkeypatch.setattr(hf_simmim, "pretrain", None)
    capsys.readouterr()
    continuing.main([*words, "--results", str(results)])
    printed = capsys.readouterr().out
    assert "From clipart" in printed
    assert printed.count("| default | ") == 1
    assert lines[0]["about"]["device"] in printed


def test_differences_are_paired():
    ran = [{"answers": {"a": "1110"}, "seed": 0, "trained": {}}, {"answers": {"a": "1100"}, "seed": 1, "trained": {}}]
    assert np.allclose(continuing._shares(ran, "a"), [1, 1, 0.5, 0])
    assert in_points(*mean_interval([1.0, 3.0])) == "+2.0 (-10.7 to +14.7)"
    assert in_points(*mean_interval([1.0])) == "+1.0"
    lines = [{"step": step, "subset": subset, "accuracy": value}
             for step, subset, value in ((1, 0, 0.5), (1, 1, 0.6), (2, 0, 0.4), (2, 1, 0.8))]  # fmt: skip
    found = stopping.differences(lines, stopping.Choice(1, 2), stopping.Choice(2, 2))
    assert found == pytest.approx([10, -20])


def test_a_run_is_found_by_its_key(tmp_path):
    runs = FinishedRuns(tmp_path / "runs.jsonl")
    assert runs.run({"a": 1, "seed": None}, lambda: {"value": 1})["value"] == 1
    assert runs.run({"a": 1, "seed": None}, lambda: {"value": 2})["value"] == 1
    assert runs.run({"a": 1, "seed": 0}, lambda: {"value": 3})["value"] == 3
    assert len(runs.lines()) == 2
