"""Clients by hand that can be asked: one of each era, answering with what the test gave, word for word."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anyio

from tests.helpers.rpc import HANDSHAKE, NEWEST, Json, RawClient

ALL: Json = {"elicitation": {"form": {}, "url": {}}, "sampling": {"tools": {}, "context": {}}, "roots": {}}
ANSWERS: Json = {
    "elicitation/create": {"action": "accept", "content": {"value": "yes"}},
    "sampling/createMessage": {"role": "assistant", "model": "m-1", "content": {"type": "text", "text": "thought"}},
    "roots/list": {"roots": [{"uri": "file:///here"}]},
}


class AskedClient(RawClient):
    """A client that answers questions: in the handshake era while its request is open, in the newest with a retry.
    `asked` holds the questions as they came, `ids` their ids in the handshake era, `heard` the notifications. An answer
    that is None is never given."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.answers: Json = dict(ANSWERS)
        self.asked: list[Json] = []
        self.heard: list[Json] = []
        self.ids: list[Any] = []

    async def finished(self, method: str, params: Json) -> Json:
        """The last answer to a request, after all questions."""
        answer = await self.request(method, params)
        while answer.get("result", {}).get("resultType") == "input_required":
            answer = await self.request(method, params | self.retry(answer["result"]))
        return answer

    def retry(self, result: Json) -> Json:
        """What a retry brings besides what it asks for."""
        questions = result.get("inputRequests") or {}
        self.asked += questions.values()
        state = {"requestState": result["requestState"]} if "requestState" in result else {}
        return state | {"inputResponses": {key: self.answers[each["method"]] for key, each in questions.items()}}

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """With the stream open on which the server sends what belongs to no request."""
        headers = {**self._headers({}), "Accept": "text/event-stream"}
        async with self._http.get(self._url, headers=headers) as response, anyio.create_task_group() as tasks:
            assert response.status == 200

            async def listen() -> None:
                async for line in response.content:
                    if line.startswith(b"data:") and line[5:].strip():
                        await self._take(json.loads(line[5:]))

            tasks.start_soon(listen)
            yield
            tasks.cancel_scope.cancel()

    async def _post(self, message: Json) -> list[Json]:
        messages = []
        async with self._http.post(self._url, json=message, headers=self._headers(message)) as response:
            self.session_id = response.headers.get("Mcp-Session-Id", self.session_id)
            if response.content_type != "text/event-stream":
                body = await response.text()
                return [json.loads(body)] if body.strip() and "id" in message else []
            async for line in response.content:
                if line.startswith(b"data:") and line[5:].strip():
                    messages.append(json.loads(line[5:]))
                    await self._take(messages[-1])
        return messages

    async def _take(self, message: Json) -> None:
        if "method" in message and "id" in message:
            self.asked.append({key: message[key] for key in ("method", "params") if key in message})
            self.ids.append(message["id"])
            answer = self.answers[message["method"]]
            if answer is None:
                return
            outcome = {"error": answer} if "code" in answer else {"result": answer}
            await super()._post({"jsonrpc": "2.0", "id": message["id"], **outcome})
        elif "method" in message:
            self.heard.append(message)

    def _headers(self, message: Json) -> dict[str, str]:
        headers = super()._headers({"method": "", "params": {}, **message})
        if self._version == NEWEST:
            params = message.get("params", {})
            headers["Mcp-Name"] = params.get("name", params.get("uri", ""))
        return headers


@asynccontextmanager
async def asked_client(
    url: str, headers: Mapping[str, str] | None = None, *, version: str = NEWEST, capabilities: Json | None = None
) -> AsyncIterator[AskedClient]:
    """A client that is ready for requests. `capabilities` are `ALL` unless a test says otherwise."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as http:
        client = AskedClient(http, url, headers or {}, version)
        client.capabilities = ALL if capabilities is None else capabilities
        if version == HANDSHAKE:
            await client.shake_hands()
        try:
            yield client
        finally:
            await client.end()
