"""Images of any channels and numbers on their way to the model: data sets, processor and statistics agree."""

import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from datasets import Array2D, Array3D, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers.utils import is_torchvision_available

from hf_simmim import SimMIMImageProcessor, SimMIMImageProcessorPil
from hf_simmim.data.image_statistics import channel_statistics
from hf_simmim.data.masked_images import MaskedImageDataset, collate
from hf_simmim.data.reading import NoReadableImageError, check_images
from hf_simmim.data.sources import load_images
from hf_simmim.data.transforms import crop_and_resize, normalize

BACKENDS = [SimMIMImageProcessorPil, *([SimMIMImageProcessor] if is_torchvision_available() else [])]
LARGEST = {"uint8": 255, "uint16": 65535, "int16": 32767, "float32": 1.0}


def smooth_array(dtype: str, channels: int, height: int = 50, width: int = 70, seed: int = 0) -> np.ndarray:
    """Waves, channels first, over the range of the type."""
    generator = np.random.default_rng(seed)
    slopes = generator.uniform(0.02, 0.1, (channels, 1, 1))
    waves = np.sin(slopes * (np.arange(height)[:, None] + 2 * np.arange(width)) + np.arange(channels)[:, None, None])
    numbers = (waves + 1) / 2 if dtype != "int16" else waves
    return (numbers * LARGEST[dtype]).astype(dtype)


def write_folder(folder: Path, dtype: str, channels: int, count: int = 4, suffix: str = ".tif") -> Path:
    folder.mkdir(exist_ok=True)
    for index in range(count):
        array = smooth_array(dtype, channels, seed=index)
        path = folder / f"{index}{suffix}"
        if suffix == ".npy":
            np.save(path, array)
        elif channels == 1:
            tifffile.imwrite(path, array[0], photometric="minisblack")
        else:
            tifffile.imwrite(path, np.moveaxis(array, 0, -1), photometric="minisblack", planarconfig="contig")
    return folder


def make_dataset(images: Dataset, channels: int, **kwargs) -> MaskedImageDataset:
    settings = {"image_size": (50, 70), "num_channels": channels, "patch_size": 4, "mask_patch_size": 16} | kwargs
    return MaskedImageDataset(images, **settings)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("suffix", [".npy", ".tif"])
@pytest.mark.parametrize("channels", [1, 2, 4, 5, 13])
@pytest.mark.parametrize("dtype", LARGEST)
def test_training_and_processor_agree(tmp_path, dtype, channels, suffix, backend):
    """The same file, the same array and the same statistics give the same numbers, all the way to the model."""
    factor = 1 / LARGEST[dtype]
    images = load_images(write_folder(tmp_path / "images", dtype, channels, suffix=suffix))
    dataset = make_dataset(images, channels, crop_scale=None, rescale_factor=factor)
    mean, std = channel_statistics(images, channels, factor)
    batch = collate([dataset[index] for index in range(len(dataset))])
    assert batch["pixel_values"].dtype == (torch.uint8 if dtype == "uint8" else torch.float32)
    trained = normalize(batch["pixel_values"], mean, std, factor)
    assert trained.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert (trained.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3

    processor = backend(size=(50, 70), image_mean=mean, image_std=std, rescale_factor=factor, mask_patch_size=16)
    arrays = [smooth_array(dtype, channels, seed=index) for index in range(4)]
    for inputs in (images["name"][:], arrays, [torch.from_numpy(array) for array in arrays]):
        processed = processor(inputs, do_mask=True, seed=0, return_tensors="pt")
        torch.testing.assert_close(processed["pixel_values"], trained, rtol=0, atol=1e-4)
        assert processed["bool_masked_pos"].shape == batch["bool_masked_pos"].shape == (4, 13 * 18)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("factor", [1 / 255, 1 / 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_training_and_processor_agree_on_16_bit_pictures(tmp_path, channels, factor, backend):
    array = smooth_array("uint16", channels)
    path = tmp_path / "image.tif"
    photometric = "rgb" if channels == 3 else "minisblack"
    tifffile.imwrite(path, np.moveaxis(array, 0, -1).squeeze(), photometric=photometric)
    images = load_images(tmp_path)
    mean, std = [0.4] * channels, [0.3] * channels
    pixels = make_dataset(images, channels, crop_scale=None, rescale_factor=factor)[0]["pixel_values"]
    assert pixels.dtype == (torch.uint8 if factor == 1 / 255 else torch.float32)
    trained = normalize(pixels[None], mean, std, factor)
    expected = (array >> 8) / 255 if factor == 1 / 255 else array / 65535
    np.testing.assert_allclose(trained[0], (expected - 0.4) / 0.3, atol=1e-5)
    processor = backend(size=(50, 70), image_mean=mean, image_std=std, rescale_factor=factor)
    for source in [path, *([Image.open(path)] if channels == 1 else [])]:
        processed = processor(source, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(processed, trained, rtol=0, atol=1e-5)


@pytest.mark.parametrize("box", [(0, 0, 700, 500), (100.5, 30.25, 600, 400)])
def test_arrays_are_resized_as_pictures_are(box):
    array = smooth_array("float32", 5, 500, 700)
    resized = crop_and_resize(array, box, (50, 70), 5)
    assert resized.shape == (50, 70, 5)
    assert resized.dtype == np.float32
    picture = Image.fromarray((array[2] * 255).round().astype(np.uint8))
    exact = np.asarray(picture.resize((70, 50), Image.Resampling.BILINEAR, box=box))
    assert np.abs(resized[..., 2] * 255 - exact).mean() < 0.6
    expected = crop_and_resize(picture, box, (50, 70), 1)[..., 0]
    assert np.abs(resized[..., 2] * 255 - expected).max() < 1.5
    bytes_resized = crop_and_resize((array * 255).round().astype(np.uint8), box, (50, 70), 5)
    assert bytes_resized.dtype == np.uint8
    assert np.abs(bytes_resized[..., 2].astype(float) - expected).max() <= 1


def test_random_crops_of_arrays_are_reproducible_and_flipped(tmp_path):
    images = load_images(write_folder(tmp_path / "images", "uint16", 5))
    first, again = (make_dataset(images, 5, rescale_factor=1 / 65535) for _ in range(2))
    samples = [first[0 + epoch * 4]["pixel_values"] for epoch in range(8)]
    assert torch.equal(samples[3], again[12]["pixel_values"])
    assert samples[0].is_contiguous()
    assert len({sample.sum().item() for sample in samples}) == 8


def test_bytes_and_floats_make_a_batch_of_floats(tmp_path):
    np.save(tmp_path / "0.npy", smooth_array("uint8", 5))
    np.save(tmp_path / "1.npy", smooth_array("uint16", 5))
    dataset = make_dataset(load_images(tmp_path), 5, crop_scale=None)
    batch = collate([dataset[0], dataset[1]])["pixel_values"]
    assert batch.dtype == torch.float32
    np.testing.assert_array_equal(batch[0], smooth_array("uint8", 5))
    np.testing.assert_array_equal(batch[1], smooth_array("uint16", 5))


# Columns of data sets


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("channels", [1, 5])
def test_array_columns(tmp_path, dtype, channels):
    arrays = [smooth_array(dtype, channels, seed=index) for index in range(4)]
    shape = (50, 70) if channels == 1 else (channels, 50, 70)
    feature = Array2D(shape, dtype) if channels == 1 else Array3D(shape, dtype)
    rows = {"bands": [array.reshape(shape) for array in arrays], "label": [0, 1, 2, 3]}
    features = Features({"bands": feature, "label": Value("int64")})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "bands.parquet")
    images = load_images(data_files=[str(tmp_path / "bands.parquet")])
    assert images["name"][3] == f"{tmp_path}/bands.parquet, train row 3"
    # As run_mim.py holds a part out.
    images = images.train_test_split(test_size=2, seed=0)["train"]
    dataset = make_dataset(images, channels, crop_scale=None, rescale_factor=1.0)
    for index, name in enumerate(images["name"]):
        sample = dataset[index]
        assert sample["unreadable"] == []
        assert sample["pixel_values"].dtype == (torch.uint8 if dtype == "uint8" else torch.float32)
        np.testing.assert_array_equal(sample["pixel_values"], arrays[int(name[-1])])


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_webdataset_shards(tmp_path, suffix):
    folder = write_folder(tmp_path / "images", "uint16", 5, suffix=suffix)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for index in range(4):
            tar.add(folder / f"{index}{suffix}", f"{index}{suffix}")
    dataset = make_dataset(load_images(data_files=[str(tmp_path / "shard.tar")]), 5, crop_scale=None)
    for index in range(4):
        np.testing.assert_array_equal(dataset[index]["pixel_values"], smooth_array("uint16", 5, seed=index))


def test_array_column_of_any_height(tmp_path):
    rows = {"bands": [smooth_array("uint16", 50 + index, 70, 5) for index in range(3)]}
    features = Features({"bands": Array3D((None, 70, 5), "uint16")})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "bands.parquet")
    dataset = make_dataset(load_images(data_files=[str(tmp_path / "bands.parquet")]), 5, crop_scale=None)
    assert [dataset[index]["unreadable"] for index in range(3)] == [[], [], []]
    assert dataset[2]["pixel_values"].shape == (5, 50, 70)


def test_rows_without_an_array_are_unreadable(tmp_path):
    features = Features({"bands": Array3D((5, 50, 70), "float32")})
    rows = [smooth_array("float32", 5), None, np.full((5, 50, 70), np.nan, np.float32)]
    Dataset.from_dict({"bands": rows}, features=features).to_parquet(tmp_path / "bands.parquet")
    dataset = make_dataset(load_images(data_files=[str(tmp_path / "bands.parquet")]), 5)
    unreadable = check_images([dataset], 0.7)
    assert [name[-1] for name, _ in unreadable] == ["1", "2"]
    assert "no finite number" in unreadable[1][1]


def test_files_before_arrays_and_names_where_there_are_several(tmp_path):
    array, other = Array3D((5, 50, 70), "uint8"), Array2D((50, 70), "uint8")
    rows = {"bands": [smooth_array("uint8", 5)], "map": [smooth_array("uint8", 1)[0]]}
    path = str(tmp_path / "bands.parquet")
    Dataset.from_dict(rows, features=Features({"bands": array, "map": other})).to_parquet(path)
    with pytest.raises(ValueError, match="2 columns of images among bands, map"):
        load_images(data_files=[path])
    assert load_images(data_files=[path], image_column="map")[0]["image"].shape == (50, 70)
    features = Features({"bands": array, "photo": ImageFeature()})
    Dataset.from_dict({"bands": rows["bands"], "photo": [None]}, features=features).to_parquet(path)
    assert load_images(data_files=[path])[0]["image"] is None


def test_files_of_bands_inside_an_image_column(tmp_path):
    write_folder(tmp_path, "uint16", 5)
    rows = [{"bytes": (tmp_path / f"{index}.tif").read_bytes(), "path": None} for index in range(4)]
    dataset = Dataset.from_dict({"image": rows}, features=Features({"image": ImageFeature(decode=False)}))
    dataset.to_parquet(tmp_path / "bands.parquet")
    dataset = make_dataset(load_images(data_files=[str(tmp_path / "bands.parquet")]), 5, crop_scale=None)
    np.testing.assert_array_equal(dataset[1]["pixel_values"], smooth_array("uint16", 5, seed=1))


def test_odd_arrays_are_listed(tmp_path):
    write_folder(tmp_path, "uint16", 5, count=6, suffix=".npy")
    np.save(tmp_path / "a.npy", smooth_array("uint16", 4))
    np.save(tmp_path / "b.npy", np.full((5, 50, 70), None), allow_pickle=True)
    np.save(tmp_path / "c.npy", np.zeros((5, 0, 70)))
    np.save(tmp_path / "d.npy", np.full((5, 50, 70), np.nan))
    (tmp_path / "e.npy").write_bytes((tmp_path / "0.npy").read_bytes()[:500])
    tifffile.imwrite(tmp_path / "f.tif", smooth_array("uint16", 5), photometric="minisblack")
    (tmp_path / "f.tif").write_bytes((tmp_path / "f.tif").read_bytes()[:5000])
    reasons = {Path(name).name: reason for name, reason in check_images([make_dataset(load_images(tmp_path), 5)], 0.6)}
    assert list(reasons) == ["a.npy", "b.npy", "c.npy", "d.npy", "e.npy", "f.tif"]
    for name, reason in (("a", "no axis of 5"), ("b", "allow_pickle"), ("c", r"\(5, 0, 70\)"), ("d", "no finite")):
        assert re.search(reason, reasons[f"{name}.npy"])
    sample = make_dataset(load_images(tmp_path), 5)[6]
    assert sample["pixel_values"].shape == (5, 50, 70)


# Statistics


@pytest.mark.parametrize(("dtype", "offset"), [("uint8", 0), ("uint16", 0), ("float32", 1e6)])
def test_statistics_are_those_of_all_pixels(tmp_path, dtype, offset):
    arrays = [smooth_array(dtype, 5, 40 + index, 60, seed=index) + np.array(offset, dtype) for index in range(6)]
    for index, array in enumerate(arrays):
        np.save(tmp_path / f"{index}.npy", array)
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    mean, std = channel_statistics(load_images(tmp_path), 5, rescale_factor=1 / 1000)
    pixels = np.concatenate([array.reshape(5, -1) for array in arrays], axis=1).astype(np.float64)
    np.testing.assert_allclose(mean, pixels.mean(axis=1) / 1000, rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=1) / 1000, rtol=1e-9)


def test_statistics_of_pictures_and_of_a_part(tmp_path):
    for index in range(9):
        Image.new("RGB", (30, 20), (10 * index, 255, 100 + index % 2)).save(tmp_path / f"{index}.png")
    images = load_images(tmp_path)
    # The first, the middle one and the last.
    mean, std = channel_statistics(images, 3, max_images=3)
    np.testing.assert_allclose(mean, [40 / 255, 1, 100 / 255], rtol=1e-12)
    assert std[0] == pytest.approx(np.std([0, 40, 80]) / 255)
    assert channel_statistics(images, 3) == channel_statistics(images, 3)


def test_a_constant_channel_is_left_alone(tmp_path, caplog):
    array = smooth_array("float32", 3)
    array[1] = 0.1
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", array)
    _, std = channel_statistics(load_images(tmp_path), 3, rescale_factor=1.0)
    assert std[1] == 1.0
    assert 0 < std[0] < 1


def test_statistics_of_nothing_readable(tmp_path):
    np.save(tmp_path / "0.npy", smooth_array("uint8", 4))
    with pytest.raises(NoReadableImageError, match=r"None of 1 images .*0\.npy \(ValueError: .* no axis of 5"):
        channel_statistics(load_images(tmp_path), 5)
