"""Looks through the pickles of a .pth file without unpickling them, for content that would take forever or all memory.

A few bytes of a pickle can ask for terabytes, for numbers without end, or for keys whose hashes take hours; a small
compressed archive can hold gigabytes. Files of `torch.save` need none of this.
"""

import io
import pickletools
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

MAX_PICKLE_BYTES = 2**26
MAX_OPERATIONS = 3_000_000  # those of 10,000 tensors with both moments of Adam are fewer
MAX_BITS = 64  # Python's hashes of longer integers can be made equal
MAX_CONSTANTS = 64  # of a tuple that are remembered
# Builtin types that a file could call with a size; what weights need of them is written otherwise.
SIZED = {"bytearray", "bytes", "complex", "list", "range", "slice", "str", "tuple"}
# First pickle of a file before torch 1.6; those of protocol, machine, the object and names of its storages follow.
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
NUM_LEGACY_PICKLES = 4


_MIXED = "mixed"  # value of a list that holds other things than constants
_SETS = ("__builtin__ set", "builtins set", "__builtin__ frozenset", "builtins frozenset")
_CONSTANTS = {"int", "int_or_bool", "bool", "str", "bytes", "float", "None", "bytes_or_str"}


class UnreasonableFileError(ValueError):
    """A file asks for more than weights need; the message says of what."""


class _Value:
    """What an operation leaves on the stack: its type, and its value if that is a constant or a tuple of them."""

    __slots__ = ("kind", "value")

    def __init__(self, kind: str, value: Any = None):
        self.kind, self.value = kind, value


def check_archive(path: Path) -> None:
    """Check the pickles of an archive of torch.save, its format since torch 1.6.

    Args:
        path: The file, a zip archive.

    Raises:
        UnreasonableFileError: If its content is compressed, larger than the file, or asks for more than weights need.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
        if packed or sum(record.file_size for record in records) > path.stat().st_size:
            raise UnreasonableFileError(
                f"{packed[0] if packed else 'its content'} is compressed, which torch.save never does"
            )
        for record in records:
            if record.filename.endswith(".pkl"):
                _check_length(record.file_size)
                _check_pickle(io.BytesIO(archive.read(record)), path.stat().st_size)


def check_legacy(path: Path) -> None:
    """Check the pickles of a file that a torch before 1.6 wrote.

    Args:
        path: The file.

    Raises:
        UnreasonableFileError: If it asks for more than weights need.
    """
    with path.open("rb") as file:
        file.seek(len(LEGACY_START))
        for _ in range(NUM_LEGACY_PICKLES):
            _check_pickle(file, path.stat().st_size)


def check_expansion(value: Any, sizes: dict[int, int] | None = None) -> int:
    """Check that lists are not nested in each other so often that printing them would take forever.

    Args:
        value: Dicts, lists, tuples and values, in any nesting.
        sizes: Numbers of values in containers that are counted already, by identity.

    Returns:
        How many values it has, where those of a container count as often as it occurs.

    Raises:
        UnreasonableFileError: If there are more than MAX_OPERATIONS.
    """
    sizes = {} if sizes is None else sizes
    if not isinstance(value, (dict, list, tuple)):
        return 1
    if id(value) not in sizes:
        sizes[id(value)] = 1  # of one that holds itself
        items = value.values() if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(check_expansion(item, sizes) for item in items)
        if sizes[id(value)] > MAX_OPERATIONS:
            raise UnreasonableFileError("it holds lists in lists without end")
    return sizes[id(value)]


def _check_length(num_bytes: int) -> None:
    if num_bytes > MAX_PICKLE_BYTES:
        raise UnreasonableFileError(f"the description of its tensors has more than {MAX_PICKLE_BYTES} bytes")


def _check_pickle(file: BinaryIO, size: int) -> None:
    """Follow the operations of a pickle by the types on its stack; `size` bounds what its storages may claim."""
    stack: list[_Value] = []
    memo: dict[int, _Value] = {}
    claimed: dict[str, int] = {}
    start = file.tell()
    for count, (operation, argument, position) in enumerate(pickletools.genops(file)):
        if count > MAX_OPERATIONS:
            raise UnreasonableFileError(f"the description of its tensors has more than {MAX_OPERATIONS} steps")
        _check_length((position or 0) - start)
        name = operation.name
        if isinstance(argument, int) and argument.bit_length() > MAX_BITS:
            raise UnreasonableFileError(f"it holds an integer of {argument.bit_length()} bits")
        if name in ("GLOBAL", "INST"):
            module, _, called = argument.partition(" ")
            if module in ("builtins", "__builtin__") and called in SIZED:
                raise UnreasonableFileError(f"it calls {called}, which weights do not need")
        if name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
            continue
        if "PUT" in name:
            memo[int(str(argument))] = stack[-1]
            continue
        if "GET" in name:
            stack.append(memo[int(str(argument))])
            continue
        taken = _take(stack, operation)
        if name in ("SETITEM", "SETITEMS", "DICT"):
            pairs = taken if name == "DICT" else taken[1:]
            for key in pairs[::2]:
                if key.kind not in _CONSTANTS:
                    raise UnreasonableFileError(f"it holds a key that is a {key.kind}, neither text nor number")
        if name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"):
            if name.startswith("APPEND") and any(item.kind not in _CONSTANTS for item in taken[1:]):
                taken[0].value = _MIXED
            stack.append(taken[0])
            continue
        is_set = name in ("ADDITEMS", "FROZENSET") or (name == "REDUCE" and taken[0].value in _SETS)
        if is_set and any(item.value is _MIXED for item in taken[-1].value or [taken[-1]]):
            raise UnreasonableFileError("it holds a set of other things than text and numbers")
        if name == "BINPERSID":
            storage = taken[0].value or []
            texts = str([item.value for item in storage if item.kind == "str"])
            claimed[texts] = max((item.value for item in storage if item.kind == "int"), default=0)
            if claimed[texts] > size:
                raise UnreasonableFileError(f"a tensor claims {claimed[texts]} numbers, more than the file holds")
        if name == "STOP" and sum(claimed.values()) > size:
            raise UnreasonableFileError(f"its tensors claim {sum(claimed.values())} numbers, more than the file holds")
        for kind in operation.stack_after:
            is_tuple = kind.name == "tuple"
            stack.append(_Value(kind.name, taken if is_tuple and len(taken) < MAX_CONSTANTS else argument))


def _take(stack: list[_Value], operation: pickletools.OpcodeInfo) -> list[_Value]:
    """Take from the stack what an operation does."""
    taken: list[_Value] = []
    for kind in reversed(operation.stack_before):
        if kind is pickletools.stackslice:
            while stack[-1].kind != "mark":
                taken.append(stack.pop())
        elif kind is pickletools.markobject:
            stack.pop()
        else:
            taken.append(stack.pop())
    return taken[::-1]
