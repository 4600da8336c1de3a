"""The average of the weights: as computed by hand, through checkpoints, and in the model at the end."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_simmim.training.weight_average import AVERAGE_FILE as FILE_NAME
from hf_simmim.training.weight_average import WeightAverageCallback


class Points(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return {"x": torch.tensor([index / 10, 1.0]), "labels": torch.tensor(float(index % 3))}


class Model(nn.Module):
    """Has a buffer of floats that changes, and one of integers."""

    def __init__(self, width: int = 1):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(2, width)
        self.register_buffer("running", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x, labels=None):
        if self.training:
            with torch.no_grad():
                self.running += x.mean(0)
                self.count += 1
        logits = self.linear(x + self.running / 10).mean(-1)
        return {"loss": (logits - labels).square().mean(), "logits": logits}


class Recorder(TrainerCallback):
    """Keeps the weights after every step; placed after the average, it sees what that left."""

    def __init__(self):
        self.history: list[dict[str, torch.Tensor]] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.history.append(self.weights(model))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.history.append(self.weights(model))

    @staticmethod
    def weights(model):
        names = ("linear.weight", "linear.bias", "running")
        return {name: tensor.clone() for name, tensor in model.state_dict().items() if name in names}


def make_trainer(folder, callback, model=None, **kwargs) -> tuple[Trainer, Recorder]:
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "save_steps": 2, "learning_rate": 0.1}
    quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no"}
    recorder = Recorder()
    trainer = Trainer(
        model or Model(),
        TrainingArguments(str(folder), **settings | quiet | {"remove_unused_columns": False} | kwargs),
        train_dataset=Points(),
        eval_dataset=Points(),
        callbacks=[callback, recorder],
    )
    return trainer, recorder


@pytest.mark.parametrize(("decay", "warmup"), [(0.5, False), (0.99, False), (0.99, True), (0.2, True), (0.0, False)])
def test_average_is_the_one_computed_by_hand(decay, warmup, tmp_path):
    trainer, recorder = make_trainer(tmp_path, WeightAverageCallback(decay, warmup))
    trainer.train()
    expected = dict(recorder.history[0])
    for step, weights in enumerate(recorder.history[1:], start=1):
        share = min(decay, (1 + step) / (10 + step)) if warmup else decay
        expected = {name: share * expected[name] + (1 - share) * weights[name] for name in expected}
    assert len(recorder.history) == 7
    result = trainer.model.state_dict()
    for name, tensor in expected.items():
        assert torch.allclose(result[name], tensor, atol=1e-6), name
        if decay:
            assert not torch.allclose(result[name], recorder.history[-1][name], atol=1e-4), name
    assert result["count"] == 6


def test_resumed_is_as_uninterrupted(tmp_path):
    trainer, _ = make_trainer(tmp_path, WeightAverageCallback(0.9))
    trainer.train()
    checkpoint = tmp_path / "checkpoint-4"
    saved = load_file(checkpoint / FILE_NAME)
    assert set(saved) == {"linear.weight", "linear.bias", "running"}
    assert not torch.equal(saved["linear.weight"], load_file(checkpoint / "model.safetensors")["linear.weight"])
    again, recorder = make_trainer(tmp_path, WeightAverageCallback(0.9))
    again.train(resume_from_checkpoint=str(checkpoint))
    assert len(recorder.history) == 3
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


def test_checkpoint_of_another_folder(tmp_path):
    trainer, _ = make_trainer(tmp_path / "first", WeightAverageCallback(0.9))
    trainer.train()
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "first" / "checkpoint-4", moved)
    again, _ = make_trainer(tmp_path / "second", WeightAverageCallback(0.9), resume_from_checkpoint=str(moved))
    again.train(resume_from_checkpoint=str(moved))
    assert torch.equal(again.model.linear.weight, trainer.model.linear.weight)
    unnamed, _ = make_trainer(tmp_path / "third", WeightAverageCallback(0.9))
    with pytest.raises(ValueError, match=r"does not exist.* Set TrainingArguments"):
        unnamed.train(resume_from_checkpoint=str(moved))


def test_the_end_is_of_the_average(tmp_path):
    trainer, recorder = make_trainer(tmp_path, WeightAverageCallback(0.9, warmup=False))
    trainer.train()
    trainer.save_model(tmp_path / "final")
    final = load_file(tmp_path / "final" / "model.safetensors")
    last = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    averaged = load_file(tmp_path / "checkpoint-6" / FILE_NAME)
    assert torch.equal(final["linear.weight"], averaged["linear.weight"])
    assert torch.equal(last["linear.weight"], recorder.history[-1]["linear.weight"])
    model = Model()
    model.load_state_dict(averaged, strict=False)
    other, _ = make_trainer(tmp_path, WeightAverageCallback(), model=model)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(other.evaluate()["eval_loss"], rel=1e-6)


def test_lower_precision_is_averaged_in_full(tmp_path):
    trainer, _ = make_trainer(tmp_path, WeightAverageCallback(0.9999, warmup=False), model=Model().bfloat16())
    before = trainer.model.linear.weight.detach().float()
    trainer.data_collator = lambda samples: {
        name: torch.stack([sample[name] for sample in samples]).bfloat16() for name in ("x", "labels")
    }
    trainer.train()
    average = load_file(tmp_path / "checkpoint-6" / FILE_NAME)["linear.weight"]
    assert average.dtype == torch.float32
    assert (average != before).any(), "steps of 0.0001 are lost in bfloat16"
    assert torch.equal(trainer.model.linear.weight, average.bfloat16())


def test_checkpoint_of_other_weights(tmp_path):
    trainer, _ = make_trainer(tmp_path, WeightAverageCallback())
    trainer.train()
    save_file({"other": torch.zeros(1)}, tmp_path / "checkpoint-4" / FILE_NAME)
    again, _ = make_trainer(tmp_path, WeightAverageCallback())
    with pytest.raises(ValueError, match="does not fit the weights of the model"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"decay=1.0 must be in \[0, 1\)"):
        WeightAverageCallback(1.0)
    trainer, _ = make_trainer(
        tmp_path, WeightAverageCallback(), load_best_model_at_end=True, eval_strategy="steps", eval_steps=2
    )
    with pytest.raises(ValueError, match="load_best_model_at_end=True would replace the average"):
        trainer.train()


def test_split_weights_are_refused(tmp_path, monkeypatch):
    state = SimpleNamespace(distributed_type=DistributedType.FSDP)
    monkeypatch.setattr("hf_simmim.training.weight_average.AcceleratorState", lambda: state)
    trainer, _ = make_trainer(tmp_path, WeightAverageCallback())
    with pytest.raises(ValueError, match="needs all weights in each process, but FSDP or DeepSpeed shards them"):
        trainer.train()
