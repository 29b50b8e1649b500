"""A client by hand at one server of a gateway, as the flows see it: the server's own names go in and come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from tests.helpers.clients import HandClient, Json, Pending, result_of
from tests.helpers.names import Names

KEPT = ("content", "structuredContent", "isError")


@dataclass
class Desk:
    """`server` is the namespace, `era` the server's."""

    client: HandClient
    server: str
    era: str

    def __post_init__(self) -> None:
        self.names = Names(self.server)
        self.mark = f"mark-{uuid4().hex[:8]}"
        """Of this desk alone."""
        self.client.answers = {}

    # --- requests

    async def exchange(self, method: str, params: Json | None = None, meta: Json | None = None) -> Pending:
        sent = self.names.inward({"method": method, "params": params or {}})["params"]
        pending = await self.client.exchange(method, sent, meta)
        pending.answer = self.names.outward(pending.answer)
        return pending

    async def begin(self, method: str, params: Json, meta: Json | None = None) -> Pending:
        return await self.client.begin(method, self.names.inward({"method": method, "params": params})["params"], meta)

    async def request(self, method: str, **params: Any) -> Json:
        pending = await self.exchange(method, params)
        return result_of(pending)

    async def call(self, tool: str, **arguments: Any) -> Any:
        """What a tool gave back."""
        answer = await self.request("tools/call", name=tool, arguments=arguments)
        assert not answer.get("isError"), answer
        return answer["structuredContent"]["result"]

    async def listed(self, kind: str, method: str = "") -> list[Json]:
        """What is this server's of a list, as the server would name it."""
        items: list[Json] = []
        params: Json = {}
        while True:
            page = await self.client.request(method or f"{kind}/list", params)
            items += [item for item in page[kind] if self._is_ours(item)]
            if "nextCursor" not in page:
                return list(self.names.outward({"result": {kind: items}})["result"][kind])
            params = {"cursor": page["nextCursor"]}

    def _is_ours(self, item: Json) -> bool:
        uri = item.get("uri") or item.get("uriTemplate")
        return f"://{self.server}/" in uri if uri else item["name"].startswith(f"{self.server}_")

    def into(self, uri: str) -> str:
        """A URI of the server, within its namespace."""
        read = {"method": "resources/read", "params": {"uri": uri}}
        return str(self.names.inward(read)["params"]["uri"])

    # --- what came

    def asked(self, method: str) -> Json:
        """The params of the one question of that method."""
        [question] = [one for one in self.client.asked if one["method"] == method]
        params: Json = self.names.outward(question.get("params") or {})
        return {key: value for key, value in params.items() if key != "_meta"}


def heard(pending: Pending, method: str) -> list[Json]:
    """The params of the notifications that came before an answer, without the gateway's and the protocol's `_meta`."""
    found = [message.get("params") or {} for message in pending.heard if message["method"] == method]
    return [{key: value for key, value in params.items() if key != "_meta"} for params in found]


def kept(answer: Json) -> Json:
    """What the server said in a tool's result; the rest is of the era."""
    return {key: answer[key] for key in KEPT if key in answer}
