"""Options of scripts that say where images come from and what their pixels mean."""

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from datasets import Dataset
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

from ..checkpoints.loading import inherited_pixels
from ..data.image_statistics import channel_statistics
from ..data.labeled_images import LabeledImages, load_labeled_images
from ..data.sources import embedded_data
from ..model.images import keeps_deep_pictures

logger = logging.get_logger(__name__)


@dataclass
class SourceArguments:
    """Where the images come from."""

    train_dir: str | None = field(default=None, metadata={"help": "Folder of images to train on."})
    validation_dir: str | None = field(
        default=None, metadata={"help": "Folder of images to evaluate on. Without it a part of the images is held out."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Data set on the Hub, or a local one."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    data_files: list[str] | None = field(
        default=None, metadata={"help": "Parquet or webdataset (.tar) shards: paths, patterns or URLs."}
    )
    train_split: str = field(default="train", metadata={"help": "Split of the data set to train on."})
    validation_split: str | None = field(
        default=None, metadata={"help": "Split of --dataset_name to evaluate on. Without it a part is held out."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the images; found by its type."})
    holdout: float = field(
        default=0.05,
        metadata={"help": "Share of the images held out for evaluation if no other are named; 0 for none."},
    )
    holdout_seed: int = field(default=0, metadata={"help": "Seed of the choice of those images."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only this many images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on only this many images."})
    max_unreadable: float = field(
        default=0.05, metadata={"help": "Largest share of images that may be unreadable before the run stops."}
    )

    @property
    def names_images(self) -> bool:
        """Whether any source of training images is named."""
        return bool(self.train_dir or self.dataset_name or self.data_files)

    def check_source(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ValueError: If a split is named where there are none, or no images are left.
        """
        if self.validation_split is not None and (self.train_dir or self.data_files):
            raise ValueError(
                f"validation_split={self.validation_split!r} needs --dataset_name: folders and files have no splits."
                " Use --validation_dir, or --holdout to keep a part of the images apart."
            )
        if self.dataset_config is not None and self.dataset_name is None:
            raise ValueError(
                f"dataset_config={self.dataset_config!r} does nothing without --dataset_name. Name that too, or leave"
                " it out."
            )
        if self.image_column is not None and self.train_dir is not None:
            raise ValueError(f"image_column={self.image_column!r} does nothing in a folder. Leave it out.")
        for name in ("max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} leaves no images. Use 1 or more.")


@dataclass
class PixelArguments:
    """What the numbers in the images mean."""

    rescale_factor: str | None = field(
        default=None,
        metadata={
            "help": "What pixels are multiplied with before anything else, a number or a fraction; that of --checkpoint"
            " or 1/255 if unset. At 1/255 pictures of 16 bits are scaled to 8. Any other factor keeps their numbers:"
            " 1/65535 if they use the whole range, 1/4095 for 12 bits in 16. Arrays (.npy, TIFF of many bands or other"
            " numbers) always keep theirs."
        },
    )
    image_mean: list[float] | None = field(
        default=None,
        metadata={
            "help": "Mean of each channel, of rescaled pixels. That of --checkpoint, or ImageNet's for three channels"
            " at 1/255, or else computed from the training images."
        },
    )
    image_std: list[float] | None = field(
        default=None, metadata={"help": "Standard deviation of each channel, of rescaled pixels; likewise."}
    )
    compute_statistics: bool = field(
        default=False,
        metadata={"help": "Compute mean and standard deviation from the training images in any case."},
    )
    nodata: float | None = field(
        default=None,
        metadata={
            "help": "Pixels of which all channels are this number in the file are none: no target, no statistics. TIFF"
            " files may tell it themselves (GDAL); numbers that are not finite always count as such. That of"
            " --checkpoint if unset and the rescale_factor is the same; nan for none."
        },
    )

    def __post_init__(self):
        self.rescale = 1 / 255
        if self.rescale_factor is not None:
            try:
                self.rescale = float(Fraction(self.rescale_factor))
            except (ValueError, ZeroDivisionError):
                self.rescale = 0.0
        if self.rescale <= 0:
            raise ValueError(f"rescale_factor={self.rescale_factor} is no positive number. Use one such as 1/65535.")

    def settle(
        self, checkpoint: str | None, num_channels: int, images: Dataset, before: dict[str, Any]
    ) -> dict[str, list[float]]:
        """Fill in what was not given: from the checkpoint, ImageNet, or the images themselves.

        Args:
            checkpoint: Folder or name on the Hub of the weights to start from, if any.
            num_channels: Channels of the model.
            images: Training images.
            before: `run.json` of the run that is gone on with, or nothing.

        Returns:
            `image_mean` and `image_std`.

        Raises:
            ValueError: If other than one value for each channel is given.
        """
        inherited = inherited_pixels(checkpoint)
        if self.rescale_factor is None:
            self.rescale = inherited.get("rescale_factor", self.rescale)
        if self.nodata is None and inherited.get("rescale_factor") == self.rescale:
            self.nodata = inherited.get("nodata")
        if self.nodata is not None and not math.isfinite(self.nodata):
            # Such pixels are none in any case, and NaN would be another number whenever it is compared.
            self.nodata = None
        return image_statistics(self, num_channels, images, before, inherited)


def image_statistics(
    data: PixelArguments, num_channels: int, images: Dataset, before: dict[str, Any], inherited: dict[str, Any]
) -> dict[str, list[float]]:
    """Mean and standard deviation of the channels.

    Args:
        data: The options, which win where they are given.
        num_channels: Channels of the model.
        images: Training images.
        before: `run.json` of the run that is gone on with, or nothing.
        inherited: Settings of the image processor of `--checkpoint`, or nothing.

    Returns:
        `image_mean` and `image_std`: those given, or else the checkpoint's, ImageNet's, or those of the images.

    Raises:
        ValueError: If other than one value for each channel is given.
    """
    given = {key: getattr(data, key) for key in ("image_mean", "image_std") if getattr(data, key) is not None}
    for key, values in given.items():
        if len(values) != num_channels:
            raise ValueError(
                f"{key} has {len(values)} values and the model takes {num_channels} channels. Give one for each"
                " channel."
            )
    if len(given) == 2:
        return given
    is_rgb = num_channels == 3 and not keeps_deep_pictures(data.rescale)
    fits = len(inherited.get("image_mean") or ()) == len(inherited.get("image_std") or ()) == num_channels
    if fits and inherited.get("rescale_factor") == data.rescale and not data.compute_statistics:
        mean, std = inherited["image_mean"], inherited["image_std"]
    elif is_rgb and not data.compute_statistics:
        mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    elif before.get("image_mean") and before.get("image_std"):
        mean, std = before["image_mean"], before["image_std"]
    else:
        mean, std = channel_statistics(images, num_channels, data.rescale, nodata=data.nodata)
        brightest = max(m + 2 * s for m, s in zip(mean, std, strict=True))
        if not 0.02 < brightest < 5:
            logger.warning(
                f"Rescaled pixels reach about {brightest:.3g}, where 0 to 1 is usual. Is --rescale_factor"
                f" {data.rescale_factor or '1/255'} right? 1/65535 is for 16 bits, 1/10000 for reflectances, 1 for"
                " floats in [0, 1]. masked_l1 is meant for such a scale."
            )
    return {"image_mean": mean, "image_std": std} | given


@dataclass
class LabeledSourceArguments(SourceArguments):
    """Where the images and labels come from."""

    train_dir: str | None = field(default=None, metadata={"help": "Folder with one sub-folder for each class."})
    validation_dir: str | None = field(
        default=None, metadata={"help": "The same of images to evaluate on. Without it a part is held out."}
    )
    label_column: str | None = field(default=None, metadata={"help": "Column of the labels; found by its type."})


def load_labeled_splits(
    arguments: SourceArguments, label_column: str | None, needs_validation: bool = True
) -> tuple[LabeledImages, LabeledImages | None]:
    """Labeled images to train on, and those to evaluate on if they are named; the embedded ones if none are named.

    Args:
        arguments: Where they are.
        label_column: Column of the labels.
        needs_validation: Whether the test split of the embedded images is wanted.

    Returns:
        Both, with the same classes.

    Raises:
        ValueError, OSError: If they cannot be used; the message says why and what to do.
    """
    arguments.check_source()
    for name in ("validation_dir", "validation_split"):
        value = getattr(arguments, name)
        if value is not None and not arguments.names_images:
            raise ValueError(
                f"{name}={value!r} does nothing without images to train on. Name --train_dir, --dataset_name or"
                " --data_files, too, or leave it out."
            )
    source: dict[str, Any] = {
        "folder": arguments.train_dir,
        "dataset_name": arguments.dataset_name,
        "dataset_config": arguments.dataset_config,
        "data_files": arguments.data_files,
        "image_column": arguments.image_column,
        "label_column": label_column,
    }
    validation_split = arguments.validation_split
    if not arguments.names_images:
        source["dataset_name"] = embedded_data()
        if needs_validation:
            validation_split = validation_split or "test"
    train = load_labeled_images(**source, split=arguments.train_split)
    validation = None
    if arguments.validation_dir is not None:
        validation = load_labeled_images(arguments.validation_dir)
    elif validation_split is not None:
        validation = load_labeled_images(**source, split=validation_split)
    return train, None if validation is None else validation.with_classes(train.class_names)
