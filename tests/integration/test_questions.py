"""What backends ask, put to clients of either era through a real gateway: by hand on both sides, word for word."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from providers.lines import MODERN
from tests.helpers.asked import ALL, asked_client
from tests.helpers.gateway import gateway_over_http, local, patient_toml
from tests.helpers.processes import eventually
from tests.helpers.rpc import HANDSHAKE, NEWEST, Json

pytestmark = pytest.mark.filterwarnings("ignore:The logging capability is deprecated")

VERSIONS = [HANDSHAKE, NEWEST] if MODERN else [HANDSHAKE]

FORM = {
    "mode": "form",
    "message": "All of it?",
    "requestedSchema": {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "title": "N", "minLength": 1, "maxLength": 9, "default": "x"},
            "mail": {"type": "string", "format": "email"},
            "age": {"type": "integer", "minimum": 0, "maximum": 150, "default": 42},
            "share": {"type": "number", "default": 0.5},
            "sure": {"type": "boolean", "default": True},
            "one": {"type": "string", "enum": ["a", "b"], "default": "a"},
            "titled": {"type": "string", "oneOf": [{"const": "a", "title": "A"}]},
            "many": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}, "minItems": 1, "default": ["b"]},
            "many_titled": {"type": "array", "items": {"anyOf": [{"const": "a", "title": "A"}]}},
        },
    },
}
URL = {"mode": "url", "message": "Sign in.", "url": "https://login.example.com/a?b=c#d", "elicitationId": "id-1"}
SAMPLING = {
    "messages": [
        {"role": "user", "content": {"type": "text", "text": "look", "annotations": {"priority": 0.5}}},
        {"role": "user", "content": {"type": "image", "data": "aGk=", "mimeType": "image/png"}},
        {"role": "user", "content": {"type": "audio", "data": "aGk=", "mimeType": "audio/wav"}},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "find", "input": {"q": [1, None]}}]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "toolUseId": "t1", "content": [{"type": "text", "text": "x"}]}],
        },
    ],
    "maxTokens": 7,
    "systemPrompt": "Be brief.",
    "temperature": 0.1,
    "stopSequences": ["END"],
    "includeContext": "thisServer",
    "metadata": {"own": {"deep": [1]}},
    "modelPreferences": {"hints": [{"name": "claude"}], "costPriority": 0.2, "intelligencePriority": 1.0},
    "tools": [{"name": "find", "inputSchema": {"type": "object", "properties": {"q": {}}}}],
    "toolChoice": {"mode": "required"},
}
THOUGHT = {
    "role": "assistant",
    "model": "claude-sonnet-4-5-20250929",
    "stopReason": "toolUse",
    "content": [{"type": "tool_use", "id": "t2", "name": "find", "input": {"q": 1}}, {"type": "text", "text": "so"}],
    "_meta": {"example.com/cost": 3},
}
FILLED = {"action": "accept", "content": {"name": "n", "age": 3, "sure": False, "many": ["a"]}, "_meta": {"k": 1}}
ROOTS = {"roots": [{"uri": "file:///a", "name": "A", "_meta": {"k": [1]}}], "_meta": {"example.com/n": 1}}

QUESTIONS: dict[str, tuple[Json, Json]] = {
    "form": ({"method": "elicitation/create", "params": FORM}, FILLED),
    "url": ({"method": "elicitation/create", "params": URL}, {"action": "accept"}),
    "declined": ({"method": "elicitation/create", "params": FORM}, {"action": "decline"}),
    "sampling": ({"method": "sampling/createMessage", "params": SAMPLING}, THOUGHT),
    "roots": ({"method": "roots/list"}, ROOTS),
}


@asynccontextmanager
async def asking(*, client: Json | None = None, version: str = NEWEST, **more: Any) -> AsyncIterator[Any]:
    """A gateway with a backend of the handshake era that asks what it is told to, and a client by hand."""
    async with (
        gateway_over_http(patient_toml({"b": local("raw_asks.py", **more)})) as gateway,
        asked_client(gateway.url, version=version, capabilities=client) as one,
    ):
        yield gateway, one


def call(*questions: Json, then: list[list[Json]] | None = None, **more: Any) -> Json:
    return {"name": "b_ask", "arguments": {"ask": list(questions), "then": then or [], **more}}


def told(answer: Json) -> Json:
    """What the backend says it was answered."""
    content = answer["result"]["content"][0]
    return json.loads(content["text"])  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------- word for word


@pytest.mark.core
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", QUESTIONS)
async def test_questions_and_answers_pass_word_for_word(kind: str, version: str) -> None:
    question, answer = QUESTIONS[kind]
    async with asking(version=version) as (_, one):
        one.answers[question["method"]] = answer
        heard = told(await one.finished("tools/call", call(question)))
        assert heard["answers"] == [answer]
        assert one.asked == [as_in(version, question)]


def as_in(version: str, question: Json) -> Json:
    """2026-07-28 has no ids of elicitations, and nothing that would tell of them."""
    params = {key: value for key, value in question.get("params", {}).items() if key != "elicitationId"}
    return question if version == HANDSHAKE or not params else question | {"params": params}


@pytest.mark.core
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "declared",
    [{}, ALL, {"elicitation": {}}, {"elicitation": {"form": {"applyDefaults": True}}, "roots": {"listChanged": True}}],
)
async def test_a_backend_is_told_exactly_what_its_client_declared(declared: Json, version: str) -> None:
    more = {"experimental": {"x": {}}, "extensions": {"io.modelcontextprotocol/ui": {}}}
    async with asking(client={**declared, **more}, version=version) as (_, one):
        assert told(await one.finished("tools/call", call()))["declared"] == declared


@pytest.mark.core
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("declared", "kind", "code"),
    [
        ({}, "form", -32601),
        ({"sampling": {"tools": {}}}, "roots", -32601),
        ({"elicitation": {}}, "url", -32602),
        ({"elicitation": {"url": {}}}, "form", -32602),
        ({"sampling": {}}, "sampling", -32602),
    ],
)
async def test_what_was_not_declared_is_not_asked(declared: Json, kind: str, code: int, version: str) -> None:
    async with asking(client=declared, version=version) as (_, one):
        heard = told(await one.finished("tools/call", call(QUESTIONS[kind][0])))
        assert heard["answers"][0]["code"] == code and one.asked == []


# ---------------------------------------------------------------------- handshake backend, client of the newest era

modern = pytest.mark.skipif(not MODERN, reason="FastMCP 3.4 speaks the handshake era alone")


@modern
async def test_several_questions_at_once_come_in_one_answer_and_rounds_one_after_another() -> None:
    form, sampling, roots = (QUESTIONS[kind][0] for kind in ("form", "sampling", "roots"))
    async with asking() as (gateway, one):
        params = call(form, sampling, roots, then=[[roots], [form]])
        first = (await one.request("tools/call", params))["result"]
        assert [each["method"] for each in first["inputRequests"].values()] == [
            "elicitation/create",
            "sampling/createMessage",
            "roots/list",
        ]
        second = (await one.request("tools/call", params | one.retry(first)))["result"]
        assert [each["method"] for each in second["inputRequests"].values()] == ["roots/list"]
        third = (await one.request("tools/call", params | one.retry(second)))["result"]
        assert gateway.gateway.parking.parked == 1
        last = await one.request("tools/call", params | one.retry(third))
        assert len(told(last)["answers"]) == 5
        assert (gateway.gateway.parking.parked, gateway.gateway.pool.statistics().leases) == (0, 0)


@modern
@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("resources/read", {"uri": "data://b/roots"}),
        ("prompts/get", {"name": "b_ask", "arguments": {"ask": '[{"method": "roots/list"}]'}}),
    ],
)
async def test_reading_and_prompting_may_ask_too(method: str, params: Json) -> None:
    async with asking() as (_, one):
        answer = await one.finished(method, params)
        assert "file:///here" in str(answer["result"]) and one.asked == [{"method": "roots/list"}]


@modern
async def test_what_is_answered_in_part_is_asked_again_for_the_rest() -> None:
    form, roots = QUESTIONS["form"][0], QUESTIONS["roots"][0]
    async with asking() as (_, one):
        first = (await one.request("tools/call", call(form, roots)))["result"]
        retry = one.retry(first)
        [left_out, _] = retry["inputResponses"]
        del retry["inputResponses"][left_out]
        second = (await one.request("tools/call", call(form, roots) | retry))["result"]
        assert list(second["inputRequests"]) == [left_out] and second["requestState"] != first["requestState"]
        last = await one.request("tools/call", call(form, roots) | one.retry(second))
        assert len(told(last)["answers"]) == 2


@modern
async def test_messages_of_a_parked_call_reach_the_retry() -> None:
    log = {"method": "notifications/message", "params": {"level": "error", "data": "after"}}
    meta = {"_meta": {"io.modelcontextprotocol/logLevel": "debug"}}
    async with asking() as (_, one):
        params = call(QUESTIONS["roots"][0], say=[log]) | meta
        first = (await one.request("tools/call", params))["result"]
        assert one.heard == []
        assert "result" in await one.request("tools/call", params | one.retry(first))
        assert [each["params"]["data"] for each in one.heard] == ["after"]


@modern
async def test_a_state_is_good_once_and_for_its_own_request_alone() -> None:
    params = call(QUESTIONS["roots"][0])
    async with asking() as (gateway, one):
        first = (await one.request("tools/call", params))["result"]
        retry = one.retry(first)
        others: list[Json] = [
            params | {"arguments": {"ask": []}} | retry,
            params | {"name": "b_other"} | retry,
            params | retry | {"requestState": retry["requestState"][:-4] + "AAAA"},
            params | retry | {"requestState": "parked:guess"},
        ]
        unknown = [await one.request("tools/call", other) for other in others]
        assert gateway.gateway.parking.parked == 1
        assert "result" in await one.request("tools/call", params | retry)
        unknown.append(await one.request("tools/call", params | retry))
        assert {json.dumps(answer.get("error"), sort_keys=True) for answer in unknown} == {
            json.dumps(UNKNOWN, sort_keys=True)
        }


UNKNOWN = {"code": -32602, "message": "Invalid or expired requestState", "data": {"reason": "invalid_request_state"}}


@modern
@pytest.mark.parametrize("end", ["its server is removed", "the gateway drains"])
async def test_a_parked_call_ends_when(end: str) -> None:
    async with asking() as (gateway, one):
        await one.request("tools/call", call(QUESTIONS["roots"][0]))
        assert gateway.gateway.parking.parked == 1
        await (gateway.gateway.store.files.delete("b") if end.startswith("its") else gateway.gateway.drain())
        await eventually(lambda: not gateway.gateway.parking.parked)
        await eventually(lambda: not gateway.gateway.pool.statistics().leases)


@modern
async def test_a_call_whose_client_leaves_ends_at_once_and_a_parked_one_when_its_time_is_up() -> None:
    slow = {"name": "b_ask", "arguments": {"then": [], "ask": []}}
    async with asking(timeouts={"question": 0.2}) as (gateway, one):
        await one.request("tools/call", call(QUESTIONS["roots"][0]))
        assert gateway.gateway.parking.parked == 1
        await eventually(lambda: not gateway.gateway.parking.parked)
        await eventually(lambda: not gateway.gateway.pool.statistics().leases)
        assert "result" in await one.request("tools/call", slow)


# -------------------------------------------------------------------------------------------- two calls at a time


@modern
async def test_while_one_call_is_parked_another_may_ask() -> None:
    async with asking() as (gateway, one), asked_client(gateway.url) as two:
        two.answers["roots/list"] = {"roots": [{"uri": "file:///two"}]}
        params = call(QUESTIONS["roots"][0])
        first = (await one.request("tools/call", params))["result"]
        assert "file:///two" in str(told(await two.finished("tools/call", params)))
        assert "file:///here" in str(told(await one.request("tools/call", params | one.retry(first))))


# ------------------------------------------------------------------------------------------------------- taken back


@modern  # mcp 1 says nothing to the client
async def test_a_client_hears_that_a_question_was_taken_back_before_its_call_is_answered() -> None:
    async with asking(version=HANDSHAKE) as (_, one), anyio.create_task_group() as tasks:
        one.answers["roots/list"] = None
        await one.request("tools/call", call())  # the backend has started
        for _number in range(5):
            before = len(one.asked)
            tasks.start_soon(one.request, "tools/call", call(in_vain=[{"method": "roots/list"}]))
            await eventually(lambda before=before: len(one.asked) > before)  # type: ignore[misc]
            await one.request("tools/call", call() | {"name": "b_seen"})
    assert [each["params"]["requestId"] for each in one.heard] == one.ids


@modern
async def test_a_question_that_was_taken_back_while_a_call_is_parked_needs_no_answer() -> None:
    async with asking() as (_, one):
        params = call(in_vain=[{"method": "roots/list"}])
        first = (await one.request("tools/call", params))["result"]
        await one.request("tools/call", call() | {"name": "b_seen"})
        assert told(await one.request("tools/call", params | one.retry(first)))["answers"] == []


# --------------------------------------------------------------------------------------- URLs, and when they are done

COMPLETE: Json = {"method": "notifications/elicitation/complete", "params": {"elicitationId": "id-1"}}


async def test_who_was_sent_a_url_hears_that_it_is_done_even_when_the_call_is_over() -> None:
    other = {"method": "notifications/elicitation/complete", "params": {"elicitationId": "of nobody"}}
    async with (
        asking(version=HANDSHAKE, isolation="shared") as (gateway, one),
        asked_client(gateway.url, version=HANDSHAKE) as two,
        one.listening(),
        two.listening(),
    ):
        await one.finished("tools/call", call(QUESTIONS["url"][0]))
        await two.finished("tools/call", call(say=[COMPLETE, other]))
        await eventually(lambda: bool(one.heard))
        assert [{key: each[key] for key in ("method", "params")} for each in one.heard] == [COMPLETE]
        assert two.heard == []


async def test_it_comes_on_the_request_that_is_open_if_there_is_one() -> None:
    async with asking(version=HANDSHAKE) as (_, one):
        await one.finished("tools/call", call(QUESTIONS["url"][0], say=[COMPLETE]))
        assert [each["params"] for each in one.heard] == [COMPLETE["params"]]


# ------------------------------------------------------------------------------------------------------------- pings


@pytest.mark.core
@pytest.mark.parametrize("version", VERSIONS)
async def test_a_backends_ping_is_answered_by_the_gateway(version: str) -> None:
    async with asking(version=version, client={}) as (_, one):
        assert told(await one.finished("tools/call", call({"method": "ping"})))["answers"] == [{}]
        assert one.asked == []
