"""How a container that several replicas use is reached: here where its lease is ours, else through the replica that
has the lease.

A launcher comes in for each wire to a container that is not one client session's own. Called are `leases`, `fence`
before the first container of a new lease, and the wire to remote servers for what another replica runs: to us that is
one more remote server, at `/adapters/{name}/mcp`, where `assertions` say for whom each request is made.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import anyio
from yarl import URL

from providers.assertions import Assertion, sign
from providers.endpoint import Endpoint, HttpClient, is_success
from providers.errors import BackendError, BackendLost, BackendUnavailable
from providers.fence import Fence
from providers.http_wire import background_tasks
from providers.identity import Identity, strip_auth_headers
from providers.leases import Lease, Leases, Place
from providers.remote import streamable_http_wire
from providers.replica_board import Board, BoardUnavailable, Holder
from providers.resource import McpServerResource, TransportType
from providers.wire import MAX_MESSAGE_BYTES, Deliver, Message, OpenWire, Wire, opened_by, opened_for

logger = logging.getLogger(__name__)

SENT_ON = "apollos-sent-on"
"""A header on what one replica sends to another: it is not sent on again, and turned away by one that drains."""
_LOOK_AGAIN = 0.25
_PROBE_SECONDS = 1.0
_TAKE_OVER_SECONDS = 2.0
"""How much longer than a lease a call waits for a replica that does not answer: then somebody else has its place."""
_GONE = "the replica that ran its container does not any more. Try again."


def path_of(server: str) -> str:
    """Where a replica serves one server by itself."""
    return f"/adapters/{server}/mcp"


class Sharing:
    """Args:
    client: the HTTP client for requests to other replicas.
    vouches: whether callers bring tokens, so that another replica asks who is calling.
    """

    def __init__(
        self, leases: Leases, fence: Fence, board: Board, client: Callable[[], HttpClient], vouches: Callable[[], bool]
    ) -> None:
        self.leases = leases
        self._fence, self._board, self._client, self._vouches = fence, board, client, vouches

    def __repr__(self) -> str:
        return f"<Sharing {self.leases!r}>"

    @asynccontextmanager
    async def wire(
        self, resource: McpServerResource, deliver: Deliver, open_here: OpenWire, check: Callable[[], None]
    ) -> AsyncIterator[Wire]:
        """A wire to the container of whoever it is opened for, wherever that runs.

        Args:
            open_here: opens one to a container of ours.
            check: raises a BackendError where none can be started here.

        Raises:
            BackendError: there is none to be had.
        """
        place = (resource.name, opened_for.get())
        found = await self._find(place, check)
        if isinstance(found, Lease):
            found.users += 1
            try:
                await self._clean(found)
                async with self._fenced(found, open_here, deliver) as wire:
                    yield wire
            finally:
                found.users -= 1
        else:
            async with self._through(found, place, resource, deliver) as wire:
                yield wire

    async def _find(self, place: Place, check: Callable[[], None]) -> Lease | tuple[Holder, str]:
        """Our lease, or a replica that has it and answers."""
        try:
            with anyio.fail_after(self.leases.seconds + _TAKE_OVER_SECONDS):
                while True:
                    found = await self._claim(place, check)
                    if isinstance(found, Lease):
                        return found
                    url = found and await self._where(found, place)
                    if found and url:
                        return found, url
                    await anyio.sleep(_LOOK_AGAIN)
        except TimeoutError:
            problem = "the replica that runs its container does not answer. Try again in a moment."
            raise BackendUnavailable(place[0], problem, not_sent=True) from None

    async def _claim(self, place: Place, check: Callable[[], None]) -> Lease | Holder | None:
        try:
            check()
        except BackendError:
            found = None if self.leases.held(place) else await self._board_says(place)
            if found is None or found.replica == self.leases.replica:
                raise
            return found
        return await self.leases.claim(place)

    async def _board_says(self, place: Place) -> Holder | None:
        try:
            return await self.leases.holder(place)
        except BoardUnavailable:
            return None

    async def _where(self, holder: Holder, place: Place) -> str | None:
        """The address of a replica that takes calls now."""
        try:
            url = await self._board.url_of(holder.replica)
        except BoardUnavailable:
            return None
        return url if url and await self._is_ready(url, place) else None

    async def _is_ready(self, url: str, place: Place) -> bool:
        probe = Endpoint(_as_remote(url, place[0]), self._client(), MAX_MESSAGE_BYTES)
        try:
            with anyio.fail_after(_PROBE_SECONDS):
                async with probe.request("GET", {}, url=URL(f"{url}/readyz")) as response:
                    return is_success(response)
        except (BackendError, TimeoutError):
            return False

    # --- here

    async def _clean(self, lease: Lease) -> None:
        async with lease.cleaning:
            if not lease.is_clean:
                await self._fence.clean(lease.place, lease.holder.token)
                lease.is_clean = True

    @asynccontextmanager
    async def _fenced(self, lease: Lease, open_here: OpenWire, deliver: Deliver) -> AsyncIterator[Wire]:
        async with open_here(deliver) as inner, background_tasks() as tasks:
            wire = FencedWire(inner, lease, self.leases)
            tasks.start_soon(wire.fail_when_lost)
            yield wire

    # --- through another replica

    @asynccontextmanager
    async def _through(
        self, found: tuple[Holder, str], place: Place, resource: McpServerResource, deliver: Deliver
    ) -> AsyncIterator[Wire]:
        (holder, url), vouch = found, self._vouching(found[0], place)
        there = _as_remote(url, resource.name, resource)
        endpoint = ReplicaEndpoint(there, self._client(), vouch)
        async with (
            streamable_http_wire(there, deliver, self._client(), endpoint=endpoint) as wire,
            background_tasks() as tasks,
        ):
            tasks.start_soon(self._watch, wire, holder, place)
            yield wire

    def _vouching(self, holder: Holder, place: Place) -> Callable[[Identity | None], dict[str, str]]:
        opener = opened_by.get()

        def vouch(identity: Identity | None) -> dict[str, str]:
            identity = identity or opener
            if identity is None or not self._vouches():
                return {}
            token = sign(Assertion(identity, *place, holder.token), holder.replica, self._fence.key)
            return {"authorization": f"Bearer {token}"}

        return vouch

    async def _watch(self, wire: Wire, holder: Holder, place: Place) -> None:
        """End the wire once another replica has the lease: the one at its end may be frozen, and say nothing."""
        while True:
            await anyio.sleep(self.leases.seconds / 4)
            try:
                if await self.leases.holder(place) != holder:
                    return wire.fail(BackendLost(place[0], _GONE))
            except BoardUnavailable as error:
                logger.debug("server '%s': where its container runs is not known: %s", place[0], error)


class FencedWire(Wire):
    """A wire to a container of ours, for as long as its lease is."""

    def __init__(self, inner: Wire, lease: Lease, leases: Leases) -> None:
        self._inner, self._lease, self._leases = inner, lease, leases
        super().__init__(inner.server)
        self.closed, self.identity_in_meta = inner.closed, inner.identity_in_meta

    def __repr__(self) -> str:
        return f"<FencedWire {self._lease!r}>"

    @property
    def identity(self) -> Identity | None:
        return self._inner.identity

    @identity.setter
    def identity(self, identity: Identity | None) -> None:
        self._inner.identity = identity

    @property
    def failure(self) -> BackendError | None:
        return self._inner.failure

    @failure.setter
    def failure(self, failure: BackendError | None) -> None:
        self._inner.failure = failure

    def fail(self, error: BackendError) -> None:
        self._inner.fail(error)

    async def send(self, message: Message, headers: Mapping[str, str]) -> None:
        if not self._lease.is_certain and not await self._leases.confirm(self._lease):
            raise BackendUnavailable(self.server, _GONE, not_sent=True)
        await self._inner.send(message, headers)

    async def fail_when_lost(self) -> None:
        """Until cancelled."""
        await self._lease.ended.wait()
        self.fail(BackendLost(self.server, _GONE))


class ReplicaEndpoint(Endpoint):
    """Another replica, as far as it serves one server.

    Args:
        vouch: the header that says for whom a request is made.
    """

    def __init__(
        self,
        resource: McpServerResource,
        client: HttpClient,
        vouch: Callable[[Identity | None], dict[str, str]],
    ) -> None:
        super().__init__(resource, client, MAX_MESSAGE_BYTES)
        self._vouch = vouch

    def headers(self, mcp: Mapping[str, str], identity: Identity | None) -> dict[str, str]:
        return strip_auth_headers(mcp) | self._vouch(identity) | {SENT_ON: "1", "accept-encoding": "identity"}

    def refusal(self, status: int) -> BackendUnavailable:
        # what it refused it has not done: whoever sent it opens another wire, which leads to who runs it now
        return BackendUnavailable(self.server, _GONE, not_sent=400 <= status < 500)


def _as_remote(url: str, server: str, resource: McpServerResource | None = None) -> McpServerResource:
    """A server that another replica runs, as the remote server that it is to us."""
    there = McpServerResource(name=server, transport_type=TransportType.STREAMABLE_HTTP, url=url + path_of(server))
    return there if resource is None else there.model_copy(update={"timeouts": resource.timeouts})
