"""Stop a training by its features or the time, not by its loss: the rules, and an alarm for a loss that rises."""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import IntervalStrategy, TrainerCallback
from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging

from ..evaluation.intervals import Z
from .saving.checkpoints import TrainingStoppedError

logger = logging.get_logger(__name__)

# What a training may be stopped by, and its name in the log.
STOP_FIGURES = {"probe": "probe_linear_accuracy", "rank": "eval_rankme", "drift": "drift_knn_agreement"}
# Gain of RankMe that counts as better, as a share of the best.
RANK_TOLERANCE = 0.01
# Upper end of the probe's interval from which on it can hardly rise.
CEILING = 0.99
# Evaluations in a row before each of which the training loss rose.
NUM_RISES = 3
# Key of the seconds that were trained, in the state of a trainer.
TRAINED = "time_budget"
# Steps between two looks at the clock, where processes have to agree.
STEPS_BETWEEN = 8

Log = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Standing:
    """Where a training stands by a rule.

    Args:
        best: Log entry of the last evaluation that was better than those before it by more than noise; None if nothing
            was measured yet.
        waited: Number of evaluations since then.
        is_over: Whether the training is to end.
    """

    best: Mapping[str, float] | None
    waited: int
    is_over: bool


@dataclass(frozen=True)
class StopRule:
    """When to stop, by what was logged: the same log gives the same answer, so a resumed run continues exactly.

    For "probe" and "rank" an evaluation is better if it exceeds the last better one by more than noise. For the probe
    that is one standard error of its accuracy, the one-standard-error rule: about a quarter of its 95 % interval.
    (All evaluations answer the same test images, so their differences vary less than that.) For RankMe it is 1 %. For
    "drift" the training ends at the first evaluation with less agreement than the limit.

    Args:
        kind: One of `STOP_FIGURES`.
        patience: Evaluations without a better one, after which the training ends.
        min_gain: Gain that counts as better, in the units of the figure; the above if None.
        max_drift: Largest share of nearest neighbors that may change, for "drift".
        counts_start: Whether the features before training count, as those of trained weights do.

    Source: section 3.4.3 of Breiman et al., "Classification and Regression Trees" (1984), for the standard error.
    """

    kind: str
    patience: int = 5
    min_gain: float | None = None
    max_drift: float = 0.5
    counts_start: bool = False

    @property
    def figure(self) -> str:
        """Name of the figure in the log."""
        return STOP_FIGURES[self.kind]

    def judge(self, log: Log) -> Standing:
        """Judge a training.

        Args:
            log: `TrainerState.log_history`.

        Returns:
            Where it stands.
        """
        entries: dict[float, Mapping[str, float]] = {}
        for entry in log:
            # A second one at a step is of the best weights, which are restored at the end.
            if self.figure in entry and (entry["step"] or self.counts_start):
                entries.setdefault(entry["step"], entry)
        if self.kind == "drift":
            last = next(reversed(entries.values()), None)
            kept = [entry for entry in entries.values() if self.is_near(entry[self.figure])]
            return Standing(kept[-1] if kept else None, 0, last is not None and not self.is_near(last[self.figure]))
        best, waited = None, 0
        for entry in entries.values():
            value = entry[self.figure]
            # One that is not a number is not better.
            if value == value and (best is None or value > best[self.figure] + self.tolerance(best)):
                best, waited = entry, 0
            else:
                waited += 1
        return Standing(best, waited, waited >= self.patience)

    def doubt(self, log: Log) -> str | None:
        """Say if the figure can hardly rise, so that it does not tell what features still learn.

        Args:
            log: `TrainerState.log_history`.

        Returns:
            A sentence; None without doubt.
        """
        for entry in log if self.kind == "probe" else ():
            if entry.get("probe_linear_high", 0.0) >= CEILING:
                return (
                    f"Step {entry['step']:,}: the linear probe is right about {entry[self.figure]:.1%} of its test"
                    " images, so it can hardly rise, and does not tell what features still learn. Stop by a harder one"
                    " (--probe_dir with other labels, or fewer images of each class), or leave --stop_by out."
                )
        return None

    def is_near(self, agreement: float) -> bool:
        """Whether an agreement of neighbors is within the limit of drift."""
        return agreement >= 1 - self.max_drift

    def tolerance(self, best: Mapping[str, float]) -> float:
        """Gain over an entry of the log that noise explains."""
        if self.min_gain is not None:
            return self.min_gain
        if self.kind == "rank":
            return RANK_TOLERANCE * best[self.figure]
        # Older versions logged no intervals.
        return (best.get("probe_linear_high", 0.0) - best.get("probe_linear_low", 0.0)) / (2 * Z)


class StopCallback(TrainerCallback):
    """Ends a training by a `StopRule`, in all processes at the same step, with a checkpoint of that step.

    It is added after the callbacks that measure the figure. `load_best_model_at_end` with `metric_for_best_model`
    restores the best checkpoint by it; for drift, the trainer asks `chooses`.

    Args:
        trainer: Trainer that the callback is added to.
        rule: The rule.
    """

    def __init__(self, trainer: Any, rule: StopRule):
        self.trainer, self.rule = trainer, rule
        self.has_doubted = False

    def on_train_begin(self, args, state, control, **kwargs):
        """Train no further where the run ended; refuse a checkpoint that does not have what drift is measured by."""
        if self.has_ended(state):
            # Where the trainer could not tell before, such as with FSDP.
            control.should_training_stop = True
        if self.rule.kind == "drift" and not state.stateful_callbacks.get("start_neighbors"):
            raise TrainingStoppedError(
                "stop_by='drift' compares features with those of the first weights, which this run did not keep because"
                " it began without. Leave --stop_by out, or begin a new run in another --output_dir."
            )
        if state.global_step and self._lacks_evaluation(args, state):
            # A signal ended the run before it, which must not count as patience.
            metrics = self.trainer.evaluate()
            self.trainer._determine_best_metric(metrics, None)

    def _lacks_evaluation(self, args: Any, state: Any) -> bool:
        """Whether the checkpoint that a run resumes from is of a step that should have been evaluated."""
        if args.eval_strategy == IntervalStrategy.STEPS:
            is_due = state.global_step % state.eval_steps == 0
        else:
            is_due = abs(state.epoch - round(state.epoch)) < 1e-6
        log = state.log_history
        return is_due and not any(self.rule.figure in entry and entry["step"] == state.global_step for entry in log)

    def on_evaluate(self, args, state, control, **kwargs):
        """Judge what was logged until now; the first process decides."""
        if not self.trainer.is_in_train:
            return
        doubt = None if self.has_doubted else self.rule.doubt(state.log_history)
        if doubt is not None and state.is_world_process_zero:
            logger.warning(doubt)
        self.has_doubted |= doubt is not None
        standing = self.rule.judge(state.log_history)
        is_over = [standing.is_over]
        broadcast_object_list(is_over)
        if not is_over[0]:
            return
        control.should_training_stop = True
        control.should_save = args.save_strategy != SaveStrategy.NO
        if state.is_world_process_zero:
            logger.warning(self.reason(standing, state.global_step))

    def has_ended(self, state: Any) -> bool:
        """Whether a run ended by the rule at the step of this state, so that nothing is left to train."""
        return self.rule.judge(state.log_history).is_over

    def chooses(self, state: Any) -> bool | None:
        """Whether the weights of this step are the ones to keep; None if the highest figure decides."""
        if self.rule.kind != "drift":
            return None
        standing = self.rule.judge(state.log_history)
        return not standing.is_over and standing.best is not None

    def reason(self, standing: Standing, step: int) -> str:
        """Say why the training ends.

        Args:
            standing: Where it stands.
            step: Step at which it ends.

        Returns:
            Sentences.
        """
        rule, best = self.rule, standing.best
        name = rule.figure.removeprefix("eval_")
        if rule.kind == "drift":
            kept = "no evaluation before it was within it, so its weights are kept: evaluate more often (--eval_steps)"
            if best is not None:
                kept = f"the weights of step {best['step']:,.0f} are kept"
            return f"Step {step:,}: more than {rule.max_drift:.0%} of the nearest neighbors have changed; {kept}."
        if best is None:
            return f"Step {step:,}: {name} was not measured."
        text = (
            f"Step {step:,}: the training ends, because {name} was {best[rule.figure]:.4g} at step {best['step']:,.0f}"
            f" and no better by more than {rule.tolerance(best):.2g} in the {standing.waited} evaluations since then."
        )
        if best["step"] == 0:
            text += " None was better than the weights that it started from: use those."
        if rule.kind == "rank":
            # In the runs of docs/reading.md it was high at first, fell, and rose slowly.
            text += (
                " It is often highest in the first evaluations, before much is learned: compare these weights with"
                f" checkpoint-{step} (hf-simmim embed, or probe with labels), or train without --stop_by."
            )
        return text


class TimeBudget(TrainerCallback):
    """Ends a training after some hours, at the end of its learning rate schedule.

    The share of the schedule that is done is never less than the share of the time: where steps are too slow for all of
    them to fit, the learning rate falls faster, so that the training ends with a rate of zero, as a short schedule
    does. A training that is fast enough is not changed. Evaluations and checkpoints count, and so does the time before
    a resumed run was stopped; reading the images at the start and what follows the last step do not.

    How fast the machine is decides about the learning rates, so a run that is repeated, or killed and resumed, is not
    the same to the bit.

    Args:
        hours: Hours of training.

    Raises:
        ValueError: If `hours` is not above 0.
    """

    def __init__(self, hours: float):
        if not hours > 0:
            raise ValueError(f"max_hours={hours} must be above 0.")
        self.hours = hours
        self.before = 0.0
        self.start = time.monotonic()

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the clock where it stopped."""
        self.before = state.stateful_callbacks.get(TRAINED, {}).get("seconds", 0.0)
        self.start = time.monotonic()

    def seconds(self) -> float:
        """Seconds of training until now, those of earlier sessions included."""
        return self.before + time.monotonic() - self.start

    def on_step_end(self, args, state, control, lr_scheduler: Any = None, **kwargs):
        """Move the schedule on, and end the training with it; the clock of the first process counts for all."""
        schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
        if args.world_size > 1 and state.global_step % STEPS_BETWEEN:
            return
        elapsed = [self.seconds()]
        broadcast_object_list(elapsed)
        share = elapsed[0] / (3600 * self.hours)
        position = min(int(share * state.max_steps), state.max_steps)
        for _ in range(position - schedule.last_epoch):
            schedule.step()
        is_over = schedule.last_epoch >= state.max_steps > state.global_step
        state.stateful_callbacks[TRAINED] = {"seconds": round(elapsed[0], 1), "is_over": is_over}
        if not is_over:
            return
        control.should_training_stop = True
        control.should_save = args.save_strategy != SaveStrategy.NO
        if state.is_world_process_zero:
            logger.warning(
                f"Step {state.global_step:,} of {state.max_steps:,}: the training ends after --max_hours"
                f" {self.hours:g}, with the end of its schedule."
            )

    def has_ended(self, state: Any) -> bool:
        """Whether a run ended by the clock at the step of this state, so that nothing is left to train."""
        return bool(state.stateful_callbacks.get(TRAINED, {}).get("is_over", False))


class LossAlarm(TrainerCallback):
    """Warns if the training loss rises from evaluation to evaluation: it is no guide to when to stop, but an alarm.

    Args:
        num_rises: Rises in a row that cause the warning.
    """

    def __init__(self, num_rises: int = NUM_RISES):
        self.num_rises = num_rises

    def on_evaluate(self, args, state, control, **kwargs):
        """Compare the means of the training loss between evaluations."""
        losses = losses_between_evaluations(state.log_history)
        rises = 0
        for before, after in itertools.pairwise(losses):
            rises = rises + 1 if after > before else 0
        if rises == self.num_rises and state.is_world_process_zero:
            shown = ", ".join(f"{loss:.4g}" for loss in losses[-rises - 1 :])
            logger.warning(
                f"Step {state.global_step}: the training loss has risen over {rises} evaluations: {shown}. If it goes"
                " on, the learning rate is too high: start a new run in another --output_dir with a lower"
                " --learning_rate, from an earlier checkpoint (--checkpoint)."
            )


def losses_between_evaluations(log: Log) -> list[float]:
    """Mean of the training losses that were logged before each evaluation and after the one before it.

    Args:
        log: `TrainerState.log_history`.

    Returns:
        The means, without evaluations before which nothing was logged.
    """
    means: list[float] = []
    losses: list[float] = []
    for entry in log:
        if "loss" in entry:
            losses.append(entry["loss"])
        elif "eval_loss" in entry and losses:
            means.append(sum(losses) / len(losses))
            losses = []
    return means
