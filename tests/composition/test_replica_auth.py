"""Whom a replica lets in because another one vouches: at one path, with a lease, beside the configured provider."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from contextvars import copy_context

import pytest

from composition.replica_auth import ReplicaAuth, asked_path, is_of_replica
from composition.replicas import Replicas, replicas_for
from composition.settings import Settings
from providers.assertions import Assertion, sign
from providers.errors import ConfigurationError
from providers.identity import Identity, identity_from_claims
from providers.leases import Lease
from tests.helpers.people import token, tokens
from tests.helpers.redis_server import RedisServer, redis_server

PATH = "/adapters/box/mcp"
EVE = Identity("eve", "Eve", frozenset({"a", "b"}), "https://login.example.com")


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@asynccontextmanager
async def owner(redis: RedisServer) -> AsyncIterator[tuple[Replicas, ReplicaAuth, str]]:
    """A replica with a lease, its auth provider, and an assertion for it."""
    redis.ask("FLUSHALL")
    async with Replicas(redis.url, "http://127.0.0.1:1", has_auth=True) as us:
        lease = await us.leases.claim(("box", "shared"))
        assert isinstance(lease, Lease)
        lease.users += 1
        yield us, ReplicaAuth(tokens(), us), assertion(us)
        lease.users -= 1


def assertion(us: Replicas, server: str = "box") -> str:
    lease = us.leases.held(("box", "shared"))
    assert lease is not None
    return sign(Assertion(EVE, server, "shared", lease.holder.token), us.id, us.fence.key)


async def verified(auth: ReplicaAuth, bearer: str, path: str | None) -> Identity | None:
    asked_path.set(path)
    found = await auth.verify_token(bearer)
    if found is None:
        return None
    assert is_of_replica(found) is (bearer.count(".") == 2)
    return identity_from_claims({"sub": getattr(found, "subject", None), **found.claims})


async def test_who_is_vouched_for_is_who_it_was(redis: RedisServer) -> None:
    async with owner(redis) as (_, auth, bearer):
        assert await verified(auth, bearer, PATH) == EVE


@pytest.mark.parametrize(
    "path", ["/mcp", "/adapters", "/adapters/box", "/adapters/other/mcp", "/adapters/box/mcp/", ""]
)
async def test_nowhere_else(redis: RedisServer, path: str) -> None:
    async with owner(redis) as (_, auth, bearer):
        assert await verified(auth, bearer, path) is None


async def test_what_was_let_in_may_go_on_while_the_lease_is_ours(redis: RedisServer) -> None:
    async with owner(redis) as (us, auth, bearer):
        assert await verified(auth, bearer, PATH) == EVE
        assert await verified(auth, bearer, PATH) is None, "it is good for one request"
        assert await verified(auth, bearer, None) == EVE, "the request still runs"
        await us.leases.hand_over(all_of_them=True)
        assert await verified(auth, bearer, None) is None


async def test_the_configured_provider_is_asked_for_all_others(redis: RedisServer) -> None:
    async with owner(redis) as (_, auth, _bearer):
        for path in (PATH, "/mcp", None):
            found = await verified(auth, token("ada"), path)
            assert found is not None and found.user_id == "ada"
            assert await verified(auth, "x.y.z", path) is None


def test_replicas_need_a_store_that_they_share() -> None:
    with pytest.raises(ConfigurationError, match="Replicas meet in Redis"):
        replicas_for(Settings(replica_url="http://10.0.0.3:8808"), has_auth=True)
    assert replicas_for(Settings(store="redis://127.0.0.1:6379/0"), has_auth=True) is None


def test_a_path_is_known_in_its_own_request_only() -> None:
    copy_context().run(asked_path.set, PATH)
    assert asked_path.get() is None


@pytest.mark.parametrize("text", ["", "x", ".", "0" * 12 + ".", "0" * 12 + ".x", "0" * 11 + ".x", "v1.abc", "\n.x"])
async def test_a_text_that_nobody_alive_gave_out_stays_here(redis: RedisServer, text: str) -> None:
    async with owner(redis) as (us, _, _bearer):
        assert await us.elsewhere(text) is None
        assert us.unmarked(text) is None
        assert us.unmarked(us.marked(text)) == text
        assert await us.elsewhere(us.marked("x")) is None
