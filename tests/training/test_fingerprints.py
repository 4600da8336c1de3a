"""Changed images are noticed by their content, wherever the folder is and however it is spelled."""

import json
import os
import shutil

import numpy as np
import pytest
from datasets import Array2D, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from hf_simmim.data.sources import image_rows, load_images
from hf_simmim.training import fingerprints
from hf_simmim.training.fingerprints import digest


@pytest.fixture(params=["whole files", "parts of files"])
def folder(tmp_path, request, monkeypatch):
    if request.param == "parts of files":
        monkeypatch.setattr(fingerprints, "MAX_BYTES", 0)
    for index in range(6):
        path = tmp_path / "photos" / f"d{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 40 * index, np.uint8)).save(path)
    return tmp_path / "photos"


def test_the_same_images_by_another_path_are_the_same(folder, tmp_path, monkeypatch):
    expected = digest(load_images(folder))
    assert expected["number"] == 6
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "moved")
    for spelling in ("photos", "photos/../photos", tmp_path / "link", tmp_path / "moved"):
        assert digest(load_images(spelling)) == expected
    os.utime(folder / "d0" / "0.png", (1, 1))
    assert digest(load_images(folder)) == expected


def test_changed_images_are_noticed(folder):
    expected = digest(load_images(folder))
    first, second = folder / "d0" / "0.png", folder / "d0" / "2.png"
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1]), second.write_bytes(contents[0])
    swapped = digest(load_images(folder))
    assert swapped["names"] == expected["names"]
    assert swapped["content"] != expected["content"]
    first.write_bytes(contents[0]), second.write_bytes(contents[1])
    assert digest(load_images(folder)) == expected
    second.rename(folder / "d0" / "9.png")
    assert digest(load_images(folder))["names"] != expected["names"]


@pytest.mark.parametrize("kind", ["files in a table", "arrays"])
def test_rows_of_a_table_are_compared_by_content(folder, kind):
    if kind == "arrays":
        feature, values = Array2D((4, 4), "float32"), [np.full((4, 4), index, np.float32) for index in range(6)]
    else:
        feature = ImageFeature()
        values = [{"bytes": path.read_bytes(), "path": None} for path in sorted(folder.rglob("*.png"))]

    def digest_of(values, name="table.parquet, train"):
        table = Dataset.from_dict({"picture": values}, features=Features({"picture": feature}))
        return digest(image_rows(table, "picture", name))

    expected = digest_of(values)
    assert digest_of(list(values), "/elsewhere/table.parquet, train") == expected
    assert digest_of(values[::-1]) != expected
    assert digest_of([*values[:-1], values[0]]) != expected


def test_files_that_change_are_named(tmp_path):
    for name in ("a", "b", "c", "d"):
        Image.new("L", (4, 4), ord(name)).save(tmp_path / f"{name}.png")
    before = digest(load_images(tmp_path))
    assert before.changes(before.files) == before.changes({}) == ""
    Image.new("L", (4, 4), 0).save(tmp_path / "b.png")
    (tmp_path / "d.png").rename(tmp_path / "e.png")
    after = digest(load_images(tmp_path))
    assert after.changes(before.files) == " Files: 1 changed (b.png); 1 missing (d.png); 1 new (e.png)."
    assert json.loads(json.dumps(after)) == {key: after[key] for key in ("number", "names", "content")}
