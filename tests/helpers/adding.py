"""For servers that are added while a gateway runs: a registry to find them in, and a `uvx` that starts a test server.

`shop` gives a gateway whose users find `com.example/echo` (a package), `com.example/keyed` (one with a secret) and
others in its registry. Clients are by hand, of either era.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.helpers.clients import HandClient, Json, connect_http
from tests.helpers.gateway import ServedGateway, alone, gateway_over_http, in_process, servers_toml
from tests.helpers.mcp_registry import package, registry, server
from tests.helpers.people import token, tokens
from tests.helpers.processes import SERVERS

TOOLS_CHANGED = "notifications/tools/list_changed"
YES: Json = {"action": "accept", "content": {"approve": True}}
NO: Json = {"action": "decline"}
_KEY = {"name": "API_KEY", "isSecret": True, "isRequired": True, "description": "A key."}
_WHERE = {"name": "WHERE", "isRequired": True, "description": "A place."}
LISTED = (
    server("com.example/echo", packages=[package("pypi", "mcp-server-echo")]),
    server("com.example/keyed", packages=[package("pypi", "mcp-server-keyed", environmentVariables=[_KEY])]),
    server("com.example/placed", packages=[package("pypi", "mcp-server-placed", environmentVariables=[_WHERE])]),
    server("com.example/broken", packages=[package("pypi", "mcp-server-broken")]),
    server(
        "com.example/steered",
        packages=[package("pypi", "mcp-server-steered", environmentVariables=[{"name": "UV_INDEX", "value": "evil"}])],
    ),
    server("com.example/inside", remotes=[{"type": "streamable-http", "url": "https://127.0.0.1:1/mcp"}]),
)


@dataclass(frozen=True)
class Shop:
    """A gateway whose servers come from a registry."""

    served: ServedGateway

    @asynccontextmanager
    async def client(self, user: str, era: str, **options: Any) -> AsyncIterator[HandClient]:
        """A client that answers forms as `answers` says."""
        headers = {"Authorization": f"Bearer {token(user)}"}
        async with connect_http(self.served.url, era, headers=headers, **options) as one:
            one.patience = 30.0  # a server is started
            yield one

    async def status_alone(self, user: str, name: str) -> int:
        """The HTTP status where a server is served alone."""
        headers = {"Authorization": f"Bearer {token(user)}", "Accept": "application/json, text/event-stream"}
        message = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        async with (
            aiohttp.ClientSession(headers=headers) as http,
            http.post(alone(self.served.url, name), json=message) as answer,
        ):
            return answer.status


@asynccontextmanager
async def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **gateway: Any) -> AsyncIterator[Shop]:
    """A gateway with dynamic tools. `uvx` starts tests/servers/everything.py, and nothing for `broken`."""
    fake = tmp_path / "bin" / "uvx"
    fake.parent.mkdir()
    fake.write_text(
        '#!/bin/sh\ncase "$*" in *broken*) echo "no such package" >&2; exit 1;; esac\n'
        f"exec {json.dumps(sys.executable)} {json.dumps(str(SERVERS / 'everything.py'))}\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    everybodys = {"all": in_process("everything.py", required_roles=["*"])}
    async with registry(*LISTED) as listing:
        catalog = tmp_path / "catalog.yaml"
        catalog.write_text("version: 3\nname: none\nregistry: {}\n")
        keys = {"dynamic": True, "mcp_registry": listing.url, "catalogs": [str(catalog)]}
        keys |= {"state_dir": str(tmp_path / "state"), "timeouts": {"first_start": 30.0, "list": 30.0}}
        toml = servers_toml(everybodys, **keys, **gateway)
        async with gateway_over_http(toml, auth=tokens("cyd")) as served:
            yield Shop(served)


async def names(one: HandClient) -> list[str]:
    """The servers of the tools that are listed."""
    listed = await one.request("tools/list")
    return sorted({str(tool["name"]).partition("_")[0] for tool in listed["tools"]})


async def add(one: HandClient, name: str, **more: Any) -> Json:
    """The answer of `gateway_add_server`."""
    return await one.call("gateway_add_server", name=f"com.example/{name}", source="registry", **more)


def problem(answer: Json) -> str:
    """The sentence of a tool's error."""
    assert answer.get("isError"), answer
    return str(answer["content"][0]["text"])


def called(answer: Json) -> str:
    """What a server that was added is called."""
    assert not answer.get("isError"), answer
    return str(answer["structuredContent"]["name"])


def changes(one: HandClient) -> int:
    """How often it heard that the tools changed."""
    return sum(message["method"] == TOOLS_CHANGED for message in one.heard)
