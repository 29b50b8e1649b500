"""Where resources are kept, and the middleware that asks whether this caller may use one.

`McpResourceStoreBase` is the contract that every store passes (`tests/providers/store_contract.py`);
`InMemoryMcpResourceStore` is the store of a gateway that reads servers.toml. The registry follows `watch()`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import anyio
from fastmcp.exceptions import NotFoundError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext

from providers.errors import VersionConflict
from providers.identity import current_identity
from providers.resource import McpServerResource, may

Snapshot = Mapping[str, McpServerResource]
"""All records at one moment, by name. No answer is an exception; no servers is an empty snapshot."""


class McpResourceStoreBase(ABC):
    """Keeps resources by name. Each record has a version, 1 when made and one more with each change."""

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


class InMemoryMcpResourceStore(McpResourceStoreBase):
    """Records in this process; gone with it."""

    def __init__(self, resources: Iterable[McpServerResource] = ()) -> None:
        self._records = {resource.name: resource.model_copy(update={"version": 1}) for resource in resources}
        self._watchers: set[anyio.Event] = set()

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
        self._announce()
        return stored

    async def delete(self, name: str, *, expected_version: int | None = None) -> bool:
        self._check(name, expected_version)
        if self._records.pop(name, None) is None:
            return False
        self._announce()
        return True

    async def list_all(self) -> Snapshot:
        return self.snapshot

    async def watch(self) -> AsyncIterator[Snapshot]:
        while True:
            changed = anyio.Event()  # of the event loop that watches; there may be another one later
            self._watchers.add(changed)
            try:
                yield self.snapshot
                await changed.wait()
            finally:
                self._watchers.discard(changed)

    def _check(self, name: str, expected: int | None) -> None:
        known = self._records.get(name)
        actual = known.version if known else None
        if expected is not None and expected != (actual or 0):
            raise VersionConflict(name, expected, actual)

    def _announce(self) -> None:
        for changed in self._watchers:
            changed.set()


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
        match context.method:
            case "tools/call":
                raise NotFoundError(f"Unknown tool: {context.message.name!r}")
            case "prompts/get":
                raise NotFoundError(f"Unknown prompt: {context.message.name!r}")
            case "resources/read":
                raise NotFoundError(f"Unknown resource: {str(context.message.uri)!r}")
            case "resources/subscribe":
                raise NotFoundError(f"Unknown resource: {context.message['uri']!r}")
            case "completion/complete":
                return {"completion": {"values": []}}  # as FastMCP answers for what it does not know
            case "tools/list" | "resources/list" | "resources/templates/list" | "prompts/list":
                return []
            case _:
                return await call_next(context)
