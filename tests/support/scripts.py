"""The example scripts as modules."""

import importlib
import sys
from types import ModuleType

from paths import ROOT


def load_script(name: str) -> ModuleType:
    """A script of `examples/`, which finds the others as it does when it is run."""
    folder = str(ROOT / "examples")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def command_line(settings: dict) -> list[str]:
    """Options by name; what is None is left out."""
    return [part for key, value in settings.items() if value is not None for part in (f"--{key}", str(value))]
