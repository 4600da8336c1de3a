"""Evaluate the benefit of pre-training: pre-train once, fine-tune from the checkpoint and from scratch, and compare.

    hf-simmim compare --train_dir labeled_photos --unlabeled_dir all_photos
    hf-simmim compare --checkpoint runs/photos --train_dir labeled_photos --labels_per_class 5 20 0
    accelerate launch -m hf_simmim compare --checkpoint runs/demo           on the demo's images, in a checkout

Both models get the same images, steps and settings. Each chooses among the same learning rates and layer-wise decays by
cross-validation on its labeled images; the test set is used only once, at the end. An interrupted comparison resumes
automatically.
"""

import contextlib
import itertools
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import disable_progress_bars, enable_progress_bars
from transformers.utils import logging

from ..cli import finetune, pretrain
from ..data.reading import ImageDataset, check_images
from ..evaluation.comparison import ARMS, Verdict, conclusion, judge, table
from ..evaluation.run_progress import RunProgress
from ..training.arguments import json_object
from ..training.fingerprints import digest, model_digest
from ..training.run_folder import RunRecord
from ..visualization.plots import plot_comparison
from .command import Command, existing, in_words, make_folder
from .options.images import LabeledSourceArguments
from .options.slices import SliceArguments
from .recipes import options_of

# Of a run: images per class, and whether it is of a cross-validation.
Kind = tuple[int, bool]


@dataclass
class CompareArguments(LabeledSourceArguments):
    """Options of the comparison."""

    _argument_group_name = "comparison"

    validation_dir: str | None = field(
        default=None, metadata={"help": "Folder of the test set, with the same subfolders (--holdout if unset)."}
    )
    holdout: float = field(
        default=0.2, metadata={"help": "Share of the images (0 to 1) held out as test set if none is named."}
    )
    unlabeled_dir: str | None = field(
        default=None, metadata={"help": "Folder of images to pre-train on (the labeled training images if unset)."}
    )
    checkpoint: str | None = field(
        default=None, metadata={"help": "Pre-trained model to evaluate, instead of pre-training one here."}
    )
    labels_per_class: list[int] = field(
        default_factory=lambda: [10, 50], metadata={"help": "Label budgets: labeled images per class, 0 for all."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2, 3, 4],
        metadata={"help": "Random seeds of labeled images, head and batches: one run of each model per seed."},
    )
    learning_rates: list[float] | None = field(
        default=None, metadata={"help": "Learning rates to choose from by cross-validation (the recipe's if unset)."}
    )
    layer_decays: list[float] | None = field(
        default=None, metadata={"help": "Layer-wise decays to choose from by cross-validation (the recipe's if unset)."}
    )
    tuning_folds: int = field(
        default=5, metadata={"help": "Folds of the cross-validation, on the labeled images of the first seed."}
    )
    pretrain_recipe: str | None = field(
        default=None, metadata={"help": "Recipe of pretrain: a name or a JSON file (its defaults if unset)."}
    )
    pretrain_options: dict | str | None = field(
        default=None,
        metadata={"help": 'Further options of pretrain, as JSON, such as {"num_train_epochs": 100}.'},
    )
    finetune_recipe: str | None = field(
        default=None, metadata={"help": "Recipe of finetune: a name or a JSON file (its defaults if unset)."}
    )
    finetune_options: dict | str | None = field(
        default=None, metadata={"help": "Further options of finetune, as JSON."}
    )
    output_dir: str = field(default="runs/comparison", metadata={"help": "Folder of all runs, results and the plot."})

    def __post_init__(self):
        self.pretrain_options = json_object("pretrain_options", self.pretrain_options)
        self.finetune_options = json_object("finetune_options", self.finetune_options)
        if min(self.labels_per_class) < 0 or len(set(self.labels_per_class)) < len(self.labels_per_class):
            raise ValueError(f"labels_per_class={self.labels_per_class} must be different numbers, 0 for all labels.")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds} contains duplicates. Give each seed once.")
        if self.checkpoint and (self.unlabeled_dir or self.pretrain_recipe or self.pretrain_options):
            raise ValueError(
                f"checkpoint={self.checkpoint!r} is pre-trained already. Leave out --unlabeled_dir,"
                " --pretrain_recipe and --pretrain_options."
            )
        # Checked before pre-training; the runs would refuse them only afterwards.
        if not all(0 < decay <= 1 for decay in self.layer_decays or ()):
            raise ValueError(f"layer_decays={self.layer_decays} must be in (0, 1], 1 for none.")
        if not all(rate > 0 for rate in self.learning_rates or ()):
            raise ValueError(f"learning_rates={self.learning_rates} must be more than 0.")
        own = {"seeds", "labels_per_class", "num_folds", "checkpoint", "from_scratch", "output_dir", *_LABELED}
        for name, value in (self.finetune_options or {}).items():
            if name in own:
                raise ValueError(
                    f"finetune_options has {name!r}, which compare sets itself. Leave it out; compare has options of"
                    " its own for images and seeds."
                )
            if name == "eval_strategy" and value != "no":
                raise ValueError(
                    f"finetune_options has eval_strategy={value!r}, but the test set is used only once, at the end."
                    " Leave it out."
                )

    def labeled_source(self) -> dict[str, Any]:
        """Options of `hf-simmim finetune` that name the images."""
        return {name: value for name, value in asdict(self).items() if name in _LABELED and value is not None}

    @property
    def choices(self) -> list[dict[str, float]]:
        """Options of `hf-simmim finetune` that each arm chooses from; a single one is no choice."""
        given = {"learning_rate": self.learning_rates, "layer_decay": self.layer_decays}
        grid = {name: values for name, values in given.items() if values}
        return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]

    def tuning_source(self) -> dict[str, Any]:
        """The same options for a cross-validation without the test set."""
        source = self.labeled_source()
        named = [source.pop(name, None) for name in ("validation_dir", "validation_split")]
        # The embedded data set has a test split, which is used without being named.
        if any(named) or not self.names_images:
            source["holdout"] = 0.0
        return source | {"num_folds": self.tuning_folds}

    def unlabeled_source(self) -> dict[str, Any]:
        """Options of `hf-simmim pretrain` that name the images; it never gets the test set, and holds out its own."""
        if self.unlabeled_dir is not None:
            slices = {name: value for name, value in self.labeled_source().items() if name in SLICE_OPTIONS}
            return {"train_dir": self.unlabeled_dir, **slices}
        left_out = ("label_column", "holdout", "holdout_seed", "validation_dir", "validation_split", "max_eval_samples")
        return {name: value for name, value in self.labeled_source().items() if name not in left_out}


SLICE_OPTIONS = tuple(option.name for option in fields(SliceArguments))
_LABELED = (
    *("train_dir", "validation_dir", "dataset_name", "dataset_config", "data_files", "train_split"),
    *("validation_split", "image_column", "label_column", "holdout", "holdout_seed", "max_train_samples"),
    *("max_eval_samples", "max_unreadable", *SLICE_OPTIONS),
)


def check_runs(arguments: CompareArguments) -> tuple[list[str], str]:
    """Check that all runs can be made, before a long pre-training.

    Args:
        arguments: The options.

    Returns:
        Names of the images of the test set, and a fingerprint of the labeled images.

    Raises:
        ValueError, OSError: If a run cannot be made; the message says why and what to do.
    """
    sources = [arguments.labeled_source()]
    if len(arguments.choices) > 1:
        sources.append(arguments.tuning_source())
    test_set: Any = None
    images = ""
    for budget in arguments.labels_per_class:
        for source in sources:
            options = _default_options(arguments) | source | {"seeds": arguments.seeds[:1]}
            if budget:
                options["labels_per_class"] = budget
            parsed = finetune.FineTuningOptions(*finetune.COMMAND.parse(options_of(options)))
            planned = finetune.plan_runs(parsed)[0]
            if not images:
                parts = [part for part in finetune.load_splits(parsed.data) if part is not None]
                images = "; ".join(json.dumps(digest(part.rows)) for part in parts)
            if planned.train.problem_type != "single_label_classification":
                raise ValueError("accuracy is compared, so the labels must be one class for each image.")
            if planned.evaluation is None:
                raise ValueError(f"holdout={arguments.holdout:g} leaves no images for the test set. Use 0.2.")
            if source is sources[0]:
                if planned.fold is not None:
                    raise ValueError("the recipe has num_folds, but a comparison has a single test set. Leave it out.")
                test_set = planned.evaluation
    # Removing an unreadable image would change which images are held out, and pre-training would have seen some.
    dataset = ImageDataset(test_set.rows, (8, 8), num_channels(arguments))
    check_images([dataset], 0.0, len(dataset))
    return list(test_set.rows["name"]), images


def num_channels(arguments: CompareArguments) -> int:
    """Number of channels of the compared models."""
    if arguments.checkpoint is not None:
        return pretrain.build_config(pretrain.PretrainingModelArguments(checkpoint=arguments.checkpoint)).num_channels
    _, model, _ = pretrain.COMMAND.parse(options_of(pretraining_options(arguments)))
    return pretrain.build_config(model).num_channels


def pretraining_options(arguments: CompareArguments) -> dict[str, Any]:
    """Options of `hf-simmim pretrain`."""
    options = arguments.unlabeled_source() | _options(arguments.pretrain_options)
    if arguments.pretrain_recipe is not None:
        options["recipe"] = arguments.pretrain_recipe
    return options | {"output_dir": str(Path(arguments.output_dir, "pretrained"))}


def pretrained_checkpoint(arguments: CompareArguments, left_out: list[str], images: str) -> str:
    """Pre-train unless a checkpoint is named.

    Args:
        arguments: The options.
        left_out: Names of the test images, which are not trained on.
        images: Fingerprint of the labeled images.

    Returns:
        Folder or name on the Hub of the checkpoint.
    """
    if arguments.checkpoint is not None:
        return arguments.checkpoint
    options = pretraining_options(arguments)
    folder = Path(options["output_dir"])
    path = Path(arguments.output_dir, "deciding_images.json")
    options["leave_out"] = str(path)
    record = RunRecord(folder, options, {"images": images})
    if record.results is None:
        with PartialState().main_process_first():
            if PartialState().is_main_process:
                path.write_text(json.dumps(left_out, indent=2), encoding="utf-8")
        _pretrain(options_of(options))
        if PartialState().is_main_process:
            record.note({})
    return str(folder)


def fine_tune(
    arguments: CompareArguments,
    options: dict[str, Any],
    folder: Path,
    inputs: dict[str, Any],
    keeps_weights: bool = True,
    progress: tuple[RunProgress[Kind], Kind] | None = None,
) -> dict[str, Any]:
    """Train and evaluate, once for each seed and fold; finished runs are not repeated.

    Args:
        arguments: The options of the comparison.
        options: Options of `hf-simmim finetune`.
        folder: Folder of the runs.
        inputs: Fingerprints of images and weights.
        keeps_weights: Whether the trained models are kept; checkpoints are always deleted.
        progress: Progress of the comparison, which is printed after each run, and the kind of these runs.

    Returns:
        Contents of `results.json`.
    """
    options = _default_options(arguments) | options | {"output_dir": str(folder)}
    record = RunRecord(folder, options, inputs)
    done = record.results
    if done is None:
        is_begun, is_main = record.is_begun, PartialState().is_main_process
        # All processes must have read it before the first one writes.
        PartialState().wait_for_everyone()
        folder.mkdir(parents=True, exist_ok=True)
        if is_main and not is_begun:
            # Checkpoints of other options, images or weights must not be resumed.
            _delete_checkpoints(folder)
            record.note(None)
        PartialState().wait_for_everyone()
        on_run = _announcer(progress)
        with _quiet(folder / "log.txt"):
            # Otherwise Trainer lets the other processes warn, regardless of the verbosity set here.
            done = _finetune(options_of({"log_level_replica": "error"} | options), on_run)
        if is_main:
            record.note(done)
            # Only an interrupted run needs them, and those of a comparison would fill a disk.
            _delete_checkpoints(folder)
            for path in () if keeps_weights else list(folder.rglob("*.safetensors")):
                path.unlink()
    elif progress is not None:
        progress[0].skip(progress[1], len(done["runs"]))
    return done


def _announcer(progress: tuple[RunProgress[Kind], Kind] | None) -> Callable[[], None] | None:
    """A function that prints the progress where text is printed now, which `_quiet` redirects."""
    if progress is None:
        return None
    runs, kind = progress
    screen = sys.stdout
    runs.start()

    def announce() -> None:
        text = runs.finish(kind)
        if PartialState().is_main_process:
            print(f"  {text}", file=screen, flush=True)

    return announce


def planned_runs(arguments: CompareArguments) -> dict[Kind, int]:
    """Number of runs by kind: the label budget, and whether it is a cross-validation."""
    planned: dict[Kind, int] = {}
    for budget in arguments.labels_per_class:
        if len(arguments.choices) > 1:
            planned[budget, True] = len(ARMS) * len(arguments.choices) * arguments.tuning_folds
        planned[budget, False] = len(ARMS) * len(arguments.seeds)
    return planned


def _pretrain(argv: list[str]) -> None:
    pretrain.run(*pretrain.COMMAND.parse(argv))


def _finetune(argv: list[str], on_run: Callable[[], None] | None) -> dict[str, Any]:
    """Train and evaluate, and call a function after each run; returns the contents of `results.json`."""
    data, augmentation, model, training = finetune.COMMAND.parse(argv)
    result = finetune.run(data, augmentation, model, training, on_run)
    return {"summary": result.summary, "runs": result.runs}


def _delete_checkpoints(folder: Path) -> None:
    for path in list(folder.rglob("checkpoint-*")):
        shutil.rmtree(path, ignore_errors=True)


def _options(given: Any) -> dict[str, Any]:
    return dict(given or {})


def _default_options(arguments: CompareArguments) -> dict[str, Any]:
    """Options of `hf-simmim finetune` for all runs."""
    # Progress bars of many short runs would hide the results; Trainer prints to the log instead. The test set is not
    # used before the end.
    options = {"disable_tqdm": True, "eval_strategy": "no"} | _options(arguments.finetune_options)
    if arguments.finetune_recipe is not None:
        options["recipe"] = arguments.finetune_recipe
    return options


@contextlib.contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Redirect printed text to a file, and only show errors of what is logged."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    try:
        with path.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
        enable_progress_bars()


def choose_rates(
    arguments: CompareArguments,
    options: dict[str, Any],
    folder: Path,
    inputs: dict[str, Any],
    progress: RunProgress[Kind],
) -> dict[str, float]:
    """Choose learning rate and layer-wise decay of one arm at one budget, by cross-validation on its labeled images.

    Args:
        arguments: The options of the comparison.
        options: Options of `hf-simmim finetune` for the arm and budget.
        folder: Folder of the runs.
        inputs: Fingerprints of images and weights.
        progress: Progress of the comparison.

    Returns:
        Options of `hf-simmim finetune`; those without a choice are left out.
    """
    choices = arguments.choices
    if len(choices) == 1:
        return choices[0]
    accuracies = []
    for choice in choices:
        name = described(choice)
        _say(f"  cross-validation of {name}, {arguments.tuning_folds} folds")
        tuning = arguments.tuning_source() | options | choice | {"seeds": arguments.seeds[:1]}
        place = folder / name.replace(", ", "-").replace(" ", "-")
        kind = (options.get("labels_per_class", 0), True)
        results = fine_tune(arguments, tuning, place, inputs, keeps_weights=False, progress=(progress, kind))
        accuracies.append(results["summary"]["accuracy"]["mean"])
    return choices[int(np.argmax(accuracies))]


def described(choice: dict[str, float]) -> str:
    """Describe chosen options."""
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in choice.items())


def run_arms(
    arguments: CompareArguments, checkpoint: str, images: str
) -> tuple[dict[int, dict[str, dict[int, float]]], int]:
    """Run both arms at every label budget.

    Args:
        arguments: The options.
        checkpoint: The pre-trained model.
        images: Fingerprint of the labeled images.

    Returns:
        Accuracies by number of labeled images, arm and seed; and the size of the test set.
    """
    output_dir, num_images = Path(arguments.output_dir), 0
    progress = RunProgress[Kind](planned_runs(arguments))
    scores: dict[int, dict[str, dict[int, float]]] = {}
    for budget in arguments.labels_per_class:
        for arm in ARMS:
            options: dict[str, Any] = {"checkpoint": checkpoint, "from_scratch": arm == ARMS[1]}
            if budget:
                options["labels_per_class"] = budget
            folder = output_dir / f"{budget or 'all'}-labels" / arm.replace(" ", "-")
            labels = f"{budget} labels per class" if budget else "all labels"
            _say(f"{labels}, {arm}: {len(arguments.seeds)} runs, see {folder / 'log.txt'}")
            inputs = {"images": images, "model": model_digest(checkpoint, with_weights=arm == ARMS[0])}
            choice = choose_rates(arguments, options, folder / "tuning", inputs, progress)
            options |= choice
            options |= arguments.labeled_source() | {"seeds": arguments.seeds}
            runs = fine_tune(arguments, options, folder, inputs, progress=(progress, (budget, False)))["runs"]
            num_labels, num_images = runs[0]["num_train_images"], runs[0]["num_eval_images"]
            accuracies = {run["seed"]: run["metrics"]["accuracy"] for run in runs}
            scores.setdefault(num_labels, {})[arm] = accuracies
            chosen = f", {described(choice)}" if choice else ""
            spread = f" ± {100 * np.std(list(accuracies.values()), ddof=1):.1f}" if len(accuracies) > 1 else ""
            mean = 100 * np.mean(list(accuracies.values()))
            _say(f"  test accuracy {mean:.1f}{spread} % (n = {num_images:,}){chosen}")
    return scores, num_images


def _say(text: str) -> None:
    if PartialState().is_main_process:
        print(text, flush=True)


def report(scores: dict[int, dict[str, dict[int, float]]], num_images: int, output_dir: Path) -> list[Verdict]:
    """Write `comparison.json`, `comparison.md` and `comparison.png`, and print the verdicts."""
    verdicts = [judge(budget, scores[budget], num_images) for budget in sorted(scores)]
    if PartialState().is_main_process:
        sentences = [str(verdict) for verdict in verdicts]
        everything = {
            "conclusion": conclusion(verdicts),
            "verdicts": [asdict(verdict) for verdict in verdicts],
            "num_deciding_images": num_images,
            "accuracies": scores,
        }
        (output_dir / "comparison.json").write_text(json.dumps(everything, indent=2), encoding="utf-8")
        text = "\n\n".join([conclusion(verdicts), table(scores), *sentences])
        (output_dir / "comparison.md").write_text(f"{text}\n", encoding="utf-8")
        plot_comparison(scores, output_dir / "comparison.png", conclusion(verdicts))
        print("\n".join(["", *sentences, conclusion(verdicts)]))
        print(f"{output_dir / 'comparison.png'}  test accuracy over the number of labels, both models, every seed")
    return verdicts


@dataclass(frozen=True)
class ComparisonResult:
    """Result of a comparison.

    Args:
        conclusion: The conclusion in a sentence.
        verdicts: Verdict at each label budget.
        scores: Accuracies in [0, 1] by number of labeled images, arm and seed.
        checkpoint: The pre-trained model.
        output_dir: Folder of all runs.
        pictures: Path of `comparison`.
    """

    conclusion: str
    verdicts: list[Verdict]
    scores: dict[int, dict[str, dict[int, float]]]
    checkpoint: str
    output_dir: Path
    pictures: dict[str, Path]


def run(arguments: CompareArguments) -> ComparisonResult:
    """Pre-train unless there is a checkpoint, fine-tune both models, and compare them."""
    with in_words(arguments.checkpoint):
        output_dir = make_folder(arguments.output_dir)
        names, images = check_runs(arguments)
    checkpoint = pretrained_checkpoint(arguments, names, images)
    scores, num_images = run_arms(arguments, checkpoint, images)
    verdicts = report(scores, num_images, output_dir)
    pictures = existing(output_dir, "comparison.png")
    return ComparisonResult(conclusion(verdicts), verdicts, scores, checkpoint, output_dir, pictures)


COMMAND = Command(
    name="compare",
    usage="[--checkpoint FOLDER] [--train_dir FOLDER] [--output_dir FOLDER] [options]",
    description=__doc__,
    kinds=(CompareArguments,),
    run=run,
    common=(
        *("train_dir", "validation_dir", "unlabeled_dir", "checkpoint", "output_dir", "recipe", "labels_per_class"),
        *("seeds", "learning_rates", "layer_decays", "pretrain_recipe", "pretrain_options", "finetune_recipe"),
        "finetune_options",
    ),
    demo=True,
)
