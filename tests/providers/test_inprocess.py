"""A FastMCP server in this process: loaded once, run within its lifespan, its faults its own."""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup

from providers.client import open_session
from providers.errors import BackendError, BackendUnavailable
from providers.identity import IDENTITY_META_KEY
from providers.inprocess import PythonServer, inprocess_wire
from providers.resource import McpServerResource
from providers.session import BackendSession
from tests.helpers.fakes import ALICE, BOB, settled

pytestmark = pytest.mark.core

SERVER = """
import anyio
from contextlib import asynccontextmanager
from fastmcp import Context, FastMCP

EVENTS = []

@asynccontextmanager
async def lifespan(server):
    EVENTS.append("started")
    yield {"opened": True}
    EVENTS.append("ended")

mcp = FastMCP("notes", lifespan=lifespan)
not_a_server = 5

@mcp.tool
def events() -> list[str]:
    return EVENTS

@mcp.tool
async def who(context: Context) -> str:
    meta = context.request_context.meta
    meta = meta if isinstance(meta, dict) else meta.model_dump(by_alias=True)
    return meta["dev.apollos/identity"]["userId"]

@mcp.tool
async def session(context: Context) -> str:
    return context.session_id

@mcp.tool
async def hang() -> str:
    try:
        await anyio.sleep_forever()
    finally:
        EVENTS.append("cancelled")

@mcp.tool
def fail() -> str:
    raise RuntimeError("in the tool")
"""


class Programs:
    """Servers made of files in a folder, and the tasks that they live in."""

    def __init__(self, folder: Path, tasks: TaskGroup) -> None:
        self._folder, self._tasks, self._made = folder, tasks, 0

    def program(self, code: str = SERVER, attribute: str = "mcp") -> tuple[McpServerResource, PythonServer]:
        self._made += 1
        file = self._folder / f"server_{self._made}.py"
        file.write_text(code)
        resource = McpServerResource(name=f"notes-{self._made}", python=f"{file}:{attribute}")
        return resource, PythonServer(resource, self._tasks.start_soon)

    @asynccontextmanager
    async def session(
        self, program: tuple[McpServerResource, PythonServer], identity: Any = ALICE
    ) -> AsyncIterator[BackendSession]:
        resource, server = program
        wire = partial(inprocess_wire, resource, server.running)
        async with open_session(resource, wire, identity=identity, deadline=20) as session:
            yield session


@asynccontextmanager
async def programs_in(folder: Path) -> AsyncIterator[Programs]:
    async with anyio.create_task_group() as tasks:
        yield Programs(folder, tasks)
        await settled()
        tasks.cancel_scope.cancel()


async def said(session: BackendSession, tool: str) -> Any:
    result = await session.request("tools/call", {"name": tool, "arguments": {}}, None)
    assert not result.get("isError"), result
    return result["structuredContent"]["result"]


# ---------------------------------------------------------------------------------------- sessions


async def test_its_tools_can_be_listed_and_called(tmp_path: Path) -> None:
    async with programs_in(tmp_path) as programs, programs.session(programs.program()) as session:
        tools = (await session.request("tools/list", {}, None))["tools"]
        assert [each["name"] for each in tools] == ["events", "who", "session", "hang", "fail"]
        assert session.facts["serverInfo"]["name"] == "notes"
        assert await said(session, "events") == ["started"]


async def test_it_is_loaded_once_and_each_session_is_its_own(tmp_path: Path) -> None:
    async with programs_in(tmp_path) as programs:
        program = programs.program()
        async with programs.session(program) as one, programs.session(program, BOB) as other:
            assert await said(one, "events") == await said(other, "events") == ["started"]
            assert await said(one, "session") != await said(other, "session")
            assert (await said(one, "who"), await said(other, "who")) == ("alice", "bob")


async def test_its_lifespan_lasts_from_the_first_session_to_the_last(tmp_path: Path) -> None:
    async with programs_in(tmp_path) as programs:
        program = programs.program()
        async with programs.session(program) as first:
            async with programs.session(program) as second:
                await said(first, "events")
            assert await said(first, "events") == ["started"]
            del second
        async with programs.session(program) as again:
            assert await said(again, "events") == ["started", "ended", "started"]


async def test_the_first_session_may_end_before_the_others(tmp_path: Path) -> None:
    async with programs_in(tmp_path) as programs:
        program = programs.program()
        first = programs.session(program)
        await first.__aenter__()
        async with programs.session(program) as second:
            await first.__aexit__(None, None, None)
            assert await said(second, "events") == ["started"]


async def test_a_call_that_is_given_up_is_cancelled_in_the_server_when_its_session_ends(tmp_path: Path) -> None:
    async with programs_in(tmp_path) as programs:
        program = programs.program()
        async with programs.session(program) as other:
            async with programs.session(program) as session, anyio.create_task_group() as tasks:
                tasks.start_soon(hangs, session)
                await settled()
                tasks.cancel_scope.cancel()
            with anyio.fail_after(10):
                while "cancelled" not in await said(other, "events"):
                    await anyio.lowlevel.checkpoint()


async def hangs(session: BackendSession) -> None:
    await session.request("tools/call", {"name": "hang", "arguments": {}}, None)


async def test_a_fault_in_a_tool_is_its_answer_and_the_session_goes_on(tmp_path: Path) -> None:
    async with programs_in(tmp_path) as programs, programs.session(programs.program()) as session:
        result = await session.request("tools/call", {"name": "fail", "arguments": {}}, None)
        assert result["isError"] and await said(session, "events") == ["started"]


async def test_the_server_sees_nothing_of_the_request_that_opened_it(tmp_path: Path) -> None:
    forged = {"name": "who", "arguments": {}, "_meta": {IDENTITY_META_KEY: {"userId": "root"}}}
    async with programs_in(tmp_path) as programs, programs.session(programs.program()) as session:
        result = await session.request("tools/call", forged, None)
        assert result["structuredContent"]["result"] == "alice"


# ----------------------------------------------------------------------------------------- loading


async def test_it_is_imported_in_a_thread_and_only_when_somebody_comes(tmp_path: Path) -> None:
    note = tmp_path / "thread"
    code = f"""
import pathlib, threading
note = pathlib.Path({str(note)!r})
note.write_text((note.read_text() if note.exists() else "") + threading.current_thread().name + ";")
{SERVER}"""
    async with programs_in(tmp_path) as programs:
        program = programs.program(code)
        assert not note.exists()
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(program[1].load)
    assert note.read_text().count(";") == 1 and threading.current_thread().name not in note.read_text()


@pytest.mark.parametrize(
    ("code", "attribute", "told"),
    [
        ("def broken(", "mcp", "cannot be imported (SyntaxError; the log has the details)."),
        ("import not_there_at_all", "mcp", "cannot be imported (ModuleNotFoundError; the log has the details)."),
        (
            "raise RuntimeError('password=hunter2')",
            "mcp",
            "cannot be imported (RuntimeError; the log has the details).",
        ),
        ("import sys; sys.exit(3)", "mcp", "cannot be imported (SystemExit; the log has the details)."),
        (SERVER, "absent", "has no FastMCP object named 'absent'. Correct 'python'."),
        (SERVER, "not_a_server", "has no FastMCP object named 'not_a_server'. Correct 'python'."),
    ],
)
async def test_a_file_that_is_no_server_is_told_and_ends_nothing_else(
    tmp_path: Path, code: str, attribute: str, told: str
) -> None:
    async with programs_in(tmp_path) as programs:
        program = programs.program(code, attribute)
        for _ in range(2):
            with pytest.raises(BackendUnavailable) as failure:
                async with programs.session(program):
                    pass
            assert str(failure.value).startswith("server 'notes-1': '") and str(failure.value).endswith(told)
            assert "hunter2" not in str(failure.value) and failure.value.not_sent
        async with programs.session(programs.program()) as session:
            assert await said(session, "events") == ["started"]


async def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    async with programs_in(tmp_path) as programs:
        resource = McpServerResource(name="notes", python=f"{tmp_path / 'absent.py'}:mcp")
        with pytest.raises(BackendUnavailable, match="cannot be imported"):
            async with programs.session((resource, PythonServer(resource, anyio.sleep))):
                pass


async def test_a_file_that_was_corrected_is_loaded_at_the_next_attempt(tmp_path: Path) -> None:
    async with programs_in(tmp_path) as programs:
        program = programs.program("broken(")
        with pytest.raises(BackendUnavailable):
            await program[1].load()
        (tmp_path / "server_1.py").write_text(SERVER + "# corrected, and of another length\n")
        async with programs.session(program) as session:
            assert await said(session, "events") == ["started"]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_lifespan_that_fails_is_told_and_ends_nothing_else(tmp_path: Path, when: str) -> None:
    code = SERVER.replace(f'EVENTS.append("{"started" if when == "before" else "ended"}")', "raise OSError('no disk')")
    async with programs_in(tmp_path) as programs:
        program = programs.program(code)
        if when == "before":
            with pytest.raises(BackendError, match="could not be started"):
                async with programs.session(program):
                    pass
        else:
            async with programs.session(program) as session:
                await said(session, "who")
        async with programs.session(programs.program()) as other:
            assert await said(other, "events") == ["started"]


async def test_two_servers_of_one_file_are_two_objects(tmp_path: Path) -> None:
    async with programs_in(tmp_path) as programs:
        (one, _), (other, _) = programs.program(), programs.program()
        first = PythonServer(one, anyio.sleep)
        second = PythonServer(other.model_copy(update={"python": one.python}), anyio.sleep)
        assert await first.load() is not await second.load()
        assert await first.load() is await first.load()


@pytest.fixture(autouse=True)
async def modules_are_forgotten() -> AsyncIterator[None]:
    yield
    for name in [name for name in sys.modules if name.startswith("apollos_server_notes")]:
        del sys.modules[name]
