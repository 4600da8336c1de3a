"""Loading, decoding, cropping and masking: reproducible, and never fatal for a bad file among good ones."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.data import DataLoader

from hf_simmim.data.masked_images import MaskedImageDataset, collate
from hf_simmim.data.reading import NoReadableImageError, UnreadableImages, check_images
from hf_simmim.data.sampling import EpochSampler, sample_generator
from hf_simmim.data.sources import load_images
from hf_simmim.data.transforms import center_box, crop_and_resize, random_box, upright_size

EMBEDDED_DATA = Path(__file__).parents[1] / "examples" / "data" / "fashion_mnist_7k"


def gradient_image(height: int, width: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path):
    """Twelve JPEG files of mixed sizes in nested folders."""
    for index in range(12):
        path = tmp_path / "images" / f"day {index % 3}" / f"{index:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        gradient_image(40 + 7 * index, 90 - 3 * index).save(path, quality=95)
    return tmp_path / "images"


def make_dataset(folder, **kwargs) -> MaskedImageDataset:
    settings = {"image_size": (32, 48), "num_channels": 3, "patch_size": 4, "mask_patch_size": 16} | kwargs
    return MaskedImageDataset(load_images(folder), **settings)


def read_epoch(dataset, epoch: int, num_workers: int = 0, batch_size: int = 4, seed: int = 0) -> list[dict]:
    sampler = EpochSampler(len(dataset), seed)
    sampler.set_epoch(epoch)
    return list(DataLoader(dataset, batch_size, sampler=sampler, collate_fn=collate, num_workers=num_workers))


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


def test_sampler_shows_every_sample_once_in_a_new_order_each_epoch():
    sampler = EpochSampler(50, seed=0)
    orders = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert sorted(keys) == list(range(epoch * 50, epoch * 50 + 50))
        orders.append([key % 50 for key in keys])
    assert orders[0] != orders[1]
    assert list(EpochSampler(50, seed=1)) != list(EpochSampler(50, seed=0))


def test_random_box_follows_its_bounds():
    generator = sample_generator(0)
    boxes = [random_box((60, 90), (0.67, 1.0), generator) for _ in range(500)]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 90
        assert 0 <= top < bottom <= 60
        assert (right - left) * (bottom - top) > 0.64 * 60 * 90 or (right - left, bottom - top) == (80, 60)
        assert 0.72 < (right - left) / (bottom - top) < 1.37
    assert len(set(boxes)) > 100


def test_center_box_is_the_largest_of_its_proportions():
    assert center_box((60, 90), (32, 32)) == (15, 0, 75, 60)
    assert center_box((60, 90), (32, 96)) == (0, 15, 90, 45)


@pytest.mark.parametrize("kind", ["jpg", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_crop_is_taken_from_the_upright_picture(orientation, kind, tmp_path):
    """A rotated file with its EXIF tag gives the pixels of the picture that was never rotated."""
    upright = gradient_image(600, 900)
    operations = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright if orientation == 1 else upright.transpose(operations[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"rotated.{kind}", exif=exif, quality=95)
    image = Image.open(tmp_path / f"rotated.{kind}")
    assert upright_size(image) == (600, 900)
    box = (100, 50, 700, 450)
    array = crop_and_resize(image, box, (64, 96), 3)
    expected = upright.resize((96, 64), Image.Resampling.BILINEAR, box=box)
    assert np.abs(array.astype(int) - np.asarray(expected)).mean() < 2
    # 900 px are read for 96: libjpeg decoded a smaller picture.
    assert (max(image.size) < 900) == (kind == "jpg")


def test_draft_keeps_as_many_pixels_as_are_wanted(tmp_path):
    """A high-frequency picture survives: the decoder's scale is never coarser than the result."""
    stripes = Image.fromarray(np.tile(np.array([[0, 255]], np.uint8).repeat(8, 1), (512, 32)))
    stripes.save(tmp_path / "stripes.jpg", quality=95)
    array = crop_and_resize(Image.open(tmp_path / "stripes.jpg"), (0, 0, 512, 512), (128, 128), 1)
    assert array.std() > 90


def test_grey_pictures_for_one_channel_and_for_three(tmp_path):
    Image.fromarray(np.full((40, 40), 77, np.uint8)).save(tmp_path / "grey.png")
    for num_channels in (1, 3):
        dataset = make_dataset(tmp_path, image_size=(32, 32), num_channels=num_channels)
        assert dataset[0]["pixel_values"].shape == (num_channels, 32, 32)
        assert dataset[0]["pixel_values"].unique().tolist() == [77]


def test_bad_files_among_good_ones_are_skipped_and_named(folder):
    (folder / "day 0" / "00.jpg").write_bytes(b"")
    path = folder / "day 1" / "04.jpg"
    path.write_bytes(path.read_bytes()[:300])
    (folder / "day 2" / "02.jpg").write_text("not an image")
    dataset = make_dataset(folder)
    entries = [entry for batch in read_epoch(dataset, 0) for entry in batch["unreadable"]]
    assert {Path(name).name for name, _ in entries} == {"00.jpg", "04.jpg", "02.jpg"}
    assert all(reason for _, reason in entries)
    sample = dataset[0]
    assert sample["pixel_values"].shape == (3, 32, 48)
    assert sample["unreadable"][0][0].endswith("00.jpg")


def test_unreadable_images_are_listed_once_and_stop_a_run_that_has_too_many(tmp_path):
    path = tmp_path / "unreadable.txt"
    unreadable = UnreadableImages(path, num_images=20, max_share=0.1)
    unreadable.share()
    assert not path.exists()
    unreadable.record([("写真.jpg", "cut off"), ("写真.jpg", "cut off")])
    unreadable.record([("b.jpg", "empty")])
    unreadable.share()
    assert path.read_text(encoding="utf-8") == "b.jpg\tempty\n写真.jpg\tcut off\n"
    unreadable.record([("c.jpg", "empty")])
    with pytest.raises(NoReadableImageError, match=r"3 of 20 images .* 0\.1.*unreadable\.txt"):
        unreadable.share()
    # Mended and started again.
    UnreadableImages(path, num_images=20, max_share=0.1).share()
    assert path.read_text() == ""


def test_check_images_stops_when_too_many_are_unreadable(folder):
    dataset = make_dataset(folder)
    assert check_images([dataset], max_unreadable=0.05) == []
    (folder / "day 0" / "00.jpg").write_bytes(b"")
    assert len(check_images([dataset], max_unreadable=0.1)) == 1
    with pytest.raises(NoReadableImageError, match=r"1 of 12 images .* 0\.05: .*00\.jpg"):
        check_images([dataset], max_unreadable=0.05)


def test_check_images_says_when_the_channels_are_wrong(folder):
    with pytest.raises(NoReadableImageError, match=r"12 of 12 .*00\.jpg .*The image has 3 channels and 1 is expected"):
        check_images([make_dataset(folder, num_channels=1)], 0.1)


def test_a_folder_of_bad_files_only_is_an_error(tmp_path):
    for index in range(3):
        (tmp_path / f"{index}.jpg").write_text("not an image")
    dataset = make_dataset(tmp_path)
    with pytest.raises(NoReadableImageError, match="3 of 3 images"):
        check_images([dataset], 0.05)
    with pytest.raises(
        NoReadableImageError, match="64 images drawn one after the other cannot be read; the first is .*0.jpg"
    ):
        dataset[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_patch_size": 10}, r"mask_patch_size=10 px is not a multiple of the model's patch size of 4 px"),
        ({"mask_ratio": 1.0}, r"mask_ratio=1\.0 is outside \(0, 1\)"),
        ({"mask_ratio": 0.95}, r"mask_ratio=0\.95 hides all mask units of the image"),
        ({"mask_strategy": "blocks"}, r"mask_strategy='blocks' is unknown"),
        ({"crop_scale": (0.9, 0.5)}, r"crop_scale=\(0\.9, 0\.5\) must be two rising shares"),
    ],
)
def test_bad_settings_are_refused(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        make_dataset(folder, **settings)


def test_folder_loading(folder, caplog):
    (folder / "notes.txt").write_text("no image")
    (folder / "._00.jpg").write_text("what macOS leaves")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "00.jpg").write_text("hidden")
    (folder / "UPPER.JPEG").write_bytes((folder / "day 0" / "00.jpg").read_bytes())
    images = load_images(folder)
    assert len(images) == 13
    assert images[0]["image"]["path"].endswith("UPPER.JPEG")
    assert images[0]["name"] == images[0]["image"]["path"]
    assert len(load_images(folder, exclude=[folder / "day 0"])) == 9
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_images(folder / "nowhere")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image files"):
        load_images(folder / "empty")


def test_links_are_followed_once_and_odd_names_are_no_harm(folder, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "images").symlink_to(folder)
    (folder / "loop").symlink_to(tmp_path / "links")
    (tmp_path / "links" / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with open(os.fsencode(folder) + b"/\xff.jpg", "wb") as file:
        file.write(b"not UTF-8")
    images = load_images(tmp_path / "links")
    assert len(images) == 13
    assert sum(name.endswith("broken.jpg") for name in images["name"]) == 1


def test_more_bad_files_in_a_run_than_a_step_reads(folder):
    for path in sorted(folder.rglob("*.jpg"))[:9]:
        path.write_bytes(b"")
    batch = next(iter(read_epoch(make_dataset(folder), 0, batch_size=12)))
    assert batch["pixel_values"].shape[0] == 12
    assert len({name for name, _ in batch["unreadable"]}) == 9


def test_rows_without_an_image_are_unreadable(tmp_path):
    rows = [{"bytes": encode(gradient_image(20, 30)), "path": None}, None]
    Dataset.from_dict({"image": rows}, features=Features({"image": ImageFeature()})).to_parquet(tmp_path / "a.parquet")
    dataset = MaskedImageDataset(
        load_images(data_files=[str(tmp_path / "a.parquet")]), (32, 32), 3, 4, mask_patch_size=8
    )
    assert dataset[1]["unreadable"][0] == (f"{tmp_path}/a.parquet, train row 1", "ValueError: The row holds no image.")


@pytest.mark.parametrize("splits", [False, True])
def test_data_sets_saved_to_disk(tmp_path, splits):
    rows = [Image.new("RGB", (8, 8))] * 2
    saved = Dataset.from_dict({"image": rows}, features=Features({"image": ImageFeature()}))
    (DatasetDict({"train": saved}) if splits else saved).save_to_disk(tmp_path / "saved")
    assert len(load_images(dataset_name=str(tmp_path / "saved"))) == 2


@pytest.mark.parametrize(("mode", "color"), [("RGBA", (200, 100, 50, 0)), ("LA", (200, 0))])
def test_a_last_channel_that_is_no_transparency_leaves_the_others_alone(tmp_path, mode, color):
    """Four bands of a satellite, say, in a file that calls the fourth alpha."""
    Image.new(mode, (40, 60), color).save(tmp_path / "bands.png")
    dataset = make_dataset(tmp_path, image_size=(32, 32), num_channels=len(color))
    assert dataset[0]["pixel_values"].flatten(1).unique(dim=1).flatten().tolist() == list(color)


def test_embedded_data_loads_without_code():
    train, test = (load_images(dataset_name=str(EMBEDDED_DATA), split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (6000, 1000)
    with pytest.raises(ValueError, match="has no split 'validation'. It has: train, test"):
        load_images(dataset_name=str(EMBEDDED_DATA), split="validation")


def encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def test_parquet_and_webdataset_shards(tmp_path):
    import tarfile

    pictures = [encode(gradient_image(20 + index, 30)) for index in range(6)]
    rows = [{"bytes": picture, "path": None} for picture in pictures]
    features = Features({"photo": ImageFeature()})
    for part in range(2):
        shard = Dataset.from_dict({"photo": rows[3 * part : 3 * part + 3]}, features=features)
        shard.to_parquet(tmp_path / f"{part}.parquet")
        with tarfile.open(tmp_path / f"{part}.tar", "w") as tar:
            for index in range(3 * part, 3 * part + 3):
                member = tarfile.TarInfo(f"{index:04d}.png")
                member.size = len(pictures[index])
                tar.addfile(member, io.BytesIO(pictures[index]))
    for suffix in ("parquet", "tar"):
        images = load_images(data_files=[str(tmp_path / f"*.{suffix}")])
        assert len(images) == 6
        heights = [Image.open(io.BytesIO(row["image"]["bytes"])).height for row in images]
        assert heights == [20, 21, 22, 23, 24, 25]
    with pytest.raises(ValueError, match="must be all .parquet or all .tar"):
        load_images(data_files=[str(tmp_path / "0.parquet"), str(tmp_path / "0.tar")])


def test_image_column(tmp_path):
    rows = [{"bytes": encode(gradient_image(20, 30)), "path": None}]
    features = Features({"left": ImageFeature(), "right": ImageFeature()})
    Dataset.from_dict({"left": rows, "right": rows}, features=features).to_parquet(tmp_path / "two.parquet")
    files = [str(tmp_path / "two.parquet")]
    with pytest.raises(ValueError, match="2 columns of images among left, right"):
        load_images(data_files=files)
    with pytest.raises(ValueError, match="no column 'middle'. The columns are: left, right"):
        load_images(data_files=files, image_column="middle")
    images = load_images(data_files=files, image_column="right")
    assert images.column_names == ["image", "name"]
    assert images[0]["name"] == f"{files[0]}, train row 0"


def test_one_source_is_needed():
    with pytest.raises(ValueError, match="one source"):
        load_images()


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
