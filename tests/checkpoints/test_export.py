"""Exported programs against the models that they were made of."""

import copy
import importlib.util

import numpy as np
import onnxruntime
import pytest
import torch
from photos import random_photo
from tiny import VIT_SIZES, beit_config, swin_config, swinv2_config, vit_config
from transformers import ConvNextConfig, Dinov2Config, ResNetConfig, ViTImageProcessorPil, ViTModel

from hf_simmim import (
    SimMIMConfig,
    SimMIMForImageClassification,
    SimMIMForMaskedImageModeling,
    SimMIMImageProcessorPil,
    SimMIMModel,
)
from hf_simmim.checkpoints import export
from hf_simmim.checkpoints.export import Program, export_program, load_program
from hf_simmim.cli import export as script

SIZE = (64, 96)
# Windows that shift, that are larger than a stage, and that do not divide it.
ODD_WINDOWS = {"patch_size": 4, "window_size": 12, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 1]}
ENCODERS = {
    "swin": lambda: swin_config(**ODD_WINDOWS),
    "swinv2": lambda: swinv2_config(**ODD_WINDOWS),
    "vit": lambda: vit_config(num_hidden_layers=1),
    "beit": lambda: beit_config(num_hidden_layers=1),
    "dinov2": lambda: Dinov2Config(**VIT_SIZES),
    "convnext": lambda: ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "resnet": lambda: ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
}


def make_config(encoder: str, **settings) -> SimMIMConfig:
    config = SimMIMConfig(encoder_config=ENCODERS[encoder]().to_dict(), **settings)
    config.image_size = SIZE
    return config


def shaken(model):
    """Weights as training leaves them: none is zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def save_classifier(path, encoder: str = "vit"):
    config = make_config(encoder)
    config.id2label = dict(enumerate(("cat", "dog", "eel")))
    model = shaken(SimMIMForImageClassification(config))
    model.save_pretrained(path)
    SimMIMImageProcessorPil(size=SIZE, image_mean=[0.2, 0.4, 0.6]).save_pretrained(path)
    return model


def run_onnx(path, *inputs: torch.Tensor) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(path)
    feed = {entry.name: value.numpy() for entry, value in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(output) for output in session.run(None, feed)]


@pytest.mark.parametrize(
    "encoder",
    [pytest.param(name, marks=[] if name in ("swin", "resnet") else [pytest.mark.slow]) for name in ENCODERS],
)
def test_features_are_those_of_the_model(encoder, tmp_path):
    model = shaken(SimMIMModel(make_config(encoder)))
    files = export_program(Program(model, "features"), tmp_path, ("onnx", "torch"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.pt2"]
    pixel_values = torch.randn(5, 3, *SIZE)
    with torch.no_grad():
        expected = model(pixel_values)
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for actual in (run_onnx(tmp_path / "model.onnx", pixel_values), loaded(pixel_values)):
        for name, output in zip(("last_hidden_state", "pooler_output", "feature_map"), actual, strict=True):
            torch.testing.assert_close(output, expected[name], rtol=1e-4, atol=1e-4)
    for file in files:
        assert file.inputs == {"pixel_values": ("batch", 3, *SIZE)}
        assert file.outputs["pooler_output"] == ("batch", model.config.hidden_size)
        assert set(file.differences) == set(file.outputs)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert {entry.name: tuple(entry.shape) for entry in session.get_inputs()} == files[0].inputs
    assert {entry.name: tuple(entry.shape) for entry in session.get_outputs()} == files[0].outputs


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_classes_are_those_of_the_model(encoder, tmp_path):
    model = save_classifier(tmp_path / "classifier", encoder)
    export_program(load_program(str(tmp_path / "classifier")), tmp_path, ("onnx", "torch"))
    pixel_values = torch.randn(5, 3, *SIZE)
    with torch.no_grad():
        expected = model(pixel_values).logits
    (loaded,) = torch.export.load(tmp_path / "model.pt2").module()(pixel_values)
    (run,) = run_onnx(tmp_path / "model.onnx", pixel_values)
    torch.testing.assert_close(loaded, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(run, expected, rtol=1e-4, atol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


def test_convolutions_are_exported_for_any_size(tmp_path, capsys):
    model = shaken(SimMIMModel(make_config("resnet")))
    model.save_pretrained(tmp_path / "pretrained")
    output_dir = tmp_path / "exported"
    options = ["--dynamic_size", "--format", "both", "--output_dir", str(output_dir)]
    script.main(["--checkpoint", str(tmp_path / "pretrained"), *options])
    printed = capsys.readouterr().out
    assert "pixel_values (batch, 3, height, width)" in printed
    assert "feature_map (batch, 16, h, w)" in printed
    assert "height and width are multiples of 8 px, from 16 on" in printed
    assert "checked on random images of 64x96, 16x24, 72x112 px in batches of 1 and 3" in printed
    pixel_values = torch.randn(2, 3, 40, 32)
    run = torch.export.load(output_dir / "model.pt2").module()
    with torch.no_grad():
        expected = model(pixel_values).feature_map
        for feature_map in (run_onnx(output_dir / "model.onnx", pixel_values)[2], run(pixel_values)[2]):
            torch.testing.assert_close(feature_map, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("encoder", ["swin", "vit"])
def test_positions_are_for_one_size(encoder, tmp_path):
    program = Program(SimMIMModel(make_config(encoder)), "features")
    with pytest.raises(ValueError, match="dynamic_size: the encoder '.*' is laid out for images of one size"):
        export_program(program, tmp_path, ("torch",), dynamic_size=True)


@pytest.mark.parametrize(
    ("encoder", "settings", "outputs"),
    [
        ("swin", {}, ("prediction", "reconstruction")),
        ("resnet", {"target": "normalized_rgb"}, ("prediction", "reconstruction")),
    ],
)
def test_a_mask_hides_patches_in_a_program(encoder, settings, outputs, tmp_path):
    model = shaken(SimMIMForMaskedImageModeling(make_config(encoder, **settings)))
    program = Program(model, "reconstruction")
    assert program.output_names == outputs
    export_program(program, tmp_path, ("torch",))
    run = torch.export.load(tmp_path / "model.pt2").module()
    pixel_values, mask = program.random_inputs(3, seed=5)
    with torch.no_grad():
        expected = model(pixel_values, bool_masked_pos=mask)
        for name, output in zip(outputs, run(pixel_values, mask), strict=True):
            torch.testing.assert_close(output, expected[name], rtol=1e-4, atol=1e-4)
        unmasked = run(pixel_values, torch.zeros_like(mask))[0]
    assert (unmasked - expected.prediction).abs().max() > 0.01


def test_classifier_by_script_and_what_it_says_about_running_it(tmp_path, monkeypatch, capsys):
    model = save_classifier(tmp_path / "classifier")
    random_photo(np.random.default_rng(0), (120, 80)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    options = ["--format", "both", "--image_size", "48", "72", "--opset", "18"]
    script.main(["--checkpoint", "classifier", "--output_dir", "exported", *options])
    printed = capsys.readouterr().out
    assert "inputs   pixel_values (batch, 3, 48, 72)\noutputs  logits (batch, 3)" in printed
    # The code lies beside the settings that name it.
    names = sorted(path.name for path in (tmp_path / "exported").iterdir() if path.suffix != ".py")
    assert names == ["config.json", "model.onnx", "model.pt2", "preprocessor_config.json"]
    config = SimMIMConfig.from_pretrained("exported")
    assert (config.id2label, config.image_size) == (model.config.id2label, (48, 72))
    model = SimMIMForImageClassification.from_pretrained("classifier", image_size=(48, 72))
    processor = SimMIMImageProcessorPil.from_pretrained("classifier", size=(48, 72))
    with torch.no_grad():
        expected = model(**processor("photo.jpg", return_tensors="pt")).logits
    snippets = printed.split("\n\n", 1)[1].split("\nimport ")
    assert len(snippets) == 2
    for snippet in snippets:
        names = {}
        exec("import " + snippet.removeprefix("import "), names)
        torch.testing.assert_close(torch.as_tensor(names["logits"]), expected, rtol=1e-4, atol=1e-4)


def test_models_of_transformers_and_single_images(tmp_path, capsys):
    stock = shaken(ViTModel(vit_config(num_hidden_layers=1), add_pooling_layer=False))
    stock.save_pretrained(tmp_path / "stock")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "stock")
    output_dir = tmp_path / "exported"
    script.main(
        f"--checkpoint {tmp_path / 'stock'} --output_dir {output_dir} --format torch --no_dynamic_batch".split()
    )
    assert "last_hidden_state (1, 16, 32)" in capsys.readouterr().out
    pixel_values = torch.randn(1, 3, 32, 32)
    run = torch.export.load(output_dir / "model.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(run(pixel_values)[0], stock(pixel_values).last_hidden_state[:, 1:])
    with pytest.raises(AssertionError, match="Guard failed"):
        run(torch.randn(2, 3, 32, 32))


def test_what_does_not_compute_the_same_is_not_kept(tmp_path, monkeypatch):
    program = Program(shaken(SimMIMModel(make_config("vit"))), "features")
    other = copy.deepcopy(program)
    export_program(program, tmp_path, ("torch",))
    before = (tmp_path / "model.pt2").read_bytes()
    with torch.no_grad():
        next(other.model.encoder.layers[0].parameters()).mul_(1.01)
    trace = export.trace
    monkeypatch.setattr(export, "trace", lambda program, *sizes: trace(other, *sizes))
    with pytest.raises(ValueError, match=r"model.pt2 does not compute what the model does: \w+ is off by"):
        export_program(program, tmp_path, ("torch",))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_bytes() == before


def test_numbers_that_are_none_are_refused(tmp_path):
    model = SimMIMModel(make_config("vit"))
    with torch.no_grad():
        next(model.encoder.layers[0].parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="is off by nan"):
        export_program(Program(model, "features"), tmp_path, ("torch",))
    assert not any(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path, monkeypatch):
    save_classifier(tmp_path / "classifier")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else found(name, *rest)
    )
    with pytest.raises(SystemExit, match=r'error: ONNX files need onnxruntime,.* pip install "hf-simmim\[export\]"'):
        script.main(["--checkpoint", str(tmp_path / "classifier"), "--output_dir", str(tmp_path / "exported")])
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--output_dir {0}/new", "No checkpoint is named"),
        ("--checkpoint {0}/classifier --output_dir {0}/classifier", "is the checkpoint, which stays as it is"),
        ("--checkpoint {0}/classifier --output_dir {0}", "is not empty"),
        ("--checkpoint {0}/none --output_dir {0}/new", "neither a folder with a model nor one on the Hub"),
        ("--checkpoint {0}/classifier --output_dir {0}/new --opset 9", "opset=9 is older than what torch writes"),
        ("--checkpoint {0}/classifier --output_dir {0}/new --image_size 1 2 3", "is no size"),
        (
            "--checkpoint {0}/classifier --output_dir {0}/new --task reconstruction",
            "needs a checkpoint of SimMIMForMaskedImageModeling, and .* holds SimMIMForImageClassification",
        ),
    ],
)
def test_bad_options_are_refused(options, message, tmp_path):
    save_classifier(tmp_path / "classifier")
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        script.main(options.format(tmp_path).split())
    assert not (tmp_path / "new").exists()


def test_the_task_follows_the_checkpoint(tmp_path):
    save_classifier(tmp_path / "classifier")
    assert load_program(str(tmp_path / "classifier")).output_names == ("logits",)
    assert load_program(str(tmp_path / "classifier"), "features").output_names[0] == "last_hidden_state"
    SimMIMForMaskedImageModeling(make_config("vit")).save_pretrained(tmp_path / "pretrained")
    assert load_program(str(tmp_path / "pretrained")).output_names[0] == "last_hidden_state"
    with pytest.raises(ValueError, match="task='classification' needs a checkpoint of SimMIMForImageClassification"):
        load_program(str(tmp_path / "pretrained"), "classification")
