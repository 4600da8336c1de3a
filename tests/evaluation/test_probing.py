"""Features of frozen encoders, and what probes make of them, against naive counts and scikit-learn."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from tiny import ENCODER_CONFIGS, batch, swin_config, vit_config

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMModel
from hf_simmim.evaluation.probing import (
    PENALTIES,
    candidate_pairs,
    choose_pair,
    extract_features,
    extract_layers,
    extract_pairs,
    knn,
    linear_probe,
)


def blobs(num_images, num_classes=7, dimensions=12, distance=1.0, seed=0):
    """Features around a center for each class, of very different scales, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    centers = distance * torch.randn(num_classes, dimensions, generator=torch.Generator().manual_seed(100))
    labels = torch.randint(num_classes, (num_images,), generator=generator)
    features = centers[labels] + torch.randn(num_images, dimensions, generator=generator)
    return 3 + features * torch.logspace(-2, 2, dimensions), labels


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return SimMIMModel(SimMIMConfig(encoder_config=vit_config())).eval()


@pytest.mark.parametrize("name", ENCODER_CONFIGS)
def test_every_layer_of_every_encoder_gives_features(name):
    torch.manual_seed(0)
    config = SimMIMConfig(encoder_config=ENCODER_CONFIGS[name]())
    model = SimMIMModel(config)
    pixel_values, _ = batch(config, 3)
    output, last = extract_layers(model, [pixel_values[:2], pixel_values[2:]], [None, -1], progress=False)
    with torch.no_grad():
        expected = model.eval()(pixel_values).pooler_output
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)
    assert last.shape[0] == 3
    assert last.std(dim=0).min() >= 0


def test_poolings_of_a_layer(vit):
    pixel_values, _ = batch(vit.config, 2)
    with torch.no_grad():
        state = vit(pixel_values, output_hidden_states=True).hidden_states[1]
    patches = state[:, 1:]
    expected = {
        "mean": patches.mean(1),
        "max": patches.amax(1),
        "cls": state[:, 0],
        "mean_std": torch.cat([patches.mean(1), patches.std(1, correction=0)], 1),
    }
    # In the order of channels, each with its four quarters.
    quarters = patches.reshape(2, 2, 2, 2, 2, -1).mean(dim=(2, 4)).flatten(1, 2)
    expected["grid2"] = quarters.transpose(1, 2).flatten(1)
    for pooling, features in expected.items():
        actual = extract_features(vit, [pixel_values], layer=1, pooling=pooling, progress=False)
        torch.testing.assert_close(actual, features, msg=pooling)


def test_layers_are_counted_as_hidden_states(vit):
    pixel_values, _ = batch(vit.config, 2)
    first, second, last = extract_layers(vit, [{"pixel_values": pixel_values}], [0, 2, -1], progress=False)
    torch.testing.assert_close(second, last)
    assert not torch.allclose(first, last)


@pytest.mark.parametrize(
    ("layer", "pooling", "message"),
    [(3, "mean", "has 3 hidden states.*-3 to 2"), (-4, "mean", "3 hidden states"), (1, "median", "mean, max, cls")],
)
def test_what_there_is_not_is_refused(vit, layer, pooling, message):
    with pytest.raises(ValueError, match=message):
        extract_features(vit, [batch(vit.config)[0]], layer=layer, pooling=pooling, progress=False)


def test_the_class_token_of_an_encoder_without_one_is_refused():
    model = SimMIMModel(SimMIMConfig(encoder_config=swin_config()))
    with pytest.raises(ValueError, match="'swin' has no class token"):
        extract_features(model, [batch(model.config)[0]], pooling="cls", progress=False)


def test_no_images_are_refused(vit):
    with pytest.raises(ValueError, match="no images"):
        extract_features(vit, [], progress=False)


def test_images_of_another_size_keep_their_rows_and_columns():
    torch.manual_seed(0)
    model = SimMIMModel(SimMIMConfig(encoder_config=swin_config())).eval()
    pixel_values = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        state = model(pixel_values, output_hidden_states=True).hidden_states[1]
    features = extract_features(model, [pixel_values], layer=1, pooling="grid2", progress=False)
    maps = state if state.ndim == 4 else state.unflatten(1, (16, 8)).permute(0, 3, 1, 2)
    torch.testing.assert_close(features, F.adaptive_avg_pool2d(maps, 2).flatten(1))


def test_a_model_that_trains_is_left_as_it_was():
    torch.manual_seed(0)
    config = SimMIMConfig(encoder_config=swin_config(drop_path_rate=0.5))
    model = SimMIMForMaskedImageModeling(config).train()
    model.head.eval()
    pixel_values, _ = batch(config)
    random_state = torch.get_rng_state()
    first = extract_features(model, [pixel_values], progress=False)
    assert torch.equal(torch.get_rng_state(), random_state)
    # Stochastic depth is off.
    torch.testing.assert_close(first, extract_features(model, [pixel_values], progress=False))
    assert model.simmim.training
    assert model.simmim.encoder.training
    assert not model.head.training
    assert not model.simmim._forward_hooks


def test_statistics_of_batches_are_left_alone():
    config = SimMIMConfig(encoder_config=ENCODER_CONFIGS["resnet"]())
    model = SimMIMForMaskedImageModeling(config).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any("running_mean" in name for name in before)
    extract_features(model, [batch(config)[0]], progress=False)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_linear_probe_equals_scikit_learns():
    train, labels = blobs(400)
    test, test_labels = blobs(200, seed=1)
    result = linear_probe(train, labels, test, test_labels, 7, penalties=[0.02], max_iter=1000)
    mean, std = train.mean(0), train.std(0, correction=0)
    reference = LogisticRegression(C=1 / (0.02 * 400), max_iter=1000, tol=1e-8)
    reference.fit(((train - mean) / std).numpy(), labels.numpy())
    predictions = reference.predict(((test - mean) / std).numpy())
    assert (result.predictions.numpy() == predictions).mean() >= 0.995
    assert result.accuracy == pytest.approx((predictions == test_labels.numpy()).mean(), abs=0.006)
    assert result.accuracy < result.top5_accuracy <= 1
    assert result.penalty == 0.02


def test_the_penalty_that_is_chosen_is_good_and_repeatable():
    train, labels = blobs(60, dimensions=200, distance=0.3)
    test, test_labels = blobs(500, dimensions=200, distance=0.3, seed=1)
    chosen = linear_probe(train, labels, test, test_labels, 7)
    accuracies = [linear_probe(train, labels, test, test_labels, 7, penalties=[p]).accuracy for p in PENALTIES]
    assert chosen.penalty in PENALTIES
    # The strongest, which is tried first, is far too strong for so few images.
    assert chosen.accuracy > accuracies[0] + 0.05
    assert torch.equal(linear_probe(train, labels, test, test_labels, 7).predictions, chosen.predictions)


def test_one_image_of_each_class_is_enough():
    train, labels = torch.eye(3), torch.arange(3)
    for probe in (linear_probe, knn):
        result = probe(train, labels, train, labels, 3)
        assert (result.accuracy, result.top5_accuracy) == (1.0, None)


def test_features_that_are_the_same_in_all_images_do_no_harm():
    train, labels = blobs(100)
    train[:, 3] = 7.0
    result = linear_probe(train, labels, train, labels, 7)
    assert result.accuracy > 0.5


def test_knn_equals_a_naive_loop(monkeypatch):
    train, labels = blobs(150)
    test, test_labels = blobs(40, seed=1)
    expected = []
    for query in test:
        similarity = [float(F.cosine_similarity(query, other, dim=0)) for other in train]
        nearest = np.argsort(similarity)[::-1][:9]
        votes = np.zeros(7)
        for index in nearest:
            votes[labels[index]] += np.exp(similarity[index] / 0.07)
        expected.append(int(votes.argmax()))
    monkeypatch.setattr("hf_simmim.evaluation.probing.MAX_SIMILARITIES", 150 * 16)  # three chunks
    result = knn(train, labels, test, test_labels, 7, k=9)
    assert result.predictions.tolist() == expected
    assert result.accuracy == pytest.approx((result.predictions == test_labels).float().mean().item())


def test_candidates_are_the_output_and_the_second_half(vit):
    deep = SimMIMConfig(encoder_config=vit_config(num_hidden_layers=12))
    layers = [None, 6, 8, 10, 12]
    expected = [(layer, pooling) for pooling in ("mean", "mean_std", "cls") for layer in layers]
    assert candidate_pairs(deep) == expected
    assert candidate_pairs(deep, layer=3) == [(3, "mean"), (3, "mean_std"), (3, "cls")]
    assert candidate_pairs(deep, layer=None, pooling="max") == [(None, "max")]
    # Without a class token, and of stages.
    assert {pooling for _, pooling in candidate_pairs(SimMIMConfig(encoder_config=swin_config()))} == {
        "mean",
        "mean_std",
    }
    with pytest.raises(ValueError, match="layer=99"):
        candidate_pairs(deep, layer=99)
    pixel_values, _ = batch(vit.config, 2)
    pairs = candidate_pairs(vit.config)
    for pair, features in zip(pairs, extract_pairs(vit, [pixel_values], pairs, progress=False), strict=True):
        assert torch.equal(features, extract_features(vit, [pixel_values], *pair, progress=False)), pair


def test_the_choice_is_the_one_that_generalizes():
    """Of noise that tells the training images apart, and of features of the classes; the first of equals."""
    good, labels = blobs(200)
    noise = torch.randn(200, 300, generator=torch.Generator().manual_seed(1))
    assert choose_pair([noise, good, good], labels, 7) == 1
    assert choose_pair([noise, good], torch.arange(200), 200) == 0


def test_near_neighbors_count_more_at_a_low_temperature():
    angles = torch.tensor([0.0, 0.5, 0.5])
    train = torch.stack([angles.cos(), angles.sin()], 1)
    labels, query, truth = [0, 1, 1], torch.tensor([[1.0, 0.0]]), [0]
    assert knn(train, labels, query, truth, 2, temperature=1e-3).predictions.tolist() == [0]
    assert knn(train, labels, query, truth, 2, temperature=10).predictions.tolist() == [1]


def test_balanced_accuracy_counts_classes_alike():
    train, labels = torch.eye(2), torch.arange(2)
    test, test_labels = torch.eye(2)[[0, 0, 0, 0]], torch.tensor([0, 0, 0, 1])
    result = knn(train, labels, test, test_labels, 2, k=1)
    assert (result.accuracy, result.balanced_accuracy) == (0.75, 0.5)


@pytest.mark.parametrize("probe", [linear_probe, knn])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": torch.arange(2)}, "labels"),
        ({"train_labels": torch.tensor([0, 1, 3])}, "from 0 to 2"),
        ({"train": torch.full((3, 3), torch.nan)}, "not finite"),
        ({"test": torch.zeros(0, 3), "test_labels": torch.zeros(0, dtype=torch.int64)}, "shape"),
    ],
)
def test_probes_refuse_what_does_not_fit(probe, change, message):
    good = {"train": torch.eye(3), "train_labels": torch.arange(3), "test": torch.eye(3), "test_labels": [0, 1, 2]}
    with pytest.raises(ValueError, match=message):
        probe(**(good | change), num_classes=3)


def test_probes_refuse_wrong_options():
    features, labels = torch.eye(3), torch.arange(3)
    with pytest.raises(ValueError, match="k=0"):
        knn(features, labels, features, labels, 3, k=0)
    with pytest.raises(ValueError, match="penalties="):
        linear_probe(features, labels, features, labels, 3, penalties=[-1])
