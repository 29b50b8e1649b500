"""Access that is taken away ends within a second, wherever it was in use: sessions, streams, subscriptions, calls.

Whether somebody deletes the server, switches it off or gives it to others; through the API, by another process on the
same file of the store, or in servers.toml. What tokens do is in `tests/integration/test_open_requests.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from providers.lines import MODERN
from providers.resource import McpServerResource
from tests.helpers.gateway import ROOT, in_process, servers_toml
from tests.helpers.processes import SERVERS, eventually
from tests.helpers.rpc import HANDSHAKE, NEWEST
from tests.security.house import CARL, VERSIONS, Answer, House, Person, house

pytestmark = pytest.mark.core

A_SECOND = 3.0
"""With time for a busy machine."""
SLOW = {"arguments": {"seconds": 60.0}}
LISTEN = {"notifications": {"toolsListChanged": True, "resourceSubscriptions": ["data://mine/greeting"]}}
LISTEN_ALONE = {"notifications": {"toolsListChanged": True, "resourceSubscriptions": ["data://greeting"]}}
MINE = in_process("everything.py", required_roles=["guest"])


@pytest.fixture(scope="module")
def backend() -> Iterator[str]:
    """The address of a server for all tests here, as a process of its own."""
    command = [sys.executable, str(SERVERS / "everything.py"), "http", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/mcp"
        process.terminate()


def remote_server(url: str) -> McpServerResource:
    """One that the API can change, unlike one of a Python file."""
    return McpServerResource(name="mine", url=url, created_by=CARL, required_roles=("guest",))


async def _by_api(made: House, method: str, body: Any = None) -> None:
    headers = {"Authorization": f"Bearer {made.tokens['creator']}"}
    async with made.http.request(method, f"{made.base}/adapters/mine", json=body, headers=headers) as answer:
        assert answer.status < 300, await answer.text()


async def deleted(made: House) -> None:
    await _by_api(made, "DELETE")


async def switched_off(made: House) -> None:
    await _by_api(made, "PATCH", {"isEnabled": False})


async def for_others(made: House) -> None:
    await _by_api(made, "PATCH", {"requiredRoles": ["boss"]})


async def switched_off_by_another_process(made: House) -> None:
    """The command line, on the same file."""
    command = [sys.executable, str(ROOT / "server.py"), "disable", "mine"]
    env = {**os.environ, "APOLLOS_SERVERS": str(made.served.path)}
    await anyio.to_thread.run_sync(lambda: subprocess.run(command, env=env, check=True, capture_output=True))


async def taken_out_of_the_file(made: House) -> None:
    _write(made, {})


async def for_others_in_the_file(made: House) -> None:
    _write(made, {"mine": {**MINE, "required_roles": ["boss"]}})


def _write(made: House, servers: dict[str, Any]) -> None:
    text = made.served.path.read_text()
    head = text.partition("[servers.")[0]
    new = servers_toml(servers).partition("[servers.")
    made.served.path.write_text(head + new[1] + new[2])


OF_THE_FILE = (taken_out_of_the_file, for_others_in_the_file)
WAYS = (deleted, switched_off, for_others, switched_off_by_another_process, *OF_THE_FILE)


class Opened:
    """All that bob has open: calls that wait, and streams. `heard` is by address and era."""

    def __init__(self, made: House, tasks: anyio.abc.TaskGroup) -> None:
        self._made, self._tasks = made, tasks
        self.people: dict[tuple[str | None, str], Person] = {}
        self.calls: dict[tuple[str | None, str], Answer] = {}
        self.heard: dict[tuple[str | None, str], list[str]] = {}
        self.ended: set[tuple[str | None, str]] = set()

    async def open(self) -> None:
        for place in (None, "mine"):
            for version in VERSIONS:
                person = self.people[place, version] = self._made.person("reader", place, version)
                if version == HANDSHAKE:
                    await person.shake_hands()
                own = "" if place else "mine_"
                if version == HANDSHAKE and MODERN:
                    uri = "data://greeting" if place else "data://mine/greeting"
                    assert '"result"' in (await person.ask("resources/subscribe", {"uri": uri})).text
                self.heard[place, version] = []
                self._tasks.start_soon(self._listen, place, version)
                self._tasks.start_soon(self._call, place, version, {"name": f"{own}slow", **SLOW})
        gateway = self._made.served.gateway
        await eventually(lambda: gateway.root.calls == len(self.people), within=20)
        await eventually(lambda: all(self.heard[key] for key in self.people if key[1] == NEWEST))

    async def _call(self, place: str | None, version: str, params: Any) -> None:
        self.calls[place, version] = await self.people[place, version].ask("tools/call", params)

    async def _listen(self, place: str | None, version: str) -> None:
        params = LISTEN_ALONE if place else LISTEN
        async with self.people[place, version].stream("subscriptions/listen", params) as stream:
            async for line in stream.content:
                if line.startswith(b"data: {"):
                    self.heard[place, version].append(json.loads(line[5:]).get("method", "the end"))
        self.ended.add((place, version))


@asynccontextmanager
async def opened(made: House) -> AsyncIterator[Opened]:
    async with anyio.create_task_group() as tasks:
        everything = Opened(made, tasks)
        await everything.open()
        yield everything
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_all_ends(way: Callable[[House], Awaitable[None]], backend: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        store = f"sqlite://{tmp_path / 'servers.db'}"
        made = await stack.enter_async_context(house(store=store))
        if way in OF_THE_FILE:
            _write(made, {"mine": MINE})
        else:
            await made.put(remote_server(backend))
        await eventually(lambda: "mine" in made.served.gateway.registry.mounts)
        bobs = await stack.enter_async_context(opened(made))
        await way(made)
        await eventually(lambda: len(bobs.calls) == len(bobs.people), within=A_SECOND)
        await _nothing_is_left(made, bobs)


async def _nothing_is_left(made: House, bobs: Opened) -> None:
    for (place, version), person in bobs.people.items():
        call = bobs.calls[place, version]
        assert "Unknown tool" in call.text or (call.status in (200, 404) and "result" not in call.text), call
        came = await person.ask("tools/list")
        assert came.status == 404 if place else "mine" not in came.text
    told = [key for key in bobs.people if key[0] is None]
    await eventually(lambda: all("notifications/tools/list_changed" in bobs.heard[key] for key in told))
    alone = {key for key in bobs.people if key[0] is not None}
    await eventually(lambda: alone <= bobs.ended, within=A_SECOND)  # there is nothing left to be told there
    gateway = made.served.gateway
    await eventually(lambda: gateway.root.calls == 0 and gateway.pool.statistics().leases == 0, within=A_SECOND)
