"""Locks of run folders: at most one run writes to a folder."""

import contextlib
import importlib
import os
import socket
from pathlib import Path
from typing import Any, TextIO

from transformers.utils import logging

logger = logging.get_logger(__name__)

# Begins with an underscore, as all files that are never pushed.
LOCK_FILE = "_run.lock"
_held: dict[Path, TextIO] = {}


def lock_run(output_dir: Path) -> None:
    """Lock a folder for the run of this process, until `unlock_runs` or the end of the process.

    The operating system removes the lock of a process that dies, so a file that is left does not matter.

    Args:
        output_dir: The folder, which exists.

    Raises:
        ValueError: If another process holds the lock.
    """
    try:
        fcntl: Any = importlib.import_module("fcntl")
    except ImportError:
        # Windows.
        return
    key = output_dir.resolve()
    # Closing any handle of the file would remove the lock.
    if key in _held:
        if _is_held(key):
            return
        _held.pop(key).close()
    path = key / LOCK_FILE
    file = path.open("a+", encoding="utf-8")
    try:
        # Unlike `flock`, not inherited by forked workers, which may outlive a killed run for seconds.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise ValueError(
            f"Another run writes to {output_dir}: {holder}. Wait for its end, or set another --output_dir."
        ) from error
    except OSError as error:
        logger.warning(f"{path} cannot be locked ({error}). Do not start a second run in this folder.")
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _held[key] = file


def unlock_runs() -> None:
    """Remove the locks of this process."""
    while _held:
        key = next(reversed(_held))
        if _is_held(key):
            with contextlib.suppress(OSError):
                (key / LOCK_FILE).unlink()
        _held.pop(key).close()


def _is_held(key: Path) -> bool:
    """Whether the file in a folder is the one that this process locked; somebody may have deleted the folder."""
    try:
        return os.path.samestat(os.fstat(_held[key].fileno()), (key / LOCK_FILE).stat())
    except OSError:
        return False
