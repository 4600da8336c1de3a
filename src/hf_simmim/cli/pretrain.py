"""Pre-train a vision encoder with SimMIM on images without labels.

    hf-simmim pretrain --train_dir photos --output_dir runs/photos
    hf-simmim pretrain --train_dir photos --recipe swin_base__img192_window6__100ep
    accelerate launch -m hf_simmim pretrain --train_dir photos              on many GPUs
    hf-simmim pretrain                                                      the demo, in a checkout

The same options work on one CPU, one GPU or many GPUs (run `accelerate config` once, or pass --num_processes to
`accelerate launch`). A run resumes automatically from the newest complete checkpoint in --output_dir. A recipe is a
JSON file with any of the options as keys; the command line takes precedence.

With --push_to_hub every saved model is pushed to the Hub in the background, complete each time. Failed pushes never
stop the training: they are reported at the end with the command to repeat them, and the exit status is 0.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoConfig, IntervalStrategy, set_seed
from transformers.utils import logging

from ..data.groups import hold_out
from ..data.image_statistics import fit_color_clusters
from ..data.masked_images import MaskedImageDataset, collate
from ..data.reading import UnreadableImages, check_images, check_listed
from ..data.sampling import evenly_spaced
from ..data.sources import load_images
from ..data.streaming import SHUFFLE_WINDOW
from ..data.survey import survey
from ..data.windows import WINDOWS_PER_IMAGE, WindowRows, images_in_words, window_splits
from ..evaluation.probing import name_pair
from ..formats.address import parse_address
from ..hub.card import check_license, normalization
from ..hub.provenance import RunOrigin, held_out
from ..hub.pushes import open_hub
from ..model.configuration_simmim import ENCODER_PRESETS, SimMIMConfig
from ..model.image_processing_simmim import SimMIMImageProcessor
from ..model.masking import span
from ..model.modeling_simmim import SimMIMForMaskedImageModeling
from ..planning.automatic import Automatic, Plan
from ..planning.machine import find_machine
from ..training.arguments import SimMIMTrainingArguments
from ..training.callbacks import EpochCallback, PictureCallback, ProbeCallback
from ..training.cards.facts import best_by, best_step, training_line
from ..training.cards.pretraining import describe_evaluation
from ..training.fingerprints import digest, initial_weights
from ..training.image_samples import COMPARED_IMAGES
from ..training.optimization import images_per_step, planned_steps
from ..training.run_folder import (
    begin_run,
    describe_resuming,
    prepare_output_dir,
    settings_before,
    settle_settings,
    stable_settings,
)
from ..training.trainers import SimMIMTrainer
from .command import Command, existing, in_words, one_run, print_files, print_titled
from .options.continuing import ContinuingArguments, limit_training, settle_rates
from .options.images import DecoderArguments, PixelArguments, StreamingArguments, stream_splits
from .options.objective import COMPONENT_OPTIONS, ENCODE_OPTIONS, UNFITTED, PretrainingModelArguments
from .options.probes import ProbeArguments, add_probe, load_probe, probe_fingerprints, probe_source
from .options.stopping import StoppingArguments, add_stopping, check_schedule, check_stopping
from .options.windows import WindowArguments

logger = logging.get_logger(__name__)

# Seed of the validation masks, the same in every run, so that validation losses are comparable.
EVALUATION_SEED = 0
CROP_OPTIONS = ("crop_scale", "flip", "vertical_flip", "image_decoder")
# Files of a run that are printed at its end.
PRETRAINING_FILES = {
    "model.safetensors": "weights, with config.json and preprocessor_config.json for from_pretrained",
    "reconstruction.png": "images, what was masked, and what the model predicts there",
    "loss_curve.png": "loss and learning rate",
    "probe.png": "accuracy of frozen features over steps",
    "spectrum.png": "RankMe over steps, and singular values of the features",
}


@dataclass
class PretrainingDataArguments(ProbeArguments, PixelArguments, DecoderArguments, StreamingArguments, WindowArguments):
    """Source of the images; labels are not needed."""

    _argument_group_name = "images"

    crop_scale: list[float] = field(
        default_factory=lambda: [0.67, 1.0],
        metadata={"help": "Smallest and largest area of random crops, as shares of the image (0 to 1)."},
    )
    flip: float = field(default=0.5, metadata={"help": "Probability of a horizontal flip."})
    vertical_flip: float = field(default=0.0, metadata={"help": "Probability of a vertical flip."})
    leave_out: str | None = field(
        default=None,
        metadata={
            "help": "JSON file with a list of images to leave out of training, such as a test set (none if unset)."
            " Images are listed by path, or by `name` of the loaded rows."
        },
    )


@dataclass
class PretrainingArguments(StoppingArguments, ContinuingArguments, SimMIMTrainingArguments):
    """TrainingArguments with defaults for pre-training."""

    _argument_group_name = "training (all of transformers.TrainingArguments)"

    output_dir: str = field(default="runs/mim", metadata={"help": "Folder of checkpoints, pictures and logs."})
    num_train_epochs: float = field(default=100.0, metadata={"help": "Number of epochs."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Training batch size per device."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Evaluation batch size per device."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save: no, steps, epoch or best."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two log entries."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Drop the last, incomplete batch of an epoch."})
    seed: int = field(default=0, metadata={"help": "Random seed of weights, order of images, crops and masks."})
    hours: float | None = field(
        default=None, metadata={"help": "Time that the training may take: the number of epochs is chosen by it."}
    )
    shuffle_window: int = field(
        default=SHUFFLE_WINDOW,
        metadata={"help": "Images that are shuffled with each other with --streaming; blocks of them always are."},
    )
    compared_images: int = field(
        default=COMPARED_IMAGES,
        metadata={
            "help": "Largest number of training images that are evaluated like the validation images, so that both"
            " errors are comparable; RankMe is measured on up to twice as many validation images (0 for neither)."
        },
    )

    def __post_init__(self):
        if self.hours is not None and not 0 < self.hours < 10_000:
            raise ValueError(f"hours={self.hours} must be more than 0.")
        if self.shuffle_window < 1:
            raise ValueError(f"shuffle_window={self.shuffle_window} must be 1 or more.")
        # Required by the trainer, whatever a recipe sets.
        self.label_names = ["bool_masked_pos"]
        self.prediction_loss_only = True
        super().__post_init__()


def build_config(arguments: PretrainingModelArguments) -> SimMIMConfig:
    """Build the model's config from a preset, a file, JSON text or the Hub, and the geometry options."""
    if arguments.checkpoint is not None:
        return checkpoint_config(arguments)
    return SimMIMConfig(encoder_config=arguments.encoder_settings(), **arguments.components(), **arguments.geometry())


def checkpoint_config(arguments: PretrainingModelArguments) -> SimMIMConfig:
    """Build the config of --checkpoint with the geometry options; the other options must not contradict it."""
    stored: Any = arguments.stored_config()
    if stored.model_type == SimMIMConfig.model_type:
        config = stored
        for name in COMPONENT_OPTIONS:
            value, kept = getattr(arguments, name), getattr(config, name)
            if name.endswith("_options") and value is not None:
                # A config may leave out default options.
                known = config.options(name.removesuffix("_options"))
                kept = {key: known.get(key) for key in value}
            if value not in (None, kept):
                raise ValueError(f"{name}={value!r} is not that of the checkpoint, {kept!r}. Leave it out.")
    else:
        encoder = getattr(stored, "vision_config", stored)
        config = SimMIMConfig(encoder_config=encoder.to_dict(), **arguments.components())
    arguments.apply(config)
    return config


def load_checkpoint(arguments: PretrainingModelArguments, config: SimMIMConfig) -> SimMIMForMaskedImageModeling:
    """Load the model of --checkpoint: a SimMIM model, or a model of transformers as the encoder."""
    name = str(arguments.checkpoint)
    # In full precision, or in mixed precision if it is set, regardless of the saved dtype.
    if AutoConfig.from_pretrained(name).model_type == SimMIMConfig.model_type:
        return SimMIMForMaskedImageModeling.from_pretrained(name, config=config, dtype=torch.float32)
    changes = {} if arguments.drop_path_rate is None else {"drop_path_rate": arguments.drop_path_rate}
    components = {key: getattr(config, key) for key in (*COMPONENT_OPTIONS, "image_mean", "image_std")}
    return SimMIMForMaskedImageModeling.from_encoder(
        name, encoder_config=changes, dtype=torch.float32, **arguments.geometry(), **components
    )


def fit_clusters(
    config: SimMIMConfig,
    arguments: PretrainingModelArguments,
    data: PretrainingDataArguments,
    images: Dataset,
    before: dict[str, Any],
) -> None:
    """Fit the colors of `color_clusters` to the training images, unless they are set or the resumed run has them."""
    if config.target != "color_clusters" or config.options("target")["centers"] != UNFITTED:
        return
    centers = before.get("target_options", {}).get("centers")
    if centers is None:
        centers = fit_color_clusters(
            images, arguments.num_clusters, config.num_channels, data.rescale, nodata=data.nodata
        )
    config.target_options = {"centers": centers}


def build_processor(
    config: SimMIMConfig,
    data: PretrainingDataArguments,
    model: PretrainingModelArguments,
    statistics: dict[str, list[float]],
) -> SimMIMImageProcessor:
    """Build the image processor of the checkpoint: geometry, normalization and masks."""
    height, width = config.image_size
    return SimMIMImageProcessor(
        size={"height": height, "width": width},
        **{key: getattr(model, key) for key in ("mask_strategy", "mask_patch_size", "mask_ratio")},
        model_patch_size=config.patch_size,
        rescale_factor=data.rescale,
        nodata=data.nodata,
        **statistics,
    )


def load_splits(arguments: PretrainingDataArguments, output_dir: str, checkpoint: str | None = None):
    """Load training images, and validation images or None; `checkpoint` may name the value of missing pixels."""
    arguments.check_source()
    source, validation_split = arguments.source(), arguments.validation_split
    if not arguments.names_images:
        validation_split = validation_split or "test"
    windows = arguments.window_settings(arguments.known_nodata(checkpoint))
    if arguments.streaming:
        if windows is not None:
            raise ValueError("image_window needs image files, and --streaming reads shards. Leave one of them out.")
        return stream_splits(arguments, arguments)
    # Results of the run inside its training folder, and validation images, are not trained on.
    exclude = [path for path in (arguments.validation_dir, output_dir) if path is not None]
    if arguments.train_dir is not None and Path(arguments.train_dir).resolve() == Path(output_dir).resolve():
        raise ValueError(f"output_dir={output_dir!r} is train_dir. Name a folder of its own for the results.")
    train = load_images(**source, split=arguments.train_split, exclude=exclude)
    if arguments.leave_out is not None:
        train = without(train, Path(arguments.leave_out))
    # Of too few large images to hold out one, the lower end of each is held out.
    lower_share = arguments.holdout if windows and round(len(train) * arguments.holdout) < 1 else 0.0
    validation = None
    if arguments.validation_dir is not None:
        validation = load_images(arguments.validation_dir, slicing=arguments.slicing)
    elif validation_split is not None:
        validation = load_images(**source, split=validation_split)
    elif arguments.holdout and not lower_share > 0:
        if not 0 < arguments.holdout < 1 or round(len(train) * arguments.holdout) < 1:
            share = f"a share in (0, 1) of at least {1 / len(train):.2g}, or " if len(train) > 1 else ""
            raise ValueError(
                f"holdout={arguments.holdout} of {len(train)} image{'s' * (len(train) > 1)} leaves none. Use {share}0"
                " to hold out none."
            )
        train, validation = hold_out(train, arguments.holdout, arguments.holdout_seed)
    if arguments.max_train_samples is not None:
        train = train.select(evenly_spaced(len(train), arguments.max_train_samples))
    if validation is not None and arguments.max_eval_samples is not None:
        validation = validation.select(evenly_spaced(len(validation), arguments.max_eval_samples))
    if windows is not None:
        per_image = WINDOWS_PER_IMAGE if arguments.windows_per_image is None else arguments.windows_per_image
        return window_splits(train, validation, windows, per_image, max(lower_share, 0.0))
    return train, validation


def without(images: Dataset, path: Path) -> Dataset:
    """Leave out the images that a JSON file lists.

    Args:
        images: The images.
        path: The JSON file.

    Returns:
        The other images.

    Raises:
        ValueError: If the file does not hold a list of names, or no images are left.
    """
    listed = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise ValueError(f"leave_out={str(path)!r} must contain a JSON list of names of images.")
    # The same file may have several paths.
    left_out = {os.path.realpath(name) for name in listed}
    kept = [
        index
        for index, name in enumerate(images["name"][:])
        # A file of many images leaves with all of them.
        if left_out.isdisjoint({os.path.realpath(name), os.path.realpath(parse_address(name).path)})
    ]
    if not kept:
        raise ValueError(f"leave_out={str(path)!r} lists all {len(images)} images. Add training images.")
    return images if len(kept) == len(images) else images.select(kept)


def dataset_settings(
    config: SimMIMConfig, data: PretrainingDataArguments, model: PretrainingModelArguments
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of crops, and those that training and validation images share, for `MaskedImageDataset`."""
    common = {
        "image_size": config.image_size,
        "num_channels": config.num_channels,
        "patch_size": config.patch_size,
        **{key: getattr(model, key) for key in ("mask_strategy", "mask_patch_size", "mask_ratio")},
        "rescale_factor": data.rescale,
        "nodata": data.nodata,
    }
    changes = {key: getattr(data, key) for key in CROP_OPTIONS}
    if model.mask_patch_size % config.mask_step and config.mask_step > config.patch_size:
        raise ValueError(
            f"mask_patch_size={model.mask_patch_size}: with encode='visible' this encoder leaves out cells of"
            f" {config.mask_step} px. Set it to a multiple of {config.mask_step}."
        )
    # Refuses settings that do not fit each other, without any image.
    MaskedImageDataset([], **changes, **common)  # type: ignore[arg-type]
    return changes, common


def build_trainer(
    data_arguments: PretrainingDataArguments,
    model_arguments: PretrainingModelArguments,
    arguments: PretrainingArguments,
    always: bool = False,
) -> tuple[SimMIMTrainer, Path | None]:
    """Build the trainer, with all checks that must precede the training.

    Args:
        data_arguments: Options of the images.
        model_arguments: Options of model and masks.
        arguments: Options of the training.
        always: Whether to forecast a short training as well.

    Returns:
        The trainer, and the checkpoint to resume from or None.

    Raises:
        ValueError, OSError: If the options or the images are unusable; the message says why and what to do.
    """
    set_seed(arguments.seed)
    check_license(arguments)
    config = build_config(model_arguments)
    automatic = Automatic(arguments)
    if not automatic.is_on:
        dataset_settings(config, data_arguments, model_arguments)
    hub_pushes = open_hub(arguments)
    checkpoint = prepare_output_dir(arguments)
    # One process reads first; the others use its cache.
    with arguments.main_process_first(desc="loading images"):
        train_images, validation_images = load_splits(data_arguments, arguments.output_dir, model_arguments.checkpoint)
        probe = load_probe(data_arguments)
    seen, machine = survey(train_images), find_machine(arguments)
    if not arguments.restart:
        earlier = settings_before(Path(arguments.output_dir))
        automatic.before = earlier.get("chosen") or {}
        # Measured again only if the run starts from the beginning.
        automatic.expected_before = earlier.get("forecast") if checkpoint is not None else None
    if automatic.is_on:
        automatic.choose_model(model_arguments, machine, seen, ENCODER_PRESETS)
        config = automatic.choose_objective(model_arguments, build_config, seen, len(train_images))
        automatic.choose_precision(arguments, config, machine)
        # Weights bring their encoder, so that --encoder has its default, which is another one.
        encoder = model_arguments.encoder if model_arguments.checkpoint is None else None
        automatic.choose_batch(arguments, encoder, config, len(train_images), machine)
        dataset_settings(config, data_arguments, model_arguments)
    # Every process computes the same statistics, so none has to wait for another.
    before = settings_before(checkpoint.parent) if checkpoint is not None else {}
    statistics = data_arguments.settle(model_arguments.checkpoint, config.num_channels, train_images, before)
    config.image_mean, config.image_std = statistics["image_mean"], statistics["image_std"]
    data_arguments.image_decoder = data_arguments.decoder(before)
    fit_clusters(config, model_arguments, data_arguments, train_images, before)
    processor = build_processor(config, data_arguments, model_arguments, statistics)
    settings = {
        "encoder": stable_settings(config.encoder_config),
        # Older runs do not know the way of encoding.
        **{
            key: getattr(config, key)
            for key in COMPONENT_OPTIONS
            if key not in ENCODE_OPTIONS or config.encode != "all"
        },
        **{key: getattr(model_arguments, key) for key in ("mask_strategy", "mask_patch_size", "mask_ratio")},
        "num_clusters": model_arguments.num_clusters if config.target == "color_clusters" else None,
        **{key: getattr(data_arguments, key) for key in CROP_OPTIONS},
        "rescale_factor": data_arguments.rescale,
        "nodata": data_arguments.nodata,
        **statistics,
        "seed": arguments.seed,
        **{key: getattr(arguments, key) for key in ("train_layers", "lora")},
        # A resumed run may begin to stop by something, or cease.
        **({"stop_by": arguments.stop_by} if arguments.stop_by != "none" else {}),
        # The best weights are those of one probe, before and after.
        **(probe_fingerprints(probe) if probe is not None and arguments.stop_by == "probe" else {}),
        "initial weights": initial_weights(model_arguments.checkpoint),
        "windows": train_images.facts() if isinstance(train_images, WindowRows) else None,
        "training images": digest(train_images),
        "evaluation images": digest(validation_images) if validation_images is not None else None,
    }
    settle_rates(arguments, model_arguments.checkpoint, automatic, before, resuming=checkpoint is not None)
    settings = settle_settings(arguments, settings, checkpoint)
    changes, common = dataset_settings(config, data_arguments, model_arguments)
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    train_dataset = MaskedImageDataset(train_images, seed=seed, **changes, **common)
    if len(train_dataset) < images_per_step(arguments):
        raise ValueError(
            f"{len(train_dataset)} images are fewer than the batch size of {images_per_step(arguments)}. Use a smaller"
            " --per_device_train_batch_size."
        )
    eval_dataset = None
    if validation_images is not None:
        eval_dataset = MaskedImageDataset(validation_images, seed=EVALUATION_SEED, crop_scale=None, **common)
    else:
        arguments.eval_strategy = IntervalStrategy.NO
    check_stopping(arguments, probe is not None, model_arguments.checkpoint)
    datasets = [dataset for dataset in (train_dataset, eval_dataset) if dataset is not None]
    share = data_arguments.max_unreadable
    already_unreadable = check_images(datasets, share)

    if model_arguments.checkpoint is not None:
        model = load_checkpoint(model_arguments, config)
    else:
        model = SimMIMForMaskedImageModeling(config)
    trainer_class = limit_training(model, arguments)
    # One process downloads the network of the target first; the others use its cache.
    with arguments.main_process_first(desc="loading the target's network"):
        model.target.load()
    expected = automatic.rehearse(model, (train_dataset, eval_dataset), arguments, collate, processor, machine, always)
    # Now that the steps between evaluations are known.
    check_schedule(arguments)
    settings |= {"chosen": automatic.values, "forecast": expected and expected.as_dict()}
    begin_run(arguments, settings, ("reconstructions",))
    path = Path(arguments.output_dir) / "unreadable_images.txt"
    # Large images count, not their windows.
    counts = [len(getattr(dataset.images, "files", dataset.images)) for dataset in datasets]
    unreadable_images = UnreadableImages(path, sum(counts), share)
    unreadable_images.record(already_unreadable)
    if checkpoint is not None:
        unreadable_images.record(check_listed(datasets, path))
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=collate,
        processing_class=processor,
        unreadable_images=unreadable_images,
        hub_pushes=hub_pushes,
        callbacks=[EpochCallback()],
    )
    if eval_dataset is not None:
        trainer.add_callback(PictureCallback(trainer))
    if probe is not None:
        add_probe(trainer, probe, data_arguments)
    add_stopping(trainer, model_arguments.checkpoint)
    trainer.plan = Plan(seen, automatic, expected, machine)
    return trainer, checkpoint


def final_metrics(trainer: SimMIMTrainer) -> dict[str, float]:
    """Evaluate the saved weights, unless the last step was evaluated already."""
    if trainer.eval_dataset is None:
        return {}
    last = next((entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry), {})
    if last.get("step") == trainer.state.global_step and not trainer.args.load_best_model_at_end:
        return last
    return trainer.evaluate()


def print_plan(trainer: SimMIMTrainer, checkpoint: Path | None, weights: str | None) -> None:
    """Print what the run will do."""
    arguments, dataset, config = trainer.args, trainer.train_dataset, trainer.model.config
    processor = trainer.processing_class
    millions = trainer.model.num_parameters() / 1e6
    nodata = "" if processor.nodata is None else f", missing pixels {processor.nodata:g}"
    resumed = describe_resuming(checkpoint, arguments) if checkpoint else ""
    height, width = config.image_size
    evaluated = f", {len(trainer.eval_dataset):,} for validation" if trainer.eval_dataset is not None else ""
    plan = trainer.plan
    lines = {
        **(plan.seen.lines(config.image_size) if plan else {}),
        "Encoder": f"{config.encoder_config.model_type}, {millions:.1f} M parameters with the head,"
        f" {config.num_channels} x {height} x {width} px",
        "Weights": resumed if checkpoint else f"from {weights}" if weights else "random",
        "Objective": describe_prediction(config, trainer.model.target.stride),
        "Masking": f"{processor.mask_strategy}, {span(dataset.num_masked_units)} of {dataset.num_units} mask patches of"
        f" {dataset.unit_size * config.patch_size} px",
        "Images": f"{images_in_words(dataset.images)} for training{evaluated}",
        "Normalization": normalization(processor) + nodata,
        "Training": training_line(arguments, planned_steps(arguments, len(dataset))),
        **(plan.lines(arguments, len(dataset)) if plan else {}),
        "Output": f"{arguments.output_dir}",
    }
    print_titled(lines)


def describe_prediction(config: SimMIMConfig, stride: int) -> str:
    """Describe loss, target and prediction head in one line."""
    parts = []
    for component in ("target", "head", "loss"):
        options = {key: value for key, value in getattr(config, f"{component}_options").items() if key != "centers"}
        detail = ", ".join(f"{key} {value}" for key, value in options.items() if not isinstance(value, dict))
        parts.append(getattr(config, component) + (f" ({detail})" if detail else ""))
    target, head, loss = parts
    target = {3: "RGB", 1: "gray values"}.get(config.num_channels, "pixels") if target == "rgb" else target
    steps = "" if stride == 1 else f", prediction stride {stride} px"
    seen = ", encoder of visible patches only" if config.encode == "visible" else ""
    return f"{loss} on {target} of {config.loss_region} pixels, {head} head{steps}{seen}"


def print_results(trainer: SimMIMTrainer, metrics: dict[str, float]) -> None:
    """Print the metrics and the files of results."""
    if metrics:
        print(describe_evaluation(metrics, trainer.model.target.decode_uses, trainer.model.config.hidden_size))
    best, callbacks = best_step(trainer), trainer.callback_handler.callbacks
    if best is not None:
        step = f"{best:,} of {trainer.state.global_step:,}"
        print(f"The weights are those of step {step}, {best_by(trainer)}")
    for probe in (part for part in callbacks if isinstance(part, ProbeCallback) and len(part.pairs) > 1):
        print(f"The probe takes {name_pair(probe.chosen)}, chosen on a part of its training images")
    print_files(Path(str(trainer.args.output_dir)), PRETRAINING_FILES)
    unreadable = trainer.unreadable_images
    if unreadable.reasons:
        count = len(unreadable.reasons)
        print(f"{unreadable.path}  {count} unreadable image{'s' if count > 1 else ''}, replaced by others at random")


@dataclass(frozen=True)
class PretrainingResult:
    """Result of a pre-training.

    Args:
        model: The trained model.
        processor: Image processor of the model.
        metrics: Metrics of the last evaluation: `eval_loss`, `eval_masked_l1` (0 to 255), `eval_mean_color_l1`,
            `eval_gain_over_mean_color`, or of gradients `eval_gradient_error`; `eval_train_masked_l1` or
            `eval_train_loss`, `eval_rankme`, and those of the probe.
        log: The log of the training, `TrainerState.log_history`.
        output_dir: Folder of the run, for `from_pretrained`.
        pictures: Paths of `reconstruction`, `loss_curve`, `probe` and `spectrum`, if they were drawn.
    """

    model: SimMIMForMaskedImageModeling
    processor: SimMIMImageProcessor
    metrics: dict[str, float]
    log: list[dict[str, float]]
    output_dir: Path
    pictures: dict[str, Path]


@one_run()
def run(
    data_arguments: PretrainingDataArguments,
    model_arguments: PretrainingModelArguments,
    arguments: PretrainingArguments,
) -> PretrainingResult:
    """Pre-train, evaluate, draw, and write the model and its card."""
    if not arguments.should_log:
        disable_progress_bars()
    checkpoint_name = model_arguments.checkpoint
    with in_words(checkpoint_name):
        trainer, checkpoint = build_trainer(data_arguments, model_arguments, arguments)
    trainer.origin = RunOrigin.from_options(
        data_arguments,
        checkpoint_name,
        arguments.command,
        getattr(trainer.train_dataset.images, "held_out", None)
        or held_out(data_arguments, data_arguments.holdout, default_split="test"),
        probe_source(data_arguments),
    )
    if arguments.should_log:
        print_plan(trainer, checkpoint, checkpoint_name)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_final_model()
    metrics = final_metrics(trainer)
    trainer.save_state()
    if metrics:
        best = best_step(trainer)
        trainer.save_results(metrics if best is None else metrics | {"weights_of_step": best})
    trainer.write_card()
    if arguments.should_log:
        print_results(trainer, metrics)
    if arguments.push_to_hub:
        trainer.finish_pushes()
    output_dir = Path(str(arguments.output_dir))
    pictures = existing(output_dir, *(name for name in PRETRAINING_FILES if name.endswith(".png")))
    processor: Any = trainer.processing_class
    return PretrainingResult(trainer.model, processor, metrics, trainer.state.log_history, output_dir, pictures)


COMMAND = Command(
    name="pretrain",
    usage="[--train_dir FOLDER] [--output_dir FOLDER] [--recipe NAME] [options]",
    description=__doc__,
    kinds=(PretrainingDataArguments, PretrainingModelArguments, PretrainingArguments),
    run=run,
    common=(
        *("train_dir", "output_dir", "recipe", "encoder", "checkpoint", "image_size", "num_channels"),
        *("num_train_epochs", "per_device_train_batch_size", "mask_ratio", "validation_dir", "probe_dir"),
        *("stop_by", "rescale_factor", "push_to_hub"),
    ),
    demo=True,
)
