"""Loading any checkpoint, of SimMIM or of transformers, as an encoder with the normalization that it expects."""

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

from ..model.configuration_simmim import SimMIMConfig
from ..model.image_processing_simmim import SimMIMImageProcessor
from ..model.modeling_base import SimMIMModel

logger = logging.get_logger(__name__)


# Class that loads a trained model, by a part of the name of its architecture.
PREDICTORS: dict[str, Any] = {
    "ForImageClassification": AutoModelForImageClassification,
    "ForSemanticSegmentation": AutoModelForSemanticSegmentation,
}


def load_predictor(checkpoint: str) -> tuple[PreTrainedModel, bool]:
    """Load a classifier or a segmentation model, in float32.

    Args:
        checkpoint: Folder or name on the Hub.

    Returns:
        The model, in evaluation mode, and whether it is a segmentation model.

    Raises:
        ValueError: If there is no such checkpoint, or it is another kind of model, such as a pre-trained one.
    """
    config = load_config(checkpoint)
    architectures = config.architectures or []
    for part, auto_class in PREDICTORS.items():
        if any(part in name for name in architectures):
            return auto_class.from_pretrained(checkpoint, dtype=torch.float32), "Segmentation" in part
    raise ValueError(
        f"{checkpoint} is neither a classifier nor a segmentation model, but {' or '.join(architectures) or 'unknown'}."
        " It has no classes to predict. Train it first: hf-simmim finetune --checkpoint"
        f" {checkpoint} --train_dir FOLDER, or hf-simmim segment, and give the output folder of that."
    )


def load_encoder(checkpoint: str, **geometry: Any) -> SimMIMModel:
    """Load the encoder of a SimMIM checkpoint or of a vision model of transformers, in float32.

    Args:
        checkpoint: Folder or name on the Hub.
        **geometry: `image_size` (height, width) in pixels or `window_size` in patches, to replace the checkpoint's.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: If there is no such checkpoint, or its encoder does not support the geometry.
    """
    stored = load_config(checkpoint)
    if stored.model_type == SimMIMConfig.model_type:
        return SimMIMModel.from_pretrained(checkpoint, dtype=torch.float32, **geometry)
    return SimMIMModel.from_encoder(checkpoint, dtype=torch.float32, **geometry)


def pixel_settings(checkpoint: str, num_channels: int) -> dict[str, Any]:
    """Read rescale factor, mean, standard deviation and nodata value of a checkpoint's image processor.

    Args:
        checkpoint: Folder or name on the Hub.
        num_channels: Channels of its encoder.

    Returns:
        `image_mean`, `image_std` and, where they are stored, `rescale_factor` and `nodata`.

    Raises:
        ValueError: If it has no image processor, and its encoder does not take three channels.
    """
    try:
        stored, _ = SimMIMImageProcessor.get_image_processor_dict(checkpoint)
    except OSError as error:
        if num_channels != 3:
            raise ValueError(
                f"{checkpoint} has no image processor, so the normalization of its {num_channels} channels is unknown."
                " Save a preprocessor_config.json with image_mean and image_std next to the model."
            ) from error
        logger.warning(f"{checkpoint} has no image processor; images are normalized with ImageNet's mean and std.")
        stored = {"image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD}
    keys = ("image_mean", "image_std", "rescale_factor", "nodata")
    return {key: stored[key] for key in keys if stored.get(key) is not None}


def stored_processor(checkpoint: str) -> dict[str, Any]:
    """All settings of a checkpoint's image processor, as they are stored; empty if it has none."""
    try:
        return SimMIMImageProcessor.get_image_processor_dict(checkpoint)[0]
    except OSError:
        return {}


def inherited_pixels(checkpoint: str | None) -> dict[str, Any]:
    """Rescale factor, mean, std and nodata value of --checkpoint's image processor; empty if it has none."""
    settings = {} if checkpoint is None else stored_processor(checkpoint)
    if not settings:
        return {}
    return {"rescale_factor": 1 / 255} | {
        key: settings[key]
        for key in ("rescale_factor", "image_mean", "image_std", "nodata")
        if settings.get(key) is not None
    }


def load_config(checkpoint: str) -> PreTrainedConfig:
    """Load the config of a checkpoint of SimMIM or of transformers.

    Args:
        checkpoint: Folder or name on the Hub.

    Returns:
        The config.

    Raises:
        ValueError: If there is no such checkpoint.
    """
    try:
        return AutoConfig.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"checkpoint={checkpoint!r} is neither the folder of a model nor a model on the Hub. {error}"
        ) from error
