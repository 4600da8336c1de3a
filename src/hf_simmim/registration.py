"""Makes transformers' Auto classes know the models, and all reading know the file formats, without importing torch.

Torch takes seconds to import, so `import hf_simmim` only sets hooks. As soon as transformers' tables of configs and
image processors are there, they get stand-ins for our classes, which import the real ones when they are looked up; so
do, with our config, the tables of models. Ours cannot be imported at that moment: the tables are made in the middle of
modules that ours need. Real classes take the place of stand-ins as soon as their modules are complete.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from wrapt import LazyObjectProxy, register_post_import_hook

AUTO = "transformers.models.auto"
MODEL = f"{__package__}.model"
CONFIG, MODELING = f"{MODEL}.configuration_simmim", f"{MODEL}.modeling_simmim"
PROCESSING, READERS = f"{MODEL}.image_processing_simmim", f"{__package__}.formats.readers"
MODEL_TYPE = "simmim"
MODELS = {
    "MODEL_MAPPING": "SimMIMModel",
    "MODEL_FOR_BACKBONE_MAPPING": "SimMIMBackbone",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING": "SimMIMForImageClassification",
    "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING": "SimMIMForMaskedImageModeling",
}


def _find(module: str, name: str) -> type:
    found: type = getattr(importlib.import_module(module), name)
    return found


class _StandIn(LazyObjectProxy):
    """A class that is imported when anything is asked of it.

    Args:
        module: Its module.
        name: Its name.
    """

    def __init__(self, module: str, name: str) -> None:
        super().__init__(lambda: _find(module, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Where the tables are pickled, as the class itself would be.
        return _find, (self.__wrapped__.__module__, self.__wrapped__.__name__)


def _stand_ins_of_processors() -> dict[str, _StandIn]:
    from transformers.utils import is_torchvision_available

    names = {"pil": "SimMIMImageProcessorPil"}
    if is_torchvision_available():
        names["torchvision"] = "SimMIMImageProcessor"
    return {backend: _StandIn(PROCESSING, name) for backend, name in names.items()}


def _announce_config(auto: ModuleType) -> None:
    auto.CONFIG_MAPPING.register(MODEL_TYPE, _StandIn(CONFIG, "SimMIMConfig"))


def _announce_processors(auto: ModuleType) -> None:
    # By the name of the config, as its class would be imported; processors are looked up by their own names.
    auto.IMAGE_PROCESSOR_MAPPING.register("SimMIMConfig", _stand_ins_of_processors())


def _register_config(ours: ModuleType) -> None:
    auto = importlib.import_module("transformers")
    auto.CONFIG_MAPPING.register(MODEL_TYPE, ours.SimMIMConfig)
    auto.IMAGE_PROCESSOR_MAPPING.register(ours.SimMIMConfig, _stand_ins_of_processors())
    for mapping, name in MODELS.items():
        getattr(auto, mapping).register(ours.SimMIMConfig, _StandIn(MODELING, name))


def _register_models(ours: ModuleType) -> None:
    auto = importlib.import_module("transformers")
    for mapping, name in MODELS.items():
        getattr(auto, mapping).register(ours.SimMIMConfig, getattr(ours, name))


HOOKS: dict[str, Callable[[ModuleType], object]] = {
    f"{AUTO}.configuration_auto": _announce_config,
    f"{AUTO}.image_processing_auto": _announce_processors,
    CONFIG: _register_config,
    MODELING: _register_models,
    # What reads images knows all formats. These are packages, which are complete before any module in them is begun, so
    # that readers import what they need in their own order.
    MODEL: lambda model: importlib.import_module(READERS),
    f"{__package__}.formats": lambda formats: importlib.import_module(READERS),
    READERS: lambda readers: readers.register_readers(),
}


def register_when_imported() -> None:
    """Set the hooks; those of modules that are there already run at once."""
    for name, hook in HOOKS.items():
        register_post_import_hook(hook, name)
