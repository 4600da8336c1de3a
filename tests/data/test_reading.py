"""Files and rows that cannot be read: never fatal among good ones."""

from pathlib import Path

import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from image_folders import encode, gradient_image, make_dataset, read_epoch

from hf_simmim.data.masked_images import MaskedImageDataset
from hf_simmim.data.reading import NoReadableImageError, UnreadableImages, check_images, check_listed
from hf_simmim.data.sources import load_images


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


def test_names_with_newlines_take_one_line(tmp_path):
    unreadable = UnreadableImages(tmp_path / "unreadable.txt", num_images=9, max_share=0.5)
    unreadable.record([("bro\nken\tname\u2028.jpg", "cut off"), ("b.jpg", "empty")])
    unreadable.share()
    lines = (tmp_path / "unreadable.txt").read_text(encoding="utf-8").splitlines()
    assert lines == ["b.jpg\tempty", r"bro\nken\tname\u2028.jpg" + "\tcut off"]


def test_a_resumed_run_knows_the_unreadable_images_that_it_does_not_come_to_again(folder, tmp_path):
    dataset, path = make_dataset(folder), tmp_path / "unreadable.txt"
    assert check_listed([dataset], path) == []
    broken, mended = (folder / "day 0" / name for name in ("00.jpg", "02.jpg"))
    broken.write_bytes(b"")
    listed = UnreadableImages(path, num_images=12, max_share=0.5)
    listed.record([(str(broken), "empty"), (str(mended), "empty"), ("elsewhere.jpg", "empty")])
    listed.share()
    assert [name for name, _ in check_listed([dataset], path)] == [str(broken)]


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
        NoReadableImageError, match="64 randomly drawn images in a row cannot be read; the first is .*0.jpg"
    ):
        dataset[0]


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
