"""What is seen of images before a training."""

import numpy as np
from PIL import Image

from hf_simmim.data.sources import load_images
from hf_simmim.data.survey import survey
from hf_simmim.formats import readers


def folder_of(tmp_path, pictures):
    for name, picture in pictures.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(picture, bytes):
            (tmp_path / name).write_bytes(picture)
        elif isinstance(picture, np.ndarray):
            np.save(tmp_path / name, picture)
        else:
            picture.save(tmp_path / name)
    return survey(load_images(tmp_path))


def noise(mode: str, width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (height, width, len(Image.new(mode, (1, 1)).getbands())))
    return Image.fromarray(values.astype(np.uint8).squeeze(), mode)


def test_sizes_channels_and_depths(tmp_path):
    seen = folder_of(
        tmp_path,
        {
            "gray.png": noise("L", 40, 30),
            "gray_stored_as_color.jpg": noise("L", 64, 48).convert("RGB"),
            "color.jpg": noise("RGB", 20, 90),
            "transparent.png": noise("RGBA", 50, 50),
            "deep.png": Image.fromarray(np.arange(4000, dtype=np.uint16).reshape(50, 80)),
            "bands.npy": np.zeros((5, 32, 48), np.float32),
            "broken.png": b"no picture",
        },
    )
    assert seen.num_images == 7
    assert sorted(seen.sizes) == [(30, 40), (32, 48), (48, 64), (50, 50), (50, 80), (90, 20)]
    assert seen.channels == {1: 3, 3: 2, 5: 1}
    assert seen.depths == {"8 bits": 4, "16 bits": 1, "float32": 1}
    assert seen.num_channels is None
    assert seen.side == 40
    lines = seen.lines((48, 48))
    assert lines["Images seen"].startswith("40 x 30 to 80 x 50 px, median ")
    assert "1 channel (50%), 3 channels (33%), 5 channels (17%)" in lines["Images seen"]
    assert lines["Upscaled"] == "50% of the images are smaller than 48 x 48 px"


def test_images_that_are_turned_count_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    noise("RGB", 40, 20).save(tmp_path / "turned.jpg", exif=exif)
    assert survey(load_images(tmp_path)).sizes == [(40, 20)]


def test_copies_are_found_by_content(tmp_path):
    noise("RGB", 30, 30).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    for name in ("b.png", "c.png"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "d.png").write_bytes(content[:-1] + b"x")  # of equal size
    seen = survey(load_images(tmp_path))
    assert seen.num_copies == 2
    assert seen.lines()["Copies"] == "2 exact copies of other images, such as a.png and b.png"


def test_what_is_not_read_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_is_installed", lambda library: False)
    files = {"a.png": noise("L", 30, 30), "b.heic": b"x", "c.HEIC": b"x", "d.dcm": b"x", "e.mrc": b"x"}
    seen = folder_of(tmp_path, files)
    photos, medical = (f'read after pip install "hf-simmim[{extra}]"' for extra in ("photos", "medical"))
    assert seen.closed == {photos: 2, medical: 1, "open with mrcfile: convert it": 1}
    assert seen.lines()["Not read"] == f"2 to {photos}; 1 to {medical}; 1 to open with mrcfile: convert it"


def test_folders_that_look_like_a_test_set_are_named(tmp_path):
    names = ["a/0.png", "a/1.png", "Test/cats/0.png", "Test/dogs/0.png", "latest/0.png"]
    seen = folder_of(tmp_path, {name: noise("L", 30, 30, seed) for seed, name in enumerate(names)})
    assert seen.split_folders == {"Test": 2}
    assert "Test (2 images) looks like a test set" in seen.lines()["Folder"]
    assert folder_of(tmp_path / "a", {}).split_folders == {}


def test_arrays_of_tables(tmp_path):
    rows = [{"name": f"{index}", "image": np.zeros((6, 32, 48), np.uint16)} for index in range(3)]

    class Rows(list):
        def __getitem__(self, key):
            return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)

    seen = survey(Rows(rows))
    assert (seen.sizes[0], seen.num_channels, seen.depths, seen.num_copies) == ((32, 48), 6, {"16 bits": 3}, 0)
