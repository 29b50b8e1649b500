"""The two lines of FastMCP, 4.x (mcp 2) and 3.4 (mcp 1): the only module that knows which one is installed.

Everybody else sees JSON dictionaries and the handful of functions below. Private attributes of FastMCP and of the MCP
SDK are touched here and nowhere else, each with the reason beside it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING, Any

import fastmcp
from anyio import BrokenResourceError, ClosedResourceError
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from fastmcp import Client, FastMCP
from fastmcp.server.context import Context
from mcp import ClientSession
from mcp.shared.message import ServerMessageMetadata, SessionMessage
from pydantic import BaseModel, RootModel, TypeAdapter
from pydantic_core import to_jsonable_python

MODERN = int(fastmcp.__version__.split(".")[0]) >= 4
"""True on FastMCP 4.x, which speaks both protocol eras; 3.4 speaks the handshake era alone."""

if TYPE_CHECKING or MODERN:
    import mcp_types as mcp_types
    from mcp import MCPError as MCPError
    from mcp_types.jsonrpc import jsonrpc_message_adapter
    from mcp_types.version import MODERN_PROTOCOL_VERSIONS as MODERN_PROTOCOL_VERSIONS
else:
    from mcp import McpError as MCPError  # noqa: F401 - for whoever imports it from here
    from mcp import types as mcp_types

    jsonrpc_message_adapter = TypeAdapter(mcp_types.JSONRPCMessage)
    MODERN_PROTOCOL_VERSIONS = ()

Json = dict[str, Any]


class RawRequest(BaseModel):
    """A request as the SDK wants to see one, whose params stay the dictionary that they are."""

    method: str
    params: Json | None = None

    name_param: str | None = None  # read by the 4.x session from the class; never sent

    def model_dump(self, **_options: Any) -> Json:
        return {"method": self.method} | ({"params": self.params} if self.params is not None else {})


RawRequest.name_param = None


class RawResult(RootModel[Json]):
    """A result kept word for word."""


_UNCHECKED_RESULTS: Mapping[str, type[BaseModel]] = (
    {}
    if MODERN
    else {
        "tools/call": mcp_types.CallToolResult,
        "resources/read": mcp_types.ReadResourceResult,
        "prompts/get": mcp_types.GetPromptResult,
        "tools/list": mcp_types.ListToolsResult,
        "resources/list": mcp_types.ListResourcesResult,
        "resources/templates/list": mcp_types.ListResourceTemplatesResult,
        "prompts/list": mcp_types.ListPromptsResult,
    }
)
"""What results must be like that the session of 3.4 takes as they are; that of 4.x checks them itself."""


# --- messages of a session


def to_session_message(message: Json) -> SessionMessage:
    """A JSON-RPC dictionary as the SDK's session reads it.

    Raises:
        pydantic.ValidationError: it is not JSON-RPC.
    """
    if MODERN:
        return SessionMessage(jsonrpc_message_adapter.validate_python(message, by_name=False))
    return SessionMessage(jsonrpc_message_adapter.validate_python(message))


def from_session_message(item: SessionMessage) -> tuple[Json, Mapping[str, str]]:
    """What the SDK's session writes: the JSON-RPC dictionary, and MCP's own headers for it."""
    dumped = item.message.model_dump(by_alias=True, mode="json", exclude_unset=True)
    return dumped, getattr(item.metadata, "headers", None) or {}


class ForwardingSession(ClientSession):
    """A session that hands results on as they came. Whether a tool's result fits its declared schema is for the
    client at the end to check: here it would turn a backend's slip into a gateway's error."""

    async def validate_tool_result(self, name: str, result: Any) -> None:
        return None

    _validate_tool_result = validate_tool_result  # the name of the same hook in mcp 1

    async def _handle_response(self, message: SessionMessage) -> None:
        """In mcp 1 an answer to somebody who gives up at that very moment would end the whole session."""
        with suppress(ClosedResourceError, BrokenResourceError):
            await super()._handle_response(message)  # type: ignore[misc]


async def send_raw(session: ClientSession, method: str, params: Json | None) -> Json:
    """One request on a client session, dictionary in, dictionary out.

    Raises:
        MCPError: the peer answered with an error, or the connection ended.
        pydantic.ValidationError: the answer is not what MCP prescribes.
    """
    result = await session.send_request(RawRequest(method=method, params=params), RawResult)  # type: ignore[arg-type]
    if shape := _UNCHECKED_RESULTS.get(method):
        shape.model_validate(result.root)
    return result.root


def era_options(memory: str | None, *, prefers_modern: bool) -> Json:
    """Options for `fastmcp.Client` that pick the protocol era.

    Args:
        memory: what `era_memory` gave for an earlier session with the same server, so that an era which it does not
            have is tried once; None at first.
        prefers_modern: begin with the 2026-07-28 era. It falls back to a handshake by itself, not the other way round.
    """
    if not MODERN:
        return {}
    return {"mode": memory or ("auto" if prefers_modern else "legacy")}


def era_memory(client: Client[Any]) -> str | None:
    """What is worth remembering of a negotiation: how to begin next time. What a server said of itself is not: it may
    have said it to one user."""
    if not MODERN:
        return None
    return "auto" if client.session.discover_result is not None else "legacy"


def server_facts(client: Client[Any]) -> Json:
    """What the server said of itself: `protocolVersion`, `capabilities`, `serverInfo`, `instructions`."""
    if MODERN:
        session = client.session
        facts = {
            "protocolVersion": session.protocol_version,
            "capabilities": session.server_capabilities,
            "serverInfo": session.server_info,
            "instructions": session.instructions,
        }
    else:
        result: Any = client.initialize_result
        facts = {
            "protocolVersion": result.protocolVersion,
            "capabilities": result.capabilities,
            "serverInfo": result.serverInfo,
            "instructions": result.instructions,
        }
    return {
        key: value.model_dump(by_alias=True, mode="json", exclude_none=True) if isinstance(value, BaseModel) else value
        for key, value in facts.items()
    }


def is_modern_version(version: str | None) -> bool:
    return version in MODERN_PROTOCOL_VERSIONS


# --- the client of a front request


def is_modern_request(context: Context) -> bool:
    """Whether the caller speaks the 2026-07-28 era, which has no sessions and cannot be asked questions."""
    request = context.request_context
    return MODERN and request is not None and request.protocol_version in MODERN_PROTOCOL_VERSIONS


def session_owner(context: Context) -> Any:
    """The object that lives exactly as long as the client's session, or None outside of one.

    On 4.x a `ServerSession` is made per request; what lasts is its connection, which the SDK keeps private.
    """
    try:
        session = context.session
    except RuntimeError:
        return None
    return session._connection if MODERN else session


def on_session_end(owner: Any, callback: Callable[[], Awaitable[None]]) -> None:
    """Have `callback` awaited when the client's session ends. Its exit stack is the only thing that tells."""
    stack = owner.exit_stack if MODERN else owner._exit_stack
    stack.push_async_callback(callback)


def declared_capabilities(context: Context) -> frozenset[str]:
    """Of `elicitation`, `sampling` and `roots`, those that the client declared."""
    try:
        session = context.session
    except RuntimeError:
        return frozenset()
    if MODERN:
        declared = session.client_capabilities
    else:
        declared = session.client_params.capabilities if session.client_params else None
    names = ("elicitation", "sampling", "roots")
    return frozenset(name for name in names if declared and getattr(declared, name) is not None)


def _meta_of(context: Context) -> Any:
    """A dictionary on 4.x, a model on 3.4."""
    request = context.request_context
    return request.meta if request is not None else None


def progress_token(context: Context) -> str | int | None:
    """The token under which the client wants to hear of progress."""
    meta = _meta_of(context)
    if meta is None:
        return None
    token: str | int | None = meta.get("progressToken") if MODERN else meta.progressToken
    return token


def request_meta(context: Context) -> Json:
    """The request's `_meta` as the client sent it, less what describes the client's own connection."""
    meta = _meta_of(context)
    if not meta:
        return {}
    raw = dict(meta) if MODERN else meta.model_dump(by_alias=True, mode="json", exclude_none=True)
    own = ("io.modelcontextprotocol/", "progressToken")
    return {key: value for key, value in raw.items() if not key.startswith(own)}


def continuation(context: Context) -> Json:
    """What a 2026-07-28 client sends with a retry after it was asked for input, as request params."""
    if not is_modern_request(context):
        return {}
    given = {"inputResponses": context.input_responses, "requestState": context.request_state}
    return {
        key: to_jsonable_python(value, by_alias=True, exclude_none=True)
        for key, value in given.items()
        if value is not None
    }


_LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")


def live_request(context: Context) -> Any:
    """The client's request that this context stands for, or None. A context looks it up each time, in a variable of
    the running task: whoever passes messages on from another task must hold the request itself."""
    return context.request_context


def wants_log(request: Any, level: str) -> bool:
    """Whether the client asked for log messages of this level: by `logging/setLevel`, or per request in 2026-07-28."""
    if level not in _LEVELS:
        return False
    session = request.session
    if not MODERN:
        wanted = getattr(session, "_minimum_logging_level", None)
    elif request.protocol_version in MODERN_PROTOCOL_VERSIONS:
        return level in session._allowed_log_levels
    else:  # FastMCP keeps the level on the server that got the request, which is the root; ours is a sub-server
        wanted = session._connection.state.get("apollos_log_level")
    return wanted is None or _LEVELS.index(level) >= _LEVELS.index(wanted)


def remember_log_level(context: Context, level: str) -> None:
    """Keep the level that a handshake client asked for, for as long as its session lasts."""
    owner = session_owner(context)
    if MODERN and owner is not None:
        owner.state["apollos_log_level"] = level


async def ask_client(request: Any, method: str, params: Json | None) -> Json:
    """Send a request to the client on the stream of the request it is waiting for.

    Raises:
        MCPError: the client answered with an error or cannot be asked.
    """
    result = await request.session.send_request(
        RawRequest(method=method, params=params),
        RawResult,
        metadata=ServerMessageMetadata(related_request_id=request.request_id),
    )
    root: Json = result.root
    return root


async def tell_client(request: Any, method: str, params: Json | None) -> None:
    """Send a notification on the stream of the request that the client is waiting for."""
    await request.session.send_notification(
        RawRequest(method=method, params=params), related_request_id=request.request_id
    )


async def tell_session(owner: Any, method: str) -> None:
    """Send a notification without params to a session at large, if it is still there."""
    if MODERN:
        await owner.notify(method, None)
    else:
        await owner.send_notification(RawRequest(method=method))


# --- the root server


def use_input_schema_lookup(server: FastMCP[Any], lookup: Callable[[str], Mapping[str, Any] | None]) -> None:
    """Let the SDK look a tool's input schema up in memory. Without it 4.x lists all tools before each modern call, and
    3.4 before each call of a tool that it has not seen, so that one hung backend blocks every call; there is no public
    way to set it through FastMCP."""
    if MODERN:
        server._mcp_server.get_tool_input_schema = lookup
    else:
        server._mcp_server._get_cached_tool_definition = _no_definition  # type: ignore[attr-defined]


async def _no_definition(name: str) -> None:
    """What mcp 1 would check results by; ours are the backend's own, and checked by the client at the end."""


def passed_on(error: Exception, kind: type[Exception]) -> Exception:
    """A backend's error as FastMCP lets it through: with its code on 4.x, as `kind` with its text on 3.4."""
    return error if MODERN else kind(error_data(error)["message"])


def error_data(error: Exception) -> Json:
    """code, message and data of the SDK's error."""
    data: Json = error.error.model_dump(mode="json", exclude_none=True)  # type: ignore[attr-defined]
    return data


def lifespan(server: FastMCP[Any]) -> AbstractAsyncContextManager[None]:
    """The lifespan of a server in this process; FastMCP enters it only by itself."""
    return server._lifespan_manager()


async def serve_in_memory(
    server: FastMCP[Any],
    read: MemoryObjectReceiveStream[SessionMessage | Exception],
    write: MemoryObjectSendStream[SessionMessage],
) -> None:
    """Run a FastMCP server of this process over a pair of streams until the reading one ends. The streams are plain
    ones: they carry no context variables, so the server sees nothing of the request that a message came with."""
    low_level = server._mcp_server
    await low_level.run(read, write, low_level.create_initialization_options())


def input_required(kind: str, raw: Json) -> Any:
    """FastMCP's result for "the backend asks for input"; only 4.x has one.

    Args:
        kind: `tool`, `resource` or `prompt`.
    """
    from fastmcp.prompts.base import InputRequiredPromptResult
    from fastmcp.resources.base import InputRequiredResourceResult
    from fastmcp.tools.base import InputRequiredToolResult

    kinds = {
        "tool": InputRequiredToolResult,
        "resource": InputRequiredResourceResult,
        "prompt": InputRequiredPromptResult,
    }
    return kinds[kind](mcp_types.InputRequiredResult.model_validate(raw))
