"""Pixels that are none, from the file to the batch: found, spread by resizing, filled, reported and never hidden."""

import re
import warnings

import numpy as np
import pytest
import tifffile
import torch
from datasets import Array3D, Dataset, Features
from PIL import Image
from torch.utils.data import DataLoader
from transformers.utils import is_torchvision_available

from hf_simmim import SimMIMImageProcessor, SimMIMImageProcessorPil
from hf_simmim.data.image_statistics import channel_statistics
from hf_simmim.data.masked_images import MaskedImageDataset, collate
from hf_simmim.data.reading import check_images, open_row
from hf_simmim.data.sources import load_images
from hf_simmim.data.transforms import crop_and_resize
from hf_simmim.model.images import (
    channels_first,
    fill_missing,
    has_missing,
    mark_nodata,
    missing_as_nan,
    open_image,
    real_pixels,
)
from hf_simmim.model.masking import MASK_STRATEGIES

needs_torchvision = pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")


@pytest.fixture(params=["pil", pytest.param("torchvision", marks=needs_torchvision)])
def processor_class(request):
    return {"pil": SimMIMImageProcessorPil, "torchvision": SimMIMImageProcessor}[request.param]


def noise(channels: int = 3, height: int = 64, width: int = 96, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """Channels first, from 10 to 250."""
    return np.random.default_rng(seed).uniform(10, 250, (channels, height, width)).astype(dtype)


def make_dataset(images, channels: int = 3, **kwargs) -> MaskedImageDataset:
    settings = {"image_size": (64, 96), "num_channels": channels, "patch_size": 4, "mask_patch_size": 16} | kwargs
    return MaskedImageDataset(images, **settings)


def saved(tmp_path, *arrays):
    for index, array in enumerate(arrays):
        np.save(tmp_path / f"{index}.npy", array)
    return load_images(tmp_path)


# Finding them


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_what_is_not_finite_is_missing(missing, kind):
    array = noise()
    array[1, 5, 7] = missing
    image = missing_as_nan(kind(array))
    assert type(image) is type(kind(array))
    assert has_missing(image)
    assert np.argwhere(~np.asarray(real_pixels(image))).tolist() == [[5, 7]]
    assert np.argwhere(np.isnan(np.asarray(image))).tolist() == [[1, 5, 7]]
    whole = kind(noise())
    assert missing_as_nan(whole) is whole


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float64"])
@pytest.mark.parametrize("is_last", [False, True])
def test_nodata_is_missing_where_all_channels_are(dtype, is_last):
    array = noise(dtype=dtype)
    array[:, :5] = 7
    array[0, 20:] = 7
    stored = np.moveaxis(array, 0, -1) if is_last else array
    image = channels_first(stored, 3, nodata=7)
    assert (image.shape, image.dtype) == (array.shape, np.float32)
    assert np.isnan(image[:, :5]).all()
    np.testing.assert_array_equal(image[:, 5:], array[:, 5:].astype(np.float32))
    assert mark_nodata(stored, 3, 7).shape == stored.shape
    other = channels_first(stored, 3, nodata=9)
    assert other.dtype == (np.uint8 if dtype == "uint8" else np.float32)
    assert not has_missing(other)


def test_nodata_with_fewer_digits_than_it_has():
    array = noise()
    array[:, 3] = np.finfo(np.float32).min
    assert np.isnan(channels_first(array, 3, nodata=float("-3.40282346638529e+38"))[:, 3]).all()


def test_images_of_nothing_else_are_refused():
    for array, nodata, message in (
        (np.full((2, 8, 8), np.nan), None, r"Channel 0 of the image holds no finite number\. Remove"),
        (np.stack([np.ones((8, 8)), np.full((8, 8), np.nan)]), None, "Channel 1 of the image holds no finite number"),
        (np.zeros((2, 8, 8), np.uint8), 0, "Channel 0 of the image holds no finite number other than nodata=0"),
        (np.where(np.eye(2)[:, :, None], np.nan, np.ones((2, 2, 4))), None, "No pixel of the image has finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            channels_first(array, 2, nodata=nodata)


@pytest.mark.parametrize(
    ("mode", "channels", "color"),
    [
        ("RGB", 3, (0, 0, 0)),
        ("L", 1, 0),
        ("L", 3, 0),
        ("P", 3, (0, 0, 0)),
        ("RGBA", 3, (0, 0, 0, 0)),
        ("RGBA", 4, (0, 0, 0, 0)),
        ("1", 1, 0),
        ("I;16", 1, 0),
    ],
)
def test_pictures(mode, channels, color):
    array = noise(1 if mode in ("L", "1", "I;16") else 3, dtype="uint8")
    picture = Image.fromarray(np.moveaxis(array, 0, -1).squeeze())
    if mode == "I;16":
        picture = Image.fromarray(array[0].astype(np.uint16) * 256)
    elif mode == "1":
        picture = Image.new("1", (96, 64), 1)
    elif mode == "P":
        picture = picture.quantize(64)
        palette = picture.getpalette()
        picture.putpalette([*palette[: 3 * 64], 0, 0, 0])
        color = 64
    elif mode == "RGBA":
        picture.putalpha(255)
    whole = picture.copy()
    picture.paste(color, (0, 0, 96, 10))
    # A palette's number is the index, not the color.
    nodata = 64 if mode == "P" else 0
    assert mark_nodata(whole, channels, nodata) is whole
    image = mark_nodata(picture, channels, nodata)
    assert (image.shape, image.dtype) == ((channels, 64, 96), np.float32)
    assert np.isnan(image[:, :10]).all()
    assert not np.isnan(image[:, 10:]).any()
    if mode in ("RGB", "L", "I;16"):
        np.testing.assert_array_equal(image[:, 10:], np.broadcast_to(array, image.shape)[:, 10:])


def test_a_turned_picture(tmp_path):
    array = np.moveaxis(noise(dtype="uint8"), 0, -1)
    array[:10] = 0
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(tmp_path / "turned.png", exif=exif)
    image = open_image(tmp_path / "turned.png", 3, 1 / 255, nodata=0)
    assert image.shape == (3, 96, 64)
    assert np.isnan(image[:, :, -10:]).all()
    assert not np.isnan(image[:, :, :-10]).any()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "int32"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_the_number_in_tiff_files_of_gdal(tmp_path, dtype, channels):
    array = noise(channels, dtype=dtype)
    array[:, :8] = 0
    for name, tag in (("tagged", "0"), ("other", "-9999"), ("nan", "nan"), ("broken", "none")):
        tifffile.imwrite(
            tmp_path / f"{name}.tif",
            np.moveaxis(array, 0, -1).squeeze(),
            photometric="rgb" if channels == 3 else "minisblack",
            extratags=[(42113, "s", 0, tag, True)],
        )
    factor = 1 / 255 if dtype == "uint8" else 1.0

    def read(name, nodata=None):
        row = {"image": {"path": str(tmp_path / f"{name}.tif"), "bytes": None}}
        return open_row(row, channels, factor, nodata)

    image = read("tagged")
    assert np.isnan(image[:, :8]).all()
    np.testing.assert_array_equal(image[:, 8:], array[:, 8:].astype(np.float32))
    for image in (read("other"), read("nan"), read("broken"), read("tagged", nodata=1000)):
        assert isinstance(image, Image.Image) or not has_missing(image)


# Cropping and resizing


@pytest.mark.parametrize("box", [(0, 0, 96, 64), (10.5, 3, 90, 60)])
@pytest.mark.parametrize("size", [(16, 24), (64, 96), (100, 150)])
def test_a_pixel_that_a_missing_one_is_part_of_is_missing(box, size):
    array = noise(2)
    array[0, :9] = array[1, 30, 40] = np.nan
    resized = crop_and_resize(array, box, size, 2)
    touched = crop_and_resize(np.isnan(array).astype(np.float32), box, size, 2)
    np.testing.assert_array_equal(np.isnan(resized), touched > 0)
    exact = crop_and_resize(noise(2), box, size, 2)
    np.testing.assert_array_equal(resized[touched == 0], exact[touched == 0])


def test_filling():
    image = torch.tensor([[[1.0, 3.0, torch.nan]], [[5.0, torch.nan, 7.0]]])
    pixel_mask = real_pixels(image)
    assert pixel_mask.tolist() == [[True, False, False]]
    assert fill_missing(image, pixel_mask).tolist() == [[[1, 3, 1]], [[5, 5, 7]]]
    nothing = torch.full((2, 1, 3), torch.nan)
    assert fill_missing(nothing, real_pixels(nothing)).unique().tolist() == [0]
    assert fill_missing(nothing.numpy(), real_pixels(nothing), [2.0, 3.0])[:, 0, 0].tolist() == [2, 3]


# Data sets


def with_border(missing: float, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """The left third and the lower quarter are none."""
    array = noise(dtype=dtype, seed=seed)
    array[:, 48:] = missing
    array[:, :, :32] = missing
    return array


def expected_pixel_mask() -> torch.Tensor:
    mask = torch.ones(64, 96, dtype=torch.bool)
    mask[48:] = False
    mask[:, :32] = False
    return mask


@pytest.mark.parametrize(("missing", "dtype", "nodata"), [(np.nan, "float32", None), (0, "uint8", 0), (9, "uint16", 9)])
@pytest.mark.parametrize("strategy", MASK_STRATEGIES)
def test_from_array_files_to_batches(tmp_path, missing, dtype, nodata, strategy):
    images = saved(tmp_path, with_border(missing, dtype), noise(dtype=dtype, seed=1))
    dataset = make_dataset(images, crop_scale=None, nodata=nodata, mask_strategy=strategy)
    sample, whole = dataset[0], dataset[1]
    assert "pixel_mask" not in whole
    assert whole["pixel_values"].dtype == (torch.uint8 if dtype == "uint8" else torch.float32)
    assert torch.equal(sample["pixel_mask"], expected_pixel_mask())
    pixels = sample["pixel_values"]
    assert pixels.dtype == torch.float32
    assert pixels.isfinite().all()
    array = torch.from_numpy(with_border(0, dtype).astype(np.float32))
    assert torch.equal(pixels[:, :48, 32:], array[:, :48, 32:])
    for channel in pixels:
        torch.testing.assert_close(channel[48:].unique(), channel[:48, 32:].mean()[None])
    # Three by four units are real.
    mask = sample["bool_masked_pos"].view(16, 24)
    assert mask.sum() == 8 * 16
    assert mask[:12, 8:].sum() == 8 * 16
    assert whole["bool_masked_pos"].sum() == 15 * 16

    batch = collate([sample, whole])
    assert (batch["pixel_mask"].shape, batch["pixel_mask"].dtype) == ((2, 64, 96), torch.bool)
    assert torch.equal(batch["pixel_mask"][0], sample["pixel_mask"])
    assert batch["pixel_mask"][1].all()
    assert "pixel_mask" not in collate([whole, whole])


def test_pixel_masks_follow_crops_and_flips(tmp_path):
    """A channel that says where the pixel is in the image tells the same as the pixel mask."""
    array = np.stack([np.broadcast_to(np.arange(96.0, dtype=np.float32), (64, 96))] * 2)
    array[1, :, 48:] = np.nan
    array[0, :, 48:] = 1000
    dataset = make_dataset(saved(tmp_path, array), 2)
    flips = set()
    for epoch in range(12):
        sample = dataset[epoch]
        place, mask = sample["pixel_values"][0], sample["pixel_mask"]
        assert (place[mask] < 48).all()
        assert (place[~mask] > 46).all()
        hidden = sample["bool_masked_pos"].view(16, 24).repeat_interleave(4, 0).repeat_interleave(4, 1)
        assert (hidden.view(16, 4, 24, 4) & mask.view(16, 4, 24, 4)).any(3).any(1).sum() == hidden.sum() / 16
        flips.add(bool(mask[0, 0]))
        again = dataset[epoch]
        assert all(torch.equal(sample[name], again[name]) for name in ("pixel_values", "pixel_mask", "bool_masked_pos"))
    assert flips == {False, True}


def test_workers_change_nothing(tmp_path):
    dataset = make_dataset(saved(tmp_path, *(with_border(np.nan, seed=seed) for seed in range(3)), noise()))
    alone, shared = (
        list(DataLoader(dataset, 2, collate_fn=collate, num_workers=number, shuffle=False)) for number in (0, 2)
    )
    for first, second in zip(alone, shared, strict=True):
        for name in ("pixel_values", "pixel_mask", "bool_masked_pos"):
            assert torch.equal(first[name], second[name])


def test_a_crop_of_nothing_real_hides_nothing(tmp_path):
    array = noise(height=64, width=400)
    array[:, :, 100:300] = np.nan
    sample = make_dataset(saved(tmp_path, array), crop_scale=None)[0]
    assert not sample["pixel_mask"].any()
    assert not sample["bool_masked_pos"].any()
    assert sample["pixel_values"].unique().tolist() == [0]


def test_pictures_with_nodata(tmp_path):
    picture = Image.fromarray(np.moveaxis(with_border(0, "uint8"), 0, -1))
    picture.save(tmp_path / "0.png")
    images = load_images(tmp_path)
    assert torch.equal(make_dataset(images, crop_scale=None, nodata=0)[0]["pixel_mask"], expected_pixel_mask())
    plain = make_dataset(images, crop_scale=None)[0]
    assert "pixel_mask" not in plain
    assert plain["pixel_values"].dtype == torch.uint8


def test_columns_of_arrays(tmp_path):
    features = Features({"bands": Array3D((3, 64, 96), "uint16")})
    rows = {"bands": [with_border(0, "uint16"), np.zeros((3, 64, 96), np.uint16), noise(dtype="uint16")]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "bands.parquet")
    dataset = make_dataset(load_images(data_files=[str(tmp_path / "bands.parquet")]), crop_scale=None, nodata=0)
    assert torch.equal(dataset[0]["pixel_mask"], expected_pixel_mask())
    # Nothing but nodata is no image.
    ((name, reason),) = check_images([dataset], 0.5)
    assert name.endswith("row 1")
    assert "no finite number other than nodata=0" in reason


def test_statistics_leave_them_out(tmp_path):
    arrays = [with_border(np.nan), noise(seed=1)]
    arrays[0][0, 0, 50] = np.nan
    mean, std = channel_statistics(saved(tmp_path, *arrays), 3, rescale_factor=1.0)
    mask = expected_pixel_mask().numpy()
    mask[0, 50] = False
    pixels = np.concatenate([arrays[0][:, mask], arrays[1].reshape(3, -1)], axis=1).astype(np.float64)
    np.testing.assert_allclose(mean, pixels.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std(axis=1), rtol=1e-6)


def test_statistics_leave_nodata_out(tmp_path):
    images = saved(tmp_path, with_border(0, "uint8"))
    expected = with_border(0, "uint8")[:, :48, 32:].reshape(3, -1).mean(axis=1)
    np.testing.assert_allclose(channel_statistics(images, 3, 1.0, nodata=0)[0], expected, rtol=1e-6)
    assert channel_statistics(images, 3, 1.0)[0][0] < 0.6 * expected[0]


# Processor

GEOMETRY = {"size": (64, 96), "mask_patch_size": 16}


@pytest.mark.parametrize("return_tensors", ["pt", "np", None])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, lambda array: np.moveaxis(array, 0, -1)])
def test_processor(processor_class, kind, return_tensors):
    processor = processor_class(**GEOMETRY)
    images = [kind(with_border(np.nan)), kind(noise(seed=1))]
    batch = processor(images, do_mask=True, seed=0, return_tensors=return_tensors)
    types = {"pt": torch.Tensor, "np": np.ndarray, None: list}
    assert all(type(batch[name]) is types[return_tensors] for name in processor.model_input_names)
    masks = torch.stack([torch.as_tensor(mask) for mask in batch["pixel_mask"]])
    assert masks.dtype == torch.bool
    assert torch.equal(masks[0], expected_pixel_mask())
    assert masks[1].all()
    pixels = torch.as_tensor(batch["pixel_values"][0])
    plain = torch.as_tensor(processor([kind(with_border(0))], return_tensors="pt")["pixel_values"][0])
    torch.testing.assert_close(pixels[:, :48, 32:], plain[:, :48, 32:])
    for channel in pixels:
        torch.testing.assert_close(channel[48:].unique(), channel[:48, 32:].mean()[None])
    hidden = torch.stack([torch.as_tensor(mask) for mask in batch["bool_masked_pos"]]).view(2, 16, 24)
    assert hidden.sum(dim=(1, 2)).tolist() == [8 * 16, 15 * 16]
    assert not hidden[0, 12:].any()
    assert not hidden[0, :, :8].any()
    assert "pixel_mask" not in processor(images[1:], do_mask=True)
    filled = processor(images, return_tensors="pt")
    assert list(filled) == ["pixel_values"]
    torch.testing.assert_close(filled["pixel_values"][0], pixels)


@pytest.mark.parametrize("size", [(64, 96), (32, 48), (96, 144)])
def test_processor_and_data_set_agree(processor_class, tmp_path, size):
    sample = make_dataset(saved(tmp_path, with_border(np.nan)), image_size=size, crop_scale=None)[0]
    processor = processor_class(**GEOMETRY | {"size": size}, do_rescale=False, do_normalize=False)
    # Bilinear, as in training.
    batch = processor(with_border(np.nan), do_mask=True, resample=2, return_tensors="pt")
    assert torch.equal(batch["pixel_mask"][0], sample["pixel_mask"])
    torch.testing.assert_close(batch["pixel_values"][0], sample["pixel_values"], rtol=0, atol=1e-2)


def test_other_images_get_the_masks_that_they_get_without(processor_class):
    processor = processor_class(**GEOMETRY)
    images = [noise(seed=1), noise(seed=2)]
    alone = processor(images, do_mask=True, seed=3, return_tensors="pt")["bool_masked_pos"]
    beside = processor([*images, with_border(np.nan)], do_mask=True, seed=3, return_tensors="pt")["bool_masked_pos"]
    assert torch.equal(alone, beside[:2])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_nodata_in_the_processor(processor_class, dtype, tmp_path):
    processor = processor_class(**GEOMETRY, nodata=0)
    array = with_border(0, dtype)
    images = [array] if dtype == "uint16" else [array, torch.from_numpy(array)]
    if dtype == "uint8":
        picture = Image.fromarray(np.moveaxis(array, 0, -1))
        picture.save(tmp_path / "a.png")
        images += [picture, tmp_path / "a.png"]
    for image in images:
        masks = processor(image, do_mask=True, return_tensors="pt")["pixel_mask"]
        assert torch.equal(masks[0], expected_pixel_mask())
        assert "pixel_mask" not in processor(image, do_mask=True, nodata=1)
    processor.save_pretrained(tmp_path)
    assert processor_class.from_pretrained(tmp_path).nodata == 0
    assert "pixel_mask" in processor_class(**GEOMETRY)(images, do_mask=True, nodata=0)


def test_a_tiff_file_of_gdal_in_the_processor(processor_class, tmp_path):
    path = tmp_path / "a.tif"
    array = np.moveaxis(with_border(0, "uint8"), 0, -1)
    tifffile.imwrite(path, array, photometric="rgb", extratags=[(42113, "s", 0, "0", True)])
    for image in (path, Image.open(path)):
        masks = processor_class(**GEOMETRY)(image, do_mask=True, return_tensors="pt")["pixel_mask"]
        assert torch.equal(masks[0], expected_pixel_mask())
    with pytest.raises(ValueError, match=r"no finite number other than nodata=7"):
        processor_class(**GEOMETRY)(np.full((3, 8, 8), 7, np.uint8), nodata=7)


def test_padding_is_none(processor_class):
    processor = processor_class(
        do_resize=False, do_pad=True, pad_size={"height": 96, "width": 128}, mask_patch_size=32, mask_ratio=0.5
    )
    images = [noise(height=64, width=64, dtype="uint8"), noise(height=96, width=100)]
    images[1][:, :32, :32] = np.nan
    batch = processor(images, do_mask=True, seed=0, return_tensors="pt")
    expected = torch.zeros(2, 96, 128, dtype=torch.bool)
    expected[0, :64, :64] = expected[1, :, :100] = True
    expected[1, :32, :32] = False
    assert torch.equal(batch["pixel_mask"], expected)
    hidden = batch["bool_masked_pos"].view(2, 24, 32)
    assert hidden[0].sum() == hidden[0, :16, :16].sum() == 2 * 64
    # Four columns of which the last has one patch in it, and one unit is none.
    assert hidden[1, ::8, ::8].sum() == 6
    assert not hidden[1, :, 25:].any()
    assert batch["pixel_values"][0, :, 64:].unique().tolist() == [0]
    assert batch["pixel_values"].isfinite().all()
    # Whole images are padded to their own size: nothing is none.
    assert "pixel_mask" not in processor(noise(height=96, width=128), do_mask=True)


def test_a_crop_larger_than_the_image_is_padding(processor_class):
    processor = processor_class(do_resize=False, do_center_crop=True, crop_size=(96, 96), mask_patch_size=16)
    masks = processor(noise(height=64, width=96, dtype="uint8"), do_mask=True, return_tensors="pt")["pixel_mask"]
    assert masks[0, 16:80].all()
    assert masks.sum() == 64 * 96


def test_floats_in_0_1_are_noticed_beside_missing_ones(processor_class, monkeypatch):
    messages: list[str] = []
    monkeypatch.setattr("hf_simmim.model.image_processing_simmim.logger.warning_once", messages.append)
    processor_class(**GEOMETRY)(with_border(np.nan) / 255)
    assert "do_rescale=False" in messages[0]


def test_ranges_in_the_processor(processor_class, tmp_path):
    processor = processor_class(**GEOMETRY, mask_ratio=[0.2, 0.8])
    processor.save_pretrained(tmp_path)
    images = [noise(seed=1)] * 16
    for loaded in (processor, processor_class.from_pretrained(tmp_path)):
        masks = loaded(images, do_mask=True, seed=0, return_tensors="pt")["bool_masked_pos"]
        counts = masks.sum(dim=1) // 16
        assert 5 <= counts.min() < 10 < 15 < counts.max() <= 20
    assert torch.equal(masks, processor(images, do_mask=True, seed=0, return_tensors="pt")["bool_masked_pos"])
    assert processor(images, do_mask=True, mask_ratio=(0.5, 0.5), return_tensors="pt")["bool_masked_pos"].sum() == 3072
    for ratio, message in (((0.7, 0.4), "ascending"), ([0.4], "1 values"), ((0.4, 1.2), "1.2 is outside")):
        with pytest.raises(ValueError, match=re.escape(message)):
            processor_class(mask_ratio=ratio)


@pytest.mark.parametrize("name", MASK_STRATEGIES)
def test_strategies_and_ranges_in_the_data_set(tmp_path, name):
    images = saved(tmp_path, *(noise(seed=seed) for seed in range(12)))
    dataset = make_dataset(images, mask_strategy=name, mask_ratio=(0.2, 0.8), crop_scale=None)
    assert dataset.num_masked_units == (5, 20)
    masks = [dataset[index]["bool_masked_pos"] for index in range(12)]
    counts = {int(mask.sum()) // 16 for mask in masks}
    assert len(counts) > 4
    assert counts <= set(range(5, 21))
    assert all(torch.equal(mask, dataset[index + 24]["bool_masked_pos"]) for index, mask in enumerate(masks))
    with pytest.raises(ValueError, match="masks all units"):
        make_dataset(images, mask_strategy=name, mask_ratio=(0.2, 0.99))


def test_no_warnings(processor_class, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor_class(**GEOMETRY)([with_border(np.nan), with_border(np.nan).astype(np.float64)], do_mask=True)
        make_dataset(saved(tmp_path, with_border(np.nan)))[0]
        # GDAL's usual number of float64 files, which float32 cannot hold.
        lowest = float(np.finfo(np.float64).min)
        array = with_border(np.nan).astype(np.float64)
        array[np.isnan(array)] = lowest
        assert has_missing(channels_first(array, 3, nodata=lowest))
