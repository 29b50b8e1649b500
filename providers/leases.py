"""Which containers this replica may run: a lease for each server and scope that all replicas share.

`sharing` comes in before a container is used, and `fence` before one is made; called is `replica_board`. A lease is
ours until its deadline on our own clock, which runs while the process is paused: whoever was paused for longer asks
Redis first, and does nothing for a container that is another replica's by then. Where Redis does not answer, nobody
else can take a lease either, so what is ours goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic

import anyio

from providers.errors import BackendUnavailable
from providers.replica_board import Board, BoardUnavailable, Holder

logger = logging.getLogger(__name__)

LEASE_SECONDS = 8.0
"""After which the lease of a replica that died can be taken."""
_RENEWALS = 4
"""In the time of one lease."""
_TRUST_SECONDS = 1.0
"""How long a lease that is not confirmed because Redis does not answer goes on, until it is asked again."""

Place = tuple[str, str]
"""A server and a scope: `shared`, or a user."""


def is_of_all_replicas(scope: str) -> bool:
    """Whether a container of this scope is used from several replicas; a client session is with one."""
    return scope == "shared" or scope.startswith("user:")


class LeaseState(StrEnum):
    OURS = "ours"
    LOST = "lost"
    RELEASED = "released"


@dataclass(slots=True, eq=False)
class Lease:
    """The right to run the containers of one server and scope."""

    place: Place
    holder: Holder
    deadline: float
    """On a clock that any thread may ask, and that runs on while the process is paused."""
    state: LeaseState = LeaseState.OURS
    ended: anyio.Event = field(default_factory=anyio.Event)
    users: int = 0
    is_clean: bool = False
    """What earlier holders left at our engine is gone."""
    cleaning: anyio.Lock = field(default_factory=anyio.Lock)

    def __repr__(self) -> str:
        return f"<Lease {self.place[0]} {self.holder.token} {self.state}>"

    @property
    def is_certain(self) -> bool:
        """Whether it is ours without asking anybody."""
        return self.state is LeaseState.OURS and monotonic() < self.deadline

    def end(self, state: LeaseState) -> None:
        self.state = state
        self.ended.set()


class SharedStateUnavailable(BackendUnavailable):
    """Raised when nobody can say which replica runs a container, because Redis does not answer."""

    is_of_server = False


class Leases:
    """The leases of one replica.

    Args:
        replica: who we are.
        seconds: how long a lease lasts without being renewed.
    """

    def __init__(self, board: Board, replica: str, seconds: float = LEASE_SECONDS) -> None:
        self.replica, self.seconds = replica, seconds
        self.is_needed: Callable[[Place], bool] = lambda place: False
        """Whether there is a container of a place. A lease without one, and without a user, is given back."""
        self.on_loss: Callable[[Place], None] = lambda place: None
        self._board = board
        self._held: dict[Place, Lease] = {}
        self._highest = 0
        self._changing = anyio.Lock()
        self._is_leaving = False

    def __repr__(self) -> str:
        return f"<Leases {self.replica} {len(self._held)}>"

    def __len__(self) -> int:
        return len(self._held)

    @property
    def is_leaving(self) -> bool:
        return self._is_leaving

    def held(self, place: Place) -> Lease | None:
        """The lease of a place, if it is ours for certain."""
        lease = self._held.get(place)
        return lease if lease is not None and lease.is_certain else None

    async def claim(self, place: Place) -> Lease | Holder | None:
        """Our lease of a place, taken if nobody has it; or who else has it. None where nobody has it, and we are
        leaving.

        Raises:
            SharedStateUnavailable: Redis does not answer.
        """
        known = self._held.get(place)
        if known is not None and await self.confirm(known):
            return known
        async with self._changing:
            if place in self._held:
                return self._held[place]
            try:
                return await (self._look(place) if self._is_leaving else self._take(place))
            except BoardUnavailable as error:
                problem = f"which replica runs its container is not known: {error} Try again later."
                raise SharedStateUnavailable(place[0], problem, not_sent=True) from None

    async def _look(self, place: Place) -> Holder | None:
        return await self._board.holder(name_of(place))

    async def _take(self, place: Place) -> Lease | Holder:
        asked_at = monotonic()
        holder = await self._board.claim(name_of(place), self.replica, self.seconds, self._highest)
        self._highest = max(self._highest, holder.token)
        if holder.replica != self.replica:
            return holder
        logger.info("server '%s': this replica runs its container now (lease %d)", place[0], holder.token)
        lease = self._held[place] = Lease(place, holder, asked_at + self.seconds)
        return lease

    async def holder(self, place: Place) -> Holder | None:
        """Who has a lease.

        Raises:
            BoardUnavailable: Redis does not answer.
        """
        return await self._look(place)

    async def confirm(self, lease: Lease) -> bool:
        """Whether a lease is ours, after asking if that is not certain."""
        if lease.is_certain:
            return True
        async with self._changing:
            if lease.state is LeaseState.OURS and not lease.is_certain:
                await self._renew(lease)
            return lease.state is LeaseState.OURS

    async def _renew(self, lease: Lease) -> None:
        asked_at = monotonic()
        try:
            holder = await self._board.renew(name_of(lease.place), lease.holder, self.seconds)
        except BoardUnavailable:
            lease.deadline = max(lease.deadline, monotonic() + _TRUST_SECONDS)
            return
        self._highest = max(self._highest, holder.token)
        if holder == lease.holder:
            lease.deadline = asked_at + self.seconds
        else:
            self._lose(lease)

    def _lose(self, lease: Lease) -> None:
        logger.warning("server '%s': another replica runs its container now; ours is stopped", lease.place[0])
        self._held.pop(lease.place, None)
        lease.end(LeaseState.LOST)
        self.on_loss(lease.place)

    async def keep(self) -> None:
        """Renew what is held, and give back what has no use, until cancelled."""
        while True:
            await anyio.sleep(self.seconds / _RENEWALS)
            for lease in list(self._held.values()):
                async with self._changing:
                    if lease.state is LeaseState.OURS:
                        await self._keep(lease)

    async def _keep(self, lease: Lease) -> None:
        if lease.users or self.is_needed(lease.place):
            await self._renew(lease)
        else:
            await self._release(lease)

    async def _release(self, lease: Lease) -> None:
        self._held.pop(lease.place, None)
        lease.end(LeaseState.RELEASED)
        try:
            await self._board.release(name_of(lease.place), lease.holder)
        except BoardUnavailable as error:
            logger.debug("server '%s': its lease runs out by itself: %s", lease.place[0], error)

    def leave(self) -> None:
        """Take no more leases: the gateway drains."""
        self._is_leaving = True

    async def hand_over(self, *, all_of_them: bool) -> None:
        """Give back what has no use any more, or everything, at once."""
        async with self._changing:
            for lease in list(self._held.values()):
                if all_of_them or not (lease.users or self.is_needed(lease.place)):
                    await self._release(lease)

    def begin(self) -> None:
        """Take leases, again or for the first time."""
        self._is_leaving = False


def name_of(place: Place) -> str:
    """A place as one text. No server's name has a space."""
    return " ".join(place)
