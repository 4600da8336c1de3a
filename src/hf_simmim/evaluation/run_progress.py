"""Progress of the runs of a comparison: which one it is, and how long the others will take."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

Kind = TypeVar("Kind", bound=Hashable)


class RunProgress(Generic[Kind]):
    """Counts runs of several kinds, and estimates the time that is left from those that finished.

    Runs of a kind take about as long; the estimate covers kinds of which no run has finished by the mean of the others.

    Args:
        planned: Number of runs by kind, all of them to be skipped or finished.
        clock: Function that returns seconds.
    """

    def __init__(self, planned: Mapping[Kind, int], clock: Callable[[], float] = time.monotonic):
        self.left = dict(planned)
        self.total = sum(planned.values())
        self.clock = clock
        self.seconds: dict[Kind, list[float]] = {}
        self.started = clock()

    @property
    def num_finished(self) -> int:
        """Number of runs that finished or were skipped."""
        return self.total - sum(self.left.values())

    def skip(self, kind: Kind, number: int) -> None:
        """Count runs that had finished before.

        Args:
            kind: Their kind.
            number: How many they are.
        """
        self.left[kind] -= number

    def start(self) -> None:
        """Measure the time of the next run from now."""
        self.started = self.clock()

    def finish(self, kind: Kind) -> str:
        """Count a run that finished just now; the next one starts.

        Args:
            kind: Its kind.

        Returns:
            Text to print, such as "run 7 of 24 finished, about 12 min left".
        """
        now = self.clock()
        self.seconds.setdefault(kind, []).append(now - self.started)
        self.started = now
        self.left[kind] -= 1
        text = f"run {self.num_finished} of {self.total} finished"
        seconds = self.seconds_left()
        return f"{text}, {in_short(seconds)} left" if seconds else text

    def seconds_left(self) -> float:
        """Estimated seconds of all runs that are left; 0 if none are."""
        means = {kind: statistics.fmean(values) for kind, values in self.seconds.items()}
        mean = statistics.fmean(means.values()) if means else 0.0
        return sum(number * means.get(kind, mean) for kind, number in self.left.items())


def in_short(seconds: float) -> str:
    """A rough duration, such as "about 12 min".

    Args:
        seconds: The duration.

    Returns:
        Seconds below two minutes, minutes below two hours, hours above.
    """
    if seconds < 120:
        return f"about {max(1, round(seconds))} s"
    return f"about {seconds / 60:.0f} min" if seconds < 7200 else f"about {seconds / 3600:.1f} h"
