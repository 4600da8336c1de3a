"""Speed and memory of our Swin and SwinV2 against those of transformers, in masked image modeling.

Both models have the same weights and get the same images and masks. They are timed alternating in one process, so that
drift of the machine cancels, and only after both gave the same loss and reconstruction.

    python benchmarks/swin_speed.py --encoder swin-base --batch_size 128 --dtype bfloat16 --device cuda --compile
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import SwinConfig, SwinForMaskedImageModeling, Swinv2Config, Swinv2ForMaskedImageModeling

from hf_simmim import ENCODER_PRESETS, SimMIMConfig, SimMIMForMaskedImageModeling
from hf_simmim.model.masking import random_mask

PEERS = {"swin": (SwinConfig, SwinForMaskedImageModeling), "swinv2": (Swinv2Config, Swinv2ForMaskedImageModeling)}
WARM_UP_ROUNDS = 3
COLUMNS = "| | ours, images/s | transformers, images/s | ratio (min to max) | ours, MiB | transformers, MiB |"
Inputs = dict[str, torch.Tensor]


def build_models(model: str, encoder: str) -> dict[str, nn.Module]:
    """Build our model and transformers' with the same weights, away from the initial zeros and ones."""
    config_class, peer_class = PEERS[model]
    config = config_class.from_dict(ENCODER_PRESETS[encoder] | {"model_type": model, "encoder_stride": 32})
    torch.manual_seed(0)
    ours = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=config))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    # Loading converts names of checkpoints, which are ours, to those of transformers' modules.
    weights = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    for old, new in (("simmim.encoder.", f"{model}."), ("head.projection.", "decoder.0.")):
        weights = {name.replace(old, new): tensor for name, tensor in weights.items()}
    theirs = peer_class.from_pretrained(None, config=config, state_dict=weights)
    return {"ours": ours, "theirs": theirs}


def build_inputs(encoder: str, batch_size: int) -> Inputs:
    """Images (B, 3, H, W) of noise and the paper's masks (B, N): mask patches of 32 px, mask ratio 0.6."""
    size = ENCODER_PRESETS[encoder]["image_size"]
    generator = torch.Generator().manual_seed(1)
    mask = random_mask((size // 4, size // 4), 0.6, batch_size, unit_size=8, generator=generator)
    images = torch.randn(batch_size, 3, size, size, generator=generator)
    return {"pixel_values": images, "bool_masked_pos": mask.flatten(1)}


@torch.no_grad()
def check_equal(models: dict[str, nn.Module], inputs: Inputs) -> None:
    """Exit if the two models do not compute the same in float32."""
    ours, theirs = (models[name].eval()(**inputs) for name in ("ours", "theirs"))
    for name in ("loss", "reconstruction"):
        error = ((ours[name] - theirs[name]).norm() / theirs[name].norm()).item()
        print(f"{name}: relative difference {error:.1e}")
        if not error < 1e-4:
            raise SystemExit(f"The models differ in their {name}, so their times are not comparable.")


def make_step(model: nn.Module, inputs: Inputs, args: argparse.Namespace, kind: str) -> Callable[[], None]:
    """Build a function that runs one training step or one forward pass."""

    def step() -> None:
        with torch.set_grad_enabled(kind == "train"):
            with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.dtype == "bfloat16"):
                loss = model(**inputs).loss
            if kind == "train":
                loss.backward()
                model.zero_grad(set_to_none=True)

    model.train(kind == "train")
    return step


def seconds(step: Callable[[], None], device: str) -> float:
    """Time of one step in seconds; on CUDA the mean of several, with one synchronization."""
    repeats = 10 if device == "cuda" else 1
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    torch.get_device_module(device).synchronize()
    return (time.perf_counter() - start) / repeats


def peak_memory(step: Callable[[], None], device: str) -> float:
    """Peak memory of a step in MiB, beyond models and inputs."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # Writing 5 resets the peak of this process to its current size.
    Path("/proc/self/clear_refs").write_text("5")
    before = int(_linux_field("/proc/self/status", "VmHWM").split()[0])
    for _ in range(2):
        step()
    return (int(_linux_field("/proc/self/status", "VmHWM").split()[0]) - before) / 2**10


def _linux_field(path: str, name: str) -> str:
    return next(line.split(":")[1].strip() for line in Path(path).read_text().splitlines() if line.startswith(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=PEERS, default="swin", help="architecture (default: %(default)s)")
    parser.add_argument("--encoder", choices=["swin-tiny", "swin-small", "swin-base"], default="swin-tiny")
    parser.add_argument("--batch_size", type=int, default=8, help="images per batch (default: %(default)s)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 uses autocast")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile both models")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of timing (default: %(default)s)")
    parser.add_argument("--only_memory", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()

    models = {name: model.to(args.device) for name, model in build_models(args.model, args.encoder).items()}
    inputs = {name: tensor.to(args.device) for name, tensor in build_inputs(args.encoder, args.batch_size).items()}
    if args.compile:
        for model in models.values():
            model.compile()
    if args.only_memory:
        name, kind = args.only_memory
        print(f"{peak_memory(make_step(models[name], inputs, args, kind), args.device):.0f}")
        return
    device = torch.cuda.get_device_name() if args.device == "cuda" else _linux_field("/proc/cpuinfo", "model name")
    name = args.encoder.replace("swin", args.model)
    print(
        f"{device}, {name} at 192 px window 6, batch {args.batch_size}, {torch.get_num_threads()} threads,"
        f" {args.dtype}{' autocast' * (args.dtype == 'bfloat16')}, {'compiled' if args.compile else 'eager'},"
        f" {args.rounds} rounds, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    check_equal(models, inputs)
    print(f"\n{COLUMNS}\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for kind, title in (("train", "training step (forward + backward)"), ("inference", "inference (forward)")):
        steps = {name: make_step(model, inputs, args, kind) for name, model in models.items()}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for index in range(WARM_UP_ROUNDS + args.rounds):
            for name in sorted(steps, reverse=index % 2 == 1):
                times[name].append(seconds(steps[name], args.device))
        ours, theirs = (times[name][WARM_UP_ROUNDS:] for name in ("ours", "theirs"))
        speeds = [args.batch_size / statistics.median(values) for values in (ours, theirs)]
        ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
        memory = []
        for name, step in steps.items():
            if args.device == "cuda":
                memory.append(f"{peak_memory(step, args.device):.0f}")
            elif args.compile:
                memory.append("not measured")
            else:
                command = [sys.executable, *sys.argv, "--only_memory", name, kind]
                memory.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        print(
            f"| {title} | {speeds[0]:.2f} | {speeds[1]:.2f} | {statistics.median(ratios):.3f}"
            f" ({min(ratios):.3f} to {max(ratios):.3f}) | {' | '.join(memory)} |",
            flush=True,
        )
    print("\nMiB: peak memory of a step (CUDA: max_memory_allocated; CPU: resident set of a new process).")


if __name__ == "__main__":
    main()
