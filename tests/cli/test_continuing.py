"""Pre-training that continues from weights: what changes, how fast, and what an explicit option does."""

# Fixtures of a pre-training are arguments here.
# ruff: noqa: F401, F811
import json

import pytest
import torch
from pretraining import options, photos, read_log
from safetensors.torch import load_file
from tiny import VIT_SIZES
from transformers import AutoModel, ViTConfig, ViTForMaskedImageModeling, ViTImageProcessorPil

from hf_simmim import SimMIMConfig, SimMIMForImageClassification, SimMIMForMaskedImageModeling, SimMIMModel
from hf_simmim.cli import pretrain
from hf_simmim.cli.options.continuing import is_trained_otherwise


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A model of transformers."""
    folder = tmp_path_factory.mktemp("stock")
    torch.manual_seed(0)
    AutoModel.from_config(ViTConfig(**VIT_SIZES)).save_pretrained(folder)
    ViTImageProcessorPil().save_pretrained(folder)
    return folder


def build(photos, folder, checkpoint, **settings):
    """The trainer of a command line, without training."""
    settings = {"encoder": None, "checkpoint": checkpoint, "learning_rate": None} | settings
    return pretrain.build_trainer(*pretrain.COMMAND.parse(options(photos, folder, **settings)))[0]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (SimMIMForMaskedImageModeling, False),
        (SimMIMModel, False),
        (SimMIMForImageClassification, True),
    ],
)
def test_masked_images_trained_an_earlier_pre_training(kind, expected, tmp_path):
    kind(SimMIMConfig(encoder_config=ViTConfig(**VIT_SIZES).to_dict())).save_pretrained(tmp_path)
    assert is_trained_otherwise(str(tmp_path)) == expected


def test_masked_images_trained_the_authors_weights(stock, tmp_path):
    assert is_trained_otherwise(str(stock))
    ViTForMaskedImageModeling(ViTConfig(**VIT_SIZES, encoder_stride=8)).save_pretrained(tmp_path)
    assert not is_trained_otherwise(str(tmp_path))


def test_rates_are_low_for_weights_of_another_model_unless_they_are_set(photos, stock, tmp_path):
    trainer = build(photos, tmp_path / "low", stock)
    assert trainer.args.learning_rate == pytest.approx(0.1 * 2e-4 * 8 / 512, rel=1e-2)
    assert trainer.args.layer_decay == 0.8
    groups = {group["name"]: group for group in trainer.create_optimizer().param_groups}
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rates = {names[id(part)]: group["lr_scale"] for group in groups.values() for part in group["params"]}
    assert rates["head.projection.weight"] == 1
    # Stock weights have none, so it is new.
    assert rates["simmim.encoder.embeddings.mask_token"] == 1
    assert rates["simmim.encoder.embeddings.patch_embeddings.projection.weight"] == pytest.approx(0.8**3)
    trainer = build(photos, tmp_path / "set", stock, base_learning_rate=1e-3, layer_decay=1)
    assert (trainer.args.learning_rate, trainer.args.layer_decay) == (pytest.approx(1e-3 * 8 / 512), 1)
    SimMIMForMaskedImageModeling.from_encoder(stock).save_pretrained(tmp_path / "own")
    trainer = build(photos, tmp_path / "second", tmp_path / "own", max_steps=1)
    assert (trainer.args.learning_rate, trainer.args.layer_decay) == (pytest.approx(2e-4 * 8 / 512), 1)


def test_resumed_runs_keep_their_rates(photos, stock, tmp_path, capsys, caplog):
    settings = {"encoder": None, "checkpoint": stock, "learning_rate": None, "max_steps": 4, "save_steps": 2}
    settings |= {"save_strategy": "steps", "eval_strategy": "no"}
    pretrain.COMMAND.main(options(photos, tmp_path, **settings))
    assert "layer_decay    0.8: masked images did not train these weights" in capsys.readouterr().out
    trainer = build(photos, tmp_path, stock, max_steps=6)
    assert (trainer.args.learning_rate, trainer.args.layer_decay) == (pytest.approx(3.13e-7), 0.8)
    assert "keeps its learning rate" not in caplog.text
    # As an older version wrote it, which trained everything at the full rate.
    run = json.loads((tmp_path / "run.json").read_text())
    run = {key: value for key, value in run.items() if key != "layer_decay"} | {"learning_rate": 1e-3, "chosen": {}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    trainer = build(photos, tmp_path, stock, max_steps=6)
    assert (trainer.args.learning_rate, trainer.args.layer_decay) == (1e-3, 1)


def test_only_the_last_blocks_are_trained(photos, stock, tmp_path):
    settings = {"encoder": None, "checkpoint": stock, "max_steps": 1, "eval_strategy": "no", "train_layers": 1}
    pretrain.COMMAND.main(options(photos, tmp_path / "run", **settings))
    before, after = load_file(stock / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    both = [name for name in before if f"simmim.encoder.{name}" in after]
    changed = {name for name in both if not torch.equal(before[name], after[f"simmim.encoder.{name}"])}
    last = {name for name in both if name.startswith(("layers.1.", "encoder.layer.1.", "layernorm."))}
    assert changed
    assert changed <= last
    assert len(changed) > len(last) / 2
    for number, message in ((3, "the encoder has 2 blocks. Use a number from 1 to that"), (0, "train_layers=0")):
        with pytest.raises(SystemExit, match=message):
            pretrain.COMMAND.main(options(photos, tmp_path / "other", **settings | {"train_layers": number}))
    with pytest.raises(SystemExit, match="another train_layers: 1 before, None now"):
        pretrain.COMMAND.main(options(photos, tmp_path / "run", **settings | {"train_layers": None}))
