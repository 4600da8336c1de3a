"""What is found in folders of pictures with planted copies, blanks and broken files, and what follows from it."""

import json
import os

import numpy as np
import pytest
from photos_for_audits import changed, scene
from PIL import Image

from hf_simmim.curation import facts as facts_module
from hf_simmim.curation.advice import advise
from hf_simmim.curation.audit import audit_folder, compare, write_audit
from hf_simmim.curation.audit_page import audit_page
from hf_simmim.curation.facts import Thumbnails, gather, look


def audit(folder, output_dir, **options):
    output_dir.mkdir(exist_ok=True)
    return audit_folder(folder, output_dir=output_dir, progress=False, **options)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Twelve scenes, changed copies of five of them, a blank, two broken files; and three scenes in another folder."""
    root = tmp_path_factory.mktemp("planted")
    folder, other = root / "photos", root / "test"
    (folder / "more").mkdir(parents=True)
    other.mkdir()
    for seed in range(12):
        (folder / f"{seed:02d}.jpg").write_bytes(changed(scene(seed), "same"))
    for seed, kind in enumerate(("half", "quality", "mirrored", "cropped", "all")):
        (folder / "more" / f"{seed:02d}_{kind}.jpg").write_bytes(changed(scene(seed), kind))
    (folder / "more" / "05_same.jpg").write_bytes(changed(scene(5), "same"))
    (folder / "blank.jpg").write_bytes(changed(Image.new("RGB", (64, 64), (200, 30, 90)), "same"))
    (folder / "broken.jpg").write_bytes(changed(scene(20), "same")[:2000])
    (folder / "unread.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (other / "equal.jpg").write_bytes(changed(scene(6), "same"))
    (other / "nearly.jpg").write_bytes(changed(scene(7), "all"))
    (other / "own.jpg").write_bytes(changed(scene(30), "same"))
    return folder, other


@pytest.fixture(scope="module")
def found(planted, tmp_path_factory):
    folder, other = planted
    return audit(folder, tmp_path_factory.mktemp("audit"), against=[other])


def names(paths):
    return {os.path.basename(path) for path in paths}


def test_copies(planted, found):
    assert [names(group) for group in found.exact] == [{"05.jpg", "05_same.jpg"}]
    assert {frozenset(names(group)) for group in found.near} == {
        frozenset({f"{seed:02d}.jpg", f"{seed:02d}_{kind}.jpg"})
        for seed, kind in enumerate(("half", "quality", "mirrored", "cropped", "all"))
    }
    # Of a small copy and a large one the large one is kept.
    assert all(os.path.basename(group[0]) in ("00.jpg", "01.jpg", "02.jpg", "03.jpg", "04.jpg") for group in found.near)
    assert found.groups[str(planted[0] / "00.jpg")] == found.groups[str(planted[0] / "more" / "00_half.jpg")]
    assert found.groups[str(planted[0] / "05.jpg")] == found.groups[str(planted[0] / "more" / "05_same.jpg")]
    assert len(set(found.groups.values())) == 13


def test_broken_and_blank_files(found):
    reasons = {os.path.basename(one.path): one.error for one in found.unreadable}
    assert reasons.keys() == {"broken.jpg", "unread.dcm"}
    assert "truncated" in reasons["broken.jpg"]
    assert "DICOM" in reasons["unread.dcm"]
    assert names(one.path for one in found.blank) == {"blank.jpg"}


def test_leaks(found):
    leaks = {os.path.basename(leak.path): (os.path.basename(leak.found), leak.is_exact) for leak in found.leaks}
    assert leaks == {"06.jpg": ("equal.jpg", True), "07.jpg": ("nearly.jpg", False)}


def test_what_is_left_out(found, tmp_path):
    excluded = found.excluded()
    copies = {"00_half.jpg", "01_quality.jpg", "02_mirrored.jpg", "03_cropped.jpg", "04_all.jpg", "05_same.jpg"}
    assert names(excluded) == copies | {"06.jpg", "07.jpg", "blank.jpg", "broken.jpg", "unread.dcm"}
    write_audit(found, tmp_path)
    assert json.loads((tmp_path / "exclude.json").read_text()) == list(excluded)
    written = json.loads((tmp_path / "audit.json").read_text())
    assert written["num_images"] == len(written["images"]) == 21
    assert written["settings"] == {"image_size": "128"}


def test_page_needs_nothing_else(found):
    page = audit_page(found, found.command("runs/audit/exclude.json"))
    assert page.count("data:image/jpeg") > 20
    assert "http" not in page
    assert "06.jpg" in page
    assert "--leave_out runs/audit/exclude.json" in page


def test_a_killed_audit_continues_and_sees_changed_files(tmp_path, monkeypatch):
    folder, output_dir = tmp_path / "photos", tmp_path / "audit"
    folder.mkdir()
    for seed in range(5):
        (folder / f"{seed}.jpg").write_bytes(changed(scene(seed), "same"))
    looked = []

    def noted(path):
        looked.append(os.path.basename(path))
        if len(looked) == 4:
            raise KeyboardInterrupt
        return look(path)

    monkeypatch.setattr(facts_module, "look", noted)
    monkeypatch.setattr(facts_module, "BATCH", 1)
    with pytest.raises(KeyboardInterrupt):
        audit(folder, output_dir)
    with open(output_dir / "facts.jsonl", "a", encoding="utf-8") as file:
        file.write('{"path": "cut o')
    found = audit(folder, output_dir)
    assert looked == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "3.jpg", "4.jpg"]
    assert len(found.facts) == 5
    assert not found.unreadable
    (folder / "1.jpg").write_bytes(b"broken")
    assert names(one.path for one in audit(folder, output_dir).unreadable) == {"1.jpg"}
    assert looked[6:] == ["1.jpg"]


def test_several_processes_find_the_same(found, tmp_path):
    paths = [one.path for one in found.facts]
    done = []
    facts, thumbnails = gather(paths, tmp_path / "facts.jsonl", workers=2, progress=done.append)
    assert facts == found.facts
    assert sum(done) == len(paths)
    assert thumbnails.gray[0].max() == 255


def test_long_chains_are_cut(found, monkeypatch):
    """Each picture is like the next one, and all would be one group."""
    readable = [one for one in found.facts if one.is_readable and not one.is_blank]
    chain = [(index, index + 1, 0.99) for index in range(len(readable) - 2)]
    monkeypatch.setattr("hf_simmim.curation.audit.similar_pairs", lambda *_: (chain, 0))
    monkeypatch.setattr("hf_simmim.curation.audit.LEAST_LARGEST", 4)
    one = type(found)(found.folder, [], found.facts)
    compare(one, [], Thumbnails.empty(len(found.facts)))
    assert one.num_cut == 1
    sizes = np.bincount(list(one.groups.values()))
    assert sizes.max() <= 4
    assert any("chains" in line for line in one.summary())


def test_where_most_images_are_alike_near_duplicates_are_only_listed(found, monkeypatch):
    readable = [one for one in found.facts if one.is_readable and not one.is_blank]
    monkeypatch.setattr("hf_simmim.curation.audit.similar_pairs", lambda *_: ([(0, 1, 0.99)], 7))
    one = type(found)(found.folder, [], readable)
    compare(one, [], Thumbnails.empty(len(readable)))
    assert len(one.near) == 1
    assert not any(reason.startswith("near") for reason in one.excluded().values())
    assert any("listed, but not left out. The 7 least likely" in line for line in one.summary())


def save(path, array):
    np.save(path, array) if path.suffix == ".npy" else Image.fromarray(array).save(path)


def advice_for(tmp_path, arrays, suffix=".png"):
    paths = []
    for index, array in enumerate(arrays):
        paths.append(tmp_path / f"{index}{suffix}")
        save(paths[-1], array)
    return advise([look(str(path))[0] for path in paths])


def noise(low, high, dtype, shape=(96, 96)):
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


@pytest.mark.parametrize(
    ("array", "suffix", "settings"),
    [
        (noise(0, 255, np.uint8, (96, 96, 3)), ".png", {"image_size": "96"}),
        (noise(0, 255, np.uint8), ".png", {"num_channels": "1", "image_size": "96"}),
        (noise(0, 4000, np.uint16), ".png", {"num_channels": "1", "rescale_factor": "1/4095", "image_size": "96"}),
        (noise(0, 60000, np.uint16), ".tif", {"num_channels": "1", "rescale_factor": "1/65535", "image_size": "96"}),
        (
            noise(0, 1000, np.float32, (5, 64, 320)) / np.float32(1000),
            ".npy",
            {"num_channels": "5", "rescale_factor": "1", "image_size": "64"},
        ),
        (noise(0, 255, np.uint8, (300, 400, 3)), ".png", {}),
    ],
)
def test_settings_follow_from_the_images(tmp_path, array, suffix, settings):
    assert advice_for(tmp_path, [array] * 3, suffix).settings == settings


def test_missing_pixels(tmp_path):
    filled = noise(0, 3000, np.int16)
    filled[:40, :50] = -9999
    advice = advice_for(tmp_path, [filled] * 3, ".npy")
    assert advice.settings["nodata"] == "-9999"
    assert advice.settings["rescale_factor"] == "1/4095"
    # A black background of pictures may be one.
    dark = noise(40, 255, np.uint8)
    dark[:40, :50] = 0
    advice = advice_for(tmp_path, [dark] * 3)
    assert "nodata" not in advice.settings
    assert any("--nodata 0" in note for note in advice.notes)


def test_facts_of_a_turned_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(0).save(tmp_path / "turned.jpg", exif=exif)
    found, thumbnail = look(str(tmp_path / "turned.jpg"))
    assert (found.height, found.width, found.orientation, found.format, found.channels) == (160, 128, 6, "JPEG", 3)
    scene(0).transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.jpg")
    upright = look(str(tmp_path / "upright.jpg"))[1]
    assert np.abs(thumbnail.gray.astype(int) - upright.gray).max() < 40


def test_a_folder_is_not_compared_with_itself(planted, tmp_path):
    folder, _ = planted
    with pytest.raises(ValueError, match="is the folder itself"):
        audit(folder, tmp_path, against=[folder])
    # A folder inside is compared with the rest.
    found = audit(folder, tmp_path, against=[folder / "more"])
    assert names(leak.path for leak in found.leaks) == {"00.jpg", "01.jpg", "02.jpg", "03.jpg", "04.jpg", "05.jpg"}
