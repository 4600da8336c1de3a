"""Processes of a run that wait for others."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

# A process that waits for others, and one that starts it and ends.
WAITING = """
import os, sys, time
from hf_simmim.training.agreement import ending_with_launcher
pid = os.fork()
if pid:
    open(sys.argv[1], "w").write(str(pid))
    time.sleep(0.5)
    os._exit(0)
with ending_with_launcher(0.1):
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_process_that_waits_for_others_ends_with_its_launcher(tmp_path):
    note = tmp_path / "pid"
    launcher = subprocess.Popen([sys.executable, "-c", WAITING, str(note)], stderr=(tmp_path / "said").open("w"))
    assert launcher.wait(timeout=120) == 0
    pid, end = int(note.read_text()), time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert "the launcher ended before" in Path(tmp_path / "said").read_text()
