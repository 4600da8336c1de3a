"""The command that packs images, run as a user runs it, and trainings from what it wrote."""

import json
import re

import numpy as np
import pyarrow.parquet
import pytest
from command_lines import command_line
from image_folders import gradient_image
from PIL import Image
from pretraining import options, read_log
from tiny import swin_config

import hf_simmim
from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMImageProcessor
from hf_simmim.__main__ import main
from hf_simmim.cli import embed, pack, pretrain, probe
from hf_simmim.data.labeled.images import load_labeled_images
from hf_simmim.data.sources import load_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty-eight photos in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(48):
        path = folder / f"day{index % 2}" / f"{index:02}.png"
        path.parent.mkdir(exist_ok=True)
        gradient_image(50 + index % 3, 60 + index).save(path)
    return folder


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    """The same, packed by the command."""
    out = tmp_path_factory.mktemp("packed") / "out"
    words = {"size": 40, "labels": "folder", "shard_images": 20, "workers": 2}
    main(["pack", str(folder), str(out), *command_line(words)])
    return out


def test_what_is_printed(folder, tmp_path, capsys):
    out = tmp_path / "out"
    pack.COMMAND.main([str(folder), str(out), "--size", "40", "--workers", "1"])
    printed = capsys.readouterr().out
    assert re.search(rf"{out}  1 shards of 48 images, 0.\d MB, 40x4\d to 40x8\d px; 48 were larger", printed)
    assert f"Next: pre-train on these images: hf-simmim pretrain --train_dir {out}" in printed
    result = hf_simmim.pack(image_dir=str(folder), output_dir=str(tmp_path / "part"), part="2/3", shard_images=20)
    assert (result.facts, result.num_images) == (None, 20)
    assert [path.name for path in result.files] == ["train-00001-of-00003.parquet"]


@pytest.mark.parametrize("streaming", [None, True])
def test_pretraining_from_the_packed_folder(packed, tmp_path, streaming):
    result = pretrain.COMMAND.main(options(packed, tmp_path / "run", max_steps=1, streaming=streaming))
    assert np.isfinite(result.metrics["eval_loss"])
    assert "loss" in read_log(tmp_path / "run")[0]


def test_labels_are_those_of_the_folders(folder, packed, tmp_path):
    torch_folder = tmp_path / "checkpoint"
    SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=swin_config())).save_pretrained(torch_folder)
    SimMIMImageProcessor(size={"height": 32, "width": 32}, model_patch_size=2).save_pretrained(torch_folder)
    before, after = load_labeled_images(folder), load_labeled_images(packed)
    assert (after.class_names, after.labels) == (before.class_names, before.labels)
    words = {"checkpoint": torch_folder, "device": "cpu", "num_workers": 0, "num_queries": 0, "map": "none"}
    for name, images in (("before", folder), ("after", packed)):
        embed.COMMAND.main(command_line(words | {"image_dir": images, "output_dir": tmp_path / name}))
    first, second = (pyarrow.parquet.read_table(tmp_path / name / "features.parquet") for name in ("before", "after"))
    assert first["label"] == second["label"]
    assert [name.removeprefix(str(packed)) for name in second["name"].to_pylist()] == [
        name.removeprefix(str(folder)) for name in first["name"].to_pylist()
    ]
    a, b = (np.array(table["features"].to_pylist()) for table in (first, second))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99
    words = {"checkpoint": torch_folder, "train_dir": packed, "output_dir": tmp_path / "probe", "device": "cpu"}
    probe.COMMAND.main(command_line(words | {"dataloader_num_workers": 0}))


def test_images_are_left_out_and_columns_carried_along(folder, packed, tmp_path):
    names = load_images(folder)["name"]
    (tmp_path / "exclude.json").write_text(json.dumps(names[:3]))
    words = {"image_dir": folder, "output_dir": tmp_path / "a", "leave_out": tmp_path / "exclude.json", "workers": 1}
    pack.COMMAND.main(command_line(words))
    kept = [name.removeprefix(f"{tmp_path / 'a'}/") for name in load_images(tmp_path / "a")["name"]]
    assert kept == [name.removeprefix(f"{folder}/") for name in names[3:]]
    # From shards to smaller ones; also the packed folder itself can be packed.
    words = {"data_files": packed / "*.parquet", "label_column": "label", "max_images": 10, "size": 32, "workers": 1}
    pack.COMMAND.main(command_line(words | {"output_dir": tmp_path / "b"}))
    labeled = load_labeled_images(tmp_path / "b")
    assert labeled.class_names == ["day0", "day1"]
    assert all(f"/day{label}/" in name for name, label in zip(labeled.rows["name"], labeled.labels, strict=True))


def test_annotations(folder, tmp_path):
    for name in load_images(folder)["name"]:
        image = Image.open(name)
        path = tmp_path / "masks" / name.removeprefix(f"{folder}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", image.size, 7).save(path)
    words = {"image_dir": folder, "annotation_dir": tmp_path / "masks", "size": 32, "workers": 1}
    pack.COMMAND.main(command_line(words | {"output_dir": tmp_path / "out"}))
    table = pyarrow.parquet.read_table(tmp_path / "out" / "train-00000-of-00001.parquet")
    assert table.column_names == ["image", "name", "annotation"]
    path.unlink()
    with pytest.raises(SystemExit, match="1 of 48 images have no map in annotation_dir"):
        pack.COMMAND.main(command_line(words | {"output_dir": tmp_path / "other"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_dir": None}, "No output folder is named. Give --output_dir"),
        ({"image_dir": "nowhere"}, "The image folder nowhere does not exist"),
        ({"size": 4}, "size=4 is a side in pixels and must be at least 8"),
        ({"quality": 0}, "quality=0 must be 1 to 100"),
        ({"part": "0/3"}, "part='0/3' must be a number of all, from 1/16 to 16/16"),
        ({"workers": 0}, "workers=0 must be 1 or more"),
        ({"label_column": "kind"}, "label_column='kind' has no effect for a folder"),
        ({"image_dir": None, "dataset_name": "x", "labels": "folder"}, "labels='folder' needs --image_dir"),
        ({"max_unreadable": 2}, "max_unreadable=2.0 must be a share"),
    ],
)
def test_errors(folder, tmp_path, settings, message):
    with pytest.raises(SystemExit, match=message) as info:
        pack.COMMAND.main(command_line({"image_dir": folder, "output_dir": tmp_path / "out"} | settings))
    assert "\n" not in str(info.value)


def test_a_folder_is_not_packed_onto_itself_and_has_no_labels_by_itself(folder, tmp_path):
    with pytest.raises(SystemExit, match="is image_dir. Name a folder of its own"):
        pack.COMMAND.main([str(folder), str(folder)])
    pack.COMMAND.main([str(folder), str(tmp_path / "out"), "--workers", "1"])
    with pytest.raises(ValueError, match="have no labels. Pack them again with --labels folder"):
        load_labeled_images(tmp_path / "out")
