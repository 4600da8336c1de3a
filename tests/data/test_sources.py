"""Folders, shards and data sets, each as rows of images."""

import io
import os
import tarfile

import pytest
from datasets import Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from image_folders import encode, gradient_image
from paths import EMBEDDED_DATA
from PIL import Image

from hf_simmim.data import sources
from hf_simmim.data.reading import open_row
from hf_simmim.data.sources import load_images


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


@pytest.mark.parametrize("splits", [False, True])
def test_data_sets_saved_to_disk(tmp_path, splits):
    rows = [Image.new("RGB", (8, 8))] * 2
    saved = Dataset.from_dict({"image": rows}, features=Features({"image": ImageFeature()}))
    (DatasetDict({"train": saved}) if splits else saved).save_to_disk(tmp_path / "saved")
    assert len(load_images(dataset_name=str(tmp_path / "saved"))) == 2


def test_embedded_data_loads_without_code():
    train, test = (load_images(dataset_name=str(EMBEDDED_DATA), split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (6000, 1000)
    with pytest.raises(ValueError, match="has no split 'validation'. It has: train, test"):
        load_images(dataset_name=str(EMBEDDED_DATA), split="validation")


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


def test_a_file_where_a_folder_is_needed(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(ValueError, match=r"one\.png is a file, and a folder of images is needed. Unpack it"):
        load_images(tmp_path / "one.png")


def test_what_counts_as_an_image(tmp_path, caplog):
    """Images that cannot be read count; tables, pipes and what Pillow cannot load do not."""
    frames = [Image.new("RGB", (40, 40), (index, 9, 9)) for index in range(2)]
    frames[0].save(tmp_path / "a.mpo", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.png")
    for name in ("c.h5", "c.hdf", "c.grib", "c.bufr", "c.eps", "c.mpg", "c.csv"):
        (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 512)
    (tmp_path / "d.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "e.nii.gz").write_bytes(b"\x1f\x8b")
    os.mkfifo(tmp_path / "camera.jpg")
    images = load_images(tmp_path)
    assert [os.path.basename(name) for name in images["name"]] == ["a.mpo", "b.png", "c.h5", "d.dcm", "e.nii.gz"]
    assert open_row(images[0], 3, 1 / 255).size == (40, 40)
    for row, reason in ((images[2], "HDF5"), (images[3], "DICOM"), (images[4], "NIfTI")):
        with pytest.raises(ValueError, match=reason):
            open_row(row, 3, 1 / 255)


def test_folders_that_cannot_be_read_are_named(tmp_path, caplog, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    messages: list[str] = []
    monkeypatch.setattr(sources.logger, "warning", messages.append)
    assert len(load_images(tmp_path)) == 1
    assert f"{tmp_path / 'b'} (Permission denied)" in messages[0]
    with pytest.raises(PermissionError):
        load_images(tmp_path / "b")


def test_archives_of_images_are_read_whole(tmp_path):
    """Whatever the suffixes and the dots in their names; archives with other files are left to webdataset."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(12):
        name = f"{index:02d}.png" if index < 6 else f"IMG.2024.{index:02d}.jpg"
        Image.new("RGB", (8, 8), (20 * index, 0, 0)).save(folder / name)
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    rows = load_images(data_files=[str(tmp_path / "*.tar")])
    assert sorted(row["image"]["path"] for row in rows) == sorted(path.name for path in folder.iterdir())
    assert all(row["image"]["bytes"] == (folder / row["image"]["path"]).read_bytes() for row in rows)
