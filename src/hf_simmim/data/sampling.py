"""Reproducible sampling: seeded generators, shuffling of each epoch, and evenly spaced indices."""

import hashlib
import struct
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import torch
from torch.utils.data import Sampler


def sample_generator(*key: int) -> torch.Generator:
    """Create a generator for one sample, seeded by the integers that identify it, such as (seed, epoch, index)."""
    digest = hashlib.blake2b(struct.pack(f"<{len(key)}q", *key), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class EpochSampler(Sampler[int]):
    """Shuffles each epoch, and passes the epoch to the dataset.

    It yields `epoch * num_samples + index`, so that a worker process gets the epoch from the key, however long it
    lives.

    Args:
        num_samples: Length of the dataset.
        seed: Seed of the order.
        current_epoch: Function that returns the epoch when a pass begins; None for the one of `set_epoch`. accelerate
            calls `set_epoch` neither for a part of an epoch nor through the samplers of several processes.
    """

    def __init__(self, num_samples: int, seed: int, current_epoch: Callable[[], int] | None = None):
        self.num_samples = num_samples
        self.seed = seed
        self.current_epoch = current_epoch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, if there is no function that returns it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        yield from self.keys(self.epoch if self.current_epoch is None else self.current_epoch())

    def keys(self, epoch: int) -> list[int]:
        """What an epoch yields."""
        order = torch.randperm(self.num_samples, generator=sample_generator(self.seed, epoch))
        return (order + epoch * self.num_samples).tolist()


class IndexSampler(EpochSampler):
    """Shuffles each epoch in the order of accelerate's `SeedableRandomSampler`, and sets the epoch of the dataset.

    Args:
        dataset: The dataset; its `set_epoch` is called at the beginning of each pass, if it has one.
        seed: Seed of the order.
        current_epoch: As in `EpochSampler`.
    """

    def __init__(self, dataset: Any, seed: int, current_epoch: Callable[[], int] | None = None):
        super().__init__(len(dataset), seed, current_epoch)
        self.dataset = dataset

    def keys(self, epoch: int) -> list[int]:
        """Indices of the samples of an epoch."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        generator = torch.Generator().manual_seed(self.seed + epoch)
        return torch.randperm(self.num_samples, generator=generator).tolist()


def sampled_checksum(file: BinaryIO, size: int, block: int = 4096) -> bytes:
    """Checksum of the first, middle and last bytes of a file.

    Args:
        file: The file.
        size: Its size in bytes.
        block: Bytes that are read at each place.

    Returns:
        The checksum, 64 bytes.
    """
    content = hashlib.blake2b()
    for start in (0, max(0, size // 2), max(0, size - block)):
        file.seek(start)
        content.update(file.read(block))
    return content.digest()


def sample_indices(images: Any, count: int) -> list[int]:
    """Indices of images that are spread over a set: evenly, or as it says if that would read too much.

    Args:
        images: Rows of images, such as a `Dataset` or `StreamedImages`.
        count: Largest number of images.

    Returns:
        Sorted indices.
    """
    return images.sample(count) if hasattr(images, "sample") else evenly_spaced(len(images), count)


def evenly_spaced(length: int, count: int) -> list[int]:
    """At most `count` indices spread evenly over `length`, from the first to the last."""
    # float32 has no odd numbers above 2**24. Below, it decides some roundings that comparisons of runs rely on.
    dtype = torch.float32 if length <= 2**24 else torch.float64
    return torch.linspace(0, length - 1, min(count, length), dtype=dtype).round().long().tolist()
