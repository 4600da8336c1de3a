"""Targets that a frozen network makes of the whole images: tokens of a codebook, and features of a teacher."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, FlavaImageCodebook, FlavaImageCodebookConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

from .components import CODEBOOK
from .configuration_simmim import SimMIMConfig
from .encoder_geometry import encoder_geometry, transformers_class
from .encoders import build_encoder, encode
from .frozen_targets import FrozenNetworkTarget, one_line
from .stock_checkpoints import load_stock
from .target import to_pixel_values

logger = logging.get_logger(__name__)

CODEBOOK_STRIDE = 8  # three poolings by 2
CODEBOOK_MARGIN = 0.1  # the dVAE's colours are in [0.1, 0.9]

# Of a config: what a network's shape does not depend on.
_BESIDE_SHAPE = ("id2label", "label2id", "transformers_version", "_name_or_path", "architectures", "dtype")
# Of an image processor: steps that mean and standard deviation cannot express.
_UNKNOWN_STEPS = ("do_flip_channel_order", "rescale_offset", "offset")


class Codebook(FrozenNetworkTarget):
    """Tokens of a frozen discrete VAE, that of DALL-E in the form of transformers' `FlavaImageCodebook`.

    Always computed in float32: rounding changes tokens.

    Source: section 3.4 of the paper, "vision tokenization"; section 2.1 of BEiT (arXiv 2106.08254).
    """

    placeholder = (1, torch.int64)

    def read(self) -> dict[str, Any]:
        stored = self.stored_config()
        architectures = stored.get("architectures") or []
        if "codebook" not in stored.get("model_type", "") and "FlavaImageCodebook" not in architectures:
            raise self.error(
                f"holds a {stored.get('model_type')!r} model and no codebook. Name one of transformers'"
                f" FlavaImageCodebook, such as {CODEBOOK!r}."
            )
        # Older checkpoints have another model_type.
        config = FlavaImageCodebookConfig.from_dict(stored | {"model_type": FlavaImageCodebookConfig.model_type})
        return {"model_config": _shape_of(config)}

    def describe(self) -> None:
        self.codebook_config = FlavaImageCodebookConfig.from_dict(self.options["model_config"])
        self.num_outputs = self.codebook_config.vocab_size
        self.network_channels = self.codebook_config.input_channels
        self.own_stride = CODEBOOK_STRIDE
        self.refuse_other_range()

    def load_network(self) -> nn.Module:
        loaded: Any = FlavaImageCodebook.from_pretrained(
            self.model, config=copy.deepcopy(self.codebook_config), dtype=torch.float32, output_loading_info=True
        )
        network, info = loaded
        if info["missing_keys"]:
            raise self.error(f"lacks weights of the codebook, such as {sorted(info['missing_keys'])[0]}.")
        return network

    def run(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        colors = images.clamp(0, 1) * (1 - 2 * CODEBOOK_MARGIN) + CODEBOOK_MARGIN
        with torch.autocast(images.device.type, enabled=False):
            return network(colors).argmax(dim=1, keepdim=True)  # B, 1, h, w


class Features(FrozenNetworkTarget):
    """Feature map of a frozen teacher: any encoder of transformers that SimMIM can train, or one that it trained.

    The teacher sees the images in the normalisation of its own image processor. With `normalize` its features are
    brought to zero mean and unit variance over their channels, at each step.

    Source: section 3.2 of MaskFeat (arXiv 2112.09133), "deep features"; data2vec (arXiv 2202.03555) for the
    normalisation.
    """

    kept_options = ("model_config", "image_mean", "image_std")

    def read(self) -> dict[str, Any]:
        stored = self.stored_config()
        trained = None
        if stored.get("model_type") == SimMIMConfig.model_type:
            trained = SimMIMConfig.from_dict(stored)
            config = trained.encoder_config
        else:
            try:
                config = AutoConfig.from_pretrained(self.model)
            except ValueError as error:
                raise self.error(f"is no model that transformers knows: {one_line(error)}.") from error
            vision_config = getattr(config, "vision_config", None)
            if vision_config is not None and transformers_class(vision_config) is not None:
                config = vision_config
        mean, std = self.options["image_mean"], self.options["image_std"]
        if mean is None or std is None:
            mean, std = _statistics(self, trained, getattr(config, "num_channels", 3))
        return {"model_config": _shape_of(config), "image_mean": mean, "image_std": std}

    def describe(self) -> None:
        try:
            self.teacher_config = SimMIMConfig(encoder_config=self.options["model_config"])
            self.geometry = encoder_geometry(self.teacher_config.encoder_config)
        except ValueError as error:
            raise self.error(f"cannot be a teacher: {one_line(error)}. Name an image encoder.") from error
        self.num_outputs = self.geometry.hidden_size
        self.own_stride = self.geometry.stride
        self.network_channels = self.teacher_config.num_channels
        if not len(self.options["image_mean"]) == len(self.options["image_std"]) == self.network_channels:
            raise self.error(
                f"takes images of {self.network_channels} channels, for which image_mean={self.options['image_mean']}"
                f" and image_std={self.options['image_std']} in target_options do not have one value each."
            )
        self.refuse_other_range(max(self.options["image_mean"]))
        if self.options["layer"] is not None:
            self._check_layer()

    def _check_layer(self) -> None:
        """Run the teacher without memory to see whether the layer is there, and has a step where the last one has."""
        layer, size = self.options["layer"], self.geometry.image_size
        with torch.device("meta"):
            encoder = build_encoder(self.teacher_config, use_mask_token=False).eval()
            images = torch.zeros(1, self.network_channels, *size)
        # Models keep index tensors that they make on the way, and would keep them without memory, too.
        with torch.device("cpu"), torch.no_grad():
            states = encode(encoder, self.geometry, images, output_hidden_states=True).hidden_states or ()
        if not -len(states) <= layer < len(states):
            raise self.error(f"has {len(states)} hidden states, and layer={layer} in target_options is none of them.")
        steps = (size[0] // self.own_stride) * (size[1] // self.own_stride)
        expected = (1, self.geometry.num_prefix_tokens + steps, self.num_outputs)
        if self.geometry.layout != "tokens" or tuple(states[layer].shape) != expected:
            raise self.error(
                f"has hidden states of other shapes than its feature map, and layer={layer} in target_options cannot be"
                " one of them. Leave layer out."
            )

    def load_network(self) -> nn.Module:
        if self.stored_config().get("model_type") == SimMIMConfig.model_type:
            # Imported where it is needed: the models import their targets.
            from .modeling_simmim import SimMIMModel

            model, info = SimMIMModel.from_pretrained(self.model, use_mask_token=False, output_loading_info=True)
            encoder, config, missing = model.encoder, model.config, info["missing_keys"]
        else:
            encoder_config, weights, _, _ = load_stock(self.model)
            config = SimMIMConfig(encoder_config=_shape_of(encoder_config))
            encoder = build_encoder(config, use_mask_token=False)
            result = encoder.load_state_dict(weights, strict=False)
            missing = [name for name in result.missing_keys if not name.endswith("mask_token")]
        if missing:
            raise self.error(f"lacks weights of the encoder, such as {sorted(missing)[0]}.")
        if encoder_geometry(config.encoder_config) != self.geometry:
            raise self.error(
                "is another model now than its config in target_options says. Leave model_config, image_mean and"
                " image_std out there, and they are read anew."
            )
        return encoder

    def run(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        layer = self.options["layer"]
        images = to_pixel_values(images, (self.options["image_mean"], self.options["image_std"]))
        outputs = encode(network, self.geometry, images, output_hidden_states=layer is not None)
        features = outputs.feature_map
        if layer is not None and outputs.hidden_states is not None:
            tokens = outputs.hidden_states[layer][:, self.geometry.num_prefix_tokens :]
            features = tokens.transpose(1, 2).unflatten(2, features.shape[2:])
        features = features.float()
        if self.options["normalize"]:
            features = F.layer_norm(features.movedim(1, -1), (self.num_outputs,)).movedim(-1, 1)
        return features


def _shape_of(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in _BESIDE_SHAPE}


def _statistics(
    target: FrozenNetworkTarget, trained: SimMIMConfig | None, num_channels: int
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that a teacher's images are normalised with, for images in [0, 1]."""
    if trained is not None and trained.image_mean is not None:
        return trained.pixel_statistics()
    try:
        settings = BaseImageProcessor.get_image_processor_dict(target.model)[0]
    except OSError:
        settings = {}
    steps = [name for name in _UNKNOWN_STEPS if settings.get(name)]
    if steps:
        raise target.error(f"has an image processor with {steps[0]}, which is not supported. Name another teacher.")
    mean, std = settings.get("image_mean"), settings.get("image_std")
    if settings.get("do_normalize") is False:
        mean, std = 0.0, 1.0
    elif mean is None or std is None:
        if num_channels != len(IMAGENET_DEFAULT_MEAN):
            raise target.error(
                f"has no image processor beside it, and takes {num_channels} channels. Set image_mean and image_std in"
                " target_options to what its images, in [0, 1], are normalised with."
            )
        logger.warning_once(
            f"{target.model} has no image processor beside it: its images are normalised with ImageNet's mean and"
            " standard deviation. Set image_mean and image_std in target_options for others."
        )
        mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    scale = 1.0
    if trained is None:
        # Its processor takes values from 0 to 255, and multiplies them before it normalises.
        scale = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255
    means, stds = ([values] * num_channels if isinstance(values, (int, float)) else values for values in (mean, std))
    return [value / scale for value in means], [value / scale for value in stds]
