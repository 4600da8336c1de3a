"""Signals that end a training: the step is finished and a checkpoint saved, in all processes."""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback
from transformers.utils import logging

from .agreement import num_processes

logger = logging.get_logger(__name__)

# What schedulers and terminals send before they kill.
STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
# Launchers pass a signal on to processes that got it themselves: within so many seconds it is the same one.
SAME_SIGNAL = 5.0
# Set by torchrun and by accelerate launch.
_LAUNCHER_VARIABLES = ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND")


class TrainingInterrupted(SystemExit):
    """A signal ended the training, after a checkpoint was saved.

    Its code is 128 plus the number of the signal: 143 for SIGTERM, 130 for SIGINT, 138 for SIGUSR1, 129 for SIGHUP.
    """


class EvaluationStoppedError(Exception):
    """A signal came during an evaluation within the training, which is given up."""


class StopSignals(TrainerCallback):
    """Ends a training after the current step when one of its processes receives a signal of `STOP_SIGNALS`.

    An evaluation within the training is given up after the current batch. A second signal ends the process at once.
    Ignored signals stay ignored, as SIGHUP under `nohup`. With several processes, all of them stop after the same step,
    which is that of the signal or the next one. A launcher that dies counts as SIGTERM, for then nobody waits for the
    result.
    """

    def __init__(self):
        # Number of the signal that this process received; 0 for none.
        self.received = 0
        # Number of the signal that ended the training, the same in all processes; 0 for none.
        self.stopped_by = 0
        self._process = os.getpid()
        self._first = 0.0
        self._is_first_rank = True
        # In shared memory: worker processes see it too.
        self._is_training = torch.zeros((), dtype=torch.uint8)
        self._group: Any = None
        self._pending: tuple[Any, torch.Tensor] | None = None
        self._handled: list[int] = []
        self._is_launched = any(name in os.environ for name in _LAUNCHER_VARIABLES)
        self._parent = os.getppid()
        # Whether a step was done, which can be saved.
        self._has_step = False

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle signals within; only Python's main thread can."""
        self.received = self.stopped_by = 0
        self._process, self._pending = os.getpid(), None
        self._is_training = torch.ones((), dtype=torch.uint8).share_memory_()
        previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    previous[number] = signal.signal(number, self._handle)
        self._handled = list(previous)
        try:
            yield
        finally:
            self._is_training.zero_()
            for number, handler in previous.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def guard(self, loader: Any) -> None:
        """Let the workers of a loader handle signals as well: torch gives them handlers that end them.

        Args:
            loader: A loader of torch or accelerate.
        """
        inner = getattr(loader, "base_dataloader", loader)
        context = getattr(inner, "multiprocessing_context", None) or multiprocessing
        # What is handed to spawned workers must be picklable.
        if getattr(inner, "num_workers", 0) and context.get_start_method() == "fork":
            inner.worker_init_fn = functools.partial(self._begin_worker, inner.worker_init_fn)

    def _begin_worker(self, begin: Callable[[int], None] | None, worker_id: int) -> None:
        if begin is not None:
            begin(worker_id)
        for number in self._handled:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            # A worker: a signal to the whole group must not take the images away from the last step.
            if number == signal.SIGTERM and not self._is_training:
                # The process that trained ends its workers. Any other code would be an error to torch.
                os._exit(0)
            return
        now = time.monotonic()
        if self.received and not (self._is_launched and now - self._first < SAME_SIGNAL):
            self._is_training.zero_()
            for worker in multiprocessing.active_children():
                worker.kill()
            os._exit(128 + number)
        if not self.received:
            self.received, self._first = number, now
            if self._is_first_rank:
                name = signal.Signals(number).name
                # Not print, which may be what the signal interrupts.
                os.write(2, f"\n{name}: saving after this step. A second signal ends at once.\n".encode())

    def on_train_begin(self, args, state, control, **kwargs):
        """Open a channel between the processes that works beside the training."""
        self._is_first_rank, self._has_step = state.is_world_process_zero, False
        if num_processes() > 1 and self._group is None:
            try:
                self._group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=args.ddp_timeout))
            except RuntimeError as error:
                logger.warning(f"Signals end the training without saving: gloo cannot be used ({error}).")

    def on_step_end(self, args, state, control, **kwargs):
        """Stop and save if a signal asked for it."""
        self._has_step = True
        if self._must_stop(control):
            control.should_save = True
            # A scheduler does not wait for it, and it may decide against saving.
            control.should_evaluate = False
        return control

    def on_prediction_step(self, args, state, control, **kwargs):
        """Give up an evaluation within the training if a signal asked for it, in all processes after the same batch."""
        if self._is_training and self._has_step and self._must_stop(control):
            raise EvaluationStoppedError

    def on_epoch_end(self, args, state, control, **kwargs):
        """After the stop, neither evaluate nor save again."""
        if self.stopped_by:
            control.should_save = control.should_evaluate = False
        return control

    def _must_stop(self, control: Any) -> bool:
        if self._is_launched and os.getppid() != self._parent and not self.received:
            self.received = int(signal.SIGTERM)
        self.stopped_by = self._asked()
        control.should_training_stop |= self.stopped_by > 0
        return self.stopped_by > 0

    def _asked(self) -> int:
        """The signal that any process received; with several, until their last step, so that none waits."""
        if self._group is None:
            return self.received if num_processes() == 1 else 0
        asked = self._answer()
        flag = torch.tensor(self.received)
        self._pending = distributed.all_reduce(flag, distributed.ReduceOp.MAX, self._group, async_op=True), flag
        return asked

    def _answer(self) -> int:
        if self._pending is None:
            return 0
        work, flag = self._pending
        self._pending = None
        work.wait()
        return int(flag)

    def finish(self) -> int:
        """Let go of the channel after training, in all processes; returns the signal that any received, or 0."""
        if self._group is None:
            return self.stopped_by or (self.received if num_processes() == 1 else 0)
        late = self._answer()
        flag = torch.tensor(self.received)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX, self._group)
        distributed.destroy_process_group(self._group)
        self._group = None
        return self.stopped_by or late or int(flag)
