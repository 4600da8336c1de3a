"""Pictures of Open Clip Art as arrays: on white, without duplicates, labeled by the names of their folders."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 64  # pixels
HASH_SIDE = 8
MAX_HASH_DISTANCE = 4  # of 128 bits
MIN_INK = 0.002  # share of pixels that do not have the most common color
MIN_PICTURES = 100  # per class
TEST_SHARE = 0.2
# Folders that do not describe the content of their pictures.
NO_CLASSES = ("unsorted", "special")


def prepare_clip_art(folder: Path) -> dict[str, np.ndarray]:
    """Read, deduplicate and split the pictures.

    Args:
        folder: Unpacked package, whose folder `png` has a subfolder for each subject.

    Returns:
        `train_images` and `test_images` (N, 64, 64, 3) uint8, `train_labels`, `test_labels`, and `classes`, the class
        names.
    """
    root = next(path for path in sorted(folder.rglob("png")) if path.is_dir())
    paths = [path for path in sorted(root.rglob("*.png")) if path.is_file() and not path.is_symlink()]
    images, names, unreadable = [], [], 0
    for index, path in enumerate(paths):
        if index % 500 == 0:
            print(f"\r{index} of {len(paths)} pictures read", end="", flush=True)
        try:
            image = read_on_white(path)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            unreadable += 1
            continue
        images.append(image)
        names.append(path.relative_to(root).parts[0])
    pixels, labels = np.stack(images), np.array(names)
    kept, counts = without_duplicates(pixels)
    print(f"\r{len(paths)} pictures: {unreadable} unreadable, {counts}, {len(kept)} left")
    pixels, labels = pixels[kept], labels[kept]
    frequent = {name for name, count in Counter(labels.tolist()).items() if count >= MIN_PICTURES}
    classes = sorted(frequent - set(NO_CLASSES))
    has_class = np.isin(labels, classes)
    print(f"{has_class.sum()} of them in {len(classes)} classes with {MIN_PICTURES} or more: {', '.join(classes)}")
    pixels, numbers = pixels[has_class], np.searchsorted(classes, labels[has_class]).astype(np.uint8)
    is_test = stratified_split(numbers, TEST_SHARE, seed=0)
    return {
        "train_images": pixels[~is_test],
        "train_labels": numbers[~is_test],
        "test_images": pixels[is_test],
        "test_labels": numbers[is_test],
        "classes": np.array(classes),
    }


def read_on_white(path: Path, size: int = SIZE) -> np.ndarray:
    """Read a picture on a white square and shrink it to uint8 (size, size, 3)."""
    with Image.open(path) as image:
        picture = image.convert("RGBA")
    picture.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    square = Image.new("RGBA", (size, size), "white")
    square.alpha_composite(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return np.asarray(square.convert("RGB"))


def without_duplicates(images: np.ndarray) -> tuple[np.ndarray, str]:
    """Keep the first of equal or similar pictures, and none that is blank.

    Args:
        images: uint8 (N, H, W, 3).

    Returns:
        Indices of the kept pictures, and the numbers of the others, in words.
    """
    seen: set[bytes] = set()
    kept: list[int] = []
    blank = equal = similar = 0
    hashes = difference_hashes(images)
    kept_hashes = np.empty_like(hashes)
    for index, image in enumerate(images):
        if is_blank(image):
            blank += 1
            continue
        digest = hashlib.sha256(image.tobytes()).digest()
        if digest in seen:
            equal += 1
            continue
        seen.add(digest)
        distances = np.bitwise_count(kept_hashes[: len(kept)] ^ hashes[index]).sum(axis=1, dtype=np.int64)
        if (distances <= MAX_HASH_DISTANCE).any():
            similar += 1
            continue
        kept_hashes[len(kept)] = hashes[index]
        kept.append(index)
    return np.array(kept, dtype=np.int64), f"{blank} blank, {equal} equal to another, {similar} similar to another"


def is_blank(image: np.ndarray) -> bool:
    """Whether nearly all pixels have the same color."""
    colors = (image.astype(np.uint32) << np.array([16, 8, 0], np.uint32)).sum(axis=-1, dtype=np.uint32)
    return bool(np.unique(colors, return_counts=True)[1].max() > (1 - MIN_INK) * colors.size)


def difference_hashes(images: np.ndarray) -> np.ndarray:
    """Difference hashes along rows and along columns of shrunk gray pictures: uint8 (N, 16)."""
    hashes = []
    for image in images:
        gray = Image.fromarray(image).convert("L")
        wide = np.asarray(gray.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), np.int16)
        tall = np.asarray(gray.resize((HASH_SIDE, HASH_SIDE + 1), Image.Resampling.BOX), np.int16)
        hashes.append(np.packbits([wide[:, 1:] > wide[:, :-1], tall[1:] > tall[:-1]]))
    return np.stack(hashes)


def stratified_split(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Draw the same share of every class: bool (N,), True for drawn pictures."""
    random = np.random.default_rng(seed)
    drawn = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        drawn[members[: round(share * len(members))]] = True
    return drawn
