"""The gateway over HTTP: `/mcp` for everything, `/adapters/{name}/mcp` for one server alone, `/livez` and `/readyz` for
whoever watches the process.

FastMCP's application serves MCP, with Host and Origin checked on every request. The two probes answer before it, so
they need no credentials and work under any Host. SIGTERM drains: probes say so, open calls end, then everything closes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.middleware import Middleware as StarletteMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from composition.alone import ServersAlone, serve_alone
from composition.api import routes
from composition.auth_settings import is_loopback
from composition.door import Door, RequestRates
from composition.forwarding import Forwarding
from composition.gateway import Gateway, GatewayState
from composition.guard import MAX_HEADER_BYTES, Guard
from composition.replay import RETRY_MILLISECONDS, ReplayStore
from composition.replica_auth import asked_path
from composition.starting import settle_memory
from composition.token_watch import EndsWithToken
from providers import lines
from providers.errors import ConfigurationError
from providers.store_layers import StoreState

logger = logging.getLogger(__name__)

PATH = "/mcp"
_CLOSE_SECONDS = 1
"""What streams that are open for their own sake get once all calls have ended."""
_HEAD_SECONDS = 30.0
"""That a client may take for the headers of a request, or to begin its first one."""
_HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def build_app(gateway: Gateway) -> ASGIApp:
    """The ASGI application: probes, and MCP for all servers and for each alone behind the Host and Origin guard."""
    rates = RequestRates(gateway.limit("max_requests_per_second"), gateway.registry.local)
    guard = StarletteMiddleware(
        Guard,
        user=gateway.registry.identity,
        open_sessions=gateway.sessions.count,
        max_sessions=gateway.settings.max_sessions_per_user,
        vouch=rates.vouch,
    )
    metadata_url = getattr(gateway.mcp.auth, "metadata_url", lambda path: None)
    ends_with_token = StarletteMiddleware(EndsWithToken, watch=gateway.watch, metadata_url=metadata_url(PATH))
    sessions = _session_options(gateway)
    middleware = [ends_with_token, guard]
    if gateway.replicas is not None:
        middleware.append(StarletteMiddleware(Forwarding, replicas=gateway.replicas))
    mcp_app = gateway.mcp.http_app(
        path=PATH, host_origin_protection=True, middleware=middleware, **_names(gateway), **sessions
    )
    serve_alone(mcp_app, PATH, ServersAlone(gateway.registry, gateway.front, sessions), metadata_url)

    door = Door(mcp_app, rates, gateway.audit)
    routes.install(mcp_app, gateway, PATH)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in _PROBES:
            await _PROBES[scope["path"]](gateway)(scope, receive, send)
        else:
            if scope["type"] == "http":
                asked_path.set(scope["path"])
            await door(_trimmed(scope), receive, send)

    return app


def _trimmed(scope: Scope) -> Scope:
    """Spaces around a header's value are no part of it (RFC 9110, 5.5); httptools leaves those behind it."""
    headers = [(name, value.strip(b" \t")) for name, value in scope.get("headers", ())]
    return {**scope, "headers": headers}


def _names(gateway: Gateway) -> dict[str, Any]:
    """The hosts and the origin by which clients and other replicas know the gateway, besides the address that it
    listens on."""
    public = urlsplit(gateway.settings.public_url or "")
    of_replica = urlsplit(gateway.replicas.url).hostname if gateway.replicas else None
    hosts = [host for host in (public.hostname, of_replica) if host]
    names: dict[str, Any] = {"allowed_hosts": hosts} if hosts else {}
    return names | ({"allowed_origins": [f"{public.scheme}://{public.netloc}"]} if public.hostname else {})


def _session_options(gateway: Gateway) -> dict[str, Any]:
    """How sessions last and are taken up; FastMCP 3.4 knows neither of a session nor whose its events are."""
    if not lines.MODERN:
        return {}
    options: dict[str, Any] = {"session_idle_timeout": gateway.settings.session_timeout}
    if gateway.settings.resumable:
        options |= {"event_store": ReplayStore(), "retry_interval": RETRY_MILLISECONDS}
    return options


def _livez(gateway: Gateway) -> JSONResponse:
    """The process answers; nothing else is asked, so that no backend can have the gateway restarted."""
    return JSONResponse({"status": "alive"})


def _readyz(gateway: Gateway) -> JSONResponse:
    """A store that is away is told, and takes no traffic away: what is in memory goes on."""
    is_ready = gateway.state is GatewayState.RUNNING
    is_degraded = is_ready and gateway.store.state is StoreState.DEGRADED
    status = str(StoreState.DEGRADED if is_degraded else gateway.state)
    return JSONResponse({"status": status}, status_code=200 if is_ready else 503)


_PROBES: dict[str, Callable[[Gateway], JSONResponse]] = {"/livez": _livez, "/readyz": _readyz}


def bind(host: str, port: int, *, has_auth: bool, public_url: str | None = None) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigurationError: the address is not loopback, and nobody is authenticated or it has no public name; or it
            cannot be had.
    """
    if not has_auth and not is_loopback(host):
        raise ConfigurationError(
            f"--host {host}: without authentication the gateway serves this machine alone (127.0.0.1, ::1, localhost). "
            "Whoever could reach that address would be an administrator."
        )
    if public_url is None and not is_loopback(host):
        raise ConfigurationError(
            f"--host {host}: an address that others reach needs 'public_url' under [gateway]: the address by which "
            'clients know the gateway, as in public_url = "https://mcp.example.com". Other names are refused.'
        )
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host} port {port}: {error.strerror}. Choose another with --host or --port."
        ) from None
    # Connections take this over. asyncio does not set it on them (uvloop does), and then an answer waits for 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}"


class ClientConnection(HttpToolsProtocol):
    """A client's connection, on which a request's headers have an end: in bytes and in time. uvicorn knows of neither,
    so that a few clients that never come to the end could hold its memory and its sockets."""

    _head_bytes = 0
    _loose_bytes = 0
    """Of what is neither head nor body: trailers, which have no use here and no end of their own."""
    _is_in_head = True
    _head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def _await_head(self) -> None:
        self._is_in_head, self._head_bytes = True, 0
        self._forget_deadline()
        self._head_deadline = self.loop.call_later(_HEAD_SECONDS, self._give_up)

    def _forget_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        self._loose_bytes += len(data)
        if self._is_in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._is_in_head and self._loose_bytes > MAX_HEADER_BYTES:
            self._give_up()
        if self._is_in_head and self._head_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self.transport.write(_HEAD_TOO_LARGE)
            self.transport.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._loose_bytes = 0
        super().on_body(body)

    def on_message_begin(self) -> None:
        self._loose_bytes = 0
        super().on_message_begin()
        if not self._is_in_head:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._forget_deadline()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)


class _Server(uvicorn.Server):
    """uvicorn, but the first signal drains and the second ends at once."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._draining: asyncio.Task[None] | None = None
        self.has_started = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.has_started.set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        asyncio.get_running_loop().call_soon_threadsafe(self._exit)

    def _exit(self) -> None:
        if self._draining is None and self.started:
            self._draining = asyncio.create_task(self._drain())
        else:
            self.force_exit = self.should_exit = True

    async def _drain(self) -> None:
        logger.info("shutting down: open calls get %g s", self._gateway.settings.drain_timeout)
        await self._gateway.drain()
        self.should_exit = True


async def serve(gateway: Gateway, listener: socket.socket, on_start: Callable[[], Awaitable[Any]]) -> None:
    """Serve until a signal ends it.

    Args:
        on_start: run beside the server once it runs; it need not end.
    """
    config = uvicorn.Config(
        build_app(gateway),
        http=ClientConnection,
        access_log=False,
        log_config=None,
        lifespan="on",
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
    )
    server = _Server(config, gateway)
    starting = asyncio.create_task(_when_started(server, on_start))
    try:
        await server.serve(sockets=[listener])
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)


async def _when_started(server: _Server, on_start: Callable[[], Awaitable[Any]]) -> None:
    await server.has_started.wait()
    settle_memory()
    await on_start()
    settle_memory()  # by now the catalogues are there, too
