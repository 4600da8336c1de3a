"""The search for a pre-training that pays: its images, that it goes on, and what its report says."""

import json
import zipfile
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import hf_simmim
from benchmarks import evidence
from benchmarks.ablation import textures
from benchmarks.ablation.data import DATA_SETS, ImageData, load_images
from benchmarks.ablation.settings import vit
from benchmarks.search import __main__ as search
from benchmarks.search import images, report, study
from benchmarks.search.grid import PRETRAININGS, Pretraining, Row
from benchmarks.search.surfaces import DEFECTS, SIDE, draw_surfaces


def test_surfaces_are_the_same_for_a_seed_and_have_all_defects():
    pictures, labels = draw_surfaces(20, seed=3)
    assert pictures.shape == (20, SIDE, SIDE)
    assert pictures.dtype == np.uint8
    assert np.bincount(labels).tolist() == [4] * len(DEFECTS)
    assert np.array_equal(pictures, draw_surfaces(20, seed=3)[0])
    assert not np.array_equal(pictures, draw_surfaces(20, seed=4)[0])


def test_textures_are_cut_from_different_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(textures, "NUM_TRAIN", 3)
    monkeypatch.setattr(textures, "NUM_TEST", 2)
    random = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "textures.pk3", "w") as archive:
        for name, side in (("base_wall/left.jpg", 256), ("base_wall/small.jpg", 64), ("skies/blue.jpg", 256)):
            pixels = random.integers(0, 255, (side, side, 3)).astype(np.uint8)
            file = BytesIO()
            Image.fromarray(pixels).save(file, "JPEG")
            archive.writestr(f"textures/{name}", file.getvalue())
    arrays = textures.prepare_textures(tmp_path)
    assert arrays["classes"].tolist() == ["base_wall-left"]
    assert (arrays["train_images"].shape, arrays["test_images"].shape) == ((3, 64, 64), (2, 64, 64))
    colored = textures.prepare_textures(tmp_path, is_gray=False)
    assert colored["train_images"].shape == (3, 64, 64, 3)
    # The same windows: their brightness differs by what brightness and contrast did to other pixels.
    assert np.corrcoef(colored["train_images"].mean(axis=-1).ravel(), arrays["train_images"].ravel())[0, 1] > 0.9


@pytest.fixture
def tiny(monkeypatch):
    """Two rows on images of noise that take no time."""

    def load_set(name):
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(40) % 2
        pixels = torch.randint(0, 255, (40, 1, 64, 64), generator=generator).byte()
        return ImageData(name, pixels, labels, pixels[:10], labels[:10])

    monkeypatch.setattr(study, "load_set", load_set)
    monkeypatch.setattr(study, "FINE_TUNE_STEPS", 1)
    monkeypatch.setattr(study, "PROBED", 10)
    rows = {"scratch": None, "hog": Pretraining(PRETRAININGS["hog"].row, vit(16, 16, 1, 1), batch_size=8, epochs=0.2)}
    rows["scratch, patch 8"] = Pretraining(rows["hog"].row, vit(8, 16, 1, 1), epochs=0)
    rows["hog, patch 8"] = Pretraining(rows["hog"].row, vit(8, 16, 1, 1), batch_size=8, epochs=0.2)
    monkeypatch.setattr(study, "PRETRAININGS", rows)
    monkeypatch.setattr(study, "ENCODER", vit(16, 16, 1, 1))


def test_a_killed_search_goes_on(tiny, tmp_path, monkeypatch):
    results, page = tmp_path / "search.jsonl", tmp_path / "search.md"
    words = ["--sets", "surfaces", "--rows", "scratch", "hog", "--labels", "4", "--seeds", "0", "1"]
    words += ["--results", str(results), "--report", str(page)]
    search.main(words)
    lines = results.read_text().splitlines()
    # Each model, and two label subsets of each.
    assert len(lines) == 6
    # Killed while it wrote its last line.
    results.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    search.main(words)
    again = [json.loads(line) for line in results.read_text().splitlines()]
    first = [json.loads(line) for line in lines]
    assert [line | {"seconds": 0} for line in again] == [line | {"seconds": 0} for line in first]
    monkeypatch.setattr(study, "_run", None)
    search.main(words)
    text = page.read_text()
    assert "| hog | 1 | " in text
    assert text.count("| surfaces | hog | 0 | 4 | 0.001 | ") == 2
    with pytest.raises(ValueError, match="has no runs yet"):
        report.write_report(tmp_path / "none.jsonl", page)


def test_another_encoder_has_its_own_training_from_scratch(tiny, tmp_path, monkeypatch):
    controls = []
    monkeypatch.setattr(report, "difference", lambda runs, scratch: controls.append(scratch))
    results, page = tmp_path / "search.jsonl", tmp_path / "search.md"
    rows = ["scratch", "scratch, patch 8", "hog, patch 8"]
    words = ["--sets", "surfaces", "--rows", *rows, "--labels", "4", "--seeds", "0", "1"]
    search.main([*words, "--results", str(results), "--report", str(page)])
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["steps"] for line in lines if line["seed"] is None] == [0, 0, 1]
    own = {(line["seed"], 0): 100 * line["accuracy"] for line in lines[3:6] if line["seed"] is not None}
    assert controls == [own]


def test_differences_are_of_the_same_label_subsets():
    scratch = {(0, 0): 40.0, (1, 0): 50.0, (2, 0): 60.0}
    found = report.difference({(0, 0): 44.0, (0, 1): 46.0, (1, 0): 56.0, (9, 0): 0.0}, scratch)
    assert found is not None
    assert (found[0], found[2]) == (5.5, 2)
    assert found[1] == pytest.approx(12.706 * 0.5, rel=1e-3)
    assert report.difference({(0, 0): 44.0}, scratch) is None


def test_sets_are_folders_for_the_commands(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "NUM_IMAGES", 10)
    monkeypatch.setattr(images, "NUM_TEST_IMAGES", 5)
    train, test = images.write_set("surfaces", tmp_path)
    assert sorted(path.name for path in train.iterdir()) == sorted(DEFECTS)
    assert len(list(train.rglob("*.png"))) == 10
    assert len(list(test.rglob("*.png"))) == 5
    monkeypatch.setattr(images, "FETCHED", tmp_path)
    with pytest.raises(ValueError, match=r"Fetch it with: python -m benchmarks\.ablation\.fetch textures"):
        images.load_set("textures")
    classes = np.array([f"{number}" for number in range(12)])
    labels = np.repeat(np.arange(12), 4)
    pixels = np.broadcast_to(labels[:, None, None], (48, 64, 64)).astype(np.uint8)
    arrays = {f"{split}_{key}": value for split in ("train", "test") for key, value in
              (("images", pixels), ("labels", labels))}  # fmt: skip
    np.savez(tmp_path / "textures.npz", classes=classes, **arrays)
    data = images.load_set("textures")
    # Ten classes remain, and each image has its own label.
    assert data.num_classes == 10
    assert torch.equal(data.images[:, 0, 0, 0].long(), data.labels)
    assert PRETRAININGS["rgb"].row == Row(16)
    colored = {name: np.stack([value] * 3, axis=-1) if value.ndim == 3 else value for name, value in arrays.items()}
    np.savez(tmp_path / "clipart.npz", classes=classes, **colored)
    train, _ = images.write_set("clipart-color", tmp_path)
    assert len(list(train.iterdir())) == DATA_SETS["clipart-color"].num_classes
    with Image.open(next(train.rglob("*.png"))) as image:
        assert image.mode == "RGB"
    # The ablation study reads the same images.
    same = load_images("clipart-color", 64, 10, 5, folder=tmp_path)
    assert same.images.shape == (10, 3, 64, 64)
    assert torch.equal(same.images[:, 0, 0, 0].long(), same.labels)
    stored = sorted(np.asarray(Image.open(path)).tobytes() for path in train.rglob("*.png"))
    assert sorted(image.permute(1, 2, 0).numpy().tobytes() for image in same.images) == stored


@pytest.mark.parametrize("encoder", list(evidence.ENCODERS))
def test_evidence_is_a_comparison_with_what_the_commands_choose(tmp_path, monkeypatch, capsys, encoder):
    taken = {}

    def compare(**options):
        taken.clear()
        taken.update(options)
        folder = Path(options["output_dir"])
        folder.mkdir()
        (folder / "comparison.md").write_text("the table")
        return SimpleNamespace(conclusion="the verdict")

    monkeypatch.setattr(hf_simmim, "compare", compare)
    monkeypatch.setattr(evidence, "write_set", lambda name: (tmp_path / "train", tmp_path / "test"))
    evidence.main(["surfaces", "--encoder", encoder, "--folder", str(tmp_path)])
    assert taken["arms"] == ["scratch", "pretrained"]
    assert taken["pretrain_seeds"] == [0, 1, 2]
    # Masks, target, batch, rate and fine-tuning are left to them.
    assert not {"mask_patch_size", "target", "learning_rate", "recipe"} & taken["pretrain_options"].keys()
    assert taken["finetune_recipe"] is None
    printed = capsys.readouterr().out
    assert "the table" in printed
    small = encoder.endswith("-small")
    assert f"surfaces, {encoder} of {2 if small else 0}." in printed
    assert "the verdict" in printed
    evidence.main(["surfaces", "--encoder", encoder, "--folder", str(tmp_path), "--paper", "--checkpoint", "ours"])
    assert json.loads(Path(taken["finetune_recipe"]).read_text()) == {}
    assert taken["checkpoint"] == "ours"
    assert taken["output_dir"] == str(tmp_path / f"surfaces-{encoder}-paper")
