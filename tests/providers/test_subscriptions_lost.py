"""Subscriptions and their connection: what keeps it, what ends it, and what is restored when it was lost."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from providers.errors import BackendUnavailable
from providers.lease import lease
from tests.helpers.fakes import (
    BOB,
    Call,
    Json,
    caller_of,
    fails,
    never,
    no_waiting,
    settled,
    text,
    time_passes,
)
from tests.helpers.subscribers import OTHER, URI, desk_of, notes, reader

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


async def test_a_connection_with_subscriptions_is_not_closed_as_idle() -> None:
    async with desk_of(notes(), {"idle_timeout": 10, "max_lifetime": 60}) as desk:
        one = reader()
        await desk.subscribe(one)
        await time_passes(1000)
        assert len(desk.backend.wires) == desk.backend.open == 1
        assert desk.backend.count("ping") > 0
        desk.subscriptions.unsubscribe(one.listener, URI)
        await time_passes(30)
        assert desk.backend.open == 0


async def test_it_makes_room_last_and_comes_back_when_there_is_room() -> None:
    async with desk_of(notes(), {"max_connections": 2}) as desk:
        one = reader()
        await desk.subscribe(one)
        for number in (2, 3):
            async with lease(desk.pool, desk.target, caller_of(session=f"session:{number}")) as taken:
                await taken.request("ping", {})
        assert not desk.backend.wires[0].closed.is_set()
        async with (
            lease(desk.pool, desk.target, caller_of(session="session:4")),
            lease(desk.pool, desk.target, caller_of(session="session:5")),
        ):
            assert desk.backend.wires[0].closed.is_set()
            await time_passes(20)
            assert one.heard == []
        await desk.pool.end_session("session:4")
        await time_passes(60)
        assert one.heard == [f"public:{URI}"]


async def test_after_a_crash_all_is_subscribed_again_and_each_hears_once() -> None:
    async with desk_of(notes(), isolation="shared") as desk:
        one, other = reader(), reader(BOB, "session:2")
        await desk.subscribe(one, other)
        await desk.subscribe(one, uri=OTHER)
        desk.backend.wire.die()
        await desk.backend.heard("resources/subscribe", 4)
        await settled()
        assert sorted(one.heard) == [f"public:{URI}", f"public:{OTHER}"]
        assert other.heard == [f"public:{URI}"]
        assert [connection.pins for connection in desk.pool.connections()] == [1]
        await desk.tell(OTHER)
        assert one.heard == [f"public:{OTHER}"]


async def test_a_server_that_stays_away_is_asked_less_and_less_often() -> None:
    async with desk_of(notes()) as desk:
        await desk.subscribe(reader())
        desk.backend.before_open = fails(BackendUnavailable("fake", "is not there."))
        desk.backend.wire.die()
        await time_passes(300)
        assert 8 <= desk.backend.attempts <= 30
        desk.backend.before_open = None
        await time_passes(60)
        assert desk.backend.count("resources/subscribe") == 2


async def test_a_server_that_crashes_at_each_subscription_is_not_started_without_end() -> None:
    async with desk_of(notes()) as desk:
        await desk.subscribe(reader())

        async def die(call: Call) -> Json:
            call.wire.die()
            return await never()

        desk.backend.answers["resources/subscribe"] = die
        desk.backend.wire.die()
        await time_passes(300)
        assert desk.backend.attempts < 40


async def test_another_generation_is_subscribed_in_place_of_the_old_one() -> None:
    async with desk_of(notes()) as desk:
        one = reader()
        await desk.subscribe(one)
        desk.next_generation()
        await desk.backend.heard("resources/subscribe", 2)
        await settled()
        assert one.heard == [f"public:{URI}"]
        assert [connection.generation for connection in desk.pool.connections()] == [2]
        assert repr(desk.subscriptions) == "<Subscriptions fake 1 channels>"


async def test_a_server_that_is_removed_ends_them_in_silence() -> None:
    async with desk_of(notes()) as desk:
        one = reader()
        await desk.subscribe(one)
        desk.subscriptions.close()
        await settled()
        assert one.heard == []
        assert repr(desk.subscriptions) == "<Subscriptions fake 0 channels>"


async def test_a_session_that_ends_takes_its_own_connection_along() -> None:
    async with desk_of(notes()) as desk:
        one = reader()
        await desk.subscribe(one)
        await desk.pool.end_session("session:1")
        one.listener.end()
        await time_passes(30)
        assert desk.backend.attempts == 1
        assert desk.backend.open == 0


async def test_unsubscribing_waits_until_the_backend_has_time() -> None:
    gate = anyio.Event()

    async def answer(call: Call) -> Json:
        await gate.wait()
        return text("done")

    backend = notes(answers={"tools/call": answer})
    async with desk_of(backend, isolation="shared") as desk, anyio.create_task_group() as tasks:
        one = reader()
        await desk.subscribe(one)

        async def call() -> None:
            async with lease(desk.pool, desk.target, caller_of(BOB, "session:2")) as taken:
                await taken.request("tools/call", {"name": "echo"})

        tasks.start_soon(call)
        await backend.heard("tools/call")
        one.listener.end()
        await time_passes(20)
        assert backend.count("resources/unsubscribe") == 0
        gate.set()
        await backend.heard("resources/unsubscribe")


async def test_a_connection_that_is_left_to_its_last_call_is_left_by_subscriptions_at_once() -> None:
    """As of an HTTP wire that lost its session while a long call goes on: it takes nothing more, and is not over."""
    gate = anyio.Event()

    async def slow(call: Call) -> Json:
        await gate.wait()
        return text("done")

    async with desk_of(notes(answers={"tools/call": slow})) as desk, anyio.create_task_group() as tasks:
        one, me = reader(), caller_of(session="session:1")
        await desk.subscribe(one)
        first = desk.backend.wire

        async def long_call() -> None:
            async with lease(desk.pool, desk.target, me) as held:
                await held.request("tools/call", {"name": "echo"})

        async def turned_away(wire: object, message: Json) -> None:
            if wire is first:
                raise BackendUnavailable("fake", "ended our session.", not_sent=True)

        tasks.start_soon(long_call)
        await desk.backend.heard("tools/call")
        desk.backend.before_send = turned_away
        async with lease(desk.pool, desk.target, me) as held:
            await held.request("tools/list", {})
        await time_passes(5)
        assert desk.backend.count("resources/subscribe") == 2 and one.heard == [f"public:{URI}"]
        asked = len(desk.backend.wires)
        desk.subscriptions.unsubscribe(one.listener, URI)
        await time_passes(5)
        assert len(desk.backend.wires) == asked and all(not each.pins for each in desk.pool.connections())
        gate.set()
