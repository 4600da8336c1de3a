"""Parity with the authors' released code, from its checkpoints in its own format."""

from types import SimpleNamespace

import pytest
import torch
from golden import GOLDEN, golden_model, golden_values, our_names


@pytest.fixture(scope="module", params=GOLDEN)
def golden(request):
    """Model with the authors' weights, their values, and our outputs after a backward."""
    model, values = golden_model(request.param), golden_values(request.param)
    outputs = model(values["pixel_values"], bool_masked_pos=values["mask"])
    outputs.loss.backward()
    feature_map = model.simmim(values["pixel_values"], bool_masked_pos=values["mask"]).feature_map
    return SimpleNamespace(encoder=request.param, model=model, values=values, outputs=outputs, feature_map=feature_map)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def test_forward(golden):
    assert relative_error(golden.feature_map, golden.values["encoder_output"]) < 1e-5
    assert relative_error(golden.outputs.prediction, golden.values["reconstruction"]) < 1e-5
    assert relative_error(golden.outputs.loss, golden.values["loss"][0]) < 1e-5


def test_normalized_target():
    """SwinV2 predicts pixels normalized in windows of 47 px."""
    model, values = golden_model("swinv2"), golden_values("swinv2")
    assert (model.config.target, model.config.target_options) == ("normalized_rgb", {"window_size": 47})
    torch.testing.assert_close(model.target(values["pixel_values"]), values["target"], rtol=1e-5, atol=1e-5)


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
