"""Gray pictures of surfaces with small defects, drawn from a seed: the label is the kind of the defect.

Five kinds of surface, each with its own period, direction, contrast and light; on four of five pictures one defect of
4 to 30 px. What tells the labels apart is small and faint beside what the surface does to the pixels.
"""

from collections.abc import Callable

import numpy as np

SIDE = 64  # pixels
DEFECTS = ("none", "scratch", "pit", "stain", "crack")

_Grid = tuple[np.ndarray, np.ndarray]


def draw_surfaces(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw pictures, equally many of each label.

    Args:
        count: Number of pictures.
        seed: Random seed.

    Returns:
        uint8 pictures (N, 64, 64), and int64 labels (N,), indices of `DEFECTS`.
    """
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(count) % len(DEFECTS))
    return np.stack([_draw(int(label), random) for label in labels]), labels


def _draw(label: int, random: np.random.Generator) -> np.ndarray:
    names = list(SURFACES)
    grid = _turned_grid(random)
    surface = SURFACES[names[random.integers(len(names))]](grid, random)
    surface = (surface - surface.mean()) / (surface.std() + 1e-6)
    picture = random.uniform(0.35, 0.65) + random.uniform(0.05, 0.12) * surface
    # Light from one side.
    picture = picture + random.uniform(0, 0.12) * grid[0] / SIDE
    change = _DRAW[label](random)
    picture = picture + random.uniform(0.3, 0.55) * change + random.normal(0, 0.015, picture.shape)
    return (255 * picture.clip(0, 1)).round().astype(np.uint8)


def _turned_grid(random: np.random.Generator) -> _Grid:
    """Coordinates of the pixels, turned by any angle, with the origin anywhere."""
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(float) - random.uniform(0, SIDE, (2, 1, 1))
    angle = random.uniform(0, np.pi)
    return rows * np.cos(angle) + columns * np.sin(angle), columns * np.cos(angle) - rows * np.sin(angle)


def _smooth(random: np.random.Generator, along: float, across: float) -> np.ndarray:
    """Noise with a length of correlation in pixels, (rows, columns)."""
    frequencies = np.fft.fftfreq(SIDE)
    keep = np.exp(-2 * np.pi**2 * ((along * frequencies[:, None]) ** 2 + (across * frequencies) ** 2))
    noise = np.fft.ifft2(np.fft.fft2(random.normal(size=(SIDE, SIDE))) * keep).real
    return noise / (noise.std() + 1e-6)


def _brushed(grid: _Grid, random: np.random.Generator) -> np.ndarray:
    lengths = (random.uniform(8, 20), random.uniform(0.3, 0.8))
    return _smooth(random, *(lengths if random.random() < 0.5 else lengths[::-1]))


def _clouds(grid: _Grid, random: np.random.Generator) -> np.ndarray:
    size = random.uniform(4, 9)
    return _smooth(random, size, size) + 0.4 * _smooth(random, 0.5, 0.5)


def _weave(grid: _Grid, random: np.random.Generator) -> np.ndarray:
    scale = 2 * np.pi / random.uniform(4, 9)
    warp, weft = np.sin(scale * grid[0]), np.sin(scale * grid[1])
    return np.where(np.sin(scale * (grid[0] + grid[1]) / 2) > 0, warp, weft) + 0.3 * _smooth(random, 0.7, 0.7)


def _tiles(grid: _Grid, random: np.random.Generator) -> np.ndarray:
    period, width = random.uniform(12, 26), random.uniform(1, 2)
    joints = (np.mod(grid[0], period) < width) | (np.mod(grid[1], period) < width)
    return -2.0 * joints + 0.4 * _smooth(random, 1.5, 1.5)


def _wood(grid: _Grid, random: np.random.Generator) -> np.ndarray:
    bent = grid[0] + random.uniform(2, 5) * _smooth(random, 9, 9)
    return np.sin(2 * np.pi * bent / random.uniform(5, 10)) + 0.3 * _smooth(random, 0.6, 0.6)


SURFACES: dict[str, Callable[[_Grid, np.random.Generator], np.ndarray]] = {
    "brushed": _brushed,
    "clouds": _clouds,
    "weave": _weave,
    "tiles": _tiles,
    "wood": _wood,
}


def _distances(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates relative to a place away from the border."""
    place = random.uniform(12, SIDE - 12, (2, 1, 1))
    rows, columns = np.mgrid[:SIDE, :SIDE] - place
    return rows, columns


def _sign(random: np.random.Generator) -> float:
    return 1.0 if random.random() < 0.5 else -1.0


def _none(random: np.random.Generator) -> np.ndarray:
    return np.zeros((SIDE, SIDE))


def _scratch(random: np.random.Generator) -> np.ndarray:
    """A straight, thin line."""
    rows, columns = _distances(random)
    angle, length = random.uniform(0, np.pi), random.uniform(8, 16)
    along = rows * np.cos(angle) + columns * np.sin(angle)
    across = columns * np.cos(angle) - rows * np.sin(angle)
    return _sign(random) * np.exp(-((across / 1.2) ** 2)) * (np.abs(along) < length)


def _pit(random: np.random.Generator) -> np.ndarray:
    """A dark spot with a bright side."""
    rows, columns = _distances(random)
    size, angle = random.uniform(2, 4), random.uniform(0, 2 * np.pi)
    lit = ((rows - np.cos(angle) * size) ** 2 + (columns - np.sin(angle) * size) ** 2) / size**2
    return 0.8 * np.exp(-lit) - np.exp(-(rows**2 + columns**2) / size**2)


def _stain(random: np.random.Generator) -> np.ndarray:
    """A soft, irregular blot."""
    rows, columns = _distances(random)
    size = random.uniform(6, 10)
    bent = 1 + 0.35 * _smooth(random, 4, 4)
    return 0.6 * _sign(random) * np.exp(-(((rows**2 + columns**2) * bent.clip(0.2) / size**2) ** 2))


def _crack(random: np.random.Generator) -> np.ndarray:
    """A dark line that turns at random."""
    change = np.zeros((SIDE, SIDE))
    place, angle = random.uniform(12, SIDE - 12, 2), random.uniform(0, 2 * np.pi)
    for _ in range(int(random.integers(25, 45))):
        row, column = (int(value) for value in place.clip(0, SIDE - 2))
        change[row : row + 2, column : column + 2] = -1.0
        angle += random.normal(0, 0.6)
        place = place + np.array([np.cos(angle), np.sin(angle)])
    return change


_DRAW = (_none, _scratch, _pit, _stain, _crack)
