"""A backend by hand that does all of MCP in one protocol era and knows nothing of the other.

    python flows.py handshake|newest stdio
    python flows.py handshake|newest http PORT     at /mcp
    python flows.py handshake sse PORT             at /sse

No SDK is in between: what the gateway is sent, and what it answers, is what stands here. `flow_lines` carries the
messages. A tool that keeps something keeps it under the `mark` of its caller, so that many may use one server at once.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from typing import Any

import flow_lines
from flow_tools import TOOLS, Call, InputRequired, Refusal, Send, notification
from flow_world import (
    BLOB,
    CAPABILITIES,
    CHANGED,
    DESCRIPTION,
    FULL_TOOL,
    HANDSHAKE,
    NEWEST,
    OF_MCP,
    PAGE,
    PIXEL,
    PROMPT,
    TEMPLATE,
    TEXT,
)

Json = dict[str, Any]


class Session:
    """One client's session; in the era of 2026-07-28 whatever the line is. `tell` sends what belongs to no request."""

    def __init__(self, tell: Send) -> None:
        self.tell = tell
        self.capabilities: Json = {}
        self.level: str | None = None
        self.subscribed: set[str] = set()
        self.calls: dict[Any, asyncio.Task[None]] = {}
        self.asked: dict[Any, asyncio.Future[Json]] = {}
        self.roots_changed = asyncio.Event()
        self.next_id = 0

    async def ask(self, send: Send, method: str, params: Json) -> Json:
        self.next_id += 1
        name = f"ask-{self.next_id}"
        answer = self.asked[name] = asyncio.get_running_loop().create_future()
        try:
            await send({"jsonrpc": "2.0", "id": name, "method": method, "params": params})
            return await answer
        except asyncio.CancelledError:
            await send(notification("notifications/cancelled", {"requestId": name, "reason": "no longer needed"}))
            raise
        finally:
            del self.asked[name]


class Server:
    """All that the server knows; the sessions that are open, and the streams of the newest era that listen."""

    def __init__(self, era: str) -> None:
        self.era = era
        self.added: dict[str, list[str]] = {"tools": [], "prompts": [], "resources": []}
        self.sessions: set[Session] = set()
        self.listening: dict[tuple[Any, Any], tuple[Send, Json]] = {}
        self.given_up: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    @property
    def is_newest(self) -> bool:
        return self.era == NEWEST

    # --- messages

    async def receive(self, session: Session, message: Json, send: Send) -> None:
        """Take one message; a request is answered through `send`, on which also goes all that belongs to it."""
        if "method" not in message:
            if (waiting := session.asked.get(message.get("id"))) and not waiting.done():
                waiting.set_result(message)
        elif "id" in message:
            task = session.calls[message["id"]] = asyncio.ensure_future(self._answer(session, message, send))
            try:
                await asyncio.wait({task})
            finally:
                task.cancel()  # where the line itself was cut
                session.calls.pop(message["id"], None)
        elif message["method"] == "notifications/cancelled":
            if task := session.calls.get(message["params"]["requestId"]):
                task.cancel()
        elif message["method"] == "notifications/roots/list_changed":
            session.roots_changed.set()

    async def _answer(self, session: Session, message: Json, send: Send) -> None:
        try:
            outcome: Json = {"result": await self._result(session, message, send)}
            if self.is_newest:
                outcome["result"] = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private", **outcome["result"]}
        except Refusal as refusal:
            outcome = {"error": refusal.error}
        except InputRequired as question:
            outcome = {"result": {"resultType": "input_required", **question.args[0]}}
        await send({"jsonrpc": "2.0", "id": message["id"], **outcome})

    async def _result(self, session: Session, message: Json, send: Send) -> Json:
        method, params = message["method"], message.get("params") or {}
        meta = params.get("_meta") or {}
        if self.is_newest:
            self._check(method, meta)
            session.capabilities = meta[f"{OF_MCP}clientCapabilities"]
        if method == "tools/call":
            return await Call(self, session, params, send).run()
        if method == "subscriptions/listen" and self.is_newest:
            return await self._listen(session, message["id"], params, send)
        handler = getattr(self, "_on_" + method.replace("/", "_"), None)
        if handler is None:
            raise Refusal(-32601, f"no method {method}")
        result: Json = handler(session, params)
        return result

    def _check(self, method: str, meta: Json) -> None:
        if method in ("initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"):
            raise Refusal(-32601, f"{method} is not of {NEWEST}")
        if meta.get(f"{OF_MCP}protocolVersion") != NEWEST:
            raise Refusal(-32022, "unsupported protocol version", {"supported": [NEWEST], "requested": None})

    # --- what there is

    def _on_initialize(self, session: Session, params: Json) -> Json:
        session.capabilities = params["capabilities"]
        server = {"name": "flows", "version": "1"}
        return {"protocolVersion": HANDSHAKE, "capabilities": CAPABILITIES, "serverInfo": server}

    def _on_server_discover(self, session: Session, params: Json) -> Json:
        if not self.is_newest:
            raise Refusal(-32601, "no method server/discover")
        meta = {f"{OF_MCP}serverInfo": {"name": "flows", "version": "1"}}
        return {"supportedVersions": [NEWEST], "capabilities": CAPABILITIES, "_meta": meta}

    def _on_ping(self, session: Session, params: Json) -> Json:
        return {}

    def _on_logging_setLevel(self, session: Session, params: Json) -> Json:
        session.level = params["level"]
        return {}

    def _on_resources_subscribe(self, session: Session, params: Json) -> Json:
        session.subscribed.add(params["uri"])
        return {}

    def _on_resources_unsubscribe(self, session: Session, params: Json) -> Json:
        session.subscribed.discard(params["uri"])
        return {}

    def _on_tools_list(self, session: Session, params: Json) -> Json:
        plain = [{"name": name, "inputSchema": {"type": "object"}} for name in (*TOOLS, *self.added["tools"])]
        return page("tools", [FULL_TOOL, *plain], params)

    def _on_prompts_list(self, session: Session, params: Json) -> Json:
        return page("prompts", [PROMPT, *({"name": name} for name in self.added["prompts"])], params)

    def _on_resources_list(self, session: Session, params: Json) -> Json:
        added = [{"uri": f"flow://{name}", "name": name} for name in self.added["resources"]]
        return page("resources", [TEXT, BLOB, *added], params)

    def _on_resources_templates_list(self, session: Session, params: Json) -> Json:
        return page("resourceTemplates", [TEMPLATE], params)

    def _on_resources_read(self, session: Session, params: Json) -> Json:
        uri = params["uri"]
        if uri == BLOB["uri"]:
            return {"contents": [{"uri": uri, "mimeType": "image/png", "blob": PIXEL, "_meta": {"example.com/own": 1}}]}
        if uri == TEXT["uri"] or uri.startswith("flow://item/"):
            return {"contents": [{"uri": uri, "mimeType": "text/plain", "text": f"text of {uri.rpartition('/')[2]}"}]}
        raise Refusal(-32602 if self.is_newest else -32002, f"nothing at {uri}", {"uri": uri})

    def _on_prompts_get(self, session: Session, params: Json) -> Json:
        if params["name"] != PROMPT["name"]:
            raise Refusal(-32602, f"no prompt {params['name']}", {"known": [PROMPT["name"]]})
        text = {"type": "text", "text": f"Sum up {params['arguments']['topic']}."}
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": DESCRIPTION["content"][4]}]
        return {"description": "d", "messages": messages, "_meta": {"example.com/own": 1}}

    def _on_completion_complete(self, session: Session, params: Json) -> Json:
        ref, argument = params["ref"], params["argument"]
        name = ref.get("name") or ref.get("uri")
        known = sorted((params.get("context") or {}).get("arguments") or {})
        return {
            "completion": {"values": [name, argument["name"], argument["value"], *known], "total": 9, "hasMore": True}
        }

    # --- what it says by itself

    async def _listen(self, session: Session, request: Any, params: Json, send: Send) -> Json:
        meta, key = {f"{OF_MCP}subscriptionId": request}, (session, request)

        async def tagged(message: Json) -> None:
            await send(message | {"params": (message.get("params") or {}) | {"_meta": meta}})

        wanted = params["notifications"]
        self.listening[key] = (tagged, wanted)
        try:
            await tagged(notification("notifications/subscriptions/acknowledged", {"notifications": wanted}))
            await asyncio.Event().wait()
        finally:
            del self.listening[key]
        return {}

    async def changed(self, kind: str) -> None:
        told = notification(CHANGED[kind])
        for session in list(self.sessions):
            await session.tell(told)
        for send, wanted in list(self.listening.values()):
            if wanted.get(f"{kind}ListChanged"):
                await send(told)

    async def updated(self, uri: str) -> None:
        told = notification("notifications/resources/updated", {"uri": uri})
        for session in list(self.sessions):
            if uri in session.subscribed:
                await session.tell(told)
        for send, wanted in list(self.listening.values()):
            if uri in (wanted.get("resourceSubscriptions") or []):
                await send(told)

    def subscribers(self, uri: str) -> int:
        listening = [
            wanted for _, wanted in self.listening.values() if uri in (wanted.get("resourceSubscriptions") or [])
        ]
        return len(listening) + sum(uri in session.subscribed for session in self.sessions)


def page(kind: str, items: list[Json], params: Json) -> Json:
    start = int(params.get("cursor") or 0)
    rest = {"nextCursor": str(start + PAGE)} if len(items) > start + PAGE else {}
    return {kind: items[start : start + PAGE], **rest}


if __name__ == "__main__":
    era = {"handshake": HANDSHAKE, "newest": NEWEST}[sys.argv[1]]
    asyncio.run(flow_lines.serve(Server(era), Session, *sys.argv[2:]))
