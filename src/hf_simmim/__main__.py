"""The command line: `hf-simmim NAME ...`, or `python -m hf_simmim NAME ...` for `accelerate launch -m`."""

import importlib
import sys
from collections.abc import Sequence

from . import __version__
from .cli import COMMANDS
from .cli.recipes import CommandError, nearest

HELP = f"""hf-simmim {__version__}: pre-train a vision backbone on your own images, and use it.

usage: hf-simmim COMMAND [options]

{{commands}}

hf-simmim COMMAND --help shows the options that people use, --help-all all of them.
On many GPUs: accelerate launch -m hf_simmim COMMAND [options]"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        argv: Name of the command and its options; those of the process if None.

    Raises:
        SystemExit: If there is no such command, or it cannot be done; the message says why and what to do.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print(HELP.format(commands="\n".join(f"  {key:<{width}}  {text}" for key, text in COMMANDS.items())))
    elif name == "--version":
        print(__version__)
    elif name not in COMMANDS:
        raise SystemExit(f"error: there is no command {name!r}.{nearest(name, COMMANDS).replace('-all', '')}")
    else:
        try:
            # Only the one that is asked for: each brings the libraries that it needs.
            command = importlib.import_module(f".cli.{name}", __package__).COMMAND
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
