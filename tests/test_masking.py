import math
import re

import pytest
import torch

from hf_simmim.masking import MASK_STRATEGIES, mask_units, num_masked_units, to_pixels

# Patch grid (h, w), unit size in patches, ratio, masked units: the paper's two geometries, grids that are not square,
# ratios that do not come out even.
GEOMETRIES = [
    ((48, 48), 8, 0.6, 22),
    ((14, 14), 2, 0.6, 30),
    ((8, 20), 4, 0.6, 6),
    ((20, 8), 2, 0.5, 20),
    ((4, 5), 1, 0.55, 11),
    ((3, 7), 1, 0.1, 3),
    ((1, 2), 1, 0.3, 1),
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=MASK_STRATEGIES)
def strategy(request):
    return MASK_STRATEGIES[request.param]


@pytest.mark.parametrize(("grid_size", "unit_size", "ratio", "num_masked"), GEOMETRIES)
def test_exact_count_of_whole_units(strategy, grid_size, unit_size, ratio, num_masked):
    masks = strategy(grid_size, ratio, 16, unit_size=unit_size, generator=seeded(0))
    assert masks.shape == (16, *grid_size)
    assert masks.dtype == torch.bool
    assert masks.sum(dim=(1, 2)).tolist() == [num_masked * unit_size**2] * 16
    units = masks.unflatten(1, (-1, unit_size)).unflatten(3, (-1, unit_size))  # B, rows, unit, columns, unit
    assert torch.equal(units, units[:, :, :1, :, :1].expand_as(units))


def test_seed_decides_the_masks(strategy):
    first, again, other = (strategy((12, 18), 0.6, 4, unit_size=3, generator=seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_default_generator_without_generator(strategy):
    torch.manual_seed(0)
    first = strategy((12, 18), 0.6, 4)
    second = strategy((12, 18), 0.6, 4)
    torch.manual_seed(0)
    assert torch.equal(first, strategy((12, 18), 0.6, 4))
    assert not torch.equal(first, second)


def test_generator_leaves_the_default_one_alone(strategy):
    state = torch.get_rng_state()
    strategy((12, 18), 0.6, 4, generator=seeded(0))
    assert torch.equal(state, torch.get_rng_state())


def test_one_mask_by_default(strategy):
    assert strategy((6, 4), 0.5).shape == (1, 6, 4)


def test_device(strategy):
    assert strategy((6, 4), 0.5, device="cpu").device.type == "cpu"
    # A mask belongs where its generator is, whatever the default device.
    with torch.device("meta"):
        assert strategy((6, 4), 0.5, generator=seeded(0)).device.type == "cpu"


def test_default_dtype_changes_nothing(strategy):
    expected = strategy((12, 18), 0.6, 4, generator=seeded(0))
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(expected, strategy((12, 18), 0.6, 4, generator=seeded(0)))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("grid_size", "unit_size", "rows", "columns"), [((13, 18), 4, 4, 5), ((12, 18), 5, 3, 4), ((2, 9), 4, 1, 3)]
)
def test_units_at_the_border_may_be_cut(strategy, grid_size, unit_size, rows, columns):
    """What is left of each unit is hidden or shown as a whole, and as many are hidden as if they were whole."""
    masks = strategy(grid_size, 0.6, 32, unit_size=unit_size, generator=seeded(0))
    assert masks.shape == (32, *grid_size)
    count = torch.zeros(32, dtype=torch.long)
    for row in range(rows):
        for column in range(columns):
            unit = masks[:, row * unit_size :, column * unit_size :][:, :unit_size, :unit_size].flatten(1)
            assert torch.equal(unit.all(1), unit.any(1))
            count += unit.all(1)
    assert count.tolist() == [num_masked_units(rows * columns, 0.6)] * 32
    # Cut units have their turn too.
    assert masks[:, -1, -1].any()
    assert not masks[:, -1, -1].all()


def test_unit_must_be_a_size(strategy):
    with pytest.raises(ValueError, match="unit_size=0 is no number of patches"):
        strategy((12, 18), 0.6, unit_size=0)


def test_pixel_mask_is_cut_with_the_image():
    mask = torch.zeros(1, 2, 3, dtype=torch.bool)
    mask[0, 1, 2] = True
    pixels = to_pixels(mask, 4, (7, 9))
    assert pixels.shape == (1, 7, 9)
    assert pixels.nonzero()[:, 1:].tolist() == [[4, 8], [5, 8], [6, 8]]
    with pytest.raises(ValueError, match=r"shape \(1, 2, 3\) does not cover an image of 9x9 .* Use \(B, 3, 3\)"):
        to_pixels(mask, 4, (9, 9))


@pytest.mark.parametrize("ratio", [-0.1, 0, 1, 1.5, math.nan])
def test_ratio_must_hide_a_part(strategy, ratio):
    with pytest.raises(ValueError, match=re.escape(f"mask_ratio={ratio} is outside (0, 1)")):
        strategy((12, 18), ratio)


def test_random_units_of_an_image_are_independent():
    masks = MASK_STRATEGIES["random"]((6, 6), 0.6, 10_000, generator=seeded(0)).flatten(1).double()
    share = 22 / 36
    # Five standard deviations, of single units and of pairs: drawing without replacement makes pairs of units both
    # masked a little rarer than independent ones, and the same for every pair.
    assert (masks.mean(dim=0) - share).abs().max() < 5 * math.sqrt(share * (1 - share) / len(masks))
    pairs = (masks.T @ masks / len(masks))[~torch.eye(36, dtype=torch.bool)]
    share = 22 / 36 * 21 / 35
    assert (pairs - share).abs().max() < 5 * math.sqrt(share * (1 - share) / len(masks))


@pytest.mark.parametrize(
    ("image_size", "patch_size", "mask_patch_size", "grid_size", "unit_size"),
    [
        ((192, 192), 4, 32, (48, 48), 8),
        ((224, 224), 16, 32, (14, 14), 2),
        ((96, 160), 4, 32, (24, 40), 8),
        ((518, 518), 14, 14, (37, 37), 1),
        ((50, 70), 4, 16, (13, 18), 4),
        ((200, 192), 4, 32, (50, 48), 8),
        ((16, 16), 4, 32, (4, 4), 8),
    ],
)
def test_mask_units(image_size, patch_size, mask_patch_size, grid_size, unit_size):
    assert mask_units(image_size, patch_size, mask_patch_size) == (grid_size, unit_size)


@pytest.mark.parametrize(
    ("image_size", "patch_size", "mask_patch_size", "message", "remedy"),
    [
        ((192, 192), 4, 30, "mask_patch_size=30 px is not a multiple of the model's patch size of 4 px", "Use 32"),
        ((224, 224), 16, 8, "mask_patch_size=8 px", "Use 16"),
        ((192, 192), 4, 0, "mask_patch_size=0 px", "Use 4"),
        ((192, 192), 4, -32, "mask_patch_size=-32 px", "Use 4"),
        ((192, 192), 0, 32, "patch size is 0 px", "Use that of the encoder"),
    ],
)
def test_mask_units_that_do_not_fit(image_size, patch_size, mask_patch_size, message, remedy):
    with pytest.raises(ValueError, match=f"{message}.*{remedy}"):
        mask_units(image_size, patch_size, mask_patch_size)


@pytest.mark.parametrize(
    ("num_units", "ratio", "expected"),
    [(36, 0.6, 22), (49, 0.6, 30), (20, 0.55, 11), (100, 0.55, 55), (25, 0.56, 14), (4, 0.01, 1), (2, 0.5, 1)],
)
def test_num_masked_units(num_units, ratio, expected):
    assert num_masked_units(num_units, ratio) == expected


@pytest.mark.parametrize(("num_units", "ratio"), [(1, 0.6), (4, 0.9), (36, 0.99)])
def test_something_stays_visible(num_units, ratio):
    with pytest.raises(ValueError, match=rf"mask_ratio={ratio} hides all .* \({num_units}\).* smaller mask_patch_size"):
        num_masked_units(num_units, ratio)
