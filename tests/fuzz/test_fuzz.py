"""Random images, recipes, configs and masks: `fuzz.py` says how."""

import subprocess
import sys

import pytest
from paths import ROOT

SCRIPT = ROOT / "tests" / "fuzz" / "fuzz.py"

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits its memory as Linux does")


@pytest.mark.parametrize("cases", [160, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_inputs_are_taken_or_refused_in_words(cases):
    done = subprocess.run([sys.executable, SCRIPT, "--cases", str(cases)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "No crash, and no error that is not stated." in done.stdout
