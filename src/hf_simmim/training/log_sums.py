"""Sums that wait for the next log entry, kept in checkpoints: a resumed run logs what an uninterrupted one does."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

FILE = "log_sums.json"


class LogSums(TrainerCallback):
    """Saves the losses and errors since the last log entry, and restores them when a run resumes.

    Trainer forgets them, so that the first loss that a resumed run logs would be the mean since the checkpoint.

    Args:
        trainer: The trainer; if it has `error_sums`, a `RunningMean`, that is kept as well.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        # Folder that the run resumes from; None for a new run.
        self.checkpoint: str | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Restore the sums of the checkpoint."""
        path = Path(self.checkpoint or "") / FILE
        if self.checkpoint is None or not path.is_file():
            return
        saved = json.loads(path.read_text(encoding="utf-8"))
        rank, rows = args.process_index, saved["sums"]
        if len(rows) == args.world_size:
            loss, total, count = rows[rank]
        else:
            # Losses are averaged over processes, errors are summed.
            loss = sum(row[0] for row in rows) / len(rows)
            total, count = (sum(row[column] for row in rows) if rank == 0 else 0.0 for column in (1, 2))
        trainer = self.trainer
        trainer._tr_loss += loss
        trainer._globalstep_last_logged = state.global_step - saved["steps"]
        errors = getattr(trainer, "error_sums", None)
        if errors is not None and sum(row[2] for row in rows):
            errors.total = torch.tensor([total, count], device=args.device)

    def gather(self) -> dict[str, Any] | None:
        """Collect the sums of all processes; all of them must call it.

        Returns:
            What `write` takes; None if everything was logged.
        """
        trainer = self.trainer
        steps = trainer.state.global_step - trainer._globalstep_last_logged
        errors = getattr(getattr(trainer, "error_sums", None), "total", None)
        errors = torch.zeros(2) if errors is None else errors
        own = torch.cat([trainer._tr_loss.detach().reshape(1), errors.to(trainer._tr_loss)])
        rows = trainer.accelerator.gather(own.to(trainer.accelerator.device)).reshape(-1, 3).tolist()
        return {"steps": steps, "sums": rows} if steps else None

    def write(self, folder: Path, sums: dict[str, Any] | None) -> None:
        """Write sums into a checkpoint that is not complete yet.

        Args:
            folder: Folder of the checkpoint.
            sums: Those of `gather`.
        """
        if self.trainer.args.should_save and sums is not None:
            (folder / FILE).write_text(json.dumps(sums), encoding="utf-8")
