"""Arithmetic of a training step an image, of ways that need less of it, as a share of the paper's way.

Counted by torch's counter of floating point operations, forward and backward, of one image; nothing is timed.

    python benchmarks/less_work.py
"""

import argparse
from typing import Any

import torch
from measuring import machine, write_result
from peers import VIT
from torch.utils.flop_counter import FlopCounterMode
from transformers import SwinConfig, ViTConfig

from hf_simmim import ENCODER_PRESETS, SimMIMConfig, SimMIMForMaskedImageModeling
from hf_simmim.model.masking import random_mask


def swin(size: int, window: int, **options: Any) -> SimMIMConfig:
    """Swin-B for images of a size, with a window in tokens."""
    settings = ENCODER_PRESETS["swin-base"] | {"image_size": size, "window_size": window}
    return SimMIMConfig(encoder_config=SwinConfig.from_dict(settings), **options)


def vit(**options: Any) -> SimMIMConfig:
    """ViT-B at 224 px."""
    return SimMIMConfig(encoder_config=ViTConfig(**VIT), **options)


# Name, config, mask ratio, and the row that it is a share of.
ROWS: list[tuple[str, SimMIMConfig, float, str]] = [
    ("Swin-B, 192 px (the paper)", swin(192, 6), 0.6, ""),
    ("Swin-B, 160 px", swin(160, 5), 0.6, ""),
    ("Swin-B, 128 px", swin(128, 4), 0.6, ""),
    ("Swin-B, 128 px, HOG (FastMIM)", swin(128, 4, target="hog"), 0.6, ""),
    ("Swin-B, visible patches, ratio 0.6 (GreenMIM)", swin(192, 6, encode="visible"), 0.6, ""),
    ("Swin-B, visible patches, ratio 0.75 (GreenMIM)", swin(192, 6, encode="visible"), 0.75, ""),
    ("ViT-B, 224 px (the paper)", vit(), 0.6, "ViT-B, 224 px (the paper)"),
    ("ViT-B, visible patches, ratio 0.6 (MAE)", vit(encode="visible"), 0.6, "ViT-B, 224 px (the paper)"),
    ("ViT-B, visible patches, ratio 0.75 (MAE)", vit(encode="visible"), 0.75, "ViT-B, 224 px (the paper)"),
]
# Epochs at 128 px before those at 192 px, of 100.
LOW_EPOCHS = 80


def operations(config: SimMIMConfig, ratio: float) -> int:
    """Floating point operations of a training step of one image."""
    torch.manual_seed(0)
    model = SimMIMForMaskedImageModeling(config).train()
    rows, columns = (side // config.patch_size for side in config.image_size)
    unit = max(1, 32 // config.patch_size)
    mask = random_mask((rows, columns), ratio, 1, unit_size=unit if rows % unit == 0 else 1)
    images = torch.randn(1, 3, *config.image_size)
    with FlopCounterMode(display=False) as counter:
        model(images, bool_masked_pos=mask, return_reconstruction=False).loss.backward()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    counts = {name: operations(config, ratio) for name, config, ratio, _ in ROWS}
    print("| way | Gop an image | of the paper's |\n| --- | ---: | ---: |")
    first = ROWS[0][0]
    for name, _, _, base in ROWS:
        print(f"| {name} | {counts[name] / 1e9:.1f} | {counts[name] / counts[base or first]:.2f} |")
    low = LOW_EPOCHS * counts["Swin-B, 128 px"] + (100 - LOW_EPOCHS) * counts[first]
    name = f"Swin-B, {LOW_EPOCHS} epochs at 128 px, then {100 - LOW_EPOCHS} at 192 px"
    print(f"| {name} | {low / 100 / 1e9:.1f} | {low / 100 / counts[first]:.2f} |")
    counts[name] = round(low / 100)
    write_result("less_work", {"benchmark": "less_work", **machine("cpu"), "operations": counts})


if __name__ == "__main__":
    main()
