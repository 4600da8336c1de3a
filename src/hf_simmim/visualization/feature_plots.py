"""Plots of features: nearest neighbors, and a 2-D map."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from .pictures import font_for, shortened

MAX_COLORS = 10
OTHER_COLOR = (0, 0, 0)
NO_LABEL_COLOR = (90, 90, 90)
SAME_COLOR, DIFFERENT_COLOR = (34, 139, 60), (240, 110, 10)
GAP, FRAME = 6, 3
DOT = 3  # radius in pixels


def label_colors(labels: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Colors of the most frequent labels, at most MAX_COLORS; the others have OTHER_COLOR."""
    from matplotlib import colormaps

    frequent = [label for label, _ in Counter(labels).most_common(MAX_COLORS)]
    palette = [tuple(round(255 * part) for part in color) for color in colormaps["tab10"].colors]  # type: ignore[attr-defined]
    return dict(zip(sorted(frequent), palette, strict=False))


def draw_neighbors(
    pictures: Sequence[Sequence[np.ndarray]],
    similarities: torch.Tensor,
    names: Sequence[Sequence[str]],
    labels: Sequence[Sequence[str]] | None = None,
    cell: int = 104,
) -> Image.Image:
    """Draw query images and their nearest neighbors, with similarities and names below them.

    Args:
        pictures: A row for each query: the query, then its neighbors, uint8 arrays (H, W, 3).
        similarities: Cosine similarities of the centered features of the neighbors, (Q, k).
        names: Names of the images, in the same rows. Of paths the last part is written.
        labels: Labels of the images, in the same rows: neighbors with the label of the query have a green frame, others
            an orange one.
        cell: Longer side of an image in pixels.

    Returns:
        The drawn image, a row for each query.
    """
    rows = [[_thumbnail(array, cell) for array in row] for row in pictures]
    texts = [[Path(name).name for name in row] for row in names]
    written = [text for row in texts for text in row] + [label for row in labels or () for label in row]
    font, small, line, header = font_for(written, 14), font_for(written, 12), 18, 26
    width = max(cell, *(picture.width for row in rows for picture in row)) + 2 * FRAME
    heights = [max(picture.height for picture in row) + 2 * FRAME + 2 * line + GAP for row in rows]
    columns = max(len(row) for row in rows)
    legend = header if labels is not None and columns > 1 else 0
    size = max(columns * (width + GAP) + 3 * GAP, 560), header + sum(heights) + legend
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, header / 2), "query", fill="black", font=font, anchor="lm")
    if columns > 1:
        title = "nearest neighbors, with cosine similarities of centered features"
        draw.text((width + 3 * GAP, header / 2), title, fill="black", font=font, anchor="lm")
    top = header
    for row, (thumbnails, height) in enumerate(zip(rows, heights, strict=True)):
        for column, picture in enumerate(thumbnails):
            left = GAP + column * (width + GAP) + (GAP if column else 0)
            x, y = left + (width - picture.width) // 2, top + FRAME
            label = labels[row][column] if labels is not None else ""
            if labels is not None and column:
                color = SAME_COLOR if label == labels[row][0] else DIFFERENT_COLOR
                box = (x - FRAME, y - FRAME, x + picture.width + FRAME - 1, y + picture.height + FRAME - 1)
                draw.rectangle(box, fill=color)
            canvas.paste(picture, (x, y))
            number = f"{similarities[row, column - 1]:.2f}  " if column else ""
            below = top + height - GAP - 1.5 * line
            label = shortened(label, font, width - font.getlength(number))
            for text, used, place in (
                (f"{number}{label}".strip(), font, below),
                (shortened(texts[row][column], small, width), small, below + line),
            ):
                draw.text((left + width / 2, place), text, fill="black", font=used, anchor="mm")
        top += height
    left = GAP
    for color, text in ((SAME_COLOR, "same class as the query"), (DIFFERENT_COLOR, "another class")) if legend else ():
        draw.rectangle((left, top + 6, left + 14, top + 20), fill=color)
        draw.text((left + 20, top + 13), text, fill="black", font=font, anchor="lm")
        left += 20 + round(font.getlength(text)) + 4 * GAP
    return canvas


def draw_map(
    points: np.ndarray, pictures: Sequence[np.ndarray], labels: Sequence[str] | None = None, side: int = 1600
) -> Image.Image:
    """Draw images at their positions on a map, in the colors of their labels.

    Images that would overlap one that is already drawn are dots, which stay visible on top of the images.

    Args:
        points: Positions (N, 2) in [0, 1].
        pictures: uint8 arrays (H, W, 3).
        labels: Label of each image; the most frequent ones have a color.
        side: Side of the map in pixels.

    Returns:
        The drawn image, with a legend below it if there are labels.
    """
    cell = round(min(64, max(36, side / max(len(points), 1) ** 0.5)))
    colors = label_colors(labels or ())
    font, line = font_for(colors, 20), 30
    entries = [*colors.items()]
    if labels is not None and len(set(labels)) > len(colors):
        entries.append(("other", OTHER_COLOR))
    legend_columns = 4
    legend = GAP + line * -(-len(entries) // legend_columns) if entries else 0
    canvas = Image.new("RGB", (side + 2 * GAP, side + 2 * GAP + legend), "white")
    draw = ImageDraw.Draw(canvas)
    corners = np.stack([points[:, 0], 1 - points[:, 1]], axis=1) * (side - cell)
    placed: list[int] = []
    dots: list[int] = []
    for index, corner in enumerate(corners):
        is_free = not placed or (np.abs(corners[placed] - corner).max(axis=1) >= cell + 2).all()
        (placed if is_free else dots).append(index)
    for index in placed:
        picture = _thumbnail(pictures[index], cell)
        left, top = (GAP + round(part) for part in corners[index].tolist())
        canvas.paste(picture, (left, top))
        if labels is not None:
            box = (left, top, left + picture.width - 1, top + picture.height - 1)
            draw.rectangle(box, outline=colors.get(labels[index], OTHER_COLOR), width=3)
    for index in dots:
        x, y = (GAP + cell / 2 + part for part in corners[index].tolist())
        color = NO_LABEL_COLOR if labels is None else colors.get(labels[index], OTHER_COLOR)
        draw.ellipse((x - DOT - 1, y - DOT - 1, x + DOT + 1, y + DOT + 1), fill="white")
        draw.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), fill=color)
    for index, (name, color) in enumerate(entries):
        left = GAP + (index % legend_columns) * side // legend_columns
        top = side + 2 * GAP + line * (index // legend_columns)
        draw.rectangle((left, top, left + 18, top + 18), fill=color)
        shown = shortened(name, font, side / legend_columns - 40)
        draw.text((left + 26, top + 9), shown, fill="black", font=font, anchor="lm")
    return canvas


def _thumbnail(array: np.ndarray, side: int) -> Image.Image:
    """Resize an image to a longer side in pixels; small images keep their pixels sharp."""
    picture = Image.fromarray(array)
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)
