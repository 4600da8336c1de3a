"""Windows of large images: places that depend on seed, epoch and index alone, with enough in them, and grids."""

import numpy as np
import pytest
import tifffile
import torch
from image_folders import read_epoch
from PIL import Image

from hf_simmim.data import window_places, windows
from hf_simmim.data.image_statistics import channel_statistics
from hf_simmim.data.masked_images import MaskedImageDataset
from hf_simmim.data.reading import NoReadableImageError, check_images
from hf_simmim.data.sources import load_images
from hf_simmim.data.survey import survey
from hf_simmim.data.window_places import Ground, WindowSettings, find_tissue, read_overview
from hf_simmim.data.windows import (
    WindowRows,
    grid_rows,
    overview_picture,
    place_columns,
    short_name,
    window_splits,
)
from hf_simmim.formats.large import open_large, window_place
from hf_simmim.training.fingerprints import digest

SIZE = (300, 420)


def coordinates(value: int = 0) -> np.ndarray:
    """An image whose pixels tell where they are."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.stack([y // 2, x // 2, np.full(SIZE, value)], axis=-1).astype(np.uint8)


def write(path, array, nodata=None, **options):
    tags = [] if nodata is None else [(42113, "s", 0, str(nodata), True)]
    photometric = "rgb" if array.ndim == 3 else "minisblack"
    tifffile.imwrite(path, array, photometric=photometric, tile=(64, 64), metadata=None, extratags=tags, **options)


@pytest.fixture
def scenes(tmp_path):
    """Three scenes."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    for index in range(3):
        write(folder / f"{index}.tif", coordinates(index))
    return load_images(folder)


def rows(files, per_image=4, **settings) -> WindowRows:
    return WindowRows(files, WindowSettings(**{"size": (64, 64)} | settings), per_image)


def masked(images, **settings) -> MaskedImageDataset:
    common = {"image_size": (32, 32), "num_channels": 3, "patch_size": 4, "mask_patch_size": 8}
    return MaskedImageDataset(images, **common | settings)


def test_samples_are_a_function_of_seed_epoch_and_index(scenes):
    dataset = masked(rows(scenes))
    assert len(dataset) == 12
    names = [dataset[key]["name"] for key in range(36)]
    # Read again, backwards, by another dataset that remembers nothing.
    window_places._plans.clear()
    again = masked(rows(scenes))
    assert [again[key]["name"] for key in reversed(range(36))] == names[::-1]
    assert torch.equal(dataset[17]["pixel_values"], again[17]["pixel_values"])
    # The windows of an epoch and of different epochs lie at different places, four in each file.
    assert len(set(names)) == 36
    assert [window_place(name)[0][-5] for name in names[:12]] == list("000011112222")
    assert masked(rows(scenes), seed=1)[0]["name"] != names[0]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_number_of_workers_changes_nothing(scenes, num_workers):
    dataset = masked(rows(scenes))
    for alone, shared in zip(read_epoch(dataset, 3), read_epoch(dataset, 3, num_workers), strict=True):
        assert torch.equal(alone["pixel_values"], shared["pixel_values"])


def test_samples_are_the_pixels_of_their_windows(scenes):
    dataset = masked(rows(scenes), crop_scale=(1.0, 1.0), flip=0.0, image_size=(64, 64))
    for index in (0, 5, 11):
        sample = dataset[index]
        path, _, top, left, height, width = window_place(sample["name"])
        expected = tifffile.imread(path)[top : top + height, left : left + width]
        assert torch.equal(sample["pixel_values"], torch.from_numpy(np.moveaxis(expected, -1, 0).copy()))


def test_evaluation_sees_the_same_windows_of_the_grid_in_every_epoch(scenes):
    dataset = masked(rows(scenes)).whole(seed=0)
    names = [dataset[key]["name"] for key in range(24)]
    assert names[:12] == names[12:]
    for name in names:
        _, _, top, left, _, _ = window_place(name)
        assert top % 64 == 0 or top == SIZE[0] - 64
        assert left % 64 == 0 or left == SIZE[1] - 64


def test_missing_pixels_are_not_drawn(tmp_path):
    array = coordinates(9)
    array[:, :250] = 0
    array[:200] = 0
    write(tmp_path / "scene.tif", array, nodata=0)
    dataset = masked(rows(load_images(tmp_path), 40, min_valid=0.9))
    for sample in (dataset[index] for index in range(40)):
        _, _, top, left, _, _ = window_place(sample["name"])
        assert np.mean(array[top : top + 64, left : left + 64, 2] > 0) >= 0.9
        assert sample["unreadable"] == []


def test_windows_are_drawn_again_if_the_look_was_too_coarse(tmp_path, monkeypatch):
    """One row of cells is all that is known; pixels decide."""
    array = coordinates(9)
    array[:150] = 0
    write(tmp_path / "scene.tif", array, nodata=0)
    monkeypatch.setattr(window_places, "MAX_CELLS", 1)
    dataset = masked(rows(load_images(tmp_path), 20, min_valid=0.5))
    shares = []
    for index in range(20):
        _, _, top, left, _, _ = window_place(dataset[index]["name"])
        shares.append(np.mean(array[top : top + 64, left : left + 64, 2] > 0))
    assert min(shares) >= 0.5


def test_files_without_places_are_unreadable_with_a_reason(scenes, tmp_path):
    write(tmp_path / "scenes" / "9.tif", np.zeros_like(coordinates()), nodata=0)
    dataset = masked(rows(load_images(tmp_path / "scenes")))
    sample = dataset[13]
    assert "No window of 64 x 64 pixels has min_valid=0.5" in sample["unreadable"][0][1]
    assert sample["unreadable"][0][0].endswith("9.tif")
    assert not sample["name"].startswith(sample["unreadable"][0][0])
    assert len(check_images([dataset], 0.5)) == 4
    with pytest.raises(NoReadableImageError, match="No window"):
        check_images([dataset], 0.1)


def test_grids_cover_the_image_and_leave_out_what_is_missing(tmp_path):
    array = coordinates(9)
    array[:64, :64] = 0
    write(tmp_path / "scene.tif", array, nodata=0)
    files = load_images(tmp_path)
    found, owners, left_out = grid_rows(files, WindowSettings(size=(64, 100)))
    places = place_columns(found["name"])
    assert (set(owners), left_out, set(places["path"])) == ({0}, [], {str(tmp_path / "scene.tif")})
    covered = np.zeros(SIZE, bool)
    for top, left, height, width in zip(*(places[name] for name in ("top", "left", "height", "width")), strict=True):
        assert top + height <= SIZE[0]
        assert left + width <= SIZE[1]
        covered[top : top + height, left : left + width] = True
    assert sorted(set(places["top"])) == [0, 64, 128, 192, 236]
    assert sorted(set(places["left"])) == [0, 100, 200, 300, 320]
    # One window of 25 is missing by more than half.
    assert len(found) == 24
    assert covered[64:].all()
    assert covered[:, 100:].all()
    assert not covered[:64, :100].any()


def test_tissue_is_found_by_its_color(tmp_path):
    array = np.full((*SIZE, 3), 240, np.uint8)
    array[100:228, 200:392] = (180, 90, 160)
    write(tmp_path / "slide.tif", array)
    files = load_images(tmp_path)
    drawn = masked(rows(files, 30, min_tissue=0.6))
    for index in range(30):
        _, _, top, left, _, _ = window_place(drawn[index]["name"])
        assert np.mean(array[top : top + 64, left : left + 64, 1] == 90) > 0.5
    found, _, _ = grid_rows(files, WindowSettings(size=(64, 64), min_tissue=0.6))
    assert 0 < len(found) < 12
    # In gray images tissue is dark.
    gray = np.full((20, 20, 1), 200.0)
    gray[5:9] = 60
    assert np.array_equal(find_tissue(gray, np.ones((20, 20))), gray[..., 0] == 60)


def test_statistics_and_survey_see_windows(tmp_path):
    array = np.full((*SIZE, 3), 240, np.uint8)
    array[100:228, 200:392] = (180, 90, 160)
    write(tmp_path / "slide.tif", array)
    images = rows(load_images(tmp_path), 2, min_tissue=1.0)
    mean, _ = channel_statistics(images, 3)
    np.testing.assert_allclose(mean, np.array([180, 90, 160]) / 255, rtol=1e-6)
    seen = survey(images)
    assert (seen.sizes, seen.num_channels, seen.num_images) == ([(64, 64)] * 2, 3, 2)


def test_masks_name_what_is_wanted(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    write(tmp_path / "images" / "slide.tif", coordinates())
    mask = np.zeros((150, 210), np.uint8)
    mask[:75, :105] = 7
    Image.fromarray(mask).save(tmp_path / "masks" / "slide.png")
    files = load_images(tmp_path / "images")
    settings = {"masks": str(tmp_path / "masks"), "min_valid": 1.0, "size": (50, 50)}
    found, _, _ = grid_rows(files, WindowSettings(**settings))
    places = place_columns(found["name"])
    assert (sorted(set(places["top"])), sorted(set(places["left"]))) == ([0, 50, 100], [0, 50, 100, 150])
    (tmp_path / "masks" / "slide.png").rename(tmp_path / "masks" / "other.png")
    with pytest.raises(ValueError, match="no mask of the name slide"):
        grid_rows(files, WindowSettings(**settings))


def test_resolution_chooses_the_level(tmp_path):
    base = np.repeat(coordinates(), 2, axis=1)
    with tifffile.TiffWriter(tmp_path / "slide.ome.tif", ome=True) as file:
        facts = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm"}
        file.write(base, subifds=2, photometric="rgb", tile=(64, 64), metadata=facts)
        for factor in (2, 4):
            file.write(base[::factor, ::factor], subfiletype=1, photometric="rgb", tile=(64, 64))
    path = str(tmp_path / "slide.ome.tif")
    for resolution, level, side in ((0.25, 0, 50), (0.5, 1, 50), (0.75, 1, 75), (1.0, 2, 50), (0.125, 0, 25)):
        ground = Ground(path, WindowSettings(size=(50, 50), micrometers_per_pixel=resolution))
        assert (ground.level, ground.height, ground.width) == (level, side, side)
    assert Ground(path, WindowSettings(size=(50, 50), level=2)).columns == 210
    with pytest.raises(ValueError, match="levels 0 to 2"):
        Ground(path, WindowSettings(size=(50, 50), level=3))
    write(tmp_path / "plain.tif", coordinates())
    with pytest.raises(ValueError, match="does not say how large its pixels are"):
        Ground(str(tmp_path / "plain.tif"), WindowSettings(size=(50, 50), micrometers_per_pixel=1.0))


def test_training_and_validation_windows_of_one_image_do_not_overlap(tmp_path):
    write(tmp_path / "scene.tif", coordinates())
    files = load_images(tmp_path)
    train, validation = window_splits(files, None, WindowSettings(size=(64, 64)), 40, lower_share=0.2)
    border = min(place_columns(validation["name"])["top"])
    dataset = masked(train)
    bottoms = [window_place(dataset[index]["name"])[2] + 64 for index in range(80)]
    assert border - 20 < max(bottoms) <= border
    assert max(window_place(train[index]["name"])[2] + 64 for index in range(40)) <= border
    whole, none = window_splits(files, None, WindowSettings(size=(64, 64)), 40)
    assert none is None
    assert max(window_place(masked(whole)[index]["name"])[2] + 64 for index in range(40)) > border
    with pytest.raises(ValueError, match="too low"):
        window_splits(files, None, WindowSettings(size=(200, 64)), 4, lower_share=0.2)


def test_a_changed_file_is_noticed(scenes, tmp_path):
    before = digest(rows(scenes))
    assert before == digest(scenes)
    validation, _, _ = grid_rows(scenes, WindowSettings(size=(64, 64)), 2)
    windows_before = digest(validation)
    write(tmp_path / "scenes" / "1.tif", coordinates(77))
    assert digest(rows(scenes)) != before
    assert digest(validation) != windows_before


def test_unreadable_files_are_found_again_by_name(scenes):
    images = rows(scenes)
    assert [images.index_of(name) for name in (scenes[2]["name"], "else")] == [8, None]


def test_overviews_read_in_parts_are_exact(tmp_path, monkeypatch):
    array = coordinates(9)
    array[:100, :100] = 0
    write(tmp_path / "scene.tif", array, nodata=0)
    image = open_large(tmp_path / "scene.tif")
    valid, colors = read_overview(image, (30, 42), 0)
    assert valid.shape == (30, 42)
    np.testing.assert_allclose(valid, (array.any(-1)).reshape(30, 10, 42, 10).mean((1, 3)))
    np.testing.assert_allclose(colors[20, 30], array[200:210, 300:310].mean((0, 1)), rtol=1e-6)
    for numbers, is_tiled in ((1, True), (1, False), (20_000, True)):
        monkeypatch.setattr(window_places, "BLOCK_NUMBERS", numbers)
        monkeypatch.setattr(image, "is_tiled", is_tiled)
        for whole, parts in zip((valid, colors), read_overview(image, (30, 42), 0), strict=True):
            np.testing.assert_array_equal(whole, parts)
    picture = overview_picture(str(tmp_path / "scene.tif"), 42)
    assert picture.shape == (30, 42, 3)
    assert (picture[:10, :10] == 255).all()


def test_captions():
    assert short_name("a/b.svs::level=1,top=40,left=5,height=6,width=6") == "40, 5 of b.svs"
    assert short_name("a/b.png") == "a/b.png"


def test_images_smaller_than_a_window_are_one_window(tmp_path):
    write(tmp_path / "scene.tif", coordinates())
    found, _, _ = grid_rows(load_images(tmp_path), WindowSettings(size=(1000, 100)))
    assert place_columns(found["name"])["height"] == [300] * 5


def test_tables_and_bad_settings_are_refused(scenes):
    for wrong, message in (
        ({"size": (0, 3)}, "image_window"),
        ({"level": 1, "micrometers_per_pixel": 1.0}, "one of them"),
        ({"level": -1}, "window_level"),
        ({"micrometers_per_pixel": 0.0}, "micrometers_per_pixel"),
        ({"min_valid": 2.0}, "min_valid"),
        ({"min_tissue": -1.0}, "min_tissue"),
    ):
        with pytest.raises(ValueError, match=message):
            WindowSettings(**{"size": (64, 64)} | wrong)
    with pytest.raises(ValueError, match="windows_per_image"):
        rows(scenes, 0)
    table = [{"name": "row 0", "image": {"bytes": b"", "path": None}}]
    with pytest.raises(ValueError, match="needs image files"):
        windows.check_files(table)
