"""SimMIM for transformers: masked image modeling with any vision encoder.

Models, config and image processor, which the Auto classes of transformers know as soon as this is imported, and the
commands as Python calls.
"""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
)
from transformers.utils import is_torchvision_available

from .calls import audit, compare, embed, finetune, pack, plan, predict, pretrain, probe, reconstruct, replay, segment
from .formats.readers import register_readers
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

register_readers()

_processors: dict[str, type] = {"pil": SimMIMImageProcessorPil}
if is_torchvision_available():
    _processors["torchvision"] = SimMIMImageProcessor

AutoConfig.register(SimMIMConfig.model_type, SimMIMConfig)
AutoModel.register(SimMIMConfig, SimMIMModel)
AutoBackbone.register(SimMIMConfig, SimMIMBackbone)
AutoModelForImageClassification.register(SimMIMConfig, SimMIMForImageClassification)
AutoModelForMaskedImageModeling.register(SimMIMConfig, SimMIMForMaskedImageModeling)
AutoImageProcessor.register(SimMIMConfig, image_processor_classes=_processors)
