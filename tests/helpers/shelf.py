"""A catalogue on its own, over a fake backend, for the tests of what is known and who is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

from providers.caller import Caller
from providers.catalogue import Catalogue, Listing
from providers.connection import Target
from providers.identity import Identity
from providers.pool import McpConnectionPool
from tests.helpers.fakes import Call, FakeBackend, Json, pool_of, tool


@dataclass
class Shelf:
    """A catalogue of one fake server, and what it announced, and to whom."""

    backend: FakeBackend
    pool: McpConnectionPool
    more: dict[str, Any]
    announced: list[tuple[set[str], str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.target: Target = self.backend.target(1, self._backend_changed, **self.more)
        self.catalogue = Catalogue(self.pool, lambda: self.target, self._changed, 300)

    def _backend_changed(self, caller: Caller, method: str) -> None:
        self.catalogue.changed(caller, method)

    def _changed(self, kinds: frozenset[str], identity: Identity) -> None:
        self.announced.append((set(kinds), identity.user_id))

    def next_generation(self) -> None:
        self.target = self.backend.target(self.target.generation + 1, self._backend_changed, **self.more)
        self.pool.evict(self.backend.name, before_generation=self.target.generation)
        self.catalogue.changed_for_all()

    async def end_session(self, session: str) -> None:
        await self.pool.end_session(session)
        self.catalogue.forget_session(session)

    async def ticking(self) -> None:
        """As the registry does it."""
        while True:
            await anyio.sleep(1)
            self.catalogue.tick()

    async def names(self, caller: Caller) -> list[str]:
        return names_of(await self.catalogue.get(caller))


def names_of(listing: Listing | None) -> list[str]:
    """The names of its tools."""
    assert listing is not None
    return [each["name"] for each in listing.tools]


@asynccontextmanager
async def shelf_of(backend: FakeBackend, **more: Any) -> AsyncIterator[Shelf]:
    async with pool_of() as pool, anyio.create_task_group() as tasks:
        shelf = Shelf(backend, pool, more)
        shelf.catalogue.start(tasks)
        tasks.start_soon(shelf.ticking)
        yield shelf
        tasks.cancel_scope.cancel()


def by_user(offers: dict[str, list[str]]) -> Callable[[Call], Any]:
    """An answer to `tools/list` that offers each user something else."""

    async def answer(call: Call) -> Json:
        return {"tools": [tool(name) for name in offers[str(call.user)]]}

    return answer
