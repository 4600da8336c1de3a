"""When to stop a pre-training: which checkpoint each rule chooses, and what it is worth after fine-tuning.

Each image set is pre-trained with several seeds by `hf-simmim pretrain` with the settings that it chooses (target,
masks, batch size, learning rate), a probe, and a checkpoint at each evaluation. On that same training each rule
chooses a checkpoint: the highest linear probe, k-NN or RankMe, the lowest validation loss, the last; and what
`--stop_by probe` and `--stop_by rank` would have done is computed by their own rule from the log. (A rule only ends a
training; until then it changes nothing.) The chosen checkpoints, and random weights, are fine-tuned with few labels by
`hf-simmim finetune --recipe few_labels`, on the same label subsets.

    python -m benchmarks.ablation.fetch clipart textures-color       # once, for these sets
    python -m benchmarks.stopping --sets fashion
    python -m benchmarks.stopping --sets clipart --epochs 60
    python -m benchmarks.stopping --sets textures --epochs 40 --probe_labels 100

Every run is a line of benchmarks/results/stopping.jsonl, and a killed study goes on. Checkpoints are in --folder.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import hf_simmim
from hf_simmim.training.stopping import StopRule

from .ablation.settings import swin, vit
from .study_runs import (
    SETS,
    FinishedRuns,
    ImageFolders,
    about_line,
    in_points,
    mean_interval,
    run_command,
    write_folders,
)

# With the head 0.46 M parameters, those of the demo; 0.60 M; and 2.44 M, the Swin of docs/evidence.md.
ENCODERS = {
    "fashion": vit(7, 96, 4, 3) | {"image_size": 28, "num_channels": 1},
    "clipart": vit(16, 96, 4, 3) | {"image_size": 64, "num_channels": 3},
    "textures": swin(4, 64, [2, 2, 2], [2, 4, 8], 4) | {"image_size": 64, "num_channels": 3},
}
# The same on all machines, and for so small a network faster.
COMMON: dict[str, Any] = {"bf16": False, "dataloader_num_workers": 0, "disable_tqdm": True}
FINE_TUNING: dict[str, Any] = {"recipe": "few_labels"}
# Rules that need the whole training: the figure that decides, and 1 for the highest or -1 for the lowest.
FIGURES = {
    "linear probe": ("probe_linear_accuracy", 1),
    "k-NN": ("probe_knn_accuracy", 1),
    "RankMe": ("eval_rankme", 1),
    "validation loss": ("eval_loss", -1),
    "last": ("step", 1),
}
LAST, SCRATCH = "last", "random weights"
# What is kept of the log at each evaluation.
KEPT = (
    *("step", "epoch", "eval_loss", "eval_masked_l1", "eval_rankme", "probe_layer"),
    *("probe_linear_accuracy", "probe_linear_low", "probe_linear_high", "probe_knn_accuracy"),
)

Log = Sequence[Mapping[str, float]]


class Choice(NamedTuple):
    """What a rule does with a training.

    Args:
        kept: Step of the checkpoint that it keeps.
        trained: Step at which the training ended.
    """

    kept: int
    trained: int


def evaluations(log: Log) -> list[dict[str, float]]:
    """Join what was logged at each step that was evaluated, the first value of each."""
    joined: dict[float, dict[str, float]] = {}
    for entry in log:
        values = joined.setdefault(entry["step"], {})
        for name in KEPT:
            if name in entry:
                values.setdefault(name, entry[name])
    return [values for values in joined.values() if "probe_linear_accuracy" in values]


def replay(rule: StopRule, log: Log) -> Choice:
    """What a training with --stop_by would have done, from the log of one that was not stopped.

    Args:
        rule: The rule.
        log: Evaluations, in their order.

    Returns:
        The step whose weights are kept, the highest figure until the end, and the step of the end.
    """
    seen: list[Mapping[str, float]] = []
    for entry in log:
        seen.append(entry)
        if rule.judge(seen).is_over:
            break
    return Choice(int(best(rule.figure, 1, seen)), int(seen[-1]["step"]))


def best(figure: str, sign: int, log: Log) -> float:
    """The first step after the beginning with the highest (1) or lowest (-1) figure."""
    entries = [entry for entry in log if entry["step"] and entry[figure] == entry[figure]]
    return max(entries, key=lambda entry: sign * entry[figure])["step"]


def choices(log: Log, patience: int) -> dict[str, Choice]:
    """What each rule does with a training.

    Args:
        log: Its evaluations.
        patience: Evaluations without a better one, of `--stop_by`.

    Returns:
        A choice by the name of each rule.
    """
    end = int(log[-1]["step"])
    found = {name: Choice(int(best(figure, sign, log)), end) for name, (figure, sign) in FIGURES.items()}
    for kind in ("probe", "rank"):
        found[f"--stop_by {kind} --patience {patience}"] = replay(StopRule(kind, patience), log)
    return found


def pretrain(name: str, seed: int, folders: ImageFolders, output: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Pre-train with a checkpoint at every evaluation."""
    start = time.process_time()
    result = hf_simmim.pretrain(
        train_dir=str(folders.train),
        probe_dir=str(folders.labeled),
        output_dir=str(output),
        encoder=json.dumps(ENCODERS[name]),
        num_train_epochs=args.epochs,
        eval_strategy="steps",
        eval_steps=1 / args.evaluations,
        save_strategy="steps",
        save_steps=1 / args.evaluations,
        save_total_limit=args.evaluations + 1,
        seed=seed,
        # Of a killed one the time would not be known.
        restart=output.exists() or None,
        **COMMON,
    )
    seconds = round(time.process_time() - start, 1)
    settings = json.loads((output / "run.json").read_text(encoding="utf-8"))
    kept = {key: settings[key] for key in ("target", "mask_patch_size", "images_per_step", "learning_rate")}
    return {"seconds": seconds, "settings": kept, "log": evaluations(result.log)}


def fine_tune(checkpoint: Path | None, name: str, subset: int, folders: ImageFolders, output: Path, count: int) -> dict:
    """Fine-tune a checkpoint, or random weights if None, with few labels of each class."""
    start = time.process_time()
    origin: dict[str, Any] = {"checkpoint": str(checkpoint)}
    if checkpoint is None:
        origin = {"encoder": json.dumps(ENCODERS[name]), "compute_statistics": True}
    result = hf_simmim.finetune(
        train_dir=str(folders.train),
        validation_dir=str(folders.test),
        output_dir=str(output),
        labels_per_class=count,
        seed=subset,
        **origin,
        **FINE_TUNING,
        **COMMON,
    )
    accuracy = result.runs[0]["metrics"]["accuracy"]
    return {"accuracy": accuracy, "seconds": round(time.process_time() - start, 1)}


def run_study(args: argparse.Namespace, runs: FinishedRuns) -> None:
    """Run what is not finished."""
    for name in args.sets:
        folders = write_folders(name, args.folder, args.probe_labels)
        length = {"epochs": args.epochs, "evaluations": args.evaluations, "probe_labels": args.probe_labels}
        for seed in args.seeds:
            key = {"set": name, "seed": seed, **length}
            output = args.folder / f"{name}-{args.epochs:g}-{args.evaluations}-{args.probe_labels}-{seed}"
            train = partial(pretrain, name, seed, folders, output, args)
            log = runs.run({"run": "pretraining", **key}, train)["log"]
            steps: list[int] = sorted({choice.kept for choice in choices(log, args.patience).values()})
            wanted = [(key, step) for step in steps]
            if seed == args.seeds[0]:
                wanted.append(({"set": name, "seed": None}, 0))
            for origin, step in wanted:
                for subset in args.subsets:
                    full = {"run": "fine-tuning", **origin, "step": step, "subset": subset, "labels": args.labels}
                    if runs.find(full) is not None:
                        continue
                    checkpoint = output / f"checkpoint-{step}" if step else None
                    if checkpoint is not None and not checkpoint.exists():
                        train()
                    tuned = args.folder / "fine-tuning" / f"{output.name}-{step}-{subset}"
                    line = runs.run(full, partial(fine_tune, checkpoint, name, subset, folders, tuned, args.labels))
                    print(f"{name}, seed {seed}, step {step}, subset {subset}: {line['accuracy']:.1%}", flush=True)


def differences(lines: Sequence[dict[str, Any]], choice: Choice, last: Choice) -> list[float]:
    """Accuracy of a choice minus that of the last checkpoint on each label subset, in percentage points."""
    found = {(line["step"], line["subset"]): 100 * line["accuracy"] for line in lines}
    # A killed study has those of some subsets.
    subsets = {subset for step, subset in found if step == last.kept and (choice.kept, subset) in found}
    return [found[choice.kept, subset] - found[last.kept, subset] for subset in sorted(subsets)]


def print_report(args: argparse.Namespace, lines: Sequence[dict[str, Any]]) -> None:
    """Print a table for each set and one for all, every run, and the machine."""
    lines = [line for line in lines if line["set"] in args.sets]
    pretrainings = [
        line
        for line in lines
        if line["run"] == "pretraining"
        and (line["set"], line["seed"]) in {(name, seed) for name in args.sets for seed in args.seeds}
        and all(line[key] == getattr(args, key) for key in ("epochs", "evaluations", "probe_labels"))
    ]
    tuned = [line for line in lines if line["run"] == "fine-tuning" and line["labels"] == args.labels]
    together: dict[str, list[float]] = {}
    for name in dict.fromkeys(line["set"] for line in pretrainings):
        print(f"\n{name}: {SETS[name][2]}\n")
        print(
            "| kept checkpoint | epochs, by seed | hours up to it | hours trained | test accuracy, % | minus the last |"
            " by seed |"
        )
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
        rows: dict[str, list[tuple[dict[str, Any], Choice, list[float], list[float]]]] = {}
        for line in (line for line in pretrainings if line["set"] == name):
            own = [each for each in tuned if each["set"] == name and each["seed"] == line["seed"] and _same(each, line)]
            found = choices(line["log"], args.patience)
            for rule, choice in found.items():
                accuracies = [100 * each["accuracy"] for each in own if each["step"] == choice.kept]
                if gains := differences(own, choice, found[LAST]):
                    rows.setdefault(rule, []).append((line, choice, accuracies, gains))
        for rule, cells in rows.items():
            epochs = " ".join(f"{_epoch(line, choice.kept):g}" for line, choice, *_ in cells)
            hours = [
                statistics.fmean(_hours(line, step(choice)) for line, choice, *_ in cells)
                for step in (lambda choice: choice.kept, lambda choice: choice.trained)
            ]
            means = [statistics.fmean(values) for *_, values in cells]
            together.setdefault(rule, []).extend(means)
            accuracy = statistics.fmean(value for _, _, values, _ in cells for value in values)
            gain = "" if rule == LAST else in_points(*mean_interval(means))
            each = "" if rule == LAST else " ".join(f"{mean:+.1f}" for mean in means)
            print(f"| {rule} | {epochs} | {hours[0]:.3f} | {hours[1]:.3f} | {accuracy:.1f} | {gain} | {each} |")
        if scratch := [100 * line["accuracy"] for line in tuned if line["set"] == name and line["seed"] is None]:
            print(f"| {SCRATCH} | | 0 | 0 | {statistics.fmean(scratch):.1f} | | |")
    print(f"\nAll {len(pretrainings)} pre-trainings, minus the last:")
    for rule, means in together.items():
        if rule != LAST:
            print(f"  {rule}: {in_points(*mean_interval(means))}")
    print("\nIntervals of 95 % are Student's t over pre-trainings, of the means over label subsets. Every run:\n")
    for line in pretrainings:
        print(f"{line['set']}, seed {line['seed']}, {line['seconds']:.0f} s, {line['settings']}")
        print("| epoch | validation loss | linear probe, % | k-NN, % | RankMe | fine-tuned, % |")
        print("| ---: | ---: | ---: | ---: | ---: | --- |")
        for entry in line["log"]:
            values = [100 * each["accuracy"] for each in tuned if each["step"] == entry["step"] and _same(each, line)]
            print(
                f"| {entry['epoch']:g} | {entry.get('eval_loss', float('nan')):.4f} |"
                f" {100 * entry['probe_linear_accuracy']:.1f} | {100 * entry['probe_knn_accuracy']:.1f} |"
                f" {entry.get('eval_rankme', float('nan')):.2f} | {' '.join(f'{value:.1f}' for value in values)} |"
            )
    if scratch := [line for line in tuned if line["seed"] is None]:
        print(f"{SCRATCH}: " + ", ".join(f"{line['set']} {100 * line['accuracy']:.1f}" for line in scratch))
    counted = sum(line["seconds"] for line in lines)
    print(f"\n{len(lines)} runs in {counted / 3600:.2f} hours of the CPU; {about_line(lines)}")


def _same(tuned: dict[str, Any], line: dict[str, Any]) -> bool:
    """Whether a fine-tuning is of a checkpoint of a pre-training."""
    return all(tuned.get(key) == line[key] for key in ("set", "seed", "epochs", "evaluations", "probe_labels"))


def _epoch(line: dict[str, Any], step: int) -> float:
    return round(next(entry["epoch"] for entry in line["log"] if entry["step"] == step), 1)


def _hours(line: dict[str, Any], step: int) -> float:
    return line["seconds"] / 3600 * step / line["log"][-1]["step"]


def main(arguments: list[str] | None = None) -> None:
    """Run the study, and print its tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stopping", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="image sets (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of pre-training (default: 0 1 2)")
    parser.add_argument("--subsets", nargs="+", type=int, default=[0, 1, 2], help="of labels (default: 0 1 2)")
    parser.add_argument("--epochs", type=float, default=12, help="of pre-training (default: 12)")
    parser.add_argument("--evaluations", type=int, default=12, help="evaluations and checkpoints (default: 12)")
    parser.add_argument("--labels", type=int, default=5, help="for fine-tuning, of each class (default: 5)")
    parser.add_argument("--probe_labels", type=int, default=50, help="for the probe, of each class (default: 50)")
    parser.add_argument("--patience", type=int, default=5, help="evaluations of --stop_by (default: 5)")
    run_command(parser, arguments, "stopping", run_study, print_report)


if __name__ == "__main__":
    main()
