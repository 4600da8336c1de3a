"""Pre-training that continues from weights: what changes, how fast, and what an explicit option does."""

# Fixtures of a pre-training are arguments here.
# ruff: noqa: F401, F811
import importlib
import json

import pytest
import torch
from cards import table
from huggingface_hub import ModelCard
from pretraining import ENCODER, options, photos, read_log
from safetensors.torch import load_file
from tiny import VIT_SIZES
from transformers import AutoModel, ViTConfig, ViTForMaskedImageModeling, ViTImageProcessorPil

from hf_simmim import SimMIMConfig, SimMIMForImageClassification, SimMIMForMaskedImageModeling, SimMIMModel
from hf_simmim.cli import pretrain
from hf_simmim.cli.options.continuing import is_trained_otherwise
from hf_simmim.training.trainers import SimMIMTrainer


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
    groups = trainer.create_optimizer().param_groups
    assert groups[0]["lr"] == trainer.args.learning_rate  # as it is logged
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rates = {names[id(part)]: group["lr"] for group in groups for part in group["params"]}
    # Stock weights have neither, so both have the rate of a training from scratch.
    assert rates["head.projection.weight"] == pytest.approx(2e-4 * 8 / 512, rel=1e-2)
    assert rates["simmim.encoder.embeddings.mask_token"] == rates["head.projection.bias"]
    assert rates["simmim.encoder.layernorm.weight"] == trainer.args.learning_rate
    lowest = rates["simmim.encoder.embeddings.patch_embeddings.projection.weight"]
    assert lowest == pytest.approx(0.8**3 * trainer.args.learning_rate)
    trainer = build(photos, tmp_path / "own_rate", stock, new_rate=3)
    groups = trainer.create_optimizer().param_groups
    assert groups[-1]["lr"] == pytest.approx(3 * groups[0]["lr"])
    trainer = build(photos, tmp_path / "set", stock, base_learning_rate=1e-3, layer_decay=1)
    assert (trainer.args.learning_rate, trainer.args.layer_decay) == (pytest.approx(1e-3 * 8 / 512), 1)
    assert trainer.args.new_rate == 1
    SimMIMForMaskedImageModeling.from_encoder(stock).save_pretrained(tmp_path / "own")
    trainer = build(photos, tmp_path / "second", tmp_path / "own", max_steps=1)
    assert (trainer.args.learning_rate, trainer.args.layer_decay) == (pytest.approx(2e-4 * 8 / 512), 1)
    assert trainer.args.new_rate == 1


def test_rates_without_a_batch_size_are_those_of_the_checkpoints_encoder(photos, stock, tmp_path):
    """--encoder has its default then, which is a far larger one."""
    settings = {"per_device_train_batch_size": None, "num_train_epochs": 1}
    fresh = build(photos, tmp_path / "fresh", None, encoder=json.dumps(ENCODER), **settings)
    SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=ENCODER)).save_pretrained(tmp_path / "own")
    continued = build(photos, tmp_path / "continued", tmp_path / "own", **settings)
    assert continued.args.learning_rate == fresh.args.learning_rate
    low = build(photos, tmp_path / "low", stock, **settings)
    assert low.args.learning_rate == pytest.approx(0.1 * fresh.args.learning_rate)


def test_resumed_runs_keep_their_rates(photos, stock, tmp_path, capsys, caplog):
    settings = {"encoder": None, "checkpoint": stock, "learning_rate": None, "max_steps": 4, "save_steps": 2}
    settings |= {"save_strategy": "steps", "eval_strategy": "no"}
    pretrain.COMMAND.main(options(photos, tmp_path, **settings))
    printed = capsys.readouterr().out
    assert "layer_decay    0.8: masked images did not train these weights" in printed
    assert "new_rate       10.0: " in printed
    trainer = build(photos, tmp_path, stock, max_steps=6)
    assert (trainer.args.learning_rate, trainer.args.layer_decay) == (pytest.approx(3.13e-7), 0.8)
    assert trainer.args.new_rate == 10
    assert "keeps its learning rate" not in caplog.text
    with pytest.raises(ValueError, match="another new_rate: 10.0 before, 2.0 now"):
        build(photos, tmp_path, stock, max_steps=6, new_rate=2)
    # As an older version wrote it, which trained the head at the rate of the encoder.
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({key: run[key] for key in run if key != "new_rate"}))
    assert build(photos, tmp_path, stock, max_steps=6).args.new_rate == 1
    # As an older version wrote it, which trained everything at the full rate.
    run = json.loads((tmp_path / "run.json").read_text())
    run = {key: value for key, value in run.items() if key != "layer_decay"} | {"learning_rate": 1e-3, "chosen": {}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    trainer = build(photos, tmp_path, stock, max_steps=6)
    assert (trainer.args.learning_rate, trainer.args.layer_decay) == (1e-3, 1)
    assert trainer.args.new_rate == 1


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


def test_adapters_are_merged_and_resumed(photos, stock, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    settings = {"encoder": None, "checkpoint": stock, "lora": 2, "save_strategy": "steps", "save_steps": 2}
    settings |= {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 4, "stop_by": "rank", "learning_rate": 1e-2}
    pretrain.COMMAND.main(options(photos, tmp_path / "whole", **settings))
    rows = table(ModelCard.load(tmp_path / "whole" / "README.md").content)
    assert rows["trained"].startswith("adapters (LoRA) of rank 2")

    step, calls = SimMIMTrainer.training_step, []

    def dying_step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SimMIMTrainer, "training_step", dying_step)
        with pytest.raises(KeyboardInterrupt):
            pretrain.COMMAND.main(options(photos, tmp_path / "killed", **settings))
    pretrain.COMMAND.main(options(photos, tmp_path / "killed", **settings))
    whole, killed = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "killed"))
    start = SimMIMForMaskedImageModeling.from_encoder(stock).state_dict()
    assert whole.keys() == killed.keys() == start.keys()
    for name in whole:
        assert torch.equal(whole[name], killed[name]), name
        difference = whole[name] - start[name]
        if name.startswith("simmim.encoder") and not name.endswith("mask_token"):
            is_linear = difference.ndim == 2
            assert bool(difference.any()) == is_linear, name
            # Merged weights are rounded.
            assert not is_linear or torch.linalg.matrix_rank(difference, rtol=1e-4) <= 2, name
    # What a checkpoint holds is a model as well, with the figures of its step.
    best = json.loads((tmp_path / "whole" / "trainer_state.json").read_text())["best_global_step"]
    saved = load_file(tmp_path / "whole" / f"checkpoint-{best}" / "model.safetensors")
    assert all(torch.equal(saved[name], whole[name]) for name in whole)
    assert AutoModel.from_pretrained(tmp_path / "whole").config.hidden_size == 32


def test_what_adapters_cannot_do_is_refused(photos, stock, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else find(name))
    for setting, message in (
        ({"lora": 0}, "lora=0 must be a rank of 1 or more"),
        ({"new_rate": 0}, "new_rate=0.0 must be above 0"),
        ({"lora": 2, "train_layers": 1}, "exclude each other"),
        ({"lora": 2}, r"needs peft. Run: pip install 'hf-simmim\[peft\]'"),
    ):
        with pytest.raises(SystemExit, match=message):
            pretrain.COMMAND.main(options(photos, tmp_path, encoder=None, checkpoint=stock, **setting))
