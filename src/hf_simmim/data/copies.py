"""Images that are on both sides of a split: copies of the same bytes."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow
import pyarrow.compute
from datasets import Dataset, Image
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Of more images the files are not read for this: `hf-simmim audit` does it in parallel.
MAX_IMAGES = 20_000


def warn_of_copies(train: Dataset, validation: Dataset | None) -> None:
    """Warn of validation images that are training images, too, which makes results on them too good.

    Args:
        train: Rows of `name` and undecoded `image`.
        validation: Such rows; None if they are still to be drawn from the others, which are then compared with each
            other.
    """
    parts = [train] if validation is None else [train, validation]
    if sum(map(len, parts)) > MAX_IMAGES:
        return
    of_train, *others = _digests(parts)
    first: dict[bytes, int] = {}
    for index, digest in enumerate(of_train):
        if digest is not None:
            first.setdefault(digest, index)
    remedy = "Remove them; `hf-simmim audit` lists them, and near duplicates."
    if validation is not None:
        copies = [
            (index, first[digest]) for index, digest in enumerate(others[0]) if digest is not None and digest in first
        ]
        if copies:
            logger.warning(
                f"{len(copies)} of {len(validation)} validation images are training images, too, byte for byte, such"
                f" as {validation[copies[0][0]]['name']} and {train[copies[0][1]]['name']}: results on them are too"
                f" good. {remedy}"
            )
        return
    copies = [(index, first[digest]) for index, digest in enumerate(of_train) if digest and first[digest] < index]
    if copies:
        logger.warning(
            f"{len(copies)} of {len(train)} images are copies of others, byte for byte, such as"
            f" {train[copies[0][0]]['name']} of {train[copies[0][1]]['name']}: held-out images may be training images,"
            f" too, and results on them too good. {remedy}"
        )


def _digests(parts: Sequence[Dataset]) -> list[list[bytes | None]]:
    """Digest of each file that is as long as another one; None for others, arrays, and parts of files."""
    sizes = [_sizes(rows) for rows in parts]
    counts = Counter(size for found in sizes for size in found)
    return [
        [
            _digest(rows[index]["image"]) if size is not None and counts[size] > 1 else None
            for index, size in enumerate(found)
        ]
        for rows, found in zip(parts, sizes, strict=True)
    ]


def _sizes(rows: Dataset) -> list[int | None]:
    """Size of each file in bytes, without reading any."""
    if not isinstance(rows.features["image"], Image):
        return [None] * len(rows)
    sizes: list[int | None] = []
    for table in rows.select_columns("image").with_format("arrow").iter(1000):
        lengths = pyarrow.compute.binary_length(pyarrow.compute.struct_field(table["image"], "bytes")).to_pylist()
        paths = pyarrow.compute.struct_field(table["image"], "path").to_pylist()
        sizes += [_size_of(path) if length is None else length for length, path in zip(lengths, paths, strict=True)]
    return sizes


def _size_of(path: str | None) -> int | None:
    try:
        return os.stat(path).st_size if path is not None and os.path.isfile(path) else None
    except OSError:
        return None


def _digest(image: dict[str, Any]) -> bytes | None:
    if image["bytes"] is not None:
        return hashlib.blake2b(image["bytes"]).digest()
    try:
        with open(image["path"], "rb") as file:
            return hashlib.file_digest(file, hashlib.blake2b).digest()
    except OSError:
        return None  # said where it is read
