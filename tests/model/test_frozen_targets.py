"""Targets of frozen networks: equal to what the networks compute by themselves, and never a part of the model."""

import copy
import json
import pickle
import shutil

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from tiny import ENCODER_CONFIGS, batch, swin_config, vit_config
from transformers import (
    AutoModel,
    AutoModelForMaskedImageModeling,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    FlavaImageCodebook,
    FlavaImageCodebookConfig,
    SwinModel,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)
from transformers.integrations import deepspeed

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMModel

IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
TEACHER_STATISTICS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 0.2]}


def shake(model):
    """Random weights of a size at which outputs differ from place to place."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def codebook(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codebook")
    config = FlavaImageCodebookConfig(hidden_size=8, num_blocks_per_group=1, vocab_size=32)
    network = FlavaImageCodebook(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter, generator=generator)
    # Colors around their mean, or all tokens are alike.
    network.blocks.input.bias.data = -0.5 * network.blocks.input.weight.sum(dim=(1, 2, 3))
    network.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A ViT of stride 8 with its image processor, as a classifier: most checkpoints are."""
    folder = tmp_path_factory.mktemp("teacher")
    shake(ViTForImageClassification(vit_config(num_labels=1000))).save_pretrained(folder)
    ViTImageProcessor(**TEACHER_STATISTICS).save_pretrained(folder)
    return str(folder)


def student(
    target: str, model: str, encoder_config=None, config_options=None, **options
) -> SimMIMForMaskedImageModeling:
    torch.manual_seed(0)
    config = SimMIMConfig(
        encoder_config=encoder_config or vit_config(),
        target=target,
        target_options={"model": model, **options},
        **(config_options or {}),
    )
    return SimMIMForMaskedImageModeling(config)


def colors(*size: int, channels: int = 3) -> torch.Tensor:
    """Pictures in [0, 1] with structure at several scales."""
    generator = torch.Generator().manual_seed(1)
    coarse = F.interpolate(torch.rand(2, channels, 4, 4, generator=generator), size=size, mode="bilinear")
    return (coarse + 0.3 * torch.rand(2, channels, *size, generator=generator)).clamp(0, 1)


def normalized(images: torch.Tensor) -> torch.Tensor:
    return (images - IMAGENET[0]) / IMAGENET[1]


def as_teacher_sees(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in TEACHER_STATISTICS.values())
    return (images - mean) / std


def layer_norm(features: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit variance over the channels (B, D, h, w)."""
    mean, variance = features.mean(1, keepdim=True), features.var(1, keepdim=True, unbiased=False)
    return (features - mean) / (variance + 1e-5).sqrt()


@pytest.mark.parametrize("size", [(32, 32), (32, 64)], ids=["square", "rectangle"])
def test_tokens_are_those_of_the_codebook_itself(codebook, size):
    images = colors(*size)
    target = student("codebook", codebook).target
    tokens = target(normalized(images))
    network = FlavaImageCodebook.from_pretrained(codebook).eval()
    assert torch.equal(tokens[:, 0], network.get_codebook_indices(images * 0.8 + 0.1))
    assert (tokens.dtype, tokens.shape) == (torch.int64, (2, 1, size[0] // 8, size[1] // 8))
    assert (target.stride, target.num_outputs, len(tokens.unique()) > 3) == (8, 32, True)


def test_colors_out_of_range_are_cut_off(codebook):
    images = colors(32, 32) * 3 - 1
    target = student("codebook", codebook).target
    assert torch.equal(target(normalized(images)), target(normalized(images.clamp(0, 1))))


def test_tokens_of_another_stride_are_those_of_a_resized_image(codebook):
    images = colors(64, 32)
    model = student("codebook", codebook, vit_config(patch_size=16), {"prediction_stride": 16})
    resized = F.interpolate(images, size=(32, 16), mode="bicubic", antialias=True).clamp(0, 1)
    network = FlavaImageCodebook.from_pretrained(codebook).eval()
    assert torch.equal(model.target(normalized(images))[:, 0], network.get_codebook_indices(resized * 0.8 + 0.1))


def test_features_are_those_of_the_teacher_itself(teacher):
    images = colors(32, 32)
    model = student("features", teacher)
    stock = ViTModel.from_pretrained(teacher, add_pooling_layer=False).eval()
    with torch.no_grad():
        tokens = stock(as_teacher_sees(images), output_hidden_states=True)
    expected = tokens.last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    assert torch.allclose(model.target(normalized(images)), layer_norm(expected), atol=1e-4)
    raw = student("features", teacher, normalize=False).target(normalized(images))
    assert torch.allclose(raw, expected, atol=1e-4)
    layer = student("features", teacher, normalize=False, layer=1).target(normalized(images))
    assert torch.allclose(layer, tokens.hidden_states[1][:, 1:].transpose(1, 2).unflatten(2, (4, 4)), atol=1e-4)
    assert not torch.allclose(layer, raw, atol=0.1)


@pytest.mark.parametrize("stride", [4, 16])
def test_features_of_another_stride_are_those_of_a_resized_image(teacher, stride):
    images = colors(64, 32)
    model = student("features", teacher, vit_config(patch_size=16), {"prediction_stride": stride})
    size = (64 * 8 // stride, 32 * 8 // stride)
    resized = F.interpolate(images, size=size, mode="bicubic", antialias=True)
    stock = ViTModel.from_pretrained(teacher).eval()
    with torch.no_grad():
        tokens = stock(as_teacher_sees(resized), interpolate_pos_encoding=True).last_hidden_state[:, 1:]
    expected = layer_norm(tokens.transpose(1, 2).unflatten(2, (64 // stride, 32 // stride)))
    assert torch.allclose(model.target(normalized(images)), expected, atol=1e-3)


@pytest.mark.parametrize("name", ["dinov2", "swin", "clip_vision_model", "convnext", "beit", "resnet"])
def test_every_kind_of_encoder_teaches(tmp_path, name):
    stock = shake(AutoModel.from_config(ENCODER_CONFIGS[name]()))
    stock.save_pretrained(tmp_path)
    size = (stock.config.image_size,) * 2 if hasattr(stock.config, "image_size") else (64, 64)
    images = colors(*size)
    stride = SimMIMConfig(encoder_config=stock.config).encoder_stride
    target = student("features", str(tmp_path), vit_config(patch_size=32), normalize=False).target
    with torch.no_grad():
        expected = stock(normalized(images)).last_hidden_state
        if expected.ndim == 3:
            num_tokens = (size[0] // stride) * (size[1] // stride)
            expected = expected[:, -num_tokens:].transpose(1, 2).unflatten(2, (size[0] // stride, size[1] // stride))
    # Without an image processor beside it a teacher gets ImageNet's statistics, as the student does.
    features = target(normalized(images))
    assert torch.allclose(features, expected, atol=1e-3 * expected.abs().max().item())
    assert (target.stride, target.num_outputs) == (stride, features.shape[1])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = target(normalized(images))
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, features)


def test_the_vision_part_of_clip_teaches(tmp_path):
    sizes = vit_config().to_dict()
    vision = {
        key: sizes[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    }
    text = vision | {"vocab_size": 10, "max_position_embeddings": 4}
    config = CLIPConfig(vision_config=vision | {"image_size": 32, "patch_size": 8}, text_config=text, projection_dim=8)
    shake(CLIPModel(config)).save_pretrained(tmp_path)
    images = colors(32, 32)
    target = student("features", str(tmp_path), normalize=False).target
    with torch.no_grad():
        tokens = CLIPVisionModel.from_pretrained(tmp_path).eval()(normalized(images)).last_hidden_state
    assert torch.allclose(target(normalized(images)).flatten(2).transpose(1, 2), tokens[:, 1:], atol=1e-3)


@pytest.mark.parametrize("head", [SimMIMModel, SimMIMForMaskedImageModeling])
def test_a_simmim_checkpoint_teaches(tmp_path, head):
    config = SimMIMConfig(encoder_config=swin_config(), **TEACHER_STATISTICS)
    trained = shake(head(config))
    trained.save_pretrained(tmp_path)
    images = colors(32, 64)
    target = student("features", str(tmp_path)).target
    with torch.no_grad():
        expected = trained.base_model(as_teacher_sees(images)).feature_map
    assert torch.allclose(target(normalized(images)), layer_norm(expected), atol=1e-4)


def test_a_teacher_that_had_a_teacher(tmp_path, teacher):
    shutil.copytree(teacher, tmp_path / "first")
    student("features", str(tmp_path / "first")).save_pretrained(tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    assert student("features", str(tmp_path / "second")).target(normalized(colors(32, 32))).shape == (2, 32, 4, 4)


@pytest.mark.parametrize(
    ("settings", "mean", "std"),
    [
        ({"do_normalize": False}, 0.0, 1.0),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3}, 0.5, 0.2),
        ({"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0}, 0.5, 0.5),
    ],
    ids=["not normalized", "not rescaled", "to [-1, 1]"],
)
def test_what_image_processors_do_to_pixels(tmp_path, settings, mean, std):
    shake(ViTModel(vit_config())).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    options = student("features", str(tmp_path)).config.target_options
    assert (options["image_mean"], options["image_std"]) == (pytest.approx([mean] * 3), pytest.approx([std] * 3))
    chosen = student("features", str(tmp_path), image_mean=[0.1] * 3).config.target_options
    assert (chosen["image_mean"], chosen["image_std"]) == ([0.1] * 3, pytest.approx([std] * 3))


@pytest.mark.parametrize("target", ["codebook", "features"])
@pytest.mark.parametrize("prediction_stride", [None, 4, 16])
def test_cut_borders(codebook, teacher, target, prediction_stride):
    """Any size has a target, and pads with what is at the border: a plain picture stays plain."""
    model = student(
        target,
        {"codebook": codebook, "features": teacher}[target],
        vit_config(patch_size=16),
        {"prediction_stride": prediction_stride},
    )
    stride = prediction_stride or 8
    pixel_values = normalized(colors(37, 50))
    result = model.target(pixel_values)
    assert result.shape[2:] == (-(-37 // stride), -(-50 // stride))
    mask = torch.ones(2, *(-(-side // 16) for side in (37, 50)), dtype=torch.bool)
    outputs = model(pixel_values, bool_masked_pos=mask)
    assert outputs.prediction.shape[2:] == result.shape[2:]
    assert outputs.loss.isfinite()
    assert outputs.reconstruction is None
    plain = normalized(torch.full((1, 3, 37, 50), 0.25))
    whole = normalized(torch.full((1, 3, *(stride * steps for steps in result.shape[2:])), 0.25))
    assert torch.allclose(model.target(plain).float(), model.target(whole).float(), atol=1e-4)


@pytest.mark.parametrize("target", ["codebook", "features"])
def test_nothing_of_the_network_is_in_the_model(tmp_path, codebook, teacher, target):
    name = {"codebook": codebook, "features": teacher}[target]
    model = student(target, name)
    before = [key for key, _ in model.named_parameters()], list(model.state_dict()), list(model.modules())
    pixel_values, mask = batch(model.config)
    model(pixel_values, bool_masked_pos=mask).loss.backward()
    assert ([key for key, _ in model.named_parameters()], list(model.state_dict()), list(model.modules())) == before
    network = model.target._network_on(pixel_values.device)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in network.modules())
    assert model.head.projection.weight.grad.abs().sum() > 0
    assert model.simmim.encoder.embeddings.patch_embeddings.projection.weight.grad.abs().sum() > 0
    model.train()
    assert not any(module.training for module in network.modules())
    assert not model.target(pixel_values.clone().requires_grad_()).requires_grad
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    options = json.loads((tmp_path / "config.json").read_text())["target_options"]
    assert options == model.config.target_options
    assert "id2label" not in options["model_config"]


@pytest.mark.parametrize("target", ["codebook", "features"])
def test_checkpoints_load_where_the_network_is_not(tmp_path, codebook, teacher, target):
    folder = tmp_path / "network"
    shutil.copytree({"codebook": codebook, "features": teacher}[target], folder)
    others = {"normalize": False} if target == "features" else {}
    model = student(target, str(folder), **others).eval()
    model.save_pretrained(tmp_path / "student")
    pixel_values, mask = batch(model.config)
    with torch.no_grad():
        expected = model(pixel_values, bool_masked_pos=mask)
    folder.rename(tmp_path / "elsewhere")
    for auto in (SimMIMForMaskedImageModeling, AutoModelForMaskedImageModeling):
        loaded = auto.from_pretrained(tmp_path / "student")
        assert torch.allclose(loaded(pixel_values).prediction, model(pixel_values).prediction, atol=1e-6)
    # Weights for another size go through models on other ways.
    assert SimMIMForMaskedImageModeling.from_pretrained(tmp_path / "student", image_size=48).target.stride == 8
    AutoModel.from_pretrained(tmp_path / "student")
    message = rf"target='{target}': '.*network' cannot be loaded: .*give its location"
    with pytest.raises(ValueError, match=message) as refusal:
        loaded(pixel_values, bool_masked_pos=mask)
    # What is not repeated is lost.
    assert all(f"{key!r}: {value!r}" in str(refusal.value) for key, value in others.items())
    options = {"model": str(tmp_path / "elsewhere"), **others}
    moved = SimMIMForMaskedImageModeling.from_pretrained(tmp_path / "student", target_options=options)
    assert torch.allclose(moved(pixel_values, bool_masked_pos=mask).loss, expected.loss, rtol=1e-4)


@pytest.mark.parametrize("target", ["codebook", "features"])
def test_copies_and_files_of_a_model_go_without_the_network(tmp_path, codebook, teacher, target):
    model = student(target, {"codebook": codebook, "features": teacher}[target]).eval()
    pixel_values, mask = batch(model.config)
    expected = model(pixel_values, bool_masked_pos=mask).loss
    torch.save(model, tmp_path / "model.pt")
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(tmp_path / "model.pt", weights_only=False),
    ]
    for copied in copies:
        assert copied.target._networks == {}
        assert torch.equal(copied(pixel_values, bool_masked_pos=mask).loss, expected)
    assert model.target._networks
    assert (tmp_path / "model.pt").stat().st_size < 2 * sum(4 * p.numel() for p in model.parameters()) + 200_000


@pytest.mark.parametrize("target", ["codebook", "features"])
def test_autocast_and_half_precision(codebook, teacher, target):
    """A teacher may round, tokens may not; both come out in full precision."""
    images = normalized(colors(32, 32))
    model = student(target, {"codebook": codebook, "features": teacher}[target])
    expected = model.target(images)
    with torch.autocast("cpu", torch.bfloat16):
        result = model.target(images)
    assert result.dtype == expected.dtype
    assert torch.equal(result, expected) == (target == "codebook")
    assert F.cosine_similarity(result.float(), expected.float()).min() > 0.99
    model = model.to(torch.bfloat16)
    pixel_values, mask = batch(model.config)
    loss = model(pixel_values.bfloat16(), bool_masked_pos=mask).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()


@pytest.mark.parametrize("target", ["codebook", "features"])
def test_gray_images_have_the_target_of_gray_colors(codebook, teacher, target):
    name = {"codebook": codebook, "features": teacher}[target]
    statistics = {"image_mean": [0.4], "image_std": [0.2]}
    gray = student(target, name, vit_config(num_channels=1), statistics)
    images = colors(32, 32, channels=1)
    result = gray.target((images - 0.4) / 0.2)
    expected = student(target, name).target(normalized(images.expand(-1, 3, -1, -1)))
    assert torch.allclose(result.float(), expected.float(), atol=1e-3)


@pytest.mark.parametrize(
    ("target", "loss"),
    [("codebook", None), ("features", None), ("features", "smooth_l1"), ("features", "l1"), ("features", "l2")],
)
def test_the_loss_falls(codebook, teacher, target, loss):
    model = student(target, {"codebook": codebook, "features": teacher}[target], config_options={"loss": loss})
    assert model.config.loss == loss or model.config.loss == {"codebook": "cross_entropy", "features": "cosine"}[target]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    _, mask = batch(model.config)
    pixel_values = normalized(colors(32, 32))
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        outputs = model(pixel_values, bool_masked_pos=mask)
        outputs.loss.backward()
        optimizer.step()
        losses.append(outputs.loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_loading_draws_no_random_numbers(codebook, teacher):
    for target, name in (("codebook", codebook), ("features", teacher)):
        model = student(target, name)
        torch.manual_seed(5)
        state = torch.get_rng_state()
        model.target.load()
        assert torch.equal(torch.get_rng_state(), state)


def test_the_network_is_loaded_once(teacher, monkeypatch):
    model = student("features", teacher)
    calls = []
    load_network = type(model.target).load_network
    monkeypatch.setattr(type(model.target), "load_network", lambda self: calls.append(self) or load_network(self))
    assert model.target._networks == {}
    model.target.load()
    model.target.load()
    model.target(normalized(colors(32, 32)))
    assert len(calls) == 1
    student("features", teacher, config_options={"image_size": 64})
    assert len(calls) == 1


def test_targets_without_a_network_have_nothing_to_load():
    SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=vit_config())).target.load()


def test_inference_first_and_training_after(teacher):
    model = student("features", teacher)
    pixel_values, mask = batch(model.config)
    with torch.inference_mode():
        model(pixel_values, bool_masked_pos=mask)
    model(pixel_values, bool_masked_pos=mask).loss.backward()
    network = model.target._network_on(pixel_values.device)
    assert not any(parameter.is_inference() for parameter in network.parameters())


@pytest.mark.parametrize("target", ["codebook", "features"])
def test_without_memory_and_compiled(codebook, teacher, target):
    model = student(target, {"codebook": codebook, "features": teacher}[target]).eval()
    pixel_values, mask = batch(model.config)
    with torch.device("meta"):
        bare = SimMIMForMaskedImageModeling(copy.deepcopy(model.config))
    real = model.target(pixel_values)
    empty = bare.target(pixel_values.to("meta"))
    assert (empty.is_meta, empty.shape, empty.dtype) == (True, real.shape, real.dtype)
    assert bare.target._networks == {}
    prediction = model(pixel_values).prediction
    traced = []
    network = model.target._network_on(pixel_values.device)
    network.register_forward_pre_hook(lambda *_: traced.append(torch.compiler.is_compiling()))
    torch._dynamo.reset()
    compiled = torch.compile(model.masked_loss, backend="eager")
    expected = model.masked_loss(prediction, pixel_values, mask)
    traced.clear()
    assert torch.allclose(compiled(prediction, pixel_values, mask), expected, rtol=1e-5)
    assert not any(traced)


def test_models_without_weights_read_a_config_and_nothing_else(tmp_path, teacher):
    shutil.copytree(teacher, tmp_path / "teacher")
    (tmp_path / "teacher" / "model.safetensors").unlink()
    with torch.device("meta"):
        model = student("features", str(tmp_path / "teacher"))
    assert (model.target.num_outputs, model.target.stride) == (32, 8)
    assert model.config.target_options["model_config"]["model_type"] == "vit"
    assert model.config.target_options["image_mean"] == pytest.approx(TEACHER_STATISTICS["image_mean"])


def test_start_from_a_stock_encoder(tmp_path, teacher):
    options = {"model": teacher}
    model = SimMIMForMaskedImageModeling.from_encoder(teacher, target="features", target_options=options, image_size=48)
    pixel_values, mask = batch(model.config)
    assert model(pixel_values, bool_masked_pos=mask).loss.isfinite()
    assert model.config.target_options["model_config"]["hidden_size"] == 32


def test_every_process_loads_whole_weights(teacher, monkeypatch):
    """DeepSpeed's third stage and FSDP have transformers load a part, or nothing."""

    class Config:
        def is_zero3(self):
            return True

    config = Config()
    expected = student("features", teacher).target(normalized(colors(32, 32)))
    target = student("features", teacher).target
    monkeypatch.setattr("transformers.distributed.fsdp._is_torch_distributed_initialized", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    monkeypatch.setenv("LOCAL_RANK", "1")
    deepspeed.set_hf_deepspeed_config(config)
    try:
        assert torch.equal(target(normalized(colors(32, 32))), expected)
        # An encoder that was not measured before; the shapes of a sharded one are gone.
        assert SimMIMConfig(encoder_config=vit_config(image_size=56, patch_size=7)).grid_size == (8, 8)
        assert deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()


def test_teachers_that_cannot_be_read(tmp_path, codebook, teacher):
    nowhere = str(tmp_path / "nowhere")
    for target in ("codebook", "features"):
        with pytest.raises(ValueError, match=rf"target='{target}': '{nowhere}' cannot be read: .*a name on the Hub"):
            student(target, nowhere)
    with pytest.raises(ValueError, match=r"holds a 'vit' model, not a codebook.*facebook/flava-image-codebook"):
        student("codebook", teacher)
    with pytest.raises(ValueError, match=r"cannot be a teacher: The encoder 'flava_image_codebook' cannot be used"):
        student("features", codebook)
    BertModel(BertConfig(vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        tmp_path / "bert"
    )
    with pytest.raises(ValueError, match=r"bert' cannot be a teacher: .*Name an image encoder"):
        student("features", str(tmp_path / "bert"))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "of a later day"}')
    with pytest.raises(ValueError, match=r"odd' is not a model that transformers knows"):
        student("features", str(tmp_path / "odd"))
    with pytest.raises(StrictDataclassError, match=r"needs a teacher.*facebook/dinov2-base"):
        SimMIMConfig(target="features")


def test_channels_that_do_not_fit(tmp_path, codebook, teacher):
    four = {"image_mean": [0.5] * 4, "image_std": [0.2] * 4}
    for target, name in (("codebook", codebook), ("features", teacher)):
        with pytest.raises(ValueError, match=rf"{name}' takes images of 3 channels, but the encoder takes 4"):
            student(target, name, vit_config(num_channels=4), four)
        with pytest.raises(ValueError, match=r"needs to know how pixel_values are normalized"):
            student(target, name, vit_config(num_channels=4))
        raw = {"image_mean": [120.0] * 3, "image_std": [60.0] * 3}
        with pytest.raises(ValueError, match=r"takes images in \[0, 1\], but image_mean=\[120.0"):
            student(target, name, config_options=raw)
    with pytest.raises(ValueError, match=r"takes images of 3 channels, but image_mean=\[0.5\]"):
        student("features", teacher, image_mean=[0.5])
    shake(ViTModel(vit_config(num_channels=4))).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no image processor, and takes 4 channels. Set image_mean"):
        student("features", str(tmp_path), vit_config(num_channels=4), four)
    target = student("features", str(tmp_path), vit_config(num_channels=4), four, **four).target
    assert target(colors(32, 32, channels=4)).shape == (2, 32, 4, 4)
    (tmp_path / "preprocessor_config.json").write_text('{"do_flip_channel_order": true}')
    with pytest.raises(ValueError, match=r"image processor with do_flip_channel_order, which is not supported"):
        student("features", str(tmp_path), vit_config(num_channels=4), four)


def test_strides_that_do_not_fit(tmp_path, codebook, teacher):
    shake(ViTModel(vit_config(patch_size=16))).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"stride of 16 px, and the encoder's stride of 14 px.*prediction_stride=14:"):
        student("features", str(tmp_path), vit_config(patch_size=14, image_size=28))
    with pytest.raises(ValueError, match=r"stride of 8 px, and the encoder's stride of 14 px.*prediction_stride=7:"):
        student("codebook", codebook, vit_config(patch_size=14, image_size=28))
    model = student("codebook", codebook, vit_config(patch_size=14, image_size=28), {"prediction_stride": 7})
    assert model.target(normalized(colors(28, 28))).shape == (2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"prediction's stride of 5 px does not divide"):
        student("features", teacher, config_options={"prediction_stride": 5})


def test_layers_that_are_none(tmp_path, teacher):
    with pytest.raises(ValueError, match=r"has 3 hidden states; layer=3"):
        student("features", teacher, layer=3)
    shake(SwinModel(swin_config())).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"hidden states of other shapes than its feature map.*Leave layer out"):
        student("features", str(tmp_path), layer=1)


def test_checkpoints_that_lack_weights_or_changed(tmp_path, codebook):
    folder = tmp_path / "codebook"
    network = FlavaImageCodebook.from_pretrained(codebook)
    weights = {key: value for key, value in network.state_dict().items() if "output" not in key}
    network.save_pretrained(folder, state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks weights of the codebook, such as blocks.output"):
        student("codebook", str(folder)).target.load()
    folder = str(tmp_path / "teacher")
    shake(ViTModel(vit_config())).save_pretrained(folder)
    model = student("features", folder)
    shake(ViTModel(vit_config(hidden_size=16))).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"does not match its stored config in target_options"):
        model.target.load()
    config = SimMIMConfig(encoder_config=vit_config())
    half = SimMIMModel(config)
    weights = {key: value for key, value in half.state_dict().items() if "layers.1" not in key}
    half.save_pretrained(tmp_path / "half", state_dict=weights)
    with pytest.raises(ValueError, match=r"lacks weights of the encoder, such as encoder.layers.1"):
        student("features", str(tmp_path / "half")).target.load()
