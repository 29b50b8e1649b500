"""A session with one backend: requests and answers, deadlines, and what becomes of the errors of wires and backends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from providers import lines
from providers.client import open_session
from providers.errors import BackendProtocolError, BackendTimeout, BackendUnavailable
from providers.identity import IDENTITY_META_KEY
from providers.lines import MCPError
from providers.session import BackendSession
from providers.wire import NOT_SENT, WIRE_ERROR_CODE, error_answer
from tests.helpers.fakes import (
    ALICE,
    BOB,
    Call,
    FakeBackend,
    Json,
    Refusal,
    Silence,
    never,
    no_waiting,
    settled,
    text,
)

core = pytest.mark.core
CALL: Json = {"name": "echo", "arguments": {"text": "hi"}}


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


@asynccontextmanager
async def session_with(backend: FakeBackend, **timeouts: float) -> AsyncIterator[BackendSession]:
    resource = backend.resource(timeouts=timeouts)
    async with open_session(resource, backend.open_wire, identity=ALICE) as session:
        yield session


# ---------------------------------------------------------------------------------------- answers


@core
async def test_a_request_goes_out_and_its_answer_comes_back_word_for_word() -> None:
    result = {"content": [{"type": "text", "text": "hi", "new": 1}], "extra": {"kept": [None, 1.5, "ü"]}}

    async def answer(call: Call) -> Json:
        return result

    backend = FakeBackend(answers={"x/unknown": answer})
    async with session_with(backend) as session:
        assert await session.request("x/unknown", {"a": [1, {"b": None}]}, None) == result
    sent = backend.wire.received[-1]
    assert sent["method"] == "x/unknown" and sent["params"]["a"] == [1, {"b": None}]


@core
async def test_many_requests_at_once_each_get_their_own_answer() -> None:
    async def answer(call: Call) -> Json:
        for _ in range(int(call.arguments["text"]) % 7):
            await anyio.lowlevel.checkpoint()
        return text(call.arguments["text"])

    backend, got = FakeBackend(answers={"tools/call": answer}), {}
    async with session_with(backend) as session:

        async def one(number: int) -> None:
            params = {"name": "echo", "arguments": {"text": str(number)}}
            got[number] = (await session.request("tools/call", params, None))["content"][0]["text"]

        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(one, number)
    assert got == {number: str(number) for number in range(100)}


@core
async def test_the_session_says_what_it_is() -> None:
    backend = FakeBackend("files", instructions="Reads files.")
    async with session_with(backend) as session:
        assert repr(session) == "<BackendSession files 2025-11-25 0 calls>"
        assert session.facts["instructions"] == "Reads files."
        assert session.facts["serverInfo"]["name"] == "files" and "tools" in session.facts["capabilities"]
        assert not session.is_modern


# ------------------------------------------------------------------------------------------ _meta


@core
async def test_a_process_hears_in_meta_who_calls() -> None:
    backend = FakeBackend()
    async with session_with(backend) as session:
        for identity in (ALICE, BOB, None):
            session.wire.identity = identity
            await session.request("tools/call", CALL, None)
    told = [message["params"].get("_meta", {}).get(IDENTITY_META_KEY) for message in backend.wire.received[2:]]
    assert told == [
        {"userId": "alice", "userName": "Alice", "roles": ["engineer"]},
        {"userId": "bob", "userName": "Bob", "roles": ["engineer"]},
        None,
    ]


@core
@pytest.mark.parametrize("in_meta", [True, False])
@pytest.mark.parametrize("identity", [ALICE, None])
async def test_a_client_cannot_forge_the_identity(in_meta: bool, identity: Any) -> None:
    backend = FakeBackend(identity_in_meta=in_meta)
    forged = CALL | {"_meta": {IDENTITY_META_KEY: {"userId": "root", "roles": ["mcp.admin"]}, "mine": 1}}
    async with session_with(backend) as session:
        session.wire.identity = identity
        await session.request("tools/call", forged, None)
    meta = backend.wire.received[-1]["params"]["_meta"]
    assert meta["mine"] == 1 and "root" not in str(meta)
    assert (IDENTITY_META_KEY in meta) is (in_meta and identity is not None)
    assert forged["_meta"][IDENTITY_META_KEY]["userId"] == "root", "what the client sent is not touched"


# -------------------------------------------------------------------------------------- deadlines


@core
async def test_a_call_without_an_answer_ends_at_its_deadline() -> None:
    backend = FakeBackend(answers={"tools/call": never})
    async with session_with(backend, call=7) as session:
        began = anyio.current_time()
        with pytest.raises(BackendTimeout) as failure:
            await session.request("tools/call", CALL, None)
        assert anyio.current_time() - began == pytest.approx(7)
        assert str(failure.value) == (
            "server 'fake': no answer to 'tools/call' within 7 s. The request was cancelled. "
            "If it needs longer, raise timeouts.call or timeouts.call_max of this server."
        )
        await session.request("ping", {}, None)


@core
async def test_a_deadline_of_its_own_counts_for_one_request() -> None:
    backend = FakeBackend(answers={"tools/list": never})
    async with session_with(backend) as session:
        began = anyio.current_time()
        with pytest.raises(BackendTimeout):
            await session.request("tools/list", {}, None, deadline=2)
        assert anyio.current_time() - began == pytest.approx(2)


async def test_the_backend_hears_that_nobody_waits_any_more() -> None:
    backend = FakeBackend(answers={"tools/call": never})
    async with session_with(backend, call=7) as session:
        with pytest.raises(BackendTimeout):
            await session.request("tools/call", CALL, None)
        with anyio.move_on_after(1):
            await session.request("tools/call", CALL, None)
        asked = [message["id"] for message in backend.wire.received if message["method"] == "tools/call"]
        assert backend.wire.cancelled == asked


@core
async def test_an_answer_that_comes_at_the_moment_when_its_caller_gives_up_harms_nobody() -> None:
    async with session_with(FakeBackend()) as session:
        for steps in range(40):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(session.request, "tools/call", CALL, None)
                await settled(steps)
                tasks.cancel_scope.cancel()
            await session.request("ping", {}, None, deadline=1)


@core
async def test_an_answer_that_comes_too_late_harms_nobody() -> None:
    late = anyio.Event()

    async def answers_late(call: Call) -> Json:
        with anyio.CancelScope(shield=True):
            await late.wait()
        return text("late")

    backend = FakeBackend(answers={"tools/call": answers_late})
    async with session_with(backend, call=1) as session:
        with pytest.raises(BackendTimeout):
            await session.request("tools/call", CALL, None)
        late.set()
        await settled()
        await session.request("ping", {}, None)


# ----------------------------------------------------------------------------------------- errors


@core
async def test_a_backends_own_error_is_passed_on_as_it_is() -> None:
    async def refuses(call: Call) -> Json:
        raise Refusal(-32602, "'path' is missing")

    async with session_with(FakeBackend(answers={"tools/call": refuses})) as session:
        with pytest.raises(MCPError) as failure:
            await session.request("tools/call", CALL, None)
    assert lines.error_data(failure.value) == {"code": -32602, "message": "'path' is missing"}


@core
@pytest.mark.parametrize("not_sent", [True, False])
async def test_an_error_answer_of_the_wire_becomes_our_error(not_sent: bool) -> None:
    async def fails(call: Call) -> Json:
        error = BackendUnavailable("fake", "refused the connection.", not_sent=not_sent)
        await call.wire.deliver(error_answer(call.id, error))
        raise Silence

    async with session_with(FakeBackend(answers={"tools/call": fails})) as session:
        with pytest.raises(BackendUnavailable) as failure:
            await session.request("tools/call", CALL, None)
        await session.request("ping", {}, None)
    assert str(failure.value) == "server 'fake': refused the connection."
    assert failure.value.not_sent is not_sent


@core
@pytest.mark.parametrize("data", ["text", 5, [NOT_SENT], {NOT_SENT: False}, None])
async def test_odd_data_in_such_an_answer_is_not_taken_for_not_sent(data: Any) -> None:
    async def fails(call: Call) -> Json:
        error = {"code": WIRE_ERROR_CODE, "message": "m", "data": data}
        await call.wire.deliver({"jsonrpc": "2.0", "id": call.id, "error": error})
        raise Silence

    async with session_with(FakeBackend(answers={"tools/call": fails})) as session:
        with pytest.raises(BackendUnavailable) as failure:
            await session.request("tools/call", CALL, None)
    assert not failure.value.not_sent


@core
async def test_a_wire_that_cannot_send_says_so_itself() -> None:
    async def full(*_: Any) -> None:
        raise BackendUnavailable("fake", "takes nothing.", not_sent=True)

    backend = FakeBackend()
    async with session_with(backend) as session:
        backend.before_send = full
        with pytest.raises(BackendUnavailable, match="takes nothing"):
            await session.request("tools/call", CALL, None)
        backend.before_send = None
        await session.request("ping", {}, None)


@core
@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (BackendUnavailable("fake", "exit code 1."), "server 'fake': exit code 1."),
        (BackendProtocolError("fake", "sent 17 MiB."), "server 'fake': sent 17 MiB."),
        (BackendTimeout("fake", "reads nothing."), "server 'fake': reads nothing."),
        (None, "server 'fake': the connection was closed before the answer came. Try again."),
    ],
)
async def test_when_the_wire_dies_all_that_wait_hear_why_at_once(failure: Any, said: str) -> None:
    backend, heard = FakeBackend(answers={"tools/call": never}), []

    async def calls(session: BackendSession) -> None:
        with pytest.raises(type(failure) if failure else BackendUnavailable) as error:
            await session.request("tools/call", CALL, None)
        heard.append((str(error.value), error.value.not_sent))

    async with session_with(backend) as session:
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(calls, session)
            await backend.heard("tools/call", 3)
            backend.wire.fail(failure) if failure else backend.wire.closed.set()
        assert anyio.current_time() == began and heard == [(said, False)] * 3
        with pytest.raises(BackendUnavailable if failure is None else type(failure)) as later:
            await session.request("ping", {}, None)
        assert later.value.not_sent and not await session.ping(2)


async def test_an_answer_that_is_not_mcp_is_the_backends_fault() -> None:
    async def odd(call: Call) -> Json:
        return {"content": "not a list"}

    async with session_with(FakeBackend(answers={"tools/call": odd})) as session:
        with pytest.raises(BackendProtocolError, match="its answer to 'tools/call' is not what MCP prescribes"):
            await session.request("tools/call", CALL, None)
        await session.request("ping", {}, None)


# --------------------------------------------------------------------------------------- the ping


@core
async def test_a_ping_is_answered_within_its_deadline_or_not() -> None:
    async def refuses(call: Call) -> Json:
        raise Refusal

    backend = FakeBackend()
    async with session_with(backend) as session:
        assert await session.ping(2)
        backend.answers["ping"] = refuses
        assert await session.ping(2), "an error is an answer"
        backend.answers["ping"] = never
        began = anyio.current_time()
        assert not await session.ping(2)
        assert anyio.current_time() - began == pytest.approx(2)


@core
async def test_a_ping_of_the_backend_is_answered() -> None:
    backend = FakeBackend()
    async with session_with(backend):
        assert (await backend.wire.ask("ping", request_id=99)).get("result") == {}


# ------------------------------------------------------------------------- what does not belong


ODD = [
    {"jsonrpc": "2.0", "id": 4711, "result": {}},
    {"jsonrpc": "2.0", "id": "nobody", "error": {"code": 1, "message": "m"}},
    {"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "parse error"}},
    {"jsonrpc": "2.0", "id": [1], "result": {}},
    {"jsonrpc": "2.0", "id": {"a": 1}, "method": "sampling/createMessage"},
    {"jsonrpc": "2.0", "id": [2], "method": "elicitation/create", "params": [1]},
    {"jsonrpc": "2.0", "id": None, "method": "roots/list"},
    {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": {"a": 1}}},
    {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": [1]},
    {"jsonrpc": "2.0", "method": "notifications/cancelled"},
    {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": [1], "progress": "x"}},
    {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 99, "progress": 1}},
    {"jsonrpc": "2.0", "method": "notifications/progress", "params": "text"},
    {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": 5}},
    {"jsonrpc": "2.0", "method": "notifications/message", "params": None},
    {"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": "a://b", "_meta": "text"}},
    {
        "jsonrpc": "2.0",
        "method": "notifications/subscriptions/acknowledged",
        "params": {"notifications": {"resourceSubscriptions": 5}},
    },
    {"jsonrpc": "2.0", "method": "notifications/unheard/of", "params": {}},
    {"jsonrpc": "2.0", "method": {"a": 1}},
    {"jsonrpc": "2.0", "method": None, "id": 3},
    {"jsonrpc": "1.0", "id": 4711},
    {"result": {}},
    {},
]


@core
@pytest.mark.parametrize("message", ODD, ids=str)
async def test_a_message_that_belongs_to_nothing_harms_nothing(message: Json) -> None:
    """Sent while nothing runs, and while a call runs."""
    go_on = anyio.Event()

    async def waits(call: Call) -> Json:
        await go_on.wait()
        return text("done")

    backend = FakeBackend(answers={"tools/call": waits})
    async with session_with(backend) as session, anyio.create_task_group() as tasks:
        await backend.wire.deliver(message)
        await session.request("ping", {}, None)
        tasks.start_soon(session.request, "tools/call", CALL, None)
        await backend.heard("tools/call")
        await backend.wire.deliver(message)
        await settled()
        go_on.set()
    assert not backend.wires[0].failure


@core
async def test_a_second_answer_to_the_same_request_is_dropped() -> None:
    async def twice(call: Call) -> Json:
        await call.wire.deliver({"jsonrpc": "2.0", "id": call.id, "result": text("first")})
        return text("second")

    async with session_with(FakeBackend(answers={"tools/call": twice})) as session:
        assert (await session.request("tools/call", CALL, None))["content"] == text("first")["content"]
        await settled()
        await session.request("ping", {}, None)


@core
@pytest.mark.parametrize("kind", ["tools", "resources", "prompts"])
async def test_a_changed_list_is_told(kind: str) -> None:
    backend, told = FakeBackend(), []
    async with open_session(backend.resource(), backend.open_wire, on_change=told.append):
        await backend.wire.say(f"notifications/{kind}/list_changed")
    assert told == [f"notifications/{kind}/list_changed"]
