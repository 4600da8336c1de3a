"""Windows of photographed textures as arrays: the label is the texture, and train and test are of different parts."""

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64  # pixels
NUM_TEXTURES = 10
# Folders of walls, floors and blocks; others hold lamps, signs, skies and liquids.
FOLDERS = ("base_wall", "base_floor", "gothic_block", "gothic_floor", "gothic_wall", "oquartz")
MIN_SIDE = 256
MIN_SPREAD = 18.0  # standard deviation of the gray values of 0 to 255
# Windows of each texture.
NUM_TRAIN, NUM_TEST = 210, 50
# Side of a window before it is shrunk.
SCALES = (64, 112)


def prepare_textures(folder: Path, seed: int = 0, is_gray: bool = True) -> dict[str, np.ndarray]:
    """Cut windows out of textures that a seed draws: for training from their left parts, for testing from the right.

    Args:
        folder: Unpacked package, with a .pk3 file, which is a zip archive.
        seed: Random seed.
        is_gray: Whether the windows are gray; in color they are the same ones.

    Returns:
        `train_images` and `test_images` (N, 64, 64) or (N, 64, 64, 3) uint8, `train_labels`, `test_labels`, and
        `classes`, the names.
    """
    random = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(next(folder.rglob("*.pk3"))) as archive:
        for name in sorted(archive.namelist()):
            parts = Path(name).parts
            if len(parts) != 3 or parts[1] not in FOLDERS or not name.endswith(".jpg"):
                continue
            with Image.open(BytesIO(archive.read(name))) as image:
                gray = np.asarray(image.convert("L"))
                pixels = gray if is_gray else np.asarray(image.convert("RGB"))
            if min(gray.shape) >= MIN_SIDE and gray.std() >= MIN_SPREAD:
                found[f"{parts[1]}-{Path(name).stem}"] = pixels
    chosen = sorted(random.choice(sorted(found), min(NUM_TEXTURES, len(found)), replace=False).tolist())
    print(f"{len(found)} textures of {MIN_SIDE} px or more; drawn: {', '.join(chosen)}")
    arrays: dict[str, np.ndarray] = {"classes": np.array(chosen)}
    for split, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        windows, labels = [], []
        for label, name in enumerate(chosen):
            width = found[name].shape[1]
            part = found[name][:, : width // 2] if split == "train" else found[name][:, width // 2 :]
            windows += [_window(part, random) for _ in range(count)]
            labels += [label] * count
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = np.stack(windows), np.array(labels)
    return arrays


def _window(texture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A window of another scale, quarter turn, brightness and contrast each time."""
    side = int(random.integers(SCALES[0], min(SCALES[1], *texture.shape[:2]) + 1))
    top, left = (int(random.integers(0, length - side + 1)) for length in texture.shape[:2])
    cut = Image.fromarray(texture[top : top + side, left : left + side]).resize((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.rot90(np.asarray(cut, float), int(random.integers(4)))
    pixels = (pixels - pixels.mean()) * random.uniform(0.6, 1.2) + random.uniform(90, 160)
    return pixels.round().clip(0, 255).astype(np.uint8)
