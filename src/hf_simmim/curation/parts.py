"""Parts of a job over many images, for several machines: tasks of a SLURM array, or of Ray.

The parts share a folder, in which each writes files of its own. The job without a part then finds all of them, and
joins them into what one machine would have written.
"""

import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")


def parse_part(text: str | None) -> tuple[int, int]:
    """Number of a part and of all parts, from a text such as `3/16`.

    Args:
        text: The text; None for everything.

    Returns:
        Both numbers; the first part is 1.

    Raises:
        ValueError: If it is no such text.
    """
    number, _, count = (text or "1/1").partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"part={text!r} must be a number of all, from 1/16 to 16/16 for sixteen parts.")
    return int(number), int(count)


def share_of(items: Sequence[Item], part: str | None) -> Sequence[Item]:
    """The items of a part: every sixteenth of all for one of sixteen, so that each part has some of each folder.

    Args:
        items: All items, in the same order for each part.
        part: The part; None for all items.

    Returns:
        Its items.

    Raises:
        ValueError: If the part is no such text as `3/16`.
    """
    number, count = parse_part(part)
    return items[number - 1 :: count]


def part_name(stem: str, suffix: str, part: str) -> str:
    """Name of a file of a part, such as `facts-003-of-016.jsonl`.

    Args:
        stem: What it begins with.
        suffix: Its suffix.
        part: The part.

    Returns:
        The name.

    Raises:
        ValueError: If the part is no such text as `3/16`.
    """
    number, count = parse_part(part)
    return f"{stem}-{number:03d}-of-{count:03d}{suffix}"


def run_on_ray(task: Callable[[str], Any], address: str, num_gpus: int = 0) -> int:
    """Run all parts of a job by Ray Data, one for each processor core (or GPU) of a cluster, and wait for them.

    Args:
        task: Runs a part, such as `3/16`; it is pickled.
        address: `auto` for the cluster that this machine belongs to, `local` for one that is started here, or the
            address of a cluster.
        num_gpus: GPUs that a part needs, if the cluster has any.

    Returns:
        Number of parts.

    Raises:
        ValueError: If Ray is not installed, there is no such cluster, or a part failed.
    """
    try:
        ray, data = importlib.import_module("ray"), importlib.import_module("ray.data")
    except ImportError as error:
        raise ValueError(
            f'ray={address!r} needs Ray ({error}): pip install "hf-simmim[ray]", on all machines of the cluster.'
        ) from error
    is_own = not ray.is_initialized()
    try:
        if is_own:
            ray.init(address=address, log_to_driver=False, logging_level="warning")
    except Exception as error:  # Ray has many kinds
        raise ValueError(
            f"ray={address!r}: there is no such cluster ({' '.join(str(error).split())[:200]}). Start one with `ray"
            " start --head`, name its address, or use local."
        ) from error
    try:
        # Progress is that of the parts, which a bar of blocks does not tell.
        data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if num_gpus else 0
        count = gpus or int(resources.get("CPU", 1))
        rows = data.from_items([{"part": f"{number}/{count}"} for number in range(1, count + 1)])
        needed: dict[str, Any] = {"num_gpus": num_gpus} if gpus else {"num_cpus": 1}

        def run(row: dict[str, Any]) -> dict[str, Any]:
            try:
                task(row["part"])
            except (ValueError, OSError) as error:
                # Ray would wrap it in tracebacks of its own.
                return {**row, "error": str(error)}
            return {**row, "error": ""}

        failed = [row for row in rows.repartition(count).map(run, **needed).take_all() if row["error"]]
    finally:
        if is_own:
            ray.shutdown()
    if failed:
        raise ValueError(f"Part {failed[0]['part']} failed: {failed[0]['error']}")
    return count
