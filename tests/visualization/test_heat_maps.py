"""Heat maps: the colors of windows lie where the windows do."""

import numpy as np
from PIL import Image

from hf_simmim.visualization.heat_maps import _blend, draw_heat_map


def test_colors_lie_over_their_windows():
    overview = np.full((40, 60, 3), 100, np.uint8)
    boxes = np.array([[0, 0, 0.5, 0.5], [0.25, 0, 0.5, 0.5]])
    shown = _blend(overview, boxes, np.array([[1.0, 0, 0], [0, 0, 1.0]]))
    gray = 0.4 * 100 / 255
    np.testing.assert_allclose(shown[5, 5], (0.6 + gray, gray, gray))
    # Where windows overlap, their mean.
    np.testing.assert_allclose(shown[15, 5], (0.3 + gray, gray, 0.3 + gray))
    np.testing.assert_allclose(shown[25, 5], (gray, gray, 0.6 + gray))
    # No window.
    assert np.ptp(shown[5, 40]) == 0
    assert shown[5, 40, 0] > 0.5


def test_pictures_of_any_shape(tmp_path):
    boxes = np.array([[0, 0, 1, 0.5], [0, 0.5, 1, 0.5]])
    for (height, width), count in (((40, 200), 1), ((200, 40), 3), ((64, 64), 1)):
        overview = np.full((height, width, 3), 200, np.uint8)
        values = np.array([[-2.0], [2.0]]).repeat(count, 1)
        draw_heat_map(overview, boxes, values, tmp_path / "map.png", "a very long name of a slide " * 5)
        with Image.open(tmp_path / "map.png") as drawn:
            assert 600 < max(drawn.size) < 3000
            colors = np.asarray(drawn.convert("RGB")).reshape(-1, 3)
        # The outermost colors of the map, or black and white, laid over gray.
        ends = ((68, 1, 84), (253, 231, 37)) if count == 1 else ((0, 0, 0), (255, 255, 255))
        for color in ends:
            expected = 0.6 * np.array(color) + 0.4 * 200
            assert (np.abs(colors - expected).max(axis=1) <= 2).sum() > 500
