"""The tools of the server `flows`: one for each thing that a server may do while it is called."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from flow_world import DESCRIPTION, FORM, FULL_TOOL, LEVELS, OF_MCP, SAMPLING, URL

Json = dict[str, Any]
Send = Callable[[Json], Awaitable[None]]


class Refusal(Exception):
    """A JSON-RPC error as the answer."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message} | ({} if data is None else {"data": data})


class InputRequired(Exception):
    """The call is answered with a question."""


def notification(method: str, params: Json | None = None) -> Json:
    return {"jsonrpc": "2.0", "method": method} | ({"params": params} if params is not None else {})


class Call:
    """One `tools/call` under way."""

    def __init__(self, server: Any, session: Any, params: Json, send: Send) -> None:
        self.server, self.session, self._send = server, session, send
        self.name, self.arguments = params["name"], params.get("arguments") or {}
        self.meta = params.get("_meta") or {}
        self._answers = params.get("inputResponses") or {}
        self.state = params.get("requestState")

    async def run(self) -> Json:
        if self.name == FULL_TOOL["name"]:
            return DESCRIPTION
        tool = TOOLS.get(self.name)
        if tool is None:
            raise Refusal(-32602, f"no tool {self.name}", {"asked": self.name})
        answer = await tool(self, **self.arguments)
        if isinstance(answer, dict) and "content" in answer:
            return answer
        return {"content": [{"type": "text", "text": str(answer)}], "structuredContent": {"result": answer}}

    async def tell(self, method: str, params: Json) -> None:
        await self._send(notification(method, params))

    async def log(self, level: str, text: str) -> None:
        wanted = self.meta.get(f"{OF_MCP}logLevel") if self.server.is_newest else self.session.level or "debug"
        if wanted is not None and LEVELS.index(level) >= LEVELS.index(wanted):
            await self.tell("notifications/message", {"level": level, "logger": "flows", "data": {"text": text}})

    async def ask(self, method: str, params: Json) -> Json:
        """Ask the client, in the way of the era; the answer, or the error, as it came."""
        if not self.server.is_newest:
            return await self.session.ask(self._send, method, params)
        if "question" in self._answers:
            if self.state != f"state of {self.name}":
                raise Refusal(-32602, f"the state did not come back: {self.state}")
            return {"result": self._answers["question"]}
        request = {"method": method, "params": params} if params else {"method": method}
        raise InputRequired({"inputRequests": {"question": request}, "requestState": f"state of {self.name}"})


# ------------------------------------------------------------------------------------------------------------ tools


async def echo(call: Call, text: str) -> Any:
    return text


async def heard_meta(call: Call) -> Any:
    """What came in `_meta`, less what is of the protocol or of the gateway."""
    own = (OF_MCP, "progressToken", "dev.apollos/")
    return {key: value for key, value in call.meta.items() if not key.startswith(own)}


async def heard_capabilities(call: Call) -> Any:
    return call.session.capabilities


async def heard_level(call: Call) -> Any:
    return call.meta.get(f"{OF_MCP}logLevel") if call.server.is_newest else call.session.level


async def report(call: Call, mark: str) -> Any:
    token = call.meta["progressToken"]
    for step in (1, 2, 3):
        params = {"progressToken": token, "progress": step / 2, "total": 1.5, "message": f"{mark} {step}"}
        await call.tell("notifications/progress", params)
    return mark


async def say(call: Call, mark: str) -> Any:
    for level in LEVELS:
        await call.log(level, f"{mark} {level}")
    return mark


async def sample(call: Call, mark: str = "") -> Any:
    return await call.ask("sampling/createMessage", SAMPLING | ({"systemPrompt": mark} if mark else {}))


async def fill_in(call: Call, mark: str = "") -> Any:
    return await call.ask("elicitation/create", FORM | ({"message": mark} if mark else {}))


async def open_url(call: Call, mark: str = "") -> Any:
    own = {} if call.server.is_newest else {"elicitationId": f"sign-in-{mark or 1}"}
    return await call.ask("elicitation/create", URL | own | ({"message": mark} if mark else {}))


async def finish_url(call: Call) -> Any:
    await call.tell("notifications/elicitation/complete", {"elicitationId": "sign-in-1"})
    return "done"


async def roots(call: Call) -> Any:
    return await call.ask("roots/list", {})


async def wait_roots_changed(call: Call) -> Any:
    await asyncio.wait_for(call.session.roots_changed.wait(), 5)
    return "heard"


async def ask_in_vain(call: Call, mark: str) -> Any:
    """Ask, and take the question back once somebody says that it has arrived."""
    question = asyncio.ensure_future(fill_in(call, mark))
    await call.server.given_up[mark].wait()
    question.cancel()
    await asyncio.wait({question})  # it says so first
    return "withdrawn"


async def seen(call: Call, mark: str) -> Any:
    call.server.given_up[mark].set()
    return mark


async def ping_client(call: Call) -> Any:
    return await call.ask("ping", {})


async def change(call: Call, kind: str, mark: str) -> Any:
    call.server.added[kind].append(mark)
    await call.server.changed(kind)
    return mark


async def touch(call: Call, uri: str) -> Any:
    await call.server.updated(uri)
    return uri


async def subscribers(call: Call, uri: str) -> Any:
    return call.server.subscribers(uri)


async def wait(call: Call, mark: str, trace: str = "") -> Any:
    """Never end. Who gives it up finds a file of that name, also where this process goes with the call."""
    try:
        await call.tell("notifications/progress", {"progressToken": call.meta.get("progressToken", 0), "progress": 1})
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        call.server.given_up[mark].set()
        if trace:
            Path(trace).touch()  # noqa: ASYNC240 - at once: there may be no time left
        raise


async def was_given_up(call: Call, mark: str) -> Any:
    """Wait until the call with that mark was given up."""
    await asyncio.wait_for(call.server.given_up[mark].wait(), 5)
    return mark


async def large(call: Call, size: int) -> Any:
    return {"content": [{"type": "text", "text": "x" * size}]}


async def fail(call: Call, text: str) -> Any:
    return {"content": [{"type": "text", "text": text}], "structuredContent": {"code": 7}, "isError": True}


async def refuse(call: Call, code: int, text: str, data: Any) -> Any:
    raise Refusal(code, text, data)


TOOLS: dict[str, Callable[..., Awaitable[Any]]] = {
    tool.__name__: tool
    for tool in (
        *(echo, heard_meta, heard_capabilities, heard_level, report, say, sample, fill_in, open_url, finish_url),
        *(roots, wait_roots_changed, ask_in_vain, seen, ping_client, change, touch, subscribers),
        *(wait, was_given_up, large, fail, refuse),
    )
}
