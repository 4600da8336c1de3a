"""Photographs of galaxies, star clusters and nebulae as arrays, labeled by a catalog, split by object."""

import re
import sqlite3
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from ..wheels import fetch_wheel

SIZE = 64  # pixels
# The catalog: OpenNGC (CC-BY-SA-4.0), which this package brings as a database.
PACKAGE, VERSION = "pyongc", "1.2.2"
SHA256 = "d740581ce5e7317a51fc31bec19bb8562bf358c399551b5dfe73a752fa490bf2"
DATABASE = "pyongc/ongc.db"
# Class of each type of object of the catalog; others, which are stars, duplicates and mistakes, are left out.
CLASSES = {
    **dict.fromkeys(("G", "GPair", "GTrpl", "GGroup"), "galaxy"),
    "GCl": "globular cluster",
    "OCl": "open cluster",
    "PN": "planetary nebula",
    **dict.fromkeys(("Cl+N", "Neb", "EmN", "RfN", "HII", "SNR"), "nebula"),
}
# File names begin with a number of the New General Catalogue, of its Index Catalogue, or of Messier's.
NAME = re.compile(r"(n|ic|m)(\d+)")
TEST_SHARE = 0.5  # of the objects of each class

Catalog = dict[str, tuple[str, str]]


def read_catalog() -> Catalog:
    """Fetch the catalog.

    Returns:
        Name and class of an object by each of its numbers as in file names, without leading zeros.
    """
    with tempfile.TemporaryDirectory() as work:
        with fetch_wheel(PACKAGE, VERSION, SHA256) as wheel:
            path = wheel.extract(DATABASE, work)
        database = sqlite3.connect(path)
        rows = database.execute("SELECT name, type, messier FROM objects").fetchall()
        database.close()
    catalog = {}
    for name, kind, messier in rows:
        found = re.fullmatch(r"(NGC|IC)(\d+)", name)
        if kind not in CLASSES or found is None:
            continue
        keys = [f"{'n' if found[1] == 'NGC' else 'ic'}{int(found[2])}"]
        keys += [f"m{int(messier)}"] if messier and messier.isdigit() else []
        catalog |= dict.fromkeys(keys, (name, CLASSES[kind]))
    return catalog


def prepare_deep_sky(folder: Path, catalog: Catalog | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Read the photographs whose objects the catalog knows.

    Args:
        folder: Unpacked package, with a folder `nebulae/default` of PNG files.
        catalog: As `read_catalog` returns it, which is called if None.
        seed: Random seed of the split. All photographs of an object are on the same side.

    Returns:
        `train_images` and `test_images` (N, 64, 64, 3) uint8, `train_labels`, `test_labels`, and `classes`, the names.
    """
    catalog = read_catalog() if catalog is None else catalog
    paths = sorted(next(folder.rglob("nebulae/default")).glob("*.png"))
    photos: dict[str, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        found = NAME.match(path.name)
        entry = catalog.get(f"{found[1]}{int(found[2])}") if found else None
        if entry is not None:
            photos[entry[1]][entry[0]].append(_read(path))
    classes = sorted(photos)
    random = np.random.default_rng(seed)
    parts: dict[str, list[tuple[np.ndarray, int]]] = {"train": [], "test": []}
    for label, name in enumerate(classes):
        objects = random.permutation(sorted(photos[name])).tolist()
        for index, one in enumerate(objects):
            split = "test" if index < round(TEST_SHARE * len(objects)) else "train"
            parts[split] += [(photo, label) for photo in photos[name][one]]
    counts = ", ".join(f"{sum(map(len, photos[name].values()))} of class {name}" for name in classes)
    print(f"{len(paths)} photographs, of which the catalog knows {counts}")
    arrays = {"classes": np.array(classes)}
    for split, pairs in parts.items():
        arrays[f"{split}_images"] = np.stack([photo for photo, _ in pairs])
        arrays[f"{split}_labels"] = np.array([label for _, label in pairs])
    return arrays


def _read(path: Path) -> np.ndarray:
    """Read a photograph, on black where it is transparent."""
    with Image.open(path) as image:
        photo = image.convert("RGBA")
    black = Image.new("RGBA", photo.size, (0, 0, 0, 255))
    black.alpha_composite(photo)
    return np.asarray(black.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX))
