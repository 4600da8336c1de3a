"""Pictures to find copies of, and copies that are changed a little."""

import io

import numpy as np
from PIL import Image, ImageDraw


def scene(seed: int) -> Image.Image:
    """A picture of clouds and shapes of 160 x 128 px."""
    generator = np.random.default_rng(seed)
    colors = generator.integers(0, 256, (5, 6, 3)).astype(np.uint8)
    picture = Image.fromarray(colors).resize((160, 128), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(8):
        x, y = (int(value) for value in generator.integers(0, 120, 2))
        width, height = (int(value) for value in generator.integers(10, 50, 2))
        color = tuple(int(value) for value in generator.integers(0, 256, 3))
        (draw.ellipse, draw.rectangle)[int(generator.integers(2))]((x, y, x + width, y + height), fill=color)
    return picture


def changed(picture: Image.Image, kind: str) -> bytes:
    """A picture as a JPEG file: `same`, `half` the size, of `quality` 60, `mirrored`, `cropped` by 5 %, or `all`."""
    every = kind == "all"
    if every or kind == "cropped":
        width, height = picture.size
        picture = picture.crop((round(0.03 * width), round(0.01 * height), round(0.98 * width), round(0.96 * height)))
    if every or kind == "half":
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BICUBIC)
    if every or kind == "mirrored":
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=60 if every or kind == "quality" else 92)
    return file.getvalue()
