"""What `examples/app.py` shows: checkpoints and pictures to choose from, masks as asked for, and results as HTML."""

import base64
import html
import io
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

from ..data.reading import open_row
from ..data.sampling import evenly_spaced
from ..data.sources import load_images
from ..evaluation.reconstruction import RECONSTRUCTION_COLUMNS, Reconstruction, Reconstructor, mask_from_painting
from ..visualization.pictures import to_pictures

logger = logging.get_logger(__name__)

PAINTED = "painted"
NUM_EXAMPLES = 12
MAX_LOADED = 8  # checkpoints that visitors brought and that stay in memory
THUMBNAIL, CANVAS = 56, 280  # pixels
CRISP = 64  # pictures below that are enlarged by whole numbers only; larger ones fill their column
FITTED = 384
CAPTIONS = {
    "original": "Original",
    "masked": "Masked",
    "prediction": "Prediction",
    "composite": "Composite",
    "error": "Error map",
}


class LoadedModels:
    """Checkpoints, loaded once and shared by all visitors.

    Args:
        given: Checkpoints to load now and to keep.
        device: Where they compute; a GPU if there is one and this is None.

    Raises:
        ValueError: If one cannot be loaded.
    """

    def __init__(self, given: Sequence[str], device: str | None = None):
        self.given = list(dict.fromkeys(given))
        self._device = device
        self._lock = threading.Lock()
        self._loaded: dict[str, Reconstructor] = {}
        for checkpoint in self.given:
            self[checkpoint]

    def __getitem__(self, checkpoint: str) -> Reconstructor:
        """The model of a checkpoint, loaded if it is not there.

        Raises:
            ValueError: If it cannot be loaded, and whatever else its files give rise to.
        """
        model = self._loaded.get(checkpoint)
        if model is None:
            # One at a time, while those who want what is there go on.
            with self._lock:
                model = self._loaded.get(checkpoint) or Reconstructor(checkpoint, self._device)
                brought = [name for name in self._loaded if name not in self.given]
                for name in brought[: max(0, len(brought) - MAX_LOADED + 1)]:
                    del self._loaded[name]
                self._loaded[checkpoint] = model
        return model


class ExamplePictures:
    """Pictures to pick from, spread evenly over their source; files that cannot be read are left out.

    Args:
        source: Folder of image files, or a parquet file.
        model: Whose image processor opens them.

    Raises:
        ValueError, FileNotFoundError: If there is no such source, or none of its pictures can be read.
    """

    def __init__(self, source: str | Path, model: Reconstructor):
        is_folder = Path(source).suffix != ".parquet"
        rows = load_images(folder=source) if is_folder else load_images(data_files=[str(source)])
        processor = model.processor
        self.images, self._shown = [], []
        for row in rows.select(evenly_spaced(len(rows), NUM_EXAMPLES)):
            try:
                image = open_row(row, processor.num_channels, processor.rescale_factor, processor.nodata)
                self._shown.append(picture_of(model, image))
                self.images.append(image)
            except Exception as error:  # readers raise anything on a broken file
                logger.warning(f"{row['name']} is left out: {describe(error)}")
        if not self.images:
            raise ValueError(f"None of the pictures that were tried in {source} can be read. Name another folder.")
        self.thumbnails = [enlarged(picture, THUMBNAIL) for picture in self._shown]

    def __getitem__(self, source: int | str) -> Any:
        """What a model takes: an image of ours by its number, or an uploaded file by its path."""
        return self.images[source] if isinstance(source, int) else source

    def shown(self, index: int) -> Image.Image:
        """One of ours, for the eye."""
        return enlarged(self._shown[index], CANVAS)


@dataclass(frozen=True)
class MaskSettings:
    """Which patches are to be hidden.

    Args:
        strategy: One of MASK_STRATEGIES, or PAINTED.
        ratio: Share of the image to hide.
        patch_size: Side of the squares that are hidden, in pixels of the model's image.
        seed: Of the mask.
        painting: Array (H', W', 4) of which the last channel tells where was painted; None if nothing was.
    """

    strategy: str
    ratio: float
    patch_size: int
    seed: int
    painting: np.ndarray | None = None

    def scaled(self, first: Reconstructor, other: Reconstructor) -> "MaskSettings":
        """The same for another model: squares that are as much of its image, as near as its patches allow."""
        side = self.patch_size * min(other.image_size) / min(first.image_size)
        return replace(self, patch_size=max(1, round(side / other.patch_size)) * other.patch_size)


def reconstruct(model: Reconstructor, image: Any, settings: MaskSettings) -> Reconstruction:
    """Hide patches of an image and predict them.

    Args:
        model: The model.
        image: What its image processor takes.
        settings: Which patches.

    Returns:
        The result.

    Raises:
        ValueError: If the model cannot do what is asked for, or nothing is painted.
    """
    with torch.inference_mode():
        if settings.strategy != PAINTED:
            return model(
                image,
                mask_strategy=settings.strategy,
                mask_ratio=settings.ratio,
                mask_patch_size=settings.patch_size,
                seed=settings.seed,
            )
        if settings.painting is None or not settings.painting[..., -1].any():
            raise ValueError("Nothing is painted. Paint over the picture: patches that you touch are hidden.")
        return model(image, bool_masked_pos=mask_from_painting(settings.painting, model.grid_size))


def picture_of(model: Reconstructor, image: Any) -> Image.Image:
    """An image as a model sees it when nothing is hidden."""
    processor = model.processor
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    return Image.fromarray(to_pictures(pixel_values, processor.image_mean, processor.image_std)[0])


def enlarged(picture: Image.Image, side: int) -> Image.Image:
    """A picture of at most `side` pixels: enlarged by a whole number, or shrunk."""
    factor = side // max(picture.size)
    if factor > 0:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture = picture.copy()
    picture.thumbnail((side, side))
    return picture


def panel(name: str, model: Reconstructor, result: Reconstruction, mask_patch_size: int | None = None) -> str:
    """Pictures and numbers of a model, as HTML.

    Args:
        name: Of the checkpoint.
        model: The model.
        result: Of one image.
        mask_patch_size: Side of the squares that were hidden, in pixels; None if there were none.

    Returns:
        A section without any file of its own.
    """
    height, width = model.image_size
    facts = [
        model.model.config.encoder_config.model_type,
        f"{model.model.num_parameters() / 1e6:.3g} M parameters",
        f"{width} x {height} px",
        f"patches of {model.patch_size} px",
    ]
    if model.model.target.decode_uses:
        facts.append(f"{model.model.target.decode_uses} of the original")
    if mask_patch_size is not None:
        facts.append(f"mask patches of {mask_patch_size} px")
    hidden, patches = int(result.bool_masked_pos.sum()), result.bool_masked_pos.numel()
    numbers = {
        "Masked l1": f"{_number(result.masked_l1)} <small>of 255</small>",
        "AvgDist": f"{_number(result.average_distance)} <small>px</small>",
        "Hidden patches": f"{hidden} <small>of {patches}</small>",
    }
    terms = "".join(f"<div><dt>{term}</dt><dd>{value}</dd></div>" for term, value in numbers.items())
    figures = "".join(_figure(CAPTIONS[column], result.pictures(column)[0]) for column in RECONSTRUCTION_COLUMNS)
    return (
        f'<section class="model"><header><div><h2>{html.escape(name)}</h2><p>{" · ".join(facts)}</p></div>'
        f'<dl>{terms}</dl></header><div class="columns">{figures}</div></section>'
    )


def _number(values: torch.Tensor) -> str:
    """That of one image."""
    return "none" if values.isnan().any() else f"{values.item():.1f}"


def _figure(caption: str, pixels: np.ndarray) -> str:
    """A picture (H, W, 3) with its caption. The page's style enlarges crisp ones and fits the others."""
    picture = Image.fromarray(pixels)
    width = picture.width
    is_crisp = max(picture.size) < CRISP
    if not is_crisp:
        # Enlarged so far, then shrunk by the browser, small pictures stay sharp at any width.
        factor = math.ceil(FITTED / max(picture.size))
        picture = picture.resize((width * factor, picture.height * factor), Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    kind = f'class="crisp" style="--width: {width}px"' if is_crisp else ""
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<img {kind} alt="{caption}" src="data:image/png;base64,{data}"></figure>'
    )


def describe(error: Exception) -> str:
    """An error in one line for who visits the page; one that is no refusal goes to the log as a whole."""
    text = " ".join(str(error).split())
    if isinstance(error, (ValueError, OSError)):
        return text
    logger.error("The page met an error.", exc_info=error)
    return f"{type(error).__name__}: {text}"
