"""`encode="visible"`: the encoder sees visible patches only, and a decoder predicts at the masked ones."""

import copy
import math
import pickle

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny import ENCODER_CONFIGS, VIT_SIZES, batch
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForMaskedImageModeling

from hf_simmim import (
    SimMIMBackbone,
    SimMIMConfig,
    SimMIMForImageClassification,
    SimMIMForMaskedImageModeling,
    SimMIMModel,
)
from hf_simmim.model.heads import HEADS
from hf_simmim.model.masking import random_mask, to_pixels
from hf_simmim.model.visible import VISIBLE_ENCODERS, grid_positions

encoders = pytest.mark.parametrize("encoder", VISIBLE_ENCODERS)
SMALL_DECODER = {"hidden_size": 16, "num_layers": 1, "num_heads": 2}


def make_config(encoder: str = "vit", encoder_options: dict | None = None, **kwargs) -> SimMIMConfig:
    encoder_config = CONFIG_MAPPING[encoder](**(VIT_SIZES | (encoder_options or {})))
    options = {"encode": "visible", "decoder_options": SMALL_DECODER} | kwargs
    return SimMIMConfig(encoder_config=encoder_config, **options)


def make_model(*args, **kwargs) -> SimMIMForMaskedImageModeling:
    torch.manual_seed(0)
    model = SimMIMForMaskedImageModeling(make_config(*args, **kwargs)).eval()
    # Parameters that start at zero would hide what depends on them.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def uneven_mask(grid_size: tuple[int, int] = (4, 4)) -> torch.Tensor:
    """Masks of three images with 4, 12 and all patches masked."""
    masks = [random_mask(grid_size, ratio, 1, generator=torch.Generator().manual_seed(0)) for ratio in (0.25, 0.75)]
    return torch.cat([*masks, torch.ones(1, *grid_size, dtype=torch.bool)])


# In stock transformers its positions are those of one image size.
ONE_SIZE = ("aimv2_vision_model",)


@encoders
@pytest.mark.parametrize(
    ("attention", "image_size"), [("sdpa", (32, 32)), ("eager", (32, 32)), ("sdpa", (48, 32)), ("sdpa", (28, 40))]
)
def test_the_encoder_computes_dense_attention_without_the_masked_keys(encoder, attention, image_size):
    """The stock encoder runs on all patches, and an additive mask leaves masked keys out."""
    if encoder in ONE_SIZE and image_size != (32, 32):
        return
    model = make_model(encoder).simmim
    model.set_attn_implementation(attention)
    pixel_values = torch.randn(3, 3, *image_size, generator=torch.Generator().manual_seed(0))
    height, width = (math.ceil(side / 8) * 8 for side in image_size)
    mask = uneven_mask((height // 8, width // 8))
    prefix = model.geometry.num_prefix_tokens
    keys = torch.nn.functional.pad(mask.flatten(1), (prefix, 0), value=False)
    left_out = torch.zeros(keys.shape).masked_fill(keys, torch.finfo(torch.float32).min)
    left_out = left_out[:, None, None].expand(-1, -1, keys.shape[1], -1)
    padded = torch.nn.functional.pad(pixel_values, (0, width - image_size[1], 0, height - image_size[0]))
    interpolation = {"interpolate_pos_encoding": True} if model.geometry.can_interpolate else {}
    with torch.no_grad():
        outputs = model(pixel_values, bool_masked_pos=mask)
        dense = model.encoder(padded, attention_mask=left_out, **interpolation).last_hidden_state[:, prefix:]
    visible = ~mask.flatten(1)
    assert torch.allclose(outputs.last_hidden_state[visible], dense[visible], rtol=0, atol=1e-5)
    assert dense[visible].std() > 0.1
    assert outputs.last_hidden_state[~visible].count_nonzero() == 0
    means = torch.stack([dense[index, visible[index]].mean(0) for index in (0, 1)])
    assert torch.allclose(outputs.pooler_output[:2], means, rtol=0, atol=1e-5)
    assert outputs.feature_map.shape == (3, 32, height // 8, width // 8)


@encoders
def test_an_image_is_encoded_alone_as_in_a_batch(encoder):
    """A key-padding mask is used only if images have different numbers of visible patches."""
    model = make_model(encoder)
    pixel_values = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = uneven_mask()
    with torch.no_grad():
        together = model(pixel_values, bool_masked_pos=mask).prediction
        for index in range(3):
            alone = model(pixel_values[index : index + 1], bool_masked_pos=mask[index : index + 1]).prediction
            assert torch.allclose(alone, together[index : index + 1], atol=1e-5)


def test_masked_patches_cost_the_encoder_nothing():
    model = make_model()
    pixel_values, mask = batch(model.config)  # 10 of 16 patches are masked
    outputs = model(pixel_values, bool_masked_pos=mask, output_hidden_states=True)
    assert {state.shape[1] for state in outputs.hidden_states} == {1 + 6}
    assert {state.shape[1] for state in model(pixel_values, output_hidden_states=True).hidden_states} == {1 + 16}
    assert model.simmim.encoder.embeddings.mask_token is None


@pytest.mark.parametrize("visible", [0, 16])
def test_nothing_and_everything_masked(visible):
    model = make_model("siglip_vision_model").train()  # without prefix tokens
    pixel_values = torch.randn(2, 3, 32, 32)
    mask = torch.full((2, 4, 4), visible == 0)
    outputs = model(pixel_values, bool_masked_pos=mask)
    assert outputs.prediction.isfinite().all()
    if not visible:
        outputs.loss.backward()
        assert all(part.grad.isfinite().all() for part in model.parameters() if part.grad is not None)
    else:
        unmasked = model(pixel_values).prediction
        assert torch.allclose(outputs.prediction, unmasked, atol=1e-5)


def test_the_prediction_depends_on_where_patches_are():
    """Positions tell the decoder which patch a mask token stands for, in grids of any shape."""
    for grid_size in ((4, 4), (3, 7), (1, 5)):
        positions = grid_positions(grid_size, 32, torch.device("cpu"))
        assert positions.shape == (grid_size[0] * grid_size[1], 32)
        assert torch.pdist(positions).min() > 0.5
    rows, columns = grid_positions((3, 7), 32, torch.device("cpu")).view(3, 7, 32).split(16, dim=2)
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert torch.equal(columns, columns[:1].expand_as(columns))
    # Of a row: sine and cosine of its number, at wavelengths that grow to 10,000.
    assert torch.allclose(rows[2, 0, [0, 8, 1]], torch.tensor([math.sin(2), math.cos(2), math.sin(2 / 10**0.5)]))
    model = make_model()
    with torch.no_grad():
        prediction = model.decoder(torch.zeros(1, 32, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool))
    assert torch.pdist(prediction[0].flatten(1).T).min() > 0.01


def test_a_visible_patch_reaches_the_prediction_at_masked_ones():
    model = make_model()
    pixel_values, mask = batch(model.config)
    pixel_values.requires_grad_()
    hidden = to_pixels(mask, 8, (32, 32))[:, None].expand_as(pixel_values)
    model(pixel_values, bool_masked_pos=mask).prediction[hidden].sum().backward()
    assert pixel_values.grad[hidden].count_nonzero() == 0
    assert (pixel_values.grad[~hidden] != 0).all()


@pytest.mark.parametrize("head", HEADS)
def test_heads_and_targets_read_the_decoder(head):
    options = {"inverse_swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}}
    for target in ({"target": "rgb"}, {"target": "hog", "target_options": {"cell_size": 8}}):
        model = make_model(head=head, head_options=options.get(head, {}), **target)
        pixel_values, mask = batch(model.config)
        model(pixel_values, bool_masked_pos=mask).loss.backward()
        assert all(part.grad is not None for part in model.decoder.parameters())


def test_the_decoder_is_light_by_default():
    for hidden_size, num_heads, width in ((768, 12, 384), (1024, 16, 512), (384, 6, 192), (192, 3, 128), (32, 2, 16)):
        with torch.device("meta"):
            sizes = {"hidden_size": hidden_size, "num_attention_heads": num_heads, "num_hidden_layers": 1}
            model = SimMIMForMaskedImageModeling(make_config(encoder_options=sizes, decoder_options=None))
        assert model.decoder.hidden_size == width
        assert len(model.decoder.layers) == 4
        assert model.decoder.layers[0].num_heads == max(1, width // 64)
        assert "DecoderBlock" in model._no_split_modules


def test_initialization():
    torch.manual_seed(0)
    model = SimMIMForMaskedImageModeling(make_config(decoder_options={"hidden_size": 256}))
    assert 0.015 < model.decoder.mask_token.std() < 0.025
    assert 0.015 < model.decoder.layers[0].qkv.weight.std() < 0.025


def test_gradient_checkpointing_covers_the_decoder(monkeypatch):
    model = make_model().train()
    model.gradient_checkpointing_enable()
    assert all(layer.gradient_checkpointing for layer in model.decoder.layers)


def test_compiled():
    """The number of visible patches is data, so the graph breaks there; nothing else changes."""
    model = make_model()
    pixel_values, mask = batch(model.config)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        for bool_masked_pos in (mask, uneven_mask()[:2], None):
            expected = model(pixel_values, bool_masked_pos=bool_masked_pos).prediction
            found = compiled(pixel_values, bool_masked_pos=bool_masked_pos).prediction
            assert torch.allclose(found, expected, atol=1e-5)


def test_only_the_encoder_is_fine_tuned(tmp_path, caplog):
    """The decoder is dropped without a word, and nothing but the new classifier is initialized."""
    model = make_model()
    model.save_pretrained(tmp_path)
    pixel_values, _ = batch(model.config)
    for loader in (SimMIMForImageClassification, SimMIMModel, SimMIMBackbone):
        loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["unexpected_keys"]
        assert all(key.startswith(("classifier.", "norm.", "norms.")) for key in info["missing_keys"])
        assert not any("decoder" in name for name, _ in loaded.named_parameters())
        encoder = loaded.base_model.encoder.state_dict()
        assert encoder.keys() == model.simmim.encoder.state_dict().keys()
        assert all(torch.equal(value, model.simmim.encoder.state_dict()[key]) for key, value in encoder.items())
    classifier = SimMIMForImageClassification.from_pretrained(tmp_path, num_labels=3)
    classifier(pixel_values, labels=torch.tensor([0, 2])).loss.backward()
    assert all(part.grad is not None for part in classifier.parameters() if part.requires_grad)


def test_to_and_from_the_other_way_of_encoding(tmp_path):
    """Pre-training goes on in the other way: the encoder is kept, the decoder or the mask token are new."""
    model = make_model()
    model.save_pretrained(tmp_path / "visible")
    kwargs = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    dense, info = SimMIMForMaskedImageModeling.from_pretrained(tmp_path / "visible", encode="all", **kwargs)
    assert dense.decoder is None
    assert dense.config.decoder_options == {}
    assert info["missing_keys"] == {"simmim.encoder.embeddings.mask_token"}
    dense.save_pretrained(tmp_path / "all")
    again, info = SimMIMForMaskedImageModeling.from_pretrained(
        tmp_path / "all", encode="visible", decoder_options=SMALL_DECODER, **kwargs
    )
    assert all(key.startswith("decoder.") for key in info["missing_keys"])
    assert again.decoder.mask_token.std() > 0.01
    pixel_values, mask = batch(model.config)
    expected = model.simmim(pixel_values, bool_masked_pos=mask).feature_map
    assert torch.equal(again.simmim(pixel_values, bool_masked_pos=mask).feature_map, expected)


def test_other_image_sizes_and_stock_checkpoints(tmp_path):
    model = make_model()
    model.export_encoder(tmp_path / "stock")
    pixel_values, mask = batch(model.config)
    loaded = SimMIMForMaskedImageModeling.from_encoder(
        tmp_path / "stock", encode="visible", decoder_options=SMALL_DECODER
    )
    assert (loaded.config.encode, loaded.decoder.hidden_size) == ("visible", 16)
    expected = model.simmim(pixel_values, bool_masked_pos=mask).feature_map
    assert torch.equal(loaded.simmim(pixel_values, bool_masked_pos=mask).feature_map, expected)
    model.save_pretrained(tmp_path / "ours")
    larger = SimMIMForMaskedImageModeling.from_pretrained(tmp_path / "ours", image_size=48)
    outputs = larger(torch.randn(2, 3, 48, 48), bool_masked_pos=random_mask((6, 6), 0.75, 2))
    assert outputs.reconstruction.shape == (2, 3, 48, 48)
    assert outputs.loss.isfinite()


REFUSED = {
    "hiera": r"windows of the whole grid. Leave encode out, or use one of: swin, swinv2, vit,.* line --encoder",
    "beit": "bias for each pair of positions",
    "dinov3_vit": "rotates queries and keys",
    "resnet": "convolutions",
    "segformer": "not a plain vision transformer",
}


@pytest.mark.parametrize("encoder", REFUSED)
def test_other_encoders_are_refused_with_the_reason_and_a_remedy(encoder):
    with pytest.raises(StrictDataclassError, match=REFUSED[encoder]):
        SimMIMConfig(encoder_config=ENCODER_CONFIGS[encoder](), encode="visible")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encode": "visable"}, "encode='visable' is unknown. Use one of: all, visible"),
        ({"encode": "all"}, "decoder_options has 'hidden_size', which encode='all' does not take. It has no options"),
        ({"decoder_options": {"depth": 2}}, "which encode='visible' does not take. Use one of: hidden_size, num_l"),
        ({"decoder_options": {"num_layers": 0}}, "num_layers=0 must be a whole number of at least 1"),
        ({"head_inputs": [1]}, r"head_inputs=\[1\] needs hidden states of every patch"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(StrictDataclassError, match=message):
        make_config(**settings)


def test_a_decoder_that_cannot_be_split_is_refused_when_the_model_is_built():
    with pytest.raises(ValueError, match="decoder of 18 channels and 2 attention heads .* multiple of 4"):
        make_model(decoder_options={"hidden_size": 18, "num_heads": 2})


def test_auto_classes_and_copies(tmp_path):
    model = make_model()
    pixel_values, mask = batch(model.config)
    expected = model(pixel_values, bool_masked_pos=mask).prediction
    model.save_pretrained(tmp_path)
    assert (tmp_path / "visible.py").is_file()
    for loaded in (
        AutoModelForMaskedImageModeling.from_pretrained(tmp_path),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        assert torch.equal(loaded(pixel_values, bool_masked_pos=mask).prediction, expected)
    features = AutoModel.from_pretrained(tmp_path)(pixel_values).last_hidden_state
    assert torch.equal(features, model.simmim(pixel_values).last_hidden_state)
