"""Shards of images, local or remote: where each row is, and blocks of rows that are kept on disk while they are used.

A block is a row group of a parquet file, or a run of neighboring files of a webdataset archive. Only the index of the
shards is read in advance: the footers of parquet files and the headers of archives. So the number of images is known,
any of them can be read, and the state of a training is its step, for any number of processes and workers.
"""

import contextlib
import errno
import hashlib
import os
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
from datasets import Dataset, Features
from datasets.table import table_cast
from datasets.utils import tqdm
from filelock import FileLock
from transformers.utils import logging

from .sampling import sampled_checksum
from .sources import find_image_column, image_rows, image_suffixes, shard_format, shown_url

logger = logging.get_logger(__name__)

Read = TypeVar("Read")
# Rows of a parquet file that are in memory at once, and files and bytes of an archive that are a block.
NUM_ROWS, NUM_FILES, MAX_BYTES = 32, 256, 2**24
# Shares of a cache: that a process writes before it looks for files to delete, and that it then leaves free for others.
SHARE_TO_LOOK, SHARE_TO_LEAVE = 0.01, 0.1
# Bytes that are read ahead of a remote file, and files whose index is read at once.
READ_AHEAD, NUM_THREADS = 2**22, 16
# Errors of a disk that is full or read-only.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Seconds between the attempts to read a remote file.
WAITS = (1, 2, 5, 15)
# What tells that a remote file has changed, by the names that the file systems have for it.
VERSION_KEYS = ("size", "ETag", "etag", "blob_id", "md5Hash", "generation", "LastModified", "last_modified", "mtime")
# Columns of the blocks: shard, number of the block in the shard, number of its rows, and row of the shard that is its
# first one.
SHARD, NUMBER, COUNT, ROW = range(4)


class BlockCache:
    """Files on disk that are used for a while, shared by all processes of a machine, up to a number of bytes.

    Args:
        folder: Folder of the files.
        max_bytes: Bytes of all files, beyond which those that were used the longest time ago are deleted.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder = folder
        self.max_bytes = max_bytes
        # Bytes that this process has written since it last looked at all files.
        self._num_new = max_bytes

    def read(self, name: str, write: Callable[[Path], Any], load: Callable[[Path], Read]) -> Read:
        """Read a file, which is written first if it is not there.

        Args:
            name: Name of the file, which stands for its content.
            write: Function that writes it to a path; one process at a time calls it.
            load: Function that reads it from a path.

        Returns:
            What `load` returns.

        Raises:
            OSError: If the file cannot be written; the message says how to move the folder.
        """
        path = self.folder / name
        for _ in range(3):
            # Another process may delete it meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if path.exists():
                    os.utime(path)
                    return load(path)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                # Few locks, since their files stay.
                with FileLock(self.folder / f"{hashlib.blake2b(name.encode(), digest_size=1).hexdigest()}.lock"):
                    if not path.exists():
                        self._write(path, write)
            except OSError as error:
                if error.errno not in UNWRITABLE and str(self.folder) not in str(error.filename):
                    raise
                raise OSError(
                    f"Blocks of images cannot be kept in {self.folder} ({error}). Make room there, name another folder"
                    " with --stream_cache, or set a smaller --stream_cache_gb."
                ) from error
        return load(path)

    def _write(self, path: Path, write: Callable[[Path], Any]) -> None:
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            write(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        self._num_new += path.stat().st_size
        if self._num_new > SHARE_TO_LOOK * self.max_bytes:
            self._num_new = 0
            self._evict(path)

    def _evict(self, newest: Path) -> None:
        files = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat()
                if not entry.name.endswith((".lock", ".part")):
                    files.append((status.st_mtime, status.st_size, entry.path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= (1 - SHARE_TO_LEAVE) * self.max_bytes:
                break
            if path != str(newest):
                with contextlib.suppress(OSError):
                    os.unlink(path)
                total -= size


class Shards:
    """Parquet or webdataset shards with the index of their blocks.

    Args:
        urls: Paths or URLs of the shards.
        image_column: Column of the images, or suffix of their files in an archive; found by type if None.
        cache: Where blocks are kept.

    Raises:
        ValueError: If a shard cannot be read or has other columns than the first; the message names it.
        FileNotFoundError: If there is no such shard.
    """

    def __init__(self, urls: Sequence[str], image_column: str | None, cache: BlockCache):
        self.urls = list(urls)
        self.cache = cache
        self.is_parquet = shard_format(self.urls) == "parquet"
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            index = _parquet_index if self.is_parquet else self._archive_index
            found = pool.map(lambda url: (_version(url), *index(url, image_column)), self.urls)
            entries = list(tqdm(found, total=len(self.urls), desc="index of shards", unit="shard"))
        self.versions = [version for version, _, _ in entries]
        self.features, self.column = None, image_column
        if self.is_parquet:
            self._choose_column([schema for _, _, schema in entries], image_column)
        elif image_column is None and sum((kinds for _, _, kinds in entries), Counter[str]()):
            kinds = sum((kinds for _, _, kinds in entries), Counter[str]())
            raise ValueError(
                f"Samples of {shown_url(self.urls[0])} and its like have several images each:"
                f" {', '.join(sorted(kinds))}. Name the one to train on with --image_column."
            )
        counts = [count for _, counts, _ in entries for count in counts]
        self.blocks = np.zeros((len(counts), 4), dtype=np.int64)
        self.blocks[:, SHARD] = np.repeat(np.arange(len(entries)), [len(counts) for _, counts, _ in entries])
        self.blocks[:, NUMBER] = [number for _, counts, _ in entries for number in range(len(counts))]
        self.blocks[:, COUNT] = counts
        self.blocks[:, ROW] = [row for _, counts, _ in entries for row in np.cumsum([0, *counts])[:-1]]
        self.blocks = self.blocks[self.blocks[:, COUNT] > 0]
        if not len(self.blocks):
            raise ValueError(f"{', '.join(map(shown_url, self.urls[:3]))} hold no images. Check the shards.")

    def _choose_column(self, schemas: Sequence[pyarrow.Schema], image_column: str | None) -> None:
        features = Features.from_arrow_schema(schemas[0])
        empty = Dataset(schemas[0].empty_table())
        self.column = find_image_column(empty, image_column)
        self.features = Features({self.column: features[self.column]})
        kind = schemas[0].field(self.column).type
        for url, schema in zip(self.urls, schemas, strict=True):
            if self.column not in schema.names or schema.field(self.column).type != kind:
                found = schema.field(self.column).type if self.column in schema.names else "no such column"
                raise ValueError(
                    f"Column {self.column!r} is {kind} in {shown_url(self.urls[0])}, but {found} in {shown_url(url)}."
                    " Write all shards alike, or name those that are."
                )

    def rows(self, block: Sequence[int]) -> Any:
        """Rows of a block.

        Args:
            block: A row of `blocks`.

        Returns:
            Rows of `name` and undecoded `image`, indexable by numbers from 0.

        Raises:
            OSError: If the shard cannot be read any more, or is damaged.
        """
        url = self.urls[block[SHARD]]
        name = hashlib.blake2b(
            repr((url, self.versions[block[SHARD]], self.column, int(block[NUMBER]))).encode(), digest_size=16
        ).hexdigest()
        if not self.is_parquet:
            return _ArchiveRows(self, block, name)
        return self.cache.read(
            f"{name}.arrow",
            lambda path: _write_row_group(url, int(block[NUMBER]), self.features, path),
            lambda path: image_rows(Dataset.from_file(str(path)), str(self.column), shown_url(url), int(block[ROW])),
        )

    def members(self, shard: int) -> np.ndarray:
        """Offset and size (N, 2) of the images of an archive, memory-mapped."""
        url = self.urls[shard]
        return self.cache.read(
            _index_name(url, self.versions[shard], self.column),
            lambda path: _write_members(url, self.column, path),
            lambda path: np.load(path, mmap_mode="r"),
        )

    def _archive_index(self, url: str, image_column: str | None) -> tuple[list[int], Counter[str]]:
        kinds = Counter[str]()
        members = self.cache.read(
            _index_name(url, _version(url), image_column),
            lambda path: kinds.update(_write_members(url, image_column, path)),
            lambda path: np.load(path, mmap_mode="r"),
        )
        return [stop - start for start, stop in archive_blocks(members)], kinds

    def fingerprint(self) -> str:
        """Fingerprint of the shards, wherever local ones are: names, sizes and a sample of their contents."""
        content = hashlib.blake2b(digest_size=6)
        for url, version in zip(self.urls, self.versions, strict=True):
            content.update(PurePosixPath(url).name.encode())
            content.update(repr(version).encode() if "://" in url else _sampled_content(url))
        return content.hexdigest()


def find_shards(data_files: Sequence[str]) -> list[str]:
    """Paths or URLs of the shards that paths, patterns and URLs name.

    Args:
        data_files: What a user named. Patterns have `*`, and `{000..099}` counts.

    Returns:
        Sorted in each pattern.

    Raises:
        FileNotFoundError: If there are none.
    """
    urls = []
    for pattern in (pattern for file in data_files for pattern in _counted(file)):
        if "*" not in pattern:
            urls.append(pattern)
            continue
        file_system, path = fsspec.core.url_to_fs(pattern)
        found = sorted(file_system.glob(path))
        if not found:
            raise FileNotFoundError(f"data_files={pattern!r} matches no file. Check the pattern.")
        urls += [file_system.unstrip_protocol(path) if "://" in pattern else path for path in found]
    return urls


def _counted(pattern: str) -> list[str]:
    """Names of `shard-{000..003}.tar`, as webdataset writes them."""
    start, brace, rest = pattern.partition("{")
    inner, end, tail = rest.partition("}")
    first, dots, last = inner.partition("..")
    if not (brace and end and dots and first.isdigit() and last.isdigit()):
        return [pattern]
    return [f"{start}{number:0{len(first)}d}{tail}" for number in range(int(first), int(last) + 1)]


def _version(url: str) -> tuple[str, ...]:
    """What changes with the content of a file: size and time, or what a server says."""
    with _patiently(url):
        file_system, path = fsspec.core.url_to_fs(url)
        facts = _tried(lambda: file_system.info(path), url)
    if facts.get("type") == "directory":
        raise ValueError(
            f"{shown_url(url)} is a folder. Name its files, such as {shown_url(url).rstrip('/')}/*.parquet."
        )
    return tuple(f"{key}={facts[key]}" for key in VERSION_KEYS if facts.get(key) is not None)


@contextlib.contextmanager
def _patiently(url: str) -> Iterator[None]:
    """Name the shard in an error."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"The shard {shown_url(url)} does not exist. Check the path.") from error
    except OSError as error:
        # Of libraries, whose messages may hold the whole URL.
        message = str(error).replace(url, shown_url(url))
        raise OSError(message if shown_url(url) in message else f"{shown_url(url)}: {message}") from error


def _tried(read: Callable[[], Read], url: str) -> Read:
    """Read a file, several times if it is remote: connections break."""
    for seconds in WAITS if "://" in url else ():
        try:
            return read()
        except FileNotFoundError:
            raise
        except Exception as error:  # each file system has its own kinds
            if getattr(error, "errno", None) in UNWRITABLE:
                raise
            logger.warning(f"{shown_url(url)} cannot be read ({type(error).__name__}); again in {seconds} s.")
            time.sleep(seconds)
    return read()


def _open(url: str) -> Any:
    # Per process: file systems of fsspec do not survive a fork.
    file_system, path = fsspec.core.url_to_fs(url)
    if "://" not in url:
        return open(path, "rb")
    return file_system.open(path, "rb", block_size=READ_AHEAD, cache_type="readahead")


def _parquet_index(url: str, image_column: str | None) -> tuple[list[int], pyarrow.Schema]:
    """Rows of each row group of a parquet file, and its schema."""

    def read() -> tuple[list[int], pyarrow.Schema]:
        with _open(url) as file:
            parquet = pyarrow.parquet.ParquetFile(file)
            facts = parquet.metadata
            return [facts.row_group(index).num_rows for index in range(facts.num_row_groups)], parquet.schema_arrow

    with _patiently(url):
        try:
            return _tried(read, url)
        except pyarrow.ArrowException as error:
            raise ValueError(
                f"{shown_url(url)} is damaged, or no parquet file ({error}). Download or write it again."
            ) from error


def _write_row_group(url: str, number: int, features: Any, path: Path) -> None:
    """Write the images of a row group as they are mapped into memory, few rows at a time."""

    def write() -> None:
        with _open(url) as file, pyarrow.OSFile(str(path), "wb") as sink:
            parquet = pyarrow.parquet.ParquetFile(file, pre_buffer=False)
            schema = features.arrow_schema
            with pyarrow.ipc.new_stream(sink, schema) as writer:
                batches = parquet.iter_batches(NUM_ROWS, row_groups=[number], columns=list(features), use_threads=False)
                for batch in batches:
                    writer.write_table(table_cast(pyarrow.Table.from_batches([batch]), schema))

    with _patiently(url):
        try:
            _tried(write, url)
        except pyarrow.ArrowException as error:
            raise OSError(
                f"Row group {number} of {shown_url(url)} is damaged ({error}). Download or write it again"
            ) from error


class _ArchiveRows:
    """Rows of a block of an archive: read from the file, or from a copy of the block if it is remote."""

    def __init__(self, shards: Shards, block: Sequence[int], name: str):
        self.shards, self.block, self.name = shards, block, name
        self.url = shards.urls[block[SHARD]]
        first = int(block[ROW])
        self.places = np.asarray(shards.members(int(block[SHARD]))[first : first + int(block[COUNT])])

    def __getitem__(self, index: int) -> dict[str, Any]:
        offset, size = (int(value) for value in self.places[index])
        if "://" in self.url:
            start = int(self.places[0, 0])
            content = self.shards.cache.read(
                f"{self.name}.bytes", self._copy, lambda path: _bytes_at(path, offset - start, size)
            )
        else:
            content = _bytes_at(Path(self.url), offset, size)
        if len(content) < size:
            raise OSError(f"{shown_url(self.url)} was cut after the training started. Restore it.")
        image = {"bytes": content, "path": None}
        return {"image": image, "name": f"{shown_url(self.url)} row {int(self.block[ROW]) + index}"}

    def _copy(self, path: Path) -> None:
        start, (last, size) = int(self.places[0, 0]), (int(value) for value in self.places[-1])

        def read() -> bytes:
            file_system, remote = fsspec.core.url_to_fs(self.url)
            return file_system.cat_file(remote, start=start, end=last + size)

        with _patiently(self.url):
            path.write_bytes(_tried(read, self.url))


def _bytes_at(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _index_name(url: str, version: tuple[str, ...], image_column: str | None) -> str:
    return f"{hashlib.blake2b(repr((url, version, image_column)).encode(), digest_size=16).hexdigest()}.npy"


def _write_members(url: str, image_column: str | None, path: Path) -> Counter[str]:
    """Write offset and size of each image of an archive; returns the kinds of images if samples have several."""
    places: list[tuple[int, int]] = []
    kinds, last_key, several = Counter[str](), None, False
    suffixes = image_suffixes()

    def read() -> None:
        nonlocal last_key, several
        places.clear()
        with _open(url) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                # As in webdataset, what follows the first dot of a name is the kind of file.
                key, _, kind = name.name.partition(".")
                wanted = kind == image_column if image_column else name.suffix.lower() in suffixes
                if not member.isfile() or not key or not wanted:
                    continue
                places.append((member.offset_data, member.size))
                several = several or last_key == (str(name.parent), key)
                last_key = (str(name.parent), key)
                kinds[kind] += 1
                # The archive would keep all of its members in memory.
                archive.members = []  # type: ignore[attr-defined]

    with _patiently(url):
        try:
            _tried(read, url)
        except tarfile.TarError as error:
            raise ValueError(
                f"{shown_url(url)} is damaged, or no plain .tar file ({error}). Unpack or write it again."
            ) from error
    with path.open("wb") as file:
        np.save(file, np.array(places, dtype=np.int64).reshape(-1, 2))
    return kinds if several else Counter()


def archive_blocks(members: np.ndarray) -> list[tuple[int, int]]:
    """Runs of neighboring images of an archive.

    Args:
        members: Offset and size (N, 2) of each image.

    Returns:
        First image of each run, and the one after its last: at most NUM_FILES images in MAX_BYTES, or one larger image.
    """
    if not len(members):
        return []
    runs, start = [], 0
    ends = np.asarray(members).sum(axis=1)
    while start < len(members):
        limit = int(np.searchsorted(ends, int(members[start, 0]) + MAX_BYTES, side="right"))
        stop = min(max(start + 1, limit), start + NUM_FILES, len(members))
        runs.append((start, stop))
        start = stop
    return runs


def _sampled_content(path: str) -> bytes:
    """Checksum of the size of a file and of its first, middle and last bytes."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        return str(size).encode() + sampled_checksum(file, size)
