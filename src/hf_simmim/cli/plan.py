"""Look at a folder of images and at this machine, and propose a pre-training: settings, time, memory, disk and energy.

    hf-simmim plan photos
    hf-simmim plan photos --hours 8
    hf-simmim plan photos --recipe swin_base__img192_window6__100ep

Some steps are trained and measured on copies; nothing is kept. It prints the command that trains as planned. Options
are those of `hf-simmim pretrain`, and what is not set is chosen as there.
"""

import shlex
import tempfile
from dataclasses import dataclass, fields
from typing import Any

from ..planning.automatic import Plan
from .command import PROGRAM, Command, in_words
from .options.objective import PretrainingModelArguments
from .pretrain import PretrainingArguments, PretrainingDataArguments, build_trainer, print_plan
from .recipes import options_of


@dataclass(frozen=True)
class PlanResult:
    """Result of planning.

    Args:
        options: Options of `pretrain`, given and chosen.
        command: The command that trains as planned.
        plan: What was seen and chosen, and the forecast.
    """

    options: dict[str, Any]
    command: str
    plan: Plan


def run(
    data: PretrainingDataArguments, model: PretrainingModelArguments, arguments: PretrainingArguments
) -> PlanResult:
    """Plan a pre-training, and print the plan."""
    options = {
        option.name: getattr(part, option.name)
        for part in (data, model, arguments)
        for option in fields(part)
        if option.init and option.name in (arguments.named or ())
    }
    if "recipe" in (arguments.named or ()):
        options["recipe"] = arguments.recipe
    with tempfile.TemporaryDirectory() as folder, in_words(model.checkpoint):
        output_dir, arguments.output_dir = arguments.output_dir, folder
        arguments.push_to_hub = False
        trainer, _ = build_trainer(data, model, arguments, always=True)
        arguments.output_dir = output_dir
        print_plan(trainer, None, model.checkpoint)
    automatic = trainer.plan.automatic
    options |= automatic.values
    if "per_device_train_batch_size" in automatic.choices and automatic.is_open("per_device_eval_batch_size"):
        # It follows a batch that is chosen, and not one that is named, as now.
        options["per_device_eval_batch_size"] = arguments.per_device_eval_batch_size
    options.pop("hours", None)
    command = shlex.join([PROGRAM, "pretrain", *options_of(options)])
    print(f"\nTo train as planned:\n{command}")
    return PlanResult(options, command, trainer.plan)


COMMAND = Command(
    name="plan",
    usage="FOLDER [--hours H] [--recipe NAME] [options of pretrain]",
    description=__doc__,
    kinds=(PretrainingDataArguments, PretrainingModelArguments, PretrainingArguments),
    run=run,
    common=("train_dir", "hours", "recipe", "encoder", "checkpoint", "image_size", "num_channels", "output_dir"),
    positional=("train_dir",),
    demo=True,
    recipes_of="pretrain",
)
