"""Checkpoints of a run: which of them are whole."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.utils import logging

logger = logging.get_logger(__name__)


def newest_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """Find the newest checkpoint of a run that was written to its end.

    A run that is killed while it saves leaves a folder that looks like a checkpoint and cannot be loaded. Such folders
    are passed over with a warning.

    Args:
        output_dir: Folder that holds `checkpoint-N` folders of Trainer.

    Returns:
        The folder, or None.
    """
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        flaw = _flaw(folder)
        if flaw is None:
            return folder
        logger.warning(f"{folder} is not whole ({flaw}); an older checkpoint is used.")
    return None


def _flaw(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        json.loads((folder / "trainer_state.json").read_text())
        json.loads((folder / "config.json").read_text())
        # Sharded by FSDP or DeepSpeed: their own loaders judge the shards.
        if any(path.is_dir() for path in folder.iterdir()):
            return None
        weights = sorted(folder.glob("model*.safetensors"))
        if not weights:
            return "it has no weights"
        for path in weights:
            # Opening compares the length of the file with what its header promises.
            with safe_open(path, framework="pt"):
                pass
        for name in ("optimizer.pt", "scheduler.pt"):
            if not zipfile.is_zipfile(folder / name):
                return f"{name} is missing or cut off"
    except (OSError, ValueError, SafetensorError) as error:
        return str(error)
    return None
