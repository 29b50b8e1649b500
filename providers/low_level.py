"""The MCP SDK's low-level server below FastMCP: messages that FastMCP has no components for.

`composition.relay` comes in. Beside `lines`, the only module that touches a private attribute: FastMCP does not show
the server that its own handlers hang on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from fastmcp import FastMCP

from providers.lines import MODERN, MODERN_PROTOCOL_VERSIONS, Json, mcp_types


def serve_others(
    server: FastMCP[Any],
    requests: Mapping[str, Callable[[Any, Json], Awaitable[Json]]],
    notifications: Mapping[str, Callable[[], Awaitable[None]]],
) -> None:
    """Have messages answered that FastMCP has no components for. Its own handlers hang on the same low-level server,
    which says in its capabilities what it has handlers for. On 3.4 they are not served.

    Args:
        requests: by method; each is given the request, and its params as the client sent them.
    """
    if not MODERN:
        return
    shapes = {
        "completion/complete": mcp_types.CompleteRequestParams,
        "resources/subscribe": mcp_types.SubscribeRequestParams,
        "resources/unsubscribe": mcp_types.UnsubscribeRequestParams,
        "subscriptions/listen": mcp_types.SubscriptionsListenRequestParams,
    }
    for method, answer in requests.items():
        server._mcp_server.add_request_handler(method, shapes[method], partial(_answer_raw, answer))
    for method, take in notifications.items():
        server._mcp_server.add_notification_handler(method, mcp_types.NotificationParams, partial(_take_raw, take))


async def _answer_raw(answer: Callable[[Any, Json], Awaitable[Json]], request: Any, params: Any) -> Json:
    result = await answer(request, dict(request.params or {}))
    is_modern = request.protocol_version in MODERN_PROTOCOL_VERSIONS
    return {"resultType": "complete"} | result if is_modern else result


async def _take_raw(take: Callable[[], Awaitable[None]], request: Any, params: Any) -> None:
    await take()
