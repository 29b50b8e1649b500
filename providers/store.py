"""Where resources are kept, and the middleware that asks whether this caller may use one.

`McpResourceStoreBase` is the contract that every store passes (`tests/providers/store_contract.py`);
`InMemoryMcpResourceStore` holds what servers.toml says, and `DurableStore` is what stores outside this process have in
common. The registry follows `watch()`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import Any, Self

import anyio
from fastmcp.exceptions import NotFoundError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext

from providers.errors import VersionConflict
from providers.identity import current_identity
from providers.resource import McpServerResource, may

Snapshot = Mapping[str, McpServerResource]
"""All records at one moment, by name. No answer is an exception; no servers is an empty snapshot."""


class McpResourceStoreBase(ABC):
    """Keeps resources by name. Each record has a version, 1 when made and one more with each change. A store that has
    something open is used within `async with`; this one has not."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    @abstractmethod
    async def get(self, name: str) -> McpServerResource | None:
        """The record, or None."""

    @abstractmethod
    async def upsert(self, resource: McpServerResource, *, expected_version: int | None = None) -> McpServerResource:
        """Make or replace a record and return it as stored (with `version`, `created_at` and `updated_at` set).

        Args:
            expected_version: the version that the caller has read; 0 for "must not exist yet"; None for "whatever".

        Raises:
            VersionConflict: the stored version is another one; nothing was changed.
        """

    @abstractmethod
    async def delete(self, name: str, *, expected_version: int | None = None) -> bool:
        """Remove a record; whether it existed.

        Raises:
            VersionConflict: the stored version is another one; nothing was changed.
        """

    @abstractmethod
    async def list_all(self) -> Snapshot:
        """All records."""

    @abstractmethod
    def watch(self) -> AsyncIterator[Snapshot]:
        """The snapshot now, then one after each change. A slow reader gets the newest and misses those between."""


class DurableStore(McpResourceStoreBase):
    """Keeps records outside this process, where others may change them. It can be away: then everything raises
    `StoreUnavailable` within its deadlines."""

    @abstractmethod
    def confirmations(self) -> AsyncGenerator[Snapshot]:
        """The snapshot each time that it was made sure of: at once, right after each change, and every few seconds.
        It is the same object for as long as nothing changed.

        Raises:
            StoreUnavailable: it could not be made sure of; iterate anew.
        """

    async def watch(self) -> AsyncIterator[Snapshot]:
        before: Snapshot | None = None
        async with aclosing(self.confirmations()) as confirmations:
            async for snapshot in confirmations:
                if snapshot is not before:
                    before = snapshot
                    yield snapshot


class Watchers:
    """Those who wait for the next change."""

    def __init__(self) -> None:
        self._waiting: set[anyio.Event] = set()

    def announce(self) -> None:
        for changed in self._waiting:
            changed.set()

    async def follow(self, look: Callable[[], Snapshot]) -> AsyncGenerator[Snapshot]:
        """What there is now, then after each change; what changes while the reader is busy is seen afterwards."""
        while True:
            changed = anyio.Event()  # of the event loop that watches; there may be another one later
            self._waiting.add(changed)
            try:
                yield look()
                await changed.wait()
            finally:
                self._waiting.discard(changed)


class InMemoryMcpResourceStore(McpResourceStoreBase):
    """Records in this process; gone with it."""

    def __init__(self, resources: Iterable[McpServerResource] = ()) -> None:
        self._records = {resource.name: resource.model_copy(update={"version": 1}) for resource in resources}
        self._watchers = Watchers()

    def __repr__(self) -> str:
        return f"<InMemoryMcpResourceStore {len(self._records)} records>"

    @property
    def snapshot(self) -> Snapshot:
        """All records, without waiting: the registry mounts them before any event loop runs."""
        return MappingProxyType(dict(self._records))

    async def get(self, name: str) -> McpServerResource | None:
        return self._records.get(name)

    async def upsert(self, resource: McpServerResource, *, expected_version: int | None = None) -> McpServerResource:
        known = self._records.get(resource.name)
        self._check(resource.name, expected_version)
        now = datetime.now(UTC)
        stored = resource.model_copy(
            update={
                "version": (known.version if known else 0) + 1,
                "created_at": known.created_at if known else now,
                "updated_at": now,
            }
        )
        self._records[resource.name] = stored
        self._watchers.announce()
        return stored

    async def delete(self, name: str, *, expected_version: int | None = None) -> bool:
        self._check(name, expected_version)
        if self._records.pop(name, None) is None:
            return False
        self._watchers.announce()
        return True

    async def list_all(self) -> Snapshot:
        return self.snapshot

    def watch(self) -> AsyncIterator[Snapshot]:
        return self._watchers.follow(lambda: self.snapshot)

    def _check(self, name: str, expected: int | None) -> None:
        known = self._records.get(name)
        actual = known.version if known else None
        if expected is not None and expected != (actual or 0):
            raise VersionConflict(name, expected, actual)


class StoreMiddleware(Middleware):
    """Second of a sub-server: what may not be read, or is switched off, answers like what does not exist.

    Args:
        name: the server.
        lookup: gives the record as it is now, so that a revoked role counts from the next request on.
    """

    def __init__(self, name: str, lookup: Callable[[str], McpServerResource | None]) -> None:
        self._name, self._lookup = name, lookup

    def _hidden(self) -> bool:
        resource, identity = self._lookup(self._name), current_identity()
        if resource is None or identity is None or not resource.is_enabled:
            return True
        return not may(identity, "read", resource)

    async def __call__(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        if not self._hidden():
            return await call_next(context)
        if (unknown := absence(context)) is not None:
            raise unknown
        match context.method:
            case "completion/complete":
                return {"completion": {"values": []}}  # as FastMCP answers for what it does not know
            case "tools/list" | "resources/list" | "resources/templates/list" | "prompts/list":
                return []
            case _:
                return await call_next(context)


def absence(context: MiddlewareContext[Any]) -> NotFoundError | None:
    """How the use of a component is refused that there is none of, in FastMCP's words; None for what is no use."""
    match context.method:
        case "tools/call":
            return NotFoundError(f"Unknown tool: {context.message.name!r}")
        case "prompts/get":
            return NotFoundError(f"Unknown prompt: {context.message.name!r}")
        case "resources/read":
            return NotFoundError(f"Unknown resource: {str(context.message.uri)!r}")
        case "resources/subscribe":
            return NotFoundError(f"Unknown resource: {context.message['uri']!r}")
    return None
