"""A container's stdin, stdout and stderr over one connection to the Docker engine, on the event loop.

The wire to a container comes in; called is the engine's socket alone. The Docker SDK hands out a raw socket from
which it may have read already, so that first bytes are lost, and it would block a thread per container. Here is
HTTP's own upgrade instead: one request, one answer, and from then on frames, which are taken apart into two streams.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream, ByteStream
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.memory import MemoryObjectReceiveStream
from pydantic_core import from_json

from providers.engine import EngineAddress
from providers.errors import GatewayError

_STDOUT, _STDERR = 1, 2
_HEADER_BYTES = 8
_LONGEST_HEAD = 64 * 1024
_CHUNK = 64 * 1024
GONE = (anyio.EndOfStream, anyio.IncompleteRead, anyio.ClosedResourceError, anyio.BrokenResourceError, OSError)
"""All that the connection raises when one of its ends is gone."""


class AttachRefused(GatewayError):
    """Raised when the engine does not attach us; the message is its own reason."""


class Input(ByteSendStream):
    """The container's stdin. Closing it is the end of input; the output stays open."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    async def send(self, item: bytes) -> None:
        await self._stream.send(item)

    async def aclose(self) -> None:
        """Over TLS a stream has no half to close: there the container is stopped instead, by who closes it."""
        with suppress(NotImplementedError, *GONE):
            await self._stream.send_eof()


class Output(ByteReceiveStream):
    """The container's stdout or stderr."""

    def __init__(self, frames: MemoryObjectReceiveStream[bytes]) -> None:
        self.frames, self._rest = frames, b""

    async def receive(self, max_bytes: int = _CHUNK) -> bytes:
        chunk = self._rest or await self.frames.receive()
        self._rest = chunk[max_bytes:]
        return chunk[:max_bytes]

    async def aclose(self) -> None:
        self.frames.close()


class Attached:
    """An attached container. `ended` is set when its output has ended, for whatever reason."""

    def __init__(self, stream: ByteStream, buffered: BufferedByteReceiveStream) -> None:
        self.stdin = Input(stream)
        self._stdout, stdout = anyio.create_memory_object_stream[bytes](0)
        self._stderr, stderr = anyio.create_memory_object_stream[bytes](0)
        self.stdout, self.stderr = Output(stdout), Output(stderr)
        self.ended = anyio.Event()
        self._stream, self._buffered = stream, buffered

    async def run(self) -> None:
        """Take frames apart until they end. Who does not read one stream holds up the other: both come on one line."""
        try:
            with suppress(*GONE):
                while True:
                    await self._next_frame()
        finally:
            self.ended.set()
            self._stdout.close()
            self._stderr.close()

    async def aclose(self) -> None:
        for end in (self._stdout, self._stderr, self.stdout.frames, self.stderr.frames):
            end.close()
        await anyio.aclose_forcefully(self._stream)

    async def _next_frame(self) -> None:
        header = await self._buffered.receive_exactly(_HEADER_BYTES)
        left = int.from_bytes(header[4:], "big")
        target = {_STDOUT: self._stdout, _STDERR: self._stderr}.get(header[0])
        while left:
            chunk = await self._buffered.receive(min(left, _CHUNK))
            left -= len(chunk)
            if target is not None:
                with suppress(anyio.BrokenResourceError):  # nobody reads that stream any more
                    await target.send(chunk)


async def attach(
    address: EngineAddress, context: Callable[[], ssl.SSLContext | None], api_version: str, container_id: str
) -> Attached:
    """Attach to a container that is created and not started yet, so that none of its output is lost. Who attached runs
    `run`, and closes it.

    Args:
        context: gives the TLS context, where there is one.

    Raises:
        AttachRefused: the engine says no.
        OSError: the engine cannot be reached.
    """
    stream = await connect(address, context)
    try:
        buffered = BufferedByteReceiveStream(stream)
        await _upgrade(stream, buffered, f"/v{api_version}/containers/{container_id}/attach")
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise
    return Attached(stream, buffered)


async def connect(address: EngineAddress, context: Callable[[], ssl.SSLContext | None]) -> ByteStream:
    """A connection to the engine.

    Raises:
        OSError: there is none to be had.
    """
    if address.socket_path is not None:
        return await anyio.connect_unix(address.socket_path)
    host, port = address.tcp
    if address.tls is None:
        return await anyio.connect_tcp(host, port)
    return await anyio.connect_tcp(host, port, tls=True, ssl_context=context(), tls_standard_compatible=False)


async def _upgrade(stream: ByteStream, buffered: BufferedByteReceiveStream, path: str) -> None:
    request = (
        f"POST {path}?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\n"
        "Host: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"
    )
    await stream.send(request.encode())
    head = (await buffered.receive_until(b"\r\n\r\n", _LONGEST_HEAD)).decode(errors="replace")
    status = head.split(" ", 2)[1:2]
    if status not in (["101"], ["200"]):  # an old engine says 200
        raise AttachRefused(await _reason(buffered, head))


async def _reason(buffered: BufferedByteReceiveStream, head: str) -> str:
    line = head.partition("\r\n")[0]
    body = b""
    with suppress(*GONE), anyio.move_on_after(1):
        body = await buffered.receive(_CHUNK)
    with suppress(ValueError):
        said: Any = from_json(body)
        if isinstance(said, dict) and isinstance(said.get("message"), str):
            return f"the engine did not attach: {said['message']}"
    return f"the engine did not attach ({line})"
