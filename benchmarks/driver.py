"""The load, in a process of its own: asked by lines of JSON, each a `Load`, answers each with what it
measured.

Started by `measurements` on the cores that the fronts do not use; calls `sessions`. Sessions are begun when a
load first needs them and kept, as clients keep theirs; the clock runs only while requests are in flight.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

import anyio
import anyio.to_thread

from benchmarks.answers import Era
from benchmarks.processes import EVENT_LOOP
from benchmarks.sessions import Session, Target, WrongAnswer, check_call, check_list, session_to


@dataclass(frozen=True)
class Load:
    """So many calls at once, each of a session of its own over HTTP, for so long; every answer is checked."""

    target: Target
    method: Literal["tools/call", "tools/list"]
    tool: str = "echo"
    tool_count: int = 1
    """How many tools a listing must have."""
    concurrency: int = 1
    seconds: float = 1.0
    min_calls: int = 1
    """Go on beyond `seconds` until there are so many, but never beyond `max_seconds`."""
    max_calls: int = 1_000_000
    max_seconds: float = 30.0
    begin_seconds: float = 60.0
    """How long beginning the sessions may take, before the clock runs."""


@dataclass
class Outcome:
    """What a load measured: calls answered, seconds from the first to the last, latencies in milliseconds.

    `cpu_ms` is the front's CPU time per call; `measurements` adds it, as only it knows the front's process.
    """

    calls: int
    seconds: float
    p50_ms: float
    p99_ms: float
    error: str | None = None
    cpu_ms: float | None = None


class Driver:
    """Holds the sessions of all targets from one load to the next."""

    def __init__(self) -> None:
        self._sessions: dict[Target, list[Session]] = {}

    async def run(self, load: Load) -> Outcome:
        """Drive one load. What goes wrong is told in the outcome, not raised."""
        run, error = _Run(load), None
        try:
            with anyio.fail_after(load.begin_seconds):
                lanes = await self._lanes(load)
            with anyio.fail_after(load.max_seconds):
                await run.drive(lanes)
        except* (WrongAnswer, OSError) as failures:
            error = _first(failures)
            self._drop(load.target)
        return run.outcome(error)

    def close(self) -> None:
        for target in list(self._sessions):
            self._drop(target)

    async def _lanes(self, load: Load) -> list[Session]:
        """A session for each call in flight; over pipes they all share one, as a process has one pair."""
        sessions = self._sessions.setdefault(load.target, [])
        wanted = 1 if load.target.pipes else load.concurrency
        while len(sessions) < wanted:
            session = session_to(load.target)
            sessions.append(session)
            await session.begin()
        for session in sessions[:wanted]:
            await session.prepare()
        return sessions[:1] * load.concurrency if load.target.pipes else sessions[:wanted]

    def _drop(self, target: Target) -> None:
        for session in self._sessions.pop(target, ()):
            session.close()


class _Run:
    """One load under way."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._started = self._ended = time.perf_counter()
        self._latencies: list[float] = []
        self._begun = 0

    async def drive(self, lanes: list[Session]) -> None:
        gc.collect()
        gc.disable()  # a collection of ours would be seen as a latency of theirs
        try:
            self._started = time.perf_counter()
            async with anyio.create_task_group() as group:
                for lane in lanes:
                    group.start_soon(self._call_after_call, lane)
        finally:
            gc.enable()

    async def _call_after_call(self, session: Session) -> None:
        load, latencies, clock = self._load, self._latencies, time.perf_counter
        stop_at = self._started + load.seconds
        while self._begun < load.max_calls and (clock() < stop_at or self._begun < load.min_calls):
            self._begun += 1
            text = f"nonce-{self._begun}"
            called = load.method == "tools/call"
            params = {"name": load.tool, "arguments": {"text": text}} if called else {}
            sent = clock()
            request_id, answer = await session.exchange(load.method, params)
            self._ended = clock()
            latencies.append(self._ended - sent)
            if called:
                check_call(answer, request_id, text)
            else:
                check_list(answer, request_id, load.tool_count)

    def outcome(self, error: str | None) -> Outcome:
        latencies = sorted(self._latencies)
        seconds = self._ended - self._started
        return Outcome(len(latencies), seconds, _at(latencies, 0.5), _at(latencies, 0.99), error)


def _at(ordered: list[float], share: float) -> float:
    """The value below which this share of the values lies, in milliseconds."""
    return 1000 * ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def _first(failures: BaseExceptionGroup[BaseException]) -> str:
    failure: BaseException = failures
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return f"{type(failure).__name__}: {failure}"


def load_from(question: dict[str, Any]) -> Load:
    """A load from its JSON."""
    target = question.pop("target")
    pipes = tuple(target["pipes"]) if target["pipes"] else None
    return Load(target=Target(era=Era(target["era"]), url=target["url"], pipes=pipes), **question)


async def answer_questions() -> None:
    """Until standard input ends."""
    driver = Driver()
    while line := await anyio.to_thread.run_sync(sys.stdin.buffer.readline):
        outcome = await driver.run(load_from(json.loads(line)))
        print(json.dumps(asdict(outcome)), flush=True)
    driver.close()


if __name__ == "__main__":
    anyio.run(answer_questions, backend_options=EVENT_LOOP)
