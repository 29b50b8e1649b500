"""On whose behalf: only ever from a verified principal, and told to a backend so that nobody can forge it."""

from __future__ import annotations

import getpass
import os
import random
import string
from typing import Any
from urllib.parse import unquote

import pytest

from providers.errors import NotAuthenticated
from providers.identity import (
    Identity,
    build_identity_headers,
    build_identity_meta,
    current_identity,
    identity_from_claims,
    local_identity,
    prepare_proxy_headers,
    resolve_identity,
    strip_auth_headers,
)
from providers.resource import McpServerResource
from tests.helpers.fakes import ALICE, signed_in

pytestmark = pytest.mark.core

MCP_HEADERS = {
    "accept",
    "content-type",
    "last-event-id",
    "mcp-session-id",
    "mcp-protocol-version",
    "mcp-method",
    "mcp-name",
}
"""What a backend gets besides its own headers and the identity; and whatever begins with `mcp-param-`."""

NASTY = [
    "a,b",
    "a\nX-Mcp-Roles: mcp.admin",
    "a\r\n\r\nGET / HTTP/1.1",
    "a\0b",
    "Zoë Ünïcödé 李",
    "100%",
    "%2C",
    "a%0Ab",
    " leading and trailing ",
    'quote"quote',
    "semi;colon=1",
    "\t\x7f\x80\xff\u2028",
    "🦄" * 50,
    "x" * 10_000,
    "../../etc",
    "",
]


# ------------------------------------------------------------------------------------------ headers


@pytest.mark.parametrize("value", NASTY)
def test_no_byte_of_a_name_or_a_role_can_forge_another_value(value: str) -> None:
    headers = build_identity_headers(Identity(value, value, frozenset({value, "engineer"})))
    assert sorted(headers) == ["X-Mcp-Roles", "X-Mcp-UserId", "X-Mcp-UserName"]
    assert all(character in VISIBLE for header in headers.values() for character in header)
    assert "," not in headers["X-Mcp-UserId"] and headers["X-Mcp-Roles"].count(",") == 1
    assert unquote(headers["X-Mcp-UserId"]) == value and unquote(headers["X-Mcp-UserName"]) == value
    assert {unquote(role) for role in headers["X-Mcp-Roles"].split(",")} == {value, "engineer"}


VISIBLE = set(string.ascii_letters + string.digits + "@.-_~:/%, ")


def test_ordinary_names_stay_readable() -> None:
    identity = Identity("ann@example.com", "Ann Smith", frozenset({"team:red", "https://example.com/dev", "mcp.admin"}))
    assert build_identity_headers(identity) == {
        "X-Mcp-UserId": "ann@example.com",
        "X-Mcp-UserName": "Ann Smith",
        "X-Mcp-Roles": "https://example.com/dev,mcp.admin,team:red",
    }


def test_different_identities_never_get_the_same_headers() -> None:
    identities = [Identity(one, two, frozenset({three})) for one in NASTY for two in NASTY[:4] for three in NASTY[:4]]
    assert len({str(build_identity_headers(identity)) for identity in identities}) == len(identities)


def test_over_a_process_the_identity_is_plain_json() -> None:
    assert build_identity_meta(ALICE) == {"userId": "alice", "userName": "Alice", "roles": ["engineer"]}


# --------------------------------------------------------------------------------- the allow-list


def random_header(pick: random.Random) -> str:
    parts = [
        "mcp",
        "x",
        "session",
        "id",
        "auth",
        "proxy",
        "param",
        "user",
        "name",
        "accept",
        "content",
        "type",
        "cookie",
    ]
    return "-".join(pick.choice(parts) for _ in range(pick.randint(1, 4)))


def test_of_what_a_client_sent_only_mcps_own_headers_pass() -> None:
    pick = random.Random(7)
    sent = {random_header(pick) for _ in range(300)} | MCP_HEADERS | {"mcp-param-region", "mcp-params"}
    sent |= {"authorization", "cookie", "x-mcp-userid", "x-forwarded-for", "host", "proxy-authorization", "x-api-key"}
    passed = set(strip_auth_headers(dict.fromkeys(sent, "v")))
    assert len(sent) > 200
    assert passed == {name for name in sent if name in MCP_HEADERS or name.startswith("mcp-param-")}


def test_the_case_of_a_header_does_not_matter() -> None:
    assert strip_auth_headers({"MCP-Session-ID": "1", "AUTHORIZATION": "x", "Mcp-Param-A": "2"}) == {
        "MCP-Session-ID": "1",
        "Mcp-Param-A": "2",
    }


def test_the_identity_wins_over_everything_of_its_name() -> None:
    forged = {"x-mcp-userid": "root", "X-MCP-ROLES": "mcp.admin", "X-Mcp-UserName": "Root"}
    headers = prepare_proxy_headers({**forged, "X-Api-Key": "k"}, {**forged, "Mcp-Method": "ping"}, ALICE)
    assert {name.lower(): value for name, value in headers.items()} == {
        "x-api-key": "k",
        "mcp-method": "ping",
        "x-mcp-userid": "alice",
        "x-mcp-username": "Alice",
        "x-mcp-roles": "engineer",
    }
    assert len(headers) == 5


def test_what_is_nobodys_names_nobody() -> None:
    forged = {"x-mcp-userid": "root"}
    assert prepare_proxy_headers({**forged, "X-Api-Key": "k"}, {}, None) == {"X-Api-Key": "k"}


@pytest.mark.parametrize("name", ["X-Mcp-UserId", "x-mcp-roles", "X-MCP-USERNAME", "x-mcp-anything"])
def test_an_identity_header_cannot_be_configured(name: str) -> None:
    with pytest.raises(ValueError, match="the gateway's own"):
        McpServerResource(name="docs", url="https://docs.example/mcp", headers={name: "root"})


# ------------------------------------------------------------------------------- where it comes from


@pytest.mark.parametrize(
    ("claims", "identity"),
    [
        (
            {"sub": "ann", "name": "Ann", "roles": ["a", "b", "a"], "iss": "https://issuer.example"},
            Identity("ann", "Ann", frozenset({"a", "b"}), "https://issuer.example"),
        ),
        ({"sub": "ann"}, Identity("ann", "ann", frozenset(), "token")),
        ({"sub": "ann", "roles": "engineer"}, Identity("ann", "ann", frozenset({"engineer"}), "token")),
        ({"sub": "ann", "roles": "a,mcp.admin"}, Identity("ann", "ann", frozenset({"a,mcp.admin"}), "token")),
        ({"sub": "ann", "name": "", "roles": None}, Identity("ann", "ann", frozenset(), "token")),
        ({"sub": "ann", "name": 5, "roles": [1, None, "", "a"]}, Identity("ann", "ann", frozenset({"a"}), "token")),
        ({"sub": "ann", "roles": {"mcp.admin": False}}, Identity("ann", "ann", frozenset(), "token")),
        ({"sub": "ann", "roles": 5, "iss": None}, Identity("ann", "ann", frozenset(), "token")),
        ({"sub": "ann", "role": ["mcp.admin"], "scope": "mcp.admin"}, Identity("ann", "ann", frozenset(), "token")),
    ],
)
def test_claims_become_an_identity(claims: dict[str, Any], identity: Identity) -> None:
    assert identity_from_claims(claims) == identity


@pytest.mark.parametrize("claims", [{}, {"sub": ""}, {"sub": None}, {"sub": 5}, {"sub": ["ann"]}, {"user_id": "ann"}])
def test_a_token_without_a_subject_is_refused(claims: dict[str, Any]) -> None:
    with pytest.raises(NotAuthenticated, match="claim 'sub'"):
        identity_from_claims(claims)


@pytest.mark.parametrize("claim", ["sub", "name", "roles", "iss"])
def test_a_token_with_half_a_character_is_refused(claim: str) -> None:
    with pytest.raises(NotAuthenticated, match="not Unicode"):
        identity_from_claims({"sub": "ann", claim: "a\ud800"})


def test_user_ids_compare_exactly() -> None:
    ids = {identity_from_claims({"sub": sub, "iss": iss}).key for sub in ("bob", "Bob", "bob ") for iss in ("a", "A")}
    assert len(ids) == 6


def test_the_local_user_is_who_started_the_gateway_and_may_everything() -> None:
    identity = local_identity({})
    assert identity == Identity(getpass.getuser(), getpass.getuser(), frozenset({"mcp.admin"}), "local")
    assert identity.is_admin and not ALICE.is_admin


def test_the_local_user_can_be_named() -> None:
    assert local_identity({"APOLLOS_USER_ID": "zoë"}).user_id == "zoë"
    assert local_identity({"APOLLOS_USER_ID": "caf\udce9"}).user_id == r"caf\udce9"
    assert local_identity({"APOLLOS_USER_ID": ""}).user_id == getpass.getuser()


@pytest.mark.parametrize("error", [KeyError("uid not found"), OSError("no user")])
def test_a_uid_without_a_name_is_a_user_too(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def getuser() -> str:
        raise error

    monkeypatch.setattr(getpass, "getuser", getuser)
    assert local_identity({}).user_id == f"uid-{os.getuid()}"


def test_with_authentication_a_request_without_a_token_is_nobodys() -> None:
    with pytest.raises(NotAuthenticated, match="Send a bearer token"):
        resolve_identity(None)


def test_with_authentication_the_token_says_who_it_is() -> None:
    with signed_in("ann", roles=["engineer"], iss="https://issuer.example"):
        assert resolve_identity(None) == Identity("ann", "ann", frozenset({"engineer"}), "https://issuer.example")


def test_without_authentication_a_token_changes_nothing() -> None:
    with signed_in("ann"):
        assert resolve_identity(ALICE) is ALICE


def test_a_token_whose_verifier_gives_only_a_subject_is_enough() -> None:
    with signed_in("ann", claims_have_subject=False):
        assert resolve_identity(None).user_id == "ann"


def test_outside_of_a_call_nobody_is_bound() -> None:
    assert current_identity() is None
