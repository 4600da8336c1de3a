"""Kills real trainings with SIGKILL again and again, repeats their command, and compares them with uninterrupted ones.

    python tests/chaos/kill_and_resume.py                                     60 kills, with a table at the end
    python tests/chaos/kill_and_resume.py --kills 8 --only moment=rotation processes=2

Each run is `hf-simmim pretrain` on a folder of small pictures, with stochastic depth, two checkpoints kept, and
evaluations between steps. It is killed at the moments that `moments.py` names, or from outside at a random time; the
same command is repeated until it finishes. Its files must then be those of a run that was never killed, byte for byte:
weights, optimizer, schedule, random states, logged losses and metrics, pictures; every batch of every start must be
that of its step; nothing else may be left in the folder, and no process. Exit status 1 if anything differs.

Engines: `fork` starts a run in a fork of this process, which has imported everything (with several processes it does
what torchrun does); `command` is `python -m hf_simmim`, under torchrun if there are several processes; `fsdp2`,
`fsdp2_async` (which writes checkpoints in the background) and `zero2` (where DeepSpeed is installed) are the same under
torchrun with the settings of accelerate's launcher, on processors. With several processes a kill hits one of them, or
from outside also all of them, or torchrun.
"""

import argparse
import atexit
import contextlib
import importlib
import importlib.util
import itertools
import json
import math
import os
import pickle
import platform
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

HERE = Path(__file__).resolve().parent
# What accelerate's launcher sets for its configs in examples/accelerate_configs; `moments.py` lets them apply to
# processors.
SHARDED = {
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_OFFLOAD_PARAMS": "false",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
        "ACCELERATE_MIXED_PRECISION": "no",
    },
    "zero2": {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
        "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
        "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
        "ACCELERATE_MIXED_PRECISION": "no",
        "DS_ACCELERATOR": "cpu",
    },
}
SOURCE = HERE.parents[1] / "src"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": os.pathsep.join([str(SOURCE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
    "PYTHONUNBUFFERED": "1",
}
SHARDED["fsdp2_async"] = SHARDED["fsdp2"]

# No whole number of steps, so batches are dropped, or the last step of an epoch accumulates fewer of them. More images
# than are checked before the training, so some of the unreadable ones are found later.
NUM_PHOTOS, NUM_HELD_OUT, NUM_UNREADABLE, NUM_EPOCHS, IMAGES_PER_STEP, NUM_SHARDS = 182, 8, 8, 3, 24, 7
ENCODER = {
    "model_type": "swin",
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [1, 2],
    "num_heads": [1, 2],
    "window_size": 4,
    "drop_path_rate": 0.2,
}

# Moments that need no patch, or several: a kill from outside, and a run that is killed at several moments.
RANDOM, MIXED = "random time", "several"
# Largest number of the call at which a run is killed, so that it can be killed again after it was resumed.
LAST_CALLS = {"mid-step": 7, "optimizer step": 7, "evaluation": 4, "rotation": 20, "last rotation": 8}
LAST_CALL_OF_SAVING = 3
ONCE = ("run.json", "loading", "final weights", "torn final weights", "model card")
FINAL = ("last rotation", "final weights", "torn final weights", "model card")
# Moments of engines that write other files than Trainer alone.
OF_SHARDED = ("mid-step", "optimizer step", "evaluation", "random states", "before manifest", "before rename")
OF_SHARDED += ("after rename", "rotation", "last rotation", "run.json", "final weights", "model card")
# Kills of a run; the default is two.
KILLS_PER_RUN = {RANDOM: 3, MIXED: 7}
# Seconds: torchrun waits as long for its processes; workers of a killed process look for it every five.
PATIENCE, WORKERS_PATIENCE = 30.0, 20.0
# Keys of logs that hold times, and the entry at the end of a training, which has only those and the mean of all losses.
TIMES = re.compile(r"images_per_second|data_wait|eta_seconds|.*_runtime|.*_per_second")
SUMMARY = "train_runtime"
# Differences of a run that are printed.
MAX_SHOWN = 5
# Files with times, or made of the others.
NOT_COMPARED = ("README.md", "checkpoint.manifest", "training_args.bin")


@dataclass(frozen=True)
class Setup:
    """How the command is started."""

    engine: str
    processes: int
    workers: int
    accumulation: int
    images: str = "folder"

    def command(self, photos: Path, output_dir: Path) -> list[str]:
        """Words of the command line after the program."""
        streamed = {
            "data_files": photos / "shards" / "*.parquet",
            "streaming": True,
            "stream_cache": photos / "blocks",
            "shuffle_window": 2 * IMAGES_PER_STEP,
        }
        settings = {
            **({"train_dir": photos / "folder"} if self.images == "folder" else streamed),
            "output_dir": output_dir,
            "encoder": json.dumps(ENCODER),
            "mask_patch_size": 8,
            "holdout": NUM_HELD_OUT / NUM_PHOTOS,
            "per_device_train_batch_size": IMAGES_PER_STEP // (self.processes * self.accumulation),
            "gradient_accumulation_steps": self.accumulation,
            "per_device_eval_batch_size": NUM_HELD_OUT // (2 * self.processes),
            "num_train_epochs": NUM_EPOCHS,
            "learning_rate": 1e-3,
            "compared_images": 16,
            "logging_steps": 3,
            "save_strategy": "steps",
            "save_steps": 2,
            "save_total_limit": 2,
            "eval_strategy": "steps",
            "eval_steps": 3,
            "dataloader_num_workers": self.workers,
            "use_cpu": True,
            "disable_tqdm": True,
        }
        if self.engine == "fsdp2_async":
            settings["async_save"] = True
        return ["pretrain", *itertools.chain(*((f"--{name}", str(value)) for name, value in settings.items()))]


@dataclass(frozen=True)
class Kill:
    """A kill at the n-th call of a moment in a process, or from outside after some seconds.

    `target` is `rank N`, `all`, or `launcher`.
    """

    moment: str
    call: int = 0
    target: str = "rank 0"
    delay: float = math.inf

    def __str__(self) -> str:
        when = f"call {self.call}" if self.call else f"after {self.delay:.1f} s"
        return f"{self.target} at {self.moment}, {when}"

    def environment(self, note: Path) -> dict[str, str]:
        """For `moments.prepare`."""
        if self.moment == RANDOM:
            return {}
        rank = self.target.removeprefix("rank ")
        return {
            "CHAOS_MOMENT": self.moment,
            "CHAOS_CALL": str(self.call),
            "CHAOS_RANK": rank,
            "CHAOS_NOTE": str(note),
        }


@dataclass
class Row:
    """A row of the table: what was planned, and what came out."""

    setup: Setup
    moment: str
    planned: int
    kills: int = 0
    resumes: int = 0
    refused: int = 0
    lost: int = 0
    differences: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Setup and moment in words."""
        setup = self.setup
        return (
            f"{setup.engine}, {setup.processes} process{'es' if setup.processes > 1 else ''}, {setup.workers} workers,"
            f" accumulation {setup.accumulation}, {setup.images}, {self.moment}"
        )


def make_photos(folder: Path) -> Path:
    """Draw pictures of colored stripes, some of which cannot be read: in a folder, and in uneven shards."""
    generator = np.random.default_rng(0)
    for index in range(NUM_PHOTOS):
        color, height, width = generator.integers(0, 255, 3), 40 + index % 7, 40 + index % 5
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:, :: 1 + index % 4] = color
        path = folder / "folder" / f"day{index % 2}" / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        if index % (NUM_PHOTOS // NUM_UNREADABLE) == 19:
            path.write_bytes(path.read_bytes()[:60])
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(folder.rglob("*.png"))]
    (folder / "shards").mkdir()
    datasets = importlib.import_module("datasets")
    ends = [0, *sorted(generator.choice(np.arange(1, NUM_PHOTOS), NUM_SHARDS - 1, replace=False)), NUM_PHOTOS]
    for number, (start, stop) in enumerate(itertools.pairwise(ends)):
        dataset = datasets.Dataset.from_dict(
            {"image": rows[start:stop]}, features=datasets.Features({"image": datasets.Image()})
        )
        dataset.to_parquet(folder / "shards" / f"{number}.parquet", batch_size=10)
    return folder


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class Start:
    """A start of the command, which may be killed.

    Args:
        setup: How it is started.
        command: Words of the command line after the program.
        folder: Folder for its output and notes.
        kill: When it is killed; None if it is not.
        program: What Python runs, if it is not `hf_simmim` or `moments.py`.
    """

    def __init__(self, setup: Setup, command: list[str], folder: Path, kill: Kill | None, program: Sequence[str] = ()):
        folder.mkdir(parents=True)
        self.setup, self.kill, self.note = setup, kill, folder / "killed.txt"
        self.log = folder / "output.txt"
        self.environment = {"CHAOS_BATCHES": str(folder / "batches"), "CHAOS_START": str(folder)}
        self.environment |= SHARDED.get(setup.engine, {})
        if kill is not None:
            self.environment |= kill.environment(self.note)
        self._program = list(program)
        self.began = time.monotonic()
        self.seconds = 0.0
        self.is_hit = False
        self.codes: dict[int, int] = {}
        self._first_death = math.inf
        # Whether a process had to be killed because it did not end after the death of another.
        self.has_clung = False
        self.is_stuck = False
        self.log.touch()
        begin = self._fork if setup.engine == "fork" else self._execute
        self.pids: list[int] = begin(command)

    @property
    def was_killed(self) -> bool:
        """Whether it died of the kill."""
        return self.is_hit or self.note.exists()

    def _execute(self, command: list[str]) -> list[int]:
        # Without a patch it is the very command.
        plain = self.kill is not None and self.kill.moment == RANDOM and self.setup.engine not in SHARDED
        program = self._program or (["-m", "hf_simmim"] if plain else [str(HERE / "moments.py")])
        if self.setup.processes > 1:
            count = str(self.setup.processes)
            program = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", count, *program]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *program, *command],
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return [self._process.pid]

    def _fork(self, command: list[str]) -> list[int]:
        sys.stdout.flush()
        sys.stderr.flush()
        pids, port = [], str(free_port())
        for rank in range(self.setup.processes):
            if self.setup.processes > 1:
                size = str(self.setup.processes)
                self.environment |= {
                    **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size},
                    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "none"},
                }
            pid = os.fork()
            if pid == 0:
                self._run_in_fork(command)
            pids.append(pid)
        return pids

    def _run_in_fork(self, command: list[str]) -> None:
        """Run the command as if this process had been started for it."""
        code = 1
        try:
            os.setsid()
            log, null = os.open(self.log, os.O_WRONLY | os.O_APPEND), os.open(os.devnull, os.O_RDONLY)
            for source, target in ((null, 0), (log, 1), (log, 2)):
                os.dup2(source, target)
            # What it prints must be there when it is killed.
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.update(self.environment)
            sys.argv = ["hf_simmim", *command]
            importlib.import_module("moments").prepare(os.environ)
            importlib.import_module("hf_simmim.__main__").main(command)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            if isinstance(error.code, str):
                print(error.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            # Ends workers, as at the end of any program.
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def finish(self, limit: float) -> Iterator[None]:
        """Wait for the end, and kill it when it is time; yields while it runs.

        Args:
            limit: Seconds after which it counts as hanging.
        """
        while not self.is_over():
            now = time.monotonic() - self.began
            if self.kill is not None and now >= self.kill.delay and not self.is_hit:
                self.hit(self.kill.target)
            if now > limit and not self.is_stuck:
                self.is_stuck = True
                self.hit("all")
            yield
        self.seconds = time.monotonic() - self.began
        if self.kill is not None and self.kill.target == "launcher":
            # Its processes notice it after a step; until then they hold the folder.
            while living([self]) and time.monotonic() - self.began < limit:
                yield from pause()

    def is_over(self) -> bool:
        """Whether all processes have ended; after a death the others are asked to end."""
        for pid in self.pids:
            if pid not in self.codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
        left = [pid for pid in self.pids if pid not in self.codes]
        if left and any(self.codes.values()):
            # As torchrun does.
            now = time.monotonic()
            if self._first_death == math.inf:
                self._first_death = now
                self._send(left, signal.SIGTERM)
            elif now - self._first_death > PATIENCE:
                self.has_clung = True
                self._send(left, signal.SIGKILL)
        return not left

    def hit(self, target: str) -> None:
        """Kill processes from outside."""
        ranks = self.pids
        if self.setup.engine != "fork" and self.setup.processes > 1:
            found = []
            with contextlib.suppress(psutil.Error):
                for process in psutil.Process(self.pids[0]).children():
                    if "RANK" in process.environ():
                        found.append((process.environ()["RANK"], process.pid))
            ranks = [pid for _, pid in sorted(found)]
            if target.startswith("rank") and len(ranks) < self.setup.processes:
                # torchrun has not started them yet.
                return
        if target.startswith("rank"):
            chosen = [ranks[int(target.removeprefix("rank "))]]
        else:
            chosen = self.pids if target == "launcher" else [*self.pids, *ranks]
        self.is_hit |= self._send([pid for pid in chosen if pid not in self.codes], signal.SIGKILL) > 0

    def _send(self, pids: Iterable[int], number: int) -> int:
        sent = 0
        for pid in dict.fromkeys(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                sent += 1
        return sent

    def text(self) -> str:
        """What it printed."""
        return self.log.read_text(errors="replace")


def pause(seconds: float = 0.3) -> Iterator[None]:
    """Let others go on for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield


def living(starts: Sequence[Start]) -> list[str]:
    """Processes of starts that still run."""
    sessions = {pid for start in starts for pid in start.pids}
    marks = {start.environment["CHAOS_START"] for start in starts if start.setup.engine != "fork"}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() == psutil.STATUS_ZOMBIE or process.pid == os.getpid():
                continue
            if os.getsid(process.pid) in sessions or (marks and process.environ().get("CHAOS_START") in marks):
                found.append(f"{process.pid} {' '.join(process.cmdline())[:80]}")
    return found


def complete_checkpoint(output_dir: Path) -> int | None:
    """Step of the newest checkpoint that has its name."""
    return max((int(path.name.split("-")[1]) for path in output_dir.glob("checkpoint-*")), default=None)


# ---- comparison ----


def without_times(state: Any) -> Any:
    """A log or metrics, without what differs between two runs of the same command."""
    if isinstance(state, dict):
        return {key: without_times(value) for key, value in state.items() if not TIMES.fullmatch(key)}
    if isinstance(state, list):
        return [without_times(value) for value in state if not (isinstance(value, dict) and SUMMARY in value)]
    return state


def unequal(one: Any, other: Any, name: str = "") -> list[str]:
    """Names of the parts in which two values differ, tensors bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [*one, *(key for key in other if key not in one)]
        return list(itertools.chain(*(unequal(one.get(key), other.get(key), f"{name}.{key}") for key in keys)))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return list(itertools.chain(*(unequal(*pair, f"{name}[{index}]") for index, pair in pairs)))
    if hasattr(one, "numpy") and hasattr(other, "numpy"):
        one, other = one.numpy(), other.numpy()
    if hasattr(one, "tobytes") and hasattr(other, "tobytes"):
        one, other = (one.shape, one.dtype, one.tobytes()), (other.shape, other.dtype, other.tobytes())
    is_same = one == other or (one != one and other != other)  # NaN
    return [] if is_same else [name.lstrip(".") or "all"]


def read(path: Path) -> Any:
    """What is compared of a file."""
    torch = importlib.import_module("torch")
    if path.suffix == ".json":
        content = without_times(json.loads(path.read_text(encoding="utf-8")))
        # Measured.
        return {key: value for key, value in content.items() if path.name != "run.json" or key != "forecast"}
    if path.suffix in (".pt", ".pth"):
        return torch.load(path, weights_only=False)
    if path.suffix == ".safetensors":
        return importlib.import_module("safetensors.numpy").load_file(path)
    if path.name == ".metadata":
        # Of a checkpoint in shards; it also holds the folder in which it was written.
        content = vars(pickle.loads(path.read_bytes()))
        return {name: str(value) for name, value in content.items() if name != "storage_meta"}
    return path.read_bytes()


def files(folder: Path) -> dict[str, Path]:
    """All files of a folder by their relative path."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def differences(whole: Path, run: Path) -> list[str]:
    """In what the folder of a killed run differs from that of an uninterrupted one."""
    expected, found = files(whole), files(run)
    result = [f"{name} is missing" for name in expected if name not in found]
    result += [f"{name} was left" for name in found if name not in expected]
    for name, path in expected.items():
        if name not in found or path.name in NOT_COMPARED or path.read_bytes() == found[name].read_bytes():
            continue
        parts = unequal(read(path), read(found[name]))
        if parts:
            result.append(f"{name} differs in {len(parts)} parts, such as {', '.join(parts[:3])}")
    return result


def batches(folders: Iterable[Path], rank: int) -> list[tuple[str, str]]:
    """Batches that a process was trained on in some starts: step and checksums."""
    paths = [folder / f"batches-{rank}.txt" for folder in folders]
    lines = [line for path in paths if path.exists() for line in path.read_text().splitlines()]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def other_batches(whole: Path, starts: Sequence[Path], processes: int) -> list[str]:
    """Steps whose batches were not those of the uninterrupted run."""
    result = []
    for rank in range(processes):
        expected, found = dict(batches([whole], rank)), batches(starts, rank)
        wrong = sorted({step for step, sums in found if expected.get(step) != sums}, key=float)
        if wrong:
            result.append(f"process {rank} read other images in {len(wrong)} batches, such as {wrong[0]}")
    return result


# ---- study ----


class Study:
    """All runs of a call of this script.

    Args:
        work: Folder for everything.
        seed: Seed of the kills.
    """

    def __init__(self, work: Path, seed: int):
        self.work, self.seed = work, seed
        self.photos = make_photos(work / "photos")
        self.moments: Any = importlib.import_module("moments")
        self.seconds: dict[Setup, float] = {}
        self.done = self.planned = 0
        self.starts: list[Start] = []

    def whole_folder(self, setup: Setup) -> Path:
        """Folder of the uninterrupted run of a setup."""
        return self.work / "-".join(map(str, ("whole", *vars(setup).values())))

    def uninterrupted(self, setup: Setup) -> Iterator[None]:
        """The run that the killed ones are compared with."""
        folder = self.whole_folder(setup)
        start = self.start(setup, folder / "run", folder / "start", None)
        yield from start.finish(limit=300)
        if any(start.codes.values()):
            raise SystemExit(f"An uninterrupted run failed, see {start.log}:\n{start.text()[-3000:]}")
        self.seconds[setup] = start.seconds
        self.tell(f"uninterrupted, {start.seconds:.1f} s", Row(setup, "", 0).title.rstrip(", "))

    def start(self, setup: Setup, output_dir: Path, folder: Path, kill: Kill | None) -> Start:
        """Start the command of a setup."""
        start = Start(setup, setup.command(self.photos, output_dir), folder, kill)
        self.starts = [*(other for other in self.starts if not other.is_over()), start]
        return start

    def end(self) -> None:
        """Kill what still runs."""
        for start in self.starts:
            if not start.is_over():
                start.hit("all")

    def tell(self, what: str, title: str) -> None:
        """Print progress."""
        print(f"[{self.done}/{self.planned} kills] {title}: {what}", file=sys.stderr, flush=True)

    def kills(self, row: Row, generator: random.Random) -> list[Kill]:
        """When a run is killed."""
        number = min(row.planned - row.kills, KILLS_PER_RUN.get(row.moment, 2))
        names = [row.moment] * number
        if row.moment == "loading":
            # Something must be there to be loaded.
            names = ["mid-step", *names][: max(2, number)]
        if row.moment == MIXED:
            beginning = ("run.json", "mid-step")
            possible = OF_SHARDED if row.setup.engine in SHARDED else self.moments.MOMENTS
            middle = [name for name in possible if name not in (*beginning, *FINAL)]
            names = [*beginning, *generator.sample(middle, max(0, number - 3)), generator.choice(FINAL)][:number]
        return [self._kill(name, row, generator) for name in names]

    def _kill(self, name: str, row: Row, generator: random.Random) -> Kill:
        setup = row.setup
        ranks = [f"rank {rank}" for rank in range(setup.processes)]
        if name == RANDOM:
            targets = ranks
            if setup.processes > 1:
                targets = [*ranks, "all", *(["launcher"] if setup.engine != "fork" else [])]
            # Importing, which nothing can go wrong in, takes most of the time of a command.
            share = generator.uniform(0.05 if setup.engine == "fork" else 0.5, 0.95)
            return Kill(name, target=generator.choice(targets), delay=share * self.seconds[setup])
        last = 1 if name in ONCE else LAST_CALLS.get(name, LAST_CALL_OF_SAVING)
        if row.moment == MIXED:
            last = math.ceil(last / 3)
        if row.moment in ("loading", MIXED) and name == "mid-step":
            # After a checkpoint.
            call = generator.randint(4, 7) * setup.accumulation
        else:
            call = generator.randint(1, last) * (setup.accumulation if name == "mid-step" else 1)
            if name == "mid-step":
                # Within the accumulation as well.
                call -= generator.randrange(setup.accumulation)
        return Kill(name, call, "rank 0" if name in self.moments.OF_WRITER else generator.choice(ranks))

    def row(self, row: Row, number: int) -> Iterator[None]:
        """Kill runs of a row until they were killed as often as planned."""
        generator = random.Random(f"{self.seed} {row.title}")
        for attempt in range(3 + row.planned):
            if row.kills >= row.planned:
                break
            folder = self.work / f"row-{number}-{attempt}"
            before = len(row.faults)
            yield from self.killed_run(row, folder, self.kills(row, generator))
            if len(row.faults) == before:
                shutil.rmtree(folder)
            else:
                row.faults[-1] += f" (see {folder})"
        if row.kills < row.planned:
            row.faults.append(f"only {row.kills} of {row.planned} kills could be made")

    def killed_run(self, row: Row, folder: Path, kills: list[Kill]) -> Iterator[None]:
        """One run, killed and repeated until it finishes, and compared."""
        setup, output_dir, whole = row.setup, folder / "run", self.whole_folder(row.setup)
        starts: list[Start] = []
        limit = 60 + 10 * self.seconds[setup]
        waiting = deque(kills)
        while True:
            kill = waiting.popleft() if waiting else None
            newest = complete_checkpoint(output_dir)
            start = self.start(setup, output_dir, folder / f"start-{len(starts)}", kill)
            starts.append(start)
            begun = time.monotonic()
            yield from start.finish(limit)
            if kill is not None and newest is None and not start.was_killed:
                # The machine is faster now than when the time of a whole run was measured.
                self.seconds[setup] = min(self.seconds[setup], time.monotonic() - begun)
            row.resumes += len(starts) > 1
            text = start.text()
            row.refused += len(set(re.findall(r"checkpoint-\d+ is skipped", text)))
            self.check_resumed(row, start, text, newest)
            if start.has_clung:
                row.faults.append(f"a process did not end by itself, see {start.log}")
            if start.is_stuck:
                row.lost += 1
                row.faults.append(f"a start did not end within {limit:.0f} s, see {start.log}")
                return
            if start.was_killed:
                row.kills += 1
                self.done += 1
                self.tell(f"killed {kill}", row.title)
                continue
            if any(start.codes.values()):
                row.lost += 1
                row.faults.append(f"a start failed: {text.strip().splitlines()[-1][:300] if text.strip() else '?'}")
                return
            break
        found = differences(whole / "run", output_dir)
        found += other_batches(whole / "start", [start.note.parent for start in starts], setup.processes)
        row.differences += len(found)
        row.faults += found if len(found) <= MAX_SHOWN else [*found[:MAX_SHOWN], f"and {len(found) - MAX_SHOWN} more"]
        end = time.monotonic() + WORKERS_PATIENCE
        while (left := living(starts)) and time.monotonic() < end:
            yield from pause()
        row.faults += [f"a process survived: {name}" for name in left]

    def check_resumed(self, row: Row, start: Start, text: str, newest: int | None) -> None:
        """A start must resume from the newest checkpoint."""
        match = re.search(r"resuming from checkpoint-(\d+)", text)
        is_planned = "Weights" in text
        if is_planned and newest != (int(match[1]) if match else None):
            row.lost += 1
            row.faults.append(f"checkpoint-{newest} was there, but the start was {match[0] if match else 'new'}")

    def compare_setups(self) -> list[str]:
        """Engines and numbers of workers must not change an uninterrupted run."""
        first: dict[tuple[str, int, int, str], Setup] = {}
        result = []
        for setup in self.seconds:
            kind = setup.engine if setup.engine in SHARDED else ""
            other = first.setdefault((kind, setup.processes, setup.accumulation, setup.images), setup)
            if other != setup:
                found = differences(self.whole_folder(other) / "run", self.whole_folder(setup) / "run")
                result += [f"{setup} against {other}, both uninterrupted: {text}" for text in found]
        return result


def advance(work: Iterable[Iterator[None]], jobs: int) -> None:
    """Advance some of many generators at a time, until all have ended."""
    waiting, active = deque(work), list[Iterator[None]]()
    while waiting or active:
        while waiting and len(active) < jobs:
            active.append(waiting.popleft())
        for one in list(active):
            try:
                next(one)
            except StopIteration:
                active.remove(one)
        time.sleep(0.005)


def plan(num_kills: int, seed: int, moments: Sequence[str], only: dict[str, set[str]]) -> list[Row]:
    """Spread kills over setups and moments, so that each moment comes in several setups.

    Args:
        num_kills: Number of kills.
        seed: Seed of the order.
        moments: Names of all moments.
        only: Values that are allowed, by the name of a column.

    Returns:
        The rows of the table.
    """

    def is_allowed(**values: Any) -> bool:
        return all(str(value) in only.get(name, {str(value)}) for name, value in values.items())

    generator = random.Random(seed)
    forks = [Setup("fork", *counts) for counts in itertools.product((1, 2), (0, 2), (1, 4))]
    forks += [Setup("fork", processes, workers, 1, "shards") for processes, workers in ((1, 0), (1, 2), (2, 2))]
    commands = [Setup("command", 1, 0, 1), Setup("command", 2, 2, 4), Setup("command", 2, 2, 1, "shards")]
    sharded = [Setup("fsdp2", 2, 0, 1), Setup("fsdp2_async", 2, 2, 4, "shards")]
    if importlib.util.find_spec("deepspeed") is not None:
        sharded.append(Setup("zero2", 2, 0, 1))
    generator.shuffle(forks)
    # Whatever the seed, the random times come among the first.
    names = [RANDOM, MIXED, *generator.sample(moments, len(moments))]
    names.insert(len(names) // 2, RANDOM)
    if math.gcd(len(names), len(forks)) > 1:
        # No common divisor, so that every moment meets every setup.
        names.append(RANDOM)
    pairs = [(setup, moment) for setup, other in zip(commands, names[2:5], strict=True) for moment in (RANDOM, other)]
    pairs += [(setup, moment) for setup in sharded for moment in (RANDOM, MIXED)]
    pairs += [(forks[index % len(forks)], names[index % len(names)]) for index in range(len(forks) * len(names))]
    if only:
        # What is asked for may be none of those pairs.
        pairs = list(itertools.product([*forks, *commands], dict.fromkeys(names)))
        pairs += itertools.product(sharded, (RANDOM, MIXED, *OF_SHARDED))
    rows, left = [], num_kills
    for setup, moment in pairs:
        if left > 0 and is_allowed(moment=moment, **vars(setup)):
            row = Row(setup, moment, min(left, KILLS_PER_RUN.get(moment, 2)))
            rows.append(row)
            left -= row.planned
    while rows and left > 0:
        for row in rows:
            row.planned += left > 0
            left -= left > 0
    return rows


def machine() -> str:
    """Processor and versions."""
    versions = {name: importlib.import_module(name).__version__ for name in ("torch", "transformers", "safetensors")}
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}, {names}"


def table(titles: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    rows = [titles, ["---"] * len(titles), *lines]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


COLUMNS = ("engine", "processes", "workers", "accumulation", "images", "moment")
COUNTS = ("kills", "resumes", "refused", "lost", "differences")


def report(rows: Sequence[Row]) -> str:
    """The table of all rows, and that of the moments."""
    titles = ("moment", *COUNTS[:2], "checkpoints refused", "runs lost", "differences")
    everything = [(*vars(row.setup).values(), row.moment, *(getattr(row, name) for name in COUNTS)) for row in rows]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.moment, []).append(row)
    groups["all"] = list(rows)
    summary = [
        (name, len(group), *(sum(getattr(row, count) for row in group) for count in COUNTS))
        for name, group in groups.items()
    ]
    return table((*COLUMNS[:-1], *titles), everything) + "\n\n" + table((titles[0], "rows", *titles[1:]), summary)


def main() -> int:
    """Run the study; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="number of kills (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="seed of moments and times (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time (default: 2)")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="COLUMN=VALUE",
        help="only such rows of the table, as processes=1 moment=rotation",
    )
    arguments = parser.parse_args()
    # Before torch is imported.
    os.environ.update(ENVIRONMENT)
    sys.path[:0] = [str(HERE), str(SOURCE)]
    for name in ("moments", "torch", "hf_simmim.__main__", "hf_simmim.cli.pretrain"):
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)

    only: dict[str, set[str]] = {}
    for word in arguments.only:
        column, _, value = word.partition("=")
        if column not in COLUMNS:
            parser.error(f"--only {word}: there is no column {column!r}. Use one of: {', '.join(COLUMNS)}.")
        only.setdefault(column, set()).add(value)
    rows = plan(arguments.kills, arguments.seed, list(importlib.import_module("moments").MOMENTS), only)
    if not rows:
        parser.error("no row fits --only.")
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="kill_and_resume-"))
    study = Study(work, arguments.seed)
    study.planned = sum(row.planned for row in rows)
    try:
        advance(map(study.uninterrupted, dict.fromkeys(row.setup for row in rows)), arguments.jobs)
        advance((study.row(row, number) for number, row in enumerate(rows)), arguments.jobs)
    finally:
        study.end()
    faults = study.compare_setups()
    for row in rows:
        faults += [f"{row.title}: {text}" for text in row.faults]

    print(report(rows))
    minutes = (time.monotonic() - began) / 60
    print(f"\n{machine()}; seed {arguments.seed}, {minutes:.1f} minutes.")
    if faults:
        print(f"\n{len(faults)} faults; the files are in {work}.", *faults, sep="\n")
        return 1
    print("Nothing differs, nothing was left, and no process survived.")
    shutil.rmtree(work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
