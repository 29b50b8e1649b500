"""What holds for every test: its environment is its own, a skip in CI is a failure, nothing is left running.

In CI (`APOLLOS_CI=1`) a test that did not run proves nothing, so its skip fails with the skip's own reason.
When a test ends, no asyncio task is left; when all have ended, no process is. A process counts as ours when it is
our child, and also when it carries our mark in its environment: its parent may have died before it.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

pytest.register_assert_rewrite("tests.relay.flows", "tests.relay.desk")  # what a flow found wrong is shown in full

IN_CI = "APOLLOS_CI"
TOLD = "told"
"""The property of a test, `record_property("told", lines)`, whose lines are shown after all tests."""
MARK = "XDG_APOLLOS_TEST_RUN"
"""Begins like what a backend may inherit, so that it reaches backends and their children too."""

SECONDS_TO_END = 5.0
LOOP_TURNS = 20


class _ByFile(LoadFileScheduling):  # type: ignore[misc]
    """Workers share out whole files, so that what a file sets up is set up once; the tests of containers stay together,
    because what one of them counts at the engine the others would change."""

    def _split_scope(self, nodeid: str) -> str:
        return "docker" if "/docker/" in nodeid else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFile:
    return _ByFile(config, log)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests do not see the APOLLOS_* variables of whoever runs them, and write nothing into their state."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state-of-nobody"))
    for name in [name for name in os.environ if name.startswith("APOLLOS_") and name != IN_CI]:
        monkeypatch.delenv(name)


# ---------------------------------------------------------------------------------- skips are failures


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if os.environ.get(IN_CI) and report.skipped and not hasattr(report, "wasxfail"):
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if os.environ.get(IN_CI) and report.skipped:
        _fail(report)
    return report


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"not run, and in CI that is a failure: {reason}"


# --------------------------------------------------------------------------------- nothing left behind


@pytest.fixture(autouse=True)
def no_task_left(request: pytest.FixtureRequest) -> None:
    """An asynchronous test ends with no task running but its own."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("no_task_left_in_the_loop")


@pytest.fixture
async def no_task_left_in_the_loop() -> AsyncIterator[None]:
    yield
    for _ in range(LOOP_TURNS):  # what was cancelled needs some turns of the loop to end
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if not left:
            return
        await asyncio.sleep(0)
    pytest.fail("tasks left running: " + ", ".join(sorted(f"{task.get_name()} {task.get_coro()}" for task in left)))


LEFT = pytest.StashKey[list[str]]()


def pytest_configure() -> None:
    os.environ[MARK] = f"{os.getpid()}-{uuid.uuid4().hex}"
    _pass_on_no_ignored_signals()


def _pass_on_no_ignored_signals() -> None:
    """Of `nohup` or a shell's `&` the tests have signals that are ignored, and so would have the gateways that they
    start and then end with these. A handler is passed on to nobody, and this one still does nothing."""
    for name in ("SIGHUP", "SIGINT"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    deadline = time.monotonic() + SECONDS_TO_END
    while (left := processes_left()) and time.monotonic() < deadline:
        time.sleep(0.02)
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.stash[LEFT] = left


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for process in config.stash.get(LEFT, []):
        terminalreporter.write_line(f"FAILED: a process was left running: {process}", red=True)
    told = (known for report in terminalreporter.getreports("passed") for known in report.user_properties)
    for line in [line for name, lines in told if name == TOLD for line in lines]:
        terminalreporter.write_line(line)


def processes_left() -> list[str]:
    """The living processes that came from this one: number and command line, for a person to read."""
    return [
        f"{folder.name} {_read(folder / 'cmdline').replace(bytes(1), b' ').decode(errors='replace')}"
        for folder in Path("/proc").glob("[0-9]*")
        if int(folder.name) != os.getpid() and _came_from_here(folder)
    ]


def _came_from_here(process: Path) -> bool:
    state, parent, *_ = _read(process / "stat").rpartition(b")")[2].split() or (b"Z", b"0")
    if state == b"Z":
        return False
    mark = f"{MARK}={os.environ[MARK]}".encode()
    return int(parent) == os.getpid() or mark in _read(process / "environ").split(bytes(1))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # it has ended meanwhile, or belongs to somebody else
        return b""
