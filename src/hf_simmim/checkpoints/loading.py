"""Checkpoints as encoders whose features are taken: of ours or of transformers, with the pixels that they expect."""

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

from ..model.configuration_simmim import SimMIMConfig
from ..model.image_processing_simmim import SimMIMImageProcessor
from ..model.modeling_base import SimMIMModel

logger = logging.get_logger(__name__)


def load_encoder(checkpoint: str, **geometry: Any) -> SimMIMModel:
    """The encoder of a SimMIM checkpoint or of a vision model of transformers, in float32.

    Args:
        checkpoint: Folder or name on the Hub.
        **geometry: `image_size` (height, width) in pixels or `window_size` in patches, other than the checkpoint's.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: If there is none, or it does not go to that geometry.
    """
    stored = load_config(checkpoint)
    if stored.model_type == SimMIMConfig.model_type:
        return SimMIMModel.from_pretrained(checkpoint, dtype=torch.float32, **geometry)
    return SimMIMModel.from_encoder(checkpoint, dtype=torch.float32, **geometry)


def pixel_settings(checkpoint: str, num_channels: int) -> dict[str, Any]:
    """Scale, mean, standard deviation and nodata of the checkpoint's image processor.

    Args:
        checkpoint: Folder or name on the Hub.
        num_channels: Channels that its encoder takes.

    Returns:
        `image_mean`, `image_std` and, where they are stored, `rescale_factor` and `nodata`.

    Raises:
        ValueError: If it has no processor, and its channels are not those of color pictures.
    """
    try:
        stored, _ = SimMIMImageProcessor.get_image_processor_dict(checkpoint)
    except OSError as error:
        if num_channels != 3:
            raise ValueError(
                f"{checkpoint} has no image processor, which tells how its {num_channels} channels are normalized. Save"
                " a preprocessor_config.json with image_mean and image_std beside the model."
            ) from error
        logger.warning(f"{checkpoint} has no image processor; images are normalized by ImageNet's mean and deviation.")
        stored = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
    keys = ("image_mean", "image_std", "rescale_factor", "nodata")
    return {key: stored[key] for key in keys if stored.get(key) is not None}


def inherited_pixels(checkpoint: str | None) -> dict[str, Any]:
    """Scale, normalization and nodata that --checkpoint was trained with, if its image processor tells."""
    if checkpoint is None:
        return {}
    try:
        settings, _ = SimMIMImageProcessor.get_image_processor_dict(checkpoint)
    except OSError:
        return {}
    return {"rescale_factor": 1 / 255} | {
        key: settings[key]
        for key in ("rescale_factor", "image_mean", "image_std", "nodata")
        if settings.get(key) is not None
    }


def load_config(checkpoint: str) -> PreTrainedConfig:
    """The config of a checkpoint, of ours or of transformers.

    Raises:
        ValueError: If there is none.
    """
    try:
        return AutoConfig.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"checkpoint={checkpoint!r} is neither a folder with a model nor one on the Hub. {error}"
        ) from error
