"""Evaluate the benefit of pre-training: pre-train once, fine-tune from the checkpoint and from scratch, and compare.

    hf-simmim compare --train_dir labeled_photos --unlabeled_dir all_photos
    hf-simmim compare --checkpoint runs/photos --train_dir labeled_photos --labels_per_class 5 20 0
    hf-simmim compare --train_dir labeled_photos --public facebook/dinov2-base --arms public pretrained continued
    accelerate launch -m hf_simmim compare --checkpoint runs/demo           on the demo's images, in a checkout

All models get the same images, steps and settings. Each chooses among the same learning rates and layer-wise decays by
cross-validation on its labeled images; the test set is used only once, at the end. The answer is yes, no or cannot
tell, with the labels that the better model saves and what each of them costs. An interrupted comparison resumes
automatically.
"""

import contextlib
import functools
import json
import shutil
import statistics
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from ..cli import finetune, pretrain, segment
from ..data.labeled.segmentation import PixelSettings
from ..data.reading import ImageDataset, check_images
from ..evaluation.comparing.answers import ANSWERS_FILE
from ..evaluation.comparing.cost import (
    COST_FILE,
    Cost,
    CostMeter,
    cost_sentences,
    find_counters,
    read_cost,
    training_cost,
)
from ..evaluation.comparing.labels_saved import LabelsSaved
from ..evaluation.comparing.metric import DecidingMetric, choose_metric
from ..evaluation.comparing.report import Results, conclude, means_by_seed, write_report
from ..evaluation.comparing.test_set import TestSet, missing_classes, refuse_equal_budgets
from ..evaluation.comparing.verdicts import Verdict
from ..evaluation.quiet_runs import quiet
from ..evaluation.run_progress import RunProgress
from ..planning.sizing import choose_mask_patch
from ..training.cards.pretraining import learned_little, read_metrics
from ..training.fingerprints import digest, model_digest
from ..training.run_folder import RunRecord
from .command import Command, existing, in_words, make_folder
from .options.comparing import ARM_NAMES, TASKS, CompareArguments
from .options.models import describe_models
from .recipes import CommandError, options_of

# Of a run: images per class, and whether it is of a cross-validation.
Kind = tuple[int, bool]
# Steps of an arm, whose costs are told.
STEPS = ("pre-training", "tuning", "fine-tuning")


@dataclass(frozen=True)
class Model:
    """A model that is compared.

    Args:
        arm: Name of its arm in results.
        checkpoint: Its weights; of the arm from scratch, whose architecture it has.
        pretraining: Seed of its pre-training if there are several.
    """

    arm: str
    checkpoint: str
    pretraining: int | None = None

    @property
    def from_scratch(self) -> bool:
        """Whether it starts from random weights."""
        return self.arm == ARM_NAMES["scratch"]

    @property
    def folder(self) -> str:
        """Name of the folder of its runs."""
        return self.arm.replace(" ", "-") + _suffix(self.pretraining)


def _suffix(seed: int | None) -> str:
    return "" if seed is None else f"-seed-{seed}"


def check_runs(arguments: CompareArguments) -> TestSet:
    """Check that all runs can be made, before a long pre-training.

    Args:
        arguments: The options.

    Returns:
        The test set.

    Raises:
        ValueError, OSError: If a run cannot be made; the message says why and what to do.
    """
    if arguments.task == "segmentation":
        return _check_segmentations(arguments)
    sources = [arguments.labeled_source()]
    if len(arguments.choices) > 1:
        sources.append(arguments.tuning_source())
    test_set: Any = None
    images, num_images = "", {}
    for budget in arguments.labels_per_class:
        for source in sources:
            options = run_options(arguments, budget) | source | {"seeds": arguments.seeds[:1]}
            parsed = finetune.FineTuningOptions(*finetune.COMMAND.parse(options_of(options)))
            planned = finetune.plan_runs(parsed)[0]
            if not images:
                parts = [part for part in finetune.load_splits(parsed.data) if part is not None]
                images = "; ".join(json.dumps(digest(part.rows)) for part in parts)
            if planned.evaluation is None:
                raise ValueError(f"holdout={arguments.holdout:g} leaves no images for the test set. Use 0.2.")
            if source is sources[0]:
                if planned.fold is not None:
                    raise ValueError("the recipe has num_folds, but a comparison has a single test set. Leave it out.")
                test_set, num_images[budget] = planned.evaluation, len(planned.train)
    refuse_equal_budgets(num_images)
    # Removing an unreadable image would change which images are held out, and pre-training would have seen some.
    for channels in sorted({config.num_channels for config in known_configs(arguments).values()}):
        dataset = ImageDataset(test_set.rows, (8, 8), channels)
        check_images([dataset], 0.0, len(dataset))
    labels = test_set.labels
    metric, why = choose_metric(test_set.problem_type, arguments.metric, labels, len(test_set.class_names or ()))
    refusals = []
    if test_set.class_names is not None:
        counts = np.bincount(labels) if np.ndim(labels) == 1 else np.asarray(labels).sum(axis=0)
        refusals = missing_classes(test_set.class_names, counts.tolist())
    label = ("label", "" if test_set.class_names is None else " per class")
    return TestSet(list(test_set.rows["name"]), labels, images, metric, why, refusals, label)


def _check_segmentations(arguments: CompareArguments) -> TestSet:
    """As `check_runs`, for images with a class for each pixel."""
    num_images = {}
    for budget in arguments.labels_per_class:
        data, numbers, *_ = segment.COMMAND.parse(options_of(run_source(arguments) | run_options(arguments, budget)))
        train, test = segment.load_splits(data)
        num_images[budget] = len((segment.draw_images(train, budget, arguments.seeds[0]) if budget else train).images)
    refuse_equal_budgets(num_images)
    refusals: list[tuple[str, str]] = []
    # Masks that cannot be used are refused now, not after a pre-training.
    for channels in {config.num_channels for config in known_configs(arguments).values()}:
        pixels = PixelSettings(channels, numbers.rescale, [0.0] * channels, [1.0] * channels, numbers.nodata)
        found, counts = segment.build_labels(data, train, test, pixels)
        refusals = missing_classes(found.class_names, counts)
    parts = [part for pairs in (train, test) for part in pairs]
    images = "; ".join(json.dumps(digest(part)) for part in parts)
    metric, _ = choose_metric("segmentation", arguments.metric or "mean_iou", [])
    return TestSet(list(test.images["name"]), [], images, metric, "", refusals, ("annotated image", ""))


def known_configs(arguments: CompareArguments) -> dict[str, Any]:
    """Configs of the compared models, by their names on the command line; from scratch has that of another."""
    given = {"pretrained": arguments.checkpoint, "public": arguments.public, "continued": arguments.continued}
    configs = {}
    for arm in arguments.arm_keys:
        if arm == "scratch":
            continue
        if arguments.pretrains(arm):
            data, model, _ = pretrain.COMMAND.parse(options_of(pretraining_options(arguments, arm)))
        else:
            data, model = None, pretrain.PretrainingModelArguments(checkpoint=given[arm])
        configs[arm] = pretrain.build_config(model)
        if arm == "continued" and data is not None:
            # Masks and sizes are checked now, not after the pre-training of another arm.
            pretrain.dataset_settings(configs[arm], data, model)
    return configs


def differing_architectures(arguments: CompareArguments) -> list[str]:
    """Sentences on architectures that differ, and what the comparison then is about; none if all are the same."""
    configs = known_configs(arguments)
    if len(configs) == 1:
        return []
    texts, shapes = describe_models(configs)
    groups: dict[str, list[str]] = {}
    for arm in arguments.arm_keys:
        like = arguments.scratch_model if arm == "scratch" else arm
        first = next(name for name in shapes if shapes[name] == shapes[like])
        groups.setdefault(first, []).append(ARM_NAMES[arm])
    if len(groups) == 1:
        return []
    named = "; ".join(f"{' and '.join(arms)}: {texts[first]}" for first, arms in groups.items())
    scratch = ""
    if "scratch" in arguments.arm_keys:
        scratch = f" From scratch has that of {ARM_NAMES[arguments.scratch_model]}; --scratch_like changes it."
    return [f"The architectures differ ({named}): verdicts between these are about the architecture, too.{scratch}"]


def pretraining_options(
    arguments: CompareArguments, arm: str = "pretrained", seed: int | None = None
) -> dict[str, Any]:
    """Options of `hf-simmim pretrain`.

    Args:
        arguments: The options.
        arm: `"pretrained"` or `"continued"`.
        seed: Seed of the pre-training; that of the options if None.

    Returns:
        The options.
    """
    options = arguments.unlabeled_source() | arguments.further("pretrain")
    if arguments.pretrain_recipe is not None:
        options["recipe"] = arguments.pretrain_recipe
    if arm == "continued":
        # The weights bring their architecture.
        options.pop("encoder", None)
        options |= {"checkpoint": arguments.public} | arguments.further("continued")
        if "mask_patch_size" not in arguments.further("continued"):
            options["mask_patch_size"] = fitting_mask_patch(options)
    if seed is not None:
        options["seed"] = seed
    return options | {"output_dir": str(Path(arguments.output_dir, arm + _suffix(seed)))}


def fitting_mask_patch(options: dict[str, Any]) -> int:
    """Side of mask patches in pixels: that of the options, or the nearest one that fits the checkpoint.

    Args:
        options: Options of `hf-simmim pretrain`.

    Returns:
        The side.
    """
    _, model, training = pretrain.COMMAND.parse(options_of(options))
    config = pretrain.build_config(model)
    step = config.mask_step
    if "recipe" not in options and "mask_patch_size" not in (training.given or ()):
        return int(choose_mask_patch(min(config.image_size), step).value)
    return max(1, round(model.mask_patch_size / step)) * step


def pretrained_checkpoint(
    arguments: CompareArguments, test_set: TestSet, arm: str = "pretrained", seed: int | None = None
) -> str:
    """Pre-train the model of an arm, unless that is done.

    Args:
        arguments: The options.
        test_set: The test set, which is not trained on.
        arm: `"pretrained"` or `"continued"`.
        seed: Seed of the pre-training; that of the options if None.

    Returns:
        Folder of the checkpoint.

    Raises:
        CommandError: If the folder holds one of other options.
    """
    options = pretraining_options(arguments, arm, seed)
    folder, path = Path(options["output_dir"]), Path(arguments.output_dir, "deciding_images.json")
    options["leave_out"] = str(path)
    inputs = {"images": test_set.images}
    if arm == "continued":
        inputs["model"] = str(model_digest(str(arguments.public), with_weights=True))
    record = RunRecord(folder, options, inputs)
    with in_words():
        record.check_options()
    if record.results is None:
        with PartialState().main_process_first():
            if PartialState().is_main_process:
                path.write_text(json.dumps(test_set.names, indent=2), encoding="utf-8")
        with _metered(folder):
            _pretrain(options_of(arguments.kept_decoder(folder) | options))
        if PartialState().is_main_process:
            record.note({})
    return str(folder)


def prepare_models(arguments: CompareArguments, test_set: TestSet) -> list[Model]:
    """Pre-train what is not given.

    Args:
        arguments: The options.
        test_set: The test set.

    Returns:
        The models, by arm and pre-training.
    """
    given = {"pretrained": arguments.checkpoint, "public": arguments.public, "continued": arguments.continued}
    found: dict[str, list[Model]] = {}
    for arm in arguments.arm_keys:
        if arguments.pretrains(arm):
            name, seeds = ARM_NAMES[arm], arguments.seeds_of(arm)
            found[arm] = [Model(name, pretrained_checkpoint(arguments, test_set, arm, seed), seed) for seed in seeds]
        elif arm != "scratch":
            found[arm] = [Model(ARM_NAMES[arm], str(given[arm]))]
    if "scratch" in arguments.arm_keys:
        found["scratch"] = [Model(ARM_NAMES["scratch"], found[arguments.scratch_model][0].checkpoint)]
    return [model for arm in arguments.arm_keys for model in found[arm]]


_counters = functools.cache(find_counters)


def _metered(folder: Path) -> AbstractContextManager[Any]:
    """Measure what a run costs, in the first process."""
    return CostMeter(folder, _counters()) if PartialState().is_main_process else contextlib.nullcontext()


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
        options: Options of `hf-simmim finetune` or `segment`, with `seeds`.
        folder: Folder of the runs.
        inputs: Fingerprints of images and weights.
        keeps_weights: Whether the trained models are kept; checkpoints are always deleted.
        progress: Progress of the comparison, which is printed after each run, and the kind of these runs.

    Returns:
        Contents of `results.json`.
    """
    options = options | {"output_dir": str(folder)}
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
            (folder / COST_FILE).unlink(missing_ok=True)
            record.note(None)
        PartialState().wait_for_everyone()
        on_run = _announcer(progress)
        with _metered(folder), quiet(folder / "log.txt"):
            # Otherwise Trainer lets the other processes warn, regardless of the verbosity set here.
            given = {"log_level_replica": "error"} | arguments.kept_decoder(folder) | options
            done = _finetune(options_of(given), on_run) if arguments.task == TASKS[0] else _segment(given, on_run)
        if is_main:
            record.note(done)
            # Only an interrupted run needs them, and those of a comparison would fill a disk.
            _delete_checkpoints(folder)
            for pattern in () if keeps_weights else ("*.safetensors", ANSWERS_FILE):
                for path in list(folder.rglob(pattern)):
                    path.unlink()
    elif progress is not None:
        progress[0].skip(progress[1], len(done["runs"]))
    return done


def _announcer(progress: tuple[RunProgress[Kind], Kind] | None) -> Callable[[], None] | None:
    """A function that prints the progress where text is printed now, which `quiet` redirects."""
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
    num_arms = len(arguments.arm_keys)
    num_models = sum(len(arguments.seeds_of(arm)) for arm in arguments.arm_keys)
    for budget in arguments.labels_per_class:
        if len(arguments.choices) > 1:
            planned[budget, True] = num_arms * len(arguments.choices) * arguments.tuning_folds
        planned[budget, False] = num_models * len(arguments.seeds)
    return planned


def _pretrain(argv: list[str]) -> None:
    pretrain.run(*pretrain.COMMAND.parse(argv))


def _segment(options: dict[str, Any], on_run: Callable[[], None] | None) -> dict[str, Any]:
    """As `_finetune`, for images with a class for each pixel."""
    runs = []
    for seed in options["seeds"]:
        folder = str(Path(options["output_dir"], f"seed-{seed}"))
        own = {name: value for name, value in options.items() if name != "seeds"} | {"seed": seed, "output_dir": folder}
        result = segment.run(*segment.COMMAND.parse(options_of(own)))
        metrics = {name: result.metrics[f"eval_{name}"] for name in ("mean_iou", "pixel_accuracy")}
        counts = {"num_train_images": result.num_train_images, "num_eval_images": result.num_eval_images}
        runs.append({"seed": seed, "metrics": metrics, **counts})
        if on_run is not None:
            on_run()
    return {"summary": {}, "runs": runs}


def _finetune(argv: list[str], on_run: Callable[[], None] | None) -> dict[str, Any]:
    """Train and evaluate, and call a function after each run; returns the contents of `results.json`."""
    data, augmentation, model, training = finetune.COMMAND.parse(argv)
    result = finetune.run(data, augmentation, model, training, on_run)
    return {"summary": result.summary, "runs": result.runs}


def _delete_checkpoints(folder: Path) -> None:
    for path in list(folder.rglob("checkpoint-*")):
        shutil.rmtree(path, ignore_errors=True)


def run_options(arguments: CompareArguments, budget: int) -> dict[str, Any]:
    """Options of `hf-simmim finetune`, or of `segment`, for all runs with so many labels; 0 for all.

    Args:
        arguments: The options.
        budget: Labeled images per class, or in all.

    Returns:
        The options, without model, seeds and folder.
    """
    # Progress bars of many short runs would hide the results; Trainer prints to the log instead. The test set is not
    # used before the end.
    options: dict[str, Any] = {"disable_tqdm": True, "eval_strategy": "no"}
    if budget:
        options["num_train_images" if arguments.task == "segmentation" else "labels_per_class"] = budget
    return options | arguments.training_options(budget)


def run_source(arguments: CompareArguments) -> dict[str, Any]:
    """Options of `hf-simmim finetune`, or of `segment`, that name the images."""
    source = arguments.labeled_source()
    if arguments.task == "segmentation":
        known = {option.name for kind in segment.COMMAND.kinds for option in fields(kind)}
        source = {name: value for name, value in source.items() if name in known}
    return source


def choose_rates(
    arguments: CompareArguments,
    options: dict[str, Any],
    folder: Path,
    inputs: dict[str, Any],
    progress: RunProgress[Kind],
    metric: DecidingMetric,
) -> tuple[dict[str, float], Cost]:
    """Choose learning rate and layer-wise decay of one arm at one budget, by cross-validation on its labeled images.

    Args:
        arguments: The options of the comparison.
        options: Options of `hf-simmim finetune` for the arm and budget.
        folder: Folder of the runs.
        inputs: Fingerprints of images and weights.
        progress: Progress of the comparison.
        metric: The metric that decides.

    Returns:
        Options of `hf-simmim finetune`, those without a choice left out; and what it cost to choose.

    Raises:
        CommandError: If the metric is not defined for a fold.
    """
    choices = arguments.choices
    if len(choices) == 1:
        return choices[0], Cost(0.0)
    values, cost = [], Cost(0.0, dict.fromkeys(_counters(), 0.0))
    for choice in choices:
        name = described(choice)
        _say(f"  cross-validation of {name}, {arguments.tuning_folds} folds")
        tuning = arguments.tuning_source() | options | choice | {"seeds": arguments.seeds[:1]}
        place = folder / name.replace(", ", "-").replace(" ", "-")
        kind = (options.get("labels_per_class", 0), True)
        results = fine_tune(arguments, tuning, place, inputs, keeps_weights=False, progress=(progress, kind))
        if metric.key not in results["summary"]:
            raise CommandError(
                f"{metric.title} is not defined for every fold in {place}. Use fewer --tuning_folds, or another"
                " --metric."
            )
        values.append(metric.sign * results["summary"][metric.key]["mean"])
        cost += read_cost(place)
    return choices[int(np.argmax(values))], cost


def described(choice: dict[str, float]) -> str:
    """Describe chosen options."""
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in choice.items())


def run_arms(arguments: CompareArguments, models: list[Model], test_set: TestSet) -> Results:
    """Run all arms at every label budget.

    Args:
        arguments: The options.
        models: The models.
        test_set: The test set, with the metric that decides.

    Returns:
        The results.

    Raises:
        CommandError: If the metric is not defined for the test set.
    """
    output_dir, metric, results = Path(arguments.output_dir), test_set.metric, Results()
    progress = RunProgress[Kind](planned_runs(arguments))
    for model in models:
        if model.arm in (ARM_NAMES["pretrained"], ARM_NAMES["continued"]):
            results.spend(model.arm, STEPS[0], training_cost(Path(model.checkpoint)))
    for budget in arguments.labels_per_class:
        choices: dict[str, dict[str, float]] = {}
        for model in models:
            arm = model.arm
            options = run_options(arguments, budget)
            options |= {"checkpoint": model.checkpoint, "from_scratch": model.from_scratch}
            folder = output_dir / f"{budget or 'all'}-labels" / model.folder
            which = arm if model.pretraining is None else f"{arm}, pre-training of seed {model.pretraining}"
            count = len(arguments.seeds)
            _say(f"{test_set.budget(budget)}, {which}: {count} run{'s' * (count > 1)}, see {folder / 'log.txt'}")
            digested = model_digest(model.checkpoint, with_weights=not model.from_scratch)
            inputs = {"images": test_set.images, "model": digested}
            if arm not in choices:
                # Of several pre-trainings the first one chooses, so that each arm has the same number of tries.
                choices[arm], cost = choose_rates(arguments, options, folder / "tuning", inputs, progress, metric)
                if len(arguments.choices) > 1:
                    results.spend(arm, STEPS[1], cost)
            choice = choices[arm]
            options |= {**choice, **run_source(arguments), "seeds": arguments.seeds}
            runs = fine_tune(arguments, options, folder, inputs, progress=(progress, (budget, False)))["runs"]
            results.spend(arm, STEPS[2], read_cost(folder))
            missing = [run["seed"] for run in runs if metric.key not in run["metrics"]]
            if missing:
                raise CommandError(f"{metric.title} is missing in {folder}, seeds {missing}. Use another --metric.")
            num_labels, results.num_images = runs[0]["num_train_images"], runs[0]["num_eval_images"]
            results.choices.setdefault(num_labels, {})[arm] = choice
            values = {run["seed"]: run["metrics"][metric.key] for run in runs}
            keyed = {seed if model.pretraining is None else (model.pretraining, seed): values[seed] for seed in values}
            results.scores.setdefault(num_labels, {}).setdefault(arm, {}).update(keyed)
            PartialState().wait_for_everyone()
            for seed in values:
                results.keep_answers(num_labels, arm, folder / f"seed-{seed}")
            chosen = f", {described(choice)}" if choice else ""
            figures = list(values.values())
            spread = f" ± {metric.shown(statistics.stdev(figures))}" if len(figures) > 1 else ""
            mean, unit = metric.shown(statistics.fmean(figures)), " %" if metric.is_share else ""
            _say(f"  test {metric.title} {mean}{spread}{unit} (n = {results.num_images:,}){chosen}")
    return results


def _say(text: str) -> None:
    if PartialState().is_main_process:
        print(text, flush=True)


@dataclass(frozen=True)
class ComparisonResult:
    """Result of a comparison.

    Args:
        conclusion: The conclusion in a sentence; with more than two models, the recommendation.
        verdicts: Verdict at each label budget, of each pair of arms that answers a question.
        scores: Values of the metric by number of labeled images, arm and seed; means over pre-trainings if there are
            several. Shares, such as accuracies, are in [0, 1].
        checkpoint: The pre-trained model, of several pre-trainings the first; the public one if none is pre-trained.
        output_dir: Folder of all runs.
        pictures: Path of `comparison`.
        recommendation: Which arm to use, or that one cannot tell, in a sentence.
        metric: Name of the metric that decides.
        labels_saved: Labels that the better arm of each pair saves.
        costs: Time and energy by arm and step.
        next_options: Options of `hf-simmim finetune` or `segment` that train the model to use as it was trained here,
            with what it chose with the most labels.
    """

    conclusion: str
    verdicts: list[Verdict]
    scores: dict[int, dict[str, dict[int, float]]]
    checkpoint: str
    output_dir: Path
    pictures: dict[str, Path]
    recommendation: str = ""
    metric: str = "accuracy"
    labels_saved: list[LabelsSaved] = field(default_factory=list)
    costs: dict[str, dict[str, Cost]] = field(default_factory=dict)
    next_options: dict[str, Any] = field(default_factory=dict)


def run(arguments: CompareArguments) -> ComparisonResult:
    """Pre-train what is not given, fine-tune all models, and compare them."""
    with in_words(arguments.checkpoint or arguments.public or arguments.continued):
        make_folder(arguments.output_dir)
        test_set = check_runs(arguments)
        notes = differing_architectures(arguments)
    if test_set.why:
        notes.append(f"{test_set.why} {test_set.metric.title} decides.")
    for note in notes:
        _say(note)
    models = prepare_models(arguments, test_set)
    folders = dict.fromkeys(Path(model.checkpoint) for model in models if not model.from_scratch)
    for doubt in [f"{folder}: {text}" for folder in folders if (text := learned_little(read_metrics(folder)))]:
        _say(doubt)
        notes.append(doubt)
    results = run_arms(arguments, models, test_set)
    report = conclude(results, arguments.arm_names, test_set.metric, test_set.refusals, notes)
    output_dir = Path(arguments.output_dir)
    if PartialState().is_main_process:
        write_report(report, results, output_dir)
        for title, block in report.blocks.items():
            print("\n".join(["", f"{title}:", *(f"  {sentence}" for sentence in block)]))
        print("\n".join(["", *cost_sentences(results.costs), *notes, report.recommendation]))
        what = f"test {test_set.metric.title} over the number of labels, all models, every seed"
        print(f"{output_dir / 'comparison.png'}  {what}")
    advised = next(model for model in models if model.arm == report.advised)
    return ComparisonResult(
        conclusion=report.conclusion,
        verdicts=[verdict for verdicts in report.verdicts.values() for verdict in verdicts],
        scores=means_by_seed(results.scores),
        checkpoint=next(model.checkpoint for model in models if not model.from_scratch),
        output_dir=output_dir,
        pictures=existing(output_dir, "comparison.png"),
        recommendation=report.recommendation,
        metric=test_set.metric.name,
        labels_saved=report.labels_saved,
        costs=results.costs,
        next_options={
            "checkpoint": advised.checkpoint,
            **({"from_scratch": True} if advised.from_scratch else {}),
            **arguments.training_options(),
            **results.choices[max(results.choices)][advised.arm],
        },
    )


COMMAND = Command(
    name="compare",
    usage="[--checkpoint FOLDER] [--public MODEL] [--train_dir FOLDER] [--output_dir FOLDER] [options]",
    description=__doc__,
    kinds=(CompareArguments,),
    run=run,
    common=(
        *("train_dir", "validation_dir", "unlabeled_dir", "checkpoint", "public", "arms", "output_dir"),
        *("labels_per_class", "seeds", "pretrain_seeds", "metric", "learning_rates", "layer_decays"),
        *("pretrain_options", "finetune_options"),
    ),
    demo=True,
)
