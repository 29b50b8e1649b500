"""Who may what: five people, every route, one table. What may not be read has the bytes of what is not there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from statistics import median
from time import perf_counter
from typing import Any

import aiohttp
import pytest
from fastmcp.server.auth.providers.jwt import StaticTokenVerifier

from composition.api import access
from composition.api.routes import ROUTES
from providers.resource import Timeouts
from tests.helpers.api import SHARED, Rest, rest_api
from tests.helpers.gateway import gateway_over_http, servers_toml
from tests.helpers.people import USERS

PEOPLE = ("nobody", "stranger", "bob", "carl", "ada")
"""No token; no role; a role that reads; the creator; an administrator."""
URL = {"url": "http://127.0.0.1:9/mcp"}
CODE = {"name": "mine", "command": "sh", "args": ["-c", "true"]}

MATRIX: dict[tuple[str, str], tuple[int, int, int, int, int]] = {
    # of a server that carl made, and guests such as bob may use
    ("GET", "/adapters"): (401, 200, 200, 200, 200),
    ("POST", "/adapters"): (401, 409, 409, 409, 409),
    ("GET", "/adapters/mine"): (401, 404, 200, 200, 200),
    ("PUT", "/adapters/mine"): (401, 404, 403, 200, 200),
    ("PATCH", "/adapters/mine"): (401, 404, 403, 200, 200),
    ("DELETE", "/adapters/mine"): (401, 404, 403, 204, 204),
    ("GET", "/adapters/mine/status"): (401, 404, 200, 200, 200),
    ("GET", "/adapters/mine/logs"): (401, 404, 403, 409, 409),
    ("POST", "/adapters/mine/restart"): (401, 404, 403, 200, 200),
    ("GET", "/tools"): (401, 200, 200, 200, 200),
    ("GET", "/tools/everything_echo"): (401, 404, 200, 404, 200),
}
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/adapters"): {"name": "mine", **URL},
    ("PUT", "/adapters/mine"): {**URL, "requiredRoles": ["guest"]},
    ("PATCH", "/adapters/mine"): {"description": "changed"},
}


@pytest.fixture
async def rest() -> AsyncIterator[Rest]:
    async with rest_api(SHARED, "carl", "stranger") as rest:
        await rest.made("carl", name="mine", requiredRoles=["guest"])
        yield rest


def _user(person: str) -> str | None:
    return None if person == "nobody" else person


def test_the_table_has_every_route() -> None:
    paths = {path.replace("{name}", "mine"): methods for path, methods in ROUTES.items()}
    served = {
        (method, path.replace("/tools/mine", "/tools/everything_echo"))
        for path, methods in paths.items()
        for method in methods
    }
    assert served == set(MATRIX)


@pytest.mark.parametrize("person", PEOPLE)
async def test_everybody_gets_what_the_table_says(rest: Rest, person: str) -> None:
    found = {}
    for route in sorted(MATRIX, key=lambda route: route[0] == "DELETE"):
        found[route] = (await rest(*route, BODIES.get(route), user=_user(person))).status
    assert found == {route: statuses[PEOPLE.index(person)] for route, statuses in MATRIX.items()}


ATTEMPTS = [
    ("GET", "", None, {}),
    ("GET", "", None, {"If-None-Match": "*"}),
    ("PUT", "", URL, {}),
    ("PUT", "", CODE, {"If-Match": "*"}),
    ("PUT", "", {"name": "wrong"}, {"If-Match": '"1-2"'}),
    ("PATCH", "", {"urll": 1}, {}),
    ("PATCH", "", None, {"Content-Type": "text/plain"}),
    ("DELETE", "", None, {"If-Match": '"1-2"'}),
    ("GET", "/status", None, {}),
    ("GET", "/logs?tail=x", None, {}),
    ("POST", "/restart", None, {}),
    ("POST", "/restart", None, {"Content-Type": "text/plain"}),
]


@pytest.mark.parametrize(("method", "path", "body", "headers"), ATTEMPTS)
async def test_hidden_is_absent_to_the_byte(
    rest: Rest, method: str, path: str, body: Any, headers: dict[str, str]
) -> None:
    replies = []
    for name in ("mine", "nothing", "No_Name"):
        reply = await rest(method, f"/adapters/{name}{path}", body, user="stranger", headers=headers)
        plain = {key: value for key, value in reply.headers.items() if key.lower() not in ("date", "ratelimit")}
        replies.append((reply.status, plain, reply.text))
    assert replies[0][0] == 404
    assert replies[0] == replies[1] == replies[2]


async def test_a_hidden_tool_is_absent_to_the_byte(rest: Rest) -> None:
    names = ("everything_echo", "everything_nothing", "nothing_echo", "mine_x", "x", "_")
    replies = {
        (reply.status, reply.text) for name in names for reply in [await rest("GET", f"/tools/{name}", user="stranger")]
    }
    assert len(replies) == 1 and replies.pop()[0] == 404
    assert (await rest("GET", "/tools", user="stranger")).json == []


async def test_a_token_that_names_nobody_gets_the_challenge() -> None:
    verifier = StaticTokenVerifier({"nameless": {"client_id": "tests"}})
    async with gateway_over_http(servers_toml(SHARED), auth=verifier) as served, aiohttp.ClientSession() as http:
        rest = Rest(served, http)
        for path in ("/adapters", "/tools"):
            reply = await rest("GET", path, user=None, headers={"Authorization": "Bearer nameless"})
            assert (reply.status, reply.headers["WWW-Authenticate"][:6]) == (401, "Bearer")


async def test_hidden_takes_as_long_as_absent(rest: Rest) -> None:
    took: dict[str, list[float]] = {"mine": [], "nothing": []}
    for _ in range(150):
        for name, times in took.items():
            began = perf_counter()
            await rest("GET", f"/adapters/{name}", user="stranger")
            times.append(perf_counter() - began)
    hidden, absent = median(took["mine"]), median(took["nothing"])
    assert abs(hidden - absent) < max(0.001, 0.2 * absent)  # on a busy machine all of it takes longer


@pytest.mark.parametrize(
    "more",
    [
        CODE,
        {"cwd": "/", **CODE},
        {"imageName": "mcp/time"},
        {"imageName": "mcp/time", "dockerVolumes": ["/etc:/data"]},
        {**URL, "timeouts": {"list": 3000}},
        {**URL, "headers": {"X-Key": "${secret:TOKEN}"}},
    ],
)
async def test_what_runs_code_is_for_operators(rest: Rest, more: dict[str, Any]) -> None:
    made = await rest("POST", "/adapters", {**more, "name": "other"}, user="bob")
    put = await rest("PUT", "/adapters/mine", {**more, "name": "mine"}, user="carl")
    gone = {"url": None} if "url" not in more else {}
    patched = await rest("PATCH", "/adapters/mine", {**more, "name": "mine", **gone}, user="carl")
    assert [reply.status for reply in (made, put, patched)] == [403, 403, 403]
    assert "/etc" not in made.text
    stored = await rest.gateway.store.get("mine")
    assert stored is not None and stored.url == URL["url"]


async def test_an_administrator_who_is_no_operator_runs_no_code() -> None:
    async with rest_api(SHARED, operator_role="engineer-in-chief") as rest:
        assert (await rest("POST", "/adapters", CODE)).status == 403
        await rest.made(name="mine")
        assert (await rest("PUT", "/adapters/mine", CODE)).status == 403


async def test_deadlines_that_nobody_names_stay(rest: Rest) -> None:
    """Also where those of the gateway have changed since, and whoever writes could not set them."""
    stored = await rest.gateway.store.get("mine")
    assert stored is not None
    other = stored.model_copy(update={"timeouts": Timeouts(call=77)})
    await rest.gateway.store.upsert(other)
    for method in ("PATCH", "PUT"):
        reply = await rest(method, "/adapters/mine", {**URL, "requiredRoles": ["guest"]}, user="carl")
        assert (reply.status, reply.json["timeouts"]["call"]) == (200, 77)


SECRET = {"X-Key": "${secret:TOKEN}"}


@pytest.mark.parametrize(
    "change",
    [
        {"url": "http://127.0.0.1:10/mcp"},
        {"url": "http://127.0.0.1:9/other"},
        {"perUser": True},
        {"headers": {**SECRET, "Host": "other.example.com"}},
    ],
)
async def test_where_a_secret_of_the_gateway_goes_is_for_operators_to_say(change: dict[str, Any]) -> None:
    """Also for who may write the server, and sends the reference as it stands there."""
    async with rest_api(SHARED, operator_role="guest") as rest:
        await rest.made("bob", name="mine", headers=SECRET)
        for method in ("PATCH", "PUT"):
            reply = await rest(method, "/adapters/mine", {**URL, "headers": SECRET, **change})
            assert (reply.status, reply.wrong) == (403, list(change))
        reply = await rest("PATCH", "/adapters/mine", {"description": "changed"})
        assert reply.status == 200
        reply = await rest("PATCH", "/adapters/mine", {"headers": None, **change})
        assert reply.status == 200 if "headers" not in change else 403


async def test_a_python_file_is_nothing_for_the_api(rest: Rest) -> None:
    for body in ({"python": "tools.py:mcp"}, {"transportType": "python"}):
        assert (await rest("POST", "/adapters", {"name": "other", **body})).status == 400


async def test_only_the_creator_says_who_uses_a_server(rest: Rest) -> None:
    reply = await rest("PATCH", "/adapters/mine", {"requiredRoles": ["engineer"]})
    assert (reply.status, reply.wrong) == (403, ["requiredRoles"])
    assert (await rest("PATCH", "/adapters/mine", {"requiredRoles": ["*"]}, user="carl")).status == 200


async def test_nobody_says_who_made_a_server(rest: Rest) -> None:
    reply = await rest("PATCH", "/adapters/mine", {"createdBy": "ada", "version": 99, "id": "x"}, user="carl")
    assert (reply.json["createdBy"], reply.json["version"], reply.json["id"]) == ("carl", 1, "mine")
    made = await rest("POST", "/adapters", {"name": "other", **URL, "createdBy": "servers.toml"}, user="bob")
    assert made.json["createdBy"] == "bob"


async def test_nobody_is_the_file() -> None:
    async with rest_api(SHARED, "servers.toml") as rest:
        assert (await rest("GET", "/adapters", user="servers.toml")).json == []
        reply = await rest("POST", "/adapters", {"name": "mine", **URL}, user="servers.toml")
        assert (reply.status, reply.json["source"]) == (201, "api")
        assert [each["name"] for each in (await rest("GET", "/adapters", user="servers.toml")).json] == ["mine"]


async def test_one_user_makes_so_many_servers_and_no_more(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MAX_SERVERS_PER_USER", 2)
    await rest.made("carl", name="second")
    assert (await rest("POST", "/adapters", {"name": "third", **URL}, user="carl")).status == 403
    await rest.made("ada", name="third")
    await rest.made("bob", name="fourth")


async def test_a_revoked_role_ends_access_with_the_next_request(rest: Rest) -> None:
    assert "guest" in USERS["bob"]["roles"]
    assert (await rest("GET", "/adapters/mine", user="bob")).status == 200
    await rest("PATCH", "/adapters/mine", {"requiredRoles": []}, user="carl")
    assert (await rest("GET", "/adapters/mine", user="bob")).status == 404


async def test_what_concerns_others_is_for_writers(rest: Rest) -> None:
    reader, writer = [(await rest("GET", "/adapters/mine/status", user=user)).json for user in ("bob", "carl")]
    assert set(writer) - set(reader) == {"pool", "health", "container"}
