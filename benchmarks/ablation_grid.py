"""What the study compares: rows of components, grouped in the paper's tables, and the settings they share."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from hf_simmim import SimMIMConfig

Options = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One choice of every component; the defaults are the baseline at 32 px.

    Args:
        strategy: Name in `MASK_STRATEGIES`.
        mask_patch_size: Side of a mask unit in pixels.
        mask_ratio: Share of the image that is hidden.
        head: Name of the head.
        head_options: Its options.
        prediction_stride: Pixels for each step of the prediction; the target's own if None.
        target: Name of the target.
        target_options: Its options; `num_clusters` is for clusters, which are fitted to the images first.
        loss: Name of the loss.
        loss_region: `"masked"` or `"all"`.
        is_pretrained: False for the row from scratch, whose components nothing uses.
    """

    strategy: str = "random"
    mask_patch_size: int = 8
    mask_ratio: float = 0.6
    head: str = "linear"
    head_options: Options = field(default_factory=dict)
    prediction_stride: int | None = None
    target: str = "rgb"
    target_options: Options = field(default_factory=dict)
    loss: str = "l1"
    loss_region: str = "masked"
    is_pretrained: bool = True


@dataclass(frozen=True)
class Settings:
    """What all rows share. Numbers of images are upper limits.

    Args:
        image_size: Side of the images in pixels.
        encoder: Config of the encoder, less `num_channels` and `image_size`.
        mask_patch_sizes: Sides of mask units in pixels, small to large; the middle one is the baseline's.
        num_images: Images to pre-train on, without labels.
        num_test_images: Images to test on.
        batch_size: Of pre-training.
        pretrain_steps: Steps of pre-training.
        learning_rate: Peak of pre-training.
        num_labels: Labelled images to fine-tune on.
        fine_tune_steps: Steps of fine-tuning.
        fine_tune_batch_size: Of fine-tuning.
        fine_tune_learning_rate: Peak of fine-tuning.
        num_probe_images: Labelled images for the linear probe and k-NN on frozen features.
        hog_cell_size: Pixels of a cell of the HOG target.
        inverse_swin: Options of the two inverse Swin heads, light and heavy.
    """

    image_size: int
    encoder: Options
    mask_patch_sizes: tuple[int, int, int]
    num_images: int
    num_test_images: int
    batch_size: int
    pretrain_steps: int
    learning_rate: float
    num_labels: int
    fine_tune_steps: int
    fine_tune_batch_size: int
    fine_tune_learning_rate: float
    num_probe_images: int
    hog_cell_size: int
    inverse_swin: dict[str, Options]
