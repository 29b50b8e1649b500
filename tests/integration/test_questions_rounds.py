"""What a backend of 2026-07-28 asks, put to a client of the handshake era as requests while its call is open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from providers.lines import MODERN
from tests.helpers.asked import AskedClient, asked_client
from tests.helpers.gateway import ServedGateway, gateway_over_http, patient_toml, remote
from tests.helpers.http_backend import HttpBackend, Seen, http_backend
from tests.helpers.rpc import HANDSHAKE, NEWEST, Json
from tests.integration.test_questions import QUESTIONS

pytestmark = pytest.mark.skipif(not MODERN, reason="FastMCP 3.4 speaks the handshake era alone")

KEY = "io.modelcontextprotocol/clientCapabilities"
DONE: Json = {"content": [{"type": "text", "text": "done"}]}


class Asking:
    """A backend that knows 2026-07-28 alone, and answers its tool with one result after the other."""

    def __init__(self, http: HttpBackend) -> None:
        self.http = http
        self.results: list[Json] = []
        self.calls: list[Json] = []
        for method, answer in {"server/discover": DISCOVERED, "tools/list": LISTED}.items():
            http.answers[method] = self._always(answer)
        http.answers["tools/call"] = self._call
        http.answers["initialize"] = self._refuse

    def _always(self, result: Json) -> Any:
        async def answer(seen: Seen) -> web.Response:
            return _answered(seen, result)

        return answer

    async def _refuse(self, seen: Seen) -> web.Response:
        error = {"code": -32601, "message": "Method not found"}
        return web.json_response({"jsonrpc": "2.0", "id": seen.message["id"], "error": error})

    async def _call(self, seen: Seen) -> web.Response:
        self.calls.append(seen.message["params"])
        return _answered(seen, self.results.pop(0) if self.results else DONE)


DISCOVERED: Json = {
    "supportedVersions": [NEWEST],
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "asks", "version": "1"},
}
LISTED: Json = {"tools": [{"name": "ask", "inputSchema": {"type": "object"}}]}


def _answered(seen: Seen, result: Json) -> web.Response:
    envelope = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
    return web.json_response({"jsonrpc": "2.0", "id": seen.message["id"], "result": {**envelope, **result}})


def asks(state: str | None = None, **questions: Json) -> Json:
    result: Json = {"resultType": "input_required"}
    return result | ({"inputRequests": questions} if questions else {}) | ({"requestState": state} if state else {})


@asynccontextmanager
async def asking(
    *, version: str = HANDSHAKE, client: Json | None = None, **more: Any
) -> AsyncIterator[tuple[Asking, AskedClient, ServedGateway]]:
    async with (
        http_backend() as http,
        gateway_over_http(patient_toml({"b": remote(http.url, **more)})) as gateway,
        asked_client(gateway.url, version=version, capabilities=client) as one,
    ):
        yield Asking(http), one, gateway


CALL: Json = {"name": "b_ask", "arguments": {"x": 1}}


def as_in_2026(question: Json) -> Json:
    """The era has no ids of elicitations."""
    params = {key: value for key, value in question.get("params", {}).items() if key != "elicitationId"}
    return question | ({"params": params} if params else {})


@pytest.mark.parametrize("version", [HANDSHAKE, NEWEST])
@pytest.mark.parametrize("kind", QUESTIONS)
async def test_questions_and_answers_pass_word_for_word(kind: str, version: str) -> None:
    question, answer = as_in_2026(QUESTIONS[kind][0]), QUESTIONS[kind][1]
    async with asking(version=version) as (backend, one, _):
        one.answers[question["method"]] = answer
        backend.results = [asks("s1", q=question)]
        assert (await one.finished("tools/call", CALL))["result"]["content"] == DONE["content"]
        first, second = backend.calls
        assert second["inputResponses"] == {"q": answer} and second["requestState"] == "s1"
        assert (first["name"], first["arguments"]) == (second["name"], second["arguments"]) == ("ask", {"x": 1})
        assert [as_in_2026(each) for each in one.asked] == [question]
        assert version == NEWEST or kind != "url" or one.asked[0]["params"]["elicitationId"]


async def test_all_questions_of_a_round_are_asked_at_once_and_rounds_follow_each_other() -> None:
    form, roots = QUESTIONS["form"][0], QUESTIONS["roots"][0]
    async with asking() as (backend, one, _):
        backend.results = [asks("s1", a=form, b=roots), asks("s2"), asks(None, c=roots)]
        assert "result" in await one.finished("tools/call", CALL)
        states = [call.get("requestState") for call in backend.calls]
        answered = [sorted(call.get("inputResponses", {})) for call in backend.calls]
        assert (states, answered) == ([None, "s1", "s2", None], [[], ["a", "b"], [], ["c"]])
        assert sorted(each["method"] for each in one.asked) == ["elicitation/create", "roots/list", "roots/list"]


async def test_a_backend_that_asks_too_much_at_once_is_not_heard() -> None:
    roots = QUESTIONS["roots"][0]
    async with asking() as (backend, one, _):
        backend.results = [asks("s1", **{f"q{number}": roots for number in range(17)})]
        told = await one.finished("tools/call", CALL)
        assert "more than 16 questions" in str(told) and one.asked == []


async def test_what_the_client_declared_is_what_the_backend_is_told_in_each_request() -> None:
    declared = {"elicitation": {"form": {"applyDefaults": True}}, "roots": {"listChanged": True}}
    async with asking(client={**declared, "experimental": {"x": {}}, "tasks": {}}) as (backend, one, _):
        await one.finished("tools/call", CALL)
        told = [seen.message["params"]["_meta"][KEY] for seen in backend.http.seen if KEY in seen.body.decode()]
        assert told and all(each == declared for each in told[1:])


@pytest.mark.parametrize(
    ("declared", "kind", "missing"),
    [
        ({}, "roots", {"roots": {}}),
        ({"elicitation": {}}, "url", {"elicitation": {"url": {}}}),
        ({"sampling": {}}, "sampling", {"sampling": {"tools": {}}}),
    ],
)
async def test_what_was_not_declared_is_the_error_of_the_protocol(declared: Json, kind: str, missing: Json) -> None:
    async with asking(client=declared) as (backend, one, _):
        backend.results = [asks(None, q=as_in_2026(QUESTIONS[kind][0]))]
        answer = await one.request("tools/call", CALL)
        assert answer["error"]["code"] == -32021 and answer["error"]["data"] == {"requiredCapabilities": missing}
        assert one.asked == [] and len(backend.calls) == 1


async def test_a_backends_own_refusal_for_want_of_a_capability_passes() -> None:
    async with asking(client={}) as (backend, one, _):
        error = {"code": -32021, "message": "I need roots.", "data": {"requiredCapabilities": {"roots": {}}}}

        async def refuse(seen: Seen) -> web.Response:
            return web.json_response({"jsonrpc": "2.0", "id": seen.message["id"], "error": error}, status=400)

        backend.http.answers["tools/call"] = refuse
        assert (await one.request("tools/call", CALL))["error"] == error


async def test_a_clients_error_ends_the_call_with_it() -> None:
    async with asking() as (backend, one, _):
        one.answers["roots/list"] = {"code": -1, "message": "not now"}
        backend.results = [asks(None, q=QUESTIONS["roots"][0])]
        answer = await one.request("tools/call", CALL)
        assert "not now" in str(answer) and len(backend.calls) == 1


async def test_a_backend_that_asks_without_end_is_given_up() -> None:
    async with asking() as (backend, one, _):
        backend.results = [asks(str(number), q=QUESTIONS["roots"][0]) for number in range(100)]
        answer = await one.request("tools/call", CALL)
        assert "asked for input 32 times" in str(answer) and len(backend.calls) == 33


async def test_all_of_it_has_the_hard_deadline_of_a_call() -> None:
    async with asking(timeouts={"call": 0.5, "call_max": 0.5}) as (backend, one, _):
        backend.results = [asks("again") for _ in range(100)]
        answer = await one.request("tools/call", CALL)
        assert "was not finished within 0.5 s" in str(answer)
