"""Draw docs/targets.png: what each target that needs no network keeps of the same photo.

    python docs/targets.py [FILE]

Classes of colors and coarser pixels are drawn as a perfect prediction is decoded, normalized pixels from two standard
deviations below their mean to two above, and histograms of oriented gradients as lines along the edges.
"""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from masks import SIDE, ZOOM, photo
from PIL import Image, ImageDraw, ImageFont

from hf_simmim import SimMIMConfig
from hf_simmim.data.image_statistics import fit_color_clusters
from hf_simmim.data.transforms import normalize
from hf_simmim.model.configuration_simmim import TARGETS
from hf_simmim.visualization.pictures import to_pictures

NUM_CLUSTERS = 16
# Name, options, stride, and what the title says of the latter two.
PICTURES: list[tuple[str, dict[str, Any], int | None, str]] = [
    ("rgb", {}, None, "every pixel"),
    ("rgb", {}, 8, "prediction_stride 8"),
    ("normalized_rgb", {"window_size": 47}, None, "window_size 47"),
    ("normalized_rgb", {"patch_size": 16}, None, "patch_size 16"),
    ("color_bins", {"num_bins": 8}, None, "num_bins 8"),
    ("color_bins", {"num_bins": 3, "joint": True}, None, "num_bins 3, joint"),
    ("color_clusters", {}, None, f"{NUM_CLUSTERS} centers"),
    ("hog", {}, None, "cell_size 8"),
]
COLUMNS, GAP, HEADER = 4, 8, 40


def perfect(target: torch.Tensor, num_outputs: int) -> torch.Tensor:
    """The perfect prediction of a target: the target itself, or logits that are certain of its classes."""
    if target.is_floating_point():
        return target
    logits = 100.0 * F.one_hot(target, num_outputs // target.shape[1])  # B, G, h, w, classes
    return logits.movedim(-1, 2).flatten(1, 2)


def lines(histograms: np.ndarray, cell_size: int) -> Image.Image:
    """Histograms (h, w, bins) as lines along the edges, which are at right angles to the gradients."""
    rows, columns, num_bins = histograms.shape
    side = cell_size * ZOOM
    canvas = Image.new("L", (columns * side, rows * side))
    pen = ImageDraw.Draw(canvas)
    for row, column in np.ndindex(rows, columns):
        middle = np.array([column + 0.5, row + 0.5]) * side
        for index in np.argsort(histograms[row, column]):
            angle = np.pi * (index + 0.5) / num_bins + np.pi / 2
            reach = np.array([np.cos(angle), np.sin(angle)]) * side * 0.45
            pen.line([*(middle - reach), *(middle + reach)], fill=int(255 * min(1, histograms[row, column, index])))
    return canvas.convert("RGB")


def picture(name: str, options: dict[str, Any], stride: int | None) -> Image.Image:
    """The photo as a target represents it."""
    pixels = photo()
    if name == "color_clusters":
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        images = Dataset.from_dict({"name": ["photo"], "image": [{"bytes": file.getvalue(), "path": None}]})
        options = {"centers": fit_color_clusters(images, NUM_CLUSTERS, pixels_per_image=10_000)}
    config = SimMIMConfig(target=name, target_options=options, prediction_stride=stride)
    target: Any = TARGETS[name].build(config)
    mean, std = config.pixel_statistics()
    pixel_values = normalize(torch.tensor(pixels).permute(2, 0, 1)[None], mean, std)
    made = target(pixel_values)
    if name == "hog":
        histograms = made.view(3, -1, *made.shape[2:]).amax(dim=0).permute(1, 2, 0)
        return lines(histograms.numpy(), target.stride)
    if name == "normalized_rgb":
        return Image.fromarray(to_pictures(made, [0.5] * 3, [0.25] * 3)[0])
    return Image.fromarray(to_pictures(target.decode(perfect(made, target.num_outputs), pixel_values), mean, std)[0])


def draw() -> Image.Image:
    """All pictures in rows, each under its name."""
    rows = -(-len(PICTURES) // COLUMNS)
    size = (COLUMNS * (SIDE + GAP) + GAP, rows * (SIDE + HEADER + GAP))
    canvas = Image.new("RGB", (size[0] * ZOOM, size[1] * ZOOM), "white")
    pen = ImageDraw.Draw(canvas)
    title, text = (ImageFont.load_default(size * ZOOM) for size in (16, 13))
    for index, (name, options, stride, words) in enumerate(PICTURES):
        row, column = divmod(index, COLUMNS)
        left, top = GAP + column * (SIDE + GAP), row * (SIDE + HEADER + GAP)
        middle = (left + SIDE / 2) * ZOOM
        pen.text((middle, (top + 12) * ZOOM), name, "black", title, "mm")
        pen.text((middle, (top + 30) * ZOOM), words, "dimgray", text, "mm")
        cell = picture(name, options, stride).resize((SIDE * ZOOM, SIDE * ZOOM), Image.Resampling.NEAREST)
        canvas.paste(cell, (left * ZOOM, (top + HEADER) * ZOOM))
    return canvas


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
    draw().quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
