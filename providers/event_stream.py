"""Reads a `text/event-stream` body piece by piece, with a cap on what one event may hold.

The wires to remote servers (`remote`, `sse`) feed it what the socket gave and get whole events back. It does no I/O
and knows nothing of MCP. The rules: WHATWG HTML standard, 9.2, "Server-sent events".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from providers.errors import BackendProtocolError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAX_ID_LENGTH = 1024
"""A longer event id is not kept: it would have to be sent back in a header."""


class Event(NamedTuple):
    """One event that has data."""

    type: str
    data: bytes


class EventStream:
    """The parser of one stream. It outlives a connection, so that a stream that broke can be taken up again."""

    def __init__(self, server: str, max_event_bytes: int) -> None:
        self._server, self._max = server, max_event_bytes
        self.last_event_id: str | None = None
        """The id to resume after; None while the server gave none."""
        self.retry: float | None = None
        """Seconds that the server wants us to wait before we reconnect."""
        self.restart()

    def restart(self) -> None:
        """Begin with a new connection: an event that the last one left unfinished is dropped."""
        self._line = bytearray()
        self._after_cr = False
        self._is_first_line = True
        self._id = self.last_event_id
        self._clear_event()

    def _clear_event(self) -> None:
        self._data = bytearray()
        self._type = ""

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that this chunk completes, in order. Each byte is looked at once, however it is cut.

        Raises:
            BackendProtocolError: one event, or one line, is larger than the cap.
        """
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]  # the second half of a CRLF that was cut in two
        self._after_cr = chunk.endswith(b"\r")
        for piece in chunk.splitlines(keepends=True):
            self._hold(piece)
            if piece.endswith((b"\n", b"\r")):
                event = self._end_line()
                if event is not None:
                    yield event

    def _hold(self, piece: bytes) -> None:
        self._line += piece
        if len(self._data) + len(self._line) > self._max:
            raise BackendProtocolError(self._server, f"sent an event of more than {self._max:,} bytes.")

    def _end_line(self) -> Event | None:
        line, self._line = bytes(self._line).rstrip(b"\r\n"), bytearray()
        if self._is_first_line:
            self._is_first_line, line = False, line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            return self._end_event()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data += value + b"\n"
        else:
            self._set(name, value)
        return None

    def _set(self, name: bytes, value: bytes) -> None:
        """Any field but data. A comment is a field without a name; like every unknown one it means nothing."""
        if name == b"event":
            self._type = value.decode(errors="replace")
        elif name == b"id" and b"\0" not in value and len(value) <= _MAX_ID_LENGTH:
            self._id = value.decode(errors="replace")
        elif name == b"retry" and value.isdigit() and len(value) < 10:
            self.retry = int(value) / 1000

    def _end_event(self) -> Event | None:
        event = Event(self._type or "message", bytes(self._data[:-1]))
        self.last_event_id = self._id or None
        self._clear_event()
        return event if event.data else None
