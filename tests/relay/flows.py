"""The flows, each played by a client by hand against the server `flows`: what differs from the server's word is wrong.

A flow raises what it found wrong; a JSON-RPC error that is the client's answer comes as `Refused`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from tests.helpers.clients import HANDSHAKE, NEWEST, OF_MCP, PATIENCE, Json, Refused, result_of
from tests.relay.desk import Desk, heard, kept
from tests.servers import flow_world as world

Flow = Callable[[Desk], Awaitable[None]]

ORIGIN = "dev.apollos/server"
LOGS = "notifications/message"


# --------------------------------------------------------------------------------------------------- what is asked for


async def tools(desk: Desk) -> None:
    listed = {tool["name"]: tool for tool in await desk.listed("tools")}
    assert without_origin(listed[world.FULL_TOOL["name"]]) == world.FULL_TOOL
    assert set(without_origin(listed["echo"])) == {"name", "inputSchema"}, "no title is invented, nor anything else"
    told = await desk.request("tools/call", name="describe", arguments={})
    assert kept(told) == kept(world.DESCRIPTION)
    assert told["_meta"].items() >= world.DESCRIPTION["_meta"].items()
    own = {"example.com/own": {"deep": [1, None]}}
    answer = await desk.exchange("tools/call", {"name": "heard_meta", "arguments": {}}, own)
    assert result_of(answer)["structuredContent"]["result"] == own
    assert await desk.call("echo", text="h\u00e9 \u2028 \U0001f600") == "h\u00e9 \u2028 \U0001f600"


async def resources(desk: Desk) -> None:
    listed = {resource["uri"]: resource for resource in await desk.listed("resources")}
    assert [without_origin(listed[one["uri"]]) for one in (world.TEXT, world.BLOB)] == [world.TEXT, world.BLOB]
    text = await desk.request("resources/read", uri=world.TEXT["uri"])
    assert text["contents"] == [{"uri": world.TEXT["uri"], "mimeType": "text/plain", "text": "text of text"}]
    blob = await desk.request("resources/read", uri=world.BLOB["uri"])
    shown = {"uri": world.BLOB["uri"], "mimeType": "image/png", "blob": world.PIXEL, "_meta": {"example.com/own": 1}}
    assert blob["contents"] == [shown]


async def templates(desk: Desk) -> None:
    listed = await desk.listed("resourceTemplates", "resources/templates/list")
    assert [without_origin(template) for template in listed] == [world.TEMPLATE]
    item = await desk.request("resources/read", uri="flow://item/7")
    assert item["contents"] == [{"uri": "flow://item/7", "mimeType": "text/plain", "text": "text of 7"}]


async def prompts(desk: Desk) -> None:
    listed = {prompt["name"]: prompt for prompt in await desk.listed("prompts")}
    assert without_origin(listed["sum-up"]) == world.PROMPT
    got = await desk.request("prompts/get", name="sum-up", arguments={"topic": "owls"})
    assert got["description"] == "d"
    assert [message["content"] for message in got["messages"]] == [
        {"type": "text", "text": "Sum up owls."},
        world.DESCRIPTION["content"][4],
    ]
    assert got["_meta"].items() >= {"example.com/own": 1}.items()


def without_origin(item: Json) -> Json:
    meta = {key: value for key, value in item.get("_meta", {}).items() if key != ORIGIN}
    return {key: value for key, value in item.items() if key != "_meta"} | ({"_meta": meta} if meta else {})


async def completion(desk: Desk) -> None:
    for ref, name in (
        ({"type": "ref/prompt", "name": "sum-up"}, "sum-up"),
        ({"type": "ref/resource", "uri": world.TEMPLATE["uriTemplate"]}, world.TEMPLATE["uriTemplate"]),
    ):
        argument = {"name": "topic", "value": "ow"}
        context = {"arguments": {"language": "en"}}
        told = await desk.request("completion/complete", ref=ref, argument=argument, context=context)
        assert told["completion"] == {"values": [name, "topic", "ow", "language"], "total": 9, "hasMore": True}


async def pagination(desk: Desk) -> None:
    names = {tool["name"] for tool in await desk.listed("tools")}
    assert len(names) > 3 * world.PAGE
    assert names >= {"describe", "echo", "refuse"}, "the first page, and the last"


async def declared(desk: Desk) -> None:
    told, own = await desk.call("heard_capabilities"), desk.client.capabilities
    if desk.era == NEWEST:  # which has no words for this
        told, own = told | {"roots": {}}, own | {"roots": {}}
    assert told == own


async def ping(desk: Desk) -> None:
    assert result_of(await desk.client.exchange("ping")) == {}


async def server_ping(desk: Desk) -> None:
    assert (await desk.call("ping_client"))["result"] == {}


# ------------------------------------------------------------------------------------------- what comes during a call


def log_meta(desk: Desk, level: str) -> Json:
    """How a client of 2026-07-28 says what it wants to hear."""
    return {f"{OF_MCP}logLevel": level} if desk.client.is_newest else {}


async def log_level(desk: Desk) -> None:
    await desk.client.request("logging/setLevel", {"level": "error"})
    try:
        call = await desk.exchange("tools/call", {"name": "say", "arguments": {"mark": desk.mark}})
        assert [one["level"] for one in heard(call, LOGS)] == world.LEVELS[4:]
        assert await desk.call("heard_level") == "error"
    finally:
        await desk.client.request("logging/setLevel", {"level": "debug"})


async def log(desk: Desk) -> None:
    params = {"name": "say", "arguments": {"mark": desk.mark}}
    if not desk.client.is_newest:
        await desk.client.request("logging/setLevel", {"level": "debug"})
    call = await desk.exchange("tools/call", params, log_meta(desk, "debug"))
    said = [{"level": level, "logger": "flows", "data": {"text": f"{desk.mark} {level}"}} for level in world.LEVELS]
    assert heard(call, LOGS) == said
    if desk.client.is_newest:
        assert heard(await desk.exchange("tools/call", params), LOGS) == [], "it asked for none"


async def progress(desk: Desk) -> None:
    params = {"name": "report", "arguments": {"mark": desk.mark}}
    call = await desk.exchange("tools/call", params, {"progressToken": f"token {desk.mark}"})
    told = heard(call, "notifications/progress")
    assert [one.pop("progressToken") for one in told] == [f"token {desk.mark}"] * 3
    assert told == [{"progress": n / 2, "total": 1.5, "message": f"{desk.mark} {n}"} for n in (1, 2, 3)]


async def sampling(desk: Desk) -> None:
    use = {"type": "tool_use", "id": "1", "name": "look", "input": {"x": [1]}}
    answer = {"role": "assistant", "content": [use], "model": "the-real-model-1", "stopReason": "toolUse"}
    desk.client.answers["sampling/createMessage"] = answer
    assert (await desk.call("sample"))["result"] == answer
    assert desk.asked("sampling/createMessage") == world.SAMPLING


async def elicitation_form(desk: Desk) -> None:
    for answer in ({"action": "accept", "content": {"name": "Ada", "age": 36}}, {"action": "decline"}):
        desk.client.asked.clear()
        desk.client.answers["elicitation/create"] = answer
        assert (await desk.call("fill_in"))["result"] == answer
        assert desk.asked("elicitation/create") == world.FORM


async def elicitation_url(desk: Desk) -> None:
    for answer in ({"action": "accept"}, {"action": "cancel"}):
        desk.client.asked.clear()
        desk.client.answers["elicitation/create"] = answer
        assert (await desk.call("open_url"))["result"] == answer
        asked = desk.asked("elicitation/create")
        own = asked.pop("elicitationId", None)
        assert asked == world.URL
        if (desk.client.era, desk.era) == (HANDSHAKE, HANDSHAKE):
            assert own == "sign-in-1"


async def elicitation_url_done(desk: Desk) -> None:
    desk.client.answers["elicitation/create"] = {"action": "accept"}
    await desk.call("open_url")
    await desk.call("finish_url")
    await desk.client.notified("notifications/elicitation/complete", elicitationId="sign-in-1")


async def roots(desk: Desk) -> None:
    answer = {"roots": [{"uri": f"file:///{desk.mark}", "name": "mine"}]}
    desk.client.answers["roots/list"] = answer
    assert (await desk.call("roots"))["result"] == answer


async def roots_changed(desk: Desk) -> None:
    await desk.call("echo", text="so that there is somebody to tell")
    await desk.client.notify("notifications/roots/list_changed")
    assert await desk.call("wait_roots_changed") == "heard"


async def question_withdrawn(desk: Desk) -> None:
    desk.client.answers["elicitation/create"] = lambda params: None
    call = await desk.begin("tools/call", {"name": "ask_in_vain", "arguments": {"mark": desk.mark}})

    def question() -> Any:
        asked = [one for one in desk.client.asked if one["method"] == "elicitation/create"]
        return next((one["id"] for one in asked if one["params"]["message"] == desk.mark), None)

    await desk.client.until(lambda: question() is not None)
    await desk.call("seen", mark=desk.mark)
    await desk.client.notified("notifications/cancelled", requestId=question())
    await ended(call)


# --------------------------------------------------------------------------------------------------- what has changed


def changed(kind: str) -> Flow:
    shown_in = "uri" if kind == "resources" else "name"

    async def flow(desk: Desk) -> None:
        shown = f"flow://{desk.mark}" if kind == "resources" else desk.mark

        def times() -> int:
            return sum(message["method"] == world.CHANGED[kind] for message in desk.client.heard)

        async def is_listed_once_heard() -> None:
            while True:
                told = times()
                if shown in [item[shown_in] for item in await desk.listed(kind)]:
                    return
                await desk.client.until(lambda told=told: times() > told)  # it told of an earlier change

        async def change() -> None:
            await desk.listed(kind)
            desk.client.heard.clear()
            await desk.call("change", kind=kind, mark=desk.mark)
            await desk.client.notified(world.CHANGED[kind])
            with anyio.fail_after(PATIENCE):
                await is_listed_once_heard()

        if desk.client.is_newest:
            async with desk.client.listening(**{f"{kind}ListChanged": True}):
                await change()
        else:
            await change()

    return flow


async def subscription(desk: Desk) -> None:
    inner = f"flow://item/{desk.mark}"
    public = desk.into(inner)

    async def hear() -> None:
        await desk.call("touch", uri=inner)
        await desk.client.notified("notifications/resources/updated", uri=public)

    if desk.client.is_newest:
        async with desk.client.listening(resourceSubscriptions=[public]) as stream:
            assert heard(stream, "notifications/subscriptions/acknowledged") == [
                {"notifications": {"resourceSubscriptions": [public]}}
            ]
            await hear()
    else:
        assert kept(await desk.client.request("resources/subscribe", {"uri": public})) == {}
        await hear()
        await desk.client.request("resources/unsubscribe", {"uri": public})
    with anyio.fail_after(PATIENCE):
        while await desk.call("subscribers", uri=inner):  # noqa: ASYNC110 - the server does not tell
            await anyio.sleep(0.02)


async def cancellation(desk: Desk) -> None:
    meta = {"progressToken": desk.mark}
    call = await desk.begin("tools/call", {"name": "wait", "arguments": {"mark": desk.mark}}, meta)
    await desk.client.notified("notifications/progress", progressToken=desk.mark)
    await desk.client.give_up(call)
    assert await desk.call("was_given_up", mark=desk.mark) == desk.mark


async def ended(call: Any) -> None:
    with anyio.fail_after(PATIENCE):
        await call.done.wait()


# ---------------------------------------------------------------------------------------------------- sizes and errors


async def large_result(desk: Desk) -> None:
    size = 8 * 2**20
    told = await desk.request("tools/call", name="large", arguments={"size": size})
    assert [len(item["text"]) for item in told["content"]] == [size]


async def too_large_a_result(desk: Desk) -> None:
    try:
        told = await desk.request("tools/call", name="large", arguments={"size": 17 * 2**20})
        assert told["isError"]
        text = told["content"][0]["text"]
    except Refused as refused:
        text = str(refused)
    assert f"'{desk.server}'" in text and "16" in text, text


async def tool_error(desk: Desk) -> None:
    told = await desk.request("tools/call", name="fail", arguments={"text": "not today"})
    content = [{"type": "text", "text": "not today"}]
    assert kept(told) == {"content": content, "structuredContent": {"code": 7}, "isError": True}


async def protocol_error(desk: Desk) -> None:
    own = {"code": -32050, "message": "not like this", "data": {"why": [1, None]}}
    arguments = {"code": own["code"], "text": own["message"], "data": own["data"]}
    assert await refusal(desk, "tools/call", name="refuse", arguments=arguments) == own
    error = await refusal(desk, "prompts/get", name="gone", arguments={})
    assert error["code"] == -32602
    error = await refusal(desk, "resources/read", uri="flow://gone")
    assert error["message"] == "nothing at flow://gone"
    code = -32002 if desk.era == HANDSHAKE else -32602
    assert error["code"] in (code, -32602 if desk.client.is_newest else code)


async def refusal(desk: Desk, method: str, **params: Any) -> Json:
    try:
        told = await desk.request(method, **params)
    except Refused as refused:
        error: Json = refused.error
        return error
    raise AssertionError(f"{method} should have been refused, and was not: {told}")


PLAY: dict[str, Flow] = {
    "tools": tools,
    "resources": resources,
    "templates": templates,
    "prompts": prompts,
    "completion": completion,
    "pagination": pagination,
    "declared": declared,
    "ping": ping,
    "server ping": server_ping,
    "log level": log_level,
    "log": log,
    "progress": progress,
    "sampling": sampling,
    "elicitation, form": elicitation_form,
    "elicitation, URL": elicitation_url,
    "elicitation, URL done": elicitation_url_done,
    "roots": roots,
    "roots changed": roots_changed,
    "tools changed": changed("tools"),
    "prompts changed": changed("prompts"),
    "resources changed": changed("resources"),
    "subscription": subscription,
    "cancellation": cancellation,
    "question withdrawn": question_withdrawn,
    "large result": large_result,
    "too large a result": too_large_a_result,
    "tool error": tool_error,
    "protocol error": protocol_error,
}
"""By the names of the table."""
