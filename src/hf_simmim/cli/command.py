"""Common parts of all commands: options, help, error messages, plans, and calls from Python."""

import argparse
import contextlib
import dataclasses
import os
import random
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.state import AcceleratorState, PartialState
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import HfArgumentParser
from transformers.utils import logging

from ..data.reading import NoReadableImageError
from ..hub.provenance import safe_command
from ..training.agreement import num_processes
from ..training.arguments import SimMIMTrainingArguments
from ..training.run_lock import unlock_runs
from ..training.saving.checkpoints import TrainingStoppedError
from .options.names import nearest
from .options.slices import SliceArguments
from .recipes import CommandError, options_of, recipe_names, recipe_options

PROGRAM = "hf-simmim"


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the line breaks of the description, and shows every default."""


class _Parser(HfArgumentParser):
    """A parser that raises instead of exiting, since commands are also called from Python."""

    def error(self, message: str) -> Any:
        raise CommandError(f"{message}.")


@dataclass(frozen=True)
class Command:
    """A command: `hf-simmim NAME` in a shell, `hf_simmim.NAME(...)` in Python.

    Args:
        name: Name of the command.
        usage: Short form of its command line, for the help.
        description: Description, for the help.
        kinds: Dataclasses whose fields are the options.
        run: Function that is called with one object of each kind.
        common: Options that `--help` shows; `--help-all` shows all.
        positional: Options that may be given first, without their names and in this order.
        demo: Whether the recipe `demo` is used if no images and no recipe are named.
        recipes_of: Name of the command whose recipes it takes; its own if None.
    """

    name: str
    usage: str
    description: str | None
    kinds: Sequence[type]
    run: Callable[..., Any]
    common: Sequence[str]
    positional: Sequence[str] = ()
    demo: bool = False
    recipes_of: str | None = None

    def main(self, argv: Sequence[str] | None = None) -> Any:
        """Run the command from a shell.

        Args:
            argv: The command line after the name of the command; that of the process if None.

        Returns:
            What the command computed.

        Raises:
            SystemExit: If the command fails; the message says why and what to do.
        """
        argv = list(sys.argv[1:] if argv is None else argv)
        try:
            if {"-h", "--help", "--help-all"} & set(argv):
                print(self.help(everything="--help-all" in argv))
                return None
            parts = self.parse(argv)
            result = self.run(*parts)
        except CommandError as error:
            raise SystemExit(f"error: {error}") from error
        options = {name: value for part in parts for name, value in vars(part).items()}
        # What no option names, such as a model that was trained on the way.
        found = {name: getattr(result, name, None) for name in ("task", "checkpoint") if options.get(name) is None}
        print_next(self.name, options | found, getattr(result, "next_options", {}))
        return result

    def __call__(self, **options: Any) -> Any:
        """Run the command from Python.

        Args:
            **options: As on the command line; None leaves an option at its default.

        Returns:
            What the command computed.

        Raises:
            TypeError: If an option is unknown; the message names the nearest valid one.
            CommandError: If the command fails; the message says why and what to do.
        """
        known = self.option_names()
        for name in options:
            if name not in known:
                raise TypeError(f"{self.name}() has no option {name!r}.{nearest(name, known)}")
        with process_as_it_was():
            return self.run(*self.parse(options_of(options)))

    def parse(self, argv: Sequence[str]) -> tuple[Any, ...]:
        """Parse options; the command line takes precedence over the recipe, and the recipe over defaults.

        Args:
            argv: The command line after the name of the command.

        Returns:
            One object of each kind.

        Raises:
            CommandError: If an option or a key of the recipe is unknown, or a value is invalid; the message says why.
        """
        parser, argv = self._parser(), self._with_names(list(argv))
        known = self.option_names() - {"recipe"}
        named, _ = parser.parse_known_args(argv)
        recipe = named.recipe
        if recipe is None and self.demo and not (named.train_dir or named.dataset_name or named.data_files):
            recipe = "demo"
        # Before the command line, so that it wins, and through the parser, so that the values are checked alike.
        # Weights bring their encoder: that of a recipe gives way to them.
        skipped = {"encoder"} if getattr(named, "checkpoint", None) else set()
        options = [] if recipe is None else recipe_options(recipe, known, self.recipes_of or self.name, skipped)
        arguments, unknown = parser.parse_known_args([*options, *argv])
        if unknown:
            option = unknown[0].split("=")[0]
            raise CommandError(f"unknown option {option}.{nearest(option.lstrip('-'), known, '--')}")
        values = vars(arguments)
        try:
            with in_words():
                parsed = tuple(
                    kind(**{field.name: values[field.name] for field in dataclasses.fields(kind) if field.init})
                    for kind in self.kinds
                )
        except (TypeError, LookupError, AttributeError, ArithmeticError, ImportError, RuntimeError) as error:
            # Of the libraries whose arguments these are, when a value is of a kind that they do not expect.
            raise CommandError(f"an option has an invalid value: {' '.join(str(error).split())}.") from error
        for part in parsed:
            if isinstance(part, SimMIMTrainingArguments):
                part.command = safe_command([PROGRAM, self.name], argv)
                part.named, part.recipe = _named_options(argv), recipe
                part.given = part.named | _named_options(options)
        return parsed

    def option_names(self) -> set[str]:
        """Names of all options."""
        names = {field.name for kind in self.kinds for field in dataclasses.fields(kind) if field.init}
        return names | {"recipe"}

    def help(self, everything: bool = False) -> str:
        """Render the help: usage, description, and the common options or all options."""
        parser = self._parser()
        if everything:
            return parser.format_help()
        actions = {action.dest: action for action in parser._actions}
        lines = [f"usage: {PROGRAM} {self.name} {self.usage}", "", (self.description or "").strip(), "", "options:"]
        for name in self.common:
            text = _in_short(actions[name])
            lines += textwrap.wrap(
                text, 110, initial_indent=f"  --{name:<28} ", subsequent_indent=" " * 33, break_on_hyphens=False
            )
        lines += ["", f"{PROGRAM} {self.name} --help-all shows all {len(actions) - 1} options in full."]
        return "\n".join(lines)

    def _parser(self) -> _Parser:
        parser = _Parser(
            self.kinds,  # type: ignore[arg-type]
            prog=f"{PROGRAM} {self.name}",
            usage=f"%(prog)s {self.usage}",
            description=self.description,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        # argparse by itself takes -3.4e+38, which is what many rasters have for missing pixels, for an option.
        parser._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$", re.IGNORECASE)
        names = recipe_names(self.recipes_of or self.name)
        parser.add_argument(
            "--recipe", help="JSON file of options" + (f", or one of: {', '.join(names)}." if names else ".")
        )
        return parser

    def _with_names(self, argv: list[str]) -> list[str]:
        """Give values at the beginning of a command line the names of the positional options."""
        named: list[str] = []
        for name in self.positional:
            if argv and not argv[0].startswith("-"):
                named += [f"--{name}", argv.pop(0)]
        return [*named, *argv]


def _named_options(argv: Sequence[str]) -> set[str]:
    """Names of the options on a command line, those that switch something off by the name of what they switch."""
    names = {word[2:].split("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
    return names | {name.removeprefix("no_") for name in names}


# What a user does next, by command and, where it matters, its task; a line whose options are unset is left out.
NEXT = {
    "pack": ("pre-train on these images: hf-simmim pretrain --train_dir {output_dir}",),
    "pretrain": (
        "evaluate the features: hf-simmim probe --checkpoint {output_dir} --train_dir LABELED_PHOTOS",
        "train a classifier: hf-simmim finetune --checkpoint {output_dir} --train_dir LABELED_PHOTOS",
    ),
    "finetune": ("predict on new images: hf-simmim predict --checkpoint {output_dir} --image_dir PHOTOS",),
    "segment": ("predict on new images: hf-simmim predict --checkpoint {output_dir} --image_dir PHOTOS",),
    "probe": ("train a classifier: hf-simmim finetune --checkpoint {checkpoint} {labeled}",),
    "compare": ("train the model to use: hf-simmim finetune {advised} {labeled}",),
    "compare segmentation": ("train on all masks: hf-simmim segment {advised} --train_dir {train_dir}",),
    "embed": ("evaluate the features: hf-simmim probe --checkpoint {checkpoint} --train_dir LABELED_PHOTOS",),
    "reconstruct": ("mask by hand in the browser: hf-simmim app --checkpoint {checkpoint}",),
    "convert": ("see how images are arranged: hf-simmim embed --checkpoint {output_dir} --image_dir PHOTOS",),
    "predict": (
        "train with corrected labels: hf-simmim finetune --checkpoint {checkpoint} --train_dir LABELED_PHOTOS",
    ),
    # Sub-folders are classes, and hold no numbers.
    "predict regression": (
        "train with corrected numbers: hf-simmim finetune --checkpoint {checkpoint} --data_files PHOTOS.parquet"
        " --label_column NUMBERS",
    ),
    "predict segmentation": (
        "train with corrected masks: hf-simmim segment --checkpoint {checkpoint} --train_dir SCENES",
    ),
    "app": ("arrange images by their features: hf-simmim embed --checkpoint {checkpoint} --image_dir PHOTOS",),
}


# Options that name labeled images, without their defaults.
LABELED: dict[str, Any] = {
    **dict.fromkeys(("train_dir", "dataset_name", "dataset_config", "data_files", "image_column", "label_column")),
    "train_split": "train",
    **{option.name: option.default for option in dataclasses.fields(SliceArguments)},
}


def _labeled_images(options: Mapping[str, Any]) -> str:
    """Options of a command line that name the labeled images of another one; empty if it named none."""
    if not any(options.get(name) for name in ("train_dir", "dataset_name", "data_files")):
        return ""
    given = {name: options.get(name) for name, default in LABELED.items() if options.get(name) not in (None, default)}
    return shlex.join(options_of(given))


def print_next(command: str, options: Mapping[str, Any], advised: Mapping[str, Any] | None = None) -> None:
    """Print what to do after a command, in the first process.

    Args:
        command: Name of the command.
        options: Its options, by name.
        advised: Options of the next command that it found.
    """
    if command == "finetune":
        # Each of several runs has a folder of its own, and the model of the first is as good as any.
        seeds, folds = options.get("seeds"), options.get("num_folds")
        name = "-".join([f"seed-{seed}" for seed in (seeds or ())[:1]] + ["fold-0"] * (folds is not None))
        options = {**options, "output_dir": Path(options["output_dir"], name)}
    labeled = _labeled_images(options)
    values = {
        # Some commands take several checkpoints; the first one is meant.
        name: shlex.quote(str(value[0] if isinstance(value, (list, tuple)) else value))
        for name, value in options.items()
        if value not in (None, "", [], ())
    } | ({"labeled": labeled} if labeled else {})
    if advised:
        values["advised"] = shlex.join(options_of(advised))
    with contextlib.suppress(KeyError):
        task = f"{command} {options.get('task')}"
        lines = "; or ".join(line.format(**values) for line in NEXT.get(task, NEXT.get(command, ())))
        if lines and int(os.environ.get("RANK", "0")) == 0:
            print(f"Next: {lines}")


def _in_short(action: argparse.Action) -> str:
    """The first sentence of an option's help, and its default."""
    sentence = re.split(r"(?<=[.;]) (?=[A-Za-z])", str(action.help), maxsplit=1)[0].rstrip(".;")
    default = action.default
    if isinstance(default, list):
        default = " ".join(map(str, default))
    is_told = default is None or default is False or default == "" or "if unset" in sentence
    return sentence + ("" if is_told else f" (default: {default})")


@contextlib.contextmanager
def in_words(checkpoint: Any = None) -> Iterator[None]:
    """Turn errors about a user's input into a `CommandError`.

    Args:
        checkpoint: Name of the weights that are read, for the message.

    Raises:
        CommandError: If an input is invalid or cannot be read, or an output cannot be written.
    """
    try:
        yield
    except CommandError:
        raise
    except StrictDataclassError as error:
        raise CommandError(str(error.__cause__ or error)) from error
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from error
    except SafetensorError as error:
        raise CommandError(f"the weights of {checkpoint} are damaged ({error}).") from error


@contextlib.contextmanager
def one_run() -> Iterator[None]:
    """Unlock the folder of a run at its end, and turn what ended it into a `CommandError`.

    Raises:
        CommandError: If a number is not finite, images cannot be read, results cannot be written, or another process
            of the run or a worker is gone.
    """
    try:
        yield
    except (TrainingStoppedError, NoReadableImageError) as error:
        raise CommandError(_of_worker(error)) from error
    except (OSError, SafetensorError) as error:
        raise CommandError(
            f"{_of_worker(error).rstrip('.')}. Mend this, and repeat the command to resume from the newest checkpoint."
        ) from error
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            raise CommandError(
                f"{_of_worker(error).rstrip('.')}. Memory may be short: use fewer --dataloader_num_workers, and repeat"
                " the command to resume from the newest checkpoint."
            ) from error
        if num_processes() == 1 or not any(sign in str(error) for sign in ("gloo", "NCCL", "Connection", "Timed out")):
            raise
        reason = " ".join(str(error).split())[:200]
        raise CommandError(
            f"another process of this run ended, or did not answer within --ddp_timeout ({reason}). See what it"
            " printed."
        ) from error
    finally:
        unlock_runs()


def _of_worker(error: BaseException) -> str:
    """Message of an error in one line; of one that comes from a worker, without the traceback there."""
    text = str(error).strip()
    if text.startswith("Caught "):
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


@contextlib.contextmanager
def process_as_it_was() -> Iterator[None]:
    """Restore random states, environment, progress bars and accelerate's state for a caller in Python."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    environment = dict(os.environ)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    data_bars = datasets.are_progress_bars_disabled()
    was_started = bool(PartialState._shared_state)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        logging.set_verbosity(verbosity)
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
        (datasets.disable_progress_bars if data_bars else datasets.enable_progress_bars)()
        # A notebook may launch several processes afterwards, which accelerate refuses where a state is left.
        if not was_started and PartialState._shared_state and PartialState().num_processes == 1:
            AcceleratorState._reset_state(reset_partial_state=True)


def print_titled(lines: Mapping[str, str]) -> None:
    """Print lines with their titles in a column, such as a plan."""
    width = max(map(len, lines)) + 1
    print("\n".join(f"{title:<{width}} {text}" for title, text in lines.items()))


def print_files(folder: Path, meanings: Mapping[str, str]) -> None:
    """Print what the files of a folder are, if they exist."""
    for name, meaning in meanings.items():
        if (folder / name).exists():
            print(f"{folder / name}  {meaning}")


def existing(folder: Path, *names: str) -> dict[str, Path]:
    """Paths of the pictures that a command drew, by name without the suffix."""
    return {Path(name).stem: folder / name for name in names if (folder / name).exists()}


def make_folder(path: str | Path) -> Path:
    """Create the folder that results are written to.

    Args:
        path: The folder.

    Returns:
        The folder as a path.

    Raises:
        ValueError: If it cannot be created.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir={folder} cannot be written ({error}). Name another folder.") from error
    return folder
