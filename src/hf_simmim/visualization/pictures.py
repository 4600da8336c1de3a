"""Tensors as pictures: pixels, errors, and the font that names are written in."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageFont

MASK_GRAY = 128
# Errors from here on, of 255, have the brightest color of an error map: always the same, so that maps compare.
ERROR_LIMIT = 128


def font_for(texts: Iterable[str], size: int) -> Any:
    """A font that has the letters of texts such as names of files and classes, as far as there is one.

    Args:
        texts: What is to be written.
        size: In pixels.

    Returns:
        Pillow's own font; for letters beyond ASCII, most of which it lacks, DejaVu Sans, which matplotlib brings along.
    """
    if all(text.isascii() for text in texts):
        return ImageFont.load_default(size)
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def to_pictures(pixel_values: torch.Tensor, image_mean: Sequence[float], image_std: Sequence[float]) -> np.ndarray:
    """Undo the normalization, for the eye.

    Black is 0 and white is 1 after rescaling, as in pictures. Channels whose mean and standard deviation show another
    range, such as those of satellites, go from black to white within two standard deviations around their mean.

    Args:
        pixel_values: Normalized images of shape (B, C, H, W). Of more than three channels the first three are shown.
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


def error_pictures(error: torch.Tensor) -> np.ndarray:
    """Color errors from black over red to pale yellow, evenly for the eye.

    Args:
        error: Tensor of shape (B, H, W) of errors from 0 to 255; all above ERROR_LIMIT look alike.

    Returns:
        uint8 array of shape (B, H, W, 3).
    """
    from matplotlib import colormaps

    shares = (error.float() / ERROR_LIMIT).clamp(0, 1).cpu().numpy()
    return colormaps["magma"](shares, bytes=True)[..., :3]
