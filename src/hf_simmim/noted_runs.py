"""Runs that are made once, however often a script that needs them is started again."""

import json
from pathlib import Path
from typing import Any

FILE_NAME = "done.json"


class NotedRun:
    """A run, and what is noted of it in its folder.

    Args:
        folder: Folder of the run.
        options: Its options, as JSON takes them.
        inputs: What tells its images and weights from others of the same names, as JSON takes it.
    """

    def __init__(self, folder: Path, options: dict[str, Any], inputs: dict[str, Any]):
        self.path = folder / FILE_NAME
        self.beginning = json.loads(json.dumps({"options": options, "inputs": inputs}))

    @property
    def is_begun(self) -> bool:
        """Whether this very run was begun; not one of other options or inputs."""
        return self._noted() is not None

    @property
    def results(self) -> dict[str, Any] | None:
        """What came out, if it is finished."""
        noted = self._noted()
        return None if noted is None else noted["results"]

    def note(self, results: dict[str, Any] | None) -> None:
        """Note that it is begun, with None, or finished; in the first process only."""
        # At once, for the run may be killed.
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({**self.beginning, "results": results}, indent=2), encoding="utf-8")
        part.replace(self.path)

    def _noted(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        noted = json.loads(self.path.read_text(encoding="utf-8"))
        return noted if {**noted, **self.beginning} == noted else None
