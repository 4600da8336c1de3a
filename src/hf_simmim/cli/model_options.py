"""Options of scripts that say which encoder is trained, and with which geometry."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from ..checkpoints.loading import load_config
from ..model.configuration_simmim import ENCODER_PRESETS, SimMIMConfig
from .recipes import nearest


@dataclass
class EncoderArguments:
    """What is trained."""

    encoder: str = field(
        default="swin-base",
        metadata={
            "help": f"Architecture, freshly initialized: {', '.join(ENCODER_PRESETS)}, a model on the Hub, a folder, or"
            " the path or text of a config in JSON."
        },
    )
    checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Weights to start from: a SimMIM checkpoint or that of a vision model of transformers, folder or"
            " Hub. What depends on --image_size and --window_size is remapped."
        },
    )
    image_size: list[int] | None = field(
        default=None,
        metadata={"help": "Side of the images in pixels, or height and width. The encoder's own if unset."},
    )
    window_size: int | None = field(default=None, metadata={"help": "Window in patches. The encoder's own if unset."})
    num_channels: int | None = field(default=None, metadata={"help": "Channels. The encoder's own if unset."})
    drop_path_rate: float | None = field(
        default=None, metadata={"help": "Stochastic depth. The encoder's own if unset."}
    )

    def geometry(self) -> dict[str, Any]:
        """Image size and window, where they are asked for."""
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
        """The encoder's config, as a dict, of a preset, a file, JSON text or the Hub.

        Raises:
            ValueError: If there is none of this name, or it has no such setting.
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
                    f"encoder={name!r} is no preset ({', '.join(ENCODER_PRESETS)}) and no config was found under that"
                    f" name.{nearest(name, set(ENCODER_PRESETS))} {error}"
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
        """The config of --checkpoint.

        Raises:
            ValueError: If there is none, or --encoder names another.
        """
        stored = load_config(str(self.checkpoint))
        if self.encoder != type(self).encoder:
            raise ValueError(
                f"encoder={self.encoder!r} and checkpoint={self.checkpoint!r} both name an encoder. Leave one out."
            )
        return stored

    def apply(self, config: Any) -> None:
        """Bring the config of --checkpoint to what else is asked for.

        Raises:
            ValueError: If other channels are asked for.
        """
        if self.num_channels not in (None, config.num_channels):
            raise ValueError(
                f"num_channels={self.num_channels} is not that of the checkpoint, {config.num_channels}, which cannot"
                " be changed. Leave it out, or train the architecture afresh with --encoder."
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
    """Refuse what a person mistyped in an encoder config: transformers' configs take any key without a word."""
    model_type = str(encoder.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"The encoder's model_type {model_type!r} is unknown.{nearest(model_type, set(CONFIG_MAPPING))}"
        )
    # The size of images is kept in every config, also in those that have no place for it.
    known = CONFIG_MAPPING[model_type]().to_dict().keys() | {"model_type", "image_size", "out_features", "out_indices"}
    for key in encoder:
        if key not in known:
            raise ValueError(f"The encoder config of {model_type!r} has the unknown key {key!r}.{nearest(key, known)}")
