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
from providers.container_slots import Slot
from providers.container_stdio import remove
from providers.docker import McpContainerManager
from providers.docker_engine import EngineUnavailable, ImageMissing
from providers.endpoint import OwnConnections, http_client
from providers.errors import BackendError, BackendTimeout, BackendUnavailable
from providers.resource import McpServerResource
from providers.wire import Deliver, Wire, opened_for

logger = logging.getLogger(__name__)

_NOTICE_SECONDS, _LOOK_EVERY = 0.5, 0.02
_SETTLE_SECONDS = 0.5
_ASK_SECONDS = 0.5
"""How long the engine is waited for before a connection to a container is used. An engine that hangs gives its port to
nobody else."""


class House(Protocol):
    """What is asked of the supervisor."""

    open_remote: OpenRemote
    engine_problem: EngineUnavailable | None

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
    manager: McpContainerManager | None = None
    slot: Slot | None = None
    container: Container | None = None
    address: Address | None = None
    error: BackendError | None = None
    """Why it did not come up, or what became of it."""
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
            served = _Served(scope, anyio.current_time(), is_over=scope.startswith("call:"))
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
        resource, explain = at_address(self._resource, served.address), partial(self._explain, served)
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
        async def is_still_there() -> bool:
            manager, container = served.made
            try:
                with anyio.fail_after(_ASK_SECONDS):
                    return await manager.address(self._resource, container) == address
            except TimeoutError:
                return True
            except BackendError:
                return False

        return OwnConnections(self._resource.name, is_still_there)

    async def _still_there(self, served: _Served) -> bool:
        """Whether it runs; its port may be another one, if Docker started it again."""
        manager, container = served.made
        status = await manager.get_status(container)
        if not status.is_running:
            self.lost(served.scope, status)
            return False
        address = await manager.address(self._resource, container)
        if address != served.address:
            self._cut(served, BackendUnavailable(self._resource.name, "its container was started again. Try again."))
            served.address = address
        return self._served.get(served.scope) is served

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
            served.error = BackendUnavailable(name, f"the gateway failed ({fault}). Its log has the details.")
        finally:
            if served.error is not None:
                self._served.pop(served.scope, None)
            if served.error is not None and served.error.is_of_server:
                self._history.died(served.error.problem)
            served.settled.set()
            self._end_if_over(served)

    async def _start_in_slot(self, served: _Served) -> None:
        served.manager = await self._house.keeper(self._resource)
        served.slot = await self._house.take_slot(self._resource.name, served.scope)
        try:
            self._history.begins()
            with self._history.learning_of_image():
                served.container = await served.manager.start_server(self._resource, served.scope)
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
                    await until_ready(at_address(self._resource, address), open_wire, runs)
            served.address = address
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                problem = await last_words(self._resource, manager, container)
                await remove(manager, container)
            if isinstance(error, TimeoutError):
                late = f"did not answer MCP within {limit:g} s; {problem}"
                raise BackendTimeout(self._resource.name, late, not_sent=True) from None
            if type(error) is BackendUnavailable:
                raise BackendUnavailable(self._resource.name, problem, not_sent=True) from None
            raise

    # --- lost

    def lost(self, scope: str, status: ContainerStatus) -> None:
        """The container of a scope has ended by itself."""
        served = self._served.get(scope)
        if served is not None and served.container == status.container and not status.is_running:
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
                status = await _settled_status(*served.made)
            except BackendError as error:
                return served.error or error
            if not status.is_running:
                self.lost(served.scope, status)
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

    def end_one_idle(self) -> bool:
        """End the one that was idle longest, if there is one without a user."""
        idle = [each for each in self._served.values() if each.is_idle]
        for served in sorted(idle, key=lambda each: each.last_used_at)[:1]:
            self._end(served, _STOPPED)
            return True
        return False

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


async def _settled_status(manager: McpContainerManager, container: Container) -> ContainerStatus:
    """The status after a connection broke. Docker may hear of the end of a container a little later than we do."""
    status = await manager.get_status(container)
    with anyio.move_on_after(_NOTICE_SECONDS):
        while status.is_running:
            await anyio.sleep(_LOOK_EVERY)
            status = await manager.get_status(container)
    return status
