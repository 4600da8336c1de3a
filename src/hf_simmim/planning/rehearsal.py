"""A rehearsal of some training steps, on copies: how fast they are and what memory they take, before the first one."""

import contextlib
import copy
import gc
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.data import DataLoader

from ..data.masked_images import MaskedImageDataset
from ..data.transforms import normalize
from ..training.acceleration import OF_A_STEP, change_blocks, faster_kernels, keep_freed_memory, prepare_to_fork
from ..training.image_samples import COMPARED_IMAGES
from ..training.optimization import create_optimizers, images_per_step, planned_steps
from ..visualization.plots import plot_losses

# Steps that are not timed: memory is allocated, and workers start.
NUM_WARMUP, NUM_STEPS, MAX_SECONDS = 2, 20, 12.0
# Watts that a processor core and a GPU are assumed to take, where nothing measures them.
CORE_WATTS, GPU_WATTS = 10.0, 350.0
# Seconds from the command to the first step, and for the files of a save.
START_SECONDS, SAVE_SECONDS = 8.0, 0.5
# Pictures of an evaluation: the losses, and reconstructions or the spectrum of the features.
NUM_PICTURES = 2
# Bytes that stay after evaluations on a processor: Matplotlib and its pictures, and the heap between them that steps do
# not fit in any more, and pages that workers no longer share; for all images of `benchmarks/plan_check.py` alike.
EVALUATION_MEMORY, EVALUATION_PAGES = 80_000_000, 20_000_000


@dataclass(frozen=True)
class Rehearsal:
    """What some steps took.

    Args:
        step_seconds: Seconds of an update, with all of its accumulated batches.
        images_per_second: Images over all devices, in training.
        evaluation_images_per_second: Images of one device, in evaluation.
        memory: Bytes at most: of the device if it is a GPU, else of the process with its workers.
        workers: Bytes of these that the workers hold; 0 of a GPU.
        first_seconds: Seconds of the steps before those that are timed; compilation is among them.
        picture_seconds: Seconds that a picture takes.
    """

    step_seconds: float
    images_per_second: float
    evaluation_images_per_second: float
    memory: int
    workers: int = 0
    first_seconds: float = 0.0
    picture_seconds: float = 0.0

    def evaluation_seconds(self, num_evaluated: int, arguments: Any) -> float:
        """Seconds of an evaluation: all validation images, as many training images, features of both, and pictures.

        Args:
            num_evaluated: Number of validation images.
            arguments: Training arguments.

        Returns:
            The seconds.
        """
        compared = getattr(arguments, "compared_images", COMPARED_IMAGES)
        images = num_evaluated + min(num_evaluated, compared) + min(num_evaluated, 2 * compared)
        rate = self.evaluation_images_per_second * max(1, arguments.world_size)
        return images / rate + NUM_PICTURES * self.picture_seconds

    def compiling_pays(self, compiled: "Rehearsal", num_steps: int) -> bool:
        """Whether a training is shorter with compiled blocks, the time of compiling them included.

        Args:
            compiled: What steps took with compiled blocks.
            num_steps: Steps of the training.

        Returns:
            Whether it is.
        """
        return compiled.first_seconds + num_steps * compiled.step_seconds < num_steps * self.step_seconds


@dataclass(frozen=True)
class Forecast:
    """What a training will take.

    Args:
        images_per_second: Training images over all devices, by the time with evaluations and saves.
        hours: From the command to the end, with evaluations and saves.
        memory: Bytes at most.
        disk: Bytes of checkpoints and results at most.
        kilowatt_hours: Energy, at an assumed power.
    """

    images_per_second: float
    hours: float
    memory: int
    disk: int
    kilowatt_hours: float

    def __str__(self) -> str:
        return (
            f"{rough_time(self.hours)} at {self.images_per_second:,.0f} images/s, {size(self.memory)} of memory,"
            f" {size(self.disk)} of disk, about {self.kilowatt_hours:.2g} kWh"
        )

    def as_dict(self) -> dict[str, float]:
        """The figures, for `run.json`."""
        return asdict(self)


def rough_time(hours: float) -> str:
    """Format a time."""
    minutes = hours * 60
    if minutes < 1:
        return f"{minutes * 60:.0f} s"
    if minutes < 100:
        return f"{minutes:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def size(num_bytes: float) -> str:
    """Format a number of bytes."""
    digits = 1 if num_bytes >= 1e10 else 2
    return f"{num_bytes / 1e9:.{digits}f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def rehearse(
    model: Any,
    dataset: MaskedImageDataset,
    arguments: Any,
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    processor: Any,
    num_steps: int = NUM_STEPS,
) -> Rehearsal:
    """Run some steps as the training will, with copies of model and optimizer, and leave no trace in random states.

    Args:
        model: The model, which is not changed.
        dataset: Training images.
        arguments: Training arguments.
        collate: Function that makes a batch.
        processor: Image processor, which normalizes on the device.
        num_steps: Number of timed updates at most; fewer if they take longer than MAX_SECONDS.

    Returns:
        What they took.

    Raises:
        torch.OutOfMemoryError: If the batch does not fit the device.
        ValueError: If the model has no blocks to compile or to compute again, and the arguments ask for that.
    """
    device, accumulation = arguments.device, arguments.gradient_accumulation_steps
    if device.type == "cpu":
        # As the training does, which is faster then, and takes another amount of memory.
        keep_freed_memory()
    dtype = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    needed = (NUM_WARMUP + num_steps) * accumulation * arguments.per_device_train_batch_size
    keys = list(itertools.islice(itertools.cycle(range(len(dataset))), needed))
    with torch.random.fork_rng(), faster_kernels(), contextlib.ExitStack() as at_the_end:
        copied = copy.deepcopy(model).to(device).train()
        change_blocks(copied, arguments)
        if arguments.gradient_checkpointing:
            copied.gradient_checkpointing_enable(arguments.gradient_checkpointing_kwargs)
        optimizer, _ = create_optimizers(copied, arguments, num_steps)
        loader = DataLoader(
            dataset,
            batch_size=arguments.per_device_train_batch_size,
            sampler=keys,  # type: ignore[arg-type]
            collate_fn=collate,
            num_workers=arguments.dataloader_num_workers,
        )
        if arguments.dataloader_num_workers:
            at_the_end.callback(gc.unfreeze)
            prepare_to_fork(device.type)
        batches = iter(loader)
        started, count, first_seconds = time.perf_counter(), -NUM_WARMUP, 0.0
        while count < num_steps and (count < 2 or time.perf_counter() - started < MAX_SECONDS):
            if count == 0:
                first_seconds = time.perf_counter() - started
                started = time.perf_counter()
            for _ in range(accumulation):
                inputs = _inputs(next(batches), processor, device)
                with _autocast(device, dtype):
                    loss = copied(**inputs, **OF_A_STEP).loss
                (loss / accumulation).backward()
            optimizer.step()
            optimizer.zero_grad()
            _wait(device)
            count += 1
        step_seconds = (time.perf_counter() - started) / max(1, count)
        workers = 0 if device.type == "cuda" else process_memory() - psutil.Process().memory_info().rss
        evaluated = _evaluation_speed(copied, inputs, device, dtype)
        memory = peak_memory(device)
        del batches, loader, copied, optimizer, loss, inputs
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    speed = images_per_step(arguments) / step_seconds
    return Rehearsal(step_seconds, speed, evaluated, memory, workers, first_seconds, _picture_seconds())


def _inputs(batch: dict[str, Any], processor: Any, device: torch.device) -> dict[str, torch.Tensor]:
    batch = {key: value.to(device) for key, value in batch.items() if isinstance(value, torch.Tensor)}
    pixels = normalize(batch["pixel_values"], processor.image_mean, processor.image_std, processor.rescale_factor)
    return batch | {"pixel_values": pixels}


def _autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _evaluation_speed(model: Any, inputs: dict[str, torch.Tensor], device: torch.device, dtype: Any) -> float:
    model.eval()
    with torch.inference_mode(), _autocast(device, dtype):
        model(**inputs)
        _wait(device)
        started = time.perf_counter()
        model(**inputs)
        _wait(device)
    return len(inputs["pixel_values"]) / max(1e-9, time.perf_counter() - started)


def _picture_seconds() -> float:
    """Seconds of a plot of losses, once Matplotlib is there."""
    log = [{"step": step, "loss": 1.0, "eval_loss": 1.0, "eval_masked_l1": 1.0} for step in range(20)]
    seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            started = time.perf_counter()
            plot_losses(log, Path(folder) / "loss_curve.png")
            seconds = time.perf_counter() - started
    return seconds


def process_memory() -> int:
    """Bytes that this process and its workers hold in memory, where what they share counts once."""
    process = psutil.Process()
    children = process.children(recursive=True)
    try:
        own = _rollup(process.pid)
        # What workers share with each other, but no longer with this process, is theirs, too.
        total = own["Rss"] - own["Anonymous"] + own["Pss_Anon"]
        parts = [_rollup(child.pid) for child in children if child.is_running()]
        return total + sum(part["Pss_Anon"] + part["Pss_Shmem"] for part in parts)
    except (OSError, KeyError, ValueError, psutil.Error):  # not Linux, or a worker has just ended
        pass
    total = process.memory_info().rss
    for child in children:
        with contextlib.suppress(psutil.Error):
            total += getattr(child.memory_full_info(), "uss", child.memory_info().rss)
    return total


def _rollup(process: int) -> dict[str, int]:
    """Bytes by kind of memory of a process of Linux."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    return {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}


def peak_memory(device: torch.device) -> int:
    """Bytes in use at most: of a GPU, or of this process since its start, with the workers that it has now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    own = psutil.Process().memory_info().rss
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        own = max(own, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    return own + process_memory() - psutil.Process().memory_info().rss


def folder_size(folder: str | Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def forecast(
    rehearsal: Rehearsal, model: Any, arguments: Any, num_images: int, num_evaluated: int, num_cores: int
) -> Forecast:
    """Compute what a training will take from what some of its steps took.

    Args:
        rehearsal: What they took.
        model: The model.
        arguments: Training arguments.
        num_images: Number of training images.
        num_evaluated: Images of an evaluation; 0 for none.
        num_cores: Processor cores of this machine that train, for the energy.

    Returns:
        The forecast.
    """
    steps = planned_steps(arguments, num_images)
    epochs = steps * images_per_step(arguments) / num_images
    evaluations = _events(arguments.eval_strategy, arguments.eval_steps, steps, epochs) + 1 if num_evaluated else 0
    saves = _events(arguments.save_strategy, arguments.save_steps, steps, epochs)
    devices = max(1, arguments.world_size)
    seconds = steps * rehearsal.step_seconds + saves * SAVE_SECONDS
    seconds += evaluations * rehearsal.evaluation_seconds(num_evaluated, arguments)
    weights = sum(parameter.numel() for parameter in model.parameters()) * 4
    # Weights and two moments of the optimizer in each checkpoint, and the weights at the end.
    kept = min(saves, arguments.save_total_limit or saves)
    disk = weights * (3 * (kept + (saves > kept)) + 1)
    memory = rehearsal.memory
    if arguments.device.type != "cuda" and evaluations:
        memory += EVALUATION_MEMORY
        if arguments.dataloader_num_workers:
            # Workers of the evaluation stay, too. They are forked later, and keep the weights and moments of that time.
            memory += rehearsal.workers + 2 * weights + EVALUATION_PAGES
    watts = CORE_WATTS * num_cores if arguments.device.type == "cpu" else GPU_WATTS * devices
    hours = (START_SECONDS + seconds) / 3600
    return Forecast(steps * images_per_step(arguments) / seconds, hours, memory, disk, watts * hours / 1000)


def _events(strategy: Any, every: float | None, steps: int, epochs: float) -> int:
    """How often something happens in a training that has a strategy for it."""
    name = str(getattr(strategy, "value", strategy))
    if name == "epoch":
        return max(1, round(epochs))
    if name == "steps" and every:
        return int(steps / every) if every >= 1 else round(1 / every)
    return 0
