"""Configuration of SimMIM: any vision encoder, plus the head, the target and the loss by name."""

import copy
import dataclasses
import difflib
import inspect
import math
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import SubConfigSpec
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .encoder_stages import stages
from .encoders import encoder_geometry
from .frozen_targets import FROZEN_TARGETS
from .heads import HEADS
from .losses import LOSS_REGIONS, LOSSES
from .options import is_finite, is_index, is_positive, with_defaults
from .remote_code import CarriesCode
from .targets import PIXEL_TARGETS, TargetSpec
from .visible import ENCODE, why_not_visible

# For encoders whose config has no image_size, such as ResNet.
DEFAULT_IMAGE_SIZE = 224
MAX_SIDE = 2**14  # pixels; a Swin of patches of 4 px then has 17 million tokens

# Read from `encoder_config`, and not settings of their own.
DERIVED = (
    "encoder_stride",
    "grid_size",
    "hidden_size",
    "num_attention_heads",
    "num_channels",
    "num_hidden_layers",
    "patch_size",
    "stage_names",
)
DTYPES = ("dtype", "torch_dtype")
# Settings that are no fields: of the encoder and of the backbone, see `SimMIMConfig`.
FORWARDED = ("image_size", "window_size", "out_features", "out_indices")
# Settings of the image processor, which are looked for here by mistake.
MASK_SETTINGS = ("mask_strategy", "mask_patch_size", "mask_ratio")
# Keys that `PreTrainedConfig` takes or writes, besides its fields and properties, now and in older versions.
TRANSFORMERS_KEYS = (
    *("model_type", "auto_map", "num_labels", "name_or_path", "output_attentions", "per_layer_config"),
    *("torch_dtype", "attn_implementation", "experts_implementation", "quantization_config", "sub_configs"),
    *("tie_word_embeddings", "tie_encoder_decoder", "tie_last_hidden_states", "torchscript", "use_bfloat16"),
    *("pruned_heads", "add_cross_attention", "cross_attention_hidden_size", "is_decoder", "tf_legacy_loss"),
    *("finetuning_task", "task_specific_params", "tokenizer_class", "prefix", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"),
)
# Carries the keys of a stored config past the check of names: whatever transformers or a user stored is loaded.
STORED = "_stored_settings"
# More are a mistake, for which a name of each would fill the memory.
MOST_LABELS = 10_000_000

_SWIN_192: dict[str, Any] = {"model_type": "swin", "image_size": 192, "drop_path_rate": 0.0}

# The encoders of the paper at their pre-training geometry (section 4.1, and configs/ of microsoft/SimMIM), the two
# smaller Swins at the geometry of Swin-B, SwinV2-B (configs/simmim of microsoft/Swin-Transformer), and a Swin of our
# own that processors train in minutes.
ENCODER_PRESETS: dict[str, dict[str, Any]] = {
    "swin-tiny": _SWIN_192 | {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 6},
    "swin-small": _SWIN_192 | {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": 6},
    "swin-base": _SWIN_192 | {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 6},
    "swin-large": _SWIN_192
    | {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12},
    "swinv2-base": {
        "model_type": "swinv2",
        "image_size": 192,
        "embed_dim": 128,
        "depths": [2, 2, 18, 2],
        "num_heads": [4, 8, 16, 32],
        "window_size": 12,
        "drop_path_rate": 0.1,
    },
    "vit-base": {
        "model_type": "beit",
        "image_size": 224,
        "patch_size": 16,
        "use_mask_token": True,
        "use_shared_relative_position_bias": True,
        "use_mean_pooling": False,
        "layer_norm_eps": 1e-6,
        "drop_path_rate": 0.1,
    },
    "swin-mini": _SWIN_192
    | {"image_size": 96, "embed_dim": 48, "depths": [2, 2, 4], "num_heads": [2, 4, 8], "window_size": 6},
}

TARGETS: dict[str, TargetSpec] = {**PIXEL_TARGETS, **FROZEN_TARGETS}
COMPONENTS: dict[str, dict[str, Any]] = {"head": HEADS, "target": TARGETS, "loss": LOSSES}

COMPONENT_FIELDS = (
    "head",
    "head_options",
    "head_inputs",
    "target",
    "target_options",
    "prediction_stride",
    "loss",
    "loss_options",
    "loss_region",
    "image_mean",
    "image_std",
    "encode",
    "decoder_options",
)


@strict
class SimMIMConfig(CarriesCode, BackboneConfigMixin, PreTrainedConfig):
    r"""Configuration of every SimMIM model.

    The geometry (`image_size`, `window_size`, `patch_size`, `grid_size`, `encoder_stride`), `num_channels` and
    `hidden_size` are read from `encoder_config`, so that they are stored only once. `image_size` and `window_size` can
    be set here too, also in `from_pretrained(..., image_size=224, window_size=7)`.

    Args:
        encoder_config (`PreTrainedConfig`, `dict` or `str`, *optional*, defaults to `"swin-base"`):
            The vision encoder: a config of transformers, a dict with a `model_type`, or a name of `ENCODER_PRESETS`.
            The default is the paper's Swin-B for 192 px images with windows of 6 patches.
        head (`str`, *optional*, defaults to `"linear"`):
            Name of the prediction head, one of `HEADS` in heads.py.
        head_options (`dict`, *optional*):
            Options of the head, such as `{"size": "base"}` for `"inverse_swin"`.
        head_inputs (`list[int]`, *optional*):
            Indices of the encoder's hidden states that are added to the feature map as input of the head, numbered as
            in `hidden_states` of the model's output: 0 is the patch embedding, -1 the last one. If unset, the head
            sees the feature map only.
        target (`str`, *optional*, defaults to `"rgb"`):
            Name of the prediction target, one of `PIXEL_TARGETS` in targets.py or `FROZEN_TARGETS` in
            frozen_targets.py.
        target_options (`dict`, *optional*):
            Options of the target, such as `{"window_size": 47}` for `"normalized_rgb"`.
        prediction_stride (`int`, *optional*):
            Stride of the prediction in pixels; it must divide the encoder's stride. If unset, 1 for pixel targets, and
            the target's own stride for the others. For a 192 px image a stride of 32 predicts a 6 x 6 grid.
        loss (`str`, *optional*):
            Name of the distance between prediction and target, one of `LOSSES` in losses.py. If unset, the default of
            the target, such as l1 for pixels and cross entropy for classes.
        loss_options (`dict`, *optional*):
            Options of the loss, such as `{"beta": 0.5}` for `"smooth_l1"`.
        loss_region (`str`, *optional*, defaults to `"masked"`):
            `"masked"` averages the loss over the masked pixels only, `"all"` over every pixel.
        image_mean (`list[float]` or `float`, *optional*):
            Mean of each channel, or of all channels, that `pixel_values` were normalized with. Targets that need the
            original colors (`color_bins`, `color_clusters`, `codebook`, `features`) undo the normalization. If unset,
            that of ImageNet for three channels.
        image_std (`list[float]` or `float`, *optional*):
            Standard deviation of each channel, or of all channels, likewise.
        encode (`str`, *optional*, defaults to `"all"`):
            `"all"` encodes every patch, with a mask token at masked ones: the paper's way. `"visible"` leaves masked
            patches out of the encoder, and a decoder with a mask token at each of them stands before the head, as in
            MAE and GreenMIM: faster the more is masked. Swin, SwinV2 and plain ViTs can, those of `VISIBLE_ENCODERS` in
            visible.py.
        decoder_options (`dict`, *optional*):
            Options of the decoder of `encode="visible"`: `hidden_size` (about half of the encoder's), `num_layers` (4)
            and `num_heads` (one for every 64 channels).
        class_weights (`list[float]`, *optional*):
            Factor of the loss of each class, in a classifier.
        label_mean (`float` or `list[float]`, *optional*, defaults to 0):
            Mean of the numbers that a model with `problem_type="regression"` learns, or of those of each output. Its
            logits are in their units, and begin near it.
        label_std (`float` or `list[float]`, *optional*, defaults to 1):
            Their standard deviation, likewise. Errors are divided by it in the loss.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the truncated normal that initializes linear layers, relative position tables and the
            mask token.
        backbone_pyramid (`bool`, *optional*, defaults to `False`):
            Whether `SimMIMBackbone` rescales four maps of a single-scale encoder, such as ViT, to a quarter, half, once
            and twice its stride, as decoders of feature pyramids expect.

    `out_features` (names) or `out_indices` select which of `stage_names` a backbone returns, as in transformers. If
    unset, `SimMIMBackbone` returns all stages but the stem, or four layers of a single-scale encoder.

    Raises:
        StrictDataclassError: If a name or an option is unknown, if components do not fit each other, or if the image
            size is invalid.
        ValueError: If a setting or a preset is unknown; the message names the nearest one.

    Source: section 3 of the paper (arXiv 2111.09886).
    """

    model_type = "simmim"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="swin")
    }

    encoder_config: dict | PreTrainedConfig | str | None = None
    head: str = "linear"
    head_options: dict | None = None
    head_inputs: list | tuple | None = None
    target: str = "rgb"
    target_options: dict | None = None
    prediction_stride: int | None = None
    loss: str | None = None
    loss_options: dict | None = None
    loss_region: str = "masked"
    image_mean: list | tuple | float | int | None = None
    image_std: list | tuple | float | int | None = None
    encode: str = "all"
    decoder_options: dict | None = None
    class_weights: list | tuple | None = None
    label_mean: list | tuple | float | int | None = None
    label_std: list | tuple | float | int | None = None
    initializer_range: float = 0.02
    backbone_pyramid: bool = False
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field; the name of a preset becomes its config."""
        if name == "encoder_config" and isinstance(value, str):
            value = _preset(value)
        super().__setattr__(name, value)

    def __post_init__(self, **kwargs):
        stored = kwargs.pop(STORED, {})
        _check_names(type(self), kwargs)
        kwargs = stored | kwargs
        _check_settings(vars(self) | kwargs)
        if self.encoder_config is None:
            self.encoder_config = ENCODER_PRESETS["swin-base"]
        if isinstance(self.encoder_config, dict) and "model_type" not in self.encoder_config:
            raise ValueError("encoder_config has no model_type. Name one, such as 'swin' or 'vit'.")
        # Copied, so that the changes below do not reach the caller's object.
        self.encoder_config = copy.deepcopy(self.encoder_config)
        if self.loss is None and self.target in TARGETS:
            self.loss = TARGETS[self.target].losses[0]
        for name in ("head_options", "target_options", "loss_options", "decoder_options"):
            setattr(self, name, copy.deepcopy(getattr(self, name)) or {})
        # These change the encoder's config, which `super().__post_init__` builds first.
        geometry = {key: kwargs.pop(key) for key in ("image_size", "window_size") if key in kwargs}
        outputs = {key: kwargs.pop(key, None) for key in ("out_features", "out_indices")}
        try:
            super().__post_init__(**kwargs)
        except (AttributeError, ArithmeticError, LookupError) as error:
            raise ValueError(f"A setting is not what transformers expects: {error}.") from error
        if getattr(self.encoder_config, "image_size", None) is None:
            # timm's configs store it elsewhere.
            input_size = (getattr(self.encoder_config, "pretrained_cfg", None) or {}).get("input_size")
            self.encoder_config.image_size = list(input_size[1:]) if input_size else DEFAULT_IMAGE_SIZE
        for key, value in geometry.items():
            setattr(self, key, value)
        if any(value is not None for value in outputs.values()):
            self.set_output_features_output_indices(**outputs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Create a config from a dict; components in `kwargs` replace the stored ones.

        If a component is replaced, its stored options are dropped; if the target is replaced, so is the stored loss.

        Args:
            config_dict: A config as returned by `to_dict`.
            **kwargs: As in `PreTrainedConfig.from_dict`.

        Returns:
            The config.
        """
        _check_settings({key: value for key, value in kwargs.items() if key not in DTYPES})
        stored = dict(config_dict)
        # Components that are not stored have their defaults.
        for component in ("head", "target", "loss"):
            if component in kwargs and kwargs[component] != stored.get(component, getattr(cls, component)):
                stored.pop(f"{component}_options", None)
                if component == "target":
                    stored.pop("loss", None)
                    stored.pop("loss_options", None)
        if kwargs.get("encode", stored.get("encode", cls.encode)) != stored.get("encode", cls.encode):
            stored.pop("decoder_options", None)
        # Merged into the dict, so that they are validated together with the stored settings.
        given = {field: kwargs.pop(field) for field in COMPONENT_FIELDS if field in kwargs}
        outputs = {key: kwargs.pop(key) for key in ("out_features", "out_indices") if kwargs.get(key) is not None}
        if outputs:
            # Both describe the same selection, and the other one may be stored.
            given |= {"out_features": None, "out_indices": None} | outputs
        if isinstance(kwargs.get("encoder_config"), str):
            given["encoder_config"] = kwargs.pop("encoder_config")
        known = {key: stored.pop(key) for key in list(stored) if _is_known(cls, key)}
        return super().from_dict(known | given | ({STORED: stored} if stored else {}), **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As in `PreTrainedConfig`; the stages of a backbone are included only if they were selected."""
        output = super().to_dict()
        for key in ("out_features", "out_indices"):
            if output[key] is None:
                del output[key]
        return output

    def validate_components(self):
        """Check that names and options are known, and that the components fit each other."""
        for field, known in (*COMPONENTS.items(), ("loss_region", LOSS_REGIONS), ("encode", ENCODE)):
            value = getattr(self, field)
            if value not in known:
                raise ValueError(f"{field}={value!r} is unknown. Use one of: {', '.join(known)}.")
        fitting = TARGETS[self.target].losses
        if self.loss not in fitting:
            kind = "classes" if fitting == ("cross_entropy",) else "continuous values"
            raise ValueError(
                f"loss={self.loss!r} does not fit target={self.target!r}, which has {kind}. Use one of:"
                f" {', '.join(fitting)}."
            )
        for component in COMPONENTS:
            self.options(component)
        fault = TARGETS[self.target].check
        reason = fault(self.options("target")) if fault else None
        if reason is not None:
            raise ValueError(f"target={self.target!r} {reason}")
        self.options("decoder")
        if self.encode == "visible":
            reason = why_not_visible(self.encoder_config.model_type)
            if reason is not None:
                raise ValueError(reason)
            if self.head_inputs is not None:
                raise ValueError(
                    f"head_inputs={self.head_inputs!r} needs hidden states of every patch, and encode='visible' has"
                    " none of masked patches. Leave one of them out."
                )
        if self.prediction_stride is not None and self.prediction_stride < 1:
            raise ValueError(f"prediction_stride={self.prediction_stride} must be 1 pixel or more.")
        if self.head_inputs is not None and not (self.head_inputs and all(map(is_index, self.head_inputs))):
            raise ValueError(f"head_inputs={self.head_inputs!r} must be indices of hidden states, such as [1, 2, 3].")
        for field, is_valid, kind in (
            ("image_mean", is_finite, "finite number, or one for each channel"),
            ("image_std", is_positive, "positive number, or one for each channel"),
            ("label_mean", is_finite, "finite number, or one for each output"),
            ("label_std", is_positive, "positive number, or one for each output"),
        ):
            values = getattr(self, field)
            if values is not None and not all(map(is_valid, values if isinstance(values, (list, tuple)) else [values])):
                raise ValueError(f"{field}={values!r} must be a {kind}.")

    def validate_class_weights(self):
        """Check that class weights are finite and not negative."""
        weights = self.class_weights
        if weights is not None and not (len(weights) and all(is_finite(weight) and weight >= 0 for weight in weights)):
            raise ValueError(f"class_weights={weights!r} must be numbers of 0 or more, one for each class.")

    def validate_geometry(self):
        """Check the image size; whether the encoder accepts it is checked when a model is built."""
        _check_size(self.encoder_config.image_size)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels. It can be set to one side or a pair."""
        size = self.encoder_config.image_size
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))

    @image_size.setter
    def image_size(self, size: int | tuple[int, int] | list[int]) -> None:
        _check_size(size)
        sides = (size,) if isinstance(size, int) else tuple(size)
        _set_image_size(self.encoder_config, sides[0], sides[-1])

    @property
    def window_size(self) -> int | None:
        """Side of an attention window in tokens; None for encoders without windows."""
        return getattr(self.encoder_config, "window_size", None)

    @window_size.setter
    def window_size(self, size: int) -> None:
        if not isinstance(self.window_size, int):
            raise ValueError(
                f"window_size={size} cannot be set: the encoder {self.encoder_config.model_type!r} has no windows of"
                " one size. Leave it out."
            )
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"window_size={size!r} must be a whole number of tokens, such as 6, 7 or 12.")
        self.encoder_config.window_size = size

    @property
    def num_channels(self) -> int:
        """Channels of the images."""
        return getattr(self.encoder_config, "num_channels", 3)

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the encoder, or its stages if it has several; only where its config says so."""
        return self.encoder_config.num_hidden_layers

    @property
    def num_attention_heads(self) -> int | list[int]:
        """Attention heads of the encoder, or of each of its stages; only where its config says so."""
        return self.encoder_config.num_attention_heads

    @property
    def patch_size(self) -> int:
        """Side in pixels of the square patches that form the grid of `bool_masked_pos`."""
        return self._geometry.patch_size

    @property
    def hidden_size(self) -> int:
        """Channels D of the feature map."""
        return self._geometry.hidden_size

    @property
    def encoder_stride(self) -> int:
        """Stride of the feature map in pixels."""
        return self._geometry.stride

    @property
    def mask_step(self) -> int:
        """Side in pixels of what a mask covers as a whole, of which `mask_patch_size` has to be a multiple."""
        return self.encoder_stride if self.encode == "visible" else self.patch_size

    @property
    def grid_size(self) -> tuple[int, int]:
        """(h, w) of the patch grid of `bool_masked_pos`; patches that the border cuts are included."""
        height, width = self.image_size
        return math.ceil(height / self.patch_size), math.ceil(width / self.patch_size)

    @property
    def stage_names(self) -> list[str]:
        """Names of the maps that a backbone can return, from the first to the last."""
        return [stage.name for stage in stages(self)]

    def options(self, component: str) -> dict[str, Any]:
        """All options of the `"head"`, `"target"`, `"loss"` or `"decoder"`: given values, and defaults for the rest."""
        given = getattr(self, f"{component}_options") or {}
        if component == "decoder":
            return with_defaults(component, self.encode, ENCODE[self.encode].options, given, setting="encode")
        name = getattr(self, component)
        return with_defaults(component, name, COMPONENTS[component][name].options, given)

    def pixel_statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel that `pixel_values` were normalized with.

        Returns:
            The means and the standard deviations, one value for each channel.

        Raises:
            ValueError: If they are unknown, or do not have one value for each channel.
        """
        mean, std = self.image_mean, self.image_std
        if mean is None and std is None and self.num_channels == 3:
            return list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)
        mean, std = (
            [values] * self.num_channels if isinstance(values, (int, float)) else values for values in (mean, std)
        )
        if mean is None or std is None or not len(mean) == len(std) == self.num_channels or min(std) <= 0:
            raise ValueError(
                f"target={self.target!r} needs to know how pixel_values are normalized: image_mean={mean} and"
                f" image_std={std} must have one value for each of the {self.num_channels} channels, the latter above"
                " 0. Set them to those of the image processor."
            )
        return list(mean), list(std)

    def for_fine_tuning(self) -> "SimMIMConfig":
        """A copy whose encoder has the structure that the paper fine-tunes.

        Swin is unchanged. In the ViT, a relative position table in every block replaces the shared one, and the final
        norm is removed: fine-tuning adds a new one after the mean of the tokens. `from_pretrained` copies the table
        and drops the norm.

        Source: configs/vit_base__800ep and `remap_pretrained_keys_vit` in utils.py of microsoft/SimMIM.
        """
        config = copy.deepcopy(self)
        if hasattr(config.encoder_config, "use_shared_relative_position_bias"):
            if config.encoder_config.use_shared_relative_position_bias:
                config.encoder_config.use_shared_relative_position_bias = False
                config.encoder_config.use_relative_position_bias = True
            config.encoder_config.use_mean_pooling = True
        return config

    @property
    def _geometry(self):
        return encoder_geometry(self.encoder_config)


def _preset(name: str) -> dict[str, Any]:
    if name not in ENCODER_PRESETS:
        match = difflib.get_close_matches(name, ENCODER_PRESETS, n=1, cutoff=0.5)
        remedy = f"Did you mean {match[0]!r}?" if match else f"Use one of: {', '.join(ENCODER_PRESETS)}."
        raise ValueError(
            f"encoder_config={name!r} is not a preset. {remedy} For a model on the Hub, pass"
            f" AutoConfig.from_pretrained({name!r})."
        )
    return copy.deepcopy(ENCODER_PRESETS[name])


def _is_known(config_class: type, name: str) -> bool:
    """Whether a keyword is a setting of ours or of transformers."""
    fields = {field.name for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    # Names that begin with an underscore are transformers' own, as are its properties.
    return (
        name.startswith("_")
        or name in {*fields, *FORWARDED, *DERIVED, *TRANSFORMERS_KEYS}
        or isinstance(getattr(config_class, name, None), property)
        or name in GenerationConfig().to_dict()
    )


def _check_names(config_class: type, settings: dict[str, Any]) -> None:
    """Refuse unknown keywords, which the configs of transformers accept silently."""
    for name, value in settings.items():
        if _is_known(config_class, name):
            continue
        own = [field.name for field in dataclasses.fields(config_class) if not field.name.startswith("_")]  # type: ignore[arg-type]
        match = difflib.get_close_matches(name, [*own, *FORWARDED, "num_labels", *MASK_SETTINGS], n=1)
        if not match:
            remedy = "Settings of the encoder go into encoder_config, those of images and masks into the processor."
        elif match[0] in MASK_SETTINGS:
            remedy = f"The mask belongs to the image processor: SimMIMImageProcessor({match[0]}=...)."
        else:
            remedy = f"Did you mean {match[0]}?"
        raise ValueError(f"{name}={value!r} is not a setting of SimMIMConfig. {remedy}")


def _check_settings(settings: dict[str, Any]) -> None:
    """Check the settings that transformers takes apart before it checks their types."""
    for name in DERIVED:
        if name in settings:
            raise ValueError(f"{name}={settings[name]!r} cannot be set: it follows from encoder_config. Set it there.")
    id2label, num_labels = settings.get("id2label"), settings.get("num_labels")
    if id2label is not None and not isinstance(id2label, dict):
        raise ValueError(f"id2label={id2label!r} must be a dict from number to name, such as {{0: 'cat', 1: 'dog'}}.")
    if num_labels is not None and not (is_index(num_labels) and 0 <= num_labels <= MOST_LABELS):
        raise ValueError(f"num_labels={num_labels!r} must be a whole number from 0 to {MOST_LABELS}.")
    for name in DTYPES:
        dtype = settings.get(name)
        if not (
            dtype is None or isinstance(getattr(torch, dtype, None) if isinstance(dtype, str) else dtype, torch.dtype)
        ):
            raise ValueError(f"{name}={dtype!r} must be a dtype of torch, or its name, such as 'float32'.")


def _set_image_size(encoder_config: Any, height: int, width: int) -> None:
    """Write an image size as the config's class declares it: most take one number, some only a pair."""
    config_class = type(encoder_config)
    default = getattr(config_class, "image_size", None)
    if default is None:
        parameter = inspect.signature(config_class.__init__).parameters.get("image_size")
        default = parameter.default if parameter else None
    forms: list[Any] = [[height, width], (height, width)]
    if height == width:
        forms.insert(2 if isinstance(default, (list, tuple)) else 0, height)
    for form in forms:
        try:
            encoder_config.image_size = form
            return
        except (StrictDataclassError, TypeError) as error:
            refusal = error
    raise ValueError(
        f"image_size=({height}, {width}) is not taken by the config of the encoder {encoder_config.model_type!r}. Use a"
        " square image."
    ) from refusal


def _check_size(size: Any) -> None:
    sides = size if isinstance(size, (list, tuple)) else [size]
    if len(sides) not in (1, 2) or not all(is_index(side) and 0 < side <= MAX_SIDE for side in sides):
        raise ValueError(f"image_size={size!r} must be a side, or a height and a width, of 1 to {MAX_SIDE} pixels.")
