"""The guardian: however the gateway dies, no process that it watched stays."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from providers import guardian
from tests.helpers.processes import SERVERS, eventually, is_running

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no guardian on Windows")

GATEWAY = """
import sys, anyio
from providers.resource import McpServerResource
from providers.stdio import stdio_wire

async def deliver(message):
    print(*message["params"], flush=True)

async def main():
    resource = McpServerResource(name="raw", command=sys.executable, args=["-S", sys.argv[1], *sys.argv[2:]])
    async with stdio_wire(resource, deliver, shutdown=30):
        await anyio.sleep_forever()

anyio.run(main)
"""
"""Does with a backend what the gateway does, and prints the pids of the backend and its child."""

ROOT = SERVERS.parent.parent


@contextmanager
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a group of its own."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def guardian_pid() -> int | None:
    process = guardian._guardian._process
    return None if process is None else process.pid


def run_guardian(lines: str) -> None:
    """A guardian of its own, which is told these lines and then left alone."""
    script = [sys.executable, "-I", "-S", guardian.__file__]
    assert subprocess.run(script, input=lines.encode(), timeout=30).returncode == 0


KILLS: dict[str, Callable[[int], None]] = {
    "kill -9": lambda pid: os.kill(pid, signal.SIGKILL),
    "kill": lambda pid: os.kill(pid, signal.SIGTERM),
    "kill -9 of its group": lambda pid: os.killpg(pid, signal.SIGKILL),
}


@pytest.mark.parametrize("how", KILLS)
async def test_a_gateway_that_is_killed_leaves_no_stubborn_backend_and_no_guardian(how: str) -> None:
    command = [sys.executable, "-c", GATEWAY, str(SERVERS / "raw_stubborn.py")]
    async with await anyio.open_process(command, cwd=ROOT, stderr=None, start_new_session=True) as gateway:
        assert gateway.stdout is not None
        with anyio.fail_after(60):
            pids = [int(pid) for pid in (await gateway.stdout.receive()).split()]
        watchman = (set(children_of(gateway.pid)) - set(pids)).pop()
        assert all(is_running(pid) for pid in [*pids, watchman])
        KILLS[how](gateway.pid)
        await gateway.wait()
    await eventually(lambda: not any(is_running(pid) for pid in [*pids, watchman]), within=20)


def children_of(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


async def test_a_killed_gateway_takes_a_polite_backend_with_it_before_any_sigkill() -> None:
    with sleeper() as process:
        run_guardian(f"+{process.pid} {guardian._start_time(process.pid)}\n")
        assert process.wait(timeout=10) == -signal.SIGTERM


def test_what_was_forgotten_is_left_alone() -> None:
    with sleeper() as forgotten, sleeper() as watched:
        run_guardian(f"+{forgotten.pid} \n+{watched.pid} \n-{forgotten.pid}\n-{forgotten.pid}\n")
        assert watched.wait(timeout=10) == -signal.SIGTERM
        assert forgotten.poll() is None


def test_a_number_that_belongs_to_a_younger_process_is_left_alone() -> None:
    with sleeper() as stranger:
        run_guardian(f"+{stranger.pid} 1\n")
        assert stranger.poll() is None


def test_a_group_that_is_gone_is_no_problem() -> None:
    with sleeper() as process:
        pass
    run_guardian(f"+{process.pid} 1\n")


def test_the_guardian_is_there_exactly_while_something_is_watched() -> None:
    assert guardian_pid() is None
    with sleeper() as first, sleeper() as second, guardian.watching(first.pid):
        pid = guardian_pid()
        assert pid is not None
        with guardian.watching(second.pid):
            assert guardian_pid() == pid
            assert repr(guardian._guardian) == f"<Guardian pid={pid} watching={sorted([first.pid, second.pid])}>"
        assert guardian_pid() == pid
        assert os.getsid(pid) == pid
    assert repr(guardian._guardian) == "<Guardian off duty watching=[]>"
    assert not is_running(pid)


def test_polite_signals_do_not_end_the_guardian() -> None:
    with sleeper() as first, sleeper() as second:
        guard = subprocess.Popen([sys.executable, "-I", "-S", guardian.__file__], stdin=subprocess.PIPE)
        assert guard.stdin is not None
        guard.stdin.write(f"+{first.pid} \n".encode())
        guard.stdin.flush()
        ignored = 1 << signal.SIGTERM - 1
        while not ignored & signals_ignored_by(guard.pid):
            assert guard.poll() is None
        for polite in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            guard.send_signal(polite)
        guard.communicate(f"+{second.pid} \n".encode(), timeout=30)
        assert guard.returncode == 0
        assert first.wait(timeout=10) == second.wait(timeout=10) == -signal.SIGTERM


def signals_ignored_by(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("SigIgn:\t")[2].split()[0], 16)


@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
def test_a_guardian_that_came_to_harm_is_replaced_and_the_new_one_knows_all(harm: signal.Signals) -> None:
    with sleeper() as first, sleeper() as second, guardian.watching(first.pid):
        before = guardian._guardian._process
        assert before is not None
        before.send_signal(harm)
        if harm == signal.SIGSTOP:
            fill_the_pipe_of(before)
        else:
            before.wait()
        with guardian.watching(second.pid):
            after = guardian._guardian._process
            assert after is not None
            assert after.pid != before.pid
            assert not is_running(before.pid)
            end_like_a_dead_gateway(after)
            assert first.wait(timeout=10) == second.wait(timeout=10) == -signal.SIGTERM


def fill_the_pipe_of(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with pytest.raises(BlockingIOError):
        while True:
            os.write(process.stdin.fileno(), b"-1\n")


def end_like_a_dead_gateway(process: subprocess.Popen[bytes]) -> None:
    """Close the pipe, and leave a broken one in its place."""
    assert process.stdin is not None
    reader, writer = os.pipe()
    os.dup2(writer, process.stdin.fileno(), inheritable=False)
    os.close(writer)
    os.close(reader)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_keep_the_guardian_waiting() -> None:
    with sleeper() as process, guardian.watching(process.pid):
        before = guardian._guardian._process
        assert before is not None
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)  # lives on until the test lets it go
            os._exit(0 if repr(guardian._guardian) == "<Guardian off duty watching=[]>" else 1)
        try:
            end_like_a_dead_gateway(before)
            assert process.wait(timeout=10) == -signal.SIGTERM
        finally:
            os.close(reader)
            os.close(writer)
            assert os.waitpid(child, 0)[1] == 0


def test_without_a_guardian_the_work_goes_on_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with sleeper() as process, guardian.watching(process.pid), caplog.at_level(logging.WARNING):
        assert guardian_pid() is None
    assert "guardian could not be started (No such file or directory)" in caplog.text
