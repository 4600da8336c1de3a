"""Writes a folder of scenes with a class for each pixel: shapes of other textures on photos.

The photos are those of `photos.py`, so nothing is downloaded.
"""

from pathlib import Path

import numpy as np
from photos import random_photo
from PIL import Image, ImageDraw

CLASS_NAMES = ("ground", "disc", "square")


def scene(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """A photo (width, height) with tinted shapes on it, and its class ids as a gray picture."""
    width, height = size
    picture, ids = random_photo(rng, size), Image.new("L", size)
    for kind, tint in ((1, (220, 40, 40)), (2, (40, 60, 220))):
        for _ in range(int(rng.integers(1, 3))):
            side = int(rng.integers(min(size) // 4, min(size) // 2))
            left, top = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
            shape = Image.new("L", size)
            draw = ImageDraw.Draw(shape)
            (draw.ellipse if kind == 1 else draw.rectangle)((left, top, left + side, top + side), fill=255)
            texture = Image.blend(random_photo(rng, size), Image.new("RGB", size, tint), 0.6)
            picture.paste(texture, mask=shape)
            ids.paste(kind, mask=shape)
    return picture, ids


def write_scenes(folder: Path, count: int, seed: int = 0, *, ignored: bool = True, names: bool = True) -> Path:
    """Write `images` and `masks`, in turns gray and palette PNG, sides of 64 to 96 px; return the folder."""
    rng = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        picture, ids = scene(rng, (int(rng.integers(64, 97)), int(rng.integers(64, 97))))
        if ignored:
            ImageDraw.Draw(ids).rectangle((0, 0, 6, 6), fill=255)
        if index % 2:
            ids = _with_palette(ids)
        picture.save(folder / "images" / f"scene {index:03d}.{'jpg' if index % 3 else 'png'}", quality=90)
        ids.save(folder / "masks" / f"scene {index:03d}.png")
    if names:
        (folder / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    return folder


def _with_palette(ids: Image.Image) -> Image.Image:
    indices = Image.fromarray(np.asarray(ids))
    indices.putpalette(np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tobytes())
    return indices
