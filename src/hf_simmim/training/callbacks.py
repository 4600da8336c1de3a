"""Trainer callbacks: reconstructions, loss curves and probes during training."""

import contextlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from PIL import Image
from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.trainer_callback import CallbackHandler
from transformers.utils import logging

from ..data.labeled.images import LabeledImageDataset
from ..data.masked_images import collate
from ..data.sampling import sample_indices
from ..data.transforms import normalize
from ..evaluation.intervals import majority_share
from ..evaluation.probing import check_layers, extract_features, knn, linear_probe
from ..evaluation.reconstruction import Reconstruction
from ..model.masking import patch_mask
from ..visualization.grids import reconstruction_grid
from ..visualization.plots import plot_losses, plot_probe
from .cards.facts import best_step
from .image_samples import ImageSample

# Penalty of the linear probe: fixed, so that evaluations are comparable and one fit is enough.
PENALTY = 1e-3


class PictureCallback(TrainerCallback):
    """Draws reconstructions of the same images with the same masks, and the loss curve, at every evaluation.

    Writes `reconstructions/step-N.png`, and `reconstruction.png` and `loss_curve.png` of the latest state. Logs the
    reconstructions as `reconstruction` to TensorBoard, trackio and Weights & Biases if `report_to` names them. If the
    target cannot be decoded to pixels, only the loss curve is drawn.

    Args:
        trainer: Trainer that the callback is added to; the images are spread evenly over its `eval_dataset`.
        num_images: Number of images to draw.
    """

    def __init__(self, trainer: Trainer, num_images: int = 12):
        self.trainer = trainer
        dataset: Any = trainer.eval_dataset
        self.batch = collate([dataset[index] for index in sample_indices(dataset.images, num_images)])
        self.processor: Any = trainer.processing_class
        self.trackers = TrackerImages(trainer.callback_handler)

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        """Run the model in every process, which sharded models need; the first process draws."""
        device = next(model.parameters()).device
        mean, std = self.processor.image_mean, self.processor.image_std
        pixel_values = normalize(self.batch["pixel_values"].to(device), mean, std, self.processor.rescale_factor)
        mask = self.batch["bool_masked_pos"].to(device)
        was_training = model.training
        model.eval()
        with torch.no_grad():
            prediction = model(pixel_values, bool_masked_pos=mask, return_loss=False).reconstruction
        model.train(was_training)
        if not state.is_world_process_zero:
            return
        output_dir = Path(args.output_dir)
        plot_losses(state.log_history, output_dir / "loss_curve.png")
        if prediction is None:
            return
        patch_size = model.config.patch_size
        patches: Any = patch_mask(mask, pixel_values, patch_size)
        reconstruction = Reconstruction(
            pixel_values=pixel_values.cpu(),
            bool_masked_pos=patches.cpu(),
            pixel_mask=self.batch.get("pixel_mask"),
            prediction=prediction.float().cpu(),
            image_mean=mean,
            image_std=std,
            patch_size=patch_size,
            loss_region=model.config.loss_region,
        )
        grid = reconstruction_grid(reconstruction)
        # At the end of training the best weights may be restored, which are those of an earlier step.
        if best_step(self.trainer) is None:
            (output_dir / "reconstructions").mkdir(exist_ok=True)
            grid.save(output_dir / "reconstructions" / f"step-{state.global_step:07d}.png")
        grid.save(output_dir / "reconstruction.png")
        self.trackers.log("reconstruction", grid, state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        """Draw the loss curve again: the last training losses are logged after the last evaluation."""
        if state.is_world_process_zero and state.log_history:
            plot_losses(state.log_history, Path(args.output_dir) / "loss_curve.png")


class EpochCallback(TrainerCallback):
    """Tells the training data set the epoch, and separates the random states of its workers and of the model.

    accelerate also sets the epoch, but neither in the epoch in which a run resumes nor with several processes: such
    epochs would repeat the augmentation of the last one that was set. Our trainers do not need this, for their samplers
    compute the epoch from the step; a plain Trainer does. Persistent workers draw one seed from the generator that
    stochastic depth uses, so a resumed run would draw once more than an uninterrupted one.
    """

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """Set the epoch before the workers get their first images."""
        # accelerate's loader wraps torch's.
        loader = getattr(train_dataloader, "base_dataloader", train_dataloader)
        if loader.generator is None:
            loader.generator = torch.Generator()
        if hasattr(train_dataloader.dataset, "set_epoch"):
            train_dataloader.dataset.set_epoch(int(state.epoch or 0))


class ProbeCallback(TrainerCallback):
    """Evaluates the encoder's frozen features with k-NN and a linear probe at every evaluation.

    The pre-training loss alone is misleading: it is comparable only between runs with the same masks and target, and a
    lower loss need not mean better features. The accuracies of k-NN and a linear probe on some labeled images are
    measured before training and at evaluations, and logged as `probe_knn_accuracy` and `probe_linear_accuracy`; the
    metrics of the evaluation contain them as `eval_probe_...`, so that `metric_for_best_model` can name them. Draws
    `probe.png`. Labels are never used for training, and the trained weights are the same as without the callback.

    Args:
        trainer: Trainer that the callback is added to.
        train_dataset: Labeled images to fit the probes to, without augmentation.
        test_dataset: Labeled images to test the probes on.
        num_classes: Number of classes of their labels.
        num_images: Largest number of images to use of each data set, spread evenly over it.
        every: Interval in evaluations; 1 for every evaluation.
        layer: Hidden state to take features from; None for the encoder's output.
        pooling: Pooling of the features, as in `extract_features`.
        k: Number of neighbors.

    Raises:
        ValueError: If layer or pooling does not fit the encoder, or `every` or `num_images` is below 1.
    """

    metric_names = ("probe_knn_accuracy", "probe_linear_accuracy")

    def __init__(
        self,
        trainer: Trainer,
        train_dataset: LabeledImageDataset,
        test_dataset: LabeledImageDataset,
        num_classes: int,
        num_images: int = 2000,
        every: int = 1,
        layer: int | None = None,
        pooling: str = "mean",
        k: int = 20,
    ):
        if every < 1 or num_images < 1:
            raise ValueError(f"every={every} and num_images={num_images} must be at least 1.")
        check_layers(trainer.model.config, [layer], pooling)  # type: ignore[union-attr]
        self.trainer = trainer
        self.parts = [_ProbeImages(dataset, num_images) for dataset in (train_dataset, test_dataset)]
        self.num_classes = num_classes
        self.every = every
        self.layer, self.pooling, self.k = layer, pooling, k
        self.num_evaluations = 0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Measure the encoder before training, as a baseline."""
        if state.global_step == 0:
            untimed = getattr(self.trainer, "untimed", contextlib.nullcontext)
            with untimed():
                self._measure(args, state, model)

    def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
        """Run the model in every process on its part of the images; the first process fits the probes."""
        self.num_evaluations += 1
        if self.num_evaluations % self.every:
            return
        figures = self._measure(args, state, model)
        if metrics is not None:
            metrics.update({f"eval_{name}": value for name, value in figures.items()})

    def _measure(self, args: Any, state: Any, model: Any) -> dict[str, float]:
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        features = [self._features(part, args, model, dtype) for part in self.parts]
        results: list[dict[str, float]] = [{}]
        if state.is_world_process_zero:
            (train, test), (labels, test_labels) = features, (part.labels for part in self.parts)
            data = (train, labels, test, test_labels, self.num_classes)
            neighbors = knn(*data, k=self.k, device=args.device)
            linear = linear_probe(*data, penalties=[PENALTY], device=args.device)
            results = [dict(zip(self.metric_names, (neighbors.accuracy, linear.accuracy), strict=True))]
        broadcast_object_list(results)
        # A copy: Trainer adds the epoch to what it logs.
        self.trainer.log(dict(results[0]))
        if state.is_world_process_zero:
            share = majority_share(self.parts[1].labels)[1]
            plot_probe(state.log_history, Path(args.output_dir) / "probe.png", share)
        return results[0]

    def _features(self, part: "_ProbeImages", args: Any, model: Any, dtype: torch.dtype | None) -> torch.Tensor:
        """Features (N, D) of all images of a part, complete at least in the first process."""
        batches = part.batches(args, getattr(self.trainer, "_stop_signals", None))
        own = extract_features(model, batches, self.layer, self.pooling, dtype=dtype, progress=False)
        return part.gather(own, self.trainer.accelerator)


class _ProbeImages(ImageSample):
    """A sample of labeled images, and their labels."""

    def __init__(self, dataset: LabeledImageDataset, num_images: int):
        super().__init__(dataset, num_images, _pixel_values)
        rows = dataset.images.select(self.indices)
        self.labels = torch.tensor(list(rows.select_columns("label")["label"]))


def _pixel_values(samples: list[dict[str, Any]]) -> torch.Tensor:
    return torch.stack([sample["pixel_values"] for sample in samples])


logger = logging.get_logger(__name__)


class TrackerImages:
    """Logs pictures to the trackers that `report_to` names: TensorBoard, trackio and Weights & Biases.

    A tracker that fails causes one warning and is retried with the next picture; the training continues.

    Args:
        callback_handler: Callback handler of the trainer, which holds the trackers' callbacks.
    """

    def __init__(self, callback_handler: CallbackHandler):
        self.callback_handler = callback_handler
        self.failed: set[str] = set()

    def log(self, name: str, picture: Image.Image, step: int) -> None:
        """Log a picture; only the first process calls it, while the trackers' runs are open.

        Args:
            name: Name of the picture in the tracker.
            picture: The picture.
            step: Training step of the picture.
        """
        for callback in self.callback_handler.callbacks:
            for kind, (tracker, send) in _TRACKERS.items():
                if not isinstance(callback, kind):
                    continue
                try:
                    send(callback, name, picture, step)
                except Exception as error:  # every tracker raises its own types
                    if tracker not in self.failed:
                        logger.warning(
                            f"{tracker} did not accept the picture {name!r} of step {step}"
                            f" ({type(error).__name__}: {error}). Training continues; this warning is not repeated."
                        )
                    self.failed.add(tracker)


def _to_tensorboard(callback: Any, name: str, picture: Image.Image, step: int) -> None:
    callback.tb_writer.add_image(name, np.asarray(picture), step, dataformats="HWC")
    callback.tb_writer.flush()


def _to_wandb(callback: Any, name: str, picture: Image.Image, step: int) -> None:
    wandb = importlib.import_module("wandb")
    # transformers plots all its metrics over this axis; W&B's own step counts calls.
    wandb.log({name: wandb.Image(picture), "train/global_step": step})


def _to_trackio(callback: Any, name: str, picture: Image.Image, step: int) -> None:
    trackio = importlib.import_module("trackio")
    trackio.log({name: trackio.Image(picture), "train/global_step": step})


_TRACKERS: dict[type, tuple[str, Callable[[Any, str, Image.Image, int], None]]] = {
    TensorBoardCallback: ("TensorBoard", _to_tensorboard),
    TrackioCallback: ("trackio", _to_trackio),
    WandbCallback: ("Weights & Biases", _to_wandb),
}
