"""The wire to a local process, against real processes that behave badly."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from providers.errors import BackendProtocolError, BackendTimeout, BackendUnavailable
from providers.process import LineSplitter, LineTooLong, child_environment
from providers.resource import McpServerResource
from providers.stdio import stdio_wire
from providers.wire import NOT_SENT, Message, Wire
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
async def opened(resource: McpServerResource, **options: Any) -> AsyncIterator[tuple[Wire, Inbox]]:
    inbox = Inbox()
    options.setdefault("shutdown", 4)
    try:
        async with stdio_wire(resource, inbox.deliver, **options) as wire:
            yield wire, inbox
    finally:
        inbox.close()


def request(method: str, params: Any = None, request_id: Any = 1) -> Message:
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}


async def failure_of(wire: Wire) -> str:
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


# ------------------------------------------------------------------------------------------------------------ messages


async def test_a_message_comes_back_as_it_was_sent() -> None:
    params = {"text": "line\nbreak, ünïcödé, \u2028, \u0000", "deep": [{"n": 1.5, "none": None}]}
    async with opened(script("raw_echo.py")) as (wire, inbox):
        await wire.send(request("echo", params), {})
        assert (await inbox.next())["result"] == params
        assert wire.identity_in_meta
        assert re.fullmatch(r"<StdioWire raw pid=\d+ open>", repr(wire))
    assert wire.failure is None
    assert repr(wire).endswith("closed>")


async def test_lines_of_a_hundred_senders_do_not_interleave() -> None:
    async with opened(script("raw_echo.py")) as (wire, inbox), anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(wire.send, request("echo", f"{number}" * 5_000, number), {})
        answers = [await inbox.next() for _ in range(100)]
    assert {answer["id"]: answer["result"] for answer in answers} == {n: f"{n}" * 5_000 for n in range(100)}


async def test_a_message_may_be_as_long_as_the_cap() -> None:
    async with opened(script("raw_echo.py")) as (wire, inbox):
        text = "x" * (15 * MEBIBYTE)
        await wire.send(request("echo", text), {})
        assert (await inbox.next())["result"] == text


async def test_a_message_that_comes_byte_by_byte_is_one_message() -> None:
    async with opened(script("raw_noise.py", "single_bytes")) as (_, inbox):
        assert (await inbox.next())["result"] == "pong"


async def test_what_is_no_json_object_is_dropped_counted_and_logged_once_without_its_content(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with opened(script("raw_noise.py", "garbage")) as (wire, inbox):
        assert (await inbox.next())["result"] == "pong"
        assert wire.dropped_lines == 6
        assert not wire.closed.is_set()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "'raw'" in warnings[0]
    assert "Listening" not in caplog.text


async def test_text_that_was_cut_within_a_character_is_repaired() -> None:
    async with opened(script("raw_noise.py", "damaged_text")) as (_, inbox):
        assert await inbox.next() == {"id": 1, "bytes": "caf\ufffd", "half": "?"}


async def test_a_flood_arrives_whole_in_order_and_lets_others_run() -> None:
    turns = 0

    async def other_work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with opened(script("raw_noise.py", "flood")) as (_, inbox), anyio.create_task_group() as tasks:
        tasks.start_soon(other_work)
        received = [(await inbox.next())["params"]["data"] for _ in range(20_000)]
        tasks.cancel_scope.cancel()
    assert received == list(range(20_000))
    assert turns > 100


async def test_back_pressure_reaches_the_process() -> None:
    delivered = 0
    go_on = anyio.Event()

    async def slow(_: Message) -> None:
        nonlocal delivered
        delivered += 1
        if delivered == 1:
            await go_on.wait()

    async with stdio_wire(script("raw_noise.py", "flood"), slow):
        await eventually(lambda: delivered == 1)
        go_on.set()
        await eventually(lambda: delivered == 20_000)


async def test_a_session_that_is_gone_does_not_hold_up_the_end() -> None:
    async def gone(_: Message) -> None:
        raise anyio.BrokenResourceError

    async with stdio_wire(script("raw_noise.py", "flood"), gone) as wire:
        pass
    assert wire.failure is None


async def test_a_fault_of_the_session_fails_the_wire_and_not_its_user() -> None:
    async def broken(_: Message) -> None:
        raise KeyError("secret")

    async with stdio_wire(script("raw_noise.py", "single_bytes"), broken) as wire:
        assert "could not be handled" in await failure_of(wire)


# --------------------------------------------------------------------------------------------------------------- floods


def test_a_line_is_split_at_its_newline_and_capped() -> None:
    lines = LineSplitter(4)
    assert list(lines.feed(b"ab")) == []
    assert list(lines.feed(b"cd\n\nefgh\ni")) == [b"abcd", b"", b"efgh"]
    assert list(lines.feed(b"jkl\n")) == [b"ijkl"]
    with pytest.raises(LineTooLong):
        list(lines.feed(b"mnopq"))


def test_a_line_that_may_be_cut_is_cut() -> None:
    lines = LineSplitter(4, cut=True)
    assert list(lines.feed(b"abc")) == []
    assert list(lines.feed(b"defg")) == []
    assert list(lines.feed(b"hij\nk\n")) == [b"abcd", b"k"]


@pytest.mark.parametrize("noise", ["big_line", "endless_line"])
async def test_a_line_beyond_the_cap_fails_the_wire_within_bounded_memory(noise: str) -> None:
    with PeakMemory() as peak:
        async with opened(script("raw_noise.py", noise)) as (wire, _):
            assert "sent a line of more than 16 MiB" in await failure_of(wire)
            assert isinstance(wire.failure, BackendProtocolError)
            assert repr(wire).endswith("failed>")
            with pytest.raises(BackendUnavailable, match="16 MiB"):
                await wire.send(request("echo"), {})
    assert peak.growth < 64 * MEBIBYTE


async def test_endless_blank_lines_cost_no_memory_and_let_the_wire_end() -> None:
    with PeakMemory() as peak:
        async with opened(script("raw_noise.py", "blank_lines"), shutdown=1) as (wire, _):
            for _ in range(1_000):
                await anyio.lowlevel.checkpoint()
            assert not wire.closed.is_set()
    assert peak.growth < 64 * MEBIBYTE


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


# -------------------------------------------------------------------------------------------------------------- sending


async def test_a_process_that_never_reads_blocks_no_cancellation_and_fails_in_the_end() -> None:
    resource = script("raw_stubborn.py", timeouts={"call": 1})
    async with opened(resource) as (wire, inbox):
        pids = await pids_of(inbox)
        with anyio.move_on_after(0.1) as patience:
            for _ in range(100):
                await wire.send(request("echo", "x" * MEBIBYTE), {})
        assert patience.cancelled_caught
        assert not wire.closed.is_set()
        with pytest.raises(BackendUnavailable, match="has not read its input for 1 s") as caught:
            await wire.send(request("echo"), {})
        assert caught.value.not_sent
        assert isinstance(wire.failure, BackendTimeout)
        await all_gone(pids)


async def test_a_cancelled_sender_leaves_no_half_line_behind() -> None:
    async with opened(script("raw_echo.py")) as (wire, inbox):
        for number in range(50):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(wire.send, request("echo", "x" * 300_000, number), {})
                    for _ in range(number % 5):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()
        await wire.send(request("echo", "last", "last"), {})
        while (answer := await inbox.next())["id"] != "last":
            assert answer["result"] == "x" * 300_000
        assert answer["result"] == "last"


async def test_sending_to_a_dead_process_says_that_nothing_was_sent() -> None:
    async with opened(script("raw_echo.py")) as (wire, inbox):
        await wire.send(request("die"), {})
        assert "killed by signal 9" in await failure_of(wire)
        with pytest.raises(BackendUnavailable) as caught:
            await wire.send(request("echo"), {})
        assert caught.value.not_sent
        assert inbox.waiting == 0


async def test_a_request_that_no_process_read_is_answered_as_not_sent() -> None:
    async with opened(script("raw_echo.py")) as (wire, inbox):
        await wire.send(request("where"), {})
        pid = (await inbox.next())["result"]["pid"]
        os.kill(pid, signal.SIGKILL)
        while is_running(pid):  # without giving the event loop a turn: it has not noticed yet
            pass
        await wire.send(request("echo", "hello", 7), {})
        answer = await inbox.next()
        assert answer["id"] == 7
        assert answer["error"]["data"] == {NOT_SENT: True}
        assert "ended before it read" in answer["error"]["message"]
        await failure_of(wire)


async def test_sending_after_the_block_says_that_nothing_was_sent() -> None:
    async with opened(script("raw_echo.py")) as (wire, _):
        pass
    with pytest.raises(BackendUnavailable, match="has ended") as caught:
        await wire.send(request("echo"), {})
    assert caught.value.not_sent


async def test_what_was_sent_just_before_the_end_still_arrives() -> None:
    async with opened(script("raw_echo.py")) as (wire, _):
        await wire.send({"jsonrpc": "2.0", "method": "say", "params": {"text": "farewell"}}, {})
    assert "farewell" in wire._stderr.last_words()


# ----------------------------------------------------------------------------------------------------- starting, stderr


@pytest.mark.parametrize(
    ("resource", "problem"),
    [
        ({"command": "no-such-command"}, "command 'no-such-command' was not found. Install it or correct 'command'."),
        (
            {"command": "{tmp}/not-executable"},
            "no permission to run command '{tmp}/not-executable'. Make it executable",
        ),
        ({"command": "{tmp}"}, "no permission to run command '{tmp}'."),
        ({"command": "{tmp}/no-format"}, "command '{tmp}/no-format' failed (Exec format error). Correct 'command'"),
        ({"command": "cat", "cwd": "{tmp}/nowhere"}, "the directory '{tmp}/nowhere' was not found. Create it"),
        ({"command": "cat", "cwd": "{tmp}/no-format"}, "the directory '{tmp}/no-format' was not found. Create it"),
        ({"command": "cat", "args": ["\ud83d"]}, "surrogates not allowed). Correct 'command', 'args' or 'env'."),
        ({"command": "cat", "args": ["x" * 3_000_000]}, "failed (Argument list too long)."),
    ],
)
async def test_what_cannot_start_says_why_and_what_to_do(
    tmp_path: Path, resource: dict[str, Any], problem: str
) -> None:
    (tmp_path / "not-executable").write_text("")
    (tmp_path / "no-format").write_bytes(b"\x7fELF rubbish")
    (tmp_path / "no-format").chmod(0o755)
    given = {
        key: value.replace("{tmp}", str(tmp_path)) if isinstance(value, str) else value
        for key, value in resource.items()
    }
    with pytest.raises(BackendUnavailable) as caught:
        async with opened(McpServerResource(name="raw", **given)):
            pytest.fail("it started")
    assert str(caught.value).startswith("server 'raw': cannot start: ")
    assert problem.replace("{tmp}", str(tmp_path)) in str(caught.value)
    assert caught.value.not_sent


async def test_arguments_and_directory_reach_the_process_as_they_are(tmp_path: Path) -> None:
    arguments = ("two words", "$HOME", ";", "*", "")
    async with opened(script("raw_echo.py", *arguments, cwd=str(tmp_path))) as (wire, inbox):
        await wire.send(request("where"), {})
        where = (await inbox.next())["result"]
    assert where["args"] == list(arguments)
    assert where["cwd"] == str(anyio.Path(await anyio.Path(tmp_path).resolve()))


async def test_a_process_that_ends_at_once_is_quoted(tmp_path: Path) -> None:
    last = tmp_path / "last.py"
    last.write_text(
        "import sys\n"
        "print('x' * 5000, file=sys.stderr)\n"
        "sys.exit('\\x1b[31mno configuration\\x1b[0m\\x07: bad key s3cret-value')\n"
    )
    resource = McpServerResource(name="raw", command=sys.executable, args=(str(last),), env={"API_KEY": "s3cret-value"})
    async with opened(resource) as (wire, _):
        reason = await failure_of(wire)
    assert reason.startswith("server 'raw': the process ended before answering (exit code 1); its last words: …xxx")
    assert reason.endswith("no configuration: bad key [API_KEY]")
    assert len(reason) < 400


async def test_a_process_that_ends_in_silence_is_told_of_too() -> None:
    async with opened(McpServerResource(name="raw", command="true")) as (wire, _):
        assert "ended before answering (exit code 0); it said nothing" in await failure_of(wire)


async def test_a_process_that_ends_later_tells_its_exit_code_and_answers_first() -> None:
    async with opened(script("raw_echo.py")) as (wire, inbox):
        await wire.send(request("echo", "first", 1), {})
        await wire.send(request("exit", {"code": 3}, 2), {})
        assert (await inbox.next())["result"] == "first"
        assert "the process ended (exit code 3)" in await failure_of(wire)


async def test_a_process_that_closes_its_output_is_ended() -> None:
    async with opened(script("raw_echo.py")) as (wire, inbox):
        await wire.send(request("where"), {})
        pid = (await inbox.next())["result"]["pid"]
        await wire.send(request("close stdout"), {})
        assert "closed its stdout" in await failure_of(wire)
        await all_gone([pid])


async def test_stderr_is_logged_line_by_line_escaped_cut_and_masked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "apollos.server.raw")
    env = {"TOKEN": "abcdefgh-1", "LONGER": "abcdefgh-12345", "SHORT": "info"}
    async with opened(script("raw_echo.py", env=env)) as (wire, inbox):
        texts = ["info: a\rb\x1b[2J\u202e", "", "z" * 10_000, "abcdefgh-12345 abcdefgh-1", "end"]
        await wire.send(request("say", {"text": "\n".join(texts)}), {})
        await inbox.next()
        logged = [record for record in caplog.records if record.name == "apollos.server.raw"]
        await eventually(lambda: caplog.messages[-1] == "end")
        logged = [record.getMessage() for record in caplog.records if record.name == "apollos.server.raw"]
    assert logged == ["info: a\\rb\\x1b[2J\\u202e", "z" * 4096, "[LONGER] [TOKEN]", "end"]


async def test_a_process_sees_its_own_environment_and_little_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    kept_back = {"APOLLOS_SECRET": "1", "AWS_SECRET_ACCESS_KEY": "2", "UV_PUBLISH_TOKEN": "3", "PYTHONPATH": "4"}
    passed_on = {"UV_CACHE_DIR": "a", "npm_config_cache": "b", "https_proxy": "c", "LC_TIME": "C", "XDG_X": "d"}
    for name, value in {**kept_back, **passed_on}.items():
        monkeypatch.setenv(name, value)
    async with opened(script("raw_echo.py", env={"OWN": "mine", "HOME": "/elsewhere"})) as (wire, inbox):
        await wire.send(request("environment"), {})
        seen = (await inbox.next())["result"]
    assert not seen.keys() & kept_back.keys()
    assert seen.items() >= {**passed_on, "OWN": "mine", "HOME": "/elsewhere", "PATH": os.environ["PATH"]}.items()


def test_nothing_unexpected_is_inherited() -> None:
    environ = dict.fromkeys(["PATH", "HOME", "GITHUB_TOKEN", "UV_PROJECT_ENVIRONMENT", "APOLLOS_STORE"], "x")
    assert child_environment(script("raw_echo.py"), environ) == {"PATH": "x", "HOME": "x"}


# --------------------------------------------------------------------------------------------------------------- ending


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


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_process_that_ends_with_its_input_is_not_signalled(tmp_path: Path, cancelled: bool) -> None:
    goodbye = tmp_path / "goodbye"
    server = tmp_path / "server.py"
    server.write_text(
        "import sys\n"
        "sys.stdin.read()\n"
        "print('x' * 1_000_000, flush=True)\n"  # more than a pipe holds: somebody must still read
        f"open({str(goodbye)!r}, 'w').write('in peace')\n"
    )
    resource = McpServerResource(name="raw", command=sys.executable, args=(str(server),))
    with anyio.CancelScope() as scope:
        async with opened(resource, shutdown=20):
            if cancelled:
                scope.cancel()
    assert goodbye.read_text() == "in peace"


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


def children() -> list[int]:
    """Processes that this one started, zombies included."""
    return sorted(
        int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
    )


@pytest.mark.skipif(sys.platform == "win32", reason="uvloop is not for Windows")
def test_it_works_on_uvloop_as_well() -> None:
    import uvloop

    uvloop.run(both_kinds_of_end())


async def both_kinds_of_end() -> None:
    await test_a_message_comes_back_as_it_was_sent()
    await test_sending_to_a_dead_process_says_that_nothing_was_sent()
    await test_a_request_that_no_process_read_is_answered_as_not_sent()
    await test_a_process_that_ignores_everything_is_gone_with_its_child(("leave",))
