"""Options of commands that choose the encoder and its geometry, and how a trained model is run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from ...checkpoints.loading import load_config
from ...model.configuration_simmim import ENCODER_PRESETS, SimMIMConfig
from ...model.modeling_base import SimMIMModel
from .names import nearest

TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class ComputeArguments:
    """How a trained model is run on images."""

    precision: str = field(default="fp32", metadata={"help": "Compute dtype.", "choices": list(TYPES)})
    num_workers: int = field(default=2, metadata={"help": "Data loading processes."})
    device: str | None = field(default=None, metadata={"help": "Device, such as cpu (a GPU if available, if unset)."})

    def __post_init__(self):
        if self.num_workers < 0:
            raise ValueError(f"num_workers={self.num_workers} must be at least 0.")

    @property
    def compute_device(self) -> str:
        """The device: the given one, or a GPU if there is one."""
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Dtype of autocast; None disables it."""
        return TYPES[self.precision]


@dataclass
class EncoderArguments:
    """The encoder."""

    encoder: str = field(
        default="swin-base",
        metadata={
            "help": f"Architecture with random weights: {', '.join(ENCODER_PRESETS)}, a model on the Hub, a folder, or"
            " the path or text of a JSON config."
        },
    )
    checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to start from: folder or name on the Hub of a SimMIM model or a vision model of"
            " transformers. Weights that depend on --image_size and --window_size are remapped."
        },
    )
    image_size: list[int] | None = field(
        default=None,
        metadata={"help": "Image size in pixels: one side, or height and width (the encoder's if unset)."},
    )
    window_size: int | None = field(
        default=None, metadata={"help": "Attention window in patches (the encoder's if unset)."}
    )
    num_channels: int | None = field(
        default=None, metadata={"help": "Number of image channels (the encoder's if unset)."}
    )
    drop_path_rate: float | None = field(
        default=None, metadata={"help": "Stochastic depth rate, 0 to 1 (the encoder's if unset)."}
    )

    def geometry(self) -> dict[str, Any]:
        """Image size and window size, if they are set."""
        values: dict[str, Any] = {}
        if self.image_size is not None:
            size = self.image_size
            if len(size) > 2:
                raise ValueError(f"image_size={size} has {len(size)} values. Give one side, or height and width.")
            values["image_size"] = size[0] if len(size) == 1 else size
        if self.window_size is not None:
            values["window_size"] = self.window_size
        return values

    def encoder_settings(self) -> dict[str, Any]:
        """Read the encoder's config from a preset, a file, JSON text or the Hub.

        Returns:
            The config as a dict.

        Raises:
            ValueError: If there is no such encoder, or it has no such setting.
        """
        name = self.encoder
        if name in ENCODER_PRESETS:
            encoder = dict(ENCODER_PRESETS[name])
        elif name.lstrip().startswith("{") or name.endswith(".json"):
            try:
                encoder = json.loads(Path(name).read_text() if name.endswith(".json") else name)
            except (OSError, ValueError) as error:
                raise ValueError(f"encoder={name!r} cannot be read as JSON: {error}.") from error
            if "transformers_version" not in encoder:
                check_encoder_keys(encoder)
        else:
            try:
                encoder = AutoConfig.from_pretrained(name).to_dict()
            except OSError as error:
                raise ValueError(
                    f"encoder={name!r} is not a preset ({', '.join(ENCODER_PRESETS)}), and no config has that name."
                    f"{nearest(name, set(ENCODER_PRESETS))} {error}"
                ) from error
        if encoder.get("model_type") == SimMIMConfig.model_type:
            encoder = encoder["encoder_config"]
        for key in ("num_channels", "drop_path_rate"):
            value = getattr(self, key)
            if value is not None:
                if key not in CONFIG_MAPPING[str(encoder.get("model_type"))]().to_dict():
                    raise ValueError(f"{key}={value}: the encoder {encoder.get('model_type')!r} has no such setting.")
                encoder[key] = value
        return encoder

    def stored_config(self) -> PreTrainedConfig:
        """Load the config of --checkpoint.

        Returns:
            The config.

        Raises:
            ValueError: If there is none, or --encoder names another encoder.
        """
        stored = load_config(str(self.checkpoint))
        if self.encoder != type(self).encoder:
            raise ValueError(
                f"encoder={self.encoder!r} and checkpoint={self.checkpoint!r} both name an encoder. Leave one out."
            )
        return stored

    def apply(self, config: Any) -> None:
        """Apply the other options to the config of --checkpoint.

        Args:
            config: The config, which is changed in place.

        Raises:
            ValueError: If the options need other channels, or stochastic depth that the encoder does not have.
        """
        if self.num_channels not in (None, config.num_channels):
            raise ValueError(
                f"num_channels={self.num_channels} is not that of the checkpoint, {config.num_channels}, which cannot"
                " be changed. Leave it out, or train the architecture from scratch with --encoder."
            )
        for key, value in self.geometry().items():
            setattr(config, key, value)
        if self.drop_path_rate is not None:
            if not hasattr(config.encoder_config, "drop_path_rate"):
                raise ValueError(
                    f"drop_path_rate={self.drop_path_rate}: the encoder {config.encoder_config.model_type!r} has no"
                    " stochastic depth. Leave it out."
                )
            config.encoder_config.drop_path_rate = self.drop_path_rate


def check_encoder_keys(encoder: dict[str, Any]) -> None:
    """Refuse unknown keys of an encoder config, which the configs of transformers accept silently."""
    model_type = str(encoder.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"The encoder's model_type {model_type!r} is unknown.{nearest(model_type, set(CONFIG_MAPPING))}"
        )
    # Every config stores the image size, also of encoders without such a setting.
    known = CONFIG_MAPPING[model_type]().to_dict().keys() | {"model_type", "image_size", "out_features", "out_indices"}
    for key in encoder:
        if key not in known:
            raise ValueError(f"The encoder config of {model_type!r} has the unknown key {key!r}.{nearest(key, known)}")


def describe_models(configs: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """Describe architectures.

    Args:
        configs: Configs of models, by a name of each.

    Returns:
        Of each a description, and the shapes of its weights without those of positions, which depend on the image size.
    """
    texts, shapes = {}, {}
    for arm, config in configs.items():
        with torch.device("meta"):
            parameters = dict(SimMIMModel(config).named_parameters())
        count, kind = sum(part.numel() for part in parameters.values()), config.encoder_config.model_type
        # Not the image size of the config: another one may be trained and tested with.
        texts[arm] = f"{kind}, {count / 1e6:.1f} M parameters"
        shapes[arm] = kind, sorted(tuple(part.shape) for name, part in parameters.items() if "position" not in name)
    return texts, shapes
