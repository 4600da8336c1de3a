"""A training that ends in time: its schedule moves on with the clock where the steps are too slow."""

import time
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Key of the seconds that were trained, in the state of a trainer.
TRAINED = "time_budget"
# Steps between two looks at the clock, where processes have to agree.
STEPS_BETWEEN = 8


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
