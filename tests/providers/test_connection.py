"""The values around a pooled connection: its key, its states, whom it serves."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from providers.caller import Caller
from providers.connection import ConnectionState, PooledConnection, key_for
from tests.helpers.fakes import ALICE, BOB, FakeBackend, caller_of, modern_caller

pytestmark = pytest.mark.core

CALLERS = {
    "alice 1": caller_of(ALICE, "session:1"),
    "alice 2": caller_of(ALICE, "session:2"),
    "bob": caller_of(BOB, "session:3"),
    "alice modern": modern_caller(ALICE),
    "bob modern": modern_caller(BOB),
    "alice 1, can elicit": caller_of(ALICE, "session:1", capabilities=frozenset({"elicitation"})),
}

SHARING = {
    "session": set(),
    "user": {("alice 1", "alice 2")},
    "shared": {("alice 1", "alice 2"), ("alice 1", "bob"), ("alice 2", "bob"), ("alice modern", "bob modern")},
    "call": set(),
}
"""By isolation: which two of the callers may use the same connection. All others never do."""


@pytest.mark.parametrize("isolation", SHARING)
def test_who_has_the_same_key(isolation: str) -> None:
    target = FakeBackend().target(isolation=isolation)
    same = {
        (one, other)
        for one, other in combinations(CALLERS, 2)
        if key_for(target, CALLERS[one]) == key_for(target, CALLERS[other])
    }
    assert same == SHARING[isolation]


@pytest.mark.parametrize("isolation", ["session", "user", "shared"])
def test_a_caller_has_the_same_key_again(isolation: str) -> None:
    target = FakeBackend().target(isolation=isolation)
    assert all(key_for(target, caller) == key_for(target, caller) for caller in CALLERS.values())


def test_each_call_of_isolation_call_has_a_key_of_its_own() -> None:
    target = FakeBackend().target(isolation="call")
    assert len({key_for(target, CALLERS["alice 1"]) for _ in range(100)}) == 100


def test_servers_and_generations_are_kept_apart() -> None:
    keys = {
        key_for(FakeBackend(name).target(generation, isolation="shared"), CALLERS["bob"])
        for name in ("a", "b")
        for generation in (1, 2)
    }
    assert len(keys) == 4


def test_what_a_client_can_be_asked_counts_in_any_order() -> None:
    target = FakeBackend().target(isolation="shared")
    one = caller_of(capabilities=frozenset(("roots", "sampling", "elicitation")))
    other = caller_of(capabilities=frozenset(("elicitation", "roots", "sampling")))
    assert key_for(target, one) == key_for(target, other)


def test_users_of_two_issuers_never_meet_whatever_their_names_hold() -> None:
    target = FakeBackend().target(isolation="user")
    users = [("a/b", "c"), ("a", "b/c"), ("a%2Fb", "c"), ("a;modern", "c"), ("a", "c;handshake;roots")]
    callers = [modern_caller(type(ALICE)(user, user, issuer=issuer)) for issuer, user in users]
    assert len({key_for(target, caller) for caller in callers}) == len(users)


def connection_of(caller: Caller = CALLERS["alice 1"], **more: str) -> PooledConnection:
    target = FakeBackend("files").target(3, **more)
    return PooledConnection(target, key_for(target, caller), caller, 0.0, 0.0, 0.0)


async def test_a_connection_says_what_it_is() -> None:
    connection = connection_of()
    assert repr(connection) == "<PooledConnection files#3 connecting in_use=0>"
    assert (connection.server, connection.generation, connection.is_open) == ("files", 3, False)


async def test_two_tokens_of_one_user_take_turns() -> None:
    connection, alice = connection_of(), CALLERS["alice 1"]
    connection.state, connection.holder = ConnectionState.ACTIVE, (alice.session, alice.identity)
    narrower = replace(alice, identity=replace(alice.identity, roles=frozenset()))
    wider = replace(alice, identity=replace(alice.identity, roles=frozenset({"mcp.admin"})))
    assert [connection.serves(each) for each in (alice, narrower, wider)].count(True) == 1


@pytest.mark.parametrize("state", ConnectionState)
async def test_only_an_open_connection_serves(state: ConnectionState) -> None:
    connection = connection_of()
    alice = CALLERS["alice 1"]
    connection.state, connection.holder = state, (alice.session, alice.identity)
    serves = {name for name in ("alice 1", "bob") if connection.serves(CALLERS[name])}
    expected = {ConnectionState.IDLE: {"alice 1", "bob"}, ConnectionState.ACTIVE: {"alice 1"}}
    assert serves == expected.get(state, set())


@pytest.mark.parametrize(
    ("isolation", "caller", "ends"),
    [
        ("session", "alice 1", "session:1"),
        ("session", "alice modern", None),
        ("user", "alice 1", None),
        ("shared", "alice 1", None),
        ("call", "alice 1", None),
    ],
)
async def test_with_which_client_session_a_connection_ends(isolation: str, caller: str, ends: str | None) -> None:
    assert connection_of(CALLERS[caller], isolation=isolation).ends_with_session == ends
