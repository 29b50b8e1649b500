"""A client session over HTTP that is silent for too long."""

from __future__ import annotations

import pytest

from providers.lines import MODERN
from tests.helpers.gateway import gateway_over_http, in_process, patient_toml
from tests.helpers.processes import eventually
from tests.integration.test_transport_rules import ACCEPT, HELLO, PING, answered, http

pytestmark = pytest.mark.skipif(not MODERN, reason="FastMCP 3.4 has half an hour, and no say in it")


async def test_a_session_that_is_silent_for_long_ends_with_all_that_was_its_own() -> None:
    toml = patient_toml({"b": in_process("everything.py")}, session_timeout=0.3)
    async with gateway_over_http(toml) as gateway, http() as client:
        async with client.post(gateway.url, json=HELLO, headers=ACCEPT) as response:
            session = {"Mcp-Session-Id": response.headers["Mcp-Session-Id"]}
            await response.read()
        call = {"name": "b_echo", "arguments": {"text": "x"}}
        request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        async with client.post(gateway.url, json=request, headers=ACCEPT | session) as response:
            await response.read()
        sessions, pool = gateway.gateway.sessions, gateway.gateway.pool
        await eventually(lambda: len(sessions) == 0 and not [c for c in pool.connections() if c.ends_with_session])
        assert (await answered(client, "POST", gateway.url, session, json=PING))[0] == 404
