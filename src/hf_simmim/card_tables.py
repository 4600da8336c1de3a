"""Tables of a model card: each is a dict of titles and texts, in which None is what does not apply."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from .data import sample_generator
from .masking import MaskStrategy, average_distance

Table = dict[str, str | None]

# What configs of transformers call the same thing.
ENCODER_SETTINGS = {
    "depth": ("depths", "num_hidden_layers", "num_layers"),
    "attention heads": ("num_heads", "num_attention_heads"),
    "width": ("embed_dim", "hidden_sizes", "hidden_size"),
    "window": ("window_size",),
    "drop path": ("drop_path_rate",),
}
FAMILIES = {"swin": "Swin", "swinv2": "SwinV2", "beit": "ViT (BEiT)", "vit": "ViT", "timm_wrapper": "timm"}
# More channels than these have no room for their statistics.
MAX_LISTED_CHANNELS = 6
# Work that the average distance of masks may cost: pixels times the width of the image.
AVERAGE_DISTANCE_BUDGET = 5e8


def encoder_table(config: Any, model: Any) -> Table:
    """Architecture, geometry and parameters.

    Args:
        config: The SimMIM config.
        model: The model.

    Returns:
        The table.
    """
    encoder = config.encoder_config
    height, width = config.image_size
    rows, columns = config.grid_size
    table: Table = {"encoder": f"{family(config)} (`{encoder.model_type}`)"}
    if getattr(encoder, "architecture", None):
        table["architecture"] = f"`{encoder.architecture}`"
    for title, names in ENCODER_SETTINGS.items():
        value = next((getattr(encoder, name) for name in names if getattr(encoder, name, None) is not None), None)
        table[title] = None if value is None or isinstance(value, dict) else listed(value)
    if table["window"] is not None:
        table["window"] += " tokens"
    return table | {
        "images": f"{counted(config.num_channels, 'channel')}, {height} x {width} px (height x width)",
        "patches": f"{config.patch_size} px, a grid of {rows} x {columns}",
        "feature map": f"{config.hidden_size} channels, one step for every {config.encoder_stride} px",
        "parameters": parameters(model),
    }


def family(config: Any) -> str:
    """What people call the encoder."""
    kind = config.encoder_config.model_type
    return FAMILIES.get(kind, kind.removesuffix("_vision_model").replace("_", " "))


def parameters(model: Any) -> str:
    """Parameters of the encoder, and of all where there is more."""
    encoder, everything = (number.num_parameters() for number in (model.base_model, model))
    return millions(encoder) + (
        f" in the encoder, {millions(everything)} with the head" if everything > encoder else ""
    )


def pixels_table(processor: Any, num_channels: int) -> Table:
    """What the image processor makes of pixels."""
    factor = processor.rescale_factor
    inverse = 1 / factor
    scale = (
        f"1/{round(inverse)}" if math.isclose(inverse, round(inverse), rel_tol=1e-6) and factor < 1 else f"{factor:g}"
    )
    mean, std = list(processor.image_mean), list(processor.image_std)
    if num_channels <= MAX_LISTED_CHANNELS:
        statistics = f"mean {numbers(mean)}, standard deviation {numbers(std)}"
    else:
        statistics = (
            f"each channel by its own mean ({min(mean):.4g} to {max(mean):.4g}) and standard deviation ({min(std):.4g}"
            f" to {max(std):.4g}), which are in `preprocessor_config.json`"
        )
    nodata = getattr(processor, "nodata", None)
    return {
        "pixels": f"times {scale}, then normalised: {statistics}",
        "pixels that are none": f"those of {nodata:g} in all channels" if nodata is not None else None,
    }


def augmentation_table(crop_scale: Sequence[float] | None, flip: float, vertical_flip: float) -> Table:
    """Crops and flips of the training images."""
    flips = [
        f"{share:.0%} {way}" for share, way in ((flip, "left to right"), (vertical_flip, "top to bottom")) if share
    ]
    crops = "the largest one at the centre"
    if crop_scale is not None:
        low, high = crop_scale[0], crop_scale[-1]
        crops = f"random, {low:.0%} to {high:.0%} of the area, resized"
    return {"crops": crops, "flips": ", ".join(flips) or "no flips" if crop_scale is not None else None}


def average_mask_distance(dataset: Any) -> float:
    """AvgDist of the masks of a `MaskedImageDataset`, in pixels: the mean of masks drawn with a fixed seed."""
    ratio = dataset.mask_ratio
    return _average_distance(
        *(dataset.mask_strategy, tuple(dataset.grid_size), tuple(ratio) if isinstance(ratio, Sequence) else ratio),
        *(dataset.unit_size, dataset.patch_size, tuple(dataset.image_size)),
    )


@lru_cache(maxsize=8)
def _average_distance(
    strategy: MaskStrategy, grid_size: tuple, ratio: Any, unit_size: int, patch_size: int, image_size: tuple
) -> float:
    height, width = image_size
    count = max(2, min(64, int(AVERAGE_DISTANCE_BUDGET / (height * width * width))))
    masks = strategy(grid_size, ratio, count, unit_size=unit_size, generator=sample_generator(0))
    return float(average_distance(masks, patch_size, image_size).mean())


def millions(number: int) -> str:
    """A number of parameters, to three digits."""
    return f"{number / 1e6:.3g} M" if number < 1e9 else f"{number / 1e9:.3g} B"


def numbers(values: Sequence[float]) -> str:
    """Numbers to four digits."""
    return ", ".join(f"{value:.4g}" for value in values)


def listed(value: Any) -> str:
    """A setting in words: lists with dashes."""
    if isinstance(value, (list, tuple)):
        return "-".join(listed(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def counted(number: int, noun: str, plural: str = "s") -> str:
    """A number and its noun."""
    return f"{number:,} {noun}{plural if number != 1 else ''}"
