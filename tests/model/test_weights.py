"""Weights from and to transformers' own models, and at another image size or window."""

import re

import pytest
import torch
from golden import golden_model, our_names
from paths import FIXTURES
from safetensors.torch import load_file
from tiny import ENCODER_CONFIGS, VIT_SIZES, batch, beit_config, swin_config, swinv2_config, vit_config
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

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMModel
from hf_simmim.model import modeling_base
from hf_simmim.model.weights import resize_positions, resize_table

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
    with CaptureLogger(modeling_base.logger) as log:
        ours = SimMIMForMaskedImageModeling.from_encoder(tmp_path)
    assert "Freshly initialized" not in log.out
    assert "left out" not in log.out
    pixel_values, mask = batch(ours.config)
    with torch.no_grad():
        outputs = ours(pixel_values, bool_masked_pos=mask)
        expected = stock(pixel_values, bool_masked_pos=mask.flatten(1))
    assert torch.allclose(outputs.reconstruction, expected.reconstruction, atol=1e-5)


def test_what_was_loaded_is_said(tmp_path):
    shake(AutoModelForImageClassification.from_config(vit_config(num_labels=3))).save_pretrained(tmp_path)
    with CaptureLogger(modeling_base.logger) as log:
        SimMIMForMaskedImageModeling.from_encoder(tmp_path)
    assert "38 tensors loaded" in log.out
    fresh, left_out = log.out.split("In the checkpoint and left out:")
    assert "Freshly initialized: simmim.encoder.embeddings.mask_token, head.projection" in fresh
    assert "classifier.weight" in left_out
    # Which that checkpoint does not hold.
    assert "pooler" not in log.out


def test_half_a_checkpoint_is_refused(tmp_path):
    stock = AutoModel.from_config(vit_config())
    state_dict = {name: tensor for name, tensor in stock.state_dict().items() if "layers.1." not in name}
    stock.save_pretrained(tmp_path, state_dict=state_dict)
    with pytest.raises(ValueError, match=r"lacks \d+ weights of the 'vit' encoder .* use the checkpoint of a complete"):
        SimMIMForMaskedImageModeling.from_encoder(tmp_path)


def test_our_own_checkpoint_is_refused(tmp_path):
    SimMIMModel(SimMIMConfig(encoder_config=vit_config())).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a SimMIM checkpoint already. Load it with from_pretrained"):
        SimMIMModel.from_encoder(tmp_path)


def test_a_stock_checkpoint_is_not_loaded_at_random(tmp_path):
    AutoModel.from_config(vit_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a 'vit' model, not a SimMIM model. Load it with SimMIMModel.from_enc"):
        SimMIMModel.from_pretrained(tmp_path)


def test_a_folder_of_something_else_is_no_stock_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json of a model. Name the output folder of a training"):
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
    with CaptureLogger(modeling_base.logger) as log:
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
    with pytest.raises(ValueError, match=r"images of 80x80 px are not a multiple of its stride of 32 px.*\(96, 96\)"):
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
        ({"imge_size": 32}, "unknown argument 'imge_size'. Did you mean image_size?"),
        ({"device_map": "cpu"}, "unknown argument 'device_map'"),
        ({"encoder_config": {"hiden_size": 8}}, "unknown key of encoder_config 'hiden_size'. Did you mean hidden_size"),
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


def save(config, folder) -> SimMIMForMaskedImageModeling:
    """A model with tables and embeddings that are not zero, saved."""
    torch.manual_seed(0)
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return model


def test_the_spline_is_scipys():
    """`interp2d(kind="cubic")` on a grid was `RectBivariateSpline` with cubic pieces and no smoothing."""
    interpolate = pytest.importorskip("scipy.interpolate")
    from hf_simmim.model.weights import _geometric_distances

    for old, new in ((6, 7), (7, 12), (12, 24), (8, 6), (14, 37)):
        table = torch.randn((2 * old - 1) ** 2, 2, generator=torch.Generator().manual_seed(0))
        knots = _geometric_distances(2 * old - 1, 2 * new - 1).numpy()
        points = torch.arange(1 - new, new).double().numpy()
        resized = resize_table(table, (old, old), (new, new))
        for head in range(2):
            values = table[:, head].view(2 * old - 1, -1).double().numpy()
            expected = interpolate.RectBivariateSpline(knots, knots, values)(points, points)
            ours = resized[:, head].view(2 * new - 1, -1)
            assert torch.allclose(ours, torch.from_numpy(expected).float(), atol=1e-5)


def test_tables_of_rectangles_and_class_tokens():
    table = torch.randn(7 * 5 + 3, 4, generator=torch.Generator().manual_seed(0))  # a grid of 4 x 3
    resized = resize_table(table, (4, 3), (6, 3))
    assert resized.shape == (11 * 5 + 3, 4)
    assert torch.equal(resized[-3:], table[-3:])
    turned = resize_table(table.clone(), (4, 3), (4, 3))
    assert torch.allclose(turned, table, atol=1e-6)
    # The middle is the distance of a token to itself, wherever it lies.
    assert torch.allclose(resized[:-3].view(11, 5, 4)[5, 2], table[:-3].view(7, 5, 4)[3, 2], atol=1e-6)


@pytest.mark.parametrize("window", [1, 2])
def test_tables_too_small_for_a_cubic(window):
    table = torch.randn((2 * window - 1) ** 2, 2, generator=torch.Generator().manual_seed(0))
    resized = resize_table(table, (window, window), (4, 4))
    assert resized.shape == (49, 2)
    assert resized.isfinite().all()
    assert torch.allclose(resized[24], table[len(table) // 2], atol=1e-6)


def test_positions_keep_their_prefix():
    positions = torch.randn(1, 2 + 12, 8)
    resized = resize_positions(positions, (3, 4), (6, 2))
    assert resized.shape == (1, 2 + 12, 8)
    assert torch.equal(resized[:, :2], positions[:, :2])
    assert resize_positions(positions[0], (3, 4), (6, 8)).shape == (2 + 48, 8)


@pytest.mark.parametrize("loader", [SimMIMModel, AutoModel, SimMIMForMaskedImageModeling])
def test_from_pretrained_takes_a_geometry(loader, tmp_path):
    save(swin_config(), tmp_path)
    with CaptureLogger(modeling_base.logger) as log:
        model, info = loader.from_pretrained(
            tmp_path,
            image_size=(48, 64),
            window_size=6,
            output_loading_info=True,
            encoder_config={"drop_path_rate": 0.25},
        )
    assert "relative position tables from 4x4 to 6x6 tokens, geometric bicubic" in log.out
    assert not info["missing_keys"]
    assert (model.config.image_size, model.config.window_size) == ((48, 64), 6)
    assert model.config.encoder_config.drop_path_rate == 0.25
    assert not model.training
    model.save_pretrained(tmp_path / "again")
    again = loader.from_pretrained(tmp_path / "again")
    pixel_values, _ = batch(model.config)
    assert torch.equal(again.base_model(pixel_values)[0], model.base_model(pixel_values)[0])


def test_the_same_geometry_changes_nothing(tmp_path):
    model = save(swin_config(), tmp_path)
    with CaptureLogger(modeling_base.logger) as log:
        loaded = SimMIMModel.from_pretrained(tmp_path, image_size=32, window_size=4, use_mask_token=False)
    assert log.out == ""
    pixel_values, _ = batch(model.config)
    assert torch.equal(loaded(pixel_values).feature_map, model.simmim(pixel_values).feature_map)


def test_a_model_without_mask_token_is_remapped_too(tmp_path):
    save(vit_config(), tmp_path)
    loaded = SimMIMModel.from_pretrained(tmp_path, image_size=64, use_mask_token=False, dtype=torch.bfloat16)
    assert loaded.encoder.embeddings.mask_token is None
    assert loaded.dtype == torch.bfloat16
    assert loaded.encoder.embeddings.position_embeddings.shape[1] == 65


def test_swinv2_is_told_its_pretrained_windows(tmp_path):
    """The last stage is smaller than the window: its own is what the bias was trained with."""
    model = save(swinv2_config(image_size=32, window_size=8), tmp_path)
    with CaptureLogger(modeling_base.logger) as log:
        loaded = SimMIMModel.from_pretrained(tmp_path, image_size=64, window_size=16)
    assert loaded.config.encoder_config.pretrained_window_sizes == [8, 8, 4]
    assert "continuous position bias, trained with windows of [8, 8, 4] tokens" in log.out
    weights = loaded.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.simmim.state_dict().items())
    loaded.save_pretrained(tmp_path / "larger")
    back = SimMIMModel.from_pretrained(tmp_path / "larger", image_size=32, window_size=8)
    assert back.config.encoder_config.pretrained_window_sizes == [8, 8, 4]
    pixel_values, _ = batch(model.config)
    with torch.no_grad():
        assert torch.allclose(back(pixel_values).feature_map, model.simmim(pixel_values).feature_map, atol=1e-6)


def test_swinv2_keeps_its_pretrained_windows_under_another_config(tmp_path):
    save(swinv2_config(image_size=32, window_size=4), tmp_path)
    larger = SimMIMModel.from_pretrained(tmp_path, image_size=64, window_size=8)
    larger.save_pretrained(tmp_path / "larger")
    config = SimMIMConfig(encoder_config=swinv2_config(image_size=64, window_size=8))
    loaded = SimMIMModel.from_pretrained(tmp_path / "larger", config=config)
    assert loaded.config.encoder_config.pretrained_window_sizes == [4, 4, 4]
    pixel_values, _ = batch(config)
    with torch.no_grad():
        assert torch.allclose(loaded(pixel_values).feature_map, larger(pixel_values).feature_map, atol=1e-6)


def test_what_is_asked_of_the_loader_is_asked_at_another_geometry_too(tmp_path):
    model = save(vit_config(), tmp_path)
    with torch.no_grad():
        model.head.projection.bias.fill_(0.5)
    model.save_pretrained(tmp_path, variant="ema")
    loaded = SimMIMForMaskedImageModeling.from_pretrained(tmp_path, variant="ema", image_size=48)
    assert torch.equal(loaded.head.projection.bias, model.head.projection.bias)
    assert loaded.name_or_path == str(tmp_path)
    gray = SimMIMModel.from_pretrained(
        tmp_path, image_size=48, encoder_config={"num_channels": 1}, ignore_mismatched_sizes=True
    )
    assert gray.encoder.embeddings.patch_embeddings.projection.weight.shape[1] == 1


@pytest.mark.parametrize("encoder", ENCODER_CONFIGS)
def test_every_encoder_goes_to_another_size_and_learns_there(encoder, tmp_path):
    save(ENCODER_CONFIGS[encoder](), tmp_path)
    model = SimMIMForMaskedImageModeling.from_pretrained(tmp_path, image_size=(96, 64))
    assert model.config.image_size == (96, 64)
    pixel_values, mask = batch(model.config)
    outputs = model(pixel_values, bool_masked_pos=mask)
    outputs.loss.backward()
    assert outputs.reconstruction.shape == (2, 3, 96, 64)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_the_shared_table_of_the_vit_goes_to_every_block(tmp_path):
    model = save(beit_config(), tmp_path)
    config = SimMIMConfig.from_pretrained(tmp_path, image_size=48).for_fine_tuning()
    with CaptureLogger(modeling_base.logger) as log:
        loaded, info = SimMIMModel.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert "the shared relative position table copied to 2 blocks" in log.out
    assert "from 4x4 to 6x6 tokens" in log.out
    assert not info["missing_keys"]
    assert isinstance(loaded.encoder.layernorm, torch.nn.Identity)
    shared = model.simmim.encoder.shared_position_bias.relative_position_bias_table
    for layer in loaded.encoder.layers:
        table = layer.relative_position_bias.relative_position_bias_table
        assert torch.equal(table, resize_table(shared, (4, 4), (6, 6)))


def test_for_fine_tuning_leaves_swin_as_it_is():
    config = SimMIMConfig()
    assert config.for_fine_tuning().to_dict() == config.to_dict()


def test_a_window_for_an_encoder_without_windows_is_refused(tmp_path):
    save(vit_config(), tmp_path)
    with pytest.raises(ValueError, match="window_size=7 cannot be set: the encoder 'vit' has no windows"):
        SimMIMModel.from_pretrained(tmp_path, window_size=7)


def test_golden_swin_at_another_window(tmp_path):
    """Tables and features of the authors' fine-tuning code, window 3 -> 4 and 96 -> 128 px."""
    golden_model("swin").save_pretrained(tmp_path)
    golden = load_file(FIXTURES / "swin_finetune_remap.safetensors")
    model = SimMIMModel.from_pretrained(tmp_path, image_size=128, window_size=4)
    weights = model.state_dict()
    tables = [name for name in golden if name.endswith("relative_position_bias_table")]
    for name in tables:
        (ours,) = our_names(name, "swin")
        assert torch.allclose(weights[ours.removeprefix("simmim.")], golden[name], atol=1e-4)
    assert len(tables) == 8
    with torch.no_grad():
        pooled = model(golden["pixel_values"]).pooler_output
    assert torch.allclose(pooled, golden["pooled_features"], atol=1e-4)


def test_golden_vit_for_fine_tuning(tmp_path):
    """Tables and tokens of the authors' fine-tuning code, 64 -> 96 px, a table for each block and no final norm."""
    golden_model("vit").save_pretrained(tmp_path)
    golden = load_file(FIXTURES / "vit_finetune_remap.safetensors")
    config = SimMIMConfig.from_pretrained(tmp_path, image_size=96).for_fine_tuning()
    model = SimMIMModel.from_pretrained(tmp_path, config=config)
    for index, layer in enumerate(model.encoder.layers):
        expected = golden[f"blocks.{index}.attn.relative_position_bias_table"]
        table = layer.relative_position_bias.relative_position_bias_table
        assert torch.allclose(table, expected, atol=1e-4)
    with torch.no_grad():
        tokens = model(golden["pixel_values"]).last_hidden_state
    assert torch.allclose(tokens, golden["tokens"][:, 1:], atol=1e-4)
    pooled = torch.nn.functional.layer_norm(tokens.mean(1), tokens.shape[-1:], eps=1e-6)
    assert torch.allclose(pooled, golden["pooled_features"], atol=1e-4)
