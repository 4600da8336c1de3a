"""Loading, decoding, cropping and masking: reproducible, and never fatal for a bad file among good ones."""

import numpy as np
import pytest
import torch
from image_folders import make_dataset, read_epoch
from PIL import Image

from hf_simmim.data.masked_images import MaskedImageDataset
from hf_simmim.data.sources import load_images


def test_samples(folder):
    sample = make_dataset(folder)[5]
    assert sample["pixel_values"].shape == (3, 32, 48)
    assert sample["pixel_values"].dtype == torch.uint8
    assert sample["bool_masked_pos"].shape == (8 * 12,)
    assert sample["bool_masked_pos"].dtype == torch.bool
    assert sample["bool_masked_pos"].sum() == 4 * 16
    assert sample["unreadable"] == []


def test_masks_of_a_size_that_no_patch_divides(folder):
    dataset = make_dataset(folder, image_size=(50, 70))
    assert (dataset.grid_size, dataset.num_units, dataset.num_masked_units) == ((13, 18), 20, 12)
    sample = dataset[5]
    assert sample["pixel_values"].shape == (3, 50, 70)
    assert sample["bool_masked_pos"].view(13, 18)[::4, ::4].sum() == 12


def test_samples_are_a_function_of_seed_epoch_and_index(folder):
    dataset, again = make_dataset(folder), make_dataset(folder)
    other_seed = make_dataset(folder, seed=1)
    for key in (0, 5, 5 + len(dataset)):
        for name in ("pixel_values", "bool_masked_pos"):
            assert torch.equal(dataset[key][name], again[key][name])
    assert not torch.equal(dataset[5]["pixel_values"], dataset[5 + len(dataset)]["pixel_values"])
    assert not torch.equal(dataset[5]["bool_masked_pos"], dataset[5 + len(dataset)]["bool_masked_pos"])
    assert not torch.equal(dataset[5]["pixel_values"], other_seed[5]["pixel_values"])


@pytest.mark.parametrize("num_workers", [1, 3])
def test_number_of_workers_changes_nothing(folder, num_workers):
    dataset = make_dataset(folder)
    for alone, shared in zip(read_epoch(dataset, 3), read_epoch(dataset, 3, num_workers), strict=True):
        assert torch.equal(alone["pixel_values"], shared["pixel_values"])
        assert torch.equal(alone["bool_masked_pos"], shared["bool_masked_pos"])


def test_evaluation_samples_are_the_same_in_every_epoch(folder):
    dataset = make_dataset(folder, crop_scale=None)
    for name in ("pixel_values", "bool_masked_pos"):
        assert torch.equal(dataset[5][name], dataset[5 + 7 * len(dataset)][name])
    assert not torch.equal(dataset[5]["bool_masked_pos"], dataset[6]["bool_masked_pos"])


def test_gray_pictures_for_one_channel_and_for_three(tmp_path):
    Image.fromarray(np.full((40, 40), 77, np.uint8)).save(tmp_path / "gray.png")
    for num_channels in (1, 3):
        dataset = make_dataset(tmp_path, image_size=(32, 32), num_channels=num_channels)
        assert dataset[0]["pixel_values"].shape == (num_channels, 32, 32)
        assert dataset[0]["pixel_values"].unique().tolist() == [77]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_patch_size": 10}, r"mask_patch_size=10 px is not a multiple of the model's patch size of 4 px"),
        ({"mask_ratio": 1.0}, r"mask_ratio=1\.0 is outside \(0, 1\)"),
        ({"mask_ratio": 0.95}, r"mask_ratio=0\.95 masks all units of the image"),
        ({"mask_strategy": "blocks"}, r"mask_strategy='blocks' is unknown"),
        ({"crop_scale": (0.9, 0.5)}, r"crop_scale=\(0\.9, 0\.5\) must be \(min, max\) in"),
    ],
)
def test_bad_settings_are_refused(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        make_dataset(folder, **settings)


@pytest.mark.parametrize(("mode", "color"), [("RGBA", (200, 100, 50, 0)), ("LA", (200, 0))])
def test_a_last_channel_that_is_no_transparency_leaves_the_others_alone(tmp_path, mode, color):
    """Four bands of a satellite, say, in a file that calls the fourth alpha."""
    Image.new(mode, (40, 60), color).save(tmp_path / "bands.png")
    dataset = make_dataset(tmp_path, image_size=(32, 32), num_channels=len(color))
    assert dataset[0]["pixel_values"].flatten(1).unique(dim=1).flatten().tolist() == list(color)


@pytest.mark.parametrize(("flip", "vertical_flip"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_flips_are_what_is_asked_for(flip, vertical_flip, tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16, :16] = 255
    Image.fromarray(pixels).save(tmp_path / "corner.png")
    settings = {"crop_scale": (1.0, 1.0), "flip": flip, "vertical_flip": vertical_flip, "mask_patch_size": 8}
    dataset = MaskedImageDataset(load_images(tmp_path), (32, 32), 3, 4, **settings)
    rows, columns = np.nonzero(dataset[0]["pixel_values"][0].numpy() > 128)
    assert (rows.mean() > 16, columns.mean() > 16) == (vertical_flip == 1, flip == 1)
    with pytest.raises(ValueError, match="flip=2"):
        MaskedImageDataset(load_images(tmp_path), (32, 32), 3, 4, flip=2)
