"""Runs the code of the documentation as it stands on the page, small.

A page is run from its first block to its last in a folder of its own. The text is never changed; what is changed is
the world around it: `my_photos` holds sixteen pictures, `runs/my_photos` a tiny checkpoint, and models of the Hub come
from a server on this machine, tiny and random. Python runs as it is, but Trainer takes one step. A command runs like
this, whether a page calls `hf-simmim`, one of its launchers in `examples/`, or its function in Python:

- every option is parsed as it is written, by the command's own parser and by that of accelerate or torchrun before it;
- then the command runs in this process, with the options of `SMALL` behind those of the page: they win, and change
  the encoder's size and the length of the run;
- commands that start several processes are only parsed (tests/cli/test_pretrain.py starts two), and so are those with
  an option of `NOT_HERE`. `pip install` is checked, and installs nothing.

A line without a rule fails, so no page can show a command that nobody ran.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from command_lines import command_line
from paths import ROOT

from hf_simmim.__main__ import main
from hf_simmim.cli.command import Command
from hf_simmim.cli.pretrain import build_config
from hf_simmim.cli.recipes import options_of

FENCE = re.compile(r"(?P<indent> *)(?P<ticks>`{3,})(?P<language>[\w-]*) *(?P<info>.*)$")

# Four stages, as Swin has them, so that layers and strides can be named as in the pages.
ENCODER = {
    "model_type": "swin",
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 2,
}
STEP = {
    **{"max_steps": 1, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 8, "dataloader_num_workers": 0},
    **{"use_cpu": "True", "disable_tqdm": "True", "gradient_accumulation_steps": 1},
}
UNLESS_CHECKPOINT = {"encoder": json.dumps(ENCODER)}
# Options behind those of the page. A function gets the options of the page.
SMALL: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "audit": lambda words: {"workers": 1},
    "pack": lambda words: {"workers": 1},
    "pretrain": lambda words: STEP | no_encoder(words) | {"num_clusters": 4, "head_options": small_head(words)},
    "finetune": lambda words: STEP | {"weight_average": None},
    "segment": lambda words: STEP | {"decoder_channels": 16, "crop_size": 64, "per_device_eval_batch_size": 1},
    "predict": lambda words: {"num_workers": 0, "max_images": 8},
    "probe": lambda words: {"dataloader_num_workers": 0, "per_device_eval_batch_size": 8},
    "compare": lambda words: {
        "seeds": [0, 1],
        "labels_per_class": 2,
        "layer_decays": 0.8 if "--layer_decays" in words else None,
        "finetune_options": json.dumps(STEP | ({"crop_size": 32, "decoder_channels": 16} if "--task" in words else {})),
        "pretrain_options": None if "--checkpoint" in words else json.dumps(STEP | UNLESS_CHECKPOINT),
    },
    "replay": lambda words: {"checkpoint": "runs/my_photos"},
    "convert": lambda words: {},
    "embed": lambda words: {"num_workers": 0, "max_images": 8},
    "reconstruct": lambda words: {"num_images": 2},
    "export": lambda words: {"dynamic_batch": "False"},
    "app": lambda words: {},
}
# Options that this machine can only parse, not run.
NOT_HERE = {"--fp16": "needs a GPU", "--torch_compile": "takes a minute", "--fsdp": "needs a GPU"}
# Programs that wait for a person, or for a network that is not there.
NOT_RUN = ("accelerate config", "tensorboard", "hf auth login")


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    info: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def title(self) -> str | None:
        """Name of the file that the block is, if it says so."""
        match = re.search(r'title="([^"]+)"', self.info)
        return match[1] if match else None


def blocks_of(text: str, page: str) -> list[Block]:
    """All fenced blocks of a text in Markdown, those in lists and notes too."""
    blocks: list[Block] = []
    opening, start, lines = None, 0, []
    for number, line in enumerate(text.splitlines(), 1):
        match = FENCE.match(line)
        if opening is None:
            if match:
                opening, start, lines = match, number, []
        elif line.strip() == opening["ticks"]:
            code = textwrap.dedent("\n".join(lines))
            blocks.append(Block(page, start, opening["language"], opening["info"], code))
            opening = None
        else:
            lines.append(line)
    if opening is not None:
        raise AssertionError(f"{page}:{start}: the block is not closed")
    return blocks


def no_encoder(words: list[str]) -> dict[str, Any]:
    """A tiny encoder, where the command names none that is tiny by itself."""
    if "visible" in words:
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        return {"encoder": json.dumps({"model_type": "vit", "image_size": 64, "patch_size": 16} | sizes)}
    return {} if "--checkpoint" in words else UNLESS_CHECKPOINT


def small_head(words: list[str]) -> str | None:
    """The options of an inverse Swin, which has the size of an encoder."""
    options = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2}
    return json.dumps(options) if "inverse_swin" in words else None


def command_lines(code: str) -> list[list[str]]:
    """The commands of a block of shell, as words."""
    lines = re.sub(r"\\\n", " ", code).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def command_named(name: str) -> Command:
    """A command of the package."""
    return importlib.import_module(f"hf_simmim.cli.{name}").COMMAND


CALL = Command.__call__


def small_call(command: Command, **options: Any) -> Any:
    """A Python call of a command, with the options of `SMALL` in place of those of the page."""
    words = options_of(options)
    command.parse(words)
    small = {name: value for name, value in SMALL[command.name](words).items() if value is not None}
    return CALL(command, **(options | small))


class Page:
    """Runs blocks one after the other.

    Args:
        folder: Current folder of the commands.
        environment: Environment of programs that run in a process of their own.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None):
        self.folder = folder
        self.environment = environment or dict(os.environ)
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.printed = ""

    def run(self, block: Block) -> None:
        """Run a block, or check it, by its language.

        Raises:
            AssertionError: If there is no rule for it, or it fails.
        """
        runner = getattr(self, f"run_{block.language or 'nothing'}", None)
        if runner is None:
            raise AssertionError(f"{block}: no rule for language {block.language!r}; output is `text`")
        try:
            runner(block)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{block}: {type(error).__name__}: {error}\n{block.code}") from error

    def run_text(self, block: Block) -> None:
        """Output; under the title "Printed" it must be what the Python before it printed."""
        if block.title == "Printed":
            assert block.code.split() == self.printed.split(), f"printed was\n{self.printed}"

    def run_python(self, block: Block) -> None:
        """Python, in the page's one namespace."""
        small_calls = mock.patch.object(Command, "__call__", small_call)
        with contextlib.redirect_stdout(io.StringIO()) as printed, small_calls:
            exec(compile(block.code, str(block), "exec"), self.namespace)
        self.printed = printed.getvalue()

    def run_json(self, block: Block) -> None:
        """A recipe, which `pretrain` must accept, and which a later command of the page reads."""
        recipe = json.loads(block.code)
        if block.title:
            (self.folder / block.title).write_text(block.code, encoding="utf-8")
            command_named("pretrain").parse(["--train_dir", "my_photos", "--recipe", block.title])
        assert isinstance(recipe, dict)

    def run_yaml(self, block: Block) -> None:
        """A config of accelerate, which a later command of the page reads."""
        from accelerate.commands.config.config_args import load_config_from_file

        assert yaml.safe_load(block.code)
        if block.title:
            path = self.folder / block.title
            path.write_text(block.code, encoding="utf-8")
            load_config_from_file(str(path))

    def run_bash(self, block: Block) -> None:
        """Commands."""
        for words in command_lines(block.code):
            self.run_command(words)

    def run_command(self, words: list[str]) -> None:
        """Run or check a command by the name of its program."""
        words = [
            re.sub(r"\$\{?(\w+)\}?", lambda match: self.environment.get(match[1], match[0]), word) for word in words
        ]
        while words and (match := re.fullmatch(r"([A-Z][A-Z0-9_]*)=(.*)", words[0])):
            if match[1] not in ENVIRONMENT:
                raise AssertionError(f"the variable {match[1]} is unknown")
            words = words[1:]
        if not words:
            return
        for start in NOT_RUN:
            if " ".join(words).startswith(start):
                assert Path(sys.executable).with_name(words[0]).exists(), f"{words[0]} is not installed"
                return
        program, rest = words[0], words[1:]
        rule = COMMANDS.get(program)
        if rule is None:
            raise AssertionError(f"no rule for the command {program!r}")
        rule(self, rest)

    def export(self, words: list[str]) -> None:
        """Set variables for the rest of the page."""
        for word in words:
            name, _, value = word.partition("=")
            if name not in ENVIRONMENT:
                raise AssertionError(f"the variable {name} is unknown")
            self.environment[name] = value

    def accelerate(self, words: list[str]) -> None:
        """`accelerate launch SCRIPT` and `accelerate launch -m MODULE`."""
        from accelerate.commands import launch

        if words[0] != "launch":
            raise AssertionError(f"no rule for accelerate {words[0]}")
        arguments = launch.launch_command_parser().parse_args(words[1:])
        if not arguments.use_deepspeed:  # whose check asks for the package
            launch._validate_launch_command(arguments)
        several = (arguments.num_machines or 1) > 1 or (arguments.num_processes or 1) > 1
        start = self.module if arguments.module else self.script
        start(arguments.training_script, arguments.training_script_args, not several)

    def torchrun(self, words: list[str]) -> None:
        """`torchrun SCRIPT` and `torchrun -m MODULE`."""
        from torch.distributed.run import get_args_parser

        arguments = get_args_parser().parse_args(words)
        start = self.module if arguments.module else self.script
        start(arguments.training_script, arguments.training_script_args, arguments.nproc_per_node == "1")

    def python(self, words: list[str]) -> None:
        """`python SCRIPT` and `python -m MODULE`."""
        if words[:2] == ["-m", "http.server"]:
            return
        if words[0] == "-m":
            self.module(words[1], words[2:], True)
        else:
            self.script(words[0], words[1:], True)

    def hf_simmim(self, words: list[str]) -> None:
        """`hf-simmim COMMAND`."""
        self.module("hf_simmim", words, True)

    def module(self, name: str, words: list[str], run: bool) -> None:
        """The module `hf_simmim`, whose first word is the name of a command, or one beside it."""
        if name != "hf_simmim":
            path = ROOT / name.replace(".", "/")
            if not (path / "__main__.py").is_file() and not path.with_suffix(".py").is_file():
                raise AssertionError(f"no rule for python -m {name}")
            files = path.glob("*.py") if path.is_dir() else [path.with_suffix(".py")]
            self.look_up(name, "".join(file.read_text(encoding="utf-8") for file in files), words)
        elif not words or words[0] not in SMALL:
            main(words)
        else:
            self.command(words[0], words[1:], run)

    def script(self, path: str, words: list[str], run: bool) -> None:
        """A launcher of a command, or another script, of which only the options are looked up."""
        if not (ROOT / path).is_file():
            raise AssertionError(f"there is no {path}")
        text = (ROOT / path).read_text(encoding="utf-8")
        launched = re.search(r'main\(\["(\w+)"', text) if Path(path).parent.name == "examples" else None
        if launched is None:
            self.look_up(path, text, words)
        else:
            self.command(launched[1], words, run)

    def look_up(self, name: str, text: str, words: list[str]) -> None:
        """Reject options that a program's text does not have: it takes minutes to run, and has tests of its own."""
        missing = [word for word in words if word.startswith("--") and f'"{word}"' not in text + '"--help"']
        assert not missing, f"{name} has no {missing}"

    def command(self, name: str, words: list[str], run: bool) -> None:
        """Parse the options of a command as they are written, then run it small."""
        command = command_named(name)
        if {"--help", "--help-all"} & set(words):
            command.main(words)
            return
        # bf16 asks for a GPU, or to be told that there is none.
        on_cpu = ["--use_cpu", "True"] if "use_cpu" in SMALL[name](words) else []
        parsed = command.parse([*words, *on_cpu])
        if name == "pretrain":
            build_config(parsed[1])
        if not run or any(word in NOT_HERE for word in words):
            return
        done = json.dumps([name, words])
        # Unless a later command of this page may want what it writes.
        if (
            name in TRAINERS
            and done in DONE
            and ("--output_dir" not in words or Path(words[words.index("--output_dir") + 1]).exists())
        ):
            return
        DONE.add(done)
        options = command_line(SMALL[name](words))
        # Pages are built whole, but not served: that would wait for a person.
        with contextlib.chdir(self.folder), mock.patch("gradio.Blocks.launch"):
            command.main([*words, *options])

    def pip(self, words: list[str]) -> None:
        """Check that a package is known, and that the extras of this one exist; nothing is installed."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        known = {re.split(r"[\[<>=]", text)[0] for extra in project["optional-dependencies"].values() for text in extra}
        assert words[0] == "install"
        for word in words[1:]:
            package, _, extras = word.rstrip("]").partition("[")
            if package in (".", project["name"]):
                missing = set(filter(None, extras.split(","))) - project["optional-dependencies"].keys()
                assert not missing, f"there are no extras {missing}"
            elif not word.startswith("-"):
                assert package in known | MORE_PACKAGES, package

    def make(self, words: list[str]) -> None:
        """Targets of the Makefile."""
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        for word in words:
            assert "=" in word or word in targets, word

    def srun(self, words: list[str]) -> None:
        """SLURM's, which starts the command that follows on each machine."""
        while words[0].startswith("-"):
            words = words[1:]
        self.run_command(words)

    def hf(self, words: list[str]) -> None:
        """The client of the Hub, for real, against the server on this machine."""
        command = [str(Path(sys.executable).with_name("hf")), *words]
        completed = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, cwd=self.folder, check=False
        )
        assert completed.returncode == 0, completed.stdout[-2000:] + completed.stderr[-2000:]


# Their default folders are read by no later command.
TRAINERS = ("pretrain", "finetune", "probe", "compare")
# Commands that have run already in this process: many pages begin with the same one.
DONE: set[str] = set()
# Packages that a page may install beside ours and its extras.
MORE_PACKAGES = {"deepspeed", "timm"}
# Variables that pages may set, in front of a command or with export.
ENVIRONMENT = {
    *("HF_HUB_OFFLINE", "HF_HOME", "HF_ENDPOINT", "HF_TOKEN", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
    *("TENSORBOARD_LOGGING_DIR", "WANDB_MODE", "WANDB_PROJECT", "TRACKIO_PROJECT", "NCCL_DEBUG", "MASTER_ADDR"),
}
COMMANDS: dict[str, Callable[[Page, list[str]], None]] = {
    "hf-simmim": Page.hf_simmim,
    "accelerate": Page.accelerate,
    "torchrun": Page.torchrun,
    "python": Page.python,
    "pip": Page.pip,
    "make": Page.make,
    "srun": Page.srun,
    "export": Page.export,
    "hf": Page.hf,
}
