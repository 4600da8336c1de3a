"""Converts checkpoints of the official implementation and of mmpretrain into checkpoints of this package.

No silent weight mismatches: every tensor of the file is loaded into the model, or is a buffer that is compared with the
one that our code computes, or is listed in the report with a reason.
"""

import copy
import hashlib
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, AutoModelForMaskedImageModeling

from ..hub.card import (
    MMPRETRAIN,
    card_metadata,
    citations,
    encoder_table,
    family,
    millions,
    render_card,
    title_and_location,
    versions_table,
)
from ..model.configuration_simmim import SimMIMConfig
from ..model.image_processing_simmim import SimMIMImageProcessor
from ..model.masking import random_mask
from ..model.modeling_base import SimMIMModel
from ..model.modeling_simmim import SimMIMForMaskedImageModeling, SimMIMPreTrainedModel
from ..model.swin import stage_grids
from ..model.targets import STATISTICS_WINDOW
from .pth_buffers import BUFFER, verify_buffers
from .pth_checkpoint import OriginalCheckpoint, listed, open_checkpoint
from .pth_files import read_pth
from .pth_geometry import Size, check_windows, encoder_settings
from .pth_names import our_names
from .pth_settings import Settings

# A fine-tuned ViT normalizes after pooling; that norm belongs to its classifier.
CLASSIFIER = re.compile(r"(head|fc_norm)\.(weight|bias)")


@dataclass
class Conversion:
    """A converted checkpoint, in memory.

    Args:
        model: A `SimMIMForMaskedImageModeling` if the file has the prediction head, else a `SimMIMModel`; `eval()`.
        processor: Image processor of the model.
        source: Path of the file.
        sha256: SHA-256 of the file.
        framework: Repository whose code wrote the file.
        classifier: Weights of a classifier under the authors' names, which the model does not use.
        report: What happened to each part of the file, in lines by title.
    """

    model: SimMIMPreTrainedModel
    processor: SimMIMImageProcessor
    source: Path
    sha256: str
    framework: str
    classifier: dict[str, torch.Tensor]
    report: dict[str, str]


def convert_checkpoint(path: str | Path, image_size: Size | None = None) -> Conversion:
    """Convert a .pth file of microsoft/SimMIM, microsoft/Swin-Transformer or mmpretrain.

    Args:
        path: The file. It may come from an untrusted source: no code in it is run.
        image_size: (height, width) in pixels that the file was trained on, if the file does not state it.

    Returns:
        Model, processor and report.

    Raises:
        ValueError: If the file cannot be read or is of another kind, if it has unknown weights or lacks some, or if our
            model would not compute the same as the original one.
    """
    original = open_checkpoint(read_pth(path))
    encoder, remarks = encoder_settings(original, image_size)
    config = _config(encoder, original.settings)
    if original.architecture != "beit":
        check_windows(original, encoder, stage_grids(config.encoder_config))
    is_pretrained = "decoder.0.weight" in original.weights
    # Without memory first: a small file can claim a model that fits no machine.
    with torch.device("meta"):
        state_dict, used, classifier, unknown = _renamed(original, _empty_model(config, original))
    if unknown:
        raise ValueError(
            f"The file holds {len(unknown)} weights that our {encoder['model_type']} does not have, so it would not"
            f" compute the same: {listed(unknown)}."
        )
    _check_finite(used)
    model = _empty_model(config, original)
    model.load_state_dict(state_dict, strict=True)
    verified = verify_buffers(original, config, model.base_model.encoder)

    sha256 = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(2**22):
            sha256.update(block)
    report = {
        "File": f"{Path(path).name}, sha256 {sha256.hexdigest()}",
        "From": f"{original.framework}, {'pre-trained' if is_pretrained else 'without a prediction head'}"
        + (f", epoch {original.epoch}" if original.epoch is not None else ""),
        "Encoder": _described(config),
        **remarks,
        "Used": f"{len(used)} tensors, which fill all {len(state_dict)} of the model (query, key and value are joined)",
    }
    if verified:
        counts = Counter(verified).items()
        report["Verified"] = (
            ", ".join(f"{count} {name}" for name, count in counts) + ": equal to those that our code computes"
        )
    if original.dropped:
        report["Dropped"] = f"{', '.join(original.dropped)}: training state"
    if classifier:
        report["Left out"] = f"{', '.join(original.file_names[name] for name in classifier)}: classifier"
    if not is_pretrained:
        absent = ["prediction head"] + ["mask token"] * ("mask_token" not in original.weights)
        report["Not in the file"] = f"{' and '.join(absent)}; pre-training would initialize them at random"
    types = {str(tensor.dtype).removeprefix("torch.") for tensor in used.values()} - {"float32"}
    if types:
        report["Precision"] = f"{', '.join(sorted(types))} in the file, float32 in the model"
    if config.target == "normalized_rgb":
        report["Target"] = f"pixels normalized in windows of {config.options('target')['window_size']} px"
    report["Model"] = f"{type(model).__name__}, {model.num_parameters() / 1e6:.1f} M parameters"
    processor = _processor(config, original.settings)
    return Conversion(model.eval(), processor, Path(path), sha256.hexdigest(), original.framework, classifier, report)


def save_conversion(conversion: Conversion, output_dir: str | Path, overwrite: bool = False) -> None:
    """Write a checkpoint with its model card, and verify that it loads as the converted model.

    It is first written to a temporary folder, loaded with `from_pretrained`, and compared in a forward pass; only then
    is it moved to the output folder.

    Args:
        conversion: Result of `convert_checkpoint`.
        output_dir: Folder to write to.
        overwrite: Whether the folder may contain files. Files of the same name are replaced.

    Raises:
        ValueError: If the folder is not empty and `overwrite` is not set, or is a file.
        RuntimeError: If the loaded model differs from the converted one.
    """
    output_dir = Path(output_dir)
    check_output_dir(output_dir, overwrite)
    output_dir.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".converting-", dir=output_dir))
    try:
        conversion.model.save_pretrained(draft)
        conversion.processor.save_pretrained(draft)
        conversion_card(conversion, output_dir).save(draft / "README.md")
        _check_reloads(conversion.model, draft)
        for path in [*output_dir.glob("model*.safetensors"), *output_dir.glob("model.safetensors.index.json")]:
            path.unlink()  # shards of another checkpoint
        for path in draft.iterdir():
            path.replace(output_dir / path.name)
    finally:
        shutil.rmtree(draft)


def check_output_dir(output_dir: str | Path, overwrite: bool = False) -> None:
    """Check before any work that a checkpoint may be written to a folder.

    Args:
        output_dir: Folder to write to.
        overwrite: Whether the folder may contain files.

    Raises:
        ValueError: If the folder is not empty and `overwrite` is not set, or is a file.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"{output_dir} is a file. Name a folder.")
    if output_dir.exists() and any(output_dir.iterdir()) and not overwrite:
        raise ValueError(f"{output_dir} is not empty. Name another folder, or add --overwrite.")


def _config(encoder: dict[str, Any], settings: dict[str, Any]) -> SimMIMConfig:
    target: dict[str, Any] = {}
    if settings.get("normalize_target"):
        window = settings.get("normalize_window", STATISTICS_WINDOW)
        target = {"target": "normalized_rgb", "target_options": {"window_size": window}}
    try:
        return SimMIMConfig(encoder_config=encoder, **target)
    except StrictDataclassError as error:
        raise ValueError(f"The file's geometry is not supported: {error.__cause__ or error}") from error


def _described(config: SimMIMConfig) -> str:
    encoder = config.encoder_config
    height, width = config.image_size
    text = f"{encoder.model_type}, {config.num_channels} x {height} x {width} px, patches of {config.patch_size} px"
    if encoder.model_type == "beit":
        depth, heads = encoder.num_hidden_layers, encoder.num_attention_heads
        return f"{text}, width {encoder.hidden_size}, depth {depth}, heads {heads}"
    depths, heads = ("-".join(str(number) for number in numbers) for numbers in (encoder.depths, encoder.num_heads))
    return f"{text}, width {encoder.embed_dim}, depths {depths}, heads {heads}, window {encoder.window_size}"


def _empty_model(config: SimMIMConfig, original: OriginalCheckpoint) -> Any:
    """A model of the kind that the file holds, with weights of its own."""
    if "decoder.0.weight" in original.weights:
        return SimMIMForMaskedImageModeling(config)
    return SimMIMModel(config, use_mask_token="mask_token" in original.weights)


def _renamed(
    original: OriginalCheckpoint, model: SimMIMPreTrainedModel
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor], list[str]]:
    """Our state dict, the tensors of the file that it uses, the classifier, and unknown names in the file."""
    places = model.state_dict()
    prefix = "simmim.encoder." if isinstance(model, SimMIMForMaskedImageModeling) else "encoder."
    state_dict: dict[str, torch.Tensor] = {}
    used: dict[str, torch.Tensor] = {}
    classifier: dict[str, torch.Tensor] = {}
    unknown: list[str] = []
    for name, tensor in original.weights.items():
        if BUFFER.fullmatch(name):
            continue
        if CLASSIFIER.fullmatch(name):
            classifier[name] = tensor
            continue
        ours = our_names(name, original.architecture, prefix)
        if not ours or not all(place in places for place in ours):
            unknown.append(original.file_names[name])
        elif tensor.dim() == 0 or tensor.shape[0] % len(ours):
            raise ValueError(
                f"{original.file_names[name]} of shape {tuple(tensor.shape)} is not made of query, key and value."
            )
        else:
            used[name] = tensor
            state_dict.update(zip(ours, tensor.chunk(len(ours)), strict=True))
    if not unknown:
        _check_fit(places, state_dict)
    return state_dict, used, classifier, unknown


def _check_fit(places: dict[str, torch.Tensor], state_dict: dict[str, torch.Tensor]) -> None:
    """Raise if a parameter of the model is missing in the file, or has another shape there."""
    missing = [name for name in places if name not in state_dict]
    if missing:
        raise ValueError(
            f"The file lacks {len(missing)} of our model's {len(places)} parameters: {listed(missing)}. It is"
            " incomplete, or was written by other code."
        )
    for name, tensor in state_dict.items():
        theirs, ours = tuple(tensor.shape), tuple(places[name].shape)
        if theirs != ours:
            raise ValueError(
                f"The file's tensor for {name} has shape {theirs} and the model's has {ours}. If the image size is"
                " wrong, set --image_size."
            )


def _check_finite(used: dict[str, torch.Tensor]) -> None:
    broken = [name for name, tensor in used.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(
            f"{', '.join(broken[:5])} in the file has NaN or infinite values: the run diverged. Use an earlier file."
        )


def _processor(config: SimMIMConfig, settings: Settings) -> SimMIMImageProcessor:
    """Image processor with the normalization of the training images, and with masks if the file states them."""
    options: dict[str, Any] = {name: settings[name] for name in ("mask_patch_size", "mask_ratio") if name in settings}
    for name, default in (("image_mean", 0.5), ("image_std", 0.25)):
        values = settings.get(name)
        if values is None and config.num_channels != 3:
            values = [default] * config.num_channels
        if values is not None and len(values) == config.num_channels:
            options[name] = values
    height, width = config.image_size
    return SimMIMImageProcessor(size={"height": height, "width": width}, model_patch_size=config.patch_size, **options)


@torch.no_grad()
def _check_reloads(model: Any, folder: Path) -> None:
    """Load a checkpoint with Auto classes and compare weights and a forward pass, bit for bit."""
    config = model.config
    pixel_values = torch.randn(1, config.num_channels, *config.image_size, generator=torch.Generator().manual_seed(0))
    if isinstance(model, SimMIMForMaskedImageModeling):
        reloaded = _in_own_memory(AutoModelForMaskedImageModeling.from_pretrained(folder))
        generator = torch.Generator().manual_seed(0)
        mask = random_mask(
            config.grid_size, 0.6, 1, unit_size=config.encoder_stride // config.patch_size, generator=generator
        )
        before, after = (each(pixel_values, bool_masked_pos=mask).prediction for each in (model, reloaded))
    else:
        has_token = any(name.endswith("mask_token") for name in model.state_dict())
        reloaded = _in_own_memory(AutoModel.from_pretrained(folder, use_mask_token=has_token))
        before, after = (each(pixel_values).last_hidden_state for each in (model, reloaded))
    if not torch.equal(before, after) or not _same_weights(model, reloaded):
        difference = (before - after).abs().max().item()
        raise RuntimeError(
            f"The written checkpoint does not compute the same as the converted model: outputs differ by up to"
            f" {difference:g}. It was deleted; please report this with the name of the file."
        )


def _in_own_memory(model: Any) -> Any:
    """Copy loaded tensors: the alignment of their memory changes the last bits of small matrix products."""
    return copy.deepcopy(model).eval()


def _same_weights(model: Any, other: Any) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def conversion_card(conversion: "Conversion", output_dir: Path) -> ModelCard:
    """Render the model card of a converted checkpoint.

    Args:
        conversion: The checkpoint.
        output_dir: Folder that it will be in.

    Returns:
        The card; `save` writes it.
    """
    model: Any = conversion.model
    config = model.config
    has_head = hasattr(model, "head")
    model_type = config.encoder_config.model_type
    has_mask_token = any(name.endswith("mask_token") for name in model.state_dict())
    title, location = title_and_location(None, output_dir)
    return render_card(
        "converted",
        card_metadata(title, ["simmim", *["masked-image-modeling"] * has_head, model_type]),
        title=title,
        location=location,
        auto_class="AutoModel",
        options="" if has_mask_token else ", use_mask_token=False",
        pipeline_options=", pool=True" if has_mask_token else ', model_kwargs={"use_mask_token": False}, pool=True',
        encoder_name=f"A {family(config)} encoder",
        num_parameters=millions(model.base_model.num_parameters()),
        framework=conversion.framework,
        num_channels=config.num_channels,
        hidden_size=config.hidden_size,
        image_height=config.image_size[0],
        image_width=config.image_size[1],
        has_head=has_head,
        model_rows=encoder_table(config, model),
        report=conversion.report,
        versions=versions_table(),
        # SimMIM only if the weights are pre-trained with it, and mmpretrain if its code wrote the file.
        citations=citations(config, with_simmim=has_head or model_type == "beit")
        + [MMPRETRAIN] * ("mmpretrain" in conversion.framework),
    )
