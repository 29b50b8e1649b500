"""The pool hands connections out: who shares one, how many there are, who waits and for how long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import anyio
import pytest

from providers.caller import Caller
from providers.connection import ConnectionState, PooledConnection, Target
from providers.errors import BackendUnavailable, PoolExhausted
from providers.lease import Lease, lease
from providers.pool import McpConnectionPool
from tests.helpers.fakes import (
    ALICE,
    BOB,
    Call,
    FakeBackend,
    caller_of,
    fails,
    held,
    modern_caller,
    no_waiting,
    pool_of,
    settled,
    text,
    time_passes,
)

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


async def call(pool: McpConnectionPool, target: Target, caller: Caller, said: str = "hi") -> None:
    async with lease(pool, target, caller) as held_lease:
        answer = await held_lease.request("tools/call", {"name": "echo", "arguments": {"text": said}})
        assert answer["content"][0]["text"] == said


async def wire_of(pool: McpConnectionPool, target: Target, caller: Caller) -> object:
    async with lease(pool, target, caller) as held_lease:
        return held_lease.session.wire


# --------------------------------------------------------------------------------------- who shares

FIRST = caller_of(ALICE, "session:1")
SECOND = caller_of(ALICE, "session:2")
OTHER_USER = caller_of(BOB, "session:3")


@pytest.mark.parametrize(
    ("isolation", "shares_session", "shares_user", "shares_all"),
    [
        ("session", True, False, False),
        ("user", True, True, False),
        ("shared", True, True, True),
        ("call", False, False, False),
    ],
)
async def test_isolation_says_who_shares_a_connection(
    isolation: str, shares_session: bool, shares_user: bool, shares_all: bool
) -> None:
    backend = FakeBackend()
    target = backend.target(isolation=isolation)
    async with pool_of() as pool:
        first = await wire_of(pool, target, FIRST)
        assert (await wire_of(pool, target, FIRST) is first) is shares_session
        assert (await wire_of(pool, target, SECOND) is first) is shares_user
        assert (await wire_of(pool, target, OTHER_USER) is first) is shares_all


@pytest.mark.parametrize("other", [caller_of(capabilities=frozenset({"roots"})), modern_caller()])
async def test_even_a_shared_connection_is_kept_apart_by_what_the_client_can_be_asked(other: Caller) -> None:
    target = FakeBackend().target(isolation="shared")
    async with pool_of() as pool:
        assert await wire_of(pool, target, FIRST) is not await wire_of(pool, target, other)


async def test_calls_of_one_session_run_at_the_same_time_on_one_connection() -> None:
    backend = FakeBackend()
    target = backend.target()
    async with pool_of() as pool, lease(pool, target, FIRST) as one, lease(pool, target, FIRST) as two:
        assert one.session is two.session
        assert pool.statistics().leases == 2 and backend.most_open == 1


async def test_a_shared_connection_serves_one_session_at_a_time() -> None:
    target = FakeBackend().target(isolation="shared")
    order: list[str] = []

    async def second() -> None:
        async with lease(pool, target, OTHER_USER):
            order.append("second has it")

    async with pool_of() as pool, anyio.create_task_group() as tasks, lease(pool, target, FIRST):
        tasks.start_soon(second)
        await settled()
        order.append("first ends")
    assert order == ["first ends", "second has it"]


async def test_a_session_that_keeps_calling_does_not_keep_the_others_out() -> None:
    target, order = FakeBackend().target(isolation="shared"), []

    async def waits(caller: Caller) -> None:
        async with lease(pool, target, caller):
            order.append(caller.session)

    async with pool_of() as pool, anyio.create_task_group() as tasks, lease(pool, target, FIRST):
        tasks.start_soon(waits, OTHER_USER)
        await settled()
        tasks.start_soon(waits, FIRST)
        await settled()
        assert order == []
    assert order == [OTHER_USER.session, FIRST.session]


async def test_who_waits_behind_one_that_gave_up_is_served() -> None:
    target, served = FakeBackend().target(isolation="shared"), anyio.Event()

    async def waits() -> None:
        async with lease(pool, target, FIRST):
            served.set()

    async with pool_of() as pool, anyio.create_task_group() as tasks, lease(pool, target, FIRST):
        with anyio.move_on_after(1):
            tasks.start_soon(waits)
            async with lease(pool, target, OTHER_USER):
                raise AssertionError("the connection is busy")
        with anyio.fail_after(1):
            await served.wait()


async def test_the_identity_on_the_wire_is_that_of_the_caller_and_nobodys_between_calls() -> None:
    backend = FakeBackend()
    seen: list[str | None] = []

    async def answer(request: Call) -> dict[str, object]:
        seen.append(request.user)
        return text("ok")

    backend.answers["tools/call"] = answer
    target = backend.target(isolation="shared")
    async with pool_of() as pool:
        for caller in (FIRST, OTHER_USER):
            async with lease(pool, target, caller) as held_lease:
                await held_lease.request("tools/call", {"name": "echo"})
            assert backend.wire.identity is None
    assert seen == ["alice", "bob"] and len(backend.wires) == 1


# ---------------------------------------------------------------------------------------- how many


async def test_fifty_callers_share_four_slots_and_all_are_served_in_order() -> None:
    backend = FakeBackend()
    ended: list[int] = []

    async def slow(request: Call) -> dict[str, object]:
        await time_passes(0.1)
        return text(request.arguments["text"])

    async def one(number: int) -> None:
        await call(pool, target, caller_of(session=f"session:{number}"), str(number))
        ended.append(number)

    backend.answers["tools/call"] = slow
    target = backend.target()
    async with pool_of(max_connections=4) as pool:
        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(one, number)
        statistics = pool.statistics()
    assert backend.most_open == 4
    assert sorted(ended) == list(range(50))
    assert all(abs(place - number) < 8 for place, number in enumerate(ended))
    assert (statistics.leases, statistics.waiting, statistics.opened, statistics.evicted) == (0, 0, 50, 46)


async def test_a_closing_connection_counts_until_it_is_closed() -> None:
    gate = anyio.Event()
    stubborn, other = FakeBackend("stubborn", before_close=held(gate)), FakeBackend("other")
    async with pool_of(max_connections=1, acquire_timeout=3) as pool:
        await call(pool, stubborn.target(), FIRST)
        with pytest.raises(PoolExhausted, match="all 1 are in use; raise max_connections"):
            await call(pool, other.target(), FIRST)
        assert (stubborn.open, other.attempts) == (1, 0)
        gate.set()
        await call(pool, other.target(), FIRST)


async def test_the_one_that_was_idle_longest_makes_room() -> None:
    target = FakeBackend().target()
    callers = [caller_of(session=f"session:{number}") for number in range(4)]
    async with pool_of(max_connections=3) as pool:
        for caller in callers[:3]:
            await call(pool, target, caller)
            await time_passes(1)
        await call(pool, target, callers[0])
        await call(pool, target, callers[3])
        kept = {connection.opener.session for connection in pool.connections()}
    assert kept == {"session:0", "session:2", "session:3"}


async def test_ending_a_live_session_to_make_room_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    backend = FakeBackend()
    with caplog.at_level("INFO", logger="providers.pool"):
        async with pool_of(max_connections=1) as pool:
            await call(pool, backend.target(isolation="user"), FIRST)
            await call(pool, backend.target(), FIRST)
            assert not caplog.records
            await call(pool, backend.target(), SECOND)
    assert "server 'fake': made room by ending a session whose client is still there" in caplog.text


async def test_no_more_is_evicted_than_callers_wait_for() -> None:
    target = FakeBackend().target()
    async with pool_of(max_connections=4) as pool:
        for number in range(4):
            await call(pool, target, caller_of(session=f"session:{number}"))
        async with lease(pool, target, caller_of(session="session:5")):
            assert pool.statistics().evicted == 1 and pool.statistics().idle == 3


# ------------------------------------------------------------------------------------- waiting


async def test_without_a_free_slot_a_caller_waits_for_the_acquire_timeout_and_hears_why() -> None:
    target = FakeBackend().target()
    async with pool_of(max_connections=2) as pool, lease(pool, target, FIRST), lease(pool, target, SECOND):
        began = anyio.current_time()
        with pytest.raises(PoolExhausted) as refused:
            await call(pool, target, OTHER_USER)
        assert anyio.current_time() - began == pytest.approx(5)
        assert str(refused.value) == (
            "server 'fake': no connection became free within 5 s: all 2 are in use; raise max_connections. "
            "Try again later."
        )
        assert refused.value.not_sent and pool.statistics().waiting == 0


async def test_who_waits_for_a_busy_shared_connection_hears_that() -> None:
    target = FakeBackend().target(isolation="shared")
    async with pool_of() as pool, lease(pool, target, FIRST):
        with pytest.raises(PoolExhausted, match=r"busy with another client's call \(isolation 'shared'\)"):
            await call(pool, target, OTHER_USER)


async def test_a_slot_that_becomes_free_goes_to_who_waited_longest() -> None:
    target, order = FakeBackend().target(), []

    async def one(session: str) -> None:
        async with lease(pool, target, caller_of(session=session)):
            order.append(session)

    async with pool_of(max_connections=1) as pool, anyio.create_task_group() as tasks, lease(pool, target, FIRST):
        for session in "abc":
            tasks.start_soon(one, session)
            await settled()
    assert order == ["a", "b", "c"]


async def test_a_connection_is_reserved_in_the_step_that_hands_it_out() -> None:
    """Two wait, one becomes idle, and it is retired before either task has run: one call each, nothing twice."""
    target, got = FakeBackend().target(isolation="shared"), []

    async def one(caller: Caller) -> None:
        connection = await pool.acquire(target, caller)
        got.append((connection, connection.in_use))
        pool.release(connection)

    async with pool_of() as pool:
        connection = await pool.acquire(target, FIRST)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, SECOND)
            tasks.start_soon(one, OTHER_USER)
            await settled()
            pool.release(connection)
            assert connection.in_use == 1
            pool.retire(connection)
            assert connection.state is ConnectionState.DRAINING
    assert [in_use for _, in_use in got] == [1, 1]
    assert got[0][0] is connection and got[1][0] is not connection


# ------------------------------------------------------------------------------ what can be seen


async def test_statistics_add_up_and_states_can_be_read() -> None:
    backend = FakeBackend()
    async with pool_of(max_connections=7) as pool, AsyncExitStack() as stack:
        leases: list[Lease] = [await stack.enter_async_context(lease(pool, backend.target(), FIRST)) for _ in "ab"]
        await call(pool, backend.target(), SECOND)
        backend.before_open = fails(BackendUnavailable("fake", "is down."))
        with pytest.raises(BackendUnavailable):
            await call(pool, backend.target(), OTHER_USER)
        statistics = pool.statistics()
        assert statistics._asdict() == {
            "connecting": 0,
            "idle": 1,
            "active": 1,
            "draining": 0,
            "closing": 0,
            "waiting": 0,
            "leases": 2,
            "max_connections": 7,
            "opened": 2,
            "failed": 1,
            "evicted": 0,
        }
        assert repr(pool) == "<McpConnectionPool 2/7, 0 waiting>"
        assert sorted(map(repr, pool.connections())) == [
            "<PooledConnection fake#1 active in_use=2>",
            "<PooledConnection fake#1 idle in_use=0>",
        ]
        assert repr(leases[0]) == "<Lease fake open>"
    assert pool.connections() == [] and {type(each) for each in pool.connections()} <= {PooledConnection}
