"""Reconstruction of masked images by a checkpoint, and its error."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from ..model.image_processing_simmim import SimMIMImageProcessor
from ..model.masking import patch_mask, patches_with_pixels
from ..model.modeling_simmim import SimMIMForMaskedImageModeling
from ..model.targets import Target
from ..visualization.pictures import ERROR_LIMIT, error_pictures, pale_pictures, to_pictures
from .gradients import GradientReconstruction
from .masked_prediction import MaskedPrediction

# Of all kinds of reconstructions; each has some of them.
RECONSTRUCTION_COLUMNS = ("original", "masked", "prediction", "composite", "target", "error")


@dataclass(frozen=True)
class Reconstruction(MaskedPrediction):
    """Masked images and the pixels that a model predicts.

    Columns of `pictures`: the prediction is the model's whole output; where the image was visible it is gray and pale,
    unless the model is trained there. The composite shows the prediction at masked pixels, and the image elsewhere. The
    error is that of masked pixels, in colors; the rest of the image is pale.

    Args:
        pixel_values: Normalized images of shape (B, C, H, W).
        bool_masked_pos: Bool tensor of shape (B, h, w) on the patch grid of the image, True = masked.
        pixel_mask: Bool tensor of shape (B, H, W), True = valid, False = missing; None if all pixels are valid.
        prediction: The model's whole output, of shape (B, C, H, W), normalized like `pixel_values`.
        image_mean: Mean of each channel of rescaled pixels.
        image_std: Standard deviation of each channel.
        patch_size: Side of a patch in pixels.
        loss_region: Pixels that the model is trained on, "masked" or "all".
    """

    kind: ClassVar[str] = "pixels"
    columns: ClassVar[tuple[str, ...]] = ("original", "masked", "prediction", "composite", "error")
    usual_columns: ClassVar[tuple[str, ...]] = columns[:4]
    columns_beside: ClassVar[tuple[str, ...]] = columns[:3]
    error_name: ClassVar[str] = "masked l1"
    error_unit: ClassVar[str] = "of 255"
    error_digits: ClassVar[int] = 1
    error_limit: ClassVar[float] = ERROR_LIMIT
    figures: ClassVar[tuple[str, ...]] = ("masked_l1", "mean_color_l1")

    def _draw(self, column: str) -> np.ndarray:
        if column in ("original", "masked"):
            return super()._draw(column)
        hidden = self.hidden.cpu().numpy()[..., None]
        shown = to_pictures(
            self.prediction if column == "prediction" else self.pixel_values, self.image_mean, self.image_std
        )
        if column == "prediction" and self.loss_region == "masked":
            shown = np.where(hidden, shown, pale_pictures(shown, 2))
        elif column == "composite":
            shown = np.where(hidden, to_pictures(self.prediction, self.image_mean, self.image_std), shown)
        elif column == "error":
            shown = np.where(hidden, error_pictures(self.error.mean(dim=1)), pale_pictures(shown, 5))
        return shown

    @property
    def error(self) -> torch.Tensor:
        """Absolute error of every pixel, masked or not, from 0 to 255: float32 tensor of shape (B, C, H, W)."""
        scale = torch.tensor(self.image_std, device=self.pixel_values.device).view(1, -1, 1, 1) * 255
        return (self.prediction.float() - self.pixel_values.float()).abs() * scale

    def mean_color_error_per_image(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What `error_per_image` would be if all masked pixels were predicted in the mean color of the visible ones.

        This is the baseline of a predictor without a model. The mean of each channel is that of the visible, valid
        pixels of the image; of an image without any it is the mean of the normalization.

        Returns:
            Mean absolute error of masked, valid pixels from 0 to 255, and their number, (B,) each.
        """
        pixel_values = self.pixel_values.float()
        is_visible = (~self.hidden & self.real_pixels)[:, None]
        total = pixel_values.masked_fill(~is_visible, 0).sum(dim=(2, 3), keepdim=True)
        mean = total / is_visible.sum(dim=(2, 3), keepdim=True).clamp(min=1)
        return replace(self, prediction=mean.expand_as(pixel_values)).error_per_image()

    def figures_per_image(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Values of `figures` and the number of pixels that each averages, (B,) each."""
        return [*super().figures_per_image(), self.mean_color_error_per_image()]

    @property
    def mean_color_l1(self) -> torch.Tensor:
        """`masked_l1` of the mean color of visible pixels, (B,); see `mean_color_error_per_image`."""
        error, num_pixels = self.mean_color_error_per_image()
        return error.masked_fill(num_pixels == 0, torch.nan)

    @property
    def masked_l1(self) -> torch.Tensor:
        """Mean absolute error of masked pixels from 0 to 255, (B,), as in training; NaN if there are none."""
        return self.masked_error


def kind_of(target: Target) -> type[Reconstruction] | type[GradientReconstruction] | None:
    """Class of the reconstructions of a target's predictions; None if they cannot be drawn."""
    if target.histogram_bins:
        return GradientReconstruction
    return Reconstruction if target.is_decodable else None


def reconstruction_of(
    model: SimMIMForMaskedImageModeling,
    outputs: Any,
    pixel_values: torch.Tensor,
    bool_masked_pos: torch.Tensor,
    pixel_mask: torch.Tensor | None,
    processor: Any,
) -> Reconstruction | GradientReconstruction | None:
    """Combine images, masks and what a model predicted.

    Args:
        model: The model.
        outputs: Its outputs.
        pixel_values: Normalized images of shape (B, C, H, W).
        bool_masked_pos: Mask of shape (B, N) or (B, h, w), True = masked.
        pixel_mask: Bool tensor of shape (B, H, W), True = valid; None if all pixels are valid.
        processor: The image processor, which knows the normalization.

    Returns:
        Pixels, or gradients if the target is their histograms; None if the prediction cannot be drawn.
    """
    # Known to the model; configs look it up by a key, which takes longer at every step.
    patch_size = model.simmim.geometry.patch_size
    patches: Any = patch_mask(bool_masked_pos, pixel_values, patch_size)
    shared = {
        "pixel_values": pixel_values,
        "bool_masked_pos": patches,
        "pixel_mask": pixel_mask,
        "image_mean": processor.image_mean,
        "image_std": processor.image_std,
        "patch_size": patch_size,
        "loss_region": model.config.loss_region,
    }
    target = model.target
    if outputs["prediction"] is not None and target.histogram_bins:
        return GradientReconstruction(
            **shared,
            prediction=outputs["prediction"].float(),
            target=target(pixel_values),
            num_bins=target.histogram_bins,
            cell_size=target.stride,
        )
    reconstruction = outputs.get("reconstruction")
    return None if reconstruction is None else Reconstruction(**shared, prediction=reconstruction.float())


class Reconstructor:
    """A checkpoint and its image processor, ready to mask images and reconstruct them.

    Args:
        checkpoint: Folder or name on the Hub of a SimMIM checkpoint.
        device: Device to compute on; a GPU if there is one.
        revision: Branch, tag or commit on the Hub.
        image_size: (height, width) in pixels that images are resized to; the checkpoint's if None.

    Raises:
        ValueError: If there is no such checkpoint, or it lacks a prediction head, a target that can be drawn, or an
            image processor.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        device: str | torch.device | None = None,
        revision: str | None = None,
        image_size: tuple[int, int] | None = None,
    ):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        where: dict[str, Any] = {} if revision is None else {"revision": revision}
        geometry: dict[str, Any] = {} if image_size is None else {"image_size": list(image_size)}
        try:
            model, info = SimMIMForMaskedImageModeling.from_pretrained(
                checkpoint, dtype=torch.float32, output_loading_info=True, **geometry, **where
            )
        except OSError as error:
            raise ValueError(
                f"checkpoint={str(checkpoint)!r} is neither the folder of a model nor a model on the Hub. {error}"
            ) from error
        lacking = [name for name in info["missing_keys"] if name.startswith(("head.", "fusion.", "decoder."))]
        if lacking:
            raise ValueError(
                f"{checkpoint} has no prediction head ({sorted(lacking)[0]} is missing), like checkpoints of"
                " classifiers and encoders. Name a pre-training checkpoint."
            )
        kind = kind_of(model.target)
        if kind is None:
            raise ValueError(
                f"{checkpoint} predicts {model.config.target!r}, which cannot be drawn. Name a checkpoint with another"
                " target, such as 'rgb' or 'hog'."
            )
        self.model, self.kind = model.to(self.device).eval(), kind
        height, width = model.config.image_size
        try:
            self.processor = SimMIMImageProcessor.from_pretrained(
                checkpoint, size={"height": height, "width": width}, do_resize=True, do_center_crop=False, **where
            )
        except OSError as error:
            raise ValueError(
                f"{checkpoint} has no image processor, which defines how its images are normalized. Save a"
                " SimMIMImageProcessor next to the model."
            ) from error

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels that images are resized to."""
        return self.model.config.image_size

    @property
    def grid_size(self) -> tuple[int, int]:
        """(height, width) of the patch grid that masks are defined on."""
        return self.model.config.grid_size

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.model.config.patch_size

    @property
    def mask_step(self) -> int:
        """Side in pixels of which mask patches have to be multiples."""
        return self.model.config.mask_step

    @torch.no_grad()
    def __call__(
        self,
        images: Any,
        *,
        mask_strategy: str | None = None,
        mask_ratio: float | Sequence[float] | None = None,
        mask_patch_size: int | None = None,
        seed: int = 0,
        bool_masked_pos: torch.Tensor | np.ndarray | None = None,
    ) -> Reconstruction | GradientReconstruction:
        """Mask patches of images and reconstruct them.

        Args:
            images: An image, path or array, or a list of them, as the image processor takes them. They are resized to
                `image_size` regardless of their aspect ratio.
            mask_strategy: Name of the masking strategy; the processor's if None.
            mask_ratio: Fraction of the image to mask, in (0, 1), or the two ends of a range; the processor's if None.
            mask_patch_size: Side in pixels of the squares that are masked or visible as a whole; the processor's if
                None.
            seed: Seed of the first image's mask; the next images use the next integers, so that batching makes no
                difference.
            bool_masked_pos: Mask to use instead, of shape (B, h, w) or (h, w), True = masked. Patches without a valid
                pixel are not masked.

        Returns:
            The images, the masks and the predictions, on the CPU.

        Raises:
            ValueError: If there are no images, or the mask settings do not fit them.
        """
        images = list(images) if isinstance(images, (list, tuple)) else [images]
        if not images:
            raise ValueError("There are no images to reconstruct. Pass at least one.")
        settings: dict[str, Any] = {"mask_strategy": mask_strategy, "mask_ratio": mask_ratio}
        settings["mask_patch_size"] = mask_patch_size if bool_masked_pos is None else self.patch_size
        settings = {key: value for key, value in settings.items() if value is not None}
        # One by one, because only some may have missing pixels.
        inputs = [
            self.processor(
                image,
                **{"do_mask": True, "seed": seed + index, "model_patch_size": self.patch_size, **settings},
                return_tensors="pt",
            )
            for index, image in enumerate(images)
        ]
        pixel_values = torch.cat([entry["pixel_values"] for entry in inputs])
        pixel_mask = None
        if any("pixel_mask" in entry for entry in inputs):
            everything = torch.ones(1, *self.image_size, dtype=torch.bool)
            pixel_mask = torch.cat([entry.get("pixel_mask", everything) for entry in inputs])
        if bool_masked_pos is None:
            bool_masked_pos = torch.cat([entry["bool_masked_pos"] for entry in inputs])
        else:
            bool_masked_pos = torch.as_tensor(bool_masked_pos).bool()
            if tuple(bool_masked_pos.shape) == self.grid_size:
                bool_masked_pos = bool_masked_pos.expand(len(images), -1, -1)
        mask: Any = patch_mask(bool_masked_pos, pixel_values, self.patch_size)
        if pixel_mask is not None:
            mask = mask & patches_with_pixels(pixel_mask, self.patch_size)
        outputs = self.model(pixel_values.to(self.device), bool_masked_pos=mask.to(self.device), return_loss=False)
        found: Any = reconstruction_of(
            self.model, outputs, pixel_values.to(self.device), mask, pixel_mask, self.processor
        )
        return found.cpu()


def mask_from_painting(painting: np.ndarray | torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
    """Mask of the patches that a painting touches.

    Args:
        painting: Array of shape (H', W') or (H', W', C) over the whole image, of any size. Values above 0 are painted:
            in the last of two or four channels, which is the opacity, or else in any channel.
        grid_size: (h, w) of the patch grid.

    Returns:
        Bool tensor of shape (h, w), True where a patch has a painted pixel.

    Raises:
        ValueError: If the painting has another shape.
    """
    painted = torch.as_tensor(painting) > 0
    if painted.ndim == 3:
        painted = painted[..., -1] if painted.shape[2] in (2, 4) else painted.any(dim=2)
    if painted.ndim != 2 or not painted.numel():
        raise ValueError(
            f"The painting has shape {tuple(painting.shape)} and must be (height, width) or (height, width, channels)."
        )
    return F.adaptive_max_pool2d(painted[None, None].float(), grid_size)[0, 0] > 0
