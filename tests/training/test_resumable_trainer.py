"""A training may be killed, stopped by a signal, or meet a full disk or a NaN: what is saved is whole and finite."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from interrupted_runs import differences, make_trainer
from paths import ROOT, SUPPORT
from transformers import TrainerCallback

from hf_simmim.training import resumable_trainer
from hf_simmim.training.checkpoints import STAGING, TrainingStoppedError, flaw, newest_whole_checkpoint
from hf_simmim.training.stop_signals import TrainingInterrupted


def names(folder) -> set[str]:
    return {path.name for path in folder.glob("checkpoint-*")}


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_one_process_resumes_in_mid_epoch_with_its_images(tmp_path, num_workers):
    assert differences(tmp_path, num_workers) == []


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_two_processes_resume_in_mid_epoch_with_their_images(tmp_path, num_workers):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}"}
    command += [str(SUPPORT / "interrupted_runs.py"), str(tmp_path), str(num_workers)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]


class AtStep(TrainerCallback):
    """Does something before the weights change in a step."""

    def __init__(self, step: int, action):
        self.step, self.action = step, action

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            self.action(model)


def spoil_gradient(trainer, value: float) -> None:
    """Replace a gradient before it is clipped; the loss stays finite."""
    training_step = trainer.training_step

    def spoiled(model, *args, **kwargs):
        loss = training_step(model, *args, **kwargs)
        if trainer.state.global_step + 1 == 7:
            next(model.parameters()).grad.view(-1)[0] = value
        return loss

    trainer.training_step = spoiled


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.0}, {"gradient_accumulation_steps": 2}], ids=str)
def test_a_gradient_that_is_not_finite_ends_the_training(tmp_path, value, options):
    trainer = make_trainer("fine-tuning", tmp_path, logging_steps=1000, **options)
    spoil_gradient(trainer, value)
    with pytest.raises(TrainingStoppedError, match="no longer finite at step .*checkpoint-5 is from before"):
        trainer.train()
    assert newest_whole_checkpoint(tmp_path).name == "checkpoint-5"


@pytest.mark.parametrize("options", [{"save_strategy": "no"}, {"save_steps": 100}], ids=str)
def test_weights_that_are_not_finite_at_the_end_are_an_error(tmp_path, options):
    trainer = make_trainer("fine-tuning", tmp_path, max_steps=3, **options)

    class Spoil(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            next(model.parameters()).data.view(-1)[0] = float("nan")

    trainer.add_callback(Spoil())
    with pytest.raises(TrainingStoppedError, match="no checkpoint was saved"):
        trainer.train()
    assert not names(tmp_path)


def test_a_disk_that_fills_up_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    trainer = make_trainer("fine-tuning", tmp_path, save_total_limit=1)
    save = torch.save

    def full(content, path, *args, **kwargs):
        if "checkpoint-10" in str(path):
            raise OSError(28, "No space left on device")
        return save(content, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        TrainingStoppedError, match="checkpoint-10 could not be saved .*No space.*checkpoint-5, is whole"
    ):
        trainer.train()
    assert names(tmp_path) == {"checkpoint-5"}
    assert not (tmp_path / STAGING).exists()


def test_a_kill_while_saving_leaves_no_checkpoint_of_that_name(tmp_path, monkeypatch):
    trainer = make_trainer("fine-tuning", tmp_path, save_total_limit=1)

    def killed(staged, final):
        if final.name == "checkpoint-10":
            raise KeyboardInterrupt
        return finish_checkpoint(staged, final)

    finish_checkpoint = resumable_trainer.finish_checkpoint
    monkeypatch.setattr(resumable_trainer, "finish_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert names(tmp_path) == {"checkpoint-5"}
    assert flaw(tmp_path / "checkpoint-5") is None


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_saves_and_ends_with_its_code(tmp_path, name, capfd):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    trainer = make_trainer("fine-tuning", tmp_path, save_strategy="no")
    trainer.add_callback(AtStep(7, lambda model: os.kill(os.getpid(), number)))
    with pytest.raises(TrainingInterrupted) as ended:
        trainer.train()
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert names(tmp_path) == {"checkpoint-7"}
    printed = capfd.readouterr()
    assert f"{name}: saving" in printed.err
    assert "checkpoint-7 is saved" in printed.out
    whole, resumed = make_trainer("fine-tuning", tmp_path / "whole"), make_trainer("fine-tuning", tmp_path)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trainer = make_trainer("fine-tuning", tmp_path)
        trainer.add_callback(AtStep(7, lambda model: os.kill(os.getpid(), signal.SIGHUP)))
        assert trainer.train().global_step == 18
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_saved_files_do_not_tell_where_the_run_was(tmp_path):
    folder = tmp_path / "somebody" / "run"
    trainer = make_trainer("pretraining", folder, max_steps=5, load_best_model_at_end=True, eval_strategy="steps")
    trainer.train()
    trainer.save_final_model()
    trainer.save_state()
    assert trainer.state.best_model_checkpoint
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert b"somebody" not in path.read_bytes(), path
    assert torch.load(folder / "training_args.bin", weights_only=False).output_dir == "run"
    assert trainer.args.output_dir == str(folder)
