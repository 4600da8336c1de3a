"""Pictures of what features hold to be alike: nearest neighbours, and a map of all images."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .visualization import font_for

MAX_COLORS = 10
OTHER_COLOR = (0, 0, 0)
GAP = 6


def draw_neighbours(
    queries: Sequence[np.ndarray],
    neighbours: Sequence[Sequence[np.ndarray]],
    similarities: torch.Tensor,
    cell: int = 96,
) -> Image.Image:
    """Draw images and beside each those that are most like it.

    Args:
        queries: Pictures, uint8 arrays (H, W, 3).
        neighbours: Of each the nearest pictures.
        similarities: Their cosine similarities (Q, k).
        cell: Longer side of a picture in pixels.

    Returns:
        The picture, a row for each query.
    """
    thumbnails = [
        [_thumbnail(array, cell) for array in (query, *row)] for query, row in zip(queries, neighbours, strict=True)
    ]
    width, height = thumbnails[0][0].size
    font, caption, header = ImageFont.load_default(13), 18, 24
    columns = max(len(row) for row in thumbnails)
    canvas = Image.new(
        "RGB", (columns * (width + GAP) + 3 * GAP, header + len(thumbnails) * (height + caption)), "white"
    )
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, header / 2), "image", fill="black", font=font, anchor="lm")
    if columns > 1:
        left = width + 3 * GAP
        draw.text((left, header / 2), "most alike (cosine similarity)", fill="black", font=font, anchor="lm")
    for row, pictures in enumerate(thumbnails):
        top = header + row * (height + caption)
        for column, picture in enumerate(pictures):
            left = GAP + column * (width + GAP) + (GAP if column else 0)
            canvas.paste(picture, (left, top))
            if column:
                text = f"{similarities[row, column - 1]:.3f}"
                draw.text(
                    (left + width / 2, top + height + caption / 2 - 2), text, fill="black", font=font, anchor="mm"
                )
    return canvas


def project(features: torch.Tensor, method: str = "tsne", seed: int = 0) -> np.ndarray:
    """Bring features to a plane.

    Args:
        features: (N, D).
        method: "tsne", where near ones stay near, on 50 principal components; or "pca", the first two components.
        seed: Of the course of t-SNE.

    Returns:
        Positions float64 (N, 2) in 0 to 1.

    Raises:
        ValueError: If there are fewer than three images.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(features) < 3:
        raise ValueError(f"{len(features)} images make no map. Use 3 or more.")
    values = features.double().numpy()
    count = min(50, *values.shape) if method == "tsne" else 2
    points = PCA(count, random_state=seed).fit_transform(values)
    # scikit-learn divides by the spread, and crashes where there is none.
    if method == "tsne" and points[:, 0].std() <= 1e-5 * max(1.0, float(np.abs(values).max())):
        raise ValueError("The features of all images are alike, so that there is no map to draw. Use --map none.")
    if method == "tsne":
        perplexity = min(30.0, (len(points) - 1) / 3)
        points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - low) / np.maximum(high - low, 1e-12)


def draw_map(
    points: np.ndarray, pictures: Sequence[np.ndarray], labels: Sequence[str] | None = None, side: int = 1600
) -> Image.Image:
    """Draw images where they lie on a map, framed in the colours of their labels.

    Args:
        points: Positions (N, 2) in 0 to 1.
        pictures: uint8 arrays (H, W, 3).
        labels: Of each; the most frequent ones have a colour.
        side: Of the map in pixels.

    Returns:
        The picture, with a legend below it where there are labels.
    """
    from matplotlib import colormaps

    cell = round(min(64, max(24, side / max(len(points), 1) ** 0.5)))
    frequent = [label for label, _ in Counter(labels or ()).most_common(MAX_COLORS)]
    palette = [tuple(round(255 * part) for part in color) for color in colormaps["tab10"].colors]  # type: ignore[attr-defined]
    colors = dict(zip(sorted(frequent), palette, strict=False))
    font, line = font_for(frequent, 20), 30
    entries = [*colors.items()]
    if labels is not None and len(set(labels)) > len(frequent):
        entries.append(("other", OTHER_COLOR))
    legend_columns = 4
    legend = GAP + line * -(-len(entries) // legend_columns) if entries else 0
    canvas = Image.new("RGB", (side + 2 * GAP, side + 2 * GAP + legend), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (x, y) in enumerate(points):
        picture = _thumbnail(pictures[index], cell)
        left, top = GAP + round(x * (side - cell)), GAP + round((1 - y) * (side - cell))
        canvas.paste(picture, (left, top))
        if labels is not None:
            box = (left, top, left + picture.width - 1, top + picture.height - 1)
            draw.rectangle(box, outline=colors.get(labels[index], OTHER_COLOR), width=3)
    for index, (name, color) in enumerate(entries):
        left = GAP + (index % legend_columns) * side // legend_columns
        top = side + 2 * GAP + line * (index // legend_columns)
        draw.rectangle((left, top, left + 18, top + 18), fill=color)
        shown = name if len(name) <= 30 else f"{name[:29]}…"
        draw.text((left + 26, top + 9), shown, fill="black", font=font, anchor="lm")
    return canvas


def _thumbnail(array: np.ndarray, side: int) -> Image.Image:
    """A picture whose longer side has so many pixels; small ones keep their pixels sharp."""
    picture = Image.fromarray(array)
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)
