"""All that the npm server-everything offers, as one script for a client by hand: each step asks for something.

`play` gives what came of each step: the answer, what the client was asked, what it was told. What cannot be the same
twice (the time of day, ids made up on the spot, a level drawn by lot) is put into one form first.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from typing import Any

import anyio

from tests.helpers.clients import HandClient, Json
from tests.helpers.names import Names

TOLD_WITHIN = 2.0
"""Seconds in which a notification comes that does come."""

ROOTS = [{"uri": "file:///home/ada", "name": "Ada's"}, {"uri": "file:///tmp/x"}]
ANSWERS = {
    "roots/list": {"roots": ROOTS},
    "sampling/createMessage": {
        "role": "assistant",
        "content": {"type": "text", "text": "I think so."},
        "model": "the-real-model-1",
        "stopReason": "endTurn",
    },
    "elicitation/create": lambda params: (
        {"action": "accept"} if params.get("mode") == "url" else {"action": "accept", "content": FORM}
    ),
}
FORM = {"name": "Ada", "check": True, "email": "ada@example.com", "integer": 42, "number": 3.14}

_MADE_UP = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{1,2}:\d\d:\d\d[ \u202f]?(?:[AP]M)?|\d{4}-\d\d-\d\dT[\d:.]+Z")
_BY_LOT = re.compile(r"(Debug|Info|Notice|Warning|Error|Critical|Emergency)-level message|Alert level-message")


@dataclass(frozen=True)
class Step:
    """A request. `tells` are the notifications that are waited for, however late they come."""

    about: str
    method: str
    params: Json = field(default_factory=dict)
    meta: Json | None = None
    tells: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.about


def tool(name: str, /, *, meta: Json | None = None, tells: tuple[str, ...] = (), **arguments: Any) -> Step:
    shown = f"{name} {json.dumps(arguments)[:60]}"
    return Step(shown, "tools/call", {"name": name, "arguments": arguments}, meta, tells)


def read(uri: str) -> Step:
    return Step(f"read {uri}", "resources/read", {"uri": uri})


def prompt(name: str, /, **arguments: str) -> Step:
    return Step(f"{name} {json.dumps(arguments)}", "prompts/get", {"name": name, "arguments": arguments})


def complete(ref: Json, name: str, value: str, /, **known: str) -> Step:
    params: Json = {"ref": ref, "argument": {"name": name, "value": value}}
    if known:
        params["context"] = {"arguments": known}
    return Step(f"complete {ref} {name} {value!r} {known}", "completion/complete", params)


def of_prompt(name: str) -> Json:
    return {"type": "ref/prompt", "name": name}


def of_template(uri: str) -> Json:
    return {"type": "ref/resource", "uri": uri}


_DATA = "data:text/plain;base64,aGVsbG8="
_TEXT, _BLOB = "demo://resource/dynamic/text/{resourceId}", "demo://resource/dynamic/blob/{resourceId}"
_ZIPPED = "demo://resource/session/hello.gz"
_CHANGED = "notifications/resources/list_changed"
_UPDATED, _LOG = "notifications/resources/updated", "notifications/message"

STEPS = [
    tool("get-roots-list", tells=(_LOG,)),
    *(Step(f"{kind}/list", f"{kind}/list") for kind in ("tools", "prompts", "resources", "resources/templates")),
    tool("echo", message="h\u00e9 \U0001f600"),
    tool("echo"),
    tool("echo", message=7),
    tool("get-sum", a=1.5, b=-2),
    *(tool("get-annotated-message", messageType=kind) for kind in ("error", "success", "debug")),
    tool("get-annotated-message", messageType="success", includeImage=True),
    tool("get-tiny-image"),
    tool("get-env"),
    tool("get-resource-links", count=4),
    tool("get-resource-links", count=99),
    tool("get-resource-reference", resourceType="Text", resourceId=1),
    tool("get-resource-reference", resourceType="Blob", resourceId=2),
    tool("get-resource-reference", resourceType="Text", resourceId=-1),
    *(tool("get-structured-content", location=city) for city in ("New York", "Chicago", "Atlantis")),
    tool("trigger-long-running-operation", meta={"progressToken": "p-1"}, duration=0.2, steps=4),
    tool("trigger-sampling-request", prompt="Is it so?", maxTokens=7),
    tool("trigger-elicitation-request"),
    tool("trigger-url-elicitation", url="https://example.com/a?b=c", elicitationId="e-1"),
    tool("trigger-url-elicitation", url="https://example.com/x", elicitationId="e-2", errorPath=True),
    tool("trigger-url-elicitation", url="https://example.com/x", elicitationId="e-2", errorPath=True),
    tool("simulate-research-query", topic="python"),
    tool("gzip-file-as-resource", tells=(_CHANGED,), name="hello.gz", data=_DATA, outputType="resourceLink"),
    Step("resources/list, with the zipped one", "resources/list"),
    read(_ZIPPED),
    tool("gzip-file-as-resource", tells=(_CHANGED,), name="more.gz", data=_DATA, outputType="resource"),
    tool("no-such-tool"),
    *(read(uri.format(resourceId=number)) for uri in (_TEXT, _BLOB) for number in ("1", "2", "none")),
    read("demo://nowhere"),
    prompt("simple-prompt"),
    prompt("args-prompt", city="Paris"),
    prompt("args-prompt", city="Paris", state="Texas"),
    prompt("args-prompt"),
    prompt("completable-prompt", department="Sales", name="Eve"),
    prompt("resource-prompt", resourceType="Text", resourceId="3"),
    prompt("resource-prompt", resourceType="Blob", resourceId="4"),
    prompt("resource-prompt", resourceType="None", resourceId="x"),
    prompt("no-such-prompt"),
    complete(of_prompt("completable-prompt"), "department", "S"),
    complete(of_prompt("completable-prompt"), "name", "", department="Sales"),
    complete(of_prompt("resource-prompt"), "resourceType", "B"),
    complete(of_prompt("resource-prompt"), "resourceId", "12"),
    complete(of_prompt("no-such-prompt"), "x", "y"),
    complete(of_template(_TEXT), "resourceId", "7"),
    complete(of_template(_BLOB), "resourceId", "none"),
    Step("subscribe", "resources/subscribe", {"uri": _TEXT.format(resourceId="1")}, tells=(_LOG,)),
    tool("toggle-subscriber-updates", tells=(_UPDATED,)),
    tool("toggle-subscriber-updates"),
    Step("unsubscribe", "resources/unsubscribe", {"uri": _TEXT.format(resourceId="1")}, tells=(_LOG,)),
    tool("toggle-simulated-logging", tells=(_LOG,)),
    tool("toggle-simulated-logging"),
    Step("set the level", "logging/setLevel", {"level": "error"}),
    Step("subscribe, which is logged as info", "resources/subscribe", {"uri": _TEXT.format(resourceId="2")}),
    Step("ping", "ping"),
    Step("no such method", "no/such/method"),
]

LISTS = {"tools": "name", "prompts": "name", "resources": "uri", "resourceTemplates": "uriTemplate"}


@dataclass
class Seen:
    """What came of a step, in a form that can be compared."""

    answer: Any
    asked: list[Any] = field(default_factory=list)
    told: list[Any] = field(default_factory=list)


async def play(client: HandClient, names: Names | None = None) -> dict[str, Seen]:
    """The whole script, in order. `names` are those of a gateway, where there is one."""
    client.answers = ANSWERS
    seen: dict[str, Seen] = {}
    for number, step in enumerate(STEPS):
        client.asked.clear()
        client.heard.clear()
        params = names.inward({"method": step.method, "params": step.params})["params"] if names else step.params
        pending = await client.exchange(step.method, params, step.meta)
        told = await _told(client, step)
        assert pending.answer is not None
        parts = [pending.answer, list(client.asked), told]
        answer, asked, told = ((names.outward(part) if names else part) for part in parts)
        seen[f"{number:02} {step}"] = Seen(
            normal(answer.get("result", {"error": answer.get("error")})),
            [normal({"method": one["method"], "params": one.get("params") or {}}) for one in asked],
            sorted((normal(one) for one in told), key=json.dumps),
        )
    return seen


async def _told(client: HandClient, step: Step) -> list[Json]:
    """The notifications of a step; one that does not come is not there, and that is seen. That lists have changed is
    said at any time, and once for many changes: it counts where it is waited for, once."""
    for method in step.tells:
        try:
            with anyio.fail_after(TOLD_WITHIN):
                await client.notified(method)
        except TimeoutError:
            return [*client.heard, {"method": f"{method} DID NOT COME"}]
    changed = [{"method": method} for method in step.tells if method.endswith("list_changed")]
    return [*changed, *(one for one in client.heard if not one["method"].endswith("list_changed"))]


def normal(value: Any) -> Any:
    """A value without what is made up on the spot."""
    if isinstance(value, dict):
        if _BY_LOT.search(str(value.get("data"))):
            return {"level": "by lot", "data": "by lot"}
        return {key: normal(inner) for key, inner in value.items() if key not in ("_meta", "progressToken")} | (
            {"_meta": meta} if (meta := _own_meta(value.get("_meta"))) else {}
        )
    if isinstance(value, list):
        return [normal(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if value.startswith("{") and '"PATH"' in value:
        return "the environment"
    return _TIME.sub("NOW", _MADE_UP.sub("ID", _readable(value)))


def _readable(value: str) -> str:
    """The text in a base64 blob, where it is one: there is a time of day in it."""
    try:
        text = base64.b64decode(value, validate=True).decode()
    except ValueError:
        return value
    return text if text.startswith("Resource ") else value


def _own_meta(meta: Any) -> Any:
    """A server's own `_meta`: the gateway says in a tool's where it comes from."""
    return {key: normal(inner) for key, inner in meta.items() if key != "dev.apollos/server"} if meta else None
