"""Training steps in bfloat16 against float32 on a processor, for small encoders: where `pretrain` should choose which.

python benchmarks/precision.py
"""

import argparse
import contextlib
import statistics
import time

import torch
from measuring import WARM_UP_ROUNDS, machine, ratio, write_result
from transformers import ViTConfig

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling
from hf_simmim.model.masking import random_mask
from hf_simmim.training.acceleration import OF_A_STEP, faster_kernels, keep_freed_memory


def vit(width: int, size: int, patch_size: int) -> SimMIMConfig:
    """A ViT of six layers."""
    settings = {"hidden_size": width, "num_hidden_layers": 6, "num_attention_heads": width // 32}
    settings |= {"intermediate_size": 4 * width, "image_size": size, "patch_size": patch_size}
    return SimMIMConfig(encoder_config=ViTConfig(**settings))


# Config and batch size.
CASES = {
    "ViT, width 64, 32 px": (vit(64, 32, 4), 64),
    "ViT, width 128, 64 px": (vit(128, 64, 8), 32),
    "ViT, width 192, 64 px": (vit(192, 64, 8), 32),
    "ViT, width 384, 64 px": (vit(384, 64, 8), 32),
    "swin-mini": (SimMIMConfig(encoder_config="swin-mini"), 16),
    "swin-tiny": (SimMIMConfig(encoder_config="swin-tiny"), 4),
}


# How a step is computed: its dtype, and whether attention is as a training has it or as transformers has it.
MODES = {"float32": ("float32", True), "bfloat16": ("bfloat16", True), "all bfloat16": ("bfloat16", False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="rounds of timing (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    facts = machine("cpu")
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print(
        "\n| encoder | parameters, M | float32, ms | bfloat16, ms | times as fast (min to max) |"
        " with attention in bfloat16, too |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for name, (config, batch_size) in CASES.items():
        model = SimMIMForMaskedImageModeling(config).train()
        rows, columns = (side // config.patch_size for side in config.image_size)
        mask = random_mask((rows, columns), 0.6, batch_size, unit_size=2)
        images = torch.randn(batch_size, 3, *config.image_size)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
        times: dict[str, list[float]] = {mode: [] for mode in MODES}
        for _ in range(WARM_UP_ROUNDS + args.rounds):
            for mode, (dtype, is_ours) in MODES.items():
                start = time.process_time()
                with faster_kernels() if is_ours else contextlib.nullcontext():
                    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
                        loss = model(images, bool_masked_pos=mask, **OF_A_STEP).loss
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                times[mode].append(time.process_time() - start)
        kept = {mode: values[WARM_UP_ROUNDS:] for mode, values in times.items()}
        speed, other = (ratio(kept["float32"], kept[mode]) for mode in ("bfloat16", "all bfloat16"))
        medians = {mode: statistics.median(values) * 1e3 for mode, values in kept.items()}
        size = model.simmim.num_parameters()
        print(
            f"| {name} | {size / 1e6:.2f} | {medians['float32']:.0f} | {medians['bfloat16']:.0f} |"
            f" {speed['median']:.2f} ({speed['min']:.2f} to {speed['max']:.2f}) | {other['median']:.2f} |",
            flush=True,
        )
        result = {"encoder": name, "parameters": size, "batch_size": batch_size, "bfloat16_to_float32": speed}
        result["all_bfloat16_to_float32"] = other
        write_result("precision", {"benchmark": "precision", **facts, **result})


if __name__ == "__main__":
    main()
