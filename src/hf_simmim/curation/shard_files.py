"""The images to pack, and their shards on disk: parquet files or webdataset archives, and what is said of each."""

import hashlib
import io
import json
import math
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature

from ..data.sources import NOTES_FOLDER, SHARD_SUFFIXES
from .shrinking import ShrinkSettings

# Rows of a row group, which is read as a whole in training.
GROUP_ROWS = 100
ANNOTATION = {"bytes": Value("binary"), "path": Value("string")}


@dataclass(frozen=True)
class PackSource:
    """Images to pack, in the order of the shards.

    Args:
        rows: Rows of `image`, undecoded, and `name`.
        names: What the shards tell of where each image comes from, such as its path below the folder.
        labels: Label of each image, if there are labels.
        label_feature: Type of the labels.
        annotations: Path of the map of class ids of each image, if there are maps.
        sizes: Bytes of each file if it is known, to notice other images.
    """

    rows: Dataset
    names: Sequence[str]
    labels: Sequence[Any] | None = None
    label_feature: Any = None
    annotations: Sequence[str] | None = None
    sizes: Sequence[int] | None = None

    def fingerprint(self) -> str:
        """Fingerprint of the list of images: names, sizes, labels and names of annotations."""
        content = hashlib.blake2b(repr(self.label_feature).encode(), digest_size=12)
        annotations = None if self.annotations is None else [Path(path).name for path in self.annotations]
        for values in (self.names, self.labels, annotations, self.sizes):
            content.update(b"none" if values is None else json.dumps(list(values)).encode())
        return content.hexdigest()


@dataclass(frozen=True)
class PackSettings:
    """How images are packed.

    Args:
        shrinking: Size and format of the images.
        shard_images: Images of a shard, unreadable ones counted.
        shards: `parquet` or `webdataset`.
    """

    shrinking: ShrinkSettings = field(default_factory=ShrinkSettings)
    shard_images: int = 1000
    shards: str = "parquet"

    def __post_init__(self):
        if self.shard_images < 1:
            raise ValueError(f"shard_images={self.shard_images} must be 1 or more, such as 1000.")
        if self.shards not in SHARD_SUFFIXES:
            raise ValueError(f"shards={self.shards!r} is unknown. Use one of: {', '.join(SHARD_SUFFIXES)}.")

    def as_dict(self) -> dict[str, Any]:
        """The settings as they are written to files."""
        return {**asdict(self.shrinking), "shard_images": self.shard_images, "shards": self.shards}


@dataclass(frozen=True)
class Moments:
    """Moments of stored pixels.

    Args:
        images: Number of images.
        count: Number of pixels with finite values in all channels.
        mean: Mean of each channel.
        squares: Sum of squared distances to the mean, of each channel.
    """

    images: int
    count: int
    mean: list[float]
    squares: list[float]

    @classmethod
    def of(cls, pixels: np.ndarray) -> "Moments":
        """Moments of an image (C, H, W)."""
        values = pixels.reshape(len(pixels), -1).astype(np.float64)
        values = values[:, np.isfinite(values).all(axis=0)]
        if not values.size:
            return cls(1, 0, [0.0] * len(pixels), [0.0] * len(pixels))
        mean = values.mean(axis=1, keepdims=True)
        return cls(1, values.shape[1], mean[:, 0].tolist(), np.square(values - mean).sum(axis=1).tolist())

    def joined(self, before: "Moments | None") -> "Moments":
        """Together with those of earlier pixels, by Chan's update."""
        if before is None:
            return self
        count = before.count + self.count
        share = self.count / max(count, 1)
        pairs = list(zip(before.mean, self.mean, before.squares, self.squares, strict=True))
        mean = [old + (new - old) * share for old, new, _, _ in pairs]
        squares = [a + b + (new - old) ** 2 * before.count * share for old, new, a, b in pairs]
        return Moments(before.images + self.images, count, mean, squares)

    def as_dict(self) -> dict[str, Any]:
        """As they are written to a file."""
        return vars(self)


@dataclass(frozen=True)
class ShrunkImage:
    """An image for a shard.

    Args:
        content: Content of the file.
        suffix: Suffix of such a file.
        annotation: Content and suffix of its map of class ids, if it has one.
        size: (height, width), in pixels.
        is_shrunk: Whether the original is larger.
        kind: Channels, data type and white of its values, such as `3 uint8 255`.
        moments: Moments of its values.
    """

    content: bytes
    suffix: str
    annotation: tuple[bytes, str] | None
    size: tuple[int, int]
    is_shrunk: bool
    kind: str
    moments: Moments


@dataclass
class ShardNote:
    """What is said of a shard.

    Args:
        unreadable: Name and reason of each image that was left out.
        files: Number of images by suffix.
        pixels: Moments of the stored values by channels, data type and white, such as `3 uint8 255`.
        images: Number of images.
        shrunk: Number of those that were larger.
        bytes: Bytes of all images.
        smallest: (height, width) of the smallest image, in pixels.
        largest: (height, width) of the largest image, in pixels.
    """

    unreadable: list[tuple[str, str]] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    pixels: dict[str, Moments] = field(default_factory=dict)
    images: int = 0
    shrunk: int = 0
    bytes: int = 0
    smallest: list[int] = field(default_factory=list)
    largest: list[int] = field(default_factory=list)

    def add(self, image: ShrunkImage) -> None:
        """Add an image."""
        size = list(image.size)
        self.images += 1
        self.shrunk += image.is_shrunk
        self.bytes += len(image.content)
        self.files[image.suffix] = self.files.get(image.suffix, 0) + 1
        self.smallest = min(self.smallest or size, size, key=math.prod)
        self.largest = max(self.largest or size, size, key=math.prod)
        self.pixels[image.kind] = image.moments.joined(self.pixels.get(image.kind))

    def as_dict(self) -> dict[str, Any]:
        """As it is written to a file."""
        pixels = {kind: moments.as_dict() for kind, moments in sorted(self.pixels.items())}
        return vars(self) | {"pixels": pixels, "files": dict(sorted(self.files.items()))}


class _ParquetWriter:
    """Writes rows to a parquet file, in row groups."""

    def __init__(self, path: Path, source: PackSource):
        self.path, self.source = path, source
        self.features = Features({"image": ImageFeature(), "name": Value("string")})
        if source.labels is not None:
            self.features["label"] = source.label_feature
        if source.annotations is not None:
            # Not declared as an image, so that the dataset has one column of images.
            self.features["annotation"] = ANNOTATION
        self.rows: list[dict[str, Any]] = []

    def __enter__(self) -> "_ParquetWriter":
        # Contents are compressed already, and statistics of them would fill the footer.
        options = {"use_dictionary": False, "write_statistics": False, "compression": "snappy"}
        self.writer = pyarrow.parquet.ParquetWriter(self.path, self.features.arrow_schema, **options)
        return self

    def add(self, index: int, image: ShrunkImage) -> None:
        row: dict[str, Any] = {"image": _file(index, image.content, image.suffix), "name": self.source.names[index]}
        if self.source.labels is not None:
            row["label"] = self.source.labels[index]
        if image.annotation is not None:
            row["annotation"] = _file(index, *image.annotation)
        self.rows.append(row)
        if len(self.rows) == GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self.rows:
            self.writer.write_table(pyarrow.Table.from_pylist(self.rows, schema=self.features.arrow_schema))
            self.rows = []

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._flush()
        self.writer.close()


class _TarWriter:
    """Writes images, their names and labels to a webdataset archive."""

    def __init__(self, path: Path, source: PackSource):
        self.path, self.source = path, source

    def __enter__(self) -> "_TarWriter":
        self.archive = tarfile.open(self.path, "w", format=tarfile.USTAR_FORMAT)
        return self

    def add(self, index: int, image: ShrunkImage) -> None:
        described: dict[str, Any] = {"name": self.source.names[index]}
        label = None if self.source.labels is None else self.source.labels[index]
        self._write(f"{index:09}.{image.suffix}", image.content)
        if self.source.labels is not None:
            described["label"] = label
            if isinstance(label, int):
                self._write(f"{index:09}.cls", str(label).encode())
        self._write(f"{index:09}.json", json.dumps(described).encode())

    def _write(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self.archive.addfile(member, io.BytesIO(content))

    def __exit__(self, *error: Any) -> None:
        self.archive.close()


WRITERS: dict[str, Any] = {"parquet": _ParquetWriter, "webdataset": _TarWriter}


def _file(index: int, content: bytes, suffix: str) -> dict[str, Any]:
    return {"bytes": content, "path": f"{index:09}.{suffix}"}


class ShardFolder:
    """The shards of a folder, and what is said of each.

    Args:
        folder: The folder.
        settings: How images are packed.
        num_images: Number of all images, unreadable ones counted.
    """

    def __init__(self, folder: Path, settings: PackSettings, num_images: int):
        self.settings, self.num_images = settings, num_images
        number = math.ceil(num_images / settings.shard_images)
        suffix = SHARD_SUFFIXES[settings.shards]
        self.paths = [folder / f"train-{shard:05}-of-{number:05}{suffix}" for shard in range(number)]
        self.folder = folder / NOTES_FOLDER
        self._found: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def indices(self, shard: int) -> range:
        """Indices of the images of a shard."""
        first = shard * self.settings.shard_images
        return range(first, min(first + self.settings.shard_images, self.num_images))

    def note(self, shard: int) -> dict[str, Any] | None:
        """What is said of a shard; None if the shard is not there."""
        if shard not in self._found:
            path = self.folder / f"{self.paths[shard].stem}.json"
            if not (self.paths[shard].exists() and path.exists()):
                return None
            self._found[shard] = json.loads(path.read_text(encoding="utf-8"))
        return self._found[shard]

    def notes(self) -> Iterator[dict[str, Any]]:
        """What is said of the shards that are there, in their order."""
        for shard in range(len(self)):
            note = self.note(shard)
            if note is not None:
                yield note

    def write(self, shard: int, source: PackSource, results: Iterator[Any], bar: Any) -> dict[str, Any]:
        """Write a shard beside its place, then what is said of it, and move it to its place.

        Args:
            shard: Number of the shard.
            source: The images.
            results: A `ShrunkImage` or a reason for each image from here on, of which those of the shard are taken.
            bar: Progress bar, moved by one for each image.

        Returns:
            What is said of the shard.

        Raises:
            ValueError: If images of a webdataset shard are not alike.
            OSError: If the shard cannot be written.
        """
        note = ShardNote()
        part = self.folder / f"{self.paths[shard].name}.{os.getpid()}.part"
        with WRITERS[self.settings.shards](part, source) as writer:
            for index in self.indices(shard):
                result = next(results)
                bar.update()
                if isinstance(result, str):
                    note.unreadable.append((source.names[index], result))
                    continue
                writer.add(index, result)
                note.add(result)
        if self.settings.shards == "webdataset" and len(note.files) > 1:
            part.unlink()
            raise ValueError(
                f"Images become {', '.join(sorted(note.files))}, and those of webdataset shards must be alike. Use"
                " --shards parquet."
            )
        with part.open("rb") as file:
            os.fsync(file.fileno())
        write_json(self.folder / f"{self.paths[shard].stem}.json", note.as_dict())
        part.replace(self.paths[shard])
        found = self.note(shard)
        assert found is not None
        return found


def lengths(rows: Dataset) -> list[int] | None:
    """Bytes of the image of each row of a table; None where it holds arrays, or paths.

    Args:
        rows: Rows of undecoded `image`.

    Returns:
        As many numbers, read without the images.
    """
    if not isinstance(rows.features["image"], ImageFeature):
        return None
    column = rows.select_columns("image").with_format("arrow")
    found: list[int] = []
    for batch in column.iter(1000):
        content = pyarrow.compute.struct_field(batch["image"], "bytes")
        found += pyarrow.compute.fill_null(pyarrow.compute.binary_length(content), 0).to_pylist()
    return found


def write_json(path: Path, content: Any, beside: Path | None = None) -> None:
    """Write a file as a whole or not at all.

    Args:
        path: The file.
        content: What it will hold.
        beside: Folder in which it is written first; its own if None.
    """
    part = (beside or path.parent) / f"{path.name}.{os.getpid()}.part"
    part.write_text(json.dumps(content, indent=2), encoding="utf-8")
    part.replace(path)
