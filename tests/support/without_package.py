"""What the Auto classes make of checkpoints; run by test_remote_code.py where there is nothing but transformers.

python without_package.py image.png results.pt folder checkpoint org/name ...
"""

import importlib
import sys
from pathlib import Path
from typing import Any

# Nothing of what the package needs and plain transformers, torch and Pillow do not.
BLOCKED = (
    "hf_simmim",
    "accelerate",
    "datasets",
    "evaluate",
    "imagecodecs",
    "matplotlib",
    "sklearn",
    "tifffile",
    "timm",
)


class Without:
    """A finder of modules that finds none of the blocked packages.

    Args:
        finder: The finder that is asked for the others.
    """

    def __init__(self, finder: Any):
        self.finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.split(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)


def outputs(name: str, image: str, again: Path | None = None) -> dict[str, Any]:
    """What each Auto class computes with a checkpoint.

    Args:
        name: Folder, or name on the Hub.
        image: Path of a picture.
        again: Folder to save everything to again, each class to a folder of its own.

    Returns:
        By Auto class, settings or tensors; and the name of each loaded class.
    """
    import torch
    import transformers

    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    classes: dict[str, str] = {}

    def load(auto_class: str, **kwargs: Any) -> Any:
        torch.manual_seed(0)  # heads that the checkpoint does not have
        loaded: Any = _from_pretrained(getattr(transformers, auto_class), name, **kwargs)
        classes[auto_class] = f"{type(loaded).__module__}.{type(loaded).__name__}"
        if again is not None:
            loaded.save_pretrained(again / auto_class)
        return loaded

    processor = load("AutoImageProcessor")
    inputs = processor(image, do_mask=True, seed=0, return_tensors="pt")
    results["AutoImageProcessor"] = dict(inputs)
    pixel_values = inputs["pixel_values"]
    config = load("AutoConfig")
    results["AutoConfig"] = config.to_json_string()
    windows = {} if config.window_size is None else {"window_size": 6}
    with torch.no_grad():
        results["AutoModel"] = load("AutoModel")(pixel_values).to_tuple()
        larger = torch.nn.functional.interpolate(pixel_values, scale_factor=1.5)
        results["AutoModel, other size"] = load("AutoModel", image_size=48, **windows)(larger).pooler_output
        outputs = load("AutoModelForMaskedImageModeling")(**inputs)
        results["AutoModelForMaskedImageModeling"] = (outputs.loss, outputs.reconstruction)
        results["AutoModelForImageClassification"] = load("AutoModelForImageClassification")(pixel_values).logits
        results["AutoBackbone"] = load("AutoBackbone")(pixel_values).feature_maps
    torch.manual_seed(0)
    extract = transformers.pipeline("image-feature-extraction", model=name, device="cpu", trust_remote_code=True)
    classify = transformers.pipeline("image-classification", model=name, device="cpu", trust_remote_code=True)
    # Each twice, from other random states: nothing in them is random.
    for suffix in ("", ", again"):
        results[f"features{suffix}"] = extract(image, return_tensors=True)
        results[f"pooled{suffix}"] = extract(image, return_tensors=True, pool=True)
        results[f"classes of the image{suffix}"] = {entry["label"]: entry["score"] for entry in classify(image)}
        torch.manual_seed(1)
    return results | {"classes": classes}


def _from_pretrained(auto_class: Any, name: str, **kwargs: Any) -> Any:
    if auto_class.__name__ != "AutoBackbone" or not Path(name).is_dir():
        return auto_class.from_pretrained(name, trust_remote_code=True, **kwargs)
    # transformers' AutoBackbone takes names on the Hub only. This is how to have another one of its Auto classes.
    from transformers import AutoModel
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    if "hf_simmim" in sys.modules:
        return sys.modules["hf_simmim"].SimMIMBackbone.from_pretrained(name)
    config = AutoModel.from_pretrained(name, trust_remote_code=True).config
    return get_class_from_dynamic_module(config.auto_map["AutoBackbone"], name).from_pretrained(name)


def main(image: str, path: str, again: str, *names: str) -> None:
    """Write the outputs of checkpoints, and save the first again to again0, the second to again1, and so on."""
    import torch

    results = {name: outputs(name, image, Path(again, f"again{index}")) for index, name in enumerate(names)}
    torch.save(results, path)


if __name__ == "__main__":
    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
    # `python -P` leaves out the folder of this file.
    sys.path.append(str(Path(__file__).parent))
    importlib.import_module("torchvision_import").import_torchvision()
    main(*sys.argv[1:])
