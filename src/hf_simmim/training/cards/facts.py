"""Facts about a training that every model card states: optimization, hardware, time, energy and progress."""

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments

from ...data.windows import WindowRows, images_in_words
from ...hub.card import (
    Table,
    card_metadata,
    counted,
    family,
    millions,
    render_card,
    title_and_location,
    versions_table,
)
from ...hub.provenance import LOCAL_KINDS, RunOrigin
from ..optimization import SimMIMSchedule, create_schedule, images_per_step, planned_steps, warmup_updates
from ..stopping import StopCallback


def total_steps(trainer: Any) -> int:
    """Number of steps of the whole training, also before it has begun."""
    return trainer.state.max_steps or planned_steps(trainer.args, len(trainer.train_dataset))


@dataclass
class CardFacts:
    """Contents of a training's model card that depend on the kind of model.

    Args:
        kind: "pretrained", "classifier" or "segmentation".
        auto_class: Class of transformers that loads the model.
        num_parameters: Number of parameters of the model, or of the part of it that is used later.
        tags: Tags for the metadata, besides "simmim" and the encoder's name.
        pipeline_tag: Task of the model, as the Hub names it.
        training_type: "pre-training" or "fine-tuning".
        base_model: Name on the Hub of the model that the training started from.
        eval_results: Evaluation results for the metadata.
        model_rows: Rows of the table of the model.
        data_rows: Further rows of the table of the data.
        training_rows: Further rows of the table of the training.
        time: Training time, in words.
        speed: Training speed, in words.
        citations: BibTeX entries.
        values: Further variables of the template.
    """

    kind: str
    auto_class: str
    num_parameters: int
    tags: Sequence[str]
    pipeline_tag: str
    training_type: str
    base_model: str | None
    eval_results: Sequence[EvalResult]
    model_rows: Table
    data_rows: Table
    training_rows: Table
    time: str | None
    citations: Sequence[str]
    values: dict[str, Any]
    speed: str | None = None


def render_training(trainer: Any, config: Any, facts: CardFacts) -> ModelCard:
    """Render the model card of a training, during or after it.

    Args:
        trainer: The trainer, before, during or after `train()`; its `origin` holds the provenance.
        config: The SimMIM config of its model, or of the backbone in it.
        facts: Contents that depend on the kind of model.

    Returns:
        The card; `save` writes it.
    """
    arguments, origin, num_steps = trainer.args, trainer.origin, total_steps(trainer)
    repository = trainer.hub_model_id or arguments.hub_model_id
    windows = getattr(trainer.train_dataset, "images", None)
    images = windows if isinstance(windows, WindowRows) else trainer.train_dataset
    title, location = title_and_location(repository, str(arguments.output_dir))
    card_data = card_metadata(
        title,
        ["simmim", *facts.tags, config.encoder_config.model_type],
        pipeline_tag=facts.pipeline_tag,
        images=origin.images,
        base_model=facts.base_model,
        weights_license=getattr(arguments, "hub_license", None),
        eval_results=facts.eval_results,
        co2_eq_emissions=emissions_entry(trainer, facts.training_type),
    )
    return render_card(
        facts.kind,
        card_data,
        title=title,
        location=location,
        is_on_hub=repository,
        has_code=bool(repository)
        or getattr(arguments, "save_code", False)
        or (Path(str(arguments.output_dir)) / "modeling_simmim.py").exists(),
        auto_class=facts.auto_class,
        num_parameters=millions(facts.num_parameters),
        progress=progress(trainer, num_steps),
        family=family(config),
        num_images=f"{len(getattr(images, 'files', images)):,}",
        num_channels=config.num_channels,
        image_height=config.image_size[0],
        image_width=config.image_size[1],
        data_name=_data_name(origin),
        start=start(origin),
        model_rows=facts.model_rows,
        data_rows={
            "data set": str(origin.images) if origin.images else None,
            "training images": images_in_words(images),
            **facts.data_rows,
        },
        training_rows={
            "steps": steps(trainer, num_steps),
            "initial weights": facts.base_model or origin.checkpoint or "random",
            **optimization_table(arguments, num_steps),
            "layer-wise decay": layer_decay(arguments),
            "head and mask token": new_rate(arguments),
            **facts.training_rows,
            **hardware_table(trainer, facts.time),
            "speed": facts.speed,
        },
        command=origin.command,
        base_model=facts.base_model,
        versions=versions_table(),
        citations=facts.citations,
        **facts.values,
    )


def _data_name(origin: RunOrigin) -> str | None:
    if origin.images is None:
        return None
    return f"{LOCAL_KINDS.get(origin.images.kind, 'data set')} `{origin.images.name}`"


def held_out_images(trainer: Any) -> str:
    """Number of validation images, and where they come from."""
    if trainer.eval_dataset is None:
        return "none"
    where = f" ({trainer.origin.held_out})" if trainer.origin.held_out else ""
    return f"{len(trainer.eval_dataset):,}{where}"


def optimization_table(arguments: TrainingArguments, num_steps: int) -> Table:
    """Describe optimizer, batch size and learning rates as they were in effect.

    Args:
        arguments: Training arguments.
        num_steps: Planned updates.

    Returns:
        Rows of the table by title.
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
        "batch size": f"{batch} = {on_each} x {counted(devices, 'device')} x {accumulated}",
        "optimizer": optimizer,
        "weight decay": f"{arguments.weight_decay:g}",
        "gradient clipping": f"norm {clip:g}" if clip else "none",
        "learning rate": _learning_rate(arguments, batch),
        "schedule": _schedule(arguments, num_steps),
        "precision": _precision(arguments),
        "seed": str(arguments.seed),
    }


def _learning_rate(arguments: Any, batch: int) -> str:
    peak = float(arguments.learning_rate)
    base, base_batch = getattr(arguments, "base_learning_rate", None), getattr(arguments, "base_batch_size", 0)
    if base is None or not math.isclose(peak, base * batch / base_batch, rel_tol=1e-9):
        return f"{peak:.4g}, set directly, not scaled by the batch size"
    return f"{peak:.4g} = {base:g} x {batch} / {base_batch} (base learning rate x batch size / {base_batch})"


def _schedule(arguments: Any, num_steps: int) -> str:
    """Name, warm-up, and first and last learning rate, computed by the schedule itself."""
    name = str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type))
    peak, warmup = float(arguments.learning_rate), warmup_updates(arguments, num_steps)
    schedule: Any = create_schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=peak), arguments, num_steps)
    start = end = milestones = None
    if isinstance(schedule, SimMIMSchedule):
        start = schedule.warmup_lr
        end = schedule.min_lr if schedule.kind == "simmim_cosine" else None
        milestones = schedule.milestones if schedule.kind == "simmim_multistep" else None
    elif isinstance(schedule, LambdaLR):
        start, end = (peak * float(schedule.lr_lambdas[0](step)) for step in (0, num_steps))
    parts = [f"`{name}`"]
    if warmup:
        parts.append(f"warm-up of {counted(warmup, 'step')}" + (f" from {start:.4g}" if start is not None else ""))
    if milestones:
        parts.append(f"multiplied by {schedule.gamma:g} at step {' and '.join(f'{step:,}' for step in milestones)}")
    if end is not None:
        parts.append(f"decay to {end:.4g}" if end < peak else "constant to the end")
    return ", ".join(parts)


def _precision(arguments: Any) -> str:
    precision = "bfloat16 autocast" if arguments.bf16 else "float16 autocast" if arguments.fp16 else "float32"
    extras = [
        ("tf32", "TF32 matrix products"),
        ("torch_compile", "compiled"),
        ("gradient_checkpointing", "gradient checkpointing"),
    ]
    return ", ".join([precision, *(text for key, text in extras if getattr(arguments, key, None))])


def hardware_table(trainer: Any, time: str | None) -> Table:
    """Describe hardware, training time and energy."""
    return {
        "hardware": _hardware(trainer.args),
        "training time": time,
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


def _emissions(trainer: Any) -> Any:
    """Emissions that codecarbon measured, if it followed the training to its end; None otherwise."""
    trackers = (getattr(callback, "tracker", None) for callback in trainer.callback_handler.callbacks)
    found = (getattr(tracker, "final_emissions_data", None) for tracker in trackers)
    return next((data for data in found if data is not None and getattr(data, "energy_consumed", None)), None)


def _energy(trainer: Any) -> str | None:
    data = _emissions(trainer)
    if data is None:
        return None
    start = getattr(trainer, "_initial_global_step", 0)
    since = f", since step {start:,}" if start else ""
    return (
        f"{data.energy_consumed:.3g} kWh, {data.emissions:.3g} kg CO2-equivalent, estimated by codecarbon for the"
        f" machine of the first process{since}"
    )


def hours(seconds: float) -> str:
    """A duration in hours, and in seconds if it is short."""
    return f"{seconds / 3600:.3g} h" + (f" ({seconds:.3g} s)" if seconds < 600 else "")


def emissions_entry(trainer: Any, training_type: str) -> dict[str, Any] | None:
    """Emissions that codecarbon measured, in grams, in the form of the Hub's metadata."""
    data = _emissions(trainer)
    if data is None:
        return None
    return {
        "emissions": round(1000 * float(data.emissions), 4),
        "source": "codecarbon",
        "training_type": training_type,
        **({"geographical_location": data.country_name} if getattr(data, "country_name", None) else {}),
    }


def progress(trainer: Any, num_steps: int) -> str | None:
    """A sentence on the progress of an unfinished training; None if it is finished."""
    state = trainer.state
    if state.global_step >= num_steps:
        return None
    epochs = f" (epoch {state.epoch:.3g})" if state.epoch else ""
    verb = "It was stopped at" if trainer.control.should_training_stop else "So far it has made"
    return f"{verb} step {state.global_step:,} of {num_steps:,}{epochs}.".replace("made step", "reached step")


def best_step(trainer: Any) -> int | None:
    """The step whose weights were restored at the end of training; None if the model has those of the last step."""
    if trainer.is_in_train or not trainer.args.load_best_model_at_end:
        return None
    return trainer.state.best_global_step or None


def best_by(trainer: Any, mark: str = "") -> str:
    """Say by what the weights of `best_step` were chosen.

    Args:
        trainer: The trainer.
        mark: What stands on both sides of a name.

    Returns:
        "the best by NAME", or which ones a limit of drift leaves.
    """
    rules = [callback.rule for callback in trainer.callback_handler.callbacks if isinstance(callback, StopCallback)]
    if any(rule.kind == "drift" for rule in rules):
        return f"the last that were evaluated within {mark}--max_drift{mark}"
    return f"the best by {mark}{trainer.args.metric_for_best_model}{mark}"


def measured_after(trainer: Any, key: str) -> str:
    """Say which weights the last entry of the log with a key measured.

    Args:
        trainer: The trainer.
        key: Key of a metric that is in the log.

    Returns:
        "with the weights of step N" if the best weights were restored, else "after step N".
    """
    measured = [entry["step"] for entry in trainer.state.log_history if key in entry]
    best = best_step(trainer)
    # Restored weights are measured once more, at the last step.
    again = measured.count(measured[-1]) > 1
    return f"with the weights of step {best:,}" if best is not None and again else f"after step {measured[-1]:,}"


def steps(trainer: Any, num_steps: int) -> str:
    """Steps and epochs that were made, and the step that the weights are from."""
    state = trainer.state
    done = f"{state.global_step:,}" + (f" of {num_steps:,}" if state.global_step < num_steps else "")
    epochs = f", {state.epoch:.4g} epoch{'s' if state.epoch != 1 else ''}" if state.epoch else ""
    best = best_step(trainer)
    chosen = ""
    if best is not None and best != state.global_step:
        chosen = f"; weights of step {best:,}, {best_by(trainer, '`')}"
    return done + epochs + chosen


def start(origin: RunOrigin) -> str:
    """A sentence on the initial weights of a fine-tuning."""
    if origin.base_model is not None:
        return f"It was fine-tuned from [{origin.base_model}](https://huggingface.co/{origin.base_model})."
    if origin.checkpoint is not None:
        return f"It was fine-tuned from the checkpoint `{origin.checkpoint}`."
    return "It was trained from scratch, without pre-training."


def training_line(arguments: Any, num_steps: int) -> str:
    """Steps, batch size, peak learning rate and devices, for the plan that a command prints."""
    rate = f"{arguments.learning_rate:.3g}".replace("e-0", "e-")
    number = arguments.num_train_epochs
    epochs = f" ({number:g} epoch{'s' * (number != 1)})" if arguments.max_steps <= 0 else ""
    kind = "GPU" if arguments.device.type == "cuda" else arguments.device.type.upper()
    return (
        f"{counted(num_steps, 'step')}{epochs}, batch size {images_per_step(arguments)}, peak learning rate {rate},"
        f" {arguments.world_size * max(1, arguments.n_gpu)} x {kind}"
    )


def layer_decay(arguments: Any) -> str | None:
    """Layer-wise decay of the learning rate, if there is any."""
    decay = getattr(arguments, "layer_decay", None)
    if not decay or decay == 1:
        return None
    return f"{decay:g}, factor of the learning rate from each layer to the one below"


def new_rate(arguments: Any) -> str | None:
    """Rate of the head and the mask token, if it is another."""
    factor = getattr(arguments, "new_rate", None)
    return None if not factor or factor == 1 else f"{factor:g} times the learning rate"


def session_time(trainer: Any) -> str | None:
    """Training time as Trainer measured it, which covers this session only."""
    seconds = next((entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry), None)
    first = getattr(trainer, "_initial_global_step", 0)
    return f"{hours(seconds)}, with evaluations{f', since step {first:,}' if first else ''}" if seconds else None
