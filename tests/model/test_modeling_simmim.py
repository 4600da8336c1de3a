"""The models: what they compute, that nothing leaks, and that they load where transformers' own models load."""

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny import ENCODER_CONFIGS, batch, swin_config, vit_config
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedImageModeling,
    BertConfig,
    Siglip2VisionConfig,
    VideoMAEConfig,
    ViTMAEConfig,
    YolosConfig,
)

from hf_simmim import ENCODER_PRESETS, SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMModel
from hf_simmim.model.masking import random_mask, to_pixels

# Encoders, and a few again with `encode="visible"`.
VISIBLE = ["swin", "swinv2", "vit", "dinov2_with_registers", "clip_vision_model"]
CASES = [*ENCODER_CONFIGS, *(f"{encoder} visible" for encoder in VISIBLE)]
encoders = pytest.mark.parametrize("encoder", CASES)


def make_model(encoder: str = "swin", **kwargs) -> SimMIMForMaskedImageModeling:
    torch.manual_seed(0)
    name, _, encode = encoder.partition(" ")
    config = SimMIMConfig(encoder_config=ENCODER_CONFIGS[name](**kwargs), encode=encode or "all")
    model = SimMIMForMaskedImageModeling(config).eval()
    # Parameters that start at zero would hide what depends on them.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


@encoders
def test_pixels_under_the_mask_change_nothing(encoder):
    model = make_model(encoder)
    pixel_values, mask = batch(model.config)
    hidden = to_pixels(mask, model.config.patch_size, model.config.image_size)[:, None]
    changed = torch.where(hidden, torch.randn_like(pixel_values) * 100, pixel_values)
    with torch.no_grad():
        features = model.simmim(pixel_values, bool_masked_pos=mask).feature_map
        features_changed = model.simmim(changed, bool_masked_pos=mask).feature_map
        whole = model.simmim(pixel_values).feature_map
    assert torch.equal(features, features_changed)
    assert not torch.allclose(features, whole)
    unhidden = torch.where(hidden, pixel_values, torch.randn_like(pixel_values))
    assert not torch.allclose(features, model.simmim(unhidden, bool_masked_pos=mask).feature_map)


@encoders
def test_nan_under_the_mask_harms_neither_output_nor_gradients(encoder):
    model = make_model(encoder)
    pixel_values, mask = batch(model.config)
    pixel_values = pixel_values.masked_fill(
        to_pixels(mask, model.config.patch_size, model.config.image_size)[:, None], float("nan")
    )
    reconstruction = model(pixel_values, bool_masked_pos=mask).reconstruction
    reconstruction.sum().backward()
    assert reconstruction.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@encoders
def test_every_parameter_gets_a_gradient(encoder):
    model = make_model(encoder)
    pixel_values, mask = batch(model.config)
    model(pixel_values, bool_masked_pos=mask).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    # What only a pooler sees is frozen, for DDP waits for every parameter that is not.
    unused = {f"simmim.encoder.{name}" for name in model.simmim.geometry.unused}
    assert all("layernorm" in name or ".head." in name for name in unused)
    # Some encoders hold a mask token in any case.
    assert without == frozen == unused | {name for name in frozen if "visible" in encoder and "mask_token" in name}


@encoders
def test_loss_is_the_mean_absolute_error_of_hidden_pixels(encoder):
    model = make_model(encoder)
    pixel_values, mask = batch(model.config)
    outputs = model(pixel_values, bool_masked_pos=mask)
    hidden = to_pixels(mask, model.config.patch_size, model.config.image_size)[:, None].expand_as(pixel_values)
    expected = (outputs.reconstruction - pixel_values).abs()[hidden].mean()
    assert torch.allclose(outputs.loss, expected, rtol=1e-6)
    assert outputs.reconstruction.shape == pixel_values.shape


def test_what_no_forward_uses_stays_frozen_however_a_model_is_loaded(tmp_path):
    """Loading makes parameters trainable again, and DDP waits for each that is."""
    for name in ("clip_vision_model", "dinov3_vit"):
        model = make_model(name)
        model.save_pretrained(tmp_path / name)
        model.export_encoder(tmp_path / f"{name}-stock")
        frozen = {f"encoder.{unused}" for unused in model.simmim.geometry.unused}
        for loaded in (
            SimMIMModel.from_pretrained(tmp_path / name),
            AutoModel.from_pretrained(tmp_path / name, image_size=48),
            SimMIMModel.from_encoder(tmp_path / f"{name}-stock"),
            SimMIMForMaskedImageModeling.from_pretrained(tmp_path / name).simmim,
        ):
            assert {key for key, parameter in loaded.named_parameters() if not parameter.requires_grad} == frozen
        unmasked = SimMIMModel.from_pretrained(tmp_path / name, use_mask_token=False)
        pixel_values, _ = batch(unmasked.config)
        unmasked(pixel_values).last_hidden_state.sum().backward()
        assert all(parameter.grad is not None for parameter in unmasked.parameters() if parameter.requires_grad)


@encoders
def test_pickles_and_memory_formats(encoder):
    model = make_model(encoder)
    pixel_values, mask = batch(model.config)
    with torch.no_grad():
        expected = model(pixel_values, bool_masked_pos=mask).reconstruction
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.allclose(copied(pixel_values, bool_masked_pos=mask).reconstruction, expected, atol=1e-6)
        pixel_values = pixel_values.to(memory_format=torch.channels_last)
        assert torch.allclose(model(pixel_values, bool_masked_pos=mask).reconstruction, expected, atol=1e-5)


def test_measuring_in_threads_and_without_gradients_leaves_torch_as_it_is():
    configs = [SimMIMConfig(encoder_config=vit_config(hidden_size=32, intermediate_size=size)) for size in range(8, 16)]
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda config: config.encoder_stride, configs)) == {8}
    layer = torch.nn.Linear(64, 64)
    assert 0 < layer.weight.abs().max() <= 1 / 8
    with torch.inference_mode():
        config = SimMIMConfig(encoder_config=vit_config(intermediate_size=17))
        assert SimMIMModel(config)(torch.zeros(1, 3, 32, 32)).feature_map.shape == (1, 32, 4, 4)


def test_a_rectangle_of_positions_is_not_taken_for_a_square():
    model = make_model("vit", image_size=[32, 128]).simmim
    with pytest.raises(
        ValueError, match=r"64x64 px do not fit an encoder .* rectangle of 32x128 px.*image_size=\.\.\."
    ):
        model(torch.zeros(1, 3, 64, 64))


def test_configs_are_not_shared_with_the_caller():
    encoder_config = swin_config()
    SimMIMConfig(encoder_config=encoder_config, image_size=64, window_size=2)
    assert (encoder_config.image_size, encoder_config.window_size) == (32, 4)
    SimMIMConfig().encoder_config.depths[0] = 99
    assert SimMIMConfig().encoder_config.depths[0] == 2


def test_loss_region_all_takes_every_pixel():
    model = make_model()
    model.config.loss_region = "all"
    pixel_values, mask = batch(model.config)
    outputs = model(pixel_values, bool_masked_pos=mask)
    assert torch.allclose(outputs.loss, (outputs.reconstruction - pixel_values).abs().mean(), rtol=1e-6)


def test_masks_of_any_form_mean_the_same():
    model = make_model()
    pixel_values, mask = batch(model.config)
    losses = [
        model(pixel_values, bool_masked_pos=form).loss.item()
        for form in (mask, mask.flatten(1), mask.long(), mask.flatten(1).to(torch.uint8))
    ]
    assert len(set(losses)) == 1


def test_a_loss_that_is_not_asked_for_is_not_computed():
    model = make_model("vit")
    pixel_values, mask = batch(model.config)
    outputs = model(pixel_values, bool_masked_pos=mask, return_loss=False)
    assert outputs.loss is None
    assert torch.equal(outputs.prediction, model(pixel_values, bool_masked_pos=mask).prediction)


def test_without_a_mask_there_is_no_loss():
    model = make_model()
    pixel_values, _ = batch(model.config)
    outputs = model(pixel_values)
    assert outputs.loss is None
    assert outputs.reconstruction.shape == pixel_values.shape


@pytest.mark.parametrize("image_size", [(32, 64), (64, 32), (48, 32)])
@pytest.mark.parametrize("num_channels", [1, 3, 6])
def test_rectangles_and_any_number_of_channels(image_size, num_channels):
    model = make_model(image_size=image_size, num_channels=num_channels)
    config = model.config
    assert config.image_size == image_size
    pixel_values, mask = batch(config)
    outputs = model(pixel_values, bool_masked_pos=mask)
    assert outputs.reconstruction.shape == (2, num_channels, *image_size)
    assert outputs.loss.isfinite()
    feature_map = model.simmim(pixel_values).feature_map
    assert feature_map.shape == (2, config.hidden_size, image_size[0] // 8, image_size[1] // 8)


@encoders
def test_features(encoder):
    model = make_model(encoder)
    config = model.config
    pixel_values, _ = batch(config)
    outputs = model.simmim(pixel_values, output_hidden_states=True)
    height, width = (side // config.encoder_stride for side in config.image_size)
    assert outputs.feature_map.shape == (2, config.hidden_size, height, width)
    assert outputs.last_hidden_state.shape == (2, height * width, config.hidden_size)
    assert torch.equal(outputs.last_hidden_state[:, 1], outputs.feature_map[:, :, 0, 1])
    assert torch.allclose(outputs.pooler_output, outputs.feature_map.mean((2, 3)), atol=1e-6)
    assert len(outputs.hidden_states) > 2


@encoders
def test_save_and_load(encoder, tmp_path):
    model = make_model(encoder)
    pixel_values, mask = batch(model.config)
    expected = model(pixel_values, bool_masked_pos=mask).reconstruction
    features = model.simmim(pixel_values).last_hidden_state
    model.save_pretrained(tmp_path)
    for loader in (SimMIMForMaskedImageModeling, AutoModelForMaskedImageModeling):
        loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert isinstance(loaded, SimMIMForMaskedImageModeling)
        assert not any(info.values())
        assert torch.equal(loaded(pixel_values, bool_masked_pos=mask).reconstruction, expected)
    for loader in (SimMIMModel, AutoModel):
        loaded = loader.from_pretrained(tmp_path)
        assert isinstance(loaded, SimMIMModel)
        assert torch.equal(loaded(pixel_values).last_hidden_state, features)
    assert AutoConfig.from_pretrained(tmp_path).encoder_config.model_type == encoder.split(" ")[0]


@encoders
def test_names_on_disk_are_names_in_memory(encoder, tmp_path):
    """Trainer resumes with load_state_dict(strict=False), which would silently skip renamed weights."""
    from safetensors.torch import load_file

    model = make_model(encoder)
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()


@encoders
def test_gradient_checkpointing_gives_the_same_gradients(encoder):
    pixel_values, mask = batch(make_model(encoder).config)
    norms = []
    for checkpointing in (False, True):
        model = make_model(encoder).train()
        if checkpointing and encoder in ("resnet", "convnext"):
            with pytest.raises(ValueError, match="not compatible with gradient checkpointing"):
                model.gradient_checkpointing_enable()
            return
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        model(pixel_values, bool_masked_pos=mask).loss.backward()
        norms.append(
            torch.stack([parameter.grad.norm() for parameter in model.parameters() if parameter.requires_grad])
        )
    assert torch.allclose(*norms, rtol=1e-5)


@encoders
def test_bfloat16(encoder):
    model = make_model(encoder)
    pixel_values, mask = batch(model.config)
    expected = model(pixel_values, bool_masked_pos=mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(pixel_values, bool_masked_pos=mask)
    assert outputs.loss.dtype == torch.float32
    assert math.isclose(outputs.loss.item(), expected.loss.item(), rel_tol=0.02)
    outputs.loss.backward()
    model.to(torch.bfloat16)
    for images in (pixel_values, pixel_values.bfloat16()):
        outputs = model(images, bool_masked_pos=mask)
        assert (outputs.loss.dtype, outputs.prediction.dtype) == (torch.float32, torch.bfloat16)
        assert math.isclose(outputs.loss.item(), expected.loss.item(), rel_tol=0.05)


@pytest.mark.parametrize("encoder", ["swin", "clip_vision_model", pytest.param("resnet", marks=pytest.mark.slow)])
def test_compiles_without_graph_breaks(encoder):
    model = make_model(encoder).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    pixel_values, mask = batch(model.config)
    expected = model(pixel_values, bool_masked_pos=mask)
    expected.loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]
    model.zero_grad()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    outputs = compiled(pixel_values, bool_masked_pos=mask)
    outputs.loss.backward()
    assert torch.allclose(outputs.loss, expected.loss, rtol=1e-5)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter, gradient in zip(trained, gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


def test_initialization_is_the_papers():
    torch.manual_seed(0)
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=swin_config(embed_dim=64, drop_path_rate=0.1)))
    block = model.simmim.encoder.encoder.layers[0].blocks[1]
    for parameter in (
        block.attention.self.query.weight,
        block.attention.self.relative_position_bias_table,
        block.intermediate.dense.weight,
        model.simmim.encoder.embeddings.mask_token,
    ):
        assert 0.015 < parameter.std() < 0.025
    assert block.intermediate.dense.bias.abs().max() == 0
    # Convolutions keep torch's own default, a uniform distribution of this bound.
    for convolution in (model.simmim.encoder.embeddings.patch_embeddings.projection, model.head.projection):
        bound = 1 / math.sqrt(convolution.weight[0].numel())
        assert 0.95 * bound < convolution.weight.abs().max() <= bound
        assert 0 < convolution.bias.abs().max() <= bound


@pytest.mark.parametrize("encoder", ["beit", "vit"])
def test_tokens_of_other_encoders_do_not_start_at_zero(encoder):
    """Behind a LayerNorm a zero token would multiply the gradient by 1 / sqrt(eps)."""
    torch.manual_seed(0)
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=ENCODER_CONFIGS[encoder]()))
    for token in (model.simmim.encoder.embeddings.mask_token, model.simmim.encoder.embeddings.cls_token):
        assert 0.01 < token.std() < 0.03


@pytest.mark.parametrize("encoder", ["efficientnet", "mobilevit"])
def test_images_are_left_at_the_end_of_convolutional_encoders(encoder, tmp_path):
    """transformers draws the weights of their batch norms around zero; loaded ones stay as they are."""
    torch.manual_seed(0)
    model = SimMIMModel(SimMIMConfig(encoder_config={"model_type": encoder, "image_size": 64})).train()
    assert model(torch.randn(2, 3, 64, 64)).feature_map.std() > 0.1
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    torch.nn.init.constant_(norm.weight, 0.5)
    model.save_pretrained(tmp_path)
    loaded = SimMIMModel.from_pretrained(tmp_path)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), loaded.parameters(), strict=True))


def test_the_vit_starts_as_released():
    """Projections onto the residual stream are scaled down with depth, and the shared table starts at zero."""
    torch.manual_seed(0)
    config = SimMIMConfig(encoder_config=ENCODER_CONFIGS["beit"](hidden_size=64, num_hidden_layers=4))
    encoder = SimMIMForMaskedImageModeling(config).simmim.encoder
    for index, layer in enumerate(encoder.layers):
        for projection in (layer.attention.o_proj, layer.mlp.fc2):
            expected = 0.02 / math.sqrt(2 * (index + 1))
            assert 0.9 * expected < projection.weight.std() < 1.1 * expected
        assert 0.018 < layer.mlp.fc1.weight.std() < 0.022
    assert encoder.shared_position_bias.relative_position_bias_table.abs().max() == 0
    assert 0.018 < encoder.embeddings.patch_embeddings.projection.weight.std() < 0.022


@encoders
def test_fsdp_finds_the_layers_to_wrap(encoder):
    model = make_model(encoder)
    classes = {type(module).__name__ for module in model.modules()}
    assert model._no_split_modules
    assert set(model._no_split_modules) <= classes


def test_default_config_is_the_papers_swin_b():
    config = SimMIMConfig()
    encoder = config.encoder_config
    assert (config.image_size, config.patch_size, config.grid_size) == ((192, 192), 4, (48, 48))
    assert (config.hidden_size, config.encoder_stride, config.num_channels) == (1024, 32, 3)
    assert (encoder.model_type, encoder.window_size, encoder.depths) == ("swin", 6, [2, 2, 18, 2])
    assert (config.head, config.target, config.loss, config.loss_region) == ("linear", "rgb", "l1", "masked")


@pytest.mark.parametrize("preset", ENCODER_PRESETS)
def test_presets_build(preset):
    config = SimMIMConfig(encoder_config=dict(ENCODER_PRESETS[preset]))
    with torch.device("meta"):
        model = SimMIMForMaskedImageModeling(config)
    millions = model.simmim.num_parameters() / 1e6
    expected = {"swin-tiny": 27.5, "swin-small": 48.8, "swin-base": 86.7, "swin-large": 195.0, "vit-base": 85.7}
    assert abs(millions - (expected | {"swinv2-base": 86.9, "swin-mini": 2.2})[preset]) < 0.5


@pytest.mark.parametrize(
    ("encoder_config", "reason"),
    [
        (YolosConfig(num_hidden_layers=1), "its detection tokens follow the patch tokens"),
        (ViTMAEConfig(), "it drops and shuffles patches itself"),
        (Siglip2VisionConfig(num_hidden_layers=1), "pixel_attention_mask"),
        (VideoMAEConfig(num_hidden_layers=1), "expected 5, got 4"),
        (BertConfig(num_hidden_layers=1), "expected 2"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_models_that_are_no_encoders_are_refused_with_the_reason(encoder_config, reason):
    config = SimMIMConfig(encoder_config=encoder_config)
    with pytest.raises(ValueError, match=f"{encoder_config.model_type}.*cannot be used.*{reason}"):
        SimMIMForMaskedImageModeling(config)


@encoders
@pytest.mark.parametrize("image_size", [(64, 96), (72, 56)])
def test_any_height_and_width(encoder, image_size):
    """Images that are no multiple of the stride are padded, and the padding is no part of loss and reconstruction."""
    model = make_model(encoder, image_size=list(image_size))
    config, geometry = model.config, model.simmim.geometry
    assert config.image_size == image_size
    assert config.grid_size == tuple(math.ceil(side / geometry.patch_size) for side in image_size)
    pixel_values = torch.randn(2, 3, *image_size, generator=torch.Generator().manual_seed(0))
    unit_size = max(2, config.mask_step // config.patch_size)
    mask = random_mask(config.grid_size, 0.5, 2, unit_size=unit_size, generator=torch.Generator().manual_seed(0))
    outputs = model(pixel_values, bool_masked_pos=mask)
    assert outputs.reconstruction.shape == pixel_values.shape
    hidden = to_pixels(mask, geometry.patch_size, image_size)[:, None].expand_as(pixel_values)
    expected = (outputs.reconstruction - pixel_values).abs()[hidden].mean()
    assert torch.allclose(outputs.loss, expected, rtol=1e-5)
    feature_map = model.simmim(pixel_values).feature_map
    assert feature_map.shape[2:] == tuple(math.ceil(side / geometry.stride) for side in image_size)


@encoders
def test_features_are_where_the_pixels_are(encoder):
    """Each step of the feature map answers most to its own pixels: prefix tokens and reading order are right.

    Where it is a map already there are neither, and convolutions blur.
    """
    model = make_model(encoder, image_size=[64, 96] if encoder != "hiera" else [64, 128]).simmim
    height, width = model.config.image_size
    stride = model.geometry.stride
    pixel_values = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model(pixel_values).feature_map
        rows, columns = features.shape[2:]
        for row, column in ((0, columns - 1), (rows - 1, 0), (rows // 2, columns // 2)):
            changed = pixel_values.clone()
            changed[:, :, row * stride : (row + 1) * stride, column * stride : (column + 1) * stride] += 3
            difference = (model(changed).feature_map - features).norm(dim=1)[0]
            found = divmod(int(difference.argmax()), columns)
            distance = max(abs(found[0] - row), abs(found[1] - column))
            assert distance <= (0 if model.geometry.layout == "tokens" else 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "lineer"}, "head='lineer' is unknown. Use one of: linear"),
        ({"target": "hogs"}, "target='hogs' is unknown"),
        ({"loss": "l3"}, "loss='l3' is unknown"),
        ({"loss_region": "some"}, "loss_region='some' is unknown. Use one of: masked, all"),
        ({"encoder_config": {"embed_dim": 16}}, "encoder_config has no model_type. Name one"),
        (
            {"image_mean": [0.5, float("nan"), 0.5]},
            "image_mean=.*nan.* must be a finite number, or one for",
        ),
        ({"image_std": 0.0}, "image_std=0.0 must be a positive number"),
        ({"image_std": ["1", "1", "1"]}, "image_std=.*'1'.* must be a positive number"),
        ({"head_inputs": [True]}, "head_inputs=.True. must be indices"),
        ({"loss": "smooth_l1", "loss_options": {"beta": math.inf}}, "beta=inf must be a finite number above 0"),
        ({"image_size": 0}, "image_size=0 must be a side, or a height and a width, of 1 to 16384 pixels"),
        ({"image_size": (32, 32, 3)}, "image_size=.* must be a side"),
        ({"window_size": 0}, "window_size=0 must be a whole number of tokens"),
        ({"encoder_config": vit_config(), "window_size": 7}, "window_size=7 cannot be set: .*'vit' has no windows"),
    ],
)
def test_bad_configs_are_refused(settings, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        SimMIMConfig(**settings)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("loss_region", "hidden", "loss_region='hidden' is unknown"),
        ("loss", "cross_entropy", "loss='cross_entropy' does not fit target='rgb'"),
        ("target", "color_bins", "loss='l1' does not fit target='color_bins'"),
        ("prediction_stride", 0, "prediction_stride=0 must be 1 pixel or more"),
    ],
)
def test_what_is_changed_in_a_config_is_checked_when_a_model_is_built(field, value, message):
    config = SimMIMConfig(encoder_config=vit_config())
    setattr(config, field, value)
    with pytest.raises(ValueError, match=message):
        SimMIMForMaskedImageModeling(config)


def test_bad_inputs_are_refused():
    model = make_model()
    pixel_values, mask = batch(model.config)
    with pytest.raises(ValueError, match="has 1 channels and the model was built for 3"):
        model(pixel_values[:, :1], bool_masked_pos=mask)
    with pytest.raises(ValueError, match=r"shape \(2, 15, 16\).*\(2, 256\)"):
        model(pixel_values, bool_masked_pos=mask[:, 1:])
    with pytest.raises(ValueError, match=r"Images of 28x32 .*\(2, 224\)"):
        model(pixel_values[:, :, 4:], bool_masked_pos=mask)


def test_a_model_without_mask_token_loads_from_one_with(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = SimMIMModel.from_pretrained(tmp_path, use_mask_token=False)
    pixel_values, mask = batch(model.config)
    assert loaded.encoder.embeddings.mask_token is None
    assert torch.equal(loaded(pixel_values).last_hidden_state, model.simmim(pixel_values).last_hidden_state)
    with pytest.raises(ValueError, match="without a mask token"):
        loaded(pixel_values, bool_masked_pos=mask)


@pytest.mark.parametrize("kernel", ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_attention_kernels_of_the_encoder(kernel, tmp_path):
    model = make_model("vit")
    model.save_pretrained(tmp_path)
    loaded = SimMIMModel.from_pretrained(tmp_path, attn_implementation=kernel)
    assert loaded.encoder.config._attn_implementation == kernel
    pixel_values, _ = batch(model.config)
    with torch.no_grad():
        assert torch.allclose(loaded(pixel_values).feature_map, model.simmim(pixel_values).feature_map, atol=1e-5)


def test_kernels_that_the_encoder_does_not_have_are_refused(tmp_path):
    make_model("beit").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="BeitModel does not support .* flex_attention"):
        SimMIMModel.from_pretrained(tmp_path, attn_implementation="flex_attention")


def test_vit_prefix_tokens_are_removed():
    model = make_model("vit")
    pixel_values, _ = batch(model.config)
    tokens = model.simmim.encoder(pixel_values).last_hidden_state
    assert torch.equal(model.simmim(pixel_values).last_hidden_state, tokens[:, 1:])
    assert SimMIMConfig(encoder_config=vit_config()).encoder_stride == 8


# The second Swin ends in a shifted block on a padded grid.
SKIPPING = {
    "swin": ("swin", {"drop_path_rate": 0.3}, {}),
    "swin, shifted": ("swin", {"depths": [1, 2], "num_heads": [2, 2], "window_size": 3}, {"head": "mlp"}),
    "swinv2": ("swinv2", {"drop_path_rate": 0.3}, {"target": "normalized_rgb"}),
    "swin, head_inputs": ("swin", {}, {"head_inputs": [0, 1]}),
    "vit": ("vit", {}, {"loss": "l2"}),
    "inverse_swin": (
        "vit",
        {},
        {
            "head": "inverse_swin",
            "head_options": {"embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 2},
        },
    ),
    "hog": ("swin", {}, {"target": "hog", "target_options": {"cell_size": 4}}),
}


@pytest.mark.parametrize("name", SKIPPING)
def test_skipping_visible_patches_keeps_loss_and_gradients(name):
    encoder, settings, options = SKIPPING[name]
    torch.manual_seed(0)
    config = SimMIMConfig(encoder_config=ENCODER_CONFIGS[encoder](**settings), **options)
    model = SimMIMForMaskedImageModeling(config).train()
    pixel_values = torch.randn(2, 3, 28, 44)
    # Masks of single patches, an image without any, and cells of the feature map in which a part is masked.
    size = tuple(math.ceil(side / config.patch_size) for side in pixel_values.shape[2:])
    mask = random_mask(size, 0.1, 2)
    mask[1] = False
    results = {}
    for skip in (False, True):
        torch.manual_seed(1)
        outputs = model(pixel_values, bool_masked_pos=mask, skip_visible=skip)
        outputs.loss.backward()
        gradients = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
        model.zero_grad()
        results[skip] = (outputs, gradients)
    (whole, expected), (part, gradients) = results[False], results[True]
    assert torch.allclose(part.loss, whole.loss, rtol=1e-6)
    assert gradients.keys() == expected.keys()
    for key, gradient in expected.items():
        assert torch.allclose(gradients[key], gradient, rtol=1e-4, atol=1e-6), key
    assert part.prediction.shape == whole.prediction.shape
    # All of it is computed where the head mixes cells.
    assert torch.allclose(part.prediction, whole.prediction, atol=1e-5) == (name == "inverse_swin")
    with torch.no_grad():
        torch.manual_seed(1)
        unmasked = model(pixel_values, skip_visible=True).prediction
        torch.manual_seed(1)
        assert torch.equal(unmasked, model(pixel_values).prediction)
