"""What studies by the commands repeat: image sets as folders, a file of finished runs, intervals over pre-trainings."""

import argparse
import contextlib
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import hf_simmim
from hf_simmim.data.labeled.splits import few_labels

from .ablation.data import load_images
from .ablation.verdicts import student_quantile
from .measuring import RESULTS, complete_lines, machine

# Side in pixels of the stored images, and what they are, in words.
SETS = {
    "fashion": ("embedded", 28, "Fashion-MNIST, the embedded 6,000 training and 1,000 test images, gray, 28 px"),
    "clipart": ("clipart", 64, "Open Clip Art, 3,442 training and 860 test images of ten subjects, color, 64 px"),
    "textures": (
        "textures-color",
        64,
        "OpenArena, 2,100 training and 500 test windows of ten photographed textures, color, 64 px",
    ),
}


@dataclass(frozen=True)
class ImageFolders:
    """Folders of a set, each with a subfolder for each class.

    Args:
        train: All training images; pre-training does not read their labels.
        labeled: Some of them, equally many of each class, for a probe.
        test: Test images.
    """

    train: Path
    labeled: Path
    test: Path


def write_folders(name: str, folder: Path, labels_per_class: int = 50) -> ImageFolders:
    """Write a set as PNG files, unless that is done.

    Args:
        name: Key of `SETS`.
        folder: Folder for all sets.
        labels_per_class: Images of each class in `labeled`.

    Returns:
        The folders.

    Raises:
        ValueError: If the set was not fetched.
    """
    root = folder / f"{name}-{labels_per_class}"
    folders = ImageFolders(*(root / part for part in ("train", "labeled", "test")))
    if not (root / "complete").exists():
        source, size, _ = SETS[name]
        data = load_images(source, size, 10**6, 10**6)
        drawn = set(few_labels(data.labels.tolist(), labels_per_class, 0))
        for parent, images, labels in (
            (folders.train, data.images, data.labels),
            (folders.test, data.test_images, data.test_labels),
        ):
            for index, (pixels, label) in enumerate(zip(images, labels.tolist(), strict=True)):
                path = Path(f"{label}", f"{index:05}.png")
                picture = Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())
                for place in [parent] + [folders.labeled] * (parent == folders.train and index in drawn):
                    (place / path).parent.mkdir(parents=True, exist_ok=True)
                    picture.save(place / path)
        (root / "complete").touch()
    return folders


class FinishedRuns:
    """A file with a line for each finished run, so that a killed study goes on.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        self.path = path

    def lines(self) -> list[dict[str, Any]]:
        """All finished runs."""
        return [json.loads(line) for line in complete_lines(self.path)]

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The line of a run; None if it is not finished.

        Args:
            key: What tells it from others.

        Returns:
            The line.
        """
        return next((line for line in self.lines() if all(line.get(name) == key[name] for name in key)), None)

    def run(self, key: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run what is not finished, and append its line with the machine and the versions.

        Args:
            key: What tells the run from others, JSON-serializable.
            measure: Runs it, and returns what was measured.

        Returns:
            The line.
        """
        found = self.find(key)
        if found is None:
            # What commands print is no part of the report.
            with contextlib.redirect_stdout(sys.stderr):
                measured = measure()
            found = key | measured | {"about": machine("cpu") | {"hf_simmim": hf_simmim.__version__}}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return found


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean of independent values, and half the width of its 95 % interval by Student's t; None for a single one.

    Args:
        values: The values.

    Returns:
        Mean and half width.
    """
    if len(values) < 2:
        return values[0], None
    half = student_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), half


def in_points(mean: float, half: float | None) -> str:
    """A difference in percentage points with its interval, such as "+1.2 (-0.4 to +2.8)"."""
    return f"{mean:+.1f}" + ("" if half is None else f" ({mean - half:+.1f} to {mean + half:+.1f})")


def about_line(lines: Sequence[dict[str, Any]]) -> str:
    """Machine and versions of runs, each once."""
    found = dict.fromkeys(", ".join(f"{key} {value}" for key, value in line["about"].items()) for line in lines)
    return "; ".join(found)


def run_command(
    parser: argparse.ArgumentParser,
    arguments: list[str] | None,
    name: str,
    run_study: Callable[[argparse.Namespace, FinishedRuns], None],
    print_report: Callable[[argparse.Namespace, list[dict[str, Any]]], None],
) -> None:
    """Run what a study lacks, and print its tables.

    Args:
        parser: Parser of the options of the study, without those that all have.
        arguments: The words of the command; those of this process if None.
        name: Name of the study.
        run_study: Runs what is not finished.
        print_report: Prints the tables of the finished runs.
    """
    parser.add_argument("--folder", type=Path, default=Path("runs", name), help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS / f"{name}.jsonl", help="default: %(default)s")
    parser.add_argument("--report_only", action="store_true", help="print the tables of earlier runs")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runs = FinishedRuns(args.results)
    if not args.report_only:
        run_study(args, runs)
    print_report(args, runs.lines())
