"""What the replicas of one gateway tell each other through Redis: who is alive and where, who has a lease, and the key
that they sign with.

`leases` and composition's `replicas` come in; connections are made as `store_redis` makes them. Each question has a
deadline, and Redis that does not answer is a `BoardUnavailable`; nothing here remembers an answer. All keys have one
hash tag, so that a cluster keeps them together.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio

from providers.errors import GatewayError

if TYPE_CHECKING:
    from redis.asyncio import Redis

_ANSWER_SECONDS = 1.0

_CLAIM = """
local held = redis.call('GET', KEYS[1])
if held then return held end
local token = redis.call('INCR', KEYS[2])
if token <= tonumber(ARGV[3]) then
  token = tonumber(ARGV[3]) + 1
  redis.call('SET', KEYS[2], token)
end
held = string.format('%d %s', token, ARGV[1])
redis.call('SET', KEYS[1], held, 'PX', ARGV[2])
return held
"""
_RENEW = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return held end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class BoardUnavailable(GatewayError):
    """Raised when Redis does not answer, or not in time."""


class Holder(NamedTuple):
    """Who has a lease. `token` grows with each new holder: the fencing token."""

    token: int
    replica: str

    @property
    def text(self) -> str:
        return f"{self.token} {self.replica}"


class Board:
    """An async context manager: its body is the life of its connections.

    Args:
        url: of Redis, as for the store.

    Raises:
        ConfigurationError: that is no such URL.
    """

    def __init__(self, url: str) -> None:
        from providers.store_redis import RedisAddress  # loads redis, which no other gateway needs

        self._address = RedisAddress.of(url)
        self._prefix = f"apollos:{{{self._address.namespace}.replicas}}"
        self._redis: Redis | None = None

    def __repr__(self) -> str:
        return f"<Board {'connected' if self._redis is not None else 'closed'}>"

    async def __aenter__(self) -> Board:
        self._redis = self._address.client(_ANSWER_SECONDS)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        client, self._redis = self._redis, None
        assert client is not None
        with anyio.CancelScope(shield=True):
            await client.aclose()

    # --- the key that all sign with

    async def shared_key(self, ours: bytes) -> bytes:
        """The key of all replicas: the first one that was brought.

        Args:
            ours: the key that we know, or a new one. Redis that lost everything gets it back from who knows it.
        """
        await self._ask("SET", self._key("key"), ours.hex(), "NX")
        return bytes.fromhex(str(await self._ask("GET", self._key("key"))))

    # --- who is alive

    async def announce(self, replica: str, url: str, seconds: float) -> None:
        """Say that a replica is alive, for so long."""
        await self._ask("SET", self._key("alive", replica), url, "PX", _milliseconds(seconds))

    async def url_of(self, replica: str) -> str | None:
        """Where a replica is reached; None if it is not alive."""
        found = await self._ask("GET", self._key("alive", replica))
        return None if found is None else str(found)

    async def leave(self, replica: str) -> None:
        """A replica ends."""
        await self._ask("DEL", self._key("alive", replica))

    # --- leases

    async def claim(self, name: str, replica: str, seconds: float, above: int) -> Holder:
        """Take a lease that nobody has; who has it now.

        Args:
            above: the highest token that we know of. A new one is higher, even if Redis lost everything.
        """
        keys = (self._key("lease", name), self._key("token"))
        return _holder(await self._ask("EVAL", _CLAIM, 2, *keys, replica, _milliseconds(seconds), above))

    async def renew(self, name: str, holder: Holder, seconds: float) -> Holder:
        """Keep a lease, also one that ran out and that nobody has taken; who has it now."""
        return _holder(
            await self._ask("EVAL", _RENEW, 1, self._key("lease", name), holder.text, _milliseconds(seconds))
        )

    async def release(self, name: str, holder: Holder) -> None:
        """Give a lease back; one that is another's by now is left alone."""
        await self._ask("EVAL", _RELEASE, 1, self._key("lease", name), holder.text)

    async def holder(self, name: str) -> Holder | None:
        """Who has a lease."""
        found = await self._ask("GET", self._key("lease", name))
        return None if found is None else _holder(found)

    def _key(self, *parts: str) -> str:
        return ":".join((self._prefix, *parts))

    async def _ask(self, *command: Any) -> Any:
        """
        Raises:
            BoardUnavailable: Redis does not answer.
        """
        from redis.exceptions import RedisError

        if self._redis is None:
            raise BoardUnavailable("the gateway does not run.")
        try:
            with anyio.fail_after(_ANSWER_SECONDS):
                return await self._redis.execute_command(*command)  # type: ignore[no-untyped-call]
        except (RedisError, OSError, TimeoutError) as error:
            raise BoardUnavailable(f"Redis does not answer ({type(error).__name__}).") from None


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _holder(text: object) -> Holder:
    token, _, replica = str(text).partition(" ")
    return Holder(int(token), replica)
