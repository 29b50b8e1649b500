"""The tables of `table.py` hold: every method in both eras at both kinds of address, every route in its variants."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from starlette.routing import Match, Route

from composition.http import build_app
from providers.lines import MODERN
from tests.helpers.rpc import HANDSHAKE
from tests.security.house import PEOPLE, UNKNOWN_SESSION, VERSIONS, Answer, House, Person, house, server
from tests.security.table import ABOUT_NO_SERVER, OF_REST, PARAMS, RAW, URL, Json, Request, rows_of_mcp

pytestmark = pytest.mark.core
MCP = rows_of_mcp()


@pytest.fixture
async def full() -> AsyncIterator[House]:
    async with house(server("mine", "guest")) as full:
        yield full


@pytest.fixture
async def empty() -> AsyncIterator[House]:
    """The same gateway, without the server."""
    async with house() as empty:
        yield empty


# ------------------------------------------------------------------------------------------------------------- MCP


async def test_the_table_has_every_method(full: House) -> None:
    """Those that the SDK's server would answer, too, and FastMCP hangs on it."""
    served = {str(method) for method in getattr(full.served.gateway.mcp._mcp_server, "_request_handlers", ())}
    unknown = {method for method in served if "/" in method} - {method for method, _ in MCP}
    assert unknown == set()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("who", PEOPLE)
async def test_every_method(full: House, empty: House, who: str, version: str) -> None:
    expected, found = {}, {}
    for place in ("all", "alone"):
        column = "stranger alone" if (who, place) == ("stranger", "alone") else who
        asking = _Asking(full, empty, who, version, is_alone=place == "alone")
        async with asking:
            for method in [method for method, era in MCP if era == version and (MODERN or method not in RAW)]:
                expected[place, method] = MCP[method, version][column]
                found[place, method] = await asking.outcome(method)
    assert found == expected


class _Asking:
    """One person at one address, and beside it what there is where the server is not."""

    def __init__(self, full: House, empty: House, who: str, version: str, *, is_alone: bool) -> None:
        self._is_alone, self._version = is_alone, version
        self._here = full.person(who, "mine" if is_alone else None, version)
        self._absent = full.person(who, "nope" if is_alone else None, version)
        self._empty = empty.person(who, None, version)

    async def __aenter__(self) -> _Asking:
        for person in (self._here, self._absent, self._empty):
            await self._greet(person)
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def _greet(self, person: Person) -> None:
        if self._version == HANDSHAKE:
            await person.shake_hands()
            person.session_id = person.session_id or UNKNOWN_SESSION

    async def outcome(self, method: str) -> str:
        params = PARAMS.get(method, {})
        came = await _sent(self._here, method, _own(params) if self._is_alone else params)
        if came.status in (401, 403, 405):
            return str(came.status)
        if came.status == 404 and "-32601" not in came.text:
            absent = await _sent(self._absent, method, _own(params))
            return "404" if came.bare == absent.bare else "a 404 that tells"
        if "-32601" in came.text:
            return "unknown"
        if method in ABOUT_NO_SERVER or self._is_alone:
            return "works" if '"error"' not in came.text else came.text
        same = await self._where_it_is_not(method, params)
        if came.bare == same.bare and method != "resources/unsubscribe":
            return "nothing" if _works(came) == "works" else "absent"
        return await self._of_unsubscribe(came, same) if method == "resources/unsubscribe" else _works(came)

    async def _where_it_is_not(self, method: str, params: Json) -> Answer:
        if "mine" not in json.dumps(params):
            return await _sent(self._empty, method, params)
        named = json.loads(json.dumps(params).replace("mine", "nope"))
        return (await _sent(self._absent, method, named)).about("nope", "mine")

    async def _of_unsubscribe(self, came: Answer, same: Answer) -> str:
        """Nobody is told whether he was subscribed; whether he may be, `subscribe` says."""
        assert came.bare == same.bare
        may = await _sent(self._here, "resources/subscribe", PARAMS["resources/subscribe"])
        return "nothing" if '"error"' in may.text else "works"


def _works(came: Answer) -> str:
    return "works" if '"error"' not in came.text and '"isError":true' not in came.text else came.text


async def _sent(person: Person, method: str, params: Json) -> Answer:
    if method == "GET":
        return await person.send("GET")
    if method == "DELETE":
        return await person.send("DELETE")
    return await person.ask(method.partition(" ")[0], params)


def _own(params: Json) -> Json:
    """As the server itself calls its components."""
    own: Json = json.loads(json.dumps(params).replace("mine_", "").replace("://mine/", "://"))
    return own


# ------------------------------------------------------------------------------------------------------------ REST


@pytest.fixture
async def rest() -> AsyncIterator[House]:
    async with house(server("every", "guest")) as made:
        yield made


def _application(made: House) -> Any:
    """FastMCP's application with all routes in it, behind the door."""
    return inspect.getclosurevars(build_app(made.served.gateway)).nonlocals["door"]._app


async def test_the_table_has_every_route_of_the_application(rest: House) -> None:
    rows = [request for request, _ in OF_REST.values()]
    missing = []
    for route in _application(rest).routes:
        assert isinstance(route, Route)
        for method in route.methods or {each[0] for each in rows if _leads_to(route, each[0], each[1])}:
            is_mcp = route.path in ("/mcp", "/adapters/{name}/mcp")
            if not is_mcp and method != "OPTIONS" and not any(_leads_to(route, method, each[1]) for each in rows):
                missing.append((method, route.path))
        if not any(_leads_to(route, each[0], each[1]) for each in rows) and not route.path.endswith("/mcp"):
            missing.append(("*", route.path))
    assert missing == []


def _leads_to(route: Route, method: str, path: str) -> bool:
    path = path.partition("?")[0].replace("{mine}", "mine")
    scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
    return route.matches(scope)[0] is Match.FULL


@pytest.mark.parametrize("who", PEOPLE)
async def test_every_route(rest: House, who: str) -> None:
    found, expected = {}, {}
    for number, (row, (request, statuses)) in enumerate(OF_REST.items()):
        await _made(rest, f"mine{number}")
        expected[row] = statuses[PEOPLE.index(who)]
        found[row] = (await _requested(rest, who, request, number)).status
    assert found == expected


async def _made(rest: House, name: str) -> None:
    body = {"name": name, "requiredRoles": ["guest"], **URL}
    headers = {"Authorization": f"Bearer {rest.tokens['creator']}"}
    async with rest.http.post(f"{rest.base}/adapters", json=body, headers=headers) as answer:
        assert answer.status == 201, await answer.text()


async def _requested(rest: House, who: str, request: Request, number: int) -> aiohttp.ClientResponse:
    method, path, body, headers = request
    if who in rest.tokens:
        headers = {**headers, "Authorization": f"Bearer {rest.tokens[who]}"}
    text = (
        None if body is None else json.dumps(body).replace("{mine}", f"mine{number}").replace("{new}", f"new{number}")
    )
    headers |= {"Content-Type": "application/json"} if text else {}
    url = rest.base + path.replace("{mine}", f"mine{number}")
    skipped = () if text else ("Content-Type",)
    async with rest.http.request(method, url, data=text, headers=headers, skip_auto_headers=skipped) as answer:
        await answer.read()
        return answer
