"""Pictures of what a model does: reconstructions, and the course of the loss."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .masking import patch_grid, to_pixels

COLUMNS = ("original", "masked", "reconstruction")
MASK_GREY = 128
# Errors from here on, of 255, have the brightest colour of an error map: always the same, so that maps compare.
ERROR_LIMIT = 128


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
    pixel_values: torch.Tensor,
    bool_masked_pos: torch.Tensor,
    reconstruction: torch.Tensor,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    patch_size: int,
    groups: int = 2,
    pixel_mask: torch.Tensor | None = None,
) -> Image.Image:
    """Draw original | masked | reconstruction, one image a row.

    The reconstruction shows the prediction where the image was hidden and the image itself where it was not: the loss
    says nothing about visible patches. Pixels that are none are white in all three.

    Args:
        pixel_values: Normalised images of shape (B, C, H, W).
        bool_masked_pos: Mask of shape (B, N) or (B, h, w) on the patches that cover the image, True = masked.
        reconstruction: Predicted images of shape (B, C, H, W), normalised alike.
        image_mean: Mean of each channel.
        image_std: Standard deviation of each channel.
        patch_size: Side of the patches that the mask lives on, in pixels.
        groups: Number of rows set side by side.
        pixel_mask: Mask of shape (B, H, W), False where a pixel is none.

    Returns:
        The picture.
    """
    batch_size, _, height, width = pixel_values.shape
    patches = bool_masked_pos.bool().view(batch_size, *patch_grid((height, width), patch_size))
    mask = to_pixels(patches, patch_size, (height, width)).cpu().numpy()[..., None]
    original = to_pictures(pixel_values, image_mean, image_std)
    predicted = to_pictures(reconstruction, image_mean, image_std)
    hidden = np.where(mask, np.uint8(MASK_GREY), original)
    filled = np.where(mask, predicted, original)
    columns = [original, hidden, filled]
    if pixel_mask is not None:
        is_real = pixel_mask.bool().cpu().numpy()[..., None]
        columns = [np.where(is_real, pictures, np.uint8(255)) for pictures in columns]

    zoom = max(1, math.ceil(96 / max(height, width)))
    cell_height, cell_width, gap = height * zoom, width * zoom, 6
    font = ImageFont.load_default(13)
    header = 22
    groups = min(groups, batch_size)
    rows = math.ceil(batch_size / groups)
    group_width = len(COLUMNS) * (cell_width + gap)
    canvas = Image.new(
        "RGB", (groups * group_width + (groups - 1) * 2 * gap + gap, header + rows * (cell_height + gap)), "white"
    )
    draw = ImageDraw.Draw(canvas)
    for group in range(groups):
        left = gap + group * (group_width + 2 * gap)
        for column, title in enumerate(COLUMNS):
            middle = left + column * (cell_width + gap) + cell_width / 2
            draw.text((middle, header / 2), title, fill="black", font=font, anchor="mm")
        for row in range(rows):
            index = group * rows + row
            if index >= batch_size:
                break
            for column, pictures in enumerate(columns):
                picture = Image.fromarray(pictures[index]).resize((cell_width, cell_height), Image.Resampling.NEAREST)
                canvas.paste(picture, (left + column * (cell_width + gap), header + row * (cell_height + gap)))
    return canvas


def plot_losses(log_history: Sequence[dict[str, float]], path: Path) -> None:
    """Draw training and evaluation loss, and the learning rate, over steps.

    Args:
        log_history: `TrainerState.log_history`.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    def series(key: str) -> tuple[list[float], list[float]]:
        entries = [entry for entry in log_history if key in entry]
        return [entry["step"] for entry in entries], [entry[key] for entry in entries]

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*series("loss"), label="training", color="tab:blue")
    if series("eval_loss")[0]:
        axes.plot(*series("eval_loss"), label="evaluation (fixed masks)", color="tab:orange", marker="o", markersize=3)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    rates = axes.twinx()
    rates.plot(*series("learning_rate"), color="tab:grey", linestyle=":", label="learning rate")
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
        points = {entry["step"]: entry[key] for entry in log_history if key in entry}
        axes.plot(list(points), list(points.values()), label=name, color=color, marker="o", markersize=3)
        if 0 in points:
            axes.axhline(points[0], color=color, linestyle=":", linewidth=1, label=f"{name}, before training")
    axes.set_xlabel("step")
    axes.set_ylabel("accuracy of frozen features")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


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
    axes.legend()
    figure.savefig(path, dpi=120)
