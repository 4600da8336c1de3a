"""Shrinking of images by several processes, which end with the one that started them."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ..data.reading import describe
from .shard_files import Moments, PackSource, ShrunkImage
from .shrinking import ShrinkSettings, shrink, shrink_annotation

# Images that a process is given at once.
CHUNK = 8
# Source and settings of a process.
_given: dict[str, Any] = {}


def _start(source: PackSource, settings: ShrinkSettings, parent: int | None) -> None:
    """Set up a process, which ends with the one that started it, even if that is killed."""
    _given.update(source=source, settings=settings)
    if parent is None:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _shrink_one(index: int) -> Any:
    """A `ShrunkImage`, or the reason why it cannot be read."""
    source, settings = _given["source"], _given["settings"]
    try:
        image = shrink(source.rows[index]["image"], settings)
        annotation = None
        if source.annotations is not None:
            annotation = shrink_annotation(source.annotations[index], image.before, settings)
        channels, height, width = image.pixels.shape
        kind = f"{channels} {image.pixels.dtype.name} {image.white}"
        is_shrunk = image.before != (height, width)
        moments = Moments.of(image.pixels)
        return ShrunkImage(image.content, image.suffix, annotation, (height, width), is_shrunk, kind, moments)
    except Exception as error:  # readers raise anything on a broken file
        return describe(error)


def _shrink_some(indices: Sequence[int]) -> list[Any]:
    return [_shrink_one(index) for index in indices]


def shrunk_images(
    source: PackSource, settings: ShrinkSettings, indices: Sequence[int], workers: int
) -> Generator[ShrunkImage | str]:
    """Shrink images in their order, by several processes that work some way ahead.

    Args:
        source: The images.
        settings: Size and format.
        indices: Indices of the images.
        workers: Processes; 1 for this one.

    Yields:
        A `ShrunkImage`, or the reason why the image cannot be read.

    Raises:
        OSError: If a process was ended from outside.
    """
    chunks = [indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK)]
    if workers == 1 or len(chunks) < 2:
        _start(source, settings, None)
        for index in indices:
            yield _shrink_one(index)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(min(workers, len(chunks)), context, _start, (source, settings, os.getpid()))
    waiting: deque[Future[list[Any]]] = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_shrink_some, chunk))
            if len(waiting) > 4 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise OSError(
            "A process that packs was ended from outside, perhaps for lack of memory. Repeat the command with fewer"
            " --workers; finished shards are kept."
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
