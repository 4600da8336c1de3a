"""`encode="visible"` with Swin and SwinV2: windows of which only the visible tokens are there."""

import pytest
import torch
import torch.nn.functional as F
from tiny import SWIN_SIZES
from transformers import CONFIG_MAPPING, AutoModel

from hf_simmim import SimMIMBackbone, SimMIMConfig, SimMIMForImageClassification, SimMIMForMaskedImageModeling
from hf_simmim.model.masking import random_mask
from hf_simmim.model.swin import join_squares
from hf_simmim.model.visible import WINDOWED_ENCODERS
from hf_simmim.model.windows import from_windows, reorder, to_windows
from hf_simmim.training.acceleration import recompute_activations

encoders = pytest.mark.parametrize("encoder", WINDOWED_ENCODERS)
DECODER = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}
CELL = 4  # patches on a side of a cell: three stages


def make_model(encoder: str = "swin", image_size: int = 32, **options) -> SimMIMForMaskedImageModeling:
    torch.manual_seed(0)
    encoder_config = CONFIG_MAPPING[encoder](**(SWIN_SIZES | {"image_size": image_size} | options))
    model = SimMIMForMaskedImageModeling(
        SimMIMConfig(encoder_config=encoder_config, encode="visible", decoder_options=DECODER)
    ).eval()
    # Parameters that start at zero would hide what depends on them.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def draw_masks(cells: tuple[int, int], ratios: tuple[float, ...]) -> torch.Tensor:
    """Masks of whole cells on the patch grid."""
    generator = torch.Generator().manual_seed(0)
    masks = [random_mask(cells, ratio, 1, generator=generator) for ratio in ratios]
    return torch.cat(masks).repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)


def encode_densely(model: SimMIMForMaskedImageModeling, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Feature map (h, w, D) of one image: all tokens are computed, and the masked ones left out of the attention."""
    encoder = model.simmim.encoder
    tokens = encoder.embeddings(image[None], None)
    for stage in encoder.encoder.layers:
        size = tuple(tokens.shape[1:3])
        layout = stage.layout(size, tokens.device, tokens.dtype)
        (height, width), window = layout.padded_size, layout.window_size
        added = (0, width - size[1], 0, height - size[0])
        hidden = F.interpolate(mask[None, None].float(), size, mode="nearest-exact")
        hidden = to_windows(F.pad(hidden, added)[..., None][:, 0], window)
        tokens = to_windows(F.pad(tokens, (0, 0, *added)), window)
        for index, block in enumerate(stage.blocks):
            shift = index % 2 == 1 and layout.to_shifted is not None
            if shift:
                tokens = reorder(tokens, layout, True)
            keys = reorder(hidden, layout, True) if shift else hidden
            logits = torch.zeros(()).masked_fill(keys.view(-1, 1, 1, window**2) > 0, -1e4)
            if shift:
                logits = logits + layout.region_mask * 100
            is_real = layout.is_real
            if is_real is not None and shift:
                is_real = is_real[layout.to_shifted]
            tokens = block(tokens, layout, logits, is_real)
            if shift:
                tokens = reorder(tokens, layout, False)
        tokens = from_windows(tokens, window, layout.padded_size)[:, : size[0], : size[1]]
        if stage.downsample is not None:
            tokens = stage.downsample(join_squares(tokens))
    return encoder.layernorm(tokens)[0]


@encoders
@pytest.mark.parametrize(
    ("image_size", "options"),
    [
        ((32, 32), {}),
        ((48, 32), {}),
        ((32, 32), {"window_size": 3}),  # padded windows
        ((40, 24), {"window_size": 3, "depths": [1, 2, 2]}),
        ((32, 32), {"use_absolute_embeddings": True, "qkv_bias": False}),
    ],
)
def test_features_and_gradients_are_those_of_attention_without_masked_keys(encoder, image_size, options):
    """Images have different numbers of visible cells, and one has none."""
    model = make_model(encoder, **options)
    pixel_values = torch.randn(4, 3, *image_size, generator=torch.Generator().manual_seed(0))
    cells = (image_size[0] // 8, image_size[1] // 8)
    mask = draw_masks(cells, (0.25, 0.6, 0.75))
    mask = torch.cat([mask, torch.ones_like(mask[:1])])
    visible = ~mask[:, ::CELL, ::CELL]
    outputs = model.simmim(pixel_values, bool_masked_pos=mask)
    found = outputs.feature_map.permute(0, 2, 3, 1)
    # Masked pixels do not matter, since nothing attends to them.
    dense = torch.stack([encode_densely(model, *pair) for pair in zip(pixel_values, mask, strict=True)])
    assert torch.allclose(found[visible], dense[visible], rtol=0, atol=1e-5)
    assert dense[visible].std() > 0.1
    assert found[~visible].count_nonzero() == 0
    means = torch.stack([dense[index][visible[index]].mean(0) for index in range(3)])
    assert torch.allclose(outputs.pooler_output[:3], means, rtol=0, atol=1e-5)
    weights = torch.randn(found[visible].shape, generator=torch.Generator().manual_seed(1))
    gradients = []
    for features in (found, dense):
        model.zero_grad()
        (features[visible] * weights).sum().backward(retain_graph=True)
        gradients.append({name: part.grad for name, part in model.named_parameters() if part.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        expected = gradients[1][name]
        assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-4 * max(1, float(expected.abs().max()))), name


@encoders
def test_nothing_masked_is_the_whole_encoder(encoder):
    model = make_model(encoder)
    pixel_values = torch.randn(2, 3, 28, 40)
    nothing = torch.zeros(2, 14, 20, dtype=torch.bool)
    whole = model.simmim(pixel_values, output_hidden_states=True)
    found = model.simmim(pixel_values, bool_masked_pos=nothing, output_hidden_states=True)
    assert torch.allclose(found.feature_map, whole.feature_map, atol=1e-5)
    assert [state.shape for state in found.hidden_states] == [state.shape for state in whole.hidden_states]


@encoders
def test_masked_cells_cost_the_encoder_nothing(encoder):
    model = make_model(encoder)
    seen = []
    for stage in model.simmim.encoder.encoder.layers:
        stage.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    pixel_values = torch.randn(2, 3, 32, 32)
    states = model(pixel_values, bool_masked_pos=draw_masks((4, 4), (0.75, 0.75)), output_hidden_states=True)
    assert seen == [4 * 16, 4 * 4, 4]  # of 256, 64 and 16 tokens
    first = states.hidden_states[0]
    assert (first == 0).all(dim=2).sum(dim=1).tolist() == [192, 192]


def test_training_with_stochastic_depth_checkpointing_and_less_memory():
    """Whole images are dropped, and computing activations again changes nothing."""
    model = make_model(drop_path_rate=0.5).train()
    pixel_values, mask = torch.randn(3, 3, 32, 32), draw_masks((4, 4), (0.75, 0.5, 0.6))

    def gradients():
        torch.manual_seed(1)
        model.zero_grad()
        model(pixel_values, bool_masked_pos=mask).loss.backward()
        return [part.grad.clone() for part in model.parameters() if part.grad is not None]

    plain = gradients()
    assert len(plain) == len(list(model.parameters()))
    recompute_activations(model)
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(plain, gradients(), strict=True))
    model.gradient_checkpointing_enable()
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(plain, gradients(), strict=True))


def test_compiled_blocks_leave_the_windows_to_eager_code():
    model = make_model()
    pixel_values = torch.randn(2, 3, 32, 32)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    mask = draw_masks((4, 4), (0.5, 0.75))
    with torch.no_grad():
        expected = model(pixel_values, bool_masked_pos=mask).prediction
        assert torch.allclose(compiled(pixel_values, bool_masked_pos=mask).prediction, expected, atol=1e-5)


def test_bfloat16_is_close_to_float32():
    model = make_model()
    pixel_values, mask = torch.randn(2, 3, 32, 32), draw_masks((4, 4), (0.75, 0.6))
    with torch.no_grad():
        expected = model(pixel_values, bool_masked_pos=mask).prediction
        with torch.autocast("cpu", torch.bfloat16):
            found = model(pixel_values, bool_masked_pos=mask).prediction
    assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_masks_have_to_cover_whole_cells():
    """Visible patches of a masked cell would be left out without a word; those without valid pixels may be."""
    model = make_model()
    pixel_values = torch.randn(1, 3, 32, 32)
    mask = draw_masks((4, 4), (0.5,))
    row, column = mask[0].nonzero()[0].tolist()
    mask[0, row, column] = False
    with pytest.raises(ValueError, match="cells of 8 px.*mask_patch_size that is a multiple of 8"):
        model(pixel_values, bool_masked_pos=mask)
    pixel_mask = torch.ones(1, 32, 32, dtype=torch.bool)
    pixel_mask[0, row * 2 : row * 2 + 2, column * 2 : column * 2 + 2] = False
    assert model(pixel_values, bool_masked_pos=mask, pixel_mask=pixel_mask).loss.isfinite()
    # A cell that the border cuts is whole.
    assert model(pixel_values[:, :, :, :28], bool_masked_pos=draw_masks((4, 4), (0.5,))[:, :, :14]).loss.isfinite()
    assert (model.config.mask_step, model.config.patch_size) == (8, 2)


def test_only_the_encoder_is_fine_tuned(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "visible_windows.py").is_file()
    pixel_values = torch.randn(2, 3, 32, 32)
    features = model.simmim(pixel_values).last_hidden_state
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(pixel_values).last_hidden_state, features)
    for loader in (SimMIMForImageClassification, SimMIMBackbone):
        loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["unexpected_keys"]
        assert torch.equal(loaded.base_model(pixel_values).last_hidden_state, features)
    larger = SimMIMForMaskedImageModeling.from_pretrained(tmp_path, image_size=64)
    outputs = larger(torch.randn(1, 3, 64, 64), bool_masked_pos=draw_masks((8, 8), (0.75,)))
    assert outputs.loss.isfinite()
