"""A backend that is broken in one chosen way and otherwise a proper, tiny MCP server with the tool `echo`.

    python hang.py MODE                  over stdio
    python hang.py MODE --http PORT      over Streamable HTTP at /mcp; PORT 0 takes a free one

Over HTTP it prints its port as the first line of stdout. It needs nothing but the standard library, starts
quickly, and speaks the handshake era. The modes:

    proper        nothing is broken
    connect-hang  takes the connection and never says a word
    init-hang     never answers `initialize`
    list-hang     never answers `tools/list`
    call-hang     never answers `tools/call`
    flood         sends 20,000 log notifications before it answers a call
    garbage       answers a call with text that is no JSON
    bigline       answers a call with 64 MB
    endless       answers a call with a line that never ends
    wrong-id      answers a call with an id that nobody asked with
    twice         answers each call twice
    die-in-call   ends the process in the middle of a call
    progress      reports progress on a call with the text "wait" for ever; answers other calls
    late          answers a call with the text "wait" only when it is cancelled; answers other calls
    bad-text      answers a call with text that is not UTF-8, within proper JSON
    no-object     answers a call with a result that is not an object
    wrong-shape   answers a call with a result that is no tool's
    many-tools    offers 10,000 tools
    big-schema    offers a tool whose schema has 5 MB
    endless-list  offers one page of tools after the other, and never the last
    odd-list      offers, beside `echo`, tools that are none, and says that the next page is a number
    list-once     answers the first `tools/list` and no other
    stubborn      heeds neither the end of its input nor any polite signal, and has a child that is like it
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Message = dict[str, Any]
Lines = Iterator[bytes]
"""What goes over the wire, in pieces. A complete message ends with a newline; no piece means no answer."""

FLOOD = 20_000
BIG = 64 * 1024 * 1024
PIECE = b"x" * 65536

MANY = 10_000
BIG_SCHEMA = 5 * 1024 * 1024
PROGRESS_PAUSE = 0.02

STREAMED = ("flood", "twice", "progress")
"""Over HTTP one JSON body holds one message; these modes send several and so answer with an event stream."""

ECHO = {
    "name": "echo",
    "description": "Give the text back.",
    "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
}


def line(message: Message) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"


def answer(message: Message, result: Message) -> bytes:
    return line({"id": message["id"], "result": result})


def echo_answer(message: Message) -> bytes:
    text = message["params"]["arguments"]["text"]
    return answer(message, {"content": [{"type": "text", "text": text}], "isError": False})


def flood(message: Message) -> Lines:
    params = {"level": "info", "data": "noise"}
    noise = line({"method": "notifications/message", "params": params})
    for _ in range(FLOOD):
        yield noise
    yield echo_answer(message)


def garbage(message: Message) -> Lines:
    yield b"\xff\xfe this is not JSON {\n"


def big_line(message: Message) -> Lines:
    before, after = echo_answer({**message, "params": {"arguments": {"text": "HERE"}}}).split(b"HERE")
    yield before
    for _ in range(BIG // len(PIECE)):
        yield PIECE
    yield after


def endless(message: Message) -> Lines:
    while True:
        yield PIECE


def wrong_id(message: Message) -> Lines:
    yield echo_answer({**message, "id": 987_654_321})


def twice(message: Message) -> Lines:
    yield echo_answer(message)
    yield echo_answer(message)


def die_in_call(message: Message) -> Lines:
    os._exit(1)


def progress(message: Message) -> Lines:
    if message["params"]["arguments"]["text"] != "wait":
        yield echo_answer(message)
        return
    token = message["params"].get("_meta", {}).get("progressToken")
    for step in itertools.count(1):
        yield line({"method": "notifications/progress", "params": {"progressToken": token, "progress": step}})
        time.sleep(PROGRESS_PAUSE)


def unless_it_waits(message: Message) -> Lines:
    if message["params"]["arguments"]["text"] != "wait":
        yield echo_answer(message)


def bad_text(message: Message) -> Lines:
    yield echo_answer({**message, "params": {"arguments": {"text": "HERE"}}}).replace(b"HERE", b"caf\xe9")


def no_object(message: Message) -> Lines:
    yield line({"id": message["id"], "result": ["hello"]})


def wrong_shape(message: Message) -> Lines:
    yield answer(message, {"content": "hello"})


def properly(message: Message) -> Lines:
    yield echo_answer(message)


def never(message: Message) -> Lines:
    yield from ()


CALLS: dict[str, Callable[[Message], Lines]] = {
    "proper": properly,
    "connect-hang": never,
    "init-hang": properly,
    "list-hang": properly,
    "call-hang": never,
    "flood": flood,
    "garbage": garbage,
    "bigline": big_line,
    "endless": endless,
    "wrong-id": wrong_id,
    "twice": twice,
    "die-in-call": die_in_call,
    "progress": progress,
    "late": unless_it_waits,
    "bad-text": bad_text,
    "no-object": no_object,
    "wrong-shape": wrong_shape,
    "many-tools": properly,
    "big-schema": properly,
    "endless-list": properly,
    "odd-list": properly,
    "list-once": properly,
    "stubborn": properly,
}
was_asked: list[Message] = []
"""Each `tools/list` of this process."""

SILENT = {"init-hang": "initialize", "list-hang": "tools/list"}


def respond(mode: str, message: Message) -> Lines:
    """What this server says to one request."""
    method = message["method"]
    if mode == "connect-hang" or SILENT.get(mode) == method:
        return never(message)
    if method == "tools/call":
        return CALLS[mode](message)
    if method == "tools/list":
        was_asked.append(message)
        if mode == "list-once" and len(was_asked) > 1:
            return never(message)
        return iter([answer(message, tools(mode, message))])
    return iter([plain_answer(message, method)])


def tools(mode: str, message: Message) -> Message:
    if mode == "many-tools":
        return {"tools": [ECHO, *({**ECHO, "name": f"echo-{number}"} for number in range(1, MANY))]}
    if mode == "big-schema":
        schema = {"type": "object", "properties": {"text": {"description": "x" * BIG_SCHEMA}}}
        return {"tools": [ECHO, {**ECHO, "name": "big", "inputSchema": schema}]}
    if mode == "endless-list":
        page = int((message.get("params") or {}).get("cursor", 0)) + 1
        more = [{**ECHO, "name": f"echo-{page}-{number}"} for number in range(100)]
        return {"tools": [ECHO, *more] if page == 1 else more, "nextCursor": str(page)}
    if mode == "odd-list":
        odd: list[Any] = [5, {}, {**ECHO, "name": 5}, {**ECHO, "name": "odd", "inputSchema": "none"}, None]
        return {"tools": [*odd, ECHO], "nextCursor": 5}
    return {"tools": [ECHO]}


def plain_answer(message: Message, method: str) -> bytes:
    if method == "initialize":
        version = message["params"]["protocolVersion"]
        server = {"name": "hang", "version": "1"}
        result = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": server}
        return answer(message, result)
    if method == "ping":
        return answer(message, {})
    return line({"id": message["id"], "error": {"code": -32601, "message": "Method not found"}})


def note(message: Message) -> None:
    """Write down what was heard, for tests of what a backend is told; `HEARD` names the file, or nothing is written."""
    if path := os.environ.get("HEARD"):
        with Path(path).open("a") as heard:
            heard.write(f"{message.get('method')}\n")


def is_request(message: Message) -> bool:
    return "id" in message and "method" in message


def serve_stdio(mode: str) -> None:
    for text in sys.stdin.buffer:
        message = json.loads(text)
        note(message)
        if is_request(message):
            for piece in respond(mode, message):
                sys.stdout.buffer.write(piece)
                if mode == "progress":
                    sys.stdout.buffer.flush()
            sys.stdout.buffer.flush()
        elif mode == "late" and message["method"] == "notifications/cancelled":
            late = {"id": message["params"]["requestId"], "params": {"arguments": {"text": "late"}}}
            sys.stdout.buffer.write(echo_answer(late))
            sys.stdout.buffer.flush()


def be_stubborn(has_child: bool = True) -> None:
    for polite in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(polite, signal.SIG_IGN)
    if has_child:
        child = "import signal, hang; hang.be_stubborn(False); print(flush=True); signal.pause()"
        process = subprocess.Popen([sys.executable, "-c", child], cwd=Path(__file__).parent, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()


class Handler(BaseHTTPRequestHandler):
    """One connection. Each runs in a daemon thread, so that a silent one holds up nobody else."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer goes out in pieces, and each would wait for the last one's receipt
    mode: str

    def handle(self) -> None:
        if self.mode == "connect-hang":
            threading.Event().wait()
        super().handle()

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not is_request(message):
            self.send_empty(202)
            return
        pieces = respond(self.mode, message)
        first = next(pieces, None)
        if first is None:  # never answered; the thread stays until the process ends
            threading.Event().wait()
            return
        streamed = self.mode in STREAMED and message["method"] == "tools/call"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream" if streamed else "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.send_piece(first, streamed)
        for piece in pieces:
            self.send_piece(piece, streamed)
        self.wfile.write(b"0\r\n\r\n")

    def send_piece(self, piece: bytes, streamed: bool) -> None:
        if streamed:
            piece = b"event: message\ndata: " + piece + b"\n"
        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    def do_GET(self) -> None:
        self.send_empty(405)

    def do_DELETE(self) -> None:
        self.send_empty(405)

    def send_empty(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing on stderr."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up on a broken server is no news."""


def serve_http(mode: str, port: int) -> None:
    Handler.mode = mode
    with Server(("127.0.0.1", port), Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=CALLS)
    parser.add_argument("--http", type=int, metavar="PORT")
    arguments = parser.parse_args()
    if arguments.mode == "stubborn":
        be_stubborn()
    if arguments.http is None:
        serve_stdio(arguments.mode)
        while arguments.mode == "stubborn":
            signal.pause()
    else:
        serve_http(arguments.mode, arguments.http)


if __name__ == "__main__":
    main()
