"""Report of the study: tables, verdicts and the plot of AvgDist, from the results on the disk."""

import math
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from hf_simmim import SimMIMConfig, SimMIMModel

from .cost import Cost, read_costs
from .data import DATA_SETS
from .grid import TABLES, Row, mask_name, scratch_row, study_tables
from .plot import draw_distances
from .results import SETTINGS, Result, read_results, read_settings
from .settings import NUM_SEEDS, TRIALS, Settings
from .verdicts import MARGIN, Verdict, judge, pooled_noise, scores_of, verdicts

REPORT = "README.md"
PLOT = "avgdist.png"
BASELINES = {"rgb": "RGB, l1", "hog": "HOG, l2"}  # target and loss, in words
METRICS = {"fine_tune": "fine-tuning", "linear_probe": "linear probe", "knn": "k-NN"}


def write_report(folder: Path) -> Path:
    """Write README.md and the plot into the folder of a study.

    Args:
        folder: Folder of results.csv and settings.json.

    Returns:
        The report.

    Raises:
        ValueError: If the folder has no results.
    """
    kept = read_settings(folder)
    shared, about = kept["shared"], kept["about"]
    settings = _settings(shared)
    results = read_results(folder)
    if not results:
        raise ValueError(f"{folder} has no results yet. Run the study first.")
    grid = study_tables(settings, shared["teacher"], shared["codebook"])
    tables = {name: _measured(rows, results) for name, rows in grid.items()}
    tables = {name: rows for name, rows in tables.items() if rows.keys() - {"baseline"}}
    rows = {"scratch": scratch_row(settings)} | {name: row for table in tables.values() for name, row in table.items()}
    rows |= _measured(grid["masking"] | rows, results)
    costs = read_costs(folder)
    parts = [
        "# Ablation study",
        _introduction(settings, shared, results),
        *_other_sizes(folder),
        "## The paper's claims",
        _verdict_table(verdicts(rows, results, settings.image_size)),
        _noise_text(results, rows),
        "## From scratch and the baseline",
        _table({name: rows[name] for name in ("scratch", "baseline") if name in rows}, results),
    ]
    for name, table in tables.items():
        parts += [f"## {TABLES[name]}", *_notes(name, settings)]
        parts.append(_table(table, results, costs if name == "heads" else {}, has_distance=name == "masking"))
        if name == "masking":
            draw_distances(folder / PLOT, table, results, settings.image_size, _metric(shared))
            parts.append(
                f"![accuracy against AvgDist]({PLOT})\n\n*AvgDist is the mean distance of masked pixels from the"
                " nearest visible pixel. Numbers at the points are mask ratios, error bars the standard deviation over"
                " seeds. The gray band is training from scratch; the green band is the paper's moderate range, scaled"
                " to this image size.*"
            )
    parts += ["## Setup", _conditions(settings, shared, about, results)]
    path = folder / REPORT
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _settings(shared: dict[str, Any]) -> Settings:
    return Settings(**{name: shared[name] for name in Settings.__dataclass_fields__ if name in shared})


def _measured(rows: dict[str, Row], results: list[Result]) -> dict[str, Row]:
    names = {result.row for result in results}
    return {name: row for name, row in rows.items() if name in names}


def _metric(shared: dict[str, Any]) -> str:
    return shared.get("metric") or "accuracy"


def _encoder(settings: Settings) -> str:
    """Kind and size of the encoder, in words."""
    with torch.device("meta"):
        config = SimMIMConfig(encoder_config=settings.encoder | {"image_size": settings.image_size})
        parameters = SimMIMModel(config).num_parameters()
    return f"a {settings.encoder['model_type']} encoder of {parameters / 1e6:.2f} M parameters"


def _introduction(settings: Settings, shared: dict[str, Any], results: list[Result]) -> str:
    seen = settings.pretrain_steps * settings.batch_size / shared["images"][0]
    metric = _metric(shared)
    why = "" if metric == "accuracy" else ", the mean over the classes, since the test images are imbalanced"
    return (
        f"The ablation study of section 4.1 of [SimMIM](https://arxiv.org/abs/2111.09886) on a small scale:"
        f" {_encoder(settings)}, {shared['data']} images ({DATA_SETS[shared['data']].title};"
        f" {shared['images'][0]:,} for training, {shared['images'][1]:,} for testing) at {settings.image_size} px,"
        f" {seen:.1f} epochs of pre-training, {_seeds(results, NUM_SEEDS[shared['scale']])}. Each row differs"
        f" from the baseline (random masks of {settings.mask_patch_sizes[1]} px, mask ratio 0.6, linear head,"
        f" {BASELINES[settings.target]} on masked pixels) only in what its name states. Numbers are test {metric} in"
        f" percent{why}, as mean and standard deviation over seeds: of the whole network fine-tuned on"
        f" {settings.num_labels:,} labels, and of a linear probe and k-NN on frozen features with"
        f" {settings.num_probe_images:,} labels."
        f"\n\nSo small a study cannot confirm or refute results on ImageNet. It shows what holds at this scale."
    )


def _seeds(results: list[Result], planned: int) -> str:
    """Number of the seeds, of those that the scale has, and of rows that lack some, in words."""
    seeds = {result.seed for result in results}
    rows = Counter(result.row for result in results)
    text = f"{len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}"
    if len(seeds) < planned:
        text = f"{len(seeds)} of {planned} seeds"
    lacking = sum(count < len(seeds) for count in rows.values())
    return text if not lacking else f"{text} ({lacking} of {len(rows)} rows lack some of them)"


def _other_sizes(folder: Path) -> list[str]:
    """Links to studies in folders inside this one, and to the one around it."""
    links = []
    for path in [*sorted(folder.glob(f"*/{SETTINGS}")), *folder.parent.glob(SETTINGS)]:
        shared = read_settings(path.parent)["shared"]
        place = f"{path.parent.name}/" if path.parent.parent == folder else "../"
        what = f"{_encoder(_settings(shared))}, {shared['image_size']} px, {shared['data']}"
        links.append(f"[{what}]({place}{REPORT})")
    return [f"The study at another size: {', '.join(links)}."] * bool(links)


def _verdict_table(found: list[Verdict]) -> str:
    lines = ["| claim | this run | difference in points, 95 % interval | between |", "| --- | --- | --- | --- |"]
    for verdict in found:
        lines.append(f"| {verdict.claim} | **{verdict.verdict}** | {_difference(verdict)} | {verdict.between} |")
    return "\n".join(lines)


def _difference(verdict: Verdict) -> str:
    """Difference in points with its interval; empty if it is not known."""
    if verdict.difference is None or verdict.half_width is None:
        return ""
    low, high = (verdict.difference + sign * verdict.half_width for sign in (-1, 1))
    return f"{100 * verdict.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _noise_text(results: list[Result], rows: dict[str, Row]) -> str:
    noise = pooled_noise(scores_of(results))
    spread = "is unknown with one seed" if noise.freedom == 0 else f"is {100 * noise.deviation:.1f} points"
    added = {row.target for row in rows.values()} & {"normalized_rgb", "hog"}
    own = " The paper has no normalized RGB and no HOG: they are judged as its other targets." if added else ""
    return (
        "All claims are about fine-tuning, on the seeds that the compared rows share. The noise of a single run, pooled"
        f" over all rows after removing the common effect of the seeds, {spread} ({noise.freedom} degrees of freedom)."
        f" *No worse* and *equal* allow for {100 * MARGIN:.0f} point. Intervals are not corrected for multiple"
        f" comparisons: one in twenty is wrong by chance.{own}"
    )


def _table(
    rows: dict[str, Row], results: list[Result], costs: dict[str, Cost] | None = None, has_distance: bool = False
) -> str:
    costs = costs or {}
    scores = scores_of(results)
    noise = pooled_noise(scores)
    titles = ["row", *(["AvgDist, px"] if has_distance else []), *METRICS.values()]
    titles += ["fine-tuning, baseline minus row", "runs"]
    titles += ["parameters", "step", "peak memory"] if costs else []
    lines = [f"| {' | '.join(titles)} |", f"| --- |{' ---: |' * (len(titles) - 1)}"]
    for name in rows:
        runs = [result for result in results if result.row == name]
        cells = [f"{name}: {mask_name(rows[name])}" if has_distance and name == "baseline" else name]
        if has_distance:
            cells.append(f"{runs[0].avg_dist:.2f}" if runs[0].avg_dist is not None else "")
        cells += [_mean_and_spread([getattr(run, metric) for run in runs]) for metric in METRICS]
        compared = judge("", "better", ["baseline"], [name], scores, noise)
        cells += ["" if name == "baseline" else _difference(compared), str(len(runs))]
        if costs:
            cells += _cost_cells(costs.get(name), costs["baseline"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean_and_spread(values: list[float]) -> str:
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _cost_cells(cost: Cost | None, linear: Cost) -> list[str]:
    if cost is None:
        return [""] * 3
    memory = "not measured"
    if cost.memory is not None and linear.memory:
        memory = f"{cost.memory / linear.memory:.2f}x"
    return [
        f"{cost.parameters / 1e6:.2f} M ({cost.parameters / linear.parameters:.2f}x)",
        f"{cost.step_ratio:.2f}x ({cost.step_ratio_min:.2f} to {cost.step_ratio_max:.2f})",
        memory,
    ]


def _notes(table: str, settings: Settings) -> list[str]:
    if table == "heads":
        return [
            "The inverse Swins are scaled to the encoder: the heavy one starts as wide and as deep as the encoder's"
            " last stage, the light one with 3/4 of the width and half the blocks. They have about 1.0 and 0.3 times"
            " the encoder's parameters, like inverse Swin-B and Swin-T relative to the paper's Swin-B. Costs are"
            " relative to the linear head (the baseline): parameters of encoder and head, time of a training step"
            " (alternating in one process; median, minimum and maximum), and peak memory of building the model and"
            " training it for two steps."
        ]
    if table == "targets":
        baseline = BASELINES[settings.target].replace(", ", " with ")
        return [f"The default loss is cross entropy for classes and l2 for HOG; the baseline is {baseline}."]
    if table == "masking":
        return [f"Ratios are rounded up to whole mask patches: {_rounding(settings)}."]
    if table == "resolution":
        return ["The baseline predicts every pixel; strides are those of the prediction in pixels."]
    return []


def _rounding(settings: Settings) -> str:
    """What rounding does to masks of few patches, in words."""
    parts = []
    for size, ratios in zip(settings.mask_patch_sizes[1:], settings.random_ratios[1:], strict=True):
        patches = (settings.image_size // size) ** 2
        masked = ", ".join(f"{math.ceil(ratio * patches)}" for ratio in ratios)
        shares = ", ".join(f"{ratio:g}" for ratio in ratios)
        parts.append(f"{shares} of {patches} patches of {size} px {'is' if len(ratios) == 1 else 'are'} {masked}")
    return "; ".join(parts)


def _conditions(settings: Settings, shared: dict[str, Any], about: dict[str, Any], results: list[Result]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in shared["versions"].items())
    seconds = [run.seconds for run in results]
    processes = f"{about['workers']} {'process' if about['workers'] == 1 else 'processes'}"
    encoder = ", ".join(f"{key} {value}" for key, value in settings.encoder.items())
    lines = [
        ("command", f"`{about['command']}`"),
        ("device", f"{shared['device']} ({about['system']}), {processes}"),
        ("dtype", f"{shared['dtype']}{'' if shared['dtype'] == 'float32' else ' autocast'}"),
        ("versions", f"{versions}, Python {about['python']}"),
        (
            "time",
            f"{len(results)} runs, median {statistics.median(seconds):.0f} s, in total"
            f" {sum(seconds) / about['workers'] / 60:.0f} minutes on {processes}",
        ),
        ("data", f"{DATA_SETS[shared['data']].title}; random crops of 67 to 100 % of the area, flips"),
        ("encoder", encoder),
        (
            "pre-training",
            f"AdamW, {settings.pretrain_steps:,} steps, batch size {settings.batch_size}, peak learning rate"
            f" {settings.learning_rate:g}, cosine after 10 % warm-up, weight decay 0.05, gradients clipped at norm 5",
        ),
        (
            "fine-tuning",
            f"the same with {settings.fine_tune_steps:,} steps, batch size {settings.fine_tune_batch_size}, peak"
            f" learning rate {settings.fine_tune_learning_rate:g}; a linear layer on the mean of the tokens",
        ),
        (
            "settings",
            f"tuned on the baseline and from scratch only, not on other rows{TRIALS.get(shared['scale'], '')}",
        ),
    ]
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in lines)])
