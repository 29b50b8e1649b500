"""What may not be read has the bytes of what is not there, whatever is wrong with the request, and nobody hears of it.

That of plain requests is in `table.py`. Here are those that a gateway could answer early, because it knows the server:
wrong arguments, headers that name parameters, cursors; and what is sent without being asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from tests.helpers.processes import eventually
from tests.helpers.rpc import HANDSHAKE
from tests.security.house import UNKNOWN_SESSION, VERSIONS, Answer, House, Json, Person, house, server

pytestmark = pytest.mark.core

ECHO = {"name": "mine_echo", "arguments": {"text": "hi"}}
ODD: dict[str, tuple[str, Json, dict[str, str]]] = {
    "a missing argument": ("tools/call", {"name": "mine_echo", "arguments": {}}, {}),
    "a wrong argument": ("tools/call", {"name": "mine_add", "arguments": {"a": "x", "b": []}}, {}),
    "one too many": ("tools/call", {"name": "mine_echo", "arguments": {"text": "x", "more": 1}}, {}),
    "no arguments": ("tools/call", {"name": "mine_pid"}, {}),
    "a tool that there is none of": ("tools/call", {"name": "mine_nothing", "arguments": {}}, {}),
    "a parameter in a header": ("tools/call", ECHO, {"Mcp-Param-Text": "other"}),
    "another name in the header": ("tools/call", ECHO, {"Mcp-Name": "x_y"}),
    "a token for progress": ("tools/call", ECHO | {"_meta": {"progressToken": 1}}, {}),
    "an answer that nobody asked for": ("tools/call", ECHO | {"inputResponses": {"x": {}}, "requestState": "x"}, {}),
    "an own namespace": ("tools/call", {"name": "mine_mine_echo", "arguments": {}}, {}),
    "only the server": ("tools/call", {"name": "mine", "arguments": {}}, {}),
    "nothing of the server": ("tools/call", {"name": "mine_", "arguments": {}}, {}),
    "a prompt without what it needs": ("prompts/get", {"name": "mine_summarize"}, {}),
    "a prompt with too much": ("prompts/get", {"name": "mine_summarize", "arguments": {"x": "y"}}, {}),
    "an unknown prompt": ("prompts/get", {"name": "mine_nothing"}, {}),
    "a filled template": ("resources/read", {"uri": "data://mine/item/1"}, {}),
    "an unfilled template": ("resources/read", {"uri": "data://mine/item/{id}"}, {}),
    "an unknown resource": ("resources/read", {"uri": "other://mine/x"}, {}),
    "the server as a resource": ("resources/read", {"uri": "data://mine"}, {}),
    "a path that climbs": ("resources/read", {"uri": "data://mine/../greeting"}, {}),
    "an argument in the making": (
        "completion/complete",
        {"ref": {"type": "ref/prompt", "name": "mine_nothing"}, "argument": {"name": "topic", "value": "x"}},
        {},
    ),
    "a resource in the making": (
        "completion/complete",
        {
            "ref": {"type": "ref/resource", "uri": "data://mine/nothing"},
            "argument": {"name": "x", "value": ""},
            "context": {"arguments": {"a": "b"}},
        },
        {},
    ),
    "a subscription": ("resources/subscribe", {"uri": "data://mine/item/1"}, {}),
    "the end of a subscription": ("resources/unsubscribe", {"uri": "data://mine/greeting"}, {}),
    "a stream": (
        "subscriptions/listen",
        {"notifications": {"resourceSubscriptions": ["data://mine/greeting"], "promptsListChanged": True}},
        {},
    ),
    "a cursor": ("tools/list", {"cursor": "mine"}, {}),
}
LISTS = ("server/discover", "tools/list", "prompts/list", "resources/list", "resources/templates/list")
PAGES = ("/adapters", "/tools", "/openapi.json", "/readyz", "/livez", "/.well-known/oauth-protected-resource/mcp")


def about(value: Any, name: str) -> Any:
    return json.loads(json.dumps(value).replace("mine", name))


@asynccontextmanager
async def asking(made: House, who: str, version: str) -> AsyncIterator[Person]:
    person = made.person(who, None, version)
    if version == HANDSHAKE:
        await person.shake_hands()
    yield person


async def answers(person: Person, *names: str) -> dict[str, list[Answer]]:
    """To each odd request, about each name in turn."""
    found: dict[str, list[Answer]] = {}
    for what, (method, params, headers) in ODD.items():
        for name in names:
            person.more = about(headers, name)
            came = await person.ask(method, about(params, name))
            found.setdefault(what, []).append(came.about(name, "mine").bare)
    return found


@pytest.mark.parametrize("version", VERSIONS)
async def test_hidden_is_absent_whatever_is_wrong(version: str) -> None:
    async with house(server("mine", "guest")) as made, asking(made, "stranger", version) as eve:
        for what, (hidden, absent) in (await answers(eve, "mine", "nope")).items():
            assert hidden == absent, what


@pytest.mark.parametrize("version", VERSIONS)
async def test_disabled_is_absent_even_to_its_readers(version: str) -> None:
    off = server("mine", "guest", is_enabled=False)
    async with house(off) as made:
        for who in ("reader", "admin"):
            async with asking(made, who, version) as person:
                for what, (hidden, absent) in (await answers(person, "mine", "nope")).items():
                    assert hidden == absent, (who, what)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_tool_that_is_left_out_is_absent(version: str) -> None:
    """To who may read its server, too."""
    mine = server("mine", "guest", tools={"exclude": ["echo", "add"]})
    async with house(mine) as made, asking(made, "reader", version) as bob:
        for arguments in ({}, {"text": "hi"}, {"text": 5}):
            left_out = await bob.ask("tools/call", {"name": "mine_echo", "arguments": arguments})
            absent = await bob.ask("tools/call", {"name": "mine_ohce", "arguments": arguments})
            assert left_out.bare == absent.about("ohce", "echo").bare


# ----------------------------------------------------------------------------------------------- one server's address


@pytest.mark.parametrize("who", ["anonymous", "stranger"])
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE", "HEAD", "PUT", "OPTIONS"])
async def test_the_address_of_a_hidden_server_is_that_of_none(who: str, method: str) -> None:
    async with house(server("mine", "guest"), server("dark", is_enabled=False)) as made:
        found = set()
        # who has no token is told of the metadata of this address, for any name that a server could have
        names = ("mine", "nope", "dark", *(() if who == "anonymous" else ("No_Name",)))
        for name in names:
            for body in (b"{}", b"", b"no json", b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}'):
                for session in (None, UNKNOWN_SESSION):
                    person = made.person(who, name)
                    person.session_id = session
                    found.add((await person.send(method, data=body)).bare)
        told = {
            (each.status, each.text, re.sub("/adapters/[a-z]+/", "/adapters/NAME/", str(each.headers)))
            for each in found
        }
        assert len(told) == 1, told
        assert found.pop().status in (401, 404, 405)


# ------------------------------------------------------------------------------------------------ what is sent unasked


@asynccontextmanager
async def listening(person: Person, heard: list[Json]) -> AsyncIterator[None]:
    """Note all that the person is told, on the stream of the session or on one of the newest era."""
    opened = anyio.Event()

    async def listen() -> None:
        params = {"notifications": {f"{kind}ListChanged": True for kind in ("tools", "prompts", "resources")}}
        async with person.stream("subscriptions/listen", params) as answer:
            assert answer.status == 200
            if person.version == HANDSHAKE:
                opened.set()
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    message = json.loads(line[5:])
                    if str(message.get("method")).endswith("acknowledged"):
                        opened.set()
                    else:
                        heard.append(message)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        await opened.wait()
        yield
        tasks.cancel_scope.cancel()


def names(heard: list[Json]) -> set[str]:
    return {str(message["method"]) for message in heard}


@pytest.mark.parametrize("version", VERSIONS)
async def test_nobody_hears_of_what_he_could_not_read(version: str) -> None:
    """Nor of its coming, its change or its end; and everybody of what concerns him."""
    hers: list[Json] = []
    his: list[Json] = []
    async with house(server("open", "*")) as made:
        store = made.served.gateway.store
        async with asking(made, "stranger", version) as eve, asking(made, "reader", version) as bob:
            for person in (eve, bob):
                await person.ask("tools/list")
            async with listening(eve, hers), listening(bob, his):
                for change in (server("mine", "guest"), server("mine", "guest", tools={"exclude": ["echo"]}), None):
                    await (store.upsert(change) if change else store.delete("mine"))
                    await eventually(lambda: "notifications/tools/list_changed" in names(his))
                    his.clear()
                assert hers == []
                await store.upsert(server("open", "*", tools={"exclude": ["echo"]}))
                await eventually(lambda: "notifications/tools/list_changed" in names(hers))
        assert len([each for each in hers if "tools" in each["method"]]) == 1


async def test_what_is_hidden_is_in_no_word_of_the_gateway() -> None:
    """All that the gateway says to a stranger, over everything that may be asked without a name."""
    secret = "zebra"
    hidden = server(secret, "guest", description=f"{secret} things")
    async with house(hidden, server("open", "*")) as made:
        said: list[str] = []
        for version in VERSIONS:
            person = made.person("stranger", None, version)
            said.append((await person.shake_hands()).text if version == HANDSHAKE else "")
            for method in (
                "server/discover",
                "tools/list",
                "prompts/list",
                "resources/list",
                "resources/templates/list",
            ):
                said.append((await person.ask(method)).text)
        for path in (
            "/adapters",
            "/tools",
            "/openapi.json",
            "/readyz",
            "/livez",
            "/.well-known/oauth-protected-resource/mcp",
        ):
            headers = {"Authorization": f"Bearer {made.tokens['stranger']}"}
            async with made.http.get(made.base + path, headers=headers) as answer:
                said.append(await answer.text() + str(answer.headers))
        assert any("open" in text for text in said)
        assert not any(secret in text for text in said)
