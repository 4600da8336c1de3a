"""Parity with the authors' released code, from its checkpoints in its own format."""

import json
from types import SimpleNamespace

import pytest
import torch
from golden import FIXTURES, GOLDEN, golden_model, golden_values, our_names

from hf_simmim.losses import l1, masked_mean
from hf_simmim.trainer import SimMIMTrainer


@pytest.fixture(scope="module", params=GOLDEN)
def golden(request):
    """Model with the authors' weights, their values, and our outputs after a backward."""
    model, values = golden_model(request.param), golden_values(request.param)
    outputs = model(values["pixel_values"], bool_masked_pos=values["mask"])
    # The loss of SwinV2 is against a normalised target, which the file gives.
    loss = outputs.loss
    if "target" in values:
        loss = masked_mean(l1(outputs.reconstruction, values["target"]), values["mask"].bool())
    loss.backward()
    feature_map = model.simmim(values["pixel_values"], bool_masked_pos=values["mask"]).feature_map
    return SimpleNamespace(
        encoder=request.param, model=model, values=values, outputs=outputs, loss=loss, feature_map=feature_map
    )


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def test_forward(golden):
    assert relative_error(golden.feature_map, golden.values["encoder_output"]) < 1e-5
    assert relative_error(golden.outputs.reconstruction, golden.values["reconstruction"]) < 1e-5
    assert relative_error(golden.loss, golden.values["loss"][0]) < 1e-5


def test_gradients(golden):
    gradients = {name: parameter.grad for name, parameter in golden.model.named_parameters()}
    unseen = set(gradients)
    for key, expected in golden.values.items():
        if key.startswith("grad_norm."):
            names = our_names(key.removeprefix("grad_norm."), golden.encoder)
            norm = torch.cat([gradients[name].flatten() for name in names]).norm()
            assert relative_error(norm, expected[0]) < 1e-4, key
            unseen -= set(names)
    assert not unseen


def test_weight_decay_is_applied_as_released():
    expected = json.loads((FIXTURES / "pretrain_weight_decay.json").read_text())["swin"]
    decayed = set(SimMIMTrainer.get_decay_parameter_names(None, golden_model("swin")))
    for group, is_decayed in (("decay", True), ("no_decay", False)):
        for name in expected[group]:
            for ours in our_names(name):
                assert (ours in decayed) is is_decayed, name
