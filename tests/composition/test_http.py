"""The gateway over HTTP: the probes, the guard of Host and Origin, where it listens, and how it drains."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest

from composition.gateway import GatewayState
from composition.http import address_of, bind
from providers.errors import ConfigurationError
from tests.helpers.gateway import ServedGateway, gateway_over_http

pytestmark = pytest.mark.core

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


@pytest.fixture
async def served() -> AsyncIterator[ServedGateway]:
    async with gateway_over_http("") as gateway:
        yield gateway


async def status(method: str, url: str, headers: dict[str, str], json: object = None) -> int:
    async with aiohttp.ClientSession() as client, client.request(method, url, headers=headers, json=json) as answer:
        return answer.status


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3:8080", "pod.example"])
async def test_probes_answer_under_any_host(served: ServedGateway, host: str) -> None:
    base = served.url.removesuffix("/mcp")
    assert await status("GET", f"{base}/livez", {"Host": host}) == 200
    assert await status("GET", f"{base}/readyz", {"Host": host}) == 200


async def test_a_gateway_that_drains_is_alive_and_not_ready(served: ServedGateway) -> None:
    base = served.url.removesuffix("/mcp")
    served.gateway.state = GatewayState.DRAINING
    assert await status("GET", f"{base}/livez", {}) == 200
    assert await status("GET", f"{base}/readyz", {}) == 503


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1.evil.example"}, 403),
    ],
    ids=str,
)
async def test_strange_hosts_and_origins_are_refused(
    served: ServedGateway, method: str, headers: dict[str, str], expected: int
) -> None:
    assert await status(method, served.url, ACCEPT | headers, PING) == expected


async def test_an_unknown_session_is_not_found(served: ServedGateway) -> None:
    assert await status("POST", served.url, ACCEPT | {"Mcp-Session-Id": "0" * 32}, PING) == 404


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "::", "example.com"])
def test_other_addresses_than_loopback_need_authentication(host: str) -> None:
    with pytest.raises(ConfigurationError, match="without authentication"):
        bind(host, 0, has_auth=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_is_listened_on(host: str) -> None:
    if host == "::1" and not socket.has_ipv6:
        return
    with bind(host, 0, has_auth=False) as listener:
        assert address_of(listener).startswith("http://[::1]:" if host == "::1" else "http://127.0.0.1:")


def test_answers_are_sent_at_once() -> None:
    """Also where asyncio accepts the connections, which would let the kernel wait for more to send."""
    with bind("127.0.0.1", 0, has_auth=False) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
