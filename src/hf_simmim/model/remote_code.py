"""What a checkpoint carries besides weights and settings: the code of its classes, and which Auto class loads which.

With it `AutoModel.from_pretrained(..., trust_remote_code=True)` works where this package is not installed.
"""

import filecmp
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME

# transformers copies the files that such lines name, and those that they name in turn. It reads them as text: in a
# string they count and import nothing. So whichever class is loaded, all of the code comes with it and can be saved
# again.
TRAVELING_CODE = """
from .modeling_simmim import SimMIMForMaskedImageModeling
from .image_processing_simmim import SimMIMImageProcessor
"""

# For each file of settings, the Auto classes that read it and what they load: module and class, of a processor one for
# each backend.
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


class CarriesCode:
    """Mixin of a config and of processors: a checkpoint's file of settings gets the code beside it."""

    def to_json_file(self, json_file_path: str | os.PathLike, *args, **kwargs) -> None:
        """Write the settings; under the name that they have in a checkpoint with `auto_map`, and the code beside them.

        Here, for everything that saves or pushes comes through here, and notes before what the folder holds.

        Args:
            json_file_path: File to write.
            *args: Passed on.
            **kwargs: Passed on.
        """
        path = Path(json_file_path)
        if path.name in AUTO_MAPS:
            self.auto_map = _whole_auto_map(path, getattr(self, "auto_map", None) or {})
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
            # Left alone, as it may be being pushed, but new: `push_to_hub` takes what was changed meanwhile.
            os.utime(target)
        else:
            shutil.copyfile(source, target)


@cache
def code_files() -> list[Path]:
    """The files of code that a checkpoint carries, this one included."""
    return sorted({Path(__file__), *map(Path, get_relative_import_files(__file__))})


def _whole_auto_map(path: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Our entries, but for those of other classes that can be found, such as a subclass that is saved with its code."""
    own = AUTO_MAPS[path.name]
    classes = {reference.split(".")[1] for entry in own.values() for reference in _references(entry)}
    files = {file.name for file in code_files()}

    def is_found(reference: str | None) -> bool:
        repository, _, name = (reference or "").rpartition("--")
        module, _, class_name = name.partition(".")
        # Whichever of our files names it: transformers writes the one in which a class is defined.
        is_ours = f"{module}.py" in files and class_name in classes
        return not is_ours and (bool(repository) or path.with_name(f"{module}.py").is_file())

    return own | {name: entry for name, entry in given.items() if all(map(is_found, _references(entry)))}


def _references(entry: Any) -> list[Any]:
    """Module and class, with the repository if it is another: one, or one for each backend, or a slow and a fast."""
    if isinstance(entry, dict):
        return list(entry.values())
    return list(entry) if isinstance(entry, (list, tuple)) else [entry]
