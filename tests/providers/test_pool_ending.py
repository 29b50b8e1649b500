"""How the pool's connections end: replaced, expired, found dead, closed with their session or with the gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from providers.connection import ConnectionState, PooledConnection
from providers.errors import BackendUnavailable
from providers.lease import lease
from providers.pool import McpConnectionPool
from tests.helpers.fakes import (
    ALICE,
    BOB,
    FakeBackend,
    caller_of,
    fails,
    held,
    never,
    no_waiting,
    pool_of,
    settled,
    time_passes,
)

pytestmark = pytest.mark.core

FIRST = caller_of(ALICE, "session:1")
SECOND = caller_of(ALICE, "session:2")
OTHER_USER = caller_of(BOB, "session:3")


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


@asynccontextmanager
async def idle_connection(
    backend: FakeBackend, **limits: float
) -> AsyncIterator[tuple[McpConnectionPool, PooledConnection]]:
    async with pool_of(**limits) as pool:
        async with lease(pool, backend.target(), FIRST):
            pass
        (connection,) = pool.connections()
        yield pool, connection


# ----------------------------------------------------------------------------------- generations


async def test_an_idle_connection_of_an_old_generation_closes_now_and_a_busy_one_when_its_call_ends() -> None:
    backend = FakeBackend()
    async with pool_of() as pool:
        async with lease(pool, backend.target(1), FIRST) as busy:
            async with lease(pool, backend.target(1), SECOND):
                pass
            pool.evict("fake", before_generation=2)
            await settled()
            assert [each.state for each in pool.connections()] == [ConnectionState.DRAINING]
            await busy.request("ping", {})
            async with lease(pool, backend.target(2), FIRST) as new:
                assert new.session is not busy.session
        await settled()
        assert [each.generation for each in pool.connections()] == [2]


async def test_other_servers_and_the_new_generation_are_not_touched_by_an_eviction() -> None:
    one, other = FakeBackend("one"), FakeBackend("other")
    async with pool_of() as pool:
        for target in (one.target(1), one.target(2), other.target(1)):
            async with lease(pool, target, FIRST):
                pass
        pool.evict("one", before_generation=2)
        await settled()
        assert sorted((each.server, each.generation) for each in pool.connections()) == [("one", 2), ("other", 1)]


async def test_a_call_that_came_before_the_change_leaves_no_connection_of_the_old_generation() -> None:
    backend = FakeBackend()
    async with pool_of() as pool:
        pool.evict("fake", before_generation=2)
        async with lease(pool, backend.target(1), FIRST) as late:
            await late.request("ping", {})
        await settled()
        assert pool.connections() == [] and backend.open == 0


async def test_an_opening_for_an_old_generation_is_called_off() -> None:
    gate = anyio.Event()
    backend = FakeBackend(before_open=held(gate))
    async with pool_of() as pool, anyio.create_task_group() as tasks:
        with anyio.CancelScope() as caller:
            tasks.start_soon(cancel_when, backend, caller)
            async with lease(pool, backend.target(1), FIRST):
                pass
        assert pool.statistics().connecting == 1
        pool.evict("fake", before_generation=2)
        await settled()
        assert pool.connections() == [] and pool.statistics().failed == 0


async def cancel_when(backend: FakeBackend, scope: anyio.CancelScope) -> None:
    await backend.until(lambda: backend.attempts > 0)
    scope.cancel()


# ---------------------------------------------------------------------------------------- expiry


async def test_an_idle_connection_expires() -> None:
    backend = FakeBackend()
    async with idle_connection(backend, idle_timeout=300) as (pool, connection):
        await time_passes(290)
        assert pool.connections() == [connection]
        await time_passes(40)
        assert pool.connections() == [] and backend.open == 0


async def test_a_connection_that_is_used_now_and_then_is_replaced_at_the_end_of_its_life() -> None:
    backend = FakeBackend()
    async with idle_connection(backend, max_lifetime=1800) as (pool, connection):
        while anyio.current_time() - connection.created_at < 1790:
            async with lease(pool, backend.target(), FIRST):
                pass
            await time_passes(100)
        await time_passes(20)
        assert pool.connections() == [] and len(backend.wires) == 1


async def test_a_busy_connection_expires_only_when_its_call_has_ended() -> None:
    backend = FakeBackend()
    async with pool_of() as pool:
        async with lease(pool, backend.target(), FIRST):
            await time_passes(5000)
            assert backend.open == 1
        await time_passes(70)
        assert backend.open == 0


async def test_a_connection_for_one_call_ends_with_it() -> None:
    backend = FakeBackend()
    async with pool_of() as pool:
        async with lease(pool, backend.target(isolation="call"), FIRST):
            assert backend.open == 1
        await settled()
        assert backend.open == 0 and pool.connections() == []


async def test_a_connection_for_a_call_that_was_cancelled_meanwhile_ends_too() -> None:
    gate = anyio.Event()
    backend = FakeBackend(before_open=held(gate))
    async with pool_of() as pool, anyio.create_task_group() as tasks:
        with anyio.CancelScope() as caller:
            tasks.start_soon(cancel_when, backend, caller)
            async with lease(pool, backend.target(isolation="call"), FIRST):
                pass
        gate.set()
        await settled()
        assert backend.open == 0 and pool.connections() == []


# ---------------------------------------------------------------------------------------- health


async def test_healthy_connections_are_asked_now_and_then_and_stay() -> None:
    backend = FakeBackend()
    async with idle_connection(backend, idle_timeout=10_000) as (pool, connection):
        await time_passes(300)
        assert 2 <= backend.count("ping") <= 5 and pool.connections() == [connection]


async def test_a_connection_that_does_not_answer_a_ping_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    backend = FakeBackend(answers={"ping": never})
    async with idle_connection(backend, idle_timeout=10_000) as (pool, _):
        await time_passes(140)
        assert pool.connections() == [] and backend.open == 0
    assert "server 'fake' does not answer a ping; its connection is closed" in caplog.text


async def test_one_hung_backend_does_not_delay_the_checks_of_the_others() -> None:
    hung, other = FakeBackend("hung", answers={"ping": never}), FakeBackend("other")
    async with pool_of(idle_timeout=10_000) as pool:
        for backend in (hung, other):
            async with lease(pool, backend.target(), FIRST):
                pass
        began = anyio.current_time()
        await time_passes(61)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.health_check)
            await other.heard("ping")
            assert anyio.current_time() - began < 62


async def test_a_crash_is_noticed_and_the_next_call_opens_anew() -> None:
    backend = FakeBackend()
    async with idle_connection(backend) as (pool, _):
        backend.wire.die()
        await settled()
        assert pool.connections() == [] and pool.statistics().failed == 1
        async with lease(pool, backend.target(), FIRST) as again:
            await again.request("ping", {})
    assert len(backend.wires) == 2


async def test_a_crash_in_the_call_of_one_is_not_blamed_on_those_who_wait() -> None:
    backend = FakeBackend(answers={"tools/call": never})
    target = backend.target(isolation="shared")

    async def crashing() -> None:
        with pytest.raises(BackendUnavailable, match="has crashed"):
            async with lease(pool, target, FIRST) as held_lease:
                await held_lease.request("tools/call", {"name": "echo"})

    async def waiting() -> None:
        async with lease(pool, target, OTHER_USER) as held_lease:
            await held_lease.request("ping", {})

    async with pool_of() as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(crashing)
        await backend.heard("tools/call")
        tasks.start_soon(waiting)
        await settled()
        backend.wire.die()
    assert len(backend.wires) == 2


async def test_after_a_crash_the_owner_of_the_connection_is_told_that_it_was_opened_again() -> None:
    told: list[tuple[str, str]] = []
    backend = FakeBackend()
    target = backend.target(on_change=lambda caller, method: told.append((caller.session, method)))
    async with pool_of() as pool:
        for _ in range(2):
            async with lease(pool, target, FIRST):
                backend.wire.die()
            await settled()
    assert told == [("session:1", "")]


@pytest.mark.parametrize("isolation", ["session", "call"])
async def test_nothing_is_remembered_of_sessions_that_are_over(isolation: str) -> None:
    backend = FakeBackend()
    async with pool_of() as pool:
        sizes = []
        for number in range(20):
            caller = caller_of(session=f"session:{number}")
            async with lease(pool, backend.target(isolation=isolation), caller) as held_lease:
                await held_lease.request("ping", {})
                backend.wire.die()
            await settled()
            await pool.end_session(caller.session)
            sizes.append(size_of(pool))
        assert sizes[-1] == sizes[0]


def size_of(pool: McpConnectionPool) -> int:
    return sum(len(value) for value in vars(pool).values() if isinstance(value, dict | set | list))


# ------------------------------------------------------------------------------ sessions and the end


async def test_the_end_of_a_client_session_closes_what_was_its_own_and_cancels_what_runs() -> None:
    backend = FakeBackend(answers={"tools/call": never})
    async with pool_of() as pool, anyio.create_task_group() as tasks:
        async with lease(pool, backend.target(), SECOND), lease(pool, backend.target(isolation="user"), FIRST):
            pass

        async def calling() -> None:
            with pytest.raises(BackendUnavailable, match="closed before the answer came"):
                async with lease(pool, backend.target(), FIRST) as held_lease:
                    await held_lease.request("tools/call", {"name": "echo"})

        tasks.start_soon(calling)
        await backend.heard("tools/call")
        await pool.end_session(FIRST.session)
        await settled()
        assert sorted(each.key.scope.partition(";")[0] for each in pool.connections()) == [
            SECOND.session,
            f"user:{ALICE.key}",
        ]
        assert pool.statistics().leases == 0 and pool.statistics().failed == 0


async def test_the_end_of_the_pool_is_told_to_who_waits() -> None:
    backend = FakeBackend()
    async with anyio.create_task_group() as tasks, pool_of(max_connections=1) as pool:
        tasks.start_soon(is_refused, pool, backend)
        async with lease(pool, backend.target(), FIRST):
            tasks.start_soon(is_refused, pool, backend)
            await settled()
            assert pool.statistics().waiting == 2
            await pool.close_all()


async def is_refused(pool: McpConnectionPool, backend: FakeBackend) -> None:
    await settled(10)
    with pytest.raises(BackendUnavailable, match="the gateway is shutting down"):
        async with lease(pool, backend.target(), OTHER_USER):
            pass


async def test_closing_waits_until_everything_is_closed() -> None:
    async def slowly() -> None:
        await time_passes(3)

    backend = FakeBackend(before_close=slowly)
    async with pool_of() as pool:
        for caller in (FIRST, SECOND, OTHER_USER):
            async with lease(pool, backend.target(), caller):
                pass
        began = anyio.current_time()
        await pool.close_all()
        assert backend.open == 0 and anyio.current_time() - began == pytest.approx(3, abs=0.1)


async def test_a_backend_that_is_still_connecting_does_not_hold_up_the_end() -> None:
    backend = FakeBackend(answers={"initialize": never})
    async with anyio.create_task_group() as tasks:
        async with pool_of() as pool:
            tasks.start_soon(is_refused, pool, backend)
            await backend.heard("initialize")
            began = anyio.current_time()
        assert anyio.current_time() - began < 1 and backend.open == 0


async def test_failing_to_close_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    backend = FakeBackend(before_close=fails(BackendUnavailable("fake", "did not end.")))
    async with idle_connection(backend) as (pool, connection):
        pool.condemn(connection)
        await settled()
        assert pool.connections() == []
        async with lease(pool, backend.target(), FIRST) as again:
            await again.request("ping", {})


async def test_backends_that_do_not_end_hold_up_the_end_no_longer_than_their_deadline() -> None:
    stubborn, proper = FakeBackend("stubborn", before_close=never), FakeBackend("proper")
    async with pool_of() as pool:
        for number in range(5):
            async with lease(pool, stubborn.target(timeouts={"shutdown": 5}), caller_of(session=f"session:{number}")):
                pass
        async with lease(pool, proper.target(), FIRST):
            began = anyio.current_time()
            pool.evict("proper", before_generation=2)
    assert anyio.current_time() - began < 20 and proper.open == 0
