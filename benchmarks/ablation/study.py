"""The paper's ablation study on a small scale: are its simple choices no worse than complex ones?

    python -m benchmarks.ablation                                  # reduced grid on two CPU cores
    python -m benchmarks.ablation --scale small                    # larger encoder, the rows that matter most
    python -m benchmarks.ablation --scale textures                 # few images at 64 px, where gradients are the target
    python -m benchmarks.ablation --scale gpu --data clipart       # larger encoder, 64 px, 12,000 steps of 512 images
    python -m benchmarks.ablation --tables heads --seeds 0 --output runs/heads
    python -m benchmarks.ablation --report_only                    # writes the report again

Every row of components is pre-trained on images without labels and then evaluated in the same way: by a short
fine-tuning on few labels, and by a linear probe and k-NN on frozen features. Finished runs are saved at once, and an
interrupted study resumes automatically. The report is README.md in the output folder.
"""

import argparse
import multiprocessing
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

import hf_simmim
from hf_simmim.training.acceleration import keep_freed_memory

from .cost import COSTS, measure_heads, write_costs
from .data import DATA_SETS, ImageData, default_data_set, load_images
from .grid import TABLES, Row, scratch_row, select_rows, study_tables
from .report import write_report
from .results import (
    SETTINGS,
    Result,
    append_result,
    keep_settings,
    missing_runs,
    read_results,
    read_settings,
)
from .settings import ENCODERS, NUM_SEEDS, Settings, study_settings
from .train import build_model, faster_dtype, row_distance, run_row

OUTPUT = Path(__file__).parents[2] / "docs" / "ablation"
DEFAULT_OUTPUT = "docs/ablation, of other scales than cpu in a folder of their name there"
# Data set of a scale, where it is not the largest one that is there.
DATA = {"small": "fashion", "textures": "textures-color"}
_worker: dict[str, Any] = {}


def check_rows(rows: dict[str, Row], settings: Settings, data: ImageData) -> None:
    """Build every row once, before hours are spent on the others.

    Raises:
        ValueError: If a row cannot be built; the message says which rows and why.
    """
    problems = []
    for name, row in rows.items():
        try:
            model = build_model(row, settings, data, seed=0)
            if row.is_pretrained:
                row_distance(row, model.config)
        except Exception as error:  # of any type, to report the problems of all rows at once
            problems.append(f"  {name}: {type(error).__name__}: {str(error).splitlines()[-1]}")
    if problems:
        raise ValueError(
            f"hf_simmim {hf_simmim.__version__} cannot build {len(problems)} of {len(rows)} rows. Leave them out with"
            " --tables or --rows, or install a version that can:\n" + "\n".join(problems)
        )


def run_study(
    rows: dict[str, Row],
    seeds: list[int],
    settings: Settings,
    data: ImageData,
    dtype: torch.dtype,
    output: Path,
    workers: int = 1,
    device: str = "cpu",
) -> list[Result]:
    """Run the rows and seeds that are not finished.

    Args:
        rows: Rows by name.
        seeds: Seeds of each row.
        settings: Settings of all rows.
        data: The images, on the CPU.
        dtype: float32, or another dtype for autocast.
        output: Folder of the results.
        workers: Number of processes, each with one CPU thread. With one, runs are made in this process.
        device: `"cpu"` or `"cuda"`.

    Returns:
        All results of the folder.
    """
    components = {name: asdict(row) for name, row in rows.items()}
    finished = read_results(output, components)
    waiting = missing_runs(rows, seeds, finished)
    total = len(rows) * len(seeds)
    print(f"{total} runs, {total - len(waiting)} finished before", flush=True)
    tasks = [(name, rows[name], seed) for name, seed in waiting]
    start = time.perf_counter()
    for count, result in enumerate(_results(tasks, settings, data, dtype, workers, device), start=1):
        append_result(output, result, components[result.row])
        left = (time.perf_counter() - start) / count * (len(tasks) - count)
        print(
            f"[{total - len(tasks) + count}/{total}] {result.row}, seed {result.seed}: fine-tuning"
            f" {result.fine_tune:.3f}, probe {result.linear_probe:.3f}, k-NN {result.knn:.3f}, {result.seconds:.0f} s;"
            f" about {left / 60:.0f} min left",
            flush=True,
        )
    return read_results(output)


def _results(
    tasks: list[tuple[str, Row, int]],
    settings: Settings,
    data: ImageData,
    dtype: torch.dtype,
    workers: int,
    device: str,
) -> Iterator[Result]:
    """Yield results as they are finished; an error in one run ends all."""
    state = (settings, data, dtype, device)
    if workers == 1:
        _start_worker(*state, num_threads=None)
        for task in tasks:
            yield _run(*task)
        return
    # Not by fork: a process with threads, such as torch's, must not be forked.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(*state, 1)
    )
    try:
        for future in as_completed([pool.submit(_run, *task) for task in tasks]):
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(
    settings: Settings, data: ImageData, dtype: torch.dtype, device: str, num_threads: int | None
) -> None:
    if num_threads is not None and device == "cpu":
        torch.set_num_threads(num_threads)
    if device == "cpu":
        keep_freed_memory()
    _worker.update(settings=settings, data=data.to(device), dtype=dtype)


def _run(name: str, row: Row, seed: int) -> Result:
    return run_row(name, row, seed, **_worker)


def device_name(device: str) -> str:
    """Name of the CPU or GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--scale", choices=ENCODERS, default="gpu" if has_gpu else "cpu", help="size of the study")
    parser.add_argument("--encoder", choices=["vit", "swin"], help="default: vit")
    parser.add_argument("--data", choices=DATA_SETS, help="data set (default: a fetched one, or else embedded)")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="tables (default: all)")
    parser.add_argument("--rows", nargs="+", help="names of rows besides baseline and scratch; --list shows them")
    parser.add_argument("--seeds", nargs="+", type=int, help="random seeds (default: those of the scale)")
    parser.add_argument("--teacher", help="model whose features are an additional target")
    parser.add_argument("--codebook", help="image tokenizer whose tokens are an additional target")
    parser.add_argument("--workers", type=int, default=1 if has_gpu else 2, help="processes (default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if has_gpu else "cpu")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="auto: the faster one")
    parser.add_argument("--output", type=Path, help=f"folder of the results (default: {DEFAULT_OUTPUT})")
    parser.add_argument("--report_only", action="store_true", help="write the report from earlier results")
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    args = parser.parse_args(arguments)
    args.seeds = args.seeds or list(range(NUM_SEEDS[args.scale]))
    args.encoder = args.encoder or next(iter(ENCODERS[args.scale]))
    args.output = args.output or (OUTPUT if args.scale == "cpu" else OUTPUT / args.scale)
    return args


def main(arguments: list[str] | None = None, make_settings: Callable[[str, str], Settings] = study_settings) -> None:
    """Run the study and write its report.

    Args:
        arguments: Command line; that of the process if None.
        make_settings: Function from scale and encoder to the settings.
    """
    args = parse_args(arguments)
    if args.report_only:
        print(f"written: {write_report(args.output)}")
        return
    settings = make_settings(args.scale, args.encoder)
    grid = study_tables(settings, args.teacher, args.codebook)
    tables = {name: grid[name] for name in TABLES if name in args.tables}
    wanted = args.rows
    if wanted is None and settings.rows is not None:
        wanted = [name for name in settings.rows if any(name in table for table in tables.values())]
    rows = select_rows(tables, wanted, scratch_row(settings))
    if args.list:
        print("\n".join(rows))
        return
    name = args.data or DATA.get(args.scale) or default_data_set()
    data = load_images(name, settings.image_size, settings.num_images, settings.num_test_images)
    check_rows(rows, settings, data)
    if args.dtype == "auto" and (args.output / SETTINGS).exists():
        args.dtype = read_settings(args.output)["shared"]["dtype"]
    elif args.dtype == "auto":
        args.dtype = faster_dtype(settings, data.to(args.device))
    shared = asdict(settings) | {
        "scale": args.scale,
        "data": name,
        "images": [len(data.images), len(data.test_images)],
        "teacher": args.teacher,
        "codebook": args.codebook,
        # None for accuracy, as in folders of studies that knew no other one.
        "metric": None if data.metric == "accuracy" else data.metric,
        "device": device_name(args.device),
        "dtype": args.dtype,
        "versions": {
            "hf_simmim": hf_simmim.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    about = {
        "command": shlex.join(
            ["python", "-m", "benchmarks.ablation", *(sys.argv[1:] if arguments is None else arguments)]
        ),
        "workers": args.workers,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    keep_settings(args.output, shared, about)
    heads = {name: row for name, row in rows.items() if name in grid["heads"]}
    if len(heads) > 1 and not (args.output / COSTS).exists():
        print("measuring the cost of the heads", flush=True)
        write_costs(args.output, measure_heads(heads, settings, data, getattr(torch, args.dtype), args.device))
    run_study(rows, args.seeds, settings, data, getattr(torch, args.dtype), args.output, args.workers, args.device)
    print(f"written: {write_report(args.output)}")
