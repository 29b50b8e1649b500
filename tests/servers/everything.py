"""A real backend for tests: one tool for each thing that MCP can do. It runs on FastMCP 3.4 and 4.x.

    python everything.py                 over stdio
    python everything.py http PORT       over Streamable HTTP at /mcp
    python everything.py sse PORT        over the older HTTP+SSE at /sse

PORT 0 takes a free one. A server over HTTP prints its port as the first line of stdout.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal, cast

import anyio
import fastmcp
from fastmcp import Context, FastMCP
from fastmcp.exceptions import ToolError
from fastmcp.server.dependencies import get_http_headers, get_http_request
from fastmcp.tools import Tool
from mcp.shared.message import ServerMessageMetadata

FASTMCP_4 = fastmcp.__version__.startswith("4.")

if TYPE_CHECKING or FASTMCP_4:
    import mcp_types as types
    from mcp_types.version import MODERN_PROTOCOL_VERSIONS
else:  # FastMCP 3.4 knows the handshake era only
    from mcp import types

    MODERN_PROTOCOL_VERSIONS = ()

IDENTITY_META_KEY = "dev.apollos/identity"
HEADERS_OF_INTEREST = ("authorization", "cookie", "user-agent")

mcp: FastMCP = FastMCP("everything", instructions="A server for tests.")
counts: Counter[str] = Counter()
added: set[str] = set()


@mcp.tool
def echo(text: str) -> str:
    """Give the text back."""
    return text


@mcp.tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@mcp.tool
def whoami(ctx: Context) -> dict[str, Any]:
    """On whose behalf the call was made, as this backend heard it: in `_meta`, and in HTTP headers."""
    headers = get_http_headers(include_all=True)
    return {
        "identity": request_meta(ctx).get(IDENTITY_META_KEY),
        "meta_keys": sorted(request_meta(ctx)),
        "headers": {
            name: value for name, value in headers.items() if name.startswith("x-") or name in HEADERS_OF_INTEREST
        },
        "header_names": received_header_names(),
    }


def request_meta(ctx: Context) -> dict[str, Any]:
    """The request's `_meta` as a dictionary; the two FastMCP lines hold it differently."""
    context = ctx.request_context
    meta = context.meta if context is not None else None
    if meta is None or isinstance(meta, dict):
        return dict(meta or {})
    return cast(dict[str, Any], meta.model_dump(by_alias=True, exclude_none=True))


def received_header_names() -> list[str]:
    """Every header name as it arrived, with repetitions: a header sent twice is there twice."""
    try:
        return sorted(name.decode().lower() for name, _ in get_http_request().headers.raw)
    except RuntimeError:  # over stdio there is no HTTP request
        return []


@mcp.tool
def count(ctx: Context, n: int = 1) -> int:
    """Add n to the counter of this MCP session and give its value."""
    key = session_key(ctx)
    counts[key] += n
    return counts[key]


def session_key(ctx: Context) -> str:
    """The session's id. Over stdio the process is the session, also in the era that has no sessions."""
    return "stdio" if is_modern(ctx) and not received_header_names() else ctx.session_id


@mcp.tool
def total(n: int = 1) -> int:
    """Add n to the counter of this process and give its value."""
    counts["process"] += n
    return counts["process"]


@mcp.tool
def pid() -> int:
    """The process id, to tell one backend process from another."""
    return os.getpid()


@mcp.tool
async def slow(ctx: Context, seconds: float, steps: int = 1) -> str:
    """Take that many seconds, reporting progress after each step."""
    try:
        for step in range(1, steps + 1):
            await anyio.sleep(seconds / steps)
            await ctx.report_progress(step, steps, f"step {step} of {steps}")
    except anyio.get_cancelled_exc_class():
        counts["cancelled"] += 1
        raise
    return f"slept {seconds:g} s"


@mcp.tool
def cancellations() -> int:
    """How many calls of `slow` were cancelled in this process."""
    return counts["cancelled"]


@mcp.tool
async def chatter(ctx: Context, n: int, tag: str) -> str:
    """Send n log messages, each with the tag, so that a test sees whom they reach."""
    for number in range(n):
        await ctx.info(f"{tag} {number}")
    return tag


@mcp.tool
async def ask(ctx: Context, question: str) -> Any:
    """Ask the user (elicitation) and give the answer, or `decline` or `cancel`."""
    schema = {"type": "object", "properties": {"value": {"type": "string"}}, "required": ["value"]}
    params = {"message": question, "requestedSchema": schema}
    request = types.ElicitRequest.model_validate({"method": "elicitation/create", "params": params})
    answer = await ask_client(ctx, request, types.ElicitResult)
    if not isinstance(answer, types.ElicitResult):
        return answer
    return (answer.content or {}).get("value") if answer.action == "accept" else answer.action


@mcp.tool
async def think(ctx: Context, prompt: str) -> Any:
    """Ask the client's model (sampling) and give its text."""
    message = {"role": "user", "content": {"type": "text", "text": prompt}}
    params = {"messages": [message], "maxTokens": 100}
    request = types.CreateMessageRequest.model_validate({"method": "sampling/createMessage", "params": params})
    answer = await ask_client(ctx, request, types.CreateMessageResult)
    if not isinstance(answer, types.CreateMessageResult):
        return answer
    return cast(types.TextContent, answer.content).text


@mcp.tool
async def roots(ctx: Context) -> Any:
    """Ask for the client's roots and give their URIs."""
    answer = await ask_client(ctx, types.ListRootsRequest(method="roots/list"), types.ListRootsResult)
    if not isinstance(answer, types.ListRootsResult):
        return answer
    return [str(root.uri) for root in answer.roots]


@mcp.tool
async def confer(ctx: Context, tag: str, steps: int) -> dict[str, Any]:
    """All of the above in one call of the handshake era: log, report progress, ask, think and list roots."""
    await chatter(ctx, 3, tag)
    await slow(ctx, 0.05, steps)
    return {"ask": await ask(ctx, f"{tag}?"), "think": await think(ctx, f"{tag}!"), "roots": await roots(ctx)}


async def ask_client(ctx: Context, request: Any, answer_type: type[Any]) -> Any:
    """Ask the client for something.

    In the handshake era a request goes back to it. The newest era has no way back: there the call is answered
    with the question, and the client calls again with the answer.
    """
    if is_modern(ctx):
        if not ctx.input_responses:
            return types.InputRequiredResult(input_requests={"answer": request})
        return ctx.input_responses["answer"]
    if not FASTMCP_4:  # where a request is wrapped in a model of its own
        request = types.ServerRequest(request)  # type: ignore[operator]
    related = ServerMessageMetadata(related_request_id=ctx.request_id)
    return await ctx.session.send_request(request, answer_type, metadata=related)


def is_modern(ctx: Context) -> bool:
    """Whether the caller speaks the era of 2026-07-28, which knows no requests from server to client."""
    return getattr(ctx.request_context, "protocol_version", None) in MODERN_PROTOCOL_VERSIONS


@mcp.tool
def fail(message: str) -> str:
    """Answer with a tool error."""
    raise ToolError(message)


@mcp.tool
def crash() -> str:
    """End the process at once, as a segmentation fault would."""
    os._exit(1)


@mcp.tool
def big(megabytes: int) -> str:
    """Answer with that many megabytes of text."""
    return "x" * (megabytes * 1024 * 1024)


@mcp.tool
async def change_tools(ctx: Context, name: str) -> str:
    """Add a tool of that name, or take it away again if it is there, and say that the list has changed."""
    if name in added:
        added.remove(name)
        mcp.local_provider.remove_tool(name)
    else:
        added.add(name)
        mcp.add_tool(Tool.from_function(lambda: name, name=name, description="Added while running."))
    await ctx.send_notification(types.ToolListChangedNotification(method="notifications/tools/list_changed"))
    return name


@mcp.resource("data://greeting")
def greeting() -> str:
    """A fixed text."""
    return "hello"


@mcp.resource("data://item/{id}")
def item(id: str) -> str:
    """One item by its id."""
    return f"item {id}"


@mcp.prompt
def summarize(topic: str) -> str:
    """Ask for a summary of a topic."""
    return f"Summarize {topic}."


def serve_http(transport: Literal["http", "sse"], port: int) -> None:
    """Serve on loopback. The socket listens before the port is printed: who reads it can connect at once."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else an answer waits for 40 ms
        print(listener.getsockname()[1], flush=True)

        async def serve() -> None:
            await mcp.run_http_async(
                show_banner=False,
                transport=transport,
                host="127.0.0.1",
                log_level="error",
                sockets=[listener],
            )

        anyio.run(serve)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        mcp.run(transport="stdio", show_banner=False, log_level="ERROR")
    else:
        serve_http(cast(Literal["http", "sse"], sys.argv[1]), int(sys.argv[2]))
