"""Splits of labeled images: label budgets, cross-validation folds and held-out images."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ..groups import group_folds, split_groups
from ..reading import ImageDataset, check_images
from ..sampling import sample_generator
from .images import LabeledImages

logger = logging.get_logger(__name__)


def readable_images(
    images: LabeledImages, num_channels: int, rescale_factor: float, nodata: float | None, max_unreadable: float
) -> LabeledImages:
    """Decode all images and leave out unreadable ones, with a warning.

    Args:
        images: The images.
        num_channels: Channels C that the model takes.
        rescale_factor: Factor that pixels are multiplied by.
        nodata: As in `LabeledImageDataset`.
        max_unreadable: Largest share of images that may be unreadable.

    Returns:
        The readable images.

    Raises:
        NoReadableImageError: If more than that share cannot be read.
    """
    dataset = ImageDataset(images.rows, (8, 8), num_channels, rescale_factor=rescale_factor, nodata=nodata)
    unreadable = dict(check_images([dataset], max_unreadable, len(dataset)))
    if not unreadable:
        return images
    first, reason = next(iter(unreadable.items()))
    logger.warning(
        f"{len(unreadable)} of {len(images)} images cannot be read and are left out; the first is {first} ({reason})."
    )
    return images.select([index for index, name in enumerate(images.rows["name"][:]) if name not in unreadable])


def few_labels(
    labels: Sequence[Any], labels_per_class: int, seed: int, class_names: Sequence[str] | None = None
) -> list[int]:
    """Draw a label budget: a few images of each class. Smaller budgets of a seed are subsets of larger ones.

    Args:
        labels: Label of each image: a class index, zeros and ones for K classes, or a float.
        labels_per_class: Number of images of each class. Images with several classes are drawn regardless of their
            classes, K times as many; images with float labels, as many in all.
        seed: Seed of the draw.
        class_names: Names of the classes, for the error message.

    Returns:
        Indices of the drawn images, in increasing order.

    Raises:
        ValueError: If there are too few images.
    """
    if labels_per_class < 1:
        raise ValueError(f"labels_per_class={labels_per_class} must be at least 1.")
    if _is_single(labels):
        names = list(class_names or map(str, range(max(labels) + 1)))
        groups = [np.flatnonzero(np.asarray(labels) == label) for label in range(len(names))]
        for name, group in zip(names, groups, strict=True):
            if len(group) < labels_per_class:
                raise ValueError(
                    f"Class {name} has {len(group)} images, fewer than labels_per_class={labels_per_class}. Use at most"
                    f" {min(map(len, groups))}, or add images."
                )
        counts = [labels_per_class] * len(groups)
    else:
        groups = [np.arange(len(labels))]
        counts = [labels_per_class * (1 if isinstance(labels[0], float) else len(labels[0]))]
        if len(labels) < counts[0]:
            raise ValueError(f"{counts[0]} images are needed and there are {len(labels)}. Use fewer, or add images.")
    chosen: list[int] = []
    for number, (group, count) in enumerate(zip(groups, counts, strict=True)):
        order = torch.randperm(len(group), generator=sample_generator(seed, number))
        chosen += group[order[:count].numpy()].tolist()
    return sorted(chosen)


def folds(
    labels: Sequence[Any],
    num_folds: int,
    fold: int,
    seed: int,
    class_names: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> tuple[list[int], list[int]]:
    """Split images for one fold of a cross-validation, stratified by class if each image has one class.

    Args:
        labels: As in `few_labels`.
        num_folds: Number of folds.
        fold: Index of the fold, from 0.
        seed: Seed of the split.
        class_names: Names of the classes, for the error message.
        groups: Group of each image, from `image_groups`, whose images are held out in the same fold; None for none.

    Returns:
        Indices of the training images and of the held-out images; every image is held out in exactly one fold.

    Raises:
        ValueError: If there is no such fold, or a class has fewer images or groups than there are folds.
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    if not 2 <= num_folds <= len(labels):
        raise ValueError(f"num_folds={num_folds} must be at least 2 and at most {len(labels)}, the number of images.")
    if not 0 <= fold < num_folds:
        raise ValueError(f"fold={fold} must be from 0 to {num_folds - 1}, as there are {num_folds} folds.")
    if groups is not None:
        return _whole_groups(labels, num_folds, fold, seed, class_names, groups)
    if _is_single(labels):
        _check_class_sizes(labels, num_folds, f"{num_folds} folds. Use fewer folds, or add images", class_names)
    splitter = (StratifiedKFold if _is_single(labels) else KFold)(num_folds, shuffle=True, random_state=seed)
    train, held_out = list(splitter.split(np.zeros(len(labels)), labels))[fold]
    return train.tolist(), held_out.tolist()


def holdout(
    labels: Sequence[Any],
    share: float,
    seed: int,
    class_names: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> tuple[list[int], list[int]]:
    """Hold out a share of the images, stratified by class if each image has one class.

    Args:
        labels: As in `few_labels`.
        share: Share to hold out, in (0, 1).
        seed: Seed of the split.
        class_names: Names of the classes, for the error message.
        groups: Group of each image, from `image_groups`, whose images are held out together; None for none.

    Returns:
        Indices of the training images and of the held-out images.

    Raises:
        ValueError: If the share is not in (0, 1), or too small or too large for every class to be in both parts, or a
            class is in one group alone.
    """
    from sklearn.model_selection import train_test_split

    if not 0 < share < 1:
        raise ValueError(f"The share to hold out is {share} and must be between 0 and 1.")
    if groups is not None:
        if _is_single(labels):
            _check_class_groups(labels, 2, "both parts of the split", class_names, groups)
        return split_groups(_classes(labels), groups, share, seed)
    num_held_out = round(share * len(labels))
    smallest = 1
    if _is_single(labels):
        _check_class_sizes(labels, 2, "both parts of the split. Remove the class, or add images", class_names)
        smallest = len(set(labels))
    if not smallest <= num_held_out <= len(labels) - smallest:
        raise ValueError(
            f"A share of {share} of {len(labels)} images is {num_held_out}, and each part needs at least {smallest}."
            " Use another share."
        )
    train, held_out = train_test_split(
        np.arange(len(labels)),
        test_size=num_held_out,
        random_state=seed,
        stratify=labels if _is_single(labels) else None,
    )
    return sorted(train.tolist()), sorted(held_out.tolist())


def _is_single(labels: Sequence[Any]) -> bool:
    if not len(labels):
        raise ValueError("There are no labels to split. Name a source with labels.")
    return isinstance(labels[0], (int, np.integer))


def _whole_groups(
    labels: Sequence[Any],
    num_folds: int,
    fold: int,
    seed: int,
    class_names: Sequence[str] | None,
    groups: Sequence[str],
) -> tuple[list[int], list[int]]:
    """As `folds`, of whole groups."""
    if _is_single(labels):
        _check_class_groups(labels, num_folds, f"{num_folds} folds", class_names, groups)
    if len(set(groups)) < num_folds:
        raise ValueError(
            f"The images come from {len(set(groups))} files or series, too few for {num_folds} folds. Use fewer folds,"
            " or add files."
        )
    found = group_folds(_classes(labels), groups, num_folds, seed)
    return np.flatnonzero(found != fold).tolist(), np.flatnonzero(found == fold).tolist()


def _classes(labels: Sequence[Any]) -> np.ndarray:
    """Zeros and ones of shape (images, classes); ones of shape (images, 1) for numbers."""
    if _is_single(labels):
        return np.eye(max(labels) + 1)[np.asarray(labels)]
    return np.ones((len(labels), 1)) if isinstance(labels[0], float) else np.asarray(labels, float)


def _check_class_groups(
    labels: Sequence[int], smallest: int, purpose: str, class_names: Sequence[str] | None, groups: Sequence[str]
) -> None:
    for label in sorted(set(labels)):
        count = len({group for group, found in zip(groups, labels, strict=True) if found == label})
        if count < smallest:
            name = f"{label} (counted from 0)" if class_names is None else class_names[label]
            raise ValueError(
                f"The images of class {name} come from {count} file{'s' * (count > 1)} or series, too few for"
                f" {purpose}: images of one file or series are alike, and stay together. Add files, or name other"
                " images for validation."
            )


def _check_class_sizes(labels: Sequence[int], smallest: int, purpose: str, class_names: Sequence[str] | None) -> None:
    label, count = min(Counter(labels).items(), key=lambda item: item[1])
    if count < smallest:
        name = f"{label} (counted from 0)" if class_names is None else class_names[label]
        raise ValueError(f"Class {name} has {count} image{'s' * (count > 1)}, too few for {purpose}.")
