"""When is a container over HTTP ready, and why did it fall silent? Both are told here, over the remote wires.

A launcher comes in; the wires themselves are opened by the function that it hands in. A published port opens before
anybody listens behind it, so ready is who answers MCP.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import anyio

from providers.container import Address, Container
from providers.docker import McpContainerManager
from providers.endpoint import HttpClient
from providers.errors import BackendError, BackendUnavailable
from providers.process import in_one_line, mask_for
from providers.resource import McpServerResource, TransportType
from providers.wire import WIRE_ERROR_CODE, Deliver, Message, Wire


class OpenRemote(Protocol):
    """Opens a wire to the URL of a resource, by its transport, with requests of this client."""

    def __call__(
        self, resource: McpServerResource, deliver: Deliver, client: HttpClient
    ) -> AbstractAsyncContextManager[Wire]: ...


OpenWireTo = Callable[[McpServerResource, Deliver], AbstractAsyncContextManager[Wire]]

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
    resource: McpServerResource, open_wire: OpenWireTo, is_alive: Callable[[], Awaitable[bool]]
) -> None:
    """Wait until a server answers MCP; any answer will do.

    Args:
        resource: with its url.
        open_wire: opens a wire to it.
        is_alive: whether its container still runs.

    Raises:
        BackendUnavailable: its container has ended.
    """
    while not await _answers(resource, open_wire):
        if not await is_alive():
            raise BackendUnavailable(resource.name, "its container ended.", not_sent=True)
        await anyio.sleep(_TRY_EVERY)


async def _answers(resource: McpServerResource, open_wire: OpenWireTo) -> bool:
    answered, result = anyio.Event(), False

    async def deliver(message: Message) -> None:
        nonlocal result
        result = result or not is_wire_error(message)
        answered.set()

    try:
        with anyio.move_on_after(_ONE_TRY):
            async with open_wire(resource, deliver) as wire:
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


async def last_words(resource: McpServerResource, manager: McpContainerManager, container: Container) -> str:
    """Why a container did not come up, with the end of what it said; what may be a secret is replaced by its name."""
    try:
        status = await manager.get_status(container)
        lines = [line.partition(" ")[2] for line in await manager.get_logs(container, tail=5)]
    except BackendError as error:
        return error.problem
    words = in_one_line(map(mask_for(resource), lines))
    how = "its container runs" if status.is_running else f"its container {status.obituary()}"
    return f"{how}; its last words: {words}" if words else f"{how}; it said nothing."
