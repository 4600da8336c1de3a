"""What a model answered for every test image, kept beside its results: comparisons draw test images again from it."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics import MAX_RANKED_CLASSES

ANSWERS_FILE = "answers.npz"


def write_answers(folder: Path, predictions: Any, labels: Any) -> None:
    """Write `answers.npz`: the predictions and labels of the test images, in their order, without their names.

    Args:
        folder: Folder of the run.
        predictions: Pixels that are correct and predicted of each class, (N, 2, K), with those of the class as labels
            (N, K); logits (N, K), or numbers (N,) or (N, D), possibly in a tuple with other outputs. With more than
            200 classes of which an image has one, only the most likely class is kept.
        labels: Classes (N,), zeros and ones (N, K), or numbers.
    """
    predictions, labels = (np.asarray(part[0] if isinstance(part, tuple) else part) for part in (predictions, labels))
    if predictions.ndim == 2 and predictions.shape[1] > MAX_RANKED_CLASSES and labels.ndim == 1:
        predictions = predictions.argmax(axis=1)
    if np.issubdtype(predictions.dtype, np.floating):
        predictions = predictions.astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{ANSWERS_FILE}.part"
    with part.open("wb") as file:
        np.savez_compressed(file, predictions=predictions, labels=labels)
    part.replace(folder / ANSWERS_FILE)


def read_answers(folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Read `answers.npz`.

    Args:
        folder: Folder of the run.

    Returns:
        Predictions and labels; None if there are none, or the file is damaged.
    """
    try:
        with np.load(folder / ANSWERS_FILE, allow_pickle=False) as stored:
            return stored["predictions"], stored["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
