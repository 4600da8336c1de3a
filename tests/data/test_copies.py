"""Copies on both sides of a split are named, and nothing else is."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from photos import random_photo

from hf_simmim.data import copies
from hf_simmim.data.copies import warn_of_copies
from hf_simmim.data.labeled.images import load_labeled_images
from hf_simmim.data.sources import load_images


@pytest.fixture
def folder(tmp_path):
    """Six different images of one size in bytes, in two classes."""
    rng = np.random.default_rng(0)
    for index in range(6):
        place = tmp_path / "train" / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        random_photo(rng, (20, 30)).save(place / f"{index}.bmp")
    return tmp_path / "train"


def test_copies_among_validation_images(folder, tmp_path, caplog):
    train = load_images(folder)
    (tmp_path / "test").mkdir()
    random_photo(np.random.default_rng(1), (20, 30)).save(tmp_path / "test" / "new.bmp")
    warn_of_copies(train, load_images(tmp_path / "test"))
    assert "validation images" not in caplog.text
    shutil.copy(folder / "a" / "2.bmp", tmp_path / "test" / "old.bmp")
    validation = load_images(tmp_path / "test")
    warn_of_copies(train, validation)
    assert "1 of 2 validation images are training images, too, byte for byte" in caplog.text
    assert f"such as {tmp_path / 'test' / 'old.bmp'} and {folder / 'a' / '2.bmp'}" in caplog.text


def test_copies_among_images_that_are_still_to_be_split(folder, caplog):
    warn_of_copies(load_labeled_images(folder).rows, None)
    assert "copies of others" not in caplog.text
    shutil.copy(folder / "a" / "0.bmp", folder / "b" / "again.bmp")
    rows = load_labeled_images(folder).rows
    warn_of_copies(rows, None)
    assert "1 of 7 images are copies of others, byte for byte" in caplog.text
    caplog.clear()
    # The same images as bytes of a data set.
    contents = [{"bytes": Path(row["image"]["path"]).read_bytes(), "path": None} for row in rows]
    stored = rows.remove_columns("image").add_column("image", contents, feature=rows.features["image"])
    warn_of_copies(stored.select(range(6)), stored.select([6]))
    assert "1 of 1 validation images are training images" in caplog.text


def test_files_of_one_size_are_not_read_as_a_whole(folder, caplog, monkeypatch):
    monkeypatch.setattr(copies, "END", 1024)
    read = []
    whole = copies._digest
    monkeypatch.setattr(copies, "_digest", lambda image: read.append(Path(image["path"]).name) or whole(image))
    # It differs from another one in the middle alone.
    content = bytearray((folder / "a" / "0.bmp").read_bytes())
    assert len(content) < 2048 + 100
    content += bytes(4000)
    (folder / "a" / "long.bmp").write_bytes(content)
    content[-2500] ^= 1
    (folder / "a" / "other.bmp").write_bytes(content)
    warn_of_copies(load_labeled_images(folder).rows, None)
    assert sorted(read) == ["long.bmp", "other.bmp"]
    assert "copies of others" not in caplog.text


def test_many_images_are_left_to_the_audit(folder, caplog, monkeypatch):
    monkeypatch.setattr(copies, "MAX_IMAGES", 11)
    rows = load_images(folder)
    warn_of_copies(rows, rows)
    assert not caplog.text
    monkeypatch.setattr(copies, "MAX_IMAGES", 12)
    warn_of_copies(rows, rows)
    assert "6 of 6 validation images" in caplog.text
