"""Sends a request on to the replica that it belongs to: the one that has its session, or its parked call.

ASGI middleware between FastMCP's authentication and its MCP endpoint; `http` puts it there where there are several
replicas. The session ids and states that clients hold begin with the replica that gave them out, so a request of our
own is known without asking anybody. Another one goes there as it is, with the client's own token, which is verified
there again; both bodies are streamed, and a client that goes away ends both requests. What was sent on once is not sent
on again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

import anyio
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from yarl import URL

from composition.replica_auth import is_of_replica
from composition.replicas import Replicas
from providers import lines
from providers.endpoint import Endpoint, HttpResponse
from providers.errors import BackendError
from providers.resource import McpServerResource, TransportType
from providers.sharing import SENT_ON
from providers.wire import MAX_MESSAGE_BYTES

logger = logging.getLogger(__name__)

SESSION = b"mcp-session-id"
_STATE = b'"requestState"'
_PATHS = re.compile(r"/mcp|/adapters/[a-z0-9][a-z0-9-]{0,62}/mcp")
"""Where MCP is served. What is sent on becomes part of an address, and a client may begin its path with `*@HOST`, or
write `%23` in it: nothing but these leaves."""
_OF_ONE_HOP = frozenset(
    (b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"proxy-authorization")
)
_NOT_SENT_ON = _OF_ONE_HOP | {b"host", b"content-length", b"expect", b"origin"}
"""Of a request's headers. Its Origin was checked here."""
_WRITTEN_HERE = _OF_ONE_HOP | {b"date", b"server", b"ratelimit", b"ratelimit-policy"}
"""Of an answer's headers; twice they would say two things."""


class Forwarding:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, replicas: Replicas) -> None:
        self._app, self._replicas = app, replicas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _PATHS.fullmatch(scope["path"]):
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        if self._replicas.leases.is_leaving and SENT_ON in headers and scope["method"] == "POST":
            body = await _read(receive)
            if _is_request(body):
                # without a JSON-RPC error, which would be the answer to the call: it can be sent to whoever is next
                return await Response(status_code=421)(scope, receive, send)
            receive = _again(body, receive)
        session, may_send_on = headers.get("mcp-session-id"), _may_send_on(scope, headers)
        if session is not None:
            url = await self._replicas.elsewhere(session) if may_send_on else None
            if url is not None:
                body = await _read(receive)
                if not await self._send_on(url, body, scope, receive, send):
                    await _gone()(scope, receive, send)
                return None
            scope = _renamed(scope, self._replicas.unmarked(session) or session)
        elif may_send_on and scope["method"] == "POST" and lines.is_modern_version(headers.get("mcp-protocol-version")):
            body = await _read(receive)
            url = await self._of_state(body)
            if url is not None and await self._send_on(url, body, scope, receive, send):
                return None
            receive = _again(body, receive)
        return await self._app(scope, receive, self._marking(send))

    async def _of_state(self, body: bytes) -> str | None:
        """Where the call of a retry is parked."""
        if _STATE not in body:
            return None
        try:
            params = from_json(body).get("params")
            state = params.get("requestState") if isinstance(params, dict) else None
        except (ValueError, AttributeError):  # not ours to complain of
            return None
        return await self._replicas.elsewhere(state) if isinstance(state, str) else None

    def _marking(self, send: Send) -> Send:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [
                    (name, self._replicas.marked(value.decode("latin-1")).encode("latin-1"))
                    if name.lower() == SESSION
                    else (name, value)
                    for name, value in message.get("headers", ())
                ]
                message = {**message, "headers": headers}
            await send(message)

        return marked

    async def _send_on(self, url: str, body: bytes, scope: Scope, receive: Receive, send: Send) -> bool:
        """Whether the replica answered."""
        query = scope["query_string"].decode("latin-1")
        target = URL(f"{url}{scope['path']}{'?' + query if query else ''}")
        endpoint = Endpoint(_replica_at(url), self._replicas.client, MAX_MESSAGE_BYTES)
        has_begun = False
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_until_gone, receive, tasks.cancel_scope)
                async with endpoint.request(scope["method"], _headers(scope), body or None, url=target) as response:
                    has_begun = True
                    await send(_start_of(response))
                    while chunk := await endpoint.next_chunk(response):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                tasks.cancel_scope.cancel()
        except* BackendError as failed:
            logger.warning("a request was not sent on to another replica: %s", failed.exceptions[0])
        else:
            return True
        return has_begun


def _may_send_on(scope: Scope, headers: Headers) -> bool:
    """A request that came from another replica stays here; and one of nobody is refused here."""
    if SENT_ON in headers:
        return False
    if "user" not in scope:  # nobody is authenticated
        return True
    token = getattr(scope["user"], "access_token", None)
    return token is not None and not is_of_replica(token)


def _renamed(scope: Scope, session: str) -> Scope:
    others = [(name, value) for name, value in scope["headers"] if name != SESSION]
    return {**scope, "headers": [*others, (SESSION, session.encode("latin-1", "replace"))]}


async def _read(receive: Receive) -> bytes:
    """A whole body. The guard before has bounded it."""
    pieces = list[bytes]()
    while True:
        message = await receive()
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives a body that was read once more, and then what comes."""
    waiting = [body]

    async def give() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return give


async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _headers(scope: Scope) -> dict[str, str]:
    kept: Iterable[tuple[bytes, bytes]] = scope["headers"]
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in kept if name not in _NOT_SENT_ON}
    return headers | {SENT_ON: "1", "accept-encoding": "identity"}


def _start_of(response: HttpResponse) -> Message:
    headers = [(name.lower(), value) for name, value in response.raw_headers if name.lower() not in _WRITTEN_HERE]
    return {"type": "http.response.start", "status": response.status, "headers": headers}


def _is_request(body: bytes) -> bool:
    """Whether a message is one that begins something; an answer or a notification belongs to what runs already."""
    try:
        message = from_json(body)
    except ValueError:
        return True
    return not isinstance(message, dict) or {"method", "id"} <= message.keys()


def _gone() -> JSONResponse:
    """The replica does not answer: to a client that is a session that has ended (2025-11-25, basic/transports)."""
    error = {"code": -32001, "message": "Session not found"}
    return JSONResponse({"jsonrpc": "2.0", "id": None, "error": error}, status_code=404)


def _replica_at(url: str) -> McpServerResource:
    return McpServerResource(name="replica", transport_type=TransportType.STREAMABLE_HTTP, url=url)
