"""How the wire to a local process ends: by itself, by us, by cancellation; and nothing stays."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from providers.errors import BackendTimeout
from providers.resource import McpServerResource
from tests.helpers.processes import eventually
from tests.helpers.raw import all_gone, children, failure_of, opened, pids_of, request, script


@pytest.mark.parametrize("arguments", [(), ("leave",), ("quiet",), ("leave", "quiet")])
async def test_a_process_that_ignores_everything_is_gone_with_its_child(arguments: tuple[str, ...]) -> None:
    async with opened(script("raw_stubborn.py", *arguments), shutdown=0.4) as (_, inbox):
        pids = (await inbox.next())["params"]
    await all_gone(pids)


async def test_a_launcher_that_left_a_child_fails_the_wire_and_loses_the_child() -> None:
    async with opened(script("raw_stubborn.py", "leave")) as (wire, inbox):
        pids = (await inbox.next())["params"]
        await failure_of(wire)
        await all_gone(pids)


async def test_a_killed_process_fails_the_wire_and_loses_its_child() -> None:
    async with opened(script("raw_stubborn.py")) as (wire, inbox):
        pids = await pids_of(inbox)
        os.kill(pids[0], signal.SIGKILL)
        with anyio.fail_after(5):
            assert "killed by signal 9" in await failure_of(wire)
        await all_gone(pids)


async def test_a_process_that_ends_later_tells_its_exit_code_and_answers_first() -> None:
    async with opened(script("raw_echo.py")) as (wire, inbox):
        await wire.send(request("echo", "first", 1), {})
        await wire.send(request("exit", {"code": 3}, 2), {})
        assert (await inbox.next())["result"] == "first"
        assert "the process ended (exit code 3)" in await failure_of(wire)


def hold_the_loop_until_reaped(pid: int) -> None:
    """Where a thread of asyncio's does that; later Pythons leave it to the loop."""
    deadline = time.monotonic() + 2
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        os.sched_yield()


async def test_an_end_that_asyncio_has_not_heard_of_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(script("raw_echo.py")) as (wire, inbox):
        await wire.send(request("where"), {})
        pid = (await inbox.next())["result"]["pid"]
        os.kill(pid, signal.SIGKILL)
        hold_the_loop_until_reaped(pid)
    assert [record.getMessage() for record in caplog.records] == []


async def test_a_process_that_closes_its_output_is_ended() -> None:
    async with opened(script("raw_echo.py")) as (wire, inbox):
        await wire.send(request("where"), {})
        pid = (await inbox.next())["result"]["pid"]
        await wire.send(request("close stdout"), {})
        assert "closed its stdout" in await failure_of(wire)
        await all_gone([pid])


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_process_that_ends_with_its_input_is_not_signalled(tmp_path: Path, cancelled: bool) -> None:
    goodbye = tmp_path / "goodbye"
    server = tmp_path / "server.py"
    server.write_text(
        "import sys\n"
        "print('{}', flush=True)\n"
        "sys.stdin.read()\n"
        "print('x' * 1_000_000, flush=True)\n"  # more than a pipe holds: somebody must still read
        f"open({str(goodbye)!r}, 'w').write('in peace')\n"
    )
    resource = McpServerResource(name="raw", command=sys.executable, args=(str(server),))
    with anyio.CancelScope() as scope:
        async with opened(resource, shutdown=20) as (_, inbox):
            await inbox.next()
            if cancelled:
                scope.cancel()
    assert goodbye.read_text() == "in peace"


async def test_a_process_that_still_starts_is_not_waited_for_long() -> None:
    """As one that a package runner is still fetching when a person loses patience."""
    resource = McpServerResource(name="raw", command=sys.executable, args=("-c", "import time; time.sleep(60)"))
    began = anyio.current_time()
    async with opened(resource, shutdown=20):
        pass
    assert anyio.current_time() - began < 8  # half of the deadline is for those who know that it is the end


async def test_an_error_of_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(BackendTimeout) as caught:
        async with opened(script("raw_echo.py")):
            raise BackendTimeout("raw", "too late")
    assert caught.value.__cause__ is None


Stop = Callable[[anyio.CancelScope, "asyncio.Task[None]"], object]
WAYS_TO_CANCEL: dict[str, Stop] = {
    "anyio scope": lambda scope, task: scope.cancel(),
    "asyncio task": lambda scope, task: task.cancel(),
}


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, 5, 6, 8, 10, 20])
@pytest.mark.parametrize("how", WAYS_TO_CANCEL)
async def test_a_cancelled_start_leaves_no_process(how: str, turns: int) -> None:
    before = children()
    scope = anyio.CancelScope()

    async def start() -> None:
        with scope:
            async with opened(script("raw_echo.py")):
                await anyio.sleep_forever()
            pytest.fail("the cancellation was swallowed")

    task = asyncio.get_running_loop().create_task(start())
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()
    WAYS_TO_CANCEL[how](scope, task)
    with anyio.fail_after(10):
        await asyncio.wait([task])
    assert task.cancelled() == (how == "asyncio task")
    await eventually(lambda: children() == before)


@pytest.mark.parametrize("how", WAYS_TO_CANCEL)
async def test_a_cancelled_end_leaves_no_process(how: str) -> None:
    scope, ready, closing = anyio.CancelScope(), anyio.Event(), anyio.Event()
    pids: list[int] = []

    async def hold() -> None:
        with scope:
            async with opened(script("raw_stubborn.py"), shutdown=1) as (_, inbox):
                pids.extend(await pids_of(inbox))
                ready.set()
                closing.set()

    task = asyncio.get_running_loop().create_task(hold())
    await closing.wait()
    await anyio.lowlevel.checkpoint()
    WAYS_TO_CANCEL[how](scope, task)
    with anyio.fail_after(10):
        await asyncio.wait([task])
    await all_gone(pids)


async def test_a_cancelled_block_ends_the_process_and_stays_cancelled() -> None:
    with anyio.CancelScope() as scope:
        async with opened(script("raw_stubborn.py"), shutdown=0.4) as (_, inbox):
            pids = await pids_of(inbox)
            scope.cancel()
            await anyio.lowlevel.checkpoint()
        pytest.fail("the cancellation was swallowed")
    assert scope.cancelled_caught
    await all_gone(pids)


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop is not for Windows")
def test_it_works_on_uvloop_as_well() -> None:
    import uvloop

    uvloop.run(both_kinds_of_end())


async def both_kinds_of_end() -> None:
    async with opened(script("raw_echo.py")) as (wire, inbox):
        await wire.send(request("echo", "hello"), {})
        assert (await inbox.next())["result"] == "hello"
        await wire.send(request("die"), {})
        assert "killed by signal 9" in await failure_of(wire)
    async with opened(script("raw_stubborn.py", "leave"), shutdown=1) as (_, inbox):
        pids = (await inbox.next())["params"]
    await all_gone(pids)
