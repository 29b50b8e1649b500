"""The two lines of FastMCP, 4.x (mcp 2) and 3.4 (mcp 1): the only module that knows which one is installed.

Everybody else sees JSON dictionaries and the handful of functions below. Private attributes of FastMCP and of the MCP
SDK are touched here and nowhere else, each with the reason beside it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import fastmcp
from anyio import BrokenResourceError, ClosedResourceError
from fastmcp import Client
from fastmcp.server.context import Context
from mcp import ClientSession
from mcp.shared.message import ServerMessageMetadata, SessionMessage
from pydantic import BaseModel, RootModel, TypeAdapter

from providers.log_levels import LEVELS
from providers.shapes import SHAPES

MODERN = int(fastmcp.__version__.split(".")[0]) >= 4
"""True on FastMCP 4.x, which speaks both protocol eras; 3.4 speaks the handshake era alone."""

if TYPE_CHECKING or MODERN:
    import mcp_types as mcp_types
    from mcp import MCPError as MCPError
    from mcp.shared.inbound import find_invalid_x_mcp_header, mcp_param_headers, x_mcp_header_map
    from mcp_types.jsonrpc import jsonrpc_message_adapter
    from mcp_types.version import MODERN_PROTOCOL_VERSIONS as MODERN_PROTOCOL_VERSIONS
else:
    from mcp import McpError as MCPError
    from mcp import types as mcp_types

    jsonrpc_message_adapter = TypeAdapter(mcp_types.JSONRPCMessage)
    MODERN_PROTOCOL_VERSIONS = ()

CLIENT_CAPABILITIES_META_KEY = "io.modelcontextprotocol/clientCapabilities"  # in `_meta`, 2026-07-28, basic/index

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


ParamHeaders = Mapping[tuple[str, ...], str]
"""Which arguments of a tool go into `Mcp-Param-…` headers, too: the path of each, and the header's name."""

param_headers: ContextVar[ParamHeaders] = ContextVar("apollos_param_headers", default={})  # noqa: B039 - never changed
"""Those of the tool that is being called."""


def param_headers_of(input_schema: Any) -> ParamHeaders:
    """What a tool's schema says of headers (2026-07-28, `x-mcp-header`); nothing where it is not valid."""
    if not MODERN or not isinstance(input_schema, dict) or find_invalid_x_mcp_header(input_schema) is not None:
        return {}
    return x_mcp_header_map(input_schema)


class ForwardingSession(ClientSession):
    """A session that hands results on as they came. Whether a tool's result fits its declared schema is for the
    client at the end to check: here it would turn a backend's slip into a gateway's error."""

    async def validate_tool_result(self, name: str, result: Any) -> None:
        return None

    _validate_tool_result = validate_tool_result  # the name of the same hook in mcp 1

    def _resolve_param_headers(self, name: str, arguments: Mapping[str, Any]) -> dict[str, str]:
        """The SDK knows a tool once this session has listed it; ours are listed over any session, and kept."""
        headers = param_headers.get()
        return mcp_param_headers(headers, arguments) if headers else {}

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
    if MODERN and (shape := SHAPES.get(method)):  # the session of 4.x would refuse what is newer than itself
        raw = await _send_unchecked(session, method, params)
        if raw.get("resultType") != "input_required":
            shape.model_validate(raw)
        return raw
    result = await session.send_request(RawRequest(method=method, params=params), RawResult)  # type: ignore[arg-type]
    if model := _UNCHECKED_RESULTS.get(method):
        model.model_validate(result.root)
    return result.root


async def _send_unchecked(session: ClientSession, method: str, params: Json | None) -> Json:
    """What `send_request` does before it looks at the answer: the stamp is the era's own `_meta` and headers."""
    data: Json = {"method": method} | ({"params": dict(params)} if params is not None else {})
    options: Any = {}
    session._stamp(data, options)
    raw = await session._dispatcher.send_raw_request(method, data.get("params"), options)
    return dict(raw)


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


def owner_of_request(request: Any) -> Any:
    """The same for a client's request that is held on to."""
    session = getattr(request, "session", None)
    return session._connection if MODERN and session is not None else session


def on_session_end(owner: Any, callback: Callable[[], Awaitable[None]]) -> None:
    """Have `callback` awaited when the client's session ends. Its exit stack is the only thing that tells."""
    stack = owner.exit_stack if MODERN else owner._exit_stack
    stack.push_async_callback(callback)


def declared_capabilities(context: Context) -> Json:
    """What the client declared that it can do, as it wrote it as far as that can be had."""
    try:
        session = context.session
    except RuntimeError:
        return {}
    if not MODERN:
        known = session.client_params.capabilities if session.client_params else None
    elif is_modern_request(context):
        declared = (_params_of(context).get("_meta") or {}).get(CLIENT_CAPABILITIES_META_KEY)
        return declared if isinstance(declared, dict) else {}
    elif (declared := session._connection.state.get("apollos_capabilities")) is not None:
        return dict(declared)
    else:
        known = session.client_capabilities
    return known.model_dump(by_alias=True, mode="json", exclude_none=True) if known else {}


def remember_capabilities(context: Context) -> None:
    """Keep what a handshake client declares, for as long as its session lasts: the SDK keeps what it knows of it."""
    owner = session_owner(context)
    declared = _params_of(context).get("capabilities") if MODERN else None
    if owner is not None and isinstance(declared, dict):
        owner.state["apollos_capabilities"] = declared


def _params_of(context: Context) -> Json:
    """The params of the client's request as it sent them; FastMCP 4.x keeps them beside those that it parsed."""
    request = context.request_context
    return dict(request._srctx.params or {}) if request is not None else {}


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
    params = _params_of(context)
    return {key: params[key] for key in ("inputResponses", "requestState") if params.get(key) is not None}


def live_request(context: Context) -> Any:
    """The client's request that this context stands for, or None. A context looks it up each time, in a variable of
    the running task: whoever passes messages on from another task must hold the request itself."""
    return context.request_context


LOG_LEVEL_KEY = "io.modelcontextprotocol/logLevel"


def log_level(request: Any) -> str | None:
    """The level that the client asked for: by `logging/setLevel`, or with this request in 2026-07-28."""
    if not MODERN:
        return session_log_level(request.session)
    if request.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        return session_log_level(request.session._connection)
    level = (request.meta or {}).get(LOG_LEVEL_KEY)
    return level if level in LEVELS else None


def session_log_level(owner: Any) -> str | None:
    """The level that a handshake client asked for. FastMCP 4.x keeps it on the server that got the request, which is
    the root; ours are sub-servers, so we keep it as well."""
    level = owner.state.get("apollos_log_level") if MODERN else getattr(owner, "_minimum_logging_level", None)
    return level if level in LEVELS else None


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
    if MODERN:  # its own way to send checks the answer, which is for the backend to judge
        return dict(await request.session._request_outbound.send_raw_request(method, params, None))
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


async def tell_session(owner: Any, method: str, params: Json | None = None) -> None:
    """Send a notification to a session at large, if it is still there."""
    if MODERN:
        await owner.notify(method, params)
    else:
        await owner.send_notification(RawRequest(method=method, params=params))


# --- errors and results


def passed_on(error: Exception, kind: type[Exception]) -> Exception:
    """A backend's error as FastMCP lets it through: with its code on 4.x, as `kind` with its text on 3.4."""
    return error if MODERN else kind(error_data(error)["message"])


def mcp_error(code: int, message: str, data: Any = None) -> MCPError:
    """An error as the SDK raises it."""
    if MODERN:
        return MCPError(code=code, message=message, data=data)
    return MCPError(mcp_types.ErrorData(code=code, message=message, data=data))  # type: ignore[call-arg,arg-type]


def error_data(error: Exception) -> Json:
    """code, message and data of the SDK's error."""
    data: Json = error.error.model_dump(mode="json", exclude_none=True)  # type: ignore[attr-defined]
    return data
