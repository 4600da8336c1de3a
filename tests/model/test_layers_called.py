"""Layers are called, whatever has been done to them: hooks, pruning, offloading, quantization, adapters.

Only plain layers may be merged into one product, which is checked here, too.
"""

import copy
from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
import torch.nn.functional as F
from tiny import ENCODER_CONFIGS, batch, swin_config, swinv2_config, vit_config
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.overrides import TorchFunctionMode

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling
from hf_simmim.model.plain_layers import is_plain, project_patches
from hf_simmim.model.swin import Swin
from hf_simmim.model.swinv2 import Swinv2

INVERSE_SWIN: dict[str, Any] = {
    "head": "inverse_swin",
    "head_options": {"embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 2},
}
# All that is built of our Swin's layers.
OURS: dict[str, Callable[[], SimMIMConfig]] = {
    "swin": lambda: SimMIMConfig(encoder_config=swin_config()),
    "swinv2": lambda: SimMIMConfig(encoder_config=swinv2_config()),
    "inverse_swin": lambda: SimMIMConfig(encoder_config=vit_config(), **INVERSE_SWIN),
    "swin, head_inputs": lambda: SimMIMConfig(encoder_config=swin_config(), head_inputs=[0, 1], **INVERSE_SWIN),
}
MODELS: dict[str, Callable[[], SimMIMConfig]] = {
    **{name: lambda make=make: SimMIMConfig(encoder_config=make()) for name, make in ENCODER_CONFIGS.items()},
    **OURS,
}


def build(make: Callable[[], SimMIMConfig]) -> SimMIMForMaskedImageModeling:
    """A model whose parameters are all random, so that each of them matters."""
    torch.manual_seed(0)
    model = SimMIMForMaskedImageModeling(make()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def predict(model: SimMIMForMaskedImageModeling) -> torch.Tensor:
    pixel_values, mask = batch(model.config)
    return model(pixel_values, bool_masked_pos=mask).prediction


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


def swap(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_hooks_of_every_linear_layer_are_called(name, register):
    model = build(OURS[name])
    layers, called = linear_layers(model), set()
    for layer_name, layer in layers.items():
        getattr(layer, register)(lambda *_, layer_name=layer_name: called.add(layer_name))
    predict(model).sum().backward()
    assert called == set(layers)


@pytest.mark.parametrize("name", OURS)
def test_hooks_of_all_modules_are_called(name):
    """As profilers and counters of operations set them."""
    model, called = build(OURS[name]), set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: called.add(module))
    try:
        predict(model)
    finally:
        handle.remove()
    assert set(linear_layers(model).values()) <= called


@pytest.mark.parametrize("name", OURS)
def test_what_a_hook_returns_is_used(name):
    model = build(OURS[name])
    expected = predict(model)
    # The last value of all: its effect does not vanish.
    layer = [
        layer for layer_name, layer in linear_layers(model).items() if "value" in layer_name or "v_proj" in layer_name
    ][-1]
    handle = layer.register_forward_hook(lambda module, inputs, output: output * 2)
    assert not torch.allclose(predict(model), expected, atol=1e-4)
    handle.remove()
    assert torch.equal(predict(model), expected)


@pytest.mark.parametrize("name", OURS)
def test_pruned_weights_are_those_that_count(name):
    """Also where they change after pruning, as in training."""
    model, zeroed = build(OURS[name]), build(OURS[name])
    for layer_name, layer in linear_layers(model).items():
        if layer_name.rpartition(".")[2] in ("query", "key", "value"):
            prune.l1_unstructured(layer, "weight", 0.5)
            with torch.no_grad():
                layer.weight_orig.mul_(1.5)
                zeroed.get_submodule(layer_name).weight.copy_(layer.weight_orig * layer.weight_mask)
    assert torch.allclose(predict(model), predict(zeroed), atol=1e-5)
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], 0.1)
    for _ in range(2):
        predict(model).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", OURS)
def test_parametrized_weights_are_used(name):
    class Double(nn.Module):
        def forward(self, weight):
            return weight * 2

    model, doubled = build(OURS[name]), build(OURS[name])
    for layer_name, layer in linear_layers(model).items():
        with torch.no_grad():
            doubled.get_submodule(layer_name).weight.mul_(2)
        parametrize.register_parametrization(layer, "weight", Double())
    assert torch.allclose(predict(model), predict(doubled), rtol=1e-4, atol=1e-4)


# The pooler of SigLIP reads weights of its layers itself, in transformers too.
@pytest.mark.parametrize("name", [name for name in MODELS if name != "siglip_vision_model"])
@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_an_offloaded_model_computes_the_same(name, place, tmp_path):
    """Its weights are on the meta device except while their layer is called."""
    model = build(MODELS[name])
    with torch.no_grad():
        expected = predict(model)
        device = torch.device("cpu")
        if place == "cpu":
            accelerate.cpu_offload(model, execution_device=device)
        else:
            accelerate.disk_offload(model, str(tmp_path), execution_device=device)
        assert any(parameter.is_meta for parameter in model.parameters())
        assert torch.allclose(predict(model), expected, rtol=1e-5, atol=1e-5)


class Int8Linear(nn.Linear):
    """Weights as bytes with a scale for each row, and only while it is called as numbers."""

    def forward(self, tokens):
        scale = self.weight.abs().amax(1, keepdim=True) / 127
        return F.linear(tokens, (self.weight / scale).round().to(torch.int8).float() * scale, self.bias)


class Int8Weight(torch.Tensor):
    """A weight that only the product of its own layer knows how to use, as those of quantization libraries."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.cat:
            raise NotImplementedError("there is no concatenation of quantized weights")
        if function is not F.linear:
            return super().__torch_function__(function, types, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("kind", ["layers", "weights"])
def test_a_quantized_model_computes_nearly_the_same(name, kind):
    model = build(OURS[name])
    with torch.no_grad():
        expected = predict(model)
        for layer in linear_layers(model).values():
            if kind == "layers":
                layer.__class__ = Int8Linear
            else:
                layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Int8Weight))
        difference = predict(model) - expected
    change = difference.norm() / expected.norm()
    assert change < 0.05
    assert (change > 1e-4) == (kind == "layers")


class Adapter(nn.Module):
    """Adds a small layer to another one, as LoRA does, and hides its other attributes."""

    def __init__(self, base: nn.Module, update: nn.Module):
        super().__init__()
        self.base, self.update = base, update

    def forward(self, inputs):
        return self.base(inputs) + self.update(inputs)


@pytest.mark.parametrize("name", OURS)
def test_adapters_of_every_linear_layer_are_trained(name):
    model = build(OURS[name]).requires_grad_(False)
    expected = predict(model)
    for layer_name, layer in linear_layers(model).items():
        update = nn.Linear(layer.in_features, layer.out_features, bias=False)
        nn.init.zeros_(update.weight)
        swap(model, layer_name, Adapter(layer, update))
    prediction = predict(model)
    assert torch.allclose(prediction, expected, atol=1e-5)
    prediction.square().sum().backward()
    adapters = [module for module in model.modules() if isinstance(module, Adapter)]
    assert all(adapter.update.weight.grad is not None for adapter in adapters)


def test_adapters_of_fused_hidden_states():
    model = build(OURS["swin, head_inputs"])
    expected = predict(model)
    for index, projection in enumerate(model.fusion.projections):
        update = copy.deepcopy(projection).requires_grad_(True)
        nn.init.zeros_(update.weight)
        nn.init.zeros_(update.bias)
        model.fusion.projections[index] = Adapter(projection, update)
    assert torch.allclose(predict(model), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["siglip_vision_model", "clip_vision_model", "hiera", "dinov3_vit", "dinov2"])
def test_an_adapter_of_the_patch_embedding_keeps_the_mask_token(name):
    """It would otherwise see zeros where patches are masked, and the token would not be trained."""
    model = build(MODELS[name])
    expected = predict(model)
    layers = [layer for layer in model.simmim.encoder.named_modules() if isinstance(layer[1], nn.Conv2d)]
    layer_name, layer = layers[0]
    update = copy.deepcopy(layer)
    update._forward_hooks.clear()
    for parameter in update.parameters():
        nn.init.zeros_(parameter)
    swap(model.simmim.encoder, layer_name, Wrapped(layer, update))
    prediction = predict(model)
    assert torch.allclose(prediction, expected, atol=1e-5)
    prediction.square().sum().backward()
    tokens = [parameter for key, parameter in model.named_parameters() if key.endswith("mask_token")]
    assert any(token.grad is not None and token.grad.abs().max() > 0 for token in tokens)


class Wrapped(Adapter):
    """An adapter through which the attributes of the layer are seen, as those of PEFT."""

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base, name)


class Products(TorchFunctionMode):
    """Counts the products with weights."""

    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function is F.linear
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("encoder_class", "make"), [(Swin, swin_config), (Swinv2, swinv2_config)])
def test_plain_layers_are_one_product(encoder_class, make):
    model, pixel_values = encoder_class(make()).eval(), torch.randn(1, 3, 32, 32)
    layers = linear_layers(model)
    with Products() as joint:
        expected = model(pixel_values)[0]
    # The patch embedding is one, too.
    assert joint.count == 1 + len(layers) - 2 * sum(make().depths)
    for layer in layers.values():
        layer.register_forward_hook(lambda *_: None)
    with Products() as apart:
        feature_map = model(pixel_values)[0]
    assert apart.count == 1 + len(layers)
    assert torch.allclose(feature_map, expected, atol=1e-5)


@pytest.mark.parametrize(("encoder_class", "make"), [(Swin, swin_config), (Swinv2, swinv2_config)])
def test_exported_and_compiled_programs_have_one_product(encoder_class, make):
    model, pixel_values = encoder_class(make()).eval().requires_grad_(False), torch.randn(1, 3, 32, 32)
    expected, number = model(pixel_values)[0], 1 + len(linear_layers(model)) - 2 * sum(make().depths)
    program = torch.export.export(model, (pixel_values,))
    products = [node for node in program.graph.nodes if node.target == torch.ops.aten.linear.default]
    assert len(products) == number
    assert torch.allclose(program.module()(pixel_values)[0], expected, atol=1e-5)
    assert torch.allclose(torch.compile(model, backend="eager", fullgraph=True)(pixel_values)[0], expected, atol=1e-5)
    model.encoder.layers[0].blocks[0].attention.self.value.register_forward_hook(lambda *arguments: arguments[2] * 2)
    torch._dynamo.reset()
    feature_map = torch.compile(model, backend="eager", fullgraph=True)(pixel_values)[0]
    assert torch.allclose(feature_map, model(pixel_values)[0], atol=1e-5)
    assert not torch.allclose(feature_map, expected, atol=1e-5)


def test_what_a_plain_layer_is():
    assert is_plain(nn.Linear(2, 2), nn.Linear)
    assert is_plain(nn.Linear(2, 2, bias=False), nn.Linear)
    assert not is_plain(nn.Linear(2, 2, device="meta"), nn.Linear)
    assert not is_plain(Int8Linear(2, 2), nn.Linear)
    layer = nn.Linear(2, 2)
    layer.forward = lambda tokens: tokens
    assert not is_plain(layer, nn.Linear)


@pytest.mark.parametrize(("patch_size", "size"), [(4, (32, 32)), (2, (12, 20))])
def test_the_patch_embedding_as_a_product_is_the_convolution(patch_size, size):
    layer = nn.Conv2d(3, 8, kernel_size=patch_size, stride=patch_size)
    pixel_values = torch.randn(2, 3, *size)
    with Products() as products:
        tokens = project_patches(pixel_values, layer)
    assert products.count == 1
    assert torch.allclose(tokens, layer(pixel_values).permute(0, 2, 3, 1), atol=1e-5)
    channels_last = pixel_values.to(memory_format=torch.channels_last)
    assert torch.equal(project_patches(channels_last, layer), tokens)
    layer.register_forward_hook(lambda *arguments: arguments[2] * 2)
    with Products() as products:
        doubled = project_patches(pixel_values, layer)
    assert products.count == 0
    assert torch.allclose(doubled, tokens * 2, atol=1e-5)
