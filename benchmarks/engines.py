"""The same pre-training with every way to start several processes that this machine allows, against one process.

Each engine makes the same steps with the same global batch. Compared are the losses of all steps and the weights at the
end; the checkpoint in the middle is resumed by the same engine, and by one process without it.

accelerate applies its settings of FSDP on accelerators only: `AcceleratorState` ignores them where the processes talk
through gloo, and trains with DDP. To run FSDP2 on processors, `shard_on_processors` lifts that one restriction;
everything after it is what runs on GPUs.

    python benchmarks/engines.py                            all that this machine allows, some minutes on two cores
    python benchmarks/engines.py --encoders swin --engines ddp fsdp_shards
"""

import argparse
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
from collections.abc import Callable, Sequence
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
from hf_simmim.cli import pretrain

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


@dataclass
class Engine:
    """A way to start a pre-training.

    Args:
        title: What it is, for the table.
        processes: Number of processes.
        launchers: Makes the command line of each launcher, up to the name of the command.
    """

    title: str
    processes: int
    launchers: Callable[[], list[list[str]]]


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
    """Launchers of two machines, which meet at an address of this one."""
    port = str(free_port())
    options = ("--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", port)
    ranks = [["--machine_rank", str(rank), "-m", "hf_simmim"] for rank in range(2)]
    return [[*accelerate_launch("several_machines.yaml", *options), *rank] for rank in ranks]


def fsdp2(layout: str) -> list[list[str]]:
    """Launcher of two processes with FSDP2 on processors; this script takes the place of the command."""
    options = ("--num_processes", "2", "--main_process_port", "0", "--fsdp_state_dict_type", layout)
    return [[*accelerate_launch("fsdp2.yaml", *options), str(Path(__file__).resolve())]]


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
    "machines": Engine("two launchers that meet on 127.0.0.1 (gloo), `several_machines.yaml`", 2, two_machines),
}


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


def options(encoder: str, photos: Path, output_dir: Path, processes: int) -> list[str]:
    """Options of the pre-training."""
    settings = {
        "train_dir": photos,
        "output_dir": output_dir,
        "encoder": json.dumps(ENCODERS[encoder]),
        "mask_patch_size": 8,
        "holdout": 8 / 48,
        "per_device_train_batch_size": GLOBAL_BATCH // processes,
        "per_device_eval_batch_size": GLOBAL_BATCH // processes,
        "max_steps": LAST_STEP,
        "learning_rate": 1e-3,
        "bf16": False,
        "save_strategy": "steps",
        "save_steps": SAVED_STEP,
        "logging_steps": 1,
        "dataloader_num_workers": 0,
        "use_cpu": True,
    }
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def run(engine: Engine, encoder: str, photos: Path, output_dir: Path) -> str | None:
    """Pre-train with an engine; a folder with a checkpoint is resumed.

    Args:
        engine: The engine.
        encoder: Name of the encoder.
        photos: Folder of the images.
        output_dir: Folder of the run.

    Returns:
        None, or what went wrong.
    """
    arguments = ["pretrain", *options(encoder, photos, output_dir, engine.processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
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
        if not outcome.loaded:
            cells, loaded = ["fails"] * 4, "fails"
        else:
            loaded = "run and checkpoint" if all(outcome.loaded) else "run"
        lines.append(f"| {engine.title} | {engine.processes} | {' | '.join(cells)} | {loaded} |")
    has_cuda, has_deepspeed = torch.cuda.is_available(), importlib.util.find_spec("deepspeed") is not None
    lacking = [name for name, is_there in (("CUDA", has_cuda), ("deepspeed", has_deepspeed)) if not is_there]
    for name, needed in (
        ("NCCL on GPUs, `ddp.yaml`", lacking[: not has_cuda]),
        ("DeepSpeed ZeRO-2, `deepspeed_zero2.yaml`", lacking),
        ("DeepSpeed ZeRO-3, `deepspeed_zero3.yaml`", lacking),
    ):
        why = f"needs {' and '.join(needed)}" if needed else "is not part of this script"
        lines.append(f"| {name} | | not run: {why} | | | | |")
    return "\n".join(lines)


def processor() -> str:
    """Name of the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=["swin", "vit"])
    parser.add_argument("--engines", nargs="+", choices=[*ENGINES][1:], default=[*ENGINES][1:])
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
            compare(name, encoder, photos, folder, outcome)
            print(f"{time.monotonic() - started:4.0f} s  {encoder}, {name}: {outcome}", flush=True)
    by_itself = without_our_change(args.encoders[0], photos, folder)
    print(
        f"\n{processor()}, {len(os.sched_getaffinity(0))} cores, float32, one thread a process,"
        f" torch {torch.__version__}, transformers {transformers.__version__}, accelerate {accelerate.__version__}\n"
        f"Encoders: {', '.join(args.encoders)}; {LAST_STEP} steps of {GLOBAL_BATCH} images, resumed after step"
        f" {SAVED_STEP}. Greatest relative difference to one process.\n\n{table(outcomes)}\n\n"
        f"`fsdp2.yaml` on processors without the change of this script: accelerate {by_itself}."
    )
    problems = [f"{name}, {problem}" for name, outcome in outcomes.items() for problem in outcome.problems]
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
    else:
        main()
