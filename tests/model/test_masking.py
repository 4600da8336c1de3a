import math
import re

import numpy as np
import pytest
import torch
from scipy import ndimage

from hf_simmim.model import masking
from hf_simmim.model.masking import (
    MASK_STRATEGIES,
    average_distance,
    mask_units,
    num_masked_units,
    patch_mask,
    patches_with_pixels,
    ratio_range,
    span,
    to_pixels,
)

RANDOM_STRATEGIES = [name for name in MASK_STRATEGIES if name != "central_square"]

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


@pytest.mark.parametrize("name", RANDOM_STRATEGIES)
def test_seed_decides_the_masks(name):
    strategy = MASK_STRATEGIES[name]
    first, again, other = (strategy((12, 18), 0.6, 4, unit_size=3, generator=seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_nothing_about_the_central_square_is_random():
    masks = MASK_STRATEGIES["central_square"]((12, 18), 0.6, 4)
    assert torch.equal(masks, masks[:1].expand_as(masks))


@pytest.mark.parametrize("name", RANDOM_STRATEGIES)
def test_default_generator_without_generator(name):
    strategy = MASK_STRATEGIES[name]
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


@pytest.mark.parametrize("name", RANDOM_STRATEGIES)
@pytest.mark.parametrize(("grid_size", "unit_size"), [((13, 18), 4), ((12, 18), 5), ((24, 10), 1)])
def test_every_unit_has_its_turn(name, grid_size, unit_size):
    """Cut ones too."""
    masks = MASK_STRATEGIES[name](grid_size, 0.3, 400, unit_size=unit_size, generator=seeded(0))
    assert masks.any(dim=0).all()
    assert not masks.all(dim=0).any()


def test_unit_must_be_a_size(strategy):
    with pytest.raises(ValueError, match="unit_size=0 must be 1 patch or more"):
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


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        ([0.4, 1.0], r"mask_ratio=1\.0 is outside \(0, 1\)"),
        ((0.7, 0.4), r"mask_ratio=\(0\.7, 0\.4\) must be in ascending order\. Use 0\.4 0\.7"),
        ([0.4, 0.5, 0.6], r"has 3 values\. Give one ratio, or two"),
        ([0.4, 0.999], r"mask_ratio=0\.999 masks all units"),
    ],
)
def test_ratio_must_be_a_range(strategy, ratio, message):
    with pytest.raises(ValueError, match=message):
        strategy((12, 18), ratio)


@pytest.mark.parametrize("ratio", [(0.2, 0.8), [0.2, 0.8]])
def test_every_image_has_its_own_ratio_from_a_range(strategy, ratio):
    masks, again = (strategy((12, 18), ratio, 400, unit_size=2, generator=seeded(0)) for _ in range(2))
    assert torch.equal(masks, again)
    counts = masks.sum(dim=(1, 2)) // 4
    assert (masks.sum(dim=(1, 2)) % 4 == 0).all()
    assert (counts.min(), counts.max()) == (num_masked_units(54, 0.2), num_masked_units(54, 0.8))
    # Uniform, rounded up: five standard deviations.
    assert abs(counts.double().mean() / 54 - 0.5 - 0.5 / 54) < 5 * 0.6 / math.sqrt(12 * 400)


def test_a_range_of_one_ratio_is_that_ratio(strategy):
    masks = [strategy((12, 18), ratio, 4, generator=seeded(0)) for ratio in (0.6, (0.6, 0.6))]
    assert torch.equal(*masks)
    assert (ratio_range(0.6), ratio_range([0.4, 0.7])) == ((0.6, 0.6), (0.4, 0.7))
    assert (span(0.6), span(22), span((0.4, 0.7))) == ("0.6", "22", "0.4 to 0.7")


# Patches that hold no real pixel


def valid_units(valid: torch.Tensor, unit_size: int) -> torch.Tensor:
    """Bool (B, rows, columns), counted in loops."""
    rows, columns = (math.ceil(side / unit_size) for side in valid.shape[1:])
    units = torch.zeros(len(valid), rows, columns, dtype=torch.bool)
    for row in range(rows):
        for column in range(columns):
            part = valid[:, row * unit_size : (row + 1) * unit_size, column * unit_size : (column + 1) * unit_size]
            units[:, row, column] = part.flatten(1).any(1)
    return units


@pytest.mark.parametrize(("grid_size", "unit_size"), [((13, 18), 4), ((14, 14), 2), ((9, 5), 1)])
@pytest.mark.parametrize("ratio", [0.6, (0.3, 0.7)])
def test_patches_without_real_pixels_are_left_out(strategy, grid_size, unit_size, ratio):
    height, width = grid_size
    valid = torch.rand(64, *grid_size, generator=seeded(1)) < torch.linspace(0, 1, 64)[:, None, None]
    valid[60:] = True
    valid[60, height // 2 :] = False
    valid[61, :, : width // 3] = False
    masks = strategy(grid_size, ratio, 64, unit_size=unit_size, valid_patches=valid, generator=seeded(0))
    assert not (masks & ~valid).any()
    units = valid_units(valid, unit_size)
    masked = valid_units(masks, unit_size)
    for mask, hidden, real, patches in zip(masks, masked, units, valid, strict=True):
        number = int(real.sum())
        # Of a unit, what is real is hidden as a whole.
        whole = to_pixels(hidden[None], unit_size, grid_size)[0] & patches
        assert torch.equal(mask, whole)
        if number < 2:
            assert not mask.any()
            continue
        low, high = (min(max(1, math.ceil(round(number * r, 9))), number - 1) for r in ratio_range(ratio))
        assert low <= hidden.sum() <= high


def test_all_patches_real_is_as_without(strategy):
    masks = [
        strategy((13, 18), 0.6, 4, unit_size=4, valid_patches=valid, generator=seeded(0))
        for valid in (None, torch.ones(4, 13, 18, dtype=torch.bool))
    ]
    assert torch.equal(*masks)
    with pytest.raises(ValueError, match=r"valid_patches has shape \(4, 12, 18\)\. Use \(4, 13, 18\)"):
        strategy((13, 18), 0.6, 4, valid_patches=torch.ones(4, 12, 18, dtype=torch.bool))


def test_patches_with_pixels():
    pixels = torch.zeros(2, 7, 9, dtype=torch.bool)
    pixels[0, 3, 4] = pixels[1, 6, 8] = True
    patches = patches_with_pixels(pixels, 4)
    assert patches.shape == (2, 2, 3)
    assert patches.nonzero().tolist() == [[0, 0, 1], [1, 1, 2]]
    assert patches_with_pixels(torch.ones(1, 4, 4, dtype=torch.bool), 8).tolist() == [[[True]]]


# Shapes


def test_random_units_of_an_image_are_independent():
    masks = MASK_STRATEGIES["random"]((6, 6), 0.6, 10_000, generator=seeded(0)).flatten(1).double()
    share = 22 / 36
    # Five standard deviations, of single units and of pairs: drawing without replacement makes pairs of units both
    # masked a little rarer than independent ones, and the same for every pair.
    assert (masks.mean(dim=0) - share).abs().max() < 5 * math.sqrt(share * (1 - share) / len(masks))
    pairs = (masks.T @ masks / len(masks))[~torch.eye(36, dtype=torch.bool)]
    share = 22 / 36 * 21 / 35
    assert (pairs - share).abs().max() < 5 * math.sqrt(share * (1 - share) / len(masks))


@pytest.mark.parametrize("name", ["square", "central_square"])
@pytest.mark.parametrize("grid_size", [(6, 6), (7, 7), (6, 9), (20, 7), (3, 40), (1, 9)])
@pytest.mark.parametrize("ratio", [0.1, 0.35, 0.6, 0.85])
def test_squares_are_one_compact_region(name, grid_size, ratio):
    masks = MASK_STRATEGIES[name](grid_size, ratio, 32, generator=seeded(0))
    count = num_masked_units(math.prod(grid_size), ratio)
    side = math.ceil(math.sqrt(count))
    # Longer only where the grid is too narrow. Around the center of a grid with an odd and an even side a square of
    # neither parity is exact.
    longest = max(side, math.ceil(count / min(grid_size))) + (name == "central_square")
    shortest = min(side, *grid_size) + (name == "central_square")
    for mask in masks.numpy():
        assert ndimage.label(mask)[1] == 1
        box = ndimage.find_objects(mask.astype(int))[0]
        sides = sorted(part.stop - part.start for part in box)
        assert sides[1] <= longest
        assert sides[0] <= shortest
        # No holes: what is visible touches the border of the box.
        assert ndimage.binary_fill_holes(mask).sum() == count


@pytest.mark.parametrize("grid_size", [(6, 6), (7, 9), (8, 13)])
def test_central_square_is_at_the_center(grid_size):
    mask = MASK_STRATEGIES["central_square"](grid_size, 0.3)[0]
    center = mask.nonzero().double().mean(dim=0)
    assert (center - (torch.tensor(grid_size) - 1) / 2).abs().max() < 0.5
    exact = MASK_STRATEGIES["central_square"]((6, 6), 4 / 9)[0]
    assert exact[1:5, 1:5].all()
    assert exact.sum() == 16


def test_squares_are_drawn_evenly_over_all_places():
    masks = MASK_STRATEGIES["square"]((6, 7), 4 / 42, 3000, generator=seeded(0))
    places, counts = masks.flatten(1).unique(dim=0, return_counts=True)
    assert len(places) == 5 * 6
    # Five standard deviations.
    assert (counts - 100).abs().max() < 50


@pytest.mark.parametrize(("grid_size", "unit_size"), [((14, 14), 1), ((13, 18), 1), ((48, 48), 4)])
def test_blocks_are_blocky(grid_size, unit_size):
    block, random = (
        average_distance(MASK_STRATEGIES[name](grid_size, 0.4, 64, unit_size=unit_size, generator=seeded(0)))
        for name in ("block", "random")
    )
    assert block.mean() > 1.5 * random.mean()


def test_a_small_mask_is_one_block_of_bounded_proportions():
    """At a ratio below the smallest block every mask is a part of one, and most of it is a rectangle."""
    masks = MASK_STRATEGIES["block"]((14, 14), 16 / 196, 200, generator=seeded(0)).numpy()
    shapes = set()
    for mask in masks:
        assert ndimage.label(mask)[1] == 1
        (rows, columns) = ndimage.find_objects(mask.astype(int))[0]
        height, width = rows.stop - rows.start, columns.stop - columns.start
        assert mask[rows, columns].sum() == 16
        assert height * width <= 16 + max(height, width)
        assert max(height, width) / min(height, width) <= 4
        shapes.add((height, width))
    assert shapes == {(2, 8), (3, 6), (4, 4), (6, 3), (8, 2)}


def test_blocks_end_at_extreme_ratios():
    for grid_size in ((30, 30), (2, 30), (1, 7)):
        count = math.prod(grid_size)
        for ratio in (1 / count, (count - 1) / count):
            masks = MASK_STRATEGIES["block"](grid_size, ratio, 8, generator=seeded(0))
            assert masks.sum(dim=(1, 2)).tolist() == [round(count * ratio)] * 8


# AvgDist


@pytest.mark.parametrize(
    ("grid_size", "patch_size", "image_size"),
    [((12, 12), 4, None), ((13, 18), 4, (50, 70)), ((5, 90), 1, None), ((90, 4), 2, (179, 7))],
)
@pytest.mark.parametrize("ratio", [0.1, 0.6, 0.95])
def test_average_distance_is_that_of_scipy(strategy, grid_size, patch_size, image_size, ratio):
    masks = strategy(grid_size, ratio, 5, generator=seeded(0))
    size = image_size or tuple(side * patch_size for side in grid_size)
    pixels = to_pixels(masks, patch_size, size).numpy()
    expected = [ndimage.distance_transform_edt(mask)[mask].mean() for mask in pixels]
    actual = average_distance(masks, patch_size, image_size)
    assert (actual.shape, actual.dtype) == ((5,), torch.float32)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_average_distance_of_the_papers_masks():
    """22 of 36 squares of 32 px at 192 px: figure 3 and table 1 of the paper take it between 10 and 20."""
    masks = MASK_STRATEGIES["random"]((48, 48), 0.6, 48, unit_size=8, generator=seeded(0))
    assert 14.5 < average_distance(masks, 4).mean() < 16


def test_average_distance_at_the_extremes():
    masks = torch.zeros(2, 3, 5, dtype=torch.bool)
    masks[1, 1, 2] = True
    assert average_distance(masks).tolist() == [0, 1]
    masks[0] = True
    with pytest.raises(ValueError, match="covers a whole image"):
        average_distance(masks)
    with pytest.raises(ValueError, match="does not cover an image of 9x9"):
        average_distance(masks[1:], 4, (9, 9))


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
    with pytest.raises(ValueError, match=rf"mask_ratio={ratio} masks all .* \({num_units}\).* smaller mask_patch_size"):
        num_masked_units(num_units, ratio)


# What is no mask, and masks of very many units


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32, torch.bfloat16])
def test_masks_of_ones_and_zeros_are_masks(dtype):
    mask = torch.tensor([[[True, False], [False, True]]])
    assert torch.equal(patch_mask(mask.to(dtype), torch.zeros(1, 3, 8, 8), 4), mask)
    assert torch.equal(patch_mask(mask.flatten(1).to(dtype), torch.zeros(1, 3, 8, 8), 4), mask)
    assert patch_mask(None, torch.zeros(1, 3, 8, 8), 4) is None


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.tensor([[0, 1, -1, 0]]), "has the value -1. Use a bool mask, True = masked, or 1 and 0"),
        (torch.tensor([[0.0, 0.3, 1.0, 0.0]]), r"has the value 0\.3\."),
        (torch.tensor([[0.0, math.nan, 1.0, 0.0]]), "has the value nan"),
        (torch.tensor([[0, 255, 255, 0]], dtype=torch.uint8), "has the value 255"),
        ([[True, False, False, True]], "is of type list. Use a tensor, or None"),
    ],
    ids=str,
)
def test_other_values_are_no_mask(mask, message):
    with pytest.raises(ValueError, match=f"bool_masked_pos {message}"):
        patch_mask(mask, torch.zeros(1, 3, 8, 8), 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid_size": None}, r"grid_size=None must be \(height, width\), two whole numbers of at least 1"),
        ({"grid_size": (12, -18)}, r"grid_size=\(12, -18\) must be"),
        ({"grid_size": (12.5, 18)}, r"grid_size=\(12\.5, 18\) must be"),
        ({"grid_size": (12, 18, 2)}, r"grid_size=\(12, 18, 2\) must be"),
        ({"mask_ratio": None}, "mask_ratio=None is outside"),
        ({"mask_ratio": "0.6"}, "mask_ratio=0.6 has 3 values"),
        ({"mask_ratio": [None, 0.5]}, "mask_ratio=None is outside"),
        ({"batch_size": -1}, "batch_size=-1 must be 1 mask or more"),
        ({"batch_size": 1.5}, "batch_size=1.5 must be 1 mask or more"),
        ({"unit_size": 1.5}, "unit_size=1.5 must be 1 patch or more"),
        ({"unit_size": None}, "unit_size=None must be 1 patch or more"),
        ({"valid_patches": [[True]]}, "valid_patches is of type list"),
    ],
    ids=str,
)
def test_impossible_masks_are_refused(strategy, settings, message):
    with pytest.raises(ValueError, match=message):
        strategy(**{"grid_size": (12, 18), "mask_ratio": 0.6} | settings)


def test_sizes_of_units_are_whole_numbers():
    for arguments in (((32, -32), 4, 8), (None, 4, 8), ((32, 32), 4.5, 9), ((32, 32), None, 8), ((32, 32), 4, 8.5)):
        with pytest.raises(ValueError, match=r"whole number|Use that of the encoder"):
            mask_units(*arguments)


def test_junk_raises_a_stated_error_or_none(strategy):
    numbers = (None, 0, -1, 3, 0.5, -0.5, math.nan, math.inf, True)
    junk = (*numbers, "a", b"a", [], (1, 2), (0, 2), [0.2, 0.5], {}, {1}, object())
    names = ("grid_size", "mask_ratio", "batch_size", "unit_size", "valid_patches", "generator")
    for name in names:
        for value in junk:
            try:
                strategy(**{"grid_size": (4, 6), "mask_ratio": 0.6} | {name: value})
            except Exception as error:
                if not (isinstance(error, (ValueError, TypeError)) and str(error)):
                    pytest.fail(f"{name}={value!r}: {type(error).__name__}: {error}")


@pytest.mark.parametrize("valid", [False, True])
def test_many_units_are_masked_as_few_are(strategy, valid, monkeypatch):
    """Without sorting them, with the same result; blocks that are moved are drawn otherwise."""
    patches = torch.rand(6, 20, 30, generator=seeded(1)) < 0.8 if valid else None
    for ratio in (0.1, 0.6, (0.3, 0.8)):
        masks = []
        for largest in (2**18, 100):
            monkeypatch.setattr(masking, "LARGEST_PART", largest)
            masks.append(strategy((20, 30), ratio, 6, valid_patches=patches, generator=seeded(0)))
        assert torch.equal(*(mask.flatten(1).sum(1) for mask in masks))
        if strategy is not MASK_STRATEGIES["block"]:
            assert torch.equal(*masks)


def test_many_units_are_not_sorted(strategy, monkeypatch):
    """A sort of all units of large grids takes minutes."""
    sort = torch.Tensor.argsort

    def sort_few(scores, *args, **kwargs):
        assert scores.shape[-1] <= masking.LARGEST_PART
        return sort(scores, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "argsort", sort_few)
    masks = strategy((1000, 2000), 0.6, 2, generator=seeded(0))
    assert masks.flatten(1).sum(1).tolist() == [1_200_000] * 2
