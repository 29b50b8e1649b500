"""A listener: what waits for one client, in what order, and what happens when it does not read."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from providers.caller import ClientSessions
from providers.errors import CallerError
from providers.lines import Json
from providers.listener import MAX_STREAMS, MAX_WAITING, Listener, Listeners, Mailbox
from tests.helpers.fakes import ALICE, BOB, caller_of, modern_caller, no_waiting, settled

pytestmark = pytest.mark.core

TOOLS, PROMPTS = "notifications/tools/list_changed", "notifications/prompts/list_changed"


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


async def all_of(mailbox: Mailbox) -> list[tuple[str, Json]]:
    mailbox.close()
    return [told async for told in mailbox]


async def test_what_waits_comes_in_order_and_equal_news_come_once_as_they_were_told_last() -> None:
    mailbox = Mailbox()
    for number in range(3):
        mailbox.put("updated", {"uri": "a", "_meta": {"n": number}})
        mailbox.put("updated", {"uri": "b"})
    assert await all_of(mailbox) == [("updated", {"uri": "a", "_meta": {"n": 2}}), ("updated", {"uri": "b"})]


async def test_who_reads_gets_each_of_them() -> None:
    mailbox, heard = Mailbox(), list[Json]()

    async def read() -> None:
        async for _, params in mailbox:
            heard.append(params)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        for number in range(3):
            mailbox.put("updated", {"uri": "a", "_meta": {"n": number}})
            await settled()
        mailbox.close()
    assert [params["_meta"]["n"] for params in heard] == [0, 1, 2]


@pytest.mark.parametrize("is_modern", [True, False])
async def test_a_client_that_does_not_read_costs_a_bounded_amount(is_modern: bool) -> None:
    """The stream of a modern client ends, so that it comes back and asks anew; the session of another goes on."""
    caller = modern_caller() if is_modern else caller_of()
    listener = Listener(caller, lambda: ALICE)
    for number in range(MAX_WAITING + 10):
        listener.tell("updated", {"uri": str(number)})
    assert len(listener.mailbox) == MAX_WAITING
    assert listener.mailbox.put("updated", {"uri": "0"}) is not is_modern


async def test_streams_hear_of_the_lists_that_they_asked_for_as_their_user_may() -> None:
    listeners = Listeners(ClientSessions())
    with (
        listeners.stream(modern_caller(ALICE), frozenset({TOOLS})) as alice,
        listeners.stream(modern_caller(BOB), frozenset({TOOLS, PROMPTS})) as bob,
    ):
        listeners.announce(lambda identity, _: [TOOLS, PROMPTS] if identity is ALICE else [PROMPTS])
        assert await all_of(alice.mailbox) == [(TOOLS, {})]
        assert await all_of(bob.mailbox) == [(PROMPTS, {})]


async def test_one_user_may_not_have_all_the_streams() -> None:
    listeners = Listeners(ClientSessions())
    opened = [listeners.stream(modern_caller(ALICE), frozenset()) for _ in range(MAX_STREAMS)]
    for stream in opened:
        stream.__enter__()
    with pytest.raises(CallerError, match="100 streams"), listeners.stream(modern_caller(ALICE), frozenset()):
        pass
    with listeners.stream(modern_caller(BOB), frozenset()):
        pass
    opened[0].__exit__(None, None, None)
    with listeners.stream(modern_caller(ALICE), frozenset()):
        pass


async def test_a_client_that_has_gone_ends_its_subscriptions_and_begins_no_more() -> None:
    listener, ended = Listener(caller_of(), lambda: ALICE), list[str]()
    for uri in ("a", "b"):
        listener.begin("server", uri, lambda uri=uri: ended.append(uri))  # type: ignore[misc]
    listener.done("server", "a")
    listener.end()
    assert ended == ["b"]
    with pytest.raises(CallerError, match="has ended"):
        listener.begin("server", "c", lambda: None)
