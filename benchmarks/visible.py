"""What `encode="visible"` saves: FLOPs, time and memory of training steps beside the paper's way, on one machine.

Both models have the same encoder and the same masks. Steps of both alternate in one process, so that they share
whatever else the machine does; the ratio is the median of those of the rounds. Memory is the peak of one forward and
backward pass in a process of its own for each, gradients included, less the weights.

    python benchmarks/visible.py
    python benchmarks/visible.py --encoder swin-tiny --image_size 192 --batch_size 16
    python benchmarks/visible.py --ratios 0.75 --batch_size 32 --device cuda
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from measuring import write_result
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling
from hf_simmim.model.configuration_simmim import ENCODER_PRESETS
from hf_simmim.model.masking import random_mask
from hf_simmim.training.acceleration import keep_freed_memory

WAYS = ("all", "visible")


class Step:
    """Training steps of one model on random images.

    Args:
        encode: `"all"` or `"visible"`.
        arguments: The options of this script.
        ratio: Share of masked patches.
    """

    def __init__(self, encode: str, arguments: argparse.Namespace, ratio: float):
        torch.manual_seed(0)
        encoder = {"model_type": "vit"} | arguments.encoder | {"image_size": arguments.image_size}
        config = SimMIMConfig(encoder_config=encoder, encode=encode)
        self.device = torch.device(arguments.device)
        self.model = SimMIMForMaskedImageModeling(config).to(self.device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.pixel_values = torch.randn(arguments.batch_size, 3, *config.image_size, device=self.device)
        units = 32 // config.patch_size
        self.mask = random_mask(config.grid_size, ratio, arguments.batch_size, unit_size=units).to(self.device)
        self.dtype = torch.bfloat16 if arguments.bf16 else None

    def gradients(self, images: int | None = None) -> None:
        with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            inputs = {"pixel_values": self.pixel_values[:images], "bool_masked_pos": self.mask[:images]}
            loss = self.model(**inputs, return_reconstruction=False).loss
        loss.backward()

    def seconds(self) -> float:
        """Time of one step."""
        start = time.perf_counter()
        self.gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def flops(self) -> int:
        """Floating-point operations of forward and backward pass for one image."""
        counter = FlopCounterMode(display=False)
        with counter, sdpa_kernel(SDPBackend.MATH):
            self.gradients(images=1)
        self.optimizer.zero_grad()
        return counter.get_total_flops()


def held(name: str) -> int:
    """Memory of this process in bytes: `"VmRSS"` now, `"VmHWM"` at most so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError("Memory is measured on Linux only.")


def memory(encode: str, arguments: argparse.Namespace, ratio: float) -> int:
    """Peak memory of a forward and backward pass in bytes; run in a process of its own."""
    step = Step(encode, arguments, ratio)
    if step.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        step.gradients()
        return torch.cuda.max_memory_allocated() - before
    before = held("VmRSS")
    step.gradients()
    return held("VmHWM") - before


def measure(arguments: argparse.Namespace, ratio: float) -> dict[str, object]:
    steps = {encode: Step(encode, arguments, ratio) for encode in WAYS}
    flops = {encode: step.flops() for encode, step in steps.items()}
    for step in steps.values():
        step.seconds()
    rounds = [{encode: steps[encode].seconds() for encode in WAYS} for _ in range(arguments.rounds)]
    parameters = {encode: sum(part.numel() for part in step.model.parameters()) for encode, step in steps.items()}
    visible = float((~steps["visible"].mask).float().mean())
    del steps
    command = [sys.executable, *sys.argv]
    peaks = {
        encode: int(subprocess.check_output([*command, "--memory_of", encode, str(ratio)], text=True).splitlines()[-1])
        for encode in WAYS
    }
    faster = sorted(times["all"] / times["visible"] for times in rounds)
    rates = {e: arguments.batch_size / statistics.median(times[e] for times in rounds) for e in WAYS}
    return {
        "mask_ratio": ratio,
        "visible": round(visible, 4),
        "gflops": {encode: round(count / 1e9, 2) for encode, count in flops.items()},
        "flops_ratio": round(flops["visible"] / flops["all"], 4),
        "images_per_second": {encode: float(f"{rate:.4g}") for encode, rate in rates.items()},
        "speedup": round(statistics.median(faster), 3),
        "speedup_range": [round(faster[0], 3), round(faster[-1], 3)],
        "peak_mb": {encode: round(count / 1e6) for encode, count in peaks.items()},
        "parameters": parameters,
    }


def machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} of {os.cpu_count()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.75, 0.6], help="Shares of masked patches.")
    parser.add_argument(
        "--encoder",
        type=lambda text: ENCODER_PRESETS[text] if text in ENCODER_PRESETS else json.loads(text),
        default={},
        help="Preset, or settings beside those of ViT-B/16, as JSON.",
    )
    parser.add_argument("--image_size", type=int, default=224, help="Side of the images in pixels.")
    parser.add_argument("--batch_size", type=int, default=4, help="Images of a step.")
    parser.add_argument("--rounds", type=int, default=5, help="Steps of each model that are timed.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch on processors.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda.")
    parser.add_argument("--bf16", action="store_true", help="Autocast to bfloat16.")
    parser.add_argument("--memory_of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    if arguments.memory_of:
        print(memory(arguments.memory_of[0], arguments, float(arguments.memory_of[1])))
        return
    print(
        "| mask ratio | GFLOPs per image, all | visible | x | images/s, all | visible | x | range | MB, all | visible |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |")
    found = []
    for ratio in arguments.ratios:
        row = measure(arguments, ratio)
        found.append(row)
        cells = [row["mask_ratio"], *row["gflops"].values(), row["flops_ratio"]]
        cells += [*row["images_per_second"].values(), row["speedup"]]
        cells += [f"{row['speedup_range'][0]} to {row['speedup_range'][1]}", *row["peak_mb"].values()]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    facts = {
        "encoder": {"model_type": "vit"} | arguments.encoder,
        **{name: getattr(arguments, name) for name in ("image_size", "batch_size", "rounds", "device", "bf16")},
        "machine": machine(arguments.device),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers")},
    }
    print("\n" + ", ".join(f"{key} {value}" for key, value in facts.items()))
    write_result("visible", facts | {"results": found})


if __name__ == "__main__":
    main()
