"""The store in Redis keeps the contract, over TLS too, and fails quickly, and without a secret, when Redis is away."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from providers.errors import ConfigurationError, StoreUnavailable
from providers.store import McpResourceStoreBase
from providers.store_redis import RedisAddress, RedisMcpResourceStore
from tests.helpers.certificates import authority
from tests.helpers.redis_server import PASSWORD, RedisServer, redis_server
from tests.helpers.store_writers import patient_store
from tests.providers.store_contract import StoreContract, record, watching

pytestmark = pytest.mark.core

A_SECOND = 1.5
"""With time for a busy machine."""
_numbers = itertools.count()


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def url(redis: RedisServer) -> str:
    """Of a part of it that is empty."""
    return f"{redis.url}?namespace=test-{next(_numbers)}"


class TestRedis(StoreContract):
    @pytest.fixture
    async def store(self, url: str) -> AsyncIterator[McpResourceStoreBase]:
        async with patient_store(url) as store:
            yield store


async def test_namespaces_are_apart(url: str) -> None:
    async with RedisMcpResourceStore(url) as one, RedisMcpResourceStore(f"{url}x") as other:
        await one.upsert(record())
        assert dict(await other.list_all()) == {}


async def test_all_keys_lie_in_one_slot_of_a_cluster(redis: RedisServer) -> None:
    async with RedisMcpResourceStore(f"{redis.url}?namespace=slots") as store:
        await store.upsert(record())
    keys = redis.ask("KEYS", "*slots*").decode().split("\r\n")[2::2]
    assert sorted(key.strip() for key in keys if key) == ["{apollos:slots}:changes", "{apollos:slots}:servers"]


async def test_what_another_gateway_writes_is_noticed(url: str) -> None:
    async with RedisMcpResourceStore(url) as one, RedisMcpResourceStore(url) as other, watching(one) as following:
        await following()
        await other.upsert(record())
        assert list(await following()) == ["files"]
        await other.delete("files")
        assert list(await following()) == []


async def test_data_that_is_lost_is_noticed(redis: RedisServer, url: str) -> None:
    async with RedisMcpResourceStore(url) as store, watching(store) as following:
        await store.upsert(record())
        assert list(await following()) == ["files"]
        redis.ask("FLUSHALL")
        assert list(await following()) == []


async def test_a_record_that_cannot_be_read_is_left_out_alone(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with RedisMcpResourceStore(f"{redis.url}?namespace=odd") as store:
        for name in ("files", "newer", "time"):
            await store.upsert(record(name))
        row = '1 2026-01-01T00:00:00+00:00 2026-01-01T00:00:00+00:00 {"command":"x","quantum":"secret"}'
        redis.ask("HSET", "{apollos:odd}:servers", "newer", row)
        redis.ask("HSET", "{apollos:odd}:servers", "broken", "secret")
        redis.ask("EVAL", "return redis.call('HSET', KEYS[1], 'b\\255', '\\255')", "1", "{apollos:odd}:servers")
        assert sorted(await store.list_all()) == ["files", "time"]
        assert await store.get("newer") is None and await store.get("broken") is None
        assert "'newer' is left out" in caplog.text and "secret" not in caplog.text


async def test_it_speaks_tls_to_whom_it_trusts(tmp_path: Path) -> None:
    folder = authority().write(tmp_path / "certificates", "redis")
    with redis_server(certificates=folder) as redis:
        async with RedisMcpResourceStore(f"{redis.url}?ssl_ca_certs={folder / 'ca.pem'}") as store:
            await store.upsert(record())
            assert list(await store.list_all()) == ["files"]
        async with RedisMcpResourceStore(redis.url) as store:
            with pytest.raises(StoreUnavailable, match="cannot be reached"):
                await store.list_all()


async def test_a_wrong_password_is_told_and_not_shown(redis: RedisServer) -> None:
    async with RedisMcpResourceStore(redis.url.replace(PASSWORD, "canary")) as store:
        with pytest.raises(StoreUnavailable, match="refuses the user, the password") as refusal:
            await store.upsert(record())
    assert "canary" not in f"{refusal.value}{refusal.value!r}{store!r}"


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_when_redis_is_away_everything_fails_within_a_second(how: str) -> None:
    with redis_server() as redis:
        async with RedisMcpResourceStore(redis.url) as store:
            await store.upsert(record())
            getattr(redis, how)()
            for work in (store.upsert(record()), store.delete("files"), store.get("files"), store.list_all()):
                began = anyio.current_time()
                with pytest.raises(StoreUnavailable) as away:
                    await work
                assert anyio.current_time() - began < A_SECOND
                assert PASSWORD not in f"{away.value}{away.value!r}" and str(redis.port) in str(away.value)
            redis.resume() if how == "pause" else redis.start()
            assert (await store.upsert(record(), expected_version=None)).version >= 2, "it is the same store again"


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_a_watcher_hears_that_redis_is_away_and_can_begin_anew(how: str) -> None:
    with redis_server() as redis:
        async with RedisMcpResourceStore(redis.url) as store:
            async with watching(store) as following:
                await following()
                getattr(redis, how)()
                with pytest.raises(StoreUnavailable):
                    await following()
            redis.resume() if how == "pause" else redis.start()
            await store.upsert(record())
            async with watching(store) as following:
                assert list(await following()) == ["files"]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://", "must be an address"),
        ("redis://:canary@host:port", "must be an address"),
        ("redis://:canary@host/zero", "must be an address"),
        ("redis://:canary@host/0?namespace=a%7Db", "namespace"),
        ("redis://:canary@host/0?ssl_cert_reqs=none", "unknown option 'ssl_cert_reqs'"),
        ("rediss://:canary@host/0?ssl_cert_reqs=none", "unknown option 'ssl_cert_reqs'"),
    ],
)
def test_an_address_that_is_none_is_refused_without_its_password(url: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as refusal:
        RedisMcpResourceStore(url)
    assert "canary" not in str(refusal.value)


def test_an_address_has_its_parts() -> None:
    address = RedisAddress.of("rediss://ann:p%40ss@host:7000/3?namespace=team&ssl_ca_certs=/ca.pem")
    assert (address.host, address.port, address.database, address.has_tls) == ("host", 7000, 3, True)
    assert (address.username, address.password, address.namespace) == ("ann", "p@ss", "team")
    assert "p@ss" not in f"{address!r}{address.shown}"
