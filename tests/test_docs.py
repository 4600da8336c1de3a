"""The table of encoders is what its script prints, and the picture of masks what its script draws."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"


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


def test_the_picture_of_masks_can_be_drawn():
    spec = importlib.util.spec_from_file_location("masks", DOCS / "masks.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.NUM_MASKS = 1
    assert script.draw().size == Image.open(DOCS / "masks.png").size
