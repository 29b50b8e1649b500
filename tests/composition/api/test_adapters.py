"""Adapters over REST: made, shown, changed, removed; who is too late, and what no request may be like."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator

import anyio
import pytest

from composition.api.requests import MAX_BODY_BYTES
from providers.errors import StoreUnavailable
from providers.resource import McpServerResource
from tests.helpers.api import Rest, rest_api
from tests.helpers.people import window
from tests.helpers.processes import eventually


@pytest.fixture
async def rest() -> AsyncIterator[Rest]:
    async with rest_api() as rest:
        yield rest


async def test_an_adapter_lives(rest: Rest) -> None:
    made = await rest.made(name="notes", description="Notes", requiredRoles=["guest"])
    assert made.headers["Location"] == "/adapters/notes"
    assert (made.json["createdBy"], made.json["source"], made.json["id"]) == ("ada", "api", "notes")

    shown = await rest("GET", "/adapters/notes")
    assert (shown.text, shown.headers["ETag"]) == (made.text, made.headers["ETag"])

    changed = await rest("PUT", "/adapters/notes", {**shown.json, "description": "More notes"})
    assert changed.json["description"] == "More notes"
    assert (changed.json["createdAt"], changed.json["createdBy"]) == (made.json["createdAt"], "ada")
    assert changed.json["lastUpdatedAt"] > made.json["lastUpdatedAt"]

    patched = await rest("PATCH", "/adapters/notes", {"requiredRoles": None, "isolation": "user"})
    assert (patched.json["requiredRoles"], patched.json["description"]) == ([], "More notes")

    assert (await rest("DELETE", "/adapters/notes")).status == 204
    assert (await rest("GET", "/adapters/notes")).status == 404


async def test_a_change_reaches_the_mounts_at_once(rest: Rest) -> None:
    await rest.made(name="notes")
    with anyio.fail_after(1):
        await eventually(lambda: "notes" in rest.gateway.registry.mounts)
    await rest("PATCH", "/adapters/notes", {"isEnabled": False})
    with anyio.fail_after(1):
        await eventually(lambda: "notes" not in rest.gateway.registry.mounts)


async def test_an_answer_can_be_sent_back_and_changes_nothing(rest: Rest) -> None:
    secret = {"headers": {"X-Key": "secret-1"}, "url": "http://127.0.0.1:9/mcp?token=secret-2"}
    made = await rest.made(name="notes", timeouts={"firstStart": 60}, tools={"exclude": ["drop"]}, **secret)
    assert "secret" not in made.text
    before = await rest.gateway.store.get("notes")
    same = await rest("PUT", "/adapters/notes", made.json)
    assert (same.status, same.text) == (200, made.text)
    assert await rest.gateway.store.get("notes") == before


async def test_who_comes_second_is_told(rest: Rest) -> None:
    tag = (await rest.made(name="notes")).headers["ETag"]
    first = await rest("PATCH", "/adapters/notes", {"description": "1"}, headers={"If-Match": tag})
    for method, body in (("PUT", {"url": "http://127.0.0.1:9/"}), ("PATCH", {}), ("DELETE", None)):
        reply = await rest(method, "/adapters/notes", body, headers={"If-Match": tag})
        assert reply.status == 412, method
    assert (await rest("PUT", "/adapters/notes", {}, headers={"If-None-Match": "*"})).status == 412
    assert (
        await rest("PATCH", "/adapters/notes", {}, headers={"If-Match": f"W/{first.headers['ETag']}"})
    ).status == 412
    good = {"If-Match": f'"other", {first.headers["ETag"]}'}
    assert (await rest("DELETE", "/adapters/notes", headers=good)).status == 204


async def test_a_server_made_anew_does_not_meet_its_past(rest: Rest) -> None:
    tag = (await rest.made(name="notes")).headers["ETag"]
    await rest("DELETE", "/adapters/notes")
    await rest.made(name="notes")
    assert (await rest("DELETE", "/adapters/notes", headers={"If-Match": tag})).status == 412


async def test_many_writers_at_once_have_one_winner_for_each_version(rest: Rest) -> None:
    tag = (await rest.made(name="notes")).headers["ETag"]
    statuses: list[int] = []

    async def write(number: int) -> None:
        reply = await rest("PATCH", "/adapters/notes", {"description": str(number)}, headers={"If-Match": tag})
        statuses.append(reply.status)

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(write, number)
    assert sorted(statuses) == [200] + [412] * 19


async def test_a_reader_who_knows_it_gets_nothing(rest: Rest) -> None:
    tag = (await rest.made(name="notes")).headers["ETag"]
    known = await rest("GET", "/adapters/notes", headers={"If-None-Match": f"W/{tag}"})
    assert (known.status, known.text, known.headers["ETag"]) == (304, "", tag)


async def test_a_list_comes_in_pages(rest: Rest) -> None:
    for name in ("a", "b", "c"):
        await rest.made(name=name)
    assert [each["name"] for each in (await rest("GET", "/adapters")).json] == ["a", "b", "c", "everything"]
    path, found = "/adapters?limit=3", []
    while path:
        page = await rest("GET", path)
        found.append([each["name"] for each in page.json])
        link = page.headers.get("Link", "")
        path = link.partition("<")[2].partition(">")[0]
    assert found == [["a", "b", "c"], ["everything"]]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "limit=%2B1", "limit=1&limit=2", "cursor=", "cursor=*"]
)
async def test_a_page_that_cannot_be_is_refused(rest: Rest, query: str) -> None:
    reply = await rest("GET", f"/adapters?{query}")
    assert (reply.status, reply.wrong) == (400, [query.partition("=")[0]])


async def test_a_taken_name_has_one_answer(rest: Rest) -> None:
    await rest.made(name="hidden")
    replies = {
        (await rest("POST", "/adapters", {"name": name, "url": "http://127.0.0.1:9/"}, user="bob")).text
        for name in ("hidden", "everything")
    }
    assert len(replies) == 1
    assert json.loads(replies.pop())["status"] == 409


@pytest.mark.parametrize(("method", "body"), [("PUT", {}), ("PATCH", {}), ("DELETE", None)])
async def test_servers_of_the_file_are_changed_in_the_file(rest: Rest, method: str, body: object) -> None:
    reply = await rest(method, "/adapters/everything", body)
    assert (reply.status, "servers.toml" in reply.json["detail"]) == (409, True)


async def test_a_server_cannot_be_renamed(rest: Rest) -> None:
    await rest.made(name="notes")
    reply = await rest("PUT", "/adapters/notes", {"name": "other", "url": "http://127.0.0.1:9/"})
    assert (reply.status, reply.wrong) == (400, ["name"])


BODIES = {
    "twice": b'{"name": "a", "name": "b"}',
    "no number": b'{"name": NaN}',
    "half a pair": rb'{"name": "\ud800"}',
    "bottomless": b"[" * 200_000,
    "no object": b"[]",
    "not UTF-8": b'{"name": "\xff"}',
    "endless number": b'{"version": ' + b"9" * 10_000 + b"}",
    "empty": b"",
}


@pytest.mark.parametrize("data", BODIES.values(), ids=BODIES)
async def test_a_body_can_be_read_in_one_way_only(rest: Rest, data: bytes) -> None:
    reply = await rest("POST", "/adapters", data=data, headers={"Content-Type": "application/json"})
    assert (reply.status, reply.headers["Content-Type"]) == (400, "application/problem+json")


@pytest.mark.parametrize(
    "headers", [{}, {"Content-Type": "text/plain"}, {"Content-Type": "application/json", "Content-Encoding": "br"}]
)
async def test_a_write_is_json(rest: Rest, headers: dict[str, str]) -> None:
    for method, path in (("POST", "/adapters"), ("PUT", "/adapters/notes"), ("PATCH", "/adapters/notes")):
        if method == "PUT":
            await rest.made(name="notes")
        reply = await rest(method, path, data=b"{}", headers=headers)
        assert reply.status == 415, method


@pytest.mark.parametrize("says_how_long", [True, False])
async def test_a_large_body_is_refused(rest: Rest, says_how_long: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"name": "' + b"a" * MAX_BODY_BYTES
        yield b'"}'

    data = b" " * (MAX_BODY_BYTES + 1) if says_how_long else pieces()
    reply = await rest("POST", "/adapters", data=data, headers={"Content-Type": "application/json"})
    assert (reply.status, reply.json["status"]) == (413, 413)


async def test_foreign_hosts_and_origins_are_refused(rest: Rest) -> None:
    for path in ("/adapters", "/tools", "/openapi.json"):
        assert (await rest("GET", path, headers={"Host": "evil.example"})).status == 421
        assert (await rest("POST", path, {}, headers={"Origin": "https://evil.example"})).status == 403


async def test_whoever_has_no_good_token_gets_the_challenge_of_mcp(rest: Rest) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        of_mcp = await rest("POST", "/mcp", {}, user=None, headers=headers)
        for path in ("/adapters", "/adapters/everything", "/adapters/absent/logs", "/tools", "/tools/x"):
            reply = await rest("GET", path, user=None, headers=headers)
            assert (reply.status, reply.text) == (401, of_mcp.text)
            assert reply.headers["WWW-Authenticate"] == of_mcp.headers["WWW-Authenticate"]


async def test_a_store_that_is_away_is_told(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("redis://secret@host", "is away")

    monkeypatch.setattr(rest.gateway.store, "upsert", away)
    reply = await rest("POST", "/adapters", {"name": "notes", "url": "http://127.0.0.1:9/"})
    assert (reply.status, reply.headers["Retry-After"]) == (503, "5")
    assert "secret" not in reply.text


async def test_all_problems_are_told_at_once_and_no_value(rest: Rest) -> None:
    body = {
        "name": "Secret_1",
        "urll": "secret-2",
        "url": "secret-3",
        "headers": {"X-Mcp-Roles": "secret-4"},
        "requiredRoles": "secret-5",
        "timeouts": {"call": "secret-6", "calls": 1},
        "replicaCount": 2,
        "useWorkloadIdentity": True,
        "isolation": "secret-7",
    }
    reply = await rest("POST", "/adapters", body)
    expected = {"name", "urll", "url", "headers", "requiredRoles", "timeouts.call", "timeouts.calls"}
    assert reply.status == 400
    assert set(reply.wrong) == expected | {"replicaCount", "useWorkloadIdentity", "isolation"}
    assert "secret-" not in reply.text and "Secret_" not in reply.text


SECRETS = {
    "url": "http://ann:canary-1@127.0.0.1:9/mcp?key=canary-2",
    "headers": {"X-Key": "canary-3"},
}
CODE = {
    "command": "no-such-program",
    "args": ["canary-4"],
    "env": {"KEY": "canary-5"},
}


async def test_no_secret_is_told_or_logged(rest: Rest, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told = [
        await rest("POST", "/adapters", {"name": "remote", **SECRETS | {"url": "http://127.0.0.1:9/?key=canary-2"}})
    ]
    told += [await rest("POST", "/adapters", {"name": "code", **CODE}), await rest("POST", "/adapters", SECRETS | CODE)]
    told += [await rest("GET", "/tools"), await rest("GET", "/tools/remote_x"), await rest("GET", "/tools/code_x")]
    for name in ("remote", "code"):
        told += [await rest("GET", f"/adapters/{name}"), await rest("GET", f"/adapters/{name}/status")]
        told += [await rest("PATCH", f"/adapters/{name}", {"isEnabled": "canary-6"})]
        told += [await rest("POST", f"/adapters/{name}/restart"), await rest("DELETE", f"/adapters/{name}")]
    assert [reply.status for reply in told[:3]] == [201, 201, 400]
    assert "canary" not in "".join(reply.text + str(reply.headers) for reply in told)
    assert "canary" not in caplog.text
    assert "canary" not in repr(rest.gateway.registry.mounts)


LARGE = {
    "unknown members": {f"unknown{number}": 1 for number in range(9_000)},
    "unknown rules": {"tools": {f"exclud{number}": 1 for number in range(9_000)}},
    "rules": {"tools": {"include": ["a"] * 20_000, "exclude": ["b"] * 20_000}},
    "arguments": {"args": [1] * 80_000},
    "fewer unknown members": {f"unknown{number}": 1 for number in range(450)},
}


@pytest.mark.parametrize("body", LARGE.values(), ids=LARGE)
async def test_no_body_holds_up_the_others(rest: Rest, body: dict[str, object]) -> None:
    began = anyio.current_time()
    reply = await rest("POST", "/adapters", {"name": "notes", "command": "sh", **body})
    assert (reply.status, len(reply.wrong) <= 100) == (400, True)
    assert anyio.current_time() - began < 1.0


async def test_a_restart_begins_a_generation(rest: Rest) -> None:
    async with window(rest.served.url) as ada:
        await ada.call("everything_echo", text="hello")
        before = rest.gateway.pool.connections("everything")
        reply = await rest("POST", "/adapters/everything/restart")
        assert reply.status == 200
        await eventually(lambda: not set(before) & set(rest.gateway.pool.connections("everything")))
        await ada.call("everything_echo", text="hello")
        status = (await rest("GET", "/adapters/everything/status")).json
    assert (status["readyReplicas"], status["replicaStatus"]) == (1, "Healthy")


async def test_tools_say_what_they_cost(rest: Rest) -> None:
    tools = (await rest("GET", "/tools", user="bob")).json
    echo = next(tool for tool in tools if tool["name"] == "everything_echo")
    assert (echo["server"], echo["kind"]) == ("everything", "built-in")
    in_full = (await rest("GET", "/tools/everything_echo", user="bob")).json
    read = {key: in_full[key] for key in ("name", "title", "description", "inputSchema") if key in in_full}
    assert in_full["tokens"] == echo["tokens"] == len(json.dumps(read, separators=(",", ":"))) // 4


async def test_who_writes_slowly_does_not_write_over_the_server_of_another(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That has the same name and, as it is new, the same version."""
    await rest.made("bob", name="mine")
    has_read, may_go_on, get = anyio.Event(), anyio.Event(), rest.gateway.store.get

    async def watched(name: str) -> McpServerResource | None:
        found = await get(name)
        has_read.set()
        return found

    async def body() -> AsyncIterator[bytes]:
        yield b'{"description":'
        await may_go_on.wait()
        yield b' "of bob"}'

    monkeypatch.setattr(rest.gateway.store, "get", watched)

    replies = []

    async def write() -> None:
        headers = {"Content-Type": "application/json"}
        replies.append(await rest("PATCH", "/adapters/mine", user="bob", headers=headers, data=body()))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        await has_read.wait()
        assert (await rest("DELETE", "/adapters/mine", user="bob")).status == 204
        await rest.made("ada", name="mine", description="of ada")
        may_go_on.set()
    assert replies[0].status == 409
    stored = await rest.gateway.store.get("mine")
    assert stored is not None and (stored.created_by.rpartition("/")[2], stored.description) == ("ada", "of ada")


async def test_what_a_strict_audit_cannot_write_is_not_done() -> None:
    async with rest_api(audit="strict", audit_file="/dev/full") as rest:
        assert (await rest("POST", "/adapters", {"name": "mine", "url": "http://127.0.0.1:9/mcp"})).status == 503
        assert await rest.gateway.store.get("mine") is None
        assert (await rest("DELETE", "/adapters/mine")).status == 404
        assert (await rest("GET", "/adapters")).status == 503
