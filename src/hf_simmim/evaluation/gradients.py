"""Masked images and the histograms of gradients that a model predicts, drawn as lines along the edges."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from ..visualization.glyphs import SMALLEST_GLYPH, glyph_pictures
from ..visualization.pictures import error_pictures, pale_pictures, to_pictures
from .masked_prediction import MaskedPrediction

# Colors of the lines in masked cells and of those in visible ones, which stay in the background.
MASKED_COLOR, VISIBLE_COLOR = (255, 214, 102), (64, 80, 104)


@dataclass(frozen=True, kw_only=True)
class GradientReconstruction(MaskedPrediction):
    """Masked images, and the histograms of oriented gradients that a model predicts.

    The gradient error of a cell is the length of the difference between the predicted and the true histogram, which has
    a length of 1: exact predictions have an error of 0, and predictions of nothing one of 1.

    Columns of `pictures`: the prediction shows predicted histograms in masked cells and true ones in the others, the
    target true ones in all. Lines are yellow where the image was masked and blue elsewhere. If the model is trained on
    the whole image, the prediction is its whole output, and all lines are yellow. The error is that of masked cells, in
    colors; the rest of the image is pale.

    Args:
        pixel_values: Normalized images of shape (B, C, H, W).
        bool_masked_pos: Bool tensor of shape (B, h, w) on the patch grid of the image, True = masked.
        pixel_mask: Bool tensor of shape (B, H, W), True = valid, False = missing; None if all pixels are valid.
        prediction: The model's whole output: (B, channels * bins, h', w'), the bins of the first channel first.
        image_mean: Mean of each channel of rescaled pixels.
        image_std: Standard deviation of each channel.
        patch_size: Side of a patch in pixels.
        loss_region: Pixels that the model is trained on, "masked" or "all".
        target: The true histograms, of the shape of the prediction.
        num_bins: Number of bins of a histogram.
        cell_size: Side of a cell in pixels.
    """

    target: torch.Tensor
    num_bins: int
    cell_size: int

    rows: ClassVar[tuple[str, ...]] = (*MaskedPrediction.rows, "target")
    kind: ClassVar[str] = "gradients"
    columns: ClassVar[tuple[str, ...]] = ("original", "masked", "prediction", "target", "error")
    usual_columns: ClassVar[tuple[str, ...]] = columns[:4]
    columns_beside: ClassVar[tuple[str, ...]] = columns[:4]
    titles: ClassVar[dict[str, str]] = {"prediction": "predicted gradients", "target": "true gradients"}
    error_name: ClassVar[str] = "gradient error"
    error_unit: ClassVar[str] = "of 1"
    error_digits: ClassVar[int] = 2
    error_limit: ClassVar[float] = 1.0
    figures: ClassVar[tuple[str, ...]] = ("gradient_error",)

    @property
    def stride(self) -> int:
        """Pixels from one prediction to the next, `cell_size`."""
        return self.cell_size

    def _histograms(self, values: torch.Tensor) -> torch.Tensor:
        """Separate the bins: (B, C * bins, h', w') to (B, C, bins, h', w')."""
        return values.float().unflatten(1, (-1, self.num_bins))

    def _draw(self, column: str) -> np.ndarray:
        if column in ("original", "masked"):
            return super()._draw(column)
        height, width = self.image_size
        hidden = self.hidden.cpu().numpy()[..., None]
        if column == "error":
            errors = error_pictures(self.error.mean(dim=1), self.error_limit)
            errors = _enlarged(errors, self.cell_size)[:, :height, :width]
            pale = pale_pictures(to_pictures(self.pixel_values, self.image_mean, self.image_std), 5)
            return np.where(hidden, errors, pale)
        zoom = -(-SMALLEST_GLYPH // self.cell_size)
        true = self._glyphs(self.target, zoom)
        shown = true if column == "target" else self._glyphs(self.prediction, zoom)
        if self.loss_region == "all":
            return _colored(shown, MASKED_COLOR)
        return np.where(_enlarged(hidden, zoom), _colored(shown, MASKED_COLOR), _colored(true, VISIBLE_COLOR))

    def _glyphs(self, values: torch.Tensor, zoom: int) -> np.ndarray:
        """Lines (B, H * zoom, W * zoom, 3) of histograms."""
        height, width = self.image_size
        return glyph_pictures(self._histograms(values), self.cell_size * zoom)[:, : height * zoom, : width * zoom]

    @property
    def error(self) -> torch.Tensor:
        """Gradient error of every cell and channel, masked or not: float32 tensor of shape (B, C, h', w')."""
        return (self._histograms(self.prediction) - self._histograms(self.target)).norm(dim=2)

    @property
    def gradient_error(self) -> torch.Tensor:
        """Mean gradient error of masked cells, (B,); NaN if there are none."""
        return self.masked_error


def _colored(pictures: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """White lines in a color."""
    return (pictures * (np.array(color, np.float32) / 255)).astype(np.uint8)


def _enlarged(pictures: np.ndarray, zoom: int) -> np.ndarray:
    """Repeat the pixels of (B, H, W, C) by a whole number."""
    return pictures.repeat(zoom, axis=1).repeat(zoom, axis=2)
