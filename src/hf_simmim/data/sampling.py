"""TODO data/sampling."""

import hashlib
import struct
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


def sample_generator(*key: int) -> torch.Generator:
    """A generator for one sample, seeded by any integers that name it (seed, epoch, index)."""
    digest = hashlib.blake2b(struct.pack(f"<{len(key)}q", *key), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


class EpochSampler(Sampler[int]):
    """Shuffles anew every epoch, and tells the dataset the epoch.

    Yields `epoch * num_samples + index`: a worker process learns the epoch from the key itself, however long it lives.

    Args:
        num_samples: Length of the dataset.
        seed: Seed of the order.
    """

    def __init__(self, num_samples: int, seed: int):
        self.num_samples = num_samples
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.num_samples, generator=sample_generator(self.seed, self.epoch))
        yield from (order + self.epoch * self.num_samples).tolist()


def evenly_spaced(length: int, count: int) -> list[int]:
    """At most `count` indices spread over `length`, the first and the last among them."""
    return torch.linspace(0, length - 1, min(count, length)).round().long().tolist()
