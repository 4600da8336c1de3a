"""Draw what a checkpoint predicts for masked patches, pixels or gradients, beside the images, and the error.

    hf-simmim reconstruct --checkpoint runs/photos --images cat.jpg dogs 'birds/*.png' --error_map
    hf-simmim reconstruct --checkpoint runs/photos --images cat.jpg --mask_ratio 0.2 0.4 0.6 0.8
    hf-simmim reconstruct --checkpoint runs/early runs/late --images cat.jpg --mask painted.png
    hf-simmim reconstruct --checkpoint runs/demo                            the demo's images, in a checkout

Draws a picture (--output): original | masked | prediction | composite of checkpoints that predict pixels. The
prediction is the whole output of the model; the composite shows it in masked patches, and the image in the others.
Checkpoints of --target hog predict histograms of gradients, which are drawn as lines along the edges: original | masked
| predicted gradients | true gradients. What was masked is yellow in both, to be compared; what was visible is blue.

Prints for every image the error of what was masked, and the mean distance of its masked pixels from the nearest visible
pixel (AvgDist). The error is masked l1 for pixels, their mean absolute error from 0 to 255; and for gradients the
gradient error, the mean length of the difference between predicted and true histograms: 0 for exact ones, 1 for none.
"""

import glob
from collections import defaultdict
from collections.abc import Mapping, Sequence
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
from ..data.sources import embedded_data, folder_rows, image_paths, image_suffixes, load_images
from ..data.transforms import center_box, crop_and_resize, upright_size
from ..data.value_range import check_value_range
from ..evaluation.gradients import GradientReconstruction
from ..evaluation.masked_prediction import MaskedPrediction
from ..evaluation.reconstruction import RECONSTRUCTION_COLUMNS as COLUMNS
from ..evaluation.reconstruction import Reconstruction, Reconstructor, mask_from_painting
from ..formats.address import parse_address
from ..formats.parts import expand
from ..formats.slicing import Slicing
from ..model.image_readers import open_with_pillow
from ..model.masking import MASK_STRATEGIES, patch_grid, ratio_range, to_pixels
from ..visualization.grids import columns_of, reconstruction_grid
from .command import Command, in_words
from .options.slices import SliceArguments


@dataclass
class PictureArguments(SliceArguments):
    """Options of masks, images and the picture."""

    _argument_group_name = "pictures"

    checkpoint: list[str] | None = field(
        default=None,
        metadata={"help": "SimMIM checkpoints, folders or names on the Hub, drawn side by side."},
    )
    images: list[str] | None = field(
        default=None,
        metadata={"help": "Files, folders and patterns such as 'photos/*.jpg' (embedded test images if unset)."},
    )
    num_images: int = field(default=12, metadata={"help": "Largest number of images to predict, spread evenly."})
    num_drawn: int = field(
        default=24, metadata={"help": "Largest number of images to draw; metrics include all predicted images."}
    )
    image_size: list[int] | None = field(
        default=None,
        metadata={"help": "Image size in pixels: one side, or height and width (the checkpoint's if unset)."},
    )
    whole_images: bool = field(
        default=False,
        metadata={"help": "Resize images of other aspect ratios instead of center-cropping them, as in evaluations."},
    )
    mask_strategy: str | None = field(
        default=None,
        metadata={"help": f"Masking strategy: {', '.join(MASK_STRATEGIES)} (the checkpoint's if unset)."},
    )
    mask_ratio: list[float] | None = field(
        default=None,
        metadata={"help": "Mask ratios, 0 to 1, each of which is drawn (the checkpoint's if unset)."},
    )
    mask_patch_size: int | None = field(
        default=None, metadata={"help": "Side of mask patches in pixels (the checkpoint's if unset)."}
    )
    mask: str | None = field(
        default=None,
        metadata={
            "help": "Black-and-white picture of the mask of all images, instead: patches with any white are masked."
        },
    )
    seed: int = field(default=0, metadata={"help": "Random seed of the first image's mask, counting up."})
    columns: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Columns of the picture: some of {', '.join(COLUMNS)} (all but error if unset). Composite is for"
            " pixels, and left out with several checkpoints; target is for gradients."
        },
    )
    error_map: bool = field(default=False, metadata={"help": "Also draw the error of masked pixels or gradients."})
    captions: bool = field(default=True, metadata={"help": "Write names and metrics into the picture."})
    output: str = field(default="reconstruction.png", metadata={"help": "The picture to write."})
    batch_size: int = field(default=32, metadata={"help": "Images per batch."})
    device: str | None = field(default=None, metadata={"help": "Device, such as cpu (a GPU if available, if unset)."})

    def __post_init__(self):
        if not self.checkpoint:
            raise ValueError("No checkpoint is named. Give --checkpoint, the output folder of a pre-training.")
        if len(set(self.checkpoint)) < len(self.checkpoint):
            raise ValueError(f"checkpoint={self.checkpoint} contains duplicates. Give each once.")
        for name in ("num_images", "num_drawn", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.image_size is not None and (len(self.image_size) > 2 or min(self.image_size) < 1):
            raise ValueError(f"image_size={self.image_size} is invalid. Give one side, or height and width.")
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
                        f"mask={self.mask!r} determines the whole mask, so {name} has no effect. Leave one out."
                    )
        for column in self.columns or ():
            if column not in COLUMNS:
                raise ValueError(f"columns has the unknown {column!r}. Use some of: {', '.join(COLUMNS)}.")
        check_output(Path(self.output))


def check_output(path: Path) -> None:
    """Raise a ValueError if no picture can be written to a path."""
    if not path.parent.is_dir():
        raise ValueError(f"output={str(path)!r} is in a folder that does not exist. Create {path.parent} first.")
    Image.init()
    if path.is_dir() or Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"output={str(path)!r} is not the name of a picture. Use one such as reconstruction.png.")


def find_images(sources: Sequence[str] | None, slicing: Slicing | None = None) -> Dataset:
    """Find images by files, folders and patterns.

    Args:
        sources: The files, folders and patterns, and addresses of images inside files; None for the embedded test
            images.
        slicing: How volumes, series, stacks and arrays become images, see `load_images`.

    Returns:
        Rows of `name` and undecoded `image`.

    Raises:
        ValueError: If a source has no images.
    """
    if sources is None:
        return load_images(dataset_name=embedded_data("--images"), split="test")
    paths: list[str] = []
    for source in sources:
        if Path(source).is_dir():
            paths += image_paths(Path(source))
            continue
        is_one = Path(parse_address(source).path).is_file()
        found = [source] if is_one else sorted(filter(is_file, glob.glob(source, recursive=True)))
        if not found:
            raise ValueError(f"images={source!r} is neither a file nor a folder nor a pattern that matches a file.")
        paths += found
    return folder_rows(expand(paths, slicing, frozenset(image_suffixes())))


def is_file(path: str) -> bool:
    """Whether a path is a file."""
    return Path(path).is_file()


def read_image(row: dict[str, Any], reconstructor: Reconstructor, is_whole: bool) -> np.ndarray:
    """Read the image of a row at the size and channels of a model.

    Args:
        row: Row of `name` and undecoded `image`.
        reconstructor: The model.
        is_whole: Whether to resize the whole image, else its center crop.

    Returns:
        Array (H, W, C).

    Raises:
        ValueError: If the image cannot be read.
    """
    processor = reconstructor.processor
    try:
        image = open_row(row, processor.num_channels, processor.rescale_factor, processor.nodata)
        height, width = size = upright_size(image)
        box = (0, 0, width, height) if is_whole else center_box(size, reconstructor.image_size)
        return crop_and_resize(image, box, reconstructor.image_size, processor.num_channels)
    except Exception as error:  # readers of damaged files raise any type
        raise ValueError(f"{row['name']} cannot be read ({describe(error)}).") from error


def readable(rows: Dataset, reconstructor: Reconstructor, is_whole: bool) -> Dataset:
    """Keep the rows whose images can be read; the number of the others, and the first ones, are printed.

    Args:
        rows: Rows of `name` and undecoded `image`.
        reconstructor: The model.
        is_whole: As in `read_image`.

    Returns:
        The rows.

    Raises:
        ValueError: If no image can be read.
    """
    kept, errors = [], []
    for index, row in enumerate(rows):
        try:
            read_image(row, reconstructor, is_whole)
            kept.append(index)
        except ValueError as error:
            errors.append(str(error))
    if not kept:
        also = f" The others of the {len(rows)} images cannot be read either." if len(rows) > 1 else ""
        raise ValueError(f"{errors[0]}{also} Name other images.")
    for text in errors[:5]:
        print(f"left out: {text}")
    if errors:
        print(f"{len(errors)} of {len(rows)} images cannot be read and are left out.")
    return rows.select(kept)


def read_mask(path: str, reconstructors: Sequence[Reconstructor], is_whole: bool) -> list[torch.Tensor]:
    """Read the mask that a black-and-white picture defines.

    Args:
        path: The picture.
        reconstructors: The models.
        is_whole: As in `read_image`.

    Returns:
        The mask on the patch grid (h, w) of each model, True = masked.

    Raises:
        ValueError: If the picture cannot be read, or masks nothing or everything.
    """
    # On the coarsest grid first, so that the masks of all models agree.
    coarsest = max(reconstructors, key=lambda reconstructor: reconstructor.mask_step)
    try:
        with open_with_pillow(path) as file:
            picture = file.convert("L")
    except (OSError, ValueError) as error:
        raise ValueError(f"mask={path!r} cannot be read ({describe(error)}). Name a picture.") from error
    if not is_whole:
        left, top, right, bottom = center_box((picture.height, picture.width), coarsest.image_size)
        picture = picture.crop((round(left), round(top), round(right), round(bottom)))
    patches = mask_from_painting(np.asarray(picture) > 127, patch_grid(coarsest.image_size, coarsest.mask_step))
    if patches.all() or not patches.any():
        what = "everything and leaves no visible patch" if patches.all() else "nothing"
        raise ValueError(f"mask={path!r} masks {what}. Paint what to mask in white, on black.")
    pixels = to_pixels(patches[None], coarsest.mask_step, coarsest.image_size)[0]
    return [mask_from_painting(pixels, reconstructor.grid_size) for reconstructor in reconstructors]


def load_models(arguments: PictureArguments) -> dict[str, Reconstructor]:
    """Load the models.

    Args:
        arguments: The options.

    Returns:
        The models by name.

    Raises:
        ValueError: If a model cannot be loaded, or the models take images of different sizes.
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
        raise ValueError(f"The checkpoints take images of different sizes: {described} px. Set --image_size.")
    return models


def check_columns(columns: Sequence[str] | None, models: dict[str, Reconstructor]) -> None:
    """Raise a ValueError if no model has one of the columns."""
    known = {column for model in models.values() for column in model.kind.columns}
    for column in columns or ():
        if column not in known:
            predicted = " and ".join(sorted({str(model.model.config.target) for model in models.values()}))
            raise ValueError(
                f"columns has {column!r}, which predictions of {predicted} do not have. Use some of:"
                f" {', '.join(name for name in COLUMNS if name in known)}."
            )


def check_same_masks(results: Mapping[str, MaskedPrediction]) -> None:
    """Raise a ValueError if the models do not have the same masked pixels."""
    (first_name, first), *others = results.items()
    for name, result in others:
        if not torch.equal(result.hidden, first.hidden):
            raise ValueError(
                f"{first_name} and {name} have patches of {first.patch_size} and {result.patch_size} px, which mask"
                " different pixels. Set --mask_patch_size to a multiple of both."
            )


class FigureTable:
    """Table of the metrics of every image.

    Args:
        kinds: What the models predict, by their names.
        names: Names of the images.
        variants: Description of each mask ratio, if there are several.
    """

    def __init__(self, kinds: dict[str, type[MaskedPrediction]], names: list[str], variants: list[str]):
        self.kinds, self.names = kinds, names
        self.models = models = list(kinds)
        self.variants = variants if len(variants) > 1 else [""]
        self.distances: list[list[float]] = [[] for _ in self.variants]
        self.errors: list[dict[str, list[float]]] = [{name: [] for name in models} for _ in self.variants]

    def add(self, part: int, results: Mapping[str, MaskedPrediction]) -> None:
        """Add the metrics of a batch with one of the mask ratios."""
        self.distances[part] += next(iter(results.values())).average_distance.tolist()
        for name, result in results.items():
            self.errors[part][name] += result.masked_error.tolist()

    def mean_errors(self, kind: type[MaskedPrediction]) -> dict[str, float]:
        """Mean error over all images by model, of the models that predict this kind."""
        return {
            name: torch.tensor([value for part in self.errors for value in part[name]]).nanmean().item()
            for name in self.models
            if self.kinds[name] is kind
        }

    def label(self, index: int, part: int, short: bool = False) -> str:
        """Label of an image, with or without the folders of its file."""
        name = self.names[index]
        name = name.replace("\\", "/").rsplit("/", 1)[-1] if short else name
        return ", ".join(filter(None, (name, self.variants[part])))

    def print(self) -> None:
        """Print a line of metrics for each image, and the means."""
        titles, digits = ["AvgDist"], [2]
        for name, kind in self.kinds.items():
            titles.append(f"{kind.error_name}{f' of {name}' if len(self.models) > 1 else ''}")
            digits.append(kind.error_digits + 1)
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
            table = zip(figures, digits, titles, strict=True)
            cells = [f"{value:.{number}f}".rjust(len(title)) for value, number, title in table]
            print("  ".join([label.ljust(width), *cells]))


@dataclass(frozen=True)
class ReconstructionResult:
    """Result of reconstructing images.

    Args:
        reconstructions: Drawn images with masks and predictions, by checkpoint; a notebook displays them.
        names: Names of these images.
        masked_l1: Mean absolute error of masked pixels over all images, 0 to 255, by checkpoint that predicts pixels.
        path: The picture.
        pictures: The picture by its name.
        gradient_error: Mean length of the difference between predicted and true histograms of masked cells, which have
            a length of 1, over all images, by checkpoint that predicts gradients.
    """

    reconstructions: dict[str, Reconstruction | GradientReconstruction]
    names: list[str]
    masked_l1: dict[str, float]
    path: Path
    pictures: dict[str, Path]
    gradient_error: dict[str, float] = field(default_factory=dict)


def reconstruct_all(arguments: PictureArguments) -> ReconstructionResult:
    """Predict masked patches, print the metrics and draw the picture.

    Args:
        arguments: The options.

    Returns:
        The result.

    Raises:
        ValueError: If a checkpoint, an image or a mask cannot be used; the message says why and what to do.
    """
    models = load_models(arguments)
    check_columns(arguments.columns, models)
    first, *others = models.values()
    rows = find_images(arguments.images, arguments.slicing)
    rows = readable(rows.select(evenly_spaced(len(rows), arguments.num_images)), first, arguments.whole_images)
    processor = first.processor
    check_value_range(
        *(rows, processor.num_channels, processor.rescale_factor, processor.image_mean, processor.image_std),
        nodata=processor.nodata,
    )
    masks: Sequence[torch.Tensor | None] = [None] * len(models)
    # All models get the masks that the first one was trained with.
    settings = {
        key: getattr(arguments, key) or getattr(first.processor, key) for key in ("mask_strategy", "mask_patch_size")
    }
    ratios: list[Any] = arguments.mask_ratio or [first.processor.mask_ratio]
    if arguments.mask is not None:
        masks = read_mask(arguments.mask, [first, *others], arguments.whole_images)
    drawn = set(evenly_spaced(len(rows), arguments.num_drawn))
    kept: dict[str, dict[int, list[Any]]] = {name: defaultdict(list) for name in models}
    kinds: dict[str, type[MaskedPrediction]] = {name: model.kind for name, model in models.items()}
    table = FigureTable(kinds, rows["name"][:], [f"{ratio:g} masked" for ratio in arguments.mask_ratio or ()])
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
            print(f"Predictions of {name} are decoded with the {model.model.target.decode_uses} of the original.")
    # The rows of an image go below each other.
    order = [part * len(drawn) + index for index in range(len(drawn)) for part in range(len(ratios))]
    pictures = {
        name: models[name].kind.join([result for part in range(len(ratios)) for result in parts[part]]).take(order)
        for name, parts in kept.items()
    }
    labels = [table.label(index, part, short=True) for index in sorted(drawn) for part in range(len(ratios))]
    # In the order in which all columns are named.
    columns = [column for column in COLUMNS if column in arguments.columns] if arguments.columns else None
    shown: Any = pictures if others else pictures[next(iter(models))]
    grid = reconstruction_grid(
        shown,
        columns,
        names=labels if arguments.captions else None,
        show_figures=arguments.captions,
        rows_together=len(ratios),
        error_map=arguments.error_map,
    )
    grid.save(arguments.output)
    drawn_columns = columns_of(shown, columns, arguments.error_map)
    titles = [
        kind.titles.get(column, column)
        for kind, chosen in zip(kinds.values(), drawn_columns, strict=True)
        for column in chosen
    ]
    print(f"{arguments.output}  {' | '.join(dict.fromkeys(titles))}")
    path = Path(arguments.output)
    errors = table.mean_errors(Reconstruction), table.mean_errors(GradientReconstruction)
    return ReconstructionResult(pictures, labels, errors[0], path, {path.stem: path}, errors[1])


def run(arguments: PictureArguments) -> ReconstructionResult:
    """Predict masked patches and draw them."""
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
