"""Near duplicates: pairs of images that are the same but for size, compression, small crops and mirroring, and groups.

Candidates are pairs whose lowest frequencies are alike. Horizontal frequencies that are odd change their sign when an
image is mirrored, so with the products E of the even and O of the odd ones, E + |O| is the likeness to an image or its
mirror image, whichever is greater: two products of matrices for all pairs, in blocks. Each candidate is then checked:
one thumbnail is moved and scaled onto the other, at most by what a small crop does, and both must agree there in coarse
and in fine structure.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

# Frequencies of an axis that candidates are searched by.
FREQUENCIES = 8
# Least cosine of the frequencies of a candidate, between -1 and 1.
CANDIDATE = 0.68
# Least correlations, between -1 and 1, of the aligned thumbnails and of their edges; one pair must be met. The last one
# is for images that are nearly without edges.
ALIKE = ((0.9, 0.75), (0.85, 0.85), (0.99, 0.3))
# Largest mean difference of colors, of 255.
COLOR = 8.0
# Rows of the blocks that all pairs are looked through by, and pairs that are aligned at once.
BLOCK, CHUNK = 2048, 4096
# Candidates of a block that are checked at most.
LARGEST_BLOCK = BLOCK
# Steps of the alignment, its largest move in pixels and its largest change of scale.
STEPS, LARGEST_MOVE, LARGEST_SCALE = 8, 1.7, 0.08


def spectra(thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low frequencies of thumbnails, weighted by frequency, of length one.

    Args:
        thumbnails: uint8 of shape (N, S, S).

    Returns:
        Float32 of shape (N, FREQUENCIES²/2): those of even and those of odd horizontal frequency.
    """
    side = thumbnails.shape[-1]
    frequency, place = np.mgrid[:FREQUENCIES, :side]
    waves = np.cos(np.pi * (2 * place + 1) * frequency / (2 * side)).astype(np.float32)
    vertical, horizontal = np.mgrid[:FREQUENCIES, :FREQUENCIES]
    # The spectrum of photos falls with the frequency, so that all skies above all grounds would be alike.
    weights = np.hypot(vertical, horizontal).astype(np.float32)
    found = np.empty((len(thumbnails), FREQUENCIES * FREQUENCIES), np.float32)
    for start in range(0, len(thumbnails), CHUNK):
        part = thumbnails[start : start + CHUNK].astype(np.float32)
        found[start : start + CHUNK] = (waves @ part @ waves.T * weights).reshape(len(part), -1)
    found /= np.linalg.norm(found, axis=1, keepdims=True) + 1e-6
    is_odd = horizontal.ravel() % 2 == 1
    return np.ascontiguousarray(found[:, ~is_odd]), np.ascontiguousarray(found[:, is_odd])


def candidates(thumbnails: np.ndarray, num_first: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Pairs of thumbnails that are alike in their low frequencies, directly or mirrored.

    Args:
        thumbnails: uint8 of shape (N, S, S).
        num_first: Pairs have one of so many first thumbnails; all if None.

    Yields:
        Pairs (P, 2) of indices, the smaller one first; whether each is alike mirrored, bool of shape (P,); and the
        number of less likely pairs that are left out, because too many are alike.
    """
    even, odd = spectra(thumbnails)
    for row in range(0, len(thumbnails) if num_first is None else num_first, BLOCK):
        for column in range(row, len(thumbnails), BLOCK):
            product = odd[row : row + BLOCK] @ odd[column : column + BLOCK].T
            total = even[row : row + BLOCK] @ even[column : column + BLOCK].T
            total += np.abs(product)
            first, second = np.nonzero(total > CANDIDATE)
            is_wanted = first + row < second + column
            if num_first is not None:
                is_wanted &= first + row < num_first
            first, second = first[is_wanted], second[is_wanted]
            num_left_out = max(0, len(first) - LARGEST_BLOCK)
            if num_left_out:
                # Such as small pictures of clothes, most of which are alike: the most likely ones.
                likely = np.argpartition(-total[first, second], LARGEST_BLOCK)[:LARGEST_BLOCK]
                first, second = first[likely], second[likely]
            if len(first):
                pairs = np.stack([first + row, second + column], axis=1)
                yield pairs, product[first, second] < 0, num_left_out


def correlations(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How alike thumbnails are once the second ones are moved and scaled onto the first ones.

    Args:
        first: uint8 of shape (P, S, S).
        second: uint8 of the same shape.

    Returns:
        Correlation of the values, and of their edges, where both overlap: each float32 of shape (P,).
    """
    side = first.shape[-1]
    target, source = (_smooth(part.astype(np.float32)) for part in (first, second))
    place = np.linspace(-1, 1, side, dtype=np.float32)
    # Scale and move of columns, then of rows, from the middle.
    motion = np.tile(np.array([1, 0, 1, 0], np.float32), (len(first), 1))
    for _ in range(STEPS):
        moved, inside = _moved(source, motion)
        wanted, found = _standardized(target, inside), _standardized(moved, inside)
        down, right = np.gradient(found, axis=(1, 2))
        slopes = np.stack([right * place, right, down * place[:, None], down], axis=1) * inside[:, None]
        slopes = slopes.reshape(len(first), 4, -1)
        missing = ((wanted - found) * inside).reshape(len(first), -1, 1)
        squares = slopes @ slopes.transpose(0, 2, 1)
        squares += np.eye(4, dtype=np.float32) * (0.02 * np.trace(squares, axis1=1, axis2=2)[:, None, None] / 4 + 1e-6)
        half = (side - 1) / 2
        step = np.linalg.solve(squares, slopes @ missing)[..., 0]
        motion += step * np.array([1 / half, 1, 1 / half, 1], np.float32)
        motion[:, 0::2] = motion[:, 0::2].clip(1 - LARGEST_SCALE, 1 + LARGEST_SCALE)
        motion[:, 1::2] = motion[:, 1::2].clip(-LARGEST_MOVE, LARGEST_MOVE)
    moved, inside = _moved(second.astype(np.float32), motion)
    still = first.astype(np.float32)
    coarse = (_standardized(still, inside) * _standardized(moved, inside)).mean(axis=(1, 2))
    # Where all of the neighbors are inside.
    inner = inside.copy()
    inner[:, 1:-1, 1:-1] = inside[:, :-2, 1:-1] * inside[:, 2:, 1:-1] * inside[:, 1:-1, :-2] * inside[:, 1:-1, 2:]
    inner[:, (0, -1)], inner[:, :, (0, -1)] = 0, 0
    edges = [_standardized(_smooth(part) - _smooth(_smooth(_smooth(part))), inner) for part in (still, moved)]
    return coarse, (edges[0] * edges[1]).mean(axis=(1, 2))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Values (P, S, S) blurred by 1, 2, 1 along both axes."""
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = (padded[:, :-2] + padded[:, 2:]) * 0.25 + padded[:, 1:-1] * 0.5
    return (rows[:, :, :-2] + rows[:, :, 2:]) * 0.25 + rows[:, :, 1:-1] * 0.5


def _moved(values: np.ndarray, motion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (P, S, S) scaled and moved, and where they are known: 1 or 0, of the same shape."""
    side = values.shape[-1]
    middle = (side - 1) / 2
    place = np.arange(side, dtype=np.float32)
    along = [motion[:, index, None] * (place - middle) + middle + motion[:, index + 1, None] for index in (0, 2)]
    # Linear interpolation along an axis, as a matrix.
    columns, rows = (np.maximum(0, 1 - np.abs(wanted[..., None] - place)) for wanted in along)
    inside = [((wanted > -0.5) & (wanted < side - 0.5)).astype(np.float32) for wanted in along]
    return rows @ values @ columns.transpose(0, 2, 1), inside[1][:, :, None] * inside[0][:, None]


def _standardized(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Values with mean 0 where they are known, 0 elsewhere, and mean square 1 over all."""
    count = inside.sum(axis=(1, 2), keepdims=True) + 1e-6
    centered = (values - (values * inside).sum(axis=(1, 2), keepdims=True) / count) * inside
    return centered / np.sqrt(np.square(centered).mean(axis=(1, 2), keepdims=True) + 1e-6)


def similar_pairs(
    thumbnails: np.ndarray, colors: np.ndarray, num_first: int | None = None
) -> tuple[list[tuple[int, int, float]], int]:
    """Find pairs of images that are the same but for size, compression, small crops and mirroring.

    Args:
        thumbnails: uint8 of shape (N, S, S).
        colors: Maps of two values of color, uint8 of shape (N, 2, s, s).
        num_first: Pairs have one of so many first thumbnails; all if None.

    Returns:
        Pairs: two indices, the smaller one first, and the correlation of the aligned thumbnails, between -1 and 1. And
        the number of pairs that were not compared closely, because too many images are alike.
    """
    pairs: list[tuple[int, int, float]] = []
    num_unchecked = 0
    for both, is_mirrored, num_left_out in candidates(thumbnails, num_first):
        num_unchecked += num_left_out
        for start in range(0, len(both), CHUNK):
            part, mirrored = both[start : start + CHUNK], is_mirrored[start : start + CHUNK]
            ours, theirs = (colors[part[:, place]].astype(np.float32) for place in (0, 1))
            theirs = np.where(mirrored[:, None, None, None], theirs[..., ::-1], theirs)
            has_color = np.abs(ours - theirs).mean(axis=(1, 2, 3)) < COLOR
            part, mirrored = part[has_color], mirrored[has_color]
            if not len(part):
                continue
            first, second = thumbnails[part[:, 0]], thumbnails[part[:, 1]]
            second = np.where(mirrored[:, None, None], second[..., ::-1], second)
            coarse, fine = correlations(first, second)
            alike = is_alike(coarse, fine)
            pairs += [
                (int(one), int(other), float(value))
                for (one, other), value in zip(part[alike], coarse[alike], strict=True)
            ]
    return pairs, num_unchecked


def is_alike(coarse: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """Decide which pairs are the same image.

    Args:
        coarse: Correlation of the values, of shape (P,).
        fine: Correlation of the edges, of shape (P,).

    Returns:
        Bool of shape (P,).
    """
    return np.any([(coarse > least) & (fine > least_fine) for least, least_fine in ALIKE], axis=0)


def stars(num_items: int, pairs: Sequence[tuple[int, int]], ranks: Sequence[float]) -> list[list[int]]:
    """Groups of a middle and items that are like it, so that no chain joins items that are not.

    Args:
        num_items: Number N of items.
        pairs: Pairs of items that are alike.
        ranks: What decides between middles of as many neighbors: the largest, of length N.

    Returns:
        Groups of at least two items, the middle first.
    """
    neighbors: dict[int, set[int]] = defaultdict(set)
    for one, other in pairs:
        neighbors[one].add(other)
        neighbors[other].add(one)
    groups, free = [], set(neighbors)
    for middle in sorted(neighbors, key=lambda item: (-len(neighbors[item]), -ranks[item], item)):
        if middle not in free:
            continue
        others = sorted(neighbors[middle] & free)
        free -= {middle, *others}
        if others:
            groups.append([middle, *others])
    return groups


def components(num_items: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Items that are joined by pairs, through any number of others.

    Args:
        num_items: Number N of items.
        pairs: Pairs of items that are alike.

    Returns:
        The smallest item of each item's group: int64 of shape (N,).
    """
    roots = list(range(num_items))

    def root(item: int) -> int:
        while roots[item] != item:
            roots[item] = roots[roots[item]]
            item = roots[item]
        return item

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        roots[high] = low
    return np.array([root(item) for item in range(num_items)], np.int64)
