"""Predictions on folders of pictures: the same as in the evaluation of the training, in complete files only."""

import json
import re
import shlex
import shutil

import numpy as np
import pyarrow.parquet
import pytest
import torch
from command_lines import command_line
from datasets import Dataset
from huggingface_hub import HfApi
from PIL import Image
from segmentation_scenes import CLASS_NAMES, write_scenes
from tiny import swin_config, vit_config
from transformers import ViTForImageClassification, ViTImageProcessor

import hf_simmim
from hf_simmim import SimMIMConfig, SimMIMForImageClassification, SimMIMForMaskedImageModeling, SimMIMImageProcessor
from hf_simmim.cli import finetune, predict, segment
from hf_simmim.data.labeled.segmentation import SegmentationLabels, load_folder
from hf_simmim.data.sources import load_images
from hf_simmim.evaluation.metrics import MeanIoU

COLORS = {"blue": (97, 100, 110), "green": (97, 110, 100), "red": (107, 100, 100)}
SHORT = {
    **{"num_train_epochs": 3, "eval_strategy": "no", "save_strategy": "no", "dataloader_num_workers": 0},
    **{"use_cpu": True, "report_to": "none"},
}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    encoder = swin_config(image_size=32, patch_size=4, depths=[1, 1, 1], num_heads=[1, 2, 4], window_size=2)
    SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=encoder)).save_pretrained(folder)
    SimMIMImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4] * 3, image_std=[0.3] * 3).save_pretrained(
        folder
    )
    return folder


def write_pictures(folder, count, seed, size=(40, 52)):
    """Noisy pictures of three colors, in a sub-folder each, whose borders tell nothing."""
    generator = np.random.default_rng(seed)
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.normal(color, 90, (*size, 3))
            pixels[:6], pixels[-6:] = 255 * generator.random((2, 6, size[1], 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures") / "new", 6, seed=1)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, pretrained, pictures):
    """A fine-tuned classifier that is sometimes wrong, evaluated on `pictures`."""
    folder = tmp_path_factory.mktemp("classifier")
    plain = {"mixup": 0, "cutmix": 0, "rand_augment": "none", "random_erasing": 0}
    finetune.COMMAND(
        **{"checkpoint": str(pretrained), "train_dir": str(write_pictures(folder / "training", 8, seed=0))},
        **{"validation_dir": str(pictures), "output_dir": str(folder / "run"), "eval_crop_ratio": 0.8},
        **{"per_device_train_batch_size": 8, "learning_rate": 1e-3, **SHORT, **plain},
    )
    return folder / "run"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data", 6, seed=5)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory, pretrained, scenes):
    """A segmentation model, evaluated on `scenes`, which it resizes."""
    return train_segmenter(tmp_path_factory.mktemp("segmenter"), pretrained, scenes, short_side=56)


def train_segmenter(folder, pretrained, scenes, short_side):
    segment.COMMAND(
        **{"checkpoint": str(pretrained), "train_dir": str(write_scenes(folder / "training", 12))},
        **{"validation_dir": str(scenes), "output_dir": str(folder / "run"), "crop_size": 48, "short_side": short_side},
        **{"decoder_channels": 16, "drop_path_rate": 0.0, "per_device_train_batch_size": 4, "learning_rate": 4e-3},
        **SHORT | {"num_train_epochs": 6},
    )
    return folder / "run"


def run(checkpoint, output, **options):
    """Run the command as from a shell."""
    usual = {"checkpoint": checkpoint, "output": output, "num_workers": 0, "device": "cpu"}
    flags = [f"--{name}" for name, value in options.items() if value is True]
    options = {name: value for name, value in options.items() if value is not True}
    return predict.COMMAND.main(command_line(usual | options) + flags)


def test_predictions_are_those_of_the_evaluation(classifier, pictures, tmp_path, capsys):
    result = run(classifier, tmp_path / "new" / "found.csv", image_dir=pictures, batch_size=5)
    rows = result.table().to_pylist()
    assert [row["name"] for row in rows] == load_images(pictures)["name"] == result.names
    expected = json.loads((classifier / "results.json").read_text())["runs"][0]["metrics"]
    labels = [row["name"].split("/")[-2] for row in rows]
    hits = [row["predicted"] == label for row, label in zip(rows, labels, strict=True)]
    assert sum(hits) / len(hits) == expected["accuracy"]
    assert 0 < sum(hits) < len(hits)
    # The loss tells small differences of the pixels, too.
    losses = [-np.log(row[f"probability_{label}"]) for row, label in zip(rows, labels, strict=True)]
    assert np.mean(losses) == pytest.approx(expected["loss"], rel=1e-6)
    for row in rows:
        shares = {name: row[f"probability_{name}"] for name in COLORS}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-6)
        assert row["predicted"] == max(shares, key=shares.get)
        assert row["probability"] == shares[row["predicted"]]
    assert list(rows[0]) == ["name", "predicted", "probability", *(f"probability_{name}" for name in COLORS)]
    assert result.counts == {name: count for name in COLORS if (count := sum(r["predicted"] == name for r in rows))}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["found.csv"]
    printed = capsys.readouterr().out
    assert f"{max(result.counts.values())} images" in printed
    assert str(tmp_path / "new" / "found.csv") in printed
    # Another crop, other probabilities.
    other = run(classifier, tmp_path / "b.csv", image_dir=pictures, eval_crop_ratio=1).table()
    assert other["probability_red"] != result.table()["probability_red"]


def test_classes_may_be_called_like_other_lines(classifier, pictures, tmp_path, capsys):
    """The number of images is not that of a class of this name."""
    shutil.copytree(classifier, tmp_path / "renamed")
    config = json.loads((classifier / "config.json").read_text())
    config["id2label"] = {"0": "Images", "1": "Output", "2": "red"}
    config["label2id"] = {name: int(index) for index, name in config["id2label"].items()}
    (tmp_path / "renamed" / "config.json").write_text(json.dumps(config))
    result = run(tmp_path / "renamed", tmp_path / "a.csv", image_dir=pictures)
    lines = re.findall(r"^( *\S+): +(.+)$", capsys.readouterr().out, re.M)
    assert ("Images", "18") in lines
    assert ("Output", str(tmp_path / "a.csv")) in lines
    shown = {title.strip(): int(text.split()[0]) for title, text in lines if title.startswith("  ")}
    assert shown == result.counts


def test_parquet_data_sets_and_python(classifier, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "GROUP_SIZE", 4)
    csv = run(classifier, tmp_path / "a.csv", image_dir=pictures, max_images=7)
    paths = csv.names
    Dataset.from_dict({"image": [Image.open(path) for path in paths]}).to_parquet(tmp_path / "images.parquet")
    result = hf_simmim.predict(
        **{"checkpoint": str(classifier), "data_files": [str(tmp_path / "images.parquet")], "device": "cpu"},
        **{"output": str(tmp_path / "b.parquet"), "num_workers": 1, "batch_size": 3},
    )
    assert pyarrow.parquet.ParquetFile(tmp_path / "b.parquet").num_row_groups == 2
    assert result.names == [f"{tmp_path / 'images.parquet'}, train row {index}" for index in range(7)]
    for name in COLORS:
        column = f"probability_{name}"
        assert result.table()[column].to_pylist() == pytest.approx(csv.table()[column].to_pylist(), rel=1e-5)


@pytest.mark.parametrize("is_resized", [True, False])
def test_masks_are_those_of_the_evaluation(is_resized, segmenter, pretrained, scenes, tmp_path, capsys):
    if not is_resized:
        segmenter = train_segmenter(tmp_path / "whole", pretrained, scenes, short_side=0)
    result = run(segmenter, tmp_path / "masks", image_dir=scenes / "images", batch_size=4)
    rows = result.table().to_pylist()
    assert result.task == "segmentation"
    assert [row["mask"] for row in rows] == [f"scene {index:03d}.png" for index in range(6)]
    pairs, labels, metric = load_folder(scenes), SegmentationLabels(list(CLASS_NAMES)), MeanIoU(CLASS_NAMES, 255)
    for row, picture, annotation in zip(rows, pairs.images, pairs.annotations, strict=True):
        mask = Image.open(tmp_path / "masks" / row["mask"])
        assert (mask.mode, mask.size) == ("P", Image.open(picture["name"]).size)
        classes, ids = np.asarray(mask), labels.read(annotation)
        metric.add_batch(predictions=classes.reshape(1, -1), references=ids.reshape(1, -1))
        for index, name in enumerate(CLASS_NAMES):
            assert row[f"share_{name}"] == pytest.approx((classes == index).mean(), abs=1e-12)
        # With colors, as `segment` reads it.
        assert np.array_equal(labels.read({"name": "mask", "image": {"bytes": None, "path": mask.filename}}), classes)
        assert len(mask.palette.colors) >= len(CLASS_NAMES)
    found, expected = metric.compute(), json.loads((segmenter / "results.json").read_text())
    assert (found["mean_iou"], found["pixel_accuracy"]) == (expected["mean_iou"], expected["pixel_accuracy"])
    assert 0.2 < found["mean_iou"] < 1
    assert "% of the pixels" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} - {"whole"} == {"masks"}


def test_masks_of_folders_in_folders(segmenter, tmp_path):
    photos = write_pictures(tmp_path / "photos", 1, seed=2)
    result = run(segmenter, tmp_path / "a", image_dir=photos)
    assert result.table()["mask"].to_pylist() == [f"{name}/0.png" for name in COLORS]
    Image.open(photos / "red" / "0.png").save(photos / "red" / "0.jpg")
    result = run(segmenter, tmp_path / "b", image_dir=photos)
    masks = ["blue/0.png.png", "green/0.png.png", "red/0.jpg.png", "red/0.png.png"]
    assert result.table()["mask"].to_pylist() == masks
    assert all((tmp_path / "b" / mask).is_file() for mask in masks)
    # A folder of masks is replaced as a whole, and only if it is one.
    result = run(segmenter, tmp_path / "b", image_dir=photos / "blue", overwrite=True)
    assert [path.name for path in sorted((tmp_path / "b").rglob("*"))] == ["0.png", "predictions.csv"]
    with pytest.raises(SystemExit, match="holds no predictions that --overwrite could replace"):
        run(segmenter, tmp_path, image_dir=pathless(photos), overwrite=True)
    assert photos.is_dir()


def pathless(photos):
    """A copy of a folder elsewhere, so that its place is no reason."""
    copy = photos.parent.with_name(f"{photos.parent.name}-elsewhere")
    shutil.copytree(photos, copy)
    return copy


def test_a_name_on_the_hub(classifier, pictures, tmp_path, hub):
    HfApi().create_repo("org/colors")
    HfApi().upload_folder(repo_id="org/colors", folder_path=classifier)
    usual, found = (
        run(name, tmp_path / "a.csv", image_dir=pictures, overwrite=True).table() for name in (classifier, "org/colors")
    )
    assert found.equals(usual)


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_the_model_card_shows_the_command(kind, pictures, tmp_path, request, monkeypatch):
    folder = request.getfixturevalue(kind)
    (command,) = re.findall(r"^hf-simmim predict (.*)$", (folder / "README.md").read_text(), re.MULTILINE)
    words = shlex.split(command)
    assert words[1] == folder.name
    shutil.copytree(pictures, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    result = predict.COMMAND.main([*words, "--checkpoint", str(folder), "--num_workers", "0", "--device", "cpu"])
    assert len(result.table()) == len(load_images(pictures))


def test_several_labels_and_numbers(pictures, tmp_path):
    config = SimMIMConfig(encoder_config=swin_config(), id2label={0: "crane", 1: "crane", 2: "dog"})
    for kind in ("multi_label_classification", "regression"):
        config.problem_type = kind
        torch.manual_seed(0)
        SimMIMForImageClassification(config).save_pretrained(tmp_path / kind)
        SimMIMImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / kind)
    names = ["crane (0)", "crane (1)", "dog"]
    model, options = tmp_path / "multi_label_classification", {"image_dir": pictures, "max_images": 15}
    usual = run(model, tmp_path / "a.csv", **options).table()
    threshold = float(np.median([usual[f"probability_{name}"].to_numpy() for name in names]))
    result = run(model, tmp_path / "a.csv", threshold=threshold, overwrite=True, **options)
    for table, cut in ((usual, 0.5), (result.table(), threshold)):
        for row in table.to_pylist():
            chosen = [name for name in names if row[f"probability_{name}"] >= cut]
            assert (row["predicted"] or "") == "; ".join(chosen)
            assert "probability" not in row
    assert sum(result.counts.values()) == pytest.approx(len(names) * 15 / 2, abs=2)
    assert any("; " in text for text in result.table()["predicted"].to_pylist())
    result = run(tmp_path / "regression", tmp_path / "b.csv", image_dir=pictures)
    assert result.task == "regression"
    assert result.table().column_names == ["name", *(f"value_{name}" for name in names)]
    assert result.counts == {}


def test_models_of_transformers_use_their_own_processor(pictures, tmp_path):
    torch.manual_seed(0)
    model = ViTForImageClassification(vit_config(num_labels=4)).eval()
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.2] * 3)
    model.save_pretrained(tmp_path / "vit")
    processor.save_pretrained(tmp_path / "vit")
    result = run(tmp_path / "vit", tmp_path / "a.parquet", image_dir=pictures)
    inputs = processor([Image.open(name) for name in result.names], return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits.softmax(dim=1)
    found = torch.tensor([result.table()[f"probability_LABEL_{index}"].to_pylist() for index in range(4)]).T
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_unreadable_images_are_left_out_listed_and_limited(classifier, segmenter, tmp_path, capsys):
    photos = write_pictures(tmp_path / "photos", 2, seed=2)
    broken = photos / "green" / "1.png"
    broken.write_bytes(b"no picture")
    for model, output in ((classifier, tmp_path / "a.csv"), (segmenter, tmp_path / "masks")):
        result = run(model, output, image_dir=photos, max_unreadable=0.2)
        assert len(result.names) == len(result.table()) == 5
        assert list(result.unreadable) == [str(broken)]
        lines = output.with_name(f"{output.name}.unreadable_images.txt").read_text().splitlines()
        assert lines == [f"{broken}\t{result.unreadable[str(broken)]}"]
        assert "Unreadable:" in capsys.readouterr().out
        with pytest.raises(SystemExit, match="more than the allowed share of 0.05"):
            run(model, tmp_path / "other.csv" if output.suffix else tmp_path / "other", image_dir=photos)
    assert not list(tmp_path.glob("other*"))


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_a_run_that_fails_leaves_everything_as_it_was(kind, pictures, tmp_path, monkeypatch, request):
    model = request.getfixturevalue(kind)
    output = tmp_path / ("found.csv" if kind == "classifier" else "masks")
    before = run(model, output, image_dir=pictures).table()

    def stop(*args, **kwargs):
        for count, prediction in enumerate(predict_images(*args, **kwargs)):
            if count == 7:
                raise KeyboardInterrupt
            yield prediction

    predict_images = predict.predict_images
    monkeypatch.setattr(predict, "predict_images", stop)
    monkeypatch.setattr(predict, "GROUP_SIZE", 3)
    with pytest.raises(SystemExit, match="add --overwrite"):
        run(model, output, image_dir=pictures)
    with pytest.raises(KeyboardInterrupt):
        run(model, output, image_dir=pictures / "red" / "..", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    path = output if output.suffix else output / "predictions.csv"
    assert pyarrow.csv.read_csv(path).equals(before)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("pretrained", {}, "It has no classes to predict. Train it first: hf-simmim finetune --checkpoint"),
        ("classifier", {"checkpoint": None}, "No checkpoint is named"),
        ("classifier", {"output": "found"}, "must be a file that ends in .parquet or .csv"),
        ("classifier", {"threshold": 0.3}, "threshold=0.3 has no effect"),
        ("classifier", {"max_unreadable": 2}, "max_unreadable=2.0 must be between 0 and 1"),
        ("classifier", {"eval_crop_ratio": 1.5}, "crop_ratio=1.5 must be in"),
        ("classifier", {"image_dir": "nowhere"}, "nowhere does not exist"),
        ("segmenter", {"output": "found.csv"}, "must be a folder"),
        ("segmenter", {"eval_crop_ratio": 0.9}, "eval_crop_ratio=0.9 has no effect"),
    ],
)
def test_mistakes(model, options, message, pictures, tmp_path, request, monkeypatch):
    monkeypatch.chdir(tmp_path)
    usual = {"checkpoint": request.getfixturevalue(model), "output": None, "image_dir": pictures}
    with pytest.raises(SystemExit, match=message):
        run(**(usual | options))
    assert not list(tmp_path.rglob("*.*"))


def test_masks_are_not_written_among_images(segmenter, pictures):
    with pytest.raises(SystemExit, match="contain each other"):
        run(segmenter, pictures / "masks", image_dir=pictures)


def test_pixels_on_another_scale_are_refused(classifier, tmp_path):
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "0.npy", np.random.default_rng(0).random((3, 40, 40), np.float32))
    with pytest.raises(SystemExit, match="about 0 and 1 are expected"):
        run(classifier, tmp_path / "found.csv", image_dir=tmp_path / "arrays")
