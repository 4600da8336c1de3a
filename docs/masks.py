"""Draw docs/masks.png: what every masking strategy masks of the same photo, and the AvgDist to the visible pixels.

    python docs/masks.py [FILE]

The photo is NASA's of Eileen Collins, which scikit-image ships.
"""

import sys
from pathlib import Path

import numpy as np
import skimage
import torch
from PIL import Image, ImageDraw, ImageFont

from hf_simmim.model.masking import MASK_STRATEGIES, average_distance, mask_units, to_pixels

SIDE = 192
PATCH_SIZE = 4
# Strategy and side of its units in pixels.
COLUMNS = (("random", 8), ("random", 16), ("random", 32), ("square", 32), ("central_square", 32), ("block", 16))
RATIOS = (0.4, 0.6, 0.8)
SEED = 3
# AvgDist is the mean of so many masks; one of them is drawn.
NUM_MASKS = 64
MASK_GRAY = 190
ZOOM = 2  # for the letters, on screens of any density
GAP, HEADER, FOOTER, MARGIN = 8, 44, 20, 78


def photo() -> np.ndarray:
    """uint8 of shape (SIDE, SIDE, 3)."""
    path = Path(skimage.__file__).parent / "data" / "astronaut.png"
    return np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS, (0, 0, 440, 440)))


def draw() -> Image.Image:
    """A column for each strategy, a row for each ratio."""
    image = photo()
    width = MARGIN + len(COLUMNS) * (SIDE + GAP)
    height = HEADER + len(RATIOS) * (SIDE + FOOTER + GAP)
    canvas = Image.new("RGB", (width * ZOOM, height * ZOOM), "white")
    pen = ImageDraw.Draw(canvas)
    title, text = (ImageFont.load_default(size * ZOOM) for size in (17, 14))

    def write(x: float, y: float, words: str, font, anchor: str = "mm", color: str = "black") -> None:
        pen.text((x * ZOOM, y * ZOOM), words, color, font, anchor)

    for column, (name, unit) in enumerate(COLUMNS):
        left = MARGIN + column * (SIDE + GAP)
        write(left + SIDE / 2, 13, name, title)
        write(left + SIDE / 2, 32, f"units of {unit} px", text, color="dimgray")
        for row, ratio in enumerate(RATIOS):
            top = HEADER + row * (SIDE + FOOTER + GAP)
            grid_size, unit_size = mask_units((SIDE, SIDE), PATCH_SIZE, unit)
            generator = torch.Generator().manual_seed(SEED)
            masks = MASK_STRATEGIES[name](grid_size, ratio, NUM_MASKS, unit_size=unit_size, generator=generator)
            masked = to_pixels(masks[:1], PATCH_SIZE, (SIDE, SIDE))[0].numpy()
            cell = Image.fromarray(np.where(masked[..., None], np.uint8(MASK_GRAY), image))
            canvas.paste(cell.resize((SIDE * ZOOM, SIDE * ZOOM), Image.Resampling.NEAREST), (left * ZOOM, top * ZOOM))
            distance = average_distance(masks, PATCH_SIZE).mean()
            write(left + SIDE / 2, top + SIDE + 11, f"AvgDist {distance:.1f} px", text)
            if column == 0:
                write(MARGIN - 10, top + SIDE / 2, f"ratio {ratio}", text, "rm")
    return canvas


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
    draw().quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
