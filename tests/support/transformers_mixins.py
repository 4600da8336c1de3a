"""transformers' own common tests, loaded from where `fetch_transformers_tests.py` puts them.

`SKIP_REASON` is None when they are there. Otherwise it says what to do, and the names below it are None.
"""

import importlib
import importlib.util
import sys
import unittest.mock
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import skimage.data
import transformers

FOLDER = Path(sys.prefix, "share", "transformers-tests", transformers.__version__, "tests")
PACKAGE = "transformers_common_tests"

SKIP_REASON: str | None = None
ConfigTester: Any = None
ImageProcessingTester: Any = None
ImageProcessingTestMixin: Any = None
ModelTesterMixin: Any = None
floats_tensor: Any = None


def load(name: str) -> ModuleType:
    """Import one of transformers' test modules.

    Args:
        name: Its name without `.py`.

    Returns:
        The module.
    """
    if PACKAGE not in sys.modules:
        spec = importlib.util.spec_from_loader(PACKAGE, loader=None, is_package=True)
        spec.submodule_search_locations = [str(FOLDER)]
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
        for stand_in, contents in stand_ins().items():
            sys.modules[stand_in] = ModuleType(stand_in)
            vars(sys.modules[stand_in]).update(contents)
    # The configuration tests import "transformers" from the folder they are in, which the archive leaves no way to do.
    with (
        warnings.catch_warnings(action="ignore", category=pytest.PytestUnknownMarkWarning),
        unittest.mock.patch("transformers.utils.direct_transformers_import", return_value=transformers),
        unittest.mock.patch.object(sys, "path", list(sys.path)),
    ):
        return importlib.import_module(f"{PACKAGE}.{name}")


def stand_ins() -> dict[str, dict[str, Any]]:
    """What the test modules import from files that the source distribution leaves out, by module."""
    return {
        f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
        f"{PACKAGE}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
        # Only asked for by configs without sub-configs.
        f"{PACKAGE}.utils.test_configuration_utils": {"config_common_kwargs": {}},
        # The tests want any photo; this one needs no network.
        "fetch_hub_objects_for_ci": {
            "url_to_local_path": lambda url: str(Path(skimage.data.__file__).with_name("astronaut.png"))
        },
    }


def add_model(model_type: str, base_class: str, masked_image_modeling_class: str) -> None:
    """Tell the model tests what kind of model each class is, which they look up by name in transformers' own lists.

    Args:
        model_type: The config's model type.
        base_class: Name of the class without a head.
        masked_image_modeling_class: Name of the class for masked image modeling.
    """
    module = load("test_modeling_common")
    for mapping, name in (
        ("MODEL_MAPPING_NAMES", base_class),
        ("MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES", masked_image_modeling_class),
    ):
        # A copy, because the auto classes read the original.
        setattr(module, mapping, {**getattr(module, mapping), model_type: name})


if FOLDER.is_dir():
    ConfigTester = load("test_configuration_common").ConfigTester
    ImageProcessingTester = load("test_image_processing_common").ImageProcessingTester
    ImageProcessingTestMixin = load("test_image_processing_common").ImageProcessingTestMixin
    ModelTesterMixin = load("test_modeling_common").ModelTesterMixin
    floats_tensor = load("test_modeling_common").floats_tensor
else:
    SKIP_REASON = (
        f"transformers' own tests of {transformers.__version__} are not here."
        " Run `python tests/support/fetch_transformers_tests.py`, which needs a package index."
    )
