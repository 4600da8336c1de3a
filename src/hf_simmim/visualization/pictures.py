"""Tensors as images for display: pixels, errors, and the font of names."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageFont

MASK_GRAY = 128
# Errors from here on, of 255, have the brightest color of an error map; it is fixed so that maps are comparable.
ERROR_LIMIT = 128


def font_for(texts: Iterable[str], size: int) -> Any:
    """Choose a font that can render texts such as names of files and classes.

    Args:
        texts: Texts to render.
        size: Font size in pixels.

    Returns:
        Pillow's default font; for letters beyond ASCII, most of which it lacks, matplotlib's DejaVu Sans.
    """
    if all(text.isascii() for text in texts):
        return ImageFont.load_default(size)
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def shortened(text: str, font: Any, room: float) -> str:
    """Shorten a text to a width in pixels by cutting its middle.

    Args:
        text: The text.
        font: Font of `font_for`.
        room: The width.

    Returns:
        The text, with an ellipsis if it was too long.
    """
    kept = len(text)
    short = text
    while font.getlength(short) > room and kept > 2:
        kept -= 1
        short = text[: kept // 2] + "…" + text[len(text) - (kept - kept // 2) :]
    return short


def to_pictures(pixel_values: torch.Tensor, image_mean: Sequence[float], image_std: Sequence[float]) -> np.ndarray:
    """Undo the normalization for display.

    Black is 0 and white is 1 after rescaling. Channels whose mean and standard deviation indicate another range, such
    as those of satellites, go from black to white within two standard deviations around their mean.

    Args:
        pixel_values: Normalized images of shape (B, C, H, W); of more than three channels the first three are shown.
        image_mean: Mean of each channel of rescaled pixels.
        image_std: Standard deviation of each channel.

    Returns:
        uint8 array of shape (B, H, W, 3).
    """
    shown = 1 if pixel_values.shape[1] < 3 else 3
    pixels = pixel_values[:, :shown].float()
    mean, std = (torch.tensor(values[:shown], device=pixels.device) for values in (image_mean, image_std))
    if bool(((mean >= 0) & (mean <= 1) & (std >= 0.1) & (std <= 1)).all()):
        pixels = pixels * std.view(1, -1, 1, 1) + mean.view(1, -1, 1, 1)
    else:
        pixels = pixels / 4 + 0.5
    pixels = pixels.clamp(0, 1).expand(-1, 3, -1, -1)
    return (pixels * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def pale_pictures(pictures: np.ndarray, factor: float) -> np.ndarray:
    """Make pictures gray and pale, so that other parts of them stand out.

    Args:
        pictures: uint8 array of shape (B, H, W, 3).
        factor: Factor by which the contrast to white shrinks.

    Returns:
        uint8 array of shape (B, H, W, 1).
    """
    return (255 - (255 - pictures.mean(axis=3, keepdims=True)) / factor).astype(np.uint8)


def error_pictures(error: torch.Tensor, limit: float = ERROR_LIMIT) -> np.ndarray:
    """Color errors from black over red to pale yellow, perceptually uniform (magma).

    Args:
        error: Tensor of shape (B, H, W) of errors, of pixels from 0 to 255.
        limit: Error that has the brightest color, as larger ones have.

    Returns:
        uint8 array of shape (B, H, W, 3).
    """
    from matplotlib import colormaps

    shares = (error.float() / limit).clamp(0, 1).cpu().numpy()
    return colormaps["magma"](shares, bytes=True)[..., :3]
