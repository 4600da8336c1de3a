"""Lets something go wrong in real trainings, and prints how and when each of them ended.

    python tests/chaos/faults.py

Each run is `hf-simmim pretrain` as in `kill_and_resume.py`, with one or two processes under torchrun. A fault comes
at a step of the second epoch. It prints the seconds from the fault to the end of the last process, the exit status, the
last line, and whether the repeated command finishes the run. Exit status 1 if a run hangs or cannot be finished.
"""

import argparse
import contextlib
import errno
import importlib
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from kill_and_resume import ENVIRONMENT, HERE, SOURCE, Setup, Start, machine, make_photos, table

# Step at which a fault comes: after two checkpoints, and not at one.
STEP = 10
# Seconds after which a run counts as hanging.
LIMIT = 240.0


def at_step(action: Callable[[Any], None]) -> None:
    """Do something at the step, in the process that is to suffer."""
    from hf_simmim.training.trainers import SimMIMTrainer

    training_step = SimMIMTrainer.training_step

    def suffering(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == STEP:
            Path(os.environ["FAULT_NOTE"]).write_text(str(time.time()))
            action(self)
        return training_step(self, *args, **kwargs)

    SimMIMTrainer.training_step = suffering  # type: ignore[method-assign]


def die(trainer: Any) -> None:
    """As the kernel does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail(trainer: Any) -> None:
    """As any mistake in code."""
    raise RuntimeError("the device is gone")


def kill_worker(trainer: Any) -> None:
    """As the kernel does when memory is short."""
    workers = [child for child in psutil.Process().children() if "resource_tracker" not in " ".join(child.cmdline())]
    workers[0].kill()


def unwritable(number: int) -> Callable[[Any], None]:
    """Writing a checkpoint fails from now on."""

    def act(trainer: Any) -> None:
        import torch

        save = torch.save

        def failing(content: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
            if "optimizer" in str(path):
                raise OSError(number, os.strerror(number), str(path))
            return save(content, path, *args, **kwargs)

        torch.save = failing

    return act


def remove_folder(trainer: Any) -> None:
    """Somebody cleans up."""
    shutil.rmtree(trainer.args.output_dir)


def unreadable(trainer: Any) -> None:
    """A disk that only this process sees is gone: more images than allowed cannot be read."""
    trainer.unreadable_images.record([(f"{number}.png", "OSError: Input/output error") for number in range(100)])


def not_finite(trainer: Any) -> None:
    """A gradient that is not finite, once."""
    parameter = next(iter(trainer.model.parameters()))
    parameter.register_hook(lambda gradient: gradient * float("nan"))


# By name: processes, process that suffers, and what it does; a signal comes from outside.
FAULTS: dict[str, tuple[int, int, Callable[[Any], None] | int]] = {
    "a process is killed": (2, 1, die),
    "a process raises an error": (2, 1, fail),
    "a worker is killed": (1, 0, kill_worker),
    "a worker of one of two processes is killed": (2, 1, kill_worker),
    "the disk is full": (1, 0, unwritable(errno.ENOSPC)),
    "the disk is full, two processes": (2, 0, unwritable(errno.ENOSPC)),
    "the folder becomes read-only": (1, 0, unwritable(errno.EROFS)),
    "the folder is deleted": (1, 0, remove_folder),
    "one of two processes cannot read its images": (2, 1, unreadable),
    "gradients are not finite from then on": (2, 1, not_finite),
    "SIGTERM to one of two processes": (2, 1, signal.SIGTERM),
    "SIGUSR1 to the launcher": (2, 0, signal.SIGUSR1),
    "SIGINT": (1, 0, signal.SIGINT),
}


def suffer(name: str) -> None:
    """Run the command in this process, with the fault if it is the one that suffers."""
    processes, rank, action = FAULTS[name]
    if os.environ.get("RANK", "0") == str(rank) and processes:
        if callable(action):
            at_step(action)
        elif action != signal.SIGUSR1:
            at_step(lambda trainer: os.kill(os.getpid(), action))
        else:
            at_step(lambda trainer: os.kill(os.getppid(), action))
    sys.argv = ["hf_simmim", *sys.argv[2:]]
    runpy.run_module("hf_simmim", run_name="__main__", alter_sys=True)


def run(setup: Setup, command: list[str], folder: Path, name: str | None) -> tuple[Start, float]:
    """Start the command and wait for its end; the seconds are those since the fault."""
    note = folder / "note"
    os.environ["FAULT_NOTE"] = str(note)
    program = [] if name is None else [str(HERE / "faults.py"), name]
    start = Start(setup, command, folder, None, program)
    for _ in start.finish(LIMIT):
        time.sleep(0.02)
    began = float(note.read_text()) if note.exists() else time.time()
    return start, time.time() - began


def last_line(text: str) -> str:
    """The last line that the command printed, without what torchrun adds."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith(("error:", "Ended by", "Next:", "RuntimeError", "runs/"))]
    return (own or lines or [""])[-1]


def main() -> int:
    """Run everything, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="faults whose names have this in them")
    chosen = {name: fault for name, fault in FAULTS.items() if parser.parse_args().only in name}
    os.environ.update(ENVIRONMENT)
    sys.path[:0] = [str(HERE), str(SOURCE)]
    work, wrong = Path(tempfile.mkdtemp(prefix="faults-")), 0
    photos = make_photos(work / "photos")
    lines = []
    for number, (name, (processes, _, _)) in enumerate(chosen.items()):
        setup = Setup("command", processes, 2, 1)
        output_dir = work / f"run-{number}"
        command = setup.command(photos, output_dir)
        start, seconds = run(setup, command, work / f"start-{number}", name)
        line = last_line(start.text()).replace(str(output_dir), "RUN").replace(str(work), "")
        with contextlib.suppress(OSError):
            (work / f"start-{number}" / "note").unlink()
        again, _ = run(setup, command, work / f"again-{number}", None)
        code, finished = start.codes[start.pids[0]], not any(again.codes.values())
        wrong += start.is_stuck or again.is_stuck or not finished
        lines.append((name, processes, f"{seconds:.1f}", code, line[:160], "finished" if finished else "NOT finished"))
        print(f"[{number + 1}/{len(chosen)}] {lines[-1]}", file=sys.stderr, flush=True)
    print(table(("fault", "processes", "seconds to the end", "exit status", "last line", "the command again"), lines))
    for module in ("torch", "transformers", "safetensors"):
        importlib.import_module(module)
    print(f"\n{machine()}.")
    if not wrong:
        shutil.rmtree(work)
    return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in FAULTS:
        suffer(sys.argv[1])
    else:
        sys.exit(main())
