"""Resources in Redis: the store of several gateways on several machines. The only file that imports redis.

The gateway and the command line come in. All records are one hash, so that one command reads them all, and one script
changes record, version and the stream of changes together. Gateways follow the stream from the last entry that they
have seen; whatever happened in between, they read the whole hash again, so nothing can be missed. Both keys have the
same hash tag, and a cluster keeps them on one node.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import anyio
from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import TimeoutError as NotInTime

from providers.errors import ConfigurationError, StoreUnavailable, VersionConflict
from providers.resource import McpServerResource
from providers.store import DurableStore, Snapshot
from providers.store_records import Reader, Row, document_of, now, read, stored

ANSWER_SECONDS = 0.8
"""That any read or write takes at most, connecting included."""
_CONFIRM_SECONDS = 2.0
"""That an answer may take for which nobody waits: a moment's stall is no outage."""
_WAIT_SECONDS = 1.0
"""That Redis holds a request for news before it answers that there are none."""
_MOST_CONNECTIONS = 8
_MOST_CHANGES = 1000
"""Entries of the stream. They only wake those who wait, so old ones may go."""
_NAMESPACE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")

_READ = """
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
return {last and last[1] or '0-0', redis.call('HGETALL', KEYS[1])}
"""
_LAST = """
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
return last and last[1] or '0-0'
"""
_KNOWN = """
local known = redis.call('HGET', KEYS[1], ARGV[1])
local version, created = 0, ARGV[3]
if known then version, created = string.match(known, '^(%d+) (%S+)') end
version, created = version or 0, created or ARGV[3]
if ARGV[2] ~= '' and ARGV[2] ~= tostring(version) then return {0, tostring(version)} end
"""
_UPSERT = f"""{_KNOWN}
local row = string.format('%d %s %s ', tonumber(version) + 1, created, ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], row .. ARGV[4])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], '*', 'name', ARGV[1])
return {{1, row}}
"""
_DELETE = f"""{_KNOWN}
if not known then return {{1, ''}} end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], '*', 'name', ARGV[1])
return {{1, tostring(version)}}
"""


@dataclass(frozen=True)
class RedisAddress:
    """Where a Redis is, and which records in it are meant. Its repr and `shown` are without the password."""

    host: str
    port: int = 6379
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    namespace: str = "default"
    has_tls: bool = False
    tls: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, url: str) -> RedisAddress:
        """
        Args:
            url: `redis://` or, over TLS, `rediss://[USER][:PASSWORD@]HOST[:PORT][/DATABASE]`, and as options
                `namespace` and, for TLS, `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`.

        Raises:
            ConfigurationError: that is no such URL.
        """
        try:
            parts = urlsplit(url)
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
            database = int(parts.path.strip("/") or 0)
            host, port = parts.hostname, parts.port or cls.port
        except ValueError:
            host, port, database, options = None, 0, 0, {}
        if not host or database < 0:
            raise ConfigurationError("store must be an address such as redis://:PASSWORD@HOST:6379/0")
        namespace = options.pop("namespace", cls.namespace)
        if not _NAMESPACE.fullmatch(namespace):
            raise ConfigurationError("store has a namespace that is not 1 to 64 letters, digits, '.', '_' and '-'")
        if unknown := sorted(options.keys() - set(_TLS_OPTIONS if parts.scheme == "rediss" else ())):
            raise ConfigurationError(
                f"store has the unknown option '{unknown[0]}'. Allowed: namespace, and with "
                f"rediss:// {', '.join(_TLS_OPTIONS)}"
            )
        return cls(
            host,
            port,
            database,
            unquote(parts.username) if parts.username else None,
            unquote(parts.password) if parts.password else None,
            namespace,
            parts.scheme == "rediss",
            options,
        )

    @property
    def shown(self) -> str:
        return f"redis at {self.host}:{self.port}"

    def client(self, answer_within: float) -> Redis:
        """A client with connections of its own; closed by who asked for it."""
        tls: dict[str, Any] = {"connection_class": SSLConnection, **self.tls} if self.has_tls else {}
        pool = BlockingConnectionPool(
            max_connections=_MOST_CONNECTIONS,
            timeout=answer_within,
            host=self.host,
            port=self.port,
            db=self.database,
            username=self.username,
            password=self.password,
            socket_timeout=answer_within,
            socket_connect_timeout=answer_within,
            retry=Retry(NoBackoff(), 0),  # a change that was sent may have been made
            decode_responses=True,
            encoding_errors="replace",  # one record that is no text does not take the others down
            **tls,
        )
        return Redis.from_pool(pool)


class RedisMcpResourceStore(DurableStore):
    """Records under one namespace of a Redis.

    Args:
        url: see `RedisAddress.of`.
        answer_within: seconds that a read or write takes at most, connecting included.

    Raises:
        ConfigurationError: the URL is no such address.
    """

    def __init__(self, url: str, *, answer_within: float = ANSWER_SECONDS) -> None:
        self._address, self._answer_within = RedisAddress.of(url), answer_within
        tag = f"{{apollos:{self._address.namespace}}}"
        self._records, self._changes = f"{tag}:servers", f"{tag}:changes"
        self._redis: Redis | None = None
        self._reader = Reader()

    def __repr__(self) -> str:
        return f"<RedisMcpResourceStore {self._address.shown} {'open' if self._redis else 'closed'}>"

    async def __aenter__(self) -> Self:
        """Connections are made when they are needed: a gateway starts without its Redis."""
        self._redis = self._address.client(self._answer_within)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            client, self._redis = self._redis, None
            if client is not None:
                await client.aclose()

    @property
    def _client(self) -> Redis:
        assert self._redis is not None, "the store is not open"
        return self._redis

    # --- records

    async def get(self, name: str) -> McpServerResource | None:
        with self._errors_for_people():
            text: Any = await _in_time(self._answer_within, self._client.hget(self._records, name))
        return read(name, _row(text)) if text is not None else None

    async def list_all(self) -> Snapshot:
        with self._errors_for_people():
            return (await self._read(self._client, self._answer_within))[1]

    async def _read(self, client: Redis, within: float) -> tuple[str, Snapshot]:
        """The last change and, in the same moment, all records."""
        last, flat = await _in_time(within, client.eval(_READ, 2, self._records, self._changes))
        rows = {name: _row(text) for name, text in zip(flat[::2], flat[1::2], strict=True)}
        return last, self._reader.snapshot(rows)

    async def upsert(self, resource: McpServerResource, *, expected_version: int | None = None) -> McpServerResource:
        document = document_of(resource)
        beside = await self._change(_UPSERT, resource.name, expected_version, document)
        return stored(resource.name, _row(beside + document))

    async def delete(self, name: str, *, expected_version: int | None = None) -> bool:
        return await self._change(_DELETE, name, expected_version) != ""

    async def _change(self, script: str, name: str, expected: int | None, document: str = "") -> str:
        arguments = (name, "" if expected is None else str(expected), now(), document, str(_MOST_CHANGES))
        with self._errors_for_people():
            answer = self._client.eval(script, 2, self._records, self._changes, *arguments)
            is_done, said = await _in_time(self._answer_within, answer)
        if not is_done:
            raise VersionConflict(name, expected, int(said) or None)
        return str(said)

    # --- changes

    async def confirmations(self) -> AsyncGenerator[Snapshot]:
        client = self._address.client(_WAIT_SECONDS + _CONFIRM_SECONDS)  # its own: who waits here holds up nobody
        try:
            with self._errors_for_people():
                last, snapshot = await self._read(client, _CONFIRM_SECONDS)
                yield snapshot
                while True:
                    waiting = client.xread({self._changes: last}, block=int(_WAIT_SECONDS * 1000))
                    news = await _in_time(_WAIT_SECONDS + _CONFIRM_SECONDS, waiting)
                    # A Redis that lost its data, or an older one that took over, has no news and yet is another.
                    if news or await _in_time(_CONFIRM_SECONDS, client.eval(_LAST, 1, self._changes)) != last:
                        last, snapshot = await self._read(client, _CONFIRM_SECONDS)
                    yield snapshot
        finally:
            with anyio.CancelScope(shield=True):
                await client.aclose()

    @contextmanager
    def _errors_for_people(self) -> Iterator[None]:
        """Errors of Redis may quote what was sent, so that only their kind is passed on."""
        try:
            yield
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailable(self._address.shown, _problem(error)) from None


async def _in_time(within: float, answer: Any) -> Any:
    """
    Args:
        answer: to be awaited, although redis says of most that they might be there already.
    """
    with anyio.fail_after(within):
        return await answer


def _problem(error: Exception) -> str:
    match error:
        case AuthenticationError() | NoPermissionError():
            return "refuses the user, the password, or what is asked of it"
        case ReadOnlyError():
            return "is a replica that takes no changes"
        case NotInTime() | TimeoutError():
            return "does not answer in time"
        case NotConnected() | OSError():
            return "cannot be reached"
        case _:
            return f"answers with an error ({type(error).__name__})"


def _row(text: str) -> Row:
    parts = text.split(" ", 3)
    if len(parts) < 4 or not parts[0].isdecimal():
        return Row(0, "", "", text)  # nobody of ours wrote this; the reader says that it cannot be read
    return Row(int(parts[0]), *parts[1:])
