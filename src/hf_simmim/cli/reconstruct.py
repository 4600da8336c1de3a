"""See what a checkpoint predicts for masked patches: original | masked | prediction | composite, and the error.

    hf-simmim reconstruct --checkpoint runs/photos --images cat.jpg dogs 'birds/*.png' --error_map
    hf-simmim reconstruct --checkpoint runs/photos --images cat.jpg --mask_ratio 0.2 0.4 0.6 0.8
    hf-simmim reconstruct --checkpoint runs/early runs/late --images cat.jpg --mask painted.png
    hf-simmim reconstruct --checkpoint runs/demo                            the demo's images, in a checkout

Draws a picture (--output), and prints for every image the mean absolute error of its masked pixels, of 255 (masked l1),
and their mean distance from the nearest visible pixel (AvgDist). The prediction is the whole output of the model; the
composite shows it where the image was masked, and the image elsewhere.
"""

import glob
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from PIL import Image
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.reading import describe, open_row
from ..data.sampling import evenly_spaced
from ..data.sources import embedded_data, folder_rows, image_paths, load_images
from ..data.transforms import center_box, crop_and_resize, upright_size
from ..evaluation.reconstruction import RECONSTRUCTION_COLUMNS as COLUMNS
from ..evaluation.reconstruction import Reconstruction, Reconstructor, mask_from_painting
from ..model.masking import MASK_STRATEGIES, ratio_range, to_pixels
from ..visualization.grids import reconstruction_grid
from .command import Command, in_words


@dataclass
class PictureArguments:
    """What is hidden of which images, and what is drawn."""

    _argument_group_name = "pictures"

    checkpoint: list[str] | None = field(
        default=None,
        metadata={"help": "SimMIM checkpoint: folder or name on the Hub. Several are drawn side by side."},
    )
    images: list[str] | None = field(
        default=None,
        metadata={"help": "Files, folders and patterns such as 'photos/*.jpg'; the embedded test images if none."},
    )
    num_images: int = field(default=12, metadata={"help": "Images to take at most, spread evenly over those named."})
    num_drawn: int = field(
        default=24, metadata={"help": "Of these, images to draw at most, spread evenly; figures are of all."}
    )
    image_size: list[int] | None = field(
        default=None,
        metadata={"help": "Side of the images in pixels, or height and width. That of the checkpoint if unset."},
    )
    whole_images: bool = field(
        default=False,
        metadata={
            "help": "Squeeze images of other proportions to the model's; else the middle is cut out, as in evaluations."
        },
    )
    mask_strategy: str | None = field(
        default=None,
        metadata={
            "help": f"How patches are chosen: {', '.join(MASK_STRATEGIES)}. This and the next two are as the checkpoint"
            " was trained if unset."
        },
    )
    mask_ratio: list[float] | None = field(
        default=None, metadata={"help": "Share to hide, between 0 and 1. Every image is drawn with each of several."}
    )
    mask_patch_size: int | None = field(
        default=None, metadata={"help": "Side in pixels of the squares that are hidden or shown as a whole."}
    )
    mask: str | None = field(
        default=None,
        metadata={
            "help": "Black-and-white picture of what to hide of every image instead: every patch with white in it."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of the mask of the first image; the next ones count on."})
    columns: list[str] | None = field(
        default=None,
        metadata={
            "help": f"What to draw of {', '.join(COLUMNS)}. All but the error if unset; of several checkpoints neither"
            " the composite."
        },
    )
    error_map: bool = field(default=False, metadata={"help": "Draw the error of hidden pixels, too."})
    captions: bool = field(default=True, metadata={"help": "Write names and figures into the picture."})
    output: str = field(default="reconstruction.png", metadata={"help": "The picture to write."})
    batch_size: int = field(default=32, metadata={"help": "Images that are predicted at once."})
    device: str | None = field(default=None, metadata={"help": "Where to compute, such as cpu; a GPU if there is one."})

    def __post_init__(self):
        if not self.checkpoint:
            raise ValueError("No checkpoint is named. Give --checkpoint, the output folder of a pre-training.")
        if len(set(self.checkpoint)) < len(self.checkpoint):
            raise ValueError(f"checkpoint={self.checkpoint} names one twice. Leave one out.")
        for name in ("num_images", "num_drawn", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.image_size is not None and (len(self.image_size) > 2 or min(self.image_size) < 1):
            raise ValueError(f"image_size={self.image_size} is no size. Give one side, or height and width.")
        if self.mask_strategy is not None and self.mask_strategy not in MASK_STRATEGIES:
            raise ValueError(
                f"mask_strategy={self.mask_strategy!r} is unknown. Use one of: {', '.join(MASK_STRATEGIES)}."
            )
        for ratio in self.mask_ratio or ():
            ratio_range(ratio)
        if self.mask is not None:
            for name in ("mask_strategy", "mask_ratio", "mask_patch_size"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"mask={self.mask!r} says all that is hidden, and {name} changes nothing of it. Leave one out."
                    )
        for column in self.columns or ():
            if column not in COLUMNS:
                raise ValueError(f"columns has {column!r}, which is unknown. Use some of: {', '.join(COLUMNS)}.")
        check_output(Path(self.output))

    @property
    def drawn_columns(self) -> list[str]:
        """What to draw, in the order in which it is drawn."""
        chosen = self.columns or [*COLUMNS[:3], *(["composite"] if len(self.checkpoint or ()) == 1 else [])]
        return [column for column in COLUMNS if column in chosen or (column == "error" and self.error_map)]


def check_output(path: Path) -> None:
    """Refuse with a ValueError what no picture can be written to."""
    if not path.parent.is_dir():
        raise ValueError(f"output={str(path)!r} is in a folder that does not exist. Make {path.parent} first.")
    Image.init()
    if path.is_dir() or Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"output={str(path)!r} is no name of a picture. Use one such as reconstruction.png.")


def find_images(sources: Sequence[str] | None) -> Dataset:
    """Rows of `name` and undecoded `image`, of files, folders and patterns, or of the embedded test images.

    Raises:
        ValueError: If there are no images of that name.
    """
    if sources is None:
        return load_images(dataset_name=embedded_data("--images"), split="test")
    paths: list[str] = []
    for source in sources:
        if Path(source).is_dir():
            paths += image_paths(Path(source))
            continue
        found = [source] if Path(source).is_file() else sorted(filter(is_file, glob.glob(source, recursive=True)))
        if not found:
            raise ValueError(f"images={source!r} is no file, no folder and no pattern that any file fits.")
        paths += found
    return folder_rows(paths)


def is_file(path: str) -> bool:
    """Whether a path is that of a file."""
    return Path(path).is_file()


def read_image(row: dict[str, Any], reconstructor: Reconstructor, is_whole: bool) -> np.ndarray:
    """The image of a row at the size and channels of a model, of shape (H, W, C).

    Raises:
        ValueError: If it cannot be read.
    """
    processor = reconstructor.processor
    try:
        image = open_row(row, processor.num_channels, processor.rescale_factor, processor.nodata)
        height, width = size = upright_size(image)
        box = (0, 0, width, height) if is_whole else center_box(size, reconstructor.image_size)
        return crop_and_resize(image, box, reconstructor.image_size, processor.num_channels)
    except Exception as error:  # readers raise anything on a broken file
        raise ValueError(f"{row['name']} cannot be read ({describe(error)}).") from error


def readable(rows: Dataset, reconstructor: Reconstructor, is_whole: bool) -> Dataset:
    """The rows whose images can be read; the first ones of the others are printed, and how many they are.

    Raises:
        ValueError: If there are none.
    """
    kept, errors = [], []
    for index, row in enumerate(rows):
        try:
            read_image(row, reconstructor, is_whole)
            kept.append(index)
        except ValueError as error:
            errors.append(str(error))
    if not kept:
        also = f" Nor can the others of the {len(rows)} images." if len(rows) > 1 else ""
        raise ValueError(f"{errors[0]}{also} Name other images.")
    for text in errors[:5]:
        print(f"left out: {text}")
    if errors:
        print(f"{len(errors)} of {len(rows)} images cannot be read and are left out.")
    return rows.select(kept)


def read_mask(path: str, reconstructors: Sequence[Reconstructor], is_whole: bool) -> list[torch.Tensor]:
    """What a picture hides, on the patch grid (h, w) of each model.

    Raises:
        ValueError: If it cannot be read, or hides nothing or everything.
    """
    # On the coarsest grid first, so that all models are shown the same.
    coarsest = max(reconstructors, key=lambda reconstructor: reconstructor.patch_size)
    try:
        with Image.open(path) as file:
            picture = file.convert("L")
    except OSError as error:
        raise ValueError(f"mask={path!r} cannot be read ({describe(error)}). Name a picture.") from error
    if not is_whole:
        left, top, right, bottom = center_box((picture.height, picture.width), coarsest.image_size)
        picture = picture.crop((round(left), round(top), round(right), round(bottom)))
    patches = mask_from_painting(np.asarray(picture) > 127, coarsest.grid_size)
    if patches.all() or not patches.any():
        what = "everything and leaves nothing to predict from" if patches.all() else "nothing"
        raise ValueError(f"mask={path!r} hides {what}. Paint white what is hidden, on black.")
    pixels = to_pixels(patches[None], coarsest.patch_size, coarsest.image_size)[0]
    return [mask_from_painting(pixels, reconstructor.grid_size) for reconstructor in reconstructors]


def load_models(arguments: PictureArguments) -> dict[str, Reconstructor]:
    """The models by name.

    Raises:
        ValueError: If one cannot be loaded, or they take images of different sizes.
    """
    size = None if arguments.image_size is None else (arguments.image_size[0], arguments.image_size[-1])
    models: dict[str, Reconstructor] = {}
    for checkpoint in arguments.checkpoint or ():
        try:
            models[checkpoint] = Reconstructor(checkpoint, arguments.device, image_size=size)
        except SafetensorError as error:
            raise ValueError(f"The weights of {checkpoint} are damaged ({error}).") from error
    sizes = {name: model.image_size for name, model in models.items()}
    if len(set(sizes.values())) > 1:
        described = ", ".join(f"{name} of {height}x{width}" for name, (height, width) in sizes.items())
        raise ValueError(f"The checkpoints take images of different sizes: {described} px. Give one --image_size.")
    return models


def check_same_masks(results: dict[str, Reconstruction]) -> None:
    """Refuse with a ValueError models that were not shown the same."""
    (first_name, first), *others = results.items()
    for name, result in others:
        if not torch.equal(result.hidden, first.hidden):
            raise ValueError(
                f"{first_name} and {name} have patches of {first.patch_size} and {result.patch_size} px, which hide"
                " different pixels. Give a --mask_patch_size that is a multiple of both."
            )


class FigureTable:
    """Figures of every image.

    Args:
        models: Names of the models.
        names: Names of the images.
        variants: What is said of each way in which an image is hidden, if there are several.
    """

    def __init__(self, models: list[str], names: list[str], variants: list[str]):
        self.models, self.names = models, names
        self.variants = variants if len(variants) > 1 else [""]
        self.distances: list[list[float]] = [[] for _ in self.variants]
        self.errors: list[dict[str, list[float]]] = [{name: [] for name in models} for _ in self.variants]

    def add(self, part: int, results: dict[str, Reconstruction]) -> None:
        """Take the figures of a batch that was hidden in one of the ways."""
        self.distances[part] += next(iter(results.values())).average_distance.tolist()
        for name, result in results.items():
            self.errors[part][name] += result.masked_l1.tolist()

    def masked_l1(self) -> dict[str, float]:
        """Mean of the error of masked pixels over all images, 0 to 255, by model."""
        return {
            name: torch.tensor([value for part in self.errors for value in part[name]]).nanmean().item()
            for name in self.models
        }

    def label(self, index: int, part: int, short: bool = False) -> str:
        """What is written of an image, with the folders of its file or without."""
        name = self.names[index]
        name = name.replace("\\", "/").rsplit("/", 1)[-1] if short else name
        return ", ".join(filter(None, (name, self.variants[part])))

    def print(self) -> None:
        """Print a line for each image, and the means."""
        titles = ["AvgDist", *(f"masked l1{f' of {name}' if len(self.models) > 1 else ''}" for name in self.models)]
        lines = []
        for index in range(len(self.names)):
            for part in range(len(self.variants)):
                errors = self.errors[part]
                figures = [self.distances[part][index], *(errors[name][index] for name in self.models)]
                lines.append((self.label(index, part), figures))
        for part, variant in enumerate(self.variants):
            series = [self.distances[part], *(self.errors[part][name] for name in self.models)]
            means = [torch.tensor(values).nanmean().item() for values in series]
            lines.append((", ".join(filter(None, (f"mean of {len(self.names)}", variant))), means))
        width = max(len(label) for label, _ in lines)
        print("  ".join([" " * width, *titles]))
        for label, figures in lines:
            cells = [f"{value:.2f}".rjust(len(title)) for value, title in zip(figures, titles, strict=True)]
            print("  ".join([label.ljust(width), *cells]))


@dataclass(frozen=True)
class ReconstructionResult:
    """What the models predict.

    Args:
        reconstructions: By checkpoint, the images that were drawn, with masks and predictions; each draws itself in a
            notebook.
        names: Names of these images.
        masked_l1: By checkpoint, the mean absolute error of masked pixels over all images, 0 to 255.
        path: The picture.
        pictures: The same by its name.
    """

    reconstructions: dict[str, Reconstruction]
    names: list[str]
    masked_l1: dict[str, float]
    path: Path
    pictures: dict[str, Path]


def reconstruct_all(arguments: PictureArguments) -> ReconstructionResult:
    """Predict, print and draw everything.

    Raises:
        ValueError: If a checkpoint, an image or a mask cannot be used; the message says why and what to do.
    """
    models = load_models(arguments)
    first, *others = models.values()
    rows = find_images(arguments.images)
    rows = readable(rows.select(evenly_spaced(len(rows), arguments.num_images)), first, arguments.whole_images)
    masks: Sequence[torch.Tensor | None] = [None] * len(models)
    # All are shown what the first one was trained with.
    settings = {
        key: getattr(arguments, key) or getattr(first.processor, key) for key in ("mask_strategy", "mask_patch_size")
    }
    ratios: list[Any] = arguments.mask_ratio or [first.processor.mask_ratio]
    if arguments.mask is not None:
        masks = read_mask(arguments.mask, [first, *others], arguments.whole_images)
    drawn = set(evenly_spaced(len(rows), arguments.num_drawn))
    kept: dict[str, dict[int, list[Reconstruction]]] = {name: defaultdict(list) for name in models}
    table = FigureTable(list(models), rows["name"][:], [f"{ratio:g} hidden" for ratio in arguments.mask_ratio or ()])
    with tqdm(total=len(rows), desc="predicting", unit="image", leave=False, disable=None) as progress:
        for start in range(0, len(rows), arguments.batch_size):
            indices = range(start, min(start + arguments.batch_size, len(rows)))
            chosen = [index - start for index in indices if index in drawn]
            images = {
                name: [read_image(rows[index], model, arguments.whole_images) for index in indices]
                for name, model in models.items()
            }
            for part, ratio in enumerate(ratios):
                results = {
                    name: model(
                        images[name], mask_ratio=ratio, seed=arguments.seed + start, bool_masked_pos=mask, **settings
                    )
                    for (name, model), mask in zip(models.items(), masks, strict=True)
                }
                check_same_masks(results)
                table.add(part, results)
                for name, result in results.items():
                    kept[name][part].append(result.take(chosen))
            progress.update(len(indices))
    table.print()
    for name, model in models.items():
        if model.model.target.decode_uses:
            print(f"Pictures and masked l1 of {name} have the {model.model.target.decode_uses} of the original.")
    # The rows of an image below each other.
    order = [part * len(drawn) + index for index in range(len(drawn)) for part in range(len(ratios))]
    pictures = {
        name: Reconstruction.join([result for part in range(len(ratios)) for result in parts[part]]).take(order)
        for name, parts in kept.items()
    }
    labels = [table.label(index, part, short=True) for index in sorted(drawn) for part in range(len(ratios))]
    grid = reconstruction_grid(
        pictures if others else pictures[next(iter(models))],
        arguments.drawn_columns,
        names=labels if arguments.captions else None,
        show_figures=arguments.captions,
        rows_together=len(ratios),
    )
    grid.save(arguments.output)
    print(f"{arguments.output}  {' | '.join(arguments.drawn_columns)}")
    path = Path(arguments.output)
    return ReconstructionResult(pictures, labels, table.masked_l1(), path, {path.stem: path})


def run(arguments: PictureArguments) -> ReconstructionResult:
    """Predict what is masked, and draw it."""
    logging.disable_progress_bar()
    disable_progress_bars()
    with in_words(" ".join(arguments.checkpoint or ())):
        return reconstruct_all(arguments)


COMMAND = Command(
    name="reconstruct",
    usage="--checkpoint NAME [NAME ...] [--images PATH ...] [options]",
    description=__doc__,
    kinds=(PictureArguments,),
    run=run,
    common=(
        *("checkpoint", "images", "num_images", "output", "mask_ratio", "mask_patch_size", "mask_strategy", "mask"),
        *("seed", "error_map", "whole_images", "image_size", "device"),
    ),
)
