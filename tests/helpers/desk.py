"""A real server in front of one backend session, and real clients of it: for what a backend sends during a call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastmcp import Client, Context, FastMCP

from providers.caller import Caller, ClientSessions, front_of
from providers.client import open_session
from providers.session import BackendSession
from tests.helpers.fakes import ALICE, FakeBackend, client_of

ALL = frozenset({"elicitation", "sampling", "roots"})


class Desk:
    """A real server in front of one backend session: its tool `use` passes a call on."""

    def __init__(self, session: BackendSession, has_session: bool = True) -> None:
        self.session, self.sessions = session, ClientSessions()
        self._has_session = has_session
        self.server: FastMCP[Any] = FastMCP("desk")
        self.server.tool(self.use, name="use")

    async def use(self, context: Context, said: str = "hi") -> str:
        caller = self.sessions.caller(context, ALICE)
        if not self._has_session:
            caller = Caller(ALICE, "user:alice", caller.capabilities, has_session=False)
        params = {"name": "echo", "arguments": {"text": said}}
        result = await self.session.request("tools/call", params, front_of(context, caller))
        return str(result["content"][0]["text"])


@asynccontextmanager
async def desk_with(
    backend: FakeBackend, *, has_session: bool = True, declares: frozenset[str] = ALL, **timeouts: float
) -> AsyncIterator[Desk]:
    resource = backend.resource(timeouts=timeouts)
    async with open_session(resource, backend.open_wire, capabilities=declares) as session:
        yield Desk(session, has_session)


class Inbox:
    """What one client heard."""

    def __init__(self) -> None:
        self.progress: list[tuple[float, float | None, str | None]] = []
        self.logs: list[tuple[str, Any]] = []
        self.asked: list[str] = []

    async def on_progress(self, progress: float, total: float | None, message: str | None) -> None:
        self.progress.append((progress, total, message))

    async def on_log(self, message: Any) -> None:
        self.logs.append((message.level, message.data))

    async def on_question(self, message: str, *_: Any) -> Any:
        self.asked.append(message)
        return {}

    def client(self, desk: Desk, **handlers: Any) -> Client[Any]:
        return client_of(desk.server, log_handler=self.on_log, **handlers)


async def said_by(client: Client[Any], said: str = "hi", **options: Any) -> str:
    result = await client.call_tool("use", {"said": said}, **options)
    return str(result.data)
