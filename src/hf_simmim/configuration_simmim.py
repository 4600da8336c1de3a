"""Configuration of SimMIM: any vision encoder, plus the head, the target and the loss by name."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

HEADS = ("linear",)
TARGETS = ("rgb",)
LOSSES = ("l1",)
LOSS_REGIONS = ("masked", "all")

_SWIN_192: dict[str, Any] = {"model_type": "swin", "image_size": 192, "drop_path_rate": 0.0}

# The encoders of the paper at their pre-training geometry (section 4.1, and configs/ of microsoft/SimMIM), and the two
# smaller Swins at the geometry of Swin-B.
ENCODER_PRESETS: dict[str, dict[str, Any]] = {
    "swin-tiny": _SWIN_192 | {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 6},
    "swin-small": _SWIN_192 | {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": 6},
    "swin-base": _SWIN_192 | {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 6},
    "swin-large": _SWIN_192
    | {"embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48], "window_size": 12},
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
}


@strict
class SimMIMConfig(PreTrainedConfig):
    r"""Configuration of every SimMIM model.

    The geometry (`image_size`, `patch_size`, `grid_size`, `encoder_stride`), `num_channels` and `hidden_size` are read
    from `encoder_config`, so there is one place where they can be set.

    Args:
        encoder_config (`PreTrainedConfig` or `dict`, *optional*):
            The vision encoder. A dict needs a `model_type`. Defaults to the paper's Swin-B for 192 px images with
            windows of 6 patches.
        head (`str`, *optional*, defaults to `"linear"`):
            Name of the prediction head, one of `HEADS`.
        target (`str`, *optional*, defaults to `"rgb"`):
            Name of what the head predicts, one of `TARGETS`.
        loss (`str`, *optional*, defaults to `"l1"`):
            Name of the distance between prediction and target, one of `LOSSES`.
        loss_region (`str`, *optional*, defaults to `"masked"`):
            `"masked"` averages the loss over the hidden pixels only, `"all"` over every pixel.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the truncated normal that initialises linear layers, relative position tables and the
            mask token.

    Raises:
        StrictDataclassError: If a name is unknown or the encoder's geometry is not one that masked modelling can use.

    Source: section 3 of the paper (arXiv 2111.09886).
    """

    model_type = "simmim"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="swin")
    }

    encoder_config: dict | PreTrainedConfig | None = None
    head: str = "linear"
    target: str = "rgb"
    loss: str = "l1"
    loss_region: str = "masked"
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.encoder_config is None:
            self.encoder_config = dict(ENCODER_PRESETS["swin-base"])
        super().__post_init__(**kwargs)

    def validate_component_names(self):
        """Refuse names that no component has."""
        for field, known in (("head", HEADS), ("target", TARGETS), ("loss", LOSSES), ("loss_region", LOSS_REGIONS)):
            value = getattr(self, field)
            if value not in known:
                raise ValueError(f"{field}={value!r} is unknown. Use one of: {', '.join(known)}.")

    def validate_geometry(self):
        """Refuse encoders that are not made of patches, and images that are no whole number of strides."""
        missing = [name for name in ("image_size", "patch_size") if not hasattr(self.encoder_config, name)]
        if missing:
            raise ValueError(
                f"The encoder {self.encoder_config.model_type!r} has no {' and no '.join(missing)} in its config, so it"
                " cannot hide patches. Use an encoder with non-overlapping patches, such as swin, beit, vit or dinov2."
            )
        height, width = self.image_size
        stride = self.encoder_stride
        if height % stride or width % stride:
            raise ValueError(
                f"image_size={height}x{width} is not a multiple of the encoder's stride of {stride} px, so its feature"
                f" map cannot be turned back into pixels. Use {_nearest(height, stride)}x{_nearest(width, stride)}."
            )

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        size = self.encoder_config.image_size
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    @property
    def patch_size(self) -> int:
        """Side of the encoder's square patches, in pixels."""
        size = self.encoder_config.patch_size
        if isinstance(size, int):
            return size
        if size[0] != size[1]:
            raise ValueError(f"patch_size={tuple(size)} is not square. Use an encoder with square patches.")
        return int(size[0])

    @property
    def num_channels(self) -> int:
        """Channels of the images."""
        return self.encoder_config.num_channels

    @property
    def hidden_size(self) -> int:
        """Channels D of the feature map."""
        if not hasattr(self.encoder_config, "hidden_size") and _is_hierarchical(self.encoder_config):
            return self.encoder_config.embed_dim * 2 ** (len(self.encoder_config.depths) - 1)
        return self.encoder_config.hidden_size

    @property
    def encoder_stride(self) -> int:
        """Pixels of the image for each step of the feature map."""
        if _is_hierarchical(self.encoder_config):
            return self.patch_size * 2 ** (len(self.encoder_config.depths) - 1)
        return self.patch_size

    @property
    def grid_size(self) -> tuple[int, int]:
        """(h, w) of the patch grid on which `bool_masked_pos` lives."""
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size


def _is_hierarchical(encoder_config: Any) -> bool:
    """Whether each stage after the first halves the grid (Swin, SwinV2, FocalNet)."""
    return hasattr(encoder_config, "depths") and hasattr(encoder_config, "embed_dim")


def _nearest(size: int, step: int) -> int:
    return max(step, round(size / step) * step)
