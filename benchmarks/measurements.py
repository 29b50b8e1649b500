"""What is measured, each as one function: calls, listings, the weight of idle servers, start-up. Called by
`__main__`.

All variants of a measurement run at the same time, idle but for the one under load, and take turns in rounds,
so that what else the machine does falls on all of them. Each number is kept per round.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from urllib.request import urlopen

import anyio
import anyio.to_thread

from benchmarks.answers import Era
from benchmarks.driver import Load, Outcome
from benchmarks.fronts import Backend, Front, Site, Variant, Via, started
from benchmarks.processes import Helper, helper
from benchmarks.sessions import Session, Target, WrongAnswer, session_to

SESSIONS = 16
LISTED_SERVERS, LISTED_TOOLS = 20, 50
IDLE_SERVERS = 200
STARTED_SERVERS, STARTED_TOOLS = 10, 5
_READY_SECONDS = 30.0
_TRIES = 10
_COUNTED_CALLS = 20


@dataclass(frozen=True)
class Plan:
    """How long everything takes."""

    rounds: int = 3
    seconds_alone: float = 0.7
    """One call at a time."""
    seconds_crowded: float = 1.2
    """`SESSIONS` calls at a time."""
    idle_rounds: int = 8
    starts: int = 2
    list_seconds: float = 6.0
    """How long a listing may take while one server hangs."""


QUICK = Plan(rounds=1, seconds_alone=0.4, seconds_crowded=0.6, idle_rounds=4, starts=1, list_seconds=4.0)


@dataclass(frozen=True)
class Bench:
    """Everything that a measurement needs."""

    site: Site
    plan: Plan
    variants: tuple[Variant, ...]


@dataclass
class Row:
    """One variant's numbers, one per round."""

    variant: Variant
    alone: list[Outcome] = field(default_factory=list)
    """`tools/call`, one at a time."""
    crowded: list[Outcome] = field(default_factory=list)
    """`tools/call`, `SESSIONS` at a time."""
    listings: list[Outcome] = field(default_factory=list)
    """`tools/list`, one at a time."""
    requests_per_call: dict[str, float] | None = None
    """What one call made of requests at the backend, by method; None where they cannot be counted."""
    idle_mb: float | None = None
    loaded_mb: float | None = None
    error: str | None = None


@dataclass
class Start:
    """One variant's start-up, per start; seconds from the start of the process."""

    variant: Variant
    initialize_seconds: list[float] = field(default_factory=list)
    list_seconds: list[float | None] = field(default_factory=list)
    """Until the first listing was answered; None if it was not."""
    again_seconds: list[float] = field(default_factory=list)
    """How long a second listing took."""
    listed: list[int] = field(default_factory=list)
    """How many tools it had."""


Fronted = tuple[Variant, list[Backend]]
"""A variant, and what stands behind it."""


class _Driving:
    """The driver process, with the fronts that it may load and a row for each."""

    def __init__(self, driver: Helper, fronts: list[Front]) -> None:
        self._driver = driver
        self._fronts = {front.target: front for front in fronts}
        self.pairs = [(front, Row(front.variant)) for front in fronts]
        self.rows = [row for _, row in self.pairs]

    def turns(self, number: int) -> Iterable[tuple[Front, Row]]:
        """The order of one round. Every other one runs backwards, so that neighbours change."""
        return self.pairs if number % 2 == 0 else reversed(self.pairs)

    async def begin(self) -> None:
        """One session with each front, without a call, and how much memory the front has then."""
        for front, row in self.pairs:
            row.error = await _why_not_listening(front)
            await self.measure(row, [], Load(front.target, "tools/call", seconds=0, min_calls=0))
            row.idle_mb = front.memory_mb()

    async def load(self, load: Load) -> Outcome:
        """Drive one load and add what CPU time it cost. More than the load's own deadlines is never waited."""
        front = self._fronts[load.target]
        before = front.cpu_seconds()
        outcome = Outcome(**await self._driver.ask(asdict(load), load.begin_seconds + load.max_seconds + 5))
        after = front.cpu_seconds()
        if before is not None and after is not None and outcome.calls:
            outcome.cpu_ms = 1000 * (after - before) / outcome.calls
        return outcome

    async def warm(self, row: Row, load: Load) -> None:
        """Repeat a short load until it succeeds: sessions are begun, catalogues and pools are filled."""
        if row.error is not None:
            return
        for _ in range(_TRIES):
            outcome = await self.load(load)
            row.error = outcome.error
            if row.error is None:
                return
            await anyio.sleep(0.3)

    async def measure(self, row: Row, kept: list[Outcome], load: Load) -> None:
        """One load, kept unless it failed; a variant that failed once is not asked again."""
        if row.error is None:
            outcome = await self.load(load)
            row.error = outcome.error
            if row.error is None:
                kept.append(outcome)


@asynccontextmanager
async def _driving(
    bench: Bench, fronted: list[Fronted], era: Era, front: Via = Via.HTTP, back: Via = Via.HTTP
) -> AsyncIterator[_Driving]:
    """A front of each variant, all of them answering, and a driver for them."""
    async with AsyncExitStack() as stack:
        fronts = []
        for variant, backends in fronted:
            running = started(bench.site, variant, era, backends, front=front, back=back)
            fronts.append(await stack.enter_async_context(running))
        pipes = [fd for each in fronts for fd in each.target.pipes or ()]
        driver = await stack.enter_async_context(helper("driver", bench.site.cores.load, pipes))
        driving = _Driving(driver, fronts)
        await driving.begin()
        yield driving


async def _why_not_listening(front: Front) -> str | None:
    """Wait until an HTTP front answers at all, or tell why it does not. What is sent over pipes waits there."""
    if front.target.url is None:
        return None
    with anyio.move_on_after(_READY_SECONDS):
        session = await _begun(front, front.target)
        if session is not None:
            session.close()
            return None
    return f"did not start. Its log ends:\n\n{front.last_words()}"


async def _begun(front: Front, target: Target) -> Session | None:
    """A session as soon as one can be had, None if the front ended. The caller sets the deadline."""
    while not front.has_ended:
        session = session_to(target)
        try:
            await session.begin()
        except (OSError, WrongAnswer):
            session.close()
            await anyio.sleep(0.005)
        else:
            return session
    return None


async def calls(bench: Bench, front: Via, back: Via, era: Era) -> list[Row]:
    """`tools/call` on one backend: one at a time, by 16 sessions at once, and the requests that it costs."""
    plan = bench.plan
    fronted: list[Fronted] = [(variant, [Backend(f"{variant.slug}-one", era)]) for variant in bench.variants]
    async with _driving(bench, fronted, era, front, back) as driving:
        for running, row in driving.pairs:
            warm = Load(running.target, "tools/call", running.tool, concurrency=SESSIONS, seconds=0)
            await driving.warm(row, replace(warm, min_calls=2 * SESSIONS))
            if back is Via.HTTP and row.error is None:
                row.requests_per_call = await _requests_per_call(bench, driving, running, row)
        for number in range(plan.rounds):
            for running, row in driving.turns(number):
                alone = Load(running.target, "tools/call", running.tool, seconds=plan.seconds_alone, min_calls=10)
                await driving.measure(row, row.alone, alone)
                crowded = replace(alone, concurrency=SESSIONS, seconds=plan.seconds_crowded, min_calls=SESSIONS)
                await driving.measure(row, row.crowded, crowded)
        for running, row in driving.pairs:
            row.loaded_mb = running.memory_mb()
        return driving.rows


async def _requests_per_call(bench: Bench, driving: _Driving, running: Front, row: Row) -> dict[str, float]:
    """Make some calls one after another and see what came to the backend."""
    path = Backend(f"{running.variant.slug}-one", running.target.era).path
    before = await anyio.to_thread.run_sync(_counts, bench.site, path)
    counted = Load(running.target, "tools/call", running.tool, seconds=0, min_calls=_COUNTED_CALLS)
    await driving.measure(row, [], counted)
    after = await anyio.to_thread.run_sync(_counts, bench.site, path)
    more = {method: count - before.get(method, 0) for method, count in after.items()}
    return {method: count / _COUNTED_CALLS for method, count in more.items() if count}


def _counts(site: Site, path: str) -> dict[str, int]:
    """How many requests of which method this path of the HTTP backend has had."""
    with urlopen(f"http://127.0.0.1:{site.http_port}/counts", timeout=5) as answer:
        counts: dict[str, int] = json.load(answer).get(path, {})
        return counts


async def listings(bench: Bench, era: Era) -> list[Row]:
    """`tools/list` over 20 HTTP backends of 50 tools each, and calls through such a front, one at a time.

    Direct is one backend that has all the tools itself.
    """
    wide = [Backend(f"s{number:02}", era, LISTED_TOOLS) for number in range(LISTED_SERVERS)]
    everything = [Backend("all", era, LISTED_SERVERS * LISTED_TOOLS)]
    fronted = [(variant, everything if variant is Variant.DIRECT else wide) for variant in bench.variants]
    async with _driving(bench, fronted, era) as driving:
        count = LISTED_SERVERS * LISTED_TOOLS
        for running, row in driving.pairs:
            await driving.warm(row, Load(running.target, "tools/list", tool_count=count, seconds=0))
        for number in range(bench.plan.rounds):
            for running, row in driving.turns(number):
                listing = Load(running.target, "tools/list", tool_count=count, seconds=bench.plan.seconds_alone)
                await driving.measure(row, row.listings, replace(listing, min_calls=2))
                call = Load(running.target, "tools/call", running.tool, seconds=bench.plan.seconds_alone / 2)
                await driving.measure(row, row.alone, replace(call, min_calls=2))
        for running, row in driving.pairs:
            row.loaded_mb = running.memory_mb()
        return driving.rows


async def idle_servers(bench: Bench) -> list[Row]:
    """Calls through a gateway with one server, and through one that has 200 more which nobody calls."""
    era = Era.HANDSHAKE
    used = Backend("used", era)
    idle = [Backend(f"idle-{number:03}", era) for number in range(IDLE_SERVERS)]
    fronted = [(Variant.GATEWAY, [used]), (Variant.GATEWAY, [used, *idle])]
    async with _driving(bench, fronted, era) as driving:
        for (running, row), (_, backends) in zip(driving.pairs, fronted, strict=True):
            listing = Load(running.target, "tools/list", tool_count=len(backends), seconds=0)
            await driving.warm(row, listing)
            await driving.warm(row, Load(running.target, "tools/call", running.tool, seconds=0, min_calls=20))
        for number in range(bench.plan.idle_rounds):
            for running, row in driving.turns(number):
                call = Load(running.target, "tools/call", running.tool, seconds=bench.plan.seconds_alone)
                await driving.measure(row, row.alone, call)
        for running, row in driving.pairs:
            row.loaded_mb = running.memory_mb()
        return driving.rows


async def start_ups(bench: Bench, front: Via, back: Via) -> list[Start]:
    """From the start of the process to the first answers, with ten servers of which one never says a word."""
    variants = [variant for variant in bench.variants if variant is not Variant.DIRECT]
    starts = [Start(variant) for variant in (*variants, Variant.ALONE)]
    for _ in range(bench.plan.starts):
        for start in starts:
            await _start_up(bench, start, front, back)
    return starts


async def _start_up(bench: Bench, start: Start, front: Via, back: Via) -> None:
    healthy = [Backend(f"s{number}", Era.HANDSHAKE, STARTED_TOOLS) for number in range(STARTED_SERVERS - 1)]
    hung = Backend("hung", Era.HANDSHAKE, hangs=True)
    began = time.perf_counter()
    front_of = started(bench.site, start.variant, Era.HANDSHAKE, [*healthy, hung], front=front, back=back)
    async with front_of as running:
        target = running.target
        if target.pipes is not None:  # the session closes what it is given
            target = replace(target, pipes=(os.dup(target.pipes[0]), os.dup(target.pipes[1])))
        with anyio.fail_after(_READY_SECONDS):
            session = await _begun(running, target)
        if session is None:
            raise RuntimeError(f"{start.variant} did not start. Its log ends:\n\n{running.last_words()}")
        start.initialize_seconds.append(time.perf_counter() - began)
        listed, seconds = await _list(session, bench.plan.list_seconds)
        start.listed.append(listed)
        start.list_seconds.append(None if seconds is None else time.perf_counter() - began)
        if seconds is not None:
            _, seconds = await _list(session, bench.plan.list_seconds)
            start.again_seconds.extend([] if seconds is None else [seconds])
        session.close()


async def _list(session: Session, patience: float) -> tuple[int, float | None]:
    """How many tools a listing had and how long it took; None if it took longer than `patience`."""
    asked = time.perf_counter()
    with anyio.move_on_after(patience):
        listed = len((await session.request("tools/list"))["tools"])
        return listed, time.perf_counter() - asked
    return 0, None
