"""Mixup and CutMix: what is mixed, how much of it, and that it depends on nothing but seed and samples."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from hf_simmim.data.labeled.mixing import MixingCollator, cutmix, mixup, random_beta, random_region, soft_targets


def samples(batch_size: int = 4, labels=None, epoch: int = 0, size=(16, 24)) -> list[dict]:
    """Images of one value each: their number."""
    labels = [index % 3 for index in range(batch_size)] if labels is None else labels
    return [
        {"pixel_values": torch.full((2, *size), float(index)), "labels": label, "key": f"{epoch}:{index}"}
        for index, label in enumerate(labels)
    ]


def test_mixup():
    images, targets = torch.randn(4, 3, 8, 6), torch.eye(4)
    permutation = torch.tensor([1, 0, 3, 2])
    mixed, labels = mixup(images, targets, 0.7, permutation)
    assert torch.allclose(mixed[2], 0.7 * images[2] + 0.3 * images[3])
    assert torch.allclose(labels[2], torch.tensor([0, 0, 0.7, 0.3]))


def test_cutmix():
    images, targets = torch.randn(4, 3, 8, 6), torch.eye(4)
    before = images.clone()
    mixed, labels = cutmix(images, targets, (2, 1, 6, 4), torch.arange(4).flip(0))
    assert torch.equal(images, before)
    inside = torch.zeros(8, 6, dtype=torch.bool)
    inside[2:6, 1:4] = True
    assert torch.equal(mixed[0][:, inside], images[3][:, inside])
    assert torch.equal(mixed[0][:, ~inside], images[0][:, ~inside])
    assert torch.allclose(labels[0], torch.tensor([0.75, 0, 0, 0.25]))


def test_soft_targets():
    targets = soft_targets(torch.tensor([2, 0]), 4, 0.1)
    assert torch.allclose(targets, torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]))
    logits = torch.randn(2, 4)
    expected = functional.cross_entropy(logits, torch.tensor([2, 0]), label_smoothing=0.1)
    assert torch.allclose(functional.cross_entropy(logits, targets), expected)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 5.0])
def test_shares_follow_the_beta_distribution(alpha):
    generator = torch.Generator().manual_seed(0)
    shares = np.array([random_beta(alpha, generator) for _ in range(4000)])
    assert abs(shares.mean() - 0.5) < 0.02
    assert abs(shares.var() / (0.25 / (2 * alpha + 1)) - 1) < 0.06
    state = torch.get_rng_state()
    random_beta(alpha, generator)
    assert torch.equal(torch.get_rng_state(), state)


def test_tiny_alphas_are_a_coin():
    generator = torch.Generator().manual_seed(0)
    assert {random_beta(1e-6, generator) for _ in range(50)} == {0.0, 1.0}


def test_regions():
    generator = torch.Generator().manual_seed(0)
    regions = [random_region((32, 48), 0.75, generator) for _ in range(500)]
    sizes = {(bottom - top, right - left) for top, left, bottom, right in regions}
    assert max(sizes) == (16, 24)
    assert len(sizes) > 50, "none is cut off at the border"
    assert all(0 <= top <= bottom <= 32 and 0 <= left <= right <= 48 for top, left, bottom, right in regions)
    top, left, bottom, right = random_region((32, 48), 1.0, generator)
    assert (top, left) == (bottom, right)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_labels_are_the_shares_of_the_pixels(batch_size):
    """However an image was mixed, its mean tells how much of which image is in it, and so must its labels."""
    kinds = set()
    for epoch in range(12):
        labels = list(range(batch_size))
        collate = MixingCollator(batch_size, label_smoothing=0.0)
        batch = collate(samples(batch_size, labels, epoch))
        assert batch["pixel_values"].shape == (batch_size, 2, 16, 24)
        assert batch["labels"].shape == (batch_size, batch_size)
        assert torch.allclose(batch["labels"].sum(1), torch.ones(batch_size))
        means = batch["pixel_values"].mean(dim=(1, 2, 3))
        assert torch.allclose(batch["labels"] @ torch.arange(float(batch_size)), means, atol=1e-4)
        kinds.add("mixup" if batch["pixel_values"][0].unique().numel() == 1 else "cutmix")
    if batch_size > 1:
        assert kinds == {"mixup", "cutmix"}


def test_smoothing_is_of_every_label():
    batch = MixingCollator(3, label_smoothing=0.3)(samples(4))
    assert torch.allclose(batch["labels"].sum(1), torch.ones(4))
    assert batch["labels"].min() >= 0.1 - 1e-6
    alone = MixingCollator(3, 0.0, 0.0, label_smoothing=0.3)(samples(4))
    assert torch.allclose(alone["labels"], soft_targets(torch.tensor([0, 1, 2, 0]), 3, 0.3))
    assert torch.equal(alone["pixel_values"][1], samples(4)[1]["pixel_values"])


def test_nothing_to_mix_leaves_the_labels():
    for settings in ({"mixup_alpha": 0.0, "cutmix_alpha": 0.0}, {"probability": 0.0}):
        batch = MixingCollator(3, label_smoothing=0.0, **settings)(samples(4))
        assert torch.equal(batch["labels"], torch.tensor([0, 1, 2, 0]))
        assert set(batch) == {"pixel_values", "labels"}


def test_evaluation_is_not_mixed():
    batch = MixingCollator(3)([sample | {"key": ""} for sample in samples(4)])
    assert torch.equal(batch["labels"], torch.tensor([0, 1, 2, 0]))
    assert torch.equal(batch["pixel_values"], torch.stack([sample["pixel_values"] for sample in samples(4)]))


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({}, 0.5),
        ({"switch_probability": 0.9}, 0.9),
        ({"mixup_alpha": 0.0}, 1.0),
        ({"cutmix_alpha": 0.0}, 0.0),
        ({"switch_probability": 0.0}, 0.0),
    ],
)
def test_how_often_it_is_cutmix(settings, share):
    collate = MixingCollator(3, **settings)
    count = 0
    for epoch in range(300):
        image = collate(samples(4, epoch=epoch, size=(8, 8)))["pixel_values"][0]
        count += set(image.unique().tolist()) <= {0.0, 3.0}
    assert abs(count / 300 - share) < 0.08


def test_how_often_it_is_mixed():
    collate = MixingCollator(3, probability=0.3, cutmix_alpha=0.0)
    batches = [collate(samples(2, epoch=epoch))["pixel_values"] for epoch in range(300)]
    assert abs(np.mean([batch[0].unique().item() != 0 for batch in batches]) - 0.3) < 0.08


def test_draws_depend_on_seed_epoch_and_indices():
    first = MixingCollator(3)(samples(4))
    state = torch.get_rng_state()
    assert torch.equal(MixingCollator(3)(samples(4))["labels"], first["labels"])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(MixingCollator(3, seed=1)(samples(4))["labels"], first["labels"])
    assert not torch.equal(MixingCollator(3)(samples(4, epoch=1))["labels"], first["labels"])
    others = [sample | {"key": "0:9"} for sample in samples(4)]
    assert not torch.equal(MixingCollator(3)(others)["labels"], first["labels"])


def test_several_classes_are_mixed_and_not_smoothed():
    labels = [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    batch = MixingCollator(3, cutmix_alpha=0.0)(samples(2, labels))
    lam = 1 - batch["pixel_values"][0, 0, 0, 0]
    assert torch.allclose(batch["labels"][0], torch.stack([lam, torch.zeros(()), torch.ones(())]), atol=1e-6)


def test_numbers():
    with pytest.raises(ValueError, match="Float labels cannot be mixed or smoothed. Set mixup_alpha"):
        MixingCollator(1)(samples(2, [0.5, 1.5]))
    plain = MixingCollator(1, 0.0, 0.0, label_smoothing=0.0)(samples(2, [0.5, 1.5]))
    assert torch.equal(plain["labels"], torch.tensor([0.5, 1.5]))


def test_lost_keys():
    bare = [{name: sample[name] for name in ("pixel_values", "labels")} for sample in samples(2)]
    with pytest.raises(ValueError, match="The samples have no `key`.* Set remove_unused_columns=False"):
        MixingCollator(3)(bare)


@pytest.mark.parametrize(
    "settings", [{"mixup_alpha": -1}, {"cutmix_alpha": -0.1}, {"probability": 2}, {"label_smoothing": 1.5}]
)
def test_errors(settings):
    with pytest.raises(ValueError, match="must"):
        MixingCollator(3, **settings)
