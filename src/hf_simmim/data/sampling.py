"""Reproducible sampling: seeded generators, shuffling of each epoch, and evenly spaced indices."""

import hashlib
import struct
from collections.abc import Iterator

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
    """

    def __init__(self, num_samples: int, seed: int):
        self.num_samples = num_samples
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Trainer calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.num_samples, generator=sample_generator(self.seed, self.epoch))
        yield from (order + self.epoch * self.num_samples).tolist()


def evenly_spaced(length: int, count: int) -> list[int]:
    """At most `count` indices spread evenly over `length`, from the first to the last."""
    return torch.linspace(0, length - 1, min(count, length)).round().long().tolist()
