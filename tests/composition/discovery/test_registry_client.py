"""The registry as its API is, over real HTTP: pages, versions, copies, and answers that are none."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

import anyio
import pytest
from aiohttp import web

from composition.discovery.cache import DocumentCache, DocumentUnavailable
from composition.discovery.registry_client import RegistryClient
from providers.errors import CallerError
from tests.helpers.mcp_registry import OFFICIAL, Registry, package, registry, server

pytestmark = pytest.mark.core

TIME = server("io.github.ada/time", packages=[package("pypi", "mcp-server-time")])


def asking(one: Registry, folder: Path, **options: object) -> RegistryClient:
    options = {"fresh_for": 0.0, "timeout": 10.0, **options}
    return RegistryClient(DocumentCache(folder / "documents", **options), one.url + "/")  # type: ignore[arg-type]


def many(count: int) -> list[dict[str, object]]:
    return [server(f"io.github.ada/server-{number:03}") for number in range(count)]


async def test_all_pages_are_read_until_there_is_enough(tmp_path: Path) -> None:
    async with registry(*many(25), page=10) as one:
        answer = await asking(one, tmp_path).search("", limit=22)
        assert [each.name for each in answer.servers] == [f"io.github.ada/server-{n:03}" for n in range(22)]
        assert answer.is_cut and len(one.asked) == 3
        assert "cursor=cursor:10" in unquote(one.asked[1]) and "version=latest" in one.asked[0]
        everything = await asking(one, tmp_path).search("", limit=100)
        assert len(everything.servers) == 25 and not everything.is_cut


async def test_a_cursor_that_leads_in_circles_ends(tmp_path: Path) -> None:
    async def circle(request: web.Request) -> web.Response:
        return web.json_response({"servers": [{"server": TIME}], "metadata": {"nextCursor": "again"}})

    async with registry(instead=circle) as one:
        answer = await asking(one, tmp_path).search("", limit=50)
        assert len(answer.servers) == 1 and len(one.asked) == 2


async def test_of_several_words_the_longest_is_asked_and_the_others_rank(tmp_path: Path) -> None:
    entries = [server("a/search", description="Of files"), server("b/search", description="Brave web search")]
    async with registry(*entries) as one:
        answer = await asking(one, tmp_path).search("web SEARCH")
        assert [each.name for each in answer.servers] == ["b/search", "a/search"]
        assert "search=search" in one.asked[0]


async def test_one_server_in_one_version(tmp_path: Path) -> None:
    async with registry(server("a/b", "1.0.0"), server("a/b", "2.0.0")) as one:
        client = asking(one, tmp_path)
        assert (await client.get("a/b")).version == "2.0.0"
        assert (await client.get("a/b", "1.0.0")).version == "1.0.0"
        assert one.asked == ["/v0.1/servers/a%2Fb/versions/latest", "/v0.1/servers/a%2Fb/versions/1.0.0"]
        with pytest.raises(CallerError, match="no server 'a/c'"):
            await client.get("a/c")
        with pytest.raises(CallerError, match=r"in version '\.\./x'"):
            await client.get("a/b", "../x")


async def test_what_has_not_changed_is_not_sent_again_and_serves_when_the_registry_is_away(tmp_path: Path) -> None:
    async with registry(TIME) as one:
        client = asking(one, tmp_path)
        first = await client.search("time")
        assert (await client.search("time")).servers == first.servers and not first.notes
        assert len(one.asked) == 2

        async def busy(request: web.Request) -> web.Response:
            return web.Response(status=429, headers={"Retry-After": "60"})

        one.instead = busy
        again = await client.search("time")
        assert again.servers == first.servers
        assert "HTTP 429" in again.notes[0] and "This is the copy of" in again.notes[0]
        with pytest.raises(DocumentUnavailable, match="HTTP 429"):
            await client.search("other")


async def test_a_fresh_copy_serves_without_asking(tmp_path: Path) -> None:
    async with registry(TIME) as one:
        client = asking(one, tmp_path, fresh_for=60.0)
        await client.search("time")
        await client.search("time")
        assert len(one.asked) == 1


async def test_a_slow_registry_is_given_up(tmp_path: Path) -> None:
    given_up = anyio.Event()

    async def slow(request: web.Request) -> web.Response:
        await given_up.wait()
        return web.Response()

    async with registry(instead=slow) as one:
        with pytest.raises(DocumentUnavailable, match=r"within 0\.2 seconds"):
            await asking(one, tmp_path, timeout=0.2).search("x")
        given_up.set()


@pytest.mark.parametrize(
    "body",
    ["", "<html>", "[]", '{"servers": {}}', "[" * 100_000, "1" * 5_000, '{"servers": [', '"\\ud800"'],
    ids=["empty", "html", "list", "table", "deep", "number", "cut", "surrogate"],
)
async def test_an_answer_that_is_no_list_of_servers_is_told(tmp_path: Path, body: str) -> None:
    async def odd(request: web.Request) -> web.Response:
        return web.Response(text=body)

    async with registry(instead=odd) as one:
        with pytest.raises(DocumentUnavailable, match="no document that can be read"):
            await asking(one, tmp_path).search("x")


async def test_an_answer_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    async with registry(*many(100)) as one:
        with pytest.raises(DocumentUnavailable, match="holds more than 500 bytes"):
            await asking(one, tmp_path, max_bytes=500).search("server")


async def test_entries_that_cannot_be_read_are_left_out_and_counted(tmp_path: Path) -> None:
    odd: list[object] = [
        3,
        {"server": 3},
        {"server": {"name": 3}},
        {"server": {"name": "a", "packages": {}}},
        {"server": TIME},
    ]

    async def mixed(request: web.Request) -> web.Response:
        return web.Response(text=json.dumps({"servers": odd, "metadata": None}))

    async with registry(instead=mixed) as one:
        answer = await asking(one, tmp_path).search("")
        assert [each.name for each in answer.servers] == ["io.github.ada/time"]
        assert answer.notes == ("4 of its entries cannot be read.",)


async def test_what_was_deleted_is_not_listed(tmp_path: Path) -> None:
    async with registry(TIME, server("a/gone"), statuses={"a/gone": "deleted"}) as one:
        answer = await asking(one, tmp_path).search("")
        assert [each.name for each in answer.servers] == ["io.github.ada/time"]


async def test_without_its_own_notes_and_in_a_flat_list_it_is_read_too(tmp_path: Path) -> None:
    async def older(request: web.Request) -> web.Response:
        return web.json_response({"servers": [TIME, {"server": server("a/b"), "_meta": {OFFICIAL: 3}}]})

    async with registry(instead=older) as one:
        assert len((await asking(one, tmp_path).search("")).servers) == 2
