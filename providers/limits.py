"""How often and how much at once: arithmetic of limits, without a clock of its own and without I/O.

`composition.door` comes in with users and source addresses, `composition.admission` with calls. Nothing is called.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class Rates:
    """A token bucket for each key. At most `burst` at once, `per_second` on average.

    Args:
        size: how many keys are remembered. Beyond it the one that was used longest ago is forgotten, so that nobody
            can fill the memory with keys.
    """

    def __init__(
        self,
        per_second: float,
        burst: float | None = None,
        *,
        size: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.per_second, self.burst = per_second, max(1.0, 2 * per_second if burst is None else burst)
        self._size, self._clock = size, clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Rates {self.per_second:g}/s, {self.burst:g} at once, {len(self._buckets)} keys>"

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str) -> float:
        """Take one. 0, or how many seconds until there is one again; then nothing is taken."""
        bucket = self._filled(key)
        if bucket.tokens < 1:
            return (1 - bucket.tokens) / self.per_second
        bucket.tokens -= 1
        return 0.0

    def give_back(self, key: str) -> None:
        bucket = self._filled(key)
        bucket.tokens = min(self.burst, bucket.tokens + 1)

    def headers(self, key: str, name: str) -> list[tuple[bytes, bytes]]:
        """What a client is told of its limit (draft-ietf-httpapi-ratelimit-headers-10): the quota and the seconds in
        which it is filled, how much is left, and the seconds until it is whole again."""
        left = self._filled(key).tokens
        window, until = math.ceil(self.burst / self.per_second), math.ceil((self.burst - left) / self.per_second)
        return [
            (b"ratelimit-policy", f'"{name}";q={int(self.burst)};w={window}'.encode()),
            (b"ratelimit", f'"{name}";r={int(left)};t={until}'.encode()),
        ]

    def _filled(self, key: str) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(self.burst, now)
            if len(self._buckets) > self._size:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
            bucket.tokens = min(self.burst, bucket.tokens + (now - bucket.filled_at) * self.per_second)
            bucket.filled_at = now
        return bucket


class AtOnce:
    """How many each key may have under way."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._under_way: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<AtOnce {self.most}, {self._under_way.total()} under way>"

    def is_full(self, key: str) -> bool:
        return self._under_way[key] >= self.most if key in self._under_way else False

    @contextmanager
    def entered(self, key: str) -> Iterator[None]:
        """One more, for the length of the block."""
        self._under_way[key] += 1
        try:
            yield
        finally:
            self._under_way[key] -= 1
            if not self._under_way[key]:
                del self._under_way[key]
