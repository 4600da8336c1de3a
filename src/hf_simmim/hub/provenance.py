"""Provenance of a run's images, weights and code, safe to publish: names without paths or secrets."""

import dataclasses
import re
import shlex
import subprocess
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..data.sources import EMBEDDED_NAME, shown_url

# An absolute path in a longer text such as JSON: it starts with a slash or drive that is not part of a word or URL.
ABSOLUTE_PATH = re.compile(r"""(?<![\w.:/\\~])(?:~|[A-Za-z]:)?[\\/](?:[^\s"'\\/]+[\\/]+)*([^\s"'\\/]*)""")
# Options whose value is secret.
SECRET_OPTION = re.compile(r"--[\w-]*(token|password|secret|api[_-]key)(=|$)", re.IGNORECASE)
SECRET_VALUE = re.compile(r"\bhf_\w{8,}")

# What images that are no named data set are called.
LOCAL_KINDS = {"imagefolder": "folder", "parquet": "files", "webdataset": "files"}


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """Source of a set of images.

    Args:
        name: Name of the data set, folder or file, without its path.
        kind: Its loader: "imagefolder", "parquet", "webdataset", or "custom" for a data set on the disk.
        hub_id: Name of the data set on the Hub, if it is there.
        config: Configuration of the data set.
        split: Split of the data set.
    """

    name: str
    kind: str = "custom"
    hub_id: str | None = None
    config: str | None = None
    split: str | None = None

    def __str__(self) -> str:
        link = f"[{self.name}](https://huggingface.co/datasets/{self.hub_id})" if self.hub_id else self.name
        if not self.hub_id and self.kind in LOCAL_KINDS:
            # The name of a folder is none of a data set.
            link = f"{LOCAL_KINDS[self.kind]} `{self.name}`"
        return ", ".join(
            [link, *([self.config] if self.config else []), *([f"split {self.split}"] if self.split else [])]
        )


@dataclasses.dataclass(frozen=True)
class RunOrigin:
    """Provenance of a run, which its trainer does not know.

    Args:
        images: Source of the training images.
        held_out: Where the validation images come from, in words.
        evaluation: Source of the labeled images behind the evaluation results in the card's metadata.
        checkpoint: Name of the checkpoint that the run started from, without its path.
        base_model: Name of that checkpoint on the Hub, if it is there.
        command: The command line, without paths and secrets.
    """

    images: ImageSource | None = None
    held_out: str | None = None
    evaluation: ImageSource | None = None
    checkpoint: str | None = None
    base_model: str | None = None
    command: str | None = None

    @classmethod
    def from_options(
        cls,
        data: Any,
        checkpoint: str | None,
        command: str | None,
        held_out: str | None,
        evaluation: ImageSource | None,
    ) -> "RunOrigin":
        """Read the provenance off the options of a command.

        Args:
            data: A `SourceArguments`.
            checkpoint: Folder or name on the Hub of the weights that the run starts from; None for random weights.
            command: The command line, without paths and secrets.
            held_out: Where the validation images come from, in words.
            evaluation: Source of the labeled images behind the evaluation results.

        Returns:
            The provenance, without paths.
        """
        name = last_part(checkpoint) if checkpoint is not None else None
        return cls(image_source(data), held_out, evaluation, name, hub_id(checkpoint), command)


def image_source(arguments: Any, split: str | None = None) -> ImageSource:
    """Source of the images that the options name.

    Args:
        arguments: A `SourceArguments`.
        split: Split of the data set; the training split if None.

    Returns:
        The source; folders and files have no split.
    """
    if arguments.train_dir is not None:
        return ImageSource(last_part(arguments.train_dir), "imagefolder")
    if arguments.data_files:
        return _files(arguments.data_files)
    name = arguments.dataset_name or EMBEDDED_NAME
    # The name of the embedded data set could be one on the Hub.
    found = hub_id(arguments.dataset_name)
    return ImageSource(
        found or last_part(name), hub_id=found, config=arguments.dataset_config, split=split or arguments.train_split
    )


def evaluation_source(arguments: Any, default_split: str | None = None) -> ImageSource:
    """Source of the validation images, for the metadata of a card.

    Args:
        arguments: A `SourceArguments`.
        default_split: Validation split if no images are named at all.

    Returns:
        The source; if a part of the training images is held out, their source without a split.
    """
    if arguments.validation_dir is not None:
        return ImageSource(last_part(arguments.validation_dir), "imagefolder")
    split = arguments.validation_split or (None if arguments.names_images else default_split)
    source = image_source(arguments, split)
    return source if split else dataclasses.replace(source, split=None)


def held_out(arguments: Any, share: float | None, default_split: str | None = None) -> str | None:
    """Describe where the validation images come from.

    Args:
        arguments: A `SourceArguments`.
        share: Share (0 to 1) of the training images that is held out if no validation images are named.
        default_split: Validation split if no images are named at all.

    Returns:
        The description; None if there are no validation images.
    """
    split = arguments.validation_split or (None if arguments.names_images else default_split)
    if arguments.validation_dir is not None:
        return f"folder `{last_part(arguments.validation_dir)}`"
    if split is not None:
        return f"split {split}"
    return f"{share:.3g} of the images, drawn with seed {arguments.holdout_seed}" if share else None


def last_part(path: str | Path) -> str:
    """The last part of a path of any system or of a URL, which is safe to publish."""
    text = str(path)
    if "://" in text:
        text = urlsplit(text).path
    parts = [part for part in re.split(r"[\\/]+", text) if part not in ("", ".", "..", "~")]
    return parts[-1] if parts else "images"


def shown_path(path: str | Path) -> str:
    """A relative path with forward slashes, or the last part of any other path."""
    text = str(path)
    is_inside = not re.match(r"[\\/~]|\w+:", text) and ".." not in re.split(r"[\\/]", text)
    return re.sub(r"[\\/]+", "/", text).removeprefix("./").rstrip("/") or "." if is_inside else last_part(text)


def hub_id(name: str | Path | None) -> str | None:
    """The name if it can be one on the Hub; None for a local folder or an invalid name."""
    if name is None or not isinstance(name, str) or Path(name).exists() or re.match(r"[.~\\/]|[A-Za-z]:[\\/]", name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def safe_command(command: Sequence[str], argv: Sequence[str]) -> str:
    """Remove secrets and paths from a command line.

    Args:
        command: Program and subcommand.
        argv: The options.

    Returns:
        The command line, quoted for a shell.
    """
    shown: list[str] = []
    hides_next = False
    for part in argv:
        is_option = part.startswith("--")
        if hides_next and not is_option:
            continue
        hides_next = False
        if SECRET_OPTION.match(part) or SECRET_VALUE.search(part):
            hides_next = is_option and "=" not in part
            continue
        shown.append(_without_paths(part))
    return shlex.join([*command, *shown])


@lru_cache(maxsize=1)
def code_version() -> str | None:
    """Git commit of the checkout that this package runs from, and whether files changed; None if it is installed."""
    root = Path(__file__).resolve().parents[3]
    source = Path(__file__).resolve().relative_to(root)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # A package that is installed inside another repository is not tracked by it.
        git("ls-files", "--error-unmatch", str(source))
        commit = git("rev-parse", "HEAD")
        return commit + (" with local changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _files(data_files: Sequence[str]) -> ImageSource:
    names = [last_part(file) for file in data_files]
    on_hub = {
        tuple(match.groups()) for file in data_files if (match := re.match(r"hf://datasets/([^/]+/[^/@]+)", file))
    }
    found = on_hub.pop()[0] if len(on_hub) == 1 else None
    kind = "webdataset" if names[0].endswith(".tar") else "parquet"
    return ImageSource(names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else ""), kind, found)


def _without_paths(part: str) -> str:
    """An argument in which the last part of each path replaces the path."""
    option, equals, value = part.partition("=") if part.startswith("--") else ("", "", part)
    if "://" in value:
        value = shown_url(value)
    elif re.match(r"[\\/~]|[A-Za-z]:[\\/]", value) or ".." in re.split(r"[\\/]", value):
        # As a whole: it may contain spaces.
        value = last_part(value)
    else:
        value = ABSOLUTE_PATH.sub(r"\1", value)
    return f"{option}{equals}{value}"
