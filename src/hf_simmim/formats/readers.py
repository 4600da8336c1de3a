"""The readers that the package adds to those that travel with a checkpoint."""

from ..model.image_readers import Source, Stored, Wanted
from ..model.images import OTHER_READERS
from .address import parse_address


def read_other(source: Source, wanted: Wanted) -> Stored | None:
    """Read a file of a field's own format, or an image inside a file.

    Args:
        source: Path, address (see `Address`), or content of the file.
        wanted: What it is read for.

    Returns:
        The image as it is stored; None if the file is of another format.

    Raises:
        ValueError, OSError: If the file cannot be read, and whatever else the readers raise.
    """
    address = None if isinstance(source, bytes) else parse_address(source)
    if address is not None and address.part:
        raise ValueError(f"{address} names a part of a file that has none.")
    return None


def register_readers() -> None:
    """Make all commands and image processors read by these readers, too."""
    if read_other not in OTHER_READERS:
        OTHER_READERS.append(read_other)
