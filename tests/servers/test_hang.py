"""The broken test server itself: each mode is broken in its way and in no other, over stdio and HTTP.

It is asked with the standard library alone, so that no client's idea of a broken server gets in between.
Silence is proved without waiting: a ping that was sent afterwards is answered, and nothing came before that.
"""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Protocol

import pytest

from tests.helpers.faults import descendants, signal_all
from tests.helpers.processes import SERVERS, is_running

pytestmark = pytest.mark.core

CLIENT = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
INITIALIZE = {"method": "initialize", "params": CLIENT}
LIST = {"method": "tools/list"}
CALL = {"method": "tools/call", "params": {"name": "echo", "arguments": {"text": "hello"}}}
HANGS = [("init-hang", INITIALIZE), ("list-hang", LIST), ("call-hang", CALL)]
PING = {"id": "ping", "method": "ping"}


class Ask(Protocol):
    def __call__(self, mode: str, request: dict[str, Any]) -> list[bytes]:
        """All that a server says to one request, line by line; empty when it says nothing."""


def encoded(request: dict[str, Any]) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, **request}).encode()


@contextmanager
def running(mode: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, str(SERVERS / "hang.py"), mode, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def serving(mode: str) -> Iterator[int]:
    with running(mode, "--http", "0") as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


def connected(port: int, timeout: float = 60) -> closing[http.client.HTTPConnection]:
    return closing(http.client.HTTPConnection("127.0.0.1", port, timeout=timeout))


def ask_over_stdio(mode: str, request: dict[str, Any]) -> list[bytes]:
    with running(mode) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(encoded(request) + b"\n" + encoded(PING) + b"\n")
        process.stdin.flush()
        lines = []
        while b'"id": "ping"' not in (line := process.stdout.readline()):
            if not line:
                raise ConnectionError("the server has gone")
            lines.append(line)
        return lines


def ask_over_http(mode: str, request: dict[str, Any]) -> list[bytes]:
    with serving(mode) as port, connected(port) as connection:
        connection.request("POST", "/mcp", encoded(request))
        if (mode, request) in HANGS:
            with connected(port) as other:
                other.request("POST", "/mcp", encoded(PING))
                assert b"ping" in other.getresponse().read()
            connection.sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.sock.recv(1)
            return []
        body = connection.getresponse().read()
        return [text.removeprefix(b"data: ") for text in body.splitlines() if text and b"event:" not in text]


@pytest.fixture(params=[ask_over_stdio, ask_over_http], ids=["stdio", "http"])
def ask(request: pytest.FixtureRequest) -> Ask:
    asked: Ask = request.param
    return asked


def text_of(line: bytes) -> str:
    text: str = json.loads(line)["result"]["content"][0]["text"]
    return text


@pytest.mark.parametrize("mode", ["proper", "call-hang", "flood"])
def test_what_is_not_broken_works(ask: Ask, mode: str) -> None:
    [welcome] = ask(mode, INITIALIZE)
    assert json.loads(welcome)["result"]["protocolVersion"] == "2025-11-25"
    [tools] = ask(mode, LIST)
    assert [tool["name"] for tool in json.loads(tools)["result"]["tools"]] == ["echo"]


@pytest.mark.parametrize("mode", ["proper", "init-hang", "list-hang"])
def test_it_echoes(ask: Ask, mode: str) -> None:
    [answer] = ask(mode, CALL)
    assert text_of(answer) == "hello"


@pytest.mark.parametrize(("mode", "question"), HANGS)
def test_it_hangs_in_one_place(ask: Ask, mode: str, question: dict[str, Any]) -> None:
    assert ask(mode, question) == []


def test_a_flood_comes_before_the_answer(ask: Ask) -> None:
    *noise, answer = ask("flood", CALL)
    assert len(noise) == 20_000 and b"notifications/message" in noise[-1]
    assert text_of(answer) == "hello"


def test_garbage_is_no_json(ask: Ask) -> None:
    [answer] = ask("garbage", CALL)
    with pytest.raises(ValueError):
        json.loads(answer)


def test_a_wrong_id_is_one_that_nobody_asked_with(ask: Ask) -> None:
    [answer] = ask("wrong-id", CALL)
    assert json.loads(answer)["id"] != 1


def test_twice_answers_twice(ask: Ask) -> None:
    assert [text_of(answer) for answer in ask("twice", CALL)] == ["hello", "hello"]


def test_progress_never_ends() -> None:
    call = {**CALL, "params": {"name": "echo", "arguments": {"text": "wait"}, "_meta": {"progressToken": 7}}}
    with running("progress") as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(encoded(call) + b"\n")
        process.stdin.flush()
        steps = [json.loads(process.stdout.readline())["params"] for _ in range(3)]
    assert steps == [{"progressToken": 7, "progress": step} for step in (1, 2, 3)]


def test_a_late_answer_comes_with_the_cancel() -> None:
    call = {**CALL, "params": {"name": "echo", "arguments": {"text": "wait"}}}
    cancel = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}'
    with running("late") as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(encoded(call) + b"\n" + encoded(PING) + b"\n" + cancel + b"\n")
        process.stdin.flush()
        assert b"ping" in process.stdout.readline()
        assert text_of(process.stdout.readline()) == "late"


@pytest.mark.parametrize(("mode", "result"), [("no-object", ["hello"]), ("wrong-shape", {"content": "hello"})])
def test_a_result_is_none(ask: Ask, mode: str, result: object) -> None:
    [answer] = ask(mode, CALL)
    assert json.loads(answer)["result"] == result


def test_bad_text_is_json_but_for_one_byte(ask: Ask) -> None:
    [answer] = ask("bad-text", CALL)
    with pytest.raises(UnicodeDecodeError):
        answer.decode()
    assert text_of(answer.decode("latin-1").encode()) == "caf\xe9"


def test_a_long_list_has_ten_thousand_tools(ask: Ask) -> None:
    [answer] = ask("many-tools", LIST)
    assert len({tool["name"] for tool in json.loads(answer)["result"]["tools"]}) == 10_000


def test_a_big_schema_has_five_megabytes(ask: Ask) -> None:
    [answer] = ask("big-schema", LIST)
    assert len(answer) > 5 * 1024 * 1024


def test_an_endless_list_has_always_another_page(ask: Ask) -> None:
    cursor = None
    for _ in range(3):
        [answer] = ask("endless-list", {**LIST, "params": {"cursor": cursor} if cursor else {}})
        page = json.loads(answer)["result"]
        assert page["nextCursor"] != cursor and len(page["tools"]) >= 100
        cursor = page["nextCursor"]


def test_an_odd_list_has_one_proper_tool(ask: Ask) -> None:
    [answer] = ask("odd-list", LIST)
    tools = json.loads(answer)["result"]["tools"]
    assert len(tools) == 6 and tools[-1]["name"] == "echo"


def test_it_lists_once() -> None:
    with running("list-once") as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(encoded(LIST) + b"\n" + encoded(LIST) + b"\n" + encoded(PING) + b"\n")
        process.stdin.flush()
        assert b"tools" in process.stdout.readline()
        assert b"ping" in process.stdout.readline()


def test_a_stubborn_one_stays_and_so_does_its_child() -> None:
    with running("stubborn") as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(encoded(PING) + b"\n")
        process.stdin.close()
        assert b"ping" in process.stdout.readline()  # from now on it heeds nothing
        [child] = descendants(process.pid)
        try:
            for polite in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal_all({process.pid, child}, polite)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.2)
            assert is_running(child)
        finally:
            signal_all({child}, signal.SIGKILL)


def test_a_big_line_is_well_formed_and_has_64_megabytes(ask: Ask) -> None:
    [answer] = ask("bigline", CALL)
    assert len(text_of(answer)) == 64 * 1024 * 1024


def test_an_endless_line_does_not_end() -> None:
    with running("endless") as process, serving("endless") as port, connected(port) as connection:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(encoded(CALL) + b"\n")
        process.stdin.flush()
        connection.request("POST", "/mcp", encoded(CALL))
        with connection.getresponse() as response:
            for stream in (process.stdout, response):
                assert b"\n" not in stream.read(4 * 1024 * 1024)


def test_it_dies_in_the_call(ask: Ask) -> None:
    with pytest.raises(ConnectionError):
        ask("die-in-call", CALL)


def test_a_connection_is_taken_and_never_answered() -> None:
    with serving("connect-hang") as port, connected(port, timeout=0.1) as connection:
        connection.request("POST", "/mcp", encoded(INITIALIZE))
        with pytest.raises(TimeoutError):
            connection.getresponse()
