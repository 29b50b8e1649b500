"""What a backend asks during a call is asked of the client of that call, if it can be asked; else it is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from fastmcp.exceptions import ToolError

from providers.client import open_session
from tests.helpers.desk import ALL, Inbox, desk_with, said_by
from tests.helpers.fakes import (
    Call,
    FakeBackend,
    Json,
    Silence,
    client_of,
    held,
    no_waiting,
    settled,
    text,
    time_passes,
)

core = pytest.mark.core
QUESTION: Json = {"message": "Sure?", "requestedSchema": {"type": "object", "properties": {}}}
SAMPLING: Json = {"messages": [{"role": "user", "content": {"type": "text", "text": "hi"}}], "maxTokens": 5}


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


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
        await time_passes(50)
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


@core
@pytest.mark.parametrize("request_id", ["same", None, 1.5, True], ids=str)
async def test_questions_that_cannot_be_told_apart_are_refused(request_id: Any) -> None:
    """Else the answer to one could end another, and the cap on their number would not hold."""
    asked, go_on = 0, anyio.Event()

    async def sample(*_: Any) -> str:
        nonlocal asked
        asked += 1
        await go_on.wait()
        return ""

    async def answer(call: Call) -> Json:
        message = {"jsonrpc": "2.0", "id": request_id, "method": "sampling/createMessage", "params": SAMPLING}
        for _ in range(50):
            await call.wire.deliver(dict(message))
        await settled()
        go_on.set()
        return text("done")

    backend = FakeBackend(answers={"tools/call": answer})
    async with desk_with(backend) as desk, client_of(desk.server, sampling_handler=sample) as client:
        assert await said_by(client) == "done"
    assert asked == (1 if request_id == "same" else 0)
