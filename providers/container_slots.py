"""How many containers there may be at once: a slot for each, taken before one is made and free once it is removed.

The supervisor holds them and says how one is freed; a launcher takes one for each container that it starts. A slot that
is being freed is as good as free: for each of several who wait one container is stopped, and no more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import anyio

from providers.errors import PoolExhausted

_LOOK_EVERY = 0.2
_LEAVING_SECONDS = 2.0
"""How long a container takes to stop as a rule; one that takes longer is not counted on any more."""


@dataclass(slots=True, eq=False)
class Slot:
    """Room for one container. `whose` is whose container it is: a client session, a user, everybody, or one call."""

    server: str
    whose: str
    leaving_since: float | None = None

    def leave(self) -> None:
        """Its container is about to be stopped."""
        if self.leaving_since is None:
            self.leaving_since = anyio.current_time()

    def is_about_to_be_free(self, now: float) -> bool:
        return self.leaving_since is not None and now - self.leaving_since < _LEAVING_SECONDS


class Idle(NamedTuple):
    """A container that nobody uses, and what begins to stop it."""

    since: float
    stop: Callable[[], None]


class Slots:
    """Args:
    most: how many there are.
    make_room: begins to stop one idle container; False if there is none.
    """

    def __init__(self, most: int, make_room: Callable[[], bool]) -> None:
        self._most, self._make_room = most, make_room
        self._taken: set[Slot] = set()
        self._wanting = 0
        self._freed = anyio.Event()

    def __repr__(self) -> str:
        return f"<Slots {len(self._taken)}/{self._most} taken, {self._wanting} wanted>"

    async def take(self, server: str, whose: str, patience: float) -> Slot:
        """Reserve room for one container, made by stopping an idle one if need be.

        Args:
            patience: seconds.

        Raises:
            PoolExhausted: all were in use for as long as that.
        """
        self._wanting += 1
        try:
            with anyio.move_on_after(patience):
                while len(self._taken) >= self._most:
                    self._free_what_is_missing()
                    with anyio.move_on_after(_LOOK_EVERY):
                        await self._freed.wait()
                self._taken.add(slot := Slot(server, whose))
                return slot
        finally:
            self._wanting -= 1
        problem = f"all {self._most} containers are in use; raise max_containers. Try again later."
        raise PoolExhausted(server, problem, not_sent=True)

    def has(self, server: str, whose: str) -> bool:
        """Whether there is a container of somebody's, or is about to be."""
        return any((slot.server, slot.whose) == (server, whose) for slot in self._taken)

    def free(self, slot: Slot) -> None:
        """Its container is gone, or was never made."""
        self._taken.discard(slot)
        self._freed.set()
        self._freed = anyio.Event()

    def leave(self, server: str, whose: str) -> None:
        """A container of this server is about to be stopped, and its wire has not heard of that yet."""
        its = (slot for slot in self._taken if (slot.server, slot.whose) == (server, whose))
        for slot in [slot for slot in its if slot.leaving_since is None][:1]:
            slot.leave()

    def _free_what_is_missing(self) -> None:
        now = anyio.current_time()
        coming = self._most - len(self._taken) + sum(slot.is_about_to_be_free(now) for slot in self._taken)
        for _ in range(self._wanting - coming):
            if not self._make_room():
                return
