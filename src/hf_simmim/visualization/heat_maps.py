"""Heat maps: values of windows over the large image that they were cut out of."""

import textwrap
from pathlib import Path

import numpy as np

# How much of the image the colors cover.
OPACITY = 0.6
# Values beyond so many standard deviations have the outermost colors.
LIMIT = 2.0


def draw_heat_map(overview: np.ndarray, boxes: np.ndarray, values: np.ndarray, path: Path, title: str = "") -> None:
    """Draw an image in low resolution, beside it the same with the values of its windows over it.

    Args:
        overview: uint8 array (H, W, 3).
        boxes: Top, left, height and width of each window, as shares of the image, float (N, 4).
        values: Values in standard deviations: (N, 1) for a color map with a bar, (N, 3) for red, green and blue.
        path: PNG file to write.
        title: Name of the image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    height, width = overview.shape[:2]
    is_wide = width > 1.4 * height
    side = 6.0
    shown = (side, side * height / width) if width > height else (side * width / height, side)
    size = (shown[0] + 1.4, 2 * shown[1] + 0.9) if is_wide else (2 * shown[0] + 1.4, shown[1] + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(*((2, 1) if is_wide else (1, 2)))
    scale = ScalarMappable(Normalize(-LIMIT, LIMIT), "viridis")
    shares = ((values + LIMIT) / (2 * LIMIT)).clip(0, 1)
    colors = scale.to_rgba(values[:, 0])[:, :3] if values.shape[1] == 1 else shares
    panels[0].imshow(overview, interpolation="antialiased")
    panels[1].imshow(_blend(overview, boxes, colors), interpolation="antialiased")
    panels[0].set_title(textwrap.shorten(title, 60), fontsize=10, loc="left")
    number = f"{len(boxes):,} window{'s' * (len(boxes) != 1)}"
    if values.shape[1] == 1:
        panels[1].set_title(f"first principal component of {number}", fontsize=10, loc="left")
        bar = figure.colorbar(scale, ax=panels[1], fraction=0.04, pad=0.02, extend="both")
        bar.set_label("standard deviations", fontsize=9)
        bar.ax.tick_params(labelsize=8)
    else:
        panels[1].set_title(f"three principal components of {number} as red, green, blue", fontsize=10, loc="left")
    for panel in panels:
        panel.set_xticks([])
        panel.set_yticks([])
        for spine in panel.spines.values():
            spine.set_color("0.8")
    figure.savefig(path, dpi=130, bbox_inches="tight", pad_inches=0.1)


def _blend(overview: np.ndarray, boxes: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Lay the mean color of the windows at each pixel over the image; elsewhere it is gray and pale."""
    height, width = overview.shape[:2]
    sums, counts = np.zeros((height, width, 3)), np.zeros((height, width, 1))
    for (top, left, tall, wide), color in zip(boxes, colors, strict=True):
        first = round(top * height), round(left * width)
        rows = slice(first[0], max(first[0] + 1, round((top + tall) * height)))
        columns = slice(first[1], max(first[1] + 1, round((left + wide) * width)))
        sums[rows, columns] += color
        counts[rows, columns] += 1
    gray = overview.mean(axis=2, keepdims=True) / 255
    # Structures stay visible as brightness.
    over = OPACITY * sums / np.maximum(counts, 1) + (1 - OPACITY) * gray
    return np.where(counts > 0, over, 1 - (1 - gray) / 2).clip(0, 1)
