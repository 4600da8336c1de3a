"""The image sets of the search, gray, and of the evidence, also in color: 64 px, as folders that the commands read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..ablation.data import FETCHED, ImageData, stratified_sample
from .surfaces import DEFECTS, draw_surfaces

NUM_IMAGES, NUM_TEST_IMAGES = 2100, 500
# Of clip art, the most frequent ones; fewer in color, where larger networks are trained.
NUM_CLASSES, NUM_COLOR_CLASSES = 10, 5

_Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]


def _surfaces() -> _Arrays:
    images, labels = draw_surfaces(NUM_IMAGES, seed=0)
    return images, labels, *draw_surfaces(NUM_TEST_IMAGES, seed=1), list(DEFECTS)


def _fetched(name: str, num_classes: int = NUM_CLASSES, is_gray: bool = True) -> Callable[[], _Arrays]:
    def read() -> _Arrays:
        path = FETCHED / f"{name}.npz"
        if not path.exists():
            raise ValueError(f"{path} does not exist. Fetch it with: python -m benchmarks.ablation.fetch {name}")
        with np.load(path) as stored:
            classes = stored["classes"]
            kept = np.argsort(-np.bincount(stored["train_labels"]), kind="stable")[:num_classes]
            parts = []
            for split, count in (("train", NUM_IMAGES), ("test", NUM_TEST_IMAGES)):
                labels = stored[f"{split}_labels"]
                rows = np.flatnonzero(np.isin(labels, kept))
                rank = torch.as_tensor(np.argsort(kept)[np.searchsorted(np.sort(kept), labels[rows])])
                chosen = stratified_sample(rank, count, torch.Generator().manual_seed(0)).numpy()
                images = stored[f"{split}_images"][rows[chosen]]
                if images.ndim == 4 and is_gray:
                    images = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
                parts += [images, rank.numpy()[chosen]]
        return *parts, [str(classes[index]) for index in kept]  # type: ignore[return-value]

    return read


# Title, and what reads or draws it.
SETS: dict[str, tuple[str, Callable[[], _Arrays]]] = {
    "surfaces": ("drawn surfaces with small defects; labels are the kinds of defect", _surfaces),
    "textures": ("windows of ten photographed textures of OpenArena; labels are the textures", _fetched("textures")),
    "clipart": ("Open Clip Art, its ten largest subjects in gray", _fetched("clipart")),
}
COLOR_SETS: dict[str, tuple[str, Callable[[], _Arrays]]] = {
    "clipart-color": (
        "Open Clip Art, its five largest subjects in color",
        _fetched("clipart", NUM_COLOR_CLASSES, is_gray=False),
    ),
    "textures-color": (
        "windows of ten photographed textures of OpenArena in color; labels are the textures",
        _fetched("textures-color", is_gray=False),
    ),
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
