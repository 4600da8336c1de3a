"""What the prediction heads cost: parameters, time of a training step and peak memory."""

import csv
import gc
import multiprocessing
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from ..swin_speed import seconds
from .data import ImageData
from .grid import Row
from .settings import Settings
from .train import build_model, draw_masks

COSTS = "costs.csv"
WARM_UP_ROUNDS = 2
ROUNDS = 10


@dataclass(frozen=True)
class Cost:
    """What a row costs.

    Args:
        row: Its name.
        parameters: Of encoder and head.
        step_ratio: Time of a training step over that of the baseline, median of the rounds.
        step_ratio_min: Least of the rounds.
        step_ratio_max: Greatest of the rounds.
        memory: Bytes that building the model and two training steps add at their peak; None if not measured.
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
    """Time rows against the baseline, in one process and in turns, so that drift of the machine cancels.

    Args:
        rows: Name to row, `"baseline"` among them.
        settings: For the batch and the encoder.
        data: The images, on the CPU.
        dtype: float32, or another for autocast.
        device: `"cpu"` or `"cuda"`.
        rounds: How often each is timed.

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
    """A function that trains a row's model for one step, and the model's number of parameters."""
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
    # A fresh process for each: what an earlier model gave back is not counted again.
    batch = ImageData(data.name, *(part[: settings.batch_size].clone() for part in (data.images, data.labels) * 2))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_resident, (row, settings, batch, dtype))


def _peak_resident(row: Row, settings: Settings, data: ImageData, dtype: torch.dtype) -> float:
    """Growth of this process's resident set, in bytes."""
    torch.set_num_threads(1)
    # Writing 5 sets the peak back to the present size.
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
    """Keep the costs beside the results."""
    with (folder / COSTS).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [item.name for item in fields(Cost)])
        writer.writeheader()
        writer.writerows(asdict(cost) for cost in costs)


def read_costs(folder: Path) -> dict[str, Cost]:
    """Name of a row to its cost; empty if none was measured."""
    path = folder / COSTS
    if not path.exists():
        return {}
    costs = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            numbers = {item.name: float(line[item.name]) if line[item.name] else None for item in fields(Cost)[2:]}
            costs[line["row"]] = Cost(line["row"], int(line["parameters"]), **numbers)  # type: ignore[arg-type]
    return costs
