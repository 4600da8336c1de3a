"""Base of all SimMIM models: initialization, and checkpoints of any geometry, both ours and transformers'."""

import copy
import difflib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .configuration_simmim import SimMIMConfig
from .encoders import (
    build_encoder,
    encode,
    encoder_geometry,
    freeze_unused,
    layers_to_wrap,
    whole_weights,
)
from .heads import LinearHead
from .masking import patch_mask
from .swinv2 import init_swinv2_weights
from .visible import encode_visible, init_decoder, keep_visible, masked_cells
from .weights import (
    describe_loading,
    export_encoder,
    keep_pretrained_windows,
    load_stock,
    remap,
    same_geometry,
    with_geometry_of,
)


@dataclass
class SimMIMModelOutput(ModelOutput):
    """Features of a batch of images.

    With `encode="visible"`, the features of masked patches are zero, and no part of the mean.

    Args:
        last_hidden_state: Tokens of shape (B, N, D), in reading order, without class or register tokens.
        pooler_output: Their mean, of shape (B, D).
        feature_map: The same tokens as a map of shape (B, D, h, w).
        hidden_states: Tuple of tensors, the patch embedding first, if requested: (B, N_i, D_i) for transformers,
            class tokens included, (B, D_i, h_i, w_i) for convolutional networks; None where others were chosen.
        attentions: Tuple of attention weights, if requested and returned by the encoder. Our Swin returns those of the
            last block of each stage, (B * windows, heads, N, N), as transformers' Swin does.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    feature_map: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


logger = logging.get_logger(__name__)
# Arguments of `from_pretrained` that locate a checkpoint, that say how to load its weights, and on which devices.
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
_LOADING_ARGUMENTS = ("dtype", "torch_dtype", "attn_implementation")
_PLACEMENT_ARGUMENTS = (
    "device_map",
    "device_mesh",
    "max_memory",
    "offload_buffers",
    "offload_folder",
    "offload_state_dict",
    "quantization_config",
    "tp_plan",
    "tp_size",
)


class SimMIMPreTrainedModel(PreTrainedModel):
    """Base of all SimMIM models: config, initialization, and checkpoints whose names need no conversion."""

    config_class = SimMIMConfig
    config: SimMIMConfig
    base_model_prefix = "simmim"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    # Encoders reject implementations that they do not support.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        r"relative_position_index$",
        r"relative_coords_table$",
        r"attn_mask$",
    ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_swinv2_weights(module, std=self.config.initializer_range)
        init_decoder(module, std=self.config.initializer_range)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialize weights that were not loaded: modules as their own model does, tokens by `init_as_official`."""
        super().initialize_weights()
        base_model: Any = self.base_model
        init_as_official(base_model.encoder, base_model.mask_token, std=self.config.initializer_range)

    def save_pretrained(self, save_directory, *args, save_original_format: bool = False, **kwargs):
        """Save with the parameter names that the model has in memory.

        transformers saves some encoders (ViT, BEiT, DeiT) under older names and converts them back on loading. Trainer
        does not convert them, and would resume without part of the weights.
        """
        kwargs["save_original_format"] = save_original_format
        return super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path | None,
        *model_args: Any,
        config: Any = None,
        **kwargs: Any,
    ):
        """Load a checkpoint as with every model of transformers, at any image size and window size.

        If `image_size`, `window_size` or `config` ask for another geometry than that of the checkpoint, the weights
        that depend on it are remapped, and logged.

        Args:
            pretrained_model_name_or_path: Folder, or name on the Hub.
            *model_args: Passed to the model.
            config: Config to use instead of the checkpoint's.
            **kwargs: As in `PreTrainedModel.from_pretrained`; keys of the config, such as `image_size` or
                `encoder_config={"drop_path_rate": 0.1}`, change it.

        Returns:
            The model, in evaluation mode.

        Raises:
            ValueError: If weights cannot be converted to the geometry.
        """
        # DeepSpeed would shard what a constructor measures, too. It shards the model when a training begins.
        with whole_weights():
            result = cls._load(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        model = result[0] if isinstance(result, tuple) else result
        model.base_model.freeze_unused()
        return result

    @classmethod
    def _load(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """`from_pretrained`, without freezing the parameters that loading makes trainable."""
        load_as_stored: Any = super().from_pretrained
        if pretrained_model_name_or_path is None or "state_dict" in kwargs:
            return load_as_stored(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        name = str(pretrained_model_name_or_path)
        hub_arguments = {key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs}
        stored_dict, _ = cls.config_class.get_config_dict(name, **hub_arguments)
        if "model_type" not in stored_dict:
            raise ValueError(
                f"{name} has no config.json of a model. Name the output folder of a training, or a model on the Hub."
            )
        if stored_dict["model_type"] != cls.config_class.model_type:
            raise ValueError(
                f"{name} holds a {stored_dict['model_type']!r} model, not a SimMIM model. Load it with"
                f" {cls.__name__}.from_encoder."
            )
        stored = cls.config_class.from_dict(stored_dict)
        if config is None or isinstance(config, (str, Path)):
            location = name if config is None else config
            loading = {key: kwargs.pop(key) for key in _LOADING_ARGUMENTS if key in kwargs} | hub_arguments
            config, kwargs = cls.config_class.from_pretrained(location, return_unused_kwargs=True, **kwargs)
            kwargs |= loading
        target = copy.deepcopy(config)
        for key in ("image_size", "window_size"):
            if key in kwargs:
                setattr(target, key, kwargs.pop(key))
        target = cls._for_loading(target, stored)
        source = with_geometry_of(stored, target)
        keep_pretrained_windows(source, target)
        if same_geometry(source, target):
            return load_as_stored(name, *model_args, config=target, **kwargs)
        # Loaded at the stored geometry on the CPU first, then at the requested one on the requested devices.
        wants_info = kwargs.pop("output_loading_info", False)
        placement = {key: kwargs.pop(key) for key in _PLACEMENT_ARGUMENTS if key in kwargs}
        model, info = load_as_stored(name, *model_args, config=source, output_loading_info=True, **kwargs)
        model_kwargs = {key: kwargs[key] for key in inspect.signature(cls.__init__).parameters if key in kwargs}
        loading = {key: kwargs[key] for key in _LOADING_ARGUMENTS if key in kwargs}
        state_dict = cls._remap(model, cls._on_meta(target, *model_args, **model_kwargs), name)
        target.dtype = model.config.dtype
        remapped, rest = load_as_stored(
            None,
            *model_args,
            config=target,
            state_dict=state_dict,
            output_loading_info=True,
            **model_kwargs,
            **loading,
            **placement,
        )
        # Weights that only this geometry has are newly initialized, too, such as the norm of a classifier.
        info["missing_keys"] |= rest["missing_keys"]
        remapped.name_or_path = remapped.config._name_or_path = name
        return (remapped, info) if wants_info else remapped

    @classmethod
    def _for_loading(cls, config: SimMIMConfig, stored: SimMIMConfig) -> SimMIMConfig:
        """The config to load a checkpoint with, for classes whose encoder differs from the pre-trained one.

        Args:
            config: The requested config.
            stored: The config of the checkpoint.
        """
        return config

    @classmethod
    def _on_meta(cls, config: SimMIMConfig, *model_args, **model_kwargs) -> "SimMIMPreTrainedModel":
        """The model on the meta device, for the names and shapes of its parameters."""
        with torch.device("meta"):
            return cls(config, *model_args, **model_kwargs)

    @staticmethod
    def _remap(model: "SimMIMPreTrainedModel", target: "SimMIMPreTrainedModel", name: str) -> dict[str, torch.Tensor]:
        """Convert the weights of a model for one of another geometry, and log what changed."""
        expected = {key: tensor.shape for key, tensor in target.state_dict().items()}
        state_dict, lines = remap(dict(model.state_dict()), model.config, target.config, expected)
        for line in lines:
            logger.warning(f"{name}: {line}.")
        return state_dict

    @classmethod
    def from_encoder(cls, pretrained_model_name_or_path: str | Path, **kwargs):
        """Start from a vision checkpoint of transformers: its encoder, and its prediction head if it fits.

        Accepts checkpoints of every encoder that `encoder_config` accepts, with or without a head, and the vision part
        of multimodal models. Weights that are loaded, left out and newly initialized are logged.

        Args:
            pretrained_model_name_or_path: Folder, or name on the Hub.
            **kwargs: Arguments that locate the checkpoint (`revision`, `token`, ...), that say how to load it (`dtype`,
                `attn_implementation`), and fields of `SimMIMConfig`, including `image_size` and `window_size`: weights
                that depend on them are remapped. A dict as `encoder_config` changes other keys of the encoder's config.

        Returns:
            The model, in evaluation mode.

        Raises:
            ValueError: If the checkpoint holds no such encoder, or only part of it, or an argument is unknown.
        """
        name = str(pretrained_model_name_or_path)
        hub_arguments = {key: kwargs.pop(key) for key in _HUB_ARGUMENTS if key in kwargs}
        loading = {key: kwargs.pop(key) for key in _LOADING_ARGUMENTS if key in kwargs}
        changes = kwargs.pop("encoder_config", {})
        known = {field.name for field in fields(cls.config_class)} | {"image_size", "window_size", "num_labels"}
        _refuse_unknown(kwargs, known, "argument", "from_encoder")
        encoder_config, weights, head, beside = load_stock(name, **hub_arguments)
        _refuse_unknown(changes, {*encoder_config.to_dict(), "image_size"}, "key of encoder_config", name)
        stored = cls.config_class(encoder_config=encoder_config.to_dict())
        target = cls.config_class(encoder_config=encoder_config.to_dict() | changes, **kwargs)
        target = cls._for_loading(target, stored)
        source = with_geometry_of(stored, target)
        keep_pretrained_windows(source, target)
        model: Any = cls(source)
        prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
        result = model.base_model.encoder.load_state_dict(weights, strict=False)
        lacking = [key for key in result.missing_keys if not key.endswith("mask_token")]
        if lacking:
            raise ValueError(f"{name} lacks weights of the encoder: {', '.join(lacking[:3])}.")
        loaded = {f"{prefix}encoder.{key}" for key in weights.keys() - set(result.unexpected_keys)}
        # A decoder of the feature map fits neither its sum with hidden states nor the output of another decoder.
        reads_features = isinstance(getattr(model, "head", None), LinearHead) and model.fusion is model.decoder is None
        if head and reads_features and model.head.fits(head):
            model.head.projection.load_state_dict(head)
            loaded |= {f"head.projection.{key}" for key in head}
        elif head:
            beside = [*beside, "decoder"]
        fresh = [key for key in model.state_dict() if key not in loaded]
        logger.warning(describe_loading(name, len(loaded), fresh, [*result.unexpected_keys, *beside]))
        state_dict = model.state_dict()
        if not same_geometry(source, target):
            state_dict = cls._remap(model, cls._on_meta(target), name)
        return cls.from_pretrained(None, config=target, state_dict=state_dict, **loading)

    def export_encoder(self, save_directory: str | Path) -> None:
        """Save the encoder as a checkpoint of transformers' own model, which plain `AutoModel.from_pretrained` loads.

        Args:
            save_directory: Folder to write to.

        Raises:
            ValueError: If stock transformers cannot represent the encoder or computes other features, such as for a
                Swin whose window is larger than a stage; nothing is written then.
        """
        base_model: Any = self.base_model
        left_out = export_encoder(base_model.encoder, self.config, base_model.geometry, save_directory)
        if left_out:
            logger.warning(f"{save_directory}: left out, because stock models do not use it: {', '.join(left_out)}.")


def init_as_official(encoder: nn.Module, mask_token: nn.Parameter | None, std: float) -> None:
    """Initialize what transformers leaves at or near zero, or initializes differently from the paper's ViT.

    transformers initializes mask and class tokens to zero. In a LayerNorm a zero token multiplies the gradient by
    1 / sqrt(eps), and clipping then scales all other gradients down. It draws the weights of the batch norms of
    EfficientNet and MobileViT around zero, so that nothing of the images is left at their ends.

    Args:
        encoder: The encoder from `build_encoder`.
        mask_token: The mask token or patch that the model holds for it, if any.
        std: Standard deviation.

    Source: `VisionTransformer.fix_init_weight` and `VisionTransformerForSimMIM.__init__` of microsoft/SimMIM.
    """
    if mask_token is not None:
        init.trunc_normal_(mask_token, std=std)
    if not isinstance(encoder, PreTrainedModel):
        return
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d) and module.weight is not None:
            init.ones_(module.weight)
            init.zeros_(module.bias)
    for name, parameter in encoder.named_parameters():
        if name.split(".")[-1] in ("mask_token", "cls_token"):
            init.trunc_normal_(parameter, std=std)
    if encoder.config.model_type == "beit":
        for index, layer in enumerate(encoder.layers):  # type: ignore[arg-type]
            for projection in (layer.attention.o_proj, layer.mlp.fc2):
                # The official implementation divides the initial weights; this draws from the same distribution.
                init.trunc_normal_(projection.weight, std=std / (2 * (index + 1)) ** 0.5)


def chosen_hidden_states(
    hidden_states: tuple[torch.Tensor, ...] | None, chosen: bool | int | list[int] | None
) -> tuple[Any, ...] | None:
    """Select hidden states as transformers does.

    Args:
        hidden_states: All hidden states of an encoder, or None if it returns none.
        chosen: Whether to return them, or the indices of those to return; negative ones count from the end.

    Returns:
        As many as there are, None in place of those that were not chosen; None if nothing was.
    """
    if not chosen or hidden_states is None:
        return None
    if isinstance(chosen, bool):
        return hidden_states
    number = len(hidden_states)
    indices = {
        index % number for index in ([chosen] if isinstance(chosen, int) else chosen) if -number <= index < number
    }
    return tuple(state if index in indices else None for index, state in enumerate(hidden_states))


def _refuse_unknown(names: Iterable[str], known: set[str], kind: str, place: str) -> None:
    """Reject unknown names, which a config would store without effect."""
    for name in names:
        if name not in known:
            match = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {match[0]}?" if match else ""
            raise ValueError(f"{place}: unknown {kind} {name!r}.{hint}")


class SimMIMModel(SimMIMPreTrainedModel):
    """The encoder, which returns features.

    Args:
        config: The SimMIM config.
        use_mask_token: Whether to hold a mask token, which `bool_masked_pos` needs. Without it every parameter is used
            in every forward pass, as DDP requires of a model that never masks.
    """

    # Weights of a pre-trained model that the encoder does not have.
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        *SimMIMPreTrainedModel._keys_to_ignore_on_load_unexpected,
        r"^(head|fusion|decoder)\.",
        r"mask_token$",
    ]

    def __init__(self, config: SimMIMConfig, use_mask_token: bool = True):
        super().__init__(config)
        use_mask_token = use_mask_token and config.encode != "visible"
        self.use_mask_token = use_mask_token
        self.geometry = encoder_geometry(config.encoder_config)
        self.encoder = build_encoder(config, use_mask_token)
        if config.encode == "visible" and self.geometry.route != "own":
            keep_visible(self.encoder)
        self.mask_token = None
        if use_mask_token and self.geometry.mask_token_shape is not None:
            self.mask_token = nn.Parameter(torch.zeros(self.geometry.mask_token_shape))
        self.freeze_unused()
        self.post_init()
        # After post_init, which copies the encoder's own list, with classes that it does not contain.
        self._no_split_modules = layers_to_wrap(self.encoder)

    def freeze_unused(self) -> None:
        """Freeze the parameters that no forward pass uses, such as those of a pooler."""
        freeze_unused(self.encoder, self.geometry, self.use_mask_token)

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's patch embedding, which PEFT hooks when it trains with gradient checkpointing."""
        if isinstance(self.encoder, PreTrainedModel):
            return self.encoder.get_input_embeddings()
        return self.encoder.get_submodule("embeddings.patch_embeddings")

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        needed: torch.Tensor | None = None,
    ) -> SimMIMModelOutput:
        """Encode images, with masked patches if a mask is given.

        Args:
            pixel_values: Normalized images of shape (B, C, H, W).
            bool_masked_pos: Mask of shape (B, N) or (B, h, w) on the patch grid, True = masked.
            output_hidden_states: Whether to return the hidden states, or indices of those to return.
            output_attentions: Whether to return attention weights, where the encoder can.
            return_dict: Whether to return a `ModelOutput` (default) or a tuple.
            needed: Bool tensor of the shape (B, h, w) of the feature map: where features have to be complete. The
                encoder may leave out work elsewhere. Everywhere if None.

        Returns:
            The features.

        Raises:
            ValueError: If the channels or the mask do not fit the config and the images.
        """
        if pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values has {pixel_values.shape[1]} channels and the model was built for"
                f" {self.config.num_channels}. Convert the images, or set num_channels in encoder_config."
            )
        mask = patch_mask(bool_masked_pos, pixel_values, self.geometry.patch_size)
        left_out = mask if self.config.encode == "visible" else None
        has_token = self.mask_token is not None or self.geometry.mask_token_shape is None
        if mask is not None and left_out is None and not has_token:
            raise ValueError("This model was built without a mask token. Use SimMIMForMaskedImageModeling.")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if pixel_values.dtype == torch.float32:
            # Models of other dtypes still compute their targets from images in float32.
            pixel_values = pixel_values.to(self.dtype)
        wanted = {"output_hidden_states": bool(output_hidden_states), "output_attentions": output_attentions}
        if left_out is not None:
            outputs = encode_visible(self.encoder, self.geometry, pixel_values, left_out, **wanted)
        else:
            outputs = encode(self.encoder, self.geometry, pixel_values, mask, self.mask_token, needed, **wanted)
        tokens = outputs.feature_map.flatten(2).transpose(1, 2)  # B, N, D
        pooled = tokens.mean(dim=1)
        if left_out is not None:
            cells = masked_cells(left_out, self.geometry)
            pooled = tokens.sum(dim=1) / (~cells).flatten(1).sum(dim=1, keepdim=True).clamp(min=1)
        return SimMIMModelOutput(
            last_hidden_state=tokens,
            pooler_output=pooled,
            feature_map=outputs.feature_map,
            hidden_states=chosen_hidden_states(outputs.hidden_states, output_hidden_states),
            attentions=outputs.attentions if output_attentions else None,
        )
