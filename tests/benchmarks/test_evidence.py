"""The evidence in color: what is compared, and how its results become a page."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import hf_simmim
from benchmarks import evidence, evidence_page
from benchmarks.ablation.results import Result
from benchmarks.evidence_plot import draw_arms
from benchmarks.marked_page import END, begin


def test_evidence_on_public_weights_has_all_arms_after_each_pretraining(tmp_path, monkeypatch):
    taken = {}
    run = {"num_labels": 25, "arm": "public", "pretraining": None, "value": 0.5}
    result = {
        **{"metric": "balanced_accuracy", "num_deciding_images": 500, "recommendation": "Use public.", "notes": []},
        "verdicts": [{"first": "public", "second": "from scratch", "text": "25 labels: it helps."}],
        "runs": [run | {"seed": 0}, run | {"seed": 1, "value": 0.6}, run | {"arm": "from scratch", "seed": 0}],
        "labels_saved": [{"saved": None, "text": "None."}, {"saved": 17, "text": "Labels saved: about 17 of 25."}],
        "costs": {"public": {"fine-tuning": {"seconds": 90.0, "joules": {}}}},
    }

    def compare(**options):
        taken.clear()
        taken.update(options)
        folder = Path(options["output_dir"])
        for name in ("continued-seed-0", "continued-seed-1"):
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / "results.json").write_text('{"eval_gain_over_mean_color": -0.25}')
        (folder / "comparison.md").write_text("the table")
        (folder / "comparison.json").write_text(json.dumps(result))
        (folder / "comparison.png").touch()
        return SimpleNamespace(conclusion="the verdict")

    monkeypatch.setattr(hf_simmim, "compare", compare)
    monkeypatch.setattr(evidence, "save_weights", lambda: tmp_path / "lite0")
    monkeypatch.setattr(evidence, "write_set", lambda name: (tmp_path / "train", tmp_path / "test"))
    results = tmp_path / "results"
    options = [
        "clipart-color",
        "--results",
        str(results),
        "--public",
        "--continued_epochs",
        "5",
        "--folder",
        str(tmp_path),
    ]
    for encoder in ("vit-small", "swin-small"):
        evidence.main([*options, "--encoder", encoder])
        assert taken["arms"] == ["scratch", "pretrained", "public", "continued"]
        assert taken["public"] == str(tmp_path / "lite0")
        assert taken["pretrain_seeds"] == [0, 1, 2]
        # By RGB, as pretrain chooses for other weights than its own, and with their normalization.
        own = {"num_train_epochs": 5, "target": "rgb", "image_size": [64], "compute_statistics": False}
        assert taken["continued_options"] == own
        # All arms at one size, whatever that of the public weights.
        assert taken["finetune_options"]["image_size"] == [64]
        assert json.loads(taken["pretrain_options"]["encoder"])["num_channels"] == 3
    # A study of the same set and encoder beside it.
    evidence.main([*options, "--name", "20-labels", "--target", "hog"])
    assert Path(taken["output_dir"]).name == "clipart-color-vit-20-labels-hog"
    evidence.main([*options, "--continued_target", "hog"])
    assert taken["continued_options"]["target"] == "hog"
    assert taken["pretrain_options"]["target"] == "rgb"
    assert Path(taken["output_dir"]).name == "clipart-color-vit-continued-hog"
    evidence.main([*options, "--checkpoint", "weights"])
    assert taken["checkpoint"] == "weights"
    assert "encoder" not in taken["pretrain_options"]
    evidence.main([*options, "--continued_epochs", "0"])
    assert taken["arms"] == ["scratch", "pretrained", "public"]
    assert "continued_options" not in taken
    monkeypatch.setattr(evidence_page, "RESULTS", results)
    monkeypatch.setattr(evidence_page, "PAGE", tmp_path / "evidence.md")
    (results / "older.json").write_text("{}")
    (tmp_path / "evidence.md").write_text("no marks")
    with pytest.raises(SystemExit, match="has no lines"):
        evidence_page.main()
    (tmp_path / "evidence.md").write_text(f"before\n{begin('evidence_page.py')}stale table\n{END}after\n")
    evidence_page.main()
    page = (tmp_path / "evidence.md").read_text()
    assert page.startswith("before")
    assert page.endswith("after\n")
    assert "stale table" not in page
    assert "## Clipart-color, vit-small of 2." in page
    assert "python -m benchmarks.evidence clipart-color --results" in page
    assert "| public | 55.0 ± 7.1 |  | 1.5 |" in page
    assert "| 25 | public |  | 50.0, 60.0 |" in page
    assert "- public against from scratch, 25 labels: it helps." in page
    assert "- `continued-seed-1`: masked pixels 25% worse than the mean color." in page
    assert (results / "clipart-color-vit-small.png").exists()
    assert "Labels saved: about 17 of 25." in page
    assert "None." not in page
    assert "against RGB" not in page


def test_all_arms_are_a_table_and_a_picture(tmp_path):
    values = {"from scratch": 0.5, "pre-trained": 0.6, "public": 0.8, "continued": 0.7}
    runs = [
        {"num_labels": budget, "arm": arm, "seed": seed, "pretraining": pretraining, "value": value + 0.02 * seed}
        for arm, value in values.items()
        for budget in (50, 20)
        for seed in (0, 1)
        for pretraining in ((0, 1) if arm in ("pre-trained", "continued") else (None,))
    ]
    # The mean of a subset counts once, whatever its pre-trainings.
    runs[0]["value"] += 0.1
    verdicts = [
        {
            **{"first": first, "second": second, "num_labels": budget},
            **{"difference": 0.1, "low": 0.001 * (budget - 30), "high": 0.4},
        }
        for first, second in evidence_page.DIFFERENCES
        for budget in (20, 50)
    ]
    study = {"title": "textures-color, vit-small of 2.25 M parameters, target hog"}
    found = {"study": study, "metric": "accuracy", "runs": runs, "verdicts": verdicts}
    title = evidence_page.study_title(study)
    assert title == "textures, ViT"
    few, many = evidence_page.all_arms({title: found})[2:]
    assert few.startswith("| textures, ViT | 20 | 51.0 | 81.0 | 61.0 | 71.0 | +10.0 (-1.0 to +40.0) |")
    assert many.startswith("| textures, ViT | 50 | 56.0 | 81.0 | 61.0 | 71.0 | **+10.0 (+2.0 to +40.0)** |")
    assert evidence_page.all_arms({}) == []
    draw_arms({title: found, "the same": found}, tmp_path / "arms.png")
    assert Image.open(tmp_path / "arms.png").size[0] > 600


def test_targets_are_compared_in_pairs():
    def study(*values):
        pairs = [(seed, pretraining) for seed in (0, 1) for pretraining in (0, 1)]
        runs = [
            {"num_labels": 25, "arm": "pre-trained", "seed": seed, "pretraining": pretraining, "value": value}
            for (seed, pretraining), value in zip(pairs, values, strict=False)
        ]
        return {"runs": [*runs, runs[0] | {"arm": "from scratch", "pretraining": None, "value": 0.9}]}

    results = {"a-hog": study(0.5, 0.7, 0.6, 0.8), "a-rgb": study(0.4, 0.8, 0.5), "b-hog": study(0.5)}
    # 10 and -10 points on the first subset, 10 on the second, where the other pre-training is missing.
    row = "| a | 25 | 60.0 | 56.7 | +5.0 (-58.5 to +68.5) | 2 of 3 |"
    everything = "| all |  |  |  | +5.0 (-58.5 to +68.5) | 2 of 3 |"
    assert evidence_page.targets(results)[2:] == [row, everything]
    # A single value of another row, 20 points.
    more = evidence_page.targets(results | {"b-rgb": study(0.3)})
    assert more[-2:] == [
        "| b | 25 | 50.0 | 30.0 | +20.0 | 1 of 1 |",
        "| all |  |  |  | +10.0 (-14.8 to +34.8) | 3 of 4 |",
    ]
    assert evidence_page.targets({"b-hog": study(0.5)}) == []


def test_continued_public_weights_are_compared_by_set():
    def study(*values):
        runs = [
            {"num_labels": 25, "arm": arm, "seed": seed, "pretraining": None, "value": value}
            for seed, value in enumerate(values)
            for arm in ("continued", "pre-trained")
        ]
        return {"study": {"title": "sky, vit, target hog"}, "runs": runs}

    results = {"sky-vit-continued-hog": study(0.6, 0.8), "sky-vit-continued-rgb": study(0.5, 0.7)}
    row = "25 | 70.0 | 60.0 | +10.0 (+10.0 to +10.0) | 2 of 2 |"
    assert evidence_page.continued(results)[2:] == [
        f"| sky | {row}",
        "| all |  |  |  | +10.0 (+10.0 to +10.0) | 2 of 2 |",
    ]
    # The same weights beside another encoder do not count again, and the pre-trained models are not theirs.
    again = {f"sky-swin-continued-{target}": results[f"sky-vit-continued-{target}"] for target in ("hog", "rgb")}
    assert len(evidence_page.continued(results | again)) == 4
    assert evidence_page.targets(results) == []
    assert evidence_page.continued({"sky-vit-continued-hog": study(0.6)}) == []
    # Nothing was chosen, so it was RGB.
    before = {"sky-vit-continued-hog": study(0.6), "sky-vit": study(0.5)}
    assert len(evidence_page.continued(before)) == 4
    # Several pre-trainings of all arms count where there is no other, by the first of them.
    several = study(0.4)
    several["runs"] += [run | {"pretraining": 1} for run in several["runs"]]
    later = {"sky-swin-arms-hog": several}
    assert evidence_page.continued(before | later) == evidence_page.continued(before)
    row = evidence_page.continued({"sky-vit-continued-hog": study(0.6)} | later)[2]
    assert row == "| sky | 25 | 60.0 | 40.0 | +20.0 | 1 of 1 |"


def test_mask_patches_are_compared_over_both_sets():
    def study(shift):
        runs = [
            {"num_labels": 25, "arm": "pre-trained", "seed": seed, "pretraining": pretraining, "value": value + shift}
            for seed, value in enumerate((0.4, 0.5))
            for pretraining in (0, 1)
        ]
        return {"runs": runs}

    values = {"baseline": (0.9, 0.8, 0.7), "random 8 px 0.6": (0.8, 0.8), "scratch": (0.5, 0.5)}
    ablation = [
        Result(row, seed, value, 0, 0, None, None, 1.0)
        for row, numbers in values.items()
        for seed, value in enumerate(numbers)
    ]
    results = {"clipart-color-swin-small-mask-16-hog": study(0.02), "clipart-color-swin-small-three-hog": study(0.0)}
    lines = evidence_page.masks(results, ablation)
    assert lines[2].startswith("| textures, Swin | 50 | 85.0 | 80.0 | +5.0 (")
    assert lines[2].endswith("| 1 of 2 |")
    assert lines[3] == "| clip art, Swin | 25 | 47.0 | 45.0 | +2.0 (+2.0 to +2.0) | 4 of 4 |"
    # Of 10, 0, 2 and 2 points.
    assert lines[4].startswith("| all |  |  |  | +3.5 (")
    assert evidence_page.masks(results, []) == []
    assert evidence_page.masks({}, ablation) == []
