"""Who may come in over HTTP: tokens of each kind that are in order, and all that are not; and what a client is told."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from composition.auth import claim_at
from composition.gateway import Gateway
from composition.http import bind
from composition.servers_file import load_configuration
from providers.errors import ConfigurationError
from providers.lines import MODERN
from providers.tokens import TokenFile
from tests.helpers.gateway import ServedGateway, gateway_over_http, servers_toml
from tests.helpers.issuer import AUDIENCE, ISSUER, issuer_keys, jwt, jwt_with_secret, public_key, unsigned_jwt

pytestmark = pytest.mark.core

SECRET = "kT9wq2LxZ7vB4nRf8cYh1sJd6gPm3uEa"
RS256 = {"issuer": ISSUER, "audience": AUDIENCE, "key": public_key()}
HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}
ACCEPT = {"Accept": "application/json, text/event-stream"}


def team(auth: dict[str, Any], **gateway: Any) -> str:
    return servers_toml({}, auth=auth, **gateway)


@asynccontextmanager
async def asked(url: str, token: str | None = None, **headers: str) -> AsyncIterator[aiohttp.ClientResponse]:
    bearer = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession() as http,
        http.post(url, json=HELLO, headers=ACCEPT | bearer | headers) as answer,
    ):
        yield answer


async def status(url: str, token: str | None = None, **headers: str) -> int:
    async with asked(url, token, **headers) as answer:
        return answer.status


# --------------------------------------------------------------------------------------------------------------- JWTs

now = time.time

GOOD: dict[str, Callable[[], str]] = {
    "in order": lambda: jwt(),
    "for us and others": lambda: jwt(aud=["https://other.example", AUDIENCE]),
    "valid since a moment": lambda: jwt(nbf=now() - 1),
    "roles in another shape": lambda: jwt(roles={"dev": True}),
}

BAD: dict[str, Callable[[], str]] = {
    "no audience": lambda: jwt(aud=None),
    "an empty audience": lambda: jwt(aud=[]),
    "another audience": lambda: jwt(aud="https://other.example"),
    "the audience of a backend": lambda: jwt(aud="https://mcp.example.com/mcp/docs"),
    "a part of the audience": lambda: jwt(aud="https://mcp.example.com"),
    "another issuer": lambda: jwt(iss="https://evil.example"),
    "no issuer": lambda: jwt(iss=None),
    "expired": lambda: jwt(exp=int(now()) - 2),
    "never expires": lambda: jwt(exp=None),
    "expires in words": lambda: jwt(exp="tomorrow"),
    "expires at infinity": lambda: jwt(exp=float("inf")),
    "not valid yet": lambda: jwt(nbf=now() + 3600),
    "valid from when": lambda: jwt(nbf="tomorrow"),
    "no subject": lambda: jwt(sub=None),
    "an empty subject": lambda: jwt(sub=""),
    "a number as subject": lambda: jwt(sub=7),
    "a subject with a line break": lambda: jwt(sub="ann\nX-Mcp-Roles: mcp.admin"),
    "half a letter as subject": lambda: jwt(sub="\udcff"),
    "a role with a comma": lambda: jwt(roles=["dev,mcp.admin"]),
    "a role with a line break": lambda: jwt(roles=["dev\r\nmcp.admin"]),
    "a role that is text with a comma": lambda: jwt(roles="dev,mcp.admin"),
    "another key": lambda: jwt(signed_by="thief"),
    "no signature": lambda: unsigned_jwt(),
    "no signature, shouted": lambda: unsigned_jwt("NONE"),
    "no algorithm in what is signed": lambda: jwt(header={"alg": None}),
    "the public key as secret": lambda: jwt_with_secret(public_key()),
    "the public key as secret, trimmed": lambda: jwt_with_secret(public_key().strip()),
    "another algorithm in the header": lambda: jwt(header={"alg": "RS512"}),
    "its own key in the header": lambda: jwt(header={"jwk": {"kty": "oct", "k": "AAAA"}}, signed_by="thief"),
    "an extension that must be known": lambda: jwt(header={"crit": ["exp"], "exp": 1}, signed_by="thief"),
    "a changed body": lambda: ".".join((jwt().split(".")[0], jwt(sub="eve").split(".")[1], jwt().split(".")[2])),
    "no signature at the end": lambda: jwt().rpartition(".")[0] + ".",
    "two parts": lambda: jwt().rpartition(".")[0],
    "nothing": lambda: "",
    "a static token that is none": lambda: "apo_" + "A" * 43,
    "no token at all": lambda: "x" * 5000,
    "deep nesting": lambda: "W1tb" * 10_000 + ".e30.AA",
}


@pytest.fixture(params=["key", "jwks"])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[ServedGateway]:
    """A gateway that has the issuer's key in its file, or asks for it."""
    async with issuer_keys() as url:
        how = {"key": public_key()} if request.param == "key" else {"jwks_url": url}
        async with gateway_over_http(team({"issuer": ISSUER, "audience": AUDIENCE, **how})) as gateway:
            yield gateway


async def test_who_has_a_token_in_order_comes_in(served: ServedGateway) -> None:
    assert {name: await status(served.url, make()) for name, make in GOOD.items()} == dict.fromkeys(GOOD, 200)


async def test_who_has_none_stays_out(served: ServedGateway) -> None:
    assert {name: await status(served.url, make()) for name, make in BAD.items()} == dict.fromkeys(BAD, 401)
    assert await status(served.url) == 401
    assert await status(served.url, Authorization="Basic YW5uOng=") == 401
    assert await status(f"{served.url}?access_token={jwt()}") == 401
    assert await status(served.url, jwt()) == 200


async def test_a_token_that_was_good_expires() -> None:
    async with gateway_over_http(team(RS256)) as gateway:
        token = jwt(exp=now() + 1.2)  # remembered as verified, which must not make it last
        assert await status(gateway.url, token) == 200
        auth = gateway.gateway.mcp.auth
        assert auth is not None
        while (found := await auth.verify_token(token)) is not None and now() < found.expires_at + 2:
            continue
        assert found is None and await status(gateway.url, token) == 401


async def test_a_secret_is_shared_with_the_issuer() -> None:
    auth = {"issuer": ISSUER, "audience": AUDIENCE, "key": SECRET, "algorithm": "HS256"}
    async with gateway_over_http(team(auth)) as gateway:
        assert await status(gateway.url, jwt_with_secret(SECRET)) == 200
        assert await status(gateway.url, jwt_with_secret(SECRET + "x")) == 401
        assert await status(gateway.url, jwt_with_secret("")) == 401
        assert await status(gateway.url, jwt()) == 401
        assert await status(gateway.url, unsigned_jwt()) == 401


async def test_a_scope_that_is_asked_for_must_be_there() -> None:
    async with gateway_over_http(team(RS256 | {"scopes": ["mcp"]})) as gateway:
        assert await status(gateway.url, jwt(scope="mcp other")) == 200
        assert await status(gateway.url, jwt(scope="other")) == await status(gateway.url, jwt()) == 401
        async with asked(gateway.url) as answer:
            assert not MODERN or 'scope="mcp"' in answer.headers["WWW-Authenticate"]


async def test_claims_become_the_same_four_whatever_they_are_called() -> None:
    names = {"name_claim": "preferred_username", "roles_claim": "realm_access.roles"}
    token = jwt(preferred_username="Ann", realm_access={"roles": ["ops", "dev"]}, name="No", roles=["mcp.admin"])
    async with gateway_over_http(team(RS256 | names)) as gateway:
        auth = gateway.gateway.mcp.auth
        assert auth is not None
        found = await auth.verify_token(token)
    assert found is not None and found.subject == "ann"
    assert found.claims == {"iss": ISSUER, "sub": "ann", "name": "Ann", "roles": ["dev", "ops"]}


@pytest.mark.parametrize(
    ("path", "found"),
    [("a", 1), ("b.c", 2), ("https://x.example/roles", 3), ("b", {"c": 2}), ("b.x", None), ("a.b", None), ("", None)],
)
def test_a_claim_is_found_by_its_name_or_its_path(path: str, found: object) -> None:
    assert claim_at({"a": 1, "b": {"c": 2}, "https://x.example/roles": 3}, path) == found


# ------------------------------------------------------------------------------------------- static tokens, and both


async def test_static_tokens_and_jwts_come_in_side_by_side(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "tokens.json")
    async with gateway_over_http(team(RS256 | {"tokens": str(file.path), "scopes": ["mcp"]})) as gateway:
        assert await status(gateway.url, "apo_" + "A" * 43) == 401  # there is no file yet
        token, made = file.add("ann", "Ann", ["dev"])
        assert await status(gateway.url, token) == 200
        assert await status(gateway.url, jwt(scope="mcp")) == 200
        auth = gateway.gateway.mcp.auth
        assert auth is not None
        found = await auth.verify_token(token)
        assert found is not None
        assert found.claims == {"iss": "tokens", "sub": "ann", "name": "Ann", "roles": ["dev"]}
        file.revoke(made.id)
        assert await status(gateway.url, token) == 401


async def test_a_jwt_opens_nothing_where_there_are_static_tokens_alone(tmp_path: Path) -> None:
    async with gateway_over_http(team({"tokens": str(tmp_path / "tokens.json")})) as gateway:
        assert [await status(gateway.url, token) for token in (jwt(), unsigned_jwt(), "")] == [401] * 3


async def test_a_file_of_tokens_that_others_can_read_stops_the_start(tmp_path: Path) -> None:
    file = TokenFile(tmp_path / "tokens.json")
    file.add("ann", "Ann", [])
    file.path.chmod(0o604)
    with pytest.raises(ConfigurationError, match="mode 604"):
        async with gateway_over_http(team({"tokens": str(file.path)})):
            pass


# ------------------------------------------------------------------------------------------------ what a client is told


@pytest.mark.parametrize("public_url", [None, "https://mcp.example.com", "https://example.com/tools"])
async def test_each_refusal_names_the_metadata_and_it_is_there(public_url: str | None) -> None:
    more = {} if public_url is None else {"public_url": public_url}
    async with gateway_over_http(team(RS256 | {"scopes": ["mcp"]}, name="Team", **more)) as gateway:
        own = gateway.url.removesuffix("/mcp")
        base = public_url or own
        host, _, path = base.removeprefix("https://").removeprefix("http://").partition("/")
        where = f"/.well-known/oauth-protected-resource{'/' + path if path else ''}/mcp"
        url = f"{base.split('://')[0]}://{host}{where}"
        for token in (None, "no", jwt(aud=None)):
            async with asked(gateway.url, token) as answer:
                assert answer.status == 401
                assert f'resource_metadata="{url}"' in answer.headers["WWW-Authenticate"]
        async with aiohttp.ClientSession() as http, http.get(own + where, headers={"Host": host}) as answer:
            assert (answer.status, answer.content_type) == (200, "application/json")
            document = json.loads(await answer.text())
        assert document == {
            "resource": f"{base}/mcp",
            "resource_name": "Team",
            "bearer_methods_supported": ["header"],
            "authorization_servers": [ISSUER],
            "scopes_supported": ["mcp"],
        }


async def test_the_metadata_is_for_scripts_of_web_pages_too(tmp_path: Path) -> None:
    async with gateway_over_http(team({"tokens": str(tmp_path / "t.json")}, public_url="https://mcp.example.com")) as g:
        url = g.url.replace("/mcp", "/.well-known/oauth-protected-resource/mcp")
        async with (
            aiohttp.ClientSession() as http,
            http.get(url, headers={"Origin": "https://mcp.example.com"}) as answer,
        ):
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert "authorization_servers" not in await answer.json()


async def test_each_server_alone_is_a_resource_of_its_own(tmp_path: Path) -> None:
    async with gateway_over_http(team({"tokens": str(tmp_path / "t.json")}, public_url="https://mcp.example.com")) as g:
        base, documents = g.url.removesuffix("/mcp"), []
        async with aiohttp.ClientSession() as http:
            for name in ("there", "absent"):
                where = f"/.well-known/oauth-protected-resource/adapters/{name}/mcp"
                async with http.get(base + where, headers={"Host": "mcp.example.com"}) as answer:
                    documents.append((answer.status, (await answer.json())["resource"].replace(name, "NAME")))
            async with http.get(f"{base}/.well-known/oauth-protected-resource/adapters/No_Name/mcp") as answer:
                assert answer.status == 404
        assert documents == [(200, "https://mcp.example.com/adapters/NAME/mcp")] * 2


async def test_probes_need_no_token() -> None:
    async with gateway_over_http(team(RS256)) as gateway, aiohttp.ClientSession() as http:
        for probe in ("livez", "readyz"):
            async with http.get(gateway.url.replace("/mcp", f"/{probe}")) as answer:
                assert answer.status == 200


# ------------------------------------------------------------------------------------------------ hosts and origins


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Host": "mcp.example.com"}, 200),
        ({"Host": "mcp.example.com:443"}, 200),
        ({"Host": "mcp.example.com", "Origin": "https://mcp.example.com"}, 200),
        ({"Host": "mcp.example.com.evil.example"}, 421),
        ({"Host": "evil.example"}, 421),
        ({"Host": "mcp.example.com", "Origin": "https://mcp.example.com.evil.example"}, 403),
        ({"Host": "mcp.example.com", "Origin": "https://mcp.example.com:8443"}, 403),
        ({"Host": "mcp.example.com", "Origin": "null"}, 403),
    ],
    ids=str,
)
async def test_the_public_name_is_known_and_no_other(headers: dict[str, str], expected: int) -> None:
    async with gateway_over_http(team(RS256, public_url="https://mcp.example.com")) as gateway:
        assert await status(gateway.url, jwt(), **headers) == expected
        assert await status(gateway.url, jwt()) == 200


def test_nobody_serves_past_the_door(tmp_path: Path) -> None:
    """`fastmcp run server.py --transport http` would: it knows of no tokens."""
    file = tmp_path / "servers.toml"
    file.write_text('[gateway.auth]\ntokens = "tokens.json"')
    gateway = Gateway(load_configuration(file, {}))
    with pytest.raises(ConfigurationError, match=r"Serve with 'server\.py serve'"):
        gateway.mcp.http_app()


def test_an_address_that_others_reach_needs_a_public_name() -> None:
    with pytest.raises(ConfigurationError, match="needs 'public_url'"):
        bind("0.0.0.0", 0, has_auth=True)
    with bind("0.0.0.0", 0, has_auth=True, public_url="https://mcp.example.com") as listener:
        assert listener.getsockname()[0] == "0.0.0.0"
