"""Trainers: the base class of all, and that of pre-training."""

import contextlib
import copy
import json
import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import CommitInfo
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, SaveStrategy, TrainOutput
from transformers.utils import logging

from ..data.masked_images import MaskedImageDataset, collate
from ..data.reading import UnreadableImages
from ..data.sampling import EpochSampler
from ..data.streaming import SHUFFLE_WINDOW, StreamedImages, StreamSampler
from ..data.transforms import normalize
from ..evaluation.gradients import GradientReconstruction
from ..evaluation.reconstruction import Reconstruction, kind_of, reconstruction_of
from ..formats.jpeg import DECODERS
from ..hub.provenance import RunOrigin
from ..hub.pushes import HubPushes
from ..hub.snapshots import Push
from ..model.image_processing_simmim import SimMIMImageProcessor
from ..model.masking import MASK_STRATEGIES
from ..model.modeling_simmim import SimMIMForMaskedImageModeling
from ..model.remote_code import without_code
from .acceleration import OF_A_STEP
from .agreement import fail_together
from .cards.pretraining import pretraining_card
from .console import print_readably
from .image_samples import COMPARED_IMAGES, ComparedImages, RunningMean, mean_figures
from .optimization import create_optimizer, create_schedule, decay_parameter_names, images_per_step
from .resumable_trainer import ResumableTrainer
from .saving.checkpoints import SAVE_ERRORS, TrainingStoppedError, share_weights

logger = logging.get_logger(__name__)

# Share of unreadable images that stops a training, unless it is set.
MAX_UNREADABLE = 0.05
# Share of the time that a training may wait for images before it says what helps.
MAX_DATA_WAIT = 0.1


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
    # What was known before the first step, for the card; commands set it.
    plan: Any = None
    # Function that renders the card of a trainer.
    card: ClassVar[Any] = None

    def __init__(self, *args, hub_pushes: HubPushes | None = None, **kwargs):
        self.hub_pushes = hub_pushes
        super().__init__(*args, **kwargs)
        print_readably(self)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
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
            names = getattr(self.compute_metrics, "metric_names", None)
            if names is None:
                return None
            measured.append(names)
        return {"loss"}.union(*measured)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """As Trainer does, unless a callback chooses the weights to keep otherwise than by the best metric."""
        choices = [part.chooses(self.state) for part in self.callback_handler.callbacks if hasattr(part, "chooses")]
        chosen = next((choice for choice in choices if choice is not None), None)
        if chosen is None:
            return super()._determine_best_metric(metrics, trial)
        if chosen:
            name = str(self.args.metric_for_best_model).removeprefix("eval_")
            self.state.best_metric, self.state.best_global_step = metrics[f"eval_{name}"], self.state.global_step
        return chosen

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """Create the schedule that the arguments name, which may be an official one."""
        if self.lr_scheduler is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = create_schedule(optimizer, self.args, num_training_steps)  # type: ignore[assignment, arg-type]
            self._created_lr_scheduler = True
        return self.lr_scheduler

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

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as Trainer does; with its code if others get it: called by hand, pushed, or `save_code`.

        Args:
            output_dir: Folder to save to; that of the run if None.
            _internal_call: Whether the training saves it.
        """
        is_pushed = self.args.push_to_hub or self.hub_pushes is not None
        is_published = is_pushed or not _internal_call or getattr(self.args, "save_code", False)
        with contextlib.nullcontext() if is_published else without_code():
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # Without the bar of each file of weights.
        with_bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            super()._save(output_dir, state_dict=state_dict)
        finally:
            if with_bars:
                logging.enable_progress_bar()
        share_weights(Path(output_dir or str(self.args.output_dir)))

    def save_results(self, metrics: dict[str, float]) -> None:
        """Write the metrics of a run to its `results.json`.

        Args:
            metrics: Metrics by name.
        """
        if self.skipped_steps.steps:
            metrics = metrics | {"skipped_steps": len(self.skipped_steps.steps)}
        if self.is_world_process_zero():
            path = Path(str(self.args.output_dir)) / "results.json"
            path.write_text(json.dumps(metrics, indent=2, sort_keys=True), encoding="utf-8")

    def create_model_card(self, *args, **kwargs) -> None:
        """Write our card, also where Trainer would write its own."""
        render = type(self).card
        if render is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            render(self).save(Path(str(self.args.output_dir)) / "README.md")


def processor_of(config: Any, dataset: Any) -> SimMIMImageProcessor:
    """Make the image processor of a pre-training from its model and images.

    Args:
        config: Config of the model.
        dataset: The images.

    Returns:
        The processor, whose masks are those of the data set.

    Raises:
        ValueError: If the images are of another kind, or their mean and standard deviation are unknown.
    """
    if not isinstance(dataset, MaskedImageDataset) or config is None:
        raise ValueError(
            "SimMIMTrainer normalizes the images, and needs processing_class for that unless it gets a model and a"
            " MaskedImageDataset. Pass a SimMIMImageProcessor, or use transformers.Trainer with images that a"
            " processor has prepared."
        )
    mean, std = config.pixel_statistics()
    height, width = dataset.image_size
    return SimMIMImageProcessor(
        size={"height": height, "width": width},
        mask_strategy=next(name for name, mask in MASK_STRATEGIES.items() if mask is dataset.mask_strategy),
        mask_patch_size=dataset.unit_size * dataset.patch_size,
        mask_ratio=dataset.mask_ratio,
        model_patch_size=dataset.patch_size,
        rescale_factor=dataset.rescale_factor,
        nodata=dataset.nodata,
        image_mean=mean,
        image_std=std,
    )


class SimMIMTrainer(RunTrainer):
    """`transformers.Trainer` for the batches of `MaskedImageDataset`.

    Besides the loss it reports `masked_l1`, the mean absolute error of masked pixels on a scale of 0 to 255 (rescaled
    pixels times 255), if the target can be decoded to pixels (in training only if it consists of pixels),
    `images_per_second` over all processes, `data_wait`, the share of the time that this process waits for images, and
    `eta_seconds`. The loss of a step is the mean over its masked pixels, however they are distributed.

    Evaluations add what an error is worth: `eval_mean_color_l1`, the error of predicting the mean color of each image's
    visible pixels; `eval_gain_over_mean_color` = 1 - masked_l1 / mean_color_l1; `eval_train_masked_l1`
    (`eval_train_loss` if the target cannot be decoded), the same error of training images; and `eval_rankme`. The last
    two are those of `ComparedImages`, of at most `args.compared_images` training images (1000 if there is no such
    argument, none for 0). Of gradients they measure `eval_gradient_error`, as in `GradientReconstruction`.

    It takes what Trainer takes, with any `TrainingArguments`:
    `SimMIMTrainer(model=model, args=arguments, train_dataset=dataset).train()`.

    Args:
        model: The model.
        args: Training arguments; Trainer's defaults if None.
        data_collator: Makes batches of samples; `collate` of `MaskedImageDataset` if None.
        train_dataset: Images to train on.
        eval_dataset: Images to evaluate on.
        processing_class: A SimMIM image processor, which normalizes the batches and is saved with the model. If None,
            one is made of the settings of the data set and the model.
        *others: Passed to `RunTrainer` and Trainer.
        unreadable_images: Counts the images that could not be read. If None, they are listed in
            `unreadable_images.txt` of the output folder, and more than 5 % stop the training.
        **kwargs: Passed to `RunTrainer` and Trainer.

    Raises:
        ValueError: If no processor is given, and none can be made.
    """

    model: SimMIMForMaskedImageModeling
    train_dataset: MaskedImageDataset
    eval_dataset: MaskedImageDataset | None
    card = staticmethod(pretraining_card)

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *others: Any,
        unreadable_images: UnreadableImages | None = None,
        **kwargs: Any,
    ):
        args = TrainingArguments("tmp_trainer") if args is None else args
        if args.remove_unused_columns:
            # It would remove the names of unreadable images. In a copy: the arguments are the caller's.
            args = copy.copy(args)
            args.remove_unused_columns = False
        if processing_class is None:
            processing_class = processor_of(getattr(model, "config", None), train_dataset or eval_dataset)
        data_collator = collate if data_collator is None else data_collator
        datasets = (train_dataset, eval_dataset)
        super().__init__(model, args, data_collator, *datasets, processing_class, *others, **kwargs)
        if unreadable_images is None:
            path = Path(str(args.output_dir)) / "unreadable_images.txt"
            num_images = sum(len(dataset) for dataset in datasets if dataset is not None)
            unreadable_images = UnreadableImages(path, num_images, MAX_UNREADABLE)
        self.unreadable_images = unreadable_images
        # The loss is divided by the number of masked pixels of the whole step, see `_get_num_items_in_batch`.
        self.model_accepts_loss_kwargs = True
        self.error_sums = RunningMean()
        self._evaluation: list[torch.Tensor] = []
        self._evaluated_model: Any = None
        self._is_compared = False
        self._compared: ComparedImages | None = None
        num_compared = getattr(args, "compared_images", COMPARED_IMAGES)
        if num_compared and all(isinstance(dataset, MaskedImageDataset) for dataset in datasets):
            self._compared = ComparedImages(train_dataset, eval_dataset, num_compared)
        self._clock = (time.perf_counter(), 0)
        # Seconds for batches since the last log entry.
        self._waited, self._told_of_wait = 0.0, False

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        images = getattr(dataset, "images", None)
        if isinstance(images, StreamedImages):
            step, window = images_per_step(self.args), getattr(self.args, "shuffle_window", SHUFFLE_WINDOW)
            return StreamSampler(images, step, window, self._data_seed, self._current_epoch)
        return EpochSampler(len(dataset), self._data_seed, self._current_epoch)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of a step, as Trainer gets them; the time that it takes is logged."""
        began = time.perf_counter()
        try:
            return super().get_batch_samples(*args, **kwargs)
        finally:
            self._waited += time.perf_counter() - began

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = dict(inputs)
        self.unreadable_images.record(inputs.pop("unreadable", []))
        inputs.pop("names", None)
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
            inputs = inputs | OF_A_STEP
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training and self.model.target.is_pixels:
            reconstruction = self._reconstruction(outputs, inputs)
            if reconstruction is not None:
                with torch.no_grad():
                    self.error_sums.add(*reconstruction.error_per_image())
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _reconstruction(self, outputs, inputs) -> Reconstruction | GradientReconstruction | None:
        """The predicted pixels or gradients of a batch; None if they are not decoded."""
        images = (inputs["pixel_values"], inputs["bool_masked_pos"], inputs.get("pixel_mask"))
        return reconstruction_of(self.model, outputs, *images, self.processing_class)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Evaluate a batch image by image; images that only fill up the last batch do not count."""
        # As Trainer has wrapped it.
        self._evaluated_model = model
        table = self._figures_per_image(model, inputs)
        self._evaluation.append(self.accelerator.gather_for_metrics(table))
        return table[:, 0, 0].mean(), None, None

    @torch.no_grad()
    def _figures_per_image(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """`figure_names` of each image of a batch, and the number of pixels that each averages: (B, figures, 2)."""
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            # The loss of the whole batch would compute the target again, maybe with a large network.
            outputs = model(**inputs, return_loss=False)
            losses: Any = self.model.masked_loss(outputs["prediction"], **inputs, per_image=True)
        figures, reconstruction = [losses], self._reconstruction(outputs, inputs)
        if reconstruction is not None:
            figures += reconstruction.figures_per_image()
        return torch.stack([torch.stack(figure, dim=1) for figure in figures], dim=1)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer as Trainer does, with the arguments `layer_decay` and `new_rate` if there are any.

        Args:
            model: The model if it is another than the trainer's, such as a sharded one.

        Returns:
            The optimizer. Mask tokens, which weights of another model do not have, get the rate of the head.
        """
        decay, factor = getattr(self.args, "layer_decay", None) or 1.0, getattr(self.args, "new_rate", None) or 1.0
        if self.optimizer is None and (decay < 1 or factor != 1):
            trained: Any = self.model if model is None else model
            official = getattr(self.args, "official", True)
            self.optimizer = create_optimizer(trained, self.args, decay, official, ("mask_token",), factor)
        return super().create_optimizer(model)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters with weight decay, see `decay_parameter_names`."""
        return decay_parameter_names(model, getattr(self.args, "official", True))

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as Trainer does, and measure throughput."""
        self._clock = (time.perf_counter(), -1)
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
                logs["masked_l1"] = self.error_sums.drain(self.accelerator)
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
            logs["data_wait"] = round(min(1.0, self._waited / (now - then)), 3)
            # Not at first: workers start then.
            if logs["data_wait"] > MAX_DATA_WAIT and last_step > self._initial_global_step and not self._told_of_wait:
                self._told_of_wait = True
                fastest = next(iter(DECODERS))
                number = self.args.dataloader_num_workers
                remedies = [f"use more --dataloader_num_workers ({number} now)", "make images small: hf-simmim pack"]
                if getattr(self.train_dataset, "image_decoder", fastest) != fastest:
                    remedies.insert(1, f"start a run with a faster decoder of JPEG files: pip install {fastest}")
                logger.warning(
                    f"For {logs['data_wait']:.0%} of the time the training waits for images. Remedies:"
                    f" {'; '.join(remedies)}."
                )
            self._waited = 0.0
            logs["eta_seconds"] = round((self.state.max_steps - step) / steps_per_second, 1)

    @property
    def figure_names(self) -> tuple[str, ...]:
        """What evaluations measure of each image: the loss, and errors of predictions that can be drawn."""
        kind = kind_of(self.model.target)
        return ("loss", *(kind.figures if kind is not None else ()))

    def metric_names(self) -> set[str] | None:
        """As in `RunTrainer`, with what the class describes."""
        names, kind = super().metric_names(), kind_of(self.model.target)
        if names is not None:
            names |= {*self.figure_names[1:], *(["gain_over_mean_color"] if kind is Reconstruction else [])}
        if names is not None and self._compared is not None:
            names |= {"train_masked_l1" if kind is Reconstruction else "train_loss", "rankme"}
        return names

    def evaluate(self, eval_dataset: Any = None, *args, **kwargs) -> dict[str, float]:
        """Evaluate as Trainer does, with the metrics that the class describes.

        Args:
            eval_dataset: Other images than the trainer's; with them, training images and RankMe are not measured.
            *args: Passed to Trainer.
            **kwargs: Passed to Trainer.

        Returns:
            Metrics by name.
        """
        self._is_compared = eval_dataset is None
        try:
            with self.untimed():
                return super().evaluate(eval_dataset, *args, **kwargs)
        finally:
            self._is_compared = False

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
        metrics = mean_figures(torch.cat(self._evaluation), self.figure_names)
        if metrics.get("mean_color_l1"):
            metrics["gain_over_mean_color"] = 1 - metrics["masked_l1"] / metrics["mean_color_l1"]
        if self._is_compared and self._compared is not None:
            metrics |= self._compared.measure(self, partial(self._figures_per_image, self._evaluated_model))
        prefix = kwargs.get("metric_key_prefix", "eval")
        self.unreadable_images.share(self.is_world_process_zero())
        named = {f"{prefix}_{name}": value for name, value in metrics.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})
