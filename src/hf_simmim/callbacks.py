"""Trainer callbacks: pictures while a model trains."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from .data import MaskedImageDataset, collate, evenly_spaced, normalize
from .visualization import plot_losses, reconstruction_grid


class PictureCallback(TrainerCallback):
    """Draws reconstructions of the same images with the same masks, and the loss curve, at every evaluation.

    Writes `reconstructions/step-N.png`, and `reconstruction.png` and `loss_curve.png` that show the latest state. Where
    the target cannot be decoded to pixels there is the loss curve only.

    Args:
        dataset: Evaluation images; those drawn are spread evenly over it.
        processor: Image processor, for its mean and standard deviation.
        num_images: How many to draw.
    """

    def __init__(self, dataset: MaskedImageDataset, processor: Any, num_images: int = 12):
        self.batch = collate([dataset[index] for index in evenly_spaced(len(dataset), num_images)])
        self.processor = processor

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        """Every process runs the model, for sharded ones need all; the first one draws."""
        device = next(model.parameters()).device
        mean, std = self.processor.image_mean, self.processor.image_std
        pixel_values = normalize(self.batch["pixel_values"].to(device), mean, std, self.processor.rescale_factor)
        mask = self.batch["bool_masked_pos"].to(device)
        was_training = model.training
        model.eval()
        with torch.no_grad():
            reconstruction = model(pixel_values, bool_masked_pos=mask, return_loss=False).reconstruction
        model.train(was_training)
        if not state.is_world_process_zero:
            return
        output_dir = Path(args.output_dir)
        plot_losses(state.log_history, output_dir / "loss_curve.png")
        if reconstruction is None:
            return
        grid = reconstruction_grid(
            *(pixel_values, mask, reconstruction, mean, std, model.config.patch_size),
            pixel_mask=self.batch.get("pixel_mask"),
        )
        (output_dir / "reconstructions").mkdir(exist_ok=True)
        grid.save(output_dir / "reconstructions" / f"step-{state.global_step:07d}.png")
        grid.save(output_dir / "reconstruction.png")

    def on_train_end(self, args, state, control, **kwargs):
        """The last training losses come after the last evaluation."""
        if state.is_world_process_zero and state.log_history:
            plot_losses(state.log_history, Path(args.output_dir) / "loss_curve.png")
