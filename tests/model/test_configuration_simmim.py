"""Configs: sizes in the form that each encoder takes, and junk that is refused in words."""

import dataclasses
import itertools
import json
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny import ENCODER_CONFIGS, batch, swin_config, vit_config
from transformers import HieraConfig, PreTrainedConfig

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMModel
from hf_simmim.model.configuration_simmim import DERIVED, ENCODER_PRESETS


@pytest.mark.parametrize("size", [64, (64, 64), [64, 64], (64, 96)], ids=str)
@pytest.mark.parametrize("name", ENCODER_CONFIGS)
def test_image_size_of_every_encoder(name, size):
    pair = (size, size) if isinstance(size, int) else tuple(size)
    config = SimMIMConfig(encoder_config=ENCODER_CONFIGS[name](), image_size=size)
    again = SimMIMConfig.from_dict(json.loads(config.to_json_string()))
    for each in (config, again):
        assert each.image_size == pair
    # What the class of the config checks when it is made anew.
    type(config.encoder_config)(**config.encoder_config.to_dict())
    with torch.no_grad():
        feature_map = SimMIMModel(again).eval()(batch(again)[0]).feature_map
    assert feature_map.shape[2:] == tuple(side // config.encoder_stride for side in pair)


@pytest.mark.parametrize("size", [64, (64, 64), [64, 96]], ids=str)
@pytest.mark.parametrize("name", ENCODER_CONFIGS)
def test_image_size_of_every_encoder_on_loading(name, size, tmp_path):
    SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=ENCODER_CONFIGS[name]())).save_pretrained(tmp_path)
    model = SimMIMForMaskedImageModeling.from_pretrained(tmp_path, image_size=size)
    assert model.config.image_size == ((size, size) if isinstance(size, int) else tuple(size))
    pixel_values, mask = batch(model.config)
    assert model(pixel_values, bool_masked_pos=mask).loss.isfinite()


def test_the_form_is_that_of_the_encoder():
    assert SimMIMConfig(encoder_config=HieraConfig(), image_size=64).encoder_config.image_size == [64, 64]
    assert SimMIMConfig(encoder_config=vit_config(), image_size=(64, 64)).encoder_config.image_size == 64
    assert SimMIMConfig(encoder_config=vit_config(), image_size=(64, 32)).encoder_config.image_size == [64, 32]
    assert SimMIMConfig(encoder_config={"model_type": "resnet"}, image_size=(64, 64)).encoder_config.image_size == 64
    with pytest.raises(ValueError, match=r"image_size=\(64, 32\) is not taken by .* 'radio'\. Use a square image"):
        SimMIMConfig(encoder_config={"model_type": "radio"}, image_size=(64, 32))


def test_the_form_of_configs_that_check_nothing():
    class PairConfig(PreTrainedConfig):
        model_type = "vit"

        def __init__(self, image_size=(32, 32), **kwargs):
            super().__init__(**kwargs)
            self.image_size = image_size

    assert SimMIMConfig(encoder_config=PairConfig(), image_size=64).encoder_config.image_size == [64, 64]


def test_layers_and_heads_are_those_of_the_encoder(tmp_path):
    config = SimMIMConfig(encoder_config=swin_config())
    assert (config.num_hidden_layers, config.num_attention_heads) == (3, [2, 2, 4])
    config.save_pretrained(tmp_path)
    assert "num_hidden_layers" not in json.loads((tmp_path / "config.json").read_text())
    assert SimMIMConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    vit = SimMIMConfig(encoder_config=vit_config())
    assert (vit.num_hidden_layers, vit.num_attention_heads) == (2, 2)
    convnext = SimMIMConfig(encoder_config=ENCODER_CONFIGS["convnext"]())
    assert not hasattr(convnext, "num_attention_heads")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id2label": ["cat", "dog"]}, r"id2label=\['cat', 'dog'\] must be a dict from number to name"),
        ({"id2label": {"cat": 0}}, "invalid literal for int"),
        ({"num_labels": -1}, "num_labels=-1 must be a whole number from 0"),
        ({"num_labels": 10**12}, "num_labels=1000000000000 must be a whole number from 0"),
        ({"num_labels": 2.5}, "num_labels=2.5 must be a whole number"),
        ({"encoder_config": "swin"}, "encoder_config='swin' is not a preset. Did you mean 'swin-tiny'?"),
        ({"encoder_config": "org/net"}, "is not a preset. Use one of: swin-tiny, .*AutoConfig.from_pretrained"),
        ({"encoder_config": {"model_type": "nothing"}}, "nothing"),
        ({"encoder_config": {"image_size": 32}}, "encoder_config has no model_type"),
        ({"image_size": -32}, "image_size=-32 must be a side"),
        ({"image_size": math.nan}, "image_size=nan must be a side"),
        ({"image_size": (32, None)}, r"image_size=\(32, None\) must be a side"),
        ({"image_size": True}, "image_size=True must be a side"),
        ({"dtype": []}, r"dtype=\[\] must be a dtype of torch"),
        ({"torch_dtype": "swin"}, "torch_dtype='swin' must be a dtype of torch"),
        *[({name: 4}, f"{name}=4 cannot be set: it follows from encoder_config") for name in DERIVED],
    ],
    ids=str,
)
def test_what_is_no_setting_is_refused(settings, message):
    with pytest.raises((StrictDataclassError, ValueError, TypeError), match=message):
        SimMIMConfig(**settings)
    stored = SimMIMConfig(encoder_config=swin_config()).to_dict()
    if not {"encoder_config", "dtype", "torch_dtype", "image_size", "id2label"} & set(settings):
        with pytest.raises(ValueError, match=message):
            SimMIMConfig.from_dict(stored, **settings)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"traget": "hog"}, "traget='hog' is not a setting of SimMIMConfig. Did you mean target?"),
        ({"image_siz": 192}, "Did you mean image_size?"),
        ({"num_label": 3}, "Did you mean num_labels?"),
        ({"mask_ration": 0.5}, r"belongs to the image processor: SimMIMImageProcessor\(mask_ratio=...\)"),
        ({"depths": [2, 2]}, "Settings of the encoder go into encoder_config"),
    ],
    ids=str,
)
def test_unknown_settings_are_refused_with_the_nearest(settings, remedy):
    with pytest.raises(ValueError, match=remedy):
        SimMIMConfig(encoder_config=swin_config(), **settings)


def test_settings_of_transformers_and_of_stored_configs_are_taken(tmp_path):
    config = SimMIMConfig(
        encoder_config=swin_config(),
        **{"id2label": {0: "cat"}, "architectures": ["SimMIMModel"], "auto_map": {}, "dtype": "float32"},
        **{"_attn_implementation": "eager", "attn_implementation": "eager", "name_or_path": "a", "torch_dtype": None},
        **{"transformers_version": "4.0.0", "model_type": "simmim", "output_attentions": False, "use_cache": True},
    )
    assert SimMIMConfig(**config.to_dict()).to_dict() == config.to_dict()
    config.note = "what a user stores is kept"
    config.save_pretrained(tmp_path)
    again, unused = SimMIMConfig.from_pretrained(tmp_path, note="changed", unknown=1, return_unused_kwargs=True)
    assert (again.note, unused) == ("changed", {"unknown": 1})
    assert not hasattr(again, "unknown")


@pytest.mark.parametrize("name", ENCODER_PRESETS)
def test_presets_by_name(name, tmp_path):
    config = SimMIMConfig(encoder_config=name, image_size=224)
    assert config.to_dict() == SimMIMConfig(encoder_config=ENCODER_PRESETS[name], image_size=224).to_dict()
    SimMIMConfig(encoder_config=swin_config()).save_pretrained(tmp_path)
    loaded = SimMIMConfig.from_pretrained(tmp_path, encoder_config=name)
    assert loaded.encoder_config.to_dict() == SimMIMConfig(encoder_config=name).encoder_config.to_dict()


JUNK: tuple[Any, ...] = (
    *(None, 0, 1, -1, 10**12, 0.5, -0.5, math.nan, math.inf, True, "", "swin", "rgb", "0.5", b"x", object(), range(3)),
    *([], [1], [0], [-1], [None], ["a"], [math.nan], (1, 2), (0, 0), (1, 2, 3), [[1]], {1}, {}, {"a": 1}, {1: 2}),
    *(np.float32(1), np.int64(3), np.array([1, 2]), torch.tensor(3)),
    *({"model_type": kind} for kind in ("swin", "nothing", 3, None)),
)
OTHER_NAMES = ("image_size", "window_size", "out_features", "out_indices", "id2label", "label2id", "num_labels")
MORE_NAMES = ("attn_implementation", "dtype", "torch_dtype", "problem_type", "_geometry", "options", *DERIVED)


def is_stated(error: Exception) -> bool:
    return isinstance(error, (StrictDataclassError, ValueError, TypeError)) and bool(str(error).strip())


def test_junk_in_any_field_raises_a_stated_error_or_none():
    generator = random.Random(0)
    names = [*(field.name for field in dataclasses.fields(SimMIMConfig)), *OTHER_NAMES, *MORE_NAMES]
    pairs = [{name: value} for name, value in itertools.product(names, JUNK)]
    both = [{**generator.choice(pairs), **generator.choice(pairs)} for _ in range(1000)]
    for settings in [*pairs, *both]:
        try:
            SimMIMConfig(**{"encoder_config": swin_config()} | settings).to_dict()
        except Exception as error:
            if not is_stated(error):
                pytest.fail(f"{settings}: {type(error).__name__}: {error}")


ENCODER_JUNK = (0, -4, 2.5, math.nan, "4", None, [], [0], [-2, 2], [2, 2, 2, 2, 2], True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embed_dim": -8}, "embed_dim=-8 of the encoder 'swin' must be a whole number of at least 1"),
        ({"patch_size": 0}, "patch_size=0 of the encoder 'swin' must be a whole number"),
        (
            {"depths": [2, 0]},
            r"depths=\[2, 0\] of the encoder 'swin' must be a whole number of at least 1 for each stage",
        ),
        ({"depths": [1, 1]}, r"depths=\[1, 1\] and num_heads=\[2, 2, 4\] are of different lengths"),
        ({"mlp_ratio": math.nan}, "mlp_ratio=nan of the encoder 'swin' must be a number above 0"),
        ({"drop_path_rate": 1.5}, "drop_path_rate=1.5 of the encoder 'swin' must be a number from 0 to below 1"),
        ({"hidden_act": "nothing"}, "hidden_act='nothing' of the encoder 'swin' must be the name of an activation"),
    ],
    ids=str,
)
def test_impossible_swins_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SimMIMModel(SimMIMConfig(encoder_config=swin_config(**settings)))


@pytest.mark.parametrize("name", ["swin-base", "swinv2-base", "vit-base"])
def test_junk_in_the_encoder_raises_a_stated_error_or_none(name):
    preset = ENCODER_PRESETS[name]
    fields = {"image_size", "patch_size", "num_channels", "drop_path_rate", "mlp_ratio", "hidden_act", *preset}
    fields |= {"num_hidden_layers", "num_attention_heads", "hidden_size", "qkv_bias", "pretrained_window_sizes"}
    for field, value in itertools.product(sorted(fields - {"model_type"}), ENCODER_JUNK):
        try:
            config = SimMIMConfig(encoder_config=preset | {field: value})
            config.grid_size, config.hidden_size  # noqa: B018
            with torch.device("meta"):
                SimMIMForMaskedImageModeling(config)
        except Exception as error:
            if not is_stated(error):
                pytest.fail(f"{field}={value!r}: {type(error).__name__}: {error}")
