"""Features that several machines compute in parts, joined to the file that one of them would have written."""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from .features import GROUP_SIZE
from .tables import TableFile

# Column of a part with the row of each image among all images.
ROW = "row"


def rows_of_part(num_images: int, batch_size: int, number: int, count: int) -> range:
    """Rows of a part: whole batches, so that each image is in the same batch as if there were no parts.

    Args:
        num_images: Number of all images.
        batch_size: Images per batch.
        number: Number of the part, from 1.
        count: Number of parts.

    Returns:
        The rows, none if there are more parts than batches.
    """
    batches = -(-num_images // batch_size)
    start, stop = (batches * (number - 1 + end) // count * batch_size for end in (0, 1))
    return range(start, min(stop, num_images))


def finish_part(path: Path, description: dict[str, Any], rows: range, unreadable: Sequence[tuple[str, str]]) -> None:
    """Write what is said of a part, after its features: a part without it is not finished.

    Args:
        path: File of its features.
        description: What all parts must agree in.
        rows: Its rows.
        unreadable: (name, reason) of its unreadable images.
    """
    content = {"description": description, "rows": [rows.start, rows.stop], "unreadable": list(unreadable)}
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(path.with_suffix(".json"))


def finished_parts(
    folder: Path, stem: str, description: dict[str, Any], num_images: int, batch_size: int
) -> list[Path]:
    """Find the parts of a file of features.

    Args:
        folder: Folder of the parts.
        stem: What their names begin with.
        description: What they must agree in with what is wanted now.
        num_images: Number of all images.
        batch_size: Images per batch.

    Returns:
        Files of all parts in order; none if no part was begun.

    Raises:
        ValueError: If parts are missing, or are those of other images or settings.
    """
    found = sorted(folder.glob(f"{stem}-*-of-*.json"))
    if not found:
        return []
    counts = {path.stem.rpartition("-")[2] for path in found}
    if len(counts) > 1:
        raise ValueError(
            f"{folder} holds parts of {' and of '.join(sorted(counts))}. Delete those that are not wanted."
        )
    count = int(counts.pop())
    numbers = {int(path.stem.split("-of-")[0].rpartition("-")[2]) for path in found}
    missing = [f"{number}/{count}" for number in range(1, count + 1) if number not in numbers]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {count} parts: run --part {missing[0]}"
            f"{', ...' if len(missing) > 1 else ''}, or delete {stem}-*-of-{count:03d}.* there to compute all here."
        )
    description = {**description, "batch_size": batch_size}
    for path in found:
        content = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key, value in description.items() if content["description"].get(key) != value]
        if changed:
            was, now = content["description"].get(changed[0]), description[changed[0]]
            raise ValueError(
                f"{path} is a part with {changed[0]}={was!r}, and now it is {now!r}. Repeat that command, or delete"
                f" {stem}-*-of-{count:03d}.* in {folder}."
            )
        if path is found[-1] and content["rows"][1] != num_images:
            raise ValueError(
                f"{path} ends at image {content['rows'][1]} of {num_images}: the images are others now. Delete"
                f" {stem}-*-of-{count:03d}.* in {folder}, and run the parts again."
            )
    return [path.with_suffix(".parquet") for path in found]


def join_parts(
    parts: Sequence[Path], path: Path, batch_size: int, description: dict[str, Any]
) -> tuple[list[int], list[tuple[str, str]]]:
    """Join parts to one file, in the groups of rows that one machine writes; the parts are deleted.

    Args:
        parts: Files of all parts, in order.
        path: File to write.
        batch_size: Images per batch.
        description: Metadata of the file, as of `write_features`.

    Returns:
        Rows of the images in the file, and (name, reason) of the unreadable ones.
    """
    indices: list[int] = []
    unreadable: list[tuple[str, str]] = []
    size = batch_size * max(1, GROUP_SIZE // batch_size)
    metadata = {"hf_simmim": json.dumps(description)}
    with TableFile(path) as file:
        for _, tables in itertools.groupby(_batches(parts, batch_size), lambda table: table[ROW][0].as_py() // size):
            table = pyarrow.concat_tables(tables).combine_chunks()
            indices += table[ROW].to_pylist()
            file.write(table.drop_columns(ROW).replace_schema_metadata(metadata))
    for part in parts:
        said = part.with_suffix(".json")
        unreadable += [(name, reason) for name, reason in json.loads(said.read_text(encoding="utf-8"))["unreadable"]]
    for part in parts:
        part.unlink(missing_ok=True)
        part.with_suffix(".json").unlink()
    return indices, unreadable


def _batches(parts: Sequence[Path], batch_size: int) -> Iterator[pyarrow.Table]:
    """Rows of all parts, in tables that do not reach over the end of a batch."""
    for part in parts:
        if not part.exists():  # more parts than batches
            continue
        with pyarrow.parquet.ParquetFile(part) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                batches = [row // batch_size for row in table[ROW].to_pylist()]
                start = 0
                for _, rows in itertools.groupby(batches):
                    length = len(list(rows))
                    yield table.slice(start, length)
                    start += length
