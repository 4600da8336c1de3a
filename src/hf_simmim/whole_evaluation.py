"""Evaluation of every image, and without a trace in the training that it interrupts."""

import torch
from transformers import Trainer


class WholeEvaluation(Trainer):
    """`transformers.Trainer` that drops incomplete batches of training only, and draws nothing in evaluations.

    Trainer's own `dataloader_drop_last` drops the last batch of evaluations too, and with it part of the images: all of
    them if they are fewer than a batch. The workers of its first evaluation take a seed from the generator that
    stochastic depth draws from; those of later ones are still there and take none, but in a resumed run.
    """

    def _get_dataloader(
        self, dataset, description, batch_size, sampler_fn=None, is_training=False, dataloader_key=None
    ):
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Evaluate as Trainer does; torch's generator is afterwards as it was before."""
        with torch.random.fork_rng(devices=[]):
            return super().evaluate(*args, **kwargs)
