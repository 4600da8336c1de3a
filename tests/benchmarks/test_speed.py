"""The page of measured speeds says what the results say; the script for GPUs runs everywhere."""

import subprocess
import sys

import pytest
from paths import ROOT

from benchmarks.marked_page import END, begin
from benchmarks.table import TABLES


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_the_tables_are_those_of_the_results(path):
    text = path.read_text(encoding="utf-8")
    assert text.partition(begin("table.py"))[2].partition(END)[0] == TABLES[path](), "Run: python -m benchmarks.table"


@pytest.mark.slow
def test_the_script_for_gpus_runs():
    results = {path: path.read_bytes() for path in (ROOT / "benchmarks" / "results").glob("*.jsonl")}
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--quick"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    for title in ("Correctness", "Training step", "Compilation", "Largest batch", "Images to the device"):
        assert f"## {title}" in result.stdout
    assert "Ours is" in result.stdout
    assert "graph break" not in result.stdout
    # A check measures nothing that counts.
    assert {path: path.read_bytes() for path in (ROOT / "benchmarks" / "results").glob("*.jsonl")} == results
