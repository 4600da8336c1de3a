"""Shards of a checkpoint that are written while the training goes on."""

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed import checkpoint as distributed_checkpoint
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

from .checkpoints import SHARDS


class BackgroundWrites:
    """Writes weights and optimizer of a model that FSDP2 shards, from copies in the memory of the processor.

    All processes must call the methods at the same steps. The files are those that accelerate writes.
    """

    def __init__(self) -> None:
        self._writes: list[Future[Any]] = []
        # One for each file, since both are written at a time; the processes agree through gloo, beside the training.
        self._groups: dict[str, Any] = {}

    @property
    def is_busy(self) -> bool:
        """Whether something was begun that nobody has waited for."""
        return bool(self._writes)

    def begin(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Copy the state of this step, and begin to write it.

        Args:
            folder: Folder of the checkpoint.
            model: The sharded model.
            optimizer: Its optimizer.
        """
        if not self._groups:
            self._groups = {part: distributed.new_group(backend="gloo") for part in SHARDS}
        states = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
        for part, state in states.items():
            writer = distributed_checkpoint.FileSystemWriter(folder / SHARDS[part])
            write: Any = distributed_checkpoint.async_save(
                {part: state}, storage_writer=writer, process_group=self._groups[part]
            )
            self._writes.append(write)

    def are_done(self) -> bool:
        """Whether this process has written everything, or failed."""
        return all(write.done() for write in self._writes)

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            Exception: What the writing raised, such as on a full disk.
        """
        writes, self._writes = self._writes, []
        errors = [error for error in (write.exception() for write in writes) if error is not None]
        if errors:
            raise errors[0]
