"""Folders of runs: settings that must not change, checkpoints to resume from, and records of finished runs."""

import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..hub.snapshots import RESULTS
from .agreement import check_agreement, fail_together
from .arguments import SimMIMTrainingArguments
from .fingerprints import Fingerprint
from .optimization import images_per_step
from .run_lock import lock_run
from .saving.checkpoints import STAGING, UNFINISHED, automatic_checkpoint, checkpoint_folders, named_checkpoint

logger = logging.get_logger(__name__)

RUN_FILE = "run.json"
# What the files of the images were, to name those that change.
FILES_FILE = "images.json.gz"
# Config keys that saving rewrites; ignored when runs are compared.
VOLATILE_KEYS = ("architectures", "dtype", "transformers_version", "_name_or_path")
# Options of training that a resumed run must not change: the checkpoint holds their effects. The learning rate is that
# of the checkpoint as well, but it may be computed from the number of processes, which may change.
FIXED_OPTIONS = (
    *("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "official", "layer_decay"),
    *("new_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
)


def check_same_run(settings: dict[str, Any], output_dir: Path, resuming: bool) -> None:
    """Refuse to resume a run with another model or other images.

    Args:
        settings: Settings that must stay the same, JSON-serializable.
        output_dir: Folder of the run, whose `run.json` holds the settings that it started with.
        resuming: Whether there is a checkpoint to resume from.

    Raises:
        ValueError: If a setting differs.
    """
    fingerprints = {key: value for key, value in settings.items() if isinstance(value, Fingerprint)}
    settings = json.loads(json.dumps(settings))
    before = settings_before(output_dir) if resuming else {}
    for key, value in settings.items():
        # A key is missing if an older version wrote the file, and images were described by a text.
        if key in before and before[key] != value and not (isinstance(before[key], str) and isinstance(value, dict)):
            then, now = before[key], value
            if isinstance(then, dict) and isinstance(now, dict):
                changed = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
                then, now = ({name: values.get(name) for name in changed} for values in (then, now))
            named = fingerprints[key].changes(files_before(output_dir).get(key, {})) if key in fingerprints else ""
            raise ValueError(
                f"{output_dir} holds a run with another {key}: {then} before, {now} now.{named} Set another"
                " --output_dir, or add --restart to delete that run and start again."
            )


def settle_settings(
    arguments: SimMIMTrainingArguments, settings: dict[str, Any], checkpoint: Path | None
) -> dict[str, Any]:
    """Compare the settings of all processes, and of a resumed run with those that it started with.

    All processes must call it. A resumed run keeps its learning rate: `arguments.learning_rate` is set to it.

    Args:
        arguments: Training arguments of the run.
        settings: Settings that must stay the same, JSON-serializable.
        checkpoint: Checkpoint to resume from, or None.

    Returns:
        All settings, for `begin_run`.

    Raises:
        ValueError: If a setting differs.
    """
    settings = settings | {
        "data_seed": arguments.seed if arguments.data_seed is None else arguments.data_seed,
        **{name: _plain(getattr(arguments, name)) for name in FIXED_OPTIONS if hasattr(arguments, name)},
    }
    # These are followed by a resumed run.
    followed = {
        "images_per_step": images_per_step(arguments),
        "precision": "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "float32",
        "max_grad_norm": arguments.max_grad_norm,
    }
    check_agreement(settings | followed)
    output_dir = Path(str(arguments.output_dir))
    if checkpoint is not None:
        source = checkpoint.parent
        if not (source / RUN_FILE).exists():
            logger.warning(f"{source} has no {RUN_FILE}, so its images, masks and options cannot be compared.")
        for folder in dict.fromkeys((source, output_dir)):
            if folder == source or checkpoint_folders(folder):
                check_same_run(settings, folder, resuming=True)
        before = settings_before(source)
        for name, value in followed.items():
            if before.get(name, value) != value:
                logger.warning(f"The run is resumed with another {name}: {before[name]} before, {value} now.")
        rate = before.get("learning_rate", arguments.learning_rate)
        if rate != arguments.learning_rate:
            logger.warning(
                f"The run keeps its learning rate of {rate:g}, not {arguments.learning_rate:g}. For another one, start"
                f" a new run with --checkpoint {checkpoint} in another --output_dir."
            )
            arguments.learning_rate = rate
    return settings | followed | {"learning_rate": arguments.learning_rate}


def _plain(value: Any) -> Any:
    # An option may be an enumeration, such as an optimizer.
    value = getattr(value, "value", value)
    return dict(value) if isinstance(value, dict) else value


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
        folders = checkpoint_folders(output_dir)
        # Without run.json these files are not from a run.
        if path.exists():
            folders += [output_dir / name for name in pictures]
            (output_dir / FILES_FILE).unlink(missing_ok=True)
            for name in RESULTS:
                (output_dir / name).unlink(missing_ok=True)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    _replace(path, json.dumps(settings, indent=2))
    files = {key: value.files for key, value in settings.items() if isinstance(value, Fingerprint)}
    if any(files.values()) and not (output_dir / FILES_FILE).exists():
        part = output_dir / f"{FILES_FILE}.part"
        part.write_bytes(gzip.compress(json.dumps(files).encode(), mtime=0))
        part.replace(output_dir / FILES_FILE)


def files_before(output_dir: Path) -> dict[str, dict[str, str]]:
    """Fingerprints of the files that the run in a folder started with, by kind of images; empty if unknown."""
    try:
        return json.loads(gzip.decompress((output_dir / FILES_FILE).read_bytes()))
    except (OSError, EOFError, ValueError):
        return {}


def _replace(path: Path, text: str) -> None:
    # At once: other processes may be reading it, and this one may be killed.
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def run_file_text(output_dir: Path) -> str | None:
    """Content of the `run.json` of a folder; None if there is none."""
    path = output_dir / RUN_FILE
    return path.read_text(encoding="utf-8") if path.exists() else None


def keep_run_folder(output_dir: Path, text: str) -> None:
    """Create the folder of a run again, with its lock and `run.json`, if somebody deleted it during the run.

    Args:
        output_dir: Folder of the run.
        text: Content of its `run.json`.

    Raises:
        ValueError: If another run took the folder.
        OSError: If it cannot be written.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    lock_run(output_dir)
    found = run_file_text(output_dir)
    if found is None:
        _replace(output_dir / RUN_FILE, text)
        logger.warning(f"{output_dir / RUN_FILE} was deleted during the run. It is written again; the run continues.")
    elif found != text:
        raise ValueError(f"Another run was started in {output_dir}, so this one ends. Set another --output_dir.")


def settings_before(output_dir: Path) -> dict[str, Any]:
    """Settings that the run in a folder started with; empty if unknown."""
    text = run_file_text(output_dir)
    return {} if text is None else json.loads(text)


def describe_resuming(checkpoint: Path, arguments: Any) -> str:
    """Describe where a run resumes, for its plan.

    Args:
        checkpoint: Checkpoint to resume from.
        arguments: Training arguments of the run.

    Returns:
        The words, such as "resuming from checkpoint-189 (epoch 3 of 12)".
    """
    path = checkpoint / TRAINER_STATE_NAME
    if not path.exists():
        return f"resuming from {checkpoint.name}"
    state = json.loads(path.read_text(encoding="utf-8"))
    if arguments.max_steps > 0:
        return f"resuming from {checkpoint.name} (step {state['global_step']} of {arguments.max_steps})"
    return f"resuming from {checkpoint.name} (epoch {state['epoch']:.3g} of {arguments.num_train_epochs:g})"


def prepare_output_dir(arguments: SimMIMTrainingArguments) -> Path | None:
    """Check that results can be written, lock the folder, and find the checkpoint to resume from.

    All processes must call it. Broken checkpoints are deleted.

    Args:
        arguments: Training arguments of the run.

    Returns:
        The checkpoint; None if there is none, or with `restart`.

    Raises:
        ValueError: If the folder cannot be written, another run writes to it, or there is no such checkpoint.
    """
    output_dir = Path(str(arguments.output_dir))
    error, checkpoint = None, None
    broken: list[Path] = []
    try:
        _check_writable(output_dir, arguments.process_index)
        if arguments.should_save:
            lock_run(output_dir)
        name = arguments.resume_from_checkpoint
        name = "" if name is None else str(name)
        if arguments.restart and name:
            raise ValueError(f"restart and resume_from_checkpoint={name!r} exclude each other. Name one of them.")
        if name and name.strip().lower() not in ("false", "0", "no"):
            checkpoint = named_checkpoint(name, output_dir)
            # Callbacks read it.
            arguments.resume_from_checkpoint = str(checkpoint)
        elif not arguments.restart:
            checkpoint, broken = automatic_checkpoint(output_dir)
    except ValueError as problem:
        error = problem
    fail_together(error)
    check_agreement({"checkpoint to resume from": None if checkpoint is None else checkpoint.name})
    if arguments.should_save:
        # A save that was interrupted leaves them.
        for folder in (*broken, output_dir / STAGING):
            shutil.rmtree(folder, ignore_errors=True)
        if (output_dir / RUN_FILE).exists():
            for path in output_dir.glob(UNFINISHED):
                path.unlink(missing_ok=True)
    return checkpoint


def _check_writable(output_dir: Path, process: int) -> None:
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        probe = output_dir / f".write-test-{process}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"output_dir={output_dir} cannot be written ({error}). Name another folder.") from error


RECORD_FILE = "done.json"
# Beginnings of options that change nothing of a finished run, or name what its own checks compare.
FREE_OPTIONS = (
    *("output_dir", "leave_out", "train_dir", "dataset_name", "data_files", "checkpoint", "image_decoder", "use_cpu"),
    *("dataloader_", "logging_", "save_", "report_to", "disable_tqdm", "push_to_hub", "hub_"),
)


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

    def check_options(self) -> None:
        """Refuse other options than those of a finished run, whose results would be taken for theirs.

        Raises:
            ValueError: If an option differs.
        """
        if not self.path.exists():
            return
        noted = json.loads(self.path.read_text(encoding="utf-8"))
        before, now = noted["options"], self.beginning["options"]
        changed = [
            f"{name} {before.get(name, 'unset')} before, {now.get(name, 'unset')} now"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name) and not name.startswith(FREE_OPTIONS)
        ]
        if noted["results"] is not None and changed:
            raise ValueError(
                f"{self.path.parent} holds a finished run with other options: {'; '.join(changed)}. Set another"
                " --output_dir."
            )

    def note(self, results: dict[str, Any] | None) -> None:
        """Record that the run has started (None) or finished; call it in the first process only."""
        _replace(self.path, json.dumps({**self.beginning, "results": results}, indent=2))

    def _noted(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        noted = json.loads(self.path.read_text(encoding="utf-8"))
        return noted if {**noted, **self.beginning} == noted else None
