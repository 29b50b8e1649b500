"""Parked calls on their own: who may take one up, for how long, how many there may be, and that nothing is left."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest

from providers.caller import Caller, Front
from providers.errors import BackendUnavailable, CallerError, GatewayError, InternalError, ProtocolError
from providers.lines import Json, mcp_error
from providers.parking import Asked, CallState, ParkableCall, ParkingLot, PassedOn, is_parked_state
from tests.helpers.fakes import ALICE, BOB, declaring, modern_caller, no_waiting, settled, text, time_passes

ASKED = Asked("files", "tools/call", "echo", "{}")
CALLER = modern_caller(capabilities=declaring("elicitation", "roots"))
PARAMS: Json = {"name": "echo", "arguments": {}}


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


class Held:
    """A lease whose backend does what the test says; `front` is where it asks."""

    front: Any = None

    def __init__(self, work: Callable[[Held], Awaitable[Any]]) -> None:
        self._work = work
        self.sent: list[Json] = []
        self.was_cancelled = self.is_closed = False

    async def request(self, method: str, params: Json) -> Json:
        self.sent.append(params)
        try:
            result = await self._work(self)
        except anyio.get_cancelled_exc_class():
            self.was_cancelled = True
            raise
        return result if isinstance(result, dict) else text(str(result))

    def close(self) -> None:
        self.is_closed = True


async def asks(held: Held) -> Any:
    return await held.front.ask("roots/list", None)


@asynccontextmanager
async def lot_of(**limits: int) -> AsyncIterator[ParkingLot]:
    async with ParkingLot(**limits) as lot:
        yield lot


def begin(lot: ParkingLot, held: Any, caller: Caller = CALLER, asked: Asked = ASKED, patience: float = 300) -> Any:
    return lot.begin(held, Front(object(), caller), asked, patience)


async def parked(lot: ParkingLot, held: Held, **more: Any) -> tuple[ParkableCall, Json]:
    """A call that waits for its client, as its first request leaves it, and what that was answered with."""
    call = begin(lot, held, **more)
    answer = await call.request("tools/call", PARAMS)
    call.leave()
    assert answer["resultType"] == "input_required" and call.state is CallState.PARKED
    return call, answer


async def take_up(lot: ParkingLot, answer: Json, caller: Caller = CALLER, asked: Asked = ASKED) -> Json:
    """A retry with an answer to each question."""
    call = lot.claim(answer["requestState"], Front(object(), caller), asked)
    responses = {key: {"for": question["method"]} for key, question in answer["inputRequests"].items()}
    try:
        return await call.request("tools/call", PARAMS | {"inputResponses": responses, "requestState": "x"})
    finally:
        call.leave()


# --------------------------------------------------------------------------------------------- one call


async def test_a_call_is_parked_with_its_question_and_goes_on_with_the_answer() -> None:
    held = Held(asks)
    async with lot_of() as lot:
        _, answer = await parked(lot, held)
        assert list(answer["inputRequests"].values()) == [{"method": "roots/list"}] and not held.is_closed
        assert await take_up(lot, answer) == {"for": "roots/list"}
        await settled()
        assert held.is_closed and not held.was_cancelled and lot.parked == 0
    assert held.sent == [PARAMS]


async def test_a_call_that_asks_nothing_is_answered_at_once_with_its_result_or_error() -> None:
    async def says(held: Held) -> Any:
        return "done"

    async def refuses(held: Held) -> Any:
        raise mcp_error(-32000, "no")

    async def is_gone(held: Held) -> Any:
        raise BackendUnavailable("files", "has crashed.")

    async def is_our_fault(held: Held) -> Any:
        raise KeyError("x")

    async with lot_of() as lot:
        assert await begin(lot, Held(says)).request("tools/call", PARAMS) == text("done")
        for work, kind in ((refuses, type(mcp_error(1, ""))), (is_gone, BackendUnavailable)):
            with pytest.raises(kind):
                await begin(lot, Held(work)).request("tools/call", PARAMS)
        with pytest.raises(InternalError, match="files"):
            await begin(lot, Held(is_our_fault)).request("tools/call", PARAMS)


async def test_what_comes_out_while_nobody_waits_is_kept_for_the_retry() -> None:
    async def takes_it_back(held: Held) -> Any:
        with anyio.move_on_after(10):
            await asks(held)
        raise BackendUnavailable("files", "has crashed.")

    async with lot_of() as lot:
        held = Held(takes_it_back)
        _, answer = await parked(lot, held)
        await time_passes(20)
        assert held.is_closed and lot.parked == 1
        with pytest.raises(BackendUnavailable, match="has crashed"):
            await take_up(lot, answer)
        await settled()
        assert lot.parked == 0


async def test_a_question_that_is_taken_back_at_once_is_not_put() -> None:
    async def changes_its_mind(held: Held) -> Any:
        with anyio.move_on_after(0.01):
            await asks(held)
        return "done"

    async with lot_of() as lot:
        assert await begin(lot, Held(changes_its_mind)).request("tools/call", PARAMS) == text("done")


# ------------------------------------------------------------------------------------------------ whose


@pytest.mark.parametrize(
    ("caller", "asked"),
    [
        (replace(CALLER, identity=BOB), ASKED),
        (replace(CALLER, identity=replace(ALICE, roles=frozenset({"guest"}))), ASKED),
        (replace(CALLER, session="session:other"), ASKED),
        (CALLER, ASKED._replace(server="bank")),
        (CALLER, ASKED._replace(method="prompts/get")),
        (CALLER, ASKED._replace(target="other")),
        (CALLER, ASKED._replace(arguments='{"all": true}')),
    ],
    ids=["user", "roles", "session", "server", "method", "name", "arguments"],
)
async def test_what_does_not_fit_looks_unknown_and_leaves_the_call_alone(caller: Caller, asked: Asked) -> None:
    async with lot_of() as lot:
        _, answer = await parked(lot, Held(asks))
        with pytest.raises(ProtocolError) as stranger:
            await take_up(lot, answer, caller, asked)
        with pytest.raises(ProtocolError) as guess:
            await take_up(lot, answer | {"requestState": "parked:guess"})
        assert (stranger.value.code, str(stranger.value), stranger.value.data) == (
            guess.value.code,
            str(guess.value),
            guess.value.data,
        )
        assert await take_up(lot, answer) == {"for": "roots/list"}


async def test_a_state_is_good_once() -> None:
    async with lot_of() as lot:
        _, answer = await parked(lot, Held(asks))
        await take_up(lot, answer)
        with pytest.raises(ProtocolError):
            await take_up(lot, answer)


async def test_each_round_has_a_state_of_its_own() -> None:
    async def asks_twice(held: Held) -> Any:
        await asks(held)
        return await asks(held)

    async with lot_of() as lot:
        _, first = await parked(lot, Held(asks_twice))
        second = await take_up(lot, first)
        assert second["requestState"] != first["requestState"] and second["inputRequests"] != first["inputRequests"]
        with pytest.raises(ProtocolError):
            await take_up(lot, first)
        assert await take_up(lot, second) == {"for": "roots/list"}


# ------------------------------------------------------------------------------------ how long, how many


async def test_a_parked_call_ends_when_its_time_is_up_and_the_backend_hears_of_it() -> None:
    async with lot_of() as lot:
        held = Held(asks)
        _, answer = await parked(lot, held, patience=300)
        await time_passes(299)
        assert not held.was_cancelled
        await time_passes(2)
        assert held.was_cancelled and held.is_closed and lot.parked == 0
        with pytest.raises(ProtocolError):
            await take_up(lot, answer)


async def test_a_call_that_goes_on_again_has_no_such_limit() -> None:
    async def asks_and_works(held: Held) -> Any:
        await asks(held)
        await anyio.sleep(1000)
        return "done"

    async with lot_of() as lot:
        _, answer = await parked(lot, Held(asks_and_works), patience=300)
        assert await take_up(lot, answer) == text("done")


async def test_there_is_a_limit_for_each_user_and_one_for_all() -> None:
    bob = replace(CALLER, identity=BOB, session=f"user:{BOB.key}")
    carol = replace(CALLER, identity=replace(BOB, user_id="carol"), session="user:carol")
    async with lot_of(most=3, most_per_user=2) as lot:
        _, first = await parked(lot, Held(asks))
        await parked(lot, Held(asks))
        await parked(lot, Held(asks), caller=bob)
        for caller, told in ((CALLER, "2 calls of yours wait"), (carol, "3 calls of all users wait")):
            held = Held(asks)
            call = begin(lot, held, caller)
            with pytest.raises(CallerError, match=told):
                await call.request("tools/call", PARAMS)
            call.leave()
            await settled()
            assert held.was_cancelled and held.is_closed
        await take_up(lot, first)
        await parked(lot, Held(asks), caller=bob)
        assert lot.parked == 3


async def test_a_request_that_is_dropped_takes_its_call_along() -> None:
    async with lot_of() as lot:
        held = Held(lambda held: anyio.sleep_forever())
        call = begin(lot, held)
        with anyio.move_on_after(1):
            try:
                await call.request("tools/call", PARAMS)
            finally:
                call.leave()
        await settled()
        assert held.was_cancelled and held.is_closed and "0 calls" in repr(lot)


async def test_a_call_that_never_began_gives_its_lease_back() -> None:
    async with lot_of() as lot:
        held = Held(asks)
        begin(lot, held).leave()
        assert held.is_closed and held.sent == []


async def test_a_retry_that_came_to_nothing_ends_the_call() -> None:
    async with lot_of() as lot:
        held = Held(asks)
        _, answer = await parked(lot, held)
        lot.claim(answer["requestState"], Front(object(), CALLER), ASKED).leave()
        await settled()
        assert held.was_cancelled and lot.parked == 0


@pytest.mark.parametrize("end", ["server", "drain", "close"])
async def test_what_is_parked_ends_with_its_server_and_with_the_gateway(end: str) -> None:
    held, elsewhere = Held(asks), Held(asks)
    async with lot_of() as lot:
        await parked(lot, held)
        await parked(lot, elsewhere, asked=ASKED._replace(server="other"))
        if end != "close":
            lot.review(lambda server, _: server != "files") if end == "server" else lot.drain()
            await settled()
            assert held.was_cancelled and elsewhere.was_cancelled is (end == "drain")
    assert held.was_cancelled and elsewhere.was_cancelled and held.is_closed


async def test_while_the_gateway_drains_nobody_is_asked() -> None:
    asked = anyio.Event()

    async def finds_out(held: Held) -> Any:
        await asked.wait()
        return held.front.refusal("roots/list", {}) or "may ask"

    async with lot_of() as lot, anyio.create_task_group() as tasks:
        call, answers = begin(lot, Held(finds_out)), list[Json]()

        async def request() -> None:
            answers.append(await call.request("tools/call", PARAMS))

        tasks.start_soon(request)
        await settled()
        lot.drain()
        asked.set()
        await settled()
        assert answers[0]["code"] == -32601 and not lot.is_open


# ----------------------------------------------------------------------------------- states of backends


async def test_a_backends_own_state_is_never_taken_for_one_of_ours() -> None:
    seen: list[Json] = []

    class Modern:
        front = None

        async def request(self, method: str, params: Json) -> Json:
            seen.append(params)
            return {"resultType": "input_required", "requestState": "parked:mine"}

        def close(self) -> None: ...

    way = PassedOn(Modern())
    answer = await way.request("tools/call", PARAMS)
    assert not is_parked_state(answer["requestState"])
    await way.request("tools/call", PARAMS | {"requestState": answer["requestState"]})
    assert seen[1]["requestState"] == "parked:mine"
    with pytest.raises(GatewayError):
        await way.request("tools/call", PARAMS | {"requestState": "parked:mine"})
