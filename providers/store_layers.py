"""Two stores as one: what servers.toml says, over what was added while gateways ran.

The gateway comes in, and the registry through `watch()`; called are the two stores. The file's servers are in memory
alone, so that the secrets which its variables filled in are never written to a database, and a server that is gone from
the file is gone. The durable store may be away: then its last snapshot stands, changes fail, and it is asked again
until it answers. A role may have been revoked meanwhile, so grants that nobody has confirmed for a minute count no
more.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType, TracebackType
from typing import Self

import anyio

from providers.errors import ReadOnlyServer, StoreUnavailable
from providers.resource import McpServerResource
from providers.store import DurableStore, InMemoryMcpResourceStore, McpResourceStoreBase, Snapshot, Watchers

logger = logging.getLogger(__name__)

NOBODY = ""
"""A creator that no identity is: each has a key, and none is empty."""

_EFFECT_SECONDS = 0.5
"""How long who changed something waits until it is in effect here. It is stored in any case."""


class StoreState(StrEnum):
    READY = "ready"
    DEGRADED = "degraded"
    """The durable store is away: the last snapshot stands, and nothing can be changed."""


@dataclass(frozen=True)
class Patience:
    """In seconds."""

    grants: float = 60.0
    """For how long a record counts that could not be confirmed."""
    first_retry: float = 0.1
    last_retry: float = 1.0
    """Pauses before the durable store is asked again; each is twice the one before."""


class LayeredStore(McpResourceStoreBase):
    """The servers of a gateway. Those of `files` win over those of `records`, and only their file changes them.

    Args:
        files: what servers.toml says; the gateway changes it when the file is edited.
        records: everything else; this store opens and closes it.
        known: what `records` is known to hold already.
    """

    def __init__(
        self,
        files: InMemoryMcpResourceStore,
        records: McpResourceStoreBase,
        *,
        known: Snapshot | None = None,
        patience: Patience = Patience(),
    ) -> None:
        self.files, self.records, self._patience = files, records, patience
        self.state, self.since = StoreState.READY, datetime.now(UTC)
        self.as_of: datetime | None = None
        """When the records of the durable store were last made sure of; None: not yet."""
        self._records: Snapshot = known or {}
        self._sealed: Snapshot | None = None
        """The records as they are shown once nobody has confirmed their grants for too long."""
        self._confirmed_at = 0.0
        self._is_confirmed = anyio.Event()
        self._watchers = Watchers()
        self._shadowed: set[str] = set()

    def __repr__(self) -> str:
        return f"<LayeredStore {self.state} {len(self.files.snapshot)} of the file, {len(self._records)} stored>"

    # --- lifetime

    async def __aenter__(self) -> Self:
        """Open the durable store and read it, if it answers.

        Raises:
            ConfigurationError: it can never be used.
        """
        await self.records.__aenter__()
        self._confirmed_at = anyio.current_time()
        try:
            self._confirm(await self.records.list_all())
        except StoreUnavailable as error:
            self._lose(error)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.records.__aexit__(kind, error, trace)

    async def run(self) -> None:
        """Follow both layers until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow_files)
            if isinstance(self.records, DurableStore):
                tasks.start_soon(self._follow_durable, self.records)
                tasks.start_soon(self._seal_what_is_old)
            else:
                tasks.start_soon(self._follow_memory)

    async def _follow_files(self) -> None:
        async for _ in self.files.watch():
            self._changed()

    async def _follow_memory(self) -> None:
        async for snapshot in self.records.watch():
            self._confirm(snapshot)

    async def _follow_durable(self, records: DurableStore) -> None:
        pause = self._patience.first_retry
        while True:
            try:
                async with aclosing(records.confirmations()) as confirmations:
                    async for snapshot in confirmations:
                        self._confirm(snapshot)
                        pause = self._patience.first_retry
            except StoreUnavailable as error:
                self._lose(error)
            await anyio.sleep(pause)
            pause = min(2 * pause, self._patience.last_retry)

    async def _seal_what_is_old(self) -> None:
        while True:
            self._is_confirmed = anyio.Event()
            left = self._confirmed_at + self._patience.grants - anyio.current_time()
            if left > 0:
                await anyio.sleep(left)
            else:
                self._seal()
                await self._is_confirmed.wait()

    # --- state

    def _confirm(self, snapshot: Snapshot) -> None:
        is_news = snapshot is not self._records or self._sealed is not None
        self._records, self._sealed = snapshot, None
        self._confirmed_at, self.as_of = anyio.current_time(), datetime.now(UTC)
        self._is_confirmed.set()
        if self.state is StoreState.DEGRADED:
            self.state, self.since = StoreState.READY, self.as_of
            logger.info("the store of servers answers again")
        if is_news:
            self._changed()

    def _lose(self, error: StoreUnavailable) -> None:
        if self.state is StoreState.READY:
            self.state, self.since = StoreState.DEGRADED, datetime.now(UTC)
            logger.warning("%s Until it answers its servers stay as they were, and cannot be changed.", error)

    def _seal(self) -> None:
        if self._sealed is None and self._records:
            logger.warning(
                "the store of servers has been away for %g s: its servers are now for administrators alone",
                self._patience.grants,
            )
        if self.state is StoreState.READY:  # it neither answered nor failed
            self.state, self.since = StoreState.DEGRADED, datetime.now(UTC)
        self._sealed = MappingProxyType({name: _sealed(record) for name, record in self._records.items()})
        self._watchers.announce()

    def _changed(self) -> None:
        for name in self._records.keys() & self.files.snapshot.keys() - self._shadowed:
            self._shadowed.add(name)
            logger.warning("server '%s' is in servers.toml and in the store too; that of servers.toml counts", name)
        self._watchers.announce()

    @property
    def snapshot(self) -> Snapshot:
        """All servers as far as is known, without waiting."""
        records = self._records if self._sealed is None else self._sealed
        return MappingProxyType({**records, **self.files.snapshot})

    # --- the store's contract

    async def get(self, name: str) -> McpServerResource | None:
        if name in self.files.snapshot or self.state is StoreState.DEGRADED:
            return self.snapshot.get(name)
        try:
            return await self.records.get(name)
        except StoreUnavailable:
            return self.snapshot.get(name)

    async def list_all(self) -> Snapshot:
        if self.state is StoreState.DEGRADED:
            return self.snapshot
        try:
            return MappingProxyType({**await self.records.list_all(), **self.files.snapshot})
        except StoreUnavailable:
            return self.snapshot

    async def upsert(self, resource: McpServerResource, *, expected_version: int | None = None) -> McpServerResource:
        """
        Raises:
            ReadOnlyServer: it stands in servers.toml.
            VersionConflict: as in any store.
            StoreUnavailable: the durable store is away.
        """
        self._check_writable(resource.name)
        stored = await self.records.upsert(resource, expected_version=expected_version)
        await self._until(lambda known: known is not None and known.version >= stored.version, stored.name)
        return stored

    async def delete(self, name: str, *, expected_version: int | None = None) -> bool:
        """
        Raises:
            ReadOnlyServer: it stands in servers.toml.
            VersionConflict: as in any store.
            StoreUnavailable: the durable store is away.
        """
        self._check_writable(name)
        before = self._records.get(name)
        was_there = await self.records.delete(name, expected_version=expected_version)
        await self._until(lambda known: known is None or known is not before, name)
        return was_there

    async def _until(self, is_seen: Callable[[McpServerResource | None], bool], name: str) -> None:
        """Wait until a change of ours has come back, so that who is told of it finds it in effect."""
        with anyio.move_on_after(_EFFECT_SECONDS):
            async with aclosing(self._watchers.follow(lambda: self._records)) as snapshots:
                async for snapshot in snapshots:
                    if is_seen(snapshot.get(name)):
                        return

    def _check_writable(self, name: str) -> None:
        if name in self.files.snapshot:
            raise ReadOnlyServer(name)

    def watch(self) -> AsyncGenerator[Snapshot]:
        return self._watchers.follow(lambda: self.snapshot)


def _sealed(record: McpServerResource) -> McpServerResource:
    """The same server, for nobody but administrators: whom a token says to be one needs no grant of a record. Its
    creator's right may be what was taken away, so it has none. Nor is it the file's, which may reach networks that
    servers of the store may not."""
    return record.model_copy(update={"required_roles": (), "created_by": NOBODY})
