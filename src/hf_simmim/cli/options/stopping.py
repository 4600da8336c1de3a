"""Options of pre-training that stop it by its features or the time."""

from dataclasses import dataclass, field
from typing import Any

from transformers import IntervalStrategy
from transformers.trainer_utils import SaveStrategy

from ...training.callbacks import DriftCallback, SpectrumCallback
from ...training.stopping import STOP_FIGURES, LossAlarm, StopCallback, StopRule, TimeBudget
from ...training.trainers import SimMIMTrainer


@dataclass
class StoppingArguments:
    """When to stop a pre-training before its last step."""

    stop_by: str = field(
        default="none",
        metadata={
            "help": "Stop when features do not get better: `probe` by the linear probe (--probe_dir), `rank` by RankMe,"
            " `drift` when they have moved too far from --checkpoint. The final model is the best by it.",
            "choices": ["none", *STOP_FIGURES],
        },
    )
    patience: int = field(
        default=5, metadata={"help": "Evaluations without a better one after which --stop_by probe or rank stops."}
    )
    min_gain: float | None = field(
        default=None,
        metadata={
            "help": "Gain that counts as better (if unset, a standard error of the probe's accuracy, 0.01 of RankMe)."
        },
    )
    max_drift: float = field(
        default=0.5,
        metadata={"help": "Share of nearest neighbors, 0 to 1, that may change before --stop_by drift stops."},
    )

    max_hours: float | None = field(
        default=None,
        metadata={
            "help": "Hours of training after which it ends; its schedule moves on with the clock, so that the learning"
            " rate ends at zero. --hours chooses the epochs before it starts instead."
        },
    )

    def __post_init__(self):
        if self.max_hours is not None:
            TimeBudget(self.max_hours)
            if str(self.lr_scheduler_type).split(".")[-1].lower() == "reduce_lr_on_plateau":  # type: ignore[attr-defined]
                raise ValueError("max_hours needs a schedule of steps, which reduce_lr_on_plateau is not. Use another.")
        if self.stop_by not in ("none", *STOP_FIGURES):
            raise ValueError(f"stop_by={self.stop_by!r} is unknown. Use one of: none, {', '.join(STOP_FIGURES)}.")
        if self.patience < 1:
            raise ValueError(f"patience={self.patience} must be 1 or more.")
        if self.min_gain is not None and self.min_gain < 0:
            raise ValueError(f"min_gain={self.min_gain} must be 0 or more.")
        if not 0 < self.max_drift <= 1:
            raise ValueError(f"max_drift={self.max_drift} must be more than 0 and at most 1.")
        options: Any = self
        if self.stop_by != "none":
            figure = STOP_FIGURES[self.stop_by].removeprefix("eval_")
            if (options.metric_for_best_model or figure).removeprefix("eval_") != figure:
                raise ValueError(
                    f"stop_by={self.stop_by!r} keeps the best model by {figure}, and metric_for_best_model="
                    f"{options.metric_for_best_model!r} is another. Leave one out."
                )
            options.metric_for_best_model, options.greater_is_better = figure, True
            options.load_best_model_at_end = True
            if options.eval_steps is None:
                options.eval_steps = options.logging_steps
            check_schedule(options)
        super().__post_init__()  # type: ignore[misc]


def check_schedule(arguments: Any) -> None:
    """Refuse to stop a training that is not evaluated, or whose evaluated weights are not saved.

    Args:
        arguments: Training arguments with `StoppingArguments`.

    Raises:
        ValueError: If it cannot be stopped by its features.
    """
    if arguments.stop_by == "none":
        return
    evaluated, saved = IntervalStrategy(arguments.eval_strategy), SaveStrategy(arguments.save_strategy)
    if evaluated == IntervalStrategy.NO:
        raise ValueError(
            f"stop_by={arguments.stop_by!r} needs evaluations, and there are none. Use --holdout or --validation_dir,"
            " and --eval_strategy epoch."
        )
    alike = evaluated.value == saved.value
    if evaluated == IntervalStrategy.STEPS and arguments.eval_steps != arguments.save_steps:
        alike = False
    if saved != SaveStrategy.BEST and not alike:
        steps = [f" every {getattr(arguments, name)}" for name in ("eval_steps", "save_steps")]
        parts = [
            f"{name}_strategy={part.value}{step if part.value == 'steps' else ''}"
            for name, part, step in zip(("eval", "save"), (evaluated, saved), steps, strict=True)
        ]
        raise ValueError(
            f"stop_by={arguments.stop_by!r} keeps the weights of the best evaluation, so each has to be saved, but"
            f" {' and '.join(parts)}. Set both alike, or --save_strategy best."
        )


def check_stopping(arguments: Any, has_probe: bool, checkpoint: str | None) -> None:
    """Refuse to stop by what is not measured.

    Args:
        arguments: Training arguments with `StoppingArguments`.
        has_probe: Whether there are labels for a probe.
        checkpoint: Weights that the training starts from, or None.

    Raises:
        ValueError: If something is missing; the message says what to add.
    """
    check_schedule(arguments)
    if arguments.stop_by == "probe" and not has_probe:
        raise ValueError("stop_by='probe' needs labels. Add --probe_dir, or use --stop_by rank.")
    if arguments.stop_by == "rank" and not arguments.compared_images:
        raise ValueError("stop_by='rank' needs RankMe, which compared_images=0 leaves out. Set --compared_images.")
    if arguments.stop_by == "drift" and checkpoint is None:
        raise ValueError(
            "stop_by='drift' compares features with those of trained weights, and there are none. Add --checkpoint, or"
            " use --stop_by probe or rank."
        )


def add_stopping(trainer: SimMIMTrainer, checkpoint: str | None) -> None:
    """Add the clock, what measures features without labels, the alarm and the rule, after the probe.

    Args:
        trainer: Trainer of the pre-training.
        checkpoint: Weights that the training starts from, or None.

    Raises:
        ValueError: If it is to stop by drift or rank, with fewer than four validation images.
    """
    arguments: Any = trainer.args
    if arguments.max_hours is not None:
        trainer.add_callback(TimeBudget(arguments.max_hours))
    if trainer.eval_dataset is None:
        return
    if arguments.stop_by == "rank" and len(trainer.eval_dataset) < 4:
        raise ValueError(
            f"stop_by='rank' has {len(trainer.eval_dataset)} of the four or more validation images that it needs:"
            " RankMe is at most their number. Use a larger --holdout, or --validation_dir."
        )
    if checkpoint is not None and (arguments.stop_by == "drift" or len(trainer.eval_dataset) > 3):
        trainer.add_callback(DriftCallback(trainer))
    trainer.add_callback(SpectrumCallback(trainer))
    trainer.add_callback(LossAlarm())
    if arguments.stop_by != "none":
        rule = StopRule(
            *(arguments.stop_by, arguments.patience, arguments.min_gain, arguments.max_drift),
            counts_start=checkpoint is not None,
        )
        trainer.add_callback(StopCallback(trainer, rule))
