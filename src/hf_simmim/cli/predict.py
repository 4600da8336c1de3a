"""Predict on new images with a trained classifier or segmentation model (inference).

    hf-simmim predict --checkpoint runs/classifier --image_dir new_photos --output predictions.csv
    hf-simmim predict --checkpoint runs/segmentation --image_dir new_photos --output masks

The checkpoint is the output folder of `hf-simmim finetune` or `hf-simmim segment`, or another image classifier or
segmentation model of transformers. A classifier writes a table (.csv or .parquet) with a row for each image: its name,
the predicted class and the probability of every class. A segmentation model writes a folder with a mask for each image,
a PNG of class ids at the size of the image, and predictions.csv with the share of each class. Images are prepared as
the training evaluated its validation images.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import torch
from datasets import Dataset
from transformers import AutoImageProcessor, PreTrainedModel

from ..checkpoints.loading import load_predictor, pixel_settings, stored_processor
from ..data.labeled.images import WholeImageDataset
from ..data.labeled.segmentation import PixelSettings, prepare_whole
from ..data.reading import ImageDataset, NoReadableImageError, UnreadableImages, check_images
from ..data.value_range import check_value_range
from ..data.whole_images import PreparedImages, none_readable, processed
from ..evaluation.prediction import (
    class_names,
    classification_table,
    draw_mask,
    predict_images,
    problem_type,
    segmentation_table,
)
from ..evaluation.tables import WRITERS, TableFile, unfinished_path
from ..model.configuration_simmim import SimMIMConfig
from .command import Command, in_words, make_folder, print_titled
from .options.images import ImageArguments
from .options.models import ComputeArguments

# Rows that are written at once.
GROUP_SIZE = 1024
# Table in a folder of masks.
TABLE_NAME = "predictions.csv"
# Classes that are printed at the end.
MAX_PRINTED = 20


@dataclass
class PredictionArguments(ComputeArguments):
    """Options of predictions."""

    _argument_group_name = "predictions"

    checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Trained classifier or segmentation model: output folder of finetune or segment, or name on the"
            " Hub."
        },
    )
    output: str | None = field(
        default=None,
        metadata={
            "help": "Table of a classifier's predictions (.csv or .parquet), or folder of a segmentation model's masks"
            " (runs/predictions.csv or runs/masks if unset)."
        },
    )
    batch_size: int | None = field(
        default=None, metadata={"help": "Images per batch (128 if unset, 1 for segmentation)."}
    )
    threshold: float | None = field(
        default=None,
        metadata={"help": "Probability from which on a class is predicted, for multi-label models (0.5 if unset)."},
    )
    eval_crop_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Share of the shorter side that the center crop keeps (that of the checkpoint if unset). Only for"
            " classifiers of this package."
        },
    )
    max_unreadable: float = field(
        default=0.05, metadata={"help": "Largest share of unreadable images (0 to 1) before the run stops."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the predictions that --output holds."})

    def __post_init__(self):
        super().__post_init__()
        if self.checkpoint is None:
            raise ValueError("No checkpoint is named. Give --checkpoint, the output folder of finetune or segment.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1.")
        for name in ("threshold", "max_unreadable"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must be between 0 and 1.")


class PreparedData(NamedTuple):
    """The images as the model takes them."""

    dataset: ImageDataset
    stride: int  # divisor of padded sizes, in pixels


def prepare(
    model: PreTrainedModel, is_segmentation: bool, rows: Dataset, arguments: PredictionArguments
) -> PreparedData:
    """Prepare images as the training evaluated them, or for other models by their own image processor.

    Args:
        model: The model.
        is_segmentation: Whether it is a segmentation model.
        rows: Rows of `name` and undecoded `image`.
        arguments: The options.

    Returns:
        The data set and the stride.

    Raises:
        ValueError: If the pixel values do not fit the normalization, or an option does not fit the model.
    """
    checkpoint, config = str(arguments.checkpoint), model.config
    ours: Any = getattr(config, "backbone_config", None) if is_segmentation else config
    is_ours = getattr(ours, "model_type", None) == SimMIMConfig.model_type
    if arguments.eval_crop_ratio is not None and (is_segmentation or not is_ours):
        raise ValueError(
            f"eval_crop_ratio={arguments.eval_crop_ratio} has no effect: only classifiers of this package crop images"
            " so. Leave it out."
        )
    if not is_ours:
        return _prepare_by_processor(checkpoint, getattr(config, "num_channels", 3), rows)
    num_channels = ours.num_channels
    settings = {"rescale_factor": 1 / 255, "nodata": None} | pixel_settings(checkpoint, num_channels)
    check_value_range(rows, num_channels, **settings)
    stored = stored_processor(checkpoint)
    if not is_segmentation:
        ratio = arguments.eval_crop_ratio or stored.get("crop_ratio", 1.0)
        return PreparedData(
            WholeImageDataset(rows, ours.image_size, num_channels, crop_ratio=ratio, **settings), stride=1
        )
    short_side = stored.get("size", {}).get("shortest_edge") if stored.get("do_resize", True) else None
    whole = partial(prepare_whole, pixels=PixelSettings(num_channels, **settings), short_side=short_side)
    dataset = PreparedImages(rows, num_channels, whole, settings["rescale_factor"], settings["nodata"])
    return PreparedData(dataset, ours.encoder_stride)


def _prepare_by_processor(checkpoint: str, num_channels: int, rows: Dataset) -> PreparedData:
    processor: Any = AutoImageProcessor.from_pretrained(checkpoint)
    does_rescale, does_normalize = (getattr(processor, f"do_{name}", False) for name in ("rescale", "normalize"))
    factor = getattr(processor, "rescale_factor", 1 / 255) if does_rescale else 1 / 255
    if does_rescale and does_normalize:
        check_value_range(rows, num_channels, factor, processor.image_mean, processor.image_std)
    prepare_one = partial(processed, processor=processor, num_channels=num_channels)
    return PreparedData(PreparedImages(rows, num_channels, prepare_one, factor), stride=1)


def check_output(arguments: PredictionArguments, is_segmentation: bool, image_dir: str | None) -> Path:
    """Find the file or folder to write, before any work.

    Args:
        arguments: The options.
        is_segmentation: Whether masks are written.
        image_dir: Folder of the images, if there is one.

    Returns:
        The file of a table, or the folder of masks.

    Raises:
        ValueError: If it is of the wrong kind, holds something that must not be replaced, or cannot be written.
    """
    path = Path(arguments.output or ("runs/masks" if is_segmentation else "runs/predictions.csv"))
    if not is_segmentation:
        if path.suffix not in WRITERS:
            raise ValueError(
                f"output={str(path)!r} must be a file that ends in {' or '.join(WRITERS)}: a classifier writes a table."
            )
        if path.is_dir():
            raise ValueError(f"output={str(path)!r} is a folder. Name a file.")
        if path.exists() and not arguments.overwrite:
            raise ValueError(f"{path} exists. Name another file, or add --overwrite.")
    else:
        if path.suffix in WRITERS or path.is_file():
            raise ValueError(f"output={str(path)!r} must be a folder: a segmentation model writes masks.")
        images, masks = (None if name is None else Path(name).resolve() for name in (image_dir, path))
        if images is not None and masks is not None and (masks.is_relative_to(images) or images.is_relative_to(masks)):
            raise ValueError(
                f"output={str(path)!r} and image_dir={image_dir!r} contain each other, so masks would lie among images."
                " Name another folder."
            )
        is_full = path.exists() and any(path.iterdir())
        if is_full and not arguments.overwrite:
            raise ValueError(f"{path} is not empty. Name another folder, or add --overwrite.")
        if is_full and not (path / TABLE_NAME).exists():
            # The folder is replaced as a whole.
            raise ValueError(f"{path} holds no predictions that --overwrite could replace. Name another folder.")
    make_folder(path.parent)
    return path


def mask_names(names: Sequence[str], image_dir: str | None) -> list[str]:
    """Paths of the masks inside their folder: those of the images in a folder, else row numbers.

    Args:
        names: Names of the images.
        image_dir: Their folder, if there is one.

    Returns:
        A path for each image, all different. Suffixes are replaced, or kept before .png if files differ only in them.
    """
    if image_dir is None:
        return [f"{index:06d}.png" for index in range(len(names))]
    paths = [Path(name).relative_to(image_dir) for name in names]
    short = [path.with_suffix(".png").as_posix() for path in paths]
    return short if len(set(short)) == len(short) else [f"{path.as_posix()}.png" for path in paths]


class PredictionRun:
    """One run of a model over all images: counts classes and unreadable images.

    Args:
        model: The model.
        data: The images, prepared.
        arguments: The options.
        unreadable: Record of the images that cannot be read.
        is_segmentation: Whether it is a segmentation model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        data: PreparedData,
        arguments: PredictionArguments,
        unreadable: UnreadableImages,
        is_segmentation: bool,
    ):
        self.model = model
        self.data = data
        self.arguments = arguments
        self.unreadable = unreadable
        self.is_segmentation = is_segmentation
        self.image_names: list[str] = data.dataset.images["name"][:]
        self.class_names = class_names(model.config)
        self.predicted: list[str] = []  # names of the images that could be read
        self.counts: Counter[int] = Counter()  # images that have a class
        self.shares = np.zeros(len(self.class_names))  # sum over images of the share of each class

    def outputs(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Predict; index and output of each image that can be read.

        Yields:
            Index of an image, and logits (K,) or classes (H, W).

        Raises:
            NoReadableImageError: If too many images cannot be read, or all.
        """
        arguments, unreadable = self.arguments, self.unreadable
        predictions = predict_images(
            *(self.model, self.data.dataset, self.data.stride),
            batch_size=arguments.batch_size or (1 if self.is_segmentation else 128),
            num_workers=arguments.num_workers,
            device=arguments.compute_device,
            dtype=arguments.compute_dtype,
        )
        for prediction in predictions:
            name = self.image_names[prediction.index]
            if prediction.output is not None:
                self.predicted.append(name)
                yield prediction.index, prediction.output
            else:
                unreadable.record([(name, prediction.reason)])
                if len(unreadable.reasons) > unreadable.max_share * unreadable.num_images:
                    break
        unreadable.share()
        if not self.predicted:
            raise NoReadableImageError(none_readable(len(self.image_names), list(unreadable.reasons.items())))

    def classify(self, path: Path) -> None:
        """Write the table of a classifier's predictions.

        Args:
            path: File to write.

        Raises:
            NoReadableImageError: As in `outputs`.
        """
        kind, threshold = problem_type(self.model.config), self.arguments.threshold
        if threshold is not None and kind != "multi_label_classification":
            raise ValueError(f"threshold={threshold} has no effect: the model predicts one class. Leave it out.")
        names: list[str] = []
        logits: list[torch.Tensor] = []

        def write() -> None:
            cut = 0.5 if threshold is None else threshold
            table, chosen = classification_table(names, torch.stack(logits), self.class_names, kind, cut)
            self.counts.update(index for row in chosen for index in row)
            file.write(table)
            names.clear()
            logits.clear()

        with TableFile(path) as file:
            for index, output in self.outputs():
                names.append(self.image_names[index])
                logits.append(output)
                if len(names) == GROUP_SIZE:
                    write()
            if names:
                write()

    def segment(self, folder: Path, masks: Sequence[str]) -> None:
        """Write masks and their table.

        Args:
            folder: Folder to write, which exists.
            masks: Path of the mask of each image inside the folder.

        Raises:
            NoReadableImageError: As in `outputs`.
        """
        count = len(self.class_names)
        with TableFile(folder / TABLE_NAME) as file:
            for index, output in self.outputs():
                classes = output.numpy()
                mask = folder / masks[index]
                mask.parent.mkdir(parents=True, exist_ok=True)
                draw_mask(classes, count).save(mask)
                shares = np.bincount(classes.reshape(-1), minlength=count) / classes.size
                self.counts.update(np.flatnonzero(shares).tolist())
                self.shares += shares
                file.write(
                    segmentation_table([self.image_names[index]], [masks[index]], shares[None], self.class_names)
                )

    def print_summary(self, output: Path) -> None:
        """Print how many images have which class, and where the predictions are."""
        unreadable, num_images = self.unreadable, len(self.predicted)
        lines = {"Images": f"{num_images:,}"}
        if unreadable.reasons:
            lines["Unreadable"] = f"{len(unreadable.reasons):,}, listed in {unreadable.path}"
        frequent = self.counts.most_common(MAX_PRINTED)
        for index, count in frequent:
            pixels = f", {self.shares[index] / num_images:.1%} of the pixels" if self.is_segmentation else ""
            # Indented, as a class may be called like another line.
            lines[f"  {self.class_names[index]}"] = f"{count:,} image{'s' * (count > 1)}{pixels}"
        if len(self.counts) > len(frequent):
            lines["Other classes"] = f"{len(self.counts) - len(frequent)}"
        print_titled({f"{title}:": text for title, text in (lines | {"Output": str(output)}).items()})


@dataclass(frozen=True)
class PredictionResult:
    """Result of predicting.

    Args:
        path: Table with a row for each image, see `table`.
        output: The same file, or the folder of masks that contains it.
        names: Names of the images that were predicted, row by row.
        counts: Number of images that have a class, by its name; empty for models that predict numbers.
        unreadable: Names of the images that were left out, with reasons.
        task: What the model predicts: `"classification"`, `"regression"` or `"segmentation"`.
    """

    path: Path
    output: Path
    names: list[str]
    counts: dict[str, int]
    unreadable: dict[str, str]
    task: str = "classification"

    def table(self) -> pyarrow.Table:
        """Read the table; `to_pandas()` makes a data frame of it."""
        read = pyarrow.parquet.read_table if self.path.suffix == ".parquet" else pyarrow.csv.read_csv
        return read(self.path)


def replace_folder(unfinished: Path, path: Path) -> None:
    """Give a complete folder its name; an earlier one of that name is removed when the new one is in its place."""
    former = path.with_name(f"{path.name}.former")
    if path.exists():
        shutil.rmtree(former, ignore_errors=True)
        os.replace(path, former)
    os.replace(unfinished, path)
    shutil.rmtree(former, ignore_errors=True)


def predict_all(images: ImageArguments, arguments: PredictionArguments) -> PredictionResult:
    """Predict, and write what was predicted.

    Args:
        images: Source of the images.
        arguments: The other options.

    Returns:
        The result.

    Raises:
        ValueError, OSError: If the checkpoint or the images cannot be used; the message says why and what to do.
    """
    model, is_segmentation = load_predictor(str(arguments.checkpoint))
    path = check_output(arguments, is_segmentation, images.image_dir)
    rows, _ = images.load()
    rows = rows.select(images.chosen(rows))
    data = prepare(model, is_segmentation, rows, arguments)
    check_images([data.dataset], arguments.max_unreadable)
    unreadable = UnreadableImages(
        path.with_name(f"{path.name}.unreadable_images.txt"), len(rows), arguments.max_unreadable
    )
    run = PredictionRun(model, data, arguments, unreadable, is_segmentation)
    if is_segmentation:
        unfinished = unfinished_path(path)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            run.segment(unfinished, mask_names(run.image_names, images.image_dir))
            replace_folder(unfinished, path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    else:
        run.classify(path)
    run.print_summary(path)
    counts = {run.class_names[index]: count for index, count in run.counts.most_common()}
    table = path / TABLE_NAME if is_segmentation else path
    is_regression = not is_segmentation and problem_type(model.config) == "regression"
    task = "segmentation" if is_segmentation else "regression" if is_regression else "classification"
    return PredictionResult(table, path, run.predicted, counts, dict(unreadable.reasons), task)


def run(images: ImageArguments, arguments: PredictionArguments) -> PredictionResult:
    """Predict on all images."""
    with in_words(arguments.checkpoint):
        return predict_all(images, arguments)


COMMAND = Command(
    name="predict",
    usage="--checkpoint NAME [--image_dir FOLDER] [--output FILE_OR_FOLDER] [options]",
    description=__doc__,
    kinds=(ImageArguments, PredictionArguments),
    run=run,
    common=(
        *("checkpoint", "image_dir", "dataset_name", "data_files", "split", "max_images", "output", "overwrite"),
        *("threshold", "max_unreadable", "precision", "batch_size", "num_workers", "device"),
    ),
)
