"""Exported programs against the models that they were made of."""

import copy

import onnxruntime
import pytest
import torch
from export_models import ENCODERS, SIZE, make_config, run_onnx, save_classifier, shaken

from hf_simmim import SimMIMForMaskedImageModeling, SimMIMModel
from hf_simmim.checkpoints import export
from hf_simmim.checkpoints.export import ExportProgram, export_program, load_program


@pytest.mark.parametrize(
    "encoder",
    [pytest.param(name, marks=[] if name in ("swin", "resnet") else [pytest.mark.slow]) for name in ENCODERS],
)
def test_features_are_those_of_the_model(encoder, tmp_path):
    model = shaken(SimMIMModel(make_config(encoder)))
    files = export_program(ExportProgram(model, "features"), tmp_path, ("onnx", "torch"))
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


@pytest.mark.parametrize("encoder", ["swin", "vit"])
def test_positions_are_for_one_size(encoder, tmp_path):
    program = ExportProgram(SimMIMModel(make_config(encoder)), "features")
    with pytest.raises(ValueError, match="dynamic_size: the encoder '.*' only supports images of one size"):
        export_program(program, tmp_path, ("torch",), dynamic_size=True)


@pytest.mark.parametrize(
    ("encoder", "settings", "outputs"),
    [
        ("swin", {}, ("prediction", "reconstruction")),
        ("resnet", {"target": "normalized_rgb"}, ("prediction", "reconstruction")),
        ("vit", {"encode": "visible"}, ("prediction", "reconstruction")),
    ],
)
def test_a_mask_hides_patches_in_a_program(encoder, settings, outputs, tmp_path):
    model = shaken(SimMIMForMaskedImageModeling(make_config(encoder, **settings)))
    program = ExportProgram(model, "reconstruction")
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


def test_what_does_not_compute_the_same_is_not_kept(tmp_path, monkeypatch):
    program = ExportProgram(shaken(SimMIMModel(make_config("vit"))), "features")
    other = copy.deepcopy(program)
    export_program(program, tmp_path, ("torch",))
    before = (tmp_path / "model.pt2").read_bytes()
    with torch.no_grad():
        next(other.model.encoder.layers[0].parameters()).mul_(1.01)
    trace = export.trace
    monkeypatch.setattr(export, "trace", lambda program, *sizes: trace(other, *sizes))
    with pytest.raises(ValueError, match=r"model.pt2 does not compute the same as the model: \w+ differs by"):
        export_program(program, tmp_path, ("torch",))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_bytes() == before


def test_numbers_that_are_none_are_refused(tmp_path):
    model = SimMIMModel(make_config("vit"))
    with torch.no_grad():
        next(model.encoder.layers[0].parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="differs by nan"):
        export_program(ExportProgram(model, "features"), tmp_path, ("torch",))
    assert not any(tmp_path.iterdir())


def test_the_task_follows_the_checkpoint(tmp_path):
    save_classifier(tmp_path / "classifier")
    assert load_program(str(tmp_path / "classifier")).output_names == ("logits",)
    assert load_program(str(tmp_path / "classifier"), "features").output_names[0] == "last_hidden_state"
    SimMIMForMaskedImageModeling(make_config("vit")).save_pretrained(tmp_path / "pretrained")
    assert load_program(str(tmp_path / "pretrained")).output_names[0] == "last_hidden_state"
    with pytest.raises(ValueError, match="task='classification' needs a checkpoint of SimMIMForImageClassification"):
        load_program(str(tmp_path / "pretrained"), "classification")
