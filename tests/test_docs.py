"""The table of encoders is what its script prints, and pictures are what their scripts draw."""

import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT
from PIL import Image

DOCS = ROOT / "docs"


def run(*names: str) -> str:
    command = [sys.executable, str(DOCS / "encoders.py"), *names]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr[-2000:]
    return completed.stdout


def rows(text: str) -> set[str]:
    return {line for line in text.splitlines() if line.startswith("| `")}


def test_rows_of_the_table_are_what_the_script_prints():
    printed = rows(run("convnext", "vit_msn", "yolos"))
    assert len(printed) == 3
    assert printed <= rows((DOCS / "encoders.md").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_whole_table():
    assert rows(run()) == rows((DOCS / "encoders.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["masks", "targets"])
def test_pictures_are_what_their_scripts_draw(name, tmp_path):
    subprocess.run([sys.executable, str(DOCS / f"{name}.py"), str(tmp_path / "drawn.png")], check=True)
    drawn, shown = (
        np.asarray(Image.open(path).convert("RGB")).astype(int)
        for path in (tmp_path / "drawn.png", DOCS / f"{name}.png")
    )
    assert drawn.shape == shown.shape
    # A pixel or two may differ with versions; another digit below a mask is more.
    assert (np.abs(drawn - shown).max(axis=2) > 16).mean() < 1e-5
