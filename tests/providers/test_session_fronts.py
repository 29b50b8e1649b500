"""What a backend sends during a call reaches the client that made the call, or nobody. Real clients, real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from fastmcp import Client, Context, FastMCP
from fastmcp.exceptions import ToolError

from providers import lines
from providers.caller import Caller, ClientSessions, front_of
from providers.client import open_session
from providers.errors import GatewayError
from providers.session import BackendSession
from tests.helpers.fakes import (
    ALICE,
    Call,
    FakeBackend,
    Json,
    Silence,
    client_of,
    held,
    never,
    no_waiting,
    settled,
    text,
)

core = pytest.mark.core
ALL = frozenset({"elicitation", "sampling", "roots"})
QUESTION: Json = {"message": "Sure?", "requestedSchema": {"type": "object", "properties": {}}}
SAMPLING: Json = {"messages": [{"role": "user", "content": {"type": "text", "text": "hi"}}], "maxTokens": 5}


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


class Desk:
    """A real server in front of one backend session: its tool `use` passes a call on."""

    def __init__(self, session: BackendSession, has_session: bool = True) -> None:
        self.session, self.sessions = session, ClientSessions()
        self._has_session = has_session
        self.server: FastMCP[Any] = FastMCP("desk")
        self.server.tool(self.use, name="use")

    async def use(self, context: Context, said: str = "hi") -> str:
        caller = self.sessions.caller(context, ALICE)
        if not self._has_session:
            caller = Caller(ALICE, "user:alice", caller.capabilities, has_session=False)
        params = {"name": "echo", "arguments": {"text": said}}
        result = await self.session.request("tools/call", params, front_of(context, caller))
        return str(result["content"][0]["text"])


@asynccontextmanager
async def desk_with(
    backend: FakeBackend, *, has_session: bool = True, declares: frozenset[str] = ALL, **timeouts: float
) -> AsyncIterator[Desk]:
    resource = backend.resource(timeouts=timeouts)
    async with open_session(resource, backend.open_wire, capabilities=declares) as session:
        yield Desk(session, has_session)


class Inbox:
    """What one client heard."""

    def __init__(self) -> None:
        self.progress: list[tuple[float, float | None, str | None]] = []
        self.logs: list[tuple[str, Any]] = []
        self.asked: list[str] = []

    async def on_progress(self, progress: float, total: float | None, message: str | None) -> None:
        self.progress.append((progress, total, message))

    async def on_log(self, message: Any) -> None:
        self.logs.append((message.level, message.data))

    async def on_question(self, message: str, *_: Any) -> Any:
        self.asked.append(message)
        return {}

    def client(self, desk: Desk, **handlers: Any) -> Client[Any]:
        return client_of(desk.server, log_handler=self.on_log, **handlers)


async def said_by(client: Client[Any], said: str = "hi", **options: Any) -> str:
    result = await client.call_tool("use", {"said": said}, **options)
    return str(result.data)


# ---------------------------------------------------------------------------------------- progress


@core
async def test_progress_reaches_the_call_that_it_is_about_under_the_clients_own_token() -> None:
    async def answer(call: Call) -> Json:
        for step in (1, 2):
            await call.progress(step, total=2, message=call.arguments["text"])
        return text(call.arguments["text"])

    backend, one, other = FakeBackend(answers={"tools/call": answer}), Inbox(), Inbox()
    async with desk_with(backend) as desk, one.client(desk) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: said_by(client, "a", progress_handler=one.on_progress))
        tasks.start_soon(lambda: said_by(client, "b", progress_handler=other.on_progress))
    assert one.progress == [(1, 2, "a"), (2, 2, "a")] and other.progress == [(1, 2, "b"), (2, 2, "b")]
    tokens = [message["params"]["_meta"]["progressToken"] for message in backend.wire.received[2:]]
    assert len(set(tokens)) == 2


@core
async def test_progress_with_a_token_that_is_not_that_calls_reaches_nobody() -> None:
    async def answer(call: Call) -> Json:
        for token in (call.meta["progressToken"] + 1, str(call.meta["progressToken"]), None, [1], 1.5):
            await call.wire.say("notifications/progress", {"progressToken": token, "progress": 1})
        return text("done")

    backend, inbox = FakeBackend(answers={"tools/call": answer}), Inbox()
    async with desk_with(backend) as desk, inbox.client(desk) as client:
        await said_by(client, progress_handler=inbox.on_progress)
    assert inbox.progress == []


@core
async def test_progress_that_comes_after_the_answer_reaches_nobody() -> None:
    backend, inbox, calls = FakeBackend(), Inbox(), []

    async def answer(call: Call) -> Json:
        calls.append(call)
        return text("done")

    backend.answers["tools/call"] = answer
    async with desk_with(backend) as desk, inbox.client(desk) as client:
        await said_by(client, progress_handler=inbox.on_progress)
        await calls[0].progress(5)
        await said_by(client, progress_handler=inbox.on_progress)
    assert inbox.progress == []


@core
async def test_progress_keeps_a_call_alive_up_to_the_longest() -> None:
    async def works_for_ever(call: Call) -> Json:
        while True:
            await anyio.sleep(4)
            await call.progress(1)

    backend, inbox = FakeBackend(answers={"tools/call": works_for_ever}), Inbox()
    async with desk_with(backend, call=5, call_max=60) as desk, inbox.client(desk) as client:
        began = anyio.current_time()
        with pytest.raises(ToolError, match="within the longest time that a call may take"):
            await said_by(client, progress_handler=inbox.on_progress)
        assert anyio.current_time() - began == pytest.approx(60) and len(inbox.progress) == 14


# -------------------------------------------------------------------------------------------- logs


def logs_during_the_call(*levels: str) -> Any:
    async def answer(call: Call) -> Json:
        for level in levels:
            await call.log(call.arguments["text"], level)
        return text(call.arguments["text"])

    return answer


@core
async def test_a_log_reaches_the_client_of_the_call() -> None:
    backend, caller, other = (
        FakeBackend(answers={"tools/call": logs_during_the_call("info", "error")}),
        Inbox(),
        Inbox(),
    )
    async with desk_with(backend) as desk, caller.client(desk) as client, other.client(desk):
        await said_by(client, "mine")
        await settled()
    assert caller.logs == [("info", "mine"), ("error", "mine")] and other.logs == []


@core
async def test_a_log_between_calls_reaches_nobody() -> None:
    backend, inbox = FakeBackend(), Inbox()
    async with desk_with(backend) as desk, inbox.client(desk) as client:
        await said_by(client)
        await backend.wire.say("notifications/message", {"level": "error", "data": "private"})
        await settled()
    assert inbox.logs == []


@core
async def test_a_log_of_a_level_that_is_none_reaches_nobody() -> None:
    backend, inbox = FakeBackend(answers={"tools/call": logs_during_the_call("loud")}), Inbox()
    async with desk_with(backend) as desk, inbox.client(desk) as client:
        await said_by(client)
        await settled()
    assert inbox.logs == []


@core
@pytest.mark.parametrize("has_session", [True, False])
async def test_with_two_calls_at_once_a_log_is_for_their_one_session_or_for_nobody(has_session: bool) -> None:
    """Without sessions two calls of a user may come from two windows, and nothing says which one a log is about."""
    go_on = anyio.Event()

    async def answer(call: Call) -> Json:
        if call.arguments["text"] == "first":
            await go_on.wait()
        else:
            await call.log("second's")
            go_on.set()
        return text("done")

    backend, inbox = FakeBackend(answers={"tools/call": answer}), Inbox()
    async with desk_with(backend, has_session=has_session) as desk, inbox.client(desk) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(said_by, client, "first")
            await backend.heard("tools/call")
            tasks.start_soon(said_by, client, "second")
        await settled()
    assert inbox.logs == ([("info", "second's")] if has_session else [])


# --------------------------------------------------------------------------------------- questions


def asks(method: str, params: Json | None = None, answers: list[Json] | None = None) -> Any:
    async def answer(call: Call) -> Json:
        got = await call.wire.ask(method, params)
        if answers is not None:
            answers.append(got)
        return text("done")

    return answer


@core
async def test_a_question_goes_to_the_client_of_the_call_and_its_answer_comes_back() -> None:
    async def elicit(message: str, *_: Any) -> Any:
        return {"value": f"answer to {message}"}

    async def sample(*_: Any) -> str:
        return "a thought"

    handlers = {"elicitation_handler": elicit, "sampling_handler": sample, "roots": ["file:///home"]}
    for method, params, expected in (
        ("elicitation/create", QUESTION, {"action": "accept"}),
        ("sampling/createMessage", SAMPLING, {"role": "assistant"}),
        ("roots/list", None, {"roots": [{"uri": "file:///home"}]}),
    ):
        got: list[Json] = []
        backend = FakeBackend(answers={"tools/call": asks(method, params, got)})
        async with desk_with(backend) as desk, client_of(desk.server, **handlers) as client:
            await said_by(client)
        result = got[0]["result"]
        assert {key: result.get(key) for key in expected} == expected or method == "roots/list", got
        assert method != "roots/list" or result["roots"][0]["uri"] == "file:///home"


@core
async def test_only_what_the_client_declared_is_asked() -> None:
    inbox = Inbox()
    for method, params in (
        ("elicitation/create", QUESTION),
        ("sampling/createMessage", SAMPLING),
        ("roots/list", None),
    ):
        got: list[Json] = []
        backend = FakeBackend(answers={"tools/call": asks(method, params, got)})
        async with desk_with(backend) as desk, inbox.client(desk) as client:
            await said_by(client)
        assert got[0]["error"]["code"] == -32601 and "cannot be asked" in got[0]["error"]["message"]


@core
@pytest.mark.parametrize("method", ["tools/list", "elicitation/other", "", "sampling"])
async def test_what_is_no_question_is_refused(method: str) -> None:
    got: list[Json] = []
    backend, inbox = FakeBackend(answers={"tools/call": asks(method, {}, got)}), Inbox()
    async with desk_with(backend) as desk, inbox.client(desk, elicitation_handler=inbox.on_question) as client:
        await said_by(client)
    assert got[0]["error"]["code"] == -32601 and inbox.asked == []


@core
async def test_a_question_between_calls_is_refused() -> None:
    backend, inbox = FakeBackend(), Inbox()
    async with desk_with(backend) as desk, inbox.client(desk, elicitation_handler=inbox.on_question) as client:
        await said_by(client)
        got = await backend.wire.ask("elicitation/create", QUESTION)
    assert got["error"]["code"] == -32601 and inbox.asked == []


@core
async def test_a_question_right_after_connecting_is_refused_and_the_session_opens() -> None:
    """Some servers ask for roots as soon as they hear `initialized`, and some even before."""
    got: list[Json] = []

    async def initialize(call: Call) -> Json:
        got.append(await call.wire.ask("roots/list"))
        return {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {"name": "x", "version": "1"}}

    backend = FakeBackend(answers={"initialize": initialize})
    async with open_session(backend.resource(), backend.open_wire, capabilities=ALL, deadline=5) as session:
        await session.request("ping", {}, None)
    assert got[0]["error"]["code"] == -32601


@core
async def test_a_clients_refusal_reaches_the_backend() -> None:
    async def fails(*_: Any) -> Any:
        raise ValueError("not now")

    got: list[Json] = []
    backend = FakeBackend(answers={"tools/call": asks("sampling/createMessage", SAMPLING, got)})
    async with desk_with(backend) as desk, client_of(desk.server, sampling_handler=fails) as client:
        assert await said_by(client) == "done"
    assert "error" in got[0] and got[0]["id"] == "q1"


@core
async def test_while_a_person_is_asked_the_deadline_of_the_call_rests() -> None:
    async def thinks(*_: Any) -> Any:
        await anyio.sleep(50)
        return {}

    backend = FakeBackend(answers={"tools/call": asks("elicitation/create", QUESTION)})
    async with (
        desk_with(backend, call=5, call_max=100) as desk,
        client_of(desk.server, elicitation_handler=thinks) as client,
    ):
        assert await said_by(client) == "done"


# Not on 3.4: its client reads nothing while its user thinks.
async def test_a_question_that_the_backend_takes_back_is_not_answered() -> None:
    answered: list[Json] = []

    async def answer(call: Call) -> Json:
        async with anyio.create_task_group() as tasks:

            async def question() -> None:
                answered.append(await call.wire.ask("elicitation/create", QUESTION, request_id="q"))

            tasks.start_soon(question)
            await settled()
            await call.wire.say("notifications/cancelled", {"requestId": "q"})
            await settled()
            tasks.cancel_scope.cancel()
        return text("done")

    backend, gate = FakeBackend(answers={"tools/call": answer}), anyio.Event()
    async with desk_with(backend) as desk, client_of(desk.server, elicitation_handler=held(gate)) as client:
        assert await said_by(client) == "done"
        assert answered == []
        gate.set()
        await desk.session.request("ping", {}, None)


async def test_a_question_ends_with_its_call() -> None:
    """The caller does not wait any more, so nobody is to answer for it, and nothing is left waiting."""
    backend, gate = FakeBackend(), anyio.Event()

    async def answer(call: Call) -> Json:
        await call.wire.deliver({"jsonrpc": "2.0", "id": "q", "method": "elicitation/create", "params": QUESTION})
        raise Silence

    backend.answers["tools/call"] = answer
    async with (
        desk_with(backend, call=5, call_max=20) as desk,
        client_of(desk.server, elicitation_handler=held(gate)) as client,
    ):
        with pytest.raises(ToolError, match="longest time"):
            await said_by(client)
        await settled()
        assert backend.wire.received[-1]["id"] == "q" and "error" in backend.wire.received[-1]
        gate.set()


# ---------------------------------------------------------------------------------- a client that left


async def test_a_client_that_leaves_in_mid_call_ends_the_call_at_the_backend() -> None:
    backend = FakeBackend(answers={"tools/call": never})
    async with desk_with(backend) as desk, anyio.create_task_group() as tasks:
        async with client_of(desk.server) as client:
            tasks.start_soon(fails_somehow, client)
            await backend.heard("tools/call")
        await backend.until(lambda: bool(backend.wire.cancelled))
        await desk.session.request("ping", {}, None)


async def fails_somehow(client: Client[Any]) -> None:
    with pytest.raises((ToolError, RuntimeError, lines.MCPError, GatewayError)):
        await said_by(client)
