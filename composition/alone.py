"""One server alone, at `/adapters/{name}/mcp`: its own names and URIs, and sessions of its own.

`http` comes in with the application that serves all servers, and this becomes a route of it: behind the same guards
and the same authentication. Each server gets a front server when somebody first asks for it, and loses it, with the
sessions that it has, when it is unmounted. What may not be read answers like what is not there.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from copy import copy
from enum import StrEnum
from types import TracebackType
from typing import Any

import anyio
from anyio.abc import TaskGroup
from fastmcp import FastMCP
from fastmcp.server.auth.middleware import RequireAuthMiddleware
from fastmcp.server.http import StarletteWithLifespan
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from composition.mount import Mount
from composition.names import ALONE, OWN_NAMES, Names
from composition.registry import Registry
from composition.token_watch import serve_within
from composition.view import Found, View
from providers.caller import Caller
from providers.errors import NotAuthenticated
from providers.identity import Identity
from providers.listener import Listeners
from providers.resource import NAME_PATTERN

logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 5.0
"""What the sessions of all servers get to end at shutdown."""
_FAREWELL_SECONDS = 0.3
"""What a call gets to be answered whose user may not read its server any more."""

_NOT_THERE = {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "There is no such server."}}
_RESTARTS = {"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": "The gateway is shutting down."}}


class ServerView(View):
    """One server, under its own names."""

    def __init__(self, registry: Registry, server: str) -> None:
        super().__init__()
        self._registry, self.server = registry, server

    def __repr__(self) -> str:
        return f"<ServerView {self.server}>"

    @property
    def listeners(self) -> Listeners:
        return self._registry.listeners

    def identity(self) -> Identity:
        return self._registry.identity()

    async def caller(self) -> Caller | None:
        return await self._registry.caller_for(self.server)

    def readable(self, caller: Caller) -> list[Mount]:
        mount = self._mount(caller)
        return [mount] if mount else []

    def _mount(self, caller: Caller) -> Mount | None:
        return self._registry.mount_of(str(self.server), caller.identity)

    def judge(self, server: str, identity: Identity, session: str | None = None) -> tuple[bool, str]:
        return self._registry.judge(server, identity)

    def names(self, mount: Mount) -> Names:
        return OWN_NAMES

    def find(self, name: str, caller: Caller) -> Found | None:
        mount = self._mount(caller)
        return (mount, name) if mount else None

    def find_uri(self, uri: str, caller: Caller) -> Found | None:
        return self.find(uri, caller)


MetadataUrl = Callable[[str], Any]


class _State(StrEnum):
    OPENING = "opening"
    OPEN = "open"
    CLOSED = "closed"


class _Front:
    """A server's own front: its application, and how far that is."""

    def __init__(self, server: str, app: StarletteWithLifespan) -> None:
        self.server, self.app = server, app
        self.state = _State.OPENING
        self.settled, self.closing = anyio.Event(), anyio.Event()

    def __repr__(self) -> str:
        return f"<_Front {self.server} {self.state}>"

    async def run(self) -> None:
        """Be open until it is to close; all its sessions end then."""
        try:
            async with self.app.lifespan(self.app):
                self.state = _State.OPEN
                self.settled.set()
                await self.closing.wait()
                self.state = _State.CLOSED
        except Exception:  # a task ends here: one server's fault must not end the gateway
            logger.exception("server '%s': what serves it alone failed", self.server)
        finally:
            self.state = _State.CLOSED
            self.settled.set()


class ServersAlone:
    """The ASGI endpoint of all servers that are asked for alone. To be entered before it is used.

    Args:
        make_front: makes the server for clients that find there what a view shows; given the view and a name.
        options: of FastMCP's `http_app`.
    """

    def __init__(
        self, registry: Registry, make_front: Callable[[View, str], FastMCP[Any]], options: dict[str, Any]
    ) -> None:
        self._registry, self._make_front, self._options = registry, make_front, options
        self._fronts: dict[str, _Front] = {}
        self._visitors: dict[anyio.CancelScope, tuple[str, Identity]] = {}
        self._tasks: TaskGroup | None = None

    def __repr__(self) -> str:
        return f"<ServersAlone {list(self._fronts.values())}>"

    async def __aenter__(self) -> ServersAlone:
        self._tasks = await anyio.create_task_group().__aenter__()
        self._registry.on_unmount.append(self._close)
        self._registry.on_sync.append(self._review)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks, self._tasks = self._tasks, None
        assert tasks is not None, "it was not entered"
        self._registry.on_unmount.remove(self._close)
        self._registry.on_sync.remove(self._review)
        for server in list(self._fronts):
            self._close(server)
        tasks.cancel_scope.deadline = anyio.current_time() + _CLOSE_SECONDS
        await tasks.__aexit__(kind, error, trace)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        server = scope["path_params"]["name"]
        front = await self._front(server)
        if not isinstance(front, _Front):
            await front(scope, receive, send)
            return
        with anyio.CancelScope() as request:
            self._visitors[request] = (server, self._registry.identity())
            try:
                await serve_within(request, front.app, _not_there(), scope, receive, send)
            finally:
                del self._visitors[request]

    def _review(self) -> None:
        """Servers or roles changed: end the requests of who may not read their server any more, once calls had the time
        to be answered as those at the address of all servers are."""
        for request, (server, user) in self._visitors.items():
            if not self._registry.may_use(server, user):
                request.deadline = anyio.current_time() + _FAREWELL_SECONDS

    async def _front(self, server: str) -> _Front | JSONResponse:
        """The front of a server, made if there is none yet, or what to answer in its place."""
        try:
            mount = self._registry.mount_of(server, self._registry.identity())
        except NotAuthenticated:
            mount = None
        if mount is None:
            return _not_there()
        front = self._fronts.get(server)
        if front is None or front.state is _State.CLOSED:
            if self._tasks is None:
                return JSONResponse(_RESTARTS, status_code=503)
            front = self._fronts[server] = self._new_front(server)
            # In a context of its own: it outlives the request that it is made in, and is to know nothing of it.
            Context().run(self._tasks.start_soon, front.run)
        await front.settled.wait()
        return front if front.state is _State.OPEN else _not_there()

    def _new_front(self, server: str) -> _Front:
        made = self._make_front(ServerView(self._registry, server), server)
        # What guards the whole application stands before this one already.
        app = made.http_app(path=ALONE.format(name=server), host_origin_protection=False, **self._options)
        return _Front(server, app)

    def _close(self, server: str) -> None:
        """The server is gone. If it comes back, it is another one, which knows nothing of these sessions."""
        front = self._fronts.pop(server, None)
        if front is not None:
            front.closing.set()


def _not_there() -> JSONResponse:
    return JSONResponse(_NOT_THERE, status_code=404)


def serve_alone(app: StarletteWithLifespan, path: str, servers: ServersAlone, metadata_url: MetadataUrl) -> None:
    """Have an application serve each server alone, too, for as long as it runs itself.

    Args:
        path: where it serves all servers; whatever stands before that, stands before these.
        metadata_url: where a client learns how to authenticate at a path (RFC 9728); None: nowhere.
    """
    served = next(route for route in app.routes if isinstance(route, Route) and route.path == path)
    endpoint = _behind_same(served.endpoint, servers, metadata_url)
    app.router.routes.insert(0, Route(ALONE, endpoint=endpoint, methods=served.methods))
    of_all = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(running: Starlette) -> AsyncIterator[Any]:
        async with of_all(running) as state, servers:
            yield state

    app.router.lifespan_context = lifespan


def _behind_same(endpoint: Any, servers: ServersAlone, metadata_url: MetadataUrl) -> ASGIApp:
    """As for all servers: the same words to whoever is not authenticated, and the metadata of this address."""
    if not isinstance(endpoint, RequireAuthMiddleware):
        return servers

    async def required(scope: Scope, receive: Receive, send: Send) -> None:
        guarded, name = copy(endpoint), str(scope["path_params"]["name"])
        guarded.app = servers
        if NAME_PATTERN.match(name) and (url := metadata_url(ALONE.format(name=name))):
            guarded.resource_metadata_url = url
        await guarded(scope, receive, send)

    return _Endpoint(required)


class _Endpoint:
    """An ASGI application as an object: Starlette takes a function for a handler of requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
