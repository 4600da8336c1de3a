"""Packed images: pixels, labels and annotations against the originals, and restarts that leave the same bytes."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import tifffile
from datasets import ClassLabel
from image_folders import gradient_image
from PIL import Image

from hf_simmim.curation import shard_files
from hf_simmim.curation.packing import pack_images
from hf_simmim.curation.parts import parse_part
from hf_simmim.curation.shard_files import Moments, PackSettings, PackSource
from hf_simmim.curation.shrinking import ShrinkSettings, shrink, shrink_channels, shrunk_size
from hf_simmim.data.image_statistics import channel_statistics
from hf_simmim.data.labeled.annotations import read_ids
from hf_simmim.data.labeled.images import load_labeled_images
from hf_simmim.data.labeled.segmentation import load_columns
from hf_simmim.data.reading import NoReadableImageError, open_row
from hf_simmim.data.sources import load_images, packed_files
from hf_simmim.data.streaming import stream_images
from hf_simmim.model.images import pixels_of


def small(path: Path, **settings) -> tuple[str, np.ndarray]:
    """Suffix and pixels (C, H, W) of a file after shrinking, as a training at another factor than 1/255 reads it."""
    shrunk = shrink({"bytes": None, "path": str(path)}, ShrinkSettings(**{"size": 16} | settings))
    row = {"name": "", "image": {"bytes": shrunk.content, "path": None}}
    channels = len(shrunk.pixels)
    return shrunk.suffix, pixels_of(open_row(row, channels, 1.0), channels)


def means(array: np.ndarray, factor: int) -> np.ndarray:
    """Means of squares of pixels of an array (C, H, W)."""
    channels, height, width = array.shape
    shaped = array.reshape(channels, height // factor, factor, width // factor, factor).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.nanmean(shaped, axis=(2, 4)) if np.isnan(shaped).any() else shaped.mean(axis=(2, 4))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Photos in two folders, one of them broken."""
    for index in range(21):
        path = tmp_path / "photos" / "ab"[index % 2] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        gradient_image(24 + index, 40).save(path)
    (tmp_path / "photos" / "a" / "04.png").write_bytes(b"no picture")
    return tmp_path / "photos"


def source_of(folder: Path, labels: bool = False, **others) -> PackSource:
    rows = load_images(folder)
    names = [Path(name).relative_to(folder).as_posix() for name in rows["name"]]
    classes = [ord(name[0]) - ord("a") for name in names] if labels else None
    feature = ClassLabel(names=["a", "b"]) if labels else None
    return PackSource(rows, names, classes, feature, **others)


def settings(**changes) -> PackSettings:
    return PackSettings(ShrinkSettings(16, "png"), **{"shard_images": 4} | changes)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def packed(folder: Path, output_dir: Path, **options):
    output_dir.mkdir(exist_ok=True)
    return pack_images(source_of(folder, labels=True), output_dir, settings(), **options)


def test_sizes():
    assert shrunk_size((300, 400), 256) == (256, 341)
    assert shrunk_size((4000, 3000), 256) == (341, 256)
    assert shrunk_size((255, 9000), 256) == (255, 9000)
    assert shrunk_size((256, 256), 256) == (256, 256)


def test_pictures_are_resized_as_by_pillow(tmp_path):
    image = gradient_image(48, 64)
    image.save(tmp_path / "a.png")
    expected = np.asarray(image.resize((21, 16), Image.Resampling.BICUBIC))
    suffix, pixels = small(tmp_path / "a.png", format="png")
    assert suffix == "png"
    assert np.array_equal(pixels, np.moveaxis(expected, -1, 0))
    suffix, pixels = small(tmp_path / "a.png")
    assert suffix == "jpg"
    buffer = io.BytesIO()
    Image.fromarray(expected).save(buffer, "JPEG", quality=92)
    assert np.array_equal(pixels, np.moveaxis(np.asarray(Image.open(buffer)), -1, 0))
    # A large JPEG is decoded at a smaller scale, which is hardly seen.
    image = gradient_image(960, 1280)
    image.save(tmp_path / "a.jpg", quality=95)
    _, pixels = small(tmp_path / "a.jpg", format="png", size=64)
    expected = np.asarray(image.resize((85, 64), Image.Resampling.BICUBIC))
    assert np.abs(pixels.astype(int) - np.moveaxis(expected, -1, 0)).max() <= 3


def test_orientation_is_applied_and_small_files_are_kept(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    image = gradient_image(32, 64)
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    _, pixels = small(tmp_path / "turned.jpg", format="png")
    assert pixels.shape == (3, 32, 16)
    # Red grew to the right, and grows downwards after a turn to the right.
    assert (np.diff(pixels[0].mean(axis=1).astype(int)) >= 0).all()
    image.save(tmp_path / "small.jpg")
    kept = shrink({"bytes": None, "path": str(tmp_path / "small.jpg")}, ShrinkSettings(32))
    assert kept.content == (tmp_path / "small.jpg").read_bytes()
    turned = shrink({"bytes": None, "path": str(tmp_path / "turned.jpg")}, ShrinkSettings(32))
    assert Image.open(io.BytesIO(turned.content)).size == (32, 64)
    assert not Image.open(io.BytesIO(turned.content)).getexif()


def test_modes(tmp_path):
    image = gradient_image(48, 64)
    alpha = Image.new("L", image.size, 255)
    cases = {"L": ("jpg", "L"), "1": ("jpg", "L"), "P": ("jpg", "RGB"), "CMYK": ("tif", "CMYK"), "LA": ("jpg", "L")}
    for mode, (suffix, expected) in cases.items():
        image.convert(mode).save(tmp_path / "image.tif")
        shrunk = shrink({"bytes": None, "path": str(tmp_path / "image.tif")}, ShrinkSettings(16))
        assert (shrunk.suffix, Image.open(io.BytesIO(shrunk.content)).mode) == (suffix, expected), mode
    alpha.paste(0, (0, 0, 32, 48))
    image.putalpha(alpha)
    image.save(tmp_path / "image.png")
    suffix, pixels = small(tmp_path / "image.png")
    assert suffix == "png"
    assert pixels.shape[0] == 4
    # As a fourth band it weights nothing: the colors are those of the bands alone.
    _, bands = small(tmp_path / "image.png", num_channels=4)
    assert np.array_equal(bands[0], np.asarray(image.getchannel("R").resize((21, 16), Image.Resampling.BICUBIC)))
    assert not np.array_equal(bands, pixels)
    # Gray of two bits is a picture, not numbers from 0 to 3.
    Image.fromarray(np.tile(np.arange(4, dtype=np.uint8), (32, 8))).save(tmp_path / "few.png", bits=2)
    four = Image.fromarray(np.tile(np.arange(4, dtype=np.uint8), (32, 8)), mode="P")
    four.putpalette([0, 0, 0, 85, 85, 85, 170, 170, 170, 255, 255, 255])
    four.save(tmp_path / "few.png", bits=2)
    assert small(tmp_path / "few.png")[1].mean() == pytest.approx(127.5, abs=2)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.float64, np.uint8])
def test_other_numbers_are_means_of_areas(tmp_path, dtype):
    generator = np.random.default_rng(0)
    array = (generator.normal(0, 300, (5, 64, 96)) if np.dtype(dtype).kind in "fi" else
             generator.integers(0, np.iinfo(dtype).max, (5, 64, 96))).astype(dtype)  # fmt: skip
    expected = means(array, 4)
    np.save(tmp_path / "first.npy", array)
    np.save(tmp_path / "last.npy", np.moveaxis(array, 0, -1))
    tifffile.imwrite(tmp_path / "bands.tif", np.moveaxis(array, 0, -1), planarconfig="contig")
    for name in ("first.npy", "last.npy", "bands.tif"):
        suffix, pixels = small(tmp_path / name)
        assert suffix == "npy"
        rounded = expected if np.dtype(dtype).kind == "f" else np.rint(expected)
        np.testing.assert_allclose(pixels, rounded, rtol=1e-5, atol=1e-5)
    shrunk = shrink(np.moveaxis(array, 0, -1), ShrinkSettings(16))
    assert np.load(io.BytesIO(shrunk.content)).shape == (16, 24, 5)
    assert shrunk.pixels.dtype == dtype


def test_gray_of_16_bits_stays_a_picture(tmp_path):
    array = np.random.default_rng(0).integers(0, 65536, (32, 48), dtype=np.uint16)
    expected = np.rint(means(array[None], 2))
    Image.fromarray(array).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", array)
    for name in ("a.png", "a.tif"):
        suffix, pixels = small(tmp_path / name)
        assert suffix == "png"
        assert np.array_equal(pixels, expected)
    colors = np.random.default_rng(0).integers(0, 65536, (32, 48, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "b.tif", colors, photometric="rgb")
    suffix, pixels = small(tmp_path / "b.tif")
    assert suffix == "ppm"
    assert np.array_equal(pixels, np.rint(means(np.moveaxis(colors, -1, 0), 2)))
    # At 1/255 it is scaled to 8 bits, as the original is.
    shrunk = shrink({"bytes": None, "path": str(tmp_path / "b.tif")}, ShrinkSettings(16))
    image = open_row({"name": "", "image": {"bytes": shrunk.content, "path": None}}, 3, 1 / 255)
    assert np.asarray(image).dtype == np.uint8


def test_areas_of_any_ratio():
    array = np.random.default_rng(0).normal(size=(1, 37, 53))
    height, width = 16, 23
    rows, columns = (
        np.array(
            [[max(0, min(i + 1, (o + 1) * n / m) - max(i, o * n / m)) * m / n for i in range(n)] for o in range(m)]
        )
        for n, m in ((37, height), (53, width))
    )
    np.testing.assert_allclose(shrink_channels(array, (height, width))[0], rows @ array[0] @ columns.T, rtol=1e-9)


def test_missing_pixels_count_nowhere(tmp_path):
    array = np.random.default_rng(0).normal(size=(2, 32, 48)).astype(np.float32)
    array[:, 3, 5] = np.nan
    array[:, 8:12, 8:12] = np.nan
    array[0, 30, 30] = np.inf
    np.save(tmp_path / "a.npy", array)
    _, pixels = small(tmp_path / "a.npy")
    array[0, 30, 30] = np.nan
    with pytest.warns(RuntimeWarning, match="empty slice"):
        expected = means(array, 2)
    np.testing.assert_allclose(pixels, expected, rtol=1e-5)
    assert np.isnan(pixels).sum() == 2 * 4
    # Values that a file, or a user, says are missing.
    numbers = np.random.default_rng(0).integers(100, 200, (32, 48), dtype=np.uint16)
    numbers[:16, :16] = 7
    tifffile.imwrite(tmp_path / "stated.tif", numbers, extratags=[(42113, "s", 2, "7", True)])
    tifffile.imwrite(tmp_path / "unstated.tif", numbers)
    valid = np.where(numbers == 7, np.nan, numbers.astype(float))[None]
    with pytest.warns(RuntimeWarning, match="empty slice"):
        expected = means(valid, 2)
    for name, nodata in (("stated.tif", None), ("unstated.tif", 7)):
        suffix, pixels = small(tmp_path / name, nodata=nodata)
        assert suffix == "npy"
        np.testing.assert_allclose(pixels, expected, rtol=1e-5)
    picture = np.asarray(gradient_image(32, 48)).copy()
    picture[picture == 255] = 254
    picture[:8, :8] = 255
    Image.fromarray(picture).save(tmp_path / "picture.png")
    _, pixels = small(tmp_path / "picture.png", nodata=255)
    assert np.isnan(pixels).sum() == 3 * 16
    assert np.nanmax(pixels) < 255
    np.save(tmp_path / "empty.npy", np.full((2, 32, 32), np.nan, np.float32))
    with pytest.raises(ValueError, match="Remove the image"):
        small(tmp_path / "empty.npy")


def test_shards_are_read_by_all_readers(folder, tmp_path):
    masks = {}
    for path in sorted(folder.rglob("*.png")):
        ids = np.random.default_rng(len(masks)).integers(0, 5, (24 + int(path.stem), 40), dtype=np.uint8)
        masks[path.relative_to(folder).as_posix()] = ids
        place = tmp_path / "masks" / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(place)
    source = source_of(folder, labels=True, annotations=[str(tmp_path / "masks" / name) for name in sorted(masks)])
    out = tmp_path / "out"
    out.mkdir()
    result = pack_images(source, out, settings(shard_images=120))
    assert [path.name for path in result.files] == ["train-00000-of-00001.parquet"]
    assert list(result.unreadable) == ["a/04.png"]
    assert (out / "unreadable_images.txt").read_text().startswith("a/04.png\tUnidentifiedImageError")
    names = [name for name in source.names if name != "a/04.png"]
    shard = [str(out / "*.parquet")]
    table = pyarrow.parquet.read_table(result.files[0])
    assert table["name"].to_pylist() == names
    first = Image.open(folder / names[0]).resize((27, 16), Image.Resampling.BICUBIC)
    for rows in (load_images(data_files=shard), load_images(out), stream_images(data_files=shard)):
        assert len(rows) == 20
        assert np.array_equal(Image.open(io.BytesIO(rows[0]["image"]["bytes"])), first)
    assert load_images(out)["name"] == [f"{out}/{name}" for name in names]
    labeled = load_labeled_images(out)
    assert labeled.class_names == ["a", "b"]
    assert Counter(labeled.labels) == {0: 10, 1: 10}
    assert labeled.rows["name"][0] == f"{out}/{names[0]}"
    pairs = load_columns("image", "annotation", data_files=shard)
    ids = read_ids(pairs.annotations[0], 255)
    whole = masks[names[0]]
    chosen = [((2 * np.arange(new) + 1) * old // (2 * new)) for new, old in zip((16, 27), whole.shape, strict=True)]
    assert np.array_equal(ids, whole[chosen[0][:, None], chosen[1]])
    facts = json.loads((out / "pack.json").read_text())
    assert (facts["num_images"], facts["num_unreadable"], facts["class_names"]) == (20, 1, ["a", "b"])
    mean, std = channel_statistics(load_images(out), 3)
    np.testing.assert_allclose(facts["statistics"][0]["image_mean"], mean)
    np.testing.assert_allclose(facts["statistics"][0]["image_std"], std)


def test_row_groups(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_files, "GROUP_ROWS", 3)
    result = packed(folder, tmp_path / "out")
    assert len(result.files) == result.num_shards == 6
    groups = pyarrow.parquet.ParquetFile(result.files[1]).metadata
    assert [groups.row_group(index).num_rows for index in range(groups.num_row_groups)] == [3, 1]


def test_archives(folder, tmp_path):
    (tmp_path / "out").mkdir()
    result = pack_images(source_of(folder, labels=True), tmp_path / "out", settings(shards="webdataset"))
    with tarfile.open(result.files[0]) as archive:
        assert archive.getnames()[:3] == ["000000000.png", "000000000.cls", "000000000.json"]
        assert {member.mtime for member in archive} == {0}
    assert len(load_images(tmp_path / "out")) == 20
    assert len(stream_images(data_files=packed_files(tmp_path / "out"))) == 20
    assert Counter(load_labeled_images(tmp_path / "out").labels) == {0: 10, 1: 10}


# Slow enough to be killed between shards.
PROGRAM = """
import sys
import time
from pathlib import Path

sys.path[:0] = sys.argv[3:]
from test_packing import packed

from hf_simmim.curation import parallel

shrink = parallel.shrink


def slow(*arguments):
    time.sleep(0.05)
    return shrink(*arguments)


parallel.shrink = slow
packed(Path(sys.argv[1]), Path(sys.argv[2]), workers=2)
"""


def test_a_killed_packing_is_continued_to_the_same_bytes(folder, tmp_path, monkeypatch):
    packed(folder, tmp_path / "whole", workers=2)
    whole = content(tmp_path / "whole")
    out = tmp_path / "killed"
    out.mkdir()
    # By SIGKILL, as soon as a shard is there.
    command = [sys.executable, "-c", PROGRAM, str(folder), str(out), str(Path(__file__).parent), *sys.path]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(out.glob("*.parquet")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    done = list(out.glob("*.parquet"))
    assert 0 < len(done) < 6
    assert not (out / "pack.json").exists()
    with pytest.raises(ValueError, match=f"{out} is not packed to its end: it holds {len(done)} of 6 shards"):
        load_images(out)
    # And between what is said of a shard and the shard, and before the end.
    for name in (f"train-{len(done) + 1:05}-of-00006.parquet", "pack.json"):
        replace = Path.replace

        def fail(path, target, name=name, replace=replace):
            if Path(target).name == name:
                raise KeyboardInterrupt
            return replace(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", fail)
            with pytest.raises(KeyboardInterrupt):
                packed(folder, out)
    times = {path: os.stat(path).st_mtime_ns for path in out.glob("*.parquet")}
    assert len(times) == 6
    packed(folder, out)
    assert content(out) == whole
    assert times == {path: os.stat(path).st_mtime_ns for path in out.glob("*.parquet")}


def test_parts_join_to_the_same_bytes(folder, tmp_path):
    packed(folder, tmp_path / "whole")
    for part in ("3/4", "1/4", "2/4"):
        result = packed(folder, tmp_path / "parts", part=part)
        assert result.facts is None
    assert not (tmp_path / "parts" / "pack.json").exists()
    assert packed(folder, tmp_path / "parts", part="4/4").facts
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    assert parse_part(None) == (1, 1)
    for text in ("0/4", "5/4", "4", "a/b"):
        with pytest.raises(ValueError, match="from 1/16 to 16/16"):
            parse_part(text)


def test_changes_are_refused(folder, tmp_path):
    packed(folder, tmp_path / "out", part="1/2")
    source = source_of(folder, labels=True)
    with pytest.raises(ValueError, match="shards of size=16, and now size=24. Name another output_dir"):
        pack_images(source, tmp_path / "out", PackSettings(ShrinkSettings(24, "png"), 4))
    with pytest.raises(ValueError, match="shards of labels=True, and now labels=False"):
        pack_images(source_of(folder), tmp_path / "out", settings())
    (folder / "a" / "00.png").unlink()
    with pytest.raises(ValueError, match=r"shards of other images \(21, and now 20\)"):
        packed(folder, tmp_path / "out")
    with pytest.raises(ValueError, match="holds other files, such as a. Name a new one"):
        pack_images(source, folder, settings())


def test_too_many_unreadable_images(folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(NoReadableImageError, match=r"1 of 21 images cannot be read.*larger --max_unreadable"):
        packed(folder, out, max_unreadable=0.01)
    assert (out / "unreadable_images.txt").read_text().startswith("a/04.png\t")
    packed(folder, out, max_unreadable=0.1)
    packed(folder, tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


def test_moments_join():
    pixels = np.random.default_rng(0).normal(3, 2, (2, 40, 5))
    joined = Moments.of(pixels[:, :10]).joined(None)
    joined = Moments.of(pixels[:, 10:]).joined(joined)
    np.testing.assert_allclose(joined.mean, pixels.mean(axis=(1, 2)))
    np.testing.assert_allclose(np.sqrt(np.array(joined.squares) / joined.count), pixels.std(axis=(1, 2)))
    assert (joined.images, joined.count) == (2, 200)
