"""Folders of runs: settings that must not change, checkpoints to resume from, and records of finished runs."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from ..hub.snapshots import RESULTS
from .arguments import SimMIMTrainingArguments

RUN_FILE = "run.json"
# Config keys that saving rewrites; ignored when runs are compared.
VOLATILE_KEYS = ("architectures", "dtype", "transformers_version", "_name_or_path")


def check_same_run(settings: dict[str, Any], output_dir: Path, resuming: bool) -> None:
    """Refuse to resume a run with another model or other images.

    Args:
        settings: Settings that must stay the same, JSON-serializable.
        output_dir: Folder of the run, whose `run.json` holds the settings that it started with.
        resuming: Whether there is a checkpoint to resume from.

    Raises:
        ValueError: If a setting differs.
    """
    settings = json.loads(json.dumps(settings))
    before = settings_before(output_dir) if resuming else {}
    for key, value in settings.items():
        # A key is missing if an older version wrote the file.
        if key in before and before[key] != value:
            then, now = before[key], value
            if isinstance(then, dict) and isinstance(now, dict):
                changed = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
                then, now = ({name: values.get(name) for name in changed} for values in (then, now))
            raise ValueError(
                f"{output_dir} holds a run with another {key}: {then} before, {now} now. Set another --output_dir, or"
                " add --restart to delete that run and start again."
            )


def stable_settings(config: Any) -> dict[str, Any]:
    """Settings of a config, without those that saving rewrites."""
    return {key: value for key, value in config.to_dict().items() if key not in VOLATILE_KEYS}


def begin_run(arguments: SimMIMTrainingArguments, settings: dict[str, Any], pictures: Sequence[str] = ()) -> None:
    """Write `run.json` after all checks have passed; with `restart`, delete the earlier run only now.

    Args:
        arguments: Training arguments of the run.
        settings: Settings that the run starts with, JSON-serializable.
        pictures: Folders of pictures that `restart` deletes as well.
    """
    if not arguments.should_save:
        return
    output_dir = Path(str(arguments.output_dir))
    path = output_dir / RUN_FILE
    if arguments.restart:
        folders = [folder for folder in output_dir.glob("checkpoint-*") if folder.name.split("-", 1)[1].isdigit()]
        # Without run.json these files are not from a run.
        if path.exists():
            folders += [output_dir / name for name in pictures]
            for name in RESULTS:
                (output_dir / name).unlink(missing_ok=True)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    # Replaced at once: other processes may be reading it.
    part = path.with_suffix(".part")
    part.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    part.replace(path)


def settings_before(output_dir: Path) -> dict[str, Any]:
    """Settings that the run in a folder started with; empty if unknown."""
    path = output_dir / RUN_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def digest(images: Dataset) -> str:
    """Fingerprint of the names of images and their order."""
    names = "\n".join(images["name"])
    return f"{len(images)} images, {hashlib.blake2b(names.encode(), digest_size=6).hexdigest()}"


def model_digest(checkpoint: str, with_weights: bool) -> str | None:
    """Fingerprint of the model in a folder, or of its architecture only; None for a name on the Hub."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return None
    content = hashlib.blake2b(digest_size=6)
    patterns = ("*config.json", *(("*.safetensors", "pytorch_model*.bin") if with_weights else ()))
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        with path.open("rb") as file:
            content.update(hashlib.file_digest(file, "blake2b").digest())
    return content.hexdigest()


def prepare_output_dir(arguments: SimMIMTrainingArguments) -> Path | None:
    """Check that results can be written, and find the checkpoint to resume from.

    Args:
        arguments: Training arguments of the run.

    Returns:
        The checkpoint; None if there is none, or with `restart`.

    Raises:
        ValueError: If the folder cannot be written.
    """
    output_dir = Path(str(arguments.output_dir))
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        probe = output_dir / f".write-test-{arguments.process_index}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"output_dir={output_dir} cannot be written ({error}). Name another folder.") from error
    if arguments.restart:
        return None
    if arguments.resume_from_checkpoint:
        return Path(arguments.resume_from_checkpoint)
    return newest_whole_checkpoint(output_dir)


logger = logging.get_logger(__name__)


def newest_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """Find the newest complete checkpoint of a run.

    A run that is killed while saving leaves a folder that looks like a checkpoint but cannot be loaded. Such folders
    are skipped with a warning.

    Args:
        output_dir: Folder with the `checkpoint-N` folders of Trainer.

    Returns:
        The folder, or None if there are no checkpoints.

    Raises:
        ValueError: If there are checkpoints but none is complete.
    """
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        flaw = _flaw(folder)
        if flaw is None:
            return folder
        logger.warning(f"{folder} is skipped: {flaw}.")
    if folders:
        raise ValueError(
            f"None of the checkpoints in {output_dir} is complete; {folders[0].name}: {_flaw(folders[0])}. Set another"
            " --output_dir, or add --restart to delete them and start again."
        )
    return None


# Files of a complete checkpoint besides trainer_state.json: of Trainer alone, under FSDP with full and with sharded
# state, and under DeepSpeed.
_LAYOUTS = (
    ("config.json", "model*.safetensors", "optimizer.pt", "scheduler.pt"),
    ("pytorch_model_fsdp.bin", "optimizer.bin", "scheduler.pt"),
    ("pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata", "scheduler.pt"),
    ("global_step*", "latest"),
)


def _flaw(folder: Path) -> str | None:
    """Why a checkpoint is incomplete, or None if it is complete."""
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
                return f"{path.name} is truncated"
    except (OSError, ValueError, SafetensorError) as error:
        return str(error)
    return None


RECORD_FILE = "done.json"


class RunRecord:
    """Records how a run was started and what came out, so that it runs only once.

    Args:
        folder: Folder of the run.
        options: Options of the run, JSON-serializable.
        inputs: Fingerprints of its images and weights, JSON-serializable.
    """

    def __init__(self, folder: Path, options: dict[str, Any], inputs: dict[str, Any]):
        self.path = folder / RECORD_FILE
        self.beginning = json.loads(json.dumps({"options": options, "inputs": inputs}))

    @property
    def is_begun(self) -> bool:
        """Whether this run was started before, with the same options and inputs."""
        return self._noted() is not None

    @property
    def results(self) -> dict[str, Any] | None:
        """Results of the run; None if it is not finished."""
        noted = self._noted()
        return None if noted is None else noted["results"]

    def note(self, results: dict[str, Any] | None) -> None:
        """Record that the run has started (None) or finished; call it in the first process only."""
        # Replaced at once: the run may be killed.
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({**self.beginning, "results": results}, indent=2), encoding="utf-8")
        part.replace(self.path)

    def _noted(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        noted = json.loads(self.path.read_text(encoding="utf-8"))
        return noted if {**noted, **self.beginning} == noted else None
