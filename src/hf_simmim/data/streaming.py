"""Images that are streamed from shards, in an order that any number of processes and workers shares.

The order of an epoch is a function of (seed, epoch, images per step): blocks of rows are shuffled, divided into lanes,
and each lane is shuffled within a window. A step takes equally many images of each lane, and neighboring images of a
step belong to the same lanes, so that a process reads few blocks at a time. Where a training is resumed follows from
its step alone. A shuffle buffer with a state, as of `datasets.IterableDataset`, loses the images that are in it when it
is resumed, and its state belongs to one number of processes and workers.
"""

import hashlib
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import config as datasets_config
from datasets import load_dataset_builder

from .sampling import EpochSampler, evenly_spaced, sample_generator
from .shards import COUNT, NUMBER, ROW, SHARD, BlockCache, Shards, find_shards
from .sources import shown_url

# Opened blocks of a process, and blocks that a sample of images is taken from.
NUM_OPENED, NUM_SAMPLED = 256, 16
# Images that are shuffled with each other, if nothing says how many.
SHUFFLE_WINDOW = 8192
# Largest number of lanes: processes that read different blocks.
NUM_LANES = 16
# Columns of the parts: row of `Shards.blocks`, first row of the block, number of rows.
BLOCK, FIRST, LENGTH = range(3)


class StreamedImages:
    """Rows of `name` and undecoded `image` of shards, read block by block.

    Args:
        shards: The shards.
        parts: Parts of their blocks (N, 3): row of `shards.blocks`, first row in the block, number of rows; all if
            None.
    """

    def __init__(self, shards: Shards, parts: np.ndarray | None = None):
        self.shards = shards
        if parts is None:
            counts = shards.blocks[:, COUNT]
            parts = np.stack([np.arange(len(counts)), np.zeros_like(counts), counts], axis=1)
        self.parts = parts
        self.ends = np.cumsum(parts[:, LENGTH])
        self._opened: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        part = self.part_of(index)
        block, first, length = (int(value) for value in self.parts[part])
        rows = self._opened.pop(block, None)
        if rows is None:
            rows = self.shards.rows(self.shards.blocks[block])
        self._opened[block] = rows
        if len(self._opened) > NUM_OPENED:
            self._opened.popitem(last=False)
        return rows[first + index - int(self.ends[part]) + length]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": OrderedDict()}

    def part_of(self, index: int) -> int:
        """Number of the part that holds an image.

        Args:
            index: Index of the image.

        Returns:
            Its row in `parts`.

        Raises:
            IndexError: If there is no such image.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images.")
        return int(np.searchsorted(self.ends, index, side="right"))

    def near(self, index: int, generator: torch.Generator) -> int:
        """Draw an image of the same part, which costs no reading elsewhere.

        Args:
            index: Index of an image.
            generator: Random generator.

        Returns:
            Index of another one, or the same.
        """
        part = self.part_of(index)
        length = int(self.parts[part, LENGTH])
        return int(self.ends[part]) - length + int(torch.randint(length, (), generator=generator))

    def sample(self, count: int) -> list[int]:
        """Indices of images that are spread over few blocks.

        Args:
            count: Largest number of images.

        Returns:
            Sorted indices.
        """
        chosen = evenly_spaced(len(self.parts), NUM_SAMPLED)
        lengths = [int(self.parts[part, LENGTH]) for part in chosen]
        numbers = [
            int(self.ends[part]) - length + row
            for part, length in zip(chosen, lengths, strict=True)
            for row in range(length)
        ]
        return [numbers[position] for position in evenly_spaced(len(numbers), count)]

    def split(self, count: int, seed: int) -> tuple["StreamedImages", "StreamedImages"]:
        """Divide the images by whole blocks, and at most one block in two.

        Args:
            count: Number of images of the second part.
            seed: Random seed of the choice of blocks.

        Returns:
            The other images, and `count` images.
        """
        order = torch.randperm(len(self.parts), generator=sample_generator(seed)).numpy()
        ends = np.cumsum(self.parts[order, LENGTH])
        number = int(np.searchsorted(ends, count, side="left"))
        taken, kept = self.parts[order[: number + 1]].copy(), self.parts[order[number + 1 :]].copy()
        excess = int(ends[number]) - count
        if excess:
            rest = taken[-1:].copy()
            taken[-1, LENGTH] -= excess
            rest[0, FIRST] += taken[-1, LENGTH]
            rest[0, LENGTH] = excess
            kept = np.concatenate([kept, rest])
        ordered = [part[np.lexsort((part[:, FIRST], part[:, BLOCK]))] for part in (kept, taken)]
        return StreamedImages(self.shards, ordered[0]), StreamedImages(self.shards, ordered[1])

    def index_of(self, name: str) -> int | None:
        """Index of the image of a name; None if there is none."""
        url, _, row = name.rpartition(" row ")
        urls = [shown_url(url) for url in self.shards.urls]
        if url not in urls or not row.isdigit():
            return None
        blocks = self.shards.blocks[self.parts[:, BLOCK]]
        places = int(row) - blocks[:, ROW] - self.parts[:, FIRST]
        is_here = (blocks[:, SHARD] == urls.index(url)) & (places >= 0) & (places < self.parts[:, LENGTH])
        found = np.flatnonzero(is_here)
        return int(self.ends[found[0]] - self.parts[found[0], LENGTH] + places[found[0]]) if len(found) else None

    def digest(self) -> dict[str, Any]:
        """Fingerprint of the images, as `fingerprints.digest` of others."""
        rows = np.concatenate([self.shards.blocks[self.parts[:, BLOCK]][:, [SHARD, NUMBER]], self.parts[:, 1:]], axis=1)
        names = hashlib.blake2b(np.ascontiguousarray(rows, dtype=np.int64).tobytes(), digest_size=6)
        return {"number": len(self), "names": names.hexdigest(), "content": self.shards.fingerprint()}


def stream_images(
    dataset_name: str | None = None,
    dataset_config: str | None = None,
    data_files: Sequence[str] | None = None,
    split: str = "train",
    image_column: str | None = None,
    cache_folder: str | Path | None = None,
    cache_bytes: int = 20 * 10**9,
) -> StreamedImages:
    """Open images in parquet or webdataset shards without downloading them.

    Args:
        dataset_name: Dataset on the Hub, or a local one, that consists of shards.
        dataset_config: Configuration of that dataset.
        data_files: Paths, patterns or URLs of `.parquet` or webdataset `.tar` shards, such as `s3://bucket/*.tar`.
        split: Split of the dataset.
        image_column: Column of the images, or suffix of their files in archives; found by type if None.
        cache_folder: Folder of the blocks that are in use; in the cache of `datasets` if None.
        cache_bytes: Bytes of that folder.

    Returns:
        The images.

    Raises:
        ValueError: If the source does not consist of shards, or one cannot be read; the message says what to do.
        FileNotFoundError: If there are no shards.
    """
    files = list(data_files) if data_files is not None else _files_of(str(dataset_name), dataset_config, split)
    folder = Path(cache_folder) if cache_folder else Path(datasets_config.HF_CACHE_HOME) / "hf_simmim" / "blocks"
    return StreamedImages(Shards(find_shards(files), image_column, BlockCache(folder, cache_bytes)))


def _files_of(dataset_name: str, dataset_config: str | None, split: str) -> list[str]:
    """Shards of a split of a dataset, as `datasets` finds them."""
    builder = load_dataset_builder(dataset_name, dataset_config)
    files = builder.config.data_files or {}
    if split not in files:
        raise ValueError(f"{dataset_name} has no split {split!r} of files. It has: {', '.join(files) or 'none'}.")
    found = [str(file) for file in files[split]]
    if not all(file.endswith((".parquet", ".tar")) for file in found):
        raise ValueError(
            f"{dataset_name} consists of files such as {found[0]}, not of parquet or webdataset shards, which"
            " --streaming needs. Leave --streaming out, or on the Hub name its parquet files:"
            f" --data_files 'hf://datasets/{dataset_name}@refs/convert/parquet/default/{split}/*.parquet'."
        )
    return found


class StreamSampler(EpochSampler):
    """Shuffles streamed images such that few blocks are read at a time; yields what `EpochSampler` does.

    Args:
        images: The images.
        images_per_step: Images of an update, over all processes and accumulated batches.
        window: Images that are shuffled with each other, over all lanes.
        seed: Seed of the order.
        current_epoch: As in `EpochSampler`.
    """

    def __init__(
        self,
        images: StreamedImages,
        images_per_step: int,
        window: int,
        seed: int,
        current_epoch: Callable[[], int] | None = None,
    ):
        super().__init__(len(images), seed, current_epoch)
        self.lengths = images.parts[:, LENGTH]
        self.starts = images.ends - self.lengths
        self.num_lanes = math.gcd(images_per_step, NUM_LANES)
        self.share = images_per_step // self.num_lanes
        # Whole steps of a lane.
        self.chunk = max(1, window // images_per_step) * self.share

    def keys(self, epoch: int) -> Iterator[int]:  # type: ignore[override]
        """What an epoch yields, a window at a time: the memory does not depend on the number of images."""
        order = torch.randperm(len(self.lengths), generator=sample_generator(self.seed, epoch)).numpy()
        ends = np.cumsum(self.lengths[order])
        bounds = [lane * self.num_samples // self.num_lanes for lane in range(self.num_lanes + 1)]
        longest = max(stop - start for start, stop in itertools.pairwise(bounds))
        for number in range(math.ceil(longest / self.chunk)):
            lanes = []
            for lane in range(self.num_lanes):
                start = bounds[lane] + number * self.chunk
                stop = min(start + self.chunk, bounds[lane + 1])
                generator = sample_generator(self.seed, epoch, number, lane)
                shuffled = start + torch.randperm(max(0, stop - start), generator=generator).numpy()
                parts = np.searchsorted(ends, shuffled, side="right")
                lanes.append(self.starts[order[parts]] + shuffled - (ends[parts] - self.lengths[order[parts]]))
            whole = min(len(lane) for lane in lanes) // self.share * self.share
            in_steps = np.stack([lane[:whole].reshape(-1, self.share) for lane in lanes], axis=1)
            for part in (in_steps.ravel(), *(lane[whole:] for lane in lanes)):
                yield from (part + epoch * self.num_samples).tolist()
