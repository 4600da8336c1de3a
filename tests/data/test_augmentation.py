"""Crops, flips, colors and erasing: drawn from the generator, as often and as strongly as the settings say."""

import dataclasses
import json
import pickle
import random

import numpy as np
import pytest
import torch
from photos import random_photo
from PIL import Image

from hf_simmim.data.labeled.augmentation import Augmentation, Augmenter, ColorJitter, SeededTransform
from hf_simmim.data.sampling import sample_generator

PLAIN = {"rand_augment": None, "color_jitter": 0.0, "flip": 0.0, "random_erasing": 0.0, "backend": "builtin"}


def make_augmenter(image_size=(32, 48), num_channels=3, **settings) -> Augmenter:
    return Augmenter(Augmentation(**PLAIN | settings), image_size, num_channels, [0.5] * num_channels)


def augmented(augmenter: Augmenter, image, *seed: int) -> np.ndarray:
    generator = sample_generator(*seed)
    return augmenter.recolor(augmenter.crop(image, generator), generator)


@pytest.fixture(scope="module")
def photo():
    return random_photo(np.random.default_rng(0), (120, 90))


def test_settings_are_plain_numbers_and_words():
    settings = Augmentation(crop_scale=(0.2, 0.9), flip=0.1)
    assert Augmentation(**dataclasses.asdict(settings)) == settings
    assert Augmentation(**json.loads(json.dumps(dataclasses.asdict(settings)))) == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_scale": (0.9, 0.5)}, r"crop_scale=.* must be \(min, max\) in"),
        ({"crop_ratio": (0.0, 0.5)}, r"crop_ratio=.* must be \(min, max\) above 0"),
        ({"flip": 1.5}, "flip=1.5 is a probability"),
        ({"random_erasing": -1}, "random_erasing=-1 is a probability"),
        ({"color_jitter": 2}, r"color_jitter=2 must be in \[0, 1\]"),
        ({"backend": "kornia"}, r"backend='kornia' is unknown. Use one of: auto, builtin, timm\."),
        ({"backend": "torchvision"}, "backend='torchvision' is unknown"),
        ({"rand_augment": "augmix"}, "rand_augment='augmix' is not a RandAugment policy"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings)


def test_library_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="backend='timm' needs timm, which is not installed: pip install timm"):
        Augmentation(backend="timm")
    assert Augmentation(backend="auto").backend == "auto"


def test_crops_and_flips():
    ramp = np.linspace(0, 255, 200)
    pixels = np.stack([np.tile(ramp, (100, 1)), np.tile(ramp[::2, None], (1, 200)), np.zeros((100, 200))], axis=-1)
    image = Image.fromarray(pixels.astype(np.uint8))
    augmenter = make_augmenter(flip=0.5, vertical_flip=0.25, crop_scale=(0.3, 0.6), crop_ratio=(1.0, 2.0))
    flips, shares, ratios = [], [], []
    for seed in range(400):
        crop = augmented(augmenter, image, seed).astype(float)
        right, down = crop[:, -1, 0].mean() - crop[:, 0, 0].mean(), crop[-1, :, 1].mean() - crop[0, :, 1].mean()
        flips.append((right < 0, down < 0))
        # Bicubic samples the middle of the outermost of 48 and 32 pixels.
        width, height = abs(right) / 255 * 200 * 48 / 47, abs(down) / 255 * 100 * 32 / 31
        shares.append(width * height / 20000)
        ratios.append(width / height)
    assert abs(np.mean([across for across, _ in flips]) - 0.5) < 0.08
    assert abs(np.mean([down for _, down in flips]) - 0.25) < 0.08
    assert 0.27 < min(shares) < 0.33 < 0.57 < max(shares) < 0.63
    assert 0.95 < min(ratios) < 1.1 < 1.8 < max(ratios) < 2.1


@pytest.mark.parametrize("settings", [{"rand_augment": "rand-m9-mstd0.5-inc1"}, {"color_jitter": 0.4}])
def test_draws_come_from_the_generator_alone(settings, photo):
    augmenter = make_augmenter(**settings)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    results = [augmented(augmenter, photo.copy(), seed) for seed in range(8)]
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    random.seed(5)
    torch.manual_seed(5)
    # Sent to a worker, too.
    again = pickle.loads(pickle.dumps(augmenter))
    for seed, result in enumerate(results):
        assert np.array_equal(result, augmented(again, photo.copy(), seed))
    plain = make_augmenter()
    assert sum(not np.array_equal(augmented(plain, photo.copy(), seed), results[seed]) for seed in range(8)) >= 4


def test_color_jitter_has_its_range():
    jitter = ColorJitter(0.4)
    gray = Image.new("RGB", (4, 4), (100, 100, 100))
    values = [np.asarray(jitter(gray, sample_generator(seed))).mean() for seed in range(300)]
    # Contrast and saturation leave an even gray picture as it is, so this is brightness alone.
    assert 59 <= min(values) < 65 < 135 < max(values) <= 141
    colored = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8))
    saturation = [
        np.ptp(np.asarray(jitter(colored, sample_generator(seed))).astype(int), -1).mean() for seed in range(99)
    ]
    assert max(saturation) > 2 * min(saturation)


def test_rand_augment_takes_the_place_of_jitter(photo):
    both = make_augmenter(rand_augment="rand-m9-p0-inc1", color_jitter=0.4)
    assert np.array_equal(augmented(both, photo.copy(), 3), augmented(make_augmenter(), photo.copy(), 3))


def test_uncovered_pixels_have_the_mean():
    augmenter = Augmenter(
        Augmentation(**PLAIN | {"rand_augment": "rand-m10-n1-p1-inc1", "crop_scale": (1.0, 1.0)}),
        *((32, 32), 3, [0.2, 0.4, 0.6]),
    )
    white = Image.new("RGB", (32, 32), "white")
    colors = set()
    for seed in range(40):
        colors |= set(map(tuple, augmented(augmenter, white, seed).reshape(-1, 3).tolist()))
    assert (51, 102, 153) in colors


def test_gray_pictures(photo):
    augmenter = make_augmenter(num_channels=1, rand_augment="rand-m9-p1-inc1")
    gray = photo.convert("L")
    results = [augmented(augmenter, gray.copy(), seed) for seed in range(20)]
    assert all(result.shape == (32, 48, 1) and result.dtype == np.uint8 for result in results)
    plain = make_augmenter(num_channels=1)
    assert (
        sum(not np.array_equal(result, augmented(plain, gray.copy(), seed)) for seed, result in enumerate(results)) > 15
    )


@pytest.mark.parametrize("num_channels", [3, 5])
def test_other_numbers_keep_their_values_and_nan(num_channels):
    array = np.random.default_rng(0).uniform(100, 200, (num_channels, 60, 60)).astype(np.float32)
    array[:, :20, :20] = np.nan
    augmenter = make_augmenter(num_channels=num_channels, rand_augment="rand-m9-p1-inc1", crop_scale=(1.0, 1.0))
    result = augmented(augmenter, array, 0)
    assert result.dtype == np.float32
    assert np.isnan(result[:8, :12]).all()
    assert np.isfinite(result[16:, 24:]).all()
    assert np.array_equal(
        result, augmented(make_augmenter(num_channels=num_channels, crop_scale=(1, 1)), array, 0), True
    )


def test_erasing():
    augmenter = make_augmenter(random_erasing=0.25)
    shares, values, ratios = [], [], []
    for seed in range(1500):
        image = torch.full((3, 60, 80), 9.0)
        augmenter.erase(image, sample_generator(seed))
        erased = (image != 9).any(0)
        if erased.any():
            rows, columns = erased.any(1).nonzero().flatten(), erased.any(0).nonzero().flatten()
            size = (rows[-1] - rows[0] + 1).item(), (columns[-1] - columns[0] + 1).item()
            assert erased.sum() == size[0] * size[1]
            shares.append(erased.float().mean().item())
            ratios.append(size[0] / size[1])
            values.append(image[:, erased].flatten())
    assert abs(len(shares) / 1500 - 0.25) < 0.035
    assert 0.018 < min(shares) < 0.04 < 0.3 < max(shares) < 0.345
    assert 0.25 < min(ratios) < 0.4 < 2.5 < max(ratios) < 3.7
    noise = torch.cat(values)
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_transform_of_another_library_is_seeded_and_leaves_no_trace(photo):
    def draws(image):
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    transform = SeededTransform(draws)
    random.seed(1)
    expected = random.Random(1).random()
    first = transform(photo, sample_generator(0))
    assert first == transform(photo, sample_generator(0)) != transform(photo, sample_generator(1))
    assert random.random() == expected
