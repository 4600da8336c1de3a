"""What surrounds the run of a command that trains: its lock, and words for what ends it early."""

import contextlib
from collections.abc import Iterator

from safetensors import SafetensorError

from ..training.agreement import num_processes
from ..training.checkpoints import TrainingStoppedError
from ..training.run_lock import unlock_runs
from .recipes import CommandError


@contextlib.contextmanager
def one_run() -> Iterator[None]:
    """Unlock the folder of a run at its end, and turn what ended it into a `CommandError`.

    Raises:
        CommandError: If a number is not finite, results cannot be written, or another process of the run is gone.
    """
    try:
        yield
    except TrainingStoppedError as error:
        raise CommandError(str(error)) from error
    except (OSError, SafetensorError) as error:
        raise CommandError(
            f"{error}. Mend this, and repeat the command to resume from the newest checkpoint."
        ) from error
    except RuntimeError as error:
        if num_processes() == 1 or not any(sign in str(error) for sign in ("gloo", "NCCL", "Connection", "Timed out")):
            raise
        reason = " ".join(str(error).split())[:200]
        raise CommandError(
            f"another process of this run ended, or did not answer within --ddp_timeout ({reason}). See what it"
            " printed."
        ) from error
    finally:
        unlock_runs()
