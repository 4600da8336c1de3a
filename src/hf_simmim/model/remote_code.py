"""Saves the code of a checkpoint's classes with it, and the `auto_map` that says which Auto class loads which.

With them `AutoModel.from_pretrained(..., trust_remote_code=True)` works where this package is not installed.
"""

import contextlib
import filecmp
import os
import shutil
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

# transformers copies the files that such lines name, recursively. It reads them as text, so lines in a string count
# without importing anything. Whichever class is loaded, all of the code comes with it and can be saved again.
TRAVELING_CODE = """
from .modeling_simmim import SimMIMForMaskedImageModeling
from .image_processing_simmim import SimMIMImageProcessor
"""

# For each settings file, the Auto classes that read it, and the module and class that they load; a processor has one
# class for each backend.
AUTO_MAPS: dict[str, dict[str, Any]] = {
    CONFIG_NAME: {
        "AutoConfig": "configuration_simmim.SimMIMConfig",
        "AutoModel": "modeling_simmim.SimMIMModel",
        "AutoModelForMaskedImageModeling": "modeling_simmim.SimMIMForMaskedImageModeling",
        "AutoModelForImageClassification": "modeling_simmim.SimMIMForImageClassification",
        "AutoBackbone": "modeling_simmim.SimMIMBackbone",
    },
    IMAGE_PROCESSOR_NAME: {
        "AutoImageProcessor": {
            "torchvision": "image_processing_simmim.SimMIMImageProcessor",
            "pil": "image_processing_simmim.SimMIMImageProcessorPil",
        }
    },
}


# Whether the code is saved.
_IS_CARRIED: ContextVar[bool] = ContextVar("_IS_CARRIED", default=True)


@contextlib.contextmanager
def without_code() -> Iterator[None]:
    """Save neither code nor `auto_map` within: in folders of a training, which are loaded where the package is."""
    token = _IS_CARRIED.set(False)
    try:
        yield
    finally:
        _IS_CARRIED.reset(token)


class CarriesCode:
    """Mixin of the config and the processors that saves the code next to a checkpoint's settings file."""

    def to_json_file(self, json_file_path: str | os.PathLike, *args, **kwargs) -> None:
        """Write the settings; if the file has its name in a checkpoint, with `auto_map`, and the code next to it.

        Everything that saves or pushes calls this method, after recording which files the folder holds.

        Args:
            json_file_path: File to write.
            *args: Passed to the base class.
            **kwargs: Passed to the base class.
        """
        path = Path(json_file_path)
        if path.name in AUTO_MAPS:
            self.auto_map = _whole_auto_map(path, getattr(self, "auto_map", None) or {}, _IS_CARRIED.get())
            if not self.auto_map:
                del self.auto_map
            if _IS_CARRIED.get():
                save_code(path.parent)
        super().to_json_file(json_file_path, *args, **kwargs)  # type: ignore[misc]


def save_code(save_directory: str | os.PathLike) -> None:
    """Copy the code that a checkpoint needs into its folder.

    Args:
        save_directory: Folder of the checkpoint.
    """
    for source in code_files():
        target = Path(save_directory, source.name)
        if target.is_file() and filecmp.cmp(source, target, shallow=False):
            # Not rewritten, because it may be uploading, but touched: `push_to_hub` uploads files that changed.
            os.utime(target)
        else:
            shutil.copyfile(source, target)


@cache
def code_files() -> list[Path]:
    """The files of code that a checkpoint carries, this one included."""
    return sorted({Path(__file__), *map(Path, get_relative_import_files(__file__))})


def _whole_auto_map(path: Path, given: dict[str, Any], with_ours: bool = True) -> dict[str, Any]:
    """Our entries, replaced by those of other classes that exist, such as a subclass that is saved with its code.

    Without ours where our code is not saved.
    """
    own = AUTO_MAPS[path.name]
    classes = {reference.split(".")[1] for entry in own.values() for reference in _references(entry)}
    files = {file.name for file in code_files()}

    def is_found(reference: str | None) -> bool:
        repository, _, name = (reference or "").rpartition("--")
        module, _, class_name = name.partition(".")
        # In any of our files, because transformers names the one in which a class is defined.
        is_ours = f"{module}.py" in files and class_name in classes
        return not is_ours and (bool(repository) or path.with_name(f"{module}.py").is_file())

    others = {name: entry for name, entry in given.items() if all(map(is_found, _references(entry)))}
    return (own if with_ours else {}) | others


def _references(entry: Any) -> list[Any]:
    """References of an entry, "repository--module.class": one, one for each backend, or a slow and a fast one."""
    if isinstance(entry, dict):
        return list(entry.values())
    return list(entry) if isinstance(entry, (list, tuple)) else [entry]
