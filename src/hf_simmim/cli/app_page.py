"""Parts of the web app: checkpoints, example pictures, masks, and results as HTML."""

import base64
import html
import io
import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from ..evaluation.masked_prediction import MaskedPrediction
from ..evaluation.reconstruction import Reconstructor, mask_from_painting
from ..model.image_readers import upright
from ..model.images import convert_channels, open_image
from ..model.masking import MASK_STRATEGIES, mask_units, patch_grid, patches_with_pixels
from ..visualization.pictures import error_pictures, to_pictures

logger = logging.get_logger(__name__)

PAINTED = "painted"
NUM_EXAMPLES = 12
MAX_LOADED = 8  # checkpoints of visitors that stay in memory
MAX_MEGAPIXELS = 50  # of a visitor's picture, unless HF_SIMMIM_MAX_MEGAPIXELS says otherwise
THUMBNAIL, CANVAS = 56, 280  # pixels
CRISP = 64  # pixels; smaller pictures are enlarged by whole numbers only, larger ones fill their column
FITTED = 384
UNREADABLE = ""  # source of the picture after an upload that is none
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, as in Pillow
CONVERTED = "The picture has colors and the model takes gray ones: it was converted to gray."
CENTRAL_BY_CHANCE = "This seed's square lies where central_square puts it. New mask moves it."
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
        device: Device of the models; a GPU if available and this is None.
        loading: Whether others may be loaded later.

    Raises:
        ValueError: If a checkpoint cannot be loaded.
    """

    def __init__(self, given: Sequence[str], device: str | None = None, loading: bool = True):
        self.given = list(dict.fromkeys(given))
        self.loading = loading
        self._device = device
        self._lock = threading.Lock()
        self._loaded: dict[str, Reconstructor] = {}
        for checkpoint in self.given:
            self[checkpoint]

    def __getitem__(self, checkpoint: str) -> Reconstructor:
        """Get the model of a checkpoint, which is loaded if necessary.

        Args:
            checkpoint: Folder or name on the Hub.

        Returns:
            The model.

        Raises:
            ValueError: If it cannot be loaded, or may not; damaged files may raise other errors.
        """
        # Requests name checkpoints whatever the page shows; the answer must not depend on the files of this machine.
        if checkpoint not in self.given and not self.loading:
            raise ValueError("This page shows its own checkpoints only. Start it with --loading true to load others.")
        model = self._loaded.get(checkpoint)
        if model is None:
            # Load one at a time; requests for loaded models need no lock.
            with self._lock:
                model = self._loaded.get(checkpoint) or Reconstructor(checkpoint, self._device)
                brought = [name for name in self._loaded if name not in self.given]
                for name in brought[: max(0, len(brought) - MAX_LOADED + 1)]:
                    del self._loaded[name]
                self._loaded[checkpoint] = model
        return model


class ExamplePictures:
    """Example pictures, spread evenly over their source; unreadable files are left out.

    Args:
        source: Folder of image files, or a parquet file.
        model: Model whose image processor opens them.

    Raises:
        ValueError, FileNotFoundError: If there is no such source, or none of its pictures can be read.
    """

    def __init__(self, source: str | Path, model: Reconstructor):
        is_folder = Path(source).suffix != ".parquet"
        rows = load_images(folder=source) if is_folder else load_images(data_files=[str(source)])
        self._processor = model.processor
        self.rows: list[dict[str, Any]] = []
        self._shown = []
        for row in rows.select(evenly_spaced(len(rows), NUM_EXAMPLES)):
            try:
                self._shown.append(picture_of(model, self._open(row)))
                self.rows.append(row)
            except Exception as error:  # readers of damaged files raise any type
                logger.warning(f"{row['name']} is left out: {describe(error)}")
        if not self.rows:
            raise ValueError(f"None of the pictures that were tried in {source} can be read. Name another folder.")
        self.thumbnails = [enlarged(picture, THUMBNAIL) for picture in self._shown]

    def _open(self, row: dict[str, Any]) -> Any:
        processor = self._processor
        return open_row(row, processor.num_channels, processor.rescale_factor, processor.nodata)

    def __getitem__(self, source: int | str | None) -> Any:
        """Get the input of a model.

        Args:
            source: Number of an example, or path of an uploaded file; UNREADABLE, or None if there is no picture.

        Returns:
            A picture, an array, or a path.

        Raises:
            ValueError: If there is no picture.
        """
        if source is None:
            raise ValueError("There is no picture. Upload one, or pick an example.")
        if source == UNREADABLE:
            raise ValueError("The file is not a readable picture. Upload another one, or pick an example.")
        # Opened for every visitor: a picture that several threads read at once is broken.
        return self._open(self.rows[source]) if isinstance(source, int) else source

    def shown(self, index: int) -> Image.Image:
        """An example, enlarged for display."""
        return enlarged(self._shown[index], CANVAS)


@contextmanager
def limited_pictures() -> Iterator[None]:
    """Refuse pictures of more than MAX_MEGAPIXELS, before they are decoded."""
    before = Image.MAX_IMAGE_PIXELS
    if not os.environ.get("HF_SIMMIM_MAX_MEGAPIXELS"):
        Image.MAX_IMAGE_PIXELS = MAX_MEGAPIXELS * 500_000  # Pillow refuses twice as many
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@dataclass(frozen=True)
class MaskSettings:
    """Settings of a mask.

    Args:
        strategy: One of MASK_STRATEGIES, or PAINTED.
        ratio: Mask ratio, 0 to 1.
        patch_size: Side of a mask patch, in pixels of the model's image.
        seed: Random seed of the mask.
        painting: Array (H', W', 4) whose last channel is positive where it was painted; None if nothing was.
    """

    strategy: str
    ratio: float
    patch_size: int
    seed: int
    painting: np.ndarray | None = None

    def scaled(self, first: Reconstructor, other: Reconstructor) -> "MaskSettings":
        """The same settings for another model, with mask patches of about the same share of its image."""
        side = self.patch_size * min(other.image_size) / min(first.image_size)
        return replace(self, patch_size=max(1, round(side / other.mask_step)) * other.mask_step)


def mask_patch_sizes(model: Reconstructor) -> range:
    """Sides in pixels of the mask patches that fit a model, at least two of which are in an image."""
    return range(model.mask_step, max(*model.image_size, model.mask_step + 1), model.mask_step)


def ratio_limits(model: Reconstructor, mask_patch_size: int) -> tuple[float, float]:
    """Smallest and largest mask ratio, in hundredths, that mask one mask patch and leave one visible."""
    grid_size, unit_size = mask_units(model.image_size, model.patch_size, mask_patch_size)
    rows, columns = patch_grid(grid_size, unit_size)
    number = max(2, rows * columns)
    largest = 100 * (number - 1) // number
    return max(1, min(100 // number, largest - 1)) / 100, largest / 100


def as_gray(model: Reconstructor, image: Any) -> tuple[Any, bool]:
    """Convert color pictures to gray for models of one channel, which refuse them otherwise.

    Args:
        model: The model.
        image: Input of its image processor.

    Returns:
        The input, and whether it was converted.

    Raises:
        ValueError, OSError: If it cannot be read.
    """
    processor = model.processor
    if processor.num_channels != 1:
        return image, False
    opened = image
    if isinstance(image, (str, os.PathLike)):
        opened = open_image(image, 1, processor.rescale_factor)
    if isinstance(opened, Image.Image):
        picture = upright(opened)
        try:
            convert_channels(picture, 1)
        except ValueError:
            return convert_channels(picture, 3).convert("L"), True
    elif isinstance(opened, np.ndarray) and opened.ndim == 3 and 3 in (opened.shape[0], opened.shape[-1]):
        colors = opened if opened.shape[-1] == 3 else np.moveaxis(opened, 0, -1)
        gray = colors.astype(np.float32) @ np.array(LUMA, np.float32)
        return (gray.round().astype(np.uint8) if opened.dtype == np.uint8 else gray), True
    return image, False


def notes_on(settings: MaskSettings, result: MaskedPrediction, is_converted: bool) -> list[str]:
    """What a visitor should know about a result: a picture without its colors, a square in the center by chance."""
    notes = [CONVERTED] if is_converted else []
    if settings.strategy == "square":
        real = None
        if result.pixel_mask is not None:
            real = patches_with_pixels(result.real_pixels, result.patch_size)
        central = MASK_STRATEGIES["central_square"](
            (result.bool_masked_pos.shape[1], result.bool_masked_pos.shape[2]),
            settings.ratio,
            unit_size=settings.patch_size // result.patch_size,
            valid_patches=real,
        )
        if torch.equal(central, result.bool_masked_pos):
            notes.append(CENTRAL_BY_CHANCE)
    return notes


def reconstruct(model: Reconstructor, image: Any, settings: MaskSettings) -> MaskedPrediction:
    """Mask patches of an image and predict them.

    Args:
        model: The model.
        image: Input of its image processor.
        settings: Settings of the mask.

    Returns:
        The reconstruction.

    Raises:
        ValueError: If the model does not support the settings, or nothing is painted.
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
            raise ValueError("Nothing is painted. Paint over the picture: patches that you touch are masked.")
        return model(image, bool_masked_pos=mask_from_painting(settings.painting, model.grid_size))


def picture_of(model: Reconstructor, image: Any) -> Image.Image:
    """An image as a model sees it without a mask."""
    processor = model.processor
    pixel_values = processor(as_gray(model, image)[0], return_tensors="pt")["pixel_values"]
    return Image.fromarray(to_pictures(pixel_values, processor.image_mean, processor.image_std)[0])


def enlarged(picture: Image.Image, side: int) -> Image.Image:
    """Resize a picture to at most `side` pixels: enlarge it by a whole number, or shrink it."""
    factor = side // max(picture.size)
    if factor > 0:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture = picture.copy()
    picture.thumbnail((side, side))
    return picture


def panel(
    name: str,
    model: Reconstructor,
    result: MaskedPrediction,
    mask_patch_size: int | None = None,
    notes: Sequence[str] = (),
    row: int = 0,
) -> str:
    """Render pictures and metrics of a model as HTML.

    Args:
        name: Name of the checkpoint.
        model: The model.
        result: MaskedPrediction of one image.
        mask_patch_size: Side of a mask patch in pixels; None for a painted mask.
        notes: What to say about the result.
        row: Number of the panel on the page.

    Returns:
        A section that refers to no files.
    """
    height, width = model.image_size
    facts = [
        model.model.config.encoder_config.model_type,
        f"{model.model.num_parameters() / 1e6:.3g} M parameters",
        f"{width} x {height} px",
        f"patches of {model.patch_size} px",
    ]
    if model.model.target.decode_uses:
        facts.append(f"decoded with the {model.model.target.decode_uses} of the original")
    if mask_patch_size is not None:
        facts.append(f"mask patches of {mask_patch_size} px")
    hidden, patches = int(result.bool_masked_pos.sum()), result.bool_masked_pos.numel()
    numbers = {
        _capitalized(result.error_name): f"{_number(result.masked_error, result.error_digits)}"
        f" <small>{result.error_unit}</small>",
        "AvgDist": f"{_number(result.average_distance)} <small>px</small>",
        "Masked patches": f"{hidden} <small>of {patches}</small>",
    }
    terms = "".join(f"<div><dt>{term}</dt><dd>{value}</dd></div>" for term, value in numbers.items())
    pictures = {column: result.pictures(column)[0] for column in result.columns}
    largest = max(len(picture) for picture in pictures.values())
    figures = ""
    for column, picture in pictures.items():
        zoom = largest // len(picture)
        caption = _capitalized(result.titles[column]) if column in result.titles else CAPTIONS[column]
        scale = _error_scale(result) if column == "error" else ""
        figures += _figure(caption, picture.repeat(zoom, axis=0).repeat(zoom, axis=1), row, scale)
    said = "".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)
    return (
        f'<section class="model"><header><div><h2>{html.escape(name)}</h2><p>{" · ".join(facts)}</p></div>'
        f'<dl>{terms}</dl></header>{said}<div class="columns">{figures}</div>{_large(row)}</section>'
    )


def _number(values: torch.Tensor, digits: int = 1) -> str:
    """Value of one image as text."""
    return "n/a" if values.isnan().any() else f"{values.item():.{digits}f}"


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _figure(caption: str, pixels: np.ndarray, row: int, scale: str = "") -> str:
    """A picture (H, W, 3) with its caption and scale, which opens large when it is clicked.

    The style sheet enlarges crisp ones and fits the others.
    """
    picture = Image.fromarray(pixels)
    width = picture.width
    is_crisp = max(picture.size) < CRISP
    if not is_crisp:
        # Small pictures stay sharp at any width if they are enlarged here and shrunk by the browser.
        factor = math.ceil(FITTED / max(picture.size))
        picture = picture.resize((width * factor, picture.height * factor), Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    kind = f'class="crisp" style="--width: {width}px"' if is_crisp else ""
    opens = (
        f"const large = document.getElementById('large_{row}');"
        " large.querySelector('img').src = this.querySelector('img').src;"
        f" large.querySelector('b').textContent = '{caption}'"
    )
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        f'<button type="button" popovertarget="large_{row}" title="Enlarge" onclick="{opens}">'
        f'<img {kind} alt="{caption}" src="data:image/png;base64,{data}"></button>'
        f"{scale}</figure>"
    )


def _large(row: int) -> str:
    """Where the pictures of a panel open: the whole window, closed by a click, by Enter or by Escape."""
    return (
        f'<div id="large_{row}" class="large" popover><button type="button" popovertarget="large_{row}"'
        ' popovertargetaction="hide" autofocus><img alt=""><span><b></b> · close</span></button></div>'
    )


def _error_scale(result: MaskedPrediction) -> str:
    """Color scale of an error map, from 0 to its limit, with its ends."""
    limit = result.error_limit
    colors = error_pictures(torch.linspace(0, limit, 9).view(1, 1, -1), limit)[0, 0].tolist()
    stops = ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in colors)
    return (
        f'<div class="scale"><div style="background: linear-gradient(to right, {stops})"></div>'
        f"<span>0</span><span>≥ {limit:g} {result.error_unit}</span></div>"
    )


def describe(error: Exception) -> str:
    """Describe an error in one line for visitors; unexpected errors are logged with their traceback."""
    text = " ".join(str(error).split())
    if isinstance(error, (ValueError, OSError)):
        return text
    logger.error("Unexpected error in the app.", exc_info=error)
    return f"{type(error).__name__}: {text}"
