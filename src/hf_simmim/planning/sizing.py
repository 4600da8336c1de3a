"""Settings that a pre-training chooses where nobody did: by the machine, the images and the time, with reasons.

The steps and batch sizes of the paper (section 4.1: 2,048 images a step; 100 and 800 epochs of 1.28 million images) are
the guide for large sets of images on GPUs; smaller sets and processors get smaller models, batches and images.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..data.survey import Survey
from .machine import GIB, Machine

# Images of ImageNet-1k, and epochs on them, of the paper.
PAPER_IMAGES, PAPER_EPOCHS, LONGEST_EPOCHS = 1_281_167, 100, 800
# Minutes that 2,000 images may take on processors if nobody says how long, and the longest such run in hours.
CPU_MINUTES, CPU_IMAGES, CPU_HOURS = 20, 2_000, 12
# Fewest epochs that are worth training, and fewest steps: fewer gained a third of what more did (docs/search.md).
FEWEST_EPOCHS, FEWEST_STEPS = 5, 500
# Memory of a GPU that holds a Swin-B with a batch worth having; cores that a Swin-T needs.
LARGE_GPU, MANY_CORES = 22 * GIB, 16
# Peak learning rates that hold at the batch sizes beside them; they grow with the root of the batch size.
RATES = {"swin-mini": (2e-3, 64), "swin-tiny": (8e-4, 256), "swin-base": (8e-4, 2048)}
# Steps of an epoch of a small set, about: short trainings need many steps rather than large ones.
STEPS_AN_EPOCH = 64
# Sets of fewer images, gray (docs/search.md) or in color (docs/evidence.md), learn from histograms of gradients.
FEW_IMAGES = 10_000
# Encoders of fewer parameters learn at the rates of swin-mini.
FEW_PARAMETERS = 10_000_000
LARGEST_BATCH = {"swin-mini": 256, "swin-tiny": 1024, "swin-base": 2048}


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen.

    Args:
        value: The value, as on the command line.
        reason: Why, in a few words.
    """

    value: Any
    reason: str


def choose_model(machine: Machine, seen: Survey) -> dict[str, Choice]:
    """Choose encoder and image size.

    Args:
        machine: What the machine offers.
        seen: What the images are like.

    Returns:
        Choices for `encoder`, `image_size`, `window_size` and `num_channels`.
    """
    if machine.is_cpu and machine.num_cores < MANY_CORES:
        encoder, largest, reason = "swin-mini", 96, f"{machine.num_cores} processor cores, no GPU"
    elif machine.is_cpu:
        encoder, largest, reason = "swin-tiny", 128, f"{machine.num_cores} processor cores, no GPU"
    elif machine.memory < LARGE_GPU:
        encoder, largest, reason = "swin-tiny", 192, f"a device of {machine.memory / GIB:.0f} GB"
    else:
        encoder, largest, reason = "swin-base", 192, f"a device of {machine.memory / GIB:.0f} GB"
    choices = {"encoder": Choice(encoder, reason)}
    side = seen.side or largest
    size = min(largest, max(32, round(side / 32) * 32))
    because = f"the images have {side} px"
    if size == largest < side:
        because += f", and {'a CPU is slow at' if machine.is_cpu else 'the paper does not take'} more than {largest}"
    choices["image_size"] = Choice(size, because)
    choices["window_size"] = choose_window(size)
    number = seen.num_channels
    if number is not None:
        choices["num_channels"] = Choice(number, "gray images" if number == 1 else f"the images have {number}")
    return choices


def choose_window(size: int, patch_size: int = 4) -> Choice:
    """Choose the attention window for an image size, such that windows tile it as in the paper.

    Args:
        size: Side of the image in pixels.
        patch_size: Side of a patch in pixels.

    Returns:
        The choice for `window_size`, in patches.
    """
    grid = size // patch_size
    window = next((window for window in (6, 7, 8) if grid % window == 0), 6)
    return Choice(window, f"{grid} patches on a side")


def choose_mask_patch(size: int, step: int) -> Choice:
    """Choose the side of mask patches: a sixth of the image's, as 32 of 192 px, in whole steps of the model's masks.

    Args:
        size: Shorter side of the image in pixels.
        step: Side in pixels of which it has to be a multiple.

    Returns:
        The choice for `mask_patch_size`, in pixels.
    """
    sides = range(step, max(step, size // 2) + 1, step)

    def distance(side: int) -> float:
        return abs(math.log(side * 6 / size))

    # Mask patches that divide the image are all whole; unless they are far larger or smaller.
    nearest = min(sides, key=distance)
    dividing = [side for side in sides if size % side == 0 and distance(side) < distance(nearest) + math.log(1.5)]
    mask = min(dividing, key=distance, default=nearest)
    return Choice(mask, f"1/{size / mask:.2g} of the side; in the paper 32 of 192 px")


def choose_target(seen: Survey, num_images: int, encoder_stride: int, num_channels: int) -> dict[str, Choice]:
    """Choose what is predicted: gradients for few images, whose pixels short trainings hardly learn to predict.

    Args:
        seen: What the images are like.
        num_images: Number of training images.
        encoder_stride: Stride of the encoder's last feature map in pixels.
        num_channels: Number of channels of the model. Others than 1 and 3, as of satellites, were not measured.

    Returns:
        Choices for `target` and `target_options`; none where many images, or cells that do not fit, leave it RGB.
    """
    cell = next((side for side in (8, 4, 7, 6, 5) if encoder_stride % side == 0), None)
    if num_images >= FEW_IMAGES or cell is None:
        return {}
    if num_channels not in (1, 3):
        return {"target": Choice("rgb", f"gradients were not measured on images of {num_channels} channels")}
    kind = "gray images" if 1 in (seen.num_channels, num_channels) else "images in color"
    reason = f"{num_images:,} {kind}, fewer than {FEW_IMAGES:,}; --target rgb predicts pixels"
    return {"target": Choice("hog", reason), "target_options": Choice({"cell_size": cell}, "pixels, of the patches")}


def choose_batch(
    num_images: int, encoder: str | None, machine: Machine, parameters: int | None = None
) -> dict[str, Choice]:
    """Choose batch size and learning rate.

    Args:
        num_images: Number of training images.
        encoder: Name of the preset, or a config; None for that of a checkpoint.
        machine: What the machine offers.
        parameters: Number of parameters of the encoder.

    Returns:
        Choices for `batch_size`, over all devices, and `learning_rate`.
    """
    like = "swin-base" if encoder is None else encoder if encoder in RATES else "swin-tiny"
    if like != encoder and parameters is not None and parameters < FEW_PARAMETERS:
        like = "swin-mini"
    wanted = 2 ** max(0, round(math.log2(max(1, num_images / STEPS_AN_EPOCH))))
    batch = max(1, min(max(wanted, 16), LARGEST_BATCH[like], num_images))
    batch = max(1, batch // machine.num_devices) * machine.num_devices
    steps = num_images // batch
    rate, its_batch = RATES[like]
    rate = float(f"{rate * math.sqrt(min(1, batch / its_batch)):.2g}")
    return {
        "batch_size": Choice(batch, f"{steps:,} step{'s' * (steps != 1)} an epoch"),
        "learning_rate": Choice(rate, f"for {like} at a batch size of {batch}"),
    }


def choose_epochs(
    num_images: int,
    images_per_second: float,
    machine: Machine,
    hours: float | None = None,
    other_seconds: Callable[[int], float] = lambda epochs: 0,
) -> Choice:
    """Choose the length of the training.

    Args:
        num_images: Number of training images.
        images_per_second: Measured speed of training over all devices.
        machine: What the machine offers.
        hours: Time that may be used; if None, that of the paper's schedules on a device, or less on processors.
        other_seconds: Function that returns what start, evaluations and saves of a number of epochs take of it.

    Returns:
        The choice for `num_train_epochs`.
    """
    wanted = PAPER_EPOCHS * math.sqrt(PAPER_IMAGES / num_images)
    wanted = round(min(LONGEST_EPOCHS, max(PAPER_EPOCHS, wanted)))
    if hours is None and not machine.is_cpu:
        return Choice(wanted, f"{num_images:,} images; the paper's are {PAPER_EPOCHS} to {LONGEST_EPOCHS}")
    limit = hours
    if limit is None:
        limit = min(CPU_HOURS, max(1.0, num_images / CPU_IMAGES) * CPU_MINUTES / 60)
    most = min(LONGEST_EPOCHS + 1, int(limit * 3600 * images_per_second / num_images))
    # From above: more epochs may need less, with an evaluation after every second one.
    fitting = next(
        (
            epochs
            for epochs in range(most, 0, -1)
            if epochs * num_images / images_per_second + other_seconds(epochs) <= limit * 3600
        ),
        0,
    )
    epochs = max(FEWEST_EPOCHS if hours is None else 1, min(fitting, LONGEST_EPOCHS if hours else wanted))
    time = f"{limit:g} h" if hours else f"{limit * 60:.0f} min" if limit < 2 else f"{limit:.0f} h"
    asked = "--hours" if hours else "the default on processors; set --hours for another"
    if epochs < fitting:
        return Choice(epochs, f"{num_images:,} images; the paper's longest schedule has {LONGEST_EPOCHS}")
    return Choice(epochs, f"what {time} allow ({asked})")


def smaller_batch(batch_size: int, accumulation: int) -> tuple[int, int]:
    """Halve the batch of a device, and keep the images of a step by accumulation.

    Args:
        batch_size: Images on a device at once.
        accumulation: Accumulated batches of a step.

    Returns:
        Both, changed.

    Raises:
        ValueError: If a batch of one image does not fit.
    """
    if batch_size == 1:
        raise ValueError(
            "The model does not fit the memory even with one image at a time. Use a smaller --encoder or --image_size."
        )
    parts = next(parts for parts in (2, 3, 5, 7, batch_size) if batch_size % parts == 0)
    return batch_size // parts, accumulation * parts
