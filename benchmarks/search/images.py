"""The image sets of the search, gray, and of the evidence, also in color: 64 px, as folders that the commands read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..ablation.data import DATA_SETS, FETCHED, ImageData, read_fetched, stratified_sample
from .surfaces import DEFECTS, draw_surfaces

NUM_IMAGES, NUM_TEST_IMAGES = 2100, 500
NUM_CLASSES = 10  # of clip art in gray, the most frequent ones

_Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]


def _surfaces() -> _Arrays:
    images, labels = draw_surfaces(NUM_IMAGES, seed=0)
    return images, labels, *draw_surfaces(NUM_TEST_IMAGES, seed=1), list(DEFECTS)


def _fetched(file: str, num_classes: int | None = NUM_CLASSES, is_gray: bool = True) -> Callable[[], _Arrays]:
    def read() -> _Arrays:
        arrays, classes = read_fetched(file, num_classes, FETCHED)
        parts: list[np.ndarray] = []
        for images, labels, count in ((*arrays[:2], NUM_IMAGES), (*arrays[2:], NUM_TEST_IMAGES)):
            chosen = stratified_sample(torch.as_tensor(labels), count, torch.Generator().manual_seed(0)).numpy()
            pixels = images[chosen]
            if pixels.ndim == 4 and is_gray:
                pixels = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in pixels])
            parts += [pixels, labels[chosen]]
        return *parts, classes  # type: ignore[return-value]

    return read


def _colored(name: str) -> tuple[str, Callable[[], _Arrays]]:
    source = DATA_SETS[name]
    assert source.file is not None
    return source.title, _fetched(source.file, source.num_classes, is_gray=False)


# Title, and what reads or draws it.
SETS: dict[str, tuple[str, Callable[[], _Arrays]]] = {
    "surfaces": ("drawn surfaces with small defects; labels are the kinds of defect", _surfaces),
    "textures": ("windows of ten photographed textures of OpenArena; labels are the textures", _fetched("textures")),
    "clipart": ("Open Clip Art, its ten largest subjects in gray", _fetched("clipart")),
}
COLOR_SETS: dict[str, tuple[str, Callable[[], _Arrays]]] = {
    name: _colored(name) for name in ("clipart-color", "textures-color", "deep-sky")
}


def load_set(name: str) -> ImageData:
    """Draw or read a set.

    Args:
        name: Key of `SETS`.

    Returns:
        The images, of one channel.
    """
    *arrays, _ = SETS[name][1]()
    images, labels, test_images, test_labels = (torch.as_tensor(np.ascontiguousarray(array)) for array in arrays)
    return ImageData(name, images[:, None], labels.long(), test_images[:, None], test_labels.long())


def write_set(name: str, folder: Path = FETCHED) -> tuple[Path, Path]:
    """Write a set as PNG files in a folder for each class, unless that is done.

    Args:
        name: Key of `SETS` or `COLOR_SETS`.
        folder: Where the sets are.

    Returns:
        Folders of the training and the test images.
    """
    root = folder / "search" / name
    if not (root / "complete").exists():
        images, labels, test_images, test_labels, classes = (SETS | COLOR_SETS)[name][1]()
        for split, pixels, numbers in (("train", images, labels), ("test", test_images, test_labels)):
            for index, (picture, label) in enumerate(zip(pixels, numbers, strict=True)):
                path = root / split / classes[int(label)] / f"{index:04}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)
        (root / "complete").touch()
    return root / "train", root / "test"
