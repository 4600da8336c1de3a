"""Pairs of images and class ids: read, checked, and cropped so that they stay on each other."""

import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_scenes import CLASS_NAMES, write_scenes
from torch.utils.data import DataLoader

from hf_simmim.data.labeled.segmentation import (
    CollatePairs,
    PixelSettings,
    SegmentationDataset,
    SegmentationLabels,
    check_pairs,
    distort_colors,
    load_folder,
)
from hf_simmim.data.sampling import sample_generator

PLAIN = PixelSettings(3, 1 / 255, [0.0] * 3, [1.0] * 3)
LABELS = SegmentationLabels(list(CLASS_NAMES))


def write_pair(folder, image: np.ndarray | Image.Image, ids: np.ndarray | Image.Image, name: str = "a") -> None:
    """One pair of PNG files."""
    for part, content in (("images", image), ("masks", ids)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        picture = content if isinstance(content, Image.Image) else Image.fromarray(content)
        picture.save(folder / part / f"{name}.png")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return load_folder(write_scenes(tmp_path_factory.mktemp("scenes") / "data", 8))


@pytest.fixture
def blocks(tmp_path):
    """Blocks of 20 px whose class is their brightness over 100, the last ones of class none."""
    ids = np.random.default_rng(0).integers(0, 3, (4, 5)).astype(np.uint8).repeat(20, 0).repeat(20, 1)
    write_pair(tmp_path, (ids[..., None] * 100).repeat(3, -1), ids)
    return load_folder(tmp_path)


def test_crops_and_annotations_lie_on_each_other(blocks):
    """At every scale, place and flip; smoothing mixes pixels at the borders of blocks only."""
    dataset = SegmentationDataset(blocks, LABELS, PLAIN, short_side=80, crop_size=(64, 48), max_class_share=1.0)
    agreement = []
    for epoch in range(20):
        dataset.set_epoch(epoch)
        sample = dataset[0]
        assert sample["pixel_values"].shape == (3, 64, 48)
        assert sample["labels"].shape == (64, 48)
        inside = sample["labels"] != LABELS.ignore_index
        # Distortion of gray changes brightness and contrast, so each class keeps a level of its own.
        levels = [sample["pixel_values"][0][sample["labels"] == index].median() for index in range(3)]
        seen = torch.stack([level for level in levels if not level.isnan()])
        nearest = (sample["pixel_values"][0][..., None] - seen).abs().argmin(-1)
        present = torch.tensor([index for index, level in enumerate(levels) if not level.isnan()])
        agreement.append((present[nearest] == sample["labels"])[inside].float().mean())
    # Where bright classes are clipped to one they cannot be told.
    assert torch.stack(agreement).median() > 0.9


def test_small_images_are_padded_with_no_class(blocks):
    dataset = SegmentationDataset(blocks, LABELS, PLAIN, short_side=80, crop_size=(120, 200), scales=(0.5, 0.5))
    sample = dataset[0]
    assert (sample["labels"] != LABELS.ignore_index).sum() == 40 * 50
    assert (sample["labels"][40:] == LABELS.ignore_index).all()
    assert (sample["pixel_values"][:, 40:] == 0).all()


def test_no_class_takes_too_much_of_a_crop(tmp_path):
    ids = np.zeros((100, 400), np.uint8)
    ids[:, 300:] = 1
    write_pair(tmp_path, np.zeros((100, 400, 3), np.uint8), ids)
    pairs = load_folder(tmp_path)
    found = []
    for share in (0.75, 1.0):
        dataset = SegmentationDataset(
            pairs, LABELS, PLAIN, crop_size=(100, 100), scales=(1.0, 1.0), max_class_share=share
        )
        count = 0
        for epoch in range(40):
            dataset.set_epoch(epoch)
            largest = dataset[0]["labels"].flatten().bincount().max()
            count += int(largest < 0.75 * 100 * 100)
        found.append(count)
    assert found[0] > 2 * found[1] > 0


def test_samples_are_a_function_of_seed_epoch_and_index(scenes):
    def sample(seed, epoch):
        dataset = SegmentationDataset(scenes, LABELS, PLAIN, 64, (48, 48), seed)
        dataset.set_epoch(epoch)
        return dataset[3]["pixel_values"]

    assert torch.equal(sample(0, 1), sample(0, 1))
    assert not torch.equal(sample(0, 1), sample(0, 2))
    assert not torch.equal(sample(0, 1), sample(1, 1))


def test_worker_processes_that_live_on_learn_the_epoch(scenes):
    dataset = SegmentationDataset(scenes, LABELS, PLAIN, 64, (48, 48))
    loader = DataLoader(dataset, batch_size=8, num_workers=1, persistent_workers=True, collate_fn=CollatePairs(4, 255))
    batches = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        batches.append(next(iter(loader))["pixel_values"])
    assert torch.equal(batches[1], torch.stack([dataset[index]["pixel_values"] for index in range(8)]))
    assert not torch.equal(*batches)


def test_whole_images_keep_their_annotation(scenes):
    dataset = SegmentationDataset(scenes, LABELS, PLAIN, short_side=40)
    samples = [dataset[index] for index in range(3)]
    for sample, row, image in zip(samples, scenes.annotations, scenes.images, strict=False):
        stored = np.asarray(Image.open(row["image"]["path"]))
        assert (sample["annotation"].numpy() == stored).all()
        assert min(sample["pixel_values"].shape[1:]) == 40
        assert Image.open(image["image"]["path"]).size == stored.shape[::-1]
    batch = CollatePairs(16, 255)(samples)
    height, width = batch["pixel_values"].shape[2:]
    assert (height % 16, width % 16) == (0, 0)
    for index, sample in enumerate(samples):
        h, w, *size = batch["sizes"][index].tolist()
        assert torch.equal(batch["pixel_values"][index, :, :h, :w], sample["pixel_values"])
        assert (batch["labels"][index, h:] == 255).all()
        assert torch.equal(batch["annotations"][index, : size[0] * size[1]].view(size), sample["annotation"])
        assert (batch["annotations"][index, size[0] * size[1] :] == 255).all()


def test_pixels_that_are_none_have_no_class(tmp_path):
    array = np.full((5, 32, 32), 700, np.float32)
    array[0] = np.arange(32)
    array[:, :8] = np.nan
    for part, content in (("images", array), ("masks", np.ones((32, 32), np.int64))):
        (tmp_path / part).mkdir()
        np.save(tmp_path / part / "a.npy", content)
    pixels = PixelSettings(5, 1 / 1000, [0.0] * 5, [1.0] * 5)
    sample = SegmentationDataset(load_folder(tmp_path), LABELS, pixels)[0]
    assert sample["pixel_values"].isfinite().all()
    assert (sample["labels"][:8] == 255).all()
    assert (sample["labels"][8:] == 1).all()
    assert sample["pixel_values"][1, 20, 20] == pytest.approx(0.7)


def test_distortion_is_for_pictures_of_8_bits():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    distorted = [distort_colors(pixels, sample_generator(seed)) for seed in range(40)]
    assert all(array.dtype == np.uint8 and array.shape == pixels.shape for array in distorted)
    changed = sum(not np.array_equal(array, pixels) for array in distorted)
    assert 30 < changed < 40  # all but one in sixteen
    means = [float(array.mean()) for array in distorted]
    assert max(means) - min(means) > 30


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (np.array([[0, 1], [2, 255]], np.uint8), [[255, 0], [1, 255]]),
        (np.array([[0, 300], [2, 255]], np.uint16), None),
    ],
)
def test_reduced_labels(tmp_path, ids, expected):
    write_pair(tmp_path, np.zeros((2, 2, 3), np.uint8), ids)
    row = load_folder(tmp_path).annotations[0]
    labels = SegmentationLabels(["a", "b"], reduce_labels=True)
    if expected is None:
        with pytest.raises(ValueError, match="has the value 300; the 2 classes are 1 to 2, and 255 is ignored"):
            labels.read(row)
    else:
        assert labels.read(row).tolist() == expected


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros((3, 4), np.uint8), "has 3x4 pixels and its image 4x4"),
        (np.full((4, 4), 3, np.uint8), "has the value 3; the 3 classes are 0 to 2, and 255 is ignored"),
        (np.zeros((4, 4, 3), np.uint8), "mode RGB: convert its colors to class ids"),
    ],
)
def test_bad_annotations_are_named(tmp_path, ids, message):
    write_pair(tmp_path, np.zeros((4, 4, 3), np.uint8), ids)
    with pytest.raises(ValueError, match=message) as error:
        check_pairs(load_folder(tmp_path), LABELS, 3, 1 / 255)
    assert "a.png" in str(error.value)


def test_check_counts_the_pixels_of_classes(tmp_path):
    write_pair(tmp_path, np.zeros((2, 3, 3), np.uint8), np.array([[0, 0, 1], [255, 1, 1]], np.uint8))
    write_pair(tmp_path, np.zeros((1, 2, 3), np.uint8), np.array([[0, 4]], np.uint8), "b")
    pairs = load_folder(tmp_path)
    assert check_pairs(pairs, None, 3, 1 / 255).largest == 4
    assert check_pairs(pairs, SegmentationLabels([str(index) for index in range(6)]), 3, 1 / 255).pixels.tolist() == [
        *(3, 3, 0, 0, 1, 0)
    ]


def test_images_without_masks_are_refused(tmp_path, caplog):
    write_pair(tmp_path, np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8))
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "b.png")
    with pytest.raises(ValueError, match=r"1 of 2 images .* have no mask .* first is 'b'"):
        load_folder(tmp_path)
    (tmp_path / "images" / "b.png").unlink()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "a.jpg")
    with pytest.raises(ValueError, match="holds 'a' twice"):
        load_folder(tmp_path)
