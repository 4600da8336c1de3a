"""Options of pre-training that continues from weights, and their defaults for weights of another model."""

import math
from dataclasses import dataclass, field
from typing import Any

from ...checkpoints.loading import load_config
from ...model.configuration_simmim import SimMIMConfig
from ...model.modeling_simmim import SimMIMForMaskedImageModeling
from ...planning.automatic import Automatic
from ...planning.sizing import Choice
from ...training.adapters.lora import AdapterTrainer, add_adapters
from ...training.optimization import freeze_all_but_last
from ...training.trainers import SimMIMTrainer

# For weights that were not trained on masked images: the share of the learning rate that is otherwise used, and the
# factor from each layer to the one below. The decay is that of fine-tuning Swin-B after 800 epochs, in the paper.
RATE_SHARE = 0.1
LAYER_DECAY = 0.8
# Ends of the names of classes whose weights masked images trained, and of those that labels trained.
MASKED = "ForMaskedImageModeling"
LABELED = ("Classification", "Segmentation")


@dataclass
class ContinuingArguments:
    """How much of the weights of --checkpoint may change."""

    layer_decay: float | None = field(
        default=None,
        metadata={
            "help": "Layer-wise decay of the learning rate, 1 for none. If unset, 1; but 0.8, with a tenth of the"
            " learning rate, where --checkpoint is a model that masked images did not train."
        },
    )
    new_rate: float | None = field(
        default=None,
        metadata={
            "help": "Factor of the learning rate for the head and the mask token. If unset, 1; but 10, which makes it"
            " that of a training from scratch, where --checkpoint lowers the learning rate to a tenth."
        },
    )
    train_layers: int | None = field(
        default=None,
        metadata={
            "help": "Train only this many last blocks of the encoder, the mask token and the head (all if unset)."
        },
    )
    lora: int | None = field(
        default=None,
        metadata={
            "help": "Freeze the encoder and train adapters of this rank in its linear layers (none if unset). They are"
            " merged into the saved weights. Needs peft."
        },
    )

    def __post_init__(self):
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay} must be in (0, 1], such as 0.8, or 1 for none.")
        if self.new_rate is not None and not 0 < self.new_rate < math.inf:
            raise ValueError(f"new_rate={self.new_rate} must be above 0, such as 10, or 1 for the rate of all.")
        if self.train_layers is not None and self.train_layers < 1:
            raise ValueError(f"train_layers={self.train_layers} must be 1 or more, or unset to train all.")
        if self.lora is not None and self.lora < 1:
            raise ValueError(f"lora={self.lora} must be a rank of 1 or more, such as 8.")
        if self.lora is not None and self.train_layers is not None:
            raise ValueError(f"lora={self.lora} and train_layers={self.train_layers} exclude each other. Name one.")
        super().__post_init__()  # type: ignore[misc]


def limit_training(model: SimMIMForMaskedImageModeling, arguments: Any) -> type[SimMIMTrainer]:
    """Freeze what is not to be trained, and add adapters.

    Args:
        model: The model, which is changed in place.
        arguments: Training arguments with `ContinuingArguments`.

    Returns:
        The trainer's class.

    Raises:
        ValueError: If the encoder does not have what is to be trained, or peft is not installed.
    """
    if arguments.train_layers is not None:
        freeze_all_but_last(model, arguments.train_layers)
    if arguments.lora is None:
        return SimMIMTrainer
    add_adapters(model, arguments.lora)
    return AdapterTrainer


def is_trained_otherwise(checkpoint: str) -> bool:
    """Whether the weights of a checkpoint were trained by something else than masked images.

    Args:
        checkpoint: Folder or name on the Hub.

    Returns:
        Whether they were. An earlier pre-training, of this package or the authors', is to continue as it was.
    """
    config = load_config(checkpoint)
    names = list(getattr(config, "architectures", None) or ())
    if any(name.endswith(MASKED) for name in names):
        return False
    is_own = config.model_type == SimMIMConfig.model_type
    return not is_own or any(kind in name for name in names for kind in LABELED)


def settle_rates(
    arguments: Any, checkpoint: str | None, automatic: Automatic, before: dict[str, Any], resuming: bool
) -> None:
    """Set the learning rate and its decay where nobody did: low ones for weights of another model.

    Args:
        arguments: Training arguments with `ContinuingArguments`.
        checkpoint: Weights that the training starts from, or None.
        automatic: What is chosen, which the plan shows.
        before: Settings of the run that is resumed, which it keeps.
        resuming: Whether there is one.
    """
    # Without a command line nobody can tell which options were set.
    is_open = arguments.given is not None and not arguments.given & {"learning_rate", "base_learning_rate"}
    if resuming:
        if arguments.layer_decay is None:
            # Older versions had none.
            arguments.layer_decay = before.get("layer_decay") or 1.0
        if arguments.new_rate is None:
            arguments.new_rate = before.get("new_rate") or 1.0
        if is_open and "learning_rate" in automatic.before:
            automatic.set(arguments, "learning_rate", Choice(arguments.learning_rate, ""))
        return
    # Adapters leave the weights as they are.
    is_low = checkpoint is not None and arguments.lora is None and is_trained_otherwise(checkpoint)
    if arguments.layer_decay is None:
        arguments.layer_decay = 1.0
        if is_low:
            arguments.layer_decay = LAYER_DECAY
            automatic.choices["layer_decay"] = Choice(LAYER_DECAY, "masked images did not train these weights")
    if arguments.new_rate is None:
        arguments.new_rate = 1.0
        if is_low and is_open:
            arguments.new_rate = 1 / RATE_SHARE
            automatic.choices["new_rate"] = Choice(arguments.new_rate, "head and mask token begin from nothing")
    if is_low and is_open:
        rate = float(f"{RATE_SHARE * arguments.learning_rate:.3g}")
        arguments.learning_rate = rate
        automatic.choices["learning_rate"] = Choice(rate, f"{RATE_SHARE:g} of the usual one, for the same reason")
