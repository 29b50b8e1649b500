"""The wire to a remote server over HTTP+SSE, the transport of 2024-11-05: one stream of events brings everything that
the server sends, and names the address to which messages are POSTed.

The pool opens one for each session; it builds on `http_wire`. When the stream ends, so does the session.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskStatus
from yarl import URL

from providers.endpoint import EVENTS, JSON, Endpoint, HttpClient, is_success
from providers.errors import BackendError, BackendProtocolError, BackendTimeout, BackendUnavailable
from providers.event_stream import Event
from providers.http_wire import Call, HttpWire, background_tasks
from providers.resource import McpServerResource
from providers.wire import MAX_MESSAGE_BYTES, Deliver, Message, Wire

logger = logging.getLogger(__name__)


@asynccontextmanager
async def sse_wire(
    resource: McpServerResource,
    deliver: Deliver,
    client: HttpClient,
    *,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
) -> AsyncIterator[Wire]:
    """A wire to the server whose stream of events is at `resource.url`.

    Args:
        client: the gateway's one HTTP client.
        max_message_bytes: cap on one message from the server.

    Raises:
        BackendUnavailable: there is no such stream, or it ended at once.
        BackendTimeout: it named no address for messages within the connect timeout.
        BackendProtocolError: it is not a stream of events, or the address is at another server.
    """
    endpoint = Endpoint(resource, client, max_message_bytes)
    async with background_tasks() as tasks:
        wire = _SseWire(endpoint, deliver, tasks, resource.timeouts)
        try:
            await wire.open()
            yield wire
        finally:
            wire.closed.set()


class _SseWire(HttpWire):
    _address: URL | None = None
    """Where messages go; None until the stream has named it."""

    def _post_url(self) -> URL:
        assert self._address is not None, "the wire is not open"
        return self._address

    def _headers_for(self, message: Message, given: Mapping[str, str]) -> dict[str, str]:
        mcp = {**given, "accept": f"{JSON}, {EVENTS}", "content-type": JSON}
        return self._endpoint.headers(mcp, self.identity)

    def _is_session_lost(self, status: int, sent: Mapping[str, str]) -> bool:
        return status == 404 and self._address is not None

    async def open(self) -> None:
        seconds = self._timeouts.connect
        try:
            with anyio.fail_after(seconds):
                await self._tasks.start(self._read_stream)
        except TimeoutError:
            problem = f"its stream named no address for messages within {seconds:g} seconds. Check its 'url'."
            raise BackendTimeout(self.server, problem, not_sent=True) from None

    async def _read_stream(self, *, task_status: TaskStatus[None]) -> None:
        """The stream, until it ends the session. Until the address is known, errors are for whoever opens."""
        try:
            await self._follow(task_status)
            raise BackendUnavailable(self.server, "ended its stream of events, and with it the session.")
        except BackendError as error:
            if self._address is None:
                raise
            self.fail(error)

    async def _follow(self, task_status: TaskStatus[None]) -> None:
        stream = self._endpoint.event_stream()
        headers = self._endpoint.headers({"accept": EVENTS}, self.identity)
        async with self._endpoint.request("GET", headers) as response:
            if not is_success(response):
                raise self._refusal(response.status, headers)
            if self._endpoint.media_type(response) != EVENTS:
                problem = "answered with no events. Check its 'url' and 'transport_type'."
                raise BackendProtocolError(self.server, problem)
            while chunk := await self._endpoint.next_chunk(response):
                for event in stream.feed(chunk):
                    await self._take(event, task_status)

    async def _take(self, event: Event, task_status: TaskStatus[None]) -> None:
        if event.type == "endpoint" and self._address is None:
            self._address = self._same_server(event.data)
            task_status.started()
        elif event.type == "message":
            await self._take_message(event.data)

    def _same_server(self, data: bytes) -> URL:
        """The address for messages. It must be at the server that we were told of: messages carry credentials."""
        try:
            address = self._endpoint.url.join(URL(data.decode())).with_user(None)
            if address.origin() == self._endpoint.url.origin():
                return address
        except ValueError:
            pass
        raise BackendProtocolError(self.server, "named an address for messages that is not at its own 'url'.")

    async def _take_message(self, data: bytes) -> None:
        try:
            message = self._endpoint.parse(data)
        except BackendProtocolError as error:
            logger.debug("server '%s': an event was dropped: %s", self.server, error.problem)
            return
        request_id = message.get("id")
        if "method" in message:
            await self._hand_up(message)
        elif isinstance(request_id, int | str) and request_id in self._calls:
            await self._answer(self._calls[request_id], message)

    async def _exchange(self, call: Call, body: bytes) -> None:
        async with self._endpoint.request("POST", call.headers, body, url=self._post_url()) as response:
            if not is_success(response):
                raise self._refusal(response.status, call.headers)
