"""Options of commands that name the images and define their normalization."""

import math
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

from ...checkpoints.loading import inherited_pixels
from ...data.copies import warn_of_copies
from ...data.image_statistics import channel_statistics
from ...data.labeled.images import LabeledImages, load_labeled_images
from ...data.sampling import evenly_spaced
from ...data.sources import (
    check_one_source,
    embedded_data,
    find_image_column,
    image_rows,
    load_images,
    load_table,
    packed_files,
    shown_url,
)
from ...data.streaming import StreamedImages, stream_images
from ...data.value_range import check_value_range, sample_range
from ...formats.jpeg import DECODERS, choose_decoder
from ...formats.readers import holds_numbers
from ...model.images import keeps_deep_pictures
from .slices import SliceArguments

logger = logging.get_logger(__name__)


@dataclass
class SourceArguments(SliceArguments):
    """Source of the images."""

    train_dir: str | None = field(
        default=None, metadata={"help": "Folder of training images (embedded images if no source is named)."}
    )
    validation_dir: str | None = field(
        default=None, metadata={"help": "Folder of validation images (--holdout of the training images if unset)."}
    )
    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set on the Hub, or path of a local one, instead of --train_dir."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of --dataset_name."})
    data_files: list[str] | None = field(
        default=None, metadata={"help": "Parquet or webdataset (.tar) shards: paths, patterns or URLs."}
    )
    train_split: str = field(default="train", metadata={"help": "Training split of the data set."})
    validation_split: str | None = field(
        default=None,
        metadata={"help": "Validation split of --dataset_name (--holdout of the training images if unset)."},
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the images (found by type if unset)."})
    holdout: float = field(
        default=0.05,
        metadata={"help": "Share of the training images (0 to 1) held out if no validation images are named."},
    )
    holdout_seed: int = field(default=0, metadata={"help": "Random seed of the choice of held-out images."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Largest number of training images (all if unset)."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Largest number of validation images (all if unset)."}
    )
    max_unreadable: float = field(
        default=0.05, metadata={"help": "Largest share of unreadable images (0 to 1) before the run stops."}
    )

    @property
    def names_images(self) -> bool:
        """Whether any source of training images is named."""
        return bool(self.train_dir or self.dataset_name or self.data_files)

    def _check_folders(self) -> None:
        """Refuse validation images that are the training images, of which none would be left."""
        train = None if self.train_dir is None else Path(self.train_dir).resolve()
        if train is not None and self.validation_dir is not None:
            validation = Path(self.validation_dir).resolve()
            if train.is_relative_to(validation):
                kind = "is train_dir" if train == validation else "holds train_dir"
                raise ValueError(f"validation_dir={self.validation_dir!r} {kind}. Name a folder of other images.")

    def source(self) -> dict[str, Any]:
        """Arguments of `load_images` that name the training images, or the embedded ones if none are named."""
        return {
            "folder": self.train_dir,
            "dataset_name": self.dataset_name if self.names_images else embedded_data(),
            "dataset_config": self.dataset_config,
            "data_files": self.data_files,
            "image_column": self.image_column,
            "slicing": self.slicing,
        }

    def check_source(self) -> None:
        """Refuse contradictory options.

        Raises:
            ValueError: If a split is named for images without splits, or no images are left.
        """
        if self.validation_split is not None and (self.train_dir or self.data_files):
            raise ValueError(
                f"validation_split={self.validation_split!r} needs --dataset_name: folders and files have no splits."
                " Use --validation_dir, or --holdout to hold out a part of the images."
            )
        self._check_folders()
        if self.dataset_config is not None and self.dataset_name is None:
            raise ValueError(
                f"dataset_config={self.dataset_config!r} has no effect without --dataset_name. Set that too, or leave"
                " it out."
            )
        if self.image_column is not None and self.train_dir is not None:
            raise ValueError(f"image_column={self.image_column!r} has no effect for a folder. Leave it out.")
        for name in ("max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} leaves no images. Use 1 or more.")


@dataclass
class StreamingArguments:
    """Shards that are read while training."""

    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the shards of --data_files, --dataset_name or a packed --train_dir while training, wherever"
            " they are (local, hf://, s3://, https://), instead of copying them to this disk first."
        },
    )
    stream_cache: str | None = field(
        default=None,
        metadata={"help": "Folder for the parts of the shards that are in use (in the cache of datasets if unset)."},
    )
    stream_cache_gb: float = field(default=20.0, metadata={"help": "Size of that folder at most, in gigabytes."})

    def open_split(self, arguments: SourceArguments, split: str) -> StreamedImages:
        """Open a split of the shards that the options name."""
        source = arguments.source()
        folder = source.pop("folder")
        # Shards hold images alone.
        del source["slicing"]
        if folder is not None:
            source["data_files"] = packed_files(folder)
        size = int(self.stream_cache_gb * 1e9)
        return stream_images(**source, split=split, cache_folder=self.stream_cache, cache_bytes=size)


@dataclass
class ImageArguments(SliceArguments):
    """Source of images without labels; the embedded ones if none are named."""

    _argument_group_name = "images"

    image_dir: str | None = field(default=None, metadata={"help": "Folder of images, nested or not."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "Data set on the Hub, or path of a local one, instead of --image_dir."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of --dataset_name."})
    data_files: list[str] | None = field(
        default=None, metadata={"help": "Parquet or webdataset (.tar) shards: paths, patterns or URLs."}
    )
    split: str | None = field(
        default=None, metadata={"help": "Split of the data set (train if unset, or test of the embedded one)."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the images (found by type if unset)."})
    max_images: int | None = field(default=None, metadata={"help": "Largest number of images (all if unset)."})

    def __post_init__(self):
        if self.max_images is not None and self.max_images < 1:
            raise ValueError(f"max_images={self.max_images} leaves no images. Use 1 or more.")
        for name in ("split", "dataset_config", "image_column", "label_column"):
            value = getattr(self, name, None)
            if value is not None and self.image_dir is not None:
                raise ValueError(f"{name}={value!r} has no effect for a folder. Leave it out.")
        if self.image_dir is None and self.dataset_name is None and self.data_files is None:
            self.dataset_name, self.split = embedded_data("--image_dir"), self.split or "test"
        check_one_source(self.image_dir, self.dataset_name, self.data_files)

    def load(self) -> tuple[Dataset, Dataset | None]:
        """Load all images, undecoded.

        Returns:
            Rows of `name` and undecoded `image`, and the table that they come from, None for a folder.

        Raises:
            ValueError, OSError: If the images cannot be used; the message says why and what to do.
        """
        if self.image_dir is not None:
            return load_images(self.image_dir, slicing=self.slicing), None
        split = self.split or "train"
        table = load_table(self.dataset_name, self.dataset_config, self.data_files, split)
        name = f"{self.dataset_name or ', '.join(map(shown_url, self.data_files or ()))}, {split}"
        return image_rows(table, find_image_column(table, self.image_column), name), table

    def chosen(self, rows: Dataset) -> list[int]:
        """Indices of the rows to use: all, or --max_images of them, evenly spaced."""
        return list(range(len(rows))) if self.max_images is None else evenly_spaced(len(rows), self.max_images)


@dataclass
class PixelArguments:
    """Normalization of the images, and their missing pixels."""

    rescale_factor: str | None = field(
        default=None,
        metadata={
            "help": "Factor of the pixel values, a number or a fraction (that of --checkpoint or 1/255 if unset). At"
            " 1/255, 16-bit pictures are scaled to 8 bits. Any other factor keeps their values: 1/65535 if they use"
            " the whole range, 1/4095 for 12 bits in 16. Arrays (.npy, TIFF with many bands or other data types) always"
            " keep their values."
        },
    )
    image_mean: list[float] | None = field(
        default=None,
        metadata={
            "help": "Mean of each channel of the rescaled pixels. If unset, that of --checkpoint, or ImageNet's for"
            " three channels at 1/255, otherwise computed from the training images."
        },
    )
    image_std: list[float] | None = field(
        default=None, metadata={"help": "Standard deviation of each channel (chosen like --image_mean if unset)."}
    )
    compute_statistics: bool = field(
        default=False,
        metadata={"help": "Always compute mean and standard deviation from the training images."},
    )
    nodata: float | None = field(
        default=None,
        metadata={
            "help": "Value of missing pixels in the file (that of --checkpoint if unset, nan for none). Pixels with"
            " this value in all channels are missing, as are NaN and infinite values: they are excluded from targets"
            " and statistics. TIFF files may state the value (GDAL). The checkpoint's requires its rescale_factor."
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
            raise ValueError(f"rescale_factor={self.rescale_factor} must be a positive number, such as 1/65535.")

    def known_nodata(self, checkpoint: str | None) -> float | None:
        """Value of missing pixels before `settle`: that of the option, or else of the checkpoint."""
        inherited = {} if self.nodata is not None else inherited_pixels(checkpoint)
        is_same = self.rescale_factor is None or inherited.get("rescale_factor") == self.rescale
        return inherited.get("nodata") if is_same and self.nodata is None else self.nodata

    def settle(
        self, checkpoint: str | None, num_channels: int, images: Dataset, before: dict[str, Any]
    ) -> dict[str, list[float]]:
        """Fill in unset options from the checkpoint, ImageNet, or the images.

        Args:
            checkpoint: Folder or name on the Hub of the weights to start from, if any.
            num_channels: Channels of the model.
            images: Training images.
            before: `run.json` of the resumed run; empty for a new run.

        Returns:
            `image_mean` and `image_std`.

        Raises:
            ValueError: If the number of values differs from the number of channels, or the pixels of the images do not
                fit the statistics and the factor.
        """
        inherited = inherited_pixels(checkpoint)
        if self.rescale_factor is None:
            self.rescale = inherited.get("rescale_factor", self.rescale)
        if self.nodata is None and inherited.get("rescale_factor") == self.rescale:
            self.nodata = inherited.get("nodata")
        if self.nodata is not None and not math.isfinite(self.nodata):
            # Such pixels are always missing, and NaN does not equal itself.
            self.nodata = None
        is_default = self.rescale_factor is None and "rescale_factor" not in inherited
        if is_default and isinstance(images, Dataset) and holds_numbers(images["name"][:]):
            self._fit_factor(images, num_channels)
        statistics = image_statistics(self, num_channels, images, before, inherited)
        check_value_range(images, num_channels, self.rescale, **statistics, nodata=self.nodata, is_default=is_default)
        return statistics

    def _fit_factor(self, images: Dataset, num_channels: int) -> None:
        """Choose the factor of numbers that have no range of their own, such as Hounsfield units."""
        found = sample_range(images, num_channels, self.rescale, self.nodata)
        if found is not None and not found.is_bytes and max(abs(found.low), abs(found.high)) > 2 * 255:
            self.rescale = float(Fraction(found.fitting_factor))
            logger.warning(
                f"The numbers of the images range from {found.low:g} to {found.high:g} and are multiplied by"
                f" {found.fitting_factor}. Another --rescale_factor may be chosen."
            )


@dataclass
class DecoderArguments:
    """Decoding of training images."""

    image_decoder: str = field(
        default="auto",
        metadata={
            "help": "What decodes JPEG files for training: auto is the fastest of those that are installed. Pixels"
            " differ slightly between them; pillow has those of the evaluation and of earlier versions.",
            "choices": ["auto", *DECODERS],
        },
    )

    def decoder(self, before: dict[str, Any]) -> str:
        """Choose the decoder.

        Args:
            before: `run.json` of the resumed run; empty for a new run.

        Returns:
            A name of `DECODERS`. A resumed run keeps its own.

        Raises:
            ValueError: If it is not installed, or not that of the resumed run.
        """
        # Earlier versions had no other.
        return choose_decoder(self.image_decoder, before.get("image_decoder", "pillow") if before else None)


def stream_splits(arguments: Any, streaming: StreamingArguments) -> tuple[StreamedImages, Any]:
    """Open training images in shards, and validation images or None.

    Args:
        arguments: A `SourceArguments`.
        streaming: Options of the shards.

    Returns:
        Training images, and validation images or None.

    Raises:
        ValueError, OSError: If the shards cannot be used; the message says why and what to do.
    """
    is_packed = arguments.train_dir is not None and bool(packed_files(arguments.train_dir))
    if arguments.dataset_name is None and arguments.data_files is None and not is_packed:
        raise ValueError(
            "streaming=True needs shards. Name them with --data_files or --dataset_name, or pack the folder first:"
            " hf-simmim pack FOLDER OUT, and --train_dir OUT."
        )
    for name in ("leave_out", "max_train_samples"):
        if getattr(arguments, name, None) is not None:
            raise ValueError(
                f"{name}={getattr(arguments, name)!r} has no effect with --streaming. Write shards without those"
                " images, or leave --streaming out."
            )
    if streaming.stream_cache_gb <= 0:
        raise ValueError(f"stream_cache_gb={streaming.stream_cache_gb} must be more than 0, such as 20.")
    train = streaming.open_split(arguments, arguments.train_split)
    limit = arguments.max_eval_samples
    if arguments.validation_dir is not None:
        validation = load_images(arguments.validation_dir, slicing=arguments.slicing)
        return train, validation if limit is None else validation.select(evenly_spaced(len(validation), limit))
    if arguments.validation_split is not None:
        validation = streaming.open_split(arguments, arguments.validation_split)
        return train, validation if limit is None else validation.split(min(limit, len(validation)), 0)[1]
    if not arguments.holdout:
        return train, None
    count = round(len(train) * arguments.holdout)
    if not 0 < arguments.holdout < 1 or not 0 < count < len(train):
        raise ValueError(
            f"holdout={arguments.holdout} of {len(train)} images leaves none on a side. Use a share in (0, 1), or 0 to"
            " hold out none."
        )
    train, validation = train.split(count, arguments.holdout_seed)
    return train, validation if limit is None else validation.split(min(limit, count), 0)[1]


def image_statistics(
    data: PixelArguments, num_channels: int, images: Dataset, before: dict[str, Any], inherited: dict[str, Any]
) -> dict[str, list[float]]:
    """Choose mean and standard deviation of the channels.

    Args:
        data: The options, which take precedence.
        num_channels: Channels of the model.
        images: Training images.
        before: `run.json` of the resumed run; empty for a new run.
        inherited: Settings of the image processor of `--checkpoint`, or empty.

    Returns:
        `image_mean` and `image_std`: those of the options, the checkpoint, ImageNet, or the images.

    Raises:
        ValueError: If the number of values differs from the number of channels.
    """
    given = {key: getattr(data, key) for key in ("image_mean", "image_std") if getattr(data, key) is not None}
    for key, values in given.items():
        if len(values) != num_channels:
            raise ValueError(
                f"{key} has {len(values)} values, but the model takes {num_channels} channels. Give one for each"
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
                f"Rescaled pixels reach about {brightest:.3g}; 0 to 1 is usual. Is --rescale_factor"
                f" {data.rescale_factor or '1/255'} right? 1/65535 is for 16 bits, 1/10000 for reflectances, 1 for"
                " floats in [0, 1]. masked_l1 assumes this scale."
            )
    return {"image_mean": mean, "image_std": std} | given


@dataclass
class LabeledSourceArguments(SourceArguments):
    """Source of the labeled images."""

    train_dir: str | None = field(
        default=None, metadata={"help": "Folder of training images, with a subfolder for each class."}
    )
    validation_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of validation images, with the same subfolders (--holdout is used if unset)."},
    )
    label_column: str | None = field(default=None, metadata={"help": "Column of the labels (found by type if unset)."})


def load_labeled_splits(
    arguments: SourceArguments, label_column: str | None, needs_validation: bool = True
) -> tuple[LabeledImages, LabeledImages | None]:
    """Load labeled training images, and validation images if they are named; the embedded ones if none are named.

    Args:
        arguments: Source of the images.
        label_column: Column of the labels; found by type if None.
        needs_validation: Whether to use the test split of the embedded images for validation.

    Returns:
        Training images, and validation images or None, with the same classes.

    Raises:
        ValueError, OSError: If the images cannot be used; the message says why and what to do.
    """
    arguments.check_source()
    for name in ("validation_dir", "validation_split"):
        value = getattr(arguments, name)
        if value is not None and not arguments.names_images:
            raise ValueError(
                f"{name}={value!r} has no effect without training images. Set --train_dir, --dataset_name or"
                " --data_files, too, or leave it out."
            )
    source = {**arguments.source(), "label_column": label_column}
    validation_split = arguments.validation_split
    if not arguments.names_images and needs_validation:
        validation_split = validation_split or "test"
    train = load_labeled_images(**source, split=arguments.train_split)
    validation = None
    if arguments.validation_dir is not None:
        validation = load_labeled_images(arguments.validation_dir, slicing=arguments.slicing)
    elif validation_split is not None:
        validation = load_labeled_images(**source, split=validation_split)
    validation = None if validation is None else validation.with_classes(train.class_names)
    warn_of_copies(train.rows, None if validation is None else validation.rows)
    return train, validation
