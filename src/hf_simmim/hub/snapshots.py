"""What of a run goes to the Hub, kept as it is while training goes on to write and delete files."""

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

# What belongs into a repository: files of the model, as checkpoints have them too, and files of the run. Others in
# output_dir may be private, as the names of unreadable images are, or nothing of ours.
MODEL_FILES = ("*.json", "model*.safetensors", "*.py", "training_args.bin")
RUN_FILES = ("README.md", "*.png", "run.json", "runs/**/*tfevents*")
# Drawn at the end, so that what lies there in mid-training is of an earlier end.
FINAL_PICTURES = ("confusion.png", "segmentation.png")
# Written once, so they can be read where they are.
FINISHED_FILES = ("reconstructions/*.png",)
WEIGHT_FILES = ("model*.safetensors", "model*.safetensors.index.json")
# Trainer's own pushes leave out what begins with an underscore.
SNAPSHOT_PREFIX = "_push-"


def matching(folder: Path, patterns: Iterable[str]) -> dict[str, Path]:
    """Files of a folder by their path in it, with slashes."""
    paths = (path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether a path is that of a file at the top, and of one of the patterns."""
    return "/" not in name and any(fnmatch(name, pattern) for pattern in patterns)


class Snapshot:
    """Files of a checkpoint as they are now, in a folder that is deleted when no push needs it any more.

    Args:
        checkpoint: The checkpoint. Its files are linked, which takes no time or space, or copied where the disk cannot
            link.
        patterns: Which of its files; all, those of its folders too, if None.

    Raises:
        OSError: If the disk is full.
    """

    def __init__(self, checkpoint: Path, patterns: Iterable[str] | None = None):
        self.checkpoint = checkpoint
        # Beside the checkpoint, for links do not reach other disks.
        self.folder = Path(tempfile.mkdtemp(prefix=SNAPSHOT_PREFIX, dir=checkpoint.parent))
        weakref.finalize(self, _remove, self.folder, os.getpid())
        sources = matching(checkpoint, ("**/*",) if patterns is None else patterns)
        self.files = {name: self._take(path, f"checkpoint/{name}", link_or_copy) for name, path in sources.items()}

    def copy(self, sources: dict[str, Path]) -> dict[str, Path]:
        """Copies of files that training goes on to write, by the same names."""
        return {name: self._take(path, f"run/{name}", shutil.copyfile) for name, path in sources.items()}

    def _take(self, source: Path, name: str, take: Callable[[Path, Path], object]) -> Path:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        take(source, target)
        return target


def _remove(folder: Path, process: int) -> None:
    # A process that was forked meanwhile has the snapshot, too, and is not to delete it.
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name of a file, or a copy where the disk has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@dataclass(eq=False)
class Push:
    """A commit to make.

    Args:
        message: Of the commit.
        files: File on disk for each path in the repository.
        checkpoints: For folders in the repository, the checkpoint that each is to hold, to go on training from.
        snapshot: Where `files` are, if they are not where training writes.
        revision: Branch; main if None.
        is_last: Whether no newer push will stand for it.
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
        """What is to be pushed in mid-training.

        Args:
            checkpoint: A checkpoint in the folder of the run, just saved.
            message: Of the commit.
            folder: Folder in the repository for all of the checkpoint, the optimizer's state too; None for none.
            **kwargs: Other fields.

        Returns:
            The push. Where the checkpoint has no weights in files of their own, as sharded ones have not, there is no
            model to be pushed, and `files` are empty.

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
        """What is to be pushed at the end, read where it is: all of a run's folder that belongs into a repository."""
        files = matching(output_dir, (*MODEL_FILES, *RUN_FILES, *FINISHED_FILES))
        return cls(message, files, is_last=True, **kwargs)  # type: ignore[arg-type]

    def paths(self) -> dict[str, Path]:
        """Every file of the commit."""
        paths = dict(self.files)
        for folder, snapshot in self.checkpoints.items():
            paths |= {f"{folder}/{name}": path for name, path in snapshot.files.items()}
        return paths

    def obsolete(self, names: Iterable[str]) -> list[str]:
        """Files of a repository that would no longer be true.

        They are weights in other shards, figures and pictures of other weights, and files of an older checkpoint.
        """
        paths = self.paths()
        # The Hub may have refused the card, and an older one is better than none.
        results = (*WEIGHT_FILES, *(name for name in RESULTS if name != "README.md"))
        has_weights = any(fits(name, WEIGHT_FILES) for name in paths)
        return [
            name
            for name in names
            if name not in paths and ((has_weights and fits(name, results)) or name.split("/")[0] in self.checkpoints)
        ]

    def supersede(self, older: "Push") -> None:
        """Take over an older push: its checkpoints, but those that the run has deleted or that this one has newer."""
        kept = {folder: snapshot for folder, snapshot in older.checkpoints.items() if snapshot.checkpoint.exists()}
        self.checkpoints = kept | self.checkpoints
        older.finish(None)

    def finish(self, commit: CommitInfo | None) -> None:
        """Say what became of it, and let its snapshots go."""
        self.files, self.checkpoints, self.snapshot = {}, {}, None
        self.result.set_result(commit)


# What a run writes into its folder beside checkpoints, and another one in its place need not overwrite.
RESULTS = (
    *("reconstruction.png", "loss_curve.png", "probe.png", "confusion.png", "segmentation.png", "README.md"),
    *("all_results.json", "eval_results.json", "train_results.json", "results.json", "unreadable_images.txt"),
)
