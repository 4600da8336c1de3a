"""The report of the search: a table for each set of images, and every run."""

import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from ..ablation.verdicts import student_quantile
from .grid import PRETRAININGS
from .images import NUM_IMAGES, NUM_TEST_IMAGES, SETS
from .study import FINE_TUNE_BATCH, FINE_TUNE_STEPS, PROBED, read_lines

REPORT = Path(__file__).parents[2] / "docs" / "search.md"
SCRATCH = "scratch"
# Accuracies by label subset and seed of the pre-training.
Runs = dict[tuple[int, int], float]


def write_report(results: Path, path: Path = REPORT) -> Path:
    """Write the report.

    Args:
        results: File of the runs.
        path: File of the report.

    Returns:
        The report.

    Raises:
        ValueError: If there are no runs.
    """
    lines = read_lines(results)
    if not lines:
        raise ValueError(f"{results} has no runs yet. Run the search first.")
    parts = ["# Search for a pre-training that pays", _introduction(lines)]
    for name in dict.fromkeys(line["set"] for line in lines):
        parts += [f"## {name.capitalize()}", f"{SETS[name][0][0].upper()}{SETS[name][0][1:]}."]
        measured = [line for line in lines if line["set"] == name]
        missing = [row for row in PRETRAININGS if row not in {line["row"] for line in measured}]
        parts += [_table(measured), *([f"Not run: {'; '.join(missing)}."] if missing else [])]
    if rates := _rates(lines):
        parts += ["## Learning rate of fine-tuning", rates]
    parts += ["## Every run", _every_run(lines)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _introduction(lines: list[dict[str, Any]]) -> str:
    about = lines[-1]["about"]
    seconds = sum(line["seconds"] for line in lines)
    return (
        f"Printed by `python -m benchmarks.search`: {NUM_IMAGES:,} gray images of 64 px without labels, a ViT of 0.5 M"
        f" parameters (patches of 16 px, unless the row says otherwise), AdamW with a cosine schedule, random crops of"
        f" 67 to 100 % and flips, 60 % masked in squares of 16 px, 30 epochs of 32 images. Each row differs from `rgb`"
        f" or `hog` in what its name says; `before` is what `hf-simmim pretrain` did for such an encoder before this"
        f" search (masks of 32 px, 128 images a step). Then the whole network is fine-tuned with 50 and with 200 labels"
        f" ({FINE_TUNE_STEPS} steps of {FINE_TUNE_BATCH}, the same crops and flips, learning rate 1e-3 for every row)."
        f" Accuracies are of {NUM_TEST_IMAGES} test images, in percent: mean and standard deviation over label subsets"
        f" and pre-trainings, and the difference to training the same encoder from scratch on the same subsets, with a"
        f" 95 % interval (Student's t over the subsets). Probe and k-NN use frozen features and {PROBED} labels."
        f"\n\n{len(lines)} runs in {seconds / 3600:.1f} hours on one core of an {about['device']}, with versions"
        f" torch {about['torch']}, transformers {about['transformers']}, Python {about['python']}. Intervals are not"
        " corrected for multiple comparisons. The settings were chosen on these sets: what they gain on others is not"
        " known."
    )


def _runs(lines: list[dict[str, Any]], row: str, labels: int) -> Runs:
    return {
        (line["seed"], line["pretrain_seed"]): 100 * line["accuracy"]
        for line in lines
        if line["row"] == row and line["labels"] == labels and line["rate"] == 1e-3
    }


def difference(runs: Runs, scratch: Runs) -> tuple[float, float, int] | None:
    """Compare a row with training from scratch on the same label subsets.

    Args:
        runs: Accuracies of the row.
        scratch: Those from scratch.

    Returns:
        The difference, the half width of its 95 % interval, and the number of subsets; None with fewer than two.
    """
    by_seed = defaultdict(list)
    for (seed, _), value in runs.items():
        by_seed[seed].append(value)
    controls = {seed: value for (seed, _), value in scratch.items()}
    pairs = [statistics.fmean(by_seed[seed]) - controls[seed] for seed in by_seed if seed in controls]
    if len(pairs) < 2:
        return None
    half = student_quantile(len(pairs) - 1) * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return statistics.fmean(pairs), half, len(pairs)


def _table(lines: list[dict[str, Any]]) -> str:
    titles = ["row", "steps", "seconds", "probe", "k-NN"]
    budgets = sorted({line["labels"] for line in lines} - {0})
    for count in budgets:
        titles += [f"{count} labels", "against scratch"]
    text = [f"| {' | '.join(titles)} |", f"| --- |{' ---: |' * (len(titles) - 1)}"]
    for row in dict.fromkeys(line["row"] for line in lines):
        trained = [line for line in lines if line["row"] == row and line["seed"] is None]
        cells = [row, f"{trained[0]['steps']:,}", f"{statistics.fmean(line['seconds'] for line in trained):.0f}"]
        cells += [f"{100 * statistics.fmean(line[key] for line in trained):.1f}" for key in ("linear_probe", "knn")]
        for count in budgets:
            runs = _runs(lines, row, count)
            spread = f" ± {statistics.stdev(runs.values()):.1f}" if len(runs) > 1 else ""
            cells.append(f"{statistics.fmean(runs.values()):.1f}{spread}" if runs else "not run")
            control = f"{SCRATCH}, patch 8" if "patch 8" in row else SCRATCH
            found = difference(runs, _runs(lines, control, count)) if row != control else None
            cells.append(f"{found[0]:+.1f} ({found[0] - found[1]:+.1f} to {found[0] + found[1]:+.1f})" if found else "")
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


def _rates(lines: list[dict[str, Any]]) -> str:
    """Table of the rows that were fine-tuned at several learning rates, by their first pre-training; "" if none was."""
    found: dict[tuple[str, str, int], dict[float, list[float]]] = {}
    for line in lines:
        if line["seed"] is not None and line["pretrain_seed"] == 0:
            cell = found.setdefault((line["set"], line["row"], line["labels"]), {})
            cell.setdefault(line["rate"], []).append(100 * line["accuracy"])
    rates = sorted({line["rate"] for line in lines if line["rate"] is not None})
    text = [f"| set | row | labels | {' | '.join(f'{rate:g}' for rate in rates)} |"]
    text.append("| --- | --- | ---: |" + " ---: |" * len(rates))
    for (name, row, labels), cell in found.items():
        if len(cell) > 1:
            values = [f"{statistics.fmean(cell[rate]):.1f}" if rate in cell else "not run" for rate in rates]
            text.append(f"| {name} | {row} | {labels} | {' | '.join(values)} |")
    return "\n".join(text) if len(text) > 2 else ""


def _every_run(lines: list[dict[str, Any]]) -> str:
    text = ["| set | row | pre-training | labels | rate | subset | accuracy |", "| --- | --- |" + " ---: |" * 5]
    for line in lines:
        if line["seed"] is None:
            continue
        cells = [line["set"], line["row"], line["pretrain_seed"] if line["row"] != SCRATCH else ""]
        cells += [line["labels"], f"{line['rate']:g}", line["seed"], f"{100 * line['accuracy']:.1f}"]
        text.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(text)
