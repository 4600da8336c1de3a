"""The augmentation against timm's; `make test-torchvision` runs this where timm can be."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from photos import random_photo
from PIL import Image

from hf_simmim.data.labeled.augmentation import (
    BACKENDS,
    Augmentation,
    Augmenter,
    ColorJitter,
    SeededTransform,
    color_changes,
)
from hf_simmim.data.labeled.mixing import cutmix, mixup, random_region, soft_targets
from hf_simmim.data.labeled.rand_augment import OPERATIONS, Canvas, RandAugment
from hf_simmim.data.sampling import sample_generator

pytest.importorskip("timm")
timm_mixup = pytest.importorskip("timm.data.mixup")
auto_augment = pytest.importorskip("timm.data.auto_augment")

FILL = (124, 116, 104)
RELEASED = "rand-m9-mstd0.5-inc1"


def settings(mode: str) -> dict:
    return {"img_mean": FILL[: len(mode)], "interpolation": Image.Resampling.BICUBIC}


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_timms(name, mode, monkeypatch):
    image = random_photo(np.random.default_rng(0), (224, 160)).convert(mode)
    is_signed, operation = OPERATIONS[name]
    for sign in (1, -1) if is_signed else (1,):
        monkeypatch.setattr(auto_augment, "_randomly_negate", lambda value, sign=sign: value * sign)
        for magnitude in (0, 0.3, 3, 5.5, 9, 9.7, 10):
            ours = operation(image, sign * magnitude / 10, Canvas(FILL[: len(mode)], Image.Resampling.BICUBIC))
            try:
                theirs = auto_augment.AugmentOp(name, 1, magnitude, settings(mode))(image)
            except ValueError:
                # Newer versions of Pillow refuse to keep no bits.
                assert name.startswith("Posterize")
                theirs = Image.new(mode, image.size)
            assert np.array_equal(np.asarray(ours), np.asarray(theirs)), (sign, magnitude)


@pytest.mark.parametrize("policy", [RELEASED, "rand-m7-n3-p0.8-mstd101", "rand-m12-mmax15-mstd2"])
def test_draws_are_distributed_as_timms(policy, monkeypatch):
    theirs = auto_augment.rand_augment_transform(policy, settings("RGB"))
    ours = RandAugment(policy, FILL)
    assert [operation.name for operation in theirs.ops] == ours.names
    applied: list[tuple[str, float]] = []
    for operation in theirs.ops:
        operation.aug_fn = lambda image, *args, **kwargs: image
        operation.level_fn = lambda level, _, name=operation.name: applied.append((name, level / 10)) or ()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    for _ in range(6000):
        theirs(None)
    generator = sample_generator(0)
    drawn = [(name, abs(level)) for _ in range(6000) for name, level in ours.draw(generator)]
    assert abs(len(drawn) / len(applied) - 1) < 0.04
    counts, their_counts = Counter(name for name, _ in drawn), Counter(name for name, _ in applied)
    assert all(abs(counts[name] / their_counts[name] - 1) < 0.25 for name in ours.names)
    quantiles = np.linspace(0, 1, 21)
    difference = [np.quantile([level for _, level in draws], quantiles)[1:-1] for draws in (drawn, applied)]
    assert np.abs(difference[0] - difference[1]).max() < 0.03


@pytest.mark.parametrize("backend", ["timm", "auto"])
def test_backend_is_timm_and_seeded(backend):
    image = random_photo(np.random.default_rng(3), (64, 48))
    augmenter = Augmenter(Augmentation(backend=backend), (48, 48), 3, [0.485, 0.456, 0.406])
    change = color_changes(augmenter.augmentation, FILL, Image.Resampling.BICUBIC)
    assert isinstance(change, SeededTransform)
    assert isinstance(change.transform, auto_augment.RandAugment)
    state = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first = [np.asarray(change(image, sample_generator(seed))) for seed in range(20)]
    assert random.getstate() == state[0]
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state[2])
    again = [np.asarray(change(image, sample_generator(seed))) for seed in range(20)]
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
    assert sum(not np.array_equal(result, np.asarray(image)) for result in first) > 10


def test_strongest_posterizing_fails_nowhere():
    augmentation = Augmentation(backend="timm", rand_augment="rand-m10-n6-p1-inc1")
    change = color_changes(augmentation, FILL, Image.Resampling.BICUBIC)
    image = random_photo(np.random.default_rng(3), (16, 16))
    for seed in range(60):
        change(image, sample_generator(seed))


@pytest.mark.parametrize("backend", BACKENDS)
def test_color_jitter_is_as_torchvisions(backend):
    """Its own, whatever is installed: a seed draws the same with every backend."""
    ours = color_changes(Augmentation(backend=backend, rand_augment=None), FILL, Image.Resampling.BICUBIC)
    assert isinstance(ours, ColorJitter)
    theirs = SeededTransform(pytest.importorskip("torchvision.transforms.v2").ColorJitter(0.4, 0.4, 0.4))
    image = random_photo(np.random.default_rng(3), (32, 32))
    means = [
        np.array([np.asarray(change(image, sample_generator(seed))).mean() for seed in range(400)])
        for change in (ours, theirs)
    ]
    assert abs(means[0].mean() - means[1].mean()) < 6
    assert abs(means[0].std() / means[1].std() - 1) < 0.15


@pytest.mark.parametrize("size", [(32, 48), (33, 17)])
def test_mixing_is_timms(size, monkeypatch):
    images, labels = torch.randn(6, 3, *size), torch.arange(6) % 4
    targets, flipped = soft_targets(labels, 4, 0.1), torch.arange(6).flip(0)
    for lam in (0.2, 0.75):
        mixer = timm_mixup.Mixup(0.8, 0, label_smoothing=0.1, num_classes=4)
        monkeypatch.setattr(mixer, "_params_per_batch", lambda lam=lam: (lam, False))
        expected = mixer(images.clone(), labels)
        for ours, theirs in zip(mixup(images, targets, lam, flipped), expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6)
        center = (5, 9)
        draws = iter(center)
        monkeypatch.setattr(np.random, "randint", lambda *args, draws=draws, **kwargs: next(draws))
        monkeypatch.setattr(mixer, "_params_per_batch", lambda lam=lam: (lam, True))
        expected = mixer(images.clone(), labels)
        again = iter(center)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randint", lambda *args, draws=again, **kwargs: torch.tensor(next(draws)))
            region = random_region(size, lam, None)
        for ours, theirs in zip(cutmix(images, targets, region, flipped), expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6)
