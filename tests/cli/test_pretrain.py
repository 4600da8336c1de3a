"""The pre-training script, run as a user runs it, on small folders of pictures."""

# Fixtures of a pre-training are arguments here.
# ruff: noqa: F401, F811
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import tifffile
import torch
from cards import check_card, table
from command_lines import command_line
from huggingface_hub import ModelCard
from paths import ROOT
from PIL import Image
from pretraining import ENCODER, options, photos, read_log, run_mim
from safetensors.torch import load_file, save_file
from tiny import VIT_SIZES
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForMaskedImageModeling,
    FlavaImageCodebook,
    FlavaImageCodebookConfig,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

import hf_simmim
from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMImageProcessor
from hf_simmim.cli.options import images as image_options
from hf_simmim.cli.recipes import CommandError
from hf_simmim.formats.jpeg import DECODERS
from hf_simmim.training.run_folder import check_same_run
from hf_simmim.training.trainers import SimMIMTrainer


@pytest.fixture
def offline(monkeypatch):
    """No looking for names on the Hub, which without a network takes as long as its client has patience."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_run_leaves_everything_that_a_user_needs(run_mim, photos, tmp_path, capsys):
    run_mim.COMMAND.main(options(photos, tmp_path))
    model = AutoModelForMaskedImageModeling.from_pretrained(tmp_path)
    assert model.config.image_size == (32, 32)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert (processor.mask_patch_size, processor.model_patch_size) == (8, 4)
    inputs = processor(Image.open(photos / "day0" / "00.png"), return_tensors="pt")
    assert AutoModel.from_pretrained(tmp_path)(**inputs).pooler_output.shape == (1, 32)

    log = read_log(tmp_path)
    training = [entry for entry in log if "loss" in entry]
    evaluations = [entry for entry in log if "eval_loss" in entry]
    assert (len(training), len(evaluations)) == (10, 2)
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]
    for entry in training:
        assert {"masked_l1", "images_per_second", "eta_seconds", "learning_rate", "grad_norm"} <= entry.keys()
        # ImageNet's standard deviations are 0.225 to 0.229: the loss in units of pixels.
        assert 0.22 * 255 < entry["masked_l1"] / entry["loss"] < 0.23 * 255
    assert 0.22 * 255 < evaluations[0]["eval_masked_l1"] / evaluations[0]["eval_loss"] < 0.23 * 255

    assert Image.open(tmp_path / "reconstruction.png").size[0] > 300
    assert len(list((tmp_path / "reconstructions").glob("step-*.png"))) == 2
    assert (tmp_path / "loss_curve.png").exists()
    card = check_card(ModelCard.load(tmp_path / "README.md"), tmp_path)
    rows = table(card)
    assert f'from_pretrained("{tmp_path.name}")' in card
    assert f"on 40 images (folder `{photos.name}`)" in card
    assert (rows["training images"], rows["validation images"]) == ("40", "8 (0.167 of the images, drawn with seed 0)")
    assert f"hf-simmim pretrain --train_dir {photos.name} --output_dir {tmp_path.name} --encoder" in card
    assert {"speed", "training time", "validation loss"} <= rows.keys()
    printed = capsys.readouterr().out
    assert "40 for training, 8 for validation" in printed
    assert str(tmp_path / "reconstruction.png") in printed


def test_what_stays_in_the_folder_of_a_run_is_in_the_table_of_the_quickstart(run_mim, photos, tmp_path, capsys):
    """And nothing else does; a repeated run says that it was complete, and what to do next."""
    run_mim.COMMAND.main(options(photos, tmp_path, max_steps=4, probe_dir=photos))
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    listed = re.findall(r"`([\w.*/-]+)`", page.split("## Output files")[1].split("\n\n")[1])
    left = [name for name in os.listdir(tmp_path) if not any(fnmatch(name, entry.strip("/")) for entry in listed)]
    assert left in ([], ["_run.lock"])
    (logged,) = [entry["eval_loss"] for entry in read_log(tmp_path) if "eval_loss" in entry]
    assert json.loads((tmp_path / "results.json").read_text())["eval_loss"] == logged
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith("Next: evaluate the features: hf-simmim probe --checkpoint")
    run_mim.COMMAND.main(options(photos, tmp_path, max_steps=4, probe_dir=photos))
    assert f"This run was complete, 4 of 4 steps: nothing is trained again. Its results are in {tmp_path}." in (
        capsys.readouterr().out
    )


def test_killed_and_resumed_equals_uninterrupted(run_mim, photos, tmp_path, monkeypatch, capsys):
    settings = {"save_steps": 3, "save_strategy": "steps", "save_total_limit": 5}
    run_mim.COMMAND.main(options(photos, tmp_path / "whole", **settings))

    training_step, calls = SimMIMTrainer.training_step, []

    def dying_step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SimMIMTrainer, "training_step", dying_step)
        with pytest.raises(KeyboardInterrupt):
            run_mim.COMMAND.main(options(photos, tmp_path / "killed", **settings))
    # As if it had died while it wrote another one.
    weights = (tmp_path / "killed" / "checkpoint-6" / "model.safetensors").read_bytes()
    (tmp_path / "killed" / "checkpoint-8").mkdir()
    (tmp_path / "killed" / "checkpoint-8" / "model.safetensors").write_bytes(weights[:1000])
    run_mim.COMMAND.main(options(photos, tmp_path / "killed", **settings, dataloader_num_workers=2))
    assert "resuming from checkpoint-6 (epoch 1.2 of 2)" in capsys.readouterr().out

    expected = load_file(tmp_path / "whole" / "model.safetensors")
    resumed = load_file(tmp_path / "killed" / "model.safetensors")
    assert expected.keys() == resumed.keys()
    for name in expected:
        assert torch.equal(expected[name], resumed[name]), name
    losses = [[e["loss"] for e in read_log(tmp_path / run) if "loss" in e] for run in ("whole", "killed")]
    assert losses[0] == losses[1]


def test_a_finished_run_is_not_run_again_and_another_one_is_refused(run_mim, photos, tmp_path):
    run_mim.COMMAND.main(options(photos, tmp_path, num_train_epochs=2))
    weights = (tmp_path / "model.safetensors").read_bytes()
    run_mim.COMMAND.main(options(photos, tmp_path, num_train_epochs=2))
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    other = json.dumps(ENCODER | {"embed_dim": 32})
    for setting, message in (
        ({"encoder": other}, "another encoder"),
        ({"mask_ratio": 0.5}, "another mask_ratio: 0.6 before, 0.5 now"),
        ({"holdout_seed": 3}, r"another training images: .*Files: \d missing \(\w+/\d+.png.*; \d new"),
    ):
        with pytest.raises(SystemExit, match=f"{message}.*--restart"):
            run_mim.COMMAND.main(options(photos, tmp_path, **({"num_train_epochs": 2} | setting)))
    # What is refused deletes nothing, and does not make another run of it.
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match="fewer than the batch size of 10000"):
        run_mim.COMMAND.main(
            [*options(photos, tmp_path, encoder=other, per_device_train_batch_size=10_000), "--restart"]
        )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    run_mim.COMMAND.main([*options(photos, tmp_path, num_train_epochs=1, encoder=other), "--restart"])
    assert AutoModel.from_pretrained(tmp_path).config.hidden_size == 64
    # The longer run that was there before is not what a new start would go on from.
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-5"]


def test_a_resumed_run_keeps_its_image_decoder(run_mim, photos, tmp_path, monkeypatch):
    settings = {"num_train_epochs": 1, "save_strategy": "steps", "save_steps": 2}
    run_mim.COMMAND.main(options(photos, tmp_path, image_decoder="pillow-torch", **settings))
    recorded = json.loads((tmp_path / "run.json").read_text())
    assert recorded["image_decoder"] == "pillow-torch"
    trained = []
    build = run_mim.MaskedImageDataset

    def noted(*args, **kwargs):
        trained.append(kwargs.get("image_decoder"))
        return build(*args, **kwargs)

    monkeypatch.setattr(run_mim, "MaskedImageDataset", noted)
    with pytest.raises(SystemExit, match="started with image_decoder='pillow-torch'.*than 'pillow'.*--restart"):
        run_mim.COMMAND.main(options(photos, tmp_path, image_decoder="pillow", **settings))
    # Whatever is installed by now.
    monkeypatch.setitem(DECODERS, "simplejpeg", DECODERS["pillow"])
    run_mim.COMMAND.main(options(photos, tmp_path, **settings))
    assert "pillow-torch" in trained
    # A run of a version without the option.
    (tmp_path / "run.json").write_text(json.dumps({k: v for k, v in recorded.items() if k != "image_decoder"}))
    with pytest.raises(SystemExit, match="started with image_decoder='pillow'"):
        run_mim.COMMAND.main(options(photos, tmp_path, image_decoder="pillow-torch", **settings))
    run_mim.COMMAND.main(options(photos, tmp_path, **settings))
    assert json.loads((tmp_path / "run.json").read_text())["image_decoder"] == "pillow"


COMPONENT_OPTIONS = [
    {"target": "normalized_rgb", "target_options": {"patch_size": 8}, "head": "mlp", "loss": "smooth_l1"},
    {"target": "color_clusters", "num_clusters": 8, "mask_strategy": "block", "mask_ratio": "0.3 0.6"},
    {"target": "hog", "head": "inverse_swin", "head_options": {"embed_dim": 16, "num_heads": [1, 1, 1, 1]}},
    {"target": "color_bins", "prediction_stride": 4, "head_inputs": "0 1", "mask_strategy": "square"},
    {"target": "rgb", "loss": "l2", "loss_region": "all", "prediction_stride": 8, "mask_strategy": "central_square"},
    {"target": "features", "prediction_stride": 8},
    {"target": "codebook"},
    {
        "target": "rgb",
        "encoder": VIT_SIZES | {"model_type": "vit"},
        "encode": "visible",
        "decoder_options": {"num_layers": 1},
        "mask_ratio": "0.5 0.8",
    },
]


def component_options(components: dict, tmp_path) -> list[str]:
    """They as command line options, with a small network for the targets that need one."""
    components = dict(components)
    if components["target"] in ("features", "codebook"):
        torch.manual_seed(0)
        network = {
            "features": lambda: ViTModel(ViTConfig(**VIT_SIZES)),
            "codebook": lambda: FlavaImageCodebook(FlavaImageCodebookConfig(hidden_size=4, vocab_size=11)),
        }[components["target"]]()
        network.save_pretrained(tmp_path / "network")
        components["target_options"] = {"model": str(tmp_path / "network")}
    parts = []
    for key, value in components.items():
        parts += [f"--{key}", *([json.dumps(value)] if isinstance(value, dict) else str(value).split())]
    return parts


@pytest.mark.parametrize("components", COMPONENT_OPTIONS, ids=lambda components: components["target"])
def test_every_component_trains_resumes_and_reloads(run_mim, photos, tmp_path, components, capsys):
    settings = {"num_train_epochs": 2, "max_train_samples": 16, "save_total_limit": 5}
    wanted = component_options(components, tmp_path)
    run_mim.COMMAND.main([*options(photos, tmp_path / "run", **settings), *wanted])
    printed = capsys.readouterr().out
    assert f" on {'RGB' if components['target'] == 'rgb' else components['target']}" in printed
    model = AutoModelForMaskedImageModeling.from_pretrained(tmp_path / "run")
    for key in ("target", "head", "loss", "loss_region", "prediction_stride", "encode", "decoder_options"):
        if key in components:
            assert getattr(model.config, key) == components[key]
    # As if it had been killed after the first epoch.
    weights = load_file(tmp_path / "run" / "model.safetensors")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    run_mim.COMMAND.main([*options(photos, tmp_path / "run", **settings), *wanted])
    resumed = load_file(tmp_path / "run" / "model.safetensors")
    assert resumed.keys() == weights.keys()
    for name, tensor in resumed.items():
        assert torch.equal(tensor, weights[name]), name
    log = read_log(tmp_path / "run")
    assert len([entry for entry in log if "eval_loss" in entry]) == 2
    has_pixels = components["target"] not in ("hog", "features", "codebook")
    has_pictures = has_pixels or components["target"] == "hog"
    assert (tmp_path / "run" / "reconstruction.png").exists() is has_pictures
    assert all(("eval_masked_l1" in entry) is has_pixels for entry in log if "eval_loss" in entry)
    assert all(("eval_gradient_error" in entry) is (has_pictures > has_pixels) for entry in log if "eval_loss" in entry)
    card = check_card(ModelCard.load(tmp_path / "run" / "README.md"), tmp_path / "run")
    assert table(card)["target"].startswith(f"`{components['target']}`")
    assert ("encoder sees" in table(card)) is ("encode" in components)
    assert ("true gradients (those of the image" in str(card)) is (components["target"] == "hog")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--target", "color_bins", "--loss", "l1"], "loss='l1' does not fit target='color_bins'.*cross_entropy"),
        (["--loss", "cross_entropy"], "loss='cross_entropy' does not fit target='rgb'.*l1, l2, smooth_l1"),
        (["--target", "features"], "needs a teacher"),
        (["--target_options", '{"num_bin": 4}', "--target", "color_bins"], "Did you mean num_bins"),
        (["--head_options", "[1]"], "head_options=.* must be a JSON object"),
        (["--prediction_stride", "3"], "Set prediction_stride to one of: 1, 2, 4, 8"),
        (["--head_inputs", "7"], "the encoder returns 3 hidden states"),
        (["--target", "features", "--target_options", '{"model": "no/such"}'], "no/such"),
    ],
)
def test_components_that_do_not_fit_are_refused(run_mim, offline, photos, tmp_path, settings, message):
    with pytest.raises(SystemExit, match=message):
        run_mim.COMMAND.main([*options(photos, tmp_path / "run"), *settings])


def test_results_inside_the_training_folder_are_not_trained_on(run_mim, photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    arguments = options(folder, folder / "run", num_train_epochs=1, validation_dir=folder / "day1", holdout=None)
    for _ in range(2):
        run_mim.COMMAND.main(arguments)
    settings = json.loads((folder / "run" / "run.json").read_text())
    assert settings["training images"]["number"] == 24
    assert settings["evaluation images"]["number"] == 24


def test_a_loss_that_is_not_finite_is_skipped_and_replayed(run_mim, photos, tmp_path, monkeypatch, capsys):
    compute_loss, calls = SimMIMTrainer.compute_loss, []

    def breaking_loss(self, model, inputs, *args, **kwargs):
        calls.append(model.training)
        if sum(calls) == 8:
            inputs["pixel_values"] = inputs["pixel_values"] * float("nan")
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(SimMIMTrainer, "compute_loss", breaking_loss)
    run_mim.COMMAND.main(options(photos, tmp_path, num_train_epochs=4, logging_steps=5))
    assert all(value == value for entry in read_log(tmp_path) for value in entry.values())
    assert json.loads((tmp_path / "results.json").read_text())["skipped_steps"] == 1
    assert "skipped steps" in (tmp_path / "README.md").read_text()
    folder = tmp_path / "skipped_steps" / "step-0000008"
    capsys.readouterr()
    result = hf_simmim.replay(file=str(folder))
    assert len(result.images) == 8
    assert {Path(image.name).suffix for image in result.images} <= {".jpg", ".png", ".tif", ".webp"}
    # The pixels became NaN in the device, not in the files.
    assert "All 8 images have a finite loss" in result.conclusion
    printed = capsys.readouterr().out
    assert str(folder) in printed
    assert result.images[0].name in printed
    # A batch that is broken itself.
    path = folder / "batch-0-0.safetensors"
    batch = load_file(path)
    names = [image.name for image in result.images]
    batch["pixel_values"] = batch["pixel_values"].float()
    batch["pixel_values"][3, 0, 2, 2] = float("inf")
    save_file(batch, path, metadata={"step": "8", "names": "\n".join(names)})
    result = hf_simmim.replay(file=str(path))
    assert f"1 of 8 images are not finite in float32, such as {names[3]}," in result.conclusion
    assert [image.is_finite("float32") for image in result.images] == [index != 3 for index in range(8)]
    with pytest.raises(SystemExit, match="holds no batches of a skipped step"):
        importlib.import_module("hf_simmim.cli.replay").COMMAND.main([str(tmp_path)])


def test_evaluation_is_exact_whatever_the_batch(run_mim, photos, tmp_path):
    """Seven images in batches of 2, 3 and 7 have the same mean, though the last batch is smaller."""
    figures = []
    for size in (2, 3, 7):
        run_mim.COMMAND.main(
            options(
                photos,
                tmp_path / str(size),
                per_device_eval_batch_size=size,
                holdout=7 / 48,
                num_train_epochs=1,
                learning_rate=0,
            )
        )
        figures += [(e["eval_loss"], e["eval_masked_l1"]) for e in read_log(tmp_path / str(size)) if "eval_loss" in e]
    assert len(figures) == 3
    for figure in figures:
        assert figure == pytest.approx(figures[0], rel=1e-6)


def test_a_run_can_start_from_a_checkpoint(run_mim, photos, tmp_path):
    run_mim.COMMAND.main(options(photos, tmp_path / "first", num_train_epochs=1))
    run_mim.COMMAND.main(
        options(photos, tmp_path / "second", num_train_epochs=1, encoder=None, checkpoint=tmp_path / "first", seed=1)
    )
    first, second = (
        next(entry["loss"] for entry in read_log(tmp_path / run) if "loss" in entry) for run in ("first", "second")
    )
    assert second < 0.9 * first


def test_a_finished_run_started_again_trains_no_further(run_mim, photos, tmp_path):
    """Also where it ended in the middle of an epoch, where Trainer by itself adds a step each time."""
    for _ in range(2):
        run_mim.COMMAND.main(options(photos, tmp_path, max_steps=3))
        assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
        assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 3


def test_a_run_takes_weights_scale_and_size_from_a_checkpoint(run_mim, photos, tmp_path, capsys):
    """From a run at another size, and from a stock model; the numbers of pixels mean what they meant there."""
    numbers = ["--rescale_factor", "1/300", "--image_mean", "0.1", "0.2", "0.3", "--image_std", "0.3", "0.2", "0.1"]
    run_mim.COMMAND.main([*options(photos, tmp_path / "first", max_steps=1), *numbers])
    stock = AutoModel.from_config(ViTConfig(**VIT_SIZES))
    stock.save_pretrained(tmp_path / "stock")
    ViTImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(tmp_path / "stock")
    capsys.readouterr()
    for name, mean, factor in (("first", [0.1, 0.2, 0.3], 1 / 300), ("stock", [0.5] * 3, 1 / 255)):
        second = {"encoder": None, "checkpoint": tmp_path / name, "max_steps": 1}
        run_mim.COMMAND.main([*options(photos, tmp_path / f"from-{name}", **second), "--image_size", "48", "64"])
        assert f" from {tmp_path / name}" in capsys.readouterr().out
        processor = SimMIMImageProcessor.from_pretrained(tmp_path / f"from-{name}")
        assert list(processor.image_mean) == mean
        assert processor.rescale_factor == pytest.approx(factor)
        assert SimMIMConfig.from_pretrained(tmp_path / f"from-{name}").image_size == (48, 64)
    for wrong, message in (
        ({}, "encoder='{.*' and checkpoint=.* both name an encoder. Leave one out"),
        ({"encoder": None, "num_channels": 5}, "num_channels=5 is not that of the checkpoint, 3"),
    ):
        with pytest.raises(SystemExit, match=message):
            run_mim.COMMAND.main(options(photos, tmp_path / "third", checkpoint=tmp_path / "first", **wrong))
    (tmp_path / "stock" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(SystemExit, match="the weights of .* are damaged"):
        run_mim.COMMAND.main(options(photos, tmp_path / "fourth", encoder=None, checkpoint=tmp_path / "stock"))


def test_evaluation_masks_do_not_depend_on_the_run(run_mim, photos, tmp_path):
    """With a learning rate of 0 the weights stay, so every evaluation gives the same loss."""
    losses = set()
    for run, workers in (("a", 0), ("b", 2)):
        settings = {"learning_rate": 0, "data_seed": workers, "dataloader_num_workers": workers}
        run_mim.COMMAND.main(options(photos, tmp_path / run, **settings))
        losses |= {entry["eval_loss"] for entry in read_log(tmp_path / run) if "eval_loss" in entry}
    assert len(losses) == 1


def test_bad_pictures_are_listed(run_mim, photos, tmp_path, capsys):
    bad = tmp_path / "photos"
    for path in photos.rglob("*.png"):
        (bad / path.parent.name).mkdir(parents=True, exist_ok=True)
        (bad / path.parent.name / path.name).write_bytes(path.read_bytes())
    (bad / "day0" / "04.png").write_bytes(b"")
    run_mim.COMMAND.main(options(bad, tmp_path / "run", num_train_epochs=1, holdout=0))
    listed = (tmp_path / "run" / "unreadable_images.txt").read_text()
    assert listed.startswith(str(bad / "day0" / "04.png") + "\t")
    assert "1 unreadable image, replaced" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"1 of 48 images .* 0\.01"):
        run_mim.COMMAND.main(options(bad, tmp_path / "run2", num_train_epochs=1, max_unreadable=0.01))
    assert not list((tmp_path / "run2").glob("checkpoint-*"))


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    """Twenty-four TIFF files of five bands of 16 bits, of which 12 or fewer are used."""
    folder = tmp_path_factory.mktemp("bands")
    generator = np.random.default_rng(0)
    for index in range(24):
        height, width = 40 + index % 7, 40 + index % 5
        pixels = generator.integers(0, 4096, (height, width, 5), np.uint16) // np.array([1, 2, 4, 8, 16], np.uint16)
        tifffile.imwrite(folder / f"{index:02d}.tif", pixels, photometric="minisblack", planarconfig="contig")
    return folder


def test_16_bit_bands_from_files_to_features(run_mim, bands, tmp_path, capsys):
    settings = {"num_channels": 5, "rescale_factor": "1/4095", "holdout": 8 / 24, "num_train_epochs": 1}
    run_mim.COMMAND.main(options(bands, tmp_path, **settings))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert processor.rescale_factor == 1 / 4095
    # Of an even distribution from 0 to the largest number, and every band has half of the one before it.
    shares = np.array([1, 1 / 2, 1 / 4, 1 / 8, 1 / 16])
    np.testing.assert_allclose(processor.image_mean, 0.5 * shares, rtol=0.05)
    np.testing.assert_allclose(processor.image_std, 0.289 * shares, rtol=0.05)
    inputs = processor(str(bands / "00.tif"), return_tensors="pt")
    # Resizing smoothes the noise.
    assert abs(inputs["pixel_values"].mean()) < 0.1
    assert 0.4 < inputs["pixel_values"].std() < 1.1
    assert AutoModel.from_pretrained(tmp_path)(**inputs).pooler_output.shape == (1, 32)
    log = read_log(tmp_path)
    assert 0.3 < log[-1]["train_loss"] < 2
    assert all(0 < entry["masked_l1"] < 80 for entry in log if "masked_l1" in entry)
    assert Image.open(tmp_path / "reconstruction.png").size[0] > 300
    assert f"rescale 1/4095, mean {processor.image_mean[0]:.4g}, " in capsys.readouterr().out

    # Gone on with, it keeps its numbers whatever the files hold now.
    statistics = json.loads((tmp_path / "run.json").read_text())["image_mean"]
    with monkeypatched_statistics():
        run_mim.COMMAND.main(options(bands, tmp_path, **settings | {"num_train_epochs": 2}))
    assert list(AutoImageProcessor.from_pretrained(tmp_path).image_mean) == statistics
    for setting, message in (
        (["--rescale_factor", "1/255"], "another rescale_factor"),
        (["--image_mean", *["0.5"] * 5], "another image_mean"),
    ):
        with pytest.raises(SystemExit, match=f"{message}.*--restart"), monkeypatched_statistics():
            run_mim.COMMAND.main([*options(bands, tmp_path, **settings), *setting])


def test_masks_of_a_range_of_ratios_and_pixels_that_are_none(run_mim, bands, tmp_path, capsys):
    """What is asked for reaches the data sets, the processor and the plan, and must stay the same."""
    settings = {"num_channels": 5, "rescale_factor": "1/4095", "nodata": 7, "mask_strategy": "block"}
    command = [*options(bands, tmp_path, **settings), "--mask_ratio", "0.4", "0.7"]
    trainer, _ = run_mim.build_trainer(*run_mim.COMMAND.parse(command))
    run_mim.print_plan(trainer, None, None)
    assert "block, 7 to 12 of 16 mask patches of 8 px" in capsys.readouterr().out
    for dataset in (trainer.train_dataset, trainer.eval_dataset):
        assert (dataset.mask_ratio, dataset.nodata) == ([0.4, 0.7], 7)
    assert {int(trainer.train_dataset[key]["bool_masked_pos"].sum()) // 4 for key in range(20)} <= set(range(7, 13))
    trainer.processing_class.save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert (processor.mask_strategy, processor.mask_ratio, processor.nodata) == ("block", [0.4, 0.7], 7)
    run = json.loads((tmp_path / "run.json").read_text())
    for ratio, nodata, message in (([0.4, 0.6], 7, "another mask_ratio"), ([0.4, 0.7], None, "another nodata")):
        with pytest.raises(ValueError, match=message):
            check_same_run(run | {"mask_ratio": ratio, "nodata": nodata}, tmp_path, True)
    for ratio, message in (
        (["0.7", "0.4"], "ascending"),
        (["0.4", "0.5", "0.6"], "3 values"),
        (["0.4", "1"], "outside"),
    ):
        with pytest.raises(SystemExit, match=message):
            run_mim.COMMAND.main([*options(bands, tmp_path, num_channels=5), "--mask_ratio", *ratio])


def test_nodata_from_a_checkpoint_and_not_a_number(run_mim, bands, tmp_path, capsys):
    """What the checkpoint's numbers mean holds for the images that it is trained on further."""
    first = options(bands, tmp_path / "first", num_channels=5, rescale_factor="1/4095", nodata=0, max_steps=1)
    run_mim.COMMAND.main(first)
    assert ", missing pixels 0" in capsys.readouterr().out
    settings = {"encoder": None, "checkpoint": tmp_path / "first"}
    for wanted, factor, expected in (
        (None, None, 0),
        (None, "1/4095", 0),
        (None, "1/255", None),
        (7, None, 7),
        ("nan", None, None),
    ):
        command = options(bands, tmp_path / "second", **settings, nodata=wanted, rescale_factor=factor)
        trainer, _ = run_mim.build_trainer(*run_mim.COMMAND.parse(command))
        assert trainer.processing_class.nodata == trainer.train_dataset.nodata == expected
    # NaN was equal to nothing, not to itself either.
    for epochs in (1, 2):
        settings = {"num_channels": 5, "rescale_factor": "1/4095", "nodata": "nan", "num_train_epochs": epochs}
        run_mim.COMMAND.main(options(bands, tmp_path / "third", **settings))


def test_negative_numbers_of_any_form(run_mim, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"nodata": -3.4e38, "image_mean": [-1e-05, 0.5]}))
    for command in (["--recipe", str(recipe)], ["--nodata", "-3.4e+38", "--image_mean", "-1E-5", ".5"]):
        data, _, _ = run_mim.COMMAND.parse(["--train_dir", "x", "--use_cpu", *command])
        assert (data.nodata, data.image_mean) == (-3.4e38, [-1e-05, 0.5])


def test_components_of_a_checkpoint_are_kept(run_mim, photos, tmp_path):
    """And what is asked for against them is refused, the defaults too."""
    config = SimMIMConfig(encoder_config=ENCODER, head="mlp", target="color_bins", loss_region="all")
    SimMIMForMaskedImageModeling(config).save_pretrained(tmp_path / "first")
    settings = options(photos, tmp_path / "run", encoder=None, checkpoint=tmp_path / "first")
    for wanted in ([], ["--head", "mlp", "--target_options", '{"num_bins": 8}', "--loss", "cross_entropy"]):
        _, model, _ = run_mim.COMMAND.parse([*settings, *wanted])
        config = run_mim.build_config(model)
        assert (config.head, config.target, config.loss_region) == ("mlp", "color_bins", "all")
    for key, value, kept in (
        ("head", "linear", "'mlp'"),
        ("target", "rgb", "'color_bins'"),
        ("loss_region", "masked", "'all'"),
        ("target_options", '{"num_bins": 4}', "{'num_bins': 8}"),
    ):
        with pytest.raises(SystemExit, match=f"{key}=.* is not that of the checkpoint, {kept}. Leave it out"):
            run_mim.COMMAND.main([*settings, f"--{key}", value])


def test_another_number_of_clusters_is_another_run(run_mim, photos, tmp_path):
    settings = {"target": "color_clusters", "max_train_samples": 8}
    run_mim.COMMAND.main(options(photos, tmp_path, **settings, num_clusters=4, max_steps=1))
    with pytest.raises(SystemExit, match="another num_clusters: 4 before, 5 now"):
        run_mim.COMMAND.main(options(photos, tmp_path, **settings, num_clusters=5, max_steps=1))


@contextmanager
def monkeypatched_statistics():
    """Statistics must not be computed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_options, "channel_statistics", None)
        yield


def test_statistics_are_computed_where_none_are_known(run_mim, photos, tmp_path):
    gray = {"train_dir": tmp_path / "gray", "num_channels": 1}
    (tmp_path / "gray").mkdir()
    for path in photos.rglob("*.png"):
        Image.open(path).convert("L").save(tmp_path / "gray" / path.name)
    expected = {"imagenet": 0.485, "given": 0.3}
    for name, settings in (
        ("imagenet", {}),
        ("rgb", {"compute_statistics": True}),
        ("gray", gray),
        ("given", gray | {"image_mean": 0.3}),
    ):
        data, model, training = run_mim.COMMAND.parse(options(photos, tmp_path / "runs" / name, **settings))
        trainer, _ = run_mim.build_trainer(data, model, training)
        processor = trainer.processing_class
        if name in expected:
            assert processor.image_mean[0] == expected[name]
        if name == "imagenet":
            assert processor.image_std[0] == 0.229
            continue
        pictures = [
            np.asarray(Image.open(row["image"]["path"])).reshape(-1, processor.num_channels)
            for row in trainer.train_dataset.images
        ]
        pixels = np.concatenate(pictures) / 255
        if name != "given":
            np.testing.assert_allclose(processor.image_mean, pixels.mean(axis=0))
        np.testing.assert_allclose(processor.image_std, pixels.std(axis=0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rescale_factor": "0"}, r"rescale_factor=0 must be a positive number, such as 1/65535"),
        ({"rescale_factor": "1/x"}, r"rescale_factor=1/x must be a positive number"),
        ({"train_dir": "/nowhere"}, r"/nowhere does not exist"),
        ({"mask_patch_size": 6}, r"mask_patch_size=6 px is not a multiple of the model's patch size of 4 px"),
        ({"mask_ratio": 0}, r"mask_ratio=0\.0 is outside \(0, 1\)"),
        ({"mask_ratio": 1.5}, r"mask_ratio=1\.5 is outside \(0, 1\)"),
        ({"num_channels": 1}, r"The image has 3 channels and 1 is expected"),
        ({"num_channels": 4}, r"The image has 3 channels and 4 are expected"),
        ({"image_mean": 0.5}, r"image_mean has 1 values, but the model takes 3 channels"),
        ({"output_dir": "/dev/null/run"}, r"output_dir=/dev/null/run cannot be written"),
        ({"per_device_train_batch_size": 64}, r"40 images are fewer than the batch size of 64"),
        ({"crop_scale": 0.5}, r"crop_scale=\(0\.5,\) must be \(min, max\)"),
        ({"validation_split": "test"}, r"validation_split='test' needs --dataset_name"),
        ({"max_eval_samples": 0}, r"max_eval_samples=0 leaves no images"),
        ({"checkpoint": "no/such/model"}, r"checkpoint='no/such/model' is neither the folder"),
        ({"encoder": "nowhere.json"}, r"encoder='nowhere.json' cannot be read as JSON"),
        ({"encoder": "no-such-model"}, r"encoder='no-such-model' is not a preset \(swin-tiny"),
        ({"holdout": 0.001}, r"holdout=0\.001 of 48 images leaves none"),
        ({"encoder": '{"model_type": "swim"}'}, r"model_type 'swim' is unknown. Did you mean swin\?"),
        ({"encoder": '{"model_type": "yolos"}'}, r"'yolos' cannot be used: its detection tokens"),
        (
            {"encoder": '{"model_type": "swin", "image_sise": 32}'},
            r"unknown key 'image_sise'. Did you mean image_size\?",
        ),
        ({"image_size": 0}, r"image_size=0 must be a side, or a height and a width"),
        ({"encoder": "vit-base", "window_size": 7}, r"window_size=7 cannot be set: the encoder 'beit' has no windows"),
        (
            {"encoder": '{"model_type": "vit"}', "drop_path_rate": 0.1},
            r"drop_path_rate=0.1: .*'vit' has no such setting",
        ),
    ],
)
def test_bad_input_is_refused_before_training(run_mim, offline, photos, tmp_path, settings, message):
    settings = {"mask_patch_size": 16 if "image_size" in settings else 8} | settings
    with pytest.raises(SystemExit, match=message):
        run_mim.COMMAND.main(options(photos, **({"output_dir": tmp_path} | settings)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"mask_ration": 0.5}', "unknown key 'mask_ration'. Did you mean mask_ratio?"),
        ('{"learning-rate": 0.5}', "unknown key 'learning-rate'. Did you mean learning_rate?"),
        ('{"mask_ratio": }', "not valid JSON"),
        ("[1]", "must be a JSON object"),
        ('{"image_size": "large"}', "invalid int value: 'large'"),
        ('{"eval_strategy": "epochs"}', "epochs"),
    ],
)
def test_bad_recipes_are_refused(run_mim, tmp_path, content, message):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(content)
    with pytest.raises(CommandError, match=message):
        run_mim.COMMAND.parse(["--recipe", str(recipe)])


def test_recipe_yields_to_the_command_line(run_mim, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"mask_ratio": 0.5, "num_train_epochs": 7, "encoder": ENCODER, "bf16": False}))
    data, model, training = run_mim.COMMAND.parse(
        ["--recipe", str(recipe), "--mask_ratio", "0.7", "--output_dir", str(tmp_path), "--train_dir", "x"]
    )
    assert (model.mask_ratio, training.num_train_epochs, data.train_dir) == (0.7, 7, "x")
    assert run_mim.build_config(model).hidden_size == 32
    with pytest.raises(CommandError, match="there is no recipe 'dem'"):
        run_mim.COMMAND.parse(["--recipe", "dem"])


def test_without_arguments_it_is_the_demo(run_mim):
    data, model, training = run_mim.COMMAND.parse([])
    assert training.output_dir == "runs/demo"
    assert run_mim.build_config(model).num_channels == 1
    train, validation = run_mim.load_splits(data, training.output_dir)
    assert (len(train), len(validation)) == (6000, 1000)


def test_recipes_take_every_form_of_value(run_mim, tmp_path):
    recipe = tmp_path / "recipe.json"
    values = {"image_size": 64, "data_files": "x.parquet", "per_device_train_batch_size": 8, "bf16": False}
    recipe.write_text(json.dumps(values | {"lr_scheduler_type": "linear", "max_train_samples": None}))
    data, model, training = run_mim.COMMAND.parse(["--recipe", str(recipe), "--use_cpu"])
    assert (data.data_files, model.image_size, training.bf16) == (["x.parquet"], [64], False)
    assert training.lr_scheduler_kwargs is None


def test_learning_rate_scales_with_the_global_batch(run_mim):
    arguments = ["--train_dir", "x", "--per_device_train_batch_size", "64", "--gradient_accumulation_steps", "4"]
    _, model, training = run_mim.COMMAND.parse([*arguments, "--base_learning_rate", "1e-4", "--use_cpu"])
    assert training.learning_rate == pytest.approx(1e-4 * 256 / 512)
    assert run_mim.build_config(model).encoder_config.embed_dim == 128
    _, _, training = run_mim.COMMAND.parse([*arguments, "--learning_rate", "3e-4", "--use_cpu"])
    assert training.learning_rate == 3e-4


def test_unknown_options_are_refused_with_the_nearest(run_mim):
    with pytest.raises(CommandError, match=r"unknown option --mask_rato. Did you mean --mask_ratio\?"):
        run_mim.COMMAND.parse(["--mask_rato", "0.5"])


@pytest.mark.parametrize("name", ["swin-tiny", "vit-base", "config", "folder", "simmim"])
def test_encoders_by_name(run_mim, tmp_path, name):
    encoder_config = SimMIMConfig(encoder_config=ENCODER).encoder_config
    encoder_config.save_pretrained(tmp_path / "folder")
    SimMIMConfig(encoder_config=encoder_config).save_pretrained(tmp_path / "simmim")
    paths = {
        "config": tmp_path / "folder" / "config.json",
        "folder": tmp_path / "folder",
        "simmim": tmp_path / "simmim",
    }
    config = run_mim.build_config(
        run_mim.PretrainingModelArguments(encoder=str(paths.get(name, name)), image_size=[64, 128])
    )
    assert config.image_size == (64, 128)
    assert config.encoder_config.model_type == ("beit" if name == "vit-base" else "swin")
    if name in paths:
        assert config.hidden_size == 32


def test_help_is_readable(run_mim, capsys):
    assert run_mim.COMMAND.main(["--help-all"]) is None
    text = capsys.readouterr().out
    assert text.splitlines()[0].startswith("usage: ")
    assert len(text.split("Pre-train a vision encoder")[0].splitlines()) < 4
    for group in ("images:", "model and masks:", "training (all of transformers.TrainingArguments):"):
        assert group in text


RECORDER = """
import os, sys
from hf_simmim.cli import pretrain
from hf_simmim.data import masked_images
read = masked_images.MaskedImageDataset.__getitem__
def recording(self, key):
    if self.crop_scale is not None:
        with open(os.environ["SEEN"], "a") as file:
            file.write(f"{key}\\n")
    return read(self, key)
masked_images.MaskedImageDataset.__getitem__ = recording
pretrain.COMMAND.main()
"""


def test_two_processes_equal_one_of_the_same_global_batch(photos, tmp_path):
    (tmp_path / "recorder.py").write_text(RECORDER)
    logs = {}
    for processes in (1, 2):
        output_dir, seen = tmp_path / f"run{processes}", tmp_path / f"seen{processes}"
        arguments = options(
            photos,
            output_dir,
            per_device_train_batch_size=8 // processes,
            per_device_eval_batch_size=3,
            num_train_epochs=4,
            encoder=json.dumps(ENCODER | {"drop_path_rate": 0.0}),
            # Rounding flips signs in the gradient of l1, and each flip is a step elsewhere: a small one, so that
            # what is compared is the same training.
            learning_rate=1e-4,
        )
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
        command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        if processes == 2:
            # `accelerate launch --cpu` starts one process whatever it is told; this starts two, and --use_cpu makes
            # them talk through gloo.
            command += ["--multi_gpu", "--main_process_port", "0"]
        environment = os.environ | {
            "SEEN": str(seen),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT / "src"),
        }
        result = subprocess.run(
            [*command, str(tmp_path / "recorder.py"), *arguments], env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr[-3000:]
        keys = sorted(int(line) for line in seen.read_text().split())
        # 40 images, 4 epochs, every one once an epoch.
        assert keys == list(range(160))
        logs[processes] = read_log(output_dir)
    evaluated = ("loss", "masked_l1", "mean_color_l1", "gain_over_mean_color", "train_masked_l1", "rankme")
    for key, steps in (("loss", 20), ("masked_l1", 20), *((f"eval_{name}", 4) for name in evaluated)):
        one, two = ([entry[key] for entry in logs[processes] if key in entry] for processes in (1, 2))
        assert len(one) == steps
        # The logarithms of small shares amplify how the weights are rounded.
        assert two == pytest.approx(one, rel=1e-2 if key == "eval_rankme" else 1e-4), key


def test_visible_patches_only(run_mim, photos, tmp_path):
    """Mask patches that leave parts of a cell of Swin visible are refused before anything is trained."""
    visible = {"encode": "visible", "decoder_options": '{"num_layers": 1}'}
    run_mim.COMMAND.main(options(photos, tmp_path / "run", mask_ratio=0.75, max_steps=2, **visible))
    assert "visible patches only, as in GreenMIM; a decoder of 1 layer" in (tmp_path / "run" / "README.md").read_text()
    with pytest.raises(SystemExit, match="mask_patch_size=4: .* leaves out cells of 8 px. Set it to a multiple of 8"):
        run_mim.COMMAND.main(options(photos, tmp_path / "refused", mask_patch_size=4, **visible))
    assert not (tmp_path / "refused" / "run.json").exists()
