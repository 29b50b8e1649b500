"""How long a server that keeps failing is left alone. Meanwhile its callers get a clear error at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import NamedTuple

from providers.errors import BackendError, BackendUnavailable
from providers.resource import McpServerResource, TransportType

_BROKEN_AFTER = 5


class Rest(NamedTuple):
    """How long a server rests after failures, in seconds: `first`, then twice as long each time, up to `limit`."""

    limit: float
    first: float = 0.5
    is_first_failure_free: bool = True
    """One crash is repaired by the next call."""


_PROCESS = Rest(limit=30.0)
_REMOTE = Rest(limit=5.0)  # a server that comes back is to be seen within 10 s
_CONTAINER = Rest(limit=60.0, first=1.0)
_CONTAINER_THAT_NEVER_SERVED = Rest(limit=60.0, first=1.0, is_first_failure_free=False)


def rest_for(resource: McpServerResource, *, has_served: bool) -> Rest:
    """The rest that a server needs. Starting a container costs the whole machine: one that crashes at its start is
    started at most six times in its first minute."""
    if resource.is_container:
        return _CONTAINER if has_served else _CONTAINER_THAT_NEVER_SERVED
    return _PROCESS if resource.transport_type is TransportType.STDIO else _REMOTE


@dataclass(slots=True)
class _Trouble:
    failures: int
    until: float
    error: BackendError


class Backoff:
    """Consecutive failures per server. Mostly the first costs nothing. From then on a server rests, each time twice as
    long, up to its limit, with a tenth of jitter, and then gets one attempt.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._troubles: dict[Hashable, _Trouble] = {}

    def failed(self, key: Hashable, error: BackendError, rest: Rest) -> None:
        known = self._troubles.get(key)
        failures = known.failures + 1 if known else 1
        rests = failures - rest.is_first_failure_free
        delay = min(rest.limit, rest.first * 2 ** (rests - 1)) if rests else 0.0
        delay *= random.uniform(0.9, 1.1)
        self._troubles[key] = _Trouble(failures, self._clock() + delay, error)

    def succeeded(self, key: Hashable) -> None:
        self._troubles.pop(key, None)

    def forget(self, server: str) -> None:
        """What made a server fail was put right: all its failures are forgotten."""
        for key in [key for key, trouble in self._troubles.items() if trouble.error.server == server]:
            del self._troubles[key]

    def failures(self, server: str) -> int:
        """How often a server failed in a row."""
        return max(
            (trouble.failures for trouble in self._troubles.values() if trouble.error.server == server), default=0
        )

    def rests_for(self, key: Hashable) -> float:
        """Seconds until the next attempt is allowed; 0 when it is."""
        trouble = self._troubles.get(key)
        return max(0.0, trouble.until - self._clock()) if trouble else 0.0

    def refusal(self, key: Hashable, *, is_tried: bool = False) -> BackendError | None:
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
        return BackendUnavailable(
            trouble.error.server,
            f"failed {trouble.failures} times in a row and {again}. Last reason: {trouble.error.problem}",
            not_sent=True,
        )
