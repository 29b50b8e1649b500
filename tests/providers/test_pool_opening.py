"""The pool opens connections: one opener for all who wait, deadlines of its own, and nobody else is held up."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from providers.connection import Target
from providers.errors import BackendTimeout, BackendUnavailable, PoolExhausted
from providers.lease import lease
from providers.pool import McpConnectionPool
from tests.helpers.fakes import (
    ALICE,
    BOB,
    FakeBackend,
    caller_of,
    held,
    no_waiting,
    pool_of,
    settled,
    time_passes,
)
from tests.providers.test_pool import call

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


FIRST = caller_of(ALICE, "session:1")
SECOND = caller_of(ALICE, "session:2")
OTHER_USER = caller_of(BOB, "session:3")


async def test_however_many_wait_one_opens() -> None:
    gate = anyio.Event()
    backend = FakeBackend(before_open=held(gate))
    target = backend.target()
    async with pool_of() as pool, anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(call, pool, target, FIRST)
        await settled()
        assert backend.attempts == 1 and pool.statistics().connecting == 1
        gate.set()
    assert backend.attempts == 1


async def test_a_failed_start_is_told_to_all_who_wait_and_then_forgotten() -> None:
    gate = anyio.Event()
    backend, failures = FakeBackend(), []

    async def refuses() -> None:
        await gate.wait()
        raise BackendUnavailable("fake", "could not be started.")

    async def one() -> None:
        with pytest.raises(BackendUnavailable, match="could not be started") as failure:
            await call(pool, target, FIRST)
        failures.append(failure.value)

    backend.before_open, target = refuses, backend.target()
    async with pool_of() as pool:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(one)
            await settled()
            gate.set()
        assert backend.attempts == 1 and pool.statistics().failed == 1
        assert len({id(failure) for failure in failures}) == 5, "each gets an error of its own"
        assert all(failure.not_sent for failure in failures) and pool.connections() == []
        backend.before_open = None
        await call(pool, target, FIRST)


async def test_opening_is_not_counted_into_the_acquire_timeout() -> None:
    async def slowly() -> None:
        await time_passes(20)

    backend = FakeBackend(before_open=slowly)
    async with pool_of(acquire_timeout=5) as pool, anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(call, pool, backend.target(), FIRST)
    assert backend.attempts == 1


async def test_opening_ends_at_its_own_deadline_which_is_longer_the_first_time() -> None:
    backend = FakeBackend()
    async with pool_of() as pool:
        for seconds in (30.0, 15.0):
            await call(pool, backend.target(), SECOND) if seconds == 15 else None
            backend.answers["initialize"] = held(anyio.Event())
            began = anyio.current_time()
            with pytest.raises(BackendTimeout, match=f"did not finish 'initialize' within {seconds:g} s"):
                await call(pool, backend.target(), FIRST)
            assert anyio.current_time() - began == pytest.approx(seconds)
            del backend.answers["initialize"]


async def test_who_waited_for_the_opening_waits_no_longer_than_others_once_it_is_busy() -> None:
    gate = anyio.Event()
    backend = FakeBackend(before_open=held(gate))
    target = backend.target(isolation="shared")

    async def holds() -> None:
        async with lease(pool, target, FIRST):
            await time_passes(60)

    async def waits() -> None:
        with pytest.raises(PoolExhausted):
            await call(pool, target, OTHER_USER)
        assert anyio.current_time() - opened == pytest.approx(5)

    async with pool_of() as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(holds)
        await settled()
        tasks.start_soon(waits)
        await time_passes(10)
        opened = anyio.current_time()
        gate.set()


async def test_who_waited_for_an_opening_that_was_called_off_has_a_deadline_again() -> None:
    slow, other = FakeBackend("slow", before_open=held(anyio.Event())), FakeBackend("other")
    async with pool_of(max_connections=1) as pool, anyio.create_task_group() as tasks:
        with anyio.CancelScope() as first:
            tasks.start_soon(cancel_when_opening, slow, first)
            await call(pool, slow.target(), FIRST)
        tasks.start_soon(holds_for, pool, other.target(), 60.0)
        await settled()
        tasks.start_soon(retire_all_soon, pool)
        with pytest.raises(PoolExhausted), anyio.fail_after(30):
            await call(pool, slow.target(), FIRST)
        tasks.cancel_scope.cancel()


async def cancel_when_opening(backend: FakeBackend, caller: anyio.CancelScope) -> None:
    await backend.until(lambda: backend.attempts > 0)
    caller.cancel()


async def retire_all_soon(pool: McpConnectionPool) -> None:
    await settled()
    for connection in pool.connections():
        pool.retire(connection)


async def holds_for(pool: McpConnectionPool, target: Target, seconds: float) -> None:
    async with lease(pool, target, SECOND):
        await time_passes(seconds)


async def test_opening_one_server_holds_up_no_other() -> None:
    hung, quick = FakeBackend("hung"), FakeBackend("quick")
    hung.answers["initialize"] = held(anyio.Event())
    async with pool_of() as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(call, pool, hung.target(), FIRST)
        await settled()
        began = anyio.current_time()
        await call(pool, quick.target(), FIRST)
        assert anyio.current_time() == began
        tasks.cancel_scope.cancel()


async def test_the_error_of_a_closed_pool_says_so() -> None:
    async with pool_of() as pool:
        pass
    with pytest.raises(BackendUnavailable, match="the gateway is shutting down"):
        await pool.acquire(FakeBackend().target(), FIRST)
