"""Evaluation of every image, whatever becomes of the last batch of a training epoch."""

from transformers import Trainer


class WholeEvaluation(Trainer):
    """`transformers.Trainer` that drops incomplete batches of training only.

    Trainer's own `dataloader_drop_last` drops the last batch of evaluations too, and with it part of the images: all of
    them if they are fewer than a batch.
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
