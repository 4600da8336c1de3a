"""Targets that a frozen network computes from the unmasked images: codebook tokens and teacher features."""

import copy
import math
import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, FlavaImageCodebook, FlavaImageCodebookConfig, PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

from .encoders import build_encoder, encode, encoder_geometry, transformers_class, whole_weights
from .masking import patch_grid
from .options import Option, each, is_finite, is_index, is_positive, optional
from .targets import Target, TargetSpec, to_colors, to_pixel_values
from .weights import load_stock

logger = logging.get_logger(__name__)

CODEBOOK = "facebook/flava-image-codebook"

_loading = threading.RLock()


class FrozenNetworkTarget(Target):
    """Base of the targets that a frozen network computes.

    The network is not part of the model: neither the parameters nor checkpoints contain it. It is loaded for the first
    loss, or by `load`. Settings that the model's shape depends on are read from the network's config when the model is
    built, and stored in `target_options`, so that checkpoints load without the network.

    A prediction of stride S has a grid of ceil(H / S) x ceil(W / S). The network, of stride s, sees the image padded
    to multiples of S by repeating its border pixels, and resized by s / S (bicubic, antialiased), so that its grid is
    that of the prediction. BEiT uses 112 px for the 14 x 14 tokens of a 224 px image in the same way.

    Args:
        config: The SimMIM config. Settings that are read from the network are written to its `target_options`.
        model_class: As in `Target`.

    Raises:
        ValueError: If the network does not fit, or cannot be found and is not described in `target_options`.
    """

    is_decodable = False
    own_stride: int  # of the network, in pixels
    network_channels: int  # of the images that the network takes
    kept_options: tuple[str, ...] = ("model_config",)  # read from the network where they are not set
    placeholder: tuple[int | None, torch.dtype] = (None, torch.float32)  # channels if fixed, and dtype of the target

    def __init__(self, config: Any, model_class: Any = None):
        super().__init__(config, model_class)
        self.model = self.options["model"]
        self._networks: dict[torch.device, nn.Module] = {}
        unset = [key for key in self.kept_options if self.options[key] is None]
        if unset:
            try:
                found = self.read()
            except OSError as error:
                raise self.error(
                    f"cannot be read: {one_line(error)}. Set model in target_options to a folder that save_pretrained"
                    " wrote, or a name on the Hub."
                ) from error
            config.target_options = config.target_options | {key: found[key] for key in unset}
            self.options = config.options("target")
        # Called for its error, before anything else fails because the statistics are unknown.
        config.pixel_statistics()
        self.describe()
        self.stride = config.prediction_stride or self.own_stride
        if config.num_channels not in (1, self.network_channels):
            raise self.error(
                f"takes images of {self.network_channels} channels, but the encoder takes {config.num_channels}."
                f" Use another target, or images of {self.network_channels} channels."
            )
        if config.prediction_stride is None and config.encoder_stride % self.own_stride:
            self._refuse_stride()

    def read(self) -> dict[str, Any]:
        """Read the options in `kept_options` from the checkpoint."""
        raise NotImplementedError

    def describe(self) -> None:
        """Set `num_outputs`, `own_stride` and `network_channels` from the options."""
        raise NotImplementedError

    def load_network(self) -> nn.Module:
        """Load the network with its weights."""
        raise NotImplementedError

    def run(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Compute the target of images in [0, 1] (B, C, h * own_stride, w * own_stride), under the model's autocast."""
        raise NotImplementedError

    def stored_config(self) -> dict[str, Any]:
        """The config of the network, as stored in its checkpoint."""
        return PreTrainedConfig.get_config_dict(self.model)[0]

    def error(self, fault: str) -> ValueError:
        """An error that names the target and the network; the caller raises it."""
        return ValueError(f"target={self.config.target!r}: {self.model!r} {fault}")

    @torch.inference_mode(False)
    def load(self) -> None:
        """Load the network, unless it is loaded already.

        Raises:
            ValueError: If it cannot be found, or does not match the config.
        """
        with _loading:
            if self._networks:
                return
            try:
                # Loading draws random weights before it replaces them, which must not change training.
                with torch.random.fork_rng(devices=[]), torch.device("cpu"), whole_weights():
                    network = self.load_network()
            except OSError as error:
                others = [
                    f", {key!r}: {value!r}"
                    for key, value in self.config.target_options.items()
                    if key not in ("model", "model_config")
                ]
                raise self.error(
                    f"cannot be loaded: {one_line(error)}. Only the loss needs it. Restore it, or give its location:"
                    f" from_pretrained(..., target_options={{'model': ...{''.join(others)}}})."
                ) from error
            self._networks[torch.device("cpu")] = network.float().eval().requires_grad_(False)

    # A graph break: the network's computation is not part of the model's graph.
    @torch.compiler.disable
    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if pixel_values.is_meta:
            channels, dtype = self.placeholder
            grid_size = patch_grid((pixel_values.shape[2], pixel_values.shape[3]), self.stride)
            shape = (pixel_values.shape[0], channels or self.num_outputs, *grid_size)
            return torch.empty(shape, dtype=dtype, device="meta")
        return self.run(self._network_on(pixel_values.device), self.images(pixel_values))

    def images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Undo the model's normalization, and bring images to the size and channels that the network needs.

        Args:
            pixel_values: Normalized images of shape (B, C, H, W).

        Returns:
            float32 tensor (B, network_channels, ceil(H / S) * s, ceil(W / S) * s) for the stride S of the prediction
            and the stride s of the network.
        """
        images = to_colors(pixel_values.float(), self.config.pixel_statistics())
        height, width = images.shape[2:]
        rows, columns = patch_grid((height, width), self.stride)
        below, right = rows * self.stride - height, columns * self.stride - width
        if below or right:
            images = F.pad(images, (0, right, 0, below), mode="replicate")
        if self.stride != self.own_stride:
            size = (rows * self.own_stride, columns * self.own_stride)
            images = F.interpolate(images, size=size, mode="bicubic", antialias=True)
        return images.expand(-1, self.network_channels, -1, -1)

    def _network_on(self, device: torch.device) -> nn.Module:
        with _loading:
            self.load()
            if device not in self._networks:
                held, network = next(iter(self._networks.items()))
                if held.type == "cpu":
                    del self._networks[held]
                else:
                    network = copy.deepcopy(network)
                self._networks[device] = network.to(device)
            return self._networks[device]

    def _refuse_stride(self) -> None:
        encoder_stride = self.config.encoder_stride
        divisors = [step for step in range(1, encoder_stride + 1) if encoder_stride % step == 0]
        nearest = min(divisors, key=lambda step: abs(math.log(step / self.own_stride)))
        raise self.error(
            f"has a stride of {self.own_stride} px, and the encoder's stride of {encoder_stride} px is not a multiple."
            f" Set prediction_stride={nearest}: it then sees images resized by {self.own_stride}/{nearest}."
        )

    def refuse_other_range(self, largest_mean: float = 1.0) -> None:
        """Reject images that are not in [0, 1], judged by `image_mean`, for a network that needs this range."""
        mean, _ = self.config.pixel_statistics()
        if max(mean) > 1 >= largest_mean:
            raise self.error(
                f"takes images in [0, 1], but image_mean={mean} is of another range. Rescale the images to [0, 1]"
                " before they are normalized."
            )

    def __getstate__(self) -> dict[str, Any]:
        # Copied and pickled models do not contain the network, and load it when they need it.
        return self.__dict__ | {"_networks": {}}


def one_line(error: Exception) -> str:
    """An error's message on one line, without the period."""
    return " ".join(str(error).split()).rstrip(".")


CODEBOOK_STRIDE = 8  # three poolings by 2
CODEBOOK_MARGIN = 0.1  # the dVAE's colors are in [0.1, 0.9]

# Config keys that a network's shape does not depend on.
_BESIDE_SHAPE = ("id2label", "label2id", "transformers_version", "_name_or_path", "architectures", "dtype")
# Steps of an image processor that mean and standard deviation cannot express.
_UNKNOWN_STEPS = ("do_flip_channel_order", "rescale_offset", "offset")


class Codebook(FrozenNetworkTarget):
    """Tokens of a frozen discrete VAE: that of DALL-E, as transformers' `FlavaImageCodebook`.

    Use it to compare with BEiT, which predicts these tokens. They are always computed in float32, because rounding
    changes tokens.

    Source: section 3.4 of the paper, "vision tokenization"; section 2.1 of BEiT (arXiv 2106.08254).

    Examples:
        >>> SimMIMConfig(target="codebook", prediction_stride=16)
    """

    placeholder = (1, torch.int64)

    def read(self) -> dict[str, Any]:
        stored = self.stored_config()
        architectures = stored.get("architectures") or []
        if "codebook" not in stored.get("model_type", "") and "FlavaImageCodebook" not in architectures:
            raise self.error(
                f"holds a {stored.get('model_type')!r} model, not a codebook. Name a checkpoint of transformers'"
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
    """Feature map of a frozen teacher: any image encoder of transformers, or the encoder of a SimMIM checkpoint.

    Use it to distill a strong pre-trained encoder. The teacher sees images in the normalization of its own image
    processor. With `normalize`, its features are normalized to zero mean and unit variance over the channels, at each
    position.

    Source: section 3.2 of MaskFeat (arXiv 2112.09133), "deep features"; data2vec (arXiv 2202.03555) for the
    normalization.

    Examples:
        >>> SimMIMConfig(target="features", target_options={"model": "facebook/dinov2-base"}, prediction_stride=16)
    """

    kept_options = ("model_config", "image_mean", "image_std")

    def read(self) -> dict[str, Any]:
        stored = self.stored_config()
        trained = None
        if stored.get("model_type") == self.config.model_type:
            trained = type(self.config).from_dict(stored)
            config = trained.encoder_config
        else:
            try:
                config = AutoConfig.from_pretrained(self.model)
            except ValueError as error:
                raise self.error(f"is not a model that transformers knows: {one_line(error)}.") from error
            vision_config = getattr(config, "vision_config", None)
            if vision_config is not None and transformers_class(vision_config) is not None:
                config = vision_config
        mean, std = self.options["image_mean"], self.options["image_std"]
        if mean is None or std is None:
            mean, std = _statistics(self, trained, getattr(config, "num_channels", 3))
        return {"model_config": _shape_of(config), "image_mean": mean, "image_std": std}

    def describe(self) -> None:
        try:
            self.teacher_config = type(self.config)(encoder_config=self.options["model_config"])
            self.geometry = encoder_geometry(self.teacher_config.encoder_config)
        except ValueError as error:
            raise self.error(f"cannot be a teacher: {one_line(error)}. Name an image encoder.") from error
        self.num_outputs = self.geometry.hidden_size
        self.own_stride = self.geometry.stride
        self.network_channels = self.teacher_config.num_channels
        if not len(self.options["image_mean"]) == len(self.options["image_std"]) == self.network_channels:
            raise self.error(
                f"takes images of {self.network_channels} channels, but image_mean={self.options['image_mean']} and"
                f" image_std={self.options['image_std']} in target_options do not have one value for each."
            )
        self.refuse_other_range(max(self.options["image_mean"]))
        if self.options["layer"] is not None:
            self._check_layer()

    def _check_layer(self) -> None:
        """Run the teacher on the meta device to check that the layer exists, and has the grid of the feature map."""
        layer, size = self.options["layer"], self.geometry.image_size
        with torch.device("meta"):
            encoder = build_encoder(self.teacher_config, use_mask_token=False).eval()
            images = torch.zeros(1, self.network_channels, *size)
        # Models cache index tensors that they create in a forward pass, and would cache them on meta, too.
        with torch.device("cpu"), torch.no_grad():
            states = encode(encoder, self.geometry, images, output_hidden_states=True).hidden_states or ()
        if not -len(states) <= layer < len(states):
            raise self.error(f"has {len(states)} hidden states; layer={layer} in target_options must be one of them.")
        steps = (size[0] // self.own_stride) * (size[1] // self.own_stride)
        expected = (1, self.geometry.num_prefix_tokens + steps, self.num_outputs)
        if self.geometry.layout != "tokens" or tuple(states[layer].shape) != expected:
            raise self.error(
                f"has hidden states of other shapes than its feature map, so layer={layer} in target_options cannot be"
                " used. Leave layer out."
            )

    def load_network(self) -> nn.Module:
        if self.stored_config().get("model_type") == self.config.model_type:
            model, info = self.model_class.from_pretrained(self.model, use_mask_token=False, output_loading_info=True)
            encoder, config, missing = model.encoder, model.config, info["missing_keys"]
        else:
            encoder_config, weights, _, _ = load_stock(self.model)
            config = type(self.config)(encoder_config=_shape_of(encoder_config))
            encoder = build_encoder(config, use_mask_token=False)
            result = encoder.load_state_dict(weights, strict=False)
            missing = [name for name in result.missing_keys if not name.endswith("mask_token")]
        if missing:
            raise self.error(f"lacks weights of the encoder, such as {sorted(missing)[0]}.")
        if encoder_geometry(config.encoder_config) != self.geometry:
            raise self.error(
                "does not match its stored config in target_options. Leave out model_config, image_mean and image_std"
                " there to read them again."
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


def _statistics(target: FrozenNetworkTarget, trained: Any | None, num_channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that a teacher's images are normalized with, for images in [0, 1]."""
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
                f"has no image processor, and takes {num_channels} channels. Set image_mean and image_std in"
                " target_options to the values that its images, in [0, 1], are normalized with."
            )
        logger.warning_once(
            f"{target.model} has no image processor: its images are normalized with the mean and standard deviation of"
            " ImageNet. Set image_mean and image_std in target_options for other values."
        )
        mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    scale = 1.0
    if trained is None:
        # Its processor takes values from 0 to 255, and rescales them before it normalizes.
        scale = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255
    means, stds = ([values] * num_channels if isinstance(values, (int, float)) else values for values in (mean, std))
    return [value / scale for value in means], [value / scale for value in stds]


def _check_features(options: dict[str, Any]) -> str | None:
    if options["model"] is None:
        return "needs a teacher. Name one, such as target_options={'model': 'facebook/dinov2-base'}."
    return None


# ADD A TARGET of a frozen network here: a subclass of FrozenNetworkTarget, the losses that fit it, and its options.
FROZEN_TARGETS: dict[str, TargetSpec] = {
    "codebook": TargetSpec(
        Codebook,
        ("cross_entropy",),
        {
            "model": Option(CODEBOOK, lambda value: isinstance(value, str), "a folder or a name on the Hub"),
            "model_config": Option(None, optional(lambda value: isinstance(value, dict)), "a config dict, or None"),
        },
    ),
    "features": TargetSpec(
        Features,
        ("cosine", "smooth_l1", "l1", "l2"),
        {
            "model": Option(None, optional(lambda value: isinstance(value, str)), "a folder or a name on the Hub"),
            "model_config": Option(None, optional(lambda value: isinstance(value, dict)), "a config dict, or None"),
            "image_mean": Option(None, optional(each(is_finite)), "a finite number for each channel of the teacher"),
            "image_std": Option(None, optional(each(is_positive)), "a number above 0 for each channel of the teacher"),
            "layer": Option(None, optional(is_index), "the index of a hidden state, or None for the feature map"),
            "normalize": Option(True, lambda value: isinstance(value, bool), "True or False"),
        },
        _check_features,
    ),
}
