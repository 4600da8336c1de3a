"""Images that are on both sides of a split: copies of the same bytes."""

import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO

import pyarrow
import pyarrow.compute
from datasets import Dataset, Image
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Of more images the files are not read for this: `hf-simmim audit` does it in parallel.
MAX_IMAGES = 20_000
# Bytes at both ends of a file, which tell apart most of those of one size, and of a block that is read at once.
END, BLOCK = 4096, 2**20


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
    """Digest of each file of which another one may be a copy; None for others, arrays, and parts of files.

    Only those of the same size and the same ends are read as a whole: files of scientific images often have one size.
    """
    found: list[list[Any]] = [_sizes(rows) for rows in parts]
    for digest in (_digest_of_ends, _digest):
        counts = Counter(key for keys in found for key in keys)
        found = [
            [
                digest(rows[index]["image"]) if key is not None and counts[key] > 1 else None
                for index, key in enumerate(keys)
            ]
            for rows, keys in zip(parts, found, strict=True)
        ]
    return found


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


def _digest_of_ends(image: dict[str, Any]) -> bytes | None:
    """Digest of the size, the first and the last bytes of a file."""
    return _hashed(image, _ends)


def _digest(image: dict[str, Any]) -> bytes | None:
    """Digest of a whole file."""
    return _hashed(image, lambda file: iter(partial(file.read, BLOCK), b""))


def _ends(file: BinaryIO) -> Iterator[bytes]:
    yield file.read(END)
    size = file.seek(0, os.SEEK_END)
    yield size.to_bytes(8, "big")
    file.seek(max(0, size - END))
    yield file.read(END)


def _hashed(image: dict[str, Any], read: Callable[[BinaryIO], Iterable[bytes]]) -> bytes | None:
    try:
        with io.BytesIO(image["bytes"]) if image["bytes"] is not None else open(image["path"], "rb") as file:
            digest = hashlib.blake2b()
            for block in read(file):
                digest.update(block)
            return digest.digest()
    except OSError:
        return None  # said where it is read
