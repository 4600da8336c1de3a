"""Our SwinV2 against transformers' SwinV2, on grids of every kind."""

import math

import pytest
import torch
from safetensors.torch import load_file
from tiny import swinv2_config
from transformers import Swinv2Model

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling
from hf_simmim.model.swinv2 import Swinv2, log_spaced_coordinates


def randomise(model: torch.nn.Module) -> None:
    """Move weights off their start, where norms of zero hide most of the model; scales reach beyond their limit."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("logit_scale"):
                parameter.uniform_(1.0, math.log(100) + 1.0)
            else:
                parameter.normal_(std=0.3)


def make_pair(tmp_path, **kwargs) -> tuple[Swinv2, Swinv2Model]:
    """transformers' SwinV2 with random weights, and ours with what it saved; no name is left over on either side."""
    theirs = Swinv2Model(swinv2_config(**kwargs), use_mask_token=True).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    ours = Swinv2(theirs.config, use_mask_token=True).eval()
    ours.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    return ours, theirs


# A stage that is one window on its config's image never shifts in transformers, so larger images need a larger config.
@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (32, 32)),
        ({"image_size": 64}, (64, 96)),
        ({"image_size": 64, "window_size": 8}, (64, 64)),
        ({"image_size": 64, "window_size": 3}, (64, 64)),
        ({"image_size": 64, "window_size": 3}, (57, 71)),
        ({"image_size": 64, "window_size": 5}, (72, 56)),
        ({"image_size": (32, 64)}, (32, 64)),
        ({"pretrained_window_sizes": [6, 3, 8]}, (32, 32)),
        ({"qkv_bias": False, "mlp_ratio": 2.0, "num_channels": 5}, (32, 32)),
    ],
    ids=str,
)
def test_same_features_as_transformers(tmp_path, settings, size):
    ours, theirs = make_pair(tmp_path, **settings)
    pixel_values = torch.randn(2, ours.config.num_channels, *size)
    mask = torch.rand(2, *(-(-side // 2) for side in size)) < 0.5
    with torch.no_grad():
        feature_map, hidden_states = ours(pixel_values, mask)
        expected = theirs(pixel_values, bool_masked_pos=mask.flatten(1), output_hidden_states=True)
    assert torch.allclose(feature_map.flatten(2).transpose(1, 2), expected.last_hidden_state, rtol=1e-5, atol=1e-5)
    assert len(hidden_states) == len(expected.hidden_states)
    for hidden_state, theirs_state in zip(hidden_states, expected.hidden_states, strict=True):
        assert torch.allclose(hidden_state, theirs_state, rtol=1e-5, atol=1e-5)


def test_same_gradients_as_transformers(tmp_path):
    """On a grid with shifts and padding, where keys are zero."""
    ours, theirs = make_pair(tmp_path, image_size=64, window_size=3)
    pixel_values, mask = torch.randn(2, 3, 60, 64), torch.rand(2, 30, 32) < 0.5
    weights = torch.randn(ours(pixel_values, mask)[0].shape)
    (ours(pixel_values, mask)[0] * weights).sum().backward()
    tokens = theirs(pixel_values, bool_masked_pos=mask.flatten(1)).last_hidden_state
    (tokens * weights.flatten(2).transpose(1, 2)).sum().backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - expected[name]).norm() <= 1e-4 * expected[name].norm(), name


def test_transformers_reads_what_we_save(tmp_path):
    config = swinv2_config()
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=config))
    state_dict = model.simmim.encoder.state_dict()
    assert "relative_coords_table" not in " ".join(state_dict)
    theirs, info = Swinv2Model.from_pretrained(
        None, config=config, state_dict=state_dict, use_mask_token=True, output_loading_info=True
    )
    assert not any(info.values())
    assert theirs.state_dict().keys() == state_dict.keys()


def test_forward_keeps_no_state():
    model = Swinv2(swinv2_config()).eval()
    randomise(model)
    large, small = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 16, 16)
    before = model(large)[0]
    model(small)
    assert torch.equal(model(large)[0], before)


@pytest.mark.parametrize("size", [(2, 2), (8, 24), (10, 64), (34, 22), (63, 31)])
def test_any_image_size(size):
    model = Swinv2(swinv2_config())
    randomise(model)
    feature_map, _ = model(torch.randn(1, 3, *size))
    assert feature_map.shape == (1, 64, *(math.ceil(side / 8) for side in size))
    feature_map.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_windows_are_clamped_to_small_stages_once():
    """Window 12 at 192 px, whose last stage has 6 x 6 tokens."""
    settings = {"image_size": 192, "patch_size": 4, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 12}
    stages = Swinv2(swinv2_config(**settings)).encoder.layers
    assert [stage.window_size for stage in stages] == [12, 12, 12, 6]
    assert [stage.learned_window for stage in stages] == [12, 12, 12, 6]
    settings |= {"image_size": 256, "window_size": 16, "pretrained_window_sizes": [12, 12, 12, 6]}
    stages = Swinv2(swinv2_config(**settings)).encoder.layers
    assert [stage.window_size for stage in stages] == [16, 16, 16, 8]
    assert [stage.learned_window for stage in stages] == [12, 12, 12, 6]


def test_a_distance_has_the_same_bias_in_every_window():
    """The table of window 3 is the middle of that of window 8 where both go by the window of training."""
    device = torch.device("cpu")
    small, large = (log_spaced_coordinates(window, 4, device) for window in (3, 8))
    middle = large.view(15, 15, 2)[5:10, 5:10]
    assert torch.equal(small.view(5, 5, 2), middle)
    trained = log_spaced_coordinates(4, 4, device)
    assert torch.allclose(trained[0], torch.tensor([-math.log2(9) / 3] * 2))
    assert torch.allclose(trained[-1], torch.tensor([math.log2(9) / 3] * 2))
    assert trained[24].tolist() == [0.0, 0.0]


def test_windows_of_one_token():
    device = torch.device("cpu")
    assert log_spaced_coordinates(1, 1, device).tolist() == [[0.0, 0.0]]
    assert log_spaced_coordinates(3, 1, device).isfinite().all()


def test_too_few_trained_windows_are_refused():
    with pytest.raises(ValueError, match=r"pretrained_window_sizes=\[8, 8\] has 2 entries for 3 stages"):
        Swinv2(swinv2_config(pretrained_window_sizes=[8, 8]))


def test_keys_of_padding_get_no_huge_gradient():
    """Padding has keys of zero, and float16 overflows where a gradient is divided by their length."""
    attention = Swinv2(swinv2_config()).encoder.layers[0].blocks[0].attention.self
    qkv = torch.randn(1, 1, 16, 3, 2, 8)
    qkv[:, :, 5:, :2] = 0
    qkv.requires_grad_()
    (attention.attend(qkv, torch.zeros(2, 16, 16), 0.0) ** 2).sum().backward()
    assert qkv.grad.abs().max() < 1e3


@pytest.mark.parametrize("name", ["query", "key"])
def test_replaced_projections_are_used(name):
    """As adapters (LoRA) and quantization replace layers."""

    class Adapted(torch.nn.Module):
        def __init__(self, base: torch.nn.Linear):
            super().__init__()
            self.base, self.shift = base, torch.nn.Parameter(torch.zeros(base.out_features))

        def forward(self, tokens):
            return self.base(tokens) + self.shift

    model, pixel_values = Swinv2(swinv2_config()).eval(), torch.randn(1, 3, 32, 32)
    randomise(model)
    expected = model(pixel_values)[0]
    attention = model.encoder.layers[0].blocks[1].attention.self
    setattr(attention, name, Adapted(getattr(attention, name)))
    feature_map = model(pixel_values)[0]
    assert torch.allclose(feature_map, expected, atol=1e-5)
    feature_map.square().sum().backward()
    assert getattr(attention, name).shift.grad.abs().max() > 0


def test_lengths_and_scales_are_float32_in_bfloat16():
    """At a scale of 100 a length that is off by a bfloat16 step moves logits by 0.4."""
    attention = Swinv2(swinv2_config()).encoder.layers[0].blocks[0].attention.self
    torch.nn.init.constant_(attention.logit_scale, 5.0)
    qkv = torch.randn(2, 3, 16, 3, 2, 8).bfloat16()
    bias = torch.randn(2, 16, 16, requires_grad=True)
    query, key, value = (part.transpose(2, 3) for part in qkv.double().unbind(3))
    query, key = (part / part.norm(dim=-1, keepdim=True) for part in (query, key))
    expected = (100 * query @ key.transpose(3, 4) + bias).softmax(dim=-1) @ value
    with torch.autocast("cpu", dtype=torch.bfloat16):
        context = attention.attend(qkv, bias, 0.0)
    assert (context - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("training", [True, False])
def test_close_in_bfloat16(training):
    """Also with scales at their limit."""
    model = Swinv2(swinv2_config()).eval().requires_grad_(training)
    randomise(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("logit_scale"):
                parameter.fill_(5.0)
    pixel_values = torch.randn(4, 3, 32, 32)
    expected = model(pixel_values)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        feature_map = model(pixel_values)[0]
    assert (feature_map - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_without_graph_breaks(autocast):
    """With shifts and padding."""
    # Of shapes that other tests compiled before, it would make symbols, which takes a minute.
    torch.compiler.reset()
    model = Swinv2(swinv2_config(image_size=24, depths=[2], num_heads=[2], window_size=5)).train()
    randomise(model)
    pixel_values, gradients = torch.randn(2, 3, 24, 24), []
    for forward in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            feature_map, _ = forward(pixel_values)
        feature_map.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        model.zero_grad()
    for ours, expected in zip(*gradients, strict=True):
        assert (ours - expected).norm() <= (0.1 if autocast else 1e-3) * expected.norm()


def test_initialization_is_the_papers():
    torch.manual_seed(0)
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=swinv2_config(embed_dim=64)))
    encoder = model.simmim.encoder
    stage = encoder.encoder.layers[0]
    attention = stage.blocks[1].attention.self
    for parameter in (attention.query.weight, attention.continuous_position_bias_mlp[2].weight):
        assert 0.015 < parameter.std() < 0.025
    assert attention.logit_scale.exp().allclose(torch.tensor(10.0))
    assert stage.downsample.norm.weight.eq(1).all()
    assert encoder.layernorm.weight.eq(1).all()
    # Every block starts as the identity.
    tokens = torch.randn(1, 16, 16, 64)
    assert torch.equal(stage(tokens), tokens)
