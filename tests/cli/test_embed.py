"""The script that writes features, run as a user runs it, on small folders of pictures."""

import json

import numpy as np
import pyarrow.parquet
import pytest
import torch
import torch.nn.functional as F
from command_lines import command_line
from paths import EMBEDDED_DATA
from PIL import Image
from tiny import swin_config, vit_config
from transformers import ViTModel

from hf_simmim import SimMIMConfig, SimMIMForMaskedImageModeling, SimMIMImageProcessor, SimMIMModel
from hf_simmim.cli import embed
from hf_simmim.data.sources import load_table
from hf_simmim.evaluation import feature_parts
from hf_simmim.evaluation import features as features_module
from hf_simmim.evaluation.features import nearest_rows, read_features


@pytest.fixture(scope="module")
def script():
    return embed


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A pre-trained model with its processor, whose normalization is not ImageNet's."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(1)
    SimMIMForMaskedImageModeling(SimMIMConfig(encoder_config=swin_config())).save_pretrained(folder)
    SimMIMImageProcessor(
        size={"height": 32, "width": 32}, model_patch_size=2, image_mean=[0.4] * 3, image_std=[0.2, 0.3, 0.4]
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    """Eight pictures of the size that the model takes, in two sub-folders."""
    generator = np.random.default_rng(0)
    for index in range(8):
        path = tmp_path / "photos" / ("north", "south")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def run(script, checkpoint, output_dir, **settings) -> pyarrow.Table:
    usual = {"checkpoint": checkpoint, "output_dir": output_dir, "num_workers": 0, "device": "cpu", "batch_size": 3}
    script.COMMAND.main(command_line(usual | settings))
    return pyarrow.parquet.read_table(output_dir / "features.parquet")


def test_features_are_the_models(script, checkpoint, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(features_module, "GROUP_SIZE", 6)
    table = run(script, checkpoint, tmp_path / "out", image_dir=photos)
    names = table.column("name").to_pylist()
    assert names == sorted(str(path) for path in photos.rglob("*.png"))
    assert table.column("label").to_pylist() == ["north"] * 4 + ["south"] * 4
    processor = SimMIMImageProcessor.from_pretrained(checkpoint)
    pixel_values = processor([Image.open(name) for name in names], return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = SimMIMModel.from_pretrained(checkpoint)(pixel_values).feature_map.mean(dim=(2, 3))
    features = torch.tensor(table.column("features").to_pylist())
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    # Two groups of rows read alike, all and some of them.
    assert pyarrow.parquet.ParquetFile(tmp_path / "out" / "features.parquet").num_row_groups == 2
    assert torch.equal(read_features(tmp_path / "out" / "features.parquet"), features)
    assert torch.equal(read_features(tmp_path / "out" / "features.parquet", [1, 6]), features[[1, 6]])
    noted = json.loads(table.schema.metadata[b"hf_simmim"])
    assert (noted["checkpoint"], noted["pooling"], noted["image_size"]) == (str(checkpoint), "mean", [32, 32])
    printed = capsys.readouterr().out
    for name in ("features.parquet", "neighbours.png", "map.png", "map.html"):
        assert str(tmp_path / "out" / name) in printed
        assert (tmp_path / "out" / name).exists()
    assert not list((tmp_path / "out").glob("*.unfinished"))


def test_neighbors_are_the_most_similar_of_all_groups(script, checkpoint, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(features_module, "GROUP_SIZE", 3)
    run(script, checkpoint, tmp_path / "out", image_dir=photos, map="none", num_queries=0)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["features.parquet"]
    features = read_features(tmp_path / "out" / "features.parquet")
    features = F.normalize(features - features.mean(dim=0), dim=1)
    similarity = (features @ features.T).fill_diagonal_(-1)
    rows, values = nearest_rows(tmp_path / "out" / "features.parquet", [0, 4, 7], k=3)
    expected = similarity[[0, 4, 7]].topk(3, dim=1)
    assert torch.equal(rows, expected.indices)
    torch.testing.assert_close(values, expected.values, rtol=1e-4, atol=1e-4)
    rows, _ = nearest_rows(tmp_path / "out" / "features.parquet", [2], k=100)
    assert sorted(rows[0].tolist()) == [0, 1, 3, 4, 5, 6, 7]


def test_pictures_show_names_and_classes(script, checkpoint, photos, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        script, "draw_neighbors", lambda *arguments: drawn.setdefault("neighbors", arguments) and Image.new("L", (1, 1))
    )
    run(script, checkpoint, tmp_path / "out", image_dir=photos, num_queries=2, num_neighbors=3)
    pictures, similarities, names, labels = drawn["neighbors"]
    rows, values = nearest_rows(tmp_path / "out" / "features.parquet", [0, 7], k=3)
    table = pyarrow.parquet.read_table(tmp_path / "out" / "features.parquet")
    expected = [[0, *rows[0].tolist()], [7, *rows[1].tolist()]]
    assert names == [[table["name"][row].as_py() for row in line] for line in expected]
    assert labels == [[table["label"][row].as_py() for row in line] for line in expected]
    assert torch.equal(similarities, values)
    for line, shown in zip(names, pictures, strict=True):
        for name, picture in zip(line, shown, strict=True):
            assert np.abs(np.asarray(Image.open(name)).astype(int) - picture).max() <= 1
    page = (tmp_path / "out" / "map.html").read_text()
    assert "2-D map of 8 images by t-SNE" in page
    assert all(json.dumps(name) in page for name in table["name"].to_pylist())


def test_layer_pooling_size_and_half(script, checkpoint, photos, tmp_path):
    settings = {"image_dir": photos, "map": "none", "num_queries": 0}
    plain = run(script, checkpoint, tmp_path / "a", **settings)
    layer = run(script, checkpoint, tmp_path / "b", layer=0, pooling="max", image_size=48, **settings)
    width = plain.schema.field("features").type.list_size
    assert layer.schema.field("features").type.list_size != width
    script.COMMAND.main([*command_line({"checkpoint": checkpoint, "output_dir": tmp_path / "c", **settings}), "--half"])
    half = pyarrow.parquet.read_table(tmp_path / "c" / "features.parquet")
    assert str(half.schema.field("features").type.value_type) == "halffloat"
    torch.testing.assert_close(
        read_features(tmp_path / "c" / "features.parquet"),
        read_features(tmp_path / "a" / "features.parquet"),
        rtol=2e-3,
        atol=1e-4,
    )


def test_stock_checkpoints_and_columns_of_labels(script, tmp_path):
    ViTModel(vit_config()).save_pretrained(tmp_path / "vit")
    table = run(script, tmp_path / "vit", tmp_path / "out", max_images=12, num_queries=2, num_neighbors=3)
    labels = table.column("label").to_pylist()
    assert len(labels) == 12
    assert set(labels) <= set(load_table(str(EMBEDDED_DATA), None, None, "test").features["label"].names)


def test_broken_images_are_left_out_and_named(script, checkpoint, photos, tmp_path, capsys):
    (photos / "north" / "2.png").write_bytes(b"no picture")
    table = run(script, checkpoint, tmp_path / "out", image_dir=photos)
    assert len(table) == 7
    assert table.column("label").to_pylist() == ["north"] * 3 + ["south"] * 4
    printed = capsys.readouterr().out
    assert "left out: " + str(photos / "north" / "2.png") in printed
    assert "1 of 8 images cannot be read" in printed
    for path in photos.rglob("*.png"):
        path.write_bytes(b"no picture")
    (tmp_path / "out" / "features.parquet").unlink()
    with pytest.raises(SystemExit, match="None of the 8 images can be read"):
        run(script, checkpoint, tmp_path / "out", image_dir=photos)
    assert not list((tmp_path / "out").glob("features*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoint": None}, "No checkpoint is named"),
        ({"image_dir": "nowhere"}, "does not exist"),
        ({"layer": 99}, "layer=99"),
        ({"max_images": 0}, "max_images=0 leaves no images"),
        ({"split": "test"}, "split='test' has no effect for a folder"),
        ({"dataset_name": "beans"}, "Name one source of images"),
        (
            {"image_dir": None, "label_column": "kind"},
            "label_column='kind' does not exist. The columns are: image, label",
        ),
        ({"map_images": 2}, "map_images=2 must be at least 3"),
    ],
)
def test_errors(script, checkpoint, photos, tmp_path, settings, message):
    with pytest.raises(SystemExit, match=message):
        script.COMMAND.main(
            command_line({"checkpoint": checkpoint, "output_dir": tmp_path / "out", "image_dir": photos} | settings)
        )


def test_parts_join_to_the_same_file(script, checkpoint, photos, tmp_path, monkeypatch):
    """With an unreadable image, more parts than batches, and groups of rows over the ends of parts."""
    monkeypatch.setattr(features_module, "GROUP_SIZE", 6)
    monkeypatch.setattr(feature_parts, "GROUP_SIZE", 6)
    (photos / "south" / "3.png").write_bytes(b"no image")
    settings = {"image_dir": photos, "batch_size": 2, "map": "none", "num_queries": 0}
    run(script, checkpoint, tmp_path / "whole", **settings)
    joined = tmp_path / "joined"
    for number in (2, 1, 5, 4):
        script.COMMAND.main(command_line(settings | rest(checkpoint, joined, f"{number}/5")))
    with pytest.raises(SystemExit, match="lacks 1 of 5 parts: run --part 3/5, or delete"):
        run(script, checkpoint, joined, **settings)
    script.COMMAND.main(command_line(settings | rest(checkpoint, joined, "3/5")))
    result = run(script, checkpoint, joined, **settings)
    assert result.num_rows == 7
    files = [pyarrow.parquet.ParquetFile(tmp_path / name / "features.parquet") for name in ("whole", "joined")]
    groups = [[file.read_row_group(group) for group in range(file.num_row_groups)] for file in files]
    assert groups[0] == groups[1]
    assert [len(group) for group in groups[0]] == [5, 2]
    assert files[0].schema_arrow.equals(files[1].schema_arrow, check_metadata=True)
    assert [path.name for path in joined.iterdir()] == ["features.parquet"]


def test_parts_of_other_settings_are_refused(script, checkpoint, photos, tmp_path):
    settings = {"image_dir": photos, "batch_size": 4, "map": "none", "num_queries": 0}
    script.COMMAND.main(command_line(settings | rest(checkpoint, tmp_path / "out", "1/1")))
    for changed, message in (({"layer": 1}, "is a part with layer=None, and now it is 1"), ({"max_images": 4}, "of 4")):
        with pytest.raises(SystemExit, match=message):
            run(script, checkpoint, tmp_path / "out", **settings | changed)


def rest(checkpoint, output_dir, part: str) -> dict:
    return {"checkpoint": checkpoint, "output_dir": output_dir, "num_workers": 0, "device": "cpu", "part": part}
