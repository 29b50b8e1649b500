"""The subscriptions of one fake server, its readers, and the streams of a fake server of 2026-07-28."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

from providers.caller import Caller
from providers.connection import Target
from providers.identity import Identity
from providers.listener import Listener
from providers.pool import McpConnectionPool
from providers.subscriptions import Subscriptions
from tests.helpers.fakes import ALICE, Call, FakeBackend, Json, caller_of, pool_of

URI, OTHER = "note://one", "note://two"


async def agreed(call: Call) -> Json:
    return {}


def notes(**more: Any) -> FakeBackend:
    """A server with resources to subscribe to."""
    answers = {"resources/subscribe": agreed, "resources/unsubscribe": agreed} | more.pop("answers", {})
    return FakeBackend(answers=answers, capabilities={"resources": {"subscribe": True}}, **more)


@dataclass
class Reader:
    """A client, and what it was told."""

    listener: Listener

    @property
    def heard(self) -> list[str]:
        waiting = self.listener.mailbox._waiting
        told = [uri for _, uri in waiting]
        waiting.clear()
        return told


def reader(identity: Identity = ALICE, session: str = "session:1") -> Reader:
    return reader_for(caller_of(identity, session))


def reader_for(caller: Caller) -> Reader:
    return Reader(Listener(caller, lambda: caller.identity))


@dataclass
class Desk:
    backend: FakeBackend
    pool: McpConnectionPool
    more: Json
    hidden_from: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.target = self._target(1)
        self.subscriptions = Subscriptions(
            self.pool,
            lambda: self.target,
            lambda identity: identity.user_id not in self.hidden_from,
            lambda _, uri: f"public:{uri}",
        )

    def _target(self, generation: int) -> Target:
        return Target(
            self.backend.resource(**self.more),
            generation,
            self.backend.open_wire,
            on_update=lambda key, params: self.subscriptions.updated(key, params),
        )

    def next_generation(self) -> None:
        self.target = self._target(self.target.generation + 1)
        self.pool.evict(self.backend.name, before_generation=self.target.generation)
        self.subscriptions.review()

    async def subscribe(self, *readers: Reader, uri: str = URI) -> None:
        for each in readers:
            await self.subscriptions.subscribe(each.listener, uri)

    async def tell(self, uri: str = URI, **more: Any) -> None:
        """The backend says that a resource was updated."""
        await self.backend.wire.say("notifications/resources/updated", {"uri": uri, **more})

    @property
    def asked(self) -> list[str]:
        """What the backend was asked, in order."""
        return [
            f"{message['method'].removeprefix('resources/')} {message['params']['uri']}"
            for wire in self.backend.wires
            for message in wire.received
            if str(message.get("method")).startswith("resources/")
        ]


@asynccontextmanager
async def desk_of(backend: FakeBackend, limits: Json | None = None, **more: Any) -> AsyncIterator[Desk]:
    async with pool_of(**(limits or {})) as pool, anyio.create_task_group() as tasks:
        desk = Desk(backend, pool, more)
        desk.subscriptions.start(tasks)
        yield desk
        tasks.cancel_scope.cancel()


class Streams:
    """The listening side of a fake backend: what is asked for, and what is told."""

    def __init__(self) -> None:
        self.asked: list[Json] = []
        self.open: list[tuple[Call, anyio.Event]] = []

    async def __call__(self, call: Call) -> Json:
        wanted = call.params["notifications"]
        self.asked.append(wanted)
        mark = {"io.modelcontextprotocol/subscriptionId": call.id}
        stream = (call, anyio.Event())
        self.open.append(stream)
        try:
            await call.wire.say("notifications/subscriptions/acknowledged", {"notifications": wanted, "_meta": mark})
            await stream[1].wait()
        finally:
            self.open.remove(stream)
        return {"_meta": mark}

    async def tell(self, method: str, **params: Any) -> None:
        for call, _ in list(self.open):
            mark = {"io.modelcontextprotocol/subscriptionId": call.id}
            await call.wire.say(method, params | {"_meta": mark | params.get("_meta", {})})

    def end(self) -> None:
        for _, ended in self.open:
            ended.set()


def modern(streams: Streams, **capabilities: Any) -> FakeBackend:
    return FakeBackend(
        is_modern=True,
        knows_handshake=False,
        answers={"subscriptions/listen": streams},
        capabilities=capabilities or {"resources": {"subscribe": True}},
    )
