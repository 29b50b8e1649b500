"""How long a server that keeps failing is left alone. Meanwhile its callers get a clear error at once."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from providers.errors import BackendError, BackendResting

_FIRST_DELAY = 0.5
_BROKEN_AFTER = 5


@dataclass(slots=True)
class _Trouble:
    failures: int
    at: float
    until: float
    error: BackendError


class Backoff:
    """Consecutive failures per server. The first costs nothing: one crash is repaired by the next call. From the second
    on a server rests for 0.5 s, 1 s, 2 s … up to its limit, with a tenth of jitter, and then gets one attempt.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._troubles: dict[tuple[str, int], _Trouble] = {}
        self._told: dict[str, str] = {}

    def failed(
        self,
        key: tuple[str, int],
        error: BackendError,
        limit: float,
        since: float = math.inf,
        *,
        first_rest: float = 0.0,
    ) -> None:
        """Count a failure of something that was begun at `since`. What was begun before the last failure says nothing
        new: when a server dies, all of its sessions do. With a `first_rest` already the first failure costs a rest of
        so many seconds, which doubles from there."""
        known = self._troubles.get(key)
        if known is not None and since < known.at:
            return
        failures = known.failures + 1 if known else 1
        delay = 0.0 if failures == 1 else min(limit, _FIRST_DELAY * 2 ** min(failures - 2, 30))
        if first_rest:
            delay = min(limit, first_rest * 2 ** min(failures - 1, 30))
        delay *= random.uniform(0.9, 1.1)
        now = self._clock()
        self._troubles[key] = _Trouble(failures, now, now + delay, error.again())

    def is_news(self, error: BackendError) -> bool:
        """Whether a server fails for another reason than the last time. A log that is told each reason once stays
        readable while a server is down for a night."""
        is_news = self._told.get(error.server) != error.problem
        self._told[error.server] = error.problem
        return is_news

    def forget(self, server: str, before_generation: int) -> None:
        """Earlier generations of a server are gone, and their troubles with them."""
        self._told.pop(server, None)
        self._troubles = {
            key: trouble for key, trouble in self._troubles.items() if key[0] != server or key[1] >= before_generation
        }

    def succeeded(self, key: tuple[str, int]) -> None:
        self._troubles.pop(key, None)
        self._told.pop(key[0], None)

    def failures(self, server: str) -> int:
        """How often a server failed in a row."""
        return max((trouble.failures for key, trouble in self._troubles.items() if key[0] == server), default=0)

    def rests_for(self, key: tuple[str, int]) -> float:
        """Seconds until the next attempt is allowed; 0 when it is."""
        trouble = self._troubles.get(key)
        return max(0.0, trouble.until - self._clock()) if trouble else 0.0

    def refusal(self, key: tuple[str, int], *, is_tried: bool = False) -> BackendError | None:
        """The error for a caller who comes while the server rests.

        Args:
            is_tried: an attempt is under way; who comes now need not wait for the end of a server that has failed so
                often.
        """
        rest = self.rests_for(key)
        trouble = self._troubles.get(key)
        if trouble is None or not (rest or (is_tried and trouble.failures >= _BROKEN_AFTER)):
            return None
        again = f"is tried again in {max(1, round(rest))} s" if rest else "is being tried again"
        often = "once" if trouble.failures == 1 else f"{trouble.failures} times in a row"
        return BackendResting(
            trouble.error.server,
            f"failed {often} and {again}. Last reason: {trouble.error.problem}",
            reason=trouble.error.problem,
        )
