"""Pictures of what a model does: reconstructions, and the course of the loss."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from .reconstruction import Reconstruction

MASK_GREY = 128
# Errors from here on, of 255, have the brightest colour of an error map: always the same, so that maps compare.
ERROR_LIMIT = 128
# Longer side in pixels that small images are enlarged to at least, and large ones reduced to.
SMALLEST_SIDE, LARGEST_SIDE = 96, 384

# Of `Reconstruction`, what is drawn unless something else is asked for.
DRAWN_COLUMNS = ("original", "masked", "prediction", "composite")


def font_for(texts: Iterable[str], size: int) -> Any:
    """A font that has the letters of texts such as names of files and classes, as far as there is one.

    Args:
        texts: What is to be written.
        size: In pixels.

    Returns:
        Pillow's own font; for letters beyond ASCII, most of which it lacks, DejaVu Sans, which matplotlib brings along.
    """
    if all(text.isascii() for text in texts):
        return ImageFont.load_default(size)
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def to_pictures(pixel_values: torch.Tensor, image_mean: Sequence[float], image_std: Sequence[float]) -> np.ndarray:
    """Undo the normalisation, for the eye.

    Black is 0 and white is 1 after rescaling, as in pictures. Channels whose mean and standard deviation show another
    range, such as those of satellites, go from black to white within two standard deviations around their mean.

    Args:
        pixel_values: Normalised images of shape (B, C, H, W). Of more than three channels the first three are shown.
        image_mean: Mean of each channel of rescaled pixels.
        image_std: Standard deviation of each channel.

    Returns:
        uint8 array of shape (B, H, W, 3).
    """
    shown = 1 if pixel_values.shape[1] < 3 else 3
    pixels = pixel_values[:, :shown].float()
    mean, std = (torch.tensor(values[:shown], device=pixels.device) for values in (image_mean, image_std))
    if bool(((mean >= 0) & (mean <= 1) & (std >= 0.1) & (std <= 1)).all()):
        pixels = pixels * std.view(1, -1, 1, 1) + mean.view(1, -1, 1, 1)
    else:
        pixels = pixels / 4 + 0.5
    pixels = pixels.clamp(0, 1).expand(-1, 3, -1, -1)
    return (pixels * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def error_pictures(error: torch.Tensor) -> np.ndarray:
    """Colour errors from black over red to pale yellow, evenly for the eye.

    Args:
        error: Tensor of shape (B, H, W) of errors from 0 to 255; all above ERROR_LIMIT look alike.

    Returns:
        uint8 array of shape (B, H, W, 3).
    """
    from matplotlib import colormaps

    shares = (error.float() / ERROR_LIMIT).clamp(0, 1).cpu().numpy()
    return colormaps["magma"](shares, bytes=True)[..., :3]


def reconstruction_grid(
    reconstruction: "Reconstruction | Mapping[str, Reconstruction]",
    columns: Sequence[str] = DRAWN_COLUMNS,
    names: Sequence[str] | None = None,
    show_figures: bool = False,
    rows_together: int = 1,
) -> Image.Image:
    """Draw what a model makes of hidden patches, one image a row, in as many groups of rows as look well.

    Args:
        reconstruction: Images, masks and predictions; or those of several models by name, of the same images and masks,
            whose columns then stand side by side.
        columns: What to draw, as in `Reconstruction.pictures`. An error map has its scale below.
        names: A line to write above each image.
        show_figures: Whether to write masked l1 and AvgDist below each image.
        rows_together: Of so many rows none goes to another group alone, such as those of one image.

    Returns:
        The picture.
    """
    models = reconstruction if isinstance(reconstruction, Mapping) else {"": reconstruction}
    first = next(iter(models.values()))
    shared = [column for column in columns if column in ("original", "masked")]
    table = [_Column(column, first.pictures(column)) for column in shared]
    if show_figures and table:
        table[-1].captions = [f"AvgDist {_figure(value)} px" for value in first.average_distance.tolist()]
    for name, model in models.items():
        predicted = [_Column(column, model.pictures(column), name) for column in columns if column not in shared]
        if show_figures and predicted:
            predicted[0].captions = [f"masked l1 {_figure(value)}" for value in model.masked_l1.tolist()]
        table += predicted
    return _draw_table(table, names, rows_together, _error_scale if "error" in columns else None)


@dataclass
class _Column:
    """Pictures (B, H, W, 3) below each other, with a title, the model they are of, and a line below each."""

    title: str
    pictures: np.ndarray
    model: str = ""
    captions: Sequence[str] = ()


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _draw_table(
    table: Sequence[_Column],
    names: Sequence[str] | None,
    rows_together: int,
    draw_scale: Callable[[ImageFont.FreeTypeFont], Image.Image] | None,
) -> Image.Image:
    """Draw columns, in groups of rows side by side, with what `draw_scale` draws for this font below them."""
    batch_size, height, width, _ = table[0].pictures.shape
    zoom = max(1, math.ceil(SMALLEST_SIDE / max(height, width)))
    if max(height, width) > LARGEST_SIDE:
        zoom = LARGEST_SIDE / max(height, width)
    cell_width, cell_height = max(1, round(width * zoom)), max(1, round(height * zoom))
    resample = Image.Resampling.NEAREST if zoom >= 1 else Image.Resampling.LANCZOS
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
    scale = draw_scale(font) if draw_scale is not None else None
    if scale is not None:
        canvas_width, canvas_height = max(canvas_width, scale.width + 2 * gap), canvas_height + scale.height + gap
    canvas = Image.new("RGB", (canvas_width, canvas_height), "white")
    pen = ImageDraw.Draw(canvas)

    def write(place: tuple[float, float], text: str, room: float, anchor: str = "mm") -> None:
        pen.text(place, _shortened(text, font, room), fill="black", font=font, anchor=anchor)

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
            picture = Image.fromarray(column.pictures[index]).resize((cell_width, cell_height), resample)
            canvas.paste(picture, (round(middle - cell_width / 2), top))
            if column.captions:
                write((middle, top + cell_height + line / 2), column.captions[index], column_width)
    if scale is not None:
        canvas.paste(scale, (gap, canvas_height - scale.height - gap))
    return canvas


def _shortened(text: str, font: Any, room: float) -> str:
    """A text that fits, without its middle if it must be."""
    kept = len(text)
    short = text
    while font.getlength(short) > room and kept > 2:
        kept -= 1
        short = text[: kept // 2] + "…" + text[len(text) - (kept - kept // 2) :]
    return short


def _error_scale(font: Any) -> Image.Image:
    """The colours of an error map from 0 to ERROR_LIMIT, in a line of text."""
    before, after = "error of hidden pixels, of 255:  0 ", f" {ERROR_LIMIT} and more"
    start, length = math.ceil(font.getlength(before)), font.size * 10
    scale = Image.new("RGB", (start + length + math.ceil(font.getlength(after)), round(font.size * 1.4)), "white")
    colors = error_pictures(torch.linspace(0, ERROR_LIMIT, length).expand(1, scale.height, -1))[0]
    scale.paste(Image.fromarray(colors), (start, 0))
    pen = ImageDraw.Draw(scale)
    for place, text in ((0, before), (start + length, after)):
        pen.text((place, scale.height / 2), text, fill="black", font=font, anchor="lm")
    return scale


def plot_losses(log_history: Sequence[dict[str, float]], path: Path) -> None:
    """Draw training and evaluation loss, and the learning rate, over steps.

    Args:
        log_history: `TrainerState.log_history`.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*_over_steps(log_history, "loss"), label="training", color="tab:blue")
    evaluation = _over_steps(log_history, "eval_loss")
    if evaluation[0]:
        axes.plot(*evaluation, label="evaluation (fixed masks)", color="tab:orange", marker="o", markersize=3)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    rates = axes.twinx()
    rates.plot(*_over_steps(log_history, "learning_rate"), color="tab:grey", linestyle=":", label="learning rate")
    rates.set_ylabel("learning rate")
    rates.set_ylim(bottom=0)
    lines = [*axes.get_lines(), *rates.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines])
    figure.savefig(path, dpi=120)


def plot_probe(log_history: Sequence[dict[str, float]], path: Path) -> None:
    """Draw the accuracies of the probes over steps, and those before training as horizontal lines.

    Args:
        log_history: `TrainerState.log_history`.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for key, name, color in (
        ("probe_linear_accuracy", "linear probe", "tab:blue"),
        ("probe_knn_accuracy", "nearest neighbours", "tab:orange"),
    ):
        steps, values = _over_steps(log_history, key)
        axes.plot(steps, values, label=name, color=color, marker="o", markersize=3)
        if 0 in steps:
            before = values[steps.index(0)]
            axes.axhline(before, color=color, linestyle=":", linewidth=1, label=f"{name}, before training")
    axes.set_xlabel("step")
    axes.set_ylabel("accuracy of frozen features")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _over_steps(log_history: Sequence[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Steps and the first figure of each: a second one may be of the best weights, which the end brings back."""
    points: dict[float, float] = {}
    for entry in log_history:
        if key in entry:
            points.setdefault(entry["step"], entry[key])
    return list(points), list(points.values())


def plot_layers(layers: Sequence[str], series: dict[str, list[list[float]]], path: Path, title: str = "") -> None:
    """Draw accuracies of the layers of an encoder.

    Args:
        layers: Their names.
        series: By name, accuracies of each layer: one for each seed; the mean is drawn, with the standard deviation.
        path: PNG file to write.
        title: Of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    positions = [float(index) for index in range(len(layers))]
    for index, (name, accuracies) in enumerate(series.items()):
        means = [float(np.mean(values)) for values in accuracies]
        spreads = [float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for values in accuracies]
        # The two probes keep their colours; what is drawn after the first two is the control.
        line, marker = ("-", "o") if index < 2 else (":", "s")
        axes.errorbar(
            positions,
            means,
            spreads,
            label=name,
            capsize=3,
            color=f"C{index % 2}",
            linestyle=line,
            marker=marker,
        )
    axes.set_xticks(positions, layers)
    axes.set_xlabel("layer")
    axes.set_ylabel("accuracy of frozen features")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    # Beside the picture: the bars leave no room in it.
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=120)
