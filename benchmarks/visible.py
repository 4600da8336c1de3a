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
import statistics
import subprocess
import sys
from functools import partial
from typing import Any

import torch
from measuring import alternate, machine, peak_memory, ratio, seconds, write_result
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

    def whole(self) -> None:
        """A step with the optimizer."""
        self.gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def pass_of_gradients(self) -> None:
        """A step without the optimizer."""
        self.gradients()
        self.optimizer.zero_grad()

    def flops(self) -> int:
        """Floating-point operations of forward and backward pass for one image."""
        counter = FlopCounterMode(display=False)
        with counter, sdpa_kernel(SDPBackend.MATH):
            self.gradients(images=1)
        self.optimizer.zero_grad()
        return counter.get_total_flops()


def measure(arguments: argparse.Namespace, mask_ratio: float) -> dict[str, Any]:
    steps = {encode: Step(encode, arguments, mask_ratio) for encode in WAYS}
    flops = {encode: step.flops() for encode, step in steps.items()}
    device = arguments.device
    times = alternate({way: partial(seconds, step.whole, device) for way, step in steps.items()}, arguments.rounds)
    parameters = {encode: sum(part.numel() for part in step.model.parameters()) for encode, step in steps.items()}
    visible = float((~steps["visible"].mask).float().mean())
    del steps
    command = [sys.executable, *sys.argv]
    peaks = {
        encode: float(subprocess.check_output([*command, "--memory_of", encode, str(mask_ratio)]).split()[-1])
        for encode in WAYS
    }
    rates = {encode: arguments.batch_size / statistics.median(times[encode]) for encode in WAYS}
    return {
        "mask_ratio": mask_ratio,
        "visible": round(visible, 4),
        "gflops": {encode: round(count / 1e9, 2) for encode, count in flops.items()},
        "flops_ratio": round(flops["visible"] / flops["all"], 4),
        "images_per_second": {encode: float(f"{rate:.4g}") for encode, rate in rates.items()},
        "speedup": ratio(times["all"], times["visible"]),
        "peak_mib": {encode: round(size) for encode, size in peaks.items()},
        "parameters": parameters,
    }


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
        step = Step(arguments.memory_of[0], arguments, float(arguments.memory_of[1]))
        print(peak_memory(step.pass_of_gradients, arguments.device))
        return
    print(
        "| mask ratio | GFLOPs an image, all | visible | x | images/s, all | visible | x | range | MiB, all | visible |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |")
    found = []
    for mask_ratio in arguments.ratios:
        row = measure(arguments, mask_ratio)
        found.append(row)
        cells = [row["mask_ratio"], *row["gflops"].values(), row["flops_ratio"]]
        spread = row["speedup"]
        cells += [*row["images_per_second"].values(), spread["median"], f"{spread['min']} to {spread['max']}"]
        cells += row["peak_mib"].values()
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    facts = machine(arguments.device)
    print("\n" + ", ".join(f"{key} {value}" for key, value in facts.items()))
    settings = {name: getattr(arguments, name) for name in ("image_size", "batch_size", "rounds", "bf16")}
    encoder = {"model_type": "vit"} | arguments.encoder
    write_result("visible", {"benchmark": "visible", **facts, "encoder": encoder, **settings, "results": found})


if __name__ == "__main__":
    main()
