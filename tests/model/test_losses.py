"""Distances, and their means over hidden pixels."""

import pytest
import torch
import torch.nn.functional as F

from hf_simmim.model.losses import (
    LOSSES,
    cosine,
    cross_entropy,
    masked_mean,
    masked_mean_per_image,
    num_masked_pixels,
    pixel_weights,
    smooth_l1,
)
from hf_simmim.model.masking import patch_grid, random_mask, to_pixels

GEOMETRIES = [((48, 64), 4), ((50, 70), 4), ((225, 225), 16), ((12, 12), 5)]


def batch_of(size: tuple[int, int], patch_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values (3, 5, H, W), a mask on the patch grid, and the same as pixels (3, H, W)."""
    generator = torch.Generator().manual_seed(0)
    mask = random_mask(patch_grid(size, patch_size), 0.6, 3, generator=generator)
    return torch.rand(3, 5, *size, generator=generator), mask, to_pixels(mask, patch_size, size)


@pytest.mark.parametrize(("size", "patch_size"), GEOMETRIES)
@pytest.mark.parametrize("has_missing", [False, True])
def test_means_over_the_pixels_that_are_there(size, patch_size, has_missing):
    """225 px hold 14 patches of 16 px and a cut one, though 15 divides 225."""
    values, mask, hidden = batch_of(size, patch_size)
    pixel_mask = None
    if has_missing:
        pixel_mask = torch.ones(3, *size, dtype=torch.bool)
        pixel_mask[1, : size[0] // 2] = False
        hidden = hidden & pixel_mask
    weights = pixel_weights(mask, patch_size, values.shape, pixel_mask=pixel_mask)
    chosen = hidden[:, None].expand_as(values)
    expected = torch.stack([image[pixels].mean() for image, pixels in zip(values, chosen, strict=True)])
    means, counts = masked_mean_per_image(values, weights)
    torch.testing.assert_close(means, expected)
    assert counts.tolist() == hidden.flatten(1).sum(1).tolist()
    torch.testing.assert_close(masked_mean(values, weights), values[chosen].mean())
    assert num_masked_pixels(weights, size) == hidden.sum()


@pytest.mark.parametrize(("size", "patch_size"), GEOMETRIES)
@pytest.mark.parametrize("stride", [2, 4, 8])
def test_steps_count_for_their_hidden_pixels(size, patch_size, stride):
    _, mask, hidden = batch_of(size, patch_size)
    grid_size = patch_grid(size, stride)
    values = torch.rand(3, 2, *grid_size)
    weights = pixel_weights(mask, patch_size, (3, 3, *size), stride)
    cells = torch.stack([block.sum(dim=(1, 2)) for rows in hidden.split(stride, 1) for block in rows.split(stride, 2)])
    cells = cells.T.view(3, *grid_size)
    expected = (values.mean(dim=1) * cells).sum() / hidden.sum()
    torch.testing.assert_close(masked_mean(values, weights), expected)
    assert num_masked_pixels(weights, grid_size) == hidden.sum()


def test_a_step_with_a_missing_pixel_counts_for_nothing():
    pixel_mask = torch.ones(1, 8, 8, dtype=torch.bool)
    pixel_mask[0, 1, 6] = False
    for mask in (torch.ones(1, 2, 2, dtype=torch.bool), None):
        weights = pixel_weights(mask, 4, (1, 3, 8, 8), 4, pixel_mask)
        assert weights.tolist() == [[[16, 0], [16, 16]]]


def test_all_pixels_count_without_a_mask():
    values = torch.rand(2, 3, 6, 8)
    weights = pixel_weights(None, 4, (2, 3, 12, 16), 2)
    torch.testing.assert_close(masked_mean(values, weights), values.mean())
    assert num_masked_pixels(weights, (6, 8)) == 2 * 12 * 16
    cut = pixel_weights(None, 4, (2, 3, 11, 16), 2)
    assert num_masked_pixels(cut, (6, 8)) == 2 * 11 * 16


def test_parts_of_a_batch_add_up():
    values, mask, _ = batch_of((48, 64), 4)
    mask[0, :6] = False
    weights = pixel_weights(mask, 4, values.shape)
    count = num_masked_pixels(weights, (48, 64))
    parts = [masked_mean(values[i : i + 1], weights[i : i + 1], count) for i in range(3)]
    torch.testing.assert_close(sum(parts), masked_mean(values, weights))


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="does not cover an image of 50x70 with patches of 8 px"):
        pixel_weights(random_mask((13, 18), 0.6, 2), 8, (2, 3, 50, 70))
    with pytest.raises(ValueError, match="grid of 13x18 do not divide a prediction of 50x70"):
        masked_mean(torch.rand(2, 3, 50, 70), torch.ones(2, 13, 18))


def test_nothing_masked_is_no_loss():
    weights = pixel_weights(torch.zeros(2, 13, 18, dtype=torch.bool), 4, (2, 3, 50, 70))
    assert masked_mean(torch.rand(2, 3, 50, 70), weights) == 0
    assert masked_mean_per_image(torch.rand(2, 3, 50, 70), weights)[1].tolist() == [0, 0]


def test_cross_entropy_of_groups():
    """Two channels of five classes each."""
    logits, classes = torch.randn(3, 10, 4, 6), torch.randint(5, (3, 2, 4, 6))
    losses = cross_entropy(logits, classes)
    assert losses.shape == classes.shape
    for group in range(2):
        expected = F.cross_entropy(logits[:, 5 * group : 5 * group + 5], classes[:, group], reduction="none")
        torch.testing.assert_close(losses[:, group], expected)


def test_regressions():
    prediction, target = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([0.1, -0.5, 3.0])
    values = {name: LOSSES[name].distance(prediction, target).tolist() for name in ("l1", "l2")}
    assert values["l1"] == pytest.approx([0.1, 0.5, 3.0])
    assert values["l2"] == pytest.approx([0.01, 0.25, 9.0])
    assert smooth_l1(prediction, target, beta=0.5).tolist() == pytest.approx([0.01, 0.25, 2.75])


def test_cosine_knows_no_length():
    target = torch.randn(2, 8, 3, 5)
    torch.testing.assert_close(cosine(7 * target, target), torch.zeros(2, 1, 3, 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(cosine(-target, target), torch.full((2, 1, 3, 5), 2.0))
