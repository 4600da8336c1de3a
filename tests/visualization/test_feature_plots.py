"""Neighbors and maps: the right pixels and colors in the right places."""

import numpy as np
import torch

from hf_simmim.visualization.feature_plots import (
    DIFFERENT_COLOR,
    OTHER_COLOR,
    SAME_COLOR,
    draw_map,
    draw_neighbors,
    label_colors,
)


def count(picture, color: tuple[int, int, int]) -> int:
    """Pixels of a color."""
    return int((np.asarray(picture) == color).all(axis=2).sum())


def test_the_map_shows_pictures_in_the_colors_of_their_labels():
    pictures = [np.full((8, 16, 3), value, np.uint8) for value in (10, 200, 90)]
    points = np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
    plain = draw_map(points, pictures, side=300)
    # The first is at the lower left, the second at the upper right; the longer side is 64 px.
    assert plain.getpixel((6 + 32, 6 + 236 + 16)) == (10, 10, 10)
    assert plain.getpixel((6 + 236 + 32, 6 + 16)) == (200, 200, 200)
    framed = draw_map(points, pictures, ["a", "b", "a"], side=300)
    assert framed.getpixel((6, 6 + 236)) == (31, 119, 180)
    assert framed.getpixel((6 + 236, 6)) == (255, 127, 14)
    assert framed.height > plain.height
    many = draw_map(np.random.default_rng(0).random((24, 2)), pictures * 8, [str(i // 2) for i in range(24)], side=300)
    assert OTHER_COLOR in {color for _, color in many.getcolors(2**20)}


def test_pictures_on_the_map_do_not_overlap_and_the_others_are_dots_in_front():
    """Of images of a gray value each the whole square is to be seen or nothing, under dots of another color."""
    generator = np.random.default_rng(0)
    points = generator.random((120, 2))
    pictures = [np.full((8, 8, 3), 20 + index, np.uint8) for index in range(120)]
    labels = [f"{index % 3}" for index in range(120)]
    drawn = np.asarray(draw_map(points, pictures, labels, side=400))[: 400 + 12]  # without the legend
    cell, dots = 36, 0
    for index in range(120):
        corner = points[index] * (400 - cell)
        left, top = 6 + round(corner[0]), 6 + round((1 - points[index, 1]) * (400 - cell))
        if (drawn == 20 + index).all(axis=2).any():
            inside = drawn[top + 3 : top + cell - 3, left + 3 : left + cell - 3].reshape(-1, 3)
            allowed = np.array([(20 + index,) * 3, (255,) * 3, *label_colors(labels).values()])
            assert (inside[:, None] == allowed).all(axis=2).any(axis=1).all()
        else:
            dots += 1
            center = drawn[top + cell // 2, left + cell // 2]
            assert tuple(center.tolist()) in {*label_colors(labels).values(), (255, 255, 255)}
    assert 20 < dots < 110


def test_neighbors_have_frames_of_their_class():
    """Two neighbors of a query, one of its class; the numbers and names stand below."""
    row = [np.full((32, 32, 3), value, np.uint8) for value in (50, 100, 150)]
    names = [["/photos/query.png", "/photos/same.png", "/photos/another.png"]]
    similarities = torch.tensor([[0.9, -0.25]])
    plain = draw_neighbors([row], similarities, names)
    framed = draw_neighbors([row], similarities, names, [["cat", "cat", "dog"]])
    assert not count(plain, SAME_COLOR) + count(plain, DIFFERENT_COLOR)
    legend = 15 * 15
    frame = 110 * 110 - 104 * 104
    assert count(framed, SAME_COLOR) == count(framed, DIFFERENT_COLOR) == frame + legend
    for value in (50, 100, 150):
        assert count(framed, (value,) * 3) >= 104 * 104
    # Another number or name changes what stands below only.
    below = np.asarray(plain)[26 + 110 :]
    for other in (
        draw_neighbors([row], similarities / 2, names),
        draw_neighbors([row], similarities, [[*names[0][:2], "/photos/b.png"]]),
    ):
        assert np.array_equal(np.asarray(plain)[: 26 + 110], np.asarray(other)[: 26 + 110])
        assert not np.array_equal(below, np.asarray(other)[26 + 110 :])
    # A long name is cut in the middle: its end makes a difference, its middle none.
    first, second, third = (
        np.asarray(draw_neighbors([row], similarities, [[*names[0][:2], name]]))
        for name in ("a" * 40 + "1.png", "a" * 40 + "2.png", "a" * 20 + "b" + "a" * 19 + "1.png")
    )
    assert not np.array_equal(first, second)
    assert np.array_equal(first, third)
