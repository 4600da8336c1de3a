"""Tables of results in parquet or CSV files, which get their names only when they are complete."""

from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet

# Writers by suffix; each is called with a path and a schema.
WRITERS: dict[str, Any] = {".parquet": pyarrow.parquet.ParquetWriter, ".csv": pyarrow.csv.CSVWriter}


def unfinished_path(path: Path) -> Path:
    """Where a file or folder is written until it is complete."""
    return path.with_name(f"{path.name}.unfinished")


class TableFile:
    """Writes a table one group of rows at a time; a context manager.

    The file gets its name when the block ends without an error and something was written. A run that is killed leaves
    an earlier file of that name as it was.

    Args:
        path: File to write, `.parquet` or `.csv`.

    Raises:
        ValueError: If the suffix is another one.
    """

    def __init__(self, path: Path):
        if path.suffix not in WRITERS:
            raise ValueError(f"{path} must end in {' or '.join(WRITERS)}.")
        self.path = path
        self._unfinished = unfinished_path(path)
        self._writer: Any = None

    def __enter__(self) -> "TableFile":
        return self

    def write(self, table: pyarrow.Table) -> None:
        """Write a group of rows; all groups have the columns of the first."""
        if self._writer is None:
            self._writer = WRITERS[self.path.suffix](self._unfinished, table.schema)
        self._writer.write_table(table)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
                if kind is None:
                    self._unfinished.replace(self.path)
        finally:
            self._unfinished.unlink(missing_ok=True)
