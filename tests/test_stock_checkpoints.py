"""Weights from transformers' own models and back to them."""

import re

import pytest
import torch
from tiny import ENCODER_CONFIGS, VIT_SIZES, batch, swin_config, swinv2_config, vit_config
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    BeitConfig,
    CLIPConfig,
    CLIPModel,
    DeiTConfig,
    FocalNetConfig,
    PreTrainedModel,
)
from transformers.testing_utils import CaptureLogger

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMModel, pretrained

STOCK_CONFIGS = ENCODER_CONFIGS | {"beit": lambda **kwargs: ENCODER_CONFIGS["beit"](use_mask_token=False, **kwargs)}


def shake(model: PreTrainedModel) -> PreTrainedModel:
    """Parameters that start at zero or one would hide what depends on them."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.eval()


def as_map(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Stock's last_hidden_state as the feature map that ours should equal."""
    if tokens.ndim == 4:
        return tokens
    count = like.shape[2] * like.shape[3]
    return tokens[:, tokens.shape[1] - count :].transpose(1, 2).unflatten(2, like.shape[2:])


@pytest.mark.parametrize("encoder", STOCK_CONFIGS)
def test_stock_to_ours_to_stock(encoder, tmp_path):
    stock = shake(AutoModel.from_config(STOCK_CONFIGS[encoder]()))
    stock.save_pretrained(tmp_path / "stock")
    ours = SimMIMForMaskedImageModeling.from_encoder(tmp_path / "stock")
    pixel_values, mask = batch(ours.config)
    with torch.no_grad():
        expected = stock(pixel_values).last_hidden_state
        feature_map = ours.simmim(pixel_values).feature_map
        assert torch.allclose(feature_map, as_map(expected, feature_map), atol=1e-5)
        assert ours(pixel_values, bool_masked_pos=mask).loss.isfinite()
        ours.export_encoder(tmp_path / "back")
        back = AutoModel.from_pretrained(tmp_path / "back")
        assert type(back) is type(stock)
        assert torch.allclose(back(pixel_values).last_hidden_state, expected, atol=1e-5)
    weights, back_weights = stock.state_dict(), back.state_dict()
    for name in weights.keys() & back_weights.keys():
        assert "pooler" in name or torch.equal(weights[name], back_weights[name]), name


@pytest.mark.parametrize(
    "config",
    [
        swin_config(encoder_stride=8),
        swinv2_config(encoder_stride=8),
        vit_config(encoder_stride=8),
        DeiTConfig(**VIT_SIZES, encoder_stride=8),
        FocalNetConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], use_mask_token=True, encoder_stride=8),
    ],
    ids=lambda config: config.model_type,
)
def test_masked_image_modeling_checkpoints_load_whole(config, tmp_path):
    stock = shake(AutoModelForMaskedImageModeling.from_config(config))
    stock.save_pretrained(tmp_path)
    with CaptureLogger(pretrained.logger) as log:
        ours = SimMIMForMaskedImageModeling.from_encoder(tmp_path)
    assert "Freshly initialised" not in log.out
    assert "left out" not in log.out
    pixel_values, mask = batch(ours.config)
    with torch.no_grad():
        outputs = ours(pixel_values, bool_masked_pos=mask)
        expected = stock(pixel_values, bool_masked_pos=mask.flatten(1))
    assert torch.allclose(outputs.reconstruction, expected.reconstruction, atol=1e-5)


def test_what_was_loaded_is_said(tmp_path):
    shake(AutoModelForImageClassification.from_config(vit_config(num_labels=3))).save_pretrained(tmp_path)
    with CaptureLogger(pretrained.logger) as log:
        SimMIMForMaskedImageModeling.from_encoder(tmp_path)
    assert "38 tensors loaded" in log.out
    fresh, left_out = log.out.split("In the checkpoint and left out:")
    assert "Freshly initialised: simmim.encoder.embeddings.mask_token, head.projection" in fresh
    assert "classifier.weight" in left_out
    # Which that checkpoint does not hold.
    assert "pooler" not in log.out


def test_half_a_checkpoint_is_refused(tmp_path):
    stock = AutoModel.from_config(vit_config())
    state_dict = {name: tensor for name, tensor in stock.state_dict().items() if "layers.1." not in name}
    stock.save_pretrained(tmp_path, state_dict=state_dict)
    with pytest.raises(ValueError, match=r"lacks \d+ weights of the 'vit' encoder .* use the checkpoint of a whole"):
        SimMIMForMaskedImageModeling.from_encoder(tmp_path)


def test_our_own_checkpoint_is_refused(tmp_path):
    SimMIMModel(SimMIMConfig(encoder_config=vit_config())).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a SimMIM checkpoint already. Load it with from_pretrained"):
        SimMIMModel.from_encoder(tmp_path)


def test_a_stock_checkpoint_is_not_loaded_at_random(tmp_path):
    AutoModel.from_config(vit_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a 'vit' model and none of SimMIM. Load it with SimMIMModel.from_enc"):
        SimMIMModel.from_pretrained(tmp_path)


def test_a_folder_of_something_else_is_no_stock_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config\.json of a model. Name the output folder of a training"):
        SimMIMModel.from_pretrained(tmp_path)


def test_the_vision_part_of_another_model(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = CLIPConfig(
        vision_config={**sizes, "image_size": 32, "patch_size": 8}, text_config={**sizes, "vocab_size": 99}
    )
    stock = shake(CLIPModel(config))
    stock.save_pretrained(tmp_path)
    ours = SimMIMModel.from_encoder(tmp_path)
    pixel_values, _ = batch(ours.config)
    with torch.no_grad():
        expected = stock.vision_model(pixel_values).last_hidden_state[:, 1:]
        assert torch.allclose(ours(pixel_values).last_hidden_state, expected, atol=1e-6)


def test_from_encoder_at_another_geometry(tmp_path):
    stock = shake(AutoModel.from_config(vit_config()))
    stock.save_pretrained(tmp_path)
    with CaptureLogger(pretrained.logger) as log:
        ours = SimMIMModel.from_encoder(tmp_path, encoder_config={"image_size": [48, 64], "hidden_dropout_prob": 0.25})
    assert "absolute position embeddings from 4x4 to 6x8 tokens, bicubic" in log.out
    assert ours.config.encoder_config.hidden_dropout_prob == 0.25
    pixel_values, _ = batch(ours.config)
    with torch.no_grad():
        expected = stock(pixel_values, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
        assert torch.allclose(ours(pixel_values).last_hidden_state, expected, atol=1e-5)


def test_windows_that_stock_swin_does_not_shrink_are_refused(tmp_path):
    model = SimMIMModel(SimMIMConfig(encoder_config=swin_config(window_size=6)))
    with pytest.raises(ValueError, match=r"window_size=6 is larger than the grid of 4x4 tokens of stage 3 at 32x32 px"):
        model.export_encoder(tmp_path / "stock")
    assert not (tmp_path / "stock").exists()


def test_rectangles_that_stock_beit_computes_wrongly_are_refused(tmp_path):
    model = shake(SimMIMModel(SimMIMConfig(encoder_config=ENCODER_CONFIGS["beit"](image_size=[32, 64]))))
    with torch.no_grad():
        model.encoder.shared_position_bias.relative_position_bias_table.mul_(100)
        model.encoder.layers[0].attention.v_proj.weight.mul_(100)
    with pytest.raises(ValueError, match="cannot represent this 'beit' encoder: there its features differ by"):
        model.export_encoder(tmp_path / "stock")
    assert not (tmp_path / "stock").exists()


def test_padding_that_stock_models_do_not_do_is_refused(tmp_path):
    model = SimMIMModel(SimMIMConfig(encoder_config=ENCODER_CONFIGS["resnet"](image_size=80)))
    with pytest.raises(ValueError, match=r"images of 80x80 px are no multiple of its stride of 32 px.*\(96, 96\)"):
        model.export_encoder(tmp_path / "stock")
    assert not (tmp_path / "stock").exists()


def test_exporting_changes_nothing(tmp_path):
    model = SimMIMModel(SimMIMConfig(encoder_config=ENCODER_CONFIGS["resnet"]())).train()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()
    state, numbers = model.state_dict(), torch.get_rng_state()
    state = {name: tensor.clone() for name, tensor in state.items()}
    model.export_encoder(tmp_path)
    assert model.encoder.training
    assert not any(norm.training for norm in norms)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"imge_size": 32}, "'imge_size' is no argument. Did you mean image_size?"),
        ({"device_map": "cpu"}, "'device_map' is no argument"),
        ({"encoder_config": {"hiden_size": 8}}, "'hiden_size' is no key of encoder_config. Did you mean hidden_size?"),
    ],
)
def test_unknown_arguments_are_refused(arguments, message, tmp_path):
    AutoModel.from_config(vit_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        SimMIMModel.from_encoder(tmp_path, **arguments)


def test_bfloat16_is_kept(tmp_path):
    shake(AutoModel.from_config(vit_config())).save_pretrained(tmp_path / "stock")
    ours = SimMIMModel.from_encoder(tmp_path / "stock", dtype=torch.bfloat16)
    assert ours.dtype == torch.bfloat16
    ours.export_encoder(tmp_path / "back")
    assert AutoModel.from_pretrained(tmp_path / "back").dtype == torch.bfloat16


def test_wrong_names_are_refused(tmp_path):
    with pytest.raises((OSError, ValueError), match=str(tmp_path)):
        SimMIMModel.from_encoder(tmp_path)
    BeitConfig().save_pretrained(tmp_path)
    with pytest.raises(OSError, match="no file named"):
        SimMIMModel.from_encoder(tmp_path)
    with pytest.raises((OSError, ValueError)):
        AutoImageProcessor.from_pretrained(tmp_path)
