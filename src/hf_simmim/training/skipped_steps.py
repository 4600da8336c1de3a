"""Steps whose loss or gradient is not finite: they change nothing, are counted, and are kept for `hf-simmim replay`."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, TrainerCallback
from transformers.utils import logging

from ..model.remote_code import without_code
from .saving.checkpoints import SAVE_ERRORS, TrainingStoppedError

logger = logging.get_logger(__name__)

FOLDER = "skipped_steps"
# Skipped steps of a run that stop it, unless it is set.
MAX_SKIPPED = 10
# Steps after which a GPU is asked whether a step was finite: by then it knows, and nothing waits for it.
DELAY = 2
# Names of images that a message has.
MAX_NAMED = 3


class SkippedSteps(TrainerCallback):
    """Leaves out the update of a step whose loss or gradient is not finite, in all processes alike.

    The optimizer's state stays as it was; the schedule and the order of the images continue. Each process writes its
    batches to `skipped_steps/step-0000123` in the output folder, and the first one the weights when it happens first.

    Args:
        trainer: The trainer, whose `training_step` and `_get_grad_norm` report to this object.
        limit: Skipped steps of a run beyond which it stops.
    """

    def __init__(self, trainer: Any, limit: int = MAX_SKIPPED):
        self.trainer = trainer
        self.limit = limit
        self.steps: set[int] = set()
        self._batches: list[dict[str, Any]] = []
        self._is_finite: torch.Tensor | bool = True
        self._judged: torch.Tensor | None = None
        # Steps that are not asked about yet: step, batches, and whether it was finite.
        self._waiting: list[tuple[int, list[dict[str, Any]], torch.Tensor]] = []
        self._has_saved_weights = False

    @property
    def folder(self) -> Path:
        """Folder of the skipped steps."""
        return Path(str(self.trainer.args.output_dir)) / FOLDER

    def add(self, batch: dict[str, Any], loss: torch.Tensor) -> None:
        """Note a batch of the step and its loss."""
        self._batches.append(batch)
        self._is_finite = self._is_finite & loss.detach().isfinite()

    def judge(self, norm: Any) -> None:
        """Decide about the step by its losses and the norm of its gradient; all processes must call it."""
        whole = norm.full_tensor() if hasattr(norm, "full_tensor") else torch.as_tensor(norm)
        flag = (whole.isfinite() & torch.as_tensor(self._is_finite, device=whole.device)).float()
        if self.trainer.accelerator.num_processes > 1:
            flag = self.trainer.accelerator.reduce(flag.to(self.trainer.accelerator.device), reduction="sum")
        self._judged = flag >= self.trainer.accelerator.num_processes

    def on_train_begin(self, args, state, control, **kwargs):
        """Count the steps that were skipped before a checkpoint, and forget those that come again."""
        found = {_step_of(path): path for path in self.folder.glob("step-*")}
        self.steps = {step for step in found if step <= state.global_step}
        if args.should_save:
            for step, path in found.items():
                if step > state.global_step:
                    shutil.rmtree(path, ignore_errors=True)

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        """Let the optimizer do nothing in a step that is not finite."""
        if self._judged is None:
            return
        inner = getattr(optimizer, "optimizer", optimizer)
        if self._judged.device.type == "cuda" and getattr(inner, "_step_supports_amp_scaling", False):
            # As a gradient scaler does: the kernel looks, and nobody waits for the GPU.
            inner.grad_scale, inner.found_inf = None, (~self._judged).float()
        elif not bool(self._judged):
            for parameter in model.parameters():
                parameter.grad = None

    def on_step_end(self, args, state, control, **kwargs):
        """Write the batches of steps that were skipped; a `TrainingStoppedError` if there are too many of them."""
        if self._judged is not None:
            self._waiting.append((state.global_step, self._batches, self._judged))
        self._batches, self._is_finite, self._judged = [], True, None
        is_asked = control.should_log or control.should_save or control.should_evaluate or control.should_training_stop
        delay = DELAY if self._waiting and self._waiting[-1][2].device.type == "cuda" and not is_asked else 0
        while len(self._waiting) > delay:
            step, batches, flag = self._waiting.pop(0)
            if not bool(flag):
                self._record(step, batches)

    def stop_if_none_is_left(self, step: int) -> None:
        """End a training that has trained nothing, before it saves that.

        Args:
            step: Number of steps until now.

        Raises:
            TrainingStoppedError: If all of them were skipped.
        """
        if self.steps and len(self.steps) >= step:
            raise self._stopped(max(self.steps))

    def _record(self, step: int, batches: list[dict[str, Any]]) -> None:
        self.steps.add(step)
        folder = self.folder / f"step-{step:07d}"
        names = [name for batch in batches for name in batch.get("names", ())]
        try:
            self._write(folder, step, batches)
        except SAVE_ERRORS as error:
            logger.warning(f"The batch of step {step} could not be written to {folder} ({error}).")
        shown = f", images such as {', '.join(names[:MAX_NAMED])}" if names else ""
        if self.trainer.is_world_process_zero():
            logger.warning(
                f"Step {step} is skipped: its loss or a gradient is not finite{shown}. See why:"
                f" hf-simmim replay {folder}"
            )
        if len(self.steps) > self.limit:
            raise self._stopped(step)

    def _stopped(self, step: int) -> TrainingStoppedError:
        folder = self.folder / f"step-{step:07d}"
        return TrainingStoppedError(
            f"{len(self.steps)} steps were skipped because a loss or a gradient was not finite, the last at step {step}"
            f" (--max_skipped_steps {self.limit}); {self.trainer.kept_checkpoint()}. `hf-simmim replay {folder}` tells"
            " which images, and where. A resumed run keeps its learning rate: for a lower one start a new run in"
            " another --output_dir."
        )

    def _write(self, folder: Path, step: int, batches: list[dict[str, Any]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        rank = self.trainer.args.process_index
        for number, batch in enumerate(batches):
            tensors = {key: value.detach().cpu().contiguous() for key, value in batch.items() if torch.is_tensor(value)}
            facts = {"step": str(step), "names": "\n".join(batch.get("names", ()))}
            save_file(tensors, folder / f"batch-{rank}-{number}.safetensors", metadata=facts)
        model = self.trainer.model
        is_whole = isinstance(model, PreTrainedModel) and not self.trainer.is_fsdp_enabled
        if rank == 0 and is_whole and not self._has_saved_weights:
            self._has_saved_weights = True
            plain = getattr(self.trainer, "plain_weights", None)
            with without_code():
                model.save_pretrained(folder, state_dict=None if plain is None else plain())
            if self.trainer.processing_class is not None:
                self.trainer.processing_class.save_pretrained(folder)


def _step_of(path: Path) -> int:
    number = path.name.removeprefix("step-")
    return int(number) if number.isdigit() else -1


def finite_or(value: torch.Tensor, other: torch.Tensor | float) -> torch.Tensor:
    """A value, or another one where it is not finite; without waiting for the device."""
    return torch.where(value.isfinite(), value, torch.as_tensor(other, dtype=value.dtype, device=value.device))
