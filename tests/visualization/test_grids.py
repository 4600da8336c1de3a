"""Pictures: the right pixels in the right places."""

import numpy as np
import pytest
import torch

from hf_simmim.evaluation.gradients import GradientReconstruction
from hf_simmim.evaluation.reconstruction import Reconstruction
from hf_simmim.visualization.feature_plots import draw_map, draw_neighbors
from hf_simmim.visualization.grids import class_colors, columns_of, draw_segmentations, reconstruction_grid
from hf_simmim.visualization.pictures import MASK_GRAY

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]

# Height in pixels of the titles of a grid of small pictures.
HEADER = 21


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels / 255 - mean) / std


def reconstruction(pixels, mask, prediction, patch_size, pixel_mask=None) -> Reconstruction:
    """Of images and predictions from 0 to 255."""
    return Reconstruction(
        normalized(pixels),
        mask,
        pixel_mask,
        normalized(prediction),
        image_mean=MEAN,
        image_std=STD,
        patch_size=patch_size,
    )


def flat(color: tuple[int, int, int], height: int, width: int, batch_size: int = 1) -> torch.Tensor:
    return torch.tensor(color).float().view(1, 3, 1, 1).expand(batch_size, 3, height, width)


def test_grid_shows_original_masked_prediction_and_composite():
    """One rectangular image whose right half is hidden: red, predicted blue, and pale where it was visible."""
    red, blue = (255, 0, 0), (0, 0, 255)
    mask = torch.zeros(1, 12, 24, dtype=torch.bool)
    mask[:, :, 12:] = True
    grid = reconstruction_grid(reconstruction(flat(red, 96, 192), mask, flat(blue, 96, 192), 8))
    pixels = np.asarray(grid)
    row = pixels[HEADER + 48]
    starts = [6 + 198 * column for column in range(4)]
    left = [tuple(row[start + 40].tolist()) for start in starts]
    right = [tuple(row[start + 150].tolist()) for start in starts]
    assert left == [red, red, (170, 170, 170), red]
    assert right == [red, (MASK_GRAY,) * 3, blue, blue]
    assert all((pixels[:HEADER, start : start + 192] < 100).any() for start in starts)
    assert (pixels[HEADER + 96 :] == 255).all()


def test_grid_of_a_size_that_no_patch_divides():
    white, black = flat((255, 255, 255), 50, 70), flat((0, 0, 0), 50, 70)
    mask = torch.zeros(1, 13, 18, dtype=torch.bool)
    mask[0, 12, 17] = True
    grid = reconstruction_grid(reconstruction(white, mask, black, 4))
    # Twice enlarged: of the patch at the corner 2 x 2 pixels are left.
    filled = np.asarray(grid)[HEADER : HEADER + 100, 6 + 3 * 146 : 6 + 3 * 146 + 140]
    assert (filled[96:, 136:] == 0).all()
    assert (filled == 0).all(axis=2).sum() == 16


def test_error_map_has_a_scale_and_figures_stand_below():
    """An image of errors from nothing to more than the scale has, with and without what is written."""
    mask = torch.ones(2, 2, 2, dtype=torch.bool)
    mask[:, 0, 0] = False
    black, ramp = torch.zeros(2, 3, 96, 96), torch.arange(96.0).mul(2).expand(2, 3, 96, 96)
    result = reconstruction(black, mask, ramp, 48)
    plain = np.asarray(reconstruction_grid(result, ("original", "error")))
    full = np.asarray(
        reconstruction_grid(result, ("original", "error"), names=["one.png", "two.png"], show_figures=True)
    )
    assert full.shape[0] > plain.shape[0]
    bar = plain[-6 - 9]
    # The scale has the colors of the errors, in their order.
    cell = plain[HEADER + 90, 6 + 102 : 6 + 204][:96]
    in_bar = [np.abs(bar.astype(int) - color.astype(int)).sum(axis=1).argmin() for color in cell[8:64:8]]
    assert in_bar == sorted(set(in_bar))
    assert (cell[64:] == cell[64]).all()
    # Written in black: a name above each picture, and figures below both columns.
    below = full[HEADER + 18 + 96 : HEADER + 18 + 96 + 18]
    assert all((below[:, start : start + 96] < 100).any() for start in (6, 6 + 102))
    assert (full[HEADER : HEADER + 18] < 100).any()


def test_names_have_their_letters():
    """What a font lacks it draws as one and the same box."""
    black, mask = flat((0, 0, 0), 96, 96), torch.zeros(1, 2, 2, dtype=torch.bool)
    picture, classes = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.int64)
    for draw in (
        lambda name: reconstruction_grid(reconstruction(black, mask, black, 48), names=[name]),
        lambda name: reconstruction_grid({name: reconstruction(black, mask, black, 48)}),
        lambda name: draw_map(np.zeros((1, 2)), [picture], [name], side=200),
        lambda name: draw_neighbors([[picture]], torch.zeros(1, 0), [[name]]),
        lambda name: draw_segmentations([picture], [classes], [classes], [name]),
    ):
        assert len({np.asarray(draw(letter)).tobytes() for letter in "üéłßжλ"}) == 6


def test_models_stand_side_by_side():
    mask = torch.ones(1, 2, 2, dtype=torch.bool)
    white, red, blue = (flat(color, 96, 96) for color in ((255, 255, 255), (255, 0, 0), (0, 0, 255)))
    models = {"first": reconstruction(white, mask, red, 48), "second/of/a/name/that/is/too/long": None}
    models["second/of/a/name/that/is/too/long"] = reconstruction(white, mask, blue, 48)
    pixels = np.asarray(reconstruction_grid(models, ("masked", "prediction")))
    row = pixels[HEADER + 18 + 48]
    assert [tuple(row[6 + 102 * column + 48].tolist()) for column in range(3)] == [
        (MASK_GRAY,) * 3,
        (255, 0, 0),
        (0, 0, 255),
    ]
    # Names have a line of their own, and stay within their column.
    assert (pixels[:18, 6 + 204 : 6 + 204 + 96] < 100).any()
    assert (pixels[:18, : 6 + 96] == 255).all()
    assert (pixels[:18, 6 + 204 + 97 :] == 255).all()


def test_larger_pictures_of_gradients_set_the_size_and_true_ones_are_drawn_once():
    """Cells of 8 px are drawn with 16; two models of the same target share a column."""
    histograms, mask = torch.zeros(1, 9, 12, 12), torch.ones(1, 2, 2, dtype=torch.bool)
    red = flat((255, 0, 0), 96, 96)
    shared = {"pixel_mask": None, "image_mean": MEAN, "image_std": STD, "patch_size": 48}
    settings = shared | {"prediction": histograms, "target": histograms, "num_bins": 9, "cell_size": 8}
    gradients = GradientReconstruction(normalized(red), mask, **settings)
    models = {"rgb": reconstruction(red, mask, red, 48), "first": gradients, "second": gradients}
    pixels = np.asarray(reconstruction_grid(models, error_map=True))
    row = pixels[HEADER + 18 + 96]
    width = 192 + 6
    colors = [tuple(row[6 + width * column + 90].tolist()) for column in range(9)]
    red, empty, exact = (255, 0, 0), (0, 0, 0), (0, 0, 3)
    assert colors == [red, (MASK_GRAY,) * 3, red, exact, empty, empty, exact, empty, exact]
    assert columns_of(models) == [
        ["original", "masked", "prediction"],
        *[["original", "masked", "prediction", "target"]] * 2,
    ]


def test_rows_of_one_image_stay_together():
    """Three images of four rows each, in two groups: of eight rows and of four."""
    mask = torch.zeros(12, 2, 2, dtype=torch.bool)
    red = flat((255, 0, 0), 96, 96, 12)
    rows = {}
    for together in (1, 4):
        pixels = np.asarray(reconstruction_grid(reconstruction(red, mask, red, 48), rows_together=together))
        is_red = (pixels == (255, 0, 0)).all(axis=2)
        rows[together] = [is_red[:, column].sum() // 96 for column in (6, pixels.shape[1] - 7)]
    assert rows == {1: [6, 6], 4: [8, 4]}


@pytest.mark.parametrize(
    ("height", "width", "cell"), [(28, 224, (28, 224)), (224, 28, (224, 28)), (20, 800, (10, 384))]
)
def test_titles_have_room_at_any_proportions(height, width, cell):
    """Titles stay apart above narrow pictures, and large pictures are made smaller."""
    mask = torch.zeros(1, 1, 1, dtype=torch.bool)
    red = flat((255, 0, 0), height, width)
    columns_of_red = ("original", "masked", "composite", "composite")
    pixels = np.asarray(reconstruction_grid(reconstruction(red, mask, red, max(height, width)), columns_of_red))
    is_red = (pixels == (255, 0, 0)).all(axis=2)
    assert is_red.any(axis=1).sum() == cell[0]
    columns = np.flatnonzero(np.diff(is_red.any(axis=0).astype(int), prepend=0, append=0)).reshape(4, 2)
    assert (np.diff(columns) == cell[1]).all()
    font_rows = pixels[: np.flatnonzero(is_red.any(axis=1))[0]]
    inked = np.flatnonzero((font_rows < 160).any(axis=(0, 2)))
    # Between two titles is more room than within one.
    assert (np.diff(inked) > 5).sum() == 3


def test_pixels_that_are_none_are_white():
    """Whatever stands there, visible or hidden."""
    black, blue = flat((0, 0, 0), 96, 96), flat((0, 0, 255), 96, 96)
    mask, pixel_mask = torch.zeros(1, 12, 12, dtype=torch.bool), torch.ones(1, 96, 96)
    mask[:, :, 6:] = True
    pixel_mask[:, :30] = 0
    pixels = np.asarray(reconstruction_grid(reconstruction(black, mask, blue, 8, pixel_mask)))[HEADER : HEADER + 96]
    gray, blue, pale = (MASK_GRAY,) * 3, (0, 0, 255), (170, 170, 170)
    for column, (left, right) in enumerate((((0, 0, 0),) * 2, ((0, 0, 0), gray), (pale, blue), ((0, 0, 0), blue))):
        cell = pixels[:, 6 + column * 102 :][:, :96]
        assert (cell[:30] == 255).all()
        assert (cell[30:, :48] == left).all()
        assert (cell[30:, 48:] == right).all()


def test_small_images_are_enlarged_and_all_are_drawn():
    pictures = torch.arange(5).view(5, 1, 1, 1).expand(5, 3, 16, 16) * 50.0
    mask = torch.zeros(5, 4, 4, dtype=torch.bool)
    grid = reconstruction_grid(reconstruction(pictures, mask, pictures, 4))
    colors = {tuple(color) for color in np.asarray(grid).reshape(-1, 3)}
    assert {(value,) * 3 for value in (0, 50, 100, 150, 200)} <= colors
    assert grid.height >= 3 * 96


def test_pictures_show_the_classes():
    colors = class_colors(20)
    assert len({tuple(color) for color in colors.tolist()}) == 20
    annotation = np.array([[0, 1], [255, 1]])
    prediction = np.array([[0, 0], [1, 1]])
    picture = draw_segmentations([np.zeros((2, 2, 3), np.uint8)], [annotation], [prediction], ["sky", "sea"], side=40)
    pixels = np.asarray(picture)
    assert (pixels[32, 52 + 10] == colors[0]).all()
    assert (pixels[32, 52 + 30] == colors[1]).all()
    assert (pixels[32 + 20, 52 + 10] == 160).all()
    assert (pixels[32, 98 + 30] == colors[0]).all()
    # What has no class is gray in the prediction too.
    assert (pixels[32 + 20, 98 + 10] == 160).all()
