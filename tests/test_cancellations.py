"""Callers who give up, at any moment: no slot stays in use, no task stays, and every connection can be used again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import anyio
import pytest

from providers.caller import Caller
from providers.connection import ConnectionState, Target
from providers.errors import BackendError
from providers.lease import lease
from providers.pool import McpConnectionPool
from tests.helpers.fakes import (
    ALICE,
    BOB,
    Call,
    FakeBackend,
    Json,
    caller_of,
    modern_caller,
    no_waiting,
    pool_of,
    settled,
    text,
    time_passes,
)

pytestmark = pytest.mark.core

CALL: Json = {"name": "echo", "arguments": {"text": "hi"}}
ISOLATIONS = ("session", "user", "shared", "call")
CALLERS = [
    *(caller_of(user, f"session:{user.user_id}-{number}") for user in (ALICE, BOB) for number in range(4)),
    modern_caller(ALICE),
    modern_caller(BOB),
]


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


async def call(pool: McpConnectionPool, target: Target, caller: Caller) -> None:
    async with lease(pool, target, caller) as held:
        await held.request("tools/call", CALL)


async def nothing_is_left(pool: McpConnectionPool, targets: list[Target]) -> None:
    """What has to hold once all callers are gone; and afterwards everything works."""
    await time_passes(60)
    statistics = pool.statistics()
    assert (statistics.leases, statistics.waiting, statistics.active, statistics.draining) == (0, 0, 0, 0)
    assert all(connection.state is ConnectionState.IDLE for connection in pool.connections())
    assert all(connection.in_use == 0 and connection.holder is None for connection in pool.connections())
    for target in targets:
        for caller in (CALLERS[0], CALLERS[-1]):
            await call(pool, target, caller)
    assert pool.statistics().leases == 0


# ------------------------------------------------------------------------------------ at random


@dataclass
class Moody(FakeBackend):
    """Slow at random in opening, answering and closing, and now and then it crashes. `peaks` notes how many wires of
    the whole crowd were open at once."""

    def __post_init__(self) -> None:
        self.crowd: list[Moody] = []
        self.peaks: list[int] = []
        self.pick = random.Random(self.name)
        self.is_moody = True
        self.before_open = self.before_close = self._slowly
        self.answers["tools/call"] = self._answer

    def noticed(self) -> None:
        super().noticed()
        self.peaks.append(sum(each.open for each in self.crowd))

    async def _slowly(self) -> None:
        if self.is_moody:
            await time_passes(self.pick.choice((0, 0, 0.01, 0.1)))

    async def _answer(self, request: Call) -> Json:
        await self._slowly()
        if self.is_moody and self.pick.random() < 0.02:
            request.wire.die()
        return text("hi")


async def gives_up(pool: McpConnectionPool, target: Target, pick: random.Random) -> None:
    """One call, given up after some turns of the loop, after some time, or not at all."""
    patience, turns = pick.choice((0.001, 0.01, 0.05, 0.2, 5)), pick.randint(0, 60)
    by_turns = pick.random() < 0.6
    async with anyio.create_task_group() as tasks:

        async def work() -> None:
            with suppress(BackendError):
                await call(pool, target, pick.choice(CALLERS))
            tasks.cancel_scope.cancel()

        tasks.start_soon(work)
        if by_turns:
            await settled(turns)
        else:
            await time_passes(patience)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(3))
async def test_a_thousand_callers_who_give_up_at_random_leave_nothing_in_use(seed: int) -> None:
    pick = random.Random(seed)
    backends = [Moody(f"server-{isolation}") for isolation in ISOLATIONS]
    for backend in backends:
        backend.crowd = backends
    targets = [backend.target(isolation=isolation) for backend, isolation in zip(backends, ISOLATIONS, strict=True)]
    async with pool_of(max_connections=6) as pool:
        async with anyio.create_task_group() as tasks:
            for number in range(1000):
                tasks.start_soon(gives_up, pool, pick.choice(targets), pick)
                if number % 20 == 0:
                    await time_passes(pick.choice((0, 0.01, 0.05)))
        for backend in backends:
            backend.is_moody = False
        await nothing_is_left(pool, targets)
        assert max(max(backend.peaks) for backend in backends) == 6
        assert sum(backend.open for backend in backends) == len(pool.connections()) <= 6
    assert asyncio.all_tasks() == {asyncio.current_task()}


# ---------------------------------------------------------------------------------- at each step

Scene = Callable[[McpConnectionPool, FakeBackend, Target], Awaitable[None]]


async def cold(pool: McpConnectionPool, backend: FakeBackend, target: Target) -> None:
    """Nothing is open yet."""


async def warm(pool: McpConnectionPool, backend: FakeBackend, target: Target) -> None:
    """An idle connection is there."""
    await call(pool, target, CALLERS[0])


async def quiet(pool: McpConnectionPool, backend: FakeBackend, target: Target) -> None:
    """It was idle for so long that it is asked first."""
    await warm(pool, backend, target)
    await time_passes(40)


async def full(pool: McpConnectionPool, backend: FakeBackend, target: Target) -> None:
    """Somebody else's idle connection has to go first."""
    await call(pool, FakeBackend("other").target(), CALLERS[0])


async def dead(pool: McpConnectionPool, backend: FakeBackend, target: Target) -> None:
    """The first request is provably not sent, so that there is a second attempt."""
    await warm(pool, backend, target)
    backend.wire.closed.set()


@pytest.mark.parametrize("scene", [cold, warm, quiet, full, dead], ids=lambda scene: scene.__name__)
@pytest.mark.parametrize("isolation", ["session", "call"])
async def test_whoever_gives_up_after_any_step_of_a_call_leaves_nothing_in_use(scene: Scene, isolation: str) -> None:
    for steps in range(50):
        backend = FakeBackend()
        target = backend.target(isolation=isolation)
        async with pool_of(max_connections=1) as pool:
            await scene(pool, backend, target)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call, pool, target, CALLERS[0])
                await settled(steps)
                tasks.cancel_scope.cancel()
            await nothing_is_left(pool, [target])
        assert backend.open == 0


@pytest.mark.parametrize("steps", range(40))
async def test_whoever_gives_up_while_waiting_takes_nothing_from_who_waits_behind(steps: int) -> None:
    """Three wait for one connection; the one in the middle leaves, just before, while, or after it is handed out."""
    target, served = FakeBackend().target(isolation="shared"), []

    async def waits(caller: Caller) -> None:
        async with lease(pool, target, caller):
            served.append(caller)

    async with pool_of(max_connections=1) as pool, anyio.create_task_group() as tasks:
        held = await pool.acquire(target, CALLERS[0])
        tasks.start_soon(waits, CALLERS[1])
        await settled()
        async with anyio.create_task_group() as middle:
            middle.start_soon(waits, CALLERS[5])
            await settled()
            tasks.start_soon(waits, CALLERS[2])
            await settled()
            pool.release(held)
            await settled(steps)
            middle.cancel_scope.cancel()
        with anyio.fail_after(10):
            while CALLERS[2] not in served:
                await anyio.lowlevel.checkpoint()
    assert CALLERS[1] in served and pool.statistics().leases == 0
