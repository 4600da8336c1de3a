"""Runs the search: every run is a line of a file, and a killed search goes on."""

import copy
import json
import math
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

import hf_simmim

from ..ablation.data import ImageData
from ..ablation.settings import Settings, study_settings
from ..ablation.study import device_name
from ..ablation.train import build_model, fine_tune, pretrain, probes
from ..measuring import complete_lines
from .grid import ENCODER, PRETRAININGS, RGB, Pretraining
from .images import load_set

RESULTS = Path(__file__).parents[1] / "results" / "search.jsonl"
# What says whether two lines are of the same run; rate and seed are None in the line of a pre-training.
KEY = ("set", "row", "pretrain_seed", "labels", "rate", "seed")
PROBED = 200
FINE_TUNE_STEPS, FINE_TUNE_BATCH = 200, 25


def read_lines(path: Path = RESULTS) -> list[dict[str, Any]]:
    """Read the finished runs; half a line of a killed search is dropped.

    Args:
        path: File of the runs.

    Returns:
        A dict for each run.
    """
    return [json.loads(line) for line in complete_lines(path)]


def append_line(key: tuple[Any, ...], path: Path, **values: Any) -> None:
    """Append a finished run with the machine and the versions."""
    about = {
        "device": device_name("cpu"),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hf_simmim": hf_simmim.__version__,
    }
    line = dict(zip(KEY, key, strict=True)) | values | {"about": about}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def settings_of(tried: Pretraining, num_images: int) -> Settings:
    """Settings of the ablation study's functions for a pre-training."""
    return replace(
        study_settings("cpu", "vit"),
        image_size=64,
        encoder=tried.encoder,
        batch_size=tried.batch_size,
        pretrain_steps=math.ceil(tried.epochs * num_images / tried.batch_size),
        learning_rate=tried.learning_rate,
        fine_tune_steps=FINE_TUNE_STEPS,
        fine_tune_batch_size=FINE_TUNE_BATCH,
        num_probe_images=PROBED,
    )


def run_search(
    sets: Iterable[str],
    rows: Iterable[str],
    labels: Iterable[int],
    rates: Iterable[float],
    pretrain_seeds: Iterable[int],
    seeds: Iterable[int],
    path: Path = RESULTS,
) -> None:
    """Run what is not finished.

    Args:
        sets: Keys of `images.SETS`.
        rows: Keys of `PRETRAININGS`.
        labels: Numbers of labeled images.
        rates: Learning rates of fine-tuning.
        pretrain_seeds: Seeds of the pre-trainings.
        seeds: Seeds of labeled images, heads and batches.
        path: File of the runs.
    """
    for name in sets:
        data = load_set(name)
        for row in rows:
            tried = PRETRAININGS[row]
            for pretrain_seed in [0] if tried is None else pretrain_seeds:
                wanted = [(count, rate, seed) for count in labels for rate in rates for seed in seeds]
                keys = [(name, row, pretrain_seed, *each) for each in wanted]
                done = {tuple(line[key] for key in KEY) for line in read_lines(path)}
                if missing := [key for key in keys if key not in done]:
                    _run(data, tried, missing, is_new=(name, row, pretrain_seed, 0, None, None) not in done, path=path)


def _run(data: ImageData, tried: Pretraining | None, keys: list[tuple[Any, ...]], is_new: bool, path: Path) -> None:
    """Pre-train, and fine-tune for each key. The weights are not kept: the same seed gives the same ones."""
    name, row, pretrain_seed = keys[0][:3]
    settings = settings_of(tried or replace(RGB, encoder=ENCODER), len(data.images))
    start = time.perf_counter()
    components = (tried or RGB).row
    model = build_model(components, settings, data, pretrain_seed)
    loss = None
    if tried is not None and tried.epochs:
        loss = pretrain(model, components, settings, data, pretrain_seed, torch.float32)
    seconds = round(time.perf_counter() - start, 1)
    linear, neighbors = probes(model, settings, data, 0, torch.float32)
    if is_new:
        append_line(
            (name, row, pretrain_seed, 0, None, None), path, loss=loss, linear_probe=linear, knn=neighbors,
            seconds=seconds, steps=settings.pretrain_steps if tried else 0, tried=asdict(tried) if tried else None,
        )  # fmt: skip
    print(f"{name}, {row}, {pretrain_seed}: probe {100 * linear:.1f} %, {seconds:.0f} s", flush=True)
    for key in keys:
        accuracy, seconds = _fine_tuned(model, settings, data, *key[3:])
        append_line(key, path, accuracy=accuracy, seconds=seconds)
        print(*key, f"{100 * accuracy:.1f} %", flush=True)


def _fine_tuned(
    model: nn.Module, settings: Settings, data: ImageData, count: int, rate: float, seed: int
) -> tuple[float, float]:
    start = time.perf_counter()
    settings = replace(settings, num_labels=count, fine_tune_learning_rate=rate)
    accuracy = fine_tune(copy.deepcopy(model), settings, data, seed, torch.float32)
    return accuracy, round(time.perf_counter() - start, 1)
