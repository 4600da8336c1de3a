"""Samples of images that are the same at every evaluation, shared among processes, and what is measured on them."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from ..data.masked_images import MaskedImageDataset, collate
from ..data.reading import ImageDataset
from ..data.sampling import sample_indices
from ..evaluation.probing import extract_features
from ..evaluation.rankme import effective_rank, singular_values
from .stop_signals import StopSignals

# The images of a sample are cached in memory up to this many pixel values.
MAX_KEPT_NUMBERS = 2**26
# Largest number of training images whose error is measured beside that of the validation images.
COMPARED_IMAGES = 1000


class ImageSample:
    """Some images of a data set, evenly spaced, cached after the first read if they are small.

    Draws from no generator of the training.

    Args:
        dataset: The data set, whose items do not depend on the epoch.
        num_images: Largest number of images.
        collate: Collates the items of a batch.
    """

    def __init__(self, dataset: ImageDataset, num_images: int, collate: Callable[[list[Any]], Any]):
        self.dataset = dataset
        self.indices = sample_indices(getattr(dataset, "images", dataset), num_images)
        self.collate = collate
        self.is_kept = len(self) * dataset.num_channels * math.prod(dataset.image_size) <= MAX_KEPT_NUMBERS
        self.kept: list[Any] = []

    def __len__(self) -> int:
        return len(self.indices)

    def shard(self, rank: int, world_size: int) -> list[int]:
        """Positions of the images of a process, equally many for all, since sharded models run in step."""
        size = math.ceil(len(self) / world_size)
        return [position % len(self) for position in range(rank * size, (rank + 1) * size)]

    def batches(self, args: Any, stop_signals: StopSignals | None = None) -> Iterable[Any]:
        """Batches of the images of this process.

        Args:
            args: Arguments of the training: batch size of evaluations, number of workers, processes.
            stop_signals: Handler of signals, which must not end the workers.

        Returns:
            Collated batches, on the CPU.
        """
        if self.kept:
            return self.kept
        shard = self.shard(args.process_index, args.world_size)
        loader = DataLoader(
            Subset(self.dataset, [self.indices[position] for position in shard]),
            batch_size=args.per_device_eval_batch_size,
            num_workers=args.dataloader_num_workers,
            collate_fn=self.collate,
            # Otherwise the loader would draw from training's generator.
            generator=torch.Generator(),
        )
        if stop_signals is not None:
            stop_signals.guard(loader)
        if self.is_kept:
            self.kept = list(loader)
        return self.kept or loader

    def gather(self, own: torch.Tensor, accelerator: Any) -> torch.Tensor:
        """Join values of the images of all processes.

        Args:
            own: A row for each image of this process, in the order of `batches`.
            accelerator: The trainer's accelerator.

        Returns:
            A row for each image of the sample, in its order, on the CPU.
        """
        gathered = accelerator.gather(own.to(accelerator.device)).cpu()
        world_size = accelerator.num_processes
        everyone = [self.shard(rank, world_size) for rank in range(world_size)]
        order = torch.tensor(list(itertools.chain.from_iterable(everyone)))
        rows = torch.empty(len(self), *own.shape[1:], dtype=gathered.dtype)
        rows[order] = gathered
        return rows


class ComparedImages:
    """Training images that are evaluated like the validation images, and validation images for RankMe.

    The training images are whole and evenly spaced, with the masks of evaluations; `eval_train_masked_l1` of them (or
    `eval_train_loss`) is comparable with the error of the validation images, unlike the error of training batches,
    which is of random crops and of other weights at every step. RankMe is that of the encoder's pooled features of
    unmasked images.

    Args:
        train: The training images.
        evaluation: The validation images.
        num_images: Largest number of training images; there are no more than validation images. RankMe takes up to
            twice as many.
    """

    def __init__(self, train: MaskedImageDataset, evaluation: MaskedImageDataset, num_images: int = COMPARED_IMAGES):
        self.train = ImageSample(train.whole(evaluation.seed), min(num_images, len(evaluation)), collate)
        self.evaluation = ImageSample(evaluation, 2 * num_images, collate)
        # Of the features of the last evaluation, for whoever draws them.
        self.singular_values = torch.empty(0)

    def measure(self, trainer: Any, measure_batch: Callable[[Any], torch.Tensor]) -> dict[str, float]:
        """Measure the current weights; all processes must call it.

        Args:
            trainer: The trainer.
            measure_batch: Function of a batch that returns a table (B, figures, 2) as `mean_figures` takes it.

        Returns:
            `train_masked_l1` (0 to 255), or `train_loss` if the target cannot be decoded to pixels, and `rankme`.
        """
        table = torch.cat([measure_batch(batch) for batch in _stoppable(self.train, trainer)])
        means = mean_figures(self.train.gather(table, trainer.accelerator), trainer.figure_names)
        name = "masked_l1" if "masked_l1" in means else "loss"
        self.singular_values = singular_values(pooled_features(self.evaluation, trainer))
        return {f"train_{name}": means[name], "rankme": effective_rank(self.singular_values)}


def pooled_features(sample: ImageSample, trainer: Any) -> torch.Tensor:
    """Mean-pooled outputs of the encoder for whole images; all processes must call it.

    Args:
        sample: Images of a `MaskedImageDataset`.
        trainer: The trainer.

    Returns:
        Features (N, D) of all images of the sample, in its order, on the CPU.
    """
    args = trainer.args
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    batches = (
        {"pixel_values": trainer._prepare_inputs(batch)["pixel_values"]} for batch in _stoppable(sample, trainer)
    )
    own = extract_features(trainer.model, batches, dtype=dtype, progress=False)
    return sample.gather(own, trainer.accelerator)


def _stoppable(sample: ImageSample, trainer: Any) -> Iterator[Any]:
    """Batches of a sample, after each of which a signal may give up the evaluation."""
    signals: StopSignals = trainer._stop_signals
    for batch in sample.batches(trainer.args, signals):
        yield batch
        signals.on_prediction_step(trainer.args, trainer.state, trainer.control)


def mean_figures(table: torch.Tensor, names: Sequence[str]) -> dict[str, float]:
    """Mean over images of each figure, in double precision.

    Args:
        table: Tensor (N, figures, 2): of each image and figure, the value and the number of pixels that it averages.
            Images without pixels, such as crops of missing pixels only, are left out.
        names: Names of the figures, such as `SimMIMTrainer.figure_names`.

    Returns:
        The means by name; NaN if no image counts.
    """
    values, num_pixels = table.cpu().double().unbind(dim=2)
    counts = (num_pixels > 0).double()
    means = ((values * counts).sum(dim=0) / counts.sum(dim=0)).tolist()
    return dict(zip(names, means, strict=True))


class RunningMean:
    """Mean of a figure over images, summed on the device and read only when it is logged."""

    def __init__(self):
        self.total: torch.Tensor | None = None

    def add(self, figures: torch.Tensor, num_pixels: torch.Tensor) -> None:
        """Add figures of images (B,), except those that average no pixels or are not finite."""
        counts = ((num_pixels > 0) & figures.isfinite()).to(figures.dtype)
        term = torch.stack([torch.where(counts > 0, figures, 0).sum(), counts.sum()])
        self.total = term if self.total is None else self.total + term

    def drain(self, accelerator: Any) -> float:
        """The mean over all processes since the last call; NaN if nothing was added."""
        total = self.total if self.total is not None else torch.zeros(2, device=accelerator.device)
        self.total = None
        figure, count = accelerator.reduce(total, reduction="sum").tolist()
        return figure / count if count else float("nan")
