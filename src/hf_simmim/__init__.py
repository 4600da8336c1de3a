"""SimMIM for transformers: masked image modelling with any vision encoder."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
)
from transformers.utils import is_torchvision_available

from . import masking
from .backbone import SimMIMBackbone
from .configuration_simmim import ENCODER_PRESETS, SimMIMConfig
from .image_processing_simmim import SimMIMImageProcessor, SimMIMImageProcessorPil
from .modeling_simmim import (
    SimMIMForImageClassification,
    SimMIMForMaskedImageModeling,
    SimMIMMaskedImageModelingOutput,
    SimMIMModel,
    SimMIMModelOutput,
    SimMIMPreTrainedModel,
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
    "masking",
]

_processors: dict[str, type] = {"pil": SimMIMImageProcessorPil}
if is_torchvision_available():
    _processors["torchvision"] = SimMIMImageProcessor

AutoConfig.register(SimMIMConfig.model_type, SimMIMConfig)
AutoModel.register(SimMIMConfig, SimMIMModel)
AutoBackbone.register(SimMIMConfig, SimMIMBackbone)
AutoModelForImageClassification.register(SimMIMConfig, SimMIMForImageClassification)
AutoModelForMaskedImageModeling.register(SimMIMConfig, SimMIMForMaskedImageModeling)
AutoImageProcessor.register(SimMIMConfig, image_processor_classes=_processors)
