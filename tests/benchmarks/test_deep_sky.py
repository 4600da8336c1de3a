"""The set of astronomical photographs: classes by the catalog, and a split by object."""

import sqlite3
import zipfile
from io import BytesIO

import numpy as np
from PIL import Image

from benchmarks.ablation import deep_sky
from benchmarks.ablation.deep_sky import prepare_deep_sky, read_catalog


def test_classes_are_those_of_the_catalog(tmp_path, monkeypatch):
    path = tmp_path / "ongc.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE objects(name TEXT, type TEXT, messier TEXT)")
        rows = [("NGC0224", "G", "031"), ("IC0010", "G", None), ("NGC6720", "PN", "057"), ("NGC0001", "Dup", None)]
        database.executemany("INSERT INTO objects VALUES (?, ?, ?)", [*rows, ("Mel022", "OCl", "045")])
    wheel = BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(path, deep_sky.DATABASE)
    monkeypatch.setattr(deep_sky, "fetch_wheel", lambda *pinned: zipfile.ZipFile(wheel))
    assert read_catalog() == {
        "n224": ("NGC0224", "galaxy"),
        "m31": ("NGC0224", "galaxy"),
        "ic10": ("IC0010", "galaxy"),
        "n6720": ("NGC6720", "planetary nebula"),
        "m57": ("NGC6720", "planetary nebula"),
    }


def test_photographs_of_an_object_are_on_one_side(tmp_path):
    catalog = {f"n{number}": (f"NGC{number:04}", ("galaxy", "nebula")[number % 2]) for number in range(1, 21)}
    catalog["m3"] = catalog["n3"]
    folder = tmp_path / "usr" / "nebulae" / "default"
    folder.mkdir(parents=True)
    names = [f"n{number}{suffix}" for number in range(1, 21) for suffix in (".png", "-sdss.png")]
    for name in [*names, "m3.png", "n21.png", "pleiades.png"]:
        # Its number is the brightness, left of what is transparent.
        number = int("".join(character for character in name.split("-")[0] if character.isdigit()) or 200)
        pixels = np.full((80, 80, 4), (number * 10, 0, 0, 255), np.uint8)
        pixels[:, 40:] = (255, 255, 255, 0)
        Image.fromarray(pixels).save(folder / name)
    arrays = prepare_deep_sky(tmp_path, catalog)
    assert arrays["classes"].tolist() == ["galaxy", "nebula"]
    objects = {}
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        assert images.shape == (len(labels), 64, 64, 3)
        assert not images[:, :, 33:].any()  # black where they are transparent
        numbers = images[:, 0, 0, 0] // 10
        assert (numbers % 2 == labels).all()
        objects[split] = set(numbers.tolist())
    assert not objects["train"] & objects["test"]
    assert objects["train"] | objects["test"] == set(range(1, 21))
    assert len(objects["test"]) == 10
    assert len(arrays["train_labels"]) + len(arrays["test_labels"]) == 41
    again = prepare_deep_sky(tmp_path, catalog)
    assert all(np.array_equal(again[name], values) for name, values in arrays.items())
