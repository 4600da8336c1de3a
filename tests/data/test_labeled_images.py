"""Labeled images: classes found, images divided, and samples that depend on seed, epoch and index alone."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from paths import EMBEDDED_DATA
from photos import random_photo, write_photos
from PIL import Image
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_simmim.data.labeled.augmentation import Augmentation
from hf_simmim.data.labeled.images import LabeledImageDataset, load_labeled_images
from hf_simmim.data.labeled.mixing import MixingCollator
from hf_simmim.data.masked_images import MaskedImageDataset
from hf_simmim.data.reading import NoReadableImageError, check_images
from hf_simmim.data.transforms import crop_and_resize
from hf_simmim.training.callbacks import EpochCallback

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)

STATISTICS = {"image_mean": MEAN, "image_std": STD}


def picture(shade: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(shade).integers(0, 40, (size[1], size[0], 3)) + shade
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Two classes, one of them nested; shades tell the images apart."""
    for index, name in enumerate(["cat/a", "cat/b", "dog/x/c", "dog/x/y/d", "cat/e", "dog/f"]):
        path = tmp_path / "classes" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(30 * index).save(path)
    (tmp_path / "classes" / "notes.txt").write_text("no image")
    return tmp_path / "classes"


def save_table(folder: Path, feature, values, **others) -> str:
    """A data set with one column of labels named `target`."""
    columns = {"image": [picture(index) for index in range(len(values))], "target": values} | others
    features = {"image": ImageFeature(), "target": feature} | {name: Value("string") for name in others}
    DatasetDict({"train": Dataset.from_dict(columns, features=Features(features))}).save_to_disk(folder / "saved")
    return str(folder / "saved")


def make_dataset(rows, **kwargs) -> LabeledImageDataset:
    return LabeledImageDataset(rows, **{"image_size": (24, 32), "num_channels": 3} | STATISTICS | kwargs)


def test_folder(folder):
    images = load_labeled_images(folder)
    assert images.class_names == ["cat", "dog"]
    assert images.problem_type == "single_label_classification"
    found = {Path(row["name"]).stem: row["label"] for row in images.rows}
    assert found == {"a": 0, "b": 0, "e": 0, "c": 1, "d": 1, "f": 1}
    assert images.labels == [0, 0, 0, 1, 1, 1]
    assert images.select([0, 5]).labels == [0, 1]


def test_folder_errors(folder, tmp_path):
    (folder / "loose.png").write_bytes((folder / "cat" / "a.png").read_bytes())
    with pytest.raises(ValueError, match="1 images lie directly in .*loose.png. Move each into a sub-folder"):
        load_labeled_images(folder)
    (folder / "loose.png").unlink()
    (tmp_path / "all").mkdir()
    folder.rename(tmp_path / "all" / "train")
    with pytest.raises(ValueError, match="sub-folders of .* are train, which are splits and not classes"):
        load_labeled_images(tmp_path / "all")
    with pytest.raises(ValueError, match="label_column='x' does nothing in a folder"):
        load_labeled_images(tmp_path / "all" / "train", label_column="x")
    with pytest.raises(ValueError, match="Name one source of images"):
        load_labeled_images()


@pytest.mark.parametrize(
    ("feature", "values", "labels", "class_names"),
    [
        (ClassLabel(names=["b", "a"]), [1, -1, 0, None], [1, 0], ["b", "a"]),
        (Value("string"), ["dog", "ant", None, "dog"], [1, 0, 1], ["ant", "dog"]),
        (Value("int32"), [10, 2, 10, None], [1, 0, 1], ["2", "10"]),
        (Value("int64"), [0, -1, 2, 0], [0, 1, 0], ["0", "2"]),
        (Value("string"), ["dog", "", " ", "ant"], [1, 0], ["ant", "dog"]),
        (Value("bool"), [True, False, None, True], [1, 0, 1], ["False", "True"]),
        (List(ClassLabel(names=["a", "b", "c"])), [[2, 0], [], None, [1]], [[1, 0, 1], [0, 0, 0], [0, 1, 0]], [*"abc"]),
        (List(Value("string")), [["x"], ["y", "x"], None, []], [[1, 0], [1, 1], [0, 0]], ["x", "y"]),
        (List(Value("int64")), [[3], [1, 3], None, []], [[0, 1], [1, 1], [0, 0]], ["1", "3"]),
    ],
)
def test_labels_are_found_by_their_type(feature, values, labels, class_names, tmp_path):
    images = load_labeled_images(dataset_name=save_table(tmp_path, feature, values))
    assert images.labels == labels
    assert images.class_names == class_names
    is_single = not isinstance(feature, List)
    assert images.problem_type == f"{'single' if is_single else 'multi'}_label_classification"
    # Labels stay with their images where some are left out.
    kept = [index for index, value in enumerate(values) if value not in (None, -1, "", " ")]
    assert [row["name"].split()[-1] for row in images.rows] == [str(index) for index in kept]


def test_numbers_are_taken_where_they_are_named(tmp_path):
    name = save_table(tmp_path, Value("float64"), [0.5, None, float("nan"), 2.25])
    with pytest.raises(ValueError, match="0 columns that may be labels among target. Name the one"):
        load_labeled_images(dataset_name=name)
    images = load_labeled_images(dataset_name=name, label_column="target")
    assert (images.labels, images.class_names, images.problem_type) == ([0.5, 2.25], None, "regression")
    assert make_dataset(images.rows)[1]["labels"] == 2.25


@pytest.mark.parametrize(
    ("feature", "values", "message"),
    [
        (Value("int64"), [-1, 1, 1], "has the value -1. Classes are integers from 0 on"),
        (Value("int64"), [-2, 0, 1], "has the value -2"),
        (Value("float64"), [1.0, None, 3.0], "whole numbers as floats, with 1 blanks"),
    ],
)
def test_labels_that_could_mean_something_else_are_refused(feature, values, message, tmp_path):
    name = save_table(tmp_path, feature, values)
    with pytest.raises(ValueError, match=message):
        load_labeled_images(dataset_name=name, label_column="target")


def test_images_and_masks_are_no_classes(tmp_path):
    for name in ("images", "Masks"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "a.png")
    with pytest.raises(ValueError, match="are Masks and images, which are no classes. .* use `hf-simmim segment`"):
        load_labeled_images(tmp_path)


def test_classes_that_are_spelled_alike_are_named(folder, tmp_path, caplog):
    name = save_table(tmp_path / "a", Value("string"), ["cat", "Cat ", "dog"])
    assert load_labeled_images(dataset_name=name).class_names == ["Cat ", "cat", "dog"]
    assert "Classes of column 'target' differ only in blanks, in capital letters" in caplog.text
    assert "'Cat ' and 'cat'" in caplog.text
    caplog.clear()
    load_labeled_images(folder)
    assert "differ only" not in caplog.text
    (folder / "dog").rename(folder / "CAT")
    load_labeled_images(folder)
    assert f"Classes of {folder} differ only in blanks" in caplog.text


def test_a_class_that_no_image_is_left_of_is_named(folder):
    (folder / "fox").mkdir()
    (folder / "fox" / "notes.txt").write_text("nothing yet")
    assert load_labeled_images(folder).class_names == ["cat", "dog"]
    for index in range(3):
        (folder / "fox" / f"{index}.unknown").write_bytes(b"an image that nobody reads")
    with pytest.raises(ValueError, match=r"The class 'fox' would be lost: .* \(3 x \.unknown\)"):
        load_labeled_images(folder)


def test_zeros_and_ones_for_each_class(tmp_path):
    name = save_table(tmp_path / "a", List(Value("float32")), [[0, 1, 1], [1, 0, 0]])
    images = load_labeled_images(dataset_name=name, label_column="target")
    assert (images.labels, images.class_names) == ([[0, 1, 1], [1, 0, 0]], ["0", "1", "2"])
    name = save_table(tmp_path / "b", List(Value("float32")), [[0, 2], [1, 0]])
    with pytest.raises(ValueError, match="must be a zero or one for each class"):
        load_labeled_images(dataset_name=name, label_column="target")


def test_several_columns_must_be_told_apart(tmp_path):
    name = save_table(tmp_path, Value("string"), ["a", "b"], other=["c", "c"])
    with pytest.raises(ValueError, match="2 columns that may be labels among target, other"):
        load_labeled_images(dataset_name=name)
    assert load_labeled_images(dataset_name=name, label_column="other").class_names == ["c"]
    with pytest.raises(ValueError, match="no column 'none' of labels. The columns are: target, other"):
        load_labeled_images(dataset_name=name, label_column="none")
    name = save_table(tmp_path / "declared", ClassLabel(names=["a", "b"]), [0, 1], other=["c", "c"])
    assert load_labeled_images(dataset_name=name).class_names == ["a", "b"]


def test_no_labels_at_all(tmp_path):
    name = save_table(tmp_path, ClassLabel(names=["a"]), [None, -1])
    with pytest.raises(ValueError, match="None of 2 images has a label in column 'target'"):
        load_labeled_images(dataset_name=name)


def test_shards(tmp_path):
    path = tmp_path / "a.parquet"
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    Dataset.from_dict({"image": [picture(1), picture(2)], "label": [1, 0]}, features=features).to_parquet(path)
    assert load_labeled_images(data_files=[str(path)]).labels == [1, 0]


def test_classes_of_the_training_images(folder, tmp_path):
    train = load_labeled_images(folder)
    name = save_table(tmp_path, Value("string"), ["dog", "dog", "bird"])
    test = load_labeled_images(dataset_name=name)
    with pytest.raises(ValueError, match="1 classes are not among the 2 training classes: bird. Remove"):
        test.with_classes(train.class_names)
    assert test.select([0, 1]).with_classes(train.class_names).labels == [1, 1]
    name = save_table(tmp_path / "several", List(Value("string")), [["dog"], [], ["dog"]])
    several = load_labeled_images(dataset_name=name).with_classes(["cat", "dog", "eel"])
    assert several.labels == [[0, 1, 0], [0, 0, 0], [0, 1, 0]]
    assert several.class_names == ["cat", "dog", "eel"]
    with pytest.raises(ValueError, match="These labels are classes and the training labels numbers"):
        train.with_classes(None)


@pytest.mark.parametrize("crop_ratio", [None, 1.0, 0.5])
@pytest.mark.parametrize("image_size", [(24, 24), (24, 48)])
def test_evaluation_takes_the_center(image_size, crop_ratio, tmp_path):
    """As cutting the center out of the resized picture; exactly, where the sizes divide."""
    path = tmp_path / "cat" / "a.png"
    path.parent.mkdir()
    ramp = np.linspace(0, 255, 256 * 256).reshape(256, 256)
    photo = Image.fromarray(np.stack([ramp, ramp.T, 255 - ramp], axis=-1).astype(np.uint8)).resize((320, 256))
    photo.save(path)
    sample = make_dataset(load_labeled_images(tmp_path).rows, image_size=image_size, crop_ratio=crop_ratio)[0]
    ratio = crop_ratio or 0.875
    zoom = max(image_size[0] / 256, image_size[1] / 320) / ratio
    resized = photo.resize((round(320 * zoom), round(256 * zoom)), Image.Resampling.BICUBIC)
    left, top = (resized.width - image_size[1]) / 2, (resized.height - image_size[0]) / 2
    box = (left, top, left + image_size[1], top + image_size[0])
    expected = np.asarray(resized.resize(image_size[::-1], Image.Resampling.BICUBIC, box=box)) / 255
    expected = (expected - np.array(MEAN)) / np.array(STD)
    assert sample["pixel_values"].shape == (3, *image_size)
    assert sample["pixel_values"].dtype == torch.float32
    assert np.abs(sample["pixel_values"].permute(1, 2, 0).numpy() - expected).max() < 0.1
    assert (sample["labels"], sample["key"]) == (0, "")


def test_small_images_are_enlarged():
    images = load_labeled_images(dataset_name=str(EMBEDDED_DATA), split="test")
    assert images.class_names[0] == "T-shirt/top"
    statistics = {"image_mean": (0.3,), "image_std": (0.35,)}
    sample = make_dataset(images.rows, image_size=(32, 32), num_channels=1, crop_ratio=1.0, **statistics)[3]
    stored = Image.open(io.BytesIO(images.rows[3]["image"]["bytes"])).convert("L")
    expected = np.asarray(stored.resize((32, 32), Image.Resampling.BICUBIC)) / 255
    assert np.allclose(sample["pixel_values"][0].numpy(), (expected - 0.3) / 0.35, atol=1e-5)
    assert sample["labels"] == images.labels[3]


def test_bicubic_is_not_bilinear():
    image = picture(30, (24, 24))
    sharp, soft = (
        crop_and_resize(image, (0, 0, 24, 24), (32, 32), 3, resample).astype(float)
        for resample in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)
    )
    assert np.array_equal(sharp, np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)))
    assert sharp.std() > 1.1 * soft.std()


def test_arrays_and_missing_pixels(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(3):
        array = rng.uniform(1, 2, (5, 40, 50)).astype(np.float32)
        array[:, 5:15, 5:20] = -1
        path = tmp_path / "water" / f"{index}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, array)
    rows = load_labeled_images(tmp_path).rows
    settings = {"num_channels": 5, "image_mean": [1.5] * 5, "image_std": [0.5] * 5, "rescale_factor": 1.0}
    for augmentation in (None, Augmentation(random_erasing=0.0, crop_scale=(0.5, 1.0))):
        dataset = make_dataset(rows, nodata=-1, augmentation=augmentation, **settings)
        values = dataset[1]["pixel_values"]
        assert values.isfinite().all()
        assert values.min() > -1.3  # (1 - 1.5) / 0.5 = -1, and bicubic goes a little beyond; nodata would be -5
        marked = make_dataset(rows, augmentation=augmentation, **settings)[1]["pixel_values"]
        assert marked.min() < -4
    # 16 bits keep their numbers at a factor of their own.
    path = tmp_path / "deep" / "a" / "deep.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.full((20, 20), 40000, np.uint16)).save(path)
    one = {"num_channels": 1, "image_mean": [0.0], "image_std": [1.0], "rescale_factor": 1 / 65535}
    values = make_dataset(load_labeled_images(tmp_path / "deep").rows, **one)[0]["pixel_values"]
    assert torch.allclose(values, torch.tensor(40000 / 65535), atol=1e-5)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_augmented_samples_are_a_function_of_seed_epoch_and_index(num_workers, folder):
    rows = load_labeled_images(folder).rows
    dataset = make_dataset(rows, augmentation=Augmentation(backend="builtin"))
    loader = torch.utils.data.DataLoader(
        dataset, 2, collate_fn=MixingCollator(2), num_workers=num_workers, persistent_workers=num_workers > 0
    )
    epochs = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        epochs.append(torch.cat([batch["pixel_values"] for batch in loader]))
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])
    alone = make_dataset(rows, augmentation=Augmentation(backend="builtin"))
    alone.set_epoch(1)
    collate = MixingCollator(2)
    assert torch.equal(epochs[1][2:4], collate([alone[2], alone[3]])["pixel_values"])
    other = make_dataset(rows, augmentation=Augmentation(backend="builtin"), seed=1)
    other.set_epoch(1)
    assert not torch.equal(other[2]["pixel_values"], alone[2]["pixel_values"])


def jpeg_rows(num_images: int = 4) -> Dataset:
    """Rows of photos that are reduced by two or more when they are decoded for 64 px."""
    contents = []
    for index in range(num_images):
        buffer = io.BytesIO()
        random_photo(np.random.default_rng(index), (403, 301)).save(buffer, format="JPEG")
        contents.append({"bytes": buffer.getvalue(), "path": None})
    return Dataset.from_dict({"image": contents, "name": [*map(str, range(num_images))], "label": [0] * num_images})


def test_the_decoder_is_for_augmented_images_alone():
    rows, decoders = jpeg_rows(), ("pillow", "pillow-torch")
    plain = Augmentation(crop_scale=(0.9, 1), rand_augment=None, color_jitter=0.0, random_erasing=0.0)
    training, masked = (
        [
            torch.stack([kind(decoder)[index]["pixel_values"].float() for index in range(len(rows))])
            for decoder in decoders
        ]
        for kind in (
            lambda decoder: make_dataset(rows, augmentation=plain, image_size=(64, 64), image_decoder=decoder),
            lambda decoder: MaskedImageDataset(rows, (64, 64), 3, 8, image_decoder=decoder),
        )
    )
    for pillow, other in (training, masked):
        assert not torch.equal(pillow, other)
        assert (pillow - other).abs().mean() < 0.05 * pillow.std()
    for kind in (
        lambda decoder: make_dataset(rows, image_size=(64, 64), image_decoder=decoder),
        lambda decoder: MaskedImageDataset(rows, (64, 64), 3, 8, image_decoder=decoder).whole(0),
    ):
        for index in range(len(rows)):
            assert torch.equal(*(kind(decoder)[index]["pixel_values"] for decoder in decoders))


def test_evaluation_is_the_same_in_every_epoch(folder):
    dataset = make_dataset(load_labeled_images(folder).rows)
    first = dataset[2]["pixel_values"]
    dataset.set_epoch(5)
    assert torch.equal(dataset[2]["pixel_values"], first)


class Recorder(nn.Module):
    """Sums the pixels of what Trainer gives it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.seen: list[list[float]] = []

    def forward(self, pixel_values, labels=None):
        sums = pixel_values.mean(dim=(1, 2, 3))
        self.seen.append(sums.tolist())
        return {"loss": self.linear(sums[:, None]).square().mean()}


@pytest.mark.parametrize("persistent", [False, True])
def test_trainer_sees_every_epoch_and_resumes_within_one(persistent, folder, tmp_path):
    rows = load_labeled_images(folder).rows

    def train(resume=None, **kwargs):
        arguments = TrainingArguments(
            **{"output_dir": str(tmp_path / "run"), "num_train_epochs": 3, "per_device_train_batch_size": 2},
            **{"save_steps": 4, "remove_unused_columns": False, "report_to": [], "use_cpu": True, "disable_tqdm": True},
            **kwargs,
        )
        model = Recorder()
        augmentation = Augmentation(backend="builtin")
        trainer = Trainer(
            *(model, arguments, MixingCollator(2), make_dataset(rows, augmentation=augmentation)),
            callbacks=[EpochCallback()],
        )
        trainer.train(resume_from_checkpoint=resume)
        return model.seen

    whole = train()
    assert len({value for batch in whole for value in batch}) == 3 * 6
    if persistent:
        assert train(dataloader_num_workers=1, dataloader_persistent_workers=True) == whole
    # Step 4 of 3 an epoch: within the second epoch, which accelerate tells nobody of.
    assert train(resume=str(tmp_path / "run" / "checkpoint-4")) == whole[4:]


def test_unreadable_images_are_replaced_in_training_only(tmp_path):
    write_photos(tmp_path / "cats", 4)
    write_photos(tmp_path / "dogs", 3, seed=1)
    (tmp_path / "dogs" / "broken.jpg").write_bytes(b"This is no image.\n")
    images = load_labeled_images(tmp_path)
    index = next(i for i, row in enumerate(images.rows) if row["name"].endswith("broken.jpg"))
    training = make_dataset(images.rows, augmentation=Augmentation())
    labels = set()
    for epoch in range(12):
        training.set_epoch(epoch)
        sample = training[index]
        labels.add(sample["labels"])
        assert sample["pixel_values"].isfinite().all()
    assert labels == {0, 1}, "the label is not the replacing image's"
    evaluation = make_dataset(images.rows)
    with pytest.raises(NoReadableImageError, match=r"broken.jpg cannot be read .* Fix or remove it"):
        evaluation[index]
    with pytest.raises(NoReadableImageError, match="1 of 8 images that were checked cannot be used"):
        check_images([evaluation], 0.0)
    assert [Path(name).name for name, _ in check_images([evaluation], 0.2)] == ["broken.jpg"]


def test_dataset_errors(folder):
    rows = load_labeled_images(folder).rows
    with pytest.raises(ValueError, match="image_mean has 1 and image_std 3 values for 3 channels"):
        make_dataset(rows, image_mean=[0.5])
    with pytest.raises(ValueError, match=r"crop_ratio=1.5 must be in \(0, 1\]"):
        make_dataset(rows, crop_ratio=1.5)
