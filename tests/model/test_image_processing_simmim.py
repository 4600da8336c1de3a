import base64
import io
import re

import numpy as np
import pytest
import torch
from photos import KINDS, alpha_of, random_photo, write_photos
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, pipeline
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import is_torchvision_available

from hf_simmim import SimMIMConfig, SimMIMImageProcessor, SimMIMImageProcessorPil, SimMIMModel
from hf_simmim.model import image_processing_simmim

needs_torchvision = pytest.mark.skipif(not is_torchvision_available(), reason="torchvision is not installed")
BACKENDS = {"pil": SimMIMImageProcessorPil, "torchvision": SimMIMImageProcessor}
RAW = {"do_resize": False, "do_rescale": False, "do_normalize": False, "return_tensors": "np"}
# What changes nothing but the size, so that results can be read as pixels of 0 to 255.
PIXELS = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}


@pytest.fixture(params=["pil", pytest.param("torchvision", marks=needs_torchvision)])
def processor_class(request):
    return BACKENDS[request.param]


@pytest.fixture
def photo():
    return random_photo(np.random.default_rng(0), (150, 100))


def assert_alike(actual, expected, share: float = 0) -> None:
    """Equal within transformers' own tolerance between the backends, but for a share of the normalized values."""
    assert actual.shape == expected.shape
    difference = np.abs(np.asarray(actual) - np.asarray(expected))
    assert difference.mean() < 5e-3
    assert (difference > 0.1).mean() <= share


# Output


def test_images_of_mixed_sizes_and_modes(processor_class, photo):
    images = [photo, photo.convert("L").rotate(90, expand=True), np.asarray(photo)]
    batch = processor_class()(images, return_tensors="pt")
    assert list(batch) == ["pixel_values"]
    assert batch["pixel_values"].shape == (3, 3, 192, 192)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"].is_contiguous()


@pytest.mark.parametrize("size", [{"height": 96, "width": 160}, (96, 160), 96])
def test_size(processor_class, photo, size):
    processor = processor_class(size=size)
    expected = (96, 96) if size == 96 else (96, 160)
    masked = processor(photo, do_mask=True, return_tensors="pt")
    assert masked["pixel_values"].shape == (1, 3, *expected)
    assert masked["bool_masked_pos"].shape == (1, expected[0] * expected[1] // 16)
    assert processor(photo, size=(64, 32), return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 32)


def test_return_tensors(processor_class, photo):
    processor = processor_class()
    tensors = processor([photo, photo], do_mask=True, seed=0, return_tensors="pt")
    arrays = processor([photo, photo], do_mask=True, seed=0, return_tensors="np")
    lists = processor([photo, photo], do_mask=True, seed=0)
    for name, dtype in (("pixel_values", np.float32), ("bool_masked_pos", np.bool_)):
        assert isinstance(tensors[name], torch.Tensor)
        assert isinstance(arrays[name], np.ndarray)
        assert isinstance(lists[name], list)
        assert arrays[name].dtype == dtype
        np.testing.assert_array_equal(arrays[name], tensors[name].numpy())
        np.testing.assert_array_equal(np.stack(lists[name]), arrays[name])


def test_values_computed_by_hand(processor_class, photo):
    resized = np.asarray(photo.resize((160, 96), Image.Resampling.BICUBIC)) / 255
    expected = ((resized - IMAGENET_DEFAULT_MEAN) / IMAGENET_DEFAULT_STD).transpose(2, 0, 1)
    actual = processor_class(size=(96, 160))(photo, return_tensors="np")["pixel_values"][0]
    if processor_class is SimMIMImageProcessorPil:
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    assert_alike(actual, expected)


@needs_torchvision
def test_backends_agree(tmp_path):
    images = [Image.open(path) for path in write_photos(tmp_path, 40)]
    images = [image for image in images if image.mode != "1"]
    settings = {"do_mask": True, "seed": 3, "return_tensors": "pt"}
    pil, torchvision = (BACKENDS[name]()(images, **settings) for name in ("pil", "torchvision"))
    assert torch.equal(pil["bool_masked_pos"], torchvision["bool_masked_pos"])
    for first, second in zip(pil["pixel_values"], torchvision["pixel_values"], strict=True):
        # Pillow and torchvision may resize rows and columns in different order and clip overshoots in between, which
        # shows at a few hard edges. Dithered pictures, left out above, have nothing else.
        assert_alike(first, second, share=2e-3)


# Pictures


def expected_pixels(kind: str, photo: Image.Image) -> tuple[np.ndarray, bool]:
    """RGB pixels of a photo that was stored as one of `KINDS`, and whether storing loses nothing."""
    gray = photo.convert("L").convert("RGB")
    opacity = np.asarray(alpha_of(photo))[..., None] / 255
    match kind:
        case "gray jpeg":
            return np.asarray(gray), False
        case "16-bit png":
            return np.asarray(gray), True
        case "1-bit png":
            return np.asarray(photo.convert("1").convert("RGB")), True
        case "rgba png" | "la png":
            pixels = np.asarray(photo if kind == "rgba png" else gray)
            return pixels * opacity + 255 * (1 - opacity), True
        case "palette png" | "gif":
            return np.where(opacity * 255 < 128, 255, np.asarray(photo)), False
    return np.asarray(photo), False


@pytest.mark.parametrize("kind", KINDS)
def test_picture_becomes_upright_rgb(processor_class, photo, tmp_path, kind):
    suffix, convert, options = KINDS[kind]
    path = tmp_path / f"ä photo{suffix}"
    convert(photo.copy()).save(path, quality=95, **options)
    actual = processor_class()(Image.open(path), **RAW)["pixel_values"][0]
    expected, lossless = expected_pixels(kind, photo)
    assert actual.shape == (3, 100, 150)
    difference = np.abs(actual.transpose(1, 2, 0) - expected.astype(float))
    assert difference.max() <= 1 if lossless else difference.mean() < 5
    for source in (path, str(path), [str(path)]):
        np.testing.assert_array_equal(processor_class()(source, **RAW)["pixel_values"][0], actual)


def stored(image: Image.Image, suffix: str, **options) -> Image.Image:
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return Image.open(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_one_transparent_color_is_laid_on_white(processor_class, mode):
    image = Image.new(mode, (8, 8), "black")
    image.paste("gray", (0, 0, 4, 8))
    image = stored(image, "PNG", transparency=(0, 0, 0) if mode == "RGB" else 0)
    actual = processor_class()(image, **RAW)["pixel_values"][0]
    assert (actual[:, :, :4] == 128).all()
    assert (actual[:, :, 4:] == 255).all()


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4"])
def test_16_bit_gray_is_scaled(processor_class, dtype):
    levels = np.array([[0, 255, 256, 32768, 65535]])
    actual = processor_class()(Image.fromarray(levels.astype(dtype)), **RAW)["pixel_values"][0]
    assert actual[0].tolist() == [[0, 0, 1, 128, 255]]


def test_float_picture_is_refused(processor_class):
    with pytest.raises(ValueError, match=r"floats .*rescale_factor"):
        processor_class()(Image.new("F", (8, 8)))


def test_address(processor_class, photo):
    file = io.BytesIO()
    photo.save(file, "PNG")
    address = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    np.testing.assert_array_equal(
        processor_class()([address, address], **RAW)["pixel_values"][1], np.asarray(photo).transpose(2, 0, 1)
    )


def test_the_picture_passed_in_is_not_changed(processor_class, photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = stored(photo, "PNG", exif=exif)
    first = processor_class()(image, **RAW)["pixel_values"]
    assert image.size == (150, 100)
    np.testing.assert_array_equal(processor_class()(image, **RAW)["pixel_values"], first)


# Channels


@pytest.mark.parametrize("kind", ["gray jpeg", "la png", "1-bit png", "16-bit png"])
def test_gray_picture_to_one_channel(processor_class, photo, tmp_path, kind):
    suffix, convert, options = KINDS[kind]
    convert(photo.copy()).save(tmp_path / f"photo{suffix}", quality=95, **options)
    image = Image.open(tmp_path / f"photo{suffix}")
    gray = processor_class(image_mean=[0.4], image_std=[0.3])
    actual = gray(image, **RAW)["pixel_values"]
    assert actual.shape == (1, 1, 100, 150)
    np.testing.assert_array_equal(actual, processor_class()(image, **RAW)["pixel_values"][:, :1])
    np.testing.assert_allclose(
        gray(image, do_resize=False, return_tensors="np")["pixel_values"], (actual / 255 - 0.4) / 0.3, atol=1e-5
    )


def test_gray_in_a_color_mode_to_one_channel(processor_class, photo):
    gray = photo.convert("L")
    palette = stored(gray, "GIF")
    assert palette.mode == "P"
    for image in (gray.convert("RGB"), gray.convert("RGBA"), palette):
        actual = processor_class(image_mean=[0.5], image_std=[0.5])(image, **RAW)["pixel_values"]
        np.testing.assert_array_equal(actual[0, 0], np.asarray(gray))


def test_gray_arrays_to_three_channels(processor_class, photo):
    gray = np.asarray(photo.convert("L"))
    expected = np.stack([gray] * 3)
    for image in (gray, gray[None], gray[..., None], torch.from_numpy(gray.copy())):
        np.testing.assert_array_equal(processor_class()(image, **RAW)["pixel_values"][0], expected)


def test_batch_of_tensors(processor_class, photo):
    expected = processor_class()(photo, return_tensors="pt")["pixel_values"][0]
    tensor = torch.tensor(np.asarray(photo)).permute(2, 0, 1)
    for images in (torch.stack([tensor, tensor]), [tensor, tensor.float().requires_grad_()]):
        pixel_values = processor_class()(images, return_tensors="pt")["pixel_values"]
        assert pixel_values.shape == (2, 3, 192, 192)
        assert not pixel_values.requires_grad
        for image in pixel_values:
            assert_alike(image, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_six_channels(processor_class, photo, dtype):
    image = np.concatenate([np.asarray(photo), 255 - np.asarray(photo)], axis=2).astype(dtype)
    processor = processor_class(size=(64, 96), image_mean=[0.5] * 6, image_std=[0.25] * 6)
    first, last, tensor = (
        processor(images, return_tensors="np")["pixel_values"]
        for images in (image.transpose(2, 0, 1), image, torch.from_numpy(image))
    )
    resized = [
        np.asarray(Image.fromarray(channel.astype(np.float32)).resize((96, 64), Image.Resampling.BICUBIC))
        for channel in image.transpose(2, 0, 1)
    ]
    # Bytes are clipped and rounded, other numbers are not.
    expected = np.clip(resized, 0, 255) if dtype == np.uint8 else np.stack(resized)
    assert_alike(first[0], (expected / 255 - 0.5) / 0.25)
    np.testing.assert_array_equal(first, last)
    np.testing.assert_array_equal(first, tensor)


def test_four_channels_are_not_taken_for_transparency(processor_class):
    image = np.full((64, 64, 4), 200, np.uint8)
    image[::2, :, 3] = 0
    processor = processor_class(size=(32, 32), mask_patch_size=8, image_mean=[0.5] * 4, image_std=[0.5] * 4)
    assert (processor(image, **PIXELS)["pixel_values"][0, :3] == 200).all()


@pytest.mark.parametrize(
    ("num_channels", "image", "message"),
    [
        (1, Image.new("RGB", (20, 30), "red"), "The image has 3 channels and 1 is expected.*num_channels.*image_mean"),
        (6, Image.new("RGB", (20, 30)), "The image has 3 channels and 6 are expected.*num_channels.*image_mean"),
        (6, Image.new("L", (20, 30)), "The image has 1 channel and 6 are expected"),
        (4, Image.new("P", (20, 30)), "The image has 3 channels and 4 are expected"),
        (3, np.zeros((20, 30, 4), np.uint8), re.escape("shape (20, 30, 4) has no axis of 3 channels") + ".*image_mean"),
        (6, np.zeros((3, 20, 30), np.uint8), re.escape("shape (3, 20, 30) has no axis of 6 channels")),
        (6, torch.zeros(20, 30), re.escape("shape (1, 20, 30) has no axis of 6 channels")),
    ],
)
def test_wrong_channels(processor_class, num_channels, image, message):
    processor = processor_class(image_mean=[0.5] * num_channels, image_std=[0.5] * num_channels)
    with pytest.raises(ValueError, match=message):
        processor(image)


def test_wrong_channels_in_a_named_format(processor_class):
    with pytest.raises(ValueError, match="The image has 4 channels and 3 are expected"):
        processor_class()(np.zeros((4, 20, 30), np.uint8), input_data_format="channels_first")


def test_one_mean_for_each_channel(processor_class, photo):
    with pytest.raises(ValueError, match=re.escape("image_mean=0.5 is one number") + ".*" + re.escape("[0.5]")):
        processor_class(image_mean=0.5)
    with pytest.raises(ValueError, match="image_mean has 6 values and image_std has 3"):
        processor_class(image_mean=[0.5] * 6)
    with pytest.raises(ValueError, match="image_mean has 3 values and image_std has 1"):
        processor_class()(photo, image_std=[0.5])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std=.* must hold finite numbers above 0, which pixels are divided by"),
        ({"image_std": [0.5, -1.0, 0.5]}, "must hold finite numbers above 0"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, "image_mean=.* must hold finite numbers"),
        ({"rescale_factor": 0.0}, "rescale_factor=0.0 must be a finite number above 0, .* use do_rescale=False"),
    ],
)
def test_settings_that_leave_no_pixels(processor_class, photo, settings, message):
    with pytest.raises(ValueError, match=message):
        processor_class(**settings)(photo)
    with pytest.raises(ValueError, match=message):
        processor_class()(photo, **settings)
    processor_class()(photo, do_rescale=False, do_normalize=False, **settings)


def test_whole_numbers_are_not_cut_off(processor_class):
    ramp = np.arange(64 * 64, dtype=np.int32).reshape(64, 64)
    for numbers in (ramp - 1000, ramp * 100):
        with pytest.raises(ValueError, match=r"holds whole numbers from -?\d+ to \d+ \(mode I\)"):
            processor_class(do_resize=False)(Image.fromarray(numbers))
        pixels = processor_class(do_resize=False, rescale_factor=1.0, do_normalize=False, return_tensors="np")(
            Image.fromarray(numbers)
        )["pixel_values"]
        np.testing.assert_array_equal(pixels[0][0], numbers)
    missing = np.where(ramp < 64, -9999, ramp * 16)
    processor_class(nodata=-9999.0)(Image.fromarray(missing))


@pytest.mark.parametrize(
    ("largest", "mean", "message"),
    [
        (1.0, [0.5] * 3, "floats in [0, 1] is rescaled again"),
        (1.0, [0.0] * 3, "floats in [0, 1] is rescaled again"),
        (1.0, [0.002] * 3, None),  # computed from such images
        (255.0, [0.5] * 3, None),
        (65535.0, [0.5] * 3, "numbers up to 65535 is rescaled by 1/255, which fits 255"),
        (65535.0, [100.0] * 3, None),
    ],
)
def test_numbers_of_another_range_are_named(processor_class, monkeypatch, largest, mean, message):
    said = []
    monkeypatch.setattr(image_processing_simmim.logger, "warning_once", said.append)
    image = np.linspace(0, largest, 12 * 12 * 3, dtype=np.float32).reshape(12, 12, 3)
    for kind in (image, image.astype(np.uint16) if largest > 1 else image.astype(np.float64), torch.from_numpy(image)):
        said.clear()
        processor_class(image_mean=mean, image_std=[1.0] * 3)(kind)
        assert len(said) == (message is not None)
        assert message is None or message in said[0]


@pytest.fixture
def warnings(monkeypatch):
    messages: list[str] = []
    monkeypatch.setattr(image_processing_simmim.logger, "warning_once", messages.append)
    return messages


def test_floats_in_0_1(processor_class, photo, warnings):
    expected = processor_class()(photo, return_tensors="np")["pixel_values"]
    image = np.asarray(photo) / 255
    processor = processor_class()
    assert_alike(processor(image, do_rescale=False, return_tensors="np")["pixel_values"], expected)
    assert_alike(processor(image, rescale_factor=1.0, return_tensors="np")["pixel_values"], expected)
    assert_alike(processor(image * 255, return_tensors="np")["pixel_values"], expected)
    assert not warnings
    processor(image)
    assert "do_rescale=False" in warnings[0]


def test_no_images(processor_class):
    with pytest.raises(ValueError, match="no images"):
        processor_class()([], return_tensors="pt")


# Masks


def masks_of(processor, images, **kwargs) -> torch.Tensor:
    return processor(images, do_mask=True, return_tensors="pt", **kwargs)["bool_masked_pos"]


def test_no_mask_unless_asked(processor_class, photo):
    assert "bool_masked_pos" not in processor_class()(photo, seed=0)
    assert "bool_masked_pos" in processor_class(do_mask=True)(photo)
    assert "bool_masked_pos" not in processor_class(do_mask=True)(photo, do_mask=False)


@pytest.mark.parametrize(("size", "model_patch_size", "num_units"), [(192, 4, 22), (224, 16, 30)])
def test_masks_are_whole_units(processor_class, photo, size, model_patch_size, num_units):
    processor = processor_class(size=size, model_patch_size=model_patch_size)
    masks = masks_of(processor, [photo] * 8, seed=0)
    grid, unit = size // model_patch_size, 32 // model_patch_size
    assert masks.dtype == torch.bool
    assert masks.shape == (8, grid**2)
    units = masks.view(8, grid // unit, unit, grid // unit, unit)
    assert torch.equal(units, units[:, :, :1, :, :1].expand_as(units))
    assert units[:, :, 0, :, 0].sum(dim=(1, 2)).tolist() == [num_units] * 8
    assert len(masks.unique(dim=0)) == 8


def test_mask_grid_of_a_rectangle(processor_class, photo):
    # Fifteen columns of units of which half, rounded up, are hidden in one row: the grid is row-major.
    processor = processor_class(size=(32, 480), mask_ratio=0.5)
    mask = masks_of(processor, photo, seed=0).view(8, 120)
    assert mask.sum() == 8 * 64
    assert torch.equal(mask, mask[:1].expand_as(mask))


def test_units_are_cut_at_the_border(processor_class, photo):
    processor = processor_class(size=(50, 70), mask_patch_size=16)
    masks = masks_of(processor, [photo] * 8, seed=0).view(8, 13, 18)
    # Four by five units, of which those in the last row and column are cut.
    units = torch.stack([masks[:, y, x] for y in range(0, 13, 4) for x in range(0, 18, 4)])
    assert units.sum(dim=0).tolist() == [12] * 8
    assert torch.equal(masks[:, 12, 16], masks[:, 12, 17])


def test_seed(processor_class, photo):
    processor = processor_class()
    state = torch.get_rng_state()
    first, again, other = (masks_of(processor, [photo] * 2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


@needs_torchvision
def test_mask_on_the_device_of_the_images(photo):
    batch = SimMIMImageProcessor()(photo, do_mask=True, seed=0, device="meta", return_tensors="pt")
    assert batch["bool_masked_pos"].device == batch["pixel_values"].device == torch.device("meta")


def test_default_generator_without_seed(processor_class, photo):
    processor = processor_class()
    torch.manual_seed(0)
    first, second = masks_of(processor, photo), masks_of(processor, photo)
    torch.manual_seed(0)
    assert torch.equal(first, masks_of(processor, photo))
    assert not torch.equal(first, second)


def test_crop_decides_the_mask_grid(processor_class, photo):
    settings = {"size": {"shortest_edge": 250}, "do_center_crop": True, "crop_size": (224, 96)}
    assert masks_of(processor_class(**settings), photo).shape == (1, 56 * 24)
    # Fourteen rows of patches and a cut one.
    assert masks_of(processor_class(**settings | {"crop_size": (58, 96)}), photo).shape == (1, 15 * 24)


def test_masks_need_one_size(processor_class, photo):
    images = [photo.resize((64, 64)), photo.resize((96, 64))]
    processor = processor_class(do_resize=False)
    assert len(processor(images)["pixel_values"]) == 2
    with pytest.raises(ValueError, match=re.escape("got 2: [(64, 64), (64, 96)]") + ".*Resize"):
        processor(images, do_mask=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ratio": 0}, r"mask_ratio=0 is outside \(0, 1\).*0\.6"),
        ({"mask_ratio": 1}, r"mask_ratio=1 is outside \(0, 1\).*0\.6"),
        ({"mask_ratio": 1.5}, r"mask_ratio=1\.5 is outside \(0, 1\).*0\.6"),
        ({"mask_ratio": -0.1}, r"mask_ratio=-0\.1 is outside \(0, 1\).*0\.6"),
        ({"mask_ratio": 0.99}, r"mask_ratio=0\.99 masks all units .*\(36\).*smaller mask_patch_size"),
        ({"mask_patch_size": 30}, "mask_patch_size=30 px is not a multiple of the model's patch size of 4 px.*Use 32"),
        (
            {"model_patch_size": 14},
            "mask_patch_size=32 px is not a multiple of the model's patch size of 14 px.*Use 28",
        ),
        ({"mask_strategy": "sqare"}, "mask_strategy='sqare' is unknown. Use one of: .*random"),
    ],
)
def test_bad_mask_settings(processor_class, photo, settings, message):
    if settings.get("mask_ratio") == 0.99 or settings.keys() & {"mask_patch_size", "model_patch_size"}:
        # How the sizes fit matters only to masks: fine-tuning at 200 px draws none.
        processor_class(**settings)(photo)
        with pytest.raises(ValueError, match=message):
            processor_class(**settings)(photo, do_mask=True)
    else:
        with pytest.raises(ValueError, match=message):
            processor_class(**settings)
    with pytest.raises(ValueError, match=message):
        processor_class()(photo, do_mask=True, **settings)
    # What is not used is not checked.
    processor_class()(photo, **settings)


# Saving, and transformers' pipelines

SETTINGS = {
    "size": {"height": 96, "width": 160},
    "resample": 2,
    "image_mean": (0.1, 0.2, 0.3, 0.4),
    "image_std": (0.5, 0.6, 0.7, 0.8),
    "rescale_factor": 1 / 100,
    "do_mask": True,
    "mask_patch_size": 16,
    "mask_ratio": 0.4,
    "model_patch_size": 8,
}


def test_save_and_load(processor_class, tmp_path):
    processor = processor_class(**SETTINGS, seed=5)
    processor.save_pretrained(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 50, 60), np.uint8)
    expected = processor(images, seed=1, return_tensors="pt")
    for loaded in (
        processor_class.from_pretrained(tmp_path),
        AutoImageProcessor.from_pretrained(tmp_path, backend=processor.backend),
    ):
        assert type(loaded) is processor_class
        assert loaded.seed is None
        for name, value in SETTINGS.items():
            assert getattr(loaded, name) == value
        actual = loaded(images, seed=1, return_tensors="pt")
        assert torch.equal(actual["pixel_values"], expected["pixel_values"])
        assert torch.equal(actual["bool_masked_pos"], expected["bool_masked_pos"])


def test_load_with_changes(processor_class, tmp_path):
    processor_class(**SETTINGS).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, size=(32, 32), mask_ratio=0.5)
    assert (loaded.size.height, loaded.mask_ratio, loaded.mask_patch_size) == (32, 0.5, 16)


@needs_torchvision
def test_backends_load_each_other(tmp_path):
    for saver in BACKENDS.values():
        saver(**SETTINGS).save_pretrained(tmp_path)
        assert type(AutoImageProcessor.from_pretrained(tmp_path)) is SimMIMImageProcessor
        for backend, loader in BACKENDS.items():
            for loaded in (
                AutoImageProcessor.from_pretrained(tmp_path, backend=backend),
                loader.from_pretrained(tmp_path),
            ):
                assert type(loaded) is loader
                settings = loaded.to_dict()
                # Where its code is, which only saved ones have.
                assert set(settings.pop("auto_map")) == {"AutoImageProcessor"}
                assert settings == saver(**SETTINGS).to_dict()


@pytest.mark.parametrize("num_channels", [1, 3])
def test_feature_extraction_pipeline(processor_class, photo, num_channels):
    encoder = {"model_type": "swin", "image_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
    model = SimMIMModel(SimMIMConfig(encoder_config=encoder | {"window_size": 4, "num_channels": num_channels})).eval()
    processor = processor_class(size=64, image_mean=[0.5] * num_channels, image_std=[0.5] * num_channels)
    extract = pipeline("image-feature-extraction", model=model, image_processor=processor, device="cpu")
    image = ImageOps.grayscale(photo) if num_channels == 1 else photo
    first, second = (extract(image, return_tensors=True) for _ in range(2))
    assert torch.equal(first, second)
    with torch.no_grad():
        expected = model(**processor(image, return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(first, expected)
