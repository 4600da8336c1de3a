"""The ways of probing take from the network what they say."""

import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from paths import ROOT
from tiny import swin_config, vit_config

sys.path.insert(0, str(ROOT))  # as for `python -m` that is run from there

from benchmarks.frozen_features import MASK_RATIO, Subject, batches, features_of
from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMImageProcessor
from hf_simmim.data.labeled.images import LabeledImages

PAIRS = [(1, "mean"), (2, "cls"), (None, "mean")]


def subject(encoder) -> Subject:
    torch.manual_seed(0)
    return Subject("tiny", SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=encoder)), SimMIMImageProcessor())


def images(count: int = 6) -> LabeledImages:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 40, 40, 3)).astype(np.uint8)
    rows = {"image": list(pixels), "name": [*map(str, range(count))], "label": [0, 1] * (count // 2)}
    return LabeledImages(
        Dataset.from_dict(rows).with_format("numpy", columns=["image"], output_all_columns=True), ["a", "b"]
    )


def test_features_are_of_the_token_and_the_masked_patches():
    network, data = subject(vit_config()), images()
    found = features_of(network, data, PAIRS)
    pixels = next(iter(batches(data, network)))["pixel_values"]
    encoder = network.model.base_model.encoder
    with torch.no_grad():
        plain = encoder(pixels, output_hidden_states=True)
        num_tokens = plain.last_hidden_state.shape[1] - 1
        order = torch.rand(6, num_tokens, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
        masked = network.model.base_model(pixels, bool_masked_pos=order < round(MASK_RATIO * num_tokens))
    torch.testing.assert_close(found.token, plain.last_hidden_state[:, 0])
    torch.testing.assert_close(found.masked_mean, masked.feature_map.mean(dim=(2, 3)))
    torch.testing.assert_close(found.pairs[1, "mean"], plain.hidden_states[1][:, 1:].mean(dim=1))
    torch.testing.assert_close(found.pairs[2, "cls"], plain.hidden_states[2][:, 0])
    torch.testing.assert_close(found.pairs[None, "mean"], plain.last_hidden_state[:, 1:].mean(dim=1))
    assert not torch.allclose(found.masked_mean, found.pairs[None, "mean"])


def test_encoders_without_tokens_are_refused():
    with pytest.raises(ValueError, match="has no class token"):
        features_of(subject(swin_config()), images(), [(None, "mean")])
