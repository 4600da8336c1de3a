"""What the study has measured so far, on disk: one line for each run, and the settings that all of them share."""

import csv
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

RESULTS = "results.csv"
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Result:
    """One run: a row of the grid with one seed.

    Args:
        row: Name of the row.
        seed: The seed.
        fine_tune: Accuracy of the whole network, trained on a few labels.
        linear_probe: Accuracy of a linear classifier on frozen features.
        knn: Accuracy of k-NN on frozen features.
        avg_dist: AvgDist of the row's masks in pixels; None without pre-training.
        loss: Mean loss at the end of pre-training; None without.
        seconds: Wall time of the run.
    """

    row: str
    seed: int
    fine_tune: float
    linear_probe: float
    knn: float
    avg_dist: float | None
    loss: float | None
    seconds: float


COLUMNS = [*(item.name for item in fields(Result)), "components"]


def append_result(folder: Path, result: Result, components: dict[str, Any]) -> None:
    """Write a finished run down at once.

    Args:
        folder: Of the study.
        result: What was measured.
        components: Of the row, to know it by.
    """
    path = folder / RESULTS
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(COLUMNS)
        values = {key: _rounded(value) for key, value in asdict(result).items()}
        writer.writerow([*values.values(), as_json(components)])
        file.flush()
        os.fsync(file.fileno())


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def as_json(value: Any) -> str:
    """JSON that is the same for equal things."""
    return json.dumps(value, sort_keys=True)


def read_results(folder: Path, components: dict[str, dict[str, Any]] | None = None) -> list[Result]:
    """Read what is finished.

    Args:
        folder: Of the study.
        components: Name of a row to its components as they are now, to compare; not compared if None.

    Returns:
        The results, in the order in which they came. A line that a killed run left half is dropped, also from the file.

    Raises:
        ValueError: If a row of the same name had other components.
    """
    path = folder / RESULTS
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    results = []
    for line in csv.DictReader(whole.splitlines()):
        name = line["row"]
        if components and name in components and line["components"] != as_json(components[name]):
            raise ValueError(
                f"{path} has results of row {name!r} with other components: {line['components']}. Use another --output,"
                " or delete those lines."
            )
        numbers = {key: float(line[key]) if line[key] else None for key in COLUMNS[2:-1]}
        results.append(Result(name, int(line["seed"]), **numbers))  # type: ignore[arg-type]
    return results


def missing_runs(names: Iterable[str], seeds: Iterable[int], results: list[Result]) -> list[tuple[str, int]]:
    """Which (row, seed) are still to be run, seed by seed, so that a killed study has whole seeds."""
    done = {(result.row, result.seed) for result in results}
    names = list(names)
    return [(name, seed) for seed in seeds for name in names if (name, seed) not in done]


def keep_settings(folder: Path, shared: dict[str, Any], about: dict[str, Any]) -> None:
    """Write down what all runs of a folder share, or see that it is what they shared before.

    Args:
        folder: Of the study.
        shared: What must not differ between runs that are compared.
        about: What else the report tells; kept as it was first.

    Raises:
        ValueError: If the folder has results of other settings.
    """
    path = folder / SETTINGS
    if path.exists():
        before = read_settings(folder)["shared"]
        now = json.loads(as_json(shared))
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        if changed:
            lines = "; ".join(f"{key} was {before.get(key)} and is {now.get(key)}" for key in changed)
            raise ValueError(
                f"{folder} has results of other settings, which do not compare: {lines}. Use another --output, or"
                " delete that folder."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(path, {"shared": shared, "about": about})


def read_settings(folder: Path) -> dict[str, Any]:
    """What `keep_settings` wrote: `shared` and `about`.

    Raises:
        ValueError: If there is nothing.
    """
    path = folder / SETTINGS
    if not path.exists():
        raise ValueError(f"{path} is not there. Run the study first, or set --output to a folder with its results.")
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, value: Any) -> None:
    # Under another name until it is whole: a killed run must not take it along.
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    draft.replace(path)
