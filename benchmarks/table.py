"""Writes the tables of speed in README.md and docs/measured.md from the newest results in benchmarks/results.

python -m benchmarks.table
"""

import json
from pathlib import Path
from typing import Any

from .marked_page import write_part

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
NAMES = {"swin-tiny": "Swin-T", "swin-base": "Swin-B", "vit-base": "ViT-B", "swinv2-tiny": "SwinV2-T"}


def newest(name: str, *keys: str) -> list[dict[str, Any]]:
    """The newest result of each combination of settings.

    Args:
        name: Name of the benchmark.
        *keys: The settings that tell results apart.

    Returns:
        The results, in the order of their first appearance.
    """
    path = RESULTS / f"{name}.jsonl"
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        result = json.loads(line)
        found[tuple(result[key] for key in keys)] = result
    return list(found.values())


def machine_of(result: dict[str, Any]) -> str:
    """What a table says of the machine and versions."""
    return f"{result['device']}, torch {result['torch']}, transformers {result['transformers']}"


def steps() -> list[str]:
    """Training steps: ours against each other implementation, and peak memory."""
    lines = [
        "| encoder, batch, dtype, threads | against | ours is faster by (min to max) | peak memory, MiB |"
        " of it tensors | machine |"
    ]
    lines.append("| --- | --- | ---: | ---: | ---: | --- |")
    for result in newest("step", "encoder", "batch_size", "dtype", "device", "threads"):
        title = f"{result['encoder']}, {result['batch_size']}, {result['dtype']}, {result['threads']}"
        for mode, row in result["modes"].items():
            if mode == "ours":
                continue
            spread = row["to_ours"]
            best = " (best)" if mode == result["best_peer"] else ""
            own, other = (entry.get("tensor_mib") for entry in (result["modes"]["ours"], row))
            tensors = f"{own} against {other}" if own and other else ""
            lines.append(
                f"| {title} | {mode}{best} | {spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f}) |"
                f" {result['modes']['ours']['mib']} against {row['mib']} | {tensors} | {machine_of(result)} |"
            )
    return lines


def profiles() -> list[str]:
    """Where the time of a step goes."""
    lines = [
        "| step | ms | share of it that the sum of limits is | products | attention | norms and activations | rest |"
    ]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for result in newest("step_profile", "mode", "encoder", "batch_size", "dtype", "device"):
        parts = {name: part["ms"] for name, part in result["parts"].items()}
        total = sum(parts.values())
        shown = {
            "products": parts["products of tokens and weights"],
            "attention": parts["products of attention"] + parts.get("softmax", 0),
            "norms": parts["norms and activations"],
        }
        cells = [*shown.values(), total - sum(shown.values())]
        lines.append(
            f"| {result['mode']}, {result['encoder']}, batch {result['batch_size']}, {result['dtype']} |"
            f" {result['step_ms']:.0f} | {result['share_of_limits']:.0%} |"
            f" {' | '.join(f'{value / total:.0%}' for value in cells)} |"
        )
    return lines


def scaling() -> list[str]:
    """Processes against threads."""
    return [
        f"Two processes of one thread are {result['processes_to_threads']['median']:.2f} times as fast as one of two"
        f" threads ({result['processes_to_threads']['min']:.2f} to {result['processes_to_threads']['max']:.2f};"
        f" {result['encoder']}, batch {result['batch_size']}; {machine_of(result)})."
        for result in newest("scaling", "encoder", "batch_size", "device")
    ]


def trainings() -> list[str]:
    """Whole trainings against the way of run_mim.py."""
    lines = ["| training, batch, dtype | photos | images/s, ours and run_mim | times as fast (min to max) | machine |"]
    lines.append("| --- | --- | ---: | ---: | --- |")
    for result in newest("end_to_end", "encoder", "image_size", "batch_size", "bf16", "photos", "device"):
        row, dtype = result["images_per_second"]["steps"], "bfloat16" if result["bf16"] else "float32"
        spread = row["ratio"]
        lines.append(
            f"| {result['encoder']}, {result['batch_size']}, {dtype} | {result['photos']} |"
            f" {row['ours']:.1f}, {row['run_mim']:.1f} | {spread['median']:.2f} ({spread['min']:.2f} to"
            f" {spread['max']:.2f}) | {machine_of(result)} |"
        )
    return lines


def imports() -> list[str]:
    """Time of the import."""
    lines = []
    for result in newest("import_time", "device"):
        seconds, over = result["seconds"], result["over"]
        lines.append(
            f"`import hf_simmim` takes {seconds['hf_simmim']:.2f} s, `import transformers`"
            f" {seconds['transformers']:.2f} s: neither imports torch as long as no class is asked for. Our models take"
            f" {seconds['models of hf_simmim']:.2f} s, {over['classes of transformers']:+.2f} s against the classes of"
            " transformers that they derive from and are registered with."
        )
    return lines


def page() -> str:
    """What stands in docs/measured.md between its marks."""
    parts = [steps(), profiles(), trainings(), scaling(), imports()]
    return "\n" + "\n\n".join("\n".join(part) for part in parts if part) + "\n\n"


def summary() -> str:
    """What stands in README.md between its marks: ours against the best mode of transformers."""
    dtypes = ("float32", "bfloat16")
    found: dict[str, dict[str, str]] = {}
    for result in newest("step", "encoder", "dtype"):
        modes = {mode: row for mode, row in result["modes"].items() if mode.startswith("transformers")}
        spread = min(modes.values(), key=lambda row: row["seconds"])["to_ours"]
        cell = f"{spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f})"
        found.setdefault(f"{NAMES[result['encoder']]}, batch {result['batch_size']}", {})[result["dtype"]] = cell
    lines = ["| training step, times the speed of transformers' best mode | float32 | bfloat16 |"]
    lines.append("| --- | ---: | ---: |")
    lines += [f"| {name} | {' | '.join(cells.get(dtype, '') for dtype in dtypes)} |" for name, cells in found.items()]
    return "\n".join(lines) + "\n"


TABLES = {ROOT / "README.md": summary, ROOT / "docs" / "measured.md": page}


def main() -> None:
    for path, make in TABLES.items():
        write_part(path, Path(__file__).name, make())


if __name__ == "__main__":
    main()
