"""Training that can be killed at any time: whole checkpoints, exact resuming, finite numbers, and signals."""

import contextlib
import dataclasses
import gc
import math
import shutil
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerState
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput, TrainOutput
from transformers.utils import logging

from ..data.sampling import IndexSampler
from ..model.modeling_base import SimMIMPreTrainedModel
from .acceleration import (
    CastsOfAStep,
    change_blocks,
    end_workers,
    faster_kernels,
    keep_freed_memory,
    prepare_to_fork,
)
from .agreement import fail_together, leave_before_python_ends
from .arguments import without_paths
from .log_sums import LogSums
from .optimization import planned_steps
from .run_folder import keep_run_folder, run_file_text
from .saving.background_writes import BackgroundWrites
from .saving.checkpoints import (
    SAVE_ERRORS,
    STAGING,
    TrainingStoppedError,
    check_deepspeed,
    checkpoint_folders,
    checkpoint_name,
    delete_old_checkpoints,
    finish_checkpoint,
    fsdp_layout,
    load_model,
    load_optimizer,
)
from .skipped_steps import MAX_SKIPPED, SkippedSteps, finite_or
from .stop_signals import EvaluationStoppedError, StopSignals, TrainingInterrupted

logger = logging.get_logger(__name__)

# Loss scale of fp16 at the beginning. Each skipped step halves it, and no other step does.
INITIAL_SCALE = 2.0**16
# Below it, gradients overflow for another reason than the loss scale.
SMALLEST_SCALE = 2.0**-24


class ResumableTrainer(Trainer):
    """`transformers.Trainer` whose runs can be killed and resumed at any step.

    A checkpoint gets its name only when all processes have written their files and a manifest lists them. Steps whose
    loss or gradient is not finite are skipped, and nothing is saved once a weight is not finite. Order and augmentation
    of an epoch follow from the step, so a resumed run continues them with any number of processes. A signal such as
    SIGTERM ends the training after the step and a checkpoint.

    Args:
        *args: Passed to Trainer.
        **kwargs: Passed to Trainer.
    """

    args: Any

    def __init__(self, *args: Any, **kwargs: Any):
        # With fp16, whose steps are skipped by the loss scale, only losses.
        self._is_finite: torch.Tensor | bool = True
        # Folder in which a checkpoint is being written.
        self._staging: Path | None = None
        # A checkpoint that is still being written, after the step that it is of.
        self._background = BackgroundWrites()
        self._unfinished: Path | None = None
        # Step of the newest checkpoint of this training, the same in all processes.
        self._saved_step = -1
        self._stop_signals = StopSignals()
        self._has_changed_blocks = False
        self._is_training = False
        # Those that are in use; their workers persist during a training.
        self._loaders: weakref.WeakSet[Any] = weakref.WeakSet()
        super().__init__(*args, **kwargs)
        if self.args.device.type == "cpu":
            keep_freed_memory()
        if self.accelerator.ddp_handler is not None:
            # Gradients lie where processes exchange them, instead of being copied there and back.
            self.accelerator.ddp_handler.gradient_as_bucket_view = True
        # Content of run.json, if a command wrote it.
        self._run_file: str | None = None
        self.add_callback(self._stop_signals)
        self.skipped_steps = SkippedSteps(self, getattr(self.args, "max_skipped_steps", MAX_SKIPPED))
        self.add_callback(self.skipped_steps)
        self._log_sums = LogSums(self)
        self.add_callback(self._log_sums)
        self._casts = CastsOfAStep()
        if not self.is_fsdp_enabled and not self.is_deepspeed_enabled:
            self.add_callback(self._casts)
        leave_before_python_ends()

    def _get_train_sampler(self, train_dataset=None):
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "random" or not hasattr(dataset, "__len__"):
            return super()._get_train_sampler(train_dataset)
        return IndexSampler(dataset, self._data_seed, self._current_epoch)

    def _get_dataloader(self, *args, **kwargs):
        loader = super()._get_dataloader(*args, **kwargs)
        self._stop_signals.guard(loader)
        if self.args.dataloader_num_workers:
            self._loaders.add(loader)
            if self._is_training:
                prepare_to_fork(self.args.device.type)
        return loader

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate as Trainer does; outside of a training, workers end with the evaluation.

        Args:
            dataloader: Loader of the images.
            *args: Passed to Trainer.
            **kwargs: Passed to Trainer.

        Returns:
            As Trainer does.
        """
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            if not self._is_training:
                end_workers([dataloader])

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _current_epoch(self) -> int:
        """The epoch of the step, whatever part of it is skipped and however it is divided among processes."""
        loader: Any = self.callback_handler.train_dataloader
        if loader is None:
            return 0
        return self.state.global_step // max(1, math.ceil(len(loader) / self.args.gradient_accumulation_steps))

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as Trainer does, until the end, a signal, or a number that is not finite.

        Nothing is trained again of a run that was complete: its weights are restored, and a line says so.

        Args:
            *args: Passed to Trainer.
            **kwargs: Passed to Trainer.

        Returns:
            As Trainer does.

        Raises:
            TrainingInterrupted: If a signal ended the training; a checkpoint was saved.
            TrainingStoppedError: If a loss, gradient or weight is not finite, every step was skipped because gradients
                overflow, a checkpoint cannot be saved, another run took the folder, or `check_deepspeed` refuses the
                checkpoint.
        """
        checkpoint = kwargs.get("resume_from_checkpoint", args[0] if args else None)
        if isinstance(checkpoint, str):
            check_deepspeed(checkpoint, self.is_deepspeed_enabled, self.args.world_size)
        self._check_saving()
        self._log_sums.checkpoint = checkpoint if isinstance(checkpoint, str) else None
        finished = self._restored_if_complete(checkpoint)
        if finished is not None:
            return finished
        self._is_finite, self._saved_step = True, -1
        self._run_file = run_file_text(Path(str(self.args.output_dir)))
        with (
            self._stop_signals.handled(),
            self._until_workers_end(),
            contextlib.closing(self._casts),
            faster_kernels(),
        ):
            output = super().train(*args, **kwargs)
            self._finish_writing()
            number = self._stop_signals.finish()
            self._stop_unless_finite(with_weights=True)
            step = self.state.global_step
            if number and not self._stop_signals.stopped_by and self._saved_step != step:
                # It came after the last step.
                self._save_checkpoint(self.model, None)
                self._finish_writing()
        if number:
            if self.is_world_process_zero():
                left = f"after step {step} of {self.state.max_steps}"
                print(f"Ended by a signal {left}; {checkpoint_name(step)} is saved. Repeat the command to resume.")
            raise TrainingInterrupted(128 + number)
        return output

    @contextlib.contextmanager
    def _until_workers_end(self) -> Iterator[None]:
        self._is_training = True
        try:
            yield
        finally:
            self._is_training = False
            end_workers(self._loaders)
            # Frozen by `prepare_to_fork`.
            gc.unfreeze()

    def _restored_if_complete(self, checkpoint: Any) -> TrainOutput | None:
        """Restore the weights of a run that was complete; None if anything is left for Trainer to do."""
        # FSDP and DeepSpeed shard the model only for a training, and the sharded model saves it; what is wrong with a
        # checkpoint is reported by Trainer.
        is_whole = isinstance(checkpoint, str) and any(Path(checkpoint).glob("model*.safetensors"))
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or not is_whole:
            return None
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        dataset: Any = self.train_dataset
        callbacks = self.callback_handler.callbacks
        has_ended = any(part.has_ended(state) for part in callbacks if hasattr(part, "has_ended"))
        if state.global_step < planned_steps(self.args, len(dataset)) and not has_ended:
            return None
        self.control.should_training_stop = has_ended
        if self.is_world_process_zero():
            early = ", stopped before the last" if has_ended else ""
            print(
                f"This run was complete, {state.global_step} of {state.max_steps} steps{early}: nothing is trained"
                f" again. Its results are in {self.args.output_dir}."
            )
        if any(hasattr(callback, "save_with_checkpoint") for callback in self.callback_handler.callbacks):
            # It changes the weights at the end, such as to their average: Trainer calls it.
            return None
        best = Path(str(self.args.output_dir)) / checkpoint_name(state.best_global_step or 0)
        is_best_kept = self.args.load_best_model_at_end and best.is_dir()
        self._load_from_checkpoint(str(best) if is_best_kept else checkpoint)
        # The stored values are those of the first process.
        state.is_world_process_zero = self.is_world_process_zero()
        state.is_local_process_zero = self.is_local_process_zero()
        self.state = state
        return TrainOutput(state.global_step, float("nan"), {})

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, model, trial, *args, **kwargs):
        control = self.control
        if control.should_log or control.should_save or control.should_evaluate or control.should_training_stop:
            self._keep_run_folder()
            self._finish_writing(only_if_done=True)
        try:
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        except EvaluationStoppedError:
            if self._saved_step != self.state.global_step:
                self._save_checkpoint(model, trial)
                self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _keep_run_folder(self) -> None:
        """Before files are written: somebody may have deleted the folder of the run."""
        error = None
        if self.args.should_save and self._run_file is not None:
            try:
                keep_run_folder(Path(str(self.args.output_dir)), self._run_file)
            except ValueError as problem:
                error = TrainingStoppedError(str(problem))
            except SAVE_ERRORS as problem:
                error = self._not_saved(f"Step {self.state.global_step}", problem)
        fail_together(error, TrainingStoppedError)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train on a batch as Trainer does, and note whether the loss is finite.

        Args:
            *args: Passed to Trainer.
            **kwargs: Passed to Trainer.

        Returns:
            The loss; where it is not finite the mean of those since the last log entry, as Trainer's own filter has it.
        """
        loss = super().training_step(*args, **kwargs)
        if self._has_loss_scale:
            self._is_finite = self._is_finite & loss.isfinite()
            return loss
        self.skipped_steps.add(args[1] if len(args) > 1 else kwargs["inputs"], loss)
        count = max(1, self.state.global_step - self._globalstep_last_logged)
        return finite_or(loss, self._tr_loss.detach() / count)

    @property
    def _has_loss_scale(self) -> bool:
        """Whether overflows are expected, as with fp16: the scaler, or DeepSpeed, skips these steps."""
        return self.accelerator.scaler is not None or self.is_deepspeed_enabled

    def _get_grad_norm(self, *args, **kwargs):
        norm = super()._get_grad_norm(*args, **kwargs)
        if not self._has_loss_scale:
            self.skipped_steps.judge(norm)
        elif self.accelerator.mixed_precision != "fp16":
            self._is_finite = self._is_finite & torch.as_tensor(norm).isfinite()
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as Trainer does.

        Args:
            logs: Metrics of the step.
            start_time: Start of the training, for Trainer.

        Raises:
            TrainingStoppedError: If the training loss or a gradient is not finite.
        """
        if "loss" in logs:
            self._stop_unless_finite(with_weights=False)
            if self.skipped_steps.steps:
                logs["skipped_steps"] = len(self.skipped_steps.steps)
            if not math.isfinite(logs.get("grad_norm", 0.0)):
                # Of a step that was skipped.
                del logs["grad_norm"]
        super().log(logs, start_time)

    def _stop_unless_finite(self, with_weights: bool) -> None:
        self._stop_if_all_skipped()
        self.skipped_steps.stop_if_none_is_left(self.state.global_step)
        flag = torch.as_tensor(self._is_finite, device=self.accelerator.device).float()
        if with_weights and not _all_finite(self.model, self.optimizer):  # type: ignore[arg-type]
            flag.zero_()
        flag = self.accelerator.reduce(flag, reduction="sum")
        if flag.item() >= self.accelerator.num_processes:
            return
        saved = checkpoint_folders(str(self.args.output_dir))
        remedy = "start a new run from that --checkpoint in another --output_dir" if saved else "start again"
        raise TrainingStoppedError(
            f"The training loss, a gradient or a weight is no longer finite at step {self.state.global_step}, so"
            f" nothing of this step is saved; {self.kept_checkpoint()}. A resumed run keeps its learning rate:"
            f" {remedy}, with a lower --learning_rate, or --bf16 instead of --fp16."
        )

    def _stop_if_all_skipped(self) -> None:
        """With fp16, steps whose gradients overflow are skipped; Trainer counts them as steps."""
        scaler, error = self.accelerator.scaler, None
        if scaler is None:
            return
        step, scale = self.state.global_step, scaler.get_scale()
        has_never_trained = step >= self.state.max_steps and scale <= math.ldexp(INITIAL_SCALE, -step)
        if has_never_trained or scale < SMALLEST_SCALE:
            error = TrainingStoppedError(
                f"Gradients overflow in fp16, so nothing is trained at step {step}, and nothing of this step is saved;"
                f" {self.kept_checkpoint()}. Repeat the command with --bf16 instead of --fp16."
            )
        fail_together(error, TrainingStoppedError)

    def kept_checkpoint(self) -> str:
        """Say which checkpoint is from before a step that cannot be saved."""
        saved = checkpoint_folders(str(self.args.output_dir))
        return f"{saved[0]} is from before that" if saved else "no checkpoint was saved before that"

    def _get_output_dir(self, trial=None):
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    @property
    def _writes_in_background(self) -> bool:
        """Whether checkpoints are written while the training goes on."""
        return getattr(self.args, "async_save", False)

    def _check_saving(self) -> None:
        if not self._writes_in_background:
            return
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is None or plugin.fsdp_version != 2 or plugin.state_dict_type.name != "SHARDED_STATE_DICT":
            raise TrainingStoppedError(
                "async_save=True writes shards of FSDP2 only. Start with examples/accelerate_configs/fsdp2.yaml, or"
                " leave --async_save out."
            )

    def _save_checkpoint(self, model, trial):
        self._finish_writing()
        # Before older, intact checkpoints are deleted.
        self._stop_unless_finite(with_weights=True)
        if trial is not None:
            super()._save_checkpoint(model, trial)
            return
        # Before anything can fail in one process alone.
        sums = self._log_sums.gather()
        output_dir, name = Path(str(self.args.output_dir)), checkpoint_name(self.state.global_step)
        staged, error = output_dir / STAGING / name, None
        if self.args.should_save:
            shutil.rmtree(staged.parent, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            self._write_checkpoint(model, staged, sums)
            if self.args.should_save:
                self._save_state_without_paths(staged / TRAINER_STATE_NAME)
        except SAVE_ERRORS as problem:
            error = self._not_saved(name, problem)
        self._saved_step, self._unfinished = self.state.global_step, staged
        if not self._writes_in_background:
            self._finish_writing(error)
            return
        try:
            # Afterwards all processes write, or none.
            fail_together(error, TrainingStoppedError)
        except TrainingStoppedError:
            self._unfinished = None
            if self.args.should_save:
                shutil.rmtree(staged.parent, ignore_errors=True)
            raise
        self._background.begin(staged, self.model, self.optimizer)  # type: ignore[arg-type]

    def _finish_writing(self, error: Exception | None = None, only_if_done: bool = False) -> None:
        """Give a checkpoint its name, as soon as all processes have written their files.

        Args:
            error: Why this process could not write its files.
            only_if_done: Whether nothing happens while files are being written.

        Raises:
            TrainingStoppedError: If a process could not write its files.
        """
        if self._unfinished is None:
            return
        if only_if_done:
            done = torch.tensor(float(self._background.are_done()), device=self.accelerator.device)
            if self.accelerator.reduce(done, reduction="sum").item() < self.accelerator.num_processes:
                return
        staged, self._unfinished = self._unfinished, None
        output_dir, name = Path(str(self.args.output_dir)), staged.name
        try:
            try:
                self._background.wait()
            except Exception as problem:  # of the threads that wrote
                error = error or self._not_saved(name, problem)
            # After this, all processes have written their files.
            fail_together(error, TrainingStoppedError)
            if self.args.should_save:
                try:
                    finish_checkpoint(staged, output_dir / name)
                except SAVE_ERRORS as problem:
                    error = self._not_saved(name, problem)
            fail_together(error, TrainingStoppedError)
        finally:
            if self.args.should_save:
                shutil.rmtree(staged.parent, ignore_errors=True)
        best = output_dir / checkpoint_name(self.state.best_global_step or 0)
        if self.state.best_global_step and best.is_dir():
            self.state.best_model_checkpoint = str(best)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(output_dir / name))
        if self.args.should_save:
            delete_old_checkpoints(output_dir, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _write_checkpoint(self, model: Any, staged: Path, sums: dict[str, Any] | None) -> None:
        """Let Trainer and callbacks write the files of this process."""
        best, self.state.best_global_step = self.state.best_global_step, None
        self._staging = staged.parent
        # It is pushed when it is complete.
        self._push_from_checkpoint = lambda checkpoint_folder: None  # type: ignore[method-assign]
        try:
            # Without a best step, Trainer does not look for its folder, which is elsewhere.
            super()._save_checkpoint(model, None)
            for callback in self.callback_handler.callbacks:
                if hasattr(callback, "save_with_checkpoint"):
                    callback.save_with_checkpoint(self.args, staged, self.state.global_step)
            self._log_sums.write(staged, sums)
        finally:
            self._staging = None
            del self._push_from_checkpoint
            self.state.best_global_step = best

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._writes_in_background:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _not_saved(self, what: str, problem: Exception) -> TrainingStoppedError:
        saved = checkpoint_folders(str(self.args.output_dir))
        kept = f"The checkpoint before it, {saved[0]}, is whole" if saved else "There is no checkpoint before it"
        reason = " ".join(str(problem).split())[:300].rstrip(".")
        return TrainingStoppedError(
            f"{what} could not be saved in {self.args.output_dir} ({type(problem).__name__}: {reason}). {kept}. Make"
            " sure that the folder can be written and its disk has space, and repeat the command to resume."
        )

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict=state_dict)
        if self.args.should_save:
            # It is published with the model.
            torch.save(without_paths(self.args), Path(output_dir or str(self.args.output_dir)) / TRAINING_ARGS_NAME)

    def save_state(self) -> None:
        """Save the state as Trainer does, without paths: it is published with the model."""
        if self.args.should_save:
            self._save_state_without_paths(Path(str(self.args.output_dir)) / TRAINER_STATE_NAME)

    def _save_state_without_paths(self, path: Path) -> None:
        # `best_global_step` tells as much.
        best, self.state.best_model_checkpoint = self.state.best_model_checkpoint, None
        try:
            self.state.save_to_json(str(path))
        finally:
            self.state.best_model_checkpoint = best

    def _change_blocks(self) -> None:
        """Compile the blocks of the model, and let them compute activations again, as the arguments say."""
        model: Any = self.model
        try:
            change_blocks(model, self.args)
        except ValueError as error:
            raise TrainingStoppedError(str(error)) from error
        self._has_changed_blocks = True

    def _prepare_for_training(self, *args, **kwargs):
        if not self._has_changed_blocks:
            self._change_blocks()
        if self.is_deepspeed_enabled:
            divides_weights = self.accelerator.state.deepspeed_plugin.zero_stage == 3
            if self.args.torch_compile and divides_weights:
                logger.warning(
                    "--torch_compile with DeepSpeed ZeRO-3 compiles again at every step, which was very slow where it"
                    " was tried. Leave one of them out."
                )
            if getattr(self.args, "recompute_activations", False) and divides_weights:
                raise TrainingStoppedError(
                    "--recompute_activations does not work with DeepSpeed ZeRO-3, which changes the outputs of products"
                    " in place. Leave it out, or use --gradient_checkpointing."
                )
            try:
                return super()._prepare_for_training(*args, **kwargs)
            except ValueError as error:
                # Such as a precision that is another in its config.
                message = " ".join(str(error).split())
                raise TrainingStoppedError(f"{message} Or give the command the same options.") from error
        if not self.is_fsdp_enabled:
            return super()._prepare_for_training(*args, **kwargs)
        # Two lines a step: units return views, which nothing changes in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        with no_unit_of_embeddings(self.model):  # type: ignore[arg-type]
            prepared = super()._prepare_for_training(*args, **kwargs)
        if isinstance(self.model, SimMIMPreTrainedModel):
            keep_loss_in_float32(self.model)
        return prepared

    def _is_of_this_engine(self, checkpoint: str) -> bool:
        """Whether Trainer can read a checkpoint: only the engine that saved it can."""
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        return self.is_deepspeed_enabled or fsdp_layout(checkpoint) == (plugin and plugin.state_dict_type.name)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._is_of_this_engine(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_model(resume_from_checkpoint, self.model if model is None else model)  # type: ignore[arg-type]

    def _load_best_model(self) -> None:
        self._finish_writing()
        best = str(self.state.best_model_checkpoint)
        if self._is_of_this_engine(best):
            super()._load_best_model()
        else:
            load_model(best, self.model)  # type: ignore[arg-type]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self._is_of_this_engine(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        else:
            load_optimizer(checkpoint, self.model, self.optimizer)  # type: ignore[arg-type]
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_scaler(self, checkpoint: str | None) -> None:
        # A run that began with fp16 may be resumed with another precision.
        if self.accelerator.scaler is not None:
            super()._load_scaler(checkpoint)

    def _init_training_state(self, *args, **kwargs):
        positions = super()._init_training_state(*args, **kwargs)
        if self.state.best_global_step and self.state.best_model_checkpoint is None:
            best = Path(str(self.args.output_dir)) / checkpoint_name(self.state.best_global_step)
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None
        return positions


@torch.no_grad()
def _all_finite(model: nn.Module, optimizer: Any) -> bool:
    """Whether all weights, buffers and numbers of the optimizer are finite, as far as this process has them."""
    numbers: list[Any] = [*model.parameters(), *model.buffers()]
    for state in (getattr(optimizer, "state", None) or {}).values():
        numbers += state.values() if isinstance(state, dict) else []
    flags: dict[torch.device, list[torch.Tensor]] = {}
    for number in numbers:
        # A DTensor has a local part.
        local = getattr(number, "_local_tensor", number)
        if torch.is_tensor(local) and local.is_floating_point():
            flags.setdefault(local.device, []).append(local.isfinite().all())
    return all(bool(torch.stack(parts).all()) for parts in flags.values())


@contextlib.contextmanager
def no_unit_of_embeddings(model: nn.Module) -> Iterator[None]:
    """Keep accelerate from making the patch embedding a unit of its own.

    It would do so after the other units, and fails if one of them contains the patch embedding, such as ViTEmbeddings,
    or if a model does not name it, such as ConvNeXt.

    Args:
        model: The model, which accelerate shards within.
    """
    any_model: Any = model
    any_model.get_input_embeddings = lambda: None
    try:
        yield
    finally:
        del any_model.get_input_embeddings


def keep_loss_in_float32(model: SimMIMPreTrainedModel) -> None:
    """Let a model that FSDP2 shards take its images, and return its loss, as they are.

    With --bf16 FSDP2 would round both to eight bits. Our models convert the images themselves, for the encoder alone.

    Args:
        model: The model, after accelerate has sharded it; with FSDP1 nothing changes.
    """
    outermost: Any = getattr(model, "_get_fsdp_state", lambda: None)()
    if outermost is not None:
        outermost._mp_policy = dataclasses.replace(outermost._mp_policy, cast_forward_inputs=False, output_dtype=None)
