"""Trainers: a common base class, and one class each for pre-training, classification and segmentation."""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from huggingface_hub import CommitInfo
from torch import nn
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import HubStrategy, SaveStrategy, TrainOutput
from transformers.utils import logging

from ..data.masked_images import MaskedImageDataset
from ..data.reading import UnreadableImages
from ..data.sampling import EpochSampler
from ..data.transforms import normalize
from ..evaluation.reconstruction import Reconstruction
from ..hub.provenance import RunOrigin
from ..hub.pushes import HubPushes
from ..hub.snapshots import Push
from ..model.losses import classification_loss
from ..model.masking import patch_mask
from ..model.modeling_simmim import SimMIMForMaskedImageModeling
from .agreement import fail_together
from .checkpoints import SAVE_ERRORS, TrainingStoppedError, checkpoint_name
from .classification_card import classification_card
from .optimization import create_schedule, decay_parameter_names, images_per_step, planned_steps
from .pretraining_card import pretraining_card
from .resumable_trainer import ResumableTrainer
from .segmentation_card import segmentation_card

logger = logging.get_logger(__name__)


class RunTrainer(ResumableTrainer):
    """`transformers.Trainer` with our model card, robust pushes to the Hub, and evaluation of every image.

    A push that fails during training causes a warning and is retried in the background; every commit holds weights,
    configuration, processor, code, card and pictures of the same moment. Trainer's own pushes upload files while
    training writes them, in several commits, and do not retry.

    Evaluates every image and leaves training's random state untouched. Trainer's own `dataloader_drop_last` also drops
    the last batch of evaluations, and with it all images if they are fewer than a batch. The workers of its first
    evaluation draw a seed from the generator that stochastic depth uses; in later evaluations they persist and draw
    none, except in a resumed run.

    Args:
        *args: Passed to Trainer.
        hub_pushes: Pushes of the run, if they were opened already; else they are opened from the arguments.
        **kwargs: Passed to Trainer.
    """

    # Set in the first process of a run that is pushed.
    hub_pushes: HubPushes | None
    # Provenance for the card, which the trainer does not know; commands set it.
    origin: RunOrigin = RunOrigin()
    # Function that renders the card of a trainer.
    card: ClassVar[Any] = None

    def __init__(self, *args, hub_pushes: HubPushes | None = None, **kwargs):
        self.hub_pushes = hub_pushes
        super().__init__(*args, **kwargs)

    def train(self, *args, **kwargs):
        """Train as Trainer does, once it is certain that evaluations measure what is to select the best checkpoint.

        Args:
            *args: Passed to Trainer.
            **kwargs: Passed to Trainer.

        Returns:
            What Trainer returns.

        Raises:
            TrainingStoppedError: If no evaluation measures `metric_for_best_model`.
        """
        names, chosen = self.metric_names(), (self.args.metric_for_best_model or "loss").removeprefix("eval_")
        if self.args.eval_strategy != "no" and names is not None and chosen not in names:
            raise TrainingStoppedError(
                f"metric_for_best_model={self.args.metric_for_best_model!r} is not measured by evaluations. Use one of:"
                f" {', '.join(sorted(names))}."
            )
        return super().train(*args, **kwargs)

    def metric_names(self) -> set[str] | None:
        """Names of what evaluations measure, without `eval_`; None if they are not known in advance."""
        measured = [getattr(callback, "metric_names", ()) for callback in self.callback_handler.callbacks]
        if self.compute_metrics is not None:
            if not hasattr(self.compute_metrics, "metric_names"):
                return None
            measured.append(self.compute_metrics.metric_names)
        return {"loss"}.union(*measured)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository; if the Hub cannot be reached, a later push creates it.

        Args:
            token: Token with write access; that of the arguments if None.
            private: Whether a new repository is private; as the arguments say if None.

        Raises:
            ValueError: If pushing can never work.
        """
        if not self.is_world_process_zero():
            return
        if self.hub_pushes is None:
            self.hub_pushes = HubPushes.from_arguments(self.args, token, private)
        self._note_repository()

    def _note_repository(self) -> None:
        if self.hub_pushes is not None:
            name = self.hub_pushes.repo_id
            self.hub_model_id = name  # type: ignore[assignment]
            if "/" in name:
                # The card shows how to load the model by this name.
                self.args.hub_model_id = name

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.hub_pushes is None or self.args.hub_strategy == HubStrategy.END:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.write_card()
        checkpoint = Path(checkpoint_folder)
        folder = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        step = self.state.global_step
        # The best checkpoint may change several times in an epoch.
        moment = f"epoch {int(self.state.epoch)}" if self.args.save_strategy == SaveStrategy.EPOCH else f"step {step}"
        try:
            push = Push.of_checkpoint(
                checkpoint,
                f"Training in progress, {moment}",
                folder.get(self.args.hub_strategy),
                revision=self.args.hub_revision,
            )
        except OSError as error:
            self.hub_pushes.num_failed += 1
            logger.warning(
                f"Could not prepare a push of {checkpoint} ({error}). Training continues; the next push replaces it."
            )
            return
        if push.paths():
            self.hub_pushes.submit(push)
        else:
            logger.warning_once("Checkpoints of this run are sharded: the model is pushed at the end only.")

    def _finish_current_push(self) -> None:
        """Wait for the pushes; Trainer calls this at the end of training."""
        if self.hub_pushes is not None:
            self.hub_pushes.settle()

    def write_card(self, **kwargs: Any) -> None:
        """Write the model card; a failure causes a warning and stops neither training nor pushes.

        Args:
            **kwargs: Passed to `create_model_card`.
        """
        self._note_repository()
        try:
            self.create_model_card(**kwargs)
        except Exception as error:
            # A model without an up-to-date card is better than none.
            logger.warning(f"Could not write the model card ({type(error).__name__}: {error}).")

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> "CommitInfo | Future[CommitInfo | None] | None":
        """Save to `output_dir` and push the files that belong in a repository; all processes must call it.

        Args:
            commit_message: Commit message.
            blocking: Whether to wait until the push succeeds or is given up.
            token: Token with write access, from now on; that of the arguments if None.
            revision: Branch; that of the arguments if None.
            private: Whether the repository is private, if this call creates it.
            **kwargs: Passed to `create_model_card`.

        Returns:
            The commit; None if the push failed, which is logged with instructions, and in other processes. Without
            `blocking`, a future of the commit.

        Raises:
            ValueError: If there is no repository yet and pushing can never work.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if self.hub_pushes is None:
            return None
        if token is not None:
            self.hub_pushes.token = token
        self.write_card(**kwargs)
        push = Push.of_run(
            Path(str(self.args.output_dir)),
            commit_message or "End of training",
            revision=revision or self.args.hub_revision,
        )
        self.hub_pushes.submit(push)
        return self.hub_pushes.wait(push) if blocking else push.result

    def save_final_model(self) -> None:
        """Save the complete model to `output_dir` without pushing it yet; all processes must call it.

        Raises:
            TrainingStoppedError: If it cannot be written, such as on a full disk, or another run took the folder.
        """
        if self.is_fsdp_enabled:
            # However the checkpoints are sharded, users load an unsharded model.
            self.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        self._keep_run_folder()
        error = None
        try:
            self.save_model(_internal_call=True)
        except SAVE_ERRORS as problem:
            error = self._not_saved("The model", problem)
        fail_together(error, TrainingStoppedError)

    def finish_pushes(self) -> None:
        """Push the results of a command; training succeeded, so a failed push is reported but is not an error.

        Raises:
            SystemExit: If waiting for the Hub is interrupted.
        """
        try:
            commit = self.push_to_hub()
        except KeyboardInterrupt:
            # Exit status of an interrupted process; instructions were logged.
            raise SystemExit(130) from None
        if isinstance(commit, CommitInfo) and self.hub_pushes is not None:
            failed = self.hub_pushes.num_failed
            repeated = f" (it replaces {failed} failed push{'es' if failed > 1 else ''})" if failed else ""
            print(f"{commit.commit_url}  complete run on the Hub{repeated}")

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
        """Evaluate as Trainer does, and restore the state of torch's generator."""
        with torch.random.fork_rng(devices=[]):
            return super().evaluate(*args, **kwargs)

    def create_model_card(self, *args, **kwargs) -> None:
        """Write our card, also where Trainer would write its own."""
        render = type(self).card
        if render is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            render(self).save(Path(str(self.args.output_dir)) / "README.md")


class SimMIMTrainer(RunTrainer):
    """`transformers.Trainer` for the batches of `MaskedImageDataset`.

    Besides the loss it reports `masked_l1`, the mean absolute error of masked pixels on a scale of 0 to 255 (rescaled
    pixels times 255), if the target can be decoded to pixels (in training only if it consists of pixels),
    `images_per_second` over all processes, and `eta_seconds`. The loss of a step is the mean over its masked pixels,
    however they are distributed over processes and accumulated batches.

    Args:
        *args: Passed to `RunTrainer` and Trainer.
        unreadable_images: Counts the images that could not be read.
        **kwargs: Passed to `RunTrainer` and Trainer; `processing_class` must be a SimMIM image processor.
    """

    model: SimMIMForMaskedImageModeling
    train_dataset: MaskedImageDataset
    eval_dataset: MaskedImageDataset | None
    card = staticmethod(pretraining_card)

    def __init__(self, *args, unreadable_images: UnreadableImages, **kwargs):
        super().__init__(*args, **kwargs)
        self.unreadable_images = unreadable_images
        # The loss is divided by the number of masked pixels of the whole step, see `_get_num_items_in_batch`.
        self.model_accepts_loss_kwargs = True
        self._training_error = _RunningMean()
        self._evaluation: list[torch.Tensor] = []
        self._clock = (time.perf_counter(), 0)

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        return EpochSampler(len(dataset), self._data_seed, self._current_epoch)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = dict(inputs)
        self.unreadable_images.record(inputs.pop("unreadable", []))
        inputs = super()._prepare_inputs(inputs)
        processor = self.processing_class
        inputs["pixel_values"] = normalize(
            inputs["pixel_values"], processor.image_mean, processor.image_std, processor.rescale_factor
        )
        return inputs

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """Number of masked pixels of a step; it may differ between processes and accumulated batches."""
        if not batch_samples or self.args.n_gpu > 1:
            return None
        keys = ("pixel_values", "bool_masked_pos", "pixel_mask")
        count = torch.stack(
            [
                self.model.num_masked_pixels(**{key: batch[key] for key in keys if key in batch}).to(device)
                for batch in batch_samples
            ]
        ).sum()
        if self.args.average_tokens_across_devices:
            count = self.accelerator.reduce(count, reduction="sum")
        return count

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's loss; in training the pixel error is recorded as well."""
        if model.training:
            inputs = inputs | {"return_reconstruction": False}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            error = self._error_per_image(outputs, inputs)
            if error is not None:
                self._training_error.add(*error)
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _error_per_image(self, outputs, inputs) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Mean absolute error of masked pixels (0 to 255) and their number, (B,) each; None if they are not decoded."""
        reconstruction = outputs.get("reconstruction")
        if reconstruction is None:
            return None
        pixel_values, patch_size = inputs["pixel_values"], self.model.simmim.geometry.patch_size
        mask: Any = patch_mask(inputs["bool_masked_pos"], pixel_values, patch_size)
        processor = self.processing_class
        return Reconstruction(
            pixel_values,
            mask,
            inputs.get("pixel_mask"),
            reconstruction,
            processor.image_mean,
            processor.image_std,
            patch_size,
        ).error_per_image()

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Evaluate a batch image by image; images that only fill up the last batch do not count."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            # The loss of the whole batch would compute the target again, maybe with a large network.
            outputs = model(**inputs, return_loss=False)
            losses: Any = self.model.masked_loss(outputs["prediction"], **inputs, per_image=True)
        figures = [losses, self._error_per_image(outputs, inputs)]
        # For each image and figure: its value, and the number of pixels that it averages.
        table = torch.stack([torch.stack(figure, dim=1) for figure in figures if figure is not None], dim=1)
        self._evaluation.append(self.accelerator.gather_for_metrics(table))
        return losses[0].mean(), None, None

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters with weight decay, see `decay_parameter_names`."""
        return decay_parameter_names(model, getattr(self.args, "official", True))

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """Create the schedule that the arguments name, which may be an official one."""
        if self.lr_scheduler is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = create_schedule(optimizer, self.args, num_training_steps)  # type: ignore[assignment, arg-type]
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def train(self, *args, **kwargs):
        """Train as Trainer does, and measure throughput; a finished run only gets its weights restored."""
        self._clock = (time.perf_counter(), -1)
        checkpoint = kwargs.get("resume_from_checkpoint", args[0] if args else None)
        # Otherwise Trainer restores it, or reports what is wrong with it.
        if isinstance(checkpoint, str) and any(Path(checkpoint).glob("model*.safetensors")):
            state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
            if state.global_step >= planned_steps(self.args, len(self.train_dataset)):
                best = Path(str(self.args.output_dir)) / checkpoint_name(state.best_global_step or 0)
                is_best_kept = self.args.load_best_model_at_end and best.is_dir()
                self._load_from_checkpoint(str(best) if is_best_kept else checkpoint)
                # The stored values are those of the first process.
                state.is_world_process_zero = self.is_world_process_zero()
                state.is_local_process_zero = self.is_local_process_zero()
                self.state = state
                return TrainOutput(state.global_step, float("nan"), {})
        return super().train(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add pixel error, throughput and remaining time to what Trainer logs.

        Args:
            logs: Metrics of the step.
            start_time: Start of the training, for Trainer.

        Raises:
            TrainingStoppedError: If the training loss or a gradient is not finite.
            NoReadableImageError: If too many images cannot be read.
        """
        if "loss" in logs:
            if self.model.target.is_pixels:
                logs["masked_l1"] = self._training_error.drain(self.accelerator)
            self._add_speed(logs)
            self.unreadable_images.share(self.is_world_process_zero())
        super().log(logs, start_time)

    def _add_speed(self, logs: dict[str, float]) -> None:
        now, step = time.perf_counter(), self.state.global_step
        then, last_step = self._clock
        if last_step < 0:
            last_step = self._initial_global_step
        self._clock = (now, step)
        if step > last_step and now > then:
            steps_per_second = (step - last_step) / (now - then)
            logs["images_per_second"] = round(steps_per_second * images_per_step(self.args), 1)
            logs["eta_seconds"] = round((self.state.max_steps - step) / steps_per_second, 1)

    def metric_names(self) -> set[str] | None:
        """As in `RunTrainer`, with `masked_l1` if the target can be decoded to pixels."""
        names = super().metric_names()
        return names and names | ({"masked_l1"} if self.model.target.is_decodable else set())

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Evaluate as Trainer does, with `eval_masked_l1` if the target can be decoded to pixels."""
        with self.untimed():
            return super().evaluate(*args, **kwargs)

    @contextlib.contextmanager
    def untimed(self) -> Iterator[None]:
        """Exclude what happens within from the measured throughput."""
        started = time.perf_counter()
        yield
        self._clock = (self._clock[0] + time.perf_counter() - started, self._clock[1])

    def evaluation_loop(self, *args, **kwargs):
        """Run Trainer's loop, with metrics that are exact means over images for any number of processes."""
        self._evaluation = []
        output = super().evaluation_loop(*args, **kwargs)
        figures, num_pixels = torch.cat(self._evaluation).cpu().double().unbind(dim=2)
        # Images without valid masked pixels, such as crops of missing pixels only, are left out.
        counts = (num_pixels > 0).double()
        means = ((figures * counts).sum(dim=0) / counts.sum(dim=0)).tolist()
        prefix = kwargs.get("metric_key_prefix", "eval")
        metrics = dict(zip((f"{prefix}_loss", f"{prefix}_masked_l1"), means, strict=False))
        self.unreadable_images.share(self.is_world_process_zero())
        return output._replace(metrics={**(output.metrics or {}), **metrics})


class _RunningMean:
    """Mean of a figure over images, summed on the device and read only when it is logged."""

    def __init__(self):
        self.total: torch.Tensor | None = None

    def add(self, figures: torch.Tensor, num_pixels: torch.Tensor) -> None:
        """Add figures of images (B,), except those that average no pixels."""
        counts = (num_pixels > 0).to(figures.dtype)
        term = torch.stack([(figures * counts).sum(), counts.sum()])
        self.total = term if self.total is None else self.total + term

    def drain(self, accelerator) -> float:
        """The mean over all processes since the last call; NaN if nothing was added."""
        total = self.total if self.total is not None else torch.zeros(2, device=accelerator.device)
        self.total = None
        figure, count = accelerator.reduce(total, reduction="sum").tolist()
        return figure / count if count else float("nan")


class ClassifierTrainer(RunTrainer):
    """`RunTrainer` for classifiers, whose evaluation loss is the mean over images.

    Set `final_metrics` to the metrics measured after training, for the card.
    """

    card = staticmethod(classification_card)
    final_metrics: dict[str, float] | None = None

    def evaluation_loop(self, *args, **kwargs):
        """Run Trainer's loop, with a loss that is the exact mean over images for any number of processes."""
        output = super().evaluation_loop(*args, **kwargs)
        if isinstance(output.predictions, np.ndarray) and isinstance(output.label_ids, np.ndarray):
            # Trainer averages over batches, some of which repeat images to have the same size in all processes.
            model: Any = self.model
            logits, labels = torch.from_numpy(output.predictions), torch.from_numpy(output.label_ids)
            loss = classification_loss(logits, labels, model.config.problem_type, model.config.class_weights)
            name = f"{kwargs.get('metric_key_prefix', 'eval')}_loss"
            output = output._replace(metrics={**(output.metrics or {}), name: loss.item()})
        return output


class SegmentationTrainer(RunTrainer):
    """`RunTrainer` for segmentation models."""

    card = staticmethod(segmentation_card)
