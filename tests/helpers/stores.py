"""A durable store that a test can take away: records in memory, behind a door that can be shut."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import suppress

import anyio

from providers.errors import StoreUnavailable
from providers.resource import McpServerResource
from providers.store import DurableStore, InMemoryMcpResourceStore, Snapshot

CONFIRM_SECONDS = 2.0


class FragileStore(DurableStore):
    """Confirms what it holds every two seconds while it is not `is_away`. `attempts` counts when it was asked."""

    def __init__(self, *resources: McpServerResource) -> None:
        self.inner = InMemoryMcpResourceStore(resources)
        self.is_away = False
        self.attempts: list[float] = []
        self._disturbed = anyio.Event()

    def go(self) -> None:
        self.is_away = True
        self._disturbed.set()

    def come_back(self) -> None:
        self.is_away = False

    def _ask(self) -> None:
        if self.is_away:
            raise StoreUnavailable("a fragile one", "is away")

    async def get(self, name: str) -> McpServerResource | None:
        self._ask()
        return await self.inner.get(name)

    async def list_all(self) -> Snapshot:
        self._ask()
        return await self.inner.list_all()

    async def upsert(self, resource: McpServerResource, *, expected_version: int | None = None) -> McpServerResource:
        self._ask()
        stored = await self.inner.upsert(resource, expected_version=expected_version)
        self._disturbed.set()
        return stored

    async def delete(self, name: str, *, expected_version: int | None = None) -> bool:
        self._ask()
        was_there = await self.inner.delete(name, expected_version=expected_version)
        if was_there:
            self._disturbed.set()
        return was_there

    async def confirmations(self) -> AsyncGenerator[Snapshot]:
        self.attempts.append(anyio.current_time())
        before: Snapshot = {}
        while True:
            self._ask()
            self._disturbed = anyio.Event()
            now = self.inner.snapshot
            before = before if before == now and before else now
            yield before
            with suppress(TimeoutError), anyio.fail_after(CONFIRM_SECONDS):
                await self._disturbed.wait()
