"""What a run began with, kept in its folder, so that nobody goes on with it by mistake."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from .checkpoint import newest_whole_checkpoint
from .training_options import ReleasedTrainingArguments

FILE_NAME = "run.json"
# What a run writes into its folder beside checkpoints, and another one in its place need not overwrite.
RESULTS = (
    *("reconstruction.png", "loss_curve.png", "probe.png", "confusion.png", "segmentation.png", "README.md"),
    *("all_results.json", "eval_results.json", "train_results.json", "results.json", "unreadable_images.txt"),
)


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


def begin_run(arguments: ReleasedTrainingArguments, settings: dict[str, Any], pictures: Sequence[str] = ()) -> None:
    """Write `run.json`, when all that can be refused has been; with `restart` delete the earlier run, and not before.

    Args:
        arguments: Those of the run.
        settings: What it begins with, as JSON takes it.
        pictures: Folders of results that are deleted as well.
    """
    if not arguments.should_save:
        return
    output_dir = Path(str(arguments.output_dir))
    path = output_dir / FILE_NAME
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
    path = output_dir / FILE_NAME
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


def prepare_output_dir(arguments: ReleasedTrainingArguments) -> Path | None:
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
