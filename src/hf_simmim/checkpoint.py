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
        The folder, or None if there are no checkpoints.

    Raises:
        ValueError: If there are checkpoints and none of them is whole.
    """
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        flaw = _flaw(folder)
        if flaw is None:
            return folder
        logger.warning(f"{folder} is passed over: {flaw}.")
    if folders:
        raise ValueError(
            f"None of the checkpoints in {output_dir} is whole; of {folders[0].name}, {_flaw(folders[0])}. Name another"
            " --output_dir, or add --restart to delete them and begin anew."
        )
    return None


# What a checkpoint holds beside its trainer_state.json: as Trainer writes it on its own, under FSDP with full and with
# sharded state, and under DeepSpeed.
_LAYOUTS = (
    ("config.json", "model*.safetensors", "optimizer.pt", "scheduler.pt"),
    ("pytorch_model_fsdp.bin", "optimizer.bin", "scheduler.pt"),
    ("pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata", "scheduler.pt"),
    ("global_step*", "latest"),
)


def _flaw(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        json.loads((folder / "trainer_state.json").read_text())
        found = [{pattern: list(folder.glob(pattern)) for pattern in layout} for layout in _LAYOUTS]
        whole = next((files for files in found if all(files.values())), None)
        if whole is None:
            return f"it lacks {', '.join(pattern for pattern, paths in found[0].items() if not paths)}"
        for path in (path for paths in whole.values() for path in paths):
            if path.suffix == ".safetensors":
                # Opening compares the length of the file with what its header promises.
                with safe_open(path, framework="pt"):
                    pass
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix in (".pt", ".bin") and not zipfile.is_zipfile(path):
                return f"{path.name} is cut off"
    except (OSError, ValueError, SafetensorError) as error:
        return str(error)
    return None
