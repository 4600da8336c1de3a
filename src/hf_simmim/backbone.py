"""The encoder as a backbone: maps of several strides for detection and segmentation."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.utils.generic import can_return_tuple

from .configuration_simmim import SimMIMConfig
from .encoder_geometry import MEASURING, settings_key, whole
from .hidden_states import Stage, as_map, is_single_scale, stages, usual_features
from .modeling_simmim import SimMIMModel
from .pretrained import SimMIMPreTrainedModel

NUM_PYRAMID_MAPS = 4

_unused: dict[tuple[str, ...], list[str]] = {}


class SimMIMBackbone(BackboneMixin, SimMIMPreTrainedModel):
    """The encoder without a mask token, returning the maps of its stages.

    The last stage is the encoder's feature map with its pre-trained final norm. Each other stage that is returned gets
    a LayerNorm of its own, a fresh one, unless the encoder is normalised by batches throughout. What no returned map
    depends on is frozen: DDP waits for every parameter that asks for a gradient.

    `AutoBackbone.from_pretrained` of transformers takes names on the Hub only. For folders use the one of this class.

    Args:
        config: The SimMIM config; `out_features` or `out_indices` name the stages, `backbone_pyramid` asks for maps
            of four strides of an encoder of one. Stages that are not named are set in it.

    Raises:
        ValueError: If the encoder returns no hidden states, or the pyramid does not fit it.

    Source: norms as in SwinTransformer/Swin-Transformer-Semantic-Segmentation, which has one for each stage.
    """

    # Of a pre-trained model.
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        *SimMIMPreTrainedModel._keys_to_ignore_on_load_unexpected,
        r"^(head|fusion)\.",
        r"mask_token$",
    ]

    def __init__(self, config: SimMIMConfig):
        if config.out_features is None:
            config.out_features = usual_features(config)
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
        """As in torch, and freeze again: loading makes all trainable, in a model around this one too, and ends here."""
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
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BackboneOutput:
        """Encode images.

        Args:
            pixel_values: Normalised images of shape (B, C, H, W).
            output_hidden_states: Whether to return the encoder's hidden states; those of our Swin are the patch
                embedding and the output of each stage before patch merging.
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
            hidden_states=outputs.hidden_states if output_hidden_states else None,
            attentions=outputs.attentions,
        )


class FeaturePyramid(nn.Module):
    """Brings four maps of one stride to a quarter, a half, once and twice that stride.

    Args:
        config: The SimMIM config.
        chosen: The stages of the maps.

    Raises:
        ValueError: If the maps are not four, or have several strides already.

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
            remedy = f"Name {NUM_PYRAMID_MAPS} with out_features, of: {names}."
            if len(config.stage_names) < NUM_PYRAMID_MAPS:
                remedy = f"It has no more than {names}: use a deeper encoder."
            raise ValueError(
                f"backbone_pyramid=True takes {NUM_PYRAMID_MAPS} stages, and {len(chosen)} are named of the encoder"
                f" {name!r}. {remedy}"
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
        """Four maps (B, D, h, w) of images of a size (H, W), each at its stride, without what is padding only."""
        first, second, third, fourth = feature_maps
        larger = []
        for feature_map, scale in ((self.to_quarter(first), 4), (self.to_half(second), 2)):
            rows, columns = (-(-side * scale // self.stride) for side in size)
            larger.append(feature_map[:, :, :rows, :columns])
        return [*larger, third, F.max_pool2d(fourth, kernel_size=2, stride=2, ceil_mode=True)]


def unused_parameters(config: Any, chosen: list[Stage]) -> list[str]:
    """Names of the parameters of `SimMIMModel` that no map depends on, by a run without memory; measured once.

    Args:
        config: The SimMIM config.
        chosen: The stages of the maps, each with the index of a hidden state.

    Returns:
        The names.
    """
    key = (settings_key(config.encoder_config), *(stage.name for stage in chosen))
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
