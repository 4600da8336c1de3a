"""What a run began with, kept in its folder, so that nobody goes on with it by mistake."""

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
    """Refuse to go on with a run whose model or images are not those it began with.

    Args:
        settings: What must stay the same, as JSON takes it.
        output_dir: Folder of the run, whose `run.json` holds what it began with.
        resuming: Whether there is a checkpoint to go on from.

    Raises:
        ValueError: If something differs.
    """
    settings = json.loads(json.dumps(settings))
    before = settings_before(output_dir) if resuming else {}
    for key, value in settings.items():
        # A key is missing where an older version wrote the file.
        if key in before and before[key] != value:
            then, now = before[key], value
            if isinstance(then, dict) and isinstance(now, dict):
                changed = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
                then, now = ({name: values.get(name) for name in changed} for values in (then, now))
            raise ValueError(
                f"{output_dir} holds a run with another {key}: {then} then, {now} now. Name another --output_dir, or"
                " add --restart to delete that run and begin anew."
            )


def stable_settings(config: Any) -> dict[str, Any]:
    """The settings of a config that do not change when it is saved and loaded."""
    return {key: value for key, value in config.to_dict().items() if key not in VOLATILE_KEYS}


def begin_run(arguments: SimMIMTrainingArguments, settings: dict[str, Any], pictures: Sequence[str] = ()) -> None:
    """Write `run.json`, when all that can be refused has been; with `restart` delete the earlier run, and not before.

    Args:
        arguments: Those of the run.
        settings: What it begins with, as JSON takes it.
        pictures: Folders of results that are deleted as well.
    """
    if not arguments.should_save:
        return
    output_dir = Path(str(arguments.output_dir))
    path = output_dir / RUN_FILE
    if arguments.restart:
        folders = [folder for folder in output_dir.glob("checkpoint-*") if folder.name.split("-", 1)[1].isdigit()]
        # Else these files are somebody else's.
        if path.exists():
            folders += [output_dir / name for name in pictures]
            for name in RESULTS:
                (output_dir / name).unlink(missing_ok=True)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    # At once, for other processes may be reading it.
    part = path.with_suffix(".part")
    part.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    part.replace(path)


def settings_before(output_dir: Path) -> dict[str, Any]:
    """What the run in a folder began with; nothing if that is not known."""
    path = output_dir / RUN_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def digest(images: Dataset) -> str:
    """A short text that differs if the images are others or in another order."""
    names = "\n".join(images["name"])
    return f"{len(images)} images, {hashlib.blake2b(names.encode(), digest_size=6).hexdigest()}"


def model_digest(checkpoint: str, with_weights: bool) -> str | None:
    """A short text that tells the model in a folder from others, or its architecture; None for a name on the Hub."""
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
    """Make sure that results can be written, and find the checkpoint to go on from.

    Args:
        arguments: Those of the run.

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


RECORD_FILE = "done.json"


class RunRecord:
    """A run, and what is noted of it in its folder.

    Args:
        folder: Folder of the run.
        options: Its options, as JSON takes them.
        inputs: What tells its images and weights from others of the same names, as JSON takes it.
    """

    def __init__(self, folder: Path, options: dict[str, Any], inputs: dict[str, Any]):
        self.path = folder / RECORD_FILE
        self.beginning = json.loads(json.dumps({"options": options, "inputs": inputs}))

    @property
    def is_begun(self) -> bool:
        """Whether this very run was begun; not one of other options or inputs."""
        return self._noted() is not None

    @property
    def results(self) -> dict[str, Any] | None:
        """What came out, if it is finished."""
        noted = self._noted()
        return None if noted is None else noted["results"]

    def note(self, results: dict[str, Any] | None) -> None:
        """Note that it is begun, with None, or finished; in the first process only."""
        # At once, for the run may be killed.
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({**self.beginning, "results": results}, indent=2), encoding="utf-8")
        part.replace(self.path)

    def _noted(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        noted = json.loads(self.path.read_text(encoding="utf-8"))
        return noted if {**noted, **self.beginning} == noted else None
