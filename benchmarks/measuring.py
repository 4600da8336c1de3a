"""What all benchmarks repeat: facts of the machine, times that alternate, and a line of results."""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.distributed._tools.mem_tracker import MemTracker

from hf_simmim.model.plain_layers import MULTIPLIES_BFLOAT16

RESULTS = Path(__file__).parent / "results"
WARM_UP_ROUNDS = 3


def linux_field(path: str, name: str) -> str:
    """A line of /proc, such as `model name` of /proc/cpuinfo."""
    return next(line.split(":")[1].strip() for line in Path(path).read_text().splitlines() if line.startswith(name))


def machine(device: str) -> dict[str, Any]:
    """What every result has to say of the machine and of versions.

    Args:
        device: `"cpu"` or `"cuda"`.

    Returns:
        Names and values for a line of results.
    """
    name = torch.cuda.get_device_name() if device == "cuda" else linux_field("/proc/cpuinfo", "model name")
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def is_emulated(dtype: str, device: str) -> bool:
    """Whether a processor only emulates a dtype, which is so slow that no training uses it; says so if it does.

    Args:
        dtype: `"float32"` or `"bfloat16"`.
        device: `"cpu"` or `"cuda"`.

    Returns:
        Whether it does.
    """
    emulates = dtype == "bfloat16" and device == "cpu" and not MULTIPLIES_BFLOAT16
    if emulates:
        print("Not measured: this processor has no instructions for bfloat16.")
    return emulates


def seconds(step: Callable[[], Any], device: str) -> float:
    """Time of one step in seconds; on CUDA the mean of several, with one synchronization."""
    repeats = 10 if device == "cuda" else 1
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    torch.get_device_module(device).synchronize()
    return (time.perf_counter() - start) / repeats


def peak_memory(step: Callable[[], Any], device: str, whole: bool = False) -> float:
    """Peak memory of a step in MiB.

    Args:
        step: Runs a step.
        device: `"cpu"` or `"cuda"`.
        whole: Whether to count what is held before the step, too.

    Returns:
        Allocated memory of a GPU, or the resident set of this process.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before * (not whole)) / 2**20
    # Writing 5 resets the peak of this process to its current size.
    Path("/proc/self/clear_refs").write_text("5")
    before = int(linux_field("/proc/self/status", "VmHWM").split()[0])
    for _ in range(2):
        step()
    return (int(linux_field("/proc/self/status", "VmHWM").split()[0]) - before * (not whole)) / 2**10


def peak_tensors(step: Callable[[], Any], *held: Any) -> float:
    """Largest size that all tensors have together in a step on a processor, in MiB.

    What the allocator holds beyond them, and code, count in `peak_memory` alone. On a GPU its two are nearly the same.

    Args:
        step: Runs a step, without compiled code.
        *held: Models, optimizers and tensors that are there before.

    Returns:
        The size.
    """
    tracker = MemTracker()
    tracker.track_external(*held)
    with tracker:
        step()
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"] / 2**20


def alternate(
    steps: dict[str, Callable[[], float]], rounds: int, warm_up: int = WARM_UP_ROUNDS
) -> dict[str, list[float]]:
    """Time steps one after the other in every round, so that drift of the machine cancels.

    Args:
        steps: By name, a function that runs a step and returns its time in seconds.
        rounds: Number of rounds that count.
        warm_up: Number of rounds before them.

    Returns:
        The times of each step.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(warm_up + rounds):
        for name in list(steps)[:: 1 if index % 2 else -1]:
            times[name].append(steps[name]())
    return {name: values[warm_up:] for name, values in times.items()}


def ratio(slower: list[float], faster: list[float]) -> dict[str, float]:
    """How many times as fast `faster` is, round by round: median, minimum and maximum."""
    ratios = [mine / other for mine, other in zip(slower, faster, strict=True)]
    return {"median": round(statistics.median(ratios), 3), "min": round(min(ratios), 3), "max": round(max(ratios), 3)}


def write_result(name: str, result: dict[str, Any]) -> None:
    """Append a line to benchmarks/results/NAME.jsonl.

    Args:
        name: Name of the benchmark.
        result: What was measured, with the facts of `machine`.
    """
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / f"{name}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")


def complete_lines(path: Path) -> list[str]:
    """Read the lines of a file of results; an incomplete one of a killed run is dropped, also from the file.

    Args:
        path: The file, which need not exist.

    Returns:
        The lines.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return whole.splitlines()
