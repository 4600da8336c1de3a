"""Our Swin against transformers' Swin, on grids of every kind."""

import pytest
import torch
from safetensors.torch import save_file
from tiny import ENCODER_CONFIGS, swin_config
from transformers import SwinModel

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling
from hf_simmim.model.swin import FlushedSoftmax, Swin
from hf_simmim.model.windows import from_windows, share_windows, to_windows, window_layout


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


def test_weights_between_regions_are_zero_instead_of_denormal():
    logits = torch.randn(5, 7, dtype=torch.float32)
    logits[:, 3:5] -= 100.0
    logits.requires_grad_()
    plain = logits.softmax(dim=-1)
    flushed = FlushedSoftmax.apply(logits)
    tiny = torch.finfo(torch.float32).tiny
    assert ((plain > 0) & (plain < tiny)).any()
    assert not ((flushed > 0) & (flushed < tiny)).any()
    assert (flushed - plain).abs().max() < tiny
    direction = torch.randn_like(plain)
    expected, gradient = (torch.autograd.grad(weights, logits, direction)[0] for weights in (plain, flushed))
    torch.testing.assert_close(gradient, expected)
    # The last block of the first stage has shifted windows.
    encoder = Swin(swin_config(depths=[2, 2], num_heads=[2, 2], window_size=4, patch_size=2))
    weights = encoder(torch.randn(1, 3, 32, 32), output_attentions=True)[2][0]
    assert (weights == 0).any()
    assert not ((weights > 0) & (weights < tiny)).any()


def test_windows_that_only_hold_mask_tokens_are_computed_once():
    layout = window_layout((8, 12), 4, torch.device("cpu"), torch.float32)
    is_masked = torch.zeros(2, 8, 12, dtype=torch.bool)
    is_masked[0, :4, :8] = True  # windows 0 and 1
    is_masked[1, :8, 2:] = True  # windows 7, 8, 10 and 11, and half of two others
    shared = share_windows(is_masked, layout, next_is_shifted=False)
    computed = to_windows(torch.arange(192).view(2, 8, 12, 1), 4).view(12, 16)
    assert shared.rows.view(-1, 16).tolist() == computed[[2, 3, 4, 5, 6, 9, 0]].tolist()
    windows = shared.places.view(12, 16)
    assert (windows[:, 0] // 16).tolist() == [6, 6, 0, 1, 2, 3, 4, 6, 6, 5, 6, 6]
    # Where no window, or hardly any, is equal to another, all are computed.
    assert share_windows(torch.zeros_like(is_masked), layout, next_is_shifted=False) is None
    is_masked[:] = False
    is_masked[0, :4, :4] = True
    assert share_windows(is_masked, layout, next_is_shifted=True) is None


# What tokens of a window have in common ends with positions, dropout and padding. The last column says whether they do.
SHARING = {
    "swin": ("swin", {}, (32, 48), True),
    "swin, plain windows": ("swin", {"window_size": 8}, (32, 32), True),
    "swinv2": ("swinv2", {}, (32, 48), True),
    "swin, positions": ("swin", {"use_absolute_embeddings": True}, (32, 48), False),
    "swin, dropout": ("swin", {"hidden_dropout_prob": 0.1}, (32, 48), False),
    "swin, dropped weights": ("swin", {"attention_probs_dropout_prob": 0.1}, (32, 48), False),
    "swin, padding": ("swin", {}, (36, 44), False),
}


@pytest.mark.parametrize("name", SHARING)
def test_shared_windows_keep_loss_and_gradients(name):
    encoder, settings, size, shares = SHARING[name]
    torch.manual_seed(0)
    settings = {"depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "patch_size": 2, **settings}
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=ENCODER_CONFIGS[encoder](**settings)))
    model = model.double().train()
    pixel_values = torch.randn(2, 3, *size, dtype=torch.float64)
    mask = torch.zeros(2, size[0] // 2, size[1] // 2, dtype=torch.bool)
    mask[0, :8], mask[1, :, 8:] = True, True
    lengths = []
    model.simmim.encoder.encoder.layers[0].blocks[0].register_forward_pre_hook(
        lambda block, inputs: lengths.append(inputs[0].shape[0] * inputs[0].shape[1])
    )
    results = []
    for skip in (False, True):
        torch.manual_seed(1)
        loss = model(pixel_values, bool_masked_pos=mask, skip_visible=skip).loss
        loss.backward()
        results.append((loss, {key: value.grad for key, value in model.named_parameters()}))
        model.zero_grad()
    assert (lengths[1] < lengths[0]) == shares
    if not shares:
        return
    (expected_loss, expected), (loss, gradients) = results
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    for key, gradient in gradients.items():
        if gradient is None:
            assert expected[key] is None
        else:
            torch.testing.assert_close(gradient, expected[key], rtol=1e-9, atol=1e-12, msg=key)
