"""The registry: it holds the mounts, and is the view of all. The mounted namespace is the unified tool registry.

The root server asks here. Names are routed by an exact look-up of what stands before the first underscore, so any
number of servers costs the same, and what the caller may not read is not found. `run` keeps the mounts equal to the
store, live.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.abc import TaskGroup
from fastmcp.server.dependencies import get_context

from composition.mount import Mount
from composition.names import SEPARATOR, Names, out_of_namespace, server_of
from composition.view import Found, View
from providers.caller import Caller, ClientSessions
from providers.catalogue import KINDS
from providers.errors import NotAuthenticated
from providers.identity import Identity, resolve_identity
from providers.listener import Listeners
from providers.parking import ParkingLot
from providers.pool import McpConnectionPool
from providers.resource import McpServerResource, can_access
from providers.store import McpResourceStoreBase, Snapshot
from providers.wire import OpenWire

logger = logging.getLogger(__name__)

_TELL_SECONDS = 1.0
"""How long a client waits until the servers that it uses have been told of its log level."""

_ANNOUNCE_PAUSE = 0.05
"""Seconds in which changes are gathered into one notification."""


class Registry(View):
    """Mounts by name.

    Args:
        wire_for: how a session of a resource is opened; called once per generation.
        local: the local user, or None where callers bring tokens.
        when_used: awaited before each request, so that the gateway also runs under tools that start no lifespan.
        parking: where calls wait for the answers of clients that cannot be sent questions.
    """

    def __init__(
        self,
        *,
        pool: McpConnectionPool,
        sessions: ClientSessions,
        wire_for: Callable[[McpServerResource], OpenWire],
        local: Identity | None,
        refresh_interval: float = 300.0,
        when_used: Callable[[], Any],
        parking: ParkingLot | None = None,
    ) -> None:
        super().__init__()
        self._pool, self._sessions, self._wire_for, self._local = pool, sessions, wire_for, local
        self._refresh_interval, self._when_used, self._parking = refresh_interval, when_used, parking
        self._listeners = Listeners(sessions)
        self.on_unmount: list[Callable[[str], None]] = []
        self._mounts: dict[str, Mount] = {}
        self._resources: Snapshot = {}
        self._changes: dict[tuple[str, str | None], set[str]] = {}
        self._past: dict[str, McpServerResource] = {}
        self._something_changed = anyio.Event()
        self._tasks: TaskGroup | None = None

    def __repr__(self) -> str:
        return f"<Registry {len(self._mounts)} mounts>"

    # --- mounts, kept live

    @property
    def mounts(self) -> Mapping[str, Mount]:
        return self._mounts

    def sync(self, snapshot: Snapshot) -> None:
        """Make the mounts equal to a snapshot; what did not change is not touched."""
        before, self._resources = self._resources, dict(snapshot)
        wanted = {name: resource for name, resource in snapshot.items() if resource.is_enabled}
        for name in [name for name in self._mounts if name not in wanted]:
            self._unmount(name)
        for name, resource in wanted.items():
            if name not in self._mounts:
                self._mount(resource)
            elif resource is not before.get(name):
                self._remount(self._mounts[name], resource)
                self._mounts[name].subscriptions.review()

    def _mount(self, resource: McpServerResource) -> None:
        name = resource.name
        mount = self._mounts[name] = Mount(
            resource,
            self._wire_for(resource),
            pool=self._pool,
            sessions=self._sessions,
            lookup=self.resource,
            on_change=lambda kinds, identity: self._announce(name, kinds, identity.key),
            local=self._local,
            refresh_interval=self._refresh_interval,
            parking=self._parking,
        )
        if self._tasks is not None:
            mount.start(self._tasks)
            self._announce(name, KINDS)
            logger.info("server '%s' mounted", name)

    def _unmount(self, name: str) -> None:
        mount = self._mounts.pop(name)
        mount.subscriptions.close()
        self._listeners.stop(name)
        for callback in self.on_unmount:
            callback(name)
        self._pool.evict(name, before_generation=mount.target.generation + 1)
        if self._parking is not None:
            self._parking.end_server(name)
        self._past.setdefault(name, mount.resource)
        self._announce(name, KINDS)
        logger.info("server '%s' unmounted", name)

    def _remount(self, mount: Mount, resource: McpServerResource) -> None:
        if resource.same_offer(mount.resource):
            mount.update(resource, None)
            return
        self._past.setdefault(resource.name, mount.resource)
        if resource.same_backend(mount.resource):
            mount.update(resource, None)
        else:
            mount.update(resource, self._wire_for(resource))
            self._pool.evict(resource.name, before_generation=mount.target.generation)
        self._announce(resource.name, KINDS)
        logger.info("server '%s' changed", resource.name)

    def resource(self, name: str) -> McpServerResource | None:
        """The record of a server as it is now."""
        return self._resources.get(name)

    async def run(self, store: McpResourceStoreBase, tasks: TaskGroup) -> None:
        """Follow the store, renew catalogues and tell clients what changed, until cancelled."""
        self._tasks, self._something_changed = tasks, anyio.Event()
        for mount in self._mounts.values():
            mount.start(tasks)
        self.listeners.start(tasks)
        tasks.start_soon(self._tick)
        tasks.start_soon(self._tell_clients)
        async for snapshot in store.watch():
            self.sync(snapshot)

    def stopped(self) -> None:
        """The task group of `run` ended."""
        self._tasks = None

    async def _tick(self) -> None:
        while True:
            await anyio.sleep(1)
            for mount in list(self._mounts.values()):
                mount.catalogue.tick()

    def _announce(self, name: str, kinds: Iterable[str], user: str | None = None) -> None:
        """Have clients told that these kinds of a server's components changed: everybody's, or one user's."""
        self._changes.setdefault((name, user), set()).update(kinds)
        self._something_changed.set()

    async def _tell_clients(self) -> None:
        while True:
            await self._something_changed.wait()
            await anyio.sleep(_ANNOUNCE_PAUSE)
            self._something_changed = anyio.Event()
            news = _News(self._changes, self._past, self._resources)
            self._changes, self._past = {}, {}
            if self._tasks is not None:
                self._tasks.start_soon(self._sessions.announce, news.concerning)
                self.listeners.announce(news.concerning)

    def session_ended(self, session: str) -> None:
        """A client's session ended: nothing is kept or asked on its behalf any more."""
        self.listeners.end_session(session)
        for mount in self._mounts.values():
            mount.catalogue.forget_session(session)

    # --- requests

    @property
    def listeners(self) -> Listeners:
        return self._listeners

    def identity(self) -> Identity:
        return resolve_identity(self._local)

    async def caller(self) -> Caller | None:
        return await self.caller_for(None)

    async def caller_for(self, server: str | None) -> Caller | None:
        """Who makes the current request, which came for one server, or for all (None)."""
        await self._when_used()
        try:
            identity = self.identity()
        except NotAuthenticated:
            return None
        try:
            context = get_context()
        except RuntimeError:
            context = None
        return self._sessions.caller(context, identity, server)

    def readable(self, identity: Identity) -> list[Mount]:
        return [mount for _, mount in sorted(self._mounts.items()) if _may_read(mount.resource, identity)]

    def mount_of(self, server: str, identity: Identity) -> Mount | None:
        """The mount of a server, if this user may read it."""
        mount = self._mounts.get(server)
        return mount if mount is not None and _may_read(mount.resource, identity) else None

    def names(self, mount: Mount) -> Names:
        return mount.namespace

    def find(self, name: str, identity: Identity) -> Found | None:
        server, _, own = name.partition(SEPARATOR)
        mount = self.mount_of(server, identity)
        return (mount, own) if mount else None

    def find_uri(self, uri: str, identity: Identity) -> Found | None:
        mount = self.mount_of(server_of(uri), identity)
        return (mount, out_of_namespace(uri)) if mount else None

    async def want_log_level(self, level: str) -> None:
        """The current caller asked for log messages of this level and above. Its open connections are told at once,
        those that open later, or that were not told in time, before their next call."""
        caller = await self.caller()
        if caller is None:
            return
        with anyio.move_on_after(_TELL_SECONDS):
            async with anyio.create_task_group() as telling:
                for connection in self._pool.connections():
                    if connection.session is not None and connection.serves_session(caller.session):
                        telling.start_soon(connection.session.want_log_level, caller, level)


@dataclass(frozen=True, slots=True)
class _News:
    """What changed since clients were told last: kinds by server and by user (None: everybody)."""

    changes: dict[tuple[str, str | None], set[str]]
    before: Snapshot
    now: Snapshot

    def concerning(self, identity: Identity, server: str | None) -> list[str]:
        """The notifications for the clients of one user, who hears only of what this user may or might read.

        Args:
            server: the one that the client came for; None: all.
        """
        kinds = {
            kind
            for (name, user), kinds in self.changes.items()
            if user in (None, identity.key) and server in (None, name) and self._could_read(name, identity)
            for kind in kinds
        }
        return [f"notifications/{kind}/list_changed" for kind in KINDS if kind in kinds]

    def _could_read(self, name: str, identity: Identity) -> bool:
        records = (snapshot.get(name) for snapshot in (self.before, self.now))
        return any(record is not None and _may_read(record, identity) for record in records)


def _may_read(resource: McpServerResource, identity: Identity) -> bool:
    return can_access(resource, identity.user_id, identity.roles)
