"""Attention weights and hidden states on request, as transformers' own Swin and SwinV2 return them."""

import pytest
import torch
from safetensors.torch import save_file
from tiny import ENCODER_CONFIGS, batch, swin_config, swinv2_config, vit_config
from transformers import SwinBackbone, SwinModel, Swinv2Model

from hf_simmim import (
    SimMIMBackbone,
    SimMIMConfig,
    SimMIMForImageClassification,
    SimMIMForMaskedImageModeling,
    SimMIMModel,
)
from hf_simmim.model.swin import Swin
from hf_simmim.model.swinv2 import Swinv2

ENCODERS = {"swin": (Swin, swin_config, SwinModel), "swinv2": (Swinv2, swinv2_config, Swinv2Model)}


def make_pair(name, folder, **settings):
    """Our encoder with random weights, and transformers' with the same ones and attention step by step."""
    torch.manual_seed(0)
    encoder_class, make, stock_class = ENCODERS[name]
    config = make(**settings)
    ours = encoder_class(config).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.1)
    config.save_pretrained(folder)
    save_file({key: tensor.contiguous() for key, tensor in ours.state_dict().items()}, folder / "model.safetensors")
    return ours, stock_class.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (32, 32)),
        ({"image_size": 64}, (64, 64)),
        ({"image_size": 64, "window_size": 3}, (57, 71)),
        ({"image_size": 64, "window_size": 5, "qkv_bias": False}, (72, 56)),
        ({"depths": [1, 2, 3]}, (32, 32)),
    ],
    ids=str,
)
def test_the_weights_are_those_of_transformers(name, settings, size, tmp_path):
    """Of the last block of each stage; with shifts, padding and clamped windows."""
    ours, theirs = make_pair(name, tmp_path, **settings)
    pixel_values = torch.randn(2, 3, *size)
    with torch.no_grad():
        fast = ours(pixel_values)
        feature_map, hidden_states, attentions = ours(pixel_values, output_attentions=True)
        expected = theirs(pixel_values, output_attentions=True).attentions
    assert len(attentions) == len(expected) == 3
    for weights, their_weights in zip(attentions, expected, strict=True):
        assert weights.shape == their_weights.shape
        assert torch.allclose(weights, their_weights, atol=1e-5)
    assert torch.allclose(feature_map, fast[0], atol=1e-5)
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(hidden_states, fast[1], strict=True))
    assert len(fast) == 2


MODELS = (SimMIMModel, SimMIMForMaskedImageModeling, SimMIMForImageClassification, SimMIMBackbone)


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize("make", [swin_config, swinv2_config, vit_config])
def test_every_model_returns_them_on_request(model_class, make):
    torch.manual_seed(0)
    config = SimMIMConfig(encoder_config=make(), attn_implementation="eager")
    model, (pixel_values, _) = model_class(config).eval(), batch(config)
    plain = model(pixel_values)
    assert plain.attentions is None
    outputs = model(pixel_values, output_attentions=True)
    for key in plain:
        for first, second in zip(*(flat(output[key]) for output in (plain, outputs)), strict=True):
            assert torch.allclose(first, second, atol=1e-5)
    assert len(outputs.attentions) == (2 if make is vit_config else 3)
    for weights in outputs.attentions:
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
    assert torch.equal(model(pixel_values, output_attentions=True, return_dict=False)[-1][0], outputs.attentions[0])
    # By the config, too.
    config.output_attentions = True
    by_config = model_class(config).eval()
    by_config.load_state_dict(model.state_dict())
    assert torch.equal(by_config(pixel_values).attentions[0], outputs.attentions[0])


def flat(values):
    return values if isinstance(values, tuple) else (values,)


@pytest.mark.parametrize("make", [swin_config, swinv2_config])
def test_they_have_gradients_also_with_checkpointing(make):
    torch.manual_seed(0)
    config = SimMIMConfig(encoder_config=make())
    model, (pixel_values, mask) = SimMIMForMaskedImageModeling(config).train(), batch(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    losses = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        outputs = model(pixel_values, bool_masked_pos=mask, output_attentions=True)
        for weights in outputs.attentions:
            weights.retain_grad()
        outputs.loss.backward()
        assert checkpointing or all(weights.grad.abs().max() > 0 for weights in outputs.attentions)
        losses.append((outputs.loss.detach(), *outputs.attentions))
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(*losses, strict=True))


def test_the_backbone_returns_what_transformers_does(tmp_path):
    torch.manual_seed(0)
    encoder_config = swin_config(image_size=64, depths=[1, 2, 1], num_heads=[1, 2, 2])
    model = SimMIMBackbone(SimMIMConfig(encoder_config=encoder_config)).eval()
    model.export_encoder(tmp_path)
    names = ["stage1", "stage2", "stage3"]
    stock = SwinBackbone.from_pretrained(tmp_path, out_features=names, attn_implementation="eager").eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours = model(pixel_values, output_attentions=True, output_hidden_states=True)
        theirs = stock(pixel_values, output_attentions=True, output_hidden_states=True)
    for weights, expected in zip(ours.attentions, theirs.attentions, strict=True):
        assert torch.allclose(weights, expected, atol=1e-5)
    for state, expected in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert torch.allclose(state.transpose(1, 2).view_as(expected), expected, atol=2e-5)


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize("name", ["swin", "vit", "hiera", "convnext"])
def test_chosen_hidden_states(model_class, name):
    torch.manual_seed(0)
    config = SimMIMConfig(encoder_config=ENCODER_CONFIGS[name]())
    model, (pixel_values, _) = model_class(config).eval(), batch(config)
    with torch.no_grad():
        every = model(pixel_values, output_hidden_states=True).hidden_states
        for chosen, indices in (([0, -1], {0, len(every) - 1}), (1, {1}), ((1, 99), {1})):
            states = model(pixel_values, output_hidden_states=chosen).hidden_states
            assert len(states) == len(every)
            assert {index for index, state in enumerate(states) if state is not None} == indices
            assert all(torch.equal(states[index], every[index]) for index in indices)
        for nothing in (False, [], None):
            assert model(pixel_values, output_hidden_states=nothing).hidden_states is None


def test_hidden_states_of_the_head_need_not_be_chosen():
    config = SimMIMConfig(encoder_config=swin_config(), head_inputs=[0, 1])
    model, (pixel_values, mask) = SimMIMForMaskedImageModeling(config).eval(), batch(config)
    outputs = model(pixel_values, bool_masked_pos=mask, output_hidden_states=[2])
    assert [state is None for state in outputs.hidden_states] == [True, True, False, True]
    assert torch.equal(outputs.prediction, model(pixel_values, bool_masked_pos=mask).prediction)
