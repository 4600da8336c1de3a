"""Snapshots of a run for the Hub, unchanged while training continues to write and delete files."""

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitInfo

# Files that belong in a repository: those of the model, which checkpoints have too, and those of the run. Other files
# in output_dir may be private, such as the names of unreadable images and the event files of TensorBoard, which name
# the machine and all paths, or unrelated to the run.
MODEL_FILES = ("*.json", "model*.safetensors", "*.py", "training_args.bin")
RUN_FILES = ("README.md", "*.png", "run.json")
# Drawn at the end of training; until then these files are from an earlier run.
FINAL_PICTURES = ("confusion.png", "segmentation.png")
# Written once and never changed, so they need no copy.
FINISHED_FILES = ("reconstructions/*.png",)
WEIGHT_FILES = ("model*.safetensors", "model*.safetensors.index.json")
# Trainer's own pushes ignore names that begin with an underscore.
SNAPSHOT_PREFIX = "_push-"


def matching(folder: Path, patterns: Iterable[str]) -> dict[str, Path]:
    """Files of a folder that match a pattern, by relative path with forward slashes."""
    paths = (path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether a relative path is at the top level and matches a pattern."""
    return "/" not in name and any(fnmatch(name, pattern) for pattern in patterns)


class Snapshot:
    """Copy of a checkpoint in a temporary folder, which is deleted when no push needs it any more.

    Args:
        checkpoint: Folder of the checkpoint. Its files are hard-linked, which takes no time or space, or copied where
            the disk does not support links.
        patterns: Patterns of the files to include; None for all files, also those in subfolders.

    Raises:
        OSError: If the disk is full.
    """

    def __init__(self, checkpoint: Path, patterns: Iterable[str] | None = None):
        self.checkpoint = checkpoint
        # Beside the checkpoint: hard links cannot cross disks.
        self.folder = Path(tempfile.mkdtemp(prefix=SNAPSHOT_PREFIX, dir=checkpoint.parent))
        weakref.finalize(self, _remove, self.folder, os.getpid())
        sources = matching(checkpoint, ("**/*",) if patterns is None else patterns)
        self.files = {name: self._take(path, f"checkpoint/{name}", link_or_copy) for name, path in sources.items()}

    def copy(self, sources: dict[str, Path]) -> dict[str, Path]:
        """Copy files that training will overwrite; returns the copies by the same names."""
        return {name: self._take(path, f"run/{name}", shutil.copyfile) for name, path in sources.items()}

    def _take(self, source: Path, name: str, take: Callable[[Path, Path], object]) -> Path:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        take(source, target)
        return target


def _remove(folder: Path, process: int) -> None:
    # A process that was forked meanwhile has the snapshot too, and must not delete it.
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where the disk does not support links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@dataclass(eq=False)
class Push:
    """A commit to push.

    Args:
        message: Commit message.
        files: File on the disk for each path in the repository.
        checkpoints: Snapshots of complete checkpoints to resume from, by folder in the repository.
        snapshot: Keeps `files`, unless they are read in place.
        revision: Branch; main if None.
        is_last: Whether this is the final push of a run, which no newer one replaces.
    """

    message: str
    files: dict[str, Path]
    checkpoints: dict[str, Snapshot] = field(default_factory=dict)
    snapshot: Snapshot | None = None
    revision: str | None = None
    is_last: bool = False
    result: "Future[CommitInfo | None]" = field(default_factory=Future)

    @classmethod
    def of_checkpoint(cls, checkpoint: Path, message: str, folder: str | None = None, **kwargs: str | None) -> "Push":
        """Prepare a push during training.

        Args:
            checkpoint: A checkpoint in the folder of the run that was just saved.
            message: Commit message.
            folder: Folder in the repository for the complete checkpoint with the optimizer's state; None to push the
                model only.
            **kwargs: Other fields of the class.

        Returns:
            The push. Its `files` are empty if the checkpoint has no weights in separate files, as sharded ones do not.

        Raises:
            OSError: If the disk is full.
        """
        snapshot = Snapshot(checkpoint, MODEL_FILES if folder is None else None)
        files = {name: path for name, path in snapshot.files.items() if fits(name, MODEL_FILES)}
        if any(fits(name, WEIGHT_FILES) for name in files):
            run = checkpoint.parent
            now = {name: path for name, path in matching(run, RUN_FILES).items() if name not in FINAL_PICTURES}
            files |= snapshot.copy(now) | matching(run, FINISHED_FILES)
        else:
            files = {}
        checkpoints = {} if folder is None else {folder: snapshot}
        return cls(message, files, checkpoints, snapshot, **kwargs)  # type: ignore[arg-type]

    @classmethod
    def of_run(cls, output_dir: Path, message: str, **kwargs: str | None) -> "Push":
        """Prepare the final push: all files of a run that belong in a repository, read in place."""
        files = matching(output_dir, (*MODEL_FILES, *RUN_FILES, *FINISHED_FILES))
        return cls(message, files, is_last=True, **kwargs)  # type: ignore[arg-type]

    def paths(self) -> dict[str, Path]:
        """All files of the commit by path in the repository."""
        paths = dict(self.files)
        for folder, snapshot in self.checkpoints.items():
            paths |= {f"{folder}/{name}": path for name, path in snapshot.files.items()}
        return paths

    def obsolete(self, names: Iterable[str]) -> list[str]:
        """Files of a repository that this push makes outdated.

        These are weights in other shards, metrics and pictures of other weights, and files of an older checkpoint.
        """
        paths = self.paths()
        # The Hub may have rejected the card, and an older one is better than none.
        results = (*WEIGHT_FILES, *(name for name in RESULTS if name != "README.md"))
        has_weights = any(fits(name, WEIGHT_FILES) for name in paths)
        return [
            name
            for name in names
            if name not in paths and ((has_weights and fits(name, results)) or name.split("/")[0] in self.checkpoints)
        ]

    def supersede(self, older: "Push") -> None:
        """Replace an older push; keep its checkpoints unless the run deleted them or this push has newer ones."""
        kept = {folder: snapshot for folder, snapshot in older.checkpoints.items() if snapshot.checkpoint.exists()}
        self.checkpoints = kept | self.checkpoints
        older.finish(None)

    def finish(self, commit: CommitInfo | None) -> None:
        """Set the result and release the snapshots."""
        self.files, self.checkpoints, self.snapshot = {}, {}, None
        self.result.set_result(commit)


# Results that a run writes into its folder, which a later run there might not overwrite.
RESULTS = (
    *("reconstruction.png", "loss_curve.png", "probe.png", "confusion.png", "segmentation.png", "README.md"),
    *("spectrum.png", "spectrum.json"),
    *("all_results.json", "eval_results.json", "train_results.json", "results.json", "unreadable_images.txt"),
)
