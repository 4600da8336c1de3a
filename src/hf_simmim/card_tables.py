"""Tables of a model card: each is a dict of titles and texts, in which None is what does not apply."""

import importlib.metadata
import math
import os
import platform
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments

from .data import sample_generator
from .masking import MaskStrategy, average_distance
from .optimization import ReleasedSchedule, create_schedule, images_per_step, warmup_updates
from .provenance import code_version

Table = dict[str, str | None]

# What configs of transformers call the same thing.
ENCODER_SETTINGS = {
    "depth": ("depths", "num_hidden_layers", "num_layers"),
    "attention heads": ("num_heads", "num_attention_heads"),
    "width": ("embed_dim", "hidden_sizes", "hidden_size"),
    "window": ("window_size",),
    "drop path": ("drop_path_rate",),
}
FAMILIES = {"swin": "Swin", "swinv2": "SwinV2", "beit": "ViT (BEiT)", "vit": "ViT", "timm_wrapper": "timm"}
# More channels than these have no room for their statistics.
MAX_LISTED_CHANNELS = 6
# Work that the average distance of masks may cost: pixels times the width of the image.
AVERAGE_DISTANCE_BUDGET = 5e8


def encoder_table(config: Any, model: Any) -> Table:
    """Architecture, geometry and parameters.

    Args:
        config: The SimMIM config.
        model: The model.

    Returns:
        The table.
    """
    encoder = config.encoder_config
    height, width = config.image_size
    rows, columns = config.grid_size
    table: Table = {"encoder": f"{family(config)} (`{encoder.model_type}`)"}
    if getattr(encoder, "architecture", None):
        table["architecture"] = f"`{encoder.architecture}`"
    for title, names in ENCODER_SETTINGS.items():
        value = next((getattr(encoder, name) for name in names if getattr(encoder, name, None) is not None), None)
        table[title] = None if value is None or isinstance(value, dict) else listed(value)
    if table["window"] is not None:
        table["window"] += " tokens"
    return table | {
        "images": f"{counted(config.num_channels, 'channel')}, {height} x {width} px (height x width)",
        "patches": f"{config.patch_size} px, a grid of {rows} x {columns}",
        "feature map": f"{config.hidden_size} channels, one step for every {config.encoder_stride} px",
        "parameters": parameters(model),
    }


def family(config: Any) -> str:
    """What people call the encoder."""
    kind = config.encoder_config.model_type
    return FAMILIES.get(kind, kind.removesuffix("_vision_model").replace("_", " "))


def parameters(model: Any) -> str:
    """Parameters of the encoder, and of all where there is more."""
    encoder, everything = (number.num_parameters() for number in (model.base_model, model))
    return millions(encoder) + (
        f" in the encoder, {millions(everything)} with the head" if everything > encoder else ""
    )


def pixels_table(processor: Any, num_channels: int) -> Table:
    """What the image processor makes of pixels."""
    factor = processor.rescale_factor
    inverse = 1 / factor
    scale = (
        f"1/{round(inverse)}" if math.isclose(inverse, round(inverse), rel_tol=1e-6) and factor < 1 else f"{factor:g}"
    )
    mean, std = list(processor.image_mean), list(processor.image_std)
    if num_channels <= MAX_LISTED_CHANNELS:
        statistics = f"mean {numbers(mean)}, standard deviation {numbers(std)}"
    else:
        statistics = (
            f"each channel by its own mean ({min(mean):.4g} to {max(mean):.4g}) and standard deviation ({min(std):.4g}"
            f" to {max(std):.4g}), which are in `preprocessor_config.json`"
        )
    nodata = getattr(processor, "nodata", None)
    return {
        "pixels": f"times {scale}, then normalised: {statistics}",
        "pixels that are none": f"those of {nodata:g} in all channels" if nodata is not None else None,
    }


def augmentation_table(crop_scale: Sequence[float] | None, flip: float, vertical_flip: float) -> Table:
    """Crops and flips of the training images."""
    flips = [
        f"{share:.0%} {way}" for share, way in ((flip, "left to right"), (vertical_flip, "top to bottom")) if share
    ]
    crops = "the largest one at the centre"
    if crop_scale is not None:
        low, high = crop_scale[0], crop_scale[-1]
        crops = f"random, {low:.0%} to {high:.0%} of the area, resized"
    return {"crops": crops, "flips": ", ".join(flips) or "no flips" if crop_scale is not None else None}


def average_mask_distance(dataset: Any) -> float:
    """AvgDist of the masks of a `MaskedImageDataset`, in pixels: the mean of masks drawn with a fixed seed."""
    ratio = dataset.mask_ratio
    return _average_distance(
        *(dataset.mask_strategy, tuple(dataset.grid_size), tuple(ratio) if isinstance(ratio, Sequence) else ratio),
        *(dataset.unit_size, dataset.patch_size, tuple(dataset.image_size)),
    )


@lru_cache(maxsize=8)
def _average_distance(
    strategy: MaskStrategy, grid_size: tuple, ratio: Any, unit_size: int, patch_size: int, image_size: tuple
) -> float:
    height, width = image_size
    count = max(2, min(64, int(AVERAGE_DISTANCE_BUDGET / (height * width * width))))
    masks = strategy(grid_size, ratio, count, unit_size=unit_size, generator=sample_generator(0))
    return float(average_distance(masks, patch_size, image_size).mean())


def optimization_table(arguments: TrainingArguments, num_steps: int) -> Table:
    """Optimiser, batch and rates as they were in effect.

    Args:
        arguments: Of the training.
        num_steps: Planned updates.

    Returns:
        The table.
    """
    batch = images_per_step(arguments)
    optimizer = str(getattr(arguments.optim, "value", arguments.optim))
    if "adam" in optimizer:
        optimizer += (
            f", betas {arguments.adam_beta1:g} and {arguments.adam_beta2:g}, epsilon {arguments.adam_epsilon:g}"
        )
    clip = arguments.max_grad_norm
    on_each = arguments.per_device_train_batch_size
    devices = batch // (on_each * arguments.gradient_accumulation_steps)
    accumulated = counted(arguments.gradient_accumulation_steps, "accumulated batch", "es")
    return {
        "batch": f"{batch} images a step: {on_each} x {counted(devices, 'device')} x {accumulated}",
        "optimizer": optimizer,
        "weight decay": f"{arguments.weight_decay:g}",
        "gradients": f"clipped to a norm of {clip:g}" if clip else "not clipped",
        "learning rate": _learning_rate(arguments, batch),
        "schedule": _schedule(arguments, num_steps),
        "precision": _precision(arguments),
        "seed": str(arguments.seed),
    }


def _learning_rate(arguments: Any, batch: int) -> str:
    peak = float(arguments.learning_rate)
    base, base_batch = getattr(arguments, "base_learning_rate", None), getattr(arguments, "base_batch_size", 0)
    if base is None or not math.isclose(peak, base * batch / base_batch, rel_tol=1e-9):
        return f"{peak:.4g}, whatever the batch"
    return f"{peak:.4g} = {base:g} x {batch} / {base_batch} (base rate x images a step / {base_batch})"


def _schedule(arguments: Any, num_steps: int) -> str:
    """Name, warm-up and the rates at both ends, asked of the schedule itself."""
    name = str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type))
    peak, warmup = float(arguments.learning_rate), warmup_updates(arguments, num_steps)
    schedule: Any = create_schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak), arguments, num_steps)
    start = end = milestones = None
    if isinstance(schedule, ReleasedSchedule):
        start = schedule.warmup_lr
        end = schedule.min_lr if schedule.kind == "released_cosine" else None
        milestones = schedule.milestones if schedule.kind == "released_multistep" else None
    elif isinstance(schedule, LambdaLR):
        start, end = (peak * float(schedule.lr_lambdas[0](step)) for step in (0, num_steps))
    parts = [f"`{name}`"]
    if warmup:
        parts.append(f"warm-up of {counted(warmup, 'step')}" + (f" from {start:.4g}" if start is not None else ""))
    if milestones:
        parts.append(f"times {schedule.gamma:g} at step {' and '.join(f'{step:,}' for step in milestones)}")
    if end is not None:
        parts.append(f"down to {end:.4g}" if end < peak else "level to the end")
    return ", ".join(parts)


def _precision(arguments: Any) -> str:
    precision = "bfloat16 autocast" if arguments.bf16 else "float16 autocast" if arguments.fp16 else "float32"
    extras = [
        ("tf32", "TF32 matrix products"),
        ("torch_compile", "compiled"),
        ("gradient_checkpointing", "gradient checkpointing"),
    ]
    return ", ".join([precision, *(text for key, text in extras if getattr(arguments, key, None))])


def hardware_table(trainer: Any, seconds: float | None) -> Table:
    """Machine, time and energy."""
    return {
        "hardware": _hardware(trainer.args),
        "training time": _hours(seconds) if seconds else None,
        "energy": _energy(trainer),
    }


def _hardware(arguments: TrainingArguments) -> str:
    device, count = arguments.device, arguments.world_size * max(1, arguments.n_gpu)
    if device.type == "cuda":
        return f"{count} x {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return f"{count} x {device.type} ({platform.machine()})"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = counted(torch.get_num_threads(), "thread")
    return f"{_cpu_name()}, {counted(cores, 'core')}, {counted(count, 'process', 'es')} of {threads}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else platform.processor() or f"CPU ({platform.machine()})"


def emissions(trainer: Any) -> Any:
    """What codecarbon measured of a training that it followed to the end; None otherwise."""
    trackers = (getattr(callback, "tracker", None) for callback in trainer.callback_handler.callbacks)
    found = (getattr(tracker, "final_emissions_data", None) for tracker in trackers)
    return next((data for data in found if data is not None and getattr(data, "energy_consumed", None)), None)


def _energy(trainer: Any) -> str | None:
    data = emissions(trainer)
    if data is None:
        return None
    start = getattr(trainer, "_initial_global_step", 0)
    since = f", from step {start:,} on" if start else ""
    return (
        f"{data.energy_consumed:.3g} kWh, {data.emissions:.3g} kg CO2-equivalent, as codecarbon estimates for the"
        f" machine of the first process{since}"
    )


def _hours(seconds: float) -> str:
    hours = f"{seconds / 3600:.3g} h"
    return hours + (f" ({seconds:.3g} s)" if seconds < 600 else "") + ", without evaluations"


def versions_table() -> Table:
    """Versions of what the model was made with."""
    packages = ("transformers", "torch", "accelerate", "datasets")
    commit = code_version()
    return {
        "hf-simmim": importlib.metadata.version("hf-simmim") + (f", git commit {commit}" if commit else ""),
        **{name: importlib.metadata.version(name) for name in packages},
        "Python": platform.python_version(),
    }


def millions(number: int) -> str:
    """A number of parameters, to three digits."""
    return f"{number / 1e6:.3g} M" if number < 1e9 else f"{number / 1e9:.3g} B"


def numbers(values: Sequence[float]) -> str:
    """Numbers to four digits."""
    return ", ".join(f"{value:.4g}" for value in values)


def listed(value: Any) -> str:
    """A setting in words: lists with dashes."""
    if isinstance(value, (list, tuple)):
        return "-".join(listed(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def counted(number: int, noun: str, plural: str = "s") -> str:
    """A number and its noun."""
    return f"{number:,} {noun}{plural if number != 1 else ''}"
