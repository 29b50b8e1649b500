"""A gateway's REST API for tests: requests of any user of `people`, and what came of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy

from tests.helpers.gateway import ServedGateway, gateway_over_http, in_process, servers_toml
from tests.helpers.people import token, tokens

OPEN_LOOPBACK = ["127.0.0.0/8", "::1/128"]
"""Tests have no other network; as an operator would open his own."""

SHARED = {"everything": in_process("everything.py", required_roles=["guest"])}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: CIMultiDictProxy[str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def wrong(self) -> list[str]:
        """The members that a problem names."""
        return [each["key"] for each in self.json["errors"]]


class Rest:
    """The API of one gateway."""

    def __init__(self, served: ServedGateway, http: aiohttp.ClientSession) -> None:
        self.served, self.gateway, self._http = served, served.gateway, http
        self.base = served.url.removesuffix("/mcp")

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        user: str | None = "ada",
        headers: Mapping[str, str] = {},
        **more: Any,
    ) -> Reply:
        """One request. Ada is an administrator, Bob a guest; a user of None brings no token.

        Args:
            body: sent as JSON.
            more: of aiohttp's request, for example `data`.
        """
        credentials = {"Authorization": f"Bearer {token(user)}"} if user else {}
        if body is not None:
            more |= {"data": json.dumps(body)}
            headers = {"Content-Type": "application/json", **headers}
        skipped = () if "Content-Type" in headers else ("Content-Type",)
        async with self._http.request(
            method, self.base + path, headers={**credentials, **headers}, skip_auto_headers=skipped, **more
        ) as response:
            return Reply(response.status, response.headers, await response.text())

    async def made(self, user: str = "ada", **body: Any) -> Reply:
        """A server that was just made, by default at an address where nobody listens."""
        reply = await self("POST", "/adapters", {"url": "http://127.0.0.1:9/mcp", **body}, user=user)
        assert reply.status == 201, reply.text
        return reply


@asynccontextmanager
async def rest_api(
    servers: Mapping[str, Mapping[str, Any]] = SHARED, *others: str, **settings: Any
) -> AsyncIterator[Rest]:
    """A gateway with these servers, the users of `people` and `others`."""
    toml = servers_toml(servers, **{"allowed_networks": OPEN_LOOPBACK, **settings})
    async with gateway_over_http(toml, auth=tokens(*others)) as served, aiohttp.ClientSession() as http:
        yield Rest(served, http)
