"""The gateway: the root FastMCP server and everything it owns. The composition root.

Here is chosen which store and which wires are used, in which order middleware runs, and who owns which lifetime: all of
them hang on one task of our own, which the server's lifespan starts and joins (FastMCP closes lifespans inside a fresh
cancel scope, so a task group may not be held open across one). Tools that start no lifespan, such as `fastmcp inspect`,
start that task with their first request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from dataclasses import replace
from enum import StrEnum
from functools import partial
from typing import Any

import anyio
from anyio.abc import TaskGroup
from fastmcp import FastMCP
from fastmcp.server.auth import AuthProvider

from composition.adding import Adding
from composition.admission import Admission
from composition.dynamic import DynamicTools
from composition.own_tools import OwnTools
from composition.parts import audit_log, container_options, layered_store, open_secrets, pool_limits
from composition.registry import Registry
from composition.relay import Relay
from composition.replica_auth import ReplicaAuth
from composition.replicas import replicas_for
from composition.root import RootMiddleware
from composition.servers_file import Configuration, watch_configuration
from composition.settings import ToolListing
from composition.stores import MEMORY
from composition.token_watch import TokenWatch
from composition.view import View
from composition.welcome import Welcome
from providers import lines, low_level, verbatim
from providers.addresses import AddressRules
from providers.audit import Audit
from providers.caller import Caller, ClientSessions
from providers.container_keys import StartPolicy
from providers.container_supervisor import ContainerSupervisor
from providers.direct import DirectServer
from providers.endpoint import HttpClient, http_client
from providers.errors import ConfigurationError
from providers.identity import local_identity
from providers.inprocess import PythonServer, inprocess_wire
from providers.limits import AtOnce
from providers.parking import ParkingLot
from providers.pool import McpConnectionPool
from providers.remote import streamable_http_wire
from providers.resource import SERVERS_FILE, McpServerResource, TransportType
from providers.sse import sse_wire
from providers.stdio import stdio_wire
from providers.store_layers import Patience
from providers.wire import Deliver, OpenWire, Wire, opened_by

logger = logging.getLogger(__name__)

VERSION = "0.1.0"
STDIO_MAX_CONNECTIONS = 20
SERVE_MAX_CONNECTIONS = 200
_NEEDS_SERVE = (
    "[gateway.auth] says who may come in over HTTP, and here nobody would be asked: "
    "everybody would be an administrator. Serve with 'server.py serve'"
)


class GatewayState(StrEnum):
    STOPPED = "stopped"
    RUNNING = "running"
    DRAINING = "draining"


class Gateway:
    """One gateway. `mcp` exists, with its mounts, as soon as it is constructed; nothing is connected before it runs.

    Args:
        max_connections: used where the configuration says nothing.
        store: the address of the store that is used where the configuration says nothing.
        patience: with a store that is away; by default a minute.
        auth: any FastMCP auth provider. With it callers are who their verified token says; without it they are
            the local user, an administrator.
        only: the one server that it has, for a command that is about no other: nothing is fetched, started or tried
            for those. None: all that there are.
    """

    _http: HttpClient | None = None
    _http_within_rules: HttpClient | None = None

    def __init__(
        self,
        configuration: Configuration,
        *,
        max_connections: int = STDIO_MAX_CONNECTIONS,
        store: str = MEMORY,
        patience: Patience | None = None,
        auth: AuthProvider | None = None,
        only: str | None = None,
    ) -> None:
        self.configuration = configuration
        self.settings = settings = configuration.settings
        self.operator = local_identity()
        self.state = GatewayState.STOPPED
        self.store = layered_store(configuration, settings.store or store, patience or Patience())
        self.sessions = ClientSessions()
        self.pool = McpConnectionPool(pool_limits(settings, max_connections))
        self.secrets = open_secrets(settings)
        self.replicas = replicas_for(settings, has_auth=auth is not None)
        if self.replicas is not None and auth is not None:
            auth = ReplicaAuth(auth, self.replicas)
        self.watch = TokenWatch(auth.verify_token if auth else None)
        self.parking = ParkingLot(hold=self.watch.hold)
        self.address_rules = AddressRules(settings.allowed_networks)
        self.containers = ContainerSupervisor(
            container_options(configuration, self.replicas.fence.marks if self.replicas else None),
            self.pool,
            self._open_remote,
            self._record,
            self._filled,
            sharing=self.replicas.sharing if self.replicas else None,
        )
        self._tasks: TaskGroup | None = None
        local = None if auth else self.operator
        self.registry = Registry(
            pool=self.pool,
            sessions=self.sessions,
            wire_for=self._wire_for,
            local=local,
            refresh_interval=settings.refresh_interval,
            when_used=self.start,
            parking=self.parking,
            session_timeout=settings.session_timeout,
            only=only,
        )
        self.registry.sync(self.store.snapshot)
        self.sessions.on_end.append(self._session_ended)
        self.sessions.on_use.append(lambda key: self.watch.hold_session(key, partial(self.sessions.silence, key)))
        self.root = RootMiddleware(self.registry, self.watch)
        self.registry.on_sync.append(self.root.review)
        self.audit = Audit(audit_log(settings))
        self._has_users = auth is not None
        most = self.limit("max_calls_per_user")
        self._at_once = None if most is None else AtOnce(int(most))
        refusal = _NEEDS_SERVE if settings.auth.is_on and auth is None else None
        self.mcp = self.front(self.registry, settings.name, lifespan=self._lifespan, auth=auth, http_refusal=refusal)
        self.registry.own = self._own_tools()
        self._runner: asyncio.Task[None] | None = None
        self._lifespans = 0
        self._ready, self._stop = asyncio.Event(), asyncio.Event()

    def __repr__(self) -> str:
        return f"<Gateway {self.settings.name!r} {self.state} {len(self.registry.mounts)} servers>"

    def _own_tools(self) -> OwnTools | None:
        settings, shows_all = self.settings, self.settings.tools is ToolListing.ALL
        if shows_all and not settings.dynamic:
            return None
        pinned = None if shows_all else settings.pinned_tools
        own = OwnTools(self.registry, self.mcp, self._admission(self.registry).within, pinned)
        own.add_search()
        if settings.dynamic:
            parts = (self.registry, self.sessions, self.store, self.secrets, self.address_rules)
            adding = Adding(settings, *parts)
            DynamicTools(settings, self.registry, adding, self.secrets.passing, self.parking).offer(own)
        return own

    def limit(self, key: str) -> float | None:
        """A limit of one user. Without authentication there is one user alone, who has none that nobody wrote."""
        is_chosen = self._has_users or key in self.settings.model_fields_set
        return getattr(self.settings, key) if is_chosen else None

    def _admission(self, view: View) -> Admission:
        return Admission(view, self.sessions, self.audit, self._at_once, self.start)

    def front(self, view: View, name: str, **options: Any) -> FastMCP[Any]:
        """A server for clients, which find there what a view shows.

        Args:
            options: more of `FastMCP`.
        """
        admission, welcome = self._admission(view), Welcome(self.settings.name, view)
        middleware = [self.root, welcome] if lines.MODERN else [admission, self.root, welcome]
        if self.replicas is not None:
            options |= low_level.sealing_with_mark(self.replicas.marked, self.replicas.unmarked)
        server = DirectServer(
            view, name=name, version=VERSION, middleware=middleware, mask_error_details=True, **options
        )
        Relay(view, self.pool).serve(server)
        low_level.use_input_schema_lookup(server, view.input_schema)
        verbatim.install(server)
        low_level.wrap_requests(server, admission.word)
        return server

    # --- lifetimes

    @asynccontextmanager
    async def _lifespan(self, server: FastMCP[Any]) -> AsyncIterator[None]:
        self._lifespans += 1
        try:
            await self.start()
            yield
        finally:
            self._lifespans -= 1
            if not self._lifespans:
                await self.stop()

    async def start(self) -> None:
        """Start what the gateway owns, if it does not run yet in this event loop."""
        if (
            self._runner is not None
            and not self._runner.done()
            and self._runner.get_loop() is asyncio.get_running_loop()
        ):
            await self._ready.wait()
            return
        self._ready, self._stop = asyncio.Event(), asyncio.Event()
        self._runner = asyncio.create_task(self._run(), name="apollos-gateway")
        await self._ready.wait()
        if self._runner.done():
            self._runner.result()

    async def stop(self) -> None:
        """Close every backend session, within the shutdown deadlines, and wait for it."""
        if self._runner is not None:
            self._stop.set()
            await asyncio.wait([self._runner])
            self._runner = None

    async def _run(self) -> None:
        try:
            async with (
                self.audit,
                http_client() as self._http,
                http_client(within=self.address_rules) as self._http_within_rules,
                self.store,
                self.replicas or nullcontext(),
                self.containers,
                anyio.create_task_group() as tasks,
            ):
                # closed first, parked calls before all: servers in this process live in tasks of the group
                async with self.pool, self.parking:
                    self._tasks, self.state = tasks, GatewayState.RUNNING
                    self.root.resume()
                    self.registry.sync(self.store.snapshot)
                    tasks.start_soon(self.store.run)
                    tasks.start_soon(self.registry.run, self.store, tasks)
                    tasks.start_soon(self.watch.run)
                    tasks.start_soon(self._follow_file)
                    for mount in self.registry.mounts.values():
                        self._start_if_eager(mount.resource)
                    self._ready.set()
                    await self._stop.wait()
                tasks.cancel_scope.cancel()
        finally:
            self._tasks, self.state = None, GatewayState.STOPPED
            self.registry.stopped()
            self._ready.set()

    async def drain(self) -> None:
        """Take no more calls, and give the open ones `drain_timeout` seconds to end."""
        self.state = GatewayState.DRAINING
        if self.replicas is not None:
            self.replicas.leave()
        self.parking.drain()
        self.registry.listeners.stop()
        async with anyio.create_task_group() as tasks:
            if self.replicas is not None:
                tasks.start_soon(self.replicas.hand_over, self.containers.let_go)
            await self.root.drain(self.settings.drain_timeout)
            tasks.cancel_scope.cancel()

    # --- configuration

    async def _follow_file(self) -> None:
        """Make the store's first layer equal to each good version of servers.toml; a broken one is reported, the last
        good one stands."""
        changes = watch_configuration(self.configuration.path, since=self.configuration.fingerprint)
        try:
            async with aclosing(changes):
                async for outcome in changes:
                    if isinstance(outcome, ConfigurationError):
                        logger.error("%s\nThe last good configuration stands.", outcome)
                    else:
                        await self._apply(outcome)
        except OSError as error:
            logger.warning("'%s' is not watched for changes (%s)", self.configuration.path, error.strerror)

    async def _apply(self, configuration: Configuration) -> None:
        files = self.store.files
        known = files.snapshot
        for name, resource in configuration.resources.items():
            if name not in known or not resource.same_offer(known[name]):
                await files.upsert(resource)
        for name in known.keys() - configuration.resources.keys():
            await files.delete(name)
        if configuration.settings != self.configuration.settings:
            logger.warning("[gateway] of '%s' changed; that takes effect at the next start", configuration.path)
        self.configuration = configuration

    def _record(self, name: str) -> McpServerResource | None:
        return self.registry.resource(name)

    async def _filled(self, resource: McpServerResource) -> McpServerResource:
        return await self.secrets.filled(resource, opened_by.get())

    def _wire_for(self, resource: McpServerResource) -> OpenWire:
        if resource.is_container:
            launcher = self.containers.launcher(resource)
            self._start_if_eager(resource)
            return launcher
        match resource.transport_type:
            case TransportType.STDIO:
                return self.secrets.wire(resource, stdio_wire)
            case TransportType.PYTHON:
                return partial(inprocess_wire, resource, PythonServer(resource, self._start_soon).running)
            case _:
                return self.secrets.wire(resource, self._open_remote)

    def _open_remote(
        self, resource: McpServerResource, deliver: Deliver, client: HttpClient | None = None
    ) -> AbstractAsyncContextManager[Wire]:
        """
        Args:
            client: for a server with connections of its own; the others share the gateway's. Those that came through
                the API have one that checks each address, so that they lead to nowhere inside.
        """
        open_wire = sse_wire if resource.transport_type is TransportType.SSE else streamable_http_wire
        return open_wire(resource, deliver, client or self._client(resource))

    def _start_if_eager(self, resource: McpServerResource) -> None:
        if resource.start is StartPolicy.EAGER and self._tasks is not None:
            self._tasks.start_soon(self._start_eager, resource)

    async def _start_eager(self, resource: McpServerResource) -> None:
        """Connect to a server that is to run before anybody asks, once its image is here."""
        await self.containers.pulled(resource.name)
        mount = self.registry.mounts.get(resource.name)
        if mount is not None:
            await mount.catalogue.get(self.operator_caller())

    def _start_soon(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
        assert self._tasks is not None, "the gateway does not run"
        self._tasks.start_soon(work, *arguments)

    def _client(self, resource: McpServerResource) -> HttpClient:
        client = self._http if resource.created_by == SERVERS_FILE else self._http_within_rules
        assert client is not None, "the gateway does not run"
        return client

    async def _session_ended(self, session: str) -> None:
        self.watch.release_session(session)
        await self.pool.end_session(session)
        self.containers.end_session(session)
        self.registry.session_ended(session)

    def operator_caller(self) -> Caller:
        """The operator, for what the gateway does by itself: warming up and `check`. An administrator only where
        everybody is: where callers bring tokens, no token vouches for this one."""
        operator = self.operator if self.mcp.auth is None else replace(self.operator, roles=frozenset())
        return Caller(operator, f"user:{operator.key}", has_session=False, is_modern=lines.MODERN)
