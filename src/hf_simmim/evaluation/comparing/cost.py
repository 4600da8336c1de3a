"""What runs cost: minutes by the clock, and energy where the machine measures it."""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

COST_FILE = "cost.json"
# Seconds between two readings: a run that is killed loses less than this, and counters do not overflow in between.
INTERVAL = 20.0
POWERCAP = Path("/sys/class/powercap")

# Joules of a source, ever increasing but for an overflow, and the joules at which it starts again (None if never).
Counter = tuple[Callable[[], float], float | None]


@dataclass(frozen=True)
class Cost:
    """What was spent.

    Args:
        seconds: Time by the clock; None if it was not measured.
        joules: Energy by source, `"processors"` and `"GPUs"`, of those that were measured.
    """

    seconds: float | None = None
    joules: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: "Cost") -> "Cost":
        """The sum; it is unknown if a part is."""
        if self.seconds is None or other.seconds is None:
            return Cost()
        shared = self.joules.keys() & other.joules.keys()
        return Cost(self.seconds + other.seconds, {name: self.joules[name] + other.joules[name] for name in shared})

    def minutes(self) -> str:
        """Minutes as text, such as "12.3 min"; "not measured" if unknown."""
        return "not measured" if self.seconds is None else f"{self.seconds / 60:.1f} min"

    def energy(self) -> str:
        """Energy as text, such as "0.12 kWh (processors)"; empty if it was not measured."""
        return (
            f"{sum(self.joules.values()) / 3.6e6:.2g} kWh ({' and '.join(sorted(self.joules))})" if self.joules else ""
        )


def read_cost(folder: Path) -> Cost:
    """Read what a run cost.

    Args:
        folder: Folder of the run.

    Returns:
        The cost, unknown if there is no file.
    """
    try:
        stored = json.loads((folder / COST_FILE).read_text(encoding="utf-8"))
        return Cost(float(stored["seconds"]), {str(name): float(value) for name, value in stored["joules"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Cost()


def training_cost(folder: Path) -> Cost:
    """Cost of a training: as it was measured, else the time that its log tells; unknown if there is neither.

    Trainer measures the last session alone. Steps before a run resumed are added by the speeds that were logged,
    without evaluations.

    Args:
        folder: Folder of the training.

    Returns:
        The cost; by the log without energy, and unknown as well if the speed before a run resumed is.
    """
    measured = read_cost(folder)
    if measured.seconds is not None:
        return measured
    try:
        log = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        last = [entry for entry in log if "train_runtime" in entry][-1]
        seconds = float(last["train_runtime"])
        if "train_steps_per_second" not in last:
            return Cost(seconds)
        resumed = last["step"] - seconds * last["train_steps_per_second"]
        # The speed has three decimals.
        slack = 0.5 + 0.0005 * seconds
        if resumed < slack:
            return Cost(seconds)
        images = json.loads((folder / "run.json").read_text(encoding="utf-8"))["images_per_step"]
        done = 0
        for entry in log:
            if entry.get("images_per_second") and entry["step"] < resumed + slack:
                seconds += (entry["step"] - done) * images / entry["images_per_second"]
                done = entry["step"]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return Cost()
    return Cost(seconds) if done else Cost()


def processor_counters(powercap: Path = POWERCAP) -> list[Counter]:
    """Energy counters of the processors of this machine (RAPL), other jobs on it included.

    Args:
        powercap: Folder of Linux's power capping framework.

    Returns:
        The counters of all packages; none if there are none, or they may not be read.
    """
    counters: list[Counter] = []
    try:
        for zone in sorted(powercap.glob("*-rapl:*")):
            # Cores and memory are subzones of their package.
            if zone.name.count(":") == 1 and (zone / "name").read_text().startswith("package"):
                path, largest = zone / "energy_uj", float((zone / "max_energy_range_uj").read_text()) / 1e6
                counters.append((lambda path=path: float(path.read_text()) / 1e6, largest))  # type: ignore[misc]
                counters[-1][0]()
    except (OSError, ValueError):
        return []
    return counters


def gpu_counters() -> list[Counter]:
    """Energy counters of the GPUs that torch sees, by NVML.

    Returns:
        The counters; none without GPUs, without `pynvml`, or if they may not be read.
    """
    import torch

    if not torch.cuda.is_available():
        return []
    counters: list[Counter] = []
    try:
        import pynvml

        pynvml.nvmlInit()
        for index in range(torch.cuda.device_count()):
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
            counters.append((lambda handle=handle: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, None))  # type: ignore[misc]
            counters[-1][0]()
    except Exception:
        return []
    return counters


def find_counters() -> dict[str, list[Counter]]:
    """Energy counters of this machine by source; sources without any are left out."""
    found = {"processors": processor_counters(), "GPUs": gpu_counters()}
    return {name: counters for name, counters in found.items() if counters}


class CostMeter:
    """Measures time and energy while it is entered, and adds them to the `cost.json` of a folder every 20 seconds.

    Args:
        folder: Folder of the run.
        counters: Energy counters by source, see `find_counters`.
        clock: Function that returns seconds.
        interval: Seconds between two readings.
    """

    def __init__(
        self,
        folder: Path,
        counters: Mapping[str, Sequence[Counter]],
        clock: Callable[[], float] = time.monotonic,
        interval: float = INTERVAL,
    ):
        self.path, self.counters, self.clock, self.interval = folder / COST_FILE, counters, clock, interval
        before = read_cost(folder)
        self.seconds = before.seconds or 0.0
        # A source that was not measured from the beginning is left out.
        names = counters if before.seconds is None else counters.keys() & before.joules.keys()
        self.joules = {name: before.joules.get(name, 0.0) for name in names}
        self._lock, self._ended = threading.Lock(), threading.Event()

    def __enter__(self) -> "CostMeter":
        """Start to measure."""
        self._time, self._readings = self.clock(), self._read()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop, and write what was spent."""
        self._ended.set()
        self._thread.join()
        self.sample()

    def sample(self) -> None:
        """Add what was spent since the last reading, and write the file."""
        with self._lock:
            now, readings = self.clock(), self._read()
            self.seconds += now - self._time
            for name in list(self.joules):
                spent = 0.0
                pairs = zip(self.counters[name], self._readings.get(name, ()), readings.get(name, ()), strict=False)
                for (_, largest), before, after in pairs:
                    spent += after - before + (largest or 0.0) * (after < before)
                self.joules[name] += spent
            for name in self.joules.keys() - readings.keys():
                del self.joules[name]
            self._time, self._readings = now, readings
            part = self.path.with_suffix(".part")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({"seconds": self.seconds, "joules": self.joules}), encoding="utf-8")
            part.replace(self.path)

    def _read(self) -> dict[str, list[float]]:
        found = {}
        for name, counters in self.counters.items():
            try:
                found[name] = [read() for read, _ in counters]
            except Exception:
                continue
        return found

    def _run(self) -> None:
        while not self._ended.wait(self.interval):
            try:
                self.sample()
            except OSError:
                # A full disk must not end a training; the next reading tries again.
                continue


def cost_table(costs: Mapping[str, Mapping[str, Cost]]) -> str:
    """Markdown table of minutes, by arm and step, and of the energy where it was measured.

    Args:
        costs: Cost by arm and step; a step that an arm does not have is left out.

    Returns:
        The table.
    """
    steps = list(dict.fromkeys(step for parts in costs.values() for step in parts))
    lines = [f"| minutes | {' | '.join(steps)} | total | energy |", f"| --- |{' ---: |' * (len(steps) + 2)}"]
    for arm, parts in costs.items():
        cells = [_minutes(parts[step]) if step in parts else "none" for step in steps]
        total = total_cost(parts)
        lines.append(f"| {arm} | {' | '.join(cells)} | {_minutes(total)} | {total.energy() or 'not measured'} |")
    return "\n".join(lines)


def cost_sentences(costs: Mapping[str, Mapping[str, Cost]]) -> list[str]:
    """Sentences on minutes and energy of each arm.

    Args:
        costs: Cost by arm and step.

    Returns:
        A sentence for each arm, and one that says whether the energy was measured.
    """
    lines = []
    for arm, parts in costs.items():
        total = total_cost(parts)
        steps = ", ".join(f"{step} {cost.minutes()}" for step, cost in parts.items())
        energy = f", {total.energy()}" if total.energy() else ""
        lines.append(f"Cost, {arm}: {total.minutes()}{energy} ({steps}).")
    totals: list[Any] = [total_cost(parts) for parts in costs.values()]
    if not all(total.energy() for total in totals):
        lines.append("Energy not measured: that needs counters that may be read (RAPL of processors, NVML of GPUs).")
    return lines


def total_cost(parts: Mapping[str, Cost]) -> Cost:
    """Sum of the costs of all steps of an arm; unknown if a part is, or there are none.

    Args:
        parts: Cost by step.

    Returns:
        The sum.
    """
    total = Cost(0.0, dict.fromkeys(next(iter(parts.values())).joules, 0.0)) if parts else Cost()
    for cost in parts.values():
        total += cost
    return total


def _minutes(cost: Cost) -> str:
    return "not measured" if cost.seconds is None else f"{cost.seconds / 60:.1f}"
