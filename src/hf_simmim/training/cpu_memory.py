"""Memory that a training on a processor frees is kept for its next step."""

import ctypes
import os
import sys

# Options of glibc's mallopt.
TRIM_THRESHOLD = -1
MMAP_MAX = -4
# The largest value that mallopt takes, in bytes.
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory, rather than to return it to the system at once.

    Each step of a training allocates the same tensors. By default glibc gives large ones back when they are freed, and
    the system fills every page with zeros when it is used again, which took 5 to 11 % of a step of Swin-T
    (`benchmarks/step.py`). The peak of memory stays the same; what is freed after it stays with the process.

    Does nothing where the user has chosen (`MALLOC_...` in the environment, or another allocator by `LD_PRELOAD`), and
    on systems without glibc.

    Returns:
        Whether the setting was made.

    Source: mallopt(3), M_TRIM_THRESHOLD and M_MMAP_MAX.
    """
    chosen = os.environ.get("LD_PRELOAD") or any(name.startswith("MALLOC_") for name in os.environ)
    if chosen or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(MMAP_MAX, 0)) and bool(mallopt(TRIM_THRESHOLD, NEVER))
