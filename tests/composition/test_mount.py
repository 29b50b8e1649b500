"""A mount: one server under its name. Names and URIs go in and come out exactly; a call enters the sub-server once."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from composition.names import into_namespace, out_of_namespace, server_of
from tests.helpers.fakes import Call, FakeBackend, Json, caller_of, no_waiting, text, tool
from tests.helpers.house import OPERATOR, House, house_of

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


# -------------------------------------------------------------------------------------------- URIs

URIS = {
    "data://greeting": "data://files/greeting",
    "file:///etc/hosts": "file://files//etc/hosts",
    "file:///": "file://files//",
    "file://": "file://files/",
    "https://example.com:8080/a/b?c=d&e=%2F#f": "https://files/example.com:8080/a/b?c=d&e=%2F#f",
    "https://user:pass@[::1]/x": "https://files/user:pass@[::1]/x",
    "urn:isbn:0451450523": "urn://files/:isbn:0451450523",
    "mailto:a@example.com": "mailto://files/:a@example.com",
    "data:text/plain,hello%20world": "data://files/:text/plain,hello%20world",
    "x:": "x://files/:",
    "x://?q=1": "x://files/?q=1",
    "x://#f": "x://files/#f",
    "x:/one/slash": "x://files/:/one/slash",
    "a:b://c": "a://files/:b://c",
    "x://:8080/p": "x://files/://:8080/p",
    "x:::y": "x://files/:::y",
    "notes://{id}": "notes://files/{id}",
    "notes://{+path}{?a,b*}": "notes://files/{+path}{?a,b*}",
    "{scheme}://x": "{scheme}://files/x",
    "ui://widget/../../etc": "ui://files/widget/../../etc",
    "git+ssh://host//double///slashes": "git+ssh://files/host//double///slashes",
    "x://a b/ü/李": "x://files/a b/ü/李",
    "x://_a_b_": "x://files/_a_b_",
    "x://files/files/": "x://files/files/files/",
}


@pytest.mark.parametrize("uri", URIS)
def test_a_uri_goes_into_the_namespace_and_comes_out_as_it_was(uri: str) -> None:
    assert into_namespace(uri, "files") == URIS[uri]
    assert out_of_namespace(URIS[uri]) == uri and server_of(URIS[uri]) == "files"


def random_uri(pick: random.Random) -> str:
    """A URI of odd but allowed parts."""
    scheme = pick.choice(["x", "file", "git+ssh", "a.b-c", "h2", "{s}"])
    parts = ["", "/", "a", "%2F", "?", "#", ":", "//", "{x}", "{?q}", "..", "@", "[", "é", " ", "_", "=&", "files", "-"]
    rest = "".join(pick.choice(parts) for _ in range(pick.randint(0, 8)))
    return f"{scheme}:{pick.choice(('', '//'))}{rest}"


def test_any_uri_comes_out_as_it_was_and_no_two_become_one() -> None:
    pick = random.Random(11)
    uris = {random_uri(pick) for _ in range(20_000)}
    inside = {uri: into_namespace(uri, "my-server-1") for uri in uris}
    assert {uri: out_of_namespace(public) for uri, public in inside.items()} == {uri: uri for uri in uris}
    assert all(server_of(public) == "my-server-1" for public in inside.values())
    assert len(set(inside.values())) == len(uris) > 10_000


@pytest.mark.parametrize("uri", ["", "x", "x:", "x:y", "://", "x://", "x:///", "/a", "urn:a:b", "x:///etc"])
def test_a_uri_of_no_server_belongs_to_none(uri: str) -> None:
    assert server_of(uri) == ""


# ------------------------------------------------------------------------------- what it offers


def library() -> FakeBackend:
    """A backend with all kinds of components, and links in what it returns."""
    lists: dict[str, Json] = {
        "resources/list": {
            "resources": [{"uri": "data://a", "name": "a"}, {"uri": "urn:b", "name": "b", "mimeType": "text/x"}]
        },
        "resources/templates/list": {"resourceTemplates": [{"uriTemplate": "data://{id}", "name": "item"}]},
        "prompts/list": {"prompts": [{"name": "sum_up", "arguments": [{"name": "topic", "required": True}]}]},
        "resources/read": {"contents": [{"uri": "data://a", "text": "A"}, {"uri": "urn:b", "blob": "aGk="}]},
        "prompts/get": {
            "messages": [
                {"role": "user", "content": {"type": "resource", "resource": {"uri": "data://a", "text": "A"}}},
                {"role": "user", "content": {"type": "text", "text": "see data://a"}},
            ]
        },
        "tools/call": {
            "content": [
                {"type": "resource_link", "uri": "data://a", "name": "a"},
                {"type": "resource", "resource": {"uri": "urn:b", "text": "B"}},
                {"type": "text", "text": "data://a"},
            ],
            "structuredContent": {"uri": "data://a"},
        },
    }

    def saying(result: Json) -> Any:
        async def answer(call: Call) -> Json:
            return result

        return answer

    return FakeBackend(
        "lib",
        tools=[tool("find"), tool("find_all"), tool("x" * 100)],
        capabilities={"tools": {}, "resources": {}, "prompts": {}},
        answers={method: saying(result) for method, result in lists.items()},
    )


async def test_components_are_offered_under_the_servers_name() -> None:
    async with house_of(library()) as house, house.client() as client:
        assert [each.name for each in await client.list_tools()] == ["lib_find", "lib_find_all", f"lib_{'x' * 100}"]
        assert [each.name for each in await client.list_prompts()] == ["lib_sum_up"]
        resources = await client.list_resources()
        assert [str(each.uri) for each in resources] == ["data://lib/a", "urn://lib/:b"]
        templates = await client.list_resource_templates()
        assert [getattr(each, "uri_template", None) or each.uriTemplate for each in templates] == ["data://lib/{id}"]


async def test_what_a_tool_links_to_can_be_read() -> None:
    backend = library()
    async with house_of(backend) as house, house.client() as client:
        result = await client.call_tool("lib_find")
        link, embedded, words = (each.model_dump(mode="json", exclude_none=True) for each in result.content)
        assert link["uri"] == "data://lib/a" and embedded["resource"]["uri"] == "urn://lib/:b"
        assert words["text"] == "data://a" and result.structured_content == {"uri": "data://a"}
        for uri, inner in ((link["uri"], "data://a"), (embedded["resource"]["uri"], "urn:b")):
            contents = await client.read_resource(uri)
            assert [str(each.uri) for each in contents] == ["data://lib/a", "urn://lib/:b"]
            asked = [message for message in backend.wire.received if message.get("method") == "resources/read"]
            assert asked[-1]["params"]["uri"] == inner


async def test_a_prompts_embedded_resource_can_be_read_too() -> None:
    async with house_of(library()) as house, house.client() as client:
        messages = (await client.get_prompt("lib_sum_up", {"topic": "x"})).messages
        first, second = (each.model_dump(mode="json")["content"] for each in messages)
        assert first["resource"]["uri"] == "data://lib/a" and second["text"] == "see data://a"


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "resource_link", "uri": 5, "name": "a"}],
        [{"type": "resource", "resource": "text"}],
        [{"type": "resource"}],
        ["text"],
        [None],
        [{"type": "text", "text": "ok"}, 5],
        "text",
        None,
        5,
    ],
    ids=str,
)
async def test_content_that_is_no_content_is_an_error_of_that_call_alone(content: Any) -> None:
    async def answer(call: Call) -> Json:
        return {"content": content} if call.arguments else text("fine")

    backend = FakeBackend("lib", answers={"tools/call": answer})
    async with house_of(backend) as house, house.client() as client:
        result = await client.call_tool("lib_echo", {"text": "x"}, raise_on_error=False)
        assert result.is_error and "Traceback" not in str(result.content)
        assert (await client.call_tool("lib_echo")).content[0].text == "fine"  # type: ignore[union-attr]
        assert len(backend.wires) == 1


# ------------------------------------------------------------------------------------- generations


async def test_a_mount_says_what_it_is() -> None:
    house = House(FakeBackend("files"))
    mount = house.registry.mounts["files"]
    assert repr(mount) == f"<Mount files generation {mount.target.generation}>"


async def test_a_server_that_is_added_again_does_not_meet_its_own_past() -> None:
    house = House(FakeBackend("files"))
    first = house.registry.mounts["files"].target
    house.registry.sync({})
    house.registry.sync(house.store.snapshot)
    assert house.registry.mounts["files"].target.generation > first.generation


async def test_an_offer_is_made_once_for_each_listing_and_record() -> None:
    async with house_of(library()) as house, house.client() as client:
        await client.list_tools()
        mount = house.registry.mounts["lib"]
        listing = mount.catalogue.peek(house_caller(house))
        assert listing is not None and mount.offer(listing) is mount.offer(listing)
        before = mount.offer(listing)
        mount.update(mount.resource.model_copy(update={"description": "new"}), None)
        assert mount.offer(listing) is not before


def house_caller(house: House) -> Any:
    return caller_of(OPERATOR, "process")
