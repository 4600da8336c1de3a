"""Shards that are read while training: the order, the reading, the cache, and what goes wrong."""

import io
import itertools
import pickle
import tarfile
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from datasets import Array3D, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from hf_simmim.data import shards as shards_module
from hf_simmim.data.masked_images import MaskedImageDataset
from hf_simmim.data.sampling import sample_generator, sample_indices
from hf_simmim.data.shards import archive_blocks, find_shards
from hf_simmim.data.sources import load_images
from hf_simmim.data.streaming import StreamedImages, StreamSampler, stream_images

COUNTS = (5, 31, 2, 17, 9, 26, 10)


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 10), (number, 255 - number, 7)).save(file, "PNG")
    return file.getvalue()


def write_parquet(folder, counts=COUNTS, group=7):
    """Uneven shards; the red of a picture is its number."""
    folder.mkdir(exist_ok=True)
    numbers = itertools.count()
    for shard, count in enumerate(counts):
        rows = [{"bytes": picture(next(numbers)), "path": None} for _ in range(count)]
        table = {"image": rows, "note": ["text"] * count}
        features = Features({"image": ImageFeature(), "note": Value("string")})
        Dataset.from_dict(table, features=features).to_parquet(folder / f"{shard}.parquet", batch_size=group)
    return folder


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    return write_parquet(tmp_path_factory.mktemp("parquet"))


def stream(files, cache, **options) -> StreamedImages:
    return stream_images(data_files=[str(files)], cache_folder=cache, **options)


def number_of(row) -> int:
    return Image.open(io.BytesIO(row["image"]["bytes"])).getpixel((0, 0))[0]


class Planned(StreamedImages):
    """Blocks of some lengths, without shards."""

    def __init__(self, lengths):
        parts = np.stack([np.arange(len(lengths)), np.zeros(len(lengths), int), lengths], axis=1)
        super().__init__(None, parts)


@pytest.mark.parametrize("lengths", [COUNTS, [1], [100] * 40, [3, 1000, 1, 1, 50]])
@pytest.mark.parametrize(("images_per_step", "window"), [(1, 1), (7, 20), (24, 48), (32, 10_000)])
def test_every_image_comes_once_an_epoch_whatever_the_blocks(lengths, images_per_step, window):
    sampler = StreamSampler(Planned(lengths), images_per_step, window, seed=3)
    total = sum(lengths)
    epochs = [list(sampler.keys(epoch)) for epoch in (0, 1)]
    for epoch, keys in enumerate(epochs):
        assert sorted(keys) == list(range(epoch * total, (epoch + 1) * total))
    if total > 20:
        assert epochs[0] != sorted(epochs[0])
        assert [key - total for key in epochs[1]] != epochs[0]
    assert list(sampler.keys(1)) == epochs[1]
    other = list(StreamSampler(Planned(lengths), images_per_step, window, seed=4).keys(0))
    assert total < 20 or other != epochs[0]


def test_a_process_reads_few_blocks_at_a_time():
    """Of 400 blocks, a process out of two needs those of its lanes' windows; both never need the same ones."""
    images = Planned([100] * 400)
    keys = np.array(list(StreamSampler(images, 32, 3200, seed=0).keys(0)))
    parts = np.searchsorted(images.ends, keys, side="right")
    steps = parts[: len(parts) // 32 * 32].reshape(-1, 2, 16)
    for first in range(0, 1200, 100):
        halves = [set(steps[first : first + 100, rank].ravel().tolist()) for rank in (0, 1)]
        assert len(halves[0] & halves[1]) <= 1
        assert all(len(half) <= 34 for half in halves)


def test_streamed_rows_are_those_that_are_loaded(parquet, tmp_path):
    images, loaded = stream(parquet / "*.parquet", tmp_path), load_images(data_files=[str(parquet / "*.parquet")])
    assert len(images) == len(loaded) == sum(COUNTS)
    assert [number_of(images[index]) for index in range(len(images))] == list(range(100))
    assert [images[index]["image"]["bytes"] for index in range(100)] == [row["image"]["bytes"] for row in loaded]
    assert images[36]["name"] == f"{parquet / '2.parquet'} row 0"
    assert [images.index_of(images[index]["name"]) for index in (0, 36, 99)] == [0, 36, 99]
    assert images.index_of("elsewhere row 3") is images.index_of(f"{parquet / '2.parquet'} row 2") is None
    with pytest.raises(IndexError):
        images[100]
    copied = pickle.loads(pickle.dumps(images))
    assert number_of(copied[40]) == 40


def test_samples_and_replacements_are_of_few_blocks(parquet, tmp_path):
    images = stream(parquet / "*.parquet", tmp_path)
    chosen = sample_indices(images, 10)
    assert len(chosen) == 10
    assert chosen == sorted(set(chosen))
    big = Planned([100] * 1000)
    assert len({big.part_of(index) for index in sample_indices(big, 1000)}) <= 16
    assert {big.part_of(big.near(777, sample_generator(seed))) for seed in range(20)} == {7}


def test_a_split_takes_whole_blocks_and_at_most_a_part_of_one(parquet, tmp_path):
    images = stream(parquet / "*.parquet", tmp_path)
    kept, taken = images.split(23, seed=1)
    numbers = [[number_of(part[index]) for index in range(len(part))] for part in (kept, taken)]
    assert [len(part) for part in numbers] == [77, 23]
    assert sorted(numbers[0] + numbers[1]) == list(range(100))
    assert [part.index_of(part[index]["name"]) for part in (kept, taken) for index in (0, 20)] == [0, 20, 0, 20]
    assert kept.digest() != taken.digest()
    assert kept.digest() == stream(parquet / "*.parquet", tmp_path).split(23, seed=1)[0].digest()


def test_arrays_keep_their_numbers(tmp_path):
    arrays = np.arange(4 * 2 * 3 * 5, dtype=np.uint16).reshape(4, 2, 3, 5) * 500
    features = Features({"bands": Array3D((2, 3, 5), "uint16")})
    Dataset.from_dict({"bands": arrays}, features=features).to_parquet(tmp_path / "a.parquet", batch_size=3)
    images = stream(tmp_path / "a.parquet", tmp_path / "cache")
    for index in range(4):
        found = images[index]["image"]
        assert (found.dtype, found.tolist()) == (np.uint16, arrays[index].tolist())


@pytest.mark.parametrize("is_remote", [False, True])
def test_archives(tmp_path, is_remote, monkeypatch):
    members = {}
    for number in range(40):
        members |= {f"{number:03d}.png": picture(number), f"{number:03d}.json": b"{}"}
    members["._000.png"] = b"litter"
    write_tar(tmp_path / "part-000.tar", dict(list(members.items())[:30]))
    write_tar(tmp_path / "part-001.tar", dict(list(members.items())[30:]))
    files = str(tmp_path / "part-{000..001}.tar")
    if is_remote:
        memory = fsspec.filesystem("memory")
        for name in ("part-000.tar", "part-001.tar"):
            memory.pipe(f"/{name}", (tmp_path / name).read_bytes())
        files = "memory://part-{000..001}.tar"
    monkeypatch.setattr(shards_module, "NUM_FILES", 6)
    images = stream(files, tmp_path / "cache")
    assert [number_of(images[index]) for index in range(len(images))] == list(range(40))
    assert images[16]["name"].endswith("part-001.tar row 1")


def test_archives_whose_samples_have_several_images_need_a_name(tmp_path):
    members = {}
    for number in range(3):
        members |= {f"{number}.png": picture(number), f"{number}.depth.png": picture(9)}
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=r"several images each: depth\.png, png\. Name the one to train on"):
        stream(tmp_path / "a.tar", tmp_path / "cache")
    images = stream(tmp_path / "a.tar", tmp_path / "cache", image_column="png")
    assert [number_of(images[index]) for index in range(len(images))] == [0, 1, 2]


def test_blocks_of_an_archive_have_bounded_size():
    sizes = np.array([10, 2**25, *[2**22] * 20, *[1] * 600])
    members = np.stack([np.cumsum([0, *sizes[:-1]]), sizes], axis=1)
    blocks = archive_blocks(members)
    assert [start for start, _ in blocks[1:]] == [stop for _, stop in blocks[:-1]]
    assert (blocks[0][0], blocks[-1][1]) == (0, len(sizes))
    for start, stop in blocks:
        assert stop - start <= 256
        assert stop - start == 1 or sizes[start:stop].sum() <= 2**24


class Server(SimpleHTTPRequestHandler):
    """Serves ranges of files, as object stores do, and breaks the first connections of each file."""

    broken: ClassVar = Counter()

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.exists():
            self.send_error(404)
            return
        content = path.read_bytes()
        wanted = self.headers.get("Range")
        Server.broken[self.path] += 1
        if wanted and Server.broken[self.path] == 1:
            self.send_error(503)
            return
        start, stop = 0, len(content)
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else stop, stop)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{len(content)}"')
        self.end_headers()
        self.wfile.write(content[start:stop])


@pytest.fixture
def server(parquet):
    Server.broken.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(parquet))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_server_is_read_in_workers_again_and_again_if_it_breaks(server, tmp_path, monkeypatch):
    from torch.utils.data import DataLoader

    monkeypatch.setattr(shards_module, "WAITS", (0, 0, 0))
    files = [f"{server}/{shard}.parquet?signature=secret" for shard in range(len(COUNTS))]
    images = stream_images(data_files=files, cache_folder=tmp_path)
    assert all(count > 1 for count in Server.broken.values())
    dataset = MaskedImageDataset(images, (8, 8), 3, patch_size=2, mask_patch_size=2, crop_scale=None)
    keys = list(StreamSampler(images, 10, 30, seed=0).keys(0))
    loader = DataLoader(dataset, batch_size=10, sampler=keys, num_workers=2, collate_fn=lambda samples: samples)
    found = [int(sample["pixel_values"][0, 0, 0]) for batch in loader for sample in batch]
    assert found == keys
    assert images[0]["name"] == f"{server}/0.parquet row 0"
    assert images.index_of(images[50]["name"]) == 50
    with pytest.raises(FileNotFoundError, match="none.parquet does not exist") as caught:
        stream_images(data_files=[f"{server}/none.parquet?signature=secret"], cache_folder=tmp_path)
    assert "secret" not in str(caught.value)


def test_the_cache_stays_within_its_size(parquet, tmp_path):
    images = stream(parquet / "*.parquet", tmp_path, cache_bytes=6000)
    largest = 0
    for index in range(len(images)):
        assert number_of(images[index]) == index
        largest = max(largest, sum(path.stat().st_size for path in tmp_path.glob("*.arrow")))
    assert 3000 < largest <= 6000
    # What was deleted is read again.
    again = stream(parquet / "*.parquet", tmp_path, cache_bytes=6000)
    assert number_of(again[0]) == 0


def test_a_cache_that_cannot_be_written_is_named(parquet, tmp_path):
    (tmp_path / "file").write_text("")
    images = stream(parquet / "*.parquet", tmp_path / "file" / "cache")
    with pytest.raises(OSError, match="--stream_cache"):
        images[0]


def test_damaged_and_different_shards_are_refused_by_name(parquet, tmp_path):
    folder = write_parquet(tmp_path / "shards", counts=(20, 20))
    (folder / "1.parquet").write_bytes((folder / "1.parquet").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"1\.parquet is damaged, or no parquet file"):
        stream(folder / "*.parquet", tmp_path)
    Dataset.from_dict({"image": ["a"]}).to_parquet(folder / "1.parquet")
    with pytest.raises(ValueError, match=r"Column 'image' is struct.*in .*0\.parquet, but string in .*1\.parquet"):
        stream(folder / "*.parquet", tmp_path)
    with pytest.raises(FileNotFoundError, match="matches no file"):
        stream(folder / "*.tar", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"The shard .*none\.parquet does not exist"):
        stream(folder / "none.parquet", tmp_path)
    (folder / "folder.parquet").mkdir()
    with pytest.raises(ValueError, match=r"is a folder\. Name its files"):
        stream(folder / "folder.parquet", tmp_path)
    (folder / "a.tar").write_bytes(b"no archive" * 1000)
    with pytest.raises(ValueError, match=r"a\.tar is damaged, or no plain \.tar file"):
        stream(folder / "a.tar", tmp_path)


def test_a_damaged_row_group_ends_the_reading(tmp_path):
    folder = write_parquet(tmp_path / "shards", counts=(40,), group=10)
    images = stream(folder / "0.parquet", tmp_path)
    content = bytearray((folder / "0.parquet").read_bytes())
    content[4:200] = bytes(196)
    (folder / "0.parquet").write_bytes(content)
    with pytest.raises((ValueError, OSError), match=r"0\.parquet"):
        images[0]


def test_counted_names():
    assert find_shards(["a/{008..010}.tar", "b.tar"]) == ["a/008.tar", "a/009.tar", "a/010.tar", "b.tar"]
    assert find_shards(["a/{x}.tar"]) == ["a/{x}.tar"]
