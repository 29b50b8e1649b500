"""What the tests of local processes share: raw servers as resources, wires to them, and what became of them."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from providers.resource import McpServerResource
from providers.stdio import StdioWire, stdio_wire
from providers.wire import Message
from tests.helpers.processes import SERVERS, eventually, is_running

MEBIBYTE = 2**20


def script(name: str, *args: str, **more: Any) -> McpServerResource:
    """A resource that runs one of the raw servers; -S spares them the site packages."""
    return McpServerResource(name="raw", command=sys.executable, args=("-S", str(SERVERS / name), *args), **more)


class Inbox:
    """What a wire delivered."""

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[Message](1_000_000)

    async def deliver(self, message: Message) -> None:
        await self._send.send(message)

    async def next(self) -> Message:
        with anyio.fail_after(20):
            return await self._receive.receive()

    @property
    def waiting(self) -> int:
        return self._receive.statistics().current_buffer_used

    def close(self) -> None:
        self._send.close()
        self._receive.close()


@asynccontextmanager
async def opened(resource: McpServerResource, **options: Any) -> AsyncIterator[tuple[StdioWire, Inbox]]:
    inbox = Inbox()
    options.setdefault("shutdown", 4)
    try:
        async with stdio_wire(resource, inbox.deliver, **options) as wire:
            yield wire, inbox
    finally:
        inbox.close()


def request(method: str, params: Any = None, request_id: Any = 1) -> Message:
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}


async def failure_of(wire: StdioWire) -> str:
    with anyio.fail_after(20):
        await wire.closed.wait()
    assert wire.failure is not None
    return str(wire.failure)


async def pids_of(inbox: Inbox) -> list[int]:
    message = await inbox.next()
    assert message["method"] == "pids"
    pids: list[int] = message["params"]
    assert all(is_running(pid) for pid in pids)
    return pids


async def all_gone(pids: list[int]) -> None:
    await eventually(lambda: not any(is_running(pid) for pid in pids))


def children() -> list[int]:
    """Processes that this one started, zombies included."""
    return sorted(
        int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
    )


class PeakMemory:
    """How far the resident memory of this process rose within the block, in bytes."""

    growth = 0

    def __enter__(self) -> PeakMemory:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is used now
        self._before = self._peak()
        return self

    def __exit__(self, *_: object) -> None:
        self.growth = self._peak() - self._before

    @staticmethod
    def _peak() -> int:
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024
