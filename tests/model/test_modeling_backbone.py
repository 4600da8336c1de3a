"""The backbone: maps of every encoder, inside UperNet, from pre-trained weights."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import ENCODER_CONFIGS, beit_config, swin_config, swinv2_config, vit_config
from torch import nn
from transformers import AutoBackbone, SwinBackbone, UperNetConfig, UperNetForSemanticSegmentation

from hf_simmim import SimMIMBackbone, SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMModel
from hf_simmim.model import encoder_stages
from hf_simmim.model.encoder_stages import default_out_features, is_single_scale
from hf_simmim.model.encoders import EncoderOutput

FOUR_STAGES = {"image_size": 64, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "window_size": 2}


def four_stages(**kwargs):
    """A config of a Swin of four stages, with strides 2 to 16."""
    return SimMIMConfig(encoder_config=swin_config(**FOUR_STAGES), **kwargs)


def trainable_without_gradient(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]


def upernet(config: SimMIMConfig) -> UperNetForSemanticSegmentation:
    return UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=config, hidden_size=8, auxiliary_channels=4, num_labels=3)
    )


@pytest.mark.parametrize("out_features", [None, ["stage1"]], ids=["all stages", "stage1"])
@pytest.mark.parametrize("name", ENCODER_CONFIGS)
def test_maps_of_every_encoder(name, out_features):
    torch.manual_seed(0)
    config = SimMIMConfig(encoder_config=ENCODER_CONFIGS[name](), out_features=out_features)
    model = AutoBackbone.from_config(config).train()
    assert type(model) is SimMIMBackbone
    assert model.out_features == (out_features or [stage for stage in config.stage_names if stage != "stem"])
    feature_maps = model(torch.randn(2, 3, *config.image_size)).feature_maps
    strides = [stage.state.stride for stage in model.stages]
    assert strides == ([config.encoder_stride] * len(strides) if is_single_scale(config) else sorted(set(strides)))
    for feature_map, channels, stride in zip(feature_maps, model.channels, strides, strict=True):
        height, width = config.image_size
        assert feature_map.shape == (2, channels, height // stride, width // stride)
    torch.stack([feature_map.sin().sum() for feature_map in feature_maps]).sum().backward()
    assert not trainable_without_gradient(model)
    # What takes part is not frozen.
    assert sum(parameter.requires_grad for parameter in model.parameters()) > 5


@pytest.mark.parametrize("name", ENCODER_CONFIGS)
def test_the_last_map_is_the_feature_map(name):
    torch.manual_seed(0)
    config = SimMIMConfig(encoder_config=ENCODER_CONFIGS[name]())
    model = SimMIMBackbone(config).eval()
    pixel_values = torch.randn(1, 3, *config.image_size)
    with torch.no_grad():
        assert torch.equal(model(pixel_values).feature_maps[-1], model.simmim(pixel_values).feature_map)


def test_same_maps_as_transformers_swin(tmp_path):
    """Stages before patch merging, and the norms, as in stock SwinBackbone with the same weights."""
    torch.manual_seed(0)
    names = ["stem", "stage1", "stage2", "stage3", "stage4"]
    config = four_stages(out_features=names)
    model = SimMIMBackbone(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    model.export_encoder(tmp_path)
    stock = SwinBackbone.from_pretrained(tmp_path, out_features=names).eval()
    norms = {**{name: model.norms[name] for name in names[:-1]}, "stage4": model.simmim.encoder.layernorm}
    for name, norm in norms.items():
        stock.hidden_states_norms[name].load_state_dict(norm.state_dict())
    pixel_values = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = model(pixel_values), stock(pixel_values)
    for our_map, their_map in zip(ours.feature_maps, theirs.feature_maps, strict=True):
        assert torch.allclose(our_map, their_map, atol=2e-5)
    assert model.channels == stock.channels
    assert config.stage_names == stock.stage_names


def test_hidden_states_of_other_models_stay_those_after_merging():
    """The flag of a backbone's Swin is its own."""
    config = four_stages()
    pixel_values = torch.randn(1, 3, 64, 64)
    backbone, model = SimMIMBackbone(config), SimMIMModel(config)
    before = [state.shape[-1] for state in backbone(pixel_values, output_hidden_states=True).hidden_states]
    after = [state.shape[-1] for state in model(pixel_values, output_hidden_states=True).hidden_states]
    assert before == [16, 16, 32, 64, 128]
    assert after == [16, 32, 64, 128, 128]
    assert backbone(pixel_values).hidden_states is None


@pytest.mark.parametrize("make", [swin_config, swinv2_config])
@pytest.mark.parametrize("size", [(32, 64), (33, 50), (7, 61)])
def test_images_that_no_stride_divides(make, size):
    model = SimMIMBackbone(SimMIMConfig(encoder_config=make())).eval()
    with torch.no_grad():
        shapes = [tuple(feature_map.shape[2:]) for feature_map in model(torch.randn(1, 3, *size)).feature_maps]
    assert shapes == [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (2, 4, 8)]


def test_pre_trained_weights_at_another_geometry(tmp_path):
    torch.manual_seed(0)
    config = four_stages(target="color_bins")
    pretrained = SimMIMForMaskedImageModeling(config)
    with torch.no_grad():
        pretrained.simmim.encoder.layernorm.weight.uniform_(0.5, 2)
    pretrained.save_pretrained(tmp_path)
    changes = {"image_size": [96, 64], "window_size": 3}
    model, info = SimMIMBackbone.from_pretrained(
        tmp_path, out_features=["stage2", "stage4"], output_loading_info=True, **changes
    )
    assert {key.split(".")[0] for key in info["missing_keys"]} == {"norms"}
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert (model.out_features, model.channels, model.config.image_size) == (["stage2", "stage4"], [32, 128], (96, 64))
    plain = SimMIMModel.from_pretrained(tmp_path, **changes)
    pixel_values = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        feature_maps = model(pixel_values).feature_maps
        assert torch.equal(feature_maps[-1], plain(pixel_values).feature_map)
    norm = model.norms["stage2"]
    assert torch.equal(norm.weight, torch.ones(32))
    assert torch.equal(norm.bias, torch.zeros(32))
    assert torch.allclose(feature_maps[0].mean(dim=1), torch.zeros(()), atol=1e-5)
    assert not any("mask_token" in name for name, _ in model.named_parameters())

    model.save_pretrained(tmp_path / "backbone")
    again, info = SimMIMBackbone.from_pretrained(tmp_path / "backbone", output_loading_info=True)
    assert not any(info.values())
    assert again.out_features == ["stage2", "stage4"]
    with torch.no_grad():
        assert torch.equal(again(pixel_values).feature_maps[0], feature_maps[0])


def test_unused_stages_stay_frozen(tmp_path):
    """After loading too, by itself and inside UperNet; else DDP waits for gradients that never come."""
    SimMIMForMaskedImageModeling(four_stages()).save_pretrained(tmp_path / "mim")
    model = SimMIMBackbone.from_pretrained(tmp_path / "mim", out_indices=[1, 2]).train()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert any("layers.3" in name for name in frozen)
    assert any("layers.1.downsample" in name for name in frozen)
    assert "simmim.encoder.layernorm.weight" in frozen
    assert not any("layers.0" in name or "norms" in name for name in frozen)

    config = UperNetConfig(backbone_config=model.config, hidden_size=8, use_auxiliary_head=False, num_labels=3)
    UperNetForSemanticSegmentation(config).save_pretrained(tmp_path / "upernet")
    whole = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "upernet").train()
    assert frozen == {name for name, parameter in whole.backbone.named_parameters() if not parameter.requires_grad}
    whole(torch.randn(2, 3, 64, 64), labels=torch.randint(0, 3, (2, 64, 64))).loss.backward()
    assert not trainable_without_gradient(whole)


UPERNETS = {
    "swin": lambda: four_stages(),
    "swinv2": lambda: SimMIMConfig(encoder_config=swinv2_config(**FOUR_STAGES)),
    "vit": lambda: SimMIMConfig(encoder_config=vit_config(num_hidden_layers=4), backbone_pyramid=True),
    "beit": lambda: SimMIMConfig(
        encoder_config=beit_config(num_hidden_layers=6), backbone_pyramid=True, out_indices=[1, 2, 4, 6]
    ),
    "convnext": lambda: SimMIMConfig(encoder_config=ENCODER_CONFIGS["convnext"]()),
    "dinov2": lambda: SimMIMConfig(
        encoder_config=ENCODER_CONFIGS["dinov2"](num_hidden_layers=4), backbone_pyramid=True
    ),
}


@pytest.mark.parametrize("name", UPERNETS)
def test_upernet(name, tmp_path):
    torch.manual_seed(0)
    model = upernet(UPERNETS[name]()).eval()
    pixel_values, labels = torch.randn(2, 3, 40, 56), torch.randint(0, 3, (2, 40, 56))
    with torch.no_grad():
        logits = model(pixel_values).logits
    assert logits.shape == (2, 3, 40, 56)
    model.save_pretrained(tmp_path)
    again, info = UperNetForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    state_dict = again.state_dict()
    assert all(torch.equal(tensor, state_dict[key]) for key, tensor in model.state_dict().items())
    # Trainer resumes from the file without any conversion of names.
    assert load_file(tmp_path / "model.safetensors").keys() == state_dict.keys()
    assert again.backbone.out_features == model.backbone.out_features
    with torch.no_grad():
        assert torch.allclose(again(pixel_values).logits, logits, atol=1e-6)
    again.train()
    if name != "convnext":  # transformers' has none
        again.backbone.gradient_checkpointing_enable()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = again(pixel_values, labels=labels).loss
    loss.backward()
    assert loss.isfinite()
    assert not trainable_without_gradient(again)


def test_gradient_checkpointing_changes_nothing():
    torch.manual_seed(0)
    model = SimMIMBackbone(four_stages()).train()
    pixel_values = torch.randn(2, 3, 64, 64)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.stack([feature_map.sin().sum() for feature_map in model(pixel_values).feature_maps]).sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-5) for name in gradients[0])


@pytest.mark.parametrize("make", [swin_config, swinv2_config])
def test_compiles_to_one_graph(make):
    model = SimMIMBackbone(SimMIMConfig(encoder_config=make(depths=[1, 1], num_heads=[1, 1]))).eval()
    pixel_values = torch.randn(1, 3, 32, 32)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        for ours, expected in zip(compiled(pixel_values)[0], model(pixel_values)[0], strict=True):
            assert torch.allclose(ours, expected, atol=1e-5)


def test_pyramid_of_an_encoder_of_one_stride():
    torch.manual_seed(0)
    config = SimMIMConfig(encoder_config=vit_config(num_hidden_layers=4), backbone_pyramid=True)
    model = SimMIMBackbone(config).train()
    feature_maps = model(torch.randn(2, 3, 33, 50)).feature_maps
    assert [tuple(feature_map.shape[1:]) for feature_map in feature_maps] == [
        *((32, 17, 25), (32, 9, 13), (32, 5, 7), (32, 3, 4))
    ]
    torch.stack([feature_map.sin().sum() for feature_map in feature_maps]).sum().backward()
    assert not trainable_without_gradient(model)


@pytest.mark.parametrize(
    ("depth", "layers"), [(12, [4, 6, 8, 12]), (24, [8, 12, 16, 24]), (5, [2, 3, 4, 5]), (3, [1, 2, 3])]
)
def test_four_layers_of_an_encoder_of_one_stride(depth, layers):
    config = SimMIMConfig(encoder_config=vit_config(num_hidden_layers=depth))
    assert default_out_features(config) == [f"stage{layer}" for layer in layers]


def test_config_keeps_the_stages(tmp_path):
    plain = SimMIMConfig().to_dict()
    assert "out_features" not in plain
    assert "out_indices" not in plain
    config = four_stages(out_indices=(1, -1))
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["out_features"] == ["stage1", "stage4"]
    again = SimMIMConfig.from_pretrained(tmp_path)
    assert (again.out_features, again.out_indices) == (["stage1", "stage4"], [1, -1])
    other = SimMIMConfig.from_pretrained(tmp_path, out_features=["stage2"])
    assert (other.out_features, other.out_indices) == (["stage2"], [2])
    nested = UperNetConfig(backbone_config=config)
    assert UperNetConfig.from_dict(nested.to_dict()).backbone_config.out_features == ["stage1", "stage4"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: four_stages(out_features=["stage9"]), "subset of stage_names"),
        (lambda: four_stages(out_indices=[7]), "valid indices"),
        (lambda: four_stages(out_features=["stage1"], out_indices=[2]), "correspond to the same stages"),
        (lambda: four_stages(backbone_pyramid=True), "several strides already. Leave it out"),
        (
            lambda: SimMIMConfig(encoder_config=vit_config(), backbone_pyramid=True),
            "but 2 of the encoder 'vit' are selected. It only has stem, stage1, stage2: use a deeper",
        ),
        (
            lambda: SimMIMConfig(
                encoder_config=vit_config(num_hidden_layers=4), backbone_pyramid=True, out_indices=[1]
            ),
            "but 1 of the encoder 'vit' are selected. Select 4 of them with out_features: stem, stage1, stage2, stage3",
        ),
    ],
)
def test_what_does_not_fit_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        SimMIMBackbone(config())


def test_encoders_without_hidden_states_are_refused(monkeypatch):
    monkeypatch.setattr(encoder_stages, "_measured_states", {})
    monkeypatch.setattr(encoder_stages, "encode", lambda *args, **kwargs: EncoderOutput(torch.zeros(1), None, None))
    with pytest.raises(ValueError, match="returns no hidden states. .* for a backbone use another encoder"):
        SimMIMBackbone(SimMIMConfig(encoder_config=vit_config()))
