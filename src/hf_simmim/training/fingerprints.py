"""Fingerprints of images and models, by which a resumed run notices that they changed."""

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets import Image as ImageFeature

from ..data.sampling import evenly_spaced, sampled_checksum
from ..data.streaming import StreamedImages
from ..data.windows import WindowRows
from ..formats.address import parse_address

# Files are read as a whole if all of them have at most this many bytes, else in parts.
MAX_BYTES = 2**30
# Otherwise three blocks are read of at most so many images, and the size of every file counts.
NUM_SAMPLED = 20_000
# Files that are listed with a run at most, and changed ones that are named.
MAX_FILES, NUM_NAMED = 200_000, 3
# Images of a table that are read at once.
NUM_ROWS = 256


class Fingerprint(dict[str, Any]):
    """Fingerprint of images: `number`, `names` and `content`, JSON-serializable.

    Args:
        facts: These three.
        files: Fingerprint of each file by its name, if the images are files and not too many of them.
    """

    def __init__(self, facts: dict[str, Any], files: dict[str, str] | None = None):
        super().__init__(facts)
        self.files = files or {}

    def changes(self, before: dict[str, str]) -> str:
        """Name the files that differ from those of another time.

        Args:
            before: `files` of that time.

        Returns:
            A sentence with a space before it; empty if nothing can be named.
        """
        if not before or not self.files:
            return ""
        groups = {
            "changed": [name for name, content in self.files.items() if before.get(name, content) != content],
            "missing": [name for name in before if name not in self.files],
            "new": [name for name in self.files if name not in before],
        }
        parts = [
            f"{len(names):,} {kind} ({', '.join(names[:NUM_NAMED])}{', ...' if len(names) > NUM_NAMED else ''})"
            for kind, names in groups.items()
            if names
        ]
        return f" Files: {'; '.join(parts)}." if parts else ""


def digest(images: Dataset | StreamedImages | WindowRows) -> Fingerprint:
    """Fingerprint of images: their number, names in order, and contents.

    Names are relative to the folder that holds all images, so the folder may be moved or be named in another way. Of
    more than a gigabyte, contents are a sample.

    Args:
        images: Rows of `name` and undecoded `image`.

    Returns:
        The fingerprint.
    """
    if isinstance(images, StreamedImages):
        return Fingerprint(images.digest())
    if isinstance(images, WindowRows):
        # Which windows are drawn is a setting of the run.
        images = images.files
    rows = images.select_columns("image")
    paths, files = _paths(rows), list[str]()
    if paths:
        folder = os.path.commonpath([os.path.abspath(path) for path in paths])
        names = [os.path.relpath(path, folder) for path in paths]
        content, files = _file_contents(paths)
    else:
        names = list(images.select_columns("name")["name"])
        # The name of a table may be the way to it; packed images have names of files in its folder.
        named = " row " in names[0] if names else True
        folder = "" if named else os.path.commonpath([os.path.dirname(name) or "." for name in names])
        names = [name.rpartition(" row ")[2] if named else os.path.relpath(name, folder) for name in names]
        content = _table_content(rows)
    digest = hashlib.blake2b("\n".join(names).encode(), digest_size=6)
    facts = {"number": len(names), "names": digest.hexdigest(), "content": content}
    return Fingerprint(facts, dict(zip(names, files, strict=True)) if 0 < len(files) <= MAX_FILES else None)


def _paths(rows: Dataset) -> list[str]:
    """Files of the images; empty if a table holds the images themselves."""
    if not len(rows) or not isinstance(rows.features["image"], ImageFeature):
        return []
    column = rows.with_format("arrow")[:]["image"].combine_chunks()
    if column.field("bytes").null_count < len(column):
        return []
    return [str(path) for path in column.field("path").to_pylist()]


def _file_contents(paths: list[str]) -> tuple[str, list[str]]:
    """Fingerprint of images that are files, and of each of them: of those that are not read, the size.

    Images inside a file have that of the file.
    """
    places = [parse_address(path).path for path in paths]
    paths = list(dict.fromkeys(places))
    content = hashlib.blake2b(digest_size=6)
    versions = [_version(path) for path in paths]
    sizes = [size for size, _ in versions]
    content.update(repr(sizes).encode())
    is_small = sum(sizes) <= MAX_BYTES
    files = [str(size) for size in sizes]
    for index in range(len(paths)) if is_small else evenly_spaced(len(paths), NUM_SAMPLED):
        part = _file_content(paths[index], *versions[index], is_small)
        content.update(part)
        files[index] = part.hex()[:12]
    found = dict(zip(paths, files, strict=True))
    return content.hexdigest(), [found[place] for place in places]


def _table_content(rows: Dataset) -> str:
    """Fingerprint of images that are stored in a table."""
    content = hashlib.blake2b(digest_size=6)
    table = rows.with_format("arrow")
    share = len(rows) / max(1, len(rows.data))
    is_small = rows.data.nbytes * share <= MAX_BYTES
    starts = list(range(0, len(rows), NUM_ROWS))
    if not is_small:
        starts = [starts[index] for index in evenly_spaced(len(starts), NUM_SAMPLED // NUM_ROWS)]
    for start in starts:
        batch = table[start : start + NUM_ROWS].combine_chunks()
        for part in batch.to_batches():
            content.update(part.serialize())
    return content.hexdigest()


def _version(path: str) -> tuple[int, int]:
    try:
        facts = os.stat(path)
    except OSError:
        return -1, -1
    return facts.st_size, facts.st_mtime_ns


@functools.lru_cache(maxsize=200_000)
def _file_content(path: str, size: int, modified: int, whole: bool) -> bytes:
    """Checksum of a file or of three blocks of it; the same file is read once, as long as it is not modified.

    Of a folder that takes the place of a file, names and sizes count.
    """
    if os.path.isdir(path):
        inner = sorted(str(file.relative_to(path)) for file in Path(path).rglob("*") if file.is_file())
        sizes = [(name, os.path.getsize(os.path.join(path, name))) for name in inner]
        return hashlib.blake2b(repr(sizes).encode()).digest()
    try:
        with open(path, "rb") as file:
            if whole:
                return hashlib.file_digest(file, "blake2b").digest()
            return sampled_checksum(file, size)
    except OSError:
        return b"unreadable"


def model_digest(checkpoint: str, with_weights: bool) -> str | None:
    """Fingerprint of the model in a folder, or of its architecture only; None for a name on the Hub."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return None
    content = hashlib.blake2b(digest_size=6)
    patterns = ("*config.json", *(("*.safetensors", "pytorch_model*.bin") if with_weights else ()))
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        with path.open("rb") as file:
            content.update(hashlib.file_digest(file, "blake2b").digest())
    return content.hexdigest()


def initial_weights(checkpoint: str | None) -> str | None:
    """What a run starts from: the fingerprint of a folder, wherever it is, or a name on the Hub."""
    return None if checkpoint is None else model_digest(checkpoint, with_weights=True) or checkpoint
