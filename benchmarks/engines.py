"""The same pre-training with every way to start several processes that this machine allows, against one process.

Each engine makes the same steps with the same global batch. Compared are the losses of all steps and the weights at the
end; the checkpoint in the middle is resumed by the same engine, and by one process without it.

accelerate applies its settings of FSDP on accelerators only: `AcceleratorState` ignores them where the processes talk
through gloo, and trains with DDP. To run FSDP2 on processors, `shard_on_processors` lifts that one restriction;
everything after it is what runs on GPUs. DeepSpeed runs on processors by itself, where it is installed.

    python benchmarks/engines.py                            all that this machine allows, some minutes on two cores
    python benchmarks/engines.py --encoders swin --engines ddp fsdp_shards
    python benchmarks/engines.py --combine                  with accumulation, bf16, checkpointing and compilation, too
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from PIL import Image
from safetensors.torch import load_file

from hf_simmim import SimMIMForMaskedImageModeling
from hf_simmim.cli import finetune, pretrain

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "examples" / "accelerate_configs"
# Greatest difference to one process, relative to the values, that rounding explains.
BOUND = 1e-4
GLOBAL_BATCH = 8
# Forty training images: five steps an epoch. A checkpoint in the middle of the second of three epochs.
SAVED_STEP, LAST_STEP = 8, 15
# Seconds after which a run that waits for nobody is given up.
TIME_LIMIT = 240
# Softmax takes biases of keys away again: their gradient is rounding, which Adam divides by itself.
KEY_BIASES = ("key.bias", "k_proj.bias")
_VIT = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
# The paper's Swin, a plain ViT, and the paper's ViT, which transformers calls BEiT; without stochastic depth, which
# draws other numbers in each process.
ENCODERS: dict[str, dict[str, Any]] = {
    "swin": {
        "model_type": "swin",
        "image_size": 32,
        "patch_size": 4,
        "window_size": 4,
        "embed_dim": 16,
        "depths": [1, 2],
        "num_heads": [1, 2],
        "drop_path_rate": 0.0,
    },
    "beit": {
        "model_type": "beit",
        **_VIT,
        "intermediate_size": 64,
        "use_mask_token": True,
        "use_shared_relative_position_bias": True,
        "use_mean_pooling": False,
        "drop_path_rate": 0.0,
    },
    "vit": {"model_type": "vit", **_VIT, "intermediate_size": 64},
}


# Names and addresses of two machines that are network namespaces of this one.
NAMESPACE, CABLE, NETWORK = f"simmim{os.getpid()}-", "simmim", "10.77.0"


@dataclass
class Engine:
    """A way to start a pre-training.

    Args:
        title: What it is, for the table.
        processes: Number of processes.
        launchers: Makes the command line of each launcher, up to the name of the command.
        resumed_by_one: Whether a process without the engine resumes from its checkpoints.
    """

    title: str
    processes: int
    launchers: Callable[[], list[list[str]]]
    resumed_by_one: bool = True


@dataclass
class Outcome:
    """What was found of an engine, the worst of all encoders."""

    losses: float = 0.0
    weights: float = 0.0
    by_itself: float = 0.0
    by_one: float = 0.0
    # Of each encoder, whether `from_pretrained` loads the checkpoint in the middle.
    loaded: list[bool] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def accelerate_launch(config: str, *options: str) -> list[str]:
    """The beginning of a command line with one of our configs."""
    return [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config), *options]


def two_machines() -> list[list[str]]:
    """Launchers of two machines: network namespaces with a cable between them, or this machine where it has none."""
    is_inside = allows_namespaces()
    address, port = (f"{NETWORK}.1", "29500") if is_inside else ("127.0.0.1", str(free_port()))
    options = ("--num_processes", "2", "--main_process_ip", address, "--main_process_port", port)
    lines = []
    for rank in range(2):
        inside = ["ip", "netns", "exec", f"{NAMESPACE}{rank}", "env", f"GLOO_SOCKET_IFNAME={CABLE}{rank}"]
        launcher = [*accelerate_launch("several_machines.yaml", *options), "--machine_rank", str(rank)]
        lines.append([*(inside if is_inside else []), *launcher, "-m", "hf_simmim"])
    return lines


@contextlib.contextmanager
def namespaces() -> Iterator[None]:
    """Make two network namespaces, each with an address of its own at one end of a virtual cable."""
    if not allows_namespaces():
        yield
        return
    commands = [f"netns add {NAMESPACE}{rank}" for rank in range(2)]
    commands.append(
        f"link add {CABLE}0 netns {NAMESPACE}0 type veth peer name {CABLE}1 netns {NAMESPACE}1",
    )
    for rank in range(2):
        inside = f"-n {NAMESPACE}{rank}"
        commands += [f"{inside} addr add {NETWORK}.{rank + 1}/24 dev {CABLE}{rank}", f"{inside} link set lo up"]
        commands += [f"{inside} link set {CABLE}{rank} up"]
    try:
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True)
        yield
    finally:
        for rank in range(2):
            subprocess.run(["ip", "netns", "del", f"{NAMESPACE}{rank}"], check=False)


@functools.cache
def allows_namespaces() -> bool:
    """Whether network namespaces can be made here, which needs Linux, its `ip` and the rights of root."""
    if shutil.which("ip") is None:
        return False
    name = f"{NAMESPACE}-tried"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    return made and subprocess.run(["ip", "netns", "del", name], check=False).returncode == 0


def fsdp2(layout: str) -> list[list[str]]:
    """Launcher of two processes with FSDP2 on processors; this script takes the place of the command."""
    options = ("--num_processes", "2", "--main_process_port", "0", "--fsdp_state_dict_type", layout)
    return [[*accelerate_launch("fsdp2.yaml", *options), str(Path(__file__).resolve())]]


def zero(stage: int) -> list[list[str]]:
    """Launcher of two processes with DeepSpeed."""
    options = ("--num_processes", "2", "--main_process_port", str(free_port()))
    return [[*accelerate_launch(f"deepspeed_zero{stage}.yaml", *options), "-m", "hf_simmim"]]


ENGINES: dict[str, Engine] = {
    "one": Engine("one process", 1, lambda: [[sys.executable, "-m", "hf_simmim"]]),
    "ddp": Engine(
        "DDP (gloo), `cpu_two_processes.yaml`",
        2,
        lambda: [[*accelerate_launch("cpu_two_processes.yaml"), "-m", "hf_simmim"]],
    ),
    "fsdp_shards": Engine(
        "FSDP2 (gloo), `fsdp2.yaml`, sharded checkpoints", 2, functools.partial(fsdp2, "SHARDED_STATE_DICT")
    ),
    "fsdp_whole": Engine(
        "FSDP2 (gloo), `fsdp2.yaml`, whole checkpoints", 2, functools.partial(fsdp2, "FULL_STATE_DICT")
    ),
    "machines": Engine("two machines (gloo), `several_machines.yaml`", 2, two_machines),
}
if importlib.util.find_spec("deepspeed") is not None:
    ENGINES |= {
        f"zero{stage}": Engine(
            f"DeepSpeed ZeRO-{stage} (gloo), `deepspeed_zero{stage}.yaml`", 2, functools.partial(zero, stage), False
        )
        for stage in (2, 3)
    }
# Options that combine with the engines, and the engines that they are tried with.
COMBINED: dict[str, dict[str, Any]] = {
    "accumulation of 2": {"gradient_accumulation_steps": 2},
    "bf16": {"bf16": True},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "recomputed activations": {"recompute_activations": True},
    "compilation": {"torch_compile": True},
    "all four": {
        "gradient_accumulation_steps": 2,
        "bf16": True,
        "gradient_checkpointing": True,
        "torch_compile": True,
    },
}
COMBINED_ENGINES = [name for name in ("ddp", "fsdp_shards", "zero2", "zero3") if name in ENGINES]


def shard_on_processors() -> None:
    """Let accelerate apply its settings of FSDP where processes talk through gloo."""
    begin = AcceleratorState.__init__

    def begin_with_fsdp(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            # As `AcceleratorState.__init__` of accelerate 1.15 does for GPUs.
            self.distributed_type = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = self.distributed_type

    AcceleratorState.__init__ = begin_with_fsdp  # type: ignore[method-assign]


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def write_photos(folder: Path) -> None:
    """Write forty-eight pictures of colored stripes and noise."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for index in range(48):
        pixels = generator.integers(0, 60, (40 + index % 7, 40 + index % 5, 3)).astype(np.uint8)
        pixels[:, :: 2 + index % 4] += generator.integers(0, 195, 3).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")


def options(
    encoder: str, photos: Path, output_dir: Path, processes: int, more: dict[str, Any] | None = None
) -> list[str]:
    """Options of the pre-training."""
    batch, more = GLOBAL_BATCH // processes, more or {}
    settings = {
        "train_dir": photos,
        "output_dir": output_dir,
        "encoder": json.dumps(ENCODERS[encoder]),
        "mask_patch_size": 8,
        "holdout": 8 / 48,
        "per_device_train_batch_size": batch // more.get("gradient_accumulation_steps", 1),
        "per_device_eval_batch_size": batch,
        "max_steps": LAST_STEP,
        "learning_rate": 1e-3,
        "bf16": False,
        "save_strategy": "steps",
        "save_steps": SAVED_STEP,
        "logging_steps": 1,
        "dataloader_num_workers": 0,
        "use_cpu": True,
        **more,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def run(
    engine: Engine,
    encoder: str,
    photos: Path,
    output_dir: Path,
    more: dict[str, Any] | None = None,
    command: str = "pretrain",
) -> str | None:
    """Train with an engine; a folder with a checkpoint is resumed.

    Args:
        engine: The engine.
        encoder: Name of the encoder.
        photos: Folder of the images.
        output_dir: Folder of the run.
        more: Further options, None for those that are to be left out.
        command: Name of the command.

    Returns:
        None, or what went wrong.
    """
    arguments = [command, *options(encoder, photos, output_dir, engine.processes, more)]
    paths = os.pathsep.join([str(ROOT / "src"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": paths,
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
    }
    logs = [output_dir.with_name(f"{output_dir.name}-{rank}.log") for rank in range(2)]
    started = []
    for launcher, log in zip(engine.launchers(), logs, strict=False):
        with log.open("w", encoding="utf-8") as file:
            started.append(
                subprocess.Popen([*launcher, *arguments], env=environment, stdout=file, stderr=file, cwd=ROOT)
            )
    deadline = time.monotonic() + TIME_LIMIT
    problem = None
    for process, log in zip(started, logs, strict=False):
        try:
            code = process.wait(timeout=max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            code = "no end"
        if code != 0 and problem is None:
            lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if "Error" in line]
            problem = f"{code}: {lines[-1] if lines else 'no error was printed'} ({log})"
    return problem


def losses(output_dir: Path) -> dict[tuple[str, int], float]:
    """Losses of training and of evaluations by step."""
    log = json.loads((output_dir / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return {(name, entry["step"]): entry[name] for entry in log for name in ("loss", "eval_loss") if name in entry}


def greatest_difference(one: dict[Any, Any], other: dict[Any, Any]) -> float:
    """Greatest relative difference of values or tensors of the same names; infinite if there are others."""
    if one.keys() != other.keys():
        return float("inf")
    pairs = [(torch.as_tensor(one[name]).double(), torch.as_tensor(other[name]).double()) for name in one]
    return max(((first - second).norm() / first.norm().clamp(min=1e-12)).item() for first, second in pairs)


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    """Weights of a model as one process loads them, without those that no loss depends on."""
    model = SimMIMForMaskedImageModeling.from_pretrained(output_dir)
    stored = load_file(output_dir / "model.safetensors")
    loaded = model.state_dict()
    assert stored.keys() == loaded.keys()
    assert all(torch.equal(stored[name], loaded[name]) for name in stored)
    return {name: tensor for name, tensor in loaded.items() if not name.endswith(KEY_BIASES)}


def resumed(engine: Engine, encoder: str, photos: Path, output_dir: Path, name: str) -> tuple[Path, str | None]:
    """Resume a run from its checkpoint in the middle, in a folder that has nothing else."""
    copied = output_dir.with_name(f"{output_dir.name}-{name}")
    copied.mkdir()
    shutil.copy(output_dir / "run.json", copied)
    shutil.copytree(output_dir / f"checkpoint-{SAVED_STEP}", copied / f"checkpoint-{SAVED_STEP}")
    problem = run(engine, encoder, photos, copied)
    return copied, problem


def compare(name: str, encoder: str, photos: Path, folder: Path, outcome: Outcome) -> None:
    """Run an engine and compare it with the run of one process, which exists already."""
    engine, output_dir, reference = ENGINES[name], folder / f"{encoder}-{name}", folder / f"{encoder}-one"
    problem = run(engine, encoder, photos, output_dir)
    if problem is not None:
        outcome.problems.append(f"{encoder}: {problem}")
        return
    expected_losses, expected_weights = losses(reference), weights(reference)
    outcome.losses = max(outcome.losses, greatest_difference(expected_losses, losses(output_dir)))
    outcome.weights = max(outcome.weights, greatest_difference(expected_weights, weights(output_dir)))
    checkpoint = output_dir / f"checkpoint-{SAVED_STEP}"
    outcome.loaded.append((checkpoint / "config.json").is_file() and bool(weights(checkpoint)))
    for kind, resuming in (("by_itself", engine), ("by_one", ENGINES["one"])):
        if kind == "by_one" and not engine.resumed_by_one:
            continue
        copied, problem = resumed(resuming, encoder, photos, output_dir, kind)
        difference = float("inf")
        if problem is None:
            difference = greatest_difference(expected_weights, weights(copied))
        else:
            outcome.problems.append(f"{encoder}, resumed {kind}: {problem}")
        setattr(outcome, kind, max(getattr(outcome, kind), difference))


def without_our_change(encoder: str, photos: Path, folder: Path) -> str:
    """What accelerate makes of `fsdp2.yaml` on processors by itself."""
    options = ("--num_processes", "2", "--main_process_port", "0")
    launcher = [*accelerate_launch("fsdp2.yaml", *options), "-m", "hf_simmim"]
    output_dir = folder / "fsdp2-by-itself"
    problem = run(Engine("", 2, lambda: [launcher]), encoder, photos, output_dir)
    if problem is not None:
        return f"fails ({problem})"
    is_sharded = (output_dir / f"checkpoint-{SAVED_STEP}" / "pytorch_model_fsdp_0").is_dir()
    return "shards" if is_sharded else "ignores its settings of FSDP and trains with DDP"


def table(outcomes: dict[str, Outcome]) -> str:
    """The table of the engines, in Markdown."""

    def number(value: float) -> str:
        return "fails" if value == float("inf") else "0" if value == 0 else f"{value:.0e}"

    lines = [
        "| engine | processes | losses | weights | resumed by the same | resumed by one process | `from_pretrained` |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, outcome in outcomes.items():
        engine = ENGINES[name]
        cells = [number(getattr(outcome, key)) for key in ("losses", "weights", "by_itself", "by_one")]
        if not engine.resumed_by_one:
            cells[-1] = "no"
        if not outcome.loaded:
            cells, loaded = ["fails"] * 4, "fails"
        else:
            loaded = "run and checkpoint" if all(outcome.loaded) else "run"
        lines.append(f"| {engine.title} | {engine.processes} | {' | '.join(cells)} | {loaded} |")
    missing = ["NCCL on GPUs, `ddp.yaml`"]
    if importlib.util.find_spec("deepspeed") is None:
        missing += [f"DeepSpeed ZeRO-{stage}, `deepspeed_zero{stage}.yaml`" for stage in (2, 3)]
    for name in missing:
        needed = "deepspeed" if "DeepSpeed" in name else "CUDA"
        lines.append(f"| {name} | | not run: needs {needed} | | | | |")
    return "\n".join(lines)


def finetuned(encoder: str, photos: Path, folder: Path) -> tuple[str, list[str]]:
    """Fine-tune with the engines, with a learning rate for each layer.

    Args:
        encoder: Name of the encoder, of which one process has pre-trained a model.
        photos: Folder of the images.
        folder: Folder of the runs.

    Returns:
        Table in Markdown: greatest relative difference of losses and weights to one process, and problems.
    """
    labeled = folder / "labeled"
    for index, path in enumerate(sorted(photos.iterdir())):
        (labeled / f"class{index % 4}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, labeled / f"class{index % 4}")
    more = {
        "train_dir": labeled,
        "checkpoint": folder / f"{encoder}-one",
        "encoder": None,
        "mask_patch_size": None,
        "drop_path_rate": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
    }
    lines = ["| engine | losses | weights |", "| --- | ---: | ---: |"]
    problems = []
    expected: tuple[dict[Any, Any], dict[Any, Any]] = ({}, {})
    for name in ("one", *COMBINED_ENGINES):
        output_dir = folder / f"{encoder}-finetuned-{name}"
        problem = run(ENGINES[name], encoder, photos, output_dir, more, "finetune")
        if problem is not None:
            problems.append(f"finetune, {name}: {problem}")
            lines.append(f"| {ENGINES[name].title} | fails | fails |")
            continue
        stored = load_file(output_dir / "model.safetensors")
        kept = {key: value for key, value in stored.items() if not key.endswith(KEY_BIASES)}
        found = losses(output_dir), kept
        if name == "one":
            expected = found
        else:
            differences = [greatest_difference(one, other) for one, other in zip(expected, found, strict=True)]
            lines.append(f"| {ENGINES[name].title} | {' | '.join(f'{value:.0e}' for value in differences)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines), problems


def combined(encoder: str, photos: Path, folder: Path) -> tuple[str, list[str]]:
    """Try the engines with options that change how a step is computed.

    Args:
        encoder: Name of the encoder.
        photos: Folder of the images.
        folder: Folder of the runs.

    Returns:
        Table in Markdown: greatest relative difference of the losses to one process with the same option, and problems.
    """
    lines = [
        f"| option | {' | '.join(ENGINES[name].title for name in COMBINED_ENGINES)} |",
        f"| --- | {' | '.join('---:' for _ in COMBINED_ENGINES)} |",
    ]
    problems = []
    for title, more in COMBINED.items():
        cells, expected = [], {}
        for name in ("one", *COMBINED_ENGINES):
            output_dir = folder / f"{encoder}-{title.replace(' ', '_')}-{name}"
            problem = run(ENGINES[name], encoder, photos, output_dir, more)
            logs = folder.glob(f"{output_dir.name}-*.log")
            if problem is not None and any("does not work with" in log.read_text() for log in logs):
                cells.append("refused")
                continue
            if problem is not None:
                problems.append(f"{title}, {name}: {problem}")
            if name == "one":
                expected = losses(output_dir) if problem is None else {}
            else:
                difference = greatest_difference(expected, losses(output_dir)) if problem is None else float("inf")
                cells.append("fails" if difference == float("inf") else f"{difference:.0e}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines), problems


def processor() -> str:
    """Name of the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=["swin", "vit"])
    parser.add_argument("--engines", nargs="+", choices=[*ENGINES][1:], default=[*ENGINES][1:])
    parser.add_argument("--combine", action="store_true", help="try the engines with other options, too")
    parser.add_argument("--folder", type=Path, help="new folder of all runs (a temporary one if unset)")
    args = parser.parse_args(argv)

    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="engines-")) if args.folder is None else args.folder
    photos = folder / "photos"
    write_photos(photos)
    outcomes = {name: Outcome() for name in args.engines}
    for encoder in args.encoders:
        problem = run(ENGINES["one"], encoder, photos, folder / f"{encoder}-one")
        if problem is not None:
            raise SystemExit(f"One process fails with {encoder}: {problem}")
        for name, outcome in outcomes.items():
            with namespaces() if name == "machines" else contextlib.nullcontext():
                compare(name, encoder, photos, folder, outcome)
            print(f"{time.monotonic() - started:4.0f} s  {encoder}, {name}: {outcome}", flush=True)
    machines = "two network namespaces" if allows_namespaces() else "two launchers that meet on 127.0.0.1"
    ENGINES["machines"].title = ENGINES["machines"].title.replace("two machines", machines)
    by_itself = without_our_change(args.encoders[0], photos, folder)
    print(
        f"\n{processor()}, {len(os.sched_getaffinity(0))} cores, float32, one thread a process,"
        f" torch {torch.__version__}, transformers {transformers.__version__}, accelerate {accelerate.__version__}\n"
        f"Encoders: {', '.join(args.encoders)}; {LAST_STEP} steps of {GLOBAL_BATCH} images, resumed after step"
        f" {SAVED_STEP}. Greatest relative difference to one process.\n\n{table(outcomes)}\n\n"
        f"`fsdp2.yaml` on processors without the change of this script: accelerate {by_itself}."
    )
    others: list[str] = []
    if args.combine:
        text, others = combined(args.encoders[0], photos, folder)
        print(f"\nGreatest relative difference of losses to one process with the same option:\n\n{text}")
        text, more = finetuned(args.encoders[0], photos, folder)
        print(f"\nGreatest relative difference of a fine-tuning to one process:\n\n{text}")
        others += more
    problems = others + [f"{name}, {problem}" for name, outcome in outcomes.items() for problem in outcome.problems]
    worst = max(
        max(outcome.losses, outcome.weights, outcome.by_itself, outcome.by_one) for outcome in outcomes.values()
    )
    if problems or worst > BOUND:
        raise SystemExit("\n".join([f"Greatest difference {worst:.1e}, of at most {BOUND:.0e}.", *problems]))
    if args.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    # A launcher starts this script in place of the command.
    if sys.argv[1:2] == ["pretrain"]:
        shard_on_processors()
        pretrain.COMMAND.main(sys.argv[2:])
    elif sys.argv[1:2] == ["finetune"]:
        shard_on_processors()
        finetune.COMMAND.main(sys.argv[2:])
    else:
        main()
