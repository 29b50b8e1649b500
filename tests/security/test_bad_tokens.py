"""A token that is not in order opens nothing, at any address, with any method; and each refusal says where to get one.

Which tokens are in order is in `tests/composition/test_auth.py`; here one of each bad kind goes everywhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from composition import door
from tests.helpers.issuer import AUDIENCE, jwt, jwt_with_secret, public_key, unsigned_jwt
from tests.security.house import VERSIONS, House, Person, hello_params, house, server
from tests.security.table import OF_REST

pytestmark = pytest.mark.core

BAD: dict[str, Callable[[], str | None]] = {
    "none": lambda: None,
    "another audience": lambda: jwt(aud="https://other.example.com/mcp", roles=["mcp.admin"]),
    "no audience": lambda: jwt(aud=None, roles=["mcp.admin"]),
    "the audience of a backend": lambda: jwt(aud=f"{AUDIENCE}/mine", roles=["mcp.admin"]),
    "expired": lambda: jwt(exp=int(time.time()) - 5, roles=["mcp.admin"]),
    "not valid yet": lambda: jwt(nbf=time.time() + 3600, roles=["mcp.admin"]),
    "no signature": unsigned_jwt,
    "the public key as secret": lambda: jwt_with_secret(public_key(), roles=["mcp.admin"]),
    "another issuer": lambda: jwt(iss="https://evil.example.com", roles=["mcp.admin"]),
    "another key": lambda: jwt(signed_by="thief", roles=["mcp.admin"]),
    "no subject": lambda: jwt(sub=None, roles=["mcp.admin"]),
    "a static one that is none": lambda: "apo_" + "A" * 43,
}
FREE = {"the document", "where tokens are", "where tokens are, of one server", "alive", "ready", "nothing there"}
"""What needs no token."""


@pytest.fixture(autouse=True)
def strangers_may_knock_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the gateway takes this for guessing, and says 429."""
    monkeypatch.setattr(door, "STRANGERS_PER_SECOND", 10_000.0)
    monkeypatch.setattr(door, "STRANGERS_AT_ONCE", 10_000.0)


def headers(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


@pytest.mark.parametrize("kind", BAD)
async def test_it_opens_nothing(kind: str) -> None:
    async with house(server("mine", "*")) as made:
        token = BAD[kind]()
        found = {**await _at_mcp(made, token), **await _at_rest(made, token)}
        metadata = f'resource_metadata="{made.base}/.well-known/oauth-protected-resource'
        wrong = {
            where: seen
            for where, seen in found.items()
            if seen[0] != 401 or f'{metadata}{_resource(where.split()[0])}"' not in seen[1]
        }
        assert wrong == {}
        assert len(found) > 40
        assert set(await made.served.gateway.store.list_all()) == {"mine"}  # and nothing was made


def _resource(path: str) -> str:
    """What the metadata is of: each address where MCP is spoken is a resource of its own."""
    return path if path.endswith("/mcp") else "/mcp"


async def _at_mcp(made: House, token: str | None) -> dict[str, tuple[int, str]]:
    found = {}
    for path in ("/mcp", "/adapters/mine/mcp", "/adapters/nope/mcp"):
        for version in VERSIONS:
            person = Person(made.http, made.base + path, token, version)
            for method in ("initialize", "tools/list", "subscriptions/listen", "notifications/initialized"):
                came = await person.ask(method, hello_params() if method == "initialize" else {})
                found[f"{path} {version} {method}"] = came.status, dict(came.headers).get("www-authenticate", "")
            for verb in ("GET", "DELETE"):
                came = await person.send(verb)
                found[f"{path} {version} {verb}"] = came.status, dict(came.headers).get("www-authenticate", "")
    return found


async def _at_rest(made: House, token: str | None) -> dict[str, tuple[int, str]]:
    found = {}
    for row, ((method, path, body, more), _) in OF_REST.items():
        if row in FREE:
            continue
        url = made.base + path.replace("{mine}", "mine")
        text = None if body is None else json.dumps(body).replace("{new}", "new").replace("{mine}", "mine")
        sent = {**headers(token), **more, **({"Content-Type": "application/json"} if text else {})}
        async with made.http.request(method, url, data=text, headers=sent) as answer:
            await answer.read()
            found[row] = answer.status, answer.headers.get("WWW-Authenticate", "")
    return found


async def test_a_good_one_opens_the_same_addresses() -> None:
    """So that a refusal above is for the token's sake."""
    async with house(server("mine", "dev")) as made:
        for path in ("/mcp", "/adapters/mine/mcp"):
            for version in VERSIONS:
                person = Person(made.http, made.base + path, jwt(roles=["dev"]), version)
                assert (await person.ask("initialize", hello_params())).status == 200
        async with made.http.get(f"{made.base}/adapters/mine", headers=headers(jwt(roles=["dev"]))) as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    "credentials",
    [
        {"Authorization": "Basic {}"},
        {"Authorization": "{}"},
        {"Authorization": "Bearer"},
        {"Cookie": "token={}; Authorization=Bearer {}"},
        {"X-Authorization": "Bearer {}"},
        {"Proxy-Authorization": "Bearer {}"},
        {"X-Forwarded-User": "ada", "X-Mcp-UserId": "ada", "X-Mcp-Roles": "mcp.admin"},
    ],
    ids=lambda each: ", ".join(each),
)
async def test_a_token_is_taken_from_one_place(credentials: dict[str, str]) -> None:
    async with house(server("mine", "*")) as made:
        sent = {name: value.replace("{}", made.tokens["admin"]) for name, value in credentials.items()}
        for path in ("/mcp", "/adapters/mine/mcp", "/adapters", "/tools"):
            url = f"{made.base}{path}?access_token={made.tokens['admin']}"
            async with made.http.get(url, headers=sent) as answer:
                assert answer.status == 401, path
