"""Containers over HTTP, shared by wires: in use from when they are chosen, ended once, and never spoken to afterwards.

The engine is a fake; the servers are real ones on loopback, and so are the strangers who get their ports.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import anyio
import pytest
from aiohttp import web
from anyio.abc import TaskGroup

from providers.container import Address, Container, ContainerState, ContainerStatus
from providers.container_served import History, ServedContainers
from providers.container_slots import Slot, Slots
from providers.docker import McpContainerManager
from providers.docker_engine import EngineHung, EngineUnavailable
from providers.errors import BackendError, BackendUnavailable
from providers.remote import streamable_http_wire
from providers.resource import McpServerResource
from providers.wire import NOT_SENT, Wire, opened_for
from tests.helpers.containers import over_http, record
from tests.helpers.http_backend import HttpBackend, Inbox, Seen, http_backend, proper
from tests.helpers.ports import stranger_at

pytestmark = pytest.mark.core
WEB = record("web", over_http(env={"TOKEN": "canary-4711"}))
HELLO = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}
CALL = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "x"}}
PING = {"jsonrpc": "2.0", "id": 3, "method": "ping"}


@dataclass
class Engine:
    """As much of a container manager as is asked for. `server` is what answers at a container's port."""

    server: HttpBackend
    state: ContainerState = ContainerState.RUNNING
    said: str = ""
    fault: Exception | None = None
    may_start: anyio.Event = field(default_factory=anyio.Event)
    may_tell: anyio.Event = field(default_factory=anyio.Event)
    asked: anyio.Event = field(default_factory=anyio.Event)
    port: int = 0
    started: list[Container] = field(default_factory=list)
    stopped: list[Container] = field(default_factory=list)

    async def start_server(self, resource: McpServerResource, scope: str) -> Container:
        await self.may_start.wait()
        self._fail()
        container = Container(f"id-{len(self.started)}", "name", resource.name, scope, "print")
        self.started.append(container)
        return container

    def _fail(self) -> None:
        if self.fault is not None:
            raise self.fault

    async def stop_server(self, container: Container, grace: float = 0) -> None:
        self.stopped.append(container)

    async def address(self, resource: McpServerResource, container: Container) -> Address:
        self._fail()
        if self.state is not ContainerState.RUNNING:
            raise BackendUnavailable("web", "its container ended.", not_sent=True)
        return Address("127.0.0.1", self.port or urlsplit(self.server.url).port or 0)

    async def get_status(self, container: Container) -> ContainerStatus:
        self.asked.set()
        self._fail()
        await self.may_tell.wait()
        return ContainerStatus(container, self.state, "streamable_http", "image", exit_code=3)

    async def get_logs(self, container: Container, tail: int) -> list[str]:
        return [f"2026-01-01T00:00:00Z {self.said}"]


class Desk:
    """The supervisor, as far as it is asked."""

    engine_problem = None
    open_remote = staticmethod(streamable_http_wire)

    def __init__(self, engine: Engine, tasks: TaskGroup) -> None:
        self._manager, self._tasks = cast("McpContainerManager", engine), tasks
        self.slots = Slots(20, lambda: False)

    async def filled(self, resource: McpServerResource) -> McpServerResource:
        return resource

    async def manager(self) -> McpContainerManager:
        return self._manager

    async def keeper(self, resource: McpServerResource) -> McpContainerManager:
        return self._manager

    async def take_slot(self, server: str, whose: str) -> Slot:
        return await self.slots.take(server, whose, 5)

    def free_slot(self, slot: Slot) -> None:
        self.slots.free(slot)

    def start_soon(self, work: Callable[..., Any], *args: Any) -> None:
        self._tasks.start_soon(work, *args)

    def failures(self, server: str) -> int:
        return 0

    def log(self, server: str) -> Callable[[str], None]:
        return lambda line: None


@dataclass
class House:
    engine: Engine
    desk: Desk
    history: History
    served: ServedContainers
    end_server: Callable[[], Awaitable[None]]


@asynccontextmanager
async def house(resource: McpServerResource = WEB) -> AsyncIterator[House]:
    async with AsyncExitStack() as serving, anyio.create_task_group() as tasks:
        engine, history = Engine(await serving.enter_async_context(http_backend())), History()
        engine.may_start.set()
        engine.may_tell.set()
        desk = Desk(engine, tasks)
        yield House(engine, desk, history, ServedContainers(resource, desk, history, lambda: False), serving.aclose)
        engine.may_start.set()
        engine.may_tell.set()
        tasks.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110  # nobody tells
            await anyio.sleep(0.01)


async def use(house: House, scope: str, inbox: Inbox, done: anyio.Event) -> None:
    opened_for.set(scope)
    async with house.served.wire(inbox.deliver) as wire:
        await wire.send(HELLO, {})
        await done.wait()


def ended(house: House) -> ContainerStatus:
    return ContainerStatus(house.engine.started[0], ContainerState.EXITED, "streamable_http", "image", exit_code=3)


# ------------------------------------------------------------------------------------------ started, used, ended


async def test_a_container_is_shared_and_ends_with_its_client_session() -> None:
    async with house() as here, anyio.create_task_group() as tasks:
        inbox, done = Inbox(), anyio.Event()
        for _ in range(3):
            tasks.start_soon(use, here, "s1", inbox, done)
        await inbox.wait_for(3)
        assert len(here.engine.started) == 1
        here.served.end_scope("s1")
        assert not here.engine.stopped
        done.set()
        await until(lambda: here.engine.stopped)
        await until(lambda: repr(here.desk.slots).startswith("<Slots 0/"))


async def test_a_container_whose_session_ends_while_it_starts_is_stopped() -> None:
    async with house() as here, anyio.create_task_group() as tasks:
        here.engine.may_start = anyio.Event()
        tasks.start_soon(use, here, "s1", Inbox(), anyio.Event())
        await until(lambda: len(here.served))
        here.served.end_scope("s1")
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
            here.engine.may_start.set()
            await until(lambda: here.engine.stopped)
            assert not here.served


async def test_a_container_is_in_use_from_the_moment_that_it_is_chosen() -> None:
    async with house() as here:
        async with anyio.create_task_group() as tasks:
            inbox, done = Inbox(), anyio.Event()
            tasks.start_soon(use, here, "s1", inbox, done)
            await inbox.wait_for(1)
            done.set()
        here.engine.may_tell, here.engine.asked = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as tasks:
            inbox, done = Inbox(), anyio.Event()
            tasks.start_soon(use, here, "s1", inbox, done)
            await here.engine.asked.wait()  # chosen; whether it still runs is being found out
            assert not here.served.idle()
            here.served.end_idle(lambda scope, since: True)
            here.served.end_scope("s1")
            assert not here.engine.stopped
            here.engine.may_tell.set()
            await inbox.wait_for(1)
            done.set()
        assert len(here.engine.started) == 1


async def test_who_is_gone_before_the_first_step_starts_nothing() -> None:
    """Its client session may have ended: nobody would stop the container."""
    async with house() as here:
        with anyio.CancelScope() as opening:
            opening.cancel()
            await use(here, "s1", Inbox(), anyio.Event())
        assert not here.served


async def test_a_container_that_is_to_be_kept_makes_no_room() -> None:
    async with house(WEB.model_copy(update={"keep": True})) as here:
        async with anyio.create_task_group() as tasks:
            inbox, done = Inbox(), anyio.Event()
            tasks.start_soon(use, here, "shared", inbox, done)
            await inbox.wait_for(1)
            done.set()
        assert len(here.served) == 1 and not here.served.idle()


async def test_last_words_hold_no_secret() -> None:
    async with house() as here:
        here.engine.said, here.engine.state = "no such token: canary-4711", ContainerState.EXITED
        with pytest.raises(BackendUnavailable, match=r"exit code 3; its last words: no such token: \[TOKEN\]"):
            await use(here, "s1", Inbox(), anyio.Event())
        assert "canary" not in here.history.last_death


async def test_a_full_disk_fails_the_call_and_nothing_else() -> None:
    async with house() as here:
        here.engine.fault = OSError(28, "No space left on device")
        for _ in range(2):
            with pytest.raises(BackendUnavailable, match=r"the gateway failed \(OSError\)\. Its log has the details"):
                await use(here, "s1", Inbox(), anyio.Event())
        assert not here.served and repr(here.desk.slots).startswith("<Slots 0/")
        here.engine.fault = None
        done = anyio.Event()
        done.set()
        await use(here, "s1", Inbox(), done)


# --------------------------------------------------------------------------------------- somebody else at its port


@asynccontextmanager
async def a_wire_whose_port_is_a_strangers(here: House, *, is_noticed: bool) -> AsyncIterator[tuple[Any, Inbox, Any]]:
    """The stranger is there for longer than the wire."""
    opened_for.set("s1")
    inbox = Inbox()
    with ExitStack() as outlasting:
        async with here.served.wire(inbox.deliver) as wire:
            await wire.send(HELLO, {})
            await inbox.wait_for(1)
            port = urlsplit(here.engine.server.url).port
            assert port is not None
            await here.end_server()
            here.engine.state = ContainerState.EXITED
            if is_noticed:
                here.served.lost("s1", ended(here))
            yield wire, inbox, outlasting.enter_context(stranger_at(port))


async def test_nothing_is_sent_to_who_has_the_port_of_a_container_that_ended_unnoticed() -> None:
    async with house() as here:
        async with a_wire_whose_port_is_a_strangers(here, is_noticed=False) as (wire, inbox, heard):
            await wire.send(CALL, {})
            answer = (await inbox.wait_for(2))[1]
            assert "ended with exit code 3" in answer["error"]["message"]
            assert answer["error"]["data"] == {NOT_SENT: True}
            await until(wire.closed.is_set)
        assert not heard


async def test_nothing_is_sent_to_who_has_the_port_of_a_container_that_was_given_up() -> None:
    async with house() as here:
        async with a_wire_whose_port_is_a_strangers(here, is_noticed=True) as (wire, inbox, heard):
            with suppress(BackendError):
                await wire.send(CALL, {})
                await inbox.wait_for(2)
            await until(wire.closed.is_set)
            assert "exit code 3" in wire.failure.problem
        assert not heard


async def test_the_end_of_a_session_is_not_told_to_a_stranger() -> None:
    """A session that ends politely sends a DELETE."""
    async with house() as here:
        async with a_wire_whose_port_is_a_strangers(here, is_noticed=False) as (_, _, heard):
            pass
        assert not heard


async def test_a_container_that_was_started_again_is_spoken_to_where_it_is_now() -> None:
    async with house() as here, http_backend() as moved, anyio.create_task_group() as tasks:
        inbox, old, done = Inbox(), anyio.Event(), anyio.Event()
        tasks.start_soon(use, here, "shared", inbox, old)
        await inbox.wait_for(1)
        here.engine.port = urlsplit(moved.url).port or 0
        before = len(here.engine.server.seen)
        tasks.start_soon(use, here, "shared", inbox, done)
        await inbox.wait_for(2)
        assert len(moved.of("initialize")) == 1
        old.set()
        done.set()
        await moved.wait_for("DELETE")
        assert len(here.engine.server.seen) == before and len(here.engine.started) == 1


# -------------------------------------------------------------------------------------------- nobody knows where it is


@asynccontextmanager
async def a_wire_in_the_middle_of_a_call(here: House) -> AsyncIterator[tuple[Wire, Inbox, anyio.Event]]:
    """What is sent now needs another connection, until the call is let go."""
    opened_for.set("s1")
    inbox, let_go = Inbox(), anyio.Event()

    async def held_up(seen: Seen) -> web.StreamResponse:
        await let_go.wait()
        return await proper(seen)

    here.engine.server.answers["tools/call"] = held_up
    async with here.served.wire(inbox.deliver) as wire:
        await wire.send(HELLO, {})
        await inbox.answer_to(1)
        await wire.send(CALL, {})
        await here.engine.server.wait_for("tools/call")
        yield wire, inbox, let_go


async def test_while_the_engine_hangs_its_containers_are_spoken_to() -> None:
    async with house() as here, a_wire_in_the_middle_of_a_call(here) as (wire, inbox, let_go):
        here.engine.fault = EngineHung("web", "Docker has not answered for a while.")
        await wire.send(PING, {})
        assert "result" in await inbox.answer_to(3)
        let_go.set()
        assert "result" in await inbox.answer_to(2)
        assert not wire.closed.is_set()


async def test_while_the_engine_is_away_connections_are_refused_and_none_is_cut() -> None:
    async with house() as here, a_wire_in_the_middle_of_a_call(here) as (wire, inbox, let_go):
        here.engine.fault = EngineUnavailable("web", "no Docker engine answers.", not_sent=True)
        await wire.send(PING, {})
        error = (await inbox.answer_to(3))["error"]
        assert "no Docker engine answers" in error["message"] and error["data"] == {NOT_SENT: True}
        here.engine.fault = None
        await wire.send({**PING, "id": 4}, {})
        assert "result" in await inbox.answer_to(4)
        let_go.set()
        assert "result" in await inbox.answer_to(2)
        assert not wire.closed.is_set()


async def test_the_wire_of_a_container_that_docker_started_elsewhere_ends() -> None:
    async with house() as here, a_wire_in_the_middle_of_a_call(here) as (wire, inbox, _), http_backend() as moved:
        here.engine.port = urlsplit(moved.url).port or 0
        await wire.send(PING, {})
        error = (await inbox.answer_to(3))["error"]
        assert "was started again" in error["message"] and error["data"] == {NOT_SENT: True}
        await until(wire.closed.is_set)
        assert wire.failure is not None and "was started again" in wire.failure.problem
        assert not moved.seen and "ping" not in [seen.subject for seen in here.engine.server.seen]
