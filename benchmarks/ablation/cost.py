"""Cost of the prediction heads: parameters, time of a training step and peak memory."""

import csv
import gc
import multiprocessing
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from ..measuring import seconds
from .data import ImageData
from .grid import Row
from .settings import Settings
from .train import build_model, draw_masks

COSTS = "costs.csv"
WARM_UP_ROUNDS = 2
ROUNDS = 10


@dataclass(frozen=True)
class Cost:
    """Cost of a row.

    Args:
        row: Name of the row.
        parameters: Number of parameters of encoder and head.
        step_ratio: Time of a training step relative to the baseline, median over the rounds.
        step_ratio_min: Minimum over the rounds.
        step_ratio_max: Maximum over the rounds.
        memory: Peak memory in bytes of building the model and two training steps; None if not measured.
    """

    row: str
    parameters: int
    step_ratio: float
    step_ratio_min: float
    step_ratio_max: float
    memory: float | None


def measure_heads(
    rows: dict[str, Row], settings: Settings, data: ImageData, dtype: torch.dtype, device: str, rounds: int = ROUNDS
) -> list[Cost]:
    """Time rows against the baseline, alternating in one process, so that drift of the machine cancels.

    Args:
        rows: Rows by name, including `"baseline"`.
        settings: Settings of batch size and encoder.
        data: The images, on the CPU.
        dtype: float32, or another dtype for autocast.
        device: `"cpu"` or `"cuda"`.
        rounds: Number of times that each row is timed.

    Returns:
        Costs, in the order of the rows.
    """
    memory = {name: _peak_memory(row, settings, data, dtype, device) for name, row in rows.items()}
    data = data.to(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the runs
    steps = {name: make_step(row, settings, data, dtype) for name, row in rows.items()}
    times: dict[str, list[float]] = {name: [] for name in rows}
    for index in range(WARM_UP_ROUNDS + rounds):
        for name in sorted(steps, reverse=index % 2 == 1):
            times[name].append(seconds(steps[name][0], device))
    torch.set_num_threads(threads)
    costs = []
    for name in rows:
        pairs = list(zip(times[name], times["baseline"], strict=True))[WARM_UP_ROUNDS:]
        ratios = [mine / baseline for mine, baseline in pairs]
        costs.append(Cost(name, steps[name][1], statistics.median(ratios), min(ratios), max(ratios), memory[name]))
    return costs


def make_step(row: Row, settings: Settings, data: ImageData, dtype: torch.dtype) -> tuple[Callable[[], None], int]:
    """Build a function that trains a row's model for one step, and count the model's parameters."""
    model = build_model(row, settings, data, seed=0).train()
    device = data.images.device
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    pixel_values = data.normalize(data.images[: settings.batch_size])
    mask = draw_masks(row, model.config, len(pixel_values), torch.Generator(device).manual_seed(0))

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = model(pixel_values, bool_masked_pos=mask).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, sum(parameter.numel() for parameter in model.parameters())


def _peak_memory(row: Row, settings: Settings, data: ImageData, dtype: torch.dtype, device: str) -> float | None:
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        on_device = data.to(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step, _ = make_step(row, settings, on_device, dtype)
        step()
        step()
        return torch.cuda.max_memory_allocated() - before
    if not Path("/proc/self/clear_refs").exists():
        return None
    # A new process for each: memory that an earlier model freed would not be counted again.
    batch = ImageData(data.name, *(part[: settings.batch_size].clone() for part in (data.images, data.labels) * 2))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_resident, (row, settings, batch, dtype))


def _peak_resident(row: Row, settings: Settings, data: ImageData, dtype: torch.dtype) -> float:
    """Growth of the resident set of this process, in bytes."""
    torch.set_num_threads(1)
    # Writing 5 resets the peak to the current size.
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    step, _ = make_step(row, settings, data, dtype)
    step()
    step()
    return _peak() - before


def _peak() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def write_costs(folder: Path, costs: list[Cost]) -> None:
    """Write the costs next to the results."""
    with (folder / COSTS).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [item.name for item in fields(Cost)])
        writer.writeheader()
        writer.writerows(asdict(cost) for cost in costs)


def read_costs(folder: Path) -> dict[str, Cost]:
    """Costs by name of the row; empty if none was measured."""
    path = folder / COSTS
    if not path.exists():
        return {}
    costs = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            numbers = {item.name: float(line[item.name]) if line[item.name] else None for item in fields(Cost)[2:]}
            costs[line["row"]] = Cost(line["row"], int(line["parameters"]), **numbers)  # type: ignore[arg-type]
    return costs
