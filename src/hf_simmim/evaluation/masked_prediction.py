"""Masked images with what a model predicts there: what reconstructions of pixels and of gradients have in common."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch

from ..model.losses import masked_mean_per_image, pixel_weights
from ..model.masking import average_distance, to_pixels
from ..visualization.pictures import MASK_GRAY, to_pictures


@dataclass(frozen=True)
class MaskedPrediction:
    """Masked images and their prediction by a model; the base of reconstructions.

    Args:
        pixel_values: Normalized images of shape (B, C, H, W).
        bool_masked_pos: Bool tensor of shape (B, h, w) on the patch grid of the image, True = masked.
        pixel_mask: Bool tensor of shape (B, H, W), True = valid, False = missing; None if all pixels are valid.
        prediction: The model's whole output, of shape (B, K, h', w').
        image_mean: Mean of each channel of rescaled pixels.
        image_std: Standard deviation of each channel.
        patch_size: Side of a patch in pixels.
        loss_region: Pixels that the model is trained on, "masked" or "all".
    """

    pixel_values: torch.Tensor
    bool_masked_pos: torch.Tensor
    pixel_mask: torch.Tensor | None
    prediction: torch.Tensor
    image_mean: Sequence[float]
    image_std: Sequence[float]
    patch_size: int
    loss_region: str = "masked"

    # Fields besides `pixel_mask` that have a row for each image.
    rows: ClassVar[tuple[str, ...]] = ("pixel_values", "bool_masked_pos", "prediction")
    # What is predicted; the columns of its pictures, those drawn by default alone and beside other models, and titles.
    kind: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    usual_columns: ClassVar[tuple[str, ...]]
    columns_beside: ClassVar[tuple[str, ...]]
    titles: ClassVar[dict[str, str]] = {}
    # Name, unit and decimals of the error of an image, and where the colors of error maps end.
    error_name: ClassVar[str]
    error_unit: ClassVar[str]
    error_digits: ClassVar[int]
    error_limit: ClassVar[float]
    # Names in metrics of what `figures_per_image` measures.
    figures: ClassVar[tuple[str, ...]]

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        height, width = self.pixel_values.shape[2:]
        return height, width

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Join several batches of one model.

        Args:
            parts: At least one.

        Returns:
            Their images one after the other.
        """
        pixel_mask = None
        if any(part.pixel_mask is not None for part in parts):
            pixel_mask = torch.cat([part.real_pixels for part in parts])
        joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in cls.rows}
        return replace(parts[0], pixel_mask=pixel_mask, **joined)

    def take(self, indices: Sequence[int]) -> Self:
        """Select images, in the order of the indices."""
        order = torch.tensor(indices, dtype=torch.long)
        pixel_mask = None if self.pixel_mask is None else self.pixel_mask[order]
        return replace(self, pixel_mask=pixel_mask, **{name: getattr(self, name)[order] for name in self.rows})

    def cpu(self) -> Self:
        """Move everything to the CPU."""
        pixel_mask = None if self.pixel_mask is None else self.pixel_mask.cpu()
        return replace(self, pixel_mask=pixel_mask, **{name: getattr(self, name).cpu() for name in self.rows})

    @property
    def real_pixels(self) -> torch.Tensor:
        """`pixel_mask`, True everywhere if there is none."""
        if self.pixel_mask is None:
            return torch.ones_like(self.pixel_values[:, 0], dtype=torch.bool)
        return self.pixel_mask.bool()

    @property
    def hidden(self) -> torch.Tensor:
        """Masked pixels: bool tensor of shape (B, H, W)."""
        return to_pixels(self.bool_masked_pos, self.patch_size, self.image_size)

    def pictures(self, column: str) -> np.ndarray:
        """Images for display; missing pixels are white.

        Args:
            column: One of `columns`, which the class explains.

        Returns:
            uint8 array of shape (B, H, W, 3), or larger by a whole number.

        Raises:
            ValueError: If there is no such column.
        """
        if column not in self.columns:
            raise ValueError(f"column={column!r} is unknown. Use one of: {', '.join(self.columns)}.")
        shown = self._draw(column)
        return np.where(_at_pixels(self.real_pixels, shown), shown, np.uint8(255))

    def _draw(self, column: str) -> np.ndarray:
        """Pictures of a column, without regard to missing pixels."""
        shown = to_pictures(self.pixel_values, self.image_mean, self.image_std)
        return np.where(_at_pixels(self.hidden, shown), np.uint8(MASK_GRAY), shown) if column == "masked" else shown

    @property
    def error(self) -> torch.Tensor:
        """Error of everything that is predicted, masked or not: float32 tensor of shape (B, channels, h', w')."""
        raise NotImplementedError

    @property
    def stride(self) -> int:
        """Pixels from one prediction to the next."""
        return 1

    def error_per_image(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean error of masked, valid pixels, and their number, (B,) each."""
        shape, masks = self.pixel_values.shape, (self.bool_masked_pos, self.patch_size)
        weights = pixel_weights(*masks, shape, self.stride, None if self.pixel_mask is None else self.real_pixels)
        return masked_mean_per_image(self.error, weights)

    def figures_per_image(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Values of `figures` and the number of pixels that each averages, (B,) each; the error is the first."""
        return [self.error_per_image()]

    @property
    def masked_error(self) -> torch.Tensor:
        """Mean error of masked pixels, (B,), as in training; NaN if there are none."""
        error, num_pixels = self.error_per_image()
        return error.masked_fill(num_pixels == 0, torch.nan)

    @property
    def average_distance(self) -> torch.Tensor:
        """AvgDist in pixels, (B,), as in `masking.average_distance`; NaN for images that are masked completely."""
        mask = self.bool_masked_pos.clone()
        is_whole = mask.flatten(1).all(1)
        mask[is_whole] = False
        return average_distance(mask, self.patch_size, self.image_size).masked_fill(is_whole, torch.nan)


def _at_pixels(mask: torch.Tensor, pictures: np.ndarray) -> np.ndarray:
    """A mask of pixels (B, H, W) for pictures of that size or a multiple: bool array (B, H', W', 1)."""
    zoom = pictures.shape[1] // mask.shape[1]
    return mask.cpu().numpy().repeat(zoom, axis=1).repeat(zoom, axis=2)[..., None]
