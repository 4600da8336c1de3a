"""Pictures: the right pixels in the right places."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_simmim.evaluation.reconstruction import Reconstruction
from hf_simmim.visualization.grids import draw_map, draw_segmentations, reconstruction_grid
from hf_simmim.visualization.pictures import MASK_GREY, to_pictures
from hf_simmim.visualization.plots import plot_losses

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
# Height in pixels of the titles of a grid of small pictures.
HEADER = 21


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels / 255 - mean) / std


def test_normalisation_is_undone():
    pixels = torch.randint(0, 256, (2, 3, 8, 12)).float()
    pictures = to_pictures(normalized(pixels), MEAN, STD)
    assert np.array_equal(pictures, pixels.permute(0, 2, 3, 1).byte().numpy())
    assert to_pictures(torch.full((1, 3, 2, 2), 1e4), MEAN, STD).max() == 255


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_number_of_channels_is_shown(channels):
    pictures = to_pictures(torch.zeros(1, channels, 4, 4), [0.5] * channels, [0.2] * channels)
    assert pictures.shape == (1, 4, 4, 3)
    assert (pictures == 128).all()


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
    """One rectangular image whose right half is hidden: red, predicted blue."""
    red, blue = (255, 0, 0), (0, 0, 255)
    mask = torch.zeros(1, 12, 24, dtype=torch.bool)
    mask[:, :, 12:] = True
    grid = reconstruction_grid(reconstruction(flat(red, 96, 192), mask, flat(blue, 96, 192), 8))
    pixels = np.asarray(grid)
    row = pixels[HEADER + 48]
    starts = [6 + 198 * column for column in range(4)]
    left = [tuple(row[start + 40].tolist()) for start in starts]
    right = [tuple(row[start + 150].tolist()) for start in starts]
    assert left == [red, red, blue, red]
    assert right == [red, (MASK_GREY,) * 3, blue, blue]
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
    # The scale has the colours of the errors, in their order.
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
        (MASK_GREY,) * 3,
        (255, 0, 0),
        (0, 0, 255),
    ]
    # Names have a line of their own, and stay within their column.
    assert (pixels[:18, 6 + 204 : 6 + 204 + 96] < 100).any()
    assert (pixels[:18, : 6 + 96] == 255).all()
    assert (pixels[:18, 6 + 204 + 97 :] == 255).all()


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
    pixels = np.asarray(reconstruction_grid(reconstruction(red, mask, red, max(height, width))))
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
    grey, blue = (MASK_GREY,) * 3, (0, 0, 255)
    for column, (left, right) in enumerate((((0, 0, 0),) * 2, ((0, 0, 0), grey), (blue, blue), ((0, 0, 0), blue))):
        cell = pixels[:, 6 + column * 102 :][:, :96]
        assert (cell[:30] == 255).all()
        assert (cell[30:, :48] == left).all()
        assert (cell[30:, 48:] == right).all()


@pytest.mark.parametrize(("mean", "std"), [(0.04, 0.01), (120.0, 30.0), (0.0, 3.0)])
def test_other_ranges_are_stretched(mean, std):
    """Reflectances and raw numbers are neither black nor white."""
    values = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).view(1, 1, 1, 5).expand(1, 6, 1, 5)
    pictures = to_pictures(values, [mean] * 6, [std] * 6)
    assert pictures[0, 0, :, 0].tolist() == [0, 64, 128, 191, 255]


def test_small_images_are_enlarged_and_all_are_drawn():
    pictures = torch.arange(5).view(5, 1, 1, 1).expand(5, 3, 16, 16) * 50.0
    mask = torch.zeros(5, 4, 4, dtype=torch.bool)
    grid = reconstruction_grid(reconstruction(pictures, mask, pictures, 4))
    colors = {tuple(color) for color in np.asarray(grid).reshape(-1, 3)}
    assert {(value,) * 3 for value in (0, 50, 100, 150, 200)} <= colors
    assert grid.height >= 3 * 96


def test_loss_curve(tmp_path):
    history = [{"step": step, "loss": 1 / step, "learning_rate": 1e-3} for step in range(1, 20)]
    history += [{"step": 10, "eval_loss": 0.2}, {"step": 19, "eval_loss": 0.1}, {"step": 19, "train_runtime": 3.0}]
    plot_losses(history, tmp_path / "with.png")
    plot_losses(history[:19], tmp_path / "without.png")
    with_evaluation, without = (np.asarray(Image.open(tmp_path / name)) for name in ("with.png", "without.png"))
    assert with_evaluation.shape == without.shape
    assert (with_evaluation != without).any()
    # The weights of step 10 are measured again, after the last step.
    plot_losses([*history, {"step": 19, "eval_loss": 0.2}], tmp_path / "again.png")
    assert (np.asarray(Image.open(tmp_path / "again.png")) == with_evaluation).all()
