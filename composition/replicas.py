"""`Replicas`: this gateway as one of several on one Redis. Who we are, where the others are, and what we share.

The gateway makes one where `replica_url` is set and the store is Redis, and runs it around everything else. Called are
the board in Redis, the leases of containers, and `sharing`, by which a container of another replica is reached. The
HTTP application asks where a session or a parked call is; see `forwarding`.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Callable
from types import TracebackType

import anyio
from anyio.abc import TaskGroup

from composition.settings import Settings
from providers.assertions import Assertion, Verifier
from providers.endpoint import HttpClient, http_client
from providers.errors import ConfigurationError
from providers.fence import Fence
from providers.leases import LEASE_SECONDS, Leases
from providers.replica_board import Board, BoardUnavailable
from providers.sharing import Sharing

logger = logging.getLogger(__name__)

_ALIVE_SECONDS = 8.0
_ANNOUNCE_EVERY = 2.0
_KNOWN_SECONDS = 5.0
"""How long the address of another replica is remembered."""
_LET_GO_EVERY = 0.1
_LEAVE_SECONDS = 3.0
_MARK = re.compile(r"([0-9a-f]{12})\.(.+)", re.DOTALL)
"""A session id or a state that a replica has given out: the replica, and what it is called there."""


class Replicas:
    """An async context manager: its body is the time in which this replica is one of several.

    Args:
        redis_url: where they meet.
        url: where the others reach this one.
        has_auth: whether callers bring tokens.
        docker_host: the engine; see the settings.
    """

    def __init__(
        self,
        redis_url: str,
        url: str,
        *,
        has_auth: bool,
        docker_host: str | None = None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.id, self.url = secrets.token_hex(6), url
        self.board = Board(redis_url)
        self.leases = Leases(self.board, self.id, lease_seconds)
        self.fence = Fence(self.leases, docker_host)
        self.sharing = Sharing(self.leases, self.fence, self.board, lambda: self.client, lambda: has_auth)
        self._verifier = Verifier(self.id)
        self._http: HttpClient | None = None
        self._context = http_client()
        self._tasks: TaskGroup | None = None
        self._known: dict[str, tuple[float, str | None]] = {}
        self._complaint = ""

    def __repr__(self) -> str:
        return f"<Replicas {self.id} {self.leases!r}>"

    @property
    def client(self) -> HttpClient:
        """For requests to other replicas."""
        assert self._http is not None, "the gateway does not run"
        return self._http

    # --- lifetime

    async def __aenter__(self) -> Replicas:
        await self.board.__aenter__()
        self._context = http_client()
        self._http = await self._context.__aenter__()
        self.leases.begin()
        await self._announce()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._keep_announced)
        self._tasks.start_soon(self.leases.keep)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        tasks, self._tasks = self._tasks, None
        assert tasks is not None
        tasks.cancel_scope.cancel()
        try:
            return await tasks.__aexit__(kind, error, trace)
        finally:
            with anyio.CancelScope(shield=True):
                await self._leave()

    async def _leave(self) -> None:
        with anyio.move_on_after(_LEAVE_SECONDS):
            try:
                await self.leases.hand_over(all_of_them=True)
                await self.board.leave(self.id)
            except BoardUnavailable as error:
                logger.warning("the other replicas were not told that this one ends: %s", error)
        self._http = None
        await self._context.__aexit__(None, None, None)
        await self.board.__aexit__(None, None, None)
        self.fence.close()

    async def _keep_announced(self) -> None:
        while True:
            await anyio.sleep(_ANNOUNCE_EVERY)
            await self._announce()

    async def _announce(self) -> None:
        try:
            self.fence.key = await self.board.shared_key(self.fence.key or secrets.token_bytes(32))
            await self.board.announce(self.id, self.url, _ALIVE_SECONDS)
            if self._complaint:
                logger.info("Redis answers again")
            self._complaint = ""
        except BoardUnavailable as error:
            if str(error) != self._complaint:
                logger.warning("the other replicas are not reached: %s", error)
            self._complaint = str(error)

    def leave(self) -> None:
        """The gateway drains: take over nothing more, and let no replica pass new calls on to us."""
        self.leases.leave()

    async def hand_over(self, let_go: Callable[[], None]) -> None:
        """While it drains: give back each container that nobody calls any more, until cancelled.

        Args:
            let_go: begins to stop those.
        """
        while True:
            let_go()
            await self.leases.hand_over(all_of_them=False)
            await anyio.sleep(_LET_GO_EVERY)

    # --- what a replica has given out

    def marked(self, text: str) -> str:
        """A session id or a state, so that every replica knows whose it is."""
        return f"{self.id}.{text}"

    def unmarked(self, text: str) -> str | None:
        """The same without our mark; None where it has another one."""
        return text.removeprefix(f"{self.id}.") if text.startswith(f"{self.id}.") else None

    async def elsewhere(self, text: str) -> str | None:
        """The address of the living replica, other than this one, that has given a text out."""
        match = _MARK.fullmatch(text)
        if match is None or match[1] == self.id:
            return None
        now = anyio.current_time()
        until, url = self._known.get(match[1], (0.0, None))
        if now >= until:
            try:
                url = await self.board.url_of(match[1])
            except BoardUnavailable:
                return url  # where it was is likely where it is
            self._known = {replica: known for replica, known in self._known.items() if known[0] > now}
            if url is not None:
                self._known[match[1]] = (now + _KNOWN_SECONDS, url)
        return url

    # --- whom the others vouch for

    def accept(self, token: str, *, is_request: bool) -> Assertion | None:
        """What another replica's assertion says, where it is one for us, and the container that it is for is ours. So
        a call is passed on once at most: whoever gets it has the lease, or refuses it.

        Args:
            is_request: it comes with a request. Else it is asked whether what was let in may go on: then an assertion
                may be old, and has been used.
        """
        assertion = self._verifier.verify(token, self.fence.key, is_new=is_request)
        lease = assertion and self.leases.held((assertion.server, assertion.scope))
        return assertion if assertion and lease and lease.holder.token == assertion.lease else None


def replicas_for(settings: Settings, *, has_auth: bool) -> Replicas | None:
    """This gateway as a replica, if the settings make it one.

    Raises:
        ConfigurationError: it has an address for other replicas, and no store that they share.
    """
    if settings.replica_url is None:
        return None
    if settings.store is None or not settings.store.startswith(("redis://", "rediss://")):
        raise ConfigurationError(
            "[gateway] replica_url is set, and store is not redis:// or rediss://. Replicas meet in Redis: name it, "
            "or take replica_url out."
        )
    return Replicas(settings.store, settings.replica_url, has_auth=has_auth, docker_host=settings.docker_host)
