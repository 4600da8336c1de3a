"""The command line: `hf-simmim NAME ...`, or `python -m hf_simmim NAME ...` for `accelerate launch -m`."""

import importlib
import sys
from collections.abc import Sequence

from . import __version__
from .cli.options.names import answered


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        argv: Name of the command and its options; those of the process if None.

    Raises:
        SystemExit: If there is no such command, or it cannot be done; the message says why and what to do.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # What needs no torch is answered without importing it.
    if answered(argv, __version__):
        return
    from .cli.recipes import CommandError

    try:
        # Only the one that is asked for: each brings the libraries that it needs.
        command = importlib.import_module(f".cli.{argv[0]}", __package__).COMMAND
    except CommandError as error:
        raise SystemExit(f"error: {error}") from error
    try:
        command.main(argv[1:])
    except KeyboardInterrupt:
        # In training a checkpoint is saved first, see `StopSignals`.
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
