"""The servers that a command finds in the configured store, below those of servers.toml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from composition.api.masks import masked_url
from composition.api.shapes import image_parts, shown
from composition.records import StoreRecords
from composition.servers_file import Configuration
from composition.settings import Settings
from providers.errors import CallerError, ConfigurationError, VersionConflict
from providers.identity import Identity
from providers.resource import McpServerResource
from providers.store import InMemoryMcpResourceStore

pytestmark = pytest.mark.core

OPERATOR = Identity("ann", "Ann", frozenset({"mcp.admin"}))
OF_THE_FILE = McpServerResource(name="files", command="files")
SECRET = "s3cret-value"


def configuration() -> Configuration:
    return Configuration(
        Settings.model_validate({"timeouts": {"call": 7}}), {"files": OF_THE_FILE}, Path("servers.toml")
    )


def records(*stored: McpServerResource) -> tuple[StoreRecords, InMemoryMcpResourceStore]:
    store = InMemoryMcpResourceStore(stored)
    return StoreRecords(configuration(), store, OPERATOR), store


def docs(**more: Any) -> McpServerResource:
    return McpServerResource(name="docs", **{"url": "https://docs.example.com/mcp", "created_by": "bob", **more})


async def test_what_is_added_is_the_operators_and_has_the_deadlines_of_the_gateway() -> None:
    desk, store = records()
    said = await desk.add({"name": "docs", "url": "https://docs.example.com/mcp", "required_roles": ("reader",)})
    stored = await store.get("docs")
    assert stored is not None and stored.timeouts.call == 7 and stored.version == 1
    assert (said["createdBy"], said["source"], said["requiredRoles"]) == ("ann", "api", ["reader"])


async def test_everything_that_is_wrong_is_told_at_once_and_nothing_is_stored() -> None:
    desk, store = records()
    with pytest.raises(ConfigurationError) as refusal:
        await desk.add({"name": "No Name", "url": "ftp://x", "isolation": "none"})
    assert [problem.partition(":")[0] for problem in refusal.value.problems] == ["name", "url", "isolation"]
    assert not await store.list_all()


async def test_a_folder_that_no_container_may_see_is_refused_before_it_is_stored() -> None:
    desk, store = records()
    with pytest.raises(ConfigurationError, match=r"docker_volumes item 1: leads to '/etc'.* no container may see that"):
        await desk.add({"name": "box", "docker_image": "x", "docker_volumes": ("/etc:/data",)})
    assert not await store.list_all()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": "x"}, "the server needs 'command'"),
        ({"name": "x", "url": "https://x.example", "env": {"A": "1"}}, "the server has 'env'"),
    ],
)
async def test_a_server_is_reached_in_one_way(fields: dict[str, Any], text: str) -> None:
    desk, _ = records()
    with pytest.raises(ConfigurationError, match=text):
        await desk.add(fields)


@pytest.mark.parametrize("name", ["docs", "files"])
async def test_a_name_is_given_once(name: str) -> None:
    desk, store = records(docs())
    before = await store.list_all()
    with pytest.raises(CallerError):
        await desk.add({"name": name, "command": "x"})
    assert await store.list_all() == before


async def test_servers_are_switched_off_on_and_removed() -> None:
    desk, store = records(docs())
    assert (await desk.switch("docs", is_enabled=False))["isEnabled"] is False
    assert (await desk.switch("docs", is_enabled=False))["version"] == 2, "nothing changed"
    assert (await desk.switch("docs", is_enabled=True))["createdBy"] == "bob"
    await desk.remove("docs")
    assert not await store.list_all()


async def test_who_was_faster_is_not_overwritten() -> None:
    desk, store = records(docs())
    read = store.get

    async def overtaken(name: str) -> McpServerResource | None:
        found = await read(name)
        await store.upsert(docs(description="newer"))
        return found

    store.get = overtaken  # type: ignore[method-assign]
    with pytest.raises(VersionConflict):
        await desk.switch("docs", is_enabled=False)
    with pytest.raises(VersionConflict):
        await desk.remove("docs")


async def test_servers_of_the_file_are_shown_and_not_changed() -> None:
    desk, _ = records(docs())
    assert [(each["name"], each["source"]) for each in await desk.all()] == [("docs", "api"), ("files", "servers.toml")]
    assert (await desk.get("files"))["command"] == "files"
    for change in (desk.switch("files", is_enabled=False), desk.remove("files")):
        with pytest.raises(CallerError, match="Edit that file"):
            await change


async def test_a_name_that_there_is_not() -> None:
    desk, _ = records()
    for ask in (desk.get("nothing"), desk.switch("nothing", is_enabled=True), desk.remove("nothing")):
        with pytest.raises(CallerError, match="there is no server 'nothing'"):
            await ask


async def test_without_a_store_servers_are_shown_and_nothing_is_changed() -> None:
    desk = StoreRecords(configuration(), None, OPERATOR)
    assert [each["name"] for each in await desk.all()] == ["files"]
    with pytest.raises(ConfigurationError, match="--gateway"):
        await desk.add({"name": "docs", "command": "x"})


@pytest.mark.parametrize(
    "resource",
    [
        docs(url=f"https://me:{SECRET}@x.example/mcp?key={SECRET}#{SECRET}", headers={"X-Key": SECRET}),
        McpServerResource(name="a", command="x", args=("--key", SECRET), env={"KEY": SECRET}),
        McpServerResource(name="b", docker_image="x", docker_secrets={"KEY": SECRET}, docker_command=("x", SECRET)),
    ],
    ids=lambda resource: resource.name,
)
def test_secrets_are_not_shown(resource: McpServerResource) -> None:
    assert SECRET not in str(shown(resource))


def test_a_url_keeps_what_is_no_secret() -> None:
    assert masked_url("https://me:x@host.example:81/mcp?key=x#y") == "https://***@host.example:81/mcp?key=***#***"
    assert masked_url("http://[") == "***"


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("mcp/time", ("mcp/time", None)),
        ("mcp/time:1.2", ("mcp/time", "1.2")),
        ("host:5000/time", ("host:5000/time", None)),
        ("host:5000/time:1@sha256:ab", ("host:5000/time", "1@sha256:ab")),
        ("time@sha256:ab", ("time", "sha256:ab")),
    ],
)
def test_an_image_has_a_name_and_a_version(image: str, parts: tuple[str, str | None]) -> None:
    assert image_parts(image) == parts
