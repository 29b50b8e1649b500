"""Each answer reaches its caller, each backend session ends with its client's, and no client says who it is.

The clients here speak JSON-RPC by hand: all number their requests from 0, and they send whatever they like.
"""

from __future__ import annotations

import random
import secrets
import string
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import pytest

from providers.identity import IDENTITY_META_KEY
from providers.lines import MODERN
from tests.helpers.gateway import (
    gateway_over_http,
    gateway_over_stdio,
    gateway_process,
    local,
    remote,
    servers_toml,
)
from tests.helpers.people import identity, token, tokens, window
from tests.helpers.processes import SERVERS, eventually, http_server, is_running
from tests.helpers.rpc import HANDSHAKE, NEWEST, RawClient, raw_client

pytestmark = pytest.mark.core

Backend = Callable[[], AbstractAsyncContextManager[dict[str, Any]]]

VERSIONS = [HANDSHAKE, NEWEST] if MODERN else [HANDSHAKE]
CLIENTS, CALLS, AT_ONCE = 50, 200, 4


# ---------------------------------------------------------------------------------- 10,000 calls, all counted from 0


@asynccontextmanager
async def small_process() -> AsyncIterator[dict[str, Any]]:
    yield local("hang.py", "proper")


@asynccontextmanager
async def small_remote() -> AsyncIterator[dict[str, Any]]:
    async with http_server("hang.py", "proper", "--http") as server:
        yield remote(server.url)


@pytest.mark.parametrize("isolation", ["session", "shared"])
@pytest.mark.parametrize("backend", [small_process, small_remote])
async def test_each_of_10000_answers_carries_its_callers_nonce(backend: Backend, isolation: str) -> None:
    mismatches: list[tuple[str, str]] = []

    async def use(url: str) -> None:
        async with raw_client(url) as client, anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE):
                tasks.start_soon(call_on, client, CALLS // AT_ONCE)

    async def call_on(client: RawClient, times: int) -> None:
        for _ in range(times):
            nonce = secrets.token_hex(8)
            answer = await client.call("b_echo", {"text": nonce})
            if answer["content"][0]["text"] != nonce:
                mismatches.append((nonce, answer["content"][0]["text"]))

    async with backend() as table:
        toml = servers_toml({"b": {**table, "isolation": isolation}}, acquire_timeout=60)
        async with gateway_process(toml) as gateway, anyio.create_task_group() as tasks:
            for _ in range(CLIENTS):
                tasks.start_soon(use, gateway.url)
    assert mismatches == []
