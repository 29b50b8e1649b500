"""The containers over HTTP of one launcher: one for each scope, started once however many wait, shared by its wires.

The launcher comes in. Called are the container manager, `container_http` for when a container is ready and why one did
not come up, and for what concerns all servers together the supervisor, as `House`. When a container has ended, its port
may be a stranger's at once: each wire has connections of its own, and they are cut in the step in which it is given up.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import anyio

from providers.container import Address, Container, ContainerStatus
from providers.container_http import OpenRemote, at_address, explaining, last_words, until_ready
from providers.container_slots import Idle, Slot
from providers.container_stdio import remove, status_at_end
from providers.docker import McpContainerManager
from providers.docker_engine import EngineHung, EngineUnavailable, ImageMissing
from providers.endpoint import OwnConnections, http_client
from providers.errors import BackendError, BackendTimeout, BackendUnavailable
from providers.resource import McpServerResource
from providers.sharing import Sharing
from providers.wire import Deliver, Wire, opened_for

logger = logging.getLogger(__name__)

_NOTICE_SECONDS = 0.5
"""How long Docker may take to know that a container has ended whose connection broke."""
_SETTLE_SECONDS = 0.5
_ASK_SECONDS = 0.5
"""How long the engine is waited for before a connection to a container is used. One that hangs gives its port to nobody
else. One that is only slow may have: then what is sent on this connection goes to whoever has the port now, as the
price of calls that go on while the engine hangs."""


class House(Protocol):
    """What is asked of the supervisor."""

    open_remote: OpenRemote
    engine_problem: EngineUnavailable | None
    sharing: Sharing | None

    async def filled(self, resource: McpServerResource) -> McpServerResource: ...
    async def manager(self) -> McpContainerManager: ...
    async def keeper(self, resource: McpServerResource) -> McpContainerManager: ...
    async def take_slot(self, server: str, whose: str) -> Slot: ...
    def free_slot(self, slot: Slot) -> None: ...
    def start_soon(self, work: Callable[..., Any], *args: Any) -> None: ...
    def failures(self, server: str) -> int: ...
    def log(self, server: str) -> Callable[[str], None]: ...


@dataclass(slots=True)
class History:
    """What became of a server's containers so far."""

    restarts: int = 0
    last_death: str = ""
    is_image_missing: bool = False
    has_died: bool = False

    def begins(self) -> None:
        """A container is about to be started."""
        self.restarts += self.has_died
        self.has_died = False

    def died(self, problem: str) -> None:
        self.has_died, self.last_death = True, problem

    @contextmanager
    def learning_of_image(self) -> Iterator[None]:
        try:
            yield
            self.is_image_missing = False
        except ImageMissing:
            self.is_image_missing = True
            raise


@dataclass(slots=True, eq=False)
class _Line:
    """One wire to a container, from before it is open, and the connections under it."""

    connections: OwnConnections
    wire: Wire | None = None
    error: BackendError | None = None

    def opened(self, wire: Wire) -> None:
        self.wire = wire
        if self.error is not None:
            wire.fail(self.error)

    async def fail_soon(self) -> None:
        """The calls in flight have their own answers first: they say whether a call may be repeated."""
        await anyio.sleep(_SETTLE_SECONDS)
        if self.wire is not None and self.error is not None:
            self.wire.fail(self.error)


@dataclass(slots=True, eq=False)
class _Served:
    """A container over HTTP. `users` counts who waits for it and who has a wire to it; `is_over` says that no more will
    come."""

    scope: str
    last_used_at: float
    is_over: bool
    resource: McpServerResource  # with its secrets, once it is being started
    manager: McpContainerManager | None = None
    slot: Slot | None = None
    container: Container | None = None
    address: Address | None = None
    error: BackendError | None = None  # why it did not come up, or what became of it
    settled: anyio.Event = field(default_factory=anyio.Event)
    users: int = 0
    lines: set[_Line] = field(default_factory=set)

    @property
    def is_idle(self) -> bool:
        return self.settled.is_set() and not self.users

    @property
    def made(self) -> tuple[McpContainerManager, Container]:
        assert self.manager is not None and self.container is not None, "it is not there yet"
        return self.manager, self.container


class ServedContainers:
    """Args:
    is_replaced: whether a later generation took over, so that what is idle goes at once.
    """

    def __init__(
        self, resource: McpServerResource, house: House, history: History, is_replaced: Callable[[], bool]
    ) -> None:
        self._resource, self._house, self._history, self._is_replaced = resource, house, history, is_replaced
        self._served: dict[str, _Served] = {}

    def __repr__(self) -> str:
        return f"<ServedContainers {self._resource.name} {len(self._served)}>"

    def __len__(self) -> int:
        return len(self._served)

    def __contains__(self, scope: str) -> bool:
        return scope in self._served

    @property
    def is_any_there(self) -> bool:
        return any(each.address for each in self._served.values())

    # --- used

    @asynccontextmanager
    async def wire(self, deliver: Deliver) -> AsyncIterator[Wire]:
        """A wire to the container of whoever it is opened for.

        Raises:
            BackendError: there is no container to be had.
        """
        scope = opened_for.get()
        await anyio.lowlevel.checkpoint()  # who is not needed any more, because its session ended, starts nothing
        for _ in range(2):
            is_new = scope not in self._served
            async with self._using(scope) as served:
                if is_new or await self._still_there(served):
                    async with self._line(served, deliver) as wire:
                        yield wire
                    return
        raise BackendUnavailable(self._resource.name, "its container ends again and again.", not_sent=True)

    @asynccontextmanager
    async def _using(self, scope: str) -> AsyncIterator[_Served]:
        """The container of a scope, started if there is none. It is in use from the step in which it is chosen, so that
        nobody ends it between that and the wire."""
        served = self._served.get(scope)
        if served is None:
            served = _Served(scope, anyio.current_time(), scope.startswith("call:"), self._resource)
            self._house.start_soon(self._start, served)
            self._served[scope] = served
        served.users += 1
        try:
            await served.settled.wait()
            if served.error is not None:
                raise served.error.again(not_sent=True)
            yield served
        finally:
            served.users -= 1
            served.last_used_at = anyio.current_time()
            self._end_if_over(served)

    @asynccontextmanager
    async def _line(self, served: _Served, deliver: Deliver) -> AsyncIterator[Wire]:
        assert served.address is not None, "it is not there yet"
        resource, explain = at_address(served.resource, served.address), partial(self._explain, served)
        line = _Line(self._connections(served, served.address))
        served.lines.add(line)
        try:
            async with (
                http_client(line.connections) as client,
                self._house.open_remote(resource, explaining(deliver, explain), client) as wire,
            ):
                line.opened(wire)
                yield wire
        finally:
            served.lines.discard(line)

    def _connections(self, served: _Served, address: Address) -> OwnConnections:
        return OwnConnections(self._resource.name, partial(self._check, served, address))

    async def _check(self, served: _Served, address: Address) -> None:
        """Whether a container still has this address. If it is known not to, nothing is sent there any more.

        Raises:
            BackendError: it has not, or the engine, which is not hung, does not say.
        """
        manager, container = served.made
        try:
            with anyio.fail_after(_ASK_SECONDS):
                found = await manager.address(self._resource, container)
        except (TimeoutError, EngineHung):
            return
        except BackendError as error:
            if not isinstance(error, EngineUnavailable):  # it has no address
                self.lost(served.scope, await manager.get_status(container))
            raise (served.error or error).again(not_sent=True) from None
        if found != address:
            raise self._moved(served, found).again(not_sent=True)

    async def _still_there(self, served: _Served) -> bool:
        """Whether it runs; its port may be another one, if Docker started it again."""
        manager, container = served.made
        status = await manager.get_status(container)
        if not status.is_running:
            self.lost(served.scope, status)
            return False
        address = await manager.address(self._resource, container)
        if address != served.address:
            self._moved(served, address)
        return self._served.get(served.scope) is served

    def _moved(self, served: _Served, address: Address) -> BackendError:
        error = BackendUnavailable(self._resource.name, "its container was started again. Try again.")
        if served.settled.is_set():
            self._cut(served, error)
            served.address = address
        return error

    # --- started

    async def _start(self, served: _Served) -> None:
        """Start a container and wait until it answers; a task of its own, because more than one caller may wait."""
        name = self._resource.name
        served.error = BackendUnavailable(name, "the gateway is shutting down.", not_sent=True)
        try:
            await self._start_in_slot(served)
            served.error = None
        except BackendError as error:
            served.error = error
        except Exception as fault:  # a task ends here: a fault of ours is told to who waits
            logger.warning("server '%s': a fault of ours kept its container from starting", name, exc_info=fault)
            served.error = BackendUnavailable(
                name, f"the gateway failed ({type(fault).__name__}). Its log has the details."
            )
        finally:
            if served.error is not None:
                self._served.pop(served.scope, None)
            if served.error is not None and served.error.is_of_server:
                self._history.died(served.error.problem)
            served.settled.set()
            self._end_if_over(served)

    async def _start_in_slot(self, served: _Served) -> None:
        served.resource = await self._house.filled(self._resource)
        served.manager = await self._house.keeper(self._resource)
        served.slot = await self._house.take_slot(self._resource.name, served.scope)
        try:
            self._history.begins()
            with self._history.learning_of_image():
                served.container = await served.manager.start_server(served.resource, served.scope)
                await self._until_ready(served)
        except BaseException:
            self._house.free_slot(served.slot)
            raise

    async def _until_ready(self, served: _Served) -> None:
        limit, (manager, container) = self._resource.timeouts.first_start, served.made

        async def runs() -> bool:
            return (await manager.get_status(container)).is_running

        try:
            address = await manager.address(self._resource, container)
            async with http_client(self._connections(served, address)) as client:
                open_wire = partial(self._house.open_remote, client=client)
                with anyio.fail_after(limit):
                    await until_ready(at_address(served.resource, address), open_wire, runs)
            served.address = address
        except BaseException as error:
            is_silent = isinstance(error, TimeoutError) or type(error) is BackendUnavailable
            with anyio.CancelScope(shield=True):
                problem = await last_words(self._resource, manager, container) if is_silent else ""
                await remove(manager, container)
            if isinstance(error, TimeoutError):
                late = f"did not answer MCP within {limit:g} s; {problem}"
                raise BackendTimeout(self._resource.name, late, not_sent=True) from None
            if is_silent:
                raise BackendUnavailable(self._resource.name, problem, not_sent=True) from None
            raise

    # --- lost

    def lost(self, scope: str, status: ContainerStatus) -> None:
        """The container of a scope has ended by itself."""
        served = self._served.get(scope)
        if served and served.settled.is_set() and served.container == status.container and not status.is_running:
            self._history.died(f"its container {status.obituary()}")
            self._end(served, f"its container {status.obituary()}. The next call starts another.")

    def noticed(self, statuses: Mapping[str, ContainerStatus]) -> list[tuple[McpContainerManager, Container]]:
        """Given Docker's list by id, the containers that are not running any more."""
        served = [each.made for each in self._served.values() if each.container and each.settled.is_set()]
        return [each for each in served if (found := statuses.get(each[1].id)) is None or not found.is_running]

    async def _explain(self, served: _Served) -> BackendError | None:
        """What became of a container whose wire reported a failure; None if it runs."""
        if served.error is None:
            try:
                self.lost(served.scope, await status_at_end(*served.made, _NOTICE_SECONDS))
            except BackendError as error:
                return served.error or error
        return served.error

    # --- ended

    def end_scope(self, scope: str) -> None:
        """Nothing more comes from there: its container ends with its last user."""
        if (served := self._served.get(scope)) is not None:
            served.is_over = True
            self._end_if_over(served)

    def end_idle(self, is_idle: Callable[[str, float], bool]) -> None:
        """End those without a user that are idle, given their scope and when they were last used."""
        for served in list(self._served.values()):
            if served.is_idle and (self._is_replaced() or is_idle(served.scope, served.last_used_at)):
                self._end(served, _STOPPED)

    def idle(self) -> list[Idle]:
        """Those that may be ended to make room: without a user, and not to be kept."""
        free = [each for each in self._served.values() if each.is_idle and not self._resource.keep]
        return [Idle(each.last_used_at, partial(self._end, each, _STOPPED)) for each in free]

    def _end_if_over(self, served: _Served) -> None:
        if served.is_idle and (served.is_over or self._is_replaced()) and not self._resource.keep:
            self._end(served, _STOPPED)

    def _end(self, served: _Served, problem: str) -> None:
        if self._served.get(served.scope) is not served or not served.settled.is_set():
            return
        del self._served[served.scope]
        self._give_up(served, problem)
        self._house.start_soon(self._stop, served)

    def _give_up(self, served: _Served, problem: str) -> None:
        served.error = BackendUnavailable(self._resource.name, problem)
        self._cut(served, served.error)
        if served.slot is not None:
            served.slot.leave()

    def _cut(self, served: _Served, error: BackendError) -> None:
        """Nothing is sent to where it was, from this step on, and the pool drops what it has there."""
        for line in served.lines:
            line.error = error
            line.connections.cut()
            self._house.start_soon(line.fail_soon)

    async def _stop(self, served: _Served) -> None:
        assert served.slot is not None, "it was never started"
        try:
            await remove(*served.made, grace=self._resource.timeouts.shutdown)
        finally:
            self._house.free_slot(served.slot)

    async def stop_all(self, *, keep: bool) -> None:
        """Stop every container, but for one that is to be kept."""
        ended = [each for each in self._served.values() if each.container and not (keep and self._resource.keep)]
        self._served.clear()
        async with anyio.create_task_group() as tasks:
            for served in ended:
                self._give_up(served, _STOPPED)
                tasks.start_soon(self._stop, served)


_STOPPED = "its container was stopped. The next call starts another."
