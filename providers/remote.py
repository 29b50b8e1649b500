"""The wire to a remote server over Streamable HTTP, in both eras: 2025-03-26 to 2025-11-25 with a handshake and mostly
a session, 2026-07-28 with neither.

The pool opens one for each session; it builds on `http_wire`. What is negotiated, numbered and validated is the
business of the MCP session above. Here is what HTTP adds: an answer comes as JSON or as events on the response to its
request, the session id, the stream of what the server sends by itself, and taking up a stream that broke.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import anyio

from providers.endpoint import EVENTS, JSON, Endpoint, HttpClient, HttpResponse, is_success
from providers.errors import BackendError, BackendLost, BackendProtocolError, BackendUnavailable
from providers.event_stream import EventStream
from providers.http_wire import Call, HttpWire, background_tasks
from providers.resource import McpServerResource
from providers.wire import MAX_MESSAGE_BYTES, Deliver, Message, OfRequest, Wire

logger = logging.getLogger(__name__)

_SESSION_ID = re.compile(r"[!-~]{1,1024}")
"""Visible ASCII (2025-11-25, basic/transports, "Session Management"); the length is a limit of ours."""
_VERSION = re.compile(r"[0-9A-Za-z.-]{1,64}")
_MAX_ERROR_BYTES = 64 * 1024
"""A refusal with a longer body is told by its status alone."""

_RESUME_TRIES = 3
"""How often in a row, without a new event, a broken answer is taken up again."""
_RESUME_PAUSE, _MIN_RESUME_PAUSE, _MAX_RESUME_PAUSE = 0.25, 0.1, 60.0
"""Seconds before each try: where the server names none, so that who calls a server that has died hears of it within a
second; and the bounds of what it names."""
_LISTEN_PAUSE, _MAX_LISTEN_PAUSE = 1.0, 30.0
"""Seconds before the server's own stream is opened again; they double until it brings an event."""


@asynccontextmanager
async def streamable_http_wire(
    resource: McpServerResource,
    deliver: Deliver,
    client: HttpClient,
    *,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    endpoint: Endpoint | None = None,
) -> AsyncIterator[Wire]:
    """A wire to the server at `resource.url`. Opening it sends nothing; leaving it ends the session there.

    Args:
        client: the gateway's one HTTP client.
        max_message_bytes: cap on one message from the server.
        endpoint: how requests are made there, if not as to any server.

    Raises:
        BackendUnavailable: the URL cannot be used.
    """
    endpoint = endpoint or Endpoint(resource, client, max_message_bytes)
    async with background_tasks() as tasks:
        wire = _StreamableHttpWire(endpoint, deliver, tasks, resource.timeouts)
        try:
            yield wire
        finally:
            wire.closed.set()
            tasks.cancel_scope.cancel()
            with anyio.move_on_after(min(2.0, resource.timeouts.shutdown), shield=True):
                await wire.end_session()


class _StreamableHttpWire(HttpWire):
    _session_id: str | None = None
    _version: str | None = None
    """What the handshake agreed on, for messages to which the session above adds no version."""
    _is_listening = False
    _had_stream = False
    """The server has opened its own stream for us: that it knows nothing of it later is no mere lack of one."""
    _listen_pause: float

    def _headers_for(self, message: Message, given: Mapping[str, str]) -> dict[str, str]:
        if message.get("method") == "initialize":
            self._session_id = self._version = None
        ours = ("mcp-session-id", "last-event-id")
        mcp = {name.lower(): value for name, value in given.items() if name.lower() not in ours}
        return self._with_session({**mcp, "accept": f"{JSON}, {EVENTS}", "content-type": JSON})

    def _with_session(self, mcp: Mapping[str, str]) -> dict[str, str]:
        session = {"mcp-protocol-version": self._version, "mcp-session-id": self._session_id}
        known = {name: value for name, value in session.items() if value is not None}
        return self._endpoint.headers({**known, **mcp}, self.identity)

    def _is_session_lost(self, status: int, sent: Mapping[str, str]) -> bool:
        return status == 404 and "mcp-session-id" in sent

    # ---------------------------------------------------------------------------------------- a request and its answer

    async def _exchange(self, call: Call, body: bytes) -> None:
        stream = self._endpoint.event_stream()
        async with self._endpoint.request("POST", call.headers, body) as response:
            if not is_success(response):
                return await self._refused(call, response)
            if call.method == "initialize":
                self._keep_session_id(response.headers.get("mcp-session-id"))
            media_type = self._endpoint.media_type(response)
            if media_type == JSON:
                return await self._conclude(call, self._endpoint.parse(await self._endpoint.read(response)))
            if media_type != EVENTS:
                problem = "answered with neither JSON nor events. Check that 'url' is its MCP endpoint."
                raise BackendProtocolError(self.server, problem)
            if await self._follow(call, response, stream):
                return None
        await self._resume(call, stream)
        return None

    async def _refused(self, call: Call, response: HttpResponse) -> None:
        """A status other than 2xx. A JSON-RPC error that comes with it is the answer; else the status tells all."""
        error = None
        if 400 <= response.status < 500 and not self._is_session_lost(response.status, call.headers):
            error = await self._error_in(response)
        if error is not None and "mcp-session-id" in call.headers and _is_unknown_session(response, error):
            raise self._lose_session()
        if error is None or not _is_answer(error, call):
            raise self._refusal(response.status, call.headers)
        await self._conclude(call, error)

    async def _error_in(self, response: HttpResponse) -> Message | None:
        try:
            if self._endpoint.media_type(response) != JSON:
                return None
            message = self._endpoint.parse(await self._endpoint.read(response, _MAX_ERROR_BYTES))
        except BackendProtocolError:
            return None
        return message if isinstance(message.get("error"), dict) else None

    async def _conclude(self, call: Call, answer: Message) -> None:
        if not _is_answer(answer, call):
            raise BackendProtocolError(self.server, "answered with something that is not the answer.")
        if call.method == "initialize":
            self._keep_version(answer.get("result"))
        await self._answer(call, {**answer, "id": call.id})

    def _keep_session_id(self, session_id: str | None) -> None:
        if session_id is not None and not _SESSION_ID.fullmatch(session_id):
            raise BackendProtocolError(self.server, "gave a session id that MCP does not allow.")
        self._session_id = session_id

    def _keep_version(self, result: object) -> None:
        version = result.get("protocolVersion") if isinstance(result, dict) else None
        if isinstance(version, str) and _VERSION.fullmatch(version):
            self._version = version

    async def _follow(self, call: Call, response: HttpResponse, stream: EventStream) -> bool:
        """Hand up what a stream of events brings: True once that was the answer, False if it ended before."""
        while chunk := await self._endpoint.next_chunk(response):
            for event in stream.feed(chunk):
                message = self._endpoint.parse(event.data)
                if "method" not in message:
                    await self._conclude(call, message)
                    return True
                await self._hand_up(OfRequest(message, call.id))
        return False

    async def _resume(self, call: Call, stream: EventStream) -> None:
        """Take up an answer whose stream ended too early: a GET that names the last event that came."""
        tries = 0
        while stream.last_event_id is not None and tries < _RESUME_TRIES:
            seen = stream.last_event_id
            pause = _RESUME_PAUSE if stream.retry is None else max(stream.retry, _MIN_RESUME_PAUSE)
            await anyio.sleep(min(pause, _MAX_RESUME_PAUSE))
            try:
                if await self._follow_again(call, stream):
                    return
            except BackendUnavailable as error:
                logger.debug("server '%s': an answer was not taken up: %s", self.server, error.problem)
            tries = tries + 1 if stream.last_event_id == seen else 0
        raise BackendLost(self.server, "the connection ended before the answer came.")

    async def _follow_again(self, call: Call, stream: EventStream) -> bool:
        headers = {**call.headers, "accept": EVENTS, "last-event-id": stream.last_event_id or ""}
        del headers["content-type"]
        async with self._endpoint.request("GET", headers) as response:
            if not is_success(response) or self._endpoint.media_type(response) != EVENTS:
                if response.status < 500:
                    stream.last_event_id = None  # it cannot be taken up, now or later
                raise self._refusal(response.status, headers)
            stream.restart()
            return await self._follow(call, response, stream)

    # ----------------------------------------------------------------------------------------- the server's own stream

    def _initialized(self) -> None:
        if not self._is_listening:
            self._is_listening, self._listen_pause = True, _LISTEN_PAUSE
            self._spawn(self._listen)

    async def _listen(self) -> None:
        """Hand up what the server sends by itself for as long as the wire is open. No call depends on this stream, so
        losing it never ends the wire."""
        stream = self._endpoint.event_stream()
        while True:
            try:
                if not await self._listen_once(stream):
                    return
            except BackendError as error:
                logger.debug("server '%s': its own stream broke: %s", self.server, error.problem)
            await anyio.sleep(min(max(self._listen_pause, stream.retry or 0), _MAX_LISTEN_PAUSE))
            self._listen_pause *= 2

    async def _listen_once(self, stream: EventStream) -> bool:
        """The stream until it ends. False where the server has none."""
        headers = self._with_session({"accept": EVENTS})
        if stream.last_event_id is not None:
            headers["last-event-id"] = stream.last_event_id
        async with self._endpoint.request("GET", headers) as response:
            if not is_success(response) or self._endpoint.media_type(response) != EVENTS:
                if self._had_stream and self._is_session_lost(response.status, headers):
                    self._lose_session()  # found out now, and not by the next call: somebody may be subscribed
                return response.status >= 500
            stream.restart()
            self._had_stream = True
            while chunk := await self._endpoint.next_chunk(response):
                for event in stream.feed(chunk):
                    await self._take_unasked(event.data)
        return True

    async def _take_unasked(self, data: bytes) -> None:
        self._listen_pause = _LISTEN_PAUSE
        message = self._endpoint.parse(data)
        if "method" in message:  # answers come on the stream of their request and nowhere else
            await self._hand_up(message)

    async def end_session(self) -> None:
        """Tell the server that the session is over; that it could not be told is of no consequence."""
        if self._session_id is None or self._lost_session is not None:
            return
        try:
            async with self._endpoint.request("DELETE", self._with_session({})):
                pass
        except BackendError as error:
            logger.debug("server '%s': its session was not ended: %s", self.server, error.problem)


def _is_answer(message: Message, call: Call) -> bool:
    """Whether a message answers a call. An error may lack the id, if the server gave up before it had read it: on the
    response to our request it can mean no other."""
    if "method" in message:
        return False
    if isinstance(message.get("error"), dict):
        return message.get("id") in (call.id, None)
    return "result" in message and message.get("id") == call.id


def _is_unknown_session(response: HttpResponse, error: Message) -> bool:
    """Servers modelled on the examples of the TypeScript SDK say it so, where MCP wants a 404."""
    code, text = error["error"].get("code"), str(error["error"].get("message")).lower()
    return response.status == 400 and code == -32000 and ("session" in text or "not initialized" in text)
