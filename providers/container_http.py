"""When is a container over HTTP ready, and why did it fall silent? Both are told here, over the remote wires.

A launcher comes in; the wires themselves are opened by the function that it hands in. A published port opens before
anybody listens behind it, so ready is who answers MCP.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import anyio

from providers.container import Address
from providers.errors import BackendError, BackendUnavailable
from providers.resource import McpServerResource, TransportType
from providers.wire import WIRE_ERROR_CODE, Deliver, Message, Wire

OpenRemote = Callable[[McpServerResource, Deliver], AbstractAsyncContextManager[Wire]]
"""Opens a wire to the URL of a resource, by its transport."""

_TRY_EVERY = 0.05
_ONE_TRY = 5.0
_HELLO: Message = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "apollos-mcp-gateway", "version": "0"},
    },
}


def at_address(resource: McpServerResource, address: Address) -> McpServerResource:
    """The record of a container as that of a remote server."""
    path = resource.docker_path or ("/sse" if resource.transport_type is TransportType.SSE else "/mcp")
    return resource.model_copy(update={"url": f"http://{address.host}:{address.port}{path}"})


async def until_ready(
    resource: McpServerResource, open_remote: OpenRemote, is_alive: Callable[[], Awaitable[bool]]
) -> None:
    """Wait until a server answers MCP; any answer will do.

    Args:
        resource: with its url.
        is_alive: whether its container still runs.

    Raises:
        BackendUnavailable: its container has ended.
    """
    while not await _answers(resource, open_remote):
        if not await is_alive():
            raise BackendUnavailable(resource.name, "its container ended.", not_sent=True)
        await anyio.sleep(_TRY_EVERY)


async def _answers(resource: McpServerResource, open_remote: OpenRemote) -> bool:
    answered, result = anyio.Event(), False

    async def deliver(message: Message) -> None:
        nonlocal result
        result = result or not is_wire_error(message)
        answered.set()

    try:
        with anyio.move_on_after(_ONE_TRY):
            async with open_remote(resource, deliver) as wire:
                await wire.send(_HELLO, {})
                await answered.wait()
    except (BackendError, ExceptionGroup):
        return False
    return result


def is_wire_error(message: Message) -> bool:
    """Whether an answer was made by a wire that could not carry its request."""
    error = message.get("error")
    return isinstance(error, dict) and error.get("code") == WIRE_ERROR_CODE


def explaining(deliver: Deliver, explain: Callable[[], Awaitable[BackendError | None]]) -> Deliver:
    """Have a wire's own errors say what became of the container, where that is the reason."""

    async def delivered(message: Message) -> None:
        if is_wire_error(message) and (error := await explain()) is not None:
            message = message | {"error": message["error"] | {"message": str(error)}}
        await deliver(message)

    return delivered
