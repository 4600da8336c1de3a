"""Reads .pth files of strangers: tensors and plain values, and nothing that a file says is ever run."""

import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# How files begin: of torch.save since torch 1.6, and before.
ZIP_START = b"PK\x03\x04"
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


class PlainNode:
    """Stands in for yacs' CfgNode, a kind of dict: what is made is an OrderedDict, which torch fills with values."""

    def __new__(cls, *args: Any) -> Any:
        return OrderedDict()


class Unread:
    """Stands in for what no conversion needs, such as the loss history in a file to resume from. Does nothing."""

    def __new__(cls, *args: Any) -> "Unread":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


# Everything beside torch's own list that a file may name. None of it is what the name says: each makes an inert object.
STAND_INS: list[Any] = [
    (PlainNode, "yacs.config.CfgNode"),
    *(
        (Unread, name)
        for name in (
            "mmengine.logging.history_buffer.HistoryBuffer",
            "builtins.getattr",  # how such a buffer names its own methods
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
    """Read a file of `torch.save`, of the format of today or that before torch 1.6, without running anything in it.

    Args:
        path: The file. Its tensors stay in it until they are used, where the format allows.

    Returns:
        What was saved, made of dicts, lists, tuples, numbers, texts and tensors. Objects of other kinds are refused, or
        are `Unread` if they are known to be of no use.

    Raises:
        ValueError: If there is no such file, or it is cut off, or of another kind, or asks for code to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'not there'}. Name a .pth file.")
    is_zip = _check_kind(path)
    with _only_stand_ins():
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
            return _plain(content, {})
        except Exception as error:  # a file made to do harm can fail in any way
            raise ValueError(_explanation(path, error)) from error


def printable(text: str) -> str:
    """A text of a stranger without what terminals take for commands.

    Args:
        text: Any text.

    Returns:
        The text with a question mark for each character that is not printed.
    """
    return "".join(character if character.isprintable() else "?" for character in text)


def _check_kind(path: Path) -> bool:
    """Whether a file is of today's format; raises unless it is of one that torch reads weights from."""
    with path.open("rb") as file:
        start = file.read(len(LEGACY_START))
    if start == LEGACY_START:
        return False
    if not start.startswith(ZIP_START):
        raise ValueError(
            f"{path} is not a file of torch.save: it begins with {start!r}. A web page that was saved in the file's"
            " place begins with '<': download it again. A .safetensors file is for from_pretrained, with its folder."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            records = {name.partition("/")[2] for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is cut off: it begins like a file of torch.save and has no end. Get it again."
        ) from error
    if "constants.pkl" in records:
        raise ValueError(f"{path} is a TorchScript archive, which holds a program. Use the .pth file of its weights.")
    if "data.pkl" not in records:
        raise ValueError(f"{path} is a zip archive that torch.save did not write. If a .pth file is in it, unpack it.")
    return True


@contextmanager
def _only_stand_ins() -> Iterator[None]:
    """Allow the stand-ins, and nothing that other code of this process has allowed."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(STAND_INS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _plain(value: Any, seen: dict[int, Any]) -> Any:
    """A copy of the containers, for a file can put anything in the place of a container's own methods."""
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
            f"{path} asks for {asked[1]} when it is read, which is neither a tensor nor a plain value. Nothing of it"
            " was run. Do not load this file by other means unless you trust whoever made it."
        )
    found = re.search(r"WeightsUnpickler error:\s*([^\n]+)", text)
    reason = printable(found[1] if found else (text.splitlines() or [""])[0])
    return (
        f"{path} cannot be read: it is cut off or damaged, or was not made by torch.save ({type(error).__name__}:"
        f" {reason}). Nothing of it was run. Get it again."
    )
