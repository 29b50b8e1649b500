"""The registry: the FastMCP provider that holds the mounts. The mounted namespace is the unified tool registry.

The root server asks here. Names are routed by an exact look-up of what stands before the first underscore, so any
number of servers costs the same, and what the caller may not read is not found. Lists come from the mounts' catalogues,
all at once, each within its own deadline. `run` keeps the mounts equal to the store, live.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskGroup
from fastmcp.prompts.base import Prompt
from fastmcp.resources.base import Resource
from fastmcp.resources.template import ResourceTemplate
from fastmcp.server.dependencies import get_context
from fastmcp.server.providers import Provider
from fastmcp.tools.base import Tool

from composition.mount import SEPARATOR, Mount, server_of
from providers.caller import Caller, ClientSessions
from providers.catalogue import KINDS, Listing
from providers.components import Offer
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

Component = TypeVar("Component")

_ANNOUNCE_PAUSE = 0.05
"""Seconds in which changes are gathered into one notification."""


class Registry(Provider):
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
        self.listeners = Listeners(sessions)
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

    def identity(self) -> Identity:
        """As whom the current request is made.

        Raises:
            NotAuthenticated: it has no verified principal.
        """
        return resolve_identity(self._local)

    async def caller(self) -> Caller | None:
        """Who makes the current request; None for one without a verified principal, who sees nothing."""
        await self._when_used()
        try:
            identity = self.identity()
        except NotAuthenticated:
            return None
        try:
            context = get_context()
        except RuntimeError:
            context = None
        return self._sessions.caller(context, identity)

    def readable(self, caller: Caller | None) -> list[Mount]:
        """The mounts that a caller may see, by name."""
        if caller is None:
            return []
        return [mount for _, mount in sorted(self._mounts.items()) if _may_read(mount.resource, caller.identity)]

    def route(self, name: str, caller: Caller | None) -> Mount | None:
        """The mount of a server, if this caller may read it."""
        mount = self._mounts.get(name)
        if mount is None or caller is None or not _may_read(mount.resource, caller.identity):
            return None
        return mount

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

    async def _list(self, pick: Callable[[Offer], Mapping[str, Component]]) -> list[Component]:
        caller = await self.caller()
        mounts = self.readable(caller)
        if caller is None:
            return []
        listings: dict[str, Listing | None] = {}
        late = []
        for mount in mounts:
            listings[mount.resource.name] = listing = mount.catalogue.peek(caller)
            if listing is None:
                late.append(mount)
            else:
                mount.catalogue.renew_if_stale(caller)
        if late:
            await _ask_all(late, caller, listings)
        return [
            component
            for mount in mounts
            if (listing := listings[mount.resource.name])
            for component in pick(mount.offer(listing)).values()
        ]

    async def _list_tools(self) -> Sequence[Tool]:
        return await self._list(lambda offer: offer.tools)

    async def _list_resources(self) -> Sequence[Resource]:
        return await self._list(lambda offer: offer.resources)

    async def _list_resource_templates(self) -> Sequence[ResourceTemplate]:
        return await self._list(lambda offer: offer.templates)

    async def _list_prompts(self) -> Sequence[Prompt]:
        return await self._list(lambda offer: offer.prompts)

    async def _get_tool(self, name: str, version: Any = None) -> Tool | None:
        caller = await self.caller()
        server, _, inner = name.partition(SEPARATOR)
        mount = self.route(server, caller)
        if mount is None or caller is None:
            return None
        listing = mount.catalogue.peek(caller) or await mount.catalogue.get(caller)
        if listing is None:
            return mount.unlisted_tool(inner, mount.catalogue.error(caller))
        return mount.offer(listing).tools.get(name)

    async def _get_prompt(self, name: str, version: Any = None) -> Prompt | None:
        caller = await self.caller()
        server, _, inner = name.partition(SEPARATOR)
        mount = self.route(server, caller)
        if mount is None or caller is None:
            return None
        listing = mount.catalogue.peek(caller) or await mount.catalogue.get(caller)
        if listing is None:
            return mount.unlisted_prompt(inner, mount.catalogue.error(caller))
        return mount.offer(listing).prompts.get(name)

    async def _get_resource(self, uri: str, version: Any = None) -> Resource | None:
        mount = self.route(server_of(uri), await self.caller())
        return mount.resource_at(uri) if mount else None

    async def _get_resource_template(self, uri: str, version: Any = None) -> ResourceTemplate | None:
        return None

    async def get_tasks(self) -> Sequence[Any]:
        return []  # FastMCP asks at start, by listing everything; none of ours runs as a task

    def input_schema(self, name: str) -> Mapping[str, Any] | None:
        """A tool's input schema, as far as the caller may know it and it is in memory; the SDK checks headers by it."""
        try:
            identity = resolve_identity(self._local)
        except NotAuthenticated:
            return None
        mount = self._mounts.get(name.partition(SEPARATOR)[0])
        if mount is None or not _may_read(mount.resource, identity):
            return None
        listing = mount.catalogue.known_to(identity)
        tool = mount.offer(listing).tools.get(name) if listing else None
        return tool.parameters if tool else None


@dataclass(frozen=True, slots=True)
class _News:
    """What changed since clients were told last: kinds by server and by user (None: everybody)."""

    changes: dict[tuple[str, str | None], set[str]]
    before: Snapshot
    now: Snapshot

    def concerning(self, identity: Identity) -> list[str]:
        """The notifications for the sessions of one user, who hears only of what this user may or might read."""
        kinds = {
            kind
            for (name, user), kinds in self.changes.items()
            if user in (None, identity.key) and self._could_read(name, identity)
            for kind in kinds
        }
        return [f"notifications/{kind}/list_changed" for kind in KINDS if kind in kinds]

    def _could_read(self, name: str, identity: Identity) -> bool:
        records = (snapshot.get(name) for snapshot in (self.before, self.now))
        return any(record is not None and _may_read(record, identity) for record in records)


async def _ask_all(late: list[Mount], caller: Caller, listings: dict[str, Listing | None]) -> None:
    async def ask(mount: Mount) -> None:
        patience = mount.resource.timeouts.list
        listings[mount.resource.name] = await mount.catalogue.get(caller, patience)

    async with anyio.create_task_group() as tasks:
        for mount in late:
            tasks.start_soon(ask, mount)


def _may_read(resource: McpServerResource, identity: Identity) -> bool:
    return can_access(resource, identity.user_id, identity.roles)
