"""Moments at which a training kills itself with SIGKILL, and a start of the command line that waits for one of them.

    CHAOS_MOMENT=rotation CHAOS_CALL=2 CHAOS_NOTE=killed.txt python tests/chaos/moments.py pretrain --train_dir photos

is `python -m hf_simmim pretrain --train_dir photos`, killed after the second file that a rotation deletes. The package
is not changed on the disk: what a moment needs is patched in the process that is to die. `kill_and_resume.py` uses it.
"""

import ctypes
import functools
import importlib
import os
import resource
import runpy
import signal
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers import modeling_utils
from transformers.trainer_callback import CallbackHandler

from hf_simmim.cli import pretrain
from hf_simmim.data.masked_images import MaskedImageDataset
from hf_simmim.training import resumable_trainer
from hf_simmim.training.run_folder import RUN_FILE
from hf_simmim.training.saving import checkpoints
from hf_simmim.training.trainers import SimMIMTrainer


class Doom:
    """Kills this process at a call.

    Args:
        call: Number of the call, from 1.
        note: File that gets a line just before, which tells that it was this kill.
    """

    def __init__(self, call: int, note: str | Path):
        self.calls_left, self.note = call, str(note)

    def is_now(self) -> bool:
        """Count a call; whether it is the last one."""
        self.calls_left -= 1
        return self.calls_left == 0

    def approach(self) -> None:
        """Count a call, and die if it is the last one."""
        if self.is_now():
            self.strike()

    def strike(self) -> None:
        """Die."""
        append(self.note, f"process {os.getpid()}\n")
        os.kill(os.getpid(), signal.SIGKILL)

    def strike_when_written(self, num_bytes: int) -> None:
        """Die within the system call that makes a file larger than this: what is before it is in the file."""
        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: self.strike())
        # Kept: the operating system only knows its address.
        self._handler = handler
        # Not signal.signal, whose handlers run when the call has failed, and files of its caller are removed.
        ctypes.CDLL(None).signal(ctypes.c_int(signal.SIGXFSZ), handler)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def append(path: str, line: str) -> None:
    """Append to a file at once, so that a kill loses nothing."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def always(*args: Any, **kwargs: Any) -> bool:
    """The condition of a moment that is any call."""
    return True


def patched(owner: Any, name: str) -> Callable[[Callable[..., Any]], None]:
    """Replace a function by one that takes the original as its first argument."""

    def replace(replacement: Callable[..., Any]) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            return replacement(original, *args, **kwargs)

        setattr(owner, name, call)

    return replace


def before(owner: Any, name: str, condition: Callable[..., bool] = always) -> Callable[[Doom], None]:
    """The moment before a call of a function."""

    def arm(doom: Doom) -> None:
        @patched(owner, name)
        def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if condition(*args, **kwargs):
                doom.approach()
            return original(*args, **kwargs)

    return arm


def after(owner: Any, name: str, condition: Callable[..., bool] = always) -> Callable[[Doom], None]:
    """The moment after a call of a function."""

    def arm(doom: Doom) -> None:
        @patched(owner, name)
        def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if condition(*args, **kwargs):
                doom.approach()
            return result

    return arm


def is_staged(path: Any) -> bool:
    """Whether a path is within a checkpoint that is being written."""
    return checkpoints.STAGING in Path(path).parts


def is_checkpoint(path: Path, target: Any) -> bool:
    """Whether a folder is renamed to a checkpoint."""
    return is_staged(path) and Path(target).name.startswith("checkpoint-")


def num_bytes(content: Any) -> int:
    """Bytes of all tensors in what is to be saved."""
    if torch.is_tensor(content):
        return content.numel() * content.element_size()
    parts = content.values() if isinstance(content, Mapping) else content if isinstance(content, list) else ()
    return sum(num_bytes(part) for part in parts)


def weights(staged: bool) -> Callable[[Doom], None]:
    """The moment at which safetensors writes the weights, of a checkpoint or of the final model."""

    def arm(doom: Doom) -> None:
        @patched(modeling_utils, "safe_save_file")
        def call(original: Callable[..., Any], tensors: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
            if is_staged(path) == staged and doom.is_now():
                doom.strike_when_written(num_bytes(tensors) // 2)
            return original(tensors, path, *args, **kwargs)

    return arm


def torn_weights(staged: bool) -> Callable[[Doom], None]:
    """As `weights`, with half of the file under its final name, which is what earlier versions of safetensors leave."""

    def arm(doom: Doom) -> None:
        @patched(modeling_utils, "safe_save_file")
        def call(original: Callable[..., Any], tensors: Any, path: Any, metadata: Any = None) -> Any:
            if is_staged(path) == staged and doom.is_now():
                content = safetensors.torch.save(tensors, metadata)
                Path(path).write_bytes(content[: len(content) // 2])
                doom.strike()
            return original(tensors, path, metadata=metadata)

    return arm


def optimizer(doom: Doom) -> None:
    """The moment at which half of the optimizer's state is in its file."""

    @patched(torch, "save")
    def call(original: Callable[..., Any], content: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path).endswith("optimizer.pt") and doom.is_now():
            doom.strike_when_written(num_bytes(content) // 2)
        return original(content, path, *args, **kwargs)


def rotation(after_last_step: bool) -> Callable[[Doom], None]:
    """The moment after a file of an old checkpoint was deleted, of any or of the last one; every file is a call."""

    def arm(doom: Doom) -> None:
        is_last = is_rotating = False

        @patched(SimMIMTrainer, "_save_checkpoint")
        def save(original: Callable[..., Any], trainer: Any, *args: Any, **kwargs: Any) -> None:
            nonlocal is_last
            is_last = trainer.state.global_step >= trainer.state.max_steps
            original(trainer, *args, **kwargs)

        @patched(resumable_trainer, "delete_old_checkpoints")
        def rotate(original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
            nonlocal is_rotating
            is_rotating = True
            original(*args, **kwargs)
            is_rotating = False

        @patched(os, "unlink")
        def unlink(original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
            original(*args, **kwargs)
            if is_rotating and (is_last or not after_last_step):
                doom.approach()

    return arm


# By name: what arms a process for it.
MOMENTS: dict[str, Callable[[Doom], None]] = {
    "run.json": before(Path, "replace", lambda path, target: Path(target).name == RUN_FILE),
    "loading": before(SimMIMTrainer, "_load_optimizer_and_scheduler", lambda trainer, checkpoint: bool(checkpoint)),
    "mid-step": after(SimMIMTrainer, "training_step"),
    "optimizer step": before(CallbackHandler, "on_optimizer_step"),
    "evaluation": before(SimMIMTrainer, "prediction_step"),
    "weights": weights(staged=True),
    "torn weights": torn_weights(staged=True),
    "before optimizer": before(SimMIMTrainer, "_save_optimizer_and_scheduler"),
    "optimizer": optimizer,
    "random states": before(SimMIMTrainer, "_save_rng_state"),
    "before manifest": before(checkpoints, "share_weights"),
    "before rename": before(Path, "rename", is_checkpoint),
    "after rename": after(Path, "rename", is_checkpoint),
    "rotation": rotation(after_last_step=False),
    "last rotation": rotation(after_last_step=True),
    "final weights": weights(staged=False),
    "torn final weights": torn_weights(staged=False),
    "model card": before(SimMIMTrainer, "write_card"),
}
# Those that come only to the process that writes; the others come to each.
OF_WRITER = frozenset(MOMENTS) - {
    *("loading", "mid-step", "optimizer step", "evaluation", "before optimizer", "random states", "model card")
}


def record_batches(path: str | Path) -> None:
    """Append a line for each batch that is trained on: step, number within the step, checksums of pixels and mask."""
    last, number = -1, 0

    @patched(SimMIMTrainer, "training_step")
    def call(original: Callable[..., Any], trainer: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal last, number
        step = trainer.state.global_step
        last, number = step, number + 1 if step == last else 0
        sums = [zlib.crc32(inputs[key].numpy().tobytes()) for key in ("pixel_values", "bool_masked_pos")]
        append(str(path), f"{step}.{number} {sums[0]} {sums[1]}\n")
        return original(trainer, model, inputs, *args, **kwargs)


def record_samples(path: str | Path) -> None:
    """Append a line for each sample that is trained on: step and key, which is epoch * number of images + index."""

    @patched(MaskedImageDataset, "__getitem__")
    def read(original: Callable[..., Any], dataset: Any, key: int) -> dict[str, Any]:
        return original(dataset, key) | {"key": key}

    @patched(pretrain, "collate")
    def collate(original: Callable[..., Any], samples: Any) -> dict[str, Any]:
        return original(samples) | {"keys": [sample["key"] for sample in samples]}

    @patched(SimMIMTrainer, "_prepare_inputs")
    def prepare_inputs(original: Callable[..., Any], trainer: Any, inputs: Any) -> dict[str, Any]:
        keys = inputs.pop("keys", [])
        if trainer.model.training:
            append(str(path), "".join(f"{trainer.state.global_step} {key}\n" for key in keys))
        return original(trainer, inputs)


def prepare(environment: Mapping[str, str]) -> None:
    """Patch this process as the environment of the start says."""
    rank = environment.get("RANK", "0")
    if "ACCELERATE_USE_FSDP" in environment:
        sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
        importlib.import_module("engines").shard_on_processors()
    if "CHAOS_BATCHES" in environment:
        record_batches(f"{environment['CHAOS_BATCHES']}-{rank}.txt")
    if "CHAOS_SAMPLES" in environment:
        record_samples(f"{environment['CHAOS_BATCHES']}-samples-{rank}.txt")
    if "CHAOS_MOMENT" in environment and environment.get("CHAOS_RANK", "0") == rank:
        MOMENTS[environment["CHAOS_MOMENT"]](Doom(int(environment["CHAOS_CALL"]), environment["CHAOS_NOTE"]))


if __name__ == "__main__":
    prepare(os.environ)
    sys.argv[0] = "hf_simmim"
    runpy.run_module("hf_simmim", run_name="__main__", alter_sys=True)
