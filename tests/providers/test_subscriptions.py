"""Subscriptions of one server: who hears what, one at the backend for many clients, refusals."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from providers.errors import BackendError, BackendUnavailable, CallerError
from providers.lease import lease
from providers.lines import MCPError, error_data
from providers.listener import MAX_SUBSCRIPTIONS
from tests.helpers.fakes import (
    BOB,
    Call,
    FakeBackend,
    Json,
    Refusal,
    caller_of,
    fails,
    no_waiting,
    settled,
)
from tests.helpers.subscribers import OTHER, URI, desk_of, notes, reader

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


# ------------------------------------------------------------------------------------------------ who hears what


async def test_the_subscriber_hears_under_the_public_uri_and_nobody_else() -> None:
    async with desk_of(notes(), isolation="shared") as desk:
        one, other = reader(), reader(BOB, "session:2")
        await desk.subscribe(one)
        await desk.subscribe(other, uri=OTHER)
        await desk.tell()
        assert (one.heard, other.heard) == ([f"public:{URI}"], [])


async def test_what_came_with_the_notification_is_kept() -> None:
    async with desk_of(notes()) as desk:
        one = reader()
        await desk.subscribe(one)
        await desk.tell(_meta={"why": "edited"}, title="x")
        [params] = one.listener.mailbox._waiting.values()
        assert params == {"uri": f"public:{URI}", "_meta": {"why": "edited"}, "title": "x"}


@pytest.mark.parametrize(
    ("told", "is_heard"),
    [(f"{URI}/part", True), (f"{URI}/", True), (f"{URI}#3", True), (f"{URI}?v=2", True), (f"{URI}-two", False)],
)
async def test_an_update_of_a_part_concerns_who_subscribed_to_the_whole(told: str, is_heard: bool) -> None:
    async with desk_of(notes()) as desk:
        one = reader()
        await desk.subscribe(one)
        await desk.tell(told)
        assert one.heard == ([f"public:{told}"] if is_heard else [])


async def test_two_sessions_with_backends_of_their_own_hear_of_their_own_alone() -> None:
    async with desk_of(notes()) as desk:
        one, other = reader(), reader(session="session:2")
        await desk.subscribe(one, other)
        assert len(desk.backend.wires) == 2
        await desk.tell()
        assert (one.heard, other.heard) == ([], [f"public:{URI}"])


async def test_who_may_not_read_the_server_any_more_hears_nothing_at_once() -> None:
    async with desk_of(notes(), isolation="shared") as desk:
        one, bob = reader(), reader(BOB, "session:2")
        await desk.subscribe(one, bob)
        desk.hidden_from.add("bob")
        await desk.tell()
        assert (one.heard, bob.heard) == ([f"public:{URI}"], [])
        desk.subscriptions.review()
        desk.hidden_from.clear()
        await desk.tell()
        assert (one.heard, bob.heard) == ([f"public:{URI}"], [])


# ----------------------------------------------------------------------------------------- one at the backend for many


async def test_the_backend_is_asked_once_and_told_when_the_last_one_leaves() -> None:
    async with desk_of(notes(), isolation="shared") as desk:
        readers = [reader(session=f"session:{number}") for number in range(5)]
        async with anyio.create_task_group() as tasks:
            for each in readers:
                tasks.start_soon(desk.subscribe, each)
        assert desk.asked == [f"subscribe {URI}"]
        for each in readers[:-1]:
            desk.subscriptions.unsubscribe(each.listener, URI)
        await settled()
        assert desk.asked == [f"subscribe {URI}"]
        readers[-1].listener.end()
        await desk.backend.heard("resources/unsubscribe")
        assert desk.asked == [f"subscribe {URI}", f"unsubscribe {URI}"]
        await settled()
        assert [connection.pins for connection in desk.pool.connections()] == [0]
        assert repr(desk.subscriptions) == "<Subscriptions fake 0 channels>"


async def test_subscribing_twice_is_once() -> None:
    async with desk_of(notes()) as desk:
        one = reader()
        await desk.subscribe(one, one)
        assert desk.asked == [f"subscribe {URI}"]
        await desk.tell()
        assert one.heard == [f"public:{URI}"]


async def test_a_call_goes_on_beside_a_subscription() -> None:
    async with desk_of(notes(), isolation="shared") as desk:
        await desk.subscribe(reader())
        async with lease(desk.pool, desk.target, caller_of(BOB, "session:2")) as taken:
            await taken.request("ping", {})
        assert len(desk.backend.wires) == 1


# ------------------------------------------------------------------------------------------------------ refusals


async def test_a_refusal_reaches_the_client_word_for_word_and_leaves_nothing_behind() -> None:
    async def refuse(call: Call) -> Json:
        raise Refusal(-32002, "no such note")

    async with desk_of(notes(answers={"resources/subscribe": refuse}), isolation="shared") as desk:
        for _ in range(2):
            with pytest.raises(MCPError) as raised:
                await desk.subscribe(reader())
            assert error_data(raised.value) == {"code": -32002, "message": "no such note"}
        await settled()
        assert len(desk.asked) == 2
        assert repr(desk.subscriptions) == "<Subscriptions fake 0 channels>"


async def test_a_server_that_knows_no_subscriptions_but_has_resources_is_heard_all_the_same() -> None:
    backend = FakeBackend(capabilities={"resources": {}})
    async with desk_of(backend) as desk:
        one = reader()
        await desk.subscribe(one)
        assert [connection.pins for connection in desk.pool.connections()] == [0]
        await desk.tell()
        assert one.heard == [f"public:{URI}"]


async def test_a_server_without_resources_answers_as_it_would_directly() -> None:
    async with desk_of(FakeBackend()) as desk:
        with pytest.raises(MCPError, match="no method"):
            await desk.subscribe(reader())


async def test_a_server_that_cannot_be_reached_says_so() -> None:
    backend = notes(before_open=fails(BackendUnavailable("fake", "is not there.")))
    async with desk_of(backend) as desk:
        with pytest.raises(BackendError, match="is not there"):
            await desk.subscribe(reader())
        await settled()
        assert repr(desk.subscriptions) == "<Subscriptions fake 0 channels>"


async def test_a_server_that_keeps_nothing_is_not_subscribed_to() -> None:
    async with desk_of(notes(), isolation="call") as desk:
        with pytest.raises(CallerError, match="keeps nothing"):
            await desk.subscribe(reader())


async def test_there_is_a_limit_for_each_session() -> None:
    async with desk_of(notes()) as desk:
        one = reader()
        for number in range(MAX_SUBSCRIPTIONS):
            one.listener.begin("another", str(number), lambda: None)
        with pytest.raises(CallerError, match="1,000 resources"):
            await desk.subscribe(one)
        one.listener.done("another", "0")
        await desk.subscribe(one)


async def test_who_gives_up_is_not_subscribed() -> None:
    gate = anyio.Event()

    async def answer(call: Call) -> Json:
        await gate.wait()
        return {}

    async with desk_of(notes(answers={"resources/subscribe": answer}), isolation="shared") as desk:
        with anyio.move_on_after(1):
            await desk.subscribe(reader())
        gate.set()
        await desk.backend.heard("resources/unsubscribe")
        await settled()
        assert repr(desk.subscriptions) == "<Subscriptions fake 0 channels>"
