"""What holds for every test: its environment is its own, a skip in CI is a failure, and nothing is left running.

In CI (`APOLLOS_CI=1`) a test that did not run proves nothing, so its skip fails with the skip's own reason. Left
behind must be neither an asyncio task when a test ends nor a process when all have ended. Processes are recognised
by a variable in their environment, because one whose parent has died is nobody's child any more.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

IN_CI = "APOLLOS_CI"
MARK = "XDG_APOLLOS_TEST_RUN"
"""Begins like what a backend's environment may inherit, so that it reaches backends and their children too."""

SECONDS_TO_END = 10.0
LOOP_TURNS = 20


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not see the APOLLOS_* variables of whoever runs them."""
    for name in [name for name in os.environ if name.startswith("APOLLOS_") and name != IN_CI]:
        monkeypatch.delenv(name)


# ---------------------------------------------------------------------------------------------- skips are failures


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[misc,assignment]
    if os.environ.get(IN_CI) and report.skipped and not hasattr(report, "wasxfail"):
        _fail(report)
    return report  # type: ignore[return-value]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report: pytest.CollectReport = yield  # type: ignore[misc,assignment]
    if os.environ.get(IN_CI) and report.skipped:
        _fail(report)
    return report  # type: ignore[return-value]


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"not run, and in CI that is a failure: {reason}"


# ---------------------------------------------------------------------------------------------- nothing left behind


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
    pytest.fail(f"tasks left running: {', '.join(sorted(task.get_name() for task in left))}")


def pytest_configure(config: pytest.Config) -> None:
    os.environ[MARK] = f"{os.getpid()}-{uuid.uuid4().hex}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    deadline = time.monotonic() + SECONDS_TO_END
    while (left := processes_left()) and time.monotonic() < deadline:
        time.sleep(0.02)
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.stash[LEFT] = left


LEFT = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for process in config.stash.get(LEFT, []):
        terminalreporter.write_line(f"FAILED: a process was left running: {process}", red=True)


def processes_left() -> list[str]:
    """The processes, other than this one, that carry our mark: who they are, for a person to read."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    return [
        f"{folder.name} {_read(folder / 'cmdline').replace(bytes(1), b' ').decode(errors='replace')}"
        for folder in Path("/proc").glob("[0-9]*")
        if int(folder.name) != os.getpid() and mark in _read(folder / "environ").split(bytes(1))
    ]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # it has ended meanwhile, or belongs to somebody else
        return b""
