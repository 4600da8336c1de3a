"""The probing script, run as a user runs it, on small folders of pictures."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import swin_config, vit_config
from transformers import ViTModel

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMImageProcessor, SimMIMModel
from hf_simmim.cli import probe
from hf_simmim.data.labeled.images import LabeledImageDataset, load_labeled_images
from hf_simmim.evaluation.intervals import wilson_interval
from hf_simmim.evaluation.probing import extract_features, knn, linear_probe


@pytest.fixture(scope="module")
def run_probe():
    """The command as a module."""
    return probe


def write_images(folder, count, seed):
    """Pictures of three classes, each with a color that is hard to see in the noise."""
    generator = np.random.default_rng(seed)
    for index in range(count):
        pixels = generator.integers(0, 200, (36, 40, 3), dtype=np.uint8)
        pixels[..., index % 3] += np.uint8(20)
        path = folder / ("red", "green", "blue")[index % 3] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 30, seed=0)
    write_images(folder / "test", 15, seed=1)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A pre-trained model with its processor, whose normalization is not ImageNet's."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(1)
    SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=swin_config())).save_pretrained(folder)
    processor = SimMIMImageProcessor(
        size={"height": 32, "width": 32}, model_patch_size=2, image_mean=[0.4] * 3, image_std=[0.2, 0.3, 0.4]
    )
    processor.save_pretrained(folder)
    return folder


def options(checkpoint, images, output_dir, **kwargs) -> list[str]:
    """A command line."""
    settings = {
        "checkpoint": checkpoint,
        "train_dir": images / "train",
        "validation_dir": images / "test",
        "output_dir": output_dir,
        "k": 5,
        "dataloader_num_workers": 0,
        "device": "cpu",
        "random_init": "false",
    } | kwargs
    command = []
    for key, value in settings.items():
        if value is not None:
            command += [f"--{key}", *(str(part) for part in (value if isinstance(value, list) else [value]))]
    return command


def test_figures_are_those_of_the_probes(run_probe, checkpoint, images, tmp_path, capsys):
    run_probe.COMMAND.main(options(checkpoint, images, tmp_path, layers=[1, "last"], pooling="mean_std"))
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(row["weights"], row["layer"]) for row in results["results"]] == [
        ("pre-trained", "1"),
        ("pre-trained", "last"),
    ]
    assert results["class_names"] == ["blue", "green", "red"]
    assert (results["num_train_images"], results["num_test_images"]) == (30, 15)
    model = SimMIMModel.from_pretrained(checkpoint)
    features, labels = [], []
    for name in ("train", "test"):
        rows = load_labeled_images(images / name).rows
        dataset = LabeledImageDataset(rows, (32, 32), 3, [0.4] * 3, [0.2, 0.3, 0.4], crop_ratio=1)
        samples = [dataset[index] for index in range(len(dataset))]
        pixel_values = torch.stack([sample["pixel_values"] for sample in samples])
        features.append(extract_features(model, [pixel_values], layer=1, pooling="mean_std", progress=False))
        labels.append([sample["labels"] for sample in samples])
    data = (features[0], labels[0], features[1], labels[1], 3)
    row = results["results"][0]
    assert row["knn"]["accuracy"] == knn(*data, k=5).accuracy
    assert row["linear"]["accuracy"] == linear_probe(*data).accuracy
    assert row["linear"]["penalty"] == linear_probe(*data).penalty
    printed = capsys.readouterr().out
    assert re.search(
        rf"^ +1 +{100 * row['linear']['accuracy']:.1f} % +{100 * row['knn']['accuracy']:.1f} %$", printed, re.M
    )
    assert Image.open(tmp_path / "accuracy.png").size == (960, 540)


def test_layer_and_pooling_are_chosen_without_test_images(run_probe, checkpoint, images, tmp_path, capsys):
    """By default; other test images choose the same, and named layers give the same accuracy."""
    run_probe.COMMAND.main(options(checkpoint, images, tmp_path / "a", random_init=None))
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "a" / "results.json").read_text())["results"]
    assert [row["layer"] for row in rows] == ["auto", "auto"]
    shown = re.search(r"^Chosen on a fifth .*: (.*) \(pre-trained\); (.*) \(untrained\)$", printed, re.M).groups()
    for row, words in zip(rows, shown, strict=True):
        assert words.endswith(f"pooling {row['chosen_pooling']}")
        assert words.startswith("the output" if row["chosen_layer"] is None else f"hidden state {row['chosen_layer']},")
    first = rows[0]
    layer = "last" if first["chosen_layer"] is None else first["chosen_layer"]
    named = {"layers": [layer], "pooling": first["chosen_pooling"]}
    run_probe.COMMAND.main(options(checkpoint, images, tmp_path / "b", **named))
    again = json.loads((tmp_path / "b" / "results.json").read_text())["results"][0]
    assert (again["linear"], again["knn"]) == (first["linear"], first["knn"])
    # The answers to test images turned around.
    write_images(tmp_path / "test", 15, seed=1)
    for source, target in (("red", "x"), ("green", "red"), ("x", "green")):
        (tmp_path / "test" / source).rename(tmp_path / "test" / target)
    run_probe.COMMAND.main(options(checkpoint, images, tmp_path / "c", validation_dir=tmp_path / "test"))
    turned = json.loads((tmp_path / "c" / "results.json").read_text())["results"][0]
    assert [turned[key] for key in ("chosen_layer", "chosen_pooling")] == [
        first[key] for key in ("chosen_layer", "chosen_pooling")
    ]


def test_the_control_and_seeds(run_probe, checkpoint, images, tmp_path, capsys):
    run_probe.COMMAND.main([*options(checkpoint, images, tmp_path, labels_per_class=4, seeds=[3, 5]), "--random_init"])
    results = json.loads((tmp_path / "results.json").read_text())
    rows = {(row["weights"], row["seed"]): row for row in results["results"]}
    assert list(rows) == [("pre-trained", 3), ("pre-trained", 5), ("untrained", 3), ("untrained", 5)]
    assert results["num_train_images"] == 12
    printed = capsys.readouterr().out
    assert "untrained linear probe" in printed
    assert printed.count(" ± ") == 4
    # Repeated, it is the same.
    run_probe.COMMAND.main(
        [*options(checkpoint, images, tmp_path / "b", labels_per_class=4, seeds=[3]), "--random_init"]
    )
    again = json.loads((tmp_path / "b" / "results.json").read_text())["results"]
    assert again == [rows["pre-trained", 3], rows["untrained", 3]]


def test_accuracies_are_compared_with_an_untrained_encoder(run_probe, checkpoint, images, tmp_path, capsys):
    """By default; the difference, its interval and the sentence are those of the answers."""
    run_probe.COMMAND.main(options(checkpoint, images, tmp_path, layers=[1, "last"], random_init=None))
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(row["weights"], row["layer"]) for row in results["results"]] == [
        *(("pre-trained", "1"), ("pre-trained", "last"), ("untrained", "1"), ("untrained", "last"))
    ]
    accuracies = {(row["weights"], row["layer"]): row["linear"]["accuracy"] for row in results["results"]}
    printed = capsys.readouterr().out
    verdicts = [entry for entry in results["verdicts"] if entry["probe"] == "linear"]
    assert [entry["layer"] for entry in verdicts] == ["1", "last"]
    for entry in verdicts:
        layer = entry["layer"]
        difference = accuracies["pre-trained", layer] - accuracies["untrained", layer]
        assert entry["difference"] == pytest.approx(difference, abs=1e-9)
        assert entry["low"] <= entry["difference"] <= entry["high"]
        expected = "yes" if entry["low"] > 0 else "no" if entry["high"] < 0 else "cannot tell"
        assert entry["answer"] == expected
        assert f"Layer {layer}: {entry['sentence']}." in printed
    # Fifteen test images, five of each class.
    assert results["majority_accuracy"] == pytest.approx(1 / 3)
    assert "the most frequent class: 33.3%" in printed
    interval = results["intervals"][0]
    assert (interval["low"], interval["high"]) == wilson_interval(15 * interval["accuracy"], 15)
    assert f"balanced accuracy {interval['balanced_accuracy']:.1%}" in printed
    again = options(checkpoint, images, tmp_path / "again", layers=[1, "last"], random_init=None, seeds=[0, 1])
    run_probe.COMMAND.main(again)
    of_two = json.loads((tmp_path / "again" / "results.json").read_text())
    mean = np.mean([row["linear"]["accuracy"] for row in of_two["results"] if row["weights"] == "pre-trained"][:2])
    assert of_two["intervals"][0]["accuracy"] == pytest.approx(mean)


def test_without_images_it_is_the_embedded_data(run_probe, checkpoint):
    data, _ = run_probe.COMMAND.parse(["--checkpoint", "x"])
    train, test = run_probe.load_images(data)
    assert (len(train), len(test), len(train.class_names)) == (6000, 1000, 10)


def test_a_part_is_held_out_of_a_folder_alone(run_probe, checkpoint, images, tmp_path):
    run_probe.COMMAND.main(options(checkpoint, images, tmp_path, validation_dir=None, holdout=0.2))
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["num_train_images"], results["num_test_images"]) == (24, 6)


def test_a_checkpoint_of_transformers(run_probe, images, tmp_path, caplog):
    torch.manual_seed(0)
    ViTModel(vit_config()).save_pretrained(tmp_path / "vit")
    run_probe.COMMAND.main(options(tmp_path / "vit", images, tmp_path / "out", pooling="cls", layers=[-1, "last"]))
    first, last = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert first["knn"] == last["knn"]  # the class token of the output is that of the last state


def test_other_channels_need_a_processor(run_probe, images, tmp_path):
    config = SimMIMConfig(encoder_config=swin_config(num_channels=4))
    SimMIMForMaskedImageModeling(config).save_pretrained(tmp_path / "four")
    with pytest.raises(SystemExit, match="no image processor.*4 channels.*preprocessor_config.json"):
        run_probe.COMMAND.main(options(tmp_path / "four", images, tmp_path))


def test_unreadable_images_are_left_out(run_probe, checkpoint, images, tmp_path, capsys):
    folder = tmp_path / "train"
    shutil.copytree(images / "train", folder)
    expected = options(checkpoint, images, tmp_path / "a", train_dir=folder, max_unreadable=0.1)
    for name in ("red/00.png", "green/07.png"):
        (folder / name).unlink()
    run_probe.COMMAND.main(expected)
    for name in ("red/00.png", "green/07.png"):
        (folder / name).write_bytes(b"none")
    capsys.readouterr()
    run_probe.COMMAND.main(options(checkpoint, images, tmp_path / "b", train_dir=folder, max_unreadable=0.1))
    assert "2 of 45 images cannot be read, such as" in capsys.readouterr().out
    first, second = (json.loads((tmp_path / name / "results.json").read_text()) for name in "ab")
    assert first == second
    assert first["num_train_images"] == 28
    with pytest.raises(SystemExit, match=r"2 of 45 images cannot be read.*more than max_unreadable=0\.04"):
        run_probe.COMMAND.main(options(checkpoint, images, tmp_path, train_dir=folder, max_unreadable=0.04))


def test_a_test_class_that_is_not_trained_on_is_refused(run_probe, checkpoint, images, tmp_path):
    write_images(tmp_path / "test", 3, seed=2)
    (tmp_path / "test" / "red").rename(tmp_path / "test" / "pink")
    with pytest.raises(SystemExit, match="pink"):
        run_probe.COMMAND.main(options(checkpoint, images, tmp_path, validation_dir=tmp_path / "test"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoint": None}, "Give --checkpoint"),
        ({"checkpoint": ROOT}, "neither the folder of a model"),
        ({"layers": [1, 9]}, "layer=9: the encoder has 4 hidden states"),
        ({"layers": ["first"]}, "layers has 'first'"),
        ({"layers": ["auto", 1]}, "Give auto alone"),
        ({"layers": [1, 1]}, "contains duplicates"),
        ({"pooling": "cls"}, "no class token"),
        ({"labels_per_class": 11}, "has 10 images, fewer than labels_per_class=11"),
        ({"labels_per_class": 0}, "labels_per_class=0"),
        ({"k": 0}, "k=0"),
        ({"train_dir": None}, "validation_dir=.*without training images. Set --train_dir"),
        ({"dataset_name": "x"}, "Name one source"),
        ({"validation_split": "test"}, "needs --dataset_name"),
        ({"dataset_config": "x"}, "without --dataset_name"),
        ({"image_column": "x"}, "has no effect for a folder"),
        ({"label_column": "x"}, "does nothing in a folder"),
        ({"layer": 3}, "unknown option --layer. Did you mean --layers?"),
    ],
)
def test_mistakes_are_refused_with_the_remedy(run_probe, checkpoint, images, tmp_path, settings, message):
    with pytest.raises(SystemExit, match=message):
        run_probe.COMMAND.main(
            options(**({"checkpoint": checkpoint, "images": images, "output_dir": tmp_path} | settings))
        )


def test_damaged_weights_are_told(run_probe, checkpoint, images, tmp_path):
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(SystemExit, match="damaged"):
        run_probe.COMMAND.main(options(tmp_path, images, tmp_path / "out"))


def test_a_model_that_has_diverged_is_told(run_probe, checkpoint, images, tmp_path):
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["simmim.encoder.layernorm.weight"][:] = torch.nan
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit, match="has diverged"):
        run_probe.COMMAND.main(options(tmp_path, images, tmp_path / "out"))
