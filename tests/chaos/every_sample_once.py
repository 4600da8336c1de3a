"""Trains on seven uneven shards with three processes, kills them twice in mid-epoch, and resumes with two processes.

    python tests/chaos/every_sample_once.py
    python tests/chaos/every_sample_once.py --processes 1 4 2 --images folder      other numbers, other images

Prints which samples each start trained on. Exit status 1 unless every step trained on the samples of an uninterrupted
run of one process, none of which comes twice in an epoch; the last images of an epoch that fill no step are left out.
"""

import argparse
import importlib
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from kill_and_resume import (
    ENVIRONMENT,
    HERE,
    IMAGES_PER_STEP,
    NUM_EPOCHS,
    NUM_HELD_OUT,
    NUM_PHOTOS,
    SOURCE,
    Kill,
    Setup,
    Study,
    machine,
    table,
)

NUM_TRAINED = NUM_PHOTOS - NUM_HELD_OUT
STEPS = NUM_TRAINED // IMAGES_PER_STEP
# Calls of `training_step` at which the last process dies, in order of the starts: in the middle of an epoch.
CALLS = (5, 7, 6, 5)


def samples_of(folder: Path) -> dict[int, list[int]]:
    """Keys of the samples by step, of all processes of a start."""
    found: dict[int, list[int]] = defaultdict(list)
    for path in folder.glob("batches-samples-*.txt"):
        for line in path.read_text().splitlines():
            step, key = map(int, line.split())
            found[step].append(key)
    return found


def trained(study: Study, setup: Setup, output_dir: Path, folder: Path, kill: Kill | None) -> dict[int, list[int]]:
    """Start the command, wait for its end, and read which samples it trained on."""
    start = study.start(setup, output_dir, folder, kill)
    for _ in start.finish(limit=300):
        pass
    if start.was_killed != (kill is not None) or (kill is None and any(start.codes.values())):
        raise SystemExit(f"{folder.name} ended with {start.codes}:\n{start.text()[-3000:]}")
    return samples_of(folder)


def main() -> int:
    """Run everything, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[3, 3, 2], help="processes of each start")
    parser.add_argument("--images", choices=["shards", "folder"], default="shards")
    arguments = parser.parse_args()
    if not 2 <= len(arguments.processes) <= len(CALLS) + 1:
        parser.error(f"--processes needs 2 to {len(CALLS) + 1} numbers.")
    os.environ.update(ENVIRONMENT | {"CHAOS_SAMPLES": "1"})
    sys.path[:0] = [str(HERE), str(SOURCE)]
    for name in ("moments", "torch", "hf_simmim.__main__", "hf_simmim.cli.pretrain"):
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    faults: list[str] = []
    # Not a TemporaryDirectory, which forks would delete at their end.
    work = Path(tempfile.mkdtemp(prefix="every_sample_once-"))
    study = Study(work, seed=0)
    setups = {count: Setup("fork", count, 2, 1, arguments.images) for count in {1, *arguments.processes}}
    whole = trained(study, setups[1], work / "whole", work / "start of one process", None)
    final: dict[int, list[int]] = {}
    lines: list[tuple[Any, ...]] = []
    for number, processes in enumerate(arguments.processes):
        is_last = number == len(arguments.processes) - 1
        kill = None if is_last else Kill("mid-step", CALLS[number], f"rank {processes - 1}")
        found = trained(study, setups[processes], work / "run", work / f"start-{number}", kill)
        # A step that was cut by the kill is trained again by the next start.
        final |= found
        lines.append(
            (number + 1, processes, str(kill or "none"), min(found), max(found), sum(map(len, found.values())))
        )
    study.end()
    for step in range(NUM_EPOCHS * STEPS):
        if sorted(final.get(step, [])) != sorted(whole.get(step, [])):
            faults.append(f"step {step} has other samples than the uninterrupted run")
    for epoch in range(NUM_EPOCHS):
        keys = [key for step in range(epoch * STEPS, (epoch + 1) * STEPS) for key in final[step]]
        is_right = all(key // NUM_TRAINED == epoch for key in keys)
        if len(keys) != STEPS * IMAGES_PER_STEP or len(set(keys)) != len(keys) or not is_right:
            faults.append(f"epoch {epoch} has {len(keys)} samples, {len(set(keys))} of them different")
    print(table(("start", "processes", "kill", "first step", "last step", "samples read"), lines))
    print(f"\n{NUM_EPOCHS} epochs of {NUM_TRAINED} images, {STEPS} steps of {IMAGES_PER_STEP} each. {machine()}.")
    print(
        *faults or ["Every step has the samples of the uninterrupted run, and none comes twice in an epoch."], sep="\n"
    )
    shutil.rmtree(work)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
