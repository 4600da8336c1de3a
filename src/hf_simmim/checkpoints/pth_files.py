"""Reads untrusted .pth files: tensors and plain values only, without running any code in them."""

import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .pth_scan import LEGACY_START, UnreasonableFileError, check_archive, check_expansion, check_legacy

ZIP_START = b"PK\x03\x04"  # of a file of torch.save since torch 1.6


class PlainNode:
    """Replaces yacs' CfgNode, a kind of dict, by an OrderedDict, which torch fills with values."""

    def __new__(cls, *args: Any) -> Any:
        return OrderedDict()


class Unread:
    """Replaces objects that no conversion needs, such as the loss history of a resumable checkpoint. Does nothing."""

    def __new__(cls, *args: Any) -> "Unread":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


# Classes and functions that a file may name, besides torch's own list. Inert objects replace all of them.
STAND_INS: list[Any] = [
    (PlainNode, "yacs.config.CfgNode"),
    *(
        (Unread, name)
        for name in (
            "mmengine.logging.history_buffer.HistoryBuffer",
            "builtins.getattr",  # used by such a buffer to name its own methods
            "numpy.ndarray",
            "numpy.dtype",
            "numpy.core.multiarray._reconstruct",
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray._reconstruct",
            "numpy._core.multiarray.scalar",
        )
    ),
]


def read_pth(path: str | Path) -> Any:
    """Read a file of `torch.save`, in its current format or that before torch 1.6, without running any code in it.

    Args:
        path: The file. Its tensors are memory-mapped if the format allows.

    Returns:
        The content, made of dicts, lists, tuples, numbers, strings and tensors. Other objects are rejected, or are
        `Unread` if they are known to be unnecessary.

    Raises:
        ValueError: If there is no such file, or it is truncated, of another kind, or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}. Name a .pth file.")
    is_zip = _check_kind(path)
    with _only_stand_ins():
        try:
            (check_archive if is_zip else check_legacy)(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
            plain = _plain(content, {})
            check_expansion(plain)
            return plain
        except UnreasonableFileError as error:
            raise ValueError(
                f"{path} is not read, since {error}. No code in it was run. Download it again, or save its weights"
                " alone with torch.save."
            ) from error
        except Exception as error:  # malicious files can raise any type
            raise ValueError(_explanation(path, error)) from error


def printable(text: str) -> str:
    """Remove control characters from an untrusted text.

    Args:
        text: Any text.

    Returns:
        The text with a question mark in place of each unprintable character.
    """
    return "".join(character if character.isprintable() else "?" for character in text)


def _check_kind(path: Path) -> bool:
    """Whether a file has the current format; raises if it is neither this nor the old format of torch.save."""
    with path.open("rb") as file:
        start = file.read(len(LEGACY_START))
    if start == LEGACY_START:
        return False
    if not start.startswith(ZIP_START):
        raise ValueError(
            f"{path} is not a file of torch.save: it begins with {start!r}. If that is '<', a web page was saved"
            " instead of the file: download it again. Load a .safetensors file with from_pretrained, by its folder."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            records = {name.partition("/")[2] for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is truncated: it begins like a file of torch.save but has no end. Download it again."
        ) from error
    if "constants.pkl" in records:
        raise ValueError(f"{path} is a TorchScript archive, which holds a program. Use the .pth file of its weights.")
    if "data.pkl" not in records:
        raise ValueError(f"{path} is a zip archive, but not of torch.save. If it contains a .pth file, unpack it.")
    return True


@contextmanager
def _only_stand_ins() -> Iterator[None]:
    """Allow only the stand-ins, and nothing that other code of this process allowed."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(STAND_INS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _plain(value: Any, seen: dict[int, Any]) -> Any:
    """Copy the containers into built-in ones, since a file can replace the methods of a container."""
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, dict):
        seen[id(value)] = copy = {}
        for key, item in dict.items(value):
            copy[key] = _plain(item, seen)
        return copy
    if type(value) is list:
        items: list[Any] = []
        seen[id(value)] = items
        items.extend(_plain(item, seen) for item in value)
        return items
    if type(value) is tuple:
        seen[id(value)] = result = tuple(_plain(item, seen) for item in value)
        return result
    return value


def _explanation(path: Path, error: Exception) -> str:
    text = str(error)
    asked = re.search(r"GLOBAL ([\w.]+)", text)
    if asked:
        return (
            f"{path} uses {asked[1]}, which is neither a tensor nor a plain value. No code in it was run. Do not load"
            " this file by other means unless you trust its author."
        )
    found = re.search(r"WeightsUnpickler error:\s*([^\n]+)", text)
    reason = printable(found[1] if found else (text.splitlines() or [""])[0])
    return (
        f"{path} cannot be read: it is truncated or damaged, or was not written by torch.save ({type(error).__name__}:"
        f" {reason}). No code in it was run. Download it again."
    )
