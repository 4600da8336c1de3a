"""Runs are killed by SIGKILL, resumed, and compared; `kill_and_resume.py` says how."""

import importlib.util
import json
import subprocess
import sys

import pytest
from paths import ROOT

SCRIPT = ROOT / "tests" / "chaos" / "kill_and_resume.py"
NOTHING_DIFFERS = "Nothing differs, nothing was left, and no process survived."

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL and forks are of POSIX")


def study(*options: str) -> str:
    result = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout


def test_a_run_that_is_killed_at_five_moments_ends_like_one_that_was_not():
    setup = ("engine=fork", "processes=1", "workers=0", "accumulation=1")
    printed = study("--kills", "5", "--only", "moment=several", *setup)
    # Rows, kills, resumes, and nothing else.
    assert "| all | 1 | 5 | 5 | 0 | 0 | 0 |" in printed
    assert NOTHING_DIFFERS in printed


@pytest.mark.slow
def test_shards_of_a_run_whose_processes_die_and_change_in_number_are_trained_on_once():
    script = SCRIPT.with_name("every_sample_once.py")
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    assert "and none comes twice in an epoch" in result.stdout


@pytest.mark.slow
def test_sixty_kills_of_all_kinds():
    printed = study("--kills", "60")
    assert NOTHING_DIFFERS in printed


def test_whatever_differs_is_seen(tmp_path):
    spec = importlib.util.spec_from_file_location("kill_and_resume", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)

    state = {"log_history": [{"loss": 1.0, "eta_seconds": 2}, {"train_runtime": 3}], "global_step": 1}
    for name in ("whole", "run"):
        (tmp_path / name / "checkpoint-1").mkdir(parents=True)
        (tmp_path / name / "checkpoint-1" / "trainer_state.json").write_text(json.dumps(state))
        (tmp_path / name / "picture.png").write_bytes(b"same")
    folders = tmp_path / "whole", tmp_path / "run"
    state["log_history"][0]["eta_seconds"] = 7
    changed = tmp_path / "run" / "checkpoint-1" / "trainer_state.json"
    changed.write_text(json.dumps(state))
    assert script.differences(*folders) == []
    state["log_history"][0]["loss"] = 1.0000001
    changed.write_text(json.dumps(state))
    (tmp_path / "run" / "picture.png").write_bytes(b"other")
    (tmp_path / "run" / ".tmpabcdef").touch()
    (tmp_path / "whole" / "results.json").write_text("{}")
    assert script.differences(*folders) == [
        "results.json is missing",
        ".tmpabcdef was left",
        "checkpoint-1/trainer_state.json differs in 1 parts, such as log_history[0].loss",
        "picture.png differs in 1 parts, such as all",
    ]
