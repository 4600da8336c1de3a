"""Runs whose text goes to a file, so that it does not hide that of the command that starts them."""

import contextlib
import logging as python_logging
from collections.abc import Iterator
from pathlib import Path

from datasets import disable_progress_bars, enable_progress_bars
from transformers.utils import logging

PACKAGE = __name__.partition(".")[0]


@contextlib.contextmanager
def quiet(path: Path) -> Iterator[None]:
    """Redirect printed text and our warnings to a file, and only show errors of what is logged.

    Args:
        path: The file, to which the text is added.

    Yields:
        Nothing.
    """
    verbosity = logging.get_verbosity()
    # Not below that of transformers, whose verbosity does not count for it.
    ours = python_logging.getLogger(PACKAGE)
    propagates = ours.propagate
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    try:
        with path.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            handlers: list[python_logging.Handler] = [python_logging.StreamHandler(file)]
            handlers.append(python_logging.StreamHandler())
            handlers[1].setLevel(python_logging.ERROR)
            ours.propagate = False
            for handler in handlers:
                ours.addHandler(handler)
            try:
                yield
            finally:
                for handler in handlers:
                    ours.removeHandler(handler)
                ours.propagate = propagates
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
        enable_progress_bars()
