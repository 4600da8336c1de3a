"""The SimMIM models: an encoder that sees some patches, and a head that predicts what the others hold."""

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
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple

from .configuration_simmim import SimMIMConfig
from .encoder_geometry import encoder_geometry
from .encoders import build_encoder, encode, freeze_unused, init_as_released, layers_to_wrap
from .heads import LinearHead, build_head
from .hidden_states import HiddenStateFusion
from .losses import LOSS_FUNCTIONS, masked_mean, masked_mean_per_image, num_hidden_pixels, pixel_weights
from .masking import patch_grid
from .remapping import keep_pretrained_windows, remap, same_geometry, with_geometry_of
from .stock_checkpoints import describe_loading, export_encoder, load_stock
from .swinv2 import init_swinv2_weights
from .targets import TARGET_CLASSES

logger = logging.get_logger(__name__)

# Of the arguments of `from_pretrained`: where a checkpoint is found, how weights are held, and where they are put.
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


@dataclass
class SimMIMModelOutput(ModelOutput):
    """Features of a batch of images.

    Args:
        last_hidden_state: Tokens of shape (B, N, D), in reading order, without class or register tokens.
        pooler_output: Their mean, of shape (B, D).
        feature_map: The same tokens as a map of shape (B, D, h, w).
        hidden_states: Tuple of tensors, the patch embedding first, if asked for: (B, N_i, D_i) for transformers,
            class tokens included, (B, D_i, h_i, w_i) for convolutional networks.
        attentions: Tuple of attention weights, if asked for and the encoder gives them (our Swin does not).
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    feature_map: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class SimMIMMaskedImageModelingOutput(ModelOutput):
    """Loss and reconstruction of a batch of images.

    Args:
        loss: Scalar float32 tensor; None if no mask was given, or none was asked for.
        prediction: What the head predicts, of shape (B, K, ceil(H / stride), ceil(W / stride)) with the stride of the
            target: pixels, logits of classes, features.
        reconstruction: Predicted images of shape (B, C, H, W), in the space of `pixel_values`; None if the target
            cannot be decoded to pixels, or none was asked for.
        hidden_states: As in `SimMIMModelOutput`.
        attentions: As in `SimMIMModelOutput`.
    """

    loss: torch.Tensor | None = None
    prediction: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class SimMIMPreTrainedModel(PreTrainedModel):
    """What all SimMIM models share: config, initialisation, and checkpoints whose names need no conversion."""

    config_class = SimMIMConfig
    config: SimMIMConfig
    base_model_prefix = "simmim"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    # What an encoder does not support it refuses itself.
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

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise what no checkpoint gave: each module as its own model does it, and the tokens as we do."""
        super().initialize_weights()
        base_model: Any = self.base_model
        init_as_released(base_model.encoder, base_model.mask_token, std=self.config.initializer_range)

    def save_pretrained(self, save_directory, *args, save_original_format: bool = False, **kwargs):
        """Save with the parameter names that the model has in memory.

        transformers saves some encoders (ViT, BEiT, DeiT) under older names and converts them back on loading. Trainer
        does not, and would resume with part of the weights left as they were.
        """
        kwargs["save_original_format"] = save_original_format
        return super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """Load a checkpoint as every model of transformers does, at any image size and window.

        Where `image_size`, `window_size` or `config` ask for another geometry than that of the checkpoint, the weights
        that depend on it are remapped, and the log says which.

        Args:
            pretrained_model_name_or_path: Folder or name on the Hub.
            *model_args: Passed to the model.
            config: Config to use instead of the checkpoint's.
            **kwargs: As in `PreTrainedModel.from_pretrained`; keys of the config, such as `image_size` or
                `encoder_config={"drop_path_rate": 0.1}`, change it.

        Returns:
            The model, in evaluation mode.

        Raises:
            ValueError: If weights cannot be taken to the geometry.
        """
        result = cls._load(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        model = result[0] if isinstance(result, tuple) else result
        model.base_model.freeze_unused()
        return result

    @classmethod
    def _load(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """`from_pretrained`, but for parameters that loading makes trainable."""
        plainly: Any = super().from_pretrained
        if pretrained_model_name_or_path is None or "state_dict" in kwargs:
            return plainly(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        name = str(pretrained_model_name_or_path)
        hub_arguments = {key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs}
        stored_dict, _ = cls.config_class.get_config_dict(name, **hub_arguments)
        if stored_dict.get("model_type") != cls.config_class.model_type:
            raise ValueError(
                f"{name} holds a {stored_dict.get('model_type')!r} model and none of SimMIM. Load it with"
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
        source = with_geometry_of(stored, target)
        keep_pretrained_windows(source, target)
        if same_geometry(source, target):
            return plainly(name, *model_args, config=target, **kwargs)
        # All at the stored geometry first, and on the CPU; then the weights at the other one, where they are wanted.
        wants_info = kwargs.pop("output_loading_info", False)
        placement = {key: kwargs.pop(key) for key in _PLACEMENT_ARGUMENTS if key in kwargs}
        model, info = plainly(name, *model_args, config=source, output_loading_info=True, **kwargs)
        model_kwargs = {key: kwargs[key] for key in inspect.signature(cls.__init__).parameters if key in kwargs}
        loading = {key: kwargs[key] for key in _LOADING_ARGUMENTS if key in kwargs}
        state_dict = cls._remap(model, cls._on_meta(target, *model_args, **model_kwargs), name)
        target.dtype = model.config.dtype
        remapped = plainly(
            None, *model_args, config=target, state_dict=state_dict, **model_kwargs, **loading, **placement
        )
        remapped.name_or_path = remapped.config._name_or_path = name
        return (remapped, info) if wants_info else remapped

    @classmethod
    def _on_meta(cls, config: SimMIMConfig, *model_args, **model_kwargs) -> "SimMIMPreTrainedModel":
        """The model without memory, for the names and shapes of its parameters."""
        with torch.device("meta"):
            return cls(config, *model_args, **model_kwargs)

    @staticmethod
    def _remap(model: "SimMIMPreTrainedModel", target: "SimMIMPreTrainedModel", name: str) -> dict[str, torch.Tensor]:
        """The weights of a model for another one of other geometry; the log says what changed."""
        expected = {key: tensor.shape for key, tensor in target.state_dict().items()}
        state_dict, lines = remap(dict(model.state_dict()), model.config, target.config, expected)
        for line in lines:
            logger.warning(f"{name}: {line}.")
        return state_dict

    @classmethod
    def from_encoder(cls, pretrained_model_name_or_path: str | Path, **kwargs):
        """Start from a vision checkpoint of transformers: its encoder, and its prediction head if it fits.

        Takes checkpoints of every encoder that `encoder_config` takes, with any head on them or none, and the vision
        part of those that have others. What was loaded, left out or freshly initialised is logged.

        Args:
            pretrained_model_name_or_path: Folder or name on the Hub.
            **kwargs: Where to find it (`revision`, `token`, ...), how to hold it (`dtype`, `attn_implementation`), and
                fields of `SimMIMConfig`, `image_size` and `window_size` among them: what depends on them is remapped.
                A dict as `encoder_config` changes other keys of the encoder's config.

        Returns:
            The model, in evaluation mode.

        Raises:
            ValueError: If the checkpoint holds no such encoder, or only part of it, or an argument is unknown.
        """
        name = str(pretrained_model_name_or_path)
        hub_arguments = {key: kwargs.pop(key) for key in _HUB_ARGUMENTS if key in kwargs}
        loading = {key: kwargs.pop(key) for key in _LOADING_ARGUMENTS if key in kwargs}
        changes = kwargs.pop("encoder_config", {})
        known = {field.name for field in fields(cls.config_class)} | {"image_size", "window_size"}
        _refuse_unknown(kwargs, known, "argument", "from_encoder")
        encoder_config, weights, head, beside = load_stock(name, **hub_arguments)
        _refuse_unknown(changes, {*encoder_config.to_dict(), "image_size"}, "key of encoder_config", name)
        stored = cls.config_class(encoder_config=encoder_config.to_dict())
        target = cls.config_class(encoder_config=encoder_config.to_dict() | changes, **kwargs)
        source = with_geometry_of(stored, target)
        keep_pretrained_windows(source, target)
        model: Any = cls(source)
        prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
        result = model.base_model.encoder.load_state_dict(weights, strict=False)
        lacking = [key for key in result.missing_keys if not key.endswith("mask_token")]
        if lacking:
            raise ValueError(f"{name} lacks weights of the encoder: {', '.join(lacking[:3])}.")
        loaded = {f"{prefix}encoder.{key}" for key in weights.keys() - set(result.unexpected_keys)}
        # A decoder of the feature map is none of a sum with hidden states.
        reads_features = isinstance(getattr(model, "head", None), LinearHead) and model.fusion is None
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
        """Write the encoder as a checkpoint of transformers' own model: plain `AutoModel.from_pretrained` reads it.

        Args:
            save_directory: Folder to write to.

        Raises:
            ValueError: If stock transformers cannot represent the encoder or computes something else with it, such as
                a Swin whose window is larger than a stage; nothing is written then.
        """
        base_model: Any = self.base_model
        left_out = export_encoder(base_model.encoder, self.config, base_model.geometry, save_directory)
        if left_out:
            logger.warning(f"{save_directory}: left out, as stock models have no use for it: {', '.join(left_out)}.")


class SimMIMModel(SimMIMPreTrainedModel):
    """The encoder, returning features.

    Args:
        config: The SimMIM config.
        use_mask_token: Whether to hold a mask token, which `bool_masked_pos` needs. Without it every parameter takes
            part in every forward, as DDP demands of a model that never masks.
    """

    # Of a pre-trained model, whose head has no place here.
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        *SimMIMPreTrainedModel._keys_to_ignore_on_load_unexpected,
        r"^(head|fusion)\.",
        r"mask_token$",
    ]

    def __init__(self, config: SimMIMConfig, use_mask_token: bool = True):
        super().__init__(config)
        self.use_mask_token = use_mask_token
        self.geometry = encoder_geometry(config.encoder_config)
        self.encoder = build_encoder(config, use_mask_token)
        self.mask_token = None
        if use_mask_token and self.geometry.mask_token_shape is not None:
            self.mask_token = nn.Parameter(torch.zeros(self.geometry.mask_token_shape))
        self.freeze_unused()
        self.post_init()
        # After post_init, which takes over the encoder's own list with classes that it does not have.
        self._no_split_modules = layers_to_wrap(self.encoder)

    def freeze_unused(self) -> None:
        """Freeze the parameters that no forward uses, such as those of a pooler."""
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
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> SimMIMModelOutput:
        """Encode images, with some patches hidden if a mask is given.

        Args:
            pixel_values: Normalised images of shape (B, C, H, W).
            bool_masked_pos: Mask of shape (B, N) or (B, h, w) on the patch grid, True = masked.
            output_hidden_states: Whether to return the hidden states.
            output_attentions: Whether to return attention weights, where the encoder can.
            return_dict: Whether to return a `ModelOutput` (default) or a tuple.

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
        if mask is not None and self.mask_token is None and self.geometry.mask_token_shape is not None:
            raise ValueError("This model was built without a mask token. Use SimMIMForMaskedImageModeling.")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if pixel_values.dtype == torch.float32:
            # A model of another type still makes its targets of images in float32.
            pixel_values = pixel_values.to(self.dtype)
        outputs = encode(
            self.encoder,
            self.geometry,
            pixel_values,
            mask,
            self.mask_token,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        tokens = outputs.feature_map.flatten(2).transpose(1, 2)  # B, N, D
        return SimMIMModelOutput(
            last_hidden_state=tokens,
            pooler_output=tokens.mean(dim=1),
            feature_map=outputs.feature_map,
            hidden_states=outputs.hidden_states if output_hidden_states else None,
            attentions=outputs.attentions if output_attentions else None,
        )


class SimMIMForMaskedImageModeling(SimMIMPreTrainedModel):
    """Pre-training: the encoder, a prediction head, and the loss on the hidden patches.

    Args:
        config: The SimMIM config.
    """

    def __init__(self, config: SimMIMConfig):
        # What was set after the config was made is not checked yet.
        config.validate_components()
        super().__init__(config)
        self.simmim = SimMIMModel(config)
        self.target = TARGET_CLASSES[config.target](config)
        self.fusion = HiddenStateFusion(config) if config.head_inputs is not None else None
        self.head = build_head(config, self.target.num_outputs, self.target.stride)
        self.post_init()
        self._no_split_modules = sorted({*layers_to_wrap(self.simmim.encoder), *layers_to_wrap(self.head)})

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | float | None = None,
        return_reconstruction: bool = True,
        return_loss: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> SimMIMMaskedImageModelingOutput:
        """Predict images of which some patches are hidden.

        Args:
            pixel_values: Whole, normalised images of shape (B, C, H, W). Those whose H and W are no multiples of the
                encoder's stride are padded inside; the padding is no part of loss and reconstruction.
            bool_masked_pos: Mask of shape (B, N) or (B, h, w) on the patch grid, True = masked. Without it nothing is
                hidden and there is no loss.
            pixel_mask: Mask of shape (B, H, W), False where a pixel is none, such as padding and missing data: it is
                no part of the loss.
            num_items_in_batch: What `num_hidden_pixels` gives for the whole batch, where this is a part of it: the
                losses of the parts add up to that of the batch, whatever is hidden in each.
            return_reconstruction: Whether to decode the prediction to pixels, where that takes a step of its own.
            return_loss: Whether to compute the loss if there is a mask. Trainer evaluates models that have this.
            output_hidden_states: Whether to return the encoder's hidden states.
            output_attentions: Whether to return attention weights, where the encoder can.
            return_dict: Whether to return a `ModelOutput` (default) or a tuple.

        Returns:
            Loss, prediction and reconstruction.

        Raises:
            ValueError: If the channels or a mask do not fit.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        outputs = self.simmim(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            output_hidden_states=output_hidden_states or self.fusion is not None,
            output_attentions=output_attentions,
        )
        features = outputs.feature_map
        if self.fusion is not None:
            features = self.fusion(features, outputs.hidden_states)
        rows, columns = patch_grid((pixel_values.shape[2], pixel_values.shape[3]), self.target.stride)
        prediction = self.head(features)[:, :, :rows, :columns]
        loss: Any = None
        if bool_masked_pos is not None and return_loss:
            loss = self.masked_loss(prediction, pixel_values, bool_masked_pos, pixel_mask, num_items_in_batch)
        reconstruction = None
        if return_reconstruction or self.target.is_pixels:
            reconstruction = self.target.decode(prediction, pixel_values)
        return SimMIMMaskedImageModelingOutput(
            loss=loss,
            prediction=prediction,
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states if output_hidden_states else None,
            attentions=outputs.attentions,
        )

    def masked_loss(
        self,
        prediction: torch.Tensor,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | float | None = None,
        per_image: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The config's loss between prediction and target, averaged over the pixels that count.

        Args:
            prediction: The head's output, of shape (B, K, h, w).
            pixel_values: Whole, normalised images of shape (B, C, H, W).
            bool_masked_pos: Mask of shape (B, N) or (B, h, w), True = masked.
            pixel_mask: Mask of shape (B, H, W), False where a pixel is none.
            num_items_in_batch: As in `forward`.
            per_image: Whether to average over each image rather than the batch.

        Returns:
            float32 scalar; per image two tensors of shape (B,), the loss and the number of pixels that it is of.
        """
        target = self.target(pixel_values)
        with torch.autocast(prediction.device.type, enabled=False):
            distance = LOSS_FUNCTIONS[str(self.config.loss)](prediction.float(), target, **self.config.options("loss"))
            weights = self._pixel_weights(pixel_values, bool_masked_pos, pixel_mask)
            if per_image:
                return masked_mean_per_image(distance, weights)
            return masked_mean(distance, weights, num_items_in_batch)

    def num_hidden_pixels(
        self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor, pixel_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Number of pixels that the loss of a batch is averaged over, as a float32 scalar; arguments as in `forward`.

        The sum over all parts of a batch, on all processes, is the `num_items_in_batch` of each of them. DDP averages
        gradients over processes instead of adding them up: multiply each loss by their number, as Trainer does.
        """
        size = patch_grid((pixel_values.shape[2], pixel_values.shape[3]), self.target.stride)
        return num_hidden_pixels(self._pixel_weights(pixel_values, bool_masked_pos, pixel_mask), size)

    def _pixel_weights(
        self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor, pixel_mask: torch.Tensor | None
    ) -> torch.Tensor:
        patch_size = self.simmim.geometry.patch_size
        mask = None
        if self.config.loss_region == "masked":
            mask = patch_mask(bool_masked_pos, pixel_values, patch_size)
        if pixel_mask is not None:
            expected = (pixel_values.shape[0], *pixel_values.shape[2:])
            if tuple(pixel_mask.shape) != expected:
                raise ValueError(f"pixel_mask has shape {tuple(pixel_mask.shape)}. These images need {expected}.")
            pixel_mask = pixel_mask.bool()
        return pixel_weights(
            mask, patch_size, pixel_values.shape, self.target.stride, pixel_mask, device=pixel_values.device
        )


def _refuse_unknown(names: Iterable[str], known: set[str], kind: str, place: str) -> None:
    """Refuse names that would go into a config and change nothing."""
    for name in names:
        if name not in known:
            match = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {match[0]}?" if match else ""
            raise ValueError(f"{place}: {name!r} is no {kind}.{hint}")


def patch_mask(
    bool_masked_pos: torch.Tensor | None, pixel_values: torch.Tensor, patch_size: int
) -> torch.Tensor | None:
    """Bring a mask to bool and shape (B, h, w).

    Args:
        bool_masked_pos: Mask of shape (B, N) or (B, h, w), True = masked, or None.
        pixel_values: Images of shape (B, C, H, W) that it belongs to.
        patch_size: Side of a patch in pixels.

    Returns:
        The mask, or None if there was none. Patches that the border of an image cuts have a place in it.

    Raises:
        ValueError: If the mask has another shape.
    """
    if bool_masked_pos is None:
        return None
    batch_size, _, height, width = pixel_values.shape
    grid_size = patch_grid((height, width), patch_size)
    expected = (batch_size, grid_size[0] * grid_size[1])
    shape = bool_masked_pos.shape
    # One number after the other: of sizes that torch.compile keeps open, tuples are not compared by value.
    if not any(
        len(shape) == len(fitting) and all(ours == theirs for ours, theirs in zip(shape, fitting, strict=True))
        for fitting in (expected, (batch_size, *grid_size))
    ):
        raise ValueError(
            f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)}. Images of {height}x{width} with patches of"
            f" {patch_size} px need {expected} or {(batch_size, *grid_size)}."
        )
    return bool_masked_pos.bool().view(batch_size, *grid_size)
