"""Which images belong together, such as slices of a volume, and splits that keep them on one side."""

import functools
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers.utils import logging

from ..formats.address import SEPARATOR, parse_address
from ..formats.dicom import series_uid
from ..formats.readers import format_of
from .sources import is_unnamed_dicom

logger = logging.get_logger(__name__)

# How often a split of groups is gone through for what brings it nearer to its share; it rarely takes more than three.
NUM_PASSES = 10


def image_groups(names: Sequence[str]) -> list[str] | None:
    """Find out which images are like each other because they come from one file or one DICOM series.

    Args:
        names: Names of the images, which are paths and addresses if they come from files.

    Returns:
        For each image the file that it is in, or the series of its file, or a text of its own; None if no two images
        share one.
    """
    paths = [parse_address(name).path if SEPARATOR in name else name for name in names]
    dicom = [path for path in dict.fromkeys(paths) if _is_dicom(path)]
    with ThreadPoolExecutor() as pool:
        series = dict(zip(dicom, pool.map(_series, dicom), strict=True))
    inside = {path for path, name in zip(paths, names, strict=True) if path != name}
    # Rows of a data set may have the same name without being of one file.
    groups = [series.get(path) or (path if path in inside else f"{index} {path}") for index, path in enumerate(paths)]
    return groups if len(set(groups)) < len(groups) else None


@functools.lru_cache(1 << 16)
def _series(path: str) -> str:
    """The series of a DICOM file, wherever its slices lie; empty if it is not known."""
    try:
        return series_uid(path)
    except Exception:  # readers raise anything on a broken file, which is reported when it is read
        return ""


def _is_dicom(path: str) -> bool:
    """Whether a file is DICOM by its name, or by its first bytes if its name says nothing."""
    found = format_of(path)
    if found is not None:
        return found.name == "DICOM" and os.path.isfile(path)
    return is_unnamed_dicom(Path(path), os.path.splitext(path)[1].lower())


def hold_out(rows: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Hold out a share of the images: whole files and series where several images come from one.

    Args:
        rows: Rows of `load_images`.
        share: Share to hold out, in (0, 1).
        seed: Seed of the choice.

    Returns:
        The other images, and those that are held out.
    """
    groups = image_groups(rows["name"][:])
    members = members_of(groups or [])
    if len(members) < 2:
        if groups is not None:
            logger.warning(
                "All images come from one file or series, so those that are held out are like those that are trained"
                " on. Name other files with --validation_dir."
            )
        parts = rows.train_test_split(test_size=share, seed=seed)
        return parts["train"], parts["test"]
    held: list[int] = []
    order = list(members)
    for index in np.random.default_rng(seed).permutation(len(order))[:-1]:
        held += members[order[index]]
        if len(held) >= round(share * len(rows)):
            break
    return rows.select(sorted(set(range(len(rows))) - set(held))), rows.select(sorted(held))


def members_of(groups: Sequence[str]) -> dict[str, list[int]]:
    """Indices of the images of each group, in the order of the groups' first images."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    return members


def _shuffled(classes: np.ndarray, groups: Sequence[str], seed: int) -> tuple[list[list[int]], np.ndarray]:
    """Images of each group in random order, and its share of each class."""
    members = list(members_of(groups).values())
    members = [members[index] for index in np.random.default_rng(seed).permutation(len(members))]
    shares = np.stack([classes[indices].sum(axis=0) for indices in members]) / np.maximum(classes.sum(axis=0), 1)
    return members, shares


def split_groups(classes: np.ndarray, groups: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Hold out whole groups that have about the given share of every class.

    Args:
        classes: Zeros and ones of shape (images, classes): which classes an image is of; ones of shape (images, 1)
            if there are none.
        groups: Group of each image.
        share: Share to hold out, in (0, 1).
        seed: Seed of the choice.

    Returns:
        Indices of the other images, and of those that are held out.

    Raises:
        ValueError: If there is only one group.
    """
    members, shares = _shuffled(classes, groups, seed)
    if len(members) < 2:
        raise ValueError(
            "All images come from one file or series, so that none can be held out which is unlike those that are"
            " trained on. Name other files for validation."
        )
    is_held = np.zeros(len(members), bool)
    for _ in range(NUM_PASSES):
        before = is_held.copy()
        for index in range(len(members)):
            off = share - is_held @ shares
            change = -shares[index] if is_held[index] else shares[index]
            is_held[index] ^= np.square(off - change).sum() < np.square(off).sum()
        if (is_held == before).all():
            break
    # Every class that can be in both parts is, and no part is empty.
    for number in range(classes.shape[1]):
        having = np.flatnonzero(shares[:, number])
        if len(having) > 1 and not is_held[having].any():
            is_held[having[-1]] = True
    if not is_held.any() or is_held.all():
        is_held[0] ^= True
    held = np.flatnonzero(is_held)
    chosen = sorted(index for group in held for index in members[group])
    return sorted(set(range(len(groups))) - set(chosen)), chosen


def group_folds(classes: np.ndarray, groups: Sequence[str], num_folds: int, seed: int) -> np.ndarray:
    """Distribute whole groups over folds that have about the same share of every class.

    Args:
        classes: As in `split_groups`.
        groups: Group of each image, of at least as many groups as folds.
        num_folds: Number of folds.
        seed: Seed of the distribution.

    Returns:
        Fold of each image, of shape (images,); no fold is empty.

    Source: the greedy choice of scikit-learn's `StratifiedGroupKFold`.
    """
    members, shares = _shuffled(classes, groups, seed)
    held, sizes = np.zeros((num_folds, classes.shape[1])), np.zeros(num_folds)
    folds = np.zeros(len(groups), int)
    # The largest first, so that small ones even out what is left.
    for group in sorted(range(len(members)), key=lambda index: -len(members[index])):
        indices, share = members[group], shares[group]
        # Where it adds least to what is uneven; an empty fold is never worse than another.
        fold = np.lexsort((sizes, held @ share))[0]
        held[fold] += share
        sizes[fold] += len(indices)
        folds[indices] = fold
    return folds
