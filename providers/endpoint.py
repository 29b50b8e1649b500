"""One address of one remote server: how a request to it is made, how much of an answer is read, and what failures are
called.

Both HTTP wires (`remote`, `sse`) come in through `http_wire`. It alone calls aiohttp, whose requests cost a twentieth
of those of the SDK's own client. Nothing that it raises or logs holds an address, a header or a body, because each may
hold a secret; for the same reason errors are raised without their cause.
"""

from __future__ import annotations

import errno
import io
import os
import socket
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple
from weakref import WeakSet

import aiohttp
import anyio
from pydantic_core import from_json
from yarl import URL

from providers.errors import BackendError, BackendLost, BackendProtocolError, BackendUnavailable
from providers.event_stream import EventStream
from providers.identity import Identity, prepare_proxy_headers
from providers.resource import McpServerResource
from providers.wire import Message

HttpClient = aiohttp.ClientSession
HttpResponse = aiohttp.ClientResponse

JSON = "application/json"
EVENTS = "text/event-stream"

_KEEP_ALIVE_SECONDS = 4.0
"""How long an idle connection is kept. uvicorn and Node close theirs after 5 seconds: a request that met that close
half-way could not be repeated safely."""
_ADDRESS_SECONDS = 2
"""How long the address of a host name is kept: a server that moved is found soon after."""
_FINISH_SECONDS = 0.2
"""How long a response that said all we need is read on, so that its connection can be used again."""
_LARGE_BODY = 1024 * 1024
"""A larger body is written piece by piece."""


class OwnConnections:
    """The connections to a server that has its address only while it lives: afterwards that may be a stranger's.

    Args:
        server: its name.
        check: raises a `BackendError` where the address is not the server's any more, or nobody knows. It is asked
            after each connect, before anything is sent: what was the server's then was so while we connected, too. One
            that raises refuses this one connection; whether the others are cut is for it to say.
    """

    def __init__(self, server: str, check: Callable[[], Awaitable[None]]) -> None:
        self._server, self._check = server, check
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self.is_cut = False

    def __repr__(self) -> str:
        return f"<OwnConnections {'cut' if self.is_cut else len(self._sockets)}>"

    def cut(self) -> None:
        """From this step on nothing is sent any more, over old connections or over new ones."""
        self.is_cut = True
        _hang_up(self._sockets)

    def tracing(self) -> aiohttp.TraceConfig:
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_create_start.append(self._begin)
        tracing.on_connection_create_end.append(self._admit)
        return tracing

    def make(self, address: tuple[Any, ...]) -> socket.socket:
        if self.is_cut:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "it has ended")
        made = socket.socket(*address[:3])
        self._sockets.add(made)
        _made_for_this.get().append(made)
        return made

    async def _begin(self, *_: object) -> None:
        _made_for_this.set([])

    async def _admit(self, *_: object) -> None:
        try:
            if not self.is_cut:
                await self._check()
            if self.is_cut:
                problem = "is not there any more. The next call starts another."
                raise BackendUnavailable(self._server, problem, not_sent=True)
        except BaseException:  # aiohttp forgets what it connected, and would leave it open
            _hang_up(_made_for_this.get())
            raise


_made_for_this: ContextVar[list[socket.socket]] = ContextVar("apollos_made_for_this")
"""The sockets of the connect that is under way. A host name may have several addresses, each tried in a task."""


def _hang_up(sockets: Iterable[socket.socket]) -> None:
    for each in sockets:
        with suppress(OSError):  # it has ended by itself
            each.shutdown(socket.SHUT_RDWR)


@asynccontextmanager
async def http_client(own: OwnConnections | None = None) -> AsyncIterator[HttpClient]:
    """The HTTP client that all remote wires of a gateway share, or one with connections of its `own`.

    It keeps no cookies, heeds no proxy variables of the environment, and unpacks nothing. Its connections share one
    TLS context, which aiohttp makes at import.
    """
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=_KEEP_ALIVE_SECONDS,
            ttl_dns_cache=_ADDRESS_SECONDS,
            socket_factory=own.make if own else None,
        ),
        trace_configs=[own.tracing()] if own else None,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": "apollos-mcp-gateway"},
        timeout=aiohttp.ClientTimeout(total=None),  # each request sets its own
        trust_env=False,
        auto_decompress=False,
    )
    try:
        async with session as client:
            yield client
    finally:
        if own is not None:
            own.cut()


class Endpoint:
    """Where a resource's server is, and how it is spoken to. It holds no state of a conversation."""

    def __init__(self, resource: McpServerResource, client: HttpClient, max_bytes: int) -> None:
        """
        Args:
            max_bytes: cap on one message from the server.

        Raises:
            BackendUnavailable: the resource's URL cannot be used.
        """
        self.server = resource.name
        self.url, self._own_headers = _address(resource)
        self._client, self._max = client, max_bytes
        self._connect_seconds = resource.timeouts.connect
        self._timeout = aiohttp.ClientTimeout(total=None, connect=self._connect_seconds)

    def headers(self, mcp: Mapping[str, str], identity: Identity | None) -> dict[str, str]:
        """All headers of a request. Names are in lower case, so that each comes once: the identity's win over MCP's,
        and MCP's over the resource's own."""
        headers = prepare_proxy_headers(self._own_headers, mcp, identity)
        return {name.lower(): value for name, value in headers.items()} | {"accept-encoding": "identity"}

    @asynccontextmanager
    async def request(
        self, method: str, headers: Mapping[str, str], body: bytes | None = None, *, url: URL | None = None
    ) -> AsyncIterator[HttpResponse]:
        """One HTTP request; the response is open for as long as the block runs.

        Only connecting has a deadline here. How long an answer may take is the caller's to say.

        Raises:
            BackendUnavailable: there is no connection (`not_sent`), or it ended too early.
            BackendProtocolError: the answer is not HTTP.
        """
        try:
            response = await self._client.request(
                method,
                url or self.url,
                headers=headers,
                data=io.BytesIO(body) if body and len(body) > _LARGE_BODY else body,
                allow_redirects=False,
                timeout=self._timeout,
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._failure(error) from None
        try:
            yield response
            if not response.content.at_eof():
                await self._finish(response)
        except aiohttp.ClientError as error:
            raise self._failure(error) from None
        finally:
            response.release()

    async def _finish(self, response: HttpResponse) -> None:
        with anyio.move_on_after(_FINISH_SECONDS):
            while not response.content.at_eof() and await self.next_chunk(response):
                pass

    async def next_chunk(self, response: HttpResponse) -> bytes:
        """What came of a stream; empty where it ended. A dropped connection is an end like any other."""
        try:
            return await response.content.readany()
        except (aiohttp.ClientError, OSError):
            return b""

    async def read(self, response: HttpResponse, cap: int | None = None) -> bytearray:
        """A whole body, of at most `cap` bytes (by default those of one message).

        Raises:
            BackendProtocolError: it is larger; it was read no further than that.
        """
        cap = cap or self._max
        body = bytearray()
        if (response.content_length or 0) <= cap:
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > cap:
                    break
            else:
                return body
        raise BackendProtocolError(self.server, f"sent a message of more than {cap:,} bytes.")

    def media_type(self, response: HttpResponse) -> str:
        """The media type of a response that is to be read.

        Raises:
            BackendProtocolError: its body is compressed.
        """
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise BackendProtocolError(self.server, "answers compressed, although we ask it not to.")
        return response.content_type

    def parse(self, data: bytes | bytearray) -> Message:
        """One JSON-RPC message.

        Raises:
            BackendProtocolError: it is none.
        """
        try:
            message = from_json(data)
        except ValueError:
            raise BackendProtocolError(self.server, "answered with something that is not JSON.") from None
        if not isinstance(message, dict):
            raise BackendProtocolError(self.server, "answered with JSON that is not an MCP message.")
        return message

    def event_stream(self) -> EventStream:
        return EventStream(self.server, self._max)

    def refusal(self, status: int) -> BackendUnavailable:
        """The error that a status other than 2xx stands for."""
        if 300 <= status < 400:
            problem = f"answers with a redirect (HTTP {status}). Put the final address into 'url'."
        elif status in (401, 403):
            problem = f"asks for credentials (HTTP {status}). Set 'headers' of this server."
        elif status in (404, 405):
            problem = f"answered HTTP {status}. Check its 'url' and 'transport_type'."
        else:
            problem = f"answered HTTP {status}. Its own log may say why."
        return BackendUnavailable(self.server, problem)

    def _failure(self, error: Exception) -> BackendError:
        match error:
            case aiohttp.ConnectionTimeoutError():
                problem = f"no connection within {self._connect_seconds:g} seconds. Is it running?"
            case aiohttp.ClientConnectorDNSError():
                problem = "its host name was not found. Correct 'url'."
            case aiohttp.ClientConnectorCertificateError():
                problem = "its TLS certificate is not valid for 'url', or not of an authority that we trust."
            case aiohttp.ClientSSLError():
                problem = "the TLS handshake failed. Is 'url' right to begin with https://?"
            case aiohttp.ClientConnectorError():
                problem = f"no connection ({_reason(error.os_error)}). Is it running, and is 'url' right?"
            case aiohttp.ClientResponseError():
                return BackendProtocolError(self.server, "answered with something that is not HTTP.")
            case aiohttp.InvalidURL() | ValueError():
                problem = "its 'url' or 'headers' cannot be used for a request. Correct them."
            case _:
                return BackendLost(self.server, "the connection ended before the answer came.")
        return BackendUnavailable(self.server, problem, not_sent=True)


def is_success(response: HttpResponse) -> bool:
    return 200 <= response.status < 300


def _reason(error: OSError) -> str:
    known = error.errno is not None and error.errno > 0
    return os.strerror(error.errno or 0).lower() if known else "the network does not lead there"


def _address(resource: McpServerResource) -> tuple[URL, dict[str, str]]:
    """The URL without the credentials that it may hold, and the resource's headers with them."""
    try:
        url = URL(resource.url or "")
        user, password, bare = url.user, url.password, url.with_user(None)
    except ValueError:
        problem = "its 'url' cannot be used. Correct it."
        raise BackendUnavailable(resource.name, problem, not_sent=True) from None
    headers = dict(resource.headers)
    if user is not None and "authorization" not in {name.lower() for name in headers}:
        headers["Authorization"] = "Basic " + b64encode(f"{user}:{password or ''}".encode()).decode()
    return bare, headers


class Answer(NamedTuple):
    """A whole response. Names of headers are written small."""

    status: int
    headers: Mapping[str, str]
    body: bytes


_MAX_ANSWER = 16 * 1024 * 1024


async def exchange(
    client: HttpClient, method: str, url: str, *, headers: Mapping[str, str], body: bytes | None, seconds: float
) -> Answer:
    """One request to a server that is no MCP backend, and its whole answer. Redirects are not followed: what is sent is
    for this address alone.

    Raises:
        OSError: it cannot be reached or does not answer in time, with the reason and without the address.
    """
    try:
        with anyio.fail_after(seconds):
            async with client.request(method, url, headers=headers, data=body, allow_redirects=False) as response:
                content = bytearray()
                async for chunk in response.content.iter_chunked(_LARGE_BODY):
                    content += chunk
                    if len(content) > _MAX_ANSWER:
                        raise OSError("its answer is too large")
                return Answer(
                    response.status, {name.lower(): value for name, value in response.headers.items()}, bytes(content)
                )
    except TimeoutError:
        raise OSError(f"it did not answer within {seconds:g} s") from None
    except aiohttp.ClientConnectorError as error:
        raise OSError(error.os_error.strerror or "it cannot be reached") from None
    except aiohttp.ClientError:
        raise OSError("the connection broke, or what answers does not speak HTTP") from None
