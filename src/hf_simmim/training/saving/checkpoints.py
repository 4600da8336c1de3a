"""Checkpoints that are complete or do not count: staged, listed in a manifest, renamed, and verified before use.

They are read by whatever engine resumes: FSDP2 from those of one process or DDP, and the other way round.
"""

import contextlib
import hashlib
import json
import os
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from torch.distributed import checkpoint as distributed_checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, logging

logger = logging.get_logger(__name__)

# Lists all files of a checkpoint with size and checksum. It is written last, and only then the folder gets its name.
MANIFEST = "checkpoint.manifest"
# Folder in which a checkpoint is written until it is complete.
STAGING = "_saving"
# Names that safetensors gives files until they are whole; a kill leaves them.
UNFINISHED = ".tmp" + 6 * "[0-9A-Za-z]"
# What the libraries that write checkpoints raise where a disk is full, read-only or gone.
SAVE_ERRORS = (OSError, SafetensorError, RuntimeError)
# Names that accelerate gives to the files of FSDP, and to its folders of shards.
WHOLE = {"model": "pytorch_model_fsdp.bin", "optimizer": "optimizer.bin"}
SHARDS = {"model": "pytorch_model_fsdp_0", "optimizer": "optimizer_0"}
# Every process holds the weights as a whole, and takes its part of them.
_WHOLE_OPTIONS = StateDictOptions(full_state_dict=True)


class TrainingStoppedError(RuntimeError):
    """A training cannot go on; the message says why, what was saved and what to do."""


class Unverified(str):
    """Flaw of a checkpoint that has all files but no manifest: an earlier version saved it, or a plain Trainer."""


def checkpoint_name(step: int) -> str:
    """Name of the folder of a checkpoint."""
    return f"{PREFIX_CHECKPOINT_DIR}-{step}"


def checkpoint_folders(output_dir: str | Path) -> list[Path]:
    """Folders of checkpoints of a run, whether complete or not, from the newest."""
    found = {}
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if step.isdecimal() and folder.is_dir():
            found[int(step)] = folder
    return [found[step] for step in sorted(found, reverse=True)]


def finish_checkpoint(staged: Path, final: Path) -> None:
    """Write the manifest of a checkpoint, force everything to the disk, and give the folder its name.

    Args:
        staged: Folder with all files of all processes.
        final: Path that it gets; a checkpoint that is there already is replaced.

    Raises:
        OSError: If the disk is full.
    """
    share_weights(staged)
    manifest = staged / MANIFEST
    paths = sorted(path for path in staged.rglob("*") if path.is_file() and path != manifest)
    files = {path.relative_to(staged).as_posix(): _describe(path, flush=True) for path in paths}
    with manifest.open("w", encoding="utf-8") as file:
        json.dump({"files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for path in (staged, *(folder for folder in staged.rglob("*") if folder.is_dir())):
        _flush(path)
    replaced = None
    if final.exists():
        replaced = staged.with_name(f"{staged.name}-replaced")
        final.rename(replaced)
    staged.rename(final)
    _flush(final.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def delete_old_checkpoints(output_dir: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints, so that a kill leaves none of them in part under its name.

    Args:
        output_dir: Folder of the run.
        limit: Number of checkpoints to keep; all if None or 0.
        best: One that is kept in any case, as the newest is.
    """
    folders = sort_checkpoints(str(output_dir), use_mtime=True)
    kept = {*folders[-1:], *([str(Path(best))] if best else [])}
    num_left = len(folders)
    for folder in folders:
        if limit and limit > 0 and num_left > max(limit, len(kept)) and folder not in kept:
            # A start deletes what an earlier one left there.
            staged = output_dir / STAGING / Path(folder).name
            with contextlib.suppress(OSError):
                staged.parent.mkdir(exist_ok=True)
                Path(folder).rename(staged)
                shutil.rmtree(staged.parent, ignore_errors=True)
            num_left -= 1


def share_weights(folder: Path) -> None:
    """Give weights the permissions of the other files: safetensors writes files that only their owner can read.

    Args:
        folder: Folder of a checkpoint.
    """
    config = folder / CONFIG_NAME
    if config.exists():
        for path in folder.glob("*.safetensors"):
            shutil.copymode(config, path)


def _describe(path: Path, flush: bool = False) -> dict[str, Any]:
    """Size and checksum of a file."""
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "blake2b").hexdigest()
        if flush:
            os.fsync(file.fileno())
        return {"size": os.fstat(file.fileno()).st_size, "blake2b": checksum}


def _flush(path: Path) -> None:
    # Some file systems cannot synchronize folders.
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def flaw(folder: Path) -> str | None:
    """Why a checkpoint is incomplete or damaged, with the name of the file; None if it is complete."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        reason = _flaw_of_layout(folder)
        return reason if reason is not None else Unverified(f"it has no {MANIFEST}, so its files cannot be verified")
    try:
        expected = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        for name, facts in expected.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != facts["size"]:
                return f"{name} has {path.stat().st_size:,} bytes instead of {facts['size']:,}"
        for name, facts in expected.items():
            if _describe(folder / name)["blake2b"] != facts["blake2b"]:
                return f"{name} is damaged: its checksum is another"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{MANIFEST} or a file that it lists cannot be read ({type(error).__name__}: {error})"
    return None


# Files of a complete checkpoint besides trainer_state.json: of Trainer alone, under FSDP with full and with sharded
# state, and under DeepSpeed.
_LAYOUTS = (
    ("config.json", "model*.safetensors", "optimizer.pt", "scheduler.pt"),
    ("pytorch_model_fsdp.bin", "optimizer.bin", "scheduler.pt"),
    ("pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata", "scheduler.pt"),
    ("global_step*", "latest"),
)


def _flaw_of_layout(folder: Path) -> str | None:
    """Why a checkpoint without a manifest is incomplete, as far as its files tell."""
    try:
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
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
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix in (".pt", ".bin") and not zipfile.is_zipfile(path):
                return f"{path.name} is truncated"
    except (OSError, ValueError, SafetensorError) as error:
        return str(error)
    return None


def newest_whole_checkpoint(output_dir: str | Path) -> Path | None:
    """Find the newest complete checkpoint of a run.

    Args:
        output_dir: Folder with the `checkpoint-N` folders of Trainer.

    Returns:
        The folder, or None if no checkpoint is complete. Incomplete and damaged ones are skipped with a warning.
    """
    for folder in checkpoint_folders(output_dir):
        reason = flaw(folder)
        if reason is None:
            return folder
        logger.warning(f"{folder} is skipped: {reason}.")
    return None


def automatic_checkpoint(output_dir: Path) -> tuple[Path | None, list[Path]]:
    """Find the checkpoint that a repeated command resumes from.

    Args:
        output_dir: Folder of the run.

    Returns:
        The newest complete checkpoint, or None for a start from the beginning; and the broken ones, to be deleted.

    Raises:
        ValueError: If there are only checkpoints that cannot be verified.
    """
    broken: list[Path] = []
    unverified: list[Path] = []
    for folder in checkpoint_folders(output_dir):
        reason = flaw(folder)
        if reason is None:
            return folder, broken
        logger.warning(f"{folder} is skipped: {reason}.")
        (unverified if isinstance(reason, Unverified) else broken).append(folder)
    if unverified:
        raise ValueError(
            f"{unverified[0]} has no {MANIFEST}: an earlier version saved it, or its saving was interrupted. If you"
            f" trust it, resume with --resume_from_checkpoint {unverified[0]}; or add --restart to delete it and start"
            " again."
        )
    if broken:
        logger.warning(f"No checkpoint in {output_dir} is complete, so the run starts from the beginning.")
    return None, broken


def named_checkpoint(name: str, output_dir: Path) -> Path:
    """Find the checkpoint that `--resume_from_checkpoint` names.

    Args:
        name: A checkpoint, the folder of a run for its newest complete checkpoint, or True for that of `output_dir`.
        output_dir: Folder of the run.

    Returns:
        The checkpoint.

    Raises:
        ValueError: If there is none, or it is incomplete or damaged.
    """
    remedy = "Name a checkpoint-N folder, or leave the option out: a run resumes from its newest checkpoint by itself."
    folder = output_dir if name.strip().lower() in ("true", "1", "yes") else Path(name)
    if not folder.is_dir():
        raise ValueError(f"resume_from_checkpoint={name!r} is not a folder. {remedy}")
    if checkpoint_folders(folder):
        newest = newest_whole_checkpoint(folder)
        if newest is None:
            raise ValueError(f"resume_from_checkpoint={name!r}: no checkpoint in {folder} is complete. {remedy}")
        return newest
    if not (folder / "trainer_state.json").is_file() and not (folder / MANIFEST).is_file():
        raise ValueError(f"resume_from_checkpoint={name!r}: there is no checkpoint in {folder}. {remedy}")
    reason = flaw(folder)
    if isinstance(reason, Unverified):
        logger.warning(f"{folder} is used although {reason}.")
    elif reason is not None:
        raise ValueError(f"resume_from_checkpoint={name!r} is no complete checkpoint: {reason}. {remedy}")
    return folder


def fsdp_layout(folder: str | Path) -> str | None:
    """How FSDP saved a checkpoint, as accelerate calls it; None if another engine did.

    Args:
        folder: Folder of the checkpoint.

    Returns:
        "SHARDED_STATE_DICT", "FULL_STATE_DICT" or None.
    """
    if (Path(folder) / SHARDS["model"]).is_dir():
        return "SHARDED_STATE_DICT"
    return "FULL_STATE_DICT" if (Path(folder) / WHOLE["model"]).is_file() else None


def check_deepspeed(folder: str | Path, is_enabled: bool, num_processes: int) -> None:
    """Refuse a checkpoint from which the optimizer cannot be restored, because DeepSpeed saved it, or did not.

    Args:
        folder: Folder of the checkpoint.
        is_enabled: Whether the run that resumes is one of DeepSpeed.
        num_processes: Number of its processes.

    Raises:
        TrainingStoppedError: If the checkpoint is of the other kind, or DeepSpeed saved it from another number of
            processes.
    """
    path = Path(folder)
    latest = path / "latest"
    is_saved = latest.is_file() and not (path / "optimizer.pt").is_file()
    remedy = "or begin a new run from its weights (--checkpoint)"
    if is_saved and not is_enabled:
        raise TrainingStoppedError(
            f"{path} was saved with DeepSpeed, whose optimizer no other engine reads. Resume with the same config of"
            f" accelerate and number of processes, {remedy}."
        )
    if is_enabled and not is_saved:
        raise TrainingStoppedError(
            f"{path} was saved without DeepSpeed, which cannot read its optimizer. Resume without DeepSpeed, {remedy}."
        )
    if is_saved:
        # One file of the optimizer for each process.
        states = latest.read_text(encoding="utf-8").strip()
        number = len(list((path / states).glob("*zero_pp_rank_*_optim_states.pt")))
        if number and number != num_processes:
            raise TrainingStoppedError(
                f"{path} was saved with DeepSpeed by {number} processes, and this run has {num_processes}. Resume with"
                f" {number}, {remedy}."
            )


def load_model(folder: str | Path, model: nn.Module) -> None:
    """Load the weights of a checkpoint of any engine but DeepSpeed; all processes must call it.

    Args:
        folder: Folder of the checkpoint.
        model: The model, sharded by FSDP2 or not.
    """
    path, layout = Path(folder), fsdp_layout(folder)
    if layout is None:
        weights: Any = load_file(path / SAFE_WEIGHTS_NAME)
    elif layout == "FULL_STATE_DICT":
        weights = _read_file(path / WHOLE["model"])
    else:
        weights = _read_shards(path, "model", get_model_state_dict(model, options=_WHOLE_OPTIONS))
    set_model_state_dict(model, weights, options=_WHOLE_OPTIONS)


def load_optimizer(folder: str | Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load the state of the optimizer from a checkpoint of any engine but DeepSpeed; all processes must call it.

    Args:
        folder: Folder of the checkpoint.
        model: The model, sharded by FSDP2 or not.
        optimizer: Its optimizer.
    """
    path, layout = Path(folder), fsdp_layout(folder)
    if layout is None:
        state = _by_name(_read_file(path / "optimizer.pt"), model, optimizer)
    elif layout == "FULL_STATE_DICT":
        state = _read_file(path / WHOLE["optimizer"])
    else:
        state = _read_shards(path, "optimizer", get_optimizer_state_dict(model, optimizer, options=_WHOLE_OPTIONS))
    set_optimizer_state_dict(model, optimizer, state, options=_WHOLE_OPTIONS)


def _read_file(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_shards(folder: Path, part: str, state: dict[str, Any]) -> dict[str, Any]:
    """Read all shards of the model or the optimizer into a state that has its names and shapes."""
    parts = {part: state}
    reader = distributed_checkpoint.FileSystemReader(folder / SHARDS[part])
    with warnings.catch_warnings():
        # Each process reads for itself, which torch calls an assumption.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        distributed_checkpoint.load(parts, storage_reader=reader, no_dist=True)
    return parts[part]


def _by_name(state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A state of an optimizer by names of parameters instead of their positions, which sharding does not change."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    positions = [position for group in state["param_groups"] for position in group["params"]]
    by_position = dict(zip(positions, (name for group in groups for name in group), strict=True))
    return {
        "state": {by_position[position]: values for position, values in state["state"].items()},
        "param_groups": [
            {**group, "params": group_names} for group, group_names in zip(state["param_groups"], groups, strict=True)
        ],
    }
