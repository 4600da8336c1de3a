"""Clusters of colors."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from photos import write_photos
from PIL import Image
from tiny import swin_config

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling
from hf_simmim.data.image_statistics import fit_color_clusters
from hf_simmim.data.reading import NoReadableImageError
from hf_simmim.data.sources import load_images


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, 12, unreadable=2)
    return load_images(folder)


def save_colors(folder, *images):
    """One `.npy` file for each list of colors."""
    for index, colors in enumerate(images):
        np.save(folder / f"{index}.npy", np.array(colors)[None])
    return load_images(folder)


def test_centers_of_photos(photos):
    """They are the same every time, distinct and sorted, and fit the pixels better than a grid of as many colors."""
    centers = fit_color_clusters(photos, num_clusters=27, pixels_per_image=300)
    assert fit_color_clusters(photos, num_clusters=27, pixels_per_image=300) == centers
    assert fit_color_clusters(photos, num_clusters=27, pixels_per_image=300, seed=1) != centers
    assert len(centers) == 27
    assert centers == sorted({tuple(center): center for center in centers}.values())
    assert all(0 <= number <= 1 and round(number, 6) == number for center in centers for number in center)
    readable = [row for row in photos["name"] if "unreadable" not in row]
    pixels = torch.cat([torch.from_numpy(np.array(Image.open(name).convert("RGB"))).view(-1, 3) for name in readable])
    pixels = pixels[::97] / 255
    steps = (torch.arange(3) + 0.5) / 3
    grid = torch.cartesian_prod(steps, steps, steps)
    error, grid_error = (
        torch.cdist(pixels, colors).min(dim=1).values.mean() for colors in (torch.tensor(centers), grid)
    )
    assert error < 0.5 * grid_error


def test_clusters_are_found(tmp_path):
    """Three clouds of colors of very different sizes."""
    rng = np.random.default_rng(0)
    middles = np.array([[40, 50, 60], [200, 60, 120], [90, 220, 230]])
    colors = np.repeat(middles, (4000, 900, 100), axis=0) + rng.normal(0, 3, (5000, 3))
    images = save_colors(tmp_path, *rng.permutation(colors).round().astype(np.uint8).reshape(5, 1000, 3))
    centers = fit_color_clusters(images, num_clusters=3)
    np.testing.assert_allclose(centers, middles[np.argsort(middles[:, 0])] / 255, atol=0.005)


def test_a_model_takes_the_centers(photos, tmp_path):
    centers = fit_color_clusters(photos, num_clusters=16, pixels_per_image=100)
    options = {"centers": centers}
    config = SimMIMConfig(encoder_config=swin_config(), target="color_clusters", target_options=options)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["target_options"] == options
    assert SimMIMForMaskedImageModeling(SimMIMConfig.from_pretrained(tmp_path)).target.num_outputs == 16


def test_fewer_colors_than_clusters(tmp_path, caplog):
    images = save_colors(tmp_path, np.repeat(np.uint8([[0], [51], [255], [51]]), 3, axis=1))
    assert fit_color_clusters(images) == [[0.0] * 3, [0.2] * 3, [1.0] * 3]
    assert "3 colors" in caplog.text
    images = save_colors(tmp_path, np.uint8([[0], [51], [255], [51]]))
    assert fit_color_clusters(images, num_channels=1) == [[0.0], [0.2], [1.0]]


def test_one_color_is_no_clusters(tmp_path):
    images = save_colors(tmp_path, np.uint8([[51, 0, 255]] * 4))
    with pytest.raises(ValueError, match=r"All 4 sampled pixels .* the color \[0.2, 0.0, 1.0\] .* Check the images"):
        fit_color_clusters(images)


def test_missing_values_are_no_colors(tmp_path):
    """In files of either order of axes, and in data sets of lists; nor are the means that stand for them."""
    pixels = np.full((5, 4, 2), 0.25)
    pixels[0] = (0.5, 0.75)
    pixels[1, 0, 0], pixels[2, 1, 1], pixels[3, 2] = np.nan, np.inf, 1e300
    expected = [[0.25, 0.25], [0.5, 0.75]]
    for order in ((0, 1, 2), (2, 0, 1)):
        folder = tmp_path / str(order)
        folder.mkdir()
        np.save(folder / "0.npy", pixels.transpose(order))
        assert fit_color_clusters(load_images(folder), num_channels=2, rescale_factor=1.0) == expected
    features = Features({"image": List(List(List(Value("float64"))))})
    Dataset.from_dict({"image": [pixels.tolist()]}, features=features).save_to_disk(str(tmp_path / "saved"))
    images = load_images(dataset_name=str(tmp_path / "saved"))
    assert fit_color_clusters(images, num_channels=2, rescale_factor=1.0) == expected


def test_nodata_is_no_color(tmp_path):
    """In arrays and in pictures."""
    colors = [[7, 7, 7], [0, 51, 7], [255, 51, 0], [7, 7, 7]]
    np.save(tmp_path / "0.npy", np.uint8([colors]))
    Image.fromarray(np.uint8([colors])).save(tmp_path / "1.png")
    images = load_images(tmp_path)
    assert len(fit_color_clusters(images)) == 3
    assert fit_color_clusters(images, nodata=7) == [[0.0, 0.2, round(7 / 255, 6)], [1.0, 0.2, 0.0]]


def test_numbers_are_rescaled_and_clipped(tmp_path):
    images = save_colors(tmp_path, np.uint16([[0, 1000], [5000, 20000], [2500, 10000]]))
    centers = fit_color_clusters(images, num_channels=2, rescale_factor=1 / 10000)
    assert centers == [[0.0, 0.1], [0.25, 1.0], [0.5, 1.0]]


def test_the_sample_is_bounded(tmp_path):
    """Of five images the first, the middle one and the last, and of each as many pixels as asked for."""
    images = save_colors(tmp_path, *(np.uint8([[index, pixel, 0] for pixel in range(200)]) for index in range(5)))
    centers = np.array(fit_color_clusters(images, max_images=3, pixels_per_image=20))
    reds, counts = np.unique(np.rint(centers[:, 0] * 255), return_counts=True)
    assert reds.tolist() == [0, 2, 4]
    assert counts.max() <= 20
    assert counts.min() > 12
    greens = {tuple(centers[np.rint(centers[:, 0] * 255) == red, 1]) for red in reds}
    assert len(greens) == 3


def test_nothing_to_fit(tmp_path, photos):
    with pytest.raises(ValueError, match="num_clusters=1 must be 2 or more"):
        fit_color_clusters(photos, num_clusters=1)
    images = save_colors(tmp_path, np.uint8([[1, 2, 3, 4]]))
    with pytest.raises(NoReadableImageError, match=r"None of 1 images can be read to fit color clusters; .*0\.npy"):
        fit_color_clusters(images, num_channels=5)
