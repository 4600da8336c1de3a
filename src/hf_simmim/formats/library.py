"""Libraries of fields: optional, imported when a file needs one, and named with their remedy when one is missing."""

import importlib
from typing import Any


def library(name: str, extra: str, what: str) -> Any:
    """Import an optional library.

    Args:
        name: Name of the module.
        extra: Extra of this package that installs it.
        what: What it reads, for the error message.

    Returns:
        The module.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f'{what} files are read by {name}, which cannot be imported ({error}): pip install "hf-simmim[{extra}]".'
        ) from error
