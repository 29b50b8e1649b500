"""A server that keeps failing is left alone for a while; its callers hear so at once."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from providers.backoff import Backoff
from providers.docker_engine import EngineUnavailable
from providers.errors import BackendError, BackendResting, BackendUnavailable, PoolExhausted
from providers.lease import lease
from providers.pool import McpConnectionPool
from tests.helpers.fakes import FakeBackend, caller_of, fails, held, no_waiting, pool_of, settled, time_passes

pytestmark = pytest.mark.core

DOWN = BackendUnavailable("files", "could not be started.")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def backoff(clock: Clock) -> Backoff:
    return Backoff(clock)


def test_the_first_failure_costs_nothing(backoff: Backoff) -> None:
    backoff.failed("files", DOWN, 30)
    assert backoff.rests_for("files") == 0 and backoff.refusal("files") is None


def test_rests_grow_to_the_limit_with_a_tenth_of_jitter(backoff: Backoff) -> None:
    rests = []
    for _ in range(12):
        backoff.failed("files", DOWN, 30)
        rests.append(backoff.rests_for("files"))
    expected = [0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30]
    assert rests == pytest.approx(expected, rel=0.1)
    assert len(set(rests[7:])) > 1, "not all of a crowd come back at once"


def test_many_failures_later_the_rest_is_still_a_number(backoff: Backoff) -> None:
    for _ in range(3000):
        backoff.failed("files", DOWN, 30)
    assert backoff.rests_for("files") == pytest.approx(30, rel=0.1)


def test_a_refusal_says_how_often_how_long_and_why(backoff: Backoff, clock: Clock) -> None:
    for _ in range(6):
        backoff.failed("files", DOWN, 30)
    clock.now += backoff.rests_for("files") - 3
    refusal = backoff.refusal("files")
    assert isinstance(refusal, BackendUnavailable) and refusal.not_sent
    assert str(refusal) == (
        "server 'files': failed 6 times in a row and is tried again in 3 s. Last reason: could not be started."
    )


def test_a_refusal_after_one_failure_says_once(backoff: Backoff) -> None:
    backoff.failed("files", DOWN, 30, first_rest=4)
    refusal = backoff.refusal("files")
    assert "failed once and is tried again in 4 s." in str(refusal)
    assert isinstance(refusal, BackendResting) and refusal.again().reason == DOWN.problem


def test_a_reason_is_news_until_it_was_told_and_again_after_the_server_was_well(backoff: Backoff) -> None:
    other = BackendUnavailable("files", "was ended.", not_sent=True)
    assert [backoff.is_news(each) for each in (DOWN, DOWN, other, DOWN)] == [True, False, True, True]
    backoff.succeeded(("files", 1))
    assert backoff.is_news(DOWN) and not backoff.is_news(DOWN)
    backoff.forget("files", 2)
    assert backoff.is_news(DOWN)


def test_after_the_rest_there_is_an_attempt(backoff: Backoff, clock: Clock) -> None:
    for _ in range(4):
        backoff.failed("files", DOWN, 30)
    clock.now += backoff.rests_for("files")
    assert backoff.refusal("files") is None


def test_success_forgets_the_failures_of_that_server_alone(backoff: Backoff) -> None:
    for server in ("files", "time"):
        for _ in range(4):
            backoff.failed(server, DOWN, 30)
    backoff.succeeded("files")
    backoff.failed("files", DOWN, 30)
    assert backoff.rests_for("files") == 0 and backoff.rests_for("time") > 1


def test_success_of_a_server_that_never_failed_is_nothing(backoff: Backoff) -> None:
    backoff.succeeded("files")
    assert backoff.rests_for("files") == 0


# ------------------------------------------------------------------------------ in the pool


@pytest.fixture
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


async def try_it(pool: McpConnectionPool, backend: FakeBackend, session: str = "session:1") -> str:
    """Call the backend; what went wrong, or nothing."""
    try:
        async with lease(pool, backend.target(), caller_of(session=session)) as held_lease:
            await held_lease.request("ping", {})
    except BackendUnavailable as error:
        return error.problem
    return ""


@pytest.mark.usefixtures("time_flies")
async def test_a_server_that_cannot_start_is_not_started_for_every_call() -> None:
    backend = FakeBackend(before_open=fails(BackendUnavailable("fake", "could not be started.")))
    async with pool_of() as pool:
        said = [await try_it(pool, backend, f"session:{number}") for number in range(20)]
    assert said[:2] == ["could not be started."] * 2
    assert backend.attempts == 2 and all("failed 2 times in a row" in each for each in said[2:])


@pytest.mark.usefixtures("time_flies")
@pytest.mark.parametrize("kind", [EngineUnavailable, PoolExhausted])
async def test_what_is_not_the_servers_doing_does_not_count_against_it(kind: type[BackendError]) -> None:
    """An engine that is away, or no room: once that is over it is called at once."""
    backend = FakeBackend(before_open=fails(kind("fake", "not now.")))
    async with pool_of() as pool:
        for number in range(20):
            with pytest.raises(kind, match="not now"):
                await pool.acquire(backend.target(), caller_of(session=f"session:{number}"))
        assert backend.attempts == 20 and pool.backoff.failures("fake") == 0
        backend.before_open = None
        assert await try_it(pool, backend) == ""


@pytest.mark.usefixtures("time_flies")
async def test_a_server_that_comes_back_is_found_soon() -> None:
    backend = FakeBackend(before_open=fails(BackendUnavailable("fake", "is down.")))
    async with pool_of() as pool:
        for _ in range(100):
            await try_it(pool, backend)
            await time_passes(1)
        backend.before_open, back_since = None, anyio.current_time()
        for _ in range(40):
            if not await try_it(pool, backend):
                break
            await time_passes(1)
        assert anyio.current_time() - back_since < 35
        backend.wire.die()
        await settled()
        assert await try_it(pool, backend) == "", "one crash after that costs nothing again"


@pytest.mark.usefixtures("time_flies")
async def test_one_that_starts_and_dies_again_and_again_is_left_alone_too() -> None:
    backend = FakeBackend()

    async def open_and_die() -> str:
        try:
            async with lease(pool, backend.target(), caller_of()):
                backend.wire.die()
                await settled()
        except BackendUnavailable as error:
            return error.problem
        return ""

    async with pool_of() as pool:
        said = [await open_and_die() for _ in range(4)]
    assert said[:2] == ["", ""] and "failed 2 times in a row" in said[2] and len(backend.wires) == 2


@pytest.mark.usefixtures("time_flies")
async def test_a_new_generation_starts_with_a_clean_slate() -> None:
    backend = FakeBackend(before_open=fails(BackendUnavailable("fake", "is down.")))
    async with pool_of() as pool:
        for _ in range(5):
            await try_it(pool, backend)
        backend.before_open = None
        pool.evict("fake", before_generation=2)
        async with lease(pool, backend.target(2), caller_of()) as held_lease:
            await held_lease.request("ping", {})


@pytest.mark.usefixtures("time_flies")
async def test_who_comes_while_a_broken_server_is_tried_again_does_not_wait_for_it() -> None:
    backend = FakeBackend(before_open=fails(BackendUnavailable("fake", "is down.")))
    async with pool_of() as pool, anyio.create_task_group() as tasks:
        for _ in range(5):
            await try_it(pool, backend)
            await time_passes(40)
        backend.before_open = held(anyio.Event())
        tasks.start_soon(try_it, pool, backend, "session:1")
        await settled()
        began = anyio.current_time()
        assert "is being tried again" in await try_it(pool, backend, "session:2")
        assert anyio.current_time() == began
        tasks.cancel_scope.cancel()


@pytest.mark.usefixtures("time_flies")
async def test_calling_an_opening_off_is_no_failure() -> None:
    gate = anyio.Event()
    backend = FakeBackend(before_open=held(gate))
    async with pool_of() as pool:
        for number in range(5):
            with anyio.move_on_after(1):
                await try_it(pool, backend, f"session:{number}")
            await pool.end_session(f"session:{number}")
            await settled()
        assert pool.statistics().failed == 0 and pool.connections() == []
        gate.set()
        assert await try_it(pool, backend) == ""
