"""Options of pre-training that choose the model, the masks and the objective."""

from dataclasses import dataclass, field
from typing import Any

from ...model.configuration_simmim import TARGETS
from ...model.heads import HEADS
from ...model.losses import LOSS_REGIONS, LOSSES
from ...model.masking import MASK_STRATEGIES, ratio_range
from ...model.visible import ENCODE
from ...planning.automatic import OBJECTIVE_OPTIONS
from ...training.arguments import json_object
from .models import EncoderArguments

ENCODE_OPTIONS = ("encode", "decoder_options")
# Fields of a config that define the pre-training objective.
COMPONENT_OPTIONS = (*OBJECTIVE_OPTIONS, *ENCODE_OPTIONS)
# Placeholder for color clusters, which are not negative, until they are fitted to the images.
UNFITTED = [[-1.0], [-1.0]]


@dataclass
class PretrainingModelArguments(EncoderArguments):
    """The model, and the masking of images."""

    _argument_group_name = "model and masks"

    mask_strategy: str = field(
        default="random", metadata={"help": "Masking strategy.", "choices": list(MASK_STRATEGIES)}
    )
    mask_patch_size: int = field(default=32, metadata={"help": "Side of mask patches in pixels."})
    mask_ratio: list[float] = field(
        default_factory=lambda: [0.6],
        metadata={
            "help": "Share of the image to mask, 0 to 1. With two values, such as 0.4 0.7, it is drawn between them for"
            " every image."
        },
    )
    head: str | None = field(
        default=None, metadata={"help": "Prediction head (linear if unset).", "choices": list(HEADS)}
    )
    head_options: dict | str | None = field(
        default=None, metadata={"help": 'Options of the head, as JSON, such as {"size": "base"} for inverse_swin.'}
    )
    head_inputs: list[int] | None = field(
        default=None,
        metadata={"help": "Hidden states of the encoder to fuse as input of the head (its output alone if unset)."},
    )
    target: str | None = field(
        default=None,
        metadata={"help": "Prediction target (if unset, hog for few images, else rgb).", "choices": list(TARGETS)},
    )
    target_options: dict | str | None = field(
        default=None, metadata={"help": 'Options of the target, as JSON, such as {"num_bins": 256} for color_bins.'}
    )
    num_clusters: int = field(
        default=512, metadata={"help": "Number of colors to fit to the images for --target color_clusters."}
    )
    prediction_stride: int | None = field(
        default=None, metadata={"help": "Stride of the prediction in pixels (the target's if unset)."}
    )
    loss: str | None = field(
        default=None,
        metadata={"help": "Loss (the default of the target if unset).", "choices": list(LOSSES)},
    )
    loss_options: dict | str | None = field(
        default=None, metadata={"help": 'Options of the loss, as JSON, such as {"beta": 0.5} for smooth_l1.'}
    )
    loss_region: str | None = field(
        default=None, metadata={"help": "Pixels of the loss (masked if unset).", "choices": list(LOSS_REGIONS)}
    )
    encode: str | None = field(
        default=None,
        metadata={
            "help": "Patches that the encoder sees (all if unset): all, with mask tokens, or visible, with a light"
            " decoder behind it, for Swin and plain ViTs; then a --mask_ratio of 0.75 pays.",
            "choices": list(ENCODE),
        },
    )
    decoder_options: dict | str | None = field(
        default=None,
        metadata={"help": 'Options of the decoder of --encode visible, as JSON, such as {"num_layers": 2}.'},
    )

    def __post_init__(self):
        if len(self.mask_ratio) == 1:
            self.mask_ratio = self.mask_ratio[0]  # type: ignore[assignment]
        ratio_range(self.mask_ratio)
        for name in ("head_options", "target_options", "loss_options", "decoder_options"):
            setattr(self, name, json_object(name, getattr(self, name)))

    def components(self) -> dict[str, Any]:
        """Fields of `SimMIMConfig` that define the objective, if their options are set."""
        values = {name: getattr(self, name) for name in COMPONENT_OPTIONS if getattr(self, name) is not None}
        if self.target == "color_clusters":
            values["target_options"] = {"centers": UNFITTED, **values.get("target_options", {})}
        return values
