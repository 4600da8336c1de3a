"""The SimMIM models: an encoder that sees some patches, and a head that predicts what the others hold."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_simmim import SimMIMConfig
from .encoders import build_encoder, encode, init_tokens
from .heads import HEAD_CLASSES
from .losses import LOSS_FUNCTIONS, masked_mean, masked_mean_per_image
from .swin import Swin
from .swinv2 import init_swinv2_weights
from .targets import TARGET_FUNCTIONS


@dataclass
class SimMIMModelOutput(ModelOutput):
    """Features of a batch of images.

    Args:
        last_hidden_state: Tokens of shape (B, N, D), in reading order, without class or register tokens.
        pooler_output: Their mean, of shape (B, D).
        feature_map: The same tokens as a map of shape (B, D, h, w).
        hidden_states: Tuple of tensors (B, N_i, D_i), the patch embedding first, if asked for.
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
        loss: Scalar float32 tensor; None if no mask was given.
        reconstruction: Predicted images of shape (B, C, H, W), in the space of `pixel_values`.
        hidden_states: As in `SimMIMModelOutput`.
        attentions: As in `SimMIMModelOutput`.
    """

    loss: torch.Tensor | None = None
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
    _supports_sdpa = True
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
        init_tokens(base_model.encoder, std=self.config.initializer_range)

    def save_pretrained(self, save_directory, *args, save_original_format: bool = False, **kwargs):
        """Save with the parameter names that the model has in memory.

        transformers saves some encoders (ViT, BEiT, DeiT) under older names and converts them back on loading. Trainer
        does not, and would resume with part of the weights left as they were.
        """
        kwargs["save_original_format"] = save_original_format
        return super().save_pretrained(save_directory, *args, **kwargs)


class SimMIMModel(SimMIMPreTrainedModel):
    """The encoder, returning features.

    Args:
        config: The SimMIM config.
        use_mask_token: Whether to hold a mask token, which `bool_masked_pos` needs. Without it every parameter takes
            part in every forward, as DDP demands of a model that never masks.
    """

    def __init__(self, config: SimMIMConfig, use_mask_token: bool = True):
        super().__init__(config)
        self.encoder = build_encoder(config, use_mask_token)
        if isinstance(self.encoder, Swin):
            self._no_split_modules = [self.encoder.stage_class.block_class.__name__]
        self.post_init()

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
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        outputs = encode(
            self.encoder,
            self.config,
            pixel_values,
            patch_mask(bool_masked_pos, pixel_values, self.config.patch_size),
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
        super().__init__(config)
        self.simmim = SimMIMModel(config)
        self.head = HEAD_CLASSES[config.head](config.hidden_size, config.num_channels, config.encoder_stride)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> SimMIMMaskedImageModelingOutput:
        """Predict images of which some patches are hidden.

        Args:
            pixel_values: Whole, normalised images of shape (B, C, H, W), H and W multiples of the encoder's stride.
            bool_masked_pos: Mask of shape (B, N) or (B, h, w) on the patch grid, True = masked. Without it nothing is
                hidden and there is no loss.
            output_hidden_states: Whether to return the encoder's hidden states.
            output_attentions: Whether to return attention weights, where the encoder can.
            return_dict: Whether to return a `ModelOutput` (default) or a tuple.

        Returns:
            Loss and reconstruction.

        Raises:
            ValueError: If the channels, the size or the mask do not fit.
        """
        height, width = pixel_values.shape[2:]
        stride = self.config.encoder_stride
        if height % stride or width % stride:
            raise ValueError(
                f"Images of {height}x{width} are not a multiple of the encoder's stride of {stride} px. Resize or crop"
                " them."
            )
        outputs = self.simmim(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        reconstruction = self.head(outputs.feature_map)
        loss = None
        if bool_masked_pos is not None:
            loss = self.reconstruction_loss(reconstruction, pixel_values, bool_masked_pos)
        return SimMIMMaskedImageModelingOutput(
            loss=loss,
            reconstruction=reconstruction,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def reconstruction_loss(
        self,
        reconstruction: torch.Tensor,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor,
        per_image: bool = False,
    ) -> torch.Tensor:
        """The config's loss between reconstruction and target.

        Args:
            reconstruction: Predictions of shape (B, K, H, W).
            pixel_values: Whole, normalised images of shape (B, C, H, W).
            bool_masked_pos: Mask of shape (B, N) or (B, h, w), True = masked.
            per_image: Whether to average over each image rather than the batch.

        Returns:
            float32 scalar, or tensor of shape (B,).
        """
        target = TARGET_FUNCTIONS[self.config.target](pixel_values)
        distance = LOSS_FUNCTIONS[self.config.loss](reconstruction.float(), target.float())
        mask = None
        if self.config.loss_region == "masked":
            mask = patch_mask(bool_masked_pos, pixel_values, self.config.patch_size)
        return masked_mean_per_image(distance, mask) if per_image else masked_mean(distance, mask)


def patch_mask(
    bool_masked_pos: torch.Tensor | None, pixel_values: torch.Tensor, patch_size: int
) -> torch.Tensor | None:
    """Bring a mask to bool and shape (B, h, w).

    Args:
        bool_masked_pos: Mask of shape (B, N) or (B, h, w), True = masked, or None.
        pixel_values: Images of shape (B, C, H, W) that it belongs to.
        patch_size: Side of a patch in pixels.

    Returns:
        The mask, or None if there was none.

    Raises:
        ValueError: If the images are no whole number of patches, or the mask has another shape.
    """
    if bool_masked_pos is None:
        return None
    batch_size, _, height, width = pixel_values.shape
    if height % patch_size or width % patch_size:
        raise ValueError(f"Images of {height}x{width} are not a multiple of patch_size={patch_size}. Resize them.")
    grid_size = (height // patch_size, width // patch_size)
    expected = (batch_size, grid_size[0] * grid_size[1])
    if tuple(bool_masked_pos.shape) not in (expected, (batch_size, *grid_size)):
        raise ValueError(
            f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)}. Images of {height}x{width} with patches of"
            f" {patch_size} px need {expected} or {(batch_size, *grid_size)}."
        )
    return bool_masked_pos.bool().view(batch_size, *grid_size)
