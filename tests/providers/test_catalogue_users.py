"""Listings are kept apart by who asks; and a backend that lists too much, for ever, or nonsense costs nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from providers.catalogue import MAX_COMPONENTS, MAX_LIST_BYTES
from providers.identity import Identity
from tests.helpers.fakes import (
    ALICE,
    BOB,
    Call,
    FakeBackend,
    Json,
    Refusal,
    caller_of,
    declaring,
    held,
    modern_caller,
    no_waiting,
    settled,
    time_passes,
    tool,
)
from tests.helpers.shelf import by_user, names_of, shelf_of

pytestmark = pytest.mark.core

ALICE_1, ALICE_2 = caller_of(ALICE, "session:1"), caller_of(ALICE, "session:2")
BOB_1 = caller_of(BOB, "session:3")
OFFERS = {"alice": ["a"], "bob": ["b"]}


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


# ------------------------------------------------------------------------------------- by user


@pytest.mark.parametrize("isolation", ["session", "user", "shared", "call"])
async def test_what_is_offered_to_one_user_never_answers_another(isolation: str) -> None:
    backend = FakeBackend(answers={"tools/list": by_user(OFFERS)})
    async with shelf_of(backend, isolation=isolation) as shelf:
        for _ in range(3):
            assert await shelf.names(ALICE_1) == ["a"] and await shelf.names(BOB_1) == ["b"]
            assert await shelf.names(modern_caller(BOB)) == ["b"]
            await time_passes(301)
            await backend.wire.say("notifications/tools/list_changed")
            await time_passes(3)
        assert shelf.catalogue.peek(ALICE_2) is shelf.catalogue.peek(ALICE_1)


async def test_two_users_who_ask_at_once_are_asked_for_one_each() -> None:
    gate = anyio.Event()
    backend = FakeBackend(answers={"tools/list": by_user(OFFERS)}, before_open=held(gate))
    async with shelf_of(backend) as shelf, anyio.create_task_group() as tasks:
        got: dict[str, list[str]] = {}

        async def ask(caller: Any) -> None:
            got[caller.identity.user_id] = await shelf.names(caller)

        tasks.start_soon(ask, ALICE_1)
        tasks.start_soon(ask, BOB_1)
        await settled()
        gate.set()
        await backend.heard("tools/list", 2)
        await settled()
        assert got == OFFERS


async def test_other_roles_or_another_issuer_are_another_listing() -> None:
    async def by_roles(call: Call) -> Json:
        return {"tools": [tool("-".join(call.meta["dev.apollos/identity"]["roles"]))]}

    async with shelf_of(FakeBackend(answers={"tools/list": by_roles})) as shelf:
        for number, roles in enumerate((("boss",), ("boss", "dev"), ("boss,dev",), ())):
            identity = Identity("alice", "Alice", frozenset(roles), "issuer")
            assert await shelf.names(caller_of(identity, f"session:{number}")) == ["-".join(sorted(roles))]


async def test_what_the_client_can_be_asked_may_make_another_listing_too() -> None:
    async def by_capabilities(call: Call) -> Json:
        declared = call.wire.received[0]["params"]["capabilities"]
        return {"tools": [tool("with-roots" if "roots" in declared else "without")]}

    async with shelf_of(FakeBackend(answers={"tools/list": by_capabilities})) as shelf:
        assert await shelf.names(ALICE_1) == ["without"]
        assert await shelf.names(caller_of(ALICE, "session:9", capabilities=declaring("roots"))) == ["with-roots"]


# ---------------------------------------------------------------------------------- by session


async def test_a_session_whose_backend_changes_its_lists_has_a_listing_of_its_own() -> None:
    backend = FakeBackend()
    async with shelf_of(backend) as shelf:
        for caller in (ALICE_1, ALICE_2):
            await shelf.names(caller)
        await time_passes(10)

        async def changed(call: Call) -> Json:
            return {"tools": [tool("mine" if call.wire is backend.wires[0] else "echo")]}

        backend.answers["tools/list"] = changed
        await backend.wires[0].say("notifications/tools/list_changed")
        await settled()
        assert await shelf.names(ALICE_1) == ["mine"] and await shelf.names(ALICE_2) == ["echo"]
        await shelf.end_session(ALICE_1.session)
        await settled()
        assert await shelf.names(ALICE_2) == ["echo"] and repr(shelf.catalogue) == "<Catalogue fake 1 scopes>"


@pytest.mark.parametrize(("isolation", "told"), [("shared", ["alice", "bob"]), ("user", ["alice"])])
async def test_a_change_of_a_connection_that_many_share_is_news_to_all_of_them(isolation: str, told: list[str]) -> None:
    backend = FakeBackend(answers={"tools/list": by_user(OFFERS)})
    async with shelf_of(backend, isolation=isolation) as shelf:
        for caller in (ALICE_1, ALICE_2, BOB_1):
            await shelf.names(caller)
        await time_passes(10)
        backend.answers["tools/list"] = by_user({"alice": ["a2"], "bob": ["b2"]})
        await backend.wires[0].say("notifications/tools/list_changed")
        await settled()
        assert await shelf.names(ALICE_2) == ["a2"]
        assert sorted(user for _, user in shelf.announced) == told


async def test_for_a_session_that_has_ended_nothing_is_asked_any_more() -> None:
    backend = FakeBackend()
    async with shelf_of(backend) as shelf:
        known = await shelf.catalogue.get(ALICE_1)
        await shelf.end_session(ALICE_1.session)
        await settled()
        opened = len(backend.wires)
        await time_passes(2000)
        assert len(backend.wires) == opened and backend.open == 0
        assert await shelf.catalogue.get(ALICE_2) is known, "what is known still answers"
        await time_passes(5)
        assert len(backend.wires) == opened + 1, "and is renewed on behalf of who is there"


async def test_who_waited_for_what_another_session_asked_gets_it_although_that_one_left() -> None:
    gate = anyio.Event()
    backend = FakeBackend(before_open=held(gate))
    async with shelf_of(backend) as shelf, anyio.create_task_group() as tasks:
        tasks.start_soon(shelf.catalogue.get, ALICE_1)
        await settled()
        tasks.start_soon(shelf.catalogue.get, ALICE_2)
        await settled()
        await shelf.end_session(ALICE_1.session)
        gate.set()
        await time_passes(5)
        assert names_of(shelf.catalogue.peek(ALICE_2)) == ["echo"]


async def test_that_a_client_has_gone_is_no_reason_for_the_next_one() -> None:
    gate = anyio.Event()
    async with shelf_of(FakeBackend(before_open=held(gate))) as shelf, anyio.create_task_group() as tasks:
        tasks.start_soon(shelf.catalogue.get, ALICE_1)
        await settled()
        await shelf.end_session(ALICE_1.session)
        await settled()
        assert shelf.catalogue.error(ALICE_2) is None
        gate.set()
        assert await shelf.names(ALICE_2) == ["echo"]


async def test_of_a_crowd_of_users_not_all_are_remembered_for_ever() -> None:
    async with shelf_of(FakeBackend(), isolation="shared") as shelf:
        for number in range(1100):
            await shelf.names(modern_caller(Identity(f"user-{number}", "x")))
        assert repr(shelf.catalogue) == "<Catalogue fake 1000 scopes>"
        assert shelf.catalogue.peek(modern_caller(Identity("user-0", "x"))) is None
        assert shelf.catalogue.peek(modern_caller(Identity("user-1099", "x"))) is not None


# ------------------------------------------------------------------------------------- pages


def pages(*each: list[Json], then: Any = None) -> Any:
    """An answer in pages; `then` is the cursor of the last one."""

    async def answer(call: Call) -> Json:
        number = int(call.params.get("cursor", 0))
        following = str(number + 1) if number + 1 < len(each) else then
        return {"tools": each[number]} | ({} if following is None else {"nextCursor": following})

    return answer


async def listed(answer: Any, **timeouts: float) -> tuple[list[str], FakeBackend]:
    backend = FakeBackend(answers={"tools/list": answer})
    async with shelf_of(backend, timeouts=timeouts) as shelf:
        return await shelf.names(ALICE_1), backend


async def test_all_pages_are_read_in_order() -> None:
    names, backend = await listed(pages([tool("a"), tool("b")], [], [tool("c")]))
    assert names == ["a", "b", "c"] and backend.count("tools/list") == 3


@pytest.mark.parametrize("cursor", ["0", "1", ""])
async def test_pages_that_go_round_in_a_circle_end(cursor: str) -> None:
    names, backend = await listed(pages([tool("a")], [tool("b")], then=cursor))
    assert set(names) == {"a", "b"} and backend.count("tools/list") <= 4


async def test_pages_without_end_end() -> None:
    async def answer(call: Call) -> Json:
        number = int(call.params.get("cursor", 0))
        return {"tools": [tool(f"t{number}")], "nextCursor": str(number + 1)}

    names, backend = await listed(answer)
    assert 50 <= len(names) <= MAX_COMPONENTS and backend.count("tools/list") <= 1000


async def test_many_slow_pages_have_one_deadline_together() -> None:
    async def answer(call: Call) -> Json:
        await time_passes(4)
        number = int(call.params.get("cursor", 0))
        return {"tools": [tool(f"t{number}")], "nextCursor": str(number + 1)}

    backend = FakeBackend(answers={"tools/list": answer})
    async with shelf_of(backend, timeouts={"initialize": 10}) as shelf:
        began = anyio.current_time()
        assert await shelf.catalogue.get(ALICE_1) is None
        assert anyio.current_time() - began == pytest.approx(10)
        error = shelf.catalogue.error(ALICE_1)
        assert error is not None and "tools/list" in str(error)


async def test_of_too_many_components_the_rest_is_left_out_and_that_is_told(caplog: pytest.LogCaptureFixture) -> None:
    names, _ = await listed(pages([tool(f"t{number}") for number in range(MAX_COMPONENTS + 10)]))
    assert len(names) == MAX_COMPONENTS and "server 'fake' offers more tools than 5000" in caplog.text


async def test_of_too_large_components_the_rest_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    large = [tool(f"t{number}", description="x" * 100_000) for number in range(10)]
    names, _ = await listed(pages([*large, tool("small")]))
    assert len(names) * 100_000 < MAX_LIST_BYTES + 100_000 and "small" in names
    assert "the rest is left out" in caplog.text


async def test_a_list_that_is_declared_and_refused_is_an_empty_one() -> None:
    async def refuses(call: Call) -> Json:
        raise Refusal(-32601, "Method not found")

    backend = FakeBackend(answers={"prompts/list": refuses}, capabilities={"tools": {}, "prompts": {}})
    async with shelf_of(backend) as shelf:
        listing = await shelf.catalogue.get(ALICE_1)
        assert listing is not None and listing.prompts == () and names_of(listing) == ["echo"]
        assert shelf.catalogue.error(ALICE_1) is None


@pytest.mark.parametrize(
    "result",
    [
        {"tools": None},
        {"tools": 5},
        {"tools": {"a": 1}},
        {"tools": [None, 5, "x", []]},
        {"tools": [{}]},
        {"tools": [{"name": 5, "inputSchema": {}}]},
        {"tools": [{"name": "a"}]},
        {"tools": [tool("a", inputSchema=5)]},
        {"tools": [tool("a", _meta=[1])]},
        {"tools": [tool("a", description={"a": 1})]},
        {"tools": [tool("a", description="half \ud800 character")]},
        {"tools": [tool("\ud800")]},
        {"tools": [], "nextCursor": 5},
        {"tools": [], "nextCursor": {"a": 1}},
        {},
        {"unheard": "of"},
    ],
    ids=ascii,
)
async def test_nonsense_in_a_list_is_left_out_and_the_next_good_answer_counts(result: Json) -> None:
    async def answer(call: Call) -> Json:
        return result

    backend = FakeBackend(answers={"tools/list": answer})
    async with shelf_of(backend) as shelf:
        listing = await shelf.catalogue.get(ALICE_1)
        assert listing is None or names_of(listing) == []
        del backend.answers["tools/list"]
        await time_passes(400)
        assert await shelf.names(ALICE_1) == ["echo"]


async def test_one_wrong_component_does_not_cost_the_others() -> None:
    """On 4.x the SDK refuses the whole answer; then the server has an error, and only it."""

    async def answer(call: Call) -> Json:
        return {"tools": [tool("good"), {"name": "bad"}]}

    async with shelf_of(FakeBackend(answers={"tools/list": answer})) as shelf:
        listing = await shelf.catalogue.get(ALICE_1)
        if listing is None:
            assert "not what MCP prescribes" in str(shelf.catalogue.error(ALICE_1))
        else:
            assert names_of(listing) == ["good"]
