"""Training arguments that the scripts share: those of transformers, with rates and schedules as released."""

import json
import os
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import SchedulerType, TrainingArguments

from .optimization import SIMMIM_SCHEDULES, images_per_step


def json_object(name: str, value: Any) -> dict[str, Any] | None:
    """An option that is written as a JSON object.

    Raises:
        ValueError: If it is none.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"{name}={value!r} is not valid JSON: {error}.") from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f'{name}={value!r} must be a JSON object, such as {{"key": 1}}.')
    return value


SCHEDULES = (*SIMMIM_SCHEDULES, *(kind.value for kind in SchedulerType))


class ScheduleName(str):
    """Name of a schedule that Trainer's model card can ask for its value, as it does with those of transformers."""

    @property
    def value(self) -> str:
        return str(self)


@dataclass
class SimMIMTrainingArguments(TrainingArguments):
    """Everything of TrainingArguments, with the released schedules and rates for 512 images a step."""

    # Images a step that the base learning rate is for.
    base_batch_size: ClassVar[int] = 512

    base_learning_rate: float = field(
        default=2e-4,
        metadata={
            "help": "Learning rate for 512 images a step; scaled by the real number if --learning_rate is unset."
        },
    )
    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Peak learning rate as it is used, instead of --base_learning_rate."}
    )
    lr_scheduler_type: str = field(
        default="simmim_cosine",
        metadata={"help": "Schedule of the learning rate.", "choices": list(SCHEDULES)},
    )
    lr_scheduler_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": 'Options of the schedule, as JSON. Of simmim_cosine: {"warmup_lr_rate": 0.005, "min_lr_rate":'
            ' 0.05}, shares of the learning rate; of simmim_multistep: {"warmup_lr_rate": 0.005, "milestones":'
            ' [0.875], "gamma": 0.1}, milestones as shares of the run.'
        },
    )
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps of warm-up, or a share of all below 1."})
    weight_decay: float = field(default=0.05, metadata={"help": "AdamW's weight decay."})
    official: bool = field(
        default=True,
        metadata={
            "help": "Decay the weights that the released code decays, some by mistake, such as Swin's relative position"
            " tables in pre-training. The published results were got this way."
        },
    )
    max_grad_norm: float = field(default=5.0, metadata={"help": "Gradients are clipped to this norm."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    dataloader_num_workers: int = field(
        default=min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1),
        metadata={"help": "Processes that load images, for each device."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of everything that is drawn."})
    # A list, so that several can be named on a command line.
    report_to: list[str] = field(  # type: ignore[assignment]
        default_factory=lambda: ["none"],
        metadata={"help": "Trackers, such as tensorboard, trackio, wandb; or all that are installed; or none."},
    )
    hub_license: str | None = field(
        default=None,
        metadata={
            "help": "License of the weights for the model card, as the Hub names it, such as apache-2.0; none is stated"
            " if unset."
        },
    )
    restart: bool = field(
        default=False, metadata={"help": "Begin anew instead of going on from a checkpoint in --output_dir."}
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
        # The command line for the model card, without paths and secrets; whoever parsed it sets it.
        self.command: str | None = None
        self.remove_unused_columns = False
        self.logging_nan_inf_filter = False
        self.dataloader_persistent_workers = self.dataloader_num_workers > 0
        schedule = getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)
        if schedule not in SCHEDULES:
            raise ValueError(f"lr_scheduler_type={schedule!r} is unknown. Use one of: {', '.join(SCHEDULES)}.")
        if self.hub_license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.hub_license):
            raise ValueError(
                f"hub_license={self.hub_license!r} is no name of a license on the Hub. Use one such as apache-2.0, mit,"
                " cc-by-nc-4.0: https://huggingface.co/docs/hub/repositories-licenses."
            )
        self.lr_scheduler_kwargs = json_object("lr_scheduler_kwargs", self.lr_scheduler_kwargs)
        if schedule in SIMMIM_SCHEDULES:
            # Trainer's own check knows transformers' schedules only.
            self.lr_scheduler_type = SchedulerType.CONSTANT.value
        super().__post_init__()
        self.lr_scheduler_type = ScheduleName(schedule)
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type != "cpu"
        if self.learning_rate is None:
            self.learning_rate = self.base_learning_rate * images_per_step(self) / self.base_batch_size
