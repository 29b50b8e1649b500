"""Leases on a real Redis: one holder at a time, found out by whoever lost one, and what is done where Redis is away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager

import anyio
import pytest

from providers.errors import BackendUnavailable
from providers.leases import Lease, Leases, LeaseState, SharedStateUnavailable, is_of_all_replicas
from providers.replica_board import Board, BoardUnavailable, Holder
from providers.sharing import FencedWire
from providers.wire import Message, Wire
from tests.helpers.processes import eventually
from tests.helpers.redis_server import RedisServer, redis_server

PLACE = ("box", "shared")
QUICK, LONG = 0.4, 30.0
"""Seconds that a lease lasts where a test waits for its end, and where none may come."""


@pytest.fixture(scope="module")
def one_redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def redis(one_redis: RedisServer) -> RedisServer:
    one_redis.ask("FLUSHALL")
    return one_redis


@asynccontextmanager
async def two(redis: RedisServer, seconds: float = LONG) -> AsyncIterator[tuple[Leases, Leases]]:
    async with Board(redis.url) as board, Board(redis.url) as other:
        yield Leases(board, "a" * 12, seconds), Leases(other, "b" * 12, seconds)


@asynccontextmanager
async def kept(leases: Leases) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leases.keep)
        yield
        tasks.cancel_scope.cancel()


async def taken(leases: Leases) -> Lease:
    lease = await leases.claim(PLACE)
    assert isinstance(lease, Lease)
    return lease


class OpenWire(Wire):
    """A wire to nowhere, which notes what is sent."""

    identity_in_meta = True

    def __init__(self) -> None:
        super().__init__("box")
        self.sent: list[Message] = []

    async def send(self, message: Message, headers: Mapping[str, str]) -> None:
        self.sent.append(message)


@pytest.mark.parametrize(
    ("scope", "expected"), [("shared", True), ("user:x", True), ("session:x", False), ("call:x", False)]
)
def test_what_one_client_session_has_is_with_one_replica(scope: str, expected: bool) -> None:
    assert is_of_all_replicas(scope) is expected


async def test_of_many_who_claim_one_gets_it(redis: RedisServer) -> None:
    async with two(redis) as both:
        found: list[object] = []

        async def claim(leases: Leases) -> None:
            found.append(await leases.claim(PLACE))

        async with anyio.create_task_group() as tasks:
            for leases in both * 10:
                tasks.start_soon(claim, leases)
        mine = [each for each in found if isinstance(each, Lease)]
        assert len(set(map(id, mine))) == 1 and len(mine) == 10
        assert {each for each in found if isinstance(each, Holder)} == {mine[0].holder}


async def test_a_lease_that_is_used_is_kept_and_another_is_given_back(redis: RedisServer) -> None:
    async with two(redis, QUICK) as (one, other), kept(one):
        lease = await taken(one)
        lease.users += 1
        await anyio.sleep(0.05)
        before = lease.deadline
        await eventually(lambda: lease.deadline > before)
        assert await other.claim(PLACE) == lease.holder
        lease.users -= 1
        await eventually(lambda: lease.state is LeaseState.RELEASED)
        assert (await taken(other)).holder.token == lease.holder.token + 1


async def test_who_was_away_for_too_long_asks_first_and_does_nothing_more(redis: RedisServer) -> None:
    async with two(redis, QUICK) as (one, other):
        lost, lease, inner = list[object](), await taken(one), OpenWire()
        one.on_loss = lost.append
        wire = FencedWire(inner, lease, one)
        await wire.send({"id": 1}, {})
        await eventually(lambda: not lease.is_certain)
        with anyio.fail_after(5):
            while not isinstance(await other.claim(PLACE), Lease):  # noqa: ASYNC110  # nobody can tell us
                await anyio.sleep(0.05)
        with pytest.raises(BackendUnavailable, match="does not any more") as refusal:
            await wire.send({"id": 2}, {})
        assert refusal.value.not_sent
        assert (inner.sent, lost, lease.state) == ([{"id": 1}], [PLACE], LeaseState.LOST)
        await wire.fail_when_lost()
        assert inner.closed.is_set()


async def test_who_was_away_and_was_missed_by_nobody_goes_on(redis: RedisServer) -> None:
    async with two(redis, QUICK) as (one, _):
        lease, inner = await taken(one), OpenWire()
        await eventually(lambda: not lease.is_certain)
        await FencedWire(inner, lease, one).send({"id": 1}, {})
        assert lease.is_certain and len(inner.sent) == 1


async def test_without_redis_what_is_ours_goes_on_and_nothing_is_taken(redis: RedisServer) -> None:
    async with two(redis, QUICK) as (one, other):
        lease, inner = await taken(one), OpenWire()
        lease.users += 1
        redis.kill()
        try:
            await eventually(lambda: not lease.is_certain)
            await FencedWire(inner, lease, one).send({"id": 1}, {})
            with pytest.raises(SharedStateUnavailable, match="Redis does not answer"), anyio.fail_after(2):
                await other.claim(("new", "shared"))
            with pytest.raises(BoardUnavailable):
                await other.holder(PLACE)
        finally:
            redis.start()
        async with kept(one):
            await eventually(lambda: lease.deadline - one.seconds > 0 and lease.is_certain)
        assert len(inner.sent) == 1
        lease.users -= 1


async def test_tokens_grow_although_redis_lost_everything(redis: RedisServer) -> None:
    async with two(redis) as (one, other):
        for _ in range(3):
            first = await taken(one)
            await one.hand_over(all_of_them=True)
        redis.ask("FLUSHALL")
        assert (await taken(one)).holder.token > first.holder.token
        assert isinstance(await other.claim(PLACE), Holder)


async def test_who_leaves_takes_nothing_more(redis: RedisServer) -> None:
    async with two(redis) as (one, other):
        lease = await taken(one)
        one.leave()
        assert await one.claim(("new", "shared")) is None
        lease.users += 1
        await one.hand_over(all_of_them=False)
        assert lease.state is LeaseState.OURS
        lease.users -= 1
        await one.hand_over(all_of_them=False)
        assert (await taken(other)).holder.token > lease.holder.token


async def test_the_first_key_is_that_of_all_and_comes_back_after_a_loss(redis: RedisServer) -> None:
    async with Board(redis.url) as board:
        assert await board.shared_key(b"1" * 32) == await board.shared_key(b"2" * 32) == b"1" * 32
        redis.ask("FLUSHALL")
        assert await board.shared_key(b"1" * 32) == b"1" * 32


async def test_who_is_alive_is_known_for_so_long(redis: RedisServer) -> None:
    async with Board(redis.url) as board:
        await board.announce("x", "http://x", 0.2)
        assert await board.url_of("x") == "http://x"
        with anyio.fail_after(5):
            while await board.url_of("x") is not None:  # noqa: ASYNC110  # nobody can tell us
                await anyio.sleep(0.05)
        await board.announce("x", "http://x", LONG)
        await board.leave("x")
        assert await board.url_of("x") is None
        assert "pass-word" not in f"{board!r}"
