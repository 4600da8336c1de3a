"""The command that exports a checkpoint: what it writes, and says about running it."""

import importlib.util

import numpy as np
import pytest
import torch
from export_models import make_config, run_onnx, save_classifier, shaken
from photos import random_photo
from tiny import vit_config
from transformers import ViTImageProcessorPil, ViTModel

from hf_simmim import SimMIMConfig, SimMIMForImageClassification, SimMIMImageProcessorPil, SimMIMModel
from hf_simmim.cli.export import COMMAND


def test_convolutions_are_exported_for_any_size(tmp_path, capsys):
    model = shaken(SimMIMModel(make_config("resnet")))
    model.save_pretrained(tmp_path / "pretrained")
    output_dir = tmp_path / "exported"
    options = ["--dynamic_size", "--format", "both", "--output_dir", str(output_dir)]
    COMMAND.main(["--checkpoint", str(tmp_path / "pretrained"), *options])
    printed = capsys.readouterr().out
    assert "pixel_values (batch, 3, height, width)" in printed
    assert "feature_map (batch, 16, h, w)" in printed
    assert "height and width are multiples of 8 px, at least 16" in printed
    assert "verified on random images of 64x96, 16x24, 72x112 px in batches of 1 and 3" in printed
    pixel_values = torch.randn(2, 3, 40, 32)
    run = torch.export.load(output_dir / "model.pt2").module()
    with torch.no_grad():
        expected = model(pixel_values).feature_map
        for feature_map in (run_onnx(output_dir / "model.onnx", pixel_values)[2], run(pixel_values)[2]):
            torch.testing.assert_close(feature_map, expected, rtol=1e-4, atol=1e-4)


def test_classifier_by_script_and_what_it_says_about_running_it(tmp_path, monkeypatch, capsys):
    model = save_classifier(tmp_path / "classifier")
    random_photo(np.random.default_rng(0), (120, 80)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    options = ["--format", "both", "--image_size", "48", "72", "--opset", "18"]
    COMMAND.main(["--checkpoint", "classifier", "--output_dir", "exported", *options])
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
    COMMAND.main(
        f"--checkpoint {tmp_path / 'stock'} --output_dir {output_dir} --format torch --no_dynamic_batch".split()
    )
    assert "last_hidden_state (1, 16, 32)" in capsys.readouterr().out
    pixel_values = torch.randn(1, 3, 32, 32)
    run = torch.export.load(output_dir / "model.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(run(pixel_values)[0], stock(pixel_values).last_hidden_state[:, 1:])
    with pytest.raises(AssertionError, match="Guard failed"):
        run(torch.randn(2, 3, 32, 32))


def test_missing_packages_are_named(tmp_path, monkeypatch):
    save_classifier(tmp_path / "classifier")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else found(name, *rest)
    )
    with pytest.raises(SystemExit, match=r'error: ONNX files need onnxruntime,.* pip install "hf-simmim\[export\]"'):
        COMMAND.main(["--checkpoint", str(tmp_path / "classifier"), "--output_dir", str(tmp_path / "exported")])
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--output_dir {0}/new", "No checkpoint is named"),
        ("--checkpoint {0}/classifier --output_dir {0}/classifier", "is the checkpoint, which must not change"),
        ("--checkpoint {0}/classifier --output_dir {0}", "is not empty"),
        ("--checkpoint {0}/none --output_dir {0}/new", "neither the folder of a model nor a model on the Hub"),
        ("--checkpoint {0}/classifier --output_dir {0}/new --opset 9", "opset=9 is older than what torch writes"),
        ("--checkpoint {0}/classifier --output_dir {0}/new --image_size 1 2 3", "is invalid"),
        (
            "--checkpoint {0}/classifier --output_dir {0}/new --task reconstruction",
            "needs a checkpoint of SimMIMForMaskedImageModeling, but .* holds SimMIMForImageClassification",
        ),
    ],
)
def test_bad_options_are_refused(options, message, tmp_path):
    save_classifier(tmp_path / "classifier")
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        COMMAND.main(options.format(tmp_path).split())
    assert not (tmp_path / "new").exists()
