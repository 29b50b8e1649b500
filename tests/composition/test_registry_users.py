"""What a user may not read is answered exactly as what does not exist; and nobody is told of what is not theirs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fastmcp import Client

from providers import lines
from providers.lines import MCPError
from providers.resource import McpServerResource
from tests.helpers.fakes import Call, FakeBackend, Json, no_waiting, signed_in, text, time_passes, tool
from tests.helpers.house import House, house_of

pytestmark = pytest.mark.core

ALL_KINDS = {"tools": {"listChanged": True}, "resources": {}, "prompts": {}}


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


def backend(name: str) -> FakeBackend:
    """A server with one of each component, which names itself in all that it says."""
    parts: dict[str, Json] = {
        "tools/list": {"tools": [tool("run", description=f"of {name}")]},
        "resources/list": {"resources": [{"uri": "data://a", "name": f"of {name}"}]},
        "resources/templates/list": {"resourceTemplates": [{"uriTemplate": "data://{x}", "name": f"of {name}"}]},
        "prompts/list": {"prompts": [{"name": "say", "description": f"of {name}"}]},
        "tools/call": text(f"by {name}"),
        "resources/read": {"contents": [{"uri": "data://a", "text": f"by {name}"}]},
        "prompts/get": {"messages": [{"role": "user", "content": {"type": "text", "text": f"by {name}"}}]},
    }

    def saying(result: Json) -> Any:
        async def answer(call: Call) -> Json:
            return result

        return answer

    answers = {method: saying(result) for method, result in parts.items()}
    return FakeBackend(name, capabilities=ALL_KINDS, answers=answers, instructions=f"instructions of {name}")


def record(name: str, *roles: str, **more: Any) -> McpServerResource:
    return McpServerResource(name=name, command="x", required_roles=roles, **more)


@asynccontextmanager
async def team(*records: McpServerResource) -> AsyncIterator[House]:
    """A house where callers are signed in."""
    backends = [backend(each.name) for each in records]
    async with house_of(*backends, records=list(records), local=None) as house:
        yield house


class Person:
    """A signed-in user with a client session. One SDK line takes the connection's token, the other each request's."""

    def __init__(self, client: Client[Any], name: str, roles: tuple[str, ...]) -> None:
        self._client, self._name, self._roles = client, name, roles
        self.told: set[str] = set()

    def signed_in(self) -> AbstractContextManager[None]:
        if not self._name:
            return nullcontext()
        return signed_in(self._name, roles=list(self._roles), iss="https://issuer.example")

    async def ask(self, method: str, params: Json | None = None) -> Json:
        with self.signed_in():
            return await lines.send_raw(self._client.session, method, params)

    async def answer_to(self, method: str, params: Json) -> str:
        """The whole answer, as JSON."""
        try:
            return json.dumps({"result": await self.ask(method, params)})
        except MCPError as error:
            return json.dumps({"error": lines.error_data(error)})

    async def everything_seen(self) -> str:
        """All that can be found out by listing, and what was told at the start."""
        told = self._client.initialize_result
        seen = [await self.ask(method) for method in LISTS]
        return json.dumps([told.model_dump(mode="json") if told else None, seen])

    async def tools(self) -> list[str]:
        return [each["name"] for each in (await self.ask("tools/list"))["tools"]]

    async def call(self, tool_name: str) -> str:
        return await self.answer_to("tools/call", {"name": tool_name, "arguments": {}})

    async def hears(self, message: Any) -> None:
        self.told.add(getattr(getattr(message, "root", message), "method", ""))


LISTS = ("tools/list", "resources/list", "resources/templates/list", "prompts/list")
TOOLS_CHANGED = "notifications/tools/list_changed"


@asynccontextmanager
async def user(house: House, name: str, *roles: str) -> AsyncIterator[Person]:
    """A client session of a user; without a name, of nobody."""
    heard: list[Person] = []

    async def hears(message: Any) -> None:
        for each in heard:
            await each.hears(message)

    client = house.client(message_handler=hears)
    person = Person(client, name, roles)
    heard.append(person)
    with person.signed_in():
        await client.__aenter__()
    try:
        yield person
    finally:
        await client.__aexit__(None, None, None)


def uses_of(server: str) -> list[tuple[str, Json]]:
    prompt = {"type": "ref/prompt", "name": f"{server}_say"}
    return [
        ("tools/call", {"name": f"{server}_run", "arguments": {}}),
        ("tools/call", {"name": f"{server}_no_such_tool", "arguments": {"a": 1}}),
        ("resources/read", {"uri": f"data://{server}/a"}),
        ("resources/read", {"uri": f"data://{server}/"}),
        ("resources/read", {"uri": f"urn://{server}/:a"}),
        ("prompts/get", {"name": f"{server}_say", "arguments": {}}),
        ("completion/complete", {"ref": prompt, "argument": {"name": "a", "value": ""}}),
    ]


# -------------------------------------------------------------------------------- hidden is absent


async def test_what_may_not_be_read_is_answered_byte_for_byte_as_what_does_not_exist() -> None:
    async with team(record("open", "*"), record("secret", "boss")) as house, user(house, "ann", "dev") as client:
        for (method, params), (_, absent) in zip(uses_of("secret"), uses_of("absent"), strict=True):
            forbidden = await client.answer_to(method, params)
            assert "absent" not in forbidden and "by secret" not in forbidden
            assert forbidden.replace("secret", "absent") == await client.answer_to(method, absent), method
        assert house.backends["secret"].attempts == 0


async def test_what_may_not_be_read_is_in_no_list_and_in_no_instructions() -> None:
    records = [record("open", "*"), record("secret", "boss")]
    async with team(*records) as house, user(house, "root", "mcp.admin") as admin:
        assert "secret" in await admin.everything_seen()
        async with user(house, "ann", "dev") as client:
            seen = await client.everything_seen()
    assert "secret" not in seen and "of open" in seen
    async with team(records[0]) as house, user(house, "ann", "dev") as client:
        assert seen == await client.everything_seen(), "as if it were not there at all"


@pytest.mark.parametrize(
    ("name", "roles", "visible"),
    [
        ("ann", ("dev",), {"everybodys", "devs", "anns"}),
        ("bob", ("boss", "other"), {"everybodys", "bosses"}),
        ("bob", (), {"everybodys"}),
        ("eve", ("*", "Dev", "mcp.Admin", "dev,boss"), {"everybodys"}),
        ("root", ("mcp.admin",), {"everybodys", "devs", "bosses", "anns", "of-another-ann", "nobodys"}),
        ("servers.toml", (), {"everybodys"}),
    ],
)
async def test_who_sees_and_uses_which_server(name: str, roles: tuple[str, ...], visible: set[str]) -> None:
    records = [
        record("everybodys", "*"),
        record("devs", "dev"),
        record("bosses", "boss"),
        record("nobodys"),
        record("anns", created_by="https%3A%2F%2Fissuer.example/ann"),
        record("of-another-ann", created_by="local/ann"),
    ]
    async with team(*records) as house, user(house, name, *roles) as client:
        listed = {each.partition("_")[0] for each in await client.tools()}
        used = {each.name for each in records if f"by {each.name}" in await client.call(f"{each.name}_run")}
    assert listed == used == visible


async def test_without_a_verified_principal_there_is_nothing() -> None:
    async with team(record("open", "*"), record("nobodys")) as house, user(house, "") as client:
        assert "of open" not in await client.everything_seen()
        for method, params in uses_of("open"):
            assert "by open" not in await client.answer_to(method, params)
        assert house.pool.statistics().opened == 0 and house.registry.input_schema("open_run") is None


# ---------------------------------------------------------------------------------------- changes


async def test_a_change_of_roles_counts_from_the_next_request_on_without_connecting_again() -> None:
    async with team(record("files", "dev")) as house, user(house, "ann", "dev") as client:
        assert "by files" in await client.call("files_run")
        await house.store.upsert(record("files", "boss"))
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        assert "Unknown tool" in await client.call("files_run") and "of files" not in await client.everything_seen()
        await house.store.upsert(record("files", "dev"))
        await time_passes(1)
        assert "by files" in await client.call("files_run")
        assert len(house.backends["files"].wires) == 1


async def test_only_who_may_read_a_server_is_told_that_it_came_changed_or_went() -> None:
    async with (
        team(record("files", "dev"), record("open", "*")) as house,
        user(house, "ann", "dev") as ann,
        user(house, "bob", "ops") as bob,
        user(house, "") as nobody,
    ):
        for person in (ann, bob, nobody):
            await person.tools()
        house.backends["late"] = backend("late")
        for change in (
            house.store.upsert(record("files", "dev", description="new")),
            house.store.upsert(record("late", "dev")),
            house.store.delete("late"),
        ):
            ann.told.clear()
            await change
            await time_passes(1)
            assert TOOLS_CHANGED in ann.told and bob.told == nobody.told == set()
        await house.store.upsert(record("open", "*", description="new"))
        await time_passes(1)
        assert TOOLS_CHANGED in bob.told and nobody.told == set()


async def test_who_loses_or_gains_a_server_is_told() -> None:
    async with (
        team(record("files", "dev")) as house,
        user(house, "ann", "dev") as ann,
        user(house, "bob", "ops") as bob,
        user(house, "eve", "qa") as eve,
    ):
        for person in (ann, bob, eve):
            await person.tools()
        await house.store.upsert(record("files", "ops"))
        await time_passes(1)
        assert TOOLS_CHANGED in bob.told, "bob has it now"
        assert TOOLS_CHANGED in ann.told, "ann has it no longer"
        assert eve.told == set() and (await ann.tools(), await bob.tools()) == ([], ["files_run"])


async def test_one_users_news_are_not_told_to_another() -> None:
    """The backend offers each user something else; only the one whose list changed is told."""
    offers = {"ann": ["a"], "bob": ["b"]}

    async def by_user(call: Call) -> Json:
        return {"tools": [tool(name) for name in offers[str(call.user)]]}

    async with team(record("files", "*")) as house:
        files = house.backends["files"]
        files.answers["tools/list"] = by_user
        async with user(house, "ann") as ann, user(house, "bob") as bob:
            for person in (ann, bob):
                await person.tools()
            await time_passes(10)
            offers["ann"] = ["a", "a2"]
            await files.wires[0].say(TOOLS_CHANGED)
            await time_passes(3)
            assert TOOLS_CHANGED in ann.told and bob.told == set()
            assert (await ann.tools(), await bob.tools()) == (["files_a", "files_a2"], ["files_b"])


async def test_two_users_see_and_use_their_own_on_a_connection_that_they_share() -> None:
    async def by_user(call: Call) -> Json:
        return {"tools": [tool(f"of-{call.user}")]}

    async def who(call: Call) -> Json:
        return text(f"called by {call.user}")

    async with team(record("files", "*", isolation="shared")) as house:
        house.backends["files"].answers |= {"tools/list": by_user, "tools/call": who}
        async with user(house, "ann") as ann, user(house, "bob") as bob:
            for person, name in ((ann, "ann"), (bob, "bob"), (ann, "ann")):
                assert await person.tools() == [f"files_of-{name}"]
                assert f"called by {name}" in await person.call(f"files_of-{name}")
            assert "Unknown tool" in await ann.call("files_of-bob")
        assert len(house.backends["files"].wires) == 1
