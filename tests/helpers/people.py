"""People for tests: users with tokens, and windows of theirs, each a client session that notes all it hears.

A window answers questions with its own tag and has the tag in whatever it sends, so that a test sees whose message
reached whom.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from fastmcp import Client
from fastmcp.client.transports import StdioTransport
from fastmcp.server.auth.providers.jwt import StaticTokenVerifier

from tests.helpers.gateway import LEGACY, client
from tests.helpers.processes import eventually

ISSUER = "https://login.example.com"
USERS: dict[str, dict[str, Any]] = {
    "ada": {"name": "Ada Lovelace", "roles": ["engineer", "mcp.admin"]},
    "bob": {"name": "Bob", "roles": ["guest"]},
}


def tokens(*others: str) -> StaticTokenVerifier:
    """Verifies the token of each user of `USERS`, and of others without roles; see `token`."""
    users = USERS | {other: {} for other in others}
    claims = {token(user): {"client_id": "tests", "sub": user, "iss": ISSUER, **known} for user, known in users.items()}
    return StaticTokenVerifier(claims)


def token(user: str) -> str:
    return f"token-of-{user}"


def identity(user: str) -> dict[str, Any]:
    """What a backend that is a process is told of a user."""
    known = USERS.get(user, {})
    return {"userId": user, "userName": known.get("name", user), "roles": sorted(known.get("roles", []))}


Asked = Callable[[], Awaitable[None]]


@dataclass
class Window:
    """One client session. `heard` holds what reached it, as pairs of what it was and its text."""

    user: str
    tag: str
    heard: list[tuple[str, str]] = field(default_factory=list)
    when_asked: Asked | None = None
    """Awaited before a question is answered."""
    connection: Client[Any] = field(init=False)

    async def call(self, tool: str, **arguments: Any) -> Any:
        """A tool's structured answer, or its text where it has none."""
        answer = await self.connection.call_tool(tool, arguments, progress_handler=self._on_progress)
        return answer.data if answer.data is not None else answer.content[0].text  # type: ignore[union-attr]

    async def heard_all(self, count: int) -> None:
        """Wait until that many messages came: an answer may overtake what was sent before it."""
        await eventually(lambda: len(self.heard) >= count)

    @property
    def handlers(self) -> dict[str, Any]:
        return {
            "log_handler": self._on_log,
            "message_handler": self._on_message,
            "elicitation_handler": self._on_question,
            "sampling_handler": self._on_prompt,
            "roots": [f"file:///{self.tag}"],
        }

    async def _on_log(self, message: Any) -> None:
        data = message.data
        self.heard.append(("log", str(data.get("msg", data) if isinstance(data, dict) else data)))

    async def _on_progress(self, progress: float, total: float | None, message: str | None) -> None:
        self.heard.append(("progress", str(message)))

    async def _on_question(self, message: str, *_: Any) -> Any:
        self.heard.append(("question", message))
        await self._asked()
        return {"value": self.tag}

    async def _on_prompt(self, messages: Any, *_: Any) -> str:
        self.heard.append(("prompt", messages[0].content.text))
        await self._asked()
        return self.tag

    async def _asked(self) -> None:
        if self.when_asked is not None:
            await self.when_asked()

    async def _on_message(self, message: Any) -> None:
        method = getattr(getattr(message, "root", message), "method", "")
        if str(method).endswith("/list_changed"):
            self.heard.append(("changed", str(method).split("/")[1]))

    def times(self, what: str, text: str) -> int:
        return self.heard.count((what, text))


@asynccontextmanager
async def window(
    target: str | StdioTransport, user: str = "ada", tag: str = "ada", *, era: str = LEGACY, **options: Any
) -> AsyncIterator[Window]:
    """A user's client session with a gateway.

    Args:
        target: the gateway's URL, where the user's token is sent, or the transport of one over stdio.
        options: more of FastMCP's client; `None` takes one of the window's own handlers away.
    """
    one = Window(user, tag)
    handlers = {name: handler for name, handler in {**one.handlers, **options}.items() if handler is not None}
    auth = {"auth": token(user)} if isinstance(target, str) else {}
    async with client(target, era, **auth, **handlers) as one.connection:
        yield one


class Meeting:
    """Lets nobody go on before all have come."""

    def __init__(self, size: int) -> None:
        self._missing, self._complete = size, anyio.Event()

    async def __call__(self) -> None:
        self._missing -= 1
        if self._missing <= 0:
            self._complete.set()
        with anyio.fail_after(15):
            await self._complete.wait()
