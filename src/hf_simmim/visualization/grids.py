"""Image grids: reconstructions and segmentations."""

import colorsys
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from .pictures import error_pictures, font_for, shortened

SEGMENTATION_COLUMNS = ("image", "annotation", "prediction")
NO_CLASS_GRAY = 160


def class_colors(count: int) -> np.ndarray:
    """A color for each class, uint8 (count, 3): hues a golden angle apart, alternating in brightness."""
    colors = [
        colorsys.hsv_to_rgb(0.618034 * index % 1, (0.85, 0.55)[index // 2 % 2], (1.0, 0.65)[index % 2])
        for index in range(count)
    ]
    return (np.array(colors) * 255).round().astype(np.uint8)


def draw_segmentations(
    pictures: Sequence[np.ndarray],
    annotations: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    class_names: Sequence[str],
    side: int = 224,
) -> Image.Image:
    """Draw image, annotation and prediction, one image per row, above a legend of the classes that occur.

    Args:
        pictures: uint8 arrays (h, w, 3).
        annotations: Class ids (H, W); pixels without a class are gray, in the prediction too.
        predictions: Class ids (H, W).
        class_names: Name of each class.
        side: Longer side of a drawn image in pixels.

    Returns:
        The drawn image.
    """
    colors = np.vstack([class_colors(len(class_names)), np.full((1, 3), NO_CLASS_GRAY, np.uint8)])
    gap, header = 6, 22
    font = font_for(class_names, 13)
    rows, seen = [], set()
    for picture, annotation, prediction in zip(pictures, annotations, predictions, strict=True):
        is_class = (annotation >= 0) & (annotation < len(class_names))
        height, width = annotation.shape
        zoom = side / max(height, width)
        size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
        cells = [Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)]
        for ids in (annotation, prediction):
            shown = np.where(is_class, ids, len(class_names))
            seen |= set(np.unique(shown).tolist())
            cells.append(Image.fromarray(colors[shown]).resize(size, Image.Resampling.NEAREST))
        rows.append(cells)
    names = [*class_names, "no class"]
    legend = [(names[index], tuple(colors[index].tolist())) for index in sorted(seen)]
    total_width = len(SEGMENTATION_COLUMNS) * (side + gap) + gap
    entry = max(math.ceil(font.getlength(name)) for name, _ in legend) + 30
    columns = max(1, total_width // entry)
    height = header + sum(cells[0].height + gap for cells in rows) + math.ceil(len(legend) / columns) * header
    canvas = Image.new("RGB", (max(total_width, entry), height), "white")
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(SEGMENTATION_COLUMNS):
        draw.text((gap + column * (side + gap) + side / 2, header / 2), title, fill="black", font=font, anchor="mm")
    top = header
    for cells in rows:
        for column, cell in enumerate(cells):
            canvas.paste(cell, (gap + column * (side + gap), top))
        top += cells[0].height + gap
    for number, (name, color) in enumerate(legend):
        left, middle = gap + number % columns * entry, top + number // columns * header + header / 2
        draw.rectangle((left, middle - 6, left + 12, middle + 6), fill=color)
        draw.text((left + 18, middle), name, fill="black", font=font, anchor="lm")
    return canvas


# Longer side in pixels: smaller images are enlarged to at least the first, larger ones reduced to the second.
SMALLEST_SIDE, LARGEST_SIDE = 96, 384


def columns_of(reconstruction: Any, columns: Sequence[str] | None = None, error_map: bool = False) -> list[list[str]]:
    """Choose the columns that are drawn of each model.

    Args:
        reconstruction: As in `reconstruction_grid`.
        columns: Columns to draw, in order; models leave out those that their target has not. None for the usual ones.
        error_map: Whether to add the error.

    Returns:
        The columns of each model.
    """
    models = list(reconstruction.values()) if isinstance(reconstruction, Mapping) else [reconstruction]
    chosen = []
    for model in models:
        wanted = list(columns or (model.usual_columns if len(models) == 1 else model.columns_beside))
        wanted += ["error"] if error_map and "error" not in wanted else []
        chosen.append([column for column in wanted if column in model.columns])
    return chosen


def reconstruction_grid(
    reconstruction: Any,
    columns: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    show_figures: bool = False,
    rows_together: int = 1,
    error_map: bool = False,
) -> Image.Image:
    """Draw reconstructions, one image per row, with groups of rows side by side for a balanced aspect ratio.

    Args:
        reconstruction: A `Reconstruction` or `GradientReconstruction`, that is images, masks and predictions; or those
            of several models by name, of the same images and masks, whose columns are drawn side by side.
        columns: Columns to draw, as in `pictures` of their classes; the usual ones of each if None. An error map has a
            color scale below.
        names: Text to write above each image.
        show_figures: Whether to write the error of masked pixels or gradients, and AvgDist, below each image.
        rows_together: Number of consecutive rows that stay in one group, such as those of one image.
        error_map: Whether to draw the error, too.

    Returns:
        The drawn image.
    """
    models = reconstruction if isinstance(reconstruction, Mapping) else {"": reconstruction}
    first = next(iter(models.values()))
    chosen = columns_of(models, columns, error_map)
    shared = [column for column in chosen[0] if column in ("original", "masked")]
    table = [_Column(column, first.pictures(column)) for column in shared]
    if show_figures and table:
        table[-1].captions = [f"AvgDist {_format_value(value, 1)} px" for value in first.average_distance.tolist()]
    scales: dict[str, tuple[str, float]] = {}
    targets: list[torch.Tensor] = []
    for (name, model), wanted in zip(models.items(), chosen, strict=True):
        wanted = [column for column in wanted if column not in ("original", "masked")]
        if "target" in wanted:
            # Once for all models that have the same.
            if any(model.target.shape == target.shape and torch.equal(model.target, target) for target in targets):
                wanted.remove("target")
            targets.append(model.target)
        predicted = [
            _Column(model.titles.get(column, column), model.pictures(column), "" if column == "target" else name)
            for column in wanted
        ]
        if show_figures and predicted:
            predicted[0].captions = [
                f"{model.error_name} {_format_value(value, model.error_digits)}"
                for value in model.masked_error.tolist()
            ]
        table += predicted
        if "error" in wanted:
            scales[model.kind] = (f"error of masked {model.kind}, {model.error_unit}", model.error_limit)
    return _draw_table(table, names, rows_together, list(scales.values()))


@dataclass
class _Column:
    """A column of images (B, H, W, 3) with a title, the name of their model, and a caption below each."""

    title: str
    pictures: np.ndarray
    model: str = ""
    captions: Sequence[str] = ()


def _format_value(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _draw_table(
    table: Sequence[_Column],
    names: Sequence[str] | None,
    rows_together: int,
    scales: Sequence[tuple[str, float]] = (),
) -> Image.Image:
    """Draw columns, in groups of rows side by side, and below them scales of errors by meaning and limit."""
    # Some columns may be larger than others by a whole number.
    batch_size, height, width, _ = max((column.pictures.shape for column in table), key=lambda shape: shape[1])
    zoom = max(1, math.ceil(SMALLEST_SIDE / max(height, width)))
    if max(height, width) > LARGEST_SIDE:
        zoom = LARGEST_SIDE / max(height, width)
    cell_width, cell_height = max(1, round(width * zoom)), max(1, round(height * zoom))
    texts = [column.title for column in table] + [text for column in table for text in column.captions]
    written = [*texts, *(names or ()), *(column.model for column in table)]
    font = font_for(written, max(13, max(cell_width, cell_height) // 15))
    line, gap = round(font.size * 1.4), max(6, font.size // 3)
    column_width = max(cell_width, math.ceil(max(map(font.getlength, texts))))
    has_models, has_captions = any(column.model for column in table), any(column.captions for column in table)
    header = line * (2 if has_models else 1) + gap // 2
    row_height = cell_height + gap + line * ((names is not None) + has_captions)
    group_width = len(table) * (column_width + gap)
    groups = min(
        range(1, batch_size + 1),
        key=lambda number: abs(math.log(number * group_width / (math.ceil(batch_size / number) * row_height) / 1.5)),
    )
    rows = math.ceil(batch_size / groups / rows_together) * rows_together
    groups = math.ceil(batch_size / rows)
    canvas_width, canvas_height = groups * group_width + (groups - 1) * 2 * gap + gap, header + rows * row_height
    drawn = [_error_scale(font, meaning, limit) for meaning, limit in scales]
    canvas_width = max(canvas_width, *(scale.width + 2 * gap for scale in drawn), 0)
    canvas_height += sum(scale.height + gap for scale in drawn)
    canvas = Image.new("RGB", (canvas_width, canvas_height), "white")
    pen = ImageDraw.Draw(canvas)

    def write(place: tuple[float, float], text: str, room: float, anchor: str = "mm") -> None:
        pen.text(place, shortened(text, font, room), fill="black", font=font, anchor=anchor)

    for index in range(batch_size):
        group, row = divmod(index, rows)
        left, top = gap + group * (group_width + 2 * gap), header + row * row_height
        if names is not None:
            write((left, top + line / 2), names[index], group_width - gap, "lm")
            top += line
        for number, column in enumerate(table):
            middle = left + number * (column_width + gap) + column_width / 2
            if row == 0:
                write((middle, header - gap / 2 - line / 2), column.title, column_width)
                if column.model:
                    write((middle, line / 2), column.model, column_width)
            picture = Image.fromarray(column.pictures[index])
            is_crisp = picture.width <= cell_width
            resample = Image.Resampling.NEAREST if is_crisp else Image.Resampling.LANCZOS
            picture = picture.resize((cell_width, cell_height), resample)
            canvas.paste(picture, (round(middle - cell_width / 2), top))
            if column.captions:
                write((middle, top + cell_height + line / 2), column.captions[index], column_width)
    top = header + rows * row_height
    for scale in drawn:
        canvas.paste(scale, (gap, top))
        top += scale.height + gap
    return canvas


def _error_scale(font: Any, meaning: str, limit: float) -> Image.Image:
    """Labeled color scale of an error map, from 0 to a limit."""
    before, after = f"{meaning}:  0 ", f" {limit:g} or more"
    start, length = math.ceil(font.getlength(before)), font.size * 10
    scale = Image.new("RGB", (start + length + math.ceil(font.getlength(after)), round(font.size * 1.4)), "white")
    colors = error_pictures(torch.linspace(0, limit, length).expand(1, scale.height, -1), limit)[0]
    scale.paste(Image.fromarray(colors), (start, 0))
    pen = ImageDraw.Draw(scale)
    for place, text in ((0, before), (start + length, after)):
        pen.text((place, scale.height / 2), text, fill="black", font=font, anchor="lm")
    return scale
