"""`ContainerLauncher`: one generation of a server that runs in containers, and the way in which its wires are opened.

The pool comes in, by calling it as an `OpenWire`; so does the docker middleware, to say what is in use. Over stdio each
wire has a container of its own. Over HTTP there is one per scope (a client session, a user, everybody), started once
however many wait, and shared by all wires of that scope. Called are the container manager and, for what concerns all
servers together, the supervisor, as `House`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any, Protocol

import anyio

from providers.container import Address, Container, ContainerStatus
from providers.container_http import OpenRemote, at_address, explaining, until_ready
from providers.container_stdio import container_stdio_wire, remove
from providers.docker import McpContainerManager
from providers.docker_engine import EngineUnavailable, ImageMissing
from providers.errors import BackendError, BackendTimeout, BackendUnavailable
from providers.resource import McpServerResource, TransportType
from providers.wire import Deliver, Wire, opened_for

logger = logging.getLogger(__name__)

_CRASH_LOOP = 3
_LAST_WORDS = 300
_NOTICE_SECONDS, _LOOK_EVERY = 0.5, 0.02


class ServerState(StrEnum):
    """How it stands with a server's containers."""

    STOPPED = "stopped"
    PULLING = "pulling"
    IMAGE_MISSING = "image missing"
    STARTING = "starting"
    RUNNING = "running"
    CRASH_LOOP = "crashloop"


class House(Protocol):
    """What a launcher asks of the supervisor."""

    open_remote: OpenRemote
    engine_problem: EngineUnavailable | None

    async def manager(self) -> McpContainerManager: ...
    async def take_slot(self, server: str) -> None: ...
    def free_slot(self) -> None: ...
    def start_soon(self, work: Callable[..., Any], *args: Any) -> None: ...
    def failures(self, server: str) -> int: ...
    def log(self, server: str) -> Callable[[str], None]: ...


@dataclass(slots=True, eq=False)
class _Served:
    """A container over HTTP. `wires` counts the open wires to it; `is_over` that no more will come."""

    scope: str
    last_used_at: float
    container: Container | None = None
    address: Address | None = None
    error: BackendError | None = None
    settled: anyio.Event = field(default_factory=anyio.Event)
    wires: int = 0
    is_over: bool = False


class ContainerLauncher:
    """Args:
    resource: a record with a `docker_image`.
    """

    def __init__(self, resource: McpServerResource, house: House) -> None:
        self.resource = resource
        self.is_replaced = False
        """A later generation took over: what is idle goes at once."""
        self.pulling: str | None = None
        """How far the pull of its image is, while it is under way."""
        self._is_image_missing = False
        self.restarts = 0
        self.last_death = ""
        self._has_died = False
        self._house = house
        self._served: dict[str, _Served] = {}
        self._over_stdio_now = 0
        self._calls: Counter[str] = Counter()
        self._last_call: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<ContainerLauncher {self.resource.name} {self.state}>"

    @property
    def state(self) -> ServerState:
        if self.pulling is not None:
            return ServerState.PULLING
        if self._over_stdio_now or any(each.address for each in self._served.values()):
            return ServerState.RUNNING
        if self._is_image_missing:
            return ServerState.IMAGE_MISSING
        if self._house.failures(self.resource.name) >= _CRASH_LOOP:
            return ServerState.CRASH_LOOP
        return ServerState.STARTING if self._served else ServerState.STOPPED

    @property
    def is_empty(self) -> bool:
        return not self._served and not self._over_stdio_now

    def facts(self) -> Mapping[str, Any]:
        """For the command line, which is another process."""
        return {"state": str(self.state), "restarts": self.restarts, "reason": self.last_death}

    # --- opened by the pool

    def __call__(self, deliver: Deliver) -> AbstractAsyncContextManager[Wire]:
        self.check()
        if problem := self._house.engine_problem:
            raise EngineUnavailable(self.resource.name, problem.problem, not_sent=True)
        if self.resource.transport_type is TransportType.STDIO:
            return self._over_stdio(deliver)
        return self._over_http(deliver)

    def check(self) -> None:
        """Refuse at once what nobody need wait for.

        Raises:
            ImageMissing: its image is still on its way.
        """
        if self.pulling is not None:
            problem = f"its image is being pulled ({self.pulling}). Try again in a moment."
            raise ImageMissing(self.resource.name, problem, not_sent=True)

    @asynccontextmanager
    async def _over_stdio(self, deliver: Deliver) -> AsyncIterator[Wire]:
        name, made = self.resource.name, False
        manager = await self._house.manager()

        def discard(container: Container) -> None:
            nonlocal made
            made = True
            self._house.start_soon(self._discard, manager, container)

        await self._house.take_slot(name)
        try:
            self._count_restart()
            opened = container_stdio_wire(
                self.resource, deliver, manager, opened_for.get(), discard=discard, log=self._house.log(name)
            )
            async with self._learning_of_image(), opened as wire:
                self._over_stdio_now += 1
                try:
                    yield wire
                finally:
                    self._over_stdio_now -= 1
                    if wire.failure is not None:
                        self._died(wire.failure.problem)
        finally:
            if not made:
                self._house.free_slot()

    @asynccontextmanager
    async def _learning_of_image(self) -> AsyncIterator[None]:
        try:
            yield
            self._is_image_missing = False
        except ImageMissing:
            self._is_image_missing = True
            raise

    async def _discard(self, manager: McpContainerManager, container: Container) -> None:
        await remove(manager, container)
        self._house.free_slot()

    @asynccontextmanager
    async def _over_http(self, deliver: Deliver) -> AsyncIterator[Wire]:
        served = await self._serve(opened_for.get())
        assert served.address is not None
        served.wires += 1
        try:
            explained = explaining(deliver, partial(self._explain, served))
            async with self._house.open_remote(at_address(self.resource, served.address), explained) as wire:
                yield wire
        finally:
            served.wires -= 1
            served.last_used_at = anyio.current_time()
            self._end_if_over(served)

    # --- containers over HTTP

    async def _serve(self, scope: str) -> _Served:
        for _ in range(2):
            served = self._served.get(scope)
            is_new = served is None
            if served is None:
                served = self._served[scope] = _Served(scope, anyio.current_time())
                served.is_over = scope.startswith("call:")
                self._house.start_soon(self._start, served)
            await served.settled.wait()
            if served.error is not None:
                raise type(served.error)(self.resource.name, served.error.problem, not_sent=True)
            if is_new or await self._still_there(served):
                return served
        raise BackendUnavailable(self.resource.name, "its container ends again and again.", not_sent=True)

    async def _start(self, served: _Served) -> None:
        """Start a container and wait until it answers; a task of its own, because more than one caller may wait."""
        try:
            manager = await self._house.manager()
            await self._house.take_slot(self.resource.name)
            try:
                self._count_restart()
                async with self._learning_of_image():
                    await self._start_in_slot(manager, served)
            except BaseException:
                self._house.free_slot()
                raise
        except BackendError as error:
            self._died(error.problem)
            self._served.pop(served.scope, None)
            served.error = error
        finally:
            served.settled.set()

    async def _start_in_slot(self, manager: McpContainerManager, served: _Served) -> None:
        limit = self.resource.timeouts.first_start
        container = served.container = await manager.start_server(self.resource, served.scope)
        try:
            address = await manager.address(self.resource, container)
            with anyio.fail_after(limit):
                await until_ready(
                    at_address(self.resource, address), self._house.open_remote, lambda: _runs(manager, container)
                )
            served.address = address
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                problem = await _last_words(manager, container)
                await remove(manager, container)
            if isinstance(error, TimeoutError):
                raise BackendTimeout(
                    self.resource.name, f"did not answer MCP within {limit:g} s; {problem}", not_sent=True
                ) from None
            if isinstance(error, BackendUnavailable):
                raise BackendUnavailable(self.resource.name, problem, not_sent=True) from None
            raise

    async def _still_there(self, served: _Served) -> bool:
        """Whether it runs; its port may be another one, if Docker started it again."""
        manager = await self._house.manager()
        assert served.container is not None
        status = await manager.get_status(served.container)
        if status.is_running:
            served.address = await manager.address(self.resource, served.container)
            return True
        self.lost(served.scope, status)
        return False

    def lost(self, scope: str, status: ContainerStatus) -> None:
        """The container of a scope has ended by itself."""
        served = self._served.get(scope)
        if served is not None and served.container == status.container:
            self._died(f"its container {status.obituary()}")
            self._end(served)

    def noticed(self, statuses: Mapping[str, ContainerStatus]) -> list[Container]:
        """Given Docker's list by id, the containers over HTTP that are not running any more."""
        served = [each.container for each in self._served.values() if each.container and each.settled.is_set()]
        return [each for each in served if (found := statuses.get(each.id)) is None or not found.is_running]

    async def _explain(self, served: _Served) -> BackendError | None:
        """What became of a container whose wire reported a failure; None if it runs."""
        manager = await self._house.manager()
        if served.container is None:
            return None
        try:
            status = await _settled_status(manager, served.container)
        except BackendError as error:
            return error
        if status.is_running:
            return None
        self.lost(served.scope, status)
        return BackendUnavailable(
            self.resource.name, f"its container {status.obituary()}. The next call starts another."
        )

    def _end_if_over(self, served: _Served) -> None:
        if served.wires == 0 and (served.is_over or self.is_replaced) and not self.resource.keep:
            self._end(served)

    def _end(self, served: _Served) -> None:
        if self._served.get(served.scope) is served:
            del self._served[served.scope]
            self._house.start_soon(self._stop, served)

    async def _stop(self, served: _Served) -> None:
        manager = await self._house.manager()
        if served.container is not None:
            await remove(manager, served.container, grace=self.resource.timeouts.shutdown)
        self._house.free_slot()

    async def stop_all(self, *, keep: bool) -> None:
        """Stop every container over HTTP, but for one that is to be kept."""
        served = [each for each in self._served.values() if not (keep and self.resource.keep)]
        self._served.clear()
        async with anyio.create_task_group() as tasks:
            for each in served:
                tasks.start_soon(self._stop, each)

    # --- the idle clock

    @contextmanager
    def in_use(self, scope: str) -> Iterator[None]:
        """For the length of a call of this scope."""
        self._calls[scope] += 1
        try:
            yield
        finally:
            self._calls[scope] -= 1
            self._last_call[scope] = anyio.current_time()
            if not self._calls[scope]:
                del self._calls[scope]

    def idle_for(self, scope: str, since: float) -> float:
        """Seconds in which nothing was asked of a scope. `since` is when it was last heard of otherwise."""
        if self._calls[scope]:
            return 0.0
        return anyio.current_time() - max(since, self._last_call.get(scope, 0.0))

    def stop_idle(self, limit: float) -> None:
        """Stop the containers over HTTP that nobody has used for `limit` seconds and no wire is open to."""
        for served in list(self._served.values()):
            is_idle = self.idle_for(served.scope, served.last_used_at) > limit or self.is_replaced
            if served.settled.is_set() and served.wires == 0 and is_idle:
                self._end(served)
        for scope in [scope for scope in self._last_call if scope not in self._served and not self._calls[scope]]:
            if anyio.current_time() - self._last_call[scope] > limit:
                del self._last_call[scope]

    def stop_one_idle(self) -> bool:
        """Stop the container over HTTP that was idle longest, if there is one without a wire."""
        idle = [each for each in self._served.values() if each.settled.is_set() and not each.wires]
        for served in sorted(idle, key=lambda each: each.last_used_at)[:1]:
            self._end(served)
            return True
        return False

    def end_scope(self, scope: str) -> None:
        """A client session ended: its container has nothing more to do."""
        if (served := self._served.get(scope)) is not None:
            served.is_over = True
            self._end_if_over(served)

    # --- deaths

    def _died(self, problem: str) -> None:
        self._has_died, self.last_death = True, problem

    def _count_restart(self) -> None:
        self.restarts += self._has_died
        self._has_died = False


async def _runs(manager: McpContainerManager, container: Container) -> bool:
    return (await manager.get_status(container)).is_running


async def _settled_status(manager: McpContainerManager, container: Container) -> ContainerStatus:
    """The status after a connection broke. Docker may hear of the end of a container a little later than we do."""
    status = await manager.get_status(container)
    with anyio.move_on_after(_NOTICE_SECONDS):
        while status.is_running:
            await anyio.sleep(_LOOK_EVERY)
            status = await manager.get_status(container)
    return status


async def _last_words(manager: McpContainerManager, container: Container) -> str:
    """Why a container over HTTP did not come up, with the end of what it said."""
    try:
        status = await manager.get_status(container)
        lines = [line.partition(" ")[2].strip() for line in await manager.get_logs(container, tail=5)]
    except BackendError as error:
        return error.problem
    words = " | ".join("".join(filter(str.isprintable, line)) for line in lines)[-_LAST_WORDS:]
    how = "its container runs" if status.is_running else f"its container {status.obituary()}"
    return f"{how}; its last words: {words}" if words else f"{how}; it said nothing."
