"""Shrink images to the size that training needs, once, and write them to parquet or webdataset shards.

    hf-simmim pack photos packed                                              shorter side 256 px
    hf-simmim pack photos packed --labels folder --size 320                   sub-folders are classes
    hf-simmim pack --dataset_name NAME --label_column label --output_dir packed
    hf-simmim pack photos packed --part 3/16                                  on one of sixteen machines

Pictures of 8 bits become JPEG (or PNG, --format png); all others keep their data type, without loss. Trainings and
other commands take the folder as --train_dir or --image_dir, `pretrain` also with --streaming. A command that was
killed is repeated, and continues.
"""

import os
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Value

from ..curation.packing import Packed, pack_images
from ..curation.shard_files import PackSettings, PackSource, lengths
from ..curation.shrinking import FORMATS, ShrinkSettings
from ..data.labeled.images import load_labeled_images
from ..data.labeled.segmentation import check_orientations, stem_of
from ..data.sources import SHARD_SUFFIXES, image_addresses, packed_files
from ..formats.address import parse_address
from ..formats.slicing import Slicing
from .command import Command, in_words, make_folder
from .options.images import ImageArguments
from .options.parts import PartArguments, run_parts
from .pretrain import without

# Columns that tell where a row comes from: that of packed images, and that of webdataset archives.
NAME_COLUMNS = ("name", "__key__")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class PackedImageArguments(ImageArguments):
    """Source of the images, and what is packed with them."""

    _argument_group_name = "images"

    label_column: str | None = field(
        default=None, metadata={"help": "Column of labels of --dataset_name or --data_files to carry along."}
    )
    labels: str | None = field(
        default=None,
        metadata={
            "help": "Set to folder, the sub-folders of --image_dir are labels to carry along.",
            "choices": ["folder"],
        },
    )
    annotation_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of maps of class ids to carry along, named like the images except for their suffixes."
        },
    )
    leave_out: str | None = field(
        default=None, metadata={"help": "JSON file with a list of images to leave out, by their paths."}
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("labels", "annotation_dir"):
            if getattr(self, name) is not None and self.image_dir is None:
                raise ValueError(f"{name}={getattr(self, name)!r} needs --image_dir, a folder of images.")


@dataclass
class PackArguments(PartArguments):
    """How images are packed."""

    _argument_group_name = "packing"

    output_dir: str | None = field(default=None, metadata={"help": "Folder of the shards, new or to be continued."})
    size: int = field(
        default=256, metadata={"help": "Shorter side in pixels to shrink images to; smaller ones keep their size."}
    )
    format: str = field(default="jpeg", metadata={"help": "Format of pictures of 8 bits.", "choices": list(FORMATS)})
    quality: int = field(default=92, metadata={"help": "Quality of JPEG, 1 to 100."})
    num_channels: int = field(
        default=3,
        metadata={"help": "Channels that a model will take. With 2 or 4, transparency is a band like others."},
    )
    nodata: float | None = field(
        default=None,
        metadata={"help": "Value of missing pixels in the file (that which TIFF and FITS files state if unset)."},
    )
    shards: str = field(default="parquet", metadata={"help": "Kind of shards.", "choices": list(SHARD_SUFFIXES)})
    shard_images: int = field(default=1000, metadata={"help": "Images of a shard."})
    workers: int = field(default_factory=_cores, metadata={"help": "Processes."})
    max_unreadable: float = field(
        default=0.05, metadata={"help": "Largest share of unreadable images (0 to 1) before packing stops."}
    )

    def __post_init__(self):
        self.check_part()
        if self.output_dir is None:
            raise ValueError("No output folder is named. Give --output_dir, the folder of the shards.")
        self.settings = PackSettings(
            ShrinkSettings(self.size, self.format, self.quality, self.num_channels, self.nodata),
            self.shard_images,
            self.shards,
        )


@dataclass(frozen=True)
class PackingResult:
    """Result of packing images.

    Args:
        output_dir: Folder of the shards.
        files: The shards that are there: all, or those of the parts that are done.
        num_images: Number of images in them.
        unreadable: Names of the images that were left out, with reasons.
        facts: Content of `pack.json`: statistics of the pixels, sizes and settings; None until all parts are done.
    """

    output_dir: Path
    files: list[Path]
    num_images: int
    unreadable: dict[str, str]
    facts: dict[str, Any] | None


def find_source(images: PackedImageArguments) -> PackSource:
    """Find the images, their names, labels and annotations.

    Args:
        images: The options.

    Returns:
        What is to be packed.

    Raises:
        ValueError, OSError: If the images, labels or annotations cannot be used; the message says what to do.
    """
    rows, table = images.load()
    names, labels, feature, sizes = list(rows["name"]), None, None, None
    if table is None:
        folder = Path(str(images.image_dir))
        short = [Path(name).relative_to(folder).as_posix() for name in names]
        if not packed_files(folder):
            sizes = _sizes(names)
        if images.labels is not None:
            labeled = load_labeled_images(folder, slicing=images.slicing)
            found = dict(zip(labeled.rows["name"], labeled.labels, strict=True))
            labels, feature = [found.get(name, -1) for name in names], ClassLabel(names=labeled.class_names)
    else:
        short = _row_names(table)
        sizes = lengths(rows)
        if images.label_column is not None:
            if images.label_column not in table.column_names:
                raise ValueError(
                    f"label_column={images.label_column!r} does not exist. The columns are:"
                    f" {', '.join(table.column_names)}."
                )
            feature = table.features[images.label_column]
            labels = table.select_columns(images.label_column).with_format(None)[images.label_column][:]
    chosen = images.chosen(rows)
    if images.leave_out is not None:
        kept = set(without(rows.select(chosen), Path(images.leave_out))["name"])
        chosen = [index for index in chosen if names[index] in kept]
    annotations = None
    if images.annotation_dir is not None:
        single = replace(images.slicing, slice_neighbors=0, gray_window=None)
        annotations = _annotations([short[index] for index in chosen], Path(images.annotation_dir), single)
        check_orientations([names[index] for index in chosen], annotations)
    rows = rows if len(chosen) == len(rows) else rows.select(chosen)
    return PackSource(
        rows,
        [short[index] for index in chosen],
        None if labels is None else [labels[index] for index in chosen],
        feature,
        annotations,
        None if sizes is None else [sizes[index] for index in chosen],
    )


def _sizes(names: list[str]) -> list[int]:
    """Bytes of each file, shared by its images."""
    paths = [parse_address(name).path for name in names]
    shares = Counter(paths)
    return [os.path.getsize(path) // shares[path] if os.path.exists(path) else 0 for path in paths]


def _row_names(table: Dataset) -> list[str]:
    for column in NAME_COLUMNS:
        if column in table.column_names and table.features[column] == Value("string"):
            return [
                f"row {row}" if name is None else name
                for row, name in enumerate(table.select_columns(column)[column][:])
            ]
    return [f"row {row}" for row in range(len(table))]


def _annotations(names: list[str], folder: Path, slicing: Slicing) -> list[str]:
    """Path of the map of class ids of each image."""
    paths = {stem_of(path, folder): path for path in image_addresses(folder, slicing=slicing)}
    stems = [stem_of(name, Path()) for name in names]
    lacking = [name for name, stem in zip(names, stems, strict=True) if stem not in paths]
    if lacking:
        raise ValueError(
            f"{len(lacking)} of {len(names)} images have no map in annotation_dir={str(folder)!r}; the first is"
            f" {lacking[0]}. Add maps of the same names, or list the images in --leave_out."
        )
    return [paths[stem] for stem in stems]


def _print_packed(packed: Packed, num_images: int) -> None:
    for name, reason in list(packed.unreadable.items())[:5]:
        print(f"left out: {name} ({reason})")
    if packed.unreadable:
        print(f"{len(packed.unreadable)} of {num_images:,} images cannot be read and are left out.")
    facts = packed.facts
    if facts is None:
        print(
            f"{packed.output_dir}  {len(packed.files)} of {packed.num_shards} shards with {packed.num_images:,} images;"
            " the last part writes pack.json"
        )
        return
    low, high = ("x".join(map(str, facts[key] or ())) for key in ("smallest", "largest"))
    print(
        f"{packed.output_dir}  {packed.num_shards} shards of {packed.num_images:,} images,"
        f" {facts['bytes'] / 1e6:,.1f} MB, {low if low == high else f'{low} to {high}'} px;"
        f" {facts['num_shrunk']:,} were larger"
    )
    print(f"{packed.output_dir / 'pack.json'}  statistics of the pixels, sizes and settings")


def run(images: PackedImageArguments, arguments: PackArguments) -> PackingResult:
    """Pack images, and print what was packed."""
    with in_words():
        output_dir = make_folder(str(arguments.output_dir))
        if images.image_dir is not None and Path(images.image_dir).resolve() == output_dir.resolve():
            raise ValueError(f"output_dir={str(output_dir)!r} is image_dir. Name a folder of its own for the shards.")
        run_parts(arguments, partial(run, images))
        source = find_source(images)
        packed = pack_images(
            source, output_dir, arguments.settings, arguments.workers, arguments.part, arguments.max_unreadable
        )
        _print_packed(packed, len(source.names))
    return PackingResult(packed.output_dir, packed.files, packed.num_images, packed.unreadable, packed.facts)


COMMAND = Command(
    name="pack",
    usage="FOLDER OUT [--size PIXELS] [--labels folder] [options]",
    description=__doc__,
    kinds=(PackedImageArguments, PackArguments),
    run=run,
    common=(
        *("image_dir", "output_dir", "dataset_name", "data_files", "size", "format", "labels", "label_column"),
        *("annotation_dir", "leave_out", "shards", "workers", "part"),
    ),
    positional=("image_dir", "output_dir"),
)
