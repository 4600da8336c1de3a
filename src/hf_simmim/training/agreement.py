"""Agreement of the processes of a run: what each of them found is compared before any of them trains."""

import atexit
import contextlib
import functools
import json
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import gather_object

# Longest time that a process takes to leave the others.
SECONDS_TO_LEAVE = 5.0


def num_processes() -> int:
    """Number of processes of the run."""
    is_started = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if is_started else 1


@functools.cache
def leave_before_python_ends() -> None:
    """Let this process leave the group of processes that talk through gloo before Python shuts down.

    Threads of gloo that still hold tensors then abort the process, after all its work is done: now and then a finished
    run ended with signal 6.

    Source: https://github.com/pytorch/pytorch/pull/179291
    """
    atexit.register(_leave)


def _leave() -> None:
    if num_processes() > 1 and torch.distributed.get_backend() == "gloo":
        # Not for long: where another process failed, a thread may wait for it.
        leaving = threading.Thread(target=torch.distributed.destroy_process_group, daemon=True)
        leaving.start()
        leaving.join(timeout=SECONDS_TO_LEAVE)


@contextlib.contextmanager
def ending_with_launcher(seconds: float = 1.0) -> Iterator[None]:
    """End this process within if the one that started it ends: whom it waits for will never come.

    Args:
        seconds: Seconds between two looks.
    """
    parent, is_over = os.getppid(), threading.Event()

    def watch() -> None:
        while not is_over.wait(seconds):
            if os.getppid() != parent:
                print("error: the launcher ended before the processes of this run met.", file=sys.stderr, flush=True)
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def everyones(value: Any) -> list[Any]:
    """Gather a value of each process; all processes must call it.

    Args:
        value: The value of this process, which can be pickled.

    Returns:
        The values, in the order of the processes.

    Raises:
        ValueError: If a process ended or does not answer within `--ddp_timeout`.
    """
    if num_processes() == 1:
        return [value]
    try:
        return gather_object([value])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"Another process of this run ended, or did not answer within --ddp_timeout ({reason}). See what it"
            " printed."
        ) from error


def fail_together(error: Exception | None, kind: type[Exception] = ValueError) -> None:
    """Raise in all processes if one of them failed; all must call it.

    Args:
        error: What failed in this process, or None.
        kind: Type to raise where another process failed.

    Raises:
        Exception: The error of this process, or one of type `kind` with the message of another.
    """
    messages = everyones(None if error is None else str(error))
    if error is not None:
        raise error
    first = next((message for message in messages if message is not None), None)
    if first is not None:
        raise kind(first)


def check_agreement(found: dict[str, Any]) -> None:
    """Refuse to train if the processes found different things, such as other images; all must call it.

    Args:
        found: What this process found, JSON-serializable.

    Raises:
        ValueError: If a value differs; the message names it, and the processes.
    """
    everything = everyones(json.loads(json.dumps(found)))
    for rank, other in enumerate(everything):
        for key in everything[0].keys() | other.keys():
            first, value = everything[0].get(key), other.get(key)
            if first != value:
                raise ValueError(
                    f"The processes of this run do not agree: process 0 has {key} {first}, process {rank} has {value}."
                    " All must get the same options and see the same files."
                )
