"""What a training prints: one progress bar, and lines of numbers that can be read."""

from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import has_length

# Logged for machines; the last is printed as the throughput.
SILENT = ("epoch", "step", "total_flos", "eta_seconds", "images_per_second", "data_wait", "train_loss")
SILENT_ENDINGS = ("_runtime", "_samples_per_second", "_steps_per_second", "_jit_compilation_time", "_low", "_high")
SHORT_NAMES = {"learning_rate": "lr", "grad_norm": "gradient norm"}


class ConsoleCallback(TrainerCallback):
    """Prints a training as a progress bar, and what is logged as lines; `trainer_state.json` is the same as without.

    Takes the place of transformers' own callbacks, which print dicts of strings and a second bar for evaluations.

    Args:
        with_bar: Whether to draw a bar; without it only lines are printed.
    """

    def __init__(self, with_bar: bool = True):
        self.with_bar = with_bar
        self.bar: Any = None
        self.num_batches = 0

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the bar, in a resumed run where it stopped."""
        if state.is_world_process_zero and self.with_bar:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, dynamic_ncols=True, unit="step")

    def on_step_end(self, args, state, control, **kwargs):
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """Say in the bar how far an evaluation is."""
        self.num_batches += 1
        if self.bar is not None and has_length(eval_dataloader):
            self.bar.set_postfix_str(f"evaluating, batch {self.num_batches} of {len(eval_dataloader)}")

    def on_evaluate(self, args, state, control, **kwargs):
        """Clear what the bar says of the evaluation."""
        self.num_batches = 0
        if self.bar is not None:
            self.bar.set_postfix_str("")

    def on_predict(self, args, state, control, metrics, **kwargs):
        """Clear what the bar says of the predictions."""
        self.on_evaluate(args, state, control)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Print what is logged as one line."""
        line = log_line(logs or {}, state.global_step, state.max_steps)
        if state.is_world_process_zero and line:
            try:
                (print if self.bar is None else self.bar.write)(line)
            except RuntimeError:  # tqdm looks at all bars, and an upload in another thread may open or close one
                print(line)

    def on_train_end(self, args, state, control, **kwargs):
        """End the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class ShortRunCallback(TrainerCallback):
    """Logs the last step of every training, and a short one about ten times unless `logging_steps` was set.

    Otherwise a run of fewer steps than `logging_steps` has no training loss, neither printed nor in the loss curve.
    """

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a log entry."""
        named = getattr(args, "named", None)
        interval = max(1, state.max_steps // 10)
        is_short = named is not None and "logging_steps" not in named and interval < args.logging_steps
        is_due = is_short and state.global_step % interval == 0
        if args.logging_strategy != "no" and (is_due or state.global_step >= state.max_steps):
            control.should_log = True
        return control


def print_readably(trainer: Trainer) -> None:
    """Print a training by `ConsoleCallback` instead of transformers' own callbacks; notebooks keep their table.

    Args:
        trainer: The trainer.
    """
    trainer.add_callback(ShortRunCallback())
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback) in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
            trainer.add_callback(ConsoleCallback(with_bar=type(callback) is ProgressCallback))


def log_line(logs: Mapping[str, Any], step: int, max_steps: int) -> str:
    """A line of a log.

    Args:
        logs: What is logged, by name.
        step: Step of the training.
        max_steps: Steps of the whole training; 0 outside of a training.

    Returns:
        The line; empty if there is nothing to print.
    """
    kind = "eval: " if any(name.startswith("eval_") for name in logs) else ""
    parts = []
    for name, value in logs.items():
        if name in SILENT or name.endswith(SILENT_ENDINGS):
            continue
        title = SHORT_NAMES.get(name) or name.removeprefix("eval_").replace("_", " ")
        parts.append(f"{title} {_shown(name, value)}{_interval(name, logs)}")
    if "train_runtime" in logs:
        parts.append(f"trained in {duration(logs['train_runtime'])}")
    if logs.get("images_per_second"):
        parts.append(f"{logs['images_per_second']:,.0f} images/s")
    if logs.get("eta_seconds") and step < max_steps:
        parts.append(f"eta {duration(logs['eta_seconds'])}")
    if not parts:
        return ""
    epoch = f" (epoch {logs['epoch']:.1f})" if isinstance(logs.get("epoch"), (int, float)) else ""
    total = f"/{max_steps}" if max_steps else ""
    return f"step {step}{total}{epoch}  {kind}{'  '.join(parts)}"


def _interval(name: str, logs: Mapping[str, Any]) -> str:
    """The 95 % interval of an accuracy, if it was logged with it."""
    low, high = (logs.get(name.replace("accuracy", end)) for end in ("low", "high"))
    return "" if "accuracy" not in name or low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"


def _shown(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if name == "learning_rate":
        return f"{value:.1e}"
    if ("accuracy" in name or "agreement" in name) and 0 <= value <= 1:
        return f"{100 * value:.1f} %"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """A duration in its two largest units.

    Args:
        seconds: The duration.

    Returns:
        The duration, such as 42 s, 1 min 21 s or 3 h 5 min.
    """
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"
