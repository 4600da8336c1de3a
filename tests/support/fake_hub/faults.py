"""What can go wrong with requests to the loopback Hub, and the note that is kept of each."""

import random
import re
from dataclasses import dataclass, field
from http import HTTPStatus


@dataclass
class Fault:
    """What goes wrong with which requests.

    Args:
        status: Answer with this status.
        cut: End the connection after so many bytes of the body, of the request if it has one, else of the answer; 0
            gives no answer at all.
        delay: Wait so many seconds first.
        after: Carry the request out before it fails; a cut is then one of the answer.
        share: Share of the matching requests that fail, drawn from `seed`.
        times: How many fail at most.
        method: Regular expression of the methods, the whole.
        path: Regular expression found in the paths, with their queries.
        retry_after: Seconds that the answer asks to wait.
        seed: Of the draw.
    """

    status: int | None = None
    cut: int | None = None
    delay: float = 0.0
    after: bool = False
    share: float = 1.0
    times: int | None = None
    method: str = ".*"
    path: str = ""
    retry_after: int | None = None
    seed: int = 0
    _random: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.status is None and self.cut is None and not self.delay:
            raise ValueError("A fault needs a status, a cut or a delay.")
        if self.status is not None:
            HTTPStatus(self.status)  # raises a ValueError
        self._random = random.Random(self.seed)

    def strikes(self, method: str, path: str) -> bool:
        """Draw whether this request fails."""
        if self.times == 0 or not re.fullmatch(self.method, method) or not re.search(self.path, path):
            return False
        if self._random.random() >= self.share:
            return False
        self.times = None if self.times is None else self.times - 1
        return True


@dataclass
class Request:
    """A request that came in, headers in lower case; the status is 0 where it got no answer, or only a part of one."""

    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    fault: Fault | None = None
