"""A training may be killed, stopped by a signal, or meet a full disk or a NaN: what is saved is whole and finite."""

import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from interrupted_runs import SignalInEvaluation, differences, make_trainer
from paths import ROOT, SUPPORT
from transformers import TrainerCallback

from hf_simmim.training import resumable_trainer
from hf_simmim.training.arguments import SimMIMTrainingArguments
from hf_simmim.training.run_folder import RUN_FILE, prepare_output_dir
from hf_simmim.training.run_lock import LOCK_FILE, unlock_runs
from hf_simmim.training.saving.checkpoints import STAGING, TrainingStoppedError, flaw, newest_whole_checkpoint
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


def spoil_gradient(trainer, value: float, steps: Sequence[int] = (7,)) -> None:
    """Replace a gradient in some steps before it is clipped; the loss stays finite."""
    training_step = trainer.training_step

    def spoiled(model, *args, **kwargs):
        loss = training_step(model, *args, **kwargs)
        if trainer.state.global_step + 1 in steps:
            next(model.parameters()).grad.view(-1)[0] = value
        return loss

    trainer.training_step = spoiled


@pytest.mark.parametrize("value", [pytest.param(float("inf"), marks=pytest.mark.slow), float("nan")])
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.0}, {"gradient_accumulation_steps": 2}], ids=str)
def test_a_gradient_that_is_not_finite_is_left_out(tmp_path, value, options):
    """As if the optimizer had not been called in that step; the schedule goes on."""
    runs = [make_trainer("fine-tuning", tmp_path / name, logging_steps=1, **options) for name in ("spoiled", "without")]
    spoil_gradient(runs[0], value)
    runs[1].add_callback(AtStep(7, lambda model: model.zero_grad()))
    for run in runs:
        run.train()
    weights = [torch.cat([parameter.flatten() for parameter in run.model.parameters()]) for run in runs]
    assert torch.equal(*weights)
    assert weights[0].isfinite().all()
    assert runs[0].skipped_steps.steps == {7}
    logged = [entry.get("skipped_steps") for entry in runs[0].state.log_history if "loss" in entry]
    assert logged[:6] == [None] * 6
    assert set(logged[6:]) == {1}
    assert all(math.isfinite(entry.get("grad_norm", 0)) for entry in runs[0].state.log_history)
    folder = tmp_path / "spoiled" / "skipped_steps" / "step-0000007"
    accumulated = options.get("gradient_accumulation_steps", 1)
    assert len(list(folder.glob("batch-0-*.safetensors"))) == accumulated
    assert not (tmp_path / "without" / "skipped_steps").exists()
    # A resumed run counts it, and those that come again only once.
    resumed = make_trainer("fine-tuning", tmp_path / "spoiled", max_steps=runs[0].state.max_steps + 2, **options)
    resumed.train(resume_from_checkpoint=str(newest_whole_checkpoint(tmp_path / "spoiled")))
    assert resumed.skipped_steps.steps == {7}


def test_too_many_steps_that_are_not_finite_end_the_training(tmp_path):
    trainer = make_trainer("fine-tuning", tmp_path)
    spoil_gradient(trainer, math.nan, steps=range(7, 100))
    trainer.skipped_steps.limit = 2
    with pytest.raises(TrainingStoppedError, match=r"3 steps were skipped .*step 9 .*-5 is from before.*replay"):
        trainer.train()
    assert newest_whole_checkpoint(tmp_path).name == "checkpoint-5"


def test_a_training_of_skipped_steps_alone_saves_nothing(tmp_path):
    trainer = make_trainer("fine-tuning", tmp_path, max_steps=4)
    spoil_gradient(trainer, math.inf, steps=range(100))
    with pytest.raises(TrainingStoppedError, match="4 steps were skipped .*no checkpoint was saved"):
        trainer.train()
    assert not names(tmp_path)


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


def test_a_complete_run_of_a_model_that_is_sharded_is_left_to_its_engine(tmp_path):
    """Only the sharded model of DeepSpeed can be saved, and it is made when a training begins."""
    whole = make_trainer("fine-tuning", tmp_path)
    whole.train()
    last = str(max(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])))
    assert last.endswith(f"-{whole.state.global_step}")
    trainer = make_trainer("fine-tuning", tmp_path)
    trainer.is_deepspeed_enabled = True
    assert trainer._restored_if_complete(last) is None
    trainer.is_deepspeed_enabled = False
    assert trainer._restored_if_complete(last) is not None


def test_writing_beside_the_training_is_refused_before_it_begins_without_shards(tmp_path):
    trainer = make_trainer("fine-tuning", tmp_path)
    trainer.args.async_save = True
    trainer.add_callback(AtStep(1, lambda model: pytest.fail("It began.")))
    with pytest.raises(TrainingStoppedError, match="async_save=True writes shards of FSDP2 only"):
        trainer.train()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_saves_and_ends_with_its_code(tmp_path, name, capfd, request):
    number = getattr(signal, name)
    inherited = signal.getsignal(number)
    request.addfinalizer(lambda: signal.signal(number, inherited))
    # A shell lets its background jobs ignore SIGINT.
    before = signal.default_int_handler if name == "SIGINT" else inherited
    signal.signal(number, before)
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


@pytest.mark.parametrize("kind", ["pretraining", pytest.param("fine-tuning", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "options",
    [
        {"save_strategy": "no"},
        {"load_best_model_at_end": True},
        {"save_strategy": "best", "metric_for_best_model": "loss"},
        {"save_strategy": "epoch", "eval_strategy": "epoch"},
    ],
    ids=str,
)
def test_a_signal_in_an_evaluation_does_not_wait_for_its_end(tmp_path, kind, options):
    options = {"eval_strategy": "steps", "per_device_eval_batch_size": 1} | options
    trainer, callback = make_trainer(kind, tmp_path, **options), SignalInEvaluation()
    trainer.add_callback(callback)
    with pytest.raises(TrainingInterrupted) as ended:
        trainer.train()
    assert ended.value.code == 128 + signal.SIGUSR1
    assert callback.num_batches <= 3
    step = 6 if options["eval_strategy"] == "epoch" else 5
    assert names(tmp_path) == {f"checkpoint-{step}"}
    whole, resumed = make_trainer(kind, tmp_path / "whole"), make_trainer(kind, tmp_path)
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_workers_end_with_the_training_and_with_evaluations_after_it(tmp_path):
    """Else they are ended by the garbage collector, which may wait for 5 s for each of them, in a later run."""
    options = {"eval_strategy": "steps", "eval_steps": 1}
    trainer = make_trainer("fine-tuning", tmp_path, num_workers=1, max_steps=2, **options)
    num_workers = []
    trainer.add_callback(AtStep(2, lambda model: num_workers.append(len(multiprocessing.active_children()))))
    trainer.train()
    assert num_workers == [2]
    assert not multiprocessing.active_children()
    for _ in range(2):
        trainer.evaluate()
        assert not multiprocessing.active_children()


def test_workers_that_are_ended_after_the_training_are_no_error(tmp_path):
    trainer = make_trainer("fine-tuning", tmp_path, num_workers=1, max_steps=2)
    trainer.train()
    batches = iter(trainer.get_eval_dataloader())
    next(batches)
    workers = multiprocessing.active_children()
    assert workers
    for worker in workers:
        # As Python does at its exit.
        worker.terminate()
        worker.join()
    assert {worker.exitcode for worker in workers} == {0}


def use_fp16(trainer) -> None:
    """Scale the loss as on a GPU, which accelerate does not do on processors."""
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    trainer.accelerator.native_amp = True


@pytest.mark.parametrize(
    ("steps", "max_steps", "stopped_at"),
    [(range(1, 4), 3, 3), (range(7, 60), 60, 50), (range(1, 3), 3, None), (range(3, 12), 12, None)],
    ids=["all steps", "too many in a row", "all but the last", "all but the first"],
)
def test_steps_of_fp16_that_are_all_skipped_are_no_training(tmp_path, steps, max_steps, stopped_at):
    trainer = make_trainer("fine-tuning", tmp_path, fp16=True, max_steps=max_steps, logging_steps=10)
    use_fp16(trainer)
    spoil_gradient(trainer, float("inf"), steps)
    if stopped_at is None:
        assert trainer.train().global_step == max_steps
    else:
        with pytest.raises(TrainingStoppedError, match=f"nothing is trained at step {stopped_at},.*--bf16"):
            trainer.train()
        assert f"checkpoint-{stopped_at}" not in names(tmp_path)


def test_a_run_of_fp16_is_resumed_with_another_precision(tmp_path):
    trainer = make_trainer("fine-tuning", tmp_path, fp16=True, max_steps=5)
    use_fp16(trainer)
    trainer.train()
    assert (tmp_path / "checkpoint-5" / "scaler.pt").exists()
    resumed = make_trainer("fine-tuning", tmp_path, max_steps=7)
    assert resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5")).global_step == 7


@pytest.mark.parametrize("options", [{}, {"save_strategy": "no"}, {"eval_strategy": "steps"}], ids=str)
def test_a_folder_that_is_deleted_in_mid_run_is_made_again(tmp_path, options):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / RUN_FILE).write_text("{}")
    trainer = make_trainer("fine-tuning", folder, **options)
    trainer.add_callback(AtStep(7, lambda model: shutil.rmtree(folder)))
    try:
        trainer.train()
        trainer.save_final_model()
        assert (folder / LOCK_FILE).exists()
    finally:
        unlock_runs()
    assert (folder / RUN_FILE).read_text() == "{}"
    assert names(folder) == (
        set() if "save_strategy" in options else {"checkpoint-10", "checkpoint-15", "checkpoint-18"}
    )


def test_a_folder_that_another_run_took_ends_the_training(tmp_path):
    (tmp_path / RUN_FILE).write_text("{}")
    trainer = make_trainer("fine-tuning", tmp_path)
    trainer.add_callback(AtStep(7, lambda model: (tmp_path / RUN_FILE).write_text('{"seed": 1}')))
    with pytest.raises(TrainingStoppedError, match="Another run was started in .*--output_dir"):
        trainer.train()
    assert names(tmp_path) == {"checkpoint-5"}


def test_a_run_that_was_started_again_keeps_its_folder(tmp_path):
    (tmp_path / RUN_FILE).write_text("{}")
    code = f"from hf_simmim.training.run_lock import *; lock_run(Path({str(tmp_path)!r})); print(flush=True); input()"
    second = None

    def start_again(model):
        nonlocal second
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        (tmp_path / RUN_FILE).write_text("{}")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        second = subprocess.Popen([sys.executable, "-c", code], **pipes)
        second.stdout.readline()

    trainer = make_trainer("fine-tuning", tmp_path)
    trainer.add_callback(AtStep(7, start_again))
    try:
        with pytest.raises(TrainingStoppedError, match="Another run writes to .*: process [0-9]+ on"):
            trainer.train()
        unlock_runs()
        assert (tmp_path / LOCK_FILE).exists()
    finally:
        second.communicate(b"\n")
    assert names(tmp_path) == set()


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


def test_a_kill_while_old_checkpoints_are_deleted_leaves_no_half_of_one(tmp_path, monkeypatch):
    trainer = make_trainer("fine-tuning", tmp_path, save_total_limit=1)
    unlink, deleted = os.unlink, []

    def killed(path, *args, **kwargs):
        deleted.append(path)
        if len(deleted) == 3:
            raise KeyboardInterrupt
        unlink(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    assert names(tmp_path) == {"checkpoint-10"}
    assert flaw(tmp_path / "checkpoint-10") is None


def test_what_a_kill_left_is_removed_at_the_next_start(tmp_path):
    (tmp_path / RUN_FILE).write_text("{}")
    (tmp_path / STAGING / "checkpoint-5").mkdir(parents=True)
    # As safetensors calls the weights until they are whole.
    left, other = tmp_path / ".tmpaB3xYz", tmp_path / ".tmp"
    left.touch()
    other.touch()
    prepare_output_dir(SimMIMTrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    unlock_runs()
    assert not left.exists()
    assert not (tmp_path / STAGING).exists()
    assert other.exists()
