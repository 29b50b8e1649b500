"""`ContainerLauncher`: one generation of a server that runs in containers, and the way in which its wires are opened.

The pool comes in, by calling it as an `OpenWire`; so does the docker middleware, to say what is in use. Over stdio each
wire has a container of its own; those over HTTP are kept by `container_served`. Called are the container manager and,
for what concerns all servers together, the supervisor, as `House`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from enum import StrEnum
from functools import partial
from typing import Any

import anyio

from providers.container import Container, ContainerStatus
from providers.container_served import History, House, ServedContainers
from providers.container_slots import Idle, Slot
from providers.container_stdio import Ended, container_stdio_wire, remove, run_container
from providers.container_tool_wire import MAX_OUTPUT, container_tool_wire
from providers.docker import McpContainerManager
from providers.docker_engine import EngineUnavailable, ImageMissing
from providers.leases import is_of_all_replicas
from providers.resource import McpServerResource, TransportType
from providers.wire import Deliver, Wire, opened_for

_CRASH_LOOP = 3


class ServerState(StrEnum):
    """How it stands with a server's containers."""

    STOPPED = "stopped"
    PULLING = "pulling"
    IMAGE_MISSING = "image missing"
    STARTING = "starting"
    RUNNING = "running"
    CRASH_LOOP = "crashloop"


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
        self.has_image = anyio.Event()
        """Set once its image is there, or known not to come for now."""
        self._house, self._history = house, History()
        self._served = ServedContainers(resource, house, self._history, lambda: self.is_replaced)
        self._over_stdio_now = 0
        self._calls: Counter[str] = Counter()
        self._last_call: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<ContainerLauncher {self.resource.name} {self.state}>"

    @property
    def state(self) -> ServerState:
        if self.pulling is not None:
            return ServerState.PULLING
        if self._over_stdio_now or self._served.is_any_there:
            return ServerState.RUNNING
        if self._history.is_image_missing:
            return ServerState.IMAGE_MISSING
        if self._house.failures(self.resource.name) >= _CRASH_LOOP:
            return ServerState.CRASH_LOOP
        return ServerState.STARTING if self._served else ServerState.STOPPED

    @property
    def restarts(self) -> int:
        return self._history.restarts

    @property
    def is_empty(self) -> bool:
        return not self._served and not self._over_stdio_now

    def facts(self) -> Mapping[str, Any]:
        """For the command line, which is another process."""
        return {"state": str(self.state), "restarts": self.restarts, "reason": self._history.last_death}

    # --- opened by the pool

    def __call__(self, deliver: Deliver) -> AbstractAsyncContextManager[Wire]:
        if self.resource.docker_tools:
            return self._to_tools(deliver)
        if self._house.sharing is not None and is_of_all_replicas(opened_for.get()):
            return self._house.sharing.wire(self.resource, deliver, self._here, self._check_engine)
        return self._here(deliver)

    def _check_engine(self) -> None:
        self.check()
        if problem := self._house.engine_problem:
            raise EngineUnavailable(self.resource.name, problem.problem, not_sent=True)

    def _here(self, deliver: Deliver) -> AbstractAsyncContextManager[Wire]:
        """A wire to a container of this gateway."""
        self._check_engine()
        if self.resource.transport_type is TransportType.STDIO:
            return self._over_stdio(deliver)
        return self._served.wire(deliver)

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
        name, whose = self.resource.name, opened_for.get()
        resource = await self._house.filled(self.resource)
        async with self._room(whose) as (manager, slot, discard):
            self._history.begins()
            opened = container_stdio_wire(resource, deliver, manager, whose, discard=discard, log=self._house.log(name))
            with self._history.learning_of_image():
                async with opened as wire:
                    self._over_stdio_now += 1
                    try:
                        yield wire
                    finally:
                        slot.leave()
                        self._over_stdio_now -= 1
                        if wire.failure is not None:
                            self._history.died(wire.failure.problem)

    @asynccontextmanager
    async def _to_tools(self, deliver: Deliver) -> AsyncIterator[Wire]:
        resource = await self._house.filled(self.resource)
        async with container_tool_wire(resource, deliver, partial(self._run, opened_for.get())) as wire:
            yield wire

    async def _run(self, whose: str, resource: McpServerResource) -> Ended:
        """Run a tool's program to its end. What it says is its caller's alone, and not in the log."""
        self._check_engine()
        async with self._room(whose) as (manager, _, discard):
            self._over_stdio_now += 1
            try:
                with self._history.learning_of_image():
                    return await run_container(resource, manager, whose, discard=discard, max_bytes=MAX_OUTPUT)
            finally:
                self._over_stdio_now -= 1

    @asynccontextmanager
    async def _room(self, whose: str) -> AsyncIterator[tuple[McpContainerManager, Slot, Callable[[Container], None]]]:
        """Room for one container; it is free again once the container is removed that was handed to `discard`."""
        manager, made = await self._house.manager(), False
        slot = await self._house.take_slot(self.resource.name, whose)

        def discard(container: Container) -> None:
            nonlocal made
            made = True
            self._house.start_soon(self._discard, manager, container, slot)

        try:
            yield manager, slot, discard
        finally:
            if not made:
                self._house.free_slot(slot)

    async def _discard(self, manager: McpContainerManager, container: Container, slot: Slot) -> None:
        try:
            await remove(manager, container)
        finally:
            self._house.free_slot(slot)

    # --- of the containers over HTTP

    def lost(self, scope: str, status: ContainerStatus) -> None:
        """The container of a scope has ended by itself."""
        self._served.lost(scope, status)

    def noticed(self, statuses: Mapping[str, ContainerStatus]) -> list[tuple[McpContainerManager, Container]]:
        """Given Docker's list by id, the containers over HTTP that are not running any more."""
        return self._served.noticed(statuses)

    def end_scope(self, scope: str) -> None:
        """A client session ended: its container has nothing more to do."""
        self._served.end_scope(scope)

    def idle(self) -> list[Idle]:
        """The containers over HTTP that may be stopped to make room: without a wire, and not to be kept."""
        return self._served.idle()

    async def stop_all(self, *, keep: bool) -> None:
        """Stop every container over HTTP, but for one that is to be kept."""
        await self._served.stop_all(keep=keep)

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
        self._served.end_idle(lambda scope, since: self.idle_for(scope, since) > limit)
        for scope in [scope for scope in self._last_call if scope not in self._served and not self._calls[scope]]:
            if anyio.current_time() - self._last_call[scope] > limit:
                del self._last_call[scope]
