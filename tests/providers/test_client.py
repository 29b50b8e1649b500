"""How a session with a backend is opened: eras, deadlines, and an error that says what went wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from providers.capabilities import Capabilities
from providers.client import open_session
from providers.errors import BackendError, BackendProtocolError, BackendTimeout, BackendUnavailable
from providers.lease import lease
from providers.lines import MODERN
from providers.resource import McpServerResource
from providers.wire import error_answer
from tests.helpers.fakes import (
    ALICE,
    BOB,
    Call,
    FakeBackend,
    Json,
    Refusal,
    Silence,
    caller_of,
    fails,
    modern_caller,
    never,
    no_waiting,
    pool_of,
    settled,
)

core = pytest.mark.core
DECLARATIONS: list[Json] = [
    {},
    {"roots": {}},
    {"roots": {"listChanged": True}, "sampling": {"tools": {}, "context": {}}},
    {"elicitation": {"form": {"applyDefaults": True}, "url": {}}, "sampling": {"tools": {}}},
]


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


async def failure_of(backend: FakeBackend, **options: Any) -> BackendError:
    """Why a session does not open; nothing is left behind."""
    with pytest.raises(BackendError) as failure:
        async with open_session(backend.resource(), backend.open_wire, **options):
            pass
    await settled()
    assert backend.open == 0
    return failure.value


# ------------------------------------------------------------------------------ what goes wrong


@core
@pytest.mark.parametrize("kind", [BackendUnavailable, BackendTimeout, BackendProtocolError])
async def test_an_error_of_the_wire_is_told_as_it_is_and_nothing_was_sent(kind: type[BackendError]) -> None:
    error = await failure_of(FakeBackend(before_open=fails(kind("fake", "could not be started."))))
    assert type(error) is kind and str(error) == "server 'fake': could not be started." and error.not_sent


@core
async def test_a_backend_that_dies_while_it_starts_is_told_with_its_own_reason() -> None:
    async def dies(call: Call) -> Json:
        call.wire.die("ended with exit code 3.")
        raise Silence

    error = await failure_of(FakeBackend(answers={"initialize": dies}))
    assert str(error) == "server 'fake': ended with exit code 3." and error.not_sent


@core
async def test_a_backend_that_never_answers_ends_at_the_deadline() -> None:
    began = anyio.current_time()
    error = await failure_of(FakeBackend(answers={"initialize": never}), deadline=10)
    assert anyio.current_time() - began == pytest.approx(10, abs=0.1)
    assert isinstance(error, BackendTimeout)
    assert str(error) == (
        "server 'fake': did not finish 'initialize' within 10 s. "
        "See its log; if it needs longer to start, raise timeouts.initialize or timeouts.first_start."
    )


@core
async def test_a_backend_that_never_connects_ends_at_the_deadline() -> None:
    began = anyio.current_time()
    error = await failure_of(FakeBackend(before_open=never), deadline=5)
    assert isinstance(error, BackendTimeout) and anyio.current_time() - began == pytest.approx(5, abs=0.1)


@core
async def test_a_refusal_is_told_with_its_code_and_without_its_words() -> None:
    async def refuses(call: Call) -> Json:
        raise Refusal(-32000, "token=hunter2 is wrong")

    error = await failure_of(FakeBackend("files", answers={"initialize": refuses}))
    assert str(error) == "server 'files': refused 'initialize' (MCP error -32000). See its log."


@core
async def test_an_error_answer_of_the_wire_is_told_in_the_wires_words() -> None:
    async def answer(call: Call) -> Json:
        await call.wire.deliver(error_answer(call.id, BackendUnavailable("fake", "answered 401. Check headers.")))
        raise Silence

    assert str(await failure_of(FakeBackend(answers={"initialize": answer}))) == (
        "server 'fake': answered 401. Check headers."
    )


@core
@pytest.mark.parametrize(
    "result",
    [
        {},
        {"protocolVersion": 5},
        {"protocolVersion": "1999-01-01", "capabilities": {}, "serverInfo": {"name": "x", "version": "1"}},
        {"protocolVersion": "2025-11-25", "capabilities": [], "serverInfo": {"name": "x", "version": "1"}},
        {"protocolVersion": "2025-11-25", "capabilities": {}},
    ],
    ids=str,
)
async def test_an_answer_that_is_no_mcp_is_told_so(result: Json) -> None:
    async def answer(call: Call) -> Json:
        return result

    error = await failure_of(FakeBackend(answers={"initialize": answer}), deadline=10)
    assert isinstance(error, BackendProtocolError) and "not MCP" in str(error)


@core
async def test_who_gives_up_while_it_opens_leaves_nothing_open() -> None:
    backend = FakeBackend(answers={"initialize": never})
    with anyio.move_on_after(1):
        async with open_session(backend.resource(), backend.open_wire):
            pass
    await settled()
    assert backend.open == 0


@core
async def test_a_backend_that_does_not_end_does_not_hold_its_session_for_ever() -> None:
    backend = FakeBackend(before_close=never)
    began = anyio.current_time()
    with anyio.move_on_after(60) as patience:
        async with open_session(backend.resource(), backend.open_wire):
            pass
    assert not patience.cancelled_caught and anyio.current_time() - began < 20


@core
@pytest.mark.parametrize("more", [{"x": 1}, {"x": {"y": "z"}}, {"listChanged": "yes"}, {"listChanged": None}])
def test_words_of_a_clients_own_make_no_other_declaration(more: Json) -> None:
    """They are part of keys: with each a client of 2026-07-28 would have sessions of its own."""
    assert Capabilities.of({"roots": more, "elicitation": {"form": more}, "mine": more}) == Capabilities.of(
        {"elicitation": {"form": {}}, "roots": {}}
    )


@core
@pytest.mark.parametrize("era", ["handshake", "modern"] if MODERN else ["handshake"])
@pytest.mark.parametrize("declared", DECLARATIONS)
async def test_what_the_client_declared_is_declared_word_for_word(declared: Json, era: str) -> None:
    backend = FakeBackend(is_modern=era == "modern")
    opening = open_session(
        backend.resource(),
        backend.open_wire,
        capabilities=Capabilities.of(declared),
        prefers_modern=era == "modern",
    )
    async with opening as session:
        await session.request("tools/list", {}, None)
    first, last = backend.wire.received[0], backend.wire.received[-1]
    if era == "handshake":
        assert first["params"]["capabilities"] == declared
    else:
        told = [each["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"] for each in (first, last)]
        assert told == [declared, declared]


@core
async def test_the_identity_is_there_before_the_first_message() -> None:
    backend, seen = FakeBackend(), []

    async def note(wire: Any, message: Json) -> None:
        seen.append(wire.identity)

    backend.before_send = note
    async with open_session(backend.resource(), backend.open_wire, identity=BOB):
        pass
    assert set(seen) == {BOB}


# ------------------------------------------------------------------------------------------- eras


@pytest.mark.parametrize(
    ("backend", "prefers_modern", "is_modern"),
    [
        (FakeBackend(), False, False),
        (FakeBackend(), True, False),
        (FakeBackend(is_modern=True), False, False),
        (FakeBackend(is_modern=True), True, True),
        (FakeBackend(is_modern=True, knows_handshake=False), False, True),
        (FakeBackend(is_modern=True, knows_handshake=False), True, True),
    ],
)
async def test_the_clients_era_is_taken_and_the_other_where_there_is_no_choice(
    backend: FakeBackend, prefers_modern: bool, is_modern: bool
) -> None:
    async with open_session(
        backend.resource(), backend.open_wire, prefers_modern=prefers_modern, deadline=10
    ) as session:
        assert session.is_modern is is_modern
        assert (await session.request("tools/list", {}, None))["tools"] == backend.tools
        assert await session.ping(2)
    await settled()
    assert backend.open == 0


@pytest.mark.parametrize("transport", [{"python": "x.py:mcp"}, {"url": "http://x/sse", "transport_type": "sse"}])
async def test_some_transports_know_the_handshake_alone(transport: dict[str, str]) -> None:
    backend = FakeBackend(is_modern=True)
    resource = McpServerResource.model_validate({"name": "fake", **transport})
    async with open_session(resource, backend.open_wire, prefers_modern=True) as session:
        assert not session.is_modern and backend.count("server/discover") == 0


async def test_an_era_that_a_server_does_not_have_is_not_tried_again() -> None:
    backend = FakeBackend()
    async with open_session(backend.resource(), backend.open_wire, prefers_modern=True) as session:
        era = session.era
    async with open_session(backend.resource(), backend.open_wire, prefers_modern=True, era=era) as session:
        assert not session.is_modern and backend.count("server/discover") == 1
        await session.request("tools/list", {}, None)


async def test_what_a_server_said_of_itself_to_one_user_is_asked_anew_for_another() -> None:
    backend = FakeBackend(is_modern=True)
    async with pool_of() as pool:
        for user in (ALICE, BOB):
            async with lease(pool, backend.target(), modern_caller(user)) as held_lease:
                await held_lease.request("tools/list", {})
    assert len(backend.wires) == 2 and backend.count("server/discover") == 2


async def test_a_server_that_comes_back_in_another_era_is_asked_anew() -> None:
    backend = FakeBackend(is_modern=True, knows_handshake=False)
    async with pool_of() as pool:
        async with lease(pool, backend.target(), modern_caller()) as held_lease:
            assert held_lease.session.is_modern
        backend.is_modern, backend.knows_handshake = False, True
        backend.wire.die("was replaced.")
        await settled()
        async with lease(pool, backend.target(), modern_caller()) as held_lease:
            await held_lease.request("tools/list", {})
            assert not held_lease.session.is_modern


async def test_a_modern_backend_that_stays_silent_is_noticed_too() -> None:
    """The 2026-07-28 era has no ping; it is asked what it is."""
    backend = FakeBackend(is_modern=True)
    async with open_session(backend.resource(), backend.open_wire, prefers_modern=True) as session:
        assert await session.ping(2)
        backend.answers["server/discover"] = never
        assert not await session.ping(2)


@core
async def test_a_modern_client_reaches_a_server_that_knows_the_handshake_alone() -> None:
    backend = FakeBackend()
    async with pool_of() as pool:
        for caller in (modern_caller(), caller_of()):
            async with lease(pool, backend.target(), caller) as held_lease:
                await held_lease.request("tools/list", {})
