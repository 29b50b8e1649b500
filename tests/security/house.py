"""A gateway for the tests of security: five people, one server that one of them made, and words by hand.

`mine` was made by carl, and guests such as bob may use it. Eve has a good token and no role. What she cannot read must
look like what is not there, so requests are sent raw and answers are kept whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from providers.identity import Identity
from providers.lines import MODERN
from providers.resource import McpServerResource
from providers.tokens import ISSUER as OF_TOKENS
from providers.tokens import TokenFile
from tests.helpers.api import OPEN_LOOPBACK
from tests.helpers.gateway import ServedGateway, alone, gateway_over_http, servers_toml
from tests.helpers.issuer import AUDIENCE, ISSUER, public_key
from tests.helpers.processes import SERVERS, eventually
from tests.helpers.rpc import HANDSHAKE, NEWEST

Json = dict[str, Any]

PEOPLE = ("anonymous", "stranger", "reader", "creator", "admin")
USERS: dict[str, tuple[str, list[str]]] = {
    "stranger": ("eve", []),
    "reader": ("bob", ["guest"]),
    "creator": ("carl", []),
    "admin": ("ada", ["mcp.admin"]),
}
CARL = Identity("carl", "carl", frozenset(), OF_TOKENS).key
VERSIONS = (HANDSHAKE, NEWEST) if MODERN else (HANDSHAKE,)
PATIENT = {"first_start": 60.0, "list": 60.0}
UNKNOWN_SESSION = "0123456789abcdef0123456789abcdef"
OF_ONE_ANSWER = {"date", "mcp-session-id", "ratelimit", "ratelimit-policy"}
"""Headers that differ from one answer to the next, whoever asks."""
_EVENT_ID = re.compile(r"id: [0-9a-f]+-\d+")
_OF_MCP = "io.modelcontextprotocol/"
_CLIENT = {"name": "by-hand", "version": "1"}


@dataclass(frozen=True)
class Answer:
    """All that came: a stream's messages, up to the one that answers, are in the text."""

    status: int
    headers: tuple[tuple[str, str], ...]
    text: str
    session_id: str | None = None

    @property
    def message(self) -> Json:
        """The one JSON-RPC message that answers."""
        lines = [
            line[5:] for line in re.split(r"\r\n|\r|\n", self.text) if line.startswith("data:") and line[5:].strip()
        ]
        message: Json = json.loads(lines[-1] if lines else self.text)
        return message

    def about(self, name: str, instead: str) -> Answer:
        """The same answer, as it were about another name of the same length."""
        assert len(name) == len(instead), "the length of an answer is part of it"
        return Answer(self.status, self.headers, self.text.replace(name, instead), self.session_id)

    @property
    def bare(self) -> Answer:
        """Without what is made anew for each answer: the ids of a stream's events, and that of a session."""
        return Answer(self.status, self.headers, _EVENT_ID.sub("id: event", self.text))


class Person:
    """Somebody at one address, in one era. `session_id` is sent if there is one."""

    def __init__(self, http: aiohttp.ClientSession, url: str, token: str | None, version: str = HANDSHAKE) -> None:
        self.http, self.url, self.token, self.version = http, url, token, version
        self.session_id: str | None = None
        self.more: dict[str, str] = {}
        """Further headers."""

    def headers(self, method: str = "", params: Mapping[str, Any] = {}) -> dict[str, str]:
        headers = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self.token}"} if self.token else {}
        headers |= {"MCP-Protocol-Version": self.version} if method != "initialize" else {}
        headers |= {"Mcp-Session-Id": self.session_id} if self.session_id else {}
        if self.version == NEWEST:
            name = params.get("name", params.get("uri"))
            headers |= {"Mcp-Method": method} | ({"Mcp-Name": name} if name else {})
        return headers | self.more

    async def ask(self, method: str, params: Json | None = None) -> Answer:
        """Send one request, and take what comes until it is answered."""
        params = dict(params or {})
        return await self.send("POST", method, params, data=self._body(method, params))

    def _body(self, method: str, params: Json) -> str:
        if self.version == NEWEST:
            envelope = {"protocolVersion": NEWEST, "clientInfo": _CLIENT, "clientCapabilities": {}}
            own = params.get("_meta") or {}
            params = params | {"_meta": own | {f"{_OF_MCP}{key}": value for key, value in envelope.items()}}
        body = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
        if method.startswith("notifications/"):
            del body["id"]
        return json.dumps(body)

    def stream(self, method: str, params: Json) -> Any:
        """What the person is told unasked: the stream of the session, or one that this request opens."""
        if self.version == HANDSHAKE:
            return self.http.get(self.url, headers=self.headers() | {"Accept": "text/event-stream"})
        return self.http.post(self.url, headers=self.headers(method, params), data=self._body(method, params))

    async def send(self, http_method: str, method: str = "", params: Json | None = None, **more: Any) -> Answer:
        headers = self.headers(method, params or {})
        async with self.http.request(http_method, self.url, headers=headers, **more) as answer:
            is_open = method == "subscriptions/listen" or http_method == "GET"
            is_stream = answer.content_type == "text/event-stream"
            text = await _first_of(answer, method) if is_open and is_stream else await answer.text()
            pairs = ((name.lower(), value) for name, value in answer.headers.items())
            kept = tuple(sorted(pair for pair in pairs if pair[0] not in OF_ONE_ANSWER))
            return Answer(answer.status, kept, text, answer.headers.get("Mcp-Session-Id"))

    async def shake_hands(self) -> Answer:
        """Begin a session, where there is one to be had."""
        hello = await self.ask("initialize", hello_params())
        self.session_id = hello.session_id
        if self.session_id is not None:
            await self.ask("notifications/initialized")
        return hello


async def _first_of(answer: aiohttp.ClientResponse, method: str) -> str:
    """Of a stream that stays open, the first message; on the stream of a handshake session none need come."""
    text = ""
    while method and "}" not in text:
        line = await answer.content.readline()
        if not line:
            break
        text += line.decode()
    return text


def hello_params() -> Json:
    return {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": _CLIENT}


def server(name: str = "mine", *roles: str, **more: Any) -> McpServerResource:
    """A server in the gateway's process, as if carl had made it."""
    file = SERVERS / "everything.py"
    return McpServerResource(name=name, python=f"{file}:mcp", created_by=CARL, required_roles=roles, **more)


@dataclass(frozen=True)
class House:
    served: ServedGateway
    http: aiohttp.ClientSession
    file: TokenFile
    tokens: dict[str, str]
    """By person."""

    @property
    def base(self) -> str:
        return self.served.url.removesuffix("/mcp")

    def person(self, who: str, name: str | None = None, version: str = HANDSHAKE) -> Person:
        """Somebody at `/mcp`, or at the address of one server."""
        url = self.served.url if name is None else alone(self.served.url, name)
        return Person(self.http, url, self.tokens.get(who), version)

    async def put(self, resource: McpServerResource) -> None:
        await self.served.gateway.store.upsert(resource)
        await eventually(lambda: self.served.gateway.registry.resource(resource.name) is not None)

    async def warm(self) -> None:
        """Have the catalogue filled, so that no answer depends on who came first."""
        for who in ("reader", "creator", "admin"):
            for version in VERSIONS:
                person = self.person(who, None, version)
                if version == HANDSHAKE:
                    await person.shake_hands()
                await person.ask("tools/list")
                if version == HANDSHAKE:
                    await person.send("DELETE")


@asynccontextmanager
async def house(*resources: McpServerResource, **settings: Any) -> AsyncIterator[House]:
    """A gateway with these servers, by default `mine`."""
    auth = {"tokens": "tokens.json", "issuer": ISSUER, "audience": AUDIENCE, "key": public_key()}
    settings = {"timeouts": PATIENT, "max_requests_per_second": 10_000, "allowed_networks": OPEN_LOOPBACK, **settings}
    timeout = aiohttp.ClientTimeout(total=60)
    async with (
        gateway_over_http(servers_toml({}, auth=auth, **settings)) as served,
        aiohttp.ClientSession(timeout=timeout) as http,
    ):
        file = TokenFile(served.path.with_name("tokens.json"))
        tokens = {who: file.add(user, user, roles)[0] for who, (user, roles) in USERS.items()}
        made = House(served, http, file, tokens)
        for resource in resources:
            await made.put(resource)
        if resources:
            await made.warm()
        yield made
