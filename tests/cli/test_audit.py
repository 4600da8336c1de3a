"""The audit of a folder, run as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from photos_for_audits import changed, scene

import hf_simmim
from hf_simmim.cli import audit
from hf_simmim.cli.pretrain import without
from hf_simmim.data.sources import load_images


@pytest.fixture
def folder(tmp_path):
    """Six scenes, one of which is there in half its size, too."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(6):
        (photos / f"{seed}.jpg").write_bytes(changed(scene(seed), "same"))
    (photos / "small.jpg").write_bytes(changed(scene(0), "half"))
    return photos


def test_command_line(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    audit.COMMAND.main(["photos", "--workers", "1"])
    printed = capsys.readouterr().out
    assert "1 near duplicate of other images, in 1 group, such as small.jpg of 0.jpg." in printed
    assert "1 of 7 images are to be left out." in printed
    assert printed.splitlines()[-1] == (
        "hf-simmim pretrain --train_dir photos --leave_out runs/audit/exclude.json --image_size 128"
    )
    assert Path("runs/audit/audit.html").read_text().count("data:image/jpeg") >= 2
    # What it writes is what a training takes.
    left = without(load_images("photos"), Path("runs/audit/exclude.json"))["name"]
    assert left == [f"photos/{seed}.jpg" for seed in range(6)]
    assert len(json.loads(Path("runs/audit/groups.json").read_text())) == 7


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is of POSIX")
def test_killed_and_repeated_it_reports_the_same(tmp_path, monkeypatch, capsys):
    photos, count = tmp_path / "photos", 160
    photos.mkdir()
    contents = [changed(scene(seed), "same") for seed in range(6)] + [changed(scene(0), "half")]
    for index in range(count - 1):
        # With a comment of its own, so that no two are the same file.
        content, comment = contents[index % 7], f"{index:04d}".encode()
        (photos / f"{index:04d}.jpg").write_bytes(content[:2] + b"\xff\xfe\0\x06" + comment + content[2:])
    (photos / "broken.jpg").write_bytes(contents[0][:900])
    folders = whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in folders:
        folder.mkdir()

    facts = killed / "runs" / "audit" / "facts.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_simmim", "audit", str(photos), "--workers", "2"],
        cwd=killed,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (facts.exists() and facts.stat().st_size):
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < facts.read_bytes().count(b"\n") < count
    assert not (facts.parent / "audit.json").exists()
    # Within a line, as where the write of a batch is cut.
    facts.write_bytes(facts.read_bytes()[:-300])
    kept, printed = facts.read_bytes(), []
    for folder in folders:
        monkeypatch.chdir(folder)
        audit.COMMAND.main([str(photos), "--workers", "1"])
        printed.append(capsys.readouterr().out)

    assert printed[0] == printed[1]
    results = {path.name for path in facts.parent.iterdir()}
    assert {"audit.html", "audit.json", "exclude.json", "facts.jsonl", "groups.json"} <= results
    for name in results - {"facts.jsonl"}:
        assert (facts.parent / name).read_bytes() == (whole / "runs" / "audit" / name).read_bytes(), name
    # What was found before the kill is not looked at again.
    assert facts.read_bytes().startswith(kept)
    paths = [json.loads(line)["path"] for line in facts.read_text().splitlines() if line.endswith("}")]
    assert len(paths) == len(set(paths)) == count


def test_python_call(folder, tmp_path):
    result = hf_simmim.audit(folder=folder, output_dir=tmp_path / "audit", workers=1, max_images=1)
    assert len(result.audit.facts) == 1
    assert result.page.exists()
    assert result.settings == {"image_size": "128"}
    assert not result.excluded
    assert "No broken or blank images and no copies were found." in result.summary
    assert "--leave_out" not in result.command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "No folder is named"),
        (["nowhere"], "The image folder nowhere does not exist"),
        (["photos", "--against", "photos"], "is the folder itself"),
        (["photos", "--workers", "0"], "workers=0 must be 1 or more"),
        (["photos", "--agianst", "photos"], "Did you mean --against?"),
    ],
)
def test_mistakes(folder, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        audit.COMMAND.main(words)


def test_the_command_repeats_how_files_are_cut(tmp_path):
    """A training without it would read other images."""
    (tmp_path / "scans").mkdir()
    np.save(tmp_path / "scans" / "a.npy", np.arange(48 * 40, dtype=np.uint16).reshape(48, 40))
    result = hf_simmim.audit(
        folder=tmp_path / "scans", output_dir=tmp_path / "out", workers=1, stacks="ZC", gray_window=[40, 400.5]
    )
    assert "--stacks ZC --gray_window 40 400.5 " in result.command
    options = {"folder": tmp_path / "scans", "output_dir": tmp_path / "out", "workers": 1}
    result = hf_simmim.audit(**options, gray_window=["file"], orientation="LPS")
    assert "--gray_window file " in result.command
    assert "--orientation LPS " in result.command
    for wrong in (["40"], ["40", "wide"], ["40", "1", "2"]):
        with pytest.raises(ValueError, match="must be two numbers, a center and a width, such as 40 400, or file"):
            hf_simmim.audit(**options, gray_window=wrong)


def test_mixed_orientations_of_volumes_are_in_the_summary(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    (tmp_path / "scans").mkdir()
    numbers = np.random.default_rng(0).integers(0, 900, (24, 20, 2)).astype(np.int16)
    for name, side in (("a", 1.0), ("b", -1.0), ("c", -1.0)):
        image = nibabel.Nifti1Image(numbers, np.diag([side, side, 3.0, 1.0]))
        nibabel.save(image, tmp_path / "scans" / f"{name}.nii")
    options = {"folder": tmp_path / "scans", "output_dir": tmp_path / "out", "workers": 1}
    found = [line for line in hf_simmim.audit(**options).summary if "as they are stored" in line]
    assert len(found) == 1
    assert ": 2 LPS, 1 RAS." in found[0]
    options["output_dir"] = tmp_path / "turned"
    assert "as they are stored" not in " ".join(hf_simmim.audit(**options, orientation="RAS").summary)


def test_parts_join_to_what_one_machine_finds(folder, tmp_path, capsys):
    (folder / "broken.jpg").write_bytes(b"no image")
    whole = hf_simmim.audit(folder=folder, output_dir=tmp_path / "whole", workers=1)
    joined = {"folder": folder, "output_dir": tmp_path / "joined", "workers": 1}
    for part in ("2/3", "1/3", "3/3"):
        result = hf_simmim.audit(**joined, part=part)
        assert len(result.audit.facts) in (2, 3)
        assert result.page is None
    assert "Part 3/3: 2 images were looked at." in capsys.readouterr().out
    assert not (tmp_path / "joined" / "audit.json").exists()
    hf_simmim.audit(**joined)
    # Nothing is looked at again.
    assert not (tmp_path / "joined" / "facts.jsonl").read_text()
    contents = [json.loads((tmp_path / name / "audit.json").read_text()) for name in ("whole", "joined")]
    for content in contents:
        del content["command"]
    assert contents[0] == contents[1]
    assert whole.audit.unreadable
    with pytest.raises(ValueError, match="part='4/3' must be a number of all, from 1/16 to 16/16"):
        hf_simmim.audit(**joined, part="4/3")
