"""The SimMIM models for masked image modeling (pre-training) and image classification, and the backbone."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_simmim import TARGETS, SimMIMConfig
from .encoder_stages import Stage, as_map, default_out_features, encoder_layers, is_single_scale, stages
from .encoders import MEASURING, cache_key, layers_to_wrap, whole
from .heads import HiddenStateFusion, build_head, predict_cells
from .losses import (
    LOSSES,
    classification_loss,
    masked_mean,
    masked_mean_per_image,
    num_masked_pixels,
    pixel_weights,
)
from .masking import patch_grid, patch_mask
from .modeling_base import SimMIMModel, SimMIMPreTrainedModel, chosen_hidden_states
from .visible import build_decoder, check_cells, masked_cells


@dataclass
class SimMIMMaskedImageModelingOutput(ModelOutput):
    """Loss and reconstruction of a batch of images.

    Args:
        loss: Scalar float32 tensor; None without a mask, or if it was not requested.
        prediction: Output of the head, of shape (B, K, ceil(H / stride), ceil(W / stride)) with the stride of the
            target: pixels, class logits or features.
        reconstruction: Predicted images of shape (B, C, H, W), in the space of `pixel_values`; None if the target
            cannot be decoded to pixels, or if it was not requested.
        hidden_states: As in `SimMIMModelOutput`.
        attentions: As in `SimMIMModelOutput`.
    """

    loss: torch.Tensor | None = None
    prediction: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class SimMIMForMaskedImageModeling(SimMIMPreTrainedModel):
    """Pre-training: the encoder, a decoder if the encoder leaves masked patches out, a prediction head, and the loss.

    Args:
        config: The SimMIM config.
    """

    def __init__(self, config: SimMIMConfig):
        # Settings that were changed after the config was created are not checked yet.
        config.validate_components()
        super().__init__(config)
        self.simmim = SimMIMModel(config)
        self.target = TARGETS[config.target].build(config, SimMIMModel)
        self.fusion = HiddenStateFusion(config) if config.head_inputs is not None else None
        self.decoder = build_decoder(config)
        hidden_size = config.hidden_size if self.decoder is None else self.decoder.hidden_size
        self.head = build_head(config, self.target.num_outputs, self.target.stride, hidden_size)
        self.post_init()
        parts = [part for part in (self.simmim.encoder, self.decoder, self.head) if part is not None]
        self._no_split_modules = sorted({name for part in parts for name in layers_to_wrap(part)})

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | float | None = None,
        return_reconstruction: bool = True,
        return_loss: bool = True,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        skip_visible: bool = False,
    ) -> SimMIMMaskedImageModelingOutput:
        """Predict masked images.

        Args:
            pixel_values: Unmasked, normalized images of shape (B, C, H, W). If H and W are not multiples of the
                encoder's stride, they are padded internally; the padding is not part of loss and reconstruction.
            bool_masked_pos: Mask of shape (B, N) or (B, h, w) on the patch grid, True = masked. Without it nothing is
                masked and there is no loss.
            pixel_mask: Mask of shape (B, H, W), False at missing pixels and padding, which are not part of the loss.
            num_items_in_batch: Result of `num_masked_pixels` for the whole batch, if this is a part of it: the losses
                of the parts then add up to that of the batch.
            return_reconstruction: Whether to decode the prediction to pixels, if the target needs decoding.
            return_loss: Whether to compute the loss if there is a mask. Trainer detects by it that there is a loss.
            output_hidden_states: Whether to return the encoder's hidden states, or indices of those to return.
            output_attentions: Whether to return attention weights, where the encoder can.
            return_dict: Whether to return a `ModelOutput` (default) or a tuple.
            skip_visible: Whether to leave out work that only predictions of visible patches need: part of the
                encoder's last block, and the head. Prediction and reconstruction are meaningless there then; loss and
                gradients are the same. Swin's first block also computes windows of mask tokens alone only once. Has an
                effect on processors only, where it saves time.

        Returns:
            Loss, prediction and reconstruction.

        Raises:
            ValueError: If the channels or a mask do not fit.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        wants_states = bool(output_hidden_states) or self.fusion is not None
        wants_weights = self.config.output_attentions if output_attentions is None else output_attentions
        needed = self._needed_cells(pixel_values, bool_masked_pos) if skip_visible else None
        outputs = self.simmim(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            output_hidden_states=wants_states,
            output_attentions=output_attentions,
            needed=None if wants_states or wants_weights else needed,
        )
        features = outputs.feature_map
        if self.fusion is not None:
            features = self.fusion(features, outputs.hidden_states)
        if self.decoder is not None:
            features = self.decoder(features, self._left_out(pixel_values, bool_masked_pos, pixel_mask))
        rows, columns = patch_grid((pixel_values.shape[2], pixel_values.shape[3]), self.target.stride)
        prediction = self.head(features) if needed is None else predict_cells(self.head, features, needed)
        prediction = prediction[:, :, :rows, :columns]
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
            hidden_states=chosen_hidden_states(outputs.hidden_states, output_hidden_states),
            attentions=outputs.attentions,
        )

    def _needed_cells(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None) -> torch.Tensor | None:
        """Cells of the feature map that hold a masked patch, (B, h, w); None if all have to be computed."""
        is_eager = pixel_values.device.type == "cpu" and not torch.compiler.is_compiling()
        if bool_masked_pos is None or not is_eager or self.config.loss_region != "masked":
            return None
        mask: Any = patch_mask(bool_masked_pos, pixel_values, self.simmim.geometry.patch_size)
        return masked_cells(mask, self.simmim.geometry)

    def _left_out(
        self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None, pixel_mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Cells of the feature map at which the decoder has its mask token, (B, h, w)."""
        geometry = self.simmim.geometry
        mask = patch_mask(bool_masked_pos, pixel_values, geometry.patch_size)
        if mask is None:
            return None
        check_cells(mask, geometry, None if pixel_mask is None else pixel_mask.bool())
        return masked_cells(mask, geometry)

    def masked_loss(
        self,
        prediction: torch.Tensor,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | float | None = None,
        per_image: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The config's loss between prediction and target, averaged over the pixels of `loss_region`.

        Args:
            prediction: The head's output, of shape (B, K, h, w).
            pixel_values: Unmasked, normalized images of shape (B, C, H, W).
            bool_masked_pos: Mask of shape (B, N) or (B, h, w), True = masked.
            pixel_mask: Mask of shape (B, H, W), False at missing pixels and padding.
            num_items_in_batch: As in `forward`.
            per_image: Whether to average over each image rather than the batch.

        Returns:
            float32 scalar; per image two tensors of shape (B,), the loss and the number of pixels it is averaged over.
        """
        target = self.target(pixel_values)
        with torch.autocast(prediction.device.type, enabled=False):
            distance = LOSSES[str(self.config.loss)].distance(prediction.float(), target, **self.config.options("loss"))
            weights = self._pixel_weights(pixel_values, bool_masked_pos, pixel_mask)
            if per_image:
                return masked_mean_per_image(distance, weights)
            return masked_mean(distance, weights, num_items_in_batch)

    def num_masked_pixels(
        self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor, pixel_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Number of pixels that the loss of a batch is averaged over, as a float32 scalar; arguments as in `forward`.

        Its sum over all parts of a batch, on all processes, is the `num_items_in_batch` of each part. DDP averages
        gradients over processes instead of adding them up: multiply each loss by the number of processes, as Trainer
        does.
        """
        size = patch_grid((pixel_values.shape[2], pixel_values.shape[3]), self.target.stride)
        return num_masked_pixels(self._pixel_weights(pixel_values, bool_masked_pos, pixel_mask), size)

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
    """Image classifier: the encoder, the mean of its tokens, a norm and a linear layer.

    If the encoder ends in a norm, like Swin, that norm is used; otherwise a new one follows the mean, as in the paper's
    ViT. `from_pretrained` converts a pre-training checkpoint to the model that the paper fine-tunes, at any image size
    and window size: see `SimMIMConfig.for_fine_tuning`.

    With the unmodified Trainer the loss of a step is the mean over all its images, however they are distributed over
    processes and accumulated batches.

    Args:
        config: The SimMIM config, with `num_labels`, and optionally `problem_type` and `class_weights`, or `label_mean`
            and `label_std` of the numbers to learn.
    """

    # Trainer passes the number of labels of the whole batch to forward.
    accepts_loss_kwargs = True
    _keys_to_ignore_on_load_unexpected = SimMIMModel._keys_to_ignore_on_load_unexpected

    def __init__(self, config: SimMIMConfig):
        # Settings that were changed after the config was created are not checked yet.
        config.validate_class_weights()
        super().__init__(config)
        weights = config.class_weights
        if weights is not None and len(weights) != config.num_labels:
            raise ValueError(
                f"class_weights has {len(weights)} numbers, but the model has {config.num_labels} labels. Give one"
                " number for each label."
            )
        for name in ("label_mean", "label_std"):
            values = getattr(config, name)
            if isinstance(values, (list, tuple)) and len(values) != config.num_labels:
                raise ValueError(f"{name}={values!r} must be a number, or one for each of {config.num_labels} outputs.")
        self.simmim = SimMIMModel(config, use_mask_token=False)
        ends_in_norm = encoder_layers(config).ends_in_norm
        epsilon = getattr(config.encoder_config, "layer_norm_eps", 1e-6)
        self.norm = nn.Identity() if ends_in_norm else nn.LayerNorm(config.hidden_size, eps=epsilon)
        self.classifier = nn.Linear(config.hidden_size, int(config.num_labels or 0))
        self.post_init()
        self._no_split_modules = self.simmim._no_split_modules

    @classmethod
    def _for_loading(cls, config: SimMIMConfig, stored: SimMIMConfig) -> SimMIMConfig:
        # A saved classifier keeps its structure.
        return config if cls.__name__ in (stored.architectures or ()) else config.for_fine_tuning()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialize weights that were not loaded; the ViT's classifier starts near zero, as in the paper's code."""
        super().initialize_weights()
        self._init_classifier()

    def _init_classifier(self) -> None:
        if self.config.encoder_config.model_type == "beit":
            # The official implementation multiplies its initial weights by 0.001.
            init.trunc_normal_(self.classifier.weight, std=self.config.initializer_range / 1000)

    @torch.no_grad()
    def reset_classifier(self) -> None:
        """Initialize the last layer again, for other classes than those it was trained for."""
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
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values: Normalized images of shape (B, C, H, W).
            labels: As in `classification_loss`: classes (B,), probabilities or multi-label (B, K), or numbers.
            num_items_in_batch: As in `classification_loss`.
            output_hidden_states: Whether to return the encoder's hidden states, or indices of those to return.
            output_attentions: Whether to return attention weights, where the encoder can.
            return_dict: Whether to return a `ModelOutput` (default) or a tuple.

        Returns:
            Loss (None without labels), logits of shape (B, K), of a regression in the units of its labels, and the
            requested hidden states and attentions.

        Raises:
            ValueError: If the channels or the labels do not fit.
        """
        outputs = self.simmim(
            pixel_values, output_hidden_states=output_hidden_states, output_attentions=output_attentions
        )
        config = self.config
        logits = self.classifier(self.norm(outputs.pooler_output))
        kind = config.problem_type or ("regression" if config.num_labels == 1 else None)
        if kind == "regression" and (config.label_mean is not None or config.label_std is not None):
            # In float32: bfloat16 has no numbers between 112 and 112.5.
            logits = logits.float()
            mean, std = (
                logits.new_tensor(default if values is None else values)
                for values, default in ((config.label_mean, 0.0), (config.label_std, 1.0))
            )
            logits = logits * std + mean
        loss: Any = None
        if labels is not None:
            loss = classification_loss(
                logits, labels, config.problem_type, config.class_weights, num_items_in_batch, config.label_std
            )
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


NUM_PYRAMID_MAPS = 4

_unused: dict[tuple[str, ...], list[str]] = {}


class SimMIMBackbone(BackboneMixin, SimMIMPreTrainedModel):
    """Backbone: the encoder without a mask token, which returns the feature maps of its stages.

    The last stage is the encoder's feature map with its pre-trained final norm. Every other returned stage gets a new
    LayerNorm of its own, unless the encoder has no LayerNorm at all. Parameters that no returned map depends on are
    frozen, because DDP waits for every trainable parameter.

    `AutoBackbone.from_pretrained` of transformers only takes names on the Hub. For folders use that of this class.

    Args:
        config: The SimMIM config; `out_features` or `out_indices` select the stages, `backbone_pyramid` rescales the
            maps of a single-scale encoder to four strides. The default stages are written to it if none are selected.

    Raises:
        ValueError: If the encoder returns no hidden states, or the pyramid does not fit it.

    Source: norms as in SwinTransformer/Swin-Transformer-Semantic-Segmentation, which has one for each stage.
    """

    # Weights of a pre-trained model that a backbone does not have.
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        *SimMIMPreTrainedModel._keys_to_ignore_on_load_unexpected,
        r"^(head|fusion|decoder)\.",
        r"mask_token$",
    ]

    def __init__(self, config: SimMIMConfig):
        if config.out_features is None:
            config.out_features = default_out_features(config)
        super().__init__(config)
        known = stages(config)
        self.num_features = [stage.state.channels for stage in known]
        self.stages = [stage for stage in known if stage.name in self.out_features]
        self.simmim = SimMIMModel(config, use_mask_token=False)
        if self.simmim.geometry.route == "own":
            self.simmim.encoder.before_merging = True  # type: ignore[assignment]
        has_norms = any(isinstance(module, nn.LayerNorm) for module in self.simmim.encoder.modules())
        self.norms = nn.ModuleDict(
            {
                stage.name: nn.LayerNorm(stage.state.channels) if has_norms else nn.Identity()
                for stage in self.stages
                if stage.hidden_state is not None
            }
        )
        self.pyramid = FeaturePyramid(config, self.stages) if config.backbone_pyramid else None
        self.freeze_unused()
        self.post_init()
        # After post_init, as in SimMIMModel.
        self._no_split_modules = self.simmim._no_split_modules

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.ConvTranspose2d, nn.BatchNorm2d)):
            PreTrainedModel._init_weights(self, module)
        else:
            super()._init_weights(module)

    def freeze_unused(self) -> None:
        """Freeze the parameters that no returned map depends on."""
        self.simmim.freeze_unused()
        if self.stages[-1].hidden_state is not None:
            for name in unused_parameters(self.config, self.stages):
                self.simmim.get_parameter(name).requires_grad_(False)

    def train(self, mode: bool = True) -> "SimMIMBackbone":
        """As in torch, and freeze again: loading this model, or one around it, makes all trainable and calls this."""
        super().train(mode)
        self.freeze_unused()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's patch embedding."""
        return self.simmim.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | int | list[int] | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BackboneOutput:
        """Encode images.

        Args:
            pixel_values: Normalized images of shape (B, C, H, W).
            output_hidden_states: Whether to return the encoder's hidden states, or indices of those to return; those of
                our Swin are the patch embedding and the output of each stage before patch merging.
            output_attentions: Whether to return attention weights, where the encoder can.
            return_dict: Whether to return a `BackboneOutput` (default) or a tuple.

        Returns:
            `feature_maps`, one of shape (B, D_i, ceil(H / stride_i), ceil(W / stride_i)) for each of `out_features`.
        """
        outputs = self.simmim(pixel_values, output_hidden_states=True, output_attentions=output_attentions)
        size = (pixel_values.shape[2], pixel_values.shape[3])
        padded = whole(size, self.simmim.geometry.stride)
        feature_maps: Any = []
        for stage in self.stages:
            if stage.hidden_state is None:
                feature_maps.append(outputs.feature_map)
                continue
            stride = stage.state.stride
            grid_size = (padded[0] // stride, padded[1] // stride)
            tokens = as_map(stage.state, outputs.hidden_states[stage.hidden_state], grid_size)
            feature_map = self.norms[stage.name](tokens).permute(0, 3, 1, 2)
            rows, columns = whole(size, stride)
            feature_maps.append(feature_map[:, :, : rows // stride, : columns // stride])
        if self.pyramid is not None:
            feature_maps = self.pyramid(feature_maps, size)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return BackboneOutput(
            feature_maps=tuple(feature_maps),
            hidden_states=chosen_hidden_states(outputs.hidden_states, output_hidden_states),
            attentions=outputs.attentions,
        )


class FeaturePyramid(nn.Module):
    """Rescales four maps of the same stride to a quarter, a half, once and twice that stride.

    Args:
        config: The SimMIM config.
        chosen: The stages of the maps.

    Raises:
        ValueError: If there are not four maps, or the encoder is multi-scale already.

    Source: semantic_segmentation/backbone/beit.py of microsoft/unilm, which takes the layers without norms.
    """

    def __init__(self, config: Any, chosen: list[Stage]):
        super().__init__()
        name = config.encoder_config.model_type
        if not is_single_scale(config):
            raise ValueError(
                f"backbone_pyramid=True: the encoder {name!r} has maps of several strides already. Leave it out."
            )
        if len(chosen) != NUM_PYRAMID_MAPS:
            names = ", ".join(config.stage_names)
            remedy = f"Select {NUM_PYRAMID_MAPS} of them with out_features: {names}."
            if len(config.stage_names) < NUM_PYRAMID_MAPS:
                remedy = f"It only has {names}: use a deeper encoder."
            raise ValueError(
                f"backbone_pyramid=True needs {NUM_PYRAMID_MAPS} stages, but {len(chosen)} of the encoder {name!r} are"
                f" selected. {remedy}"
            )
        dim = chosen[0].state.channels
        self.stride = chosen[0].state.stride
        self.to_quarter = nn.Sequential(
            nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2),
            nn.BatchNorm2d(dim),
            nn.GELU(),
            nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2),
        )
        self.to_half = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)

    def forward(self, feature_maps: list[torch.Tensor], size: tuple[int, int]) -> list[torch.Tensor]:
        """Rescale four maps (B, D, h, w) of images of a size (H, W), and crop positions that are only padding."""
        first, second, third, fourth = feature_maps
        larger = []
        for feature_map, scale in ((self.to_quarter(first), 4), (self.to_half(second), 2)):
            rows, columns = (-(-side * scale // self.stride) for side in size)
            larger.append(feature_map[:, :, :rows, :columns])
        return [*larger, third, F.max_pool2d(fourth, kernel_size=2, stride=2, ceil_mode=True)]


def unused_parameters(config: Any, chosen: list[Stage]) -> list[str]:
    """Find the parameters of `SimMIMModel` that no map depends on by a run on the meta device; results are cached.

    Args:
        config: The SimMIM config.
        chosen: The stages of the maps, each with the index of a hidden state.

    Returns:
        Names of the parameters.
    """
    key = (cache_key(config.encoder_config), *(stage.name for stage in chosen))
    with MEASURING:
        if key not in _unused:
            plain = copy.deepcopy(config)
            plain.encoder_config._attn_implementation = "eager"
            with torch.inference_mode(False):
                _unused[key] = _measure_unused(plain, chosen)
        return _unused[key]


def _measure_unused(config: Any, chosen: list[Stage]) -> list[str]:
    with torch.device("meta"):
        model = SimMIMModel(config, use_mask_token=False).eval()
        pixel_values = torch.zeros(1, config.num_channels, *model.geometry.image_size, dtype=model.dtype)
    if model.geometry.route == "own":
        model.encoder.before_merging = True
    # On the CPU, as the other measurements.
    with torch.device("cpu"), torch.enable_grad():
        states = model(pixel_values, output_hidden_states=True).hidden_states
        torch.stack([states[stage.hidden_state].sum() for stage in chosen]).sum().backward()
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]
