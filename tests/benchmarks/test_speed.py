"""The page of measured speeds says what the results say; the script for GPUs runs everywhere."""

import importlib
import subprocess
import sys

import pytest
import torch
from paths import ROOT

from benchmarks.marked_page import END, begin
from benchmarks.table import TABLES
from hf_simmim.training.acceleration import ONEDNN_LINEAR


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_the_tables_are_those_of_the_results(path):
    text = path.read_text(encoding="utf-8")
    assert text.partition(begin("table.py"))[2].partition(END)[0] == TABLES[path](), "Run: python -m benchmarks.table"


def test_profiles_count_the_arithmetic_of_linear_layers_and_attention(monkeypatch):
    """By whichever kernel: what has no part is taken for a view, which takes no time at best."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    profile = importlib.import_module("step_profile")
    tokens, weight = torch.randn(2, 5, 8, requires_grad=True), torch.randn(3, 8)
    query = torch.randn(2, 4, 6, 16, requires_grad=True)
    with profile.Clock() as clock:
        linear_by = [torch.nn.functional.linear(tokens, weight)]
        if ONEDNN_LINEAR is not None:
            linear_by.append(ONEDNN_LINEAR(tokens.detach(), weight, None, "none", [], ""))
        torch.nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()
    found = {}
    for (name, shapes), calls in clock.calls.items():
        part = profile.PART_OF.get(name, "views")
        if part.startswith("products"):
            found[part] = found.get(part, 0) + calls * profile.operations(name, shapes)
    # Two products forward and four back, of 2 * 4 heads and 6 tokens with 16 channels.
    assert found["products of attention"] == 6 * 2 * (2 * 4) * 6 * 6 * 16
    assert found["products of tokens and weights"] == len(linear_by) * 2 * (2 * 5) * 8 * 3


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
