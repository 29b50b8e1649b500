"""The parser of event streams: the same events however the bytes are cut, and never more held than the
cap."""

from __future__ import annotations

import tracemalloc

import pytest

from providers.errors import BackendProtocolError
from providers.event_stream import Event, EventStream

pytestmark = pytest.mark.core

STREAM = (
    b"\xef\xbb\xbf: a comment\r\n"
    b"id: 1\r\nevent: endpoint\r\ndata: /messages\r\n\r\n"
    b"data:first\ndata: second\ndata:  third\n\n"
    b"id: 2\ndata\n\n"
    b'retry: 250\rdata: {"a": 1}\r\r'
    b"event: other\n: nothing\nunknown: field\n\n"
    b"data: \xc3\xa9\n\n"
    b"data: unfinished\n"
)
EVENTS = [
    Event("endpoint", b"/messages"),
    Event("message", b"first\nsecond\n third"),
    Event("message", b'{"a": 1}'),
    Event("message", "é".encode()),
]


def parser(cap: int = 1000) -> EventStream:
    return EventStream("docs", cap)


def test_events_are_read_as_the_standard_says() -> None:
    stream = parser()
    assert list(stream.feed(STREAM)) == EVENTS
    assert (stream.last_event_id, stream.retry) == ("2", 0.25)


@pytest.mark.parametrize("size", range(1, 12))
def test_it_does_not_matter_how_the_bytes_are_cut(size: int) -> None:
    stream = parser()
    pieces = (STREAM[start : start + size] for start in range(0, len(STREAM), size))
    assert [event for piece in pieces for event in stream.feed(piece)] == EVENTS
    assert stream.last_event_id == "2"


def test_the_last_id_is_that_of_the_last_whole_event() -> None:
    stream = parser()
    events = stream.feed(b"id: 1\ndata: a\n\nid: 2\ndata: b\n\nid: 3\ndata: c\n")
    next(events)
    assert stream.last_event_id == "1"
    assert [event.data for event in events] == [b"b"]
    assert stream.last_event_id == "2"


def test_an_event_without_data_only_moves_the_id() -> None:
    stream = parser()
    assert list(stream.feed(b"id: 7\ndata:\n\n")) == []
    assert stream.last_event_id == "7"


def test_a_new_connection_drops_the_unfinished_event_and_keeps_the_id() -> None:
    stream = parser()
    assert list(stream.feed(b"id: 1\ndata: a\n\nid: 2\ndata: lost")) == [Event("message", b"a")]
    stream.restart()
    assert list(stream.feed(b"data: b\n\n")) == [Event("message", b"b")]
    assert stream.last_event_id == "1"


@pytest.mark.parametrize("line", [b"id: a\0b", b"id: " + b"x" * 1025, b"retry: soon", b"retry: " + b"9" * 50])
def test_ids_and_pauses_that_cannot_be_used_are_ignored(line: bytes) -> None:
    stream = parser(5000)
    assert list(stream.feed(line + b"\ndata: a\n\n")) == [Event("message", b"a")]
    assert stream.last_event_id is None
    assert stream.retry is None


@pytest.mark.parametrize("endless", [b"data: xxxxxxxxx\n", b"x", b": comment without end "])
def test_an_event_or_line_beyond_the_cap_is_refused(endless: bytes) -> None:
    stream = parser(1000)
    with pytest.raises(BackendProtocolError, match="server 'docs': sent an event of more than 1,000 bytes"):
        for _ in range(1001):
            list(stream.feed(endless))


def test_the_cap_is_for_one_event_not_for_the_stream() -> None:
    stream = parser(1000)
    for _ in range(100):
        assert len(list(stream.feed(b"data: " + b"x" * 900 + b"\n\n"))) == 1
        assert list(stream.feed(b": still here\n" * 100)) == []  # comments hold nothing


def test_a_large_event_in_small_pieces_is_held_once() -> None:
    size = 4 * 1024 * 1024
    stream = parser(size + 100)
    tracemalloc.start()
    try:
        list(stream.feed(b"data: "))
        for _ in range(size // 4096):
            list(stream.feed(b"x" * 4096))
        (event,) = stream.feed(b"\n\n")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(event.data) == size
    assert peak < 5 * size
