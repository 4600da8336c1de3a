"""Trainer callbacks: reconstructions, loss curves, probes and other measures of features during training."""

import base64
import contextlib
import importlib
import json
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
from ..data.masked_images import MaskedImageDataset, collate
from ..data.sampling import sample_indices
from ..data.transforms import normalize
from ..evaluation.drift import nearest_neighbors, neighbor_agreement
from ..evaluation.intervals import majority_share, wilson_interval
from ..evaluation.probing import (
    PENALTY,
    Pair,
    ProbeResult,
    candidate_pairs,
    choose_pair,
    extract_pairs,
    knn,
    linear_probe,
    name_pair,
)
from ..evaluation.reconstruction import reconstruction_of
from ..visualization.grids import reconstruction_grid
from ..visualization.plots import plot_losses, plot_probe, plot_spectrum
from .cards.facts import best_step
from .image_samples import ImageSample, pooled_features

logger = logging.get_logger(__name__)

# Images whose neighbors are compared with those of the first weights, and the number of neighbors.
NUM_DRIFT_IMAGES = 512
NUM_NEIGHBORS = 10
# Key of these neighbors in the state of a training, with which checkpoints save it.
START_NEIGHBORS = "start_neighbors"


class PictureCallback(TrainerCallback):
    """Draws reconstructions of the same images with the same masks, and the loss curve, at every evaluation.

    Writes `reconstructions/step-N.png`, and `reconstruction.png` and `loss_curve.png` of the latest state. Logs the
    reconstructions as `reconstruction` to TensorBoard, trackio and Weights & Biases if `report_to` names them.
    Histograms of gradients are drawn as lines; if the target is neither these nor pixels, only the loss curve is drawn.

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
            outputs = model(pixel_values, bool_masked_pos=mask, return_loss=False)
        model.train(was_training)
        if not state.is_world_process_zero:
            return
        output_dir = Path(args.output_dir)
        plot_losses(state.log_history, output_dir / "loss_curve.png")
        images = (pixel_values, mask, self.batch.get("pixel_mask"))
        trained: Any = self.trainer.model
        reconstruction = reconstruction_of(trained, outputs, *images, self.processor)
        if reconstruction is None:
            return
        grid = reconstruction_grid(reconstruction.cpu())
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
    measured before training and at evaluations, and logged as `probe_knn_accuracy` and `probe_linear_accuracy`, with
    their 95 % intervals (Wilson's, of other test images) as `probe_knn_low`, `probe_knn_high` and so on; the metrics of
    the evaluation contain them as `eval_probe_...`, so that `metric_for_best_model` can name the accuracies. Draws
    `probe.png`. Labels are never used for training, and the trained weights are the same as without the callback.

    Args:
        trainer: Trainer that the callback is added to.
        train_dataset: Labeled images to fit the probes to, without augmentation.
        test_dataset: Labeled images to test the probes on.
        num_classes: Number of classes of their labels.
        num_images: Largest number of images to use of each data set, spread evenly over it.
        every: Interval in evaluations; 1 for every evaluation.
        layer: Hidden state to take features from; None for the encoder's output; "auto" to choose, at every evaluation
            and by a fifth of the images that the probes are fitted to, among those of `candidate_pairs`.
        pooling: Pooling of the features, as in `extract_features`; "auto" to choose it as well.
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
        layer: int | str | None = None,
        pooling: str = "mean",
        k: int = 20,
    ):
        if every < 1 or num_images < 1:
            raise ValueError(f"every={every} and num_images={num_images} must be at least 1.")
        self.pairs = candidate_pairs(trainer.model.config, layer, pooling)  # type: ignore[union-attr]
        # That of the last evaluation.
        self.chosen: Pair = self.pairs[0]
        self.trainer = trainer
        self.parts = [_ProbeImages(dataset, num_images) for dataset in (train_dataset, test_dataset)]
        self.num_classes = num_classes
        self.every = every
        self.k = k
        self.num_evaluations = 0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Measure the encoder before training, as a baseline; a resumed training goes on counting evaluations."""
        evaluated = [entry["step"] for entry in state.log_history if any(name.startswith("eval_") for name in entry)]
        self.num_evaluations = len(set(evaluated))
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
        results: list[Any] = [{}, 0]
        if state.is_world_process_zero:
            labels, test_labels = (part.labels for part in self.parts)
            chosen = choose_pair(features[0], labels, self.num_classes, device=args.device)
            data = (features[0][chosen], labels, features[1][chosen], test_labels, self.num_classes)
            neighbors = knn(*data, k=self.k, device=args.device)
            linear = linear_probe(*data, penalties=[PENALTY], device=args.device)
            figures = dict(zip(self.metric_names, (neighbors.accuracy, linear.accuracy), strict=True))
            for name, result in (("knn", neighbors), ("linear", linear)):
                ends = _interval(result, test_labels)
                figures |= {f"probe_{name}_{end}": value for end, value in zip(("low", "high"), ends, strict=True)}
            results = [figures, chosen]
        broadcast_object_list(results)
        figures, self.chosen = results[0], self.pairs[results[1]]
        if len(self.pairs) > 1:
            # The output is -1, which stands for the last.
            layer = self.chosen[0]
            figures["probe_layer"] = -1 if layer is None else layer
            if state.is_world_process_zero:
                logger.info(f"Step {state.global_step}: the probe takes {name_pair(self.chosen)}.")
        # A copy: Trainer adds the epoch to what it logs.
        self.trainer.log(dict(figures))
        if state.is_world_process_zero:
            share = majority_share(self.parts[1].labels)[1]
            plot_probe(state.log_history, Path(args.output_dir) / "probe.png", share)
        return figures

    def _features(self, part: "_ProbeImages", args: Any, model: Any, dtype: torch.dtype | None) -> list[torch.Tensor]:
        """Features (N, D_i) of all images of a part and each pair, complete at least in the first process."""
        batches = part.batches(args, getattr(self.trainer, "_stop_signals", None))
        found = extract_pairs(model, batches, self.pairs, dtype=dtype, progress=False)
        return [part.gather(own, self.trainer.accelerator) for own in found]


def _interval(result: ProbeResult, labels: torch.Tensor) -> tuple[float, float]:
    return wilson_interval(int((result.predictions == labels).sum()), len(labels))


class SpectrumCallback(TrainerCallback):
    """Draws RankMe over steps and the singular values of the features at every evaluation.

    Writes `spectrum.png`, and `spectrum.json` with the values of the last evaluation, which `SimMIMTrainer` measured.

    Args:
        trainer: Trainer that the callback is added to.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer

    def on_evaluate(self, args, state, control, **kwargs):
        """Draw in the first process."""
        compared = self.trainer._compared
        if compared is None or not len(compared.singular_values) or not state.is_world_process_zero:
            return
        step, values = best_step(self.trainer) or state.global_step, compared.singular_values.tolist()
        output_dir = Path(args.output_dir)
        text = json.dumps({"step": step, "singular_values": values})
        (output_dir / "spectrum.json").write_text(text + "\n", encoding="utf-8")
        plot_spectrum(state.log_history, values, step, output_dir / "spectrum.png")


class DriftCallback(TrainerCallback):
    """Measures how far features have moved from those of the weights that the training began with.

    For each of some validation images: the share of its nearest neighbors among them that it has in common with before
    the first step, by the encoder's mean-pooled output. Their mean is logged at evaluations as `drift_knn_agreement`,
    and is in their metrics as `eval_drift_knn_agreement`. Neighbors do not change where features are rotated or scaled,
    which costs nothing; they change where the features forget what they told apart. The first neighbors are saved
    with every checkpoint.

    Args:
        trainer: Trainer that the callback is added to, with a `MaskedImageDataset` to evaluate on.
        num_images: Largest number of images, spread evenly over the validation images.
        k: Number of neighbors of each, at most a third of the images.

    Raises:
        ValueError: If there are fewer than four validation images.
    """

    metric_names = ("drift_knn_agreement",)

    def __init__(self, trainer: Any, num_images: int = NUM_DRIFT_IMAGES, k: int = NUM_NEIGHBORS):
        dataset = trainer.eval_dataset
        if not isinstance(dataset, MaskedImageDataset) or len(dataset) < 4:
            raise ValueError("Drift is measured on four or more validation images. Use --holdout or --validation_dir.")
        self.trainer = trainer
        self.sample = ImageSample(dataset, num_images, collate)
        # Of few images, random neighbors would agree as well.
        self.k = min(k, (len(self.sample) - 1) // 3)

    def on_train_begin(self, args, state, control, **kwargs):
        """Note the neighbors before training; a resumed run has them in its checkpoint."""
        if state.global_step == 0:
            with self.trainer.untimed():
                neighbors = self._neighbors()
            numbers = neighbors.numpy().astype("<u2").tobytes()
            state.stateful_callbacks[START_NEIGHBORS] = {
                "k": neighbors.shape[1],
                "rows": base64.b64encode(numbers).decode(),
            }
        elif START_NEIGHBORS not in state.stateful_callbacks and state.is_world_process_zero:
            logger.warning("The checkpoint has no neighbors of the first weights, so drift is not measured.")

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Compare the neighbors with the first ones."""
        saved = state.stateful_callbacks.get(START_NEIGHBORS)
        if saved is None:
            return
        numbers = np.frombuffer(base64.b64decode(saved["rows"]), dtype="<u2").astype(np.int64)
        before, now = torch.from_numpy(numbers).view(-1, saved["k"]), self._neighbors()
        # The validation images of a resumed run may be others only with --resume_from_checkpoint.
        figures = {
            "drift_knn_agreement": neighbor_agreement(before, now) if before.shape == now.shape else float("nan")
        }
        self.trainer.log(dict(figures))
        if metrics is not None:
            metrics.update({f"eval_{name}": value for name, value in figures.items()})

    def _neighbors(self) -> torch.Tensor:
        return nearest_neighbors(pooled_features(self.sample, self.trainer), self.k)


class _ProbeImages(ImageSample):
    """A sample of labeled images, and their labels."""

    def __init__(self, dataset: LabeledImageDataset, num_images: int):
        super().__init__(dataset, num_images, _pixel_values)
        rows = dataset.images.select(self.indices)
        self.labels = torch.tensor(list(rows.select_columns("label")["label"]))


def _pixel_values(samples: list[dict[str, Any]]) -> torch.Tensor:
    return torch.stack([sample["pixel_values"] for sample in samples])


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
