"""Files of tables: complete, or not there."""

from pathlib import Path

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

from hf_simmim.evaluation.tables import TableFile

TABLE = pyarrow.table({"name": ['with "quotes", and a comma', "plain"], "value": [0.1, 2.0]})
READERS = {".csv": pyarrow.csv.read_csv, ".parquet": pyarrow.parquet.read_table}


@pytest.mark.parametrize("suffix", READERS)
def test_files_are_complete_or_as_they_were(suffix, tmp_path):
    path = tmp_path / f"table{suffix}"
    with TableFile(path) as file:
        file.write(TABLE)
        file.write(TABLE)
        assert not path.exists()
    assert READERS[suffix](path).equals(pyarrow.concat_tables([TABLE, TABLE]).combine_chunks())

    def fail() -> None:
        with TableFile(path) as file:
            file.write(TABLE)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert READERS[suffix](path).num_rows == 4
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_nothing_written_is_no_file(tmp_path):
    with TableFile(tmp_path / "table.csv"):
        pass
    assert not list(tmp_path.iterdir())


def test_other_formats_are_refused():
    with pytest.raises(ValueError, match=r"table.xlsx must end in .parquet or .csv"):
        TableFile(Path("table.xlsx"))
