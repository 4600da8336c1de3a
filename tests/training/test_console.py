"""What a training prints: lines of numbers, one bar, and nothing else."""

import pytest
from one_step import make_trainer
from tiny import swin_config
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling
from hf_simmim.training.console import ConsoleCallback, duration, log_line


@pytest.mark.parametrize(
    ("logs", "line"),
    [
        (
            {"loss": 0.24471, "learning_rate": 9e-4, "images_per_second": 1329.4, "eta_seconds": 81.2, "epoch": 5.0},
            "step 500/4000 (epoch 5.0)  loss 0.2447  lr 9.0e-04  1,329 images/s  eta 1 min 21 s",
        ),
        (
            {"eval_loss": 0.22, "eval_masked_l1": 22.21, "eval_runtime": 3.1, "eval_steps_per_second": 1.0, "epoch": 5},
            "step 500/4000 (epoch 5.0)  eval: loss 0.22  masked l1 22.21",
        ),
        ({"probe_knn_accuracy": 0.578, "epoch": 0}, "step 500/4000 (epoch 0.0)  probe knn accuracy 57.8 %"),
        (
            {"train_runtime": 3661.0, "train_loss": 0.6, "train_samples_per_second": 3.0, "total_flos": 10, "epoch": 9},
            "step 500/4000 (epoch 9.0)  trained in 1 h 1 min",
        ),
        ({"epoch": 1.0}, ""),
    ],
)
def test_lines(logs, line):
    assert log_line(logs, 500, 4000) == line


def test_durations():
    assert [duration(seconds) for seconds in (0.4, 59.4, 60, 3599, 7500)] == [
        *("0 s", "59 s", "1 min 0 s", "59 min 59 s", "2 h 5 min")
    ]


def test_one_bar_and_lines_and_the_same_log(tmp_path, capfd):
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=swin_config()))
    trainer = make_trainer(model, tmp_path, batch_size=4)
    trainer.args.logging_steps, trainer.args.max_steps, trainer.args.eval_strategy = 1, 2, "epoch"
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert kinds.count(ConsoleCallback) == 1
    assert not {PrinterCallback, ProgressCallback} & set(kinds)
    trainer.train()
    trainer.save_model()
    out, err = capfd.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines() if line.startswith("step")] == [
        "step 1/2 (epoch 0.5)",
        "step 2/2 (epoch 1.0)",
        "step 2/2 (epoch 1.0)",
        "step 2/2 (epoch 1.0)",
    ]
    assert "eval: loss" in out
    assert "{" not in out
    assert "2/2" in err
    assert "Writing" not in err
    assert "evaluating, batch 2 of 2" in err
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(isinstance(loss, float) for loss in losses)


@pytest.mark.parametrize(
    ("num_steps", "settings", "logged"),
    [
        (3, {"logging_steps": 50}, [3]),
        (5, {"logging_steps": 2}, [2, 4, 5]),
        (25, {"logging_steps": 50, "named": {"max_steps"}}, [*range(2, 25, 2), 25]),
        (4, {"logging_steps": 50, "named": {"logging_steps"}}, [4]),
        (3, {"logging_strategy": "no"}, []),
    ],
    ids=str,
)
def test_the_last_step_is_logged_and_short_runs_ten_times(tmp_path, num_steps, settings, logged):
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=swin_config()))
    trainer = make_trainer(model, tmp_path, batch_size=8)
    for name, value in {"max_steps": num_steps, **settings}.items():
        setattr(trainer.args, name, value)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == logged


def test_the_plain_trainer_prints_as_ever(tmp_path):
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=swin_config()))
    trainer = Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True))
    assert ProgressCallback in [type(callback) for callback in trainer.callback_handler.callbacks]
