"""What is tried: pre-trainings that differ from one of two bases in what their names say."""

from dataclasses import dataclass, replace
from typing import Any

from ..ablation.grid import Row
from ..ablation.settings import vit


@dataclass(frozen=True)
class Pretraining:
    """A pre-training.

    Args:
        row: Target, loss and masks.
        encoder: Config of the encoder.
        batch_size: Images a step.
        epochs: Passes over the images; 0 for training from scratch.
        learning_rate: Peak learning rate of AdamW.
    """

    row: Row
    encoder: dict[str, Any]
    batch_size: int = 32
    epochs: float = 30
    learning_rate: float = 1e-3


# 0.50 M parameters with the head.
ENCODER, PATCH_8 = vit(16, 96, 4, 3), vit(8, 96, 4, 3)
RGB = Pretraining(Row(16), ENCODER)
HOG = Pretraining(Row(16, target="hog", target_options={"cell_size": 8}, loss=None), ENCODER, learning_rate=2e-3)
NORMALIZED = Row(16, target="normalized_rgb", target_options={"window_size": 15}, loss="l2")
PRETRAININGS: dict[str, Pretraining | None] = {
    "scratch": None,
    # What the rows with this encoder are compared with.
    "scratch, patch 8": replace(HOG, encoder=PATCH_8, epochs=0),
    # What `hf-simmim pretrain` did for such an encoder and 2,100 images before this search.
    "before": Pretraining(Row(32), ENCODER, batch_size=128, learning_rate=5.7e-4),
    "rgb": RGB,
    "rgb, rate 4e-3": replace(RGB, learning_rate=4e-3),
    "rgb, l2": replace(RGB, row=Row(16, loss="l2"), learning_rate=2e-3),
    "rgb, 90 epochs": replace(RGB, epochs=90, learning_rate=2e-3),
    "rgb, patch 8, mask 8": replace(RGB, row=Row(8), encoder=PATCH_8, learning_rate=2e-3),
    "normalized": replace(RGB, row=NORMALIZED, learning_rate=2e-3),
    "hog": HOG,
    "hog, batch 128": replace(HOG, batch_size=128),
    "hog, rate 6e-4": replace(HOG, learning_rate=6e-4),
    "hog, mask 32": replace(HOG, row=replace(HOG.row, mask_patch_size=32)),
    "hog, ratio 0.4": replace(HOG, row=replace(HOG.row, mask_ratio=0.4)),
    "hog, ratio 0.8": replace(HOG, row=replace(HOG.row, mask_ratio=0.8)),
    "hog, cells of 4 px": replace(HOG, row=replace(HOG.row, target_options={"cell_size": 4})),
    "hog, 10 epochs": replace(HOG, epochs=10),
    "hog, 90 epochs": replace(HOG, epochs=90),
    "hog, patch 8": replace(HOG, encoder=PATCH_8),
}
