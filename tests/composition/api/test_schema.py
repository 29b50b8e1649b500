"""The OpenAPI document, held against the API itself by schemathesis: as everybody, with all its checks."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import anyio
import pytest

from composition import door
from tests.helpers.api import OPEN_LOOPBACK, SHARED, rest_api
from tests.helpers.gateway import gateway_over_http, servers_toml
from tests.helpers.people import token

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
NOT_THERE = "schemathesis is not installed: uv sync installs it with the other tools for development"
CONFIGURATION = """
[checks.positive_data_acceptance]
# 400: how members go together, and where a host leads, no JSON Schema can say. 412: If-None-Match of "*".
expected-statuses = ["2xx", "304", "400", "401", "403", "404", "409", "412", "503"]

[checks.not_a_server_error]
# 503: the tool of a server that cannot be started
expected-statuses = ["2xx", "3xx", "4xx", "503"]
"""


@pytest.mark.skipif(not SCHEMATHESIS.exists(), reason=NOT_THERE)
@pytest.mark.parametrize("user", ["ada", "bob", "stranger", None])
async def test_the_api_is_what_its_document_says(
    user: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    options = ["--checks=all", "--seed=1", "--max-examples=10", "--generation-database=none", "--no-color"]
    if user is not None:
        options += ["--header", f"Authorization: Bearer {token(user)}"]
    monkeypatch.setattr(door, "STRANGERS_AT_ONCE", 100_000.0)
    async with rest_api(SHARED, "stranger", max_requests_per_second=100_000.0) as rest:
        await rest.made(name="time", requiredRoles=["guest"])
        command = [str(SCHEMATHESIS), f"--config-file={configuration}", "run", f"{rest.base}/openapi.json", *options]
        with anyio.fail_after(100):
            done = await anyio.run_process(command, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout.decode()[-6000:]


async def test_the_document_needs_no_token_and_holds_no_name_of_python() -> None:
    async with rest_api() as rest:
        reply = await rest("GET", "/openapi.json", user=None)
    schemas = reply.json["components"]["schemas"]
    assert reply.json["openapi"].startswith("3.1")
    names = {name for schema in schemas.values() for name in schema.get("properties", {})}
    assert [name for name in names if "_" in name] == []
    assert "python" not in schemas["AdapterData"]["properties"]


async def test_without_authentication_the_document_asks_for_none() -> None:
    toml = servers_toml(SHARED, allowed_networks=OPEN_LOOPBACK)
    async with gateway_over_http(toml) as served:
        base = served.url.removesuffix("/mcp")
        program = shutil.which("curl") or pytest.fail("curl is not installed")
        done = await anyio.run_process([program, "-sS", f"{base}/openapi.json", f"{base}/adapters"])
    document, rest = json.JSONDecoder().raw_decode(done.stdout.decode())
    assert "security" not in document
    assert '"everything"' in done.stdout.decode()[rest:]
