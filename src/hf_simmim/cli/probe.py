"""Evaluate the features of a frozen encoder with a linear probe and k-NN.

    hf-simmim probe --checkpoint runs/photos --train_dir train --validation_dir test
    hf-simmim probe --checkpoint NAME --dataset_name DATA --validation_split test --layers 4 8 12 last
    hf-simmim probe --checkpoint runs/demo                                  on the demo's images, in a checkout

Prints a table of accuracies, and whether they beat those of the same encoder untrained; writes results.json and a plot
to --output_dir. The encoder is not trained, so this takes minutes instead of the hours of fine-tuning. Probes
underestimate SimMIM, whose features gain much from fine-tuning, and whose middle layers are often better than the last
one: layer and pooling are chosen on a part of the training images, unless --layers names them.
"""

import dataclasses
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..checkpoints.loading import load_encoder, pixel_settings
from ..data.labeled.images import LabeledImages, WholeImageDataset
from ..data.labeled.splits import few_labels, holdout
from ..data.sampling import evenly_spaced
from ..data.value_range import check_dataset_range
from ..evaluation.intervals import judge_gain, majority_share, wilson_interval
from ..evaluation.probing import (
    POOLINGS,
    Pair,
    ProbeResult,
    candidate_pairs,
    check_layers,
    choose_pair,
    extract_pairs,
    knn,
    linear_probe,
    name_pair,
)
from ..model.modeling_base import SimMIMModel
from ..visualization.plots import plot_layers
from .command import Command, existing, in_words, make_folder
from .options.images import LabeledSourceArguments, load_labeled_splits

SETTINGS = ("checkpoint", "layers", "pooling", "k", "labels_per_class", "seeds")
PROBE_TITLES = {"linear": "linear probe", "knn": "nearest neighbors"}
# By probe and layer: whether each test image is predicted correctly, or its share over seeds.
Answers = dict[tuple[str, str], np.ndarray]


@dataclass
class ProbingDataArguments(LabeledSourceArguments):
    """Source of the labeled images; the embedded ones if none are named."""

    _argument_group_name = "images"

    holdout: float = field(
        default=0.25,
        metadata={"help": "Share of each class (0 to 1) held out as test set if none is named."},
    )


@dataclass
class ProbingArguments:
    """Options of the probes."""

    _argument_group_name = "probe"

    checkpoint: str | None = field(
        default=None,
        metadata={"help": "SimMIM checkpoint or vision model of transformers: folder or name on the Hub."},
    )
    layers: list[str] = field(
        default_factory=lambda: ["auto"],
        metadata={
            "help": "Hidden states to evaluate: 0 for the patch embedding, -1 for the last, and last for the encoder's"
            " output. auto chooses one by a fifth of the training images, never by test images. The paper probes layer"
            " 8 of ViT-B."
        },
    )
    pooling: str = field(
        default="auto",
        metadata={
            "help": "Pooling of an image's features to one vector; auto is chosen with the layer, and mean for named"
            " --layers.",
            "choices": ["auto", *POOLINGS],
        },
    )
    k: int = field(default=20, metadata={"help": "Number of neighbors of k-NN."})
    labels_per_class: int | None = field(
        default=None, metadata={"help": "Number of training images per class, drawn by each seed (all if unset)."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0],
        metadata={"help": "Random seeds of drawn images, untrained weights and the linear probe's penalty."},
    )
    random_init: bool = field(
        default=True,
        metadata={
            "help": "Also evaluate the same architecture with random weights, drawn by --seeds, and say whether the"
            " features beat these. It takes as long again; false leaves it out."
        },
    )
    output_dir: str = field(default="runs/probe", metadata={"help": "Folder of results.json and the plot."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Images per batch."})
    dataloader_num_workers: int = field(default=2, metadata={"help": "Data loading processes."})
    device: str | None = field(default=None, metadata={"help": "Device, such as cpu (a GPU if available, if unset)."})

    def __post_init__(self):
        if self.checkpoint is None:
            raise ValueError("No checkpoint is named. Give --checkpoint, the output folder of a pre-training.")
        self.is_auto = self.layers == ["auto"]
        if not self.is_auto and "auto" in self.layers:
            raise ValueError(f"layers={self.layers} has auto and others. Give auto alone, or leave it out.")
        if not self.is_auto and self.pooling == "auto":
            self.pooling = "mean"
        self.numbers = [] if self.is_auto else [layer_number(name) for name in self.layers]
        for name, least in (
            ("k", 1),
            ("labels_per_class", 1),
            ("per_device_eval_batch_size", 1),
            ("dataloader_num_workers", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}.")
        for name in ("layers", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={values} contains duplicates. Give each once.")


def layer_number(name: str) -> int | None:
    """Parse a layer: the number of a hidden state, or None for the encoder's output."""
    if name == "last":
        return None
    try:
        return int(name)
    except ValueError as error:
        raise ValueError(f"layers has {name!r}. Use numbers of hidden states, last for the output, or auto.") from error


def pairs_of(arguments: ProbingArguments, config: Any) -> list[Pair]:
    """Layers and poolings to evaluate, or with auto to choose from.

    Args:
        arguments: The options.
        config: Config of the encoder.

    Returns:
        The pairs.

    Raises:
        ValueError: If the encoder does not have them.
    """
    if arguments.is_auto:
        return candidate_pairs(config, "auto", arguments.pooling)
    check_layers(config, arguments.numbers, arguments.pooling)
    return [(number, arguments.pooling) for number in arguments.numbers]


def load_images(arguments: ProbingDataArguments) -> list[LabeledImages]:
    """Load training and test images."""
    train, test = load_labeled_splits(arguments, arguments.label_column)
    if train.problem_type != "single_label_classification":
        raise ValueError("The labels must be one class for each image. Name another --label_column.")
    parts = [train, test]
    if test is None:
        parts = [
            train.select(part)
            for part in holdout(
                train.labels, arguments.holdout, arguments.holdout_seed, train.class_names, train.groups
            )
        ]
    limits = (arguments.max_train_samples, arguments.max_eval_samples)
    return [
        part if limit is None else part.select(evenly_spaced(len(part), limit))
        for part, limit in zip(parts, limits, strict=True)
        if part is not None
    ]


class ReadableBatches:
    """Batches of pixel values of the readable images of a data set, and the indices of these images.

    Args:
        dataset: The images.
        indices: Indices of the images to use.
        arguments: The options.
    """

    def __init__(self, dataset: WholeImageDataset, indices: list[int], arguments: ProbingArguments):
        self.dataset = dataset
        self.loader = DataLoader(
            torch.utils.data.Subset(dataset, indices),
            arguments.per_device_eval_batch_size,
            num_workers=arguments.dataloader_num_workers,
            collate_fn=list,
        )
        self.readable: list[int] = []
        self.unreadable: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for samples in self.loader:
            kept = [sample for sample in samples if "pixel_values" in sample]
            self.readable += [sample["index"] for sample in kept]
            for sample in samples:
                if "reason" in sample:
                    self.unreadable[self.dataset.images[sample["index"]]["name"]] = sample["reason"]
            if kept:
                yield torch.stack([sample["pixel_values"] for sample in kept])


def measure(
    model: SimMIMModel,
    datasets: list[WholeImageDataset],
    num_classes: int,
    draws: dict[int, list[int]],
    arguments: ProbingArguments,
    max_unreadable: float,
) -> tuple[list[dict[str, Any]], Answers, list[int]]:
    """Run both probes on every layer, for every seed.

    Args:
        model: The encoder.
        datasets: Training images, and test images.
        num_classes: Number of classes.
        draws: Indices of the training images by seed.
        arguments: The options.
        max_unreadable: Largest share of unreadable images, 0 to 1.

    Returns:
        A row for each layer and seed; by probe and layer whether each test image is predicted correctly, as its share
        over the seeds, 0 to 1, of shape (N,); and the classes of these images.

    Raises:
        ValueError: If too many images cannot be read.
    """
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    labels = [torch.tensor(dataset.images["label"][:]) for dataset in datasets]
    used = [sorted(set().union(*draws.values())), list(range(len(datasets[1])))]
    parts = [ReadableBatches(dataset, some, arguments) for dataset, some in zip(datasets, used, strict=True)]
    pairs = pairs_of(arguments, model.config)
    features = [extract_pairs(model, batches, pairs, device) for batches in parts]
    unreadable = parts[0].unreadable | parts[1].unreadable
    if unreadable:
        first, reason = next(iter(unreadable.items()))
        text = f"{len(unreadable)} of {sum(map(len, used))} images cannot be read, such as {first} ({reason})"
        if len(unreadable) > max_unreadable * sum(map(len, used)):
            raise ValueError(f"{text}: more than max_unreadable={max_unreadable:g}. Repair or remove them.")
        print(f"{text}; they are left out")
    position = {index: row for row, index in enumerate(parts[0].readable)}
    rows: list[dict[str, Any]] = []
    answers: Answers = {}
    for index, name in enumerate(arguments.layers):
        correct: dict[str, list[np.ndarray]] = {probe: [] for probe in PROBE_TITLES}
        for seed, draw in draws.items():
            kept = [image for image in draw if image in position]
            drawn = torch.tensor([position[image] for image in kept])
            row: dict[str, Any] = {"layer": name, "seed": seed}
            if arguments.is_auto:
                candidates = [part[drawn] for part in features[0]]
                index = choose_pair(candidates, labels[0][kept], num_classes, seed, device)
                row |= dict(zip(("chosen_layer", "chosen_pooling"), pairs[index], strict=True))
            train, test = features[0][index], features[1][index]
            data = (train[drawn], labels[0][kept], test, labels[1][parts[1].readable], num_classes)
            row |= {"num_train_images": len(kept), "num_test_images": len(test)}
            for probe, result in (
                ("linear", linear_probe(*data, seed=seed, device=device)),
                ("knn", knn(*data, k=arguments.k, device=device)),
            ):
                row[probe] = figures(result)
                correct[probe].append((result.predictions == data[3]).numpy())
            rows.append(row)
        answers |= {(probe, name): np.mean(correct[probe], axis=0) for probe in PROBE_TITLES}
    return rows, answers, labels[1][parts[1].readable].tolist()


def figures(result: ProbeResult) -> dict[str, float]:
    """Metrics of a probe that are not None, without its predictions."""
    values = {entry.name: getattr(result, entry.name) for entry in dataclasses.fields(result)}
    return {key: value for key, value in values.items() if key != "predictions" and value is not None}


def summary(rows: list[dict[str, Any]], layers: list[str], figure: str = "accuracy") -> dict[str, list[list[float]]]:
    """A metric of each probe: a list for each layer, with a value for each seed."""
    return {
        probe: [[row[probe][figure] for row in rows if row["layer"] == layer] for layer in layers]
        for probe in PROBE_TITLES
    }


def print_table(series: dict[str, dict[str, list[list[float]]]], layers: list[str]) -> None:
    """Print a line for each layer, in percent, with mean and standard deviation over several seeds."""
    columns = [(weights, probe) for weights in series for probe in PROBE_TITLES]
    titles = [f"{weights} {PROBE_TITLES[probe]}" for weights, probe in columns]
    print("  ".join(["layer", *titles]))
    for index, layer in enumerate(layers):
        cells = []
        for (weights, probe), title in zip(columns, titles, strict=True):
            values = series[weights][probe][index]
            spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{100 * statistics.fmean(values):.1f} %{spread}".rjust(len(title)))
        print("  ".join([layer.rjust(5), *cells]))


def print_choices(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Print the layers and poolings that were chosen, for each kind of weights and seed."""
    parts = [
        f"{name_pair((row['chosen_layer'], row['chosen_pooling']))} ({weights}"
        + (f", seed {row['seed']})" if len(measured) > 1 else ")")
        for weights, measured in rows.items()
        for row in measured
        if "chosen_pooling" in row
    ]
    if parts:
        print(f"Chosen on a fifth of the training images, without test images: {'; '.join(parts)}")


def worth(
    rows: list[dict[str, Any]], trained: Answers, untrained: Answers | None, labels: Sequence[int], names: list[str]
) -> dict[str, Any]:
    """What the accuracies are worth: the majority class, intervals, and the gain over an untrained encoder.

    Args:
        rows: Rows of the trained encoder, from `measure`.
        trained: Its answers.
        untrained: Answers of the untrained encoder, if it was measured.
        labels: Classes of the test images that were read.
        names: Names of the classes.

    Returns:
        Entries of `results.json`. `intervals` are Wilson's, of other test images, at the mean accuracy over the seeds.
    """
    majority, share = majority_share(labels)
    found: dict[str, Any] = {"majority_class": names[majority], "majority_accuracy": share}
    found["intervals"] = [
        {
            "probe": probe,
            "layer": layer,
            "accuracy": float(answers.mean()),
            "balanced_accuracy": statistics.fmean(
                row[probe]["balanced_accuracy"] for row in rows if row["layer"] == layer
            ),
            **dict(zip(("low", "high"), wilson_interval(float(answers.sum()), len(answers)), strict=True)),
        }
        for (probe, layer), answers in trained.items()
    ]
    if untrained is not None:
        gains = {key: judge_gain(answers, untrained[key]) for key, answers in trained.items()}
        found["verdicts"] = [
            {"probe": probe, "layer": layer, **dataclasses.asdict(gain), "sentence": str(gain)}
            for (probe, layer), gain in gains.items()
        ]
    return found


def print_worth(found: dict[str, Any], num_layers: int) -> None:
    """Print the result of `worth`: the majority class, the intervals, and the verdicts of the linear probe."""
    print(f"Always answering {found['majority_class']!r}, the most frequent class: {found['majority_accuracy']:.1%}")
    for entry in found["intervals"]:
        layer = f", layer {entry['layer']}" * (num_layers > 1)
        print(
            f"{PROBE_TITLES[entry['probe']]}{layer}: accuracy {entry['accuracy']:.1%} (95 % interval"
            f" {entry['low']:.1%} to {entry['high']:.1%}, Wilson), balanced accuracy {entry['balanced_accuracy']:.1%}"
        )
    for entry in found.get("verdicts", []):
        if entry["probe"] == "linear":
            layer = f"Layer {entry['layer']}: " * (num_layers > 1)
            print(f"{layer}{entry['sentence']}.")


@dataclass(frozen=True)
class ProbingResult:
    """Result of the probes.

    Args:
        results: Contents of `results.json`: settings, and under `results` the metrics of each layer and seed.
        output_dir: Folder of results and plot.
        pictures: Path of `accuracy`.
    """

    results: dict[str, Any]
    output_dir: Path
    pictures: dict[str, Path]


def measure_all(data: ProbingDataArguments, arguments: ProbingArguments) -> ProbingResult:
    """Run the probes, and print, write and plot the results.

    Args:
        data: Source of the images.
        arguments: The other options.

    Returns:
        The result.

    Raises:
        ValueError, OSError: If the checkpoint or the images cannot be used; the message says why and what to do.
    """
    output_dir = make_folder(arguments.output_dir)
    checkpoint = str(arguments.checkpoint)
    model = load_encoder(checkpoint)
    config = model.config
    pairs_of(arguments, config)
    settings = pixel_settings(checkpoint, config.num_channels)
    images = load_images(data)
    labels, num_classes = images[0].labels, len(images[0].class_names or ())
    if arguments.labels_per_class is None:
        draws = {seed: list(range(len(labels))) for seed in arguments.seeds}
    else:
        draws = {
            seed: few_labels(labels, arguments.labels_per_class, seed, images[0].class_names)
            for seed in arguments.seeds
        }
    datasets = [
        WholeImageDataset(part.rows, config.image_size, config.num_channels, crop_ratio=1, **settings)
        for part in images
    ]
    for dataset in datasets:
        check_dataset_range(dataset)
    parts = (datasets, num_classes)
    trained, answers, test_labels = measure(model, *parts, draws, arguments, data.max_unreadable)
    rows, controls = {"pre-trained": trained}, []
    if arguments.random_init:
        rows["untrained"] = []
        for seed, draw in draws.items():
            torch.manual_seed(seed)
            measured, correct, _ = measure(SimMIMModel(config), *parts, {seed: draw}, arguments, data.max_unreadable)
            rows["untrained"] += measured
            controls.append(correct)
    untrained = {key: np.mean([control[key] for control in controls], axis=0) for key in answers} if controls else None
    series = {weights: summary(measured, arguments.layers) for weights, measured in rows.items()}
    counts = {key: rows["pre-trained"][0][key] for key in ("num_train_images", "num_test_images")}
    num_fitted, num_tested = counts.values()
    title = f"{num_fitted:,} training images, {num_tested:,} test images, {num_classes} classes"
    print(title)
    print_table(series, arguments.layers)
    print_choices(rows)
    found = worth(trained, answers, untrained, test_labels, list(images[0].class_names or ()))
    print_worth(found, len(arguments.layers))
    results = {
        **{key: getattr(arguments, key) for key in SETTINGS},
        **counts,
        "class_names": images[0].class_names,
        **found,
        "results": [{"weights": weights, **row} for weights, measured in rows.items() for row in measured],
    }
    path = output_dir / "results.json"
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    plotted = {
        f"{PROBE_TITLES[probe]}, {weights}": series[weights][probe] for weights in series for probe in PROBE_TITLES
    }
    baseline = f"most frequent class, {found['majority_class']}", found["majority_accuracy"]
    plot_layers(arguments.layers, plotted, output_dir / "accuracy.png", title, baseline)
    print(f"{path}  all metrics\n{output_dir / 'accuracy.png'}  accuracy of each layer")
    return ProbingResult(results, output_dir, existing(output_dir, "accuracy.png"))


def run(data: ProbingDataArguments, arguments: ProbingArguments) -> ProbingResult:
    """Evaluate the features of the checkpoint."""
    with in_words(arguments.checkpoint):
        return measure_all(data, arguments)


COMMAND = Command(
    name="probe",
    usage="--checkpoint NAME [--train_dir FOLDER] [--validation_dir FOLDER] [options]",
    description=__doc__,
    kinds=(ProbingDataArguments, ProbingArguments),
    run=run,
    common=(
        *("checkpoint", "train_dir", "validation_dir", "dataset_name", "label_column", "output_dir", "layers"),
        *("pooling", "k", "labels_per_class", "seeds", "random_init", "device"),
    ),
)
