"""All that needs a GPU, by one command, within 8 minutes: no network, no torchvision, no data.

Correctness of bfloat16 and float16 against float32, compilation without graph breaks, step and memory against other
implementations, the largest batch, and the way of images to the device. Prints Markdown, and writes it to
benchmarks/results/gpu.md. What the time does not allow is listed as not run.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --quick   # only checks that it runs
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from measuring import RESULTS, machine, seconds
from peers import build_inputs, build_loss
from transformers import BeitConfig, ConvNextConfig, Dinov2Config, PreTrainedConfig, SwinConfig, Swinv2Config, ViTConfig

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling
from hf_simmim.data.transforms import normalize
from hf_simmim.model.masking import random_mask

SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
# Stochastic depth would draw other branches on each device.
SWIN |= {"drop_path_rate": 0.0}
VIT = {"image_size": 64, "patch_size": 16, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL: dict[str, Callable[[], PreTrainedConfig]] = {
    "swin": lambda: SwinConfig(**SWIN),
    "swinv2": lambda: Swinv2Config(**SWIN),
    "vit": lambda: ViTConfig(**VIT, intermediate_size=128),
    "beit": lambda: BeitConfig(**VIT, intermediate_size=128, use_mask_token=True, drop_path_rate=0.0),
    "dinov2": lambda: Dinov2Config(**VIT),
    "convnext": lambda: ConvNextConfig(image_size=64, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 1, 1]),
}
# Largest relative difference of the loss to float32.
BOUNDS = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}
LARGEST_BATCH = 4096
Lines = Iterator[str]


def small_model(name: str) -> tuple[SimMIMForMaskedImageModeling, dict[str, torch.Tensor]]:
    """A small model of an encoder, and a batch for it."""
    torch.manual_seed(0)
    model = SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=SMALL[name]())).train()
    side = 64 // model.config.patch_size
    mask = random_mask((side, side), 0.5, 4, unit_size=32 // model.config.patch_size)
    return model, {"pixel_values": torch.randn(4, 3, 64, 64), "bool_masked_pos": mask.flatten(1)}


def correctness(args: argparse.Namespace) -> Lines:
    """Loss and gradients of small models on the device, against float32 on the processor."""
    yield "| encoder | dtype | loss, relative difference | gradients | |"
    yield "| --- | --- | ---: | ---: | --- |"
    for name in SMALL:
        model, inputs = small_model(name)
        expected = model(**inputs)
        expected.loss.backward()
        gradients = torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])
        model.to(args.device)
        inputs = {key: value.to(args.device) for key, value in inputs.items()}
        for dtype, bound in BOUNDS.items():
            model.zero_grad()
            with torch.autocast(args.device, dtype=getattr(torch, dtype), enabled=dtype != "float32"):
                loss = model(**inputs).loss
            loss.backward()
            found = torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None]).cpu()
            difference = abs(loss.item() - expected.loss.item()) / expected.loss.item()
            change = ((found - gradients).norm() / gradients.norm()).item()
            yield f"| {name} | {dtype} | {difference:.1e} | {change:.1e} | {'ok' if difference < bound else 'WRONG'} |"


def compilation(args: argparse.Namespace) -> Lines:
    """Whether each small model compiles as one graph, and gives the same loss."""
    for name in SMALL:
        model, inputs = small_model(name)
        model.to(args.device)
        inputs = {key: value.to(args.device) for key, value in inputs.items()}
        with torch.no_grad():
            expected = model(**inputs).loss.item()
            torch._dynamo.reset()
            start = time.perf_counter()
            try:
                compiled = torch.compile(model, fullgraph=True, backend="eager" if args.quick else "inductor")
                found = compiled(**inputs).loss.item()
            except Exception as error:  # what does not compile is a result
                yield f"- {name}: graph break ({type(error).__name__})"
                continue
        difference = abs(found - expected) / expected
        yield f"- {name}: one graph, {time.perf_counter() - start:.0f} s, loss differs by {difference:.1e}"


def steps(args: argparse.Namespace) -> Lines:
    """Training steps against other implementations, by step.py."""
    runs = [
        ("swin-base", 128, []),
        ("vit-base", 128, []),
        ("swin-base", 128, ["ours compiled", "transformers sdpa compiled"]),
    ]
    if args.quick:
        runs = [("swin-tiny", 1, [])]
    for encoder, batch_size, modes in runs:
        modes = modes or ["ours", "transformers sdpa"]
        if modes[0] != "ours":
            modes = ["ours", *modes]
        command = [
            sys.executable,
            str(Path(__file__).parent / "step.py"),
            "--encoder",
            encoder,
            "--device",
            args.device,
        ]
        command += ["--batch_size", str(batch_size), "--rounds", "2" if args.quick else "8", "--modes", *modes]
        command += ["--dtype", "float32" if args.quick else "bfloat16"]
        command += ["--print_only"] if args.quick else []
        result = subprocess.run(command, capture_output=True, text=True)
        output = result.stdout if result.returncode == 0 else result.stdout + result.stderr[-1500:]
        yield from output.strip().splitlines()


def largest_batch(args: argparse.Namespace) -> Lines:
    """Largest power of two of images for which a step fits, ours and transformers'."""
    for mode in ("ours", "transformers sdpa"):
        fits, batch_size = 0, 1 if args.quick else 64
        while batch_size <= (1 if args.quick else LARGEST_BATCH):
            inputs = {name: value.to(args.device) for name, value in build_inputs("swin-base", batch_size).items()}
            try:
                _, run = build_loss(mode, "swin-base", inputs, None)
                with torch.autocast(args.device, dtype=torch.bfloat16):
                    loss = run().loss
                loss.backward()
                fits = batch_size
            except torch.OutOfMemoryError:
                break
            finally:
                run = loss = inputs = None  # type: ignore[assignment]
                if args.device == "cuda":
                    torch.cuda.empty_cache()
            batch_size *= 2
        yield f"- Swin-B at 192 px, bfloat16, {mode}: {fits} images fit (powers of two were tried)"


def data_path(args: argparse.Namespace) -> Lines:
    """Images a second that reach the device as bytes and are normalized there, against floats that are copied."""
    images = torch.randint(0, 256, (8 if args.quick else 256, 3, 192, 192), dtype=torch.uint8)
    floats = images.float() / 255
    if args.device == "cuda":
        images, floats = images.pin_memory(), floats.pin_memory()

    def as_bytes() -> torch.Tensor:
        return normalize(images.to(args.device, non_blocking=True), [0.5] * 3, [0.5] * 3, 1 / 255)

    def as_floats() -> torch.Tensor:
        return floats.to(args.device, non_blocking=True).sub_(0.5).div_(0.5)

    for name, copy in (("bytes, normalized there", as_bytes), ("floats", as_floats)):
        times = [seconds(copy, args.device) for _ in range(8)][3:]
        yield f"- {name}: {len(images) / statistics.median(times):,.0f} images/s of 192 px"


PARTS: dict[str, Callable[[argparse.Namespace], Lines]] = {
    "Correctness": correctness,
    "Training step": steps,
    "Compilation": compilation,
    "Largest batch": largest_batch,
    "Images to the device": data_path,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=460, help="no part begins after this (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that everything runs")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("No GPU is available. Check that everything runs by --device cpu --quick.")
    start, lines = time.monotonic(), ["# On a GPU", ""]
    lines.append(", ".join(f"{key} {value}" for key, value in machine(args.device).items()))
    print("\n".join(lines), flush=True)
    for title, part in PARTS.items():
        lines += ["", f"## {title}", ""]
        print("\n".join(lines[-3:]), flush=True)
        if time.monotonic() - start > args.seconds:
            lines.append("Not run: the time was over.")
            print(lines[-1], flush=True)
            continue
        for line in part(args):
            lines.append(line)
            print(line, flush=True)
    if not args.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "gpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if any("WRONG" in line for line in lines):
        raise SystemExit("A loss differs by more than its bound.")


if __name__ == "__main__":
    main()
