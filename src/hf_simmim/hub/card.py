"""Model cards: rendering the template, tables of facts, and metadata for the Hub."""

import importlib.metadata
import json
import math
import platform
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import logging

from ..data.reading import describe
from ..data.sampling import sample_generator
from ..model.masking import MaskStrategy, average_distance
from .provenance import ImageSource, code_version, last_part, shown_path

SIMMIM = """@inproceedings{xie2021simmim,
  title={SimMIM: A Simple Framework for Masked Image Modeling},
  author={Xie, Zhenda and Zhang, Zheng and Cao, Yue and Lin, Yutong and Bao, Jianmin and Yao, Zhuliang and Dai, Qi
    and Hu, Han},
  booktitle={International Conference on Computer Vision and Pattern Recognition (CVPR)},
  year={2022}
}"""
SWIN = """@inproceedings{liu2021swin,
  title={Swin Transformer: Hierarchical Vision Transformer using Shifted Windows},
  author={Liu, Ze and Lin, Yutong and Cao, Yue and Hu, Han and Wei, Yixuan and Zhang, Zheng and Lin, Stephen
    and Guo, Baining},
  booktitle={IEEE/CVF International Conference on Computer Vision (ICCV)},
  year={2021}
}"""
SWINV2 = """@inproceedings{liu2021swinv2,
  title={Swin Transformer V2: Scaling Up Capacity and Resolution},
  author={Liu, Ze and Hu, Han and Lin, Yutong and Yao, Zhuliang and Xie, Zhenda and Wei, Yixuan and Ning, Jia
    and Cao, Yue and Zhang, Zheng and Dong, Li and Wei, Furu and Guo, Baining},
  booktitle={International Conference on Computer Vision and Pattern Recognition (CVPR)},
  year={2022}
}"""
UPERNET = """@inproceedings{xiao2018unified,
  title={Unified Perceptual Parsing for Scene Understanding},
  author={Xiao, Tete and Liu, Yingcheng and Zhou, Bolei and Jiang, Yuning and Sun, Jian},
  booktitle={European Conference on Computer Vision (ECCV)},
  year={2018}
}"""
MMPRETRAIN = """@misc{2023mmpretrain,
  title={OpenMMLab's Pre-training Toolbox and Benchmark},
  author={MMPreTrain Contributors},
  howpublished={\\url{https://github.com/open-mmlab/mmpretrain}},
  year={2023}
}"""

ARCHITECTURES = {"swin": SWIN, "swinv2": SWINV2}


logger = logging.get_logger(__name__)

MAX_LISTED_CLASSES = 50


def template_path() -> Path:
    """Path of the template: in the installed package, or at the root of a checkout."""
    package = Path(__file__).parent
    installed = package / "model_card_template.md"
    return installed if installed.exists() else package.parents[2] / "model_card_template.md"


def render_card(kind: str, card_data: ModelCardData, **values: Any) -> ModelCard:
    """Render the template.

    Args:
        kind: "pretrained", "converted", "classifier" or "segmentation".
        card_data: Metadata of the card.
        **values: Variables of the template; those that a kind does not use may be left out.

    Returns:
        The card, without empty rows and repeated blank lines; `save` writes it.
    """
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"cell": _cell, "line": _line}
    template = environment.from_string(template_path().read_text(encoding="utf-8"))
    text = template.render(kind=kind, card_data=card_data.to_yaml(), license=card_data.license, **values)
    return ModelCard(re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n")


def card_metadata(
    title: str,
    tags: Sequence[str],
    pipeline_tag: str = "image-feature-extraction",
    images: ImageSource | None = None,
    base_model: str | None = None,
    weights_license: str | None = None,
    eval_results: Sequence[EvalResult] = (),
    **others: Any,
) -> ModelCardData:
    """Build the metadata of a card; unknown entries are left out.

    Args:
        title: Name of the model.
        tags: Tags of the model.
        pipeline_tag: Task of the model, as the Hub names it.
        images: Training images.
        base_model: Name on the Hub of the model that training started from.
        weights_license: License of the weights, as the Hub names it.
        eval_results: Evaluation results.
        **others: Further entries; those that are None are left out.

    Returns:
        The metadata.
    """
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        license=weights_license,
        license_name=weights_license if weights_license == "other" else None,
        tags=list(tags),
        base_model=base_model,
        datasets=[images.hub_id] if images is not None and images.hub_id else None,
        # Only used as the name of the evaluation results.
        model_name=title if eval_results else None,
        eval_results=list(eval_results) or None,
        **{key: value for key, value in others.items() if value is not None},
    )


def check_license(arguments: Any) -> None:
    """Ask the Hub before training whether it accepts the license of the weights.

    Args:
        arguments: `SimMIMTrainingArguments`.

    Raises:
        ValueError: If the Hub can be reached and rejects the license.
    """
    if not arguments.push_to_hub or arguments.hub_license is None:
        return
    try:
        ModelCard(f"---\n{card_metadata('', [], weights_license=arguments.hub_license).to_yaml()}\n---\n").validate()
    except ValueError as error:
        message = str(error).strip()
        raise ValueError(
            f"The Hub rejects hub_license={arguments.hub_license!r}, so every push would fail: {message}"
        ) from error
    except Exception as error:  # every HTTP client raises its own types
        logger.warning(f"Could not check hub_license={arguments.hub_license!r} with the Hub ({describe(error)}).")


def result_entry(
    source: ImageSource, name: str, value: float, metric: str = "accuracy", task: str = "image-classification"
) -> EvalResult:
    """Entry of the model index: one metric of a task on a data set."""
    return EvalResult(
        task_type=task,
        task_name=task.replace("-", " ").capitalize(),
        dataset_type=source.hub_id or source.kind,
        dataset_name=source.name,
        dataset_config=source.config,
        dataset_split=source.split,
        metric_type=metric,
        metric_name=name,
        metric_value=round(float(value), 4),
    )


def citations(config: Any, with_simmim: bool = True) -> list[str]:
    """BibTeX entries to cite: SimMIM, and the encoder's architecture if it is Swin or SwinV2."""
    architecture = ARCHITECTURES.get(config.encoder_config.model_type)
    return [SIMMIM] * with_simmim + ([architecture] if architecture else [])


def listed_classes(names: Sequence[str]) -> str:
    """Class names, at most `MAX_LISTED_CLASSES` of them."""
    more = len(names) - MAX_LISTED_CLASSES
    return ", ".join(names[:MAX_LISTED_CLASSES]) + (f", and {more:,} more in `config.json`" if more > 0 else "")


def title_and_location(hub_model_id: str | None, output_dir: str | Path) -> tuple[str, str]:
    """Model title, and the string to pass to `from_pretrained` as Python code: a name on the Hub, or a folder."""
    if hub_model_id:
        return hub_model_id.split("/")[-1], json.dumps(hub_model_id)
    absolute = Path(output_dir).resolve()
    title = last_part(absolute if last_part(output_dir) == "images" else output_dir)
    return title, json.dumps(shown_path(output_dir), ensure_ascii=False)


def _line(text: Any) -> str:
    """Text for a paragraph: on one line, with HTML tags escaped."""
    return " ".join(str(text).split()).replace("<", "&lt;")


def _cell(text: Any) -> str:
    """Text for a cell of a Markdown table, with bars escaped."""
    return _line(text).replace("|", "\\|")


Table = dict[str, str | None]

# Names of each setting in the configs of transformers.
ENCODER_SETTINGS = {
    "depth": ("depths", "num_hidden_layers", "num_layers"),
    "attention heads": ("num_heads", "num_attention_heads"),
    "width": ("embed_dim", "hidden_sizes", "hidden_size"),
    "window": ("window_size",),
    "drop path": ("drop_path_rate",),
}
FAMILIES = {"swin": "Swin", "swinv2": "SwinV2", "beit": "ViT (BEiT)", "vit": "ViT", "timm_wrapper": "timm"}
# With more channels only the range of their statistics is shown.
MAX_LISTED_CHANNELS = 6
# Bound on the cost of averaging the distances of masks: masks times pixels times image width.
AVERAGE_DISTANCE_BUDGET = 5e8


def encoder_table(config: Any, model: Any) -> Table:
    """Describe the encoder's architecture, geometry and number of parameters.

    Args:
        config: The SimMIM config.
        model: The model.

    Returns:
        Rows of the table by title.
    """
    encoder = config.encoder_config
    height, width = config.image_size
    rows, columns = config.grid_size
    table: Table = {"encoder": f"{family(config)} (`{encoder.model_type}`)"}
    if getattr(encoder, "architecture", None):
        table["architecture"] = f"`{encoder.architecture}`"
    for title, names in ENCODER_SETTINGS.items():
        value = next((getattr(encoder, name) for name in names if getattr(encoder, name, None) is not None), None)
        table[title] = None if value is None or isinstance(value, dict) else listed(value)
    if table["window"] is not None:
        table["window"] += " tokens"
    return table | {
        "images": f"{counted(config.num_channels, 'channel')}, {height} x {width} px (height x width)",
        "patches": f"{config.patch_size} px, grid of {rows} x {columns}",
        "feature map": f"{config.hidden_size} channels, output stride {config.encoder_stride} px",
        "parameters": parameters(model),
    }


def family(config: Any) -> str:
    """Common name of the encoder's architecture."""
    kind = config.encoder_config.model_type
    return FAMILIES.get(kind, kind.removesuffix("_vision_model").replace("_", " "))


def parameters(model: Any) -> str:
    """Number of parameters of the encoder, and of the whole model if it has a head."""
    encoder, everything = (number.num_parameters() for number in (model.base_model, model))
    return millions(encoder) + (
        f" in the encoder, {millions(everything)} with the head" if everything > encoder else ""
    )


def normalization(settings: Any) -> str:
    """Describe the normalization of an image processor, or of anything with its attributes."""
    factor = settings.rescale_factor
    inverse = 1 / factor
    scale = (
        f"1/{round(inverse)}" if math.isclose(inverse, round(inverse), rel_tol=1e-6) and factor < 1 else f"{factor:g}"
    )
    mean, std = list(settings.image_mean), list(settings.image_std)
    if len(mean) <= MAX_LISTED_CHANNELS:
        return f"rescale {scale}, mean {numbers(mean)}, std {numbers(std)}"
    return (
        f"rescale {scale}, a mean ({min(mean):.4g} to {max(mean):.4g}) and std ({min(std):.4g} to {max(std):.4g}) for"
        f" each of {len(mean)} channels, see `preprocessor_config.json`"
    )


def pixels_table(processor: Any) -> Table:
    """Describe the normalization and the missing pixels of an image processor."""
    nodata = getattr(processor, "nodata", None)
    return {
        "normalization": normalization(processor),
        "missing pixels": f"those with the value {nodata:g} in all channels" if nodata is not None else None,
    }


def augmentation_table(crop_scale: Sequence[float] | None, flip: float, vertical_flip: float) -> Table:
    """Describe crops and flips of the training images."""
    flips = [f"{share:.0%} {way}" for share, way in ((flip, "horizontal"), (vertical_flip, "vertical")) if share]
    crops = "largest center crop"
    if crop_scale is not None:
        low, high = crop_scale[0], crop_scale[-1]
        crops = f"random, {low:.0%} to {high:.0%} of the area, resized"
    return {"crops": crops, "flips": ", ".join(flips) or "no flips" if crop_scale is not None else None}


def average_mask_distance(dataset: Any) -> float:
    """AvgDist of a `MaskedImageDataset` in pixels: the mean over masks that are drawn with a fixed seed."""
    ratio = dataset.mask_ratio
    return _average_distance(
        *(dataset.mask_strategy, tuple(dataset.grid_size), tuple(ratio) if isinstance(ratio, Sequence) else ratio),
        *(dataset.unit_size, dataset.patch_size, tuple(dataset.image_size)),
    )


@lru_cache(maxsize=8)
def _average_distance(
    strategy: MaskStrategy, grid_size: tuple, ratio: Any, unit_size: int, patch_size: int, image_size: tuple
) -> float:
    height, width = image_size
    count = max(2, min(64, int(AVERAGE_DISTANCE_BUDGET / (height * width * width))))
    masks = strategy(grid_size, ratio, count, unit_size=unit_size, generator=sample_generator(0))
    return float(average_distance(masks, patch_size, image_size).mean())


def millions(number: int) -> str:
    """A number of parameters to three digits, such as 87.8 M."""
    return f"{number / 1e6:.3g} M" if number < 1e9 else f"{number / 1e9:.3g} B"


def numbers(values: Sequence[float]) -> str:
    """Numbers to four digits, separated by commas."""
    return ", ".join(f"{value:.4g}" for value in values)


def listed(value: Any) -> str:
    """Value of a setting as text, with the parts of a list joined by dashes."""
    if isinstance(value, (list, tuple)):
        return "-".join(listed(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def counted(number: int, noun: str, plural: str = "s") -> str:
    """A number and its noun, in singular or plural."""
    return f"{number:,} {noun}{plural if number != 1 else ''}"


def versions_table() -> Table:
    """Versions of the packages and of Python that the model was made with."""
    packages = ("transformers", "torch", "accelerate", "datasets")
    commit = code_version()
    return {
        "hf-simmim": importlib.metadata.version("hf-simmim") + (f", git commit {commit}" if commit else ""),
        **{name: importlib.metadata.version(name) for name in packages},
        "Python": platform.python_version(),
    }
