"""SimMIM for transformers: masked image modeling with any vision encoder.

Models, config and image processor, which the Auto classes of transformers know as soon as this is imported, and the
commands as Python calls.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .calls import audit, compare, embed, finetune, pack, plan, predict, pretrain, probe, reconstruct, replay, segment
from .registration import register_when_imported

if TYPE_CHECKING:
    from .model import masking
    from .model.configuration_simmim import ENCODER_PRESETS, SimMIMConfig
    from .model.image_processing_simmim import SimMIMImageProcessor, SimMIMImageProcessorPil
    from .model.modeling_base import SimMIMModel, SimMIMModelOutput, SimMIMPreTrainedModel
    from .model.modeling_simmim import (
        SimMIMBackbone,
        SimMIMForImageClassification,
        SimMIMForMaskedImageModeling,
        SimMIMMaskedImageModelingOutput,
    )

__version__ = "0.1.0"

__all__ = [
    "ENCODER_PRESETS",
    "SimMIMBackbone",
    "SimMIMConfig",
    "SimMIMForImageClassification",
    "SimMIMForMaskedImageModeling",
    "SimMIMImageProcessor",
    "SimMIMImageProcessorPil",
    "SimMIMMaskedImageModelingOutput",
    "SimMIMModel",
    "SimMIMModelOutput",
    "SimMIMPreTrainedModel",
    "audit",
    "compare",
    "embed",
    "finetune",
    "masking",
    "pack",
    "plan",
    "predict",
    "pretrain",
    "probe",
    "reconstruct",
    "replay",
    "segment",
]

# Where the names are that need torch, which is imported with the first of them.
_MODULES = {
    "configuration_simmim": ("ENCODER_PRESETS", "SimMIMConfig"),
    "image_processing_simmim": ("SimMIMImageProcessor", "SimMIMImageProcessorPil"),
    "modeling_base": ("SimMIMModel", "SimMIMModelOutput", "SimMIMPreTrainedModel"),
    "modeling_simmim": (
        "SimMIMBackbone",
        "SimMIMForImageClassification",
        "SimMIMForMaskedImageModeling",
        "SimMIMMaskedImageModelingOutput",
    ),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "masking":
        return importlib.import_module(".model.masking", __name__)
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f".model.{_PLACES[name]}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_imported()
