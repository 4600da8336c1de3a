"""Training arguments of all commands: those of transformers, with the official learning rates and schedules."""

import copy
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, ClassVar

from torch import accelerator, distributed
from transformers import SchedulerType, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from .agreement import ending_with_launcher
from .optimization import SIMMIM_SCHEDULES, images_per_step
from .skipped_steps import MAX_SKIPPED


def json_object(name: str, value: Any) -> dict[str, Any] | None:
    """Parse an option that is written as a JSON object.

    Args:
        name: Name of the option, for messages.
        value: A JSON text, a dict, or None.

    Returns:
        The dict, or None.

    Raises:
        ValueError: If the value is not a JSON object.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name}={value!r} is not valid JSON: {error}.") from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f'{name}={value!r} must be a JSON object, such as {{"key": 1}}.')
    return value


def without_paths(arguments: TrainingArguments) -> TrainingArguments:
    """Copy training arguments for publication: of absolute paths, which may name a person, only the last part is kept.

    Args:
        arguments: Training arguments.

    Returns:
        The copy.
    """
    published = copy.copy(arguments)
    for name, value in vars(arguments).items():
        setattr(published, name, _without_path(value))
    return published


def _without_path(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_path(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_without_path(item) for item in value)
    if type(value) is str and "://" not in value:
        for kind in (PurePosixPath, PureWindowsPath):
            path = kind(value)
            if path.is_absolute() or value.startswith(("~", "../", "..\\")):
                return path.name
    return value


def _check_trackers(names: str | Sequence[str] | None) -> None:
    """Refuse trackers that do not exist or are not installed, before Trainer's own traceback of them."""
    installed = get_available_reporting_integrations()
    for name in [names] if isinstance(names, str) else names or ():
        if name in ("all", "none", *installed):
            continue
        known = sorted(INTEGRATION_TO_CALLBACK)
        if name not in known:
            raise ValueError(f"report_to={name!r} is unknown. Use all, none, or some of: {', '.join(known)}.")
        raise ValueError(f"report_to={name!r} needs a package that is not installed. Run: pip install {name}")


# Ends of the names of metrics that are better where they are smaller.
ERRORS = ("loss", "_l1", "mae", "rmse")
SCHEDULES = (*SIMMIM_SCHEDULES, *(kind.value for kind in SchedulerType))


class ScheduleName(str):
    """Name of a schedule with a `value`, which Trainer's model card expects of transformers' schedules."""

    @property
    def value(self) -> str:
        return str(self)


@dataclass
class SimMIMTrainingArguments(TrainingArguments):
    """TrainingArguments with schedules and learning rates of the official implementation, for a batch size of 512."""

    # Batch size of the base learning rate.
    base_batch_size: ClassVar[int] = 512

    base_learning_rate: float = field(
        default=2e-4,
        metadata={
            "help": "Learning rate for a batch size of 512; scaled by the batch size if --learning_rate is unset."
        },
    )
    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Peak learning rate, computed from --base_learning_rate if unset."}
    )
    lr_scheduler_type: str = field(
        default="simmim_cosine",
        metadata={"help": "Learning rate schedule.", "choices": list(SCHEDULES)},
    )
    lr_scheduler_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Options of the schedule, as JSON. Defaults of simmim_cosine: {"warmup_lr_rate": 0.005,'
            ' "min_lr_rate": 0.05}, shares of the peak learning rate; of simmim_multistep: {"warmup_lr_rate": 0.005,'
            ' "milestones": [0.875], "gamma": 0.1}, with milestones as shares of all steps.'
        },
    )
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up steps, or a share of all steps if below 1."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of AdamW."})
    official: bool = field(
        default=True,
        metadata={
            "help": "Apply weight decay to the same parameters as the official implementation. It decays some by"
            " mistake, such as Swin's relative position tables in pre-training; the published results include this."
        },
    )
    max_grad_norm: float = field(default=5.0, metadata={"help": "Gradient clipping norm, 0 for no clipping."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Number of newest checkpoints to keep."})
    dataloader_num_workers: int = field(
        default=min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1),
        metadata={"help": "Data loading processes per device."},
    )
    seed: int = field(default=0, metadata={"help": "Random seed of weights, order of images and augmentation."})
    # A list, so that several can be named on a command line.
    report_to: list[str] = field(  # type: ignore[assignment]
        default_factory=lambda: ["none"],
        metadata={"help": "Experiment trackers, such as tensorboard, trackio or wandb; all or none."},
    )
    hub_license: str | None = field(
        default=None,
        metadata={
            "help": "License of the weights for the model card, by its name on the Hub such as apache-2.0 (not stated"
            " if unset)."
        },
    )
    max_skipped_steps: int = field(
        default=MAX_SKIPPED,
        metadata={"help": "Steps whose loss or gradient is not finite that are skipped before the run stops."},
    )
    async_save: bool = field(
        default=False,
        metadata={"help": "Write the shards of FSDP2's checkpoints while the training goes on, from copies in memory."},
    )
    compile_blocks: bool = field(
        default=False,
        metadata={"help": "Compile each block of the encoder; --torch_compile compiles the whole model."},
    )
    recompute_activations: bool = field(
        default=False,
        metadata={
            "help": "Compute again for the gradients what takes no product with weights: less memory for some time."
        },
    )
    save_code: bool = field(
        default=False,
        metadata={
            "help": "Save the code of the model in every checkpoint, for trust_remote_code=True where this package is"
            " not installed; always done with --push_to_hub."
        },
    )
    restart: bool = field(
        default=False, metadata={"help": "Delete the run in --output_dir and restart instead of resuming it."}
    )

    def __getstate__(self):
        # Trainer pickles the arguments into every checkpoint, which may be published.
        return {**self.__dict__, "hub_token": None}

    def __copy__(self):
        # A copy in memory keeps the token.
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __post_init__(self):
        # The command line for the model card, without paths and secrets; the parser sets it, and the names of the
        # options on it, with the recipe and those in it.
        self.command: str | None = None
        self.recipe: str | None = None
        self.named: set[str] | None = None
        self.given: set[str] | None = None
        self.remove_unused_columns = False
        self.logging_nan_inf_filter = False
        self.dataloader_persistent_workers = self.dataloader_num_workers > 0
        schedule = getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)
        if schedule not in SCHEDULES:
            raise ValueError(f"lr_scheduler_type={schedule!r} is unknown. Use one of: {', '.join(SCHEDULES)}.")
        if self.hub_license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.hub_license):
            raise ValueError(
                f"hub_license={self.hub_license!r} is not a license name of the Hub. Use one such as apache-2.0, mit,"
                " cc-by-nc-4.0: https://huggingface.co/docs/hub/repositories-licenses."
            )
        _check_trackers(self.report_to)
        self._check_memory_options()
        self.lr_scheduler_kwargs = json_object("lr_scheduler_kwargs", self.lr_scheduler_kwargs)
        if schedule in SIMMIM_SCHEDULES:
            # Trainer's own check only knows transformers' schedules.
            self.lr_scheduler_type = SchedulerType.CONSTANT.value
        if self.metric_for_best_model is not None and self.greater_is_better is None:
            # transformers takes everything for better where it is greater, but losses.
            self.greater_is_better = not self.metric_for_best_model.endswith(ERRORS)
        # Otherwise transformers asks for use_cpu, where there is nothing else.
        self.use_cpu = self.use_cpu or (self.bf16 and not accelerator.is_available())
        self._start_processes()
        super().__post_init__()
        if self.fp16 and self.device.type == "cpu":
            # accelerate would compute in float32 without a word.
            raise ValueError("fp16 needs a GPU, but this run uses the CPU. Use --bf16, or leave --fp16 out.")
        self.lr_scheduler_type = ScheduleName(schedule)
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type != "cpu"
        if self.learning_rate is None:
            self.learning_rate = self.base_learning_rate * images_per_step(self) / self.base_batch_size

    def _check_memory_options(self) -> None:
        if self.compile_blocks and self.torch_compile:
            raise ValueError("compile_blocks and torch_compile exclude each other. Leave one out.")
        reasons = {
            "gradient_checkpointing": "which computes everything again",
            "activation_checkpointing": "which computes everything again",
            "torch_compile": "which chooses by itself what it computes again",
            "compile_blocks": "which chooses by itself what it computes again",
        }
        for name, reason in reasons.items():
            if self.recompute_activations and getattr(self, name, False):
                raise ValueError(f"recompute_activations does nothing beside {name}, {reason}. Leave one out.")

    def _start_processes(self) -> None:
        # accelerate forgets --ddp_timeout on processors, so a process that stopped would be waited for half an hour.
        is_launched = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
        if not (self.use_cpu and is_launched and distributed.is_available()) or distributed.is_initialized():
            return
        if (
            int(os.environ["WORLD_SIZE"]) > 1
            and self.ddp_backend in (None, "gloo")
            and not distributed.is_mpi_available()
        ):
            try:
                with ending_with_launcher():
                    distributed.init_process_group("gloo", timeout=timedelta(seconds=self.ddp_timeout))
            except RuntimeError as error:
                raise ValueError(
                    f"The {os.environ['WORLD_SIZE']} processes of this run did not meet at"
                    f" {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({' '.join(str(error).split())[:200]})."
                    " See what the others and the launcher printed."
                ) from error
