"""Trainers of models with labels: classification and segmentation."""

from typing import Any

import numpy as np
import torch
from torch import nn

from ..model.losses import classification_loss
from .cards.classification import classification_card
from .cards.segmentation import segmentation_card
from .optimization import create_optimizer, planned_steps
from .trainers import RunTrainer


class LabeledTrainer(RunTrainer):
    """`RunTrainer` with a learning rate for each layer, by the arguments `layer_decay` and `official`.

    Optimizer and schedule are made at once, so that mistakes in their options are found; with FSDP when a training
    begins.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        dataset: Any = self.train_dataset
        if dataset is not None and not self.is_fsdp_enabled:
            self.create_optimizer_and_scheduler(planned_steps(self.args, len(dataset)))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer, unless there is one.

        Args:
            model: The model if it is another than the trainer's, such as a sharded one.

        Returns:
            The optimizer.
        """
        if self.optimizer is None:
            decay, official = getattr(self.args, "layer_decay", 1.0), getattr(self.args, "official", True)
            trained: Any = self.model if model is None else model
            self.optimizer = create_optimizer(trained, self.args, decay, official)
        return self.optimizer


class ClassifierTrainer(LabeledTrainer):
    """Trainer of classifiers, whose evaluation loss is the mean over images.

    Set `final_metrics` to the metrics measured after training, and `final_per_class` to those of each class
    (`per_class` of `PerClassScores`), for the card.
    """

    card = staticmethod(classification_card)
    final_metrics: dict[str, float] | None = None
    final_per_class: dict[str, dict[str, float]] | None = None

    def evaluation_loop(self, *args, **kwargs):
        """Run Trainer's loop, with a loss that is the exact mean over images for any number of processes."""
        output = super().evaluation_loop(*args, **kwargs)
        if isinstance(output.predictions, np.ndarray) and isinstance(output.label_ids, np.ndarray):
            # Trainer averages over batches, some of which repeat images to have the same size in all processes.
            model: Any = self.model
            logits, labels = torch.from_numpy(output.predictions), torch.from_numpy(output.label_ids)
            config = model.config
            loss = classification_loss(
                logits, labels, config.problem_type, config.class_weights, label_std=config.label_std
            )
            name = f"{kwargs.get('metric_key_prefix', 'eval')}_loss"
            output = output._replace(metrics={**(output.metrics or {}), name: loss.item()})
        return output


class SegmentationTrainer(LabeledTrainer):
    """Trainer of segmentation models."""

    card = staticmethod(segmentation_card)
