"""Fills in the settings of a pre-training that nobody gave, and tells which and why."""

import math
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from transformers import IntervalStrategy

from ..data.survey import Survey
from ..model.modeling_base import SimMIMModel
from ..training.acceleration import repeated_blocks
from ..training.agreement import everyones
from ..training.optimization import images_per_step, planned_steps
from .machine import Machine
from .rehearsal import (
    SAVE_SECONDS,
    START_SECONDS,
    Forecast,
    Rehearsal,
    folder_size,
    forecast,
    peak_memory,
    rehearse,
    rough_time,
    size,
)
from .sizing import (
    FEWEST_STEPS,
    Choice,
    choose_batch,
    choose_epochs,
    choose_mask_patch,
    choose_model,
    choose_target,
    choose_window,
    smaller_batch,
)

# Where compiled blocks are tried: on processors they were slower (benchmarks/step.py, `ours compiled`).
COMPILED_ON = ("cuda",)
# Seconds that a training takes at least before compiled blocks are tried, which compiles them once more.
WORTH_COMPILING = 900
# Options beside which blocks are not compiled without being asked.
EXCLUDES_COMPILING = ("compile_blocks", "torch_compile", "gradient_checkpointing", "activation_checkpointing")
# Evaluations and saves of a training whose length was chosen.
NUM_EVENTS = 20
# Steps of a training that is long enough to be forecast.
LONG = 200
# A day of processors is said before it starts.
DAY = 24
# Encoders of fewer parameters gain little by bfloat16 on processors (benchmarks/precision.py).
FEWEST_FOR_BFLOAT16 = 300_000
# Options of head, target and loss; if one of them is set, the target is left alone.
OBJECTIVE_OPTIONS = (
    *("head", "head_options", "head_inputs", "target", "target_options"),
    *("prediction_stride", "loss", "loss_options", "loss_region"),
)
# Options of the model that are chosen together; of the encoder only if it is one of the presets.
PRESET_OPTIONS = ("image_size", "window_size", "num_channels")


def num_parameters(config: Any) -> int:
    """Number of parameters of the encoder of a config."""
    with torch.device("meta"):  # without memory
        return SimMIMModel(config).num_parameters()


def has_engine(arguments: Any) -> bool:
    """Whether FSDP or DeepSpeed trains; accelerate's launcher names the latter in the environment only."""
    is_launched = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("1", "true")
    return bool(arguments.fsdp or arguments.deepspeed or is_launched)


class Automatic:
    """The settings that were chosen.

    Args:
        arguments: Training arguments, with `given`, the names of the options on the command line, and `recipe`.
    """

    def __init__(self, arguments: Any):
        # Without a command line nobody can tell what was set, and a recipe means what it says.
        self.is_on = arguments.given is not None and arguments.recipe is None
        self.given = set(arguments.given or ())
        # Choices of the run that is resumed, by option, and its forecast; they hold again.
        self.before: dict[str, Any] = {}
        self.expected_before: dict[str, Any] | None = None
        self.choices: dict[str, Choice] = {}

    def is_open(self, *names: str) -> bool:
        """Whether nobody set any of these options."""
        return not self.given & set(names)

    def set(self, arguments: Any, name: str, choice: Choice) -> None:
        """Set an option that nobody set; that of the resumed run if there is one.

        Args:
            arguments: Object whose attribute it is.
            name: Name of the option.
            choice: The choice.
        """
        if name in self.before:
            choice = Choice(self.before[name], "as before")
        # The option takes one side or two.
        setattr(arguments, name, [choice.value] if name == "image_size" else choice.value)
        self.choices[name] = choice

    @property
    def values(self) -> dict[str, Any]:
        """The chosen values by option, for `run.json` and the command line."""
        return {name: choice.value for name, choice in self.choices.items()}

    def choose_model(self, model: Any, machine: Machine, seen: Survey, presets: Collection[str]) -> None:
        """Choose encoder and geometry.

        Args:
            model: Options `encoder`, `checkpoint`, `image_size`, `window_size` and `num_channels`.
            machine: What the machine offers.
            seen: What the images are like.
            presets: Names of the encoders whose geometry is free.
        """
        if model.checkpoint is not None:
            return
        choices = choose_model(machine, seen)
        if self.is_open("encoder"):
            self.set(model, "encoder", choices["encoder"])
        elif model.encoder not in presets or not model.encoder.startswith("swin-"):
            return
        if "image_size" in self.given:
            if len(set(model.image_size)) > 1 or model.image_size[0] % 4:
                return
            choices["window_size"] = choose_window(model.image_size[0])
        if not self.is_open("image_mean", "image_std"):
            choices.pop("num_channels", None)
        for name in PRESET_OPTIONS:
            if self.is_open(name) and name in choices:
                self.set(model, name, choices[name])

    def choose_objective(self, model: Any, build_config: Callable[[Any], Any], seen: Survey, num_images: int) -> Any:
        """Choose the size of mask patches and the target, for any encoder or checkpoint.

        Args:
            model: Options of the model, with `mask_patch_size` and those of the target.
            build_config: Function that builds the config from the options.
            seen: What the images are like.
            num_images: Number of training images.

        Returns:
            The config of the model.
        """
        config = build_config(model)
        choices = {"mask_patch_size": choose_mask_patch(min(config.image_size), config.mask_step)}
        if model.checkpoint is None and self.is_open(*OBJECTIVE_OPTIONS):
            choices |= choose_target(seen, num_images, config.encoder_stride, config.num_channels)
        for name, choice in choices.items():
            # A run that began with an older version keeps what that did.
            is_older = bool(self.before) and name not in self.before
            if self.is_open(name) and name not in self.choices and not is_older:
                self.set(model, name, choice)
        return build_config(model) if "target" in self.choices else config

    def choose_precision(self, arguments: Any, config: Any, machine: Machine) -> None:
        """Choose bfloat16 where the device computes in it and gains by it, unless a precision or an engine was set.

        Args:
            arguments: Training arguments.
            config: Config of the model.
            machine: What the machine offers.
        """
        # Engines have the precision in their config.
        is_plain = not has_engine(arguments) and arguments.mixed_precision == "no"
        if not (self.is_open("bf16", "fp16", "bf16_full_eval", "fp16_full_eval") and machine.has_bf16 and is_plain):
            return
        if machine.is_cpu and "bf16" not in self.before and num_parameters(config) < FEWEST_FOR_BFLOAT16:
            return
        self.set(arguments, "bf16", Choice(True, f"{machine.device.upper()} with bfloat16 instructions"))
        arguments.mixed_precision = "bf16" if arguments.bf16 else "no"

    def choose_batch(self, arguments: Any, encoder: str | None, config: Any, num_images: int, machine: Machine) -> None:
        """Choose batch size and learning rate.

        Args:
            arguments: Training arguments.
            encoder: Name of the preset, or a config; None for that of a checkpoint.
            config: Config of the model.
            num_images: Number of training images.
            machine: What the machine offers.
        """
        choices = choose_batch(num_images, encoder, machine, num_parameters(config))
        if self.is_open("per_device_train_batch_size", "gradient_accumulation_steps", "auto_find_batch_size"):
            batch = choices["batch_size"]
            on_each = batch.value // machine.num_devices
            self.set(arguments, "per_device_train_batch_size", Choice(on_each, batch.reason))
            if "gradient_accumulation_steps" in self.before:
                self.set(arguments, "gradient_accumulation_steps", Choice(1, ""))
            if self.is_open("per_device_eval_batch_size"):
                arguments.per_device_eval_batch_size = arguments.per_device_train_batch_size
        if self.is_open("learning_rate", "base_learning_rate"):
            if self.is_open("per_device_train_batch_size", "gradient_accumulation_steps"):
                self.set(arguments, "learning_rate", choices["learning_rate"])
        elif "learning_rate" not in self.given:
            images = arguments.per_device_train_batch_size * machine.num_devices * arguments.gradient_accumulation_steps
            arguments.learning_rate = arguments.base_learning_rate * images / arguments.base_batch_size

    def rehearse(
        self,
        model: Any,
        datasets: tuple[Any, Any],
        arguments: Any,
        collate: Any,
        processor: Any,
        machine: Machine,
        always: bool = False,
    ) -> Forecast | None:
        """Try some steps, with smaller batches if they do not fit the memory, and choose the length by their speed.

        Args:
            model: The model, which is not changed.
            datasets: Training images, and validation images or None.
            arguments: Training arguments.
            collate: Function that makes a batch.
            processor: Image processor.
            machine: What the machine offers.
            always: Whether to try steps of a short training as well.

        Returns:
            What the training will take; None for one of few steps whose settings were all given.

        Raises:
            ValueError: If the model does not fit the memory.
        """
        train, validation = datasets
        is_open = self.is_on and self.is_open("num_train_epochs", "max_steps")
        hours = arguments.hours
        if self.expected_before is not None:
            if "compile_blocks" in self.before:
                self.set(arguments, "compile_blocks", Choice(False, ""))
            if "num_train_epochs" in self.before:
                self._set_length(arguments, Choice(arguments.num_train_epochs, ""), len(train))
            return Forecast(**self.expected_before)
        if not always and hours is None and not is_open and planned_steps(arguments, len(train)) < LONG:
            return None
        while True:
            error = None
            try:
                found = rehearse(model, train, arguments, collate, processor)
            except torch.OutOfMemoryError as problem:
                error = problem
            if all(problem is None for problem in everyones(error)):
                break
            if not self.is_on or "per_device_train_batch_size" not in self.choices:
                raise ValueError(
                    f"A batch of {arguments.per_device_train_batch_size} images does not fit the memory ({error})."
                    " Use a smaller --per_device_train_batch_size with more --gradient_accumulation_steps."
                ) from error
            smaller, parts = smaller_batch(arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps)
            self.choices["per_device_train_batch_size"] = Choice(smaller, "more do not fit the memory")
            self.choices["gradient_accumulation_steps"] = Choice(parts, "for the same number of images a step")
            arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps = smaller, parts
        # The processes must train equally long, and run the same code.
        found = everyones(found)[0]
        num_evaluated = 0 if validation is None else len(validation)

        def settle_length() -> int:
            if hours is not None or is_open:
                evaluation = found.evaluation_seconds(num_evaluated, arguments)

                def others(epochs: int) -> float:
                    """Seconds of the start, an evaluation before the first step, and evaluations and saves."""
                    events = epochs // epochs_between_events(epochs)
                    return START_SECONDS + evaluation + events * (evaluation + SAVE_SECONDS)

                choice = choose_epochs(len(train), found.images_per_second, machine, hours, others)
                self._set_length(arguments, choice, len(train))
            return planned_steps(arguments, len(train))

        steps = settle_length()
        if self._may_compile(model, arguments) and steps * found.step_seconds > WORTH_COMPILING:
            found = self._try_compiled(
                found, steps, arguments, lambda: rehearse(model, train, arguments, collate, processor)
            )
            settle_length()
        return forecast(found, model, arguments, len(train), num_evaluated, machine.num_cores)

    def _may_compile(self, model: Any, arguments: Any) -> bool:
        return bool(
            self.is_on
            and arguments.device.type in COMPILED_ON
            and self.is_open(*EXCLUDES_COMPILING, "recompute_activations")
            and not has_engine(arguments)
            and repeated_blocks(model)
        )

    def _try_compiled(
        self, plain: Rehearsal, num_steps: int, arguments: Any, run: Callable[[], Rehearsal]
    ) -> Rehearsal:
        """Try steps with compiled blocks, and choose them if the training is shorter with them.

        Args:
            plain: What steps take without.
            num_steps: Steps of the training.
            arguments: Training arguments.
            run: Function that tries some steps.

        Returns:
            What the steps of the training take.
        """
        arguments.compile_blocks = True
        compiled, error = None, None
        try:
            compiled = run()
        except Exception as problem:  # such as a missing compiler, of many types
            error = problem
        finally:
            arguments.compile_blocks = False
        failed = next((one for one in everyones(error) if one is not None), None)
        if failed is not None:
            text = " ".join(str(failed).split())[:100]
            self.set(arguments, "compile_blocks", Choice(False, f"it failed ({type(failed).__name__}: {text})"))
            return plain
        compiled = everyones(compiled)[0]
        pays = plain.compiling_pays(compiled, num_steps)
        faster = plain.step_seconds / compiled.step_seconds
        reason = f"steps are {faster:.2f} times as fast, and compiling takes {compiled.first_seconds:.0f} s"
        self.set(arguments, "compile_blocks", Choice(pays, reason))
        return compiled if pays else plain

    def _set_length(self, arguments: Any, choice: Choice, num_images: int) -> None:
        """Set the number of epochs, and evaluations and saves that are not too many."""
        self.set(arguments, "num_train_epochs", choice)
        every = epochs_between_events(arguments.num_train_epochs)
        if every == 1:
            return
        steps = max(1, every * num_images // images_per_step(arguments))
        for name in ("eval", "save"):
            strategy = f"{name}_strategy"
            if self.is_open(strategy, f"{name}_steps") and getattr(arguments, strategy) != IntervalStrategy.NO:
                setattr(arguments, strategy, IntervalStrategy.STEPS)
                setattr(arguments, f"{name}_steps", steps)
                self.choices[strategy] = Choice("steps", f"every {every} epochs")
                self.choices[f"{name}_steps"] = Choice(steps, f"every {every} epochs")


def epochs_between_events(epochs: float) -> int:
    """Epochs from one evaluation and save to the next, so that they are at most NUM_EVENTS."""
    return max(1, math.ceil(epochs / NUM_EVENTS))


@dataclass(frozen=True)
class Plan:
    """What is known of a training before its first step.

    Args:
        seen: What the images are like.
        automatic: The settings that were chosen.
        expected: What the training will take; None for a short one.
        machine: What the machine offers.
    """

    seen: Survey
    automatic: Automatic
    expected: Forecast | None
    machine: Machine

    def outcome(self, arguments: Any, images_per_second: float, seconds: float) -> str | None:
        """Compare the forecast with what the training took, for the card.

        Args:
            arguments: Training arguments.
            images_per_second: Images over all devices, evaluations included.
            seconds: Time from the first step to the last.

        Returns:
            Both in one line; None without a forecast.
        """
        if self.expected is None:
            return None
        memory, disk = peak_memory(arguments.device), folder_size(arguments.output_dir)
        return (
            f"{self.expected}; it took {rough_time(seconds / 3600)} at {images_per_second:,.0f} images/s,"
            f" {size(memory)} of memory, {size(disk)} of disk"
        )

    def lines(self, arguments: Any, num_images: int) -> dict[str, str]:
        """Describe choices and forecast in lines by title.

        Args:
            arguments: Training arguments.
            num_images: Number of training images.

        Returns:
            The lines.
        """
        lines = {f"  {name}": f"{choice.value}: {choice.reason}" for name, choice in self.automatic.choices.items()}
        if lines:
            lines = {"Chosen": "what no option sets, by the machine and the images", **lines}
        lines["Machine"] = str(self.machine)
        if self.expected is not None:
            lines["Forecast"] = str(self.expected)
        return lines | {f"Note {index + 1}": text for index, text in enumerate(self.notes(arguments, num_images))}

    def notes(self, arguments: Any, num_images: int) -> list[str]:
        """What should be said before a training starts.

        Args:
            arguments: Training arguments.
            num_images: Number of training images.

        Returns:
            A sentence for each, with the remedy.
        """
        notes = []
        if self.expected is not None and self.machine.is_cpu and self.expected.hours > DAY:
            notes.append(
                f"This takes {rough_time(self.expected.hours)} on processors. Add --hours 8 for what fits, or leave out"
                " --recipe and --encoder for a model that fits this machine."
            )
        steps = planned_steps(arguments, num_images)
        if self.expected is not None and steps < FEWEST_STEPS:
            notes.append(
                f"{steps} step{'s are' if steps != 1 else ' is'} few: pre-trainings that short gain little or nothing."
                " Use more epochs, more images or a smaller batch."
            )
        if arguments.hours and self.expected is not None and self.expected.hours > 1.25 * arguments.hours:
            notes.append(
                f"One epoch does not fit {arguments.hours:g} hours. Use fewer images (--max_train_samples), a smaller"
                " --image_size or a smaller --encoder."
            )
        return notes
