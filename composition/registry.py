"""The registry: it holds the mounts, and is the view of all. The mounted namespace is the unified tool registry.

The root server asks here. Names are routed by an exact look-up of what stands before the first underscore, so any
number of servers costs the same, and what the caller may not read is not found. `run` keeps the mounts equal to the
store, live.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import anyio
from anyio.abc import TaskGroup
from fastmcp.server.dependencies import get_context

from composition.mount import Mount
from composition.names import SEPARATOR, Names, out_of_namespace, server_of
from composition.news import News
from composition.session_servers import SessionServers
from composition.settings import OWN_SERVER
from composition.view import Found, View
from providers.caller import Caller, ClientSessions, user_session
from providers.catalogue import KINDS
from providers.errors import CallerError, NotAuthenticated
from providers.identity import Identity, resolve_identity
from providers.listener import Listeners
from providers.parking import ParkingLot
from providers.pool import McpConnectionPool
from providers.resource import McpServerResource, access_rule, may
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
        session_timeout: seconds without use after which what was added by a caller without a session goes.
        only: the one server that is mounted, whatever the store holds; None: all of them.
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
        session_timeout: float = 1800.0,
        only: str | None = None,
    ) -> None:
        super().__init__()
        self._pool, self._sessions, self._wire_for, self._local = pool, sessions, wire_for, local
        self._refresh_interval, self._when_used, self._parking = refresh_interval, when_used, parking
        self._listeners = Listeners(sessions)
        self.on_unmount: list[Callable[[str], None]] = []
        self.on_sync: list[Callable[[], None]] = []
        """Called after each change of what there is and who may read it."""
        self._mounts: dict[str, Mount] = {}
        self._only = only
        self._resources: Snapshot = {}
        self._of_sessions = SessionServers(session_timeout)
        self._changes: dict[tuple[str, str | None, str | None], set[str]] = {}
        self._past: dict[str, McpServerResource] = {}
        self._something_changed = anyio.Event()
        self._tasks: TaskGroup | None = None

    def __repr__(self) -> str:
        return f"<Registry {len(self._mounts)} mounts>"

    @property
    def local(self) -> Identity | None:
        """The local user, or None where callers bring tokens."""
        return self._local

    # --- mounts, kept live

    @property
    def mounts(self) -> Mapping[str, Mount]:
        return self._mounts

    def sync(self, snapshot: Snapshot) -> None:
        """Make the mounts equal to a snapshot; what did not change is not touched."""
        snapshot = {name: resource for name, resource in snapshot.items() if self._only in (None, name)}
        before, self._resources = self._resources, snapshot
        wanted = {name: resource for name, resource in snapshot.items() if resource.is_enabled}
        of_sessions = self._of_sessions.names - snapshot.keys()
        for name in [name for name in self._mounts if name not in of_sessions and name not in wanted]:
            self._unmount(name)
        for name in self._of_sessions.names & snapshot.keys():
            logger.warning("server '%s' was one session's own; now there is one of that name for all", name)
            self._unmount(name)
        for name, resource in wanted.items():
            if name not in self._mounts:
                self._mount(resource)
            elif resource is not before.get(name):
                self._remount(self._mounts[name], resource)
                self._mounts[name].subscriptions.review()
        self._review()

    def _review(self) -> None:
        if self._parking is not None:
            self._parking.review(self.may_use)
        for review in self.on_sync:
            review()

    def _mount(self, resource: McpServerResource, session: str | None = None) -> Mount:
        name = resource.name
        mount = self._mounts[name] = Mount(
            resource,
            self._wire_for(resource),
            pool=self._pool,
            sessions=self._sessions,
            lookup=self.resource,
            on_change=lambda kinds, identity: self._announce(name, kinds, identity.key, session),
            local=self._local,
            refresh_interval=self._refresh_interval,
            parking=self._parking,
            session=session,
        )
        if self._tasks is not None:
            mount.start(self._tasks)
            if mount.is_offered:
                self._announce(name, KINDS)
            logger.info("server '%s' mounted", name)
        return mount

    def _unmount(self, name: str) -> None:
        mount = self._mounts.pop(name)
        self._of_sessions.forget(name)
        mount.subscriptions.close()
        self._listeners.stop(name)
        for callback in self.on_unmount:
            callback(name)
        self._pool.evict(name, before_generation=mount.target.generation + 1)
        self._past.setdefault(name, mount.resource)
        if mount.is_offered:
            self._announce(name, KINDS, session=mount.session)
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

    def restart(self, name: str) -> bool:
        """Begin a new generation of a server: its sessions close once idle, the next calls open new ones. False where
        it is not mounted."""
        mount = self._mounts.get(name)
        if mount is None:
            return False
        mount.update(mount.resource, self._wire_for(mount.resource))
        self._pool.evict(name, before_generation=mount.target.generation)
        logger.info("server '%s' restarts", name)
        return True

    def resource(self, name: str) -> McpServerResource | None:
        """The record of a server as it is now."""
        return self._of_sessions.resource(name) or self._resources.get(name)

    # --- servers of one client session

    def add_for(self, session: str, resource: McpServerResource) -> Mount:
        """Mount a server for one client session alone, until that ends. It is not there before `offer`.

        Raises:
            CallerError: there is one of this name, be it hidden or not.
        """
        if resource.name in self._mounts or resource.name in self._resources:
            raise CallerError(f"The name '{resource.name}' cannot be used. Choose another.")
        self._of_sessions.add(session, resource)
        return self._mount(resource, session)

    def offer(self, mount: Mount) -> None:
        """Let a session have its server; it is told."""
        mount.is_offered = True
        self._announce(mount.resource.name, KINDS, session=mount.session)

    def remove_for(self, session: str, name: str) -> bool:
        """Take a server of a session's own away; whether there was one."""
        if not self._of_sessions.is_of(name, session):
            return False
        self._unmount(name)
        self._review()
        return True

    def own_of(self, session: str) -> list[Mount]:
        """The servers of one session alone."""
        return [mount for mount in self._mounts.values() if mount.session == session]

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
        for name in self._of_sessions.names:
            self._unmount(name)

    async def _tick(self) -> None:
        while True:
            await anyio.sleep(1)
            for mount in list(self._mounts.values()):
                mount.catalogue.tick()
            busy = {each.server for each in self._pool.connections() if each.in_use or not each.is_open}
            for name in self._of_sessions.unused(busy):
                self.remove_for(self._of_sessions.session_of(name), name)

    def _announce(self, name: str, kinds: Iterable[str], user: str | None = None, session: str | None = None) -> None:
        """Have clients told that these kinds of a server's components changed: everybody's, one user's, or those of
        one session."""
        self._changes.setdefault((name, user, session), set()).update(kinds)
        self._something_changed.set()

    async def _tell_clients(self) -> None:
        while True:
            await self._something_changed.wait()
            await anyio.sleep(_ANNOUNCE_PAUSE)
            self._something_changed = anyio.Event()
            news = News(self._changes, self._past, {**self._resources, **self._of_sessions.resources})
            self._changes, self._past = {}, {}
            if self._tasks is not None:
                self._tasks.start_soon(self._sessions.announce, news.concerning)
                self.listeners.announce(news.concerning)

    def session_ended(self, session: str) -> None:
        """A client's session ended: nothing is kept or asked on its behalf any more."""
        self.listeners.end_session(session)
        for mount in self.own_of(session):
            self.remove_for(session, mount.resource.name)
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

    def readable(self, caller: Caller) -> list[Mount]:
        self._of_sessions.used(caller.session)
        return [mount for _, mount in sorted(self._mounts.items()) if mount.is_for(caller)]

    def mount_of(self, server: str, identity: Identity) -> Mount | None:
        """The mount of a server that is not one session's own, if this user may read it."""
        mount = self._mounts.get(server)
        is_there = mount is not None and mount.session is None and may(identity, "read", mount.resource)
        return mount if is_there else None

    def _mount_for(self, server: str, caller: Caller) -> Mount | None:
        mount = self._mounts.get(server)
        if mount is None or not mount.is_for(caller):
            return None
        self._of_sessions.used(caller.session)
        return mount

    def judge(self, server: str, identity: Identity, session: str | None = None) -> tuple[bool, str]:
        if self._is_own(server):
            return True, "own tool"
        resource = self.resource(server)
        if resource is None or self._of_sessions.is_others(server, session or user_session(identity)):
            return False, "not found"
        rule = access_rule(resource, identity.key, identity.roles)
        if rule is None:
            return False, "not readable"
        return (True, rule) if server in self._mounts else (False, "disabled")

    def may_use(self, server: str, identity: Identity) -> bool:
        """Whether a server is there for a user, who has found it in the session that the call is from."""
        mount = self._mounts.get(server)
        return self._is_own(server) or (mount is not None and may(identity, "read", mount.resource))

    def _is_own(self, server: str) -> bool:
        return self.own is not None and server == OWN_SERVER

    def names(self, mount: Mount) -> Names:
        return mount.namespace

    def find(self, name: str, caller: Caller) -> Found | None:
        server, _, own = name.partition(SEPARATOR)
        mount = self._mount_for(server, caller)
        return (mount, own) if mount else None

    def find_uri(self, uri: str, caller: Caller) -> Found | None:
        mount = self._mount_for(server_of(uri), caller)
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
