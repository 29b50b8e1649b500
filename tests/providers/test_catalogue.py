"""What backends offer, held in memory: asked for once, answered at once, renewed when it changes or is gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from providers import catalogue as module
from providers.catalogue import Listing
from providers.errors import BackendProtocolError, BackendUnavailable
from providers.lease import lease
from tests.helpers.fakes import (
    ALICE,
    BOB,
    Call,
    FakeBackend,
    Json,
    caller_of,
    fails,
    held,
    modern_caller,
    never,
    no_waiting,
    settled,
    time_passes,
    tool,
)
from tests.helpers.shelf import by_user, names_of, shelf_of

pytestmark = pytest.mark.core

ALICE_1, ALICE_2 = caller_of(ALICE, "session:1"), caller_of(ALICE, "session:2")
BOB_1 = caller_of(BOB, "session:3")


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


# --------------------------------------------------------------------------------- asked for once


async def test_what_a_backend_offers_is_asked_for_once_and_then_known() -> None:
    backend = FakeBackend(capabilities={"tools": {}, "resources": {}, "prompts": {}})
    async with shelf_of(backend) as shelf:
        assert shelf.catalogue.peek(ALICE_1) is None
        first = await shelf.catalogue.get(ALICE_1)
        assert names_of(first) == ["echo"] and shelf.catalogue.peek(ALICE_1) is first
        assert await shelf.catalogue.get(ALICE_2) is first
        for method in ("tools/list", "resources/list", "resources/templates/list", "prompts/list"):
            assert backend.count(method) == 1
        assert repr(shelf.catalogue) == "<Catalogue fake 1 scopes>"


async def test_what_is_not_declared_is_not_asked_for() -> None:
    backend = FakeBackend(capabilities={"tools": {}})
    async with shelf_of(backend) as shelf:
        listing = await shelf.catalogue.get(ALICE_1)
    assert listing is not None and listing.prompts == () and backend.count("prompts/list") == 0


async def test_fifty_who_ask_at_once_are_answered_by_one_request() -> None:
    gate = anyio.Event()
    backend = FakeBackend(before_open=held(gate))
    async with shelf_of(backend) as shelf:
        got: list[Listing | None] = []

        async def ask() -> None:
            got.append(await shelf.catalogue.get(ALICE_1))

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(ask)
            await settled()
            gate.set()
    assert backend.count("tools/list") == 1 and len(set(map(id, got))) == 1


async def test_who_is_patient_for_a_moment_waits_no_longer_and_hears_when_it_comes() -> None:
    gate = anyio.Event()
    backend = FakeBackend(before_open=held(gate))
    async with shelf_of(backend) as shelf:
        began = anyio.current_time()
        assert await shelf.catalogue.get(ALICE_1, patience=2) is None
        assert anyio.current_time() - began == pytest.approx(2)
        gate.set()
        await backend.heard("tools/list")
        await settled()
        assert names_of(shelf.catalogue.peek(ALICE_1)) == ["echo"]
        assert shelf.announced == [({"tools", "resources", "prompts"}, "alice")]


async def test_who_got_an_answer_is_told_of_no_change() -> None:
    async with shelf_of(FakeBackend()) as shelf:
        await shelf.names(ALICE_1)
        await settled()
    assert shelf.announced == []


async def test_who_leaves_does_not_end_the_request_for_the_others() -> None:
    gate = anyio.Event()
    backend = FakeBackend(before_open=held(gate))
    async with shelf_of(backend) as shelf, anyio.create_task_group() as tasks:
        with anyio.move_on_after(1):
            tasks.start_soon(shelf.names, ALICE_2)
            await shelf.names(ALICE_1)
        gate.set()


# ---------------------------------------------------------------------------------------- renewed


async def test_after_a_while_it_is_asked_for_again_while_the_known_one_answers() -> None:
    backend = FakeBackend()
    async with shelf_of(backend) as shelf:
        before = await shelf.catalogue.get(ALICE_1)
        backend.answers["tools/list"] = never
        await time_passes(302)
        began = anyio.current_time()
        assert await shelf.catalogue.get(ALICE_1) is before and anyio.current_time() == began
        assert backend.count("tools/list") == 2
        backend.answers["tools/list"] = by_user({"alice": ["new"]})
        await time_passes(30)
        assert await shelf.names(ALICE_1) == ["new"] and shelf.announced == [({"tools"}, "alice")]


async def test_equal_listings_are_one_object_and_no_news() -> None:
    async with shelf_of(FakeBackend()) as shelf:
        first = await shelf.catalogue.get(ALICE_1)
        assert await shelf.catalogue.get(BOB_1) is first
        await time_passes(302)
        assert shelf.backend.count("tools/list") >= 3 and await shelf.catalogue.get(ALICE_1) is first
    assert shelf.announced == []


async def test_what_a_server_says_of_itself_is_renewed_too() -> None:
    backend = FakeBackend(instructions="old")
    async with shelf_of(backend) as shelf:
        await shelf.names(ALICE_1)
        backend.instructions = "new"
        await time_passes(10)
        shelf.next_generation()
        await settled()
        known = shelf.catalogue.known_to(ALICE)
        assert known is not None and known.facts["instructions"] == "new" and shelf.announced == []
        assert shelf.catalogue.known_to(BOB) is None, "it may speak of the user"


@pytest.mark.parametrize("kind", ["tools", "prompts", "resources", "templates"])
async def test_only_what_changed_is_announced(kind: str) -> None:
    keys = {"tools": "tools", "prompts": "prompts", "resources": "resources", "templates": "resourceTemplates"}
    more = {"resources": {"uri": "data://x"}, "templates": {"uriTemplate": "data://{x}"}, "tools": tool("x")}

    async def answer(call: Call) -> Json:
        return {keys[kind]: [{"name": "x", **more.get(kind, {})}]}

    backend = FakeBackend(capabilities={"tools": {}, "resources": {}, "prompts": {}})
    async with shelf_of(backend) as shelf:
        await shelf.names(ALICE_1)
        await time_passes(10)
        backend.answers["resources/templates/list" if kind == "templates" else f"{kind}/list"] = answer
        await backend.wire.say("notifications/tools/list_changed")
        await settled()
    assert shelf.announced == [({"resources" if kind == "templates" else kind}, "alice")]


async def test_a_backend_that_says_list_changed_is_asked_again() -> None:
    backend = FakeBackend()
    async with shelf_of(backend) as shelf:
        await shelf.names(ALICE_1)
        await time_passes(10)
        backend.tools = [tool("new")]
        await backend.wire.say("notifications/tools/list_changed")
        await settled()
        assert await shelf.names(ALICE_1) == ["new"] and shelf.announced == [({"tools"}, "alice")]


async def test_a_change_during_the_asking_is_not_lost() -> None:
    backend = FakeBackend()

    async def changes_meanwhile(call: Call) -> Json:
        listed = {"tools": list(backend.tools)}
        if backend.count("tools/list") == 1:
            backend.tools = [tool("new")]
            await call.wire.say("notifications/tools/list_changed")
        return listed

    backend.answers["tools/list"] = changes_meanwhile
    async with shelf_of(backend) as shelf:
        await shelf.names(ALICE_1)
        await time_passes(2)
        assert await shelf.names(ALICE_1) == ["new"]


async def test_a_flood_of_changes_does_not_become_a_flood_of_requests() -> None:
    backend = FakeBackend()
    async with shelf_of(backend) as shelf:
        await shelf.names(ALICE_1)
        backend.answers["tools/list"] = held(anyio.Event())
        for _ in range(1000):
            await backend.wire.say("notifications/tools/list_changed")
            await anyio.sleep(0.01)
        assert backend.count("tools/list") == 2
        del backend.answers["tools/list"]
        await time_passes(20)
        for _ in range(1000):
            await backend.wire.say("notifications/tools/list_changed")
            await anyio.sleep(0.01)
        assert backend.count("tools/list") < 20


async def test_a_new_generation_is_asked_for_all_and_the_known_answers_meanwhile() -> None:
    backend = FakeBackend(answers={"tools/list": by_user({"alice": ["a"], "bob": ["b"]})})
    async with shelf_of(backend) as shelf:
        for caller in (ALICE_1, BOB_1):
            await shelf.names(caller)
        backend.answers["tools/list"] = by_user({"alice": ["a2"], "bob": ["b2"]})
        await time_passes(10)
        shelf.next_generation()
        assert await shelf.names(ALICE_1) == ["a"]
        await settled()
        assert [await shelf.names(caller) for caller in (ALICE_1, BOB_1)] == [["a2"], ["b2"]]


async def test_after_a_crash_it_is_asked_for_again_with_the_next_connection() -> None:
    backend = FakeBackend()
    async with shelf_of(backend) as shelf:
        await shelf.names(ALICE_1)
        backend.tools = [tool("upgraded")]
        await time_passes(10)
        backend.wire.die()
        await settled()
        async with lease(shelf.pool, shelf.target, ALICE_1):
            pass
        await settled()
        assert await shelf.names(ALICE_1) == ["upgraded"]


# ------------------------------------------------------------------------------------ a backend gone


async def test_of_a_backend_that_is_gone_the_last_known_stands() -> None:
    backend = FakeBackend()
    async with shelf_of(backend) as shelf:
        known = await shelf.catalogue.get(ALICE_1)
        backend.before_open = fails(BackendUnavailable("fake", "is down."))
        backend.wire.die()
        await time_passes(400)
        began = anyio.current_time()
        assert await shelf.catalogue.get(ALICE_1) is known and anyio.current_time() == began
    assert shelf.announced == []


async def test_of_one_that_never_came_up_there_is_an_error_and_nobody_waits_again() -> None:
    backend = FakeBackend(before_open=fails(BackendUnavailable("fake", "is down.")))
    async with shelf_of(backend) as shelf:
        assert await shelf.catalogue.get(ALICE_1) is None
        error = shelf.catalogue.error(ALICE_1)
        assert error is not None and error.problem == "is down."
        await time_passes(20)
        attempts, began = backend.attempts, anyio.current_time()
        for _ in range(100):
            assert await shelf.catalogue.get(ALICE_1) is None
        assert anyio.current_time() == began and backend.attempts - attempts <= 1


async def test_one_that_comes_up_later_is_found_and_announced() -> None:
    backend = FakeBackend(before_open=fails(BackendUnavailable("fake", "is down.")))
    async with shelf_of(backend) as shelf:
        assert await shelf.catalogue.get(ALICE_1) is None
        await time_passes(60)
        backend.before_open = None
        await time_passes(40)
        assert names_of(shelf.catalogue.peek(ALICE_1)) == ["echo"]
        assert shelf.announced == [({"tools", "resources", "prompts"}, "alice")]


async def test_a_hung_list_ends_at_its_deadline_and_the_last_known_stands() -> None:
    backend = FakeBackend()
    async with shelf_of(backend, timeouts={"initialize": 10}) as shelf:
        known = await shelf.catalogue.get(ALICE_1)
        backend.answers["tools/list"] = never
        await backend.wire.say("notifications/tools/list_changed")
        await time_passes(12)
        assert await shelf.catalogue.get(ALICE_1) is known
        error = shelf.catalogue.error(ALICE_1)
        assert error is not None and "did not finish 'tools/list' within 10 s" in str(error)


async def test_a_fault_of_our_own_in_reading_one_server_ends_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> Listing:
        raise TypeError("a fault of ours")

    async with shelf_of(FakeBackend()) as shelf:
        monkeypatch.setattr(module, "_fetch", broken)
        assert await shelf.catalogue.get(ALICE_1) is None
        assert isinstance(shelf.catalogue.error(ALICE_1), BackendProtocolError)
        monkeypatch.undo()
        await time_passes(60)
        assert await shelf.names(ALICE_1) == ["echo"]


# --------------------------------------------------------------------------------------- modern


async def test_a_caller_without_a_session_has_a_listing_too() -> None:
    async with shelf_of(FakeBackend(answers={"tools/list": by_user({"alice": ["a"]})})) as shelf:
        assert await shelf.names(modern_caller()) == ["a"]
