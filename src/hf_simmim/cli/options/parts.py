"""Options of commands that run in parts on several machines."""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...curation.parts import parse_part, run_on_ray


@dataclass
class PartArguments:
    """A part of the images, or all parts on a cluster."""

    part: str | None = field(
        default=None,
        metadata={
            "help": "Part of the images, such as 3/16 for a task of a SLURM array (all if unset). Run the command"
            " without it at the end: it joins the parts."
        },
    )
    ray: str | None = field(
        default=None,
        metadata={
            "help": "Run all parts by Ray Data: auto for the cluster of this machine, local to start one here, or an"
            " address. All machines must see the same folders."
        },
    )

    def check_part(self) -> None:
        """Raise a ValueError if the part is none, or both options are set."""
        parse_part(self.part)
        if self.part is not None and self.ray is not None:
            raise ValueError(f"part={self.part!r} has no effect with --ray, which runs all parts. Leave one out.")


def run_parts(arguments: PartArguments, run: Callable[[Any], Any], num_gpus: int = 0) -> None:
    """Run all parts of a command on a cluster, if it was asked for.

    Args:
        arguments: Options of the command; its `ray` is unset afterwards, so that the command joins the parts.
        run: Runs the command with a copy of the options that names a part.
        num_gpus: GPUs that a part needs, if the cluster has any.

    Raises:
        ValueError: If there is no such cluster, or a part failed.
    """
    if arguments.ray is None:
        return
    folder, address, arguments.ray = os.getcwd(), arguments.ray, None

    def task(part: str) -> None:
        # Processes of Ray have folders of their own.
        os.chdir(folder)
        own = copy.copy(arguments)
        own.part = part
        if hasattr(own, "workers"):
            own.workers = 1
        run(own)

    count = run_on_ray(task, address, num_gpus)
    print(f"{count} parts were run by Ray.")
