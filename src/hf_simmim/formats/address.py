"""Addresses of images inside files: a slice of a volume, a frame of a series, a window of a large image.

`scan.nii.gz::axis=2,slice=17` is a slice, and `slide.svs::level=1,top=4096,left=512,height=512,width=512` a window. An
address takes the place of a path wherever images are read, so that all commands know images inside files.
"""

import os
import re
from dataclasses import dataclass

# What stands between the path of a file and the part of it. A file whose own name has it is a file.
SEPARATOR = "::"
_PART = re.compile(r"[a-z_]+=[^,=]*(,[a-z_]+=[^,=]*)*")


@dataclass(frozen=True)
class Address:
    """An image inside a file.

    Args:
        path: Path of the file, or of the folder that takes the place of one, such as a zarr array.
        part: Which image of the file, by names that its format knows; empty for the only one.
    """

    path: str
    part: dict[str, str]

    def __str__(self) -> str:
        """The address as text, which takes the place of a path."""
        values = ",".join(f"{name}={value}" for name, value in self.part.items())
        return f"{self.path}{SEPARATOR}{values}" if values else self.path

    def with_part(self, **values: str | int) -> "Address":
        """A part of this part, such as a window of a slice.

        Args:
            **values: Names and values that are added.

        Returns:
            The other address.
        """
        return Address(self.path, self.part | {name: str(value) for name, value in values.items()})


def parse_address(text: str | os.PathLike) -> Address:
    """Take an address apart.

    Args:
        text: An address, or a path alone.

    Returns:
        Its path and part; the part is empty if the text is the path of a file that exists, or has no part.
    """
    text = os.fspath(text)
    path, separator, part = text.rpartition(SEPARATOR)
    if not separator or not _PART.fullmatch(part) or os.path.lexists(text):
        return Address(text, {})
    return Address(path, dict(value.split("=", 1) for value in part.split(",")))
