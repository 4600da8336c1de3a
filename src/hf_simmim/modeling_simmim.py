"""The SimMIM models: an encoder that sees some patches, and a head that predicts what the others hold."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .classification_loss import classification_loss
from .configuration_simmim import SimMIMConfig
from .encoder_geometry import encoder_geometry
from .encoder_layers import encoder_layers
from .encoders import build_encoder, encode, freeze_unused, layers_to_wrap
from .heads import build_head
from .hidden_states import HiddenStateFusion
from .losses import LOSS_FUNCTIONS, masked_mean, masked_mean_per_image, num_hidden_pixels, pixel_weights
from .masking import patch_grid, patch_mask
from .pretrained import SimMIMPreTrainedModel
from .targets import TARGET_CLASSES


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


class SimMIMForImageClassification(SimMIMPreTrainedModel):
    """Fine-tuning: the encoder, the mean of its tokens, a norm and a linear layer.

    The norm is that of the encoder where it ends in one, as Swin does, and a fresh one behind the mean where it does
    not, as the paper's ViT. From a pre-training checkpoint `from_pretrained` makes what the paper fine-tunes, at any
    image size and window: see `SimMIMConfig.for_fine_tuning`.

    Under the unmodified Trainer the loss of a step is the mean over all its images, however they are spread over
    processes and accumulated batches.

    Args:
        config: The SimMIM config, with `num_labels`, and `problem_type` and `class_weights` if wanted.
    """

    # Trainer tells forward how many labels the whole batch has.
    accepts_loss_kwargs = True
    _keys_to_ignore_on_load_unexpected = SimMIMModel._keys_to_ignore_on_load_unexpected

    def __init__(self, config: SimMIMConfig):
        # What was set after the config was made is not checked yet.
        config.validate_class_weights()
        super().__init__(config)
        weights = config.class_weights
        if weights is not None and len(weights) != config.num_labels:
            raise ValueError(
                f"class_weights has {len(weights)} numbers and the model {config.num_labels} labels. Give one for each."
            )
        self.simmim = SimMIMModel(config, use_mask_token=False)
        ends_in_norm = encoder_layers(config).ends_in_norm
        epsilon = getattr(config.encoder_config, "layer_norm_eps", 1e-6)
        self.norm = nn.Identity() if ends_in_norm else nn.LayerNorm(config.hidden_size, eps=epsilon)
        self.classifier = nn.Linear(config.hidden_size, int(config.num_labels or 0))
        self.post_init()
        self._no_split_modules = self.simmim._no_split_modules

    @classmethod
    def _for_loading(cls, config: SimMIMConfig, stored: SimMIMConfig) -> SimMIMConfig:
        # A classifier that was saved keeps the structure that it has.
        return config if cls.__name__ in (stored.architectures or ()) else config.for_fine_tuning()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise what no checkpoint gave; the ViT's classifier begins near zero, as released."""
        super().initialize_weights()
        self._init_classifier()

    def _init_classifier(self) -> None:
        if self.config.encoder_config.model_type == "beit":
            # A thousandth of what the released code draws.
            init.trunc_normal_(self.classifier.weight, std=self.config.initializer_range / 1000)

    @torch.no_grad()
    def reset_classifier(self) -> None:
        """Draw the last layer anew, for classes that have nothing to do with those it was trained for."""
        self.classifier = nn.Linear(self.classifier.in_features, self.classifier.out_features).to(
            self.classifier.weight
        )
        self._init_weights(self.classifier)
        self._init_classifier()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | float | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values: Normalised images of shape (B, C, H, W).
            labels: As in `classification_loss`: classes (B,), probabilities or several labels (B, K), or numbers.
            num_items_in_batch: As in `classification_loss`.
            output_hidden_states: Whether to return the encoder's hidden states.
            output_attentions: Whether to return attention weights, where the encoder can.
            return_dict: Whether to return a `ModelOutput` (default) or a tuple.

        Returns:
            Loss, which is None without labels, logits of shape (B, K), and what else was asked for.

        Raises:
            ValueError: If the channels or the labels do not fit.
        """
        outputs = self.simmim(
            pixel_values, output_hidden_states=output_hidden_states, output_attentions=output_attentions
        )
        logits = self.classifier(self.norm(outputs.pooler_output))
        loss: Any = None
        if labels is not None:
            loss = classification_loss(
                logits, labels, self.config.problem_type, self.config.class_weights, num_items_in_batch
            )
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
