"""Our Swin against transformers' Swin, on grids of every kind."""

import pytest
import torch
from safetensors.torch import save_file
from tiny import swin_config
from transformers import SwinModel

from hf_simmim.model.swin import Swin
from hf_simmim.model.windows import from_windows, to_windows, window_layout


def make_pair(tmp_path, **kwargs) -> tuple[Swin, SwinModel]:
    """Our Swin with random weights, and transformers' with the same ones, read as a stock checkpoint is."""
    torch.manual_seed(0)
    config = swin_config(**kwargs)
    ours = Swin(config).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.1)
    config.save_pretrained(tmp_path)
    save_file({name: tensor.contiguous() for name, tensor in ours.state_dict().items()}, tmp_path / "model.safetensors")
    theirs, info = SwinModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    return ours, theirs.eval()


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (32, 32)),
        ({}, (64, 96)),
        ({"image_size": 64}, (64, 64)),
        ({"image_size": 64, "window_size": 3}, (64, 64)),
        ({"image_size": 64, "window_size": 5}, (72, 56)),
        ({"image_size": 64, "window_size": 3}, (58, 70)),
        ({"image_size": 64, "window_size": 3}, (57, 71)),
        ({"use_absolute_embeddings": True}, (32, 32)),
        ({"qkv_bias": False, "mlp_ratio": 2.0, "num_channels": 5}, (32, 32)),
    ],
    ids=str,
)
def test_same_features_as_transformers(tmp_path, settings, size):
    ours, theirs = make_pair(tmp_path, **settings)
    pixel_values = torch.randn(2, ours.config.num_channels, *size)
    with torch.no_grad():
        feature_map, hidden_states = ours(pixel_values)
        expected = theirs(pixel_values, output_hidden_states=True)
    assert torch.allclose(feature_map.flatten(2).transpose(1, 2), expected.last_hidden_state, atol=2e-5)
    assert torch.allclose(hidden_states[0], expected.hidden_states[0], atol=2e-5)
    assert len(hidden_states) == len(ours.config.depths) + 1


def test_forward_keeps_no_state():
    torch.manual_seed(0)
    model = Swin(swin_config()).eval()
    large, small = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 16, 16)
    before = model(large)[0]
    model(small)
    assert torch.equal(model(large)[0], before)


def test_windows_are_clamped_to_small_stages_once():
    """Window 12 at 192 px: the Swin-L recipe, whose last stage has 6 x 6 tokens."""
    model = Swin(swin_config(image_size=192, patch_size=4, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 4], window_size=12))
    sizes = [stage.window_size for stage in model.encoder.layers]
    assert sizes == [12, 12, 12, 6]
    tables = [stage.blocks[0].attention.self.relative_position_bias_table for stage in model.encoder.layers]
    assert [len(table) for table in tables] == [23**2] * 3 + [11**2]
    assert model(torch.randn(1, 3, 192, 192))[0].shape == (1, 128, 6, 6)


def test_a_smaller_grid_uses_the_middle_of_the_table():
    layout = window_layout((2, 3), 4, torch.device("cpu"), torch.float32)
    assert layout.window_size == 2
    assert layout.relative_index[0].tolist() == [3 * 7 + 3, 3 * 7 + 2, 2 * 7 + 3, 2 * 7 + 2]


@pytest.mark.parametrize("grid_size", [(8, 8), (12, 8), (9, 14)])
def test_orders_are_inverse_to_each_other(grid_size):
    layout = window_layout(grid_size, 4, torch.device("cpu"), torch.float32)
    length = layout.padded_size[0] * layout.padded_size[1]
    assert torch.equal(layout.to_shifted[layout.to_plain], torch.arange(length))
    positions = torch.arange(length).view(1, *layout.padded_size, 1)
    windows = to_windows(positions, 4)
    assert torch.equal(from_windows(windows, 4, layout.padded_size), positions)
    shifted = from_windows(windows[:, layout.to_shifted], 4, layout.padded_size)
    assert torch.equal(shifted, positions.roll((-2, -2), dims=(1, 2)))


def test_replaced_projections_are_used():
    """As adapters (LoRA) and quantization replace layers."""

    class Adapted(torch.nn.Module):
        def __init__(self, base: torch.nn.Linear):
            super().__init__()
            self.base, self.scale = base, torch.nn.Parameter(torch.ones(()))

        def forward(self, tokens):
            return self.base(tokens) * self.scale

    torch.manual_seed(0)
    model, pixel_values = Swin(swin_config()).eval(), torch.randn(1, 3, 32, 32)
    expected = model(pixel_values)[0]
    attention = model.encoder.layers[0].blocks[1].attention.self
    attention.query = Adapted(attention.query)
    feature_map = model(pixel_values)[0]
    assert torch.allclose(feature_map, expected, atol=1e-5)
    feature_map.sum().backward()
    assert attention.query.scale.grad != 0


def test_drop_path_drops_whole_images_on_both_branches():
    torch.manual_seed(0)
    block = Swin(swin_config(drop_path_rate=0.5)).train().encoder.layers[2].blocks[0]
    assert block.drop_path.drop_prob == 0.5
    branch = block.drop_path(torch.ones(1000, 3, 2))
    dropped = (branch == 0).flatten(1)
    assert torch.equal(dropped.all(1), dropped.any(1))
    assert 0.4 < dropped[:, 0].float().mean() < 0.6
    assert branch.unique().tolist() == [0.0, 2.0]
    assert torch.equal(block.drop_path.eval()(branch), branch)
