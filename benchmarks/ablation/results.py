"""Results of the study on the disk: one line for each run, and the settings that all runs share."""

import csv
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..measuring import complete_lines

RESULTS = "results.csv"
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Result:
    """One run: a row of the grid with one seed.

    Args:
        row: Name of the row.
        seed: The seed.
        fine_tune: Accuracy of the whole network, fine-tuned on few labels.
        linear_probe: Accuracy of a linear classifier on frozen features.
        knn: Accuracy of k-NN on frozen features.
        avg_dist: AvgDist of the row's masks in pixels; None without pre-training.
        loss: Mean loss at the end of pre-training; None without pre-training.
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
    """Append a finished run.

    Args:
        folder: Folder of the study.
        result: Result of the run.
        components: Components of its row.
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
    """JSON text that is the same for equal values."""
    return json.dumps(value, sort_keys=True)


def read_results(folder: Path, components: dict[str, dict[str, Any]] | None = None) -> list[Result]:
    """Read the finished runs.

    Args:
        folder: Folder of the study.
        components: Current components by name of the row, to compare with; not compared if None.

    Returns:
        The results, in order. An incomplete line of a killed run is dropped, also from the file.

    Raises:
        ValueError: If a row of the same name had other components.
    """
    path = folder / RESULTS
    results = []
    for line in csv.DictReader(complete_lines(path)):
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
    """Pairs (row, seed) to run, seed by seed, so that a killed study has complete seeds."""
    done = {(result.row, result.seed) for result in results}
    names = list(names)
    return [(name, seed) for seed in seeds for name in names if (name, seed) not in done]


def keep_settings(folder: Path, shared: dict[str, Any], about: dict[str, Any]) -> None:
    """Write the settings that all runs of a folder share, or check that they are the same as before.

    Args:
        folder: Folder of the study.
        shared: Settings that must not differ between compared runs.
        about: Other facts for the report; those of the first call are kept.

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
                f"{folder} has results of other settings, which are not comparable: {lines}. Use another --output, or"
                " delete that folder."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(path, {"shared": shared, "about": about})


def read_settings(folder: Path) -> dict[str, Any]:
    """Read `shared` and `about`, which `keep_settings` wrote.

    Raises:
        ValueError: If there are none.
    """
    path = folder / SETTINGS
    if not path.exists():
        raise ValueError(f"{path} does not exist. Run the study first, or set --output to a folder with its results.")
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, value: Any) -> None:
    # Under another name until it is complete: a killed run must not leave half of it.
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    draft.replace(path)
