"""What the tests of faults share: backends that are broken in one way, and a bystander who must not notice.

The broken ones are modes of `tests/servers/hang.py`, over stdio and over HTTP. `undisturbed` is the promise that
every fault is held against: another user's calls on another server go on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web
from fastmcp import Client

from tests.helpers.gateway import ServedGateway, client, local, remote, servers_toml
from tests.helpers.http_backend import SESSION, VERSION, Seen, answer
from tests.helpers.processes import eventually, http_server, is_running

STDIO, HTTP = "stdio", "http"
TRANSPORTS = (STDIO, HTTP)

QUICK = {
    "connect": 1.0,
    "initialize": 1.0,
    "first_start": 2.0,
    "list": 0.3,
    "call": 0.5,
    "call_max": 1.0,
    "shutdown": 1.0,
}
"""Deadlines in seconds of a server that is broken: short, so that the tests are."""
PATIENT = {**QUICK, "initialize": 10.0, "first_start": 10.0, "call": 10.0, "call_max": 20.0}
"""Those of one that is started again and again, and whose calls come through, also on a busy machine."""

OTHERS_SLOWEST = 1.0
"""Seconds that another server's call may take meanwhile: not a measure of speed, but of being held up."""
_OTHERS_PAUSE = 0.03

BYSTANDER = local("hang.py", "proper", timeouts={"list": 10.0})
HELLO, WAIT = {"text": "hello"}, {"text": "wait"}


def both(broken: dict[str, Any], **gateway: Any) -> str:
    """A servers.toml with a server `broken` and, for `undisturbed`, a server `other`."""
    return servers_toml({"broken": broken, "other": BYSTANDER}, **gateway)


@asynccontextmanager
async def broken(mode: str, transport: str, **more: Any) -> AsyncIterator[dict[str, Any]]:
    """The table of a server that is broken in that way; over HTTP it runs while the block does."""
    table = {"timeouts": QUICK, **more}
    if transport == STDIO:
        yield local("hang.py", mode, **table)
    else:
        async with http_server("hang.py", mode, "--http") as server:
            yield remote(server.url, **table)


@asynccontextmanager
async def undisturbed(url: str, era: str, slowest: float = OTHERS_SLOWEST) -> AsyncIterator[None]:
    """While the block runs, another client calls another server, about twenty times a second.

    Args:
        slowest: seconds that one of its calls may take.

    Raises:
        AssertionError: one of its calls failed, got the wrong answer, or was held up.
    """
    async with client(url, era) as other:
        await _ask_other(other, "first")
        times: list[float] = []
        stop = asyncio.Event()
        calling = asyncio.create_task(_keep_asking(other, stop, times), name="bystander")
        try:
            yield
        finally:
            stop.set()
            await calling
    assert times and max(times) < slowest, f"a call of another server took {max(times):.2f} s"


async def _keep_asking(other: Client[Any], stop: asyncio.Event, times: list[float]) -> None:
    while not stop.is_set():
        began = time.monotonic()
        await _ask_other(other, f"call {len(times)}")
        times.append(time.monotonic() - began)
        with anyio.move_on_after(_OTHERS_PAUSE):
            await stop.wait()


async def _ask_other(other: Client[Any], text: str) -> None:
    result = await other.call_tool("other_echo", {"text": text})
    assert text_of(result) == text


@contextmanager
def fails(*words: str, within: float) -> Iterator[None]:
    """The block ends with an error for a person: it holds these words, and it comes within so many seconds."""
    began = time.monotonic()
    with pytest.raises(Exception) as caught:
        yield
    took = time.monotonic() - began
    assert took < within, f"it took {took:.2f} s until: {caught.value}"
    for word in words:
        assert word in str(caught.value)


def text_of(result: Any) -> str:
    """The text that a tool answered with."""
    text: str = result.content[0].text
    return text


def descendants(pid: int) -> set[int]:
    """The living processes that a process started, and theirs."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if state not in ("Z", "X"):
            children.setdefault(int(parent), []).append(int(folder.name))
    found: set[int] = set()
    todo = [pid]
    while todo:
        todo += (new := children.get(todo.pop(), []))
        found.update(new)
    return found


def backend_pids(mode: str) -> set[int]:
    """The processes below this one that are `hang.py` in that mode. There may be one for each client session: some
    clients list all tools before they call one."""
    words = {pid: _command_line(pid) for pid in descendants(os.getpid())}
    return {pid for pid, line in words.items() if mode in line and any(word.endswith("hang.py") for word in line)}


def signal_all(pids: set[int], how: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, how)


def all_gone(pids: set[int]) -> bool:
    return not any(is_running(pid) for pid in pids)


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


async def until_at_rest(gateway: ServedGateway) -> None:
    """Wait until no slot of its pool is in use and nobody waits for one."""
    pool = gateway.gateway.pool
    await eventually(lambda: pool.statistics().leases == 0 and pool.statistics().waiting == 0)


# -------------------------------------------------- answers for `tests.helpers.http_backend`, to offer the tool echo


async def offers_tools(seen: Seen) -> web.StreamResponse:
    facts = {"protocolVersion": VERSION, "capabilities": {"tools": {}}, "serverInfo": {"name": "t", "version": "1"}}
    return web.json_response(answer(seen, facts), headers={"Mcp-Session-Id": SESSION})


async def lists_echo(seen: Seen) -> web.StreamResponse:
    return web.json_response(answer(seen, {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]}))


async def echoes(seen: Seen) -> web.StreamResponse:
    text = seen.message["params"]["arguments"]["text"]
    return web.json_response(answer(seen, {"content": [{"type": "text", "text": text}]}))
