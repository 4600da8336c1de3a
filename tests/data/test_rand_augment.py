"""RandAugment: timm's notation, and what is drawn by it."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from photos import random_photo
from PIL import Image

from hf_simmim.data.labeled.rand_augment import OPERATIONS, Canvas, Policy, RandAugment, parse_policy, posterize

RELEASED = "rand-m9-mstd0.5-inc1"


def test_policies():
    assert parse_policy(RELEASED) == Policy(9, 2, 0.5, 0.5, 10, True)
    assert parse_policy("rand-n3-p0.7-mmax15") == Policy(10, 3, 0.7, 0.0, 15, False)
    assert math.isinf(parse_policy("rand-mstd101").magnitude_std)


@pytest.mark.parametrize("text", ["", "rand-m", "original-m9", "rand-m9-tweights", "rand-q3", "rand-p2", "rand-n1.5"])
def test_policies_that_are_none(text):
    with pytest.raises(ValueError, match="is not a RandAugment policy. Write rand and any of m, n, p"):
        parse_policy(text)


def test_inc_is_always_one():
    with pytest.raises(ValueError, match="any number after inc as 1"):
        parse_policy("rand-m9-inc0")


def test_what_the_released_policy_draws():
    augment = RandAugment(RELEASED, (124, 116, 104))
    assert len(augment.names) == 15
    generator = torch.Generator().manual_seed(0)
    draws = [augment.draw(generator) for _ in range(6000)]
    assert np.allclose(np.bincount([len(draw) for draw in draws]) / 6000, [0.25, 0.5, 0.25], atol=0.025)
    counts = Counter(name for draw in draws for name, _ in draw)
    assert set(counts) == set(augment.names)
    assert all(abs(count / 6000 - 1 / 15) < 0.015 for count in counts.values())
    signed = [level for draw in draws for name, level in draw if OPERATIONS[name][0]]
    assert abs(np.mean(np.array(signed) < 0) - 0.5) < 0.03
    assert all(level >= 0 for draw in draws for name, level in draw if not OPERATIONS[name][0])
    levels = np.array([abs(level) for draw in draws for _, level in draw])
    assert abs(levels.mean() - 0.9) < 0.003
    assert abs(levels.std() - 0.05) < 0.003
    assert levels.max() == 1.0
    assert 0.015 < np.mean(levels == 1.0) < 0.032, "what is beyond 10 is brought to 10"


def test_even_strengths():
    augment = RandAugment("rand-m8-mstd101-p1", (0,))
    generator = torch.Generator().manual_seed(0)
    levels = np.array([abs(level) for _ in range(2000) for _, level in augment.draw(generator)])
    assert 0 <= levels.min() < 0.01 < 0.79 < levels.max() <= 0.8
    assert abs(levels.mean() - 0.4) < 0.02


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_operation_changes_a_picture(name, mode):
    image = random_photo(np.random.default_rng(1), (60, 40)).convert(mode)
    # Neither black nor white, which stretching the contrast would leave as it is; light, for solarizing.
    image = image.point(lambda value: 60 + value * 7 // 10)
    before = np.asarray(image).copy()
    changed = OPERATIONS[name][1](image, 0.7, Canvas((9,) * len(mode), Image.Resampling.BICUBIC))
    assert (changed.size, changed.mode) == (image.size, mode)
    assert np.array_equal(np.asarray(image), before)
    # Gray has no color to change.
    assert np.array_equal(np.asarray(changed), before) == (mode == "L" and name.startswith("Color"))


@pytest.mark.parametrize(
    "name", [name for name in OPERATIONS if "Increasing" in name or OPERATIONS[name][0] or name == "SolarizeAdd"]
)
def test_increasing_operations_change_more_with_strength(name):
    image = random_photo(np.random.default_rng(2), (60, 40))
    canvas = Canvas((0, 0, 0), Image.Resampling.BICUBIC)
    errors = []
    for level in (0.0, 0.3, 0.9):
        changed = np.asarray(OPERATIONS[name][1](image, level, canvas)).astype(float)
        errors.append(np.abs(changed - np.asarray(image)).mean())
    assert errors[0] < errors[1] < errors[2] or (name == "PosterizeIncreasing" and errors[0] < errors[2])


def test_posterize():
    image = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    for num_bits, expected in (
        (8, np.arange(256)),
        (1, np.arange(256) // 128 * 128),
        (0, np.zeros(256)),
        (-2, np.zeros(256)),
    ):
        assert np.array_equal(np.asarray(posterize(image, num_bits))[0], expected)
