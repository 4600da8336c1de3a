"""Report of a comparison: what its runs gave, and what follows from it in numbers, words and a picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...visualization.plots import plot_comparison
from .answers import read_answers
from .cost import Cost, cost_sentences, cost_table, total_cost
from .labels_saved import LabelsSaved, labels_saved
from .metric import DecidingMetric, resample_images
from .verdicts import (
    Key,
    Pair,
    Verdict,
    all_pairs,
    by_run,
    by_seed,
    conclusion,
    judge,
    recommend,
    survivors,
    table,
)


@dataclass
class Results:
    """What the runs gave.

    Args:
        scores: Value of the metric by number of labeled images, arm and run: its seed, or with several pre-trainings
            the seeds of both.
        answers: Predictions for the test images by number of labeled images and arm; an arm has fewer than runs if some
            did not keep them.
        labels: Labels of the test images, as the runs kept them.
        costs: Cost by arm and step.
        num_images: Size of the test set.
        choices: What was chosen by cross-validation, by number of labeled images and arm; nothing without a choice.
    """

    scores: dict[int, dict[str, dict[Key, float]]] = field(default_factory=dict)
    answers: dict[int, dict[str, list[np.ndarray]]] = field(default_factory=dict)
    labels: np.ndarray | None = None
    costs: dict[str, dict[str, Cost]] = field(default_factory=dict)
    num_images: int = 0
    choices: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)

    def spend(self, arm: str, step: str, cost: Cost) -> None:
        """Add a cost."""
        steps = self.costs.setdefault(arm, {})
        steps[step] = steps[step] + cost if step in steps else cost

    def keep_answers(self, num_labels: int, arm: str, folder: Path) -> None:
        """Read the answers of a run, which must be for the same test images as those of the others."""
        found = read_answers(folder)
        if found is None or (self.labels is not None and not np.array_equal(self.labels, found[1])):
            return
        self.labels = found[1]
        self.answers.setdefault(num_labels, {}).setdefault(arm, []).append(found[0])

    def resampled(self, num_labels: int, metric: DecidingMetric) -> dict[str, np.ndarray] | None:
        """Results of all arms on test images drawn again; None if an answer is missing."""
        kept, runs = self.answers.get(num_labels, {}), self.scores[num_labels]
        if self.labels is None or any(len(kept.get(arm, ())) < len(runs[arm]) for arm in runs):
            return None
        if metric.name == "average_precision" and any(run.ndim == 1 for part in kept.values() for run in part):
            return None
        return resample_images(metric, kept, self.labels)


@dataclass(frozen=True)
class Report:
    """What follows from the results.

    Args:
        verdicts: Verdict at each label budget, by pair of arms.
        conclusions: Conclusion of each pair, in a sentence.
        labels_saved: Labels that the better arm of each pair saves.
        recommendation: Which arm to use, or that one cannot tell, in a sentence.
        advised: The arm to use for now, with the most labels.
        metric: The metric.
        notes: Sentences on what is compared.
        costs: Total cost by arm.
    """

    verdicts: dict[Pair, list[Verdict]]
    conclusions: list[str]
    labels_saved: list[LabelsSaved]
    recommendation: str
    advised: str
    metric: DecidingMetric
    notes: list[str]
    costs: dict[str, Cost] = field(default_factory=dict)

    @property
    def conclusion(self) -> str:
        """The conclusion; with several pairs the recommendation."""
        return self.conclusions[0] if len(self.verdicts) == 1 else self.recommendation

    @property
    def blocks(self) -> dict[str, list[str]]:
        """Sentences of each pair, by its title: verdicts, conclusion, labels saved, cost."""
        parts = zip(self.verdicts.items(), self.conclusions, self.labels_saved, strict=True)
        return {
            " against ".join(pair).capitalize(): [*map(str, verdicts), text, str(saved), self._cost(pair)]
            for (pair, verdicts), text, saved in parts
        }

    def _cost(self, pair: Pair) -> str:
        """What the gain cost, next to it."""
        first, second = (self.costs.get(arm, Cost()) for arm in pair)
        parts = [f"{first.minutes()} against {second.minutes()}"]
        if first.energy() and second.energy():
            parts.append(f"{first.energy()} against {second.energy()}")
        return f"Cost: {', '.join(parts)}."


def conclude(
    results: Results,
    arms: Sequence[str],
    metric: DecidingMetric,
    refusals: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
) -> Report:
    """Judge all pairs of arms, and say which one to use.

    Args:
        results: Results of the runs.
        arms: The arms.
        metric: The metric that decides.
        refusals: Why no verdict is possible, and what to use instead; see `judge`.
        notes: Sentences on what is compared.

    Returns:
        The report.
    """
    verdicts: list[Verdict] = []
    for budget in sorted(results.scores):
        resampled = results.resampled(budget, metric)
        verdicts += [
            judge(budget, results.scores[budget], results.num_images, pair, metric, resampled, refusals)
            for pair in all_pairs(arms)
        ]
    of_the_most = [verdict for verdict in verdicts if verdict.num_labels == max(results.scores)]
    of_pairs = {pair: [verdict for verdict in verdicts if verdict.pair == pair] for pair in all_pairs(arms)}
    return Report(
        of_pairs,
        [conclusion(of_pair) for of_pair in of_pairs.values()],
        [labels_saved(results.scores, of_pair, metric) for of_pair in of_pairs.values()],
        recommend(arms, verdicts),
        survivors(arms, of_the_most)[0],
        metric,
        list(notes),
        {arm: total_cost(steps) for arm, steps in results.costs.items()},
    )


def write_report(report: Report, results: Results, folder: Path) -> None:
    """Write `comparison.json`, `comparison.md` and `comparison.png`.

    Args:
        report: The report.
        results: Results of the runs.
        folder: Folder to write to.
    """
    metric, scores = report.metric, results.scores
    everything = {
        "conclusion": report.conclusion,
        "recommendation": report.recommendation,
        "metric": metric.name,
        "conclusions": {
            " vs. ".join(pair): text for pair, text in zip(report.verdicts, report.conclusions, strict=True)
        },
        "verdicts": [_as_dict(verdict) for verdicts in report.verdicts.values() for verdict in verdicts],
        "labels_saved": [asdict(saved) | {"text": str(saved)} for saved in report.labels_saved],
        "num_deciding_images": results.num_images,
        "accuracies" if metric.name == "accuracy" else "values": means_by_seed(scores),
        "runs": [
            {"num_labels": budget, "arm": arm, "pretraining": number, "seed": seed, "value": value}
            for budget, arms in scores.items()
            for arm, runs in arms.items()
            for (number, seed), value in by_run(runs).items()
        ],
        "costs": {arm: {step: asdict(cost) for step, cost in steps.items()} for arm, steps in results.costs.items()},
        "notes": report.notes,
    }
    # NaN is not JSON.
    text = json.dumps(everything, indent=2).replace(": NaN", ": null")
    (folder / "comparison.json").write_text(text, encoding="utf-8")
    energy = cost_sentences(results.costs)[len(results.costs) :]
    paragraphs = [report.conclusion, *report.notes, f"Test {metric.title}:", table(scores, metric)]
    for title, block in report.blocks.items():
        paragraphs += [f"## {title}", *block]
    paragraphs += ["## Cost", cost_table(results.costs), *energy, "## Recommendation", report.recommendation]
    (folder / "comparison.md").write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")
    plot_comparison(scores, folder / "comparison.png", report.conclusion, metric.title, metric.is_share)


def _as_dict(verdict: Verdict) -> dict[str, Any]:
    return asdict(verdict) | {"metric": verdict.metric.name, "text": str(verdict)}


def means_by_seed(scores: Mapping[int, Mapping[str, Mapping[Key, float]]]) -> dict[int, dict[str, dict[int, float]]]:
    """Values by number of labels, arm and seed: means over pre-trainings if there are several."""
    return {budget: {arm: by_seed(runs) for arm, runs in arms.items()} for budget, arms in scores.items()}
