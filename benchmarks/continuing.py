"""What continuing from trained weights does to them: accuracy on the new images, harm to the old ones, and drift.

There are no public weights for such small images, so the weights to start from are trained here: a ViT of 1.0 M
parameters (color, 32 px, 16 tokens), with all labels of one image set, by `hf-simmim finetune`. They are then trained
on the images of another set without labels by `hf-simmim pretrain --checkpoint`, in ways that differ in what their
names say: by the defaults for weights that masked images did not train (a tenth of the learning rate of a pre-training
from scratch with layer-wise decay 0.8, and all of it for the new head and mask token), with these at a tenth, too, at
the full rate without that decay, at a hundredth of it, by adapters (`--lora`), and of the last blocks alone
(`--train_layers`), with what else the command chooses.

Before and after, 20 nearest neighbors classify the test images of both sets by the encoder's mean-pooled output, among
their training images. Differences are on the same test images, with 95 % intervals by a paired bootstrap. What
`pretrain` logs: drift, the share of nearest neighbors among validation images of the new set that have changed, and the
masked error of these images.

    python -m benchmarks.ablation.fetch clipart       # once
    python -m benchmarks.continuing

Every run is a line of benchmarks/results/continuing.jsonl, and a killed study goes on. Weights are in --folder.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

import hf_simmim
from hf_simmim.checkpoints.loading import load_encoder, pixel_settings
from hf_simmim.cli.options.continuing import LAYER_DECAY, RATE_SHARE
from hf_simmim.data.labeled.images import LabeledImageDataset, load_labeled_images
from hf_simmim.evaluation.intervals import paired_bootstrap, wilson_interval
from hf_simmim.evaluation.probing import extract_features, knn

from .ablation.settings import vit
from .study_runs import SETS, FinishedRuns, ImageFolders, about_line, run_command, write_folders

ENCODER = vit(8, 128, 5, 4) | {"image_size": 32, "num_channels": 3}
# The same on all machines.
COMMON: dict[str, Any] = {"bf16": False, "dataloader_num_workers": 0, "disable_tqdm": True}
# Of the training with labels.
LABELED: dict[str, Any] = {"recipe": "few_labels", "per_device_train_batch_size": 64, "layer_decay": 1.0}
PAIRS = (("fashion", "clipart"), ("clipart", "fashion"))
BEFORE, DEFAULT, SLOW_HEAD = "before", "default", "head at a tenth, too"
LORA_RANK, LAST_BLOCKS = 8, 2
# Options of each way; the default comes first, because the others' rates are multiples of its.
WAYS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    SLOW_HEAD: {"new_rate": 1.0},
    "full rate": {"layer_decay": 1.0},
    f"--lora {LORA_RANK}": {"lora": LORA_RANK},
    f"--train_layers {LAST_BLOCKS}": {"train_layers": LAST_BLOCKS},
    f"--train_layers {LAST_BLOCKS}, {SLOW_HEAD}": {"train_layers": LAST_BLOCKS, "new_rate": 1.0},
    "a hundredth": {"layer_decay": LAYER_DECAY},
}
# Share of the learning rate from scratch, where a way names it.
RATES = {"full rate": 1.0, "a hundredth": 0.01}


def train_start(folders: ImageFolders, output: Path, seed: int, epochs: float) -> dict[str, Any]:
    """Train the weights to start from, with all labels."""
    start = time.process_time()
    result = hf_simmim.finetune(
        train_dir=str(folders.train),
        validation_dir=str(folders.test),
        output_dir=str(output),
        encoder=json.dumps(ENCODER),
        compute_statistics=True,
        seed=seed,
        **LABELED | {"num_train_epochs": epochs},
        **COMMON,
    )
    accuracy = result.runs[0]["metrics"]["accuracy"]
    return {"accuracy": accuracy, "seconds": round(time.process_time() - start, 1)}


def train_further(
    way: str, start: Path, folders: ImageFolders, output: Path, seed: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Train weights on other images, without labels.

    Args:
        way: Key of `WAYS`.
        start: Folder of the weights.
        folders: The images.
        output: Folder of the run, beside those of the other ways; `DEFAULT` comes first.
        seed: Random seed.
        args: Options of this script.

    Returns:
        Agreement of neighbors at each evaluation, and how it was trained.
    """
    began = time.process_time()
    options = dict(WAYS[way])
    if way in RATES:
        before = json.loads((output.parent / DEFAULT / "run.json").read_text(encoding="utf-8"))
        options["learning_rate"] = float(f"{RATES[way] * before['learning_rate'] / RATE_SHARE:.3g}")
    result = hf_simmim.pretrain(
        train_dir=str(folders.train),
        output_dir=str(output),
        checkpoint=str(start),
        max_steps=args.steps,
        eval_strategy="steps",
        eval_steps=1 / args.evaluations,
        save_strategy="no",
        seed=seed,
        **options,
        **COMMON,
    )
    settings = json.loads((output / "run.json").read_text(encoding="utf-8"))
    trained = sum(parameter.numel() for parameter in result.model.parameters() if parameter.requires_grad)
    name = "drift_knn_agreement"
    return {
        "agreement": [[entry["step"], entry[name]] for entry in result.log if name in entry],
        "loss": [[entry["step"], entry["eval_loss"]] for entry in result.log if "eval_loss" in entry],
        "settings": {key: settings[key] for key in ("learning_rate", "layer_decay", "new_rate", "images_per_step")},
        "target": result.model.config.target,
        "trained_parameters": trained,
        "seconds": round(time.process_time() - began, 1),
    }


def answers(checkpoint: Path, folders: ImageFolders) -> str:
    """Which test images 20 nearest neighbors classify correctly by the frozen features: a 1 or 0 for each."""
    model = load_encoder(str(checkpoint))
    config, settings = model.config, pixel_settings(str(checkpoint), model.config.num_channels)
    train = load_labeled_images(str(folders.train))
    test = load_labeled_images(str(folders.test)).with_classes(train.class_names)
    found = []
    for images in (train, test):
        dataset = LabeledImageDataset(images.rows, config.image_size, config.num_channels, crop_ratio=1, **settings)
        found.append(extract_features(model, DataLoader(dataset, 250), progress=False))
    result = knn(found[0], train.labels, found[1], test.labels, len(train.class_names or ()))
    right = result.predictions == torch.as_tensor(test.labels)
    return "".join(str(int(answer)) for answer in right)


def measure(
    way: str,
    start: Path,
    source: str,
    target: str,
    folders: Mapping[str, ImageFolders],
    root: Path,
    seed: int,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Train in one way, unless it is `BEFORE`, and test on both sets.

    Args:
        way: `BEFORE` or a key of `WAYS`.
        start: Folder of the first weights.
        source: Set that they were trained on.
        target: Set to train on.
        folders: Images by set.
        root: Folder of the trainings.
        seed: Random seed.
        args: Options of this script.

    Returns:
        How it was trained, and which test images of each set are classified correctly.
    """
    output, trained = start, {}
    if way != BEFORE:
        output = root / way.strip("-").replace(" ", "-")
        trained = train_further(way, start, folders[target], output, seed, args)
    return {"trained": trained, "answers": {name: answers(output, folders[name]) for name in (source, target)}}


def run_study(args: argparse.Namespace, runs: FinishedRuns) -> None:
    """Run what is not finished."""
    folders = {name: write_folders(name, args.folder) for name, _ in PAIRS}
    for source, target in PAIRS:
        if source not in args.sources:
            continue
        for seed in args.seeds:
            start = args.folder / f"{source}-{args.epochs:g}-{seed}"
            key = {"source": source, "seed": seed, "epochs": args.epochs}
            labeled = partial(train_start, folders[source], start, seed, args.epochs)
            runs.run({"run": "start", **key}, labeled)
            root = args.folder / f"{start.name}-{target}-{args.steps}"
            for way in (BEFORE, *WAYS):
                full = {"run": "way", **key, "target": target, "way": way, "steps": 0 if way == BEFORE else args.steps}
                if runs.find(full) is None and not (start / "model.safetensors").exists():
                    labeled()
                line = runs.run(full, partial(measure, way, start, source, target, folders, root, seed, args))
                shares = (f"{name} {right.count('1') / len(right):.1%}" for name, right in line["answers"].items())
                print(f"{source} to {target}, seed {seed}, {way}: {', '.join(shares)}", flush=True)


def _shares(lines: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    """The share of the runs with a correct answer, of each test image."""
    return np.mean([[int(answer) for answer in line["answers"][name]] for line in lines], axis=0)


def _row(way: str, ran: Sequence[dict[str, Any]], starts: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """A row of the table: accuracies on both sets, and differences to the weights before."""
    cells = [way, "", "", ""]
    if way != BEFORE:
        settings = ran[0]["trained"]["settings"]
        rates = f"{settings['learning_rate']:g}, {settings['layer_decay']:g}, x {settings['new_rate']:g}"
        agreement, error = (np.mean([line["trained"][key][-1][1] for line in ran]) for key in ("agreement", "loss"))
        cells[1:] = [rates, f"{error:.3f}", f"{100 * (1 - agreement):.0f}"]
    seeds = {line["seed"] for line in ran}
    before = [line for line in starts if line["seed"] in seeds]
    for name in names:
        share = _shares(ran, name)
        low, high = (100 * end for end in wilson_interval(float(share.sum()), len(share)))
        difference = [100 * value for value in paired_bootstrap(share, _shares(before, name))]
        cells.append(f"{100 * share.mean():.1f} ({low:.1f} to {high:.1f})")
        cells.append("" if way == BEFORE else "{:+.1f} ({:+.1f} to {:+.1f})".format(*difference))
    return f"| {' | '.join(cells)} |"


def print_report(args: argparse.Namespace, lines: Sequence[dict[str, Any]]) -> None:
    """Print a table for each pair of sets, every run, and the machine."""
    lines = [line for line in lines if line["seed"] in args.seeds and line["epochs"] == args.epochs]
    lines = [line for line in lines if line["run"] == "start" or line["steps"] in (0, args.steps)]
    for source, target in PAIRS:
        ran = [line for line in lines if (line["source"], line.get("target")) == (source, target)]
        by_way = {way: [line for line in ran if line["way"] == way] for way in (BEFORE, *WAYS)}
        if not by_way[BEFORE]:
            continue
        starts = [line for line in lines if line["run"] == "start" and line["source"] == source]
        accuracies = " ".join(f"{100 * line['accuracy']:.1f}" for line in starts)
        print(f"\nFrom {source} ({SETS[source][2]}) to {target} ({SETS[target][2]})")
        print(f"Weights trained with all labels of {source}: test accuracy {accuracies} % by their classifier\n")
        titles = [f"{target}, {args.steps:,} steps", "rate, decay, head", "masked error", "neighbors changed, %"]
        for name in (target, source):
            titles += [f"k-NN on {name}, %", "minus before"]
        print(f"| {' | '.join(titles)} |\n| --- | --- |{' ---: |' * (len(titles) - 2)}")
        for way, each in by_way.items():
            if each:
                print(_row(way, each, by_way[BEFORE], (target, source)))
        print("\nEvery run, k-NN in percent, and at each evaluation neighbors changed and masked error:")
        for line in ran:
            shares = (f"{name} {100 * right.count('1') / len(right):.1f}" for name, right in line["answers"].items())
            trained = line["trained"]
            path = " ".join(f"{1 - agreement:.0%}" for _, agreement in trained.get("agreement", []))
            errors = " ".join(f"{error:.3f}" for _, error in trained.get("loss", []))
            size = f"; {trained['trained_parameters']:,} parameters; {trained['seconds']:.0f} s" if trained else ""
            print(f"  seed {line['seed']}, {line['way']}: {', '.join(shares)}; {path}; {errors}{size}")
    seconds = sum(line.get("seconds", 0) + line.get("trained", {}).get("seconds", 0) for line in lines)
    print(
        "\nIntervals are of other test images (Wilson's; of differences a paired bootstrap), not of other trainings."
        f"\n{len(lines)} runs in {seconds / 3600:.2f} hours of the CPU; {about_line(lines)}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the study, and print its tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.continuing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sources = [source for source, _ in PAIRS]
    parser.add_argument("--sources", nargs="+", choices=sources, default=sources, help="sets of the first weights")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="default: 0")
    parser.add_argument("--epochs", type=float, default=10, help="of the training with labels (default: 10)")
    parser.add_argument("--steps", type=int, default=400, help="of the training without (default: 400)")
    parser.add_argument("--evaluations", type=int, default=10, help="of drift (default: 10)")
    run_command(parser, arguments, "continuing", run_study, print_report)


if __name__ == "__main__":
    main()
